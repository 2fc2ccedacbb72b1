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
const Machine = 183 // EM_AARCH64

// ImagePage is the alignment of an image's parts: the largest page that a kernel for this processor is built with.
const ImagePage = 64 << 10

// Interpreter returns the machine code of an image: a prologue that loads the status address, then the interpreter.
// It is position independent. Errors: ErrArch.
func Interpreter() ([]byte, error) {
	// The code ends with a mark, because the linker does not promise the order of functions.
	code := unsafe.Slice((*byte)(interpreterAddr()), 1024)
	n := bytes.Index(code, []byte("ONGGIEND"))
	out := make([]byte, 0, 8+n)
	out = binary.LittleEndian.AppendUint32(out, 0xd2a00000|DataBase>>16<<5|20) // movz x20, #(DataBase>>16), lsl #16
	out = binary.LittleEndian.AppendUint32(out, 0xf9400000|20<<5|19)           // ldr x19, [x20]
	return append(out, code[:n]...), nil
}
