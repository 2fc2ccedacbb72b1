package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/moby/patternmatcher"
	"github.com/onggi/onggi/build/frontend"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/pathrs"
	"golang.org/x/sys/unix"
)

// View is a tree to read from.
type View struct {
	root  *os.File
	owned bool           // the files keep their owners; in a user's directory they are all root's
	time  *unix.Timespec // the time that all files have, if set
	keep  *filter
	known *Known // or nil
}

// NewView returns a view of the tree root, which stays the caller's. exclude are .dockerignore's patterns, include, if not
// empty, says what there is at all; both relative to root. anonymous says that the owners of the files mean nothing here:
// they appear as root's.
func NewView(root *os.File, include, exclude []string, anonymous bool) (*View, error) {
	f, err := newFilter(include, exclude)
	if err != nil {
		return nil, err
	}
	return &View{root: root, owned: !anonymous, keep: f}, nil
}

// Anonymous says that the view is of a directory of the user.
func (v *View) Anonymous() bool { return !v.owned }

// At returns the view with one time for all files: in a user's directory, theirs say when somebody checked them out.
func (v *View) At(t time.Time) *View {
	ts := unix.NsecToTimespec(t.UnixNano())
	out := *v
	out.time = &ts
	return &out
}

// filter is a pair of pattern lists.
type filter struct {
	include, exclude *patternmatcher.PatternMatcher
}

func newFilter(include, exclude []string) (*filter, error) {
	f := &filter{}
	var err error
	if len(include) > 0 {
		if f.include, err = patternmatcher.New(include); err != nil {
			return nil, badPattern(include, err)
		}
	}
	if len(exclude) > 0 {
		if f.exclude, err = patternmatcher.New(exclude); err != nil {
			return nil, badPattern(exclude, err)
		}
	}
	return f, nil
}

func badPattern(patterns []string, err error) error {
	return &errdefs.Error{
		Op: "read", What: fmt.Sprintf("the patterns %q", patterns), Kind: errdefs.InvalidArgument, Err: err,
		Fix: "see the syntax of .dockerignore: https://docs.docker.com/build/concepts/context/#syntax",
	}
}

// has says whether the path (relative, clean) is there for itself.
func (f *filter) has(p string) (bool, error) {
	if f == nil || p == "." || p == "" {
		return true, nil
	}
	if f.include != nil {
		if ok, err := f.include.MatchesOrParentMatches(p); err != nil || !ok {
			return false, err
		}
	}
	if f.exclude != nil {
		out, err := f.exclude.MatchesOrParentMatches(p)
		return !out, err
	}
	return true, nil
}

// empty says that the filter lets everything pass.
func (f *filter) empty() bool { return f == nil || f.include == nil && f.exclude == nil }

// barren says that nothing below a directory that is not there itself can be there.
func (f *filter) barren() bool {
	return f.empty() || f.include == nil && !f.exclude.Exclusions()
}

func (v *View) modified(st *unix.Stat_t) unix.Timespec {
	if v.time != nil {
		return *v.time
	}
	return st.Mtim
}

// file is one file of a view: a handle to its parent and its name in it.
type file struct {
	parent int
	name   string
	path   string // in the view, relative and clean
	st     unix.Stat_t
}

func (f *file) isDir() bool { return f.st.Mode&unix.S_IFMT == unix.S_IFDIR }

const (
	dirFlags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW
	oneDown  = pathrs.NoSymlinks
)

// clean makes a path relative to the root, "." for the root itself. ".." at the root stays there, as after chroot.
func clean(p string) string {
	p = strings.TrimPrefix(path.Clean("/"+p), "/")
	if p == "" {
		return "."
	}
	return p
}

func isNotFound(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errdefs.Is(err, errdefs.NotFound)
}

// Found is a name that a selection has come to.
type Found struct {
	// Name is what was asked for or matched, relative to the view: a copy is named after its last component.
	Name string
	// Path is where its content is, after links.
	Path string
}

// Select resolves src: a name, or with wildcard a pattern of path.Match. With follow, links are followed inside the view,
// else the last component is not. What the filter leaves out is not found. Nothing found is NotFound for a name and an
// empty list for a pattern.
func (v *View) Select(ctx context.Context, src string, wildcard, follow bool) ([]Found, error) {
	p := clean(src)
	names := []string{p}
	if wildcard && strings.ContainsAny(p, `*?[\`) {
		var err error
		if names, err = v.glob(ctx, p); err != nil {
			return nil, err
		}
	}
	var out []Found
	for _, n := range names {
		real, err := v.resolve(n, follow)
		if err != nil {
			if isNotFound(err) {
				return nil, v.missing(n)
			}
			return nil, err
		}
		out = append(out, Found{n, real})
	}
	return out, nil
}

func (v *View) missing(name string) error {
	e := &errdefs.Error{Op: "find", What: "/" + name, Kind: errdefs.NotFound, Why: "there is no such file or directory in the source"}
	if v.keep != nil && v.keep.exclude != nil {
		if ok, err := v.keep.has(name); err == nil && !ok {
			e.Why, e.Fix = ".dockerignore leaves it out", "add !"+name+" to .dockerignore"
		}
	}
	return e
}

// resolve follows the links of name inside the view and returns the path that it leads to.
func (v *View) resolve(name string, follow bool) (string, error) {
	left := strings.Split(name, "/")
	var at []string
	for links := 0; len(left) > 0; {
		c := left[0]
		left = left[1:]
		switch c {
		case "", ".":
			continue
		case "..":
			if len(at) > 0 {
				at = at[:len(at)-1]
			}
			continue
		}
		here := path.Join(append(slices.Clone(at), c)...)
		st, err := v.lstat(here)
		if err != nil {
			return "", err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFLNK && (follow || len(left) > 0) {
			if links++; links > 255 {
				return "", &errdefs.Error{Op: "follow", What: "/" + name, Kind: errdefs.InvalidArgument, Why: "there are too many links on the way"}
			}
			target, err := pathrs.Readlink(v.root, here)
			if err != nil {
				return "", err
			}
			if strings.HasPrefix(target, "/") {
				at = nil
			}
			left = append(strings.Split(target, "/"), left...)
			continue
		}
		at = append(at, c)
	}
	if len(at) == 0 {
		return ".", nil
	}
	p := path.Join(at...)
	if !v.keep.empty() {
		ok, err := v.visible(p)
		if err != nil {
			return "", err
		}
		if !ok {
			return "", fs.ErrNotExist
		}
	}
	return p, nil
}

// visible says whether p, or something below it, is there.
func (v *View) visible(p string) (bool, error) {
	ok, err := v.keep.has(p)
	if err != nil || ok {
		return ok, err
	}
	st, err := v.lstat(p)
	if err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR || v.keep.barren() {
		return false, err
	}
	some := false
	err = v.walk(context.Background(), p, nil, func(f *file) error {
		if f.path == p {
			return nil
		}
		some = true
		return fs.SkipAll
	})
	return some, err
}

func (v *View) lstat(p string) (st unix.Stat_t, err error) {
	fd, err := pathrs.Openat2(int(v.root.Fd()), p, unix.O_PATH|unix.O_NOFOLLOW, 0, pathrs.InRoot)
	if err != nil {
		return st, &os.PathError{Op: "open", Path: "/" + p, Err: err}
	}
	defer unix.Close(fd)
	err = unix.Fstat(fd, &st)
	return st, err
}

// glob walks only what the pattern's components can match.
func (v *View) glob(ctx context.Context, pattern string) ([]string, error) {
	if _, err := path.Match(pattern, ""); err != nil {
		return nil, badPattern([]string{pattern}, err)
	}
	found := []string{""}
	for _, c := range strings.Split(pattern, "/") {
		var next []string
		for _, dir := range found {
			if !strings.ContainsAny(c, `*?[\`) {
				next = append(next, path.Join(dir, c))
				continue
			}
			names, err := v.names(ctx, dir)
			if err != nil {
				if isNotFound(err) || errors.Is(err, unix.ENOTDIR) {
					continue
				}
				return nil, err
			}
			for _, n := range names {
				if ok, _ := path.Match(c, n); ok {
					next = append(next, path.Join(dir, n))
				}
			}
		}
		found = next
	}
	// A name behind a wildcard may not be there, and the filter has its say.
	out := found[:0]
	for _, p := range found {
		if _, err := v.lstat(p); err != nil {
			if isNotFound(err) || errors.Is(err, unix.ENOTDIR) {
				continue
			}
			return nil, err
		}
		ok, err := v.visible(p)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, p)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// names lists a directory, sorted.
func (v *View) names(ctx context.Context, dir string) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if dir == "" {
		dir = "."
	}
	d, err := pathrs.Open(v.root, dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return sortedNames(d)
}

func sortedNames(d *os.File) ([]string, error) {
	names, err := d.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

// walk calls fn for start (a resolved path) and everything below it, sorted, a directory before what is in it. more, if not
// nil, filters further, by paths relative to start. A directory that the filters leave out is visited if something below it
// is there. fn may return fs.SkipAll.
func (v *View) walk(ctx context.Context, start string, more *filter, fn func(*file) error) error {
	parent, name := path.Split(start)
	parent = clean(parent)
	fd, err := pathrs.Openat2(int(v.root.Fd()), parent, unix.O_RDONLY|unix.O_DIRECTORY, 0, pathrs.InRoot)
	if err != nil {
		return &os.PathError{Op: "open", Path: "/" + parent, Err: err}
	}
	defer unix.Close(fd)
	if start == "." {
		name = "."
	}
	w := &walker{ctx: ctx, v: v, start: start, more: more, fn: fn}
	f := &file{parent: fd, name: name, path: start}
	if err := unix.Fstatat(fd, name, &f.st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "stat", Path: "/" + start, Err: err}
	}
	if _, err = w.visit(f, nil); err == fs.SkipAll {
		return nil
	}
	return err
}

type walker struct {
	ctx   context.Context
	v     *View
	start string
	more  *filter
	fn    func(*file) error
}

// maxDepth bounds how deep directories may be nested: each level holds a descriptor.
const maxDepth = 500

func (w *walker) has(p string) (bool, error) {
	ok, err := w.v.keep.has(p)
	if err != nil || !ok || w.more.empty() {
		return ok, err
	}
	rel := strings.TrimPrefix(strings.TrimPrefix(p, w.start), "/")
	if w.start == "." {
		rel = p
	}
	if p == w.start {
		rel = "."
	}
	return w.more.has(rel)
}

// visit handles one file; pending are the directories above it that were not there for themselves, outermost first. It
// says whether fn was called, and so for pending too.
func (w *walker) visit(f *file, pending []*file) (called bool, err error) {
	if err := w.ctx.Err(); err != nil {
		return false, err
	}
	if strings.Count(f.path, "/") > maxDepth {
		return false, &errdefs.Error{Op: "read", What: "/" + f.path, Kind: errdefs.Exhausted, Why: fmt.Sprintf("directories are nested deeper than %d", maxDepth)}
	}
	ok, err := w.has(f.path)
	if err != nil {
		return false, err
	}
	if ok {
		for _, p := range append(pending, f) {
			if err := w.fn(p); err != nil {
				return true, err
			}
		}
		called, pending = true, nil
	}
	if !f.isDir() {
		return called, nil
	}
	if !ok {
		if w.v.keep.barren() && w.more.barren() {
			return false, nil
		}
		pending = append(slices.Clone(pending), f)
	}
	fd, err := pathrs.Openat2(f.parent, f.name, dirFlags, 0, oneDown)
	if err != nil {
		return called, &os.PathError{Op: "open", Path: "/" + f.path, Err: err}
	}
	d := os.NewFile(uintptr(fd), f.name)
	defer d.Close()
	names, err := sortedNames(d)
	if err != nil {
		return called, err
	}
	for _, n := range names {
		c := &file{parent: fd, name: n, path: path.Join(f.path, n)}
		if err := unix.Fstatat(fd, n, &c.st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			if err == unix.ENOENT {
				continue // removed meanwhile
			}
			return called, &os.PathError{Op: "stat", Path: "/" + c.path, Err: err}
		}
		did, err := w.visit(c, pending)
		if did {
			called, pending = true, nil
		}
		if err != nil {
			return called, err
		}
	}
	return called, nil
}

// ReadFile reads up to length bytes of a regular file, from offset on. Links are followed inside the view.
func (v *View) ReadFile(name string, offset int64, length int) ([]byte, error) {
	real, err := v.resolve(clean(name), true)
	if err != nil {
		if isNotFound(err) {
			return nil, v.missing(clean(name))
		}
		return nil, err
	}
	st, err := v.lstat(real)
	if err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, &errdefs.Error{Op: "read", What: "/" + real, Kind: errdefs.InvalidArgument, Why: "it is not a regular file"}
	}
	f, err := pathrs.Open(v.root, real, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, max(0, min(int64(length), st.Size-offset)))
	n, err := f.ReadAt(b, offset)
	if err == io.EOF {
		err = nil
	}
	return b[:n], err
}

// Stat tells of a file; a link in the last component is not followed.
func (v *View) Stat(name string) (frontend.Stat, error) {
	real, err := v.resolve(clean(name), false)
	if err != nil {
		if isNotFound(err) {
			return frontend.Stat{}, v.missing(clean(name))
		}
		return frontend.Stat{}, err
	}
	st, err := v.lstat(real)
	if err != nil {
		return frontend.Stat{}, err
	}
	return v.stat(path.Base("/"+real), real, &st)
}

func (v *View) stat(name, p string, st *unix.Stat_t) (frontend.Stat, error) {
	uid, gid := v.owner(st)
	fm := fromUnix(st.Mode)
	out := frontend.Stat{Path: name, UID: uid, GID: gid, Size: st.Size, ModTime: st.Mtim.Nano()}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		fm |= fs.ModeDir
	case unix.S_IFLNK:
		fm |= fs.ModeSymlink
		var err error
		if out.Link, err = pathrs.Readlink(v.root, p); err != nil {
			return out, err
		}
	case unix.S_IFIFO:
		fm |= fs.ModeNamedPipe
	case unix.S_IFSOCK:
		fm |= fs.ModeSocket
	case unix.S_IFBLK:
		fm |= fs.ModeDevice
	case unix.S_IFCHR:
		fm |= fs.ModeDevice | fs.ModeCharDevice
	}
	out.Mode = uint32(fm)
	return out, nil
}

// ReadDir lists a directory, sorted; pattern, if not empty, is one of path.Match.
func (v *View) ReadDir(ctx context.Context, name, pattern string) ([]frontend.Stat, error) {
	real, err := v.resolve(clean(name), true)
	if err != nil {
		if isNotFound(err) {
			return nil, v.missing(clean(name))
		}
		return nil, err
	}
	names, err := v.names(ctx, real)
	if err != nil {
		return nil, err
	}
	var out []frontend.Stat
	for _, n := range names {
		if pattern != "" {
			if ok, err := path.Match(pattern, n); err != nil {
				return nil, badPattern([]string{pattern}, err)
			} else if !ok {
				continue
			}
		}
		p := path.Join(real, n)
		if ok, err := v.visible(p); err != nil {
			return nil, err
		} else if !ok {
			continue
		}
		st, err := v.lstat(p)
		if err != nil {
			return nil, err
		}
		s, err := v.stat(n, p, &st)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}
