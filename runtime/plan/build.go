package plan

import (
	"encoding/binary"

	"github.com/onggi/onggi/sys"
)

// Name says what an operation is for: "mount /proc". Two words, so that making one costs nothing.
type Name struct{ Verb, What string }

// String reads "verb what".
func (n Name) String() string {
	if n.What == "" {
		return n.Verb
	}
	return n.Verb + " " + n.What
}

// How an argument is shown by Print.
const (
	isValue  = iota // a number
	isString        // address of a string
	isBuffer        // address of data
	isCell          // address of a cell: the argument is what the cell holds
	isInto          // address of a cell that the kernel writes
)

type arg struct {
	v    uint64
	kind uint8
}

type cell uint64

// builder appends operations. Addresses are final from the start, because the image's parts have fixed addresses.
type builder struct {
	ops   []sys.Op
	names []Name
	kinds []uint32 // four bits per argument
	data  []byte
	cells uint64 // next free address
	empty uint64
	null  cell // an O_PATH handle of the host's /dev/null

	warnings []string
}

func newBuilder(size int) *builder {
	b := &builder{
		ops: make([]sys.Op, 0, size), names: make([]Name, 0, size), kinds: make([]uint32, 0, size),
		data: make([]byte, sys.StatusSize, 16<<10), cells: sys.CellBase,
	}
	b.empty = b.put([]byte{0})
	return b
}

func (b *builder) align() {
	for len(b.data)%8 != 0 {
		b.data = append(b.data, 0)
	}
}

// put stores bytes at an address that is a multiple of 8.
func (b *builder) put(p []byte) uint64 {
	b.align()
	a := sys.DataBase + uint64(len(b.data))
	b.data = append(b.data, p...)
	return a
}

func (b *builder) words(ws ...uint64) uint64 {
	b.align()
	a := sys.DataBase + uint64(len(b.data))
	for _, w := range ws {
		b.data = binary.LittleEndian.AppendUint64(b.data, w)
	}
	return a
}

func (b *builder) text(s string) uint64 {
	if s == "" {
		return b.empty
	}
	a := sys.DataBase + uint64(len(b.data))
	b.data = append(append(b.data, s...), 0)
	return a
}

// vector stores a NULL-terminated array of strings, as execve(2) takes it.
func (b *builder) vector(ss []string) uint64 {
	ws := make([]uint64, len(ss)+1)
	for i, s := range ss {
		ws[i] = b.text(s)
	}
	return b.words(ws...)
}

// cell reserves a word for a result; room reserves bytes. Both are zero at first.
func (b *builder) cell() cell { return b.room(8) }

func (b *builder) room(n int) cell {
	c := cell(b.cells)
	b.cells += uint64(n+7) &^ 7
	return c
}

func num(v int) arg               { return arg{uint64(int64(v)), isValue} }
func word(v uint64) arg           { return arg{v, isValue} }
func (b *builder) s(s string) arg { return arg{b.text(s), isString} }
func buf(a uint64) arg            { return arg{a, isBuffer} }
func (c cell) get() arg           { return arg{uint64(c), isCell} }
func (c cell) addr() arg          { return arg{uint64(c), isInto} }

// op appends an operation that ends the program when it fails. The result is valid until the next op.
func (b *builder) op(nr uint64, verb, what string, args ...arg) *sys.Op {
	var k uint32
	b.ops = append(b.ops, sys.Op{NR: nr})
	o := &b.ops[len(b.ops)-1]
	for i, a := range args {
		o.Args[i] = a.v
		if a.kind == isCell {
			o.Ind |= 1 << i
		}
		k |= uint32(a.kind) << (4 * i)
	}
	b.names = append(b.names, Name{verb, what})
	b.kinds = append(b.kinds, k)
	return o
}

const anyErrno = ^uint64(0)

// errnos makes an ErrMask.
func errnos(es ...int) (m uint64) {
	for _, e := range es {
		m |= 1 << min(e, 63)
	}
	return m
}

// here is the index of the next operation, the target of a jump.
func (b *builder) here() int { return len(b.ops) }

// land makes the operations at the given indices go on at the next operation.
func (b *builder) land(from ...int) {
	for _, i := range from {
		b.ops[i].Target = sys.OpsBase + uint64(len(b.ops))*sys.OpSize
	}
}

// landAt makes operation i go on at operation to.
func (b *builder) landAt(i, to int) { b.ops[i].Target = sys.OpsBase + uint64(to)*sys.OpSize }

// jump appends an unconditional jump; its target is set by land.
func (b *builder) jump(what string) int {
	b.op(sys.OpJump, "skip", what)
	return len(b.ops) - 1
}

// unless appends a compare that jumps (land) when (a^c)&mask is not 0.
func (b *builder) unless(what string, a, c arg, mask uint64) int {
	b.op(sys.OpCompare, "look at", what, a, c, word(mask)).ErrMask = anyErrno
	return len(b.ops) - 1
}

// check appends a compare that ends the program with errno when (a^c)&mask is not 0.
func (b *builder) check(what string, a, c arg, mask uint64, errno int) {
	b.op(sys.OpCompare, "check", what, a, c, word(mask), num(errno))
}

// fail ends the program with errno.
func (b *builder) fail(verb, what string, errno int) {
	b.op(sys.OpCompare, verb, what, num(1), num(0), word(1), num(errno))
}
