package sys

import (
	"runtime"
	"syscall"
	"unsafe"
)

// The runtime blocks all signals and stops its own bookkeeping around a fork; it keeps these names for gVisor's use.

//go:linkname runtimeBeforeFork syscall.runtime_BeforeFork
func runtimeBeforeFork()

//go:linkname runtimeAfterFork syscall.runtime_AfterFork
func runtimeAfterFork()

// CloneArgs is struct clone_args of linux/sched.h (clone3(2)).
type CloneArgs struct {
	Flags, PidFD, ChildTID, ParentTID, ExitSignal, Stack, StackSize, TLS, SetTID, SetTIDSize, Cgroup uint64
}

// Spawn clones a child that shares this process's memory and runs ops in it, up to an execveat that gives it an image
// of its own; the calling thread sleeps until then (CLONE_VFORK). The child runs no Go code, has all signals blocked,
// and touches nothing but ops, what they point to, and status.
//
// Preconditions: flags hold no CLONE_THREAD; ops, status and all they point to are pinned (runtime.Pinner): addresses in
// them are numbers, which do not follow a stack that grows. status.Errno is not
// 0 when an operation failed before the image was executed; the child must be waited for in that case too. pidfd is -1
// unless flags hold CLONE_PIDFD.
//
//go:noinline
func Spawn(flags uint64, cgroup int, ops []Op, status *Status) (pid, pidfd int, err error) {
	fd := new(int32)
	*fd = -1
	var pin runtime.Pinner // its address travels as a number
	pin.Pin(fd)
	defer pin.Unpin()
	a := &CloneArgs{Flags: flags | syscall.CLONE_VM | syscall.CLONE_VFORK | cloneClearSighand, ExitSignal: uint64(syscall.SIGCHLD)}
	if flags&clonePidfd != 0 {
		a.PidFD = uint64(uintptr(unsafe.Pointer(fd)))
	}
	if cgroup >= 0 {
		a.Flags |= cloneIntoCgroup
		a.Cgroup = uint64(cgroup)
	}
	status.Ops = AddrOp(&ops[0])
	status.FailOp, status.Errno = 0, 0
	syscall.ForkLock.Lock()
	runtimeBeforeFork()
	r := cloneAndRun(unsafe.Pointer(a), unsafe.Sizeof(*a), unsafe.Pointer(&ops[0]), unsafe.Pointer(status))
	runtimeAfterFork()
	syscall.ForkLock.Unlock()
	runtime.KeepAlive(ops)
	runtime.KeepAlive(a)
	if r < 0 {
		return 0, -1, syscall.Errno(-r)
	}
	return r, int(*fd), nil
}

const (
	clonePidfd        = 0x1000
	cloneClearSighand = 0x100000000
	cloneIntoCgroup   = 0x200000000
)
