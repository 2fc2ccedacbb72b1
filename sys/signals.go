package sys

import (
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Caught is a set of signals that are caught for one reader. Reading it gives the numbers of the signals that arrived,
// one byte each, in their order; it waits in the runtime's poller, without a thread.
//
// It is os/signal for programs that live for milliseconds. There each signal of a Notify and of a Stop is handed to a
// thread of the runtime's and back, which takes 20 us of two threads: a millisecond for all that a container's client
// sends on. Here the handler is ten instructions that write to a pipe (signal-safety(7)), and a signal costs the one
// system call that installs it.
type Caught struct {
	*os.File
	w    int // never closed: a handler may be about to write to it
	list []syscall.Signal
	old  []sigaction
}

// catching serialises changes of the process's signal actions.
var catching sync.Mutex

// Catch catches the signals of list from now on. With discard they are caught and forgotten, and there is nothing to
// read: unlike an ignored signal, a caught one is not inherited by what this process executes (execve(2)).
//
// Preconditions: os/signal is not used for the same signals, and list has none that the Go runtime needs for itself
// (SIGURG, SIGPROF, SIGPIPE and those of faults). When more signals arrive unread than a pipe holds (64 Ki), the rest is lost.
func Catch(discard bool, list ...syscall.Signal) (*Caught, error) {
	c := &Caught{w: -1}
	if !discard {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
			return nil, os.NewSyscallError("pipe2", err)
		}
		c.File, c.w = os.NewFile(uintptr(p[0]), "signals"), p[1]
	}
	catching.Lock()
	defer catching.Unlock()
	for _, s := range list {
		old, err := catch(s, c.w)
		if err != nil {
			c.release()
			return nil, os.NewSyscallError("rt_sigaction", err)
		}
		c.list, c.old = append(c.list, s), append(c.old, old)
	}
	return c, nil
}

// Release gives the signals the actions back that they had before, and ends the reader.
func (c *Caught) Release() {
	catching.Lock()
	defer catching.Unlock()
	c.release()
}

func (c *Caught) release() {
	for i, s := range c.list {
		uncatch(s, &c.old[i])
	}
	c.list, c.old = nil, nil
	if c.File != nil {
		_ = c.Close()
	}
}
