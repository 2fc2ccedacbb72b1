package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/onggi/onggi/content"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/reference"
	"github.com/onggi/onggi/registry"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A manifest list is an index that is being made of images in a registry: `manifest create`, `annotate`, `push`. It is a
// file in lists/, replaced by rename under the index lock, and keeps no blob.

// ListItem is one image of a manifest list.
type ListItem struct {
	Ref  string             `json:"ref"` // as it was named
	Desc ocispec.Descriptor `json:"descriptor"`
}

const maxList = registry.MaxManifest

func (s *Store) listPath(name reference.Reference) string {
	return filepath.Join(s.dir, "lists", digest.FromString(name.String()).Encoded()+".json")
}

// ManifestList returns the items of a manifest list. NotFound.
func (s *Store) ManifestList(name reference.Reference) ([]ListItem, error) {
	f, err := os.Open(s.listPath(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &errdefs.Error{
			Op: "find the manifest list", What: name.Familiar(), Kind: errdefs.NotFound, Why: "there is no such list here",
			Fix: "make it: onggi manifest create " + name.Familiar() + " IMAGE...",
		}
	}
	if err != nil {
		return nil, &errdefs.Error{Op: "read the manifest list", What: name.Familiar(), Kind: errdefs.KindOf(err), Err: err}
	}
	defer f.Close()
	b, err := readLimited(f, maxList)
	if err != nil {
		return nil, &errdefs.Error{Op: "read the manifest list", What: name.Familiar(), Kind: errdefs.KindOf(err), Err: err}
	}
	var items []ListItem
	if err := json.Unmarshal(b, &items); err != nil {
		return nil, &errdefs.Error{Op: "read the manifest list", What: name.Familiar(), Kind: errdefs.Corrupt, Err: err, Fix: "make it again: onggi manifest rm, onggi manifest create"}
	}
	for _, i := range items {
		if content.Check(i.Desc.Digest) != nil || i.Desc.Size < 0 {
			return nil, &errdefs.Error{Op: "read the manifest list", What: name.Familiar(), Kind: errdefs.Corrupt, Why: "it holds a malformed digest"}
		}
	}
	return items, nil
}

// changeList replaces a list by what f makes of it.
func (s *Store) changeList(ctx context.Context, name reference.Reference, f func([]ListItem, error) ([]ListItem, error)) error {
	l, err := s.lockIndex(ctx)
	if err != nil {
		return err
	}
	defer l.release()
	items, err := f(s.ManifestList(name))
	if err != nil {
		return err
	}
	b, err := json.Marshal(items)
	if err != nil {
		return err
	}
	path := s.listPath(name)
	fail := func(err error) error {
		return &errdefs.Error{Op: "write the manifest list", What: name.Familiar(), Kind: errdefs.KindOf(err), Err: err}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fail(err)
	}
	w, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fail(err)
	}
	defer os.Remove(path + ".new") // fails after the rename, as it should
	defer w.Close()
	if _, err := w.Write(b); err != nil {
		return fail(err)
	}
	if err := w.Sync(); err != nil {
		return fail(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fail(err)
	}
	return nil
}

// CreateList makes a manifest list of images that are in a registry. A list of that name is an error (AlreadyExists)
// unless amend is set: then the images are added to it, or replace themselves.
func (s *Store) CreateList(ctx context.Context, c *registry.Client, name reference.Reference, members []reference.Reference, amend bool) error {
	if name.Digest != "" {
		return &errdefs.Error{Op: "create the manifest list", What: name.Familiar(), Kind: errdefs.InvalidArgument, Why: "a list cannot be given a digest", Fix: "use a tag"}
	}
	var items []ListItem
	for _, m := range members {
		found, err := describe(ctx, c, m)
		if err != nil {
			return err
		}
		items = append(items, found...)
	}
	return s.changeList(ctx, name, func(old []ListItem, err error) ([]ListItem, error) {
		if err == nil && !amend {
			return nil, &errdefs.Error{
				Op: "create the manifest list", What: name.Familiar(), Kind: errdefs.AlreadyExists, Why: "there is one of that name",
				Fix: "add to it with --amend, or remove it: onggi manifest rm " + name.Familiar(),
			}
		}
		if err != nil && !errdefs.Is(err, errdefs.NotFound) {
			return nil, err
		}
		for _, i := range items {
			old = slices.DeleteFunc(old, func(o ListItem) bool {
				return o.Ref == i.Ref && o.Desc.Digest != i.Desc.Digest || o.Desc.Digest == i.Desc.Digest
			})
			old = append(old, i)
		}
		return old, nil
	})
}

// describe asks a registry for an image and its platform, or for all images of an index.
func describe(ctx context.Context, c *registry.Client, ref reference.Reference) ([]ListItem, error) {
	desc, err := c.Resolve(ctx, ref)
	if err != nil {
		return nil, err
	}
	raw, err := c.Manifest(ctx, ref, desc)
	if err != nil {
		return nil, err
	}
	doc, err := parseDocument(desc.MediaType, raw)
	if err != nil {
		return nil, err
	}
	if doc.index != nil {
		var out []ListItem
		for _, d := range doc.index.Manifests {
			out = append(out, ListItem{ref.String(), d})
		}
		return out, nil
	}
	src := &fromRegistry{c: c, ref: ref}
	b, err := src.config(ctx, doc.manifest.Config)
	if err != nil {
		return nil, err
	}
	cfg, err := parseConfig(b)
	if err != nil {
		return nil, err
	}
	if cfg.OS == "" {
		cfg.OS = "linux"
	}
	p := cfg.Platform
	desc.Platform, desc.Annotations = &p, nil
	return []ListItem{{ref.String(), desc}}, nil
}

// Annotation changes an item of a list; what is empty stays.
type Annotation struct {
	OS, Architecture, Variant, OSVersion string
	OSFeatures                           []string
	Annotations                          map[string]string
}

// AnnotateList says what platform an item of a list is for. member is its name, as it was given, or its digest.
func (s *Store) AnnotateList(ctx context.Context, name reference.Reference, member string, a Annotation) error {
	return s.changeList(ctx, name, func(items []ListItem, err error) ([]ListItem, error) {
		if err != nil {
			return nil, err
		}
		full := member
		if ref, err := reference.Parse(member); err == nil {
			full = ref.String()
		}
		found := false
		for i := range items {
			d := &items[i].Desc
			if items[i].Ref != full && string(d.Digest) != member && digestOf(member) != d.Digest {
				continue
			}
			found = true
			p := ocispec.Platform{OS: "linux"}
			if d.Platform != nil {
				p = *d.Platform
			}
			for _, x := range []struct{ to, from *string }{{&p.OS, &a.OS}, {&p.Architecture, &a.Architecture}, {&p.Variant, &a.Variant}, {&p.OSVersion, &a.OSVersion}} {
				if *x.from != "" {
					*x.to = *x.from
				}
			}
			if len(a.OSFeatures) > 0 {
				p.OSFeatures = a.OSFeatures
			}
			d.Platform = &p
			for k, v := range a.Annotations {
				if d.Annotations == nil {
					d.Annotations = map[string]string{}
				}
				d.Annotations[k] = v
			}
		}
		if !found {
			return nil, &errdefs.Error{
				Op: "annotate", What: member, Kind: errdefs.NotFound, Why: "it is not in the list " + name.Familiar(),
				Fix: "see what is: onggi manifest inspect " + name.Familiar(),
			}
		}
		return items, nil
	})
}

func digestOf(name string) digest.Digest {
	if ref, err := reference.Parse(name); err == nil {
		return ref.Digest
	}
	return ""
}

// RemoveList removes a list; the images that it names stay. NotFound.
func (s *Store) RemoveList(name reference.Reference) error {
	if _, err := s.ManifestList(name); errdefs.Is(err, errdefs.NotFound) {
		return err
	}
	if err := os.Remove(s.listPath(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &errdefs.Error{Op: "remove the manifest list", What: name.Familiar(), Kind: errdefs.KindOf(err), Err: err}
	}
	return nil
}

// ListDocument returns the list as it would be pushed: docker's type when all its images are of docker's, else OCI's.
func (s *Store) ListDocument(name reference.Reference) (ocispec.Descriptor, []byte, error) {
	items, err := s.ManifestList(name)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	doc := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: registry.DockerManifestList, Manifests: []ocispec.Descriptor{}}
	for _, i := range items {
		if i.Desc.MediaType != registry.DockerManifest {
			doc.MediaType = ocispec.MediaTypeImageIndex
		}
		doc.Manifests = append(doc.Manifests, i.Desc)
	}
	b, err := json.MarshalIndent(doc, "", "   ")
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	return memory(doc.MediaType, b).desc, b, nil
}

// PushList pushes a list under its name. Its images have to be in the same registry; those of other repositories are
// taken over from there, blob by blob.
func (s *Store) PushList(ctx context.Context, c *registry.Client, name reference.Reference) (ocispec.Descriptor, error) {
	fail := func(err error) (ocispec.Descriptor, error) {
		return ocispec.Descriptor{}, &errdefs.Error{Op: "push the manifest list", What: name.Familiar(), Kind: errdefs.KindOf(err), Fix: errdefs.FixOf(err), Err: err}
	}
	items, err := s.ManifestList(name)
	if err != nil {
		return fail(err)
	}
	for _, i := range items {
		ref, err := reference.Parse(i.Ref)
		if err != nil {
			return fail(err)
		}
		if ref.Domain != name.Domain {
			return fail(&errdefs.Error{
				What: i.Ref, Kind: errdefs.InvalidArgument, Why: "it is in another registry than the list",
				Fix: fmt.Sprintf("push it there first: onggi pull %s && onggi tag %s %s/... && onggi push", ref.Familiar(), ref.Familiar(), name.Domain),
			})
		}
		if err := takeOver(ctx, c, name, ref, i.Desc); err != nil {
			return fail(err)
		}
	}
	desc, raw, err := s.ListDocument(name)
	if err != nil {
		return fail(err)
	}
	if err := c.PushManifest(ctx, name, desc, raw, name.Tag); err != nil {
		return fail(err)
	}
	return desc, nil
}

// takeOver makes a manifest of another repository of the registry one of to's.
func takeOver(ctx context.Context, c *registry.Client, to, from reference.Reference, d ocispec.Descriptor) error {
	if has, err := c.HasManifest(ctx, to, d.Digest, false); err != nil || has {
		return err
	}
	raw, err := c.Manifest(ctx, from, ocispec.Descriptor{Digest: d.Digest, Size: d.Size, MediaType: d.MediaType})
	if err != nil {
		return err
	}
	m, err := readPushed(d, raw)
	if err != nil {
		return err
	}
	for _, b := range append(slices.Clone(m.manifest.Layers), m.manifest.Config) {
		body := &remoteBlob{ctx: ctx, c: c, ref: from, desc: b}
		if _, _, err := c.PushBlob(ctx, to, b, body, registry.PushOptions{From: []string{from.Path}}); err != nil {
			return err
		}
	}
	return c.PushManifest(ctx, to, m.doc.desc, raw, "")
}

// remoteBlob is a blob in another repository, for a registry that does not take it over by itself.
type remoteBlob struct {
	ctx  context.Context
	c    *registry.Client
	ref  reference.Reference
	desc ocispec.Descriptor
	r    io.ReadCloser
	off  int64
}

// ReadAt reads on where the last call ended, or opens the blob at another place.
func (b *remoteBlob) ReadAt(p []byte, off int64) (int, error) {
	if b.r == nil || b.off != off {
		if b.r != nil {
			_ = b.r.Close()
		}
		r, err := b.c.BlobRange(b.ctx, b.ref, b.desc, off, b.desc.Size)
		if err != nil {
			return 0, err
		}
		b.r, b.off = r, off
	}
	n, err := io.ReadFull(b.r, p[:min(int64(len(p)), b.desc.Size-off)])
	b.off += int64(n)
	if b.off == b.desc.Size {
		_ = b.r.Close()
		b.r = nil
		if err == nil && n < len(p) {
			err = io.EOF
		}
	}
	return n, err
}
