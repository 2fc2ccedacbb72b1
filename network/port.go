package network

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/onggi/onggi/errdefs"
	"golang.org/x/sys/unix"
)

// maxPorts bounds what one -p, and one sandbox, may publish: a port is a map element, a link and a trial bind.
const maxPorts = 32768

// ParsePort reads docker's -p syntax: [[IP:][HOST[-HOST]]:]CONTAINER[-CONTAINER][/PROTO]; a range gives several ports.
//
//	80                      container port 80 at a free host port of all addresses
//	8080:80/udp             host port 8080 of all addresses, UDP
//	127.0.0.1:8080:80       of one address; [::1]:8080:80 for IPv6
//	127.0.0.1::80           a free port of one address
//	7000-7009:7000-7009     ten ports, pair by pair
//	7000-7009:80            the first free one of ten
//
// Errors: InvalidArgument. Source: docker run --publish (docs.docker.com, "Port publishing and mapping").
func ParsePort(s string) ([]Port, error) {
	bad := func(why, fix string) ([]Port, error) {
		return nil, &errdefs.Error{
			Op: "publish port", What: strconv.Quote(shorten(s)), Kind: errdefs.InvalidArgument,
			Why: why, Fix: fix,
		}
	}
	const form = "write it as [[IP:]HOST:]CONTAINER[/PROTO], for example -p 127.0.0.1:8080:80/tcp"
	rest, proto, found := strings.Cut(s, "/")
	proto = strings.ToLower(proto)
	if !found {
		proto = "tcp"
	}
	if proto != "tcp" && proto != "udp" && proto != "sctp" {
		return bad("the protocol is none of tcp, udp, sctp", "end it with /tcp, /udp or /sctp, or with nothing for tcp")
	}
	var ip netip.Addr
	if strings.HasPrefix(rest, "[") {
		text, after, ok := strings.Cut(rest[1:], "]:")
		if !ok {
			return bad("the bracket of the IPv6 address is not closed by ]:", "write it as [::1]:8080:80")
		}
		a, err := netip.ParseAddr(text)
		if err != nil || !a.Is6() || a.Zone() != "" {
			return bad("there is no IPv6 address in the brackets", "write it as [::1]:8080:80")
		}
		ip, rest = a.Unmap(), after
		if strings.Count(rest, ":") != 1 {
			return bad("an address must be followed by HOST:CONTAINER", "write it as [::1]:8080:80, or [::1]::80 for a free port")
		}
	}
	parts := strings.Split(rest, ":")
	if len(parts) > 3 {
		return bad("it has too many colons", "put an IPv6 address in brackets: [::1]:8080:80")
	}
	if len(parts) == 3 {
		a, err := netip.ParseAddr(parts[0])
		if parts[0] != "" && (err != nil || !a.Is4()) {
			return bad(strconv.Quote(shorten(parts[0]))+" is not an IP address", form)
		}
		ip, parts = a, parts[1:]
	}
	clow, chigh, err := parseRange(parts[len(parts)-1])
	if err != nil {
		return bad("container port: "+err.Error(), form)
	}
	if clow == 0 {
		return bad("container port: 0 is not a port", form)
	}
	var hlow, hhigh int
	if len(parts) == 2 && parts[0] != "" {
		if hlow, hhigh, err = parseRange(parts[0]); err != nil {
			return bad("host port: "+err.Error(), form)
		}
		if hlow == 0 && hhigh != 0 {
			return bad("host port: a range cannot begin with 0", form)
		}
	}
	count := chigh - clow + 1
	var pick int // last host port to pick from, when one container port may have any of several
	switch {
	case hlow == 0: // free ones
	case count == 1 && hhigh > hlow:
		pick = hhigh
	case hhigh-hlow+1 != count:
		return bad(fmt.Sprintf("%d host ports for %d container ports", hhigh-hlow+1, count),
			"make both ranges equally long")
	}
	out := make([]Port, 0, count)
	for i := range count {
		p := Port{HostIP: ip, ContainerPort: uint16(clow + i), Protocol: proto}
		if hlow != 0 {
			p.HostPort = uint16(hlow + i)
			p.HostPortEnd = uint16(pick)
		}
		out = append(out, p)
	}
	return out, nil
}

func shorten(s string) string {
	if len(s) > 100 {
		return s[:100] + "..."
	}
	return s
}

// parseRange reads N or N-M with 0 <= N <= M <= 65535, digits only.
func parseRange(s string) (low, high int, err error) {
	number := func(s string) (int, error) {
		if s == "" {
			return 0, errors.New("it is empty")
		}
		if strings.Trim(s, "0123456789") != "" {
			return 0, fmt.Errorf("%q is not a number", shorten(s))
		}
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil {
			return 0, fmt.Errorf("%s is above 65535", shorten(s))
		}
		return int(n), nil
	}
	a, b, ranged := strings.Cut(s, "-")
	if low, err = number(a); err != nil || !ranged {
		return low, low, err
	}
	if high, err = number(b); err != nil {
		return 0, 0, err
	}
	if high < low {
		return 0, 0, fmt.Errorf("the range %s ends before it begins", shorten(s))
	}
	return low, high, nil
}

// String writes the port as -p takes it.
func (p Port) String() string {
	var b strings.Builder
	switch {
	case p.HostIP.Is6():
		b.WriteString("[" + p.HostIP.String() + "]:")
	case p.HostIP.IsValid():
		b.WriteString(p.HostIP.String() + ":")
	}
	if p.HostPort != 0 {
		b.WriteString(strconv.Itoa(int(p.HostPort)))
		if p.HostPortEnd != 0 {
			b.WriteString("-" + strconv.Itoa(int(p.HostPortEnd)))
		}
	}
	if b.Len() > 0 {
		b.WriteByte(':')
	}
	b.WriteString(strconv.Itoa(int(p.ContainerPort)) + "/" + p.Protocol)
	return b.String()
}

// families says by which IP versions the host offers the port.
func (p Port) families() (v4, v6 bool) {
	if !p.HostIP.IsValid() {
		return true, true
	}
	return p.HostIP.Is4(), p.HostIP.Is6()
}

// claim is the name of the file that reserves the host port.
func (p Port) claim() string {
	ip := "any"
	if p.HostIP.IsValid() {
		ip = p.HostIP.String()
	}
	return p.Protocol + "-" + strconv.Itoa(int(p.HostPort)) + "-" + ip
}

// overlaps reports whether two host addresses of one port cannot both be published, as two sockets could not both be
// bound: the zero Addr is all addresses, the unspecified one all of its family.
func overlaps(a, b netip.Addr) bool {
	if !a.IsValid() || !b.IsValid() {
		return true
	}
	return a.Is4() == b.Is4() && (a == b || a.IsUnspecified() || b.IsUnspecified())
}

// claimed are the reserved host addresses by "PROTO-PORT".
type claimed map[string][]netip.Addr

func (c claimed) find(p Port) (holder Port, found bool) {
	for _, ip := range c[p.Protocol+"-"+strconv.Itoa(int(p.HostPort))] {
		if overlaps(ip, p.HostIP) {
			holder = p
			holder.HostIP = ip
			return holder, true
		}
	}
	return Port{}, false
}

func (c claimed) add(p Port) {
	k := p.Protocol + "-" + strconv.Itoa(int(p.HostPort))
	c[k] = append(c[k], p.HostIP)
}

// choosePorts checks the wanted ports against our own claims and the sockets of the host, and gives a free number to
// those without one. The caller holds the lock.
func (m *Manager) choosePorts(want []Port, v6 bool) ([]Port, error) {
	if len(want) == 0 {
		return nil, nil
	}
	if len(want) > maxPorts {
		return nil, &errdefs.Error{
			Kind: errdefs.Exhausted, Why: fmt.Sprintf("%d published ports are too many", len(want)),
			Fix: fmt.Sprintf("publish at most %d", maxPorts),
		}
	}
	names, err := m.names(portsDir)
	if err != nil {
		return nil, err
	}
	taken := claimed{}
	for _, n := range names {
		f := strings.SplitN(n, "-", 3)
		if len(f) != 3 {
			continue
		}
		ip, _ := netip.ParseAddr(f[2]) // "any" is the zero Addr
		taken[f[0]+"-"+f[1]] = append(taken[f[0]+"-"+f[1]], ip)
	}
	out := make([]Port, 0, len(want))
	// Those with a number first, so that a free one does not take it.
	for _, fixed := range []bool{true, false} {
		for _, p := range want {
			if fixed != (p.HostPort != 0 && p.HostPortEnd == 0) {
				continue
			}
			if p, err = m.choosePort(p, taken, v6); err != nil {
				return nil, err
			}
			taken.add(p)
			out = append(out, p)
		}
	}
	return out, nil
}

func (m *Manager) choosePort(p Port, taken claimed, v6 bool) (Port, error) {
	p.HostIP = p.HostIP.Unmap()
	fail := func(kind errdefs.Kind, why, fix string, err error) (Port, error) {
		return p, &errdefs.Error{Op: "publish port", What: p.String(), Kind: kind, Why: why, Fix: fix, Err: err}
	}
	if p.ContainerPort == 0 || protocolNumber(p.Protocol) == unix.IPPROTO_TCP && p.Protocol != "tcp" ||
		p.HostIP.Zone() != "" || p.HostPortEnd != 0 && p.HostPortEnd < p.HostPort {
		return fail(errdefs.InvalidArgument, "it is not a port of tcp, udp or sctp", "", nil)
	}
	if p.HostIP.Is6() && !v6 {
		return fail(errdefs.Unsupported, "containers have no IPv6 address here, because this host has no route to others by IPv6",
			"publish it at an IPv4 address", nil)
	}
	low, high := int(p.HostPort), int(p.HostPortEnd)
	begin := low
	if low == 0 {
		low, high = ephemeralPorts()
		begin = low + rand.IntN(high-low+1)
	}
	p.HostPortEnd = 0
	if high == 0 {
		if q, found := taken.find(p); found {
			holder := m.holder(q)
			if holder == "" {
				return fail(errdefs.Conflict, "the host port is named twice", "leave one out", nil)
			}
			return fail(errdefs.Conflict, "the host port is published already, by container "+shortID(holder),
				"choose another host port, or remove that container: onggi rm -f "+shortID(holder), nil)
		}
		if err := tryBind(p, v6); errors.Is(err, unix.EADDRINUSE) {
			why := "a process of the host listens there"
			if who := listener(p); who != "" {
				why += ": " + who
			}
			return fail(errdefs.Conflict, why, "choose another host port, or stop that process", nil)
		} else if errors.Is(err, unix.EADDRNOTAVAIL) {
			return fail(errdefs.InvalidArgument, "the host has no address "+p.HostIP.String(),
				"use one that `ip address` shows, or leave it out for all", nil)
		} else if err != nil {
			return fail(errdefs.KindOf(err), "the host port cannot be tried", "", err)
		}
		return p, nil
	}
	for i := range high - low + 1 {
		q := p
		q.HostPort = uint16(low + (begin-low+i)%(high-low+1))
		if _, found := taken.find(q); found {
			continue
		}
		switch err := tryBind(q, v6); {
		case err == nil:
			return q, nil
		case errors.Is(err, unix.EADDRINUSE):
		case errors.Is(err, unix.EADDRNOTAVAIL):
			return fail(errdefs.InvalidArgument, "the host has no address "+p.HostIP.String(),
				"use one that `ip address` shows, or leave it out for all", nil)
		default:
			return fail(errdefs.KindOf(err), "the host port cannot be tried", "", err)
		}
	}
	return fail(errdefs.Exhausted, fmt.Sprintf("all host ports from %d to %d are in use", low, high),
		"remove containers that are not needed, or name a host port", nil)
}

// holder returns the id of the sandbox that has a port, or "".
func (m *Manager) holder(p Port) string {
	var e endpoint
	b, err := readSmall(m.path(portsDir, p.claim()), maxEndpoint)
	if err != nil || json.Unmarshal(b, &e) != nil {
		return ""
	}
	return e.ID
}

func shortID(id string) string {
	if len(id) > 12 {
		return id[:12]
	}
	return id
}

// ephemeralPorts is the range from which the kernel gives ports (ip(7)); IANA's where it cannot be read.
func ephemeralPorts() (low, high int) {
	f := strings.Fields(sysctl("net/ipv4/ip_local_port_range"))
	if len(f) == 2 {
		low, _ = strconv.Atoi(f[0])
		high, _ = strconv.Atoi(f[1])
	}
	if low < 1 || high > 65535 || low > high {
		return 49153, 65535
	}
	return low, high
}

// tryBind tells whether a process of the host has the port: it binds and closes. Nothing holds the port afterwards:
// we have no proxy process. A process that binds it later gets no packet of it while it is published.
func tryBind(p Port, v6 bool) error {
	on4, on6 := p.families()
	if on4 {
		sa := &unix.SockaddrInet4{Port: int(p.HostPort)}
		if p.HostIP.Is4() {
			sa.Addr = p.HostIP.As4()
		}
		if err := bindOnce(unix.AF_INET, p.Protocol, sa); err != nil {
			return err
		}
	}
	if on6 && v6 {
		sa := &unix.SockaddrInet6{Port: int(p.HostPort)}
		if p.HostIP.Is6() {
			sa.Addr = p.HostIP.As16()
		}
		return bindOnce(unix.AF_INET6, p.Protocol, sa)
	}
	return nil
}

func bindOnce(family int, protocol string, sa unix.Sockaddr) error {
	kind := unix.SOCK_STREAM
	if protocol == "udp" {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, int(protocolNumber(protocol)))
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EAFNOSUPPORT) {
		return nil // the host cannot listen there at all (SCTP's module)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if kind == unix.SOCK_STREAM {
		// Connections of a former listener that are in TIME_WAIT do not matter; a listener is found all the same.
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return err
		}
	}
	if family == unix.AF_INET6 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return err
		}
	}
	return unix.Bind(fd, sa)
}

// listener names the process that has the port, as "nginx" (pid 123), or returns "". It reads all of /proc, for an
// error message only.
func listener(p Port) string {
	inodes := map[string]bool{}
	for _, suffix := range []string{"", "6"} {
		f, err := os.Open("/proc/thread-self/net/" + p.Protocol + suffix)
		if err != nil {
			continue
		}
		for s := bufio.NewScanner(f); s.Scan(); {
			// sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode
			c := strings.Fields(s.Text())
			if len(c) < 10 || p.Protocol == "tcp" && c[3] != "0A" {
				continue
			}
			_, port, _ := strings.Cut(c[1], ":")
			if b, err := hex.DecodeString(port); err == nil && len(b) == 2 && uint16(b[0])<<8|uint16(b[1]) == p.HostPort {
				inodes["socket:["+c[9]+"]"] = true
			}
		}
		_ = f.Close()
	}
	if len(inodes) == 0 {
		return ""
	}
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, fd := range fds {
		if l, err := os.Readlink(fd); err == nil && inodes[l] {
			pid := strings.Split(fd, "/")[2]
			comm, _ := readSmall("/proc/"+pid+"/comm", 4096)
			return fmt.Sprintf("%q (pid %s)", strings.TrimSpace(string(comm)), pid)
		}
	}
	return ""
}
