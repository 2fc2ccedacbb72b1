// Package network gives each sandbox its network namespace: bridges, address leases, port maps, names.
//
// One bridge (docker's default-bridge behaviour), one nftables table named "onggi" that nothing else is touched
// beside, one lease file per address. A namespace has no name on disk: the caller holds it as a file handle and hands
// it on to the monitor, so that the kernel takes it away with the last holder, whatever crashed; its veth goes with
// it. What is recorded on disk (leases, port maps) carries the sandbox's id and is released by Detach or Sweep.
//
// Lifecycle: Attach -> (container runs) -> Detach. Detach is idempotent and needs no namespace.
//
// Nothing is remembered in the process between calls: bridge and table are asked for by each Attach (two round trips),
// so that several processes, several stores and several network namespaces get along. All system calls act on the
// network namespace of the calling thread. doc/network.md draws the rules and lists what is touched on the host.
package network

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/network/resolver"
	"github.com/onggi/onggi/undo"
	"golang.org/x/sys/unix"
)

// Manager is the networks of one root directory. It is safe for concurrent use, also by several processes.
type Manager struct{ o Options }

// Options of Open.
type Options struct {
	StateDir string // durable: the networks' configuration
	RunDir   string // volatile: leases and port maps; emptied by a reboot
	Bridge   string // default: onggi0; where that is another store's, onggi1 and so on
	// Resolver is the command line of the process that answers containers' questions for names (package resolver), to
	// which RunDir is appended; ResolverEnv its environment. Without it networks that users make have no names.
	Resolver    []string
	ResolverEnv []string
	Subnet      netip.Prefix // default: first free of 172.29.0.0/16, 172.30.0.0/16, 10.209.0.0/16 ... that no route of the host overlaps
}

// Open reads the configuration; it changes nothing on the host.
func Open(o Options) (*Manager, error) {
	m := &Manager{o}
	if !filepath.IsAbs(o.StateDir) || !filepath.IsAbs(o.RunDir) {
		return nil, &errdefs.Error{
			Op: "open the network", Kind: errdefs.InvalidArgument,
			Why: fmt.Sprintf("%q and %q must be absolute paths", o.StateDir, o.RunDir),
		}
	}
	if o.Bridge != "" && !validInterface(o.Bridge) {
		return nil, &errdefs.Error{
			Op: "open the network", What: fmt.Sprintf("bridge %q", o.Bridge),
			Kind: errdefs.InvalidArgument, Why: "it is not an interface name",
			Fix: "use 1 to 15 letters, digits, dots, dashes or underscores",
		}
	}
	if o.Subnet.IsValid() {
		if err := validSubnet(o.Subnet); err != nil {
			return nil, &errdefs.Error{
				Op: "open the network", Kind: errdefs.InvalidArgument, Err: err,
				Fix: "use a private network such as 172.29.0.0/16",
			}
		}
	}
	_, err := m.loadConfig()
	return m, err
}

// Port is one published port.
type Port struct {
	HostIP        netip.Addr `json:"hostIP"`   // the zero Addr: all addresses
	HostPort      uint16     `json:"hostPort"` // 0: Attach chooses a free one
	ContainerPort uint16     `json:"containerPort"`
	Protocol      string     `json:"protocol"` // "tcp", "udp", "sctp"
	// HostPortEnd, when not 0, lets Attach choose the first free one of HostPort ... HostPortEnd.
	HostPortEnd uint16 `json:"hostPortEnd,omitempty"`
}

// Endpoint is what a sandbox asks for.
type Endpoint struct {
	ID       string // the sandbox's id
	Name     string // the container's name, by which others find it where names are resolved; "": none
	Hostname string // another such name, or ""
	Ports    []Port // published to the network that has the way out
	// Servers are asked for names that are not the networks' own, instead of the host's; Aliases are names that the
	// sandbox has for others.
	Servers []string
	Aliases map[string]string
	Links   []Link // the networks to connect to, in the order of their interfaces; none: the default network
}

// Link is a connection to one network.
type Link struct {
	Network string     `json:"network"` // name or id
	IPv4    netip.Addr `json:"ipv4,omitzero"`
	IPv6    netip.Addr `json:"ipv6,omitzero"`
	MAC     string     `json:"mac,omitempty"` // "": from the address
	Aliases []string   `json:"aliases,omitempty"`
	// Priority decides which network has the way out: the highest, and of several the first.
	Priority int `json:"priority,omitempty"`
}

// Attachment is what it got. The fields up to MAC are those of the network that has the way out, or of the first.
type Attachment struct {
	Bridge   string       `json:"bridge"`
	IPv4     netip.Prefix `json:"ipv4"`
	IPv6     netip.Prefix `json:"ipv6"` // zero when the network has no IPv6
	Gateway  netip.Addr   `json:"gateway"`
	Gateway6 netip.Addr   `json:"gateway6"`
	MAC      string       `json:"mac"`
	Ports    []Port       `json:"ports,omitempty"`
	// Networks are all that it is connected to, in the order of their interfaces.
	Networks []Joined `json:"networks,omitempty"`
	// Warnings say what does not work as it should although the sandbox is attached: forwarding that a read-only
	// /proc/sys forbids, a foreign firewall that drops.
	Warnings []string `json:"warnings,omitempty"`
}

// Joined is one network of an attachment.
type Joined struct {
	Network   string       `json:"network"` // its name
	NetworkID string       `json:"networkID"`
	Driver    string       `json:"driver"`
	Bridge    string       `json:"bridge,omitempty"` // or the parent interface
	Interface string       `json:"interface"`        // inside
	IPv4      netip.Prefix `json:"ipv4"`
	IPv6      netip.Prefix `json:"ipv6,omitzero"`
	Gateway   netip.Addr   `json:"gateway,omitzero"` // zero on an internal network
	Gateway6  netip.Addr   `json:"gateway6,omitzero"`
	MAC       string       `json:"mac"`
	Names     []string     `json:"names,omitempty"` // under which others find it there
	Internal  bool         `json:"internal,omitempty"`
}

// Named reports whether names are resolved for the sandbox: it is on a network that has them.
func (a *Attachment) Named() bool {
	return slices.ContainsFunc(a.Networks, func(j Joined) bool { return j.Network != Default })
}

// namesOn are the names under which a sandbox is found on a user's network: lower case, since DNS does not tell cases
// apart (RFC 4343).
func (want *Endpoint) namesOn(l Link) []string {
	var out []string
	for _, n := range append([]string{want.Name, shortID(want.ID), want.Hostname}, l.Aliases...) {
		n = strings.ToLower(n)
		if n != "" && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

// ValidAlias reports whether a name can be looked up: it becomes a directory's name, too.
func ValidAlias(s string) error {
	ok := s != "" && len(s) <= 253 && s[0] != '.' && s[0] != '-' && !strings.Contains(s, "..")
	for i := 0; ok && i < len(s); i++ {
		c := s[i]
		ok = c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-' || c == '.'
	}
	if !ok {
		return &errdefs.Error{
			Op: "use", What: "alias " + strconv.Quote(shorten(s)), Kind: errdefs.InvalidArgument,
			Why: "a name on a network is 1 to 253 of a-z A-Z 0-9 _ - . and begins with a letter or digit", Fix: "choose another",
		}
	}
	return nil
}

// ParseMAC reads a hardware address for --mac-address. Errors: InvalidArgument, for one that is not six octets or is
// that of a group (IEEE 802: the lowest bit of the first octet).
func ParseMAC(s string) (string, error) {
	b, err := hex.DecodeString(strings.NewReplacer(":", "", "-", "").Replace(s))
	if err != nil || len(b) != 6 || len(s) != 17 || b[0]&1 != 0 || [6]byte(b) == [6]byte{} {
		return "", &errdefs.Error{
			Op: "use", What: "--mac-address " + strconv.Quote(shorten(s)), Kind: errdefs.InvalidArgument,
			Why: "it is not the hardware address of one interface", Fix: "write it as 02:42:0a:0b:0c:0d",
		}
	}
	return macString([6]byte(b)), nil
}

// target is one network that a sandbox is being connected to.
type target struct {
	link   Link
	ground *ground
	set    settings
	e      *endpoint
	gate   [2]bool // the way out leads here: IPv4, IPv6
}

// resolve finds the networks that a sandbox asks for.
func (m *Manager) resolve(want *Endpoint) ([]*target, []*Network, error) {
	links := want.Links
	if len(links) == 0 {
		links = []Link{{Network: Default}}
	}
	if len(links) > maxLinks {
		return nil, nil, &errdefs.Error{Kind: errdefs.InvalidArgument, Why: fmt.Sprintf("more than %d networks", maxLinks), Fix: "name fewer"}
	}
	var all []*Network
	var out []*target
	for _, l := range links {
		n := &Network{ID: fixedID(Default), Name: Default, Driver: "bridge"} // described when its ground is there
		if l.Network != Default {
			if all == nil {
				var err error
				if all, err = m.List(); err != nil {
					return nil, nil, err
				}
			}
			var err error
			if n, err = find(all, l.Network); err != nil {
				return nil, nil, err
			}
			if n.Driver == "host" || n.Driver == "null" {
				return nil, nil, &errdefs.Error{
					Op: "use", What: "network " + n.Name, Kind: errdefs.InvalidArgument, Why: "a container on it has no other network", Fix: "leave it out, or the others",
				}
			}
		}
		for _, o := range out {
			if o.ground.net.ID == n.ID {
				return nil, nil, &errdefs.Error{Op: "use", What: "network " + n.Name, Kind: errdefs.InvalidArgument, Why: "it is named twice", Fix: "leave one out"}
			}
		}
		for _, a := range l.Aliases {
			if err := ValidAlias(a); err != nil {
				return nil, nil, err
			}
		}
		if n.Name == Default {
			what, flag := "", ""
			switch {
			case l.IPv4.IsValid() || l.IPv6.IsValid():
				what, flag = "user specified IP address is supported on user defined networks only", "--ip"
			case len(l.Aliases) > 0:
				what, flag = "network-scoped alias is supported only for containers in user defined networks", "--network-alias"
			}
			if what != "" {
				return nil, nil, &errdefs.Error{
					Op: "use", What: flag, Kind: errdefs.InvalidArgument, Why: what, Fix: "make a network: onggi network create NAME; and use it: --network NAME",
				}
			}
		}
		if n.Driver == "ipvlan" && l.MAC != "" {
			return nil, nil, &errdefs.Error{
				Op: "use", What: "--mac-address " + l.MAC, Kind: errdefs.InvalidArgument, Why: "on ipvlan every interface has its parent's address", Fix: "leave it out, or use macvlan",
			}
		}
		out = append(out, &target{link: l, ground: &ground{net: n}})
	}
	return out, all, nil
}

// maxLinks bounds the networks of one sandbox.
const maxLinks = 64

// gates chooses the networks that have the way out.
func gates(list []*target) {
	for family, gw := range []func(*ground) netip.Prefix{func(g *ground) netip.Prefix { return g.gw4 }, func(g *ground) netip.Prefix { return g.gw6 }} {
		var best *target
		for _, t := range list {
			if !t.ground.net.Internal && gw(t.ground).Addr().IsValid() && (best == nil || t.link.Priority > best.link.Priority) {
				best = t
			}
		}
		if best != nil {
			best.gate[family] = true
		}
	}
}

// portsAt chooses the network that ports are published to: the one with the way out, or else the first bridge that is
// not internal.
func portsAt(list []*target) *target {
	var first *target
	for _, t := range list {
		if !t.ground.net.Bridged() || t.ground.net.Internal {
			continue
		}
		if t.gate[0] {
			return t
		}
		if first == nil {
			first = t
		}
	}
	return first
}

// bound gives ports without a host address the one that the network's options name.
func (t *target) bound(ports []Port) []Port {
	if !t.set.bindIPv4.IsValid() {
		return ports
	}
	out := slices.Clone(ports)
	for i := range out {
		if !out[i].HostIP.IsValid() {
			out[i].HostIP = t.set.bindIPv4
		}
	}
	return out
}

// freeInterface returns the first free name of an interface.
func freeInterface(prefix string, taken map[string]bool) string {
	for i := 0; ; i++ {
		if name := prefix + strconv.Itoa(i); !taken[name] {
			taken[name] = true
			return name
		}
	}
}

// Attach leases addresses, connects the namespace to its networks (making bridges and table when they are not there),
// and publishes the ports. On error everything is taken back; bridges and table, which belong to no sandbox, stay.
//
// Preconditions: CAP_NET_ADMIN in the namespaces of the calling thread and of the sandbox; the sandbox has no eth0.
// Errors: NotFound (a network), Exhausted (no address left), Conflict (host port or address in use: says by what;
// attached already), InvalidArgument, Forbidden.
func (m *Manager) Attach(ctx context.Context, netns *os.File, want Endpoint) (_ *Attachment, err error) {
	defer func() {
		if err != nil {
			err = &errdefs.Error{
				Op: "connect container " + shortID(want.ID) + " to the network", Kind: errdefs.KindOf(err),
				Fix: errdefs.FixOf(err), Err: err,
			}
		}
	}()
	if err := validID(want.ID); err != nil {
		return nil, err
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

	var list []*target
	var within *socket // in the sandbox
	var warnings []string
	defer func() {
		if within != nil {
			within.close()
		}
	}()
	s := undo.New("network")
	defer s.Undo(&err)

	if err := m.locked(func(lock *os.File) error {
		if err := s.Do("bridge", func() (err error) {
			if list, _, err = m.resolve(&want); err != nil {
				return err
			}
			for _, t := range list {
				if t.ground, err = m.ensure(ctx, rt, nf, t.ground.net); err != nil {
					return err
				}
				if t.set, err = t.ground.net.settings(); err != nil {
					return err
				}
				for _, w := range t.ground.warnings {
					if !slices.Contains(warnings, w) {
						warnings = append(warnings, w)
					}
				}
			}
			gates(list)
			return nil
		}, nil); err != nil {
			return err
		}
		return s.Do("lease", func() (err error) {
			if keys, err := m.keysOf(want.ID); err != nil {
				return err
			} else if len(keys) > 0 {
				return &errdefs.Error{What: "sandbox " + want.ID, Kind: errdefs.Conflict, Why: "it is attached already", Fix: "detach it first"}
			}
			defer func() {
				if err != nil {
					err = errors.Join(err, m.releaseAll(want.ID))
				}
			}()
			at := portsAt(list)
			if len(want.Ports) > 0 && at == nil {
				return &errdefs.Error{
					Op: "publish port", What: want.Ports[0].String(), Kind: errdefs.InvalidArgument,
					Why: "none of the container's networks is a bridge with a way out", Fix: "leave -p out, or name one more network that is not --internal",
				}
			}
			taken := map[string]bool{}
			for _, t := range list {
				var ports []Port
				if t == at {
					ports = t.bound(want.Ports)
				}
				if t.e, err = m.reserve(lock, t.ground, want, t.link, freeInterface(t.set.prefix, taken), ports); err != nil {
					return err
				}
			}
			return nil
		}, func() error { return m.locked(func(*os.File) error { return m.releaseAll(want.ID) }) })
	}); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := s.Do("veth", func() (err error) {
		v6 := slices.ContainsFunc(list, func(t *target) bool { return t.ground.gw6.IsValid() })
		if within, err = prepareSandbox(netns, v6); err != nil {
			return err
		}
		for i, t := range list {
			if err := t.plug(rt, netns); err != nil {
				return errors.Join(err, unplug(rt, within, list[:i]))
			}
		}
		return nil
	}, func() error { return unplug(rt, within, list) }); err != nil {
		return nil, fmt.Errorf("make the interface: %w", err)
	}
	if err := s.Do("address", func() error {
		for _, t := range list {
			if err := t.configure(within); err != nil {
				return fmt.Errorf("configure %s: %w", t.e.inside(), err)
			}
		}
		return nil
	}, nil); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	a := &Attachment{Warnings: warnings}
	if slices.ContainsFunc(list, func(t *target) bool { return t.ground.net.Named() }) && len(m.o.Resolver) > 0 {
		if err := s.Do("names", func() error {
			if err := m.locked(func(*os.File) error {
				_, err := m.describe(want.ID, want.Servers, want.Aliases, list)
				return err
			}); err != nil {
				return err
			}
			if err := m.serveNames(ctx, want.ID, netns); err != nil {
				return errors.Join(err, m.undescribe(want.ID))
			}
			return nil
		}, func() error { return m.undescribe(want.ID) }); err != nil {
			return nil, err
		}
	}
	for _, t := range list {
		if len(t.e.Ports) == 0 {
			continue
		}
		elements := elementsOf(t.e)
		table := t.ground.store.table()
		if err := s.Do("rules", func() error { return publish(nf, t.ground, t.e.Ports, elements) },
			func() error { return nf.removeElements(table, elements) }); err != nil {
			return nil, err
		}
		a.Ports = t.e.Ports
		for _, w := range t.ground.warnings {
			if !slices.Contains(a.Warnings, w) {
				a.Warnings = append(a.Warnings, w)
			}
		}
	}
	s.Done()
	for _, t := range list {
		a.Networks = append(a.Networks, t.joined())
	}
	a.Settle()
	return a, nil
}

// joined describes the connection.
func (t *target) joined() Joined {
	n := t.ground.net
	j := Joined{
		Network: n.Name, NetworkID: n.ID, Driver: n.Driver, Bridge: n.Interface, Interface: t.e.inside(), IPv4: t.e.IPv4, IPv6: t.e.IPv6,
		MAC: macString(t.e.mac()), Names: t.e.Names, Internal: n.Internal,
	}
	if n.Driver == "ipvlan" {
		j.MAC = macString(t.ground.bridge.mac)
	}
	if !n.Internal {
		j.Gateway, j.Gateway6 = t.ground.gw4.Addr(), t.ground.gw6.Addr()
	}
	return j
}

// Settle fills in the fields that describe the network with the way out, after Networks has changed.
func (a *Attachment) Settle() {
	a.Bridge, a.IPv4, a.IPv6, a.Gateway, a.Gateway6, a.MAC = "", netip.Prefix{}, netip.Prefix{}, netip.Addr{}, netip.Addr{}, ""
	var p *Joined
	for i := range a.Networks {
		if j := &a.Networks[i]; p == nil || !p.Gateway.IsValid() && j.Gateway.IsValid() {
			p = j
		}
	}
	if p != nil {
		a.Bridge, a.IPv4, a.IPv6, a.Gateway, a.Gateway6, a.MAC = p.Bridge, p.IPv4, p.IPv6, p.Gateway, p.Gateway6, p.MAC
	}
}

// plug makes the sandbox's interface.
func (t *target) plug(rt *socket, netns *os.File) error {
	p := pair{
		hostEnd: t.e.hostEnd(), netns: netns, mac: t.e.mac(), bridge: t.ground.bridge, group: t.ground.store.group(),
		hairpin: len(t.e.Ports) > 0, isolated: !t.set.icc, inside: t.e.inside(),
	}
	if t.ground.net.Bridged() {
		return connect(rt, p)
	}
	err := patiently(unix.EBUSY, func() error {
		w := rt.start()
		w.makeChild(p, t.ground.net.Driver, t.set)
		_, err := rt.do(w)
		return err
	})
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = &errdefs.Error{
			Kind: errdefs.Unsupported, Why: "the kernel has no " + t.ground.net.Driver, Fix: "load it: modprobe " + t.ground.net.Driver, Err: err,
		}
	} else if errors.Is(err, unix.EBUSY) {
		err = &errdefs.Error{
			Kind: errdefs.Conflict, Why: t.ground.net.Interface + " is in use as another kind of interface (macvlan, ipvlan, bridge)", Fix: "use another parent", Err: err,
		}
	}
	return err
}

// patiently repeats what fails because a former sandbox's interface is still there: the kernel ends a namespace in its
// own time. It gives up after ten seconds.
func patiently(errno unix.Errno, f func() error) error {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if err := f(); !errors.Is(err, errno) || time.Now().After(end) {
			return err
		}
	}
}

// unplug removes what plug has made.
func unplug(rt, within *socket, list []*target) error {
	var errs []error
	for _, t := range list {
		if t.ground.net.Bridged() {
			errs = append(errs, rt.deleteLink(t.e.hostEnd()))
		} else if within != nil {
			errs = append(errs, within.deleteLink(t.e.inside()))
		}
	}
	return errors.Join(errs...)
}

func macString(m [6]byte) string {
	parts := make([]string, len(m))
	for i, b := range m {
		parts[i] = hex.EncodeToString([]byte{b})
	}
	return strings.Join(parts, ":")
}

// locked runs f under the lock of the records.
func (m *Manager) locked(f func(lock *os.File) error) error {
	lock, err := m.lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	return f(lock)
}

// prepareSandbox opens a socket in the sandbox and sets what its interface is to be born with.
func prepareSandbox(netns *os.File, v6 bool) (within *socket, err error) {
	err = inside(netns, func() (err error) {
		const conf = "net/ipv6/conf/default/"
		switch {
		case v6: // no detection delay for the link-local address; and a neighbour is not a router (CVE-2020-13401)
			err = errors.Join(setSysctl(conf+"disable_ipv6", "0"), setSysctl(conf+"accept_dad", "0"), setSysctl(conf+"accept_ra", "0"))
		default: // as docker: without an address to use, no link-local one either
			err = setSysctl(conf+"disable_ipv6", "1")
		}
		if err != nil && !errors.Is(err, unix.EROFS) {
			return err // a read-only /proc/sys costs a second of detection, and is no obstacle
		}
		within, err = openSocket(unix.NETLINK_ROUTE)
		return err
	})
	return within, err
}

// connect makes the veth pair.
func connect(rt *socket, p pair) error {
	try := func() error {
		w := rt.start()
		w.makePair(p)
		_, err := rt.do(w)
		return err
	}
	err := try()
	if errors.Is(err, unix.EEXIST) {
		// The id has no record, so a pair with its name is the former sandbox's: its namespace is held a little longer
		// than its record. Detach took it down.
		l, e := rt.link(p.hostEnd)
		if e != nil || l == nil {
			return &errdefs.Error{Kind: errdefs.Conflict, Why: "the namespace has an interface " + p.inside + " already", Err: err}
		}
		if e := rt.deleteLink(p.hostEnd); e != nil {
			return errors.Join(err, e)
		}
		err = try()
	}
	var refused *kernelError
	if errors.As(err, &refused) && refused.message > 0 { // the pair is made, its hairpin mode is not
		return errors.Join(err, rt.deleteLink(p.hostEnd))
	}
	return err
}

// configure gives the sandbox's end its addresses and routes.
func (t *target) configure(within *socket) error {
	l, err := within.link(t.e.inside())
	if err != nil {
		return err
	}
	if l == nil {
		return unix.ENODEV
	}
	up := func(w *batch) {
		w.message(unix.RTM_SETLINK, unix.NLM_F_ACK, linkHeader(unix.AF_UNSPEC, l.index, unix.IFF_UP, unix.IFF_UP))
	}
	v4 := func(w *batch) { w.address(l.index, t.e.IPv4) }
	v6 := func(w *batch) { w.address(l.index, t.e.IPv6) }
	if !t.e.IPv6.IsValid() {
		v6 = func(*batch) {}
	}
	routes := func(w *batch) { t.routes(w, l.index) }
	if t.ground.net.Bridged() {
		return within.all(up, v4, v6, routes)
	}
	// Two interfaces of one parent cannot be up with the same hardware address (macvlan), nor have the same address
	// (ipvlan): the former one of a container that starts again may be there for a moment. The kernel goes on behind a
	// message that it refuses, so that what is tried again is sent alone.
	for _, m := range []func(*batch){up, v4, v6} {
		if err := patiently(unix.EADDRINUSE, func() error { return within.all(m) }); err != nil {
			return err
		}
	}
	return within.all(routes)
}

// all sends messages in one go, if there are any.
func (s *socket) all(messages ...func(*batch)) error {
	w := s.start()
	for _, m := range messages {
		m(w)
	}
	if w.acks == 0 {
		return nil
	}
	_, err := s.do(w)
	return err
}

// routes adds the way out where it leads here.
func (t *target) routes(w *batch, index uint32) {
	direct := t.ground.net.Driver == "ipvlan" && t.set.mode != "l2" // no neighbours there: the interface is the way
	if t.gate[0] {
		gw := t.ground.gw4.Addr()
		if direct {
			gw = netip.IPv4Unspecified()
		}
		w.defaultRoute(index, gw)
	}
	if t.gate[1] {
		gw := t.ground.gw6.Addr()
		if direct {
			gw = netip.IPv6Unspecified()
		}
		w.defaultRoute(index, gw)
	}
}

// localnet lets published ports answer on loopback. The table's guard chain, which ensure has seen, comes before it.
func (g *ground) localnet(ports []Port) {
	for _, p := range ports {
		if v4, _ := p.families(); v4 && (!p.HostIP.IsValid() || p.HostIP.IsUnspecified() || p.HostIP.IsLoopback()) {
			if err := setSysctl("net/ipv4/conf/"+g.bridge.name+"/route_localnet", "1"); err != nil {
				g.warnings = append(g.warnings, err.Error()+": published ports do not answer on 127.0.0.1")
			}
			break
		}
	}
}

// publish opens the ports.
func publish(nf *socket, g *ground, ports []Port, list []element) error {
	g.localnet(ports)
	if err := nf.addElements(g.store.table(), list); err != nil {
		return rulesError(err)
	}
	// Packets that came before belong to connections without our rewriting; for UDP such a "connection" lives as long
	// as the peer keeps sending.
	return forgetConnections(nf, ports)
}

// Detach releases everything that Attach recorded for the sandbox id. Unknown ids are not an error.
//
// The veth pair is taken down here, which ends all traffic, and removed by the kernel together with the
// namespace, or by the next Sweep when something holds the namespace for longer: removing it now would make every
// caller wait some RCU grace periods (7 to 20 ms) for what happens anyway.
func (m *Manager) Detach(ctx context.Context, id string) (err error) {
	if err := validID(id); err != nil {
		return err
	}
	keys, err := m.keysOf(id)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(m.path(moreDir, id)); len(keys) == 0 && errors.Is(err, os.ErrNotExist) {
		return m.undescribe(id)
	}
	defer func() {
		if err != nil {
			err = &errdefs.Error{
				Op:   "disconnect container " + shortID(id) + " from the network",
				Kind: errdefs.KindOf(err), Fix: errdefs.FixOf(err), Err: err,
			}
		}
	}()
	s := undo.New("network.detach")
	rt, err := openSocket(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer rt.close()
	if err := s.Do("veth", func() error {
		for _, k := range keys {
			if err := rt.takeDown(hostEnd(k)); err != nil {
				return err
			}
		}
		return nil
	}, nil); err != nil {
		return fmt.Errorf("take down the veth pair: %w", err)
	}
	// The record is read under the lock: of two processes that detach the same id, the slower one must not remove the
	// rule of a third sandbox that got the port in between.
	return m.locked(func(*os.File) error {
		if err := s.Do("rules", func() error {
			for _, k := range keys {
				if err := m.unpublish(ctx, k); err != nil {
					return err
				}
			}
			return nil
		}, nil); err != nil {
			return err
		}
		return s.Do("lease", func() error { return m.releaseAll(id) }, nil)
	})
}

// unpublish takes an endpoint's ports out of the rules. The caller holds the lock.
func (m *Manager) unpublish(ctx context.Context, key string) error {
	e, err := m.endpoint(key)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	c, cerr := m.loadConfig()
	if cerr != nil {
		return cerr
	}
	if c == nil || err == nil && len(e.Ports) == 0 {
		return nil
	}
	nf, nerr := openSocket(unix.NETLINK_NETFILTER)
	if nerr != nil {
		return nerr
	}
	defer nf.closeLater()
	if err != nil { // torn by a power failure: what no other record explains is its
		return m.reconcile(ctx, nf, c, key)
	}
	if err := nf.removeElements(c.table(), elementsOf(e)); err != nil {
		return rulesError(err)
	}
	return forgetConnections(nf, e.Ports)
}

// reconcile makes the maps say what the records say, leaving out one of them. The caller holds the lock.
func (m *Manager) reconcile(ctx context.Context, nf *socket, c *config, without string) error {
	eps, err := m.endpoints()
	if err != nil {
		return err
	}
	table := c.table()
	if there, err := nf.ownTable(table, c); err != nil || !there {
		return err // the next Attach makes it, from the records
	}
	have, err := nf.dumpElements(ctx, table)
	if err != nil {
		return rulesError(err)
	}
	type key struct{ set, key string }
	want := map[key]element{}
	for _, e := range eps {
		if e.key() != without {
			for _, x := range elementsOf(e) {
				want[key{x.set, string(x.key)}] = x
			}
		}
	}
	var surplus, missing []element
	for _, x := range have {
		k := key{x.set, string(x.key)}
		if w, ok := want[k]; ok && string(w.value) == string(x.value) {
			delete(want, k)
		} else {
			surplus = append(surplus, x)
		}
	}
	for _, x := range want {
		missing = append(missing, x)
	}
	if err := nf.removeElements(table, surplus); err != nil {
		return rulesError(err)
	}
	if err := nf.addElements(table, missing); err != nil {
		return rulesError(err)
	}
	return nil
}

// Sweep detaches every sandbox for which alive returns false, removes veth pairs and port maps that no record
// explains, and removes bridge and table when nothing is attached and purge is set.
//
// alive must be true for a sandbox that is being attached: the engine's record comes before Attach.
func (m *Manager) Sweep(ctx context.Context, alive func(id string) bool, purge bool) (err error) {
	c, err := m.loadConfig()
	if err != nil || c == nil {
		return err // never attached anything
	}
	defer func() {
		if err != nil {
			err = &errdefs.Error{Op: "sweep the network", Kind: errdefs.KindOf(err), Fix: errdefs.FixOf(err), Err: err}
		}
	}()
	rt, err := openSocket(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer rt.close()
	nf, err := openSocket(unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer nf.closeLater()
	bridge, err := rt.link(c.Bridge)
	if err != nil {
		return err
	}
	if bridge != nil && bridge.mac != c.mac() {
		bridge = nil // another store's
	}
	// The kernel's state is read before the records: whatever is seen here had its record by then, so that what has
	// none afterwards is nobody's.
	var index uint32
	if bridge != nil {
		index = bridge.index
	}
	ports, err := rt.hostEnds(ctx, c.group(), index)
	if err != nil {
		return err
	}
	var keys, more []string
	if err := m.locked(func(*os.File) (err error) {
		if keys, err = m.names(endpointsDir); err == nil {
			more, err = m.names(moreDir)
		}
		if described, derr := m.names(resolver.ConfigDir); derr == nil {
			more = append(more, described...)
		}
		return err
	}); err != nil {
		return err
	}
	var errs []error
	known := map[string]bool{}
	lives := map[string]bool{}
	for _, k := range append(keys, more...) {
		id := owner(k)
		live, asked := lives[id]
		if !asked {
			live = alive(id)
			if lives[id] = live; !live {
				errs = append(errs, m.Detach(ctx, id))
			}
		}
		known[hostEnd(k)] = live
	}
	for _, p := range ports {
		if !known[p.name] {
			errs = append(errs, rt.deleteLink(p.name))
		}
	}
	errs = append(errs, m.locked(func(*os.File) error {
		_ = os.Remove(m.path(endpointsDir, ".new"))
		if err := m.stray(); err != nil {
			return err
		}
		left, err := m.names(endpointsDir)
		if err != nil {
			return err
		}
		if !purge || len(left) > 0 {
			return m.reconcile(ctx, nf, c, "")
		}
		// Under the lock, and with no record: nobody is between his lease and his veth pair. Only our own table goes,
		// and only our own bridge: the first's name may belong to another store that has the second.
		there, err := nf.ownTable(c.table(), c)
		if err != nil {
			return rulesError(err)
		}
		if there {
			if err := nf.deleteTable(c.table()); err != nil {
				return rulesError(err)
			}
		}
		nets, err := m.bridges(c)
		if err != nil {
			return err
		}
		for _, n := range nets {
			if err := m.removeBridge(rt, c, n); err != nil {
				return err
			}
		}
		return nil
	}))
	return errors.Join(errs...)
}
