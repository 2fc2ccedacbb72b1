package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/pathrs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Verify unpacks the layer's archive r again, which verifies the archive, and compares the result with the tree that is
// in the store: names, kinds, owners, modes, times, attributes and every byte. differs says what is otherwise, "" when
// nothing is; a layer that is not there, or whose record is damaged, is otherwise. With repair such a tree is replaced by
// the new one: the caller sees to it that no container runs on it. Nothing else of the new tree stays. An archive that is
// not the layer's is an error of kind Corrupt.
func (s *Store) Verify(ctx context.Context, diffID digest.Digest, r io.Reader, repair bool) (differs string, err error) {
	if err := check(diffID); err != nil {
		return "", err
	}
	l, err := s.lock(ctx, string(diffID.Algorithm())+"-"+diffID.Encoded())
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, l.unlock()) }()
	old, oldErr := s.Layer(diffID)
	var from *Blob // what could be made of the old tree can be made of the new one
	if oldErr == nil {
		from = old.Blob
	}
	u, err := s.unpack(ctx, diffID, r, "overlay", from)
	if err != nil {
		return "", err
	}
	placed := false
	defer func() {
		if placed {
			_ = u.dir.Close()
		} else {
			err = errors.Join(err, s.drop(u.dir))
		}
	}()
	err = oldErr
	switch {
	case errdefs.Is(err, errdefs.NotFound):
		differs = "it is not unpacked"
	case errdefs.Is(err, errdefs.Corrupt):
		differs = "its record is damaged"
	case err != nil:
		return "", err
	case old.Size != u.layer.Size || old.Opaque != u.layer.Opaque || !slices.Equal(old.Implied, u.layer.Implied):
		differs = "its record says something else than its archive"
	default:
		if differs, err = s.compare(ctx, u.dir.Name()+"/fs", s.path(layerPath(diffID), "fs")); err != nil {
			return "", s.fail("compare the layer", string(diffID), err)
		}
	}
	if differs == "" || !repair {
		return differs, nil
	}
	if err := os.MkdirAll(s.path(layersDir, string(diffID.Algorithm())), 0o700); err != nil {
		return differs, s.fail("repair the layer", string(diffID), err)
	}
	if err := unix.Syncfs(int(u.dir.Fd())); err != nil {
		return differs, s.fail("sync the layer", string(diffID), err)
	}
	if err := s.place(u, layerPath(diffID)); err != nil {
		return differs, s.fail("repair the layer", string(diffID), err)
	}
	placed = true
	// The chains stay: they were found out when the layer was whole, and containers stand on them.
	return differs, syncFile(s.path(layersDir, string(diffID.Algorithm())))
}

// compare says in what the tree got is otherwise than the tree want.
func (s *Store) compare(ctx context.Context, want, got string) (string, error) {
	a, err := pathrs.OpenRoot(want)
	if err != nil {
		return "", err
	}
	defer a.Close()
	b, err := pathrs.OpenRoot(got)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return "it has no tree", nil
	}
	if err != nil {
		return "", err
	}
	defer b.Close()
	c := &comparison{ctx: ctx, links: map[uint64]uint64{}}
	return c.dirs(a, b, "")
}

type comparison struct {
	ctx   context.Context
	links map[uint64]uint64 // inode numbers of files with several names, of want -> of got
}

func (c *comparison) dirs(a, b *os.File, path string) (string, error) {
	if err := c.ctx.Err(); err != nil {
		return "", err
	}
	if differs, err := sameAttributes(int(a.Fd()), int(b.Fd()), path); differs != "" || err != nil {
		return differs, err
	}
	want, err := a.Readdirnames(-1)
	if err != nil {
		return "", err
	}
	got, err := b.Readdirnames(-1)
	if err != nil {
		return "", err
	}
	slices.Sort(want)
	slices.Sort(got)
	for _, n := range got {
		if _, ok := slices.BinarySearch(want, n); !ok {
			return path + "/" + n + " does not belong there", nil
		}
	}
	for _, n := range want {
		if _, ok := slices.BinarySearch(got, n); !ok {
			return path + "/" + n + " is missing", nil
		}
		if differs, err := c.entry(int(a.Fd()), int(b.Fd()), n, path+"/"+n); differs != "" || err != nil {
			return differs, err
		}
	}
	return "", nil
}

func (c *comparison) entry(a, b int, name, path string) (string, error) {
	var s, t unix.Stat_t
	for _, x := range []struct {
		dir int
		st  *unix.Stat_t
	}{{a, &s}, {b, &t}} {
		if err := unix.Fstatat(x.dir, name, x.st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return "", &os.PathError{Op: "stat", Path: path, Err: err}
		}
	}
	kind := s.Mode & unix.S_IFMT
	switch {
	case s.Mode != t.Mode:
		return fmt.Sprintf("%s has mode %o instead of %o", path, t.Mode, s.Mode), nil
	case s.Uid != t.Uid || s.Gid != t.Gid:
		return fmt.Sprintf("%s belongs to %d:%d instead of %d:%d", path, t.Uid, t.Gid, s.Uid, s.Gid), nil
	case s.Rdev != t.Rdev:
		return path + " is another device", nil
	case kind != unix.S_IFDIR && s.Nlink != t.Nlink:
		return fmt.Sprintf("%s has %d names instead of %d", path, t.Nlink, s.Nlink), nil
	// An implied directory and a whiteout get their time when they are unpacked.
	case kind == unix.S_IFREG && s.Mtim != t.Mtim:
		return path + " has another time", nil
	case kind == unix.S_IFREG && s.Size != t.Size:
		return fmt.Sprintf("%s has %d bytes instead of %d", path, t.Size, s.Size), nil
	}
	switch kind {
	case unix.S_IFLNK:
		x, err := readlink(a, name)
		if err != nil {
			return "", err
		}
		y, err := readlink(b, name)
		if err != nil {
			return "", err
		}
		if x != y {
			return path + " leads elsewhere", nil
		}
		return "", nil
	case unix.S_IFREG, unix.S_IFDIR:
	default:
		return "", nil
	}
	if kind == unix.S_IFREG && s.Nlink > 1 {
		if other, ok := c.links[s.Ino]; ok {
			if other != t.Ino {
				return path + " is a hard link of another file", nil
			}
			return "", nil
		}
		c.links[s.Ino] = t.Ino
	}
	open := func(dir int) (*os.File, error) {
		fd, err := pathrs.Openat2(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0, pathrs.NoSymlinks|unix.RESOLVE_NO_XDEV)
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
		return os.NewFile(uintptr(fd), path), nil
	}
	f, err := open(a)
	if err != nil {
		return "", err
	}
	defer f.Close()
	g, err := open(b)
	if err != nil {
		return "", err
	}
	defer g.Close()
	if kind == unix.S_IFDIR {
		return c.dirs(f, g, path)
	}
	if differs, err := sameAttributes(int(f.Fd()), int(g.Fd()), path); differs != "" || err != nil {
		return differs, err
	}
	return sameBytes(f, g, path)
}

func readlink(dir int, name string) (string, error) {
	b := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, b)
	if err != nil {
		return "", &os.PathError{Op: "readlink", Path: name, Err: err}
	}
	return string(b[:n]), nil
}

func sameBytes(f, g io.Reader, path string) (string, error) {
	p, q := make([]byte, 256<<10), make([]byte, 256<<10)
	for {
		n, err := io.ReadFull(f, p)
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return "", &os.PathError{Op: "read", Path: path, Err: err}
		}
		m, gerr := io.ReadFull(g, q)
		if gerr != nil && gerr != io.EOF && gerr != io.ErrUnexpectedEOF {
			return path + " cannot be read: " + gerr.Error(), nil // the medium says that it is broken
		}
		if !bytes.Equal(p[:n], q[:m]) {
			return path + " has another content", nil
		}
		if err != nil {
			return "", nil
		}
	}
}

// sameAttributes compares mode, owner and extended attributes, those of overlayfs among them.
func sameAttributes(a, b int, path string) (string, error) {
	m, err := allMetadata(a)
	if err != nil {
		return "", err
	}
	o, err := allMetadata(b)
	if err != nil {
		return "", err
	}
	if !m.same(o) {
		return strings.TrimPrefix(path+"/", "/") + ": owner, mode or attributes are others", nil
	}
	return "", nil
}

// allMetadata is metadataOf with the mark of an opaque directory.
func allMetadata(fd int) (*metadata, error) {
	m, err := metadataOf(fd)
	if err == nil && isOpaque(fd) {
		if m.xattrs == nil {
			m.xattrs = map[string][]byte{}
		}
		m.xattrs["opaque"] = nil
	}
	return m, err
}
