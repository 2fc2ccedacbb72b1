//go:build !amd64 && !arm64

package sys

import (
	"syscall"
	"unsafe"
)

// Machine is e_machine of the image's ELF header; no image is ever built here.
const Machine = 0

// ImagePage is the alignment of an image's parts; no image is ever built here.
const ImagePage = 4096

// Interpreter fails: this processor has no interpreter yet.
func Interpreter() ([]byte, error) { return nil, ErrArch }

func cloneAndRun(unsafe.Pointer, uintptr, unsafe.Pointer, unsafe.Pointer) int {
	return -int(syscall.ENOSYS)
}
