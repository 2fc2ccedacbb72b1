package launch

import (
	"errors"
	"os"
	"path"
	"strings"

	"github.com/onggi/onggi/cgroup"
	"github.com/onggi/onggi/errdefs"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// StatePaused is the status of a container whose control group is frozen. The specification leaves it to runtimes.
const StatePaused runspec.ContainerState = "paused"

// status is record.status, which does not know whether the control group is frozen.
func (c *Container) status() runspec.ContainerState {
	s := c.record.status()
	if s == runspec.StateRunning || s == runspec.StateCreated {
		if c.frozen() {
			return StatePaused
		}
	}
	return s
}

func (c *Container) frozen() bool {
	g, err := c.openGroup()
	if err != nil {
		return false
	}
	f, err := g.Frozen()
	return err == nil && f
}

// locked does something to a container that lives, under its lock and with its present record.
func (c *Container) locked(do func(s runspec.ContainerState) error) error {
	l, err := lock(c.root, c.record.ID, false)
	if err != nil {
		return err
	}
	defer unix.Close(l) //nolint:errcheck // unlocks
	if c.record, err = readRecord(c.root, c.record.ID); err != nil {
		return err
	}
	c.pid = c.record.Pid
	return do(c.status())
}

// Pause freezes every process of the container. Conflict when it does not run or is paused already, Unsupported
// without a freezer.
func (c *Container) Pause() error {
	return c.locked(func(s runspec.ContainerState) error {
		if s != runspec.StateRunning && s != runspec.StateCreated {
			return &errdefs.Error{Op: "pause container", What: c.record.ID, Kind: errdefs.Conflict, Why: "container not running: it is " + string(s)}
		}
		g, err := c.openGroup()
		if err != nil {
			return err
		}
		return g.Freeze(true)
	})
}

// Resume thaws a paused container. Conflict when it is not paused.
func (c *Container) Resume() error {
	return c.locked(func(s runspec.ContainerState) error {
		if s != StatePaused {
			return &errdefs.Error{Op: "resume container", What: c.record.ID, Kind: errdefs.Conflict, Why: "container not paused: it is " + string(s)}
		}
		g, err := c.openGroup()
		if err != nil {
			return err
		}
		return g.Freeze(false)
	})
}

// obsolete are warnings of limits that no kernel keeps any more: engines still send them, and runc ignores them so.
func obsolete(l *cgroup.Layout, r *runspec.LinuxResources) (warnings []string) {
	for _, f := range l.Obsolete(r) {
		warnings = append(warnings, f+" is left out: the kernel has no limit of kernel memory any more; linux.resources.memory.limit counts it too")
	}
	return warnings
}

// Update changes limits; what is nil stays. When one cannot be set, those that are single values in a file get the
// values that they had. warn, which may be nil, is told what no kernel keeps any more. Conflict when the container has ended.
func (c *Container) Update(r *runspec.LinuxResources, warn func(string)) error {
	if l, err := layout(); err == nil && warn != nil {
		for _, w := range obsolete(l, r) {
			warn(w)
		}
	}
	return c.locked(func(s runspec.ContainerState) error {
		if s == runspec.StateStopped {
			return &errdefs.Error{Op: "update container", What: c.record.ID, Kind: errdefs.Conflict, Why: "container not running"}
		}
		g, err := c.openGroup()
		if err != nil {
			return err
		}
		before := limitsOf(g)
		rest, devices := withDefaultDevices(r)
		err = g.Apply(rest)
		if err == nil && len(r.Devices) > 0 {
			err = g.Apply(&runspec.LinuxResources{Devices: devices})
		}
		if err != nil {
			return errors.Join(err, before.restore())
		}
		return nil
	})
}

// UpdateRDT changes the share of caches and memory bandwidth of the container's own resctrl group. Unsupported when it was
// made without linux.intelRdt, Conflict when its group is not its own.
func (c *Container) UpdateRDT(l *runspec.LinuxIntelRdt) error {
	return c.locked(func(s runspec.ContainerState) error {
		e := &errdefs.Error{Op: "update container", What: c.record.ID, Kind: errdefs.Conflict}
		switch rec := c.record.RDT; {
		case s == runspec.StateStopped:
			e.Why = "container not running"
		case rec == nil:
			e.Kind, e.Why = errdefs.Unsupported, "it was made without linux.intelRdt, so it has no resctrl group to change"
		case !rec.Created:
			e.Why = "its resctrl group is shared (linux.intelRdt.closID): others would be changed too"
		default:
			r, err := openResctrl()
			if err != nil {
				return err
			}
			defer r.close()
			return r.update(rec, l)
		}
		return e
	})
}

// update writes what is given into the group's schemata.
func (r *resctrl) update(rec *rdtRecord, l *runspec.LinuxIntelRdt) error {
	return r.write(below(rec.Group, "schemata"), strings.Join(schema(l), "\n")+"\n")
}

// limit is a limit's file and its value.
type limit struct{ file, value string }

type limits []limit

// limitFiles are the files of one value that Update may write, of v1 and v2.
var limitFiles = [...]string{
	"memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.soft_limit_in_bytes", "memory.swappiness",
	"memory.kmem.tcp.limit_in_bytes", "cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us", "cpu.cfs_burst_us",
	"cpu.rt_period_us", "cpu.rt_runtime_us", "cpuset.cpus", "cpuset.mems", "pids.max", "blkio.weight", "blkio.bfq.weight",
	"memory.max", "memory.swap.max", "memory.low", "memory.high", "memory.min", "cpu.max", "cpu.max.burst", "cpu.weight",
	"cpu.idle", "io.weight", "io.bfq.weight",
}

func limitsOf(g *cgroup.Group) (l limits) {
	seen := map[string]bool{}
	for _, dir := range g.Paths() {
		if seen[dir] {
			continue
		}
		seen[dir] = true
		for _, f := range limitFiles {
			name := path.Join(dir, f)
			if b, err := os.ReadFile(name); err == nil {
				l = append(l, limit{name, strings.TrimSpace(string(b))})
			}
		}
	}
	return l
}

// restore writes back what has changed. Twice, for some limits may only be set within others (memsw above memory, a
// quota within its period).
func (l limits) restore() (err error) {
	for range 2 {
		err = nil
		for _, x := range l {
			if b, e := os.ReadFile(x.file); e == nil && strings.TrimSpace(string(b)) != x.value {
				if e := writeFile(x.file, []byte(x.value)); e != nil {
					err = errors.Join(err, &errdefs.Error{Op: "give the old value back to", What: x.file, Err: e})
				}
			}
		}
	}
	return err
}

// Metrics are the counters of the container's control group. Conflict when the container has ended.
func (c *Container) Metrics() (*cgroup.Metrics, error) {
	if !c.record.alive() {
		return nil, &errdefs.Error{Op: "measure container", What: c.record.ID, Kind: errdefs.Conflict, Why: "container not running"}
	}
	g, err := c.openGroup()
	if err != nil {
		return nil, err
	}
	return g.Metrics()
}

// WatchOOM tells of each time that the kernel runs out of memory in the container. The caller closes it.
func (c *Container) WatchOOM() (*cgroup.OOMWatch, error) {
	if !c.record.alive() {
		return nil, &errdefs.Error{Op: "watch container", What: c.record.ID, Kind: errdefs.Conflict, Why: "container not running"}
	}
	g, err := c.openGroup()
	if err != nil {
		return nil, err
	}
	return g.WatchOOM()
}

// thaw lets processes die that have been killed while they were frozen: on v1 nothing else makes them.
func (c *Container) thaw() {
	if c.frozen() {
		if g, err := c.openGroup(); err == nil {
			_ = g.Freeze(false)
		}
	}
}
