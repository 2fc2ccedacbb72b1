package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/onggi/onggi/build/cache"
	"github.com/onggi/onggi/build/graph"
	"github.com/onggi/onggi/build/history"
	"github.com/onggi/onggi/engine"
	"github.com/onggi/onggi/errdefs"
	digest "github.com/opencontainers/go-digest"
)

// Bounds of what is kept of failed steps.
const (
	keptFor = 24 * time.Hour
	maxKept = 3
)

// scene is what the step that failed was given, so that somebody can go there.
type scene struct {
	Vertex *graph.Vertex `json:"vertex"`
	Inputs []sceneInput  `json:"inputs"`
}

// sceneInput is a result as JSON.
type sceneInput struct {
	Layers []cache.Layer `json:"layers,omitempty"`
	Name   string        `json:"name"`
	Epoch  time.Time     `json:"epoch"`
}

// keep notes the step's container as kept, and says whether it is. A build keeps one.
func (o *execOp) keep(ctx context.Context, id string) bool {
	v, x := *o.v, *o.x
	x.Proxy = nil // a proxy's address often has a password in it
	v.Exec = &x
	sc := scene{Vertex: &v}
	for i, r := range o.in {
		if r.local != nil {
			mounted := slices.ContainsFunc(o.x.Mounts, func(m graph.Mount) bool { return m.Input == i })
			if !mounted {
				r = &scratch
			} else if l, err := o.s.ingest(ctx, r); err == nil {
				r = l
			} else {
				return false
			}
		}
		sc.Inputs = append(sc.Inputs, sceneInput{r.layers, r.name, r.epoch})
	}
	b, err := json.Marshal(sc)
	if err != nil {
		return false
	}
	kept := false
	j := o.s.journal
	j.set(func() {
		if kept = j.rec.Kept == nil; kept {
			j.rec.Kept = &history.Kept{Step: j.steps[o.v.ID].Number, Container: id, Scene: b}
		}
	})
	return kept
}

// Release removes the failed step that a build has kept, if it has.
func Release(ctx context.Context, e *engine.Engine, r *history.Record) error {
	if r.Kept == nil {
		return nil
	}
	if err := e.Remove(ctx, r.Kept.Container, true, true); err != nil && !errdefs.Is(err, errdefs.NotFound) {
		return err
	}
	h, err := e.BuildHistory()
	if err != nil {
		return err
	}
	return h.Release(r.ID)
}

// ReleaseAll removes the failed steps that builds have kept from before since, and all but the newest few.
func ReleaseAll(ctx context.Context, e *engine.Engine, since time.Time, most int) (n int, err error) {
	h, err := e.BuildHistory()
	if err != nil {
		return 0, err
	}
	kept, err := h.Kept()
	if err != nil {
		return 0, err
	}
	for i, r := range kept {
		if i < most && r.Started.After(since) {
			continue
		}
		if err := Release(ctx, e, r); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// Shell is a failed step made ready to be entered.
type Shell struct {
	Config  engine.Config // for engine.Run; its streams and its terminal are the caller's
	Step    string
	Command string // that failed
	s       *session
	undone  []func() error
}

// Debug makes the failed step of a build ready: its file system as the command left it, with the command's environment,
// user, directory, network and mounts. args replace the command's shell. What is changed in it is lost: the next Debug begins where
// the step has failed. Of o it needs Secrets, Agents, Allow and Progress; what the step had of them is needed again, for
// none of it is kept. NotFound when the build has kept nothing.
func Debug(ctx context.Context, e *engine.Engine, r *history.Record, o Options, args []string) (_ *Shell, err error) {
	if r.Kept == nil {
		why, fix := "none of its commands failed", "see: onggi build inspect "+r.ID
		if r.State == history.Failed {
			why, fix = "it did not fail in a RUN, or what it left was removed", "build it again; a failed step is kept for a day, or until builder prune"
		}
		return nil, &errdefs.Error{Op: "debug", What: "the build " + r.ID, Kind: errdefs.NotFound, Why: why, Fix: fix}
	}
	var sc scene
	if err := json.Unmarshal(r.Kept.Scene, &sc); err != nil || sc.Vertex == nil || sc.Vertex.Exec == nil {
		return nil, &errdefs.Error{Op: "read", What: "the build " + r.ID, Kind: errdefs.Corrupt, Why: "what is kept of its failed step cannot be read", Err: err}
	}
	s, err := openSession(ctx, e, o)
	if err != nil {
		return nil, err
	}
	sh := &Shell{Step: sc.Vertex.Name, s: s}
	defer func() {
		if err != nil {
			err = errors.Join(err, sh.Close(ctx))
		}
	}()
	var in []*result
	var held []digest.Digest
	for _, i := range sc.Inputs {
		in = append(in, &result{layers: i.Layers, name: i.Name, epoch: i.Epoch})
		for _, l := range i.Layers {
			held = append(held, l.DiffID, l.Blob.Digest)
		}
	}
	if err := s.hold.Add(ctx, held...); err != nil {
		return nil, err
	}
	if err := s.present(in); err != nil {
		return nil, err
	}
	op, err := s.newExec(ctx, sc.Vertex, in)
	if err != nil {
		return nil, err
	}
	// What the command left becomes a layer, so that everybody who comes here finds the same.
	left, err := s.commit(ctx, r.Kept.Container, time.Now().AddDate(1, 0, 0), op.standsOn().epoch)
	if errdefs.Is(err, errdefs.NotFound) {
		return nil, &errdefs.Error{Op: "debug", What: "the build " + r.ID, Kind: errdefs.NotFound, Why: "the file system of its failed step was removed", Fix: "build it again", Err: err}
	}
	if err != nil {
		return nil, err
	}
	base := op.standsOn().with(left)
	ec, undone, err := op.prepare(ctx, &base)
	sh.undone = undone
	if err != nil {
		return nil, err
	}
	sh.Command = strings.Join(ec.Args, " ")
	switch x := ec.Args; {
	case len(args) > 0:
		ec.Args = args
	case len(x) == 3 && x[1] == "-c": // the step's own shell
		ec.Args, sh.Command = x[:1], x[2]
	default:
		ec.Args = []string{"/bin/sh"}
	}
	sh.Config = ec
	return sh, nil
}

// present checks that the layers of trees are all there still.
func (s *session) present(in []*result) error {
	snap, err := s.e.Snapshots()
	if err != nil {
		return err
	}
	for _, r := range in {
		for _, l := range r.layers {
			if _, err := snap.Layer(l.DiffID); err != nil {
				return &errdefs.Error{
					Op: "use", What: r.name, Kind: errdefs.KindOf(err), Why: fmt.Sprintf("its layer %s is not there any more", l.DiffID.Encoded()[:12]), Err: err, Fix: "build it again",
				}
			}
		}
	}
	return nil
}

// Close removes all that Debug has made.
func (sh *Shell) Close(ctx context.Context) error {
	var errs []error
	for i := len(sh.undone) - 1; i >= 0; i-- {
		errs = append(errs, sh.undone[i]())
	}
	return errors.Join(append(errs, sh.s.close(context.WithoutCancel(ctx)))...)
}
