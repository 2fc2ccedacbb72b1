package sys

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// DropFilePages unmaps the pages of this process that come unchanged from files: its code and constants. They are
// mapped again, from the page cache, when they are used. A process that has just been set up and will mostly sleep
// needs few of them again. A mapping with pages of our own (relocated constants) is left alone: those would be lost.
func DropFilePages() error {
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read
	// Line by line in one buffer: the caller wants to become small.
	r := bufio.NewReader(f)
	var lo, hi uint64 // of the mapping that the lines belong to; 0 when it is not one to drop
	for {
		line, err := r.ReadSlice('\n')
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		// A mapping's first line is "address perms offset dev inode path", the others are "Name: value kB"
		// (proc_pid_smaps(5)).
		first, rest, _ := bytes.Cut(line, []byte(" "))
		if a, b, ok := bytes.Cut(first, []byte("-")); ok {
			lo, hi = 0, 0
			if len(rest) > 1 && rest[1] == '-' && bytes.IndexByte(rest, '/') >= 0 {
				lo, _ = strconv.ParseUint(string(a), 16, 64)
				hi, _ = strconv.ParseUint(string(b), 16, 64)
			}
			continue
		}
		if lo == 0 || hi <= lo || !bytes.Equal(first, []byte("Anonymous:")) ||
			!bytes.HasSuffix(bytes.TrimRight(rest, "\n"), []byte(" 0 kB")) {
			continue
		}
		// Not a pointer of Go's: the address of a mapping that the kernel made for the executable.
		if _, _, e := unix.Syscall(unix.SYS_MADVISE, uintptr(lo), uintptr(hi-lo), unix.MADV_DONTNEED); e != 0 {
			return e
		}
	}
}
