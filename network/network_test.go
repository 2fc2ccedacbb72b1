package network

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/network/resolver"
	"github.com/onggi/onggi/undo"
	"golang.org/x/sys/unix"
)

func dead(string) bool   { return false }
func living(string) bool { return true }

func mustSweep(t testing.TB, m *Manager, alive func(string) bool, purge bool) {
	t.Helper()
	if err := m.Sweep(context.Background(), alive, purge); err != nil {
		t.Fatalf("sweep: %v", err)
	}
}

// records lists what is recorded in RunDir.
func records(t testing.TB, m *Manager) string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(m.o.RunDir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && d.Name() != lockFile {
			rel, _ := filepath.Rel(m.o.RunDir, path)
			out = append(out, rel)
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return strings.Join(out, " ")
}

func TestNewNamespaceIsFreshAndLeavesTheThreadAlone(t *testing.T) {
	needHost(t)
	before, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	ns, err := NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	for range 50 { // whatever thread we are on
		if after, _ := os.Readlink("/proc/thread-self/ns/net"); after != before {
			t.Fatalf("a goroutine is in %s; want %s", after, before)
		}
		time.Sleep(time.Millisecond)
	}
	if got := runIn(t, ns, "ip", "-br", "address"); !strings.HasPrefix(got, "lo") || !strings.Contains(got, "127.0.0.1/8") ||
		strings.Contains(got, "uplink") {
		t.Errorf("interfaces: %s; want lo, up", got)
	}
	run(t, "ip", "link") // and a child is where we are
}

func TestAttachment(t *testing.T) {
	needHost(t)
	m := newManager(t)
	a, b := attach(t, m, "aaa"), attach(t, m, "bbb")
	if a.IPv4.String() != "172.29.0.2/16" || b.IPv4.String() != "172.29.0.3/16" || a.Gateway.String() != "172.29.0.1" ||
		a.Bridge != "onggi0" || a.MAC != "02:42:ac:1d:00:02" {
		t.Errorf("got %+v and %+v", a.Attachment, b.Attachment)
	}
	if a.IPv6.Bits() != 64 || a.IPv6.Addr().As16()[0] != 0xfd || !a.IPv6.Contains(a.Gateway6) || !a.IPv6.Contains(b.IPv6.Addr()) {
		t.Errorf("IPv6: got %s by %s, and %s", a.IPv6, a.Gateway6, b.IPv6)
	}
	got := runIn(t, a.ns, "ip", "-o", "address", "show", "eth0")
	for _, want := range []string{a.IPv4.String(), a.IPv6.String()} {
		// Only ours: the kernel looks at its own link-local address in a worker that runs when it likes.
		_, line, ok := strings.Cut(got, " "+want+" ")
		if line, _, _ = strings.Cut(line, "\n"); !ok || strings.Contains(line, "tentative") {
			t.Errorf("eth0: %s; want %s, usable", got, want)
		}
	}
	if got := runIn(t, a.ns, "ip", "link", "show", "eth0"); !strings.Contains(got, "mtu 1450") || !strings.Contains(got, a.MAC) {
		t.Errorf("eth0: %s; want the uplink's MTU 1450 and %s", got, a.MAC)
	}
	bridge := run(t, "ip", "-d", "link", "show", "onggi0")
	if !strings.Contains(bridge, "stp_state 0") || !strings.Contains(bridge, "mtu 1450") {
		t.Errorf("bridge: %s", bridge)
	}
	// The same id again, while it is attached.
	ns, err := NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if _, err := m.Attach(context.Background(), ns, Endpoint{ID: "aaa"}); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("attached twice: got %v, want conflict", err)
	}
	for _, id := range []string{"", "..", "a/b", ".x", strings.Repeat("a", 129)} {
		if _, err := m.Attach(context.Background(), ns, Endpoint{ID: id}); !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("id %q: got %v, want invalid-argument", id, err)
		}
	}
	// A namespace that is connected already.
	if _, err := m.Attach(context.Background(), a.ns, Endpoint{ID: "ccc"}); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("second eth0: got %v, want conflict", err)
	}
	if got := records(t, m); strings.Contains(got, "ccc") || strings.Contains(got, "172.29.0.4") {
		t.Errorf("the failed Attach left %s", got)
	}
}

func TestReach(t *testing.T) {
	needHost(t)
	m := newManager(t)
	web := attach(t, m, "web", "18080:80", "5300:53/udp")
	sibling := attach(t, m, "sibling")
	serve(t, web.ns, "tcp", ":80", "web")
	serve(t, web.ns, "tcp", ":81", "hidden")
	serve(t, web.ns, "udp", "0.0.0.0:53", "dns")
	serve(t, outside, "tcp", ":90", "outside")
	serve(t, nil, "tcp", "0.0.0.0:91", "host")
	v4, v6 := web.IPv4.Addr().String(), web.IPv6.Addr().String()

	// Out of the bridge, under the host's address.
	reaches(t, "container to outside", web.ns, "tcp", "192.0.2.2:90", "outside 192.0.2.1")
	reaches(t, "container to outside, IPv6", web.ns, "tcp", "[2001:db8::2]:90", "outside 2001:db8::1")
	reaches(t, "container to host", web.ns, "tcp", "172.29.0.1:91", "host "+v4)
	reaches(t, "container to sibling", sibling.ns, "tcp", v4+":81", "hidden "+sibling.IPv4.Addr().String())
	reaches(t, "container to sibling, IPv6", sibling.ns, "tcp", "["+v6+"]:81", "hidden "+sibling.IPv6.Addr().String())
	reaches(t, "host to container", nil, "tcp", v4+":81", "hidden 172.29.0.1")

	// The published port, from everywhere.
	reaches(t, "outside", outside, "tcp", "192.0.2.1:18080", "web 192.0.2.2")
	reaches(t, "outside, IPv6", outside, "tcp", "[2001:db8::1]:18080", "web 2001:db8::2")
	reaches(t, "outside, UDP", outside, "udp", "192.0.2.1:5300", "dns 192.0.2.2")
	reaches(t, "host's loopback", nil, "tcp", "127.0.0.1:18080", "web 172.29.0.1")
	reaches(t, "host's loopback, UDP", nil, "udp", "127.0.0.1:5300", "dns 172.29.0.1")
	reaches(t, "host's loopback, another address", nil, "tcp", "127.1.2.3:18080", "web 172.29.0.1")
	reaches(t, "host's own address", nil, "tcp", "192.0.2.1:18080", "web 192.0.2.1")
	reaches(t, "host's own address, IPv6", nil, "tcp", "[2001:db8::1]:18080", "web 2001:db8::1")
	reaches(t, "sibling, by the host's address", sibling.ns, "tcp", "192.0.2.1:18080", "web 172.29.0.1")
	reaches(t, "sibling, by the gateway", sibling.ns, "tcp", "172.29.0.1:18080", "web 172.29.0.1")
	reaches(t, "itself, by the host's address", web.ns, "tcp", "192.0.2.1:18080", "web 172.29.0.1")

	// What is not published, and IPv6's loopback, which is refused at once.
	refuses(t, "unpublished port", outside, "tcp", "192.0.2.1:81")
	runIn(t, outside, "ip", "route", "add", "172.29.0.0/16", "via", "192.0.2.1")
	runIn(t, outside, "ip", "route", "add", "fd00::/8", "via", "2001:db8::1")
	refuses(t, "unpublished port, by a neighbour's own route", outside, "tcp", v4+":81")
	refuses(t, "published port, by a neighbour's own route", outside, "tcp", v4+":80")
	refuses(t, "unpublished port, by a neighbour's own route, IPv6", outside, "tcp", "["+v6+"]:81")
	if _, err := ask(nil, "tcp", "[::1]:18080"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("::1: got %v; want connection refused", err)
	}

	// Gone with Detach.
	if err := m.Detach(context.Background(), "web"); err != nil {
		t.Fatal(err)
	}
	if _, err := ask(nil, "tcp", "127.0.0.1:18080"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("after Detach: got %v; want connection refused", err)
	}
	refuses(t, "outside, after Detach", outside, "tcp", "192.0.2.1:18080")
	refuses(t, "sibling, after Detach", sibling.ns, "tcp", v4+":81")
	if got := run(t, "ip", "link", "show", hostEnd("web")); !strings.Contains(got, "state DOWN") {
		t.Errorf("the held namespace's pair after Detach: %s; want it down", got)
	}
}

// TestLoopbackOnly: a port published at 127.0.0.1 is the host's alone, and what listens there is out of reach of
// containers (CVE-2020-8558, and docker's neighbours that reached 127.0.0.1 with a route of their own).
func TestLoopbackOnly(t *testing.T) {
	needHost(t)
	m := newManager(t)
	web := attach(t, m, "web", "127.0.0.1:18080:80")
	evil := attach(t, m, "evil")
	serve(t, web.ns, "tcp", ":80", "web")
	serve(t, nil, "tcp", "127.0.0.1:92", "secret")
	reaches(t, "host", nil, "tcp", "127.0.0.1:18080", "web 172.29.0.1")
	refuses(t, "host, other address", nil, "tcp", "192.0.2.1:18080")
	refuses(t, "outside", outside, "tcp", "192.0.2.1:18080")

	if got := strings.TrimSpace(run(t, "sysctl", "-n", "net.ipv4.conf.onggi0.route_localnet")); got != "1" {
		t.Fatalf("route_localnet of the bridge: got %s, want 1", got)
	}
	// Attackers route 127.0.0.1 to us: they drop their own loopback for that.
	for _, a := range []struct {
		name, via, dev string
		ns             *os.File
	}{{"neighbour", "192.0.2.1", "eth0", outside}, {"container", "172.29.0.1", "eth0", evil.ns}} {
		runIn(t, a.ns, "sh", "-c", "ip address flush dev lo; ip rule add pref 10 lookup main; ip rule del pref 0; "+
			"sysctl -qw net.ipv4.conf.all.route_localnet=1; ip route add 127.0.0.1/32 via "+a.via+" dev "+a.dev)
		refuses(t, a.name+" to the published port", a.ns, "tcp", "127.0.0.1:18080")
		refuses(t, a.name+" to the host's loopback", a.ns, "tcp", "127.0.0.1:92")
	}
	// The container's packets came, and the guard took them.
	if got := run(t, "nft", "list", "chain", "inet", "onggi", "guard"); strings.Contains(got, "packets 0 ") {
		t.Errorf("guard: %s; want packets", got)
	}
}

func TestPortConflicts(t *testing.T) {
	needHost(t)
	m := newManager(t)
	attach(t, m, "first", "18080:80", "127.0.0.1:18081:80")
	serve(t, nil, "tcp", "127.0.0.1:18090", "host")
	ns, err := NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	comm, err := readSmall("/proc/self/comm", 64)
	if err != nil {
		t.Fatal(err)
	}
	me := fmt.Sprintf("%q (pid %d)", strings.TrimSpace(string(comm)), os.Getpid())
	for _, c := range []struct {
		ports string
		kind  errdefs.Kind
		why   string
	}{
		{"18080:80", errdefs.Conflict, "published already, by container first"},
		{"127.0.0.1:18080:80", errdefs.Conflict, "published already, by container first"},
		{"[::1]:18080:80", errdefs.Conflict, "published already, by container first"},
		{"18081:80", errdefs.Conflict, "published already, by container first"},
		{"192.0.2.1:18081:80", 0, ""},
		{"18080:80/udp", 0, ""},
		{"18090:80", errdefs.Conflict, "a process of the host listens there: " + me},
		{"192.0.2.1:18090:80", 0, ""},
		{"198.51.100.1:18082:80", errdefs.InvalidArgument, "the host has no address 198.51.100.1"},
		{"18083:80,18083:81", errdefs.Conflict, "named twice"},
		{"18080-18081:80", errdefs.Exhausted, "all host ports from 18080 to 18081"},
	} {
		var want []Port
		for s := range strings.SplitSeq(c.ports, ",") {
			p, err := ParsePort(s)
			if err != nil {
				t.Fatal(err)
			}
			want = append(want, p...)
		}
		_, err := m.Attach(context.Background(), ns, Endpoint{ID: "second", Ports: want})
		if c.kind == 0 && err != nil || c.kind != 0 && (!errdefs.Is(err, c.kind) || !strings.Contains(err.Error(), c.why)) {
			t.Errorf("%s: got %v; want %v %q", c.ports, err, c.kind, c.why)
		}
		if c.kind != 0 && errdefs.FixOf(err) == "" {
			t.Errorf("%s: no fix in %v", c.ports, err)
		}
		if err == nil {
			if err := m.Detach(context.Background(), "second"); err != nil {
				t.Error(err)
			}
			_ = ns.Close()
			if ns, err = NewNamespace(); err != nil {
				t.Fatal(err)
			}
		} else if got := records(t, m); strings.Contains(got, "second") {
			t.Errorf("%s: left %s", c.ports, got)
		}
	}
}

func TestFreePorts(t *testing.T) {
	needHost(t)
	m := newManager(t)
	low, high := ephemeralPorts()
	seen := map[uint16]bool{}
	for i := range 10 {
		s := attach(t, m, fmt.Sprint("s", i), "80", "127.0.0.1::81", "[::1]::82")
		for _, p := range s.Ports {
			if int(p.HostPort) < low || int(p.HostPort) > high || seen[p.HostPort] {
				t.Errorf("got %s; want a free port of %d-%d", p, low, high)
			}
		}
		seen[s.Ports[0].HostPort] = true
	}
	serve(t, nil, "tcp", ":19000", "host")
	if s := attach(t, m, "range", "19000-19002:80"); s.Ports[0].HostPort != 19001 || s.Ports[0].HostPortEnd != 0 {
		t.Errorf("first free of 19000-19002: got %s; want 19001", s.Ports[0])
	}
}

// TestUDPPeersMove: a peer that never stops sending meets the container that has the port now.
func TestUDPPeersMove(t *testing.T) {
	needHost(t)
	m := newManager(t)
	attach(t, m, "first") // so that the table is there and connections are tracked
	var fd int
	if err := inside(outside, func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 300_000})
		// Not connected: the host's "port unreachable" must not end it.
		return unix.Bind(fd, &unix.SockaddrInet4{Port: 5555})
	}); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	send := func() string {
		_ = unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet4{Port: 5300, Addr: [4]byte{192, 0, 2, 1}})
		b := make([]byte, 100)
		n, _, err := unix.Recvfrom(fd, b, 0)
		if err != nil {
			return ""
		}
		return string(b[:n])
	}
	send() // before anything is published
	for _, name := range []string{"one", "two"} {
		s := attach(t, m, name, "5300:53/udp")
		serve(t, s.ns, "udp", "0.0.0.0:53", name)
		got := ""
		for i := 0; i < 12 && got != name+" 192.0.2.2"; i++ { // an answer to a repeated question may still be queued
			got = send()
		}
		if got != name+" 192.0.2.2" {
			t.Errorf("got %q; want an answer of %s", got, name)
		}
		if err := m.Detach(context.Background(), name); err != nil {
			t.Fatal(err)
		}
	}
}

func TestNextFit(t *testing.T) {
	needHost(t)
	dir := t.TempDir()
	o := Options{StateDir: filepath.Join(dir, "s"), RunDir: filepath.Join(dir, "r"), Bridge: "testbr", Subnet: netip.MustParsePrefix("10.99.0.0/29")}
	m, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	defer mustSweep(t, m, dead, true)
	var got []string
	for _, id := range []string{"a", "b", "c"} { // of .2 to .6
		got = append(got, attach(t, m, id).IPv4.Addr().String())
		if id == "b" {
			if err := m.Detach(context.Background(), "a"); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, id := range []string{"d", "e", "f"} {
		got = append(got, attach(t, m, id).IPv4.Addr().String())
	}
	if want := "10.99.0.2 10.99.0.3 10.99.0.4 10.99.0.5 10.99.0.6 10.99.0.2"; strings.Join(got, " ") != want {
		t.Errorf("got %v; want %s", got, want)
	}
	ns, err := NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if _, err := m.Attach(context.Background(), ns, Endpoint{ID: "g"}); !errdefs.Is(err, errdefs.Exhausted) {
		t.Errorf("sixth of five: got %v; want exhausted", err)
	}
	if got := run(t, "nft", "list", "tables"); got != "table inet testbr\n" {
		t.Errorf("tables: got %s; want the bridge's", got)
	}
}

func TestDetachIsIdempotent(t *testing.T) {
	needHost(t)
	m := newManager(t)
	for _, id := range []string{"never", "web"} {
		if err := m.Detach(context.Background(), id); err != nil {
			t.Errorf("Detach(%s) of a fresh store: %v", id, err)
		}
	}
	web := attach(t, m, "web", "18080:80")
	_ = web.ns.Close() // nobody holds it: the kernel takes it away while we detach
	for range 3 {
		if err := m.Detach(context.Background(), "web"); err != nil {
			t.Error(err)
		}
	}
	if got := records(t, m); got != "" {
		t.Errorf("left: %s", got)
	}
	if got := run(t, "nft", "list", "map", "inet", "onggi", "any4"); strings.Contains(got, "18080") {
		t.Errorf("map: %s", got)
	}
	// The same id at once, while the former namespace is still held.
	for range 3 {
		s := attach(t, m, "again", "18080:80")
		serve(t, s.ns, "tcp", ":80", "again")
		reaches(t, "host", nil, "tcp", "127.0.0.1:18080", "again 172.29.0.1")
		if err := m.Detach(context.Background(), "again"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSweepAndPurge(t *testing.T) {
	needHost(t)
	run(t, "nft", "add", "table", "inet", "foreign")
	before := state(t)
	m := newManager(t)
	mustSweep(t, m, dead, true) // of a store that never attached anything
	a, b := attach(t, m, "aaa", "18080:80"), attach(t, m, "bbb", "18081:80")
	serve(t, b.ns, "tcp", ":80", "b")
	mustSweep(t, m, func(id string) bool { return id == "bbb" }, true)
	if got := records(t, m); got != "endpoints/bbb leases/172.29.0.3 ports/tcp-18081-any" {
		t.Errorf("records: %s; want those of bbb", got)
	}
	if got := run(t, "ip", "-br", "link", "show", "master", "onggi0"); !strings.Contains(got, hostEnd("bbb")) || strings.Contains(got, hostEnd("aaa")) {
		t.Errorf("ports: %s; want that of bbb", got)
	}
	reaches(t, "survivor", outside, "tcp", "192.0.2.1:18081", "b 192.0.2.2")

	// What no record explains: elements and pairs go. What a record asks for comes back.
	run(t, "nft", "add", "element", "inet", "onggi", "any4", "{ tcp . 7 : 172.29.0.9 . 7 }")
	run(t, "nft", "delete", "element", "inet", "onggi", "any4", "{ tcp . 18081 }")
	run(t, "ip", "link", "add", hostEnd("stranger"), "master", "onggi0", "type", "veth", "peer", "name", "testx")
	if err := os.WriteFile(m.path(leasesDir, "172.29.0.77"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	mustSweep(t, m, living, false)
	if got := run(t, "nft", "list", "map", "inet", "onggi", "any4"); !strings.Contains(got, "elements = { tcp . 18081 : 172.29.0.3 . 80 }") {
		t.Errorf("map: %s; want 18081 alone", got)
	}
	if got := run(t, "ip", "-br", "link"); strings.Contains(got, hostEnd("stranger")) {
		t.Errorf("links: %s", got)
	}
	if got := records(t, m); got != "endpoints/bbb leases/172.29.0.3 ports/tcp-18081-any" {
		t.Errorf("records: %s; want those of bbb", got)
	}

	_ = a.ns.Close()
	mustSweep(t, m, dead, true)
	stateIs(t, "after the purge", before)
	if got := records(t, m); got != "" {
		t.Errorf("left: %s", got)
	}
}

// TestRepair: the ruleset was flushed, the bridge deleted, a record torn.
func TestRepair(t *testing.T) {
	needHost(t)
	m := newManager(t)
	web := attach(t, m, "web", "18080:80")
	serve(t, web.ns, "tcp", ":80", "web")
	run(t, "nft", "flush", "ruleset")
	attach(t, m, "next")
	reaches(t, "after nft flush ruleset", outside, "tcp", "192.0.2.1:18080", "web 192.0.2.2")

	run(t, "ip", "link", "delete", "onggi0")
	attach(t, m, "after")
	reaches(t, "after ip link delete onggi0", outside, "tcp", "192.0.2.1:18080", "web 192.0.2.2")

	if err := os.WriteFile(m.path(endpointsDir, "web"), nil, 0o600); err != nil { // a power failure
		t.Fatal(err)
	}
	if err := m.Detach(context.Background(), "web"); err != nil {
		t.Fatal(err)
	}
	if got := records(t, m); strings.Contains(got, "web") || strings.Contains(got, "18080") || strings.Contains(got, "172.29.0.2") {
		t.Errorf("left of a torn record: %s", got)
	}
	if got := run(t, "nft", "list", "map", "inet", "onggi", "any4"); strings.Contains(got, "18080") {
		t.Errorf("left of a torn record: %s", got)
	}
}

// TestSideBySide: two stores on one host do not know each other.
func TestSideBySide(t *testing.T) {
	needHost(t)
	before := state(t)
	one, two := newManager(t), newManager(t)
	a, b := attach(t, one, "same", "18080:80"), attach(t, two, "same2", "18081:80")
	if a.Bridge == b.Bridge || a.IPv4.Overlaps(b.IPv4) {
		t.Errorf("got %+v and %+v; want two bridges and subnets", a.Attachment, b.Attachment)
	}
	serve(t, a.ns, "tcp", ":80", "a")
	serve(t, b.ns, "tcp", ":80", "b")
	mustSweep(t, one, living, true)
	reaches(t, "one", outside, "tcp", "192.0.2.1:18080", "a 192.0.2.2")
	reaches(t, "two", outside, "tcp", "192.0.2.1:18081", "b 192.0.2.2")
	mustSweep(t, one, dead, true)
	reaches(t, "two, without one", outside, "tcp", "192.0.2.1:18081", "b 192.0.2.2")
	mustSweep(t, two, dead, true)
	stateIs(t, "after both", before)
}

func TestSubnetAvoidsTheHost(t *testing.T) {
	needHost(t)
	run(t, "ip", "link", "add", "testd", "type", "bridge")
	run(t, "ip", "address", "add", "172.29.7.1/24", "dev", "testd")
	run(t, "ip", "link", "set", "testd", "up")
	run(t, "ip", "route", "add", "172.30.128.0/17", "dev", "testd")
	run(t, "ip", "route", "add", "blackhole", "10.209.3.0/24")
	t.Cleanup(func() { run(t, "ip", "route", "del", "blackhole", "10.209.3.0/24") })
	m := newManager(t)
	if s := attach(t, m, "a"); s.IPv4.String() != "10.210.0.2/16" {
		t.Errorf("got %s; want one of 10.210.0.0/16", s.IPv4)
	}
	// Chosen once: what the host gets later does not move us, and what is decided is said when it cannot be kept.
	mustSweep(t, m, dead, true)
	run(t, "ip", "link", "delete", "testd")
	if s := attach(t, m, "b"); s.IPv4.Masked().String() != "10.210.0.0/16" {
		t.Errorf("got %s; want the subnet that was recorded", s.IPv4)
	}
}

func TestWithoutIPv6(t *testing.T) {
	needHost(t)
	run(t, "ip", "-6", "address", "flush", "dev", "uplink", "scope", "global")
	run(t, "ip", "-6", "route", "flush", "default")
	m := newManager(t)
	s := attach(t, m, "a", "18080:80")
	if s.IPv6.IsValid() || s.Gateway6.IsValid() {
		t.Errorf("got %+v; want no IPv6", s.Attachment)
	}
	if got := runIn(t, s.ns, "ip", "-6", "address", "show", "eth0"); got != "" {
		t.Errorf("eth0: %s; want no IPv6 address", got)
	}
	if got := sysctl("net/ipv6/conf/all/forwarding"); got != "0" {
		t.Errorf("IPv6 forwarding: got %s, want it untouched", got)
	}
	ns, err := NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if _, err := m.Attach(context.Background(), ns, Endpoint{ID: "b", Ports: []Port{{
		HostIP:   netip.IPv6Loopback(),
		HostPort: 80, ContainerPort: 80, Protocol: "tcp",
	}}}); !errdefs.Is(err, errdefs.Unsupported) {
		t.Errorf("publish at ::1: got %v; want unsupported", err)
	}
}

// TestForeignFirewall: an accept of ours does not overrule a drop of others; we say so and touch nothing.
func TestForeignFirewall(t *testing.T) {
	needHost(t)
	run(t, "nft", "add table ip fw; add chain ip fw FORWARD { type filter hook forward priority 0; policy drop; }")
	m := newManager(t)
	ns, err := NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	a, err := m.Attach(context.Background(), ns, Endpoint{ID: "a", Ports: []Port{{HostPort: 18080, ContainerPort: 80, Protocol: "tcp"}}})
	if err != nil {
		t.Fatal(err)
	}
	if len(a.Warnings) != 1 || !strings.Contains(a.Warnings[0], "ip fw FORWARD") {
		t.Errorf("warnings: got %q; want one that names ip fw FORWARD", a.Warnings)
	}
	serve(t, ns, "tcp", ":80", "web")
	reaches(t, "host", nil, "tcp", "127.0.0.1:18080", "web 172.29.0.1")
	refuses(t, "outside", outside, "tcp", "192.0.2.1:18080")
	run(t, "nft", `add rule ip fw FORWARD iifname "onggi0" accept; add rule ip fw FORWARD oifname "onggi0" accept`)
	reaches(t, "outside, as the warning says", outside, "tcp", "192.0.2.1:18080", "web 192.0.2.2")
}

// TestBridgeNetfilter: with br_netfilter the kernel shows the rules what siblings say to each other as well.
func TestBridgeNetfilter(t *testing.T) {
	needHost(t)
	const call = "net/bridge/bridge-nf-call-iptables"
	was := sysctl(call)
	if was == "" {
		t.Skip("needs the module br_netfilter")
	}
	for _, v := range []string{"0", "1"} {
		if err := setSysctl(call, v); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = setSysctl(call, was) })
		m := newManager(t)
		web, sibling := attach(t, m, "web", "18080:80"), attach(t, m, "sibling")
		serve(t, web.ns, "tcp", ":80", "web")
		what := "bridge-nf-call-iptables=" + v + ": "
		reaches(t, what+"itself", web.ns, "tcp", "192.0.2.1:18080", "web 172.29.0.1")
		reaches(t, what+"sibling", sibling.ns, "tcp", "192.0.2.1:18080", "web 172.29.0.1")
		reaches(t, what+"outside", outside, "tcp", "192.0.2.1:18080", "web 192.0.2.2")
		reaches(t, what+"directly", sibling.ns, "tcp", web.IPv4.Addr().String()+":80", "web "+sibling.IPv4.Addr().String())
		mustSweep(t, m, dead, true)
	}
}

// TestReadOnlySysctls: a nested engine may see /proc/sys read-only.
func TestReadOnlySysctls(t *testing.T) {
	needHost(t)
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount("/proc/sys", unix.MNT_DETACH) })
	if err := unix.Mount("", "/proc/sys", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	m := newManager(t)
	web := attach(t, m, "web", "18080:80")
	serve(t, web.ns, "tcp", ":80", "web")
	all := strings.Join(web.Warnings, "\n")
	for _, want := range []string{"net.ipv4.ip_forward", "net.ipv4.conf.onggi0.route_localnet", "net.ipv6.conf.all.forwarding"} {
		if !strings.Contains(all, want) {
			t.Errorf("warnings:\n%s\nwant one about %s", all, want)
		}
	}
	reaches(t, "host's own address", nil, "tcp", "192.0.2.1:18080", "web 192.0.2.1")
}

// TestTogether: several processes attach at once, on a host where nothing is set up yet.
func TestTogether(t *testing.T) {
	needHost(t)
	before := state(t)
	const processes, each = 4, 50
	m := newManager(t)
	var cmds []*exec.Cmd
	var outs []*bufio.Scanner
	var ins []io.Closer
	for i := range processes {
		cmd := exec.Command("/proc/self/exe", m.o.StateDir, m.o.RunDir, strconv.Itoa(i), strconv.Itoa(each))
		cmd.Env = append(os.Environ(), asHelper+"=attach")
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		cmds, ins, outs = append(cmds, cmd), append(ins, in), append(outs, bufio.NewScanner(out))
	}
	seen := map[string]bool{}
	for _, out := range outs {
		for range each {
			if !out.Scan() {
				t.Fatal("a helper ended early")
			}
			if seen[out.Text()] {
				t.Errorf("%s was given twice", out.Text())
			}
			seen[out.Text()] = true
		}
	}
	if len(seen) != processes*each {
		t.Errorf("got %d addresses, want %d", len(seen), processes*each)
	}
	if got := strings.Count(records(t, m), leasesDir+"/"); got != processes*each {
		t.Errorf("got %d leases, want %d", got, processes*each)
	}
	for i, in := range ins {
		_ = in.Close()
		if err := cmds[i].Wait(); err != nil {
			t.Error(err)
		}
	}
	if got := records(t, m); got != "" {
		t.Errorf("left: %s", got)
	}
	mustSweep(t, m, dead, true)
	stateIs(t, "after the purge", before)
}

// helper is what a child of the tests does: `attach STATE RUN N COUNT` attaches, says the addresses, waits for the end
// of its input, detaches; `life STATE RUN` attaches and detaches one sandbox with ports.
func helper(mode string, args []string) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, mode, err)
		return 1
	}
	ctx := context.Background()
	if mode == "resolver" {
		if err := resolver.Serve(ctx, args[0]); err != nil {
			return fail(err)
		}
		return 0
	}
	o := Options{StateDir: args[0], RunDir: args[1]}
	if mode == "networks" {
		o.Resolver, o.ResolverEnv = testResolver()
	}
	m, err := Open(o)
	if err != nil {
		return fail(err)
	}
	switch mode {
	case "attach":
		count, _ := strconv.Atoi(args[3])
		results := make(chan error)
		for i := range count {
			go func() {
				ns, err := NewNamespace()
				if err == nil {
					var a *Attachment
					if a, err = m.Attach(ctx, ns, Endpoint{ID: fmt.Sprint("p", args[2], "-", i), Ports: []Port{{ContainerPort: 80, Protocol: "tcp"}}}); err == nil {
						fmt.Println(a.IPv4.Addr())
					}
				}
				results <- err
			}()
		}
		for range count {
			if err := <-results; err != nil {
				return fail(err)
			}
		}
		_, _ = io.Copy(io.Discard, os.Stdin)
		for i := range count {
			if err := m.Detach(ctx, fmt.Sprint("p", args[2], "-", i)); err != nil {
				return fail(err)
			}
		}
	case "networks":
		if err := networksLife(ctx, m); err != nil {
			return fail(err)
		}
	case "life":
		ns, err := NewNamespace()
		if err != nil {
			return fail(err)
		}
		if _, err := m.Attach(ctx, ns, Endpoint{ID: "web", Ports: []Port{{HostPort: 18080, ContainerPort: 80, Protocol: "tcp"}}}); err != nil {
			return fail(err)
		}
		if err := m.Detach(ctx, "web"); err != nil {
			return fail(err)
		}
	}
	return 0
}

// networksLife is the life of a network and of a sandbox that comes and goes.
func networksLife(ctx context.Context, m *Manager) error {
	if _, _, err := m.Create(ctx, Network{Name: "net"}); err != nil {
		return err
	}
	ns, err := NewNamespace()
	if err != nil {
		return err
	}
	if _, err := m.Attach(ctx, ns, Endpoint{ID: "web"}); err != nil {
		return err
	}
	port := []Port{{HostPort: 18080, ContainerPort: 80, Protocol: "tcp"}}
	if _, _, _, err := m.Connect(ctx, ns, Endpoint{ID: "web", Name: "web", Links: []Link{{Network: "net"}}, Ports: port}); err != nil {
		return err
	}
	two, err := NewNamespace()
	if err != nil {
		return err
	}
	if _, err := m.Attach(ctx, two, Endpoint{ID: "two", Links: []Link{{Network: "net"}}}); err != nil {
		return err
	}
	if err := m.Detach(ctx, "two"); err != nil {
		return err
	}
	if _, _, err := m.Disconnect(ctx, ns, "web", "net"); err != nil {
		return err
	}
	if err := m.Detach(ctx, "web"); err != nil {
		return err
	}
	_, err = m.Remove(ctx, "net")
	return err
}

// testResolver is this binary as a resolver.
func testResolver() (argv, env []string) {
	bin, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return []string{bin}, []string{asHelper + "=resolver"}
}

// another runs a helper of the test in a process of its own.
func another(m *Manager, mode string, env ...string) error {
	bin, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(bin, m.o.StateDir, m.o.RunDir)
	cmd.Env = append(append(os.Environ(), asHelper+"="+mode), env...)
	return cmd.Run()
}

// TestKilledAnywhere fails and kills a process at every step of its way, and finds nothing left.
func TestKilledAnywhere(t *testing.T) {
	needHost(t)
	if !undo.Faults {
		t.Skip("needs fault points: go test -tags faults")
	}
	bin, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	before := state(t)
	life := func(m *Manager, env ...string) error {
		cmd := exec.Command(bin, m.o.StateDir, m.o.RunDir)
		cmd.Env = append(append(os.Environ(), asHelper+"=life"), env...)
		return cmd.Run()
	}
	names := filepath.Join(t.TempDir(), "names")
	m := newManager(t)
	if err := life(m, "ONGGI_FAULT_NAMES="+names); err != nil {
		t.Fatal(err)
	}
	mustSweep(t, m, dead, true)
	list, err := os.ReadFile(names)
	if err != nil {
		t.Fatal(err)
	}
	steps := strings.Fields(string(list))
	if want := "network.bridge network.lease network.veth network.address network.rules " +
		"network.detach.veth network.detach.rules network.detach.lease"; strings.Join(steps, " ") != want {
		t.Fatalf("steps: got %v; want %s", steps, want)
	}
	hows := []string{"=error", "@after=kill", "@after=error", "=kill"}
	if testing.Short() { // in an emulated guest
		hows = hows[:2]
	}
	for _, step := range steps {
		for _, how := range hows {
			if err := life(m, "ONGGI_FAULT="+step+how); err == nil {
				t.Errorf("%s%s: the process ended well", step, how)
			}
			if strings.HasSuffix(how, "error") && !strings.Contains(step, "detach") {
				if got := records(t, m); got != "" {
					t.Errorf("%s%s: Attach left %s", step, how, got)
				}
				if got := run(t, "nft", "list", "ruleset"); strings.Contains(got, "18080") {
					t.Errorf("%s%s: Attach left a rule: %s", step, how, got)
				}
			}
			mustSweep(t, m, dead, true)
			if got := records(t, m); got != "" {
				t.Errorf("%s%s: left %s", step, how, got)
			}
			stateIs(t, step+how, before)
			if err := life(m); err != nil {
				t.Errorf("%s%s: the next one: %v", step, how, err)
			}
			mustSweep(t, m, dead, true)
		}
	}
}
