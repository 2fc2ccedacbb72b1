package network

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// This file says in rtnetlink what a sandbox needs of links, addresses and routes. Sources: rtnetlink(7), linux/
// if_link.h, linux/if_addr.h, veth(4).

// Constants of linux/if_link.h and linux/veth.h that x/sys/unix does not have.
const (
	vethInfoPeer        = 1      // VETH_INFO_PEER
	bridgeForwardDelay  = 1      // IFLA_BR_FORWARD_DELAY
	bridgeSTPState      = 5      // IFLA_BR_STP_STATE
	bridgePortHairpin   = 4      // IFLA_BRPORT_MODE
	bridgePortIsolated  = 33     // IFLA_BRPORT_ISOLATED
	addressNoDAD        = 0x02   // IFA_F_NODAD
	extMaskSkipStats    = 1 << 3 // RTEXT_FILTER_SKIP_STATS
	routeTypeUnicast    = 1      // RTN_UNICAST
	infinite            = ^uint32(0)
	defaultMTU          = 1500
	inside0             = "eth0" // the interface's name inside every sandbox, as docker's users know it
	hostEndPrefix       = "vonggi"
	hostEndHashDigits   = 9 // prefix and digits fill IFNAMSIZ-1 = 15
	bridgeMACFirstOctet = 0x02
)

// hostEnd returns the name of the host's end of a sandbox's veth pair. It follows from the sandbox's id alone, so that
// Detach finds it without a record.
func hostEnd(id string) string {
	sum := sha256.Sum256([]byte(id))
	return hostEndPrefix + hex.EncodeToString(sum[:])[:hostEndHashDigits]
}

func isHostEnd(name string) bool {
	return len(name) == len(hostEndPrefix)+hostEndHashDigits && name[:len(hostEndPrefix)] == hostEndPrefix
}

// link is what we read of an interface.
type link struct {
	index  uint32
	name   string
	flags  uint32
	mtu    uint32
	mac    [6]byte
	alias  string
	kind   string // "bridge", "veth", "" for hardware
	master uint32 // index of the bridge it is a port of, or 0
	group  uint32
}

// linkHeader is struct ifinfomsg.
func linkHeader(family uint8, index, flags, change uint32) []byte {
	b := make([]byte, 0, unix.SizeofIfInfomsg)
	b = append(b, family, 0)
	b = native.AppendUint16(b, 0) // device type
	b = native.AppendUint32(b, index)
	b = native.AppendUint32(b, flags)
	return native.AppendUint32(b, change)
}

func parseLink(b []byte) (l link, ok bool) {
	if len(b) < unix.SizeofIfInfomsg {
		return l, false
	}
	l.index, l.flags = native.Uint32(b[4:]), native.Uint32(b[8:])
	attributes(b[unix.SizeofIfInfomsg:], func(typ uint16, d []byte) {
		switch typ {
		case unix.IFLA_IFNAME:
			l.name = cString(d)
		case unix.IFLA_ADDRESS:
			copy(l.mac[:], d)
		case unix.IFLA_IFALIAS:
			l.alias = cString(d)
		case unix.IFLA_LINKINFO:
			l.kind = cString(attribute(d, unix.IFLA_INFO_KIND))
		case unix.IFLA_MTU:
			l.mtu = number(d)
		case unix.IFLA_MASTER:
			l.master = number(d)
		case unix.IFLA_GROUP:
			l.group = number(d)
		}
	})
	return l, true
}

func number(d []byte) uint32 {
	if len(d) != 4 {
		return 0
	}
	return native.Uint32(d)
}

// link returns an interface by name, or nil when there is none.
func (s *socket) link(name string) (*link, error) {
	w := s.start()
	w.message(unix.RTM_GETLINK, unix.NLM_F_ACK, linkHeader(unix.AF_UNSPEC, 0, 0, 0))
	w.str(unix.IFLA_IFNAME, name)
	w.u32(unix.IFLA_EXT_MASK, extMaskSkipStats)
	return s.oneLink(w)
}

// linkByIndex is link for an index.
func (s *socket) linkByIndex(index uint32) (*link, error) {
	w := s.start()
	w.message(unix.RTM_GETLINK, unix.NLM_F_ACK, linkHeader(unix.AF_UNSPEC, index, 0, 0))
	w.u32(unix.IFLA_EXT_MASK, extMaskSkipStats)
	return s.oneLink(w)
}

func (s *socket) oneLink(w *batch) (*link, error) {
	got, err := s.do(w)
	if errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, a := range got {
		if l, ok := parseLink(a.body); ok && a.typ == unix.RTM_NEWLINK {
			return &l, nil
		}
	}
	return nil, errors.New("the kernel answered a request for an interface with nothing")
}

// hostEnds returns the veth ends of a store: those of its group, and those on its bridge (index; 0: there is none).
func (s *socket) hostEnds(ctx context.Context, group, bridge uint32) ([]link, error) {
	var out []link
	err := s.dump(ctx, func(w *batch) {
		w.message(unix.RTM_GETLINK, unix.NLM_F_DUMP, linkHeader(unix.AF_UNSPEC, 0, 0, 0))
		w.u32(unix.IFLA_EXT_MASK, extMaskSkipStats)
	}, func(a answer) {
		if l, ok := parseLink(a.body); ok && isHostEnd(l.name) && (l.group == group || bridge != 0 && l.master == bridge) {
			out = append(out, l)
		}
	})
	return out, err
}

// makeBridge creates a bridge that is down. Its address is set at birth, so that it does not change with its ports.
func (w *batch) makeBridge(name string, mac [6]byte, mtu uint32) {
	w.message(unix.RTM_NEWLINK, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, linkHeader(unix.AF_UNSPEC, 0, 0, 0))
	w.str(unix.IFLA_IFNAME, name)
	w.attr(unix.IFLA_ADDRESS, mac[:])
	w.u32(unix.IFLA_MTU, mtu)
	w.plain(unix.IFLA_LINKINFO, func() {
		w.str(unix.IFLA_INFO_KIND, "bridge")
		w.plain(unix.IFLA_INFO_DATA, func() {
			w.u32(bridgeForwardDelay, 0)
			w.u32(bridgeSTPState, 0)
		})
	})
}

// pair is a veth pair to make: one end on the bridge, up, the other in the sandbox.
type pair struct {
	hostEnd string
	netns   *os.File
	mac     [6]byte
	bridge  link
	group   uint32
	hairpin bool // the sandbox may reach itself through its published ports
	// isolated: it reaches no other sandbox through the bridge.
	isolated bool
	inside   string // name of the sandbox's end
}

func (w *batch) makePair(p pair) {
	w.message(unix.RTM_NEWLINK, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL,
		linkHeader(unix.AF_UNSPEC, 0, unix.IFF_UP, unix.IFF_UP))
	w.str(unix.IFLA_IFNAME, p.hostEnd)
	w.u32(unix.IFLA_MTU, p.bridge.mtu)
	w.u32(unix.IFLA_MASTER, p.bridge.index)
	w.u32(unix.IFLA_GROUP, p.group)
	w.plain(unix.IFLA_LINKINFO, func() {
		w.str(unix.IFLA_INFO_KIND, "veth")
		w.plain(unix.IFLA_INFO_DATA, func() {
			// The peer cannot be up at birth: it is opened before it is joined to this end (veth_open: ENOTCONN).
			w.nestWith(vethInfoPeer, linkHeader(unix.AF_UNSPEC, 0, 0, 0), func() {
				w.str(unix.IFLA_IFNAME, p.inside)
				w.attr(unix.IFLA_ADDRESS, p.mac[:])
				w.u32(unix.IFLA_MTU, p.bridge.mtu)
				w.u32(unix.IFLA_NET_NS_FD, uint32(p.netns.Fd()))
			})
		})
	})
	if p.hairpin {
		// Only br_netfilter needs it: it rewrites the destination while the frame is still in the bridge, which then
		// has to send it out of the port that it came from. Without br_netfilter such a packet is routed.
		w.bridgePort(p.hostEnd, bridgePortHairpin, 1)
	}
	if p.isolated {
		w.bridgePort(p.hostEnd, bridgePortIsolated, 1)
	}
}

// The modes of macvlan and ipvlan: linux/if_link.h.
var (
	macvlanModes = map[string]uint32{"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}
	ipvlanModes  = map[string]uint16{"l2": 0, "l3": 1, "l3s": 2}
	ipvlanFlags  = map[string]uint16{"bridge": 0, "private": 1, "vepa": 2}
)

const (
	macvlanMode            = 1    // IFLA_MACVLAN_MODE
	ipvlanMode, ipvlanFlag = 1, 2 // IFLA_IPVLAN_MODE, IFLA_IPVLAN_FLAGS
)

// makeChild makes a macvlan or ipvlan interface of a parent, in the sandbox.
func (w *batch) makeChild(p pair, kind string, set settings) {
	w.message(unix.RTM_NEWLINK, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, linkHeader(unix.AF_UNSPEC, 0, 0, 0))
	w.str(unix.IFLA_IFNAME, p.inside)
	w.u32(unix.IFLA_LINK, p.bridge.index)
	w.u32(unix.IFLA_NET_NS_FD, uint32(p.netns.Fd()))
	if set.mtu != 0 {
		w.u32(unix.IFLA_MTU, set.mtu)
	}
	if kind == "macvlan" {
		w.attr(unix.IFLA_ADDRESS, p.mac[:])
	}
	w.plain(unix.IFLA_LINKINFO, func() {
		w.str(unix.IFLA_INFO_KIND, kind)
		w.plain(unix.IFLA_INFO_DATA, func() {
			if kind == "macvlan" {
				w.u32(macvlanMode, macvlanModes[set.mode])
				return
			}
			w.attr(ipvlanMode, native.AppendUint16(nil, ipvlanModes[set.mode]))
			w.attr(ipvlanFlag, native.AppendUint16(nil, ipvlanFlags[set.flag]))
		})
	})
}

// bridgePort sets one attribute of a bridge's port, named by its interface (the AF_BRIDGE dialect takes an index only).
func (w *batch) bridgePort(name string, attribute uint16, value uint8) {
	w.message(unix.RTM_NEWLINK, unix.NLM_F_ACK, linkHeader(unix.AF_UNSPEC, 0, 0, 0))
	w.str(unix.IFLA_IFNAME, name)
	w.plain(unix.IFLA_LINKINFO, func() {
		w.str(unix.IFLA_INFO_SLAVE_KIND, "bridge")
		w.plain(unix.IFLA_INFO_SLAVE_DATA, func() { w.u8(attribute, value) })
	})
}

// takeDown brings an interface down: a tenth of a millisecond, where its removal takes ten. What holds the other end can
// do nothing about it. Merely taking it off the bridge would not do: it would be an interface of the host then, on which
// the other end may announce itself as a router (CVE-2020-13401). An interface that is not there is no error.
func (s *socket) takeDown(name string) error {
	w := s.start()
	w.message(unix.RTM_SETLINK, unix.NLM_F_ACK, linkHeader(unix.AF_UNSPEC, 0, 0, unix.IFF_UP))
	w.str(unix.IFLA_IFNAME, name)
	_, err := s.do(w)
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// deleteLink removes an interface; its veth peer goes with it. The kernel waits for RCU grace periods in this call:
// 7 to 20 ms.
func (s *socket) deleteLink(name string) error {
	w := s.start()
	w.message(unix.RTM_DELLINK, unix.NLM_F_ACK, linkHeader(unix.AF_UNSPEC, 0, 0, 0))
	w.str(unix.IFLA_IFNAME, name)
	if _, err := s.do(w); err != nil && !errors.Is(err, unix.ENODEV) {
		return err
	}
	return nil
}

// address adds an address to an interface. IPv6 duplicate address detection is off: the address is ours by its lease,
// and detection would leave it unusable for a second.
func (w *batch) address(index uint32, a netip.Prefix) {
	family := uint8(unix.AF_INET)
	if a.Addr().Is6() {
		family = unix.AF_INET6
	}
	w.message(unix.RTM_NEWADDR, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_REPLACE,
		native.AppendUint32([]byte{family, uint8(a.Bits()), 0, unix.RT_SCOPE_UNIVERSE}, index))
	w.attr(unix.IFA_LOCAL, a.Addr().AsSlice())
	w.attr(unix.IFA_ADDRESS, a.Addr().AsSlice())
	if family == unix.AF_INET {
		w.attr(unix.IFA_BROADCAST, lastOf(a).AsSlice())
	} else {
		w.u32(unix.IFA_FLAGS, addressNoDAD)
	}
}

// defaultRoute adds the default route through a gateway; a gateway of "unspecified" stands for the interface alone.
func (w *batch) defaultRoute(index uint32, gateway netip.Addr) {
	family := uint8(unix.AF_INET)
	if gateway.Is6() {
		family = unix.AF_INET6
	}
	w.message(unix.RTM_NEWROUTE, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, []byte{
		family, 0, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, unix.RT_SCOPE_UNIVERSE, routeTypeUnicast, 0, 0, 0, 0,
	})
	if !gateway.IsUnspecified() {
		w.attr(unix.RTA_GATEWAY, gateway.AsSlice())
	}
	w.u32(unix.RTA_OIF, index)
}

// host is what the choice of a subnet has to know of the host.
type host struct {
	taken       []netip.Prefix // IPv4: routes other than the default one, and addresses
	addresses   []hostAddress  // both families
	uplink      uint32         // interface of the default route, or 0
	globalIPv6  bool           // a default route or an address that reaches other networks by IPv6
	uplinkRoute int            // 4 or 6: the family that gave uplink
}

type hostAddress struct {
	index  uint32
	prefix netip.Prefix
}

// survey reads routes and addresses.
func (s *socket) survey(ctx context.Context) (*host, error) {
	h := &host{}
	err := s.dump(ctx, func(w *batch) {
		w.message(unix.RTM_GETROUTE, unix.NLM_F_DUMP, make([]byte, unix.SizeofRtMsg))
	}, func(a answer) {
		if a.typ != unix.RTM_NEWROUTE || len(a.body) < unix.SizeofRtMsg {
			return
		}
		family, bits, kind := a.body[0], int(a.body[1]), a.body[7]
		if flags := native.Uint32(a.body[8:]); flags&unix.RTM_F_CLONED != 0 {
			return // a cache entry
		}
		rest := a.body[unix.SizeofRtMsg:]
		dst, ok := netip.AddrFromSlice(attribute(rest, unix.RTA_DST))
		switch {
		case bits == 0 && kind == routeTypeUnicast && family == unix.AF_INET:
			if oif := attribute(rest, unix.RTA_OIF); len(oif) == 4 && h.uplinkRoute != 4 {
				h.uplink, h.uplinkRoute = native.Uint32(oif), 4
			}
		case bits == 0 && kind == routeTypeUnicast && family == unix.AF_INET6:
			h.globalIPv6 = true
			if oif := attribute(rest, unix.RTA_OIF); len(oif) == 4 && h.uplinkRoute == 0 {
				h.uplink, h.uplinkRoute = native.Uint32(oif), 6
			}
		case ok && dst.Is4() && bits > 0:
			h.taken = append(h.taken, netip.PrefixFrom(dst, bits).Masked())
		}
	})
	if err != nil {
		return nil, err
	}
	err = s.dump(ctx, func(w *batch) {
		w.message(unix.RTM_GETADDR, unix.NLM_F_DUMP, make([]byte, unix.SizeofIfAddrmsg))
	}, func(a answer) {
		if a.typ != unix.RTM_NEWADDR || len(a.body) < unix.SizeofIfAddrmsg {
			return
		}
		index, rest := native.Uint32(a.body[4:]), a.body[unix.SizeofIfAddrmsg:]
		data := attribute(rest, unix.IFA_LOCAL) // differs from IFA_ADDRESS on point-to-point links only
		if data == nil {
			data = attribute(rest, unix.IFA_ADDRESS)
		}
		addr, ok := netip.AddrFromSlice(data)
		if !ok || int(a.body[1]) > addr.BitLen() {
			return
		}
		p := netip.PrefixFrom(addr, int(a.body[1]))
		h.addresses = append(h.addresses, hostAddress{index, p})
		if addr.Is4() {
			h.taken = append(h.taken, p.Masked())
		} else if globalUnicast.Contains(addr) {
			h.globalIPv6 = true
		}
	})
	if err != nil {
		return nil, err
	}
	return h, nil
}

// globalUnicast is 2000::/3 (RFC 4291 §2.4, IANA's allocation).
var globalUnicast = netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20}), 3)

// lastOf returns the last address of an IPv4 prefix: its broadcast address.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	v := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	v |= uint32(uint64(1)<<(32-p.Bits()) - 1)
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}
