package archive

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func gnuTar(t testing.TB, args ...string) []byte {
	t.Helper()
	if _, err := exec.LookPath("tar"); err != nil {
		t.Skip("needs GNU tar")
	}
	cmd := exec.Command("tar", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	b, err := cmd.Output()
	if err != nil {
		t.Fatalf("tar %v: %v\n%s", args, err, stderr.Bytes())
	}
	return b
}

// TestAsGNUTar packs trees with GNU tar in each format, unpacks them with it and with us, and compares.
func TestAsGNUTar(t *testing.T) {
	needRoot(t)
	src := t.TempDir()
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	p := func(s string) string { return filepath.Join(src, s) }
	do(os.MkdirAll(p("a/b/c"), 0o755))
	do(os.WriteFile(p("a/f"), bytes.Repeat([]byte("content"), 300000), 0o640))
	do(os.Link(p("a/f"), p("a/b/h")))
	do(os.WriteFile(p("a/b/ünï\xff"), []byte("x"), 0o4711))
	do(os.Chown(p("a/b/c"), 65534, 2000000))
	do(os.Chmod(p("a/b/c"), 0o1770))
	do(os.Symlink("../../../../../etc/passwd", p("a/b/s")))
	do(os.Lchown(p("a/b/s"), 70000, 70000))
	do(unix.Mkfifo(p("a/p"), 0o622))
	do(unix.Mknod(p("a/n"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	name := "long"
	for range 9 {
		name += "-" + name[:min(len(name), 24)]
	}
	do(os.MkdirAll(p("x/"+name), 0o711))
	do(os.WriteFile(p("x/"+name+"/"+name), nil, 0o600))
	do(os.Symlink(name+name, p("x/l")))
	for _, format := range []string{"gnu", "oldgnu", "pax"} {
		b := gnuTar(t, "--format="+format, "-C", src, "-cf", "-", ".")
		in, _, err := apply(t, b, Options{})
		if err != nil {
			t.Errorf("%s: %v", format, err)
			continue
		}
		theirs := t.TempDir()
		cmd := exec.Command("tar", "-C", theirs, "-xpf", "-", "--numeric-owner")
		cmd.Stdin = bytes.NewReader(b)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if got, want := list(t, in, ""), list(t, theirs, ""); got != want {
			t.Errorf("%s: we made:\n%s\ntar made:\n%s", format, got, want)
		}
	}
}
