package engine

import (
	"context"
	"io"

	"github.com/onggi/onggi/errdefs"
)

// Export writes a container's root file system as a tar archive: its image with what it has changed, without volumes and
// what else is mounted. It may run meanwhile; what it writes then may be in the archive by half. Errors: NotFound, those of
// w.
func (e *Engine) Export(ctx context.Context, idOrName string, w io.Writer) error {
	r, err := e.get(idOrName)
	if err != nil {
		return err
	}
	s, err := e.snapshot()
	if err != nil {
		return err
	}
	if err := s.Export(ctx, r.ID, w); err != nil {
		return &errdefs.Error{Op: "export", What: idOrName, Kind: errdefs.KindOf(err), Fix: errdefs.FixOf(err), Err: err}
	}
	r.emit(e, "export")
	return nil
}
