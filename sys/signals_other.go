//go:build !amd64 && !arm64

package sys

import (
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// sigaction is what Release needs: here the channel that os/signal sends to.
type sigaction struct{ c chan os.Signal }

func catch(s syscall.Signal, fd int) (sigaction, error) {
	c := make(chan os.Signal, 16)
	signal.Notify(c, s)
	if fd >= 0 {
		go func() {
			for range c {
				_, _ = unix.Write(fd, []byte{byte(s)})
			}
		}()
	}
	return sigaction{c}, nil
}

func uncatch(_ syscall.Signal, old *sigaction) {
	signal.Stop(old.c)
	close(old.c)
}
