package archive

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/pathrs"
	"golang.org/x/sys/unix"
)

// handle is an open directory inside the root. path has no symbolic link in it, whatever name led here.
type handle struct {
	fd   int
	path string
	ino  uint64
}

const (
	cacheSize = 64 // handles kept between entries: most entries share their parent with the one before
	maxLinks  = 40 // links followed on the way to one parent, as the kernel does
	within    = pathrs.NoSymlinks | unix.RESOLVE_NO_XDEV
	dirFlags  = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW
	maxDirMem = 512 << 20 // bytes of remembered directories
)

// dirCache keeps handles by the name that led to them. Nobody but the archive changes the tree while it is unpacked,
// so a handle can only become wrong when an entry replaces a directory or a link: then all are dropped.
type dirCache struct {
	byName map[string]*handle
	order  []*handle // open handles, oldest first; each is closed once, however many names lead to it
}

func (c *dirCache) add(name string, h *handle) {
	if c.byName == nil {
		c.byName = map[string]*handle{}
	}
	c.byName[name] = h
	if len(c.order) == 0 || c.order[len(c.order)-1] != h && !slices.Contains(c.order, h) {
		c.order = append(c.order, h)
	}
}

// trim closes the handles beyond the cache's size. It is called between entries, so that no handle in use is closed.
func (c *dirCache) trim() {
	if len(c.byName) > 4*cacheSize { // many names of few directories
		c.forget()
	}
	if len(c.order) <= cacheSize {
		return
	}
	old := c.order[:len(c.order)-cacheSize/2]
	gone := make(map[*handle]bool, len(old))
	for _, h := range old {
		unix.Close(h.fd)
		gone[h] = true
	}
	for n, h := range c.byName {
		if gone[h] {
			delete(c.byName, n)
		}
	}
	c.order = append(c.order[:0], c.order[len(old):]...)
}

// forget drops every name. The handles stay open until trim or drop, since one of them may be in use.
func (c *dirCache) forget() { clear(c.byName) }

func (c *dirCache) drop() {
	for _, h := range c.order {
		unix.Close(h.fd)
	}
	c.byName, c.order = nil, nil
}

// dirMeta is a directory's metadata, set at the end: its time would change with every entry in it, and a set-group-id
// bit or a default ACL would be inherited by them.
type dirMeta struct {
	path     string
	implied  bool // no entry of the archive describes it
	replaced bool // it hides what lower layers have there: nothing to inherit
	uid, gid uint32
	mode     uint32
	mtime    time.Time
	xattrs   []xattr
}

// dir returns the handle of the directory name (clean), making what is missing. Symbolic links on the way are walked
// inside the root, as for a process whose root it is.
func (a *applier) dir(name string) (*handle, error) {
	if name == "." {
		return &a.root, nil
	}
	if h := a.cache.byName[name]; h != nil {
		return h, nil
	}
	fd, err := pathrs.Openat2(a.root.fd, name, dirFlags, 0, within)
	if err == nil {
		return a.opened(fd, name, name)
	}
	switch err {
	case unix.ENOENT, unix.ELOOP, unix.ENOTDIR: // something is missing, or a link, or a whiteout: step by step
		h, err := a.walk(name, true)
		if err != nil {
			return nil, err
		}
		a.cache.add(name, h)
		return h, nil
	}
	return nil, err
}

func (a *applier) opened(fd int, name, path string) (*handle, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, err
	}
	h := &handle{fd: fd, path: path, ino: st.Ino}
	a.cache.add(name, h)
	return h, nil
}

// walk goes to the directory name one component at a time. Each step opens one component of a directory that we hold,
// following nothing; a link is read and its target walked in turn, from the root when it is absolute, and ".." at the
// root stays there. With create, missing directories are made; otherwise they are ENOENT.
func (a *applier) walk(name string, create bool) (*handle, error) {
	at := &a.root
	todo := strings.Split(name, "/")
	for links := 0; len(todo) > 0; {
		c := todo[0]
		todo = todo[1:]
		switch c {
		case "", ".":
			continue
		case "..":
			if at.path == "." {
				continue
			}
			up, _ := split(at.path)
			h, err := a.dir(up)
			if err != nil {
				return nil, err
			}
			at = h
			continue
		}
		path := join(at.path, c)
		if h := a.cache.byName[path]; h != nil && h.path == path {
			at = h
			continue
		}
		fd, err := pathrs.Openat2(at.fd, c, dirFlags, 0, within)
		if err == nil {
			if at, err = a.opened(fd, path, path); err != nil {
				return nil, err
			}
			continue
		}
		if err == unix.ENOENT && create {
			if at, err = a.mkdir(at, c, nil); err != nil {
				return nil, err
			}
			continue
		}
		if err != unix.ELOOP && err != unix.ENOTDIR {
			return nil, err
		}
		target, lerr := readlinkat(at.fd, c)
		switch {
		case lerr == nil:
			if links++; links > maxLinks {
				return nil, refuse("there are too many symbolic links on the way to %q", name)
			}
			todo = append(strings.Split(target, "/"), todo...)
			if strings.HasPrefix(target, "/") {
				at = &a.root
			}
		case lerr == unix.EINVAL && create: // neither directory nor link: perhaps a whiteout of this layer
			if at, err = a.mkdir(at, c, nil); err != nil {
				return nil, err
			}
		case lerr == unix.EINVAL:
			return nil, unix.ENOTDIR
		default:
			return nil, lerr
		}
	}
	return at, nil
}

// mkdir makes the directory base in p, or takes the one that is there, and returns its handle. A nil meta means an
// implied directory: it takes the place of nothing but a whiteout. With meta it is an entry, and replaces whatever is
// not a directory.
func (a *applier) mkdir(p *handle, base string, meta *dirMeta) (*handle, error) {
	path := join(p.path, base)
	if len(path) > maxPath || strings.Count(path, "/") > maxDepth {
		return nil, refuse("the directory %.60q... is deeper than %d directories or longer than %d bytes", path, maxDepth, maxPath)
	}
	replaced := false
	err := unix.Mkdirat(p.fd, base, 0o755)
	if err == unix.EEXIST {
		var st unix.Stat_t
		if err := unix.Fstatat(p.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return nil, err
		}
		switch {
		case st.Mode&unix.S_IFMT == unix.S_IFDIR:
			err = nil
		case meta == nil && !isWhiteout(&st):
			return nil, refuse("%q, where it should lie, is not a directory", path)
		default:
			// What was there, a whiteout or a file of this layer, hides what lower layers have; so does the directory.
			if err := a.remove(p, base); err != nil {
				return nil, err
			}
			replaced = true
			err = unix.Mkdirat(p.fd, base, 0o755)
		}
	}
	if err != nil {
		return nil, err
	}
	fd, err := pathrs.Openat2(p.fd, base, dirFlags, 0, within)
	if err != nil {
		return nil, err
	}
	h, err := a.opened(fd, path, path)
	if err != nil {
		return nil, err
	}
	if replaced {
		if err := a.setOpaque(h); err != nil {
			return nil, err
		}
	}
	old := a.meta[h.ino]
	if old != nil && (old.path != path || replaced) {
		a.metaBytes -= old.size()
		old = nil // the record of a directory that is gone, whose inode number is used again
	}
	switch {
	case meta != nil:
		meta.path = path
		meta.replaced = replaced || old != nil && old.replaced
	case old != nil:
		return h, nil
	default:
		if a.stats.Entries++; a.stats.Entries > a.limits.Entries {
			return nil, a.tooMany()
		}
		meta = &dirMeta{path: path, implied: true, replaced: replaced, uid: 0, gid: 0, mode: 0o755, mtime: a.now}
		if a.o.MapID != nil {
			if meta.uid, meta.gid, err = a.o.MapID(0, 0); err != nil {
				return nil, err
			}
		}
	}
	if old != nil {
		a.metaBytes -= old.size()
	}
	a.meta[h.ino] = meta
	if a.metaBytes += meta.size(); a.metaBytes > maxDirMem {
		return nil, &errdefs.Error{Kind: errdefs.Exhausted, Why: fmt.Sprintf("the archive's directories need more than %d bytes to remember", maxDirMem)}
	}
	return h, nil
}

func (m *dirMeta) size() int64 {
	n := int64(200 + len(m.path))
	for _, x := range m.xattrs {
		n += int64(len(x.name) + len(x.value) + 32)
	}
	return n
}

// setOpaque makes overlayfs hide what lower layers have in this directory.
func (a *applier) setOpaque(h *handle) error {
	if h.path == "." {
		a.stats.Opaque = true // overlayfs would not read the attribute here
		return nil
	}
	err := unix.Fsetxattr(h.fd, "trusted.overlay.opaque", []byte("y"), 0)
	if err == unix.EPERM {
		// In a user namespace overlayfs reads the attributes of the other name (userxattr, Linux 5.11).
		err = unix.Fsetxattr(h.fd, "user.overlay.opaque", []byte("y"), 0)
	}
	if err != nil {
		return &errdefs.Error{
			Op: "mark as opaque", What: h.path, Kind: errdefs.KindOf(err), Err: err,
			Why: "the attribute trusted.overlay.opaque needs CAP_SYS_ADMIN and a file system with extended attributes",
		}
	}
	return nil
}

// finishDirs sets the metadata of all directories.
func (a *applier) finishDirs() error {
	for ino, m := range a.meta {
		if err := a.finishDir(ino, m); err != nil {
			return entryError(m.path, err)
		}
	}
	if a.meta[a.root.ino] == nil {
		a.stats.Implied = append(a.stats.Implied, ".")
	}
	slices.Sort(a.stats.Implied)
	return nil
}

func (a *applier) finishDir(ino uint64, m *dirMeta) error {
	fd, err := pathrs.Openat2(a.root.fd, m.path, dirFlags, 0, within)
	switch err {
	case nil:
	case unix.ENOENT, unix.ENOTDIR, unix.ELOOP:
		return nil // a later entry replaced it
	default:
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Ino != ino {
		return nil // likewise
	}
	if m.implied && !m.replaced {
		a.stats.Implied = append(a.stats.Implied, m.path)
	}
	chowned := false
	if st.Uid != m.uid || st.Gid != m.gid {
		if err := unix.Fchown(fd, int(m.uid), int(m.gid)); err != nil {
			return m.chownError(err)
		}
		chowned = true
	}
	if chowned || st.Mode&0o7777 != m.mode {
		if err := unix.Fchmod(fd, m.mode); err != nil {
			return err
		}
	}
	for _, x := range m.xattrs {
		if err := x.explain(unix.Fsetxattr(fd, x.name, x.value, 0)); err != nil {
			return err
		}
	}
	ts := timespec(m.mtime)
	return unix.UtimesNanoAt(fd, ".", ts[:], 0)
}

func readlinkat(dirfd int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dirfd, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

func isWhiteout(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 }
