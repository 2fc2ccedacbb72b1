package logfile

import (
	"bytes"
	"encoding/binary"
	"io"
	"os"
)

// readAhead is the size of a cursor's buffer: a few frames, so that one pread serves many small ones.
const readAhead = 4 * maxFrame

var magicBytes = binary.LittleEndian.AppendUint32(nil, magic)

// cursor walks the frames of one file forwards.
type cursor struct {
	f     *os.File
	size  int64 // read no further; for a file that grows: the largest int64
	grows bool  // an incomplete frame at the end may become whole: do not skip over it
	base  int64 // file offset of buf[0]
	buf   []byte
	r     int   // index in buf of the next frame
	whole int64 // end of the last good frame
	at    int64 // beginning of the last good frame
}

// seek continues at offset off, which is the beginning of a frame.
func (c *cursor) seek(off int64) { c.base, c.buf, c.r, c.whole = off, c.buf[:0], 0, off }

// next returns the next good frame; its payload is valid until the next call. ok is false at the end: then a growing
// file may be asked again.
func (c *cursor) next() (f frame, ok bool, err error) {
	for {
		f, size, v := parse(c.buf[c.r:])
		if v == good {
			c.at = c.base + int64(c.r)
			c.r += size
			c.whole = c.base + int64(c.r)
			return f, true, nil
		}
		if v == short {
			more, err := c.fill()
			if err != nil {
				return frame{}, false, err
			}
			if more {
				continue
			}
			if c.grows || len(c.buf) == c.r {
				// What follows may still be written, or cut off and written anew: forget what was read of it.
				c.buf = c.buf[:c.r]
				return frame{}, false, nil
			}
		}
		// No whole frame begins here: look for one behind it. Three bytes may be the beginning of its magic.
		if i := bytes.Index(c.buf[c.r+1:], magicBytes); i >= 0 {
			c.r += 1 + i
			continue
		}
		c.r = max(c.r+1, len(c.buf)-len(magicBytes)+1)
		if more, err := c.fill(); err != nil || !more {
			return frame{}, false, err
		}
	}
}

// fill reads more of the file behind what is left in the buffer.
func (c *cursor) fill() (more bool, err error) {
	if c.buf == nil {
		c.buf = make([]byte, 0, readAhead)
	}
	if c.r > 0 {
		n := copy(c.buf, c.buf[c.r:])
		c.base += int64(c.r)
		c.buf, c.r = c.buf[:n], 0
	}
	have := len(c.buf)
	want := min(int64(cap(c.buf)-have), c.size-c.base-int64(have))
	if want <= 0 {
		return false, nil
	}
	n, err := c.f.ReadAt(c.buf[have:have+int(want)], c.base+int64(have))
	c.buf = c.buf[:have+n]
	if err == io.EOF {
		err = nil
	}
	return n > 0, err
}

// frameBefore reads the frame that ends at offset end. buf, if not nil, holds maxFrame bytes.
func frameBefore(f *os.File, end int64, buf []byte) (frame, bool) {
	var t [tailSize]byte
	if end < overhead {
		return frame{}, false
	}
	if _, err := f.ReadAt(t[:], end-tailSize); err != nil {
		return frame{}, false
	}
	n := int64(binary.LittleEndian.Uint32(t[:]))
	if n < overhead || n > maxFrame || n > end {
		return frame{}, false
	}
	if buf == nil {
		buf = make([]byte, n)
	}
	if _, err := f.ReadAt(buf[:n], end-n); err != nil {
		return frame{}, false
	}
	fr, size, v := parse(buf[:n])
	return fr, v == good && int64(size) == n
}
