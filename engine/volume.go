package engine

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/events"
	"github.com/onggi/onggi/volume"
	"golang.org/x/sys/unix"
)

// Volume is a named or anonymous volume and who uses it.
type Volume struct {
	volume.Volume
	Users []string // names of the containers that use it, those in the trash included, sorted
}

// VolumeOptions are what CreateVolume is asked for.
type VolumeOptions struct {
	Name    string // "" makes an anonymous one
	Driver  string // "" or "local"
	Labels  map[string]string
	Options map[string]string // of the driver: type, o, device, size
}

// CreateVolume makes a volume; one of the same name, labels and options is returned as it is. AlreadyExists when it is
// another one, InvalidArgument for a name, a driver or an option that is not honoured, Unsupported for a size where the
// file system has no project quotas.
func (e *Engine) CreateVolume(ctx context.Context, o VolumeOptions) (*volume.Volume, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	store, err := e.Volumes()
	if err != nil {
		return nil, err
	}
	for k := range o.Labels {
		if k == "" || strings.ContainsRune(k, 0) {
			return nil, invalid("--label", "", "a label has no name", "write NAME=VALUE")
		}
	}
	var before *volume.Volume
	if o.Name != "" {
		before, _ = store.Get(o.Name)
	}
	v, err := store.Create(o.Name, o.Driver, o.Labels, o.Options)
	if err == nil && before == nil {
		e.Emit(events.Volume, "create", v.Name, map[string]string{"driver": volume.Driver})
	}
	return v, err
}

// ListVolumes returns all volumes by name. It makes nothing.
func (e *Engine) ListVolumes() ([]*Volume, error) {
	if !exists(filepath.Join(e.o.Root, "volumes")) {
		return nil, nil
	}
	store, err := e.Volumes()
	if err != nil {
		return nil, err
	}
	list, err := store.List()
	if err != nil {
		return nil, err
	}
	users, err := e.volumeUsers(nil)
	if err != nil {
		return nil, err
	}
	out := make([]*Volume, len(list))
	for i, v := range list {
		out[i] = &Volume{Volume: *v, Users: users[v.Name]}
	}
	return out, nil
}

// GetVolume returns a volume by its name. NotFound when there is none.
func (e *Engine) GetVolume(name string) (*Volume, error) {
	if volume.CheckName(name) != nil || !exists(filepath.Join(e.o.Root, "volumes")) {
		return nil, noVolume(name)
	}
	store, err := e.Volumes()
	if err != nil {
		return nil, err
	}
	v, err := store.Get(name)
	if errdefs.Is(err, errdefs.NotFound) {
		return nil, noVolume(name)
	}
	if err != nil {
		return nil, err
	}
	users, err := e.volumeUsers(nil)
	if err != nil {
		return nil, err
	}
	return &Volume{Volume: *v, Users: users[name]}, nil
}

func noVolume(name string) error {
	return &errdefs.Error{Op: "find", What: "volume " + name, Kind: errdefs.NotFound, Why: "there is no such volume", Fix: "see: onggi volume ls"}
}

// RemoveVolume removes a volume that no container uses: into the trash, or with a nil to at once. Conflict, with the
// names of the containers, when it is in use, also by one in the trash, which Undo may bring back; NotFound.
func (e *Engine) RemoveVolume(ctx context.Context, name string, to *Removal) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if volume.CheckName(name) != nil || !exists(filepath.Join(e.o.Root, "volumes")) {
		return noVolume(name)
	}
	e.sweepInterrupted(ctx) // what a killed command was making uses no volume
	store, err := e.Volumes()
	if err != nil {
		return err
	}
	users, unlock, err := e.volumesInUse(nil)
	if err != nil {
		return err
	}
	defer unlock()
	return e.removeVolume(store, name, users[name], to)
}

// volumesInUse locks images.lock, which whoever writes the first record of a container has, and returns which
// containers but these use which volumes: none comes to use another one until unlock.
func (e *Engine) volumesInUse(but []string) (users map[string][]string, unlock func(), err error) {
	if err := e.make(); err != nil {
		return nil, nil, err
	}
	lock, err := flockFile(e.imagesLockPath(), unix.LOCK_EX)
	if err != nil {
		return nil, nil, err
	}
	if users, err = e.volumeUsers(but); err != nil {
		_ = lock.Close()
		return nil, nil, err
	}
	return users, func() { _ = lock.Close() }, nil
}

// removeVolume removes a volume that these containers use.
func (e *Engine) removeVolume(store *volume.Store, name string, users []string, to *Removal) error {
	if len(users) > 0 {
		return &errdefs.Error{
			Op: "remove", What: "volume " + name, Kind: errdefs.Conflict, Why: "volume is in use - [" + strings.Join(users, ", ") + "]",
			Fix: "remove what uses it first: onggi rm " + strings.Join(users, " ") + "; of containers in the trash: onggi system prune --trash",
		}
	}
	if to == nil {
		if _, err := store.Get(name); errdefs.Is(err, errdefs.NotFound) {
			return noVolume(name)
		}
		if err := store.Remove(name); err != nil {
			return err
		}
		e.Emit(events.Volume, "destroy", name, map[string]string{"driver": volume.Driver})
		return nil
	}
	err := store.Discard(name, volume.Disposal{ID: to.ID, Command: to.Command, Time: to.Time, Expires: to.Expires})
	if errdefs.Is(err, errdefs.NotFound) {
		return noVolume(name)
	}
	if err == nil {
		e.Emit(events.Volume, "destroy", name, map[string]string{"driver": volume.Driver})
	}
	return err
}

// volumeUsers are the names of the containers but these, by the volumes that they use; those in the trash count, for
// whoever comes back wants its data.
func (e *Engine) volumeUsers(but []string) (map[string][]string, error) {
	records, err := e.records()
	if err != nil {
		return nil, err
	}
	trashed, err := e.trashed()
	if err != nil {
		return nil, err
	}
	users := map[string][]string{}
	for _, r := range append(records, trashed...) {
		if slices.Contains(but, r.ID) {
			continue
		}
		name := r.Config.Name
		if name == "" {
			name = r.ID[:12]
		}
		add := func(v string) {
			if v != "" && !slices.Contains(users[v], name) {
				users[v] = append(users[v], name)
			}
		}
		for _, v := range r.Volumes {
			add(v)
		}
		for _, m := range r.Config.Mounts { // before its image is here, a record names no volumes yet
			if m.Type == "volume" {
				add(m.Source)
			}
		}
	}
	for _, u := range users {
		slices.Sort(u)
	}
	return users, nil
}

// usedVolumes are the names of the volumes of all containers but these.
func (e *Engine) usedVolumes(but ...string) (map[string]bool, error) {
	users, err := e.volumeUsers(but)
	used := map[string]bool{}
	for v := range users {
		used[v] = true
	}
	return used, err
}

// emptyVolumeTrash deletes what the volumes' part of the removals holds that chosen says.
func (e *Engine) emptyVolumeTrash(chosen func(*Removal) bool) error {
	if empty(filepath.Join(e.o.Root, "volumes", ".trash")) {
		return nil
	}
	store, err := e.Volumes()
	if err != nil {
		return err
	}
	return store.EmptyTrash(func(t *volume.Trash) bool {
		return chosen(&Removal{ID: t.ID, Command: t.Command, Time: t.Time, Expires: t.Expires})
	})
}

// trashedVolumes lists the volumes' part of the removals.
func (e *Engine) trashedVolumes() ([]*volume.Trash, error) {
	if empty(filepath.Join(e.o.Root, "volumes", ".trash")) {
		return nil, nil
	}
	store, err := e.Volumes()
	if err != nil {
		return nil, err
	}
	return store.Trash()
}

// restoreVolumes brings the volumes of a removal back.
func (e *Engine) restoreVolumes(removal string) (out []Undone, err error) {
	store, err := e.Volumes()
	if err != nil {
		return nil, err
	}
	list, err := store.Restore(removal)
	for _, r := range list {
		out = append(out, Undone{What: "volume", Name: r.Name, Taken: r.Taken})
		e.Emit(events.Volume, "create", r.Name, map[string]string{"driver": volume.Driver})
	}
	return out, err
}

// pruneVolumes removes the volumes of a plan, unless they have come into use since. Those of containers that the same
// prune has put into the trash are not in use: both come back together.
func (e *Engine) pruneVolumes(list []VolumeUsage, to *Removal) ([]string, error) {
	if len(list) == 0 {
		return nil, nil
	}
	store, err := e.Volumes()
	if err != nil {
		return nil, err
	}
	var together []string
	if to != nil {
		if together, err = e.trashedIDs(to.ID); err != nil {
			return nil, err
		}
	}
	users, unlock, err := e.volumesInUse(together)
	if err != nil {
		return nil, err
	}
	defer unlock()
	var gone []string
	var errs []error
	for _, v := range list {
		switch err := e.removeVolume(store, v.Name, users[v.Name], to); {
		case err == nil:
			gone = append(gone, v.Name)
		case !errdefs.Is(err, errdefs.NotFound) && !errdefs.Is(err, errdefs.Conflict):
			errs = append(errs, err)
		}
	}
	return gone, errors.Join(errs...)
}
