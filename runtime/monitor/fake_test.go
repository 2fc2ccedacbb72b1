package monitor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/undo"
	"golang.org/x/sys/unix"
)

// TestMain makes the test binary all the processes of the story: the monitor, the gate that stands for a container's
// first process before its start, and a client that can be killed.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "monitor":
			if os.Args[2] == "--resume" {
				fd, _ := strconv.Atoi(os.Args[3])
				os.Exit(Resume(fd, readopt))
			}
			os.Exit(Main(os.Args[3], fake, readopt))
		case "gate":
			gate(os.Args[2:])
		case "client":
			clientProcess(os.Args[2], os.Args[3])
		}
	}
	os.Exit(m.Run())
}

// fakeSpec is a "bundle": what the fake container runs.
type fakeSpec struct {
	Args   []string
	Fail   errdefs.Kind  // of Create
	Slow   time.Duration // Create takes so long, or until its context ends
	Orphan bool
}

// fake is a Creator without isolation: the process is real, the container is not.
func fake(ctx context.Context, cfg *Config, stdio Stdio) (Process, error) {
	b, err := os.ReadFile(filepath.Join(cfg.Bundle, "fake.json"))
	if err != nil {
		return nil, err
	}
	var spec fakeSpec
	if err := json.Unmarshal(b, &spec); err != nil {
		return nil, err
	}
	if spec.Slow > 0 {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(spec.Slow):
		}
	}
	if spec.Fail != errdefs.Unknown {
		return nil, &errdefs.Error{Op: "create", What: cfg.ID, Kind: spec.Fail, Why: "the test wants it", Fix: "none"}
	}
	p := &fakeProcess{dir: cfg.Bundle}
	goR, goW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	errR, errW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	self, _ := os.Executable()
	cmd := exec.Command(self, append([]string{"gate"}, spec.Args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if stdio.In != nil {
		cmd.Stdin = stdio.In
	}
	if stdio.Out != nil {
		cmd.Stdout, cmd.Stderr = stdio.Out, stdio.Err
	}
	cmd.ExtraFiles = []*os.File{goR, errW}
	if cfg.Terminal {
		master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
		if err != nil {
			return nil, err
		}
		fd, _ := number(master)
		if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
			return nil, err
		}
		n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
		if err != nil {
			return nil, err
		}
		replica, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
		if err != nil {
			return nil, err
		}
		defer replica.Close()
		cmd.Stdin, cmd.Stdout, cmd.Stderr = replica, replica, replica
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		p.console = master
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	_ = goR.Close()
	_ = errW.Close()
	p.pid, p.gate, p.report = cmd.Process.Pid, goW, errR
	return p, os.WriteFile(filepath.Join(cfg.Bundle, "pid"), fmt.Append(nil, p.pid), 0o600)
}

// readopt is fake's Adopter.
func readopt(cfg *Config, pid int) (Process, error) {
	return &fakeProcess{dir: cfg.Bundle, pid: pid}, nil
}

// gate waits for start, and then is the command.
func gate(args []string) {
	unix.CloseOnExec(3)
	unix.CloseOnExec(4)
	if n, _ := unix.Read(3, make([]byte, 1)); n != 1 {
		os.Exit(99)
	}
	path, err := exec.LookPath(args[0])
	if err == nil {
		err = syscall.Exec(path, args, os.Environ())
	}
	kind := errdefs.NotExecutable
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, exec.ErrNotFound) {
		kind = errdefs.CommandNotFound
	}
	b, _ := json.Marshal(&errdefs.Error{Op: "execute", What: args[0], Kind: kind, Err: err})
	_, _ = unix.Write(4, b)
	os.Exit(kind.ExitCode())
}

type fakeProcess struct {
	dir          string
	pid          int
	gate, report *os.File
	console      *os.File
}

func (p *fakeProcess) Pid() int          { return p.pid }
func (p *fakeProcess) Console() *os.File { return p.console }
func (p *fakeProcess) Start() error {
	if _, err := p.gate.Write([]byte{1}); err != nil {
		return err
	}
	b, err := io.ReadAll(p.report)
	if err != nil || len(b) == 0 {
		return err
	}
	e := &errdefs.Error{}
	if err := json.Unmarshal(b, e); err != nil {
		return err
	}
	return e
}

func (p *fakeProcess) Wait() (Exit, error) {
	var ws unix.WaitStatus
	if _, err := unix.Wait4(p.pid, &ws, 0, nil); err != nil {
		return Exit{}, err
	}
	if ws.Signaled() {
		return Exit{Code: 128 + int(ws.Signal()), Signal: int(ws.Signal())}, nil
	}
	return Exit{Code: ws.ExitStatus()}, nil
}
func (p *fakeProcess) Signal(sig int) error { return unix.Kill(p.pid, syscall.Signal(sig)) }
func (p *fakeProcess) OOMKilled() bool      { return false }
func (p *fakeProcess) Delete() error {
	return os.WriteFile(filepath.Join(p.dir, "deleted"), nil, 0o600)
}

func (p *fakeProcess) Spans() []undo.Span {
	return []undo.Span{{Name: "fake.clone", Start: 1, Took: 2}}
}

// box is one container of a test.
type box struct {
	t   testing.TB
	cfg *Config
	dir string

	namespace string // foreign: the network namespace it was given
}

// newBox makes a container's directories. The path is longer than a socket address may be.
func newBox(t testing.TB, args ...string) *box {
	t.Helper()
	top, err := os.MkdirTemp("/var/tmp", fmt.Sprintf("onggi-test.%d.", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(top, strings.Repeat("a-long-name-", 12))
	b := &box{t: t, dir: dir, cfg: &Config{
		ID: "box", Bundle: filepath.Join(dir, "bundle"), RunDir: filepath.Join(dir, "run"),
		StateDir: filepath.Join(dir, "state"), Cleanup: []string{"/bin/sh", "-c", "echo >>" + dir + "/cleaned"},
	}}
	b.cfg.Log = LogConfig{Driver: "local", Path: filepath.Join(b.cfg.StateDir, "log")}
	for _, d := range []string{b.cfg.Bundle, b.cfg.RunDir, b.cfg.StateDir} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if t.Failed() {
			if c, _ := os.ReadFile(filepath.Join(b.cfg.RunDir, crashName)); len(c) > 0 {
				t.Logf("the monitor crashed: %s", c)
			}
		}
		if pid := b.pid(); pid > 0 && !b.ended() {
			_ = unix.Kill(pid, unix.SIGKILL) // our own child's child: the test failed or left it
		}
		eventually(t, "the monitor ends", func() bool { return !Alive(b.cfg.RunDir) })
		// The monitor's clean-up may still be writing there.
		eventually(t, "removed", func() bool { return os.RemoveAll(top) == nil })
	})
	b.set(fakeSpec{Args: args})
	return b
}

func (b *box) set(s fakeSpec) {
	j, _ := json.Marshal(s)
	if err := os.WriteFile(filepath.Join(b.cfg.Bundle, "fake.json"), j, 0o600); err != nil {
		b.t.Fatal(err)
	}
}

func (b *box) pid() int {
	var pid int
	s, _ := os.ReadFile(filepath.Join(b.cfg.Bundle, "pid"))
	_, _ = fmt.Sscan(string(s), &pid)
	return pid
}

func (b *box) has(name string) bool {
	_, err := os.Stat(filepath.Join(b.dir, name))
	return err == nil
}

func (b *box) ended() bool { return b.has("state/exit.json") }

func (b *box) spawn(stdio ...*os.File) *Client {
	b.t.Helper()
	self, err := os.Executable()
	if err != nil {
		b.t.Fatal(err)
	}
	o := SpawnOptions{Binary: self}
	copy(o.Stdio[:], stdio)
	c, err := Spawn(ctx(b.t), b.cfg, o)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = c.Close() })
	return c
}

// start spawns and starts.
func (b *box) start(stdio ...*os.File) *Client {
	b.t.Helper()
	c := b.spawn(stdio...)
	if _, err := c.Created(ctx(b.t)); err != nil {
		b.t.Fatal(err)
	}
	if _, _, err := c.Start(ctx(b.t)); err != nil {
		b.t.Fatal(err)
	}
	return c
}

func (b *box) wait(c *Client) *Exit {
	b.t.Helper()
	e, err := c.Wait(ctx(b.t))
	if err != nil {
		b.t.Fatal(err)
	}
	return e
}

// ctx is long enough for a busy machine: a test that hangs must say where.
func ctx(t testing.TB) context.Context {
	c, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	return c
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for i := 0; i < 3000; i++ {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("not so within 30 seconds: %s", what)
}

// capture returns a pipe's writing end and a function that reads all until it is closed everywhere.
func capture(t testing.TB) (*os.File, func() string) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	done := make(chan struct{})
	go func() {
		_, _ = io.Copy(&buf, r)
		close(done)
	}()
	return w, func() string {
		_ = w.Close()
		<-done
		_ = r.Close()
		return buf.String()
	}
}
