package logfile

import (
	"encoding/binary"
	"hash/crc32"
	"sync"
	"time"
)

// Stream is where a frame came from.
type Stream uint8

// The streams.
const (
	Stdout Stream = 1
	Stderr Stream = 2
)

const (
	magic      = 0x01474f4c // "LOG", version 1
	headerSize = 24
	tailSize   = 4
	overhead   = headerSize + tailSize

	// MaxPayload is the most that one frame holds; Append splits what is longer.
	MaxPayload = 64 << 10

	flagLost = 1 // output was lost before this frame: the disk was full

	maxFrame = overhead + MaxPayload
)

// castagnoli is made when it is first used: it takes a quarter of a millisecond, which every process with this package
// in it would pay before its main.
var castagnoli = sync.OnceValue(func() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) })

// checksum covers a header up to the checksum itself, and the payload.
func checksum(head, payload []byte) uint32 {
	t := castagnoli()
	return crc32.Update(crc32.Checksum(head[:20], t), t, payload)
}

// header is a frame's first 24 bytes.
//
//	0 magic | 4 stream | 5 flags | 6 reserved | 8 time | 16 length | 20 crc32c of bytes 0..19 and of the payload
type header [headerSize]byte

func (h *header) set(s Stream, flags uint8, at time.Time, p []byte) {
	le := binary.LittleEndian
	le.PutUint32(h[0:], magic)
	h[4], h[5], h[6], h[7] = uint8(s), flags, 0, 0
	le.PutUint64(h[8:], uint64(at.UnixNano()))
	le.PutUint32(h[16:], uint32(len(p)))
	le.PutUint32(h[20:], checksum(h[:], p))
}

// frame is a parsed frame; payload points into the buffer it was parsed from.
type frame struct {
	stream  Stream
	flags   uint8
	at      int64
	payload []byte
}

type verdict uint8

const (
	good  verdict = iota
	short         // the buffer ends inside the frame: more bytes may complete it
	bad           // no frame begins here
)

// parse reads the frame at the beginning of b and its whole size.
func parse(b []byte) (f frame, size int, v verdict) {
	if len(b) < headerSize {
		return frame{}, 0, short
	}
	le := binary.LittleEndian
	n := le.Uint32(b[16:])
	if le.Uint32(b) != magic || n > MaxPayload {
		return frame{}, 0, bad
	}
	size = overhead + int(n)
	if len(b) < size {
		return frame{}, size, short
	}
	p := b[headerSize : headerSize+int(n)]
	if le.Uint32(b[headerSize+int(n):]) != uint32(size) ||
		checksum(b, p) != le.Uint32(b[20:]) {
		return frame{}, 0, bad
	}
	return frame{Stream(b[4]), b[5], int64(le.Uint64(b[8:])), p}, size, good
}
