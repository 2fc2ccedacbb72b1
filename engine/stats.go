package engine

import (
	"bytes"
	"context"
	"errors"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/onggi/onggi/cgroup"
	"github.com/onggi/onggi/errdefs"
)

// Sample is what a container uses at one moment. Counters count from the container's start.
type Sample struct {
	ID, Name string
	Running  bool // else all that follows but Read is zero
	Read     time.Time
	Started  time.Time

	CPU        time.Duration // of all processors together
	OnlineCPUs int
	// Memory is what the container cannot give back at once: usage without the page cache that was not used lately, as
	// docker counts. Limit is the host's memory where the container has none.
	Memory, MemoryLimit   uint64 // bytes
	NetRx, NetTx          uint64 // bytes, of all interfaces of its own but the loopback
	BlockRead, BlockWrite uint64 // bytes
	Pids, PidsLimit       uint64 // processes and threads; no limit is 0
	// Pressure is nil where the kernel counts none for control groups (cgroup v1, CONFIG_PSI).
	Pressure *Pressure `json:",omitempty"`
}

// Pressure is how much the container waits for each resource (PSI).
type Pressure struct{ CPU, Memory, IO cgroup.Stall }

// CPUPercent is the use of processors since an earlier sample, or since the container's start when that is nil: 100 is one
// processor.
func (s *Sample) CPUPercent(before *Sample) float64 {
	used, took := s.CPU, s.Read.Sub(s.Started)
	if before != nil && before.Running && before.Started.Equal(s.Started) {
		used, took = s.CPU-before.CPU, s.Read.Sub(before.Read)
	}
	if !s.Running || took <= 0 || used < 0 {
		return 0
	}
	return 100 * float64(used) / float64(took)
}

// MemoryPercent is the share of the limit.
func (s *Sample) MemoryPercent() float64 {
	if s.MemoryLimit == 0 {
		return 0
	}
	return 100 * float64(s.Memory) / float64(s.MemoryLimit)
}

// Sample measures containers: those that are named, or without names all that run (all: also those that do not), newest
// first. A named one that does not exist is an error of kind NotFound; one that ends meanwhile is not Running. No lock is
// taken.
func (e *Engine) Sample(ctx context.Context, names []string, all bool) ([]*Sample, error) {
	m, err := e.meters(names, all)
	if err != nil {
		return nil, err
	}
	defer m.close()
	return m.read(ctx)
}

// SampleOver is Sample, after a first look at the processors and a window of time: the samples before hold what
// Sample.CPUPercent asks for, and no more.
func (e *Engine) SampleOver(ctx context.Context, names []string, all bool, window time.Duration) (before, after []*Sample, err error) {
	m, err := e.meters(names, all)
	if err != nil {
		return nil, nil, err
	}
	defer m.close()
	end := time.NewTimer(window)
	defer end.Stop()
	if before, err = m.look(ctx); err != nil {
		return nil, nil, err
	}
	select {
	case <-end.C:
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	after, err = m.read(ctx)
	return before, after, err
}

// meters are the open control groups of containers; nil for one that does not run.
type meters struct {
	records []*record
	groups  []*cgroup.Group
	memory  uint64 // of the host, bytes
}

func (e *Engine) meters(names []string, all bool) (_ *meters, err error) {
	if groupless() {
		return nil, noGroup("")
	}
	m := &meters{}
	if len(names) > 0 {
		for _, n := range names {
			r, err := e.get(n)
			if err != nil {
				return nil, err
			}
			m.records = append(m.records, r)
		}
	} else if m.records, err = e.recordsWhere(func(r *record) bool { return r.Config.Build == "" && (all || r.Status == Running) }); err != nil {
		return nil, err
	}
	layout, err := cgroup.Detect()
	if err != nil {
		return nil, err
	}
	if m.memory, err = hostMemory(); err != nil {
		return nil, err
	}
	m.groups = make([]*cgroup.Group, len(m.records))
	if err := m.each(context.Background(), func(i int) (err error) {
		if m.records[i].Status != Running {
			return nil
		}
		g, err := cgroup.Open(layout, m.records[i].CgroupPath)
		if errdefs.Is(err, errdefs.NotFound) {
			return nil // it has ended
		}
		m.groups[i] = g
		return err
	}); err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

func (m *meters) close() {
	for _, g := range m.groups {
		if g != nil {
			_ = g.Close()
		}
	}
}

// each calls f for every container, on several processors.
func (m *meters) each(ctx context.Context, f func(i int) error) error {
	errs := make([]error, len(m.records))
	var next atomic.Int64
	work := func() {
		for ctx.Err() == nil {
			i := int(next.Add(1)) - 1
			if i >= len(errs) {
				return
			}
			errs[i] = f(i)
		}
	}
	var others sync.WaitGroup
	for range min(runtime.NumCPU(), len(errs), 8) - 1 {
		others.Go(work)
	}
	work()
	others.Wait()
	return errors.Join(append(errs, ctx.Err())...)
}

// look reads the time of the processors only.
func (m *meters) look(ctx context.Context) ([]*Sample, error) {
	out := make([]*Sample, len(m.records))
	return out, m.each(ctx, func(i int) error {
		r := m.records[i]
		s := &Sample{ID: r.ID, Name: r.Config.Name, Read: time.Now()}
		out[i] = s
		if m.groups[i] == nil {
			return nil
		}
		n, err := m.groups[i].CPUUsage()
		if err != nil {
			return nil // it has ended: the second look will see that
		}
		s.Running, s.Started, s.Read, s.CPU = true, r.StartedAt, time.Now(), time.Duration(n)
		return nil
	})
}

func (m *meters) read(ctx context.Context) ([]*Sample, error) {
	out := make([]*Sample, len(m.records))
	return out, m.each(ctx, func(i int) (err error) {
		out[i], err = m.records[i].sample(m.groups[i], m.memory)
		return err
	})
}

// sample reads what one container uses; g is nil when it does not run.
func (r *record) sample(g *cgroup.Group, memory uint64) (*Sample, error) {
	s := &Sample{ID: r.ID, Name: r.Config.Name, Read: time.Now()}
	if g == nil {
		return s, nil
	}
	c, err := g.Stats()
	if err != nil {
		if left, perr := g.Pids(); perr == nil && len(left) == 0 {
			return s, nil // it has ended while we read
		}
		return nil, err
	}
	s.Read = time.Now()
	s.Running, s.Started, s.OnlineCPUs = true, r.StartedAt, runtime.NumCPU()
	s.CPU = time.Duration(c.CPUUsage)
	s.Memory, s.MemoryLimit = c.MemoryUsage-min(c.MemoryInactive, c.MemoryUsage), min(c.MemoryLimit, memory)
	if s.MemoryLimit == 0 {
		s.MemoryLimit = memory // no memory controller
	}
	s.BlockRead, s.BlockWrite, s.Pids = c.IORead, c.IOWrite, c.Pids
	if c.PidsLimit != ^uint64(0) {
		s.PidsLimit = c.PidsLimit
	}
	if p := g.Pressure(); p != nil {
		s.Pressure = &Pressure{CPU: p.CPU.Some, Memory: p.Memory.Some, IO: p.IO.Some}
	}
	if r.Config.Network != "host" && r.Pid > 0 {
		s.NetRx, s.NetTx = netBytes(r.Pid)
	}
	return s, nil
}

// netBytes adds up what the interfaces in a process's network namespace have received and sent (proc_pid_net(5), dev);
// zeros when the process has ended.
func netBytes(pid int) (rx, tx uint64) {
	b, err := readBounded("/proc/"+strconv.Itoa(pid)+"/net/dev", 1<<20)
	if err != nil {
		return 0, 0
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		name, counters, ok := strings.Cut(line, ":")
		if !ok || strings.TrimSpace(name) == "lo" {
			continue
		}
		if f := strings.Fields(counters); len(f) >= 9 {
			r, _ := strconv.ParseUint(f[0], 10, 64)
			t, _ := strconv.ParseUint(f[8], 10, 64)
			rx, tx = rx+r, tx+t
		}
	}
	return rx, tx
}

// hostMemory is all of the host's memory, bytes.
func hostMemory() (uint64, error) {
	b, err := readBounded("/proc/meminfo", 1<<16)
	if err != nil {
		return 0, err
	}
	_, rest, ok := bytes.Cut(b, []byte("MemTotal:"))
	if f := bytes.Fields(rest[:min(len(rest), 64)]); ok && len(f) > 0 {
		n, err := strconv.ParseUint(string(f[0]), 10, 64)
		return n << 10, err
	}
	return 0, &errdefs.Error{Op: "read", What: "/proc/meminfo", Kind: errdefs.Unsupported, Why: "it has no MemTotal", Err: os.ErrInvalid}
}

// Watch calls yield with a sample of the containers every interval, until the context ends or yield returns an error, which
// is returned. Without names each one is of the containers that run then. Named containers that are gone are left out.
func (e *Engine) Watch(ctx context.Context, names []string, all bool, interval time.Duration, yield func([]*Sample) error) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for first := true; ; first = false {
		list, err := e.Sample(ctx, names, all)
		if !first && errdefs.Is(err, errdefs.NotFound) {
			left := names[:0:0]
			for _, n := range names {
				if _, err := e.find(n); err == nil {
					left = append(left, n)
				}
			}
			if names = left; len(names) == 0 {
				return nil
			}
			continue
		}
		if err != nil {
			return err
		}
		if err := yield(list); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
