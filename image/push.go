package image

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/reference"
	"github.com/onggi/onggi/registry"
	"github.com/onggi/onggi/undo"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxUploads at once. Most of a small push is waiting for answers.
const maxUploads = 5

// PushOptions of Push.
type PushOptions struct {
	Registry *registry.Client
	// Platform pushes one platform's image, and not the index it is from. nil: all that the name has.
	Platform *ocispec.Platform
	// Compression of layers that are here as plain tars. Other layers are pushed as they are, byte for byte, unless
	// Recompress is set.
	Compression Compression
	Recompress  bool
	// Referrers pushes what is here and refers to the image (signatures, SBOMs) after it.
	Referrers bool
	Progress  func(Progress) // called from several goroutines; may be nil
}

// PushResult is what is in the registry after a push.
type PushResult struct {
	Desc      ocispec.Descriptor // what the tag names there
	Referrers int                // how many referrers were pushed, or were there
	// Partial is set when the name's index lists platforms that are neither here nor in the registry: then only the
	// image, or an index of the images, that are here was pushed.
	Partial bool
}

// Push brings what ref names into ref's registry. What the registry has is not sent; what another of its repositories
// has is taken over from there as far as the registry agrees; the rest is sent in parallel. Pushing twice gives the same
// bytes. Layers that are here as plain tars are compressed once: the image's manifest is then the one that was pushed.
// Errors: NotFound (no such name, or a part of the image is neither here nor there), those of registry.Client.
func (s *Store) Push(ctx context.Context, ref reference.Reference, o PushOptions) (PushResult, error) {
	r, err := s.push(ctx, ref, o)
	if err == nil {
		s.tell("push", ref.Familiar(), ref.Familiar())
	}
	return r, err
}

func (s *Store) push(ctx context.Context, ref reference.Reference, o PushOptions) (_ PushResult, err error) {
	defer func() {
		if err != nil {
			e := &errdefs.Error{Op: "push", What: ref.Familiar(), Kind: errdefs.KindOf(err), Fix: fixOf(err), Err: err}
			if in, ok := err.(*errdefs.Error); ok && in.What == e.What && in.Why != "" {
				e.Why, e.Err = in.Why, in.Err
			}
			err = e
		}
	}()
	if ref.Digest != "" || ref.Tag == "" {
		return PushResult{}, &errdefs.Error{Kind: errdefs.InvalidArgument, Why: "a push needs a tag, and a digest is not one", Fix: "give it a tag first: onggi tag"}
	}
	if err := o.Compression.Check(); err != nil {
		return PushResult{}, err
	}
	if o.Registry == nil {
		o.Registry = registry.New(registry.Options{})
		defer o.Registry.Close()
	}
	if err := s.recover(ctx); err != nil {
		return PushResult{}, err
	}
	steps := undo.New("push")
	defer steps.Undo(&err)
	p := &pushing{s: s, o: o, ref: ref, progress: newProgress(o.Progress), turns: make(chan struct{}, maxUploads)}
	drop := func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		return p.lease.drop(ctx)
	}
	if err := steps.Do("lease", func() error { p.lease, err = s.newLease(ctx); return err }, drop); err != nil {
		return PushResult{}, err
	}
	if err := steps.Do("plan", func() error { return p.plan(ctx) }, nil); err != nil {
		return PushResult{}, err
	}
	if err := steps.Do("send", func() error { return p.send(ctx) }, nil); err != nil {
		return PushResult{}, err
	}
	if o.Referrers {
		if err := steps.Do("referrers", func() error { return p.referrers(ctx) }, nil); err != nil {
			return PushResult{}, err
		}
	}
	steps.Done()
	return p.result, drop()
}

// pushing is one push under way.
type pushing struct {
	s        *Store
	o        PushOptions
	ref      reference.Reference
	lease    *lease
	progress *progress
	turns    chan struct{}

	images  []pushed   // one for each platform
	index   *smallBlob // above them, or nil
	mu      sync.Mutex
	sources map[digest.Digest][]string // which other repositories have a blob; guarded by mu
	result  PushResult
}

// pushed is a manifest with its blobs.
type pushed struct {
	doc      smallBlob
	manifest ocispec.Manifest
	diffIDs  []digest.Digest
}

// plan finds out what to push, and compresses what has to be.
func (p *pushing) plan(ctx context.Context) error {
	idx, err := p.s.readIndex()
	if err != nil {
		return err
	}
	entries := idx.platforms(p.ref)
	if len(entries) == 0 {
		return &errdefs.Error{
			Kind: errdefs.NotFound, Why: "an image does not exist locally with the tag: " + p.ref.FamiliarRepository(),
			Fix: "see what is here: onggi images, and give it this name: onggi tag IMAGE " + p.ref.Familiar(),
		}
	}
	for _, e := range entries {
		refs, err := p.s.references(e)
		if err != nil {
			return err
		}
		if err := p.lease.add(ctx, refs...); err != nil {
			return err
		}
	}
	single := len(entries) == 1
	if p.o.Platform != nil {
		want := normal(*p.o.Platform)
		e, _ := entries.best(want, func(e entry) bool { return e.desc.Platform != nil && rank(want, *e.desc.Platform) > 0 })
		if e.id == "" {
			return &errdefs.Error{Kind: errdefs.NotFound, Why: "it is not here for " + platformString(want), Fix: "pull it: onggi pull --platform " + platformString(want) + " " + p.ref.Familiar()}
		}
		return p.add(ctx, e, true)
	}
	if entries[0].desc.Annotations[annotationMade] != "" && !p.o.Recompress {
		if entries, err = p.s.compressMade(ctx, p.lease, entries, p.o.Compression); err != nil {
			return err
		}
	}
	target := entries[0].target
	if target.Digest != entries[0].desc.Digest && !p.o.Recompress {
		ok, err := p.whole(ctx, target, entries)
		if err != nil || ok {
			return err
		}
		p.result.Partial = true
	}
	for _, e := range entries {
		if err := p.add(ctx, e, single); err != nil {
			return err
		}
	}
	if !single {
		return p.indexOf(entries)
	}
	return nil
}

// whole pushes an index byte for byte if all it lists is here, or in the repository already.
func (p *pushing) whole(ctx context.Context, target ocispec.Descriptor, entries index) (bool, error) {
	raw, err := p.s.content.ReadAll(target, registry.MaxManifest)
	if err != nil {
		return false, err
	}
	doc, err := parseDocument(target.MediaType, raw)
	if err != nil || doc.index == nil {
		return false, err
	}
	there, err := p.o.Registry.HasManifest(ctx, p.ref, target.Digest, false)
	if err != nil {
		return false, err
	}
	p.index = &smallBlob{target, raw}
	if there {
		return true, nil
	}
	for _, d := range doc.index.Manifests {
		m, err := p.s.content.ReadAll(d, registry.MaxManifest)
		if err != nil {
			if has, herr := p.o.Registry.HasManifest(ctx, p.ref, d.Digest, false); herr != nil || has {
				if herr != nil {
					return false, herr
				}
				continue
			}
			p.index, p.images = nil, nil
			return false, nil
		}
		img, err := readPushed(d, m)
		if err != nil {
			return false, err
		}
		if i := slices.IndexFunc(entries, func(e entry) bool { return e.desc.Digest == d.Digest }); i >= 0 {
			img.diffIDs = p.s.diffIDs(entries[i].id)
		}
		p.images = append(p.images, img)
	}
	return true, nil
}

// diffIDs reads a configuration's layers, for what is shown only.
func (s *Store) diffIDs(id digest.Digest) []digest.Digest {
	b, err := s.content.ReadAll(ocispec.Descriptor{Digest: id}, maxConfig)
	if err != nil {
		return nil
	}
	c, err := parseConfig(b)
	if err != nil {
		return nil
	}
	return c.RootFS.DiffIDs
}

// readPushed reads any manifest: an image's, a signature's, an SBOM's.
func readPushed(d ocispec.Descriptor, raw []byte) (pushed, error) {
	var m ocispec.Manifest
	if err := unambiguous(raw, nil); err != nil {
		return pushed{}, malformed("the manifest "+string(d.Digest), "%v", err)
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return pushed{}, malformed("the manifest "+string(d.Digest), "%v", err)
	}
	for _, b := range append([]ocispec.Descriptor{m.Config}, m.Layers...) {
		if err := checkDescriptor("the manifest "+string(d.Digest), b); err != nil {
			return pushed{}, err
		}
	}
	if d.MediaType == "" {
		d.MediaType = m.MediaType
	}
	return pushed{doc: smallBlob{ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: int64(len(raw))}, raw}, manifest: m}, nil
}

// add plans one platform's image. alone: no index above it is pushed, so that its manifest may change.
func (p *pushing) add(ctx context.Context, e entry, alone bool) error {
	raw, err := p.s.content.ReadAll(ocispec.Descriptor{Digest: e.desc.Digest}, registry.MaxManifest)
	if err != nil {
		return err
	}
	img, err := readPushed(e.desc, raw)
	if err != nil {
		return err
	}
	img.diffIDs = p.s.diffIDs(e.id)
	if alone || p.o.Recompress {
		m, changed, err := p.s.compress(ctx, p.lease, img.manifest, p.o.Compression, p.o.Recompress)
		if err != nil {
			return err
		}
		if changed {
			if !p.o.Recompress && e.target.Digest == e.desc.Digest {
				_, doc, err := p.s.adopt(ctx, p.lease, e, m)
				if err != nil {
					return err
				}
				img.doc = doc
			} else {
				b, err := json.Marshal(m)
				if err != nil {
					return err
				}
				img.doc = memory(m.MediaType, b)
			}
			img.manifest = m
		}
	}
	p.images = append(p.images, img)
	return nil
}

// indexOf makes an index of the images that are here, in the order and with the platforms of their entries.
func (p *pushing) indexOf(entries index) error {
	doc := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex}
	doc.SchemaVersion = 2
	for i, img := range p.images {
		d := img.doc.desc
		d.Platform = entries[i].desc.Platform
		doc.Manifests = append(doc.Manifests, d)
	}
	slices.SortFunc(doc.Manifests, func(a, b ocispec.Descriptor) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	raw, err := json.Marshal(doc)
	if err != nil {
		return err
	}
	b := memory(ocispec.MediaTypeImageIndex, raw)
	p.index = &b
	return nil
}

// send brings everything into the registry, what is referred to first; the tag comes last.
func (p *pushing) send(ctx context.Context) error {
	top := p.index
	if top == nil {
		top = &p.images[0].doc
	}
	p.result.Desc = top.desc
	for i := range p.images {
		img := &p.images[i]
		if has, err := p.o.Registry.HasManifest(ctx, p.ref, img.doc.desc.Digest, false); err != nil {
			return err
		} else if has { // and so everything that it refers to
			for j, l := range img.manifest.Layers {
				p.progress.event(img.layerID(j), "Layer already exists", l.Size, l.Size)
			}
			continue
		}
		if err := p.sendImage(ctx, img); err != nil {
			return err
		}
	}
	tagged, err := p.o.Registry.HasManifest(ctx, p.ref, top.desc.Digest, true)
	if err != nil || tagged {
		return err
	}
	return p.o.Registry.PushManifest(ctx, p.ref, top.desc, top.b, p.ref.Tag)
}

// layerID is how a layer is called in messages: docker calls it by its diffID here.
func (img *pushed) layerID(i int) digest.Digest {
	if len(img.diffIDs) == len(img.manifest.Layers) {
		return img.diffIDs[i]
	}
	return img.manifest.Layers[i].Digest
}

// sendImage brings blobs, then the manifest by its digest when an index will refer to it.
func (p *pushing) sendImage(ctx context.Context, img *pushed) error {
	for i := range img.manifest.Layers {
		p.progress.event(img.layerID(i), "Preparing", 0, 0)
	}
	if err := p.blobs(ctx, img); err != nil {
		return err
	}
	if p.index == nil {
		return nil
	}
	return p.o.Registry.PushManifest(ctx, p.ref, img.doc.desc, img.doc.b, "")
}

// blobs brings the manifest's blobs into the repository, at once.
func (p *pushing) blobs(ctx context.Context, img *pushed) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		wg    sync.WaitGroup
		once  sync.Once
		first error
	)
	start := func(f func() error) {
		wg.Go(func() {
			select {
			case p.turns <- struct{}{}:
				defer func() { <-p.turns }()
			case <-ctx.Done():
				return
			}
			if err := f(); err != nil {
				once.Do(func() { first = err; cancel(err) })
			}
		})
	}
	seen := map[digest.Digest]bool{}
	for i, d := range img.manifest.Layers {
		if !seen[d.Digest] {
			seen[d.Digest] = true
			start(func() error { return p.blob(ctx, d, img.layerID(i)) })
		}
	}
	if c := img.manifest.Config; !seen[c.Digest] {
		start(func() error { return p.blob(ctx, c, "") })
	}
	wg.Wait()
	return first
}

// blob brings one blob into the repository. id is its layer's name in messages, "" for others.
func (p *pushing) blob(ctx context.Context, d ocispec.Descriptor, id digest.Digest) error {
	say := func(status string, done int64) {
		if id != "" {
			p.progress.event(id, status, done, d.Size)
		}
	}
	has, err := p.o.Registry.HasBlob(ctx, p.ref, d)
	if err != nil {
		return err
	}
	if has {
		say("Layer already exists", d.Size)
		return nil
	}
	from, err := p.mountable(d.Digest)
	if err != nil {
		return err
	}
	b, err := p.s.content.OpenAt(d)
	if err != nil && !errdefs.Is(err, errdefs.NotFound) {
		return err
	}
	o := registry.PushOptions{Missing: true, From: from, Progress: func(n int64) {
		if id != "" {
			p.progress.moving(id, "Pushing", n, d.Size)
		}
	}}
	var body readerAt
	if err == nil {
		body = b
		defer b.Close()
	} else { // it may be taken over, or be made again
		lazy := &lazyBlob{s: p.s, ctx: ctx, d: d, diffID: id, say: func() { say("Rebuilding", 0) }}
		if p.s.rebuildable(d, id) == nil && len(from) == 0 {
			return p.s.rebuild(ctx, d, id) // says why it is not here
		}
		body = lazy
		defer lazy.Close()
	}
	how, where, err := p.o.Registry.PushBlob(ctx, p.ref, d, body, o)
	if err != nil {
		if b != nil && ctx.Err() == nil && p.s.damaged(d) {
			return &errdefs.Error{What: "blob " + string(d.Digest), Kind: errdefs.Corrupt, Why: "its bytes here are damaged", Fix: "remove the image and pull or build it again", Err: err}
		}
		return err
	}
	switch how {
	case registry.Mounted:
		say("Mounted from "+where, d.Size)
	case registry.Existed:
		say("Layer already exists", d.Size)
	default:
		say("Pushed", d.Size)
	}
	return nil
}

type readerAt interface {
	ReadAt([]byte, int64) (int, error)
}

// mountable lists the other repositories of the registry that have a blob, as far as names here tell.
func (p *pushing) mountable(d digest.Digest) ([]string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sources == nil {
		p.sources = map[digest.Digest][]string{}
		idx, err := p.s.readIndex()
		if err != nil {
			return nil, err
		}
		for n, e := range idx {
			ref, err := reference.Parse(e.name)
			if e.id == "" || e.name == "" || err != nil || ref.Domain != p.ref.Domain || ref.Path == p.ref.Path || n > maxImages {
				continue
			}
			raw, err := p.s.content.ReadAll(ocispec.Descriptor{Digest: e.desc.Digest}, registry.MaxManifest)
			if err != nil {
				continue // it is only a hint
			}
			img, err := readPushed(e.desc, raw)
			if err != nil {
				continue
			}
			for _, l := range img.manifest.Layers {
				if !slices.Contains(p.sources[l.Digest], ref.Path) {
					p.sources[l.Digest] = append(p.sources[l.Digest], ref.Path)
				}
			}
		}
	}
	return p.sources[d], nil
}

// referrers pushes what is here and refers to what was pushed.
func (p *pushing) referrers(ctx context.Context) error {
	docs := []ocispec.Descriptor{p.result.Desc}
	for _, img := range p.images {
		docs = append(docs, img.doc.desc)
	}
	seen := map[digest.Digest]bool{}
	for i := 0; i < len(docs) && i < maxPlatforms; i++ {
		list, err := p.s.Referrers(docs[i].Digest)
		if err != nil {
			return err
		}
		for _, d := range list {
			if seen[d.Digest] {
				continue
			}
			seen[d.Digest] = true
			if err := p.referrer(ctx, d); err != nil {
				return fmt.Errorf("the referrer %s: %w", d.Digest, err)
			}
			p.result.Referrers++
			docs = append(docs, d)
		}
	}
	return nil
}

func (p *pushing) referrer(ctx context.Context, d ocispec.Descriptor) error {
	raw, err := p.s.content.ReadAll(ocispec.Descriptor{Digest: d.Digest}, registry.MaxManifest)
	if err != nil {
		return err
	}
	img, err := readPushed(d, raw)
	if err != nil {
		return err
	}
	tag := d.Annotations[annotationTag]
	if has, err := p.o.Registry.HasManifest(ctx, p.ref, d.Digest, false); err != nil || has && tag == "" {
		return err
	}
	if err := p.blobs(ctx, &img); err != nil {
		return err
	}
	return p.o.Registry.PushManifest(ctx, p.ref, img.doc.desc, img.doc.b, tag)
}

// Tags lists the tags that a repository has here, for `push --all-tags`.
func (s *Store) Tags(ref reference.Reference) ([]reference.Reference, error) {
	idx, err := s.readIndex()
	if err != nil {
		return nil, err
	}
	var out []reference.Reference
	for _, e := range idx {
		r, err := reference.Parse(e.name)
		if e.id != "" && e.name != "" && err == nil && r.Repository() == ref.Repository() && r.Tag != "" && r.Digest == "" && !slices.Contains(out, r) {
			out = append(out, r)
		}
	}
	if len(out) == 0 {
		return nil, &errdefs.Error{
			Op: "push", What: ref.FamiliarRepository(), Kind: errdefs.NotFound,
			Why: "an image does not exist locally with the tag: " + ref.FamiliarRepository(), Fix: "see what is here: onggi images",
		}
	}
	slices.SortFunc(out, func(a, b reference.Reference) int { return strings.Compare(a.Tag, b.Tag) })
	return out, nil
}
