package monitor

import (
	"sync"
	"time"
)

// barrier stops the monitor's goroutines at places where they hold nothing: no byte that is read and not yet written,
// no request that is not answered. A goroutine that is not at such a place in time keeps the barrier from closing.
type barrier struct {
	mu      sync.Mutex
	changed sync.Cond
	workers int // goroutines that take part
	parked  int // of them, those that wait
	closing bool
}

func newBarrier() *barrier {
	b := &barrier{}
	b.changed.L = &b.mu
	return b
}

// join adds a goroutine, before it is started.
func (b *barrier) join() {
	b.mu.Lock()
	b.workers++
	b.mu.Unlock()
}

// leave takes the calling goroutine out.
func (b *barrier) leave() {
	b.mu.Lock()
	b.workers--
	b.changed.Broadcast()
	b.mu.Unlock()
}

// wanted reports whether goroutines should come to park.
func (b *barrier) wanted() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.closing
}

// park waits while the barrier is closed.
func (b *barrier) park() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.parked++
	b.changed.Broadcast()
	for b.closing {
		b.changed.Wait()
	}
	b.parked--
}

// close asks all to park, calls wake to get them out of their system calls, and waits until all have. If they have not
// after limit, it opens the barrier again and returns false.
func (b *barrier) close(limit time.Duration, wake func()) bool {
	b.mu.Lock()
	b.closing = true
	b.mu.Unlock()
	wake()
	late := false
	t := time.AfterFunc(limit, func() {
		b.mu.Lock()
		late = true
		b.changed.Broadcast()
		b.mu.Unlock()
	})
	defer t.Stop()
	b.mu.Lock()
	for b.parked < b.workers && !late {
		b.changed.Wait()
	}
	ok := b.parked == b.workers
	b.mu.Unlock()
	if !ok {
		b.open()
	}
	return ok
}

// open lets all go on.
func (b *barrier) open() {
	b.mu.Lock()
	b.closing = false
	b.changed.Broadcast()
	b.mu.Unlock()
}
