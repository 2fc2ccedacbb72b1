package engine

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/onggi/onggi/build/cache"
	"github.com/onggi/onggi/build/history"
	"github.com/onggi/onggi/content"
	"github.com/onggi/onggi/mount"
	"github.com/onggi/onggi/snapshot"
	digest "github.com/opencontainers/go-digest"
)

// A step of a build is a container that stands on layers instead of an image (Config.Build, Config.Stack): it is recorded,
// limited, swept and removed as any other, but not listed.
//
//	Create, OpenTree, Diff, Remove     files are copied
//	Run, Finish, Diff, Remove          a command is run

// Steps returns the containers of builds, of whichever process.
func (e *Engine) Steps() ([]*Container, error) {
	return e.list(func(r *record) bool { return r.Config.Build != "" })
}

// OpenTree opens a container's root file system for writing, mounted where nobody sees it; it ends with the handle. The
// container does not run meanwhile: that is the caller's care.
func (e *Engine) OpenTree(id string) (*os.File, error) {
	c, err := e.Get(id)
	if err != nil {
		return nil, err
	}
	s, err := e.snapshot()
	if err != nil {
		return nil, err
	}
	stack, err := s.Mounts(c.ID, false, true)
	if err != nil {
		return nil, err
	}
	return mount.Tree(stack[0])
}

// Snapshots returns the store of layers.
func (e *Engine) Snapshots() (*snapshot.Store, error) { return e.snapshot() }

// Content returns the store of blobs.
func (e *Engine) Content() (*content.Store, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.contentLocked()
}

// Roots returns the durable and the volatile root directory.
func (e *Engine) Roots() (root, run string) { return e.o.Root, e.o.RunRoot }

// BuildCache opens the store of what build steps came to.
func (e *Engine) BuildCache() (*cache.Store, error) {
	if err := e.make(); err != nil {
		return nil, err
	}
	return cache.Open(e.buildDir())
}

// BuildHistory opens the store of what builds did.
func (e *Engine) BuildHistory() (*history.Store, error) {
	if err := e.make(); err != nil {
		return nil, err
	}
	return history.Open(filepath.Join(e.buildDir(), "history"))
}

func (e *Engine) buildDir() string { return filepath.Join(e.o.Root, "build") }

// builtLayers lists what the build cache needs of layers and blobs.
func (e *Engine) builtLayers() ([]digest.Digest, error) {
	if _, err := os.Stat(e.buildDir()); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	c, err := cache.Open(e.buildDir())
	if err != nil {
		return nil, err
	}
	diffIDs, blobs, err := c.Roots()
	return append(diffIDs, blobs...), err
}

// PruneBuilds forgets the build steps that were not used for longest, but for those used after since, until what only the
// build cache needs takes at most limit bytes, and removes their layers. With mounts the directories of cache mounts that no
// build uses now go, too. It returns the steps, and the bytes that came free.
func (e *Engine) PruneBuilds(ctx context.Context, limit int64, since time.Time, mounts bool) ([]*cache.Record, int64, error) {
	before, err := e.Usage(ctx)
	if err != nil || before.Build == 0 {
		return nil, 0, err
	}
	c, err := e.BuildCache()
	if err != nil {
		return nil, 0, err
	}
	images, err := e.Images()
	if err != nil {
		return nil, 0, err
	}
	needs, trash, err := images.Needs(ctx)
	if err != nil {
		return nil, 0, err
	}
	others := map[digest.Digest]bool{}
	for _, refs := range needs {
		for _, d := range refs {
			others[d] = true
		}
	}
	for _, refs := range trash {
		for _, d := range refs {
			others[d] = true
		}
	}
	gone, err := c.Prune(limit, since, func(d digest.Digest) bool { return others[d] })
	if err != nil {
		return gone, 0, err
	}
	if len(gone) > 0 || limit <= 0 {
		if err := c.Forget(); err != nil {
			return gone, 0, err
		}
	}
	if mounts {
		if err := c.PruneMounts(); err != nil {
			return gone, 0, err
		}
	}
	if err := images.Sweep(ctx); err != nil {
		return gone, 0, err
	}
	after, err := e.Usage(ctx)
	if err != nil {
		return gone, 0, err
	}
	return gone, max(0, before.Build-after.Build), nil
}
