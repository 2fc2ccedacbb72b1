package logfile

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"time"
	"unicode/utf8"

	"github.com/onggi/onggi/errdefs"
	"golang.org/x/sys/unix"
)

// The log "json-file" is docker's: a line of JSON for each line of output, for the many programs that read such files.
//
//	{"log":"text\n","stream":"stdout","time":"2026-01-31T12:00:00.123456789Z"}
//
// What has no line break is without one in "log" too, and continued by the stream's next record: lines longer than 16 KiB,
// and the last words. Bytes that are not UTF-8 become U+FFFD, as docker writes them: the log "local" keeps them. Rotation
// is that of "local". A line is written when it is complete.

// maxPart is the most of one line that one record holds, as docker's.
const maxPart = 16 << 10

// maxRecord bounds a record that is read: each byte may be escaped in six.
const maxRecord = 6*maxPart + 1024

// jsonState is what a Writer of json-file has besides.
type jsonState struct {
	part [3][]byte // the incomplete line of each stream
	at   [3]time.Time
	out  []byte // records that are not written yet
}

// CreateJSON is Create for json-file.
func CreateJSON(path string, maxSize int64, maxFiles int) (*Writer, error) {
	return create(path, maxSize, maxFiles, &jsonState{})
}

// ReopenJSON is Reopen for json-file. What Flush has not written is lost.
func ReopenJSON(path string, maxSize int64, maxFiles int) (*Writer, error) {
	w, err := Reopen(path, maxSize, maxFiles)
	if err == nil {
		w.json = &jsonState{}
	}
	return w, err
}

// appendJSON takes output in, and writes the lines that are complete. Preconditions: mu is held.
func (w *Writer) appendJSON(s Stream, at time.Time, p []byte) error {
	j := w.json
	for len(p) > 0 {
		if len(j.part[s]) == 0 {
			j.at[s] = at
		}
		n := bytes.IndexByte(p, '\n') + 1
		whole := n > 0
		if !whole {
			n = len(p)
		}
		if room := maxPart - len(j.part[s]); n > room {
			n, whole = room, true
			for n > 0 && len(p) > n && !utf8.RuneStart(p[n]) && n > room-utf8.UTFMax { // not in the middle of a character
				n--
			}
		}
		if !whole {
			j.part[s] = append(j.part[s], p...)
			break
		}
		line := p[:n]
		if len(j.part[s]) > 0 {
			line = append(j.part[s], line...)
		}
		j.part[s] = nil // a waiting monitor keeps no buffer
		if err := w.putRecord(s, j.at[s], line); err != nil {
			return err
		}
		p = p[n:]
	}
	return w.writeRecords()
}

// putRecord adds a record to what is to be written, and writes that when the file is full with it.
func (w *Writer) putRecord(s Stream, at time.Time, line []byte) error {
	j := w.json
	before := len(j.out)
	j.out = encodeRecord(j.out, s, at, line)
	added := int64(len(j.out) - before)
	if w.size > 0 && w.size+int64(len(j.out)) > w.maxSize || before > 0 && int64(len(j.out)) > w.maxSize {
		next := bytes.Clone(j.out[before:])
		j.out = j.out[:before]
		if err := w.writeRecords(); err != nil {
			return err
		}
		if w.size > 0 && w.size+added > w.maxSize {
			if err := w.rotate(); err != nil {
				return err
			}
		}
		j.out = append(j.out[:0], next...)
	}
	return nil
}

// writeRecords writes what waits, in one write(2). When it fails nothing of it stays in the file.
func (w *Writer) writeRecords() error {
	out := w.json.out
	w.json.out = nil
	if len(out) == 0 {
		return nil
	}
	if w.fd < 0 {
		if err := w.rotate(); err != nil {
			return err
		}
	}
	n, err := unix.Write(w.fd, out)
	for err == unix.EINTR {
		n, err = unix.Write(w.fd, out)
	}
	if err == nil && n != len(out) {
		err = unix.ENOSPC
	}
	if err != nil {
		return errors.Join(err, unix.Ftruncate(w.fd, w.size))
	}
	w.size += int64(n)
	return nil
}

// Flush writes the beginnings of lines that are not complete. Only json-file has such.
func (w *Writer) Flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.json == nil {
		return nil
	}
	for _, s := range []Stream{Stdout, Stderr} {
		if part := w.json.part[s]; len(part) > 0 {
			w.json.part[s] = nil
			if err := w.putRecord(s, w.json.at[s], part); err != nil {
				return err
			}
		}
	}
	return w.writeRecords()
}

// encodeRecord appends a record: docker's, to the byte.
func encodeRecord(b []byte, s Stream, at time.Time, line []byte) []byte {
	b = append(b, `{"log":"`...)
	const hex = "0123456789abcdef"
	for len(line) > 0 {
		c := line[0]
		if c < utf8.RuneSelf {
			switch {
			case c == '"' || c == '\\':
				b = append(b, '\\', c)
			case c == '\n':
				b = append(b, '\\', 'n')
			case c == '\r':
				b = append(b, '\\', 'r')
			case c < 0x20 || c == '<' || c == '>' || c == '&':
				b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
			default:
				b = append(b, c)
			}
			line = line[1:]
			continue
		}
		r, n := utf8.DecodeRune(line)
		switch {
		case r == utf8.RuneError && n == 1:
			b = append(b, `\ufffd`...)
		case r == '\u2028' || r == '\u2029':
			b = append(b, '\\', 'u', '2', '0', '2', hex[r&15])
		default:
			b = append(b, line[:n]...)
		}
		line = line[n:]
	}
	stream := "stdout"
	if s == Stderr {
		stream = "stderr"
	}
	b = append(b, `","stream":"`+stream+`","time":"`...)
	b = at.UTC().AppendFormat(b, time.RFC3339Nano)
	return append(b, '"', '}', '\n')
}

// jsonEnd returns where the last whole record of a file ends.
func jsonEnd(f *os.File, size int64) (int64, error) {
	var buf [4096]byte
	for end := size; end > 0; {
		n := min(end, int64(len(buf)))
		if _, err := f.ReadAt(buf[:n], end-n); err != nil {
			return 0, err
		}
		if i := bytes.LastIndexByte(buf[:n], '\n'); i >= 0 {
			return end - n + int64(i) + 1, nil
		}
		end -= n
	}
	return 0, nil
}

// ReadJSON is Read for json-file. Records that are none are left out.
func ReadJSON(ctx context.Context, path string, o ReadOptions, fn func(Line) error) error {
	r := &jsonReader{reader: reader{ctx: ctx, path: path, o: o, fn: fn}}
	defer r.close()
	err := r.runJSON()
	if err == nil || r.fnErr != nil || ctx.Err() != nil {
		return err
	}
	return &errdefs.Error{Op: "read the log", What: path, Kind: errdefs.KindOf(err), Err: err}
}

type jsonReader struct {
	reader
	at   int64  // how far the current file has been read
	rest []byte // of a record that is not whole yet
	buf  []byte
}

func (r *jsonReader) runJSON() error {
	var w *watch
	if r.o.Follow {
		w = newWatch(r.ctx, r.path)
		defer w.close()
	}
	if err := r.open(); err != nil {
		return err
	}
	from := 0
	if r.o.Tail >= 0 {
		var err error
		if from, r.at, err = r.tailJSON(); err != nil {
			return err
		}
	}
	for i := from; i < len(r.files); i++ {
		if i == len(r.files)-1 && r.o.Follow {
			break
		}
		if err := r.drainJSON(i); err != nil {
			return err
		}
		r.at, r.rest = 0, nil
	}
	if !r.o.Follow {
		return nil
	}
	i := len(r.files) - 1
	for {
		done := r.o.Done != nil && r.o.Done()
		late := !r.o.Until.IsZero() && time.Now().After(r.o.Until)
		if i < 0 {
			if err := r.open(); err != nil {
				return err
			}
			if len(r.files) > 0 {
				i, r.at = 0, 0
			}
		}
		if i >= 0 {
			next, err := r.successor(r.files[i])
			if err != nil {
				return err
			}
			if err := r.drainJSON(i); err != nil {
				closeAll([]*os.File{next})
				return err
			}
			if next != nil {
				_ = r.files[i].Close()
				r.files[i] = nil
				r.files = append(r.files, next)
				i, r.at, r.rest = len(r.files)-1, 0, nil
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

// drainJSON gives out the records of file i from r.at on.
func (r *jsonReader) drainJSON(i int) error {
	if r.buf == nil {
		r.buf = make([]byte, 64<<10)
	}
	for {
		n, err := r.files[i].ReadAt(r.buf, r.at)
		r.at += int64(n)
		b := r.buf[:n]
		for {
			k := bytes.IndexByte(b, '\n')
			if k < 0 {
				break
			}
			line := b[:k]
			if len(r.rest) > 0 {
				line = append(r.rest, line...)
				r.rest = nil
			}
			if gerr := r.give(line); gerr != nil {
				return gerr
			}
			b = b[k+1:]
		}
		if len(b) > 0 && len(r.rest) <= maxRecord { // a longer one is none of ours
			r.rest = append(r.rest, b...)
		}
		if err == io.EOF || err == nil && n == 0 {
			return nil
		}
		if err != nil {
			return err
		}
		if err := r.ctx.Err(); err != nil {
			return err
		}
	}
}

// record is one line of the file.
type record struct {
	Log    string    `json:"log"`
	Stream string    `json:"stream"`
	Time   time.Time `json:"time"`
}

func (r *jsonReader) parse(line []byte) (rec record, s Stream, ok bool) {
	if len(line) > maxRecord || json.Unmarshal(line, &rec) != nil {
		return rec, 0, false
	}
	switch rec.Stream {
	case "stdout":
		s = Stdout
	case "stderr":
		s = Stderr
	}
	return rec, s, s != 0 && r.wants(s)
}

func (r *jsonReader) give(line []byte) error {
	rec, s, ok := r.parse(line)
	if !ok || !r.o.Since.IsZero() && rec.Time.Before(r.o.Since) || !r.o.Until.IsZero() && rec.Time.After(r.o.Until) {
		return nil
	}
	if err := r.fn(Line{Stream: s, Time: rec.Time, Data: []byte(rec.Log)}); err != nil {
		r.fnErr = err
		return err
	}
	return nil
}

// tailJSON finds where the last Tail lines begin, reading backwards.
func (r *jsonReader) tailJSON() (file int, off int64, err error) {
	left := r.o.Tail
	if left == 0 {
		if len(r.files) == 0 {
			return 0, 0, nil
		}
		i := len(r.files) - 1
		st, err := r.files[i].Stat()
		if err != nil {
			return 0, 0, err
		}
		return i, st.Size(), nil
	}
	buf := make([]byte, 64<<10)
	for i := len(r.files) - 1; i >= 0; i-- {
		st, err := r.files[i].Stat()
		if err != nil {
			return 0, 0, err
		}
		end := st.Size()
		var behind []byte // the beginning of the record that the last block cut
		for end > 0 {
			n := min(end, int64(len(buf)))
			if _, err := r.files[i].ReadAt(buf[:n], end-n); err != nil && err != io.EOF {
				return 0, 0, err
			}
			b := append(bytes.Clone(buf[:n]), behind...)
			base := end - n
			for {
				// The last record of b: what is behind the last but one line break.
				stop := len(b)
				if stop > 0 && b[stop-1] == '\n' {
					stop--
				}
				k := bytes.LastIndexByte(b[:stop], '\n')
				if k < 0 {
					break
				}
				if rec, _, ok := r.parse(b[k+1 : stop]); ok && (len(rec.Log) > 0 && rec.Log[len(rec.Log)-1] == '\n' || left == r.o.Tail) {
					if left--; left < 0 {
						// The line before those that are wanted: they begin behind it.
						return i, base + int64(k) + 1 + int64(stop-k), nil
					}
				}
				b = b[:k+1]
			}
			behind = b
			if len(behind) > maxRecord {
				behind = nil
			}
			end = base
		}
		if len(behind) > 0 { // the file's first record
			stop := len(behind)
			if behind[stop-1] == '\n' {
				stop--
			}
			if rec, _, ok := r.parse(behind[:stop]); ok && (len(rec.Log) > 0 && rec.Log[len(rec.Log)-1] == '\n' || left == r.o.Tail) {
				if left--; left < 0 {
					return i, int64(len(behind)), nil
				}
			}
		}
	}
	return 0, 0, nil
}
