package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/pathrs"
	"golang.org/x/sys/unix"
)

// Kind is what happened to a path, as `docker diff` names it.
type Kind byte

// The kinds.
const (
	Added    Kind = 'A'
	Changed  Kind = 'C'
	Deleted  Kind = 'D'
	carrying Kind = 0 // a directory that is as it was, and holds something that is not
)

// Change is one path that a tree has otherwise than the trees below it.
type Change struct {
	Kind Kind
	Path string // absolute, "/etc/passwd"
}

// Difference is a tree that was written to, and what it stands on. The handles stay the caller's.
type Difference struct {
	// Tree is the upper directory of an overlayfs mount, or with Whole a tree of its own.
	Tree *os.File
	// Below holds the trees below in overlayfs' form, topmost first.
	Below []*os.File
	// Root is the one of Below whose root directory has the metadata of the image's; nil is the topmost.
	Root *os.File
	// Whole says that Tree began as a copy of what is below: what it lacks was deleted, and what looks the same is.
	Whole bool
	// Copied is when that copy was finished: a file whose inode changed after it (ctime) is compared byte by byte even
	// when size and time are the same.
	Copied time.Time
	// Shared says that files of one inode number in Tree and Below are one file: both show the same layers (overlayfs gives
	// the numbers of the layers' own files).
	Shared bool
	// Merged opens the tree as its users see it (overlayfs over Tree and Below, read-only). It is asked for only when
	// overlayfs has kept a change in a form that Tree alone does not hold: a renamed directory (redirect_dir) or a file of
	// which only the metadata were copied up (metacopy). nil: such a tree is refused. The handle is closed by the walk.
	Merged func() (*os.File, error)
	// Skip leaves out a path (relative, clean) with all below it; what a runtime put there for its mounts, say.
	Skip func(path string, st *unix.Stat_t) bool
}

// Changes calls fn for each path that differs, sorted, a directory before what is in it. A directory that holds a change
// is one itself, as docker says. Errors are fn's, the context's, and those of reading; a tree that somebody changes
// meanwhile gives some state of each directory.
func (d *Difference) Changes(ctx context.Context, fn func(Change) error) error {
	return d.walk(ctx, func(e *differing) error {
		if e.path == "." {
			return nil
		}
		kind := e.kind
		if kind == carrying {
			kind = Changed
		}
		return fn(Change{kind, "/" + e.path})
	})
}

// differing is one entry of a walk.
type differing struct {
	kind   Kind
	path   string // clean; "." is the root
	parent int    // handle of its directory in the tree that has it; "." is in itself
	name   string // in parent
	st     unix.Stat_t
	hides  bool // a directory that shows nothing of the directory below it
	aged   bool // a directory that differs from the one below in its time only
	partly bool // a file whose content lies below (metacopy)
}

// walker is one run of walk.
type walker struct {
	*Difference
	ctx     context.Context
	emit    func(*differing) error
	merged  *os.File
	pending []*differing // directories on the way that have not been told yet
}

func (d *Difference) walk(ctx context.Context, emit func(*differing) error) error {
	w := &walker{Difference: d, ctx: ctx, emit: emit}
	defer func() {
		if w.merged != nil {
			_ = w.merged.Close()
		}
		runtime.KeepAlive(d)
	}()
	root := &differing{kind: carrying, path: ".", parent: int(d.Tree.Fd()), name: "."}
	if err := unix.Fstat(root.parent, &root.st); err != nil {
		return &os.PathError{Op: "stat", Path: d.Tree.Name(), Err: err}
	}
	below := make([]int, len(d.Below))
	for i, f := range d.Below {
		below[i] = int(f.Fd())
	}
	from := d.Root
	if from == nil && len(d.Below) > 0 {
		from = d.Below[0]
	}
	if from != nil {
		// The root's time changes with every entry in it and says nothing.
		same, err := sameMetadata(root.parent, int(from.Fd()))
		if err != nil {
			return err
		}
		if !same {
			root.kind = Changed
		}
	}
	err := w.enter(root, root.parent, below)
	if e := (*errdefs.Error)(nil); err != nil && !errors.As(err, &e) {
		return &errdefs.Error{Op: "compare", What: d.Tree.Name(), Kind: errdefs.KindOf(err), Err: err}
	}
	return err
}

// tell emits an entry after the directories on the way to it.
func (w *walker) tell(e *differing) error {
	for i, p := range w.pending {
		if p == nil {
			continue
		}
		if err := w.emit(p); err != nil {
			return err
		}
		w.pending[i] = nil
	}
	return w.emit(e)
}

// enter walks a directory of the tree: fd is its handle, below those of the directories below it, topmost first.
func (w *walker) enter(e *differing, fd int, below []int) error {
	if len(w.pending) > maxDepth {
		return &errdefs.Error{Op: "compare", What: "/" + e.path, Kind: errdefs.Exhausted, Why: fmt.Sprintf("it is deeper than %d directories", maxDepth)}
	}
	names, err := namesIn(fd)
	if err != nil {
		return &os.PathError{Op: "list", Path: "/" + e.path, Err: err}
	}
	if e.aged && w.skipsOne(fd, e.path, names) {
		e.kind = carrying // what is left out is what has changed its time
	}
	if e.kind != carrying || e.hides {
		if err := w.tell(e); err != nil {
			return err
		}
		w.pending = append(w.pending, nil)
	} else {
		w.pending = append(w.pending, e)
	}
	defer func() { w.pending = w.pending[:len(w.pending)-1] }()
	if w.Whole {
		under, err := union(below)
		if err != nil {
			return &os.PathError{Op: "list what is below", Path: "/" + e.path, Err: err}
		}
		for n := range under {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	marked := !w.Whole && overlayXattr(fd, "opaque") == "x" // its whiteouts may be files with an attribute (overlayfs.rst)
	for _, n := range names {
		if err := w.ctx.Err(); err != nil {
			return &errdefs.Error{Op: "compare", What: w.Tree.Name(), Kind: errdefs.KindOf(err), Err: err}
		}
		if err := w.name(join(e.path, n), fd, n, below, marked); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) skipsOne(fd int, dir string, names []string) bool {
	return w.Skip != nil && slices.ContainsFunc(names, func(n string) bool {
		var st unix.Stat_t
		return unix.Fstatat(fd, n, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && w.Skip(join(dir, n), &st)
	})
}

// name looks at one name of a directory.
func (w *walker) name(path string, fd int, name string, below []int, marked bool) error {
	e := &differing{path: path, parent: fd, name: name}
	err := unix.Fstatat(fd, name, &e.st, unix.AT_SYMLINK_NOFOLLOW)
	gone := err == unix.ENOENT
	if err != nil && !gone {
		return &os.PathError{Op: "stat", Path: "/" + path, Err: err}
	}
	if gone && !w.Whole {
		return nil // removed meanwhile
	}
	if !gone && w.Skip != nil && w.Skip(path, &e.st) {
		return nil
	}
	if !gone && !w.Whole && (isWhiteout(&e.st) || marked && isMarkedWhiteout(fd, name, &e.st)) {
		gone = true
	}
	dirs, under, at, err := lookBelow(below, name)
	defer closeAll(dirs)
	if err != nil {
		return &os.PathError{Op: "look below", Path: "/" + path, Err: err}
	}
	there := at >= 0
	switch {
	case gone && !there:
		return nil
	case gone:
		e.kind = Deleted
		return w.tell(e)
	case e.st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return w.directory(e, dirs, there)
	case !there:
		e.kind = Added
	default:
		e.kind = Changed
	}
	if e.st.Mode&unix.S_IFMT == unix.S_IFREG && !w.Whole {
		e.partly = partlyCopied(fd, name)
	}
	if there && w.Whole {
		same, err := w.sameFile(e, below[at], under)
		if err != nil {
			return &os.PathError{Op: "compare", Path: "/" + path, Err: err}
		}
		if same {
			return nil
		}
	}
	return w.tell(e)
}

// directory goes into a directory of the tree.
func (w *walker) directory(e *differing, below []int, there bool) error {
	fd, err := pathrs.Openat2(e.parent, e.name, dirFlags, 0, within)
	if err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP {
		return nil // exchanged meanwhile
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: "/" + e.path, Err: err}
	}
	defer unix.Close(fd)
	e.kind = Added
	if there {
		e.kind = Changed
	}
	if len(below) > 0 {
		same, err := sameMetadata(fd, below[0])
		if err != nil {
			return &os.PathError{Op: "compare", Path: "/" + e.path, Err: err}
		}
		var o unix.Stat_t
		if err := unix.Fstat(below[0], &o); err != nil {
			return &os.PathError{Op: "compare", Path: "/" + e.path, Err: err}
		}
		switch {
		case same && o.Mtim == e.st.Mtim:
			e.kind = carrying
		case same:
			e.aged = true
		}
	}
	if w.Whole {
		return w.enter(e, fd, below)
	}
	if overlayXattr(fd, "redirect") != "" {
		return w.moved(e, len(below) > 0)
	}
	if overlayXattr(fd, "opaque") == "y" {
		e.hides = len(below) > 0
		below = nil
	}
	return w.enter(e, fd, below)
}

// moved tells a directory that was renamed: all that its users see in it is new here.
func (w *walker) moved(e *differing, hides bool) error {
	if w.merged == nil {
		if w.Merged == nil {
			return &errdefs.Error{Op: "compare", What: "/" + e.path, Kind: errdefs.Unsupported, Why: "overlayfs has kept its renaming as a redirect"}
		}
		var err error
		if w.merged, err = w.Merged(); err != nil {
			return err
		}
	}
	f, err := pathrs.OpenBeneath(w.merged, e.path, dirFlags, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	e.hides = hides
	if e.kind == carrying {
		e.kind = Changed
	}
	// The merged tree is a plain one: no whiteouts, no attributes of overlayfs.
	plain := &walker{Difference: &Difference{Tree: w.Tree, Whole: true, Skip: w.Skip}, ctx: w.ctx, emit: w.emit, pending: w.pending}
	return plain.enter(e, int(f.Fd()), nil)
}

// sameFile compares a file that is no directory with the one of that name below.
func (w *walker) sameFile(e *differing, below int, o *unix.Stat_t) (bool, error) {
	st := &e.st
	if w.Shared && st.Ino == o.Ino {
		return true, nil
	}
	if st.Mode != o.Mode || st.Uid != o.Uid || st.Gid != o.Gid || st.Rdev != o.Rdev || st.Mtim != o.Mtim {
		return false, nil
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		a, err1 := readlinkat(e.parent, e.name)
		b, err2 := readlinkat(below, e.name)
		return a == b, errors.Join(err1, err2)
	case unix.S_IFREG:
		if st.Size != o.Size {
			return false, nil
		}
	default:
		return true, nil
	}
	a, err := openRegular(e.parent, e.name)
	if err != nil {
		return false, err
	}
	defer a.Close()
	b, err := openRegular(below, e.name)
	if err != nil {
		return false, err
	}
	defer b.Close()
	same, err := sameXattrs(int(a.Fd()), int(b.Fd()))
	if err != nil || !same {
		return false, err
	}
	if time.Unix(st.Ctim.Unix()).Before(w.Copied) {
		return true, nil
	}
	return sameContent(a, b)
}

func sameContent(a, b io.Reader) (bool, error) {
	p, q := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, err := io.ReadFull(a, p)
		m, err2 := io.ReadFull(b, q)
		if n != m || !bytes.Equal(p[:n], q[:m]) {
			return false, nil
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return err2 == err, nil
		}
		if err != nil || err2 != nil {
			return false, errors.Join(err, err2)
		}
	}
}

// sameMetadata compares two directories, but for their times.
func sameMetadata(a, b int) (bool, error) {
	var s, t unix.Stat_t
	if err := errors.Join(unix.Fstat(a, &s), unix.Fstat(b, &t)); err != nil {
		return false, err
	}
	if s.Mode != t.Mode || s.Uid != t.Uid || s.Gid != t.Gid {
		return false, nil
	}
	return sameXattrs(a, b)
}

func sameXattrs(a, b int) (bool, error) {
	x, err := keptXattrs(a)
	if err != nil {
		return false, err
	}
	y, err := keptXattrs(b)
	if err != nil {
		return false, err
	}
	return slices.EqualFunc(x, y, func(p, q xattr) bool { return p.name == q.name && bytes.Equal(p.value, q.value) }), nil
}

// lookBelow finds a name in the directories below, topmost first, as overlayfs does. at is the index of the first that
// has it, -1 when none has; dirs are handles of all directories of that name that are seen, when the first is one.
func lookBelow(below []int, name string) (dirs []int, st *unix.Stat_t, at int, err error) {
	at = -1
	for i, d := range below {
		var s unix.Stat_t
		switch err := unix.Fstatat(d, name, &s, unix.AT_SYMLINK_NOFOLLOW); err {
		case nil:
		case unix.ENOENT:
			continue
		default:
			return dirs, nil, -1, err
		}
		if isWhiteout(&s) {
			return dirs, st, at, nil
		}
		if at < 0 {
			at, st = i, &s
		}
		if s.Mode&unix.S_IFMT != unix.S_IFDIR {
			return dirs, st, at, nil
		}
		fd, err := pathrs.Openat2(d, name, dirFlags, 0, within)
		if err != nil {
			return dirs, nil, -1, err
		}
		dirs = append(dirs, fd)
		if overlayXattr(fd, "opaque") == "y" {
			return dirs, st, at, nil
		}
	}
	return dirs, st, at, nil
}

// union lists what the directories below show together.
func union(below []int) (map[string]bool, error) {
	there, hidden := map[string]bool{}, map[string]bool{}
	for i, d := range below {
		names, err := namesIn(d)
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			if there[n] || hidden[n] {
				continue
			}
			var st unix.Stat_t
			if err := unix.Fstatat(d, n, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return nil, err
			}
			if isWhiteout(&st) {
				if i < len(below)-1 {
					hidden[n] = true
				}
				continue
			}
			there[n] = true
		}
	}
	return there, nil
}

// namesIn lists a directory by a handle of its own, so that the offset of fd does not matter.
func namesIn(fd int) ([]string, error) {
	own, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(own), ".")
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // the directory was removed meanwhile
	}
	return names, err
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// overlayXattr reads an attribute of overlayfs in whichever of its two namespaces; "" is none.
func overlayXattr(fd int, name string) string {
	b := make([]byte, 1024)
	for _, space := range [...]string{"trusted.overlay.", "user.overlay."} {
		if n, err := unix.Fgetxattr(fd, space+name, b); err == nil {
			return string(b[:n])
		}
	}
	return ""
}

// isMarkedWhiteout: an empty file with the attribute overlay.whiteout, in a directory that says it has such.
func isMarkedWhiteout(dir int, name string, st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size == 0 && hasOverlayXattr(dir, name, "whiteout")
}

// partlyCopied: overlayfs copied up the metadata only (metacopy).
func partlyCopied(dir int, name string) bool { return hasOverlayXattr(dir, name, "metacopy") }

func hasOverlayXattr(dir int, name, attr string) bool {
	f, err := openRegular(dir, name)
	if err != nil {
		return false
	}
	defer f.Close()
	b := make([]byte, 64)
	for _, space := range [...]string{"trusted.overlay.", "user.overlay."} {
		if _, err := unix.Fgetxattr(int(f.Fd()), space+attr, b); err == nil || err == unix.ERANGE {
			return true
		}
	}
	return false
}

// openRegular opens a regular file for reading. The object is looked at before it is opened: a device that a process
// put there meanwhile is not touched.
func openRegular(dir int, name string) (*os.File, error) {
	fd, err := pathrs.Openat2(dir, name, unix.O_PATH|unix.O_NOFOLLOW, 0, within)
	if err != nil {
		return nil, err
	}
	p := os.NewFile(uintptr(fd), name)
	defer p.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, &errdefs.Error{
			Op: "read", What: name, Kind: errdefs.Conflict, Why: "it was exchanged for something else meanwhile",
			Fix: "stop or pause the container, and try again",
		}
	}
	return pathrs.Reopen(p, unix.O_RDONLY)
}

// keptXattrs returns the attributes that travel in a layer, sorted: capabilities, ACLs and the user's own. Those of
// security modules and of overlayfs belong to this host.
func keptXattrs(fd int) ([]xattr, error) {
	names, err := listXattrs(fd)
	if err != nil {
		return nil, err
	}
	var out []xattr
	for _, n := range names {
		switch {
		case n == "security.capability", n == "system.posix_acl_access", n == "system.posix_acl_default":
		case strings.HasPrefix(n, "user.") && !strings.HasPrefix(n, "user.overlay."):
		default:
			continue
		}
		v, err := getXattr(fd, n)
		if err == unix.ENODATA {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, &os.PathError{Op: "getxattr", Path: n, Err: err}
		}
		out = append(out, xattr{n, v})
	}
	slices.SortFunc(out, func(a, b xattr) int { return strings.Compare(a.name, b.name) })
	return out, nil
}

func listXattrs(fd int) ([]string, error) {
	b := make([]byte, 1024)
	n, err := unix.Flistxattr(fd, b)
	if err == unix.ERANGE {
		b = make([]byte, 64<<10) // XATTR_LIST_MAX
		n, err = unix.Flistxattr(fd, b)
	}
	if err == unix.EOPNOTSUPP || err == nil && n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "listxattr", Path: "file", Err: err}
	}
	return strings.Split(strings.TrimSuffix(string(b[:n]), "\x00"), "\x00"), nil
}

func getXattr(fd int, name string) ([]byte, error) {
	b := make([]byte, 256)
	n, err := unix.Fgetxattr(fd, name, b)
	if err == unix.ERANGE {
		b = make([]byte, 64<<10) // XATTR_SIZE_MAX
		n, err = unix.Fgetxattr(fd, name, b)
	}
	if err != nil {
		return nil, err
	}
	return b[:n:n], nil
}
