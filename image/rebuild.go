package image

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/onggi/onggi/archive"
	"github.com/onggi/onggi/content"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/snapshot"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Keep says what becomes of the blobs of layers that are unpacked.
type Keep string

// The policies.
const (
	// KeepAuto keeps the blobs that could not be made again: an image costs its size once. The others are made again from
	// the layers when they are pushed or saved, and verified before a byte of them leaves.
	KeepAuto Keep = "auto"
	// KeepAlways keeps them all, so that the image directory is a complete OCI layout for other programs.
	KeepAlways Keep = "always"
)

// Check refuses what is no policy (InvalidArgument).
func (k Keep) Check() error {
	if k == KeepAuto || k == KeepAlways {
		return nil
	}
	return &errdefs.Error{
		Kind: errdefs.InvalidArgument, Why: fmt.Sprintf("%q is no policy for blobs", string(k)), Fix: "choose auto or always",
	}
}

// minDropped is the smallest blob that is not kept: below it, what is needed to make it again is not worth it.
const minDropped = 1 << 20

// SetKeep sets a function that says what becomes of blobs; without one it is KeepAuto. It is called before the store is
// used.
func (s *Store) SetKeep(keep func() Keep) { s.keep = keep }

// droppable returns what the layer has to remember of its blob, nil when the blob is kept in any case.
func (s *Store) droppable(d ocispec.Descriptor) *snapshot.Blob {
	if d.Size < minDropped || s.keep != nil && s.keep() == KeepAlways {
		return nil
	}
	return &snapshot.Blob{Digest: d.Digest, Size: d.Size}
}

// rebuildable returns the layer's blob if d is that, and it can be made again.
func (s *Store) rebuildable(d ocispec.Descriptor, diffID digest.Digest) *snapshot.Blob {
	if diffID == "" {
		return nil
	}
	if l, err := s.snapshots.Layer(diffID); err == nil && l.Blob != nil && l.Blob.Digest == d.Digest && l.Blob.Size == d.Size {
		return l.Blob
	}
	return nil
}

// rebuild makes a blob again from its layer, and puts it into the store once its digest has been compared. NotFound: it
// was never dropped, or nobody knows how it was made.
func (s *Store) rebuild(ctx context.Context, d ocispec.Descriptor, diffID digest.Digest) error {
	b := s.rebuildable(d, diffID)
	if b == nil {
		return &errdefs.Error{
			What: "the layer " + short(d.Digest), Kind: errdefs.NotFound,
			Why: "its compressed form is not here: it was not fetched, because its files were here already",
			Fix: "fetch it: onggi rmi the image and pull it again",
		}
	}
	var err error
	for _, form := range archive.Forms(b.Form) {
		// The beginning fits the first one; another that begins alike is tried when the digest is not the blob's.
		if err = s.rebuildAs(ctx, d, diffID, form, b.Head); !errdefs.Is(err, errdefs.Corrupt) {
			return err
		}
		if l, lerr := s.snapshots.Layer(diffID); lerr != nil || l.Blob == nil {
			break
		}
		if werr := s.snapshots.WriteTo(ctx, diffID, io.Discard); werr != nil {
			return werr // not the compressor: the tree is damaged
		}
	}
	return &errdefs.Error{
		What: "the layer " + short(d.Digest), Kind: errdefs.Corrupt,
		Why: "its compressed form was not kept, and what its files give is another one", Fix: "fetch it: onggi rmi the image and pull it again", Err: err,
	}
}

// rebuildAs is rebuild with one compressor. Corrupt: what it gives is not the blob.
func (s *Store) rebuildAs(ctx context.Context, d ocispec.Descriptor, diffID digest.Digest, form archive.Form, head []byte) error {
	w, err := s.content.Begin(ctx, ocispec.Descriptor{Digest: d.Digest, Size: d.Size})
	if err != nil {
		return err
	}
	defer w.Close()
	z, err := archive.Recompress(form, head, w)
	if err != nil {
		return err
	}
	if err := s.snapshots.WriteTo(ctx, diffID, z); err != nil {
		_ = z.Close()
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	_, err = w.Commit(ctx)
	return err
}

// openBlob opens a layer's blob to be pushed or saved, and makes it again if it was dropped. forget is called at the
// end; a blob that was made for this goes with it.
func (s *Store) openBlob(ctx context.Context, d ocispec.Descriptor, diffID digest.Digest) (b *content.Blob, forget func(), err error) {
	b, err = s.content.OpenAt(d)
	if !errdefs.Is(err, errdefs.NotFound) {
		return b, func() {}, err
	}
	if err := s.rebuild(ctx, d, diffID); err != nil {
		return nil, nil, err
	}
	// Whoever opened it meanwhile keeps what is open, and who comes later makes it again.
	forget = func() { _ = s.content.Delete(d.Digest) }
	if b, err = s.content.OpenAt(d); err != nil {
		forget()
		return nil, nil, err
	}
	return b, forget, nil
}

// openArchive opens a layer's archive: out of its blob, decompressed, or out of the layer. The digest of what comes from
// the layer is verified at its end.
func (s *Store) openArchive(ctx context.Context, d ocispec.Descriptor, diffID digest.Digest) (io.ReadCloser, error) {
	r, err := s.content.Open(d)
	if err == nil {
		plain, _, err := archive.Decompress(r)
		if err != nil {
			_ = r.Close()
			return nil, err
		}
		return both{plain, r}, nil
	}
	if !errdefs.Is(err, errdefs.NotFound) || s.rebuildable(d, diffID) == nil {
		return nil, err
	}
	pr, pw := io.Pipe()
	ctx, cancel := context.WithCancel(ctx)
	var done sync.WaitGroup
	done.Go(func() { pw.CloseWithError(s.snapshots.WriteTo(ctx, diffID, pw)) })
	return &piped{PipeReader: pr, end: func() { cancel(); done.Wait() }}, nil
}

// both closes what a reader is made of.
type both struct {
	io.ReadCloser
	below io.Closer
}

func (b both) Close() error {
	_ = b.ReadCloser.Close()
	return b.below.Close()
}

// piped waits for the writing side when it is closed.
type piped struct {
	*io.PipeReader
	end func()
}

func (p *piped) Close() error {
	err := p.PipeReader.Close()
	p.end()
	return err
}

// lazyBlob is a blob that is made again when its first byte is asked for: a registry may take it over from elsewhere.
type lazyBlob struct {
	s      *Store
	ctx    context.Context
	d      ocispec.Descriptor
	diffID digest.Digest
	say    func()

	once   sync.Once
	b      *content.Blob
	forget func()
	err    error
}

func (l *lazyBlob) ReadAt(p []byte, off int64) (int, error) {
	l.once.Do(func() {
		if l.s.rebuildable(l.d, l.diffID) != nil {
			l.say()
		}
		l.b, l.forget, l.err = l.s.openBlob(l.ctx, l.d, l.diffID)
	})
	if l.err != nil {
		return 0, l.err
	}
	return l.b.ReadAt(p, off)
}

func (l *lazyBlob) Close() {
	l.once.Do(func() { l.err = context.Canceled })
	if l.b != nil {
		_ = l.b.Close()
		l.forget()
	}
}
