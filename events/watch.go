package events

import (
	"context"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// watch tells a reader that the journal's directory has changed. Without inotify (its instances are limited per user) it
// looks again and again.
type watch struct {
	f    *os.File // nil: poll
	stop func() bool
	buf  [4096]byte
}

const (
	pollEvery = 50 * time.Millisecond
	lookAgain = 5 * time.Second // with inotify: against a notice that was lost
)

// newWatch makes the directory: a journal is waited for.
func newWatch(ctx context.Context, dir string) (*watch, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	w := &watch{}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return w, nil
	}
	if _, err = unix.InotifyAddWatch(fd, dir, unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
		_ = unix.Close(fd)
		return w, nil
	}
	w.f = os.NewFile(uintptr(fd), "inotify")
	w.stop = context.AfterFunc(ctx, func() { _ = w.f.SetReadDeadline(time.Unix(1, 0)) })
	return w, nil
}

// wait returns after a change, or after a while; false when the context has ended.
func (w *watch) wait(ctx context.Context) bool {
	if w.f == nil {
		t := time.NewTimer(pollEvery)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		return ctx.Err() == nil
	}
	_ = w.f.SetReadDeadline(time.Now().Add(lookAgain))
	if ctx.Err() != nil { // it ended before the deadline was moved
		return false
	}
	_, _ = w.f.Read(w.buf[:]) // a time-out is one of its two normal ends
	return ctx.Err() == nil
}

func (w *watch) close() {
	if w.f != nil {
		w.stop()
		_ = w.f.Close()
	}
}
