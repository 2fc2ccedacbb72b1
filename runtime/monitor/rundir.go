package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/onggi/onggi/errdefs"
	"golang.org/x/sys/unix"
)

// The names in a RunDir and a StateDir.
const (
	configName = "monitor.json"
	lockName   = "monitor.lock"
	socketName = "monitor.sock"
	crashName  = "monitor.crash"
	exitName   = "exit.json"
	actorName  = "actor.json"
)

// Alive reports whether a monitor holds RunDir's lock. It takes some microseconds.
//
// The lock is an open file description lock (fcntl(2), F_OFD_SETLK), which can be asked for without being taken: any
// number of processes ask at once, and none of them is in a new monitor's way.
func Alive(runDir string) bool {
	fd, err := unix.Open(filepath.Join(runDir, lockName), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	l := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	return unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &l) == nil && l.Type != unix.F_UNLCK
}

// lock takes RunDir's lock for as long as the returned file is open.
func lock(runDir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(runDir, lockName), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	l := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &l); err != nil {
		_ = f.Close()
		if err == unix.EAGAIN || err == unix.EACCES {
			return nil, &errdefs.Error{Op: "lock", What: f.Name(), Kind: errdefs.Conflict, Why: "another monitor is alive"}
		}
		return nil, err
	}
	return f, nil
}

// socketAddr names the socket in a directory handle: a path of any length fits in the 108 bytes of sockaddr_un.
func socketAddr(dir int) *unix.SockaddrUnix {
	return &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir, socketName)}
}

func openDir(path string) (int, error) {
	return unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

// listen makes the socket, mode 0600 from its first moment. The caller holds the lock.
func listen(dir int) (*conn, error) {
	if err := unix.Unlinkat(dir, socketName, 0); err != nil && err != unix.ENOENT {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	// bind(2) gives the file the socket's mode.
	if err = unix.Fchmod(fd, 0o600); err == nil {
		err = unix.Bind(fd, socketAddr(dir))
	}
	if err == nil {
		err = unix.Listen(fd, 64)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return newConn(fd)
}

// ReadExit reads the exit record of a state directory. NotFound when the container has not ended (or was lost).
func ReadExit(stateDir string) (*Exit, error) {
	path := filepath.Join(stateDir, exitName)
	fail := func(kind errdefs.Kind, err error) error {
		return &errdefs.Error{Op: "read the exit record", What: path, Kind: kind, Err: err}
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fail(errdefs.KindOf(err), err)
	}
	defer f.Close()
	e := &Exit{}
	if err := json.NewDecoder(io.LimitReader(f, maxMessage)).Decode(e); err != nil {
		return nil, fail(errdefs.Corrupt, err)
	}
	return e, nil
}

// writeExit replaces the exit record: readers see the whole one or none.
func writeExit(stateDir string, e *Exit, sync bool) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	path := filepath.Join(stateDir, exitName)
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err == nil && sync {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	if !sync {
		return nil
	}
	d, err := os.Open(stateDir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Dial connects to a running monitor. NotFound when none is alive.
func Dial(ctx context.Context, runDir string) (*Client, error) {
	fail := func(kind errdefs.Kind, why string, err error) error {
		return &errdefs.Error{Op: "connect to the monitor of", What: filepath.Base(runDir), Kind: kind, Why: why, Err: err}
	}
	for {
		if !Alive(runDir) {
			return nil, fail(errdefs.NotFound, "no monitor is alive", nil)
		}
		c, err := dial(runDir)
		if err == nil {
			uid, err := peerUID(c)
			if err == nil && uid != uint32(os.Geteuid()) {
				err = fmt.Errorf("it runs as uid %d", uid)
			}
			if err != nil {
				c.close()
				return nil, fail(errdefs.Forbidden, "", err)
			}
			if c.hello(ctx) {
				return newClient(c, filepath.Base(runDir)), nil
			}
			c.close() // it ended before it took us: see whether it is alive
			err = unix.ECONNREFUSED
		}
		// Between the lock and the socket, at both ends of a monitor's life, there is a moment without one.
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.EAGAIN) {
			return nil, fail(errdefs.KindOf(err), "", err)
		}
		select {
		case <-ctx.Done():
			return nil, fail(errdefs.KindOf(ctx.Err()), "it does not listen", ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
}

// hello waits for a monitor's first word. A connection is made when it is queued, not when the monitor knows of it: one
// that ends in between would look like a monitor that was killed.
func (c *conn) hello(ctx context.Context) bool {
	stop := context.AfterFunc(ctx, func() { _ = c.f.SetReadDeadline(time.Unix(1, 0)) })
	m, fds, err := c.recv(make([]byte, maxRequest))
	closeFds(fds)
	return stop() && err == nil && m.Op == "hello"
}

func dial(runDir string) (*conn, error) {
	dir, err := openDir(runDir)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, socketAddr(dir)); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return newConn(fd)
}
