package archive

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// build performs simple commands in dir: "mkdir P", "write P TEXT", "rm P", "white P", "opaque P", "chmod P MODE".
func build(t *testing.T, dir string, commands ...string) {
	t.Helper()
	for _, c := range commands {
		f := strings.SplitN(c, " ", 3)
		p := filepath.Join(dir, f[1])
		var err error
		switch f[0] {
		case "mkdir":
			err = os.MkdirAll(p, 0o755)
		case "write":
			err = os.WriteFile(p, []byte(f[2]), 0o644)
		case "rm":
			err = os.RemoveAll(p)
		case "white":
			err = unix.Mknod(p, unix.S_IFCHR, 0)
		case "opaque":
			err = unix.Setxattr(p, "trusted.overlay.opaque", []byte("y"), 0)
		case "chmod":
			var m uint32
			_, _ = fmt.Sscanf(f[2], "%o", &m)
			err = unix.Chmod(p, m)
		case "xattr":
			err = unix.Setxattr(p, "user.note", []byte(f[2]), 0)
		default:
			t.Fatalf("command %q", c)
		}
		if err != nil {
			t.Fatalf("%s: %v", c, err)
		}
	}
}

// age gives everything in dir one time.
func age(t *testing.T, dir string) {
	t.Helper()
	err := filepath.Walk(dir, func(p string, _ os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		ts := []unix.Timespec{{Sec: 1e9}, {Sec: 1e9}}
		return unix.UtimesNanoAt(unix.AT_FDCWD, p, ts, unix.AT_SYMLINK_NOFOLLOW)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestWhole compares a plain copy with what it is a copy of.
func TestWhole(t *testing.T) {
	needRoot(t)
	// What the two layers show: a/{one,two}, b/{later}, k, sub/x.
	lower := []string{"mkdir a", "write a/one 1", "write a/two 2", "mkdir b", "write b/f f", "write k k", "write gone g", "mkdir sub", "write sub/x x"}
	upper := []string{"mkdir b", "opaque b", "write b/later l", "white gone"}
	shown := []string{"mkdir a", "write a/one 1", "write a/two 2", "mkdir b", "write b/later l", "write k k", "mkdir sub", "write sub/x x"}
	for _, c := range []struct {
		name     string
		commands []string
		want     string
	}{
		{"nothing", nil, ""},
		{"added and deleted", []string{"write a/new n", "rm a/one", "rm b"}, "C /a\nA /a/new\nD /a/one\nD /b\n"},
		{"same size, other content and time", []string{"write k K"}, "C /k\n"},
		{"what was deleted below comes back", []string{"write gone g"}, "A /gone\n"},
		{"other kinds", []string{"rm a", "write a file", "rm k", "mkdir k"}, "C /a\nC /k\n"},
		{"modes and attributes", []string{"chmod a/one 600", "xattr sub note"}, "C /a\nC /a/one\nC /sub\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := &Difference{Whole: true}
			for _, l := range [][]string{upper, lower, shown} {
				dir := t.TempDir()
				build(t, dir, l...)
				age(t, dir)
				f, err := os.Open(dir)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				d.Below, d.Tree = append(d.Below, f), f
			}
			d.Below = d.Below[:2]
			d.Copied = time.Now()
			time.Sleep(20 * time.Millisecond) // the kernel's clock of ctime ticks every few milliseconds
			build(t, d.Tree.Name(), c.commands...)
			var got strings.Builder
			say := func(x Change) error { fmt.Fprintf(&got, "%c %s\n", x.Kind, x.Path); return nil }
			if err := d.Changes(context.Background(), say); err != nil {
				t.Fatal(err)
			}
			if got.String() != c.want {
				t.Errorf("got\n%swant\n%s", got.String(), c.want)
			}
			// A file that was written and given its old time again is not overlooked.
			build(t, d.Tree.Name(), "write sub/x y")
			age(t, d.Tree.Name())
			got.Reset()
			if err := d.Changes(context.Background(), say); err != nil || !strings.Contains(got.String(), "C /sub/x\n") {
				t.Errorf("old time, new content: %v\n%s", err, got.String())
			}
			var b bytes.Buffer
			if _, err := d.Pack(context.Background(), &b); err != nil {
				t.Fatal(err)
			}
		})
	}
}
