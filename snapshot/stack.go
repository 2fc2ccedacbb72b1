package snapshot

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/mount"
	"github.com/onggi/onggi/pathrs"
	"github.com/onggi/onggi/undo"
	"github.com/onggi/onggi/userns"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// chainLink is the record of a writable layer: a symbolic link to the name of its chain. A link of less than 60 bytes
// lies in its inode (ext4, xfs, btrfs), so the file system's own journal keeps it together with the directory that it is
// in: after a crash either both are there or none, without an fsync in each start.
const chainLink = "chain"

// containerPath is the place of a writable layer, relative to the store. The id becomes one component of a path and is
// checked as such.
func containerPath(id string) (string, error) {
	ok := id != "" && len(id) <= 128 && id[0] != '.'
	for i := 0; ok && i < len(id); i++ {
		c := id[i]
		ok = c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.'
	}
	if !ok {
		return "", &errdefs.Error{
			Op: "find the writable layer", What: strconv.Quote(id), Kind: errdefs.InvalidArgument,
			Why: "an id has letters, digits, '-', '_' and '.', and at most 128 of them",
		}
	}
	return containersDir + "/" + id, nil
}

// Prepare makes the writable layer id (a container's id) on top of layers (bottom first). AlreadyExists if there;
// NotFound names a layer that is missing. It syncs nothing: after a crash the record of the container says that it was
// being made.
func (s *Store) Prepare(ctx context.Context, id string, layers []digest.Digest) (err error) {
	rel, err := containerPath(id)
	if err != nil {
		return err
	}
	for _, d := range layers {
		if err := check(d); err != nil {
			return err
		}
	}
	c, err := s.chain(ctx, layers)
	if err != nil {
		return err
	}
	if err := s.allThere(c.Lower); err != nil {
		return err
	}
	dir := s.path(rel)
	steps := undo.New("snapshot")
	defer steps.Undo(&err)
	err = steps.Do("prepare", func() error { return os.Mkdir(dir, 0o700) }, func() error { return s.throwAway(rel) })
	if errors.Is(err, fs.ErrExist) {
		return &errdefs.Error{Op: "prepare the writable layer", What: id, Kind: errdefs.AlreadyExists, Why: "it is there already"}
	}
	if err == nil {
		err = s.fillContainer(dir, c)
	}
	if err != nil {
		return s.fail("prepare the writable layer", id, err)
	}
	return nil
}

// fillContainer makes upper, work and the record. Overlayfs shows the upper directory's own metadata at the root, so it
// gets that of the image's root.
func (s *Store) fillContainer(dir string, c *chain) error {
	if err := os.Mkdir(dir+"/work", 0o700); err != nil {
		return err
	}
	if err := os.Mkdir(dir+"/upper", 0o700); err != nil {
		return err
	}
	from, err := pathrs.OpenRoot(s.path(c.Root))
	if err != nil {
		return err
	}
	defer from.Close()
	m, err := metadataOf(int(from.Fd()))
	if err != nil {
		return err
	}
	to, err := pathrs.OpenRoot(dir + "/upper")
	if err != nil {
		return err
	}
	defer to.Close()
	if err := m.set(to); err != nil {
		return err
	}
	return os.Symlink(chainID(c.Layers), dir+"/"+chainLink)
}

// allThere names a lower directory that is gone, which mount(2) would not.
func (s *Store) allThere(lower []string) error {
	for _, l := range lower {
		var st unix.Stat_t
		if err := unix.Lstat(s.path(l), &st); err != nil {
			return &errdefs.Error{Op: "stack the layer", What: l, Kind: errdefs.KindOf(err), Why: "it is not unpacked here", Fix: "pull the image again", Err: err}
		}
	}
	return nil
}

// Mounts returns the stack of id as mounts: overlay with the writable layer, or read-only without it (an overlay of the
// layers, or a bind mount if there is only one). volatile as in mount.Overlay. The target is "", the root.
func (s *Store) Mounts(id string, readonly, volatile bool) ([]mount.Mount, error) {
	rel, err := containerPath(id)
	if err != nil {
		return nil, err
	}
	c, err := s.chainOf(rel, id)
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
	switch {
	case readonly && len(lower) == 1:
		return []mount.Mount{{Type: "bind", Source: lower[0], Options: []string{"bind", "ro"}}}, nil
	case readonly:
		return []mount.Mount{{Type: "overlay", Options: []string{"ro"}, Overlay: &mount.Overlay{Lower: lower, UserXattr: userns.Rootless()}}}, nil
	}
	return []mount.Mount{{Type: "overlay", Overlay: &mount.Overlay{
		Lower: lower, Upper: s.path(rel, "upper"), Work: s.path(rel, "work"), Volatile: volatile, UserXattr: userns.Rootless(),
	}}}, nil
}

// MountAgain lets a writable layer that was mounted volatile be mounted once more: overlayfs refuses that as long as its mark
// is there (overlayfs.rst, "Volatile mount"). Precondition: the host has not crashed since it was mounted, and nobody has it
// mounted.
func (s *Store) MountAgain(id string) error {
	rel, err := containerPath(id)
	if err != nil {
		return err
	}
	// The kernel's own directory, below one that no container sees.
	if err := os.RemoveAll(s.path(rel, "work", "work", "incompat")); err != nil {
		return s.fail("mount again", id, err)
	}
	return nil
}

// chainOf reads what the writable layer id at rel stands on.
func (s *Store) chainOf(rel, id string) (*chain, error) {
	name, err := os.Readlink(s.path(rel, chainLink))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, notPrepared(id)
	}
	var c *chain
	if err == nil {
		c, err = s.readChain(filepath.Base(name))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &errdefs.Error{
			Op: "find the layers of", What: id, Kind: errdefs.NotFound, Why: "they have been removed",
			Fix: "pull the image again and make a new container",
		}
	}
	if err != nil {
		return nil, s.fail("find the layers of", id, err)
	}
	return c, nil
}

func notPrepared(id string) error {
	return &errdefs.Error{Op: "find the writable layer", What: id, Kind: errdefs.NotFound, Why: "there is none of that id"}
}

// Usage returns the bytes that id's writable layer takes on disk, and its inodes, the upper directory's own included.
// It may run while the container does.
func (s *Store) Usage(id string) (bytes, inodes int64, err error) {
	rel, err := containerPath(id)
	if err != nil {
		return 0, 0, err
	}
	upper, err := pathrs.OpenRoot(s.path(rel, "upper"))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, 0, notPrepared(id)
	}
	if err != nil {
		return 0, 0, s.fail("measure the writable layer", id, err)
	}
	defer upper.Close()
	u := usage{seen: map[uint64]bool{}}
	if err := u.dir(upper, 0); err != nil {
		return 0, 0, s.fail("measure the writable layer", id, err)
	}
	return u.bytes, u.inodes, nil
}

type usage struct {
	bytes, inodes int64
	seen          map[uint64]bool // files with several names
}

// maxUsageDepth bounds the handles held by one walk; a process can nest directories without bound.
const maxUsageDepth = 1000

func (u *usage) dir(d *os.File, depth int) error {
	if depth > maxUsageDepth {
		return &errdefs.Error{Op: "measure", What: d.Name(), Kind: errdefs.Exhausted, Why: "its directories are nested too deeply"}
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(d.Fd()), &st); err != nil {
		return err
	}
	u.bytes, u.inodes = u.bytes+st.Blocks*512, u.inodes+1
	for {
		names, err := d.Readdirnames(512)
		if len(names) == 0 || errors.Is(err, fs.ErrNotExist) {
			return nil // the end, or removed meanwhile; io.EOF is how Readdirnames says the first
		}
		for _, n := range names {
			if err := unix.Fstatat(int(d.Fd()), n, &st, unix.AT_SYMLINK_NOFOLLOW); err == unix.ENOENT {
				continue
			} else if err != nil {
				return err
			}
			if st.Mode&unix.S_IFMT != unix.S_IFDIR {
				if st.Nlink > 1 && u.seen[st.Ino] {
					continue
				}
				if st.Nlink > 1 {
					u.seen[st.Ino] = true
				}
				u.bytes, u.inodes = u.bytes+st.Blocks*512, u.inodes+1
				continue
			}
			fd, err := pathrs.Openat2(int(d.Fd()), n, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0, pathrs.NoSymlinks|unix.RESOLVE_NO_XDEV)
			if err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP {
				continue // exchanged meanwhile
			}
			if err != nil {
				return err
			}
			sub := os.NewFile(uintptr(fd), n)
			err = u.dir(sub, depth+1)
			sub.Close()
			if err != nil {
				return err
			}
		}
	}
}

// Remove removes the writable layer. Not there is not an error. It is done by renaming first, so that a crash leaves
// only what Sweep removes.
func (s *Store) Remove(ctx context.Context, id string) error {
	rel, err := containerPath(id)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return s.fail("remove the writable layer", id, err)
	}
	if _, err := os.Lstat(s.path(rel)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := s.throwAway(rel); err != nil {
		return s.fail("remove the writable layer", id, err)
	}
	return nil
}
