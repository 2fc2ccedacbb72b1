package archive

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/onggi/onggi/errdefs"
)

// Compression is a layer's encoding.
type Compression string

// The encodings of image-spec.
const (
	Plain Compression = ""
	Gzip  Compression = "gzip"
	Zstd  Compression = "zstd"
)

// maxWindow is the most memory that a zstd frame may ask for; the reference tool allows as much without --long.
const maxWindow = 128 << 20

var magics = []struct {
	magic string
	c     Compression
	name  string // of what we know but do not read
}{
	{"\x1f\x8b", Gzip, ""},
	{"\x28\xb5\x2f\xfd", Zstd, ""},
	{"\xfd7zXZ\x00", "", "xz"},
	{"BZh", "", "bzip2"},
	{"\x04\x22\x4d\x18", "", "lz4"},
	{"LZIP", "", "lzip"},
	{"PK\x03\x04", "", "zip"},
}

// sniff tells the encoding by the first bytes. Zstd's skippable frames (RFC 8878, section 3.1.2), which zstd:chunked
// layers may begin with, are 0x184D2A50 to 0x184D2A5F.
func sniff(head []byte) (Compression, error) {
	for _, m := range magics {
		if !bytes.HasPrefix(head, []byte(m.magic)) {
			continue
		}
		if m.name != "" {
			if len(head) >= 262 && string(head[257:262]) == "ustar" {
				return Plain, nil // a tar whose first name begins like that
			}
			return Plain, &errdefs.Error{
				Op: "decompress the archive", Kind: errdefs.Unsupported,
				Why: "it is " + m.name + "; layers are plain, gzip or zstd (image-spec)",
				Fix: "decompress it first and give the plain tar",
			}
		}
		return m.c, nil
	}
	if len(head) >= 4 && head[0]&0xf0 == 0x50 && head[1] == 0x2a && head[2] == 0x4d && head[3] == 0x18 {
		return Zstd, nil
	}
	return Plain, nil
}

// Decompress looks at the first bytes of r and returns a reader of the uncompressed stream, which reads r to its end
// before it says io.EOF. Several gzip members or zstd frames are one stream, as for gzip(1) and zstd(1). Zeros after
// the last gzip member are padding; anything else there is Corrupt, because nothing would look at it. Memory is bounded
// (a zstd window above 128 MiB is refused). Errors of the format are of kind Corrupt, those of r pass as they are; what
// is compressed otherwise is Unsupported. Close frees the decoder, not r.
func Decompress(r io.Reader) (io.ReadCloser, Compression, error) {
	src := &source{r: r}
	in := bufio.NewReaderSize(src, 32<<10)
	head, err := in.Peek(512)
	if err != nil && err != io.EOF {
		return nil, Plain, err
	}
	c, err := sniff(head)
	if err != nil {
		return nil, Plain, err
	}
	switch c {
	case Gzip:
		return &gzipReader{src: src, f: newInflater(in)}, Gzip, nil
	case Zstd:
		z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(maxWindow))
		if err != nil {
			return nil, Zstd, formatError(src, "zstd", err)
		}
		return &zstdReader{src: src, z: z}, Zstd, nil
	}
	return io.NopCloser(in), Plain, nil
}

// Unwrap is Decompress for archives that people write, which layers are not: it reads xz and bzip2, too. Compressed says whether
// it was compressed at all.
func Unwrap(r io.Reader) (_ io.ReadCloser, compressed bool, err error) {
	in := bufio.NewReaderSize(r, 32<<10)
	head, err := in.Peek(6)
	if err != nil && err != io.EOF {
		return nil, false, err
	}
	switch {
	case bytes.HasPrefix(head, xzMagic):
		return io.NopCloser(newXZ(in)), true, nil
	case bytes.HasPrefix(head, []byte("BZh")):
		return io.NopCloser(&bzipReader{r: bzip2.NewReader(in)}), true, nil
	}
	d, c, err := Decompress(in)
	return d, c != Plain, err
}

// bzipReader gives bzip2's errors a kind.
type bzipReader struct{ r io.Reader }

func (b *bzipReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if _, bad := err.(bzip2.StructuralError); bad || err == io.ErrUnexpectedEOF {
		err = &errdefs.Error{Op: "decompress", What: "the bzip2 archive", Kind: errdefs.Corrupt, Err: err}
	}
	return n, err
}

// gzipReader reads member after member (RFC 1952).
type gzipReader struct {
	src  *source
	f    *inflater
	cur  []byte // decoded and not yet read
	crc  uint32
	size uint32
	in   bool // in a member
	err  error
}

func (g *gzipReader) Read(p []byte) (int, error) {
	for len(g.cur) == 0 {
		if g.err == nil {
			g.cur, g.err = g.more()
		}
		if g.err != nil {
			return 0, g.err
		}
	}
	n := copy(p, g.cur)
	g.cur = g.cur[n:]
	return n, nil
}

// more decodes the next piece, which may be empty.
func (g *gzipReader) more() ([]byte, error) {
	if !g.in {
		if err := g.member(); err != nil {
			return nil, err
		}
		g.in, g.crc, g.size = true, 0, 0
	}
	b, err := g.f.next()
	if err == nil {
		g.crc = crc32.Update(g.crc, crc32.IEEETable, b)
		g.size += uint32(len(b))
		return b, nil
	}
	if err != io.EOF {
		return nil, formatError(g.src, "gzip", err)
	}
	t := g.f.bytes(8)
	if len(t) < 8 {
		return nil, formatError(g.src, "gzip", io.ErrUnexpectedEOF)
	}
	if binary.LittleEndian.Uint32(t) != g.crc || binary.LittleEndian.Uint32(t[4:]) != g.size {
		return nil, formatError(g.src, "gzip", errors.New("its checksum or size is wrong"))
	}
	g.f.skip(8)
	g.f.reset()
	g.in = false
	return nil, g.between()
}

// between looks at what follows a member: the end, zeros up to the end, or another member.
func (g *gzipReader) between() error {
	b := g.f.bytes(1)
	if len(b) == 0 {
		return g.ended()
	}
	if b[0] != 0 {
		return nil
	}
	for {
		b := g.f.bytes(inSize / 4)
		if len(b) == 0 {
			return g.ended()
		}
		for _, c := range b {
			if c != 0 {
				return formatError(g.src, "gzip", errors.New("something else follows the compressed data"))
			}
		}
		g.f.skip(len(b))
	}
}

// ended is io.EOF, or what the reader below ended with instead.
func (g *gzipReader) ended() error {
	if g.src.err != nil {
		return g.src.err
	}
	return io.EOF
}

// The flags of a member's header (RFC 1952, section 2.3.1).
const (
	gzHeaderCRC = 1 << 1
	gzExtra     = 1 << 2
	gzName      = 1 << 3
	gzComment   = 1 << 4
	gzReserved  = 0xe0
)

// member reads a member's header.
func (g *gzipReader) member() error {
	h := g.f.bytes(10)
	switch {
	case len(h) < 10:
		return formatError(g.src, "gzip", io.ErrUnexpectedEOF)
	case h[0] != 0x1f || h[1] != 0x8b || h[2] != 8 || h[3]&gzReserved != 0:
		return formatError(g.src, "gzip", errors.New("it is no gzip header"))
	}
	flags, crc := h[3], crc32.ChecksumIEEE(h)
	g.f.skip(10)
	take := func(n int) ([]byte, error) {
		b := g.f.bytes(n)
		if len(b) < n {
			return nil, formatError(g.src, "gzip", io.ErrUnexpectedEOF)
		}
		crc = crc32.Update(crc, crc32.IEEETable, b)
		g.f.skip(n)
		return b, nil
	}
	if flags&gzExtra != 0 {
		b, err := take(2)
		if err != nil {
			return err
		}
		if _, err := take(int(binary.LittleEndian.Uint16(b))); err != nil {
			return err
		}
	}
	for _, f := range []byte{gzName, gzComment} {
		for n := 0; flags&f != 0; n++ {
			if n > 64<<10 {
				return formatError(g.src, "gzip", errors.New("a name in its header does not end"))
			}
			b, err := take(1)
			if err != nil {
				return err
			}
			if b[0] == 0 {
				break
			}
		}
	}
	if flags&gzHeaderCRC != 0 {
		want := uint16(crc)
		b, err := take(2)
		if err != nil {
			return err
		}
		if binary.LittleEndian.Uint16(b) != want {
			return formatError(g.src, "gzip", errors.New("the checksum of its header is wrong"))
		}
	}
	return nil
}

// Close frees nothing that the collector would not.
func (g *gzipReader) Close() error {
	g.cur, g.err = nil, errClosed
	return nil
}

var errClosed = errors.New("read of a closed decompressor")

type zstdReader struct {
	src *source
	z   *zstd.Decoder
}

func (z *zstdReader) Read(p []byte) (int, error) {
	n, err := z.z.Read(p)
	if err != nil && err != io.EOF {
		err = formatError(z.src, "zstd", err)
	}
	return n, err
}

func (z *zstdReader) Close() error {
	z.z.Close()
	return nil
}

// formatError tells a damaged stream from an error of the reader below.
func formatError(src *source, format string, err error) error {
	if src.err != nil {
		return src.err
	}
	e := &errdefs.Error{Op: "decompress the archive", Kind: errdefs.Corrupt, Why: "its " + format + " stream is damaged", Err: err}
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF) || err == io.EOF:
		e.Why, e.Err = "its "+format+" stream is cut off", nil
	case errors.Is(err, zstd.ErrWindowSizeExceeded) || errors.Is(err, zstd.ErrDecoderSizeExceeded):
		e.Kind, e.Why = errdefs.Exhausted, fmt.Sprintf("its zstd window is above %d MiB", maxWindow>>20)
	}
	return e
}
