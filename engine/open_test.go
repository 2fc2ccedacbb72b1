package engine

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/onggi/onggi/errdefs"
	"golang.org/x/sys/unix"
)

// TestAnotherUserIsToldWhatToDo: whoever is not root learns so at once, not by what the kernel refuses half-way.
func TestAnotherUserIsToldWhatToDo(t *testing.T) {
	dir, err := os.MkdirTemp("/var/tmp", "onggi-engine-test.") // t.TempDir may lie where others may not go
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	closed := filepath.Join(dir, "closed")
	if err := os.Mkdir(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	errs := make(chan error, 2)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread that has another user ends with the goroutine
		for _, id := range []uintptr{unix.SYS_SETRESGID, unix.SYS_SETRESUID} {
			if _, _, e := unix.RawSyscall(id, 65534, 65534, 65534); e != 0 {
				errs <- e
				errs <- e
				return
			}
		}
		_, err := Open(Options{Root: filepath.Join(closed, "root"), RunRoot: filepath.Join(dir, "run"), Self: []string{"/proc/self/exe"}})
		errs <- err
		e, err := Open(Options{Root: filepath.Join(dir, "root"), RunRoot: filepath.Join(dir, "run"), Self: []string{"/proc/self/exe"}})
		if err == nil {
			err = e.make()
		}
		errs <- err
	}()
	for _, what := range []string{"a closed store", "a new store"} {
		if err := <-errs; !errdefs.Is(err, errdefs.Forbidden) || !strings.Contains(err.Error(), "user 65534") || !strings.Contains(errdefs.FixOf(err), "sudo") {
			t.Errorf("%s: got %v", what, err)
		}
	}
}
