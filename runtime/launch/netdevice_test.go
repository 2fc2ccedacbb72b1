package launch

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/onggi/onggi/errdefs"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
)

// TestNetDevices runs itself again in a network namespace of its own, which stands for the host's.
func TestNetDevices(t *testing.T) {
	for _, p := range []string{"ip", "unshare"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("%s is not installed", p)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("containers need root")
	}
	if os.Getenv("ONGGI_TEST_NETDEVICES") == "" {
		cmd := exec.Command("unshare", "--net", "/proc/self/exe", "-test.run=^TestNetDevices$", "-test.v")
		cmd.Env = append(os.Environ(), "ONGGI_TEST_NETDEVICES=1")
		cmd.Args[2] = os.Args[0]
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestNetDevices") {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	h := newHost(t)
	ip := func(args string) string {
		t.Helper()
		out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput()
		if err != nil {
			t.Fatalf("ip %s: %v %s", args, err, out)
		}
		return string(out)
	}
	setUp := func() {
		for _, c := range []string{
			"link add hosta type veth peer name hostb", "addr add 10.9.8.7/24 dev hosta", "addr add 10.9.8.8/24 dev hosta", "link set hosta mtu 1400",
			"addr add fd00:9::7/64 dev hosta nodad", "addr add 10.9.9.9/24 dev hostb valid_lft 500 preferred_lft 500", "link set hostb up",
		} {
			ip(c)
		}
	}
	inside := func(c *Container, args string) string {
		t.Helper()
		out, err := exec.Command("nsenter", append([]string{"--net=/proc/" + strconv.Itoa(c.Pid()) + "/ns/net", "ip"}, strings.Fields(args)...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("inside, ip %s: %v %s", args, err, out)
		}
		return string(out)
	}
	setUp()
	s := h.spec("sleep 100")
	s.Linux.NetDevices = map[string]runspec.LinuxNetDevice{"hosta": {Name: "inside0"}, "hostb": {Name: "eth%d"}}
	s.Linux.Sysctl = map[string]string{"net.ipv4.conf.inside0.arp_ignore": "1"} // the device is there when sysctls are set
	o := h.options(s)
	k, err := h.tryBackground(o)
	if err != nil {
		t.Fatal(err)
	}
	if out := ip("-o link"); strings.Contains(out, "host") {
		t.Errorf("a device is still on the host:\n%s", out)
	}
	addr := inside(k, "-o addr")
	for _, want := range []string{"inside0    inet 10.9.8.7/24", "inside0    inet 10.9.8.8/24", "inside0    inet6 fd00:9::7/64"} {
		if !strings.Contains(addr, want) {
			t.Errorf("%q is missing in\n%s", want, addr)
		}
	}
	if strings.Contains(addr, "10.9.9.9") {
		t.Errorf("an address that is not permanent was taken along:\n%s", addr)
	}
	if out := inside(k, "-o link"); !strings.Contains(out, "mtu 1400") || strings.Count(out, ",UP,") < 2 || !strings.Contains(out, "eth0@") {
		t.Errorf("devices inside:\n%s", out)
	}
	// A name that is taken, in a namespace that is joined: everything stays as it was.
	path := "/proc/" + strconv.Itoa(k.Pid()) + "/ns/net"
	setUp()
	before := ip("-o addr show hosta")
	for _, c := range []struct {
		want   string
		change func(*runspec.Spec)
	}{
		{"has a device of that name", func(s *runspec.Spec) {
			s.Linux.Namespaces[1].Path = path
			s.Linux.NetDevices = map[string]runspec.LinuxNetDevice{"hosta": {Name: "free0"}, "hostb": {Name: "inside0"}}
		}},
		{"no such device", func(s *runspec.Spec) {
			s.Linux.NetDevices = map[string]runspec.LinuxNetDevice{"hosta": {Name: "free0"}, "nowhere": {}}
		}},
		{"exited with code 3", func(s *runspec.Spec) {
			s.Linux.NetDevices = map[string]runspec.LinuxNetDevice{"hosta": {Name: "free0"}}
			s.Hooks = &runspec.Hooks{CreateRuntime: []runspec.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "exit 3"}}}}
		}},
		{"namespace is this process's own", func(s *runspec.Spec) {
			s.Linux.Namespaces[1].Path = "/proc/self/ns/net"
			s.Linux.NetDevices = map[string]runspec.LinuxNetDevice{"hosta": {}}
		}},
	} {
		s := h.spec("true")
		c.change(s)
		if _, _, err := h.run(h.options(s)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v (%v), want %s", err, errdefs.KindOf(err), c.want)
		}
		after := ip("-o addr show hosta")
		if strip(after) != strip(before) {
			t.Errorf("%s: the device on the host was\n%sand is\n%s", c.want, before, after)
		}
	}
}

// strip takes the number of a device away, which may change.
func strip(s string) (out string) {
	for line := range strings.Lines(s) {
		_, rest, _ := strings.Cut(line, ": ")
		if strings.Contains(rest, "scope global") {
			out += strings.Join(strings.Fields(rest), " ") + "\n"
		}
	}
	return out
}
