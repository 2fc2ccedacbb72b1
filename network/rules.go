package network

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// rulesVersion is part of the table's comment. A table of another version is replaced, with the same elements, by the
// next Attach.
const rulesVersion = "2"

// The maps of published ports. A port is one element, so publishing changes no chain:
//
//	any4    protocol . port           -> container address . port    every local IPv4 address
//	bound4  address . protocol . port -> container address . port    one host address
//	any6, bound6                                                     the same for IPv6
//
// The sets of bridges:
//
//	bridges    all of ours
//	closed     those of internal networks
//	within     bridge . bridge: those whose containers reach each other through a bridge that shows us its frames
const (
	any4, bound4, any6, bound6 = "any4", "bound4", "any6", "bound6"
	bridgesSet, closedSet      = "bridges", "closed"
	withinSet                  = "within"
)

// tableName returns the name of the table of a bridge: "onggi" for the default one.
func tableName(bridge string) string {
	if bridge == defaultBridge {
		return "onggi"
	}
	return bridge
}

// ownTable reports whether the table is there and this store's, for whichever bridges it was laid out.
func (s *socket) ownTable(name string, c *config) (bool, error) {
	comment, err := s.tableComment(name)
	return err == nil && (comment == "?" || strings.Contains(comment, "store "+c.Owner)), err
}

// hasTable reports whether the table is there and ours, with these rules. One round trip; every Attach asks, so that a flushed ruleset
// (`nft flush ruleset`, a firewall's reload: CVE-2025-54388's class) does not stay open for longer than that.
func (s *socket) hasTable(name, comment string) (bool, error) {
	found, err := s.tableComment(name)
	return err == nil && (found == "?" || found == comment), err
}

// tableComment returns the comment of a table: "" when there is no such table or it has none, "?" on a kernel before
// 5.10, which keeps no comments; there the name has to do.
func (s *socket) tableComment(name string) (string, error) {
	w := s.start()
	w.message(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETTABLE, unix.NLM_F_ACK, nfHeader(unix.NFPROTO_INET, 0))
	w.str(unix.NFTA_TABLE_NAME, name)
	got, err := s.do(w)
	if errors.Is(err, unix.ENOENT) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	for _, a := range got {
		if len(a.body) < 4 {
			continue
		}
		data := attribute(a.body[4:], tableUserData)
		if data == nil {
			return "?", nil
		}
		if len(data) > 2 && data[0] == 0 { // commentData
			return cString(data[2:]), nil
		}
	}
	return "", nil
}

// deleteTable removes our table, and with it everything that we ever told nf_tables.
func (s *socket) deleteTable(name string) error {
	err := s.transaction(func(w *nft) {
		w.table = name
		w.deleteTable()
	})
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// layOut makes the table, replacing one that is there, and fills its maps, in one transaction. fresh: EEXIST when one is
// there.
// doc/network.md draws it; TestRulesAsDocumented compares nft's listing with that page.
func (s *socket) layOut(c *config, nets []*Network, elements []element, fresh bool) error {
	return s.transaction(func(w *nft) {
		w.table = c.table()
		if !fresh {
			w.newTable("", 0) // so that the removal does not fail when it is not there
			w.deleteTable()
			w.newTable(c.comment(nets), 0)
		} else {
			w.newTable(c.comment(nets), unix.NLM_F_EXCL)
		}

		addr4, addr6 := field{typeIPv4, 4}, field{typeIPv6, 16}
		proto, port := field{typeProto, 1}, field{typePort, 2}
		w.newMap(any4, []field{proto, port}, []field{addr4, port})
		w.newMap(bound4, []field{addr4, proto, port}, []field{addr4, port})
		w.newMap(any6, []field{proto, port}, []field{addr6, port})
		w.newMap(bound6, []field{addr6, proto, port}, []field{addr6, port})
		name := field{typeInterface, unix.IFNAMSIZ}
		w.newSet(bridgesSet, []field{name})
		w.newSet(closedSet, []field{name})
		w.newSet(withinSet, []field{name, name})
		var members []element
		for _, n := range nets {
			set, _ := n.settings() // validated when it was recorded
			key := interfaceKey(n.Interface)
			members = append(members, element{set: bridgesSet, key: key})
			if n.Internal {
				members = append(members, element{set: closedSet, key: key})
			}
			if set.icc {
				members = append(members, element{set: withinSet, key: append(append([]byte{}, key...), key...)})
			}
		}
		slices.SortStableFunc(members, func(a, b element) int { return strings.Compare(a.set, b.set) })
		w.elements(unix.NFT_MSG_NEWSETELEM, members)

		accept, drop, back := verdict(verdictAccept, ""), verdict(verdictDrop, ""), verdict(unix.NFT_RETURN, "")
		loopback := netip.PrefixFrom(netip.AddrFrom4([4]byte{127}), 8)
		iif, oif := meta(unix.NFT_META_IIFNAME, unix.NFT_REG_1), meta(unix.NFT_META_OIFNAME, unix.NFT_REG_1)

		// guard: route_localnet on our bridges, which loopback access to published ports needs, must not let a container
		// reach services that listen on 127.0.0.1 (CVE-2020-8558).
		w.baseChain("guard", "filter", unix.NF_INET_PRE_ROUTING, -300)
		w.rule("guard", iif, member(bridgesSet), family4, addressIn(daddr, loopback), counter, drop)

		// publish: the first rule that finds the packet in its map rewrites the destination and ends the chain.
		w.chain("publish")
		load := func(exprs []expr, set string, family, portReg uint32) {
			w.rule("publish", append(exprs, lookup(set), dnat(family, portReg))...)
		}
		l4proto := func(reg uint32) expr { return meta(unix.NFT_META_L4PROTO, reg) }
		dport := func(reg uint32) expr { return payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, reg) }
		local := expr(destinationType)
		isLocal := compare(unix.NFT_CMP_EQ, native.AppendUint32(nil, routeLocal))
		load([]expr{family4, payload(unix.NFT_PAYLOAD_NETWORK_HEADER, 16, 4, reg0), l4proto(reg0 + 1), dport(reg0 + 2)},
			bound4, unix.NFPROTO_IPV4, reg0+1)
		load([]expr{family4, local, isLocal, l4proto(reg0), dport(reg0 + 1)}, any4, unix.NFPROTO_IPV4, reg0+1)
		load([]expr{family6, payload(unix.NFT_PAYLOAD_NETWORK_HEADER, 24, 16, reg0), l4proto(reg0 + 4), dport(reg0 + 5)},
			bound6, unix.NFPROTO_IPV6, reg0+4)
		load([]expr{family6, local, isLocal, l4proto(reg0), dport(reg0 + 1)}, any6, unix.NFPROTO_IPV6, reg0+4)

		// A packet for 127.0.0.0/8 that comes from outside is a forgery that the kernel drops after this hook. Rewriting
		// it would turn "published on 127.0.0.1 only" into "published to the neighbours".
		w.baseChain("prerouting", "nat", unix.NF_INET_PRE_ROUTING, -100)
		w.rule("prerouting", family4, addressIn(daddr, loopback), back)
		w.rule("prerouting", verdict(unix.NFT_JUMP, "publish"))
		// The kernel has no route_localnet for IPv6. A packet for ::1 goes on, so that a client of "localhost" is refused
		// at once there and tries 127.0.0.1.
		w.baseChain("output", "nat", unix.NF_INET_LOCAL_OUT, -100)
		w.rule("output", family6, addressIn(daddr, netip.PrefixFrom(netip.IPv6Loopback(), 128)), back)
		w.rule("output", verdict(unix.NFT_JUMP, "publish"))

		// forward: others reach a container only where a port is published, and containers of one network those of
		// another as little. Nothing goes into or out of an internal network. Everything that is not for our bridges goes
		// on untouched.
		w.baseChain("forward", "filter", unix.NF_INET_FORWARD, 0)
		w.rule("forward", iif, notMember(bridgesSet), oif, notMember(bridgesSet), accept)
		w.rule("forward", conntrack(unix.NFT_CT_STATE), anyBit(ctEstablished|ctRelated), isSet, accept)
		w.rule("forward", iif, meta(unix.NFT_META_OIFNAME, unix.NFT_REG_2), member(withinSet), accept)
		w.rule("forward", iif, member(closedSet), counter, drop)
		w.rule("forward", oif, member(closedSet), counter, drop)
		w.rule("forward", conntrack(unix.NFT_CT_STATUS), anyBit(ctStatusDNAT), isSet, accept)
		w.rule("forward", oif, member(bridgesSet), counter, drop)

		// postrouting: out of a bridge's network under the host's address; and a container's (or loopback's) way to a
		// published port under the bridge's, so that the answer comes back through us.
		w.baseChain("postrouting", "nat", unix.NF_INET_POST_ROUTING, 100)
		for _, n := range nets {
			set, _ := n.settings()
			for _, sub := range n.Subnets {
				p := sub.Prefix.Masked()
				if set.masquerade && !n.Internal {
					w.rule("postrouting", family(p), addressIn(saddr, p),
						interfaceIsNot(unix.NFT_META_OIFNAME, n.Interface), expr(masquerade))
				}
				w.rule("postrouting", interfaceIs(unix.NFT_META_OIFNAME, n.Interface), family(p), addressIn(saddr, p),
					conntrack(unix.NFT_CT_STATUS), anyBit(ctStatusDNAT), isSet, expr(masquerade))
			}
		}
		w.rule("postrouting", oif, member(bridgesSet), family4, addressIn(saddr, loopback), expr(masquerade))

		w.elements(unix.NFT_MSG_NEWSETELEM, elements)
	})
}

var (
	family4 = familyIs(unix.NFPROTO_IPV4)
	family6 = familyIs(unix.NFPROTO_IPV6)
	isSet   = compare(unix.NFT_CMP_NEQ, []byte{0, 0, 0, 0})
)

func family(p netip.Prefix) expr {
	if p.Addr().Is4() {
		return family4
	}
	return family6
}

func familyIs(f byte) expr {
	return func(w *nft) {
		meta(unix.NFT_META_NFPROTO, unix.NFT_REG_1)(w)
		compare(unix.NFT_CMP_EQ, []byte{f})(w)
	}
}

func anyBit(bits uint32) expr { return mask(native.AppendUint32(nil, bits)) }

func interfaceIs(key uint32, name string) expr { return interfaceCompare(key, unix.NFT_CMP_EQ, name) }

func interfaceIsNot(key uint32, name string) expr {
	return interfaceCompare(key, unix.NFT_CMP_NEQ, name)
}

func interfaceCompare(key, op uint32, name string) expr {
	return func(w *nft) {
		meta(key, unix.NFT_REG_1)(w)
		compare(op, interfaceKey(name))(w)
	}
}

// interfaceKey is a name as the kernel keeps it in a register.
func interfaceKey(name string) []byte {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return padded
}

// saddr and daddr are the places of the addresses in the headers of IPv4 and IPv6.
var saddr, daddr = [2]uint32{12, 8}, [2]uint32{16, 24}

// addressIn compares an address of the packet with a prefix. The rule has compared the family before.
func addressIn(place [2]uint32, p netip.Prefix) expr {
	return func(w *nft) {
		b := p.Masked().Addr().AsSlice()
		offset := place[0]
		if len(b) == 16 {
			offset = place[1]
		}
		payload(unix.NFT_PAYLOAD_NETWORK_HEADER, offset, uint32(len(b)), unix.NFT_REG_1)(w)
		if p.Bits() < len(b)*8 {
			m := make([]byte, len(b))
			for i := range p.Bits() {
				m[i/8] |= 0x80 >> (i % 8)
			}
			mask(m)(w)
		}
		compare(unix.NFT_CMP_EQ, b)(w)
	}
}

// elementsOf returns the map elements of an endpoint's ports.
func elementsOf(e *endpoint) []element {
	var out []element
	add := func(set string, host, container netip.Addr, p Port) {
		var k, v []byte
		if host.IsValid() {
			k = append(k, host.AsSlice()...)
		}
		k = append(k, protocolNumber(p.Protocol), 0, 0, 0)
		k = append(binary.BigEndian.AppendUint16(k, p.HostPort), 0, 0)
		v = append(v, container.AsSlice()...)
		v = append(binary.BigEndian.AppendUint16(v, p.ContainerPort), 0, 0)
		out = append(out, element{set, k, v})
	}
	v4, v6 := e.IPv4.Addr(), e.IPv6.Addr()
	for _, p := range e.Ports {
		on4, on6 := p.families()
		if on4 {
			if p.HostIP.IsValid() && !p.HostIP.IsUnspecified() {
				add(bound4, p.HostIP, v4, p)
			} else {
				add(any4, netip.Addr{}, v4, p)
			}
		}
		if on6 && v6.IsValid() {
			if p.HostIP.IsValid() && !p.HostIP.IsUnspecified() {
				add(bound6, p.HostIP, v6, p)
			} else {
				add(any6, netip.Addr{}, v6, p)
			}
		}
	}
	return out
}

func protocolNumber(p string) byte {
	switch p {
	case "udp":
		return unix.IPPROTO_UDP
	case "sctp":
		return unix.IPPROTO_SCTP
	}
	return unix.IPPROTO_TCP
}

// addElements publishes.
func (s *socket) addElements(table string, list []element) error {
	if len(list) == 0 {
		return nil
	}
	return s.transaction(func(w *nft) {
		w.table = table
		w.elements(unix.NFT_MSG_NEWSETELEM, list)
	})
}

// removeElements takes elements out; those that are not there are no error.
func (s *socket) removeElements(table string, list []element) error {
	if len(list) == 0 {
		return nil
	}
	remove := func(list []element) error {
		return s.transaction(func(w *nft) {
			w.table = table
			w.elements(unix.NFT_MSG_DELSETELEM, list)
		})
	}
	err := remove(list)
	if !errors.Is(err, unix.ENOENT) {
		return err
	}
	// Some, or the whole table, are gone already: one by one, then. (NFT_MSG_DESTROYSETELEM needs Linux 6.3.)
	for i := range list {
		if err := remove(list[i : i+1]); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}

// dumpElements returns the keys in our maps, for Sweep.
func (s *socket) dumpElements(ctx context.Context, table string) ([]element, error) {
	var out []element
	for _, set := range []string{any4, bound4, any6, bound6} {
		err := s.dump(ctx, func(w *batch) {
			w.message(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETSETELEM, unix.NLM_F_DUMP,
				nfHeader(unix.NFPROTO_INET, 0))
			w.str(unix.NFTA_SET_ELEM_LIST_TABLE, table)
			w.str(unix.NFTA_SET_ELEM_LIST_SET, set)
		}, func(a answer) {
			if len(a.body) < 4 {
				return
			}
			attributes(attribute(a.body[4:], unix.NFTA_SET_ELEM_LIST_ELEMENTS), func(_ uint16, d []byte) {
				out = append(out, element{
					set:   set,
					key:   attribute(attribute(d, unix.NFTA_SET_ELEM_KEY), unix.NFTA_DATA_VALUE),
					value: attribute(attribute(d, unix.NFTA_SET_ELEM_DATA), unix.NFTA_DATA_VALUE),
				})
			})
		})
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// foreignForwardDrop returns the names of other tables' chains that drop forwarded packets by policy. An accept of
// ours does not overrule them.
func (s *socket) foreignForwardDrop(ctx context.Context, own string) ([]string, error) {
	var out []string
	err := s.dump(ctx, func(w *batch) {
		w.message(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP, nfHeader(unix.NFPROTO_UNSPEC, 0))
	}, func(a answer) {
		if len(a.body) < 4 {
			return
		}
		family := map[uint8]string{unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6", unix.NFPROTO_INET: "inet"}[a.body[0]]
		hook := attribute(attribute(a.body[4:], unix.NFTA_CHAIN_HOOK), unix.NFTA_HOOK_HOOKNUM)
		policy := attribute(a.body[4:], unix.NFTA_CHAIN_POLICY)
		table := cString(attribute(a.body[4:], unix.NFTA_CHAIN_TABLE))
		if family == "" || table == own || len(hook) != 4 || len(policy) != 4 ||
			binary.BigEndian.Uint32(hook) != unix.NF_INET_FORWARD || binary.BigEndian.Uint32(policy) != verdictDrop {
			return
		}
		out = append(out, family+" "+table+" "+cString(attribute(a.body[4:], unix.NFTA_CHAIN_NAME)))
	})
	return out, err
}
