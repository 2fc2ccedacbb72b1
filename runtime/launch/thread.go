package launch

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// onThread runs f on a thread that ends afterwards, whatever f did to it. That thread is never the process's first: it
// would not end, and /proc/self shows what it is in.
func onThread(f func() error) error {
	res := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			res <- onThread(f) // this goroutine occupies the first thread meanwhile
			runtime.UnlockOSThread()
			return
		}
		res <- f() // never unlocked: the thread ends with this goroutine
	}()
	return <-res
}
