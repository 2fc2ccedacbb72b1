package logfile

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math"
	"os"
	"time"

	"github.com/onggi/onggi/errdefs"
	"golang.org/x/sys/unix"
)

// ReadOptions select lines.
type ReadOptions struct {
	Tail           int // last n lines of the selected streams; -1 all
	Since, Until   time.Time
	Follow         bool        // go on until done returns true and the end is reached
	Done           func() bool // with Follow: the container has ended
	Stdout, Stderr bool
}

// Line is one line or the rest of one; Data includes the newline if there is one and is valid only during the call.
//
// A line longer than 1 MiB comes in several pieces, all with the line's time: a piece without a newline is continued by
// the stream's next one. Lines come in the order in which they were completed; the last, incomplete one of a stream
// comes at the end of the log, which with Follow is the end of the container.
type Line struct {
	Stream Stream
	Time   time.Time // when the line's first byte was read from the container
	Data   []byte
}

// maxLine bounds what is kept of an incomplete line.
const maxLine = 1 << 20

// Read calls fn for each selected line, oldest first, across rotated files. Tail is counted before Since and Until are
// applied, as docker does. A log that does not exist (yet) is an empty one. Damaged parts are skipped. It returns fn's
// error, the context's, or that of reading.
func Read(ctx context.Context, path string, o ReadOptions, fn func(Line) error) error {
	r := &reader{ctx: ctx, path: path, o: o, fn: fn}
	defer r.close()
	err := r.run()
	if err == nil || err == errStop {
		return nil
	}
	if r.fnErr != nil || ctx.Err() != nil {
		return err
	}
	return &errdefs.Error{Op: "read the log", What: path, Kind: errdefs.KindOf(err), Err: err}
}

// errStop ends the walk before the end of the log: everything that was asked for has been seen.
var errStop = errors.New("stop")

type reader struct {
	ctx   context.Context
	path  string
	o     ReadOptions
	fn    func(Line) error
	fnErr error

	files []*os.File // oldest first
	cur   cursor
	begin [3]position // of each stream's first selected byte
	pend  [3]pending
}

// position is a place in a payload; positions are ordered as the log is.
type position struct {
	file  int   // index in reader.files
	frame int64 // offset of the frame in the file
	skip  int   // payload bytes before the place
}

func (p position) before(q position) bool {
	if p.file != q.file {
		return p.file < q.file
	}
	if p.frame != q.frame {
		return p.frame < q.frame
	}
	return p.skip < q.skip
}

// pending is the incomplete line of a stream.
type pending struct {
	buf  []byte
	at   int64
	open bool // buf is not empty, or pieces of the line have been given out
}

func (r *reader) close() {
	for _, f := range r.files {
		if f != nil {
			_ = f.Close()
		}
	}
}

func (r *reader) wants(s Stream) bool { return s == Stdout && r.o.Stdout || s == Stderr && r.o.Stderr }

func (r *reader) run() error {
	var w *watch
	if r.o.Follow {
		w = newWatch(r.ctx, r.path) // before the first look, so that nothing between is missed
		defer w.close()
	}
	if err := r.open(); err != nil {
		return err
	}
	var from position
	if r.o.Tail >= 0 {
		from = r.tail()
	}
	for i := from.file; i < len(r.files); i++ {
		last := i == len(r.files)-1
		st, err := r.files[i].Stat()
		if err != nil {
			return err
		}
		r.cur = cursor{f: r.files[i], size: st.Size(), buf: r.cur.buf}
		if last && r.o.Follow {
			r.cur.size, r.cur.grows = math.MaxInt64, true
		}
		if r.cur.seek(0); i == from.file {
			r.cur.seek(from.frame)
		}
		if last && r.o.Follow {
			break
		}
		if err := r.drain(i); err != nil {
			return err
		}
		_ = r.files[i].Close()
		r.files[i] = nil
	}
	if r.o.Follow {
		if err := r.follow(w); err != nil {
			return err
		}
	}
	return r.flush()
}

// drain gives out what the cursor's file, the i-th, has.
func (r *reader) drain(i int) error {
	for {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		f, ok, err := r.cur.next()
		if err != nil || !ok {
			return err
		}
		if err := r.frame(f, position{file: i, frame: r.cur.at}); err != nil {
			return err
		}
	}
}

// open opens all files of the log, so that a rotation takes none from us. A rotation while we do so shows one inode
// under two names, or a name missing between two.
func (r *reader) open() error {
	for try := 0; ; try++ {
		var newest []*os.File
		var seen []os.FileInfo
		gap := false
	names:
		for i, missing := 0, 0; missing < 2; i++ {
			f, err := os.OpenFile(name(r.path, i), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
			if errors.Is(err, fs.ErrNotExist) {
				missing++
				continue
			}
			var st os.FileInfo
			if err == nil {
				st, err = f.Stat()
			}
			if err == nil && !st.Mode().IsRegular() {
				err = errors.New("not a regular file")
			}
			if err != nil {
				closeAll(append(newest, f))
				return err
			}
			gap = gap || missing > 0
			for _, s := range seen {
				if os.SameFile(s, st) {
					_ = f.Close()
					continue names
				}
			}
			newest, seen = append(newest, f), append(seen, st)
		}
		if gap && try < 20 {
			closeAll(newest)
			time.Sleep(time.Millisecond)
			continue
		}
		for i := len(newest) - 1; i >= 0; i-- {
			r.files = append(r.files, newest[i])
		}
		return nil
	}
}

func closeAll(fs []*os.File) {
	for _, f := range fs {
		if f != nil {
			_ = f.Close()
		}
	}
}

// tail sets begin so that the last Tail lines of the selected streams are given out. It walks backwards over newlines:
// each one ends a line, and begins the next one of its stream. It returns the earliest of the beginnings.
func (r *reader) tail() (from position) {
	end := position{file: len(r.files)}
	left := r.o.Tail
	var seen, open [3]bool // of each stream: met; open: the line's beginning is still to be found
	if n := len(r.files); n > 0 {
		// A stream that the walk does not reach is followed from here on.
		st, err := r.files[n-1].Stat()
		if err != nil {
			return end
		}
		end = position{file: n - 1, frame: st.Size()}
	}
	r.begin[Stdout], r.begin[Stderr] = end, end
	defer func() {
		for s := range open {
			if open[s] { // the log begins inside the line, or with it
				r.begin[s] = position{}
			}
		}
		from = r.begin[Stdout]
		if !r.o.Stdout || r.o.Stderr && r.begin[Stderr].before(from) {
			from = r.begin[Stderr]
		}
	}()
	buf := make([]byte, maxFrame)
	whole := true
	for i := len(r.files) - 1; i >= 0; i-- {
		st, err := r.files[i].Stat()
		if err != nil {
			break
		}
		for at, repairs := st.Size(), 0; at > 0; {
			if left == 0 && !open[Stdout] && !open[Stderr] {
				return from
			}
			f, ok := frameBefore(r.files[i], at, buf)
			if !ok {
				// Torn or damaged: find the last whole frame from the front. Bounded, for a file that is
				// damaged everywhere would be read once for each of its frames.
				repairs++
				w, err := wholeEnd(r.files[i], at)
				if err != nil || w >= at || repairs > 16 {
					break
				}
				if end.file == i && end.frame == at && whole {
					// The torn end of the newest file: the writer will go on here.
					for s := range r.begin {
						if r.begin[s] == end {
							r.begin[s].frame = w
						}
					}
				}
				at = w
				continue
			}
			whole = false
			at -= int64(overhead + len(f.payload))
			s := f.stream
			if !r.wants(s) {
				continue
			}
			p := f.payload
			if !seen[s] {
				seen[s] = true
				if len(p) > 0 && p[len(p)-1] != '\n' && left > 0 {
					left--
					open[s] = true
				}
			}
			for k := bytes.LastIndexByte(p, '\n'); k >= 0; k = bytes.LastIndexByte(p[:k], '\n') {
				if open[s] {
					r.begin[s], open[s] = position{i, at, k + 1}, false
				}
				if left == 0 {
					break
				}
				left--
				open[s] = true
			}
		}
	}
	return from
}

// frame gives out the lines that f completes.
func (r *reader) frame(f frame, at position) error {
	s := f.stream
	if !r.wants(s) {
		return nil
	}
	p := f.payload
	if b := r.begin[s]; at.before(b) {
		if at.file != b.file || at.frame != b.frame {
			return nil
		}
		p = p[min(b.skip, len(p)):]
	}
	if !r.o.Until.IsZero() && f.at > r.o.Until.UnixNano() && !r.pend[Stdout].open && !r.pend[Stderr].open {
		return errStop
	}
	d := &r.pend[s]
	for len(p) > 0 {
		n := bytes.IndexByte(p, '\n') + 1
		if n > 0 && !d.open {
			if err := r.emit(s, f.at, p[:n]); err != nil {
				return err
			}
			p = p[n:]
			continue
		}
		if !d.open {
			d.open, d.at = true, f.at
		}
		end := n > 0
		if !end {
			n = len(p)
		}
		d.buf = append(d.buf, p[:n]...)
		p = p[n:]
		if end || len(d.buf) >= maxLine {
			if err := r.emit(s, d.at, d.buf); err != nil {
				return err
			}
			d.buf = d.buf[:0]
			d.open = !end
		}
	}
	return nil
}

// flush gives out the incomplete lines, the one that was begun first.
func (r *reader) flush() error {
	order := [2]Stream{Stdout, Stderr}
	if r.pend[Stderr].at < r.pend[Stdout].at {
		order = [2]Stream{Stderr, Stdout}
	}
	for _, s := range order {
		if d := &r.pend[s]; len(d.buf) > 0 {
			if err := r.emit(s, d.at, d.buf); err != nil {
				return err
			}
			*d = pending{}
		}
	}
	return nil
}

func (r *reader) emit(s Stream, at int64, data []byte) error {
	if !r.o.Since.IsZero() && at < r.o.Since.UnixNano() || !r.o.Until.IsZero() && at > r.o.Until.UnixNano() {
		return nil
	}
	r.fnErr = r.fn(Line{Stream: s, Time: time.Unix(0, at), Data: data})
	return r.fnErr
}

// follow reads on in the newest file, and in those that follow it, until the container has ended.
func (r *reader) follow(w *watch) error {
	i := len(r.files) - 1
	for {
		// Ask before reading: what was written before the end is then read after it.
		done := r.o.Done != nil && r.o.Done()
		late := !r.o.Until.IsZero() && time.Now().After(r.o.Until)
		if i < 0 { // there was no log yet
			if err := r.open(); err != nil {
				return err
			}
			if i = len(r.files) - 1; i >= 0 {
				i = 0
				r.cur = cursor{f: r.files[0], size: math.MaxInt64, grows: true}
			}
		}
		if i >= 0 {
			// Whether it has been replaced is asked before reading it, too: after that nothing is added to it.
			next, err := r.successor(r.files[i])
			if err != nil {
				return err
			}
			if next != nil {
				r.cur.grows = false // what is torn now stays torn
				if st, err := r.files[i].Stat(); err == nil {
					r.cur.size = st.Size()
				}
			}
			if err := r.drain(i); err != nil {
				closeAll([]*os.File{next})
				return err
			}
			if next != nil {
				_ = r.files[i].Close()
				r.files[i] = nil
				r.files = append(r.files, next)
				i = len(r.files) - 1
				r.cur = cursor{f: next, size: math.MaxInt64, grows: true, buf: r.cur.buf[:0]}
				continue
			}
		}
		if done || late {
			return nil
		}
		if err := w.wait(r.ctx); err != nil {
			return err
		}
	}
}

// successor opens the file that was begun when cur was full; nil while cur is the newest. A follower that was too slow
// goes on with the oldest file that is left.
func (r *reader) successor(cur *os.File) (*os.File, error) {
	me, err := cur.Stat()
	if err != nil {
		return nil, err
	}
	for try := 0; try < 100; try++ {
		oldest, mine, newest := -1, -1, -1
		for i, missing := 0, 0; missing < 2; i++ {
			st, err := os.Lstat(name(r.path, i))
			if errors.Is(err, fs.ErrNotExist) {
				missing++
				continue
			}
			if err != nil {
				return nil, err
			}
			if newest < 0 {
				newest = i
			}
			oldest = i
			if mine < 0 && os.SameFile(st, me) {
				mine = i
			}
		}
		switch {
		case oldest < 0 || mine == 0:
			return nil, nil // removed, or still the newest
		case mine > 0 && mine-1 < newest:
			return nil, nil // renamed, and its successor is not made yet
		}
		next := oldest
		if mine > 0 {
			next = mine - 1
		}
		f, err := os.OpenFile(name(r.path, next), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		st, err := f.Stat()
		if err != nil {
			_ = f.Close()
			return nil, err
		}
		// Was it renamed between looking and opening? Then it is not the one behind ours.
		now, err := os.Lstat(name(r.path, next))
		if os.SameFile(st, me) || err != nil || !os.SameFile(now, st) {
			_ = f.Close()
			continue
		}
		if mine > 0 {
			if now, err := os.Lstat(name(r.path, mine)); err != nil || !os.SameFile(now, me) {
				_ = f.Close()
				continue
			}
		}
		return f, nil
	}
	return nil, nil // rotating faster than we can look: wait for the next event
}
