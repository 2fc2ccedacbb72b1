package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/onggi/onggi/build/graph"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/pathrs"
	modes "github.com/tonistiigi/dchapes-mode"
	"golang.org/x/sys/unix"
)

// IDs own what an operation makes; nil keeps what the source says (Copy) or is root.
type IDs struct{ UID, GID uint32 }

// Target is a tree that is written to.
type Target struct {
	root *os.File
	// links holds, for the copy that is under way, where a file with several names was copied to first.
	links map[[2]uint64]string
}

// NewTarget returns a tree to write to; root stays the caller's, who keeps everybody else out.
func NewTarget(root *os.File) *Target { return &Target{root: root} }

// Unpacker unpacks an archive into an empty directory; it says false, having read some of r, when r is none.
type Unpacker func(ctx context.Context, r io.Reader, dir *os.File) (bool, error)

// Copy copies what c selects from src. With c.Unpack, files that are archives are unpacked into a directory that scratch
// makes, and that is copied.
func (t *Target) Copy(ctx context.Context, src *View, c *graph.Copy, ids *IDs, unpack Unpacker, scratch func() (*os.File, error)) error {
	found, err := src.Select(ctx, c.Src, c.Wildcard, c.FollowSymlink)
	if err != nil {
		return err
	}
	if len(found) == 0 && !c.EmptyWildcard {
		return &errdefs.Error{Op: "find", What: c.Src, Kind: errdefs.NotFound, Why: "no file matches the pattern"}
	}
	more, err := newFilter(c.Include, c.Exclude)
	if err != nil {
		return err
	}
	if len(c.Include) > 0 && len(c.Required) > 0 {
		if err := required(ctx, src, found, more, c.Required); err != nil {
			return err
		}
	}
	how := &manner{ids: ids, mode: c.Mode, replace: c.AlwaysReplace, more: more, contents: c.DirContents}
	if c.ModeStr != "" {
		if how.set, err = parseMode(c.ModeStr); err != nil {
			return err
		}
	}
	if c.Timestamp != -1 {
		ts := unix.NsecToTimespec(c.Timestamp)
		how.time = &ts
	}
	if !c.CreateDestPath {
		parent, _ := path.Split(clean(c.Dest))
		d, err := pathrs.Open(t.root, clean(parent), unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		_ = d.Close()
	}
	for _, f := range found {
		if c.Unpack {
			done, err := t.unpack(ctx, src, f, c.Dest, how, unpack, scratch)
			if err != nil {
				return err
			}
			if done {
				continue
			}
		}
		if err := t.copyOne(ctx, src, f, c.Dest, how); err != nil {
			return err
		}
	}
	return nil
}

func parseMode(s string) (func(uint32, bool) uint32, error) {
	p, err := modes.Parse(s)
	if err != nil {
		return nil, &errdefs.Error{Op: "use", What: "--chmod=" + s, Kind: errdefs.InvalidArgument, Err: err, Fix: "write an octal mode or one of chmod(1), such as u=rwX,go=rX"}
	}
	return func(m uint32, dir bool) uint32 {
		var fm os.FileMode
		if dir {
			fm = os.ModeDir
		}
		return toUnix(p.Apply(fm | fromUnix(m)))
	}, nil
}

func fromUnix(m uint32) os.FileMode {
	fm := os.FileMode(m & 0o777)
	if m&unix.S_ISUID != 0 {
		fm |= os.ModeSetuid
	}
	if m&unix.S_ISGID != 0 {
		fm |= os.ModeSetgid
	}
	if m&unix.S_ISVTX != 0 {
		fm |= os.ModeSticky
	}
	return fm
}

func toUnix(fm os.FileMode) uint32 {
	m := uint32(fm.Perm())
	if fm&os.ModeSetuid != 0 {
		m |= unix.S_ISUID
	}
	if fm&os.ModeSetgid != 0 {
		m |= unix.S_ISGID
	}
	if fm&os.ModeSticky != 0 {
		m |= unix.S_ISVTX
	}
	return m
}

// required sees to it that each name, from the root of the source, is among what is copied.
func required(ctx context.Context, src *View, found []Found, more *filter, names []string) error {
	for _, n := range names {
		there := false
		for _, f := range found {
			rel := clean(n)
			if f.Name != "." {
				rel = strings.TrimPrefix(strings.TrimPrefix(rel, f.Name), "/")
			}
			want := path.Join(f.Path, rel)
			err := src.walk(ctx, f.Path, more, func(e *file) error {
				if e.path == want {
					there = true
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		if !there {
			return src.missing(clean(n))
		}
	}
	return nil
}

// manner is how a copy changes what it copies.
type manner struct {
	ids      *IDs
	mode     int // -1 as the source's
	set      func(mode uint32, dir bool) uint32
	time     *unix.Timespec
	replace  bool
	contents bool
	more     *filter
	noDevice func(path string) // is told of a device file, which is not made then
}

func (h *manner) modeOf(st *unix.Stat_t) uint32 {
	m := st.Mode & 0o7777
	switch {
	case h.set != nil:
		return h.set(m, st.Mode&unix.S_IFMT == unix.S_IFDIR)
	case h.mode != -1:
		return uint32(h.mode) & 0o7777
	}
	return m
}

// copyOne copies what one name stands for to dest, as COPY names it: a directory's contents into dest, a file to dest, or
// into dest if that is a directory or is written with a slash at the end.
func (t *Target) copyOne(ctx context.Context, src *View, f Found, dest string, how *manner) error {
	st, err := src.lstat(f.Path)
	if err != nil {
		return err
	}
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	into := strings.HasSuffix(dest, "/") || strings.HasSuffix(dest, "/.") || dest == "." || dest == ""
	target := clean(dest)
	if d, err := pathrs.Open(t.root, target, unix.O_PATH, 0); err == nil {
		dst, serr := d.Stat()
		_ = d.Close()
		if serr != nil {
			return serr
		}
		switch {
		case dst.IsDir() && (!isDir || !how.contents):
			into = true
		case dst.IsDir():
			into = false
		case isDir || into:
			if !how.replace {
				return &errdefs.Error{Op: "copy", What: "to " + dest, Kind: errdefs.Conflict, Why: "there is a file where a directory must be"}
			}
		}
	} else if !isNotFound(err) {
		return err
	} else if isDir && how.contents {
		into = false
	}
	if into {
		target = path.Join(target, path.Base("/"+f.Name))
	}
	parentPath, name := path.Split(target)
	if isDir && how.contents || target == "." {
		parentPath, name = target, ""
	}
	// Parents that are missing are root's, mode 0755, or the new owner's; with the time that was asked for.
	parent, err := t.mkdirs(parentPath, 0o755, how.ids, how.time)
	if err != nil {
		return err
	}
	defer parent.Close()
	t.links = map[[2]uint64]string{}
	c := &copier{ctx: ctx, src: src, t: t, how: how}
	if name == "" {
		return c.contents(f.Path, parent)
	}
	return c.tree(f.Path, parent, name)
}

// mkdirs makes the directories of p that are missing, each with owner and time, following links inside the tree.
func (t *Target) mkdirs(p string, mode uint32, ids *IDs, ts *unix.Timespec) (*os.File, error) {
	p = clean(p)
	if d, err := pathrs.Open(t.root, p, unix.O_RDONLY|unix.O_DIRECTORY, 0); err == nil {
		return d, nil
	} else if !isNotFound(err) {
		return nil, err
	}
	up, name := path.Split(p)
	parent, err := t.mkdirs(up, mode, ids, ts)
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	// A dangling link is followed, and what it points at is made.
	if link, err := pathrs.Readlink(parent, name); err == nil {
		next := path.Join(path.Clean("/"+up), link)
		if strings.HasPrefix(link, "/") {
			next = link
		}
		if clean(next) == p {
			return nil, &errdefs.Error{Op: "make", What: "/" + p, Kind: errdefs.InvalidArgument, Why: "it is a link to itself"}
		}
		return t.mkdirs(next, mode, ids, ts)
	}
	if err := unix.Mkdirat(int(parent.Fd()), name, 0o700); err != nil {
		return nil, &os.PathError{Op: "mkdir", Path: "/" + p, Err: err}
	}
	d, err := pathrs.OpenBeneath(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	if err := finish(int(d.Fd()), ids, mode, ts); err != nil {
		_ = d.Close()
		return nil, &os.PathError{Op: "set owner, mode or time", Path: "/" + p, Err: err}
	}
	return d, nil
}

// finish sets what belongs to an open object, the mode last since chown clears bits of it.
func finish(fd int, ids *IDs, mode uint32, ts *unix.Timespec) error {
	uid, gid := 0, 0
	if ids != nil {
		uid, gid = int(ids.UID), int(ids.GID)
	}
	err := unix.Fchown(fd, uid, gid)
	if err == nil {
		err = unix.Fchmod(fd, mode)
	}
	if err == nil && ts != nil {
		err = setTime(fd, "", *ts)
	}
	return err
}

func setTime(dirfd int, name string, ts unix.Timespec) error {
	flags := unix.AT_SYMLINK_NOFOLLOW
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	return unix.UtimesNanoAt(dirfd, name, []unix.Timespec{ts, ts}, flags)
}

type copier struct {
	ctx context.Context
	src *View
	t   *Target
	how *manner
}

// tree copies the file or directory at from to parent/name.
func (c *copier) tree(from string, parent *os.File, name string) error {
	return c.each(from, func(rel string) (int, string, func(), error) {
		if rel == "" {
			return int(parent.Fd()), name, func() {}, nil
		}
		return under(parent, path.Join(name, rel))
	})
}

// contents copies what is in the directory at from into dst, whose own metadata stays as it is.
func (c *copier) contents(from string, dst *os.File) error {
	return c.each(from, func(rel string) (int, string, func(), error) {
		if rel == "" {
			return -1, "", nil, nil
		}
		return under(dst, rel)
	})
}

// under opens the parent of rel below dir, without links.
func under(dir *os.File, rel string) (int, string, func(), error) {
	up, name := path.Split(rel)
	if up == "" {
		return int(dir.Fd()), name, func() {}, nil
	}
	fd, err := pathrs.Openat2(int(dir.Fd()), path.Clean(up), unix.O_PATH|unix.O_DIRECTORY, 0, oneDown)
	if err != nil {
		return -1, "", nil, &os.PathError{Op: "open", Path: up, Err: err}
	}
	return fd, name, func() { unix.Close(fd) }, nil
}

// each copies every file below from; place says where: a directory's descriptor, the name in it, and what to do after.
func (c *copier) each(from string, place func(rel string) (int, string, func(), error)) error {
	type late struct {
		rel string
		ts  unix.Timespec
	}
	var dirs []late
	err := c.src.walk(c.ctx, from, c.how.more, func(e *file) error {
		rel := ""
		switch {
		case e.path == from:
		case from == ".":
			rel = e.path
		default:
			rel = strings.TrimPrefix(e.path, from+"/")
		}
		fd, name, done, err := place(rel)
		if err != nil {
			return err
		}
		if fd < 0 {
			return nil
		}
		defer done()
		if err := c.one(e, fd, name); err != nil {
			return err
		}
		if e.isDir() {
			ts := c.src.modified(&e.st)
			if c.how.time != nil {
				ts = *c.how.time
			} else if e.path == "." {
				return nil // a root's time is of its mount, not of its content
			}
			dirs = append(dirs, late{rel, ts})
		}
		return nil
	})
	if err != nil {
		return err
	}
	for i := len(dirs) - 1; i >= 0; i-- { // what is inside first
		fd, name, done, err := place(dirs[i].rel)
		if err != nil {
			return err
		}
		err = setTime(fd, name, dirs[i].ts)
		done()
		if err != nil {
			return &os.PathError{Op: "set the time of", Path: dirs[i].rel, Err: err}
		}
	}
	return nil
}

// one makes dirfd/name what e is. What is there already gives way, but for a directory: into that is copied.
func (c *copier) one(e *file, dirfd int, name string) (err error) {
	defer func() {
		var errno unix.Errno
		if err != nil && errors.As(err, &errno) && errdefs.As(err).Op == "" {
			err = &errdefs.Error{Op: "copy", What: "/" + e.path, Kind: errdefs.KindOf(err), Err: err}
		}
	}()
	var old unix.Stat_t
	exists := unix.Fstatat(dirfd, name, &old, unix.AT_SYMLINK_NOFOLLOW) == nil
	wasDir := exists && old.Mode&unix.S_IFMT == unix.S_IFDIR
	if exists && wasDir != e.isDir() {
		if !c.how.replace {
			return &errdefs.Error{
				Op: "copy", What: "/" + e.path, Kind: errdefs.Conflict,
				Why: fmt.Sprintf("%q exists there and one of the two is a directory, the other not", name),
				Fix: "remove what is there in a step before",
			}
		}
		if err := pathrs.RemoveAllAt(dirfd, name); err != nil {
			return err
		}
		exists = false
	}
	ids := c.how.ids
	if ids == nil {
		uid, gid := c.src.owner(&e.st)
		ids = &IDs{uid, gid}
	}
	if kind := e.st.Mode & unix.S_IFMT; c.how.noDevice != nil && (kind == unix.S_IFCHR || kind == unix.S_IFBLK) {
		c.how.noDevice(e.path)
		return nil
	}
	mode := c.how.modeOf(&e.st)
	ts := c.src.modified(&e.st)
	if c.how.time != nil {
		ts = *c.how.time
	}
	if e.isDir() {
		if !exists {
			if err := unix.Mkdirat(dirfd, name, 0o700); err != nil {
				return err
			}
		}
		fd, err := pathrs.Openat2(dirfd, name, dirFlags, 0, oneDown)
		if err != nil {
			return err
		}
		dst := os.NewFile(uintptr(fd), name)
		defer dst.Close()
		sfd, err := pathrs.Openat2(e.parent, e.name, dirFlags, 0, oneDown)
		if err != nil {
			return err
		}
		src := os.NewFile(uintptr(sfd), e.name)
		defer src.Close()
		if err := copyXattrs(src, dst); err != nil {
			return err
		}
		return finish(fd, ids, mode, nil)
	}
	if exists {
		if err := unix.Unlinkat(dirfd, name, 0); err != nil {
			return err
		}
	}
	if e.st.Nlink > 1 && e.st.Mode&unix.S_IFMT == unix.S_IFREG {
		key := [2]uint64{uint64(e.st.Dev), e.st.Ino}
		if first, ok := c.t.links[key]; ok {
			return c.t.link(first, dirfd, name)
		}
		defer func() {
			if err == nil {
				c.t.remember(key, dirfd, name)
			}
		}()
	}
	switch e.st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return c.regular(e, dirfd, name, ids, mode, ts)
	case unix.S_IFLNK:
		to, err := readlink(e)
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(to, dirfd, name); err != nil {
			return err
		}
	case unix.S_IFSOCK:
		return nil
	case unix.S_IFIFO, unix.S_IFCHR, unix.S_IFBLK:
		if err := unix.Mknodat(dirfd, name, e.st.Mode&unix.S_IFMT|0o600, int(e.st.Rdev)); err != nil {
			return err
		}
		if err := unix.Fchmodat(dirfd, name, mode, 0); err != nil {
			return err
		}
	default:
		return fmt.Errorf("there is no way to copy a file of type %o", e.st.Mode&unix.S_IFMT)
	}
	if err := unix.Fchownat(dirfd, name, int(ids.UID), int(ids.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	return setTime(dirfd, name, ts)
}

func (c *copier) regular(e *file, dirfd int, name string, ids *IDs, mode uint32, ts unix.Timespec) error {
	src, err := openRegular(e)
	if err != nil {
		return err
	}
	defer src.Close()
	fd, err := unix.Openat(dirfd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	dst := os.NewFile(uintptr(fd), name)
	defer dst.Close()
	if _, err := io.Copy(dst, src); err != nil { // copy_file_range where both file systems can
		return err
	}
	if err := unix.Fchown(fd, int(ids.UID), int(ids.GID)); err != nil {
		return err
	}
	if err := copyXattrs(src, dst); err != nil { // after chown, which drops security.capability
		return err
	}
	if err := unix.Fchmod(fd, mode); err != nil {
		return err
	}
	return setTime(fd, "", ts)
}

func copyXattrs(src, dst *os.File) error {
	xs, err := xattrs(src)
	if err != nil {
		return err
	}
	for _, x := range xs {
		err := unix.Fsetxattr(int(dst.Fd()), x.name, x.value, 0)
		if err == unix.EOPNOTSUPP && strings.HasPrefix(x.name, "user.") {
			continue // as BuildKit: the target cannot hold it, and nothing but its owner looks at it
		}
		if err != nil {
			return &os.PathError{Op: "setxattr " + x.name, Path: src.Name(), Err: err}
		}
	}
	return nil
}

// remember keeps a copied file's place, by the kernel's name for it below the root.
func (t *Target) remember(key [2]uint64, dirfd int, name string) {
	fd, err := unix.Openat(dirfd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	base, err1 := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", t.root.Fd()))
	full, err2 := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err1 != nil || err2 != nil {
		return
	}
	if rel, ok := strings.CutPrefix(full, strings.TrimSuffix(base, "/")+"/"); ok {
		t.links[key] = rel
	}
}

func (t *Target) link(first string, dirfd int, name string) error {
	fd, err := pathrs.Openat2(int(t.root.Fd()), first, unix.O_PATH|unix.O_NOFOLLOW, 0, oneDown)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), dirfd, name, unix.AT_SYMLINK_FOLLOW)
}

// unpack copies the archive at f into the directory dest; false when it is none.
func (t *Target) unpack(ctx context.Context, src *View, f Found, dest string, how *manner, unpack Unpacker, scratch func() (*os.File, error)) (bool, error) {
	st, err := src.lstat(f.Path)
	if err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return false, err
	}
	p, err := pathrs.Open(src.root, f.Path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false, err
	}
	defer p.Close()
	dir, err := scratch()
	if err != nil {
		return false, err
	}
	defer dir.Close()
	ok, err := unpack(ctx, p, dir)
	if err != nil || !ok {
		return false, err
	}
	inner := *how
	inner.contents, inner.more = true, nil
	v, err := NewView(dir, nil, nil, false)
	if err != nil {
		return false, err
	}
	return true, t.copyOne(ctx, v, Found{".", "."}, strings.TrimSuffix(dest, "/")+"/", &inner)
}

// Mkdir makes a directory, with its parents if asked.
func (t *Target) Mkdir(m *graph.Mkdir, ids *IDs) error {
	ts := stamp(m.Timestamp)
	p := clean(m.Path)
	if m.Parents {
		d, err := t.mkdirs(p, uint32(m.Mode)&0o7777, ids, ts)
		if err == nil {
			err = d.Close()
		}
		return err
	}
	return t.in(p, func(dirfd int, name string) error {
		if err := unix.Mkdirat(dirfd, name, 0o700); err != nil {
			if err == unix.EEXIST {
				return nil
			}
			return err
		}
		fd, err := pathrs.Openat2(dirfd, name, dirFlags, 0, oneDown)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return finish(fd, ids, uint32(m.Mode)&0o7777, ts)
	})
}

func stamp(ns int64) *unix.Timespec {
	if ns == -1 {
		return nil
	}
	ts := unix.NsecToTimespec(ns)
	return &ts
}

// Mkfile makes a file, or replaces what is there; a device or a link there is never written through.
func (t *Target) Mkfile(m *graph.Mkfile, ids *IDs) error {
	real, err := t.followed(m.Path)
	if err != nil {
		return err
	}
	return t.in(real, func(dirfd int, name string) error {
		const draft = ".onggi-mkfile"
		_ = unix.Unlinkat(dirfd, draft, 0)
		fd, err := unix.Openat(dirfd, draft, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), name)
		defer f.Close()
		_, err = f.Write(m.Data)
		if err == nil {
			err = finish(fd, ids, uint32(m.Mode)&0o7777, stamp(m.Timestamp))
		}
		if err == nil {
			err = unix.Renameat(dirfd, draft, dirfd, name)
		}
		if err != nil {
			_ = unix.Unlinkat(dirfd, draft, 0)
		}
		return err
	})
}

// followed resolves a link at the end of p inside the tree, so that a write goes where the link points.
func (t *Target) followed(p string) (string, error) {
	v := &View{root: t.root, owned: true}
	real, err := v.resolve(clean(p), true)
	if isNotFound(err) {
		return clean(p), nil
	}
	return real, err
}

// Symlink makes a symbolic link.
func (t *Target) Symlink(m *graph.Symlink, ids *IDs) error {
	return t.in(clean(m.Path), func(dirfd int, name string) error {
		if err := unix.Symlinkat(m.Target, dirfd, name); err != nil {
			return err
		}
		if ids != nil {
			if err := unix.Fchownat(dirfd, name, int(ids.UID), int(ids.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return err
			}
		}
		if ts := stamp(m.Timestamp); ts != nil {
			return setTime(dirfd, name, *ts)
		}
		return nil
	})
}

// Remove removes files and directories with all that is in them. A link is removed, not what it points at.
func (t *Target) Remove(ctx context.Context, m *graph.Rm) error {
	v := &View{root: t.root, owned: true}
	names := []string{clean(m.Path)}
	if m.Wildcard && strings.ContainsAny(m.Path, `*?[\`) {
		var err error
		if names, err = v.glob(ctx, clean(m.Path)); err != nil {
			return err
		}
	}
	for _, n := range names {
		if n == "." {
			return &errdefs.Error{Op: "remove", What: "/", Kind: errdefs.InvalidArgument, Why: "the root itself cannot be removed"}
		}
		err := t.in(n, func(dirfd int, name string) error {
			var st unix.Stat_t
			if err := unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return err
			}
			return pathrs.RemoveAllAt(dirfd, name)
		})
		if err != nil && !(m.AllowNotFound && isNotFound(err)) {
			return err
		}
	}
	return nil
}

// in calls f with the parent directory of p, links on the way followed inside the tree.
func (t *Target) in(p string, f func(dirfd int, name string) error) error {
	up, name := path.Split(p)
	if p == "." || name == "" {
		return &errdefs.Error{Op: "change", What: "/", Kind: errdefs.InvalidArgument, Why: "the root itself cannot be replaced"}
	}
	d, err := pathrs.Open(t.root, clean(up), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := f(int(d.Fd()), name); err != nil {
		return &os.PathError{Op: "change", Path: "/" + p, Err: err}
	}
	return nil
}

// CopyTree copies what src names in v to name, which is one component in the root and not there yet: a directory with its
// own metadata, other than COPY.
func (t *Target) CopyTree(ctx context.Context, v *View, src, name string) error {
	found, err := v.Select(ctx, src, false, true)
	if err != nil {
		return err
	}
	t.links = map[[2]uint64]string{}
	c := &copier{ctx: ctx, src: v, t: t, how: &manner{mode: -1}}
	return c.tree(found[0].Path, t.root, name)
}
