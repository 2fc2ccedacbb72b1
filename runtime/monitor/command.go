package monitor

import (
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/sys"
	"golang.org/x/sys/unix"
)

// cleanUpTime is how long Config.Cleanup may take. A clean-up that hangs is left to the engine's next sweep.
const cleanUpTime = 2 * time.Minute

// cleanUp runs Config.Cleanup and returns its exit status. Preconditions: the lock is released; the main goroutine.
func (s *server) cleanUp() int {
	s.reaping.Lock()
	defer s.reaping.Unlock()
	var ws unix.WaitStatus
	err := s.steps.Do("cleanup", func() (err error) {
		ws, err = execute(s.cfg.Cleanup, nil, cleanUpTime)
		return err
	}, nil)
	if err != nil {
		return errdefs.KindOf(err).ExitCode()
	}
	return ws.ExitStatus()
}

// execute runs argv (argv[0] is a path) to its end. files are its descriptors from 0 on; missing ones of the first
// three are /dev/null. After timeout, if there is one, it is killed. Preconditions: server.reaping is held.
func execute(argv []string, files []uintptr, timeout time.Duration) (unix.WaitStatus, error) {
	fail := func(why string, err error) error {
		return &errdefs.Error{Op: "execute", What: argv[0], Kind: errdefs.KindOf(err), Why: why, Err: err}
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, fail("", err)
	}
	defer null.Close()
	for len(files) < 3 {
		files = append(files, null.Fd())
	}
	pidfd := -1
	pid, err := syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{
		Dir: "/", Env: childEnvironment(), Files: files, Sys: &syscall.SysProcAttr{PidFD: &pidfd},
	})
	if err != nil {
		return 0, fail("", err)
	}
	if timeout > 0 {
		t := time.AfterFunc(timeout, func() { _ = unix.Kill(pid, unix.SIGKILL) })
		defer t.Stop() // before the pid is free again: a timer that fires later would hit somebody else
	}
	if pidfd >= 0 {
		waitPidfd(pidfd)
	}
	var ws unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &ws, 0, nil)
		if err == nil {
			return ws, nil
		}
		if err != unix.EINTR {
			return 0, fail("", err)
		}
	}
}

// childEnvironment is our own without what only concerns this process.
func childEnvironment() []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "GOMAXPROCS=") {
			env = append(env, kv)
		}
	}
	return env
}

// reapOrphans reaps ended children other than those of except, which somebody else waits for. Preconditions: server.reaping is
// held, so that no runtime's operation waits for a child of its own.
func reapOrphans(except ...int) {
	for {
		pid, err := sys.Zombie()
		if err != nil || pid == 0 || slices.Contains(except, pid) {
			return
		}
		if _, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); err != nil && err != unix.EINTR {
			return
		}
	}
}
