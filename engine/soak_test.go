package engine

import (
	"context"
	"os"
	"strconv"
	"sync"
	"testing"
)

// TestManyShortContainers runs many containers that end at once, eight at a time, with and without --rm, attached and
// detached: nothing is left, and the journal tells the whole life of each. ONGGI_SOAK_CONTAINERS says how many (make soak:
// 10,000), else there are 48.
func TestManyShortContainers(t *testing.T) {
	n := 48
	if s := os.Getenv("ONGGI_SOAK_CONTAINERS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	h := newHouse(t)
	ctx := context.Background()
	turns := make(chan struct{}, 8)
	var work sync.WaitGroup
	var mu sync.Mutex
	lives := map[string]string{} // by id: what is to be told
	for i := range n {
		work.Add(1)
		turns <- struct{}{}
		go func() {
			defer func() { <-turns; work.Done() }()
			c := config("sh", "-c", "exit "+strconv.Itoa(i%3))
			c.Network = "none"
			c.AutoRemove = i%2 == 0
			s, err := h.Run(ctx, c, nil, StartOptions{})
			if err != nil {
				t.Errorf("container %d: %v", i, err)
				return
			}
			id := s.Container.ID
			mu.Lock()
			lives[id] = "create start die:" + strconv.Itoa(i%3) + " destroy "
			mu.Unlock()
			if i%4 < 2 { // stay; the others leave the end to the monitor
				if x, err := h.Finish(ctx, s); err != nil || x.Code != i%3 {
					t.Errorf("container %d: %+v, %v", i, x, err)
				}
			} else if err := s.Client.Close(); err != nil {
				t.Error(err)
			}
			if !c.AutoRemove {
				if x, err := h.Wait(ctx, id); err != nil || x.Code != i%3 {
					t.Errorf("container %d: %+v, %v", i, x, err)
				}
				if err := h.Remove(ctx, id, true, true); err != nil {
					t.Errorf("container %d: %v", i, err)
				}
			}
		}()
	}
	work.Wait()
	waitFor(t, "the monitors' clean-ups", func() bool { l, err := h.List(true); return err == nil && len(l) == 0 })
	h.checkNothingLeft()
	if n > 1000 {
		return // the journal is bounded
	}
	told := map[string]string{}
	if err := h.Events(ctx, EventOptions{}, func(e *Event) error {
		if lives[e.ID] == "" {
			return nil
		}
		told[e.ID] += e.Action
		if e.Action == "die" {
			told[e.ID] += ":" + e.Attributes["exitCode"]
		}
		told[e.ID] += " "
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for id, want := range lives {
		if told[id] != want {
			t.Errorf("%s: got %q, want %q", id[:12], told[id], want)
		}
	}
}
