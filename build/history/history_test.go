package history

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/onggi/onggi/build/cache"
	"github.com/onggi/onggi/errdefs"
)

func newStore(t *testing.T) *Store {
	t.Helper()
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// ran remembers a run of slot "a" with these parts, at a time that the test chooses.
func (s *Store) ran(t *testing.T, at time.Time, build string, failed bool, parts ...cache.Part) *Run {
	t.Helper()
	r := &Run{Key: cache.Key(parts), Slot: "a", Name: "a", Build: build, At: at, Failed: failed, Parts: parts}
	if err := s.Seen(r); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(s.run(r), at, at); err != nil {
		t.Fatal(err)
	}
	return r
}

// TestNearest: the run with the fewest differences, the one used last of several.
func TestNearest(t *testing.T) {
	s, day := newStore(t), time.Unix(1e9, 0)
	parts := func(command, x, y string) []cache.Part {
		return []cache.Part{{Name: "command", Value: command}, {Name: "file x", Value: x}, {Name: "file y", Value: y}}
	}
	s.ran(t, day, "1", false, parts("make", "1", "1")...)
	s.ran(t, day.Add(time.Hour), "2", false, parts("make all", "1", "2")...)
	s.ran(t, day.Add(2*time.Hour), "3", true, parts("make", "2", "1")...)
	for _, c := range []struct {
		now  []cache.Part
		near string
		want []cache.Change
	}{
		{parts("make", "3", "1"), "3", []cache.Change{{Part: "file x", Was: "2", Now: "3"}}},
		{parts("make", "1", "1"), "1", nil},
		{parts("make all", "1", "2")[:2], "2", []cache.Change{{Part: "file y", Was: "2"}}},
		{parts("test", "1", "2"), "2", []cache.Change{{Part: "command", Was: "make all", Now: "test"}}},
	} {
		near, changes := s.Nearest(&Run{Slot: "a", Parts: c.now})
		if near == nil || near.Build != c.near || !slices.Equal(changes, c.want) {
			t.Errorf("%v: nearest %+v, changes %v; want %s, %v", c.now, near, changes, c.near, c.want)
		}
	}
	if near, _ := s.Nearest(&Run{Slot: "never"}); near != nil {
		t.Errorf("a slot that never was has %+v", near)
	}
	// Somewhere else in the stage only the same instruction counts.
	if near, changes := s.Nearest(&Run{Slot: "a", Place: "9", Parts: parts("make all", "5", "2")}); near == nil || near.Build != "2" || len(changes) != 1 {
		t.Errorf("an instruction that moved: %+v, %v", near, changes)
	}
	if near, _ := s.Nearest(&Run{Slot: "a", Place: "9", Parts: parts("new", "1", "1")}); near != nil {
		t.Errorf("a new instruction is compared with %+v", near)
	}
}

// TestSeen: a run is kept once; that it failed is corrected, and whether it did survives.
func TestSeen(t *testing.T) {
	s, day := newStore(t), time.Unix(1e9, 0)
	part := cache.Part{Name: "command", Value: "make"}
	r := s.ran(t, day, "1", true, part)
	if got := s.Run("a", r.Key); got == nil || !got.Failed || got.Build != "1" {
		t.Errorf("got %+v", got)
	}
	s.ran(t, day, "2", false, part)
	if got := s.Run("a", r.Key); got == nil || got.Failed || got.Build != "2" {
		t.Errorf("after a success: %+v", got)
	}
	s.ran(t, day, "3", false, part)
	if got := s.Run("a", r.Key); got == nil || got.Build != "2" {
		t.Errorf("a hit is no new run: %+v", got)
	}
	for i := range 2 * maxRuns {
		s.ran(t, day.Add(time.Duration(i)*time.Second), "x", false, cache.Part{Name: "command", Value: fmt.Sprint(i)})
	}
	if n := len(s.newest("a")); n > maxRuns+1 {
		t.Errorf("%d runs of one slot are kept", n)
	}
}

func (s *Store) built(t *testing.T, f func(*Record, *Log)) *Record {
	t.Helper()
	r := &Record{ID: NewID(), Context: ".", Started: time.Now()}
	l, err := s.Begin(r)
	if err != nil {
		t.Fatal(err)
	}
	if f != nil {
		f(r, l)
	}
	r.State = Completed
	if err := l.End(r); err != nil {
		t.Fatal(err)
	}
	return r
}

// TestRecord: a build is Running while its process lives, then what it came to, or Killed.
func TestRecord(t *testing.T) {
	s := newStore(t)
	if _, err := s.Get(""); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("nothing built: %v", err)
	}
	r := s.built(t, func(r *Record, l *Log) {
		if got, err := s.Get(r.ID[:5]); err != nil || got.State != Running {
			t.Errorf("while it runs: %+v, %v", got, err)
		}
		if err := s.Remove(r.ID); !errdefs.Is(err, errdefs.Conflict) {
			t.Errorf("removed while it runs: %v", err)
		}
		l.Write(1, time.Second, []byte("one\ntwo"))
		l.Write(2, 2*time.Second, nil)
		l.Write(2, 2*time.Second, []byte("3 4 5\n"))
	})
	if got, err := s.Get(""); err != nil || got.State != Completed || got.ID != r.ID {
		t.Errorf("got %+v, %v", got, err)
	}
	var out []string
	err := s.Output(r.ID, func(n int, at time.Duration, b []byte) error {
		out = append(out, fmt.Sprint(n, at, string(b)))
		return nil
	})
	if want := []string{"1 1sone\ntwo", "2 2s3 4 5\n"}; err != nil || !slices.Equal(out, want) {
		t.Errorf("got %q, %v, want %q", out, err, want)
	}
	stop := errors.New("enough")
	if err := s.Output(r.ID, func(int, time.Duration, []byte) error { return stop }); err != stop {
		t.Errorf("got %v", err)
	}
	killed := &Record{ID: NewID()}
	l, err := s.Begin(killed)
	if err != nil {
		t.Fatal(err)
	}
	_ = l.f.Close() // the kernel does this for a process that dies
	if got, err := s.Get(killed.ID); err != nil || got.State != Killed {
		t.Errorf("got %+v, %v", got, err)
	}
	if err := s.Remove(r.ID); err != nil {
		t.Error(err)
	}
	if _, err := s.Get(r.ID); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("after its removal: %v", err)
	}
	for _, bad := range []string{"../x", "zz", strings.Repeat("0", 40)} {
		if _, err := s.Get(bad); !errdefs.Is(err, errdefs.NotFound) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestBounds: output beyond MaxLog is cut, and old builds and runs go.
func TestBounds(t *testing.T) {
	s, day := newStore(t), time.Unix(1e9, 0)
	r := s.built(t, func(_ *Record, l *Log) {
		for range 20 {
			l.Write(1, 0, make([]byte, MaxLog/16))
		}
	})
	n := 0
	if err := s.Output(r.ID, func(_ int, _ time.Duration, b []byte) error { n += len(b); return nil }); err != nil || n != MaxLog || !r.Cut {
		t.Errorf("%d bytes were kept, cut %v, %v", n, r.Cut, err)
	}
	old := s.ran(t, day, "1", false, cache.Part{Name: "command", Value: "old"})
	for range MaxBuilds + slack {
		s.built(t, nil)
	}
	rs, err := s.List()
	if err != nil || len(rs) > MaxBuilds+slack || len(rs) < MaxBuilds {
		t.Errorf("%d builds are kept, %v", len(rs), err)
	}
	if _, err := s.Get(r.ID); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("the oldest build is still there: %v", err)
	}
	if s.Run("a", old.Key) != nil {
		t.Error("a run that no build has used since is still there")
	}
}

// TestKept: a kept step is released without changing the build's place in the list.
func TestKept(t *testing.T) {
	s := newStore(t)
	r := s.built(t, func(r *Record, _ *Log) { r.Kept = &Kept{Step: 3, Container: "c", Scene: []byte(`{}`)} })
	s.built(t, nil)
	if kept, err := s.Kept(); err != nil || len(kept) != 1 || kept[0].Kept.Container != "c" {
		t.Fatalf("got %v, %v", kept, err)
	}
	before, _ := s.entries()
	if err := errors.Join(s.Release(r.ID), s.Release(r.ID)); err != nil {
		t.Fatal(err)
	}
	after, _ := s.entries()
	if kept, err := s.Kept(); err != nil || len(kept) != 0 || !slices.Equal(before, after) {
		t.Errorf("got %v, %v; %v, %v", kept, err, before, after)
	}
}
