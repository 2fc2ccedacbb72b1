package volume

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/pathrs"
	"github.com/onggi/onggi/undo"
	"golang.org/x/sys/unix"
)

// maxDepth bounds the nesting of what is copied: two handles are open for each level.
const maxDepth = 200

// Populate copies the tree below the directory handle src into a fresh volume (owner, mode, times, links, xattrs,
// devices and FIFOs kept; sockets, which belong to a process, left out), once; it is what docker does at first use. A
// volume with content is left alone. src may be an O_PATH handle; no link in it is followed and no mount entered.
//
// The copy is made aside and synced, takes the place of the empty directory with one rename, and only then is the
// volume marked: a process killed on the way leaves a volume that is still fresh and empty. On success v.Fresh is
// false.
func (s *Store) Populate(v *Volume, src int) (err error) {
	defer func() {
		if err != nil {
			err = &errdefs.Error{
				Op: "copy the image's content into volume", What: v.Name, Kind: errdefs.KindOf(err),
				Fix: errdefs.FixOf(err), Err: err,
			}
		}
	}()
	if err := CheckName(v.Name); err != nil {
		return err
	}
	unlock, err := s.lockVolume(v.Name)
	if err != nil {
		return err
	}
	defer unlock()
	now, err := s.read(v.Name) // what it is under the lock
	if err != nil {
		return err
	}
	if !now.Fresh {
		v.Fresh = false
		return nil
	}
	from, err := openDir(src, ".", 0)
	if err != nil {
		return err
	}
	defer from.Close()
	dir, err := pathrs.OpenRoot(filepath.Join(s.dir, v.Name))
	if err != nil {
		return err
	}
	defer dir.Close()

	u := undo.New("volume.populate")
	defer u.Undo(&err)
	if empty, err := isEmpty(dir, dataDir); err != nil {
		return err
	} else if empty {
		if err := u.Do("copy", func() error {
			return s.stage(dir, now.Project, func(to *os.File) error { return Copy(to, int(from.Fd())) })
		}, func() error { return pathrs.RemoveAll(dir, stagingDir) }); err != nil {
			return err
		}
		// Renaming over a directory works when that is empty, and only then: a file that appeared meanwhile is not lost.
		if err := u.Do("place", func() error {
			if err := unix.Renameat(int(dir.Fd()), stagingDir, int(dir.Fd()), dataDir); err != nil {
				return err
			}
			if s.volatile {
				return nil
			}
			return dir.Sync()
		}, nil); err != nil {
			return err
		}
	}
	u.Done()
	now.Fresh = false
	if err := u.Do("record", func() error { return s.writeRecord(dir.Name(), now) }, nil); err != nil {
		return err
	}
	v.Fresh = false
	return nil
}

// Fill copies the tree below the directory handle src into the directory handle dst, if that is empty, as Populate copies;
// it is for volumes that are mounted from elsewhere. What was copied is removed again on failure.
func Fill(dst, src int) (err error) {
	to, err := openDir(dst, ".", 0)
	if err != nil {
		return err
	}
	defer to.Close()
	if _, err := to.Readdirnames(1); err != io.EOF {
		return err // something is there, or it cannot be read
	}
	from, err := openDir(src, ".", 0)
	if err != nil {
		return err
	}
	defer from.Close()
	defer func() {
		if err != nil {
			err = errors.Join(err, removeIn(to))
		}
	}()
	return Copy(to, int(from.Fd()))
}

// removeIn removes what is in a directory.
func removeIn(dir *os.File) error {
	if _, err := dir.Seek(0, io.SeekStart); err != nil {
		return err
	}
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := pathrs.RemoveAll(dir, n); err != nil {
			return err
		}
	}
	return nil
}

func isEmpty(dir *os.File, name string) (bool, error) {
	d, err := openDir(int(dir.Fd()), name, 0)
	if err != nil {
		return false, err
	}
	defer d.Close()
	_, err = d.Readdirnames(1)
	if err == io.EOF {
		return true, nil
	}
	return false, err
}

// openDir opens a directory in a directory. resolve adds to pathrs.NoSymlinks.
func openDir(dirfd int, name string, resolve uint64) (*os.File, error) {
	fd, err := pathrs.Openat2(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0, pathrs.NoSymlinks|resolve)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

type inode struct{ dev, ino uint64 }

// copier copies one tree.
type copier struct {
	root  *os.File // the copy's root
	links map[inode]string
	depth int
	names [64 << 10]byte // XATTR_LIST_MAX
	value [64 << 10]byte // XATTR_SIZE_MAX
}

// directory copies the entries of from into to, whose path below the root is path.
func (c *copier) directory(from, to *os.File, path string) error {
	if c.depth++; c.depth > maxDepth {
		return &errdefs.Error{Kind: errdefs.Exhausted, Why: fmt.Sprintf("directories are nested more than %d deep", maxDepth)}
	}
	defer func() { c.depth-- }()
	for {
		names, err := from.Readdirnames(256)
		for _, n := range names {
			if err := c.entry(from, to, n, filepath.Join(path, n)); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// entry copies one entry. The source is looked at through one O_PATH handle, so that what is checked is what is read.
func (c *copier) entry(from, to *os.File, name, path string) (err error) {
	fail := func(err error) error {
		var e *os.PathError
		if err == nil || errors.As(err, &e) {
			return err
		}
		return &os.PathError{Op: "copy", Path: path, Err: err}
	}
	fd, err := pathrs.Openat2(int(from.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW, 0, pathrs.NoSymlinks|unix.RESOLVE_NO_XDEV)
	if err == unix.EXDEV {
		return nil // a mount point: not the image's content
	}
	if err != nil {
		return fail(err)
	}
	src := os.NewFile(uintptr(fd), path)
	defer src.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fail(err)
	}
	kind := st.Mode & unix.S_IFMT
	key := inode{uint64(st.Dev), st.Ino}
	if kind != unix.S_IFDIR && st.Nlink > 1 {
		if first, ok := c.links[key]; ok {
			// first lies in our own copy, whose directories we have made and nobody else has seen.
			return fail(unix.Linkat(int(c.root.Fd()), first, int(to.Fd()), name, 0))
		}
		c.links[key] = path
	}
	dirfd := int(to.Fd())
	switch kind {
	case unix.S_IFDIR:
		if err := unix.Mkdirat(dirfd, name, 0o700); err != nil {
			return fail(err)
		}
		below, err := openDir(int(from.Fd()), name, unix.RESOLVE_NO_XDEV)
		if err != nil {
			return fail(err)
		}
		defer below.Close()
		dst, err := openDir(dirfd, name, 0)
		if err != nil {
			return fail(err)
		}
		defer dst.Close()
		if err := c.directory(below, dst, path); err != nil {
			return err
		}
		return fail(c.finish(src, dst))
	case unix.S_IFREG:
		in, err := pathrs.Reopen(src, unix.O_RDONLY|unix.O_NONBLOCK)
		if err != nil {
			return fail(err)
		}
		defer in.Close()
		out, err := unix.Openat(dirfd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return fail(err)
		}
		dst := os.NewFile(uintptr(out), path)
		defer dst.Close()
		if err := copyContent(dst, in); err != nil {
			return fail(err)
		}
		return fail(c.finish(src, dst))
	case unix.S_IFLNK:
		target := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(fd, "", target)
		if err != nil {
			return fail(err)
		}
		if err := unix.Symlinkat(string(target[:n]), dirfd, name); err != nil {
			return fail(err)
		}
	case unix.S_IFCHR, unix.S_IFBLK:
		if err := unix.Mknodat(dirfd, name, kind|0o600, int(st.Rdev)); err != nil {
			return fail(err)
		}
	case unix.S_IFIFO:
		if err := unix.Mknodat(dirfd, name, kind|0o600, 0); err != nil {
			return fail(err)
		}
	case unix.S_IFSOCK:
		delete(c.links, key)
		return nil
	default:
		return fail(&errdefs.Error{Kind: errdefs.Unsupported, Why: fmt.Sprintf("its type %#o is unknown", kind)})
	}
	out, err := unix.Openat(dirfd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	dst := os.NewFile(uintptr(out), path)
	defer dst.Close()
	return fail(c.finish(src, dst))
}

// finish gives dst what src has beside its content: owner, xattrs, mode, times. In this order: a change of owner takes
// set-id bits and file capabilities away, and a change of xattrs needs no times.
func (c *copier) finish(src, dst *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstatat(int(src.Fd()), "", &st, unix.AT_EMPTY_PATH); err != nil {
		return err
	}
	out := int(dst.Fd())
	if err := unix.Fchownat(out, "", int(st.Uid), int(st.Gid), unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if err := c.xattrs(src, dst); err != nil {
		return err
	}
	link := st.Mode&unix.S_IFMT == unix.S_IFLNK
	if !link {
		// By the kernel's own link, as fchmod takes no O_PATH handle.
		if err := unix.Fchmodat(unix.AT_FDCWD, selfFD(dst), st.Mode&0o7777, 0); err != nil {
			return err
		}
	}
	times := []unix.Timespec{st.Atim, st.Mtim}
	return unix.UtimesNanoAt(unix.AT_FDCWD, selfFD(dst), times, 0)
}

// selfFD is a path to what a handle holds, a link itself included: the walk ends where the magic link jumps.
func selfFD(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }

// xattrs copies extended attributes, except those that describe the place rather than the file: overlayfs' own,
// and the SELinux label, which is that of volumes.
func (c *copier) xattrs(src, dst *os.File) error {
	n, err := unix.Listxattr(selfFD(src), c.names[:])
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return err
	}
	for name := range bytes.SplitSeq(c.names[:n], []byte{0}) {
		attr := string(name)
		if attr == "" || attr == "security.selinux" || strings.HasPrefix(attr, "trusted.overlay.") ||
			strings.HasPrefix(attr, "user.overlay.") {
			continue
		}
		n, err := unix.Getxattr(selfFD(src), attr, c.value[:])
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err == nil {
			err = unix.Setxattr(selfFD(dst), attr, c.value[:n], 0)
		}
		if err != nil {
			return fmt.Errorf("attribute %s: %w", attr, err)
		}
	}
	return nil
}
