package plan

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/mount"
	"github.com/onggi/onggi/sys"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
)

var update = flag.Bool("update", false, "write the golden files anew")

func spec() *runspec.Spec {
	caps := []string{"CAP_KILL", "CAP_NET_BIND_SERVICE"}
	return &runspec.Spec{
		Version: "1.2.0",
		Process: &runspec.Process{
			Args: []string{"true"}, Cwd: "/", NoNewPrivileges: true, Env: []string{"PATH=/bin:/sbin", "HOME=/"},
			Capabilities: &runspec.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
			Rlimits:      []runspec.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1024, Soft: 1024}},
		},
		Root:     &runspec.Root{Path: "rootfs", Readonly: true},
		Hostname: "h",
		Mounts: []runspec.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666"}},
			{Destination: "/etc/hosts", Type: "bind", Source: "/run/hosts", Options: []string{"rbind", "ro", "rprivate"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		},
		Linux: &runspec.Linux{
			Namespaces:  []runspec.LinuxNamespace{{Type: "pid"}, {Type: "network"}, {Type: "ipc"}, {Type: "uts"}, {Type: "mount"}, {Type: "cgroup"}},
			MaskedPaths: []string{"/proc/kcore"}, ReadonlyPaths: []string{"/proc/sys"},
		},
	}
}

func input(s *runspec.Spec) *Input {
	return &Input{
		Spec: s, ID: "id", Root: "/b/rootfs", Bundle: "/b",
		Facts: Facts{Kernel: [2]int{6, 12}, Held: 1<<41 - 1, LastCap: 40, CgroupV2: true, NotDirectory: map[string]bool{"/run/hosts": true}},
		Fds:   Fds{Report: 3, Control: 4, Gate: 5, Console: 6},
	}
}

func v1(in *Input) *Input {
	in.Facts.CgroupV2 = false
	in.Facts.CgroupNames = map[string]string{"cpu": "/sys/fs/cgroup/cpu,cpuacct", "cpuacct": "/sys/fs/cgroup/cpu,cpuacct", "name=systemd": "/sys/fs/cgroup/systemd"}
	in.Facts.CgroupDirs = map[string]string{"/sys/fs/cgroup/cpu,cpuacct": "/sys/fs/cgroup/cpu,cpuacct/x", "/sys/fs/cgroup/systemd": "/sys/fs/cgroup/systemd/x"}
	in.Fds.Tasks = []int{7, 8}
	return in
}

func inUser(in *Input) *Input {
	in.Spec.Linux.Namespaces = append(in.Spec.Linux.Namespaces, runspec.LinuxNamespace{Type: "user"})
	m := []runspec.LinuxIDMapping{{HostID: 100000, Size: 1000}}
	in.Spec.Linux.UIDMappings, in.Spec.Linux.GIDMappings = m, m
	return in
}

// TestGolden shows every operation of some plans. Read the difference before you write it anew (-update).
func TestGolden(t *testing.T) {
	terminal := spec()
	terminal.Process.Terminal = true
	layers := input(spec())
	layers.Rootfs = []mount.Mount{{Type: "overlay", Overlay: &mount.Overlay{Lower: []string{"/l/b", "/l/a"}, Upper: "/u", Work: "/w", Volatile: true}}}
	old := input(spec())
	old.Rootfs, old.Facts.Kernel = layers.Rootfs, [2]int{6, 1}
	reaper := input(spec())
	reaper.Init = true
	labels := input(spec())
	labels.Spec.Process.ApparmorProfile, labels.Spec.Process.SelinuxLabel, labels.Spec.Linux.MountLabel = "profile", "a:b:c:s0:c1,c2", "a:b:d:s0:c1,c2"
	labels.Spec.Mounts = append(labels.Spec.Mounts, runspec.Mount{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue"},
		runspec.Mount{Destination: "/old", Type: "tmpfs", Source: "tmpfs", Options: []string{"iversion"}})
	labels.Facts.AppArmor, labels.Facts.SELinux = true, true
	for name, in := range map[string]*Input{
		"labels": labels, "default-v2": input(spec()), "default-v1": v1(input(spec())), "user": inUser(input(spec())),
		"terminal": input(terminal), "overlay": layers, "overlay-6.1": old, "init": reaper,
	} {
		p, err := Build(in)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		check(t, p)
		var got bytes.Buffer
		if err := p.Print(&got); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join("testdata", name+".txt")
		if *update {
			if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Bytes(), want) {
			a, b := strings.Split(got.String(), "\n"), strings.Split(string(want), "\n")
			for i := range min(len(a), len(b)) {
				if a[i] != b[i] {
					t.Errorf("%s, operation %d:\n got %s\nwant %s", name, i, a[i], b[i])
					break
				}
			}
			if len(a) != len(b) {
				t.Errorf("%s: got %d operations, want %d", name, len(a), len(b))
			}
		}
	}
}

// check holds what is true of every plan.
func check(t testing.TB, p *Plan) {
	t.Helper()
	end := uint64(sys.OpsBase + len(p.Ops)*sys.OpSize)
	inside := func(a uint64) bool {
		return a >= sys.DataBase && a < sys.DataBase+uint64(len(p.Data)) || a >= sys.CellBase && a < sys.CellBase+uint64(p.Cells)
	}
	for i := range p.Ops {
		o := &p.Ops[i]
		name := p.Names[i].String()
		if o.Target != 0 && (o.Target < sys.OpsBase || o.Target >= end || (o.Target-sys.OpsBase)%sys.OpSize != 0) {
			t.Fatalf("operation %d (%s) jumps out of the plan", i, name)
		}
		if o.NR == sys.OpJump && o.Target == 0 {
			t.Fatalf("operation %d (%s) jumps nowhere", i, name)
		}
		if o.Dst != 0 && !inside(o.Dst) || o.ErrDst != 0 && !inside(o.ErrDst) {
			t.Fatalf("operation %d (%s) stores outside of the data", i, name)
		}
		for a := range 6 {
			if k := p.kinds[i] >> (4 * a) & 0xf; k != isValue && !inside(o.Args[a]) {
				t.Fatalf("operation %d (%s): argument %d points outside of the data", i, name, a)
			}
			if o.Ind>>a&1 == 1 && o.Args[a]+8 > sys.CellBase+uint64(p.Cells) && o.Args[a] >= sys.CellBase {
				t.Fatalf("operation %d (%s): argument %d reads past the cells", i, name, a)
			}
		}
		if strings.HasPrefix(callName(o.NR), "syscall") {
			t.Fatalf("operation %d (%s): system call %d has no name", i, name, o.NR)
		}
	}
	last := p.Names[len(p.Names)-1].Verb
	if last != "execute" {
		t.Fatalf("the plan ends with %q: the interpreter would run past it", last)
	}
}

func TestWhatIsNotHonouredIsRefusedByName(t *testing.T) {
	n := 2000
	for field, change := range map[string]func(*runspec.Spec){
		"process":                  func(s *runspec.Spec) { s.Process = nil },
		"root":                     func(s *runspec.Spec) { s.Root = nil },
		"linux":                    func(s *runspec.Spec) { s.Linux = nil },
		"ociVersion":               func(s *runspec.Spec) { s.Version = "2.0.0" },
		"process.args":             func(s *runspec.Spec) { s.Process.Args = nil },
		"process.cwd":              func(s *runspec.Spec) { s.Process.Cwd = "rel" },
		"process.apparmorProfile":  func(s *runspec.Spec) { s.Process.ApparmorProfile = "x" },
		"process.selinuxLabel":     func(s *runspec.Spec) { s.Process.SelinuxLabel = "x" },
		"process.scheduler.policy": func(s *runspec.Spec) { s.Process.Scheduler = &runspec.Scheduler{} },
		"process.scheduler.nice": func(s *runspec.Spec) {
			s.Process.Scheduler = &runspec.Scheduler{Policy: "SCHED_OTHER", Nice: 20}
		},
		"process.scheduler.priority": func(s *runspec.Spec) {
			s.Process.Scheduler = &runspec.Scheduler{Policy: "SCHED_BATCH", Priority: 1}
		},
		"process.scheduler.runtime": func(s *runspec.Spec) {
			s.Process.Scheduler = &runspec.Scheduler{Policy: "SCHED_RR", Priority: 1, Runtime: 1}
		},
		"process.scheduler.flags": func(s *runspec.Spec) {
			s.Process.Scheduler = &runspec.Scheduler{Policy: "SCHED_OTHER", Flags: []runspec.LinuxSchedulerFlag{"X"}}
		},
		"process.ioPriority.class": func(s *runspec.Spec) { s.Process.IOPriority = &runspec.LinuxIOPriority{} },
		"process.ioPriority.priority": func(s *runspec.Spec) {
			s.Process.IOPriority = &runspec.LinuxIOPriority{Class: "IOPRIO_CLASS_BE", Priority: 8}
		},
		"process.execCPUAffinity.initial": func(s *runspec.Spec) { s.Process.ExecCPUAffinity = &runspec.CPUAffinity{Initial: "3-1"} },
		"process.execCPUAffinity.final":   func(s *runspec.Spec) { s.Process.ExecCPUAffinity = &runspec.CPUAffinity{Final: "0,99999"} },
		"hostname":                        func(s *runspec.Spec) { s.Linux.Namespaces = s.Linux.Namespaces[4:5] },
		"domainname": func(s *runspec.Spec) {
			s.Linux.Namespaces, s.Hostname, s.Domainname = s.Linux.Namespaces[4:5], "", "d"
		},
		"process.oomScoreAdj":         func(s *runspec.Spec) { s.Process.OOMScoreAdj = &n },
		"process.user":                func(s *runspec.Spec) { s.Process.User.UID = 1<<32 - 1 },
		"process.user.additionalGids": func(s *runspec.Spec) { s.Process.User.AdditionalGids = []uint32{1<<32 - 1} },
		"zos":                         func(s *runspec.Spec) { s.ZOS = &runspec.ZOS{} },
		"freebsd":                     func(s *runspec.Spec) { s.FreeBSD = &runspec.FreeBSD{} },
		"solaris":                     func(s *runspec.Spec) { s.Solaris = &runspec.Solaris{} },
		"windows":                     func(s *runspec.Spec) { s.Windows = &runspec.Windows{} },
		"vm":                          func(s *runspec.Spec) { s.VM = &runspec.VM{} },
		"process.commandLine":         func(s *runspec.Spec) { s.Process.CommandLine = "dir" },
		"process.user.username":       func(s *runspec.Spec) { s.Process.User.Username = "me" },
		"process.consoleSize": func(s *runspec.Spec) {
			s.Process.Terminal, s.Process.ConsoleSize = true, &runspec.Box{Height: 1 << 16}
		},
		"process.rlimits":        func(s *runspec.Spec) { s.Process.Rlimits[0].Type = "RLIMIT_X" },
		"linux.mountLabel":       func(s *runspec.Spec) { s.Linux.MountLabel = "a\"b" },
		"hooks.poststop[0].path": func(s *runspec.Spec) { s.Hooks = &runspec.Hooks{Poststop: []runspec.Hook{{Path: "rel"}}} },
		"hooks.createRuntime[1].timeout": func(s *runspec.Spec) {
			zero := 0
			s.Hooks = &runspec.Hooks{CreateRuntime: []runspec.Hook{{Path: "/a"}, {Path: "/b", Timeout: &zero}}}
		},
		"hooks.startContainer[0]": func(s *runspec.Spec) {
			s.Hooks = &runspec.Hooks{StartContainer: []runspec.Hook{{Path: "/a", Args: []string{"\x00"}}}}
		},
		"linux.intelRdt.closID":      func(s *runspec.Spec) { s.Linux.IntelRdt = &runspec.LinuxIntelRdt{ClosID: "a/b"} },
		"linux.intelRdt.memBwSchema": func(s *runspec.Spec) { s.Linux.IntelRdt = &runspec.LinuxIntelRdt{MemBwSchema: "L3:0=1"} },
		"linux.intelRdt.l3CacheSchema": func(s *runspec.Spec) {
			s.Linux.IntelRdt = &runspec.LinuxIntelRdt{L3CacheSchema: "L3:0=1\nL3:1=1"}
		},
		"linux.intelRdt.schemata": func(s *runspec.Spec) { s.Linux.IntelRdt = &runspec.LinuxIntelRdt{Schemata: []string{"a\n"}} },
		"linux.memoryPolicy.mode": func(s *runspec.Spec) { s.Linux.MemoryPolicy = &runspec.LinuxMemoryPolicy{} },
		"linux.memoryPolicy.nodes": func(s *runspec.Spec) {
			s.Linux.MemoryPolicy = &runspec.LinuxMemoryPolicy{Mode: "MPOL_BIND", Nodes: " "}
		},
		"linux.memoryPolicy.flags": func(s *runspec.Spec) {
			s.Linux.MemoryPolicy = &runspec.LinuxMemoryPolicy{Mode: "MPOL_BIND", Nodes: "0", Flags: []runspec.MemoryPolicyFlagType{"MPOL_F_X"}}
		},
		"linux.personality.domain": func(s *runspec.Spec) { s.Linux.Personality = &runspec.LinuxPersonality{Domain: "BSD"} },
		"linux.personality.flags": func(s *runspec.Spec) {
			s.Linux.Personality = &runspec.LinuxPersonality{Domain: "LINUX", Flags: []runspec.LinuxPersonalityFlag{"X"}}
		},
		"linux.netDevices": func(s *runspec.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces[:1], s.Linux.Namespaces[2:]...)
			s.Linux.NetDevices = map[string]runspec.LinuxNetDevice{"eth0": {}}
		},
		"linux.netDevices[a/b]":          func(s *runspec.Spec) { s.Linux.NetDevices = map[string]runspec.LinuxNetDevice{"a/b": {}} },
		"linux.netDevices[e0].name":      func(s *runspec.Spec) { s.Linux.NetDevices = map[string]runspec.LinuxNetDevice{"e0": {Name: "%d%d"}} },
		"linux.timeOffsets":              func(s *runspec.Spec) { s.Linux.TimeOffsets = map[string]runspec.LinuxTimeOffset{"boottime": {}} },
		"linux.seccomp.listenerMetadata": func(s *runspec.Spec) { s.Linux.Seccomp = &runspec.LinuxSeccomp{ListenerMetadata: "/x"} },
		"linux.seccomp.listenerPath": func(s *runspec.Spec) {
			s.Linux.Seccomp = &runspec.LinuxSeccomp{DefaultAction: "SCMP_ACT_ALLOW", Syscalls: []runspec.LinuxSyscall{{Names: []string{"mkdir"}, Action: "SCMP_ACT_NOTIFY"}}}
		},
		"linux.namespaces": func(s *runspec.Spec) { s.Linux.Namespaces[0].Type = "spoon" },
		"linux.timeOffsets[boottime].nanosecs": func(s *runspec.Spec) {
			s.Linux.Namespaces[0].Type = "time"
			s.Linux.TimeOffsets = map[string]runspec.LinuxTimeOffset{"boottime": {Nanosecs: 1e9}}
		},
		"linux.uidMappings":       func(s *runspec.Spec) { s.Linux.UIDMappings = []runspec.LinuxIDMapping{{Size: 1}} },
		"linux.rootfsPropagation": func(s *runspec.Spec) { s.Linux.RootfsPropagation = "loud" },
		"linux.sysctl":            func(s *runspec.Spec) { s.Linux.Sysctl = map[string]string{"kernel.panic": "1"} },
		"linux.devices[/dev/x]":   func(s *runspec.Spec) { s.Linux.Devices = []runspec.LinuxDevice{{Path: "/dev/x", Type: "z"}} },
		"mounts[/x].uidMappings": func(s *runspec.Spec) {
			s.Mounts[0] = runspec.Mount{Destination: "/x", UIDMappings: []runspec.LinuxIDMapping{{Size: 1}}}
		},
		"mounts[/x]": func(s *runspec.Spec) {
			s.Mounts[0] = runspec.Mount{Destination: "/x", Type: "bind", Source: "/", Options: []string{"idmap"}}
		},
		"mounts[/w]": func(s *runspec.Spec) {
			m := []runspec.LinuxIDMapping{{Size: 1}}
			s.Mounts[0] = runspec.Mount{Destination: "/w", Type: "tmpfs", UIDMappings: m, GIDMappings: m}
		},
		"mounts[/v]": func(s *runspec.Spec) {
			s.Mounts[0] = runspec.Mount{Destination: "/v", Type: "bind", Source: "/", Options: []string{"remount", "size=3"}}
		},
		"mounts[/proc]":     func(s *runspec.Spec) { s.Mounts[0].Type = "tmpfs" },
		"mounts[/proc/sys]": func(s *runspec.Spec) { s.Mounts[0] = runspec.Mount{Destination: "/proc/sys", Type: "tmpfs"} },
		"mounts[/]":         func(s *runspec.Spec) { s.Mounts[0].Destination = "/" },
		"mounts[/proc/1]":   func(s *runspec.Spec) { s.Mounts[0] = runspec.Mount{Destination: "/proc/1", Type: "bind", Source: "/x"} },
		"mounts[/y]": func(s *runspec.Spec) {
			s.Mounts[0] = runspec.Mount{Destination: "/y", Type: "bind", Source: "/x", Options: []string{"odd"}}
		},
	} {
		s := spec()
		change(s)
		_, err := Build(input(s))
		k := errdefs.KindOf(err)
		if err == nil || k != errdefs.InvalidArgument && k != errdefs.Unsupported || !strings.Contains(err.Error(), "spec's "+field+":") && !strings.Contains(err.Error(), "spec's "+field) {
			t.Errorf("%s: got %v (%v)", field, err, k)
		}
	}
}

// TestCapabilitiesThatCannotBeGranted: the specification wants warnings, not errors.
func TestCapabilitiesThatCannotBeGranted(t *testing.T) {
	for name, change := range map[string]func(*Input){
		"no capability CAP_FLY": func(in *Input) { in.Spec.Process.Capabilities.Bounding = []string{"CAP_FLY"} },
		"this kernel has no CAP_CHECKPOINT_RESTORE": func(in *Input) {
			in.Facts.LastCap, in.Spec.Process.Capabilities.Bounding = 39, []string{"CAP_CHECKPOINT_RESTORE"}
		},
		"CAP_KILL is not held by this process":                   func(in *Input) { in.Facts.Held = 0 },
		"effective holds what is not in permitted":               func(in *Input) { in.Spec.Process.Capabilities.Permitted = nil },
		"inheritable holds what is not in bounding":              func(in *Input) { in.Spec.Process.Capabilities.Inheritable = []string{"CAP_SYS_TIME"} },
		"ambient holds what is not both permitted and inheritab": func(in *Input) { in.Spec.Process.Capabilities.Ambient = []string{"CAP_KILL"} },
		"ociVersion 1.9.0":                                       func(in *Input) { in.Spec.Version = "1.9.0" },
	} {
		in := input(spec())
		change(in)
		p, err := Build(in)
		if err != nil || !strings.Contains(strings.Join(p.Warnings, "\n"), name) {
			t.Errorf("%s: got %v, warnings %q", name, err, p.Warnings)
		}
	}
}

func TestBitList(t *testing.T) {
	for list, want := range map[string]string{"": "", "0": "0100000000000000", "0-3,7": "8f00000000000000", " 1 , 64": "02000000000000000100000000000000", "63": "0000000000000080"} {
		if got, err := bitList("x", list); err != nil || hex.EncodeToString(got) != want {
			t.Errorf("%q: got %x (%v), want %s", list, got, err, want)
		}
	}
	for _, bad := range []string{"a", "1-", "-1", "2-1", "1,,2", "8192", "4294967296", "0-1-2"} {
		if got, err := bitList("x", bad); !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("%q: got %x (%v), want InvalidArgument", bad, got, err)
		}
	}
}

func TestValuesOfTheHostAreNotSetThroughJoinedNamespaces(t *testing.T) {
	for field, change := range map[string]func(*runspec.Spec){
		"linux.sysctl": func(s *runspec.Spec) { s.Hostname, s.Linux.Sysctl = "", map[string]string{"net.core.somaxconn": "9"} },
		"hostname":     func(*runspec.Spec) {},
	} {
		in := input(spec())
		change(in.Spec)
		if _, err := Build(in); err != nil {
			t.Errorf("%s in namespaces of the container's own: %v", field, err)
		}
		in.Facts.Shared = map[string]bool{"network": true, "uts": true}
		if _, err := Build(in); !errdefs.Is(err, errdefs.InvalidArgument) || !strings.Contains(err.Error(), "spec's "+field) {
			t.Errorf("%s in this process's own namespaces: got %v, want InvalidArgument", field, err)
		}
	}
}

// FuzzBuild: whatever the spec, Build gives an error or a plan that stays within itself.
func FuzzBuild(f *testing.F) {
	for _, s := range []*runspec.Spec{spec(), inUser(input(spec())).Spec} {
		b, err := json.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, byte(0))
		f.Add(b, byte(255))
	}
	f.Add([]byte(`{"process":{"args":["a"],"cwd":"/x/../..","terminal":true},"root":{"path":""},"mounts":[{"destination":"a/../b","type":"tmpfs","options":["tmpcopyup","ro","rro","shared"]}],"linux":{"namespaces":[{"type":"mount"},{"type":"user","path":"/p"},{"type":"pid"}],"sysctl":{"net.a/b":"1"},"devices":[{"path":"x","type":"p"}],"maskedPaths":["","/","a"]}}`), byte(7))
	f.Fuzz(func(t *testing.T, b []byte, flags byte) {
		var s runspec.Spec
		if json.Unmarshal(b, &s) != nil {
			return
		}
		if s.Linux != nil {
			s.Linux.Seccomp = nil // package seccomp has a fuzz test of its own
		}
		in := input(&s)
		if flags&1 != 0 {
			v1(in)
		}
		in.Init, in.NoPivot, in.Timing, in.Facts.Nested, in.Replica = flags&2 != 0, flags&4 != 0, flags&8 != 0, flags&16 != 0, flags&32 != 0
		if flags&64 != 0 {
			in.Fds.Gate = -1
		}
		in.Facts.Held = uint64(flags) << 20
		p, err := Build(in)
		if err != nil {
			return
		}
		check(t, p)
		if err := p.Print(&bytes.Buffer{}); err != nil {
			t.Fatal(err)
		}
	})
}
