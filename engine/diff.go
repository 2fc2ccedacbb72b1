package engine

import (
	"context"
	"io"

	"github.com/onggi/onggi/archive"
)

// Changes returns what a container has otherwise than its image, as snapshot.Store.Changes does: sorted, with the files
// and directories left out that the runtime made to mount on. NotFound.
func (e *Engine) Changes(ctx context.Context, idOrName string) ([]archive.Change, error) {
	r, err := e.get(idOrName)
	if err != nil {
		return nil, err
	}
	s, err := e.snapshot()
	if err != nil {
		return nil, err
	}
	var out []archive.Change
	err = s.Changes(ctx, r.ID, func(c archive.Change) error {
		out = append(out, c)
		return nil
	})
	return out, err
}

// Diff writes what a container has otherwise than its image as a layer's tar; see snapshot.Store.Diff.
func (e *Engine) Diff(ctx context.Context, idOrName string, w io.Writer) (archive.Stats, error) {
	r, err := e.get(idOrName)
	if err != nil {
		return archive.Stats{}, err
	}
	s, err := e.snapshot()
	if err != nil {
		return archive.Stats{}, err
	}
	return s.Diff(ctx, r.ID, w)
}
