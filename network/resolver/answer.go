package resolver

import (
	"encoding/hex"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	// ttl is how long an answer may be kept, seconds: containers come and go.
	ttl        = 2
	maxMessage = 65535
	// plainUDP is what a client without EDNS takes (RFC 1035 §4.2.1), ourUDP what we say we take (the DNS flag day's).
	plainUDP, ourUDP = 512, 1232
)

// question is a query, as far as we look at it.
type question struct {
	id     uint16
	flags  dnsmessage.Header
	q      dnsmessage.Question
	name   string // lower case, without the last dot
	edns   bool
	limit  int // largest answer by UDP
	raw    []byte
	broken dnsmessage.RCode // what is wrong with it, or success
}

// parse reads a query. ok is false when it is not one that could be answered at all.
func parse(b []byte) (q question, ok bool) {
	var p dnsmessage.Parser
	h, err := p.Start(b)
	if err != nil || h.Response {
		return q, false
	}
	q.id, q.flags, q.raw, q.limit = h.ID, h, b, plainUDP
	if h.OpCode != 0 {
		q.broken = dnsmessage.RCodeNotImplemented
		return q, true
	}
	if q.q, err = p.Question(); err != nil {
		q.broken = dnsmessage.RCodeFormatError
		return q, true
	}
	if _, err := p.Question(); err != dnsmessage.ErrSectionDone { // nobody asks two things at once (RFC 9619)
		q.broken = dnsmessage.RCodeFormatError
		return q, true
	}
	q.name = strings.ToLower(strings.TrimSuffix(q.q.Name.String(), "."))
	if p.SkipAllAnswers() == nil && p.SkipAllAuthorities() == nil {
		for {
			r, err := p.AdditionalHeader()
			if err != nil {
				break
			}
			if r.Type == dnsmessage.TypeOPT {
				q.edns = true
				q.limit = max(int(r.Class), plainUDP)
			}
			if p.SkipAdditional() != nil {
				break
			}
		}
	}
	return q, true
}

// reply builds an answer of our own.
func (q *question) reply(code dnsmessage.RCode, ours bool, body func(b *dnsmessage.Builder) error) []byte {
	b := dnsmessage.NewBuilder(make([]byte, 0, 512), dnsmessage.Header{
		ID: q.id, Response: true, OpCode: q.flags.OpCode, Authoritative: ours, RecursionDesired: q.flags.RecursionDesired, RecursionAvailable: true, RCode: code,
	})
	b.EnableCompression()
	if q.broken == 0 {
		if b.StartQuestions() != nil || b.Question(q.q) != nil {
			return nil
		}
	}
	if body != nil {
		if b.StartAnswers() != nil || body(&b) != nil {
			return nil
		}
	}
	if q.edns {
		var h dnsmessage.ResourceHeader
		if b.StartAdditionals() != nil || h.SetEDNS0(ourUDP, 0, false) != nil || b.OPTResource(h, dnsmessage.OPTResource{}) != nil {
			return nil
		}
	}
	out, err := b.Finish()
	if err != nil {
		return nil
	}
	return out
}

// truncated is the answer that tells a client to ask again by TCP.
func (q *question) truncated() []byte {
	out := q.reply(dnsmessage.RCodeSuccess, false, nil)
	if len(out) > 2 {
		out[2] |= 0x02 // TC
	}
	return out
}

// validName reports whether a name can be a directory of ours: what is asked comes from a container.
func validName(s string) bool {
	if s == "" || len(s) > 253 || s[0] == '.' || s[0] == '-' || strings.Contains(s, "..") {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '_' || c == '-' || c == '.') {
			return false
		}
	}
	return true
}

// lookup returns the addresses of a name on the sandbox's networks. found is also true for a name that has none of a
// family: others are not asked then.
func (c *Config) lookup(dir, name string) (addrs []netip.Addr, found bool) {
	if to, ok := c.Aliases[name]; ok {
		name = strings.ToLower(to)
	}
	if !validName(name) {
		return nil, false
	}
	for _, n := range c.Networks {
		list := readNames(filepath.Join(dir, NamesDir, n.ID, name))
		if len(list) == 0 {
			// "web.shop" is web on the network shop.
			if short, ok := strings.CutSuffix(name, "."+strings.ToLower(n.Name)); ok {
				list = readNames(filepath.Join(dir, NamesDir, n.ID, short))
			}
		}
		for _, s := range list {
			if a, err := netip.ParseAddr(s); err == nil {
				addrs, found = append(addrs, a), true
			}
		}
		if found {
			break // the first network that knows it
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return addrs, found
}

// readNames lists a directory of addresses; at most 1024 of them fit into an answer anyway.
func readNames(path string) []string {
	d, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer d.Close()
	names, _ := d.Readdirnames(1024)
	return names
}

// reverse returns the name of an address. mine: it is in one of the sandbox's networks, so that nobody else is asked.
func (c *Config) reverse(dir string, a netip.Addr) (name string, mine bool) {
	for _, n := range c.Networks {
		for _, p := range n.Prefixes {
			if !p.Contains(a) {
				continue
			}
			b, err := readFile(filepath.Join(dir, LeasesDir, a.String()), 4<<20)
			var l lease
			if err != nil || json.Unmarshal(b, &l) != nil || l.Network != n.ID {
				return "", true
			}
			if l.Name == "" && len(l.Names) > 0 {
				l.Name = l.Names[0]
			}
			if l.Name == "" {
				return "", true
			}
			return l.Name + "." + n.Name, true
		}
	}
	return "", false
}

// reverseAddress reads the name of a reverse lookup: 4.3.2.1.in-addr.arpa (RFC 1035 §3.5), or nibbles below ip6.arpa
// (RFC 3596 §2.5).
func reverseAddress(name string) (netip.Addr, bool) {
	if s, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		parts := strings.Split(s, ".")
		if len(parts) != 4 {
			return netip.Addr{}, false
		}
		slices.Reverse(parts)
		a, err := netip.ParseAddr(strings.Join(parts, "."))
		return a, err == nil
	}
	s, ok := strings.CutSuffix(name, ".ip6.arpa")
	parts := strings.Split(s, ".")
	if !ok || len(parts) != 32 {
		return netip.Addr{}, false
	}
	slices.Reverse(parts)
	b, err := hex.DecodeString(strings.Join(parts, ""))
	if err != nil || len(b) != 16 {
		return netip.Addr{}, false
	}
	return netip.AddrFrom16([16]byte(b)), true
}

// local answers what is ours to answer; nil: others are to be asked. turn rotates the addresses of a name that several
// containers have.
func (c *Config) local(dir string, q *question, turn int) []byte {
	if q.broken != 0 {
		return q.reply(q.broken, false, nil)
	}
	if q.q.Class != dnsmessage.ClassINET && q.q.Class != dnsmessage.ClassANY {
		return nil
	}
	header := dnsmessage.ResourceHeader{Name: q.q.Name, Class: dnsmessage.ClassINET, TTL: ttl}
	if q.q.Type == dnsmessage.TypePTR {
		a, ok := reverseAddress(q.name)
		if !ok {
			return nil
		}
		name, mine := c.reverse(dir, a)
		if !mine {
			return nil
		}
		target, err := dnsmessage.NewName(name + ".")
		if name == "" || err != nil {
			return q.reply(dnsmessage.RCodeNameError, true, nil)
		}
		return q.reply(dnsmessage.RCodeSuccess, true, func(b *dnsmessage.Builder) error {
			return b.PTRResource(header, dnsmessage.PTRResource{PTR: target})
		})
	}
	addrs, found := c.lookup(dir, q.name)
	if !found {
		return nil
	}
	return q.reply(dnsmessage.RCodeSuccess, true, func(b *dnsmessage.Builder) error {
		for i := range addrs {
			a := addrs[(i+turn)%len(addrs)]
			var err error
			switch {
			case a.Is4() && (q.q.Type == dnsmessage.TypeA || q.q.Type == dnsmessage.TypeALL):
				err = b.AResource(header, dnsmessage.AResource{A: a.As4()})
			case a.Is6() && (q.q.Type == dnsmessage.TypeAAAA || q.q.Type == dnsmessage.TypeALL):
				err = b.AAAAResource(header, dnsmessage.AAAAResource{AAAA: a.As16()})
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// nameservers reads the name servers of resolv.conf(5), at most eight. Ours is never one of them.
func nameservers(text []byte) []netip.AddrPort {
	var out []netip.AddrPort
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" || len(out) == 8 {
			continue
		}
		if a, ok := server(f[1]); ok {
			out = append(out, a)
		}
	}
	return out
}

// server reads ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT.
func server(s string) (netip.AddrPort, bool) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a, 53), a.String() != Address
	}
	if p, err := netip.ParseAddrPort(s); err == nil {
		return p, p.Addr().String() != Address
	}
	return netip.AddrPort{}, false
}

func readFile(path string, limit int) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var b []byte
	for buf := make([]byte, 4096); ; {
		n, err := f.Read(buf)
		b = append(b, buf[:n]...)
		if len(b) > limit {
			return nil, os.ErrInvalid
		}
		if n == 0 || err != nil {
			return b, nil
		}
	}
}
