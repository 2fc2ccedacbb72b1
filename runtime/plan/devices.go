package plan

import (
	"path"
	"sort"
	"strings"

	runspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// defaultDevices are what every container has (config-linux.md, "Default Devices").
var defaultDevices = [...]runspec.LinuxDevice{
	{Path: "/dev/null", Type: "c", Major: 1, Minor: 3},
	{Path: "/dev/zero", Type: "c", Major: 1, Minor: 5},
	{Path: "/dev/full", Type: "c", Major: 1, Minor: 7},
	{Path: "/dev/random", Type: "c", Major: 1, Minor: 8},
	{Path: "/dev/urandom", Type: "c", Major: 1, Minor: 9},
	{Path: "/dev/tty", Type: "c", Major: 5, Minor: 0},
}

var devLinks = [...][2]string{
	{"pts/ptmx", "ptmx"},
	{"/proc/self/fd", "fd"},
	{"/proc/self/fd/0", "stdin"},
	{"/proc/self/fd/1", "stdout"},
	{"/proc/self/fd/2", "stderr"},
	{"/proc/kcore", "core"},
}

// devices fills /dev, and makes the devices that are listed for other places. A /dev that is bound is the caller's: no
// nodes are made in it.
func (c *compiler) devices() error {
	bound := false
	for i := range c.spec.Mounts {
		m := &c.spec.Mounts[i]
		if o := parseOptions(m.Options); path.Clean("/"+m.Destination) == "/dev" && (m.Type == "bind" || o.bind || o.rbind) {
			bound = true
		}
	}
	dirs := map[string]cell{}
	directory := func(dir string) cell {
		t, ok := dirs[dir]
		if !ok {
			if dir == "/" {
				t = c.root
			} else {
				t, _ = c.target(dir, true, false)
			}
			dirs[dir] = t
		}
		return t
	}
	listed := map[string]bool{}
	for i := range c.linux.Devices {
		listed[path.Clean("/"+c.linux.Devices[i].Path)] = true
	}
	for i := range defaultDevices {
		if d := &defaultDevices[i]; !listed[d.Path] && !bound {
			if err := c.device(directory("/dev"), d, false); err != nil {
				return err
			}
		}
	}
	for i := range c.linux.Devices {
		d := &c.linux.Devices[i]
		p := path.Clean("/" + d.Path)
		if p == "/" || strings.IndexByte(p, 0) >= 0 {
			return invalid("linux.devices", "a device needs a path")
		}
		if p == "/dev/ptmx" || bound && strings.HasPrefix(p, "/dev/") { // the former is always the container's own
			continue
		}
		if err := c.device(directory(path.Dir(p)), d, true); err != nil {
			return err
		}
	}
	if bound {
		return nil
	}
	dev := directory("/dev")
	for _, l := range devLinks {
		if l[1] == "core" && c.in.Facts.NoKcore {
			continue
		}
		c.op(unix.SYS_SYMLINKAT, "link", "/dev/"+l[1], c.s(l[0]), dev.get(), c.s(l[1])).ErrMask = errnos(int(unix.EEXIST))
	}
	return nil
}

// device makes a node. Where there is a file already it must be that device when the spec lists it (config-linux.md,
// "Devices"); a default device is put over whatever an image has there.
func (c *compiler) device(dir cell, d *runspec.LinuxDevice, listed bool) error {
	field := "linux.devices[" + d.Path + "]"
	mode := uint32(0o666)
	if d.FileMode != nil {
		mode = uint32(d.FileMode.Perm())
	}
	var typ uint64
	switch d.Type {
	case "c", "u":
		typ = unix.S_IFCHR
	case "b":
		typ = unix.S_IFBLK
	case "p":
		typ = unix.S_IFIFO
	default:
		return invalid(field, "type "+d.Type+" is not one of c, u, b, p")
	}
	if d.Major < 0 || d.Minor < 0 || d.Major >= 1<<12 || d.Minor >= 1<<20 {
		return invalid(field, "the device number is out of range")
	}
	p := path.Clean("/" + d.Path)
	name := path.Base(p)
	dev := uint64(d.Minor)&0xff | uint64(d.Major)<<8 | (uint64(d.Minor)&^0xff)<<12
	if (c.in.Facts.Nested || c.newUser || c.joinsUser()) && typ != unix.S_IFIFO {
		c.bindDevice(dir, p, name, typ, uint64(d.Major), uint64(d.Minor))
		return nil
	}
	c.op(unix.SYS_MKNODAT, "make device", p, dir.get(), c.s(name), word(typ|uint64(mode)), word(dev)).ErrMask = errnos(int(unix.EEXIST), int(unix.EPERM))
	i := len(c.ops) - 1
	var why cell
	if listed || typ == unix.S_IFIFO {
		why = c.cell()
		c.ops[i].ErrDst = uint64(why)
	}
	if d.UID != nil || d.GID != nil {
		var uid, gid uint32
		if d.UID != nil {
			uid = *d.UID
		}
		if d.GID != nil {
			gid = *d.GID
		}
		if uid != 0 || gid != 0 {
			c.op(unix.SYS_FCHOWNAT, "own device", p, dir.get(), c.s(name), word(uint64(uid)), word(uint64(gid)), num(unix.AT_SYMLINK_NOFOLLOW))
		}
	}
	if !listed && typ != unix.S_IFIFO {
		done := c.jump("binding " + p)
		c.land(i)
		c.bindDevice(dir, p, name, typ, uint64(d.Major), uint64(d.Minor))
		c.land(done)
		return nil
	}
	done := c.jump("looking at " + p)
	c.land(i)
	denied := c.unless("whether there is a file at "+p, why.get(), num(int(unix.EEXIST)), ^uint64(0))
	at := c.cell()
	how := c.words(handle|unix.O_NOFOLLOW, 0, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_MAGICLINKS)
	c.openIn("open", p, dir, name, how, at, 0)
	c.checkDevice(p, at, typ, uint64(d.Major), uint64(d.Minor))
	c.op(unix.SYS_CLOSE, "close", p, at.get())
	right := c.jump("binding " + p)
	c.land(denied)
	if typ == unix.S_IFIFO {
		c.fail("make device", p, int(unix.EPERM))
	} else {
		c.bindDevice(dir, p, name, typ, uint64(d.Major), uint64(d.Minor))
	}
	c.land(done, right)
	return nil
}

// bindDevice shows the host's node where none may be made. An existing file of that name stays as it is only when
// mknod said EEXIST for the same device; else the bind covers it.
func (c *compiler) bindDevice(dir cell, p, name string, typ, major, minor uint64) {
	src, at := c.cell(), c.cell()
	create := c.words(unix.O_RDONLY|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0o644, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_MAGICLINKS)
	c.op(unix.SYS_OPENAT, "open device", p, num(unix.AT_FDCWD), c.s(p), num(handle), num(0)).Dst = uint64(src)
	c.checkDevice(p, src, typ, major, minor)
	c.op(unix.SYS_OPEN_TREE, "copy device", p, src.get(), buf(c.empty), num(cloneTree|empty)).Dst = uint64(src)
	// An existing device node is not opened for reading: that may have effects.
	how := c.words(handle|unix.O_NOFOLLOW, 0, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_MAGICLINKS)
	i := c.openIn("open", p, dir, name, how, at, errnos(int(unix.ENOENT)))
	have := c.jump("creating " + p)
	c.again(i)
	c.openIn("create file", p, dir, name, create, at, 0)
	c.land(have)
	c.op(unix.SYS_MOVE_MOUNT, "attach device", p, src.get(), buf(c.empty), at.get(), buf(c.empty), num(bothFDs))
	c.op(unix.SYS_CLOSE, "close", p, at.get())
}

// terminal makes the container's terminal through its own devpts and makes it the standard streams. The master side
// goes to the console socket.
func (c *compiler) terminal() {
	p := c.spec.Process
	if !p.Terminal {
		return
	}
	if c.in.Replica {
		c.op(unix.SYS_IOCTL, "take the controlling terminal", "", num(0), num(unix.TIOCSCTTY), num(0))
		return
	}
	root := num(unix.AT_FDCWD)
	name := "/dev/pts/ptmx"
	if !c.joined {
		root = c.root.get()
	}
	// struct msghdr with one byte-string and one SCM_RIGHTS message that holds the descriptor (cmsg(3)); the master
	// is opened straight into its place in that message.
	control := c.words(20, unix.SOL_SOCKET|unix.SCM_RIGHTS<<32, 0)
	master := cell(control + 16)
	text := c.text("/dev/pts/ptmx")
	iov := c.words(text, 13)
	msg := c.words(0, 0, iov, 1, control, 24, 0)
	how := c.words(unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0, inRoot)
	c.op(unix.SYS_OPENAT2, "open", name, root, c.s(name), buf(how), num(24)).Dst = uint64(master)
	c.ops[len(c.ops)-1].ErrMask = errnos(int(unix.EAGAIN)) // see openIn
	c.landAt(len(c.ops)-1, len(c.ops)-1)
	st := c.room(120)
	c.op(unix.SYS_FSTATFS, "look at", name, master.get(), st.addr())
	c.check("that "+name+" is a devpts file", st.get(), num(devptsMagic), ^uint64(0), int(unix.ENOTTY))
	c.op(unix.SYS_IOCTL, "unlock terminal", "", master.get(), num(unix.TIOCSPTLCK), buf(c.words(0)))
	slave := c.cell()
	c.op(unix.SYS_IOCTL, "open terminal", "", master.get(), num(unix.TIOCGPTPEER), num(unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)).Dst = uint64(slave)
	if s := p.ConsoleSize; s != nil {
		c.op(unix.SYS_IOCTL, "set the terminal's size", "", master.get(), num(unix.TIOCSWINSZ), buf(c.words(uint64(uint16(s.Height))|uint64(uint16(s.Width))<<16)))
	}
	// The terminal is the user's; a devpts of another owner (user namespace) may refuse, which is no harm for root.
	c.op(unix.SYS_FCHOWN, "own terminal", "", slave.get(), word(uint64(p.User.UID)), word(0xffffffff)).ErrMask = errnos(int(unix.EPERM), int(unix.EINVAL))
	c.relabel("the terminal", slave)
	if !c.joined {
		t := c.cell()
		create := c.words(unix.O_RDONLY|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NONBLOCK, 0o600, inRoot)
		m := c.cell()
		c.openIn("open", "/dev/console", c.root, "dev/console", create, t, 0)
		c.op(unix.SYS_OPEN_TREE, "copy terminal for", "/dev/console", slave.get(), buf(c.empty), num(cloneTree|empty)).Dst = uint64(m)
		c.op(unix.SYS_MOVE_MOUNT, "attach", "/dev/console", m.get(), buf(c.empty), t.get(), buf(c.empty), num(bothFDs))
		c.op(unix.SYS_CLOSE, "close", "/dev/console", t.get())
	}
	c.op(unix.SYS_SENDMSG, "send the terminal to", "the console socket", num(c.in.Fds.Console), buf(msg), num(unix.MSG_NOSIGNAL))
	for fd := range 3 {
		c.op(unix.SYS_DUP3, "make the terminal descriptor", itoa(fd), slave.get(), num(fd), num(0))
	}
	c.op(unix.SYS_IOCTL, "take the controlling terminal", "", num(0), num(unix.TIOCSCTTY), num(0))
	c.op(unix.SYS_CLOSE, "close", "the terminal's master side", master.get())
}

// sysctls are written through the host's /proc/sys: the kernel looks at the writer's namespaces, and the container's
// own /proc may be anything.
func (c *compiler) sysctls() error {
	keys := make([]string, 0, len(c.linux.Sysctl))
	for k := range c.linux.Sysctl {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		p := k
		if strings.IndexByte(k, '/') < 0 || strings.IndexByte(k, '.') >= 0 && strings.IndexByte(k, '.') < strings.IndexByte(k, '/') {
			// sysctl(8): with dots first, a slash stands for a dot in a name ("net.ipv4.conf.eth0/1.x")
			p = strings.Map(func(r rune) rune {
				switch r {
				case '.':
					return '/'
				case '/':
					return '.'
				}
				return r
			}, k)
		}
		if path.Clean("/"+p) != "/"+p || strings.IndexByte(p, 0) >= 0 {
			return invalid("linux.sysctl", "bad name "+k)
		}
		if why := c.sysctlAllowed(p); why != "" {
			return invalid("linux.sysctl", k+" "+why)
		}
		fd, v := c.cell(), c.linux.Sysctl[k]
		c.op(unix.SYS_OPENAT, "open sysctl", k, num(unix.AT_FDCWD), c.s("/proc/sys/"+p), num(unix.O_WRONLY|unix.O_CLOEXEC), num(0)).Dst = uint64(fd)
		st := c.room(120)
		c.op(unix.SYS_FSTATFS, "look at", "/proc/sys/"+p, fd.get(), st.addr())
		c.check("that it is a proc file system: /proc/sys/"+p, st.get(), num(procMagic), ^uint64(0), int(unix.EINVAL))
		c.op(unix.SYS_WRITE, "set sysctl", k, fd.get(), c.s(v), num(len(v)))
		c.op(unix.SYS_CLOSE, "close", k, fd.get())
	}
	return nil
}

// sysctlAllowed refuses what would change the host: only values of a namespace that the container does not share.
func (c *compiler) sysctlAllowed(p string) string {
	var need runspec.LinuxNamespaceType
	switch {
	case strings.HasPrefix(p, "net/"):
		need = runspec.NetworkNamespace
	case strings.HasPrefix(p, "fs/mqueue/"):
		need = runspec.IPCNamespace
	case p == "kernel/domainname":
		need = runspec.UTSNamespace
	case p == "kernel/hostname":
		return "is set by the field hostname"
	default:
		switch p {
		case "kernel/msgmax", "kernel/msgmnb", "kernel/msgmni", "kernel/sem", "kernel/shmall", "kernel/shmmax", "kernel/shmmni", "kernel/shm_rmid_forced":
			need = runspec.IPCNamespace
		default:
			return "belongs to the whole host, not to a namespace"
		}
	}
	for _, n := range c.linux.Namespaces {
		if n.Type == need && !c.in.Facts.Shared[string(need)] {
			return ""
		}
	}
	return "needs a " + string(need) + " namespace of the container's own"
}

// hostnames sets the names and brings the loopback device up.
func (c *compiler) hostnames() error {
	if c.in.Facts.Shared["uts"] && c.spec.Hostname+c.spec.Domainname != "" {
		return invalid("hostname", "the uts namespace is this process's own: it would be the host's name")
	}
	if h := c.spec.Hostname; h != "" {
		c.op(unix.SYS_SETHOSTNAME, "set host name", h, c.s(h), num(len(h)))
	}
	if d := c.spec.Domainname; d != "" {
		c.op(unix.SYS_SETDOMAINNAME, "set domain name", d, c.s(d), num(len(d)))
	}
	if c.newNetwork() {
		s := c.cell()
		ifr := make([]byte, 40)
		copy(ifr, "lo")
		ifr[16] = unix.IFF_UP | unix.IFF_RUNNING
		c.op(unix.SYS_SOCKET, "open socket", "", num(unix.AF_INET), num(unix.SOCK_DGRAM|unix.SOCK_CLOEXEC), num(0)).Dst = uint64(s)
		c.op(unix.SYS_IOCTL, "bring up", "lo", s.get(), num(unix.SIOCSIFFLAGS), buf(c.put(ifr)))
		c.op(unix.SYS_CLOSE, "close", "socket", s.get())
	}
	return nil
}

func (c *compiler) newNetwork() bool {
	for _, n := range c.linux.Namespaces {
		if n.Type == runspec.NetworkNamespace {
			return n.Path == ""
		}
	}
	return false
}
