package engine

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/onggi/onggi/runtime/monitor"
)

func TestNextPause(t *testing.T) {
	var p time.Duration
	var got []time.Duration
	for range 12 {
		p = nextPause(p, time.Second)
		got = append(got, p)
	}
	ms := time.Millisecond
	want := []time.Duration{100 * ms, 200 * ms, 400 * ms, 800 * ms, 1600 * ms, 3200 * ms, 6400 * ms, 12800 * ms, 25600 * ms, 51200 * ms, time.Minute, time.Minute}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("pause %d: got %v, want %v", i, got[i], want[i])
		}
	}
	if p := nextPause(time.Minute, 10*time.Second); p != 100*ms {
		t.Errorf("after ten seconds: got %v, want 100ms", p)
	}
}

func TestWantsRestart(t *testing.T) {
	for _, c := range []struct {
		policy    RestartPolicy
		code      int
		count     int
		stopped   bool
		unhealthy string
		want      bool
	}{
		{RestartPolicy{}, 1, 0, false, "", false},
		{RestartPolicy{Name: "no"}, 1, 0, false, "", false},
		{RestartPolicy{Name: "always"}, 0, 99, false, "", true},
		{RestartPolicy{Name: "always"}, 0, 0, true, "", false},
		{RestartPolicy{Name: "unless-stopped"}, 1, 0, false, "", true},
		{RestartPolicy{Name: "unless-stopped"}, 1, 0, true, "", false},
		{RestartPolicy{Name: "on-failure"}, 0, 0, false, "", false},
		{RestartPolicy{Name: "on-failure"}, 1, 99, false, "", true},
		{RestartPolicy{Name: "on-failure", Max: 2}, 1, 1, false, "", true},
		{RestartPolicy{Name: "on-failure", Max: 2}, 1, 2, false, "", false},
		{RestartPolicy{Name: "on-failure"}, 137, 0, true, "", false},
		{RestartPolicy{}, 0, 0, false, "restart", true},
		{RestartPolicy{}, 0, 0, true, "restart", false},
		{RestartPolicy{Name: "always"}, 0, 0, false, "stop", false},
	} {
		r := &record{Container: Container{Exit: &monitor.Exit{Code: c.code, Unhealthy: c.unhealthy}, RestartCount: c.count}, Stopped: c.stopped}
		r.Config.Restart = c.policy
		if got := r.wantsRestart(); got != c.want {
			t.Errorf("%+v: got %v, want %v", c, got, c.want)
		}
	}
}

// TestSleeperIsKilled kills who sleeps for a container: the next command finds that out and starts another one; and one whose
// file is removed ends by itself.
func TestSleeperIsKilled(t *testing.T) {
	h := newHouse(t)
	e := h.Engine
	c := config("sh", "-c", "test -e /again && exec sleep 1000; touch /again; exit 1")
	c.Restart = RestartPolicy{Name: "always"}
	ctx := context.Background()
	k, err := e.Create(ctx, c, nil)
	if err != nil {
		t.Fatal(err)
	}
	hd, err := e.lock(ctx, k.ID)
	if err != nil {
		t.Fatal(err)
	}
	// As if it had run for the tenth time: it rests for long.
	at := now()
	hd.rec.Rest, hd.rec.Exit = 30*time.Second, &monitor.Exit{Code: 1, StartedAt: at, FinishedAt: at}
	if err := hd.rest(); err != nil {
		t.Fatal(err)
	}
	if err := hd.wake(hd.rec.Rest); err != nil {
		t.Fatal(err)
	}
	hd.unlock()
	path := e.restsPath(k.ID)
	eventually(t, "a sleeper", func() bool { return monitor.Asleep(path) })
	kill := func() {
		for _, pid := range sleepers(t, path) {
			p, err := os.FindProcess(pid)
			if err == nil {
				_ = p.Kill()
			}
		}
	}
	kill()
	eventually(t, "nobody asleep", func() bool { return !monitor.Asleep(path) })
	// Its time has come, and nobody starts it.
	late := time.Now().Add(-3 * time.Second)
	if err := os.Chtimes(path, late, late); err != nil {
		t.Fatal(err)
	}
	e.sweepInterrupted(ctx)
	eventually(t, "the next run", func() bool {
		got, err := e.Get(k.ID)
		return err == nil && got.Status != Restarting || err == nil && got.RestartCount > 1
	})
	if err := e.Remove(ctx, k.ID, true, true); err != nil {
		t.Fatal(err)
	}
	eventually(t, "no sleeper left", func() bool { return len(sleepers(t, path)) == 0 })
}

// sleepers are the processes that sleep behind a file.
func sleepers(t *testing.T, path string) (pids []int) {
	t.Helper()
	list, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list {
		b, err := os.ReadFile(p)
		if err == nil && strings.Contains(string(b), "--sleep\x00"+path+"\x00") {
			pids = append(pids, atoi(filepath.Base(filepath.Dir(p))))
		}
	}
	return pids
}

func atoi(s string) (n int) {
	for _, c := range s {
		n = 10*n + int(c-'0')
	}
	return n
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: did not come", what)
		}
	}
}
