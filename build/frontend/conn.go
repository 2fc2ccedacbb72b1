package frontend

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"sync"
	"time"

	"github.com/onggi/onggi/build/graph"
	"github.com/onggi/onggi/errdefs"
)

// message is one line. ID numbers a question and its answer.
type message struct {
	ID   int    `json:"id,omitempty"`
	Call string `json:"call,omitempty"` // "" is an answer
	// Questions.
	Image   *ImageQuery   `json:"image,omitempty"`
	Source  *graph.Source `json:"source,omitempty"`
	Graph   *graph.Graph  `json:"graph,omitempty"`
	Path    string        `json:"path,omitempty"`
	Pattern string        `json:"pattern,omitempty"`
	Offset  int64         `json:"offset,omitempty"`
	Length  int           `json:"length,omitempty"`
	Warning *Warning      `json:"warning,omitempty"`
	// Answers.
	ImageInfo  *ImageInfo  `json:"imageInfo,omitempty"`
	SourceInfo *SourceInfo `json:"sourceInfo,omitempty"`
	Data       []byte      `json:"data,omitempty"`
	Stats      []Stat      `json:"stats,omitempty"`
	// The end, and the error of an answer.
	Result  *Result  `json:"result,omitempty"`
	Failure *Failure `json:"failure,omitempty"`
}

// The calls.
const (
	callResolve  = "resolve"
	callMetadata = "metadata"
	callRead     = "read"
	callStat     = "stat"
	callList     = "list"
	callEvaluate = "evaluate"
	callWarn     = "warn"
	callEnd      = "end"
)

// conn reads and writes messages. write may be called from several goroutines.
type conn struct {
	r  *bufio.Reader
	mu sync.Mutex
	w  io.Writer
}

func newConn(r io.Reader, w io.Writer) *conn { return &conn{r: bufio.NewReaderSize(r, 64<<10), w: w} }

func (c *conn) write(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(b) >= MaxMessage {
		return &errdefs.Error{
			Op: "send", What: "a message of the frontend", Kind: errdefs.Exhausted,
			Why: fmt.Sprintf("it has %d bytes; %d are allowed", len(b), MaxMessage),
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err = c.w.Write(append(b, '\n'))
	return err
}

// read returns io.EOF at the end of a conversation that was not cut.
func (c *conn) read(v any) error {
	var line []byte
	for {
		part, err := c.r.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > MaxMessage {
			return &errdefs.Error{Op: "read", What: "a message of the frontend", Kind: errdefs.Exhausted, Why: "it is too long"}
		}
		if err == nil {
			break
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err == io.EOF && len(line) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return &errdefs.Error{Op: "read", What: "a message of the frontend", Kind: errdefs.InvalidArgument, Err: err}
	}
	return nil
}

// maxDiagnostics bounds what is kept of the process's standard error.
const maxDiagnostics = 16 << 10

type tail struct {
	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if n := len(t.buf) - maxDiagnostics; n > 0 {
		t.buf = append(t.buf[:0], t.buf[n:]...)
	}
	return len(p), nil
}

// Run starts argv (the frontend's process) with an empty environment, answers its questions from b and returns its
// result, with every graph checked. An error of the text is a *Failure.
func Run(ctx context.Context, argv []string, req Request, b Backend) (*Result, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = []string{}
	cmd.WaitDelay = time.Second
	var diagnostics tail
	cmd.Stderr = &diagnostics
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, &errdefs.Error{
			Op: "start", What: argv[0], Kind: errdefs.KindOf(err), Err: err,
			Fix: "install onggi-build beside onggi: make install copies both",
		}
	}
	res, err := converse(ctx, newConn(out, in), req, b)
	_ = in.Close()
	if err != nil {
		cancel() // it may be waiting for an answer that will not come
	}
	werr := cmd.Wait()
	if err != nil && context.Cause(ctx) != nil && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)) || err == nil && werr != nil {
		err = &errdefs.Error{
			Op: "run", What: argv[0], Kind: errdefs.Internal, Why: "it ended without a result: " + string(bytes.TrimSpace(diagnostics.buf)), Err: werr,
		}
	}
	return res, err
}

// converse answers questions until the end. It returns when all answers have been given up or sent.
func converse(ctx context.Context, c *conn, req Request, b Backend) (*Result, error) {
	if err := c.write(req); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for {
		var m message
		if err := c.read(&m); err != nil {
			return nil, err
		}
		if m.Graph != nil {
			if err := m.Graph.Check(); err != nil {
				return nil, err
			}
		}
		switch m.Call {
		case callEnd:
			if m.Failure != nil && m.Failure.Err != nil {
				return nil, m.Failure
			}
			if m.Result == nil {
				return nil, &errdefs.Error{Op: "read", What: "the frontend's result", Kind: errdefs.InvalidArgument, Why: "it is empty"}
			}
			for i := range m.Result.Platforms {
				if err := m.Result.Platforms[i].Graph.Check(); err != nil {
					return nil, err
				}
			}
			return m.Result, nil
		case callWarn:
			if m.Warning != nil {
				b.Warn(*m.Warning)
			}
		default:
			wg.Add(1)
			go func() {
				defer wg.Done()
				a := answer(ctx, m, b)
				a.ID = m.ID
				_ = c.write(a) // when the other side is gone, the next read says so
			}()
		}
	}
}

func answer(ctx context.Context, m message, b Backend) (a message) {
	var err error
	switch {
	case m.Call == callResolve && m.Image != nil:
		a.ImageInfo, err = b.Resolve(ctx, *m.Image)
	case m.Call == callMetadata && m.Source != nil:
		a.SourceInfo, err = b.Metadata(ctx, m.Source)
	case m.Graph == nil:
		err = &errdefs.Error{Op: "answer", What: m.Call, Kind: errdefs.InvalidArgument, Why: "there is no such question"}
	case m.Call == callRead:
		if m.Offset < 0 || m.Length < 0 || m.Length > MaxRead {
			err = &errdefs.Error{Op: "read", What: m.Path, Kind: errdefs.InvalidArgument, Why: fmt.Sprintf("%d bytes from %d are out of range", m.Length, m.Offset)}
			break
		}
		a.Data, err = b.ReadFile(ctx, m.Graph, m.Path, m.Offset, m.Length)
	case m.Call == callStat:
		var s *Stat
		if s, err = b.Stat(ctx, m.Graph, m.Path); err == nil {
			a.Stats = []Stat{*s}
		}
	case m.Call == callList:
		a.Stats, err = b.ReadDir(ctx, m.Graph, m.Path, m.Pattern)
	case m.Call == callEvaluate:
		err = b.Evaluate(ctx, m.Graph)
	default:
		err = &errdefs.Error{Op: "answer", What: m.Call, Kind: errdefs.InvalidArgument, Why: "there is no such question"}
	}
	if err != nil {
		return message{Failure: failure(err)}
	}
	return a
}

func failure(err error) *Failure {
	var f *Failure
	if errors.As(err, &f) {
		return f
	}
	return &Failure{Err: errdefs.As(err)}
}
