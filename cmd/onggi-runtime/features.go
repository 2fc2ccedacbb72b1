package main

import (
	"os"
	"strings"

	"github.com/onggi/onggi/runtime/plan"
	"github.com/onggi/onggi/runtime/seccomp"
	"github.com/onggi/onggi/sys"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
)

// cmdFeatures prints what this runtime supports (features.md of the runtime specification).
func cmdFeatures(_ *globals, args []string) (int, error) {
	f := flags{of: "features"}
	if rest, err := f.parse(args, true); err != nil {
		return 1, err
	} else if len(rest) > 0 {
		return 1, f.bad("", "it takes no argument")
	}
	yes := true
	var known, supported []string
	for _, f := range seccomp.Flags() {
		known = append(known, f.Name)
		if sys.FilterFlagsKnown(f.Bits) {
			supported = append(supported, f.Name)
		}
	}
	memoryModes := []string{
		string(runspec.MpolDefault), string(runspec.MpolPreferred), string(runspec.MpolBind), string(runspec.MpolInterleave),
		string(runspec.MpolLocal), string(runspec.MpolPreferredMany), string(runspec.MpolWeightedInterleave),
	}
	memoryFlags := []string{string(runspec.MpolFStaticNodes), string(runspec.MpolFRelativeNodes), string(runspec.MpolFNumaBalancing)}
	return 0, printJSON(&features.Features{
		OCIVersionMin: "1.0.0",
		OCIVersionMax: runspec.Version,
		Hooks:         []string{"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"},
		MountOptions:  plan.MountOptions(),
		Linux: &features.Linux{
			Namespaces:   []string{"cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"},
			Capabilities: plan.Capabilities(),
			Cgroup:       &features.Cgroup{V1: &yes, V2: &yes, Systemd: &yes, SystemdUser: &yes, Rdma: &yes},
			Seccomp: &features.Seccomp{
				Enabled: &yes,
				Actions: []string{
					"SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD",
					"SCMP_ACT_LOG", "SCMP_ACT_NOTIFY", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP",
				},
				Operators: []string{"SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT", "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE"},
				Archs: []string{
					"SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM", "SCMP_ARCH_LOONGARCH64", "SCMP_ARCH_PPC64LE", "SCMP_ARCH_RISCV64", "SCMP_ARCH_S390X",
					"SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64",
				},
				KnownFlags: known, SupportedFlags: supported,
			},
			Apparmor:        &features.Apparmor{Enabled: &yes},
			Selinux:         &features.Selinux{Enabled: &yes},
			IntelRdt:        &features.IntelRdt{Enabled: &yes, Schemata: &yes, Monitoring: &yes},
			NetDevices:      &features.NetDevices{Enabled: &yes},
			MemoryPolicy:    &features.MemoryPolicy{Modes: memoryModes, Flags: memoryFlags},
			MountExtensions: &features.MountExtensions{IDMap: &features.IDMap{Enabled: &yes}},
		},
		PotentiallyUnsafeConfigAnnotations: []string{"org.systemd.property."},
		Annotations: map[string]string{
			"org.onggi.runtime.version":                  version,
			"org.opencontainers.runc.checkpoint.enabled": "true", // what engines look for before they offer checkpoints
		},
	})
}

// defaultSpec is what `spec` writes: an interactive shell, confined as runc's own default.
func defaultSpec() *runspec.Spec {
	caps := []string{"CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"}
	return &runspec.Spec{
		Version: runspec.Version,
		Process: &runspec.Process{
			Terminal: true, Args: []string{"sh"}, Cwd: "/", NoNewPrivileges: true,
			Env:          []string{"PATH=" + plan.DefaultPath, "TERM=xterm"},
			Capabilities: &runspec.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
			Rlimits:      []runspec.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1024, Soft: 1024}},
		},
		Root:     &runspec.Root{Path: "rootfs", Readonly: true},
		Hostname: "onggi",
		Mounts: []runspec.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
		},
		Linux: &runspec.Linux{
			Resources:  &runspec.LinuxResources{Devices: []runspec.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
			Namespaces: []runspec.LinuxNamespace{{Type: "pid"}, {Type: "network"}, {Type: "ipc"}, {Type: "uts"}, {Type: "mount"}, {Type: "cgroup"}},
			MaskedPaths: []string{
				"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
				"/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi", "/sys/devices/virtual/powercap",
			},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}

// makeRootless changes a spec for a user without privileges: a user namespace in which they are root, no network
// namespace (nobody would connect it), no group for devpts, the host's /sys bound, and no limits.
func makeRootless(s *runspec.Spec) {
	var kept []runspec.LinuxNamespace
	for _, n := range s.Linux.Namespaces {
		if n.Type != runspec.NetworkNamespace && n.Type != runspec.UserNamespace {
			kept = append(kept, n)
		}
	}
	s.Linux.Namespaces = append(kept, runspec.LinuxNamespace{Type: runspec.UserNamespace})
	s.Linux.UIDMappings = []runspec.LinuxIDMapping{{HostID: uint32(os.Geteuid()), Size: 1}}
	s.Linux.GIDMappings = []runspec.LinuxIDMapping{{HostID: uint32(os.Getegid()), Size: 1}}
	s.Linux.Resources = nil
	for i := range s.Mounts {
		m := &s.Mounts[i]
		switch m.Destination {
		case "/sys":
			*m = runspec.Mount{Destination: "/sys", Type: "none", Source: "/sys", Options: []string{"rbind", "nosuid", "noexec", "nodev", "ro"}}
		default:
			var options []string
			for _, o := range m.Options {
				if !strings.HasPrefix(o, "gid=") && !strings.HasPrefix(o, "uid=") {
					options = append(options, o)
				}
			}
			m.Options = options
		}
	}
}
