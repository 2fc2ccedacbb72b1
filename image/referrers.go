package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/reference"
	"github.com/onggi/onggi/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A referrer (a signature, an SBOM, an attestation) is kept as an entry of the index that has no name and is no image:
// image-spec's "Image Layout" wants it there. It goes when the last image goes that it refers to.
const (
	annotationSubject = "org.onggi.referrer.subject" // digest of what it refers to
	annotationTag     = "org.onggi.referrer.tag"     // the tag that found it: cosign's signatures have one, and no subject

	maxReferrers     = 1000
	maxReferrerBlobs = 64 << 20 // bytes of one blob of a referrer
)

// Referrers lists what is here and refers to the digest.
func (s *Store) Referrers(d digest.Digest) ([]ocispec.Descriptor, error) {
	idx, err := s.readIndex()
	if err != nil {
		return nil, err
	}
	var out []ocispec.Descriptor
	for _, e := range idx {
		if e.desc.Annotations[annotationSubject] == string(d) {
			out = append(out, e.desc)
		}
	}
	return out, nil
}

// cosignTags are the tags under which cosign keeps what belongs to an image where registries know no referrers
// (sigstore/cosign, specs/SIGNATURE_SPEC.md).
func cosignTags(d digest.Digest) []string {
	base := registry.ReferrersTag(d)
	return []string{base + ".sig", base + ".att", base + ".sbom"}
}

// RemoteReferrers lists what refers to the digest in ref's repository: by the referrers API or its tag schema, and
// cosign's tags. Those found by a tag have it in the annotation org.onggi.referrer.tag.
func RemoteReferrers(ctx context.Context, c *registry.Client, ref reference.Reference, d digest.Digest, artifactType string) ([]ocispec.Descriptor, error) {
	list, err := c.Referrers(ctx, ref, d, artifactType)
	if err != nil {
		return nil, err
	}
	if artifactType != "" {
		return list, nil
	}
	for _, tag := range cosignTags(d) {
		t := reference.Reference{Domain: ref.Domain, Path: ref.Path, Tag: tag}
		desc, err := c.Resolve(ctx, t)
		if errdefs.Is(err, errdefs.NotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(list, func(x ocispec.Descriptor) bool { return x.Digest == desc.Digest }) {
			desc.Annotations = map[string]string{annotationTag: tag}
			desc.ArtifactType = "application/vnd.dev.cosign." + map[string]string{".sig": "signature", ".att": "attestation", ".sbom": "sbom"}[tag[strings.LastIndexByte(tag, '.'):]]
			list = append(list, desc)
		}
	}
	return list, nil
}

// bringReferrers fetches what refers to the image that was brought in, and what refers to that, under the lease, and
// lists it in the index.
func (b *bringing) bringReferrers(ctx context.Context, c *registry.Client, ref reference.Reference) (int, error) {
	docs := []ocispec.Descriptor{b.target}
	if b.desc.Digest != b.target.Digest {
		docs = append(docs, b.desc)
	}
	n := 0
	seen := map[digest.Digest]bool{}
	for i := 0; i < len(docs); i++ {
		list, err := RemoteReferrers(ctx, c, ref, docs[i].Digest, "")
		if err != nil {
			return n, err
		}
		for _, d := range list {
			if seen[d.Digest] {
				continue
			}
			seen[d.Digest] = true
			if n++; n > maxReferrers {
				return n, malformed("the image", "more than %d manifests refer to it", maxReferrers)
			}
			got, err := b.bringArtifact(ctx, c, ref, d)
			if err != nil {
				return n, fmt.Errorf("the referrer %s: %w", d.Digest, err)
			}
			if err := b.listReferrer(ctx, got, docs[i].Digest); err != nil {
				return n, err
			}
			docs = append(docs, d)
		}
	}
	return n, nil
}

// bringArtifact fetches a manifest that is no image, with its blobs.
func (b *bringing) bringArtifact(ctx context.Context, c *registry.Client, ref reference.Reference, d ocispec.Descriptor) (ocispec.Descriptor, error) {
	if err := b.lease.add(ctx, d.Digest); err != nil {
		return d, err
	}
	raw, err := b.s.content.ReadAll(ocispec.Descriptor{Digest: d.Digest, Size: d.Size}, registry.MaxManifest)
	if err != nil {
		if raw, err = c.Manifest(ctx, ref, ocispec.Descriptor{Digest: d.Digest, Size: d.Size, MediaType: d.MediaType}); err != nil {
			return d, err
		}
	}
	m, err := readPushed(d, raw)
	if err != nil {
		return d, err
	}
	for _, x := range append([]ocispec.Descriptor{m.manifest.Config}, m.manifest.Layers...) {
		if x.Size > maxReferrerBlobs {
			return d, malformed("the referrer", "its blob %s has %d bytes, more than %d", x.Digest, x.Size, maxReferrerBlobs)
		}
		if err := b.lease.add(ctx, x.Digest); err != nil {
			return d, err
		}
		if n, err := b.s.content.Stat(x.Digest); err == nil && n == x.Size {
			continue
		}
		if err := b.fetchSmall(ctx, c, ref, x); err != nil {
			return d, err
		}
	}
	doc := bringing{s: b.s, small: []smallBlob{m.doc}}
	if err := doc.storeSmall(ctx); err != nil {
		return d, err
	}
	out := m.doc.desc
	out.ArtifactType, out.Annotations = d.ArtifactType, d.Annotations
	return out, nil
}

func (b *bringing) fetchSmall(ctx context.Context, c *registry.Client, ref reference.Reference, d ocispec.Descriptor) error {
	r, err := c.Blob(ctx, ref, d)
	if err != nil {
		return err
	}
	defer r.Close()
	w, err := b.s.content.Begin(ctx, ocispec.Descriptor{Digest: d.Digest, Size: d.Size})
	if err != nil {
		return err
	}
	defer w.Close()
	if _, err := io.Copy(w, r); err != nil {
		return err
	}
	_, err = w.Commit(ctx)
	return err
}

// listReferrer puts a referrer into the index.
func (b *bringing) listReferrer(ctx context.Context, d ocispec.Descriptor, subject digest.Digest) error {
	a := map[string]string{annotationSubject: string(subject)}
	if t := d.Annotations[annotationTag]; t != "" {
		a[annotationTag] = t
	}
	d.Annotations = a
	return b.s.change(ctx, func(idx index) (index, error) {
		for i, e := range idx {
			if e.id == "" && e.desc.Digest == d.Digest && e.desc.Annotations[annotationSubject] != "" {
				if maps.Equal(e.desc.Annotations, a) {
					return idx, nil
				}
				idx[i] = entry{desc: d, target: d}
				return idx, nil
			}
		}
		return append(idx, entry{desc: d, target: d}), nil
	})
}

// withoutOrphans drops the referrers of what is gone.
func (idx index) withoutOrphans() (next, gone index) {
	for changed := true; changed; {
		changed = false
		have := map[string]bool{}
		for _, e := range idx {
			have[string(e.desc.Digest)], have[string(e.target.Digest)] = true, true
		}
		var keep index
		for _, e := range idx {
			if subject := e.desc.Annotations[annotationSubject]; e.id == "" && subject != "" && !have[subject] {
				gone, changed = append(gone, e), true
				continue
			}
			keep = append(keep, e)
		}
		idx = keep
	}
	return idx, gone
}

// blobsOf lists what a manifest of any kind refers to, as far as it can be read.
func blobsOf(raw []byte) []digest.Digest {
	var m struct {
		Config ocispec.Descriptor   `json:"config"`
		Layers []ocispec.Descriptor `json:"layers"`
	}
	if json.Unmarshal(raw, &m) != nil {
		return nil
	}
	var out []digest.Digest
	for _, d := range append([]ocispec.Descriptor{m.Config}, m.Layers...) {
		if checkDescriptor("", d) == nil {
			out = append(out, d.Digest)
		}
	}
	return out
}

// Referrer is a manifest that refers to an image. Tag is the tag that found it, where it was one.
type Referrer struct {
	ocispec.Descriptor
	Tag string
}

// ListReferrers lists what refers to the image of that name in its registry, and to its index.
func ListReferrers(ctx context.Context, c *registry.Client, ref reference.Reference, artifactType string) ([]Referrer, error) {
	d := ref.Digest
	if d == "" {
		desc, err := c.Resolve(ctx, ref)
		if err != nil {
			return nil, err
		}
		d = desc.Digest
	}
	list, err := RemoteReferrers(ctx, c, ref, d, artifactType)
	return referrersOf(list), err
}

func referrersOf(list []ocispec.Descriptor) []Referrer {
	var out []Referrer
	for _, d := range list {
		out = append(out, Referrer{d, d.Annotations[annotationTag]})
	}
	return out
}

// ReferrersOf lists what is here and refers to an image, or to the index that it is from.
func (s *Store) ReferrersOf(img *Image) ([]Referrer, error) {
	list, err := s.Referrers(img.Target.Digest)
	if err != nil || img.Target.Digest == img.Manifest.Digest {
		return referrersOf(list), err
	}
	more, err := s.Referrers(img.Manifest.Digest)
	return referrersOf(append(list, more...)), err
}

// Step is a step of an image's history, with the size of the layer that it made, in bytes of file content.
type Step struct {
	ocispec.History
	Size int64
}

// History returns an image's steps, the first one first. Layers that no step tells of have one without a command.
func (s *Store) History(img *Image) ([]Step, error) {
	sizes := make([]int64, len(img.DiffIDs))
	for i, d := range img.DiffIDs {
		l, err := s.snapshots.Layer(d)
		if err != nil {
			return nil, err
		}
		sizes[i] = l.Size
	}
	var out []Step
	next := 0
	for _, h := range img.Config.History {
		x := Step{History: h}
		if !h.EmptyLayer && next < len(sizes) {
			x.Size = sizes[next]
			next++
		}
		out = append(out, x)
	}
	for ; next < len(sizes); next++ {
		out = append(out, Step{Size: sizes[next]})
	}
	return out, nil
}
