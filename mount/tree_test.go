package mount

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestTree mounts an overlay that no mount table shows, by the new API and by mount(2).
func TestTree(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount")
	}
	dir := t.TempDir()
	for _, d := range []string{"one", "two"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, d, d), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	long := filepath.Join(dir, strings.Repeat("l", 200), strings.Repeat("m", 200)) // too long for fsconfig(2): mount(2) is used
	if err := os.MkdirAll(long, 0o755); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, lower := range [][]string{{dir + "/one", dir + "/two"}, {dir + "/one", dir + "/two", long}} {
		f, err := Tree(Mount{Type: "overlay", Options: []string{"ro", "redirect_dir=follow"}, Overlay: &Overlay{Lower: lower}})
		if err != nil {
			t.Fatal(err)
		}
		names, err := f.Readdirnames(-1)
		if err != nil || len(names) != 2 {
			t.Errorf("the tree shows %v: %v", names, err)
		}
		if fd, err := unix.Openat(int(f.Fd()), "new", unix.O_CREAT|unix.O_WRONLY, 0o644); err != unix.EROFS {
			t.Errorf("writing: %d, %v", fd, err)
		}
		after, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil || string(before) != string(after) {
			t.Errorf("the mount is seen: %v\n%s", err, after)
		}
		f.Close()
	}
	if _, err := Tree(Mount{Type: "bind", Source: dir + "/nosuch"}); err == nil {
		t.Error("a tree of nothing")
	}
}

// TestDetached: a file system that is nowhere; a process in another mount namespace gives it a place.
func TestDetached(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount")
	}
	before, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	f, err := Detached(Mount{Type: "tmpfs", Source: "x", Options: []string{"size=1m", "nosuid", "_netdev", "x-any=1", "rw"}})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dir := t.TempDir()
	err = inNamespace(func() error {
		if err := unix.MoveMount(int(f.Fd()), "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, "file"), []byte("x"), 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	if after, _ := os.ReadFile("/proc/self/mountinfo"); string(after) != string(before) {
		t.Errorf("the mounts have changed:\n%s", after)
	}
	for _, m := range []Mount{
		{Type: "bind", Source: "/"}, {Type: "tmpfs", Target: "x"}, {Type: "nosuchfs", Source: "x"}, {Type: "tmpfs", Options: []string{"nosuchoption=1"}},
	} {
		if f, err := Detached(m); err == nil {
			_ = f.Close()
			t.Errorf("%+v: no error", m)
		}
	}
}

// TestParts: files of a tmpfs that nobody sees, each with a mount of its own.
func TestParts(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount")
	}
	fill := func(root *os.File) error {
		dir := root.Name()
		for _, n := range []string{"one", "two"} {
			if err := os.WriteFile(filepath.Join(dir, n), []byte(n), 0o600); err != nil {
				return err
			}
		}
		return os.Symlink("/etc/passwd", filepath.Join(dir, "out"))
	}
	tmpfs := Mount{Type: "tmpfs", Source: "parts", Options: []string{"size=1m"}}
	parts, err := Parts(tmpfs, fill, []string{"one", "two"})
	if err != nil {
		t.Fatal(err)
	}
	place := filepath.Join(t.TempDir(), "place")
	if err := os.WriteFile(place, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, p := range parts {
		err := inNamespace(func() error {
			if err := unix.MoveMount(int(p.Fd()), "", unix.AT_FDCWD, place, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
				return err
			}
			if b, err := os.ReadFile(place); err != nil || string(b) != p.Name() {
				t.Errorf("%s holds %q, %v", p.Name(), b, err)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"out", "../one", "none"} {
		if _, err := Parts(tmpfs, fill, []string{"one", bad}); err == nil {
			t.Errorf("%s: no error", bad)
		}
	}
	if b, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(b), " parts ") {
		t.Errorf("a mount is left on the host: %v", err)
	}
}
