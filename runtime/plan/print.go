package plan

import (
	"bytes"
	"io"
	"strconv"

	"github.com/onggi/onggi/sys"
	"golang.org/x/sys/unix"
)

// Print writes the plan, one operation a line: number, name, system call with its arguments, where its result goes and
// what happens when it fails.
//
//	12 open root file system /b/rootfs: open_tree(-100, "/b/rootfs", 557057) -> c3
func (p *Plan) Print(w io.Writer) error {
	var b []byte
	for i := range p.Ops {
		o := &p.Ops[i]
		b = strconv.AppendInt(append(b, pad(i)...), int64(i), 10)
		b = append(b, ' ')
		b = append(append(b, p.Names[i].String()...), ": "...)
		b = append(append(b, callName(o.NR)...), '(')
		for a := range argCount(o.NR) {
			if a > 0 {
				b = append(b, ", "...)
			}
			b = p.appendArg(b, o.Args[a], p.kinds[i]>>(4*a)&0xf)
		}
		b = append(b, ')')
		if o.Dst != 0 {
			b = append(append(b, " -> "...), place(o.Dst)...)
		}
		if o.ErrMask != 0 {
			b = append(append(b, " else "...), errnoList(o.ErrMask)...)
			if o.ErrDst != 0 {
				b = append(append(b, " -> "...), place(o.ErrDst)...)
			}
		}
		if o.Target != 0 {
			b = append(b, " goto "...)
			b = strconv.AppendUint(b, (o.Target-sys.OpsBase)/sys.OpSize, 10)
		}
		b = append(b, '\n')
	}
	_, err := w.Write(b)
	return err
}

func pad(i int) string {
	switch {
	case i < 10:
		return "   "
	case i < 100:
		return "  "
	case i < 1000:
		return " "
	}
	return ""
}

func place(a uint64) string {
	if a >= sys.CellBase {
		return "c" + strconv.FormatUint((a-sys.CellBase)/8, 10)
	}
	return "d" + strconv.FormatUint(a-sys.DataBase, 10)
}

func (p *Plan) appendArg(b []byte, v uint64, kind uint32) []byte {
	switch kind {
	case isString:
		s := p.Data[v-sys.DataBase:]
		if n := bytes.IndexByte(s, 0); n >= 0 {
			s = s[:n]
		}
		return strconv.AppendQuote(b, string(s))
	case isCell:
		return append(b, place(v)...)
	case isInto:
		return append(append(b, '&'), place(v)...)
	case isBuffer:
		if v < sys.CellBase && p.Data[v-sys.DataBase] == 0 && v == sys.DataBase+sys.StatusSize {
			return append(b, `""`...)
		}
		return append(append(b, '*'), place(v)...)
	}
	if v > 1<<63 {
		return strconv.AppendInt(b, int64(v), 10)
	}
	return strconv.AppendUint(b, v, 10)
}

func errnoList(m uint64) string {
	if m == anyErrno {
		return "any"
	}
	s := ""
	for i := range 64 {
		if m&(1<<i) != 0 {
			if s != "" {
				s += "|"
			}
			if i == 63 {
				s += "63.."
			} else {
				s += unix.ErrnoName(unix.Errno(i))
			}
		}
	}
	return s
}

type call struct {
	nr   uint64
	name string
	args int
}

// calls are all system calls that plans are made of.
var calls = [...]call{
	{sys.OpJump, "jump", 0},
	{sys.OpCompare, "compare", 4},
	{sys.OpCompute, "compute", 4},
	{unix.SYS_CAPGET, "capget", 2},
	{unix.SYS_CAPSET, "capset", 2},
	{unix.SYS_CHDIR, "chdir", 1},
	{unix.SYS_CHROOT, "chroot", 1},
	{unix.SYS_CLOCK_GETTIME, "clock_gettime", 2},
	{unix.SYS_CLONE, "clone", 1},
	{unix.SYS_CLOSE, "close", 1},
	{unix.SYS_CLOSE_RANGE, "close_range", 3},
	{unix.SYS_DUP3, "dup3", 3},
	{unix.SYS_EXECVE, "execve", 3},
	{unix.SYS_FACCESSAT, "faccessat", 3},
	{unix.SYS_EXIT_GROUP, "exit_group", 1},
	{unix.SYS_FCHDIR, "fchdir", 1},
	{unix.SYS_FCHMODAT, "fchmodat", 3},
	{unix.SYS_FCHOWN, "fchown", 3},
	{unix.SYS_FCHOWNAT, "fchownat", 5},
	{unix.SYS_FSCONFIG, "fsconfig", 5},
	{unix.SYS_FSMOUNT, "fsmount", 3},
	{unix.SYS_FSOPEN, "fsopen", 2},
	{unix.SYS_FSPICK, "fspick", 3},
	{unix.SYS_FSETXATTR, "fsetxattr", 5},
	{unix.SYS_FSTATFS, "fstatfs", 2},
	{unix.SYS_GETCWD, "getcwd", 2},
	{unix.SYS_GETGROUPS, "getgroups", 2},
	{unix.SYS_GETPID, "getpid", 0},
	{unix.SYS_GETRESGID, "getresgid", 3},
	{unix.SYS_GETRESUID, "getresuid", 3},
	{unix.SYS_IOCTL, "ioctl", 3},
	{unix.SYS_IOPRIO_SET, "ioprio_set", 3},
	{unix.SYS_KEYCTL, "keyctl", 2},
	{unix.SYS_KILL, "kill", 2},
	{unix.SYS_MKDIRAT, "mkdirat", 3},
	{unix.SYS_MKNODAT, "mknodat", 4},
	{unix.SYS_MOUNT, "mount", 5},
	{unix.SYS_MOUNT_SETATTR, "mount_setattr", 5},
	{unix.SYS_MOVE_MOUNT, "move_mount", 5},
	{unix.SYS_OPENAT, "openat", 4},
	{unix.SYS_OPENAT2, "openat2", 4},
	{unix.SYS_OPEN_TREE, "open_tree", 3},
	{unix.SYS_PERSONALITY, "personality", 1},
	{unix.SYS_PIVOT_ROOT, "pivot_root", 2},
	{unix.SYS_PRCTL, "prctl", 3},
	{unix.SYS_PRLIMIT64, "prlimit64", 4},
	{unix.SYS_READ, "read", 3},
	{unix.SYS_RT_SIGACTION, "rt_sigaction", 4},
	{unix.SYS_RT_SIGPROCMASK, "rt_sigprocmask", 4},
	{unix.SYS_RT_SIGTIMEDWAIT, "rt_sigtimedwait", 4},
	{unix.SYS_SCHED_SETAFFINITY, "sched_setaffinity", 3},
	{unix.SYS_SCHED_SETATTR, "sched_setattr", 3},
	{unix.SYS_SECCOMP, "seccomp", 3},
	{unix.SYS_SENDMSG, "sendmsg", 3},
	{unix.SYS_SETDOMAINNAME, "setdomainname", 2},
	{unix.SYS_SETGROUPS, "setgroups", 2},
	{unix.SYS_SET_MEMPOLICY, "set_mempolicy", 3},
	{unix.SYS_SETHOSTNAME, "sethostname", 2},
	{unix.SYS_SETNS, "setns", 2},
	{unix.SYS_SETPGID, "setpgid", 2},
	{unix.SYS_SETRESGID, "setresgid", 3},
	{unix.SYS_SETRESUID, "setresuid", 3},
	{unix.SYS_SETSID, "setsid", 0},
	{unix.SYS_SOCKET, "socket", 3},
	{unix.SYS_STATX, "statx", 5},
	{unix.SYS_SYMLINKAT, "symlinkat", 3},
	{unix.SYS_UMASK, "umask", 1},
	{unix.SYS_UMOUNT2, "umount2", 2},
	{unix.SYS_UNSHARE, "unshare", 1},
	{unix.SYS_WAIT4, "wait4", 4},
	{unix.SYS_WRITE, "write", 3},
}

func callName(nr uint64) string {
	for i := range calls {
		if calls[i].nr == nr {
			return calls[i].name
		}
	}
	return "syscall" + strconv.FormatUint(nr, 10)
}

func argCount(nr uint64) int {
	for i := range calls {
		if calls[i].nr == nr {
			return calls[i].args
		}
	}
	return 6
}
