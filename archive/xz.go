package archive

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"io"

	"github.com/onggi/onggi/errdefs"
)

// xzReader decodes the .xz format (tukaani.org/xz/xz-file-format.txt, version 1.2.1), streams one after the other, with the
// filter LZMA2 and any of its checks. Filters for machine code are refused: what a Dockerfile adds has none.
type xzReader struct {
	in    *bufio.Reader
	count int64 // bytes read of the stream
	check byte  // of the stream: 0 none, 1 CRC32, 4 CRC64, 10 SHA-256
	sum   hash.Hash
	lz    *lzma2
	start int64 // of the block
	head  int64 // length of its header
	size  int64 // of its data, uncompressed, so far
	// sizes of the blocks, which the index has to repeat: unpadded and uncompressed
	blocks [][2]int64
	wantIn int64 // compressed size that the header gives, or -1
	wantN  int64
	err    error
}

// maxXZBlocks bounds the list of a stream's blocks: xz -T writes one for some MiB.
const maxXZBlocks = 1 << 20

var xzMagic = []byte("\xfd7zXZ\x00")

func newXZ(r io.Reader) *xzReader {
	return &xzReader{in: bufio.NewReaderSize(r, 64<<10)}
}

func xzError(format string, args ...any) error {
	return &errdefs.Error{Op: "decompress", What: "the xz archive", Kind: errdefs.Corrupt, Why: fmt.Sprintf(format, args...)}
}

// ReadByte counts.
func (x *xzReader) ReadByte() (byte, error) {
	b, err := x.in.ReadByte()
	if err == nil {
		x.count++
	}
	return b, err
}

func (x *xzReader) full(b []byte) error {
	n, err := io.ReadFull(x.in, b)
	x.count += int64(n)
	return truncated(err)
}

func truncated(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return xzError("it ends in the middle")
	}
	return err
}

func (x *xzReader) Read(p []byte) (int, error) {
	if x.err != nil {
		return 0, x.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if x.lz == nil {
			if x.err = x.next(); x.err != nil {
				return 0, x.err
			}
		}
		n, err := x.lz.read(p)
		if n > 0 {
			x.size += int64(n)
			if x.sum != nil {
				x.sum.Write(p[:n])
			}
			return n, nil
		}
		if err == io.EOF {
			err = x.endBlock()
		}
		if err != nil {
			x.err = truncated(err)
			return 0, x.err
		}
	}
}

// next begins the next block, of this stream or the one that follows.
func (x *xzReader) next() error {
	for {
		if x.check == 0xff || x.count == 0 && x.blocks == nil {
			if err := x.begin(); err != nil {
				return err
			}
		}
		x.start = x.count
		size, err := x.ReadByte()
		if err != nil {
			return truncated(err)
		}
		if size != 0 {
			return x.beginBlock(size)
		}
		if err := x.index(); err != nil {
			return err
		}
		x.check = 0xff
	}
}

// begin reads a stream's header; io.EOF after the last one. Between streams there may be zeros, four at a time.
func (x *xzReader) begin() error {
	first := x.check != 0xff
	zeros := 0
	for !first {
		b, err := x.in.Peek(1)
		if err == io.EOF && zeros%4 == 0 {
			return io.EOF
		}
		if err != nil {
			return truncated(err)
		}
		if b[0] != 0 {
			break
		}
		_, _ = x.in.Discard(1)
		zeros++
	}
	var h [12]byte
	if err := x.full(h[:]); err != nil {
		return err
	}
	if string(h[:6]) != string(xzMagic) || zeros%4 != 0 {
		return xzError("it does not begin as one")
	}
	if h[6] != 0 || crc32.ChecksumIEEE(h[6:8]) != binary.LittleEndian.Uint32(h[8:]) {
		return xzError("its header is damaged")
	}
	switch x.check = h[7]; x.check {
	case 0:
		x.sum = nil
	case 1:
		x.sum = crc32.NewIEEE()
	case 4:
		x.sum = crc64.New(crc64.MakeTable(crc64.ECMA))
	case 10:
		x.sum = sha256.New()
	default:
		return xzError("its checks are of the kind %d, which is not known", x.check)
	}
	x.blocks, x.count = [][2]int64{}, 12
	return nil
}

func (x *xzReader) beginBlock(size byte) error {
	h := make([]byte, 4*(int(size)+1))
	h[0] = size
	if err := x.full(h[1:]); err != nil {
		return err
	}
	body, sum := h[:len(h)-4], h[len(h)-4:]
	if crc32.ChecksumIEEE(body) != binary.LittleEndian.Uint32(sum) {
		return xzError("the header of a block is damaged")
	}
	flags, rest := body[1], body[2:]
	number := func() int64 {
		v, n := binary.Uvarint(rest)
		if n <= 0 || v > 1<<62 {
			rest = nil
			return -1
		}
		rest = rest[n:]
		return int64(v)
	}
	x.wantIn, x.wantN = -1, -1
	if flags&0x40 != 0 {
		x.wantIn = number()
	}
	if flags&0x80 != 0 {
		x.wantN = number()
	}
	if flags&0x3f != 0 || number() != 0x21 || number() != 1 || len(rest) < 1 {
		return &errdefs.Error{Op: "decompress", What: "the xz archive", Kind: errdefs.Unsupported, Why: "it uses a filter other than LZMA2", Fix: "compress it again: xz -d, then xz"}
	}
	bits := rest[0]
	for _, b := range rest[1:] {
		if b != 0 {
			return xzError("the header of a block is damaged")
		}
	}
	if bits > 40 {
		return xzError("its dictionary has no size")
	}
	dict := int64(1<<32 - 1)
	if bits < 40 {
		dict = int64(2|bits&1) << (bits/2 + 11)
	}
	if dict > maxWindow {
		return &errdefs.Error{
			Op: "decompress", What: "the xz archive", Kind: errdefs.Exhausted, Why: fmt.Sprintf("it needs %d MiB of memory, more than %d", dict>>20, maxWindow>>20),
			Fix: "compress it again, at most with xz -9",
		}
	}
	x.head, x.size = int64(len(h)), 0
	if x.sum != nil {
		x.sum.Reset()
	}
	x.lz = &lzma2{in: x, d: lzma{size: max(int(dict), 2*slack)}}
	return nil
}

// endBlock reads a block's padding and compares its check and sizes.
func (x *xzReader) endBlock() error {
	x.lz = nil
	used := x.count - x.start - x.head
	if x.wantIn >= 0 && x.wantIn != used || x.wantN >= 0 && x.wantN != x.size {
		return xzError("a block is not as long as it says")
	}
	for n := x.count - x.start; n%4 != 0; n++ {
		if b, err := x.ReadByte(); err != nil || b != 0 {
			return xzError("a block is not filled with zeros")
		}
	}
	n := map[byte]int{0: 0, 1: 4, 4: 8, 10: 32}[x.check]
	if n > 0 {
		want := make([]byte, n)
		if err := x.full(want); err != nil {
			return err
		}
		got := x.sum.Sum(nil)
		if x.check != 10 { // the file has it little endian, hash.Hash gives it big endian
			for i, j := 0, len(got)-1; i < j; i, j = i+1, j-1 {
				got[i], got[j] = got[j], got[i]
			}
		}
		if string(got) != string(want) {
			return xzError("the check of a block fails: its data are damaged")
		}
	}
	if len(x.blocks) >= maxXZBlocks {
		return xzError("it has more than %d blocks", maxXZBlocks)
	}
	x.blocks = append(x.blocks, [2]int64{x.head + used + int64(n), x.size})
	return nil
}

// index reads the list of blocks, whose first byte was read, and the footer.
func (x *xzReader) index() error {
	start := x.count - 1
	sum := crc32.NewIEEE()
	sum.Write([]byte{0})
	in := &tapped{x, sum}
	number := func() (int64, error) {
		v, err := binary.ReadUvarint(in)
		if err != nil {
			return 0, truncated(err)
		}
		return int64(v), nil
	}
	n, err := number()
	if err != nil {
		return err
	}
	if n != int64(len(x.blocks)) {
		return xzError("its index lists %d blocks, and it has %d", n, len(x.blocks))
	}
	for _, b := range x.blocks {
		in, err := number()
		if err != nil {
			return err
		}
		out, err := number()
		if err != nil {
			return err
		}
		if in != b[0] || out != b[1] {
			return xzError("its index does not describe its blocks")
		}
	}
	for (x.count-start)%4 != 0 {
		if b, err := in.ReadByte(); err != nil || b != 0 {
			return xzError("its index is damaged")
		}
	}
	want := sum.Sum32()
	size := x.count - start
	var f [16]byte // the index's sum, then the footer
	if err := x.full(f[:]); err != nil {
		return err
	}
	if binary.LittleEndian.Uint32(f[:4]) != want || string(f[14:]) != "YZ" ||
		crc32.ChecksumIEEE(f[8:14]) != binary.LittleEndian.Uint32(f[4:8]) ||
		f[12] != 0 || f[13] != x.check || (int64(binary.LittleEndian.Uint32(f[8:12]))+1)*4 != size+4 {
		return xzError("its end is damaged")
	}
	return nil
}

type tapped struct {
	x   *xzReader
	sum hash.Hash
}

func (t *tapped) ReadByte() (byte, error) {
	b, err := t.x.ReadByte()
	if err == nil {
		t.sum.Write([]byte{b})
	}
	return b, err
}

// lzma2 reads the chunks of LZMA2 (xz-file-format.txt 5.3.1 and the format of liblzma's lzma2_decoder.c).
type lzma2 struct {
	in      io.ByteReader
	d       lzma
	left    int  // uncompressed bytes of the chunk to come
	raw     bool // they are as they are
	dictOK  bool // the first chunk has reset the dictionary
	propsOK bool
}

// read returns what is decoded; io.EOF after the last chunk.
func (l *lzma2) read(p []byte) (int, error) {
	for {
		if n := l.d.flush(p); n > 0 {
			return n, nil
		}
		if l.left > 0 {
			if err := l.some(); err != nil {
				return 0, err
			}
			continue
		}
		if err := l.chunk(); err != nil {
			return 0, err
		}
	}
}

// some decodes a part of the chunk: as much as the dictionary has room for.
func (l *lzma2) some() error {
	n := min(l.left, 64<<10)
	if !l.raw {
		if err := l.d.decode(n); err != nil {
			return err
		}
		if l.left -= n; l.left == 0 {
			return l.d.end()
		}
		return nil
	}
	for range n {
		b, err := l.in.ReadByte()
		if err != nil {
			return truncated(err)
		}
		l.d.put(b)
	}
	l.left -= n
	return nil
}

func (l *lzma2) chunk() error {
	var h [6]byte
	read := func(n int) error {
		for i := range n {
			b, err := l.in.ReadByte()
			if err != nil {
				return truncated(err)
			}
			h[i] = b
		}
		return nil
	}
	if err := read(1); err != nil {
		return err
	}
	c := h[0]
	switch {
	case c == 0:
		return io.EOF
	case c == 1 || c == 2:
		if c == 1 {
			l.d.resetDict()
			l.dictOK = true
		}
		if err := read(2); err != nil {
			return err
		}
		l.left, l.raw = int(h[0])<<8+int(h[1])+1, true
		if !l.dictOK {
			return xzError("its first chunk needs another")
		}
		return nil
	case c < 0x80:
		return xzError("a chunk is of an unknown kind")
	}
	if err := read(4); err != nil {
		return err
	}
	l.left, l.raw = int(c&0x1f)<<16+int(h[0])<<8+int(h[1])+1, false
	size := int(h[2])<<8 + int(h[3]) + 1
	how := c >> 5 & 3
	if how == 3 {
		l.d.resetDict()
		l.dictOK = true
	}
	if how >= 2 {
		if err := read(1); err != nil {
			return err
		}
		if err := l.d.props(h[0]); err != nil {
			return err
		}
		l.propsOK = true
	}
	if !l.dictOK || !l.propsOK {
		return xzError("its first chunk needs another")
	}
	if how >= 1 {
		l.d.resetState()
	}
	return l.d.begin(l.in, size)
}

// lzma is the decoder of LZMA (the specification in LZMA SDK, DOC/lzma-specification.txt): a range decoder, a dictionary and
// adaptive probabilities.
type lzma struct {
	size int // of the dictionary, at most
	dict []byte
	pos  int // where the next byte goes
	done int // up to where it was given away

	in        io.ByteReader
	avail     int // bytes of the chunk that are left
	rng, code uint32

	lc, lp, pb uint
	state      int
	rep        [4]uint32
	remain     int // of a match that did not fit into what was asked for

	literal             []uint16
	isMatch, isRep0Long [12 << 4]uint16
	isRep, isRepG0      [12]uint16
	isRepG1, isRepG2    [12]uint16
	slot                [4][64]uint16
	special             [128]uint16
	align               [16]uint16
	length, repLength   lengthCoder
}

type lengthCoder struct {
	choice, choice2 uint16
	low, mid        [16][8]uint16
	high            [256]uint16
}

// slack is how much more than the dictionary is kept, so that what is decoded need not be given away byte by byte: more than some
// decodes at a time, and a multiple of 16, by which the dictionary may move without a change of the position's lowest bits.
const slack = 64<<10 + 304

func (d *lzma) resetDict() {
	d.pos, d.done, d.remain = 0, 0, 0
}

func (d *lzma) props(b byte) error {
	if b >= 9*5*5 {
		return xzError("the properties of a chunk are out of range")
	}
	d.lc, d.lp, d.pb = uint(b%9), uint(b/9%5), uint(b/45)
	if d.lc+d.lp > 4 {
		return xzError("the properties of a chunk are out of range")
	}
	return nil
}

const half = 1 << 10 // a probability of one half, of 2^11

func even(p []uint16) {
	for i := range p {
		p[i] = half
	}
}

func (c *lengthCoder) reset() {
	c.choice, c.choice2 = half, half
	for i := range c.low {
		even(c.low[i][:])
		even(c.mid[i][:])
	}
	even(c.high[:])
}

func (d *lzma) resetState() {
	d.state, d.rep, d.remain = 0, [4]uint32{}, 0
	if n := 0x300 << (d.lc + d.lp); len(d.literal) != n {
		d.literal = make([]uint16, n)
	}
	for _, p := range [][]uint16{
		d.literal, d.isMatch[:], d.isRep0Long[:], d.isRep[:], d.isRepG0[:], d.isRepG1[:], d.isRepG2[:],
		d.slot[0][:], d.slot[1][:], d.slot[2][:], d.slot[3][:], d.special[:], d.align[:],
	} {
		even(p)
	}
	d.length.reset()
	d.repLength.reset()
}

// begin starts the range decoder on a chunk of size bytes.
func (d *lzma) begin(in io.ByteReader, size int) error {
	d.in, d.avail = in, size
	if d.avail < 5 {
		return xzError("a chunk is too short")
	}
	d.rng, d.code = 0xffffffff, 0
	for i := range 5 {
		b, err := d.byte()
		if err != nil {
			return err
		}
		if i == 0 && b != 0 {
			return xzError("a chunk does not begin as one")
		}
		d.code = d.code<<8 | uint32(b)
	}
	return nil
}

// end sees to it that the chunk was read to its end.
func (d *lzma) end() error {
	if d.avail != 0 || d.code != 0 || d.remain != 0 {
		return xzError("a chunk does not end where it says")
	}
	return nil
}

func (d *lzma) byte() (byte, error) {
	if d.avail == 0 {
		return 0, xzError("a chunk is longer than it says")
	}
	d.avail--
	b, err := d.in.ReadByte()
	return b, truncated(err)
}

func (d *lzma) put(b byte) {
	if d.pos == len(d.dict) {
		if len(d.dict) < d.size+slack { // grows as it is needed: small archives have large dictionaries, too
			n := min(max(2*len(d.dict), 64<<10), d.size+slack)
			d.dict = append(d.dict, make([]byte, n-len(d.dict))...)
		} else { // keep what the dictionary still reaches
			from := d.pos - d.size
			copy(d.dict, d.dict[from:d.pos])
			d.pos, d.done = d.size, d.done-from
		}
	}
	d.dict[d.pos] = b
	d.pos++
}

// flush gives away what was decoded.
func (d *lzma) flush(p []byte) int {
	n := copy(p, d.dict[d.done:d.pos])
	d.done += n
	return n
}

func (d *lzma) normalize() error {
	if d.rng < 1<<24 {
		b, err := d.byte()
		if err != nil {
			return err
		}
		d.rng <<= 8
		d.code = d.code<<8 | uint32(b)
	}
	return nil
}

func (d *lzma) bit(p *uint16) (uint32, error) {
	bound := d.rng >> 11 * uint32(*p)
	var b uint32
	if d.code < bound {
		*p += (1<<11 - *p) >> 5
		d.rng = bound
	} else {
		*p -= *p >> 5
		d.code -= bound
		d.rng -= bound
		b = 1
	}
	return b, d.normalize()
}

func (d *lzma) direct(n int) (uint32, error) {
	var v uint32
	for range n {
		d.rng >>= 1
		v <<= 1
		if d.code >= d.rng {
			d.code -= d.rng
			v |= 1
		}
		if err := d.normalize(); err != nil {
			return 0, err
		}
	}
	return v, nil
}

func (d *lzma) tree(p []uint16, bits int) (uint32, error) {
	m := uint32(1)
	for range bits {
		b, err := d.bit(&p[m])
		if err != nil {
			return 0, err
		}
		m = m<<1 | b
	}
	return m - 1<<bits, nil
}

func (d *lzma) reverse(p []uint16, bits int) (uint32, error) {
	m, v := uint32(1), uint32(0)
	for i := range bits {
		b, err := d.bit(&p[m])
		if err != nil {
			return 0, err
		}
		m = m<<1 | b
		v |= b << i
	}
	return v, nil
}

func (d *lzma) len(c *lengthCoder, posState int) (int, error) {
	b, err := d.bit(&c.choice)
	if err != nil {
		return 0, err
	}
	if b == 0 {
		v, err := d.tree(c.low[posState][:], 3)
		return int(v), err
	}
	if b, err = d.bit(&c.choice2); err != nil {
		return 0, err
	}
	if b == 0 {
		v, err := d.tree(c.mid[posState][:], 3)
		return int(v) + 8, err
	}
	v, err := d.tree(c.high[:], 8)
	return int(v) + 16, err
}

// decode makes n more bytes.
func (d *lzma) decode(n int) error {
	for n > 0 {
		if d.remain > 0 {
			k := min(d.remain, n)
			if err := d.copy(k); err != nil {
				return err
			}
			d.remain -= k
			n -= k
			continue
		}
		posState := d.total() & (1<<d.pb - 1)
		b, err := d.bit(&d.isMatch[d.state<<4+posState])
		if err != nil {
			return err
		}
		if b == 0 {
			if err := d.decodeLiteral(); err != nil {
				return err
			}
			n--
			continue
		}
		if b, err = d.bit(&d.isRep[d.state]); err != nil {
			return err
		}
		if b == 0 {
			err = d.match(posState)
		} else {
			err = d.repeat(posState)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// total is the position in the stream, as far as its lowest bits matter: the dictionary moves by multiples of 16.
func (d *lzma) total() int { return d.pos }

func (d *lzma) back(distance uint32) (byte, error) {
	if int64(distance) >= int64(d.pos) || int64(distance) >= int64(d.size) {
		return 0, xzError("it repeats what was never there")
	}
	return d.dict[d.pos-int(distance)-1], nil
}

func (d *lzma) copy(n int) error {
	for range n {
		b, err := d.back(d.rep[0])
		if err != nil {
			return err
		}
		d.put(b)
	}
	return nil
}

func (d *lzma) decodeLiteral() error {
	var before byte
	if d.pos > 0 {
		before = d.dict[d.pos-1]
	}
	ctx := (d.total()&(1<<d.lp-1))<<d.lc + int(before)>>(8-d.lc)
	p := d.literal[0x300*ctx:][:0x300]
	sym := uint32(1)
	if d.state >= 7 {
		b, err := d.back(d.rep[0])
		if err != nil {
			return err
		}
		match := uint32(b)
		for sym < 0x100 {
			mb := match >> 7 & 1
			match <<= 1
			bit, err := d.bit(&p[(1+mb)<<8+sym])
			if err != nil {
				return err
			}
			sym = sym<<1 | bit
			if mb != bit {
				break
			}
		}
	}
	for sym < 0x100 {
		bit, err := d.bit(&p[sym])
		if err != nil {
			return err
		}
		sym = sym<<1 | bit
	}
	d.put(byte(sym))
	switch {
	case d.state < 4:
		d.state = 0
	case d.state < 10:
		d.state -= 3
	default:
		d.state -= 6
	}
	return nil
}

func (d *lzma) after(low, high int) {
	if d.state < 7 {
		d.state = low
	} else {
		d.state = high
	}
}

func (d *lzma) match(posState int) error {
	d.rep[3], d.rep[2], d.rep[1] = d.rep[2], d.rep[1], d.rep[0]
	n, err := d.len(&d.length, posState)
	if err != nil {
		return err
	}
	d.after(7, 10)
	slot, err := d.tree(d.slot[min(n, 3)][:], 6)
	if err != nil {
		return err
	}
	dist := slot
	if slot >= 4 {
		bits := int(slot>>1) - 1
		dist = (2 | slot&1) << bits
		var low uint32
		if slot < 14 {
			low, err = d.reverse(d.special[dist-slot:], bits)
		} else {
			var high uint32
			if high, err = d.direct(bits - 4); err == nil {
				low, err = d.reverse(d.align[:], 4)
				low |= high << 4
			}
		}
		if err != nil {
			return err
		}
		dist += low
	}
	if dist == 0xffffffff {
		return xzError("a chunk has an end marker, which none may have")
	}
	d.rep[0], d.remain = dist, n+2
	return nil
}

func (d *lzma) repeat(posState int) error {
	b, err := d.bit(&d.isRepG0[d.state])
	if err != nil {
		return err
	}
	if b == 0 {
		if b, err = d.bit(&d.isRep0Long[d.state<<4+posState]); err != nil {
			return err
		}
		if b == 0 {
			d.after(9, 11)
			d.remain = 1
			return nil
		}
	} else {
		if b, err = d.bit(&d.isRepG1[d.state]); err != nil {
			return err
		}
		i := 1
		if b != 0 {
			if b, err = d.bit(&d.isRepG2[d.state]); err != nil {
				return err
			}
			i = 2 + int(b)
		}
		dist := d.rep[i]
		copy(d.rep[1:i+1], d.rep[:i])
		d.rep[0] = dist
	}
	n, err := d.len(&d.repLength, posState)
	if err != nil {
		return err
	}
	d.after(8, 11)
	d.remain = n + 2
	return nil
}
