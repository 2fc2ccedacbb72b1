package test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// scratch begins the name of every directory that the stories make. It bears this process's number, so that scripts/leaks
// can tell what a test has left from what a test still needs.
var scratch = fmt.Sprintf("onggi-test.%d.", os.Getpid())

// patience bounds every wait for something that must come: long, because the tests also run in an emulated guest.
const patience = 40 * time.Second

// bin is the directory of the binaries under test: built with fault points (tag faults).
var bin string

// TestMain moves the whole test binary into a mount and a network namespace of its own and builds the binaries if
// nobody has.
func TestMain(m *testing.M) {
	if os.Getuid() != 0 {
		fmt.Println("SKIP: the stories need root: real namespaces, mounts and cgroups")
		os.Exit(0)
	}
	if os.Getenv("ONGGI_TEST_INSIDE") == "" {
		os.Exit(reexec())
	}
	must := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, "test:", err)
			os.Exit(1)
		}
	}
	must(syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""))
	// sysfs shows the network namespace it was mounted in.
	must(exec.Command("ip", "link", "set", "lo", "up").Run())
	os.Setenv("PATH", os.Getenv("PATH")+":/usr/local/sbin:/usr/sbin:/sbin")
	if bin = os.Getenv("ONGGI_TEST_BIN"); bin == "" {
		root, err := filepath.Abs("..")
		must(err)
		bin = filepath.Join(root, ".cache", "testbin")
		for _, b := range []string{"onggi", "onggi-runtime", "onggi-build"} {
			c := exec.Command("go", "build", "-tags", "faults", "-o", filepath.Join(bin, b), "./cmd/"+b)
			c.Dir = root
			c.Env = append(os.Environ(), "CGO_ENABLED=0")
			out, err := c.CombinedOutput()
			if err != nil {
				must(fmt.Errorf("go build %s: %w: %s", b, err, out))
			}
		}
	}
	os.Exit(m.Run())
}

func reexec() int {
	// A background job of a shell ignores these, and so would all that the stories start and send signals to.
	for _, n := range []os.Signal{syscall.SIGINT, syscall.SIGQUIT} {
		if signal.Ignored(n) {
			signal.Notify(make(chan os.Signal, 1), n)
		}
	}
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Args[0] = os.Args[0]
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.Env = append(os.Environ(), "ONGGI_TEST_INSIDE=1")
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	err := c.Run()
	var e *exec.ExitError
	if errors.As(err, &e) {
		return e.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "test:", err)
		return 1
	}
	return 0
}

// host is one installation of Onggi: its own root and run root, empty at the start and swept at the end.
type host struct {
	t    *testing.T
	root string
	run  string
	env  []string
}

func newHost(t *testing.T) *host {
	t.Helper()
	// Not t.TempDir: its names are long, and sockets and overlay options have limits that users' /var/lib/onggi never meets.
	dir, err := os.MkdirTemp("/var/tmp", scratch)
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, root: filepath.Join(dir, "root"), run: filepath.Join(dir, "run")}
	h.env = append(os.Environ(), "ONGGI_ROOT="+h.root, "ONGGI_RUN_ROOT="+h.run, "LC_ALL=C.UTF-8")
	t.Cleanup(func() {
		if ids := strings.Fields(h.try("ps", "-aq").out); len(ids) > 0 {
			h.try(append([]string{"rm", "-f"}, ids...)...)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("cannot remove the store: %v", err)
		}
	})
	return h
}

type result struct {
	out, err string
	code     int
}

// try runs onggi and returns whatever comes of it.
func (h *host) try(args ...string) result { return h.tryWith(nil, args...) }

func (h *host) tryWith(env []string, args ...string) result {
	h.t.Helper()
	c := exec.Command(filepath.Join(bin, "onggi"), args...)
	c.Env = append(h.env, env...)
	var out, errb bytes.Buffer
	c.Stdout, c.Stderr = &out, &errb
	// A monitor must never hold the pipes of a command that has ended: Wait would hang on them.
	c.WaitDelay = 10 * time.Second
	timer := time.AfterFunc(2*time.Minute, func() { _ = c.Process.Kill() })
	err := c.Run()
	timer.Stop()
	r := result{out: out.String(), err: errb.String(), code: c.ProcessState.ExitCode()}
	var e *exec.ExitError
	if err != nil && !errors.As(err, &e) {
		h.t.Fatalf("onggi %v: %v\nstderr: %s", args, err, r.err)
	}
	return r
}

// onggi runs a command that must succeed and returns its trimmed output.
func (h *host) onggi(args ...string) string {
	h.t.Helper()
	r := h.try(args...)
	if r.code != 0 {
		h.t.Fatalf("onggi %s: exit code %d\nstdout: %s\nstderr: %s", strings.Join(args, " "), r.code, r.out, r.err)
	}
	return strings.TrimSpace(r.out)
}

// sh runs another program that must succeed.
func sh(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// needs skips the test where a program is not installed.
func needs(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("%s is not installed: `make test` installs it on Debian", p)
		}
	}
}

// busyboxTar returns the path of a root file system's tar: a static busybox and its links.
func busyboxTar(t *testing.T) string {
	t.Helper()
	needs(t, "busybox")
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	for _, d := range []string{"bin", "etc", "tmp", "proc", "sys", "dev", "home/user"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, text string, mode os.FileMode) {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\n", 0o644)
	write("etc/group", "root:x:0:\nuser:x:1000:\nextra:x:2000:user\n", 0o644)
	data, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	write("bin/busybox", string(data), 0o755)
	for _, a := range strings.Fields(sh(t, "/bin/busybox", "--list")) {
		if a != "busybox" {
			_ = os.Symlink("busybox", filepath.Join(root, "bin", a))
		}
	}
	tar := filepath.Join(dir, "busybox.tar")
	sh(t, "tar", "-C", root, "-cf", tar, ".")
	return tar
}

// eventually waits for a condition that another process brings about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(25 * time.Millisecond) {
		if ok() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("within %v it has not come true that %s", patience, what)
		}
	}
}
