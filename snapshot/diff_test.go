package snapshot

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/onggi/onggi/archive"
	"github.com/onggi/onggi/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// changes renders Changes, one a line.
func changes(t *testing.T, s *Store, id string) string {
	t.Helper()
	var b strings.Builder
	err := s.Changes(context.Background(), id, func(c archive.Change) error {
		fmt.Fprintf(&b, "%c %s\n", c.Kind, c.Path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// names renders the entries of a tar.
func names(t *testing.T, b []byte) string {
	t.Helper()
	var out strings.Builder
	r := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return out.String()
		}
		if err != nil {
			t.Fatal(err)
		}
		out.WriteString(h.Name)
		if h.Linkname != "" {
			out.WriteString(" -> " + h.Linkname)
		}
		out.WriteByte('\n')
	}
}

func TestDiff(t *testing.T) {
	base := []any{"a/ 0755", "a/one=1", "a/two=2", "b/ 0755", "b/in/ 0755", "b/in/deep=x", "b/f=f", "c/ 0700 1:2", "c/x=x", "d=file", "e->a/one", "hard=h"}
	second := []any{"b/ 0755", "b/later=l", "a/.wh.two"}
	for _, c := range []struct{ name, commands, changes, tar string }{
		{"nothing", "", "", ""},
		{"read only", "cat a/one; ls -R .", "", ""},
		{
			"added", "mkdir -p n/m; echo x > n/m/f; mkfifo a/p; mknod a/dev c 1 3; ln -s f n/l",
			"C /a\nA /a/dev\nA /a/p\nA /n\nA /n/l\nA /n/m\nA /n/m/f\n", "a/\na/dev\na/p\nn/\nn/l -> f\nn/m/\nn/m/f\n",
		},
		{"content changed", "echo y >> a/one", "C /a\nC /a/one\n", "a/\na/one\n"},
		{"metadata changed", "chmod 600 a/one; chown 5:6 b/f; chmod 711 c", "C /a\nC /a/one\nC /b\nC /b/f\nC /c\n", "a/\na/one\nb/\nb/f\nc/\n"},
		{"deleted", "rm a/one d; rm -r b", "C /a\nD /a/one\nD /b\nD /d\n", "a/\na/.wh.one\n.wh.b\n.wh.d\n"},
		{"made and deleted", "echo > new; rm new; mkdir x; rmdir x", "", ""},
		{
			"deleted and made again", "rm -r b; mkdir b; echo n > b/new; rm a/one; echo again > a/one",
			"C /a\nC /a/one\nC /b\nA /b/new\n", "a/\na/one\nb/\nb/.wh..wh..opq\nb/new\n",
		},
		{"a directory for a file and back", "rm d; mkdir d; echo > d/x; rm -r b; echo > b", "C /b\nC /d\nA /d/x\n", "b\nd/\nd/x\n"},
		{
			"hard links", "ln hard c/hard2; ln hard zz; echo new > n1; ln n1 n2", "C /c\nA /c/hard2\nC /hard\nA /n1\nA /n2\nA /zz\n",
			"c/\nc/hard2\nhard -> c/hard2\nn1\nn2 -> n1\nzz -> c/hard2\n",
		},
		{"a deleted file of the middle layer", "rm b/later", "C /b\nD /b/later\n", "b/\nb/.wh.later\n"},
		{"what was deleted below", "echo x > a/two", "C /a\nA /a/two\n", "a/\na/two\n"},
		{"the root's metadata", "chmod 711 .", "", "./\n"},
		{"for mounts", "mkdir -p etc dev proc sys/fs; : > etc/hosts; : > etc/resolv.conf; : > dev/console; echo x > etc/real", "A /etc\nA /etc/real\n", "etc/\netc/real\n"},
		{"a socket", `perl -MSocket -e 'socket(S,AF_UNIX,SOCK_STREAM,0); bind(S,sockaddr_un("sock"))'`, "A /sock\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := open(t)
			ctx := context.Background()
			var layers []digest.Digest
			for _, l := range [][]any{base, second} {
				b := layerTar(t, l...)
				d := digest.FromBytes(b)
				if _, err := s.Unpack(ctx, d, bytes.NewReader(b)); err != nil {
					t.Fatal(err)
				}
				layers = append(layers, d)
			}
			if err := s.Prepare(ctx, "c", layers); err != nil {
				t.Fatal(err)
			}
			want := merged(t, s, "c", false, c.commands)
			if got := changes(t, s, "c"); got != c.changes {
				t.Errorf("changes:\n%swant:\n%s", got, c.changes)
			}
			var one, two bytes.Buffer
			for _, w := range []*bytes.Buffer{&one, &two} {
				if _, err := s.Diff(ctx, "c", w); err != nil {
					t.Fatal(err)
				}
			}
			if sha256.Sum256(one.Bytes()) != sha256.Sum256(two.Bytes()) {
				t.Error("the same changes gave two different layers")
			}
			if got := names(t, one.Bytes()); got != c.tar {
				t.Errorf("tar:\n%swant:\n%s", got, c.tar)
			}
			if c.name == "for mounts" || c.name == "a socket" {
				return // what is left out on purpose is not in the copy
			}
			// The layer that was made shows the same tree on top of the others.
			d := digest.FromBytes(one.Bytes())
			if _, err := s.Unpack(ctx, d, &one); err != nil {
				t.Fatal(err)
			}
			if err := s.Prepare(ctx, "copy", append(layers, d)); err != nil {
				t.Fatal(err)
			}
			if got := merged(t, s, "copy", false, ""); got != want {
				t.Errorf("the layer shows:\n%swant:\n%s", got, want)
			}
		})
	}
}

// TestDiffKeeps looks at what an entry carries.
func TestDiffKeeps(t *testing.T) {
	s := open(t)
	ctx := context.Background()
	if err := s.Prepare(ctx, "c", nil); err != nil {
		t.Fatal(err)
	}
	merged(t, s, "c", false, "echo x > f; chown 70000:80000 f; chmod 4711 f; touch -d @1234567890.5 f; "+
		"mknod d b 259 70000; ln -s x l")
	for _, x := range []string{"user.note", "trusted.secret", "user.overlay.origin"} {
		if err := unix.Setxattr(s.path(containersDir, "c", "upper", "f"), x, []byte("hello"), 0); err != nil {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	st, err := s.Diff(ctx, "c", &b)
	if err != nil || st.Entries != 3 || st.Bytes != 2 {
		t.Fatal(st, err)
	}
	r := tar.NewReader(&b)
	got := ""
	for h, err := r.Next(); err == nil; h, err = r.Next() {
		got += fmt.Sprintln(h.Name, h.Mode, h.Uid, h.Gid, h.ModTime.Unix() == 1234567890, h.Devmajor, h.Devminor, len(h.Linkname), h.PAXRecords, h.Uname, h.Gname)
	}
	want := "d 420 0 0 false 259 70000 0 map[]  \nf 2505 70000 80000 true 0 0 0 map[SCHILY.xattr.user.note:hello]  \nl 511 0 0 false 0 0 1 map[]  \n"
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// TestDiffOfARedirect: overlayfs may keep a rename as a redirect, and a chmod as metadata alone.
func TestDiffOfARedirect(t *testing.T) {
	s := open(t)
	ctx := context.Background()
	b := layerTar(t, "a/ 0755", "a/f=content", "a/sub/ 0755", "a/sub/g=g", "big="+strings.Repeat("x", 100000))
	d := digest.FromBytes(b)
	if _, err := s.Unpack(ctx, d, bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	if err := s.Prepare(ctx, "c", []digest.Digest{d}); err != nil {
		t.Fatal(err)
	}
	m, err := s.Mounts("c", false, false)
	if err != nil {
		t.Fatal(err)
	}
	o := m[0].Overlay
	script := fmt.Sprintf(`mount -t overlay -o redirect_dir=on,metacopy=on,lowerdir=%s,upperdir=%s,workdir=%s o $1
cd $1; mv a moved; rm moved/f; printf new > moved/n; chmod 600 big; ls -lR . | grep -v total`, o.Lower[0], o.Upper, o.Work)
	if out, err := exec.Command("unshare", "-m", "sh", "-ec", script, "sh", t.TempDir()).CombinedOutput(); err != nil {
		t.Skipf("no overlay with redirects here: %v: %s", err, out)
	}
	if got, want := changes(t, s, "c"), "D /a\nC /big\nA /moved\nA /moved/n\nA /moved/sub\nA /moved/sub/g\n"; got != want {
		t.Errorf("changes:\n%swant:\n%s", got, want)
	}
	var out bytes.Buffer
	if _, err := s.Diff(ctx, "c", &out); err != nil {
		t.Fatal(err)
	}
	layer := digest.FromBytes(out.Bytes())
	if _, err := s.Unpack(ctx, layer, &out); err != nil {
		t.Fatal(err)
	}
	if err := s.Prepare(ctx, "copy", []digest.Digest{d, layer}); err != nil {
		t.Fatal(err)
	}
	want := ". d 755\nbig f 600 100000 bytes\nmoved d 755\nmoved/n f 644 new\nmoved/sub d 755\nmoved/sub/g f 644 g\n"
	if got := merged(t, s, "copy", false, ""); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestDiffRefuses(t *testing.T) {
	s := open(t)
	ctx := context.Background()
	if err := s.Prepare(ctx, "c", nil); err != nil {
		t.Fatal(err)
	}
	merged(t, s, "c", false, "echo > .wh.trap")
	if _, err := s.Diff(ctx, "c", io.Discard); !errdefs.Is(err, errdefs.InvalidArgument) || !strings.Contains(err.Error(), ".wh.trap") {
		t.Errorf("a name like a whiteout's: %v", err)
	}
	if _, err := s.Diff(ctx, "nosuch", io.Discard); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("no such container: %v", err)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := s.Diff(gone, "c", io.Discard); !errdefs.Is(err, errdefs.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if err := os.Remove(s.path(containersDir, "c", "upper", ".wh.trap")); err != nil {
		t.Fatal(err)
	}
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	if _, err := s.Diff(ctx, "c", full); !errdefs.Is(err, errdefs.NoSpace) {
		t.Errorf("a writer that is full: %v", err)
	}
}
