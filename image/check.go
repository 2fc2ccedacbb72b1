package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/reference"
	"github.com/onggi/onggi/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// CheckOptions of Check.
type CheckOptions struct {
	Repair   bool
	Registry *registry.Client                // to fetch again what is broken; nil: nothing is fetched
	Busy     func(image digest.Digest) bool  // whether a container of it runs: its layers are not replaced; may be nil
	Progress func(what string, n, total int) // before each blob and layer; may be nil
}

// Problem is something that is not as it should be.
type Problem struct {
	What     string   `json:"what"` // "blob", "layer" or "orphan"
	Digest   string   `json:"digest"`
	Images   []string `json:"images,omitempty"` // that are affected: names, or short ids
	Why      string   `json:"why"`
	Repaired bool     `json:"repaired"`
	Fix      string   `json:"fix,omitempty"` // when it was not repaired
}

// Report is what Check has found.
type Report struct {
	Images   int       `json:"images"`
	Blobs    int       `json:"blobs"`
	Layers   int       `json:"layers"`
	Bytes    int64     `json:"bytes"`    // of blobs that were hashed
	Unproven int       `json:"unproven"` // layers without a blob to compare them with: only their records were read
	Problems []Problem `json:"problems"`
}

// checked is a blob or a layer that an image needs.
type checked struct {
	desc   ocispec.Descriptor // of the blob
	diffID digest.Digest      // of a layer; "" for documents
	doc    bool               // manifest or index
	refs   []reference.Reference
	images []string
	ids    []digest.Digest
}

// Check reads everything that the images of the index need: every blob is hashed, every layer is unpacked once more from
// its blob and compared with its tree. It names what is broken and, if asked, fetches the blob again from where the
// image's name says, or unpacks the layer again, and nothing else. What no image, removal or living process needs is an
// orphan; repairing it is removing it. Pulls and removals may go on meanwhile.
func (s *Store) Check(ctx context.Context, o CheckOptions) (_ *Report, err error) {
	r := &Report{}
	l, err := s.newLease(ctx) // so that nothing goes while it is read
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.drop(context.WithoutCancel(ctx))) }()
	docs, layers, err := s.toCheck(ctx, l, r)
	if err != nil {
		return nil, err
	}
	if o.Progress == nil {
		o.Progress = func(string, int, int) {}
	}
	for i := 0; i < len(docs); i++ {
		d := docs[i]
		o.Progress("blob "+short(d.desc.Digest), i+1, len(docs))
		ok, err := s.checkBlob(ctx, r, d, o)
		if err != nil {
			return nil, err
		}
		if ok && d.doc { // what was fetched again tells what else there is
			more, err := s.childrenOf(ctx, l, d)
			if err != nil {
				return nil, err
			}
			for _, m := range more {
				if m.diffID != "" {
					layers = addChecked(layers, m)
				} else {
					docs = addChecked(docs, m)
				}
			}
		}
	}
	for i, d := range layers {
		o.Progress("layer "+short(d.diffID), i+1, len(layers))
		if err := s.checkLayer(ctx, r, d, o); err != nil {
			return nil, err
		}
	}
	return r, s.checkOrphans(ctx, r, l, o)
}

func addChecked(list []checked, c checked) []checked {
	for i := range list {
		x := &list[i]
		if x.diffID == c.diffID && x.desc.Digest == c.desc.Digest {
			for j, id := range c.ids {
				if !slices.Contains(x.ids, id) {
					x.ids, x.images = append(x.ids, id), append(x.images, c.images[min(j, len(c.images)-1)])
				}
			}
			x.refs = append(x.refs, c.refs...)
			return list
		}
	}
	return append(list, c)
}

// toCheck lists the manifests of the index; what they refer to comes with them.
func (s *Store) toCheck(ctx context.Context, l *lease, r *Report) (docs, layers []checked, err error) {
	idx, err := s.readIndex()
	if err != nil {
		return nil, nil, err
	}
	r.Images = len(idx.ids())
	for _, e := range idx {
		c := checked{desc: e.desc, doc: true, ids: []digest.Digest{e.id}}
		name := short(e.desc.Digest)
		if e.id != "" {
			name = short(e.id)
		}
		if ref, err := reference.Parse(e.name); e.name != "" && err == nil {
			c.refs = []reference.Reference{ref}
			name = ref.Familiar()
		}
		c.images = []string{name}
		c.desc.Annotations = nil
		docs = addChecked(docs, c)
		if e.target.Digest != e.desc.Digest {
			if _, err := s.content.Stat(e.target.Digest); err == nil {
				t := c
				t.desc, t.doc = e.target, false // its other platforms are not here, or entries of their own
				docs = addChecked(docs, t)
			}
		}
		if err := l.add(ctx, e.desc.Digest, e.target.Digest); err != nil {
			return nil, nil, err
		}
	}
	return docs, nil, nil
}

// childrenOf lists what a manifest refers to.
func (s *Store) childrenOf(ctx context.Context, l *lease, d checked) ([]checked, error) {
	b, err := s.content.ReadAll(ocispec.Descriptor{Digest: d.desc.Digest}, registry.MaxManifest)
	if err != nil {
		return nil, err
	}
	doc, err := parseDocument("", b)
	if err != nil || doc.manifest == nil {
		return nil, nil // another program's: its blobs are hashed when their digests are walked
	}
	m := doc.manifest
	config := d
	config.desc, config.doc = m.Config, false
	out := []checked{config}
	need := []digest.Digest{m.Config.Digest}
	raw, err := s.content.ReadAll(ocispec.Descriptor{Digest: m.Config.Digest}, maxConfig)
	var c ocispec.Image
	if err == nil {
		c, err = parseConfig(raw)
	}
	if err != nil || checkPair(m, c) != nil {
		return out, l.add(ctx, need...) // the configuration is told as a problem of its own
	}
	for i, desc := range m.Layers {
		x := d
		x.desc, x.doc, x.diffID = desc, false, c.RootFS.DiffIDs[i]
		out = append(out, x)
		need = append(need, desc.Digest, x.diffID)
	}
	return out, l.add(ctx, need...)
}

// hashBlob reads a blob. present is false when there is none.
func (s *Store) hashBlob(r *Report, desc ocispec.Descriptor) (present bool, why string, err error) {
	rc, err := s.content.Open(desc)
	if errdefs.Is(err, errdefs.NotFound) {
		return false, "", nil
	}
	if errdefs.Is(err, errdefs.Corrupt) {
		return true, err.Error(), nil
	}
	if err != nil {
		return false, "", err
	}
	defer rc.Close()
	n, err := io.Copy(io.Discard, rc)
	r.Blobs, r.Bytes = r.Blobs+1, r.Bytes+n
	if err != nil {
		return true, err.Error(), nil // also what the medium says
	}
	return true, "", nil
}

// checkBlob checks a document. ok says that it is there and whole now.
func (s *Store) checkBlob(ctx context.Context, r *Report, d checked, o CheckOptions) (ok bool, err error) {
	present, why, err := s.hashBlob(r, d.desc)
	if err != nil {
		return false, err
	}
	if present && why == "" {
		return true, nil
	}
	if !present {
		why = "it is not there"
	}
	p := Problem{What: "blob", Digest: string(d.desc.Digest), Images: d.images, Why: why}
	if o.Repair {
		err = s.refetch(ctx, d, o.Registry, present)
		p.Repaired = err == nil
	}
	if !p.Repaired {
		p.Fix = repairFix(d, o, err)
	}
	r.Problems = append(r.Problems, p)
	return p.Repaired, ctx.Err()
}

func repairFix(d checked, o CheckOptions, err error) string {
	switch {
	case !o.Repair:
		return "onggi system check --repair"
	case err != nil && len(d.refs) > 0:
		return fmt.Sprintf("it could not be repaired (%v); remove the image and pull it again", err)
	}
	return "it has no name that says where it came from: remove the image, and bring it in again"
}

// refetch fetches a blob again from where one of the images that need it came from.
func (s *Store) refetch(ctx context.Context, d checked, c *registry.Client, present bool) error {
	if c == nil || len(d.refs) == 0 {
		return &errdefs.Error{Kind: errdefs.NotFound, Why: "nobody says where it can be fetched"}
	}
	var errs []error
	for _, ref := range d.refs {
		err := s.refetchFrom(ctx, d, c, ref, present)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (s *Store) refetchFrom(ctx context.Context, d checked, c *registry.Client, ref reference.Reference, present bool) error {
	w, err := s.content.Begin(ctx, d.desc)
	if err != nil {
		return err
	}
	defer w.Close()
	if d.doc || isIndexType(d.desc.MediaType) {
		b, err := c.Manifest(ctx, ref, d.desc)
		if err != nil {
			return err
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
	} else {
		r, err := c.Blob(ctx, ref, d.desc)
		if err != nil {
			return err
		}
		defer r.Close()
		if _, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, make([]byte, fetchBuffer)); err != nil {
			return err
		}
	}
	if err := w.Verify(); err != nil {
		return err
	}
	if present { // what is broken makes room only when its successor is whole
		if err := s.content.Delete(d.desc.Digest); err != nil {
			return err
		}
	}
	_, err = w.Commit(ctx)
	return err
}

func isIndexType(t string) bool {
	return t == ocispec.MediaTypeImageIndex || t == registry.DockerManifestList
}

// checkLayer checks a layer's blob and tree at once: the tree is compared with what the blob gives.
func (s *Store) checkLayer(ctx context.Context, r *Report, d checked, o CheckOptions) error {
	r.Layers++
	busy := o.Busy != nil && slices.ContainsFunc(d.ids, o.Busy)
	verify := func() (string, error) {
		rc, err := s.openArchive(ctx, d.desc, d.diffID)
		if err != nil {
			return "", err
		}
		defer rc.Close()
		return s.snapshots.Verify(ctx, d.diffID, rc, o.Repair && !busy)
	}
	layer := Problem{What: "layer", Digest: string(d.diffID), Images: d.images}
	size, err := s.content.Stat(d.desc.Digest)
	present := err == nil
	rebuilt := errdefs.Is(err, errdefs.NotFound) && s.rebuildable(d.desc, d.diffID) != nil
	if rebuilt { // its files are compared with its digest, and its tree with what they give
		size = d.desc.Size
		defer func() {
			if s.droppable(d.desc) != nil && s.rebuildable(d.desc, d.diffID) != nil {
				_ = s.content.Delete(d.desc.Digest) // what was fetched for the repair
			}
		}()
	} else if errdefs.Is(err, errdefs.NotFound) {
		if _, err := s.snapshots.Layer(d.diffID); err == nil {
			r.Unproven++ // a layer that was here already is not fetched, so it may have no blob of this name
			return nil
		} else if layer.Why = err.Error(); !o.Repair {
			layer.Fix = repairFix(d, o, nil)
			r.Problems = append(r.Problems, layer)
			return nil
		}
		if err := s.refetch(ctx, d, o.Registry, false); err != nil {
			layer.Fix = repairFix(d, o, err)
			r.Problems = append(r.Problems, layer)
			return ctx.Err()
		}
	} else if err != nil && !errdefs.Is(err, errdefs.Corrupt) {
		return err
	}
	differs, err := verify()
	if rebuilt && errdefs.Is(err, errdefs.Corrupt) {
		layer.Why = err.Error()
		switch {
		case !o.Repair:
			layer.Fix = repairFix(d, o, nil)
		case busy:
			layer.Fix = "stop the containers of these images, and check again with --repair"
		default:
			if err = s.refetch(ctx, d, o.Registry, false); err == nil {
				_, err = verify()
			}
			if layer.Repaired = err == nil; !layer.Repaired {
				layer.Fix = repairFix(d, o, err)
			}
		}
		r.Problems = append(r.Problems, layer)
		return ctx.Err()
	}
	if errdefs.Is(err, errdefs.Corrupt) && present && s.damaged(d.desc) {
		p := Problem{What: "blob", Digest: string(d.desc.Digest), Images: d.images, Why: err.Error()}
		if o.Repair {
			err = s.refetch(ctx, d, o.Registry, true)
			p.Repaired = err == nil
		}
		if !p.Repaired {
			p.Fix = repairFix(d, o, err)
			r.Unproven++
		}
		r.Problems = append(r.Problems, p)
		if !p.Repaired {
			return ctx.Err()
		}
		differs, err = verify()
	}
	switch {
	case errdefs.Is(err, errdefs.Corrupt): // a whole blob that is not the layer
		layer.Why, layer.Fix = err.Error(), "the image is broken at its source: remove it"
	case err != nil:
		return err
	case differs == "":
		r.Blobs, r.Bytes = r.Blobs+1, r.Bytes+size
		return nil
	default:
		layer.Why, layer.Repaired = differs, o.Repair && !busy
		if busy {
			layer.Fix = "stop the containers of these images, and check again with --repair"
		} else if !o.Repair {
			layer.Fix = repairFix(d, o, nil)
		}
	}
	r.Problems = append(r.Problems, layer)
	return nil
}

// checkOrphans finds what nobody needs, and removes it.
func (s *Store) checkOrphans(ctx context.Context, r *Report, own *lease, o CheckOptions) error {
	lk, err := s.lockIndex(ctx)
	if err != nil {
		return err
	}
	need, blobs, err := s.needed(own)
	lk.release()
	if err != nil {
		return err
	}
	for d := range own.held {
		need[d], blobs[d] = true, true
	}
	orphans := map[digest.Digest]bool{}
	if err := s.content.Walk(func(d digest.Digest, _ int64) error {
		if !blobs[d] {
			orphans[d] = true
			r.Problems = append(r.Problems, Problem{What: "orphan", Digest: string(d), Why: "a blob that no image needs"})
		}
		return nil
	}); err != nil {
		return err
	}
	layers, err := s.snapshots.Layers()
	if err != nil && !errdefs.Is(err, errdefs.Corrupt) {
		return err
	}
	for _, l := range layers {
		if !need[l.DiffID] {
			orphans[l.DiffID] = true
			r.Problems = append(r.Problems, Problem{What: "orphan", Digest: string(l.DiffID), Why: "a layer that no image needs"})
		}
	}
	if len(orphans) == 0 {
		return nil
	}
	// What a broken manifest or configuration refers to looks like an orphan: it stays until that is settled.
	settled := !slices.ContainsFunc(r.Problems, func(p Problem) bool { return p.What == "blob" && !p.Repaired })
	if o.Repair && settled {
		if _, err := s.collect(ctx, orphans, own); err != nil {
			return err
		}
	}
	for i := range r.Problems {
		p := &r.Problems[i]
		switch {
		case p.What != "orphan":
		case !settled:
			p.Fix = "it may belong to what is broken: repair that first"
		case !o.Repair:
			p.Fix = "onggi system check --repair"
		default:
			p.Repaired = true
		}
	}
	return nil
}
