package sys

import (
	"bytes"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// DropFilePages unmaps the pages of this process that come unchanged from files: its code and constants. They are
// mapped again, from the page cache, when they are used. A process that has just been set up and will mostly sleep
// needs few of them again.
func DropFilePages() error {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return err
	}
	for _, line := range bytes.Split(maps, []byte("\n")) {
		// address perms offset dev inode path (proc_pid_maps(5))
		f := bytes.Fields(line)
		if len(f) < 6 || f[1][1] == 'w' || f[5][0] != '/' {
			continue
		}
		lo, hi, ok := bytes.Cut(f[0], []byte("-"))
		if !ok {
			continue
		}
		a, err1 := strconv.ParseUint(string(lo), 16, 64)
		b, err2 := strconv.ParseUint(string(hi), 16, 64)
		if err1 != nil || err2 != nil || b <= a {
			continue
		}
		// Not a pointer of Go's: the address of a mapping that the linker made.
		if _, _, e := unix.Syscall(unix.SYS_MADVISE, uintptr(a), uintptr(b-a), unix.MADV_DONTNEED); e != 0 {
			return e
		}
	}
	return nil
}

