package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Every test of this package runs in a network namespace of its own making: TestMain starts the test binary again in
// a fresh one, which plays the host; the tests make further ones for sandboxes and for a client outside. So the
// machine's own bridges and rules are never touched, and what a test needs (no firewall, a default route) is there.
//
//	outside client                 host                                  sandboxes
//	192.0.2.2  eth0 ---- uplink    192.0.2.1                   eth0      172.29.0.2
//	2001:db8::2                    2001:db8::1   onggi0 ----- vonggi...
const (
	inHost   = "ONGGI_TEST_IN_HOST"
	asHelper = "ONGGI_TEST_HELPER"
)

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(asHelper) != "":
		os.Exit(helper(os.Getenv(asHelper), os.Args[1:]))
	case os.Getenv(inHost) != "" || os.Geteuid() != 0:
		os.Exit(m.Run())
	}
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), inHost+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // Pdeathsig is of the thread
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		// No such namespaces here: the tests that need them skip.
		fmt.Fprintln(os.Stderr, "network: tests run without a network namespace:", err)
		os.Exit(m.Run())
	}
}

// needHost skips where the test is not in a namespace of its own.
func needHost(t testing.TB) {
	t.Helper()
	if os.Getenv(inHost) == "" {
		t.Skip("needs root and network namespaces")
	}
	resetHost(t)
}

// outside is the client's namespace of the running test.
var outside *os.File

// resetHost gives the test a host as after boot: only lo and an uplink to the client outside.
func resetHost(t testing.TB) {
	t.Helper()
	run(t, "nft", "flush", "ruleset")
	out := run(t, "ip", "-o", "link")
	for _, l := range strings.Split(out, "\n") {
		f := strings.Fields(l)
		if len(f) < 2 {
			continue
		}
		name, _, _ := strings.Cut(strings.TrimSuffix(f[1], ":"), "@")
		if name == "uplink" || strings.HasPrefix(name, "onggi") || strings.HasPrefix(name, "vonggi") || strings.HasPrefix(name, "test") {
			_ = exec.Command("ip", "link", "delete", name).Run()
		}
	}
	for _, s := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv4/conf/all/route_localnet"} {
		if err := setSysctl(s, "0"); err != nil {
			t.Fatal(err)
		}
	}
	if err := loopbackUp(); err != nil {
		t.Fatal(err)
	}
	if outside != nil {
		_ = outside.Close()
	}
	var err error
	if outside, err = NewNamespace(); err != nil {
		t.Fatal(err)
	}
	run(t, "ip", "link", "add", "uplink", "mtu", "1450", "type", "veth", "peer", "name", "testpeer")
	moveTo(t, "testpeer", outside)
	run(t, "ip", "link", "set", "uplink", "addrgenmode", "none") // what comes by itself comes when it likes
	run(t, "ip", "address", "add", "192.0.2.1/24", "dev", "uplink")
	run(t, "ip", "address", "add", "2001:db8::1/64", "dev", "uplink", "nodad")
	run(t, "ip", "link", "set", "uplink", "up")
	run(t, "ip", "route", "add", "default", "via", "192.0.2.2")
	run(t, "ip", "route", "add", "default", "via", "2001:db8::2")
	runIn(t, outside, "ip", "link", "set", "testpeer", "name", "eth0")
	runIn(t, outside, "ip", "address", "add", "192.0.2.2/24", "dev", "eth0")
	runIn(t, outside, "ip", "address", "add", "2001:db8::2/64", "dev", "eth0", "nodad")
	runIn(t, outside, "ip", "link", "set", "eth0", "up")
	for range 1500 { // the kernel tells of a carrier in its own time
		if !strings.Contains(run(t, "ip", "route"), "linkdown") {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the uplink does not come up")
}

// moveTo hands an interface to a namespace.
func moveTo(t testing.TB, name string, ns *os.File) {
	t.Helper()
	rt, err := openSocket(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer rt.close()
	w := rt.start()
	w.message(unix.RTM_SETLINK, unix.NLM_F_ACK, linkHeader(unix.AF_UNSPEC, 0, 0, 0))
	w.str(unix.IFLA_IFNAME, name)
	w.u32(unix.IFLA_NET_NS_FD, uint32(ns.Fd()))
	if _, err := rt.do(w); err != nil {
		t.Fatal(err)
	}
}

func run(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip("needs ", args[0])
	}
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return string(out)
}

// runIn runs a program in a namespace: a child inherits that of the thread that starts it.
func runIn(t testing.TB, ns *os.File, args ...string) string {
	t.Helper()
	var out []byte
	err := inside(ns, func() (err error) {
		out, err = exec.Command(args[0], args[1:]...).CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return string(out)
}

// newManager opens a manager on fresh directories and sweeps everything when the test ends.
func newManager(t testing.TB) *Manager {
	t.Helper()
	dir := t.TempDir()
	m, err := Open(Options{StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Sweep(context.Background(), func(string) bool { return false }, true); err != nil {
			t.Errorf("sweep: %v", err)
		}
	})
	return m
}

// sandbox is an attached namespace.
type sandbox struct {
	id string
	ns *os.File
	*Attachment
}

func attach(t testing.TB, m *Manager, id string, ports ...string) *sandbox {
	t.Helper()
	ns, err := NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	var list []Port
	for _, s := range ports {
		p, err := ParsePort(s)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, p...)
	}
	a, err := m.Attach(context.Background(), ns, Endpoint{ID: id, Ports: list})
	if err != nil {
		t.Fatalf("attach %s: %v", id, err)
	}
	for _, w := range a.Warnings {
		t.Logf("warning: %s", w)
	}
	return &sandbox{id, ns, a}
}

// serve answers on a port in a namespace (nil: the host's) until the test ends. Each answer is the name and the
// address from which the client was seen.
func serve(t testing.TB, ns *os.File, network, address, name string) {
	t.Helper()
	start := func() error {
		if strings.HasPrefix(network, "udp") {
			c, err := net.ListenPacket(network, address)
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = c.Close() })
			go func() {
				b := make([]byte, 100)
				for {
					_, from, err := c.ReadFrom(b)
					if err != nil {
						return
					}
					_, _ = c.WriteTo([]byte(name+" "+from.(*net.UDPAddr).AddrPort().Addr().Unmap().String()), from)
				}
			}()
			return nil
		}
		l, err := net.Listen(network, address)
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = io.WriteString(c, name+" "+c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap().String())
				_ = c.Close()
			}
		}()
		return nil
	}
	var err error
	if ns == nil {
		err = start()
	} else {
		err = inside(ns, start)
	}
	if err != nil {
		t.Fatalf("listen on %s: %v", address, err)
	}
}

// ask connects from a namespace (nil: the host's) and returns the answer. It makes its own system calls, because
// package net's dialer runs goroutines, which are not on the thread that is in the namespace.
func ask(from *os.File, network, address string) (answer string, err error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return "", err
	}
	family, kind := unix.AF_INET, unix.SOCK_STREAM
	var sa unix.Sockaddr
	if to.Addr().Is6() {
		family, sa = unix.AF_INET6, &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
	} else {
		sa = &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	if network == "udp" {
		kind = unix.SOCK_DGRAM
	}
	f := func() error {
		fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		// The patience of the refusing case; a success answers at once.
		wait := unix.Timeval{Usec: 500_000}
		_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &wait)
		_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait)
		if err := ignoringEINTR(func() error { return unix.Connect(fd, sa) }); err != nil {
			return fmt.Errorf("connect: %w", err)
		}
		if network == "udp" {
			if _, err := unix.Write(fd, []byte("x")); err != nil {
				return err
			}
		}
		b := make([]byte, 200)
		n := 0
		err = ignoringEINTR(func() (err error) { n, err = unix.Read(fd, b); return err })
		answer = string(b[:max(n, 0)])
		return err
	}
	if from == nil {
		err = onThread(f)
		return answer, err
	}
	err = inside(from, f)
	return answer, err
}

// reaches asks, and again for a while: the first packets may wait for neighbour discovery on a loaded machine.
func reaches(t testing.TB, what string, from *os.File, network, to, want string) {
	t.Helper()
	var got string
	var err error
	for range 40 {
		if got, err = ask(from, network, to); err == nil && got == want {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("%s: %s %s: got %q, %v; want %q", what, network, to, got, err, want)
}

// refuses asks once and wants no answer.
func refuses(t testing.TB, what string, from *os.File, network, to string) {
	t.Helper()
	if got, err := ask(from, network, to); err == nil {
		t.Errorf("%s: %s %s: got %q; want no answer", what, network, to, got)
	}
}

// state is everything of the host that the network may change and must take back. Only what the programs print on
// their standard output counts: ip also remarks there that links came and went while it looked.
func state(t testing.TB) string {
	t.Helper()
	var b strings.Builder
	for _, c := range [][]string{{"nft", "list", "ruleset"}, {"ip", "-br", "address"}, {"ip", "route"}, {"ip", "-6", "route"}} {
		out, err := exec.Command(c[0], c[1:]...).Output()
		if err != nil {
			t.Fatalf("%v: %v", c, err)
		}
		b.WriteString(strings.Join(c, " ") + "\n" + string(out) + "\n")
	}
	return b.String()
}

// stateIs compares the host's state with an earlier one. It looks again for a while: a killed process's namespace ends
// when the kernel comes to it.
func stateIs(t testing.TB, what, want string) {
	t.Helper()
	var got string
	for range 1500 {
		if got = state(t); got == want {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("%s: got\n%s\nwant\n%s", what, got, want)
}
