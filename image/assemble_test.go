package image

import (
	"context"
	"encoding/json"
	"io"
	"testing"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestAssemble: an image is made of two layers that came in one by one; a layer that nobody needs goes with its hold, one
// that another owner needs stays.
func TestAssemble(t *testing.T) {
	s, ctx := root(t), context.Background()
	var owned []digest.Digest
	s.AlsoNeeds(func() ([]digest.Digest, error) { return owned, nil })
	h, err := s.Hold(ctx)
	must(t, err)
	add := func(files ...file) (ocispec.Descriptor, digest.Digest) {
		t.Helper()
		blob, layer, err := s.AddLayer(ctx, h, func(w io.Writer) error { _, err := w.Write(tarOf(files...)); return err })
		must(t, err)
		if blob.Digest != layer.DiffID || blob.MediaType != ocispec.MediaTypeImageLayer {
			t.Errorf("blob %+v of layer %s", blob, layer.DiffID)
		}
		return blob, layer.DiffID
	}
	b1, d1 := add(file{name: "a", text: "1"})
	b2, d2 := add(file{name: ".wh.a"}, file{name: "b", text: "2"})
	_, lost := add(file{name: "c", text: "3"})
	_, kept := add(file{name: "d", text: "4"})
	owned = append(owned, kept)
	config, err := json.Marshal(ocispec.Image{Platform: HostPlatform(), RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{d1, d2}}})
	must(t, err)
	ref, err := reference.Parse("made/here:1")
	must(t, err)
	img, err := s.Assemble(ctx, Assembly{Names: []reference.Reference{ref}, Config: config, Layers: []ocispec.Descriptor{b1, b2}})
	must(t, err)
	if img.ID != digest.FromBytes(config) || len(img.DiffIDs) != 2 {
		t.Errorf("the image: %+v", img)
	}
	if _, err := s.Assemble(ctx, Assembly{Config: config, Layers: []ocispec.Descriptor{b1}}); err == nil {
		t.Error("a layer is missing, and the image was made")
	}
	must(t, h.Close(ctx))
	must(t, s.Sweep(ctx))
	for d, want := range map[digest.Digest]bool{d1: true, d2: true, lost: false, kept: true} {
		if _, err := s.snapshots.Layer(d); (err == nil) != want {
			t.Errorf("layer %s: %v, want it there: %v", d, err, want)
		}
		if _, err := s.content.Stat(d); (err == nil) != want {
			t.Errorf("blob %s: %v, want it there: %v", d, err, want)
		}
	}
	owned = nil
	must(t, s.Sweep(ctx))
	if _, err := s.snapshots.Layer(kept); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("what nobody needs any more: %v", err)
	}
}
