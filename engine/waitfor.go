package engine

import (
	"context"
	"slices"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/runtime/monitor"
)

// WaitConditions are what WaitFor waits for: docker's (not-running, next-exit, removed) and podman's states.
func WaitConditions() []string {
	return []string{"not-running", "next-exit", "removed", "created", "running", "paused", "exited", "stopped"}
}

// WaitFor waits until a condition holds and returns the container's exit; a container that has not ended has the zero exit.
// next-exit waits for the end of a run that goes on now or begins later, and removed until there is no such container; the
// others hold at once if they are so. InvalidArgument for a condition that there is not.
func (e *Engine) WaitFor(ctx context.Context, idOrName, condition string) (*monitor.Exit, error) {
	if !slices.Contains(WaitConditions(), condition) {
		return nil, &errdefs.Error{Op: "wait for", What: condition, Kind: errdefs.InvalidArgument, Why: "there is no such condition"}
	}
	r, err := e.get(idOrName)
	if err != nil {
		return nil, err
	}
	id := r.ID // it may be renamed, or another get its name
	exit := func(r *record) *monitor.Exit {
		if r.Exit == nil || r.Status == Running {
			return &monitor.Exit{}
		}
		return r.Exit
	}
	switch condition {
	case "not-running":
		return e.Wait(ctx, id)
	case "removed":
		last, err := e.Wait(ctx, id)
		if err != nil && !errdefs.Is(err, errdefs.NotFound) {
			return nil, err
		}
		err = e.poll(ctx, id, func(r *record) bool { last = exit(r); return false })
		if errdefs.Is(err, errdefs.NotFound) {
			return last, nil
		}
		return nil, err
	case "next-exit":
		before := r.StartedAt
		ran := r.Status == Running
		if err := e.poll(ctx, id, func(r *record) bool { return ran || r.StartedAt.After(before) }); err != nil {
			return nil, err
		}
		return e.Wait(ctx, id)
	}
	var last *monitor.Exit
	err = e.poll(ctx, id, func(r *record) bool {
		last = exit(r)
		switch condition {
		case "running", "paused", "created":
			return string(r.State()) == condition
		}
		return r.Status == Exited
	})
	return last, err
}

// poll looks at a container until is says so: no monitor tells of these.
func (e *Engine) poll(ctx context.Context, id string, is func(*record) bool) error {
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		r, err := e.get(id)
		if err != nil {
			return err
		}
		if is(r) {
			return nil
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
