package launch

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/onggi/onggi/errdefs"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// TestDeleteAfterKillInStartExecDelete kills start, exec and delete at each of their named steps; what is left of the
// container is removed by delete --force.
func TestDeleteAfterKillInStartExecDelete(t *testing.T) {
	h := newHost(t)
	bin := runtimeBinary(t)
	s := h.spec("sleep 100")
	ok := []runspec.Hook{{Path: "/bin/true"}}
	s.Hooks = &runspec.Hooks{Poststart: ok, Poststop: ok}
	id := filepath.Base(s.Linux.CgroupsPath)
	b, err := jsonSpec(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.bundle, "config.json"), b, 0o644); err != nil {
		t.Fatal(err)
	}
	do := func(env string, args ...string) error {
		c := exec.Command(bin, append([]string{"--root", h.root, "--log", filepath.Join(h.bundle, "log")}, args...)...)
		c.Dir, c.Env = h.bundle, append(os.Environ(), env)
		return c.Run()
	}
	must := func(args ...string) {
		t.Helper()
		if err := do("X=", args...); err != nil {
			log, _ := os.ReadFile(filepath.Join(h.bundle, "log"))
			t.Fatalf("%v: %v %s", args, err, log)
		}
	}
	names := filepath.Join(h.bundle, "names")
	steps := 0
	for _, c := range []struct {
		prefix string
		args   []string
		least  int
	}{{"start.", []string{"start", id}, 5}, {"exec.", []string{"exec", id, "true"}, 2}, {"delete.", []string{"delete", "--force", id}, 6}} {
		prepare := func() {
			must("create", id)
			if c.prefix != "start." {
				must("start", id)
			}
		}
		_ = os.Remove(names)
		prepare()
		if err := do("ONGGI_FAULT_NAMES="+names, c.args...); err != nil {
			t.Fatalf("%v: %v", c.args, err)
		}
		must("delete", "--force", id)
		list, _ := os.ReadFile(names)
		n := 0
		all := strings.Fields(string(list))
		for i, name := range all {
			if !strings.HasPrefix(name, c.prefix) {
				continue
			}
			n++
			for _, at := range []string{"", "@after"} {
				if at != "" && i+1 < len(all) {
					continue // the same moment as before the next one
				}
				prepare()
				if err := do("ONGGI_FAULT="+name+at+"=kill", c.args...); err == nil {
					t.Errorf("%s%s: %v was not killed", name, at, c.args)
				}
				must("delete", "--force", id)
				h.nothingLeft(id)
			}
		}
		if n < c.least {
			t.Errorf("%v has %d named steps: %s", c.args, n, list)
		}
		steps += n
	}
	t.Logf("%d steps", steps)
	for i := 0; countProcesses(t, "onggi-runtime\x00init") > 0; i++ { // of an exec that was killed before its group was left
		if i == 500 {
			t.Fatal("processes are left")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestCommandsAtOnce: of many that create, start or delete one container at the same moment, one does it, and the others
// say what has become of it.
func TestCommandsAtOnce(t *testing.T) {
	h := newHost(t)
	s := h.spec("sleep 100")
	o := h.options(s)
	o.Ungated, o.Detached = false, true
	const many = 12
	each := func(what string, f func() error, others ...errdefs.Kind) (did int) {
		t.Helper()
		errs := make([]error, many)
		var all sync.WaitGroup
		for i := range many {
			all.Go(func() { errs[i] = f() })
		}
		all.Wait()
	next:
		for _, err := range errs {
			if err == nil {
				did++
				continue
			}
			for _, k := range others {
				if errdefs.Is(err, k) {
					continue next
				}
			}
			t.Errorf("%s: %v", what, err)
		}
		return did
	}
	var pid atomic.Int64
	if n := each("create", func() error {
		c, err := Create(context.Background(), o)
		if err == nil {
			pid.Store(int64(c.Pid()))
		}
		return err
	}, errdefs.AlreadyExists); n != 1 {
		t.Fatalf("%d of %d have created it", n, many)
	}
	go reap(int(pid.Load()))
	with := func(f func(*Container) error) func() error {
		return func() error {
			c, err := Load(h.root, o.ID)
			if err != nil {
				return err
			}
			return f(c)
		}
	}
	if n := each("start", with((*Container).Start), errdefs.Conflict); n != 1 {
		t.Errorf("%d of %d have started it", n, many)
	}
	if n := each("pause", with((*Container).Pause), errdefs.Conflict); n != 1 {
		t.Errorf("%d of %d have paused it", n, many)
	}
	if n := each("delete", with((*Container).ForceDelete), errdefs.NotFound); n < 1 {
		t.Errorf("%d of %d have deleted it", n, many)
	}
	h.nothingLeft(o.ID)
}

// TestStatesOfAContainer: frozen, and with a dead first process.
func TestStatesOfAContainer(t *testing.T) {
	h := newHost(t)
	k := h.background(h.options(h.spec("sleep 100")))
	c, err := Load(h.root, k.record.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Pause(); err != nil {
		t.Fatal(err)
	}
	p := c.DefaultProcess()
	p.Args = []string{"true"}
	if _, err := c.Exec(ExecOptions{Process: &p}); !errdefs.Is(err, errdefs.Conflict) || !strings.Contains(err.Error(), "paused") {
		t.Errorf("exec in a frozen container: %v", err)
	}
	if err := c.Start(); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("start of a frozen container: %v", err)
	}
	if err := c.Delete(); !errdefs.Is(err, errdefs.Conflict) || !strings.Contains(err.Error(), "paused") {
		t.Errorf("delete of a frozen container: %v", err)
	}
	if err := c.ForceDelete(); err != nil {
		t.Errorf("delete --force of a frozen container: %v", err)
	}
	h.nothingLeft(k.record.ID)

	k = h.background(h.options(h.spec("sleep 100")))
	if c, err = Load(h.root, k.record.ID); err != nil {
		t.Fatal(err)
	}
	_ = unix.Kill(k.Pid(), unix.SIGKILL)
	if _, err := k.Wait(); err != nil {
		t.Fatal(err)
	}
	for what, f := range map[string]func() error{
		"exec":   func() error { _, err := c.Exec(ExecOptions{Process: &p}); return err },
		"start":  c.Start,
		"kill":   func() error { return c.Signal(15) },
		"pause":  c.Pause,
		"update": func() error { return c.Update(&runspec.LinuxResources{}, nil) },
	} {
		if err := f(); !errdefs.Is(err, errdefs.Conflict) {
			t.Errorf("%s with a dead first process: %v", what, err)
		}
	}
	if s := c.State(); s.Status != runspec.StateStopped {
		t.Errorf("status %s", s.Status)
	}
	if err := c.Delete(); err != nil {
		t.Error(err)
	}
	h.nothingLeft(k.record.ID)
}

// TestFullDisk: the file system of the states is full. Nothing is left, and the error says so.
func TestFullDisk(t *testing.T) {
	h := newHost(t)
	if err := os.MkdirAll(h.root, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", h.root, "tmpfs", 0, "size=16k,nr_inodes=64"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(h.root, unix.MNT_DETACH) //nolint:errcheck // of the test
	if err := os.WriteFile(filepath.Join(h.root, "fill"), make([]byte, 16<<10), 0o600); err != nil && !strings.Contains(err.Error(), "no space") {
		t.Fatal(err)
	}
	s := h.spec("true")
	if _, _, err := h.run(h.options(s)); err == nil || !strings.Contains(err.Error(), "no space left on device") {
		t.Errorf("got %v", err)
	}
	if es, err := os.ReadDir(h.root); err != nil || len(es) != 1 {
		t.Errorf("left: %v %v", es, err)
	}
}

// TestNoMoreProcesses: the runtime may start no process, or fewer than it needs. It says so or it works; nothing is left.
func TestNoMoreProcesses(t *testing.T) {
	h := newHost(t)
	bin := runtimeBinary(t)
	group := "/sys/fs/cgroup/pids"
	if _, err := os.Stat(group); err != nil {
		group = "/sys/fs/cgroup"
	}
	group = filepath.Join(group, "onggi-test-full-"+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Skipf("no group for the limit: %v", err)
	}
	defer os.Remove(group) //nolint:errcheck // empty at the end
	s := h.spec("true")
	id := filepath.Base(s.Linux.CgroupsPath)
	b, err := jsonSpec(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.bundle, "config.json"), b, 0o644); err != nil {
		t.Fatal(err)
	}
	failed, worked := 0, 0
	for limit := 4; limit < 14; limit++ {
		if err := os.WriteFile(filepath.Join(group, "pids.max"), []byte(strconv.Itoa(limit)), 0); err != nil {
			t.Skipf("no limit: %v", err)
		}
		c := exec.Command("sh", "-c", "echo $$ >"+group+"/cgroup.procs; exec "+bin+" --root "+h.root+" run "+id)
		c.Dir = h.bundle
		var errs bytes.Buffer
		c.Stderr = &errs
		err := c.Run()
		switch text := errs.String(); {
		case err == nil:
			worked++
		case !strings.Contains(text, "resource temporarily unavailable") && !strings.Contains(text, "failed to create new OS thread"): // the latter is Go's
			t.Errorf("with %d processes: %v, %s", limit, err, text)
		default:
			failed++
		}
		c = exec.Command(bin, "--root", h.root, "delete", "--force", id)
		if out, err := c.CombinedOutput(); err != nil {
			t.Errorf("with %d processes: delete: %v %s", limit, err, out)
		}
		h.nothingLeft(id)
	}
	t.Logf("%d failed, %d worked", failed, worked)
	if worked == 0 {
		t.Error("it never worked")
	}
}

// TestOddIDsAndSizes: an error that says what is wrong with an id or a file, whatever they are.
func TestOddIDsAndSizes(t *testing.T) {
	h := newHost(t)
	for _, id := range []string{strings.Repeat("x", 1024), strings.Repeat("x", 256), "a/b", "../a", "/", ".", "..", "", "a b", "a\x00b", "a\nb", "ü"} {
		o := h.options(h.spec("true"))
		o.ID = id
		if _, err := Create(context.Background(), o); !errdefs.Is(err, errdefs.InvalidArgument) || !strings.Contains(err.Error(), "1 to 255 letters") {
			t.Errorf("create %.20q: %v", id, err)
		}
		if _, err := Load(h.root, id); !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("load %.20q: %v", id, err)
		}
	}
	if es, _ := os.ReadDir(h.root); len(es) != 0 {
		t.Errorf("left: %v", es)
	}
	// 100 MB, all of it a valid document
	name := filepath.Join(h.bundle, "config.json")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = f.WriteString(`{"ociVersion":"1.0.2","annotations":{"a":"`)
	for range 100 {
		if _, err := f.Write(bytes.Repeat([]byte("x"), 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	_, _ = f.WriteString(`"}}`)
	_ = f.Close()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := LoadSpec(h.bundle); err == nil || !strings.Contains(err.Error(), "config.json") || !strings.Contains(err.Error(), "MiB") {
		t.Errorf("a config of 100 MB: %v", err)
	}
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > 64<<20 {
		t.Errorf("%d MiB were allocated for it", got>>20)
	}
}

// wrongValues makes a document for each field of a type in which that field alone has a value of a wrong kind.
func wrongValues(t reflect.Type, wrap func(string) string, field string, out map[string]string) {
	switch t.Kind() {
	case reflect.Pointer:
		wrongValues(t.Elem(), wrap, field, out)
	case reflect.Slice:
		out[field] = wrap(`7`)
		wrongValues(t.Elem(), func(s string) string { return wrap("[" + s + "]") }, field+"[]", out)
	case reflect.Map:
		out[field] = wrap(`[1]`)
		wrongValues(t.Elem(), func(s string) string { return wrap(`{"k":` + s + `}`) }, field+"[k]", out)
	case reflect.Struct:
		if field != "" {
			out[field] = wrap(`"x"`)
		}
		for i := range t.NumField() {
			f := t.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if f.Anonymous || name == "" || name == "-" {
				continue
			}
			wrongValues(f.Type, func(s string) string { return wrap("{" + strconv.Quote(name) + ":" + s + "}") }, strings.TrimPrefix(field+"."+name, "."), out)
		}
	case reflect.String:
		out[field] = wrap(`{"a":1}`)
	default: // numbers and booleans
		out[field] = wrap(`"x"`)
	}
}

// TestEveryFieldWrong: a value of a wrong kind in any field is an error that names the field.
func TestEveryFieldWrong(t *testing.T) {
	wrong := map[string]string{}
	wrongValues(reflect.TypeFor[runspec.Spec](), func(s string) string { return s }, "", wrong)
	if len(wrong) < 250 {
		t.Fatalf("only %d fields", len(wrong))
	}
	for field, doc := range wrong {
		switch top, _, _ := strings.Cut(field, "."); top {
		case "solaris", "windows", "vm", "zos", "freebsd": // refused as a whole
			continue
		}
		if !json.Valid([]byte(doc)) {
			t.Fatal(doc)
		}
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(doc), 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := LoadSpec(dir)
		name := field[strings.LastIndexByte(field, '.')+1:]
		name, _, _ = strings.Cut(name, "[")
		if err == nil || !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(name)) {
			t.Errorf("%s: %s: %v", field, doc, err)
		}
		_ = os.RemoveAll(dir)
	}
}

// TestSoak: many starts and execs leave no process, control group, mount, file or descriptor, and nothing grows. The
// numbers are ONGGI_SOAK's "STARTS EXECS AT_ONCE" (make soak: 1000 10000 64), else small ones.
func TestSoak(t *testing.T) {
	h := newHost(t)
	starts, execs, atOnce := 24, 96, 8
	if s := os.Getenv("ONGGI_SOAK"); s != "" {
		if _, err := fmt.Sscan(s, &starts, &execs, &atOnce); err != nil {
			t.Fatal(err)
		}
	}
	count := func() (fds, goroutines, mounts, children int) {
		for range 200 { // threads and goroutines of what has just ended
			es, _ := os.ReadDir("/proc/self/fd")
			b, _ := os.ReadFile("/proc/self/mountinfo")
			kids, _ := os.ReadFile("/proc/thread-self/children")
			fds, goroutines, mounts, children = len(es), runtime.NumGoroutine(), strings.Count(string(b), "\n"), len(strings.Fields(string(kids)))
			if goroutines < 8 {
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
		return fds, goroutines, mounts, children
	}
	flood := func(n int, f func(i int) error) {
		t.Helper()
		work := make(chan int)
		var all sync.WaitGroup
		var failed atomic.Int64
		for range atOnce {
			all.Go(func() {
				for i := range work {
					if err := f(i); err != nil && failed.Add(1) < 5 {
						t.Error(err)
					}
				}
			})
		}
		for i := range n {
			work <- i
		}
		close(work)
		all.Wait()
		if failed.Load() > 0 {
			t.Fatalf("%d of %d failed", failed.Load(), n)
		}
	}
	start := func(i int) error {
		s := h.spec("exit 3")
		s.Linux.CgroupsPath = filepath.Dir(s.Linux.CgroupsPath) + "/soak" + strconv.Itoa(i)
		k, err := Create(context.Background(), h.options(s))
		if err != nil {
			return err
		}
		if err := k.Start(); err != nil {
			return err
		}
		e, err := k.Wait()
		if err == nil && e.Code != 3 {
			err = fmt.Errorf("code %d", e.Code)
		}
		if err != nil {
			return err
		}
		return k.Delete()
	}
	o := h.options(h.spec("sleep 100000"))
	h.background(o)
	run := func(int) error {
		c, err := Load(h.root, o.ID)
		if err != nil {
			return err
		}
		p := c.DefaultProcess()
		p.Args = []string{"true"}
		x, err := c.Exec(ExecOptions{Process: &p})
		if err != nil {
			return err
		}
		e, err := x.Wait()
		if err == nil && e.Code != 0 {
			err = fmt.Errorf("exec: code %d", e.Code)
		}
		if c.group != nil {
			_ = c.group.Close()
		}
		return err
	}
	flood(atOnce, start) // what is made once
	flood(atOnce, run)
	fds, goroutines, mounts, children := count()
	began := time.Now()
	flood(starts, start)
	took := time.Since(began)
	began = time.Now()
	flood(execs, run)
	t.Logf("%d starts in %v, %d execs in %v, %d at once", starts, took.Round(time.Millisecond), execs, time.Since(began).Round(time.Millisecond), atOnce)
	runtime.GC()
	runtime.GC() // finalizers of what was not closed by hand
	f, g, m, k := count()
	for range 500 { // what the runtime leaves to end by itself
		if k <= children {
			break
		}
		time.Sleep(20 * time.Millisecond)
		_, _, _, k = count()
	}
	if f > fds+2 || g > goroutines+2 || m != mounts || k > children {
		t.Errorf("descriptors %d -> %d, goroutines %d -> %d, mounts %d -> %d, children %d -> %d", fds, f, goroutines, g, mounts, m, children, k)
	}
	es, err := os.ReadDir(h.root)
	if err != nil || len(es) != 1 {
		t.Errorf("%d states are left (%v), want that of the container of the execs", len(es), err)
	}
	c, err := Load(h.root, o.ID)
	if err != nil {
		t.Fatal(err)
	}
	if pids, err := c.Pids(); err != nil || len(pids) != 1 {
		t.Errorf("its processes are %v (%v)", pids, err)
	}
}
