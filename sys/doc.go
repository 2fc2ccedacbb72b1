// Package sys is the only door to raw memory and raw system calls: the only package that imports unsafe or uses the
// linkname directive, one file per concern.
//
// program.go defines the operations of a syscall program and the addresses of an image's parts, spawn.go clones a child
// that executes such a program, interp_*.s is the interpreter, one per processor. Other files are doors of other rooms
// and say so. It knows nothing of containers: what a program means is package runtime/plan's, when it runs is
// runtime/launch's.
package sys
