package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/image"
	"golang.org/x/sys/unix"
)

// Limits is how much of the disk the store may use. It is a file, limits.json, below the root.
type Limits struct {
	// Quota bounds the bytes of the root directory on disk that bringing something in may lead to; 0 is no bound. What
	// containers and volumes write is counted, and not stopped.
	Quota int64 `json:"quota,omitempty"`
	// Reserve is how many bytes of the file system are left free for the host. It counts when ReserveSet is true; the
	// default is 1 % of the file system, and at most 1 GiB.
	Reserve    int64 `json:"reserve,omitempty"`
	ReserveSet bool  `json:"reserveSet,omitempty"`
	// Trash is how long what was removed can be brought back; 24 hours when TrashSet is false. 0: not at all.
	Trash    time.Duration `json:"trash,omitempty"`
	TrashSet bool          `json:"trashSet,omitempty"`
	// KeepBlobs is what becomes of the blobs of layers that are unpacked; "" is image.KeepAuto.
	KeepBlobs image.Keep `json:"keepBlobs,omitempty"`
}

// keepBlobs is what is asked for with this command, or once and for all, or the default.
func (e *Engine) keepBlobs() image.Keep {
	if e.o.KeepBlobs != "" {
		return image.Keep(e.o.KeepBlobs)
	}
	if l, err := e.Limits(); err == nil && l.KeepBlobs != "" {
		return l.KeepBlobs
	}
	return image.KeepAuto
}

const (
	defaultTrash   = 24 * time.Hour
	defaultReserve = 1 << 30
)

func (e *Engine) limitsPath() string { return filepath.Join(e.o.Root, "limits.json") }

// Limits returns the limits with their defaults filled in.
func (e *Engine) Limits() (Limits, error) {
	var l Limits
	b, err := readBounded(e.limitsPath(), 1<<16)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return l, err
	default:
		if err := json.Unmarshal(b, &l); err != nil || l.Quota < 0 || l.Reserve < 0 || l.Trash < 0 || l.KeepBlobs != "" && l.KeepBlobs.Check() != nil {
			return l, &errdefs.Error{
				Op: "read", What: e.limitsPath(), Kind: errdefs.Corrupt, Err: err, Why: "it does not hold limits",
				Fix: "set them again: onggi system limits --quota SIZE --reserve SIZE --trash DURATION",
			}
		}
	}
	if !l.TrashSet {
		l.Trash = defaultTrash
	}
	if !l.ReserveSet {
		l.Reserve = defaultReserve
		var st unix.Statfs_t
		if err := unix.Statfs(e.o.Root, &st); err == nil {
			l.Reserve = min(l.Reserve, int64(st.Blocks)*st.Bsize/100)
		}
	}
	return l, nil
}

// SetLimits keeps the limits from now on.
func (e *Engine) SetLimits(l Limits) error {
	if err := e.make(); err != nil {
		return err
	}
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	lock, err := flockFile(e.imagesLockPath(), unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer lock.Close()
	return replaceFile(e.limitsPath(), b, true)
}

// guard is image.Guard.
type guard struct{ e *Engine }

// Room is NoSpace when the quota or the reserve would be broken by more bytes. Broken transfers are dropped and the trash is emptied before that is said.
func (g guard) Room(ctx context.Context, more int64) error {
	e := g.e
	if err := e.SweepTrash(ctx); err != nil {
		return err
	}
	err := e.fits(more)
	if !errdefs.Is(err, errdefs.NoSpace) {
		return err
	}
	// What is of no use but to save time goes first: transfers that were broken off. Those that run stay.
	c, cerr := e.Content()
	if cerr != nil {
		return cerr
	}
	if derr := c.DropPartials(ctx, 0); derr != nil {
		return derr
	}
	if err = e.fits(more); err == nil {
		return nil
	}
	list, lerr := e.Removals()
	if lerr != nil || len(list) == 0 {
		return err
	}
	for i := len(list) - 1; i >= 0; i-- { // the oldest first
		id := list[i].ID
		if err := e.EmptyTrash(ctx, func(r *Removal) bool { return r.ID == id }); err != nil {
			return err
		}
		if err = e.fits(more); err == nil {
			return nil
		}
	}
	return err
}

// Low is Room for what is just being written, without the quota, which costs a walk.
func (g guard) Low() error {
	l, err := g.e.Limits()
	if err != nil {
		return err
	}
	return g.e.spares(l, 0)
}

func (e *Engine) full(more int64, format string, args ...any) error {
	what := "what comes in"
	if more > 0 {
		what = fmt.Sprintf("another %d bytes", more)
	}
	return &errdefs.Error{
		Op: "keep", What: what + " in " + e.o.Root, Kind: errdefs.NoSpace, Why: fmt.Sprintf(format, args...),
		Fix: "see what takes the space (onggi system df -v), remove some (onggi system prune), or change the limits (onggi system limits)",
	}
}

// spares says whether the host's reserve is left.
func (e *Engine) spares(l Limits, more int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(e.o.Root, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: e.o.Root, Err: err}
	}
	if free := int64(st.Bavail) * st.Bsize; free-more < l.Reserve {
		return e.full(more, "%d bytes of the file system are free, and %d are reserved for the host", free, l.Reserve)
	}
	return nil
}

func (e *Engine) fits(more int64) error {
	l, err := e.Limits()
	if err != nil {
		return err
	}
	if err := e.spares(l, more); err != nil || l.Quota == 0 {
		return err
	}
	u, err := e.measure()
	if err != nil {
		return err
	}
	if used := u.total(); used+more > l.Quota {
		return e.full(more, "%d bytes are used, and the quota is %d", used, l.Quota)
	}
	return nil
}
