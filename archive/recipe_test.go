package archive

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	kgzip "github.com/klauspost/compress/gzip"
	"github.com/klauspost/pgzip"
	"github.com/onggi/onggi/errdefs"
)

// applyRecipe unpacks an archive into a new directory and returns that, the recipe, and what Apply said.
func applyRecipe(t testing.TB, archive []byte) (*os.File, []byte, Stats) {
	t.Helper()
	d, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	var recipe bytes.Buffer
	st, err := Apply(context.Background(), bytes.NewReader(archive), d, Options{Recipe: &recipe})
	if err != nil {
		t.Fatal(err)
	}
	return d, recipe.Bytes(), st
}

func TestRebuildGivesTheArchiveBack(t *testing.T) {
	big := make([]byte, 3<<20+17)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(big)
	long := string(bytes.Repeat([]byte("long/"), 60)) + "name"
	archives := map[string][]byte{
		"empty":           mkTar(t),
		"many kinds":      mkTar(t, dir("a/", 0o755), file("a/x", "hello"), link("a/y", "a/x"), sym("a/l", "x"), node(tar.TypeFifo, "a/p", 0, 0), file("a/.wh.gone", ""), file("e", "")),
		"big":             mkTar(t, file("big", string(big)), file("small", "s")),
		"through a link":  mkTar(t, dir("real/", 0o755), sym("seems", "real"), file("seems/f", "content")),
		"a long name":     mkTar(t, file(long, "content"), file("b", string(big[:70_000]))),
		"more at the end": append(mkTar(t, file("f", "content")), bytes.Repeat([]byte{0, 1, 2}, 100_000)...),
	}
	if raw, err := os.ReadFile(filepath.Join("testdata", "corpus.tar")); err == nil {
		archives["the corpus"] = raw
	}
	for name, archive := range archives {
		t.Run(name, func(t *testing.T) {
			d, recipe, st := applyRecipe(t, archive)
			if !st.Rebuildable {
				t.Fatal("it cannot be rebuilt")
			}
			var got bytes.Buffer
			if err := Rebuild(context.Background(), d, bytes.NewReader(recipe), &got); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Bytes(), archive) {
				t.Errorf("it gives %d bytes, which are not the archive's %d", got.Len(), len(archive))
			}
			if len(recipe) > 4096 && len(recipe) > len(archive)/20 {
				t.Errorf("the recipe of an archive of %d bytes has %d", len(archive), len(recipe))
			}
		})
	}
}

func TestNoRecipeWhereTheTreeIsNotTheArchive(t *testing.T) {
	for name, archive := range map[string][]byte{
		"a file twice":         mkTar(t, file("f", "one"), file("f", "two")),
		"a directory replaced": mkTar(t, file("d/f", "one"), file("d", "two")),
	} {
		if _, _, st := applyRecipe(t, archive); st.Rebuildable {
			t.Errorf("%s: said to be rebuildable", name)
		}
	}
}

func TestRebuildNoticesWhatChanged(t *testing.T) {
	archive := mkTar(t, file("d/f", "content"), file("g", "other"))
	for name, change := range map[string]func(dir string) error{
		"gone":         func(d string) error { return os.Remove(d + "/g") },
		"longer":       func(d string) error { return os.WriteFile(d+"/g", []byte("otherwise"), 0o644) },
		"a link":       func(d string) error { _ = os.Remove(d + "/g"); return os.Symlink("d/f", d+"/g") },
		"a link above": func(d string) error { _ = os.Rename(d+"/d", d+"/e"); return os.Symlink("e", d+"/d") },
		"a directory":  func(d string) error { _ = os.Remove(d + "/g"); return os.Mkdir(d+"/g", 0o755) },
	} {
		d, recipe, _ := applyRecipe(t, archive)
		if err := change(d.Name()); err != nil {
			t.Fatal(err)
		}
		if err := Rebuild(context.Background(), d, bytes.NewReader(recipe), io.Discard); !errdefs.Is(err, errdefs.Corrupt) {
			t.Errorf("%s: got %v, want that it is corrupt", name, err)
		}
	}
}

// sampleArchive is one of some megabytes with all sorts of content.
func sampleArchive(t testing.TB) []byte {
	var entries []any
	r := rand.New(rand.NewPCG(3, 4))
	for i := range 60 {
		b := make([]byte, r.IntN(120_000))
		for j := range b {
			switch i % 3 {
			case 0:
				b[j] = byte(r.UintN(256))
			case 1:
				b[j] = byte(r.UintN(20)) + 'a'
			default:
				b[j] = "the quick brown fox "[(j+j/77)%20]
			}
		}
		entries = append(entries, file(fmt.Sprintf("d%d/f%d", i%7, i), string(b)))
	}
	return mkTar(t, entries...)
}

func TestIdentifyAndRecompress(t *testing.T) {
	archive := sampleArchive(t)
	for name, c := range map[string]struct {
		want Form
		mk   func(w io.Writer) io.WriteCloser
	}{
		"docker": {"go-6", func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) }},
		"go -9":  {"go-9", func(w io.Writer) io.WriteCloser { z, _ := gzip.NewWriterLevel(w, 9); return z }},
		"go -1":  {"go-1", func(w io.Writer) io.WriteCloser { z, _ := gzip.NewWriterLevel(w, 1); return z }},
		"named": {"go-6", func(w io.Writer) io.WriteCloser {
			z := gzip.NewWriter(w)
			z.Name, z.Comment, z.Extra = "layer.tar", "c", []byte("xy")
			return z
		}},
		"kaniko": {"klauspost-5", func(w io.Writer) io.WriteCloser { return kgzip.NewWriter(w) }},
		"skopeo": {"pgzip-5-1048576", func(w io.Writer) io.WriteCloser { z := pgzip.NewWriter(w); _ = z.SetConcurrency(1<<20, 3); return z }},
		"onggi": {"pgzip-6-1048576", func(w io.Writer) io.WriteCloser {
			z, _ := pgzip.NewWriterLevel(w, 6)
			_ = z.SetConcurrency(1<<20, 3)
			return z
		}},
		"umoci": {"pgzip-5-262144", func(w io.Writer) io.WriteCloser { z := pgzip.NewWriter(w); _ = z.SetConcurrency(256<<10, 3); return z }},
		"plain": {FormPlain, func(w io.Writer) io.WriteCloser { return nopCloser{w} }},
	} {
		t.Run(name, func(t *testing.T) {
			var blob bytes.Buffer
			z := c.mk(&blob)
			_, _ = z.Write(archive)
			_ = z.Close()
			form, head, ok := Identify(archive[:SampleArchive], blob.Bytes()[:min(blob.Len(), SampleBlob)])
			if !ok || form != c.want {
				t.Fatalf("Identify = %q, %v; want %q", form, ok, c.want)
			}
			var got bytes.Buffer
			w, err := Recompress(form, head, &got)
			if err != nil {
				t.Fatal(err)
			}
			for p := archive; len(p) > 0; { // in other pieces than it was written in
				n := min(len(p), 33_333)
				if _, err := w.Write(p[:n]); err != nil {
					t.Fatal(err)
				}
				p = p[n:]
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Bytes(), blob.Bytes()) {
				t.Errorf("%d bytes, which are not the blob's %d", got.Len(), blob.Len())
			}
		})
	}
}

func TestIdentifyLeavesTheUnknownAlone(t *testing.T) {
	archive := sampleArchive(t)
	var blob bytes.Buffer
	z := gzip.NewWriter(&blob)
	for p := archive; len(p) > 0; p = p[min(len(p), 40_000):] { // flushed now and then, as nobody here does
		_, _ = z.Write(p[:min(len(p), 40_000)])
		_ = z.Flush()
	}
	_ = z.Close()
	for name, b := range map[string][]byte{"flushed": blob.Bytes(), "zstd": []byte("\x28\xb5\x2f\xfd and so on"), "nothing": nil, "a header": {0x1f, 0x8b, 8, 0x1f, 0, 0, 0, 0, 0, 3}} {
		if form, _, ok := Identify(archive[:SampleArchive], b); ok {
			t.Errorf("%s: identified as %q", name, form)
		}
	}
	for _, f := range []Form{"", "go", "go-0", "go-6-1", "pgzip-6", "pgzip-6-1", "xz-6"} {
		if _, err := Recompress(f, nil, io.Discard); !errdefs.Is(err, errdefs.Unsupported) {
			t.Errorf("%q: got %v, want that there is no such compressor", f, err)
		}
	}
}

func FuzzRebuild(f *testing.F) {
	archive := mkTar(f, file("d/f", "content"), file("g", "other"))
	_, recipe, _ := applyRecipe(f, archive)
	f.Add(recipe)
	f.Add(recipe[:len(recipe)/2])
	dir := f.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "g"), []byte("other"), 0o644); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, recipe []byte) {
		d, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		err = Rebuild(context.Background(), d, bytes.NewReader(recipe), io.Discard)
		if err != nil && !errdefs.Is(err, errdefs.Corrupt) {
			t.Errorf("it is refused as %v", err)
		}
	})
}
