package tree

import (
	"bytes"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

type xattr struct {
	name  string
	value []byte
}

// xattrs returns the attributes that belong to the content, sorted: not overlayfs' own, not labels of the host.
func xattrs(f *os.File) ([]xattr, error) {
	fd := int(f.Fd())
	n, err := unix.Flistxattr(fd, nil)
	if n == 0 || err == unix.EOPNOTSUPP {
		return nil, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "listxattr", Path: f.Name(), Err: err}
	}
	b := make([]byte, n)
	if n, err = unix.Flistxattr(fd, b); err != nil {
		return nil, &os.PathError{Op: "listxattr", Path: f.Name(), Err: err}
	}
	var out []xattr
	for _, name := range bytes.Split(b[:n], []byte{0}) {
		x := xattr{name: string(name)}
		if x.name == "" || strings.HasPrefix(x.name, "trusted.overlay.") || strings.HasPrefix(x.name, "user.overlay.") ||
			x.name == "security.selinux" || x.name == "security.ima" || x.name == "security.evm" {
			continue
		}
		size, err := unix.Fgetxattr(fd, x.name, nil)
		if err == nil && size > 0 {
			x.value = make([]byte, size)
			size, err = unix.Fgetxattr(fd, x.name, x.value)
			x.value = x.value[:max(size, 0)]
		}
		if err != nil {
			if err == unix.ENODATA {
				continue
			}
			return nil, &os.PathError{Op: "getxattr " + x.name, Path: f.Name(), Err: err}
		}
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b xattr) int { return strings.Compare(a.name, b.name) })
	return out, nil
}
