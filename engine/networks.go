package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/events"
	"github.com/onggi/onggi/network"
	"github.com/onggi/onggi/network/resolver"
	"github.com/onggi/onggi/runtime/monitor"
	"golang.org/x/sys/unix"
)

// Of is another container's network namespace: Config.Network is Of and that container's name or id.
const containerMode = "container:"

// ofContainer returns whose network namespace the container shares, or "".
func (c *Config) ofContainer() string {
	s, _ := strings.CutPrefix(c.Network, containerMode)
	if s == c.Network {
		return ""
	}
	return s
}

// networked reports whether the container has a network namespace of its own that networks are connected to.
func (c *Config) networked() bool {
	return c.Network != network.Host && c.Network != network.None && c.ofContainer() == ""
}

// links are the container's networks. One that all networks were taken from has none, and Network is "".
func (c *Config) links() []network.Link {
	if len(c.Links) > 0 || c.Network == "" || !c.networked() {
		return c.Links
	}
	return []network.Link{{Network: c.Network}}
}

// checkNetworks refuses what contradicts itself.
func (c *Config) checkNetworks() error {
	conflict := func(what, why string) error {
		return invalid(what, "", "conflicting options: "+why, "leave one of them out")
	}
	if len(c.Links) > 0 && !c.networked() {
		return conflict("--network", "a container on the network "+c.Network+" has no other network")
	}
	ports := len(c.Ports) > 0 || c.PublishAll
	of := c.ofContainer()
	switch {
	case c.Network == containerMode:
		return invalid("--network", c.Network, "it names no container", "write --network container:NAME")
	case of != "" && c.Hostname != "":
		return conflict("--hostname", "the host name is that of the container whose network this one has")
	case of != "" && (len(c.DNS) > 0 || len(c.DNSSearch) > 0 || len(c.DNSOptions) > 0):
		return conflict("--dns", "resolv.conf is that of the container whose network this one has")
	case of != "" && len(c.ExtraHosts) > 0:
		return conflict("--add-host", "/etc/hosts is that of the container whose network this one has")
	case ports && !c.networked():
		return invalid("--publish", "", "with --network "+c.Network+" there is no network of its own whose ports could be published",
			"leave -p and -P out, or use a network of its own")
	case len(c.Aliases) > 0 && !c.networked():
		return conflict("--link", "the container has no network of its own")
	}
	for alias, target := range c.Aliases {
		if err := network.ValidAlias(alias); err != nil {
			return err
		}
		if target == "" {
			return invalid("--link", alias, "it names no container", "write --link CONTAINER:ALIAS")
		}
	}
	return nil
}

// endpoint is what the container asks of its networks.
func (h *held) endpoint() network.Endpoint {
	c := &h.rec.Config
	want := network.Endpoint{ID: h.rec.ID, Name: c.Name, Hostname: c.Hostname, Ports: c.Ports, Links: c.links(), Servers: c.DNS}
	for alias, target := range c.Aliases {
		if want.Aliases == nil {
			want.Aliases = map[string]string{}
		}
		if t, err := h.e.get(target); err == nil {
			target = t.Config.Name
		}
		want.Aliases[alias] = target // of one that is not there yet, too: it is looked up when it is asked for
	}
	return want
}

// resolveNetwork turns the name of the container whose network is shared into its id, and refuses networks that are not
// there, before anything is made.
func (e *Engine) resolveNetwork(c *Config) error {
	if of := c.ofContainer(); of != "" {
		id, err := e.find(of)
		if err != nil {
			return err
		}
		c.Network = containerMode + id
		return nil
	}
	for _, l := range c.links() {
		if l.Network == network.Default {
			continue
		}
		n, err := e.network()
		if err != nil {
			return err
		}
		if _, err := n.Get(l.Network); err != nil {
			return err
		}
	}
	return nil
}

// connect is the network step of a start: it makes the namespace, or opens that of another container, and writes what
// depends on the addresses.
func (h *held) connect(ctx context.Context, names *network.Names, files map[string]string) (ns *os.File, err error) {
	e, r := h.e, h.rec
	c := &r.Config
	defer func() {
		if err != nil && ns != nil {
			_ = ns.Close()
			ns = nil
		}
	}()
	switch {
	case c.ofContainer() != "":
		return h.share(files)
	case c.networked():
		n, err := e.network()
		if err != nil {
			return nil, err
		}
		if ns, err = network.NewNamespace(); err != nil {
			return nil, err
		}
		r.Network = &network.Attachment{}
		if want := h.endpoint(); len(want.Links) > 0 {
			if r.Network, err = n.Attach(ctx, ns, want); err != nil {
				r.Network = nil
				return ns, err
			}
		} else if len(want.Ports) > 0 {
			r.Warnings = appendNew(r.Warnings, "the container is connected to no network: its ports are not published")
		}
		names.Attachment = r.Network
		for _, w := range r.Network.Warnings {
			r.Warnings = appendNew(r.Warnings, w)
		}
	}
	err = h.writeNames(*names, files["/etc/resolv.conf"], files["/etc/hosts"])
	if err != nil {
		err = errors.Join(err, h.detach(ctx))
	}
	return ns, err
}

// writeNames writes resolv.conf and hosts, into the files that are there: they may be mounted already.
func (h *held) writeNames(names network.Names, resolvPath, hostsPath string) error {
	resolv, err := names.ResolvConf()
	if err != nil {
		return err
	}
	linked, err := h.linkedHosts(&names)
	if err != nil {
		return err
	}
	names.ExtraHosts = append(slices.Clone(names.ExtraHosts), linked...)
	hosts, err := names.Hosts()
	if err != nil {
		return err
	}
	if err := os.WriteFile(resolvPath, resolv, 0o644); err != nil {
		return err
	}
	return os.WriteFile(hostsPath, hosts, 0o644)
}

// linkedHosts are the lines of /etc/hosts for --link on the default network, where names are not resolved.
func (h *held) linkedHosts(names *network.Names) ([]string, error) {
	if names.Attachment == nil || !slices.ContainsFunc(names.Attachment.Networks, func(j network.Joined) bool { return j.Network == network.Default }) {
		return nil, nil // the resolver knows them
	}
	var out []string
	for _, alias := range sortedKeys(h.rec.Config.Aliases) {
		target := h.rec.Config.Aliases[alias]
		t, err := h.e.get(target)
		if err != nil {
			return nil, err
		}
		if t.Network == nil || t.Status != Running {
			return nil, &errdefs.Error{
				Op: "use", What: "--link " + target + ":" + alias, Kind: errdefs.Conflict, Why: "cannot link to a non running container: " + t.Config.Name,
				Fix: "start it: onggi start " + t.Config.Name,
			}
		}
		found := false
		for _, mine := range names.Attachment.Networks {
			for _, its := range t.Network.Networks {
				if mine.NetworkID != its.NetworkID || mine.Network != network.Default {
					continue
				}
				found = true
				list := []string{alias}
				if t.Config.Name != alias {
					list = append(list, t.Config.Name)
				}
				for _, n := range append(list, t.ID[:12]) {
					out = append(out, n+":"+its.IPv4.Addr().String())
				}
			}
		}
		if !found && !names.Attachment.Named() {
			return nil, &errdefs.Error{
				Op: "use", What: "--link " + target + ":" + alias, Kind: errdefs.InvalidArgument,
				Why: "both containers have no network in common", Fix: "connect them to one: onggi network connect NETWORK " + target,
			}
		}
	}
	return out, nil
}

func sortedKeys(m map[string]string) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// share opens the network namespace of another container and takes its files of names.
func (h *held) share(files map[string]string) (*os.File, error) {
	id := h.rec.Config.ofContainer()
	fail := func(why, fix string, err error) (*os.File, error) {
		return nil, &errdefs.Error{Op: "use", What: "--network " + containerMode + id[:min(12, len(id))], Kind: errdefs.Conflict, Why: why, Fix: fix, Err: err}
	}
	if id == h.rec.ID {
		return fail("cannot join own network", "name another container", nil)
	}
	t, err := h.e.get(id)
	if err != nil {
		return nil, err
	}
	if t.Status != Running {
		return fail("cannot join network of a non running container: "+t.Config.Name, "start it: onggi start "+t.Config.Name, nil)
	}
	ns, err := h.e.namespaceOf(t)
	if err != nil {
		return nil, err
	}
	for _, path := range files {
		from := filepath.Join(h.e.runDir(t.ID), filepath.Base(path))
		err := ignoreMissing(os.Remove(path))
		if err == nil {
			err = os.Link(from, path) // one file: what is written into it on behalf of one is seen by both
		}
		if err != nil {
			_ = ns.Close()
			return fail("the container has ended just now", "start it again", err)
		}
	}
	return ns, nil
}

// namespaceOf opens the network namespace of a running container: through a handle of its first process's directory in
// /proc, which stays that process's when the number is given to another one, and which must be in the container's group.
func (e *Engine) namespaceOf(r *record) (*os.File, error) {
	gone := func(err error) (*os.File, error) {
		return nil, &errdefs.Error{Op: "open the network of", What: "container " + r.Config.Name, Kind: errdefs.Conflict, Why: "it does not run any more", Err: err}
	}
	proc, err := os.Open(fmt.Sprintf("/proc/%d", r.Pid))
	if err != nil {
		return gone(err)
	}
	defer proc.Close()
	fd, err := unix.Openat(int(proc.Fd()), "ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return gone(err)
	}
	ns := os.NewFile(uintptr(fd), "net namespace")
	fd, err = unix.Openat(int(proc.Fd()), "cgroup", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		_ = ns.Close()
		return gone(err)
	}
	f := os.NewFile(uintptr(fd), "cgroup")
	defer f.Close()
	text, err := readAll(f, "cgroup", 64<<10)
	mine := bytes.Contains(text, []byte(r.ID))
	if groupless() { // there is no group that would tell: it must at least be a process of this user's namespace
		mine = sameFile(int(proc.Fd()), "ns/user", "/proc/self/ns/user")
	}
	if err != nil || !mine || !monitor.Alive(e.runDir(r.ID)) {
		_ = ns.Close()
		return gone(err)
	}
	return ns, nil
}

// Network is a network and who is connected to it.
type Network struct {
	network.Network
	Containers map[string]Connection // running ones, by id
}

// Connection is a container on a network.
type Connection struct {
	Name string
	network.Joined
}

// CreateNetwork makes a network. Warnings say what does not work as it should although it is made.
func (e *Engine) CreateNetwork(ctx context.Context, n network.Network) (*network.Network, []string, error) {
	if bridgeless() {
		return nil, nil, noBridge("create the network", n.Name)
	}
	if err := e.make(); err != nil {
		return nil, nil, err
	}
	m, err := e.network()
	if err != nil {
		return nil, nil, err
	}
	made, warnings, err := m.Create(ctx, n)
	if err == nil {
		e.Emit(events.Network, "create", made.ID, map[string]string{"name": made.Name, "type": made.Driver})
	}
	return made, warnings, err
}

// ListNetworks returns all networks by name, with the containers that are connected.
func (e *Engine) ListNetworks() ([]*Network, error) {
	m, err := e.network()
	if err != nil {
		return nil, err
	}
	list, err := m.List()
	if err != nil {
		return nil, err
	}
	records, err := e.records()
	if err != nil {
		return nil, err
	}
	out := make([]*Network, len(list))
	for i, n := range list {
		out[i] = &Network{Network: *n, Containers: map[string]Connection{}}
		for _, r := range records {
			if r.Config.Build != "" || r.Status != Running {
				continue
			}
			if r.Config.Network == n.Name && !r.Config.networked() { // host, none
				out[i].Containers[r.ID] = Connection{Name: r.Config.Name}
			}
			if r.Network == nil {
				continue
			}
			for _, j := range r.Network.Networks {
				if j.NetworkID == n.ID {
					out[i].Containers[r.ID] = Connection{r.Config.Name, j}
				}
			}
		}
	}
	return out, nil
}

// GetNetwork finds a network by name, id or prefix of an id.
func (e *Engine) GetNetwork(nameOrID string) (*Network, error) {
	m, err := e.network()
	if err != nil {
		return nil, err
	}
	n, err := m.Get(nameOrID)
	if err != nil {
		return nil, err
	}
	list, err := e.ListNetworks()
	if err != nil {
		return nil, err
	}
	for _, l := range list {
		if l.ID == n.ID {
			return l, nil
		}
	}
	return nil, &errdefs.Error{Op: "find", What: "network " + nameOrID, Kind: errdefs.NotFound, Why: "it was removed just now"}
}

// RemoveNetwork removes a network that no running container is connected to, and returns its name.
func (e *Engine) RemoveNetwork(ctx context.Context, nameOrID string) (string, error) {
	e.sweepInterrupted(ctx) // what a killed command has left is connected to nothing
	m, err := e.network()
	if err != nil {
		return "", err
	}
	n, err := m.Remove(ctx, nameOrID)
	if err != nil {
		return "", err
	}
	e.Emit(events.Network, "destroy", n.ID, map[string]string{"name": n.Name, "type": n.Driver})
	return n.Name, nil
}

// UnusedNetworks returns the networks that no container uses, whether it runs or not, and that want chooses.
func (e *Engine) UnusedNetworks(want func(*network.Network) bool) ([]*network.Network, error) {
	m, err := e.network()
	if err != nil {
		return nil, err
	}
	list, err := m.List()
	if err != nil {
		return nil, err
	}
	records, err := e.records()
	if err != nil {
		return nil, err
	}
	used := map[string]bool{}
	for _, r := range records {
		for _, l := range r.Config.links() {
			used[l.Network] = true
		}
		if r.Network != nil {
			for _, j := range r.Network.Networks {
				used[j.NetworkID] = true
			}
		}
	}
	return slices.DeleteFunc(list, func(n *network.Network) bool {
		return n.Predefined() || used[n.Name] || used[n.ID] || want != nil && !want(n)
	}), nil
}

// ConnectNetwork connects a container to one more network: at once when it runs, and at every start.
// Errors: NotFound, Conflict (connected already; the container has no network of its own), InvalidArgument.
func (e *Engine) ConnectNetwork(ctx context.Context, idOrName string, l network.Link) (warnings []string, err error) {
	if err := e.make(); err != nil {
		return nil, err
	}
	e.sweepInterrupted(ctx)
	h, err := e.lock(ctx, idOrName)
	if err != nil {
		return nil, err
	}
	defer h.unlock()
	r := h.rec
	m, err := e.network()
	if err != nil {
		return nil, err
	}
	n, err := m.Get(l.Network)
	if err != nil {
		return nil, err
	}
	if err := h.mayConnect(n); err != nil {
		return nil, err
	}
	for _, o := range r.Config.links() {
		if found, err := m.Get(o.Network); err == nil && found.ID == n.ID {
			return nil, &errdefs.Error{
				Op: "connect", What: "container " + idOrName, Kind: errdefs.Conflict, Why: "it is connected to the network " + n.Name + " already",
				Fix: "disconnect it first: onggi network disconnect " + n.Name + " " + idOrName,
			}
		}
	}
	l.Network = n.Name
	e.effective(r)
	links := append(slices.Clone(r.Config.links()), l)
	if r.Status == Running {
		ns, err := e.namespaceOf(r)
		if err != nil {
			return nil, err
		}
		defer ns.Close()
		before, err := h.currentNames()
		if err != nil {
			return nil, err
		}
		want := h.endpoint()
		want.Links = []network.Link{l}
		j, ports, warn, err := m.Connect(ctx, ns, want)
		if err != nil {
			return nil, err
		}
		warnings = warn
		at := &network.Attachment{}
		if r.Network != nil {
			at = r.Network
		}
		at.Networks = append(at.Networks, *j)
		if len(ports) > 0 {
			at.Ports = ports
		}
		at.Settle()
		r.Network, r.Config.Links = at, links
		if err := h.renewNames(before); err != nil {
			return warnings, err
		}
	}
	r.Config.Links, r.Config.Network = links, links[0].Network
	if err := h.write(!e.isPassing(r.ID)); err != nil {
		return warnings, err
	}
	e.Emit(events.Network, "connect", n.ID, map[string]string{"name": n.Name, "type": n.Driver, "container": r.ID})
	return warnings, nil
}

// mayConnect refuses containers that have no network namespace of their own.
func (h *held) mayConnect(n *network.Network) error {
	c := &h.rec.Config
	why := ""
	switch {
	case c.Network == network.Host || n.Name == network.Host:
		why = "container cannot be connected to host network or disconnected from it: that is decided when it is made"
	case c.Network == network.None || n.Name == network.None:
		why = "container cannot be connected to multiple networks with one of the networks in private (none) mode"
	case c.ofContainer() != "":
		why = "container sharing network namespace with another container or host cannot be connected to any other network"
	default:
		return nil
	}
	return &errdefs.Error{Op: "connect", What: "container " + h.rec.Config.Name, Kind: errdefs.Conflict, Why: why, Fix: "make it again with another --network"}
}

// DisconnectNetwork takes a container off a network: at once when it runs, and for all later starts. force: it is no
// error when the container is gone or not connected.
func (e *Engine) DisconnectNetwork(ctx context.Context, idOrName, nameOrID string, force bool) error {
	if err := e.make(); err != nil {
		return err
	}
	e.sweepInterrupted(ctx)
	m, err := e.network()
	if err != nil {
		return err
	}
	n, err := m.Get(nameOrID)
	if err != nil {
		return err
	}
	h, err := e.lock(ctx, idOrName)
	if err != nil {
		if force && errdefs.Is(err, errdefs.NotFound) {
			return nil
		}
		return err
	}
	defer h.unlock()
	r := h.rec
	if err := h.mayConnect(n); err != nil {
		return err
	}
	found := false
	links := slices.DeleteFunc(slices.Clone(r.Config.links()), func(l network.Link) bool {
		o, err := m.Get(l.Network)
		is := err == nil && o.ID == n.ID
		found = found || is
		return is
	})
	if !found {
		if force {
			return nil
		}
		return &errdefs.Error{
			Op: "disconnect", What: "container " + idOrName, Kind: errdefs.NotFound, Why: "container " + r.Config.Name + " is not connected to network " + n.Name,
			Fix: "see: onggi inspect " + idOrName,
		}
	}
	e.effective(r)
	if r.Status == Running {
		ns, err := e.namespaceOf(r)
		if err != nil {
			return err
		}
		defer ns.Close()
		before, err := h.currentNames()
		if err != nil {
			return err
		}
		left, ports, err := m.Disconnect(ctx, ns, r.ID, n.ID)
		if err != nil && !errdefs.Is(err, errdefs.NotFound) {
			return err
		}
		r.Network = &network.Attachment{Networks: left, Ports: ports}
		r.Network.Settle()
		r.Config.Links = links
		if err := h.renewNames(before); err != nil {
			return err
		}
	}
	r.Config.Links, r.Config.Network = links, ""
	if len(links) > 0 {
		r.Config.Network = links[0].Network
	}
	if err := h.write(!e.isPassing(r.ID)); err != nil {
		return err
	}
	e.Emit(events.Network, "disconnect", n.ID, map[string]string{"name": n.Name, "type": n.Driver, "container": r.ID})
	return nil
}

// written are resolv.conf and hosts as they were generated.
type written struct{ resolv, hosts []byte }

// generated returns what the files of names are by the record.
func (h *held) generated() (w written, err error) {
	host, err := hostFacts(&h.rec.Config.Config)
	if err != nil {
		return w, err
	}
	names, err := h.names(host.Hostname)
	if err != nil {
		return w, err
	}
	names.Attachment = h.rec.Network
	dir, err := os.MkdirTemp(h.e.runDir(h.rec.ID), ".names-")
	if err != nil {
		return w, err
	}
	defer os.RemoveAll(dir)
	resolv, hosts := filepath.Join(dir, "resolv.conf"), filepath.Join(dir, "hosts")
	if err := h.writeNames(names, resolv, hosts); err != nil {
		return w, err
	}
	if w.resolv, err = readBounded(resolv, 1<<20); err != nil {
		return w, err
	}
	w.hosts, err = readBounded(hosts, 4<<20)
	return w, err
}

// currentNames returns what was generated for the container as it is now; what differs from it was changed by hand.
func (h *held) currentNames() (written, error) {
	w, err := h.generated()
	if err != nil && (errdefs.Is(err, errdefs.Conflict) || errdefs.Is(err, errdefs.NotFound)) {
		return written{}, nil // a linked container has gone: the files stay as they are
	}
	return w, err
}

// renewNames writes the files of names after the networks have changed, unless they were changed by hand.
func (h *held) renewNames(before written) error {
	after, err := h.currentNames()
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name     string
		old, new []byte
	}{{"resolv.conf", before.resolv, after.resolv}, {"hosts", before.hosts, after.hosts}} {
		path := filepath.Join(h.e.runDir(h.rec.ID), f.name)
		have, err := readBounded(path, 4<<20)
		if errors.Is(err, fs.ErrNotExist) || f.old == nil || !bytes.Equal(have, f.old) || bytes.Equal(f.old, f.new) {
			continue
		}
		if err != nil {
			return err
		}
		// The same file, because it is mounted: no rename.
		if err := os.WriteFile(path, f.new, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// hostnameOf is the host name inside a container.
func (e *Engine) hostnameOf(id string) (string, error) {
	t, err := e.get(id)
	if err != nil {
		return "", err
	}
	host := ""
	switch of := t.Config.ofContainer(); {
	case of != "" && of != id:
		if host, err = e.hostnameOf(of); err != nil {
			return "", err
		}
	case t.Config.Network == network.Host:
		if host, err = os.Hostname(); err != nil {
			return "", err
		}
	}
	return t.Config.EffectiveHostname(t.ID, host)
}

// reviveResolver starts the resolver again when it was killed under running containers.
func (e *Engine) reviveResolver(ctx context.Context) error {
	if !exists(filepath.Join(e.o.RunRoot, "network", resolver.ConfigDir)) {
		return nil
	}
	m, err := e.network()
	if err != nil {
		return err
	}
	return m.Revive(ctx, func(id string) (*os.File, error) {
		r, err := e.get(id)
		if err != nil {
			return nil, err
		}
		if r.Status != Running {
			return nil, notRunning("find", id)
		}
		return e.namespaceOf(r)
	})
}
