package network

import (
	"fmt"
	"os"
	"runtime"

	"github.com/onggi/onggi/errdefs"
	"golang.org/x/sys/unix"
)

// NewNamespace makes a network namespace with loopback up and returns its handle. It leaves no other trace: the kernel
// takes the namespace away when the last handle is closed and the last process in it has ended.
//
// Preconditions: CAP_SYS_ADMIN in the user namespace that owns the calling process; /proc is mounted.
// Source: namespaces(7), network_namespaces(7).
func NewNamespace() (*os.File, error) {
	var made *os.File
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		f, err := threadNamespace()
		if err != nil {
			return err
		}
		if err := loopbackUp(); err != nil {
			_ = f.Close()
			return err
		}
		made = f
		return nil
	})
	if err != nil {
		if made != nil {
			_ = made.Close()
		}
		fix := ""
		if errdefs.KindOf(err) == errdefs.Forbidden {
			fix = "run as root, or with CAP_SYS_ADMIN"
		}
		return nil, &errdefs.Error{Op: "make a network namespace", Kind: errdefs.KindOf(err), Fix: fix, Err: err}
	}
	return made, nil
}

// inside runs f on a thread that is in the namespace. Sockets that f opens stay there; f must not start goroutines.
func inside(netns *os.File, f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter the network namespace: %w", err)
		}
		return f()
	})
}

// onThread runs f, which may change its thread's network namespace, on a thread of its own. The thread is put back
// into the namespace that it came from; when that fails it is thrown away (a goroutine that ends while it is locked
// takes its thread with it), so that no other goroutine ever finds itself in a foreign namespace.
func onThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := threadNamespace()
		if err != nil {
			runtime.UnlockOSThread()
			result <- err
			return
		}
		defer home.Close()
		err = f()
		if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back == nil {
			runtime.UnlockOSThread()
		} else if err == nil {
			err = fmt.Errorf("leave the network namespace: %w", back)
		}
		result <- err
	}()
	return <-result
}

// threadNamespace returns a handle to the calling thread's network namespace. The caller has locked its thread.
func threadNamespace() (*os.File, error) {
	const path = "/proc/thread-self/ns/net"
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	// Not os.Open: a namespace handle has nothing to poll, and the attempt to register it costs a system call.
	return os.NewFile(uintptr(fd), "net namespace"), nil
}

// loopbackUp brings up lo, whose index is 1 in every namespace (LOOPBACK_IFINDEX in linux/net_namespace.h).
func loopbackUp() error {
	s, err := openSocket(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer s.close()
	w := s.start()
	w.message(unix.RTM_SETLINK, unix.NLM_F_ACK, linkHeader(unix.AF_UNSPEC, 1, unix.IFF_UP, unix.IFF_UP))
	if _, err := s.do(w); err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	return nil
}
