package pathrs

import (
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRemoveAll(t *testing.T) {
	_, dir := tree(t)
	top, err := OpenRoot(filepath.Dir(dir))
	if err != nil {
		t.Fatal(err)
	}
	defer top.Close()
	// A tree deeper than PATH_MAX allows and wider than one read of the directory.
	fd, err := unix.Open(filepath.Join(dir, "a"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	for i := 0; err == nil && i < 3000; i++ {
		if err = unix.Mkdirat(fd, "deeper", 0o700); err != nil {
			break
		}
		var next int
		next, err = unix.Openat(fd, "deeper", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		unix.Close(fd)
		fd = next
	}
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	for i := range 3000 {
		write(t, filepath.Join(dir, "run", strconv.Itoa(i)), "")
	}
	var both sync.WaitGroup // two may remove the same tree
	for range 2 {
		both.Add(1)
		go func() {
			defer both.Done()
			if err := RemoveAll(top, "root"); err != nil {
				t.Error(err)
			}
		}()
	}
	both.Wait()
	if err := RemoveAll(top, "root"); err != nil {
		t.Error(err)
	}
	names, err := os.ReadDir(top.Name())
	if err != nil {
		t.Fatal(err)
	}
	if len(names) != 2 {
		t.Errorf("left: %v, want outside and secret", names)
	}
	if _, err := os.Stat(filepath.Join(top.Name(), "outside/secret")); err != nil {
		t.Errorf("a link was followed: %v", err)
	}
}
