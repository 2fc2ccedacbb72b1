package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/onggi/onggi/content"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Blob opens a blob's stream. The caller verifies its digest (content.Ingest does); that it has desc.Size bytes is
// checked here. A connection that breaks or stalls is opened again where it stopped; the reader fails with kind
// Unavailable when that does not help, Corrupt when the registry sends another length.
func (c *Client) Blob(ctx context.Context, ref reference.Reference, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if err := content.Check(desc.Digest); err != nil {
		return nil, err
	}
	if desc.Size < 0 {
		return nil, &errdefs.Error{
			Op: "fetch a blob of", What: ref.Familiar(), Kind: errdefs.InvalidArgument,
			Why: fmt.Sprintf("its size %d is negative", desc.Size),
		}
	}
	b := &blob{c: c, ctx: ctx, ref: ref, desc: desc, end: desc.Size}
	if err := b.open(); err != nil {
		return nil, err
	}
	return b, nil
}

// ErrNoRanges says that a registry sends whole blobs only, or other ranges than it is asked for.
var ErrNoRanges = errors.New("the registry does not serve ranges of blobs")

// BlobRange is Blob for the bytes from from up to to, without it. When the registry does not serve ranges the error is
// ErrNoRanges, and the blob has to be read from its start.
func (c *Client) BlobRange(ctx context.Context, ref reference.Reference, desc ocispec.Descriptor, from, to int64) (io.ReadCloser, error) {
	if err := content.Check(desc.Digest); err != nil {
		return nil, err
	}
	if from < 0 || to <= from || to > desc.Size {
		return nil, &errdefs.Error{
			Op: "fetch a blob of", What: ref.Familiar(), Kind: errdefs.InvalidArgument,
			Why: fmt.Sprintf("it has no bytes from %d to %d", from, to),
		}
	}
	b := &blob{c: c, ctx: ctx, ref: ref, desc: desc, off: from, since: from, end: to, ranged: true}
	if err := b.open(); err != nil {
		return nil, err
	}
	return b, nil
}

// blob is a stream that survives broken connections.
type blob struct {
	c    *Client
	ctx  context.Context
	ref  reference.Reference
	desc ocispec.Descriptor
	r    *response
	off  int64 // of the next byte
	end  int64 // of the last byte that is wanted, and one more
	// ranged: only a part is wanted, and a whole blob is no answer.
	ranged bool
	tries  int   // without progress
	since  int64 // off at the last break
	err    error
}

func (b *blob) open() error {
	r, err := b.c.do(b.ctx, request{
		op: "fetch a blob of", ref: b.ref, method: http.MethodGet, path: "blobs/" + string(b.desc.Digest),
		from: b.off, to: b.last(), byDigest: true,
	})
	if err != nil {
		return err
	}
	skip := int64(0)
	switch {
	case b.ranged && (b.off > 0 || b.end < b.desc.Size) && (r.StatusCode != http.StatusPartialContent || !b.asked(r)):
		r.close()
		return ErrNoRanges
	case r.StatusCode == http.StatusPartialContent && (b.off > 0 || b.ranged):
		if !strings.HasPrefix(r.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", b.off)) {
			r.close()
			return b.corrupt(fmt.Sprintf("the registry %s sent another range than was asked for", b.ref.Domain))
		}
	case r.StatusCode == http.StatusOK:
		skip = b.off // it does not know ranges
	default:
		r.close()
		return b.corrupt(fmt.Sprintf("the registry %s answers %d to a request for a blob", b.ref.Domain, r.StatusCode))
	}
	if n := r.ContentLength; n >= 0 && n != b.end-b.off+skip {
		r.close()
		return b.corrupt(fmt.Sprintf("the registry %s says it has %d bytes instead of %d", b.ref.Domain, n+b.off-skip, b.end))
	}
	if skip > 0 {
		if _, err := io.CopyN(io.Discard, r.Body, skip); err != nil {
			r.close()
			return b.c.networkError("fetch a blob of", b.ref, r.at, err)
		}
	}
	b.r = r
	return nil
}

// last is the last byte to ask for; 0 means to the end.
func (b *blob) last() int64 {
	if b.ranged {
		return b.end - 1
	}
	return 0
}

// asked reports whether an answer is the range that was asked for.
func (b *blob) asked(r *response) bool {
	return strings.HasPrefix(r.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-%d/", b.off, b.end-1))
}

func (b *blob) corrupt(why string) error {
	return &errdefs.Error{Op: "fetch the blob", What: string(b.desc.Digest) + " of " + b.ref.Familiar(), Kind: errdefs.Corrupt, Why: why}
}

func (b *blob) Read(p []byte) (int, error) {
	if b.err != nil || len(p) == 0 {
		return 0, b.err
	}
	for {
		n, err := b.read(p)
		if n > 0 || err != nil {
			b.err = err
			return n, err
		}
	}
}

// read reads once; (0, nil) means that the stream was opened again.
func (b *blob) read(p []byte) (int, error) {
	left := b.end - b.off
	if left == 0 && b.r.ContentLength >= 0 {
		return 0, io.EOF
	}
	n, err := b.r.Body.Read(p[:min(int64(len(p)), left+1)]) // one more than there may be, to notice an endless body
	if int64(n) > left {
		return int(left), b.corrupt(fmt.Sprintf("the registry %s sends more than its %d bytes", b.ref.Domain, b.end))
	}
	b.off += int64(n)
	switch {
	case n > 0 || err == nil:
		return n, nil // an error comes again with the next Read
	case err == io.EOF && left == 0:
		return 0, io.EOF
	case err == io.EOF:
		err = io.ErrUnexpectedEOF
	}
	return 0, b.again(err)
}

// again opens the stream where it broke.
func (b *blob) again(cause error) error {
	b.r.close()
	if err := b.ctx.Err(); err != nil {
		return &errdefs.Error{Op: "fetch a blob of", What: b.ref.Familiar(), Kind: errdefs.KindOf(err), Err: err}
	}
	if b.off > b.since {
		b.tries, b.since = 0, b.off
	}
	if b.tries >= b.c.o.Retries {
		err := b.c.networkError("fetch a blob of", b.ref, b.r.at, cause)
		if errors.Is(cause, io.ErrUnexpectedEOF) {
			e := *errdefs.As(err)
			e.Why = fmt.Sprintf("the registry %s breaks off after %d of %d bytes", b.ref.Domain, b.off, b.end)
			err = &e
		}
		return err
	}
	if err := sleep(b.ctx, b.c.backoff(b.tries)); err != nil {
		return &errdefs.Error{Op: "fetch a blob of", What: b.ref.Familiar(), Kind: errdefs.KindOf(err), Err: err}
	}
	b.tries++
	return b.open()
}

func (b *blob) Close() error {
	if b.err == nil {
		b.err = errors.New("read after Close")
	}
	b.r.close()
	return nil
}

// watched is a body that is cut off when it stalls. Only the time spent waiting in Read counts: a reader that takes its
// time is not the registry's fault.
type watched struct {
	body   io.ReadCloser
	limit  time.Duration
	timer  *time.Timer
	waited time.Duration // since
	moved  int64         // so many bytes arrived
	enough int64         // bytes within limit; a peer that sends a byte now and then is stalled, too
	fired  atomic.Bool
}

func newWatched(body io.ReadCloser, limit time.Duration, enough int64, cancel context.CancelCauseFunc) *watched {
	w := &watched{body: body, limit: limit, enough: max(enough, 1)}
	w.timer = time.AfterFunc(limit, func() { w.fired.Store(true); cancel(errStalled) })
	w.timer.Stop()
	return w
}

func (w *watched) Read(p []byte) (int, error) {
	start := time.Now()
	w.timer.Reset(max(w.limit-w.waited, 0))
	n, err := w.body.Read(p)
	w.timer.Stop()
	w.waited += time.Since(start)
	if w.moved += int64(n); w.moved >= w.enough {
		w.waited, w.moved = 0, 0
	}
	if err != nil && err != io.EOF && w.fired.Load() {
		err = errStalled
	}
	return n, err
}

func (w *watched) Close() error {
	w.timer.Stop()
	return w.body.Close()
}
