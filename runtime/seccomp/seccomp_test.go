package seccomp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/profiles/seccomp"
	"github.com/onggi/onggi/errdefs"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// run executes a filter as the kernel does (little endian data).
func run(t testing.TB, f []Instruction, arch, nr uint32, args [6]uint64) uint32 {
	var data [64]byte
	binary.LittleEndian.PutUint32(data[0:], nr)
	binary.LittleEndian.PutUint32(data[4:], arch)
	for i, a := range args {
		binary.LittleEndian.PutUint64(data[16+8*i:], a)
	}
	var acc, x uint32
	var mem [16]uint32
	for pc := 0; ; pc++ {
		if pc >= len(f) {
			t.Fatalf("arch %x, call %d: ran off the end", arch, nr)
		}
		i := f[pc]
		jump := func(ok bool) {
			if ok {
				pc += int(i.Jt)
			} else {
				pc += int(i.Jf)
			}
		}
		switch i.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			acc = binary.LittleEndian.Uint32(data[i.K:])
		case unix.BPF_LD | unix.BPF_MEM:
			acc = mem[i.K]
		case unix.BPF_ST:
			mem[i.K] = acc
		case unix.BPF_MISC | unix.BPF_TAX:
			x = acc
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			acc &= i.K
		case unix.BPF_JMP | unix.BPF_JA:
			pc += int(i.K)
		case jeq:
			jump(acc == i.K)
		case jgt:
			jump(acc > i.K)
		case jge:
			jump(acc >= i.K)
		case unix.BPF_RET | unix.BPF_K:
			return i.K
		default:
			t.Fatalf("instruction %d is unknown: %+v (x %d)", pc, i, x)
		}
	}
}

func profile(t testing.TB, caps ...string) *runspec.LinuxSeccomp {
	t.Helper()
	p, err := seccomp.GetDefaultProfile(&runspec.Spec{Process: &runspec.Process{Capabilities: &runspec.LinuxCapabilities{Bounding: caps}}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// reference builds the same filter with libseccomp, in a small C program. unknown are the names that this libseccomp
// does not have, by architecture.
func reference(t *testing.T, p *runspec.LinuxSeccomp) (filter []Instruction, unknown map[string]bool) {
	t.Helper()
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Skip("needs gcc")
	}
	dir := t.TempDir()
	src, bin := filepath.Join(dir, "ref.c"), filepath.Join(dir, "ref")
	if err := os.WriteFile(src, []byte(referenceC), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("gcc", "-o", bin, src, "-lseccomp").CombinedOutput(); err != nil {
		t.Skipf("needs libseccomp-dev: %s", out)
	}
	var in bytes.Buffer
	act := func(a runspec.LinuxSeccompAction, e *uint) uint32 {
		n, err := action("x", a, e, &Program{})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	def := act(p.DefaultAction, p.DefaultErrnoRet)
	fmt.Fprintf(&in, "default %d\n", def)
	for _, a := range p.Architectures {
		fmt.Fprintf(&in, "arch %s\n", strings.ToLower(strings.TrimPrefix(string(a), "SCMP_ARCH_")))
	}
	ops := map[runspec.LinuxSeccompOperator]int{
		runspec.OpNotEqual: 1, runspec.OpLessThan: 2, runspec.OpLessEqual: 3, runspec.OpEqualTo: 4,
		runspec.OpGreaterEqual: 5, runspec.OpGreaterThan: 6, runspec.OpMaskedEqual: 7,
	}
	for _, s := range p.Syscalls {
		a := act(s.Action, s.ErrnoRet)
		if a == def {
			continue // libseccomp refuses it, and runc leaves it out
		}
		rules := alternatives(s.Args, a)
		if len(s.Args) == 0 {
			rules = []rule{{nil, a}}
		}
		for _, name := range s.Names {
			for _, r := range rules {
				fmt.Fprintf(&in, "rule %d %s %d", a, name, len(r.conds))
				for _, c := range r.conds {
					fmt.Fprintf(&in, " %d %d %d %d", c.Index, ops[c.Op], c.Value, c.ValueTwo)
				}
				in.WriteByte('\n')
			}
		}
	}
	cmd := exec.Command(bin)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = &in, &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("reference: %v: %s", err, errs.String())
	}
	unknown = map[string]bool{}
	for _, l := range strings.Split(errs.String(), "\n") {
		unknown[l] = true
	}
	for b := out.Bytes(); len(b) >= 8; b = b[8:] {
		filter = append(filter, Instruction{binary.LittleEndian.Uint16(b), b[2], b[3], binary.LittleEndian.Uint32(b[4:])})
	}
	return filter, unknown
}

const referenceC = `
#include <seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <errno.h>
int main(void) {
	char word[64], name[128];
	const char *archs[32]; int n_archs = 0;
	scmp_filter_ctx ctx = NULL;
	while (scanf("%63s", word) == 1) {
		if (!strcmp(word, "default")) {
			unsigned act; if (scanf("%u", &act) != 1) return 2;
			ctx = seccomp_init(act);
			seccomp_attr_set(ctx, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
		} else if (!strcmp(word, "arch")) {
			if (scanf("%127s", name) != 1) return 2;
			unsigned a = seccomp_arch_resolve_name(name);
			if (!a) { fprintf(stderr, "no arch %s\n", name); return 3; }
			int rc = seccomp_arch_add(ctx, a);
			if (rc && rc != -EEXIST) return 4;
			archs[n_archs++] = strdup(name);
		} else {
			unsigned act; int n; struct scmp_arg_cmp args[6]; memset(args, 0, sizeof args);
			if (scanf("%u %127s %d", &act, name, &n) != 3) return 2;
			for (int i = 0; i < n; i++) {
				unsigned idx, op; unsigned long long a, b;
				if (scanf("%u %u %llu %llu", &idx, &op, &a, &b) != 4) return 2;
				args[i].arg = idx; args[i].op = op; args[i].datum_a = a; args[i].datum_b = b;
			}
			for (int i = 0; i < n_archs; i++)
				if (seccomp_syscall_resolve_name_arch(seccomp_arch_resolve_name(archs[i]), name) < 0)
					fprintf(stderr, "%s %s\n", archs[i], name);
			int nr = seccomp_syscall_resolve_name(name);
			if (nr == __NR_SCMP_ERROR) continue;
			int rc = seccomp_rule_add_array(ctx, act, nr, n, args);
			if (rc && rc != -EEXIST) { fprintf(stderr, "rule %s: %d\n", name, rc); return 5; }
		}
	}
	return seccomp_export_bpf(ctx, 1) ? 6 : 0;
}`

func TestSameAsLibseccomp(t *testing.T) {
	one := func(op runspec.LinuxSeccompOperator, v, two uint64) runspec.LinuxSyscall {
		return runspec.LinuxSyscall{Names: []string{"lseek"}, Action: runspec.ActAllow, Args: []runspec.LinuxSeccompArg{{Index: 1, Op: op, Value: v, ValueTwo: two}}}
	}
	with := func(arches []runspec.Arch, def runspec.LinuxSeccompAction, s ...runspec.LinuxSyscall) *runspec.LinuxSeccomp {
		return &runspec.LinuxSeccomp{DefaultAction: def, Architectures: arches, Syscalls: s}
	}
	x86 := []runspec.Arch{runspec.ArchX86_64, runspec.ArchX86, runspec.ArchX32}
	arm := []runspec.Arch{runspec.ArchAARCH64, runspec.ArchARM}
	cases := map[string]*runspec.LinuxSeccomp{
		"docker":                profile(t, "CAP_CHOWN", "CAP_SYS_CHROOT"),
		"docker, no capability": profile(t),
		"docker, privileged":    profile(t, "CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_MODULE", "CAP_BPF", "CAP_SYSLOG", "CAP_DAC_READ_SEARCH", "CAP_SYS_TIME", "CAP_SYS_NICE"),
		"two arguments": with(x86, runspec.ActTrap, runspec.LinuxSyscall{Names: []string{"read"}, Action: runspec.ActAllow, Args: []runspec.LinuxSeccompArg{
			{Index: 0, Op: runspec.OpEqualTo, Value: 3}, {Index: 2, Op: runspec.OpLessEqual, Value: 1 << 33},
		}}),
		"without x32":        with(x86[:2], runspec.ActAllow, runspec.LinuxSyscall{Names: []string{"write"}, Action: runspec.ActKillProcess}),
		"unconditional wins": with(x86[:1], runspec.ActKillProcess, one(runspec.OpEqualTo, 5, 0), runspec.LinuxSyscall{Names: []string{"lseek"}, Action: runspec.ActAllow}),
	}
	act := func(a runspec.LinuxSeccompAction, names string, args ...runspec.LinuxSeccompArg) runspec.LinuxSyscall {
		return runspec.LinuxSyscall{Names: strings.Fields(names), Action: a, Args: args}
	}
	arg := func(i uint, op runspec.LinuxSeccompOperator, v uint64) runspec.LinuxSeccompArg {
		return runspec.LinuxSeccompArg{Index: i, Op: op, Value: v}
	}
	cases["calls inside socketcall and ipc"] = with(x86[:2], runspec.ActErrno, act(runspec.ActAllow, "socket bind connect accept4 sendto recvmsg semget shmat msgsnd"))
	cases["calls denied inside socketcall and ipc"] = with(x86[:2], runspec.ActAllow, act(runspec.ActKillProcess, "socket connect shmat"))
	cases["the default's own action"] = with(x86, runspec.ActErrno, act(runspec.ActErrno, "lseek read"), act(runspec.ActAllow, "lseek", arg(0, runspec.OpEqualTo, 3)),
		act(runspec.ActAllow, "read"), act(runspec.ActErrno, "write", arg(0, runspec.OpEqualTo, 1)), act(runspec.ActAllow, "write", arg(0, runspec.OpLessThan, 3)))
	cases["native is always there"] = with(x86[1:2], runspec.ActErrno, act(runspec.ActAllow, "read"))
	cases["one argument twice"] = with(x86, runspec.ActErrno, act(runspec.ActAllow, "fcntl", arg(1, runspec.OpGreaterEqual, 7), arg(1, runspec.OpEqualTo, 1)))
	cases["three arguments"] = with(x86, runspec.ActErrno, act(runspec.ActAllow, "ioctl", arg(1, runspec.OpLessEqual, 0x5401), arg(2, runspec.OpNotEqual, 10), arg(0, runspec.OpLessThan, 3)))
	cases["every action"] = with(x86, runspec.ActTrap, act(runspec.ActKill, "read"), act(runspec.ActKillThread, "write"), act(runspec.ActKillProcess, "open"),
		act(runspec.ActTrap, "close"), act(runspec.ActErrno, "stat"), act(runspec.ActTrace, "fstat"), act(runspec.ActLog, "poll"), act(runspec.ActAllow, "lseek exit_group"))
	d := profile(t, "CAP_CHOWN")
	d.Architectures = arm
	cases["docker on arm"] = d
	for _, op := range []runspec.LinuxSeccompOperator{
		runspec.OpNotEqual, runspec.OpLessThan, runspec.OpLessEqual, runspec.OpEqualTo, runspec.OpGreaterEqual,
		runspec.OpGreaterThan,
	} {
		for _, v := range []uint64{0, 7, 1<<32 - 1, 1 << 32, 1<<40 + 9} {
			cases[fmt.Sprintf("%s %d", op, v)] = with(x86[:1], runspec.ActTrap, one(op, v, 0))
		}
	}
	cases["masked"] = with(x86[:1], runspec.ActTrap, one(runspec.OpMaskedEqual, 0xff000000ff, 0x0100000001))

	for name, p := range cases {
		got, err := Compile(p)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		want, unknown := reference(t, p)
		values := map[uint64]bool{0: true, 1: true, 1<<32 - 1: true, 1 << 32: true, 1<<64 - 1: true}
		for _, s := range p.Syscalls {
			for _, a := range s.Args {
				for _, v := range []uint64{a.Value, a.ValueTwo} {
					for _, e := range []uint64{v, v - 1, v + 1, v ^ 1<<32, v ^ 1<<63, v &^ (1<<32 - 1), v | (1<<32 - 1)} {
						values[e] = true
					}
				}
			}
		}
		type view struct {
			name   string
			audit  uint32
			column int
			bit    uint32
		}
		var views []view
		for _, a := range p.Architectures {
			if a == runspec.ArchX32 {
				views = append(views, view{"x32", unix.AUDIT_ARCH_X86_64, x32Column, x32Bit})
			}
			for _, k := range arches {
				if k.name == a {
					views = append(views, view{strings.ToLower(strings.TrimPrefix(string(a), "SCMP_ARCH_")), k.audit, k.column, 0})
				}
			}
		}
		views = append(views, view{"unknown", 0xdeadbeef, 0, 0})
		def := run(t, want, views[0].audit, 599, [6]uint64{})
		compared, newer, absent := 0, 0, 0
		for _, v := range views {
			// What this libseccomp has no number for cannot be compared; and it answers for calls that it reaches by
			// socketcall and ipc on i386, which have several numbers.
			skip := map[uint32]bool{}
			last := uint32(0)
			for _, s := range p.Syscalls {
				for _, n := range s.Names {
					if nr, ok := find(n); ok && nr[v.column] >= 0 {
						last = max(last, uint32(nr[v.column]))
						if unknown[v.name+" "+n] {
							skip[uint32(nr[v.column])] = true
						}
					}
				}
			}
			for nr := uint32(0); nr < 600; nr++ {
				if skip[nr] {
					absent++
					continue
				}
				for e := range values {
					if v.bit != 0 && e>>32 != 0 {
						continue // libseccomp looks at half of x32's registers only; the kernel hands over all of them
					}
					for arg := range 6 {
						var args [6]uint64
						args[arg] = e
						g, w := run(t, got.Filter, v.audit, nr|v.bit, args), run(t, want, v.audit, nr|v.bit, args)
						compared++
						if g == w {
							continue
						}
						if w == def && g == unix.SECCOMP_RET_ERRNO|uint32(unix.ENOSYS) && nr > last {
							newer++ // our own rule: newer than the profile
							continue
						}
						t.Fatalf("%s: %s call %d, argument %d = %#x: got %#x, libseccomp %#x", name, v.name, nr, arg, e, g, w)
					}
					if v.name == "unknown" {
						break
					}
				}
			}
		}
		if !strings.Contains(name, "SCMP") {
			t.Logf("%s: %d instructions (libseccomp %d), %d cases the same, %d newer calls, %d numbers that libseccomp does not know",
				name, len(got.Filter), len(want), compared-newer, newer, absent)
		}
	}
}

func TestErrors(t *testing.T) {
	e := uint(5)
	for _, c := range []struct {
		want string
		kind errdefs.Kind
		p    runspec.LinuxSeccomp
	}{
		{"defaultAction", errdefs.InvalidArgument, runspec.LinuxSeccomp{}},
		{"defaultAction", errdefs.InvalidArgument, runspec.LinuxSeccomp{DefaultAction: runspec.ActAllow, DefaultErrnoRet: &e}},
		{"architecture", errdefs.InvalidArgument, runspec.LinuxSeccomp{DefaultAction: runspec.ActAllow, Architectures: []runspec.Arch{"VAX"}}},
		{"defaultAction", errdefs.InvalidArgument, runspec.LinuxSeccomp{DefaultAction: runspec.ActNotify}},
		{"syscalls[0].action", errdefs.InvalidArgument, runspec.LinuxSeccomp{DefaultAction: runspec.ActAllow, Syscalls: []runspec.LinuxSyscall{{Names: []string{"write"}, Action: runspec.ActNotify}}}},
		{"flag", errdefs.InvalidArgument, runspec.LinuxSeccomp{DefaultAction: runspec.ActAllow, Flags: []runspec.LinuxSeccompFlag{"X"}}},
		{"action", errdefs.InvalidArgument, runspec.LinuxSeccomp{DefaultAction: runspec.ActAllow, Syscalls: []runspec.LinuxSyscall{{Names: []string{"read"}, Action: "X"}}}},
		{"no system call", errdefs.InvalidArgument, runspec.LinuxSeccomp{DefaultAction: runspec.ActAllow, Syscalls: []runspec.LinuxSyscall{{Action: runspec.ActTrap}}}},
		{"six arguments", errdefs.InvalidArgument, runspec.LinuxSeccomp{DefaultAction: runspec.ActAllow, Syscalls: []runspec.LinuxSyscall{
			{Names: []string{"read"}, Action: runspec.ActTrap, Args: []runspec.LinuxSeccompArg{{Index: 6, Op: runspec.OpEqualTo}}},
		}}},
		{"operator", errdefs.InvalidArgument, runspec.LinuxSeccomp{DefaultAction: runspec.ActAllow, Syscalls: []runspec.LinuxSyscall{
			{Names: []string{"read"}, Action: runspec.ActTrap, Args: []runspec.LinuxSeccompArg{{Op: "~"}}},
		}}},
	} {
		if _, err := Compile(&c.p); !errdefs.Is(err, c.kind) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %s with %v", err, c.want, c.kind)
		}
	}
	var many runspec.LinuxSyscall
	many.Names, many.Action = []string{"read"}, runspec.ActTrap
	for i := range 3000 {
		many.Args = append(many.Args, runspec.LinuxSeccompArg{Op: runspec.OpGreaterThan, Value: uint64(i)})
	}
	if _, err := Compile(&runspec.LinuxSeccomp{DefaultAction: runspec.ActAllow, Syscalls: []runspec.LinuxSyscall{many}}); !errdefs.Is(err, errdefs.Exhausted) {
		t.Errorf("a filter that is too long: %v", err)
	}
	p, err := Compile(&runspec.LinuxSeccomp{DefaultAction: runspec.ActAllow, Syscalls: []runspec.LinuxSyscall{{Names: []string{"frobnicate", "read"}, Action: runspec.ActNotify}}})
	if err != nil || !p.Notify || len(p.Unknown) != 1 || p.Unknown[0] != "frobnicate" || p.Flags != unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW|unix.SECCOMP_FILTER_FLAG_NEW_LISTENER {
		t.Errorf("got %+v, %v", p, err)
	}
}

func FuzzCompile(f *testing.F) {
	f.Add("read", "SCMP_ACT_ERRNO", "SCMP_CMP_EQ", uint64(3), uint64(0), uint(1), uint32(0))
	f.Add("socket", "SCMP_ACT_ALLOW", "SCMP_CMP_MASKED_EQ", uint64(1)<<40, uint64(1), uint(0), uint32(41))
	f.Fuzz(func(t *testing.T, name, act, op string, v, two uint64, index uint, nr uint32) {
		p, err := Compile(&runspec.LinuxSeccomp{
			DefaultAction: runspec.LinuxSeccompAction(act), Architectures: []runspec.Arch{runspec.ArchX86_64, runspec.ArchX86},
			Syscalls: []runspec.LinuxSyscall{{Names: []string{name}, Action: runspec.ActAllow, Args: []runspec.LinuxSeccompArg{
				{Index: index, Op: runspec.LinuxSeccompOperator(op), Value: v, ValueTwo: two},
			}}},
		})
		if err != nil {
			return
		}
		run(t, p.Filter, unix.AUDIT_ARCH_X86_64, nr, [6]uint64{v, two})
		run(t, p.Filter, unix.AUDIT_ARCH_I386, nr, [6]uint64{v, two})
	})
}

func BenchmarkCompile(b *testing.B) {
	p := profile(b, "CAP_CHOWN")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Compile(p); err != nil {
			b.Fatal(err)
		}
	}
}
