package cgroup

import (
	"errors"
	"math"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/onggi/onggi/errdefs"
)

// Metrics is everything that a group counts. Its JSON is the "data" of `runc events --stats`, field for field, for
// engines parse that (containerd's and cri-o's shims; runc types/events.go). Whoever prints it adds what is not the
// control group's: intel_rdt and network_interfaces. A part whose controller is not there stays zero.
type Metrics struct {
	CPU     CPUMetrics               `json:"cpu"`
	Cpuset  CpusetMetrics            `json:"cpuset"`
	Memory  MemoryMetrics            `json:"memory"`
	Pids    PidsMetrics              `json:"pids"`
	BlockIO BlockIOMetrics           `json:"blkio"`
	Hugetlb map[string]HugetlbMetric `json:"hugetlb"` // by page size, "2MB"
	Rdma    map[string]RdmaMetric    `json:"rdma,omitempty"`
}

// Pressure is pressure stall information (the kernel's accounting/psi.rst): the share of time that some, or all, tasks
// of the group waited for a resource.
type Pressure struct {
	Some Stall `json:"some"`
	Full Stall `json:"full"`
}

// Stall is one line of a pressure file: averages in percent over 10, 60 and 300 seconds, and the total in µs.
type Stall struct {
	Avg10  float64 `json:"avg10"`
	Avg60  float64 `json:"avg60"`
	Avg300 float64 `json:"avg300"`
	Total  uint64  `json:"total"`
}

// CPUMetrics are times in ns.
type CPUMetrics struct {
	Usage struct {
		Total        uint64   `json:"total,omitempty"`
		Percpu       []uint64 `json:"percpu,omitempty"` // v1 only, as the two that follow
		PercpuKernel []uint64 `json:"percpu_kernel,omitempty"`
		PercpuUser   []uint64 `json:"percpu_user,omitempty"`
		Kernel       uint64   `json:"kernel"`
		User         uint64   `json:"user"`
	} `json:"usage"`
	Throttling struct {
		Periods          uint64 `json:"periods,omitempty"`
		ThrottledPeriods uint64 `json:"throttledPeriods,omitempty"`
		ThrottledTime    uint64 `json:"throttledTime,omitempty"`
		BurstPeriods     uint64 `json:"burstPeriods,omitempty"`
		BurstTime        uint64 `json:"burstTime,omitempty"`
	} `json:"throttling"`
	PSI *Pressure `json:"psi,omitempty"`
}

// CpusetMetrics are the settings of the cpuset; on v2 only CPUs and Mems.
type CpusetMetrics struct {
	CPUs                  []uint16 `json:"cpus,omitempty"`
	CPUExclusive          uint64   `json:"cpu_exclusive"`
	Mems                  []uint16 `json:"mems,omitempty"`
	MemHardwall           uint64   `json:"mem_hardwall"`
	MemExclusive          uint64   `json:"mem_exclusive"`
	MemoryMigrate         uint64   `json:"memory_migrate"`
	MemorySpreadPage      uint64   `json:"memory_spread_page"`
	MemorySpreadSlab      uint64   `json:"memory_spread_slab"`
	MemoryPressure        uint64   `json:"memory_pressure"`
	SchedLoadBalance      uint64   `json:"sched_load_balance"`
	SchedRelaxDomainLevel int64    `json:"sched_relax_domain_level"`
}

// MemoryMetrics are bytes. Swap counts memory and swap together, as v1 does and as runc prints it for v2 too; Raw is
// memory.stat as it stands. No limit is the largest number.
type MemoryMetrics struct {
	Cache     uint64            `json:"cache,omitempty"`
	Usage     MemoryMetric      `json:"usage"`
	Swap      MemoryMetric      `json:"swap"`
	Kernel    MemoryMetric      `json:"kernel"`
	KernelTCP MemoryMetric      `json:"kernelTCP"`
	Raw       map[string]uint64 `json:"raw,omitempty"`
	PSI       *Pressure         `json:"psi,omitempty"`
}

// MemoryMetric is one counter of memory: bytes, and how often its limit was hit.
type MemoryMetric struct {
	Limit   uint64 `json:"limit"`
	Usage   uint64 `json:"usage,omitempty"`
	Max     uint64 `json:"max,omitempty"`
	Failcnt uint64 `json:"failcnt"`
}

// PidsMetrics count tasks. Limit is 0 when there is none, as runc prints it.
type PidsMetrics struct {
	Current uint64 `json:"current,omitempty"`
	Limit   uint64 `json:"limit,omitempty"`
}

// BlockIOMetrics are v1's counters, and v2's io.stat under the same names: bytes and operations.
type BlockIOMetrics struct {
	ServiceBytes []BlockIOMetric `json:"ioServiceBytesRecursive,omitempty"`
	Serviced     []BlockIOMetric `json:"ioServicedRecursive,omitempty"`
	Queued       []BlockIOMetric `json:"ioQueueRecursive,omitempty"`
	ServiceTime  []BlockIOMetric `json:"ioServiceTimeRecursive,omitempty"`
	WaitTime     []BlockIOMetric `json:"ioWaitTimeRecursive,omitempty"`
	Merged       []BlockIOMetric `json:"ioMergedRecursive,omitempty"`
	Time         []BlockIOMetric `json:"ioTimeRecursive,omitempty"`
	Sectors      []BlockIOMetric `json:"sectorsRecursive,omitempty"`
	PSI          *Pressure       `json:"psi,omitempty"`
}

// BlockIOMetric is a counter of one device and kind of operation ("Read", "Write", "Discard", "Total", ...).
type BlockIOMetric struct {
	Major uint64 `json:"major,omitempty"`
	Minor uint64 `json:"minor,omitempty"`
	Op    string `json:"op,omitempty"`
	Value uint64 `json:"value,omitempty"`
}

// HugetlbMetric are bytes, and how often the limit was hit. Reservations ("rsvd") are what they count where the kernel
// does (Linux 5.7), for those are what Apply limits first.
type HugetlbMetric struct {
	Usage   uint64 `json:"usage,omitempty"`
	Max     uint64 `json:"max,omitempty"`
	Failcnt uint64 `json:"failcnt"`
}

// RdmaMetric are the handles and objects of one device in use.
type RdmaMetric struct {
	Handles uint64 `json:"hcaHandles"`
	Objects uint64 `json:"hcaObjects"`
}

// reader reads control files of one directory and keeps the first errors; an absent file is an old kernel, or a
// controller without that part.
type reader struct{ errs []error }

func (r *reader) note(d *dir, file string, err error) {
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EOPNOTSUPP) {
		r.errs = append(r.errs, &errdefs.Error{Op: "read", What: d.path + "/" + file, Err: err})
	}
}

func (r *reader) text(d *dir, file string) string {
	s, err := readAt(d.fd, file)
	r.note(d, file, err)
	return s
}

func (r *reader) number(d *dir, file string) uint64 {
	n, err := readUint(d.fd, file)
	r.note(d, file, err)
	if err != nil {
		return 0
	}
	return n
}

// Metrics reads everything. What cannot be read for another reason than that the kernel does not have it is in the
// error; the rest is there nevertheless.
func (g *Group) Metrics() (*Metrics, error) {
	m, r := &Metrics{Hugetlb: map[string]HugetlbMetric{}}, &reader{}
	if g.l.V2 {
		d, err := g.member()
		if err != nil {
			return nil, err
		}
		m.cpu2(r, d)
		m.CPU.PSI = r.pressure(d, "cpu.pressure")
		m.Memory.PSI = r.pressure(d, "memory.pressure")
		m.BlockIO.PSI = r.pressure(d, "io.pressure")
	} else {
		m.cpu1(r, g)
	}
	if d, err := g.controller("cpuset"); err == nil {
		m.cpuset(r, d)
	}
	if d, err := g.controller("memory"); err == nil {
		if d.h.v2 {
			m.memory2(r, d)
		} else {
			m.memory1(r, d)
		}
	}
	if d, err := g.controller("pids"); err == nil {
		m.Pids.Current = r.number(d, "pids.current")
		if n := r.number(d, "pids.max"); n != math.MaxUint64 {
			m.Pids.Limit = n
		}
	}
	if d, err := g.controller("io"); err == nil {
		m.BlockIO.stat2(r.text(d, "io.stat"))
	} else if d, err := g.controller("blkio"); err == nil {
		m.BlockIO.stat1(r, d)
	}
	if d, err := g.controller("hugetlb"); err == nil {
		m.hugetlb(r, d)
	}
	if d, err := g.controller("rdma"); err == nil {
		m.rdma(r.text(d, "rdma.current"))
	}
	return m, errors.Join(r.errs...)
}

// pressure reads a PSI file; nil when the kernel counts none (CONFIG_PSI, psi=0, cgroup.pressure).
func (r *reader) pressure(d *dir, file string) *Pressure {
	s := r.text(d, file)
	if s == "" {
		return nil
	}
	p := &Pressure{}
	for line := range strings.SplitSeq(s, "\n") {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		var to *Stall
		switch f[0] {
		case "some":
			to = &p.Some
		case "full":
			to = &p.Full
		default:
			continue
		}
		for _, kv := range f[1:] {
			k, v, _ := strings.Cut(kv, "=")
			switch k {
			case "avg10":
				to.Avg10, _ = strconv.ParseFloat(v, 64)
			case "avg60":
				to.Avg60, _ = strconv.ParseFloat(v, 64)
			case "avg300":
				to.Avg300, _ = strconv.ParseFloat(v, 64)
			case "total":
				to.Total, _ = strconv.ParseUint(v, 10, 64)
			}
		}
	}
	return p
}

func (m *Metrics) cpu2(r *reader, d *dir) {
	t := r.text(d, "cpu.stat")
	us := func(key string) uint64 { n, _ := field(t, key); return n * 1000 }
	m.CPU.Usage.Total, m.CPU.Usage.User, m.CPU.Usage.Kernel = us("usage_usec"), us("user_usec"), us("system_usec")
	th := &m.CPU.Throttling
	th.Periods, _ = field(t, "nr_periods")
	th.ThrottledPeriods, _ = field(t, "nr_throttled")
	th.ThrottledTime = us("throttled_usec")
	th.BurstPeriods, _ = field(t, "nr_bursts")
	th.BurstTime = us("burst_usec")
}

func (m *Metrics) cpu1(r *reader, g *Group) {
	if d, err := g.controller("cpuacct"); err == nil {
		u := &m.CPU.Usage
		u.Total = r.number(d, "cpuacct.usage")
		u.Kernel, u.User = r.number(d, "cpuacct.usage_sys"), r.number(d, "cpuacct.usage_user")
		list := func(file string) (out []uint64) {
			for f := range strings.FieldsSeq(r.text(d, file)) {
				if n, err := strconv.ParseUint(f, 10, 64); err == nil {
					out = append(out, n)
				}
			}
			return out
		}
		u.Percpu = list("cpuacct.usage_percpu")
		u.PercpuKernel, u.PercpuUser = list("cpuacct.usage_percpu_sys"), list("cpuacct.usage_percpu_user")
	}
	if d, err := g.controller("cpu"); err == nil {
		t, th := r.text(d, "cpu.stat"), &m.CPU.Throttling
		th.Periods, _ = field(t, "nr_periods")
		th.ThrottledPeriods, _ = field(t, "nr_throttled")
		th.ThrottledTime, _ = field(t, "throttled_time")
		th.BurstPeriods, _ = field(t, "nr_bursts")
		th.BurstTime, _ = field(t, "burst_time")
	}
}

func (m *Metrics) cpuset(r *reader, d *dir) {
	c := &m.Cpuset
	list := func(file string) []uint16 {
		set, err := parseList(r.text(d, file))
		r.note(d, file, err)
		return set.list()
	}
	if d.h.v2 {
		c.CPUs, c.Mems = list("cpuset.cpus.effective"), list("cpuset.mems.effective")
		return
	}
	c.CPUs, c.Mems = list("cpuset.cpus"), list("cpuset.mems")
	for file, to := range map[string]*uint64{
		"cpuset.cpu_exclusive": &c.CPUExclusive, "cpuset.mem_hardwall": &c.MemHardwall, "cpuset.mem_exclusive": &c.MemExclusive,
		"cpuset.memory_migrate": &c.MemoryMigrate, "cpuset.memory_spread_page": &c.MemorySpreadPage,
		"cpuset.memory_spread_slab": &c.MemorySpreadSlab, "cpuset.memory_pressure": &c.MemoryPressure,
		"cpuset.sched_load_balance": &c.SchedLoadBalance,
	} {
		*to = r.number(d, file)
	}
	c.SchedRelaxDomainLevel, _ = strconv.ParseInt(r.text(d, "cpuset.sched_relax_domain_level"), 10, 64)
}

func (m *Metrics) memory2(r *reader, d *dir) {
	t := r.text(d, "memory.stat")
	m.Memory.Raw = flat(t)
	m.Memory.Cache = m.Memory.Raw["file"]
	u, s := &m.Memory.Usage, &m.Memory.Swap
	u.Usage, u.Limit, u.Max = r.number(d, "memory.current"), r.number(d, "memory.max"), r.number(d, "memory.peak")
	u.Failcnt, _ = field(r.text(d, "memory.events"), "max")
	s.Usage, s.Limit, s.Max = r.number(d, "memory.swap.current"), r.number(d, "memory.swap.max"), r.number(d, "memory.swap.peak")
	s.Failcnt, _ = field(r.text(d, "memory.swap.events"), "max")
	if s.Usage += u.Usage; s.Limit != math.MaxUint64 { // together, as v1 has it
		if s.Limit += u.Limit; u.Limit == math.MaxUint64 {
			s.Limit = math.MaxUint64
		}
	}
	if s.Max > 0 {
		s.Max += u.Max
	}
	m.Memory.Kernel.Usage = m.Memory.Raw["kernel"] // Linux 5.18
	m.Memory.Kernel.Limit = math.MaxUint64
	m.Memory.KernelTCP.Usage = m.Memory.Raw["sock"]
	m.Memory.KernelTCP.Limit = math.MaxUint64
}

func (m *Metrics) memory1(r *reader, d *dir) {
	m.Memory.Raw = flat(r.text(d, "memory.stat"))
	m.Memory.Cache = m.Memory.Raw["cache"]
	for name, to := range map[string]*MemoryMetric{
		"memory": &m.Memory.Usage, "memory.memsw": &m.Memory.Swap, "memory.kmem": &m.Memory.Kernel, "memory.kmem.tcp": &m.Memory.KernelTCP,
	} {
		to.Usage, to.Max = r.number(d, name+".usage_in_bytes"), r.number(d, name+".max_usage_in_bytes")
		to.Failcnt, to.Limit = r.number(d, name+".failcnt"), r.number(d, name+".limit_in_bytes")
	}
}

// flat reads a flat keyed file ("cache 4096\nrss 0\n").
func flat(text string) map[string]uint64 {
	m := make(map[string]uint64, 64)
	for line := range strings.SplitSeq(text, "\n") {
		k, v, _ := strings.Cut(line, " ")
		if n, err := strconv.ParseUint(v, 10, 64); err == nil {
			m[k] = n
		}
	}
	return m
}

// stat1 reads the recursive counters of v1. BFQ counts only what went through it, the throttle layer everything.
func (b *BlockIOMetrics) stat1(r *reader, d *dir) {
	for _, f := range [...]struct {
		file string
		to   *[]BlockIOMetric
	}{
		{"io_service_bytes_recursive", &b.ServiceBytes},
		{"io_serviced_recursive", &b.Serviced},
		{"io_queued_recursive", &b.Queued},
		{"io_service_time_recursive", &b.ServiceTime},
		{"io_wait_time_recursive", &b.WaitTime},
		{"io_merged_recursive", &b.Merged},
		{"time_recursive", &b.Time},
		{"sectors_recursive", &b.Sectors},
	} {
		for _, prefix := range [...]string{"blkio.bfq.", "blkio.", "blkio.throttle."} {
			if *f.to = blkio(r.text(d, prefix+f.file)); *f.to != nil {
				break
			}
		}
	}
}

// blkio reads "8:0 Read 4096" and "8:0 12" lines; the sum over all devices ("Total 4096") has no device.
func blkio(text string) (out []BlockIOMetric) {
	for line := range strings.SplitSeq(text, "\n") {
		f := strings.Fields(line)
		if len(f) < 2 || !strings.Contains(f[0], ":") {
			continue
		}
		major, minor, _ := strings.Cut(f[0], ":")
		e := BlockIOMetric{}
		var err [3]error
		e.Major, err[0] = strconv.ParseUint(major, 10, 64)
		e.Minor, err[1] = strconv.ParseUint(minor, 10, 64)
		if len(f) > 2 {
			e.Op = f[1]
		}
		e.Value, err[2] = strconv.ParseUint(f[len(f)-1], 10, 64)
		if errors.Join(err[:]...) == nil {
			out = append(out, e)
		}
	}
	return out
}

// stat2 reads io.stat: "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6".
func (b *BlockIOMetrics) stat2(text string) {
	for line := range strings.SplitSeq(text, "\n") {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		major, minor, ok := strings.Cut(f[0], ":")
		ma, err1 := strconv.ParseUint(major, 10, 64)
		mi, err2 := strconv.ParseUint(minor, 10, 64)
		if !ok || err1 != nil || err2 != nil {
			continue
		}
		for _, kv := range f[1:] {
			k, v, _ := strings.Cut(kv, "=")
			n, err := strconv.ParseUint(v, 10, 64)
			if err != nil {
				continue
			}
			switch k {
			case "rbytes":
				b.ServiceBytes = append(b.ServiceBytes, BlockIOMetric{ma, mi, "Read", n})
			case "wbytes":
				b.ServiceBytes = append(b.ServiceBytes, BlockIOMetric{ma, mi, "Write", n})
			case "dbytes":
				b.ServiceBytes = append(b.ServiceBytes, BlockIOMetric{ma, mi, "Discard", n})
			case "rios":
				b.Serviced = append(b.Serviced, BlockIOMetric{ma, mi, "Read", n})
			case "wios":
				b.Serviced = append(b.Serviced, BlockIOMetric{ma, mi, "Write", n})
			case "dios":
				b.Serviced = append(b.Serviced, BlockIOMetric{ma, mi, "Discard", n})
			}
		}
	}
}

// hugetlb counts each page size for which the directory has files.
func (m *Metrics) hugetlb(r *reader, d *dir) {
	for _, size := range pageSizes(d.fd) {
		base, h := "hugetlb."+size+".", HugetlbMetric{}
		if hasAt(d.fd, base+d.pick("rsvd.usage_in_bytes", "rsvd.current")) {
			base += "rsvd."
		}
		if d.h.v2 {
			h.Usage = r.number(d, base+"current")
			h.Failcnt, _ = field(r.text(d, "hugetlb."+size+".events"), "max")
		} else {
			h.Usage, h.Max = r.number(d, base+"usage_in_bytes"), r.number(d, base+"max_usage_in_bytes")
			h.Failcnt = r.number(d, base+"failcnt")
		}
		m.Hugetlb[size] = h
	}
}

// rdma reads "mlx4_0 hca_handle=2 hca_object=2000".
func (m *Metrics) rdma(text string) {
	for line := range strings.SplitSeq(text, "\n") {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		var x RdmaMetric
		for _, kv := range f[1:] {
			k, v, _ := strings.Cut(kv, "=")
			n, _ := strconv.ParseUint(v, 10, 64)
			switch k {
			case "hca_handle":
				x.Handles = n
			case "hca_object":
				x.Objects = n
			}
		}
		if m.Rdma == nil {
			m.Rdma = map[string]RdmaMetric{}
		}
		m.Rdma[f[0]] = x
	}
}
