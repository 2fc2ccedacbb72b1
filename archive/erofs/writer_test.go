package erofs_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/onggi/onggi/archive/erofs"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/mount"
	"golang.org/x/sys/unix"
)

// image writes the tree at root, as tar would list it, and returns the image's path.
func image(t testing.TB, root string) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w, err := erofs.NewWriter(f)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[uint64]string{}
	err = filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		name, _ := filepath.Rel(root, p)
		if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if first, ok := seen[st.Ino]; ok {
				return w.Link(first, name)
			}
			seen[st.Ino] = name
		}
		m := erofs.Meta{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Mtime: time.Unix(st.Mtim.Unix()), Rdev: st.Rdev}
		for _, n := range listxattr(t, p) {
			m.Xattrs = append(m.Xattrs, erofs.Xattr{Name: n, Value: getxattr(t, p, n)})
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			if m.Target, err = os.Readlink(p); err != nil {
				return err
			}
		case unix.S_IFREG:
			c, err := os.Open(p)
			if err != nil {
				return err
			}
			defer c.Close()
			return w.Put(name, m, c)
		}
		return w.Put(name, m, nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	size, err := w.Close()
	if err != nil {
		t.Fatal(err)
	}
	if st, err := f.Stat(); err != nil || st.Size() != size {
		t.Fatalf("the image has %d bytes, Close said %d (%v)", st.Size(), size, err)
	}
	return f.Name()
}

func listxattr(t testing.TB, p string) []string {
	b := make([]byte, 1<<16)
	n, err := unix.Llistxattr(p, b)
	if err != nil {
		t.Fatalf("%s: %v", p, err)
	}
	names := strings.Split(strings.TrimSuffix(string(b[:n]), "\x00"), "\x00")
	slices.Sort(names)
	return slices.DeleteFunc(names, func(s string) bool { return s == "" })
}

func getxattr(t testing.TB, p, name string) []byte {
	b := make([]byte, 1<<16)
	n, err := unix.Lgetxattr(p, name, b)
	if err != nil {
		t.Fatalf("%s: %s: %v", p, name, err)
	}
	return b[:n]
}

// describe says all of a tree that a container could see, a line for each name. Names of one inode say the first of
// them.
func describe(t testing.TB, root string) string {
	t.Helper()
	var out strings.Builder
	first := map[uint64]string{}
	err := filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		name, _ := filepath.Rel(root, p)
		dir := st.Mode&unix.S_IFMT == unix.S_IFDIR
		fmt.Fprintf(&out, "%q %o %d:%d %d.%09d %x", name, st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec, st.Rdev)
		if !dir {
			if first[st.Ino] == "" {
				first[st.Ino] = name
			}
			fmt.Fprintf(&out, " links %d of %q size %d", st.Nlink, first[st.Ino], st.Size)
		}
		for _, x := range listxattr(t, p) {
			fmt.Fprintf(&out, " %s=%x", x, sha256.Sum256(getxattr(t, p, x)))
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			target, err := os.Readlink(p)
			fmt.Fprintf(&out, " -> %q %v", target, err)
		case unix.S_IFREG:
			c, err := os.Open(p)
			if err != nil {
				return err
			}
			defer c.Close()
			h := sha256.New()
			if _, err := io.Copy(h, c); err != nil {
				return err
			}
			fmt.Fprintf(&out, " %x", h.Sum(nil))
		}
		out.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// mounted calls f with a directory that shows the image, or skips: kernels before 6.12 mount no file. No namespace
// shows it.
func mounted(t *testing.T, img string, f func(root string)) {
	t.Helper()
	tree, err := mount.Tree(mount.Mount{Source: img, Type: "erofs", Options: []string{"ro"}})
	if err != nil {
		var below unix.Statfs_t
		if err := unix.Statfs(img, &below); err != nil {
			t.Fatal(err)
		}
		if below.Type == unix.TMPFS_MAGIC || below.Type == unix.OVERLAYFS_SUPER_MAGIC {
			t.Skip("EROFS mounts no file of a tmpfs or an overlay (it wants read_folio); TMPDIR can name another place")
		}
		var u unix.Utsname
		_ = unix.Uname(&u)
		var major, minor int
		_, _ = fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor)
		if known, _ := os.ReadFile("/proc/filesystems"); !bytes.Contains(known, []byte("\terofs\n")) || major < 6 || major == 6 && minor < 12 || os.Getuid() != 0 {
			t.Skipf("this kernel, or who runs this, cannot mount a file with EROFS: %v", err)
		}
		t.Fatal(err)
	}
	defer tree.Close()
	f(fmt.Sprintf("/proc/self/fd/%d/.", tree.Fd()))
}

// fsck has Debian's fsck.erofs look at the image, where it is installed.
func fsck(t *testing.T, img string) {
	t.Helper()
	if _, err := exec.LookPath("fsck.erofs"); err != nil {
		t.Log("no fsck.erofs here (erofs-utils): only the kernel looks at the image")
		return
	}
	// With --extract it reads the content, too. A wrong sum of the superblock it only mentions (1.5), with code 0.
	if out, err := exec.Command("fsck.erofs", "--extract", img).CombinedOutput(); err != nil || bytes.Contains(out, []byte("<E>")) {
		t.Errorf("fsck.erofs: %v\n%s", err, out)
	}
}

// same compares what the kernel shows of an image with the directory that it was made of.
func same(t *testing.T, root string) {
	t.Helper()
	img := image(t, root)
	fsck(t, img)
	a, err := os.ReadFile(img)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(image(t, root))
	if err != nil || !bytes.Equal(a, b) {
		t.Errorf("the same tree gave other bytes (%v)", err)
	}
	mounted(t, img, func(view string) {
		got, want := strings.Split(describe(t, view), "\n"), strings.Split(describe(t, root), "\n")
		for i := range max(len(got), len(want)) {
			var g, w string
			if i < len(got) {
				g = got[i]
			}
			if i < len(want) {
				w = want[i]
			}
			if g != w {
				t.Fatalf("line %d of %d:\n got %s\nwant %s", i, len(want), g, w)
			}
		}
	})
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestAsTheDirectory(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("owners and devices need root")
	}
	for _, c := range []struct {
		name string
		make func(t *testing.T, root string)
	}{
		{"nothing", func(*testing.T, string) {}},
		{"sizes around the ends of blocks, and inline tails", func(t *testing.T, root string) {
			for _, n := range []int{0, 1, 31, 32, 3967, 4031, 4032, 4033, 4095, 4096, 4097, 8127, 8128, 8129, 8192, 1<<20 - 1, 1 << 20, 1<<20 + 1, 3<<20 + 77} {
				b := make([]byte, n)
				rand.New(rand.NewSource(int64(n))).Read(b)
				must(t, os.WriteFile(fmt.Sprintf("%s/f%d", root, n), b, 0o644))
			}
		}},
		{"a directory of many blocks, long and strange names", func(t *testing.T, root string) {
			must(t, os.Mkdir(root+"/many", 0o755), os.Mkdir(root+"/long", 0o755))
			for i := range 3000 {
				must(t, os.WriteFile(fmt.Sprintf("%s/many/entry-%d", root, i), []byte{byte(i)}, 0o600))
			}
			for i := range 100 {
				must(t, os.WriteFile(fmt.Sprintf("%s/long/%03d%s", root, i, strings.Repeat("x", 252)), nil, 0o600))
			}
			for _, n := range []string{"!", "-", "...", ".a", "..b", "\xff\xfe", "\x01", "한글", "new\nline", "a", "ab", "abc"} {
				must(t, os.WriteFile(filepath.Join(root, n), []byte(n), 0o600))
			}
		}},
		{"every kind of inode, large owners, times, modes", func(t *testing.T, root string) {
			must(t, unix.Mkfifo(root+"/fifo", 0o640), unix.Mknod(root+"/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
				unix.Mknod(root+"/block", unix.S_IFBLK|0o600, int(unix.Mkdev(259, 70000))), unix.Mknod(root+"/socket", unix.S_IFSOCK|0o700, 0),
				unix.Mknod(root+"/whiteout", unix.S_IFCHR, 0), os.Symlink("fifo", root+"/link"),
				os.Symlink(strings.Repeat("t", 4090), root+"/longlink"), os.Symlink(strings.Repeat("u", 4031), root+"/inlinelink"),
				os.WriteFile(root+"/suid", []byte("x"), 0o755), os.Lchown(root+"/suid", 70000, 4294967294), unix.Chmod(root+"/suid", 0o6755),
				os.Mkdir(root+"/sticky", 0o755), unix.Chmod(root+"/sticky", 0o1777), os.Lchown(root+"/link", 65536, 65535),
				os.Chtimes(root+"/suid", time.Time{}, time.Unix(1, 999999999)), os.WriteFile(root+"/old", nil, 0),
				os.Chtimes(root+"/old", time.Time{}, time.Unix(-86400, 5)), os.Chtimes(root+"/sticky", time.Time{}, time.Unix(1<<33, 7)))
		}},
		{"hard links", func(t *testing.T, root string) {
			must(t, os.Mkdir(root+"/d", 0o755), os.WriteFile(root+"/a", []byte("one"), 0o644), os.Link(root+"/a", root+"/d/b"), os.Link(root+"/a", root+"/d/c"),
				unix.Mkfifo(root+"/p", 0o600), os.Link(root+"/p", root+"/q"), os.Symlink("a", root+"/s"))
			must(t, unix.Linkat(unix.AT_FDCWD, root+"/s", unix.AT_FDCWD, root+"/d/s", 0))
		}},
		{"attributes", func(t *testing.T, root string) {
			must(t, os.Mkdir(root+"/opaque", 0o755), os.WriteFile(root+"/f", bytes.Repeat([]byte("x"), 5000), 0o644), os.WriteFile(root+"/g", nil, 0o644))
			for _, e := range []error{
				unix.Lsetxattr(root+"/opaque", "trusted.overlay.opaque", []byte("y"), 0),
				unix.Lsetxattr(root+"/f", "user.large", bytes.Repeat([]byte("v"), 3000), 0), unix.Lsetxattr(root+"/f", "user.empty", nil, 0),
				unix.Lsetxattr(root+"/g", "security.capability", []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0),
				unix.Lsetxattr(root, "user.root", []byte("of the root"), 0),
			} {
				if e == unix.EOPNOTSUPP || e == unix.ENOSPC {
					t.Skip("the file system below has no room for these attributes")
				}
				must(t, e)
			}
		}},
		{"holes", func(t *testing.T, root string) {
			f, err := os.Create(root + "/sparse")
			must(t, err)
			defer f.Close()
			must(t, f.Truncate(40<<20+5))
			_, err = f.WriteAt([]byte("in the middle"), 20<<20)
			must(t, err)
			must(t, os.WriteFile(root+"/after", bytes.Repeat([]byte("y"), 9000), 0o644))
		}},
		{"a tree by chance", func(t *testing.T, root string) {
			r := rand.New(rand.NewSource(4))
			dirs := []string{root}
			for i := range 1500 {
				p := filepath.Join(dirs[r.Intn(len(dirs))], fmt.Sprintf("%x", r.Int63n(1<<uint(8+r.Intn(40)))))
				if r.Intn(6) == 0 {
					if os.Mkdir(p, 0o755) == nil {
						dirs = append(dirs, p)
					}
					continue
				}
				if _, err := os.Lstat(p); err == nil {
					continue
				}
				must(t, os.WriteFile(p, bytes.Repeat([]byte{byte(i), byte(i >> 8)}, r.Intn(1<<uint(r.Intn(14)))), 0o644))
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			c.make(t, root)
			same(t, root)
		})
	}
}

// TestHugeFile: an image holds files that no 32 bits count, and takes no room for what is empty.
func TestHugeFile(t *testing.T) {
	const size = 5<<30 + 3
	img, err := os.Create(t.TempDir() + "/image")
	must(t, err)
	defer img.Close()
	w, err := erofs.NewWriter(img)
	must(t, err)
	must(t, w.Put("huge", erofs.Meta{Mode: unix.S_IFREG | 0o644}, io.MultiReader(io.LimitReader(zero{}, size-3), strings.NewReader("end"))))
	_, err = w.Close()
	must(t, err)
	var st unix.Stat_t
	must(t, unix.Stat(img.Name(), &st))
	if st.Blocks > 128 {
		t.Errorf("an image of a hole has %d KiB on the disk", st.Blocks/2)
	}
	mounted(t, img.Name(), func(view string) {
		h, err := os.Open(view + "/huge")
		must(t, err)
		defer h.Close()
		b := make([]byte, 8)
		n, err := h.ReadAt(b, size-5)
		if n != 5 || err != io.EOF || string(b[:n]) != "\x00\x00end" {
			t.Errorf("the end reads %q (%v)", b[:n], err)
		}
	})
}

type zero struct{}

func (zero) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func TestRefuses(t *testing.T) {
	reg, dir := erofs.Meta{Mode: unix.S_IFREG | 0o644}, erofs.Meta{Mode: unix.S_IFDIR | 0o755}
	put := func(name string, m erofs.Meta, content io.Reader) func(*erofs.Writer) error {
		return func(w *erofs.Writer) error { return w.Put(name, m, content) }
	}
	for _, c := range []struct {
		name string
		do   func(*erofs.Writer) error
		want errdefs.Kind
	}{
		{"an absolute name", put("/a", reg, strings.NewReader("")), errdefs.InvalidArgument},
		{"a way up", put("d/../a", reg, strings.NewReader("")), errdefs.InvalidArgument},
		{"an empty part", put("d//a", reg, strings.NewReader("")), errdefs.InvalidArgument},
		{"a zero byte", put("a\x00", reg, strings.NewReader("")), errdefs.InvalidArgument},
		{"a long name", put(strings.Repeat("a", 256), reg, strings.NewReader("")), errdefs.Exhausted},
		{"no parent", put("no/a", reg, strings.NewReader("")), errdefs.NotFound},
		{"a file as parent", put("f/a", reg, strings.NewReader("")), errdefs.NotFound},
		{"a file twice", put("f", reg, strings.NewReader("")), errdefs.AlreadyExists},
		{"a directory over a file", put("f", dir, nil), errdefs.AlreadyExists},
		{"a file over a directory", put("d", reg, strings.NewReader("")), errdefs.AlreadyExists},
		{"a file as the root", put(".", reg, strings.NewReader("")), errdefs.InvalidArgument},
		{"no kind", put("a", erofs.Meta{Mode: 0o644}, nil), errdefs.InvalidArgument},
		{"no content", put("a", reg, nil), errdefs.InvalidArgument},
		{"content of a directory", put("a", dir, strings.NewReader("x")), errdefs.InvalidArgument},
		{"a link to nowhere", put("a", erofs.Meta{Mode: unix.S_IFLNK | 0o777}, nil), errdefs.InvalidArgument},
		{"a target of a page", put("a", erofs.Meta{Mode: unix.S_IFLNK | 0o777, Target: strings.Repeat("a", 4096)}, nil), errdefs.InvalidArgument},
		{"a device that wraps", put("a", erofs.Meta{Mode: unix.S_IFCHR, Rdev: unix.Mkdev(1<<13, 0)}, nil), errdefs.InvalidArgument},
		{"another's attribute", put("a", erofs.Meta{Mode: unix.S_IFDIR, Xattrs: []erofs.Xattr{{Name: "system.other"}}}, nil), errdefs.Unsupported},
		{"an attribute twice", put("a", erofs.Meta{Mode: unix.S_IFDIR, Xattrs: []erofs.Xattr{{Name: "user.a"}, {Name: "user.a"}}}, nil), errdefs.InvalidArgument},
		{"a root with too much", put(".", erofs.Meta{Mode: unix.S_IFDIR, Xattrs: []erofs.Xattr{{Name: "user.a", Value: make([]byte, 3000)}}}, nil), errdefs.Exhausted},
		{"a link to a directory", func(w *erofs.Writer) error { return w.Link("d", "e") }, errdefs.InvalidArgument},
		{"a link to what is not there", func(w *erofs.Writer) error { return w.Link("x", "e") }, errdefs.NotFound},
		{"a link over a file", func(w *erofs.Writer) error { return w.Link("f", "d") }, errdefs.AlreadyExists},
		{"a reader that fails", put("a", reg, io.MultiReader(strings.NewReader("x"), failing{})), errdefs.Corrupt},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, err := os.Create(t.TempDir() + "/image")
			must(t, err)
			defer f.Close()
			w, err := erofs.NewWriter(f)
			must(t, err, w.Put("d", dir, nil), w.Put("f", reg, strings.NewReader("x")))
			if got := errdefs.KindOf(c.do(w)); got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
			if _, err := w.Close(); err == nil {
				t.Error("Close after an error gave an image")
			}
			b := make([]byte, 4)
			if _, err := f.ReadAt(b, 1024); err == nil && !bytes.Equal(b, make([]byte, 4)) {
				t.Errorf("there is a superblock: %x", b)
			}
		})
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) {
	return 0, &errdefs.Error{Kind: errdefs.Corrupt, Why: "the source ends early"}
}

// BenchmarkWrite writes the tree that ONGGI_EROFS_TREE names, as a layer of it would be.
func BenchmarkWrite(b *testing.B) {
	root := os.Getenv("ONGGI_EROFS_TREE")
	if root == "" {
		b.Skip("ONGGI_EROFS_TREE names no tree")
	}
	for range b.N {
		img := image(b, root)
		f, err := os.Open(img)
		must(b, err)
		must(b, f.Sync(), f.Close(), os.Remove(img))
	}
}
