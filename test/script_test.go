package test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/onggi/onggi/runtime/monitor"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// TestScripts runs the stories of the command line (script/*.txt), each on a store of its own that already holds the
// image "busybox". Besides testscript's commands a story has:
//
//	onggi ARGS              run onggi; ! onggi for one that must fail
//	code N COMMAND          run a command that must exit with N
//	capture NAME            set $NAME to the last stdout
//	begin NAME COMMAND      run a command in the background
//	signal NAME SIGNAL      send it a signal
//	shows NAME TEXT         wait until its output holds TEXT, in which \n is a line break
//	finish NAME N           wait for it: it must exit with N, or -SIGNAL; its output is then stdout and stderr
//	eventually COMMAND      repeat a command until it succeeds
//	pty FILE N COMMAND      run a command on a new terminal, by the dialogue in FILE; it must exit with N and give the
//	                        terminal back as it was
//	gitserver NAME DIR     serve the git repositories and files below DIR on loopback (git_test.go)
//	registry NAME [auth]    start docker-registry on loopback and set $NAME to its address; with auth the user jar logs
//	                        in with the password kimchi
//	[hello]                 the binaries hold the image onggi/hello
//	nothing                 no container, monitor, control group, mount or run directory of this store is left
//
// A story with the line "# Told in the guests too." is one in which another kernel, other control groups or another
// init have a say.
//
// What is waited for has patience: a bound for failures, not a time that anything is to take.
func TestScripts(t *testing.T) {
	tar := busyboxTar(t)
	var clients clients
	files, err := filepath.Glob("script/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no stories", err)
	}
	if testing.Short() { // in an emulated guest
		files = slices.DeleteFunc(files, func(name string) bool {
			b, err := os.ReadFile(name)
			return err == nil && !bytes.Contains(b, []byte("# Told in the guests too.\n"))
		})
	}
	testscript.RunT(teller{t}, testscript.Params{
		Files: files,
		Setup: func(e *testscript.Env) error {
			dir, err := os.MkdirTemp("/var/tmp", scratch)
			if err != nil {
				return err
			}
			root, run := filepath.Join(dir, "root"), filepath.Join(dir, "run")
			e.Setenv("ONGGI_ROOT", root)
			e.Setenv("ONGGI_RUN_ROOT", run)
			e.Setenv("PATH", bin+":"+os.Getenv("PATH"))
			e.Setenv("LC_ALL", "C.UTF-8")
			e.Setenv("TERM", "xterm")
			e.Setenv("DOCKER_CONFIG", filepath.Join(e.WorkDir, "docker")) // not the logins and rules of whoever runs the tests
			e.Setenv("ONGGI_REGISTRIES", filepath.Join(e.WorkDir, "registries"))
			e.Setenv("BUSYBOX_TAR", tar)
			e.Defer(func() {
				if out, err := onggiIn(e.Vars, "ps", "-aq"); err == nil && strings.TrimSpace(out) != "" {
					_, _ = onggiIn(e.Vars, append([]string{"rm", "-fv"}, strings.Fields(out)...)...)
				}
				if err := os.RemoveAll(dir); err != nil {
					e.T().Log("cannot remove the store:", err)
					e.T().FailNow()
				}
			})
			out, err := onggiIn(e.Vars, "import", "-c", `CMD ["sh"]`, tar, "busybox")
			if err != nil {
				return fmt.Errorf("import: %w: %s", err, out)
			}
			return nil
		},
		Condition: func(cond string) (bool, error) {
			if cond != "hello" {
				return false, fmt.Errorf("unknown condition")
			}
			_, err := os.Stat("../cmd/onggi/embedded/hello.tar")
			return err == nil, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"begin": clients.begin, "signal": clients.signal, "shows": clients.shows, "finish": clients.finish,
			"gitserver": scriptGit, "onggi": scriptOnggi, "code": scriptCode, "capture": scriptCapture, "eventually": scriptEventually, "pty": scriptPty, "registry": scriptRegistry, "nothing": scriptNothing, "reboot": scriptReboot,
		},
	})
}

// teller is testscript's view of a test. Its only word of its own: what failed comes first, in case that nobody shows the rest.
type teller struct{ *testing.T }

func (s teller) Run(name string, f func(testscript.T)) {
	s.T.Run(name, func(t *testing.T) { f(teller{t}) })
}

func (s teller) Verbose() bool { return testing.Verbose() }

func (s teller) Log(args ...any) {
	s.T.Helper()
	text := fmt.Sprint(args...)
	if lines := strings.Split(strings.TrimSpace(text), "\n"); strings.Contains(text, "\nFAIL: ") && len(lines) > lastLines {
		s.T.Log("the end of the story:\n" + strings.Join(lines[len(lines)-lastLines:], "\n"))
	}
	s.T.Log(text)
}

const lastLines = 12

// onggiIn runs onggi outside of a story's own commands.
func onggiIn(env []string, args ...string) (string, error) {
	c := exec.Command(filepath.Join(bin, "onggi"), args...)
	c.Env = env
	c.WaitDelay = 10 * time.Second
	out, err := c.CombinedOutput()
	return string(out), err
}

func scriptOnggi(ts *testscript.TestScript, neg bool, args []string) {
	err := ts.Exec("onggi", args...)
	if neg == (err == nil) {
		ts.Fatalf("onggi %q: %v", args, err)
	}
}

func scriptCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N COMMAND")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	if got := exitCode(ts.Exec(args[1], args[2:]...)); got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

func exitCode(err error) int {
	var x *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &x):
		return x.ExitCode()
	}
	return -1
}

func scriptCapture(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: capture NAME")
	}
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile("stdout")))
}

// clients are the background commands of all stories, which run side by side.
type clients struct{ m sync.Map }

type client struct {
	cmd      *exec.Cmd
	out, err output
}

// output is what a running command has printed.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(b)
}

func (o *output) text() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func (c *clients) begin(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: begin NAME COMMAND")
	}
	b := &client{cmd: command(ts, args[1:])}
	b.cmd.Stdout, b.cmd.Stderr = &b.out, &b.err
	ts.Check(b.cmd.Start())
	c.m.Store(ts.Name()+" "+args[0], b)
	ts.Defer(func() { _ = b.cmd.Process.Kill() })
}

func (c *clients) find(ts *testscript.TestScript, name string) *client {
	b, ok := c.m.Load(ts.Name() + " " + name)
	if !ok {
		ts.Fatalf("nothing was begun as %s", name)
	}
	return b.(*client)
}

func (c *clients) signal(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: signal NAME SIGNAL")
	}
	ts.Check(c.find(ts, args[0]).cmd.Process.Signal(unix.SignalNum("SIG" + args[1])))
}

func (c *clients) shows(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: shows NAME TEXT")
	}
	b, want := c.find(ts, args[0]), strings.ReplaceAll(args[1], `\n`, "\n")
	for end := time.Now().Add(patience); !strings.Contains(b.out.text(), want); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			ts.Fatalf("%s shows %q, not %q; stderr: %q", args[0], b.out.text(), want, b.err.text())
		}
	}
}

func (c *clients) finish(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: finish NAME N")
	}
	b := c.find(ts, args[0])
	timer := time.AfterFunc(patience, func() { _ = b.cmd.Process.Kill() })
	err := b.cmd.Wait()
	timer.Stop()
	_, _ = io.WriteString(ts.Stdout(), b.out.text())
	_, _ = io.WriteString(ts.Stderr(), b.err.text())
	got := exitCode(err)
	if w, ok := b.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		got = -int(w.Signal())
	}
	if strconv.Itoa(got) != args[1] {
		ts.Fatalf("%s ended with %d, want %s: %v", args[0], got, args[1], err)
	}
}

func scriptEventually(ts *testscript.TestScript, neg bool, args []string) {
	for end := time.Now().Add(patience); ; time.Sleep(25 * time.Millisecond) {
		c := command(ts, args)
		out, err := c.CombinedOutput()
		if neg == (err != nil) {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("%q: %v\n%s", args, err, out)
		}
	}
}

// command is a command with a story's environment, for what ts.Exec cannot do.
func command(ts *testscript.TestScript, args []string) *exec.Cmd {
	name := args[0]
	if name == "onggi" {
		name = filepath.Join(bin, name)
	}
	c := exec.Command(name, args[1:]...)
	c.Dir = ts.Getenv("WORK")
	c.WaitDelay = 10 * time.Second
	for _, name := range []string{"ONGGI_ROOT", "ONGGI_RUN_ROOT", "PATH", "LC_ALL", "TERM", "NO_COLOR", "BUILDKIT_PROGRESS", "WORK"} {
		if v := ts.Getenv(name); v != "" {
			c.Env = append(c.Env, name+"="+v)
		}
	}
	return c
}

// scriptPty plays a dialogue. Its lines:
//
//	expect TEXT      wait until the terminal shows TEXT
//	send "TEXT"      type TEXT, a Go string
//	size ROWS COLS   resize the window
//	signal NUMBER    send the command a signal
//	eventually LINE  repeat a line of sh until it succeeds
func scriptPty(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: pty FILE N COMMAND")
	}
	want, err := strconv.Atoi(args[1])
	ts.Check(err)
	master, replica, err := newPty()
	if err != nil {
		ts.Fatalf("no pseudo-terminal: %v", err)
	}
	defer master.Close()
	ts.Check(unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80}))
	before, err := unix.IoctlGetTermios(int(replica.Fd()), unix.TCGETS)
	ts.Check(err)
	c := command(ts, args[2:])
	c.Stdin, c.Stdout, c.Stderr = replica, replica, replica
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	ts.Check(c.Start())
	defer func() { _ = c.Process.Kill(); _ = c.Wait() }()
	show := newScreen(master)
	for _, line := range strings.Split(strings.TrimSpace(ts.ReadFile(args[0])), "\n") {
		verb, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch verb {
		case "expect":
			if err := show.wait(rest); err != nil {
				ts.Fatalf("%v", err)
			}
		case "send":
			text, err := strconv.Unquote(rest)
			ts.Check(err)
			_, err = master.WriteString(text)
			ts.Check(err)
		case "size":
			var w unix.Winsize
			_, err := fmt.Sscan(rest, &w.Row, &w.Col)
			ts.Check(err)
			ts.Check(unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &w)) // the kernel sends SIGWINCH
		case "signal":
			n, err := strconv.Atoi(rest)
			ts.Check(err)
			ts.Check(c.Process.Signal(syscall.Signal(n)))
		case "eventually":
			scriptEventually(ts, false, []string{"sh", "-c", rest})
		default:
			ts.Fatalf("the dialogue has no %q", verb)
		}
	}
	timer := time.AfterFunc(patience, func() { _ = c.Process.Kill() })
	got := exitCode(c.Wait())
	timer.Stop()
	show.drain()
	ts.Logf("[terminal]\n%s", show.text())
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
	after, err := unix.IoctlGetTermios(int(replica.Fd()), unix.TCGETS)
	ts.Check(err)
	if *before != *after {
		ts.Fatalf("the terminal was not given back as it was: %+v, before %+v", after, before)
	}
	_ = replica.Close()
}

func newPty() (master, replica *os.File, err error) {
	master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		replica, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|syscall.O_NOCTTY, 0)
	}
	return master, replica, err
}

// wait is expect for stories.
func (s *screen) wait(want string) error {
	deadline := time.After(patience)
	for {
		if i := bytes.Index(s.seen.Bytes(), []byte(want)); i >= 0 {
			s.seen.Next(i + len(want))
			return nil
		}
		select {
		case b, ok := <-s.lines:
			if !ok {
				return fmt.Errorf("the terminal closed before it showed %q:\n%s", want, s.text())
			}
			s.seen.Write(b)
		case <-deadline:
			return fmt.Errorf("the terminal does not show %q within %v:\n%s", want, patience, s.text())
		}
	}
}

// drain takes what has been shown so far.
func (s *screen) drain() {
	for {
		select {
		case b, ok := <-s.lines:
			if !ok {
				return
			}
			s.seen.Write(b)
		case <-time.After(50 * time.Millisecond):
			return
		}
	}
}

// scriptNothing looks for what a store's containers may have left. What ends in the background gets its time.
// scriptReboot does to the store what a reboot of the host does: no process is left, and the run root is empty. What the
// kernel has of networks stays, so the containers have none.
func scriptReboot(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: reboot")
	}
	run := ts.Getenv("ONGGI_RUN_ROOT")
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		left := 0
		processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
		ts.Check(err)
		for _, p := range processes {
			if b, err := os.ReadFile(p); err != nil || !bytes.Contains(b, []byte(run+"/")) {
				continue
			}
			if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(p))); err == nil {
				_ = unix.Kill(pid, unix.SIGKILL)
				left++
			}
		}
		monitors, err := filepath.Glob(run + "/containers/*/monitor.lock")
		ts.Check(err)
		for _, m := range monitors {
			if monitor.Alive(filepath.Dir(m)) {
				left++
				killMonitor(ts, filepath.Base(filepath.Dir(m)))
			}
		}
		if left == 0 {
			break
		}
		if time.Now().After(end) {
			ts.Fatalf("%d processes are left", left)
		}
	}
	states, err := filepath.Glob(run + "/runtime/*")
	ts.Check(err)
	for _, s := range states {
		out, err := exec.Command(filepath.Join(bin, "onggi-runtime"), "--root", run+"/runtime", "delete", "--force", filepath.Base(s)).CombinedOutput()
		if err != nil {
			ts.Fatalf("delete: %v: %s", err, out)
		}
	}
	ts.Check(os.RemoveAll(run))
}

// killMonitor kills the monitor of a container: after a second its command line is only "monitor --resume N ID".
func killMonitor(ts *testscript.TestScript, id string) {
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	ts.Check(err)
	for _, p := range processes {
		if b, err := os.ReadFile(p); err != nil || !bytes.Contains(b, []byte("onggi-runtime\x00monitor\x00")) || !bytes.Contains(b, []byte(id)) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(p))); err == nil {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
}

func scriptNothing(ts *testscript.TestScript, neg bool, args []string) {
	root, run := ts.Getenv("ONGGI_ROOT"), ts.Getenv("ONGGI_RUN_ROOT")
	var found []string
	for end := time.Now().Add(patience); ; time.Sleep(25 * time.Millisecond) {
		found = nil
		for _, dir := range []string{
			filepath.Join(root, "containers"), filepath.Join(root, "names"), filepath.Join(root, "snapshots", "containers"),
			filepath.Join(run, "containers"), filepath.Join(run, "pending"), filepath.Join(run, "runtime"),
			filepath.Join(run, "restarts"),
		} {
			entries, _ := os.ReadDir(dir)
			for _, e := range entries {
				if !strings.HasPrefix(e.Name(), ".") {
					found = append(found, filepath.Join(dir, e.Name()))
				}
			}
		}
		if b, err := os.ReadFile("/proc/self/mountinfo"); err == nil {
			for _, l := range strings.Split(string(b), "\n") {
				if strings.Contains(l, filepath.Dir(root)+"/") {
					found = append(found, "mount "+l)
				}
			}
		}
		processes, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, p := range processes {
			if b, err := os.ReadFile(p); err == nil && bytes.Contains(b, []byte(run+"/")) {
				found = append(found, "process "+string(bytes.ReplaceAll(b, []byte{0}, []byte{' '})))
			}
		}
		if len(found) == 0 {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("left:\n%s", strings.Join(found, "\n"))
		}
	}
}
