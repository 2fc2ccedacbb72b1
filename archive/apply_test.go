package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/onggi/onggi/errdefs"
	"golang.org/x/sys/unix"
)

// TestApply is what a layer becomes.
func TestApply(t *testing.T) {
	needRoot(t)
	owned := func(h tar.Header, uid, gid int) tar.Header { h.Uid, h.Gid = uid, gid; return h }
	moded := func(e entry, mode int64) entry { e.Mode = mode; return e }
	long := strings.Repeat("long/", 60) + strings.Repeat("n", 255)
	for _, c := range []struct {
		name    string
		entries []any
		want    string
		implied string
		opaque  bool
	}{
		{name: "empty", want: "", implied: "."},
		{name: "root only", entries: []any{dir("./", 0o755)}, want: ""},
		{name: "plain things", entries: []any{
			dir("./", 0o755), dir("./a/", 0o750), file("./a/f", "hello"), sym("a/l", "/etc/../x"), link("a/h", "./a/f"), link("h2", "/a/f"),
			node(tar.TypeChar, "null", 1, 3), node(tar.TypeBlock, "disk", 259, 70000), node(tar.TypeFifo, "pipe", 0, 0),
		}, want: "a d 750\na/f f 644 hello\na/h f 644 = a/f\na/l l 777 -> /etc/../x\ndisk b 600 259:70000\nh2 f 644 = a/f\nnull c 600 1:3\npipe p 600\n"},
		{
			name: "absolute names lie inside", entries: []any{file("/etc/passwd", "root"), file("//x//y", "z")},
			want: "etc d 755\netc/passwd f 644 root\nx d 755\nx/y f 644 z\n", implied: ". etc x",
		},
		{
			name: "odd names", entries: []any{file("a\xff\xfe b\n", "bytes"), file("...", "dots"), file(".whatever", "w"), file("a.wh.b", "m"), file("-rf", "")},
			want: "-rf f 644\n... f 644 dots\n.whatever f 644 w\na.wh.b f 644 m\na\xff\xfe b\n f 644 bytes\n", implied: ".",
		},
		{name: "modes", entries: []any{
			dir("tmp", 0o1777), dir("sg", 0o2775), file("sg/child", "x"), dir("sg/sub", 0o755), moded(file("su", "x"), 0o4755), moded(file("none", "x"), 0),
			moded(file("all", "x"), 0o7777), dir("closed", 0), file("closed/f", "y"),
		}, want: "all f 7777 x\nclosed d 0\nclosed/f f 644 y\nnone f 0 x\nsg d 2775\nsg/child f 644 x\nsg/sub d 755\nsu f 4755 x\ntmp d 1777\n", implied: "."},
		{name: "owners", entries: []any{
			owned(dir("d", 0o755), 1, 2), owned(file("d/f", "x").Header, 65536, 4294967294), owned(sym("l", "x"), 3, 4), owned(node(tar.TypeFifo, "p", 0, 0), 5, 6),
		}, want: "d d 755 1:2\nd/f f 644 65536:4294967294\nl l 777 3:4 -> x\np p 600 5:6\n", implied: "."},
		{name: "the later wins", entries: []any{
			file("f", "old and longer"), file("f", "new"), file("d", "file"), dir("d", 0o700), file("d/x", "x"), dir("e", 0o755), file("e/in", ""), file("e", "file"),
			sym("l", "a"), file("l", "no link"), file("m", "x"), sym("m", "y"), dir("g", 0o700), dir("g", 0o711),
		}, want: "d d 700 opaque=y\nd/x f 644 x\ne f 644 file\nf f 644 new\ng d 711\nl f 644 no link\nm l 777 -> y\n", implied: "."},
		{
			name: "hard link kept when its file is written again", entries: []any{file("f", "one"), link("h", "f"), file("f", "two"), link("f2", "f")},
			want: "f f 644 two\nf2 f 644 = f\nh f 644 one\n", implied: ".",
		},
		{name: "hard link to itself", entries: []any{file("f", "x"), link("f", "f"), link("./f", "/f")}, want: "f f 644 x\n", implied: "."},
		{name: "hard link to a link", entries: []any{sym("s", "/nowhere"), link("h", "s")}, want: "h l 777 -> /nowhere\ns l 777 -> /nowhere\n", implied: "."},
		{name: "links as parents", entries: []any{
			dir("usr/lib", 0o755), sym("lib", "usr/lib"), file("lib/a", "1"), sym("abs", "/usr"), file("abs/lib/b", "2"), sym("usr/up", "../../../usr/lib"), file("usr/up/c", "3"),
			dir("lib/d", 0o700), sym("run", "/var/run"), file("run/pid", "4"), link("run/pid2", "lib/a"),
		}, want: "abs l 777 -> /usr\nlib l 777 -> usr/lib\nrun l 777 -> /var/run\nusr d 755\nusr/lib d 755\nusr/lib/a f 644 1\nusr/lib/b f 644 2\nusr/lib/c f 644 3\nusr/lib/d d 700\n" +
			"usr/up l 777 -> ../../../usr/lib\nvar d 755\nvar/run d 755\nvar/run/pid f 644 4\nvar/run/pid2 f 644 = usr/lib/a\n", implied: ". usr var var/run"},
		{
			name: "a link replaced by a directory", entries: []any{dir("b", 0o755), sym("a", "b"), file("a/x", "1"), dir("a", 0o700), file("a/y", "2")},
			want: "a d 700 opaque=y\na/y f 644 2\nb d 755\nb/x f 644 1\n", implied: ".",
		},
		{
			name: "a parent replaced while it is in the cache", entries: []any{file("a/b/c", "1"), file("a/b", "file"), file("a/d", "2"), file("a", "gone"), dir("a", 0o755), file("a/b/c", "3")},
			want: "a d 755 opaque=y\na/b d 755\na/b/c f 644 3\n", implied: ". a/b",
		},
		{
			name: "whiteouts", entries: []any{file("d/.wh.gone", ""), file(".wh.top", ""), file("e/.wh..wh..opq", ""), file("e/new", "x"), file(".wh..wh.aufs", "junk"), file(".wh..wh.plnk/1.2", "junk")},
			want: "d d 755\nd/gone c 0 0:0\ne d 755 opaque=y\ne/new f 644 x\ntop c 0 0:0\n", implied: ". d e",
		},
		{name: "whiteout and the same name", entries: []any{
			file(".wh.f", ""), file("f", "new"), file("g", "new"), file(".wh.g", ""), file(".wh.d", ""), file("d/in", "x"), dir("e", 0o755), file("e/in", "y"), file(".wh.e", ""), file(".wh.e", ""),
			file("i/in", "z"), file(".wh.i", ""),
		}, want: "d d 755 opaque=y\nd/in f 644 x\ne d 755 opaque=y\ne/in f 644 y\nf f 644 new\ng f 644 new\ni d 755 opaque=y\ni/in f 644 z\n", implied: "."},
		{name: "opaque root", entries: []any{file(".wh..wh..opq", ""), file("x", "y")}, want: "x f 644 y\n", implied: ".", opaque: true},
		{
			name: "an implied directory that is described later", entries: []any{file("a/f", "x"), dir("a", 0o700), file("b/f", "x"), file("b", "no directory")},
			want: "a d 700\na/f f 644 x\nb f 644 no directory\n", implied: ".",
		},
		{
			name: "long names", entries: []any{file(long, "x")},
			want: func() (s string) {
				for i := 1; i <= 60; i++ {
					s += strings.TrimSuffix(strings.Repeat("long/", i), "/") + " d 755\n"
				}
				return s + long + " f 644 x\n"
			}(), implied: "#61",
		},
		{
			name: "git's comment", entries: []any{tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "1234"}}, file("f", "x")},
			want: "f f 644 x\n", implied: ".",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			in, s, err := apply(t, mkTar(t, c.entries...), Options{})
			if err != nil {
				t.Fatal(err)
			}
			if got := list(t, in, ""); got != c.want {
				t.Errorf("got:\n%s\nwant:\n%s", got, c.want)
			}
			if got := strings.Join(s.Implied, " "); got != c.implied && !(c.implied == "#61" && len(s.Implied) == 61) {
				t.Errorf("implied: got %q, want %q", got, c.implied)
			}
			if s.Opaque != c.opaque {
				t.Errorf("opaque: got %v, want %v", s.Opaque, c.opaque)
			}
		})
	}
}

// TestBreakouts is archives that must not be taken: what they would do, and as what they are refused. That nothing
// outside changes is checked by apply.
func TestBreakouts(t *testing.T) {
	needRoot(t)
	pax := func(h tar.Header, kv ...string) tar.Header {
		h.PAXRecords = map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			h.PAXRecords[kv[i]] = kv[i+1]
		}
		return h
	}
	owner := func(uid, gid int) tar.Header { h := dir("d", 0o755); h.Uid, h.Gid = uid, gid; return h }
	deep := strings.Repeat("d/", maxDepth+2) + "f"
	var alias []any // each link doubles what the next name means
	for range 3 {
		alias = append(alias, dir(strings.Repeat("a/", 300), 0o755))
	}
	alias = append(alias, sym("l", strings.Repeat("a/", 300)), dir("l/"+strings.Repeat("a/", 300), 0o755))
	for _, c := range []struct {
		name    string
		entries []any
		kind    errdefs.Kind
		why     string
	}{
		{"dotdot", []any{file("../evil", "x")}, errdefs.InvalidArgument, `".."`},
		{"dotdot in the middle", []any{dir("a", 0o755), file("a/../../evil", "x")}, errdefs.InvalidArgument, `".."`},
		{"dotdot that stays inside", []any{dir("a", 0o755), file("a/../b", "x")}, errdefs.InvalidArgument, `".."`},
		{"hard link with dotdot", []any{link("h", "../outside/secret")}, errdefs.InvalidArgument, `".."`},
		{"hard link to an absolute name", []any{link("h", "/etc/passwd")}, errdefs.InvalidArgument, "does not come before"},
		{"hard link through a link", []any{sym("o", "../outside"), link("h", "o/secret")}, errdefs.InvalidArgument, "does not come before"},
		{"hard link to a directory", []any{dir("d", 0o755), link("h", "d")}, errdefs.InvalidArgument, "directory"},
		{"hard link to the root", []any{link("h", ".")}, errdefs.InvalidArgument, "directory"},
		{"hard link to a whiteout", []any{file(".wh.x", ""), link("h", "x")}, errdefs.InvalidArgument, "deletes"},
		{"hard link to what comes later", []any{link("h", "f"), file("f", "x")}, errdefs.InvalidArgument, "does not come before"},
		{"hard link to what it replaces", []any{file("d/f", "x"), link("d", "d/f")}, errdefs.InvalidArgument, "does not come before"},
		{"root becomes a link", []any{sym("./", "/etc")}, errdefs.InvalidArgument, "root"},
		{"root becomes a file", []any{tar.Header{Typeflag: tar.TypeReg, Name: "."}}, errdefs.InvalidArgument, "root"},
		{"links in a circle", []any{sym("a", "b"), sym("b", "a"), file("a/x", "")}, errdefs.InvalidArgument, "too many symbolic links"},
		{"below a file", []any{file("f", ""), file("f/x", "")}, errdefs.InvalidArgument, "not a directory"},
		{"below a device", []any{node(tar.TypeChar, "n", 1, 3), file("n/x", "")}, errdefs.InvalidArgument, "not a directory"},
		{"below a file by a link", []any{file("f", ""), sym("l", "f"), file("l/x", "")}, errdefs.InvalidArgument, "not a directory"},
		{"a whiteout device", []any{node(tar.TypeChar, "w", 0, 0)}, errdefs.InvalidArgument, "0:0"},
		{"a device that does not exist", []any{node(tar.TypeBlock, "w", 4096, 0)}, errdefs.InvalidArgument, "no device"},
		{"a device that would wrap", []any{tar.Header{Typeflag: tar.TypeBlock, Name: "w", Devmajor: 1<<32 + 8, Format: tar.FormatGNU}}, errdefs.InvalidArgument, "no device"},
		{"whiteout of nothing", []any{file("a/.wh.", "")}, errdefs.InvalidArgument, "names no file"},
		{"whiteout of dot", []any{file("a/.wh..", "")}, errdefs.InvalidArgument, "names no file"},
		{"whiteout of dotdot", []any{file("a/.wh...", "")}, errdefs.InvalidArgument, "names no file"},
		{"whiteout as directory", []any{dir(".wh.d", 0o755)}, errdefs.InvalidArgument, "whiteout"},
		{"below a whiteout", []any{file(".wh.d/x", "")}, errdefs.InvalidArgument, "whiteout"},
		{"redirect attribute", []any{pax(dir("d", 0o755), "SCHILY.xattr.trusted.overlay.redirect", "/etc")}, errdefs.InvalidArgument, "overlayfs"},
		{"opaque attribute", []any{pax(dir("d", 0o755), "SCHILY.xattr.trusted.overlay.opaque", "y")}, errdefs.InvalidArgument, "overlayfs"},
		{"user overlay attribute", []any{pax(dir("d", 0o755), "SCHILY.xattr.user.overlay.metacopy", "")}, errdefs.InvalidArgument, "overlayfs"},
		{"attribute without name", []any{pax(dir("d", 0o755), "SCHILY.xattr.", "x")}, errdefs.InvalidArgument, "extended attribute"},
		{"attribute of no namespace", []any{pax(dir("d", 0o755), "SCHILY.xattr.nothing", "x")}, errdefs.Unsupported, "nothing"},
		{"attribute too big", []any{pax(dir("d", 0o755), "SCHILY.xattr.user.big", strings.Repeat("x", 70000))}, errdefs.Exhausted, "user.big"},
		{"user -1", []any{owner(1<<32-1, 0)}, errdefs.InvalidArgument, "not an id"},
		{"group wraps to root", []any{owner(0, 1<<32)}, errdefs.InvalidArgument, "not an id"},
		{"negative user", []any{owner(-5, 0)}, errdefs.InvalidArgument, "not an id"},
		{"part of a name too long", []any{file(strings.Repeat("x", 256), "")}, errdefs.InvalidArgument, "255"},
		{"name too long", []any{file(strings.Repeat("x/", 2100)+"f", "")}, errdefs.InvalidArgument, "4095"},
		{"too deep", []any{file(deep, "")}, errdefs.InvalidArgument, "deeper"},
		{"too deep by links", alias, errdefs.InvalidArgument, "deeper"},
		{"target too long", []any{sym("l", strings.Repeat("x", 5000))}, errdefs.InvalidArgument, "target"},
		{"a type of somebody", []any{tar.Header{Typeflag: 'Z', Name: "z"}}, errdefs.Unsupported, "type"},
		{"global header", []any{tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"path": "/etc/passwd"}}}, errdefs.Unsupported, "global"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := apply(t, mkTar(t, c.entries...), Options{})
			if !errdefs.Is(err, c.kind) || !strings.Contains(err.Error(), c.why) {
				t.Errorf("got %v (%v), want %v with %q", err, errdefs.KindOf(err), c.kind, c.why)
			}
		})
	}
}

func TestWritesThroughLinksStayInside(t *testing.T) {
	needRoot(t)
	for name, entries := range map[string][]any{
		"absolute":              {sym("etc", "/etc"), file("etc/onggi-breakout", "x")},
		"up":                    {sym("o", "../outside"), file("o/evil", "x"), file("o/secret", "overwritten")},
		"file through the link": {sym("f", "../outside/secret"), file("f", "overwritten")},
		"two links":             {sym("a", ".."), sym("b", "a/outside"), file("b/secret", "overwritten")},
		"link in a link":        {dir("d", 0o755), sym("d/up", "../.."), sym("x", "d/up/outside"), file("x/secret", "overwritten")},
		"whiteout":              {sym("o", "../outside"), file("o/.wh.secret", "")},
		"opaque":                {sym("o", "../outside"), file("o/.wh..wh..opq", "")},
		"directory mode":        {sym("o", "../outside"), dir("o/", 0o777)},
		"mode of a link":        {sym("o", "../outside/secret"), link("h", "o"), tar.Header{Typeflag: tar.TypeReg, Name: "h", Mode: 0o777}},
		"proc":                  {sym("p", "/proc/self/root"), file("p/onggi-breakout", "x")},
		"proc cwd":              {sym("p", "/proc/self/cwd"), file("p/onggi-breakout", "x")},
	} {
		t.Run(name, func(t *testing.T) {
			if _, _, err := apply(t, mkTar(t, entries...), Options{}); err != nil {
				t.Logf("refused: %v", err) // as good as kept inside
			}
			for _, p := range []string{"/onggi-breakout", "/etc/onggi-breakout", "onggi-breakout"} {
				if _, err := os.Lstat(p); err == nil {
					t.Errorf("%s was made", p)
				}
			}
		})
	}
}

func TestTimesAndAttributes(t *testing.T) {
	needRoot(t)
	at := func(h tar.Header, sec, nsec int64) tar.Header { h.ModTime = time.Unix(sec, nsec); return h }
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" // cap_net_raw+ep
	f := file("d/ping", "x").Header
	f.Uid, f.Mode = 1000, 0o755 // an owner too: chown(2) would take the capability away
	f.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": capability, "SCHILY.xattr.user.note": "on a file"}
	d := at(dir("d", 0o755), 1e9, 123456789)
	d.PAXRecords = map[string]string{"SCHILY.xattr.user.note": "on a directory", "SCHILY.xattr.trusted.mine": "t"}
	l := at(sym("d/l", "x"), 3, 5)
	l.PAXRecords = map[string]string{"SCHILY.xattr.trusted.mine": "on a link"}
	in, _, err := apply(t, mkTar(t, at(dir("./", 0o700), 7, 8), d, at(f, 2e9, 1), l, at(node(tar.TypeFifo, "d/p", 0, 0), -5, 0), file("d/later", "x")), Options{})
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]unix.Timespec{"": {Sec: 7, Nsec: 8}, "d": {Sec: 1e9, Nsec: 123456789}, "d/ping": {Sec: 2e9, Nsec: 1}, "d/l": {Sec: 3, Nsec: 5}, "d/p": {Sec: -5}} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(in, path), &st); err != nil {
			t.Fatal(err)
		}
		if st.Mtim != want {
			t.Errorf("time of %q: got %v, want %v", path, st.Mtim, want)
		}
	}
	for _, x := range [][3]string{{"d/ping", "security.capability", capability}, {"d/ping", "user.note", "on a file"}, {"d", "user.note", "on a directory"}, {"d", "trusted.mine", "t"}, {"d/l", "trusted.mine", "on a link"}} {
		buf := make([]byte, 100)
		n, err := unix.Lgetxattr(filepath.Join(in, x[0]), x[1], buf)
		if err != nil || string(buf[:max(n, 0)]) != x[2] {
			t.Errorf("%s of %s: got %q, %v; want %q", x[1], x[0], buf[:max(n, 0)], err, x[2])
		}
	}
	if fi, err := os.Stat(in); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("root: %v, %v; want mode 700", fi.Mode(), err)
	}
}

func TestLimits(t *testing.T) {
	big := file("f", strings.Repeat("x", 1000))
	for _, c := range []struct {
		name    string
		entries []any
		l       Limits
		ok      bool
	}{
		{"entries", []any{big, big}, Limits{Entries: 2}, true},
		{"too many entries", []any{big, big, big}, Limits{Entries: 2}, false},
		{"implied directories count", []any{file("a/b/c", "")}, Limits{Entries: 2}, false},
		{"bytes", []any{big, big}, Limits{Bytes: 2000}, true},
		{"too many bytes", []any{big, big}, Limits{Bytes: 1999}, false},
		{"extended headers", []any{tar.Header{Name: "f", Typeflag: tar.TypeReg, PAXRecords: map[string]string{"X.y": "0123456789"}}}, Limits{PaxBytes: 10}, false},
	} {
		_, _, err := apply(t, mkTar(t, c.entries...), Options{Limits: c.l})
		if (err == nil) != c.ok || err != nil && !errdefs.Is(err, errdefs.Exhausted) {
			t.Errorf("%s: got %v, want ok %v", c.name, err, c.ok)
		}
	}
	if _, _, err := apply(t, nil, Options{Limits: Limits{PaxBytes: 2 << 20}}); !errdefs.Is(err, errdefs.InvalidArgument) {
		t.Errorf("a limit that cannot be held: got %v", err)
	}
}

func TestOptions(t *testing.T) {
	needRoot(t)
	if _, _, err := apply(t, mkTar(t, file("a/.wh.x", "")), Options{Whiteouts: "none"}); !errdefs.Is(err, errdefs.InvalidArgument) {
		t.Errorf("a whiteout in a root file system: got %v", err)
	}
	if _, _, err := apply(t, nil, Options{Whiteouts: "aufs"}); !errdefs.Is(err, errdefs.InvalidArgument) {
		t.Errorf("an unknown form: got %v", err)
	}
	h := file("d/f", "x").Header
	h.Uid, h.Gid = 5, 6
	shift := func(u, g uint32) (uint32, uint32, error) {
		if u > 100 {
			return 0, 0, errors.New("not mapped")
		}
		return u + 1000, g + 2000, nil
	}
	in, _, err := apply(t, mkTar(t, h), Options{MapID: shift})
	if got, want := list(t, in, ""), "d d 755 1000:2000\nd/f f 644 1005:2006\n"; err != nil || got != want {
		t.Errorf("shifted: got %q, %v; want %q", got, err, want)
	}
	h.Uid = 101
	if _, _, err := apply(t, mkTar(t, h), Options{MapID: shift}); err == nil || !strings.Contains(err.Error(), "not mapped") {
		t.Errorf("an id that is not mapped: got %v", err)
	}
}

// TestNoDevicesWithoutTheRight: a device that may not be made ends the unpacking, and is not left out.
func TestNoDevicesWithoutTheRight(t *testing.T) {
	needRoot(t)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread() // for good: the thread ends with what it has given up
		h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var c [2]unix.CapUserData
		if err := unix.Capget(&h, &c[0]); err != nil {
			t.Error(err)
			return
		}
		c[0].Effective &^= 1 << unix.CAP_MKNOD
		if err := unix.Capset(&h, &c[0]); err != nil {
			t.Error(err)
			return
		}
		for _, e := range []any{node(tar.TypeChar, "null", 1, 3), node(tar.TypeBlock, "disk", 8, 0)} {
			if _, _, err := apply(t, mkTar(t, file("f", "x"), e), Options{}); !errdefs.Is(err, errdefs.Forbidden) {
				t.Errorf("got %v, want that it is forbidden", err)
			}
		}
		// A whiteout is no device to the kernel (Linux 5.8), and a FIFO is none.
		in, _, err := apply(t, mkTar(t, file(".wh.gone", ""), node(tar.TypeFifo, "p", 0, 0)), Options{})
		if err != nil || !strings.Contains(list(t, in, ""), "gone") {
			t.Errorf("a whiteout and a FIFO: %v", err)
		}
	}()
	<-ended
}

// TestNamesThatDifferByCase are different names; where the directory folds case, the later one wins, as for any entry of
// the same name.
func TestNamesThatDifferByCase(t *testing.T) {
	needRoot(t)
	in, _, err := apply(t, mkTar(t, file("Name", "one"), file("name", "two"), file("ß", "3"), file("SS", "4")), Options{})
	if got, want := list(t, in, ""), "Name f 644 one\nSS f 644 4\nname f 644 two\nß f 644 3\n"; err != nil || got != want {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
}

// TestSparse makes sparse archives with GNU tar, in each of its formats, and looks whether the holes are there.
func TestSparse(t *testing.T) {
	src := t.TempDir()
	f, err := os.Create(filepath.Join(src, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	body := strings.Repeat("data", 50000)
	for _, off := range []int64{0, 10 << 20, 300 << 20} {
		if _, err := f.WriteAt([]byte(body), off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(400 << 20); err != nil {
		t.Fatal(err)
	}
	f.Close()
	for _, format := range [][]string{{"--format=gnu"}, {"--format=pax", "--sparse-version=0.0"}, {"--format=pax", "--sparse-version=0.1"}, {"--format=pax", "--sparse-version=1.0"}} {
		b := gnuTar(t, append(format, "-S", "-C", src, "-cf", "-", "sparse")...)
		if len(b) > 10<<20 {
			t.Fatalf("%v: the archive is not sparse", format)
		}
		in, s, err := apply(t, b, Options{})
		if err != nil {
			t.Errorf("%v: %v", format, err)
			continue
		}
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(in, "sparse"), &st); err != nil {
			t.Fatal(err)
		}
		if st.Size != 400<<20 || st.Blocks*512 > 4<<20 || s.Bytes != st.Size {
			t.Errorf("%v: %d bytes in %d blocks, counted %d", format, st.Size, st.Blocks, s.Bytes)
		}
		g, err := os.Open(filepath.Join(in, "sparse"))
		if err != nil {
			t.Fatal(err)
		}
		for _, off := range []int64{0, 10 << 20, 300 << 20} {
			got := make([]byte, len(body))
			if _, err := g.ReadAt(got, off); err != nil || string(got) != body {
				t.Errorf("%v: other bytes at %d (%v)", format, off, err)
			}
		}
		g.Close()
		if _, _, err := apply(t, b, Options{Limits: Limits{Bytes: 100 << 20}}); !errdefs.Is(err, errdefs.Exhausted) {
			t.Errorf("%v: holes are not counted: %v", format, err)
		}
	}
}

func TestBadStreams(t *testing.T) {
	good := mkTar(t, file("a", strings.Repeat("x", 5000)), file("b", "y"))
	broken := errors.New("connection reset")
	for _, c := range []struct {
		name string
		r    io.Reader
		kind errdefs.Kind
		err  error
	}{
		{"noise", strings.NewReader(strings.Repeat("noise", 1000)), errdefs.Corrupt, nil},
		{"cut in content", bytes.NewReader(good[:2000]), errdefs.Corrupt, nil},
		{"cut in a header", bytes.NewReader(good[:len(good)-1024-512-100]), errdefs.Corrupt, nil},
		{"broken reader", io.MultiReader(bytes.NewReader(good[:2000]), iotest.ErrReader(broken)), errdefs.Unknown, broken},
		{"broken after the end", io.MultiReader(bytes.NewReader(good), iotest.ErrReader(unix.ECONNRESET)), errdefs.Unavailable, unix.ECONNRESET},
	} {
		d, err := os.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		_, err = Apply(context.Background(), c.r, d, Options{})
		d.Close()
		if err == nil || errdefs.KindOf(err) != c.kind || c.err != nil && !errors.Is(err, c.err) {
			t.Errorf("%s: got %v (%v), want %v", c.name, err, errdefs.KindOf(err), c.kind)
		}
	}
}

// TestReadsToTheEnd: what follows the end of the archive belongs to the digest.
func TestReadsToTheEnd(t *testing.T) {
	b := append(mkTar(t, file("a", "x")), make([]byte, 1<<20+7)...)
	r := bytes.NewReader(b)
	d, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := Apply(context.Background(), r, d, Options{}); err != nil || r.Len() != 0 {
		t.Errorf("%d bytes are left, %v", r.Len(), err)
	}
}

func TestCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	d, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	r := io.MultiReader(bytes.NewReader(mkTar(t, file("a", "x"))[:1024]), readerFunc(func([]byte) (int, error) { cancel(); return 0, context.Canceled }))
	if _, err := Apply(ctx, r, d, Options{}); !errdefs.Is(err, errdefs.Canceled) {
		t.Errorf("got %v, want canceled", err)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
