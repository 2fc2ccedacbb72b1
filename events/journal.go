package events

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/onggi/onggi/errdefs"
	"golang.org/x/sys/unix"
)

// MaxSize is how large the log becomes before it is moved aside, bytes. A journal takes at most twice as much, and one
// record: some ten thousand events.
const MaxSize = 4 << 20

const (
	logName = "log"
	oldName = "log.1"
)

// Append writes one event into the journal dir, which it makes if it is missing. A zero Time is now.
func Append(dir string, e *Event) error {
	if e.Time.IsZero() {
		c := *e
		c.Time, e = time.Now(), &c
	}
	b, err := encode(e)
	if err == nil {
		err = appendRecord(dir, b)
	}
	if err != nil {
		return &errdefs.Error{Op: "record an event in", What: dir, Kind: errdefs.KindOf(err), Err: err}
	}
	return nil
}

func appendRecord(dir string, b []byte) error {
	path := filepath.Join(dir, logName)
	for {
		fd, err := unix.Open(path, unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
		if err == unix.ENOENT {
			if err = os.MkdirAll(dir, 0o700); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return &os.PathError{Op: "open", Path: path, Err: err}
		}
		again, err := appendTo(fd, dir, b)
		_ = unix.Close(fd)
		if !again {
			return err
		}
	}
}

// appendTo writes b into the open log fd. again: it has been moved aside, the new one is to be opened.
func appendTo(fd int, dir string, b []byte) (again bool, err error) {
	if err := flock(fd, unix.LOCK_SH); err != nil {
		return false, err
	}
	var st, now unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return false, err
	}
	path := filepath.Join(dir, logName)
	if err := unix.Lstat(path, &now); err != nil || now.Ino != st.Ino || now.Dev != st.Dev {
		return true, nil
	}
	if st.Size+int64(len(b)) > MaxSize && st.Size > 0 {
		// flock(2) does not turn one lock into another atomically; of several who try, at most one gets it while the
		// file still has its name. Who does not get it writes: the log grows by as many records as there are writers.
		if flock(fd, unix.LOCK_EX|unix.LOCK_NB) == nil {
			if err := unix.Lstat(path, &now); err == nil && now.Ino == st.Ino && now.Dev == st.Dev {
				return true, os.Rename(path, filepath.Join(dir, oldName))
			}
			return true, nil
		}
		if err := flock(fd, unix.LOCK_SH); err != nil {
			return false, err
		}
		if err := unix.Lstat(path, &now); err != nil || now.Ino != st.Ino || now.Dev != st.Dev {
			return true, nil
		}
	}
	n, err := unix.Write(fd, b)
	if err == nil && n < len(b) {
		err = unix.ENOSPC // the torn record is skipped by readers
	}
	return false, err
}

func flock(fd, how int) error {
	for {
		if err := unix.Flock(fd, how); err != unix.EINTR {
			return err
		}
	}
}

// ReadOptions of Read.
type ReadOptions struct {
	Since, Until time.Time // both inclusive; zero: from the first, to the last
	// Follow waits for more, until Until if it is set, else until the context ends.
	Follow bool
}

// Read calls yield for each event of the journal dir, in the order of writing. A journal that does not exist is an empty
// one; with Follow it is waited for. The first error of yield ends it and is returned. Without Follow a context that
// ends is an error; with it, it is how it ends.
func Read(ctx context.Context, dir string, o ReadOptions, yield func(*Event) error) error {
	r := &reader{dir: dir, o: o, yield: yield}
	defer r.close()
	if o.Follow {
		if !o.Until.IsZero() {
			var cancel context.CancelFunc
			ctx, cancel = context.WithDeadline(ctx, o.Until)
			defer cancel()
		}
		w, err := newWatch(ctx, dir)
		if err != nil {
			return &errdefs.Error{Op: "watch", What: dir, Kind: errdefs.KindOf(err), Err: err}
		}
		defer w.close()
		for {
			if err := r.all(); err != nil {
				return err
			}
			if !w.wait(ctx) {
				return r.all() // what came with the end
			}
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return r.all()
}

// reader holds the log that it is reading.
type reader struct {
	dir   string
	o     ReadOptions
	yield func(*Event) error

	begun bool
	f     *os.File
	rest  []byte // of a record that is not whole yet
}

func (r *reader) close() {
	if r.f != nil {
		_ = r.f.Close()
	}
}

// all yields what there is by now.
func (r *reader) all() error {
	if !r.begun {
		if err := r.begin(); err != nil {
			return err
		}
	}
	for {
		if r.f == nil {
			f, err := r.open(logName)
			if f == nil || err != nil {
				return err
			}
			r.f = f
		}
		// Asked before reading: nobody writes to a log that has been moved.
		moved := r.moved()
		if err := r.drain(); err != nil {
			return err
		}
		if !moved {
			return nil
		}
		// Usually it is the old one now; of two rotations since the last look one was missed.
		next, err := r.open(oldName)
		if err != nil {
			return err
		}
		if next != nil && sameFile(next, r.f) {
			_ = next.Close()
			next = nil
		}
		_ = r.f.Close()
		r.f, r.rest = next, nil
	}
}

func sameFile(a, b *os.File) bool {
	x, err := a.Stat()
	if err != nil {
		return false
	}
	y, err := b.Stat()
	return err == nil && os.SameFile(x, y)
}

// begin opens the oldest log there is, and the current one before it is read: a rotation meanwhile costs nothing but the
// oldest of what was there.
func (r *reader) begin() error {
	cur, err := r.open(logName)
	if err != nil {
		return err
	}
	old, err := r.open(oldName)
	if err != nil {
		return err
	}
	if old != nil && cur != nil && sameFile(old, cur) { // it was moved in between
		_ = old.Close()
		old = nil
	}
	r.begun = true
	if old != nil {
		r.f = old
		err := r.drain()
		_ = old.Close()
		r.rest = nil
		if err != nil {
			r.f = nil
			if cur != nil {
				_ = cur.Close()
			}
			return err
		}
	}
	r.f = cur
	return nil
}

func (r *reader) open(name string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(r.dir, name), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return f, err
}

// moved reports whether the log that is being read is no longer the current one.
func (r *reader) moved() bool {
	a, err := r.f.Stat()
	if err != nil {
		return true
	}
	b, err := os.Lstat(filepath.Join(r.dir, logName))
	return err != nil || !os.SameFile(a, b)
}

// drain yields the whole records from where the file has been read to.
func (r *reader) drain() error {
	in := bufio.NewReaderSize(io.MultiReader(bytes.NewReader(r.rest), r.f), 2*maxRecord)
	r.rest = nil
	for {
		line, err := in.ReadSlice(lf)
		if err == io.EOF {
			r.rest = bytes.Clone(line)
			return nil
		}
		if err == bufio.ErrBufferFull {
			continue // no record of ours: skip to its end
		}
		if err != nil {
			return &errdefs.Error{Op: "read", What: r.f.Name(), Kind: errdefs.KindOf(err), Err: err}
		}
		e, ok := decode(line)
		if !ok || !r.o.Since.IsZero() && e.Time.Before(r.o.Since) || !r.o.Until.IsZero() && e.Time.After(r.o.Until) {
			continue
		}
		if err := r.yield(e); err != nil {
			return err
		}
	}
}

// decode reads a line. What a torn record has left stands before the separator.
func decode(line []byte) (*Event, bool) {
	i := bytes.LastIndexByte(line, rs)
	if i < 0 {
		return nil, false
	}
	e := &Event{}
	if err := json.Unmarshal(line[i+1:], e); err != nil {
		return nil, false
	}
	return e, true
}
