package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/network/resolver"
	"github.com/onggi/onggi/undo"
	"golang.org/x/sys/unix"
)

// open opens the two sockets that all changes go through.
func open() (rt, nf *socket, err error) {
	if rt, err = openSocket(unix.NETLINK_ROUTE); err != nil {
		return nil, nil, err
	}
	if nf, err = openSocket(unix.NETLINK_NETFILTER); err != nil {
		rt.close()
		return nil, nil, err
	}
	return rt, nf, nil
}

// Connect connects a sandbox that is attached, or one that was made without a network, to one more network. want.Links
// holds that one; want.Ports are published there if nothing else of the sandbox publishes them. The way out is moved
// only when there was none. On error everything is taken back.
//
// Errors: as Attach's; Conflict when it is connected to the network already.
func (m *Manager) Connect(ctx context.Context, netns *os.File, want Endpoint) (_ *Joined, ports []Port, warnings []string, err error) {
	defer func() {
		if err != nil {
			err = &errdefs.Error{
				Op: "connect container " + shortID(want.ID) + " to the network", Kind: errdefs.KindOf(err), Fix: errdefs.FixOf(err), Err: err,
			}
		}
	}()
	if err := validID(want.ID); err != nil {
		return nil, nil, nil, err
	}
	if len(want.Links) != 1 {
		return nil, nil, nil, &errdefs.Error{Kind: errdefs.InvalidArgument, Why: "one network is connected at a time"}
	}
	rt, nf, err := open()
	if err != nil {
		return nil, nil, nil, err
	}
	defer rt.close()
	defer nf.closeLater()
	var within *socket
	defer func() {
		if within != nil {
			within.close()
		}
	}()
	s := undo.New("network.connect")
	defer s.Undo(&err)
	var t *target
	if err := m.locked(func(lock *os.File) error {
		if err := s.Do("bridge", func() error {
			list, _, err := m.resolve(&want)
			if err != nil {
				return err
			}
			t = list[0]
			if t.ground, err = m.ensure(ctx, rt, nf, t.ground.net); err != nil {
				return err
			}
			t.set, err = t.ground.net.settings()
			return err
		}, nil); err != nil {
			return err
		}
		return s.Do("lease", func() error {
			keys, err := m.keysOf(want.ID)
			if err != nil {
				return err
			}
			eps, err := m.read(keys)
			if err != nil {
				return err
			}
			taken := map[string]bool{}
			out := [2]bool{}
			published := false
			for _, e := range eps {
				taken[e.inside()] = true
				published = published || len(e.Ports) > 0
				o, err := m.Get(e.network())
				if err != nil {
					return err
				}
				out[0] = out[0] || !o.Internal
				out[1] = out[1] || !o.Internal && e.IPv6.IsValid()
			}
			gates([]*target{t})
			t.gate[0], t.gate[1] = t.gate[0] && !out[0], t.gate[1] && !out[1]
			var publish []Port
			if !published && t.ground.net.Bridged() && !t.ground.net.Internal {
				publish = t.bound(want.Ports)
			}
			t.e, err = m.reserve(lock, t.ground, want, t.link, freeInterface(t.set.prefix, taken), publish)
			return err
		}, func() error { return m.locked(func(*os.File) error { return m.release(t.e.key()) }) })
	}); err != nil {
		return nil, nil, nil, err
	}
	if err := s.Do("veth", func() (err error) {
		if within, err = prepareSandbox(netns, t.ground.gw6.IsValid()); err != nil {
			return err
		}
		return t.plug(rt, netns)
	}, func() error { return unplug(rt, within, []*target{t}) }); err != nil {
		return nil, nil, nil, fmt.Errorf("make the interface: %w", err)
	}
	if err := s.Do("address", func() error { return t.configure(within) }, nil); err != nil {
		return nil, nil, nil, fmt.Errorf("configure %s: %w", t.e.inside(), err)
	}
	if t.ground.net.Named() && len(m.o.Resolver) > 0 {
		fresh := false
		if err := s.Do("names", func() error {
			if err := m.locked(func(*os.File) error {
				_, err := os.Lstat(m.path(resolver.ConfigDir, want.ID))
				fresh = errors.Is(err, os.ErrNotExist)
				return m.redescribe(rt, want)
			}); err != nil || !fresh {
				return err
			}
			if err := m.serveNames(ctx, want.ID, netns); err != nil {
				return errors.Join(err, m.undescribe(want.ID))
			}
			return nil
		}, func() error {
			if fresh {
				return m.undescribe(want.ID)
			}
			return nil // it is written anew when the endpoint is gone
		}); err != nil {
			return nil, nil, nil, err
		}
	}
	if len(t.e.Ports) > 0 {
		list := elementsOf(t.e)
		if err := s.Do("rules", func() error { return publish(nf, t.ground, t.e.Ports, list) },
			func() error { return nf.removeElements(t.ground.store.table(), list) }); err != nil {
			return nil, nil, nil, err
		}
	}
	s.Done()
	j := t.joined()
	return &j, t.e.Ports, t.ground.warnings, nil
}

// Disconnect takes a sandbox off one of its networks. Its published ports move to another bridge of the sandbox when
// there is one, as does the way out; netns is the sandbox's namespace, or nil when it has none any more. It returns what
// is left. A sandbox that is not connected there is an error of kind NotFound.
func (m *Manager) Disconnect(ctx context.Context, netns *os.File, id, network string) (left []Joined, ports []Port, err error) {
	if err := validID(id); err != nil {
		return nil, nil, err
	}
	n, err := m.Get(network)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			err = &errdefs.Error{
				Op: "disconnect container " + shortID(id) + " from the network", What: n.Name, Kind: errdefs.KindOf(err), Fix: errdefs.FixOf(err), Err: err,
			}
		}
	}()
	key := (&endpoint{ID: id, Network: n.ID}).key()
	if n.Name == Default {
		key = id
	}
	rt, nf, err := open()
	if err != nil {
		return nil, nil, err
	}
	defer rt.close()
	defer nf.closeLater()
	e, err := m.endpoint(key)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil, &errdefs.Error{Kind: errdefs.NotFound, Why: "it is not connected to it", Fix: "see: onggi inspect " + shortID(id)}
	}
	if err != nil {
		return nil, nil, err
	}
	var within *socket
	if netns != nil {
		if within, err = prepareSandbox(netns, false); err != nil {
			return nil, nil, err
		}
		defer within.close()
	}
	s := undo.New("network.disconnect")
	if err := s.Do("veth", func() error {
		if within != nil {
			return within.deleteLink(e.inside())
		}
		return rt.deleteLink(hostEnd(key))
	}, nil); err != nil {
		return nil, nil, fmt.Errorf("remove the interface: %w", err)
	}
	var rest []*target
	var moved *target
	err = m.locked(func(*os.File) error {
		if err := s.Do("rules", func() error { return m.unpublish(ctx, key) }, nil); err != nil {
			return err
		}
		if err := s.Do("lease", func() error { return m.release(key) }, nil); err != nil {
			return err
		}
		return s.Do("move", func() (err error) {
			if rest, err = m.targets(rt, id); err != nil {
				return err
			}
			gates(rest)
			if _, err := m.describe(id, nil, nil, rest); err != nil {
				return err
			}
			if moved = portsAt(rest); moved == nil || len(e.Ports) == 0 || len(moved.e.Ports) > 0 {
				return nil
			}
			if err := m.replace(moved.e, e.Ports); err != nil {
				return err
			}
			return publish(nf, moved.ground, moved.e.Ports, elementsOf(moved.e))
		}, nil)
	})
	if err != nil {
		return nil, nil, err
	}
	if within != nil {
		if err := s.Do("routes", func() error { return reroute(within, rest) }, nil); err != nil {
			return nil, nil, err
		}
	}
	for _, t := range rest {
		left = append(left, t.joined())
		if len(t.e.Ports) > 0 {
			ports = t.e.Ports
		}
	}
	return left, ports, nil
}

// redescribe writes the resolver's configuration after a sandbox's networks have changed. The caller holds the lock.
func (m *Manager) redescribe(rt *socket, want Endpoint) error {
	list, err := m.targets(rt, want.ID)
	if err != nil {
		return err
	}
	_, err = m.describe(want.ID, want.Servers, want.Aliases, list)
	return err
}

// targets are the networks to which a sandbox is connected, in the order of its interfaces.
func (m *Manager) targets(rt *socket, id string) ([]*target, error) {
	keys, err := m.keysOf(id)
	if err != nil {
		return nil, err
	}
	eps, err := m.read(keys)
	if err != nil || len(eps) == 0 {
		return nil, err
	}
	c, err := m.loadConfig()
	if err != nil || c == nil {
		return nil, err
	}
	all, err := m.List()
	if err != nil {
		return nil, err
	}
	var out []*target
	for _, e := range eps {
		n, err := find(all, e.network())
		if err != nil {
			return nil, err
		}
		set, err := n.settings()
		if err != nil {
			return nil, err
		}
		g := groundOf(c, n, link{})
		if l, err := rt.link(n.Interface); err != nil {
			return nil, err
		} else if l != nil {
			g.bridge = *l
		}
		out = append(out, &target{ground: g, set: set, e: e})
	}
	slices.SortFunc(out, func(a, b *target) int {
		if d := len(a.e.inside()) - len(b.e.inside()); d != 0 {
			return d
		}
		if a.e.inside() < b.e.inside() {
			return -1
		}
		return 1
	})
	return out, nil
}

// reroute gives a sandbox its way out back, where removing an interface has taken it.
func reroute(within *socket, list []*target) error {
	for _, t := range list {
		if !t.gate[0] && !t.gate[1] {
			continue
		}
		l, err := within.link(t.e.inside())
		if err != nil {
			return err
		}
		if l == nil {
			continue
		}
		for family := range t.gate {
			if !t.gate[family] {
				continue
			}
			one := *t
			one.gate = [2]bool{}
			one.gate[family] = t.gate[family]
			w := within.start()
			one.routes(w, l.index)
			if _, err := within.do(w); err != nil && !errors.Is(err, unix.EEXIST) {
				return err
			}
		}
	}
	return nil
}
