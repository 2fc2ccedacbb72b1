package monitor

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func (b *box) renewed() bool {
	s, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", b.monitor()))
	return err == nil && strings.Contains(string(s), "--resume")
}

// TestRenewal: after the monitor has executed itself again, everything goes on: streams, clients, promise, exit.
func TestRenewal(t *testing.T) {
	b := newBox(t, "sh", "-c", "i=0; while read l; do echo out $l; echo err $l >&2; done; exit 6")
	b.cfg.OpenStdin, b.cfg.StdinOnce = true, true
	b.cfg.Log.MaxSize = 1 << 20
	r, in, _ := os.Pipe()
	out, stdout := capture(t)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	errs, stderr := collect(t, pair)
	c := b.start(r, out, errs)
	_ = r.Close()
	other, err := Dial(ctx(t), b.cfg.RunDir)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := c.Mine(ctx(t)); err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	line := 0
	send := func(n int) {
		for range n {
			line++
			_, _ = fmt.Fprintln(in, line)
			fmt.Fprintln(&want, line)
		}
	}
	pid, mon := b.pid(), b.monitor()
	for !b.renewed() { // also while bytes flow
		send(10)
		time.Sleep(5 * time.Millisecond)
		if line > 100000 {
			t.Fatal("it was not renewed")
		}
	}
	if b.pid() != pid || b.monitor() != mon || !Alive(b.cfg.RunDir) {
		t.Error("container, monitor or lock changed")
	}
	send(1000)
	late, err := Dial(ctx(t), b.cfg.RunDir)
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	if p, err := late.Created(ctx(t)); p != pid || err != nil {
		t.Errorf("a late client: pid %d, %v; want %d", p, err, pid)
	}
	lateOut, lateStdout := capture(t)
	if err := late.Attach(ctx(t), nil, lateOut, nil); err != nil {
		t.Error(err)
	}
	send(1000)
	if err := other.Signal(ctx(t), 0); err != nil {
		t.Errorf("signal 0: %v", err)
	}
	_ = in.Close()
	for _, x := range []*Client{late, other, c} {
		if e := b.wait(x); e.Code != 6 || e.StartedAt.IsZero() || len(e.Warnings) > 0 {
			t.Errorf("got %+v, want 6", e)
		}
	}
	status := c.child.status
	_ = c.Close()
	eventually(t, "the monitor ends", func() bool { return status() != "" })
	if b.has("cleaned") || !b.has("bundle/deleted") {
		t.Error("the promise is forgotten, or the state is left")
	}
	lines := want.String()
	if got := lateStdout(); strings.Count(got, "\n") < 1000 || !strings.HasSuffix(lines, strings.ReplaceAll(got, "out ", "")) {
		t.Errorf("the late client got %d lines", strings.Count(got, "\n"))
	}
	if got := stdout(); strings.ReplaceAll(got, "out ", "") != lines {
		t.Errorf("stdout: %d bytes", len(got))
	}
	if got := stderr(); strings.ReplaceAll(got, "err ", "") != lines {
		t.Errorf("stderr: %d bytes", len(got))
	}
	if got := b.log(); strings.Count(got, "1:out ") != line || strings.Count(got, "2:err ") != line {
		t.Errorf("the log has %d + %d lines, want %d each", strings.Count(got, "1:out "), strings.Count(got, "2:err "), line)
	}
}

// TestRenewalOfATerminal also resizes after it.
func TestRenewalOfATerminal(t *testing.T) {
	b := newBox(t, "sh", "-c", "while read l; do stty size; done")
	b.cfg.Terminal, b.cfg.OpenStdin, b.cfg.Width, b.cfg.Height = true, true, 10, 20
	mine, theirs := pty(t)
	c := b.start(theirs, theirs)
	go func() { _, _ = io.Copy(io.Discard, mine) }()
	eventually(t, "renewed", b.renewed)
	if err := c.Resize(ctx(t), 33, 44); err != nil {
		t.Error(err)
	}
	_, _ = mine.WriteString("x\r")
	eventually(t, "the new size", func() bool { return strings.Contains(b.log(), "44 33\r\n") })
	_, _ = mine.WriteString("\x04")
	if e := b.wait(c); e.Code != 0 {
		t.Errorf("got %+v", e)
	}
}

// TestRenewalWaitsForASlowClient: nothing of what a client has not read yet is lost.
func TestRenewalWaitsForASlowClient(t *testing.T) {
	b := newBox(t, "sh", "-c", "seq 1 200000; sleep 1000")
	r, w, _ := os.Pipe()
	c := b.start(nil, w)
	_ = w.Close()
	time.Sleep(settleAfter + 500*time.Millisecond)
	if b.renewed() {
		t.Error("renewed in the middle of a write")
	}
	got := 0
	buf := make([]byte, 64<<10)
	for want := 1288895; got < want; {
		n, err := r.Read(buf)
		if err != nil {
			t.Fatalf("%d of %d bytes: %v", got, want, err)
		}
		got += n
	}
	_ = c.Signal(ctx(t), 9)
	b.wait(c)
}

// TestRenewalThenKilled: the parent dies after a renewal as before.
func TestRenewalThenKilled(t *testing.T) {
	b := newBox(t, "sleep", "1000")
	c := b.start()
	eventually(t, "renewed", b.renewed)
	time.Sleep(200 * time.Millisecond) // a signal in the new program's first milliseconds would end it: doc/monitor.md
	_ = unix.Kill(b.monitor(), unix.SIGTERM)
	time.Sleep(20 * time.Millisecond)
	if !Alive(b.cfg.RunDir) {
		t.Error("SIGTERM ended it")
	}
	pid := b.pid()
	_ = unix.Kill(b.monitor(), unix.SIGKILL)
	if _, err := c.Wait(ctx(t)); err == nil {
		t.Error("Wait succeeded")
	}
	_ = unix.Kill(pid, unix.SIGKILL)
}
