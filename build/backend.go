package build

import (
	"context"

	"github.com/onggi/onggi/build/frontend"
	"github.com/onggi/onggi/build/graph"
	"github.com/onggi/onggi/build/tree"
)

// The session answers its frontend.
var _ frontend.Backend = (*session)(nil)

// Resolve brings the image in: what a build stands on is needed in any case but for the one that hits to its end.
func (s *session) Resolve(ctx context.Context, q frontend.ImageQuery) (*frontend.ImageInfo, error) {
	if q.Store != "" {
		return nil, unsupported("a base image from an OCI layout directory; load it first: onggi load")
	}
	img, err := s.base(ctx, q.Ref, q.Platform)
	if err != nil {
		return nil, err
	}
	info := &frontend.ImageInfo{Ref: q.Ref, Digest: img.Target.Digest}
	if !q.NoConfig {
		if info.Config, err = s.configOf(img); err != nil {
			return nil, err
		}
	}
	return info, nil
}

// Metadata is asked for the time of a remote context only.
func (s *session) Metadata(_ context.Context, src *graph.Source) (*frontend.SourceInfo, error) {
	return nil, unsupported("SOURCE_DATE_EPOCH from a remote source (" + src.Scheme + "://" + src.Ref + "); give a number")
}

// result solves a graph for the frontend and opens what it came to.
func (s *session) result(ctx context.Context, g *graph.Graph) (*tree.View, error) {
	r, err := s.solve(ctx, g)
	if err != nil {
		return nil, err
	}
	return s.view(ctx, r)
}

// ReadFile reads a part of a file of a graph's result.
func (s *session) ReadFile(ctx context.Context, g *graph.Graph, path string, offset int64, length int) ([]byte, error) {
	v, err := s.result(ctx, g)
	if err != nil {
		return nil, err
	}
	return v.ReadFile(path, offset, length)
}

// Stat tells of a file of a graph's result.
func (s *session) Stat(ctx context.Context, g *graph.Graph, path string) (*frontend.Stat, error) {
	v, err := s.result(ctx, g)
	if err != nil {
		return nil, err
	}
	fi, err := v.Stat(path)
	if err != nil {
		return nil, err
	}
	return &fi, nil
}

// ReadDir lists a directory of a graph's result.
func (s *session) ReadDir(ctx context.Context, g *graph.Graph, path, pattern string) ([]frontend.Stat, error) {
	v, err := s.result(ctx, g)
	if err != nil {
		return nil, err
	}
	return v.ReadDir(ctx, path, pattern)
}

// Evaluate solves a graph.
func (s *session) Evaluate(ctx context.Context, g *graph.Graph) error {
	_, err := s.solve(ctx, g)
	return err
}

// Warn passes a warning on.
func (s *session) Warn(w frontend.Warning) { s.o.Progress.Warn(w) }
