package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/onggi/onggi/content"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/reference"
	"github.com/onggi/onggi/registry"
	"github.com/onggi/onggi/signature"
	"github.com/onggi/onggi/snapshot"
	"github.com/onggi/onggi/undo"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// maxFetches at once. A layer arrives in the page cache, so a fetch never waits for an unpack.
	maxFetches  = 4
	fetchBuffer = 256 << 10
	undoTime    = time.Minute
	maxNesting  = 4 // an index in an index in ...
)

// Pull brings an image in and names it. The result of a pull by digest has no name but the repository@digest.
func (s *Store) Pull(ctx context.Context, ref reference.Reference, o PullOptions) (*Image, error) {
	img, err := s.pull(ctx, ref, o)
	if err == nil {
		s.tell("pull", ref.Familiar(), ref.Familiar())
	}
	return img, err
}

func (s *Store) pull(ctx context.Context, ref reference.Reference, o PullOptions) (_ *Image, err error) {
	defer func() { err = pullError(ref, err) }()
	if o.Registry == nil {
		o.Registry = registry.New(registry.Options{})
		defer o.Registry.Close()
	}
	if ref.Digest != "" {
		ref.Tag = "" // as docker: the digest decides, and no tag is given
	}
	want := HostPlatform()
	if o.Platform != nil {
		want = normal(*o.Platform)
	}
	p := newProgress(o.Progress)
	if err := s.recover(ctx); err != nil {
		return nil, err
	}
	steps := undo.New("image")
	defer steps.Undo(&err)

	var target ocispec.Descriptor
	rule := o.Policy.Rule(ref)
	if rule.Require == signature.Reject {
		if err := o.allowed(ctx, ref); err != nil {
			return nil, err
		}
	}
	signed := rule.Require == signature.Signed
	more := o.AllPlatforms || o.Referrers || signed // what an image that is here already may lack
	if ref.Digest != "" && !more {
		if img := s.unchanged(ref, ocispec.Descriptor{Digest: ref.Digest}, want); img != nil {
			return img, nil
		}
	}
	resolve := func() error { target, err = o.Registry.Resolve(ctx, ref); return err }
	if err := steps.Do("resolve", resolve, nil); err != nil {
		return nil, err
	}
	img := s.unchanged(ref, target, want)
	if img != nil && !more {
		return img, nil
	}
	if signed && img != nil {
		if err := steps.Do("verify", func() error { return o.allowed(ctx, ref, target.Digest, img.Manifest.Digest) }, nil); err != nil {
			return nil, err
		}
		if !o.AllPlatforms && !o.Referrers {
			return img, nil
		}
	}

	b := &bringing{s: s, want: want, explicit: o.Platform != nil, progress: p, names: []string{ref.String()}, complete: "Pull complete"}
	if signed {
		b.check = func(ds ...digest.Digest) error { return o.allowed(ctx, ref, ds...) }
	}
	if err := b.begin(ctx, steps); err != nil {
		return nil, err
	}
	b.source = &fromRegistry{c: o.Registry, ref: ref, turns: make(chan struct{}, maxFetches)}
	if o.AllPlatforms {
		b, err = b.bringAll(ctx, steps, o.Registry, ref, target)
	} else {
		err = b.bring(ctx, steps, target)
	}
	if err != nil {
		return nil, err
	}
	if o.Referrers {
		fetch := func() error { _, err := b.bringReferrers(ctx, o.Registry, ref); return err }
		if err := steps.Do("referrers", fetch, nil); err != nil {
			return nil, err
		}
	}
	return b.finish(steps)
}

// bringAll brings in all platforms of an index, and what else it lists, and returns the bringing of the one that serves
// this host, or of the first.
func (b *bringing) bringAll(ctx context.Context, steps *undo.Stack, c *registry.Client, ref reference.Reference, target ocispec.Descriptor) (*bringing, error) {
	if err := b.lease.add(ctx, target.Digest); err != nil {
		return nil, err
	}
	raw, err := b.document(ctx, target)
	if err != nil {
		return nil, err
	}
	doc, err := parseDocument(target.MediaType, raw)
	if err != nil {
		return nil, err
	}
	if doc.index == nil {
		return b, b.bring(ctx, steps, target)
	}
	if target.MediaType == "" {
		target.MediaType = ocispec.MediaTypeImageIndex
	}
	var best *bringing
	for _, d := range doc.index.Manifests {
		if isAttestation(d) {
			if _, err := b.bringArtifact(ctx, c, ref, d); err != nil {
				return nil, err
			}
			continue
		}
		x := b.child(b.names)
		x.explicit, x.small = false, nil
		x.above = &smallBlob{target, raw}
		if d.Platform != nil {
			x.want = normal(*d.Platform)
		}
		if err := x.bring(ctx, steps, d); err != nil {
			return nil, err
		}
		if best == nil || d.Platform != nil && rank(b.want, *d.Platform) > rank(b.want, best.config.Platform) {
			best = x
		}
	}
	if best == nil {
		return nil, malformed("the index", "it lists no image")
	}
	return best, nil
}

// pullError says of every failure which pull it was.
func pullError(ref reference.Reference, err error) error {
	if err == nil {
		return nil
	}
	e := &errdefs.Error{Op: "pull", What: ref.Familiar(), Kind: errdefs.KindOf(err), Fix: fixOf(err), Err: err}
	if e.Fix == "" {
		switch e.Kind {
		case errdefs.Corrupt, errdefs.Unavailable:
			e.Fix = "try again; if it stays so, the registry or its data are damaged"
		case errdefs.InvalidArgument, errdefs.Unsupported, errdefs.Exhausted:
			e.Fix = "the image has to be built or pushed again"
		}
	}
	if in, ok := err.(*errdefs.Error); ok && in.What == e.What && in.Why != "" { // it names the image already
		e.Why, e.Err = in.Why, in.Err
	}
	return e
}

// fixOf is errdefs.FixOf, with the remedy for a full disk wherever it was noticed.
func fixOf(err error) string {
	if fix := errdefs.FixOf(err); fix != "" || !errdefs.Is(err, errdefs.NoSpace) {
		return fix
	}
	return "free some space (onggi images, onggi rmi), or choose another place with --root"
}

// unchanged returns the image if ref names target here already, for the wanted platform, with all its layers. Anything
// that is not as it should be is a reason to pull.
func (s *Store) unchanged(ref reference.Reference, target ocispec.Descriptor, want ocispec.Platform) *Image {
	img, err := s.GetPlatform(ref.String(), want)
	if err != nil || img.Target.Digest != target.Digest && img.Manifest.Digest != target.Digest {
		return nil
	}
	if !slices.Contains(img.Names, ref) {
		return nil
	}
	if img.Target.Digest != img.Manifest.Digest && img.Manifest.Digest != target.Digest {
		chosen, err := s.chooseStored(img.Target, want)
		if err != nil || chosen.Digest != img.Manifest.Digest {
			return nil
		}
	}
	for _, d := range img.DiffIDs {
		if _, err := s.snapshots.Layer(d); err != nil {
			return nil
		}
	}
	return img
}

// chooseStored chooses from an index whose blobs are here.
func (s *Store) chooseStored(target ocispec.Descriptor, want ocispec.Platform) (ocispec.Descriptor, error) {
	for range maxNesting {
		b, err := s.content.ReadAll(ocispec.Descriptor{Digest: target.Digest}, registry.MaxManifest)
		if err != nil {
			return target, err
		}
		doc, err := parseDocument("", b)
		if err != nil || doc.manifest != nil {
			return target, err
		}
		if target, err = choose(doc.index, want); err != nil {
			return target, err
		}
	}
	return target, malformed("the index", "its nesting is too deep")
}

// source is where the blobs of an image come from: a registry, or an archive that has been spooled.
type source interface {
	// document returns a manifest or index, verified.
	document(ctx context.Context, desc ocispec.Descriptor) ([]byte, error)
	// config returns a configuration, verified.
	config(ctx context.Context, desc ocispec.Descriptor) ([]byte, error)
	// layer opens a layer's stream, to be verified by the caller. done ends its turn.
	layer(ctx context.Context, desc ocispec.Descriptor) (r io.ReadCloser, done func(), err error)
}

type fromRegistry struct {
	c     *registry.Client
	ref   reference.Reference
	turns chan struct{}
}

func (f *fromRegistry) document(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	return f.c.Manifest(ctx, f.ref, desc)
}

func (f *fromRegistry) config(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	r, err := f.c.Blob(ctx, f.ref, desc)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b := make([]byte, desc.Size) // bounded: checkManifest
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	if n, err := r.Read(make([]byte, 1)); n > 0 || err != io.EOF {
		return nil, cmp.Or(err, error(malformed("the configuration "+string(desc.Digest), "it has more than its %d bytes", desc.Size)))
	}
	h := content.NewHash(desc.Digest)
	h.Write(b)
	if got := digest.NewDigest(desc.Digest.Algorithm(), h); got != desc.Digest {
		return nil, &errdefs.Error{
			What: "the configuration " + string(desc.Digest), Kind: errdefs.Corrupt,
			Why: "what arrived has the digest " + string(got), Fix: "try again; if it stays, the registry's data are damaged",
		}
	}
	return b, nil
}

func (f *fromRegistry) layer(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, func(), error) {
	select {
	case f.turns <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	r, err := f.c.Blob(ctx, f.ref, desc)
	if err != nil {
		<-f.turns
		return nil, nil, err
	}
	return r, func() { _ = r.Close(); <-f.turns }, nil
}

// bringing is one image on its way in.
type bringing struct {
	s        *Store
	source   source
	want     ocispec.Platform
	explicit bool // the user asked for this platform
	names    []string
	progress *progress
	complete string // the last status of a layer
	lease    *lease
	check    func(...digest.Digest) error // whether what was found may be brought in; nil: anything
	above    *smallBlob                   // the index that this platform's image is from, when it was chosen before

	target   ocispec.Descriptor
	desc     ocispec.Descriptor // the manifest
	manifest ocispec.Manifest
	config   ocispec.Image
	small    []smallBlob // documents to store before the index names them
	entry    entry

	annotations map[string]string // of a manifest that synthesize makes
}

type smallBlob struct {
	desc ocispec.Descriptor
	b    []byte
}

// begin takes the lease. Its reversal removes whatever this operation brought in and nobody else needs.
func (b *bringing) begin(ctx context.Context, steps *undo.Stack) error {
	return steps.Do("lease", func() (err error) {
		b.lease, err = b.s.newLease(ctx)
		return err
	}, func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		return b.lease.drop(ctx)
	})
}

// bring fetches target and names it.
func (b *bringing) bring(ctx context.Context, steps *undo.Stack, target ocispec.Descriptor) error {
	b.target, b.small = target, nil
	if err := steps.Do("manifest", func() error { return b.fetchManifest(ctx) }, nil); err != nil {
		return err
	}
	if b.check != nil {
		if err := steps.Do("verify", func() error { return b.check(b.target.Digest, b.desc.Digest) }, nil); err != nil {
			return err
		}
	}
	if err := steps.Do("config", func() error { return b.fetchConfig(ctx) }, nil); err != nil {
		return err
	}
	if err := steps.Do("layers", func() error { return b.fetchLayers(ctx) }, nil); err != nil {
		return err
	}
	if err := steps.Do("blobs", func() error { return b.storeSmall(ctx) }, nil); err != nil {
		return err
	}
	return b.nameIt(ctx, steps)
}

// fetchManifest walks from the target to the platform's manifest.
func (b *bringing) fetchManifest(ctx context.Context) error {
	d := b.target
	for range maxNesting {
		if err := b.lease.add(ctx, d.Digest); err != nil {
			return err
		}
		raw, err := b.document(ctx, d)
		if err != nil {
			return err
		}
		doc, err := parseDocument(d.MediaType, raw)
		if err != nil {
			return err
		}
		b.small = append(b.small, smallBlob{d, raw})
		if doc.manifest != nil {
			b.desc, b.manifest = d, *doc.manifest
			if b.desc.MediaType == "" {
				b.desc.MediaType = doc.manifest.MediaType
			}
			if b.desc.MediaType == "" {
				b.desc.MediaType = ocispec.MediaTypeImageManifest
			}
			if d.Digest == b.target.Digest {
				b.target = b.desc
			}
			if b.above != nil {
				b.target = b.above.desc
				b.small = append([]smallBlob{*b.above}, b.small...)
			}
			b.desc.Annotations = nil
			return nil
		}
		if b.target.MediaType == "" {
			b.target.MediaType = ocispec.MediaTypeImageIndex
		}
		if d, err = choose(doc.index, b.want); err != nil {
			return err
		}
	}
	return malformed("the index", "an index within an index is nested more than %d deep", maxNesting)
}

// document takes a manifest from the store when it is there.
func (b *bringing) document(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	if raw, err := b.s.content.ReadAll(d, registry.MaxManifest); err == nil {
		return raw, nil
	}
	return b.source.document(ctx, d)
}

func (b *bringing) fetchConfig(ctx context.Context) error {
	need := []digest.Digest{b.manifest.Config.Digest}
	for _, l := range b.manifest.Layers {
		need = append(need, l.Digest)
	}
	if err := b.lease.add(ctx, need...); err != nil {
		return err
	}
	raw, err := b.s.content.ReadAll(b.manifest.Config, maxConfig)
	if err != nil {
		if raw, err = b.source.config(ctx, b.manifest.Config); err != nil {
			return err
		}
	}
	b.small = append(b.small, smallBlob{b.manifest.Config, raw})
	if b.config, err = parseConfig(raw); err != nil {
		return err
	}
	if err := checkPair(&b.manifest, b.config); err != nil {
		return err
	}
	if b.explicit && b.config.Architecture != "" && rank(b.want, b.config.Platform) == 0 {
		return &errdefs.Error{
			What: "platform " + platformString(b.want), Kind: errdefs.NotFound,
			Why: "the image is for " + cleanText(fmt.Sprintf("%.60s", platformString(normal(b.config.Platform)))), Fix: "leave --platform out, or choose that one",
		}
	}
	return b.lease.add(ctx, b.config.RootFS.DiffIDs...)
}

// fetchLayers brings in the layers that are not here, all at once: fetched, verified, unpacked, and then made visible
// together after one sync. Another process that is bringing in one of them is waited for; then that layer is here.
func (b *bringing) fetchLayers(ctx context.Context) (err error) {
	for _, l := range b.manifest.Layers {
		b.progress.event(l.Digest, "Pulling fs layer", 0, 0)
	}
	batch, err := b.s.snapshots.Batch(ctx, b.config.RootFS.DiffIDs)
	if err != nil {
		return err
	}
	f := &fetching{bringing: b, batch: batch, turns: make(chan struct{}, max(2, runtime.NumCPU()))}
	defer func() { err = errors.Join(err, f.close()) }()
	missing := batch.Missing()
	var order []int
	for i, d := range b.config.RootFS.DiffIDs {
		if !slices.Contains(missing, d) {
			b.progress.event(b.manifest.Layers[i].Digest, "Already exists", 0, 0)
			if a, ok := b.source.(*spool); ok { // the blob is at hand: a push or a save will want it
				if raw, ok := a.blobs[b.manifest.Layers[i].Digest]; ok {
					b.small = append(b.small, smallBlob{b.manifest.Layers[i], raw})
				}
			}
		} else if slices.Index(b.config.RootFS.DiffIDs, d) == i {
			order = append(order, i)
		}
	}
	var size int64
	for _, i := range order {
		if _, err := b.s.content.Stat(b.manifest.Layers[i].Digest); err != nil {
			size += b.manifest.Layers[i].Size
		}
	}
	if len(order) > 0 {
		if err := b.s.room(ctx, size); err != nil {
			return err
		}
	}
	// The largest first: the last one to end decides when the pull ends.
	slices.SortStableFunc(order, func(i, j int) int { return cmp.Compare(b.manifest.Layers[j].Size, b.manifest.Layers[i].Size) })
	if err := f.all(ctx, order); err != nil {
		return err
	}
	steps := undo.New("image")
	return steps.Do("commit", func() error { return f.commit(ctx) }, nil)
}

// fetching is the layers of one image on their way in.
type fetching struct {
	*bringing
	batch *snapshot.Batch
	turns chan struct{} // of unpacking, which is bound by the processors

	mu      sync.Mutex
	blobs   []*content.Ingest    // verified, to be committed; guarded by mu, as the next two
	dropped []*content.Ingest    // verified, not to be kept: their layers can give them back
	stored  []ocispec.Descriptor // blobs of the store that are to go for the same reason
}

// all brings the layers with the given positions in; the first error ends the others.
func (f *fetching) all(ctx context.Context, order []int) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		wg    sync.WaitGroup
		first error
		once  sync.Once
	)
	for _, i := range order {
		wg.Go(func() {
			if err := f.layer(ctx, f.manifest.Layers[i], f.config.RootFS.DiffIDs[i]); err != nil {
				once.Do(func() { first = err; cancel(err) })
			}
		})
	}
	wg.Wait()
	return first
}

// commit makes the layers visible, then their blobs. The sync of the layers has written the blobs' data, too.
func (f *fetching) commit(ctx context.Context) error {
	var size int64
	for _, w := range f.blobs {
		if !w.Resumable() { // it has a name on the disk, and is counted there
			size += w.Size()
		}
	}
	if len(f.batch.Missing()) > 0 {
		if err := f.s.room(ctx, size); err != nil {
			return err
		}
	}
	if err := f.batch.Commit(ctx); err != nil {
		return err
	}
	for _, w := range f.blobs {
		if _, err := w.Commit(ctx); err != nil {
			return err
		}
	}
	// From here on the layers give these back. Until now they were kept, for a pull that goes on.
	for _, w := range f.dropped {
		w.Discard()
		if err := w.Close(); err != nil {
			return err
		}
	}
	for _, d := range f.stored {
		if err := f.s.content.Delete(d.Digest); err != nil {
			return err
		}
	}
	return nil
}

// close gives up what is not committed.
func (f *fetching) close() error {
	errs := []error{f.batch.Close()}
	for _, w := range append(f.blobs, f.dropped...) {
		errs = append(errs, w.Close())
	}
	return errors.Join(errs...)
}

// layer unpacks one layer: from its blob when that is here, else from the source.
func (f *fetching) layer(ctx context.Context, desc ocispec.Descriptor, diffID digest.Digest) error {
	if n, err := f.s.content.Stat(desc.Digest); err == nil && n == desc.Size {
		err := f.unpackStored(ctx, desc, diffID)
		if !errdefs.Is(err, errdefs.Corrupt) || !f.s.damaged(desc) {
			return err // also when the configuration is wrong about a good blob, which others may need
		}
		if err := f.s.content.Delete(desc.Digest); err != nil {
			return err
		}
	}
	return f.fetchAndUnpack(ctx, desc, diffID)
}

// damaged reads a whole blob to see whether it is what its name says.
func (s *Store) damaged(desc ocispec.Descriptor) bool {
	r, err := s.content.Open(desc)
	if err != nil {
		return errdefs.Is(err, errdefs.Corrupt)
	}
	defer r.Close()
	_, err = io.Copy(io.Discard, r)
	return errdefs.Is(err, errdefs.Corrupt)
}

// unpackStored unpacks a layer whose blob is here.
func (f *fetching) unpackStored(ctx context.Context, desc ocispec.Descriptor, diffID digest.Digest) error {
	steps := undo.New("image")
	err := steps.Do("unpack", func() error {
		r, err := f.s.content.Open(desc)
		if err != nil {
			return err
		}
		defer r.Close()
		layer, err := f.unpack(ctx, desc, diffID, r)
		if err == nil && layer.Blob != nil {
			f.mu.Lock()
			f.stored = append(f.stored, desc)
			f.mu.Unlock()
		}
		return err
	}, nil)
	if err == nil {
		f.progress.event(desc.Digest, f.complete, desc.Size, desc.Size)
	}
	return err
}

// unpack waits for its turn and unpacks what r gives.
func (f *fetching) unpack(ctx context.Context, desc ocispec.Descriptor, diffID digest.Digest, r io.Reader) (*snapshot.Layer, error) {
	select {
	case f.turns <- struct{}{}:
		defer func() { <-f.turns }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	counted := &counter{r: r, step: func(n int64) { f.progress.moving(desc.Digest, "Extracting", n, desc.Size) }}
	return f.batch.UnpackFrom(ctx, diffID, counted, f.s.droppable(desc))
}

// fetchAndUnpack downloads a layer into the blob store and unpacks it while it arrives. Its unpacking cannot end before
// the whole blob has arrived with the right digest: until then the reader sees no end.
func (f *fetching) fetchAndUnpack(ctx context.Context, desc ocispec.Descriptor, diffID digest.Digest) (err error) {
	steps := undo.New("image")
	defer steps.Undo(&err)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w, err := f.ingest(ctx, desc)
	if err != nil {
		return err
	}
	steps.Push("ingest", func() error {
		if errdefs.Is(err, errdefs.Corrupt) {
			w.Discard() // it would not get better by being resumed
		}
		return w.Close()
	})
	fetched := make(chan error, 1)
	err = steps.Do("fetch", func() error {
		fetch := func() error { return f.fetchRanges(ctx, w, desc) }
		if !w.Resumable() {
			r, done, err := f.source.layer(ctx, desc)
			if err != nil {
				return err
			}
			fetch = func() error { defer done(); return f.fetch(w, r, desc) }
		}
		go func() {
			err := fetch()
			if err != nil {
				_ = w.Abort(err) // the unpack ends with this reason,
				cancel(err)      // also when it still waits for its turn
			}
			fetched <- err
		}()
		return nil
	}, func() error { cancel(context.Canceled); <-fetched; return nil })
	if err != nil {
		return err
	}
	var layer *snapshot.Layer
	err = steps.Do("unpack", func() (err error) {
		layer, err = f.unpack(ctx, desc, diffID, w.Follow(ctx))
		if err != nil {
			cancel(err)
		}
		ferr := <-fetched
		fetched <- ferr
		if ferr != nil && !errors.Is(ferr, context.Canceled) {
			return ferr // the cause, of which the unpack's error is the effect
		}
		return cmp.Or(err, ferr)
	}, nil)
	if err != nil {
		return err
	}
	steps.Done()
	f.mu.Lock()
	if layer.Blob != nil {
		f.dropped = append(f.dropped, w)
	} else {
		f.blobs = append(f.blobs, w)
	}
	f.mu.Unlock()
	f.progress.event(desc.Digest, f.complete, desc.Size, desc.Size)
	return nil
}

func (f *fetching) fetch(w *content.Ingest, r io.Reader, desc ocispec.Descriptor) error {
	buf := make([]byte, fetchBuffer)
	src := &counter{r: r, step: func(n int64) { f.progress.moving(desc.Digest, "Downloading", n, desc.Size) }}
	if _, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{src}, buf); err != nil {
		return err
	}
	return f.verify(w, desc)
}

func (f *fetching) verify(w *content.Ingest, desc ocispec.Descriptor) error {
	if err := w.Verify(); err != nil {
		e := *errdefs.As(err)
		e.Fix = "try again; if it stays, the registry's data are damaged"
		return &e
	}
	f.progress.event(desc.Digest, "Download complete", desc.Size, desc.Size)
	return nil
}

// storeSmall puts configuration, manifest and indexes in place.
func (b *bringing) storeSmall(ctx context.Context) error {
	for _, x := range slices.Backward(b.small) { // what refers comes after what it refers to
		if _, err := b.s.content.Stat(x.desc.Digest); err == nil {
			if _, err := b.s.content.ReadAll(x.desc, int64(len(x.b))); err == nil {
				continue
			}
			if err := b.s.content.Delete(x.desc.Digest); err != nil { // damaged
				return err
			}
		}
		w, err := b.s.content.Begin(ctx, ocispec.Descriptor{Digest: x.desc.Digest, Size: int64(len(x.b))})
		if err != nil {
			return err
		}
		if _, err = w.Write(x.b); err == nil {
			_, err = w.Commit(ctx)
		}
		if cerr := w.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// nameIt writes the index: from here on the image exists. Without names it becomes a dangling image.
func (b *bringing) nameIt(ctx context.Context, steps *undo.Stack) error {
	e, err := b.listing()
	if err != nil {
		return err
	}
	b.entry = e
	return b.s.nameAll(ctx, steps, b.names, []entry{e})
}

// listing is the image's entry, without a name.
func (b *bringing) listing() (entry, error) {
	e := entry{desc: b.desc, id: b.manifest.Config.Digest, target: b.target}
	plat := normal(b.config.Platform)
	e.desc.Platform, e.desc.Annotations, e.desc.URLs, e.desc.Data = &plat, nil, nil, nil
	if plat.Architecture == "" {
		e.desc.Platform = nil
	}
	if b.config.Created != nil {
		e.created = *b.config.Created
	}
	for _, d := range b.config.RootFS.DiffIDs {
		l, err := b.s.snapshots.Layer(d)
		if err != nil {
			return e, err
		}
		e.size += l.Size
	}
	return e, nil
}

// nameAll gives the entries all names, in one change of the index; its reversal takes them back.
func (s *Store) nameAll(ctx context.Context, steps *undo.Stack, names []string, entries []entry) error {
	if len(names) == 0 {
		names = []string{""}
	}
	var before index
	return steps.Do("index", func() error {
		return s.change(ctx, func(idx index) (index, error) {
			before = slices.Clone(idx)
			for _, e := range entries {
				for _, n := range names {
					idx = idx.name(n, e)
				}
			}
			return idx, nil
		})
	}, func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		return s.change(ctx, func(now index) (index, error) {
			for _, e := range slices.Backward(entries) {
				for _, n := range slices.Backward(names) {
					now = now.unname(n, e, before)
				}
			}
			return now, nil
		})
	})
}

// unname takes back what giving e the name did to the index before, unless somebody changed that entry since.
func (idx index) unname(name string, e entry, before index) index {
	same := func(o entry) bool { return o.name == name && o.desc.Digest == e.desc.Digest }
	i := slices.IndexFunc(idx, same)
	if i < 0 || slices.ContainsFunc(before, same) {
		return idx
	}
	idx = slices.Delete(slices.Clone(idx), i, i+1)
	for _, o := range before {
		if name != "" && o.name == name || o.name == "" && o.desc.Digest == e.desc.Digest {
			idx = idx.name(o.name, o)
		}
	}
	return idx
}

// finish ends the lease and returns the image: the point of no return is behind.
func (b *bringing) finish(steps *undo.Stack) (*Image, error) {
	steps.Done()
	if err := b.lease.release(); err != nil {
		return nil, err
	}
	return b.result()
}

// result looks the image up.
func (b *bringing) result() (*Image, error) {
	if len(b.names) > 0 {
		return b.s.GetPlatform(b.names[0], normal(b.config.Platform))
	}
	return b.s.Get(string(b.entry.id))
}

// counter tells how far a stream is.
type counter struct {
	r    io.Reader
	n    int64
	step func(n int64)
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	c.step(c.n)
	return n, err
}

// progress passes events on, at most every progressEvery for each layer's moving ones.
type progress struct {
	f    func(Progress)
	last sync.Map // layer+status -> *atomic.Int64, nanoseconds
}

const progressEvery = 100 * time.Millisecond

func newProgress(f func(Progress)) *progress { return &progress{f: f} }

func (p *progress) event(d digest.Digest, status string, done, total int64) {
	if p.f != nil {
		p.f(Progress{ID: short(d), Status: status, Done: done, Total: total})
	}
}

func (p *progress) moving(d digest.Digest, status string, done, total int64) {
	if p.f == nil {
		return
	}
	v, _ := p.last.LoadOrStore(string(d)+status, new(atomic.Int64))
	last, now := v.(*atomic.Int64), time.Now().UnixNano()
	if was := last.Load(); now-was >= int64(progressEvery) && last.CompareAndSwap(was, now) {
		p.event(d, status, done, total)
	}
}
