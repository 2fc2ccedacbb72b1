package monitor

import (
	"io"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"github.com/onggi/onggi/errdefs"
	"golang.org/x/sys/unix"
)

// A sleeper is what a container has instead of a monitor while it rests between two runs: a process that waits and is then
// replaced by a command. It stands behind a file: it holds the file's lock, so that others know that somebody will come
// back to it (Asleep), and ends without doing anything when the file is removed.

// SpawnSleeper starts a sleeper, detached as Spawn's monitor is: after pause it executes argv (argv[0] is a path). path is
// the file it stands behind, which exists.
func SpawnSleeper(binary, path string, pause time.Duration, argv []string) error {
	fail := func(err error) error {
		return &errdefs.Error{Op: "start a sleeper", What: path, Kind: errdefs.KindOf(err), Err: err}
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return fail(err)
	}
	defer null.Close()
	fd := null.Fd()
	pidfd := -1
	args := append([]string{binary, "monitor", "--sleep", path, strconv.FormatInt(pause.Milliseconds(), 10)}, argv...)
	pid, err := syscall.ForkExec(binary, args, &syscall.ProcAttr{
		Dir: "/", Env: environment(), Files: []uintptr{fd, fd, fd}, Sys: &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd},
	})
	runtime.KeepAlive(null)
	if err != nil {
		return fail(err)
	}
	reap(pid, pidfd)
	return nil
}

// Asleep reports whether a sleeper stands behind the file.
func Asleep(path string) bool {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	l := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	return unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &l) == nil && l.Type != unix.F_UNLCK
}

// Sleep is the sleeper's process: args are PATH MILLISECONDS COMMAND...; it returns the exit code of the process, or not at
// all when it becomes the command.
func Sleep(args []string) int {
	if len(args) < 3 {
		return errdefs.InvalidArgument.ExitCode()
	}
	path, argv := args[0], args[2:]
	ms, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil || ms < 0 {
		return errdefs.InvalidArgument.ExitCode()
	}
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return 0 // taken back already
	}
	l := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &l); err != nil {
		return 0 // there is another one
	}
	if !rest(f, path, time.Duration(ms)*time.Millisecond) {
		return 0
	}
	// The lock goes with the execution; the command looks at the record under the container's lock.
	_ = syscall.Exec(argv[0], argv, childEnvironment())
	return errdefs.Internal.ExitCode() // a sweep finds the file without a sleeper
}

// rest waits; false when the file was removed meanwhile. Without inotify it looks now and then.
func rest(f *os.File, path string, pause time.Duration) bool {
	end := time.Now().Add(pause)
	every := pause
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err == nil {
		if _, err = unix.InotifyAddWatch(fd, path, unix.IN_ATTRIB|unix.IN_DELETE_SELF); err != nil {
			every = 100 * time.Millisecond
		}
	} else {
		every = 100 * time.Millisecond
	}
	if pause > time.Second {
		tidy(true) // a second is long enough to give memory back
	}
	var buf [512]byte
	for {
		var st unix.Stat_t
		if unix.Fstat(int(f.Fd()), &st) != nil || st.Nlink == 0 {
			return false
		}
		left := time.Until(end)
		if left <= 0 {
			return true
		}
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if fd < 0 {
			fds = nil
		}
		n, _ := unix.Poll(fds, int(min(left, every).Milliseconds())+1)
		if n > 0 {
			_, _ = unix.Read(fd, buf[:])
		}
	}
}
