package launch

import (
	"os"
	"path"
	"strings"

	"github.com/onggi/onggi/errdefs"
	"golang.org/x/sys/unix"
)

// copies prepares the tmpfs mounts with the option tmpcopyup (podman): they begin with a copy of the directory that
// they cover. The copy is made here, into a mount that is not attached anywhere; the image puts it in its place. first
// is the number of the first descriptor that they become.
func (k *creation) copies(first int) (map[int]int, error) {
	trees := map[int]int{}
	for i := range k.spec.Mounts {
		m := &k.spec.Mounts[i]
		if m.Type != "tmpfs" || !has(m.Options, "tmpcopyup") || len(k.Options.Rootfs) > 0 {
			continue
		}
		if k.dry {
			trees[i] = first
			first++
			continue
		}
		fd, err := k.copyUp(path.Clean("/"+m.Destination), m.Options)
		if err != nil {
			return nil, &errdefs.Error{Op: "copy up", What: m.Destination, Err: err}
		}
		if k.treeFDs == nil {
			k.treeFDs = map[int]int{}
		}
		k.treeFDs[i] = k.keep(fd)
		trees[i] = first
		first++
	}
	return trees, nil
}

func (k *creation) copyUp(dest string, options []string) (fd int, err error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs) //nolint:errcheck // a context
	mode := false
	for _, o := range options {
		key, value, ok := strings.Cut(o, "=")
		if !ok {
			continue // flags are attributes of the mount: the plan sets them
		}
		mode = mode || key == "mode"
		if err := unix.FsconfigSetString(fs, key, value); err != nil {
			return -1, &errdefs.Error{Op: "set option", What: o, Err: err}
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, err
	}
	if fd, err = unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0); err != nil {
		return -1, err
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
		}
	}()
	root, err := unix.Open(k.rootfs(), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fd, err
	}
	defer unix.Close(root) //nolint:errcheck // a handle
	src, err := openIn(root, dest[1:], unix.O_RDONLY|unix.O_DIRECTORY)
	if err == unix.ENOENT {
		return fd, nil
	}
	if err != nil {
		return fd, err
	}
	defer unix.Close(src) //nolint:errcheck // read only
	dst, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fd, err
	}
	defer unix.Close(dst) //nolint:errcheck // a handle
	var st unix.Stat_t
	if err := unix.Fstat(src, &st); err != nil {
		return fd, err
	}
	if !mode {
		if err := unix.Fchmod(dst, st.Mode&0o7777); err != nil {
			return fd, err
		}
	}
	if err := unix.Fchown(dst, int(st.Uid), int(st.Gid)); err != nil {
		return fd, err
	}
	return fd, copyTree(src, dst, 0)
}

// copyTree copies the entries of one directory handle to another. Every step is by handle and name, without following
// links; device nodes and sockets stay behind.
func copyTree(src, dst, depth int) error {
	if depth > 200 {
		return &errdefs.Error{Op: "copy", What: "the directory", Kind: errdefs.Exhausted, Why: "it is nested more than 200 deep"}
	}
	again, err := unix.Openat(src, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	dir := os.NewFile(uintptr(again), "source")
	names, err := dir.Readdirnames(-1)
	_ = dir.Close()
	if err != nil {
		return err
	}
	for _, n := range names {
		var st unix.Stat_t
		if err := unix.Fstatat(src, n, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			err = copyDirectory(src, dst, n, &st, depth)
		case unix.S_IFREG:
			err = copyFile(src, dst, n, &st)
		case unix.S_IFLNK:
			b := make([]byte, 4096)
			var l int
			if l, err = unix.Readlinkat(src, n, b); err == nil {
				if err = unix.Symlinkat(string(b[:l]), dst, n); err == nil {
					err = unix.Fchownat(dst, n, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW)
				}
			}
		case unix.S_IFIFO:
			err = unix.Mkfifoat(dst, n, st.Mode&0o7777)
		}
		if err != nil {
			return &os.PathError{Op: "copy", Path: n, Err: err}
		}
	}
	return nil
}

func copyDirectory(src, dst int, n string, st *unix.Stat_t, depth int) error {
	if err := unix.Mkdirat(dst, n, 0o700); err != nil {
		return err
	}
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC | unix.O_NOFOLLOW
	s, err := unix.Openat(src, n, flags, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s) //nolint:errcheck // read only
	d, err := unix.Openat(dst, n, flags, 0)
	if err != nil {
		return err
	}
	defer unix.Close(d) //nolint:errcheck // a handle
	if err := copyTree(s, d, depth+1); err != nil {
		return err
	}
	if err := unix.Fchown(d, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	return unix.Fchmod(d, st.Mode&0o7777)
}

func copyFile(src, dst int, n string, st *unix.Stat_t) error {
	s, err := unix.Openat(src, n, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s) //nolint:errcheck // read only
	d, err := unix.Openat(dst, n, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(d) //nolint:errcheck // a tmpfs keeps nothing back
	for {
		k, err := unix.CopyFileRange(s, nil, d, nil, 1<<30, 0)
		if err == unix.EXDEV || err == unix.EINVAL || err == unix.EOPNOTSUPP || err == unix.ENOSYS {
			if k, err = unix.Sendfile(d, s, nil, 1<<30); err != nil {
				return err
			}
		} else if err != nil {
			return err
		}
		if k == 0 {
			break
		}
	}
	if err := unix.Fchown(d, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	return unix.Fchmod(d, st.Mode&0o7777)
}
