package spec

import (
	"fmt"
	"strconv"
	"strings"

	runspec "github.com/opencontainers/runtime-spec/specs-go"
)

// Limits are the limits of a control group beyond those that every other container is given. They are part of Config.
type Limits struct {
	MemoryReservation int64   `json:"memoryReservation,omitempty"` // bytes
	MemorySwappiness  *uint64 `json:"memorySwappiness,omitempty"`  // 0 to 100; cgroup v1
	OomKillDisable    bool    `json:"oomKillDisable,omitempty"`    // cgroup v1

	CPUPeriod          int64  `json:"cpuPeriod,omitempty"` // µs
	CPUQuota           int64  `json:"cpuQuota,omitempty"`  // µs; -1 is no limit
	CPURealtimePeriod  int64  `json:"cpuRealtimePeriod,omitempty"`
	CPURealtimeRuntime int64  `json:"cpuRealtimeRuntime,omitempty"`
	CpusetMems         string `json:"cpusetMems,omitempty"`

	BlkioWeight       uint16       `json:"blkioWeight,omitempty"` // 10 to 1000
	BlkioWeightDevice []DeviceRate `json:"blkioWeightDevice,omitempty"`
	DeviceReadBps     []DeviceRate `json:"deviceReadBps,omitempty"` // bytes a second
	DeviceWriteBps    []DeviceRate `json:"deviceWriteBps,omitempty"`
	DeviceReadIOps    []DeviceRate `json:"deviceReadIOps,omitempty"` // operations a second
	DeviceWriteIOps   []DeviceRate `json:"deviceWriteIOps,omitempty"`

	// DeviceRules are --device-cgroup-rule: "c 42:* rmw".
	DeviceRules []string `json:"deviceRules,omitempty"`
}

// DeviceRate is a weight or a rate of one block device.
type DeviceRate struct {
	Path string `json:"path"`
	Rate uint64 `json:"rate"`
}

// BlockDevices are the paths of block devices that the configuration names: Host.BlockDevices has them.
func (c *Config) BlockDevices() (paths []string) {
	for _, list := range [][]DeviceRate{c.BlkioWeightDevice, c.DeviceReadBps, c.DeviceWriteBps, c.DeviceReadIOps, c.DeviceWriteIOps} {
		for _, d := range list {
			paths = append(paths, d.Path)
		}
	}
	return paths
}

// moreMemory adds what --memory and --memory-swap do not say.
func (g *generator) moreMemory(s *runspec.Spec) error {
	c := g.c
	set := func() *runspec.LinuxMemory {
		if s.Linux.Resources.Memory == nil {
			s.Linux.Resources.Memory = &runspec.LinuxMemory{}
		}
		return s.Linux.Resources.Memory
	}
	if n := c.MemoryReservation; n != 0 {
		switch {
		case n < minMemory:
			return invalid("--memory-reservation", strconv.FormatInt(n, 10), "minimum memory reservation allowed is 6MB", "write --memory-reservation 6m or more")
		case c.Memory > 0 && c.Memory < n:
			return invalid("--memory-reservation", "", "minimum memory limit can not be less than memory reservation limit", "reserve less, or raise --memory")
		}
		set().Reservation = &n
	}
	if n := c.MemorySwappiness; n != nil {
		if *n > 100 {
			return invalid("--memory-swappiness", strconv.FormatUint(*n, 10), "valid memory swappiness range is 0-100", "write a value in the range")
		}
		if g.in.Host.CgroupV2 {
			return invalid("--memory-swappiness", strconv.FormatUint(*n, 10), "cgroup v2 has no swappiness of a container's own", "leave it out; the host's is /proc/sys/vm/swappiness")
		}
		set().Swappiness = n
	}
	if c.OomKillDisable {
		switch {
		case g.in.Host.CgroupV2:
			return invalid("--oom-kill-disable", "", "cgroup v2 cannot let a container wait for memory instead of killing in it", "leave it out")
		case c.Memory == 0:
			return invalid("--oom-kill-disable", "", "without a limit of its own the container would use up the host's memory, and nothing in it could be killed for it", "add --memory")
		}
		on := true
		set().DisableOOMKiller = &on
	}
	return nil
}

// moreCPU adds what --cpus, --cpu-shares and --cpuset-cpus do not say.
func (g *generator) moreCPU(s *runspec.Spec) error {
	c := g.c
	var cpu runspec.LinuxCPU
	if s.Linux.Resources.CPU != nil {
		cpu = *s.Linux.Resources.CPU
	}
	if c.NanoCPUs != 0 && (c.CPUPeriod != 0 || c.CPUQuota != 0) {
		return invalid("--cpus", "", "conflicting options: --cpus sets what --cpu-period and --cpu-quota set", "use one or the other")
	}
	if n := c.CPUPeriod; n != 0 {
		if n < 1000 || n > 1000000 {
			return invalid("--cpu-period", strconv.FormatInt(n, 10), "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)", "write a value in the range, in microseconds")
		}
		p := uint64(n)
		cpu.Period = &p
	}
	if n := c.CPUQuota; n != 0 {
		if n != -1 && n < 1000 {
			return invalid("--cpu-quota", strconv.FormatInt(n, 10), "CPU cfs quota can not be less than 1ms (i.e. 1000)", "write microseconds of a period (100000), or -1 for no limit")
		}
		cpu.Quota = &n
	}
	for _, x := range []struct {
		flag string
		n    int64
	}{{"--cpu-rt-period", c.CPURealtimePeriod}, {"--cpu-rt-runtime", c.CPURealtimeRuntime}} {
		if x.n < 0 {
			return invalid(x.flag, strconv.FormatInt(x.n, 10), "it is negative", "write microseconds")
		}
	}
	if c.CPURealtimeRuntime > c.CPURealtimePeriod && c.CPURealtimePeriod != 0 {
		return invalid("--cpu-rt-runtime", strconv.FormatInt(c.CPURealtimeRuntime, 10), "cpu real-time runtime cannot be higher than cpu real-time period", "write less")
	}
	if n := c.CPURealtimePeriod; n != 0 {
		p := uint64(n)
		cpu.RealtimePeriod = &p
	}
	if n := c.CPURealtimeRuntime; n != 0 {
		cpu.RealtimeRuntime = &n
	}
	if c.CpusetMems != "" {
		if err := checkCpuset(c.CpusetMems); err != nil {
			return invalid("--cpuset-mems", strconv.Quote(c.CpusetMems), "it is not a list of memory nodes such as 0-1", "write numbers and ranges")
		}
		cpu.Mems = c.CpusetMems
	}
	if cpu != (runspec.LinuxCPU{}) {
		s.Linux.Resources.CPU = &cpu
	}
	return nil
}

// blockIO: weights and rates of block devices.
func (g *generator) blockIO(s *runspec.Spec) error {
	c := g.c
	b := &runspec.LinuxBlockIO{}
	weight := func(flag, text string, w uint64) error {
		if w < 10 || w > 1000 {
			return invalid(flag, text, "range of blkio weight is from 10 to 1000", "write a value in the range")
		}
		return nil
	}
	if w := c.BlkioWeight; w != 0 {
		if err := weight("--blkio-weight", strconv.Itoa(int(w)), uint64(w)); err != nil {
			return err
		}
		b.Weight = &w
	}
	number := func(flag string, d DeviceRate) (major, minor int64, err error) {
		n, ok := g.in.Host.BlockDevices[d.Path]
		if !ok {
			return 0, 0, invalid(flag, d.Path, "it is not a block device of this host", "see: lsblk -p")
		}
		return n[0], n[1], nil
	}
	for _, d := range c.BlkioWeightDevice {
		if err := weight("--blkio-weight-device", fmt.Sprintf("%s:%d", d.Path, d.Rate), d.Rate); err != nil {
			return err
		}
		w := runspec.LinuxWeightDevice{}
		var err error
		if w.Major, w.Minor, err = number("--blkio-weight-device", d); err != nil {
			return err
		}
		n := uint16(d.Rate)
		w.Weight = &n
		b.WeightDevice = append(b.WeightDevice, w)
	}
	for _, x := range []struct {
		flag string
		list []DeviceRate
		to   *[]runspec.LinuxThrottleDevice
	}{
		{"--device-read-bps", c.DeviceReadBps, &b.ThrottleReadBpsDevice},
		{"--device-write-bps", c.DeviceWriteBps, &b.ThrottleWriteBpsDevice},
		{"--device-read-iops", c.DeviceReadIOps, &b.ThrottleReadIOPSDevice},
		{"--device-write-iops", c.DeviceWriteIOps, &b.ThrottleWriteIOPSDevice},
	} {
		for _, d := range x.list {
			t := runspec.LinuxThrottleDevice{Rate: d.Rate}
			var err error
			if t.Major, t.Minor, err = number(x.flag, d); err != nil {
				return err
			}
			*x.to = append(*x.to, t)
		}
	}
	if b.Weight != nil || len(c.BlockDevices()) > 0 {
		s.Linux.Resources.BlockIO = b
	}
	return nil
}

// deviceRules are the user's own rules of the device controller, after all others.
func (g *generator) deviceRules(s *runspec.Spec) error {
	for _, text := range g.c.DeviceRules {
		r, err := parseDeviceRule(text)
		if err != nil {
			return invalid("--device-cgroup-rule", strconv.Quote(text), err.Error(), `write "TYPE MAJOR:MINOR ACCESS", such as "c 42:* rmw"`)
		}
		if !g.c.Privileged { // everything is allowed already
			s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, r)
		}
	}
	return nil
}

// parseDeviceRule reads "TYPE MAJOR:MINOR ACCESS" (cgroup-v1/devices.rst), with * for any number.
func parseDeviceRule(text string) (r runspec.LinuxDeviceCgroup, err error) {
	f := strings.Fields(text)
	if len(f) != 3 {
		return r, fmt.Errorf("it does not have three parts")
	}
	if f[0] != "a" && f[0] != "b" && f[0] != "c" {
		return r, fmt.Errorf("the type %q is none of a, b and c", f[0])
	}
	r = runspec.LinuxDeviceCgroup{Allow: true, Type: f[0], Access: f[2]}
	if f[2] == "" || len(f[2]) > 3 || strings.Trim(f[2], "rwm") != "" {
		return r, fmt.Errorf("the access %q is not made of r, w and m", f[2])
	}
	major, minor, ok := strings.Cut(f[1], ":")
	if !ok {
		return r, fmt.Errorf("the numbers %q are not MAJOR:MINOR", f[1])
	}
	for _, x := range []struct {
		text string
		to   **int64
	}{{major, &r.Major}, {minor, &r.Minor}} {
		if x.text == "*" {
			continue
		}
		n, err := strconv.ParseInt(x.text, 10, 32)
		if err != nil || n < 0 {
			return r, fmt.Errorf("%q is neither a number nor *", x.text)
		}
		*x.to = &n
	}
	return r, nil
}
