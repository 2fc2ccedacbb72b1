package image

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/onggi/onggi/archive"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// wide is a layer above minDropped, compressed as docker does it, with files of all sizes.
func wide(mediaType string) testLayer {
	r := rand.New(rand.NewPCG(5, 6))
	files := []file{{"usr/", ""}}
	for i := range 80 {
		b := make([]byte, r.IntN(90_000))
		for j := range b {
			b[j] = byte(r.UintN(uint(3 + 3*i)))
		}
		files = append(files, file{"usr/" + strings.Repeat("n", i+1), string(b)})
	}
	return layerOf(mediaType, files...)
}

func (s *Store) hasBlob(d digest.Digest) bool { _, err := s.content.Stat(d); return err == nil }

func TestBlobsAreDroppedAndMadeAgain(t *testing.T) {
	i := imageOf("amd64", wide(ocispec.MediaTypeImageLayerGzip), layerOf(ocispec.MediaTypeImageLayerGzip, file{"small", "s"}))
	big, small := i.layers[0], i.layers[1]
	if big.desc.Size < minDropped {
		t.Fatalf("the layer has only %d bytes", big.desc.Size)
	}
	f := newFake(t)
	f.add("v1", i)
	s := root(t)
	_, err := pull(t, s, f.ref(t, "v1"))
	must(t, err)
	if s.hasBlob(big.desc.Digest) || !s.hasBlob(small.desc.Digest) {
		t.Errorf("the large blob is here: %v, the small one: %v; want only the latter", s.hasBlob(big.desc.Digest), s.hasBlob(small.desc.Digest))
	}
	for _, l := range left(t, s) {
		if strings.Contains(l, "ingest/") {
			t.Errorf("left: %s", l)
		}
	}

	// Pushed elsewhere, bit for bit, and gone again afterwards.
	addr := realRegistry(t, "")
	name := f.ref(t, "v1").String()
	res, said, err := push(t, s, name, addr+"/me/app:1")
	must(t, err)
	if res.Desc.Digest != i.desc.Digest || !strings.Contains(said, "Rebuilding") {
		t.Errorf("pushed %s, want %s; said %q", res.Desc.Digest, i.desc.Digest, said)
	}
	if s.hasBlob(big.desc.Digest) {
		t.Error("the blob that was made for the push stays")
	}
	other := root(t)
	other.SetKeep(func() Keep { return KeepAlways })
	img, err := pull(t, other, parseRef(t, addr+"/me/app:1"))
	must(t, err)
	if img.ID != i.id || !other.hasBlob(big.desc.Digest) {
		t.Errorf("%s came back, with its blob: %v", img.ID, other.hasBlob(big.desc.Digest))
	}

	// Saved and loaded: the blob is in the archive, and not kept where it is loaded.
	for _, format := range []string{DockerArchive, OCIArchive} {
		var out bytes.Buffer
		must(t, s.Save(bg, &out, []string{name}, SaveOptions{Format: format}))
		if !bytes.Contains(out.Bytes(), big.blob) {
			t.Errorf("%s: the archive does not hold the blob", format)
		}
		third := root(t)
		must(t, load(t, third, out.Bytes()))
		if third.hasBlob(big.desc.Digest) {
			t.Errorf("%s: the loaded blob is kept", format)
		}
		must(t, third.Sweep(bg))
	}

	// Compressed anew: out of the layer.
	res, _, err = push(t, s, name, addr+"/me/app:zstd", func(o *PushOptions) { o.Compression, o.Recompress = Compression{Name: "zstd"}, true })
	if err != nil || res.Desc.Digest == i.desc.Digest {
		t.Errorf("%v, %v", res.Desc.Digest, err)
	}
	must(t, s.Sweep(bg))

	// A check proves the tree without the blob, and nothing is unproven.
	r, err := s.Check(bg, CheckOptions{})
	if err != nil || len(r.Problems) > 0 || r.Unproven > 0 {
		t.Errorf("check: %+v, %v", r, err)
	}
}

func TestADamagedLayerIsNotPushed(t *testing.T) {
	i := imageOf("amd64", wide(ocispec.MediaTypeImageLayerGzip))
	f := newFake(t)
	f.add("v1", i)
	s := root(t)
	ref := f.ref(t, "v1")
	_, err := pull(t, s, ref)
	must(t, err)
	path := filepath.Join(s.rootDir(), "snapshots/layers/sha256", i.layers[0].diffID.Encoded(), "fs/usr/"+strings.Repeat("n", 40))
	st, err := os.Stat(path)
	must(t, err)
	b, err := os.ReadFile(path)
	must(t, err)
	b[len(b)/2] ^= 1
	must(t, os.WriteFile(path, b, 0o644))
	must(t, os.Chtimes(path, st.ModTime(), st.ModTime()))

	addr := realRegistry(t, "")
	if _, _, err := push(t, s, ref.String(), addr+"/me/app:1"); !errdefs.Is(err, errdefs.Corrupt) {
		t.Errorf("pushed a damaged layer: %v", err)
	}
	if err := s.Save(bg, io.Discard, []string{ref.String()}, SaveOptions{}); !errdefs.Is(err, errdefs.Corrupt) {
		t.Errorf("saved a damaged layer: %v", err)
	}
	if s.hasBlob(i.layers[0].desc.Digest) {
		t.Error("a wrong blob is in the store")
	}
	r, err := s.Check(bg, CheckOptions{})
	if err != nil || len(r.Problems) != 1 || r.Problems[0].What != "layer" || r.Problems[0].Fix == "" {
		t.Errorf("check: %+v, %v; want one broken layer", r, err)
	}
	c := registry.New(registry.Options{})
	defer c.Close()
	r, err = s.Check(bg, CheckOptions{Repair: true, Registry: c})
	if err != nil || len(r.Problems) != 1 || !r.Problems[0].Repaired {
		t.Errorf("repair: %+v, %v", r, err)
	}
	if s.hasBlob(i.layers[0].desc.Digest) {
		t.Error("the blob that was fetched for the repair stays")
	}
	if r, err = s.Check(bg, CheckOptions{}); err != nil || len(r.Problems) > 0 || r.Unproven > 0 {
		t.Errorf("after the repair: %+v, %v", r, err)
	}
	_, _, err = push(t, s, ref.String(), addr+"/me/app:1")
	must(t, err)
}

func TestBlobsThatStay(t *testing.T) {
	for name, c := range map[string]struct {
		layer testLayer
		keep  Keep
		want  bool
	}{
		"zstd":                       {wide(ocispec.MediaTypeImageLayerZstd), KeepAuto, true},
		"always":                     {wide(ocispec.MediaTypeImageLayerGzip), KeepAlways, true},
		"plain":                      {wide(ocispec.MediaTypeImageLayer), KeepAuto, false},
		"an entry replaces another":  {layerOf(ocispec.MediaTypeImageLayerGzip, file{"f", string(noise(2 << 20))}, file{"f", "again"}), KeepAuto, true},
		"of a compressor as unknown": {flushed(wide(ocispec.MediaTypeImageLayerGzip)), KeepAuto, true},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			i := imageOf("amd64", c.layer)
			f.add("v1", i)
			s := root(t)
			s.SetKeep(func() Keep { return c.keep })
			_, err := pull(t, s, f.ref(t, "v1"))
			must(t, err)
			if got := s.hasBlob(c.layer.desc.Digest); got != c.want {
				t.Errorf("the blob is here: %v, want %v", got, c.want)
			}
			var out bytes.Buffer
			must(t, s.Save(bg, &out, []string{f.ref(t, "v1").String()}, SaveOptions{Format: OCIArchive}))
			if !bytes.Contains(out.Bytes(), c.layer.blob) {
				t.Error("what is saved is another blob")
			}
		})
	}
	if err := Keep("never").Check(); !errdefs.Is(err, errdefs.InvalidArgument) {
		t.Errorf("never: %v", err)
	}
}

func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{9}).Read(b)
	return b
}

// flushed compresses a layer as nobody does.
func flushed(l testLayer) testLayer {
	var b bytes.Buffer
	z, err := archive.Recompress("go-2", []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3}, &b)
	_, werr := z.Write(l.tar)
	if err = errors.Join(err, werr, z.Close()); err != nil {
		panic(err)
	}
	l.blob = b.Bytes()
	l.desc.Digest, l.desc.Size = digest.FromBytes(l.blob), int64(b.Len())
	return l
}
