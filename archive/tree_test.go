package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/onggi/onggi/errdefs"
	"golang.org/x/sys/unix"
)

type member struct {
	name, link string
	typ        byte
	body       string
}

func tarOf(t testing.TB, list ...member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range list {
		if err := w.WriteHeader(&tar.Header{Name: m.name, Linkname: m.link, Typeflag: m.typ, Size: int64(len(m.body)), Mode: 0o4755, ModTime: time.Unix(1700000000, 0)}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(m.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func openDir(t testing.TB, path string) *os.File {
	t.Helper()
	d, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// TestUnpackTreeBreakouts: nothing that an archive holds is written outside, whoever made it; links inside of a container's
// tree lead where they do in there.
func TestUnpackTreeBreakouts(t *testing.T) {
	for name, c := range map[string]struct {
		list         []member
		host, inside errdefs.Kind // Unknown: it succeeds
	}{
		"up":               {[]member{{"../evil", "", tar.TypeReg, "x"}}, errdefs.InvalidArgument, errdefs.InvalidArgument},
		"absolute":         {[]member{{"/evil", "", tar.TypeReg, "x"}}, 0, 0},
		"by a link":        {[]member{{"l", "..", tar.TypeSymlink, ""}, {"l/evil", "", tar.TypeReg, "x"}}, errdefs.InvalidArgument, 0},
		"by an absolute":   {[]member{{"l", "/", tar.TypeSymlink, ""}, {"l/evil", "", tar.TypeReg, "x"}}, errdefs.InvalidArgument, 0},
		"over a link":      {[]member{{"l", "../evil", tar.TypeSymlink, ""}, {"l", "", tar.TypeReg, "x"}}, 0, 0},
		"hard link up":     {[]member{{"l", "../victim", tar.TypeLink, ""}}, errdefs.InvalidArgument, errdefs.InvalidArgument},
		"hard link by one": {[]member{{"d", "..", tar.TypeSymlink, ""}, {"l", "d/victim", tar.TypeLink, ""}, {"l", "", tar.TypeReg, "evil"}}, errdefs.InvalidArgument, errdefs.NotFound},
		"a device":         {[]member{{"null", "", tar.TypeChar, ""}}, errdefs.Forbidden, 0},
		"dir over file":    {[]member{{"f", "", tar.TypeReg, "x"}, {"f/", "", tar.TypeDir, ""}}, errdefs.AlreadyExists, errdefs.AlreadyExists},
		"file over dir":    {[]member{{"f/", "", tar.TypeDir, ""}, {"f", "", tar.TypeReg, "x"}}, errdefs.AlreadyExists, errdefs.AlreadyExists},
	} {
		for _, inside := range []bool{false, true} {
			top := t.TempDir()
			if err := os.WriteFile(filepath.Join(top, "victim"), []byte("untouched"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(filepath.Join(top, "root"), 0o755); err != nil {
				t.Fatal(err)
			}
			want := c.host
			if inside {
				want = c.inside
			}
			err := UnpackTree(context.Background(), bytes.NewReader(tarOf(t, c.list...)), openDir(t, filepath.Join(top, "root")), UnpackOptions{Inside: inside, Devices: inside})
			if (err == nil) != (want == 0) || err != nil && !errdefs.Is(err, want) {
				t.Errorf("%s, inside %v: %v (%v), want %v", name, inside, err, errdefs.KindOf(err), want)
			}
			left, _ := os.ReadDir(top)
			if b, err := os.ReadFile(filepath.Join(top, "victim")); len(left) != 2 || err != nil || string(b) != "untouched" {
				t.Errorf("%s, inside %v: outside there are %v, the victim is %q", name, inside, left, b)
			}
		}
	}
}

func TestTreeThereAndBack(t *testing.T) {
	top := t.TempDir()
	from, to := filepath.Join(top, "from"), filepath.Join(top, "to")
	for _, d := range []string{"from/a/b", "to"} {
		if err := os.MkdirAll(filepath.Join(top, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	old := time.Unix(1600000000, 0)
	for _, step := range []error{
		os.WriteFile(filepath.Join(from, "a/f"), bytes.Repeat([]byte("x"), 1<<20), 0o640), os.Symlink("f", filepath.Join(from, "a/l")),
		os.Link(filepath.Join(from, "a/f"), filepath.Join(from, "a/h")), unix.Mkfifo(filepath.Join(from, "a/p"), 0o600),
		os.Chtimes(filepath.Join(from, "a/f"), old, old), os.Chmod(filepath.Join(from, "a/b"), 0o700), os.Chtimes(filepath.Join(from, "a/b"), old, old),
	} {
		if step != nil {
			t.Fatal(step)
		}
	}
	var b bytes.Buffer
	if err := PackTree(context.Background(), &b, openDir(t, from), "a", "name"); err != nil {
		t.Fatal(err)
	}
	if err := UnpackTree(context.Background(), bytes.NewReader(b.Bytes()), openDir(t, to), UnpackOptions{Rename: "other"}); err != nil {
		t.Fatal(err)
	}
	f, err := os.Stat(filepath.Join(to, "other/f"))
	if err != nil || f.Size() != 1<<20 || f.Mode() != 0o640 || !f.ModTime().Equal(old) {
		t.Errorf("file: %+v, %v", f, err)
	}
	if h, err := os.Stat(filepath.Join(to, "other/h")); err != nil || !os.SameFile(f, h) {
		t.Errorf("the hard link is another file: %v", err)
	}
	if l, err := os.Readlink(filepath.Join(to, "other/l")); err != nil || l != "f" {
		t.Errorf("link: %q, %v", l, err)
	}
	if d, err := os.Stat(filepath.Join(to, "other/b")); err != nil || d.Mode().Perm() != 0o700 || !d.ModTime().Equal(old) {
		t.Errorf("directory: %+v, %v", d, err)
	}
	if p, err := os.Stat(filepath.Join(to, "other/p")); err != nil || p.Mode()&os.ModeNamedPipe == 0 {
		t.Errorf("pipe: %v, %v", p, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := PackTree(ctx, &b, openDir(t, from), "a", "name"); !errdefs.Is(err, errdefs.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	if err := UnpackTree(context.Background(), strings.NewReader("no archive at all, however long it may be"), openDir(t, to), UnpackOptions{}); err == nil {
		t.Error("what is no archive was unpacked")
	}
}

func FuzzUnpackTree(f *testing.F) {
	f.Add(tarOf(f, member{"a/", "", tar.TypeDir, ""}, member{"a/f", "", tar.TypeReg, "x"}, member{"l", "a", tar.TypeSymlink, ""}, member{"l/g", "", tar.TypeReg, "y"}))
	f.Add(tarOf(f, member{"../x", "", tar.TypeReg, "x"}, member{"h", "a/f", tar.TypeLink, ""}))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, inside := range []bool{false, true} {
			top := t.TempDir()
			if err := os.Mkdir(filepath.Join(top, "root"), 0o755); err != nil {
				t.Fatal(err)
			}
			_ = UnpackTree(context.Background(), bytes.NewReader(b), openDir(t, filepath.Join(top, "root")), UnpackOptions{Inside: inside, Limits: Limits{Entries: 100}})
			if left, err := os.ReadDir(top); err != nil || len(left) != 1 {
				t.Errorf("outside there are %v, %v", left, err)
			}
		}
	})
}
