package mount

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// inDirectory runs f in the calling thread's mount namespace with dir as working directory. The working directory
// belongs to the whole process, so f runs on a thread of its own, which is thrown away afterwards.
func inDirectory(dir string, f func() error) error {
	ns, err := unix.Open("/proc/thread-self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(ns) //nolint:errcheck // a handle
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return err
		}
		if err := unix.Setns(ns, unix.CLONE_NEWNS); err != nil {
			return err
		}
		if err := unix.Chdir(dir); err != nil {
			return err
		}
		return f()
	})
}

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
