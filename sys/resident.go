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
//
// What the return from here to sleep needs is mapped again at once, in pieces of 64 KiB (the kernel maps around a fault),
// so this is best called from a goroutine that ends right after, when all others sleep.
func DropFilePages() error {
	var ranges [8][2]uintptr // code, constants, and a few of what else may be mapped
	n, err := filePages(ranges[:])
	if err != nil {
		return err
	}
	// Nothing but the calls from here on: each page of code that is touched between them is mapped again.
	for i := range n {
		if _, _, e := unix.RawSyscall(unix.SYS_MADVISE, ranges[i][0], ranges[i][1], unix.MADV_DONTNEED); e != 0 {
			return e
		}
	}
	return nil
}

// filePages fills ranges with addresses and lengths of mappings to drop, and returns how many there are.
func filePages(ranges [][2]uintptr) (n int, err error) {
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return 0, err
	}
	defer f.Close() //nolint:errcheck // only read
	// Line by line in one buffer: the caller wants to become small.
	r := bufio.NewReader(f)
	var lo, hi uint64 // of the mapping that the lines belong to; 0 when it is not one to drop
	for {
		line, err := r.ReadSlice('\n')
		if err == io.EOF || n == len(ranges) {
			return n, nil
		}
		if err != nil {
			return n, err
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
		ranges[n] = [2]uintptr{uintptr(lo), uintptr(hi - lo)}
		n++
	}
}
