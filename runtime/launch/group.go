package launch

import (
	"os"
	"path"
	"sort"
	"strings"
	"sync"

	"github.com/onggi/onggi/cgroup"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/systemd"
	"github.com/onggi/onggi/undo"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
)

// Rootless reports whether this process is not the host's root: another user, or root of a user namespace. It may then
// have no control group that it can write, and makes do without one when nothing asks for it.
func Rootless() bool { return rootlessOnce() }

var rootlessOnce = sync.OnceValue(func() bool { return os.Geteuid() != 0 || nested() })

// findGroup decides where the control group will be, and who makes it.
func (k *creation) findGroup() error {
	k.groupPath = k.spec.Linux.CgroupsPath
	if k.Systemd {
		return k.findScope()
	}
	if k.groupPath == "" {
		if k.groupPath = "/" + k.ID; Rootless() {
			k.groupPath = k.ID // below what is ours
		}
	}
	k.early = path.IsAbs(k.groupPath) && !k.specJoinsUser() && !Rootless()
	return nil
}

const unitProperty = "org.systemd.property."

// findScope reads cgroupsPath as "slice:prefix:name" and the annotations that are properties of the unit.
func (k *creation) findScope() (err error) {
	if k.scope, err = cgroup.ParseScope(k.groupPath, k.ID, k.UserManager); err != nil {
		return err
	}
	names := make([]string, 0, len(k.spec.Annotations))
	for a := range k.spec.Annotations {
		if strings.HasPrefix(a, unitProperty) {
			names = append(names, a)
		}
	}
	sort.Strings(names)
	for _, a := range names {
		p, err := systemd.ParseProperty(strings.TrimPrefix(a, unitProperty), k.spec.Annotations[a])
		if err != nil {
			return err
		}
		k.scope.Properties = append(k.scope.Properties, p)
	}
	k.early = true
	if k.dry {
		k.groupPath = "/" + k.scope.Slice + "/" + k.scope.Unit
		return nil
	}
	k.groupPath, err = k.scope.Path()
	return err
}

// startScope prepares for a scope: systemd makes one only around a process, so it is made after that has started.
func (k *creation) startScope(steps *undo.Stack) {
	k.grouped = make(chan error, 1)
	k.born = make(chan *os.File, 1)
	k.born <- nil
	steps.Push("create.cgroup", func() error {
		defer k.scope.Close()
		if k.group == nil {
			return k.scope.Stop()
		}
		defer k.group.Close() //nolint:errcheck // handles
		return k.group.Remove()
	})
}

// makeScope makes the scope around the process, which waits for its permission to go on, and moves it into the v1
// hierarchies that systemd does not use.
func (k *creation) makeScope() error {
	l, err := layout()
	if err != nil {
		return err
	}
	r, devices := withDefaultDevices(k.spec.Linux.Resources)
	if k.group, err = cgroup.CreateScope(l, k.scope, k.c.pid, r); err != nil {
		k.group = nil
		return err
	}
	if err := k.restrict(devices); err != nil {
		return err
	}
	if !l.V2 {
		if err := k.group.Add(k.c.pid); err != nil {
			return err
		}
	}
	err = k.delegate()
	k.scope.Close() // the monitor may live for years; who needs it again connects again
	return err
}

// restrict sets the device rules. Where the spec lists none and the host can restrict none, there is nothing that was
// asked for and is not done.
func (k *creation) restrict(devices []runspec.LinuxDeviceCgroup) error {
	listed := k.spec.Linux.Resources != nil && len(k.spec.Linux.Resources.Devices) > 0
	before := len(k.group.Skipped())
	err := k.group.Apply(&runspec.LinuxResources{Devices: devices})
	if err == nil && listed && len(k.group.Skipped()) > before {
		k.groupWarning = "linux.resources.devices is left out: this user may not restrict devices, and can make none either"
	}
	if err != nil && !listed && (errdefs.Is(err, errdefs.Unsupported) || errdefs.Is(err, errdefs.Forbidden)) {
		return nil
	}
	return err
}

// delegate gives the group to the container's user when it can use it: in a user namespace of its own, with a cgroup
// namespace, and a cgroup file system that is mounted for writing (runtime-spec config-linux.md, "Cgroup ownership").
func (k *creation) delegate() error {
	l, err := layout()
	if err != nil || !l.V2 || !k.newUser {
		return err
	}
	own, writable := false, false
	for _, n := range k.spec.Linux.Namespaces {
		own = own || n.Type == runspec.CgroupNamespace && n.Path == ""
	}
	for i := range k.spec.Mounts {
		m := &k.spec.Mounts[i]
		if m.Type != "cgroup" && m.Type != "cgroup2" {
			continue
		}
		writable = true
		for _, o := range m.Options {
			switch o {
			case "ro":
				writable = false
			case "rw":
				writable = true
			}
		}
	}
	if !own || !writable {
		return nil
	}
	return k.group.Chown(int(hostID(k.spec.Process.User.UID, k.spec.Linux.UIDMappings)))
}

// withoutGroup reports whether the container can do without a group that could not be made: who is not root, has asked
// for no place and for no limit, gets none, as runc has it. Otherwise it is the error that says what needs one.
func (k *creation) withoutGroup(err error) (bool, error) {
	if !Rootless() || !errdefs.Is(err, errdefs.Forbidden) || k.spec.Linux.CgroupsPath != "" {
		return false, err
	}
	if field := limited(k.spec.Linux.Resources); field != "" {
		return false, &errdefs.Error{
			Op: "set", What: "linux.resources." + field, Kind: errdefs.Forbidden, Err: err,
			Why: "this user may make no control group, which a limit needs",
			Fix: "leave the limit out, or have a cgroup delegated (log in through systemd, or: systemd-run --user --scope -p Delegate=yes ...)",
		}
	}
	return true, nil
}

// limited names the first field of r that asks for a limit; "" when none does. Device rules do not count: a user cannot
// make devices.
func limited(r *runspec.LinuxResources) string {
	positive := func(p *int64) bool { return p != nil && *p > 0 }
	some := func(p *uint64) bool { return p != nil && *p != 0 }
	switch {
	case r == nil:
	case r.Memory != nil && (positive(r.Memory.Limit) || positive(r.Memory.Swap) || positive(r.Memory.Reservation) || r.Memory.Swappiness != nil):
		return "memory"
	case r.CPU != nil && (some(r.CPU.Shares) || positive(r.CPU.Quota) || some(r.CPU.Period) || r.CPU.Cpus != "" || r.CPU.Mems != "" ||
		some(r.CPU.Burst) || r.CPU.Idle != nil || positive(r.CPU.RealtimeRuntime) || some(r.CPU.RealtimePeriod)):
		return "cpu"
	case r.Pids != nil && positive(r.Pids.Limit):
		return "pids"
	case r.BlockIO != nil && (r.BlockIO.Weight != nil && *r.BlockIO.Weight != 0 || len(r.BlockIO.WeightDevice)+len(r.BlockIO.ThrottleReadBpsDevice)+
		len(r.BlockIO.ThrottleWriteBpsDevice)+len(r.BlockIO.ThrottleReadIOPSDevice)+len(r.BlockIO.ThrottleWriteIOPSDevice) > 0):
		return "blockIO"
	case len(r.HugepageLimits) > 0:
		return "hugepageLimits"
	case r.Network != nil && (r.Network.ClassID != nil && *r.Network.ClassID != 0 || len(r.Network.Priorities) > 0):
		return "network"
	case len(r.Rdma) > 0:
		return "rdma"
	case len(r.Unified) > 0:
		return "unified"
	}
	return ""
}
