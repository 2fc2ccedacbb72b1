//go:build amd64 || arm64

package sys

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// caughtFDs says where the handler writes, by the signal's number; below 0 nowhere.
var caughtFDs [65]int32

// sigaction is the kernel's struct sigaction (linux/include/uapi/asm-generic/signal.h with SA_RESTORER, which both
// processors define).
type sigaction struct {
	handler, flags, restorer, mask uint64
}

const (
	saOnStack = 0x08000000 // the runtime gives each of its threads a stack for handlers
	saRestart = 0x10000000
)

func handlerAddr() uintptr

func catch(s syscall.Signal, fd int) (old sigaction, err error) {
	if s < 1 || int(s) >= len(caughtFDs) {
		return old, unix.EINVAL
	}
	caughtFDs[s] = int32(fd)
	act := sigaction{handler: uint64(handlerAddr()), flags: saRestorer | saOnStack | saRestart, restorer: uint64(restorerAddr()), mask: ^uint64(0)}
	return old, setAction(s, &act, &old)
}

func uncatch(s syscall.Signal, old *sigaction) { _ = setAction(s, old, nil) }

func setAction(s syscall.Signal, act, old *sigaction) error {
	_, _, e := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(s), uintptr(unsafe.Pointer(act)), uintptr(unsafe.Pointer(old)), 8, 0, 0)
	if e != 0 {
		return e
	}
	return nil
}
