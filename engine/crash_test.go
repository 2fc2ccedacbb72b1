package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/onggi/onggi/undo"
)

// cli is the engine in a process of its own.
func (h *house) cli(env []string, command string, arg any) *exec.Cmd {
	h.t.Helper()
	s, ok := arg.(string)
	if !ok {
		b, err := json.Marshal(arg)
		if err != nil {
			h.t.Fatal(err)
		}
		s = string(b)
	}
	c := exec.Command(h.opts.Self[0], append(append([]string{}, h.opts.Self[1:]...), command, s)...)
	c.Env = append(os.Environ(), env...)
	return c
}

// The steps of doc/walk.md. A step that is not here fails the test, and so does one that is never met.
var (
	runSteps = []string{"run.record", "run.image", "run.snapshot", "run.volumes", "run.files", "run.network", "run.spec", "run.monitor", "run.start"}
	rmSteps  = []string{"rm.process", "rm.network", "rm.snapshot", "rm.record"}
)

// TestCrashWalk fails each named step of run and rm, then kills the process at each one, before and after its deed, and
// finds nothing left after a sweep. With --rm and without, since they end differently.
func TestCrashWalk(t *testing.T) {
	if !undo.Faults {
		t.Skip("needs fault points: go test -tags faults")
	}
	h := newHouse(t)
	ctx := context.Background()
	names := h.file()
	run := func(fault string, rm bool) (string, error) {
		c := config("true")
		c.AutoRemove, c.Network = rm, "bridge"
		var out bytes.Buffer
		cmd := h.cli([]string{"ONGGI_FAULT=" + fault, "ONGGI_FAULT_NAMES=" + names.Name()}, "run", c)
		cmd.Stdout, cmd.Stderr = &out, &out
		err := cmd.Run()
		return out.String(), err
	}
	if out, err := run("", true); err != nil {
		t.Fatalf("without a fault: %v: %s", err, out)
	}
	met := text(t, names)
	for _, s := range append(append([]string{}, runSteps...), rmSteps...) {
		if !strings.Contains(met, s+"\n") {
			t.Errorf("step %s was not met", s)
		}
	}
	known := strings.Join(runSteps, "\n") + "\n" + strings.Join(rmSteps, "\n") + "\n"
	for _, s := range strings.Fields(met) {
		if (strings.HasPrefix(s, "run.") || strings.HasPrefix(s, "rm.")) && !strings.Contains(known, s+"\n") {
			t.Errorf("step %s is met, but neither here nor in doc/walk.md", s)
		}
	}
	h.checkNothingLeft()

	clean := func(what string, mayStay bool) {
		t.Helper()
		if strings.HasPrefix(what, "run.") {
			// The monitor notices that its client is gone and cleans up by itself, at the same time as the sweep.
			waitFor(t, "all processes of "+what+" to end", func() bool { return len(h.processes()) == 0 })
		}
		if out, err := h.cli(nil, "sweep", "").CombinedOutput(); err != nil {
			t.Errorf("%s: sweep: %v: %s", what, err, out)
		}
		l, err := h.List(true)
		if err != nil {
			t.Errorf("%s: list: %v", what, err)
		}
		for _, k := range l {
			if !mayStay || k.Status != Created && k.Status != Exited {
				t.Errorf("%s: container %s is left in state %s", what, k.ID[:12], k.Status)
			}
			if err := h.Remove(ctx, k.ID, true, true); err != nil {
				t.Errorf("%s: remove: %v", what, err)
			}
		}
		h.checkNothingLeft()
		if t.Failed() {
			t.Fatalf("stopped at %s", what)
		}
	}
	for _, rm := range []bool{true, false} {
		for _, step := range runSteps {
			for _, at := range []string{"", "@after"} {
				for _, how := range []string{"error", "kill"} {
					if testing.Short() && rm != (how == "kill") {
						continue // in an emulated guest half of them must do: kills with --rm, errors without
					}
					fault := step + at + "=" + how
					out, err := run(fault, rm)
					if err == nil {
						t.Errorf("%s: the run succeeded", fault)
					} else if how == "error" && !strings.Contains(out, "injected fault at "+step) {
						t.Errorf("%s: %q does not name the fault", fault, out)
					}
					clean(fault, !rm)
				}
			}
		}
	}
	for _, step := range rmSteps {
		for _, at := range []string{"", "@after"} {
			for _, how := range []string{"error", "kill"} {
				if testing.Short() && (at == "") == (how == "kill") {
					continue // errors before, kills after
				}
				c := config("sleep", "100")
				c.Network, c.Name = "bridge", "victim"
				h.detached(c)
				fault := step + at + "=" + how
				if out, err := h.cli([]string{"ONGGI_FAULT=" + fault}, "rm", "victim").CombinedOutput(); err == nil {
					t.Errorf("%s: the removal succeeded: %s", fault, out)
				}
				if k, err := h.Get("victim"); err == nil && k.Status == Running && step != "rm.process" {
					t.Errorf("%s: it runs", fault)
				}
				// A removal that was interrupted before anything was done has not begun: the container runs on.
				if k, err := h.Get("victim"); err == nil && k.Status != Removing {
					if err := h.Remove(ctx, "victim", true, true); err != nil {
						t.Errorf("%s: again: %v", fault, err)
					}
				}
				clean(fault, false)
			}
		}
	}
}

// TestMonitorFailsAtItsEnd: a monitor that is killed, or fails, between the exit record and the deletion of the runtime's
// state leaves nothing that the clean-up does not find: neither with --rm nor without, and the container can be
// started again.
func TestMonitorFailsAtItsEnd(t *testing.T) {
	if !undo.Faults {
		t.Skip("needs fault points: go test -tags faults")
	}
	h := newHouse(t)
	ctx := context.Background()
	for _, fault := range []string{"monitor.record=kill", "monitor.record@after=kill", "monitor.delete=error", "monitor.delete@after=kill"} {
		for _, rm := range []bool{true, false} {
			c := config("true")
			c.AutoRemove, c.Name = rm, "victim"
			names := h.file()
			out, _ := h.cli([]string{"ONGGI_FAULT=" + fault, "ONGGI_FAULT_NAMES=" + names.Name()}, "run", c).CombinedOutput()
			if step, _, _ := strings.Cut(strings.Replace(fault, "@after", "", 1), "="); !strings.Contains(text(t, names), step+"\n") {
				t.Fatalf("%s: the step was not met: %s", fault, out)
			}
			waitFor(t, "all processes of "+fault+" to end", func() bool { return len(h.processes()) == 0 })
			if rm {
				if err := h.Sweep(ctx); err != nil {
					t.Errorf("%s: sweep: %v", fault, err)
				}
			} else { // a start finds it by itself
				s, err := h.Start(ctx, "victim", StartOptions{})
				if err != nil {
					t.Fatalf("%s: start again: %v", fault, err)
				}
				if x, err := h.Finish(ctx, s); err != nil || x.Code != 0 {
					t.Errorf("%s: it ended again with %+v, %v", fault, x, err)
				}
				if err := h.Remove(ctx, "victim", false, true); err != nil {
					t.Errorf("%s: remove: %v", fault, err)
				}
			}
			h.checkNothingLeft()
		}
	}
}

// TestSweepFindsWhatTheRuntimeKnows of containers without a record: it is removed with its processes. What has a record
// stays.
func TestSweepFindsWhatTheRuntimeKnows(t *testing.T) {
	h := newHouse(t)
	ctx := context.Background()
	lost, kept := h.detached(config("sleep", "1000")), h.detached(config("sleep", "1000"))
	// A record that a power loss, or a user, has taken.
	if err := os.RemoveAll(h.stateDir(lost)); err != nil {
		t.Fatal(err)
	}
	if err := h.Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	if ids, err := idsIn(h.runtimeRoot()); err != nil || len(ids) != 1 || ids[0] != kept {
		t.Errorf("the runtime knows %v (%v), want only %s", ids, err, kept)
	}
	if k, err := h.Get(kept); err != nil || k.Status != Running {
		t.Errorf("the other one: %+v, %v", k, err)
	}
	if err := h.Remove(ctx, kept, true, true); err != nil {
		t.Error(err)
	}
	waitFor(t, "all processes to end", func() bool { return len(h.processes()) == 0 })
	h.checkNothingLeft()
}
