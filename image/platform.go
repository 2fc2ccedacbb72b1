package image

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/onggi/onggi/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// normal writes a platform as image-spec does ("Platform Variants"): x86_64 is amd64, arm64 has no variant v8, arm has
// v7 unless it says otherwise, amd64 has none for v1.
func normal(p ocispec.Platform) ocispec.Platform {
	p.OS = strings.ToLower(p.OS)
	if p.OS == "" {
		p.OS = "linux"
	}
	p.Architecture, p.Variant = strings.ToLower(p.Architecture), strings.ToLower(p.Variant)
	switch p.Architecture {
	case "x86_64", "x86-64":
		p.Architecture = "amd64"
	case "i386", "i486", "i586", "i686":
		p.Architecture = "386"
	case "aarch64":
		p.Architecture = "arm64"
	case "armhf", "armv7l":
		p.Architecture, p.Variant = "arm", "v7"
	case "armel", "armv6l":
		p.Architecture, p.Variant = "arm", "v6"
	}
	if len(p.Variant) == 1 && p.Variant[0] >= '0' && p.Variant[0] <= '9' {
		p.Variant = "v" + p.Variant
	}
	switch {
	case p.Architecture == "amd64" && p.Variant == "v1", p.Architecture == "arm64" && (p.Variant == "v8" || p.Variant == "v8.0"):
		p.Variant = ""
	case p.Architecture == "arm" && p.Variant == "":
		p.Variant = "v7"
	}
	return p
}

// HostPlatform returns what this machine runs by itself, with its variant.
func HostPlatform() ocispec.Platform {
	p := ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	switch runtime.GOARCH {
	case "amd64":
		p.Variant = amd64Level()
	case "arm":
		p.Variant = armVersion()
	}
	return normal(p)
}

// amd64Levels are the kernel's names of the features that the x86-64 psABI (section 3.1.1) asks for, beside those of
// the levels below.
var amd64Levels = [...]struct{ level, features string }{
	{"v2", "cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3"},
	{"v3", "abm avx avx2 bmi1 bmi2 f16c fma movbe xsave"},
	{"v4", "avx512bw avx512cd avx512dq avx512f avx512vl"},
}

// amd64Level returns the microarchitecture level that the processor has.
func amd64Level() string {
	have := map[string]bool{}
	for _, f := range strings.Fields(cpuinfo("flags")) {
		have[f] = true
	}
	level := "v1"
	for _, l := range amd64Levels {
		for _, f := range strings.Fields(l.features) {
			if !have[f] {
				return level
			}
		}
		level = l.level
	}
	return level
}

// armVersion returns the processor's architecture version, as the kernel tells it.
func armVersion() string {
	if v := cpuinfo("CPU architecture"); v == "5" || v == "6" || v == "8" {
		return "v" + v
	}
	return "v7"
}

// cpuinfo returns a fact about the first processor, or "".
func cpuinfo(key string) string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	defer f.Close()
	b := make([]byte, 16<<10) // the first processor's part is shorter
	n, _ := io.ReadFull(f, b) // short: then there is only one
	for line := range strings.Lines(string(b[:n])) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// ParsePlatform reads "linux/arm64", "arm64", "linux/arm/v7".
func ParsePlatform(s string) (ocispec.Platform, error) {
	bad := func(why string) (ocispec.Platform, error) {
		return ocispec.Platform{}, &errdefs.Error{
			Op: "use the platform", What: fmt.Sprintf("%q", s), Kind: errdefs.InvalidArgument, Why: why,
			Fix: "write it like linux/amd64 or linux/arm/v7",
		}
	}
	f := strings.Split(s, "/")
	for _, x := range f {
		if x == "" || len(x) > 32 || strings.Trim(strings.ToLower(x), "abcdefghijklmnopqrstuvwxyz0123456789_.-") != "" {
			return bad("it is malformed")
		}
	}
	var p ocispec.Platform
	switch {
	case len(f) == 1 && f[0] == "linux":
		return HostPlatform(), nil
	case len(f) == 1:
		p = ocispec.Platform{OS: "linux", Architecture: f[0]}
	case len(f) == 2:
		p = ocispec.Platform{OS: f[0], Architecture: f[1]}
	case len(f) == 3:
		p = ocispec.Platform{OS: f[0], Architecture: f[1], Variant: f[2]}
	default:
		return bad("it has more than three parts")
	}
	if p = normal(p); p.OS != "linux" {
		return bad("only linux images can be run here")
	}
	return p, nil
}

func platformString(p ocispec.Platform) string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// variants lists what runs on p's variant, the best first.
func variants(p ocispec.Platform) []string {
	down := func(all ...string) []string {
		if i := slices.Index(all, p.Variant); i >= 0 {
			return all[i:]
		}
		return []string{p.Variant}
	}
	switch p.Architecture {
	case "amd64":
		return down("v4", "v3", "v2", "")
	case "arm":
		return down("v8", "v7", "v6", "v5")
	case "arm64":
		if p.Variant != "" {
			return []string{p.Variant, ""}
		}
	}
	return []string{p.Variant}
}

// rank says how well an image for have serves want: 0 not at all, more is better.
func rank(want, have ocispec.Platform) int {
	want, have = normal(want), normal(have)
	if have.OS != want.OS || have.Architecture != want.Architecture {
		return 0
	}
	all := variants(want)
	if i := slices.Index(all, have.Variant); i >= 0 {
		return len(all) - i
	}
	return 0
}

// Serves says whether an image for have runs where want is asked for.
func Serves(want, have ocispec.Platform) bool { return rank(want, have) > 0 }

// isAttestation: BuildKit lists its attestations as manifests of an unknown platform.
func isAttestation(d ocispec.Descriptor) bool {
	return d.Annotations["vnd.docker.reference.type"] != "" || d.Platform != nil && d.Platform.OS == "unknown"
}

// choose picks the manifest (or nested index) for the platform. An entry without a platform is taken when nothing else
// fits; what it is for is checked with its configuration.
func choose(idx *ocispec.Index, want ocispec.Platform) (ocispec.Descriptor, error) {
	best, bestRank := -1, 0
	var available []string
	for i, d := range idx.Manifests {
		if isAttestation(d) {
			continue
		}
		if d.Platform == nil || d.Platform.Architecture == "" {
			if best < 0 {
				best = i
			}
			continue
		}
		if r := rank(want, *d.Platform); r > bestRank {
			best, bestRank = i, r
		}
		if s := fmt.Sprintf("%.60s", platformString(normal(*d.Platform))); !slices.Contains(available, s) {
			available = append(available, s)
		}
	}
	if best >= 0 {
		return idx.Manifests[best], nil
	}
	why := "the image has no platform at all"
	if len(available) > 0 {
		if len(available) > 20 {
			available = append(available[:20], "...")
		}
		why = "it is there for " + strings.Join(available, ", ")
	}
	return ocispec.Descriptor{}, &errdefs.Error{
		What: "platform " + platformString(want), Kind: errdefs.NotFound,
		Why: cleanText(why), Fix: "choose one of them with --platform",
	}
}

// cleanText keeps a stranger's control characters from the terminal.
func cleanText(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r > 0x7e {
			return '?'
		}
		return r
	}, s)
}
