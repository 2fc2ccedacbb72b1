package tree

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"github.com/onggi/onggi/build/graph"
	"github.com/onggi/onggi/errdefs"
	"golang.org/x/sys/unix"
)

// grow makes a tree: "a/b=text", "a/", "l->target", "h=>a/b" (another name of a/b).
func grow(t *testing.T, entries ...string) *os.File {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("owners need root")
	}
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, e := range entries {
		if name, target, ok := strings.Cut(e, "=>"); ok {
			must(os.Link(filepath.Join(dir, target), filepath.Join(dir, name)))
		} else if name, target, ok := strings.Cut(e, "->"); ok {
			must(os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
			must(os.Symlink(target, filepath.Join(dir, name)))
		} else if name, data, ok := strings.Cut(e, "="); ok {
			must(os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
			must(os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644))
		} else {
			must(os.MkdirAll(filepath.Join(dir, e), 0o755))
		}
	}
	f, err := os.Open(dir)
	must(err)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// shape lists a tree as grow takes it, with what is not ordinary in brackets.
func shape(t *testing.T, root *os.File) string {
	t.Helper()
	var out []string
	err := filepath.Walk(root.Name(), func(p string, fi os.FileInfo, err error) error {
		if err != nil || p == root.Name() {
			return err
		}
		rel, _ := filepath.Rel(root.Name(), p)
		var s unix.Stat_t
		if err := unix.Lstat(p, &s); err != nil {
			return err
		}
		extra := ""
		if s.Uid != 0 || s.Gid != 0 {
			extra += fmt.Sprintf("[%d:%d]", s.Uid, s.Gid)
		}
		switch {
		case fi.Mode()&os.ModeSymlink != 0:
			l, _ := os.Readlink(p)
			rel += "->" + l
		case fi.IsDir():
			rel += "/"
			if s.Mode&0o7777 != 0o755 {
				extra += fmt.Sprintf("[%o]", s.Mode&0o7777)
			}
		default:
			b, _ := os.ReadFile(p)
			rel += "=" + string(b)
			if s.Mode&0o7777 != 0o644 {
				extra += fmt.Sprintf("[%o]", s.Mode&0o7777)
			}
		}
		out = append(out, rel+extra)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	sort.Strings(out)
	return strings.Join(out, " ")
}

func view(t *testing.T, root *os.File, include, exclude []string) *View {
	t.Helper()
	v, err := NewView(root, include, exclude, true)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// copyAs is COPY as the frontend writes it.
func copyAs(src, dest string) graph.Copy {
	return graph.Copy{Src: src, Dest: dest, Mode: -1, Timestamp: -1, FollowSymlink: true, DirContents: true, Wildcard: true, CreateDestPath: true}
}

func TestCopy(t *testing.T) {
	for name, c := range map[string]struct {
		src, dst []string
		ignore   []string
		c        func(*graph.Copy)
		from, to string
		ids      *IDs
		want     string
		fails    string
	}{
		"a file to a name":                      {src: []string{"a=1"}, from: "/a", to: "/b", want: "b=1"},
		"a file into a new directory":           {src: []string{"a=1"}, from: "/a", to: "/d/", want: "d/ d/a=1"},
		"a file into a directory":               {src: []string{"a=1"}, dst: []string{"d"}, from: "/a", to: "/d", want: "d/ d/a=1"},
		"a file over a file":                    {src: []string{"a=1"}, dst: []string{"b=0"}, from: "/a", to: "/b", want: "b=1"},
		"a directory's contents":                {src: []string{"d/a=1", "d/e/f=2"}, from: "/d", to: "/x", want: "x/ x/a=1 x/e/ x/e/f=2"},
		"everything":                            {src: []string{"a=1", "d/b=2"}, from: "/", to: "/", want: "a=1 d/ d/b=2"},
		"hidden files at the top":               {src: []string{".a=1", "..b=2", ".d/.c=3"}, from: "/", to: "/", want: "..b=2 .a=1 .d/ .d/.c=3"},
		"into what is there":                    {src: []string{"d/a=1"}, dst: []string{"d/b=0"}, from: "/", to: "/", want: "d/ d/a=1 d/b=0"},
		"required of a directory":               {src: []string{"y/a=1", "y/b=2"}, from: "/y", to: "/p/", c: func(c *graph.Copy) { c.Include, c.Required = []string{"a"}, []string{"/y/a"} }, want: "p/ p/a=1"},
		"required and not there":                {src: []string{"y/b=2"}, from: "/y", to: "/p/", c: func(c *graph.Copy) { c.Include, c.Required = []string{"a"}, []string{"/y/a"} }, fails: "no such file"},
		"a pattern":                             {src: []string{"a.c=1", "b.c=2", "c.h=3"}, from: "/*.c", to: "/s/", want: "s/ s/a.c=1 s/b.c=2"},
		"a pattern of directories":              {src: []string{"x1/a=1", "x2/b=2"}, from: "/x*", to: "/s/", want: "s/ s/a=1 s/b=2"},
		"a pattern in the middle":               {src: []string{"x/1/f=1", "x/2/f=2", "x/3/g=3"}, from: "/x/*/f", to: "/o", dst: nil, want: "o=2"},
		"no match":                              {src: []string{"a=1"}, from: "/*.c", to: "/", fails: "no file matches"},
		"no match is allowed":                   {src: []string{"a=1"}, from: "/*.c", to: "/", c: func(c *graph.Copy) { c.EmptyWildcard = true }, want: ""},
		"not there":                             {src: []string{"a=1"}, from: "/b", to: "/", fails: "no such file"},
		"ignored":                               {src: []string{"a=1"}, ignore: []string{"a"}, from: "/a", to: "/", fails: ".dockerignore leaves it out"},
		"ignored in a directory":                {src: []string{"a=1", "b=2", "d/a=3"}, ignore: []string{"**/a"}, from: "/", to: "/", want: "b=2 d/"},
		"ignored but for one":                   {src: []string{"d/a=1", "d/b=2", "e/c=3"}, ignore: []string{"*", "!d/b"}, from: "/", to: "/", want: "d/ d/b=2"},
		"a link to a file":                      {src: []string{"a=1", "l->a"}, from: "/l", to: "/d/", want: "d/ d/l=1"},
		"a link in a directory stays":           {src: []string{"d/l->../a", "a=1"}, from: "/d", to: "/x", want: "x/ x/l->../a"},
		"a link out of the source ends in it":   {src: []string{"l->/etc/hostname", "etc/hostname=mine"}, from: "/l", to: "/x", want: "x=mine"},
		"dots out of the source end in it":      {src: []string{"a=1"}, from: "/../../a", to: "/x", want: "x=1"},
		"a link in the target, followed inside": {src: []string{"a=1"}, dst: []string{"l->/d", "d/"}, from: "/a", to: "/l/", want: "d/ d/a=1 l->/d"},
		"a link out of the target ends in it":   {src: []string{"a=1"}, dst: []string{"l->../../../../tmp"}, from: "/a", to: "/l/x", want: "l->../../../../tmp tmp/ tmp/x=1"},
		"over a link inside, the link goes":     {src: []string{"d/a=1"}, dst: []string{"d/a->../b", "b=0"}, from: "/", to: "/", want: "b=0 d/ d/a=1"},
		"a file where a directory is":           {src: []string{"d/a=1"}, dst: []string{"d/a/x=0"}, from: "/", to: "/", fails: "one of the two is a directory"},
		"a file replaces a directory":           {src: []string{"d/a=1"}, dst: []string{"d/a/x=0"}, from: "/", to: "/", c: func(c *graph.Copy) { c.AlwaysReplace = true }, want: "d/ d/a=1"},
		"names of one file":                     {src: []string{"a=1", "b=>a"}, from: "/", to: "/", want: "a=1 b=1"},
		"with an owner":                         {src: []string{"d/a=1"}, from: "/d", to: "/x/y", ids: &IDs{7, 8}, want: "x/[7:8] x/y/[7:8] x/y/a=1[7:8]"},
		"with a mode":                           {src: []string{"d/a=1"}, from: "/d", to: "/x/", c: func(c *graph.Copy) { c.Mode = 0o4750 }, want: "x/ x/a=1[4750]"},
		"with a symbolic mode":                  {src: []string{"d/a=1", "d/e/"}, from: "/d", to: "/x/", c: func(c *graph.Copy) { c.ModeStr = "u=rwX,go=" }, want: "x/ x/a=1[600] x/e/[700]"},
		"with a wrong mode":                     {src: []string{"a=1"}, from: "/a", to: "/", c: func(c *graph.Copy) { c.ModeStr = "q+w" }, fails: "--chmod=q+w"},
		"leaving some out":                      {src: []string{"d/a=1", "d/b=2"}, from: "/d", to: "/x/", c: func(c *graph.Copy) { c.Exclude = []string{"a"} }, want: "x/ x/b=2"},
		"with parents":                          {src: []string{"p/q/a=1", "p/r=0"}, from: "/", to: "/x/", c: func(c *graph.Copy) { c.Include = []string{"p/q/a"} }, want: "x/ x/p/ x/p/q/ x/p/q/a=1"},
		"without its required":                  {src: []string{"a=1"}, from: "/", to: "/x/", c: func(c *graph.Copy) { c.Include, c.Required = []string{"a", "b"}, []string{"b"} }, fails: "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			src, dst := grow(t, c.src...), grow(t, c.dst...)
			op := copyAs(c.from, c.to)
			if c.c != nil {
				c.c(&op)
			}
			err := NewTarget(dst).Copy(context.Background(), view(t, src, nil, c.ignore), &op, c.ids, nil, nil)
			if c.fails != "" {
				if err == nil || !strings.Contains(err.Error(), c.fails) {
					t.Errorf("got %v, want %q", err, c.fails)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := shape(t, dst); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

func TestCopyKeeps(t *testing.T) {
	src, dst := grow(t, "d/a=1", "d/b=>d/a", "d/x=2"), grow(t)
	at := func(n string) string { return filepath.Join(src.Name(), n) }
	for _, err := range []error{
		unix.Mkfifo(at("d/fifo"), 0o640), unix.Chown(at("d/x"), 5, 6), unix.Chmod(at("d/x"), 0o4711),
		unix.Setxattr(at("d/x"), "user.k", []byte("v"), 0), unix.Mknod(at("d/dev"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))),
		unix.UtimesNanoAt(unix.AT_FDCWD, at("d/x"), []unix.Timespec{{Sec: 11}, {Sec: 22, Nsec: 33}}, 0),
		unix.UtimesNanoAt(unix.AT_FDCWD, at("d"), []unix.Timespec{{Sec: 11}, {Sec: 44}}, 0),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	v, err := NewView(src, nil, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	op := copyAs("/", "/")
	if err := NewTarget(dst).Copy(context.Background(), v, &op, nil, nil, nil); err != nil {
		t.Fatal(err)
	}
	stat := func(n string) (st unix.Stat_t) {
		t.Helper()
		if err := unix.Lstat(filepath.Join(dst.Name(), n), &st); err != nil {
			t.Fatal(err)
		}
		return st
	}
	x := stat("d/x")
	if x.Uid != 5 || x.Gid != 6 || x.Mode&0o7777 != 0o4711 || x.Mtim.Sec != 22 || x.Mtim.Nsec != 33 {
		t.Errorf("x: %+v", x)
	}
	b := make([]byte, 8)
	if n, err := unix.Getxattr(filepath.Join(dst.Name(), "d/x"), "user.k", b); err != nil || string(b[:n]) != "v" {
		t.Errorf("attribute: %q, %v", b, err)
	}
	if a, b := stat("d/a"), stat("d/b"); a.Ino != b.Ino {
		t.Error("two names became two files")
	}
	if f := stat("d/fifo"); f.Mode != unix.S_IFIFO|0o640 {
		t.Errorf("fifo: %o", f.Mode)
	}
	if d := stat("d/dev"); d.Mode != unix.S_IFCHR|0o600 || d.Rdev != unix.Mkdev(1, 3) {
		t.Errorf("device: %+v", d)
	}
	if d := stat("d"); d.Mtim.Sec != 44 {
		t.Errorf("the directory's time: %+v", d.Mtim)
	}
}

func TestDigestIsOfWhatCounts(t *testing.T) {
	sum := func(root *os.File, ignore []string, src string) string {
		t.Helper()
		d, err := view(t, root, nil, ignore).Digest(context.Background(), Selection{Src: src, Wildcard: true, Follow: true}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return d.String()
	}
	base := grow(t, "a=1", "d/b=2")
	first := sum(base, nil, "/")
	at := filepath.Join(base.Name(), "a")
	now := []unix.Timespec{{Sec: 1}, {Sec: 2}}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, at, now, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(at, 9, 9); err != nil {
		t.Fatal(err)
	}
	if sum(base, nil, "/") != first {
		t.Error("times and a user's own id count")
	}
	if got := sum(grow(t, "a=1", "d/b=2", "c=3"), []string{"c"}, "/"); got != first {
		t.Error("what .dockerignore leaves out counts")
	}
	seen := map[string]string{first: "the first"}
	for name, entries := range map[string][]string{
		"content": {"a=2", "d/b=2"}, "a name": {"aa=1", "d/b=2"}, "another file": {"a=1", "d/b=2", "d/c="}, "a type": {"a->1", "d/b=2"}, "moved": {"a=1", "b=2", "d/"},
	} {
		d := sum(grow(t, entries...), nil, "/")
		if seen[d] != "" {
			t.Errorf("%s and %s are the same", name, seen[d])
		}
		seen[d] = name
	}
	if err := os.Chmod(at, 0o600); err != nil {
		t.Fatal(err)
	}
	if sum(base, nil, "/") == first {
		t.Error("a mode does not count")
	}
	if sum(base, nil, "/d") != sum(grow(t, "x=9", "d/b=2"), nil, "/d") {
		t.Error("a neighbour counts")
	}
}

func TestFileOperations(t *testing.T) {
	root := grow(t, "etc/passwd=x", "l->/etc", "d/a=1", "d/b=2", "var->/run2")
	tg := NewTarget(root)
	do := func(want string, err error) {
		t.Helper()
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	ctx := context.Background()
	do("", tg.Mkdir(&graph.Mkdir{Path: "/x/y", Mode: 0o700, Parents: true, Timestamp: 5e9}, &IDs{3, 4}))
	do("", tg.Mkdir(&graph.Mkdir{Path: "/var/lib", Mode: 0o755, Parents: true, Timestamp: -1}, nil))
	do("", tg.Mkdir(&graph.Mkdir{Path: "/d", Mode: 0o700, Timestamp: -1}, nil))
	do("", tg.Mkfile(&graph.Mkfile{Path: "/l/motd", Mode: 0o600, Data: []byte("hi"), Timestamp: -1}, nil))
	do("", tg.Mkfile(&graph.Mkfile{Path: "/etc/passwd", Mode: 0o644, Data: []byte("y"), Timestamp: -1}, nil))
	do("", tg.Symlink(&graph.Symlink{Target: "anything", Path: "/s", Timestamp: -1}, &IDs{1, 2}))
	do("", tg.Remove(ctx, &graph.Rm{Path: "/d/[a]", Wildcard: true}))
	do("", tg.Remove(ctx, &graph.Rm{Path: "/nothing", AllowNotFound: true}))
	do("no such file", tg.Remove(ctx, &graph.Rm{Path: "/nothing"}))
	do("root itself", tg.Remove(ctx, &graph.Rm{Path: "/"}))
	do("root itself", tg.Mkfile(&graph.Mkfile{Path: "/", Timestamp: -1}, nil))
	do("", tg.Remove(ctx, &graph.Rm{Path: "/l"}))
	want := "d/ d/b=2 etc/ etc/motd=hi[600] etc/passwd=y run2/ run2/lib/ s->anything[1:2] var->/run2 x/[3:4][700] x/y/[3:4][700]"
	if got := shape(t, root); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestUnpack: ADD of an archive unpacks it with its owners; of anything else it copies.
func TestUnpack(t *testing.T) {
	src, inner, dst := grow(t, "plain=x"), grow(t, "bin/tool=1"), grow(t, "opt->/real", "real/")
	if err := os.Chown(filepath.Join(inner.Name(), "bin/tool"), 12, 13); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("tar", "-C", inner.Name(), "-cf", filepath.Join(src.Name(), "a.tar"), "bin").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	unpack := func(_ context.Context, r io.Reader, dir *os.File) (bool, error) {
		f := r.(*os.File)
		if !strings.HasSuffix(f.Name(), "a.tar") {
			return false, nil
		}
		c := exec.Command("tar", "-C", dir.Name(), "-xf", "-")
		c.Stdin = f
		return true, c.Run()
	}
	scratch := func() (*os.File, error) { return os.Open(t.TempDir()) }
	for _, n := range []string{"/a.tar", "/plain"} {
		op := copyAs(n, "/opt/")
		op.Unpack = true
		if err := NewTarget(dst).Copy(context.Background(), view(t, src, nil, nil), &op, nil, unpack, scratch); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := shape(t, dst), "opt->/real real/ real/bin/ real/bin/tool=1[12:13] real/plain=x"; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestSelectRefuses(t *testing.T) {
	v := view(t, grow(t, "l->l", "a=1"), nil, nil)
	ctx := context.Background()
	if _, err := v.Select(ctx, "/l", false, true); err == nil || !strings.Contains(err.Error(), "links") {
		t.Errorf("a circle of links: %v", err)
	}
	if _, err := v.Select(ctx, "/[", true, true); !errdefs.Is(err, errdefs.InvalidArgument) {
		t.Errorf("a bad pattern: %v", err)
	}
	if _, err := v.Select(ctx, "/a/b", false, true); err == nil {
		t.Error("a file as a directory")
	}
	if _, err := NewView(v.root, []string{"["}, nil, true); !errdefs.Is(err, errdefs.InvalidArgument) {
		t.Errorf("a bad filter: %v", err)
	}
}
