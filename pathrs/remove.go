package pathrs

import (
	"errors"
	"io"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// deepHandles is how many directories RemoveAll holds open at once.
const deepHandles = 128

// RemoveAll removes name in dir, and if it is a directory all that is below. No link is followed, no mount is entered
// (EXDEV), and a tree of any depth is removed with a bounded number of handles: a process may nest directories far
// beyond PATH_MAX, and removing its container must not fail of that. What is gone already is not an error, so that two
// processes may remove the same tree. name is one component.
func RemoveAll(dir *os.File, name string) error {
	defer runtime.KeepAlive(dir)
	return RemoveAllAt(int(dir.Fd()), name)
}

// RemoveAllAt is RemoveAll for a raw descriptor.
func RemoveAllAt(dirfd int, name string) error {
	r := remover{top: dirfd, queue: []string{name}}
	for len(r.queue) > 0 {
		next := r.queue[0]
		r.queue = r.queue[1:]
		if err := r.remove(dirfd, next, 0); err != nil {
			return &os.PathError{Op: "remove", Path: name, Err: err}
		}
	}
	return nil
}

type remover struct {
	top   int
	queue []string // directories moved up to top because they lay too deep
	moved int
}

func (r *remover) remove(dirfd int, name string, depth int) error {
	err := retryEINTR(func() error { return unix.Unlinkat(dirfd, name, 0) })
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if err != unix.EISDIR {
		return err
	}
	if depth == deepHandles {
		return r.moveUp(dirfd, name)
	}
	fd, err := Openat2(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0, NoSymlinks|unix.RESOLVE_NO_XDEV)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return err
	}
	d := os.NewFile(uintptr(fd), name)
	for removed := true; removed; {
		removed = false
		for {
			names, err := d.Readdirnames(1024)
			for _, n := range names {
				if err := r.remove(fd, n, depth+1); err != nil {
					d.Close()
					return err
				}
				removed = true
			}
			if err == io.EOF || errors.Is(err, unix.ENOENT) { // ENOENT: another process removed it
				break
			}
			if err != nil {
				d.Close()
				return err
			}
		}
		// Entries may be passed over when a directory shrinks while it is read (readdir(3)): look until it is empty.
		if removed {
			if _, err := d.Seek(0, io.SeekStart); err != nil {
				d.Close()
				return err
			}
		}
	}
	d.Close()
	err = retryEINTR(func() error { return unix.Unlinkat(dirfd, name, unix.AT_REMOVEDIR) })
	if err == unix.ENOENT {
		return nil
	}
	return err
}

// moveUp puts a directory that lies too deep beside the top one and in the queue.
func (r *remover) moveUp(dirfd int, name string) error {
	for {
		r.moved++
		to := ".onggi-removing-" + strconv.Itoa(os.Getpid()) + "-" + strconv.Itoa(r.moved)
		err := unix.Renameat2(dirfd, name, r.top, to, unix.RENAME_NOREPLACE)
		switch err {
		case nil:
			r.queue = append(r.queue, to)
			return nil
		case unix.ENOENT:
			return nil
		case unix.EEXIST, unix.EINTR:
		default:
			return err
		}
	}
}

func retryEINTR(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}
