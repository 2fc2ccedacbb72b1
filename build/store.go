package build

import (
	"encoding/json"
	"time"

	"github.com/onggi/onggi/build/frontend"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/image"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// configOf reads an image's configuration as it is: the frontend keeps fields that we have no name for.
func (s *session) configOf(img *image.Image) ([]byte, error) {
	c, err := s.e.Content()
	if err != nil {
		return nil, err
	}
	return c.ReadAll(ocispec.Descriptor{Digest: img.ID, Size: -1}, 16<<20)
}

// configure completes the frontend's configuration: layers, times, and a history that has an entry for each layer.
// inline, if not nil, is the list of steps that goes along.
func configure(p frontend.Platform, r *result, inline *exchange) ([]byte, error) {
	var raw map[string]json.RawMessage // fields of docker's that image-spec does not have stay
	var img ocispec.Image
	if err := json.Unmarshal(p.Image, &raw); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(p.Image, &img); err != nil {
		return nil, err
	}
	epoch := r.epoch
	if p.Epoch != nil {
		epoch = time.Unix(*p.Epoch, 0)
	}
	epoch = epoch.UTC()
	fs := ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{}}
	for _, l := range r.layers {
		fs.DiffIDs = append(fs.DiffIDs, l.DiffID)
	}
	full := 0
	for i := range img.History {
		h := &img.History[i]
		if h.Created == nil {
			h.Created = &epoch
		}
		if !h.EmptyLayer {
			full++
		}
	}
	// A base image may come without history; and what merges stand on brings layers that no instruction here made.
	missing := len(fs.DiffIDs) - full
	if missing < 0 {
		return nil, &errdefs.Error{Op: "build", What: "the image's history", Kind: errdefs.Internal, Why: "it has more entries than there are layers"}
	}
	var filled []ocispec.History
	for range missing {
		filled = append(filled, ocispec.History{Created: &epoch})
	}
	img.History = append(filled, img.History...)
	for name, v := range map[string]any{"created": epoch, "rootfs": fs, "history": img.History} {
		b, err := json.Marshal(v)
		if err != nil {
			return nil, err
		}
		raw[name] = b
	}
	if delete(raw, inlineCache); inline != nil { // that of a base image names other layers
		b, err := json.Marshal(inline)
		if err != nil {
			return nil, err
		}
		raw[inlineCache] = b
	}
	return json.Marshal(raw) // maps are sorted: the same text for the same image
}
