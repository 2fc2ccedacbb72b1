package archive

import (
	"bytes"
	cflate "compress/flate"
	"encoding/binary"
	"hash"
	"hash/crc32"
	"io"
	"runtime"
	"strconv"
	"strings"

	kflate "github.com/klauspost/compress/flate"
	"github.com/klauspost/pgzip"
	"github.com/onggi/onggi/errdefs"
)

// Form says how a blob was made of an archive, so that the same bytes can be made again: "plain", or the compressor.
// The compressors are those that write most of the layers there are; each is a program's at its default or a usual level:
//
//	go-L        Go's compress/flate at level L            docker, BuildKit, kaniko
//	klauspost-L klauspost/compress at level L             containerd's tools, ko, crane
//	pgzip-L-N   klauspost/pgzip at level L, blocks of N   onggi, podman, buildah, skopeo (1 MiB), umoci (256 KiB)
type Form string

// FormPlain is a blob that is the archive itself.
const FormPlain Form = "plain"

// forms are tried in this order. Several may write a sample in the same way: the first one is taken, the others are what
// Recompress's caller may try when the digest is another.
var forms = []Form{
	"go-6", "pgzip-6-1048576", "pgzip-5-1048576", "klauspost-5", "pgzip-5-262144", "klauspost-6", "go-9", "go-1", "klauspost-9", "klauspost-1",
	"pgzip-9-1048576", "pgzip-1-1048576", "go-4", "go-5", "go-7", "go-8",
}

// Forms returns all compressors, first the given one: the order in which to try them.
func Forms(first Form) []Form {
	if first == FormPlain {
		return []Form{FormPlain}
	}
	out := []Form{first}
	for _, f := range forms {
		if f != first {
			out = append(out, f)
		}
	}
	return out
}

const (
	// SampleBlob and SampleArchive are how much of a blob's and its archive's beginning Identify looks at, in bytes: the
	// archive's is enough for one of pgzip's blocks and some of the next.
	SampleBlob = 1536 << 10
	// SampleArchive is the archive's part of it.
	SampleArchive = 1152 << 10
	// firstSample is what each compressor has to get right before it is given the rest.
	firstSample = 192 << 10
	// leastSame bytes have to be the same before that means anything.
	leastSame   = 1 << 10
	maxGzHead   = 512
	gzHeaderLen = 10
)

// Identify finds the compressor that made blob, of which the first SampleBlob bytes are given, out of archive, of which
// the first SampleArchive bytes are given. head is the header of the gzip stream, which Recompress wants. ok is false for
// what no compressor here would have written. The whole is never proven here: only its digest can.
func Identify(archive, blob []byte) (form Form, head []byte, ok bool) {
	n := gzipHeader(blob)
	if n == 0 {
		if len(blob) > 0 && bytes.HasPrefix(archive, blob) || len(archive) > 0 && bytes.HasPrefix(blob, archive) {
			return FormPlain, nil, true
		}
		return "", nil, false
	}
	head, blob = blob[:n:n], blob[n:]
	for _, f := range forms {
		if f.writes(archive[:min(len(archive), firstSample)], blob) && (len(archive) <= firstSample || !f.far() || f.writes(archive, blob)) {
			return f, head, true
		}
	}
	return "", nil, false
}

// gzipHeader returns the length of a gzip header (RFC 1952, section 2.3), 0 when there is none that we keep.
func gzipHeader(b []byte) int {
	if len(b) < gzHeaderLen || b[0] != 0x1f || b[1] != 0x8b || b[2] != 8 || b[3]&gzReserved != 0 {
		return 0
	}
	n, flags := gzHeaderLen, b[3]
	if flags&gzExtra != 0 {
		if len(b) < n+2 {
			return 0
		}
		n += 2 + int(binary.LittleEndian.Uint16(b[n:]))
	}
	for _, f := range []byte{gzName, gzComment} {
		if flags&f != 0 {
			if n >= len(b) {
				return 0
			}
			i := bytes.IndexByte(b[n:], 0)
			if i < 0 {
				return 0
			}
			n += i + 1
		}
	}
	if flags&gzHeaderCRC != 0 {
		n += 2
	}
	if n > maxGzHead || n >= len(b) {
		return 0
	}
	return n
}

// far reports whether the compressor's output depends on more than what it has just seen: on where its blocks end.
func (f Form) far() bool { return !strings.HasPrefix(string(f), "go-") }

// writes reports whether the compressor's output for sample is how the stream begins, as far as it comes out before it is
// told that there is no more.
func (f Form) writes(sample, stream []byte) bool {
	same := &comparer{want: stream}
	if err := f.compressSample(sample, same); err != nil {
		return false
	}
	return !same.differs && same.n >= min(leastSame, max(1, len(stream)/2))
}

// compressSample writes what the compressor writes for the beginning of an archive. Of pgzip's blocks it does so one after
// the other: each is a stream of its own that is flushed at its end and knows the tail of the one before.
func (f Form) compressSample(sample []byte, w io.Writer) error {
	name, level, block, err := f.parse()
	if err != nil {
		return err
	}
	if name != "pgzip" {
		z, err := f.deflate(w)
		if err == nil {
			_, err = z.Write(sample)
		}
		return err
	}
	const tail = 16384 // pgzip's tailSize
	var before []byte
	for len(sample) > 0 {
		b := sample[:min(len(sample), block)]
		z, err := kflate.NewWriterDict(w, level, before[max(0, len(before)-tail):])
		if err != nil {
			return err
		}
		if _, err := z.Write(b); err != nil {
			return err
		}
		if len(b) == block {
			if err := z.Flush(); err != nil {
				return err
			}
		}
		before, sample = b, sample[len(b):]
	}
	return nil
}

// parse takes a form apart.
func (f Form) parse() (name string, level, block int, err error) {
	part := strings.Split(string(f), "-")
	bad := &errdefs.Error{Op: "compress the archive", What: strconv.Quote(string(f)), Kind: errdefs.Unsupported, Why: "there is no such compressor here"}
	if len(part) < 2 {
		return "", 0, 0, bad
	}
	level, err = strconv.Atoi(part[1])
	if err != nil || level < 1 || level > 9 {
		return "", 0, 0, bad
	}
	switch {
	case (part[0] == "go" || part[0] == "klauspost") && len(part) == 2:
		return part[0], level, 0, nil
	case part[0] == "pgzip" && len(part) == 3:
		if block, err = strconv.Atoi(part[2]); err == nil && block >= 1<<16 && block <= 1<<24 {
			return part[0], level, block, nil
		}
	}
	return "", 0, 0, bad
}

// comparer compares what is written to it.
type comparer struct {
	want    []byte
	n       int
	differs bool
}

func (c *comparer) Write(p []byte) (int, error) {
	if c.differs || c.n >= len(c.want) {
		return len(p), nil
	}
	k := min(len(p), len(c.want)-c.n)
	if !bytes.Equal(p[:k], c.want[c.n:c.n+k]) {
		c.differs = true
	}
	c.n += k
	return len(p), nil
}

// deflate returns the form's compressor, which writes a raw deflate stream to w.
func (f Form) deflate(w io.Writer) (io.WriteCloser, error) {
	name, level, block, err := f.parse()
	if err != nil {
		return nil, err
	}
	switch name {
	case "go":
		return cflate.NewWriter(w, level)
	case "klauspost":
		return kflate.NewWriter(w, level)
	}
	// Its own header and trailer are cut off: ours are those of the blob.
	z, err := pgzip.NewWriterLevel(&inner{w: w}, level)
	if err != nil {
		return nil, err
	}
	return z, z.SetConcurrency(block, max(2, runtime.GOMAXPROCS(0)))
}

// inner passes a gzip stream on without its header of ten bytes. The last eight bytes, which are its trailer, are what
// it holds back when the stream ends.
type inner struct {
	w    io.Writer
	head int
	held []byte
}

const gzTrailer = 8

func (i *inner) Write(p []byte) (int, error) {
	n := len(p)
	if skip := min(len(p), gzHeaderLen-i.head); skip > 0 {
		i.head += skip
		p = p[skip:]
	}
	if len(p) == 0 {
		return n, nil
	}
	if len(p) >= gzTrailer {
		if _, err := i.w.Write(i.held); err != nil {
			return 0, err
		}
		if _, err := i.w.Write(p[:len(p)-gzTrailer]); err != nil {
			return 0, err
		}
		i.held = append(i.held[:0], p[len(p)-gzTrailer:]...)
		return n, nil
	}
	i.held = append(i.held, p...)
	if over := len(i.held) - gzTrailer; over > 0 {
		if _, err := i.w.Write(i.held[:over]); err != nil {
			return 0, err
		}
		i.held = append(i.held[:0], i.held[over:]...)
	}
	return n, nil
}

// Recompress returns a writer that makes the blob again from the archive that is written to it: head, the compressed
// stream, its trailer. Close ends the blob and does not close w. Errors: Unsupported (a form that is none).
func Recompress(f Form, head []byte, w io.Writer) (io.WriteCloser, error) {
	if f == FormPlain {
		return nopCloser{w}, nil
	}
	z, err := f.deflate(w)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(head); err != nil {
		return nil, err
	}
	return &recompressor{z: z, w: w, crc: crc32.NewIEEE()}, nil
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

type recompressor struct {
	z    io.WriteCloser
	w    io.Writer
	crc  hash.Hash32
	size uint32
}

func (r *recompressor) Write(p []byte) (int, error) {
	r.crc.Write(p)
	r.size += uint32(len(p))
	return r.z.Write(p)
}

func (r *recompressor) Close() error {
	if err := r.z.Close(); err != nil {
		return err
	}
	var t [gzTrailer]byte
	binary.LittleEndian.PutUint32(t[:], r.crc.Sum32())
	binary.LittleEndian.PutUint32(t[4:], r.size)
	_, err := r.w.Write(t[:])
	return err
}
