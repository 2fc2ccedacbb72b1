// Package seccomp compiles the runtime-spec's seccomp section into a BPF program. It is pure.
//
// The program first looks at the architecture: an unknown one is killed (KILL_PROCESS), as libseccomp does. Then, for
// each architecture, a balanced tree of compares over merged ranges of syscall numbers leads to an action or to the
// argument rules of one syscall. On x86_64 the x32 range has a tree of its own when SCMP_ARCH_X32 is listed and is
// killed otherwise. Argument compares are 64 bit, on 32-bit architectures 32 bit. Syscalls newer than anything the
// profile names get ENOSYS when the default action is an errno, as runc does, so that libc falls back.
//
// Of several rules for one syscall, one without conditions takes the place of those with conditions; of those with
// conditions the first that holds decides. Conditions on different arguments must hold all; several conditions on the
// same argument are alternatives (runc, libcontainer/seccomp; moby's profiles are written for that).
//
// The differential test compares the result with libseccomp's on every syscall number of every architecture and on
// edge values of every argument.
package seccomp

//go:generate go run gen.go

import (
	"cmp"
	"fmt"
	"slices"
	"sort"

	"github.com/onggi/onggi/errdefs"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
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

// enosys is the answer to calls that the profile's author did not know.
const enosys = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)

// maxProgram is BPF_MAXINSNS of linux/bpf_common.h.
const maxProgram = 4096

// x32Bit marks the numbers of the x32 interface, which shares x86_64's architecture word.
const x32Bit = 0x40000000

// armPrivate is where arm's private calls begin, far above the others (__ARM_NR_BASE of asm/unistd.h).
const armPrivate = 0xf0000

// arch is one architecture of the kernel's word seccomp_data.arch.
type arch struct {
	name   runspec.Arch
	audit  uint32 // AUDIT_ARCH_* of linux/audit.h
	column int    // in numbers
	narrow bool   // 32-bit registers
	big    bool   // big endian
}

const (
	x86Column     = 1
	x32Column     = 2
	ppc64leColumn = 6
	s390xColumn   = 7
)

var arches = [...]arch{
	{runspec.ArchX86_64, unix.AUDIT_ARCH_X86_64, 0, false, false},
	{runspec.ArchX86, unix.AUDIT_ARCH_I386, 1, true, false},
	{runspec.ArchAARCH64, unix.AUDIT_ARCH_AARCH64, 3, false, false},
	{runspec.ArchARM, unix.AUDIT_ARCH_ARM, 4, true, false},
	{runspec.ArchRISCV64, unix.AUDIT_ARCH_RISCV64, 5, false, false},
	{runspec.ArchPPC64LE, unix.AUDIT_ARCH_PPC64LE, 6, false, false},
	{runspec.ArchS390X, unix.AUDIT_ARCH_S390X, 7, false, true},
	{runspec.ArchLOONGARCH64, unix.AUDIT_ARCH_LOONGARCH64, 8, false, false},
}

// rule is one alternative for a syscall: all conditions must hold.
type rule struct {
	conds  []runspec.LinuxSeccompArg
	action uint32
}

// policy is what one entry of the profile says of its syscalls: one action, or rules.
type policy struct {
	plain  bool
	action uint32
	rules  []rule
}

// call is one syscall of one architecture under one entry of the profile.
type call struct {
	nr    uint32
	entry int32
}

// Compile compiles a profile. Errors are of kind InvalidArgument, Unsupported or Exhausted (the program is longer than
// the kernel takes) and name the field. An architecture that this package has no table for is left out, and so killed,
// as long as another one is listed.
func Compile(p *runspec.LinuxSeccomp) (*Program, error) {
	out := &Program{}
	var err error
	def, err := action("defaultAction", p.DefaultAction, p.DefaultErrnoRet, out)
	if err != nil {
		return nil, err
	}
	if out.Notify {
		return nil, bad("defaultAction", "SCMP_ACT_NOTIFY for every call would stop the process before anybody can listen")
	}
	for i := range p.Syscalls {
		if len(p.Syscalls[i].Names) == 0 {
			return nil, bad(fmt.Sprintf("syscalls[%d].names", i), "a rule names no system call")
		}
		for j, a := range p.Syscalls[i].Args {
			if a.Index > 5 {
				return nil, bad(fmt.Sprintf("syscalls[%d].args[%d].index", i, j), fmt.Sprintf("%d: a system call has six arguments", a.Index))
			}
			if !slices.Contains([]runspec.LinuxSeccompOperator{
				runspec.OpNotEqual, runspec.OpLessThan, runspec.OpLessEqual, runspec.OpEqualTo,
				runspec.OpGreaterEqual, runspec.OpGreaterThan, runspec.OpMaskedEqual,
			}, a.Op) {
				return nil, bad(fmt.Sprintf("syscalls[%d].args[%d].op", i, j), fmt.Sprintf("there is no operator %q", a.Op))
			}
		}
	}
	listed, x32, err := listedArches(p.Architectures)
	if err != nil {
		return nil, err
	}

	// One look at the names gives the numbers of all architectures.
	var tables [columns][]call
	cols := []int{}
	for _, a := range listed {
		cols = append(cols, a.column)
		if a.column == 0 && x32 {
			cols = append(cols, x32Column)
		}
	}
	total := 0
	for i := range p.Syscalls {
		total += len(p.Syscalls[i].Names)
	}
	for _, c := range cols {
		tables[c] = make([]call, 0, total)
	}
	policies := make([]policy, len(p.Syscalls))
	var actions []uint32
	for i := range p.Syscalls {
		s := &p.Syscalls[i]
		act, err := action("syscalls.action", s.Action, s.ErrnoRet, out)
		if err != nil {
			errdefs.As(err).What = fmt.Sprintf("linux.seccomp.syscalls[%d].action", i)
			return nil, err
		}
		if act == unix.SECCOMP_RET_USER_NOTIF && slices.Contains(s.Names, "write") {
			// The runtime hands the listener on by a write: the process would wait for itself.
			return nil, bad(fmt.Sprintf("syscalls[%d].action", i), `SCMP_ACT_NOTIFY cannot be used for "write"`)
		}
		if !slices.Contains(actions, act) {
			actions = append(actions, act)
		}
		if act != def {
			policies[i] = policy{plain: len(s.Args) == 0, action: act, rules: alternatives(s.Args, act)}
		} // else it says nothing but that the call is known, as runc has it: no rule beside it loses to it
		for _, name := range s.Names {
			n, ok := find(name)
			known := false
			for _, c := range cols {
				if ok && n[c] >= 0 {
					known = true
					tables[c] = append(tables[c], call{uint32(n[c]), int32(i)})
				}
				carrier, number := carrierOf(name, c)
				if carrier == "" {
					continue
				}
				known = true
				if into, ok := find(carrier); ok && into[c] >= 0 && act != def && (len(s.Args) == 0 || int32(act) < int32(def)) {
					tables[c] = append(tables[c], call{uint32(into[c]), int32(len(policies))})
					policies = append(policies, policy{rules: []rule{{[]runspec.LinuxSeccompArg{{Op: runspec.OpEqualTo, Value: number}}, act}}})
				}
			}
			if !known && !slices.Contains(out.Unknown, name) {
				out.Unknown = append(out.Unknown, name)
			}
		}
	}

	if out.Flags, err = flags(p.Flags, out.Notify); err != nil {
		return nil, err
	}

	code := make([]Instruction, 0, 1024)
	code = append(code, load(offArch))
	for _, a := range listed {
		g := generator{arch: a, policies: policies, def: def, errno: isErrno(def)}
		for _, action := range append([]uint32{def, enosys, unix.SECCOMP_RET_KILL_PROCESS}, actions...) {
			g.ret(action)
		}
		leaves := g.leaves(tables[a.column], 0)
		if a.column == 0 {
			leaves = leaves[:cut(leaves, x32Bit)]
			if x32 {
				leaves = append(leaves, g.leaves(tables[x32Column], x32Bit)...)
			} else {
				// -1 is no call: a tracer skips one with it.
				leaves = append(leaves, leaf{x32Bit, g.ret(unix.SECCOMP_RET_KILL_PROCESS)}, leaf{0xffffffff, g.ret(def)})
			}
		}
		body := g.tree(append(make([]Instruction, 0, 512), load(offNr)), merge(leaves))
		code = append(code, skipUnless(a.audit, len(body))...)
		code = append(code, body...)
	}
	out.Filter = append(code, ret(unix.SECCOMP_RET_KILL_PROCESS)...)
	if len(out.Filter) > maxProgram {
		return nil, &errdefs.Error{
			Op: "compile", What: "linux.seccomp", Kind: errdefs.Exhausted,
			Why: fmt.Sprintf("the filter has %d instructions, the kernel takes %d", len(out.Filter), maxProgram), Fix: "use a profile with fewer argument rules",
		}
	}
	return out, nil
}

func bad(field, why string) error {
	return &errdefs.Error{Op: "compile", What: "linux.seccomp." + field, Kind: errdefs.InvalidArgument, Why: why, Fix: "correct the profile"}
}

// carrierOf says in which call another one is carried, and by which number in its first argument: socketcall(2) and
// ipc(2) of the older architectures. A rule for "connect" speaks for both ways, else a profile that denies it would be
// passed by. The call's own arguments are behind a pointer there, where no filter can look: a rule that looks at them is
// left out when it would permit more than the default, and holds for every call when it would permit less.
func carrierOf(name string, column int) (carrier string, number uint64) {
	if column != x86Column && column != ppc64leColumn && column != s390xColumn {
		return "", 0
	}
	for i, list := range [...][]string{inSocketcall[:], inIPC[:]} {
		for n, c := range list {
			if c == name {
				return [...]string{"socketcall", "ipc"}[i], uint64(n)
			}
		}
	}
	return "", 0
}

// The calls inside socketcall (linux/net.h) and ipc (linux/ipc.h), by their number there. "-" is none.
var inSocketcall = [...]string{
	"-", "socket", "bind", "connect", "listen", "accept", "getsockname", "getpeername", "socketpair", "send", "recv",
	"sendto", "recvfrom", "shutdown", "setsockopt", "getsockopt", "sendmsg", "recvmsg", "accept4", "recvmmsg", "sendmmsg",
}

var inIPC = [...]string{
	"-", "semop", "semget", "semctl", "semtimedop", "-", "-", "-", "-", "-", "-", "msgsnd", "msgrcv", "msgget", "msgctl",
	"-", "-", "-", "-", "-", "-", "shmat", "shmdt", "shmget", "shmctl",
}

// flags: none given means SPEC_ALLOW, as runc's default: the filter does not slow the container down by itself.
func flags(names []runspec.LinuxSeccompFlag, notify bool) (f uint32, err error) {
	if notify {
		f = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER
	}
	if names == nil {
		return f | unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, nil
	}
	for _, n := range names {
		switch n {
		case "SECCOMP_FILTER_FLAG_TSYNC":
			f |= unix.SECCOMP_FILTER_FLAG_TSYNC
			if notify {
				f |= unix.SECCOMP_FILTER_FLAG_TSYNC_ESRCH // the kernel takes the two together only so (Linux 5.7)
			}
		case runspec.LinuxSeccompFlagLog:
			f |= unix.SECCOMP_FILTER_FLAG_LOG
		case runspec.LinuxSeccompFlagSpecAllow:
			f |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		case runspec.LinuxSeccompFlagWaitKillableRecv:
			if notify { // it says how a notified call waits, and the kernel refuses it where none is
				f |= unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
			}
		default:
			return 0, bad("flags", fmt.Sprintf("there is no flag %q", n))
		}
	}
	return f, nil
}

// Flag is a value of linux.seccomp.flags, and the bits of seccomp(2) with which the kernel can be asked whether it takes it.
type Flag struct {
	Name string
	Bits uint32
}

// Flags are the values of linux.seccomp.flags that Compile knows, by name.
func Flags() []Flag {
	return []Flag{
		{string(runspec.LinuxSeccompFlagLog), unix.SECCOMP_FILTER_FLAG_LOG},
		{string(runspec.LinuxSeccompFlagSpecAllow), unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW},
		{"SECCOMP_FILTER_FLAG_TSYNC", unix.SECCOMP_FILTER_FLAG_TSYNC},
		// only where there is a listener
		{string(runspec.LinuxSeccompFlagWaitKillableRecv), unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV},
	}
}

// action is the filter's return value.
func action(field string, a runspec.LinuxSeccompAction, errnoRet *uint, out *Program) (uint32, error) {
	data := uint32(unix.EPERM)
	if errnoRet != nil {
		if a != runspec.ActErrno && a != runspec.ActTrace {
			return 0, bad(field, fmt.Sprintf("an errnoRet does not go with %s", a))
		}
		if *errnoRet > unix.SECCOMP_RET_DATA {
			return 0, bad(field, fmt.Sprintf("errnoRet %d is above %d", *errnoRet, unix.SECCOMP_RET_DATA))
		}
		data = uint32(*errnoRet)
	}
	switch a {
	case runspec.ActAllow:
		return unix.SECCOMP_RET_ALLOW, nil
	case runspec.ActErrno:
		return unix.SECCOMP_RET_ERRNO | data, nil
	case runspec.ActKill, runspec.ActKillThread:
		return unix.SECCOMP_RET_KILL_THREAD, nil
	case runspec.ActKillProcess:
		return unix.SECCOMP_RET_KILL_PROCESS, nil
	case runspec.ActTrap:
		return unix.SECCOMP_RET_TRAP, nil
	case runspec.ActTrace:
		return unix.SECCOMP_RET_TRACE | data, nil
	case runspec.ActLog:
		return unix.SECCOMP_RET_LOG, nil
	case runspec.ActNotify:
		out.Notify = true
		return unix.SECCOMP_RET_USER_NOTIF, nil
	}
	return 0, bad(field, fmt.Sprintf("there is no action %q", a))
}

func isErrno(a uint32) bool { return a&unix.SECCOMP_RET_ACTION_FULL == unix.SECCOMP_RET_ERRNO }

// listedArches resolves the names. The one that this program was built for is always among them, as with libseccomp:
// a filter without it would kill its own process at once.
func listedArches(names []runspec.Arch) (listed []arch, x32 bool, err error) {
	for _, a := range arches {
		if a.name == nativeArch {
			listed = append(listed, a)
		}
	}
	for _, n := range names {
		if n == runspec.ArchX32 {
			x32 = true
			continue
		}
		i := slices.IndexFunc(arches[:], func(a arch) bool { return a.name == n })
		if i >= 0 && !slices.ContainsFunc(listed, func(a arch) bool { return a.name == n }) {
			listed = append(listed, arches[i])
		} else if i < 0 && !slices.Contains(others, n) {
			return nil, false, bad("architectures", fmt.Sprintf("there is no architecture %q", n))
		}
	}
	if x32 && !slices.ContainsFunc(listed, func(a arch) bool { return a.column == 0 }) {
		return nil, false, bad("architectures", "SCMP_ARCH_X32 needs SCMP_ARCH_X86_64: they share one architecture word")
	}
	if len(listed) == 0 {
		return nil, false, &errdefs.Error{
			Op: "compile", What: "linux.seccomp.architectures", Kind: errdefs.Unsupported,
			Why: fmt.Sprintf("no table of system calls for %v", names), Fix: "list the host's architecture",
		}
	}
	// The program's own first: most calls come from it.
	slices.SortStableFunc(listed, func(a, b arch) int {
		return cmp.Compare(b2i(b.name == nativeArch), b2i(a.name == nativeArch))
	})
	return listed, x32, nil
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// others are architectures of runtime-spec without a table here.
var others = []runspec.Arch{
	runspec.ArchMIPS, runspec.ArchMIPS64, runspec.ArchMIPS64N32, runspec.ArchMIPSEL, runspec.ArchMIPSEL64, runspec.ArchMIPSEL64N32,
	runspec.ArchPPC, runspec.ArchPPC64, runspec.ArchS390, runspec.ArchPARISC, runspec.ArchPARISC64, runspec.ArchM68K, runspec.ArchSH, runspec.ArchSHEB,
}

func find(name string) (*[columns]int32, bool) {
	i := sort.Search(len(numbers), func(i int) bool { return numbers[i].name >= name })
	if i < len(numbers) && numbers[i].name == name {
		return &numbers[i].nr, true
	}
	return nil, false
}

// alternatives splits conditions on one argument into rules of their own.
func alternatives(conds []runspec.LinuxSeccompArg, act uint32) []rule {
	if len(conds) == 0 {
		return nil
	}
	var seen [6]bool
	for _, c := range conds {
		if seen[c.Index] {
			var rules []rule
			for i := range conds {
				rules = append(rules, rule{conds[i : i+1], act})
			}
			return rules
		}
		seen[c.Index] = true
	}
	return []rule{{conds, act}}
}

// leaf is what happens from a syscall number on, up to the next leaf's.
type leaf struct {
	from uint32
	code int32 // index in generator.codes
}

type generator struct {
	arch     arch
	policies []policy
	def      uint32
	errno    bool
	codes    [][]Instruction
	returns  []uint32 // actions that codes begin with, so that equal leaves are found equal at once
}

// ret is the leaf that returns an action.
func (g *generator) ret(action uint32) int32 {
	if i := slices.Index(g.returns, action); i >= 0 {
		return int32(i)
	}
	if len(g.returns) < len(g.codes) { // argument rules have come since: this one is not shared, which only costs space
		g.codes = append(g.codes, ret(action))
		return int32(len(g.codes) - 1)
	}
	g.returns = append(g.returns, action)
	g.codes = append(g.codes, ret(action))
	return int32(len(g.codes) - 1)
}

// leaves are the ranges of one table, whose numbers begin at base.
func (g *generator) leaves(calls []call, base uint32) []leaf {
	slices.SortFunc(calls, func(a, b call) int {
		if a.nr != b.nr {
			return cmp.Compare(a.nr, b.nr)
		}
		return cmp.Compare(a.entry, b.entry)
	})
	def := g.ret(g.def)
	out := append(make([]leaf, 0, 2*len(calls)+3), leaf{base, def})
	for i := 0; i < len(calls); {
		j := i + 1
		for j < len(calls) && calls[j].nr == calls[i].nr {
			j++
		}
		out = append(out, leaf{base + calls[i].nr, g.decide(calls[i:j])}, leaf{base + calls[i].nr + 1, def})
		i = j
	}
	if g.errno {
		// What follows the newest call that is named, and on arm what follows its private calls.
		for i := len(out) - 1; i > 0; i-- {
			if n := out[i].from - base; i == len(out)-1 || n < armPrivate {
				out[i].code = g.ret(enosys)
				if n < armPrivate {
					break
				}
			}
		}
	}
	return out
}

// decide is the code for one syscall. Entries with the default action have neither a plain rule nor others.
func (g *generator) decide(calls []call) int32 {
	var rules []rule
	for _, c := range calls {
		p := &g.policies[c.entry]
		if p.plain {
			return g.ret(p.action)
		}
		rules = append(rules, p.rules...)
	}
	if len(rules) == 0 {
		return g.ret(g.def)
	}
	var code []Instruction
	for i := 0; i < len(rules); {
		j := i
		for j < len(rules) && j-i < 100 && g.groups(rules[i], rules[j]) {
			j++
		}
		if j-i > 1 {
			code = append(code, g.anyOf(rules[i:j])...)
			i = j
			continue
		}
		code = append(code, g.all(rules[i])...)
		i++
	}
	g.codes = append(g.codes, append(code, ret(g.def)...))
	return int32(len(g.codes) - 1)
}

// groups reports whether b can share a's loads: equalities of one argument with one action and one upper half.
func (g *generator) groups(a, b rule) bool {
	if len(a.conds) != 1 || len(b.conds) != 1 || a.action != b.action {
		return false
	}
	x, y := a.conds[0], b.conds[0]
	return x.Op == runspec.OpEqualTo && y.Op == runspec.OpEqualTo && x.Index == y.Index && x.Value>>32 == y.Value>>32
}

// anyOf: ld hi; jeq hi else next; ld lo; jeq v1 -> act; jeq v2 -> act; ...; ja next; act: ret
func (g *generator) anyOf(rules []rule) []Instruction {
	c := rules[0].conds[0]
	var code []Instruction
	n := len(rules)
	if !g.arch.narrow {
		code = append(code, load(g.hi(c.Index)), jump(jeq, uint32(c.Value>>32), 0, uint8(n+3)))
	}
	code = append(code, load(g.lo(c.Index)))
	for i, r := range rules {
		code = append(code, jump(jeq, uint32(r.conds[0].Value), uint8(n-i), 0))
	}
	return append(code, Instruction{Code: ja, K: 1}, ret(rules[0].action)[0])
}

// all: each condition falls through when it holds and jumps behind the return when it does not.
func (g *generator) all(r rule) []Instruction {
	var parts [][]Instruction
	rest := 1 // instructions behind the part: the return
	for i := len(r.conds) - 1; i >= 0; i-- {
		p := g.cond(r.conds[i], uint8(rest))
		parts = append(parts, p)
		rest += len(p)
	}
	var code []Instruction
	for i := len(parts) - 1; i >= 0; i-- {
		code = append(code, parts[i]...)
	}
	return append(code, ret(r.action)[0])
}

// cond is one compare: falls through when it holds, and jumps over behind more instructions when not.
func (g *generator) cond(c runspec.LinuxSeccompArg, behind uint8) []Instruction {
	lo, hi := uint32(c.Value), uint32(c.Value>>32)
	fail := behind
	low := func(code uint16, k uint32, negate bool) []Instruction {
		j := jump(code, k, 0, fail)
		if negate {
			j = jump(code, k, fail, 0)
		}
		return []Instruction{load(g.lo(c.Index)), j}
	}
	if c.Op == runspec.OpMaskedEqual {
		two := c.ValueTwo
		code := []Instruction{load(g.lo(c.Index)), {Code: and, K: lo}, jump(jeq, uint32(two), 0, fail)}
		if g.arch.narrow {
			return code
		}
		return append([]Instruction{load(g.hi(c.Index)), {Code: and, K: hi}, jump(jeq, uint32(two>>32), 0, fail+3)}, code...)
	}
	var tail []Instruction
	switch c.Op {
	case runspec.OpEqualTo:
		tail = low(jeq, lo, false)
	case runspec.OpNotEqual:
		tail = low(jeq, lo, true)
	case runspec.OpGreaterThan:
		tail = low(jgt, lo, false)
	case runspec.OpGreaterEqual:
		tail = low(jge, lo, false)
	case runspec.OpLessThan:
		tail = low(jge, lo, true)
	case runspec.OpLessEqual:
		tail = low(jgt, lo, true)
	}
	if g.arch.narrow {
		return tail
	}
	const done = 2 // over the tail: the condition holds whatever the lower half is
	head := []Instruction{load(g.hi(c.Index))}
	switch c.Op {
	case runspec.OpEqualTo:
		head = append(head, jump(jeq, hi, 0, fail+2))
	case runspec.OpNotEqual:
		head = append(head, jump(jeq, hi, 0, done))
	case runspec.OpGreaterThan, runspec.OpGreaterEqual:
		head = append(head, jump(jgt, hi, done+1, 0), jump(jeq, hi, 0, fail+2))
	case runspec.OpLessThan, runspec.OpLessEqual:
		head = append(head, jump(jgt, hi, fail+3, 0), jump(jeq, hi, 0, done))
	}
	return append(head, tail...)
}

// Offsets in struct seccomp_data.
const (
	offNr   = 0
	offArch = 4
	offArgs = 16
)

func (g *generator) lo(index uint) uint32 {
	return offArgs + 8*uint32(index) + 4*uint32(b2i(g.arch.big))
}

func (g *generator) hi(index uint) uint32 {
	return offArgs + 8*uint32(index) + 4*uint32(b2i(!g.arch.big))
}

const (
	jeq = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	jgt = unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K
	jge = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
	ja  = unix.BPF_JMP | unix.BPF_JA
	and = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
)

func load(offset uint32) Instruction {
	return Instruction{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
}

func jump(code uint16, k uint32, jt, jf uint8) Instruction { return Instruction{code, jt, jf, k} }

func ret(k uint32) []Instruction { return []Instruction{{Code: unix.BPF_RET | unix.BPF_K, K: k}} }

// skipUnless jumps over n instructions unless the accumulator is k.
func skipUnless(k uint32, n int) []Instruction {
	if n <= 255 {
		return []Instruction{jump(jeq, k, 0, uint8(n))}
	}
	return []Instruction{jump(jeq, k, 1, 0), {Code: ja, K: uint32(n)}}
}

// cut is how many leaves begin below end.
func cut(leaves []leaf, end uint32) int {
	return sort.Search(len(leaves), func(i int) bool { return leaves[i].from >= end })
}

// merge joins neighbours that do the same, and drops empty ranges.
func merge(leaves []leaf) []leaf {
	out := leaves[:0]
	for i, l := range leaves {
		if i+1 < len(leaves) && leaves[i+1].from == l.from {
			continue
		}
		if n := len(out); n > 0 && out[n-1].code == l.code {
			continue
		}
		out = append(out, l)
	}
	return out
}

// tree appends a balanced search: jge middle -> upper half, else lower half, which follows at once.
func (g *generator) tree(code []Instruction, leaves []leaf) []Instruction {
	if len(leaves) == 1 {
		return append(code, g.codes[leaves[0].code]...)
	}
	m := len(leaves) / 2
	at := len(code)
	code = g.tree(append(code, Instruction{}), leaves[:m])
	if n := len(code) - at - 1; n <= 255 {
		code[at] = jump(jge, leaves[m].from, uint8(n), 0)
	} else {
		code[at] = jump(jge, leaves[m].from, 0, 1)
		code = slices.Insert(code, at+1, Instruction{Code: ja, K: uint32(n)})
	}
	return g.tree(code, leaves[m:])
}
