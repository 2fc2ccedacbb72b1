package cgroup

import (
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxFile bounds what is read from one control file. cgroup.procs of a group with 4 million processes is 32 MiB; no
// host that we serve comes near.
const maxFile = 32 << 20

// writeAt writes value to the file in the directory fd with one write(2): control files act per write.
func writeAt(fd int, file, value string) error {
	f, err := openAt(fd, file, unix.O_WRONLY)
	if err != nil {
		return err
	}
	err = writeFd(f, value)
	_ = unix.Close(f)
	return err
}

func writeFd(f int, value string) error {
	for {
		n, err := unix.Write(f, []byte(value))
		switch {
		case err == unix.EINTR: // memory.max and others reclaim inside the write and can be interrupted
			continue
		case err != nil:
			return err
		case n != len(value):
			return syscall.EIO
		}
		return nil
	}
}

// openAt opens a control file. Nothing in a cgroup file system is a symbolic link, and nothing is created.
func openAt(fd int, file string, flags int) (int, error) {
	for {
		f, err := unix.Openat(fd, file, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err != unix.EINTR {
			return f, err
		}
	}
}

// readAt returns the content of the file without trailing white space.
func readAt(fd int, file string) (string, error) {
	f, err := openAt(fd, file, unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer unix.Close(f)
	var stack [4096]byte
	buf, n := stack[:], 0
	for {
		m, err := unix.Read(f, buf[n:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return "", err
		}
		if n += m; m == 0 {
			return strings.TrimRight(string(buf[:n]), " \n\x00"), nil
		}
		if n == len(buf) {
			if n >= maxFile {
				return "", syscall.EFBIG
			}
			buf = append(buf, make([]byte, len(buf))...)
		}
	}
}

// readUint reads a file that holds one number; "max" is the largest.
func readUint(fd int, file string) (uint64, error) {
	s, err := readAt(fd, file)
	if err != nil {
		return 0, err
	}
	return parseUint(s)
}

func parseUint(s string) (uint64, error) {
	if s == "max" {
		return ^uint64(0), nil
	}
	if strings.HasPrefix(s, "-") { // v1 prints -1 for "no limit" in places
		return ^uint64(0), nil
	}
	return strconv.ParseUint(s, 10, 64)
}

// field returns the number after key in a flat keyed text ("oom_kill 3\n...").
func field(text, key string) (uint64, bool) {
	for text != "" {
		var line string
		line, text, _ = strings.Cut(text, "\n")
		if k, v, ok := strings.Cut(line, " "); ok && k == key {
			n, err := strconv.ParseUint(strings.TrimSpace(v), 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}

// hasAt reports whether the directory has the file.
func hasAt(fd int, file string) bool {
	return unix.Faccessat(fd, file, unix.F_OK, 0) == nil
}

// children names the sub-groups of a directory.
func children(fd int) ([]string, error) { return entries(fd, true) }

// pageSizes names the huge page sizes that a hugetlb group has files for: "2MB", "1GB".
func pageSizes(fd int) (sizes []string) {
	files, _ := entries(fd, false)
	for _, f := range files {
		rest, ok := strings.CutPrefix(f, "hugetlb.")
		size, kind, _ := strings.Cut(rest, ".")
		if ok && (kind == "limit_in_bytes" || kind == "max") {
			sizes = append(sizes, size)
		}
	}
	return sizes
}

func entries(fd int, dirs bool) ([]string, error) {
	d, err := openAt(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(d), "cgroup")
	defer f.Close()
	es, err := f.ReadDir(-1)
	var names []string
	for _, e := range es {
		if e.IsDir() == dirs {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// backoff sleeps a little longer at each call, from 100 µs to 10 ms, until the deadline; false when it has passed.
type backoff struct {
	next     time.Duration
	deadline time.Time
}

func waitUpTo(d time.Duration) *backoff {
	return &backoff{next: 100 * time.Microsecond, deadline: time.Now().Add(d)}
}

func (b *backoff) sleep() bool {
	if time.Now().After(b.deadline) {
		return false
	}
	time.Sleep(b.next)
	if b.next *= 2; b.next > 10*time.Millisecond {
		b.next = 10 * time.Millisecond
	}
	return true
}
