package engine

import (
	"context"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/onggi/onggi/errdefs"
)

func TestAttach(t *testing.T) {
	h := newHouse(t)
	ctx := context.Background()
	c := config("sh", "-c", "while read l; do echo got $l; [ $l = end ] && exit 5; done")
	c.OpenStdin, c.Name = true, "ear"
	id := h.detached(c)
	in, typed, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	heard, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	s, err := h.Attach(ctx, "ear", AttachOptions{Stdin: in, Stdout: out})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = in.Close(), out.Close()
	buf := make([]byte, 64)
	say := func(what, want string) {
		t.Helper()
		if _, err := io.WriteString(typed, what); err != nil {
			t.Fatal(err)
		}
		if n, err := heard.Read(buf); err != nil || string(buf[:n]) != want {
			t.Errorf("said %q: got %q, %v; want %q", what, buf[:n], err, want)
		}
	}
	say("one\n", "got one\n")
	// A client that leaves takes nothing with it.
	if err := s.Client.Close(); err != nil {
		t.Fatal(err)
	}
	in, typed2, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if s, err = h.Attach(ctx, id, AttachOptions{Stdin: in}); err != nil {
		t.Fatal(err)
	}
	_, _ = in.Close(), typed.Close()
	if _, err := io.WriteString(typed2, "two\nend\n"); err != nil {
		t.Fatal(err)
	}
	x, err := s.Client.Wait(ctx)
	if err != nil || x.Code != 5 {
		t.Errorf("its end: %+v, %v; want code 5", x, err)
	}
	_, _, _ = s.Client.Close(), typed2.Close(), heard.Close()
	if got := h.logged(id); got != "got one\ngot two\ngot end\n" {
		t.Errorf("log %q", got)
	}
	if _, err := h.Attach(ctx, id, AttachOptions{}); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("attach to what has ended: %v, want conflict", err)
	}
	deaf := h.detached(config("sleep", "1000"))
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if _, err := h.Attach(ctx, deaf, AttachOptions{Stdin: null}); !errdefs.Is(err, errdefs.InvalidArgument) {
		t.Errorf("input for a container without: %v, want invalid argument", err)
	}
	if err := h.Pause(ctx, deaf); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Attach(ctx, deaf, AttachOptions{}); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("attach to a paused container: %v, want conflict", err)
	}
}

func TestTop(t *testing.T) {
	h := newHouse(t)
	ctx := context.Background()
	c := config("sh", "-c", "sleep 1000 & exec sleep 2000")
	c.User = "33"
	id := h.detached(c)
	k, err := h.Get(id)
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "both processes", func() bool {
		p, err := h.Top(ctx, id, nil)
		return err == nil && len(p.Rows) == 2 && p.Rows[0][7] == "sleep 2000" && p.Rows[1][7] == "sleep 1000"
	})
	p, err := h.Top(ctx, id, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(p.Titles, " "); got != "UID PID PPID C STIME TTY TIME CMD" {
		t.Errorf("titles %q", got)
	}
	pid := strconv.Itoa(k.Pid)
	if r := p.Rows[0]; r[1] != pid || r[5] != "?" || r[0] != hostUser(33) {
		t.Errorf("first row %q, want pid %s", r, pid)
	}
	if r := p.Rows[1]; r[2] != pid {
		t.Errorf("second row %q, want parent %s", r, pid)
	}
	if _, err := exec.LookPath("ps"); err == nil {
		p, err := h.Top(ctx, id, []string{"-o", "pid,ppid,args"})
		if err != nil || len(p.Rows) != 2 || strings.Join(p.Titles, " ") != "PID PPID COMMAND" || p.Rows[0][0] != pid || p.Rows[0][2] != "sleep 2000" {
			t.Errorf("ps -o: %+v, %v", p, err)
		}
		for _, bad := range [][]string{{"-o", "comm"}, {"--no-such-option"}} {
			if _, err := h.Top(ctx, id, bad); !errdefs.Is(err, errdefs.InvalidArgument) {
				t.Errorf("ps %q: %v, want invalid argument", bad, err)
			}
		}
		// ours is what ps says, but for the processor time that runs on between the two
		still := func(r []string) string { return strings.Join([]string{r[0], r[1], r[2], r[5], r[7]}, " ") }
		ours, theirs := p, (*Processes)(nil)
		if ours, err = h.Top(ctx, id, nil); err == nil {
			theirs, err = h.Top(ctx, id, []string{"-ef"})
		}
		if err != nil || strings.Join(ours.Titles, " ") != strings.Join(theirs.Titles, " ") || len(theirs.Rows) != 2 ||
			still(ours.Rows[0]) != still(theirs.Rows[0]) {
			t.Errorf("ours %q, ps -ef %q, %v", ours, theirs, err)
		}
	}
	if err := h.Kill(ctx, id, 9); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Wait(ctx, id); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Top(ctx, id, nil); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("top of what has ended: %v, want conflict", err)
	}
}
