package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Zombie returns a child of this process that has ended and is not reaped yet, without reaping it; 0 when there is none
// (waitid(2): P_ALL, WNOHANG, WNOWAIT). It is always the same one until somebody reaps it.
func Zombie() (pid int, err error) {
	var info unix.Siginfo
	for {
		err = unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			break
		}
	}
	if err == unix.ECHILD {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	// siginfo_t: three ints, padding to a pointer's alignment, then si_pid (sigaction(2)).
	offset := (3*unsafe.Sizeof(int32(0)) + unsafe.Alignof(uintptr(0)) - 1) &^ (unsafe.Alignof(uintptr(0)) - 1)
	return int(*(*int32)(unsafe.Add(unsafe.Pointer(&info), offset))), nil
}
