package sys

import (
	"bytes"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// DropFilePages unmaps the pages of this process that come unchanged from files: its code and constants. They are
// mapped again, from the page cache, when they are used. A process that has just been set up and will mostly sleep
// needs few of them again. A mapping with pages of our own (relocated constants) is left alone: those would be lost.
func DropFilePages() error {
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return err
	}
	var lo, hi uint64 // of the mapping that the lines belong to; 0 when it is not one to drop
	for _, line := range bytes.Split(smaps, []byte("\n")) {
		// A mapping's first line is "address perms offset dev inode path", the others are "Name: value kB"
		// (proc_pid_smaps(5)).
		f := bytes.Fields(line)
		if len(f) == 0 {
			continue
		}
		if a, b, ok := bytes.Cut(f[0], []byte("-")); ok && len(f) >= 5 {
			lo, hi = 0, 0
			if len(f) > 5 && f[5][0] == '/' && len(f[1]) == 4 && f[1][1] == '-' {
				lo, _ = strconv.ParseUint(string(a), 16, 64)
				hi, _ = strconv.ParseUint(string(b), 16, 64)
			}
			continue
		}
		if string(f[0]) != "Anonymous:" || lo == 0 || hi <= lo || len(f) < 2 || string(f[1]) != "0" {
			continue
		}
		// Not a pointer of Go's: the address of a mapping that the kernel made for the executable.
		if _, _, e := unix.Syscall(unix.SYS_MADVISE, uintptr(lo), uintptr(hi-lo), unix.MADV_DONTNEED); e != 0 {
			return e
		}
	}
	return nil
}
