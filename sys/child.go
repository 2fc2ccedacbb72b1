package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// EndedChild returns the pid of a child that has ended and leaves it unreaped, 0 when none has. ECHILD without any
// child. waitid(2) with WNOWAIT: which one is returned again and again until somebody reaps it is the kernel's choice.
func EndedChild() (pid int, err error) {
	var info struct { // siginfo_t of sigaction(2), as for SIGCHLD
		signo, errno, code, _ int32
		pid                   int32
		_                     [108]byte
	}
	for {
		_, _, e := unix.Syscall6(unix.SYS_WAITID, unix.P_ALL, 0, uintptr(unsafe.Pointer(&info)),
			unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, 0, 0)
		switch e {
		case 0:
			return int(info.pid), nil
		case unix.EINTR:
		default:
			return 0, e
		}
	}
}
