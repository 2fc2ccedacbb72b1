package engine

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/runtime/monitor"
)

// sweepInterrupted is the cheap part of Sweep: containers whose making or removal was interrupted, and containers that
// have ended while nobody did what follows an end, or whose monitor was killed. Its cost is two directory reads, and a
// look at the monitor's lock of each container that runs (3 µs). Errors are not the caller's: a full sweep reports them.
func (e *Engine) sweepInterrupted(ctx context.Context) {
	found := e.sweepPending(ctx)
	found = e.sweepEnded(ctx) || found
	builds, _ := e.SweepBuilds(ctx)
	found = builds || found
	found = e.sweepRests() || found
	if found {
		_ = e.sweepVolumeStore()
	}
	_ = e.reviveResolver(ctx)
}

// sweepVolumeStore removes volumes that are half made or half removed: whoever was interrupted with a container may have
// been at that, too.
func (e *Engine) sweepVolumeStore() error {
	if !exists(filepath.Join(e.o.Root, "volumes")) {
		return nil
	}
	store, err := e.Volumes()
	if err != nil {
		return err
	}
	return store.Sweep()
}

// sweepEnded looks at containers that have a run directory but no monitor. One that is just being started, or cleaned
// up after its end, is locked by whoever does that. It reports whether there was one that nobody worked on.
func (e *Engine) sweepEnded(ctx context.Context) (found bool) {
	ids, err := idsIn(e.runsDir())
	if err != nil {
		return false
	}
	for _, id := range ids {
		if !monitor.Alive(e.runDir(id)) {
			was, _ := e.sweepOne(ctx, id)
			found = found || was
		}
	}
	return found
}

// sweepPending looks at the containers that are marked as being made or removed. After a reboot the markers are gone
// with the run root; then all records are looked at, once, and what belonged to containers whose records were in the
// run root is removed. It reports whether there was one that nobody worked on.
func (e *Engine) sweepPending(ctx context.Context) (found bool) {
	d, err := os.Open(e.pendingDir())
	if errors.Is(err, fs.ErrNotExist) {
		if os.MkdirAll(e.pendingDir(), 0o700) == nil {
			_ = e.sweepContainers(ctx)
			_ = e.sweepPassed(ctx)
			return true
		}
		return false
	}
	if err != nil {
		return false
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return false
	}
	for _, id := range names {
		if isID(id) {
			was, _ := e.sweepOne(ctx, id)
			found = found || was
		}
	}
	return found
}

// sweepOne looks at one container if its lock is free, and reports whether it was.
func (e *Engine) sweepOne(ctx context.Context, id string) (free bool, err error) {
	h, err := e.tryLock(id)
	if err != nil {
		return false, err
	}
	if h == nil {
		if !exists(e.stateDir(id)) {
			return true, ignoreMissing(os.Remove(e.pendingPath(id)))
		}
		return false, nil // somebody is at work on it
	}
	defer h.unlock()
	return true, h.sweep(ctx, id)
}

// sweep puts a locked container right, whose record has not been read.
func (h *held) sweep(ctx context.Context, id string) (err error) {
	e := h.e
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
		if exists(e.pendingPath(id)) {
			if err := h.dropOtherNames(); err != nil {
				return err
			}
		}
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
		if _, err := e.sweepOne(ctx, id); err != nil {
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
	if exists(e.BuildsDir()) || exists(e.buildDir()) {
		gate, err := e.BuildGate(ctx)
		if try(err); err == nil {
			try(gate.Close())
		}
	}
	try(e.sweepRuns())
	try(e.sweepRuntime())
	try(e.sweepPassed(ctx))
	if exists(filepath.Join(e.o.Root, "images")) {
		images, err := e.Images()
		try(err)
		if err == nil {
			try(images.Sweep(ctx))
		}
	}
	return errors.Join(errs...)
}

// sweepPassed removes what containers without a record have left on the disk.
func (e *Engine) sweepPassed(ctx context.Context) error {
	return errors.Join(e.sweepNames(), e.sweepLogs(), e.sweepNetwork(ctx), e.SweepTrash(ctx), e.sweepSnapshots(ctx), e.sweepVolumes(), e.sweepSecrets())
}

// sweepLogs removes logs whose container is gone.
func (e *Engine) sweepLogs() error {
	d, err := os.Open(e.logsDir())
	if err != nil {
		return ignoreMissing(err)
	}
	defer d.Close()
	return e.removeLogs(d, func(id string) bool { return !exists(e.stateDir(id)) })
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
	}
	return nil
}

// sweepNetwork gives back addresses and ports of sandboxes that do not run. A container whose lock is taken is being
// started or ended by somebody: it is left to them.
func (e *Engine) sweepNetwork(ctx context.Context) error {
	if bridgeless() || !exists(filepath.Join(e.o.RunRoot, "network")) {
		return nil // nothing can be there
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
	used, err := e.usedVolumes()
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
