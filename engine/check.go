package engine

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/image"
	"github.com/opencontainers/go-digest"
)

// Check is image.Store.Check, and looks at the containers' records and writable layers as well. Layers that a container
// runs on are not replaced.
func (e *Engine) Check(ctx context.Context, o image.CheckOptions) (*image.Report, error) {
	r := &image.Report{}
	if !exists(e.versionPath()) {
		return r, nil
	}
	ids, err := e.ids()
	if err != nil {
		return nil, err
	}
	running := map[digest.Digest]bool{}
	var problems []image.Problem
	s, err := e.snapshot()
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		p := image.Problem{What: "container", Digest: id}
		rec, err := e.read(id)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue // being made or removed
		case errdefs.Is(err, errdefs.Corrupt):
			p.Why, p.Fix = err.Error(), errdefs.FixOf(err)
			problems = append(problems, p)
			continue
		case err != nil:
			return nil, err
		}
		e.effective(rec)
		if rec.Status == Running {
			running[rec.ImageID] = true
		}
		if rec.Status == Creating || rec.Status == Removing {
			continue
		}
		p.Images = []string{rec.Config.Name}
		if _, err := s.Mounts(id, false, false); err != nil {
			p.Why, p.Fix = err.Error(), "pull "+rec.Config.Image+" again; if its writable layer is gone, remove the container: onggi rm "+rec.Config.Name
			problems = append(problems, p)
		}
	}
	o.Busy = func(d digest.Digest) bool { return running[d] }
	if exists(filepath.Join(e.o.Root, "images")) {
		store, err := e.Images()
		if err != nil {
			return nil, err
		}
		if r, err = store.Check(ctx, o); err != nil {
			return nil, err
		}
	}
	r.Problems = append(r.Problems, problems...)
	return r, nil
}
