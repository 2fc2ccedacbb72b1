package network

import (
	"context"
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

// Constants of linux/netfilter/nfnetlink_conntrack.h.
const (
	ctGet, ctDelete                   = 1, 2 // IPCTNL_MSG_CT_GET, IPCTNL_MSG_CT_DELETE
	ctaTupleOrig                      = 1    // CTA_TUPLE_ORIG
	ctaTupleProto                     = 2    // CTA_TUPLE_PROTO
	ctaProtoNumber, ctaProtoDst       = 1, 3 // CTA_PROTO_NUM, CTA_PROTO_DST_PORT
	conntrackFamilies           uint8 = 0    // AF_UNSPEC
)

// forgetConnections removes the connection records of UDP ports that begin or cease to be published. The destination
// of a connection is decided at its first packet; a UDP peer that never stops sending would stay with a container
// that is gone, or never reach the one that has come. TCP connections end by themselves.
func forgetConnections(nf *socket, ports []Port) error {
	wanted := map[uint16]bool{}
	for _, p := range ports {
		if p.Protocol == "udp" {
			wanted[p.HostPort] = true
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	var found [][2][]byte // family and original tuple
	err := nf.dump(context.Background(), func(w *batch) {
		w.message(unix.NFNL_SUBSYS_CTNETLINK<<8|ctGet, unix.NLM_F_DUMP, nfHeader(conntrackFamilies, 0))
	}, func(a answer) {
		if len(a.body) < 4 {
			return
		}
		tuple := attribute(a.body[4:], ctaTupleOrig)
		proto := attribute(tuple, ctaTupleProto)
		number, dst := attribute(proto, ctaProtoNumber), attribute(proto, ctaProtoDst)
		if len(number) == 1 && number[0] == unix.IPPROTO_UDP && len(dst) == 2 && wanted[binary.BigEndian.Uint16(dst)] {
			found = append(found, [2][]byte{{a.body[0]}, tuple})
		}
	})
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil // the kernel has no nf_conntrack_netlink; the records run out within minutes
	}
	if err != nil {
		return err
	}
	for _, f := range found {
		w := nf.start()
		w.message(unix.NFNL_SUBSYS_CTNETLINK<<8|ctDelete, unix.NLM_F_ACK, nfHeader(f[0][0], 0))
		w.attr(ctaTupleOrig|unix.NLA_F_NESTED, f[1])
		if _, err := nf.do(w); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}
