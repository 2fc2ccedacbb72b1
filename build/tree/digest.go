package tree

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/pathrs"
	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Selection is what of a view an operation looks at.
type Selection struct {
	Src              string
	Wildcard, Follow bool
	// EmptyWildcard says that a pattern without a match is no error.
	EmptyWildcard bool
	// Include and Exclude filter what is below a name that Src has come to; relative to it.
	Include, Exclude []string
}

// File is one file of a selection, as far as it counts: two with equal Files are the same to a build.
type File struct {
	Path   string        `json:"path"`
	Digest digest.Digest `json:"digest"` // of everything but the path
}

// Digest identifies a selection by content: names, types, modes, owners, attributes, link targets and bytes; not times,
// inode numbers or who else is in the directory. fn, if not nil, is told each file, in order.
func (v *View) Digest(ctx context.Context, s Selection, fn func(File)) (digest.Digest, error) {
	found, err := v.Select(ctx, s.Src, s.Wildcard, s.Follow)
	if err != nil {
		return "", err
	}
	more, err := newFilter(s.Include, s.Exclude)
	if err != nil {
		return "", err
	}
	all := sha256.New()
	for _, f := range found {
		field(all, "name", path.Base(f.Name))
		err := v.walk(ctx, f.Path, more, func(e *file) error {
			rel := strings.TrimPrefix(strings.TrimPrefix(e.path, f.Path), "/")
			d, err := v.digestOf(e)
			if err != nil {
				return err
			}
			field(all, "file", rel, d.String())
			if fn != nil {
				fn(File{path.Join(f.Name, rel), d})
			}
			return nil
		})
		if err != nil {
			return "", err
		}
	}
	return digest.NewDigest(digest.SHA256, all), nil
}

// digestOf is a file's digest: a known one, or that of what is read.
func (v *View) digestOf(e *file) (digest.Digest, error) {
	if v.known != nil {
		if d, ok := v.known.get(&e.st); ok {
			return d, nil
		}
	}
	began := time.Now()
	one := sha256.New()
	if err := v.identify(one, e); err != nil {
		return "", err
	}
	d := digest.NewDigest(digest.SHA256, one)
	if v.known != nil {
		v.known.put(&e.st, d, began)
	}
	return d, nil
}

// field writes values so that no two lists of them are the same bytes.
func field(h hash.Hash, values ...string) {
	var n [8]byte
	for _, v := range values {
		binary.LittleEndian.PutUint64(n[:], uint64(len(v)))
		h.Write(n[:])
		io.WriteString(h, v) //nolint:errcheck // a hash takes everything
	}
}

// number writes a number.
func number(h hash.Hash, ns ...uint64) {
	var b [8]byte
	for _, n := range ns {
		binary.LittleEndian.PutUint64(b[:], n)
		h.Write(b[:])
	}
}

// identify writes what counts of a file but its name.
func (v *View) identify(h hash.Hash, e *file) error {
	uid, gid := v.owner(&e.st)
	mode := uint64(e.st.Mode)
	switch e.st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		mode = unix.S_IFLNK | 0o777
	case unix.S_IFSOCK:
		return nil // no copy holds it
	}
	number(h, mode, uint64(uid), uint64(gid))
	switch e.st.Mode & unix.S_IFMT {
	case unix.S_IFCHR, unix.S_IFBLK:
		number(h, uint64(e.st.Rdev))
	case unix.S_IFLNK:
		t, err := readlink(e)
		if err != nil {
			return err
		}
		field(h, t)
	case unix.S_IFREG:
		f, err := openRegular(e)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := v.hashXattrs(h, f); err != nil {
			return err
		}
		number(h, uint64(e.st.Size))
		_, err = io.Copy(h, f)
		return err
	case unix.S_IFDIR:
		fd, err := pathrs.Openat2(e.parent, e.name, dirFlags, 0, oneDown)
		if err != nil {
			return &os.PathError{Op: "open", Path: "/" + e.path, Err: err}
		}
		d := os.NewFile(uintptr(fd), e.name)
		defer d.Close()
		return v.hashXattrs(h, d)
	}
	return nil
}

func (v *View) hashXattrs(h hash.Hash, f *os.File) error {
	xs, err := xattrs(f)
	if err != nil {
		return err
	}
	number(h, uint64(len(xs)))
	for _, x := range xs {
		field(h, x.name, string(x.value))
	}
	return nil
}

func (v *View) owner(st *unix.Stat_t) (uid, gid uint32) {
	if v.owned {
		return st.Uid, st.Gid
	}
	return 0, 0
}

// openRegular opens a regular file, and nothing that has taken its place.
func openRegular(e *file) (*os.File, error) {
	fd, err := pathrs.Openat2(e.parent, e.name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0, oneDown)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/" + e.path, Err: err}
	}
	f := os.NewFile(uintptr(fd), e.name)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Ino != e.st.Ino {
		_ = f.Close()
		return nil, &errdefs.Error{Op: "read", What: "/" + e.path, Kind: errdefs.Conflict, Why: "it was replaced while the build read it", Fix: "try again", Err: err}
	}
	return f, nil
}

func readlink(e *file) (string, error) {
	b := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(e.parent, e.name, b)
	if err != nil {
		return "", &os.PathError{Op: "readlink", Path: "/" + e.path, Err: err}
	}
	return string(b[:n]), nil
}
