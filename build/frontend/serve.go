package frontend

import (
	"context"
	"io"
	"sync"

	"github.com/onggi/onggi/build/graph"
	"github.com/onggi/onggi/errdefs"
)

// Asker is the frontend's side of the conversation: a Backend whose answers come from the other process.
type Asker struct {
	c       *conn
	mu      sync.Mutex
	next    int
	waiting map[int]chan message
	err     error // why no more answers come
	gone    chan struct{}
}

var _ Backend = (*Asker)(nil)

// Serve reads the request from r, lets make build the result and writes it to w. The error is one of the conversation;
// what make returns is part of it.
func Serve(ctx context.Context, r io.Reader, w io.Writer, build func(context.Context, Request, Backend) (*Result, error)) error {
	a := &Asker{c: newConn(r, w), waiting: map[int]chan message{}, gone: make(chan struct{})}
	var req Request
	if err := a.c.read(&req); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		a.listen()
		cancel()
	}()
	res, err := build(ctx, req, a)
	m := message{Call: callEnd, Result: res}
	if err != nil {
		m = message{Call: callEnd, Failure: failure(err)}
	}
	return a.c.write(m)
}

func (a *Asker) listen() {
	for {
		var m message
		err := a.c.read(&m)
		a.mu.Lock()
		if err != nil {
			a.err = err
			close(a.gone)
			a.mu.Unlock()
			return
		}
		ch := a.waiting[m.ID]
		delete(a.waiting, m.ID)
		a.mu.Unlock()
		if ch != nil {
			ch <- m
		}
	}
}

func (a *Asker) ask(ctx context.Context, m message) (message, error) {
	ch := make(chan message, 1)
	a.mu.Lock()
	a.next++
	m.ID = a.next
	a.waiting[m.ID] = ch
	a.mu.Unlock()
	if err := a.c.write(m); err != nil {
		return message{}, err
	}
	select {
	case got := <-ch:
		if got.Failure != nil && got.Failure.Err != nil {
			return message{}, got.Failure
		}
		return got, nil
	case <-a.gone:
		return message{}, &errdefs.Error{Op: "ask", What: m.Call, Kind: errdefs.Canceled, Why: "the build has ended", Err: a.err}
	case <-ctx.Done():
		return message{}, context.Cause(ctx)
	}
}

func incomplete(call string) error {
	return &errdefs.Error{Op: "ask", What: call, Kind: errdefs.InvalidArgument, Why: "the answer is empty"}
}

// Resolve asks.
func (a *Asker) Resolve(ctx context.Context, q ImageQuery) (*ImageInfo, error) {
	m, err := a.ask(ctx, message{Call: callResolve, Image: &q})
	if err == nil && m.ImageInfo == nil {
		err = incomplete(callResolve)
	}
	return m.ImageInfo, err
}

// Metadata asks.
func (a *Asker) Metadata(ctx context.Context, s *graph.Source) (*SourceInfo, error) {
	m, err := a.ask(ctx, message{Call: callMetadata, Source: s})
	if err == nil && m.SourceInfo == nil {
		err = incomplete(callMetadata)
	}
	return m.SourceInfo, err
}

// ReadFile asks.
func (a *Asker) ReadFile(ctx context.Context, g *graph.Graph, path string, offset int64, length int) ([]byte, error) {
	m, err := a.ask(ctx, message{Call: callRead, Graph: g, Path: path, Offset: offset, Length: length})
	return m.Data, err
}

// Stat asks.
func (a *Asker) Stat(ctx context.Context, g *graph.Graph, path string) (*Stat, error) {
	m, err := a.ask(ctx, message{Call: callStat, Graph: g, Path: path})
	if err != nil {
		return nil, err
	}
	if len(m.Stats) != 1 {
		return nil, incomplete(callStat)
	}
	return &m.Stats[0], nil
}

// ReadDir asks.
func (a *Asker) ReadDir(ctx context.Context, g *graph.Graph, path, pattern string) ([]Stat, error) {
	m, err := a.ask(ctx, message{Call: callList, Graph: g, Path: path, Pattern: pattern})
	return m.Stats, err
}

// Evaluate asks.
func (a *Asker) Evaluate(ctx context.Context, g *graph.Graph) error {
	_, err := a.ask(ctx, message{Call: callEvaluate, Graph: g})
	return err
}

// Warn tells.
func (a *Asker) Warn(w Warning) { _ = a.c.write(message{Call: callWarn, Warning: &w}) }
