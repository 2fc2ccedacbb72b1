package mount

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/onggi/onggi/errdefs"
	"golang.org/x/sys/unix"
)

// alone runs f in a mount namespace of one thread, which ends with it: nothing that f mounts can be left.
func alone(t *testing.T, f func() error) error {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	res := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The first thread never ends: occupy it and take another.
			res <- alone(t, f)
			runtime.UnlockOSThread()
			return
		}
		err := unix.Unshare(unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err == nil {
			err = f()
		}
		res <- err
	}()
	return <-res
}

// layer makes a directory with one file of its name.
func layer(t *testing.T, dir, name string) string {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.MkdirAll(p, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(p, "from-"+filepath.Base(name)), []byte(name), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(p, "common"), []byte(filepath.Base(name)), 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}

func read(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return "!" + err.Error()
	}
	return string(b)
}

func mountedAt(dir string) int {
	b, _ := os.ReadFile("/proc/thread-self/mountinfo")
	return strings.Count(string(b), " "+dir)
}

func TestAll(t *testing.T) {
	dir := t.TempDir()
	a, b := layer(t, dir, "a"), layer(t, dir, "b")
	// Longer than a value of fsconfig(2) can be: made the old way.
	long := strings.Repeat("x", 200)
	la, lb := layer(t, dir, long+"/"+long+"/a"), layer(t, dir, long+"/"+long+"/b")
	mk := func(name string) string {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(p, 0o755); err != nil {
			t.Fatal(err)
		}
		return p
	}
	var many []string
	for i := range 60 {
		many = append(many, layer(t, dir, fmt.Sprintf("m/%02d", i)))
	}
	for _, c := range []struct {
		name   string
		mounts []Mount
		common string
		files  []string
		rw     bool
	}{
		{"overlay", []Mount{{Type: "overlay", Overlay: &Overlay{Lower: []string{b, a}, Upper: mk("u1"), Work: mk("w1")}}}, "b", []string{"from-a", "from-b"}, true},
		{"volatile", []Mount{{Type: "overlay", Overlay: &Overlay{Lower: []string{a}, Upper: mk("u2"), Work: mk("w2"), Volatile: true}}}, "a", []string{"from-a"}, true},
		{"read-only overlay", []Mount{{Type: "overlay", Overlay: &Overlay{Lower: []string{a, b}}}}, "a", []string{"from-a", "from-b"}, false},
		{"one lower layer is a read-only bind", []Mount{{Type: "overlay", Overlay: &Overlay{Lower: []string{b}}}}, "b", []string{"from-b"}, false},
		{
			"long paths",
			[]Mount{{Type: "overlay", Overlay: &Overlay{Lower: []string{lb, la}, Upper: mk(long + "/" + long + "/u"), Work: mk(long + "/" + long + "/w")}}},
			"b",
			[]string{"from-a", "from-b"},
			true,
		},
		{"sixty layers", []Mount{{Type: "overlay", Overlay: &Overlay{Lower: many, Upper: mk("u3"), Work: mk("w3")}}}, "00", []string{"from-00", "from-59"}, true},
		{"bind", []Mount{{Type: "bind", Source: a}}, "a", []string{"from-a"}, true},
		{"bind, read-only", []Mount{{Type: "bind", Source: a, Options: []string{"ro", "nosuid"}}}, "a", []string{"from-a"}, false},
		{"tmpfs in an overlay", []Mount{
			{Type: "overlay", Overlay: &Overlay{Lower: []string{a, filepath.Dir(mk("l4/sub"))}, Upper: mk("u4"), Work: mk("w4")}},
			{Type: "tmpfs", Source: "tmpfs", Target: "/../sub/", Options: []string{"size=1m"}},
		}, "a", []string{"from-a", "sub"}, true},
	} {
		at := mk("at")
		if err := alone(t, func() error {
			if err := All(c.mounts, at); err != nil {
				return err
			}
			if got := read(filepath.Join(at, "common")); got != c.common {
				t.Errorf("%s: common is of %q, want %q", c.name, got, c.common)
			}
			for _, f := range c.files {
				if _, err := os.Lstat(filepath.Join(at, f)); err != nil {
					t.Errorf("%s: %v", c.name, err)
				}
			}
			if err := os.WriteFile(filepath.Join(at, "new"), nil, 0o600); (err == nil) != c.rw {
				t.Errorf("%s: writing: %v, want it writable %v", c.name, err, c.rw)
			}
			if n := mountedAt(at); n != len(c.mounts) {
				t.Errorf("%s: %d mounts, want %d", c.name, n, len(c.mounts))
			}
			return nil
		}); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if n := mountedAt(filepath.Join(dir, "at")); n != 0 {
		t.Errorf("%d mounts are seen outside", n)
	}
}

func TestAllTakesBackWhatItMade(t *testing.T) {
	dir := t.TempDir()
	a := layer(t, dir, "a")
	at := filepath.Join(dir, "at")
	if err := os.Mkdir(at, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		last Mount
		kind errdefs.Kind
	}{
		{"no such source", Mount{Type: "bind", Source: "/no/such"}, errdefs.NotFound},
		{"no such target", Mount{Type: "tmpfs", Target: "nowhere"}, errdefs.NotFound},
		{"no such file system", Mount{Type: "nosuchfs"}, errdefs.Unsupported},
		{"no layers", Mount{Type: "overlay", Overlay: &Overlay{}}, errdefs.InvalidArgument},
		{"missing layer", Mount{Type: "overlay", Overlay: &Overlay{Lower: []string{"/no/such/b", a}}}, errdefs.NotFound},
		{"unknown option", Mount{Type: "tmpfs", Options: []string{"frobnicate"}}, errdefs.InvalidArgument},
		{"option of a bind", Mount{Type: "bind", Source: a, Options: []string{"size=1"}}, errdefs.Unsupported},
	} {
		if err := alone(t, func() error {
			err := All([]Mount{{Type: "bind", Source: a}, {Type: "tmpfs", Source: "tmpfs"}, c.last}, at)
			if !errdefs.Is(err, c.kind) || !strings.Contains(err.Error(), at) {
				t.Errorf("%s: got %v (%v), want %v that names the place", c.name, err, errdefs.KindOf(err), c.kind)
			}
			if n := mountedAt(at); n != 0 {
				t.Errorf("%s: %d mounts are left", c.name, n)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLegacyOverlay(t *testing.T) {
	dir, data, err := LegacyOverlay(&Overlay{Lower: []string{"/s/layers/b/fs", "/s/layers/a/fs"}, Upper: "/s/c/u", Work: "/s/c/w", Volatile: true})
	if want := "lowerdir=layers/b/fs:layers/a/fs,upperdir=c/u,workdir=c/w,volatile"; err != nil || dir != "/s" || data != want {
		t.Errorf("got %q, %q, %v; want /s and %q", dir, data, err, want)
	}
	if _, data, _ = LegacyOverlay(&Overlay{Lower: []string{"/s/a:b", "/s/c,d"}}); !strings.Contains(data, `a\:b`) || !strings.Contains(data, `c\,d`) {
		t.Errorf("separators in paths are not escaped: %q", data)
	}
	var many []string
	for i := range 1200 {
		many = append(many, fmt.Sprintf("/store/layers/%04d", i))
	}
	if _, _, err := LegacyOverlay(&Overlay{Lower: many}); !errdefs.Is(err, errdefs.Exhausted) || errdefs.FixOf(err) == "" {
		t.Errorf("too many for a page: %v, want exhausted, with a fix", err)
	}
}
