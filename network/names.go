package network

import (
	"errors"
	"io/fs"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/network/resolver"
)

// Names is what resolv.conf and hosts are made of.
type Names struct {
	Hostname   string
	Attachment *Attachment // nil for none and host
	Host       bool        // network host: the host's files are copied
	DNS        []string
	DNSSearch  []string
	DNSOptions []string
	ExtraHosts []string // "name:ip", "name:host-gateway"
}

// hostFiles are the paths that Names reads; tests have others.
type hostFiles struct{ resolv, resolved, hosts string }

var theHost = hostFiles{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf", "/etc/hosts"}

// publicDNS is what a bridged container gets when the host names no resolver that it could reach: docker's choice, so
// that what works there works here. --dns overrides it.
var publicDNS = []string{"8.8.8.8", "8.8.4.4"}

const maxHostFile = 1 << 20

// ResolvConf returns /etc/resolv.conf as docker makes it.
//
// Without options, a container without a network of its own gets the host's file as it is. One on the bridge gets the
// host's nameservers, search list and options, but no nameserver that it cannot reach: none on loopback, and by IPv6
// only if it has IPv6. When the host's file points at systemd-resolved's stub (127.0.0.53), systemd-resolved's own
// list of nameservers is read instead. When none is left, docker's public defaults are used.
//
// DNS, DNSSearch and DNSOptions each replace the host's; the search list "." means none. Source: resolv.conf(5),
// docker run --dns.
//
// Errors: InvalidArgument for a nameserver that is no IP address, or a word that would not stay on its line.
func (n Names) ResolvConf() ([]byte, error) { return n.resolvConf(theHost) }

func (n Names) resolvConf(files hostFiles) ([]byte, error) {
	for _, s := range n.DNS {
		if _, err := netip.ParseAddr(s); err != nil {
			return nil, badName("--dns", s, "it is not an IP address", "give a nameserver by its address, for example --dns 192.0.2.53")
		}
	}
	for _, l := range []struct {
		flag  string
		words []string
	}{{"--dns-search", n.DNSSearch}, {"--dns-option", n.DNSOptions}} {
		for _, s := range l.words {
			if !oneWord(s) {
				return nil, badName(l.flag, s, "it is not one word", "give one word per "+l.flag)
			}
		}
	}
	text, err := readHostFile(files.resolv)
	if err != nil {
		return nil, err
	}
	bridged := n.Attachment != nil
	if bridged && n.Attachment.Named() {
		return n.ownResolver(text)
	}
	if !bridged && len(n.DNS) == 0 && len(n.DNSSearch) == 0 && len(n.DNSOptions) == 0 {
		return text, nil
	}
	servers, search, options := parseResolv(text)
	if bridged {
		if stub(servers) {
			// The search list and options of the stub's file hold; only its nameserver is replaced.
			if direct, err := readHostFile(files.resolved); err != nil {
				return nil, err
			} else if len(direct) > 0 {
				servers, _, _ = parseResolv(direct)
			}
		}
		servers = reachable(servers, n.Attachment.IPv6.IsValid())
		if len(servers) == 0 {
			servers = publicDNS
		}
	}
	if len(n.DNS) > 0 {
		servers = n.DNS
	}
	if len(n.DNSSearch) > 0 {
		search = n.DNSSearch
		if len(search) == 1 && search[0] == "." {
			search = nil
		}
	}
	if len(n.DNSOptions) > 0 {
		options = n.DNSOptions
	}
	var b strings.Builder
	for _, s := range servers {
		b.WriteString("nameserver " + s + "\n")
	}
	if len(search) > 0 {
		b.WriteString("search " + strings.Join(search, " ") + "\n")
	}
	if len(options) > 0 {
		b.WriteString("options " + strings.Join(options, " ") + "\n")
	}
	return []byte(b.String()), nil
}

// ownResolver is resolv.conf where names are resolved by ours, which asks the name servers (--dns) itself. A name
// without a dot is asked for as it is first: it may be a container's.
func (n Names) ownResolver(host []byte) ([]byte, error) {
	_, search, options := parseResolv(host)
	if len(n.DNSSearch) > 0 {
		if search = n.DNSSearch; len(search) == 1 && search[0] == "." {
			search = nil
		}
	}
	if len(n.DNSOptions) > 0 {
		options = n.DNSOptions
	}
	if !slices.ContainsFunc(options, func(o string) bool { return strings.HasPrefix(o, "ndots:") }) || len(n.DNSOptions) == 0 {
		options = append([]string{"ndots:0"}, slices.DeleteFunc(slices.Clone(options), func(o string) bool {
			return strings.HasPrefix(o, "ndots:")
		})...)
	}
	out := "nameserver " + resolver.Address + "\n"
	if len(search) > 0 {
		out += "search " + strings.Join(search, " ") + "\n"
	}
	return []byte(out + "options " + strings.Join(options, " ") + "\n"), nil
}

// parseResolv reads resolv.conf(5): the last search or domain line wins, the others add up.
func parseResolv(text []byte) (servers, search, options []string) {
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0][0] == '#' || f[0][0] == ';' {
			continue
		}
		switch f[0] {
		case "nameserver":
			servers = append(servers, f[1])
		case "search", "domain":
			search = f[1:]
		case "options":
			options = append(options, f[1:]...)
		}
	}
	return servers, search, options
}

// stub reports whether the only nameserver is systemd-resolved's.
func stub(servers []string) bool {
	for _, s := range servers {
		if s != "127.0.0.53" && s != "127.0.0.54" {
			return false
		}
	}
	return len(servers) > 0
}

// reachable keeps the nameservers that a container on the bridge can reach.
func reachable(servers []string, v6 bool) []string {
	var out []string
	for _, s := range servers {
		a, err := netip.ParseAddr(s)
		if err != nil {
			continue
		}
		a = a.Unmap()
		if a.IsLoopback() || a.IsUnspecified() || a.Is6() && (!v6 || a.IsLinkLocalUnicast()) {
			continue
		}
		out = append(out, s)
	}
	return out
}

// Hosts returns /etc/hosts: localhost, the container's own addresses with its host name (and, for a qualified one, its
// first label), and the extra hosts. With Host it is the host's own file and the extra hosts. Source: hosts(5), docker
// run --add-host.
//
// Errors: InvalidArgument for an extra host that is not NAME:IP or NAME:host-gateway, or for host-gateway where there
// is no bridge.
func (n Names) Hosts() ([]byte, error) { return n.hosts(theHost) }

func (n Names) hosts(files hostFiles) ([]byte, error) {
	var b strings.Builder
	if n.Host {
		text, err := readHostFile(files.hosts)
		if err != nil {
			return nil, err
		}
		b.Write(text)
		if len(text) > 0 && text[len(text)-1] != '\n' {
			b.WriteByte('\n')
		}
	} else {
		b.WriteString("127.0.0.1\tlocalhost\n" +
			"::1\tlocalhost ip6-localhost ip6-loopback\n" +
			"fe00::\tip6-localnet\n" +
			"ff00::\tip6-mcastprefix\n" +
			"ff02::1\tip6-allnodes\n" +
			"ff02::2\tip6-allrouters\n")
	}
	for _, h := range n.ExtraHosts {
		ip, name, err := n.extraHost(h)
		if err != nil {
			return nil, err
		}
		b.WriteString(ip + "\t" + name + "\n")
	}
	if n.Attachment != nil && n.Hostname != "" {
		if !oneWord(n.Hostname) {
			return nil, badName("--hostname", n.Hostname, "it is not one word", "use letters, digits, dots and dashes")
		}
		names := n.Hostname
		if short, _, qualified := strings.Cut(n.Hostname, "."); qualified && short != "" {
			names += " " + short
		}
		addresses := []netip.Prefix{n.Attachment.IPv4, n.Attachment.IPv6}
		if len(n.Attachment.Networks) > 0 {
			addresses = addresses[:0]
			for _, j := range n.Attachment.Networks {
				addresses = append(addresses, j.IPv4, j.IPv6)
			}
		}
		for _, p := range addresses {
			if p.IsValid() {
				b.WriteString(p.Addr().String() + "\t" + names + "\n")
			}
		}
	}
	return []byte(b.String()), nil
}

// extraHost reads NAME:IP or NAME=IP; an IPv6 address may be in brackets.
func (n Names) extraHost(s string) (ip, name string, err error) {
	i := strings.IndexAny(s, ":=")
	if i < 1 || !oneWord(s[:i]) {
		return "", "", badName("--add-host", s, "it is not NAME:IP", "write it as --add-host db:192.0.2.7")
	}
	name, ip = s[:i], s[i+1:]
	if ip == "host-gateway" {
		switch {
		case n.Attachment != nil && n.Attachment.Gateway.IsValid():
			return n.Attachment.Gateway.String(), name, nil
		case n.Host:
			return "127.0.0.1", name, nil
		}
		return "", "", badName("--add-host", s, "without a network that has a way out there is none to the host", "use --network bridge, or leave it out")
	}
	if len(ip) > 1 && ip[0] == '[' && ip[len(ip)-1] == ']' {
		ip = ip[1 : len(ip)-1]
	}
	a, err := netip.ParseAddr(ip)
	if err != nil || a.Zone() != "" {
		return "", "", badName("--add-host", s, strconv.Quote(shorten(ip))+" is not an IP address",
			"write it as --add-host db:192.0.2.7, or db:host-gateway for this host")
	}
	return a.String(), name, nil
}

// oneWord reports whether s stays one word of one line: what a user gives never becomes another entry of the file.
func oneWord(s string) bool {
	for _, c := range []byte(s) {
		if c <= ' ' || c >= 0x7f || c == '#' {
			return false
		}
	}
	return s != "" && len(s) <= 255
}

func badName(flag, value, why, fix string) error {
	return &errdefs.Error{
		Op: "use", What: flag + " " + strconv.Quote(shorten(value)), Kind: errdefs.InvalidArgument,
		Why: why, Fix: fix,
	}
}

// readHostFile reads a file of the host, following links, as /etc/resolv.conf often is one. Not there is empty.
func readHostFile(path string) ([]byte, error) {
	b, err := readBounded(path, maxHostFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}
