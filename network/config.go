package network

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/onggi/onggi/errdefs"
	"golang.org/x/sys/unix"
)

const (
	defaultBridge = "onggi0"
	configFile    = "network.json"
	configVersion = 1
	maxConfig     = 64 << 10
	maxBridges    = 64 // onggi0 ... onggi63: stores side by side on one host
)

// config is what was decided once for a root directory, in StateDir/network.json.
type config struct {
	Version int          `json:"version"`
	Owner   string       `json:"owner"` // 16 hex digits: tells this store's bridge and table from another's
	Bridge  string       `json:"bridge"`
	Subnet  netip.Prefix `json:"subnet"`
	ULA     netip.Prefix `json:"ula"` // RFC 4193, used when the host has IPv6
}

// comment marks our table: nft(8) shows it.
func (c *config) comment() string { return "onggi rules " + rulesVersion + ", store " + c.Owner }

// mac is the bridge's address: the same for ever, and the proof that a bridge of this name is ours.
func (c *config) mac() (m [6]byte) {
	sum := sha256.Sum256([]byte(c.Owner))
	copy(m[:], sum[:])
	m[0] = m[0]&^0x03 | bridgeMACFirstOctet // locally administered, not multicast
	return m
}

// group marks our veth ends, also when somebody has deleted the bridge under them. ip(8) takes it: ip link show group N.
func (c *config) group() uint32 {
	sum := sha256.Sum256([]byte("group " + c.Owner))
	return (uint32(sum[0])<<16|uint32(sum[1])<<8|uint32(sum[2]))<<7 | 1<<30 // never 0, which is everybody's
}

func (c *config) gateway() netip.Prefix {
	return netip.PrefixFrom(c.Subnet.Masked().Addr().Next(), c.Subnet.Bits())
}

// ipv6 returns the IPv6 address that belongs to an IPv4 one: the prefix with the IPv4 address as its last 32 bits, so
// that one lease is both.
func (c *config) ipv6(v4 netip.Addr) netip.Prefix {
	b, low := c.ULA.Masked().Addr().As16(), v4.As4()
	copy(b[12:], low[:])
	return netip.PrefixFrom(netip.AddrFrom16(b), c.ULA.Bits())
}

// alias is what a finished bridge of ours carries; it also remembers whether IPv6 is on.
func (c *config) alias(v6 bool) string {
	s := "onggi store " + c.Owner + " " + c.gateway().String()
	if v6 {
		s += " " + c.ipv6(c.gateway().Addr()).String()
	}
	return s
}

func (c *config) validate() error {
	switch {
	case c.Version != configVersion:
		return fmt.Errorf("version %d, want %d", c.Version, configVersion)
	case len(c.Owner) != 16 || strings.Trim(c.Owner, "0123456789abcdef") != "":
		return fmt.Errorf("owner %q is not 16 hex digits", c.Owner)
	case !validInterface(c.Bridge):
		return fmt.Errorf("bridge %q is not an interface name", c.Bridge)
	case !c.ULA.IsValid() || !c.ULA.Addr().Is6() || c.ULA.Bits() != 64:
		return fmt.Errorf("IPv6 prefix %s is not a /64", c.ULA)
	}
	return validSubnet(c.Subnet)
}

func validSubnet(p netip.Prefix) error {
	if !p.IsValid() || !p.Addr().Is4() || p.Bits() < 8 || p.Bits() > 29 {
		return fmt.Errorf("subnet %s is not an IPv4 network between /8 and /29", p)
	}
	return nil
}

// validInterface is dev_valid_name of the kernel, and narrower: names go into rules and paths.
func validInterface(s string) bool {
	if s == "" || len(s) >= unix.IFNAMSIZ || s == "." || s == ".." {
		return false
	}
	for _, c := range s {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("._-", c)) {
			return false
		}
	}
	return true
}

// loadConfig returns nil when nothing was decided yet.
func (m *Manager) loadConfig() (*config, error) {
	path := filepath.Join(m.o.StateDir, configFile)
	b, err := readSmall(path, maxConfig)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	c := &config{}
	if err = json.Unmarshal(b, c); err == nil {
		err = c.validate()
	}
	if err != nil {
		return nil, &errdefs.Error{
			Op: "read the network's configuration", What: path, Kind: errdefs.Corrupt, Err: err,
			Fix: "move the file away; a new one is made when no container is attached",
		}
	}
	return c, nil
}

// saveConfig replaces the configuration: written, synced, renamed, and the directory synced.
func (m *Manager) saveConfig(c *config) error {
	b, err := json.MarshalIndent(c, "", "\t")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(m.o.StateDir, 0o700); err != nil {
		return err
	}
	tmp := filepath.Join(m.o.StateDir, "."+configFile) // the caller holds the lock: there is one writer
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(tmp, filepath.Join(m.o.StateDir, configFile))
	}
	if err != nil {
		_ = os.Remove(tmp)
		return err
	}
	d, err := os.Open(m.o.StateDir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// candidates are the subnets that are tried in turn: the second half of docker's range, which docker itself uses last,
// then some of 10/8 that few networks use.
func candidates() []netip.Prefix {
	var out []netip.Prefix
	add := func(a, b, bits int) {
		out = append(out, netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(a), byte(b)}), bits))
	}
	add(172, 29, 16)
	add(172, 30, 16)
	for b := 209; b <= 239; b++ {
		add(10, b, 16)
	}
	for b := 28; b >= 20; b-- {
		add(172, b, 16)
	}
	return out
}

// choose decides for a new configuration. old is the one it replaces, or nil; busy are bridge names that others hold.
func (m *Manager) choose(rt *socket, h *host, old *config, busy map[string]bool) (*config, error) {
	c := &config{Version: configVersion, Bridge: m.o.Bridge, Subnet: m.o.Subnet}
	if old != nil {
		c.Owner, c.ULA = old.Owner, old.ULA
	} else {
		var r [13]byte
		if _, err := rand.Read(r[:]); err != nil {
			return nil, err
		}
		c.Owner = hex.EncodeToString(r[:8])
		ula := [16]byte{0xfd} // RFC 4193 §3.2: fd00::/8, 40 random bits; subnet 0
		copy(ula[1:], r[8:])
		c.ULA = netip.PrefixFrom(netip.AddrFrom16(ula), 64)
	}
	if c.Bridge == "" {
		for i := 0; c.Bridge == ""; i++ {
			if i == maxBridges {
				return nil, &errdefs.Error{
					Op: "choose a name for the bridge", Kind: errdefs.Exhausted,
					Why: "onggi0 to onggi63 exist already and belong to other stores",
					Fix: "remove one that is not needed: ip link delete onggi0",
				}
			}
			name := fmt.Sprintf("onggi%d", i)
			if busy[name] {
				continue
			}
			l, err := rt.link(name)
			if err != nil {
				return nil, err
			}
			if l == nil || l.mac == c.mac() {
				c.Bridge = name
			}
		}
	}
	if c.Subnet.IsValid() {
		c.Subnet = c.Subnet.Masked()
		return c, nil
	}
	for _, p := range candidates() {
		if h.overlap(p) == "" {
			c.Subnet = p
			return c, nil
		}
	}
	return nil, &errdefs.Error{
		Op: "choose a subnet for the bridge", Kind: errdefs.Exhausted,
		Why: "every candidate overlaps a route or an address of this host",
		Fix: "name a free one in the configuration",
	}
}

// overlap returns a route or address of the host that overlaps the prefix, or "".
func (h *host) overlap(p netip.Prefix) string {
	for _, t := range h.taken {
		if t.Overlaps(p) {
			return t.String()
		}
	}
	return ""
}

// ground is the bridge and table that an Attach stands on.
type ground struct {
	*config
	bridge   link
	v6       bool
	warnings []string
}

// ensure returns the ground, making or repairing what is missing. The caller holds the lock. When all is there it
// costs two round trips and the reading of one or two sysctls.
func (m *Manager) ensure(ctx context.Context, rt, nf *socket) (*ground, error) {
	c, err := m.loadConfig()
	if err != nil {
		return nil, err
	}
	if c != nil {
		if l, err := rt.link(c.Bridge); err != nil {
			return nil, err
		} else if v6, ok := c.finished(l); ok && m.agrees(c) {
			g := &ground{config: c, bridge: *l, v6: v6}
			return g, m.ensureRules(ctx, nf, g)
		}
	}
	g, err := m.setUp(ctx, rt, c)
	if err != nil {
		return nil, err
	}
	return g, m.ensureRules(ctx, nf, g)
}

// agrees reports whether the configuration is what Options ask for.
func (m *Manager) agrees(c *config) bool {
	return (m.o.Bridge == "" || m.o.Bridge == c.Bridge) && (!m.o.Subnet.IsValid() || m.o.Subnet.Masked() == c.Subnet)
}

// finished reports whether l is our bridge, complete: setting it up and naming it is its last step.
func (c *config) finished(l *link) (v6, ok bool) {
	if l == nil || l.mac != c.mac() || l.flags&unix.IFF_UP == 0 {
		return false, false
	}
	return l.alias == c.alias(true), l.alias == c.alias(true) || l.alias == c.alias(false)
}

// ensureRules makes the table when it is not there, with an element for every recorded port, and forwarding.
func (m *Manager) ensureRules(ctx context.Context, nf *socket, g *ground) error {
	there, err := nf.hasTable(tableName(g.Bridge), g.comment())
	if err != nil {
		return rulesError(err)
	}
	if !there {
		eps, err := m.endpoints()
		if err != nil {
			return err
		}
		var all []element
		for _, e := range eps {
			all = append(all, elementsOf(e)...)
		}
		if err := nf.layOut(g.config, g.v6, all); err != nil {
			return rulesError(err)
		}
		if drops, err := nf.foreignForwardDrop(ctx, tableName(g.Bridge)); err == nil && len(drops) > 0 {
			g.warnings = append(g.warnings, fmt.Sprintf("the firewall drops forwarded packets by policy (%s), which our "+
				"own table cannot overrule: containers may not reach other hosts; allow the interface %s there",
				strings.Join(drops, ", "), g.Bridge))
		}
	}
	g.warnings = append(g.warnings, enableForwarding(g.v6)...)
	return nil
}

func rulesError(err error) error {
	e := &errdefs.Error{Op: "write the nftables rules", Kind: errdefs.KindOf(err), Err: err}
	switch {
	case errors.Is(err, unix.EPERM):
		e.Fix = "run as root, or with CAP_NET_ADMIN"
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.ENOENT),
		errors.Is(err, unix.EAFNOSUPPORT):
		e.Kind = errdefs.Unsupported
		e.Why = "the kernel lacks nf_tables with NAT for the inet family (Linux 5.2) or its modules"
		e.Fix = "load the modules: modprobe -a nf_tables nft_chain_nat nft_masq nft_fib_inet; or use --network none or host"
	}
	return e
}

// setUp decides where nothing was decided, and makes the bridge.
func (m *Manager) setUp(ctx context.Context, rt *socket, c *config) (*ground, error) {
	eps, err := m.endpoints()
	if err != nil {
		return nil, err
	}
	free := len(eps) == 0 // nothing is attached: what was decided before may be decided anew
	if c != nil && !m.agrees(c) {
		if !free {
			return nil, &errdefs.Error{
				Op: "set up the bridge", What: c.Bridge, Kind: errdefs.Conflict,
				Why: fmt.Sprintf("containers are attached to %s (%s), and the configuration now asks for another", c.Bridge,
					c.Subnet), Fix: "stop them first",
			}
		}
		if err := m.removeBridge(rt, c); err != nil {
			return nil, err
		}
	}
	busy := map[string]bool{}
	for range maxBridges {
		h, err := rt.survey(ctx)
		if err != nil {
			return nil, fmt.Errorf("read the host's routes: %w", err)
		}
		next := c
		if c == nil || !m.agrees(c) || busy[c.Bridge] {
			if next, err = m.choose(rt, h, c, busy); err != nil {
				return nil, err
			}
		}
		l, err := rt.link(next.Bridge)
		if err != nil {
			return nil, err
		}
		if l != nil && l.mac != next.mac() {
			if m.o.Bridge != "" || !free {
				return nil, &errdefs.Error{
					Op: "set up the bridge", What: next.Bridge, Kind: errdefs.Conflict,
					Why: "an interface of this name exists and is not ours",
					Fix: "remove it (ip link delete " + next.Bridge + "), or choose another name for the bridge",
				}
			}
			busy[next.Bridge] = true
			c = next
			continue
		}
		if l == nil {
			if clash := h.overlap(next.Subnet); clash != "" {
				if m.o.Subnet.IsValid() || !free {
					return nil, &errdefs.Error{
						Op: "set up the bridge", What: next.Bridge, Kind: errdefs.Conflict,
						Why: fmt.Sprintf("its subnet %s overlaps %s of this host", next.Subnet, clash),
						Fix: "stop the containers that are attached and choose another subnet",
					}
				}
				if next, err = m.choose(rt, h, next, busy); err != nil {
					return nil, err
				}
			}
		}
		if c == nil || *c != *next {
			if err := m.saveConfig(next); err != nil {
				return nil, fmt.Errorf("record the network's configuration: %w", err)
			}
			c = next
		}
		g, err := m.makeBridge(ctx, rt, c, h, l, eps)
		if errors.Is(err, errTaken) && free {
			busy[c.Bridge] = m.o.Bridge == ""
			continue
		}
		return g, err
	}
	return nil, &errdefs.Error{
		Op: "set up the bridge", Kind: errdefs.Conflict,
		Why: "other stores took every bridge or subnet that was tried", Fix: "try again",
	}
}

// errTaken: another store was faster with this bridge name or this subnet.
var errTaken = errors.New("taken by another store")

// makeBridge makes the bridge, or finishes one (l) that a killed process left half made.
func (m *Manager) makeBridge(ctx context.Context, rt *socket, c *config, h *host, l *link, eps []*endpoint) (*ground, error) {
	fail := func(err error) (*ground, error) {
		return nil, &errdefs.Error{Op: "set up the bridge", What: c.Bridge, Kind: errdefs.KindOf(err), Err: err}
	}
	if l == nil {
		w := rt.start()
		w.makeBridge(c.Bridge, c.mac(), m.uplinkMTU(rt, h))
		if _, err := rt.do(w); errors.Is(err, unix.EEXIST) {
			return nil, errTaken
		} else if err != nil {
			return fail(err)
		}
		var err error
		if l, err = rt.link(c.Bridge); err != nil || l == nil {
			return fail(errors.Join(err, unix.ENODEV))
		}
	}
	g := &ground{config: c, bridge: *l, v6: h.globalIPv6 && ipv6Enabled()}
	conf := "net/ipv6/conf/" + c.Bridge + "/"
	if g.v6 {
		// A container with CAP_NET_RAW must not become the host's router (CVE-2020-13401).
		g.warn(setSysctl(conf+"accept_ra", "0"))
		g.warn(setSysctl(conf+"accept_dad", "0"))
	} else if ipv6Known() {
		g.warn(setSysctl(conf+"disable_ipv6", "1"))
	}
	w := rt.start()
	w.address(l.index, c.gateway())
	if g.v6 {
		w.address(l.index, c.ipv6(c.gateway().Addr()))
	}
	w.message(unix.RTM_SETLINK, unix.NLM_F_ACK, linkHeader(unix.AF_UNSPEC, l.index, unix.IFF_UP, unix.IFF_UP))
	w.str(unix.IFLA_IFALIAS, c.alias(g.v6))
	if _, err := rt.do(w); err != nil {
		return fail(errors.Join(err, rt.deleteLink(c.Bridge)))
	}
	// Another store may have chosen the same subnet at the same moment: the later interface gives way.
	if len(eps) == 0 && !m.o.Subnet.IsValid() {
		after, err := rt.survey(ctx)
		if err != nil {
			return fail(err)
		}
		for _, a := range after.addresses {
			if a.index < l.index && a.prefix.Addr().Is4() && a.prefix.Masked().Overlaps(c.Subnet) {
				if err := rt.deleteLink(c.Bridge); err != nil {
					return fail(err)
				}
				return nil, errTaken
			}
		}
	}
	// Somebody deleted the bridge under living containers: their veth pairs are still there, without a master.
	for _, e := range eps {
		w := rt.start()
		w.message(unix.RTM_SETLINK, unix.NLM_F_ACK, linkHeader(unix.AF_UNSPEC, 0, unix.IFF_UP, unix.IFF_UP))
		w.str(unix.IFLA_IFNAME, hostEnd(e.ID))
		w.u32(unix.IFLA_MASTER, l.index)
		if _, err := rt.do(w); err != nil && !errors.Is(err, unix.ENODEV) {
			return fail(err)
		}
	}
	return g, nil
}

// uplinkMTU is the MTU of the default route's interface: a larger one on the bridge makes packets that need
// fragmenting, which too many networks on the way do not manage.
func (m *Manager) uplinkMTU(rt *socket, h *host) uint32 {
	if h.uplink != 0 {
		if l, err := rt.linkByIndex(h.uplink); err == nil && l != nil {
			return min(max(l.mtu, 1280), 65535)
		}
	}
	return defaultMTU
}

// removeBridge deletes our bridge; a foreign one of the same name stays.
func (m *Manager) removeBridge(rt *socket, c *config) error {
	l, err := rt.link(c.Bridge)
	if err != nil || l == nil || l.mac != c.mac() {
		return err
	}
	return rt.deleteLink(c.Bridge)
}

func (g *ground) warn(err error) {
	if err != nil {
		g.warnings = append(g.warnings, err.Error())
	}
}
