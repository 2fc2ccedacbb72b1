package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strings"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/mount"
	"github.com/onggi/onggi/pathrs"
	"github.com/onggi/onggi/userns"
	"golang.org/x/sys/unix"
)

// view reads files of a container's tree without mounting it: it looks for a name in the writable layer and then in
// the layers below, top down, as overlayfs does. What it cannot decide so (symbolic links, which may lead across
// layers, and overlayfs' redirects) it looks up in the mounted tree, in a mount namespace that only one thread is in.
//
// The tree is not trusted: links are never followed outside of it, only regular files are opened, sizes are bounded.
type view struct {
	layers []string // topmost first
	at     string   // an empty directory to mount at
	root   *os.File // the mounted tree, when it was needed
}

// newView returns a view of what these mounts would show; at is an existing empty directory of ours.
func newView(mounts []mount.Mount, at string) (*view, error) {
	if len(mounts) != 1 {
		return nil, &errdefs.Error{Op: "read", What: "the root file system", Kind: errdefs.Internal, Why: fmt.Sprintf("it has %d mounts", len(mounts))}
	}
	v := &view{at: at}
	switch m := mounts[0]; {
	case m.Overlay != nil:
		if m.Overlay.Upper != "" {
			v.layers = append(v.layers, m.Overlay.Upper)
		}
		v.layers = append(v.layers, m.Overlay.Lower...)
	case m.Type == "bind":
		v.layers = []string{m.Source}
	default:
		return nil, &errdefs.Error{Op: "read", What: "the root file system", Kind: errdefs.Internal, Why: "it is of type " + m.Type}
	}
	return v, nil
}

func (v *view) close() {
	if v.root != nil {
		_ = v.root.Close()
		v.root = nil
	}
}

// errComplicated: the answer needs the mounted tree.
var errComplicated = errors.New("a link or a redirect")

// read returns a regular file of at most limit bytes. A missing file is fs.ErrNotExist, anything but a regular file an
// error of kind InvalidArgument.
func (v *view) read(path string, limit int64) ([]byte, error) {
	f, err := v.openLayered(path)
	if errors.Is(err, errComplicated) {
		f, err = v.openMounted(path, unix.O_PATH)
		if err == nil {
			f, err = reopenRegular(f, path)
		}
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readAll(f, path+" in the image", limit)
}

// reopenRegular opens what an O_PATH handle stands for, if it is a regular file: a device or pipe that an image put
// there is never opened.
func reopenRegular(p *os.File, path string) (*os.File, error) {
	defer p.Close()
	st, err := p.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, &errdefs.Error{Op: "read", What: path + " in the image", Kind: errdefs.InvalidArgument, Why: "it is not a regular file"}
	}
	return pathrs.Reopen(p, unix.O_RDONLY|unix.O_NONBLOCK)
}

// openLayered finds a regular file layer by layer.
func (v *view) openLayered(path string) (*os.File, error) {
	var dirs []int
	closeAll := func() {
		for _, d := range dirs {
			_ = unix.Close(d)
		}
		dirs = nil
	}
	defer closeAll()
	for _, l := range v.layers {
		d, err := unix.Open(l, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("open layer %s: %w", l, err)
		}
		dirs = append(dirs, d)
	}
	parts := strings.Split(strings.Trim(path, "/"), "/")
	for _, name := range parts[:len(parts)-1] {
		next, err := descend(dirs, name)
		closeAll()
		dirs = next
		if err != nil {
			return nil, err
		}
		if len(dirs) == 0 {
			return nil, fs.ErrNotExist
		}
	}
	name := parts[len(parts)-1]
	for _, d := range dirs {
		fd, err := unix.Openat(d, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == unix.ENOENT {
			continue
		}
		if err != nil {
			return nil, err
		}
		p := os.NewFile(uintptr(fd), name)
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			_ = p.Close()
			return nil, err
		}
		switch {
		case whiteout(&st):
			_ = p.Close()
			return nil, fs.ErrNotExist
		case st.Mode&unix.S_IFMT == unix.S_IFLNK:
			_ = p.Close()
			return nil, errComplicated
		}
		f, err := reopenRegular(p, path)
		if err == nil && hasXattr(int(f.Fd()), "overlay.metacopy") {
			_ = f.Close()
			return nil, errComplicated
		}
		return f, err
	}
	return nil, fs.ErrNotExist
}

// descend returns the directories of that name in the given ones, as overlayfs merges them.
func descend(dirs []int, name string) (next []int, err error) {
	defer func() {
		if err != nil {
			for _, d := range next {
				_ = unix.Close(d)
			}
			next = nil
		}
	}()
	for _, d := range dirs {
		fd, err := unix.Openat(d, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		switch err {
		case nil:
		case unix.ENOENT:
			continue
		case unix.ENOTDIR, unix.ELOOP:
			var st unix.Stat_t
			if err := unix.Fstatat(d, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return next, err
			}
			if st.Mode&unix.S_IFMT == unix.S_IFLNK && len(next) == 0 {
				return next, errComplicated
			}
			return next, nil // a whiteout, or a file: what is below is hidden
		default:
			return next, err
		}
		next = append(next, fd)
		if hasXattr(fd, "overlay.redirect") {
			return next, errComplicated
		}
		if opaque(fd) {
			return next, nil
		}
	}
	return next, nil
}

// places returns for each path the path that it leads to when the links on its way are followed, as they are inside the
// tree. What is missing on the way stays as it is written. The runtime makes the place of a mount when it is missing, but
// not the place that a link leads to: /etc/resolv.conf is a link to a file that only a running systemd has in images made
// of an installed system.
func (v *view) places(paths []string) (map[string]string, error) {
	found := map[string]string{}
	known := map[string][]int{}
	defer func() {
		for _, dirs := range known {
			for _, d := range dirs {
				_ = unix.Close(d)
			}
		}
	}()
	for _, l := range v.layers {
		d, err := unix.Open(l, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("open layer %s: %w", l, err)
		}
		known[""] = append(known[""], d)
	}
	for _, p := range paths {
		found[p] = place(known, p)
	}
	return found, nil
}

// place resolves one path. known are the open directories of every resolved path so far.
func place(known map[string][]int, path string) string {
	at, rest := "", strings.Split(path, "/")
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			at = at[:max(0, strings.LastIndexByte(at, '/'))]
			continue
		}
		next := at + "/" + name
		if to := linkIn(known[at], name); to != "" {
			if links++; links > 40 { // as the kernel; it will say ELOOP
				return path
			}
			if to[0] == '/' {
				at = ""
			}
			rest = append(strings.Split(to, "/"), rest...)
			continue
		}
		if _, ok := known[next]; !ok {
			dirs, err := descend(known[at], name)
			if err != nil { // what only the mounted tree tells
				return path
			}
			known[next] = dirs
		}
		at = next
	}
	return cmpOr(at, "/")
}

// linkIn returns where the link of that name leads to, or nothing when the topmost entry of the name is no link.
func linkIn(dirs []int, name string) string {
	for _, d := range dirs {
		var st unix.Stat_t
		switch err := unix.Fstatat(d, name, &st, unix.AT_SYMLINK_NOFOLLOW); {
		case err != nil:
			continue
		case st.Mode&unix.S_IFMT != unix.S_IFLNK:
			return ""
		}
		b := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(d, name, b)
		if err != nil {
			return ""
		}
		return string(b[:n])
	}
	return ""
}

func whiteout(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 }

func hasXattr(fd int, name string) bool {
	for _, ns := range []string{"trusted.", "user."} {
		if _, err := unix.Fgetxattr(fd, ns+name, nil); err == nil {
			return true
		}
	}
	return false
}

func opaque(fd int) bool {
	var b [2]byte
	for _, ns := range []string{"trusted.", "user."} {
		if n, err := unix.Fgetxattr(fd, ns+"overlay.opaque", b[:]); err == nil && n == 1 && b[0] == 'y' {
			return true
		}
	}
	return false
}

// openMounted opens a path in the mounted tree; the kernel keeps every link inside of it.
func (v *view) openMounted(path string, flags int) (*os.File, error) {
	if v.root == nil {
		root, err := v.mounted()
		if err != nil {
			return nil, err
		}
		v.root = root
	}
	fd, err := pathrs.Openat2(int(v.root.Fd()), strings.TrimPrefix(path, "/"), flags, 0, pathrs.InRoot|unix.RESOLVE_NO_XDEV)
	switch err {
	case nil:
	case unix.ELOOP:
		return nil, &errdefs.Error{Op: "open", What: path + " in the image", Kind: errdefs.InvalidArgument, Why: "too many symbolic links", Err: err}
	default:
		return nil, fmt.Errorf("open %s in the image: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// dir opens a directory of the tree for reading; fs.ErrNotExist when there is none.
func (v *view) dir(path string) (*os.File, error) {
	f, err := v.openMounted(path, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOTDIR) {
		return nil, fs.ErrNotExist
	}
	return f, err
}

// mounted mounts the tree read-only where nobody sees it and returns its root: the mount ends with the last handle.
// The thread leaves the host's mount namespace and is thrown away with the new one.
func (v *view) mounted() (*os.File, error) {
	if len(v.layers) == 1 {
		return os.Open(v.layers[0])
	}
	var root *os.File
	err := onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("unshare the mount namespace: %w", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("make the mounts private: %w", err)
		}
		if err := mount.All([]mount.Mount{{Type: "overlay", Overlay: &mount.Overlay{Lower: v.layers, UserXattr: userns.Rootless()}}}, v.at); err != nil {
			return err
		}
		root, err = os.Open(v.at)
		return err
	})
	return root, err
}

// onThread runs f on a thread that ends afterwards, whatever f did to it. That thread is never the process's first:
// it would not end, and /proc/self shows what it is in.
func onThread(f func() error) error {
	res := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			res <- onThread(f) // this goroutine occupies the first thread meanwhile
			runtime.UnlockOSThread()
			return
		}
		res <- f() // never unlocked: the thread ends with this goroutine
	}()
	return <-res
}
