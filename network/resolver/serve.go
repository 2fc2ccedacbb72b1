package resolver

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// The bounds of one sandbox and of one question.
const (
	maxPending = 256 // questions that wait for others
	maxClients = 64  // TCP connections
	patience   = 2 * time.Second
	tries      = 3
	idle       = 10 * time.Second // of a TCP connection
	linger     = time.Second      // without a sandbox, before it ends
)

// hostResolv is where the host's name servers are; tests have another.
var hostResolv = "/etc/resolv.conf"

// Serve is the resolver's life: it takes sandboxes over and answers them until there has been none for a while, or ctx
// ends. It returns at once when another resolver has the directory.
//
// Preconditions: the calling process is in the host's network namespace.
func Serve(ctx context.Context, dir string) error {
	lock, err := os.OpenFile(filepath.Join(dir, LockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if err == unix.EWOULDBLOCK {
			return nil
		}
		return err
	}
	s := &state{dir: dir, boxes: map[string]*box{}, empty: time.Now()}
	watch, err := s.watch()
	if err != nil {
		return err
	}
	defer watch.Close()
	listener, err := s.listen()
	if err != nil {
		return err
	}
	defer listener.Close()
	defer os.Remove(filepath.Join(dir, SocketFile)) // before the lock is free
	go s.accept(listener)
	go s.follow(watch)
	for tick := time.NewTicker(linger / 3); ; {
		select {
		case <-ctx.Done():
			s.closeAll()
			return nil
		case <-tick.C:
			s.mu.Lock()
			over := len(s.boxes) == 0 && time.Since(s.empty) > linger
			s.over = over
			s.mu.Unlock()
			if over {
				return nil
			}
		}
	}
}

// state is all sandboxes that are served.
type state struct {
	dir string

	mu    sync.Mutex // over what follows
	boxes map[string]*box
	empty time.Time // since when there has been none
	over  bool      // no more are taken
}

// box is one sandbox.
type box struct {
	s        *state
	id       string
	udp, tcp *os.File
	pending  chan struct{} // one for each question that waits for others
	clients  chan struct{}

	mu     sync.Mutex // over what follows
	config Config
	stamp  unix.Timespec // of the file that it was read from
	inode  uint64
	turn   int
}

// watch begins to watch the directory of configurations.
func (s *state) watch() (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, filepath.Join(s.dir, ConfigDir), unix.IN_DELETE|unix.IN_ONLYDIR); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// follow lets sandboxes go whose configuration is removed.
func (s *state) follow(watch *os.File) {
	b := make([]byte, 64<<10)
	for {
		n, err := watch.Read(b)
		if err != nil {
			return
		}
		for e := b[:n]; len(e) >= unix.SizeofInotifyEvent; {
			size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(e[12:]))
			if size > len(e) {
				break
			}
			if binary.NativeEndian.Uint32(e[4:])&unix.IN_Q_OVERFLOW != 0 {
				s.sweep()
			}
			name := e[unix.SizeofInotifyEvent:size]
			for i, c := range name {
				if c == 0 {
					name = name[:i]
					break
				}
			}
			s.drop(string(name), nil)
			e = e[size:]
		}
	}
}

// sweep lets all go whose configuration is gone.
func (s *state) sweep() {
	s.mu.Lock()
	var ids []string
	for id := range s.boxes {
		ids = append(ids, id)
	}
	s.mu.Unlock()
	for _, id := range ids {
		if _, err := os.Lstat(filepath.Join(s.dir, ConfigDir, id)); errors.Is(err, os.ErrNotExist) {
			s.drop(id, nil)
		}
	}
}

// drop ends a sandbox's service; only, if not nil, says which one is meant.
func (s *state) drop(id string, only *box) {
	s.mu.Lock()
	b := s.boxes[id]
	if b == nil || only != nil && b != only {
		s.mu.Unlock()
		return
	}
	delete(s.boxes, id)
	s.empty = time.Now()
	s.mu.Unlock()
	_ = b.udp.Close()
	_ = b.tcp.Close()
}

func (s *state) closeAll() {
	s.mu.Lock()
	s.over = true
	all := s.boxes
	s.boxes = map[string]*box{}
	s.mu.Unlock()
	for _, b := range all {
		_ = b.udp.Close()
		_ = b.tcp.Close()
	}
}

// listen makes the socket at which sandboxes are handed over. It is bound through a handle of the directory, so that its
// path may be of any length.
func (s *state) listen() (*os.File, error) {
	_ = os.Remove(filepath.Join(s.dir, SocketFile)) // a killed resolver's: we have the lock
	d, err := os.Open(s.dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "resolver")
	old := unix.Umask(0o177)
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: SocketPath(d)})
	unix.Umask(old)
	if err == nil {
		err = unix.Listen(fd, 128)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// accept takes sandboxes over: one packet with the id and the two sockets, one back.
func (s *state) accept(listener *os.File) {
	for {
		fd, _, err := acceptOn(listener)
		if err != nil {
			return
		}
		go func() {
			c := os.NewFile(uintptr(fd), "client")
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(patience))
			word := "ok"
			if err := s.take(c); err != nil {
				word = err.Error()
			}
			_, _ = c.Write([]byte(word))
		}()
	}
}

// SocketPath names the socket in an open directory, however long its path is.
func SocketPath(dir *os.File) string {
	return "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + SocketFile
}

// acceptOn waits for a connection on a listening socket that does not block.
func acceptOn(listener *os.File) (fd int, sa unix.Sockaddr, err error) {
	raw, err := listener.SyscallConn()
	if err != nil {
		return -1, nil, err
	}
	var inner error
	err = raw.Read(func(l uintptr) bool {
		fd, sa, inner = unix.Accept4(int(l), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		return inner != unix.EAGAIN && inner != unix.EINTR && inner != unix.ECONNABORTED
	})
	if err == nil {
		err = inner
	}
	return fd, sa, err
}

func (s *state) take(c *os.File) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil {
		return cerr
	}
	if err != nil || peer.Uid != uint32(os.Geteuid()) {
		return errors.New("not for you")
	}
	id, oob := make([]byte, 256), make([]byte, unix.CmsgSpace(4*4))
	var n, oobn int
	var inner error
	if err := raw.Read(func(fd uintptr) bool {
		n, oobn, _, _, inner = unix.Recvmsg(int(fd), id, oob, unix.MSG_CMSG_CLOEXEC)
		return inner != unix.EAGAIN && inner != unix.EINTR
	}); err != nil {
		return err
	}
	if inner != nil {
		return inner
	}
	var fds []int
	if list, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil {
		for i := range list {
			if got, err := unix.ParseUnixRights(&list[i]); err == nil {
				fds = append(fds, got...)
			}
		}
	}
	var files []*os.File
	for _, fd := range fds {
		_ = unix.SetNonblock(fd, true)
		files = append(files, os.NewFile(uintptr(fd), "socket"))
	}
	if len(files) != 2 {
		for _, f := range files {
			_ = f.Close()
		}
		return errors.New("two sockets were expected")
	}
	b := &box{
		s: s, id: string(id[:n]), udp: files[0], tcp: files[1], pending: make(chan struct{}, maxPending), clients: make(chan struct{}, maxClients),
	}
	if err := b.reload(); err != nil {
		_ = b.udp.Close()
		_ = b.tcp.Close()
		return err
	}
	s.mu.Lock()
	if s.over {
		s.mu.Unlock()
		_ = b.udp.Close()
		_ = b.tcp.Close()
		return errors.New("going")
	}
	old := s.boxes[b.id]
	s.boxes[b.id] = b
	s.mu.Unlock()
	if old != nil {
		_ = old.udp.Close()
		_ = old.tcp.Close()
	}
	go b.datagrams()
	go b.streams()
	if _, err := os.Lstat(filepath.Join(s.dir, ConfigDir, b.id)); err != nil { // removed while we took it
		s.drop(b.id, b)
	}
	return nil
}

// reload reads the configuration when it has changed.
func (b *box) reload() error {
	path := filepath.Join(b.s.dir, ConfigDir, b.id)
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.turn++
	if st.Ino == b.inode && st.Mtim == b.stamp {
		return nil
	}
	text, err := readFile(path, 1<<20)
	if err != nil {
		return err
	}
	var c Config
	if err := json.Unmarshal(text, &c); err != nil {
		return err
	}
	b.config, b.inode, b.stamp = c, st.Ino, st.Mtim
	return nil
}

// now returns the configuration as it is now. A sandbox whose configuration is gone keeps the last one until drop.
func (b *box) now() (*Config, int) {
	_ = b.reload()
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.config
	return &c, b.turn
}

// datagrams answers questions by UDP. What is ours is answered at once, what is others' beside it.
func (b *box) datagrams() {
	raw, err := b.udp.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, maxMessage)
	for {
		var n int
		var from unix.Sockaddr
		var inner error
		if err := raw.Read(func(fd uintptr) bool {
			n, from, inner = unix.Recvfrom(int(fd), buf, 0)
			return inner != unix.EAGAIN && inner != unix.EINTR
		}); err != nil {
			return
		}
		if inner != nil {
			continue
		}
		q, ok := parse(buf[:n])
		if !ok {
			continue
		}
		send := func(answer []byte) {
			if len(answer) > q.limit {
				answer = q.truncated()
			}
			if answer != nil {
				_ = raw.Write(func(fd uintptr) bool { return unix.Sendto(int(fd), answer, 0, from) != unix.EAGAIN })
			}
		}
		c, turn := b.now()
		if answer := c.local(b.s.dir, &q, turn); answer != nil {
			send(answer)
			continue
		}
		q.raw = append([]byte(nil), q.raw...)
		select {
		case b.pending <- struct{}{}:
			go func() {
				defer func() { <-b.pending }()
				send(c.forward(&q, false))
			}()
		default:
			send(q.reply(dnsmessage.RCodeServerFailure, false, nil))
		}
	}
}

// streams answers questions by TCP (RFC 7766): each connection in turn.
func (b *box) streams() {
	for {
		fd, _, err := acceptOn(b.tcp)
		if err != nil {
			return
		}
		f := os.NewFile(uintptr(fd), "client")
		select {
		case b.clients <- struct{}{}:
			go func() {
				defer func() { <-b.clients }()
				defer f.Close()
				b.stream(f)
			}()
		default:
			_ = f.Close()
		}
	}
}

func (b *box) stream(f *os.File) {
	for {
		_ = f.SetDeadline(time.Now().Add(idle))
		msg, err := readMessage(f)
		if err != nil {
			return
		}
		q, ok := parse(msg)
		if !ok {
			return
		}
		c, turn := b.now()
		answer := c.local(b.s.dir, &q, turn)
		if answer == nil {
			answer = c.forward(&q, true)
		}
		if answer == nil || writeMessage(f, answer) != nil {
			return
		}
	}
}

// readMessage and writeMessage have the two bytes of length that a message by TCP begins with (RFC 1035 §4.2.2).
func readMessage(f io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(f, size[:]); err != nil {
		return nil, err
	}
	msg := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(f, msg)
	return msg, err
}

func writeMessage(f io.Writer, msg []byte) error {
	if len(msg) > maxMessage {
		return errors.New("too long")
	}
	_, err := f.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...))
	return err
}

// forward asks others. Each gets two seconds; when none answers, the client is told so.
func (c *Config) forward(q *question, tcp bool) []byte {
	if !q.flags.RecursionDesired {
		return q.reply(dnsmessage.RCodeRefused, false, nil)
	}
	if !c.Forward {
		return q.reply(dnsmessage.RCodeNameError, false, nil)
	}
	var servers []netip.AddrPort
	for _, s := range c.Servers {
		if a, ok := server(s); ok {
			servers = append(servers, a)
		}
	}
	if len(c.Servers) == 0 {
		text, err := readFile(hostResolv, 1<<20)
		if err == nil {
			servers = nameservers(text)
		}
	}
	for i := range tries {
		if len(servers) == 0 {
			break
		}
		if answer := ask(servers[i%len(servers)], q, tcp); answer != nil {
			return answer
		}
	}
	return q.reply(dnsmessage.RCodeServerFailure, false, nil)
}

// ask sends the question to one server, under an id and from a port that nobody can guess (RFC 5452), and returns its
// answer under the client's id. nil: none, or a refusal that another server may not share.
func ask(to netip.AddrPort, q *question, tcp bool) []byte {
	family, kind := unix.AF_INET, unix.SOCK_DGRAM
	a := to.Addr().Unmap()
	var sa unix.Sockaddr
	if a.Is4() {
		sa = &unix.SockaddrInet4{Port: int(to.Port()), Addr: a.As4()}
	} else {
		family, sa = unix.AF_INET6, &unix.SockaddrInet6{Port: int(to.Port()), Addr: a.As16()}
	}
	if tcp {
		kind = unix.SOCK_STREAM
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	f := os.NewFile(uintptr(fd), "upstream")
	defer f.Close()
	_ = f.SetDeadline(time.Now().Add(patience))
	raw, err := f.SyscallConn()
	if err != nil {
		return nil
	}
	err = unix.Connect(fd, sa)
	if err == unix.EINPROGRESS {
		var failed int
		err = raw.Write(func(fd uintptr) bool {
			_, e := unix.Getpeername(int(fd))
			failed, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
			return e == nil || failed != 0
		})
		if failed != 0 {
			err = unix.Errno(failed)
		}
	}
	if err != nil {
		return nil
	}
	id := random()
	msg := append([]byte(nil), q.raw...)
	binary.BigEndian.PutUint16(msg, id)
	if tcp {
		err = writeMessage(f, msg)
	} else {
		_, err = f.Write(msg)
	}
	if err != nil {
		return nil
	}
	buf := make([]byte, maxMessage)
	for {
		var answer []byte
		if tcp {
			if answer, err = readMessage(f); err != nil {
				return nil
			}
		} else {
			n, err := f.Read(buf)
			if err != nil {
				return nil
			}
			answer = buf[:n]
		}
		var p dnsmessage.Parser
		h, err := p.Start(answer)
		if err != nil || !h.Response || h.ID != id {
			continue // not to our question
		}
		if got, err := p.Question(); err == nil && !sameQuestion(got, q.q) {
			continue
		}
		if h.RCode == dnsmessage.RCodeServerFailure || h.RCode == dnsmessage.RCodeRefused {
			return nil
		}
		binary.BigEndian.PutUint16(answer, q.id)
		return answer
	}
}

func sameQuestion(a, b dnsmessage.Question) bool {
	return a.Type == b.Type && a.Class == b.Class && strings.EqualFold(a.Name.String(), b.Name.String())
}

// random returns an unpredictable id.
func random() uint16 {
	var b [2]byte
	_, _ = rand.Read(b[:])
	return binary.BigEndian.Uint16(b[:])
}
