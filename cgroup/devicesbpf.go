package cgroup

import (
	"errors"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/sys"
)

// cgroup v2 has no devices files: a program of type BPF_PROG_TYPE_CGROUP_DEVICE on the group is asked at each open and
// mknod of a device, with struct bpf_cgroup_dev_ctx {access_type, major, minor}, and answers 1 (yes) or 0. Programs of
// the groups above are asked too, and all must say yes.
const (
	progTypeCgroupDevice = 15
	attachCgroupDevice   = 6
	deviceProgram        = "onggi_devices" // how ours is found again among those of others
)

// maxDeviceRules bounds the program well below the kernel's limit of 4096 instructions for older kernels.
const maxDeviceRules = 500

// Registers of the program.
const (
	rAnswer = 0
	rCtx    = 1
	rKind   = 2
	rAccess = 3 // the bits of the request that no rule has granted yet
	rMajor  = 4
	rMinor  = 5
)

// eBPF opcodes (Documentation/bpf/standardization/instruction-set.rst).
const (
	opLoadW  = 0x61 // dst = *(u32 *)(src + off)
	opMov32  = 0xb4 // dst = imm
	opMovR32 = 0xbc // dst = src
	opAnd32  = 0x54
	opRsh32  = 0x74
	opJeq    = 0x15
	opJne    = 0x55
	opExit   = 0x95
)

// deviceProgramOf compiles the rules. The last rule that speaks of an access bit decides it, so the rules are asked
// from the last to the first: an allowing rule takes its bits out of the request, and when none is left the answer is
// yes; a denying rule that meets one of its bits says no. What is left at the end is denied.
func deviceProgramOf(rules []deviceRule) []sys.BPFInstruction {
	p := make([]sys.BPFInstruction, 0, 8+8*len(rules))
	op := func(code uint8, dst, src uint8, off int16, imm int32) {
		p = append(p, sys.BPFInstruction{Code: code, Regs: dst | src<<4, Off: off, Imm: imm})
	}
	answer := func(n int32) {
		op(opMov32, rAnswer, 0, 0, n)
		op(opExit, 0, 0, 0, 0)
	}
	op(opLoadW, rKind, rCtx, 0, 0)
	op(opMovR32, rAccess, rKind, 0, 0)
	op(opAnd32, rKind, 0, 0, 0xffff)
	op(opRsh32, rAccess, 0, 0, 16)
	op(opLoadW, rMajor, rCtx, 4, 0)
	op(opLoadW, rMinor, rCtx, 8, 0)
	for i := len(rules) - 1; i >= 0; i-- {
		r := &rules[i]
		if r.everything() {
			if r.allow {
				answer(1)
			} else {
				answer(0)
			}
			return p
		}
		var toNext []int
		unless := func(code uint8, reg uint8, imm int32) {
			toNext = append(toNext, len(p))
			op(code, reg, 0, 0, imm)
		}
		if r.kind != devAny {
			unless(opJne, rKind, int32(r.kind))
		}
		if r.major >= 0 {
			unless(opJne, rMajor, int32(r.major))
		}
		if r.minor >= 0 {
			unless(opJne, rMinor, int32(r.minor))
		}
		if r.allow {
			op(opAnd32, rAccess, 0, 0, int32(accAll&^r.access))
			unless(opJne, rAccess, 0)
			answer(1)
		} else {
			op(opMovR32, rAnswer, rAccess, 0, 0)
			op(opAnd32, rAnswer, 0, 0, int32(r.access))
			unless(opJeq, rAnswer, 0)
			answer(0)
		}
		for _, at := range toNext {
			p[at].Off = int16(len(p) - at - 1)
		}
	}
	answer(0)
	return p
}

// simplify drops the rules that change nothing: those before the last one that speaks of everything, and, when it
// allows everything, the allowing ones after it.
func simplify(rules []deviceRule) []deviceRule {
	from, denies := 0, false
	for i := range rules {
		if rules[i].everything() {
			from, denies = i, false
		} else if !rules[i].allow {
			denies = true
		}
	}
	if rules = rules[from:]; rules[0].everything() && rules[0].allow && !denies {
		return rules[:1]
	}
	return rules
}

func (d *dir) devices2(rules []deviceRule) error {
	rules = simplify(rules)
	if len(rules) > maxDeviceRules {
		return refuse("devices", strconv.Itoa(len(rules))+" rules are more than the "+strconv.Itoa(maxDeviceRules)+" that fit into one program", "")
	}
	fail := func(what string, err error) error {
		e := &errdefs.Error{Op: "set", What: "linux.resources.devices", Err: err, Why: what}
		switch err {
		case unix.EPERM, unix.EACCES:
			e.Kind = errdefs.Forbidden
			e.Why += ": bpf(2) needs CAP_BPF and CAP_NET_ADMIN, or CAP_SYS_ADMIN, of the first user namespace"
			e.Fix = "run as root outside of a user namespace, or start the outer container with --privileged"
		case unix.ENOSYS, unix.EINVAL:
			e.Kind = errdefs.Unsupported
			e.Why += ": the kernel must be 4.15 or newer with CONFIG_CGROUP_BPF"
		}
		return e
	}
	var mine []int
	if !d.made {
		var err error
		if mine, err = sys.BPFCgroupPrograms(d.fd, attachCgroupDevice, deviceProgram); err != nil {
			return fail("asking for the programs of "+d.path, err)
		}
		defer func() {
			for _, fd := range mine {
				_ = unix.Close(fd)
			}
		}()
	}
	if !rules[len(rules)-1].everything() || !rules[len(rules)-1].allow { // a last rule that allows all needs no program
		prog, err := sys.BPFProgLoad(progTypeCgroupDevice, deviceProgramOf(rules), deviceProgram)
		if err != nil {
			return fail("loading the device program", err)
		}
		defer unix.Close(prog)
		replace := -1
		if len(mine) > 0 {
			replace = mine[0]
		}
		err = sys.BPFCgroupAttach(d.fd, prog, attachCgroupDevice, replace)
		switch {
		case err == nil && replace >= 0:
			_ = unix.Close(mine[0])
			mine = mine[1:]
		case replace >= 0 && errors.Is(err, unix.EINVAL): // before Linux 5.6: the new one first, then the old ones go
			err = sys.BPFCgroupAttach(d.fd, prog, attachCgroupDevice, -1)
		}
		if err != nil {
			return fail("attaching the device program to "+d.path, err)
		}
		d.made = false // from now on there is one of ours
	}
	for _, old := range mine {
		if err := sys.BPFCgroupDetach(d.fd, old, attachCgroupDevice); err != nil && err != unix.ENOENT {
			return fail("detaching the old device program of "+d.path, err)
		}
	}
	return nil
}
