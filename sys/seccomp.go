package sys

import "golang.org/x/sys/unix"

// FilterFlagsKnown reports whether this kernel takes the given SECCOMP_FILTER_FLAG_ bits with a filter. Nothing is loaded:
// the kernel looks at the flags (EINVAL) before it looks at the filter, and there is none (EFAULT). Source: seccomp(2).
func FilterFlagsKnown(flags uint32) bool {
	_, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(flags), 0)
	return e == unix.EFAULT
}
