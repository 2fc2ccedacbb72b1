package monitor

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/undo"
	"golang.org/x/sys/unix"
)

const (
	maxMessage = 64 << 10 // bytes of a packet from the monitor
	maxRequest = 4 << 10  // bytes of a packet to the monitor: it keeps a buffer of this size per client
	maxFds     = 3        // in one packet
	maxBy      = 256      // bytes of message.By
)

// message is one packet in either direction; Op says which fields are set.
//
//	to the monitor    begin(streams) + descriptors | start | attach(streams) + descriptors | resize(width, height) |
//	                  signal(signal) | drain | mine | done
//	from the monitor  hello | created(pid, warnings) | started(at, spans) | lost(streams) | failed(error) | exited(exit) | reply(error)
//
// Each request but done is answered by a reply with its id. Events have no id; a client that connects late gets those
// that have happened, after hello. "done" is said by a client that has promised to clean up and has done so.
type message struct {
	Op       string         `json:"op"`
	ID       uint32         `json:"id,omitempty"`
	Streams  []string       `json:"streams,omitempty"`
	Width    uint16         `json:"width,omitempty"`
	Height   uint16         `json:"height,omitempty"`
	Signal   int            `json:"signal,omitempty"`
	By       string         `json:"by,omitempty"`
	Pid      int            `json:"pid,omitempty"`
	Warnings []string       `json:"warnings,omitempty"`
	At       time.Time      `json:"at,omitzero"`
	Spans    []undo.Span    `json:"spans,omitempty"`
	Exit     *Exit          `json:"exit,omitempty"`
	Error    *errdefs.Error `json:"error,omitempty"`
}

// conn is one end of a SOCK_SEQPACKET connection, non-blocking and in the runtime's poller.
type conn struct {
	f   *os.File
	raw syscall.RawConn
}

// newConn takes fd over.
func newConn(fd int) (*conn, error) {
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "monitor")
	raw, err := f.SyscallConn()
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &conn{f, raw}, nil
}

// send writes one packet. wait says whether to wait while the peer does not read: a client does, the monitor never.
func (c *conn) send(m *message, wait bool, fds ...int) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(b) > maxMessage {
		return unix.EMSGSIZE
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	var sent error
	err = c.raw.Write(func(fd uintptr) bool {
		for {
			sent = unix.Sendmsg(int(fd), b, oob, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
			if sent != unix.EINTR {
				return sent != unix.EAGAIN || !wait
			}
		}
	})
	if err != nil {
		return err
	}
	return sent
}

// recv reads one packet into buf and takes over the descriptors that came with it. io.EOF when the peer is gone.
func (c *conn) recv(buf []byte) (*message, []int, error) {
	oob := make([]byte, unix.CmsgSpace(4*maxFds))
	var n, oobn, flags int
	var got error
	resets := 0
	err := c.raw.Read(func(fd uintptr) bool {
		for {
			n, oobn, flags, _, got = unix.Recvmsg(int(fd), buf, oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
			if got == unix.ECONNRESET && resets == 0 {
				// The peer closed without reading all that we sent. What it said before is still queued: the
				// error is reported once, before the packets.
				resets++
				continue
			}
			if got != unix.EINTR {
				return got != unix.EAGAIN
			}
		}
	})
	if err == nil {
		err = got
	}
	if err != nil {
		return nil, nil, err
	}
	var fds []int
	if cs, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil {
		for i := range cs {
			if r, err := unix.ParseUnixRights(&cs[i]); err == nil {
				fds = append(fds, r...)
			}
		}
	}
	switch {
	case n == 0 && len(fds) == 0:
		err = io.EOF
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		err = unix.EMSGSIZE
	}
	m := &message{}
	if err == nil {
		err = json.Unmarshal(buf[:n], m)
	}
	if err != nil {
		closeFds(fds)
		return nil, nil, err
	}
	return m, fds, nil
}

func (c *conn) close() { _ = c.f.Close() }

func closeFds(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// number returns f's descriptor without changing its mode, as File.Fd would. The caller keeps f alive.
func number(f *os.File) (int, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	n := -1
	if err := raw.Control(func(fd uintptr) { n = int(fd) }); err != nil {
		return -1, err
	}
	return n, nil
}

// peerUID returns the uid that the process at the other end of a unix socket had when it connected.
func peerUID(c *conn) (uint32, error) {
	u, err := peerOf(c)
	if err != nil {
		return 0, err
	}
	return u.Uid, nil
}

// peerOf returns the process at the other end, as it was when it connected.
func peerOf(c *conn) (*unix.Ucred, error) {
	var u *unix.Ucred
	err := errors.New("no credentials")
	if cerr := c.raw.Control(func(fd uintptr) {
		u, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); cerr != nil {
		return nil, cerr
	}
	return u, err
}
