package monitor

import (
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/runtime/monitor/logfile"
	"golang.org/x/sys/unix"
)

const (
	pipeSize   = 256 << 10 // of the container's stdout and stderr: four reads, so that it need not wait for each
	bufferSize = 64 << 10  // one read, and one frame of the log
	idleAfter  = time.Second
)

// buffer is the memory of one stream. It is mapped, not allocated, so that an idle stream gives it back.
type buffer struct {
	b     []byte
	dirty bool
}

func newBuffer() (*buffer, error) {
	b, err := unix.Mmap(-1, 0, bufferSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	return &buffer{b: b}, err
}

// release gives the memory back; the buffer stays usable.
func (b *buffer) release() {
	if b.dirty {
		_ = unix.Madvise(b.b, unix.MADV_DONTNEED)
		b.dirty = false
	}
}

func (b *buffer) free() { _ = unix.Munmap(b.b) }

// sink is a client's stdout or stderr.
type sink struct {
	e       *endpoint
	dead    bool   // the client or its reader is gone. Only the pump and close, under pump.mu, touch dead and pending.
	lost    func() // told when the client's reader is gone
	pending []byte // what was read after the container's end: delivered without holding up anybody else
}

// pump moves one output stream of the container to the log and to the attached clients.
//
//	container -> pipe or terminal -> buffer -> log, then each client in turn
//
// A client that does not read holds the pump, the pipe fills, and the container blocks: nothing is lost and nothing
// grows. When the client's connection ends its sink is closed, and the pump goes on. After the container's end (finish)
// the pump reads what is left without waiting for anybody.
type pump struct {
	stream logfile.Stream
	src    *os.File
	raw    syscall.RawConn
	tty    bool
	log    *logfile.Writer // may be nil
	bar    *barrier
	done   chan struct{} // closed when the pump has ended

	// Of the read under way; only run uses them.
	try  func(fd uintptr) bool
	b    []byte
	n    int
	last bool // do not wait

	mu     sync.Mutex // over all below
	sinks  []*sink
	final  bool  // the container has ended
	logErr error // the first error of the log
}

func newPump(stream logfile.Stream, src *os.File, tty bool, log *logfile.Writer, bar *barrier) (*pump, error) {
	raw, err := src.SyscallConn()
	if err != nil {
		return nil, err
	}
	p := &pump{stream: stream, src: src, raw: raw, tty: tty, log: log, bar: bar, done: make(chan struct{})}
	p.try = p.readOnce // once: a function value made for each read would be garbage
	return p, nil
}

// endedPump is a pump whose stream has ended before a renewal.
func endedPump(stream logfile.Stream) *pump {
	p := &pump{stream: stream, done: make(chan struct{})}
	close(p.done)
	return p
}

func (p *pump) hasEnded() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// run is the pump's goroutine.
func (p *pump) run() {
	defer p.bar.leave()
	defer close(p.done)
	buf, err := newBuffer()
	if err != nil {
		buf = &buffer{b: make([]byte, 4096)} // mmap fails only when there is no memory at all
	} else {
		defer buf.free()
	}
	left := -1 // how much may still be read; -1: without bound
	for left != 0 {
		n, final := p.read(buf, left)
		if final && left < 0 {
			// What was written before the end fits in the pipe. A process that outlives the container (it can,
			// with the host's pid namespace) and goes on writing is not listened to for ever.
			left = p.capacity()
		}
		if n == 0 {
			break
		}
		if left > 0 {
			left = max(0, left-n)
		}
		buf.dirty = true
		p.deliver(buf.b[:n])
	}
	_ = p.src.Close()
}

func (p *pump) capacity() int {
	n := 2 * bufferSize // a terminal holds less
	if !p.tty {
		_ = p.raw.Control(func(fd uintptr) {
			if size, err := unix.FcntlInt(fd, unix.F_GETPIPE_SZ, 0); err == nil {
				n = size
			}
		})
	}
	return n
}

// read waits for output. n is 0 at the end of the stream: all writers are gone, or the container has ended and nothing
// is left. Preconditions: only run calls it.
func (p *pump) read(buf *buffer, left int) (n int, final bool) {
	b := buf.b
	if left >= 0 {
		b = b[:min(left, len(b))]
	}
	for {
		p.mu.Lock()
		final = p.final
		deadline := time.Time{}
		if buf.dirty && !final {
			deadline = time.Now().Add(idleAfter)
		}
		park := p.bar.wanted() && !final
		if !park {
			_ = p.src.SetReadDeadline(deadline)
		}
		p.mu.Unlock()
		if park {
			p.bar.park()
			continue
		}
		p.b, p.last = b, final
		err := p.raw.Read(p.try)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			buf.release()
			continue // idle, or the end of the container
		}
		return max(p.n, 0), final
	}
}

// readOnce is one attempt of read; it reports whether there is nothing to wait for.
func (p *pump) readOnce(fd uintptr) bool {
	for {
		var err error
		p.n, err = unix.Read(int(fd), p.b)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN, p.tty && err == unix.EIO:
			// EIO: nobody has the terminal open now; while the container lives somebody may open it again.
			p.n = 0
			return p.last
		}
		return true
	}
}

// deliver gives b to the log and to every client.
func (p *pump) deliver(b []byte) {
	if p.log != nil {
		if err := p.log.Append(p.stream, time.Now(), b); err != nil {
			p.mu.Lock()
			if p.logErr == nil {
				p.logErr = err
			}
			p.mu.Unlock()
		}
	}
	p.mu.Lock()
	sinks := p.sinks // a slice is never changed once it is here: attach and drop make new ones
	final := p.final
	p.mu.Unlock()
	for _, s := range sinks {
		rest := b
		for len(rest) > 0 && !final {
			n, err := s.e.write(rest)
			rest = rest[n:]
			if err == nil {
				continue
			}
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				p.drop(s)
				s.lost()
				break
			}
			p.mu.Lock()
			final = p.final
			p.mu.Unlock()
		}
		if final && len(rest) > 0 {
			p.mu.Lock()
			if !s.dead {
				s.pending = append(s.pending, rest...)
			}
			p.mu.Unlock()
		}
	}
}

// attach adds a client's descriptor; what is read from now on goes there, too.
func (p *pump) attach(e *endpoint, lost func()) *sink {
	s := &sink{e: e, lost: lost}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sinks = append(p.sinks[:len(p.sinks):len(p.sinks)], s)
	return s
}

// drop takes a sink out and closes it.
func (p *pump) drop(s *sink) {
	p.mu.Lock()
	var rest []*sink
	for _, o := range p.sinks {
		if o != s {
			rest = append(rest, o)
		}
	}
	p.sinks = rest
	s.dead, s.pending = true, nil
	p.mu.Unlock()
	s.e.close()
}

// finish tells the pump that the container has ended, and waits until it has read what is left.
func (p *pump) finish() error {
	p.mu.Lock()
	p.final = true
	if !p.hasEnded() {
		_ = p.src.SetReadDeadline(time.Unix(1, 0))
	}
	for _, s := range p.sinks {
		s.e.interrupt()
	}
	p.mu.Unlock()
	<-p.done
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.logErr
}

// isDead reports whether s was dropped.
func (s *sink) isDead(p *pump) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return s.dead
}

// flush writes what was left over for a sink, waiting for its reader. What it cannot write is lost, and told so. After
// finish.
func (p *pump) flush(s *sink) {
	p.mu.Lock()
	rest := s.pending
	p.mu.Unlock()
	if len(rest) == 0 {
		return
	}
	s.e.calm()
	for len(rest) > 0 {
		n, err := s.e.write(rest)
		if err != nil {
			if !s.isDead(p) { // else the client itself has gone
				s.lost()
			}
			return
		}
		rest = rest[n:]
	}
}

// stdio is the container's three streams, or its terminal.
type stdio struct {
	bar      *barrier
	running  bool     // the pumps are
	out, err *pump    // err is nil with a terminal
	console  *os.File // the terminal's master side
	once     bool     // close stdin when the first client's ends; never with a terminal, which people come back to

	mu sync.Mutex
	in *os.File // the monitor's end of stdin: a pipe, or console; nil when it is closed or was never open
}

// pipes makes the streams of a container without a terminal and returns the container's ends.
func pipes(cfg *Config, log *logfile.Writer, bar *barrier) (s *stdio, theirs Stdio, err error) {
	s = &stdio{once: cfg.StdinOnce, bar: bar}
	defer func() {
		if err != nil {
			theirs.close()
			s.abandon()
		}
	}()
	if cfg.OpenStdin {
		if theirs.In, s.in, err = pipe(false); err != nil {
			return s, theirs, err
		}
	}
	var out, errs *os.File
	if out, theirs.Out, err = pipe(true); err != nil {
		return s, theirs, err
	}
	if s.out, err = newPump(logfile.Stdout, out, false, log, bar); err != nil {
		_ = out.Close()
		return s, theirs, err
	}
	if errs, theirs.Err, err = pipe(true); err != nil {
		return s, theirs, err
	}
	if s.err, err = newPump(logfile.Stderr, errs, false, log, bar); err != nil {
		_ = errs.Close()
	}
	return s, theirs, err
}

// pipe makes a pipe whose end of ours (the reading one if read is set) is non-blocking. The other is not: programs do
// not expect that of their standard streams.
func pipe(read bool) (r, w *os.File, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, &errdefs.Error{Op: "make a pipe", Kind: errdefs.KindOf(err), Err: err}
	}
	ours := p[1]
	if read {
		ours = p[0]
		// Best effort: an unprivileged user's pipes are bounded in sum (pipe(7), pipe-user-pages-soft).
		_, _ = unix.FcntlInt(uintptr(ours), unix.F_SETPIPE_SZ, pipeSize)
	}
	if err := unix.SetNonblock(ours, true); err != nil {
		closeFds(p[:])
		return nil, nil, err
	}
	return os.NewFile(uintptr(p[0]), "pipe"), os.NewFile(uintptr(p[1]), "pipe"), nil
}

// terminal makes the streams of a container with a terminal, whose master side it takes over.
func terminal(cfg *Config, console *os.File, log *logfile.Writer, bar *barrier) (*stdio, error) {
	fd, err := number(console)
	if err == nil {
		if fd, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err == nil {
			err = unix.SetNonblock(fd, true)
		}
	}
	_ = console.Close()
	if err != nil {
		return nil, &errdefs.Error{Op: "take the terminal", Kind: errdefs.KindOf(err), Err: err}
	}
	// The runtime's file may be one that the poller does not know; ours is.
	s := &stdio{bar: bar, console: os.NewFile(uintptr(fd), "console")}
	if s.out, err = newPump(logfile.Stdout, s.console, true, log, bar); err != nil {
		_ = s.console.Close()
		return nil, err
	}
	if cfg.OpenStdin {
		s.in = s.console
	}
	if cfg.Width > 0 && cfg.Height > 0 {
		err = s.resize(cfg.Width, cfg.Height)
	}
	return s, err
}

func (s *stdio) resize(width, height uint16) error {
	if s == nil || s.console == nil {
		return &errdefs.Error{Op: "resize the terminal", Kind: errdefs.InvalidArgument, Why: "the container has none"}
	}
	fd, err := number(s.console)
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: height, Col: width})
	}
	if err != nil {
		return &errdefs.Error{Op: "resize the terminal", Kind: errdefs.KindOf(err), Err: err}
	}
	return nil
}

func (s Stdio) close() {
	for _, f := range []*os.File{s.In, s.Out, s.Err} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// run starts the pumps.
func (s *stdio) run() {
	s.running = true
	for _, p := range s.pumps() {
		if !p.hasEnded() {
			s.bar.join()
			go p.run()
		}
	}
}

func (s *stdio) pumps() []*pump {
	if s.err == nil {
		return []*pump{s.out}
	}
	return []*pump{s.out, s.err}
}

// abandon closes streams that never ran.
func (s *stdio) abandon() {
	for _, p := range []*pump{s.out, s.err} {
		if p != nil {
			_ = p.src.Close()
		}
	}
	s.closeStdin()
}

// finish reads what is left after the container's end. It returns the log's errors.
func (s *stdio) finish() (errs []error) {
	if !s.running {
		s.abandon()
		return nil
	}
	for _, p := range s.pumps() {
		if err := p.finish(); err != nil {
			errs = append(errs, err)
		}
	}
	s.closeStdin()
	return errs
}

// stdin gives a file of its own to a client's reader, so that it can be interrupted without harm to others'. nil when
// stdin is closed.
func (s *stdio) stdin() *os.File {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.in == nil {
		return nil
	}
	fd, err := number(s.in)
	if err == nil {
		fd, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	}
	if err != nil {
		return nil
	}
	return os.NewFile(uintptr(fd), "stdin")
}

// closeStdin lets the container see the end of its input.
func (s *stdio) closeStdin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.in != nil && s.in != s.console {
		_ = s.in.Close()
	}
	s.in = nil
}

// source is a client's stdin on its way into the container.
type source struct {
	e     *endpoint
	dst   *os.File
	bar   *barrier
	ended atomic.Bool   // both are closed
	done  chan struct{} // closed when run has ended; with it, what was read has been written
}

func newSource(e *endpoint, dst *os.File, bar *barrier) *source {
	return &source{e: e, dst: dst, bar: bar, done: make(chan struct{})}
}

// run is the source's goroutine: it ends with the client's input, with the container's interest in it, or by close.
func (c *source) run(s *stdio) {
	defer c.bar.leave()
	defer close(c.done)
	buf, err := newBuffer()
	if err == nil {
		defer buf.free()
		for {
			if c.bar.wanted() {
				c.bar.park()
			}
			n, err := c.e.read(buf.b)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				if c.bar.wanted() {
					c.bar.park()
				}
				c.e.calm()
				continue
			}
			if err != nil {
				break
			}
			if _, err := c.dst.Write(buf.b[:n]); err != nil {
				break
			}
		}
	}
	c.close()
	if s.once {
		s.closeStdin()
	}
}

func (c *source) close() {
	c.ended.Store(true)
	c.e.close()
	_ = c.dst.Close()
}
