package cgroup

//lint:file-ignore SA1019 deprecated limits are looked at too

import (
	"errors"
	"math"
	"sort"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	runspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/onggi/onggi/errdefs"
)

// Apply sets limits. Nil fields are left alone, and so are zeros where engines write a zero for "not set" (docker sends
// cpu.shares 0 and blockIO.weight 0 with every container): all numbers but pids.limit, cpu.idle, swappiness and the
// throttle rates. -1 is "no limit".
//
// It stops at the first field that cannot be honoured; what was set before stays (Create's caller removes the group,
// update's caller applies the old values again).
func (g *Group) Apply(r *runspec.LinuxResources) error {
	if r == nil {
		return nil
	}
	if g.scope != nil {
		if err := g.scope.set(g.l, r); err != nil {
			return err
		}
	}
	return g.applyFiles(r)
}

func (g *Group) applyFiles(r *runspec.LinuxResources) error {
	if r == nil {
		return nil
	}
	if r.CPU != nil {
		if err := g.applyCPU(r.CPU); err != nil {
			return err
		}
		if err := g.applyCpuset(r.CPU); err != nil {
			return err
		}
	}
	if r.Memory != nil {
		if err := g.applyMemory(r.Memory); err != nil {
			return err
		}
	}
	if r.Pids != nil && r.Pids.Limit != nil {
		if err := g.applyPids(*r.Pids.Limit); err != nil {
			return err
		}
	}
	if r.BlockIO != nil {
		if err := g.applyBlockIO(r.BlockIO); err != nil {
			return err
		}
	}
	for i := range r.HugepageLimits {
		if err := g.applyHugepages(i, &r.HugepageLimits[i]); err != nil {
			return err
		}
	}
	if r.Network != nil {
		if err := g.applyNetwork(r.Network); err != nil {
			return err
		}
	}
	if len(r.Rdma) > 0 {
		if err := g.applyRdma(r.Rdma); err != nil {
			return err
		}
	}
	if r.Devices != nil {
		if err := g.applyDevices(r.Devices); err != nil {
			return err
		}
	}
	// Last, as the specification asks: an entry may refine what a field above has set.
	return g.applyUnified(r.Unified)
}

// refuse is the error of a field that this host, or this kind of cgroup, cannot honour.
func refuse(field, why, fix string) error {
	return &errdefs.Error{Op: "set", What: "linux.resources." + field, Kind: errdefs.Unsupported, Why: why, Fix: fix}
}

func invalid(field, why string) error {
	return &errdefs.Error{Op: "set", What: "linux.resources." + field, Kind: errdefs.InvalidArgument, Why: why}
}

// want returns the directory for a field of a controller; v1 and v2 name some differently.
func (g *Group) want(field, v1, v2 string) (*dir, error) {
	d, err := g.controller(v2)
	if err == nil {
		return d, nil
	}
	if v1 != v2 {
		if d, err1 := g.controller(v1); err1 == nil {
			return d, nil
		} else if !g.l.V2 {
			err = err1
		}
	}
	name := v2
	if !g.l.V2 {
		name = v1
	}
	return nil, &errdefs.Error{
		Op: "set", What: "linux.resources." + field, Kind: kindOr(err, errdefs.Unsupported),
		Why: "the controller " + name + " cannot be used", Err: err,
		Fix: "leave the limit out, or give this process a cgroup with the controller " + name,
	}
}

func kindOr(err error, k errdefs.Kind) errdefs.Kind {
	if have := errdefs.KindOf(err); have != errdefs.Unknown {
		return have
	}
	return k
}

// set writes value for a field and explains a refusal.
func (d *dir) set(field, file, value string) error {
	if file == "" {
		return refuse(field, "cgroup v2 has no such limit", "leave the field out, or use linux.resources.unified")
	}
	return d.explain(field, file, value, writeAt(d.fd, file, value))
}

func (d *dir) explain(field, file, value string, err error) error {
	if err == nil {
		return nil
	}
	e := &errdefs.Error{Op: "set", What: "linux.resources." + field, Err: err}
	e.Why = "writing " + strconv.Quote(value) + " to " + d.path + "/" + file
	switch err {
	case unix.ENOENT, unix.EOPNOTSUPP:
		e.Kind = errdefs.Unsupported
		e.Why = "this kernel has no " + file + " in " + d.path
	case unix.EINVAL, unix.ERANGE:
		e.Kind = errdefs.InvalidArgument
		e.Why = "the kernel does not accept " + strconv.Quote(value) + " for " + d.path + "/" + file
	case unix.ENODEV:
		e.Kind = errdefs.InvalidArgument
		e.Why = "there is no such device: writing " + strconv.Quote(value) + " to " + d.path + "/" + file
	case unix.EBUSY:
		e.Kind = errdefs.Conflict
	}
	return e
}

// pick returns the v1 or the v2 name.
func (d *dir) pick(v1, v2 string) string {
	if d.h.v2 {
		return v2
	}
	return v1
}

func i64(n int64) string  { return strconv.FormatInt(n, 10) }
func u64(n uint64) string { return strconv.FormatUint(n, 10) }

// maxOr writes a limit: v2 says "max" for none, v1 "-1".
func (d *dir) maxOr(n int64) string {
	if n < 0 && d.h.v2 {
		return "max"
	}
	return i64(n)
}

// isSet reports a number that asks for something: zero means "not set" (see Apply).
func isSet[T int64 | uint64](p *T) bool { return p != nil && *p != 0 }

// Pids.

func (g *Group) applyPids(limit int64) error {
	d, err := g.want("pids.limit", "pids", "pids")
	if err != nil {
		return err
	}
	value := "max"
	switch {
	case limit == 0 && d.h.v2:
		// 0 and 1 both mean that nothing in the group can fork, but with 0 the container's first process could not be
		// cloned into it.
		value = "1"
	case limit >= 0:
		value = i64(limit)
	case limit < -1:
		return invalid("pids.limit", i64(limit)+" is neither -1 nor a count")
	}
	return d.set("pids.limit", "pids.max", value)
}

// Memory.

// Obsolete names the limits in r that Apply leaves out because the kernel does not have them any more, for a warning:
// memory.kernel (Linux 5.16 took the last of it away) and on v2 memory.kernelTCP. The specification deprecates both.
// Their values are checked all the same.
func (l *Layout) Obsolete(r *runspec.LinuxResources) (fields []string) {
	if r == nil || r.Memory == nil {
		return nil
	}
	if m := r.Memory; isSet(m.Kernel) && *m.Kernel != -1 {
		fields = append(fields, "linux.resources.memory.kernel")
	}
	if m := r.Memory; l.Controllers["memory"] == "" && isSet(m.KernelTCP) && *m.KernelTCP != -1 {
		fields = append(fields, "linux.resources.memory.kernelTCP")
	}
	return fields
}

func (g *Group) applyMemory(m *runspec.LinuxMemory) error {
	for _, f := range [...]struct {
		name string
		v    *int64
	}{{"limit", m.Limit}, {"swap", m.Swap}, {"reservation", m.Reservation}, {"kernel", m.Kernel}, {"kernelTCP", m.KernelTCP}} {
		if f.v != nil && *f.v < -1 {
			return invalid("memory."+f.name, i64(*f.v)+" is neither -1 nor a number of bytes")
		}
	}
	if m.UseHierarchy != nil && !*m.UseHierarchy {
		return refuse("memory.useHierarchy", "the kernel always counts the groups below with their parent (v2, and v1 since 5.11)",
			"leave it out")
	}
	asks := isSet(m.Limit) || isSet(m.Swap) || isSet(m.Reservation) || isSet(m.KernelTCP) && g.l.Controllers["memory"] != "" || m.Swappiness != nil ||
		m.DisableOOMKiller != nil && *m.DisableOOMKiller
	if !asks {
		if m.DisableOOMKiller != nil {
			return g.enableOOMKiller()
		}
		return nil
	}
	field := "memory.limit"
	if !isSet(m.Limit) {
		field = "memory"
	}
	d, err := g.want(field, "memory", "memory")
	if err != nil {
		return err
	}
	if d.h.v2 {
		err = d.memory2(m)
	} else {
		err = d.memory1(m)
	}
	if err != nil {
		return err
	}
	if isSet(m.Reservation) {
		if err := d.set("memory.reservation", d.pick("memory.soft_limit_in_bytes", "memory.low"), d.maxOr(*m.Reservation)); err != nil {
			return err
		}
	}
	if isSet(m.KernelTCP) && !d.h.v2 {
		if err := d.set("memory.kernelTCP", "memory.kmem.tcp.limit_in_bytes", i64(*m.KernelTCP)); err != nil {
			return err
		}
	}
	if m.Swappiness != nil {
		if *m.Swappiness > 100 {
			return invalid("memory.swappiness", u64(*m.Swappiness)+" is more than 100")
		}
		if err := d.set("memory.swappiness", d.pick("memory.swappiness", ""), u64(*m.Swappiness)); err != nil {
			return err
		}
	}
	if m.DisableOOMKiller != nil {
		if !*m.DisableOOMKiller {
			return g.enableOOMKiller()
		}
		return d.set("memory.disableOOMKiller", d.pick("memory.oom_control", ""), "1")
	}
	return nil
}

// enableOOMKiller takes an earlier disableOOMKiller back; where there was none nothing is written.
func (g *Group) enableOOMKiller() error {
	d, err := g.controller("memory")
	if err != nil || d.h.v2 {
		return nil // it cannot have been disabled
	}
	text, err := readAt(d.fd, "memory.oom_control")
	if err != nil {
		return nil
	}
	if off, _ := field(text, "oom_kill_disable"); off == 0 {
		return nil
	}
	return d.set("memory.disableOOMKiller", "memory.oom_control", "0")
}

// memory1 sets limit and memory+swap. The kernel keeps limit <= memory+swap at every moment, so which goes first
// depends on where they stand.
func (d *dir) memory1(m *runspec.LinuxMemory) error {
	limit, swap := m.Limit, m.Swap
	if !isSet(limit) {
		limit = nil
	}
	if !isSet(swap) {
		swap = nil
	}
	const limitFile, swapFile = "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"
	unlimitSwap := limit != nil && *limit == -1 && swap == nil // no memory limit under a swap limit makes no sense
	if unlimitSwap {
		n := int64(-1)
		swap = &n
	}
	if limit != nil && swap != nil && *swap != -1 && (*limit == -1 || *swap < *limit) {
		return invalid("memory.swap", "memory and swap together ("+i64(*swap)+") are less than memory.limit ("+i64(*limit)+")")
	}
	setSwap := func() error {
		if swap == nil {
			return nil
		}
		err := writeAt(d.fd, swapFile, i64(*swap))
		if err == unix.ENOENT && (unlimitSwap || *swap == -1 || limit != nil && *swap == *limit) {
			// No swap accounting (swapaccount=0): "unlimited" is what there is, and "no swap" is taken as runc takes it.
			return nil
		}
		if err == unix.EINVAL && limit == nil {
			return invalid("memory.swap", "memory and swap together ("+i64(*swap)+") are less than the memory limit in force; set memory.limit too")
		}
		return d.explainMemory("memory.swap", swapFile, i64(*swap), err)
	}
	if limit == nil {
		return setSwap()
	}
	err := writeAt(d.fd, limitFile, i64(*limit))
	if err == unix.EINVAL && swap != nil { // above the present memory+swap limit
		if err := setSwap(); err != nil {
			return err
		}
		return d.explainMemory("memory.limit", limitFile, i64(*limit), writeAt(d.fd, limitFile, i64(*limit)))
	}
	if err == unix.EINVAL {
		return invalid("memory.limit", i64(*limit)+" is more than the memory+swap limit in force; set memory.swap too")
	}
	if err != nil {
		return d.explainMemory("memory.limit", limitFile, i64(*limit), err)
	}
	return setSwap()
}

func (d *dir) explainMemory(field, file, value string, err error) error {
	if err == unix.EBUSY {
		used, _ := readUint(d.fd, "memory.usage_in_bytes")
		return &errdefs.Error{
			Op: "set", What: "linux.resources." + field, Kind: errdefs.Conflict, Err: err,
			Why: "the group uses " + u64(used) + " bytes already, more than " + value, Fix: "choose a larger limit, or stop processes first",
		}
	}
	return d.explain(field, file, value, err)
}

func (d *dir) memory2(m *runspec.LinuxMemory) error {
	swapMax := ""
	switch {
	case isSet(m.Swap) && *m.Swap == -1, !isSet(m.Swap) && isSet(m.Limit) && *m.Limit == -1:
		swapMax = "max"
	case isSet(m.Swap):
		limit := int64(-1)
		if isSet(m.Limit) {
			limit = *m.Limit
		} else if inForce, err := readUint(d.fd, "memory.max"); err == nil && inForce <= math.MaxInt64 { // an update of swap alone
			limit = int64(inForce)
		}
		if limit < 0 {
			return invalid("memory.swap", "memory and swap together cannot be limited without memory.limit: cgroup v2 counts them apart")
		}
		if *m.Swap < limit {
			return invalid("memory.swap", "memory and swap together ("+i64(*m.Swap)+") are less than memory.limit ("+i64(limit)+")")
		}
		swapMax = i64(*m.Swap - limit)
	}
	if isSet(m.Limit) && *m.Limit != -1 && m.CheckBeforeUpdate != nil && *m.CheckBeforeUpdate {
		used, err := readUint(d.fd, "memory.current")
		if err != nil {
			return &errdefs.Error{Op: "read", What: d.path + "/memory.current", Err: err}
		}
		if used > uint64(*m.Limit) {
			return &errdefs.Error{
				Op: "set", What: "linux.resources.memory.limit", Kind: errdefs.Conflict,
				Why: "the group uses " + u64(used) + " bytes already, more than " + i64(*m.Limit) + ", and checkBeforeUpdate is set",
				Fix: "choose a larger limit, or stop processes first",
			}
		}
	}
	if swapMax != "" {
		err := writeAt(d.fd, "memory.swap.max", swapMax)
		if err != nil && !(err == unix.ENOENT && (swapMax == "max" || swapMax == "0")) { // see memory1: no swap accounting
			return d.explain("memory.swap", "memory.swap.max", swapMax, err)
		}
	}
	if isSet(m.Limit) {
		return d.set("memory.limit", "memory.max", d.maxOr(*m.Limit))
	}
	return nil
}

// CPU.

// sharesToWeight maps cpu.shares (2 to 262144, default 1024) to cpu.weight (1 to 10000, default 100): a curve through
// (2,1), (1024,100) and (262144,10000), so that the default stays the default. It is the one that runc (1.3.2) and crun
// (1.23) took over from the older straight line, which made 39 of 1024.
func sharesToWeight(shares uint64) uint64 {
	switch {
	case shares <= 2:
		return 1
	case shares >= 262144:
		return 10000
	}
	l := math.Log2(float64(shares))
	return uint64(math.Ceil(math.Pow(10, (l*l+125*l)/612-7.0/34)))
}

func (g *Group) applyCPU(c *runspec.LinuxCPU) error {
	if !isSet(c.Shares) && !isSet(c.Quota) && !isSet(c.Period) && c.Burst == nil && c.Idle == nil &&
		!isSet(c.RealtimeRuntime) && !isSet(c.RealtimePeriod) {
		return nil
	}
	if isSet(c.Shares) && (*c.Shares < 2 || *c.Shares > 262144) {
		return invalid("cpu.shares", u64(*c.Shares)+" is not between 2 and 262144")
	}
	if c.Idle != nil && *c.Idle != 0 && *c.Idle != 1 {
		return invalid("cpu.idle", i64(*c.Idle)+" is neither 0 nor 1")
	}
	d, err := g.want("cpu", "cpu", "cpu")
	if err != nil {
		if c.Burst != nil && *c.Burst == 0 && c.Idle == nil && !isSet(c.Shares) && !isSet(c.Quota) && !isSet(c.Period) {
			return nil
		}
		return err
	}
	if err := d.cpuWeight(c); err != nil {
		return err
	}
	if d.h.v2 {
		if isSet(c.RealtimeRuntime) || isSet(c.RealtimePeriod) {
			field := "cpu.realtimeRuntime"
			if !isSet(c.RealtimeRuntime) {
				field = "cpu.realtimePeriod"
			}
			return refuse(field, "cgroup v2 has no real-time budget", "leave it out")
		}
		return d.cpuMax2(c)
	}
	if err := d.realtime1(c); err != nil {
		return err
	}
	return d.cpuMax1(c)
}

// realtime1 sets the real-time budget. runtime <= period holds at every moment, and the budget of a group is taken out
// of its parent's, which is zero for a new one (scheduler/sched-rt-group.rst).
func (d *dir) realtime1(c *runspec.LinuxCPU) error {
	var period, runtime func() error
	if isSet(c.RealtimePeriod) {
		period = func() error { return d.set("cpu.realtimePeriod", "cpu.rt_period_us", u64(*c.RealtimePeriod)) }
	}
	if isSet(c.RealtimeRuntime) {
		runtime = func() error { return d.set("cpu.realtimeRuntime", "cpu.rt_runtime_us", i64(*c.RealtimeRuntime)) }
	}
	err := cpuOrder(period, runtime, nil)
	if err != nil && errors.Is(err, unix.EINVAL) {
		errdefs.As(err).Fix = "give the parent group a budget first (cpu.rt_runtime_us of each group above must be at least as large)"
	}
	return err
}

// cpuWeight sets shares and idle. The kernel refuses a weight while the group is idle, so idle goes off first and on last.
func (d *dir) cpuWeight(c *runspec.LinuxCPU) error {
	if c.Idle != nil && *c.Idle == 0 {
		if err := writeAt(d.fd, "cpu.idle", "0"); err != nil && err != unix.ENOENT { // before Linux 5.15 no group is idle
			return d.explain("cpu.idle", "cpu.idle", "0", err)
		}
	}
	if isSet(c.Shares) {
		file, value := "cpu.shares", u64(*c.Shares)
		if d.h.v2 {
			file, value = "cpu.weight", u64(sharesToWeight(*c.Shares))
		}
		if err := d.set("cpu.shares", file, value); err != nil {
			return err
		}
	}
	if c.Idle != nil && *c.Idle == 1 {
		return d.set("cpu.idle", "cpu.idle", "1")
	}
	return nil
}

func (d *dir) cpuMax1(c *runspec.LinuxCPU) error {
	quota := func() error {
		if !isSet(c.Quota) {
			return nil
		}
		return d.set("cpu.quota", "cpu.cfs_quota_us", i64(max(*c.Quota, -1)))
	}
	period := func() error {
		if !isSet(c.Period) {
			return nil
		}
		return d.set("cpu.period", "cpu.cfs_period_us", u64(*c.Period))
	}
	burst := func() error { return d.burst(c.Burst, "cpu.cfs_burst_us") }
	return cpuOrder(period, quota, burst)
}

func (d *dir) cpuMax2(c *runspec.LinuxCPU) error {
	bandwidth := func() error {
		switch {
		case isSet(c.Quota) && isSet(c.Period):
			return d.set("cpu.quota", "cpu.max", d.maxOr(max(*c.Quota, -1))+" "+u64(*c.Period))
		case isSet(c.Quota): // the kernel keeps the period
			return d.set("cpu.quota", "cpu.max", d.maxOr(max(*c.Quota, -1)))
		case isSet(c.Period):
			have, err := readAt(d.fd, "cpu.max")
			if err != nil {
				return d.explain("cpu.period", "cpu.max", u64(*c.Period), err)
			}
			q, _, _ := strings.Cut(have, " ")
			return d.set("cpu.period", "cpu.max", q+" "+u64(*c.Period))
		}
		return nil
	}
	return cpuOrder(func() error { return nil }, bandwidth, func() error { return d.burst(c.Burst, "cpu.max.burst") })
}

// burst sets the burst; a burst of zero on a kernel before 5.14, which has none, is what there is.
func (d *dir) burst(n *uint64, file string) error {
	if n == nil {
		return nil
	}
	err := writeAt(d.fd, file, u64(*n))
	if err == unix.ENOENT && *n == 0 {
		return nil
	}
	return d.explain("cpu.burst", file, u64(*n), err)
}

// cpuOrder sets period, quota and burst. The kernel checks each write against the others (burst <= quota, quota/period
// within the parent's), so an order that is right for a fresh group can be wrong for an update: when a write is refused
// the others go first.
func cpuOrder(period, quota, burst func() error) error {
	steps := [...]func() error{period, quota, burst}
	var last error
	for round := 0; round < len(steps); round++ {
		refused := false
		for i, s := range steps {
			if s == nil {
				continue
			}
			switch err := s(); {
			case err == nil:
				steps[i] = nil
			case errors.Is(err, unix.EINVAL):
				refused, last = true, err
			default:
				return err
			}
		}
		if !refused {
			return nil
		}
	}
	return last
}

func (g *Group) applyCpuset(c *runspec.LinuxCPU) error {
	for _, f := range [...]struct{ field, file, value string }{
		{"cpu.cpus", "cpuset.cpus", c.Cpus}, {"cpu.mems", "cpuset.mems", c.Mems},
	} {
		if f.value == "" {
			continue
		}
		asked, err := parseList(f.value)
		if err != nil {
			return invalid(f.field, err.Error())
		}
		d, err := g.want(f.field, "cpuset", "cpuset")
		if err != nil {
			return err
		}
		if err := d.set(f.field, f.file, f.value); err != nil {
			e := errdefs.As(err)
			if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ERANGE) {
				e.Kind = errdefs.InvalidArgument
				e.Why = strconv.Quote(f.value) + " has numbers that this host, or the group above, does not have"
			}
			return e
		}
		if !d.h.v2 {
			continue
		}
		// v2 accepts anything and then uses what the parent has. Read back what it made of it.
		text, err := readAt(d.fd, f.file+".effective")
		if err != nil {
			return d.explain(f.field, f.file+".effective", f.value, err)
		}
		if got, err := parseList(text); err != nil || got != asked {
			return invalid(f.field, strconv.Quote(f.value)+" has numbers that this host, or the group above, does not have (in effect: "+text+")")
		}
	}
	return nil
}

// numbers is a set of CPUs or memory nodes. The largest kernel configuration has 8192 CPUs.
type numbers [8192 / 64]uint64

// list returns the members in order.
func (s *numbers) list() (out []uint16) {
	for i := range uint16(len(s) * 64) {
		if s[i/64]&(1<<(i%64)) != 0 {
			out = append(out, i)
		}
	}
	return out
}

// parseList reads the kernel's list format: "0-3,7" (cpuset(7)).
func parseList(s string) (set numbers, err error) {
	bad := func() (numbers, error) {
		return set, errors.New(strconv.Quote(s) + ` is not a list like "0-3,7"`)
	}
	for part := range strings.SplitSeq(s, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		lo, hi, isRange := strings.Cut(part, "-")
		if !isRange {
			hi = lo
		}
		a, err1 := strconv.ParseUint(lo, 10, 13)
		b, err2 := strconv.ParseUint(hi, 10, 13)
		if err1 != nil || err2 != nil || b < a {
			return bad()
		}
		for n := a; n <= b; n++ {
			set[n/64] |= 1 << (n % 64)
		}
	}
	return set, nil
}

// Block IO.

func (g *Group) applyBlockIO(b *runspec.LinuxBlockIO) error {
	weight := b.Weight != nil && *b.Weight != 0
	leaf := b.LeafWeight != nil && *b.LeafWeight != 0
	if !weight && !leaf && len(b.WeightDevice)+len(b.ThrottleReadBpsDevice)+len(b.ThrottleWriteBpsDevice)+
		len(b.ThrottleReadIOPSDevice)+len(b.ThrottleWriteIOPSDevice) == 0 {
		return nil
	}
	d, err := g.want("blockIO", "blkio", "io")
	if err != nil {
		return err
	}
	if weight {
		if err := d.ioWeight("blockIO.weight", "", *b.Weight); err != nil {
			return err
		}
	}
	if leaf {
		if err := d.leafWeight("blockIO.leafWeight", "", *b.LeafWeight); err != nil {
			return err
		}
	}
	for i := range b.WeightDevice {
		w := &b.WeightDevice[i]
		field := "blockIO.weightDevice[" + strconv.Itoa(i) + "]"
		dev := i64(w.Major) + ":" + i64(w.Minor) + " "
		if w.Weight == nil && w.LeafWeight == nil {
			return invalid(field, "neither weight nor leafWeight is given")
		}
		if w.Weight != nil && *w.Weight != 0 {
			if err := d.ioWeight(field+".weight", dev, *w.Weight); err != nil {
				return err
			}
		}
		if w.LeafWeight != nil && *w.LeafWeight != 0 {
			if err := d.leafWeight(field+".leafWeight", dev, *w.LeafWeight); err != nil {
				return err
			}
		}
	}
	for _, t := range [...]struct {
		field, v1, v2 string
		list          []runspec.LinuxThrottleDevice
	}{
		{"throttleReadBpsDevice", "blkio.throttle.read_bps_device", "rbps=", b.ThrottleReadBpsDevice},
		{"throttleWriteBpsDevice", "blkio.throttle.write_bps_device", "wbps=", b.ThrottleWriteBpsDevice},
		{"throttleReadIOPSDevice", "blkio.throttle.read_iops_device", "riops=", b.ThrottleReadIOPSDevice},
		{"throttleWriteIOPSDevice", "blkio.throttle.write_iops_device", "wiops=", b.ThrottleWriteIOPSDevice},
	} {
		for i := range t.list {
			dev := i64(t.list[i].Major) + ":" + i64(t.list[i].Minor) + " "
			file, value := t.v1, dev+u64(t.list[i].Rate)
			if d.h.v2 {
				file, value = "io.max", dev+t.v2+u64(t.list[i].Rate)
				if t.list[i].Rate == 0 { // v1's way to take a limit away
					value = dev + t.v2 + "max"
				}
			}
			field := "blockIO." + t.field + "[" + strconv.Itoa(i) + "]"
			err := d.set(field, file, value)
			if errors.Is(err, syscall.ENODEV) {
				return invalid(field, "there is no block device "+strings.TrimSpace(dev)+" (a partition has no limits of its own: name its disk)")
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// ioWeight sets a weight of 10 to 1000 for the group or, with dev "major:minor ", for one device. BFQ takes it as it
// is; v2's io.weight (the cost model's) has the range 1 to 10000.
func (d *dir) ioWeight(field, dev string, w uint16) error {
	if w < 10 || w > 1000 {
		return invalid(field, strconv.Itoa(int(w))+" is not between 10 and 1000")
	}
	plain := dev + strconv.Itoa(int(w))
	try := [...]struct{ file, value string }{
		{"blkio.bfq.weight", plain}, {"blkio.weight", plain},
	}
	if dev != "" {
		try[0].file, try[1].file = "blkio.bfq.weight_device", "blkio.weight_device"
	}
	if d.h.v2 {
		try[0].file = "io.bfq.weight"
		try[1].file, try[1].value = "io.weight", dev+strconv.Itoa(1+(int(w)-10)*9999/990)
	}
	err := writeAt(d.fd, try[0].file, try[0].value)
	if err == unix.ENOENT {
		err = writeAt(d.fd, try[1].file, try[1].value)
	}
	if err == unix.ENOENT {
		return refuse(field, "no IO scheduler of this kernel knows weights (neither "+try[0].file+" nor "+try[1].file+" is there)",
			"load the bfq scheduler (modprobe bfq), or leave the weight out")
	}
	return d.explain(field, try[0].file, try[0].value, err)
}

func (d *dir) leafWeight(field, dev string, w uint16) error {
	file := d.pick("blkio.leaf_weight", "")
	if dev != "" && file != "" {
		file = "blkio.leaf_weight_device"
	}
	err := d.set(field, file, dev+strconv.Itoa(int(w)))
	if errors.Is(err, unix.ENOENT) {
		return refuse(field, "leaf weights went away with the CFQ scheduler (Linux 5.0)", "leave it out")
	}
	return err
}

// Huge pages, network, RDMA, unified.

func (g *Group) applyHugepages(i int, h *runspec.LinuxHugepageLimit) error {
	field := "hugepageLimits[" + strconv.Itoa(i) + "]"
	number := strings.TrimRight(h.Pagesize, "KMGTB")
	if _, err := strconv.ParseUint(number, 10, 32); err != nil || len(h.Pagesize)-len(number) != 2 || h.Pagesize[len(h.Pagesize)-1] != 'B' {
		return invalid(field+".pageSize", strconv.Quote(h.Pagesize)+` is not a size like "2MB"`)
	}
	d, err := g.want(field, "hugetlb", "hugetlb")
	if err != nil {
		return err
	}
	base, suffix := "hugetlb."+h.Pagesize+".", d.pick("limit_in_bytes", "max")
	if !hasAt(d.fd, base+suffix) {
		return refuse(field+".pageSize", "this host has no huge pages of "+h.Pagesize, "ls "+d.path+"/hugetlb.* shows those that it has")
	}
	// Reservations are limited too where the kernel can (5.7): then mmap fails cleanly where otherwise a page fault
	// would kill. The usage limit stays for pages that were never reserved.
	if err := writeAt(d.fd, base+"rsvd."+suffix, u64(h.Limit)); err != nil && err != unix.ENOENT {
		return d.explain(field+".limit", base+"rsvd."+suffix, u64(h.Limit), err)
	}
	return d.set(field+".limit", base+suffix, u64(h.Limit))
}

func (g *Group) applyNetwork(n *runspec.LinuxNetwork) error {
	const why = "cgroup v2 has no network classes and priorities"
	const fix = "leave it out, and match the group in nftables (socket cgroupv2)"
	if n.ClassID != nil && *n.ClassID != 0 {
		if g.l.V2 {
			return refuse("network.classID", why, fix)
		}
		d, err := g.want("network.classID", "net_cls", "net_cls")
		if err != nil {
			return err
		}
		if err := d.set("network.classID", "net_cls.classid", u64(uint64(*n.ClassID))); err != nil {
			return err
		}
	}
	for i := range n.Priorities {
		field := "network.priorities[" + strconv.Itoa(i) + "]"
		if g.l.V2 {
			return refuse(field, why, fix)
		}
		d, err := g.want(field, "net_prio", "net_prio")
		if err != nil {
			return err
		}
		if err := d.set(field, "net_prio.ifpriomap", n.Priorities[i].Name+" "+u64(uint64(n.Priorities[i].Priority))); err != nil {
			return err
		}
	}
	return nil
}

func (g *Group) applyRdma(m map[string]runspec.LinuxRdma) error {
	for _, device := range sortedKeys(m) {
		r, field := m[device], "rdma["+device+"]"
		if r.HcaHandles == nil && r.HcaObjects == nil {
			return invalid(field, "neither hcaHandles nor hcaObjects is given")
		}
		if device == "" || strings.ContainsAny(device, " \n\x00") {
			return invalid(field, "it is not a device name")
		}
		d, err := g.want(field, "rdma", "rdma")
		if err != nil {
			return err
		}
		value := device
		if r.HcaHandles != nil {
			value += " hca_handle=" + u64(uint64(*r.HcaHandles))
		}
		if r.HcaObjects != nil {
			value += " hca_object=" + u64(uint64(*r.HcaObjects))
		}
		if err := d.set(field, "rdma.max", value); err != nil {
			return err
		}
	}
	return nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// applyUnified writes the v2 files that the spec names itself.
func (g *Group) applyUnified(m map[string]string) error {
	for _, file := range sortedKeys(m) {
		field := "unified[" + strconv.Quote(file) + "]"
		controller, rest, ok := strings.Cut(file, ".")
		if !ok || controller == "" || rest == "" || strings.ContainsAny(file, "/\x00\n") {
			return invalid(field, `it is not the name of a control file, like "memory.high"`)
		}
		var d *dir
		if controller == "cgroup" {
			switch file {
			case "cgroup.max.depth", "cgroup.max.descendants", "cgroup.pressure":
			default:
				// cgroup.procs, .freeze, .kill, .subtree_control, .type: those are acts, not limits, and the runtime's own.
				return invalid(field, "only cgroup.max.depth, cgroup.max.descendants and cgroup.pressure can be set here")
			}
			for i := range g.dirs {
				if g.dirs[i].h.v2 && g.dirs[i].fd >= 0 {
					d = &g.dirs[i]
				}
			}
		} else {
			var err error
			if d, err = g.controller(controller); err != nil {
				return &errdefs.Error{
					Op: "set", What: "linux.resources." + field, Kind: kindOr(err, errdefs.Unsupported),
					Why: "the controller " + controller + " cannot be used", Err: err,
				}
			}
		}
		if d == nil || !d.h.v2 {
			return refuse(field, "it is a cgroup v2 file, and this host has the controller in cgroup v1",
				"use the fields of linux.resources, which work on both")
		}
		for line := range strings.SplitSeq(strings.TrimSpace(m[file]), "\n") { // io.max and the like take one line per write
			if err := d.set(field, file, line); err != nil {
				return err
			}
		}
	}
	return nil
}
