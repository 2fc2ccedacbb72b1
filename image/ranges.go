package image

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/onggi/onggi/content"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// minResumable is the smallest blob that is fetched in ranges and kept when the transfer is broken off.
	minResumable = 8 << 20
	// maxRange is what is asked for at once. The ranges are taken in order, so that unpacking follows closely.
	maxRange = 16 << 20
	// A layer begins with one connection. As long as it moves less than fastEnough in a growEvery, it gets another one, up
	// to maxFetches: where one connection is not what limits (a registry near by), more of them only cost time.
	growEvery  = 250 * time.Millisecond
	fastEnough = 40 << 20
)

// rangedSource is a source that serves parts of layers.
type rangedSource interface {
	// part opens the bytes from from up to to; registry.ErrNoRanges when there are only whole layers.
	part(ctx context.Context, desc ocispec.Descriptor, from, to int64) (r io.ReadCloser, done func(), err error)
}

func (f *fromRegistry) part(ctx context.Context, desc ocispec.Descriptor, from, to int64) (io.ReadCloser, func(), error) {
	select {
	case f.turns <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, context.Cause(ctx)
	}
	r, err := f.c.BlobRange(ctx, f.ref, desc, from, to)
	if err != nil {
		<-f.turns
		return nil, nil, err
	}
	return r, func() { _ = r.Close(); <-f.turns }, nil
}

// ingest begins a layer's ingest, or goes on with one that was broken off.
func (f *fetching) ingest(ctx context.Context, desc ocispec.Descriptor) (*content.Ingest, error) {
	if _, ok := f.source.(rangedSource); ok && desc.Size >= minResumable {
		w, err := f.s.content.Resume(ctx, desc)
		if !errdefs.Is(err, errdefs.Conflict) && !errdefs.Is(err, errdefs.InvalidArgument) {
			return w, err
		}
		// Somebody else is at it, outside of a batch; then it is fetched beside.
	}
	return f.s.content.Begin(ctx, desc)
}

// fetchRanges fetches what is missing of a layer, several ranges at once. Precondition: w is resumable.
func (f *fetching) fetchRanges(ctx context.Context, w *content.Ingest, desc ocispec.Descriptor) error {
	var (
		mu   sync.Mutex
		done = w.Resumed()
	)
	step := func(n int) {
		mu.Lock()
		done += int64(n)
		now := done
		mu.Unlock()
		f.progress.moving(desc.Digest, "Downloading", now, desc.Size)
	}
	err := f.eachRange(ctx, w, desc, step)
	if errors.Is(err, registry.ErrNoRanges) {
		err = f.fetchWhole(ctx, w, desc, step)
	}
	if err != nil {
		return err
	}
	return f.verify(w, desc)
}

func (f *fetching) eachRange(ctx context.Context, w *content.Ingest, desc ocispec.Descriptor, step func(int)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		wg    sync.WaitGroup
		first error
		once  sync.Once
		next  = make(chan content.Range)
	)
	moved := atomic.Int64{}
	connect := func() {
		wg.Go(func() {
			buf := make([]byte, fetchBuffer)
			for r := range next {
				count := func(n int) { moved.Add(int64(n)); step(n) }
				if err := f.oneRange(ctx, w, desc, r, buf, count); err != nil {
					once.Do(func() { first = err; cancel(err) })
					return
				}
			}
		})
	}
	connect()
	connected := 1
	grow := time.NewTicker(growEvery)
	defer grow.Stop()
	for all := w.Missing(maxRange); len(all) > 0 && ctx.Err() == nil; {
		select {
		case next <- all[0]:
			all = all[1:]
		case <-grow.C:
			if moved.Swap(0) < fastEnough && connected < maxFetches {
				connect()
				connected++
			}
		case <-ctx.Done():
		}
	}
	close(next)
	wg.Wait()
	if first == nil {
		first = context.Cause(ctx)
	}
	return first
}

func (f *fetching) oneRange(ctx context.Context, w *content.Ingest, desc ocispec.Descriptor, x content.Range, buf []byte, step func(int)) error {
	r, done, err := f.source.(rangedSource).part(ctx, desc, x.From, x.To)
	if err != nil {
		return err
	}
	defer done()
	return copyAt(w, r, x.From, buf, step)
}

// fetchWhole reads the layer from its start; what is here of it is passed over.
func (f *fetching) fetchWhole(ctx context.Context, w *content.Ingest, desc ocispec.Descriptor, step func(int)) error {
	r, done, err := f.source.layer(ctx, desc)
	if err != nil {
		return err
	}
	defer done()
	return copyAt(w, r, 0, make([]byte, fetchBuffer), func(int) { step(0) })
}

func copyAt(w *content.Ingest, r io.Reader, off int64, buf []byte, step func(int)) error {
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if _, werr := w.WriteAt(buf[:n], off); werr != nil {
				return werr
			}
			off += int64(n)
			step(n)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
