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
	"slices"
	"strconv"
	"strings"
	"time"

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
	// Table is the name of the nftables table, chosen when it was first laid out: another store may have had the one that
	// goes with Bridge, which is only a plan as long as the store has no default bridge. Empty: not laid out yet.
	Table string `json:"table,omitempty"`
	// IPv6 says whether the bridge was last made with an IPv6 address.
	IPv6 bool `json:"ipv6,omitempty"`
}

// table is the name of the store's table.
func (c *config) table() string {
	if c.Table != "" {
		return c.Table
	}
	return tableName(c.Bridge)
}

// comment marks our table: nft(8) shows it. Its last part stands for the bridges that the rules are made for: when
// there is one more or less, the table is laid out anew.
func (c *config) comment(nets []*Network) string {
	h := sha256.New()
	for _, n := range nets {
		s, _ := n.settings()
		fmt.Fprintln(h, n.Interface, n.Internal, s.icc, s.masquerade)
		for _, p := range n.Subnets {
			fmt.Fprintln(h, p.Prefix)
		}
	}
	return "onggi rules " + rulesVersion + ", store " + c.Owner + ", bridges " + hex.EncodeToString(h.Sum(nil)[:4])
}

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

func (c *config) validate() error {
	switch {
	case c.Version != configVersion:
		return fmt.Errorf("version %d, want %d", c.Version, configVersion)
	case len(c.Owner) != 16 || strings.Trim(c.Owner, "0123456789abcdef") != "":
		return fmt.Errorf("owner %q is not 16 hex digits", c.Owner)
	case !validInterface(c.Bridge):
		return fmt.Errorf("bridge %q is not an interface name", c.Bridge)
	case c.Table != "" && !validInterface(c.Table):
		return fmt.Errorf("table %q is not a name that we give", c.Table)
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
	return writeSynced(filepath.Join(m.o.StateDir, configFile), append(b, '\n')) // the caller holds the lock
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
	all, err := m.records()
	if err != nil {
		return nil, err
	}
	servers := resolvers()
	free := func(p netip.Prefix) bool {
		for _, n := range all {
			for _, s := range n.Subnets {
				if s.Prefix.Overlaps(p) {
					return false
				}
			}
		}
		return h.overlap(p) == "" && !slices.ContainsFunc(servers, p.Contains)
	}
	for _, p := range candidates() {
		if free(p) {
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

// ground is the network that an Attach stands on: for a bridge its interface, complete.
type ground struct {
	store    *config
	net      *Network
	bridge   link         // of a bridge, or the parent interface
	gw4, gw6 netip.Prefix // the gateway's addresses with the subnet's length; zero: none of that family
	warnings []string
}

func groundOf(c *config, n *Network, l link) *ground {
	g := &ground{store: c, net: n, bridge: l}
	if s := n.v4(); s != nil {
		g.gw4 = netip.PrefixFrom(s.Gateway, s.Prefix.Bits())
	}
	if s := n.v6(); s != nil {
		g.gw6 = netip.PrefixFrom(s.Gateway, s.Prefix.Bits())
	}
	return g
}

// alias is what a finished bridge of ours carries.
func (g *ground) alias() string {
	s := "onggi store " + g.store.Owner
	for _, p := range []netip.Prefix{g.gw4, g.gw6} {
		if p.IsValid() {
			s += " " + p.String()
		}
	}
	return s
}

// finished reports whether the bridge is ours and complete: setting it up and naming it is its last step.
func (g *ground) finished(l *link) bool {
	return l != nil && l.mac == g.net.mac(g.store) && l.flags&unix.IFF_UP != 0 && l.alias == g.alias()
}

// ensure returns the ground, making or repairing what is missing. The caller holds the lock. When all is there it
// costs two round trips and the reading of one or two sysctls.
func (m *Manager) ensure(ctx context.Context, rt, nf *socket, n *Network) (g *ground, err error) {
	switch {
	case !n.Bridged():
		return m.ensureParent(rt, n)
	case n.Name == Default:
		g, err = m.ensureDefault(ctx, rt)
	default:
		g, err = m.ensureBridge(ctx, rt, n, false)
	}
	if err != nil {
		return nil, err
	}
	return g, m.ensureRules(ctx, nf, g)
}

// ensureDefault is ensureBridge for the default network, whose bridge and subnet are chosen here.
func (m *Manager) ensureDefault(ctx context.Context, rt *socket) (*ground, error) {
	c, err := m.loadConfig()
	if err != nil {
		return nil, err
	}
	if c != nil {
		l, err := rt.link(c.Bridge)
		if err != nil {
			return nil, err
		}
		if l != nil && m.agrees(c) {
			if g := groundOf(c, m.defaultNetwork(c), *l); g.finished(l) {
				return g, nil
			}
		}
	}
	return m.setUp(ctx, rt, c)
}

// ensureBridge makes the bridge of a user's network, or finishes one that is half made. The caller holds the lock; alone
// says that it has the host's turn as well.
func (m *Manager) ensureBridge(ctx context.Context, rt *socket, n *Network, alone bool) (*ground, error) {
	c, err := m.loadConfig()
	if err != nil {
		return nil, err
	}
	if c == nil {
		return nil, &errdefs.Error{
			Op: "set up the network", What: n.Name, Kind: errdefs.Corrupt, Why: "network.json is gone, and with it what proves that the bridge is ours",
			Fix: "make the network again: onggi network rm " + n.Name,
		}
	}
	l, err := rt.link(n.Interface)
	if err != nil {
		return nil, err
	}
	if l != nil {
		if g := groundOf(c, n, *l); g.finished(l) {
			return g, nil
		}
		if l.mac != n.mac(c) {
			return nil, &errdefs.Error{
				Op: "set up the bridge", What: n.Interface, Kind: errdefs.Conflict,
				Why: "an interface of this name exists and is not ours", Fix: "remove it: ip link delete " + n.Interface,
			}
		}
	}
	if !alone {
		defer turn(ctx)()
	}
	h, err := rt.survey(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the host's routes: %w", err)
	}
	if l == nil {
		for _, s := range n.Subnets {
			if clash := h.overlap(s.Prefix); clash != "" {
				return nil, &errdefs.Error{
					Op: "set up the bridge", What: n.Interface, Kind: errdefs.Conflict,
					Why: fmt.Sprintf("the subnet %s of the network %s overlaps %s of this host by now", s.Prefix, n.Name, clash),
					Fix: "make the network again, with another subnet: onggi network rm " + n.Name, Err: errTaken,
				}
			}
		}
	}
	eps, err := m.endpointsOf(n.ID)
	if err != nil {
		return nil, err
	}
	return m.makeBridge(ctx, rt, groundOf(c, n, link{}), h, l, eps)
}

// ensureParent looks for the interface that macvlan and ipvlan stand on.
func (m *Manager) ensureParent(rt *socket, n *Network) (*ground, error) {
	c, err := m.loadConfig()
	if err != nil {
		return nil, err
	}
	if n.Interface == "" {
		return groundOf(c, n, link{}), nil
	}
	l, err := rt.link(n.Interface)
	if err != nil {
		return nil, err
	}
	if l == nil {
		return nil, &errdefs.Error{
			Op: "set up the network", What: n.Name, Kind: errdefs.NotFound, Why: "its parent interface " + n.Interface + " is not there",
			Fix: "bring it back, or make the network again with another one",
		}
	}
	return groundOf(c, n, *l), nil
}

// agrees reports whether the configuration is what Options ask for.
func (m *Manager) agrees(c *config) bool {
	return (m.o.Bridge == "" || m.o.Bridge == c.Bridge) && (!m.o.Subnet.IsValid() || m.o.Subnet.Masked() == c.Subnet)
}

// ensureRules makes the table when it is not there or not for all bridges, with an element for every recorded port, and
// forwarding. The caller holds the lock.
func (m *Manager) ensureRules(ctx context.Context, nf *socket, g *ground) error {
	c := g.store
	nets, err := m.bridges(c)
	if err != nil {
		return err
	}
	there, err := nf.hasTable(c.table(), c.comment(nets))
	if err != nil {
		return rulesError(err)
	}
	v6 := g.gw6.IsValid()
	if !there {
		if err := m.layOut(nf, c, nets); err != nil {
			return err
		}
		if drops, err := nf.foreignForwardDrop(ctx, c.table()); err == nil && len(drops) > 0 {
			g.warnings = append(g.warnings, fmt.Sprintf("the firewall drops forwarded packets by policy (%s), which our "+
				"own table cannot overrule: containers may not reach other hosts; allow the interface %s there",
				strings.Join(drops, ", "), g.bridge.name))
		}
	}
	g.warnings = append(g.warnings, enableForwarding(v6)...)
	return nil
}

// layOut writes the table for these bridges and all recorded ports. The caller holds the lock.
func (m *Manager) layOut(nf *socket, c *config, nets []*Network) error {
	eps, err := m.endpoints()
	if err != nil {
		return err
	}
	var all []element
	for _, e := range eps {
		all = append(all, elementsOf(e)...)
	}
	for n := 0; ; n++ { // under a name that no other store has by now: the ruleset may have been flushed
		name := c.table()
		if n > 0 {
			name = "onggi-rules" + strconv.Itoa(n)
		}
		comment, err := nf.tableComment(name)
		if err != nil {
			return rulesError(err)
		}
		fresh := comment == ""
		if !fresh && comment != "?" && !strings.Contains(comment, "store "+c.Owner) {
			continue
		}
		if name != c.Table {
			chosen := *c
			chosen.Table = name
			if err := m.saveConfig(&chosen); err != nil {
				return err
			}
			*c = chosen
		}
		err = nf.layOut(c, nets, all, fresh)
		if errors.Is(err, unix.EEXIST) && n < 1000 { // just taken by another
			continue
		}
		if err != nil {
			return rulesError(err)
		}
		return nil
	}
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
	eps, err := m.endpointsOf(fixedID(Default))
	if err != nil {
		return nil, err
	}
	defer turn(ctx)()
	free := len(eps) == 0 // nothing is attached: what was decided before may be decided anew
	if c != nil && !m.agrees(c) {
		if !free {
			return nil, &errdefs.Error{
				Op: "set up the bridge", What: c.Bridge, Kind: errdefs.Conflict,
				Why: fmt.Sprintf("containers are attached to %s (%s), and the configuration now asks for another", c.Bridge,
					c.Subnet), Fix: "stop them first",
			}
		}
		if err := m.removeBridge(rt, c, m.defaultNetwork(c)); err != nil {
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
		decided := *next
		decided.IPv6 = h.globalIPv6 && ipv6Enabled()
		if next = &decided; c == nil || *c != *next {
			if err := m.saveConfig(next); err != nil {
				return nil, fmt.Errorf("record the network's configuration: %w", err)
			}
			c = next
		}
		g, err := m.makeBridge(ctx, rt, groundOf(c, m.defaultNetwork(c), link{}), h, l, eps)
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

// turn waits until no other store of this network namespace is choosing a subnet or a bridge's name, and takes the turn:
// a name among the abstract sockets, which a namespace has for itself and the kernel gives back, whatever happens to us.
// Anybody may take that name, so nobody waits long for it: stores that choose at the same moment then notice only most
// times (makeBridge).
func turn(ctx context.Context) (release func()) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return func() {}
	}
	for end := time.Now().Add(2 * time.Second); ctx.Err() == nil && time.Now().Before(end); time.Sleep(time.Millisecond) {
		if err := unix.Bind(fd, &unix.SockaddrUnix{Name: "@onggi-network"}); err != unix.EADDRINUSE {
			break
		}
	}
	return func() { _ = unix.Close(fd) }
}

// errTaken: another store was faster with this bridge name or this subnet.
var errTaken = &errdefs.Error{Kind: errdefs.Conflict, Why: "another store has just taken the bridge's name or its subnet", Fix: "try again"}

// makeBridge makes the bridge of g, or finishes one (l) that a killed process left half made.
func (m *Manager) makeBridge(ctx context.Context, rt *socket, g *ground, h *host, l *link, eps []*endpoint) (*ground, error) {
	name := g.net.Interface
	fail := func(err error) (*ground, error) {
		return nil, &errdefs.Error{Op: "set up the bridge", What: name, Kind: errdefs.KindOf(err), Err: err}
	}
	set, err := g.net.settings()
	if err != nil {
		return nil, err
	}
	if l == nil {
		mtu := set.mtu
		if mtu == 0 {
			mtu = m.uplinkMTU(rt, h)
		}
		w := rt.start()
		w.makeBridge(name, g.net.mac(g.store), mtu)
		if _, err := rt.do(w); errors.Is(err, unix.EEXIST) {
			return nil, errTaken
		} else if err != nil {
			return fail(err)
		}
		var err error
		if l, err = rt.link(name); err != nil || l == nil {
			return fail(errors.Join(err, unix.ENODEV))
		}
	}
	g.bridge = *l
	conf := "net/ipv6/conf/" + name + "/"
	if g.gw6.IsValid() {
		g.warn(setSysctl(conf+"disable_ipv6", "0"))
		// A container with CAP_NET_RAW must not become the host's router (CVE-2020-13401).
		g.warn(setSysctl(conf+"accept_ra", "0"))
		g.warn(setSysctl(conf+"accept_dad", "0"))
	} else if ipv6Known() {
		g.warn(setSysctl(conf+"disable_ipv6", "1"))
	}
	w := rt.start()
	for _, p := range []netip.Prefix{g.gw4, g.gw6} {
		if p.IsValid() {
			w.address(l.index, p)
		}
	}
	w.message(unix.RTM_SETLINK, unix.NLM_F_ACK, linkHeader(unix.AF_UNSPEC, l.index, unix.IFF_UP, unix.IFF_UP))
	w.str(unix.IFLA_IFALIAS, g.alias())
	if _, err := rt.do(w); err != nil {
		return fail(errors.Join(err, rt.deleteLink(name)))
	}
	// Another store may have chosen the same subnet at the same moment: the later interface gives way.
	if len(eps) == 0 && !m.o.Subnet.IsValid() {
		after, err := rt.survey(ctx)
		if err != nil {
			return fail(err)
		}
		for _, a := range after.addresses {
			if a.index < l.index && a.prefix.Addr().Is4() && a.prefix.Masked().Overlaps(g.gw4) {
				if err := rt.deleteLink(name); err != nil {
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
		w.str(unix.IFLA_IFNAME, e.hostEnd())
		w.u32(unix.IFLA_MASTER, l.index)
		if _, err := rt.do(w); err != nil && !errors.Is(err, unix.ENODEV) {
			return fail(err)
		}
		for _, f := range []struct {
			attribute uint16
			on        bool
		}{{bridgePortIsolated, !set.icc}, {bridgePortHairpin, len(e.Ports) > 0}} {
			if !f.on {
				continue
			}
			w := rt.start()
			w.bridgePort(e.hostEnd(), f.attribute, 1)
			if _, err := rt.do(w); err != nil && !errors.Is(err, unix.ENODEV) {
				return fail(err)
			}
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
func (m *Manager) removeBridge(rt *socket, c *config, n *Network) error {
	l, err := rt.link(n.Interface)
	if err != nil || l == nil || l.mac != n.mac(c) {
		return err
	}
	return rt.deleteLink(n.Interface)
}

func (g *ground) warn(err error) {
	if err != nil {
		g.warnings = append(g.warnings, err.Error())
	}
}
