package engine

import (
	"context"
	"os"
	"path/filepath"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/undo"
)

// A paused container's processes stand still: its control group is frozen (cgroup-v1/freezer-subsystem.rst; cgroup.freeze on
// v2). That it is paused is a file in its run directory, so that a list of containers need not ask every control group. The
// file is made before the group is frozen and removed after it is thawed: whoever is killed in between leaves a container
// that says it is paused, and unpause puts it right.

func (e *Engine) pausedPath(id string) string { return filepath.Join(e.runDir(id), "paused") }

// Pause makes the container's processes stand still. Conflict when it does not run or is paused already; DeadlineExceeded
// when a process cannot be stopped: then all of them go on.
func (e *Engine) Pause(ctx context.Context, idOrName string) (err error) {
	h, err := e.lock(ctx, idOrName)
	if err != nil {
		return err
	}
	defer h.unlock()
	switch e.effective(h.rec); {
	case h.rec.Status != Running:
		return notRunning("pause", idOrName)
	case h.rec.Paused:
		return &errdefs.Error{Op: "pause", What: "container " + idOrName, Kind: errdefs.Conflict, Why: "it is already paused", Fix: "let it go on: onggi unpause " + idOrName}
	}
	steps := undo.New("pause")
	defer steps.Undo(&err)
	path := e.pausedPath(h.rec.ID)
	if err := steps.Do("mark", func() error {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		return f.Close()
	}, func() error { return ignoreMissing(os.Remove(path)) }); err != nil {
		return err
	}
	if err := steps.Do("freeze", func() error { return h.rec.freeze(true) }, func() error { return h.rec.freeze(false) }); err != nil {
		return err
	}
	h.emit("pause")
	return nil
}

// Unpause lets the processes of a paused container go on. Conflict when it is not paused.
func (e *Engine) Unpause(ctx context.Context, idOrName string) error {
	h, err := e.lock(ctx, idOrName)
	if err != nil {
		return err
	}
	defer h.unlock()
	switch e.effective(h.rec); {
	case h.rec.Status != Running:
		return notRunning("unpause", idOrName)
	case !h.rec.Paused:
		return &errdefs.Error{Op: "unpause", What: "container " + idOrName, Kind: errdefs.Conflict, Why: "it is not paused", Fix: "see: onggi ps"}
	}
	if err := e.thaw(h.rec); err != nil {
		return err
	}
	h.emit("unpause")
	return nil
}

// thaw lets a container's processes go on, if it is paused. A container that has ended meanwhile is no error.
func (e *Engine) thaw(r *record) error {
	path := e.pausedPath(r.ID)
	if !exists(path) {
		return nil
	}
	if err := r.freeze(false); err != nil && !errdefs.Is(err, errdefs.NotFound) {
		return err
	}
	return ignoreMissing(os.Remove(path))
}

// freeze stops or resumes the container's control group.
func (r *record) freeze(on bool) error {
	g, err := r.group()
	if err != nil {
		return err
	}
	defer g.Close()
	return g.Freeze(on)
}

// paused is the error of what cannot be done with a paused container.
func paused(op, name string) error {
	return &errdefs.Error{Op: op, What: "container " + name, Kind: errdefs.Conflict, Why: "it is paused", Fix: "let it go on first: onggi unpause " + name}
}
