package engine

import (
	"context"
	"fmt"
	"os"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/undo"
)

// Rename gives a container, running or not, another name; the old one is free afterwards. AlreadyExists when another
// container has the name, InvalidArgument for one that is none or that the container has already.
//
//	link of the new name -> record -> link of the old name
//
// The record decides what a container is called. A process that is killed in between leaves a second link, which the next
// sweep removes.
func (e *Engine) Rename(ctx context.Context, idOrName, name string) (err error) {
	h, err := e.lock(ctx, idOrName)
	if err != nil {
		return err
	}
	defer h.unlock()
	old := h.rec.Config.Name
	if name == old {
		return &errdefs.Error{
			Op: "rename", What: "container " + idOrName, Kind: errdefs.InvalidArgument, Why: fmt.Sprintf("its name is %q already", name),
			Fix: "choose another name",
		}
	}
	if name == "" {
		return &errdefs.Error{Op: "rename", What: "container " + idOrName, Kind: errdefs.InvalidArgument, Why: "the new name is empty", Fix: "give a name"}
	}
	if h.rec.Status == Creating || h.rec.Status == Removing {
		return &errdefs.Error{Op: "rename", What: "container " + idOrName, Kind: errdefs.Conflict, Why: "it is in state " + string(h.rec.Status)}
	}
	if err := h.pend(); err != nil {
		return err
	}
	steps := undo.New("rename")
	defer steps.Undo(&err)
	steps.Push("mark", h.settle)
	if err := steps.Do("claim", func() error { return h.claim(name) }, func() error {
		return ignoreMissing(os.Remove(e.namePath(name)))
	}); err != nil {
		return err
	}
	recorded := func() error { return h.write(!e.isPassing(h.rec.ID)) }
	if err := steps.Do("record", recorded, func() error {
		h.rec.Config.Name = old
		return recorded()
	}); err != nil {
		h.rec.Config.Name = old
		return err
	}
	if err := steps.Do("release", func() error { return ignoreMissing(os.Remove(e.namePath(old))) }, func() error {
		return os.Symlink(h.rec.ID, e.namePath(old))
	}); err != nil {
		return err
	}
	if h.rec.Status == Running {
		_ = h.writeActor() // an event under the old name is the worst that can come of it
	}
	h.emit("rename", "oldName", "/"+old)
	return h.settle()
}

// dropOtherNames removes what an interrupted Rename has left: links to this container that are not its name.
func (h *held) dropOtherNames() error {
	d, err := os.Open(h.e.namesDir())
	if err != nil {
		return ignoreMissing(err)
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		if n == h.rec.Config.Name {
			continue
		}
		if to, err := os.Readlink(h.e.namePath(n)); err == nil && to == h.rec.ID {
			if err := ignoreMissing(os.Remove(h.e.namePath(n))); err != nil {
				return err
			}
		}
	}
	if n := h.rec.Config.Name; n != "" && !exists(h.e.namePath(n)) {
		return ignoreExisting(os.Symlink(h.rec.ID, h.e.namePath(n)))
	}
	return nil
}
