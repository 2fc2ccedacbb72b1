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
	"github.com/onggi/onggi/undo"
	"golang.org/x/sys/unix"
)

// The names of the networks that every store has. They cannot be removed.
const (
	Default = "bridge" // the bridge of containers that name no network
	Host    = "host"   // no network of their own: this host's
	None    = "none"   // loopback alone
)

// Network is the record of one network, StateDir/networks/ID.json: what was decided when it was made. It never changes.
type Network struct {
	ID      string    `json:"id"` // 64 hex digits
	Name    string    `json:"name"`
	Driver  string    `json:"driver"` // "bridge", "macvlan", "ipvlan"; "host" and "null" of the two that every store has
	Created time.Time `json:"created,omitzero"`
	// Subnets are at most one of each family. A bridge has one IPv4 subnet always.
	Subnets    []Subnet          `json:"subnets,omitempty"`
	Internal   bool              `json:"internal,omitempty"` // no way out, and none in
	IPv6       bool              `json:"ipv6,omitempty"`
	Attachable bool              `json:"attachable,omitempty"` // kept for docker's users: every container may join here
	Labels     map[string]string `json:"labels,omitempty"`
	Options    map[string]string `json:"options,omitempty"` // as the user wrote them; settings reads them
	// Interface is the bridge's name, or the parent interface of macvlan and ipvlan.
	Interface string `json:"interface,omitempty"`
}

// Subnet is one address range of a network.
type Subnet struct {
	Prefix  netip.Prefix `json:"prefix"`
	Gateway netip.Addr   `json:"gateway,omitzero"` // of a bridge: its own address
	// Range, when valid, is the part of the prefix from which addresses are given to those who ask for none.
	Range netip.Prefix `json:"range,omitzero"`
	// Aux are addresses that others have, by name: they are never given.
	Aux map[string]netip.Addr `json:"aux,omitempty"`
}

const (
	networksDir  = "networks"
	maxNetwork   = 64 << 10
	maxNetworks  = 4096
	networkLabel = "onggi network "
)

// fixedID is the id of a network that every store has: the same everywhere.
func fixedID(name string) string {
	sum := sha256.Sum256([]byte(networkLabel + name))
	return hex.EncodeToString(sum[:])
}

// Predefined reports whether the network is one of those that every store has.
func (n *Network) Predefined() bool { return n.Name == Default || n.Name == Host || n.Name == None }

// Bridged reports whether the network is a bridge, with ports that can be published.
func (n *Network) Bridged() bool { return n.Driver == "bridge" }

// Named reports whether names are resolved on it: on all but the default network, as docker has it.
func (n *Network) Named() bool { return !n.Predefined() }

// v4 and v6 are the subnets of the network, or nil.
func (n *Network) v4() *Subnet { return n.subnet(true) }
func (n *Network) v6() *Subnet { return n.subnet(false) }

func (n *Network) subnet(v4 bool) *Subnet {
	for i := range n.Subnets {
		if n.Subnets[i].Prefix.Addr().Is4() == v4 {
			return &n.Subnets[i]
		}
	}
	return nil
}

// mac is the bridge's address: the same for ever, and the proof that a bridge of this name is ours. The default
// network's is that of its configuration.
func (n *Network) mac(c *config) (m [6]byte) {
	if n.Name == Default {
		return c.mac()
	}
	sum := sha256.Sum256([]byte(c.Owner + n.ID))
	copy(m[:], sum[:])
	m[0] = m[0]&^0x03 | bridgeMACFirstOctet
	return m
}

// settings are a network's options, read.
type settings struct {
	mtu        uint32 // 0: the uplink's
	icc        bool   // containers of the network reach each other
	masquerade bool   // they reach others under the host's address
	bindIPv4   netip.Addr
	prefix     string // of the interface's name inside
	mode       string // of macvlan (bridge, private, vepa, passthru) or ipvlan (l2, l3, l3s)
	flag       string // of ipvlan: bridge, private, vepa
}

// options are what -o takes. The key is docker's; podman's and short spellings follow.
var options = []struct {
	driver, key string
	also        []string
	about       string
}{
	{"bridge", "com.docker.network.bridge.name", []string{"bridge.name"}, "name of the bridge"},
	{"bridge", "com.docker.network.bridge.enable_icc", []string{"enable_icc"}, "true or false: containers reach each other"},
	{"bridge", "com.docker.network.bridge.enable_ip_masquerade", []string{"enable_ip_masquerade"}, "true or false: to others under the host's address"},
	{"bridge", "com.docker.network.bridge.host_binding_ipv4", []string{"host_binding_ipv4"}, "address at which -p publishes by default"},
	{"", "com.docker.network.driver.mtu", []string{"mtu"}, "largest packet, bytes"},
	{"", "com.docker.network.container_iface_prefix", []string{"container_iface_prefix"}, "name of the interfaces inside, without number"},
	{"macvlan", "parent", nil, "interface of the host"},
	{"ipvlan", "parent", nil, "interface of the host"},
	{"macvlan", "macvlan_mode", []string{"mode"}, "bridge, private, vepa or passthru"},
	{"ipvlan", "ipvlan_mode", []string{"mode"}, "l2, l3 or l3s"},
	{"ipvlan", "ipvlan_flag", nil, "bridge, private or vepa"},
}

// settings reads the options. Errors: InvalidArgument, for one that is unknown or has a wrong value.
func (n *Network) settings() (settings, error) {
	s := settings{icc: true, masquerade: true, prefix: "eth"}
	switch n.Driver {
	case "macvlan":
		s.mode = "bridge"
	case "ipvlan":
		s.mode, s.flag = "l2", "bridge"
	}
	for k, v := range n.Options {
		bad := func(why string) (settings, error) {
			return s, &errdefs.Error{
				Op: "use", What: "--opt " + shorten(k) + "=" + strconv.Quote(shorten(v)), Kind: errdefs.InvalidArgument,
				Why: why, Fix: optionsOf(n.Driver),
			}
		}
		key, known := "", false
		for _, o := range options {
			if (o.driver == "" || o.driver == n.Driver) && (o.key == k || slices.Contains(o.also, k)) {
				key, known = o.key, true
			}
		}
		if !known {
			return bad("the driver " + n.Driver + " has no such option")
		}
		var err error
		switch key {
		case "com.docker.network.bridge.name", "parent":
			if !validInterface(v) {
				return bad("it is not an interface name: 1 to 15 letters, digits, dots, dashes or underscores")
			}
		case "com.docker.network.bridge.enable_icc":
			s.icc, err = strconv.ParseBool(v)
		case "com.docker.network.bridge.enable_ip_masquerade":
			s.masquerade, err = strconv.ParseBool(v)
		case "com.docker.network.bridge.host_binding_ipv4":
			if s.bindIPv4, err = netip.ParseAddr(v); err == nil && !s.bindIPv4.Is4() {
				return bad("it is not an IPv4 address")
			}
		case "com.docker.network.driver.mtu":
			var m uint64
			if m, err = strconv.ParseUint(v, 10, 16); err != nil || m < 68 || n.IPv6 && m < 1280 {
				return bad("an MTU is 68 to 65535 bytes, with IPv6 1280 at least (RFC 791, RFC 8200)")
			}
			s.mtu = uint32(m)
		case "com.docker.network.container_iface_prefix":
			if !validInterface(v) || len(v) > 10 {
				return bad("it is not the beginning of an interface name")
			}
			s.prefix = v
		case "macvlan_mode":
			if macvlanModes[v] == 0 {
				return bad("there is no such mode")
			}
			s.mode = v
		case "ipvlan_mode":
			if _, ok := ipvlanModes[v]; !ok {
				return bad("there is no such mode")
			}
			s.mode = v
		case "ipvlan_flag":
			if _, ok := ipvlanFlags[v]; !ok {
				return bad("there is no such flag")
			}
			s.flag = v
		}
		if err != nil {
			return bad("the value is wrong")
		}
	}
	return s, nil
}

func optionsOf(driver string) string {
	var all []string
	for _, o := range options {
		if o.driver == "" || o.driver == driver {
			all = append(all, o.key+" ("+o.about+")")
		}
	}
	return "its options are " + strings.Join(all, "; ")
}

// value returns an option by docker's name or another spelling of it.
func (n *Network) value(key string) string {
	for _, o := range options {
		if o.key == key && (o.driver == "" || o.driver == n.Driver) {
			for _, k := range append([]string{o.key}, o.also...) {
				if v, ok := n.Options[k]; ok {
					return v
				}
			}
		}
	}
	return ""
}

// validName is docker's rule for the names of networks.
func validName(s string) bool {
	for i, r := range s {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !letter && (i == 0 || r != '_' && r != '.' && r != '-') {
			return false
		}
	}
	return s != "" && len(s) <= 128
}

// validate checks all that does not depend on the host.
func (n *Network) validate() error {
	bad := func(what, why, fix string) error {
		return &errdefs.Error{Op: "use", What: what, Kind: errdefs.InvalidArgument, Why: why, Fix: fix}
	}
	if !validName(n.Name) {
		return bad(fmt.Sprintf("network name %q", shorten(n.Name)), "only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed, at most 128 of them", "choose another name")
	}
	switch n.Driver {
	case "bridge", "macvlan", "ipvlan":
	default:
		return bad("--driver "+strconv.Quote(shorten(n.Driver)), "there is no such driver", "use bridge, macvlan or ipvlan")
	}
	if _, err := n.settings(); err != nil {
		return err
	}
	if n.Driver != "bridge" && !n.Internal && n.Interface == "" {
		return bad("--driver "+n.Driver, "it needs an interface of the host", "name one: -o parent=eth0; or make the network --internal")
	}
	for k := range n.Labels {
		if k == "" {
			return bad("--label", "a label has no name", "write NAME=VALUE")
		}
	}
	var have [2]bool
	for i := range n.Subnets {
		s := &n.Subnets[i]
		p := s.Prefix
		family := 0
		if p.Addr().Is6() {
			family = 1
		}
		what := "--subnet " + p.String()
		switch {
		case !p.IsValid() || p.Addr().Is4In6() || p.Addr().Zone() != "":
			return bad(what, "it is not a network", "write it as --subnet 10.11.12.0/24")
		case p != p.Masked():
			return bad(what, "it has host bits set", "write "+p.Masked().String())
		case have[family]:
			return bad(what, "a network has one subnet of each family", "leave it out, or make another network")
		case p.Addr().Is4() && (p.Bits() < 8 || p.Bits() > 30), p.Addr().Is6() && (p.Bits() < 16 || p.Bits() > 126):
			return bad(what, "it is too large or too small for a network of containers", "use a /8 to /30 of IPv4, a /16 to /126 of IPv6")
		case p.Addr().IsLoopback() || p.Addr().IsMulticast() || p.Addr().IsLinkLocalUnicast() || p.Addr().IsUnspecified():
			return bad(what, "these addresses are not for hosts", "use private ones, such as 10.11.12.0/24 or fd00:11:12::/64")
		case p.Addr().Is6() && !n.IPv6:
			return bad(what, "the network has no IPv6", "add --ipv6")
		}
		have[family] = true
		within := func(flag string, a netip.Addr) error {
			switch {
			case !p.Contains(a):
				return bad(flag+" "+a.String(), "it is not in the subnet "+p.String(), "choose one that is")
			case a == p.Addr(), a.Is4() && a == lastOf(p):
				return bad(flag+" "+a.String(), "it is the first or last address of the subnet "+p.String()+", which no host has", "choose another")
			}
			return nil
		}
		if s.Gateway.IsValid() {
			if err := within("--gateway", s.Gateway); err != nil {
				return err
			}
		}
		if s.Range.IsValid() && (s.Range != s.Range.Masked() || s.Range.Bits() < p.Bits() || !p.Contains(s.Range.Addr())) {
			return bad("--ip-range "+s.Range.String(), "it is not a part of the subnet "+p.String(), "choose a smaller network within it")
		}
		seen := map[netip.Addr]string{}
		for name, a := range s.Aux {
			if err := within("--aux-address "+name+"=", a); err != nil {
				return err
			}
			if a == s.Gateway || seen[a] != "" {
				return bad("--aux-address "+name+"="+a.String(), "the address is given twice", "leave one out")
			}
			seen[a] = name
		}
	}
	return nil
}

func (m *Manager) networkPath(id string) string {
	return filepath.Join(m.o.StateDir, networksDir, id+".json")
}

// records returns the networks that users have made, in the order of their names. A record that cannot be read is an
// error that names its file: to pass it over would give its addresses to others.
func (m *Manager) records() ([]*Network, error) {
	d, err := os.Open(filepath.Join(m.o.StateDir, networksDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var out []*Network
	for _, f := range names {
		id, ok := strings.CutSuffix(f, ".json")
		if !ok || f[0] == '.' {
			continue
		}
		b, err := readSmall(m.networkPath(id), maxNetwork)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		n := &Network{}
		if err == nil {
			err = json.Unmarshal(b, n)
		}
		if err == nil && (n.ID != id || n.Predefined()) {
			err = errors.New("it is the record of another network")
		}
		if err == nil {
			err = n.validate()
		}
		if err == nil && n.Driver == "bridge" && (n.v4() == nil || !n.v4().Gateway.IsValid() || !validInterface(n.Interface)) {
			err = errors.New("a bridge without address or interface")
		}
		if err != nil {
			return nil, &errdefs.Error{
				Op: "read the network", What: m.networkPath(id), Kind: errdefs.Corrupt, Err: err,
				Fix: "move the file away and make the network again",
			}
		}
		out = append(out, n)
	}
	slices.SortFunc(out, func(a, b *Network) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// defaultNetwork describes the default network as a record. Before the first container its subnet is not chosen.
func (m *Manager) defaultNetwork(c *config) *Network {
	n := &Network{ID: fixedID(Default), Name: Default, Driver: "bridge", IPv6: c != nil && c.IPv6}
	if c != nil {
		n.Interface = c.Bridge
		n.Options = map[string]string{"com.docker.network.bridge.name": c.Bridge}
		n.Subnets = []Subnet{{Prefix: c.Subnet.Masked(), Gateway: c.gateway().Addr()}}
		if n.IPv6 {
			n.Subnets = append(n.Subnets, Subnet{Prefix: c.ULA.Masked(), Gateway: c.ipv6(c.gateway().Addr()).Addr()})
		}
	}
	return n
}

// List returns all networks in the order of their names, those that every store has among them.
func (m *Manager) List() ([]*Network, error) {
	c, err := m.loadConfig()
	if err != nil {
		return nil, err
	}
	out, err := m.records()
	if err != nil {
		return nil, err
	}
	out = append(out, m.defaultNetwork(c), &Network{ID: fixedID(Host), Name: Host, Driver: "host"}, &Network{ID: fixedID(None), Name: None, Driver: "null"})
	slices.SortFunc(out, func(a, b *Network) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// Get finds a network by name, id, or unambiguous prefix of an id. NotFound; Conflict for an ambiguous prefix.
func (m *Manager) Get(nameOrID string) (*Network, error) {
	all, err := m.List()
	if err != nil {
		return nil, err
	}
	return find(all, nameOrID)
}

func find(all []*Network, s string) (*Network, error) {
	var found *Network
	for _, n := range all {
		switch {
		case n.Name == s || n.ID == s:
			return n, nil
		case len(s) >= 3 && strings.Trim(s, "0123456789abcdef") == "" && strings.HasPrefix(n.ID, s):
			if found != nil {
				return nil, &errdefs.Error{
					Op: "find", What: "network " + s, Kind: errdefs.Conflict,
					Why: fmt.Sprintf("the prefix is ambiguous: %s and %s begin with it", found.ID[:12], n.ID[:12]), Fix: "write more digits",
				}
			}
			found = n
		}
	}
	if found == nil {
		return nil, &errdefs.Error{
			Op: "find", What: "network " + shorten(s), Kind: errdefs.NotFound, Why: "there is no such network",
			Fix: "see: onggi network ls; or make it: onggi network create " + shorten(s),
		}
	}
	return found, nil
}

// Create makes a network: its record, and for a bridge its interface and rules. What the user has left open is chosen:
// a subnet that overlaps no route, address or resolver of this host and no other network; the gateway; the interface.
//
// Errors: InvalidArgument, AlreadyExists (the name), Conflict (the subnet or interface is another's), Exhausted,
// NotFound (the parent interface). On error nothing stays.
func (m *Manager) Create(ctx context.Context, want Network) (made *Network, warnings []string, err error) {
	for range 32 {
		made, warnings, err = m.create(ctx, want)
		if !errors.Is(err, errTaken) || want.v4() != nil || ctx.Err() != nil {
			break
		}
		// Another store was faster with the subnet that we had chosen: there are more.
	}
	return made, warnings, err
}

func (m *Manager) create(ctx context.Context, want Network) (_ *Network, warnings []string, err error) {
	n := want
	if n.Driver == "" {
		n.Driver = "bridge"
	}
	n.Options, n.Labels, n.Subnets = cloned(n.Options), cloned(n.Labels), slices.Clone(n.Subnets)
	switch n.Driver {
	case "bridge":
		n.Interface = n.value("com.docker.network.bridge.name")
	case "macvlan", "ipvlan":
		n.Interface = n.value("parent")
	}
	if err := n.validate(); err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			err = &errdefs.Error{
				Op: "create the network", What: n.Name, Kind: errdefs.KindOf(err), Fix: errdefs.FixOf(err), Err: err,
			}
		}
	}()
	if n.Predefined() {
		return nil, nil, &errdefs.Error{
			Kind: errdefs.AlreadyExists, Why: "network with name " + n.Name + " already exists: every store has it",
			Fix: "choose another name",
		}
	}
	var r [32]byte
	if _, err := rand.Read(r[:]); err != nil {
		return nil, nil, err
	}
	n.ID, n.Created = hex.EncodeToString(r[:]), time.Now().UTC().Round(0)
	rt, err := openSocket(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, nil, err
	}
	defer rt.close()
	nf, err := openSocket(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, nil, err
	}
	defer nf.closeLater()
	s := undo.New("network.create")
	defer s.Undo(&err)
	var g *ground
	err = m.locked(func(*os.File) (err error) {
		defer turn(ctx)()
		defer s.Undo(&err) // under the lock, while nobody has joined
		if err := s.Do("record", func() error { return m.decide(ctx, rt, &n) }, func() error { return m.dropRecord(n.ID) }); err != nil {
			return err
		}
		if !n.Bridged() {
			return nil
		}
		if err := s.Do("bridge", func() (err error) { g, err = m.ensureBridge(ctx, rt, &n, true); return err }, func() error {
			c, err := m.loadConfig()
			if err != nil {
				return err
			}
			return m.removeBridge(rt, c, &n)
		}); err != nil {
			return err
		}
		return s.Do("rules", func() error { return m.ensureRules(ctx, nf, g) }, func() error {
			return m.rulesWithout(nf, n.ID)
		})
	})
	if err != nil {
		return nil, nil, err
	}
	if g != nil {
		warnings = g.warnings
	}
	return &n, warnings, nil
}

func cloned(m map[string]string) map[string]string {
	out := make(map[string]string, len(m))
	for k, v := range m {
		out[k] = v
	}
	return out
}

// decide fills in what the user has left open, checks what he has not, and writes the record. The caller holds the lock.
func (m *Manager) decide(ctx context.Context, rt *socket, n *Network) error {
	all, err := m.records()
	if err != nil {
		return err
	}
	if len(all) >= maxNetworks {
		return &errdefs.Error{Kind: errdefs.Exhausted, Why: fmt.Sprintf("there are %d networks already", len(all)), Fix: "remove some: onggi network prune"}
	}
	for _, o := range all {
		if o.Name == n.Name {
			return &errdefs.Error{
				Kind: errdefs.AlreadyExists, Why: "network with name " + n.Name + " already exists", Fix: "choose another name, or remove it: onggi network rm " + n.Name,
			}
		}
	}
	h, err := rt.survey(ctx)
	if err != nil {
		return fmt.Errorf("read the host's routes: %w", err)
	}
	c, err := m.identity(rt, h)
	if err != nil {
		return err
	}
	all = append(all, m.defaultNetwork(c))
	if err := m.decideSubnets(c, h, all, n); err != nil {
		return err
	}
	if err := m.decideInterface(rt, all, n); err != nil {
		return err
	}
	if n.IPv6 && !ipv6Enabled() {
		return &errdefs.Error{
			Kind: errdefs.Unsupported, Why: "this host has IPv6 switched off (net.ipv6.conf.all.disable_ipv6)", Fix: "leave --ipv6 out, or switch it on",
		}
	}
	if err := n.validate(); err != nil {
		return err
	}
	b, err := json.MarshalIndent(n, "", "\t")
	if err != nil {
		return err
	}
	if len(b) > maxNetwork {
		return &errdefs.Error{Kind: errdefs.InvalidArgument, Why: "labels and options take more than 64 KiB", Fix: "leave some out"}
	}
	if err := os.MkdirAll(filepath.Dir(m.networkPath(n.ID)), 0o700); err != nil {
		return err
	}
	return writeSynced(m.networkPath(n.ID), append(b, '\n'))
}

// identity returns the store's configuration, making it when it is not there. The caller holds the lock.
func (m *Manager) identity(rt *socket, h *host) (*config, error) {
	c, err := m.loadConfig()
	if err != nil || c != nil {
		return c, err
	}
	if c, err = m.choose(rt, h, nil, map[string]bool{}); err != nil {
		return nil, err
	}
	return c, m.saveConfig(c)
}

// pool gives the subnets that are tried for a network without one. They are small: a host has more networks than
// containers in one of them (docker's /16s are used up by the thirtieth).
func pool(f func(netip.Prefix) (stop bool)) {
	for a := 190; a <= 207; a++ {
		for b := range 256 {
			if f(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(a), byte(b)}), 24)) {
				return
			}
		}
	}
}

func (m *Manager) decideSubnets(c *config, h *host, all []*Network, n *Network) error {
	clash := func(p netip.Prefix) string {
		for _, o := range all {
			for _, s := range o.Subnets {
				if s.Prefix.Overlaps(p) {
					return "the network " + o.Name + " (" + s.Prefix.String() + ")"
				}
			}
		}
		// A container on macvlan or ipvlan is a neighbour of this host: it has the host's own subnet.
		if n.Bridged() {
			if t := h.overlap(p); t != "" {
				return "a route or address of this host (" + t + ")"
			}
			for _, s := range resolvers() {
				if p.Contains(s) {
					return "this host's name server " + s.String()
				}
			}
		}
		return ""
	}
	if n.v4() == nil {
		pool(func(p netip.Prefix) bool {
			if clash(p) != "" {
				return false
			}
			n.Subnets = append([]Subnet{{Prefix: p}}, n.Subnets...)
			return true
		})
		if n.v4() == nil {
			return &errdefs.Error{
				Op: "choose a subnet", Kind: errdefs.Exhausted, Why: "every /24 of 10.190.0.0 to 10.207.255.0 overlaps a route or address of this host, or another network",
				Fix: "name a free one: --subnet 192.168.200.0/24",
			}
		}
	}
	if n.IPv6 && n.v6() == nil {
		// RFC 4193: the store's own 40 random bits, and 16 for the network.
		for i := range 1 << 16 {
			b := c.ULA.Masked().Addr().As16()
			sum := sha256.Sum256([]byte(n.ID + strconv.Itoa(i)))
			copy(b[6:8], sum[:])
			p := netip.PrefixFrom(netip.AddrFrom16(b), 64)
			if p != c.ULA.Masked() && clash(p) == "" {
				n.Subnets = append(n.Subnets, Subnet{Prefix: p})
				break
			}
		}
	}
	for i := range n.Subnets {
		s := &n.Subnets[i]
		if why := clash(s.Prefix); why != "" {
			return &errdefs.Error{
				Op: "use", What: "--subnet " + s.Prefix.String(), Kind: errdefs.Conflict, Why: "pool overlaps with " + why, Fix: "choose another subnet, or leave it out",
			}
		}
		if !s.Gateway.IsValid() && (n.Bridged() || !n.Internal) {
			for a := s.Prefix.Addr().Next(); ; a = a.Next() {
				taken := false
				for _, x := range s.Aux {
					taken = taken || x == a
				}
				if !taken {
					s.Gateway = a
					break
				}
			}
		}
	}
	return nil
}

func (m *Manager) decideInterface(rt *socket, all []*Network, n *Network) error {
	if !n.Bridged() {
		if n.Interface == "" {
			return nil // internal: a dummy in the sandbox's place is made at Attach
		}
		l, err := rt.link(n.Interface)
		if err != nil {
			return err
		}
		if l == nil {
			fix := "name one that `ip link` shows"
			if base, vlan, ok := strings.Cut(n.Interface, "."); ok {
				fix = "make it: ip link add link " + base + " name " + n.Interface + " type vlan id " + vlan
			}
			return &errdefs.Error{Op: "use", What: "-o parent=" + n.Interface, Kind: errdefs.NotFound, Why: "the host has no such interface", Fix: fix}
		}
		for _, o := range all {
			if o.Interface == n.Interface && o.Driver != "bridge" && o.Driver != n.Driver {
				return &errdefs.Error{
					Op: "use", What: "-o parent=" + n.Interface, Kind: errdefs.Conflict,
					Why: "the network " + o.Name + " has it by " + o.Driver + ", and an interface can be only one of both", Fix: "use another interface, or the same driver",
				}
			}
		}
		return nil
	}
	if n.Interface == "" {
		n.Interface = "onggi-" + n.ID[:9]
	}
	for _, o := range all {
		if o.Bridged() && o.Interface == n.Interface {
			return &errdefs.Error{
				Op: "use", What: "-o com.docker.network.bridge.name=" + n.Interface, Kind: errdefs.Conflict, Why: "it is the bridge of the network " + o.Name, Fix: "choose another name",
			}
		}
	}
	if l, err := rt.link(n.Interface); err != nil {
		return err
	} else if l != nil {
		return &errdefs.Error{
			Op: "use", What: "the bridge " + n.Interface, Kind: errdefs.Conflict, Why: "an interface of this name exists and is not ours",
			Fix: "choose another name: -o com.docker.network.bridge.name=NAME",
		}
	}
	return nil
}

func (m *Manager) dropRecord(id string) error {
	if err := os.Remove(m.networkPath(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncDirectory(filepath.Dir(m.networkPath(id)))
}

// Remove removes a network that nobody is connected to: rules, bridge, record, in this order, so that one that was
// interrupted is done again. Errors: NotFound, Conflict (somebody is connected), Forbidden (every store has it).
func (m *Manager) Remove(ctx context.Context, nameOrID string) (_ *Network, err error) {
	n, err := m.Get(nameOrID)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = &errdefs.Error{Op: "remove the network", What: n.Name, Kind: errdefs.KindOf(err), Fix: errdefs.FixOf(err), Err: err}
		}
	}()
	if n.Predefined() {
		return nil, &errdefs.Error{Kind: errdefs.Forbidden, Why: n.Name + " is a pre-defined network and cannot be removed"}
	}
	rt, err := openSocket(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer rt.close()
	nf, err := openSocket(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	defer nf.closeLater()
	s := undo.New("network.remove")
	return n, m.locked(func(*os.File) error {
		eps, err := m.endpointsOf(n.ID)
		if err != nil {
			return err
		}
		if len(eps) > 0 {
			var who []string
			for _, e := range eps {
				who = append(who, e.label())
			}
			slices.Sort(who)
			return &errdefs.Error{
				Kind: errdefs.Conflict, Why: "network " + n.Name + " has active endpoints: " + strings.Join(who, ", "),
				Fix: "stop them, or disconnect them: onggi network disconnect " + n.Name + " " + who[0],
			}
		}
		c, err := m.loadConfig()
		if err != nil {
			return err
		}
		if n.Bridged() && c != nil {
			if err := s.Do("rules", func() error { return m.rulesWithout(nf, n.ID) }, nil); err != nil {
				return err
			}
			if err := s.Do("bridge", func() error { return m.removeBridge(rt, c, n) }, nil); err != nil {
				return err
			}
		}
		return s.Do("record", func() error {
			_ = os.Remove(m.path(lastDir, n.ID))
			_ = os.RemoveAll(m.path(namesDir, n.ID))
			return m.dropRecord(n.ID)
		}, nil)
	})
}

// rulesWithout lays the table out for all bridges but one, if there is a table. The caller holds the lock.
func (m *Manager) rulesWithout(nf *socket, id string) error {
	c, err := m.loadConfig()
	if err != nil || c == nil {
		return err
	}
	there, err := nf.ownTable(c.table(), c)
	if err != nil || !there {
		return err
	}
	all, err := m.bridges(c)
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(n *Network) bool { return n.ID == id })
	return m.layOut(nf, c, all)
}

// bridges returns every network that is a bridge, the default one first.
func (m *Manager) bridges(c *config) ([]*Network, error) {
	all, err := m.records()
	if err != nil {
		return nil, err
	}
	out := []*Network{m.defaultNetwork(c)}
	for _, n := range all {
		if n.Bridged() {
			out = append(out, n)
		}
	}
	return out, nil
}

// writeSynced replaces a file: written beside its place, synced, renamed, and the directory synced. One writer: the
// caller holds the lock.
func writeSynced(path string, b []byte) error {
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path))
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = os.Remove(tmp)
		return err
	}
	return syncDirectory(filepath.Dir(path))
}

func syncDirectory(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// resolvers are the host's name servers, loopback ones left out: no network of ours may cover them.
func resolvers() []netip.Addr {
	var out []netip.Addr
	for _, f := range []string{theHost.resolv, theHost.resolved} {
		text, err := readHostFile(f)
		if err != nil {
			continue
		}
		servers, _, _ := parseResolv(text)
		for _, s := range servers {
			if a, err := netip.ParseAddr(s); err == nil && !a.IsLoopback() {
				out = append(out, a.Unmap())
			}
		}
	}
	return out
}
