package main

import (
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/onggi/onggi/errdefs"
	"golang.org/x/sys/unix"
)

// notifySocket is where a service manager waits for word of this service (sd_notify(3)): the address, "" without one.
func notifySocket() string { return os.Getenv("NOTIFY_SOCKET") }

// relayNotify passes on what a container says to its notify socket. With leave it returns once the container is ready, or
// has ended, and has told the manager that the container's process is the service's main one: this process ends now.
// Otherwise it goes on until the socket is closed. A manager that cannot be reached is an error.
func relayNotify(from *os.File, pid int, leave bool) error {
	to, err := dialNotify(notifySocket())
	if err != nil {
		return err
	}
	defer unix.Close(to) //nolint:errcheck // all is sent
	wait := []unix.PollFd{{Fd: int32(from.Fd()), Events: unix.POLLIN}}
	if fd, err := unix.PidfdOpen(pid, 0); err == nil {
		defer unix.Close(fd) //nolint:errcheck // a handle
		wait = append(wait, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	for buf := make([]byte, 64<<10); ; {
		if _, err := unix.Poll(wait, -1); err == unix.EINTR {
			continue
		} else if err != nil {
			return err
		}
		if wait[0].Revents == 0 { // it has ended, and all it said is read
			return nil
		}
		n, _, err := unix.Recvfrom(int(from.Fd()), buf, unix.MSG_DONTWAIT)
		if err == unix.EAGAIN || err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil // closed
		}
		text, ready := allowedNotice(string(buf[:n]))
		if leave && ready {
			text += "MAINPID=" + strconv.Itoa(pid) + "\n"
		}
		if text != "" {
			_, _ = unix.Write(to, []byte(text)) // who does not listen any more is not told
		}
		if leave && ready {
			return notifyBarrier(to)
		}
	}
}

// allowedNotice keeps the lines of a notice that a container may say of itself, and reports whether it says that it is
// ready. Which process is the main one, descriptors to keep and the like are for the host to say.
func allowedNotice(s string) (kept string, ready bool) {
	for line := range strings.SplitSeq(s, "\n") {
		name, _, _ := strings.Cut(line, "=")
		switch name {
		case "READY":
			ready = ready || line == "READY=1"
		case "STATUS", "ERRNO", "RELOADING", "MONOTONIC_USEC", "STOPPING", "WATCHDOG", "EXTEND_TIMEOUT_USEC":
		default:
			continue
		}
		kept += line + "\n"
	}
	return kept, ready
}

func dialNotify(address string) (int, error) {
	fail := func(err error) (int, error) {
		return -1, &errdefs.Error{Op: "connect to", What: "$NOTIFY_SOCKET " + address, Err: err}
	}
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	// "@" in front is an abstract address for both sd_notify(3) and x/sys
	if err := unix.Connect(s, &unix.SockaddrUnix{Name: address}); err != nil {
		_ = unix.Close(s)
		return fail(err)
	}
	return s, nil
}

// notifyBarrier waits until the manager has read what was sent, at most 30 s (sd_notify_barrier(3)): it looks up who has
// sent a message, and this process is about to end.
func notifyBarrier(to int) error {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	defer unix.Close(p[0]) //nolint:errcheck // read only
	err := unix.Sendmsg(to, []byte("BARRIER=1"), unix.UnixRights(p[1]), nil, 0)
	_ = unix.Close(p[1])
	if err != nil {
		return nil // it has gone
	}
	w := []unix.PollFd{{Fd: int32(p[0]), Events: unix.POLLIN}}
	for until := time.Now().Add(30 * time.Second); ; {
		_, err := unix.Poll(w, int(max(time.Until(until).Milliseconds(), 0)))
		if err != unix.EINTR {
			return nil
		}
	}
}
