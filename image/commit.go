package image

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"slices"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/reference"
	"github.com/onggi/onggi/registry"
	"github.com/onggi/onggi/snapshot"
	"github.com/onggi/onggi/undo"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// CommitOptions of Commit.
type CommitOptions struct {
	Ref       reference.Reference // zero: no name
	Author    string
	Message   string
	CreatedBy string // the command whose traces the layer is
	Config    ocispec.ImageConfig
}

// Commit makes an image of another one and a layer on top of it, which r gives as a tar. The layer is kept as it came,
// and compressed when it is pushed.
func (s *Store) Commit(ctx context.Context, base *Image, r io.Reader, o CommitOptions) (_ *Image, err error) {
	defer func() {
		if err != nil {
			err = &errdefs.Error{Op: "commit", What: "the container", Kind: errdefs.KindOf(err), Fix: fixOf(err), Err: err}
		}
	}()
	if o.Ref.Digest != "" {
		return nil, &errdefs.Error{What: o.Ref.Familiar(), Kind: errdefs.InvalidArgument, Why: "an image cannot be given a digest", Fix: "use a tag"}
	}
	if err := s.recover(ctx); err != nil {
		return nil, err
	}
	steps := undo.New("image")
	defer steps.Undo(&err)
	b := &bringing{s: s, progress: newProgress(nil)}
	if !o.Ref.IsZero() {
		b.names = []string{o.Ref.String()}
	}
	if err := b.begin(ctx, steps); err != nil {
		return nil, err
	}
	layers, err := b.baseLayers(ctx, base)
	if err != nil {
		return nil, err
	}
	var blob ocispec.Descriptor
	var layer *snapshot.Layer
	err = steps.Do("spool", func() error {
		blob, layer, err = b.importLayer(ctx, bufio.NewReaderSize(r, 64<<10), s.snapshots.UnpackNew)
		return err
	}, nil)
	if err != nil {
		return nil, err
	}
	blob.MediaType = ocispec.MediaTypeImageLayer
	now := time.Now().UTC()
	b.config = base.Config
	b.config.Created, b.config.Config = &now, o.Config
	if o.Author != "" {
		b.config.Author = o.Author
	}
	b.config.RootFS.DiffIDs = append(slices.Clone(base.Config.RootFS.DiffIDs), layer.DiffID)
	b.config.RootFS.Type = "layers"
	b.config.History = append(slices.Clone(base.Config.History), ocispec.History{Created: &now, CreatedBy: o.CreatedBy, Author: o.Author, Comment: o.Message})
	if len(b.config.RootFS.DiffIDs) > maxLayers {
		return nil, &errdefs.Error{What: "the image", Kind: errdefs.Unsupported, Why: "it would have more layers than overlayfs stacks", Fix: "export the container and import it as one layer"}
	}
	if err := b.synthesize(ctx, b.config, nil, append(layers, blob)); err != nil {
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

// baseLayers returns the layers of the image below, on the lease, by OCI's names of their types.
func (b *bringing) baseLayers(ctx context.Context, base *Image) ([]ocispec.Descriptor, error) {
	need := append(slices.Clone(base.Config.RootFS.DiffIDs), base.Manifest.Digest, base.ID)
	if err := b.lease.add(ctx, need...); err != nil {
		return nil, err
	}
	raw, err := b.s.content.ReadAll(ocispec.Descriptor{Digest: base.Manifest.Digest}, registry.MaxManifest)
	if err != nil {
		return nil, err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, err
	}
	for i := range m.Layers {
		l := &m.Layers[i]
		if err := b.lease.add(ctx, l.Digest); err != nil {
			return nil, err
		}
		switch l.MediaType {
		case dockerLayer:
			l.MediaType = ocispec.MediaTypeImageLayer
		case dockerLayer + ".gzip":
			l.MediaType = ocispec.MediaTypeImageLayerGzip
		}
		l.URLs, l.Data = nil, nil
	}
	for _, d := range base.Config.RootFS.DiffIDs {
		if _, err := b.s.snapshots.Layer(d); err != nil {
			return nil, err
		}
	}
	return m.Layers, nil
}
