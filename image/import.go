package image

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"time"

	"github.com/onggi/onggi/archive"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/reference"
	"github.com/onggi/onggi/snapshot"
	"github.com/onggi/onggi/undo"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ImportOptions of Import.
type ImportOptions struct {
	Ref      reference.Reference // zero: no name
	Message  string
	Config   ocispec.ImageConfig
	Platform *ocispec.Platform
}

// Import makes a one-layer image from a root file system's tar (compressed or not). The tar is kept as it came.
func (s *Store) Import(ctx context.Context, r io.Reader, o ImportOptions) (*Image, error) {
	img, err := s.imported(ctx, r, o)
	if err == nil {
		s.tell("import", string(img.ID), img.anyName())
	}
	return img, err
}

func (s *Store) imported(ctx context.Context, r io.Reader, o ImportOptions) (_ *Image, err error) {
	defer func() {
		if err != nil {
			err = &errdefs.Error{Op: "import", What: "the archive", Kind: errdefs.KindOf(err), Fix: fixOf(err), Err: err}
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
	br := bufio.NewReaderSize(r, 64<<10)
	encoding, err := compression(br)
	if err != nil {
		return nil, err
	}
	var blob ocispec.Descriptor
	var layer *snapshot.Layer
	err = steps.Do("spool", func() error {
		blob, layer, err = b.importLayer(ctx, br, s.snapshots.Import)
		return err
	}, nil)
	if err != nil {
		return nil, err
	}
	blob.MediaType = layerType(encoding)
	if err := b.describe(ctx, blob, layer.DiffID, o); err != nil {
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

// unpacker is snapshot's Import or UnpackNew.
type unpacker func(ctx context.Context, r io.Reader, claim func(digest.Digest) error) (*snapshot.Layer, error)

// importLayer stores what r gives and has it unpacked meanwhile. Neither digest is known before.
func (b *bringing) importLayer(ctx context.Context, r io.Reader, unpack unpacker) (blob ocispec.Descriptor, layer *snapshot.Layer, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := b.s.room(ctx, 0); err != nil {
		return blob, nil, err
	}
	w, err := b.s.content.Begin(ctx, ocispec.Descriptor{Size: -1})
	if err != nil {
		return blob, nil, err
	}
	defer w.Close()
	copied := make(chan error, 1)
	go func() {
		_, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, make([]byte, fetchBuffer))
		if err == nil {
			err = w.Verify()
		}
		if err != nil {
			_ = w.Abort(err)
		}
		copied <- err
	}()
	layer, err = unpack(ctx, w.Follow(ctx), func(d digest.Digest) error { return b.lease.add(ctx, d) })
	if err != nil {
		cancel(err)
		_ = w.Abort(err) // the copy ends with its next write; a reader that never ends is its owner's
		select {
		case cerr := <-copied:
			if cerr != nil && !errors.Is(cerr, err) && errdefs.KindOf(cerr) != errdefs.Canceled {
				err = cerr
			}
		default:
		}
		return blob, nil, err
	}
	select {
	case err := <-copied:
		if err != nil {
			return blob, nil, err
		}
	case <-ctx.Done():
		return blob, nil, ctx.Err()
	}
	if err := b.lease.add(ctx, w.Digest()); err != nil {
		return blob, nil, err
	}
	more := w.Size()
	if _, err := b.s.content.Stat(w.Digest()); err == nil {
		more = 0 // the same archive came in before
	}
	if err := b.s.room(ctx, more); err != nil {
		return blob, nil, err
	}
	blob, err = w.Commit(ctx)
	return blob, layer, err
}

// describe makes configuration and manifest of a one-layer image.
func (b *bringing) describe(ctx context.Context, blob ocispec.Descriptor, diffID digest.Digest, o ImportOptions) error {
	now := time.Now().UTC()
	platform := HostPlatform()
	platform.Variant = "" // what a tar holds does not say that it needs this processor
	if o.Platform != nil {
		platform = normal(*o.Platform)
	}
	message := o.Message
	if message == "" {
		message = "Imported from -"
	}
	b.config = ocispec.Image{
		Created: &now, Platform: platform, Config: o.Config,
		RootFS:  ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{diffID}},
		History: []ocispec.History{{Created: &now, Comment: message}},
	}
	return b.synthesize(ctx, b.config, nil, []ocispec.Descriptor{blob})
}

// synthesize makes a manifest for layers that came without one. raw is the configuration's text if it came with the
// image: its digest is the image's id, so it is kept as it is.
func (b *bringing) synthesize(ctx context.Context, config ocispec.Image, raw []byte, layers []ocispec.Descriptor) error {
	if raw == nil {
		var err error
		if raw, err = json.Marshal(config); err != nil {
			return err
		}
	}
	b.manifest = ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: memory(ocispec.MediaTypeImageConfig, raw).desc, Layers: layers, Annotations: b.annotations,
	}
	if b.manifest.Layers == nil {
		b.manifest.Layers = []ocispec.Descriptor{}
	}
	doc, err := json.Marshal(b.manifest)
	if err != nil {
		return err
	}
	b.desc = memory(ocispec.MediaTypeImageManifest, doc).desc
	b.target = b.desc
	b.small = []smallBlob{{b.desc, doc}, {b.manifest.Config, raw}}
	return b.lease.add(ctx, b.desc.Digest, b.manifest.Config.Digest)
}

func memory(mediaType string, raw []byte) smallBlob {
	return smallBlob{ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}, raw}
}

func layerType(c archive.Compression) string {
	switch c {
	case archive.Gzip:
		return ocispec.MediaTypeImageLayerGzip
	case archive.Zstd:
		return ocispec.MediaTypeImageLayerZstd
	}
	return ocispec.MediaTypeImageLayer
}

// compression looks at the beginning of a stream. Encodings that are known and not read here are refused by name: taken
// for a tar they would only be called damaged.
func compression(br *bufio.Reader) (archive.Compression, error) {
	head, err := br.Peek(6)
	if err != nil && err != io.EOF {
		return archive.Plain, err
	}
	if len(head) == 0 {
		return archive.Plain, &errdefs.Error{What: "the archive", Kind: errdefs.Corrupt, Why: "it is empty"}
	}
	return sniff(head)
}

func sniff(head []byte) (archive.Compression, error) {
	for _, m := range []struct {
		magic string
		is    archive.Compression
		name  string // what it is when we do not read it
	}{
		{"\x1f\x8b", archive.Gzip, ""},
		{"\x28\xb5\x2f\xfd", archive.Zstd, ""},
		{"\xfd7zXZ\x00", "", "xz"},
		{"BZh", "", "bzip2"},
		{"\x04\x22\x4d\x18", "", "lz4"},
		{"7z\xbc\xaf", "", "7z"},
		{"PK\x03\x04", "", "zip"},
	} {
		if !bytes.HasPrefix(head, []byte(m.magic)) {
			continue
		}
		if m.name != "" {
			return "", &errdefs.Error{
				What: "the archive", Kind: errdefs.Unsupported, Why: "it is compressed with " + m.name + "; gzip, zstd and plain tar are read",
				Fix: "decompress it first, for example: " + m.name + " -dc FILE, and pipe the result",
			}
		}
		return m.is, nil
	}
	return archive.Plain, nil
}
