package plan

import (
	"strings"

	"golang.org/x/sys/unix"
)

// labels tells the security module what the process becomes when it executes the command. The kernel takes the word only
// from the process itself and only under the credentials that opened the file, so it is said before ids and namespaces
// change: /proc is the host's own still. Later credentials keep it.
func (c *compiler) labels() error {
	p := c.spec.Process
	switch profile := p.ApparmorProfile; {
	case profile == "" || profile == "unconfined" && !c.in.Facts.AppArmor:
	case !c.in.Facts.AppArmor:
		return unsupported("process.apparmorProfile", "AppArmor is not enabled on this host")
	default:
		c.writeProc("attr/apparmor/exec", "attr/exec", "AppArmor profile "+profile, "exec "+profile)
	}
	switch {
	case c.in.Facts.SELinux:
	case p.SelinuxLabel != "":
		return unsupported("process.selinuxLabel", "SELinux is not enabled on this host")
	case c.linux.MountLabel != "" && !c.joined: // nothing is confined by it: where there is no SELinux, files have no labels
		c.warn("linux.mountLabel has no effect: SELinux is not enabled on this host")
	}
	if p.SelinuxLabel != "" {
		c.writeProc("attr/exec", "", "SELinux label "+p.SelinuxLabel, p.SelinuxLabel)
		if !c.in.NoNewKeyring && !c.joined { // for the session keyring, which is made next
			c.writeProc("attr/keycreate", "", "SELinux label of keys", p.SelinuxLabel)
		}
	}
	return nil
}

// writeProc writes to a file of /proc/self, and only if it is one of a proc file system: whatever else might lie there
// would be written with the runtime's rights (CVE-2019-16884, CVE-2025-52881). older is its name in kernels before.
func (c *compiler) writeProc(name, older, what, text string) {
	fd, st := c.cell(), c.room(120)
	open := func(name string) {
		c.op(unix.SYS_OPENAT, "open", "/proc/self/"+name, num(unix.AT_FDCWD), c.s("/proc/self/"+name), num(unix.O_WRONLY|unix.O_CLOEXEC), num(0)).Dst = uint64(fd)
	}
	open(name)
	if older != "" {
		first := len(c.ops) - 1
		c.ops[first].ErrMask = errnos(int(unix.ENOENT))
		found := c.jump("the older name")
		c.land(first)
		open(older)
		c.land(found)
	}
	c.op(unix.SYS_FSTATFS, "look at", "/proc/self/"+name, fd.get(), st.addr())
	c.check("that it is a proc file system: /proc/self/"+name, st.get(), num(procMagic), ^uint64(0), int(unix.EINVAL))
	c.op(unix.SYS_WRITE, "set", what, fd.get(), c.s(text), num(len(text)))
	c.op(unix.SYS_CLOSE, "close", name, fd.get())
}

// mountLabel is linux.mountLabel where files have labels.
func (c *compiler) mountLabel() string {
	if !c.in.Facts.SELinux {
		return ""
	}
	return c.linux.MountLabel
}

// context is the SELinux label of a new file system, as an option of it; proc and sysfs have labels of their own.
func (c *compiler) context(typ string, quoted bool) []string {
	l := c.mountLabel()
	switch {
	case l == "", typ == "proc", typ == "sysfs", typ == "mqueue", typ == "cgroup", typ == "cgroup2":
		return nil
	case quoted: // mount(2) splits at commas, which are part of a label's categories
		return []string{`context="` + l + `"`}
	}
	return []string{"context=" + l}
}

// relabel gives what an open file or directory shows the label of mounts.
func (c *compiler) relabel(what string, fd cell) {
	l := c.mountLabel()
	if l == "" {
		return
	}
	c.op(unix.SYS_FSETXATTR, "set the SELinux label of", what, fd.get(), c.s("security.selinux"), c.s(l), num(len(l)+1), num(0))
}

// relabelMount is relabel for a type that takes no context option.
func (c *compiler) relabelMount(typ, dest string, t cell) {
	if c.mountLabel() == "" || typ != "mqueue" {
		return
	}
	dir := c.cell()
	c.op(unix.SYS_OPENAT, "open", dest, t.get(), c.s("."), num(unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC), num(0)).Dst = uint64(dir)
	c.relabel(dest, dir)
	c.op(unix.SYS_CLOSE, "close", dest, dir.get())
}

// labelled reports whether data names a context already.
func labelled(data []string) bool {
	for _, d := range data {
		if strings.HasPrefix(d, "context=") || strings.HasPrefix(d, "fscontext=") || strings.HasPrefix(d, "rootcontext=") || strings.HasPrefix(d, "defcontext=") {
			return true
		}
	}
	return false
}
