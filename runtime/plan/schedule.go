package plan

import (
	"encoding/binary"
	"strconv"
	"strings"

	runspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// schedule says where and how the kernel runs the process: personality, I/O priority, scheduler, memory nodes, CPUs. It
// comes after the control group is joined, which may take some of it back, and before capabilities are dropped.
func (c *compiler) schedule(p *runspec.Process) error {
	if err := c.personality(); err != nil {
		return err
	}
	if err := c.ioPriority(p.IOPriority); err != nil {
		return err
	}
	if err := c.scheduler(p.Scheduler); err != nil {
		return err
	}
	if err := c.memoryPolicy(); err != nil {
		return err
	}
	return c.finalAffinity(p)
}

func (c *compiler) personality() error {
	l := c.linux.Personality
	if l == nil {
		return nil
	}
	if len(l.Flags) > 0 {
		return unsupported("linux.personality.flags", "the specification defines none")
	}
	switch l.Domain {
	case runspec.PerLinux:
		c.op(unix.SYS_PERSONALITY, "set personality", "LINUX", num(0))
	case runspec.PerLinux32:
		c.op(unix.SYS_PERSONALITY, "set personality", "LINUX32", num(8))
	default:
		return invalid("linux.personality.domain", "unknown value "+string(l.Domain))
	}
	return nil
}

func (c *compiler) ioPriority(io *runspec.LinuxIOPriority) error {
	if io == nil {
		return nil
	}
	class := 0
	switch io.Class {
	case runspec.IOPRIO_CLASS_RT:
		class = 1
	case runspec.IOPRIO_CLASS_BE:
		class = 2
	case runspec.IOPRIO_CLASS_IDLE:
		class = 3
	default:
		return invalid("process.ioPriority.class", "unknown value "+string(io.Class))
	}
	if io.Priority < 0 || io.Priority > 7 {
		return invalid("process.ioPriority.priority", "not between 0 and 7")
	}
	const whoProcess = 1
	c.op(unix.SYS_IOPRIO_SET, "set I/O priority", string(io.Class), num(whoProcess), num(0), num(class<<13|io.Priority))
	return nil
}

// schedulerPolicies and schedulerFlags are those of linux/sched.h.
var schedulerPolicies = [...]struct {
	name  runspec.LinuxSchedulerPolicy
	value uint32
}{
	{runspec.SchedOther, 0},
	{runspec.SchedFIFO, 1},
	{runspec.SchedRR, 2},
	{runspec.SchedBatch, 3},
	{runspec.SchedISO, 4},
	{runspec.SchedIdle, 5},
	{runspec.SchedDeadline, 6},
}

var schedulerFlags = [...]struct {
	name  runspec.LinuxSchedulerFlag
	value uint64
}{
	{runspec.SchedFlagResetOnFork, 1},
	{runspec.SchedFlagReclaim, 2},
	{runspec.SchedFlagDLOverrun, 4},
	{runspec.SchedFlagKeepPolicy, 8},
	{runspec.SchedFlagKeepParams, 16},
	{runspec.SchedFlagUtilClampMin, 32},
	{runspec.SchedFlagUtilClampMax, 64},
}

// scheduler is sched_setattr(2). SCHED_ISO is a number that Linux has kept free: the kernel says so.
func (c *compiler) scheduler(s *runspec.Scheduler) error {
	if s == nil {
		return nil
	}
	const field = "process.scheduler"
	policy, known := uint32(0), false
	for _, p := range schedulerPolicies {
		if p.name == s.Policy {
			policy, known = p.value, true
		}
	}
	real, deadline := s.Policy == runspec.SchedFIFO || s.Policy == runspec.SchedRR, s.Policy == runspec.SchedDeadline
	switch {
	case !known:
		return invalid(field+".policy", "unknown value "+string(s.Policy))
	case s.Nice < -20 || s.Nice > 19:
		return invalid(field+".nice", "not between -20 and 19")
	case s.Priority != 0 && !real:
		return invalid(field+".priority", "only SCHED_FIFO and SCHED_RR have a priority")
	case real && (s.Priority < 1 || s.Priority > 99):
		return invalid(field+".priority", "not between 1 and 99")
	case !deadline && (s.Runtime != 0 || s.Deadline != 0 || s.Period != 0):
		return invalid(field+".runtime", "only SCHED_DEADLINE has runtime, deadline and period")
	}
	var flags uint64
next:
	for _, f := range s.Flags {
		for _, k := range schedulerFlags {
			if k.name == f {
				flags |= k.value
				continue next
			}
		}
		return invalid(field+".flags", "unknown value "+string(f))
	}
	const attrSize = 56 // SCHED_ATTR_SIZE_VER1, with the two clamps
	nice := s.Nice
	if real || deadline {
		nice = 0
	}
	attr := c.words(attrSize|uint64(policy)<<32, flags, uint64(uint32(nice))|uint64(uint32(s.Priority))<<32, s.Runtime, s.Deadline, s.Period, 0)
	c.op(unix.SYS_SCHED_SETATTR, "set scheduler", string(s.Policy), num(0), buf(attr), num(0))
	return nil
}

var memoryModes = [...]struct {
	name  runspec.MemoryPolicyModeType
	value uint64
	nodes int // -1 must have none, 1 must have some, 0 either
}{
	{runspec.MpolDefault, 0, -1},
	{runspec.MpolPreferred, 1, 0},
	{runspec.MpolBind, 2, 1},
	{runspec.MpolInterleave, 3, 1},
	{runspec.MpolLocal, 4, -1},
	{runspec.MpolPreferredMany, 5, 1},
	{runspec.MpolWeightedInterleave, 6, 1},
}

var memoryFlags = [...]struct {
	name  runspec.MemoryPolicyFlagType
	value uint64
}{{runspec.MpolFStaticNodes, 1 << 15}, {runspec.MpolFRelativeNodes, 1 << 14}, {runspec.MpolFNumaBalancing, 1 << 13}}

// memoryPolicy is set_mempolicy(2); the command and its children inherit it.
func (c *compiler) memoryPolicy() error {
	m := c.linux.MemoryPolicy
	if m == nil {
		return nil
	}
	const field = "linux.memoryPolicy"
	nodes, err := bitList(field+".nodes", m.Nodes)
	if err != nil {
		return err
	}
	mode, known := uint64(0), false
	for _, k := range memoryModes {
		if k.name != m.Mode {
			continue
		}
		mode, known = k.value, true
		if k.nodes < 0 && nodes != nil {
			return invalid(field+".nodes", string(m.Mode)+" takes no nodes")
		}
		if k.nodes > 0 && nodes == nil {
			return invalid(field+".nodes", string(m.Mode)+" needs nodes")
		}
	}
	if !known {
		return invalid(field+".mode", "unknown value "+string(m.Mode))
	}
next:
	for _, f := range m.Flags {
		for _, k := range memoryFlags {
			if k.name == f {
				mode |= k.value
				continue next
			}
		}
		return invalid(field+".flags", "unknown value "+string(f))
	}
	at, bits := num(0), 0
	if nodes != nil {
		at, bits = buf(c.put(nodes)), 8*len(nodes)+1 // the kernel takes one away (set_mempolicy(2), BUGS)
	}
	c.op(unix.SYS_SET_MEMPOLICY, "set memory policy", string(m.Mode), word(mode), at, num(bits))
	return nil
}

// finalAffinity is for processes that join a container: the first one keeps what its control group gives.
func (c *compiler) finalAffinity(p *runspec.Process) error {
	if p.ExecCPUAffinity == nil {
		return nil
	}
	mask, err := bitList("process.execCPUAffinity.final", p.ExecCPUAffinity.Final)
	if err != nil || mask == nil || !c.joined {
		return err
	}
	c.op(unix.SYS_SCHED_SETAFFINITY, "set CPU affinity", p.ExecCPUAffinity.Final, num(0), num(len(mask)), buf(c.put(mask)))
	return nil
}

// InitialAffinity is the mask that a process begins with before it joins its control group, as sched_setaffinity(2)
// takes it; nil for none.
func InitialAffinity(p *runspec.Process) ([]byte, error) {
	if p.ExecCPUAffinity == nil {
		return nil, nil
	}
	return bitList("process.execCPUAffinity.initial", p.ExecCPUAffinity.Initial)
}

// maxBit is above the CPUs and memory nodes of every kernel (NR_CPUS at most 8192, MAX_NUMNODES 1024).
const maxBit = 1 << 13

// bitList makes the mask of a list like "0-3,7" (cpuset(7), "List format"), in whole words; nil for an empty list.
func bitList(field, list string) ([]byte, error) {
	if strings.TrimSpace(list) == "" {
		return nil, nil
	}
	var words []uint64
	for part := range strings.SplitSeq(list, ",") {
		first, last, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			last = first
		}
		a, err := strconv.ParseUint(first, 10, 32)
		z, err2 := strconv.ParseUint(last, 10, 32)
		if err != nil || err2 != nil || a > z {
			return nil, invalid(field, strconv.Quote(list)+` is not a list like "0-3,7"`)
		}
		if z >= maxBit {
			return nil, invalid(field, strconv.FormatUint(z, 10)+" is above what a kernel has")
		}
		for uint64(len(words)) <= z/64 {
			words = append(words, 0)
		}
		for i := a; i <= z; i++ {
			words[i/64] |= 1 << (i % 64)
		}
	}
	var b []byte
	for _, w := range words {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	return b, nil
}
