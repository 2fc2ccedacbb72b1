package frontend

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/onggi/onggi/build/graph"
	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Remembrance keeps conversations: what Get finds of about is what Put was given, or nothing (build/cache.Memory).
type Remembrance interface {
	Get(about string, v any) bool
	Put(about string, v any) error
}

// conversation is one that came to a result: what was asked, in order, what was answered, and the result.
type conversation struct {
	Exchanges []exchange `json:"exchanges"`
	Warnings  []Warning  `json:"warnings,omitempty"`
	Result    *Result    `json:"result"`
}

// exchange is a question and the digest of its answer.
type exchange struct {
	Question message       `json:"question"`
	Answer   digest.Digest `json:"answer"`
}

// RunRemembered is Run for a frontend that is a function of its request and of the answers to its questions, as BuildKit's is:
// when the same request to the same program was heard before, its questions are answered again, and if all answers are as
// they were, so is the result, and no process is started. An answer that differs (another Dockerfile, another base image),
// or a program that was replaced, leads to Run. What cannot be remembered is no error.
func RunRemembered(ctx context.Context, m Remembrance, argv []string, req Request, b Backend) (*Result, error) {
	about, err := aboutRequest(argv, req)
	if err != nil || private(req) {
		return Run(ctx, argv, req, b) // which says what is wrong with the program
	}
	var c conversation
	if m.Get(about, &c) && c.replay(ctx, b) {
		return c.Result, ctx.Err()
	}
	r := &recorder{Backend: b}
	res, err := Run(ctx, argv, req, r)
	if err == nil {
		_ = m.Put(about, conversation{r.exchanges, r.warnings, res})
	}
	return res, err
}

// private says that a request holds what must not come to a disk: a proxy's address, or one with a password.
func private(req Request) bool {
	for k, v := range req.Options {
		if _, rest, ok := strings.Cut(v, "://"); ok && strings.Contains(rest, "@") {
			return true
		}
		if name, ok := strings.CutPrefix(k, "build-arg:"); ok && strings.HasSuffix(strings.ToLower(name), "_proxy") {
			return true
		}
	}
	return false
}

// aboutRequest identifies a request to a program, which is the same as long as its file is.
func aboutRequest(argv []string, req Request) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(argv[0], &st); err != nil {
		return "", &os.PathError{Op: "stat", Path: argv[0], Err: err}
	}
	text, err := json.Marshal(req)
	return fmt.Sprintf("%q %d %d %d %d %s", argv, st.Dev, st.Ino, st.Size, st.Ctim.Nano(), text), err
}

// replay asks all questions again, and says whether everything is as it was. Nothing of the result is used when it is not.
func (c *conversation) replay(ctx context.Context, b Backend) bool {
	if c.Result == nil {
		return false
	}
	for i := range c.Result.Platforms {
		if c.Result.Platforms[i].Graph.Check() != nil {
			return false
		}
	}
	for _, x := range c.Exchanges {
		if x.Question.Graph != nil && x.Question.Graph.Check() != nil {
			return false
		}
		if d, err := digestOf(answer(ctx, x.Question, b)); err != nil || d != x.Answer || ctx.Err() != nil {
			return false
		}
	}
	for _, w := range c.Warnings {
		b.Warn(w)
	}
	return true
}

func digestOf(a message) (digest.Digest, error) {
	text, err := json.Marshal(a)
	return digest.FromBytes(text), err
}

// recorder is a Backend that notes what it is asked and what it answers.
type recorder struct {
	Backend

	mu        sync.Mutex
	exchanges []exchange
	warnings  []Warning
}

// note keeps an exchange; questions that are open at the same time do not depend on each other.
func (r *recorder) note(q, a message) {
	d, err := digestOf(a)
	if err != nil {
		d = "" // equal to no answer: the conversation is held again
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.exchanges = append(r.exchanges, exchange{q, d})
}

func failed(a message, err error) message {
	if err != nil {
		return message{Failure: failure(err)}
	}
	return a
}

func (r *recorder) Resolve(ctx context.Context, q ImageQuery) (*ImageInfo, error) {
	info, err := r.Backend.Resolve(ctx, q)
	r.note(message{Call: callResolve, Image: &q}, failed(message{ImageInfo: info}, err))
	return info, err
}

func (r *recorder) Metadata(ctx context.Context, s *graph.Source) (*SourceInfo, error) {
	info, err := r.Backend.Metadata(ctx, s)
	r.note(message{Call: callMetadata, Source: s}, failed(message{SourceInfo: info}, err))
	return info, err
}

func (r *recorder) ReadFile(ctx context.Context, g *graph.Graph, path string, offset int64, length int) ([]byte, error) {
	data, err := r.Backend.ReadFile(ctx, g, path, offset, length)
	r.note(message{Call: callRead, Graph: g, Path: path, Offset: offset, Length: length}, failed(message{Data: data}, err))
	return data, err
}

func (r *recorder) Stat(ctx context.Context, g *graph.Graph, path string) (*Stat, error) {
	s, err := r.Backend.Stat(ctx, g, path)
	a := message{}
	if err == nil {
		a.Stats = []Stat{*s}
	}
	r.note(message{Call: callStat, Graph: g, Path: path}, failed(a, err))
	return s, err
}

func (r *recorder) ReadDir(ctx context.Context, g *graph.Graph, path, pattern string) ([]Stat, error) {
	list, err := r.Backend.ReadDir(ctx, g, path, pattern)
	r.note(message{Call: callList, Graph: g, Path: path, Pattern: pattern}, failed(message{Stats: list}, err))
	return list, err
}

func (r *recorder) Evaluate(ctx context.Context, g *graph.Graph) error {
	err := r.Backend.Evaluate(ctx, g)
	r.note(message{Call: callEvaluate, Graph: g}, failed(message{}, err))
	return err
}

func (r *recorder) Warn(w Warning) {
	r.Backend.Warn(w)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.warnings = append(r.warnings, w)
}
