package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/undo"
)

// create makes a network and removes nothing: newManager's purge takes the bridge.
func create(t testing.TB, m *Manager, n Network) *Network {
	t.Helper()
	got, _, err := m.Create(context.Background(), n)
	if err != nil {
		t.Fatalf("create %s: %v", n.Name, err)
	}
	return got
}

// join attaches a sandbox to networks.
func join(t testing.TB, m *Manager, want Endpoint) *sandbox {
	t.Helper()
	ns, err := NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	a, err := m.Attach(context.Background(), ns, want)
	if err != nil {
		t.Fatalf("attach %s: %v", want.ID, err)
	}
	return &sandbox{Attachment: a, ns: ns}
}

func subnet(s string) Subnet { return Subnet{Prefix: netip.MustParsePrefix(s)} }

func TestCreateChoosesAndChecks(t *testing.T) {
	needHost(t)
	m := newManager(t)
	ctx := context.Background()
	before := state(t)
	back := create(t, m, Network{Name: "back"})
	if len(back.ID) != 64 || back.Interface != "onggi-"+back.ID[:9] || len(back.Subnets) != 1 || back.v4().Prefix.String() != "10.190.0.0/24" ||
		back.v4().Gateway.String() != "10.190.0.1" {
		t.Errorf("chosen: %+v", back)
	}
	if got := run(t, "ip", "-br", "address", "show", back.Interface); !strings.Contains(got, "10.190.0.1/24") {
		t.Errorf("bridge: %s", got)
	}
	six := create(t, m, Network{Name: "six", IPv6: true, Labels: map[string]string{"a": "b"}})
	if six.v4().Prefix.String() != "10.190.1.0/24" || six.v6() == nil || six.v6().Prefix.Bits() != 64 || !six.v6().Gateway.IsValid() {
		t.Errorf("chosen: %+v", six)
	}
	for _, c := range []struct {
		what string
		n    Network
		kind errdefs.Kind
		says string
	}{
		{"name taken", Network{Name: "back"}, errdefs.AlreadyExists, "network with name back already exists"},
		{"predefined", Network{Name: "bridge"}, errdefs.AlreadyExists, "already exists"},
		{"bad name", Network{Name: "-x"}, errdefs.InvalidArgument, "network name"},
		{"driver", Network{Name: "x", Driver: "overlay"}, errdefs.InvalidArgument, `--driver "overlay"`},
		{"option", Network{Name: "x", Options: map[string]string{"speed": "1"}}, errdefs.InvalidArgument, "--opt speed"},
		{"option's value", Network{Name: "x", Options: map[string]string{"mtu": "60"}}, errdefs.InvalidArgument, "--opt mtu"},
		{"host bits", Network{Name: "x", Subnets: []Subnet{subnet("10.11.12.1/24")}}, errdefs.InvalidArgument, "10.11.12.0/24"},
		{"IPv6 without --ipv6", Network{Name: "x", Subnets: []Subnet{subnet("fd00:9::/64")}}, errdefs.InvalidArgument, "--ipv6"},
		{"two subnets", Network{Name: "x", Subnets: []Subnet{subnet("10.1.0.0/24"), subnet("10.2.0.0/24")}}, errdefs.InvalidArgument, "one subnet"},
		{"overlaps a network", Network{Name: "x", Subnets: []Subnet{subnet("10.190.0.0/16")}}, errdefs.Conflict, "pool overlaps"},
		{"overlaps the host", Network{Name: "x", Subnets: []Subnet{subnet("192.0.2.0/24")}}, errdefs.Conflict, "this host"},
		{"gateway outside", Network{Name: "x", Subnets: []Subnet{{Prefix: netip.MustParsePrefix("10.1.0.0/24"), Gateway: netip.MustParseAddr("10.2.0.1")}}}, errdefs.InvalidArgument, "--gateway"},
		{"range outside", Network{Name: "x", Subnets: []Subnet{{Prefix: netip.MustParsePrefix("10.1.0.0/24"), Range: netip.MustParsePrefix("10.1.0.0/16")}}}, errdefs.InvalidArgument, "--ip-range"},
		{"bridge of another", Network{Name: "x", Options: map[string]string{"com.docker.network.bridge.name": "uplink"}}, errdefs.Conflict, "uplink"},
		{"macvlan without parent", Network{Name: "x", Driver: "macvlan"}, errdefs.InvalidArgument, "parent"},
		{"macvlan's parent is missing", Network{Name: "x", Driver: "macvlan", Options: map[string]string{"parent": "uplink.7"}}, errdefs.NotFound, "type vlan id 7"},
	} {
		_, _, err := m.Create(ctx, c.n)
		if !errdefs.Is(err, c.kind) || !strings.Contains(err.Error()+errdefs.FixOf(err), c.says) {
			t.Errorf("%s: got %v (%v); want %v that says %q", c.what, err, errdefs.KindOf(err), c.kind, c.says)
		}
	}
	list, err := m.List()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, n := range list {
		names = append(names, n.Name)
	}
	if got := strings.Join(names, " "); got != "back bridge host none six" {
		t.Errorf("list: %s", got)
	}
	if n, err := m.Get(back.ID[:10]); err != nil || n.Name != "back" {
		t.Errorf("by prefix: %v, %v", n, err)
	}
	if _, err := m.Remove(ctx, "bridge"); !errdefs.Is(err, errdefs.Forbidden) {
		t.Errorf("remove bridge: %v", err)
	}
	for _, n := range []string{"back", "six"} {
		if _, err := m.Remove(ctx, n); err != nil {
			t.Errorf("remove %s: %v", n, err)
		}
	}
	if _, err := m.Remove(ctx, "back"); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("remove twice: %v", err)
	}
	mustSweep(t, m, dead, true)
	stateIs(t, "after all are removed", before)
}

// TestNetworksAreApart: containers of one network do not reach those of another, nor of the default one; an internal
// network has no way out; a network without icc keeps its own containers apart.
func TestNetworksAreApart(t *testing.T) {
	needHost(t)
	m := newManager(t)
	create(t, m, Network{Name: "red"})
	create(t, m, Network{Name: "blue"})
	create(t, m, Network{Name: "closed", Internal: true})
	create(t, m, Network{Name: "quiet", Options: map[string]string{"com.docker.network.bridge.enable_icc": "false"}})
	serve(t, outside, "tcp", ":90", "outside")
	old := attach(t, m, "old")
	red := join(t, m, Endpoint{ID: "red1", Links: []Link{{Network: "red"}}, Ports: []Port{{HostPort: 18080, ContainerPort: 80, Protocol: "tcp"}}})
	red2 := join(t, m, Endpoint{ID: "red2", Links: []Link{{Network: "red"}}})
	blue := join(t, m, Endpoint{ID: "blue1", Links: []Link{{Network: "blue"}}})
	in := join(t, m, Endpoint{ID: "in1", Links: []Link{{Network: "closed"}}})
	in2 := join(t, m, Endpoint{ID: "in2", Links: []Link{{Network: "closed"}}})
	q := join(t, m, Endpoint{ID: "q1", Links: []Link{{Network: "quiet"}}, Ports: []Port{{HostPort: 18081, ContainerPort: 80, Protocol: "tcp"}}})
	q2 := join(t, m, Endpoint{ID: "q2", Links: []Link{{Network: "quiet"}}})
	for _, s := range []*sandbox{old, red, in, q} {
		serve(t, s.ns, "tcp", ":80", "hello")
	}
	var refused sync.WaitGroup // each waits for its time to run out
	refuses := func(t testing.TB, what string, from *os.File, network, to string) {
		refused.Go(func() { refuses(t, what, from, network, to) })
	}
	at := func(s *sandbox) string { return s.IPv4.Addr().String() + ":80" }
	hello := func(s *sandbox) string { return "hello " + s.IPv4.Addr().String() }

	reaches(t, "sibling", red2.ns, "tcp", at(red), hello(red2))
	refuses(t, "another network", blue.ns, "tcp", at(red))
	refuses(t, "the default network", old.ns, "tcp", at(red))
	refuses(t, "from a user's to the default network", red.ns, "tcp", at(old))
	refuses(t, "by the other bridge's address", blue.ns, "tcp", red.Gateway.String()+":80")
	reaches(t, "published, from another network", blue.ns, "tcp", "192.0.2.1:18080", "hello "+red.Gateway.String())
	reaches(t, "published, from outside", outside, "tcp", "192.0.2.1:18080", "hello 192.0.2.2")
	reaches(t, "published, from loopback", nil, "tcp", "127.0.0.1:18080", "hello "+red.Gateway.String())
	reaches(t, "hairpin", red.ns, "tcp", "192.0.2.1:18080", "hello "+red.Gateway.String())
	reaches(t, "the way out", red.ns, "tcp", "192.0.2.2:90", "outside 192.0.2.1")

	reaches(t, "internal sibling", in2.ns, "tcp", at(in), hello(in2))
	refuses(t, "internal to outside", in.ns, "tcp", "192.0.2.2:90")
	refuses(t, "into an internal network", red.ns, "tcp", at(in))
	// Even with a route that root of the container makes.
	runIn(t, in.ns, "ip", "route", "add", "default", "via", strings.TrimSuffix(in.IPv4.Masked().Addr().Next().String(), "/24"))
	refuses(t, "internal to outside, with a route of its own", in.ns, "tcp", "192.0.2.2:90")
	refuses(t, "internal to a published port", in.ns, "tcp", "192.0.2.1:18080")
	runIn(t, outside, "ip", "route", "add", "10.190.0.0/16", "via", "192.0.2.1")
	refuses(t, "outside to an internal network", outside, "tcp", at(in))
	refuses(t, "outside, unpublished", outside, "tcp", at(red2))

	refuses(t, "quiet sibling", q2.ns, "tcp", at(q))
	if sysctl("net/bridge/bridge-nf-call-iptables") != "1" {
		// With br_netfilter the rewritten frame stays in the bridge, where the two ports are kept apart.
		reaches(t, "quiet sibling by its published port", q2.ns, "tcp", "192.0.2.1:18081", "hello "+q.Gateway.String())
	}
	reaches(t, "quiet to outside", q2.ns, "tcp", "192.0.2.2:90", "outside 192.0.2.1")

	refused.Wait()
	if _, _, err := m.Create(context.Background(), Network{Name: "late", Options: map[string]string{"mtu": "1400", "com.docker.network.bridge.name": "testbr"}}); err != nil {
		t.Fatal(err)
	}
	late := join(t, m, Endpoint{ID: "late", Links: []Link{{Network: "late"}}})
	if got := runIn(t, late.ns, "ip", "link", "show", "eth0"); !strings.Contains(got, "mtu 1400") || late.Bridge != "testbr" {
		t.Errorf("eth0: %s on %s", got, late.Bridge)
	}
	reaches(t, "still published", outside, "tcp", "192.0.2.1:18080", "hello 192.0.2.2")
	if _, err := m.Remove(context.Background(), "late"); !errdefs.Is(err, errdefs.Conflict) || !strings.Contains(err.Error(), "active endpoints") {
		t.Errorf("remove in use: %v", err)
	}
}

func TestStaticAddressesAndRanges(t *testing.T) {
	needHost(t)
	m := newManager(t)
	ctx := context.Background()
	s := subnet("10.77.0.0/24")
	s.Range, s.Aux = netip.MustParsePrefix("10.77.0.128/30"), map[string]netip.Addr{"printer": netip.MustParseAddr("10.77.0.129")}
	create(t, m, Network{Name: "lan", IPv6: true, Subnets: []Subnet{s, subnet("fd77::/64")}})
	a := join(t, m, Endpoint{ID: "a", Links: []Link{{Network: "lan", IPv4: netip.MustParseAddr("10.77.0.9"), IPv6: netip.MustParseAddr("fd77::9"), MAC: "02:00:00:00:00:09"}}})
	if a.IPv4.String() != "10.77.0.9/24" || a.IPv6.String() != "fd77::9/64" || a.MAC != "02:00:00:00:00:09" {
		t.Errorf("asked for: %+v", a.Attachment)
	}
	if got := runIn(t, a.ns, "ip", "-o", "link", "show", "eth0"); !strings.Contains(got, "02:00:00:00:00:09") {
		t.Errorf("eth0: %s", got)
	}
	var got []string
	for _, id := range []string{"b", "c", "d"} {
		b := join(t, m, Endpoint{ID: id, Links: []Link{{Network: "lan"}}})
		got = append(got, b.IPv4.Addr().String()+" "+b.IPv6.Addr().String())
		serve(t, b.ns, "tcp", ":80", id)
		reaches(t, "IPv6", a.ns, "tcp", "["+b.IPv6.Addr().String()+"]:80", id+" fd77::9")
	}
	if want := "10.77.0.128 fd77::a4d:80, 10.77.0.130 fd77::a4d:82, 10.77.0.131 fd77::a4d:83"; strings.Join(got, ", ") != want {
		t.Errorf("range: got %v; want %s", got, want)
	}
	for _, c := range []struct {
		what string
		l    Link
		kind errdefs.Kind
	}{
		{"range used up", Link{Network: "lan"}, errdefs.Exhausted},
		{"in use", Link{Network: "lan", IPv4: netip.MustParseAddr("10.77.0.9")}, errdefs.Conflict},
		{"IPv6 in use", Link{Network: "lan", IPv4: netip.MustParseAddr("10.77.0.10"), IPv6: netip.MustParseAddr("fd77::9")}, errdefs.Conflict},
		{"gateway's", Link{Network: "lan", IPv4: netip.MustParseAddr("10.77.0.1")}, errdefs.Conflict},
		{"set aside", Link{Network: "lan", IPv4: netip.MustParseAddr("10.77.0.129")}, errdefs.Conflict},
		{"outside", Link{Network: "lan", IPv4: netip.MustParseAddr("10.78.0.9")}, errdefs.InvalidArgument},
		{"broadcast", Link{Network: "lan", IPv4: netip.MustParseAddr("10.77.0.255")}, errdefs.InvalidArgument},
		{"default network", Link{Network: "bridge", IPv4: netip.MustParseAddr("172.29.0.9")}, errdefs.InvalidArgument},
		{"alias there", Link{Network: "bridge", Aliases: []string{"x"}}, errdefs.InvalidArgument},
		{"alias", Link{Network: "lan", Aliases: []string{"../x"}}, errdefs.InvalidArgument},
		{"no such network", Link{Network: "moon"}, errdefs.NotFound},
		{"host", Link{Network: "host"}, errdefs.InvalidArgument},
	} {
		ns, err := NewNamespace()
		if err != nil {
			t.Fatal(err)
		}
		before := records(t, m)
		if _, err := m.Attach(ctx, ns, Endpoint{ID: "x", Links: []Link{c.l}}); !errdefs.Is(err, c.kind) {
			t.Errorf("%s: got %v (%v), want %v", c.what, err, errdefs.KindOf(err), c.kind)
		}
		_ = ns.Close()
		if got := records(t, m); got != before {
			t.Errorf("%s: left %s; had %s", c.what, got, before)
		}
	}
	if err := m.Detach(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	b := join(t, m, Endpoint{ID: "b2", Links: []Link{{Network: "lan", IPv4: netip.MustParseAddr("10.77.0.9")}}})
	if b.IPv4.String() != "10.77.0.9/24" {
		t.Errorf("free again: got %s", b.IPv4)
	}
}

// TestSeveralNetworks: two networks at once; then on the fly; the way out and the ports move.
func TestSeveralNetworks(t *testing.T) {
	needHost(t)
	m := newManager(t)
	ctx := context.Background()
	for _, n := range []Network{{Name: "in", Internal: true}, {Name: "one"}, {Name: "two"}} {
		create(t, m, n)
	}
	serve(t, outside, "tcp", ":90", "outside")
	ports := []Port{{HostPort: 18080, ContainerPort: 80, Protocol: "tcp"}}
	web := join(t, m, Endpoint{ID: "web", Name: "Web", Ports: ports, Links: []Link{{Network: "in"}, {Network: "one", Aliases: []string{"www"}}}})
	serve(t, web.ns, "tcp", ":80", "web")
	if len(web.Networks) != 2 || web.Networks[0].Interface != "eth0" || web.Networks[1].Interface != "eth1" || web.Networks[0].Gateway.IsValid() ||
		web.IPv4 != web.Networks[1].IPv4 || strings.Join(web.Networks[1].Names, " ") != "web www" {
		t.Errorf("attachment: %+v", web.Attachment)
	}
	reaches(t, "the way out is that of the network that has one", web.ns, "tcp", "192.0.2.2:90", "outside 192.0.2.1")
	reaches(t, "published", outside, "tcp", "192.0.2.1:18080", "web 192.0.2.2")
	if got, err := os.ReadDir(m.path(namesDir, web.Networks[1].NetworkID, "www")); err != nil || len(got) != 1 || got[0].Name() != web.IPv4.Addr().String() {
		t.Errorf("www: %v, %v", got, err)
	}
	peer := join(t, m, Endpoint{ID: "peer", Links: []Link{{Network: "two"}}})
	j, _, _, err := m.Connect(ctx, web.ns, Endpoint{ID: "web", Name: "Web", Links: []Link{{Network: "two"}}})
	if err != nil {
		t.Fatal(err)
	}
	if j.Interface != "eth2" || j.Network != "two" {
		t.Errorf("connected: %+v", j)
	}
	reaches(t, "connected on the fly", peer.ns, "tcp", j.IPv4.Addr().String()+":80", "web "+peer.IPv4.Addr().String())
	if _, _, _, err := m.Connect(ctx, web.ns, Endpoint{ID: "web", Links: []Link{{Network: "two"}}}); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("connected twice: %v", err)
	}
	left, moved, err := m.Disconnect(ctx, web.ns, "web", "one")
	if err != nil {
		t.Fatal(err)
	}
	if len(left) != 2 || len(moved) != 1 || moved[0].HostPort != 18080 {
		t.Errorf("left: %+v, %v", left, moved)
	}
	reaches(t, "the way out has moved", web.ns, "tcp", "192.0.2.2:90", "outside 192.0.2.1")
	reaches(t, "the port has moved", outside, "tcp", "192.0.2.1:18080", "web 192.0.2.2")
	if _, _, err := m.Disconnect(ctx, web.ns, "web", "one"); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("disconnected twice: %v", err)
	}
	if _, err := os.Stat(m.path(namesDir, web.Networks[1].NetworkID, "www")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("www is still there: %v", err)
	}
	if _, err := m.Remove(ctx, "one"); err != nil {
		t.Errorf("remove: %v", err)
	}
	// A replace that was interrupted: the links still lead to the old file.
	e, err := m.endpoint("web@" + j.NetworkID)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range m.claims(e)[:2] {
		_ = os.Remove(p)
		if err := os.WriteFile(p, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mustSweep(t, m, living, false)
	for _, p := range m.claims(e) {
		a, _ := inodeOf(p)
		if b, _ := inodeOf(m.path(endpointsDir, e.key())); a != b {
			t.Errorf("%s is not the endpoint's", p)
		}
	}
	for _, id := range []string{"web", "peer"} {
		if err := m.Detach(ctx, id); err != nil {
			t.Error(err)
		}
	}
	if got := strings.ReplaceAll(records(t, m), "last/"+j.NetworkID, ""); strings.Contains(got, "web") || strings.Contains(got, "names") || strings.Contains(got, "leases") {
		t.Errorf("left: %s", got)
	}
	if got := run(t, "nft", "list", "map", "inet", "onggi", "any4"); strings.Contains(got, "18080") {
		t.Errorf("left: %s", got)
	}
}

// TestMacvlanAndIpvlan: containers are neighbours of the host on its own network.
func TestMacvlanAndIpvlan(t *testing.T) {
	needHost(t)
	m := newManager(t)
	serve(t, outside, "tcp", ":90", "outside")
	s := subnet("192.0.2.0/24")
	s.Gateway = netip.MustParseAddr("192.0.2.2")
	for _, c := range []struct {
		driver string
		opts   map[string]string
		want   string
	}{
		{"macvlan", map[string]string{"parent": "uplink"}, "macvlan mode bridge"},
		{"macvlan", map[string]string{"parent": "uplink", "macvlan_mode": "private"}, "macvlan mode private"},
		{"ipvlan", map[string]string{"parent": "uplink"}, "ipvlan mode l2 bridge"},
		{"ipvlan", map[string]string{"parent": "uplink", "ipvlan_mode": "l3", "ipvlan_flag": "private"}, "ipvlan mode l3 private"},
	} {
		n := create(t, m, Network{Name: "lan", Driver: c.driver, Options: c.opts, Subnets: []Subnet{s}})
		ns, err := NewNamespace()
		if err != nil {
			t.Fatal(err)
		}
		a, err := m.Attach(context.Background(), ns, Endpoint{ID: "a", Links: []Link{{Network: "lan", IPv4: netip.MustParseAddr("192.0.2.9")}}})
		if errdefs.Is(err, errdefs.Unsupported) {
			t.Skip(err)
		}
		if err != nil {
			t.Fatal(c.want, err)
		}
		if got := runIn(t, ns, "ip", "-d", "-o", "link", "show", "eth0"); !strings.Contains(strings.Join(strings.Fields(got), " "), c.want) || a.Bridge != "uplink" {
			t.Errorf("eth0: %s; want %s", got, c.want)
		}
		if c.opts["ipvlan_mode"] == "" { // routed ones need a route on the other side
			reaches(t, c.want, ns, "tcp", "192.0.2.2:90", "outside 192.0.2.9")
		} else if got := runIn(t, ns, "ip", "route"); !strings.Contains(got, "default dev eth0") {
			t.Errorf("%s: %s", c.want, got)
		}
		if err := m.Detach(context.Background(), "a"); err != nil {
			t.Error(err)
		}
		_ = ns.Close()
		if _, err := m.Remove(context.Background(), n.ID); err != nil {
			t.Error(err)
		}
	}
}

// TestNetworksKilledAnywhere fails and kills creation, connection, disconnection and removal at each step.
func TestNetworksKilledAnywhere(t *testing.T) {
	needHost(t)
	if !undo.Faults {
		t.Skip("needs fault points: go test -tags faults")
	}
	m := newManager(t)
	names := t.TempDir() + "/names"
	if err := another(m, "networks", "ONGGI_FAULT_NAMES="+names); err != nil {
		t.Fatal(err)
	}
	mustSweep(t, m, dead, true)
	list, err := os.ReadFile(names)
	if err != nil {
		t.Fatal(err)
	}
	var steps []string
	for _, s := range strings.Fields(string(list)) {
		if s == "network.names" || strings.Count(s, ".") == 2 && !strings.HasPrefix(s, "network.detach") {
			steps = append(steps, s)
		}
	}
	want := "network.create.record network.create.bridge network.create.rules network.connect.bridge network.connect.lease network.connect.veth " +
		"network.connect.address network.connect.names network.connect.rules network.names network.disconnect.veth network.disconnect.rules network.disconnect.lease " +
		"network.disconnect.move network.disconnect.routes network.remove.rules network.remove.bridge network.remove.record"
	if got := strings.Join(steps, " "); got != want {
		t.Fatalf("steps: got %s; want %s", got, want)
	}
	before := state(t)
	for _, step := range steps {
		for _, how := range []string{"=error", "@after=kill"} {
			if err := another(m, "networks", "ONGGI_FAULT="+step+how); err == nil {
				t.Errorf("%s%s: the process ended well", step, how)
			}
			mustSweep(t, m, dead, false)
			if got := records(t, m); strings.Contains(got, "web") || strings.Contains(got, "leases") || strings.Contains(got, "ports") || strings.Contains(got, "names") {
				t.Errorf("%s%s: left %s", step, how, got)
			}
			if l, err := m.List(); err != nil {
				t.Error(err)
			} else if len(l) > 3 { // a record that was written first: the network is there, and works, and can be removed
				if strings.HasPrefix(step, "network.create") && how == "=error" {
					t.Errorf("%s%s: the network is still there", step, how)
				}
				if _, err := m.Remove(context.Background(), "net"); err != nil {
					t.Errorf("%s%s: remove: %v", step, how, err)
				}
			}
			mustSweep(t, m, dead, true)
			stateIs(t, step+how, before)
		}
	}
}

// TestCreateSideBySide: stores that make networks at the same moment do not get in each other's way.
func TestCreateSideBySide(t *testing.T) {
	needHost(t)
	var all sync.WaitGroup
	var mu sync.Mutex
	seen := map[string]string{}
	for i := range 4 {
		m := newManager(t)
		all.Go(func() {
			for j := range 4 {
				n, _, err := m.Create(context.Background(), Network{Name: fmt.Sprint("n", j)})
				if err != nil {
					t.Errorf("store %d: %v", i, err)
					return
				}
				mu.Lock()
				p := n.v4().Prefix.String()
				if seen[p] != "" {
					t.Errorf("%s is given twice", p)
				}
				seen[p] = n.ID
				mu.Unlock()
			}
		})
	}
	all.Wait()
}

// TestReload: after nft flush ruleset and ip link delete everything is there again, and beside a firewall that drops
// by policy it is said what stands in the way.
func TestReload(t *testing.T) {
	needHost(t)
	m := newManager(t)
	ctx := context.Background()
	create(t, m, Network{Name: "red"})
	red := join(t, m, Endpoint{ID: "red", Links: []Link{{Network: "red"}}, Ports: []Port{{HostPort: 18080, ContainerPort: 80, Protocol: "tcp"}}})
	old := attach(t, m, "old", "18081:80")
	serve(t, red.ns, "tcp", ":80", "red")
	serve(t, old.ns, "tcp", ":80", "old")
	if h, err := m.Examine(ctx); err != nil || !h.Table || len(h.Missing) > 0 || len(h.Bridges) > 0 || h.Attached != 2 {
		t.Fatalf("healthy: %+v, %v", h, err)
	}
	run(t, "nft", "flush", "ruleset")
	if h, err := m.Examine(ctx); err != nil || h.Table || len(h.Missing) != 2 {
		t.Errorf("flushed: %+v, %v", h, err)
	}
	repaired, _, err := m.Reload(ctx)
	if err != nil || strings.Join(repaired, ", ") != "the rules of table onggi" {
		t.Errorf("reload: %v, %v", repaired, err)
	}
	reaches(t, "after the flush", outside, "tcp", "192.0.2.1:18080", "red 192.0.2.2")
	run(t, "ip", "link", "delete", red.Bridge)
	run(t, "nft", "delete", "element", "inet", "onggi", "any4", "{ tcp . 18081 }")
	if repaired, _, err = m.Reload(ctx); err != nil || strings.Join(repaired, ", ") != "the bridge "+red.Bridge+", 1 published ports" {
		t.Errorf("reload: %v, %v", repaired, err)
	}
	reaches(t, "after ip link delete", outside, "tcp", "192.0.2.1:18080", "red 192.0.2.2")
	reaches(t, "after ip link delete, on loopback", nil, "tcp", "127.0.0.1:18080", "red "+red.Gateway.String())
	reaches(t, "the element", outside, "tcp", "192.0.2.1:18081", "old 192.0.2.2")
	if repaired, _, err = m.Reload(ctx); err != nil || len(repaired) != 0 {
		t.Errorf("nothing to do: %v, %v", repaired, err)
	}
	// A host firewall that drops by policy: ours cannot overrule it, so it is named; the remedy that explain prints works.
	run(t, "nft", "add table inet host; add chain inet host forward { type filter hook forward priority 0; policy drop; }")
	refuses(t, "beside a firewall that drops", outside, "tcp", "192.0.2.1:18080")
	h, err := m.Examine(ctx)
	if err != nil || len(h.Chains) != 1 || !h.Chains[0].Drops || h.Chains[0].String() != "inet host forward" {
		t.Errorf("firewall: %+v, %v", h, err)
	}
	for _, dir := range []string{"iifname", "oifname"} {
		run(t, "nft", "insert rule inet host forward "+dir+" \"onggi*\" accept")
	}
	reaches(t, "with the remedy", outside, "tcp", "192.0.2.1:18080", "red 192.0.2.2")
}

// TestStoresWithoutDefaultBridge: two stores that only have networks of their users both plan to call their table onggi;
// neither takes the other's.
func TestStoresWithoutDefaultBridge(t *testing.T) {
	needHost(t)
	ctx := context.Background()
	var stores []*Manager
	for i := range 3 {
		m := newManager(t)
		stores = append(stores, m)
		create(t, m, Network{Name: "lan"})
		ns, err := NewNamespace()
		if err != nil {
			t.Fatal(err)
		}
		defer ns.Close()
		if _, err := m.Attach(ctx, ns, Endpoint{
			ID: "web" + strconv.Itoa(i), Links: []Link{{Network: "lan"}},
			Ports: []Port{{HostPort: uint16(18300 + i), ContainerPort: 80, Protocol: "tcp"}},
		}); err != nil {
			t.Fatal(err)
		}
	}
	all := run(t, "nft", "list", "ruleset")
	for i := range stores {
		if port := strconv.Itoa(18300 + i); !strings.Contains(all, port) {
			t.Errorf("port %s is not published any more:\n%s", port, all)
		}
	}
	for i, m := range stores {
		if err := m.Detach(ctx, "web"+strconv.Itoa(i)); err != nil {
			t.Error(err)
		}
	}
}
