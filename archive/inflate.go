package archive

import (
	"encoding/binary"
	"errors"
	"io"
	"math/bits"
)

// inflater decodes one raw DEFLATE stream (RFC 1951) after another from a reader. Inflating is what costs most of a
// pull's processor time, and this one takes about half of what the general readers do, because it works on buffers:
// 64 bits are loaded at once, a symbol is one look into a table that holds base and extra bits, up to three literals are
// taken between loads, and matches are copied in words. There is one loop for all: the input is padded after its end,
// and only how far the stream really reached decides whether it was cut off.
type inflater struct {
	r    io.Reader
	rerr error // of r, io.EOF included: nothing more is read

	in   []byte // input; the last inPad bytes are padding once r has ended
	pos  int    // the next byte to be loaded into bb
	end  int    // of the real bytes in in
	bb   uint64 // bits that are loaded
	nb   uint   // how many of them count
	last bool   // this block is the last

	out []byte // the window of maxDistance bytes and what is new behind it
	o   int    // end of what is decoded

	state  inflateState
	stored int // bytes left of a stored block
	lit    [litSize]uint32
	dist   [distSize]uint32
	fixed  bool // lit and dist hold the fixed codes
}

type inflateState uint8

const (
	atBlock  inflateState = iota // a block's header comes
	inStored                     // bytes as they are
	inCodes                      // symbols
	atEnd                        // the stream has ended
)

const (
	inSize      = 128 << 10
	inPad       = 64
	outSize     = maxDistance + 128<<10
	maxDistance = 32 << 10
	maxMatch    = 258
	outSlack    = maxMatch + 16 // what one turn of the loop may write, rounded up to words

	litBits  = 11 // of the first table; longer codes go on in a second one
	distBits = 8
	litSize  = 4096 // >= 2342, the most entries that 288 symbols can need (zlib's enough.c); a power of two for the mask
	distSize = 512  // >= 402, likewise for 30 symbols
	maxBits  = 15
)

// A table's entry: the low byte is the length of the code in bits. The rest:
//
//	literal   bit 31, the byte in bits 8-15 (lit only)
//	match     base in bits 16-30, number of extra bits in bits 8-12
//	special   bit 13 with one of: bit 14, go on in the second table at bits 16-30 with bits 8-11 bits; bit 15, end of the
//	          block; neither: no code
const (
	isLiteral = 1 << 31
	isSpecial = 1 << 13
	isSecond  = 1 << 14
	isEnd     = 1 << 15
)

var errDeflate = errors.New("invalid deflate data")

// The symbols' entries (RFC 1951, section 3.2.5).
var (
	litSymbols  [288]uint32
	distSymbols [32]uint32
	// codeOrder is how the lengths of the code length codes are ordered (section 3.2.7).
	codeOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}
)

func init() {
	for i := range 256 {
		litSymbols[i] = isLiteral | uint32(i)<<8
	}
	litSymbols[256] = isSpecial | isEnd
	base := uint32(3)
	for i := range 28 { // 257 to 284
		extra := uint32(max(0, i/4-1))
		litSymbols[257+i] = base<<16 | extra<<8
		base += 1 << extra
	}
	litSymbols[285] = maxMatch << 16
	litSymbols[286], litSymbols[287] = isSpecial, isSpecial
	base = 1
	for i := range 30 {
		extra := uint32(max(0, i/2-1))
		distSymbols[i] = base<<16 | extra<<8
		base += 1 << extra
	}
	distSymbols[30], distSymbols[31] = isSpecial, isSpecial
}

// newInflater reads from r. It reads more than it decodes; see unread.
func newInflater(r io.Reader) *inflater {
	return &inflater{r: r, in: make([]byte, inSize), out: make([]byte, outSize)}
}

// reset begins another stream at the next whole byte.
func (f *inflater) reset() {
	f.align()
	f.state, f.last, f.o = atBlock, false, 0
}

// fill reads more input behind what is left. After the end of r it puts padding there. The bytes whose bits have been
// loaded and may be given back (align) stay in front of it.
func (f *inflater) fill() {
	if f.rerr != nil {
		return
	}
	loaded := int(f.nb >> 3)
	f.end = copy(f.in, f.in[f.pos-loaded:f.end])
	f.pos = loaded
	for idle := 0; f.end < inSize/2 && f.rerr == nil; {
		var m int
		m, f.rerr = f.r.Read(f.in[f.end : inSize-inPad])
		if f.end += m; m > 0 {
			idle = 0
		} else if idle++; idle > 100 && f.rerr == nil {
			f.rerr = io.ErrNoProgress
		}
	}
	if f.rerr != nil {
		clear(f.in[f.end : f.end+inPad])
	}
}

// safe is the last position from which the loop may load.
func (f *inflater) safe() int {
	if f.rerr != nil {
		return f.end + inPad - 16
	}
	return f.end - 16
}

// overrun reports whether bits beyond the end of r have been used.
func (f *inflater) overrun() bool { return f.rerr != nil && f.pos-int(f.nb>>3) > f.end }

// need loads at least n bits, n <= 56.
func (f *inflater) need(n uint) error {
	if f.nb >= n {
		return nil
	}
	if f.pos > f.safe() {
		f.fill()
		if f.pos > f.safe() {
			return f.cut()
		}
	}
	f.bb |= binary.LittleEndian.Uint64(f.in[f.pos:]) << f.nb
	f.pos += int((63 - f.nb) >> 3)
	f.nb |= 56
	return nil
}

// cut is the error when there is no more input.
func (f *inflater) cut() error {
	if f.rerr != nil && f.rerr != io.EOF {
		return f.rerr
	}
	return io.ErrUnexpectedEOF
}

// take consumes n bits, n <= 16.
func (f *inflater) take(n uint) (uint, error) {
	if err := f.need(n); err != nil {
		return 0, err
	}
	v := uint(f.bb & (1<<n - 1))
	f.bb >>= n
	f.nb -= n
	if f.overrun() {
		return 0, f.cut()
	}
	return v, nil
}

// align drops the bits up to the next whole byte and gives whole bytes back.
func (f *inflater) align() {
	f.pos -= int(f.nb >> 3)
	f.bb, f.nb = 0, 0
}

// bytes returns up to n bytes behind the stream, as many as are there; they are consumed with skip. Only at a whole
// byte (after align).
func (f *inflater) bytes(n int) []byte {
	if f.end-f.pos < n {
		f.fill()
	}
	return f.in[f.pos:min(f.pos+n, f.end)]
}

func (f *inflater) skip(n int) { f.pos += n }

// next decodes some more and returns it; it is valid until the next call. io.EOF is the end of the stream, with nothing
// returned.
func (f *inflater) next() ([]byte, error) {
	if f.o > len(f.out)-outSlack {
		f.o = copy(f.out, f.out[f.o-maxDistance:f.o])
	}
	from := f.o
	for f.state != atEnd && f.o <= len(f.out)-outSlack {
		var err error
		switch f.state {
		case atBlock:
			err = f.header()
		case inStored:
			err = f.copyStored()
		case inCodes:
			err = f.codes()
		}
		if err != nil {
			return nil, err
		}
	}
	if f.o == from {
		return nil, io.EOF
	}
	return f.out[from:f.o], nil
}

func (f *inflater) endBlock() {
	f.state = atBlock
	if f.last {
		f.state = atEnd
		f.align()
	}
}

func (f *inflater) header() error {
	h, err := f.take(3)
	if err != nil {
		return err
	}
	f.last = h&1 != 0
	switch h >> 1 {
	case 0:
		f.align()
		n, err := f.take(16)
		if err != nil {
			return err
		}
		inverse, err := f.take(16)
		if err != nil {
			return err
		}
		if n^inverse != 0xffff {
			return errDeflate
		}
		f.align()
		f.stored, f.state = int(n), inStored
		return nil
	case 1:
		if !f.fixed {
			var lens [320]uint8
			for i := range 288 {
				lens[i] = 8
				if i >= 144 && i < 256 {
					lens[i] = 9
				} else if i >= 256 && i < 280 {
					lens[i] = 7
				}
			}
			for i := 288; i < 320; i++ {
				lens[i] = 5
			}
			if !buildTable(f.lit[:], litBits, lens[:288], litSymbols[:]) || !buildTable(f.dist[:], distBits, lens[288:320], distSymbols[:]) {
				return errDeflate
			}
			f.fixed = true
		}
		f.state = inCodes
		return nil
	case 2:
		f.state = inCodes
		return f.dynamic()
	}
	return errDeflate
}

// dynamic reads the codes of a block (section 3.2.7).
func (f *inflater) dynamic() error {
	f.fixed = false
	h, err := f.take(14)
	if err != nil {
		return err
	}
	nlit, ndist, ncode := int(h&31)+257, int(h>>5&31)+1, int(h>>10&15)+4
	if nlit > 286 || ndist > 30 {
		return errDeflate
	}
	var codeLens [19]uint8
	for i := range ncode {
		n, err := f.take(3)
		if err != nil {
			return err
		}
		codeLens[codeOrder[i]] = uint8(n)
	}
	const codeBits = 7
	var table [1 << codeBits]uint32
	var symbols [19]uint32
	for i := range symbols {
		symbols[i] = uint32(i) << 16
	}
	if !buildTable(table[:], codeBits, codeLens[:], symbols[:]) {
		return errDeflate
	}
	var lens [286 + 30]uint8
	for i := 0; i < nlit+ndist; {
		if err := f.need(codeBits + 7); err != nil {
			return err
		}
		e := table[f.bb&(1<<codeBits-1)]
		if e&isSpecial != 0 {
			return errDeflate
		}
		if _, err := f.take(uint(e & 0xff)); err != nil {
			return err
		}
		sym := e >> 16
		if sym < 16 {
			lens[i] = uint8(sym)
			i++
			continue
		}
		var value uint8
		var n, extra uint
		switch sym {
		case 16:
			if i == 0 {
				return errDeflate
			}
			value, n, extra = lens[i-1], 3, 2
		case 17:
			n, extra = 3, 3
		default:
			n, extra = 11, 7
		}
		more, err := f.take(extra)
		if err != nil {
			return err
		}
		if n += more; i+int(n) > nlit+ndist {
			return errDeflate
		}
		for ; n > 0; n-- {
			lens[i] = value
			i++
		}
	}
	if !buildTable(f.lit[:], litBits, lens[:nlit], litSymbols[:]) || !buildTable(f.dist[:], distBits, lens[nlit:nlit+ndist], distSymbols[:]) {
		return errDeflate
	}
	return nil
}

// buildTable makes the decoding table of a canonical Huffman code. It is false for a code that does not exist: one with
// more codes than there are, or with fewer, except a single one of one bit, or none at all (which fails when it is
// used), as zlib has it.
func buildTable(table []uint32, primary uint, lens []uint8, symbols []uint32) bool {
	var count [maxBits + 1]int
	for _, l := range lens {
		count[l]++
	}
	used := len(lens) - count[0]
	count[0] = 0
	left, longest := 1, uint(0)
	for l := 1; l <= maxBits; l++ {
		if left = left<<1 - count[l]; left < 0 {
			return false
		}
		if count[l] > 0 {
			longest = uint(l)
		}
	}
	if left > 0 && used > 0 && longest != 1 {
		return false
	}
	size := 1 << primary
	if left > 0 { // slots without a code
		for i := range table[:size] {
			table[i] = isSpecial
		}
	}
	var start [maxBits + 2]int
	for l := 1; l <= maxBits; l++ {
		start[l+1] = start[l] + count[l]
	}
	var order [288]uint16
	for s, l := range lens {
		if l != 0 {
			order[start[l]] = uint16(s)
			start[l]++
		}
	}
	code, length := uint32(0), uint(1) // MSB first
	second, prefix, secondBits := size, -1, uint(0)
	for _, s := range order[:used] {
		l := uint(lens[s])
		code <<= l - length
		length = l
		rev := int(bits.Reverse32(code) >> (32 - l))
		code++
		if l <= primary {
			for i := rev; i < size; i += 1 << l {
				table[i] = symbols[s] | uint32(l)
			}
			count[l]--
			continue
		}
		if p := rev & (size - 1); p != prefix {
			// A second table, as large as the longest code with this prefix needs.
			if prefix >= 0 {
				second += 1 << secondBits
			}
			prefix, secondBits = p, l-primary
			for room := 1 << secondBits; secondBits+primary < longest; room <<= 1 {
				if room -= count[secondBits+primary]; room <= 0 {
					break
				}
				secondBits++
			}
			if second+1<<secondBits > len(table) {
				return false
			}
			table[p] = uint32(second)<<16 | isSpecial | isSecond | uint32(secondBits)<<8 | uint32(primary)
		}
		for i := rev >> primary; i < 1<<secondBits; i += 1 << (l - primary) {
			table[second+i] = symbols[s] | uint32(l-primary)
		}
		count[l]--
	}
	return true
}

func (f *inflater) copyStored() error {
	for f.stored > 0 {
		if f.pos == f.end {
			f.fill()
			if f.pos == f.end {
				return f.cut()
			}
		}
		n := min(f.stored, f.end-f.pos, len(f.out)-outSlack+1-f.o)
		if n <= 0 {
			return nil // next returns what there is
		}
		copy(f.out[f.o:], f.in[f.pos:f.pos+n])
		f.o, f.pos, f.stored = f.o+n, f.pos+n, f.stored-n
	}
	f.endBlock()
	return nil
}

// codes decodes symbols until the block ends, the output is full, or the input is used up and read again.
func (f *inflater) codes() error {
	if f.pos > f.safe() {
		f.fill()
		if f.pos > f.safe() {
			return f.cut()
		}
	}
	var (
		in, out    = f.in, f.out
		pos, o     = f.pos, f.o
		bb, nb     = f.bb, f.nb
		lit, dist  = &f.lit, &f.dist
		inEnd      = f.safe()
		outEnd     = len(out) - outSlack
		ended      bool
		err        error
		length, d  int
		extra, use uint
	)
loop:
	for pos <= inEnd && o <= outEnd {
		bb |= binary.LittleEndian.Uint64(in[pos:]) << (nb & 63)
		pos += int((63 - nb) >> 3)
		nb |= 56 // 56 to 63 bits
		e := lit[bb&(1<<litBits-1)]
		if e&isLiteral != 0 {
			// Literals of the first table have at most 11 bits: three of them leave 23.
			bb >>= e & 63
			nb -= uint(e & 63)
			out[o] = byte(e >> 8)
			o++
			e = lit[bb&(1<<litBits-1)]
			if e&isLiteral != 0 {
				bb >>= e & 63
				nb -= uint(e & 63)
				out[o] = byte(e >> 8)
				o++
				e = lit[bb&(1<<litBits-1)]
				if e&isLiteral != 0 {
					bb >>= e & 63
					nb -= uint(e & 63)
					out[o] = byte(e >> 8)
					o++
					continue
				}
			}
		}
		if e&isSpecial != 0 {
			if e&isSecond != 0 {
				bb >>= litBits
				nb -= litBits
				e = lit[(e>>16+uint32(bb)&(1<<(e>>8&15)-1))&(litSize-1)]
			}
			if e&isLiteral != 0 {
				bb >>= e & 63
				nb -= uint(e & 63)
				out[o] = byte(e >> 8)
				o++
				continue
			}
			if e&isSpecial != 0 {
				if e&isEnd == 0 {
					err = errDeflate
					break loop
				}
				bb >>= e & 63
				nb -= uint(e & 63)
				ended = true
				break loop
			}
		}
		// A match: at most 15 and 5 bits of the 34 that are left, then at most 15 and 13.
		use = uint(e & 63)
		extra = uint(e >> 8 & 31)
		length = int(e>>16&0x1ff) + int(bb>>use&(1<<extra-1))
		bb >>= (use + extra) & 63
		nb -= use + extra
		bb |= binary.LittleEndian.Uint64(in[pos:]) << (nb & 63)
		pos += int((63 - nb) >> 3)
		nb |= 56
		e = dist[bb&(1<<distBits-1)]
		if e&isSpecial != 0 {
			if e&isSecond == 0 {
				err = errDeflate
				break loop
			}
			bb >>= distBits
			nb -= distBits
			e = dist[(e>>16+uint32(bb)&(1<<(e>>8&15)-1))&(distSize-1)]
			if e&isSpecial != 0 {
				err = errDeflate
				break loop
			}
		}
		use = uint(e & 63)
		extra = uint(e >> 8 & 31)
		d = int(e>>16) + int(bb>>use&(1<<extra-1))
		bb >>= (use + extra) & 63
		nb -= use + extra
		if d > o {
			err = errDeflate // before the beginning
			break loop
		}
		from, to := o-d, o+length
		switch {
		case d >= 8: // words; what is written beyond the match is written over
			for {
				binary.LittleEndian.PutUint64(out[o:], binary.LittleEndian.Uint64(out[from:]))
				o += 8
				from += 8
				if o >= to {
					break
				}
			}
		case d == 1: // a run of one byte
			w := uint64(out[from]) * 0x0101010101010101
			for ; o < to; o += 8 {
				binary.LittleEndian.PutUint64(out[o:], w)
			}
		default:
			for ; o < to; o++ {
				out[o] = out[from]
				from++
			}
		}
		o = to
	}
	f.pos, f.o, f.bb, f.nb = pos, o, bb, nb
	if f.overrun() {
		return f.cut()
	}
	if err != nil {
		return err
	}
	if ended {
		f.endBlock()
	}
	return nil
}
