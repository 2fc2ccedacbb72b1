package network

import (
	"encoding/json"
	"net/netip"
	"os"
	"strings"
	"testing"
)

// TestRulesAsDocumented: doc/network.md shows the table as it is.
func TestRulesAsDocumented(t *testing.T) {
	needHost(t)
	if v := run(t, "nft", "--version"); !strings.HasPrefix(v, "nftables v1.0.") {
		t.Skipf("the page shows how nft 1.0 prints; this is %s", v)
	}
	page, err := os.ReadFile("../doc/network.md")
	if os.IsNotExist(err) {
		t.Skip("needs doc/ beside the package: the test runs outside of the source tree")
	}
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), "```nft\n")
	want, _, ok := strings.Cut(rest, "```\n")
	if !ok {
		t.Fatal("doc/network.md has no table")
	}
	m := newManager(t)
	c := &config{
		Version: configVersion, Owner: "0123456789abcdef", Bridge: "onggi0",
		Subnet: netip.MustParsePrefix("172.29.0.0/16"), ULA: netip.MustParsePrefix("fd12:3456:789a::/64"),
	}
	if err := m.saveConfig(c); err != nil {
		t.Fatal(err)
	}
	attach(t, m, "web", "8080:80", "127.0.0.1:5300:53/udp")
	if got := run(t, "nft", "list", "table", "inet", "onggi"); got != want {
		t.Errorf("nft list table inet onggi:\n%s\ndoc/network.md:\n%s", got, want)
	}
}

func TestConfigIsStrict(t *testing.T) {
	good := config{
		Version: configVersion, Owner: "0123456789abcdef", Bridge: "onggi0",
		Subnet: netip.MustParsePrefix("172.29.0.0/16"), ULA: netip.MustParsePrefix("fd12:3456:789a::/64"),
	}
	if err := good.validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*config){
		"version": func(c *config) { c.Version = 2 },
		"owner":   func(c *config) { c.Owner = "../../../etc/xyz" },
		"bridge":  func(c *config) { c.Bridge = "a/../b" },
		"long":    func(c *config) { c.Bridge = "sixteen-letters-" },
		"subnet":  func(c *config) { c.Subnet = netip.MustParsePrefix("172.29.0.0/30") },
		"six":     func(c *config) { c.Subnet = netip.MustParsePrefix("fd00::/16") },
		"ula":     func(c *config) { c.ULA = netip.Prefix{} },
	} {
		c := good
		change(&c)
		b, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		if err := os.WriteFile(dir+"/"+configFile, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(Options{StateDir: dir, RunDir: dir}); err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: got %v; want an error that names the file", name, err)
		}
	}
}
