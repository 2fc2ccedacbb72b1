package spec

import (
	"slices"
	"sort"
	"strings"

	runspec "github.com/opencontainers/runtime-spec/specs-go"
)

// defaultCaps are docker's fourteen.
var defaultCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP",
	"CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// AllCaps are the kernel's capabilities by number (linux/capability.h, Linux 6.18).
var AllCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP",
	"CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER",
	"CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE",
	"CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP",
	"CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF",
	"CAP_CHECKPOINT_RESTORE",
}

func (g *generator) capabilities(s *runspec.Spec) error {
	caps, warnings, err := capabilities(g.c, g.in.Host.Capabilities)
	if err != nil {
		return err
	}
	g.warnings = append(g.warnings, warnings...)
	s.Process.Capabilities = capSets(caps)
	return nil
}

// capSets: inheritable and ambient stay empty (CVE-2022-24769), so that a user other than root has none after execve.
func capSets(caps []string) *runspec.LinuxCapabilities {
	return &runspec.LinuxCapabilities{Bounding: caps, Effective: slices.Clone(caps), Permitted: slices.Clone(caps)}
}

// capabilities applies --cap-add and --cap-drop to docker's defaults and clamps the result to held. "ALL" in add means
// all but the dropped ones; "ALL" in drop means only the added ones.
func capabilities(c *Config, held []string) (caps, warnings []string, err error) {
	add, addAll, err := normalizeCaps("--cap-add", c.CapAdd)
	if err != nil {
		return nil, nil, err
	}
	drop, dropAll, err := normalizeCaps("--cap-drop", c.CapDrop)
	if err != nil {
		return nil, nil, err
	}
	var want []string
	switch {
	case c.Privileged:
		want, add = AllCaps, nil
	case addAll:
		want, add = AllCaps, nil
	case dropAll:
		drop = nil
	default:
		want = defaultCaps
	}
	for _, n := range want {
		if (c.Privileged || !slices.Contains(drop, n)) && slices.Contains(held, n) {
			caps = append(caps, n)
		}
	}
	for _, n := range add {
		if !slices.Contains(held, n) {
			warnings = append(warnings, "--cap-add "+n+": this process does not hold the capability and cannot grant it; the container starts without it")
		} else if !slices.Contains(caps, n) {
			caps = append(caps, n)
		}
	}
	sort.Strings(caps)
	return caps, warnings, nil
}

func normalizeCaps(flag string, names []string) (out []string, all bool, err error) {
	for _, n := range names {
		u := strings.ToUpper(n)
		if u == "ALL" || u == "CAP_ALL" {
			all = true
			continue
		}
		if !strings.HasPrefix(u, "CAP_") {
			u = "CAP_" + u
		}
		if !slices.Contains(AllCaps, u) {
			return nil, false, invalid(flag, n, "unknown capability", "see: man 7 capabilities")
		}
		out = append(out, u)
	}
	return out, all, nil
}
