package sys

// The kernel has no place of its own for a handler to return to.
const saRestorer = 0x04000000

func restorerAddr() uintptr
