package tree

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// TestKnown: files that changed in whatever way are read again, those that did not are not, and what just changed is not
// remembered.
func TestKnown(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []string{"a", "b", "c", "d"} {
		write(n, n)
	}
	file := filepath.Join(t.TempDir(), "known")
	ctx := context.Background()
	look := func(k *Known) (map[string]digest.Digest, digest.Digest) {
		t.Helper()
		root, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		v, err := NewView(root, nil, nil, true)
		if err != nil {
			t.Fatal(err)
		}
		if k != nil {
			v.Remember(k)
		}
		files := map[string]digest.Digest{}
		all, err := v.Digest(ctx, Selection{Src: "/"}, func(f File) { files[f.Path] = f.Digest })
		if err != nil {
			t.Fatal(err)
		}
		return files, all
	}
	k := OpenKnown(file)
	look(k)
	if len(k.new) != 0 {
		t.Errorf("files that just changed are remembered: %v", k.new)
	}
	time.Sleep(settled + 50*time.Millisecond)
	_, want := look(k)
	if err := k.Save(); err != nil {
		t.Fatal(err)
	}
	k = OpenKnown(file)
	if n := k.count(); n != 5 { // four files and the directory
		t.Fatalf("%d files are known", n)
	}
	if _, got := look(k); got != want || len(k.hit) != 5 || len(k.new) != 0 {
		t.Errorf("got %s, want %s; %d known, %d new", got, want, len(k.hit), len(k.new))
	}
	// Same size and time of modification, but not the same content; a mode; a name for another inode; a removal.
	fi, _ := os.Stat(filepath.Join(dir, "a"))
	write("a", "A")
	if err := os.Chtimes(filepath.Join(dir, "a"), fi.ModTime(), fi.ModTime()); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "b"), 0o755); err != nil {
		t.Fatal(err)
	}
	write("new", "C")
	if err := os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "c")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "d")); err != nil {
		t.Fatal(err)
	}
	k = OpenKnown(file)
	got, all := look(k)
	plain, wantAll := look(nil)
	if all != wantAll || len(got) != len(plain) {
		t.Errorf("got %v, without a memory %v", got, plain)
	}
	// A broken file is an empty one.
	for _, text := range []string{"", "something else", knownMagic + "half a record"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if k := OpenKnown(file); k.count() != 0 {
			t.Errorf("%q holds %d records", text, k.count())
		}
	}
}

// TestKnownSameTick: a file that is written again within the tick of its times, behind a reader that takes long, is read
// again by the next build; one whose reading began when it had settled is not. Times in the future never settle.
func TestKnownSameTick(t *testing.T) {
	changed := time.Now().Add(-time.Hour) // reading ended long after any change, in all cases
	d := digest.FromString("as it was read")
	for _, c := range []struct {
		name         string
		mtime, ctime time.Time
		began        time.Time
		want         bool
	}{
		{"in the same tick", changed, changed, changed, false},
		{"a little later", changed, changed, changed.Add(settled - 1), false},
		{"settled", changed, changed, changed.Add(settled), true},
		{"an old mtime, but a new ctime", changed.Add(-time.Hour), changed, changed.Add(time.Millisecond), false},
		{"a mtime in the future", changed.Add(24 * time.Hour), changed, changed.Add(settled), false},
		{"a clock that went back", changed, changed, changed.Add(-time.Minute), false},
	} {
		k := OpenKnown(filepath.Join(t.TempDir(), "known"))
		st := unix.Stat_t{
			Ino: 7, Mode: unix.S_IFREG | 0o644, Size: 5,
			Mtim: unix.NsecToTimespec(c.mtime.UnixNano()), Ctim: unix.NsecToTimespec(c.ctime.UnixNano()),
		}
		k.put(&st, d, c.began)
		got, ok := k.get(&st)
		if ok != c.want || ok && got != d {
			t.Errorf("%s: known %v (%s), want %v", c.name, ok, got, c.want)
		}
	}
}
