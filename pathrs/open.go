package pathrs

import (
	"errors"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/onggi/onggi/errdefs"
	"golang.org/x/sys/unix"
)

// The two ways to resolve. Both refuse magic links (/proc/*/fd and the like), whatever the tree holds.
const (
	// InRoot treats the handle as the root: "..", absolute paths and absolute links stay inside.
	InRoot uint64 = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS
	// Beneath refuses whatever would leave the handle, even for a moment.
	Beneath uint64 = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS
	// NoSymlinks is Beneath without any symbolic link on the way or at the end.
	NoSymlinks uint64 = Beneath | unix.RESOLVE_NO_SYMLINKS
)

// retries bounds how often a resolution that raced with a rename is tried again. The kernel answers EAGAIN when a ".."
// could not be proven to stay inside because something was moved meanwhile; one that moves things for ever must not
// keep us for ever.
const retries = 256

// Openat2 is openat2(2) below dirfd with resolve, which must be InRoot, Beneath or NoSymlinks, perhaps with
// RESOLVE_NO_XDEV. O_CLOEXEC and O_NOCTTY are added. It returns a raw descriptor for callers that open very many; the
// error is the errno.
//
// Errors: EXDEV (would leave the handle), ELOOP (a link that is not allowed, or too many), EAGAIN (somebody kept moving
// things), and those of open(2).
func Openat2(dirfd int, unsafePath string, flags int, mode uint32, resolve uint64) (int, error) {
	if unsafePath == "" {
		unsafePath = "."
	}
	how := unix.OpenHow{
		Flags:   uint64(flags) | unix.O_CLOEXEC,
		Resolve: resolve,
	}
	if flags&unix.O_PATH == 0 {
		how.Flags |= unix.O_NOCTTY // openat2 refuses O_NOCTTY with O_PATH
	}
	if flags&(unix.O_CREAT|unix.O_TMPFILE) != 0 {
		how.Mode = uint64(mode)
	}
	for tries := 0; ; tries++ {
		fd, err := unix.Openat2(dirfd, unsafePath, &how)
		switch {
		case err == nil:
			return fd, nil
		case err == unix.EINTR:
		case err == unix.EAGAIN && tries < retries:
			runtime.Gosched()
		default:
			return -1, err
		}
	}
}

// OpenRoot opens the directory at path, which is ours (a path of the host, not of a tree that we do not trust), as the
// root for the other functions.
func OpenRoot(path string) (*os.File, error) {
	for {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
		return os.NewFile(uintptr(fd), path), nil
	}
}

// Open opens unsafePath in root with open(2) flags (O_CLOEXEC and O_NOCTTY are added), with links resolved as if root
// were "/". mode counts with O_CREAT only. Opening what may be a device or a FIFO has effects of its own: use O_PATH
// or ReadFile. Errors are those of Openat2, told as errdefs.Error.
func Open(root *os.File, unsafePath string, flags int, mode uint32) (*os.File, error) {
	return open(root, unsafePath, flags, mode, InRoot)
}

// OpenBeneath is Open, but refuses what would leave root instead of turning it inside.
func OpenBeneath(root *os.File, unsafePath string, flags int, mode uint32) (*os.File, error) {
	return open(root, unsafePath, flags, mode, Beneath)
}

func open(root *os.File, unsafePath string, flags int, mode uint32, resolve uint64) (*os.File, error) {
	fd, err := Openat2(int(root.Fd()), unsafePath, flags, mode, resolve)
	runtime.KeepAlive(root)
	if err != nil {
		return nil, explain("open", root, unsafePath, err)
	}
	return os.NewFile(uintptr(fd), root.Name()+"//"+unsafePath), nil
}

// Reopen opens the object behind an O_PATH handle with other flags, by the kernel's own link in /proc, which is
// verified to be a procfs (a tree of the container cannot stand in for it).
func Reopen(f *os.File, flags int) (*os.File, error) {
	fd, err := reopen(int(f.Fd()), flags)
	runtime.KeepAlive(f)
	if err != nil {
		return nil, &os.PathError{Op: "reopen", Path: f.Name(), Err: err}
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

func reopen(fd, flags int) (int, error) {
	proc, err := unix.Open("/proc/thread-self/fd", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(proc)
	var st unix.Statfs_t
	if err := unix.Fstatfs(proc, &st); err != nil {
		return -1, err
	}
	if st.Type != unix.PROC_SUPER_MAGIC {
		return -1, unix.EXDEV
	}
	for {
		n, err := unix.Openat(proc, strconv.Itoa(fd), flags&^unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
		if err != unix.EINTR {
			return n, err
		}
	}
}

// ReadFile reads the regular file unsafePath in root, of at most limit bytes: the /etc/passwd of a container, say. The
// object is looked at before it is opened, so that a FIFO cannot make us wait and a device (a watchdog starts when it
// is opened) is not touched. Errors: NotFound; InvalidArgument (not a regular file, or it leaves root); Exhausted
// (longer than limit).
func ReadFile(root *os.File, unsafePath string, limit int64) ([]byte, error) {
	p, err := open(root, unsafePath, unix.O_PATH, 0, InRoot)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(p.Fd()), &st); err != nil {
		return nil, explain("read", root, unsafePath, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, &errdefs.Error{Op: "read", What: unsafePath, Kind: errdefs.InvalidArgument, Why: "it is not a regular file"}
	}
	f, err := Reopen(p, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil, explain("read", root, unsafePath, err)
	}
	defer f.Close()
	// The size may grow between look and read (and is 0 in /proc), so the bound is held by reading, not by st.Size.
	buf := make([]byte, 0, min(limit, max(st.Size, 512))+1)
	for {
		if int64(len(buf)) > limit {
			return nil, &errdefs.Error{
				Op: "read", What: unsafePath, Kind: errdefs.Exhausted,
				Why: "it is longer than the " + strconv.FormatInt(limit, 10) + " bytes that are allowed here",
			}
		}
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := unix.Read(int(f.Fd()), buf[len(buf):min(cap(buf), int(limit)+1)])
		switch {
		case err == unix.EINTR:
		case err != nil:
			return nil, explain("read", root, unsafePath, err)
		case n == 0:
			return buf, nil
		default:
			buf = buf[:len(buf)+n]
		}
	}
}

// Readlink reads the symbolic link unsafePath in root; its parent is resolved in root, the link itself is not followed.
func Readlink(root *os.File, unsafePath string) (string, error) {
	fd, err := Openat2(int(root.Fd()), unsafePath, unix.O_PATH|unix.O_NOFOLLOW, 0, InRoot)
	runtime.KeepAlive(root)
	if err != nil {
		return "", explain("read the link", root, unsafePath, err)
	}
	defer unix.Close(fd)
	target, err := readlinkat(fd, "")
	if err != nil {
		return "", explain("read the link", root, unsafePath, err)
	}
	return target, nil
}

func readlinkat(dirfd int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	for {
		n, err := unix.Readlinkat(dirfd, name, buf)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return "", err
		default:
			return string(buf[:n]), nil
		}
	}
}

// maxLinks bounds the dangling links that MkdirAll follows, as the kernel does (path_resolution(7)).
const maxLinks = 40

// MkdirAll makes the directory unsafePath in root and the parents that are missing, with mode (subject to the umask),
// and opens it. Links on the way are followed inside root; a dangling one is followed too, and what it points at is
// made, as mount targets like /var/run/x need (/var/run is a link to /run). Each directory is made and opened by a
// handle of its parent, so that one who swaps directories for links meanwhile gains nothing: the open refuses links.
// A missing part may not contain "..".
func MkdirAll(root *os.File, unsafePath string, mode uint32) (*os.File, error) {
	defer runtime.KeepAlive(root)
	rootfd, path := int(root.Fd()), unsafePath
	for links := 0; ; links++ {
		fd, rest, err := deepest(rootfd, path)
		if err != nil {
			return nil, explain("make the directory", root, unsafePath, err)
		}
		for len(rest) > 0 {
			name := rest[0]
			if name == ".." {
				unix.Close(fd)
				return nil, &errdefs.Error{
					Op: "make the directory", What: unsafePath, Kind: errdefs.InvalidArgument,
					Why: `it has ".." after a directory that does not exist`,
				}
			}
			next, err := mkdirOpen(fd, name, mode)
			if err == unix.ELOOP || err == unix.ENOTDIR {
				break // perhaps a dangling link: looked at below
			}
			unix.Close(fd)
			if err != nil {
				return nil, explain("make the directory", root, unsafePath, err)
			}
			fd, rest = next, rest[1:]
		}
		if len(rest) == 0 {
			return os.NewFile(uintptr(fd), root.Name()+"//"+unsafePath), nil
		}
		target, err := readlinkat(fd, rest[0])
		unix.Close(fd)
		switch {
		case err == unix.EINVAL:
			return nil, explain("make the directory", root, unsafePath, unix.ENOTDIR)
		case err != nil && err != unix.ENOENT:
			return nil, explain("make the directory", root, unsafePath, err)
		case links == maxLinks:
			return nil, explain("make the directory", root, unsafePath, unix.ELOOP)
		case err == unix.ENOENT:
			continue // it was swapped away: look again, a bounded number of times
		}
		// Put the link's target in the place of its name and resolve again from the root. A path that grows beyond
		// PATH_MAX is refused by the kernel.
		if strings.HasPrefix(target, "/") {
			path = target
		} else {
			all := components(path)
			path = strings.Join(append(all[:len(all)-len(rest):len(all)-len(rest)], target), "/")
		}
		path = strings.Join(append([]string{path}, rest[1:]...), "/")
	}
}

// deepest opens the longest leading part of path that exists and returns the components that are left.
func deepest(rootfd int, path string) (fd int, rest []string, err error) {
	all := components(path)
	for n := len(all); ; n-- {
		fd, err = Openat2(rootfd, strings.Join(all[:n], "/"), unix.O_PATH|unix.O_DIRECTORY, 0, InRoot)
		if err == nil {
			return fd, all[n:], nil
		}
		if err != unix.ENOENT || n == 0 {
			return -1, nil, err
		}
	}
}

// mkdirOpen makes name in the directory fd if it is not there, and opens it, following nothing.
func mkdirOpen(fd int, name string, mode uint32) (int, error) {
	if err := unix.Mkdirat(fd, name, mode); err != nil && err != unix.EEXIST {
		return -1, err
	}
	return Openat2(fd, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0, NoSymlinks)
}

// components splits a path; "" and "." are left out, ".." is kept for the kernel to resolve.
func components(path string) []string {
	var out []string
	for _, c := range strings.Split(path, "/") {
		if c != "" && c != "." {
			out = append(out, c)
		}
	}
	return out
}

// explain turns the errno of a resolution into what, why and kind.
func explain(op string, root *os.File, unsafePath string, err error) error {
	e := &errdefs.Error{Op: op, What: strconv.Quote(unsafePath) + " in " + root.Name(), Err: err}
	switch {
	case errors.Is(err, unix.EXDEV):
		e.Kind, e.Why = errdefs.InvalidArgument, "the path leads out of the directory"
	case errors.Is(err, unix.ELOOP):
		e.Kind, e.Why = errdefs.InvalidArgument, "a symbolic link is in the way, or there are too many"
	case errors.Is(err, unix.ENOTDIR):
		e.Kind, e.Why = errdefs.InvalidArgument, "a part of the path is not a directory"
	case errors.Is(err, unix.EAGAIN):
		e.Kind, e.Why = errdefs.Conflict, "somebody keeps moving directories in it"
	case errors.Is(err, unix.ENOSYS):
		e.Kind, e.Why = errdefs.Unsupported, "this kernel has no openat2(2)"
		e.Fix = "use Linux 5.6 or later; in a container, allow openat2 in its seccomp profile"
	default:
		e.Kind = errdefs.KindOf(err)
	}
	return e
}
