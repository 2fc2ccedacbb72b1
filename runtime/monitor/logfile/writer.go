package logfile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/onggi/onggi/errdefs"
	"golang.org/x/sys/unix"
)

// Defaults of Create.
const (
	DefaultMaxSize  = 10 << 20 // bytes
	DefaultMaxFiles = 3
)

// minMaxSize holds one frame with a sensible payload.
const minMaxSize = 4 << 10

// Writer appends frames. It is not safe for concurrent use by several goroutines, except that Append may be called
// from one goroutine per stream. One process writes a log at a time; the caller sees to that (the monitor's lock).
type Writer struct {
	path     string
	maxSize  int64
	maxFiles int
	chunk    int        // the most payload that fits both a frame and a file
	json     *jsonState // of json-file; nil: the log is "local"

	mu   sync.Mutex // over all below
	fd   int        // -1 while a rotation is half done
	size int64      // of fd; what is behind it is not a frame
	lost bool       // the next frame says that something is missing before it
	head header
	tail [tailSize]byte
	iov  [3][]byte
}

// Create opens or makes the log at path, mode 0600. maxSize is bytes per file (at least 4 KiB; 0: 10 MiB), maxFiles
// counts the newest one (0: 3). A torn frame at the end is cut off.
func Create(path string, maxSize int64, maxFiles int) (*Writer, error) {
	return create(path, maxSize, maxFiles, nil)
}

func create(path string, maxSize int64, maxFiles int, j *jsonState) (*Writer, error) {
	w, err := newWriter(path, maxSize, maxFiles)
	if err != nil {
		return nil, err
	}
	w.json = j
	for i := w.maxFiles; ; i++ { // a larger max-file of the past
		if err := os.Remove(name(path, i)); err != nil {
			break
		}
	}
	if err := w.open(); err != nil {
		return nil, &errdefs.Error{Op: "open the log", What: path, Kind: errdefs.KindOf(err), Err: err}
	}
	return w, nil
}

// Reopen goes on with a log that this process has created: its end is whole, and nothing is read to see that.
func Reopen(path string, maxSize int64, maxFiles int) (*Writer, error) {
	w, err := newWriter(path, maxSize, maxFiles)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_APPEND|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &errdefs.Error{Op: "open the log", What: path, Kind: errdefs.KindOf(err), Err: err}
	}
	if w.size, err = unix.Seek(fd, 0, unix.SEEK_END); err != nil {
		_ = unix.Close(fd)
		return nil, &errdefs.Error{Op: "open the log", What: path, Kind: errdefs.KindOf(err), Err: err}
	}
	w.fd = fd
	return w, nil
}

func newWriter(path string, maxSize int64, maxFiles int) (*Writer, error) {
	if maxSize == 0 {
		maxSize = DefaultMaxSize
	}
	if maxFiles == 0 {
		maxFiles = DefaultMaxFiles
	}
	if maxSize < minMaxSize || maxFiles < 1 {
		return nil, &errdefs.Error{
			Op: "open the log", What: path, Kind: errdefs.InvalidArgument,
			Why: fmt.Sprintf("max-size %d and max-file %d must be at least %d bytes and 1 file", maxSize, maxFiles, minMaxSize),
			Fix: "use --log-opt max-size=10m --log-opt max-file=3",
		}
	}
	return &Writer{
		path: path, maxSize: maxSize, maxFiles: maxFiles, fd: -1,
		chunk: int(min(maxSize-overhead, MaxPayload)),
	}, nil
}

// open opens the newest file and cuts a torn end off. A file of a larger limit than today's is rotated by the next
// Append, as is one that is full.
func (w *Writer) open() error {
	f, err := os.OpenFile(w.path, os.O_RDWR|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return errors.New("not a regular file")
	}
	last := wholeEnd
	if w.json != nil {
		last = jsonEnd
	}
	end, err := last(f, st.Size())
	if err != nil {
		return err
	}
	if end < st.Size() {
		if err := f.Truncate(end); err != nil {
			return err
		}
	}
	// A descriptor of its own: the monitor writes with writev(2) and no os.File in between.
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	w.fd, w.size = fd, end
	return nil
}

// wholeEnd returns where the last whole frame of a file of size bytes ends. Almost always that is the end of the file,
// which the last frame's trailing length shows without reading the rest.
func wholeEnd(f *os.File, size int64) (int64, error) {
	if size == 0 {
		return 0, nil
	}
	if _, ok := frameBefore(f, size, nil); ok {
		return size, nil
	}
	c := cursor{f: f, size: size}
	for {
		_, ok, err := c.next()
		if err != nil || !ok {
			return c.whole, err
		}
	}
}

// Append writes one frame in one write(2); p longer than 64 KiB, or than a file may be, is split. When it fails nothing
// of the frame stays in the file, and the next frame that succeeds is marked: output is missing before it.
func (w *Writer) Append(s Stream, at time.Time, p []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.json != nil {
		if err := w.appendJSON(s, at, p); err != nil {
			return &errdefs.Error{Op: "write the log", What: w.path, Kind: errdefs.KindOf(err), Err: err}
		}
		return nil
	}
	for len(p) > 0 {
		n := min(len(p), w.chunk)
		if err := w.append(s, at, p[:n]); err != nil {
			w.lost = true
			return &errdefs.Error{Op: "write the log", What: w.path, Kind: errdefs.KindOf(err), Err: err}
		}
		p = p[n:]
	}
	return nil
}

func (w *Writer) append(s Stream, at time.Time, p []byte) error {
	total := overhead + len(p)
	if w.fd < 0 || w.size > 0 && w.size+int64(total) > w.maxSize {
		if err := w.rotate(); err != nil {
			return err
		}
	}
	var flags uint8
	if w.lost {
		flags |= flagLost
	}
	w.head.set(s, flags, at, p)
	binary.LittleEndian.PutUint32(w.tail[:], uint32(total))
	w.iov = [3][]byte{w.head[:], p, w.tail[:]}
	n, err := unix.Writev(w.fd, w.iov[:])
	for err == unix.EINTR {
		n, err = unix.Writev(w.fd, w.iov[:])
	}
	w.iov[1] = nil
	if err == nil && n != total {
		err = unix.ENOSPC // a short write of a regular file: the disk or the quota is full
	}
	if err != nil {
		// What is torn now would hide every later frame from a reader that trusts lengths.
		return errors.Join(err, unix.Ftruncate(w.fd, w.size))
	}
	w.size += int64(total)
	w.lost = false
	return nil
}

// rotate renames NAME.1 to NAME.2 and so on, NAME to NAME.1, and begins a new NAME. The oldest goes first, so that a
// crash in between loses no file but that one; a half-done rotation is finished by the next one.
func (w *Writer) rotate() error {
	if w.fd >= 0 {
		// Nothing follows in this file; what close could report was reported by the writes.
		_ = unix.Close(w.fd)
		w.fd = -1
	}
	if _, err := os.Lstat(w.path); errors.Is(err, fs.ErrNotExist) {
		return w.open() // the last rotation could not make the new file: the others have moved already
	}
	if w.maxFiles == 1 {
		if err := os.Remove(w.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return w.open()
	}
	for i := w.maxFiles - 1; i > 0; i-- {
		if err := os.Rename(name(w.path, i-1), name(w.path, i)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return w.open()
}

// name is the i-th newest file of a log.
func name(path string, i int) string {
	if i == 0 {
		return path
	}
	return path + "." + strconv.Itoa(i)
}

// Close closes the file, after Flush; with sync it is fsynced first.
func (w *Writer) Close(sync bool) error {
	err := w.Flush()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fd < 0 {
		return err
	}
	if sync {
		err = errors.Join(err, unix.Fsync(w.fd))
	}
	err = errors.Join(err, unix.Close(w.fd))
	w.fd = -1
	if err != nil {
		return &errdefs.Error{Op: "close the log", What: w.path, Kind: errdefs.KindOf(err), Err: err}
	}
	return nil
}
