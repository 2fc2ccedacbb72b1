package main

import (
	"os"
	"sync"

	"github.com/onggi/onggi/sys"
	"golang.org/x/sys/unix"
)

// relay copies between the caller's streams and a container's terminal, with the caller's terminal in raw mode.
type relay struct {
	master *os.File
	saved  *unix.Termios
	done   chan struct{}
	once   sync.Once
}

func startRelay(master *os.File) (*relay, error) {
	r := &relay{master: master, done: make(chan struct{})}
	if t, err := unix.IoctlGetTermios(0, unix.TCGETS); err == nil {
		r.saved = t
		raw := *t
		raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
		raw.Oflag &^= unix.OPOST
		raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
		raw.Cflag = raw.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
		raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
		if err := unix.IoctlSetTermios(0, unix.TCSETS, &raw); err != nil {
			return nil, err
		}
		r.resize()
	}
	go r.copy(os.Stdin, master, nil)
	go r.copy(master, os.Stdout, r.done)
	return r, nil
}

func (r *relay) copy(from, to *os.File, done chan struct{}) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, werr := to.Write(buf[:n]); werr != nil {
				break
			}
		}
		if err != nil { // EIO: the last replica is closed
			break
		}
	}
	if done != nil {
		close(done)
	}
}

func (r *relay) resize() {
	if ws, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ); err == nil && ws.Row != 0 {
		_ = unix.IoctlSetWinsize(int(r.master.Fd()), unix.TIOCSWINSZ, ws)
	}
}

// stop waits for the last output and gives the caller's terminal back. It may be called on nil, and again.
func (r *relay) stop() {
	if r == nil {
		return
	}
	r.once.Do(func() {
		<-r.done
		if r.saved != nil {
			_ = unix.IoctlSetTermios(0, unix.TCSETS, r.saved)
		}
	})
}

// forwardSignals passes on what users and service managers send to the runtime. Where they cannot be caught (there are
// no descriptors left) they end the runtime, as they end any program.
func forwardSignals(send func(int) error, r *relay) (stop func()) {
	c, err := sys.Catch(false, unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGCONT,
		unix.SIGALRM, unix.SIGWINCH)
	if err != nil {
		return func() {}
	}
	go func() {
		var b [64]byte
		for {
			n, err := c.Read(b[:])
			if err != nil {
				return
			}
			for _, s := range b[:n] {
				if unix.Signal(s) == unix.SIGWINCH && r != nil {
					r.resize()
					continue
				}
				_ = send(int(s))
			}
		}
	}()
	return c.Release
}

// reapOthers takes away, while the process pid lives, other children that have ended: what the container has left in
// this pid namespace comes to a subreaper (prctl(2)) when its parent ends. It never takes pid itself.
func reapOthers(pid int) {
	c, err := sys.Catch(false, unix.SIGCHLD)
	if err != nil {
		return // they stay until this process ends
	}
	go func() {
		var b [64]byte
		for {
			for {
				ended, err := sys.EndedChild()
				if err != nil || ended == 0 || ended == pid {
					break
				}
				_, _ = unix.Wait4(ended, nil, unix.WNOHANG, nil)
			}
			if _, err := c.Read(b[:]); err != nil {
				return
			}
		}
	}()
}
