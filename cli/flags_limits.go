package cli

import (
	"fmt"
	"path"
	"strings"

	"github.com/onggi/onggi/engine"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/network"
	"github.com/onggi/onggi/spec"
	"github.com/spf13/pflag"
)

// limitFlags are limits that run, create and update have, as they were typed.
type limitFlags struct {
	memory, memorySwap, memoryReservation, cpus, cpuShares, cpuPeriod, cpuQuota, cpuRtPeriod, cpuRtRuntime string
	cpusetCPUs, cpusetMems, pidsLimit, blkioWeight                                                         string
}

// register defines those that run and create do not define by themselves.
func (f *limitFlags) register(fs *pflag.FlagSet) {
	text := func(p *string, name, usage string) { fs.StringVar(p, name, "", usage) }
	text(&f.memoryReservation, "memory-reservation", "memory that the kernel leaves the container when it is short, in `bytes`")
	text(&f.cpuPeriod, "cpu-period", "period of --cpu-quota in `microseconds` (default 100000)")
	text(&f.cpuQuota, "cpu-quota", "processor time in each period, in `microseconds`; -1 is no limit")
	text(&f.cpuRtPeriod, "cpu-rt-period", "period of --cpu-rt-runtime in `microseconds`")
	text(&f.cpuRtRuntime, "cpu-rt-runtime", "real-time processor time in each period, in `microseconds`")
	text(&f.cpusetMems, "cpuset-mems", "use these memory `nodes` only, such as 0-1")
	text(&f.blkioWeight, "blkio-weight", "`weight` of its disk operations against other containers', 10 to 1000")
}

// registerAll also defines those that run and create define by themselves, for update.
func (f *limitFlags) registerAll(fs *pflag.FlagSet) {
	text := func(p *string, name, short, usage string) { fs.StringVarP(p, name, short, "", usage) }
	text(&f.memory, "memory", "m", "memory limit, such as 512m or 2g, in `bytes`; -1 is no limit")
	text(&f.memorySwap, "memory-swap", "", "memory and swap together, in `bytes`; -1 is unlimited swap")
	text(&f.cpus, "cpus", "", "`number` of processors, such as 0.5; 0 is no limit")
	text(&f.cpuShares, "cpu-shares", "c", "`weight` against other containers, 2 to 262144")
	text(&f.cpusetCPUs, "cpuset-cpus", "", "run on these `processors` only, such as 0-3,6")
	text(&f.pidsLimit, "pids-limit", "", "`number` of processes and threads; -1 is no limit")
	f.register(fs)
}

// numbers reads a list of flags whose values are whole numbers.
func numbers(list []numberFlag, given func(string) bool) error {
	for _, x := range list {
		if !given(x.flag) {
			continue
		}
		n, err := parseInt(x.value, x.min, x.max)
		if err != nil {
			return reading("--"+x.flag, x.value, err)
		}
		*x.to = n
	}
	return nil
}

type numberFlag struct {
	flag, value string
	min, max    int64
	to          *int64
}

// moreFlags are the flags of run and create that few containers need.
type moreFlags struct {
	limitFlags
	swappiness, pid, ipc, uts, cgroupns, userns, cgroupParent, domainname string
	weightDevice, readBps, writeBps, readIOps, writeIOps, deviceRule      []string
	annotation, labelFile, expose                                         []string
	publishAll, oomKillDisable, contentTrust                              bool
	isolation                                                             string
}

func (f *moreFlags) register(fs *pflag.FlagSet) {
	text := func(p *string, name, usage string) { fs.StringVar(p, name, "", usage) }
	list := func(p *[]string, name, usage string) { fs.StringArrayVar(p, name, nil, usage) }
	f.limitFlags.register(fs)
	text(&f.swappiness, "memory-swappiness", "how readily the container's memory is swapped out, 0 to 100, in `percent` (cgroup v1)")
	fs.BoolVar(&f.oomKillDisable, "oom-kill-disable", false, "let the container wait when its memory limit is reached (cgroup v1)")
	list(&f.weightDevice, "blkio-weight-device", "weight of one disk, `path:weight`")
	list(&f.readBps, "device-read-bps", "limit the reading from a disk, `path:bytes` a second")
	list(&f.writeBps, "device-write-bps", "limit the writing to a disk, `path:bytes` a second")
	list(&f.readIOps, "device-read-iops", "limit the reading from a disk, `path:operations` a second")
	list(&f.writeIOps, "device-write-iops", "limit the writing to a disk, `path:operations` a second")
	list(&f.deviceRule, "device-cgroup-rule", "allow devices by a `rule` such as \"c 42:* rmw\"")
	text(&f.cgroupParent, "cgroup-parent", "make the container's control group below this `path` (default /onggi)")
	text(&f.pid, "pid", "processes to see: host, or container:NAME, as `mode`")
	text(&f.ipc, "ipc", "shared memory and message queues: private, none or host, as `mode`")
	text(&f.uts, "uts", "host name: host, as `mode`")
	text(&f.cgroupns, "cgroupns", "control groups to see: private or host, as `mode` (default private on cgroup v2)")
	text(&f.userns, "userns", "user namespace: host, as `mode`")
	text(&f.domainname, "domainname", "NIS domain `name` inside the container")
	list(&f.annotation, "annotation", "annotate the OCI specification with `KEY=VALUE`")
	list(&f.labelFile, "label-file", "read labels from a `file`, one KEY=VALUE a line")
	list(&f.expose, "expose", "name a `port[/protocol]` that the container serves, for -P")
	fs.BoolVarP(&f.publishAll, "publish-all", "P", false, "publish all ports that the image or --expose names, each on a free port of this host")
	fs.BoolVar(&f.contentTrust, "disable-content-trust", true, "")
	text(&f.isolation, "isolation", "")
	for _, n := range []string{"disable-content-trust", "isolation"} { // they may be given, and say what is so
		fs.Lookup(n).Hidden = true
	}
	refuse(fs, runRefused())
}

// refusal is a flag of docker's that is known and not honoured.
type refusal struct{ flag, why, fix string }

// runRefused are the flags of docker run that are refused, and why.
func runRefused() []refusal {
	const windows = "it is about containers of Windows"
	return []refusal{
		{"cpu-count", windows, "use --cpus"},
		{"cpu-percent", windows, "use --cpus"},
		{"io-maxbandwidth", windows, "use --device-read-bps and --device-write-bps"},
		{"io-maxiops", windows, "use --device-read-iops and --device-write-iops"},
		{"kernel-memory", "the kernel has no such limit since 5.16, and cgroup v2 never had", "use --memory, which counts the kernel's memory too"},
		{"gpus", "there is no hook into vendors' GPU tools", "give its devices: --device /dev/nvidia0 ..., and its libraries by -v"},
		{"storage-opt", "a writable layer has no size limit of its own", "limit the store: onggi system limits --quota SIZE"},
		{"use-api-socket", "there is no API socket without a daemon", "leave it out"},
	}
}

// refuse defines flags whose use is an error that says why.
func refuse(fs *pflag.FlagSet, list []refusal) {
	for _, r := range list {
		fs.Var(refusedValue(r), r.flag, "")
		fs.Lookup(r.flag).Hidden = true
		fs.Lookup(r.flag).NoOptDefVal = " " // also without a value
	}
}

// refusedValue is a flag's value that cannot be set.
type refusedValue refusal

func (refusedValue) String() string { return "" }
func (refusedValue) Type() string   { return "value" }
func (r refusedValue) Set(string) error {
	return &errdefs.Error{Op: "use", What: "--" + r.flag, Kind: errdefs.Unsupported, Why: r.why, Fix: r.fix}
}

// into reads the flags into a configuration.
func (f *moreFlags) into(c *engine.Config, given func(string) bool) error {
	if err := f.limits(&c.Config, given); err != nil {
		return err
	}
	for _, x := range []struct {
		flag, value string
		allowed     []string
		to          *string
	}{
		{"pid", f.pid, []string{"host", "private", "container:*"}, &c.Pid},
		{"ipc", f.ipc, []string{"private", "none", "host"}, &c.IPC},
		{"uts", f.uts, []string{"host", "private"}, &c.UTS},
		{"cgroupns", f.cgroupns, []string{"private", "host"}, &c.CgroupNS},
		{"userns", f.userns, []string{"host"}, nil},
		{"isolation", f.isolation, []string{"default"}, nil},
	} {
		if x.value == "" {
			continue
		}
		ok := false
		for _, a := range x.allowed {
			prefix, any := strings.CutSuffix(a, "*")
			ok = ok || x.value == a || any && strings.HasPrefix(x.value, prefix) && len(x.value) > len(prefix)
		}
		if !ok {
			why := "there is no such mode"
			switch {
			case x.flag == "ipc" && (x.value == "shareable" || strings.HasPrefix(x.value, "container:")):
				why = "the shared memory of a container is in its own mounts, which no other container is let into"
			case x.flag == "userns":
				why = "a container of root's has the host's users; a user namespace of its own is not made yet"
			}
			return reading("--"+x.flag, x.value, &errdefs.Error{Why: why, Fix: "use one of: " + strings.Join(x.allowed, ", ")})
		}
		if x.to != nil {
			*x.to = x.value
		}
	}
	if given("disable-content-trust") && !f.contentTrust {
		return reading("--disable-content-trust", "false", &errdefs.Error{Why: "docker's content trust (notary) is not honoured", Fix: "have signatures checked by the policy: onggi image verify"})
	}
	c.CgroupParent, c.Domainname, c.PublishAll = f.cgroupParent, f.domainname, f.publishAll
	for _, name := range f.labelFile {
		b, err := readBounded("--label-file", name)
		if err != nil {
			return &exit{125, err}
		}
		labels, err := parseEnvFile(b, func(string) (string, bool) { return "", true })
		if err != nil {
			return reading("--label-file", name, err)
		}
		for _, kv := range labels {
			k, v, _ := strings.Cut(kv, "=")
			if c.Labels == nil {
				c.Labels = map[string]string{}
			}
			if _, own := c.Labels[k]; !own { // what is said by --label wins
				c.Labels[k] = v
			}
		}
	}
	for _, s := range f.annotation {
		k, v, err := parseKeyValue(s, true)
		if err != nil {
			return reading("--annotation", s, err)
		}
		if c.Annotations == nil {
			c.Annotations = map[string]string{}
		}
		c.Annotations[k] = v
	}
	for _, s := range f.expose {
		if _, err := network.ParsePort(s); err != nil || strings.Contains(s, ":") {
			return reading("--expose", s, &errdefs.Error{Why: "it is not a port", Fix: "write 80, 53/udp or 8000-8010"})
		}
		c.Expose = append(c.Expose, s)
	}
	return nil
}

func (f *moreFlags) limits(c *spec.Config, given func(string) bool) error {
	if f.memoryReservation != "" {
		n, err := parseSize(f.memoryReservation)
		if err != nil {
			return reading("--memory-reservation", f.memoryReservation, err)
		}
		c.MemoryReservation = n
	}
	var swappiness, weight int64
	if err := numbers([]numberFlag{
		{"cpu-period", f.cpuPeriod, 1000, 1000000, &c.CPUPeriod},
		{"cpu-quota", f.cpuQuota, -1, 1 << 40, &c.CPUQuota},
		{"cpu-rt-period", f.cpuRtPeriod, 1, 1 << 40, &c.CPURealtimePeriod},
		{"cpu-rt-runtime", f.cpuRtRuntime, 0, 1 << 40, &c.CPURealtimeRuntime},
		{"memory-swappiness", f.swappiness, -1, 100, &swappiness},
		{"blkio-weight", f.blkioWeight, 0, 1000, &weight},
	}, given); err != nil {
		return err
	}
	if given("memory-swappiness") && swappiness >= 0 { // -1 is docker's default: the host's
		n := uint64(swappiness)
		c.MemorySwappiness = &n
	}
	c.BlkioWeight, c.OomKillDisable = uint16(weight), f.oomKillDisable
	if f.cpusetMems != "" {
		if err := parseCPUSet(f.cpusetMems); err != nil {
			return reading("--cpuset-mems", f.cpusetMems, errorText("a set of memory nodes is a list of numbers and ranges"))
		}
		c.CpusetMems = f.cpusetMems
	}
	for _, x := range []struct {
		flag string
		list []string
		size bool
		to   *[]spec.DeviceRate
	}{
		{"--blkio-weight-device", f.weightDevice, false, &c.BlkioWeightDevice},
		{"--device-read-bps", f.readBps, true, &c.DeviceReadBps},
		{"--device-write-bps", f.writeBps, true, &c.DeviceWriteBps},
		{"--device-read-iops", f.readIOps, false, &c.DeviceReadIOps},
		{"--device-write-iops", f.writeIOps, false, &c.DeviceWriteIOps},
	} {
		for _, s := range x.list {
			d, err := parseDeviceRate(s, x.size)
			if err != nil {
				return reading(x.flag, s, err)
			}
			*x.to = append(*x.to, d)
		}
	}
	c.DeviceRules = f.deviceRule
	return nil
}

// parseDeviceRate reads PATH:RATE; size says whether the rate is bytes, with units.
func parseDeviceRate(s string, size bool) (d spec.DeviceRate, err error) {
	at := strings.LastIndexByte(s, ':')
	if at < 0 {
		return d, fmt.Errorf("it is written PATH:RATE")
	}
	d.Path = s[:at]
	if !path.IsAbs(d.Path) || strings.ContainsRune(d.Path, 0) {
		return d, fmt.Errorf("the path %q is not absolute", d.Path)
	}
	d.Path = path.Clean(d.Path)
	var n int64
	if size {
		n, err = parseSize(s[at+1:])
	} else {
		n, err = parseInt(s[at+1:], 1, 1<<62)
	}
	d.Rate = uint64(n)
	return d, err
}
