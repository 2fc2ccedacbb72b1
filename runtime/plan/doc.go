// Package plan compiles a runtime-spec and facts about the host into the ordered list of system calls that make a
// container's process. It is pure: it reads no file and changes nothing, so every rule in it can be printed and tested.
//
// An operation is a system call with its arguments (numbers, strings, buffers, results of earlier operations), what
// happens when it fails (the program ends and says which operation it was, or it goes on at another one), and a name
// for people. A few operations are not system calls: jump, compare, compute. Package launch puts the list into an image
// and lets the kernel execute it; `onggi-runtime plan` prints it.
//
// Rules of every plan: places inside the root file system are only reached by openat2 with RESOLVE_IN_ROOT and
// RESOLVE_NO_MAGICLINKS, and used by descriptor; what was set is read back before the command is executed; no
// descriptor but the user's survives. What a spec asks and this runtime cannot do is an error that names the field.
//
// It leaves to others: control group limits (package cgroup), the filter's program (package seccomp), hooks, id maps
// and everything that another process must do (package launch).
package plan
