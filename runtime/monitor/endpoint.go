package monitor

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// endpoint is a client's descriptor, used without ever blocking a thread on it.
//
// O_NONBLOCK belongs to the open file description, which the client shares with its shell and with whatever else has the
// terminal: setting it there would break those ("resource temporarily unavailable" in the user's shell). So a pipe or a
// terminal is opened once more through /proc/self/fd, which gives a description of our own; a socket has MSG_DONTWAIT;
// a regular file does not block, and its offset must stay the client's. What can do none of this (a terminal of another
// user) is polled, and given so few bytes at a time that it takes them without blocking.
type endpoint struct {
	kind endpointKind
	fd   int      // as the client gave it
	f    *os.File // what the poller watches: the reopened file, or an epoll descriptor that holds fd; may be nil
	// wait is raw's Read or Write: what the poller has to report.
	wait func(func(fd uintptr) bool) error

	out bool       // the client's output; else its input
	mu  sync.Mutex // held while fd is used, so that close does not give its number to another file; over all below
	try func(pollable uintptr) bool
	p   []byte // of the operation under way
	n   int
	err error
}

type endpointKind uint8

const (
	direct   endpointKind = iota // never blocks
	reopened                     // f is the file itself
	socket                       // MSG_DONTWAIT on fd
	polled                       // fd blocks; few bytes after each poll
)

// Bytes that a polled file takes after POLLOUT: a pipe has a free page then (pipe(7)), a terminal some room.
const (
	polledPipe = 4096
	polledTTY  = 128
)

// newEndpoint takes fd over.
func newEndpoint(fd int, write bool) (*endpoint, error) {
	unix.CloseOnExec(fd)
	e := &endpoint{fd: fd, out: write}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFSOCK:
		e.kind = socket
	case unix.S_IFIFO:
		e.kind = reopened
	case unix.S_IFCHR:
		if _, err := unix.IoctlGetTermios(fd, unix.TCGETS); err == nil {
			e.kind = reopened
			// Opening /dev/ptmx once more makes another terminal, and /dev/tty is the opener's.
			if st.Rdev == unix.Mkdev(5, 2) || st.Rdev == unix.Mkdev(5, 0) {
				e.kind = polled
			}
		}
	}
	if e.kind == reopened {
		mode := unix.O_RDONLY
		if write {
			mode = unix.O_WRONLY
		}
		n, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), mode|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		if err != nil {
			e.kind = polled
		} else {
			e.f = os.NewFile(uintptr(n), "attached")
		}
	}
	if e.kind == socket || e.kind == polled {
		if err := e.nest(write); err == unix.EPERM {
			e.kind = direct // the file cannot be polled, so it does not block
		} else if err != nil {
			_ = unix.Close(fd)
			return nil, err
		}
	}
	if err := e.poll(write); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	if e.kind == reopened {
		// The client's description is not needed any more, and would keep a pipe's other end from seeing our end.
		_ = unix.Close(e.fd)
		e.fd = -1
	}
	return e, nil
}

// poll prepares wait.
func (e *endpoint) poll(write bool) error {
	if e.f == nil {
		return nil
	}
	raw, err := e.f.SyscallConn()
	if err != nil {
		_ = e.f.Close()
		return err
	}
	e.wait = raw.Read // an epoll descriptor is readable when fd is ready for what it was asked
	if e.kind == reopened && write {
		e.wait = raw.Write
	}
	return nil
}

// resumeEndpoint is the endpoint of an earlier life of this process.
func resumeEndpoint(kind endpointKind, fd, watched int, write bool) (*endpoint, error) {
	e := &endpoint{kind: kind, fd: fd, out: write}
	if watched >= 0 {
		e.f = os.NewFile(uintptr(watched), "attached")
	}
	return e, e.poll(write)
}

// nest puts fd into an epoll descriptor, which is non-blocking whatever fd is.
func (e *endpoint) nest(write bool) error {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(e.fd)}
	if write {
		ev.Events = unix.EPOLLOUT
	}
	err = unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, e.fd, &ev)
	if err == nil {
		err = unix.SetNonblock(ep, true)
	}
	if err != nil {
		_ = unix.Close(ep)
		return err
	}
	e.f = os.NewFile(uintptr(ep), "epoll")
	return nil
}

// close lets the file go; a blocked read or write returns os.ErrClosed.
func (e *endpoint) close() {
	if e.f != nil {
		_ = e.f.Close()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.fd >= 0 {
		_ = unix.Close(e.fd)
		e.fd = -1
	}
}

// interrupt makes a blocked read or write return os.ErrDeadlineExceeded, and every later one that would block.
func (e *endpoint) interrupt() {
	if e.f != nil {
		_ = e.f.SetDeadline(time.Unix(1, 0))
	}
}

// calm takes interrupt back.
func (e *endpoint) calm() {
	if e.f != nil {
		_ = e.f.SetDeadline(time.Time{})
	}
}

// do moves bytes once between p and the file, and waits while that would block. What an operation needs is in the
// endpoint and not in a closure of its own: a chatty container must not make garbage.
func (e *endpoint) do(p []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.p, e.n, e.err = p, 0, nil
	if e.kind == direct {
		if e.fd < 0 {
			return 0, os.ErrClosed
		}
		e.move(e.fd)
	} else {
		if e.try == nil {
			e.try = func(pollable uintptr) bool {
				fd := e.fd
				if e.kind == reopened {
					fd = int(pollable)
				}
				e.move(fd)
				return e.err != unix.EAGAIN
			}
		}
		if err := e.wait(e.try); err != nil {
			e.p = nil
			return 0, err
		}
	}
	e.p = nil
	return max(e.n, 0), e.err
}

// move makes one system call, which returns EAGAIN instead of blocking.
func (e *endpoint) move(fd int) {
	for {
		switch {
		case e.kind == socket && e.out:
			e.n, e.err = unix.SendmsgN(fd, e.p, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		case e.kind == socket:
			e.n, _, e.err = unix.Recvfrom(fd, e.p, unix.MSG_DONTWAIT)
		case e.kind == polled && e.out && !ready(fd, unix.POLLOUT), e.kind == polled && !e.out && !ready(fd, unix.POLLIN):
			e.n, e.err = 0, unix.EAGAIN
		case e.kind == polled && e.out:
			e.n, e.err = unix.Write(fd, e.p[:min(len(e.p), e.few(fd))])
		case e.out:
			e.n, e.err = unix.Write(fd, e.p)
		default:
			e.n, e.err = unix.Read(fd, e.p)
		}
		if e.err != unix.EINTR {
			return
		}
	}
}

// read waits for bytes. io.EOF at the end.
func (e *endpoint) read(p []byte) (int, error) {
	n, err := e.do(p)
	if n == 0 && err == nil {
		err = io.EOF
	}
	return n, err
}

// write writes some of p, waiting while the file takes nothing. A reader that is gone is an error.
func (e *endpoint) write(p []byte) (int, error) {
	n, err := e.do(p)
	if n == 0 && err == nil && len(p) > 0 {
		err = errors.New("it takes no bytes")
	}
	return n, err
}

func (e *endpoint) few(fd int) int {
	if _, err := unix.IoctlGetTermios(fd, unix.TCGETS); err == nil {
		return polledTTY
	}
	return polledPipe
}

func ready(fd int, events int16) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: events}}
	n, err := unix.Poll(p, 0)
	return n > 0 || err != nil && err != unix.EINTR
}
