package engine

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/image"
	"github.com/onggi/onggi/runtime/monitor"
	"github.com/onggi/onggi/undo"
)

// Remove removes a container: Conflict when it runs and force is not set. volumes: also its anonymous volumes.
func (e *Engine) Remove(ctx context.Context, idOrName string, force, volumes bool) error {
	h, err := e.lock(ctx, idOrName)
	if errdefs.Is(err, errdefs.Corrupt) && force {
		return e.removeCorrupt(ctx, idOrName)
	}
	if err != nil {
		return err
	}
	defer h.unlock()
	e.effective(h.rec)
	if h.rec.Paused && !force {
		return &errdefs.Error{
			Op: "remove", What: "container " + idOrName, Kind: errdefs.Conflict, Why: "it is paused",
			Fix: fmt.Sprintf("let it go on and stop it (onggi stop %s), or: onggi rm -f %s", idOrName, idOrName),
		}
	}
	if h.rec.Status == Restarting && !force {
		return &errdefs.Error{
			Op: "remove", What: "container " + idOrName, Kind: errdefs.Conflict, Why: "it is restarting",
			Fix: fmt.Sprintf("stop it first (onggi stop %s), or: onggi rm -f %s", idOrName, idOrName),
		}
	}
	if h.rec.Status == Running && !force {
		return &errdefs.Error{
			Op: "remove", What: "container " + idOrName, Kind: errdefs.Conflict, Why: "it is running",
			Fix: fmt.Sprintf("stop it first (onggi stop %s), or: onggi rm -f %s", idOrName, idOrName),
		}
	}
	return h.remove(ctx, volumes)
}

// remove does process -> network -> snapshot -> record. Each step is idempotent and nothing is taken back: what a
// crash interrupts, the next sweep or removal finishes.
func (h *held) remove(ctx context.Context, volumes bool) error {
	e, r := h.e, h.rec
	creating := r.Status == Creating          // it has never been a container to anybody
	again := r.Status == Removing || creating // somebody was interrupted
	if r.Status != Removing {
		if err := h.pend(); err != nil {
			return err
		}
	}
	steps := undo.New("rm")
	if err := steps.Do("process", func() error {
		if err := h.end(ctx); err != nil {
			return err
		}
		// From here on the container cannot be used; a crash does not bring it back.
		if r.Status != Creating {
			r.Status = Removing
			return h.write(false)
		}
		return nil
	}, nil); err != nil {
		return err
	}
	if err := steps.Do("network", func() error { return h.tidy(ctx) }, nil); err != nil {
		return err
	}
	if err := steps.Do("snapshot", func() error {
		s, err := e.snapshot()
		if err != nil {
			return err
		}
		if err := s.Remove(context.WithoutCancel(ctx), r.ID); err != nil {
			return err
		}
		if volumes || r.Config.AutoRemove {
			if err := h.removeVolumes(); err != nil {
				return err
			}
		}
		if again {
			return e.sweepVolumeStore()
		}
		return nil
	}, nil); err != nil {
		return err
	}
	if err := steps.Do("record", h.erase, nil); err != nil {
		return err
	}
	if !creating {
		h.emit("destroy")
	}
	return nil
}

// end ends the container's process, however far it has come: its monitor is asked first; what that leaves, or what has
// no monitor, is killed by its control group.
func (h *held) end(ctx context.Context) error {
	run := h.e.runDir(h.rec.ID)
	if monitor.Alive(run) {
		if c, err := monitor.Dial(ctx, run); err == nil {
			// The removal that follows is the clean-up: the monitor need not start another one.
			_ = c.Mine(ctx)
			if err := h.e.signal(ctx, c, int(syscall.SIGKILL), "onggi rm -f"); err == nil {
				_ = h.e.thaw(h.rec) // what is frozen does not die (v1); killAll follows if this does not help
				bound, cancel := context.WithTimeout(ctx, 10*time.Second)
				_, _ = c.Wait(bound)
				cancel()
			}
			_ = c.Close()
			if waitGone(run, 2*time.Second) && !exists(h.e.runtimeDir(h.rec.ID)) {
				return nil
			}
			if h.ended() {
				return nil // the monitor lives on for another client
			}
		}
		return h.killAll()
	}
	if h.ended() || !exists(run) && !exists(h.e.runtimeDir(h.rec.ID)) {
		return nil
	}
	return h.killAll()
}

// ended reports whether the container has ended and its monitor has also deleted what the runtime knew of it: it may
// have been killed in between, or have failed at it.
func (h *held) ended() bool {
	_, err := monitor.ReadExit(h.e.stateDir(h.rec.ID))
	return err == nil && !exists(h.e.runtimeDir(h.rec.ID))
}

// removeCorrupt removes a container whose record cannot be read.
func (e *Engine) removeCorrupt(ctx context.Context, idOrName string) error {
	id, err := e.find(idOrName)
	if err != nil {
		return err
	}
	h, err := e.tryLock(id)
	if err != nil || h == nil {
		return err
	}
	defer h.unlock()
	h.rec = &record{Container: Container{ID: id, Status: Creating, Config: Config{}}, CgroupPath: e.o.CgroupParent + "/" + id}
	h.rec.Config.Network = "bridge" // it may have had an address
	h.rec.Config.Name = e.nameOf(id)
	return h.remove(ctx, false)
}

// RemoveImage is image.Store.Remove with the containers as users. No container is being made from an image meanwhile.
func (e *Engine) RemoveImage(ctx context.Context, nameOrID string, force bool) ([]image.Removed, error) {
	e.sweepInterrupted(ctx) // what a killed command was making uses no image
	store, err := e.Images()
	if err != nil {
		return nil, err
	}
	inUse, unlock, err := e.imagesInUse()
	if err != nil {
		return nil, err
	}
	defer unlock()
	return store.Remove(ctx, nameOrID, force, inUse)
}
