package build

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/onggi/onggi/build/frontend"
	"github.com/onggi/onggi/build/graph"
	"github.com/onggi/onggi/engine"
	digest "github.com/opencontainers/go-digest"
)

// place is a store and a build context.
type place struct {
	t       *testing.T
	e       *engine.Engine
	context string
}

func newPlace(t *testing.T) *place {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("layers need root")
	}
	dir, err := os.MkdirTemp("/var/tmp", "onggi-test.")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	p := &place{t: t, context: filepath.Join(dir, "context")}
	if err := os.Mkdir(p.context, 0o755); err != nil {
		t.Fatal(err)
	}
	if p.e, err = engine.Open(engine.Options{Root: filepath.Join(dir, "root"), RunRoot: filepath.Join(dir, "run"), Self: []string{"/bin/false"}}); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *place) write(name, data string) {
	p.t.Helper()
	if err := os.WriteFile(filepath.Join(p.context, name), []byte(data), 0o644); err != nil {
		p.t.Fatal(err)
	}
}

// record is a Progress that remembers who was performed and who hit.
type record struct {
	mu  sync.Mutex
	did map[string]State
}

func (r *record) Step(s Step) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.Name != "" && (s.State == Done || s.State == Cached) {
		r.did[s.Name] = s.State
	}
}
func (r *record) Output(digest.Digest, []byte) {}
func (r *record) Warn(frontend.Warning)        {}

// solve builds the graph and returns who was performed, sorted, and the tree's identity.
func (p *place) solve(g *graph.Graph) (performed []string, id string) {
	p.t.Helper()
	ctx := context.Background()
	r := &record{did: map[string]State{}}
	s, err := openSession(ctx, p.e, Options{Locals: map[string]string{"context": p.context}, Progress: r})
	if err == nil {
		err = s.begin()
	}
	if err != nil {
		p.t.Fatal(err)
	}
	out, err := s.solve(ctx, g)
	if err != nil {
		p.t.Fatal(err)
	}
	id = out.id()
	if err := s.journal.end(ctx, nil, nil); err != nil {
		p.t.Error(err)
	}
	if err := s.close(ctx); err != nil {
		p.t.Error(err)
	}
	for n, st := range r.did {
		if st == Done {
			performed = append(performed, n)
		}
	}
	slices.Sort(performed)
	return performed, id
}

// vertex finishes a vertex: its id is the digest of what it is.
func vertex(v *graph.Vertex) *graph.Vertex {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	v.ID = digest.FromBytes(b)
	return v
}

// plan is a random graph: vertex i stands on base[i], copies file[i] of the context, and what from[i] has made.
type plan struct{ base, file, from []int }

func random(r *rand.Rand, n, files int) plan {
	p := plan{}
	for i := range n {
		p.base = append(p.base, r.IntN(i+1)-1)
		p.from = append(p.from, r.IntN(i+1)-1)
		p.file = append(p.file, r.IntN(files))
	}
	return p
}

func copying(src, dest string) *graph.Copy {
	return &graph.Copy{Src: src, Dest: dest, Mode: -1, Timestamp: -1, DirContents: true, CreateDestPath: true, FollowSymlink: true}
}

func (p plan) graph() *graph.Graph {
	local := vertex(&graph.Vertex{Source: &graph.Source{Scheme: graph.Local, Ref: "context"}})
	g := &graph.Graph{Vertices: []*graph.Vertex{local}}
	var made []*graph.Vertex
	all := &graph.Vertex{Merge: &graph.Merge{}}
	for i := range p.base {
		v := &graph.Vertex{Name: fmt.Sprintf("v%02d", i), Inputs: []graph.Edge{{Vertex: local.ID}}, File: &graph.File{}}
		input := func(j int) int {
			if j < 0 {
				return -1
			}
			v.Inputs = append(v.Inputs, graph.Edge{Vertex: made[j].ID})
			return len(v.Inputs) - 1
		}
		base, from := input(p.base[i]), input(p.from[i])
		mine := fmt.Sprintf("/v%d", i)
		v.File.Actions = []graph.Action{{Input: base, Secondary: 0, Copy: copying(fmt.Sprintf("/f%d", p.file[i]), mine+"/file")}}
		if from >= 0 {
			v.File.Actions = append(v.File.Actions, graph.Action{Input: len(v.Inputs), Secondary: from, Copy: copying(fmt.Sprintf("/v%d", p.from[i]), mine+"/from")})
		}
		last := len(v.File.Actions) - 1
		for n := range v.File.Actions {
			v.File.Actions[n].Output = -1
		}
		v.File.Actions[last].Output = 0
		made = append(made, vertex(v))
		all.Inputs = append(all.Inputs, graph.Edge{Vertex: v.ID})
	}
	g.Vertices = append(append(g.Vertices, made...), vertex(all))
	g.Output = &graph.Edge{Vertex: all.ID}
	return g
}

// model says what must be performed: the steps of whom these inputs were never seen.
type model struct{ seen map[string]bool }

func (m *model) build(p plan, files []string) (performed []string) {
	var content, tree []string // what a vertex makes; all that is in its tree
	for i := range p.base {
		c := files[p.file[i]]
		if j := p.from[i]; j >= 0 {
			c += "(" + content[j] + ")"
		}
		below := ""
		if j := p.base[i]; j >= 0 {
			below = tree[j]
		}
		key := fmt.Sprintf("%d %d %d %d: %s on %s", i, p.base[i], p.from[i], p.file[i], c, below)
		if !m.seen[key] {
			m.seen[key] = true
			performed = append(performed, fmt.Sprintf("v%02d", i))
		}
		content, tree = append(content, c), append(tree, fmt.Sprintf("%s/v%d=%s", below, i, c))
	}
	return performed
}

// TestExactlyWhatDependsOnTheEditRunsAgain: for random graphs and random edits, edits taken back among them, what is
// performed is what the model says, no more and no less.
func TestExactlyWhatDependsOnTheEditRunsAgain(t *testing.T) {
	for seed := range uint64(4) {
		r := rand.New(rand.NewPCG(seed, 1))
		p, m := newPlace(t), &model{seen: map[string]bool{}}
		const files = 4
		g := random(r, 9, files)
		state := make([]string, files)
		for i := range state {
			state[i] = "0"
			p.write(fmt.Sprintf("f%d", i), "0")
		}
		p.write("unrelated", "x")
		for round := range 6 {
			got, _ := p.solve(g.graph())
			if want := m.build(g, state); !slices.Equal(got, want) {
				t.Fatalf("seed %d, round %d, files %v, graph %+v:\ngot  %v\nwant %v", seed, round, state, g, got, want)
			}
			i := r.IntN(files)
			state[i] = fmt.Sprint(r.IntN(3))
			p.write(fmt.Sprintf("f%d", i), state[i])
			p.write("unrelated", fmt.Sprint(round))
		}
	}
}

// TestTheSameFromTwoStores: the same inputs give the same layers in another store, and with other times.
func TestTheSameFromTwoStores(t *testing.T) {
	var ids []string
	for n := range 2 {
		p := newPlace(t)
		for i := range 3 {
			name := fmt.Sprintf("f%d", i)
			p.write(name, strings.Repeat("x", i))
			at := time.Unix(int64(1e9*(n+1)), 0)
			if err := os.Chtimes(filepath.Join(p.context, name), at, at); err != nil {
				t.Fatal(err)
			}
		}
		_, id := p.solve(random(rand.New(rand.NewPCG(7, 7)), 6, 3).graph())
		ids = append(ids, id)
	}
	if ids[0] != ids[1] {
		t.Errorf("two stores came to %s and %s", ids[0], ids[1])
	}
}

// TestBuildsAtOnce: several builds of one graph perform each step once.
func TestBuildsAtOnce(t *testing.T) {
	p := newPlace(t)
	for i := range 3 {
		p.write(fmt.Sprintf("f%d", i), "x")
	}
	g := random(rand.New(rand.NewPCG(3, 3)), 8, 3)
	var mu sync.Mutex
	var all, ids []string
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			did, id := p.solve(g.graph())
			mu.Lock()
			defer mu.Unlock()
			all, ids = append(all, did...), append(ids, id)
		})
	}
	wg.Wait()
	if len(all) != 8 || ids[0] != ids[1] || ids[1] != ids[2] {
		t.Errorf("%d steps were performed: %v, results %v", len(all), all, ids)
	}
	steps, err := p.e.Steps()
	if err != nil || len(steps) != 0 {
		t.Errorf("left: %v, %v", steps, err)
	}
}
