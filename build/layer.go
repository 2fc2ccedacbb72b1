package build

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/onggi/onggi/build/cache"
	"github.com/onggi/onggi/build/tree"
	"github.com/onggi/onggi/engine"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/spec"
	"github.com/onggi/onggi/undo"
	digest "github.com/opencontainers/go-digest"
)

// container makes a step's container on a tree, with nothing running in it.
func (s *session) container(ctx context.Context, r *result) (string, error) {
	c, err := s.e.Create(ctx, s.config(r, spec.Config{Args: []string{"-"}, Network: "none"}), nil)
	if err != nil {
		return "", err
	}
	return c.ID, nil
}

func (s *session) config(r *result, c spec.Config) engine.Config {
	cfg := engine.Config{Config: c, Build: s.id, Image: r.name, Stack: []digest.Digest{}}
	cfg.Log.Driver = "none"
	for _, l := range r.layers {
		cfg.Stack = append(cfg.Stack, l.DiffID)
	}
	return cfg
}

// remove removes a step's container.
func (s *session) remove(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if err := s.e.Remove(ctx, id, true, true); err != nil && !errdefs.Is(err, errdefs.NotFound) {
		return err
	}
	return nil
}

// view opens a tree for reading. It stays open until the build ends.
func (s *session) view(ctx context.Context, r *result) (*tree.View, error) {
	if r.local != nil {
		return r.local, nil
	}
	id, err := s.container(ctx, r)
	if err != nil {
		return nil, err
	}
	root, err := s.e.OpenTree(id)
	if err != nil {
		return nil, errors.Join(err, s.remove(ctx, id))
	}
	s.later(func() error { return errors.Join(root.Close(), s.remove(ctx, id)) })
	return tree.NewView(root, nil, nil, false)
}

// commit makes a layer of what the container changed since begin, and holds it.
func (s *session) commit(ctx context.Context, id string, begin, epoch time.Time) (cache.Layer, error) {
	var l cache.Layer
	err := undo.New("build.step").Do("layer", func() error {
		blob, layer, err := s.images.AddLayer(ctx, s.hold, func(w io.Writer) error {
			pr, pw := io.Pipe()
			go func() {
				_, err := s.e.Diff(ctx, id, pw)
				pw.CloseWithError(err)
			}()
			err := retime(pr, w, begin, epoch)
			pr.CloseWithError(err)
			return err
		})
		if err == nil {
			l = cache.Layer{DiffID: layer.DiffID, Blob: blob, Size: layer.Size}
		}
		return err
	}, nil)
	return l, err
}

// retime copies a layer's tar and gives the entries that are not older than begin the time epoch: what a step made has the
// time of day in it, what it unpacked or copied with its time keeps that. The same step then gives the same layer on
// another day.
func retime(r io.Reader, w io.Writer, begin, epoch time.Time) error {
	tr, tw := tar.NewReader(r), tar.NewWriter(w)
	buf := make([]byte, 256<<10)
	begin = begin.Truncate(time.Second)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if !h.ModTime.Before(begin) {
			h.ModTime = epoch
		}
		h.AccessTime, h.ChangeTime, h.Format = time.Time{}, time.Time{}, tar.FormatUnknown
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.CopyBuffer(struct{ io.Writer }{tw}, struct{ io.Reader }{tr}, buf); err != nil {
			return err
		}
	}
	if err := tw.Close(); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, r) // the padding, so that the writer ends
	return err
}

// scratchDir makes an empty directory on the disk, which goes with the build.
func (s *session) scratchDir() (*os.File, error) {
	dir, err := os.MkdirTemp(s.tmp, "")
	if err != nil {
		return nil, fmt.Errorf("make a directory to unpack in: %w", err)
	}
	return os.Open(dir)
}
