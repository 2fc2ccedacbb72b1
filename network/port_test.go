package network

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/onggi/onggi/errdefs"
)

func TestParsePort(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"80", "80/tcp"},
		{"8080:80", "8080:80/tcp"},
		{"8080:80/udp", "8080:80/udp"},
		{"8080:80/SCTP", "8080:80/sctp"},
		{":80", "80/tcp"},
		{"0:80", "80/tcp"},
		{"::80", "80/tcp"},
		{"127.0.0.1:8080:80", "127.0.0.1:8080:80/tcp"},
		{"127.0.0.1::80", "127.0.0.1::80/tcp"},
		{"127.0.0.1:0:80", "127.0.0.1::80/tcp"},
		{"0.0.0.0:8080:80", "0.0.0.0:8080:80/tcp"},
		{"[::1]:8080:80", "[::1]:8080:80/tcp"},
		{"[::]:8080:80/udp", "[::]:8080:80/udp"},
		{"[fd00::2]::80", "[fd00::2]::80/tcp"},
		{"[::ffff:10.0.0.1]:1:2", "10.0.0.1:1:2/tcp"},
		{"7000-7002:80-82", "7000:80/tcp 7001:81/tcp 7002:82/tcp"},
		{"80-82", "80/tcp 81/tcp 82/tcp"},
		{"127.0.0.1:7000-7001:80-81/udp", "127.0.0.1:7000:80/udp 127.0.0.1:7001:81/udp"},
		{"7000-7009:80", "7000-7009:80/tcp"},
		{"65535:65535", "65535:65535/tcp"},
		{"7000-7000:80", "7000:80/tcp"},
	} {
		ports, err := ParsePort(c.in)
		var got []string
		for _, p := range ports {
			got = append(got, p.String())
		}
		if err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("ParsePort(%q): got %v, %v; want %s", c.in, got, err, c.want)
		}
	}
	for _, in := range []string{
		"", "/", "/tcp", "80/", "80/icmp", "80/tcp/udp", "0", "0-1", "65536", "-1", "80-", "-80", "82-80", "8080:", "a:80", "80:a", " 80",
		"+80", "0x50", "8080:80:", "1:2:3:4", "::1:8080:80", "[::1]", "[::1]:80", "[::1:8080:80", "[127.0.0.1]:1:2", "[fe80::1%eth0]:1:2",
		"localhost:1:2", "256.0.0.1:1:2", "1-2:3-5", "1-3:4-5", "0-1:80", "0-1:80-81", "8080:80\n", "99999999999999999999",
	} {
		ports, err := ParsePort(in)
		if !errdefs.Is(err, errdefs.InvalidArgument) || errdefs.FixOf(err) == "" || ports != nil {
			t.Errorf("ParsePort(%q): got %v, %v; want invalid-argument with a fix", in, ports, err)
		}
	}
}

// FuzzParsePort: what is accepted is well-formed, bounded, and is read back as the same from what String writes.
func FuzzParsePort(f *testing.F) {
	for _, s := range []string{"80", "127.0.0.1:8080:80/udp", "[::1]::80", "7000-7009:80", "1-3:4-6/sctp", "::1:8080:80", "0:0", "[", "]:"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ports, err := ParsePort(s)
		if err != nil {
			if ports != nil || !errdefs.Is(err, errdefs.InvalidArgument) {
				t.Errorf("ParsePort(%q): got %v, %v", s, ports, err)
			}
			return
		}
		if len(ports) == 0 || len(ports) > 65535 {
			t.Fatalf("ParsePort(%q): %d ports", s, len(ports))
		}
		for _, p := range ports {
			if p.ContainerPort == 0 || p.HostPortEnd != 0 && (p.HostPortEnd <= p.HostPort || len(ports) > 1) || p.HostIP.Zone() != "" ||
				p.HostIP.Is4In6() || p.Protocol != "tcp" && p.Protocol != "udp" && p.Protocol != "sctp" {
				t.Errorf("ParsePort(%q): got %+v", s, p)
			}
			again, err := ParsePort(p.String())
			if err != nil || len(again) != 1 || again[0] != p {
				t.Errorf("ParsePort(%q): %s is read back as %v, %v", s, p, again, err)
			}
		}
	})
}

func TestOverlaps(t *testing.T) {
	ip := func(s string) (a netip.Addr) {
		if s != "" {
			a = netip.MustParseAddr(s)
		}
		return a
	}
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"", "", true},
		{"", "127.0.0.1", true},
		{"", "::1", true},
		{"", "0.0.0.0", true},
		{"", "::", true},
		{"0.0.0.0", "127.0.0.1", true},
		{"0.0.0.0", "::1", false},
		{"::", "::1", true},
		{"::", "0.0.0.0", false},
		{"127.0.0.1", "127.0.0.1", true},
		{"127.0.0.1", "127.0.0.2", false},
		{"::1", "127.0.0.1", false},
	} {
		if got := overlaps(ip(c.a), ip(c.b)); got != c.want || overlaps(ip(c.b), ip(c.a)) != c.want {
			t.Errorf("overlaps(%q, %q): got %v, want %v", c.a, c.b, got, c.want)
		}
	}
}
