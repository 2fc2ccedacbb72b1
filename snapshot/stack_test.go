package snapshot

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/onggi/onggi/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// merged mounts what Mounts says in a mount namespace of its own and returns the listing of the tree. commands are run
// by sh in the mounted tree before it is listed.
func merged(t *testing.T, s *Store, id string, readonly bool, commands string) string {
	t.Helper()
	ms, err := s.Mounts(id, readonly, true)
	if err != nil {
		t.Fatal(err)
	}
	if len(ms) != 1 {
		t.Fatalf("mounts: %+v", ms)
	}
	m := ms[0]
	args := []string{t.TempDir(), m.Type, m.Source, commands}
	if o := m.Overlay; o != nil {
		args = append(args, strings.Join(o.Lower, ":"), o.Upper, o.Work)
	}
	cmd := helper("mounted", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("mount %+v: %v: %s", m, err, stderr.Bytes())
	}
	return string(out)
}

func TestStack(t *testing.T) {
	whiteout := tar.Header{Typeflag: tar.TypeReg, Name: "usr/.wh.gone"}
	for _, c := range []struct {
		name   string
		layers [][]any // bottom first
		want   string  // the root first
		lower  int     // directories
	}{
		{"no layers", nil, ". d 755\n", 1},
		{"one layer", [][]any{{"./ 0711 1:2", "a=x"}}, ". d 711 1:2\na f 644 x\n", 1},
		{"root from below", [][]any{{"./ 0711 1:2", "a=x"}, {"b=y"}}, ". d 711 1:2\na f 644 x\nb f 644 y\n", 3},
		{"root from above", [][]any{{"./ 0711 1:2", "a=x"}, {"./ 0700", "b=y"}}, ". d 700\na f 644 x\nb f 644 y\n", 2},
		{
			"whiteouts",
			[][]any{{"usr/ 0700", "usr/gone=1", "usr/kept=2", "old/", "old/x=3"}, {"usr/", file{whiteout, ""}, "old/", "old/.wh..wh..opq", "old/y=4"}},
			". d 755\nold d 755\nold/y f 644 4\nusr d 755\nusr/kept f 644 2\n", 2,
		},
		{
			"implied directories keep what is below",
			[][]any{{"var/ 0700 5:6", "var/tmp/ 01777", "var/tmp/a=1"}, {"var/tmp/b=2"}},
			". d 755\nvar d 700 5:6\nvar/tmp d 1777\nvar/tmp/a f 644 1\nvar/tmp/b f 644 2\n", 3,
		},
		{
			"implied twice",
			[][]any{{"v/ 0700", "v/w/ 0711", "v/w/a=1"}, {"v/w/b=2"}, {"v/w/c=3"}, {"x=1"}},
			". d 755\nv d 700\nv/w d 711\nv/w/a f 644 1\nv/w/b f 644 2\nv/w/c f 644 3\nx f 644 1\n", 5,
		},
		{
			"implied below, described above",
			[][]any{{"v/ 0700", "v/a=1"}, {"v/b=2"}, {"v/ 0711"}},
			". d 755\nv d 711\nv/a f 644 1\nv/b f 644 2\n", 3,
		},
		{"implied and nothing below", [][]any{{"a=1"}, {"v/w/b=2"}}, ". d 755\na f 644 1\nv d 755\nv/w d 755\nv/w/b f 644 2\n", 2},
		{"implied over a whiteout", [][]any{{"v/ 0700", "v/a=1"}, {".wh.v"}, {"v/b=2"}}, ". d 755\nv d 755\nv/b f 644 2\n", 3},
		{"implied and a whiteout of the same layer", [][]any{{"v/ 0700", "v/a=1"}, {"v/b=2", ".wh.v"}}, ". d 755\nv d 755\nv/b f 644 2\n", 2},
		{"implied over a file", [][]any{{"v/ 0700", "v/a=1"}, {"v=file"}, {"v/b=2"}}, ". d 755\nv d 755\nv/b f 644 2\n", 3},
		{"implied and opaque", [][]any{{"v/ 0700", "v/a=1"}, {"v/.wh..wh..opq", "v/b=2"}}, ". d 755\nv d 700\nv/b f 644 2\n", 3},
		{
			"implied below an opaque directory",
			[][]any{{"v/ 0700", "v/w/ 0700", "v/w/a=1"}, {"v/ 0711", "v/.wh..wh..opq"}, {"v/w/b=2"}},
			". d 755\nv d 711\nv/w d 755\nv/w/b f 644 2\n", 4,
		},
		{
			"fixed below an opaque directory",
			[][]any{{"v/ 0700", "v/x=0"}, {"v/.wh..wh..opq", "v/w/ 0700", "v/w/a=1"}, {"v/w/b=2"}},
			". d 755\nv d 700\nv/w d 700\nv/w/a f 644 1\nv/w/b f 644 2\n", 4,
		},
		{
			"type changes",
			[][]any{{"a/", "a/x=1", "b=2", "c->b", "d/", "d/x=3"}, {"a=file", "b/", "b/y=4", "c/", "d->a"}, {"d/", "d/z=5"}},
			". d 755\na f 644 file\nb d 755\nb/y f 644 4\nc d 755\nd d 755\nd/z f 644 5\n", 3,
		},
		{"an opaque root", [][]any{{"./ 0700", "a=1"}, {".wh..wh..opq", "b=2"}, {"c=3"}}, ". d 700\nb f 644 2\nc f 644 3\n", 3},
		{"a layer twice", [][]any{{"a=1"}, {".wh.a", "b=2"}, {"a=1"}}, ". d 755\na f 644 1\nb f 644 2\n", 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, ctx := open(t), context.Background()
			var tars [][]byte
			for _, l := range c.layers {
				tars = append(tars, layerTar(t, l...))
			}
			ids := unpack(t, s, tars...)
			if err := s.Prepare(ctx, "box", ids); err != nil {
				t.Fatal(err)
			}
			if got := merged(t, s, "box", false, ""); got != c.want {
				t.Errorf("merged:\n%s\nwant:\n%s", got, c.want)
			}
			if got := merged(t, s, "box", true, ""); got != c.want {
				t.Errorf("read-only:\n%s\nwant:\n%s", got, c.want)
			}
			ms, err := s.Mounts("box", false, false)
			if err != nil {
				t.Fatal(err)
			}
			if got := len(ms[0].Overlay.Lower); got != c.lower {
				t.Errorf("%d lower directories, want %d: %v", got, c.lower, ms[0].Overlay.Lower)
			}
			clean(t, s)
			// A second one finds the chain, and each has its own changes.
			if err := s.Prepare(ctx, "box2", ids); err != nil {
				t.Fatal(err)
			}
			merged(t, s, "box2", false, "echo hello >new")
			if got := merged(t, s, "box", false, ""); got != c.want {
				t.Errorf("after another's change:\n%s", got)
			}
		})
	}
}

func TestPrepareMountsRemove(t *testing.T) {
	s, ctx := open(t), context.Background()
	ids := unpack(t, s, layerTar(t, "a=1"), layerTar(t, "b=2"))
	missing := digest.FromString("missing")
	if err := s.Prepare(ctx, "box", append([]digest.Digest{missing}, ids...)); !errdefs.Is(err, errdefs.NotFound) || !strings.Contains(err.Error(), string(missing)) {
		t.Errorf("a layer is missing: got %v", err)
	}
	if err := s.Prepare(ctx, "box", ids); err != nil {
		t.Fatal(err)
	}
	if err := s.Prepare(ctx, "box", ids); !errdefs.Is(err, errdefs.AlreadyExists) {
		t.Errorf("twice: got %v", err)
	}
	for _, id := range []string{"", ".", "..", "../x", "a/b", "a\x00", strings.Repeat("x", 129), "ü"} {
		_, err := s.Mounts(id, false, false)
		_, _, err2 := s.Usage(id)
		for _, err := range []error{s.Prepare(ctx, id, ids), s.Remove(ctx, id), err, err2} {
			if !errdefs.Is(err, errdefs.InvalidArgument) {
				t.Errorf("id %q: got %v", id, err)
			}
		}
	}
	ms, err := s.Mounts("box", false, true)
	if err != nil || ms[0].Type != "overlay" || !ms[0].Overlay.Volatile || ms[0].Target != "" {
		t.Errorf("mounts: %+v, %v", ms, err)
	}
	if _, err := s.Mounts("none", false, false); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("no such id: got %v", err)
	}
	if _, _, err := s.Usage("none"); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("no such id: got %v", err)
	}
	b0, i0, err := s.Usage("box")
	if err != nil || i0 != 1 {
		t.Errorf("usage before: %d, %d, %v; want 1 inode", b0, i0, err)
	}
	merged(t, s, "box", false, "rm a; mkdir -p d/e; head -c 100000 /dev/zero >d/f; ln d/f d/g; ln -s x d/l")
	b1, i1, err := s.Usage("box")
	if err != nil || i1 != 6 || b1-b0 < 100000 || b1-b0 > 140000 {
		t.Errorf("usage: %d bytes more, %d inodes, %v; want 100000 and a few blocks, and 6: the root, a whiteout, two directories, a file, a link", b1-b0, i1, err)
	}
	if err := s.Remove(ctx, "box"); err != nil {
		t.Error(err)
	}
	if err := s.Remove(ctx, "box"); err != nil {
		t.Errorf("twice: %v", err)
	}
	if _, err := s.Mounts("box", false, false); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("after removal: got %v", err)
	}
	clean(t, s)
	// A layer that goes takes the chain with it, and a stack on it says which layer is missing.
	if err := s.Prepare(ctx, "box", ids); err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveLayer(ctx, ids[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Mounts("box", false, false); !errdefs.Is(err, errdefs.NotFound) || !strings.Contains(err.Error(), "box") {
		t.Errorf("layer gone: got %v", err)
	}
	if err := s.Prepare(ctx, "box2", ids); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("layer gone: got %v", err)
	}
	if _, err := os.Stat(s.path(containersDir, "box2")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("box2 is left: %v", err)
	}
}

func TestUpperHasTheRootsAttributes(t *testing.T) {
	s, ctx := open(t), context.Background()
	root := tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o1777, PAXRecords: map[string]string{"SCHILY.xattr.user.x": "y"}}
	ids := unpack(t, s, layerTar(t, file{root, ""}), layerTar(t, "a=1"))
	if err := s.Prepare(ctx, "box", ids); err != nil {
		t.Fatal(err)
	}
	upper := s.path(containersDir, "box/upper")
	buf := make([]byte, 10)
	n, err := unix.Lgetxattr(upper, "user.x", buf)
	if err != nil || string(buf[:n]) != "y" {
		t.Errorf("user.x: %q, %v", buf[:max(n, 0)], err)
	}
	if fi, err := os.Stat(upper); err != nil || fi.Mode() != os.ModeDir|os.ModeSticky|0o777 || fi.ModTime().Unix() != 1e9 {
		t.Errorf("upper: %v, %v, %v", fi.Mode(), fi.ModTime(), err)
	}
}

func TestTooManyLayers(t *testing.T) {
	s, ctx := open(t), context.Background()
	base := layerTar(t, "a=1")
	ids := unpack(t, s, base)
	for i := range maxLower { // records and trees alone: unpacking them is not the point
		d := digest.FromString(string(rune(i)))
		to := s.path(layerPath(d))
		if err := os.MkdirAll(filepath.Join(to, "fs"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := writeRecord(to+"/"+layerRecord, &Layer{DiffID: d}); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, d)
	}
	if err := s.Prepare(ctx, "box", ids); !errdefs.Is(err, errdefs.Unsupported) {
		t.Errorf("%d layers: got %v", len(ids), err)
	}
	if err := s.Prepare(ctx, "box", ids[1:]); err != nil {
		t.Errorf("%d layers: got %v", len(ids)-1, err)
	}
	clean(t, s)
}
