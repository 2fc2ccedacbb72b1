package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/onggi/onggi/errdefs"
	"golang.org/x/sys/unix"
)

func newStore(t testing.TB) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "volumes"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func ensure(t testing.TB, s *Store, name string) *Volume {
	t.Helper()
	v, err := s.Ensure(name, nil)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestNames(t *testing.T) {
	s := newStore(t)
	for _, c := range []struct {
		name string
		ok   bool
	}{
		{"data", true},
		{"a1", true},
		{"0.b", true},
		{"A_b-c.d", true},
		{strings.Repeat("x", 255), true},
		{"a", false},
		{".a", false},
		{"-a", false},
		{"_a", false},
		{"..", false},
		{"a/b", false},
		{"a b", false},
		{"a\n", false},
		{"ä1", false},
		{strings.Repeat("x", 256), false},
		{"a\x00b", false},
	} {
		_, err := s.Ensure(c.name, nil)
		if got := err == nil; got != c.ok || !c.ok && !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("Ensure(%q): got %v, want ok=%v", c.name, err, c.ok)
		}
	}
	for _, name := range []string{"", "../x", strings.Repeat("g", 64), strings.Repeat("a", 63)} {
		if _, err := s.EnsureAnonymous(name); !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("EnsureAnonymous(%q): got %v, want invalid-argument", name, err)
		}
	}
	for _, f := range []func(string) error{s.Remove, func(n string) error { _, err := s.Get(n); return err }} {
		if err := f("../volumes"); !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("a path as name: got %v, want invalid-argument", err)
		}
	}
}

// FuzzName: whatever passes is one path component that is not hidden, so that it can be joined to the store's path.
func FuzzName(f *testing.F) {
	for _, s := range []string{"data", "..", "a/b", ".new-0", "a\x00", "ab\n", "０１", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if CheckName(name) != nil {
			return
		}
		if filepath.Base(name) != name || name[0] == '.' || filepath.Clean(name) != name || len(name) > 255 ||
			strings.ContainsAny(name, "/\x00\n\\ ") {
			t.Errorf("CheckName(%q) passes", name)
		}
	})
}

func TestLife(t *testing.T) {
	s := newStore(t)
	if _, err := s.Get("data"); !errdefs.Is(err, errdefs.NotFound) {
		t.Fatalf("Get before: got %v, want not-found", err)
	}
	made, err := s.Ensure("data", map[string]string{"k": "v"})
	if err != nil {
		t.Fatal(err)
	}
	if !made.Fresh || made.Anonymous || made.Labels["k"] != "v" || made.Path != filepath.Join(s.dir, "data", "_data") {
		t.Errorf("Ensure: got %+v", made)
	}
	if st, err := os.Stat(made.Path); err != nil || st.Mode() != fs.ModeDir|0o755 {
		t.Errorf("data: got %v, %v; want drwxr-xr-x", st, err)
	}
	again, err := s.Ensure("data", map[string]string{"k": "other"})
	if err != nil || !again.Created.Equal(made.Created) || again.Labels["k"] != "v" {
		t.Errorf("Ensure again: got %+v, %v; want %+v", again, err, made)
	}
	anonymous, err := s.Ensure("", nil)
	if err != nil || len(anonymous.Name) != 64 || !anonymous.Anonymous {
		t.Fatalf("Ensure(\"\"): got %+v, %v", anonymous, err)
	}
	if v, err := s.EnsureAnonymous(anonymous.Name); err != nil || v.Name != anonymous.Name || !v.Anonymous {
		t.Errorf("EnsureAnonymous: got %+v, %v", v, err)
	}
	list, err := s.List()
	if err != nil || len(list) != 2 || !sort.SliceIsSorted(list, func(i, j int) bool { return list[i].Name < list[j].Name }) {
		t.Errorf("List: got %v, %v; want two by name", list, err)
	}
	if err := os.WriteFile(filepath.Join(made.Path, "f"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time it is not there, which is no error
		if err := s.Remove("data"); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Remove(anonymous.Name); err != nil {
		t.Fatal(err)
	}
	if got := entries(t, s.dir); got != "lock" {
		t.Errorf("left: %s; want only the lock", got)
	}
}

func TestCorruptRecordIsNamed(t *testing.T) {
	s := newStore(t)
	v := ensure(t, s, "data")
	record := filepath.Join(s.dir, "data", recordFile)
	for _, text := range []string{"", "{", `{"name":"other"}`} {
		if err := os.WriteFile(record, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Get(v.Name); !errdefs.Is(err, errdefs.Corrupt) || !strings.Contains(err.Error(), record) {
			t.Errorf("record %q: got %v, want corrupt and its path", text, err)
		}
	}
}

func entries(t testing.TB, dir string) string {
	t.Helper()
	es, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range es {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

func TestEnsureTogether(t *testing.T) {
	s := newStore(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[time.Time]bool{}
	for range 16 {
		wg.Go(func() {
			v, err := s.Ensure("shared", nil)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			seen[v.Created] = true
			mu.Unlock()
		})
	}
	wg.Wait()
	if len(seen) != 1 {
		t.Errorf("%d volumes of one name were made; want 1", len(seen))
	}
	if got := entries(t, s.dir); got != "lock shared" {
		t.Errorf("left: %s", got)
	}
}

// image makes a tree with one of everything.
func image(t testing.TB) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: devices and owners")
	}
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	p := func(s string) string { return filepath.Join(dir, s) }
	must(os.MkdirAll(p("sub/deep"), 0o755))
	must(os.WriteFile(p("sub/file"), []byte("content"), 0o640))
	must(os.Link(p("sub/file"), p("hard")))
	must(os.WriteFile(p("setuid"), []byte("x"), 0o755))
	must(os.Lchown(p("setuid"), 12, 34))
	must(os.Chmod(p("setuid"), 0o755|fs.ModeSetuid))
	must(os.Symlink("../../../etc/passwd", p("sub/link")))
	must(os.Symlink("/nowhere", p("dangling")))
	must(os.Lchown(p("dangling"), 70000, 70001))
	must(unix.Mknod(p("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(os.Chmod(p("null"), 0o666))
	must(unix.Mkfifo(p("fifo"), 0o600))
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	must(unix.Bind(fd, &unix.SockaddrUnix{Name: p("socket")}))
	must(os.WriteFile(p("attrs"), nil, 0o600))
	for _, n := range []string{"user.note", "trusted.note"} {
		if err := unix.Setxattr(p("attrs"), n, []byte("v"), 0); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
			t.Fatal(err)
		}
	}
	// cap_net_raw=ep, as setcap writes it (linux/capability.h, vfs_cap_data revision 2)
	must(unix.Setxattr(p("attrs"), "security.capability", []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
	must(os.Chtimes(p("sub/file"), time.Unix(1, 0), time.Unix(1234567890, 123456789)))
	must(unix.Lutimes(p("dangling"), []unix.Timeval{{Sec: 5}, {Sec: 6}}))
	must(os.Chtimes(p("sub/deep"), time.Unix(1, 0), time.Unix(1000, 0)))
	must(os.Lchown(dir, 101, 102))
	must(os.Chmod(dir, 0o1770))
	return dir
}

// describe lists a tree: path, mode, owner, size or device, mtime, links, target, attributes.
func describe(t testing.TB, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		fmt.Fprintf(&b, "%s %o %d:%d dev=%x", rel, st.Mode, st.Uid, st.Gid, st.Rdev)
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			fmt.Fprintf(&b, " links=%d size=%d", st.Nlink, st.Size)
		}
		if rel != "." && rel != "sub" { // their times are those of what was made in them
			fmt.Fprintf(&b, " mtime=%d.%d", st.Mtim.Sec, st.Mtim.Nsec)
		}
		if target, err := os.Readlink(path); err == nil {
			fmt.Fprintf(&b, " -> %s", target)
		}
		for _, n := range []string{"user.note", "trusted.note", "security.capability"} {
			v := make([]byte, 100)
			if k, err := unix.Lgetxattr(path, n, v); err == nil {
				fmt.Fprintf(&b, " %s=%q", n, v[:k])
			}
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func populate(t testing.TB, s *Store, v *Volume, dir string, flags int) error {
	t.Helper()
	fd, err := unix.Open(dir, flags|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	return s.Populate(v, fd)
}

func TestPopulate(t *testing.T) {
	dir := image(t)
	for _, flags := range []int{unix.O_RDONLY, unix.O_PATH} {
		s := newStore(t)
		v := ensure(t, s, "data")
		if err := populate(t, s, v, dir, flags); err != nil {
			t.Fatal(err)
		}
		if v.Fresh {
			t.Error("v.Fresh after Populate: got true")
		}
		want := describe(t, dir)
		for line := range strings.Lines(want) {
			if strings.HasPrefix(line, "socket ") {
				want = strings.Replace(want, line, "", 1)
			}
		}
		if got := describe(t, v.Path); got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
		a, _ := os.Stat(filepath.Join(v.Path, "hard"))
		b, _ := os.Stat(filepath.Join(v.Path, "sub/file"))
		if !os.SameFile(a, b) {
			t.Error("the hard link became a copy")
		}
		// Once: what the container changed stays.
		if err := os.Remove(filepath.Join(v.Path, "hard")); err != nil {
			t.Fatal(err)
		}
		if err := populate(t, s, v, dir, flags); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(filepath.Join(v.Path, "hard")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("populated twice: %v", err)
		}
		if got, err := s.Get("data"); err != nil || got.Fresh {
			t.Errorf("record: got %+v, %v; want not fresh", got, err)
		}
	}
}

func TestPopulateLeavesContentAlone(t *testing.T) {
	s := newStore(t)
	v := ensure(t, s, "data")
	if err := os.WriteFile(filepath.Join(v.Path, "mine"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	src := t.TempDir()
	if err := os.WriteFile(filepath.Join(src, "theirs"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := populate(t, s, v, src, unix.O_PATH); err != nil {
		t.Fatal(err)
	}
	if got := entries(t, v.Path); got != "mine" {
		t.Errorf("got %s; want mine", got)
	}
	if v.Fresh {
		t.Error("still fresh")
	}
}

func TestPopulateSkipsMounts(t *testing.T) {
	src := t.TempDir()
	if err := os.Mkdir(filepath.Join(src, "mnt"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", filepath.Join(src, "mnt"), "tmpfs", 0, ""); err != nil {
		t.Skip("cannot mount: ", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(filepath.Join(src, "mnt"), unix.MNT_DETACH) })
	if err := os.WriteFile(filepath.Join(src, "mnt", "secret"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s := newStore(t)
	v := ensure(t, s, "data")
	if err := populate(t, s, v, src, unix.O_PATH); err != nil {
		t.Fatal(err)
	}
	if got := entries(t, v.Path); got != "" {
		t.Errorf("got %s; want nothing of a foreign file system", got)
	}
}

func TestPopulateRefusesADeepTree(t *testing.T) {
	src := t.TempDir()
	if err := os.MkdirAll(filepath.Join(src, strings.Repeat("d/", maxDepth+5)), 0o755); err != nil {
		t.Fatal(err)
	}
	s := newStore(t)
	v := ensure(t, s, "data")
	if err := populate(t, s, v, src, unix.O_PATH); !errdefs.Is(err, errdefs.Exhausted) {
		t.Fatalf("got %v, want exhausted", err)
	}
	if got := entries(t, filepath.Join(s.dir, "data")); got != "_data lock volume.json" {
		t.Errorf("left: %s", got)
	}
	if v, err := s.Get("data"); err != nil || !v.Fresh {
		t.Errorf("got %+v, %v; want it fresh still", v, err)
	}
}

func TestSweep(t *testing.T) {
	s := newStore(t)
	ensure(t, s, "data")
	for _, n := range []string{newPrefix + "0", gonePrefix + "0"} {
		if err := os.MkdirAll(filepath.Join(s.dir, n, "_data/x/y"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if list, err := s.List(); err != nil || len(list) != 1 {
		t.Errorf("List: got %v, %v; want one", list, err)
	}
	if err := s.Sweep(); err != nil {
		t.Fatal(err)
	}
	if got := entries(t, s.dir); got != "data lock" {
		t.Errorf("left: %s", got)
	}
}

// TestKilledAnywhere starts this test's binary, built with fault points, and kills it at every step.
func TestKilledAnywhere(t *testing.T) {
	if os.Getenv("ONGGI_VOLUME_HELPER") != "" {
		s, err := Open(os.Getenv("ONGGI_VOLUME_HELPER"))
		if err != nil {
			t.Fatal(err)
		}
		err = s.Remove("data") // a fault may have left one that is full
		v, cerr := s.Ensure("data", nil)
		err = errors.Join(err, cerr)
		if err == nil {
			err = populate(t, s, v, os.Getenv("ONGGI_VOLUME_SOURCE"), unix.O_PATH)
		}
		if err == nil {
			err = s.Remove("data")
		}
		if err == nil {
			v, err = s.Create("data", "", map[string]string{"a": "b"}, nil)
		}
		if err == nil {
			err = populate(t, s, v, os.Getenv("ONGGI_VOLUME_SOURCE"), unix.O_PATH)
		}
		to := disposal(t)
		if err == nil {
			err = s.Discard("data", to)
		}
		if err == nil {
			_, err = s.Restore(to.ID)
		}
		if err == nil {
			err = s.Discard("data", disposal(t))
		}
		if err == nil {
			err = s.EmptyTrash(func(*Trash) bool { return true })
		}
		from, oerr := os.Open(os.Getenv("ONGGI_VOLUME_SOURCE"))
		if oerr != nil {
			t.Fatal(oerr)
		}
		fill := func(dst *os.File) error { return Copy(dst, int(from.Fd())) }
		for _, before := range []bool{false, true} { // a new one, and one that is here and empty
			if err == nil && before {
				_, err = s.Create("data", "", nil, nil)
			}
			if err == nil {
				_, err = s.CreateFrom("data", nil, nil, fill)
			}
			if err == nil {
				err = s.Remove("data")
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	src := image(t)
	bin := filepath.Join(t.TempDir(), "test")
	if out, err := exec.Command("go", "test", "-c", "-tags", "faults", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Skipf("cannot build with fault points: %v\n%s", err, out)
	}
	try := func(dir string, env ...string) error {
		cmd := exec.Command(bin, "-test.run", "^TestKilledAnywhere$")
		cmd.Env = append(append(os.Environ(), "ONGGI_VOLUME_HELPER="+dir, "ONGGI_VOLUME_SOURCE="+src), env...)
		return cmd.Run()
	}
	names := filepath.Join(t.TempDir(), "names")
	if err := try(t.TempDir(), "ONGGI_FAULT_NAMES="+names); err != nil {
		t.Fatal(err)
	}
	list, err := os.ReadFile(names)
	if err != nil {
		t.Fatal(err)
	}
	steps := strings.Fields(string(list))
	slices.Sort(steps)
	steps = slices.Compact(steps)
	if len(steps) < 18 {
		t.Fatalf("steps: %v; want those of make, populate, remove, discard, restore and empty", steps)
	}
	for i, step := range steps {
		hows := []string{step + "=error", step + "@after=kill"}
		if i%2 == 1 {
			hows = []string{step + "=kill", step + "@after=error"}
		}
		for _, how := range hows {
			dir := t.TempDir()
			if err := try(dir, "ONGGI_FAULT="+how); err == nil {
				t.Errorf("%s: the process ended well", how)
			}
			s, err := Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Sweep(); err != nil {
				t.Errorf("%s: sweep: %v", how, err)
			}
			list, err := s.List()
			if err != nil {
				t.Errorf("%s: list: %v", how, err)
			}
			trash, err := s.Trash()
			if err != nil {
				t.Errorf("%s: trash: %v", how, err)
			}
			for _, r := range trash {
				for _, n := range r.Volumes {
					v, err := s.Trashed(r.ID, n)
					if err != nil || r.Command != "test" {
						t.Errorf("%s: in the trash: %+v, %v", how, r, err)
						continue
					}
					v.Path = filepath.Join(s.removalDir(r.ID), n, dataDir)
					list = append(list, v)
				}
			}
			for _, v := range list { // whatever is there is whole: empty and fresh, or full
				got := entries(t, v.Path)
				if got != "" && got != "attrs dangling fifo hard null setuid sub" || got == "" && !v.Fresh && !strings.HasPrefix(step, "volume.fill") {
					t.Errorf("%s: half a volume: %q, fresh %v", how, got, v.Fresh)
				}
			}
			if err := try(dir); err != nil {
				t.Errorf("%s: the next one: %v", how, err)
			}
			if err := s.Sweep(); err != nil {
				t.Errorf("%s: sweep again: %v", how, err)
			}
			if got := entries(t, dir) + entries(t, filepath.Join(dir, trashDir)); got != ".trash lock" {
				t.Errorf("%s: left: %s", how, got)
			}
		}
	}
}

// small mounts a tmpfs of that size.
func small(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skip("cannot mount: ", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// TestPopulateOnAFullDisk: the volume stays empty and fresh, nothing of the copy is left, and the next time it works.
func TestPopulateOnAFullDisk(t *testing.T) {
	src := t.TempDir()
	for _, n := range []string{"a", "b", "c"} {
		if err := os.WriteFile(filepath.Join(src, n), make([]byte, 500_000), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	disk := small(t, "1m")
	s, err := Open(filepath.Join(disk, "volumes"))
	if err != nil {
		t.Fatal(err)
	}
	v := ensure(t, s, "data")
	if err := populate(t, s, v, src, unix.O_PATH); !errdefs.Is(err, errdefs.NoSpace) || !strings.Contains(err.Error(), "volume data") {
		t.Errorf("got %v, want no space", err)
	}
	if got := entries(t, v.Path) + entries(t, filepath.Join(s.dir, "data")); got != "_data lock volume.json" {
		t.Errorf("left: %s", got)
	}
	if now, err := s.Get("data"); err != nil || !now.Fresh {
		t.Errorf("got %+v, %v; want it fresh", now, err)
	}
	if err := unix.Mount("none", disk, "tmpfs", unix.MS_REMOUNT, "size=4m"); err != nil {
		t.Fatal(err)
	}
	if err := populate(t, s, v, src, unix.O_PATH); err != nil || entries(t, v.Path) != "a b c" {
		t.Errorf("with space: %v: %s", err, entries(t, v.Path))
	}
}

func TestFill(t *testing.T) {
	src := image(t)
	fillFrom := func(dst string) error {
		a, err := os.Open(dst)
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		b, err := os.Open(src)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		return Fill(int(a.Fd()), int(b.Fd()))
	}
	full, none := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "mine"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := fillFrom(full); err != nil || entries(t, full) != "mine" {
		t.Errorf("a directory with content: %v: %s", err, entries(t, full))
	}
	if err := fillFrom(none); err != nil || entries(t, none) != "attrs dangling fifo hard null setuid sub" {
		t.Errorf("an empty directory: %v: %s", err, entries(t, none))
	}
	src = t.TempDir()
	for _, n := range []string{"a", "b"} {
		if err := os.WriteFile(filepath.Join(src, n), make([]byte, 100_000), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	disk := small(t, "150k")
	if err := fillFrom(disk); !errdefs.Is(err, errdefs.NoSpace) || entries(t, disk) != "" {
		t.Errorf("a full disk: %v: %s is left", err, entries(t, disk))
	}
}

// TestCreateFrom fills new and empty volumes, and no others; holes stay holes.
func TestCreateFrom(t *testing.T) {
	s := newStore(t)
	src := image(t)
	big, err := os.Create(filepath.Join(src, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer big.Close()
	if _, err := big.WriteAt([]byte("end"), 10<<20); err != nil {
		t.Fatal(err)
	}
	if err := big.Truncate(20 << 20); err != nil {
		t.Fatal(err)
	}
	from, err := os.Open(src)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	fill := func(dst *os.File) error { return Copy(dst, int(from.Fd())) }
	v, err := s.CreateFrom("data", map[string]string{"a": "b"}, nil, fill)
	if err != nil || v.Fresh || v.Labels["a"] != "b" {
		t.Fatal(v, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(v.Path, "sparse"), &st); err != nil || st.Size != 20<<20 || st.Blocks*512 > 1<<20 {
		t.Errorf("a file with holes: %d bytes in %d blocks, %v", st.Size, st.Blocks, err)
	}
	if b, err := os.ReadFile(filepath.Join(v.Path, "sparse")); err != nil || string(b[10<<20:10<<20+3]) != "end" {
		t.Errorf("its content is another one: %v", err)
	}
	if _, err := s.CreateFrom("data", nil, nil, fill); !errdefs.Is(err, errdefs.AlreadyExists) {
		t.Errorf("a volume with content: %v, want already exists", err)
	}
	ensure(t, s, "empty")
	if v, err := s.CreateFrom("empty", nil, nil, fill); err != nil || v.Fresh || entries(t, filepath.Join(s.dir, "empty", dataDir)) != "attrs dangling fifo hard null setuid sparse sub" {
		t.Errorf("an empty volume: %+v, %v", v, err)
	}
	for _, name := range []string{"new", "empty2"} {
		if name == "empty2" {
			ensure(t, s, name)
		}
		_, err := s.CreateFrom(name, nil, nil, func(dst *os.File) error {
			if err := os.WriteFile(filepath.Join("/proc/self/fd", fmt.Sprint(dst.Fd()), "half"), nil, 0o600); err != nil {
				t.Error(err)
			}
			// A sweep beside it takes nothing away.
			if err := s.Sweep(); err != nil {
				t.Error(err)
			}
			if _, err := dst.Stat(); err != nil {
				t.Error(err)
			}
			return unix.ENOSPC
		})
		if !errdefs.Is(err, errdefs.NoSpace) {
			t.Errorf("%s: got %v, want no space", name, err)
		}
	}
	if got := entries(t, s.dir) + entries(t, filepath.Join(s.dir, "empty2", dataDir)); got != "data empty empty2 lock" {
		t.Errorf("left: %s", got)
	}
	if _, err := s.CreateFrom("odd", nil, map[string]string{"type": "tmpfs", "device": "x"}, fill); !errdefs.Is(err, errdefs.InvalidArgument) {
		t.Errorf("mounted from elsewhere: %v", err)
	}
}

// TestSweepLeavesWhatIsBeingFilled: the volume is there afterwards.
func TestSweepLeavesWhatIsBeingFilled(t *testing.T) {
	s := newStore(t)
	if _, err := s.CreateFrom("data", nil, nil, func(dst *os.File) error {
		if err := s.Sweep(); err != nil {
			return err
		}
		ensure(t, s, "other") // the store is not locked meanwhile
		fd, err := unix.Openat(int(dst.Fd()), "file", unix.O_CREAT|unix.O_WRONLY, 0o600)
		if err == nil {
			err = unix.Close(fd)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if got := entries(t, s.dir) + " " + entries(t, filepath.Join(s.dir, "data", dataDir)); got != "data lock other file" {
		t.Errorf("there: %s", got)
	}
}
