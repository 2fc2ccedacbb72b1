package mount

import (
	"os"
	"slices"
	"strings"

	"github.com/onggi/onggi/errdefs"
	"golang.org/x/sys/unix"
)

// Tree performs m where nobody sees it and returns the root of the mounted tree. The mount is attached to no namespace
// and ends with the last handle of it. m.Target must be empty. Where the kernel needs mount(2) for it (see All), it is
// made in a mount namespace of one thread, which ends.
func Tree(m Mount) (*os.File, error) {
	fail := func(err error) (*os.File, error) {
		return nil, &errdefs.Error{Op: "mount", What: "a tree to read", Kind: errdefs.KindOf(err), Why: m.Type, Err: err}
	}
	if m.Target != "" {
		return fail(&errdefs.Error{Kind: errdefs.InvalidArgument, Why: "the target " + m.Target})
	}
	fd, err := detached(&m)
	if err == nil {
		defer unix.Close(fd) //nolint:errcheck // a handle
		var root int
		// fsmount(2) and open_tree(2) give handles of the O_PATH kind.
		root, err = unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err == nil {
			return os.NewFile(uintptr(root), "a mounted tree"), nil
		}
	}
	if err != errLegacy {
		return fail(err)
	}
	var tree *os.File
	err = inNamespace(func() error {
		at := m.Overlay.Lower[len(m.Overlay.Lower)-1] // any directory of ours, covered in this namespace only
		if err := mountLegacy(&m, at); err != nil {
			return err
		}
		var err error
		tree, err = os.Open(at)
		return err
	})
	if err != nil {
		return fail(err)
	}
	return tree, nil
}

// Detached makes the file system of m and returns the handle of its mount, which is attached to no namespace: whoever gets
// the handle can give it a place with move_mount(2), once; without that it ends with the last handle. It is not for
// overlays and binds. Options that only mount(8) and fstab(5) know are left out, as mount(8) does.
func Detached(m Mount) (*os.File, error) {
	fail := func(err error) (*os.File, error) {
		return nil, &errdefs.Error{Op: "mount", What: m.Source + " as " + m.Type, Kind: errdefs.KindOf(err), Fix: errdefs.FixOf(err), Err: err}
	}
	if m.Target != "" || m.Overlay != nil || m.Type == "bind" || m.Type == "overlay" {
		return fail(&errdefs.Error{Kind: errdefs.InvalidArgument, Why: "it is not a file system of its own"})
	}
	var options []string
	for _, o := range m.Options {
		switch name, _, _ := strings.Cut(o, "="); {
		case strings.HasPrefix(name, "x-"):
		case slices.Contains([]string{"suid", "dev", "exec", "atime", "diratime", "norelatime", "_netdev", "nofail", "auto", "noauto", "user", "users", "nouser", "owner", "comment"}, name):
		default:
			options = append(options, o)
		}
	}
	m.Options = options
	fd, err := detached(&m)
	if err != nil {
		return fail(err)
	}
	return os.NewFile(uintptr(fd), m.Source), nil
}

// Parts makes the file system of m where only one thread sees it, has fill write into its root (nil: nothing), and returns
// a mount of each path in it, resolved below its root, as Detached returns the whole. They live on without the rest. Like
// Detached it is not for overlays and binds. An error of openat2(2) for a path is returned as it is.
func Parts(m Mount, fill func(root *os.File) error, paths []string) (parts []*os.File, err error) {
	whole, err := Detached(m)
	if err != nil {
		return nil, err
	}
	defer whole.Close()
	defer func() {
		if err != nil {
			for _, p := range parts {
				_ = p.Close()
			}
			parts = nil
		}
	}()
	err = inNamespace(func() error {
		// Anywhere: in this namespace, which ends with the thread, nobody else looks for what it covers.
		const at = "/proc"
		if err := unix.MoveMount(int(whole.Fd()), "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return err
		}
		root, err := os.Open(at)
		if err != nil {
			return err
		}
		defer root.Close()
		if fill != nil {
			if err := fill(root); err != nil {
				return err
			}
		}
		for _, p := range paths {
			fd, err := unix.Openat2(int(root.Fd()), p, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS})
			if err != nil {
				return &os.PathError{Op: "open", Path: p, Err: err}
			}
			tree, err := unix.OpenTree(fd, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
			_ = unix.Close(fd)
			if err != nil {
				return &os.PathError{Op: "open", Path: p, Err: err}
			}
			parts = append(parts, os.NewFile(uintptr(tree), p))
		}
		return nil
	})
	return parts, err
}

// inNamespace runs f in a thread with a mount namespace of its own, from which nothing reaches the host's. The thread
// ends with it.
func inNamespace(f func() error) error {
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return &errdefs.Error{Op: "make", What: "a mount namespace", Kind: errdefs.KindOf(err), Err: err}
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return &errdefs.Error{Op: "make", What: "the mounts private", Kind: errdefs.KindOf(err), Err: err}
		}
		return f()
	})
}
