package launch

import (
	"encoding/binary"
	"errors"
	"sort"
	"strconv"
	"strings"

	"github.com/onggi/onggi/errdefs"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// linux.netDevices (config-linux.md, "Network Devices"): devices of the host are moved into the container's network
// namespace, keep their permanent global addresses, get the name that the spec says, and are set up. When the namespace
// ends, the kernel gives physical devices back; the runtime takes none out. It speaks rtnetlink(7).

// netDevice is a device as it was on the host.
type netDevice struct {
	name, inside string
	index        int32
	up           bool
	addresses    [][]byte // RTM_NEWADDR messages without their header
}

// netDevices are the devices of one container on their way.
type netDevices struct {
	host, inside int // network namespaces
	out, in      *route
	moved        []*netDevice
}

// moveDevices moves the spec's devices into the network namespace at path. The result is to be closed, or taken back when
// it came with an error.
func moveDevices(path string, devices map[string]runspec.LinuxNetDevice) (n *netDevices, err error) {
	n = &netDevices{host: -1, inside: -1}
	if n.host, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return n, err
	}
	if n.inside, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return n, err
	}
	if n.out, err = openRoute(n.host); err != nil {
		return n, err
	}
	if n.in, err = openRoute(n.inside); err != nil {
		return n, err
	}
	names := make([]string, 0, len(devices))
	for name := range devices {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		if err := n.move(name, devices[name].Name); err != nil {
			e := &errdefs.Error{Op: "move the network device", What: name, Err: err, Kind: errdefs.KindOf(err)}
			if err == unix.EEXIST {
				e.Kind, e.Err, e.Why = errdefs.Conflict, nil, "the container's network namespace has a device of that name"
			}
			return n, e
		}
	}
	return n, nil
}

func (n *netDevices) move(name, inside string) (err error) {
	if inside == "" {
		inside = name
	}
	d := &netDevice{name: name, inside: inside}
	if d.index, d.up, err = n.out.link(name); err != nil {
		return err
	}
	if d.addresses, err = n.out.permanent(d.index); err != nil {
		return err
	}
	if !strings.Contains(inside, "%d") {
		if _, _, err := n.in.link(inside); err != unix.ENODEV {
			if err == nil {
				err = unix.EEXIST
			}
			return err
		}
	}
	was := d.up
	d.up = true
	err = move(n.out, n.in, n.inside, d)
	d.up = was
	if _, _, e := n.out.link(name); e == unix.ENODEV { // else it has not moved at all
		n.moved = append(n.moved, d)
	}
	return err
}

// takeBack moves the devices to where and what they were.
func (n *netDevices) takeBack() (err error) {
	for i := len(n.moved) - 1; i >= 0; i-- {
		d := n.moved[i]
		err = errors.Join(err, move(n.in, n.out, n.host, &netDevice{inside: d.name, index: d.index, up: d.up, addresses: d.addresses}))
	}
	n.moved = nil
	return err
}

func (n *netDevices) close() {
	for _, r := range [...]*route{n.out, n.in} {
		if r != nil {
			_ = unix.Close(r.fd)
		}
	}
	for _, fd := range [...]int{n.host, n.inside} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// move moves d, which is known as d.name at from, to the namespace target, whose socket is to. d.inside becomes the name
// that it has got there, d.index its index.
func move(from, to *route, target int, d *netDevice) error {
	name := d.inside
	template := strings.Contains(name, "%d")
	if template { // the kernel numbers it when it is renamed there; until then it has a name that can be asked for
		name = "onggi" + strconv.Itoa(int(d.index))
	}
	m := newMessage(unix.RTM_NEWLINK, unix.NLM_F_ACK, link(d.index, 0, 0))
	m.attr(unix.IFLA_NET_NS_FD, binary.NativeEndian.AppendUint32(nil, uint32(target)))
	m.attr(unix.IFLA_IFNAME, append([]byte(name), 0))
	if err := from.ask(m, nil); err != nil {
		return err
	}
	index, _, err := to.link(name)
	if err != nil {
		return err
	}
	pattern := d.inside
	d.index, d.inside = index, name
	if template {
		m := newMessage(unix.RTM_NEWLINK, unix.NLM_F_ACK, link(index, 0, 0))
		m.attr(unix.IFLA_IFNAME, append([]byte(pattern), 0))
		if err := to.ask(m, nil); err != nil {
			return err
		}
	}
	for _, a := range d.addresses {
		binary.NativeEndian.PutUint32(a[4:], uint32(index)) // struct ifaddrmsg
		if err := to.ask(newMessage(unix.RTM_NEWADDR, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_REPLACE, a), nil); err != nil {
			return err
		}
	}
	if !d.up {
		return nil
	}
	return to.ask(newMessage(unix.RTM_NEWLINK, unix.NLM_F_ACK, link(index, unix.IFF_UP, unix.IFF_UP)), nil)
}

// link is struct ifinfomsg.
func link(index int32, flags, change uint32) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	binary.NativeEndian.PutUint32(b[8:], flags)
	binary.NativeEndian.PutUint32(b[12:], change)
	return b
}

// message is a netlink message being built (netlink(7)).
type message struct{ b []byte }

func newMessage(typ, flags uint16, header []byte) *message {
	b := make([]byte, unix.SizeofNlMsghdr, 256)
	binary.NativeEndian.PutUint16(b[4:], typ)
	binary.NativeEndian.PutUint16(b[6:], flags|unix.NLM_F_REQUEST)
	return &message{append(b, header...)}
}

func (m *message) attr(typ uint16, data []byte) {
	m.b = binary.NativeEndian.AppendUint16(m.b, uint16(unix.SizeofRtAttr+len(data)))
	m.b = append(binary.NativeEndian.AppendUint16(m.b, typ), data...)
	for len(m.b)%unix.NLA_ALIGNTO != 0 {
		m.b = append(m.b, 0)
	}
}

// attributes calls f for each attribute.
func attributes(b []byte, f func(typ uint16, data []byte)) {
	for len(b) >= unix.SizeofRtAttr {
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofRtAttr || n > len(b) {
			return
		}
		f(binary.NativeEndian.Uint16(b[2:])&0x3fff, b[unix.SizeofRtAttr:n])
		b = b[min((n+3)&^3, len(b)):]
	}
}

// route is an rtnetlink socket; it speaks of the namespace in which it was opened.
type route struct {
	fd  int
	seq uint32
}

func openRoute(netns int) (*route, error) {
	r := &route{fd: -1}
	err := onThread(func() (err error) {
		if err := unix.Setns(netns, unix.CLONE_NEWNET); err != nil {
			return err
		}
		r.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, err
	}
	// Answers are queued before send returns: this bounds the wait for one that does not come.
	_ = unix.SetsockoptTimeval(r.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20})
	return r, nil
}

// ask sends a message and gives each answer to f, up to the acknowledgement or the end of the list.
func (r *route) ask(m *message, f func(typ uint16, body []byte)) error {
	r.seq++
	binary.NativeEndian.PutUint32(m.b, uint32(len(m.b)))
	binary.NativeEndian.PutUint32(m.b[8:], r.seq)
	if err := unix.Sendto(r.fd, m.b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(r.fd, buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		for b := buf[:n]; len(b) >= unix.SizeofNlMsghdr; {
			size := int(binary.NativeEndian.Uint32(b))
			if size < unix.SizeofNlMsghdr || size > len(b) {
				return unix.EBADMSG
			}
			typ, seq, body := binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint32(b[8:]), b[unix.SizeofNlMsghdr:size]
			b = b[min((size+3)&^3, len(b)):]
			switch {
			case seq != r.seq:
			case typ == unix.NLMSG_DONE:
				return nil
			case typ == unix.NLMSG_ERROR:
				if e := -int32(binary.NativeEndian.Uint32(body)); e != 0 {
					return unix.Errno(e)
				}
				return nil
			case f != nil:
				f(typ, body)
			}
		}
	}
}

// link looks a device up by its name. ENODEV when there is none.
func (r *route) link(name string) (index int32, up bool, err error) {
	m := newMessage(unix.RTM_GETLINK, unix.NLM_F_ACK, link(0, 0, 0))
	m.attr(unix.IFLA_IFNAME, append([]byte(name), 0))
	err = r.ask(m, func(typ uint16, b []byte) {
		if typ == unix.RTM_NEWLINK && len(b) >= unix.SizeofIfInfomsg {
			index = int32(binary.NativeEndian.Uint32(b[4:]))
			up = binary.NativeEndian.Uint32(b[8:])&unix.IFF_UP != 0
		}
	})
	return index, up, err
}

// permanent returns the permanent addresses of global scope, of any family, as they can be added again.
func (r *route) permanent(index int32) (out [][]byte, err error) {
	err = r.ask(newMessage(unix.RTM_GETADDR, unix.NLM_F_DUMP, make([]byte, unix.SizeofIfAddrmsg)), func(typ uint16, b []byte) {
		if typ != unix.RTM_NEWADDR || len(b) < unix.SizeofIfAddrmsg || int32(binary.NativeEndian.Uint32(b[4:])) != index {
			return
		}
		flags, scope := uint32(b[2]), b[3]
		add := &message{append([]byte(nil), b[:unix.SizeofIfAddrmsg]...)}
		attributes(b[unix.SizeofIfAddrmsg:], func(typ uint16, data []byte) {
			switch typ {
			case unix.IFA_FLAGS:
				flags = binary.NativeEndian.Uint32(data)
				add.attr(typ, data)
			case unix.IFA_ADDRESS, unix.IFA_LOCAL, unix.IFA_BROADCAST, unix.IFA_ANYCAST, unix.IFA_RT_PRIORITY:
				add.attr(typ, data)
			}
		})
		if flags&unix.IFA_F_PERMANENT != 0 && scope == unix.RT_SCOPE_UNIVERSE {
			out = append(out, add.b)
		}
	})
	return out, err
}
