package pathrs

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/onggi/onggi/errdefs"
	"golang.org/x/sys/unix"
)

// tree makes outside/secret and a root beside it with links of every kind.
func tree(t *testing.T) (root *os.File, dir string) {
	t.Helper()
	top := t.TempDir()
	dir = filepath.Join(top, "root")
	for _, d := range []string{"etc", "a/b/c", "run", "proc"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(top, "outside"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(top, "outside/secret"), "secret")
	write(t, filepath.Join(top, "secret"), "secret")
	write(t, filepath.Join(dir, "etc/passwd"), "root:x:0:0::/:/bin/sh\n")
	for _, l := range [][2]string{
		{"/etc", "abs"},
		{"../../../../etc", "a/up"},
		{top + "/outside", "out"},
		{"../outside", "relout"},
		{"../../secret", "a/sec"},
		{"loop2", "loop1"},
		{"loop1", "loop2"},
		{"/proc/self/root", "magic"},
		{"/var/gone", "dangling"},
		{"../gone/deep", "a/dangling"},
		{"etc/passwd", "file"},
		{"dangle2", "dangle1"},
		{"/new/place", "dangle2"},
		{"../../../../../escaped", "a/b/escape"},
	} {
		if err := os.Symlink(l[0], filepath.Join(dir, l[1])); err != nil {
			t.Fatal(err)
		}
	}
	root, err := OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root, dir
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestOpenStaysInside(t *testing.T) {
	root, dir := tree(t)
	for _, c := range []struct {
		path            string
		want            string // below root, or "" for an error
		beneath         bool   // OpenBeneath gives the same
		kind            errdefs.Kind
		beneathAnswered errdefs.Kind
	}{
		{"", "", true, 0, 0},
		{".", "", true, 0, 0},
		{"/", "", false, 0, errdefs.InvalidArgument},
		{"etc/passwd", "etc/passwd", true, 0, 0},
		{"/etc/passwd", "etc/passwd", false, 0, errdefs.InvalidArgument},
		{"../../../etc/passwd", "etc/passwd", false, 0, errdefs.InvalidArgument},
		{"a/b/../../etc", "etc", true, 0, 0},
		{"abs/passwd", "etc/passwd", false, 0, errdefs.InvalidArgument},
		{"a/up/passwd", "etc/passwd", false, 0, errdefs.InvalidArgument},
		{"file", "etc/passwd", true, 0, 0},
		{"out/secret", "", false, errdefs.NotFound, errdefs.InvalidArgument},
		{"relout/secret", "", false, errdefs.NotFound, errdefs.InvalidArgument},
		{"a/sec", "", false, errdefs.NotFound, errdefs.InvalidArgument},
		{"loop1", "", false, errdefs.InvalidArgument, errdefs.InvalidArgument},
		{"magic", "", false, errdefs.NotFound, errdefs.InvalidArgument},
		{"etc/passwd/x", "", false, errdefs.InvalidArgument, errdefs.InvalidArgument},
		{"nothing", "", false, errdefs.NotFound, errdefs.NotFound},
	} {
		for _, beneath := range []bool{false, true} {
			open, wantKind := Open, c.kind
			if beneath {
				open = OpenBeneath
				if !c.beneath {
					wantKind = c.beneathAnswered
				}
			}
			f, err := open(root, c.path, unix.O_PATH, 0)
			if wantKind != 0 {
				if f != nil {
					f.Close()
				}
				if !errdefs.Is(err, wantKind) {
					t.Errorf("open(%q, beneath=%v): got %v, want kind %v", c.path, beneath, err, wantKind)
				}
				continue
			}
			if err != nil {
				t.Errorf("open(%q, beneath=%v): %v", c.path, beneath, err)
				continue
			}
			if got, want := where(t, f), filepath.Join(dir, c.want); got != want {
				t.Errorf("open(%q, beneath=%v) is %s, want %s", c.path, beneath, got, want)
			}
			f.Close()
		}
	}
}

// where says what the kernel calls the object behind f.
func where(t *testing.T, f *os.File) string {
	t.Helper()
	s, err := os.Readlink("/proc/self/fd/" + itoa(int(f.Fd())))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func itoa(n int) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return itoa(n/10) + itoa(n%10)
}

func TestMagicLinksAreRefused(t *testing.T) {
	root, err := OpenRoot("/")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if f, err := Open(root, "proc/self/root/etc", unix.O_PATH, 0); !errdefs.Is(err, errdefs.InvalidArgument) {
		if f != nil {
			f.Close()
		}
		t.Errorf("through /proc/self/root: got %v, want a refusal", err)
	}
}

func TestMkdirAll(t *testing.T) {
	for _, c := range []struct {
		path string
		want string
		kind errdefs.Kind
	}{
		{"x/y/z", "x/y/z", 0},
		{"/x/y", "x/y", 0},
		{"a/b/c/d/./e//f", "a/b/c/d/e/f", 0},
		{"../../up", "up", 0},
		{"out/x", "", 0}, // the link's target, made inside
		{"dangling/x", "var/gone/x", 0},
		{"a/dangling", "gone/deep", 0},
		{"dangle1/q", "new/place/q", 0},
		{"a/b/escape/x", "escaped/x", 0},
		{"abs/new", "etc/new", 0},
		{"new/../x", "", errdefs.InvalidArgument},
		{"loop1/x", "", errdefs.InvalidArgument},
		{"file/x", "", errdefs.InvalidArgument},
		{"etc/passwd", "", errdefs.InvalidArgument},
		{strings.Repeat("n", 256), "", errdefs.InvalidArgument},
	} {
		root, dir := tree(t)
		f, err := MkdirAll(root, c.path, 0o755)
		if c.kind != 0 {
			if !errdefs.Is(err, c.kind) {
				t.Errorf("MkdirAll(%q): got %v, want kind %v", c.path, err, c.kind)
			}
			continue
		}
		if err != nil {
			t.Errorf("MkdirAll(%q): %v", c.path, err)
			continue
		}
		got := where(t, f)
		f.Close()
		want := filepath.Join(dir, c.want)
		if c.path == "out/x" {
			want = filepath.Join(dir, filepath.Dir(dir), "outside/x")
		}
		if got != want {
			t.Errorf("MkdirAll(%q) made %s, want %s", c.path, got, want)
		}
		if names, _ := os.ReadDir(filepath.Dir(dir)); len(names) != 3 {
			t.Errorf("MkdirAll(%q): beside the root there are now %v", c.path, names)
		}
	}
}

func TestReadFile(t *testing.T) {
	root, dir := tree(t)
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil && err != unix.EPERM {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "empty"), "")
	big := strings.Repeat("0123456789", 1000)
	write(t, filepath.Join(dir, "big"), big)
	for _, c := range []struct {
		path  string
		limit int64
		want  string
		kind  errdefs.Kind
	}{
		{"abs/passwd", 1 << 20, "root:x:0:0::/:/bin/sh\n", 0},
		{"empty", 0, "", 0},
		{"big", 10000, big, 0},
		{"big", 1 << 40, big, 0},
		{"big", 9999, "", errdefs.Exhausted},
		{"big", 0, "", errdefs.Exhausted},
		{"fifo", 100, "", errdefs.InvalidArgument},
		{"null", 100, "", errdefs.InvalidArgument},
		{"etc", 100, "", errdefs.InvalidArgument},
		{"a/sec", 100, "", errdefs.NotFound},
	} {
		got, err := ReadFile(root, c.path, c.limit)
		if string(got) != c.want || (c.kind == 0) != (err == nil) || c.kind != 0 && !errdefs.Is(err, c.kind) {
			t.Errorf("ReadFile(%q, %d) = %q, %v; want %q, kind %v", c.path, c.limit, got, err, c.want, c.kind)
		}
	}
}

func TestReadlink(t *testing.T) {
	root, _ := tree(t)
	for path, want := range map[string]string{"abs": "/etc", "a/up": "../../../../etc", "loop1": "loop2"} {
		if got, err := Readlink(root, path); err != nil || got != want {
			t.Errorf("Readlink(%q) = %q, %v; want %q", path, got, err, want)
		}
	}
	if _, err := Readlink(root, "etc"); err == nil {
		t.Error("Readlink of a directory: want an error")
	}
}

// TestSwappingAttacker is the race of CVE-2021-30465: one keeps exchanging a directory for a link that leads out,
// while we resolve through it. Nothing may ever be found or made outside.
func TestSwappingAttacker(t *testing.T) {
	root, dir := tree(t)
	outside := filepath.Join(filepath.Dir(dir), "outside")
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(dir, "v/inner/deep"), 0o755))
	write(t, filepath.Join(dir, "v/inner/secret"), "inside")
	must(os.Symlink("../../outside", filepath.Join(dir, "v/evil")))
	must(os.MkdirAll(filepath.Join(dir, "pit"), 0o755))

	inner, err := os.Open(dir + "/v/inner")
	must(err)
	defer inner.Close()
	pit, err := os.Open(dir + "/pit")
	must(err)
	defer pit.Close()

	stop := make(chan struct{})
	var attackers sync.WaitGroup
	attack := func(f func()) {
		attackers.Add(1)
		go func() {
			defer attackers.Done()
			for {
				select {
				case <-stop:
					return
				default:
					f()
				}
			}
		}()
	}
	attack(func() { // directory <-> link
		_ = unix.Renameat2(unix.AT_FDCWD, dir+"/v/inner", unix.AT_FDCWD, dir+"/v/evil", unix.RENAME_EXCHANGE)
	})
	attack(func() { // moves a directory up and down below the feet of ".."
		_ = unix.Renameat(int(inner.Fd()), "deep", int(pit.Fd()), "deep")
		_ = unix.Renameat(int(pit.Fd()), "deep", int(inner.Fd()), "deep")
	})
	attack(func() { // what MkdirAll makes becomes a link
		_ = os.RemoveAll(dir + "/made")
		_ = os.Symlink("../outside", dir+"/made")
		_ = os.Remove(dir + "/made")
	})
	inside := 0
	for range 3000 {
		b, err := ReadFile(root, "v/inner/deep/../secret", 100)
		if err == nil && !bytes.Equal(b, []byte("inside")) {
			t.Fatalf("read %q from outside", b)
		}
		if err == nil {
			inside++
		}
		if f, err := MkdirAll(root, "made/x/y", 0o755); err == nil {
			f.Close()
		}
		if f, err := MkdirAll(root, "v/inner/made/x", 0o755); err == nil {
			f.Close()
		}
		if f, err := Open(root, "v/inner/new", unix.O_CREAT|unix.O_WRONLY, 0o644); err == nil {
			_, err = io.WriteString(f, "x")
			f.Close()
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	close(stop)
	attackers.Wait()
	names, err := os.ReadDir(outside)
	must(err)
	if len(names) != 1 || names[0].Name() != "secret" {
		t.Errorf("outside now holds %v, want only secret", names)
	}
	t.Logf("%d of 3000 reads met the directory", inside)
}

func TestRetryEndsWithConflict(t *testing.T) {
	root, _ := tree(t)
	err := explain("open", root, "x", unix.EAGAIN)
	if !errdefs.Is(err, errdefs.Conflict) || !errors.Is(err, unix.EAGAIN) {
		t.Errorf("got %v, want a conflict that says EAGAIN", err)
	}
}

func FuzzResolve(f *testing.F) {
	for _, s := range []string{"", "/", "..", "a/../..", "abs/../..", "a/up/../../..", "dangling/x", "//./a//b/", "\x00", "loop1/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		root, dir := tree(t)
		for _, get := range []func() (*os.File, error){
			func() (*os.File, error) { return Open(root, path, unix.O_PATH, 0) },
			func() (*os.File, error) { return MkdirAll(root, path, 0o755) },
		} {
			h, err := get()
			if err != nil {
				continue
			}
			if got := where(t, h); got != dir && !strings.HasPrefix(got, dir+"/") {
				t.Errorf("%q resolved to %s, outside of %s", path, got, dir)
			}
			h.Close()
		}
		if names, _ := os.ReadDir(filepath.Dir(dir)); len(names) != 3 {
			t.Errorf("%q: beside the root there are now %v", path, names)
		}
	})
}
