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
	made, err := s.Make(ctx, h, Assembly{Parts: []Part{{Config: config, Layers: []ocispec.Descriptor{b1, b2}}}})
	must(t, err)
	if _, err := s.Get(ref.String()); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("what has no name yet was found: %v", err)
	}
	imgs, err := s.Keep(ctx, made, []reference.Reference{ref})
	must(t, err)
	img := imgs[0]
	if img.ID != digest.FromBytes(config) || len(img.DiffIDs) != 2 {
		t.Errorf("the image: %+v", img)
	}
	if _, err := s.Make(ctx, h, Assembly{Parts: []Part{{Config: config, Layers: []ocispec.Descriptor{b1}}}}); err == nil {
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

// TestMakeIndex: images for two platforms and statements about them are one index; a push compresses their layers once, and
// the statements then speak of what was pushed.
func TestMakeIndex(t *testing.T) {
	s, ctx := root(t), context.Background()
	h, err := s.Hold(ctx)
	must(t, err)
	blob, layer, err := s.AddLayer(ctx, h, func(w io.Writer) error { _, err := w.Write(tarOf(file{name: "a", text: "1"})); return err })
	must(t, err)
	var parts []Part
	for _, arch := range []string{"amd64", "arm64"} {
		config, err := json.Marshal(ocispec.Image{
			Platform: ocispec.Platform{OS: "linux", Architecture: arch}, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layer.DiffID}},
		})
		must(t, err)
		parts = append(parts, Part{
			Config: config, Layers: []ocispec.Descriptor{blob}, Annotations: map[string]string{"made.for": arch},
			Attest: func(m ocispec.Descriptor) ([]Statement, error) {
				return []Statement{{PredicateType: "https://example.com/made", Data: []byte(`{"about":"` + m.Digest.Encoded() + `"}`)}}, nil
			},
		})
	}
	made, err := s.Make(ctx, h, Assembly{Parts: parts, Annotations: map[string]string{"all": "two"}})
	must(t, err)
	ref, err := reference.Parse("127.0.0.1:1/made/both:1")
	must(t, err)
	imgs, err := s.Keep(ctx, made, []reference.Reference{ref})
	must(t, err)
	must(t, h.Close(ctx))
	must(t, s.Sweep(ctx))
	if len(imgs) != 2 || imgs[0].Target.Digest != made.Desc.Digest || imgs[1].Config.Architecture != "arm64" {
		t.Fatalf("kept: %+v", imgs)
	}
	statements := func() (about []string, top digest.Digest) {
		idx, err := s.readIndex()
		must(t, err)
		found := idx.platforms(ref)
		if len(found) != 2 {
			t.Fatalf("the name has %d platforms", len(found))
		}
		top = found[0].target.Digest
		raw, err := s.content.ReadAll(found[0].target, 1<<20)
		must(t, err)
		doc, err := parseDocument("", raw)
		must(t, err)
		have := map[string]bool{}
		for _, d := range doc.index.Manifests {
			if !isAttestation(d) {
				have[d.Digest.Encoded()] = true
				continue
			}
			m, err := s.readManifest(d)
			must(t, err)
			b, err := s.content.ReadAll(m.Layers[0], 1<<20)
			must(t, err)
			var st struct{ About string }
			must(t, json.Unmarshal(b, &st))
			if !have[st.About] || "sha256:"+st.About != d.Annotations[annotationReferenceDigest] || m.Layers[0].Annotations[AnnotationPredicate] != "https://example.com/made" {
				t.Errorf("the statement %s is about none of the images %v: %+v", b, have, d)
			}
			about = append(about, st.About)
		}
		if len(about) != 2 || doc.index.Annotations["all"] != "two" {
			t.Errorf("%d statements, annotations %v", len(about), doc.index.Annotations)
		}
		return about, top
	}
	before, top := statements()
	l, err := s.newLease(ctx)
	must(t, err)
	idx, err := s.readIndex()
	must(t, err)
	_, err = s.compressMade(ctx, l, idx.platforms(ref), Compression{})
	must(t, err)
	must(t, l.drop(ctx))
	after, top2 := statements()
	if before[0] == after[0] || top == top2 {
		t.Error("the layers were not compressed")
	}
	img, err := s.Get(ref.String())
	must(t, err)
	m, err := s.readManifest(img.Manifest)
	must(t, err)
	if m.Layers[0].MediaType != ocispec.MediaTypeImageLayerGzip || m.Annotations["made.for"] != "amd64" {
		t.Errorf("the manifest after the compression: %+v", m)
	}
}
