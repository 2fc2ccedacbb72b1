package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/klauspost/pgzip"
	"github.com/onggi/onggi/archive"
	"github.com/onggi/onggi/errdefs"
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
	for i, d := range m.Layers {
		if !plainLayer(d.MediaType) && (!force || d.MediaType == c.mediaType() && c.Level == 0) || force && plainLayer(d.MediaType) && c.Name == "none" {
			continue
		}
		changed = true
		wg.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			got, err := s.compressLayer(ctx, l, d, c)
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

func (s *Store) compressLayer(ctx context.Context, l *lease, d ocispec.Descriptor, c Compression) (ocispec.Descriptor, error) {
	if err := s.room(ctx, d.Size); err != nil { // it will be smaller
		return d, err
	}
	r, err := s.content.Open(d)
	if err != nil {
		return d, err
	}
	defer r.Close()
	plain, _, err := archive.Decompress(r)
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
