package sys

import (
	"bytes"
	"encoding/binary"
	"unsafe"
)

// cloneAndRun calls clone3; the child never returns from it.
//
//go:noescape
func cloneAndRun(args unsafe.Pointer, size uintptr, ops, status unsafe.Pointer) int

// interpreterAddr returns where the interpreter begins.
func interpreterAddr() unsafe.Pointer

// Machine is e_machine of the image's ELF header (elf(5)).
const Machine = 62 // EM_X86_64

// ImagePage is the alignment of an image's parts: the largest page that a kernel for this processor is built with.
const ImagePage = 4096

// Interpreter returns the machine code of an image: a prologue that loads the status address, then the interpreter.
// It is position independent. Errors: ErrArch.
func Interpreter() ([]byte, error) {
	// The code ends with a mark, because the linker does not promise the order of functions.
	code := unsafe.Slice((*byte)(interpreterAddr()), 1024)
	n := bytes.Index(code, []byte("ONGGIEND"))
	out := make([]byte, 0, 14+n)
	out = append(out, 0x49, 0xbd) // movabs $DataBase, %r13
	out = binary.LittleEndian.AppendUint64(out, DataBase)
	out = append(out, 0x4d, 0x8b, 0x65, 0x00) // mov 0(%r13), %r12
	return append(out, code[:n]...), nil
}
