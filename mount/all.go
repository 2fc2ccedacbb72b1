package mount

import (
	"errors"
	"path"
	"strings"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/pathrs"
	"golang.org/x/sys/unix"
)

// All performs the mounts in order at the directory target in the calling thread's mount namespace. On failure those
// already made are taken back. Overlays use the new mount API with "lowerdir+" where the kernel has it (6.8 and
// later) and mount(2) with shortened paths elsewhere, so that the number of layers is not bound by a page.
//
// Targets below the root are resolved inside it (openat2, RESOLVE_IN_ROOT) and must exist. The caller locks the thread
// when the namespace is the thread's own.
func All(mounts []Mount, target string) (err error) {
	fail := func(m *Mount, e error) error {
		return &errdefs.Error{Op: "mount", What: path.Join(target, m.Target), Err: e, Why: m.Type}
	}
	done := 0
	defer func() {
		if err == nil {
			return
		}
		// Whatever was attached lies in or over target; the last one first.
		for ; done > 0; done-- {
			if e := unmountAt(target, mounts[done-1].Target); e != nil {
				err = errors.Join(err, e)
			}
		}
	}()
	for i := range mounts {
		m := &mounts[i]
		tree, e := detached(m)
		if e == errLegacy {
			if m.Target != "" {
				return fail(m, &errdefs.Error{Kind: errdefs.Unsupported, Why: "an overlay below the root on this kernel"})
			}
			if e = mountLegacy(m, target); e != nil {
				return fail(m, e)
			}
			done++
			continue
		}
		if e != nil {
			return fail(m, e)
		}
		at, e := openTarget(target, m.Target)
		if e == nil {
			e = unix.MoveMount(tree, "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
			_ = unix.Close(at)
		}
		_ = unix.Close(tree)
		if e != nil {
			return fail(m, e)
		}
		done++
	}
	return nil
}

func openTarget(root, sub string) (int, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil || sub == "" {
		return dir, err
	}
	defer unix.Close(dir) //nolint:errcheck // a handle
	return pathrs.Openat2(dir, strings.TrimPrefix(path.Clean("/"+sub), "/"), unix.O_PATH, 0, pathrs.InRoot)
}

func unmountAt(root, sub string) error {
	if sub == "" {
		return unix.Unmount(root, unix.MNT_DETACH)
	}
	fd, err := openTarget(root, sub)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // a handle
	return unix.Unmount("/proc/self/fd/"+itoa(fd), unix.MNT_DETACH)
}

func itoa(n int) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return itoa(n/10) + itoa(n%10)
}

var errLegacy = errors.New("this overlay needs mount(2)")

// attributes splits mount(8) options into MOUNT_ATTR_ bits and what the file system gets.
func attributes(options []string) (attr uint64, recursive bool, data []string) {
	for _, o := range options {
		switch o {
		case "ro":
			attr |= unix.MOUNT_ATTR_RDONLY
		case "nosuid":
			attr |= unix.MOUNT_ATTR_NOSUID
		case "nodev":
			attr |= unix.MOUNT_ATTR_NODEV
		case "noexec":
			attr |= unix.MOUNT_ATTR_NOEXEC
		case "noatime":
			attr |= unix.MOUNT_ATTR_NOATIME
		case "strictatime":
			attr |= unix.MOUNT_ATTR_STRICTATIME
		case "nodiratime":
			attr |= unix.MOUNT_ATTR_NODIRATIME
		case "nosymfollow":
			attr |= unix.MOUNT_ATTR_NOSYMFOLLOW
		case "rbind":
			recursive = true
		case "rw", "bind", "defaults", "relatime", "":
		default:
			data = append(data, o)
		}
	}
	return attr, recursive, data
}

// detached makes one mount that is not attached anywhere yet.
func detached(m *Mount) (int, error) {
	attr, rec, data := attributes(m.Options)
	typ, source := m.Type, m.Source
	if typ == "overlay" {
		o := m.Overlay
		switch {
		case o == nil || len(o.Lower) == 0:
			return -1, &errdefs.Error{Kind: errdefs.InvalidArgument, Why: "an overlay needs a lower layer"}
		case o.Upper == "" && len(o.Lower) == 1:
			typ, source, attr = "bind", o.Lower[0], attr|unix.MOUNT_ATTR_RDONLY
		}
	}
	if typ == "bind" {
		if len(data) > 0 {
			return -1, &errdefs.Error{Kind: errdefs.Unsupported, Why: "option " + data[0] + " of a bind mount"}
		}
		flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
		if rec {
			flags |= unix.AT_RECURSIVE
		}
		fd, err := unix.OpenTree(unix.AT_FDCWD, source, flags)
		if err != nil {
			return -1, err
		}
		if attr != 0 {
			a := &unix.MountAttr{Attr_set: attr}
			if attr&unix.MOUNT_ATTR__ATIME != 0 {
				a.Attr_clr = unix.MOUNT_ATTR__ATIME
			}
			if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, a); err != nil {
				_ = unix.Close(fd)
				return -1, err
			}
		}
		return fd, nil
	}
	fs, err := unix.Fsopen(typ, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs) //nolint:errcheck // a context
	if typ == "overlay" {
		if err := overlay(fs, m.Overlay); err != nil {
			return -1, err
		}
	} else if source != "" {
		if err := unix.FsconfigSetString(fs, "source", source); err != nil {
			return -1, err
		}
	}
	if attr&unix.MOUNT_ATTR_RDONLY != 0 && typ != "overlay" { // a device may be read-only itself
		data = append(data, "ro")
	}
	for _, d := range data {
		if k, v, ok := strings.Cut(d, "="); ok {
			err = unix.FsconfigSetString(fs, k, v)
		} else {
			err = unix.FsconfigSetFlag(fs, d)
		}
		if err != nil {
			return -1, &errdefs.Error{Op: "set option", What: d, Err: err}
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		if typ == "overlay" && err == unix.EINVAL {
			return -1, errLegacy // before 6.5 the options are only gathered, and "lowerdir+" is refused here
		}
		return -1, err
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, int(attr))
}

func overlay(fs int, o *Overlay) error {
	for _, p := range append([]string{o.Upper, o.Work}, o.Lower...) {
		if len(p) > 255 { // the bound of a value in fsconfig(2)
			return errLegacy
		}
	}
	for _, l := range o.Lower {
		if err := unix.FsconfigSetString(fs, "lowerdir+", l); err != nil {
			if err == unix.EINVAL { // before 6.8
				return errLegacy
			}
			return err
		}
	}
	if o.Upper != "" {
		if err := unix.FsconfigSetString(fs, "upperdir", o.Upper); err != nil {
			return err
		}
		if err := unix.FsconfigSetString(fs, "workdir", o.Work); err != nil {
			return err
		}
		if o.Volatile {
			if err := unix.FsconfigSetFlag(fs, "volatile"); err != nil {
				return err
			}
		}
	}
	if o.UserXattr {
		if err := unix.FsconfigSetFlag(fs, "userxattr"); err != nil {
			return err
		}
	}
	return unix.FsconfigSetString(fs, "source", "overlay")
}

// mountLegacy works in the layers' common directory, so that the paths are short.
func mountLegacy(m *Mount, target string) error {
	dir, data, err := LegacyOverlay(m.Overlay)
	if err != nil {
		return err
	}
	if _, _, more := attributes(m.Options); len(more) > 0 {
		data += "," + strings.Join(more, ",")
	}
	return inDirectory(dir, func() error {
		return unix.Mount("overlay", target, "overlay", legacyFlags(m.Options), data)
	})
}

func legacyFlags(options []string) (f uintptr) {
	for _, o := range options {
		switch o {
		case "ro":
			f |= unix.MS_RDONLY
		case "nosuid":
			f |= unix.MS_NOSUID
		case "nodev":
			f |= unix.MS_NODEV
		case "noexec":
			f |= unix.MS_NOEXEC
		case "noatime":
			f |= unix.MS_NOATIME
		}
	}
	return f
}

// LegacyOverlay returns mount(2)'s data for an overlay, with paths relative to dir, the common directory of all of
// them. The data must fit in one page: NoSpace-like failures are reported as Exhausted.
func LegacyOverlay(o *Overlay) (dir, data string, err error) {
	paths := append([]string{}, o.Lower...)
	if o.Upper != "" {
		paths = append(paths, o.Upper, o.Work)
	}
	dir = path.Dir(path.Clean(paths[0]))
	for _, p := range paths[1:] {
		for p = path.Clean(p); dir != "/" && !strings.HasPrefix(p, dir+"/"); {
			dir = path.Dir(dir)
		}
	}
	rel := func(p string) string {
		p = strings.TrimPrefix(strings.TrimPrefix(path.Clean(p), dir), "/")
		return escape.Replace(p)
	}
	var b strings.Builder
	b.WriteString("lowerdir=")
	for i, l := range o.Lower {
		if i > 0 {
			b.WriteByte(':')
		}
		b.WriteString(rel(l))
	}
	if o.Upper != "" {
		b.WriteString(",upperdir=" + rel(o.Upper) + ",workdir=" + rel(o.Work))
		if o.Volatile {
			b.WriteString(",volatile")
		}
	}
	if o.UserXattr {
		b.WriteString(",userxattr")
	}
	if b.Len() >= 4096 {
		return "", "", &errdefs.Error{
			Op: "mount", What: "the layers", Kind: errdefs.Exhausted,
			Why: "their paths do not fit in the page that this kernel's overlay takes",
			Fix: "use an image with fewer layers, a shorter --root, or a kernel from 6.8 on",
		}
	}
	return dir, b.String(), nil
}

// escape quotes what separates options and layers (overlayfs.rst).
var escape = strings.NewReplacer(`\`, `\\`, `,`, `\,`, `:`, `\:`)
