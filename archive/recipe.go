package archive

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/klauspost/compress/zstd"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/pathrs"
	"golang.org/x/sys/unix"
)

// A recipe makes the archive of a layer again, to the bit, out of the tree that was unpacked from it: what is in the
// tree's files is named, and everything between (headers, padding, the archive's end) is kept as it was. It is a zstd
// stream of
//
//	'l' length bytes        a piece of the archive
//	'f' size length path    the content of a regular file of the tree, size bytes
//	'e' total               the end; total is the archive's length
//
// with lengths as unsigned varints (encoding/binary). The idea is tar-split's; the form is not.
const (
	recipeLiteral = 'l'
	recipeFile    = 'f'
	recipeEnd     = 'e'

	// recipePiece bounds a literal; longer ones are several.
	recipePiece  = 64 << 10
	recipeWindow = 512 << 10
)

// recorder writes a recipe while the archive is read.
type recorder struct {
	z       *zstd.Encoder
	literal []byte // not written yet
	total   int64
	paused  bool // the tree keeps what is read now
	err     error
	// spoiled: a file that an earlier entry wrote is not in the tree any more, or not as it is in the archive.
	spoiled bool
}

func newRecorder(w io.Writer) (*recorder, error) {
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(recipeWindow), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return nil, err
	}
	return &recorder{z: z, literal: make([]byte, 0, recipePiece)}, nil
}

// read hears what was read of the archive. A nil recorder records nothing.
func (r *recorder) read(p []byte) {
	if r == nil || r.spoiled {
		return
	}
	r.total += int64(len(p))
	for !r.paused && len(p) > 0 {
		n := min(len(p), recipePiece-len(r.literal))
		r.literal = append(r.literal, p[:n]...)
		if p = p[n:]; len(r.literal) == recipePiece {
			r.flush()
		}
	}
}

func (r *recorder) flush() {
	if len(r.literal) == 0 {
		return
	}
	r.put(recipeLiteral, r.literal)
	r.literal = r.literal[:0]
}

func (r *recorder) put(kind byte, b []byte, numbers ...int64) {
	head := []byte{kind}
	for _, n := range numbers {
		head = binary.AppendUvarint(head, uint64(n))
	}
	if kind != recipeEnd {
		head = binary.AppendUvarint(head, uint64(len(b)))
	}
	for _, p := range [][]byte{head, b} {
		if _, err := r.z.Write(p); err != nil && r.err == nil {
			r.err = err
		}
	}
}

// file says that what comes next is the content of a file of the tree, and resume that it has come.
func (r *recorder) file(path string, size int64) {
	if r == nil || r.spoiled || size == 0 {
		return
	}
	r.flush()
	r.put(recipeFile, []byte(path), size)
	r.paused = true
}

func (r *recorder) resume() {
	if r != nil {
		r.paused = false
	}
}

func (r *recorder) spoil() {
	if r != nil {
		r.spoiled = true
	}
}

// finish writes the end. whole says that the recipe can be used.
func (r *recorder) finish() (whole bool, err error) {
	if r == nil {
		return false, nil
	}
	if !r.spoiled {
		r.flush()
		r.put(recipeEnd, nil, r.total)
	}
	if err := r.z.Close(); err != nil && r.err == nil {
		r.err = err
	}
	return !r.spoiled, r.err
}

// Rebuild writes the archive that the recipe makes of the tree dir to w. Every name is resolved inside of dir, as Apply
// does. Whoever needs to be sure compares the digest of what was written: a file whose bytes have changed is not noticed
// here. Errors: Corrupt (no recipe, or the tree is not the one that it was written for), and those of w.
func Rebuild(ctx context.Context, dir *os.File, recipe io.Reader, w io.Writer) error {
	defer runtime.KeepAlive(dir)
	z, err := zstd.NewReader(recipe, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(8*recipeWindow))
	if err != nil {
		return badRecipe("%v", err)
	}
	defer z.Close()
	in := bufio.NewReaderSize(z, recipePiece)
	b := &rebuilding{ctx: ctx, dir: int(dir.Fd()), w: w, buf: make([]byte, recipePiece)}
	for {
		kind, err := in.ReadByte()
		if err != nil {
			return badRecipe("it has no end")
		}
		n, err := binary.ReadUvarint(in)
		if err != nil || n >= 1<<62 {
			return badRecipe("a number in it is damaged")
		}
		switch kind {
		case recipeLiteral:
			if n > recipePiece {
				return badRecipe("a piece of %d bytes is longer than any", n)
			}
			if _, err := io.ReadFull(in, b.buf[:n]); err != nil {
				return badRecipe("it is cut off")
			}
			if err := b.write(b.buf[:n]); err != nil {
				return err
			}
		case recipeFile:
			length, err := binary.ReadUvarint(in)
			if err != nil || length == 0 || length > maxPath {
				return badRecipe("a name in it is empty or too long")
			}
			name := make([]byte, length)
			if _, err := io.ReadFull(in, name); err != nil {
				return badRecipe("it is cut off")
			}
			if err := b.file(string(name), int64(n)); err != nil {
				return err
			}
		case recipeEnd:
			if int64(n) != b.total {
				return badRecipe("it gives %d bytes instead of %d", b.total, n)
			}
			return nil
		default:
			return badRecipe("%q begins no part of it", kind)
		}
	}
}

func badRecipe(format string, args ...any) error {
	return &errdefs.Error{Op: "rebuild the archive", Kind: errdefs.Corrupt, Why: "its recipe is damaged: " + fmt.Sprintf(format, args...)}
}

// rebuilding is one run of Rebuild.
type rebuilding struct {
	ctx   context.Context
	dir   int
	w     io.Writer
	total int64
	buf   []byte
	big   []byte
}

func (b *rebuilding) write(p []byte) error {
	if err := b.ctx.Err(); err != nil {
		return err
	}
	b.total += int64(len(p))
	_, err := b.w.Write(p)
	return err
}

func (b *rebuilding) file(path string, size int64) error {
	changed := func(why string, err error) error {
		return &errdefs.Error{Op: "rebuild the archive", What: path, Kind: errdefs.Corrupt, Why: why, Err: err}
	}
	if _, err := clean(path); err != nil {
		return badRecipe("the name %q", path)
	}
	// Not blocking: a FIFO may be there instead, and then it is not read.
	fd, err := pathrs.Openat2(b.dir, path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0, within)
	if err != nil {
		return changed("it cannot be opened", err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return changed("", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size != size {
		return changed(fmt.Sprintf("it is not the file of %d bytes that the layer had", size), nil)
	}
	if b.big == nil {
		b.big = make([]byte, bufSize)
	}
	for left := size; left > 0; {
		n, err := f.Read(b.big[:min(left, int64(len(b.big)))])
		if n > 0 {
			if err := b.write(b.big[:n]); err != nil {
				return err
			}
			left -= int64(n)
		}
		if left > 0 && err != nil {
			return changed("it could not be read to its end", err)
		}
	}
	return nil
}
