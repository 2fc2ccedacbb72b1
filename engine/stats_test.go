package engine

import (
	"context"
	"errors"
	"os/exec"
	"testing"
	"time"

	"github.com/onggi/onggi/errdefs"
)

func TestSample(t *testing.T) {
	h := newHouse(t)
	ctx := context.Background()
	busy := config("sh", "-c", "while :; do :; done")
	busy.Name, busy.PidsLimit, busy.Memory, busy.Network = "busy", 50, 64<<20, "bridge"
	id := h.detached(busy)
	idle := h.detached(config("sleep", "1000"))
	ended := h.detached(config("true"))
	if _, err := h.Wait(ctx, ended); err != nil {
		t.Fatal(err)
	}
	before, err := h.Sample(ctx, []string{"busy", idle}, false)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond)
	after, err := h.Sample(ctx, []string{"busy", idle}, false)
	if err != nil {
		t.Fatal(err)
	}
	b, i := after[0], after[1]
	if b.ID != id || b.Name != "busy" || !b.Running || b.MemoryLimit != 64<<20 || b.PidsLimit != 50 || b.Pids != 1 || b.Memory == 0 || b.Memory > 64<<20 {
		t.Errorf("busy: %+v", b)
	}
	// How much of a processor it gets is the host's affair; that it is more than the sleeper, and what we sum, is ours.
	if p := b.CPUPercent(before[0]); p <= 0 || p > 100*float64(b.OnlineCPUs)+5 {
		t.Errorf("busy: %.2f %% of a processor", p)
	}
	if p := i.CPUPercent(before[1]); p > 5 || i.Pids != 1 || i.MemoryLimit <= 64<<20 || i.PidsLimit != 0 {
		t.Errorf("idle: %.2f %%, %+v", p, i)
	}
	if b.CPUPercent(nil) <= 0 || b.MemoryPercent() <= 0 || b.MemoryPercent() > 100 {
		t.Errorf("percentages: %f, %f", b.CPUPercent(nil), b.MemoryPercent())
	}
	all, err := h.Sample(ctx, nil, true)
	if err != nil || len(all) != 3 || all[0].ID != ended || all[0].Running || all[0].CPUPercent(nil) != 0 {
		t.Errorf("all: %+v, %v", all, err)
	}
	if running, err := h.Sample(ctx, nil, false); err != nil || len(running) != 2 {
		t.Errorf("running: %d, %v; want 2", len(running), err)
	}
	if _, err := h.Sample(ctx, []string{"nosuch"}, false); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("of nothing: %v, want not found", err)
	}
	// What the network carries is counted.
	argv, err := h.ExecCommand(ctx, id, ExecConfig{Args: []string{"sh", "-c", "nc -w 1 $(ip route | grep default | { read a b c d; echo $c; }) 9 < /dev/null"}})
	if err != nil {
		t.Fatal(err)
	}
	_ = exec.Command(argv[0], argv[1:]...).Run() // refused: packets are sent all the same
	waitFor(t, "bytes on the network", func() bool {
		s, err := h.Sample(ctx, []string{id}, false)
		return err == nil && s[0].NetTx > 0
	})
	// Watching goes on until it is told to stop, and over a container's end.
	enough := errors.New("enough")
	rounds := 0
	err = h.Watch(ctx, []string{id, idle}, false, time.Millisecond, func(list []*Sample) error {
		switch rounds++; rounds {
		case 2:
			if err := h.Remove(ctx, idle, true, false); err != nil {
				t.Error(err)
			}
		case 4:
			if len(list) != 1 || list[0].ID != id {
				t.Errorf("after one is gone: %+v", list)
			}
			return enough
		}
		return nil
	})
	if err != enough {
		t.Errorf("watch: %v", err)
	}
}
