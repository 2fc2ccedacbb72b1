package engine

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/onggi/onggi/network"
)

// Reach is who reaches something, and how.
type Reach struct {
	From  string
	Works bool
	How   string
}

// Problem is what stands in the way, and what to do about it.
type Problem struct{ What, Fix string }

// Explanation says who reaches a port or a container, and why.
type Explanation struct {
	Subject  string
	Facts    []string
	Reach    []Reach
	Problems []Problem
}

// ReloadNetworks puts rules, bridges and the resolver right, and returns what was missing.
func (e *Engine) ReloadNetworks(ctx context.Context) (repaired, warnings []string, err error) {
	if bridgeless() {
		return nil, nil, noBridge("reload", "the networks")
	}
	m, err := e.network()
	if err != nil {
		return nil, nil, err
	}
	h, err := m.Examine(ctx)
	if err != nil {
		return nil, nil, err
	}
	if repaired, warnings, err = m.Reload(ctx); err != nil {
		return repaired, warnings, err
	}
	if err := e.reviveResolver(ctx); err != nil {
		return repaired, warnings, err
	}
	if h.NeedsDNS && !h.Resolver {
		repaired = append(repaired, "the resolver")
	}
	return repaired, warnings, nil
}

// ExplainPort says what happens to a port of this host.
func (e *Engine) ExplainPort(ctx context.Context, protocol string, port uint16) (*Explanation, error) {
	x := &Explanation{Subject: fmt.Sprintf("port %d/%s of this host", port, protocol)}
	records, err := e.records()
	if err != nil {
		return nil, err
	}
	published := false
	for _, r := range records {
		if r.Status != Running || r.Network == nil {
			continue
		}
		for _, p := range r.Network.Ports {
			if p.HostPort != port || p.Protocol != protocol {
				continue
			}
			published = true
			x.Facts = append(x.Facts, fmt.Sprintf("published by the container %s: %s", r.Config.Name, portLine(r, p)))
			x.Reach = append(x.Reach, reachOf(p)...)
		}
	}
	if who := network.Listener(protocol, port); who != "" {
		if published {
			x.Problems = append(x.Problems, Problem{
				"the process " + who + " of this host listens at the port too: while the port is published, it gets none of these connections", "stop it, or publish another port",
			})
		} else {
			x.Facts = append(x.Facts, "no container publishes it; the process "+who+" of this host listens there")
		}
	} else if !published {
		x.Facts = append(x.Facts, "no container publishes it, and no process of this host listens there: connections are refused")
	}
	return x, e.problems(ctx, x, published)
}

// portLine is where a published port leads.
func portLine(r *record, p network.Port) string {
	at := "every address"
	if p.HostIP.IsValid() && !p.HostIP.IsUnspecified() {
		at = p.HostIP.String()
	}
	to := r.Network.IPv4.Addr()
	for _, j := range r.Network.Networks {
		if j.Driver == "bridge" && !j.Internal && j.Gateway.IsValid() {
			to = j.IPv4.Addr()
			break
		}
	}
	return fmt.Sprintf("%s, port %d/%s -> %s:%d", at, p.HostPort, p.Protocol, to, p.ContainerPort)
}

// reachOf says who reaches a published port. doc/network.md has the table.
func reachOf(p network.Port) []Reach {
	all := !p.HostIP.IsValid() || p.HostIP.IsUnspecified()
	switch {
	case !all && p.HostIP.IsLoopback():
		return []Reach{
			{"this host", true, fmt.Sprintf("at %s:%d", p.HostIP, p.HostPort)},
			{"other hosts", false, "it is published on loopback only"},
			{"containers", false, "loopback is each container's own; they use the container's address, on a common network"},
		}
	case !all:
		at := fmt.Sprintf("at %s:%d", p.HostIP, p.HostPort)
		return []Reach{{"this host", true, at}, {"other hosts", true, at}, {"containers", true, at + ", those of internal networks excepted"}}
	}
	return []Reach{
		{"this host", true, fmt.Sprintf("at 127.0.0.1:%d and at its own addresses; not at ::1", p.HostPort)},
		{"other hosts", true, fmt.Sprintf("at any address of this host, port %d; their own address is what the container sees", p.HostPort)},
		{"containers", true, fmt.Sprintf("at any address of this host, port %d, those of internal networks excepted", p.HostPort)},
	}
}

// ExplainContainer says what reaches a container, and what it reaches.
func (e *Engine) ExplainContainer(ctx context.Context, idOrName string) (*Explanation, error) {
	r, err := e.get(idOrName)
	if err != nil {
		return nil, err
	}
	x := &Explanation{Subject: "container " + r.Config.Name}
	switch {
	case r.Config.Network == network.Host:
		x.Facts = append(x.Facts, "it uses this host's network: what it listens at, this host listens at")
		return x, nil
	case r.Config.Network == network.None:
		x.Facts = append(x.Facts, "it has no network but its own loopback")
		return x, nil
	case r.Config.ofContainer() != "":
		x.Facts = append(x.Facts, "it shares the network of the container "+r.Config.ofContainer()[:12]+"; see: onggi network explain "+r.Config.ofContainer()[:12])
		return x, nil
	case r.Status != Running || r.Network == nil:
		x.Facts = append(x.Facts, "it does not run: nothing reaches it")
		return x, nil
	}
	records, err := e.records()
	if err != nil {
		return nil, err
	}
	out, bridged := false, false
	for _, j := range r.Network.Networks {
		x.Facts = append(x.Facts, fmt.Sprintf("network %s (%s %s): %s at %s", j.Network, j.Driver, j.Bridge, j.Interface, j.IPv4))
		var peers []string
		for _, o := range records {
			if o.ID == r.ID || o.Status != Running || o.Network == nil || o.Config.Build != "" {
				continue
			}
			if slices.ContainsFunc(o.Network.Networks, func(k network.Joined) bool { return k.NetworkID == j.NetworkID }) {
				peers = append(peers, o.Config.Name)
			}
		}
		slices.Sort(peers)
		how := "at " + j.IPv4.Addr().String()
		if len(j.Names) > 0 {
			how += " and by the names " + strings.Join(j.Names, ", ")
		}
		if len(peers) == 0 {
			peers = []string{"no other container"}
		}
		n, err := e.GetNetwork(j.NetworkID)
		icc := err != nil || (n.Options["com.docker.network.bridge.enable_icc"] != "false" && n.Options["enable_icc"] != "false")
		x.Reach = append(x.Reach, Reach{strings.Join(peers, ", ") + " (network " + j.Network + ")", icc, how})
		bridged = bridged || j.Driver == "bridge"
		out = out || j.Gateway.IsValid()
	}
	x.Reach = append(x.Reach, Reach{"containers of other networks", false, "networks are kept apart; published ports are open to them"})
	if bridged {
		x.Reach = append(x.Reach, Reach{"this host", true, "at the container's addresses"})
	} else {
		x.Reach = append(x.Reach, Reach{"this host", false, "the kernel keeps a macvlan or ipvlan container and its host apart"})
	}
	for _, p := range r.Network.Ports {
		x.Facts = append(x.Facts, "published: "+portLine(r, p))
		for _, o := range reachOf(p) {
			if o.From == "other hosts" {
				x.Reach = append(x.Reach, o)
			}
		}
	}
	if len(r.Network.Ports) == 0 && bridged {
		x.Reach = append(x.Reach, Reach{"other hosts", false, "it publishes no port"})
	}
	if out {
		x.Facts = append(x.Facts, "the way out: by "+r.Network.Gateway.String())
	} else {
		x.Facts = append(x.Facts, "no way out: its networks are internal")
	}
	return x, e.problems(ctx, x, bridged)
}

// problems adds what stands in the way on this host.
func (e *Engine) problems(ctx context.Context, x *Explanation, concerned bool) error {
	if bridgeless() {
		x.Facts = append(x.Facts, "what the host's firewall does with it cannot be seen without root")
		return nil
	}
	m, err := e.network()
	if err != nil {
		return err
	}
	h, err := m.Examine(ctx)
	if err != nil || !concerned {
		return err
	}
	add := func(what, fix string) { x.Problems = append(x.Problems, Problem{what, fix}) }
	if !h.Table || len(h.Missing) > 0 || len(h.Bridges) > 0 {
		add("the firewall's rules or bridges of ours are gone: something has flushed the ruleset or removed a link", "onggi network reload")
	}
	if !h.Forward4 {
		add("this host forwards nothing (net.ipv4.ip_forward is 0): other hosts are not reached, and do not reach published ports", "sysctl -w net.ipv4.ip_forward=1")
	}
	for _, c := range h.Chains {
		switch {
		case c.Drops && h.Docker && c.Family == "ip":
			add("the chain "+c.String()+" drops forwarded packets by policy, which no rule of ours can overrule",
				`iptables -I DOCKER-USER -i "onggi+" -j ACCEPT; iptables -I DOCKER-USER -o "onggi+" -j ACCEPT`)
		case c.Drops:
			add("the chain "+c.String()+" drops forwarded packets by policy, which no rule of ours can overrule",
				fmt.Sprintf(`nft 'insert rule %s iifname "onggi*" accept'; nft 'insert rule %s oifname "onggi*" accept'`, c, c))
		case c.Rules > 0:
			x.Facts = append(x.Facts, fmt.Sprintf("the chain %s of another table has %d rules that may drop it, too (nft list chain %s)", c, c.Rules, c))
		}
	}
	if len(h.Legacy) > 0 {
		x.Facts = append(x.Facts, "iptables-legacy has the tables "+strings.Join(h.Legacy, ", ")+", which nftables cannot see (iptables-legacy -L FORWARD)")
	}
	if h.NeedsDNS && !h.Resolver {
		add("the resolver of containers' names does not run", "onggi network reload")
	}
	return nil
}
