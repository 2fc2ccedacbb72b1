package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var then = time.Date(2020, 2, 3, 4, 5, 6, 789, time.UTC)

// The entries of tests, made short.
func dir(name string, mode int64) tar.Header {
	return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode}
}

func file(name, body string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, body}
}

func sym(name, target string) tar.Header {
	return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}
}

func link(name, target string) tar.Header {
	return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644}
}

func node(typ byte, name string, major, minor int64) tar.Header {
	return tar.Header{Typeflag: typ, Name: name, Devmajor: major, Devminor: minor, Mode: 0o600}
}

type entry struct {
	tar.Header
	body string
}

// mkTar writes headers (tar.Header or entry) as an archive.
func mkTar(t testing.TB, entries ...any) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, x := range entries {
		var e entry
		switch x := x.(type) {
		case tar.Header:
			e.Header = x
		case entry:
			e = x
		}
		if e.Format == tar.FormatUnknown {
			e.Format = tar.FormatPAX
		}
		if e.Typeflag != tar.TypeXGlobalHeader && e.ModTime.IsZero() {
			e.ModTime = then
		}
		if e.Format == tar.FormatGNU {
			e.ModTime = e.ModTime.Truncate(time.Second)
		}
		if e.Typeflag == tar.TypeReg {
			e.Size = int64(len(e.body))
		}
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatalf("%s: %v", e.Name, err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// apply unpacks into a fresh directory "in", which lies beside "outside/secret".
func apply(t testing.TB, b []byte, o Options) (string, Stats, error) {
	t.Helper()
	top := t.TempDir()
	in := filepath.Join(top, "in")
	for _, d := range []string{"in", "outside"} {
		if err := os.Mkdir(filepath.Join(top, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(top, "outside/secret"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := os.Open(in)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	before := fds(t)
	s, err := Apply(context.Background(), bytes.NewReader(b), d, o)
	if after := fds(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
	// Whatever the archive was, nothing outside has changed.
	if got := list(t, top, "in"); got != "outside d 755\noutside/secret f 600 secret\n" {
		t.Errorf("outside there is now:\n%s", got)
	}
	return in, s, err
}

func fds(t testing.TB) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// list describes a tree, one object a line, leaving out the directory skip.
func list(t testing.TB, root, skip string) string {
	t.Helper()
	var out []string
	links := map[uint64]string{}
	err := filepath.Walk(root, func(p string, fi os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		if rel == "." {
			return nil
		}
		if rel == skip {
			return filepath.SkipDir
		}
		st := fi.Sys().(*syscall.Stat_t)
		l := fmt.Sprintf("%s %%s %o", rel, st.Mode&0o7777)
		if st.Uid != 0 || st.Gid != 0 {
			l += fmt.Sprintf(" %d:%d", st.Uid, st.Gid)
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			l = fmt.Sprintf(l, "d")
			buf := make([]byte, 8)
			if n, err := unix.Lgetxattr(p, "trusted.overlay.opaque", buf); err == nil {
				l += " opaque=" + string(buf[:n])
			}
		case unix.S_IFREG:
			l = fmt.Sprintf(l, "f")
			if first, ok := links[st.Ino]; ok {
				l += " = " + first
				break
			}
			if st.Nlink > 1 {
				links[st.Ino] = rel
			}
			if st.Size > 100 {
				l += fmt.Sprintf(" %d bytes", st.Size)
				break
			}
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			l += strings.TrimRight(" "+string(b), " ")
		case unix.S_IFLNK:
			target, _ := os.Readlink(p)
			l = fmt.Sprintf(l, "l") + " -> " + target
		case unix.S_IFIFO:
			l = fmt.Sprintf(l, "p")
		case unix.S_IFCHR:
			l = fmt.Sprintf(l, "c") + fmt.Sprintf(" %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		case unix.S_IFBLK:
			l = fmt.Sprintf(l, "b") + fmt.Sprintf(" %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		out = append(out, l)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	sort.Strings(out)
	return strings.Join(out, "\n") + strings.Repeat("\n", min(len(out), 1))
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: owners, device nodes and trusted attributes")
	}
}
