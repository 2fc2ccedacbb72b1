package plan

import (
	"path"
	"sort"
	"strings"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/mount"
	"github.com/onggi/onggi/sys"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const (
	inRoot    = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS
	handle    = unix.O_PATH | unix.O_CLOEXEC
	cloneTree = unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC
	empty     = unix.AT_EMPTY_PATH
	bothFDs   = unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_EMPTY_PATH

	procMagic   = 0x9fa0
	devptsMagic = 0x1cd1
)

// rootfs makes the new root and attaches it over "/" of the new mount namespace: the one place that is known to be a
// mount, whose propagation can be set, and that no host path leads to.
func (c *compiler) rootfs() error {
	c.op(unix.SYS_UMASK, "set umask", "", num(0))
	if !OwnMounts(c.spec) {
		return c.sharedRoot()
	}
	prop, rec := uint64(unix.MS_SLAVE), true
	if p := c.linux.RootfsPropagation; p != "" {
		var ok bool
		if prop, rec, ok = propagation(p); !ok {
			return invalid("linux.rootfsPropagation", "unknown value "+p)
		}
		if prop == unix.MS_UNBINDABLE { // at the end: until then it must be possible to copy from it
			prop = unix.MS_PRIVATE
		}
	}
	c.setattr("propagation of", "/", num(unix.AT_FDCWD), c.s("/"), rec, 0, 0, prop)
	if prop == unix.MS_SHARED {
		c.setattr("propagation of", "/", num(unix.AT_FDCWD), c.s("/"), false, 0, 0, unix.MS_PRIVATE)
	}
	c.places()
	if len(c.in.Rootfs) == 0 {
		c.op(unix.SYS_OPEN_TREE, "open root file system", c.in.Root, num(unix.AT_FDCWD), c.s(c.in.Root),
			num(cloneTree|unix.AT_RECURSIVE)).Dst = uint64(c.root)
		c.ownRoot(c.root)
		c.op(unix.SYS_MOVE_MOUNT, "attach root file system", c.in.Root, c.root.get(), buf(c.empty), num(unix.AT_FDCWD), c.s("/"),
			num(unix.MOVE_MOUNT_F_EMPTY_PATH))
		return nil
	}
	for i := range c.in.Rootfs {
		m := &c.in.Rootfs[i]
		if (m.Target == "") != (i == 0) {
			return &errdefs.Error{
				Op: "use the root file system's mount", What: m.Target, Kind: errdefs.InvalidArgument,
				Why: "the first mount, and only the first, is the root itself",
			}
		}
		if i == 0 {
			if err := c.rootMount(m); err != nil {
				return err
			}
			continue
		}
		if m.Type == "overlay" && m.Overlay != nil {
			t, err := c.overlay(m)
			if err != nil {
				return err
			}
			c.attach(t, path.Clean("/"+m.Target), true)
			continue
		}
		sm := runspec.Mount{Destination: "/" + m.Target, Type: m.Type, Source: m.Source, Options: m.Options}
		if err := c.mount(&sm, -1); err != nil {
			return err
		}
	}
	return nil
}

// places prepares how places are looked up.
func (c *compiler) places() {
	c.openNull()
	c.how = c.words(handle, 0, inRoot)
	c.howDir = c.words(handle|unix.O_DIRECTORY, 0, inRoot)
	c.howNoLinks = c.words(handle|unix.O_DIRECTORY, 0, inRoot|unix.RESOLVE_NO_SYMLINKS)
	c.root = c.cell()
}

// sharedRoot attaches the root in a mount namespace that is not the container's own: at a place of its own, where it hides
// nothing, and cut off from its peers, so that what is mounted in it is seen nowhere else. The mounts of others stay as they
// are; the process enters it by chroot(2), because pivot_root(2) would move all of them.
func (c *compiler) sharedRoot() error {
	if len(c.in.Rootfs) > 0 {
		return unsupported("linux.namespaces", "a root file system made of mounts needs a mount namespace of the container's own")
	}
	c.places()
	c.op(unix.SYS_OPEN_TREE, "open root file system", c.in.Root, num(unix.AT_FDCWD), c.s(c.in.Root),
		num(cloneTree|unix.AT_RECURSIVE)).Dst = uint64(c.root)
	own := func() {
		c.setattr("propagation of", "the root file system", c.root.get(), buf(c.empty), true, 0, 0, unix.MS_PRIVATE)
	}
	own()
	c.op(unix.SYS_MOVE_MOUNT, "attach root file system", c.in.Place, c.root.get(), buf(c.empty), num(unix.AT_FDCWD), c.s(c.in.Place),
		num(unix.MOVE_MOUNT_F_EMPTY_PATH))
	own() // below a shared mount it has become one
	return nil
}

// ownRoot cuts the copy of the root file system off from its peers on the host, so that what is mounted in it stays in
// it. By default "/" and all below are slaves already, and so is the copy.
func (c *compiler) ownRoot(t cell) {
	if c.linux.RootfsPropagation != "" {
		c.setattr("propagation of", "the root file system", t.get(), buf(c.empty), true, 0, 0, unix.MS_PRIVATE)
	}
}

func propagation(s string) (uint64, bool, bool) {
	for _, p := range propagations {
		if p.name == s {
			return p.value, p.recursive, true
		}
	}
	return 0, false, false
}

// rootMount makes the root itself.
func (c *compiler) rootMount(m *mount.Mount) error {
	o := parseOptions(m.Options)
	if o.idmap || o.ridmap || o.remount || o.copyUp || o.old != 0 {
		return unsupported("rootfs", "one of the mount options "+strings.Join(m.Options, ","))
	}
	var t cell
	switch {
	case m.Type == "overlay" && m.Overlay != nil:
		if c.legacyOverlay(m.Overlay) {
			return c.oldOverlayRoot(m, o)
		}
		var err error
		if t, err = c.overlay(m); err != nil {
			return err
		}
	case m.Type == "bind" || o.bind || o.rbind:
		flags := cloneTree
		if o.rbind {
			flags |= unix.AT_RECURSIVE
		}
		t = c.cell()
		c.op(unix.SYS_OPEN_TREE, "open root file system", m.Source, num(unix.AT_FDCWD), c.s(m.Source), num(flags)).Dst = uint64(t)
		c.ownRoot(t)
		if o.set != 0 {
			c.setattr("options of", "/", t.get(), buf(c.empty), false, o.set, o.clear&unix.MOUNT_ATTR__ATIME, 0)
		}
	default:
		t = c.fileSystem(m.Type, m.Source, "/", append(o.super, o.data...), o.set)
	}
	c.root = t
	c.op(unix.SYS_MOVE_MOUNT, "attach root file system", "", t.get(), buf(c.empty), num(unix.AT_FDCWD), c.s("/"),
		num(unix.MOVE_MOUNT_F_EMPTY_PATH))
	return nil
}

// legacyOverlay: kernels before 6.8 have no "lowerdir+", and fsconfig(2) takes at most 255 bytes of a value.
func (c *compiler) legacyOverlay(o *mount.Overlay) bool {
	k := c.in.Facts.Kernel
	if k[0] < 6 || k[0] == 6 && k[1] < 8 {
		return true
	}
	for _, l := range append([]string{o.Upper, o.Work}, o.Lower...) {
		if len(l) > 255 {
			return true
		}
	}
	return false
}

func (c *compiler) overlay(m *mount.Mount) (cell, error) {
	o := m.Overlay
	opts := parseOptions(m.Options)
	if len(o.Lower) == 0 {
		return 0, invalid("rootfs", "an overlay needs a lower layer")
	}
	if o.Upper == "" && len(o.Lower) == 1 {
		t := c.cell()
		c.op(unix.SYS_OPEN_TREE, "open layer", o.Lower[0], num(unix.AT_FDCWD), c.s(o.Lower[0]), num(cloneTree)).Dst = uint64(t)
		c.setattr("options of", o.Lower[0], t.get(), buf(c.empty), false, opts.set|unix.MOUNT_ATTR_RDONLY, 0, 0)
		return t, nil
	}
	if c.legacyOverlay(o) && m.Target != "" {
		return 0, unsupported("rootfs", "an overlay below the root on this kernel")
	}
	fs, t := c.cell(), c.cell()
	c.op(unix.SYS_FSOPEN, "make overlay", "", c.s("overlay"), num(unix.FSOPEN_CLOEXEC)).Dst = uint64(fs)
	set := func(key, value string) {
		c.op(unix.SYS_FSCONFIG, "give overlay its "+key, value, fs.get(), num(unix.FSCONFIG_SET_STRING), c.s(key), c.s(value), num(0))
	}
	set("source", "overlay")
	for _, l := range o.Lower {
		set("lowerdir+", l)
	}
	if o.Upper != "" {
		set("upperdir", o.Upper)
		set("workdir", o.Work)
	}
	for _, f := range []struct {
		on   bool
		name string
	}{{o.Volatile && o.Upper != "", "volatile"}, {o.UserXattr, "userxattr"}} {
		if f.on {
			c.op(unix.SYS_FSCONFIG, "give overlay the flag", f.name, fs.get(), num(unix.FSCONFIG_SET_FLAG), c.s(f.name), num(0), num(0))
		}
	}
	c.op(unix.SYS_FSCONFIG, "create overlay", "", fs.get(), num(unix.FSCONFIG_CMD_CREATE), num(0), num(0), num(0))
	c.op(unix.SYS_FSMOUNT, "mount overlay", "", fs.get(), num(unix.FSMOUNT_CLOEXEC), word(opts.set)).Dst = uint64(t)
	c.op(unix.SYS_CLOSE, "close", "overlay", fs.get())
	return t, nil
}

// oldOverlayRoot uses mount(2), whose data is one page: paths are shortened by working in their common directory. The
// new mount covers "/", and "/.." is the way to what covers it.
func (c *compiler) oldOverlayRoot(m *mount.Mount, opts options) error {
	o := m.Overlay
	if o.Upper == "" && len(o.Lower) == 1 {
		return c.rootMount(&mount.Mount{Type: "bind", Source: o.Lower[0], Options: append([]string{"ro"}, m.Options...)})
	}
	dir, data, err := mount.LegacyOverlay(o)
	if err != nil {
		return err
	}
	c.op(unix.SYS_CHDIR, "enter", dir, c.s(dir))
	c.op(unix.SYS_MOUNT, "mount overlay", "", c.s("overlay"), c.s("/"), c.s("overlay"), word(legacyFlags(opts.set)), c.s(data))
	c.op(unix.SYS_OPENAT, "open root file system", "", num(unix.AT_FDCWD), c.s("/.."), num(handle|unix.O_DIRECTORY), num(0)).Dst = uint64(c.root)
	return nil
}

// setattr is mount_setattr(2) on the mount that dir and name say.
func (c *compiler) setattr(verb, what string, dir, name arg, recursive bool, set, clear, prop uint64) {
	flags := 0
	if name.v == c.empty {
		flags = empty
	}
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	c.op(unix.SYS_MOUNT_SETATTR, "set "+verb, what, dir, name, num(flags), buf(c.words(set, clear, prop, 0)), num(32))
}

// openNull opens the host's /dev/null and makes sure that it is it: it is what masked files become (CVE-2025-31133).
func (c *compiler) openNull() {
	c.null = c.cell()
	c.op(unix.SYS_OPENAT, "open", "/dev/null", num(unix.AT_FDCWD), c.s("/dev/null"), num(handle|unix.O_NOFOLLOW), num(0)).Dst = uint64(c.null)
	c.checkDevice("/dev/null", c.null, unix.S_IFCHR, 1, 3)
}

// checkDevice compares type and number of an open device node: struct statx has the mode at 28 and the device at 128.
func (c *compiler) checkDevice(what string, fd cell, typ uint64, major, minor uint64) {
	st := c.room(256)
	c.op(unix.SYS_STATX, "look at", what, fd.get(), buf(c.empty), num(empty), num(unix.STATX_TYPE|unix.STATX_MODE), st.addr())
	c.check("the type of "+what, (st + 24).get(), word(typ<<32), unix.S_IFMT<<32, int(unix.ENODEV))
	if typ == unix.S_IFIFO {
		return
	}
	c.check("the device number of "+what, (st + 128).get(), word(major|minor<<32), ^uint64(0), int(unix.ENODEV))
}

// absent are the failures that mean that there is nothing to mask or protect.
var absent = errnos(int(unix.ENOENT), int(unix.ENOTDIR))

// openIn opens a place below dir with openat2(2). The kernel answers EAGAIN when a mount or rename anywhere on the host
// crossed a walk over ".." (in a link of the image): the operation is repeated. With a mask, its failures must be
// landed by again.
func (c *compiler) openIn(verb, what string, dir cell, rel string, how uint64, into cell, mask uint64) int {
	i := c.here()
	o := c.op(unix.SYS_OPENAT2, verb, what, dir.get(), c.s(rel), buf(how), num(24))
	o.Dst, o.ErrMask = uint64(into), mask|errnos(int(unix.EAGAIN))
	if mask == 0 {
		c.landAt(i, i)
	} else {
		o.ErrDst = uint64(c.cell())
	}
	return i
}

// again lands the failures of openIn's operation i here; EAGAIN goes back to it.
func (c *compiler) again(i int) {
	c.land(i)
	other := c.unless("whether to try again", cell(c.ops[i].ErrDst).get(), num(int(unix.EAGAIN)), ^uint64(0))
	c.landAt(c.jump("on"), i)
	c.land(other)
}

// target opens the place of a mount inside the root, and makes it when it is missing. Every step is resolved by
// the kernel inside the root, so a link that is swapped meanwhile leads nowhere else.
func (c *compiler) target(dest string, dir, strict bool) (t cell, existed int) {
	t = c.cell()
	rel := strings.TrimPrefix(dest, "/")
	if rel == "" {
		rel = "."
	}
	how := c.how
	if strict {
		how = c.howNoLinks
	}
	first := c.openIn("open", dest, c.root, rel, how, t, errnos(int(unix.ENOENT)))
	found := c.jump("making " + dest)
	c.again(first)
	parent := c.root
	parts := strings.Split(rel, "/")
	for i, name := range parts {
		sub := strings.Join(parts[:i+1], "/")
		if i == len(parts)-1 && !dir {
			create := c.words(unix.O_RDONLY|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NONBLOCK, 0o644, inRoot)
			c.openIn("create file", dest, c.root, rel, create, t, 0)
			break
		}
		c.op(unix.SYS_MKDIRAT, "make directory", "/"+sub, parent.get(), c.s(name), num(0o755)).ErrMask = errnos(int(unix.EEXIST))
		next := c.cell()
		h := c.howDir
		if strict {
			h = c.howNoLinks
		}
		c.openIn("open", "/"+sub, c.root, sub, h, next, 0)
		if i == len(parts)-1 {
			c.op(sys.OpCompute, "use", "/"+sub, next.get(), num(0), word(^uint64(0)), num(0)).Dst = uint64(t)
		}
		parent = next
	}
	c.land(found)
	return t, found
}

// attach puts a mount at its place.
func (c *compiler) attach(m cell, dest string, dir bool) {
	t, _ := c.target(dest, dir, dest == "/proc" || dest == "/sys")
	c.attachAt(m, t, dest)
}

func (c *compiler) attachAt(m, t cell, dest string) {
	if !strings.HasPrefix(dest, "/proc") {
		// A link in the image must not lead a mount over the files by which /proc confines the container
		// (CVE-2019-19921, CVE-2023-27561).
		c.notProc(t, dest)
	}
	c.op(unix.SYS_MOVE_MOUNT, "attach", dest, m.get(), buf(c.empty), t.get(), buf(c.empty), num(bothFDs))
	c.op(unix.SYS_CLOSE, "close", dest, t.get())
}

func (c *compiler) notProc(t cell, dest string) {
	st := c.room(120)
	c.op(unix.SYS_FSTATFS, "look at", dest, t.get(), st.addr())
	ok := c.unless("file system of "+dest, st.get(), num(procMagic), ^uint64(0))
	c.fail("refuse a mount inside /proc at", dest, int(unix.EPERM))
	c.land(ok)
}

// fileSystem makes a new file system, not yet attached.
func (c *compiler) fileSystem(typ, source, dest string, data []string, attr uint64) cell {
	fs, m := c.cell(), c.cell()
	c.op(unix.SYS_FSOPEN, "make "+typ+" for", dest, c.s(typ), num(unix.FSOPEN_CLOEXEC)).Dst = uint64(fs)
	if source != "" {
		c.op(unix.SYS_FSCONFIG, "name the source of", dest, fs.get(), num(unix.FSCONFIG_SET_STRING), c.s("source"), c.s(source), num(0))
	}
	c.configure(fs, dest, data)
	c.op(unix.SYS_FSCONFIG, "create "+typ+" for", dest, fs.get(), num(unix.FSCONFIG_CMD_CREATE), num(0), num(0), num(0))
	c.op(unix.SYS_FSMOUNT, "mount "+typ+" for", dest, fs.get(), num(unix.FSMOUNT_CLOEXEC), word(attr)).Dst = uint64(m)
	c.op(unix.SYS_CLOSE, "close", typ, fs.get())
	return m
}

// configure gives a file system its options.
func (c *compiler) configure(fs cell, dest string, data []string) {
	for _, d := range data {
		if k, v, ok := strings.Cut(d, "="); ok {
			c.op(unix.SYS_FSCONFIG, "give "+dest+" the option", d, fs.get(), num(unix.FSCONFIG_SET_STRING), c.s(k), c.s(v), num(0))
		} else {
			c.op(unix.SYS_FSCONFIG, "give "+dest+" the option", d, fs.get(), num(unix.FSCONFIG_SET_FLAG), c.s(d), num(0), num(0))
		}
	}
}

func (c *compiler) mounts() error {
	for i := range c.spec.Mounts {
		if err := c.mount(&c.spec.Mounts[i], i); err != nil {
			return err
		}
	}
	return nil
}

// procFiles are the places inside /proc that may be mounted over: they only show numbers (lxcfs).
var procFiles = [...]string{
	"cpuinfo", "diskstats", "meminfo", "stat", "swaps", "uptime", "loadavg", "slabinfo",
	"net/dev", "sys/kernel/ns_last_pid", "sys/crypto/fips_enabled",
}

func (c *compiler) mount(m *runspec.Mount, index int) error {
	field := "mounts[" + m.Destination + "]"
	if m.Destination == "" {
		return invalid("mounts", "a mount has no destination")
	}
	dest := path.Clean("/" + m.Destination)
	if dest == "/" {
		return unsupported(field, "a mount over the root itself")
	}
	for _, s := range append([]string{dest, m.Source, m.Type}, m.Options...) {
		if strings.IndexByte(s, 0) >= 0 {
			return invalid(field, "a string holds a NUL byte")
		}
	}
	o := parseOptions(m.Options)
	isBind := m.Type == "bind" || o.bind || o.rbind
	if err := c.procAllowed(field, dest, m.Type, isBind); err != nil {
		return err
	}
	if (o.idmap || o.ridmap || len(m.UIDMappings)+len(m.GIDMappings) > 0) && (!isBind || index < 0) {
		return unsupported(field, "an id map needs a bind mount")
	}
	switch {
	case index >= 0 && o.copyUp:
		fd, ok := c.in.Fds.Trees[index]
		if !ok || m.Type != "tmpfs" {
			return unsupported(field, "tmpcopyup needs a tmpfs and a root file system that is mounted on the host")
		}
		t := c.prepared(fd, dest)
		if o.set != 0 {
			c.setattr("options of", dest, t.get(), buf(c.empty), false, o.set, o.clear&unix.MOUNT_ATTR__ATIME, 0)
		}
		c.attach(t, dest, true)
		c.propagate(t, dest, &o)
		c.op(unix.SYS_CLOSE, "close", dest, t.get())
		return nil
	case o.remount:
		return c.remount(dest, isBind, &o)
	case isBind:
		return c.bind(m, index, dest, &o)
	case m.Type == "cgroup" || m.Type == "cgroup2":
		return c.cgroup(m, dest, &o)
	case m.Type == "":
		return invalid(field, "a mount that is not a bind needs a type")
	}
	attr := o.set
	late := dest == "/dev" && (attr|o.rset)&unix.MOUNT_ATTR_RDONLY != 0
	if late { // nodes and mount points are made in it first
		attr &^= unix.MOUNT_ATTR_RDONLY
		o.rset &^= unix.MOUNT_ATTR_RDONLY
		c.lateReadonly = append(c.lateReadonly, dest)
	}
	long := len(m.Source) > maxOption
	for _, d := range o.data {
		k, v, _ := strings.Cut(d, "=")
		long = long || len(k) > maxOption || len(v) > maxOption
	}
	if long || o.old != 0 {
		return c.legacyMount(m, dest, attr|o.rset, &o)
	}
	data := o.data
	if !labelled(data) {
		data = append(data[:len(data):len(data)], c.context(m.Type, false)...)
	}
	if len(o.super) > 0 {
		data = append(o.super[:len(o.super):len(o.super)], data...)
	}
	attr |= o.rset
	takesMode, readonly := m.Type == "tmpfs" && !hasKey(o.data, "mode"), uint64(0)
	if takesMode {
		readonly = attr & unix.MOUNT_ATTR_RDONLY
		attr &^= readonly
	}
	t := c.fileSystem(m.Type, m.Source, dest, data, attr)
	if fallback := c.fallback(m.Type); fallback != "" {
		c.orBind(t, fallback, dest, attr)
	}
	if takesMode {
		c.attachTmpfs(t, dest, readonly)
	} else {
		c.attach(t, dest, true)
	}
	c.relabelMount(m.Type, dest, t)
	c.propagate(t, dest, &o)
	c.op(unix.SYS_CLOSE, "close", dest, t.get())
	return nil
}

// maxOption is the bound of fsconfig(2) for names and values.
const maxOption = 255

// procAllowed keeps /proc what it is: whatever is mounted over it or in it could undo the container's confinement
// (CVE-2019-16884, CVE-2019-19921, CVE-2023-27561). See also notProc.
func (c *compiler) procAllowed(field, dest, typ string, isBind bool) error {
	if dest == "/proc" && !isBind && typ != "proc" {
		return invalid(field, "only a proc file system may be mounted at /proc, not "+typ)
	}
	under, ok := strings.CutPrefix(dest, "/proc/")
	if !ok {
		return nil
	}
	for _, f := range procFiles {
		if f == under {
			return nil
		}
	}
	return invalid(field, "a mount inside /proc would undo the container's confinement")
}

// prepared puts the number of a descriptor that the image was started with into a cell.
func (c *compiler) prepared(fd int, dest string) cell {
	t := c.cell()
	c.op(sys.OpCompute, "use the prepared mount of", dest, num(fd), num(0), word(^uint64(0)), num(0)).Dst = uint64(t)
	return t
}

// legacyMount uses mount(2), for what fsconfig(2) does not take: long options, iversion and acl. The place is named by
// working in it, so no path is resolved twice.
func (c *compiler) legacyMount(m *runspec.Mount, dest string, attr uint64, o *options) error {
	list := o.data
	if !labelled(list) {
		list = append(list[:len(list):len(list)], c.context(m.Type, true)...)
	}
	data := strings.Join(list, ",")
	if len(data) >= 4096 {
		return unsupported("mounts["+m.Destination+"]", "options longer than a page")
	}
	t, _ := c.target(dest, true, dest == "/sys")
	if dest != "/proc" {
		c.notProc(t, dest)
	}
	c.op(unix.SYS_FCHDIR, "enter", dest, t.get())
	c.op(unix.SYS_MOUNT, "mount "+m.Type+" for", dest, c.s(m.Source), c.s("."), c.s(m.Type), word(legacyFlags(attr)|o.superFlags()), c.s(data))
	c.op(unix.SYS_FCHDIR, "leave", dest, c.root.get())
	c.op(unix.SYS_CLOSE, "close", dest, t.get())
	if o.propagation != 0 {
		c.openIn("open", dest, c.root, dest[1:], c.how, t, 0)
		c.propagate(t, dest, o)
		c.op(unix.SYS_CLOSE, "close", dest, t.get())
	}
	return nil
}

// remount changes a mount that is there: the options that are given, and no others (mount(8), "remount"). Without bind
// the file system's own options too.
func (c *compiler) remount(dest string, isBind bool, o *options) error {
	t := c.cell()
	c.openIn("open", dest, c.root, dest[1:], c.how, t, 0)
	if o.set|o.clear != 0 {
		c.setattr("options of", dest, t.get(), buf(c.empty), false, o.set, o.clear, 0)
	}
	if o.rset|o.rclear != 0 {
		c.setattr("recursive options of", dest, t.get(), buf(c.empty), true, o.rset, o.rclear, 0)
	}
	if data := append(o.super[:len(o.super):len(o.super)], o.data...); len(data) > 0 {
		if isBind || o.old != 0 {
			return unsupported("mounts["+dest+"]", "mount option "+strings.Join(data, ",")+" of a remounted bind")
		}
		fs := c.cell()
		const pickEmpty = 8 // FSPICK_EMPTY_PATH
		c.op(unix.SYS_FSPICK, "look at the file system of", dest, t.get(), buf(c.empty), num(pickEmpty|unix.FSPICK_CLOEXEC)).Dst = uint64(fs)
		c.configure(fs, dest, data)
		c.op(unix.SYS_FSCONFIG, "change the file system of", dest, fs.get(), num(unix.FSCONFIG_CMD_RECONFIGURE), num(0), num(0), num(0))
		c.op(unix.SYS_CLOSE, "close", dest, fs.get())
	}
	c.propagate(t, dest, o)
	c.op(unix.SYS_CLOSE, "close", dest, t.get())
	return nil
}

// fallback is what of the host is shown where a user namespace may not mount a type: sysfs belongs to the owner of the
// network namespace, mqueue to that of the ipc namespace, and these may be joined.
func (c *compiler) fallback(typ string) string {
	if !c.newUser && !c.joinsUser() && !c.in.Facts.Nested {
		return ""
	}
	switch typ {
	case "sysfs":
		return "/sys"
	case "mqueue":
		return "/dev/mqueue"
	}
	return ""
}

// orBind goes after fileSystem: where it was not permitted, the host's own is bound instead.
func (c *compiler) orBind(t cell, src, dest string, attr uint64) {
	var denied []int
	for i := len(c.ops) - 1; ; i-- { // the kernel looks at the first step, the last, or both
		nr := c.ops[i].NR
		if nr == unix.SYS_FSOPEN || nr == unix.SYS_FSMOUNT || nr == unix.SYS_FSCONFIG {
			c.ops[i].ErrMask = errnos(int(unix.EPERM))
			denied = append(denied, i)
		}
		if nr == unix.SYS_FSOPEN {
			break
		}
	}
	made := c.jump("binding " + src)
	c.land(denied...)
	c.op(unix.SYS_OPEN_TREE, "open", src, num(unix.AT_FDCWD), c.s(src), num(cloneTree|unix.AT_RECURSIVE)).Dst = uint64(t)
	if attr != 0 {
		c.setattr("options of", dest, t.get(), buf(c.empty), true, attr&^unix.MOUNT_ATTR__ATIME, 0, 0)
	}
	c.land(made)
}

func hasKey(data []string, key string) bool {
	for _, d := range data {
		if k, _, _ := strings.Cut(d, "="); k == key {
			return true
		}
	}
	return false
}

// attachTmpfs gives a tmpfs without a mode that of the directory which it covers, as runc does.
func (c *compiler) attachTmpfs(m cell, dest string, readonly uint64) {
	t, found := c.target(dest, true, false)
	over := c.jump("the mode of " + dest) // a directory that was just made keeps tmpfs' own default
	c.land(found)
	st, mode := c.room(256), c.cell()
	c.op(unix.SYS_STATX, "look at", dest, t.get(), buf(c.empty), num(empty), num(unix.STATX_MODE), st.addr())
	c.op(sys.OpCompute, "take the mode of", dest, (st + 24).get(), num(32), word(0o7777), num(0)).Dst = uint64(mode)
	c.op(unix.SYS_FCHMODAT, "set the mode of", dest, m.get(), c.s("."), mode.get())
	c.land(over)
	if readonly != 0 {
		c.setattr("read-only", dest, m.get(), buf(c.empty), false, readonly, 0, 0)
	}
	c.attachAt(m, t, dest)
}

// propagate sets what the options say after the mount has its place: attaching it under a shared parent changes it.
func (c *compiler) propagate(t cell, dest string, o *options) {
	if o.propagation != 0 {
		c.setattr("propagation of", dest, t.get(), buf(c.empty), o.propagationRecursive, 0, 0, o.propagation)
	}
}

func (c *compiler) bind(m *runspec.Mount, index int, dest string, o *options) error {
	field := "mounts[" + m.Destination + "]"
	if m.Source == "" {
		return invalid(field, "a bind mount needs a source")
	}
	for _, d := range o.data { // the kernel ignores them, and so does runc; a word that nobody knows may be misspelt
		if !strings.Contains(d, "=") {
			return unsupported(field, "mount option "+d+" of a bind mount")
		}
		c.warn(field + ": " + d + " is an option of a file system when it is made, and a bind mount makes none")
	}
	for _, name := range o.changes() {
		c.warn(field + ": " + name + " is an option of the whole file system, and a bind mount cannot change it")
	}
	src := BindSource(c.in.Bundle, m)
	var t cell
	if fd, ok := c.in.Fds.Trees[index]; ok && index >= 0 {
		t = c.prepared(fd, dest)
	} else {
		a := BindAttributes(m)
		flags := cloneTree
		if a.Recursive {
			flags |= unix.AT_RECURSIVE
		}
		t = c.cell()
		c.op(unix.SYS_OPEN_TREE, "open bind source", src, num(unix.AT_FDCWD), c.s(src), num(flags)).Dst = uint64(t)
		if a.Set != 0 || a.Clear&unix.MOUNT_ATTR__ATIME != 0 {
			c.setattr("options of", dest, t.get(), buf(c.empty), false, a.Set, a.Clear&unix.MOUNT_ATTR__ATIME, 0)
		}
		if clear := a.Clear &^ unix.MOUNT_ATTR__ATIME; clear != 0 {
			c.setattr("options of", dest, t.get(), buf(c.empty), false, 0, clear, 0)
			if c.joinsUser() || c.in.Facts.Nested { // what the owner of the mount has locked stays (mount_namespaces(7))
				c.ops[len(c.ops)-1].ErrMask = errnos(int(unix.EPERM))
			}
		}
		if a.SetAll|a.ClearAll != 0 {
			c.setattr("recursive options of", dest, t.get(), buf(c.empty), true, a.SetAll, a.ClearAll, 0)
		}
	}
	if dest == "/proc" { // only a real /proc may become /proc
		st := c.room(120)
		c.op(unix.SYS_FSTATFS, "look at", src, t.get(), st.addr())
		c.check("that it is a proc file system: "+src, st.get(), num(procMagic), ^uint64(0), int(unix.EINVAL))
	}
	c.attach(t, dest, !c.in.Facts.NotDirectory[src])
	c.propagate(t, dest, o)
	c.op(unix.SYS_CLOSE, "close", dest, t.get())
	return nil
}

// Attributes are the options of a bind mount: first those of itself, then those of all mounts in it.
type Attributes struct {
	Recursive        bool // the mounts below the source come with it
	Set, Clear       uint64
	SetAll, ClearAll uint64
	IDMap, IDMapAll  bool
}

// BindAttributes reads the options of a bind mount.
func BindAttributes(m *runspec.Mount) Attributes {
	o := parseOptions(m.Options)
	return Attributes{
		Recursive: o.rbind || !o.bind, Set: o.set, Clear: o.clear, SetAll: o.rset, ClearAll: o.rclear,
		IDMap: o.idmap || o.ridmap || len(m.UIDMappings)+len(m.GIDMappings) > 0, IDMapAll: o.ridmap,
	}
}

// IsBind reports whether a mount is a bind mount, which its type or an option says.
func IsBind(m *runspec.Mount) bool {
	if m.Type == "bind" {
		return true
	}
	o := parseOptions(m.Options)
	return o.bind || o.rbind
}

// BindSource is the absolute path of a bind mount's source.
func BindSource(bundle string, m *runspec.Mount) string {
	if path.IsAbs(m.Source) {
		return m.Source
	}
	return path.Join(bundle, m.Source)
}

// cgroup shows the container its own control groups: the whole of v2 as the namespace cuts it, or a bind of the
// container's directory in each v1 hierarchy.
func (c *compiler) cgroup(m *runspec.Mount, dest string, o *options) error {
	c.joinGroup()
	if c.in.Facts.CgroupV2 {
		fs, t := c.cell(), c.cell()
		c.op(unix.SYS_FSOPEN, "make cgroup2 for", dest, c.s("cgroup2"), num(unix.FSOPEN_CLOEXEC)).Dst = uint64(fs)
		c.op(unix.SYS_FSCONFIG, "create cgroup2 for", dest, fs.get(), num(unix.FSCONFIG_CMD_CREATE), num(0), num(0), num(0))
		made := &c.ops[len(c.ops)-1]
		made.ErrMask = errnos(int(unix.EPERM), int(unix.EBUSY))
		i := len(c.ops) - 1
		c.op(unix.SYS_FSMOUNT, "mount cgroup2 for", dest, fs.get(), num(unix.FSMOUNT_CLOEXEC), word(o.set)).Dst = uint64(t)
		done := c.jump("the bind of the host's cgroup2")
		c.land(i) // in a user namespace without a cgroup namespace only a bind is allowed
		c.op(unix.SYS_OPEN_TREE, "open", "/sys/fs/cgroup", num(unix.AT_FDCWD), c.s("/sys/fs/cgroup"), num(cloneTree)).Dst = uint64(t)
		c.setattr("options of", dest, t.get(), buf(c.empty), false, o.set, 0, 0)
		c.land(done)
		c.attach(t, dest, true)
		c.propagate(t, dest, o)
		return nil
	}
	t := c.fileSystem("tmpfs", "cgroup", dest, append([]string{"mode=755"}, c.context("tmpfs", false)...), o.set&^unix.MOUNT_ATTR_RDONLY)
	c.attach(t, dest, true)
	points := make([]string, 0, len(c.in.Facts.CgroupDirs))
	for p := range c.in.Facts.CgroupDirs {
		points = append(points, p)
	}
	sort.Strings(points)
	for _, p := range points {
		name, dir := path.Base(p), c.in.Facts.CgroupDirs[p]
		at := c.cell()
		c.op(unix.SYS_MKDIRAT, "make directory", dest+"/"+name, t.get(), c.s(name), num(0o755))
		c.op(unix.SYS_OPEN_TREE, "open", dir, num(unix.AT_FDCWD), c.s(dir), num(cloneTree)).Dst = uint64(at)
		open := len(c.ops) - 1
		c.ops[open].ErrMask = errnos(int(unix.ENOENT)) // a hierarchy that the group was left out of
		if o.set != 0 {
			c.setattr("options of", dest+"/"+name, at.get(), buf(c.empty), false, o.set, 0, 0)
		}
		c.op(unix.SYS_MOVE_MOUNT, "attach", dest+"/"+name, at.get(), buf(c.empty), t.get(), c.s(name), num(unix.MOVE_MOUNT_F_EMPTY_PATH))
		c.op(unix.SYS_CLOSE, "close", dir, at.get())
		c.land(open)
	}
	controllers := make([]string, 0, len(c.in.Facts.CgroupNames))
	for n := range c.in.Facts.CgroupNames {
		controllers = append(controllers, n)
	}
	sort.Strings(controllers)
	for _, n := range controllers { // "cpu" -> "cpu,cpuacct" where hierarchies are shared
		base := path.Base(c.in.Facts.CgroupNames[n])
		if n = strings.TrimPrefix(n, "name="); n != base {
			c.op(unix.SYS_SYMLINKAT, "link", dest+"/"+n, c.s(base), t.get(), c.s(n)).ErrMask = errnos(int(unix.EEXIST))
		}
	}
	if o.set&unix.MOUNT_ATTR_RDONLY != 0 {
		c.setattr("options of", dest, t.get(), buf(c.empty), false, o.set, 0, 0)
	}
	c.propagate(t, dest, o)
	c.op(unix.SYS_CLOSE, "close", dest, t.get())
	return nil
}

// joinGroup waits until the container is recorded and its control group is there, and joins it. A process moves
// itself through v1's tasks files at once; moving another, or by cgroup.procs, waits for RCU.
func (c *compiler) joinGroup() {
	if c.grouped {
		return
	}
	c.grouped = true
	c.await(c.in.Fds.Control, "the container is recorded", AllowGo)
	for _, fd := range c.in.Fds.Tasks {
		c.op(unix.SYS_WRITE, "join", "control group", num(fd), c.s("0"), num(1))
	}
	for _, f := range c.in.TaskFiles {
		fd := c.cell()
		c.op(unix.SYS_OPENAT, "open", f, num(unix.AT_FDCWD), c.s(f), num(unix.O_WRONLY|unix.O_CLOEXEC), num(0)).Dst = uint64(fd)
		out := len(c.ops) - 1
		c.ops[out].ErrMask = errnos(int(unix.ENOENT)) // a hierarchy that the group was left out of
		c.op(unix.SYS_WRITE, "join", "control group "+f, fd.get(), c.s("0"), num(1))
		c.op(unix.SYS_CLOSE, "close", f, fd.get())
		c.land(out)
	}
	if c.newCgns {
		c.op(unix.SYS_UNSHARE, "make", "cgroup namespace", num(unix.CLONE_NEWCGROUP))
	}
}

// workdir makes process.cwd when it is missing, as runc does. When that fails, entering it says why.
func (c *compiler) workdir() {
	cwd := path.Clean(c.spec.Process.Cwd)
	if cwd == "/" {
		return
	}
	start := c.here()
	c.target(cwd, true, false)
	var failed []int
	for i := start; i < c.here(); i++ {
		o := &c.ops[i]
		switch {
		case i == start: // whatever is wrong with it, making it is harmless
			o.ErrMask = anyErrno
		case o.NR == unix.SYS_OPENAT2: // no second try: entering it says what is wrong
			o.ErrMask, o.ErrDst = anyErrno, 0
			failed = append(failed, i)
		case o.NR < sys.OpJump && o.ErrMask == 0:
			o.ErrMask = anyErrno
			failed = append(failed, i)
		}
	}
	c.land(failed...)
}

// maskedAndReadonly hides and protects paths. Types are probed first: closing an unattached mount waits for RCU.
func (c *compiler) maskedAndReadonly() {
	c.mask = c.cell()
	for _, p := range c.linux.MaskedPaths {
		dest := path.Clean("/" + p)
		if dest == "/" {
			continue
		}
		rel := dest[1:]
		t, m := c.cell(), c.cell()
		isDir := c.openIn("open directory", dest, c.root, rel, c.howDir, t, absent)
		have := c.unless("mask", c.mask.get(), num(0), ^uint64(0))
		fs := c.cell()
		c.op(unix.SYS_FSOPEN, "make mask for", dest, c.s("tmpfs"), num(unix.FSOPEN_CLOEXEC)).Dst = uint64(fs)
		c.op(unix.SYS_FSCONFIG, "create mask for", dest, fs.get(), num(unix.FSCONFIG_CMD_CREATE), num(0), num(0), num(0))
		c.op(unix.SYS_FSMOUNT, "mount mask for", dest, fs.get(), num(unix.FSMOUNT_CLOEXEC),
			num(unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)).Dst = uint64(m)
		c.op(sys.OpCompute, "keep the mask", "", m.get(), num(0), word(^uint64(0)), num(0)).Dst = uint64(c.mask)
		first := c.jump("copying the mask")
		c.land(have)
		c.op(unix.SYS_OPEN_TREE, "copy mask for", dest, c.mask.get(), buf(c.empty), num(cloneTree|empty)).Dst = uint64(m)
		c.land(first)
		put := c.jump("the file mask")
		c.again(isDir)
		isFile := c.openIn("open file", dest, c.root, rel, c.how, t, absent)
		c.op(unix.SYS_OPEN_TREE, "copy /dev/null for", dest, c.null.get(), buf(c.empty), num(cloneTree|empty)).Dst = uint64(m)
		c.land(put)
		c.op(unix.SYS_MOVE_MOUNT, "mask", dest, m.get(), buf(c.empty), t.get(), buf(c.empty), num(bothFDs))
		c.op(unix.SYS_CLOSE, "close", dest, t.get())
		done := c.jump("trying again")
		c.again(isFile)
		c.land(done)
	}
	for _, p := range c.linux.ReadonlyPaths {
		dest := path.Clean("/" + p)
		if dest == "/" {
			continue
		}
		t, m := c.cell(), c.cell()
		open := c.openIn("open", dest, c.root, dest[1:], c.how, t, absent)
		c.op(unix.SYS_OPEN_TREE, "copy", dest, t.get(), buf(c.empty), num(cloneTree|empty|unix.AT_RECURSIVE)).Dst = uint64(m)
		c.setattr("read-only", dest, m.get(), buf(c.empty), true, unix.MOUNT_ATTR_RDONLY, 0, 0)
		c.op(unix.SYS_MOVE_MOUNT, "attach read-only", dest, m.get(), buf(c.empty), t.get(), buf(c.empty), num(bothFDs))
		c.op(unix.SYS_CLOSE, "close", dest, m.get())
		c.op(unix.SYS_CLOSE, "close", dest, t.get())
		done := c.jump("trying again")
		c.again(open)
		c.land(done)
	}
	for _, dest := range c.lateReadonly {
		t := c.cell()
		c.openIn("open", dest, c.root, dest[1:], c.how, t, 0)
		c.setattr("read-only", dest, t.get(), buf(c.empty), false, unix.MOUNT_ATTR_RDONLY, 0, 0)
	}
	if c.spec.Root.Readonly {
		c.setattr("read-only", "/", c.root.get(), buf(c.empty), false, unix.MOUNT_ATTR_RDONLY, 0, 0)
	}
}

// pivot leaves the host's tree: the new root becomes "/", the old one goes away.
func (c *compiler) pivot() error {
	c.op(unix.SYS_FCHDIR, "enter the new root", "", c.root.get())
	if c.in.NoPivot || !OwnMounts(c.spec) {
		// The new root lies over the old one and cannot be left through "..", but the old tree stays beneath.
		c.op(unix.SYS_CHROOT, "change root", "", c.s("."))
	} else {
		// By default everything is a slave of the host's mounts already.
		peers := c.linux.RootfsPropagation != ""
		old := c.cell()
		if peers {
			c.op(unix.SYS_OPENAT, "open", "the old root", num(unix.AT_FDCWD), c.s("/"), num(handle|unix.O_DIRECTORY), num(0)).Dst = uint64(old)
		}
		c.op(unix.SYS_PIVOT_ROOT, "pivot root", "", c.s("."), c.s("."))
		if peers {
			// Else the unmount of the old root would reach the host's mounts, whose peers it may hold ("private" is not
			// recursive). "." is the new root here, so the old one is named by its handle.
			c.setattr("propagation of", "the old root", old.get(), buf(c.empty), true, 0, 0, unix.MS_SLAVE)
		}
		c.op(unix.SYS_UMOUNT2, "unmount the old root", "", c.s("."), num(unix.MNT_DETACH))
	}
	c.op(unix.SYS_CHDIR, "enter", "/", c.s("/"))
	if p := c.linux.RootfsPropagation; p != "" {
		prop, rec, _ := propagation(p)
		c.setattr("propagation of", "/", num(unix.AT_FDCWD), c.s("/"), rec, 0, 0, prop)
	}
	return nil
}
