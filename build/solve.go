package build

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/onggi/onggi/build/cache"
	"github.com/onggi/onggi/build/graph"
	"github.com/onggi/onggi/build/history"
	"github.com/onggi/onggi/build/tree"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/undo"
	digest "github.com/opencontainers/go-digest"
)

func processors() int { return runtime.NumCPU() }

// result is a tree: a list of layers, bottom first, or a user's directory.
type result struct {
	layers []cache.Layer
	local  *tree.View
	name   string // what a person calls it: "debian:12", "the build context"
	// epoch is the time that what is new on this tree gets: that of the base image, or what the user set.
	epoch time.Time
	// image is the reference and digest of a base image with nothing on it.
	image string
}

// scratch is the empty tree. Its epoch is the first that zip files can hold.
var scratch = result{name: "scratch", epoch: time.Unix(315532800, 0)}

// id identifies the tree.
func (r *result) id() string {
	h := digest.SHA256.Digester()
	for _, l := range r.layers {
		fmt.Fprintln(h.Hash(), l.DiffID)
	}
	return h.Digest().String()
}

// with returns the tree with one more layer.
func (r *result) with(own cache.Layer) result {
	out := *r
	out.layers, out.image = append(r.layers[:len(r.layers):len(r.layers)], own), ""
	return out
}

// future is a vertex that is being solved, once.
type future struct {
	done chan struct{}
	out  []result
	err  error
}

// solve returns the graph's result.
func (s *session) solve(ctx context.Context, g *graph.Graph) (*result, error) {
	if g.Output == nil {
		r := s.empty()
		return &r, nil
	}
	vs := make(map[digest.Digest]*graph.Vertex, len(g.Vertices))
	for _, v := range g.Vertices {
		vs[v.ID] = v
	}
	return s.edge(ctx, g, vs, *g.Output)
}

func (s *session) edge(ctx context.Context, g *graph.Graph, vs map[digest.Digest]*graph.Vertex, e graph.Edge) (*result, error) {
	out, err := s.vertex(ctx, g, vs, vs[e.Vertex])
	if err != nil {
		return nil, err
	}
	if e.Output >= len(out) {
		return nil, &errdefs.Error{Op: "build", What: vs[e.Vertex].Name, Kind: errdefs.Internal, Why: fmt.Sprintf("it has no output %d", e.Output)}
	}
	return &out[e.Output], nil
}

// vertex solves a vertex, or waits for who does.
func (s *session) vertex(ctx context.Context, g *graph.Graph, vs map[digest.Digest]*graph.Vertex, v *graph.Vertex) ([]result, error) {
	s.mu.Lock()
	f := s.futures[v.ID]
	if f == nil {
		f = &future{done: make(chan struct{})}
		s.futures[v.ID] = f
		s.mu.Unlock()
		f.out, f.err = s.perform(ctx, g, vs, v)
		close(f.done)
		return f.out, f.err
	}
	s.mu.Unlock()
	select {
	case <-f.done:
		return f.out, f.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// inputs solves all inputs side by side.
func (s *session) inputs(ctx context.Context, g *graph.Graph, vs map[digest.Digest]*graph.Vertex, v *graph.Vertex) ([]*result, error) {
	in := make([]*result, len(v.Inputs))
	errs := make([]error, len(v.Inputs))
	var wg sync.WaitGroup
	for i, e := range v.Inputs {
		wg.Go(func() { in[i], errs[i] = s.edge(ctx, g, vs, e) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return in, nil
}

// perform solves a vertex: from the cache if its key is there.
func (s *session) perform(ctx context.Context, g *graph.Graph, vs map[digest.Digest]*graph.Vertex, v *graph.Vertex) (_ []result, err error) {
	in, err := s.inputs(ctx, g, vs, v)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	if v.Merge != nil || v.Diff != nil {
		r, err := s.combine(v, in)
		return []result{r}, err
	}
	begin, h := time.Now(), s.journal.step(g, vs, v)
	step := Step{Vertex: v.ID, Name: v.Name, Group: v.Group}
	tell := func(st State) {
		step.State, step.Took = st, time.Since(begin)
		s.journal.tell(h, step)
	}
	defer func() {
		if err == nil {
			return
		}
		var f *Failure
		if !errors.As(err, &f) {
			f = &Failure{Vertex: v, Err: err}
			err = f
		}
		if f.Vertex == v {
			f.Sources, f.Step = g.Sources, h.Number
		}
		step.Err = err
		if ctx.Err() != nil {
			tell(Canceled)
			return
		}
		tell(Failed)
	}()
	if v.Source != nil && (v.Source.Scheme == graph.Image || v.Source.Scheme == graph.Local || v.Source.Scheme == graph.OCILayout) {
		tell(Started)
		r, err := s.source(ctx, v)
		if err == nil {
			s.journal.set(func() { h.Source = cmp(r.image, r.name) })
			tell(Done)
		}
		return []result{r}, err
	}

	o, err := s.operation(ctx, v, in)
	if err != nil {
		return nil, err
	}
	parts, err := o.parts(ctx)
	if err != nil {
		return nil, err
	}
	key := cache.Key(parts)
	slot, place := slotOf(g, v)
	run := &history.Run{Key: key, Slot: slot, Place: place, Name: v.Name, Build: s.id, At: begin, Base: o.standsOn().image, Parts: parts}
	s.journal.set(func() { h.Key, h.Slot = key, slot })
	fresh := s.o.NoCache || v.IgnoreCache
	hit := func() ([]result, bool, error) {
		if fresh {
			return nil, false, nil
		}
		out, ok, err := s.cached(ctx, key, o)
		if err != nil || !ok {
			return nil, false, err
		}
		if err := s.journal.store.Seen(run); err != nil {
			return nil, false, err
		}
		tell(Cached)
		return out, true, nil
	}
	if out, ok, err := hit(); err != nil || ok {
		return out, err
	}
	lock, err := s.cache.Lock(ctx, key)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if out, ok, err := hit(); err != nil || ok { // somebody else has performed it meanwhile
		return out, err
	}
	if !fresh {
		ok, err := s.bring(ctx, cache.Record{Key: key, Slot: slot, Name: v.Name, Parts: parts}, o)
		if err != nil {
			return nil, err
		}
		if ok {
			if out, ok, err := hit(); err != nil || ok {
				return out, err
			}
		}
	}
	why := s.journal.explain(run, fresh)
	s.journal.set(func() { h.Why = why })
	select {
	case s.turns <- struct{}{}:
		defer func() { <-s.turns }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	begin = time.Now()
	s.journal.set(func() { h.Began = begin.Sub(s.journal.born) })
	tell(Started)
	print, flush := s.journal.print(h, s.mask)
	var own []cache.Layer
	err = undo.New("build.step").Do("perform", func() (err error) { own, err = o.run(ctx, print); return err }, nil)
	flush()
	run.At = begin
	if err != nil {
		if run.Failed = true; ctx.Err() == nil {
			err = errors.Join(err, s.journal.store.Seen(run))
		}
		return nil, err
	}
	rec := &cache.Record{Key: key, Slot: slot, Name: v.Name, Parts: parts, Created: begin, Took: time.Since(begin), Own: 1}
	out := make([]result, len(own))
	var size int64
	for i, l := range own {
		out[i] = o.output(i, l)
		rec.Outputs = append(rec.Outputs, out[i].layers)
		size += l.Size
	}
	if err := undo.New("build.step").Do("record", func() error { return s.cache.Put(rec) }, nil); err != nil {
		return nil, err
	}
	s.used(rec)
	if err := s.journal.store.Seen(run); err != nil {
		return nil, err
	}
	s.journal.set(func() { h.Size = size })
	tell(Done)
	return out, nil
}

// combine is a merge or a difference: lists of layers, nothing to perform.
func (s *session) combine(v *graph.Vertex, in []*result) (result, error) {
	if v.Diff != nil {
		return difference(s.pick(in, v.Diff.Lower), s.pick(in, v.Diff.Upper))
	}
	r := s.empty()
	for i, x := range in {
		if x.local != nil {
			return r, unsupported("a merge with a directory of the user")
		}
		r.layers = append(r.layers, x.layers...)
		if i == 0 {
			r.name, r.epoch = x.name, x.epoch
		}
	}
	return r, nil
}

// slotOf names the stage of a vertex in its text, over versions of it, and its number in the stage: of
// "[build 3/5] RUN make", "Dockerfile [build" and "3".
func slotOf(g *graph.Graph, v *graph.Vertex) (slot, place string) {
	if len(v.Locations) > 0 {
		slot = g.Sources[v.Locations[0].Text].Name
	}
	head, _, ok := strings.Cut(v.Name, "]")
	if !ok || !strings.HasPrefix(head, "[") {
		return slot + " " + v.Name, ""
	}
	head, _, _ = strings.Cut(head, "/") // how many there are does not matter
	if i := strings.LastIndexAny(head, " ["); i >= 0 {
		return slot + " " + head[:i], head[i+1:]
	}
	return slot + " " + head, ""
}

// operation is a vertex that is performed on layers and makes layers.
type operation interface {
	// parts is everything that the result depends on.
	parts(ctx context.Context) ([]cache.Part, error)
	// run performs it; for each output it returns the layer that is new on the output's base.
	run(ctx context.Context, print func([]byte)) ([]cache.Layer, error)
	// output is the tree of output i, given its own layer.
	output(i int, own cache.Layer) result
	outputs() int
	// standsOn is the tree below what it makes.
	standsOn() *result
}

func (s *session) operation(ctx context.Context, v *graph.Vertex, in []*result) (operation, error) {
	switch {
	case v.Exec != nil:
		return s.newExec(ctx, v, in)
	case v.File != nil:
		return s.newFileOp(v, in)
	case v.Source.Scheme == graph.Git:
		return s.newGit(v)
	}
	return &fetchOp{s: s, v: v}, nil
}

// cached returns the results that the cache has, if their layers are there. They are held from now on.
func (s *session) cached(ctx context.Context, key digest.Digest, o operation) ([]result, bool, error) {
	rec, err := s.cache.Get(key)
	if errdefs.Is(err, errdefs.NotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	if len(rec.Outputs) != o.outputs() {
		return nil, false, nil
	}
	snap, err := s.e.Snapshots()
	if err != nil {
		return nil, false, err
	}
	var out []result
	for i, layers := range rec.Outputs {
		if len(layers) == 0 {
			return nil, false, nil
		}
		own := layers[len(layers)-1]
		if err := s.hold.Add(ctx, own.DiffID, own.Blob.Digest); err != nil {
			return nil, false, err
		}
		if _, err := snap.Layer(own.DiffID); err != nil {
			if errdefs.Is(err, errdefs.NotFound) {
				return nil, false, nil
			}
			return nil, false, err
		}
		out = append(out, o.output(i, own))
	}
	s.used(rec)
	return out, true, nil
}

// pick is an input, or for -1 the empty tree.
func (s *session) pick(in []*result, i int) *result {
	if i < 0 {
		r := s.empty()
		return &r
	}
	return in[i]
}

func (s *session) empty() result {
	r := scratch
	if s.epoch != nil {
		r.epoch = *s.epoch
	}
	return r
}

// difference is what upper has on top of lower. The Dockerfile frontend asks only for trees that stand on each other.
func difference(lower, upper *result) (result, error) {
	r := scratch
	if lower.local != nil || upper.local != nil || len(lower.layers) > len(upper.layers) {
		return r, unsupported("the difference of trees that do not stand on each other")
	}
	for i, l := range lower.layers {
		if upper.layers[i].DiffID != l.DiffID {
			return r, unsupported("the difference of trees that do not stand on each other")
		}
	}
	r.layers, r.epoch = upper.layers[len(lower.layers):], upper.epoch
	return r, nil
}

func unsupported(what string) error {
	return &errdefs.Error{Op: "build", What: what, Kind: errdefs.Unsupported, Why: "the builder does not do this"}
}
