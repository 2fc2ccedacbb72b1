package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/image"
	"github.com/onggi/onggi/undo"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// The trash: what rmi and prune remove stays on the disk until its time is over, the trash is emptied, or space is
// needed. Images are in the image store's own trash. A container's record moves as a whole:
//
//	trash/<removal>/removal.json    when, until when, by which command
//	trash/<removal>/<id>/           what was containers/<id>
//
// Its writable layer stays where it is; it belongs to the record wherever that is. Volumes are in the volume store's own
// trash. The removals of all three have one ID.

// Removal is one command's removals, which Undo takes back together.
type Removal struct {
	ID         string    `json:"id"`
	Command    string    `json:"command"`
	Time       time.Time `json:"time"`
	Expires    time.Time `json:"expires"`
	Images     []string  `json:"-"` // familiar names, or ids
	Containers []string  `json:"-"` // names
	Volumes    []string  `json:"-"` // names
}

func (e *Engine) trashDir() string            { return filepath.Join(e.o.Root, "trash") }
func (e *Engine) removalDir(id string) string { return filepath.Join(e.o.Root, "trash", id) }
func (e *Engine) removalPath(id string) string {
	return filepath.Join(e.removalDir(id), "removal.json")
}

const (
	maxRemoval = 1 << 20
	halfPrefix = ".new-" // a removal's directory that is being made
)

// NewRemoval begins a removal by the command line command. Nothing is written yet.
func (e *Engine) NewRemoval(command string) (*Removal, error) {
	l, err := e.Limits()
	if err != nil {
		return nil, err
	}
	t := now()
	return &Removal{ID: image.NewTrashID(), Command: command, Time: t, Expires: t.Add(l.Trash)}, nil
}

// removals reads those that hold containers.
func (e *Engine) removals() ([]*Removal, error) {
	names, err := os.ReadDir(e.trashDir())
	if err != nil {
		return nil, ignoreMissing(err)
	}
	var all []*Removal
	for _, n := range names {
		if len(n.Name()) != 12 || !isHex(n.Name()) {
			continue
		}
		r := &Removal{}
		b, err := readBounded(e.removalPath(n.Name()), maxRemoval)
		if err == nil && (json.Unmarshal(b, r) != nil || r.ID != n.Name()) || errors.Is(err, fs.ErrNotExist) {
			r, err = &Removal{ID: n.Name()}, nil // damaged, or being made or emptied: its time is over
		}
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, nil
}

// trashedIDs lists the containers of a removal.
func (e *Engine) trashedIDs(removal string) ([]string, error) { return idsIn(e.removalDir(removal)) }

// trashed reads the records of all containers in the trash.
func (e *Engine) trashed() ([]*record, error) {
	all, err := e.removals()
	if err != nil {
		return nil, err
	}
	var out []*record
	for _, r := range all {
		ids, err := e.trashedIDs(r.ID)
		if err != nil {
			return nil, err
		}
		for _, id := range ids {
			rec := &record{}
			b, err := readBounded(filepath.Join(e.removalDir(r.ID), id, "state.json"), maxState)
			if errors.Is(err, fs.ErrNotExist) {
				rec.ID = id
				out = append(out, rec)
				continue
			}
			if err != nil {
				return nil, err
			}
			if json.Unmarshal(b, rec) != nil {
				rec = &record{}
			}
			rec.ID = id
			out = append(out, rec)
		}
	}
	return out, nil
}

// DiscardContainer moves a container that does not run into the trash. Conflict when it runs.
func (e *Engine) DiscardContainer(ctx context.Context, idOrName string, to *Removal) error {
	h, err := e.lock(ctx, idOrName)
	if err != nil {
		return err
	}
	defer h.unlock()
	e.effective(h.rec)
	if h.rec.Status == Running || h.rec.Status == Restarting {
		return &errdefs.Error{Op: "remove", What: "container " + idOrName, Kind: errdefs.Conflict, Why: "it is running"}
	}
	if h.rec.Status == Creating || h.rec.Status == Removing || e.isPassing(h.rec.ID) {
		return h.remove(ctx, false) // there is nothing to give back
	}
	if err := h.end(ctx); err != nil {
		return err
	}
	if err := h.tidy(ctx); err != nil {
		return err
	}
	h.rec.Network, h.rec.Pid = nil, 0
	if err := h.discard(to); err != nil {
		return err
	}
	h.emit("destroy")
	return nil
}

// discard moves the record. Precondition: the container has no process and no network.
func (h *held) discard(to *Removal) (err error) {
	e, id := h.e, h.rec.ID
	steps := undo.New("discard")
	defer steps.Undo(&err)
	if err := steps.Do("record", func() error { return h.write(true) }, nil); err != nil {
		return err
	}
	made := false
	open := func() (err error) {
		made, err = e.openRemoval(to)
		return err
	}
	if err := steps.Do("trash", open, func() error {
		if !made {
			return nil
		}
		return os.RemoveAll(e.removalDir(to.ID))
	}); err != nil {
		return err
	}
	place := filepath.Join(e.removalDir(to.ID), id)
	if err := steps.Do("move", func() error { return os.Rename(e.stateDir(id), place) }, func() error { return os.Rename(place, e.stateDir(id)) }); err != nil {
		return err
	}
	// From here on it is in the trash; a name that is left over is swept.
	_ = h.releaseName()
	for _, d := range []string{e.removalDir(to.ID), e.containersDir()} {
		if err := syncDir(d); err != nil {
			return err
		}
	}
	return nil
}

// openRemoval makes the directory of a removal, whole with its record, unless an earlier container of it has.
func (e *Engine) openRemoval(to *Removal) (made bool, err error) {
	if exists(e.removalDir(to.ID)) {
		return false, nil
	}
	if err := os.MkdirAll(e.trashDir(), 0o700); err != nil {
		return false, err
	}
	half := filepath.Join(e.trashDir(), halfPrefix+to.ID)
	if err := os.Mkdir(half, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return false, err
	}
	b, err := json.Marshal(to)
	if err == nil {
		err = replaceFile(filepath.Join(half, "removal.json"), b, true)
	}
	if err == nil {
		err = os.Rename(half, e.removalDir(to.ID))
	}
	if err != nil {
		return false, errors.Join(err, os.RemoveAll(half))
	}
	return true, syncDir(e.trashDir())
}

// Removals lists what Undo can take back, the newest first.
func (e *Engine) Removals() ([]*Removal, error) {
	all, err := e.removals()
	if err != nil {
		return nil, err
	}
	byID := map[string]*Removal{}
	for _, r := range all {
		byID[r.ID] = r
	}
	if exists(filepath.Join(e.o.Root, "images")) {
		s, err := e.Images()
		if err != nil {
			return nil, err
		}
		list, err := s.Trash()
		if err != nil {
			return nil, err
		}
		for _, t := range list {
			r := byID[t.ID]
			if r == nil {
				r = &Removal{ID: t.ID, Command: t.Command, Time: t.Time, Expires: t.Expires}
				byID[t.ID] = r
				all = append(all, r)
			}
			for _, i := range t.Images {
				if i.Name.Path != "" {
					r.Images = append(r.Images, i.Name.Familiar())
				} else {
					r.Images = append(r.Images, fmt.Sprintf("%.19s", i.ID))
				}
			}
		}
	}
	vols, err := e.trashedVolumes()
	if err != nil {
		return nil, err
	}
	for _, t := range vols {
		r := byID[t.ID]
		if r == nil {
			r = &Removal{ID: t.ID, Command: t.Command, Time: t.Time, Expires: t.Expires}
			byID[t.ID] = r
			all = append(all, r)
		}
		r.Volumes = t.Volumes
	}
	recs, err := e.trashed()
	if err != nil {
		return nil, err
	}
	names := map[string]string{}
	for _, r := range recs {
		names[r.ID] = r.Config.Name
	}
	for _, r := range all {
		ids, err := e.trashedIDs(r.ID)
		if err != nil {
			return nil, err
		}
		for _, id := range ids {
			if names[id] == "" {
				names[id] = id[:12]
			}
			r.Containers = append(r.Containers, names[id])
		}
	}
	all = slices.DeleteFunc(all, func(r *Removal) bool { return len(r.Images)+len(r.Containers)+len(r.Volumes) == 0 })
	slices.SortFunc(all, func(a, b *Removal) int { return b.Time.Compare(a.Time) })
	return all, nil
}

// Undone is one thing that Undo gave back.
type Undone struct {
	What  string // "image", "volume" or "container"
	Name  string // under which it is here again; of an image without a name its id
	Taken string // the name that it had, and that something else has now; "" when it has its own
}

// Undo takes a removal back, the newest when id is "". NotFound when there is none, or its trash has been emptied.
func (e *Engine) Undo(ctx context.Context, id string) (out []Undone, err error) {
	all, err := e.Removals()
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(all, func(r *Removal) bool { return id == "" || r.ID == id })
	if i < 0 {
		why := "nothing was removed, or its time is over"
		if id != "" {
			why = "the trash does not hold it"
		}
		return nil, &errdefs.Error{Op: "undo", What: id, Kind: errdefs.NotFound, Why: why, Fix: "see what can be undone: onggi undo --list"}
	}
	r := all[i]
	if len(r.Images) > 0 { // first, for the containers stand on them
		s, err := e.Images()
		if err != nil {
			return nil, err
		}
		list, err := s.Restore(ctx, r.ID)
		if err != nil {
			return nil, err
		}
		for _, x := range list {
			u := Undone{What: "image", Name: x.Name}
			if x.Taken || x.Name == "" {
				u.Name, u.Taken = string(x.Image), x.Name
			}
			out = append(out, u)
		}
	}
	if len(r.Volumes) > 0 { // for the same reason
		list, err := e.restoreVolumes(r.ID)
		out = append(out, list...)
		if err != nil {
			return out, err
		}
	}
	ids, err := e.trashedIDs(r.ID)
	if err != nil {
		return out, err
	}
	for _, c := range ids {
		u, err := e.restoreContainer(r.ID, c)
		if err != nil {
			return out, err
		}
		out = append(out, u)
	}
	return out, ignoreMissing(os.RemoveAll(e.removalDir(r.ID)))
}

func (e *Engine) restoreContainer(removal, id string) (Undone, error) {
	u := Undone{What: "container"}
	steps := undo.New("undo")
	from := filepath.Join(e.removalDir(removal), id)
	if err := steps.Do("move", func() error { return os.Rename(from, e.stateDir(id)) }, nil); err != nil {
		return u, err
	}
	if err := syncDir(e.containersDir()); err != nil {
		return u, err
	}
	h, err := e.tryLock(id)
	if err != nil || h == nil {
		u.Name = id[:12]
		return u, err // somebody uses it already
	}
	defer h.unlock()
	if h.rec, err = e.read(id); err != nil {
		return u, err
	}
	u.Name = h.rec.Config.Name
	if err := h.claim(h.rec.Config.Name); errdefs.Is(err, errdefs.AlreadyExists) {
		u.Taken = h.rec.Config.Name
		if err := h.claim(""); err != nil {
			return u, err
		}
		u.Name = h.rec.Config.Name
	} else if err != nil {
		return u, err
	}
	return u, h.write(true)
}

// EmptyTrash deletes what the removals hold that chosen says, and gives their space back.
func (e *Engine) EmptyTrash(ctx context.Context, chosen func(*Removal) bool) error {
	var errs []error
	if exists(filepath.Join(e.o.Root, "images")) {
		s, err := e.Images()
		if err == nil {
			err = s.EmptyTrash(ctx, func(t *image.Trash) bool {
				return chosen(&Removal{ID: t.ID, Command: t.Command, Time: t.Time, Expires: t.Expires})
			})
		}
		errs = append(errs, err)
	}
	errs = append(errs, e.emptyVolumeTrash(chosen))
	all, err := e.removals()
	errs = append(errs, err)
	for _, r := range all {
		if chosen(r) {
			errs = append(errs, e.emptyRemoval(ctx, r.ID))
		}
	}
	return errors.Join(errs...)
}

func (e *Engine) emptyRemoval(ctx context.Context, removal string) error {
	ids, err := e.trashedIDs(removal)
	if err != nil {
		return err
	}
	s, err := e.snapshot()
	if err != nil {
		return err
	}
	steps := undo.New("empty")
	for _, id := range ids {
		if err := steps.Do("snapshot", func() error { return s.Remove(ctx, id) }, nil); err != nil {
			return err
		}
		if err := steps.Do("record", func() error { return os.RemoveAll(filepath.Join(e.removalDir(removal), id)) }, nil); err != nil {
			return err
		}
	}
	return ignoreMissing(os.RemoveAll(e.removalDir(removal)))
}

// empty says that a directory has no entries, or is not there.
func empty(dir string) bool {
	d, err := os.Open(dir)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	defer d.Close()
	names, _ := d.Readdirnames(1)
	return len(names) == 0
}

// SweepTrash empties what has expired, and removes what a killed command began. It costs three directory reads when there is
// nothing. It is called where nobody waits for it, or where space is asked for anyway.
func (e *Engine) SweepTrash(ctx context.Context) error {
	if empty(e.trashDir()) && empty(filepath.Join(e.o.Root, "images", "trash")) && empty(filepath.Join(e.o.Root, "volumes", ".trash")) {
		return nil
	}
	t := now()
	half, _ := filepath.Glob(filepath.Join(e.trashDir(), halfPrefix+"*"))
	for _, p := range half {
		if fi, err := os.Stat(p); err == nil && t.Sub(fi.ModTime()) > time.Minute { // made in milliseconds
			if err := os.RemoveAll(p); err != nil {
				return err
			}
		}
	}
	return e.EmptyTrash(ctx, func(r *Removal) bool { return !t.Before(r.Expires) })
}

// imagesInUse locks images.lock and returns which images containers use. Those in the trash do not count: what goes into
// the trash after them stays there for longer than they.
func (e *Engine) imagesInUse() (inUse func(digest.Digest) bool, unlock func(), err error) {
	if err := e.make(); err != nil {
		return nil, nil, err
	}
	lock, err := flockFile(e.imagesLockPath(), unix.LOCK_EX)
	if err != nil {
		return nil, nil, err
	}
	records, err := e.records()
	if err != nil {
		_ = lock.Close()
		return nil, nil, err
	}
	used := map[digest.Digest]bool{}
	for _, r := range records {
		used[r.ImageID] = true
	}
	return func(d digest.Digest) bool { return used[d] }, func() { _ = lock.Close() }, nil
}

// DiscardImages is RemoveImage of several into the trash; why says of those that stay why. A nil to only says what would go.
func (e *Engine) DiscardImages(ctx context.Context, namesOrIDs []string, force bool, to *Removal) (out []image.Removed, why []error, err error) {
	store, err := e.Images()
	if err != nil {
		return nil, nil, err
	}
	inUse, unlock, err := e.imagesInUse()
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	if to == nil {
		return store.WouldRemove(namesOrIDs, force, inUse)
	}
	return store.DiscardAll(ctx, namesOrIDs, force, inUse, image.Disposal{ID: to.ID, Command: to.Command, Expires: to.Expires})
}
