package snapshot

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Forms says how layers lie on this host, and what else its kernel would let them be.
type Forms struct {
	Layers   string // "directories": the only form that there is (doc/decisions/23)
	Writable string // "overlay", or "none" where the kernel has no overlayfs: then no container can be made
	// EROFS says how an image of a layer could be mounted: "file" (Linux 6.12 and later), "loop" (by a loop device), "none".
	EROFS string
}

// Probe asks the kernel, which loads its modules for that. It changes nothing else.
func Probe() Forms {
	f := Forms{Layers: "directories", Writable: "none", EROFS: "none"}
	if knows("overlay") {
		f.Writable = "overlay"
	}
	if knows("erofs") {
		f.EROFS = "loop"
		var u unix.Utsname
		if unix.Uname(&u) == nil && since(unix.ByteSliceToString(u.Release[:]), 6, 12) {
			f.EROFS = "file"
		}
	}
	return f
}

// knows reports whether the kernel has a file system.
func knows(name string) bool {
	fd, err := unix.Fsopen(name, unix.FSOPEN_CLOEXEC)
	if err == nil {
		_ = unix.Close(fd)
		return true
	}
	if err == unix.ENODEV {
		return false
	}
	b, err := os.ReadFile("/proc/filesystems") // without the right to mount, fsopen(2) tells nothing
	return err == nil && strings.Contains(string(b), "\t"+name+"\n")
}

// since reports whether a kernel's release, "6.12.3-x", is of that version or later.
func since(release string, major, minor int) bool {
	a, rest, _ := strings.Cut(release, ".")
	b := rest[:len(rest)-len(strings.TrimLeft(rest, "0123456789"))]
	x, err1 := strconv.Atoi(a)
	y, err2 := strconv.Atoi(b)
	return err1 == nil && err2 == nil && (x > major || x == major && y >= minor)
}

// String is what `onggi info` prints.
func (f Forms) String() string {
	s := f.Layers + " under " + f.Writable
	switch f.EROFS {
	case "file":
		s += "; EROFS images could be mounted from files, and are not used"
	case "loop":
		s += "; EROFS images could be mounted by loop devices, and are not used"
	}
	return s
}
