package engine

import (
	"context"
	"errors"
	"maps"
	"strings"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/spec"
	"github.com/onggi/onggi/undo"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
)

// Update is what Engine.Update changes; a nil field is left as it is.
type Update struct {
	// Zero takes a limit away, where the field says nothing else.
	Memory, MemorySwap, MemoryReservation *int64 // bytes; MemorySwap -1 is unlimited swap
	NanoCPUs                              *int64
	CPUPeriod, CPUQuota                   *int64 // µs
	CPURealtimePeriod, CPURealtimeRuntime *int64 // µs
	CPUShares                             *uint64
	CpusetCpus, CpusetMems                *string
	PidsLimit                             *int64 // -1 is no limit
	BlkioWeight                           *uint16

	Restart *RestartPolicy

	Labels       map[string]string // added, or given another value
	RemoveLabels []string
}

// Update changes limits and labels of a container, also while it runs: its control group and its record agree afterwards,
// or neither has changed. What it warns of could not be honoured as asked. Errors: InvalidArgument for a limit that a
// container could not be made with, Unsupported for one that this host has not.
//
//	limits of the control group -> record
func (e *Engine) Update(ctx context.Context, idOrName string, u Update) (warnings []string, err error) {
	h, err := e.lock(ctx, idOrName)
	if err != nil {
		return nil, err
	}
	defer h.unlock()
	r := h.rec
	status, pid, exit := r.Status, r.Pid, r.Exit // as recorded: that it has ended is recorded by who cleans up after it
	switch e.effective(r); r.Status {
	case Creating, Removing, Dead:
		return nil, &errdefs.Error{Op: "update", What: "container " + idOrName, Kind: errdefs.Conflict, Why: "it is in state " + string(r.Status)}
	}
	if p := u.Restart; p != nil {
		if err := p.Check(); err != nil {
			return nil, err
		}
		if p.Restarts() && r.Config.AutoRemove {
			return nil, &errdefs.Error{
				Op: "update", What: "container " + idOrName, Kind: errdefs.Conflict,
				Why: "restart policy cannot be updated because AutoRemove is enabled for the container", Fix: "make it again without --rm",
			}
		}
	}
	old := r.Config
	fresh := old
	fresh.Labels = maps.Clone(old.Labels)
	u.apply(&fresh)
	before, _, err := r.resources(&old.Config)
	if err != nil {
		return nil, err
	}
	after, warnings, err := r.resources(&fresh.Config)
	if err != nil {
		return nil, err
	}
	change, back := difference(before, after), difference(after, before)
	steps := undo.New("update")
	defer steps.Undo(&err)
	if err := steps.Do("limits", func() error {
		if r.Status != Running || change == nil {
			return nil
		}
		g, err := r.group()
		if err != nil {
			return err
		}
		defer g.Close()
		if err := g.Apply(change); err != nil {
			return errors.Join(err, g.Apply(back))
		}
		return nil
	}, func() error {
		if r.Status != Running || back == nil {
			return nil
		}
		g, err := r.group()
		if errdefs.Is(err, errdefs.NotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		defer g.Close()
		return g.Apply(back)
	}); err != nil {
		return nil, &errdefs.Error{Op: "update", What: "container " + idOrName, Kind: errdefs.KindOf(err), Err: err, Fix: errdefs.FixOf(err)}
	}
	r.Config, r.Status, r.Pid, r.Exit, r.Paused = fresh, status, pid, exit, false
	if err := steps.Do("record", func() error { return h.write(!e.isPassing(r.ID)) }, nil); err != nil {
		r.Config = old
		return nil, err
	}
	h.emit("update")
	return warnings, nil
}

// apply puts the changes into a configuration.
func (u *Update) apply(c *Config) {
	for _, x := range []struct {
		to   *int64
		from *int64
	}{
		{&c.Memory, u.Memory},
		{&c.MemorySwap, u.MemorySwap},
		{&c.MemoryReservation, u.MemoryReservation},
		{&c.NanoCPUs, u.NanoCPUs},
		{&c.CPUPeriod, u.CPUPeriod},
		{&c.CPUQuota, u.CPUQuota},
		{&c.CPURealtimePeriod, u.CPURealtimePeriod},
		{&c.CPURealtimeRuntime, u.CPURealtimeRuntime},
		{&c.PidsLimit, u.PidsLimit},
	} {
		if x.from != nil {
			*x.to = *x.from
		}
	}
	// The one takes the other's place.
	if u.NanoCPUs != nil && *u.NanoCPUs != 0 && u.CPUPeriod == nil && u.CPUQuota == nil {
		c.CPUPeriod, c.CPUQuota = 0, 0
	}
	if (u.CPUPeriod != nil || u.CPUQuota != nil) && u.NanoCPUs == nil {
		c.NanoCPUs = 0
	}
	if u.CPUShares != nil {
		c.CPUShares = *u.CPUShares
	}
	if u.CpusetCpus != nil {
		c.CpusetCpus = *u.CpusetCpus
	}
	if u.CpusetMems != nil {
		c.CpusetMems = *u.CpusetMems
	}
	if u.BlkioWeight != nil {
		c.BlkioWeight = *u.BlkioWeight
	}
	if u.Restart != nil {
		c.Restart = *u.Restart
	}
	for _, k := range u.RemoveLabels {
		delete(c.Labels, k)
	}
	for k, v := range u.Labels {
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		c.Labels[k] = v
	}
}

// resources are the limits that a container of this configuration is started with, but devices.
func (r *record) resources(c *spec.Config) (*runspec.LinuxResources, []string, error) {
	only := spec.Config{
		Memory: c.Memory, MemorySwap: c.MemorySwap, NanoCPUs: c.NanoCPUs, CPUShares: c.CPUShares, CpusetCpus: c.CpusetCpus, PidsLimit: c.PidsLimit,
		Limits: c.Limits, Args: []string{"x"}, Network: "none", Seccomp: "unconfined",
	}
	only.DeviceRules = nil
	host, err := hostFacts(&only)
	if err != nil {
		return nil, nil, err
	}
	s, warnings, err := spec.Generate(spec.Input{ID: r.ID, Image: &ocispec.Image{}, Config: &only, Host: host, RootPath: "rootfs", CgroupsPath: "/"})
	if err != nil {
		return nil, nil, err
	}
	s.Linux.Resources.Devices = nil
	return s.Linux.Resources, warnings, nil
}

// difference is what is to be applied to a control group with the limits of a so that it has those of b: a limit that b
// lacks is set to none. nil when they are the same.
func difference(a, b *runspec.LinuxResources) *runspec.LinuxResources {
	var d runspec.LinuxResources
	some := false
	signed := func(a, b *int64, none int64) *int64 {
		if value(a, none) == value(b, none) {
			return nil
		}
		some = true
		n := value(b, none)
		return &n
	}
	unsigned := func(a, b *uint64, none uint64) *uint64 {
		if value(a, none) == value(b, none) {
			return nil
		}
		some = true
		n := value(b, none)
		return &n
	}
	ma, mb := value(a.Memory, runspec.LinuxMemory{}), value(b.Memory, runspec.LinuxMemory{})
	d.Memory = &runspec.LinuxMemory{Limit: signed(ma.Limit, mb.Limit, -1), Swap: signed(ma.Swap, mb.Swap, -1), Reservation: signed(ma.Reservation, mb.Reservation, -1)}
	if d.Memory.Limit != nil && d.Memory.Swap == nil { // the order of the two is the control group's care, if it knows both
		d.Memory.Swap = mb.Swap
	}
	if d.Memory.Swap != nil && d.Memory.Limit == nil {
		d.Memory.Limit = mb.Limit
	}
	ca, cb := value(a.CPU, runspec.LinuxCPU{}), value(b.CPU, runspec.LinuxCPU{})
	d.CPU = &runspec.LinuxCPU{
		Shares: unsigned(ca.Shares, cb.Shares, 1024), Quota: signed(ca.Quota, cb.Quota, -1), Period: unsigned(ca.Period, cb.Period, 100000),
		RealtimePeriod: unsigned(ca.RealtimePeriod, cb.RealtimePeriod, 1000000), RealtimeRuntime: signed(ca.RealtimeRuntime, cb.RealtimeRuntime, 0),
	}
	if ca.Cpus != cb.Cpus {
		some, d.CPU.Cpus = true, cmpOr(cb.Cpus, online("/sys/devices/system/cpu/online"))
	}
	if ca.Mems != cb.Mems {
		some, d.CPU.Mems = true, cmpOr(cb.Mems, online("/sys/devices/system/node/has_memory"))
	}
	if d.CPU.Period != nil && d.CPU.Quota == nil {
		d.CPU.Quota = cb.Quota
	}
	if pa, pb := value(a.Pids, runspec.LinuxPids{}), value(b.Pids, runspec.LinuxPids{}); true {
		if n := signed(pa.Limit, pb.Limit, -1); n != nil {
			d.Pids = &runspec.LinuxPids{Limit: n}
		}
	}
	if wa, wb := value(a.BlockIO, runspec.LinuxBlockIO{}), value(b.BlockIO, runspec.LinuxBlockIO{}); value(wa.Weight, 0) != value(wb.Weight, 0) {
		w := value(wb.Weight, 500) // what a group has that was given none (blkio-controller.rst)
		some, d.BlockIO = true, &runspec.LinuxBlockIO{Weight: &w}
	}
	if !some {
		return nil
	}
	return &d
}

// online is what a cpuset without a limit has.
func online(file string) string {
	b, err := readBounded(file, 4096)
	if err != nil {
		return "0"
	}
	return strings.TrimSpace(string(b))
}

func value[T any](p *T, none T) T {
	if p == nil {
		return none
	}
	return *p
}
