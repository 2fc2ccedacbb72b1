package cli

import (
	"encoding/csv"
	"net/netip"
	"strconv"
	"strings"

	"github.com/onggi/onggi/engine"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/network"
)

// networks reads --network and the flags of the first network.
func (f *containerFlags) networks(c *engine.Config) error {
	var links []network.Link
	c.Network = network.Default
	for _, s := range f.network {
		if s == "" {
			continue
		}
		l, err := parseLink(s)
		if err != nil {
			return reading("--network", s, err)
		}
		alone := l.Network == network.Host || l.Network == network.None || strings.HasPrefix(l.Network, "container:")
		if len(f.network) > 1 && (alone || len(links) == 0 && c.Network != network.Default) {
			return reading("--network", s, &errdefs.Error{
				Why: "conflicting options: a container on host, none or another container's network has no other", Fix: "leave one of them out",
			})
		}
		if alone {
			c.Network = l.Network
			continue
		}
		for _, o := range links {
			if o.Network == l.Network {
				return reading("--network", s, &errdefs.Error{Why: "the network is named twice", Fix: "leave one out"})
			}
		}
		links = append(links, l)
	}
	first := network.Link{Network: network.Default}
	if len(links) > 0 {
		first = links[0]
	}
	given := ""
	for _, a := range []struct {
		flag, value string
		into        *netip.Addr
		v4          bool
	}{{"--ip", f.ip, &first.IPv4, true}, {"--ip6", f.ip6, &first.IPv6, false}} {
		if a.value == "" {
			continue
		}
		addr, err := parseFamily(a.value, a.v4)
		if err != nil {
			return reading(a.flag, a.value, err)
		}
		*a.into, given = addr, a.flag+"="+a.value
	}
	if f.macAddress != "" {
		m, err := network.ParseMAC(f.macAddress)
		if err != nil {
			return reading("--mac-address", f.macAddress, err)
		}
		first.MAC, given = m, "--mac-address="+f.macAddress
	}
	for _, s := range f.networkAlias {
		if err := network.ValidAlias(s); err != nil {
			return reading("--network-alias", s, err)
		}
		first.Aliases, given = append(first.Aliases, s), "--network-alias="+s
	}
	if given != "" && c.Network != network.Default {
		flag, value, _ := strings.Cut(given, "=")
		return reading(flag, value, &errdefs.Error{
			Why: "conflicting options: with --network " + c.Network + " the container has no interface of its own", Fix: "leave one of them out",
		})
	}
	if len(links) > 0 {
		links[0] = first
	} else if given != "" {
		links = []network.Link{first}
	}
	// The default network alone, with nothing to say about it, is what a container has anyway.
	if len(links) == 1 && links[0].Network == network.Default && given == "" && links[0].Priority == 0 {
		links = nil
	}
	if c.Links = links; len(links) > 0 {
		c.Network = links[0].Network
	}
	for _, s := range f.link {
		target, alias, both := strings.Cut(s, ":")
		if !both {
			alias = target
		}
		alias = alias[strings.LastIndexByte(alias, '/')+1:]
		if err := network.ValidAlias(alias); target == "" || err != nil {
			return reading("--link", s, &errdefs.Error{Why: "it is not CONTAINER or CONTAINER:NAME", Fix: "write --link db:database"})
		}
		if c.Aliases == nil {
			c.Aliases = map[string]string{}
		}
		c.Aliases[strings.ToLower(alias)] = target
	}
	return nil
}

// parseFamily reads an IP address of one family.
func parseFamily(s string, v4 bool) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Is4() != v4 || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() {
		if v4 {
			return a, &errdefs.Error{Why: "it is not an IPv4 address of a host", Fix: "write 10.11.12.13"}
		}
		return a, &errdefs.Error{Why: "it is not an IPv6 address of a host", Fix: "write fd00:11:12::13"}
	}
	return a, nil
}

// parseLink reads one --network: a name, or docker's key=value form.
func parseLink(s string) (network.Link, error) {
	l := network.Link{Network: s}
	const form = "write a name, or name=NETWORK,ip=ADDRESS,ip6=ADDRESS,alias=NAME,mac-address=ADDRESS,gw-priority=NUMBER"
	if of, ok := strings.CutPrefix(s, "container:"); ok {
		if of == "" || strings.ContainsAny(of, "/ \n") {
			return l, &errdefs.Error{Why: "it names no container", Fix: "write --network container:NAME"}
		}
		return l, nil
	}
	if strings.Contains(s, "=") {
		fields, err := csv.NewReader(strings.NewReader(s)).Read()
		if err != nil {
			return l, &errdefs.Error{Why: "it is not a list of KEY=VALUE", Fix: form}
		}
		l.Network = ""
		for _, field := range fields {
			k, v, ok := strings.Cut(field, "=")
			if !ok || v == "" {
				return l, &errdefs.Error{Why: strconv.Quote(field) + " is not KEY=VALUE", Fix: form}
			}
			switch strings.ToLower(k) {
			case "name":
				l.Network = v
			case "alias":
				if err := network.ValidAlias(v); err != nil {
					return l, err
				}
				l.Aliases = append(l.Aliases, v)
			case "ip":
				if l.IPv4, err = parseFamily(v, true); err != nil {
					return l, err
				}
			case "ip6":
				if l.IPv6, err = parseFamily(v, false); err != nil {
					return l, err
				}
			case "mac-address":
				if l.MAC, err = network.ParseMAC(v); err != nil {
					return l, err
				}
			case "gw-priority":
				if l.Priority, err = strconv.Atoi(v); err != nil {
					return l, &errdefs.Error{Why: "gw-priority is not a number", Fix: form}
				}
			default:
				return l, &errdefs.Error{Why: "there is no option " + strconv.Quote(k), Fix: form}
			}
		}
	}
	if l.Network == "default" {
		l.Network = network.Default
	}
	for i, c := range l.Network {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && (i == 0 || c != '_' && c != '.' && c != '-') {
			return l, &errdefs.Error{Why: strconv.Quote(l.Network) + " is not the name of a network", Fix: form}
		}
	}
	if l.Network == "" {
		return l, &errdefs.Error{Why: "it names no network", Fix: form}
	}
	return l, nil
}
