package cgroup

import (
	"errors"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/onggi/onggi/errdefs"
)

// Stats are the numbers most asked for; zero when the controller is absent or the kernel does not tell.
type Stats struct {
	CPUUsage, CPUUser, CPUSystem                     uint64 // ns
	ThrottledPeriods, ThrottledTime                  uint64 // count, ns
	MemoryUsage, MemoryLimit, MemoryPeak, MemorySwap uint64 // bytes; no limit is the largest number
	MemoryFile                                       uint64 // page cache, bytes
	MemoryInactive                                   uint64 // the part of it that was not used lately, bytes
	Pids, PidsLimit                                  uint64 // no limit is the largest number
	OOMKills                                         uint64
	IORead, IOWrite                                  uint64 // bytes
}

// controller returns the directory that has a controller, or why there is none.
func (g *Group) controller(name string) (*dir, error) {
	for i := range g.dirs {
		d := &g.dirs[i]
		if !d.has(name) {
			continue
		}
		if d.fd < 0 {
			if d.why == nil {
				return nil, os.ErrClosed
			}
			return nil, d.why
		}
		if !d.h.v2 {
			return d, nil
		}
		if d.controllers == nil {
			if err := d.readControllers(); err != nil {
				return nil, err
			}
		}
		if contains(d.controllers, name) {
			return d, nil
		}
		for _, k := range d.lacks {
			if k.controller == name {
				return nil, k.explain()
			}
		}
		return nil, &errdefs.Error{
			Op: "use controller", What: name, Kind: errdefs.Unsupported,
			Why: "a group above " + d.path + " does not hand it on (cgroup.subtree_control)",
		}
	}
	return nil, &errdefs.Error{Op: "use controller", What: name, Kind: errdefs.Unsupported, Why: "this host mounts no such controller"}
}

// Stats reads them.
func (g *Group) Stats() (*Stats, error) {
	s := &Stats{}
	var errs []error
	// note keeps what went wrong; an absent file is an old kernel or a controller without that part.
	note := func(d *dir, file string, err error) {
		if err != nil && err != unix.ENOENT && err != unix.EOPNOTSUPP {
			errs = append(errs, &errdefs.Error{Op: "read", What: d.path + "/" + file, Err: err})
		}
	}
	text := func(d *dir, file string) string {
		t, err := readAt(d.fd, file)
		note(d, file, err)
		return t
	}
	number := func(d *dir, file string, to *uint64) {
		n, err := readUint(d.fd, file)
		note(d, file, err)
		if err == nil {
			*to = n
		}
	}
	g.cpuStats(s, text, number)
	if d, err := g.controller("memory"); err == nil {
		if d.h.v2 {
			number(d, "memory.current", &s.MemoryUsage)
			number(d, "memory.max", &s.MemoryLimit)
			number(d, "memory.peak", &s.MemoryPeak) // Linux 5.19
			number(d, "memory.swap.current", &s.MemorySwap)
			st := text(d, "memory.stat")
			s.MemoryFile, _ = field(st, "file")
			s.MemoryInactive, _ = field(st, "inactive_file")
		} else {
			number(d, "memory.usage_in_bytes", &s.MemoryUsage)
			number(d, "memory.limit_in_bytes", &s.MemoryLimit)
			number(d, "memory.max_usage_in_bytes", &s.MemoryPeak)
			if s.MemoryLimit >= 1<<63-1<<16 { // v1 prints LONG_MAX rounded down to a page
				s.MemoryLimit = ^uint64(0)
			}
			st := text(d, "memory.stat")
			s.MemoryFile, _ = field(st, "total_cache")
			s.MemoryInactive, _ = field(st, "total_inactive_file")
			s.MemorySwap, _ = field(st, "total_swap")
		}
		s.OOMKills, err = oomKills(d)
		note(d, "oom counter", err)
	}
	if d, err := g.controller("pids"); err == nil {
		number(d, "pids.current", &s.Pids)
		number(d, "pids.max", &s.PidsLimit)
	}
	if d, err := g.controller("io"); err == nil {
		for line := range strings.SplitSeq(text(d, "io.stat"), "\n") {
			for f := range strings.FieldsSeq(line) {
				if v, ok := strings.CutPrefix(f, "rbytes="); ok {
					n, _ := strconv.ParseUint(v, 10, 64)
					s.IORead += n
				} else if v, ok := strings.CutPrefix(f, "wbytes="); ok {
					n, _ := strconv.ParseUint(v, 10, 64)
					s.IOWrite += n
				}
			}
		}
	} else if d, err := g.controller("blkio"); err == nil {
		file := "blkio.bfq.io_service_bytes_recursive" // counts only under BFQ; the throttle counter always
		t := text(d, file)
		if !strings.Contains(t, "Read") {
			t = text(d, "blkio.throttle.io_service_bytes_recursive")
		}
		for line := range strings.SplitSeq(t, "\n") {
			f := strings.Fields(line)
			if len(f) != 3 {
				continue
			}
			n, _ := strconv.ParseUint(f[2], 10, 64)
			switch f[1] {
			case "Read":
				s.IORead += n
			case "Write":
				s.IOWrite += n
			}
		}
	}
	return s, errors.Join(errs...)
}

func (g *Group) cpuStats(s *Stats, text func(*dir, string) string, number func(*dir, string, *uint64)) {
	if g.l.V2 {
		// cpu.stat is there without the controller; only the throttling lines need it.
		if d, err := g.member(); err == nil {
			t := text(d, "cpu.stat")
			for _, f := range [...]struct {
				key string
				to  *uint64
			}{{"usage_usec", &s.CPUUsage}, {"user_usec", &s.CPUUser}, {"system_usec", &s.CPUSystem}, {"throttled_usec", &s.ThrottledTime}} {
				n, _ := field(t, f.key)
				*f.to = n * 1000
			}
			s.ThrottledPeriods, _ = field(t, "nr_throttled")
		}
		return
	}
	if d, err := g.controller("cpuacct"); err == nil {
		number(d, "cpuacct.usage", &s.CPUUsage)
		number(d, "cpuacct.usage_user", &s.CPUUser)
		number(d, "cpuacct.usage_sys", &s.CPUSystem)
	}
	if d, err := g.controller("cpu"); err == nil {
		t := text(d, "cpu.stat")
		s.ThrottledPeriods, _ = field(t, "nr_throttled")
		s.ThrottledTime, _ = field(t, "throttled_time")
	}
}

// OOMKills is the number of processes that the kernel has killed here, and in the groups below, for memory. Zero
// without a memory controller.
func (g *Group) OOMKills() (uint64, error) {
	d, err := g.controller("memory")
	if err != nil {
		if errors.Is(err, os.ErrClosed) {
			return 0, &errdefs.Error{Op: "count OOM kills of control group", What: g.path, Kind: errdefs.InvalidArgument, Why: "the group is closed"}
		}
		return 0, nil
	}
	n, err := oomKills(d)
	if err != nil {
		return 0, &errdefs.Error{Op: "count OOM kills of control group", What: d.path, Err: err}
	}
	return n, nil
}

// oomKills reads the counter. v2's memory.events counts the whole subtree; v1's memory.oom_control (Linux 4.13) only
// the group itself, so the groups below are added.
func oomKills(d *dir) (uint64, error) {
	if d.h.v2 {
		t, err := readAt(d.fd, "memory.events")
		if err != nil {
			return 0, err
		}
		n, _ := field(t, "oom_kill")
		return n, nil
	}
	return oomKillsBelow(d.fd, 0)
}

func oomKillsBelow(fd, depth int) (uint64, error) {
	if depth > 256 {
		return 0, unix.ELOOP
	}
	t, err := readAt(fd, "memory.oom_control")
	if err != nil {
		return 0, err
	}
	sum, _ := field(t, "oom_kill")
	names, err := children(fd)
	if err != nil {
		return sum, err
	}
	for _, n := range names {
		sub, err := unix.Openat(fd, n, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err != nil {
			continue // removed meanwhile
		}
		if m, err := oomKillsBelow(sub, depth+1); err == nil {
			sum += m
		}
		_ = unix.Close(sub)
	}
	return sum, nil
}

// Pressures are the pressures of one group by resource.
type Pressures struct{ CPU, Memory, IO Pressure }

// Pressure reads how much the group waits; nil where the kernel does not count it (cgroup v1, no CONFIG_PSI).
func (g *Group) Pressure() *Pressures {
	if !g.l.V2 {
		return nil
	}
	d, err := g.member()
	if err != nil {
		return nil
	}
	var r reader
	p := &Pressures{}
	for _, f := range [...]struct {
		file string
		to   *Pressure
	}{{"cpu.pressure", &p.CPU}, {"memory.pressure", &p.Memory}, {"io.pressure", &p.IO}} {
		one := r.pressure(d, f.file)
		if one == nil {
			return nil
		}
		*f.to = *one
	}
	return p
}

// CPUUsage is Stats.CPUUsage alone: one file.
func (g *Group) CPUUsage() (uint64, error) {
	if g.l.V2 {
		d, err := g.member()
		if err != nil {
			return 0, err
		}
		t, err := readAt(d.fd, "cpu.stat")
		if err != nil {
			return 0, &errdefs.Error{Op: "read", What: d.path + "/cpu.stat", Err: err}
		}
		n, _ := field(t, "usage_usec")
		return n * 1000, nil
	}
	d, err := g.controller("cpuacct")
	if err != nil {
		return 0, nil // nothing is counted
	}
	n, err := readUint(d.fd, "cpuacct.usage")
	if err != nil {
		return 0, &errdefs.Error{Op: "read", What: d.path + "/cpuacct.usage", Err: err}
	}
	return n, nil
}
