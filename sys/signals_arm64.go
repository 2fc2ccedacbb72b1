package sys

// A handler returns to the vDSO's trampoline when it brings no restorer.
const saRestorer = 0

func restorerAddr() uintptr { return 0 }
