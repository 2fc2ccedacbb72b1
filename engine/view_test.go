package engine

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/mount"
	"golang.org/x/sys/unix"
)

// put makes layer trees: "path" -> content; "path/" a directory; "-> target" a link; "whiteout"; "opaque/" an opaque
// directory; "pipe".
func put(t *testing.T, dir string, files map[string]string) string {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(dir, 0o755))
	for p, text := range files {
		p = filepath.Join(dir, p)
		must(os.MkdirAll(filepath.Dir(p), 0o755))
		switch to, link := strings.CutPrefix(text, "-> "); {
		case link:
			must(os.Symlink(to, p))
		case text == "whiteout":
			must(unix.Mknod(p, unix.S_IFCHR, 0))
		case text == "opaque/":
			must(os.MkdirAll(p, 0o755))
			must(unix.Setxattr(p, "trusted.overlay.opaque", []byte("y"), 0))
		case text == "pipe":
			must(unix.Mkfifo(p, 0o600))
		default:
			must(os.WriteFile(p, []byte(text), 0o644))
		}
	}
	return dir
}

func TestViewSeesWhatOverlayShows(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: whiteouts and trusted attributes")
	}
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("host"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		layers []map[string]string // topmost first
		path   string
		want   string // content; "" missing; "!x" an error with x
	}{
		{"one layer", []map[string]string{{"etc/passwd": "a"}}, "etc/passwd", "a"},
		{"upper wins", []map[string]string{{"etc/passwd": "new"}, {"etc/passwd": "old"}}, "etc/passwd", "new"},
		{"below", []map[string]string{{"etc/x": "1"}, {"b": ""}, {"etc/passwd": "old"}}, "etc/passwd", "old"},
		{"whiteout of the file", []map[string]string{{"etc/passwd": "whiteout"}, {"etc/passwd": "old"}}, "etc/passwd", ""},
		{"whiteout of the directory", []map[string]string{{"etc": "whiteout"}, {"etc/passwd": "old"}}, "etc/passwd", ""},
		{"opaque directory", []map[string]string{{"etc": "opaque/"}, {"etc/passwd": "old"}}, "etc/passwd", ""},
		{"a file hides the directory", []map[string]string{{"etc": "file"}, {"etc/passwd": "old"}}, "etc/passwd", ""},
		{"file in between", []map[string]string{{"etc/x": "1"}, {"etc": "file"}, {"etc/passwd": "old"}}, "etc/passwd", ""},
		{"missing", []map[string]string{{"b": "1"}}, "etc/passwd", ""},
		{"link of the file", []map[string]string{{"etc/passwd": "-> ../usr/passwd"}, {"usr/passwd": "there"}}, "etc/passwd", "there"},
		{"link of the directory", []map[string]string{{"etc": "-> usr/etc"}, {"usr/etc/passwd": "there"}}, "etc/passwd", "there"},
		{"absolute link stays inside", []map[string]string{{"etc/passwd": "-> " + secret}, {"x": "1"}}, "etc/passwd", ""},
		{"dots stay inside", []map[string]string{{"etc/passwd": "-> ../../../../../../../../../.." + secret}, {"x": "1"}}, "etc/passwd", ""},
		{"single layer, absolute link", []map[string]string{{"etc/passwd": "-> " + secret}}, "etc/passwd", ""},
		{"loop", []map[string]string{{"etc": "-> etc"}, {"x": "1"}}, "etc/passwd", "!symbolic links"},
		{"pipe", []map[string]string{{"etc/passwd": "pipe"}}, "etc/passwd", "!regular"},
		{"link to a pipe", []map[string]string{{"etc/passwd": "-> p"}, {"etc/p": "pipe"}}, "etc/passwd", "!regular"},
		{"too big", []map[string]string{{"etc/passwd": strings.Repeat("x", 2000)}}, "etc/passwd", "!larger"},
	} {
		dir := t.TempDir()
		var layers []string
		for i, files := range c.layers {
			layers = append(layers, put(t, filepath.Join(dir, string(rune('a'+i))), files))
		}
		at := filepath.Join(dir, "at")
		if err := os.Mkdir(at, 0o700); err != nil {
			t.Fatal(err)
		}
		mounts := []mount.Mount{{Type: "overlay", Overlay: &mount.Overlay{Lower: layers}}}
		if len(layers) > 1 {
			mounts[0].Overlay = &mount.Overlay{Upper: layers[0], Work: at, Lower: layers[1:]}
		}
		v, err := newView(mounts, at)
		if err != nil {
			t.Fatal(err)
		}
		got, err := v.read(c.path, 1000)
		v.close()
		switch part, bad := strings.CutPrefix(c.want, "!"); {
		case bad:
			if err == nil || !strings.Contains(err.Error(), part) || !errdefs.Is(err, errdefs.InvalidArgument) && !errdefs.Is(err, errdefs.Exhausted) {
				t.Errorf("%s: got %q, %v; want an error with %q", c.name, got, err, part)
			}
		case c.want == "":
			if !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: got %q, %v; want that it does not exist", c.name, got, err)
			}
		default:
			if err != nil || string(got) != c.want {
				t.Errorf("%s: got %q, %v; want %q", c.name, got, err, c.want)
			}
		}
		if m, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(m), at) {
			t.Errorf("%s: the view's mount is seen by the host", c.name)
		}
	}
}

// TestPlaces: a mount goes where the image's links lead, also when nothing is there yet.
func TestPlaces(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: whiteouts and trusted attributes")
	}
	dir := t.TempDir()
	v := &view{layers: []string{
		put(t, dir+"/top", map[string]string{"etc/localtime": "-> /usr/share/zoneinfo/UTC", "etc/hosts": "x", "opt": "whiteout", "loop": "-> loop", "up": "-> ../../../../etc"}),
		put(t, dir+"/low", map[string]string{"etc/resolv.conf": "-> ../run/systemd/resolve/stub.conf", "etc/hosts": "-> /gone", "var/run": "-> /run", "opt": "-> /elsewhere", "deep/a": "-> ../var/run/b"}),
	}}
	want := map[string]string{
		"/etc/resolv.conf": "/run/systemd/resolve/stub.conf", "/etc/localtime": "/usr/share/zoneinfo/UTC", "/etc/hosts": "/etc/hosts",
		"/var/run/docker.sock": "/run/docker.sock", "/opt/x": "/opt/x", "/loop/x": "/loop/x", "/up/new": "/etc/new", "/deep/a/c": "/run/b/c",
		"/new/dir": "/new/dir", "/": "/", "/var": "/var",
	}
	var paths []string
	for p := range want {
		paths = append(paths, p)
	}
	got, err := v.places(paths)
	if err != nil {
		t.Fatal(err)
	}
	for p, w := range want {
		if got[p] != w {
			t.Errorf("%s: got %s, want %s", p, got[p], w)
		}
	}
}
