package build

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/onggi/onggi/build/cache"
	"github.com/onggi/onggi/build/frontend"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/image"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// The cache of another store: keys and the layers that they came to, as a manifest in a registry or a layout, or as a list in
// an image's configuration that names its layers (inline). What a key is made of stays here: who has the same parts has the
// same key (doc/decisions/34-own-cache-manifest.md).

// The names of an exported cache.
const (
	MediaTypeCache  = "application/vnd.onggi.cacheconfig.v1+json" // the configuration's type
	inlineCache     = "org.onggi.cache.v1"                        // the field of an image's configuration
	annotationLayer = "org.onggi.diffid"                          // of a layer in the manifest
)

// CacheTarget is where a build's cache goes, beside the store.
type CacheTarget struct {
	// Max says that the results of all steps go there, not only those that the image is made of.
	Max         bool
	Compression image.Compression
	// IgnoreError makes a failure a warning.
	IgnoreError bool
	// Name is for messages.
	Name string
	// Inline puts the keys into the image's configuration; else Write brings the artifact to its place.
	Inline bool
	Write  func(ctx context.Context, s *image.Store, h *image.Hold, a *image.Artifact) error
}

// CacheSource is where steps may have been performed before.
type CacheSource struct {
	Name string
	Read func(ctx context.Context, s *image.Store) ([]*image.Artifact, error)
}

// exchange is an exported cache.
type exchange struct {
	Version int            `json:"version"` // 1
	Records []exchangeStep `json:"records"`
}

// exchangeStep is a step; Layers are the positions of its outputs' own layers in the manifest.
type exchangeStep struct {
	Key     digest.Digest `json:"key"`
	Name    string        `json:"name,omitempty"`
	Layers  []int         `json:"layers"`
	Created time.Time     `json:"created,omitzero"`
}

// maxExchange bounds the steps of one exported cache.
const maxExchange = 100_000

// foreign is a step of another store's cache.
type foreign struct {
	from    *image.Artifact
	layers  []ocispec.Descriptor
	diffIDs []digest.Digest
	created time.Time
}

// importCaches reads what other caches have; one that cannot be read is a warning.
func (s *session) importCaches(ctx context.Context) error {
	s.foreign = map[digest.Digest]foreign{}
	for _, src := range s.o.CacheFrom {
		list, err := src.Read(ctx, s.images)
		for _, a := range list {
			if err == nil {
				err = s.importOne(a)
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			s.o.Progress.Warn(frontend.Warning{Text: fmt.Sprintf("the cache %s is not used: %v", src.Name, err)})
		}
	}
	return nil
}

func (s *session) importOne(a *image.Artifact) error {
	var x exchange
	diffIDs := make([]digest.Digest, len(a.Manifest.Layers))
	switch a.Manifest.Config.MediaType {
	case MediaTypeCache:
		if err := json.Unmarshal(a.Config, &x); err != nil {
			return err
		}
		for i, l := range a.Manifest.Layers {
			diffIDs[i] = digest.Digest(l.Annotations[annotationLayer])
		}
	case "application/vnd.buildkit.cacheconfig.v0":
		return &errdefs.Error{Kind: errdefs.Unsupported, Why: "BuildKit wrote it, whose keys are not of content"}
	default:
		var c struct {
			ocispec.Image
			Cache *exchange `json:"org.onggi.cache.v1"`
		}
		if err := json.Unmarshal(a.Config, &c); err != nil {
			return err
		}
		if c.Cache == nil {
			return &errdefs.Error{Kind: errdefs.NotFound, Why: "the image was built without --cache-to type=inline"}
		}
		if len(c.RootFS.DiffIDs) != len(diffIDs) {
			return &errdefs.Error{Kind: errdefs.Corrupt, Why: "its manifest and its configuration list different layers"}
		}
		x, diffIDs = *c.Cache, c.RootFS.DiffIDs
	}
	if x.Version != 1 || len(x.Records) > maxExchange {
		return &errdefs.Error{Kind: errdefs.Unsupported, Why: fmt.Sprintf("it is of version %d, with %d steps", x.Version, len(x.Records))}
	}
	for _, r := range x.Records {
		f := foreign{from: a, created: r.Created}
		for _, i := range r.Layers {
			if i < 0 || i >= len(diffIDs) || diffIDs[i].Validate() != nil {
				return &errdefs.Error{Kind: errdefs.Corrupt, Why: "a step names a layer that is not there"}
			}
			f.layers, f.diffIDs = append(f.layers, a.Manifest.Layers[i]), append(f.diffIDs, diffIDs[i])
		}
		if _, ok := s.foreign[r.Key]; !ok && r.Key.Validate() == nil && len(f.layers) > 0 {
			s.foreign[r.Key] = f
		}
	}
	return nil
}

// bring takes a step over from another cache, if one has it: its layers come in, and it is recorded here with the parts that
// we know. What cannot be brought is performed. Precondition: the key's lock is held.
func (s *session) bring(ctx context.Context, rec cache.Record, o operation) (bool, error) {
	f, ok := s.foreign[rec.Key]
	if !ok || len(f.layers) != o.outputs() {
		return false, nil
	}
	for i, d := range f.layers {
		d.Annotations = nil
		l, err := s.images.BringLayer(ctx, s.hold, f.from, d, f.diffIDs[i])
		if err != nil {
			if ctx.Err() != nil || errdefs.Is(err, errdefs.NoSpace) {
				return false, err
			}
			s.o.Progress.Warn(frontend.Warning{Text: fmt.Sprintf("%s is performed again: its layer cannot be had: %v", rec.Name, err)})
			return false, nil
		}
		own := cache.Layer{DiffID: f.diffIDs[i], Blob: d, Size: l.Size}
		rec.Outputs = append(rec.Outputs, o.output(i, own).layers)
	}
	rec.Created, rec.Own = f.created, 1
	return true, s.cache.Put(&rec)
}

// used remembers that the build needed a step.
func (s *session) used(rec *cache.Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.needed == nil {
		s.needed = map[digest.Digest]*cache.Record{}
	}
	s.needed[rec.Key] = rec
}

// steps lists the build's steps, by key, so that the same build gives the same list; without max those whose layers are
// among the given.
func (s *session) steps(max bool, of map[digest.Digest]bool) []*cache.Record {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*cache.Record
	for _, r := range s.needed {
		all := true
		for _, o := range r.Outputs {
			all = all && len(o) > 0 && (max || of[o[len(o)-1].DiffID])
		}
		if all {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b *cache.Record) int { return strings.Compare(string(a.Key), string(b.Key)) })
	return out
}

// inline is the list of steps for an image's configuration.
func (s *session) inline(r *result) *exchange {
	if !slices.ContainsFunc(s.o.CacheTo, func(t CacheTarget) bool { return t.Inline }) {
		return nil
	}
	at, of := map[digest.Digest]int{}, map[digest.Digest]bool{}
	for i, l := range r.layers {
		at[l.DiffID], of[l.DiffID] = i, true
	}
	x := &exchange{Version: 1, Records: []exchangeStep{}}
	for _, rec := range s.steps(false, of) {
		st := exchangeStep{Key: rec.Key}
		for _, o := range rec.Outputs {
			st.Layers = append(st.Layers, at[o[len(o)-1].DiffID])
		}
		x.Records = append(x.Records, st)
	}
	return x
}

// exportCaches brings the build's cache to where it is to go.
func (s *session) exportCaches(ctx context.Context, b *built) error {
	of := map[digest.Digest]bool{}
	for _, p := range b.parts {
		for _, l := range p.result.layers {
			of[l.DiffID] = true
		}
	}
	for _, t := range s.o.CacheTo {
		if t.Inline {
			continue
		}
		if err := s.exportCache(ctx, t, of); err != nil {
			err = &errdefs.Error{Op: "export", What: "the cache to " + t.Name, Kind: errdefs.KindOf(err), Fix: errdefs.FixOf(err), Err: err}
			if !t.IgnoreError || ctx.Err() != nil {
				return err
			}
			s.o.Progress.Warn(frontend.Warning{Text: err.Error()})
		}
	}
	return nil
}

func (s *session) exportCache(ctx context.Context, t CacheTarget, of map[digest.Digest]bool) error {
	at := map[digest.Digest]int{}
	var layers []ocispec.Descriptor
	x := exchange{Version: 1, Records: []exchangeStep{}}
	for _, rec := range s.steps(t.Max, of) {
		st := exchangeStep{Key: rec.Key, Name: rec.Name, Created: rec.Created.UTC().Truncate(time.Second)}
		for _, o := range rec.Outputs {
			own := o[len(o)-1]
			i, ok := at[own.DiffID]
			if !ok {
				d, err := s.images.Compress(ctx, s.hold, own.Blob, own.DiffID, t.Compression)
				if err != nil {
					return err
				}
				d.Annotations = map[string]string{annotationLayer: string(own.DiffID)}
				i = len(layers)
				at[own.DiffID], layers = i, append(layers, d)
			}
			st.Layers = append(st.Layers, i)
		}
		x.Records = append(x.Records, st)
	}
	config, err := json.Marshal(x)
	if err != nil {
		return err
	}
	a, err := s.images.NewArtifact(ctx, s.hold, MediaTypeCache, config, layers)
	if err != nil {
		return err
	}
	return t.Write(ctx, s.images, s.hold, a)
}
