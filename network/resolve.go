package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/network/resolver"
	"golang.org/x/sys/unix"
)

// This file is our side of the resolver (package resolver): sockets and rules in the sandbox, the configuration, and the
// process.

// resolverTable is the table in a sandbox that leads port 53 of the resolver's address to where it listens.
const resolverTable = "onggi-names"

// openResolver opens the resolver's sockets in a sandbox, and lays out the rules that lead to them.
func openResolver(netns *os.File) (udp, tcp *os.File, err error) {
	err = inside(netns, func() (err error) {
		defer func() {
			if err != nil {
				for _, f := range []*os.File{udp, tcp} {
					if f != nil {
						_ = f.Close()
					}
				}
				udp, tcp = nil, nil
			}
		}()
		port := resolver.Port
		if err := redirectNames(); err != nil {
			if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EPROTONOSUPPORT) && !errors.Is(err, unix.EPERM) {
				return fmt.Errorf("lead port 53 to the resolver: %w", err)
			}
			port = 53 // without nf_tables: a name server of the container's own has to leave 127.0.0.11 free
		}
		sa := &unix.SockaddrInet4{Port: port, Addr: netip.MustParseAddr(resolver.Address).As4()}
		one := func(kind int) (*os.File, error) {
			fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				return nil, err
			}
			// A killed resolver's connections may still be there.
			if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err == nil {
				err = unix.Bind(fd, sa)
			}
			if err == nil && kind == unix.SOCK_STREAM {
				err = unix.Listen(fd, 64)
			}
			if err != nil {
				_ = unix.Close(fd)
				return nil, fmt.Errorf("listen at %s:%d in the container: %w", resolver.Address, port, err)
			}
			return os.NewFile(uintptr(fd), "resolver"), nil
		}
		if udp, err = one(unix.SOCK_DGRAM); err != nil {
			return err
		}
		tcp, err = one(unix.SOCK_STREAM)
		return err
	})
	return udp, tcp, err
}

// redirectNames writes the table in the namespace of the calling thread. Ports are rewritten without connection
// tracking, which would cost every packet of the container something:
//
//	table inet onggi-names {
//		chain output {
//			type filter hook output priority raw; policy accept;
//			ip daddr 127.0.0.11 udp dport 53 udp dport set 4
//			ip saddr 127.0.0.11 udp sport 4 udp sport set 53
//			... and the same for tcp
//		}
//	}
func redirectNames() error {
	nf, err := openSocket(unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer nf.close()
	own := netip.PrefixFrom(netip.MustParseAddr(resolver.Address), 32)
	return nf.transaction(func(w *nft) {
		w.table = resolverTable
		w.newTable("", 0)
		w.deleteTable()
		w.newTable("onggi: names of containers", 0)
		w.baseChain("output", "filter", unix.NF_INET_LOCAL_OUT, -300)
		for _, p := range []struct {
			proto    byte
			checksum uint32 // its place in the header
		}{{unix.IPPROTO_UDP, 6}, {unix.IPPROTO_TCP, 16}} {
			is := func(w *nft) {
				meta(unix.NFT_META_L4PROTO, unix.NFT_REG_1)(w)
				compare(unix.NFT_CMP_EQ, []byte{p.proto})(w)
			}
			for _, d := range []struct {
				place    [2]uint32
				offset   uint32
				from, to byte
			}{{daddr, 2, 53, resolver.Port}, {saddr, 0, resolver.Port, 53}} {
				w.rule("output", family4, addressIn(d.place, own), is,
					payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, d.offset, 2, unix.NFT_REG_1), compare(unix.NFT_CMP_EQ, []byte{0, d.from}),
					immediate([]byte{0, d.to}), rewrite(d.offset, 2, p.checksum))
			}
		}
	})
}

// immediate loads bytes into register 1.
func immediate(b []byte) expr {
	return func(w *nft) {
		w.expression("immediate", func() {
			w.be32(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_1)
			w.nest(unix.NFTA_IMMEDIATE_DATA, func() { w.attr(unix.NFTA_DATA_VALUE, b) })
		})
	}
}

// rewrite writes register 1 into the transport header and corrects the checksum.
func rewrite(offset, length, checksum uint32) expr {
	return func(w *nft) {
		w.expression("payload", func() {
			w.be32(unix.NFTA_PAYLOAD_SREG, unix.NFT_REG_1)
			w.be32(unix.NFTA_PAYLOAD_BASE, unix.NFT_PAYLOAD_TRANSPORT_HEADER)
			w.be32(unix.NFTA_PAYLOAD_OFFSET, offset)
			w.be32(unix.NFTA_PAYLOAD_LEN, length)
			w.be32(unix.NFTA_PAYLOAD_CSUM_TYPE, unix.NFT_PAYLOAD_CSUM_INET)
			w.be32(unix.NFTA_PAYLOAD_CSUM_OFFSET, checksum)
		})
	}
}

// describe writes the sandbox's configuration for the resolver from its records, or removes it when it is on no network
// that has names. It reports which. The caller holds the lock.
func (m *Manager) describe(id string, servers []string, aliases map[string]string, list []*target) (named bool, err error) {
	path := m.path(resolver.ConfigDir, id)
	c := resolver.Config{Servers: servers, Aliases: aliases}
	if b, err := readSmall(path, 1<<20); err == nil && servers == nil && aliases == nil {
		var old resolver.Config
		if json.Unmarshal(b, &old) == nil {
			c.Servers, c.Aliases = old.Servers, old.Aliases
		}
	}
	for _, t := range list {
		n := t.ground.net
		c.Forward = c.Forward || !n.Internal
		if !n.Named() {
			continue
		}
		x := resolver.Net{ID: n.ID, Name: n.Name}
		for _, s := range n.Subnets {
			x.Prefixes = append(x.Prefixes, s.Prefix)
		}
		c.Networks = append(c.Networks, x)
	}
	if len(c.Networks) == 0 {
		return false, m.undescribe(id)
	}
	b, err := json.Marshal(c)
	if err != nil {
		return true, err
	}
	tmp := m.path(resolver.ConfigDir, ".new")
	if err := os.MkdirAll(filepath.Dir(tmp), 0o700); err != nil {
		return true, err
	}
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return true, err
	}
	return true, os.Rename(tmp, path)
}

func (m *Manager) undescribe(id string) error {
	if err := os.Remove(m.path(resolver.ConfigDir, id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// serveNames hands a sandbox's sockets to the resolver, starting it when there is none.
func (m *Manager) serveNames(ctx context.Context, id string, netns *os.File) error {
	udp, tcp, err := openResolver(netns)
	if err != nil {
		return err
	}
	defer udp.Close()
	defer tcp.Close()
	end := time.Now().Add(10 * time.Second)
	for started := false; ; {
		err := m.handOver(id, udp, tcp)
		if err == nil || ctx.Err() != nil || time.Now().After(end) {
			if err != nil {
				return &errdefs.Error{Op: "start", What: "the resolver", Kind: errdefs.KindOf(err), Err: err, Fix: "see whether it runs: " + strings.Join(m.o.Resolver, " ")}
			}
			return nil
		}
		if !started || !m.resolverAlive() {
			if err := m.startResolver(); err != nil {
				return err
			}
			started = true
		}
		time.Sleep(500 * time.Microsecond)
	}
}

// startResolver starts the process. Nobody waits for it: it outlives this one.
func (m *Manager) startResolver() error {
	if len(m.o.Resolver) == 0 {
		return &errdefs.Error{Op: "start", What: "the resolver", Kind: errdefs.Unsupported, Why: "no program is configured for it"}
	}
	if err := os.MkdirAll(m.path(resolver.ConfigDir), 0o700); err != nil {
		return err
	}
	cmd := exec.Command(m.o.Resolver[0], append(slices.Clone(m.o.Resolver[1:]), m.o.RunDir)...)
	cmd.Dir, cmd.Env = "/", append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, m.o.ResolverEnv...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return &errdefs.Error{Op: "start", What: "the resolver", Kind: errdefs.KindOf(err), Err: err}
	}
	go func() { _ = cmd.Wait() }()
	return nil
}

// resolverAlive reports whether a resolver has the directory: its lock is held.
func (m *Manager) resolverAlive() bool {
	fd, err := unix.Open(m.path(resolver.LockFile), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return unix.Flock(fd, unix.LOCK_SH|unix.LOCK_NB) == unix.EWOULDBLOCK
}

func (m *Manager) handOver(id string, udp, tcp *os.File) error {
	dir, err := os.Open(m.o.RunDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	wait := unix.Timeval{Sec: 2}
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &wait)
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: resolver.SocketPath(dir)}); err != nil {
		return err
	}
	if err := unix.Sendmsg(fd, []byte(id), unix.UnixRights(int(udp.Fd()), int(tcp.Fd())), nil, unix.MSG_NOSIGNAL); err != nil {
		return err
	}
	b := make([]byte, 256)
	var n int
	if err := ignoringEINTR(func() (err error) { n, err = unix.Read(fd, b); return err }); err != nil {
		return err
	}
	if string(b[:n]) != "ok" {
		return errors.New("the resolver says: " + string(b[:n]))
	}
	return nil
}

// Revive starts the resolver again when it was killed while sandboxes need it, and hands them over: namespace opens the
// namespace of one, or fails when it does not live. It costs one directory read when there is nothing to do.
func (m *Manager) Revive(ctx context.Context, namespace func(id string) (*os.File, error)) error {
	ids, err := m.names(resolver.ConfigDir)
	if err != nil || len(ids) == 0 || m.resolverAlive() {
		return err
	}
	var errs []error
	for _, id := range ids {
		ns, err := namespace(id)
		if err != nil {
			continue // what it left is swept
		}
		errs = append(errs, m.serveNames(ctx, id, ns))
		_ = ns.Close()
	}
	return errors.Join(errs...)
}
