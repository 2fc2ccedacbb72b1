package sys

import (
	"errors"
	"unsafe"
)

// Op is one operation of a syscall program, as the interpreter (interp_*.s) reads it. Its layout is known to the
// assembler: twelve 64-bit words.
//
// A failed operation whose errno has its bit in ErrMask (bit 63 stands for all from 63 up) stores the errno at ErrDst and goes on at Target,
// or at the next operation when Target is 0. Any other failure ends the program: the interpreter writes the
// operation's address and the errno to the report descriptor and exits with code 127.
type Op struct {
	NR      uint64    // system call number, or one of the Op constants
	Args    [6]uint64 // values, or addresses of the value when the argument's bit is set in Ind
	Ind     uint64
	Dst     uint64 // where the result is stored; 0: nowhere
	ErrMask uint64
	Target  uint64
	ErrDst  uint64
}

// Operations that are not system calls.
const (
	OpJump    = 4096 + iota // go on at Target
	OpCompare               // fail with errno Args[3] unless (Args[0] ^ Args[1]) & Args[2] is 0
	OpCompute               // result = ((Args[0] >> Args[1]) & Args[2]) + Args[3]
)

// OpSize is the size of an Op in memory, in bytes.
const OpSize = 96

// The addresses at which an image has its parts. Programs are compiled for them, so nothing is relocated.
const (
	TextBase = 0x00400000 // ELF header and interpreter, executable
	OpsBase  = 0x10000000 // operations, read-only
	DataBase = 0x20000000 // Status, then strings and buffers, writable
	CellBase = 0x30000000 // results, zero at first
)

// Status heads the data of every program; the interpreter writes a failure into it.
type Status struct {
	Ops    uint64 // address of the first operation
	FailOp uint64 // address of the failed operation
	Errno  uint64
	Report uint64 // descriptor to which FailOp and Errno are written
}

// StatusSize is the size of Status in memory, in bytes.
const StatusSize = 32

// ErrArch says that this build has no interpreter for the processor.
var ErrArch = errors.New("the container launcher has no interpreter for this processor architecture (amd64 and arm64 only)")

// Bytes returns the memory of ops, not a copy.
func Bytes(ops []Op) []byte {
	if len(ops) == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(&ops[0])), len(ops)*OpSize)
}

// Addr returns the address of a buffer for programs that run in this process's memory (Spawn). The caller keeps the
// buffer alive until the child has executed its image.
func Addr(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }

// AddrOf is Addr for a single word.
func AddrOf(p *uint64) uint64 { return uint64(uintptr(unsafe.Pointer(p))) }

// AddrOp is Addr for an operation.
func AddrOp(p *Op) uint64 { return uint64(uintptr(unsafe.Pointer(p))) }
