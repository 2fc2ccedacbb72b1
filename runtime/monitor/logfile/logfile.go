// Package logfile is the container log "local": bounded, rotated, and whole after a crash.
//
// A file is a row of frames; a frame is what one read of a stream returned (up to 64 KiB, so many lines share one
// header and one time):
//
//	u32 magic+version | u8 stream | u8 flags | u16 reserved | i64 time (ns since 1970) | u32 length | u32 crc32c(header+payload)
//	payload
//	u32 length of the whole frame (for reading backwards)
//
// little endian. A torn last frame (crash, power loss) is recognised by its length or checksum and ignored, and the
// writer truncates it when it opens the file again. When a file would exceed MaxSize it becomes NAME.1, NAME.1 becomes
// NAME.2, and so on; at most MaxFiles stay. Readers see lines: they join frames of one stream and split at newlines;
// bytes that are not text are kept.
package logfile

import (
	"context"
	"time"
)

// Stream is where a frame came from.
type Stream uint8

// The streams.
const (
	Stdout Stream = 1
	Stderr Stream = 2
)

// Writer appends frames. It is not safe for concurrent use by several goroutines, except that Append may be called
// from one goroutine per stream.
type Writer struct{}

// Create opens or makes the log at path.
func Create(path string, maxSize int64, maxFiles int) (*Writer, error) { panic("contract") }

// Append writes one frame in one write(2).
func (w *Writer) Append(s Stream, at time.Time, p []byte) error { panic("contract") }

// Close closes the file; with sync it is fsynced first.
func (w *Writer) Close(sync bool) error { panic("contract") }

// ReadOptions select lines.
type ReadOptions struct {
	Tail           int // last n lines; -1 all
	Since, Until   time.Time
	Follow         bool        // go on until done returns true and the end is reached
	Done           func() bool // with Follow: the container has ended
	Stdout, Stderr bool
}

// Line is one line or the rest of one; Data includes the newline if there is one and is valid only during the call.
type Line struct {
	Stream Stream
	Time   time.Time
	Data   []byte
}

// Read calls fn for each selected line, oldest first, across rotated files.
func Read(ctx context.Context, path string, o ReadOptions, fn func(Line) error) error {
	panic("contract")
}
