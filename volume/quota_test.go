package volume

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/onggi/onggi/errdefs"
	"golang.org/x/sys/unix"
)

// TestSizeIsRefused where the file system has no project quotas: nothing of the volume is left.
func TestSizeIsRefused(t *testing.T) {
	s, err := Open(filepath.Join(small(t, "4m"), "volumes"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Create("data", "", nil, map[string]string{"size": "1m"})
	if !errdefs.Is(err, errdefs.Unsupported) || !strings.Contains(errdefs.FixOf(err), "prjquota") {
		t.Errorf("got %v, want unsupported with a fix", err)
	}
	if got := entries(t, s.dir); got != "lock" {
		t.Errorf("left: %s", got)
	}
}

// quotaDisk mounts an ext4 with project quotas, or skips.
func quotaDisk(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root to mount")
	}
	image, dir := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 64<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-O", "quota,project", "-E", "quotatype=prjquota", image).CombinedOutput(); err != nil {
		t.Skipf("mkfs.ext4: %v: %s", err, out)
	}
	if out, err := exec.Command("mount", "-o", "loop,prjquota", image, dir).CombinedOutput(); err != nil {
		t.Skipf("the kernel has no project quotas for ext4 (CONFIG_QFMT_V2): %s", out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return dir
}

// bounded runs f as containers run: without CAP_SYS_RESOURCE. The thread ends with it.
func bounded(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var d [2]unix.CapUserData
		err := unix.Capget(&h, &d[0])
		if err == nil {
			d[0].Effective &^= 1 << unix.CAP_SYS_RESOURCE
			err = unix.Capset(&h, &d[0])
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

func TestSize(t *testing.T) {
	s, err := Open(filepath.Join(quotaDisk(t), "volumes"))
	if err != nil {
		t.Fatal(err)
	}
	v, err := s.Create("data", "", nil, map[string]string{"size": "1m"})
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, n int) error {
		return bounded(func() error { return os.WriteFile(filepath.Join(v.Path, name), make([]byte, n), 0o600) })
	}
	if err := write("half", 500_000); err != nil {
		t.Error(err)
	}
	if err := write("more", 1_000_000); err == nil || !strings.Contains(err.Error(), unix.EDQUOT.Error()) {
		t.Errorf("beyond the size: %v, want EDQUOT", err)
	}
	if used, limit, err := s.Usage(v); err != nil || limit != 1<<20 || used < 500_000 || used > 1<<20 {
		t.Errorf("usage: %d of %d, %v", used, limit, err)
	}
	// Another volume has its own; the copy of an image's content counts, and fails as a whole.
	other, err := s.Create("other", "", nil, map[string]string{"size": "1m"})
	if err != nil || other.Project == v.Project {
		t.Fatal(other, err)
	}
	src := t.TempDir()
	for _, n := range []string{"a", "b", "c"} {
		if err := os.WriteFile(filepath.Join(src, n), make([]byte, 500_000), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := populate(t, s, other, src, unix.O_PATH); err == nil || entries(t, other.Path) != "" {
		t.Errorf("too much content: %v: %s", err, entries(t, other.Path))
	}
	if err := os.Remove(filepath.Join(src, "c")); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(src, "b"), 100_000); err != nil {
		t.Fatal(err)
	}
	if err := populate(t, s, other, src, unix.O_PATH); err != nil || entries(t, other.Path) != "a b" {
		t.Errorf("content that fits: %v: %s", err, entries(t, other.Path))
	}
	if used, _, err := s.Usage(other); err != nil || used < 600_000 {
		t.Errorf("usage with content: %d, %v", used, err)
	}
	// The bound goes with the volume.
	to := disposal(t)
	if err := s.Discard("data", to); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Restore(to.ID); err != nil {
		t.Fatal(err)
	}
	if err := write("more", 1_000_000); err == nil {
		t.Error("brought back, it has no bound")
	}
	if err := s.Remove("data"); err != nil {
		t.Fatal(err)
	}
	if used, limit, err := s.Usage(&Volume{Name: "other", Project: v.Project}); err == nil && (limit != 0 || used != 0) {
		t.Errorf("left of the removed one: %d of %d", used, limit)
	}
}
