package logfile

import (
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// watch tells a follower that the log's directory has changed. Without inotify (its instances are limited per user) it
// polls.
type watch struct {
	f    *os.File // nil: poll
	stop func() bool
	buf  [4096]byte
	soon int // so many more short waits: the writer has closed the log, and the end of the container is near
}

const (
	idle  = 100 * time.Millisecond // how often Done is asked while nothing is written
	hasty = 2 * time.Millisecond   // after the writer has closed a file
	poll  = 20 * time.Millisecond  // without inotify
)

func newWatch(ctx context.Context, path string) *watch {
	w := &watch{}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return w
	}
	_, err = unix.InotifyAddWatch(fd, filepath.Dir(path),
		unix.IN_MODIFY|unix.IN_CLOSE_WRITE|unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_MOVED_FROM)
	if err != nil {
		_ = unix.Close(fd)
		return w
	}
	w.f = os.NewFile(uintptr(fd), "inotify")
	w.stop = context.AfterFunc(ctx, func() { _ = w.f.SetReadDeadline(time.Unix(1, 0)) })
	return w
}

// wait returns after a change, or after a while, or with the context's error.
func (w *watch) wait(ctx context.Context) error {
	pause := idle
	if w.soon > 0 {
		w.soon--
		pause = hasty
	}
	if w.f == nil {
		t := time.NewTimer(min(pause, poll))
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		return ctx.Err()
	}
	_ = w.f.SetReadDeadline(time.Now().Add(pause))
	if ctx.Err() != nil { // it ended before the deadline was moved
		return ctx.Err()
	}
	n, _ := w.f.Read(w.buf[:]) // a time-out is one of its two normal ends
	for b := w.buf[:max(n, 0)]; len(b) >= unix.SizeofInotifyEvent; {
		// struct inotify_event: wd, mask, cookie, len, name (inotify(7)).
		if binary.NativeEndian.Uint32(b[4:])&unix.IN_CLOSE_WRITE != 0 {
			w.soon = 100
		}
		name := int(binary.NativeEndian.Uint32(b[12:]))
		b = b[min(len(b), unix.SizeofInotifyEvent+name):]
	}
	return ctx.Err()
}

func (w *watch) close() {
	if w.f != nil {
		w.stop()
		_ = w.f.Close()
	}
}
