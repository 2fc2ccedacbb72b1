package engine

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/onggi/onggi/cgroup"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/runtime/monitor"
	"github.com/onggi/onggi/spec"
)

// Finish waits for the exit and does what follows it: network released, record updated, container removed if it is
// AutoRemove. It returns the exit. When ctx ends first, the container goes on and its monitor cleans up later.
func (e *Engine) Finish(ctx context.Context, s *Session) (*monitor.Exit, error) {
	if !s.promised {
		_ = s.Client.Mine(ctx) // refused when it has ended already: then the monitor cleans up, too, and one of us finds nothing to do
	}
	exit, err := s.Client.Wait(ctx)
	if err != nil {
		if ctx.Err() == nil { // the monitor was killed: what it knew is lost
			err = errors.Join(err, e.Cleanup(ctx, s.Container.ID))
		}
		return nil, err
	}
	if err := e.Cleanup(ctx, s.Container.ID); err != nil {
		return exit, err
	}
	return exit, s.Client.Close()
}

// Cleanup does what follows an exit; the monitor calls it (`onggi container-cleanup ID`) when no client does. It is
// idempotent: a container that is gone or runs again is left alone.
func (e *Engine) Cleanup(ctx context.Context, id string) error {
	h, err := e.lock(ctx, id)
	if errdefs.Is(err, errdefs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer h.unlock()
	return h.cleanup(ctx)
}

// cleanup brings a container whose process has ended, or whose maker has died, into a state that lasts.
func (h *held) cleanup(ctx context.Context) error {
	e, r := h.e, h.rec
	recorded := r.Status
	switch e.effective(r); r.Status {
	case Running, Restarting:
		return nil
	case Created, Exited:
		if recorded != Running && exists(e.runDir(r.ID)) || exists(e.runtimeDir(r.ID)) {
			// A start that was killed has not happened; a monitor that was killed may have left the runtime's state.
			if err := h.end(ctx); err != nil {
				return err
			}
		}
	case Creating, Removing:
		return h.remove(ctx, true)
	case Dead:
		if err := h.bury(ctx); err != nil {
			return err
		}
	}
	if recorded == Running && r.lost {
		h.emit("die", "exitCode", itoa(r.Exit.Code))
	}
	if r.Config.AutoRemove && recorded == Running {
		if e.restarting(r.ID) {
			return nil // it is started again, or removed by who fails to
		}
		return h.remove(ctx, true)
	}
	if recorded == Running && r.wantsRestart() && !r.Interrupted {
		if err := h.rest(); err != nil {
			return err
		}
		return errors.Join(h.tidy(ctx), h.wake(r.Rest)) // a start tidies as well
	}
	if recorded == Running {
		if err := h.tidy(ctx); err != nil {
			return err
		}
		return h.write(false)
	}
	if recorded == Restarting && r.Status == Exited {
		return h.write(false)
	}
	return h.tidy(ctx)
}

// tidy releases what a container holds only while it runs: its address, and its run directory. A monitor that has written
// the exit record but not yet let go is waited for; what it could not delete of the container, or was killed before it
// did, is deleted here.
func (h *held) tidy(ctx context.Context) error {
	run := h.e.runDir(h.rec.ID)
	if _, err := os.Stat(run); errors.Is(err, fs.ErrNotExist) && h.rec.Network == nil {
		return nil
	}
	waitGone(run, 10*time.Second)
	if exists(h.e.runtimeDir(h.rec.ID)) {
		if err := h.killAll(); err != nil {
			return err
		}
	}
	if err := h.detach(ctx); err != nil {
		return err
	}
	return os.RemoveAll(run)
}

// bury kills what is left of a container whose monitor was killed, and records how it ended.
func (h *held) bury(ctx context.Context) error {
	if err := h.killAll(); err != nil {
		return err
	}
	h.rec.Status = Exited
	if h.rec.Exit != nil && h.rec.Exit.FinishedAt.IsZero() {
		h.rec.Exit.FinishedAt = now()
	}
	if err := h.tidy(ctx); err != nil {
		return err
	}
	return h.write(false)
}

// killAll ends the container's processes without its monitor: by its runtime, and then by its control group, which
// works even if the runtime knows nothing of it.
func (h *held) killAll() error {
	r := h.rec
	argv := r.Config.Runtime
	if len(argv) == 0 {
		bin, err := h.e.runtime()
		if err != nil {
			return err
		}
		argv = []string{bin}
	}
	argv = append(append([]string{}, argv...), "--root", h.e.runtimeRoot(), "delete", "--force", r.ID)
	// Its error does not count: it fails when it never knew the container. The control group decides.
	_ = exec.Command(argv[0], argv[1:]...).Run()
	layout, err := cgroup.Detect()
	if err != nil {
		return err
	}
	g, err := cgroup.Open(layout, r.CgroupPath)
	if err != nil && !errdefs.Is(err, errdefs.NotFound) {
		return err
	}
	if err == nil {
		defer g.Close()
		if err := g.Kill(); err != nil {
			return err
		}
		if err := g.Remove(); err != nil {
			return err
		}
	}
	// What a runtime that has failed, or that is not ours, still knows of it: its processes are gone.
	return os.RemoveAll(h.e.runtimeDir(r.ID))
}

// Client returns a client of the container's monitor. Conflict when it does not run.
func (e *Engine) Client(ctx context.Context, idOrName string) (*monitor.Client, error) {
	r, err := e.get(idOrName)
	if err != nil {
		return nil, err
	}
	return e.dial(ctx, r, "attach to", idOrName)
}

func (e *Engine) dial(ctx context.Context, r *record, op, name string) (*monitor.Client, error) {
	if r.Status == Restarting {
		return nil, restingNow(op, name)
	}
	if r.Status != Running {
		return nil, notRunning(op, name)
	}
	c, err := monitor.Dial(ctx, e.runDir(r.ID))
	if errdefs.Is(err, errdefs.NotFound) {
		return nil, notRunning(op, name)
	}
	return c, err
}

func restingNow(op, name string) error {
	return &errdefs.Error{
		Op: op, What: "container " + name, Kind: errdefs.Conflict, Why: "it is restarting: it has ended, and rests before it is started again",
		Fix: "wait until it runs, start it at once (onggi start " + name + "), or see why it ends: onggi logs " + name,
	}
}

func notRunning(op, name string) error {
	return &errdefs.Error{Op: op, What: "container " + name, Kind: errdefs.Conflict, Why: "it is not running", Fix: "start it: onggi start " + name}
}

// Wait waits until the container is not running and returns its exit. A container that never ran has code 0.
func (e *Engine) Wait(ctx context.Context, idOrName string) (*monitor.Exit, error) {
	for {
		r, err := e.get(idOrName)
		if err != nil {
			return nil, err
		}
		if r.Status == Restarting { // its next end is waited for
			select {
			case <-time.After(20 * time.Millisecond):
				continue
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		if r.Status != Running {
			if r.Exit == nil {
				return &monitor.Exit{}, nil
			}
			return r.Exit, nil
		}
		c, err := monitor.Dial(ctx, e.runDir(r.ID))
		if err == nil {
			x, werr := c.Wait(ctx)
			_ = c.Close()
			if werr == nil || ctx.Err() != nil {
				return x, werr
			}
		} else if ctx.Err() != nil {
			return nil, err
		}
		// The monitor has ended meanwhile, or is about to: the exit record or its absence tells how. An --rm container
		// may be gone by the next look; its exit record was read from the monitor or is lost with it.
		if x, err := monitor.ReadExit(e.stateDir(r.ID)); err == nil {
			return x, nil
		}
		select {
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// StopOptions of StopWith and Restart.
type StopOptions struct {
	Timeout *time.Duration // nil: the container's own; negative waits for ever
	Signal  int            // 0: the container's own
}

// Stop is StopWith with the container's own signal.
func (e *Engine) Stop(ctx context.Context, idOrName string, timeout *time.Duration) error {
	return e.StopWith(ctx, idOrName, StopOptions{Timeout: timeout})
}

// StopWith sends the stop signal, waits for the grace time, then kills. A paused container goes on for that. One that does
// not run is left alone; what a killed monitor has left of one is killed.
func (e *Engine) StopWith(ctx context.Context, idOrName string, o StopOptions) error {
	r, err := e.get(idOrName)
	if err != nil {
		return err
	}
	if rested, err := e.intend(ctx, r); err != nil || rested {
		return err
	}
	if r.Status != Dead {
		running := r.Status == Running
		err = e.stop(ctx, r, idOrName, o)
		if err == nil && running {
			r.emit(e, "stop")
		}
		if err == nil || ctx.Err() != nil {
			return err
		}
		// Its monitor may have been killed, just now.
		if waitGone(e.runDir(r.ID), time.Second); e.again(r) != Dead {
			return err
		}
	}
	_, err = e.sweepOne(ctx, r.ID)
	return err
}

// again returns the effective status of a container now.
func (e *Engine) again(r *record) Status {
	now, err := e.read(r.ID)
	if err != nil {
		return ""
	}
	e.effective(now)
	return now.Status
}

func (e *Engine) stop(ctx context.Context, r *record, idOrName string, o StopOptions) error {
	c, err := e.dial(ctx, r, "stop", idOrName)
	if errdefs.Is(err, errdefs.Conflict) {
		return nil
	}
	if err != nil {
		return err
	}
	defer c.Close()
	sig := o.Signal
	if sig == 0 {
		if sig, err = r.stopSignal(); err != nil {
			return err
		}
	}
	grace := r.Config.StopGrace()
	if o.Timeout != nil {
		if grace = *o.Timeout; grace < 0 {
			grace = 1<<63 - 1
		}
	}
	if err := e.signal(ctx, c, sig, "onggi stop"); err != nil {
		return err
	}
	if err := e.thaw(r); err != nil {
		return err
	}
	patience, cancel := context.WithTimeout(ctx, grace)
	_, err = c.Wait(patience)
	cancel()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil || patience.Err() == nil {
		return err
	}
	if err := e.signal(ctx, c, int(syscall.SIGKILL), "onggi stop, after the grace time"); err != nil {
		return err
	}
	_, err = c.Wait(ctx)
	return err
}

// stopSignal is the signal that asks the container to end.
func (r *record) stopSignal() (int, error) {
	if s := cmpOr(r.Config.StopSignal, r.Image.StopSignal); s != "" {
		return spec.ParseSignal("the stop signal", s)
	}
	return int(syscall.SIGTERM), nil
}

// signal sends a signal; that the container has just ended is no error.
func (e *Engine) signal(ctx context.Context, c *monitor.Client, sig int, why string) error {
	err := c.SignalBy(ctx, sig, e.Sender(why))
	if errdefs.Is(err, errdefs.Conflict) || errdefs.Is(err, errdefs.NotFound) {
		return nil
	}
	return err
}

// Kill sends a signal. Conflict when it is not running. A paused container gets it when it goes on; for SIGKILL and its own
// stop signal it does at once.
func (e *Engine) Kill(ctx context.Context, idOrName string, sig int) error {
	if sig < 1 || sig > 64 {
		return invalid("--signal", "", "invalid signal", "see: kill -l")
	}
	r, err := e.get(idOrName)
	if err != nil {
		return err
	}
	if r.ends(sig) {
		if rested, err := e.intend(ctx, r); err != nil || rested {
			return err
		}
	}
	c, err := e.dial(ctx, r, "kill", idOrName)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SignalBy(ctx, sig, e.Sender("onggi kill")); err != nil {
		return err
	}
	if own, _ := r.stopSignal(); sig == own || sig == int(syscall.SIGKILL) {
		return e.thaw(r)
	}
	return nil
}
