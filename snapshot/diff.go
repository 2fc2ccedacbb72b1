package snapshot

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/onggi/onggi/archive"
	"github.com/onggi/onggi/mount"
	"github.com/onggi/onggi/pathrs"
	"github.com/onggi/onggi/userns"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Changes calls fn for each path that the writable layer id has otherwise than the layers below it; see
// archive.Difference. It may run while the container does. NotFound when there is no such writable layer.
func (s *Store) Changes(ctx context.Context, id string, fn func(archive.Change) error) error {
	return s.difference(id, func(d *archive.Difference) error { return d.Changes(ctx, fn) })
}

// Diff writes what the writable layer id changes as a layer's uncompressed tar, the same bytes for the same changes; see
// archive.Difference.Pack. The tar can be unpacked as a layer on those that id stands on. The caller sees to it that
// nobody writes to the container meanwhile, if the layer is to be of one moment.
func (s *Store) Diff(ctx context.Context, id string, w io.Writer) (archive.Stats, error) {
	var st archive.Stats
	err := s.difference(id, func(d *archive.Difference) (err error) {
		st, err = d.Pack(ctx, w)
		return err
	})
	return st, err
}

// Export writes the root file system that the writable layer id makes with the layers below it as a tar: no whiteouts, and
// nothing of what is mounted in it. It may run while the container does. NotFound when there is no such writable layer.
func (s *Store) Export(ctx context.Context, id string, w io.Writer) error {
	return s.difference(id, func(d *archive.Difference) error {
		root, err := d.Merged()
		if err != nil {
			return err
		}
		defer root.Close()
		whole := archive.Difference{Tree: root, Whole: true} // everything is otherwise than nothing
		_, err = whole.Pack(ctx, w)
		return err
	})
}

// difference opens the writable layer and what is below it, and calls f.
func (s *Store) difference(id string, f func(*archive.Difference) error) error {
	rel, err := containerPath(id)
	if err != nil {
		return err
	}
	c, err := s.chainOf(rel, id)
	if err != nil {
		return err
	}
	d := &archive.Difference{Skip: madeForMounts}
	defer func() {
		for _, t := range d.Below {
			_ = t.Close()
		}
		if d.Tree != nil {
			_ = d.Tree.Close()
		}
	}()
	if d.Tree, err = pathrs.OpenRoot(s.path(rel, "upper")); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return notPrepared(id)
		}
		return s.fail("open the writable layer", id, err)
	}
	lower := []string{s.path(rel, "upper")}
	for _, l := range c.Lower {
		t, err := pathrs.OpenRoot(s.path(l))
		if err != nil {
			return s.fail("open a layer of", id, err)
		}
		d.Below, lower = append(d.Below, t), append(lower, s.path(l))
		if l == c.Root {
			d.Root = t
		}
	}
	d.Merged = func() (*os.File, error) {
		if userns.Rootless() { // there overlayfs neither redirects nor copies metadata alone (overlayfs.rst, "User xattr")
			return mount.Tree(mount.Mount{Type: "overlay", Options: []string{"ro"}, Overlay: &mount.Overlay{Lower: lower, UserXattr: true}})
		}
		return mount.Tree(mount.Mount{Type: "overlay", Options: []string{"ro", "redirect_dir=follow", "metacopy=on"}, Overlay: &mount.Overlay{Lower: lower}})
	}
	return f(d)
}

// madeForMounts are the empty files and directories that a runtime makes in the writable layer to mount on. Docker hides
// the same ones in a layer of its own.
func madeForMounts(path string, st *unix.Stat_t) bool {
	empty := st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size == 0
	switch path {
	case "etc/hosts", "etc/hostname", "etc/resolv.conf", "dev/console", ".dockerenv", "run/.containerenv":
		return empty
	case "proc", "sys":
		return st.Mode&unix.S_IFMT == unix.S_IFDIR
	}
	// The container's own /dev is a tmpfs; what lies below it in the tree was never seen.
	return path == "dev" || strings.HasPrefix(path, "dev/")
}

// Tree opens what layers (bottom first) show together, read-only, as a container of theirs would see it at first. It is
// mounted where nobody sees it, until the handle is closed.
func (s *Store) Tree(ctx context.Context, layers []digest.Digest) (*os.File, error) {
	for _, d := range layers {
		if err := check(d); err != nil {
			return nil, err
		}
	}
	c, err := s.chain(ctx, layers)
	if err != nil {
		return nil, err
	}
	if err := s.allThere(c.Lower); err != nil {
		return nil, err
	}
	lower := make([]string, len(c.Lower))
	for i, l := range c.Lower {
		lower[i] = s.path(l)
	}
	return mount.Tree(mount.Mount{Type: "overlay", Options: []string{"ro"}, Overlay: &mount.Overlay{Lower: lower, UserXattr: userns.Rootless()}})
}

// OpenLayer opens the tree of one layer, in overlayfs' form.
func (s *Store) OpenLayer(diffID digest.Digest) (*os.File, error) {
	if _, err := s.Layer(diffID); err != nil {
		return nil, err
	}
	f, err := pathrs.OpenRoot(s.path(layerPath(diffID), "fs"))
	if err != nil {
		return nil, s.fail("open the layer", string(diffID), err)
	}
	return f, nil
}
