package undo

import (
	"errors"
	"fmt"
	"time"
)

// Span is how long one step took. Start counts from the stack's birth.
type Span struct {
	Name  string        `json:"name"`
	Start time.Duration `json:"start"`
	Took  time.Duration `json:"took"`
}

// Stack holds the steps done so far. It is not safe for concurrent use. The zero value is ready to use.
type Stack struct {
	prefix string
	born   time.Time
	done   []step
	spans  []Span
}

type step struct {
	name string
	back func() error
}

// New returns a stack whose step names begin with prefix and a dot.
func New(prefix string) *Stack { return &Stack{prefix: prefix, born: time.Now()} }

// Do runs one step. On success its reversal (which may be nil) is kept for Undo. On failure the reversal is not run:
// a step leaves nothing behind when it fails. The error is returned as it is.
func (s *Stack) Do(name string, deed func() error, reversal func() error) error {
	if s.prefix != "" {
		name = s.prefix + "." + name
	}
	if s.born.IsZero() {
		s.born = time.Now()
	}
	if err := fault(name, before); err != nil {
		return err
	}
	start := time.Now()
	err := deed()
	s.spans = append(s.spans, Span{Name: name, Start: start.Sub(s.born), Took: time.Since(start)})
	if err != nil {
		return err
	}
	if reversal != nil {
		s.done = append(s.done, step{name, reversal})
	}
	return fault(name, after)
}

// Push keeps a reversal for something that is already done.
func (s *Stack) Push(name string, reversal func() error) {
	if s.prefix != "" {
		name = s.prefix + "." + name
	}
	s.done = append(s.done, step{name, reversal})
}

// Undo runs the kept reversals in reverse order if *err is not nil, and joins what goes wrong in them to it. A nil
// *err means success: nothing is undone. It is made for defer.
func (s *Stack) Undo(err *error) {
	if *err == nil {
		s.Done()
		return
	}
	for i := len(s.done) - 1; i >= 0; i-- {
		if e := s.done[i].back(); e != nil {
			*err = errors.Join(*err, fmt.Errorf("undo %s: %w", s.done[i].name, e))
		}
	}
	s.Done()
}

// Done forgets the reversals: the operation has succeeded, or its traces now belong to somebody else.
func (s *Stack) Done() { s.done = nil }

// Spans returns the times of the steps so far, in order.
func (s *Stack) Spans() []Span { return s.spans }

type moment string

const (
	before moment = "before"
	after  moment = "after"
)
