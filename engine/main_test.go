package engine

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/onggi/onggi/image"
	"github.com/onggi/onggi/reference"
	"github.com/onggi/onggi/spec"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// The test binary has three lives: the tests, the same tests inside a mount and a network namespace of their own (so
// that bridges, rules and mounts of a failing test go away with it), and a small command line on an engine (cliName):
// what a monitor calls to clean up, and what crash tests kill.
const (
	insideEnv = "ONGGI_ENGINE_TEST_INSIDE"
	cliName   = "engine-test-cli"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == cliName {
		os.Exit(testCLI(os.Args[2], os.Args[3:]))
	}
	if os.Getuid() == 0 && os.Getenv(insideEnv) == "" {
		c := exec.Command("/proc/self/exe", os.Args[1:]...)
		c.Env = append(os.Environ(), insideEnv+"=1")
		c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
		c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
		var x *exec.ExitError
		if err := c.Run(); errors.As(err, &x) {
			os.Exit(x.ExitCode())
		} else if err != nil {
			fmt.Fprintln(os.Stderr, "engine test: cannot make namespaces:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Getenv(insideEnv) != "" {
		if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
			fmt.Fprintln(os.Stderr, "engine test:", err)
			os.Exit(1)
		}
		_ = exec.Command("ip", "link", "set", "lo", "up").Run()
	}
	code := m.Run()
	if built.dir != "" {
		_ = os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

// testCLI runs one engine command in a process of its own: OPTIONS(JSON) COMMAND [ARG].
func testCLI(options string, args []string) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, err)
		return 125
	}
	var o Options
	if err := json.Unmarshal([]byte(options), &o); err != nil {
		return fail(err)
	}
	o.Self = []string{"/proc/self/exe", cliName, options}
	if exe, err := os.Executable(); err == nil {
		o.Self[0] = exe
	}
	e, err := Open(o)
	if err != nil {
		return fail(err)
	}
	ctx := context.Background()
	switch args[0] {
	case "container-cleanup":
		err = e.Cleanup(ctx, args[1])
	case "container-restart":
		err = e.Again(ctx, args[1])
	case "sweep":
		err = e.Sweep(ctx)
	case "discard":
		var to *Removal
		if to, err = e.NewRemoval("discard"); err == nil {
			err = e.DiscardContainer(ctx, args[1], to)
		}
	case "undo":
		_, err = e.Undo(ctx, "")
	case "empty":
		err = e.EmptyTrash(ctx, func(*Removal) bool { return true })
	case "rm":
		err = e.Remove(ctx, args[1], true, true)
	case "run", "run-detached":
		var c Config
		if err := json.Unmarshal([]byte(args[1]), &c); err != nil {
			return fail(err)
		}
		var so StartOptions
		if args[0] == "run" {
			so = StartOptions{Stdout: os.Stdout, Stderr: os.Stderr}
		}
		s, err := e.Run(ctx, c, nil, so)
		if err != nil {
			return fail(err)
		}
		if args[0] == "run-detached" {
			fmt.Println(s.Container.ID)
			_ = s.Client.Close()
			return 0
		}
		x, err := e.Finish(ctx, s)
		if err != nil {
			return fail(err)
		}
		return x.Code
	}
	if err != nil {
		return fail(err)
	}
	return 0
}

// built is the runtime binary, built once; ONGGI_TEST_BIN names a directory that has it (in a guest without Go).
var built struct {
	once sync.Once
	dir  string
	err  error
}

func runtimeBinary(t testing.TB) string {
	t.Helper()
	if d := os.Getenv("ONGGI_TEST_BIN"); d != "" {
		return filepath.Join(d, "onggi-runtime")
	}
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", fmt.Sprintf("onggi-test.%d.", os.Getpid())); built.err != nil {
			return
		}
		c := exec.Command("go", "build", "-tags", "faults", "-o", filepath.Join(built.dir, "onggi-runtime"), "../cmd/onggi-runtime")
		c.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := c.CombinedOutput(); err != nil {
			built.err = fmt.Errorf("build onggi-runtime: %w: %s", err, out)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return filepath.Join(built.dir, "onggi-runtime")
}

// house is an engine with an image "box" (busybox), and what must be gone at the end of a test.
type house struct {
	*Engine
	t    testing.TB
	opts Options
}

func newHouse(t testing.TB) *house {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: real namespaces, mounts and control groups")
	}
	box, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("needs busybox-static")
	}
	dir := t.TempDir()
	o := Options{
		Root: filepath.Join(dir, "root"), RunRoot: filepath.Join(dir, "run"), Runtime: runtimeBinary(t),
		CgroupParent: fmt.Sprintf("/onggi-engine-test-%d-%s", os.Getpid(), filepath.Base(dir)+newID()[:6]), Bridge: "onggitest0",
	}
	j, _ := json.Marshal(o)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	o.Self = []string{exe, cliName, string(j)}
	e, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	h := &house{Engine: e, t: t, opts: o}
	store, err := e.Images()
	if err != nil {
		t.Fatal(err)
	}
	for name, volumes := range map[string]map[string]struct{}{"box": {"/data": {}}, "plain": nil} {
		ref, err := reference.Parse(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := store.Import(context.Background(), bytes.NewReader(boxTar(t, box)), image.ImportOptions{Ref: ref, Config: ocispec.ImageConfig{
			Cmd: []string{"sh"}, Env: []string{"FROM=image"}, Volumes: volumes,
		}}); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(h.leave)
	return h
}

// boxTar is a root file system around a static busybox.
func boxTar(t testing.TB, box string) []byte {
	t.Helper()
	b, err := os.ReadFile(box)
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	add := func(h tar.Header, body []byte) {
		h.Size = int64(len(body))
		h.ModTime = time.Unix(1700000000, 0)
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "data", "home", "root"} {
		add(tar.Header{Name: d + "/", Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	}
	add(tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777}, nil)
	add(tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755}, b)
	for _, n := range []string{"sh", "true", "false", "echo", "sleep", "cat", "id", "ls", "touch", "hostname", "kill", "ip", "grep", "env", "pwd", "stat", "mount", "wc", "head", "seq", "nc", "ps"} {
		add(tar.Header{Name: "bin/" + n, Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil)
	}
	add(tar.Header{Name: "bin/text", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("not a program\n"))
	add(tar.Header{Name: "etc/passwd", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/home:/bin/sh\n"))
	add(tar.Header{Name: "etc/group", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("root:x:0:\nwww:x:34:\nlogs:x:44:web\n"))
	add(tar.Header{Name: "data/from-image", Typeflag: tar.TypeReg, Mode: 0o640, Uid: 33, Gid: 34}, []byte("hello\n"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// config is a container of "box" without a network. ONGGI_ENGINE_TEST_RUNTIME runs all stories on another OCI runtime.
func config(args ...string) Config {
	c := Config{Image: "box", Config: spec.Config{Args: args, Network: "none"}}
	if r := os.Getenv("ONGGI_ENGINE_TEST_RUNTIME"); r != "" {
		c.Runtime = []string{r}
	}
	return c
}

// run runs a container in the foreground and returns its output and exit code.
func (h *house) run(c Config) (stdout, stderr string, code int) {
	h.t.Helper()
	out, errf := h.file(), h.file()
	s, err := h.Run(context.Background(), c, nil, StartOptions{Stdout: out, Stderr: errf})
	if err != nil {
		h.t.Fatalf("run %v: %v", c.Args, err)
	}
	x, err := h.Finish(context.Background(), s)
	if err != nil {
		h.t.Fatalf("finish %v: %v", c.Args, err)
	}
	return text(h.t, out), text(h.t, errf), x.Code
}

// detached starts a container in the background and returns its id.
func (h *house) detached(c Config) string {
	h.t.Helper()
	s, err := h.Run(context.Background(), c, nil, StartOptions{})
	if err != nil {
		h.t.Fatalf("run %v: %v", c.Args, err)
	}
	if err := s.Client.Close(); err != nil {
		h.t.Fatal(err)
	}
	return s.Container.ID
}

func (h *house) file() *os.File {
	h.t.Helper()
	f, err := os.CreateTemp(h.t.TempDir(), "out")
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = f.Close() })
	return f
}

func text(t testing.TB, f *os.File) string {
	t.Helper()
	b, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// leave ends what a test has left running and checks that nothing stays.
func (h *house) leave() {
	ctx := context.Background()
	if err := h.Sweep(ctx); err != nil {
		h.t.Errorf("sweep: %v", err)
	}
	l, err := h.List(true)
	if err != nil {
		h.t.Errorf("list: %v", err)
	}
	for _, c := range l {
		if err := h.Remove(ctx, c.ID, true, true); err != nil {
			h.t.Errorf("remove %s: %v", c.ID, err)
		}
	}
	h.checkNothingLeft()
	h.removeCgroups()
	_ = exec.Command("ip", "link", "del", h.opts.Bridge).Run()
}

// checkNothingLeft looks for processes, mounts, control groups, leases and files of any container.
func (h *house) checkNothingLeft() {
	h.t.Helper()
	for _, d := range []string{
		h.containersDir(), h.passingDir(), h.logsDir(), h.namesDir(), h.pendingDir(), h.runsDir(), filepath.Join(h.snapshotsDir(), "containers"),
		h.runtimeRoot(), filepath.Join(h.o.RunRoot, "network", "leases"), filepath.Join(h.o.RunRoot, "network", "endpoints"),
		filepath.Join(h.o.RunRoot, "network", "ports"),
	} {
		entries, err := os.ReadDir(d)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			h.t.Errorf("read %s: %v", d, err)
		}
		for _, e := range entries {
			h.t.Errorf("left behind: %s", filepath.Join(d, e.Name()))
		}
	}
	if vols, err := h.Volumes(); err == nil {
		l, err := vols.List()
		if err != nil {
			h.t.Error(err)
		}
		for _, v := range l {
			if v.Volatile {
				h.t.Errorf("left behind: volume %s", v.Name)
			}
		}
	}
	if b, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(b), h.o.Root) || strings.Contains(string(b), h.o.RunRoot) {
		h.t.Errorf("a mount is left in the host's namespace:\n%s", b)
	}
	for _, g := range h.cgroups() {
		h.t.Errorf("left behind: control group %s", g)
	}
	// A clean-up that a monitor started may still be about to find that it has nothing to do.
	var left []string
	for range 3000 {
		if left = h.processes(); len(left) == 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	for _, p := range left {
		h.t.Errorf("left behind: process %s", p)
	}
	// The kernel takes veth pairs away with their namespace, a little later.
	var veth []byte
	for range 3000 {
		if veth, _ = exec.Command("ip", "-o", "link", "show", "type", "veth").Output(); len(bytes.TrimSpace(veth)) == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	h.t.Errorf("left behind: %s", veth)
}

// cgroups lists the control groups below the parent, in all hierarchies.
func (h *house) cgroups() (groups []string) {
	for _, p := range h.cgroupParents() {
		entries, _ := os.ReadDir(p)
		for _, e := range entries {
			if e.IsDir() {
				groups = append(groups, filepath.Join(p, e.Name()))
			}
		}
	}
	return groups
}

func (h *house) cgroupParents() []string {
	one, _ := filepath.Glob("/sys/fs/cgroup" + h.o.CgroupParent)
	more, _ := filepath.Glob("/sys/fs/cgroup/*" + h.o.CgroupParent)
	return append(one, more...)
}

func (h *house) removeCgroups() {
	for _, p := range h.cgroupParents() {
		if err := unix.Rmdir(p); err != nil {
			h.t.Errorf("remove %s: %v", p, err)
		}
	}
}

// processes lists those whose command line names this store, but for ourselves.
func (h *house) processes() (found []string) {
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		b, err := os.ReadFile(p)
		if err == nil && strings.Contains(string(b), h.o.RunRoot) {
			found = append(found, p+": "+strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return found
}
