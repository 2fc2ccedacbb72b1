package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// This file is the netlink protocol and nothing more: messages are laid out in one buffer, sent in one call, and
// their answers are read back. It is our own because every container start passes here, and both kernels' dialects
// that we need (rtnetlink in link.go, nf_tables in nft.go) are a few dozen attributes. Sources: netlink(7),
// rtnetlink(7), linux/netlink.h.

// native is the byte order of netlink headers; attributes of nf_tables are big-endian by themselves.
var native = binary.NativeEndian

// nlaTypeMask takes NLA_F_NESTED and NLA_F_NET_BYTEORDER off an attribute's type.
const nlaTypeMask = 0x3fff

// batch is a row of netlink messages that travel in one send. The kernel handles them in order; a message that fails
// does not stop those behind it (nf_tables batches, which are transactions, are the exception).
type batch struct {
	b     []byte
	start int // of the message being built
	first uint32
	seq   uint32
	acks  int // how many answers are due
}

// message begins a message and so ends the one before it. The flags gain NLM_F_REQUEST.
func (w *batch) message(typ, flags uint16, header []byte) {
	w.seal()
	w.start = len(w.b)
	w.seq++
	if flags&unix.NLM_F_ACK != 0 {
		w.acks++
	}
	w.b = native.AppendUint32(w.b, 0) // length, by seal
	w.b = native.AppendUint16(w.b, typ)
	w.b = native.AppendUint16(w.b, flags|unix.NLM_F_REQUEST)
	w.b = native.AppendUint32(w.b, w.seq)
	w.b = native.AppendUint32(w.b, 0) // port: the kernel fills it in
	w.b = append(w.b, header...)
	w.pad()
}

// seal writes the length of the message being built.
func (w *batch) seal() {
	if len(w.b) > w.start {
		native.PutUint32(w.b[w.start:], uint32(len(w.b)-w.start))
	}
}

func (w *batch) pad() {
	for len(w.b)%unix.NLA_ALIGNTO != 0 {
		w.b = append(w.b, 0)
	}
}

func (w *batch) attr(typ uint16, data []byte) {
	w.b = native.AppendUint16(w.b, uint16(unix.SizeofRtAttr+len(data)))
	w.b = native.AppendUint16(w.b, typ)
	w.b = append(w.b, data...)
	w.pad()
}

func (w *batch) str(typ uint16, s string)   { w.attr(typ, append([]byte(s), 0)) }
func (w *batch) u8(typ uint16, v uint8)     { w.attr(typ, []byte{v}) }
func (w *batch) u32(typ uint16, v uint32)   { w.attr(typ, native.AppendUint32(nil, v)) }
func (w *batch) be32(typ uint16, v uint32)  { w.attr(typ, binary.BigEndian.AppendUint32(nil, v)) }
func (w *batch) nest(typ uint16, f func())  { w.nestWith(typ|unix.NLA_F_NESTED, nil, f) }
func (w *batch) plain(typ uint16, f func()) { w.nestWith(typ, nil, f) } // for rtnetlink, which sets no flag

// nestWith writes an attribute whose payload is a header followed by the attributes that f writes.
func (w *batch) nestWith(typ uint16, header []byte, f func()) {
	at := len(w.b)
	w.b = native.AppendUint16(w.b, 0)
	w.b = native.AppendUint16(w.b, typ)
	w.b = append(w.b, header...)
	w.pad()
	f()
	native.PutUint16(w.b[at:], uint16(len(w.b)-at))
}

// answer is one message from the kernel, without its header.
type answer struct {
	typ  uint16
	body []byte
}

// kernelError is the kernel's refusal of one message of a batch.
type kernelError struct {
	message int // its place in the batch, from 0
	errno   unix.Errno
	text    string // the kernel's own words (NETLINK_EXT_ACK), often ""
}

func (e *kernelError) Error() string {
	if e.text != "" {
		return fmt.Sprintf("message %d: %s (%s)", e.message, e.errno.Error(), e.text)
	}
	return fmt.Sprintf("message %d: %s", e.message, e.errno.Error())
}

func (e *kernelError) Unwrap() error { return e.errno }

// socket is a netlink socket. It talks to the network namespace in which its thread was when it was opened, for ever.
// It is not safe for concurrent use.
type socket struct {
	fd  int
	seq uint32
	buf []byte
}

// openSocket opens a netlink socket of a family (unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER) in the namespace of the
// calling thread.
func openSocket(family int) (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, family)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	// Both are comforts: the kernel's reason in words, and acknowledgements that do not carry the request back.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	// Answers are queued before send returns, so this only bounds the wait for an answer that a bug made us expect.
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20})
	return &socket{fd: fd, buf: make([]byte, 32<<10)}, nil
}

func (s *socket) close() { _ = unix.Close(s.fd) }

// closeLater closes without waiting. Closing a netfilter socket waits for whatever nf_tables is about to free, by
// whomever (nft_rcv_nl_event): about 10 ms when a port was unpublished just before.
func (s *socket) closeLater() { go s.close() }

// start returns an empty batch with sequence numbers that the socket has not used.
func (s *socket) start() *batch {
	return &batch{b: make([]byte, 0, 1024), first: s.seq + 1, seq: s.seq}
}

// do sends the batch and waits until each message that asked for an acknowledgement has its answer. It returns the
// data that came before, and the first refusal, by place in the batch, as *kernelError.
func (s *socket) do(w *batch) ([]answer, error) {
	var got []answer
	var refused *kernelError
	err := s.exchange(w, func(seq uint32, a answer) (bool, error) {
		switch a.typ {
		case unix.NLMSG_ERROR:
			e, err := parseError(a.body)
			if err != nil {
				return false, err
			}
			w.acks--
			if e != nil {
				e.message = int(seq - w.first)
				if refused == nil || e.message < refused.message {
					refused = e
				}
			}
		default:
			got = append(got, answer{a.typ, append([]byte(nil), a.body...)})
		}
		return w.acks > 0, nil
	})
	if err != nil {
		return nil, err
	}
	if refused != nil {
		return got, refused
	}
	return got, nil
}

// dump sends the batch's one message, a dump request, and gives every part to f. A dump that the kernel marks as torn
// by a concurrent change is read again: half an answer here would become two sandboxes with one address.
func (s *socket) dump(ctx context.Context, build func(*batch), f func(answer)) error {
	for {
		w := s.start()
		build(w)
		var parts []answer
		torn := false
		err := s.exchange(w, func(_ uint32, a answer) (bool, error) {
			switch a.typ {
			case unix.NLMSG_ERROR:
				e, err := parseError(a.body)
				if err == nil && e != nil {
					err = e
				}
				return false, err
			case unix.NLMSG_DONE:
				return false, nil
			case tornDump:
				torn = true
			default:
				parts = append(parts, answer{a.typ, append([]byte(nil), a.body...)})
			}
			return true, nil
		})
		if err != nil {
			return err
		}
		if !torn {
			for _, p := range parts {
				f(p)
			}
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// tornDump is not a type of the kernel's: exchange reports NLM_F_DUMP_INTR with it.
const tornDump = 0xffff

// exchange sends the batch and gives f each answer until f says that no more is due.
func (s *socket) exchange(w *batch, f func(seq uint32, a answer) (more bool, err error)) error {
	w.seal()
	s.seq = w.seq
	if err := ignoringEINTR(func() error {
		return unix.Sendto(s.fd, w.b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	}); err != nil {
		return fmt.Errorf("send to netlink: %w", err)
	}
	for {
		var n, flags int
		if err := ignoringEINTR(func() (err error) {
			n, _, flags, _, err = unix.Recvmsg(s.fd, s.buf, nil, 0)
			return err
		}); err != nil {
			return fmt.Errorf("receive from netlink: %w", err)
		}
		if flags&unix.MSG_TRUNC != 0 {
			return errors.New("receive from netlink: an answer is longer than 32 KiB")
		}
		for b := s.buf[:n]; len(b) >= unix.SizeofNlMsghdr; {
			length := int(native.Uint32(b))
			if length < unix.SizeofNlMsghdr || length > len(b) {
				return errors.New("receive from netlink: an answer with a wrong length")
			}
			a := answer{typ: native.Uint16(b[4:]), body: b[unix.SizeofNlMsghdr:length]}
			msgFlags, seq := native.Uint16(b[6:]), native.Uint32(b[8:])
			b = b[min((length+3)&^3, len(b)):]
			if seq < w.first || seq > w.seq {
				continue // left over from a batch that failed half way
			}
			if msgFlags&unix.NLM_F_DUMP_INTR != 0 {
				if _, err := f(seq, answer{typ: tornDump}); err != nil {
					return err
				}
			}
			more, err := f(seq, a)
			if err != nil || !more {
				return err
			}
		}
	}
}

// parseError reads nlmsgerr. It returns nil for an acknowledgement.
func parseError(b []byte) (*kernelError, error) {
	if len(b) < 4 {
		return nil, errors.New("receive from netlink: a short error message")
	}
	code := int32(native.Uint32(b))
	if code == 0 {
		return nil, nil
	}
	e := &kernelError{errno: unix.Errno(-code)}
	// With NETLINK_CAP_ACK the error is followed by the request's header alone, then by attributes. Where the kernel
	// sends the whole request all the same, its length says where the attributes begin.
	const header = 4 + unix.SizeofNlMsghdr
	for _, at := range []int{header, 4 + requestLength(b)} {
		if at <= len(b) {
			attributes(b[at:], func(typ uint16, data []byte) {
				if typ == unix.NLMSGERR_ATTR_MSG && e.text == "" {
					e.text = cString(data)
				}
			})
		}
	}
	return e, nil
}

func requestLength(b []byte) int {
	if len(b) < 8 {
		return len(b)
	}
	return int(min(native.Uint32(b[4:]), 1<<20)+3) &^ 3
}

// attributes gives f each attribute in b; a malformed rest is ignored, as the kernel only appends.
func attributes(b []byte, f func(typ uint16, data []byte)) {
	for len(b) >= unix.SizeofRtAttr {
		n := int(native.Uint16(b))
		if n < unix.SizeofRtAttr || n > len(b) {
			return
		}
		f(native.Uint16(b[2:])&nlaTypeMask, b[unix.SizeofRtAttr:n])
		b = b[min((n+3)&^3, len(b)):]
	}
}

// attribute returns the data of the first attribute of a type, or nil.
func attribute(b []byte, typ uint16) (data []byte) {
	attributes(b, func(t uint16, d []byte) {
		if t == typ && data == nil {
			data = d
		}
	})
	return data
}

func cString(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

// ignoringEINTR repeats a call that a signal interrupted: Go's own preemption signals do.
func ignoringEINTR(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}
