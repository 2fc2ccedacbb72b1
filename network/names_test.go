package network

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/onggi/onggi/errdefs"
)

var (
	v4Only = &Attachment{IPv4: netip.MustParsePrefix("172.29.0.2/16"), Gateway: netip.MustParseAddr("172.29.0.1")}
	both   = &Attachment{IPv4: v4Only.IPv4, Gateway: v4Only.Gateway, IPv6: netip.MustParsePrefix("fd00::2/64"), Gateway6: netip.MustParseAddr("fd00::1")}
)

func files(t *testing.T, resolv, resolved, hosts string) hostFiles {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string) string {
		p := filepath.Join(dir, name)
		if text != "" {
			if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return p
	}
	return hostFiles{write("resolv.conf", resolv), write("resolved.conf", resolved), write("hosts", hosts)}
}

func TestResolvConf(t *testing.T) {
	const plain = "# by hand\nnameserver 192.0.2.53\nnameserver 127.0.0.1\nnameserver 2001:db8::53\nnameserver fe80::1%eth0\n" +
		"domain old\nsearch example.org example.net\noptions ndots:2\noptions edns0 trust-ad\nsortlist 10/8\n"
	for _, c := range []struct {
		name             string
		resolv, resolved string
		n                Names
		want             string
	}{
		{
			"bridge", plain, "",
			Names{Attachment: v4Only},
			"nameserver 192.0.2.53\nsearch example.org example.net\noptions ndots:2 edns0 trust-ad\n",
		},
		{
			"bridge with IPv6", plain, "",
			Names{Attachment: both},
			"nameserver 192.0.2.53\nnameserver 2001:db8::53\nsearch example.org example.net\noptions ndots:2 edns0 trust-ad\n",
		},
		{"none is a copy", plain, "", Names{}, plain},
		{"host is a copy", plain, "", Names{Host: true}, plain},
		{
			"host with options", plain, "",
			Names{Host: true, DNS: []string{"127.0.0.1"}, DNSOptions: []string{"ndots:1"}},
			"nameserver 127.0.0.1\nsearch example.org example.net\noptions ndots:1\n",
		},
		{
			"systemd-resolved", "nameserver 127.0.0.53\noptions edns0\nsearch lan\n", "nameserver 192.0.2.1\nsearch other\n",
			Names{Attachment: v4Only},
			"nameserver 192.0.2.1\nsearch lan\noptions edns0\n",
		},
		{"systemd-resolved for the host", "nameserver 127.0.0.53\n", "nameserver 192.0.2.1\n", Names{Host: true}, "nameserver 127.0.0.53\n"},
		{"systemd-resolved without its file", "nameserver 127.0.0.53\n", "", Names{Attachment: v4Only}, "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"},
		{
			"only loopback", "nameserver 127.0.0.1\nnameserver ::1\n", "nameserver 192.0.2.1\n",
			Names{Attachment: both},
			"nameserver 8.8.8.8\nnameserver 8.8.4.4\n",
		},
		{"no file", "", "", Names{Attachment: v4Only}, "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"},
		{"no file, none", "", "", Names{}, ""},
		{
			"own servers", plain, "",
			Names{Attachment: v4Only, DNS: []string{"192.0.2.7", "::1"}, DNSSearch: []string{"a", "b"}},
			"nameserver 192.0.2.7\nnameserver ::1\nsearch a b\noptions ndots:2 edns0 trust-ad\n",
		},
		{
			"no search", plain, "",
			Names{Attachment: v4Only, DNSSearch: []string{"."}},
			"nameserver 192.0.2.53\noptions ndots:2 edns0 trust-ad\n",
		},
		{"garbage", "nameserver\nnameserver not-an-ip\n\x00\nnameserver 192.0.2.9", "", Names{Attachment: v4Only}, "nameserver 192.0.2.9\n"},
	} {
		got, err := c.n.resolvConf(files(t, c.resolv, c.resolved, ""))
		if err != nil || string(got) != c.want {
			t.Errorf("%s: got %q, %v; want %q", c.name, got, err, c.want)
		}
	}
	for _, n := range []Names{
		{DNS: []string{"example.org"}},
		{DNS: []string{"192.0.2.1\nnameserver 192.0.2.2"}},
		{DNS: []string{""}},
		{DNSSearch: []string{"a\nnameserver 192.0.2.2"}},
		{DNSSearch: []string{"a b"}},
		{DNSOptions: []string{"x\ny"}},
		{DNSSearch: []string{""}},
	} {
		if got, err := n.resolvConf(files(t, plain, "", "")); !errdefs.Is(err, errdefs.InvalidArgument) || errdefs.FixOf(err) == "" {
			t.Errorf("%+v: got %q, %v; want invalid-argument with a fix", n, got, err)
		}
	}
	f := files(t, strings.Repeat("#", maxHostFile+1), "", "")
	if _, err := (Names{}).resolvConf(f); err == nil {
		t.Error("a file above the bound: got no error")
	}
}

func TestHosts(t *testing.T) {
	const head = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\n" +
		"ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
	const hosts = "127.0.0.1 localhost\n192.0.2.9 box"
	for _, c := range []struct {
		name string
		n    Names
		want string
	}{
		{"bridge", Names{Hostname: "c1", Attachment: v4Only}, head + "172.29.0.2\tc1\n"},
		{
			"both families, qualified",
			Names{Hostname: "c1.example.org", Attachment: both},
			head + "172.29.0.2\tc1.example.org c1\nfd00::2\tc1.example.org c1\n",
		},
		{"none", Names{Hostname: "c1"}, head},
		{"host", Names{Hostname: "box", Host: true, ExtraHosts: []string{"gw:host-gateway"}}, hosts + "\n127.0.0.1\tgw\n"},
		{
			"extra",
			Names{Hostname: "c1", Attachment: v4Only, ExtraHosts: []string{"db:192.0.2.7", "six:2001:db8::7", "b=[2001:db8::8]", "gw:host-gateway"}},
			head + "192.0.2.7\tdb\n2001:db8::7\tsix\n2001:db8::8\tb\n172.29.0.1\tgw\n172.29.0.2\tc1\n",
		},
	} {
		got, err := c.n.hosts(files(t, "", "", hosts))
		if err != nil || string(got) != c.want {
			t.Errorf("%s: got %q, %v; want %q", c.name, got, err, c.want)
		}
	}
	for _, h := range []string{
		"", "db", ":1.2.3.4", "db:", "db:nowhere", "db:1.2.3.4\n6.6.6.6\tbank", "a b:1.2.3.4", "a\nb:1.2.3.4",
		"gw:host-gateway", "db:fe80::1%eth0", "#x:1.2.3.4",
	} {
		if got, err := (Names{ExtraHosts: []string{h}}).hosts(files(t, "", "", hosts)); !errdefs.Is(err, errdefs.InvalidArgument) || errdefs.FixOf(err) == "" {
			t.Errorf("--add-host %q: got %q, %v; want invalid-argument with a fix", h, got, err)
		}
	}
	if _, err := (Names{Hostname: "a\n6.6.6.6 bank", Attachment: v4Only}).Hosts(); !errdefs.Is(err, errdefs.InvalidArgument) {
		t.Errorf("a hostname of two lines: got %v, want invalid-argument", err)
	}
}
