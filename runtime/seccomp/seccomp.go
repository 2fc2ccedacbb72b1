// Package seccomp compiles the runtime-spec's seccomp section into a BPF program. It is pure.
//
// The program first looks at the architecture: an unknown one is killed (KILL_PROCESS), as libseccomp does. Then, for each architecture,
// a balanced tree of compares over merged ranges of syscall numbers leads to an action or to the argument rules of one
// syscall. On x86_64 the x32 range has a tree of its own when SCMP_ARCH_X32 is listed and is killed otherwise.
// Argument compares are 64 bit. Syscalls newer than anything the profile names get ENOSYS when the default action is
// an errno, as runc does, so that libc falls back.
//
// The differential test compares the result with libseccomp's on every syscall number of every architecture and on
// edge values of every argument.
package seccomp

import (
	runspec "github.com/opencontainers/runtime-spec/specs-go"
)

// Instruction is struct sock_filter of linux/filter.h.
type Instruction struct {
	Code   uint16
	Jt, Jf uint8
	K      uint32
}

// Program is a compiled filter.
type Program struct {
	Filter  []Instruction
	Flags   uint32   // SECCOMP_FILTER_FLAG_*
	Notify  bool     // has a SCMP_ACT_NOTIFY action
	Unknown []string // syscall names that no listed architecture has; ignored as libseccomp-based runtimes do, reported
}

// Compile compiles a profile. Errors are of kind InvalidArgument or Unsupported and name the field.
func Compile(p *runspec.LinuxSeccomp) (*Program, error) { panic("contract") }
