package image

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/onggi/onggi/archive"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/reference"
	"github.com/onggi/onggi/registry"
	"github.com/onggi/onggi/snapshot"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// An artifact is a manifest of something else than an image, a build cache say: a configuration of its own type and layers,
// which are blobs of this store. It goes to a registry or a layout, and never gets a name here.
//
//	Compress, Artifact -> PushArtifact | SaveArtifact
//	RemoteArtifact | LayoutArtifact -> BringLayer

// Artifact is a manifest and its configuration.
type Artifact struct {
	Desc     ocispec.Descriptor
	Manifest ocispec.Manifest
	Config   []byte
	raw      []byte
	// Open reads one of the manifest's layers; nil for an artifact that was made here. Whoever reads verifies.
	Open func(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error)
}

// Compress returns a layer's blob compressed, on the hold; one that is compressed already as it is.
func (s *Store) Compress(ctx context.Context, h *Hold, d ocispec.Descriptor, diffID digest.Digest, c Compression) (ocispec.Descriptor, error) {
	if !plainLayer(d.MediaType) || c.Name == "none" {
		return d, nil
	}
	return s.compressLayer(ctx, h.l, d, diffID, c)
}

// NewArtifact makes a manifest of layers that are held, and puts it and its configuration on the hold.
func (s *Store) NewArtifact(ctx context.Context, h *Hold, configType string, config []byte, layers []ocispec.Descriptor) (*Artifact, error) {
	c := memory(configType, config)
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: c.desc, Layers: layers}
	m.SchemaVersion = 2
	raw, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	doc := memory(m.MediaType, raw)
	if err := h.Add(ctx, doc.desc.Digest, c.desc.Digest); err != nil {
		return nil, err
	}
	return &Artifact{Desc: doc.desc, Manifest: m, Config: config, raw: raw}, (&bringing{s: s, small: []smallBlob{doc, c}}).storeSmall(ctx)
}

// PushArtifact brings an artifact into ref's registry, under its tag.
func (s *Store) PushArtifact(ctx context.Context, h *Hold, ref reference.Reference, a *Artifact, c *registry.Client) error {
	p := &pushing{s: s, o: PushOptions{Registry: c}, ref: ref, lease: h.l, progress: newProgress(nil), turns: make(chan struct{}, maxUploads)}
	img := pushed{doc: smallBlob{a.Desc, a.raw}, manifest: a.Manifest}
	if err := p.blobs(ctx, &img); err != nil {
		return err
	}
	return c.PushManifest(ctx, ref, a.Desc, a.raw, ref.Tag)
}

// SaveArtifact writes an artifact into an OCI image layout under a tag, and replaces what had the tag there.
func (s *Store) SaveArtifact(ctx context.Context, dir, tag string, a *Artifact) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	r, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer r.Close()
	to := &dirSink{r: r}
	if err := s.saveBlobs(ctx, to, pushed{doc: smallBlob{a.Desc, a.raw}, manifest: a.Manifest}, map[digest.Digest]bool{}); err != nil {
		return err
	}
	if err := to.add(ocispec.ImageLayoutFile, int64(len(layout)), strings.NewReader(layout)); err != nil {
		return err
	}
	d := a.Desc
	d.Annotations = map[string]string{ocispec.AnnotationRefName: tag}
	return to.index([]ocispec.Descriptor{d})
}

// maxArtifactConfig bounds an artifact's configuration, in bytes.
const maxArtifactConfig = 32 << 20

// RemoteArtifacts reads what ref names in its registry: an artifact, an image, or all images of an index, of which Config is
// the configuration of each. Errors as registry.Client's.
func (s *Store) RemoteArtifacts(ctx context.Context, c *registry.Client, ref reference.Reference) ([]*Artifact, error) {
	d, err := c.Resolve(ctx, ref)
	if err != nil {
		return nil, err
	}
	read := func(d ocispec.Descriptor) ([]byte, error) { return c.Manifest(ctx, ref, d) }
	return artifacts(ctx, d, read, func(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) { return c.Blob(ctx, ref, d) })
}

// LayoutArtifacts reads what the tag names in an OCI image layout. NotFound.
func LayoutArtifacts(ctx context.Context, dir, tag string) ([]*Artifact, error) {
	open := func(name string) (*os.File, error) {
		r, err := os.OpenRoot(dir)
		if err != nil {
			return nil, err
		}
		defer r.Close()
		return r.Open(name)
	}
	f, err := open(ocispec.ImageIndexFile)
	if err != nil {
		return nil, &errdefs.Error{Op: "open", What: "the layout " + dir, Kind: errdefs.KindOf(err), Err: err}
	}
	defer f.Close()
	raw, err := readLimited(f, registry.MaxManifest)
	if err != nil {
		return nil, err
	}
	var idx ocispec.Index
	if err := json.Unmarshal(raw, &idx); err != nil {
		return nil, malformed("the layout "+dir, "its index.json: %v", err)
	}
	i := slices.IndexFunc(idx.Manifests, func(d ocispec.Descriptor) bool { return d.Annotations[ocispec.AnnotationRefName] == tag })
	if i < 0 {
		return nil, &errdefs.Error{Op: "find", What: tag + " in " + dir, Kind: errdefs.NotFound, Why: "the layout has no such tag"}
	}
	blob := func(_ context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
		if err := checkDescriptor("the layout", d); err != nil {
			return nil, err
		}
		return open(blobName(d.Digest))
	}
	return artifacts(ctx, idx.Manifests[i], func(d ocispec.Descriptor) ([]byte, error) {
		r, err := blob(ctx, d)
		if err != nil {
			return nil, err
		}
		defer r.Close()
		return verified(r, d, registry.MaxManifest)
	}, blob)
}

// verified reads a small blob whole.
func verified(r io.Reader, d ocispec.Descriptor, limit int64) ([]byte, error) {
	b, err := readLimited(r, limit)
	if err == nil && (digest.FromBytes(b) != d.Digest || int64(len(b)) != d.Size) {
		err = malformed("the blob "+string(d.Digest), "its bytes are others")
	}
	return b, err
}

func artifacts(ctx context.Context, d ocispec.Descriptor, read func(ocispec.Descriptor) ([]byte, error), blob func(context.Context, ocispec.Descriptor) (io.ReadCloser, error)) ([]*Artifact, error) {
	raw, err := read(d)
	if err != nil {
		return nil, err
	}
	if doc, err := parseDocument(d.MediaType, raw); err == nil && doc.index != nil {
		var out []*Artifact
		for _, m := range doc.index.Manifests {
			if isAttestation(m) {
				continue
			}
			raw, err := read(m)
			if err != nil {
				return nil, err
			}
			a, err := readArtifact(ctx, m, raw, blob)
			if err != nil {
				return nil, err
			}
			out = append(out, a)
		}
		return out, nil
	}
	a, err := readArtifact(ctx, d, raw, blob)
	return []*Artifact{a}, err
}

func readArtifact(ctx context.Context, d ocispec.Descriptor, raw []byte, blob func(context.Context, ocispec.Descriptor) (io.ReadCloser, error)) (*Artifact, error) {
	img, err := readPushed(d, raw)
	if err != nil {
		return nil, err
	}
	if img.manifest.Config.Size > maxArtifactConfig {
		return nil, malformed("the manifest", "its configuration has %d bytes", img.manifest.Config.Size)
	}
	r, err := blob(ctx, img.manifest.Config)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	config, err := verified(r, img.manifest.Config, maxArtifactConfig)
	return &Artifact{Desc: img.doc.desc, Manifest: img.manifest, Config: config, raw: raw, Open: blob}, err
}

// BringLayer brings one layer of an artifact in: its blob, verified, and unpacked; both are on the hold. What is here is not
// fetched. A layer that is not what diffID says is Corrupt.
func (s *Store) BringLayer(ctx context.Context, h *Hold, a *Artifact, d ocispec.Descriptor, diffID digest.Digest) (*snapshot.Layer, error) {
	if err := checkDescriptor("the artifact", d); err != nil {
		return nil, err
	}
	if err := checkLayerType(d.MediaType); err != nil {
		return nil, err
	}
	if err := h.Add(ctx, d.Digest, diffID); err != nil {
		return nil, err
	}
	if n, err := s.content.Stat(d.Digest); err != nil || n != d.Size {
		if err := s.room(ctx, d.Size); err != nil {
			return nil, err
		}
		w, err := s.content.Begin(ctx, ocispec.Descriptor{Digest: d.Digest, Size: d.Size})
		if err != nil {
			return nil, err
		}
		defer w.Close()
		r, err := a.Open(ctx, d)
		if err != nil {
			return nil, err
		}
		_, err = io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{&untilDone{ctx, r}}, make([]byte, fetchBuffer))
		_ = r.Close()
		if err != nil {
			return nil, err
		}
		if _, err := w.Commit(ctx); err != nil {
			return nil, err
		}
	}
	if l, err := s.snapshots.Layer(diffID); err == nil {
		return l, nil
	}
	r, err := s.content.Open(d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	plain, _, err := archive.Decompress(r)
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	return s.snapshots.Unpack(ctx, diffID, plain)
}
