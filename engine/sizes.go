package engine

import (
	"errors"
	"io/fs"
	"path/filepath"

	"github.com/onggi/onggi/pathrs"
	"golang.org/x/sys/unix"
)

// Size is what a container's files take, bytes.
type Size struct {
	Layer int64 // on disk, of what it has changed
	Total int64 // with the content of its image
}

// Size measures a container: its writable layer is walked.
func (e *Engine) Size(c *Container) (Size, error) {
	var s Size
	d, err := pathrs.OpenRoot(filepath.Join(e.snapshotsDir(), "containers", c.ID, "upper"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return s, err
	default:
		defer d.Close()
		l := &ledger{of: map[owner]int64{}, seen: map[[2]uint64]bool{}}
		if err := l.dir(d, ".", owner{"layer", ""}, true); err != nil {
			return s, err
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(d.Fd()), &st); err != nil {
			return s, err
		}
		s.Layer = l.total() - st.Blocks*512 // the directory itself is none of its files
	}
	s.Total = s.Layer
	store, err := e.Images()
	if err != nil {
		return s, err
	}
	if img, err := store.Get(c.ImageID.String()); err == nil { // it may have been removed by force
		s.Total += img.Size
	}
	return s, nil
}
