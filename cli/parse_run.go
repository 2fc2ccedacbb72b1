package cli

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"path"
	"strings"

	"github.com/onggi/onggi/spec"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// parseUlimit reads NAME=SOFT[:HARD]; -1 and "unlimited" are no limit; a hard limit that is left out equals the soft
// one.
func parseUlimit(s string) (spec.Ulimit, error) {
	name, value, ok := strings.Cut(s, "=")
	u := spec.Ulimit{Name: name}
	if !ok || value == "" {
		return u, fmt.Errorf("a limit is written NAME=SOFT[:HARD]")
	}
	switch name {
	case "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack":
	case "as":
		return u, fmt.Errorf("a limit of address space breaks programs that reserve it; limit --memory instead")
	default:
		return u, fmt.Errorf("there is no limit %q: see getrlimit(2)", name)
	}
	soft, hard, two := strings.Cut(value, ":")
	var err error
	if u.Soft, err = limitValue(soft); err != nil {
		return u, fmt.Errorf("the soft limit %q: %w", soft, err)
	}
	u.Hard = u.Soft
	if two {
		if u.Hard, err = limitValue(hard); err != nil {
			return u, fmt.Errorf("the hard limit %q: %w", hard, err)
		}
	}
	if u.Hard != -1 && (u.Soft == -1 || u.Soft > u.Hard) {
		return u, fmt.Errorf("the soft limit is above the hard one")
	}
	return u, nil
}

func limitValue(s string) (int64, error) {
	if s == "unlimited" {
		return -1, nil
	}
	return parseInt(s, -1, 1<<63-1)
}

// parseDevice reads HOST[:CONTAINER][:ACCESS]; access is some of r, w and m (make the node).
func parseDevice(s string) (spec.Device, error) {
	d := spec.Device{Access: "rwm"}
	parts := strings.Split(s, ":")
	d.Host = parts[0]
	d.Container = d.Host
	switch {
	case len(parts) == 2 && isAccess(parts[1]):
		d.Access = parts[1]
	case len(parts) == 2:
		d.Container = parts[1]
	case len(parts) == 3:
		d.Container, d.Access = parts[1], parts[2]
	case len(parts) > 3:
		return d, fmt.Errorf("it has more than three parts; a device is written HOST[:CONTAINER][:rwm]")
	}
	switch {
	case !path.IsAbs(d.Host):
		return d, fmt.Errorf("the host's device %q is not an absolute path", d.Host)
	case !path.IsAbs(d.Container):
		return d, fmt.Errorf("the container's device %q is neither an absolute path nor made of r, w and m", d.Container)
	case !isAccess(d.Access):
		return d, fmt.Errorf("the access %q is not made of r, w and m, each once", d.Access)
	case strings.ContainsRune(s, 0):
		return d, fmt.Errorf("it contains a null byte")
	}
	d.Host, d.Container = path.Clean(d.Host), path.Clean(d.Container)
	return d, nil
}

func isAccess(s string) bool {
	if s == "" || len(s) > 3 {
		return false
	}
	for i, c := range s {
		if !strings.ContainsRune("rwm", c) || strings.ContainsRune(s[:i], c) {
			return false
		}
	}
	return true
}

// security is what --security-opt options say together.
type security struct {
	noNewPrivileges bool
	seccomp         string // "", "unconfined", or a profile's text
}

// parseSecurityOpt reads one --security-opt into sec; read opens a profile's file.
func parseSecurityOpt(s string, sec *security, read func(path string) ([]byte, error)) error {
	key, value, given := strings.Cut(s, "=")
	if !given {
		key, value, given = strings.Cut(s, ":") // docker's older spelling
	}
	switch key {
	case "no-new-privileges":
		on, err := parseBool(value, given)
		if err != nil {
			return fmt.Errorf("no-new-privileges is true or false, not %q", value)
		}
		sec.noNewPrivileges = on
	case "seccomp":
		switch value {
		case "":
			return fmt.Errorf("seccomp needs a profile's file, or unconfined")
		case "unconfined":
			sec.seccomp = value
		case "builtin":
			sec.seccomp = ""
		default:
			b, err := read(value)
			if err != nil {
				return err
			}
			if !json.Valid(b) || !strings.HasPrefix(strings.TrimSpace(string(b)), "{") {
				return fmt.Errorf("the file %s is not a seccomp profile: it is not a JSON object", value)
			}
			sec.seccomp = string(b)
		}
	case "apparmor", "label", "systempaths", "proc-opts", "credentialspec":
		return fmt.Errorf("this version does not honour %s", key)
	default:
		return fmt.Errorf("there is no security option %q: it can be seccomp=FILE, seccomp=unconfined or no-new-privileges", key)
	}
	return nil
}

// parseKeyValue reads KEY=VALUE; bare says whether a KEY alone is allowed (its value is then empty).
func parseKeyValue(s string, bare bool) (key, value string, err error) {
	key, value, given := strings.Cut(s, "=")
	switch {
	case strings.TrimSpace(key) == "":
		return "", "", fmt.Errorf("nothing stands before the =")
	case !given && !bare:
		return "", "", fmt.Errorf("it is written KEY=VALUE")
	case strings.ContainsRune(s, 0):
		return "", "", fmt.Errorf("it contains a null byte")
	}
	return key, value, nil
}

// parseExtraHost reads --add-host: NAME:IP or NAME=IP, the address of IPv6 in brackets or not, or "host-gateway". It
// returns NAME:IP.
func parseExtraHost(s string) (string, error) {
	at := strings.IndexAny(s, ":=")
	if at < 1 {
		return "", fmt.Errorf("it is written NAME:ADDRESS")
	}
	name, address := s[:at], s[at+1:]
	if strings.ContainsAny(name, " \t\n\r#") {
		return "", fmt.Errorf("the name %q contains white space or #", name)
	}
	if address == "host-gateway" {
		return name + ":" + address, nil
	}
	if strings.HasPrefix(address, "[") && strings.HasSuffix(address, "]") {
		address = address[1 : len(address)-1]
	}
	ip, err := netip.ParseAddr(address)
	if err != nil {
		return "", fmt.Errorf("%q is neither an address nor host-gateway", address)
	}
	return name + ":" + ip.String(), nil
}

// parseDNS reads the address of a name server.
func parseDNS(s string) (string, error) {
	ip, err := netip.ParseAddr(s)
	if err != nil || ip.IsUnspecified() || ip.IsMulticast() {
		return "", fmt.Errorf("it is not the address of a name server")
	}
	return ip.String(), nil
}

// parsePlatform reads OS/ARCH[/VARIANT] with the spellings that uname(1) and other tools use.
func parsePlatform(s string) (*ocispec.Platform, error) {
	parts := strings.Split(strings.ToLower(s), "/")
	p := &ocispec.Platform{OS: "linux"}
	switch len(parts) {
	case 1:
		p.Architecture = parts[0]
		if parts[0] == "linux" {
			return nil, fmt.Errorf("the architecture is missing: write linux/amd64 or linux/arm64")
		}
	case 2:
		p.OS, p.Architecture = parts[0], parts[1]
	case 3:
		p.OS, p.Architecture, p.Variant = parts[0], parts[1], parts[2]
		if p.Variant == "" {
			return nil, fmt.Errorf("nothing follows the last slash")
		}
	default:
		return nil, fmt.Errorf("it has more than three parts; a platform is written OS/ARCH[/VARIANT]")
	}
	if p.OS != "linux" {
		return nil, fmt.Errorf("containers here are Linux processes: the system can only be linux")
	}
	switch p.Architecture {
	case "x86_64", "x86-64":
		p.Architecture = "amd64"
	case "aarch64":
		p.Architecture = "arm64"
	case "i386", "i686", "x86":
		p.Architecture = "386"
	case "armhf":
		p.Architecture, p.Variant = "arm", "v7"
	case "armel":
		p.Architecture, p.Variant = "arm", "v6"
	}
	switch p.Architecture {
	case "amd64", "arm64", "386", "arm", "riscv64", "ppc64le", "s390x", "loong64", "mips64le", "mips64", "mipsle", "mips", "ppc64":
	default:
		return nil, fmt.Errorf("there is no architecture %q", p.Architecture)
	}
	for _, c := range p.Variant {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return nil, fmt.Errorf("the variant %q is not made of letters and digits", p.Variant)
		}
	}
	if p.Architecture == "arm64" && p.Variant == "v8" {
		p.Variant = "" // the default, as image-spec's table of variants says
	}
	return p, nil
}

// parseLogOpts reads --log-opt options; the zero value of a field is the default.
func parseLogOpt(s string, maxSize *int64, maxFiles *int) error {
	key, value, err := parseKeyValue(s, false)
	if err != nil {
		return err
	}
	switch key {
	case "max-size":
		n, err := parseSize(value)
		if err != nil {
			return fmt.Errorf("max-size: %w", err)
		}
		if n < 64<<10 {
			return fmt.Errorf("max-size: a log file holds at least 64k, one read of a stream")
		}
		*maxSize = n
	case "max-file":
		n, err := parseInt(value, 1, 1000)
		if err != nil {
			return fmt.Errorf("max-file: %w", err)
		}
		*maxFiles = int(n)
	default:
		return fmt.Errorf("there is no log option %q: it can be max-size or max-file", key)
	}
	return nil
}
