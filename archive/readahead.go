package archive

import (
	"errors"
	"io"
	"sync"
)

// The buffers between the stages of ReadAhead.
const (
	chunkSize  = 512 << 10
	chunkCount = 8
)

// ReadAhead reads r in a goroutine of its own into a ring of large buffers, passes every byte through taps (digests,
// counters) in a second goroutine, and returns a reader of the same stream: inflating, hashing and writing overlap on
// several cores. The taps have seen every byte that Read has returned, and all of them when Read has said io.EOF. A
// tap's error ends the stream.
//
// Close ends the goroutines and waits for them; it must be called, and it waits for a Read of r that is under way (a
// reader of a network connection ends by its context). It does not close r.
func ReadAhead(r io.Reader, taps ...io.Writer) io.ReadCloser {
	a := &readAhead{
		free: make(chan []byte, chunkCount),
		raw:  make(chan chunk, chunkCount),
		stop: make(chan struct{}),
	}
	a.full = a.raw
	for range chunkCount {
		a.free <- nil // made when it is first used: a small layer needs one
	}
	a.live.Add(1)
	go a.fill(r)
	if len(taps) > 0 {
		a.full = make(chan chunk, chunkCount)
		a.live.Add(1)
		go a.tap(taps)
	}
	return a
}

type chunk struct {
	b   []byte
	err error // after b
}

type readAhead struct {
	free chan []byte
	raw  chan chunk // from fill
	full chan chunk // to Read
	stop chan struct{}
	once sync.Once
	live sync.WaitGroup

	cur  []byte // what Read has not returned yet of
	head []byte // this buffer
	err  error
}

// send gives up when the reader is closed.
func (a *readAhead) send(to chan chunk, c chunk) bool {
	select {
	case to <- c:
		return true
	case <-a.stop:
		return false
	}
}

func (a *readAhead) fill(r io.Reader) {
	defer a.live.Done()
	for {
		var b []byte
		select {
		case b = <-a.free:
		case <-a.stop:
			return
		}
		if b == nil {
			b = make([]byte, chunkSize)
		}
		n, err := 0, error(nil)
		for idle := 0; n < len(b) && err == nil; {
			var m int
			m, err = r.Read(b[n:])
			n += m
			if idle++; m > 0 {
				idle = 0
			} else if idle > 100 && err == nil {
				err = io.ErrNoProgress
			}
		}
		if !a.send(a.raw, chunk{b[:n], err}) || err != nil {
			return
		}
	}
}

func (a *readAhead) tap(taps []io.Writer) {
	defer a.live.Done()
	for {
		var c chunk
		select {
		case c = <-a.raw:
		case <-a.stop:
			return
		}
		for _, t := range taps {
			if _, err := t.Write(c.b); err != nil {
				c = chunk{nil, err}
				break
			}
		}
		if !a.send(a.full, c) || c.err != nil {
			return
		}
	}
}

func (a *readAhead) Read(p []byte) (int, error) {
	for len(a.cur) == 0 {
		if a.err != nil {
			return 0, a.err
		}
		if a.head != nil {
			a.free <- a.head[:cap(a.head)] // there is always room: it came from there
			a.head = nil
		}
		select {
		case c := <-a.full:
			a.cur, a.head, a.err = c.b, c.b, c.err
		case <-a.stop:
			a.err = errReadClosed
		}
	}
	n := copy(p, a.cur)
	a.cur = a.cur[n:]
	return n, nil
}

func (a *readAhead) Close() error {
	a.once.Do(func() { close(a.stop) })
	a.live.Wait()
	return nil
}

var errReadClosed = errors.New("read of a closed reader")
