package launch

import (
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/runtime/plan"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// trees prepares mounts that the image only puts in their places: those that need a right which the image does not
// have, or a process that can run code. first is the number of the first descriptor that they become.
//
// A tmpfs with the option tmpcopyup (podman) begins with a copy of the directory that it covers. A bind mount with an id
// map needs rights over the file system that it shows; in a new user namespace every bind mount is opened here, because
// the way to its source may be closed to the container's ids. Who is not root can do that in the new namespace only. What
// a handle of another process stands for is in this mount namespace, or in none at all.
func (k *creation) trees(first int) (map[int]int, error) {
	trees := map[int]int{}
	for i := range k.spec.Mounts {
		m := &k.spec.Mounts[i]
		copyUp := m.Type == "tmpfs" && has(m.Options, "tmpcopyup") && len(k.Options.Rootfs) == 0
		if !copyUp && !(plan.IsBind(m) && !has(m.Options, "remount") && (k.newUser && mayMount() || isHandle(m.Source) || plan.BindAttributes(m).IDMap)) {
			continue
		}
		trees[i] = first
		first++
		if k.dry {
			continue
		}
		var fd int
		var err error
		if copyUp {
			if fd, err = k.copyUp(path.Clean("/"+m.Destination), m.Options); err != nil {
				return nil, &errdefs.Error{Op: "copy up", What: m.Destination, Err: err}
			}
		} else if fd, err = k.bindTree(m); err != nil {
			return nil, err
		}
		if k.treeFDs == nil {
			k.treeFDs = map[int]int{}
		}
		k.treeFDs[i] = k.keep(fd)
	}
	return trees, nil
}

// isHandle reports whether a bind's source is what a process has open: /proc/PID/fd/N. A part of a volume is given so, as
// its path could be changed by the containers that use the volume, and so is a file system that is not mounted anywhere.
func isHandle(source string) bool {
	p := strings.Split(source, "/")
	return len(p) == 5 && p[0] == "" && p[1] == "proc" && p[3] == "fd" && p[4] != ""
}

// mayMount reports whether this process may copy mounts in its own mount namespace.
func mayMount() bool {
	h, _ := held()
	return h&(1<<unix.CAP_SYS_ADMIN) != 0
}

// bindTree makes the copy of a bind mount's source and sets its options.
func (k *creation) bindTree(m *runspec.Mount) (fd int, err error) {
	src := plan.BindSource(k.Bundle, m)
	a := plan.BindAttributes(m)
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if a.Recursive {
		flags |= unix.AT_RECURSIVE
	}
	fd, err = unix.OpenTree(unix.AT_FDCWD, src, flags)
	if err == unix.EINVAL && isHandle(m.Source) {
		// It is a mount that is in no namespace, which Linux copies from 6.15 on: it is taken itself.
		fd, err = unix.Open(src, unix.O_PATH|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return -1, &errdefs.Error{Op: "open bind source", What: src, Err: err}
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
		}
	}()
	set := func(what string, all bool, attr *unix.MountAttr) {
		if err != nil || *attr == (unix.MountAttr{}) {
			return
		}
		at := uint(unix.AT_EMPTY_PATH)
		if all {
			at |= unix.AT_RECURSIVE
		}
		if e := unix.MountSetattr(fd, "", at, attr); e != nil {
			err = &errdefs.Error{Op: "set " + what, What: m.Destination, Err: e}
		}
	}
	// The image's own mounts would be slaves of the host's by now, or what rootfsPropagation says; these come from the
	// host's side.
	switch k.spec.Linux.RootfsPropagation {
	case "", "slave", "rslave":
		set("propagation of", true, &unix.MountAttr{Propagation: unix.MS_SLAVE})
	case "private", "rprivate", "unbindable", "runbindable":
		set("propagation of", true, &unix.MountAttr{Propagation: unix.MS_PRIVATE})
	}
	set("options of", false, &unix.MountAttr{Attr_set: a.Set, Attr_clr: a.Clear})
	set("recursive options of", true, &unix.MountAttr{Attr_set: a.SetAll, Attr_clr: a.ClearAll})
	if err != nil || !a.IDMap {
		return fd, err
	}
	ns, err := k.idMap(m)
	if err != nil {
		return fd, err
	}
	defer unix.Close(ns) //nolint:errcheck // a handle
	set("id map of", a.IDMapAll, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns)})
	if e := errdefs.As(err); e != nil && e.Why == "" {
		e.Why = "the file system below " + src + " may not know id maps"
	}
	return fd, err
}

// idMap returns a user namespace that has a mount's id map: its own, or else the container's.
func (k *creation) idMap(m *runspec.Mount) (int, error) {
	uids, gids := m.UIDMappings, m.GIDMappings
	if len(uids) == 0 {
		for _, j := range k.joined {
			if j.Type == string(runspec.UserNamespace) {
				return unix.FcntlInt(uintptr(j.FD), unix.F_DUPFD_CLOEXEC, 0)
			}
		}
		uids, gids = k.spec.Linux.UIDMappings, k.spec.Linux.GIDMappings
	}
	return userNamespace(k.dir, uids, gids)
}

// userNamespace makes a user namespace with these maps that nobody is in. A process makes it and ends.
func userNamespace(dir string, uids, gids []runspec.LinuxIDMapping) (int, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return -1, err
	}
	defer unix.Close(p[0]) //nolint:errcheck // nothing comes
	defer unix.Close(p[1]) //nolint:errcheck // nothing is written
	pid, err := spawn(&spawnArgs{plan: plan.BuildIdle(unix.CLONE_NEWUSER, 0, 1), dir: dir, fds: []int{p[0], p[1]}, cgroup: -1})
	if err != nil {
		return -1, err
	}
	defer reap(pid)
	defer unix.Kill(pid, unix.SIGKILL) //nolint:errcheck // before the reap
	if err := writeMaps(pid, uids, gids); err != nil {
		return -1, err
	}
	return unix.Open("/proc/"+strconv.Itoa(pid)+"/ns/user", unix.O_RDONLY|unix.O_CLOEXEC, 0)
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
