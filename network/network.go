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
	"strings"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/undo"
	"golang.org/x/sys/unix"
)

// Manager is the networks of one root directory. It is safe for concurrent use, also by several processes.
type Manager struct{ o Options }

// Options of Open.
type Options struct {
	StateDir string       // durable: the networks' configuration
	RunDir   string       // volatile: leases and port maps; emptied by a reboot
	Bridge   string       // default: onggi0; where that is another store's, onggi1 and so on
	Subnet   netip.Prefix // default: first free of 172.29.0.0/16, 172.30.0.0/16, 10.209.0.0/16 ... that no route of the host overlaps
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
	ID    string // the sandbox's id
	Ports []Port
}

// Attachment is what it got.
type Attachment struct {
	Bridge   string       `json:"bridge"`
	IPv4     netip.Prefix `json:"ipv4"`
	IPv6     netip.Prefix `json:"ipv6"` // zero when the host has no IPv6
	Gateway  netip.Addr   `json:"gateway"`
	Gateway6 netip.Addr   `json:"gateway6"`
	MAC      string       `json:"mac"`
	Ports    []Port       `json:"ports,omitempty"`
	// Warnings say what does not work as it should although the sandbox is attached: forwarding that a read-only
	// /proc/sys forbids, a foreign firewall that drops.
	Warnings []string `json:"warnings,omitempty"`
}

// Attach leases an address, connects the namespace to the bridge (making bridge and table when they are not there),
// and publishes the ports. On error everything is taken back; bridge and table, which belong to no sandbox, stay.
//
// Preconditions: CAP_NET_ADMIN in the namespaces of the calling thread and of the sandbox; the sandbox has no eth0.
// Errors: Exhausted (no address left), Conflict (host port in use: says by what; attached already), Forbidden.
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

	s := undo.New("network")
	defer s.Undo(&err)
	var g *ground
	var e *endpoint
	var within *socket // in the sandbox

	if err := m.locked(func(lock *os.File) error {
		if err := s.Do("bridge", func() (err error) { g, err = m.ensure(ctx, rt, nf); return err }, nil); err != nil {
			return err
		}
		return s.Do("lease", func() (err error) { e, err = m.reserve(lock, g, want); return err },
			func() error { return m.locked(func(*os.File) error { return m.release(want.ID) }) })
	}); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	defer func() {
		if within != nil {
			within.close()
		}
	}()
	if err := s.Do("veth", func() (err error) {
		if within, err = prepareSandbox(netns, g.v6); err != nil {
			return err
		}
		return connect(rt, pair{
			hostEnd: hostEnd(e.ID), netns: netns, mac: e.mac(), bridge: g.bridge,
			group: g.group(), hairpin: len(e.Ports) > 0,
		})
	}, func() error { return rt.deleteLink(hostEnd(e.ID)) }); err != nil {
		return nil, fmt.Errorf("make the veth pair: %w", err)
	}
	if err := s.Do("address", func() error { return configure(within, g, e) }, nil); err != nil {
		return nil, fmt.Errorf("configure %s: %w", inside0, err)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if len(e.Ports) > 0 {
		list := elementsOf(e)
		if err := s.Do("rules", func() error { return publish(nf, g, e.Ports, list) },
			func() error { return nf.removeElements(tableName(g.Bridge), list) }); err != nil {
			return nil, err
		}
	}
	s.Done()

	mac := e.mac()
	a := &Attachment{
		Bridge: g.Bridge, IPv4: e.IPv4, Gateway: g.gateway().Addr(), Ports: e.Ports, Warnings: g.warnings,
		MAC: macString(mac),
	}
	if g.v6 {
		a.IPv6, a.Gateway6 = e.IPv6, g.ipv6(a.Gateway).Addr()
	}
	return a, nil
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
			err = errors.Join(setSysctl(conf+"accept_dad", "0"), setSysctl(conf+"accept_ra", "0"))
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
			return &errdefs.Error{Kind: errdefs.Conflict, Why: "the namespace has an interface " + inside0 + " already", Err: err}
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
func configure(within *socket, g *ground, e *endpoint) error {
	l, err := within.link(inside0)
	if err != nil {
		return err
	}
	if l == nil {
		return unix.ENODEV
	}
	w := within.start()
	w.message(unix.RTM_SETLINK, unix.NLM_F_ACK, linkHeader(unix.AF_UNSPEC, l.index, unix.IFF_UP, unix.IFF_UP))
	w.address(l.index, e.IPv4)
	w.defaultRoute(l.index, g.gateway().Addr())
	if g.v6 {
		w.address(l.index, e.IPv6)
		w.defaultRoute(l.index, g.ipv6(g.gateway().Addr()).Addr())
	}
	_, err = within.do(w)
	return err
}

// publish opens the ports.
func publish(nf *socket, g *ground, ports []Port, list []element) error {
	for _, p := range ports {
		if v4, _ := p.families(); v4 && (!p.HostIP.IsValid() || p.HostIP.IsUnspecified() || p.HostIP.IsLoopback()) {
			// Loopback access. The table's guard chain, which ensure has seen, comes before it.
			if err := setSysctl("net/ipv4/conf/"+g.Bridge+"/route_localnet", "1"); err != nil {
				g.warnings = append(g.warnings, err.Error()+": published ports do not answer on 127.0.0.1")
			}
			break
		}
	}
	if err := nf.addElements(tableName(g.Bridge), list); err != nil {
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
	if _, err := os.Lstat(m.path(endpointsDir, id)); errors.Is(err, os.ErrNotExist) {
		return nil
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
	if err := s.Do("veth", func() error { return rt.takeDown(hostEnd(id)) }, nil); err != nil {
		return fmt.Errorf("take down the veth pair: %w", err)
	}
	// The record is read under the lock: of two processes that detach the same id, the slower one must not remove the
	// rule of a third sandbox that got the port in between.
	return m.locked(func(*os.File) error {
		if err := s.Do("rules", func() error { return m.unpublish(ctx, id) }, nil); err != nil {
			return err
		}
		return s.Do("lease", func() error { return m.release(id) }, nil)
	})
}

// unpublish takes the sandbox's ports out of the rules. The caller holds the lock.
func (m *Manager) unpublish(ctx context.Context, id string) error {
	e, err := m.endpoint(id)
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
		return m.reconcile(ctx, nf, c, id)
	}
	if err := nf.removeElements(tableName(c.Bridge), elementsOf(e)); err != nil {
		return rulesError(err)
	}
	return forgetConnections(nf, e.Ports)
}

// reconcile makes the maps say what the records say, leaving out one id. The caller holds the lock.
func (m *Manager) reconcile(ctx context.Context, nf *socket, c *config, without string) error {
	eps, err := m.endpoints()
	if err != nil {
		return err
	}
	table := tableName(c.Bridge)
	if there, err := nf.hasTable(table, c.comment()); err != nil || !there {
		return err // the next Attach makes it, from the records
	}
	have, err := nf.dumpElements(ctx, table)
	if err != nil {
		return rulesError(err)
	}
	type key struct{ set, key string }
	want := map[key]element{}
	for _, e := range eps {
		if e.ID != without {
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
	var ids []string
	if err := m.locked(func(*os.File) (err error) { ids, err = m.names(endpointsDir); return err }); err != nil {
		return err
	}
	var errs []error
	known := map[string]bool{}
	for _, id := range ids {
		if alive(id) {
			known[hostEnd(id)] = true
		} else {
			errs = append(errs, m.Detach(ctx, id))
		}
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
		there, err := nf.hasTable(tableName(c.Bridge), c.comment())
		if err != nil {
			return rulesError(err)
		}
		if there {
			if err := nf.deleteTable(tableName(c.Bridge)); err != nil {
				return rulesError(err)
			}
		}
		return m.removeBridge(rt, c)
	}))
	return errors.Join(errs...)
}
