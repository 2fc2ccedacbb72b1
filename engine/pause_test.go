package engine

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/onggi/onggi/errdefs"
)

// counter counts in its log as fast as it is let.
const counter = "i=0; while :; do echo $((i+=1)); sleep 0.01; done"

func (h *house) logged(id string) string {
	h.t.Helper()
	var b strings.Builder
	if err := h.Logs(context.Background(), id, LogOptions{Tail: -1}, &b, nil); err != nil {
		h.t.Fatal(err)
	}
	return b.String()
}

func (h *house) logGrows(id string) bool {
	before := h.logged(id)
	for range 300 {
		if h.logged(id) != before {
			return true
		}
		time.Sleep(time.Millisecond)
	}
	return false
}

func TestPause(t *testing.T) {
	h := newHouse(t)
	ctx := context.Background()
	c := config("sh", "-c", counter)
	c.Name = "still"
	id := h.detached(c)
	if err := h.Unpause(ctx, "still"); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("unpause of what runs: %v, want conflict", err)
	}
	if err := h.Pause(ctx, "still"); err != nil {
		t.Fatal(err)
	}
	k, err := h.Get("still")
	if err != nil || k.Status != Running || !k.Paused || k.State() != Paused {
		t.Errorf("paused: %+v, %v", k, err)
	}
	// What had been written before is in the log a moment later.
	time.Sleep(20 * time.Millisecond)
	if h.logGrows(id) {
		t.Error("it goes on writing while it is paused")
	}
	for name, err := range map[string]error{
		"pause again": h.Pause(ctx, id), "remove": h.Remove(ctx, id, false, false),
		"exec": func() error { _, err := h.ExecCommand(ctx, id, ExecConfig{Args: []string{"true"}}); return err }(),
	} {
		if !errdefs.Is(err, errdefs.Conflict) || !strings.Contains(err.Error(), "paused") {
			t.Errorf("%s: %v, want a conflict that says paused", name, err)
		}
	}
	if err := h.Unpause(ctx, id); err != nil {
		t.Fatal(err)
	}
	if k, err := h.Get(id); err != nil || k.Paused || !h.logGrows(id) {
		t.Errorf("unpaused: %+v, %v, or its log does not grow", k, err)
	}
	// Stop, kill and forced removal end one that is paused.
	now := time.Duration(0)
	for name, end := range map[string]func(string) error{
		"stop":   func(id string) error { return h.Stop(ctx, id, &now) },
		"kill":   func(id string) error { return h.Kill(ctx, id, 9) },
		"remove": func(id string) error { return h.Remove(ctx, id, true, false) },
	} {
		id := h.detached(config("sh", "-c", counter))
		if err := h.Pause(ctx, id); err != nil {
			t.Fatal(err)
		}
		if err := end(id); err != nil {
			t.Errorf("%s of a paused container: %v", name, err)
		}
		if x, err := h.Wait(ctx, id); name != "remove" && (err != nil || x.Code == 0) {
			t.Errorf("%s of a paused container: exit %+v, %v", name, x, err)
		}
		if name == "stop" { // it starts unpaused
			if s, err := h.Start(ctx, id, StartOptions{}); err != nil {
				t.Errorf("start after it was stopped paused: %v", err)
			} else if _ = s.Client.Close(); !h.logGrows(id) {
				t.Error("it was started, and stands still")
			}
		}
	}
	if err := h.Pause(ctx, "nosuch"); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("pause of nothing: %v", err)
	}
}

// TestPauseOfManyAtOnce: pause and unpause from several sides leave the container in the state that it says.
func TestPauseOfManyAtOnce(t *testing.T) {
	h := newHouse(t)
	ctx := context.Background()
	id := h.detached(config("sh", "-c", counter))
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 10 {
				err := h.Pause(ctx, id)
				if i%2 == 0 {
					err = h.Unpause(ctx, id)
				}
				if err != nil && !errdefs.Is(err, errdefs.Conflict) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	_ = h.Unpause(ctx, id)
	if k, err := h.Get(id); err != nil || k.Paused || !h.logGrows(id) {
		t.Errorf("after all: %+v, %v, or its log does not grow", k, err)
	}
}

func TestRestart(t *testing.T) {
	h := newHouse(t)
	ctx := context.Background()
	// With 0.1 s of patience it is killed: it does not listen.
	short := StopOptions{Timeout: func() *time.Duration { d := 100 * time.Millisecond; return &d }()}
	for _, rm := range []bool{false, true} {
		c := config("sh", "-c", "echo begin; exec sleep 1000")
		c.Name, c.AutoRemove = "again"+strconv.FormatBool(rm), rm
		id := h.detached(c)
		before, err := h.Get(id)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := h.Restart(ctx, c.Name, short); err != nil {
				t.Fatalf("rm=%v: %v", rm, err)
			}
		}
		after, err := h.Get(id)
		if err != nil || after.Status != Running || after.Pid == before.Pid || !after.StartedAt.After(before.StartedAt) {
			t.Errorf("rm=%v: %+v, %v; want it running as another process", rm, after, err)
		}
		for range 1000 {
			if strings.Count(h.logged(id), "begin\n") == 3 {
				break
			}
			time.Sleep(time.Millisecond)
		}
		if got := strings.Count(h.logged(id), "begin\n"); got != 3 {
			t.Errorf("rm=%v: it began %d times, want 3", rm, got)
		}
		if _, err := os.Stat(filepath.Join(h.stateDir(id), "restart")); err == nil {
			t.Errorf("rm=%v: the mark of the restart is left", rm)
		}
		if err := h.Stop(ctx, id, short.Timeout); err != nil {
			t.Error(err)
		}
		if !rm {
			if err := h.Restart(ctx, id, short); err != nil {
				t.Errorf("restart of what has ended: %v", err)
			}
			continue
		}
		for range 1000 {
			if _, err = h.Get(id); errdefs.Is(err, errdefs.NotFound) {
				break
			}
			time.Sleep(time.Millisecond)
		}
		if !errdefs.Is(err, errdefs.NotFound) {
			t.Errorf("a container made with --rm is here after its end: %v", err)
		}
	}
	if err := h.Restart(ctx, "nosuch", short); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("restart of nothing: %v", err)
	}
}

// TestRestartsAtOnce: restarts from several sides all succeed, one after the other.
func TestRestartsAtOnce(t *testing.T) {
	h := newHouse(t)
	now := time.Duration(0)
	c := config("sleep", "1000")
	c.AutoRemove = true
	id := h.detached(c)
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			if err := h.Restart(context.Background(), id, StopOptions{Timeout: &now}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if k, err := h.Get(id); err != nil || k.Status != Running {
		t.Errorf("after all restarts: %+v, %v", k, err)
	}
}

func TestRename(t *testing.T) {
	h := newHouse(t)
	ctx := context.Background()
	c := config("sleep", "1000")
	c.Name = "one"
	id := h.detached(c)
	other, err := h.Create(ctx, config("true"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Rename(ctx, "one", "two"); err != nil {
		t.Fatal(err)
	}
	if k, err := h.Get("two"); err != nil || k.ID != id || k.Config.Name != "two" {
		t.Errorf("by the new name: %+v, %v", k, err)
	}
	if _, err := h.Get("one"); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("by the old name: %v", err)
	}
	if err := h.Rename(ctx, other.ID, "one"); err != nil {
		t.Errorf("the old name is free: %v", err)
	}
	for _, x := range []struct {
		name string
		kind errdefs.Kind
	}{{"one", errdefs.AlreadyExists}, {"two", errdefs.InvalidArgument}, {"", errdefs.InvalidArgument}, {"a/b", errdefs.InvalidArgument}, {"x", errdefs.InvalidArgument}, {"-x", errdefs.InvalidArgument}} {
		if err := h.Rename(ctx, "two", x.name); !errdefs.Is(err, x.kind) {
			t.Errorf("rename to %q: %v, want %v", x.name, err, x.kind)
		}
	}
	if k, err := h.Get("two"); err != nil || k.ID != id {
		t.Errorf("after refused renames: %+v, %v", k, err)
	}
	// A rename that was killed before or after the record was written leaves two links; one is the record's.
	for _, link := range []string{"half", "done"} {
		if err := os.Symlink(id, h.namePath(link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Rename(ctx, other.ID, "half"); err != nil {
		t.Errorf("a name that was never given: %v", err)
	}
	if err := os.WriteFile(h.pendingPath(id), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := h.Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Get("done"); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("a link that was left, after the sweep: %v", err)
	}
	if k, err := h.Get("two"); err != nil || k.ID != id {
		t.Errorf("its own name, after the sweep: %+v, %v", k, err)
	}
	if k, err := h.Get("half"); err != nil || k.ID != other.ID {
		t.Errorf("the other's name, after the sweep: %+v, %v", k, err)
	}
}
