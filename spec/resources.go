package spec

import (
	"fmt"
	"math"
	"path"
	"slices"
	"sort"
	"strconv"
	"strings"

	runspec "github.com/opencontainers/runtime-spec/specs-go"
)

// minMemory is docker's smallest memory limit, bytes: below it not even a runtime's init fits.
const minMemory = 6 << 20

func (g *generator) memory(s *runspec.Spec) error {
	mem, swap := g.c.Memory, g.c.MemorySwap
	switch {
	case mem < 0 || mem > 0 && mem < minMemory:
		return invalid("--memory", strconv.FormatInt(mem, 10), "minimum memory limit allowed is 6MB", "write --memory 6m or more")
	case swap < -1:
		return invalid("--memory-swap", strconv.FormatInt(swap, 10), "it is neither a size nor -1 (unlimited)", "write -1 or a size")
	case swap > 0 && mem == 0:
		return invalid("--memory-swap", "", "you should always set the memory limit when using a memory-swap limit", "add --memory")
	case swap > 0 && swap < mem:
		return invalid("--memory-swap", "", "minimum memory-swap limit should be larger than the memory limit: it is memory and swap together",
			"write a larger value, or -1 for unlimited swap")
	}
	if mem == 0 {
		return nil
	}
	asked := swap != 0
	if !asked {
		swap = 2 * mem // docker's default: as much swap as memory
		if swap < 0 {
			swap = -1
		}
	}
	s.Linux.Resources.Memory = &runspec.LinuxMemory{Limit: &mem}
	switch {
	case g.in.Host.SwapLimit:
		s.Linux.Resources.Memory.Swap = &swap
	case asked && swap > 0:
		g.warn("--memory-swap: this kernel does not limit swap (boot it with swapaccount=1); memory is limited without swap")
	}
	return nil
}

// cpuPeriod is the accounting period behind --cpus, microseconds.
const cpuPeriod = 100000

func (g *generator) cpu(s *runspec.Spec) error {
	var c runspec.LinuxCPU
	if n := g.c.NanoCPUs; n != 0 {
		if n < 1e7 || g.in.Host.CPUs > 0 && n > int64(g.in.Host.CPUs)*1e9 {
			return invalid("--cpus", strconv.FormatFloat(float64(n)/1e9, 'f', -1, 64),
				fmt.Sprintf("range of CPUs is from 0.01 to %d.00, as there are only %d CPUs available", g.in.Host.CPUs, g.in.Host.CPUs),
				"write a value in the range")
		}
		period, quota := uint64(cpuPeriod), n/1e4 // 1e9 ns of one CPU = 100000 us
		c.Period, c.Quota = &period, &quota
	}
	if n := g.c.CPUShares; n != 0 {
		if n < 2 || n > 262144 {
			return invalid("--cpu-shares", strconv.FormatUint(n, 10), "the kernel's range is 2 to 262144", "write a value in the range")
		}
		c.Shares = &n
	}
	if l := g.c.CpusetCpus; l != "" {
		if err := checkCpuset(l); err != nil {
			return err
		}
		c.Cpus = l
	}
	if c != (runspec.LinuxCPU{}) {
		s.Linux.Resources.CPU = &c
	}
	return nil
}

// checkCpuset checks the kernel's list format: "0-3,5".
func checkCpuset(l string) error {
	bad := invalid("--cpuset-cpus", strconv.Quote(l), "it is not a list of CPUs such as 0-3,5", "write numbers and ranges")
	for _, part := range strings.Split(l, ",") {
		lo, hi, ranged := strings.Cut(part, "-")
		a, err := strconv.ParseUint(lo, 10, 16)
		if err != nil {
			return bad
		}
		if ranged {
			if b, err := strconv.ParseUint(hi, 10, 16); err != nil || b < a {
				return bad
			}
		}
	}
	return nil
}

func (g *generator) pids(s *runspec.Spec) error {
	switch n := g.c.PidsLimit; {
	case n < -1:
		return invalid("--pids-limit", strconv.FormatInt(n, 10), "it is neither a number nor -1 (unlimited)", "write -1 or a number")
	case n > 0:
		s.Linux.Resources.Pids = &runspec.LinuxPids{Limit: &n}
	}
	return nil
}

var rlimitNames = []string{
	"core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack",
	"as",
}

// rlimits: a hard limit above this process's own needs CAP_SYS_RESOURCE, which nested hosts do not have; such limits
// are clamped with a warning. What the user does not set is inherited.
func (g *generator) rlimits(s *runspec.Spec) error {
	seen := map[string]bool{}
	for _, u := range g.c.Ulimits {
		text := fmt.Sprintf("%s=%d:%d", u.Name, u.Soft, u.Hard)
		if !slices.Contains(rlimitNames, u.Name) {
			return invalid("--ulimit", text, "there is no limit of this name", "use one of: "+strings.Join(rlimitNames, ", "))
		}
		if u.Soft < -1 || u.Hard < -1 {
			return invalid("--ulimit", text, "a limit is neither a number nor -1 (unlimited)", "write NAME=SOFT[:HARD]")
		}
		soft, hard := unlimited(u.Soft), unlimited(u.Hard)
		if soft > hard {
			return invalid("--ulimit", text, "ulimit soft limit must be less than or equal to hard limit", "write NAME=SOFT[:HARD]")
		}
		name := "RLIMIT_" + strings.ToUpper(u.Name)
		if seen[name] {
			return invalid("--ulimit", text, "the limit is given twice", "give it once")
		}
		seen[name] = true
		if own, ok := g.in.Host.Rlimits[name]; ok && hard > own[1] && !g.in.Host.CanRaise {
			g.warn("--ulimit %s: this process may not raise the hard limit above its own %s; clamped to it", text, limitText(own[1]))
			hard = own[1]
			soft = min(soft, hard)
		}
		s.Process.Rlimits = append(s.Process.Rlimits, runspec.POSIXRlimit{Type: name, Soft: soft, Hard: hard})
	}
	sort.Slice(s.Process.Rlimits, func(i, j int) bool { return s.Process.Rlimits[i].Type < s.Process.Rlimits[j].Type })
	return nil
}

func unlimited(n int64) uint64 {
	if n < 0 {
		return math.MaxUint64
	}
	return uint64(n)
}

func limitText(n uint64) string {
	if n == math.MaxUint64 {
		return "unlimited"
	}
	return strconv.FormatUint(n, 10)
}

// oomScore: lowering it below this process's own needs CAP_SYS_RESOURCE.
func (g *generator) oomScore(s *runspec.Spec) error {
	if g.c.OomScoreAdj == nil {
		return nil
	}
	n := *g.c.OomScoreAdj
	if n < -1000 || n > 1000 {
		return invalid("--oom-score-adj", strconv.Itoa(n), "the range is -1000 to 1000", "write a value in the range")
	}
	if own := g.in.Host.OomScoreAdj; n < own && !g.in.Host.CanRaise {
		g.warn("--oom-score-adj %d: this process may not go below its own %d; clamped to it", n, own)
		n = own
	}
	s.Process.OOMScoreAdj = &n
	return nil
}

var ipcSysctls = []string{
	"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced",
}

// sysctls: only those that the kernel keeps per namespace; anything else would change the host. With a network of its
// own a container may bind low ports and send pings without privilege, as docker's may.
func (g *generator) sysctls(s *runspec.Spec) error {
	private := g.c.Network != "host" && !strings.HasPrefix(g.c.Network, "container:")
	all := map[string]string{}
	if private {
		all["net.ipv4.ip_unprivileged_port_start"] = "0"
		all["net.ipv4.ping_group_range"] = "0 2147483647"
	}
	if d := g.c.Domainname; d != "" {
		if len(d) > 64 || strings.Trim(d, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._") != "" {
			return invalid("--domainname", strconv.Quote(d), "a domain name has letters, digits, '-', '_' and '.', and at most 64 of them", "choose another name")
		}
		all["kernel.domainname"] = d
	}
	for k, v := range g.c.Sysctls {
		flag := k + "=" + v
		for _, part := range strings.Split(k, ".") {
			// The name becomes a path below /proc/sys.
			if part == "" || strings.Trim(part, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-@:") != "" {
				return invalid("--sysctl", strconv.Quote(flag), "it is not a dotted name of letters, digits, '-' and '_'", "write NAME=VALUE")
			}
		}
		if strings.ContainsAny(v, "\x00") {
			return invalid("--sysctl", strconv.Quote(flag), "the value has a NUL byte", "remove it")
		}
		switch {
		case strings.HasPrefix(k, "net."):
			if !private {
				return invalid("--sysctl", flag, "not allowed in the host's network namespace, nor in that of another container", "drop it, or use a network of its own")
			}
		case k == "kernel.domainname":
			if g.c.UTS == "host" {
				return invalid("--sysctl", flag, "not allowed in the host's UTS namespace", "drop it, or do not use --uts host")
			}
		case slices.Contains(ipcSysctls, k), strings.HasPrefix(k, "fs.mqueue."):
			if g.c.IPC == "host" {
				return invalid("--sysctl", flag, "not allowed in the host's IPC namespace", "drop it, or do not use --ipc host")
			}
		case k == "kernel.hostname":
			return invalid("--sysctl", flag, "the host name has a flag of its own", "use --hostname")
		default:
			return invalid("--sysctl", flag, "it is not kept per namespace: it would change the host",
				"use one of net.*, fs.mqueue.*, kernel.domainname, "+strings.Join(ipcSysctls, ", "))
		}
		all[k] = v
	}
	if len(all) > 0 {
		s.Linux.Sysctl = all
	}
	return nil
}

// devices: nothing but what the runtime always allows (null, zero, full, random, urandom, tty, ptmx, pts), and the
// user's. Privileged: all.
func (g *generator) devices(s *runspec.Spec) error {
	r := s.Linux.Resources
	if g.c.Privileged {
		r.Devices = []runspec.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
		paths := make([]string, 0, len(g.in.Host.Devices))
		for p := range g.in.Host.Devices {
			paths = append(paths, p)
		}
		sort.Strings(paths)
		for _, p := range paths {
			d := g.in.Host.Devices[p]
			d.Path = p
			s.Linux.Devices = append(s.Linux.Devices, d)
		}
	} else {
		r.Devices = []runspec.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	}
	for _, d := range g.c.Devices {
		if err := g.device(s, d); err != nil {
			return err
		}
	}
	return nil
}

func (g *generator) device(s *runspec.Spec, d Device) error {
	text := d.Host + ":" + d.Container + ":" + d.Access
	access := d.Access
	if access == "" {
		access = "rwm"
	}
	if strings.Trim(access, "rwm") != "" {
		return invalid("--device", text, "the access is not made of r, w and m", "write HOST[:CONTAINER[:rwm]]")
	}
	target := d.Container
	if target == "" {
		target = d.Host
	}
	if !strings.HasPrefix(target, "/") || path.Clean(target) == "/" {
		return invalid("--device", text, "the path in the container is not absolute", "write HOST[:CONTAINER[:rwm]]")
	}
	host := path.Clean(d.Host)
	var found []string
	for p := range g.in.Host.Devices {
		if p == host || strings.HasPrefix(p, host+"/") {
			found = append(found, p)
		}
	}
	if len(found) == 0 {
		return invalid("--device", text, "the host has no device there", "see: ls -l "+host)
	}
	sort.Strings(found)
	for _, p := range found {
		dev := g.in.Host.Devices[p]
		dev.Path = path.Clean(target) + strings.TrimPrefix(p, host)
		at := slices.IndexFunc(s.Linux.Devices, func(o runspec.LinuxDevice) bool { return o.Path == dev.Path })
		if at >= 0 {
			s.Linux.Devices[at] = dev
		} else {
			s.Linux.Devices = append(s.Linux.Devices, dev)
		}
		if !g.c.Privileged {
			major, minor := dev.Major, dev.Minor
			s.Linux.Resources.Devices = append(s.Linux.Resources.Devices,
				runspec.LinuxDeviceCgroup{Allow: true, Type: dev.Type, Major: &major, Minor: &minor, Access: access})
		}
	}
	return nil
}
