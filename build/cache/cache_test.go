package cache

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/onggi/onggi/errdefs"
	digest "github.com/opencontainers/go-digest"
	"pgregory.net/rapid"
)

func store(t *testing.T) *Store {
	t.Helper()
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// step makes a record of parts and layers ("name:size").
func step(slot string, layers map[string]int64, parts ...Part) *Record {
	r := &Record{Slot: slot, Name: slot, Parts: parts, Key: Key(parts), Created: time.Now(), Own: 1}
	var out []Layer
	for n, size := range layers {
		out = append(out, Layer{DiffID: digest.FromString(n), Size: size})
	}
	slices.SortFunc(out, func(a, b Layer) int { return int(a.Size - b.Size) })
	r.Outputs = [][]Layer{out}
	return r
}

func put(t *testing.T, s *Store, r *Record, used time.Time) {
	t.Helper()
	if err := s.Put(r); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(s.path(r.Key), used, used); err != nil {
		t.Fatal(err)
	}
}

// TestKey: no two lists of parts have one key.
func TestKey(t *testing.T) {
	part := rapid.Custom(func(t *rapid.T) Part {
		return Part{rapid.StringOfN(rapid.RuneFrom([]rune("a 1\n")), 0, 4, -1).Draw(t, "name"), rapid.StringOfN(rapid.RuneFrom([]rune("a 1\n")), 0, 4, -1).Draw(t, "value")}
	})
	rapid.Check(t, func(t *rapid.T) {
		a, b := rapid.SliceOfN(part, 0, 3).Draw(t, "a"), rapid.SliceOfN(part, 0, 3).Draw(t, "b")
		if (Key(a) == Key(b)) != slices.Equal(a, b) {
			t.Fatalf("%q and %q", a, b)
		}
	})
}

func TestPutGetRemove(t *testing.T) {
	s := store(t)
	r := step("x", map[string]int64{"l": 5}, Part{"command", "make"})
	if _, err := s.Get(r.Key); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("before it is there: %v", err)
	}
	put(t, s, r, time.Unix(1000, 0))
	got, err := s.Get(r.Key)
	if err != nil || got.Name != "x" || got.Outputs[0][0].Size != 5 {
		t.Fatalf("%+v, %v", got, err)
	}
	if again, err := s.Get(r.Key); err != nil || time.Since(again.Used) > time.Minute {
		t.Errorf("a use is not marked: %v, %v", again.Used, err)
	}
	if err := s.Remove(r.Key); err != nil {
		t.Error(err)
	}
	if err := s.Remove(r.Key); err != nil {
		t.Error(err)
	}
	if _, err := s.Get(r.Key); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("after it is gone: %v", err)
	}
	if _, err := s.Get("sha256:../../etc"); !errdefs.Is(err, errdefs.InvalidArgument) {
		t.Errorf("a key that is a path: %v", err)
	}
	if err := s.Put(&Record{Key: r.Key}); err == nil {
		t.Error("a record under another's key is kept")
	}
}

// TestBrokenRecords: what a crash or somebody else has left is no hit and no failure.
func TestBrokenRecords(t *testing.T) {
	s := store(t)
	r := step("x", nil, Part{"command", "make"})
	for _, text := range []string{"", "{", `{"key":"` + string(r.Key) + `"}`, `[]`} {
		if err := os.WriteFile(s.path(r.Key), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if l, err := s.List(); err != nil || len(l) != 0 {
			t.Errorf("%q is listed: %v, %v", text, l, err)
		}
		if _, err := s.Get(r.Key); !errdefs.Is(err, errdefs.NotFound) {
			t.Errorf("%q: %v", text, err)
		}
		if _, err := os.Stat(s.path(r.Key)); err == nil {
			t.Errorf("%q stays", text)
		}
	}
	old := filepath.Join(s.dir, "steps", ".new-1")
	if err := os.WriteFile(old, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	past := time.Now().Add(-2 * draft)
	if err := os.Chtimes(old, past, past); err != nil {
		t.Fatal(err)
	}
	if _, err := s.List(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(old); err == nil {
		t.Error("a dead process's draft stays")
	}
}

func TestPruneAndRoots(t *testing.T) {
	s := store(t)
	at := func(n int64) time.Time { return time.Unix(1e9+n, 0) }
	a := step("a", map[string]int64{"shared": 10, "a": 20}, Part{"command", "a"})
	b := step("b", map[string]int64{"shared": 10, "b": 30}, Part{"command", "b"})
	c := step("c", map[string]int64{"c": 40, "held": 1000}, Part{"command", "c"})
	put(t, s, a, at(1))
	put(t, s, b, at(2))
	put(t, s, c, at(3))
	held := func(d digest.Digest) bool { return d == digest.FromString("held") }
	if n, err := s.Usage(held); err != nil || n != 100 {
		t.Errorf("usage %d, %v, want 100", n, err)
	}
	layers, _, err := s.Roots()
	if err != nil || len(layers) != 5 {
		t.Errorf("roots: %v, %v", layers, err)
	}
	for _, x := range []struct {
		limit int64
		since time.Time
		want  []string
	}{{100, at(9), nil}, {80, at(0), nil}, {80, at(9), []string{"a"}}, {79, at(9), []string{"b"}}, {0, at(9), []string{"c"}}} {
		gone, err := s.Prune(x.limit, x.since, held)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, g := range gone {
			names = append(names, g.Name)
		}
		if !slices.Equal(names, x.want) {
			t.Errorf("to %d bytes: %v went, want %v", x.limit, names, x.want)
		}
	}
	if layers, _, _ := s.Roots(); len(layers) != 0 {
		t.Errorf("an empty cache needs %v", layers)
	}
}

func TestLock(t *testing.T) {
	s := store(t)
	key := Key(nil)
	l, err := s.Lock(context.Background(), key)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := s.Lock(ctx, key); err == nil {
		t.Error("two hold one lock")
	}
	done := make(chan error)
	go func() {
		l, err := s.Lock(context.Background(), key)
		if err == nil {
			err = l.Close()
		}
		done <- err
	}()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
