package engine

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/onggi/onggi/errdefs"
	"golang.org/x/sys/unix"
)

// Restart stops a container as Stop does and starts it again; one that does not run is only started. A container that is
// removed at its end (AutoRemove) stays over a restart. Several restarts of one container follow each other.
func (e *Engine) Restart(ctx context.Context, idOrName string, o StopOptions) (err error) {
	r, err := e.get(idOrName)
	if err != nil {
		return err
	}
	guard, err := e.beginRestart(ctx, r.ID)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return noSuch(idOrName)
		}
		return err
	}
	defer func() {
		_ = os.Remove(e.restartPath(r.ID)) // under its lock; its directory may be gone
		_ = guard.Close()
		if err != nil && r.Config.AutoRemove {
			// Whoever saw it end has left the removal to us.
			if rerr := e.Cleanup(context.WithoutCancel(ctx), r.ID); rerr != nil {
				err = errors.Join(err, rerr)
			}
		}
	}()
	if err := e.StopWith(ctx, r.ID, o); err != nil {
		return err
	}
	s, err := e.Start(ctx, r.ID, StartOptions{})
	if err != nil {
		if errdefs.Is(err, errdefs.Conflict) && e.again(r) == Running {
			return nil // somebody else has started it
		}
		return err
	}
	r.emit(e, "restart")
	return s.Client.Close()
}

// restartPath is a file whose lock is held while the container is being restarted.
func (e *Engine) restartPath(id string) string { return filepath.Join(e.stateDir(id), "restart") }

// beginRestart takes the lock of a container's restarts. fs.ErrNotExist when the container is gone.
func (e *Engine) beginRestart(ctx context.Context, id string) (*os.File, error) {
	for {
		f, err := os.OpenFile(e.restartPath(id), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && !gone(f) {
			return f, nil
		}
		_ = f.Close()
		if err != nil && err != unix.EWOULDBLOCK && err != unix.EINTR {
			return nil, err
		}
		select {
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// startedSinceBoot reports whether the container has been started before and the host not since.
func (h *held) startedSinceBoot() bool {
	if h.rec.StartedAt.IsZero() {
		return false
	}
	if h.e.isPassing(h.rec.ID) {
		return true // its record would not be here
	}
	var s unix.Sysinfo_t
	return unix.Sysinfo(&s) == nil && time.Since(h.rec.StartedAt) < time.Duration(s.Uptime)*time.Second
}

// restarting reports whether some process is restarting the container: it starts it again, or cleans up.
func (e *Engine) restarting(id string) bool {
	f, err := os.Open(e.restartPath(id))
	if err != nil {
		return false
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) == unix.EWOULDBLOCK
}
