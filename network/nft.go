package network

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// This file is the dialect of nf_tables: tables, chains, maps, rules and their expressions as the kernel's register
// machine takes them. rules.go says what we tell it. Sources: linux/netfilter/nf_tables.h; nft(8) --debug=netlink
// prints the same expressions.

// Constants that x/sys/unix does not have.
const (
	tableUserData = 6 // NFTA_TABLE_USERDATA, since 5.10
	ctStatusDNAT  = 1 << 5
	ctEstablished = 1 << 1 // NF_CT_STATE_BIT(IP_CT_ESTABLISHED)
	ctRelated     = 1 << 2 // NF_CT_STATE_BIT(IP_CT_RELATED)
	routeLocal    = 2      // RTN_LOCAL
	reg0          = unix.NFT_REG32_00
	verdictAccept = 1 // NF_ACCEPT
	verdictDrop   = 0 // NF_DROP

	// Numbers of nft(8)'s data types: only its listing reads them. A concatenation is written in six-bit places.
	typeIPv4, typeIPv6, typeProto, typePort, typeInterface = 7, 8, 12, 13, 41
)

// nfHeader is struct nfgenmsg.
func nfHeader(family uint8, resource uint16) []byte {
	return binary.BigEndian.AppendUint16([]byte{family, unix.NFNETLINK_V0}, resource)
}

// transaction wraps what f writes in one nf_tables transaction: all of it or nothing takes effect.
func (s *socket) transaction(f func(w *nft)) error {
	w := &nft{batch: s.start()}
	w.batch.message(unix.NFNL_MSG_BATCH_BEGIN, 0, nfHeader(unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES))
	f(w)
	w.batch.message(unix.NFNL_MSG_BATCH_END, 0, nfHeader(unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES))
	return s.commit(w.batch)
}

// commit sends a transaction. An error that arises only when the whole is committed is reported for its first message,
// which asked for nothing, and the acknowledgements of the others are then not sent: so the first refusal ends it.
func (s *socket) commit(w *batch) error {
	return s.exchange(w, func(seq uint32, a answer) (bool, error) {
		if a.typ != unix.NLMSG_ERROR {
			return true, nil
		}
		e, err := parseError(a.body)
		if err != nil {
			return false, err
		}
		if e != nil {
			e.message = int(seq - w.first)
			return false, e
		}
		w.acks--
		return w.acks > 0, nil
	})
}

// nft is a transaction being written.
type nft struct {
	*batch
	table string
	setID uint32
}

func (w *nft) msg(typ uint16, flags uint16) {
	w.message(unix.NFNL_SUBSYS_NFTABLES<<8|typ, flags|unix.NLM_F_ACK, nfHeader(unix.NFPROTO_INET, 0))
}

// newTable makes the table if it is not there; with NLM_F_EXCL in flags it fails when it is. The comment is shown by nft(8), and is how we know our own work again.
func (w *nft) newTable(comment string, flags uint16) {
	w.msg(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE|flags)
	w.str(unix.NFTA_TABLE_NAME, w.table)
	if comment != "" {
		w.attr(tableUserData, commentData(comment))
	}
}

// commentData is nft's own format for comments: type 0, length, text.
func commentData(s string) []byte {
	return append(append([]byte{0, byte(len(s) + 1)}, s...), 0)
}

func (w *nft) deleteTable() {
	w.msg(unix.NFT_MSG_DELTABLE, 0)
	w.str(unix.NFTA_TABLE_NAME, w.table)
}

// baseChain makes a chain that the kernel calls at a hook. The policy is always accept: what we do not want we say.
func (w *nft) baseChain(name, kind string, hook uint32, priority int32) {
	w.msg(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE)
	w.str(unix.NFTA_CHAIN_TABLE, w.table)
	w.str(unix.NFTA_CHAIN_NAME, name)
	w.nest(unix.NFTA_CHAIN_HOOK, func() {
		w.be32(unix.NFTA_HOOK_HOOKNUM, hook)
		w.be32(unix.NFTA_HOOK_PRIORITY, uint32(priority))
	})
	w.be32(unix.NFTA_CHAIN_POLICY, verdictAccept)
	w.str(unix.NFTA_CHAIN_TYPE, kind)
}

// chain makes a chain that only our own rules jump to.
func (w *nft) chain(name string) {
	w.msg(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE)
	w.str(unix.NFTA_CHAIN_TABLE, w.table)
	w.str(unix.NFTA_CHAIN_NAME, name)
}

// field is a part of a map's key or value: its type for the listing and its length, which registers round up to four.
type field struct{ kind, length uint32 }

func concat(fields []field) (kind, length uint32) {
	for _, f := range fields {
		kind = kind<<6 | f.kind
		length += (f.length + 3) &^ 3
	}
	return kind, length
}

// newMap makes a hash map; without a value it is a set (newSet).
func (w *nft) newMap(name string, key, value []field) {
	w.setID++
	w.msg(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE)
	w.str(unix.NFTA_SET_TABLE, w.table)
	w.str(unix.NFTA_SET_NAME, name)
	flags := uint32(0)
	if value != nil {
		flags = unix.NFT_SET_MAP
	}
	w.be32(unix.NFTA_SET_FLAGS, flags)
	kind, length := concat(key)
	w.be32(unix.NFTA_SET_KEY_TYPE, kind)
	w.be32(unix.NFTA_SET_KEY_LEN, length)
	if value != nil {
		kind, length = concat(value)
		w.be32(unix.NFTA_SET_DATA_TYPE, kind)
		w.be32(unix.NFTA_SET_DATA_LEN, length)
	}
	w.be32(unix.NFTA_SET_ID, w.setID)
}

func (w *nft) newSet(name string, key []field) {
	w.newMap(name, key, nil)
	if len(key) == 1 && key[0].kind == typeInterface {
		// For nft(8)'s listing only: text is in the host's byte order (libnftnl udata.h: type 0, length, value).
		w.attr(unix.NFTA_SET_USERDATA, native.AppendUint32([]byte{0, 4}, 1))
	}
}

// element is one entry of a map.
type element struct {
	set        string
	key, value []byte
}

// elementsPerMessage keeps a message's list below the 64 KiB that an attribute can say.
const elementsPerMessage = 400

// elements adds (unix.NFT_MSG_NEWSETELEM) or removes (NFT_MSG_DELSETELEM) elements.
func (w *nft) elements(typ uint16, list []element) {
	var flags uint16
	if typ == unix.NFT_MSG_NEWSETELEM {
		flags = unix.NLM_F_CREATE
	}
	for len(list) > 0 {
		n := 1
		for n < len(list) && n < elementsPerMessage && list[n].set == list[0].set {
			n++
		}
		w.msg(typ, flags)
		w.str(unix.NFTA_SET_ELEM_LIST_TABLE, w.table)
		w.str(unix.NFTA_SET_ELEM_LIST_SET, list[0].set)
		w.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func() {
			for _, e := range list[:n] {
				w.nest(unix.NFTA_LIST_ELEM, func() {
					w.nest(unix.NFTA_SET_ELEM_KEY, func() { w.attr(unix.NFTA_DATA_VALUE, e.key) })
					if typ == unix.NFT_MSG_NEWSETELEM && e.value != nil {
						w.nest(unix.NFTA_SET_ELEM_DATA, func() { w.attr(unix.NFTA_DATA_VALUE, e.value) })
					}
				})
			}
		})
		list = list[n:]
	}
}

// expr writes one expression of a rule.
type expr func(w *nft)

// rule appends a rule to a chain.
func (w *nft) rule(chain string, exprs ...expr) {
	w.msg(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND)
	w.str(unix.NFTA_RULE_TABLE, w.table)
	w.str(unix.NFTA_RULE_CHAIN, chain)
	w.nest(unix.NFTA_RULE_EXPRESSIONS, func() {
		for _, e := range exprs {
			e(w)
		}
	})
}

// expression writes an expression by its kernel name.
func (w *nft) expression(name string, data func()) {
	w.nest(unix.NFTA_LIST_ELEM, func() {
		w.str(unix.NFTA_EXPR_NAME, name)
		w.nest(unix.NFTA_EXPR_DATA, data)
	})
}

// meta loads a fact about the packet into a register.
func meta(key, reg uint32) expr {
	return func(w *nft) {
		w.expression("meta", func() {
			w.be32(unix.NFTA_META_KEY, key)
			w.be32(unix.NFTA_META_DREG, reg)
		})
	}
}

// payload loads bytes of the packet.
func payload(base, offset, length, reg uint32) expr {
	return func(w *nft) {
		w.expression("payload", func() {
			w.be32(unix.NFTA_PAYLOAD_DREG, reg)
			w.be32(unix.NFTA_PAYLOAD_BASE, base)
			w.be32(unix.NFTA_PAYLOAD_OFFSET, offset)
			w.be32(unix.NFTA_PAYLOAD_LEN, length)
		})
	}
}

// compare ends the rule unless register 1 compares so with data.
func compare(op uint32, data []byte) expr {
	return func(w *nft) {
		w.expression("cmp", func() {
			w.be32(unix.NFTA_CMP_SREG, unix.NFT_REG_1)
			w.be32(unix.NFTA_CMP_OP, op)
			w.nest(unix.NFTA_CMP_DATA, func() { w.attr(unix.NFTA_DATA_VALUE, data) })
		})
	}
}

// mask is register 1 &= mask.
func mask(m []byte) expr {
	return func(w *nft) {
		w.expression("bitwise", func() {
			w.be32(unix.NFTA_BITWISE_SREG, unix.NFT_REG_1)
			w.be32(unix.NFTA_BITWISE_DREG, unix.NFT_REG_1)
			w.be32(unix.NFTA_BITWISE_LEN, uint32(len(m)))
			w.nest(unix.NFTA_BITWISE_MASK, func() { w.attr(unix.NFTA_DATA_VALUE, m) })
			w.nest(unix.NFTA_BITWISE_XOR, func() { w.attr(unix.NFTA_DATA_VALUE, make([]byte, len(m))) })
		})
	}
}

// conntrack loads a fact about the connection into register 1.
func conntrack(key uint32) expr {
	return func(w *nft) {
		w.expression("ct", func() {
			w.be32(unix.NFTA_CT_KEY, key)
			w.be32(unix.NFTA_CT_DREG, unix.NFT_REG_1)
		})
	}
}

// destinationType loads the type of route that the destination address has (RTN_LOCAL ...) into register 1.
func destinationType(w *nft) {
	w.expression("fib", func() {
		w.be32(unix.NFTA_FIB_DREG, unix.NFT_REG_1)
		w.be32(unix.NFTA_FIB_RESULT, unix.NFT_FIB_RESULT_ADDRTYPE)
		w.be32(unix.NFTA_FIB_FLAGS, unix.NFTA_FIB_F_DADDR)
	})
}

// lookup replaces the key that begins in register 1 by the map's value, or ends the rule.
func lookup(set string) expr {
	return func(w *nft) {
		w.expression("lookup", func() {
			w.str(unix.NFTA_LOOKUP_SET, set)
			w.be32(unix.NFTA_LOOKUP_SREG, unix.NFT_REG_1)
			w.be32(unix.NFTA_LOOKUP_DREG, unix.NFT_REG_1)
		})
	}
}

// member ends the rule unless the key that begins in register 1 is in the set; notMember if it is.
func member(set string) expr    { return membership(set, 0) }
func notMember(set string) expr { return membership(set, unix.NFT_LOOKUP_F_INV) }

func membership(set string, flags uint32) expr {
	return func(w *nft) {
		w.expression("lookup", func() {
			w.str(unix.NFTA_LOOKUP_SET, set)
			w.be32(unix.NFTA_LOOKUP_SREG, unix.NFT_REG_1)
			if flags != 0 {
				w.be32(unix.NFTA_LOOKUP_FLAGS, flags)
			}
		})
	}
}

// dnat rewrites the destination to the address that begins in register 1 and the port in portReg.
func dnat(family, portReg uint32) expr {
	return func(w *nft) {
		w.expression("nat", func() {
			w.be32(unix.NFTA_NAT_TYPE, unix.NFT_NAT_DNAT)
			w.be32(unix.NFTA_NAT_FAMILY, family)
			w.be32(unix.NFTA_NAT_REG_ADDR_MIN, unix.NFT_REG_1)
			w.be32(unix.NFTA_NAT_REG_PROTO_MIN, portReg)
		})
	}
}

func masquerade(w *nft) { w.expression("masq", func() {}) }
func counter(w *nft)    { w.expression("counter", func() {}) }

func verdict(code int32, chain string) expr {
	return func(w *nft) {
		w.expression("immediate", func() {
			w.be32(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT)
			w.nest(unix.NFTA_IMMEDIATE_DATA, func() {
				w.nest(unix.NFTA_DATA_VERDICT, func() {
					w.be32(unix.NFTA_VERDICT_CODE, uint32(code))
					if chain != "" {
						w.str(unix.NFTA_VERDICT_CHAIN, chain)
					}
				})
			})
		})
	}
}
