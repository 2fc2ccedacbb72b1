package spec

//lint:file-ignore SA1019 profiles of users still have the deprecated Name

import (
	"encoding/json"
	"fmt"
	"runtime"
	"slices"

	"github.com/moby/profiles/seccomp"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
)

// maxProfile bounds a user's seccomp profile, bytes.
const maxProfile = 1 << 20

// seccomp: docker's default profile, resolved for the container's capabilities, this architecture and kernel; the
// user's profile in the same format (or in runtime-spec's own, which is a subset); nothing when unconfined, and nothing
// when privileged unless the user names a profile.
func (g *generator) seccomp(s *runspec.Spec) error {
	var p *seccomp.Seccomp
	switch {
	case g.c.Seccomp == "unconfined" || g.c.Seccomp == "" && g.c.Privileged:
		return nil
	case g.c.Seccomp == "":
		p = seccomp.DefaultProfile()
	default:
		if len(g.c.Seccomp) > maxProfile {
			return invalid("--security-opt seccomp", "", fmt.Sprintf("the profile is larger than %d bytes", maxProfile), "use a smaller profile")
		}
		p = new(seccomp.Seccomp)
		if err := json.Unmarshal([]byte(g.c.Seccomp), p); err != nil {
			return invalid("--security-opt seccomp", "", "decoding the seccomp profile failed: "+err.Error(), "check the file's JSON")
		}
	}
	var err error
	s.Linux.Seccomp, err = resolveProfile(p, g.in.Host.Arch, g.in.Host.KernelVersion, s.Process.Capabilities.Bounding)
	return err
}

// profileArch is the name of a GOARCH in profiles' conditions, and its runtime-spec constant.
var profileArch = map[string]struct {
	name string
	arch runspec.Arch
}{
	"386": {"x86", runspec.ArchX86}, "amd64": {"amd64", runspec.ArchX86_64}, "arm": {"arm", runspec.ArchARM},
	"arm64": {"arm64", runspec.ArchAARCH64}, "ppc64le": {"ppc64le", runspec.ArchPPC64LE}, "riscv64": {"riscv64", runspec.ArchRISCV64},
	"s390x": {"s390x", runspec.ArchS390X}, "loong64": {"loongarch64", runspec.ArchLOONGARCH64},
}

// resolveProfile drops the rules whose conditions do not hold. An empty profile means no seccomp.
func resolveProfile(p *seccomp.Seccomp, goarch string, kernel [2]int, caps []string) (*runspec.LinuxSeccomp, error) {
	bad := func(why string) error {
		return invalid("--security-opt seccomp", "", why, "correct the profile")
	}
	if p.DefaultAction == "" && len(p.Syscalls) == 0 {
		return nil, nil
	}
	if p.DefaultAction == "" {
		return nil, bad("the profile has no defaultAction")
	}
	if len(p.Architectures) > 0 && len(p.ArchMap) > 0 {
		return nil, bad("both 'architectures' and 'archMap' are specified, use either of them")
	}
	if goarch == "" {
		goarch = runtime.GOARCH
	}
	native := profileArch[goarch]
	out := p.LinuxSeccomp
	out.Syscalls = make([]runspec.LinuxSyscall, 0, len(p.Syscalls))
	for _, a := range p.ArchMap {
		if a.Arch == native.arch {
			out.Architectures = append([]runspec.Arch{a.Arch}, a.SubArches...)
			break
		}
	}
	atLeast := func(v *seccomp.KernelVersion) bool {
		return v == nil || uint64(kernel[0]) > v.Kernel || uint64(kernel[0]) == v.Kernel && uint64(kernel[1]) >= v.Major
	}
	for _, call := range p.Syscalls {
		if call == nil {
			continue
		}
		names := call.Names
		if call.Name != "" {
			if len(names) > 0 {
				return nil, bad("both 'name' and 'names' are specified in a rule, use either of them")
			}
			names = []string{call.Name}
		}
		if len(names) == 0 {
			return nil, bad("a rule names no system call")
		}
		if e := call.Excludes; e != nil {
			if slices.Contains(e.Arches, native.name) || e.MinKernel != nil && atLeast(e.MinKernel) ||
				slices.ContainsFunc(e.Caps, func(c string) bool { return slices.Contains(caps, c) }) {
				continue
			}
		}
		if i := call.Includes; i != nil {
			if len(i.Arches) > 0 && !slices.Contains(i.Arches, native.name) || !atLeast(i.MinKernel) ||
				slices.ContainsFunc(i.Caps, func(c string) bool { return !slices.Contains(caps, c) }) {
				continue
			}
		}
		rule := call.LinuxSyscall
		rule.Names = names
		out.Syscalls = append(out.Syscalls, rule)
	}
	return &out, nil
}
