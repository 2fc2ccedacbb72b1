package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/onggi/onggi/network/resolver"
	"github.com/onggi/onggi/undo"
	"golang.org/x/sys/unix"
)

// Chain is a chain of another table that decides about forwarded packets, too.
type Chain struct {
	Family, Table, Name string
	Drops               bool // by policy
	Rules               int
}

// String is the chain as nft(8) takes it: family, table, name.
func (c Chain) String() string { return c.Family + " " + c.Table + " " + c.Name }

// Health is the state of what all networks stand on.
type Health struct {
	Table    bool     // our rules are there, for all bridges
	Missing  []Port   // published by a record, and not in the rules
	Bridges  []string // bridges with containers that are not there
	Chains   []Chain  // others' chains at the forward hook
	Docker   bool     // docker's chain for the user's own rules is there
	Legacy   []string // tables of iptables-legacy, which nftables cannot see
	Forward4 bool     // net.ipv4.ip_forward
	Resolver bool     // one is alive
	NeedsDNS bool     // one is needed
	Attached int      // endpoints
}

// Examine looks at the host. It changes nothing.
func (m *Manager) Examine(ctx context.Context) (*Health, error) {
	h := &Health{Forward4: sysctl("net/ipv4/ip_forward") == "1"}
	if b, err := readSmall("/proc/thread-self/net/ip_tables_names", 4096); err == nil {
		h.Legacy = strings.Fields(string(b))
	}
	c, err := m.loadConfig()
	if err != nil || c == nil {
		return h, err
	}
	rt, nf, err := open()
	if err != nil {
		return nil, err
	}
	defer rt.close()
	defer nf.closeLater()
	eps, err := m.endpoints()
	if err != nil {
		return nil, err
	}
	h.Attached = len(eps)
	nets, err := m.bridges(c)
	if err != nil {
		return nil, err
	}
	if h.Table, err = nf.hasTable(c.table(), c.comment(nets)); err != nil {
		return nil, rulesError(err)
	}
	there := map[string]bool{}
	if h.Table {
		have, err := nf.dumpElements(ctx, c.table())
		if err != nil {
			return nil, rulesError(err)
		}
		for _, x := range have {
			there[x.set+string(x.key)+string(x.value)] = true
		}
	}
	used := map[string]bool{}
	for _, e := range eps {
		used[e.network()] = true
		for _, p := range e.Ports {
			one := *e
			one.Ports = []Port{p}
			for _, x := range elementsOf(&one) {
				if !there[x.set+string(x.key)+string(x.value)] {
					h.Missing = append(h.Missing, p)
					break
				}
			}
		}
	}
	for _, n := range nets {
		if !used[n.ID] {
			continue
		}
		if l, err := rt.link(n.Interface); err != nil {
			return nil, err
		} else if l == nil || !groundOf(c, n, *l).finished(l) {
			h.Bridges = append(h.Bridges, n.Interface)
		}
	}
	if h.Chains, h.Docker, err = nf.foreignChains(ctx, c.table()); err != nil {
		return nil, rulesError(err)
	}
	ids, err := m.names(resolver.ConfigDir)
	h.NeedsDNS, h.Resolver = len(ids) > 0, m.resolverAlive()
	return h, err
}

// foreignChains returns other tables' chains at the forward hook, and whether docker's chain for the user's rules is
// there.
func (s *socket) foreignChains(ctx context.Context, own string) (out []Chain, docker bool, err error) {
	numbers := map[string]uint8{"ip": unix.NFPROTO_IPV4, "ip6": unix.NFPROTO_IPV6, "inet": unix.NFPROTO_INET}
	err = s.dump(ctx, func(w *batch) {
		w.message(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP, nfHeader(unix.NFPROTO_UNSPEC, 0))
	}, func(a answer) {
		if len(a.body) < 4 {
			return
		}
		c := Chain{Table: cString(attribute(a.body[4:], unix.NFTA_CHAIN_TABLE)), Name: cString(attribute(a.body[4:], unix.NFTA_CHAIN_NAME))}
		for name, n := range numbers {
			if n == a.body[0] {
				c.Family = name
			}
		}
		docker = docker || c.Name == "DOCKER-USER"
		hook := attribute(attribute(a.body[4:], unix.NFTA_CHAIN_HOOK), unix.NFTA_HOOK_HOOKNUM)
		policy := attribute(a.body[4:], unix.NFTA_CHAIN_POLICY)
		if c.Family == "" || c.Table == own || len(hook) != 4 || len(policy) != 4 || binary.BigEndian.Uint32(hook) != unix.NF_INET_FORWARD {
			return
		}
		c.Drops = binary.BigEndian.Uint32(policy) == verdictDrop
		out = append(out, c)
	})
	if err != nil {
		return nil, false, err
	}
	for i := range out {
		c := &out[i]
		err := s.dump(ctx, func(w *batch) {
			w.message(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, nfHeader(numbers[c.Family], 0))
			w.str(unix.NFTA_RULE_TABLE, c.Table)
			w.str(unix.NFTA_RULE_CHAIN, c.Name)
		}, func(a answer) {
			if a.typ == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWRULE {
				c.Rules++
			}
		})
		if err != nil && !errors.Is(err, unix.ENOENT) { // gone meanwhile
			return nil, false, err
		}
	}
	return out, docker, nil
}

// Listener names the process of this host that listens at a port, as "nginx" (pid 123), or returns "".
func Listener(protocol string, port uint16) string {
	return listener(Port{Protocol: protocol, HostPort: port})
}

// Reload puts right what a firewall's reload, `nft flush ruleset` or `ip link delete` have taken: bridges, rules, published
// ports, forwarding. It returns what was missing. The rules are laid out anew in any case, in one transaction.
func (m *Manager) Reload(ctx context.Context) (repaired, warnings []string, err error) {
	before, err := m.Examine(ctx)
	if err != nil {
		return nil, nil, err
	}
	c, err := m.loadConfig()
	if err != nil || c == nil {
		return nil, nil, err // nothing was ever attached
	}
	rt, nf, err := open()
	if err != nil {
		return nil, nil, err
	}
	defer rt.close()
	defer nf.closeLater()
	s := undo.New("network.reload")
	err = m.locked(func(*os.File) error {
		nets, err := m.bridges(c)
		if err != nil {
			return err
		}
		v6 := false
		if err := s.Do("bridges", func() error {
			for _, n := range nets {
				eps, err := m.endpointsOf(n.ID)
				if err != nil {
					return err
				}
				var g *ground
				switch {
				case n.Name != Default:
					g, err = m.ensureBridge(ctx, rt, n, false)
				case len(eps) > 0:
					g, err = m.ensureDefault(ctx, rt)
				default:
					continue // it is made for the first container
				}
				if err != nil {
					return err
				}
				for _, e := range eps {
					if len(e.Ports) > 0 {
						g.localnet(e.Ports)
					}
				}
				v6 = v6 || g.gw6.IsValid()
				warnings = append(warnings, g.warnings...)
			}
			return nil
		}, nil); err != nil {
			return err
		}
		for _, b := range before.Bridges {
			repaired = append(repaired, "the bridge "+b)
		}
		if err := s.Do("rules", func() error { return m.layOut(nf, c, nets) }, nil); err != nil {
			return err
		}
		switch {
		case !before.Table && before.Attached > 0:
			repaired = append(repaired, "the rules of table "+c.table())
		case len(before.Missing) > 0:
			repaired = append(repaired, fmt.Sprintf("%d published ports", len(before.Missing)))
		}
		if before.Attached > 0 {
			warnings = append(warnings, enableForwarding(v6)...)
			if !before.Forward4 && sysctl("net/ipv4/ip_forward") == "1" {
				repaired = append(repaired, "net.ipv4.ip_forward")
			}
		}
		return nil
	})
	return repaired, warnings, err
}
