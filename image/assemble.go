package image

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/reference"
	"github.com/onggi/onggi/registry"
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

// Assembly is an image that was made here, or one for each of several platforms.
type Assembly struct {
	Parts []Part
	// Index makes an index of a single part, too. Several parts, and statements, are one in any case.
	Index bool
	// Annotations of the index.
	Annotations map[string]string
	// Compression of the layers that are here as plain tars; nil: they stay so until the image is pushed. Force compresses
	// those again that are in another form.
	Compression *Compression
	Force       bool
}

// Part is the image for one platform.
type Part struct {
	// Config is the configuration's text; it lists the diffIDs of Layers and the platform.
	Config []byte
	// Layers are the layers' blobs, bottom first, in the content store.
	Layers []ocispec.Descriptor
	// Annotations of the manifest; OnIndex those of its entry in the index.
	Annotations, OnIndex map[string]string
	// Attest makes statements about the manifest; nil: none.
	Attest func(manifest ocispec.Descriptor) ([]Statement, error)
}

// Statement is an in-toto statement about an image: a provenance, an SBOM.
type Statement struct {
	PredicateType string
	Data          []byte // the statement's JSON; its subject is the manifest
}

// Made is an image that is whole in the store and held, but has no name yet: only its maker finds it.
type Made struct {
	Desc  ocispec.Descriptor   // of the manifest, or of the index
	Parts []ocispec.Descriptor // of the manifests, in the order of the parts
	parts []*bringing
	index *smallBlob // nil for a single manifest
}

// Make stores configurations, manifests, statements and the index. The parts' layers are unpacked and held; what is made is on
// the hold.
func (s *Store) Make(ctx context.Context, h *Hold, a Assembly) (_ *Made, err error) {
	defer func() {
		if err != nil {
			err = &errdefs.Error{Op: "store", What: "the image", Kind: errdefs.KindOf(err), Fix: fixOf(err), Err: err}
		}
	}()
	if len(a.Parts) == 0 {
		return nil, &errdefs.Error{Kind: errdefs.InvalidArgument, Why: "it has no parts"}
	}
	if a.Compression != nil {
		if err := a.Compression.Check(); err != nil {
			return nil, err
		}
	}
	m := &Made{}
	idx := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Annotations: a.Annotations}
	idx.SchemaVersion = 2
	var attests []ocispec.Descriptor
	for _, p := range a.Parts {
		b, err := s.makePart(ctx, h, p, a)
		if err != nil {
			return nil, err
		}
		m.parts, m.Parts = append(m.parts, b), append(m.Parts, b.desc)
		plat := normal(b.config.Platform)
		d := b.desc
		d.Platform, d.Annotations = &plat, p.OnIndex
		idx.Manifests = append(idx.Manifests, d)
		if p.Attest == nil {
			continue
		}
		list, err := p.Attest(b.desc)
		if err != nil {
			return nil, err
		}
		if len(list) == 0 {
			continue
		}
		d, err = s.attest(ctx, h, b.desc, list)
		if err != nil {
			return nil, err
		}
		attests = append(attests, d)
	}
	if len(m.parts) == 1 && !a.Index && len(attests) == 0 {
		m.Desc = m.Parts[0]
		return m, nil
	}
	idx.Manifests = append(idx.Manifests, attests...) // as BuildKit: images first
	if m.index, err = s.makeIndex(ctx, h, idx); err != nil {
		return nil, err
	}
	m.Desc = m.index.desc
	for _, b := range m.parts {
		b.target = m.Desc
	}
	return m, nil
}

func (s *Store) makeIndex(ctx context.Context, h *Hold, idx ocispec.Index) (*smallBlob, error) {
	raw, err := json.Marshal(idx)
	if err != nil {
		return nil, err
	}
	doc := memory(ocispec.MediaTypeImageIndex, raw)
	if err := h.Add(ctx, doc.desc.Digest); err != nil {
		return nil, err
	}
	return &doc, (&bringing{s: s, small: []smallBlob{doc}}).storeSmall(ctx)
}

func (s *Store) makePart(ctx context.Context, h *Hold, p Part, a Assembly) (*bringing, error) {
	config, err := parseConfig(p.Config)
	if err != nil {
		return nil, err
	}
	if len(config.RootFS.DiffIDs) != len(p.Layers) {
		return nil, fmt.Errorf("its configuration lists %d layers, and %d were given", len(config.RootFS.DiffIDs), len(p.Layers))
	}
	for _, d := range config.RootFS.DiffIDs {
		if _, err := s.snapshots.Layer(d); err != nil {
			return nil, err
		}
	}
	b := &bringing{s: s, progress: newProgress(nil), config: config, lease: h.l}
	need := slices.Clone(config.RootFS.DiffIDs)
	m := ocispec.Manifest{Layers: slices.Clone(p.Layers)}
	for i := range m.Layers {
		l := &m.Layers[i]
		need = append(need, l.Digest)
		switch l.MediaType { // a manifest is OCI's or docker's, as a whole
		case dockerLayer:
			l.MediaType = ocispec.MediaTypeImageLayer
		case dockerLayer + ".gzip":
			l.MediaType = ocispec.MediaTypeImageLayerGzip
		}
		l.URLs, l.Data, l.Platform, l.Annotations = nil, nil, nil, nil
	}
	if err := h.Add(ctx, need...); err != nil {
		return nil, err
	}
	if a.Compression != nil {
		if m, _, err = s.compress(ctx, h.l, m, *a.Compression, a.Force); err != nil {
			return nil, err
		}
	}
	b.annotations = p.Annotations
	if err := b.synthesize(ctx, config, p.Config, m.Layers); err != nil {
		return nil, err
	}
	return b, b.storeSmall(ctx)
}

// attest stores statements about a manifest as a manifest of their own, and returns its entry of the index
// (github.com/moby/buildkit docs/attestations/attestation-storage.md).
func (s *Store) attest(ctx context.Context, h *Hold, subject ocispec.Descriptor, list []Statement) (ocispec.Descriptor, error) {
	config := ocispec.Image{Platform: ocispec.Platform{OS: "unknown", Architecture: "unknown"}, RootFS: ocispec.RootFS{Type: "layers"}}
	var small []smallBlob
	var layers []ocispec.Descriptor
	for _, st := range list {
		b := memory(MediaTypeInToto, st.Data)
		small = append(small, b)
		b.desc.Annotations = map[string]string{AnnotationPredicate: st.PredicateType}
		layers = append(layers, b.desc)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, b.desc.Digest)
	}
	raw, err := json.Marshal(config)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	c := memory(ocispec.MediaTypeImageConfig, raw)
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: c.desc, Layers: layers}
	m.SchemaVersion = 2
	if raw, err = json.Marshal(m); err != nil {
		return ocispec.Descriptor{}, err
	}
	doc := memory(ocispec.MediaTypeImageManifest, raw)
	small = append([]smallBlob{doc, c}, small...)
	for _, b := range small {
		if err := h.Add(ctx, b.desc.Digest); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	if err := (&bringing{s: s, small: small}).storeSmall(ctx); err != nil {
		return ocispec.Descriptor{}, err
	}
	d := doc.desc
	d.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	d.Annotations = map[string]string{annotationReferenceDigest: string(subject.Digest), annotationReferenceType: "attestation-manifest"}
	return d, nil
}

// The names of attestations in an index.
const (
	MediaTypeInToto           = "application/vnd.in-toto+json"
	AnnotationPredicate       = "in-toto.io/predicate-type"
	annotationReferenceType   = "vnd.docker.reference.type"
	annotationReferenceDigest = "vnd.docker.reference.digest"
	// annotationMade marks the entries of an index that was made here and never left: a push may still compress its layers.
	annotationMade = "org.onggi.image.made"
)

// Keep names what was made: from here on the images exist. Without names they become dangling ones. All platforms get
// their names at once.
func (s *Store) Keep(ctx context.Context, m *Made, names []reference.Reference) (_ []*Image, err error) {
	steps := undo.New("image")
	defer steps.Undo(&err)
	var list []string
	for _, n := range names {
		if n.Digest != "" {
			return nil, &errdefs.Error{Op: "name", What: n.Familiar(), Kind: errdefs.InvalidArgument, Why: "an image cannot be given a digest", Fix: "use a tag"}
		}
		list = append(list, n.String())
	}
	entries := make([]entry, len(m.parts))
	for i, b := range m.parts {
		if entries[i], err = b.listing(); err != nil {
			return nil, err
		}
		if m.index != nil {
			entries[i].desc.Annotations = map[string]string{annotationMade: "yes"}
		}
	}
	if err := s.nameAll(ctx, steps, list, entries); err != nil {
		return nil, err
	}
	steps.Done()
	var out []*Image
	for i, b := range m.parts {
		b.names, b.entry = list, entries[i]
		img, err := b.result()
		if err != nil {
			return nil, err
		}
		out = append(out, img)
	}
	return out, nil
}

// SaveMade writes what was made as an archive, with names, as Save does.
func (s *Store) SaveMade(ctx context.Context, w io.Writer, m *Made, names []reference.Reference, o SaveOptions) (err error) {
	sink := &tarSink{w: tar.NewWriter(w)}
	if err := s.saveMade(ctx, sink, m, names, o); err != nil {
		return saveError([]string{"the image"}, err)
	}
	return sink.w.Close()
}

// SaveMadeLayout writes what was made into an OCI image layout, as SaveLayout does.
func (s *Store) SaveMadeLayout(ctx context.Context, dir string, m *Made, names []reference.Reference) (err error) {
	defer func() { err = saveError([]string{"the image"}, err) }()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	r, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer r.Close()
	return s.saveMade(ctx, &dirSink{r: r}, m, names, SaveOptions{Format: OCIArchive})
}

func (s *Store) saveMade(ctx context.Context, to sink, m *Made, names []reference.Reference, o SaveOptions) error {
	x := &saved{}
	for _, n := range names {
		x.names = append(x.names, n.String())
	}
	docs := m.Parts
	if m.index != nil {
		x.top = *m.index
		var idx ocispec.Index
		if err := json.Unmarshal(m.index.b, &idx); err != nil {
			return err
		}
		docs = idx.Manifests
	}
	if o.Format != OCIArchive && len(m.parts) > 1 {
		return &errdefs.Error{Kind: errdefs.Unsupported, Why: "docker's archive holds one platform only", Fix: "write type=oci, or build one platform"}
	}
	for _, d := range docs {
		raw, err := s.content.ReadAll(d, registry.MaxManifest)
		if err != nil {
			return err
		}
		img, err := readPushed(d, raw)
		if err != nil {
			return err
		}
		x.platform = append(x.platform, img)
	}
	if m.index == nil {
		x.top = x.platform[0].doc
		e, err := m.parts[0].listing()
		if err != nil {
			return err
		}
		x.entries = index{e}
	}
	if o.Format == OCIArchive {
		return s.saveOCI(ctx, to, []*saved{x})
	}
	return s.saveDocker(ctx, to, []*saved{x})
}
