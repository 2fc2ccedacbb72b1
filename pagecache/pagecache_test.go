package pagecache

import (
	"bytes"
	"math/rand/v2"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// resident counts the steps of the first n bytes of f that are in memory.
func resident(t *testing.T, f *os.File, n int64) int {
	t.Helper()
	in := 0
	for from := int64(0); from < n; from += Step { // one page of each step stands for it: they come and go together
		b := make([]byte, 1)
		if _, err := unix.Preadv2(int(f.Fd()), [][]byte{b}, from, unix.RWF_NOWAIT); err == nil {
			in++
		}
	}
	return in
}

func TestWriterKeepsNoMoreThanItsLag(t *testing.T) {
	f, err := os.CreateTemp("/var/tmp", "pagecache")
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	const total = 12 * Step
	want := make([]byte, total)
	r := rand.NewChaCha8([32]byte{7})
	_, _ = r.Read(want)
	w := &Writer{FD: int(f.Fd())}
	for off := 0; off < total; off += 1 << 20 {
		if _, err := f.Write(want[off : off+1<<20]); err != nil {
			t.Fatal(err)
		}
		w.Wrote(int64(off + 1<<20))
	}
	// At most the lag and the step that is being filled; a file system in memory (tmpfs) keeps all.
	if got, most := resident(t, f, total), (Lag+Step)/Step; got > most && got != total/Step {
		t.Errorf("%d of %d steps are in memory, want at most %d", got, total/Step, most)
	}
	got := make([]byte, total)
	rd := &Reader{FD: int(f.Fd())}
	for off := 0; off < total; off += 1 << 20 {
		if _, err := f.ReadAt(got[off:off+1<<20], int64(off)); err != nil {
			t.Fatal(err)
		}
		rd.Read(int64(off + 1<<20))
	}
	if !bytes.Equal(got, want) {
		t.Error("what was read is not what was written")
	}
}
