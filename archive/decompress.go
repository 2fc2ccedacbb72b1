package archive

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
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
			return Plain, &errdefs.Error{Op: "decompress the archive", Kind: errdefs.Unsupported,
				Why: "it is " + m.name + "; layers are plain, gzip or zstd (image-spec)",
				Fix: "decompress it first and give the plain tar"}
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
	in := bufio.NewReaderSize(src, 128<<10)
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
		return &gzipReader{src: src, in: in}, Gzip, nil
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

// gzipReader reads member after member.
type gzipReader struct {
	src *source
	in  *bufio.Reader
	z   *gzip.Reader
	err error
}

func (g *gzipReader) Read(p []byte) (int, error) {
	for g.err == nil {
		if g.z == nil {
			g.z, g.err = gzip.NewReader(g.in)
			if g.err != nil {
				g.err = formatError(g.src, "gzip", g.err)
				break
			}
			g.z.Multistream(false)
		}
		n, err := g.z.Read(p)
		if err == io.EOF {
			err = nil
			g.err = g.next()
		} else if err != nil {
			g.err = formatError(g.src, "gzip", err)
		}
		if n > 0 || len(p) == 0 {
			return n, nil
		}
	}
	return 0, g.err
}

// next goes to the member that follows, if there is one.
func (g *gzipReader) next() error {
	head, err := g.in.Peek(2)
	if len(head) == 0 {
		return err
	}
	if head[0] == 0 {
		return g.padding()
	}
	if err := g.z.Reset(g.in); err != nil {
		return formatError(g.src, "gzip", err)
	}
	g.z.Multistream(false)
	return nil
}

func (g *gzipReader) padding() error {
	for {
		b, err := g.in.Peek(max(g.in.Buffered(), 1))
		if len(b) == 0 {
			return err
		}
		for _, c := range b {
			if c != 0 {
				return formatError(g.src, "gzip", errors.New("something else follows the compressed data"))
			}
		}
		_, _ = g.in.Discard(len(b)) // they are in the buffer
	}
}

// Close frees nothing that the collector would not.
func (g *gzipReader) Close() error {
	g.err = errClosed
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
