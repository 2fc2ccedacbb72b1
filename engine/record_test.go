package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/runtime/monitor"
	"github.com/onggi/onggi/spec"
)

func testEngine(t *testing.T) *Engine {
	t.Helper()
	dir := t.TempDir()
	e, err := Open(Options{Root: filepath.Join(dir, "root"), RunRoot: filepath.Join(dir, "run"), CgroupParent: fmt.Sprintf("/onggi-test-%d", os.Getpid())})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// testRecord makes a container's record without image and snapshot, and gives its lock back.
func testRecord(t *testing.T, e *Engine, name string, s Status) *record {
	t.Helper()
	c, err := normalize(Config{Name: name, Image: "none", Config: spec.Config{Network: "none"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.make(); err != nil {
		t.Fatal(err)
	}
	h, err := e.record(newID(), c, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	defer h.unlock()
	h.rec.Status = s
	if err := h.write(false); err != nil {
		t.Fatal(err)
	}
	if s != Creating && s != Removing {
		if err := h.settle(); err != nil {
			t.Fatal(err)
		}
	}
	return h.rec
}

func TestOpenChangesNothingAndReadsAnEmptyStore(t *testing.T) {
	e := testEngine(t)
	if l, err := e.List(true); err != nil || len(l) != 0 {
		t.Errorf("list of an empty store: %v, %v", l, err)
	}
	if _, err := e.Get("nobody"); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("get in an empty store: %v, want not found", err)
	}
	if err := e.Sweep(context.Background()); err != nil {
		t.Errorf("sweep of an empty store: %v", err)
	}
	if _, err := os.Stat(e.o.Root); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("reading made %s", e.o.Root)
	}
}

func TestNewerStoreIsRefused(t *testing.T) {
	e := testEngine(t)
	if err := e.make(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(e.o); err != nil {
		t.Fatalf("our own store: %v", err)
	}
	for _, v := range []string{"2\n", "x", ""} {
		if err := os.WriteFile(e.versionPath(), []byte(v), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(e.o); !errdefs.Is(err, errdefs.Unsupported) {
			t.Errorf("version %q: %v, want unsupported", v, err)
		}
	}
}

func TestRecordRoundTrip(t *testing.T) {
	adj := -5
	r := &record{
		Container: Container{
			ID: newID(), Status: Created, Created: now(), Volumes: map[string]string{"/a": "b"},
			Config: Config{Name: "n", Image: "i", AutoRemove: true, Config: spec.Config{Args: []string{"sh"}, OomScoreAdj: &adj, Network: "bridge"}},
		},
		Anonymous: []string{"x"}, CgroupPath: "/c",
	}
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	got := &record{}
	if err := json.Unmarshal(b, got); err != nil || !reflect.DeepEqual(got, r) {
		t.Errorf("got %+v (%v), want %+v", got, err, r)
	}
}

func TestFind(t *testing.T) {
	e := testEngine(t)
	a, b := testRecord(t, e, "first", Created), testRecord(t, e, "second", Created)
	// A name that looks like an id's prefix wins over it.
	c := testRecord(t, e, a.ID[:12], Created)
	for _, x := range []struct{ ask, want string }{
		{a.ID, a.ID}, {"first", a.ID}, {"/first", a.ID}, {"second", b.ID}, {b.ID[:12], b.ID}, {a.ID[:12], c.ID}, {a.ID[:13], a.ID},
	} {
		if got, err := e.find(x.ask); err != nil || got != x.want {
			t.Errorf("find %s: got %s, %v; want %s", x.ask, got, err, x.want)
		}
	}
	for _, ask := range []string{"", "third", "..", "../containers", strings.Repeat("f", 64), "zz"} {
		if got, err := e.find(ask); !errdefs.Is(err, errdefs.NotFound) {
			t.Errorf("find %q: got %s, %v; want not found", ask, got, err)
		}
	}
	for range 16 { // more than 16 ids: two begin with one digit
		testRecord(t, e, "", Created)
	}
	ambiguous := 0
	for _, d := range "0123456789abcdef" {
		if _, err := e.find(string(d)); errdefs.Is(err, errdefs.Conflict) {
			ambiguous++
		}
	}
	if ambiguous == 0 {
		t.Error("no prefix of one digit is ambiguous among 19 containers")
	}
}

func TestNames(t *testing.T) {
	e := testEngine(t)
	r := testRecord(t, e, "web", Created)
	c, _ := normalize(Config{Name: "web", Image: "none"})
	_, err := e.record(newID(), c, nil, false)
	if !errdefs.Is(err, errdefs.AlreadyExists) || !strings.Contains(err.Error(), r.ID[:12]) {
		t.Errorf("a taken name: %v, want already exists with the owner's id", err)
	}
	if ids, _ := e.ids(); len(ids) != 1 {
		t.Errorf("the refused container left something: %v", ids)
	}
	if left, _ := idsIn(e.pendingDir()); len(left) != 0 {
		t.Errorf("the refused container left a marker: %v", left)
	}
	for _, bad := range []string{"a", "-ab", "a/b", "a b", ".ab", "ü-umlaut", strings.Repeat("x", 300)} {
		if _, err := normalize(Config{Name: bad}); !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("name %q: %v, want invalid", bad, err)
		}
	}
	// A name whose container is gone can be taken.
	if err := os.RemoveAll(e.stateDir(r.ID)); err != nil {
		t.Fatal(err)
	}
	if again := testRecord(t, e, "web", Created); again.ID == r.ID {
		t.Error("the same id twice")
	}
}

func TestManyWantOneName(t *testing.T) {
	e := testEngine(t)
	if err := e.make(); err != nil {
		t.Fatal(err)
	}
	// A dangling link makes it harder.
	if err := os.Symlink(newID(), e.namePath("prize")); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	errs := make([]error, 20)
	for i := range errs {
		wg.Go(func() {
			c, _ := normalize(Config{Name: "prize", Image: "none"})
			h, err := e.record(newID(), c, nil, false)
			errs[i] = err
			h.unlock()
		})
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		} else if !errdefs.Is(err, errdefs.AlreadyExists) {
			t.Errorf("a loser got %v", err)
		}
	}
	ids, _ := e.ids()
	if won != 1 || len(ids) != 1 {
		t.Errorf("%d of 20 got the name, %d containers are there; want 1 and 1", won, len(ids))
	}
}

func TestLock(t *testing.T) {
	e := testEngine(t)
	r := testRecord(t, e, "one", Created)
	h, err := e.lock(context.Background(), "one")
	if err != nil {
		t.Fatal(err)
	}
	if again, err := e.tryLock(r.ID); again != nil || err != nil {
		t.Errorf("a second lock: %v, %v; want none", again, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := e.lock(ctx, "one"); !errdefs.Is(err, errdefs.DeadlineExceeded) {
		t.Errorf("waiting beyond the context: %v, want deadline exceeded", err)
	}
	got := make(chan error)
	go func() {
		waiter, err := e.lock(context.Background(), "one")
		waiter.unlock()
		got <- err
	}()
	if err := h.erase(); err != nil {
		t.Fatal(err)
	}
	h.unlock()
	if err := <-got; !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("a waiter for a removed container: %v, want not found", err)
	}
}

func TestEffectiveStatus(t *testing.T) {
	e := testEngine(t)
	for _, c := range []struct {
		name   string
		rundir bool
		exit   *monitor.Exit
		want   Status
		code   int
	}{
		{"after a reboot", false, nil, Exited, 255},
		{"its monitor was killed", true, nil, Dead, 137},
		{"ended", true, &monitor.Exit{Code: 3}, Exited, 3},
	} {
		r := testRecord(t, e, "", Running)
		if c.rundir {
			if err := os.MkdirAll(e.runDir(r.ID), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if c.exit != nil {
			b, _ := json.Marshal(c.exit)
			if err := os.WriteFile(filepath.Join(e.stateDir(r.ID), "exit.json"), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		got, err := e.Get(r.ID)
		if err != nil || got.Status != c.want || got.Exit == nil || got.Exit.Code != c.code {
			t.Errorf("%s: got %+v, %v; want %s and code %d", c.name, got, err, c.want, c.code)
		}
	}
}

func TestCorruptRecord(t *testing.T) {
	e := testEngine(t)
	r := testRecord(t, e, "one", Created)
	for _, text := range []string{"", "{", `{"id":"other"}`, "[]"} {
		if err := os.WriteFile(e.statePath(r.ID), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := e.Get("one"); !errdefs.Is(err, errdefs.Corrupt) || errdefs.FixOf(err) == "" {
			t.Errorf("record %q: %v, want corrupt, with a fix", text, err)
		}
	}
	f, err := os.Create(e.statePath(r.ID))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(maxState + 1); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	if _, err := e.Get("one"); !errdefs.Is(err, errdefs.Exhausted) {
		t.Errorf("a huge record: %v, want exhausted", err)
	}
}

func FuzzRecord(f *testing.F) {
	f.Add(`{"id":"x","config":{"name":"a"},"created":"2026-01-01T00:00:00Z","status":"running"}`)
	f.Add(`{"id":1}`)
	f.Fuzz(func(t *testing.T, s string) {
		var r record
		_ = json.Unmarshal([]byte(s), &r)
	})
}

func TestRandomNames(t *testing.T) {
	seen := map[string]bool{}
	for i := range 200 {
		n := randomName(i % 8)
		if !validName(n) {
			t.Errorf("name %q is not valid", n)
		}
		seen[n] = true
	}
	if len(seen) < 100 {
		t.Errorf("%d different names of 200", len(seen))
	}
}

func TestNormalizeRefuses(t *testing.T) {
	for _, c := range []struct {
		want string
		c    Config
	}{
		{"--pull", Config{Pull: "sometimes"}},
		{"--log-driver", Config{Log: monitor.LogConfig{Driver: "syslog"}}},
		{"--log-opt", Config{Log: monitor.LogConfig{MaxSize: -1}}},
		{"--stop-signal", Config{Config: spec.Config{StopSignal: "BOOM"}}},
		{"--init", Config{Config: spec.Config{Init: true}, Runtime: []string{"runc"}}},
		{"--label", Config{Config: spec.Config{Labels: map[string]string{"": "x"}}}},
	} {
		if _, err := normalize(c.c); !errdefs.Is(err, errdefs.InvalidArgument) || !strings.Contains(err.Error(), c.want) || errdefs.FixOf(err) == "" {
			t.Errorf("%+v: got %v, want an invalid argument that names %s and gives a fix", c.c, err, c.want)
		}
	}
}

// What `run --rm` makes has its record in the run root. When that is lost, as by a reboot, the first command that
// changes something removes what is left of it on the disk.
func TestPassingRecord(t *testing.T) {
	h := newHouse(t)
	ctx := context.Background()
	c := config("sh", "-c", "echo said; sleep 1000")
	c.AutoRemove, c.Name, c.Network = true, "passing", "none"
	c.Mounts = []spec.Mount{{Type: "volume", Target: "/data"}}
	id := h.detached(c)
	if dir := h.stateDir(id); filepath.Dir(dir) != h.passingDir() {
		t.Errorf("its record is in %s", dir)
	}
	if l, err := h.List(false); err != nil || len(l) != 1 || l[0].ID != id {
		t.Errorf("list: %v, %v", l, err)
	}
	if k, err := h.Get(id[:10]); err != nil || k.LogPath != h.passingLogPath(id) || !exists(k.LogPath) {
		t.Errorf("get: %+v, %v", k, err)
	}
	// A second name of the same kind is refused, although the two records lie in different places.
	lasting := config("true")
	lasting.Name = "passing"
	if _, err := h.Create(ctx, lasting, nil); !errdefs.Is(err, errdefs.AlreadyExists) {
		t.Errorf("the name again: %v, want already-exists", err)
	}
	if err := os.WriteFile(h.passingLogPath(id)+".1", nil, 0o600); err != nil { // as if rotated
		t.Fatal(err)
	}
	if err := h.Remove(ctx, id, true, true); err != nil {
		t.Error(err)
	}
	h.checkNothingLeft()

	id = h.detached(c)
	// The host goes down: first the monitor, so that it cannot clean up.
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		if b, _ := os.ReadFile(p); strings.Contains(string(b), "monitor") && strings.Contains(string(b), id) {
			pid, _ := strconv.Atoi(strings.Split(p, "/")[2])
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	waitFor(t, "the monitor to end", func() bool { return !monitor.Alive(h.runDir(id)) })
	lost, err := h.lock(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	if err := lost.killAll(); err != nil {
		t.Fatal(err)
	}
	lost.unlock()
	if err := os.RemoveAll(h.o.RunRoot); err != nil {
		t.Fatal(err)
	}
	k, err := h.Create(ctx, lasting, nil) // the name is free again
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Remove(ctx, k.ID, false, true); err != nil {
		t.Error(err)
	}
	if exists(h.passingLogPath(id)) || exists(filepath.Join(h.snapshotsDir(), "containers", id)) {
		t.Error("what the lost container left is still there")
	}
	h.checkNothingLeft()
}
