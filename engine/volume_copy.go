package engine

import (
	"context"
	"io"
	"os"

	"github.com/onggi/onggi/archive"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/events"
	"github.com/onggi/onggi/mount"
	"github.com/onggi/onggi/pathrs"
	"github.com/onggi/onggi/volume"
	"golang.org/x/sys/unix"
)

// openVolume opens the root of a volume for reading, mounting it in no namespace if it is one that is mounted.
func (e *Engine) openVolume(name string) (*volume.Volume, *os.File, error) {
	v, err := e.GetVolume(name)
	if err != nil {
		return nil, nil, err
	}
	how, err := volume.MountOf(v.Options)
	if err != nil {
		return nil, nil, err
	}
	switch how.Type {
	case "":
		d, err := pathrs.OpenRoot(v.Path)
		return &v.Volume, d, err
	case "bind":
		d, err := os.Open(how.Device)
		return &v.Volume, d, err
	case "tmpfs", "ramfs":
		return nil, nil, &errdefs.Error{
			Op: "read volume", What: name, Kind: errdefs.Unsupported, Why: "what a " + how.Type + " holds is only in the container that runs with it",
			Fix: "copy it out of the container: onggi cp CONTAINER:/PLACE -",
		}
	}
	options, err := resolveAddress(how)
	if err != nil {
		return nil, nil, err
	}
	d, err := mount.Detached(mount.Mount{Type: how.Type, Source: how.Device, Options: options})
	return &v.Volume, d, err
}

// SnapshotVolume makes the volume to with the content, labels and size that the volume from has now: by reflink where the
// file system has that, so that it takes no space until one of the two changes, else as a copy. Users are the containers
// that run with it: what they write meanwhile may be in it by half. AlreadyExists when to is here.
func (e *Engine) SnapshotVolume(ctx context.Context, from, to string) (users []string, err error) {
	store, err := e.Volumes()
	if err != nil {
		return nil, err
	}
	v, src, err := e.openVolume(from)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	if _, err := store.Get(to); err == nil {
		return nil, &errdefs.Error{
			Op: "make volume", What: to, Kind: errdefs.AlreadyExists, Why: "a volume of this name is here", Fix: "choose another name, or remove it: onggi volume rm " + to,
		}
	}
	options := map[string]string{}
	if size := v.Options["size"]; size != "" {
		options["size"] = size
	}
	if _, err := store.CreateFrom(to, v.Labels, options, func(dst *os.File) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return volume.Copy(dst, int(src.Fd()))
	}); err != nil {
		return nil, err
	}
	e.Emit(events.Volume, "create", to, map[string]string{"driver": volume.Driver})
	records, err := e.records()
	for _, r := range records {
		for _, n := range r.Volumes {
			if n == from && r.Status == Running {
				users = append(users, r.Config.Name)
			}
		}
	}
	return users, err
}

// ExportVolume writes the content of a volume as a tar archive: owners, modes, times in seconds, links, attributes,
// devices. Sockets are left out. Errors: NotFound, those of reading, and w's.
func (e *Engine) ExportVolume(ctx context.Context, name string, w io.Writer) error {
	_, src, err := e.openVolume(name)
	if err != nil {
		return err
	}
	defer src.Close()
	tree, err := openHere(src)
	if err != nil {
		return err
	}
	defer tree.Close()
	d := &archive.Difference{Tree: tree, Whole: true}
	if _, err := d.Pack(ctx, w); err != nil {
		return &errdefs.Error{Op: "export volume", What: name, Kind: errdefs.KindOf(err), Fix: errdefs.FixOf(err), Err: err}
	}
	return nil
}

// openHere opens a directory handle, which may be of the O_PATH kind, for reading.
func openHere(f *os.File) (*os.File, error) {
	fd, err := pathrs.Openat2(int(f.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY, 0, pathrs.NoSymlinks)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: f.Name(), Err: err}
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// ImportVolume makes a volume of a tar archive, compressed or not, or fills one that is here and empty. It is there whole or
// not at all. Errors: AlreadyExists for one with content, and those of archive.Apply.
func (e *Engine) ImportVolume(ctx context.Context, o VolumeOptions, r io.Reader) (*volume.Volume, error) {
	store, err := e.Volumes()
	if err != nil {
		return nil, err
	}
	v, err := store.CreateFrom(o.Name, o.Labels, o.Options, func(dst *os.File) error {
		tar, _, err := archive.Decompress(r)
		if err != nil {
			return err
		}
		defer tar.Close()
		_, err = archive.Apply(ctx, tar, dst, archive.Options{Whiteouts: "none"})
		return err
	})
	if err != nil {
		return nil, err
	}
	e.Emit(events.Volume, "create", v.Name, map[string]string{"driver": volume.Driver})
	return v, nil
}
