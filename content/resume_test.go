package content

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func noise(n int, seed uint64) ([]byte, ocispec.Descriptor) {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b, ocispec.Descriptor{Digest: digest.FromBytes(b), Size: int64(n)}
}

func openTemp(t *testing.T) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// write writes some of b at its place, in pieces.
func write(t *testing.T, w *Ingest, b []byte, r Range) {
	t.Helper()
	for off := r.From; off < r.To; {
		n := min(200_000, r.To-off)
		if _, err := w.WriteAt(b[off:off+n], off); err != nil {
			t.Fatal(err)
		}
		off += n
	}
}

func TestResume(t *testing.T) {
	s := openTemp(t)
	b, desc := noise(20<<20+12345, 1)
	w, err := s.Resume(t.Context(), desc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Resume(t.Context(), desc); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("a second one at once: %v, want Conflict", err)
	}
	write(t, w, b, Range{4 << 20, 9<<20 + 77}) // a hole before, and half a chunk
	write(t, w, b, Range{0, 1 << 20})
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if p, err := s.Partials(); err != nil || len(p) != 1 || p[0].Digest != desc.Digest || p[0].Bytes < 6<<20 {
		t.Errorf("partials: %+v, %v", p, err)
	}
	if err := s.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if w, err = s.Resume(t.Context(), desc); err != nil {
		t.Fatal(err)
	}
	if w.Resumed() != 6<<20 {
		t.Errorf("%d bytes were kept, want the six whole chunks", w.Resumed())
	}
	// Several write at once, in no order; a reader follows.
	followed := make(chan []byte)
	go func() {
		var got bytes.Buffer
		_, _ = got.ReadFrom(w.Follow(t.Context()))
		followed <- got.Bytes()
	}()
	todo := w.Missing(3 << 20)
	rand.Shuffle(len(todo), func(i, j int) { todo[i], todo[j] = todo[j], todo[i] })
	next := make(chan Range, len(todo))
	for _, r := range todo {
		next <- r
	}
	close(next)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for r := range next {
				write(t, w, b, r)
			}
		})
	}
	wg.Wait()
	write(t, w, make([]byte, 2<<20), Range{1 << 20, 2 << 20}) // what is there is never changed
	if err := w.Verify(); err != nil {
		t.Fatal(err)
	}
	if got := <-followed; !bytes.Equal(got, b) {
		t.Errorf("the reader got %d bytes, and others", len(got))
	}
	if _, err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	r, err := s.Open(desc)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if n, err := io.Copy(io.Discard, r); err != nil || n != desc.Size {
		t.Errorf("%d bytes, %v", n, err)
	}
	if e, _ := os.ReadDir(filepath.Join(s.Dir(), "ingest")); len(e) != 0 {
		t.Errorf("left: %v", e)
	}
}

func TestResumeAfterAReboot(t *testing.T) {
	s := openTemp(t)
	b, desc := noise(6<<20, 2)
	w, err := s.Resume(t.Context(), desc)
	if err != nil {
		t.Fatal(err)
	}
	write(t, w, b, Range{0, 2 << 20})
	w.syncLanded()
	write(t, w, b, Range{2 << 20, 5 << 20})
	name := w.parts.mapName
	before, err := os.ReadFile(name) // as the power is cut: three chunks landed, and not synced
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for boot, want := range map[string]int64{bootID(): 5 << 20, "another-boot": 2 << 20} {
		if err := os.WriteFile(name, []byte(strings.Replace(string(before), bootID(), boot, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		w, err := s.Resume(t.Context(), desc)
		if err != nil {
			t.Fatal(err)
		}
		if w.Resumed() != want {
			t.Errorf("boot %s: %d bytes count, want %d", boot, w.Resumed(), want)
		}
		_ = w.f.Close() // the process dies
		_ = w.parts.mapFile.Close()
	}
	// A map that lies about another blob, is cut short, or says more than the file has.
	for name, text := range map[string]string{
		"another size": strings.Replace(string(before), " 6291456 ", " 6291457 ", 1), "short": string(before[:len(before)-2]), "empty": "", "nonsense": "\x00\xff\n",
	} {
		if err := os.WriteFile(w.parts.mapName, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		w, err := s.Resume(t.Context(), desc)
		if err != nil || w.Resumed() != 0 {
			t.Errorf("%s: %v, %d bytes count, want none", name, err, w.Resumed())
		}
		_ = w.f.Close()
		_ = w.parts.mapFile.Close()
	}
	if err := s.DropPartials(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if p, err := s.Partials(); err != nil || len(p) != 0 {
		t.Errorf("left: %v, %v", p, err)
	}
}

func TestResumeOfWrongBytes(t *testing.T) {
	s := openTemp(t)
	b, desc := noise(3<<20, 3)
	w, err := s.Resume(t.Context(), desc)
	if err != nil {
		t.Fatal(err)
	}
	b[5]++
	write(t, w, b, Range{0, desc.Size})
	if err := w.Verify(); !errdefs.Is(err, errdefs.Corrupt) {
		t.Errorf("got %v, want Corrupt", err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if e, _ := os.ReadDir(filepath.Join(s.Dir(), "ingest")); len(e) != 0 {
		t.Errorf("what is wrong was kept: %v", e)
	}
	// Old ones are swept, those that run are not.
	old, err := s.Resume(t.Context(), desc)
	if err != nil {
		t.Fatal(err)
	}
	write(t, old, b, Range{0, 1 << 20})
	long := time.Now().Add(-2 * KeepPartial)
	if err := os.Chtimes(old.temp, long, long); err != nil {
		t.Fatal(err)
	}
	if err := s.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if p, _ := s.Partials(); len(p) != 1 {
		t.Errorf("one that runs was swept")
	}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(filepath.Join(s.Dir(), "ingest", strings.Replace(string(desc.Digest), ":", "-", 1)+".part"), long, long); err != nil {
		t.Fatal(err)
	}
	if err := s.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if e, _ := os.ReadDir(filepath.Join(s.Dir(), "ingest")); len(e) != 0 {
		t.Errorf("left: %v", e)
	}
	for _, d := range []ocispec.Descriptor{{Digest: desc.Digest, Size: -1}, {Digest: desc.Digest}, {Digest: "sha256:x", Size: 1}, {Digest: desc.Digest, Size: 1 << 60}} {
		if _, err := s.Resume(t.Context(), d); !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("%+v: %v, want InvalidArgument", d, err)
		}
	}
}
