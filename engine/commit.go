package engine

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/onggi/onggi/cgroup"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/image"
	"github.com/onggi/onggi/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// CommitOptions of Commit.
type CommitOptions struct {
	Ref     reference.Reference // zero: no name
	Author  string
	Message string
	Pause   bool                             // a running container's processes stand still meanwhile
	Change  func(*ocispec.ImageConfig) error // changes the configuration; may be nil
}

// Commit makes an image of what a container has otherwise than its own image, with the container's configuration.
// Volumes and what is mounted are not in it. Errors: NotFound, NoSpace, those of freezing.
func (e *Engine) Commit(ctx context.Context, idOrName string, o CommitOptions) (_ *image.Image, err error) {
	r, err := e.get(idOrName)
	if err != nil {
		return nil, err
	}
	store, err := e.Images()
	if err != nil {
		return nil, err
	}
	base, err := store.Get(r.ImageID.String())
	if err != nil {
		return nil, err
	}
	s, err := e.snapshot()
	if err != nil {
		return nil, err
	}
	c := image.CommitOptions{Ref: o.Ref, Author: o.Author, Message: o.Message, Config: committed(base.Config.Config, r.Config)}
	c.CreatedBy = strings.Join(append(slices.Clone(c.Config.Entrypoint), c.Config.Cmd...), " ")
	if o.Change != nil {
		if err := o.Change(&c.Config); err != nil {
			return nil, err
		}
	}
	if o.Pause && r.Status == Running && !r.Paused {
		g, err := r.group()
		if err != nil {
			return nil, &errdefs.Error{Op: "commit", What: idOrName, Kind: errdefs.KindOf(err), Why: "its processes cannot be paused", Fix: "commit it as it runs: --pause=false", Err: err}
		}
		switch err := g.Freeze(true); {
		case errdefs.Is(err, errdefs.NotFound): // it has ended since
		case err != nil:
			return nil, &errdefs.Error{Op: "commit", What: idOrName, Kind: errdefs.KindOf(err), Why: "its processes cannot be paused", Fix: "commit it as it runs: --pause=false", Err: err}
		default:
			defer func() { err = errors.Join(err, thaw(g)) }()
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	pr, pw := io.Pipe()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, err := s.Diff(ctx, r.ID, pw)
		_ = pw.CloseWithError(err)
	}()
	img, err := store.Commit(ctx, base, pr, c)
	if err == nil {
		r.emit(e, "commit", "comment", o.Message, "imageID", string(img.ID), "imageRef", img.ID.String())
	}
	_ = pr.CloseWithError(errors.New("the commit has ended"))
	cancel(nil)
	<-ended
	return img, err
}

// thaw lets a container's processes go on. A container that was killed meanwhile has no group any more.
func thaw(g *cgroup.Group) error {
	if err := g.Freeze(false); err != nil && !errdefs.Is(err, errdefs.NotFound) {
		return err
	}
	return nil
}

// committed is an image's configuration with what the container was given on top.
func committed(c ocispec.ImageConfig, k Config) ocispec.ImageConfig {
	c.Env = slices.Clone(c.Env)
	for _, kv := range k.Env {
		name, _, _ := strings.Cut(kv, "=")
		i := slices.IndexFunc(c.Env, func(o string) bool { n, _, _ := strings.Cut(o, "="); return n == name })
		if i >= 0 {
			c.Env[i] = kv
		} else {
			c.Env = append(c.Env, kv)
		}
	}
	if k.EntrypointSet {
		c.Entrypoint, c.Cmd = k.Entrypoint, nil
	}
	if len(k.Args) > 0 {
		c.Cmd = k.Args
	}
	if k.Workdir != "" {
		c.WorkingDir = k.Workdir
	}
	if k.User != "" {
		c.User = k.User
	}
	if k.StopSignal != "" {
		c.StopSignal = k.StopSignal
	}
	c.Labels = maps.Clone(c.Labels)
	for n, v := range k.Labels {
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		c.Labels[n] = v
	}
	c.ExposedPorts, c.Volumes = maps.Clone(c.ExposedPorts), maps.Clone(c.Volumes)
	return c
}
