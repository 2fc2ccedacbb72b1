package cgroup

import (
	"encoding/binary"
	"errors"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/onggi/onggi/errdefs"
)

// OOMWatch tells of each time that the kernel ran out of memory inside a group: `runc events` prints them.
type OOMWatch struct {
	fd   int // eventfd on v1, inotify on v2
	stop int // eventfd
	dir  *dir
	own  int // a handle of the directory that is the watch's own
	// v2: what was seen. One event can stand for several changes, so the files are looked at before each wait.
	seen  uint64
	lived bool // there was a process
}

// WatchOOM begins to watch. Errors: Unsupported without a memory controller.
func (g *Group) WatchOOM() (*OOMWatch, error) {
	d, err := g.want("memory", "memory", "memory")
	if err != nil {
		e := errdefs.As(err)
		e.Op, e.What, e.Fix = "watch for lack of memory in", g.path, ""
		return nil, e
	}
	fail := func(err error) (*OOMWatch, error) {
		return nil, &errdefs.Error{Op: "watch for lack of memory in", What: d.path, Err: err}
	}
	w := &OOMWatch{fd: -1, stop: -1, own: -1, dir: d}
	if w.own, err = unix.FcntlInt(uintptr(d.fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		return fail(err)
	}
	if w.stop, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err == nil {
		if d.h.v2 {
			w.seen, _ = w.count()
			if w.fd, err = unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK); err == nil {
				_, err = unix.InotifyAddWatch(w.fd, "/proc/self/fd/"+strconv.Itoa(d.fd)+"/memory.events", unix.IN_MODIFY)
				if err == nil {
					_, err = unix.InotifyAddWatch(w.fd, "/proc/self/fd/"+strconv.Itoa(d.fd)+"/cgroup.events", unix.IN_MODIFY)
				}
			}
		} else {
			err = w.register(d)
		}
	}
	if err != nil {
		_ = w.Close()
		return fail(err)
	}
	return w, nil
}

// register asks v1's memory.oom_control for notice by an eventfd (cgroup-v1/memory.rst, "OOM Control"). Removing the
// group gives notice too.
func (w *OOMWatch) register(d *dir) (err error) {
	if w.fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return err
	}
	control, err := openAt(d.fd, "memory.oom_control", unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer unix.Close(control)
	return writeAt(d.fd, "cgroup.event_control", strconv.Itoa(w.fd)+" "+strconv.Itoa(control))
}

// count is how often the group was out of memory (v2).
func (w *OOMWatch) count() (uint64, error) {
	t, err := readAt(w.own, "memory.events")
	n, ok := field(t, "oom")
	if !ok {
		n, _ = field(t, "oom_kill")
	}
	return n, err
}

// Next blocks until the group is out of memory again and returns how often it was since the last call. os.ErrClosed
// after Stop; NotFound when the group has been removed, or, on v2, has no process any more.
func (w *OOMWatch) Next() (uint64, error) {
	gone := &errdefs.Error{Op: "watch for lack of memory in", What: w.dir.path, Kind: errdefs.NotFound, Why: "the control group is gone or empty"}
	for {
		if w.dir.h.v2 {
			n, err := w.count()
			switch {
			case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENOENT):
				return 0, gone
			case err != nil:
				return 0, err
			}
			if n > w.seen {
				n, w.seen = n-w.seen, n
				return n, nil
			}
			t, err := readAt(w.own, "cgroup.events")
			if err != nil {
				return 0, gone
			}
			if n, _ := field(t, "populated"); n == 1 {
				w.lived = true
			} else if w.lived {
				return 0, gone
			}
		}
		p := []unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}, {Fd: int32(w.stop), Events: unix.POLLIN}}
		if _, err := unix.Poll(p, -1); err != nil {
			if err == unix.EINTR {
				continue
			}
			return 0, err
		}
		if p[1].Revents != 0 {
			return 0, os.ErrClosed
		}
		if w.dir.h.v2 {
			var b [4096]byte
			_, _ = unix.Read(w.fd, b[:]) // which file does not matter: both are looked at
			w.lived = true               // a group that was never populated has no events: somebody came, and may be gone
			continue
		}
		var b [8]byte
		if _, err := unix.Read(w.fd, b[:]); err != nil {
			continue
		}
		if !hasAt(w.own, "memory.oom_control") {
			return 0, gone
		}
		return binary.NativeEndian.Uint64(b[:]), nil
	}
}

// Stop has Next return; it may be called from another goroutine, unlike the rest.
func (w *OOMWatch) Stop() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, _ = unix.Write(w.stop, one[:])
}

// Close ends the watch.
func (w *OOMWatch) Close() error {
	for _, fd := range [...]*int{&w.fd, &w.stop, &w.own} {
		if *fd >= 0 {
			_ = unix.Close(*fd)
			*fd = -1
		}
	}
	return nil
}
