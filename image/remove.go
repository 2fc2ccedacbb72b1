package image

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/reference"
	"github.com/onggi/onggi/registry"
	"github.com/onggi/onggi/undo"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Removed is one step of a removal, as `docker rmi` prints it.
type Removed struct{ Untagged, Deleted string }

// Remove removes a name and, with its last name, the image, its blobs and the layers that no other image needs.
// inUse says whether a container still needs an image. Conflict when in use (unless only a name goes), or when an id
// with several names is removed without force. With force an image that is in use loses its names and stays.
//
// A caller that makes a container of an image writes its own record first and looks the image up (Get) afterwards: then
// either inUse sees the record, or Get fails.
func (s *Store) Remove(ctx context.Context, nameOrID string, force bool, inUse func(digest.Digest) bool) (_ []Removed, err error) {
	defer func() {
		if err != nil && errdefs.As(err).Op == "" {
			err = &errdefs.Error{Op: "remove the image", What: nameOrID, Kind: errdefs.KindOf(err), Fix: errdefs.FixOf(err), Err: err}
		}
	}()
	if inUse == nil {
		inUse = func(digest.Digest) bool { return false }
	}
	return s.remove(ctx, func(idx index) (next, gone index, out []Removed, err error) {
		return idx.remove(nameOrID, force, inUse)
	})
}

// remove takes what pick says out of the index, and then deletes what nothing else needs.
func (s *Store) remove(ctx context.Context, pick func(index) (next, gone index, out []Removed, err error)) (_ []Removed, err error) {
	if err := s.recover(ctx); err != nil {
		return nil, err
	}
	steps := undo.New("image")
	var l *lease
	defer func() {
		if err != nil && l != nil { // what is not needed any more goes in any case; what still is stays
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
			defer cancel()
			err = errors.Join(err, l.drop(ctx))
		}
	}()
	if err := steps.Do("lease", func() (err error) { l, err = s.newLease(ctx); return err }, nil); err != nil {
		return nil, err
	}

	var out []Removed
	var gone index
	var owners map[string]digest.Digest // of the names, before
	untag := func() error {
		return s.change(ctx, func(idx index) (next index, err error) {
			next, gone, out, err = pick(idx)
			if err != nil {
				return nil, err
			}
			owners = idx.owners()
			for _, e := range gone {
				refs, err := s.references(e)
				if err != nil {
					return nil, err
				}
				if err := l.note(refs); err != nil {
					return nil, err
				}
			}
			return next, nil
		})
	}
	if err := steps.Do("untag", untag, nil); err != nil {
		return nil, err
	}
	err = steps.Do("collect", func() error {
		deleted, err := s.collect(ctx, l.held, l)
		for _, id := range gone.ids() {
			if r := (Removed{Deleted: string(id)}); !slices.Contains(out, r) {
				out = append(out, r)
			}
		}
		for _, d := range deleted {
			out = append(out, Removed{Deleted: string(d)})
		}
		return err
	}, nil)
	if err != nil {
		return out, err
	}
	s.tellRemoved(out, owners, gone)
	return out, l.release()
}

// tellRemoved tells of names that were removed, whose they were, and of images that are gone.
func (s *Store) tellRemoved(out []Removed, owners map[string]digest.Digest, gone index) {
	for _, r := range out {
		if id, ok := owners[r.Untagged]; ok {
			s.tell("untag", string(id), r.Untagged)
		}
	}
	for _, id := range gone.ids() {
		s.tell("delete", string(id), string(id))
	}
}

// owners are the images by their names, as users write them.
func (idx index) owners() map[string]digest.Digest {
	of := map[string]digest.Digest{}
	for _, e := range idx {
		if ref, err := reference.Parse(e.name); e.name != "" && err == nil {
			of[ref.Familiar()] = e.id
		}
	}
	return of
}

// remove returns the index without what nameOrID means, the entries of an image that is gone with it, and what to say.
func (idx index) remove(nameOrID string, force bool, inUse func(digest.Digest) bool) (next, gone index, said []Removed, err error) {
	found, err := idx.find(nameOrID, HostPlatform())
	if err != nil {
		return nil, nil, nil, err
	}
	hits := index{found[0]}
	if found[0].named(nameOrID) { // a name goes with all its platforms
		for _, e := range idx {
			if e.name == found[0].name && e.besides(found[0]) {
				hits = append(hits, e)
			}
		}
	}
	next = idx
	for _, hit := range hits {
		var g index
		var s []Removed
		if next, g, s, err = next.removeOne(nameOrID, hit, force, inUse); err != nil {
			return nil, nil, nil, err
		}
		gone = append(gone, g...)
		for _, r := range s {
			if !slices.Contains(said, r) {
				said = append(said, r)
			}
		}
	}
	next, orphans := next.withoutOrphans()
	return next, append(gone, orphans...), said, nil
}

// removeOne removes the image of one entry, or only its name.
func (idx index) removeOne(nameOrID string, hit entry, force bool, inUse func(digest.Digest) bool) (next, gone index, said []Removed, err error) {
	found := index{hit}
	for _, e := range idx {
		if e.id == hit.id && (e.name != hit.name || e.desc.Digest != hit.desc.Digest) {
			found = append(found, e)
		}
	}
	conflict := func(why, fix string) (index, index, []Removed, error) {
		return nil, nil, nil, &errdefs.Error{Op: "remove the image", What: nameOrID, Kind: errdefs.Conflict, Why: why, Fix: fix}
	}
	var names []reference.Reference
	for _, e := range found {
		if ref, err := reference.Parse(e.name); e.name != "" && err == nil && !slices.Contains(names, ref) {
			names = append(names, ref)
		}
	}
	byName := hit.named(nameOrID)
	if byName && len(names) > 1 {
		ref, _ := reference.Parse(hit.name)
		return idx.without(hit), nil, []Removed{{Untagged: ref.Familiar()}}, nil
	}
	if !byName && len(names) > 1 && !force && !oneRepository(names) {
		list := make([]string, len(names))
		for i, n := range names {
			list[i] = n.Familiar()
		}
		return conflict("it has several names: "+strings.Join(list, ", "), "remove the names, or all of it with --force")
	}
	used := inUse(hit.id)
	if used && !force {
		return conflict("a container uses it", "remove the container first (onggi ps -a), or only the names with --force")
	}
	for _, e := range found {
		idx = idx.without(e)
		if ref, err := reference.Parse(e.name); e.name != "" && err == nil {
			said = append(said, Removed{Untagged: ref.Familiar()})
			if ref.Digest == "" {
				by := reference.Reference{Domain: ref.Domain, Path: ref.Path, Digest: e.target.Digest}
				if r := (Removed{Untagged: by.Familiar()}); !slices.Contains(said, r) {
					said = append(said, r)
				}
			}
		}
	}
	if used {
		return idx.name("", hit), nil, said, nil
	}
	return idx, found, said, nil
}

// named reports whether nameOrID meant the entry by its name, and not by its id.
func (e entry) named(nameOrID string) bool {
	ref, err := reference.Parse(nameOrID)
	return err == nil && e.name != "" && (e.name == ref.String() || ref.Digest != "" && e.hasDigest(ref))
}

// oneRepository: docker removes an id that has one tag, and the digests of the same repository.
func oneRepository(names []reference.Reference) bool {
	tags := 0
	for _, n := range names {
		if n.Repository() != names[0].Repository() {
			return false
		}
		if n.Tag != "" {
			tags++
		}
	}
	return tags <= 1
}

func (idx index) without(gone entry) index {
	return slices.DeleteFunc(slices.Clone(idx), func(e entry) bool {
		return e.name == gone.name && e.desc.Digest == gone.desc.Digest
	})
}

// note is add for a caller that holds the index lock.
func (l *lease) note(ds []digest.Digest) error {
	var b strings.Builder
	for _, d := range ds {
		b.WriteString(string(d) + "\n")
		l.held[d] = true
	}
	if _, err := l.f.WriteString(b.String()); err != nil {
		return &errdefs.Error{Op: "write the lease", What: l.path, Kind: errdefs.KindOf(err), Err: err}
	}
	return nil
}

// references lists the blobs and layers that an entry keeps: index, manifest, configuration, layers' blobs, layers.
// What is damaged or missing has no references: an image without its configuration cannot be run anyway.
func (s *Store) references(e entry) ([]digest.Digest, error) {
	blobs, layers, err := s.parts(e)
	return append(blobs, layers...), err
}

// parts is references with blobs and layers apart. One digest may be both: the blob of a layer that came as a plain tar
// has the layer's own.
func (s *Store) parts(e entry) (all, layers []digest.Digest, _ error) {
	all = []digest.Digest{e.desc.Digest, e.target.Digest}
	configs := []digest.Digest{e.id}
	docs := []ocispec.Descriptor{e.desc, e.target}
	for i := 0; i < len(docs) && i < maxPlatforms; i++ {
		b, err := s.content.ReadAll(ocispec.Descriptor{Digest: docs[i].Digest}, registry.MaxManifest)
		if ok, err := present(err); err != nil {
			return nil, nil, err
		} else if !ok {
			continue
		}
		doc, err := parseDocument("", b)
		switch {
		case err != nil: // no image: a signature, an attestation
			all = append(all, blobsOf(b)...)
		case doc.manifest != nil:
			if c := doc.manifest.Config.Digest; !slices.Contains(configs, c) {
				configs = append(configs, c)
			}
			for _, l := range doc.manifest.Layers {
				all = append(all, l.Digest)
			}
		case doc.index != nil:
			for _, d := range doc.index.Manifests {
				if _, err := s.content.Stat(d.Digest); err == nil && !slices.Contains(all, d.Digest) {
					all = append(all, d.Digest)
					docs = append(docs, d)
				}
			}
		}
	}
	for _, config := range configs {
		if config == "" {
			continue
		}
		all = append(all, config)
		b, err := s.content.ReadAll(ocispec.Descriptor{Digest: config}, maxConfig)
		if ok, err := present(err); err != nil {
			return nil, nil, err
		} else if !ok {
			continue
		}
		if c, err := parseConfig(b); err == nil {
			layers = append(layers, c.RootFS.DiffIDs...)
		}
	}
	return all, layers, nil
}

// present sorts the errors of reading a blob: not there or damaged is an answer, anything else stops.
func present(err error) (bool, error) {
	switch {
	case err == nil:
		return true, nil
	case errdefs.Is(err, errdefs.NotFound), errdefs.Is(err, errdefs.Corrupt), errdefs.Is(err, errdefs.Exhausted):
		return false, nil
	}
	return false, err
}

// needed lists all that names, and leases of living processes other than own, rely on, and what of it they need as a blob.
// Precondition: the index lock is held.
func (s *Store) needed(own *lease) (need, blobs map[digest.Digest]bool, _ error) {
	need, _, _, err := s.leases(own)
	if err != nil {
		return nil, nil, err
	}
	blobs = maps.Clone(need) // a lease does not tell
	idx, err := s.readIndex()
	if err != nil {
		return nil, nil, err
	}
	trash, err := s.trashed()
	if err != nil {
		return nil, nil, err
	}
	seen := map[[3]digest.Digest]bool{}
	for _, e := range append(idx, trash...) {
		k := [3]digest.Digest{e.desc.Digest, e.target.Digest, e.id}
		if seen[k] {
			continue
		}
		seen[k] = true
		parts, layers, err := s.parts(e)
		if err != nil {
			return nil, nil, err
		}
		for _, d := range parts {
			need[d], blobs[d] = true, true
		}
		for _, d := range layers {
			need[d] = true
		}
	}
	for _, f := range s.also {
		more, err := f()
		if err != nil {
			return nil, nil, err
		}
		for _, d := range more {
			need[d], blobs[d] = true, true
		}
	}
	return need, blobs, nil
}

// collect removes those of the candidates that nothing needs, and returns the layers among them. Nobody sees a blob or
// a layer go whose lease was written before: both go under the index lock, the layers by rename. Only the deletion of
// their files comes after it.
func (s *Store) collect(ctx context.Context, candidates map[digest.Digest]bool, own *lease) (removed []digest.Digest, err error) {
	if len(candidates) == 0 {
		return nil, nil
	}
	l, err := s.lockIndex(ctx)
	if err != nil {
		return nil, err
	}
	defer l.release()
	need, blobs, err := s.needed(own)
	if err != nil {
		return nil, err
	}
	for d := range candidates {
		if need[d] {
			if !blobs[d] { // as a layer only: the plain tar that it came as, and was compressed since, is not
				if err := s.content.Delete(d); err != nil {
					return nil, err
				}
			}
			continue
		}
		if err := s.content.Delete(d); err != nil {
			return nil, err
		}
		if _, err := s.snapshots.Layer(d); !errdefs.Is(err, errdefs.NotFound) { // a damaged one goes, too
			removed = append(removed, d)
		}
	}
	slices.Sort(removed)
	empty, err := s.snapshots.TakeOut(removed)
	if err := ignoreMissing(os.Remove(s.indexPath() + ".new")); err != nil {
		return nil, err
	}
	if half, _ := filepath.Glob(s.trashPath("*.new")); len(half) > 0 {
		for _, p := range half {
			if err := ignoreMissing(os.Remove(p)); err != nil {
				return nil, err
			}
		}
	}
	l.release()
	return removed, errors.Join(err, empty())
}

// Sweep removes blobs and layers that no name needs and no running pull holds, and what dead processes left.
func (s *Store) Sweep(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("sweep the image store: %w", err)
		}
	}()
	dead, err := s.deadLeases(ctx)
	if err != nil {
		return err
	}
	now := time.Now()
	if err := s.EmptyTrash(ctx, func(t *Trash) bool { return !now.Before(t.Expires) }); err != nil {
		return err
	}
	if err := s.content.Sweep(ctx); err != nil {
		return err
	}
	if err := s.snapshots.Sweep(ctx); err != nil {
		return err
	}
	candidates := map[digest.Digest]bool{}
	if err := s.content.Walk(func(d digest.Digest, _ int64) error { candidates[d] = true; return nil }); err != nil {
		return err
	}
	layers, err := s.snapshots.Layers()
	if err != nil {
		return err
	}
	for _, l := range layers {
		candidates[l.DiffID] = true
	}
	if _, err = s.collect(ctx, candidates, nil); err != nil {
		return err
	}
	return dead.retire()
}
