package plan

import "golang.org/x/sys/unix"

// capabilities in the order of their numbers (linux/capability.h).
var capabilities = [...]string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW",
	"CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT",
	"CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD",
	"CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG",
	"CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

// Capabilities lists the names that specs may use, by number.
func Capabilities() []string { return capabilities[:] }

func capNumber(name string) int {
	for i, c := range capabilities {
		if c == name {
			return i
		}
	}
	return -1
}

func rlimitNumber(name string) int {
	switch name {
	case "RLIMIT_CPU":
		return 0
	case "RLIMIT_FSIZE":
		return 1
	case "RLIMIT_DATA":
		return 2
	case "RLIMIT_STACK":
		return 3
	case "RLIMIT_CORE":
		return 4
	case "RLIMIT_RSS":
		return 5
	case "RLIMIT_NPROC":
		return 6
	case "RLIMIT_NOFILE":
		return 7
	case "RLIMIT_MEMLOCK":
		return 8
	case "RLIMIT_AS":
		return 9
	case "RLIMIT_LOCKS":
		return 10
	case "RLIMIT_SIGPENDING":
		return 11
	case "RLIMIT_MSGQUEUE":
		return 12
	case "RLIMIT_NICE":
		return 13
	case "RLIMIT_RTPRIO":
		return 14
	case "RLIMIT_RTTIME":
		return 15
	}
	return -1
}

// RlimitNumber returns the resource's number for prlimit(2), -1 for an unknown name.
func RlimitNumber(name string) int { return rlimitNumber(name) }

// Namespaces that a spec can name, and their CLONE_ flags.
func namespaceFlag(t string) uint64 {
	switch t {
	case "pid":
		return unix.CLONE_NEWPID
	case "network":
		return unix.CLONE_NEWNET
	case "ipc":
		return unix.CLONE_NEWIPC
	case "uts":
		return unix.CLONE_NEWUTS
	case "mount":
		return unix.CLONE_NEWNS
	case "user":
		return unix.CLONE_NEWUSER
	case "cgroup":
		return unix.CLONE_NEWCGROUP
	case "time":
		return unix.CLONE_NEWTIME
	}
	return 0
}

// NamespaceFlag returns the CLONE_ flag of a namespace type, 0 for an unknown one.
func NamespaceFlag(t string) uint64 { return namespaceFlag(t) }

// mountOption is what an option of mount(8) does to a mount; set and clear are MOUNT_ATTR_ bits.
type mountOption struct {
	name       string
	set, clear uint64
	recursive  bool // mount_setattr with AT_RECURSIVE: "rro"
}

var mountOptions = [...]mountOption{
	{"ro", unix.MOUNT_ATTR_RDONLY, 0, false},
	{"rw", 0, unix.MOUNT_ATTR_RDONLY, false},
	{"nosuid", unix.MOUNT_ATTR_NOSUID, 0, false},
	{"suid", 0, unix.MOUNT_ATTR_NOSUID, false},
	{"nodev", unix.MOUNT_ATTR_NODEV, 0, false},
	{"dev", 0, unix.MOUNT_ATTR_NODEV, false},
	{"noexec", unix.MOUNT_ATTR_NOEXEC, 0, false},
	{"exec", 0, unix.MOUNT_ATTR_NOEXEC, false},
	{"noatime", unix.MOUNT_ATTR_NOATIME, unix.MOUNT_ATTR__ATIME, false},
	{"atime", unix.MOUNT_ATTR_RELATIME, unix.MOUNT_ATTR__ATIME, false},
	{"relatime", unix.MOUNT_ATTR_RELATIME, unix.MOUNT_ATTR__ATIME, false},
	{"norelatime", unix.MOUNT_ATTR_RELATIME, unix.MOUNT_ATTR__ATIME, false},
	{"strictatime", unix.MOUNT_ATTR_STRICTATIME, unix.MOUNT_ATTR__ATIME, false},
	{"nostrictatime", unix.MOUNT_ATTR_RELATIME, unix.MOUNT_ATTR__ATIME, false},
	{"nodiratime", unix.MOUNT_ATTR_NODIRATIME, 0, false},
	{"diratime", 0, unix.MOUNT_ATTR_NODIRATIME, false},
	{"nosymfollow", unix.MOUNT_ATTR_NOSYMFOLLOW, 0, false},
	{"symfollow", 0, unix.MOUNT_ATTR_NOSYMFOLLOW, false},
	{"rro", unix.MOUNT_ATTR_RDONLY, 0, true},
	{"rrw", 0, unix.MOUNT_ATTR_RDONLY, true},
	{"rnosuid", unix.MOUNT_ATTR_NOSUID, 0, true},
	{"rsuid", 0, unix.MOUNT_ATTR_NOSUID, true},
	{"rnodev", unix.MOUNT_ATTR_NODEV, 0, true},
	{"rdev", 0, unix.MOUNT_ATTR_NODEV, true},
	{"rnoexec", unix.MOUNT_ATTR_NOEXEC, 0, true},
	{"rexec", 0, unix.MOUNT_ATTR_NOEXEC, true},
	{"rnoatime", unix.MOUNT_ATTR_NOATIME, unix.MOUNT_ATTR__ATIME, true},
	{"ratime", unix.MOUNT_ATTR_RELATIME, unix.MOUNT_ATTR__ATIME, true},
	{"rrelatime", unix.MOUNT_ATTR_RELATIME, unix.MOUNT_ATTR__ATIME, true},
	{"rnorelatime", unix.MOUNT_ATTR_RELATIME, unix.MOUNT_ATTR__ATIME, true},
	{"rstrictatime", unix.MOUNT_ATTR_STRICTATIME, unix.MOUNT_ATTR__ATIME, true},
	{"rnostrictatime", unix.MOUNT_ATTR_RELATIME, unix.MOUNT_ATTR__ATIME, true},
	{"rnodiratime", unix.MOUNT_ATTR_NODIRATIME, 0, true},
	{"rdiratime", 0, unix.MOUNT_ATTR_NODIRATIME, true},
	{"rnosymfollow", unix.MOUNT_ATTR_NOSYMFOLLOW, 0, true},
	{"rsymfollow", 0, unix.MOUNT_ATTR_NOSYMFOLLOW, true},
}

// MountOptions lists the options of mounts[].options that have a meaning of their own; others go to the file system.
func MountOptions() []string {
	out := []string{"bind", "rbind", "tmpcopyup", "idmap", "ridmap", "remount", "defaults", "loud", "silent", "iversion", "noiversion", "acl", "noacl"}
	for _, o := range superOptions {
		out = append(out, o.name)
	}
	for _, o := range mountOptions {
		out = append(out, o.name)
	}
	for _, p := range propagations {
		out = append(out, p.name)
	}
	return out
}

var propagations = [...]struct {
	name      string
	value     uint64
	recursive bool
}{
	{"private", unix.MS_PRIVATE, false},
	{"rprivate", unix.MS_PRIVATE, true},
	{"shared", unix.MS_SHARED, false},
	{"rshared", unix.MS_SHARED, true},
	{"slave", unix.MS_SLAVE, false},
	{"rslave", unix.MS_SLAVE, true},
	{"unbindable", unix.MS_UNBINDABLE, false},
	{"runbindable", unix.MS_UNBINDABLE, true},
}

// superOptions belong to a file system, not to a mount of it: they are set when it is made (fsconfig(2)).
var superOptions = [...]struct {
	name string
	flag uint64 // of mount(2); 0 takes one back
}{
	{"sync", unix.MS_SYNCHRONOUS},
	{"async", 0},
	{"dirsync", unix.MS_DIRSYNC},
	{"lazytime", unix.MS_LAZYTIME},
	{"nolazytime", 0},
	{"mand", unix.MS_MANDLOCK},
	{"nomand", 0},
}

// options is the parsed form of mounts[].options.
type options struct {
	bind, rbind, copyUp  bool
	remount              bool
	idmap, ridmap        bool
	old                  uint64 // flags that only mount(2) takes: MS_I_VERSION and MS_POSIXACL
	set, clear           uint64
	rset, rclear         uint64
	propagation          uint64
	propagationRecursive bool
	super                []string // of superOptions
	data                 []string // for the file system
}

// parseOptions takes what the specification's table of options has; any other option is the file system's own.
func parseOptions(list []string) (o options) {
next:
	for _, s := range list {
		for i := range mountOptions {
			if m := &mountOptions[i]; m.name == s {
				if m.recursive {
					o.rset, o.rclear = o.rset&^m.clear|m.set, o.rclear&^m.set|m.clear
				} else {
					o.set, o.clear = o.set&^m.clear|m.set, o.clear&^m.set|m.clear
				}
				continue next
			}
		}
		for i := range propagations {
			if p := &propagations[i]; p.name == s {
				o.propagation, o.propagationRecursive = p.value, p.recursive
				continue next
			}
		}
		for i := range superOptions {
			if superOptions[i].name == s {
				o.super = append(o.super, s)
				continue next
			}
		}
		switch s {
		case "bind":
			o.bind = true
		case "rbind":
			o.rbind = true
		case "tmpcopyup":
			o.copyUp = true
		case "remount":
			o.remount = true
		case "idmap":
			o.idmap = true
		case "ridmap":
			o.ridmap = true
		case "iversion":
			o.old |= unix.MS_I_VERSION
		case "noiversion":
			o.old &^= unix.MS_I_VERSION
		case "acl":
			o.old |= unix.MS_POSIXACL
		case "noacl":
			o.old &^= unix.MS_POSIXACL
		case "defaults", "loud", "silent", "":
			// the kernel's default, and which of its messages are logged
		default:
			o.data = append(o.data, s)
		}
	}
	return o
}

// changes are those of o.super that are not the default.
func (o *options) changes() (out []string) {
	for _, s := range o.super {
		for _, k := range superOptions {
			if k.name == s && k.flag != 0 {
				out = append(out, s)
			}
		}
	}
	if o.old&unix.MS_I_VERSION != 0 {
		out = append(out, "iversion")
	}
	if o.old&unix.MS_POSIXACL != 0 {
		out = append(out, "acl")
	}
	return out
}

// superFlags are o.super for mount(2).
func (o *options) superFlags() (f uint64) {
	for _, s := range o.super {
		for _, k := range superOptions {
			switch {
			case k.name == s:
				f |= k.flag
			case k.flag != 0 && (s == "no"+k.name || s == "a"+k.name):
				f &^= k.flag
			}
		}
	}
	return f | o.old
}

// legacyFlags are the attributes of a mount for mount(2).
func legacyFlags(attr uint64) (flags uint64) {
	for _, f := range [...]struct{ attr, ms uint64 }{
		{unix.MOUNT_ATTR_RDONLY, unix.MS_RDONLY},
		{unix.MOUNT_ATTR_NOSUID, unix.MS_NOSUID},
		{unix.MOUNT_ATTR_NODEV, unix.MS_NODEV},
		{unix.MOUNT_ATTR_NOEXEC, unix.MS_NOEXEC},
		{unix.MOUNT_ATTR_NODIRATIME, unix.MS_NODIRATIME},
		{unix.MOUNT_ATTR_NOSYMFOLLOW, unix.MS_NOSYMFOLLOW},
	} {
		if attr&f.attr != 0 {
			flags |= f.ms
		}
	}
	switch attr & unix.MOUNT_ATTR__ATIME {
	case unix.MOUNT_ATTR_NOATIME:
		flags |= unix.MS_NOATIME
	case unix.MOUNT_ATTR_STRICTATIME:
		flags |= unix.MS_STRICTATIME
	}
	return flags
}
