package monitor

import (
	"bufio"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/onggi/onggi/errdefs"
	"golang.org/x/sys/unix"
)

// clientProcess is a client that goes as far as step and waits to be killed.
func clientProcess(config, step string) {
	ctx := context.Background()
	b, err := os.ReadFile(config)
	if err != nil {
		os.Exit(1)
	}
	cfg := &Config{}
	if err := json.Unmarshal(b, cfg); err != nil {
		os.Exit(1)
	}
	self, _ := os.Executable()
	c, err := Spawn(ctx, cfg, SpawnOptions{Binary: self})
	do := func(at string, f func() error) {
		if err == nil {
			err = f()
		}
		if err != nil {
			println(err.Error())
			os.Exit(1)
		}
		if at == step {
			_, _ = os.Stdout.WriteString("here\n")
			time.Sleep(time.Hour)
		}
	}
	do("spawned", func() error { return nil })
	do("created", func() error { _, err := c.Created(ctx); return err })
	do("mine", func() error { return c.Mine(ctx) })
	do("started", func() error { _, _, err := c.Start(ctx); return err })
	do("exited", func() error { _, err := c.Wait(ctx); return err })
}

// TestKilledClient kills the client at each step. Before the start the container goes with it; after that it lives on;
// in the end somebody has cleaned up.
func TestKilledClient(t *testing.T) {
	for _, c := range []struct {
		step  string
		spec  fakeSpec
		lives bool
		error bool
	}{
		{"spawned", fakeSpec{Args: []string{"sleep", "1000"}, Slow: time.Hour}, false, true},
		{"created", fakeSpec{Args: []string{"sleep", "1000"}}, false, true},
		{"mine", fakeSpec{Args: []string{"sleep", "1000"}}, false, true},
		{"started", fakeSpec{Args: []string{"sleep", "1000"}}, true, false},
		{"exited", fakeSpec{Args: []string{"true"}}, false, false},
	} {
		t.Run(c.step, func(t *testing.T) {
			b := newBox(t)
			b.set(c.spec)
			j, _ := json.Marshal(b.cfg)
			if err := os.WriteFile(b.dir+"/config", j, 0o600); err != nil {
				t.Fatal(err)
			}
			self, _ := os.Executable()
			cmd := exec.Command(self, "client", b.dir+"/config", c.step)
			cmd.Stderr = os.Stderr
			out, _ := cmd.StdoutPipe()
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if l, err := bufio.NewReader(out).ReadString('\n'); err != nil {
				t.Fatalf("the client did not come to %s: %q, %v", c.step, l, err)
			}
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			if c.lives {
				time.Sleep(50 * time.Millisecond)
				cl, err := Dial(ctx(t), b.cfg.RunDir)
				if err != nil {
					t.Fatalf("the container did not live on: %v", err)
				}
				if err := cl.Signal(ctx(t), 9); err != nil {
					t.Error(err)
				}
				b.wait(cl)
				_ = cl.Close()
			}
			eventually(t, "cleaned up", func() bool { return b.has("cleaned") })
			e, err := ReadExit(b.cfg.StateDir)
			if err != nil || (e.Error != "") != c.error {
				t.Errorf("got %+v, %v", e, err)
			}
			if pid := b.pid(); pid > 0 && unix.Kill(pid, 0) == nil {
				t.Errorf("process %d is left", pid)
			}
			if b.pid() > 0 && !b.has("bundle/deleted") {
				t.Error("the runtime's state is left")
			}
		})
	}
}

// TestKilledMonitor kills the monitor at each step: its clients learn it at once, and the lock is free.
func TestKilledMonitor(t *testing.T) {
	for _, step := range []string{"spawned", "created", "started"} {
		t.Run(step, func(t *testing.T) {
			b := newBox(t, "sleep", "1000")
			if step == "spawned" {
				b.set(fakeSpec{Slow: time.Hour})
			}
			out, stdout := capture(t)
			c := b.spawn(nil, out)
			var err error
			mon := 0
			if step == "spawned" {
				eventually(t, "locked", func() bool { return Alive(b.cfg.RunDir) })
				mon = spawned(t)
			} else {
				if _, err = c.Created(ctx(t)); err != nil {
					t.Fatal(err)
				}
				mon = b.monitor()
			}
			if step == "started" {
				if _, _, err = c.Start(ctx(t)); err != nil {
					t.Fatal(err)
				}
			}
			if err := unix.Kill(mon, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			switch step {
			case "spawned":
				_, err = c.Created(ctx(t))
			case "created":
				_, _, err = c.Start(ctx(t))
			case "started":
				_, err = c.Wait(ctx(t))
			}
			if !errdefs.Is(err, errdefs.Unavailable) {
				t.Errorf("got %v, want unavailable", err)
			}
			eventually(t, "the lock is free", func() bool { return !Alive(b.cfg.RunDir) })
			if _, err := ReadExit(b.cfg.StateDir); !errdefs.Is(err, errdefs.NotFound) {
				t.Errorf("ReadExit: got %v, want not-found", err)
			}
			if pid := b.pid(); pid > 0 {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
			stdout()
			// The next monitor starts where a dead one has left its files.
			_ = os.Remove(b.cfg.Bundle + "/pid")
			b.set(fakeSpec{Args: []string{"true"}})
			if e := b.wait(b.start()); e.Code != 0 {
				t.Errorf("after a restart: %+v", e)
			}
		})
	}
}

// spawned is the newest child of this process: a monitor that has made nothing yet.
func spawned(t *testing.T) int {
	t.Helper()
	out, err := exec.Command("pgrep", "-n", "-P", strconv.Itoa(os.Getpid()), "-f", "monitor --config").Output()
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}
