package image

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/reference"
	"github.com/onggi/onggi/snapshot"
	"github.com/onggi/onggi/undo"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// AlsoNeeds names another owner of blobs and layers, a build cache say: what f lists is not removed. f is called under the
// index lock and must not change the store. Every process that removes has to know the same owners; it is called before
// the store is used.
func (s *Store) AlsoNeeds(f func() ([]digest.Digest, error)) { s.also = append(s.also, f) }

// Hold keeps what is being made here, layer by layer, from being collected: by Close, or when its process ends, what
// neither a name nor anybody else needs goes.
type Hold struct {
	s *Store
	l *lease
}

// Hold begins to hold nothing.
func (s *Store) Hold(ctx context.Context) (*Hold, error) {
	if err := s.recover(ctx); err != nil {
		return nil, err
	}
	l, err := s.newLease(ctx)
	if err != nil {
		return nil, err
	}
	return &Hold{s, l}, nil
}

// Add holds blobs and layers from now on. Whether they are there is looked up afterwards.
func (h *Hold) Add(ctx context.Context, ds ...digest.Digest) error { return h.l.add(ctx, ds...) }

// Close ends the hold; it may be called after ctx has ended.
func (h *Hold) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	return h.l.drop(ctx)
}

// AddLayer brings in a layer whose uncompressed tar write writes: as a blob, and unpacked. Both are on the hold. A layer
// that is there is not unpacked again.
func (s *Store) AddLayer(ctx context.Context, h *Hold, write func(io.Writer) error) (blob ocispec.Descriptor, layer *snapshot.Layer, err error) {
	w, err := s.content.Begin(ctx, ocispec.Descriptor{Size: -1})
	if err != nil {
		return blob, nil, err
	}
	defer w.Close()
	if err := write(w); err != nil {
		return blob, nil, err
	}
	d := w.Digest() // of an uncompressed tar: the layer's diffID is the same
	if err := h.Add(ctx, d); err != nil {
		return blob, nil, err
	}
	if blob, err = w.Commit(ctx); err != nil {
		return blob, nil, err
	}
	blob.MediaType = ocispec.MediaTypeImageLayer
	r, err := s.content.Open(blob)
	if err != nil {
		return blob, nil, err
	}
	defer r.Close()
	layer, err = s.snapshots.Unpack(ctx, d, r)
	return blob, layer, err
}

// Assembly is an image that was made here.
type Assembly struct {
	Names []reference.Reference // none: a dangling image
	// Config is the configuration's text; it lists the diffIDs of Layers.
	Config []byte
	// Layers are the layers' blobs, bottom first, in the content store.
	Layers []ocispec.Descriptor
}

// Assemble stores configuration and manifest and names the image. Its layers are unpacked and held.
func (s *Store) Assemble(ctx context.Context, a Assembly) (_ *Image, err error) {
	defer func() {
		if err != nil {
			err = &errdefs.Error{Op: "store", What: "the image", Kind: errdefs.KindOf(err), Fix: fixOf(err), Err: err}
		}
	}()
	for _, n := range a.Names {
		if n.Digest != "" {
			return nil, &errdefs.Error{What: n.Familiar(), Kind: errdefs.InvalidArgument, Why: "an image cannot be given a digest", Fix: "use a tag"}
		}
	}
	config, err := parseConfig(a.Config)
	if err != nil {
		return nil, err
	}
	if len(config.RootFS.DiffIDs) != len(a.Layers) {
		return nil, fmt.Errorf("its configuration lists %d layers, and %d were given", len(config.RootFS.DiffIDs), len(a.Layers))
	}
	for _, d := range config.RootFS.DiffIDs {
		if _, err := s.snapshots.Layer(d); err != nil {
			return nil, err
		}
	}
	steps := undo.New("image")
	defer steps.Undo(&err)
	b := &bringing{s: s, progress: newProgress(nil), config: config}
	for _, n := range a.Names {
		b.names = append(b.names, n.String())
	}
	if err := b.begin(ctx, steps); err != nil {
		return nil, err
	}
	need := slices.Clone(config.RootFS.DiffIDs)
	for _, l := range a.Layers {
		need = append(need, l.Digest)
	}
	if err := b.lease.add(ctx, need...); err != nil {
		return nil, err
	}
	if err := b.synthesize(ctx, config, a.Config, a.Layers); err != nil {
		return nil, err
	}
	if err := steps.Do("blobs", func() error { return b.storeSmall(ctx) }, nil); err != nil {
		return nil, err
	}
	if err := b.nameIt(ctx, steps); err != nil {
		return nil, err
	}
	return b.finish(steps)
}
