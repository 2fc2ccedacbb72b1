package engine

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/onggi/onggi/errdefs"
)

// sweepPending is the cheap part of Sweep: containers whose making or removal was interrupted. Its cost is one
// directory read when there are none. Their errors are not the caller's: a full sweep reports them.
//
// After a reboot the markers are gone with the run root; then all records are looked at, once.
func (e *Engine) sweepPending(ctx context.Context) {
	d, err := os.Open(e.pendingDir())
	if errors.Is(err, fs.ErrNotExist) {
		if os.MkdirAll(e.pendingDir(), 0o700) == nil {
			_ = e.sweepContainers(ctx)
		}
		return
	}
	if err != nil {
		return
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return
	}
	for _, id := range names {
		if isID(id) {
			_ = e.sweepOne(ctx, id)
		}
	}
}

// sweepOne looks at one container whose lock is free.
func (e *Engine) sweepOne(ctx context.Context, id string) error {
	h, err := e.tryLock(id)
	if err != nil {
		return err
	}
	if h == nil {
		if !exists(e.stateDir(id)) {
			return ignoreMissing(os.Remove(e.pendingPath(id)))
		}
		return nil // somebody is at work on it
	}
	defer h.unlock()
	h.rec, err = e.read(id)
	if errors.Is(err, fs.ErrNotExist) {
		// Killed before the first record was written, or after the last one was removed.
		h.rec = &record{Container: Container{ID: id, Status: Creating}, CgroupPath: e.o.CgroupParent + "/" + id}
		h.rec.Config.Name = e.nameOf(id)
		return h.erase()
	}
	if err != nil {
		return err
	}
	if err := h.cleanup(ctx); err != nil {
		return err
	}
	if exists(e.stateDir(id)) {
		return h.settle()
	}
	return nil
}

// nameOf finds the name of a container that has no record.
func (e *Engine) nameOf(id string) string {
	d, err := os.Open(e.namesDir())
	if err != nil {
		return ""
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	for _, n := range names {
		if to, err := os.Readlink(e.namePath(n)); err == nil && to == id {
			return n
		}
	}
	return ""
}

func (e *Engine) sweepContainers(ctx context.Context) error {
	ids, err := e.ids()
	if err != nil {
		return err
	}
	var errs []error
	for _, id := range ids {
		if err := e.sweepOne(ctx, id); err != nil {
			errs = append(errs, &errdefs.Error{Op: "sweep", What: "container " + id[:12], Kind: errdefs.KindOf(err), Err: err})
		}
	}
	return errors.Join(errs...)
}

// Sweep finishes what killed commands left: containers in state creating or removing, ended ones that still hold an
// address, dead monitors, unowned files. Every command that changes something runs its cheap part; `onggi info` and the
// crash walk run all of it. It goes on after an error and returns them all.
func (e *Engine) Sweep(ctx context.Context) error {
	if !exists(e.versionPath()) {
		return nil // nothing has ever been made
	}
	if err := e.make(); err != nil {
		return err
	}
	var errs []error
	try := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	if exists(e.pendingDir()) {
		e.sweepPending(ctx)
	}
	try(e.sweepContainers(ctx))
	try(e.sweepNames())
	try(e.sweepRuns())
	try(e.sweepRuntime())
	try(e.sweepNetwork(ctx))
	try(e.sweepTrash(ctx))
	try(e.sweepSnapshots(ctx))
	try(e.sweepVolumes())
	if exists(filepath.Join(e.o.Root, "images")) {
		images, err := e.Images()
		try(err)
		if err == nil {
			try(images.Sweep(ctx))
		}
	}
	return errors.Join(errs...)
}

// sweepNames removes names whose container is gone.
func (e *Engine) sweepNames() error {
	d, err := os.Open(e.namesDir())
	if err != nil {
		return ignoreMissing(err)
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		id, err := os.Readlink(e.namePath(n))
		if err != nil || !isID(id) || exists(e.stateDir(id)) {
			continue
		}
		// A container's directory is made before its name and removed after it: this name has no owner.
		if err := ignoreMissing(os.Remove(e.namePath(n))); err != nil {
			return err
		}
	}
	return nil
}

// sweepRuns removes run directories and markers of containers that do not exist.
func (e *Engine) sweepRuns() error {
	runs, err := idsIn(e.runsDir())
	if err != nil {
		return err
	}
	for _, id := range runs {
		if exists(e.stateDir(id)) {
			continue
		}
		h := &held{e: e, rec: &record{Container: Container{ID: id, Status: Dead}, CgroupPath: e.o.CgroupParent + "/" + id}}
		if err := h.end(context.Background()); err != nil {
			return err
		}
		if err := os.RemoveAll(e.runDir(id)); err != nil {
			return err
		}
	}
	pending, err := idsIn(e.pendingDir())
	if err != nil {
		return err
	}
	for _, id := range pending {
		if !exists(e.stateDir(id)) {
			if err := ignoreMissing(os.Remove(e.pendingPath(id))); err != nil {
				return err
			}
		}
	}
	return nil
}

// sweepRuntime removes what runtimes know of containers that do not exist. A container's record is made before its
// runtime is called and removed after, so nobody is at work on an id without one.
func (e *Engine) sweepRuntime() error {
	ids, err := idsIn(e.runtimeRoot())
	if err != nil {
		return err
	}
	for _, id := range ids {
		if exists(e.stateDir(id)) {
			continue
		}
		h := &held{e: e, rec: &record{Container: Container{ID: id, Status: Dead}, CgroupPath: e.o.CgroupParent + "/" + id}}
		if err := h.killAll(); err != nil {
			return err
		}
		// Another runtime's state is not for ours to understand; its processes are gone with the control group.
		if err := os.RemoveAll(e.runtimeDir(id)); err != nil {
			return err
		}
	}
	return nil
}

// sweepNetwork gives back addresses and ports of sandboxes that do not run. A container whose lock is taken is being
// started or ended by somebody: it is left to them.
func (e *Engine) sweepNetwork(ctx context.Context) error {
	if !exists(filepath.Join(e.o.RunRoot, "network")) {
		return nil
	}
	n, err := e.network()
	if err != nil {
		return err
	}
	return n.Sweep(ctx, func(id string) bool {
		if !isID(id) || !exists(e.stateDir(id)) {
			return false
		}
		h, err := e.tryLock(id)
		if err != nil || h == nil {
			return err != nil || exists(e.stateDir(id))
		}
		defer h.unlock()
		r, err := e.read(id)
		if err != nil {
			return !errors.Is(err, fs.ErrNotExist)
		}
		e.effective(r)
		return r.Status == Running
	}, false)
}

// sweepSnapshots removes writable layers without a container (a record that a power loss has taken), and what the
// store's own crashes left.
func (e *Engine) sweepSnapshots(ctx context.Context) error {
	if !exists(e.snapshotsDir()) {
		return nil
	}
	s, err := e.snapshot()
	if err != nil {
		return err
	}
	ids, err := idsIn(filepath.Join(e.snapshotsDir(), "containers"))
	if err != nil {
		return err
	}
	for _, id := range ids {
		if !e.hasRecord(id) {
			if err := s.Remove(ctx, id); err != nil {
				return err
			}
		}
	}
	return s.Sweep(ctx)
}

// hasRecord says whether a container is here or in the trash. It may be moved from one to the other meanwhile.
func (e *Engine) hasRecord(id string) bool {
	inTrash := func() bool {
		found, _ := filepath.Glob(filepath.Join(e.trashDir(), "*", id))
		return len(found) > 0
	}
	return exists(e.stateDir(id)) || inTrash() || exists(e.stateDir(id))
}

// sweepVolumes removes what killed processes left of volumes, and volumes of --rm containers whose record a crash of
// the host has taken. The record of a container names its volumes before they are made.
func (e *Engine) sweepVolumes() error {
	if !exists(filepath.Join(e.o.Root, "volumes")) {
		return nil
	}
	store, err := e.Volumes()
	if err != nil {
		return err
	}
	list, err := store.List()
	if err != nil {
		return err
	}
	used, err := e.usedVolumes("")
	if err != nil {
		return err
	}
	for _, v := range list {
		if v.Anonymous && v.Volatile && !used[v.Name] {
			if err := store.Volatile().Remove(v.Name); err != nil {
				return err
			}
		}
	}
	return store.Sweep()
}
