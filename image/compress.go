package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/klauspost/pgzip"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Compression says how a layer is compressed. Equal input gives equal bytes, on however many processors.
type Compression struct {
	Name  string // "gzip", "zstd" or "none"; "" is gzip
	Level int    // gzip 1 to 9, zstd 1 to 22; 0 is the default: 6, 3
}

// Check refuses what is unknown or out of range (InvalidArgument).
func (c Compression) Check() error {
	limit := map[string]int{"": 9, "gzip": 9, "zstd": 22, "none": 0}
	most, ok := limit[c.Name]
	switch {
	case !ok:
		return &errdefs.Error{
			Op: "use", What: "the compression " + fmt.Sprintf("%q", c.Name), Kind: errdefs.InvalidArgument,
			Why: "it is not one of those that layers may have", Fix: "choose gzip, zstd or none",
		}
	case c.Level < 0 || c.Level > most:
		return &errdefs.Error{
			Op: "use", What: fmt.Sprintf("the compression level %d", c.Level), Kind: errdefs.InvalidArgument,
			Why: fmt.Sprintf("%s has levels from 1 to %d", c.Name, most),
		}
	}
	return nil
}

// gzipBlock is what one processor compresses at a time. It is part of the result: another size gives other bytes.
const gzipBlock = 1 << 20

// writer compresses what is written to it. Precondition: Check() == nil, and Name is not "none".
func (c Compression) writer(w io.Writer) (io.WriteCloser, error) {
	if c.Name == "zstd" {
		level := c.Level
		if level == 0 {
			level = 3
		}
		return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(level)), zstd.WithEncoderConcurrency(runtime.GOMAXPROCS(0)))
	}
	level := c.Level
	if level == 0 {
		level = 6
	}
	z, err := pgzip.NewWriterLevel(w, level)
	if err != nil {
		return nil, err
	}
	return z, z.SetConcurrency(gzipBlock, max(2, runtime.GOMAXPROCS(0)))
}

// mediaType of a layer in this form.
func (c Compression) mediaType() string {
	switch c.Name {
	case "zstd":
		return ocispec.MediaTypeImageLayerZstd
	case "none":
		return ocispec.MediaTypeImageLayer
	}
	return ocispec.MediaTypeImageLayerGzip
}

// plainLayer reports whether a layer's blob is a tar as it is.
func plainLayer(mt string) bool {
	return mt == ocispec.MediaTypeImageLayer || mt == dockerLayer || mt == "application/vnd.oci.image.layer.nondistributable.v1.tar"
}

// compress returns the manifest with its layers compressed: the plain ones, or with force all that are in another form.
// It is unchanged (changed is false) when there are none. New blobs are in the store, and on the lease.
func (s *Store) compress(ctx context.Context, l *lease, m ocispec.Manifest, c Compression, force bool) (out ocispec.Manifest, changed bool, err error) {
	out = m
	out.Layers = slices.Clone(m.Layers)
	if c.Name == "none" && !force {
		return out, false, nil
	}
	var (
		wg    sync.WaitGroup
		once  sync.Once
		first error
		turns = make(chan struct{}, 2) // each uses all processors; two, because one may wait for the disk
	)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	diffIDs := s.diffIDs(m.Config.Digest)
	if len(diffIDs) != len(m.Layers) { // what has none is never made again
		diffIDs = make([]digest.Digest, len(m.Layers))
	}
	for i, d := range m.Layers {
		if !plainLayer(d.MediaType) && (!force || d.MediaType == c.mediaType() && c.Level == 0) || force && plainLayer(d.MediaType) && c.Name == "none" {
			continue
		}
		changed = true
		wg.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			got, err := s.compressLayer(ctx, l, d, diffIDs[i], c)
			if err != nil {
				once.Do(func() { first = err; cancel(err) })
				return
			}
			out.Layers[i] = got
		})
	}
	wg.Wait()
	if first != nil {
		return out, false, first
	}
	if changed { // docker's format has no name for zstd
		out.MediaType = ocispec.MediaTypeImageManifest
		out.Config.MediaType = ocispec.MediaTypeImageConfig
		for i, d := range out.Layers {
			if d.MediaType == dockerLayer+".gzip" {
				out.Layers[i].MediaType = ocispec.MediaTypeImageLayerGzip
			}
		}
	}
	return out, changed, nil
}

func (s *Store) compressLayer(ctx context.Context, l *lease, d ocispec.Descriptor, diffID digest.Digest, c Compression) (ocispec.Descriptor, error) {
	if err := s.room(ctx, d.Size); err != nil { // it will be smaller
		return d, err
	}
	plain, err := s.openArchive(ctx, d, diffID)
	if err != nil {
		return d, err
	}
	defer plain.Close()
	w, err := s.content.Begin(ctx, ocispec.Descriptor{Size: -1})
	if err != nil {
		return d, err
	}
	defer w.Close()
	var z io.WriteCloser = nopCloser{w}
	if c.Name != "none" {
		if z, err = c.writer(w); err != nil {
			return d, err
		}
	}
	if _, err := io.CopyBuffer(struct{ io.Writer }{z}, struct{ io.Reader }{plain}, make([]byte, fetchBuffer)); err != nil {
		_ = z.Close()
		return d, err
	}
	if err := z.Close(); err != nil {
		return d, err
	}
	if err := w.Verify(); err != nil {
		return d, err
	}
	if err := l.add(ctx, w.Digest()); err != nil {
		return d, err
	}
	got, err := w.Commit(ctx)
	got.MediaType = c.mediaType()
	return got, err
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// adopt makes e's image one whose manifest is m: what was compressed once is not compressed again, and the plain blobs
// go. Names that another process gave or took meanwhile stay as they are.
func (s *Store) adopt(ctx context.Context, l *lease, e entry, m ocispec.Manifest) (entry, smallBlob, error) {
	raw, err := json.Marshal(m)
	if err != nil {
		return e, smallBlob{}, err
	}
	doc := memory(m.MediaType, raw)
	if err := l.add(ctx, doc.desc.Digest, m.Config.Digest); err != nil {
		return e, doc, err
	}
	b := bringing{s: s, small: []smallBlob{doc}}
	if err := b.storeSmall(ctx); err != nil {
		return e, doc, err
	}
	next := e
	next.desc = doc.desc
	next.desc.Platform, next.desc.Annotations = e.desc.Platform, nil
	next.target = doc.desc
	err = s.change(ctx, func(idx index) (index, error) {
		for i, o := range idx {
			if o.id == e.id && o.desc.Digest == e.desc.Digest && o.target.Digest == e.desc.Digest {
				n := next
				n.name = o.name
				n.stamp()
				idx[i] = n
			}
		}
		return idx, nil
	})
	if err != nil {
		return e, doc, err
	}
	// The plain blobs and the manifest are on the lease (plan): they go with it unless somebody else needs them.
	return next, doc, nil
}

// compressMade compresses the layers of an index that was made here: its manifests change, and with them the statements
// about them and the index. Names that another process took meanwhile stay as they are.
func (s *Store) compressMade(ctx context.Context, l *lease, entries index, c Compression) (index, error) {
	old := entries[0].target
	raw, err := s.content.ReadAll(old, registry.MaxManifest)
	if err != nil {
		return nil, err
	}
	doc, err := parseDocument(old.MediaType, raw)
	if err != nil || doc.index == nil {
		return entries, err
	}
	next := *doc.index
	next.Manifests = slices.Clone(next.Manifests)
	now := map[digest.Digest]ocispec.Descriptor{} // by the digest before
	var words []string                            // what becomes what in statements
	for i, d := range next.Manifests {
		if isAttestation(d) {
			continue
		}
		m, err := s.readManifest(d)
		if err != nil {
			return nil, err
		}
		m, changed, err := s.compress(ctx, l, m, c, false)
		if err != nil {
			return nil, err
		}
		now[d.Digest] = d
		if !changed {
			continue
		}
		if next.Manifests[i], err = s.replaceDocument(ctx, l, d, m); err != nil {
			return nil, err
		}
		now[d.Digest] = next.Manifests[i]
		words = append(words, d.Digest.Encoded(), next.Manifests[i].Digest.Encoded())
	}
	if len(words) > 0 {
		renamed := strings.NewReplacer(words...)
		for i, d := range next.Manifests {
			if isAttestation(d) {
				if next.Manifests[i], err = s.reattest(ctx, l, d, renamed); err != nil {
					return nil, err
				}
			}
		}
	}
	top, err := s.replaceDocument(ctx, l, old, next)
	if err != nil {
		return nil, err
	}
	fresh := func(e entry) (entry, bool) {
		d, ok := now[e.desc.Digest]
		if !ok || e.target.Digest != old.Digest {
			return e, false
		}
		d.Platform, d.Annotations = e.desc.Platform, maps.Clone(e.desc.Annotations)
		delete(d.Annotations, annotationMade)
		e.desc, e.target = d, top
		e.stamp()
		return e, true
	}
	err = s.change(ctx, func(idx index) (index, error) {
		for i, e := range idx {
			if n, ok := fresh(e); ok {
				idx[i] = n
			}
		}
		return idx, nil
	})
	if err != nil {
		return nil, err
	}
	var out index
	for _, e := range entries {
		e, _ = fresh(e)
		out = append(out, e)
	}
	return out, nil
}

func (s *Store) readManifest(d ocispec.Descriptor) (ocispec.Manifest, error) {
	raw, err := s.content.ReadAll(d, registry.MaxManifest)
	if err != nil {
		return ocispec.Manifest{}, err
	}
	img, err := readPushed(d, raw)
	return img.manifest, err
}

// replaceDocument stores what comes in the place of a manifest or an index.
func (s *Store) replaceDocument(ctx context.Context, l *lease, was ocispec.Descriptor, doc any) (ocispec.Descriptor, error) {
	raw, err := json.Marshal(doc)
	if err != nil {
		return was, err
	}
	b := memory(was.MediaType, raw)
	if err := l.add(ctx, b.desc.Digest); err != nil {
		return was, err
	}
	b.desc.Platform, b.desc.Annotations = was.Platform, was.Annotations
	return b.desc, (&bringing{s: s, small: []smallBlob{b}}).storeSmall(ctx)
}

// reattest makes statements speak of the manifests that came in the place of those that they were made about: the layers
// have the same content, in another form.
func (s *Store) reattest(ctx context.Context, l *lease, d ocispec.Descriptor, renamed *strings.Replacer) (ocispec.Descriptor, error) {
	m, err := s.readManifest(d)
	if err != nil {
		return d, err
	}
	var list []Statement
	for _, b := range m.Layers {
		raw, err := s.content.ReadAll(b, maxStatement)
		if err != nil {
			return d, err
		}
		list = append(list, Statement{PredicateType: b.Annotations[AnnotationPredicate], Data: []byte(renamed.Replace(string(raw)))})
	}
	subject := digest.Digest(renamed.Replace(d.Annotations[annotationReferenceDigest]))
	return s.attest(ctx, &Hold{s, l}, ocispec.Descriptor{Digest: subject}, list)
}

// maxStatement bounds a statement, in bytes: an SBOM lists every package.
const maxStatement = 64 << 20
