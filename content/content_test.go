package content

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/onggi/onggi/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

var bg = context.Background()

func open(t *testing.T) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func blob(n int) ([]byte, ocispec.Descriptor) {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(n)})
	_, _ = r.Read(b)
	return b, ocispec.Descriptor{Digest: digest.FromBytes(b), Size: int64(n)}
}

// files lists every regular file below the store but oci-layout.
func files(t *testing.T, s *Store) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(s.dir, func(p string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && d.Name() != "oci-layout" {
			rel, _ := filepath.Rel(s.dir, p)
			out = append(out, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestRoundTrip(t *testing.T) {
	s := open(t)
	for _, n := range []int{0, 1, 4096, 1<<20 + 7} {
		b, desc := blob(n)
		w, err := s.Begin(bg, desc)
		if err != nil {
			t.Fatal(err)
		}
		for p := b; len(p) > 0; {
			k := min(len(p), 70_000)
			if _, err := w.Write(p[:k]); err != nil {
				t.Fatal(err)
			}
			p = p[k:]
		}
		if _, err := s.Stat(desc.Digest); !errdefs.Is(err, errdefs.NotFound) {
			t.Errorf("the blob is visible before Commit: %v", err)
		}
		got, err := w.Commit(bg)
		if err != nil || got.Digest != desc.Digest || got.Size != desc.Size {
			t.Fatalf("Commit = %v, %v; want %v", got, err, desc)
		}
		r, err := s.Open(desc)
		if err != nil {
			t.Fatal(err)
		}
		back, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(back, b) {
			t.Fatalf("read %d bytes, %v; want %d", len(back), err, n)
		}
		_ = r.Close()
	}
	seen := map[digest.Digest]int64{}
	if err := s.Walk(func(d digest.Digest, n int64) error { seen[d] = n; return nil }); err != nil || len(seen) != 4 {
		t.Errorf("Walk saw %v, %v; want 4 blobs", seen, err)
	}
	for d := range seen {
		if err := errors.Join(s.Delete(d), s.Delete(d)); err != nil {
			t.Error(err)
		}
	}
	if left := files(t, s); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestRefusesWhatIsNotTheBlobAndKeepsNothing(t *testing.T) {
	b, desc := blob(1000)
	other := append([]byte(nil), b...)
	other[999]++
	for name, c := range map[string]struct {
		desc ocispec.Descriptor
		data []byte
		kind errdefs.Kind
	}{
		"too short":        {desc, b[:999], errdefs.Corrupt},
		"too long":         {desc, append(b[:1000:1000], 1), errdefs.Corrupt},
		"another content":  {desc, other, errdefs.Corrupt},
		"negative size":    {ocispec.Descriptor{Digest: desc.Digest, Size: -2}, b, errdefs.InvalidArgument},
		"leaves the store": {ocispec.Descriptor{Digest: "sha256:../../../../../../../../../../../../../../../../../tmp/xxxxxxxxxxxxx", Size: 1000}, b, errdefs.InvalidArgument},
		"upper case":       {ocispec.Descriptor{Digest: digest.Digest(strings.ToUpper(string(desc.Digest))), Size: 1000}, b, errdefs.InvalidArgument},
		"md5":              {ocispec.Descriptor{Digest: "md5:d41d8cd98f00b204e9800998ecf8427e", Size: 1000}, b, errdefs.InvalidArgument},
		"no algorithm":     {ocispec.Descriptor{Digest: "x", Size: 1000}, b, errdefs.InvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			w, err := s.Begin(bg, c.desc)
			if err == nil {
				if _, err = w.Write(c.data); err == nil {
					_, err = w.Commit(bg)
				}
				_ = w.Close()
			}
			if !errdefs.Is(err, c.kind) {
				t.Errorf("got %v, want kind %v", err, c.kind)
			}
			if left := files(t, s); len(left) != 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

func TestUnknownDigestIsComputedAndSHA512(t *testing.T) {
	s := open(t)
	b, desc := blob(100)
	w, err := s.Begin(bg, ocispec.Descriptor{Size: -1})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write(b)
	if got, err := w.Commit(bg); err != nil || got.Digest != desc.Digest || got.Size != 100 {
		t.Errorf("got %v, %v; want %v", got, err, desc)
	}
	long := ocispec.Descriptor{Digest: digest.SHA512.FromBytes(b), Size: 100}
	w, err = s.Begin(bg, long)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write(b)
	if _, err := w.Commit(bg); err != nil {
		t.Fatal(err)
	}
	if got, err := s.ReadAll(long, 1<<10); err != nil || !bytes.Equal(got, b) {
		t.Errorf("sha512: %v", err)
	}
}

func TestReadersFindDamage(t *testing.T) {
	for name, damage := range map[string]func(*testing.T, string){
		"flipped":   func(t *testing.T, p string) { must(t, os.WriteFile(p, bytes.Repeat([]byte{7}, 1000), 0o600)) },
		"truncated": func(t *testing.T, p string) { must(t, os.Truncate(p, 10)) },
		"grown":     func(t *testing.T, p string) { must(t, os.Truncate(p, 5000)) },
		"a fifo":    func(t *testing.T, p string) { must(t, os.Remove(p)); must(t, unix.Mkfifo(p, 0o600)) },
		"a link":    func(t *testing.T, p string) { must(t, os.Remove(p)); must(t, os.Symlink("/dev/zero", p)) },
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			b, _ := blob(1000)
			desc, err := s.Put(bg, "", b)
			must(t, err)
			p, err := s.Path(desc.Digest)
			must(t, err)
			must(t, os.Chmod(p, 0o600))
			damage(t, p)
			if _, err := s.ReadAll(desc, 1<<20); err == nil {
				t.Error("ReadAll saw nothing")
			}
			if r, err := s.Open(desc); err == nil {
				if _, err = io.ReadAll(r); !errdefs.Is(err, errdefs.Corrupt) {
					t.Errorf("Open: %v, want Corrupt", err)
				}
				_ = r.Close()
			}
			if name == "a fifo" || name == "a link" {
				return // not what the store makes; Delete and pull again
			}
			// Storing it again repairs what has the wrong size.
			w, err := s.Begin(bg, desc)
			must(t, err)
			_, err = w.Write(b)
			must(t, err)
			_, err = w.Commit(bg)
			must(t, err)
			_, err = s.ReadAll(desc, 1<<20)
			if name == "flipped" {
				if !errdefs.Is(err, errdefs.Corrupt) {
					t.Errorf("after a second Commit: %v", err)
				}
			} else if err != nil {
				t.Errorf("after a second Commit: %v", err)
			}
			if _, err := s.Put(bg, "", b); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestReadAllIsBounded(t *testing.T) {
	s := open(t)
	b, _ := blob(1000)
	desc, err := s.Put(bg, "", b)
	must(t, err)
	if _, err := s.ReadAll(desc, 999); !errdefs.Is(err, errdefs.Exhausted) {
		t.Errorf("got %v, want Exhausted", err)
	}
}

func TestFollowReadsWhileItIsWritten(t *testing.T) {
	s := open(t)
	b, desc := blob(3 << 20)
	w, err := s.Begin(bg, desc)
	must(t, err)
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			got, err := io.ReadAll(w.Follow(bg))
			if err != nil || !bytes.Equal(got, b) {
				t.Errorf("followed %d bytes, %v", len(got), err)
			}
		})
	}
	for p := b; len(p) > 0; p = p[min(len(p), 50_000):] {
		_, err := w.Write(p[:min(len(p), 50_000)])
		must(t, err)
	}
	must(t, w.Verify())
	wg.Wait()
	_, err = w.Commit(bg)
	must(t, err)
}

func TestFollowersLearnOfTheEnd(t *testing.T) {
	why := errors.New("the registry is gone")
	ctx, cancel := context.WithCancel(bg)
	for name, c := range map[string]struct {
		ctx  context.Context
		end  func(*Ingest)
		want error
	}{
		"abort":   {bg, func(w *Ingest) { _ = w.Abort(why) }, why},
		"close":   {bg, func(w *Ingest) { _ = w.Close() }, errClosed},
		"corrupt": {bg, func(w *Ingest) { _ = w.Verify() }, nil},
		"cancel":  {ctx, func(*Ingest) { cancel() }, context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			b, desc := blob(1000)
			w, err := s.Begin(bg, desc)
			must(t, err)
			defer w.Close()
			_, err = w.Write(b[:500])
			must(t, err)
			end := make(chan error)
			go func() { _, err := io.ReadAll(w.Follow(c.ctx)); end <- err }()
			c.end(w)
			err = <-end
			if c.want != nil && !errors.Is(err, c.want) || c.want == nil && !errdefs.Is(err, errdefs.Corrupt) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

func TestNamedTemporaryIsSweptOnlyWhenNobodyHoldsIt(t *testing.T) {
	s := open(t)
	f, temp, err := namedTemporary(filepath.Join(s.dir, "ingest"))
	must(t, err)
	must(t, s.Sweep(bg))
	if _, err := os.Stat(temp); err != nil {
		t.Errorf("a held ingest was swept: %v", err)
	}
	b, desc := blob(10)
	w := &Ingest{s: s, ctx: bg, desc: desc, f: f, temp: temp, h: NewHash("")}
	w.changed = sync.NewCond(&w.mu)
	_, err = w.Write(b)
	must(t, err)
	_, err = w.Commit(bg)
	must(t, err)
	f, _, err = namedTemporary(filepath.Join(s.dir, "ingest"))
	must(t, err)
	must(t, f.Close())
	must(t, s.Sweep(bg))
	if left := files(t, s); len(left) != 1 {
		t.Errorf("files %v, want the blob alone", left)
	}
}

func TestALayoutOfAnotherProgram(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{ "imageLayoutVersion": "1.0.0" }`), 0o600))
	s, err := Open(dir)
	must(t, err)
	must(t, s.Sweep(bg))
	_, err = s.Put(bg, "", []byte("hello"))
	must(t, err)
}

func TestOtherLayoutVersionIsRefused(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"2.0.0"}`), 0o600))
	if _, err := Open(dir); !errdefs.Is(err, errdefs.Unsupported) {
		t.Errorf("got %v, want Unsupported", err)
	}
}

// TestManyProcessesCommitOneBlob runs this test binary several times on one store.
func TestManyProcessesCommitOneBlob(t *testing.T) {
	if dir := os.Getenv("ONGGI_TEST_STORE"); dir != "" {
		s, err := Open(dir)
		must(t, err)
		for n := 1; n < 60; n++ {
			b, desc := blob(n * 997)
			w, err := s.Begin(bg, desc)
			must(t, err)
			_, err = w.Write(b)
			must(t, err)
			_, err = w.Commit(bg)
			must(t, err)
		}
		return
	}
	s := open(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			cmd := exec.Command(os.Args[0], "-test.run=^TestManyProcessesCommitOneBlob$")
			cmd.Env = append(os.Environ(), "ONGGI_TEST_STORE="+s.dir)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	wg.Wait()
	n := 0
	must(t, s.Walk(func(d digest.Digest, size int64) error {
		n++
		_, err := s.ReadAll(ocispec.Descriptor{Digest: d, Size: size}, 1<<20)
		return err
	}))
	if left := files(t, s); n != 59 || len(left) != 59 {
		t.Errorf("%d blobs, %d files; want 59", n, len(left))
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func BenchmarkPut(b *testing.B) {
	s, err := Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	for i := 0; b.Loop(); i++ {
		if _, err := s.Put(bg, "", fmt.Appendf(nil, "blob %d", i)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkIngest(b *testing.B) {
	s, err := Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	data, desc := blob(32 << 20)
	b.SetBytes(32 << 20)
	for b.Loop() {
		w, err := s.Begin(bg, desc)
		if err != nil {
			b.Fatal(err)
		}
		for p := data; len(p) > 0; p = p[256<<10:] {
			if _, err := w.Write(p[:256<<10]); err != nil {
				b.Fatal(err)
			}
		}
		_ = w.Close()
	}
}
