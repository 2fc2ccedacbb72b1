package spec

import (
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
)

func TestLimits(t *testing.T) {
	many := uint64(10)
	too := uint64(101)
	disk := []DeviceRate{{"/dev/disk", 1000}}
	for name, c := range map[string]struct {
		c    Config
		v2   bool
		want func(*runspec.LinuxResources) bool
		err  string
	}{
		"reservation":         {c: Config{Memory: 64 << 20, Limits: Limits{MemoryReservation: 32 << 20}}, want: func(r *runspec.LinuxResources) bool { return *r.Memory.Reservation == 32<<20 }},
		"reservation alone":   {c: Config{Limits: Limits{MemoryReservation: 32 << 20}}, want: func(r *runspec.LinuxResources) bool { return *r.Memory.Reservation == 32<<20 && r.Memory.Limit == nil }},
		"reservation above":   {c: Config{Memory: 16 << 20, Limits: Limits{MemoryReservation: 32 << 20}}, err: "less than memory reservation"},
		"reservation small":   {c: Config{Limits: Limits{MemoryReservation: 1}}, err: "6MB"},
		"swappiness":          {c: Config{Limits: Limits{MemorySwappiness: &many}}, want: func(r *runspec.LinuxResources) bool { return *r.Memory.Swappiness == 10 }},
		"swappiness on v2":    {c: Config{Limits: Limits{MemorySwappiness: &many}}, v2: true, err: "cgroup v2"},
		"swappiness too much": {c: Config{Limits: Limits{MemorySwappiness: &too}}, err: "0-100"},
		"oom":                 {c: Config{Memory: 64 << 20, Limits: Limits{OomKillDisable: true}}, want: func(r *runspec.LinuxResources) bool { return *r.Memory.DisableOOMKiller }},
		"oom without limit":   {c: Config{Limits: Limits{OomKillDisable: true}}, err: "without a limit"},
		"oom on v2":           {c: Config{Memory: 64 << 20, Limits: Limits{OomKillDisable: true}}, v2: true, err: "cgroup v2"},
		"quota":               {c: Config{Limits: Limits{CPUPeriod: 50000, CPUQuota: 25000}}, want: func(r *runspec.LinuxResources) bool { return *r.CPU.Period == 50000 && *r.CPU.Quota == 25000 }},
		"no quota":            {c: Config{Limits: Limits{CPUQuota: -1}}, want: func(r *runspec.LinuxResources) bool { return *r.CPU.Quota == -1 }},
		"quota and cpus":      {c: Config{NanoCPUs: 1e9, Limits: Limits{CPUQuota: 25000}}, err: "conflicting"},
		"period":              {c: Config{Limits: Limits{CPUPeriod: 999}}, err: "1ms"},
		"small quota":         {c: Config{Limits: Limits{CPUQuota: 5}}, err: "1ms"},
		"realtime":            {c: Config{Limits: Limits{CPURealtimePeriod: 100, CPURealtimeRuntime: 200}}, err: "higher"},
		"mems":                {c: Config{CpusetCpus: "0", Limits: Limits{CpusetMems: "0"}}, want: func(r *runspec.LinuxResources) bool { return r.CPU.Mems == "0" && r.CPU.Cpus == "0" }},
		"bad mems":            {c: Config{Limits: Limits{CpusetMems: "x"}}, err: "--cpuset-mems"},
		"weight":              {c: Config{Limits: Limits{BlkioWeight: 300}}, want: func(r *runspec.LinuxResources) bool { return *r.BlockIO.Weight == 300 }},
		"bad weight":          {c: Config{Limits: Limits{BlkioWeight: 5}}, err: "10 to 1000"},
		"rates": {c: Config{Limits: Limits{BlkioWeightDevice: disk, DeviceReadBps: disk, DeviceWriteBps: disk, DeviceReadIOps: disk, DeviceWriteIOps: disk}}, want: func(r *runspec.LinuxResources) bool {
			b := r.BlockIO
			return b.Weight == nil && *b.WeightDevice[0].Weight == 1000 && b.ThrottleReadBpsDevice[0].Major == 8 && b.ThrottleWriteBpsDevice[0].Minor == 1 &&
				b.ThrottleReadIOPSDevice[0].Rate == 1000 && len(b.ThrottleWriteIOPSDevice) == 1
		}},
		"no disk": {c: Config{Limits: Limits{DeviceReadBps: []DeviceRate{{"/dev/none", 1}}}}, err: "not a block device"},
		"rule": {c: Config{Limits: Limits{DeviceRules: []string{"c 42:* rmw"}}}, want: func(r *runspec.LinuxResources) bool {
			d := r.Devices[1]
			return d.Allow && *d.Major == 42 && d.Minor == nil && d.Access == "rmw"
		}},
		"bad rule":   {c: Config{Limits: Limits{DeviceRules: []string{"c 42 rmw"}}}, err: "MAJOR:MINOR"},
		"bad rule 2": {c: Config{Limits: Limits{DeviceRules: []string{"x 4:2 r"}}}, err: "type"},
		"bad rule 3": {c: Config{Limits: Limits{DeviceRules: []string{"c 4:2 x"}}}, err: "access"},
	} {
		s, _, err := Generate(Input{
			ID: strings.Repeat("0", 64), Image: &ocispec.Image{Config: ocispec.ImageConfig{Cmd: []string{"x"}}}, Config: &c.c, RootPath: "r", CgroupsPath: "/x",
			Host: Host{CgroupV2: c.v2, CPUs: 4, BlockDevices: map[string][2]int64{"/dev/disk": {8, 1}}},
		})
		switch {
		case c.err != "":
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v, want an error with %q", name, err, c.err)
			}
		case err != nil:
			t.Errorf("%s: %v", name, err)
		case !c.want(s.Linux.Resources):
			t.Errorf("%s: got %+v", name, s.Linux.Resources)
		}
	}
}

func TestNamespacesOfTheHost(t *testing.T) {
	for name, c := range map[string]struct {
		c    Config
		v2   bool
		lack runspec.LinuxNamespaceType
		err  string
	}{
		"pid":            {c: Config{Pid: "host"}, lack: runspec.PIDNamespace},
		"uts":            {c: Config{UTS: "host"}, lack: runspec.UTSNamespace},
		"ipc":            {c: Config{IPC: "host"}, lack: runspec.IPCNamespace},
		"cgroup":         {c: Config{CgroupNS: "host"}, v2: true, lack: runspec.CgroupNamespace},
		"uts and name":   {c: Config{UTS: "host", Hostname: "x"}, err: "--hostname"},
		"uts and domain": {c: Config{UTS: "host", Domainname: "x"}, err: "--domainname"},
		"ipc and sysctl": {c: Config{IPC: "host", Sysctls: map[string]string{"kernel.shmmax": "1"}}, err: "IPC"},
		"cgroup on v1":   {c: Config{CgroupNS: "private"}, err: "cgroup v2"},
		"nonsense":       {c: Config{Pid: "nonsense"}, err: "--pid"},
	} {
		s, _, err := Generate(Input{
			ID: strings.Repeat("0", 64), Image: &ocispec.Image{Config: ocispec.ImageConfig{Cmd: []string{"x"}}}, Config: &c.c, RootPath: "r", CgroupsPath: "/x",
			Host: Host{CgroupV2: c.v2, CPUs: 4, Hostname: "here"},
		})
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v, want an error with %q", name, err, c.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, n := range s.Linux.Namespaces {
			if n.Type == c.lack {
				t.Errorf("%s: it has the namespace %s", name, n.Type)
			}
		}
		if c.c.UTS == "host" && s.Hostname != "" {
			t.Errorf("%s: hostname %q in the host's namespace", name, s.Hostname)
		}
	}
}
