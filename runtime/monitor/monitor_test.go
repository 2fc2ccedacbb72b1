package monitor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/runtime/monitor/logfile"
	"golang.org/x/sys/unix"
)

func (b *box) log() string {
	b.t.Helper()
	var s strings.Builder
	err := logfile.Read(context.Background(), b.cfg.Log.Path, logfile.ReadOptions{Tail: -1, Stdout: true, Stderr: true},
		func(l logfile.Line) error {
			fmt.Fprintf(&s, "%d:%s", l.Stream, l.Data)
			return nil
		})
	if err != nil {
		b.t.Error(err)
	}
	return s.String()
}

func TestWalk(t *testing.T) {
	b := newBox(t, "sh", "-c", "echo out; echo err >&2; exit 7")
	out, stdout := capture(t)
	errs, stderr := capture(t)
	if Alive(b.cfg.RunDir) {
		t.Error("alive before it is spawned")
	}
	c := b.spawn(nil, out, errs)
	pid, err := c.Created(ctx(t))
	if err != nil || pid != b.pid() {
		t.Fatalf("Created: got %d, %v; want %d", pid, err, b.pid())
	}
	if !Alive(b.cfg.RunDir) {
		t.Error("not alive after Created")
	}
	before := time.Now()
	at, spans, err := c.Start(ctx(t))
	if err != nil || at.Before(before.Add(-time.Second)) {
		t.Fatalf("Start: %v, %v", at, err)
	}
	var names []string
	for _, s := range spans {
		names = append(names, s.Name)
	}
	if got, want := strings.Join(names, " "), "monitor.lock monitor.listen monitor.log monitor.stdio monitor.create monitor.start fake.clone"; got != want {
		t.Errorf("spans: got %q, want %q", got, want)
	}
	if _, _, err := c.Start(ctx(t)); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("second Start: got %v, want a conflict", err)
	}
	e := b.wait(c)
	if e.Code != 7 || e.Signal != 0 || e.Error != "" || !e.StartedAt.Equal(at) || e.FinishedAt.Before(at) || len(e.Warnings) > 0 {
		t.Errorf("got %+v, want code 7", e)
	}
	if Alive(b.cfg.RunDir) {
		t.Error("alive after Wait")
	}
	if r, err := ReadExit(b.cfg.StateDir); err != nil || r.Code != 7 || !r.FinishedAt.Equal(e.FinishedAt) {
		t.Errorf("ReadExit: %+v, %v", r, err)
	}
	if !b.has("bundle/deleted") || b.has("run/monitor.sock") {
		t.Error("the runtime's state or the socket is left")
	}
	if got := stdout() + stderr(); got != "out\nerr\n" {
		t.Errorf("attached: got %q", got)
	}
	if got := b.log(); got != "1:out\n2:err\n" && got != "2:err\n1:out\n" {
		t.Errorf("log: got %q", got)
	}
	eventually(t, "cleaned up", func() bool { return b.has("cleaned") })
	for _, n := range []string{"run/monitor.json", "run/monitor.lock", "state/exit.json", "state/log"} {
		if st, err := os.Stat(filepath.Join(b.dir, n)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, want mode 0600", n, err)
		}
	}
}

// TestFailures: the reason keeps its kind, and nothing is alive when it arrives.
func TestFailures(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/data", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		change  func(b *box)
		kind    errdefs.Kind
		code    int
		created bool
	}{
		{"create", func(b *box) { b.set(fakeSpec{Fail: errdefs.NoSpace}) }, errdefs.NoSpace, 125, false},
		{"command not found", func(b *box) { b.set(fakeSpec{Args: []string{"/no/such/command"}}) }, errdefs.CommandNotFound, 127, true},
		{"not executable", func(b *box) { b.set(fakeSpec{Args: []string{dir + "/data"}}) }, errdefs.NotExecutable, 126, true},
		{"log", func(b *box) { b.cfg.Log.Path = "/no/such/dir/log" }, errdefs.NotFound, 125, false},
		{"no stdin", func(b *box) { b.cfg.OpenStdin = false }, errdefs.InvalidArgument, 125, false},
		{"no runtime", func(b *box) { b.cfg.Runtime = []string{"no-such-runtime"} }, errdefs.NotFound, 125, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBox(t, "true")
			c.change(b)
			var in *os.File
			if c.name == "no stdin" {
				in, _ = os.Open("/dev/null")
				defer in.Close()
			}
			cl := b.spawn(in)
			_, err := cl.Created(ctx(t))
			if c.created {
				if err != nil {
					t.Fatal(err)
				}
				_, _, err = cl.Start(ctx(t))
			}
			if errdefs.KindOf(err) != c.kind {
				t.Errorf("got %v (%v), want %v", err, errdefs.KindOf(err), c.kind)
			}
			if Alive(b.cfg.RunDir) {
				t.Error("alive after a failure")
			}
			e := b.wait(cl)
			if e.Code != c.code || e.Error == "" || !e.StartedAt.IsZero() {
				t.Errorf("got %+v, want code %d and an error", e, c.code)
			}
			eventually(t, "cleaned up", func() bool { return b.has("cleaned") })
		})
	}
	t.Run("configuration", func(t *testing.T) {
		for _, change := range []func(c *Config){
			func(c *Config) { c.Log.Driver = "syslog" },
			func(c *Config) { c.ID = "" },
			func(c *Config) { c.Bundle = "relative" },
			func(c *Config) { c.Cleanup = []string{"onggi"} },
			func(c *Config) { c.Runtime, c.Init = []string{"runc"}, true },
		} {
			b := newBox(t, "true")
			change(b.cfg)
			if _, err := b.spawn().Created(ctx(t)); err == nil || errdefs.Is(err, errdefs.Unavailable) {
				t.Errorf("got %v, want a reason", err)
			}
			if b.has("cleaned") || Alive(b.cfg.RunDir) {
				t.Error("a refused configuration left something")
			}
		}
	})
	t.Run("second monitor", func(t *testing.T) {
		b := newBox(t, "sleep", "1000")
		c := b.start()
		if _, err := b.spawn().Created(ctx(t)); !errdefs.Is(err, errdefs.Conflict) {
			t.Errorf("got %v, want a conflict", err)
		}
		if !Alive(b.cfg.RunDir) {
			t.Error("the first one is not alive any more")
		}
		if err := c.Signal(ctx(t), 9); err != nil {
			t.Error(err)
		}
		b.wait(c)
	})
	t.Run("no binary", func(t *testing.T) {
		b := newBox(t, "true")
		if _, err := Spawn(ctx(t), b.cfg, SpawnOptions{Binary: "/no/such/binary"}); !errdefs.Is(err, errdefs.NotFound) {
			t.Errorf("got %v, want not-found", err)
		}
	})
}

func TestClients(t *testing.T) {
	b := newBox(t, "sh", "-c", "trap 'echo got usr1' USR1; echo ready; while :; do sleep 0.02; done")
	if _, err := Dial(ctx(t), b.cfg.RunDir); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("Dial without a monitor: got %v, want not-found", err)
	}
	first := b.start()
	out, stdout := capture(t)
	second, err := Dial(ctx(t), b.cfg.RunDir)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if err := second.Attach(ctx(t), nil, out, nil); err != nil {
		t.Fatal(err)
	}
	if pid, err := second.Created(ctx(t)); err != nil || pid != b.pid() {
		t.Errorf("Created of a late client: %d, %v", pid, err)
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	if _, err := first.Wait(ctx(t)); !errdefs.Is(err, errdefs.Canceled) {
		t.Errorf("Wait after Close: got %v", err)
	}
	eventually(t, "ready", func() bool { return strings.Contains(b.log(), "ready") })
	if err := second.Signal(ctx(t), int(unix.SIGUSR1)); err != nil {
		t.Error(err)
	}
	eventually(t, "signalled", func() bool { return strings.Contains(b.log(), "got usr1") })
	for what, err := range map[string]error{
		"resize without a terminal": second.Resize(ctx(t), 1, 1),
		"stdin that is not open":    second.Attach(ctx(t), out, nil, nil),
	} {
		if !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("%s: got %v, want invalid-argument", what, err)
		}
	}
	short, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if _, err := second.Wait(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Wait with a deadline: got %v", err)
	}
	var many []*Client
	for range 20 {
		c, err := Dial(ctx(t), b.cfg.RunDir)
		if err != nil {
			t.Fatal(err)
		}
		many = append(many, c)
	}
	if err := second.Signal(ctx(t), int(unix.SIGKILL)); err != nil {
		t.Error(err)
	}
	for _, c := range append(many, second) {
		if e := b.wait(c); e.Code != 137 || e.Signal != 9 {
			t.Errorf("got %+v, want 137", e)
		}
		_ = c.Close()
	}
	if got := stdout(); !strings.HasSuffix(got, "got usr1\n") {
		t.Errorf("attached: got %q", got)
	}
	if err := second.Signal(ctx(t), 9); err == nil {
		t.Error("a signal after the end succeeded")
	}
}

// TestSignalsToTheMonitor: they neither end it nor stay ignored in the container.
func TestSignalsToTheMonitor(t *testing.T) {
	b := newBox(t, "sh", "-c", "grep -E 'SigIgn|SigBlk' /proc/self/status; echo ready; exec sleep 1000")
	c := b.start()
	eventually(t, "ready", func() bool { return strings.Contains(b.log(), "ready") })
	for _, s := range []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT} {
		if err := unix.Kill(b.monitor(), s); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(50 * time.Millisecond)
	if !Alive(b.cfg.RunDir) {
		t.Fatal("a signal ended the monitor")
	}
	if err := c.Signal(ctx(t), int(unix.SIGTERM)); err != nil {
		t.Error(err)
	}
	if e := b.wait(c); e.Signal != int(unix.SIGTERM) {
		t.Errorf("got %+v, want signal 15", e)
	}
	// Others may be ignored because whoever started this test ignores them (make's posix_spawn: 32 and 33).
	sent := uint64(1<<(unix.SIGTERM-1) | 1<<(unix.SIGINT-1) | 1<<(unix.SIGHUP-1) | 1<<(unix.SIGQUIT-1))
	masks := regexp.MustCompile(`Sig(?:Ign|Blk):\t([0-9a-f]{16})`).FindAllStringSubmatch(b.log(), -1)
	for _, m := range masks {
		if n, err := strconv.ParseUint(m[1], 16, 64); err != nil || n&sent != 0 {
			t.Errorf("the container's signals: %q (%v)", m[0], err)
		}
	}
	if len(masks) != 2 {
		t.Errorf("the container's signal masks: %q", b.log())
	}
}

// monitor is the monitor's pid: the parent of the first process.
func (b *box) monitor() int {
	b.t.Helper()
	s, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", b.pid()))
	if err != nil {
		b.t.Fatal(err)
	}
	f := strings.Fields(string(s[bytes.LastIndexByte(s, ')')+1:]))
	pid, _ := strconv.Atoi(f[1])
	return pid
}

func TestStdin(t *testing.T) {
	t.Run("once", func(t *testing.T) {
		b := newBox(t, "cat")
		b.cfg.OpenStdin, b.cfg.StdinOnce = true, true
		r, w, _ := os.Pipe()
		out, stdout := capture(t)
		c := b.start(r, out)
		_ = r.Close()
		in := strings.Repeat("a line\n", 50000)
		if _, err := io.WriteString(w, in); err != nil {
			t.Fatal(err)
		}
		_ = w.Close()
		if e := b.wait(c); e.Code != 0 {
			t.Errorf("got %+v", e)
		}
		if got := stdout(); got != in {
			t.Errorf("got %d bytes, want %d", len(got), len(in))
		}
	})
	t.Run("once, and its client goes", func(t *testing.T) {
		b := newBox(t, "cat")
		b.cfg.OpenStdin, b.cfg.StdinOnce = true, true
		r, w, _ := os.Pipe()
		defer w.Close()
		c := b.start(r)
		_ = r.Close()
		other, err := Dial(ctx(t), b.cfg.RunDir)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
		if e := b.wait(other); e.Code != 0 {
			t.Errorf("got %+v", e)
		}
		_ = other.Close()
	})
	t.Run("open", func(t *testing.T) {
		b := newBox(t, "sh", "-c", "read a; read b; echo $a $b")
		b.cfg.OpenStdin = true
		c := b.start()
		for _, s := range []string{"one\n", "two\n"} {
			r, w, _ := os.Pipe()
			if err := c.Attach(ctx(t), r, nil, nil); err != nil {
				t.Fatal(err)
			}
			_ = r.Close()
			_, _ = io.WriteString(w, s)
			_ = w.Close()
		}
		b.wait(c)
		if got := b.log(); got != "1:one two\n" && got != "1:two one\n" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("not read", func(t *testing.T) {
		b := newBox(t, "sh", "-c", "exec <&-; echo closed; sleep 0.2")
		b.cfg.OpenStdin, b.cfg.StdinOnce = true, true
		r, w, _ := os.Pipe()
		c := b.start(r)
		_ = r.Close()
		go func() {
			_, _ = w.Write(make([]byte, 1<<20)) // more than pipes hold: ends with EPIPE
			_ = w.Close()
		}()
		if e := b.wait(c); e.Code != 0 {
			t.Errorf("got %+v", e)
		}
	})
}

// pty is a terminal of the test's own.
func pty(t *testing.T) (master, replica *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip(err)
	}
	fd, _ := number(master)
	_ = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	// Not by os.OpenFile, which would make it non-blocking.
	rfd, err := unix.Open(fmt.Sprintf("/dev/pts/%d", n), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	replica = os.NewFile(uintptr(rfd), "terminal")
	ts, err := unix.IoctlGetTermios(rfd, unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	ts.Lflag &^= unix.ECHO | unix.ICANON // as a command line makes its user's terminal
	ts.Oflag &^= unix.OPOST
	ts.Iflag &^= unix.ICRNL
	if err := unix.IoctlSetTermios(rfd, unix.TCSETS, ts); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = master.Close(); _ = replica.Close() })
	return master, replica
}

func TestTerminal(t *testing.T) {
	if _, err := exec.LookPath("stty"); err != nil {
		t.Skip("no stty")
	}
	b := newBox(t, "sh", "-c", "test -t 0 -a -t 1 -a -t 2 && stty size; trap 'stty size' WINCH; while read l; do echo got $l; done")
	b.cfg.Terminal, b.cfg.OpenStdin, b.cfg.Width, b.cfg.Height = true, true, 101, 43
	mine, theirs := pty(t)
	c := b.start(theirs, theirs)
	var seen bytes.Buffer
	buf := make([]byte, 1024)
	expect := func(want string) {
		t.Helper()
		for !strings.Contains(seen.String(), want) {
			_ = mine.SetReadDeadline(time.Now().Add(30 * time.Second))
			n, err := mine.Read(buf)
			if err != nil {
				t.Fatalf("got %q (%v), want %q", seen.String(), err, want)
			}
			seen.Write(buf[:n])
		}
		seen.Reset()
	}
	expect("43 101\r\n")
	_, _ = mine.WriteString("hello\r")
	expect("got hello\r\n")
	if err := c.Resize(ctx(t), 77, 11); err != nil {
		t.Error(err)
	}
	_, _ = mine.WriteString("again\r") // dash runs a trap when its read returns
	expect("11 77\r\n")
	// The description that the user's shell shares has kept its mode.
	fd, _ := number(theirs)
	if fl, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); fl&unix.O_NONBLOCK != 0 {
		t.Error("O_NONBLOCK is set on the client's terminal")
	}
	_, _ = mine.WriteString("\x04") // end of file, typed
	if e := b.wait(c); e.Code != 0 {
		t.Errorf("got %+v", e)
	}
	if got := b.log(); !strings.Contains(got, "1:got hello\r\n") {
		t.Errorf("log: got %q", got)
	}
	if err := c.Resize(ctx(t), 1, 1); err == nil {
		t.Error("a resize after the end succeeded")
	}
}

// TestEndpoints attaches each kind of descriptor, and looks that its shared mode stays as it was.
func TestEndpoints(t *testing.T) {
	const lines = 30000
	want := ""
	for i := range lines {
		want += fmt.Sprintln(i)
	}
	kinds := map[string]func(t *testing.T) (*os.File, func() string){
		"pipe": func(t *testing.T) (*os.File, func() string) {
			var p [2]int
			if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
				t.Fatal(err)
			}
			return collect(t, p)
		},
		"socket": func(t *testing.T) (*os.File, func() string) {
			p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			return collect(t, p)
		},
		"file": func(t *testing.T) (*os.File, func() string) {
			f, err := os.Create(filepath.Join(t.TempDir(), "out"))
			if err != nil {
				t.Fatal(err)
			}
			_, _ = f.WriteString("head\n") // the offset is shared: output comes behind it
			return f, func() string {
				b, _ := os.ReadFile(f.Name())
				return strings.TrimPrefix(string(b), "head\n")
			}
		},
		"terminal": func(t *testing.T) (*os.File, func() string) {
			mine, theirs := pty(t)
			var got bytes.Buffer
			done := make(chan struct{})
			go func() {
				_, _ = io.Copy(&got, mine)
				close(done)
			}()
			return theirs, func() string { _ = theirs.Close(); <-done; return got.String() }
		},
	}
	for name, make := range kinds {
		t.Run(name, func(t *testing.T) {
			b := newBox(t, "seq", "0", strconv.Itoa(lines-1))
			f, got := make(t)
			fd, _ := number(f)
			c := b.start(nil, f)
			b.wait(c)
			if fl, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || fl&unix.O_NONBLOCK != 0 {
				t.Errorf("O_NONBLOCK is set on the client's %s (%v)", name, err)
			}
			if s := got(); s != want {
				t.Errorf("got %d bytes, want %d", len(s), len(want))
			}
		})
	}
	t.Run("full", func(t *testing.T) { // an error of one client is not the container's
		b := newBox(t, "seq", "0", strconv.Itoa(lines-1))
		f, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
		if err != nil {
			t.Skip(err)
		}
		defer f.Close()
		if e := b.wait(b.start(nil, f)); e.Code != 0 {
			t.Errorf("got %+v", e)
		}
		if got := b.log(); strings.ReplaceAll(got, "1:", "") == "" || strings.Count(got, "\n") != lines {
			t.Errorf("the log has %d lines, want %d", strings.Count(got, "\n"), lines)
		}
	})
}

// TestBrokenPipe: the command that attached learns that its reader is gone; the container goes on.
func TestBrokenPipe(t *testing.T) {
	b := newBox(t, "sh", "-c", "while :; do echo y; sleep 0.01; done")
	r, w, _ := os.Pipe()
	c := b.start(nil, w)
	_ = w.Close()
	select {
	case <-c.Broken():
		t.Error("broken before it is")
	case <-time.After(50 * time.Millisecond):
	}
	_ = r.Close()
	select {
	case <-c.Broken():
	case <-ctx(t).Done():
		t.Error("the client was not told")
	}
	n := len(b.log())
	eventually(t, "the container goes on", func() bool { return len(b.log()) > n })
	_ = c.Signal(ctx(t), 9)
	b.wait(c)
}

// TestLostAtTheEnd: a client is told of lost output before it is told of the exit, whether the container's output was
// written while it lived or after its end.
func TestLostAtTheEnd(t *testing.T) {
	for _, script := range []string{"echo lost", "echo lost; sleep 0.1"} {
		for range 5 {
			b := newBox(t, "sh", "-c", script)
			full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
			if err != nil {
				t.Skip(err)
			}
			c := b.start(nil, full)
			_ = full.Close()
			if e, err := c.Wait(ctx(t)); err != nil || e.Code != 0 {
				t.Errorf("%s: exit %+v, %v", script, e, err)
			}
			select {
			case <-c.Broken():
			default:
				t.Errorf("%s: the exit is known, but not that output was lost", script)
			}
		}
	}
}

// collect reads p[0] slowly enough to fill it.
func collect(t *testing.T, p [2]int) (*os.File, func() string) {
	r, w := os.NewFile(uintptr(p[0]), "r"), os.NewFile(uintptr(p[1]), "w")
	var got bytes.Buffer
	done := make(chan struct{})
	go func() {
		buf := make([]byte, 3000)
		for {
			n, err := r.Read(buf)
			got.Write(buf[:n])
			if err != nil {
				close(done)
				return
			}
			time.Sleep(100 * time.Microsecond)
		}
	}()
	return w, func() string { _ = w.Close(); <-done; _ = r.Close(); return got.String() }
}

// TestBackPressure: a client that does not read stops the container, not the monitor; its end lets it go on.
func TestBackPressure(t *testing.T) {
	b := newBox(t, "sh", "-c", "i=0; while [ $i -lt 40000 ]; do echo 0123456789012345678901234567890123456789; i=$((i+1)); done; echo end")
	r, w, _ := os.Pipe()
	defer r.Close()
	c := b.start(nil, w)
	_ = w.Close()
	last := -1
	eventually(t, "the container blocks", func() bool {
		n := len(b.log())
		same := n == last && n > 0
		last = n
		time.Sleep(100 * time.Millisecond)
		return same
	})
	if strings.Contains(b.log(), "end\n") {
		t.Fatal("the container ended although its client did not read")
	}
	other, err := Dial(ctx(t), b.cfg.RunDir)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	_ = c.Close()
	if e := b.wait(other); e.Code != 0 {
		t.Errorf("got %+v", e)
	}
	if got := strings.Count(b.log(), "\n"); got != 40001 {
		t.Errorf("the log has %d lines, want 40001", got)
	}
}

// TestStalledClientAtTheEnd: it holds up nobody else's exit, and loses nothing when it reads on.
func TestStalledClientAtTheEnd(t *testing.T) {
	for _, c := range []string{"reads on", "goes"} {
		t.Run(c, func(t *testing.T) {
			b := newBox(t, "sh", "-c", "seq 1 60000; sleep 1000")
			r, w, _ := os.Pipe()
			defer r.Close()
			slow := b.start(nil, w)
			_ = w.Close()
			fast, err := Dial(ctx(t), b.cfg.RunDir)
			if err != nil {
				t.Fatal(err)
			}
			defer fast.Close()
			last := 0
			eventually(t, "stalled", func() bool {
				n := len(b.log())
				same := n == last && n > 0
				last = n
				time.Sleep(50 * time.Millisecond)
				return same
			})
			if err := fast.Signal(ctx(t), 9); err != nil {
				t.Fatal(err)
			}
			b.wait(fast)
			if Alive(b.cfg.RunDir) || b.has("cleaned") {
				t.Error("alive, or cleaned up before the last client has its output")
			}
			if c == "goes" {
				_ = slow.Close()
			} else {
				got, _ := io.ReadAll(r)
				if n := bytes.Count(got, []byte("\n")); n != strings.Count(b.log(), "\n") || n < 10000 {
					t.Errorf("got %d lines, the log has %d", n, strings.Count(b.log(), "\n"))
				}
				b.wait(slow)
			}
			eventually(t, "cleaned up", func() bool { return b.has("cleaned") })
		})
	}
}

// TestSurvivor: a process that outlives the container and keeps its stdout does not hold the monitor.
func TestSurvivor(t *testing.T) {
	for name, script := range map[string]string{
		"silent": "echo one; sleep 1000 & echo $! >pid; exit 3",
		"noisy":  "echo one; yes & echo $! >pid; exit 3",
	} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t, "sh", "-c", "cd "+t.TempDir()+"; pwd; "+script)
			b.cfg.Log.MaxSize = 1 << 20
			e := b.wait(b.start())
			if e.Code != 3 {
				t.Errorf("got %+v", e)
			}
			if name == "silent" {
				dir, rest, _ := strings.Cut(strings.TrimPrefix(b.log(), "1:"), "\n")
				if rest != "1:one\n" {
					t.Errorf("log: got %q", rest)
				}
				s, _ := os.ReadFile(dir + "/pid")
				if pid, err := strconv.Atoi(strings.TrimSpace(string(s))); err == nil {
					_ = unix.Kill(pid, unix.SIGKILL)
				}
			} // the noisy one gets SIGPIPE
		})
	}
}

// TestOrphansAreReaped: what a container in the host's pid namespace leaves behind becomes ours.
func TestOrphansAreReaped(t *testing.T) {
	b := newBox(t, "sh", "-c", "for i in 1 2 3 4 5; do sh -c 'sleep 0.05 & exit' ; done; sleep 0.5; ps -o stat= --ppid $PPID; echo done; sleep 1000")
	c := b.start()
	eventually(t, "done", func() bool { return strings.Contains(b.log(), "done") })
	if got := b.log(); strings.Contains(got, "Z") {
		t.Errorf("zombies of the monitor: %q", got)
	}
	_ = c.Signal(ctx(t), 9)
	b.wait(c)
}

func TestMine(t *testing.T) {
	t.Run("kept", func(t *testing.T) {
		b := newBox(t, "true")
		c := b.start()
		if err := c.Mine(ctx(t)); err != nil && !errdefs.Is(err, errdefs.Conflict) {
			t.Fatal(err)
		} else if err != nil {
			t.Skip("it ended first")
		}
		mon := c.child.status
		b.wait(c)
		_ = c.Close()
		eventually(t, "the monitor ends", func() bool { return mon() != "" })
		if b.has("cleaned") {
			t.Error("cleaned up although a client has done it")
		}
	})
	t.Run("from the beginning", func(t *testing.T) {
		b := newBox(t, "true")
		b.set(fakeSpec{Fail: errdefs.Forbidden})
		b.cfg.Mine = true
		c := b.spawn()
		if _, err := c.Created(ctx(t)); !errdefs.Is(err, errdefs.Forbidden) {
			t.Fatal(err)
		}
		mon := c.child.status
		b.wait(c)
		_ = c.Close()
		eventually(t, "the monitor ends", func() bool { return mon() != "" })
		if b.has("cleaned") {
			t.Error("cleaned up although a client has done it")
		}
	})
	t.Run("left before the end", func(t *testing.T) {
		b := newBox(t, "sleep", "0.3")
		c := b.start()
		if err := c.Mine(ctx(t)); err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
		eventually(t, "cleaned up", func() bool { return b.has("cleaned") })
	})
}

// TestCleanupSeesNoMonitor: the clean-up may take RunDir away.
func TestCleanupSeesNoMonitor(t *testing.T) {
	b := newBox(t, "true")
	b.cfg.Cleanup = []string{"/bin/sh", "-c", "test -e " + b.cfg.StateDir + "/exit.json && test -e " + b.cfg.Bundle +
		"/deleted && rm -r " + b.cfg.RunDir + " && echo >" + b.dir + "/cleaned"}
	c := b.start()
	b.wait(c)
	eventually(t, "cleaned up", func() bool { return b.has("cleaned") })
}

func TestSeeds(t *testing.T) {
	b := newBox(t, "true")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s, err := Plant(SpawnOptions{Binary: exe, RunDir: b.cfg.RunDir})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	s.child.wait(30 * time.Second)
	if got := s.child.status(); got != "it exited with status 0" {
		t.Errorf("a seed that is not needed: %q, want status 0", got)
	}
	if _, err := os.Stat(b.cfg.RunDir + "/" + configName); err == nil {
		t.Error("a seed wrote a configuration")
	}
}
