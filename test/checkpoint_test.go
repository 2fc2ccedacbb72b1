package test

import (
	"bufio"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// saved is a container of the runtime alone whose first process counts: what it prints goes on after a restore only if
// its memory does.
type saved struct {
	t      *testing.T
	dir    string
	bundle string
	id     string
}

// counting prints a token that only its memory holds, and numbers.
const counting = `t=$(cat /proc/sys/kernel/random/uuid); echo $t >/dev/shm/token; i=0; while :; do i=$((i+1)); echo "$t $i"; sleep 0.1; done`

func newSaved(t *testing.T, change func(*specs.Spec)) *saved {
	t.Helper()
	needs(t, "criu")
	if out, err := exec.Command("criu", "check").CombinedOutput(); err != nil {
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		t.Skipf("this criu does not work on this kernel (the guest's does: make test-vm): %s", lines[max(0, len(lines)-2)])
	}
	dir := shortDir(t)
	s := &saved{t: t, dir: dir, bundle: filepath.Join(dir, "b"), id: "ck" + filepath.Base(dir)[len("onggi-dropin."):]}
	t.Cleanup(func() {
		_, _ = s.do("delete", "--force", s.id)
		for _, d := range []string{"", "unified"} { // the parent of all tests' groups
			_ = os.Remove(filepath.Join("/sys/fs/cgroup", d, "onggi-checkpoint"))
		}
	})
	root := filepath.Join(s.bundle, "rootfs")
	if err := os.MkdirAll(root, 0o755); err != nil {
		t.Fatal(err)
	}
	sh(t, "tar", "-C", root, "-xf", busyboxTar(t))
	if out, err := s.do("spec"); err != nil {
		t.Fatal(err, out)
	}
	name := filepath.Join(s.bundle, "config.json")
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var c specs.Spec
	if err := json.Unmarshal(b, &c); err != nil {
		t.Fatal(err)
	}
	c.Process.Terminal, c.Process.Rlimits, c.Root.Readonly = false, nil, false
	c.Process.Args = []string{"sh", "-c", counting}
	c.Linux.CgroupsPath = "/onggi-checkpoint/" + s.id
	if change != nil {
		change(&c)
	}
	if b, err = json.Marshal(&c); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *saved) command(args ...string) *exec.Cmd {
	c := exec.Command(runtimePath(), append([]string{"--root", filepath.Join(s.dir, "s")}, args...)...)
	c.Dir = s.bundle
	return c
}

func (s *saved) do(args ...string) (string, error) {
	c := s.command(args...)
	c.WaitDelay = 10 * time.Second
	timer := time.AfterFunc(3*time.Minute, func() { _ = c.Process.Kill() })
	defer timer.Stop()
	out, err := c.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (s *saved) must(args ...string) string {
	s.t.Helper()
	out, err := s.do(args...)
	if err != nil {
		log, _ := exec.Command("sh", "-c", "grep -h Error "+s.dir+"/*/*.log | tail -20").Output()
		s.t.Fatalf("%v: %v: %s\n%s", args, err, out, log)
	}
	return out
}

// stream is the standard output of a container: pairs of its token and its count.
type stream struct {
	t *testing.T
	s *bufio.Scanner
	r *os.File
	w *os.File // closed when the container has it
}

func newStream(t *testing.T) *stream {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return &stream{t, bufio.NewScanner(r), r, w}
}

// next is the next line, within a minute.
func (s *stream) next() (token string, n int) {
	s.t.Helper()
	_ = s.r.SetReadDeadline(time.Now().Add(time.Minute))
	if !s.s.Scan() {
		s.t.Fatalf("the container prints nothing more: %v", s.s.Err())
	}
	f := strings.Fields(s.s.Text())
	if len(f) != 2 {
		s.t.Fatalf("it prints %q", s.s.Text())
	}
	n, err := strconv.Atoi(f[1])
	if err != nil {
		s.t.Fatal(err)
	}
	return f[0], n
}

// rest is what is still in the pipe of a container that has gone.
func (s *stream) rest(token string, n int) int {
	s.t.Helper()
	for s.s.Scan() {
		f := strings.Fields(s.s.Text())
		if len(f) != 2 || f[0] != token {
			s.t.Fatalf("it prints %q", s.s.Text())
		}
		n++
		if f[1] != strconv.Itoa(n) {
			s.t.Fatalf("it prints %q, want %d", s.s.Text(), n)
		}
	}
	return n
}

// start runs the container with pipes and lets it count a little.
func (s *saved) start() (out *stream, token string, n int) {
	s.t.Helper()
	out = newStream(s.t)
	in, hold, err := os.Pipe()
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = hold.Close() })
	c := s.command("run", "--detach", s.id)
	c.Stdin, c.Stdout, c.Stderr = in, out.w, out.w
	if err := c.Run(); err != nil {
		s.t.Fatal(err)
	}
	_ = out.w.Close()
	_ = in.Close()
	for n < 3 {
		token, n = out.next()
	}
	return out, token, n
}

// restore brings it back, detached, with pipes of its own.
func (s *saved) restore(args ...string) *stream {
	s.t.Helper()
	out := newStream(s.t)
	in, hold, err := os.Pipe()
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = hold.Close() })
	errs, err := os.Create(filepath.Join(s.dir, "restore.err"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer errs.Close() //nolint:errcheck // read by name
	c := s.command(append(append([]string{"--log", errs.Name(), "restore", "--detach"}, args...), s.id)...)
	c.Stdin, c.Stdout, c.Stderr = in, out.w, out.w
	err = c.Run()
	_ = out.w.Close()
	_ = in.Close()
	if err != nil {
		b, _ := os.ReadFile(errs.Name())
		log, _ := exec.Command("sh", "-c", "grep -h Error "+s.dir+"/*/restore.log | tail -20").Output()
		s.t.Fatalf("restore: %v: %s\n%s", err, b, log)
	}
	return out
}

func (s *saved) status() string {
	var st struct{ Status string }
	out, err := s.do("state", s.id)
	if err != nil {
		return out
	}
	_ = json.Unmarshal([]byte(out), &st)
	return st.Status
}

// TestCheckpointAndRestore: saved, gone, restored, and it counts on where it was, in the same control group and with
// the same mounts, however often.
func TestCheckpointAndRestore(t *testing.T) {
	data := t.TempDir()
	s := newSaved(t, func(c *specs.Spec) {
		limit := int64(128 << 20)
		c.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit}
		c.Mounts = append(c.Mounts, specs.Mount{Destination: "/link/data", Type: "bind", Source: data, Options: []string{"rbind", "rw"}})
	})
	// the destination leads over a link of the image
	if err := os.MkdirAll(filepath.Join(s.bundle, "rootfs/real"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/real", filepath.Join(s.bundle, "rootfs/link")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(data, "f"), []byte("bound"), 0o644); err != nil {
		t.Fatal(err)
	}
	out, token, n := s.start()
	images := filepath.Join(s.dir, "images")
	for range 2 {
		s.must("checkpoint", "--image-path", images, "--work-path", filepath.Join(s.dir, "work"), "--empty-ns", "network", s.id)
		if got := s.status(); !strings.Contains(got, "does not exist") {
			t.Fatalf("after checkpoint: %s", got)
		}
		n = out.rest(token, n)
		pidFile := filepath.Join(s.dir, "pid")
		out = s.restore("--image-path", images, "--work-path", filepath.Join(s.dir, "work"), "--empty-ns", "network", "--pid-file", pidFile)
		if got := s.status(); got != "running" {
			t.Fatalf("after restore: %s", got)
		}
		for range 3 {
			k, m := out.next()
			if n++; k != token || m != n {
				t.Fatalf("after restore it prints %s %d, want %s %d", k, m, token, n)
			}
		}
		b, _ := os.ReadFile(pidFile)
		if pids := s.must("ps", "--format", "json", s.id); !strings.Contains(pids, string(b)) || len(b) == 0 {
			t.Errorf("pid file %q, processes %s", b, pids)
		}
		if got := s.must("exec", s.id, "sh", "-c", "cat /dev/shm/token /real/data/f; head -c 1 /proc/kcore | wc -c"); got != token+"\nbound0" {
			t.Errorf("inside: %q", got)
		}
		var ev struct {
			Data struct {
				Memory struct{ Usage struct{ Limit uint64 } }
			}
		}
		if err := json.Unmarshal([]byte(s.must("events", "--stats", s.id)), &ev); err != nil || ev.Data.Memory.Usage.Limit != 128<<20 {
			t.Errorf("limit %d, %v", ev.Data.Memory.Usage.Limit, err)
		}
	}
	s.must("pause", s.id)
	s.must("resume", s.id)
	s.must("delete", "--force", s.id)
	if hits, _ := filepath.Glob("/sys/fs/cgroup/onggi-checkpoint/" + s.id); len(hits) > 0 {
		t.Errorf("control group %v is left", hits)
	}
}

// TestCheckpointLeavesRunning: --leave-running and --pre-dump with --parent-path do not stop it.
func TestCheckpointLeavesRunning(t *testing.T) {
	s := newSaved(t, nil)
	out, token, n := s.start()
	further := func() {
		t.Helper()
		for range 3 {
			k, m := out.next()
			if n++; k != token || m != n {
				t.Fatalf("it prints %s %d, want %s %d", k, m, token, n)
			}
		}
	}
	images := filepath.Join(s.dir, "images")
	s.must("checkpoint", "--leave-running", "--image-path", images, "--empty-ns", "network", s.id)
	further()
	if err := os.RemoveAll(images); err != nil {
		t.Fatal(err)
	}
	if out, err := s.do("checkpoint", "--pre-dump", "--image-path", filepath.Join(s.dir, "first"), s.id); err != nil {
		if strings.Contains(out, "cannot tell which memory has changed") {
			t.Skip(out)
		}
		t.Fatal(err, out)
	}
	further()
	if out, err := s.do("checkpoint", "--parent-path", "../nope", "--image-path", images, s.id); err == nil || !strings.Contains(out, "--parent-path") {
		t.Errorf("a parent that is not there: %s", out)
	}
	if err := os.Mkdir(images, 0o700); err != nil {
		t.Fatal(err)
	}
	s.must("checkpoint", "--parent-path", "../first", "--image-path", images, "--empty-ns", "network", s.id)
	n = out.rest(token, n)
	out = s.restore("--image-path", images, "--empty-ns", "network")
	further()
}

// TestRestoreInTheForeground: its exit code is the container's, and it deletes it.
func TestRestoreInTheForeground(t *testing.T) {
	s := newSaved(t, func(c *specs.Spec) {
		c.Process.Args = []string{"sh", "-c", `i=0; while test ! -e /tmp/end; do i=$((i+1)); echo "x $i"; sleep 0.1; done; exit 42`}
	})
	_, _, _ = s.start()
	images := filepath.Join(s.dir, "images")
	s.must("checkpoint", "--image-path", images, "--empty-ns", "network", s.id)
	if err := os.WriteFile(filepath.Join(s.bundle, "rootfs/tmp/end"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	in, hold, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close() //nolint:errcheck // a test's pipe
	defer in.Close()   //nolint:errcheck // a test's pipe
	c := s.command("restore", "--image-path", images, "--empty-ns", "network", s.id)
	c.Stdin = in
	c.WaitDelay = 10 * time.Second
	out, err := c.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 42 {
		t.Errorf("restore: %v: %s", err, out)
	}
	if got := s.status(); !strings.Contains(got, "does not exist") {
		t.Errorf("afterwards it is %s", got)
	}
}

// TestRestoreWithATerminal: the terminal is given to the console socket anew.
func TestRestoreWithATerminal(t *testing.T) {
	s := newSaved(t, func(c *specs.Spec) { c.Process.Terminal = true })
	socket := filepath.Join(s.dir, "tty.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // a test's socket
	master := func() *stream {
		t.Helper()
		_ = l.SetDeadline(time.Now().Add(time.Minute))
		c, err := l.AcceptUnix()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close() //nolint:errcheck // a test's socket
		b, oob := make([]byte, 4096), make([]byte, 64)
		_, n, _, _, err := c.ReadMsgUnix(b, oob)
		if err != nil {
			t.Fatal(err)
		}
		ms, err := unix.ParseSocketControlMessage(oob[:n])
		if err != nil || len(ms) != 1 {
			t.Fatal(ms, err)
		}
		fds, err := unix.ParseUnixRights(&ms[0])
		if err != nil || len(fds) != 1 {
			t.Fatal(fds, err)
		}
		if err := unix.SetNonblock(fds[0], true); err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fds[0]), "terminal")
		t.Cleanup(func() { _ = f.Close() })
		return &stream{t: t, s: bufio.NewScanner(f), r: f}
	}
	c := s.command("run", "--detach", "--console-socket", socket, s.id)
	if err := c.Run(); err != nil {
		t.Fatal(err)
	}
	out := master()
	token, n := "", 0
	for n < 3 {
		token, n = out.next()
	}
	images := filepath.Join(s.dir, "images")
	s.must("checkpoint", "--image-path", images, "--empty-ns", "network", s.id)
	s.must("restore", "--detach", "--console-socket", socket, "--image-path", images, "--empty-ns", "network", s.id)
	out = master()
	k, m := out.next()
	if k != token || m <= n {
		t.Errorf("after restore it prints %s %d, want %s and more than %d", k, m, token, n)
	}
}

// TestCheckpointRefuses says what is wrong before anything is stopped.
func TestCheckpointRefuses(t *testing.T) {
	dir := shortDir(t)
	s := &saved{t: t, dir: dir, bundle: dir, id: "none"}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"checkpoint", "none"}, "container does not exist"},
		{[]string{"checkpoint", "--empty-ns", "pid", "none"}, "--empty-ns"},
		{[]string{"checkpoint", "--parent-path", "/x", "none"}, "--parent-path"},
		{[]string{"checkpoint", "--page-server", "x", "none"}, "--page-server"},
		{[]string{"checkpoint", "--page-server", "x:0", "none"}, "--page-server"},
		{[]string{"checkpoint", "--status-fd", "1", "none"}, "--lazy-pages"},
		{[]string{"checkpoint", "--lazy-pages", "--status-fd", "77", "none"}, "--status-fd"},
		{[]string{"restore", "none"}, "config.json"},
		{[]string{"restore", "--nope", "none"}, "--nope"},
	} {
		if out, err := s.do(c.args...); err == nil || !strings.Contains(out, c.want) {
			t.Errorf("%v: %v: %q, want %q", c.args, err, out, c.want)
		}
	}
	if out, err := s.do("spec"); err != nil {
		t.Fatal(err, out)
	}
	if err := os.Mkdir(filepath.Join(dir, "rootfs"), 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := s.do("--criu", "/nope/criu", "restore", "--detach", "--console-socket", "/nope", "none"); err == nil || !strings.Contains(out, "/nope") {
		t.Errorf("no console socket: %q", out)
	}
	if out, err := s.do("restore", "none"); err == nil || !strings.Contains(out, "holds no checkpoint") {
		t.Errorf("no images: %v: %q", err, out)
	}
	if out := s.must("list", "-q"); out != "" {
		t.Errorf("a refused restore leaves %q", out)
	}
}
