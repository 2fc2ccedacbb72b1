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

// A running build is a directory below BuildsDir that its process has flocked; its steps are containers with its id. What a
// killed build leaves is found by a directory that nobody has locked, and taken away by the next command that makes, starts
// or removes anything: a command that nobody waits for must not run on.

// BuildsDir is where running builds have their volatile directories.
func (e *Engine) BuildsDir() string { return filepath.Join(e.o.RunRoot, "build") }

// BuildGate waits until nobody else begins or sweeps builds, sweeps what dead ones left, and keeps others out until the file
// is closed: between the making of a build's directory and its lock.
func (e *Engine) BuildGate(ctx context.Context) (*os.File, error) {
	if err := os.MkdirAll(e.BuildsDir(), 0o700); err != nil {
		return nil, err
	}
	gate, err := os.Open(e.BuildsDir())
	if err != nil {
		return nil, err
	}
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		if err = unix.Flock(int(gate.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != unix.EWOULDBLOCK && err != unix.EINTR {
			break
		}
		select {
		case <-ctx.Done():
			_ = gate.Close()
			return nil, context.Cause(ctx)
		case <-time.After(pause):
		}
	}
	if err == nil {
		err = e.sweepAllBuilds(ctx)
	}
	if err != nil {
		_ = gate.Close()
		return nil, err
	}
	return gate, nil
}

// SweepBuilds takes away what builds left whose process is gone, unless somebody is at it or begins one. It reports whether
// there was any.
func (e *Engine) SweepBuilds(ctx context.Context) (found bool, err error) {
	gate, err := os.Open(e.BuildsDir())
	if err != nil {
		return false, ignoreMissing(err)
	}
	defer gate.Close()
	if unix.Flock(int(gate.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return false, nil
	}
	names, err := gate.Readdirnames(-1)
	if err != nil {
		return false, err
	}
	for _, b := range names {
		was, err := e.sweepBuild(ctx, b, nil)
		if found = found || was; err != nil {
			return found, err
		}
	}
	return found, nil
}

// sweepAllBuilds also finds what a reboot has left, which took the volatile directories. Precondition: the gate is held.
func (e *Engine) sweepAllBuilds(ctx context.Context) error {
	steps, err := e.Steps()
	if err != nil {
		return err
	}
	builds := map[string]bool{}
	for _, c := range steps {
		builds[c.Config.Build] = true
	}
	for _, d := range []string{e.BuildsDir(), filepath.Join(e.buildDir(), "tmp")} {
		es, err := os.ReadDir(d)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, x := range es {
			builds[x.Name()] = true
		}
	}
	for b := range builds {
		if _, err := e.sweepBuild(ctx, b, steps); err != nil {
			return err
		}
	}
	return nil
}

// sweepBuild takes away what a build left, if its process is gone, but for the failed step that is to stay. steps are those
// of all builds, nil when nobody has asked yet. Precondition: the gate is held.
func (e *Engine) sweepBuild(ctx context.Context, build string, steps []*Container) (was bool, err error) {
	dir := filepath.Join(e.BuildsDir(), build)
	d, err := os.Open(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if d != nil {
		defer d.Close()
		if unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
			return false, nil // it runs
		}
	}
	if steps == nil {
		if steps, err = e.Steps(); err != nil {
			return true, err
		}
	}
	kept := e.keptStep(build)
	for _, c := range steps {
		if c.Config.Build != build || c.ID == kept {
			continue
		}
		if err := e.Remove(ctx, c.ID, true, true); err != nil && !errdefs.Is(err, errdefs.NotFound) {
			return true, err
		}
	}
	// The directory goes last: by it the rest is found.
	return true, errors.Join(os.RemoveAll(filepath.Join(e.buildDir(), "tmp", build)), os.RemoveAll(dir))
}

// keptStep is the container of the build's failed step, if it is to stay.
func (e *Engine) keptStep(build string) string {
	h, err := e.BuildHistory()
	if err != nil {
		return ""
	}
	r, err := h.Get(build)
	if err != nil || r.ID != build || r.Kept == nil {
		return ""
	}
	return r.Kept.Container
}
