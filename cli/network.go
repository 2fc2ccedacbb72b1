package cli

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/onggi/onggi/engine"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/network"
	"github.com/spf13/cobra"
)

func networkCommands() []command {
	return []command{
		{"create", "Make a network", groupData, buildNetworkCreate},
		{"ls", "List networks", groupData, buildNetworkLs},
		{"inspect", "Print all that is known about networks", groupData, buildNetworkInspect},
		{"connect", "Connect a container to a network", groupData, buildNetworkConnect},
		{"disconnect", "Take a container off a network", groupData, buildNetworkDisconnect},
		{"explain", "Say who reaches a port or a container, and why", groupData, buildNetworkExplain},
		{"reload", "Put rules and bridges right after a firewall's reload", groupData, buildNetworkReload},
		{"rm", "Remove networks", groupData, buildNetworkRm},
		{"prune", "Remove networks that no container uses", groupData, buildNetworkPrune},
	}
}

func buildNetworkCreate(a *app, c *cobra.Command) {
	var (
		n                                            network.Network
		subnets, gateways, ranges, aux, opts, labels []string
		ipv4                                         bool
	)
	c.Use = "create [FLAGS] NETWORK"
	c.Long = `Make a network and print its id. Containers on it find each other by name, and those of other networks do not reach them.

Without --subnet a /24 is chosen that overlaps no route, address or name server of this host and no other network. The gateway
is the first address. With --internal the network has no way out and no published ports.

Drivers: bridge, a network of this host's; macvlan and ipvlan, which make containers neighbours of this host on the network of
one of its interfaces (-o parent=eth0; such containers and this host do not reach each other: that is how the kernel has it).

Options of bridge: com.docker.network.bridge.name, com.docker.network.bridge.enable_icc, com.docker.network.bridge.enable_ip_masquerade,
com.docker.network.bridge.host_binding_ipv4; of macvlan and ipvlan: parent, macvlan_mode, ipvlan_mode, ipvlan_flag; of all:
mtu, com.docker.network.container_iface_prefix.`
	c.Example = `  onggi network create shop
  onggi network create --subnet 10.11.12.0/24 --ip-range 10.11.12.128/25 --aux-address printer=10.11.12.9 lan
  onggi network create --ipv6 --subnet fd00:11:12::/64 six
  onggi network create --internal -o enable_icc=false vault
  onggi network create -d macvlan -o parent=eth0 --subnet 192.0.2.0/24 --gateway 192.0.2.1 --ip-range 192.0.2.128/26 office`
	f := c.Flags()
	f.StringVarP(&n.Driver, "driver", "d", "bridge", "`driver`: bridge, macvlan or ipvlan")
	f.StringArrayVar(&subnets, "subnet", nil, "addresses of the network, as `address/length`; one of IPv4 and one of IPv6")
	f.StringArrayVar(&gateways, "gateway", nil, "`address` of the gateway; one for each subnet")
	f.StringArrayVar(&ranges, "ip-range", nil, "part of the subnet, as `address/length`, from which addresses are given to those who ask for none")
	f.StringArrayVar(&aux, "aux-address", nil, "`name=address` that others have: it is never given")
	f.BoolVar(&n.Internal, "internal", false, "no way out, and none in")
	f.BoolVar(&n.IPv6, "ipv6", false, "IPv6 as well")
	f.BoolVar(&ipv4, "ipv4", true, "IPv4 (a network without it is not supported)")
	f.BoolVar(&n.Attachable, "attachable", false, "kept in the record; every network is")
	f.StringArrayVar(&labels, "label", nil, "label the network with `KEY=VALUE`")
	f.StringArrayVarP(&opts, "opt", "o", nil, "option of the driver, `KEY=VALUE`")
	f.String("scope", "", "")
	f.Lookup("scope").Hidden = true
	c.Args = takes(1, 1, "the name of a network")
	c.RunE = func(c *cobra.Command, args []string) error {
		n.Name = args[0]
		if !ipv4 {
			return badFlag("--ipv4", "false", "a network without IPv4 is not supported", "leave it out, and add --ipv6 for both")
		}
		if s, _ := c.Flags().GetString("scope"); s != "" && s != "local" {
			return badFlag("--scope", s, "there is no cluster here", "leave it out")
		}
		if n.Driver == "host" || n.Driver == "null" || n.Driver == "none" {
			return badFlag("--driver", n.Driver, "only one instance of \""+n.Driver+"\" network is allowed, and every store has it", "use --network "+n.Driver+" with run")
		}
		var err error
		if n.Labels, err = keyValues("--label", labels, true); err != nil {
			return err
		}
		if n.Options, err = keyValues("--opt", opts, true); err != nil {
			return err
		}
		if err := readSubnets(&n, subnets, gateways, ranges, aux); err != nil {
			return err
		}
		for _, s := range n.Subnets {
			n.IPv6 = n.IPv6 || s.Prefix.Addr().Is6()
		}
		e, err := a.open()
		if err != nil {
			return err
		}
		ctx, cancel := a.context(c.Context())
		defer cancel()
		made, warnings, err := e.CreateNetwork(ctx, n)
		if err != nil {
			return err
		}
		for _, w := range warnings {
			a.warn(w)
		}
		return a.print(made.ID + "\n")
	}
}

// readSubnets puts gateways, ranges and auxiliary addresses to the subnets that they are in.
func readSubnets(n *network.Network, subnets, gateways, ranges, aux []string) error {
	for _, s := range subnets {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return reading("--subnet", s, &errdefs.Error{Why: "it is not a network", Fix: "write --subnet 10.11.12.0/24"})
		}
		n.Subnets = append(n.Subnets, network.Subnet{Prefix: p})
	}
	of := func(flag, s string, a netip.Addr) (*network.Subnet, error) {
		for i := range n.Subnets {
			if n.Subnets[i].Prefix.Contains(a) {
				return &n.Subnets[i], nil
			}
		}
		return nil, reading(flag, s, &errdefs.Error{Why: "no matching subnet: it is in none of those of --subnet", Fix: "add --subnet with the network that it is in"})
	}
	for _, s := range gateways {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return reading("--gateway", s, &errdefs.Error{Why: "it is not an IP address", Fix: "write --gateway 10.11.12.1"})
		}
		sub, err := of("--gateway", s, a)
		if err != nil {
			return err
		}
		if sub.Gateway.IsValid() {
			return reading("--gateway", s, &errdefs.Error{Why: "the subnet has a gateway already", Fix: "leave one out"})
		}
		sub.Gateway = a
	}
	for _, s := range ranges {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return reading("--ip-range", s, &errdefs.Error{Why: "it is not a network", Fix: "write --ip-range 10.11.12.128/25"})
		}
		sub, err := of("--ip-range", s, p.Addr())
		if err != nil {
			return err
		}
		if sub.Range.IsValid() {
			return reading("--ip-range", s, &errdefs.Error{Why: "the subnet has a range already", Fix: "leave one out"})
		}
		sub.Range = p
	}
	for _, s := range aux {
		name, text, ok := strings.Cut(s, "=")
		a, err := netip.ParseAddr(text)
		if !ok || name == "" || err != nil {
			return reading("--aux-address", s, &errdefs.Error{Why: "it is not NAME=ADDRESS", Fix: "write --aux-address printer=10.11.12.9"})
		}
		sub, err := of("--aux-address", s, a)
		if err != nil {
			return err
		}
		if sub.Aux == nil {
			sub.Aux = map[string]netip.Addr{}
		}
		sub.Aux[name] = a
	}
	return nil
}

// networkRow is a line of `network ls`. Its fields are those of docker's format.
type networkRow struct {
	CreatedAt string
	Driver    string
	ID        string
	IPv4      string
	IPv6      string
	Internal  string
	Labels    string
	Name      string
	Scope     string
}

// Label is docker's template function: the value of one label.
func (r networkRow) Label(key string) string { return volumeRow{Labels: r.Labels}.Label(key) }

func buildNetworkLs(a *app, c *cobra.Command) {
	var (
		filters        []string
		quiet, noTrunc bool
		format         string
	)
	c.Use = "ls [FLAGS]"
	c.Long = `List networks by name. Every store has bridge, the network of containers that name none; host, this host's own; and none.`
	c.Example = `  onggi network ls
  onggi network ls -f driver=bridge -f type=custom
  onggi network ls --format '{{.Name}} {{.Driver}}'`
	f := c.Flags()
	f.StringArrayVarP(&filters, "filter", "f", nil, "only what `condition` says: driver=NAME, id=PREFIX, name=PART, label=KEY[=VALUE], scope=local, type=custom|builtin, dangling=true|false")
	f.BoolVarP(&quiet, "quiet", "q", false, "print ids only")
	f.BoolVar(&noTrunc, "no-trunc", false, "print whole ids")
	f.StringVar(&format, "format", "", formatUsage)
	c.Args = takes(0, 0, "no arguments")
	c.RunE = func(c *cobra.Command, args []string) error {
		out, err := newFormat(format, c.Flags().Changed("format"))
		if err != nil {
			return err
		}
		e, err := a.open()
		if err != nil {
			return err
		}
		keep, err := networkFilter(e, filters)
		if err != nil {
			return err
		}
		list, err := e.ListNetworks()
		if err != nil {
			return err
		}
		rows := []networkRow{}
		var ids strings.Builder
		for _, n := range list {
			if !keep(n) {
				continue
			}
			id := n.ID
			if !noTrunc {
				id = shortID(id)
			}
			ids.WriteString(id + "\n")
			rows = append(rows, networkRow{
				CreatedAt: n.Created.Local().Format("2006-01-02 15:04:05.999999999 -0700 MST"), Driver: n.Driver, ID: id, Name: n.Name, Scope: "local",
				IPv4: strconv.FormatBool(n.Driver != "host" && n.Driver != "null"), IPv6: strconv.FormatBool(n.IPv6), Internal: strconv.FormatBool(n.Internal),
				Labels: labelText(n.Labels),
			})
		}
		if quiet {
			return a.print(ids.String())
		}
		return writeRows(a, out, rows, []column[networkRow]{
			{"NETWORK ID", func(r networkRow) string { return r.ID }},
			{"NAME", func(r networkRow) string { return r.Name }},
			{"DRIVER", func(r networkRow) string { return r.Driver }},
			{"SCOPE", func(r networkRow) string { return r.Scope }},
		})
	}
}

// networkFilter reads docker's filters: the values of one key are alternatives, but of labels all must be there. A name
// is a regular expression, as docker has it.
func networkFilter(e *engine.Engine, list []string) (func(*engine.Network) bool, error) {
	var labels engine.PruneOptions
	by := map[string][]func(*engine.Network) bool{}
	for _, s := range list {
		key, value, ok := strings.Cut(s, "=")
		if !ok || value == "" {
			return nil, reading("--filter", s, errorText("it is not KEY=VALUE"))
		}
		var is func(*engine.Network) bool
		switch key {
		case "driver":
			is = func(n *engine.Network) bool { return n.Driver == value }
		case "id":
			is = func(n *engine.Network) bool { return strings.HasPrefix(n.ID, value) }
		case "name":
			re, err := regexp.Compile(value)
			if err != nil {
				return nil, reading("--filter", s, errorText("it is not a regular expression"))
			}
			is = func(n *engine.Network) bool { return re.MatchString(n.Name) }
		case "scope":
			is = func(*engine.Network) bool { return value == "local" }
		case "type":
			if value != "custom" && value != "builtin" {
				return nil, reading("--filter", s, &errdefs.Error{Why: "there is no such type", Fix: "use custom or builtin"})
			}
			is = func(n *engine.Network) bool { return n.Predefined() == (value == "builtin") }
		case "dangling":
			on, err := parseBool(value, true)
			if err != nil {
				return nil, reading("--filter", s, err)
			}
			unused, err := e.UnusedNetworks(nil)
			if err != nil {
				return nil, err
			}
			is = func(n *engine.Network) bool {
				return on == slices.ContainsFunc(unused, func(u *network.Network) bool { return u.ID == n.ID })
			}
		case "label":
			labels.Label = append(labels.Label, value)
			continue
		case "label!":
			labels.Label = append(labels.Label, "!"+value)
			continue
		default:
			return nil, reading("--filter", s, &errdefs.Error{Why: "there is no such filter", Fix: "use dangling, driver, id, label, name, scope or type"})
		}
		by[key] = append(by[key], is)
	}
	return func(n *engine.Network) bool {
		for _, any := range by {
			if !slices.ContainsFunc(any, func(is func(*engine.Network) bool) bool { return is(n) }) {
				return false
			}
		}
		return labels.Chosen(n.Created, n.Labels)
	}, nil
}

// networkInspectJSON is docker's answer (Docker Engine API, NetworkInspect).
type networkInspectJSON struct {
	Name       string
	ID         string `json:"Id"`
	Created    string
	Scope      string
	Driver     string
	EnableIPv4 bool
	EnableIPv6 bool
	IPAM       ipamJSON
	Internal   bool
	Attachable bool
	Ingress    bool
	ConfigFrom map[string]string
	ConfigOnly bool
	Containers map[string]networkContainerJSON
	Options    map[string]string
	Labels     map[string]string
	Interface  string `json:",omitempty"` // the bridge or parent: not docker's
}

type ipamJSON struct {
	Driver  string
	Options map[string]string
	Config  []ipamConfigJSON
}

type ipamConfigJSON struct {
	Subnet             string
	IPRange            string            `json:",omitempty"`
	Gateway            string            `json:",omitempty"`
	AuxiliaryAddresses map[string]string `json:",omitempty"`
}

type networkContainerJSON struct {
	Name        string
	EndpointID  string
	MacAddress  string
	IPv4Address string
	IPv6Address string
}

func inspectOneNetwork(n *engine.Network) networkInspectJSON {
	some := func(m map[string]string) map[string]string {
		if m == nil {
			return map[string]string{}
		}
		return m
	}
	j := networkInspectJSON{
		Name: n.Name, ID: n.ID, Created: n.Created.Format(time.RFC3339Nano), Scope: "local", Driver: n.Driver,
		EnableIPv4: n.Driver != "host" && n.Driver != "null", EnableIPv6: n.IPv6,
		IPAM: ipamJSON{Driver: "default", Config: []ipamConfigJSON{}}, Internal: n.Internal, Attachable: n.Attachable,
		ConfigFrom: map[string]string{"Network": ""}, Containers: map[string]networkContainerJSON{}, Options: some(n.Options), Labels: some(n.Labels),
		Interface: n.Interface,
	}
	for _, s := range n.Subnets {
		c := ipamConfigJSON{Subnet: s.Prefix.String(), Gateway: address(s.Gateway)}
		if s.Range.IsValid() {
			c.IPRange = s.Range.String()
		}
		for name, a := range s.Aux {
			if c.AuxiliaryAddresses == nil {
				c.AuxiliaryAddresses = map[string]string{}
			}
			c.AuxiliaryAddresses[name] = a.String()
		}
		j.IPAM.Config = append(j.IPAM.Config, c)
	}
	for id, k := range n.Containers {
		c := networkContainerJSON{Name: k.Name, MacAddress: k.MAC}
		if k.IPv4.IsValid() {
			c.IPv4Address = k.IPv4.String()
			c.EndpointID = id[:32] + n.ID[:32] // ours have no id but that of both ends
		}
		if k.IPv6.IsValid() {
			c.IPv6Address = k.IPv6.String()
		}
		j.Containers[id] = c
	}
	return j
}

func buildNetworkInspect(a *app, c *cobra.Command) {
	var format string
	c.Use = "inspect [FLAGS] NETWORK [NETWORK...]"
	c.Long = `Print all that is known about networks and who is connected to them, as a JSON array with docker's fields, or by a Go template.`
	c.Example = `  onggi network inspect shop
  onggi network inspect -f '{{range .IPAM.Config}}{{.Subnet}}{{end}}' shop`
	c.Flags().StringVarP(&format, "format", "f", "", "print as `format`: json, or a Go template such as '{{.Driver}}'")
	c.Flags().BoolP("verbose", "v", false, "accepted for docker's users, whose clusters print more")
	c.Args = takes(1, -1, "the names or ids of networks")
	c.RunE = func(c *cobra.Command, args []string) error {
		out, err := newFormat(format, c.Flags().Changed("format"))
		if err != nil {
			return err
		}
		e, err := a.open()
		if err != nil {
			return err
		}
		return inspectEach(a, out, args, func(name string) (any, error) {
			n, err := e.GetNetwork(name)
			if err != nil {
				return nil, err
			}
			return inspectOneNetwork(n), nil
		})
	}
}

func buildNetworkConnect(a *app, c *cobra.Command) {
	var (
		f        containerFlags
		priority int
	)
	c.Use = "connect [FLAGS] NETWORK CONTAINER"
	c.Long = `Connect a container to one more network: at once when it runs, and at every start. The way out stays where it is.`
	c.Example = `  onggi network connect shop web
  onggi network connect --alias db --ip 10.11.12.13 shop postgres`
	fs := c.Flags()
	fs.StringVar(&f.ip, "ip", "", "IPv4 `address` on the network")
	fs.StringVar(&f.ip6, "ip6", "", "IPv6 `address` on the network")
	fs.StringVar(&f.macAddress, "mac-address", "", "hardware `address` on the network")
	fs.StringArrayVar(&f.networkAlias, "alias", nil, "`name` under which others on the network find the container; repeat it")
	fs.IntVar(&priority, "gw-priority", 0, "`number`: the network with the highest has the way out, from the next start on")
	c.Args = takes(2, 2, "a network and a container")
	c.RunE = func(c *cobra.Command, args []string) error {
		f.network = []string{args[0]}
		var cfg engine.Config
		if strings.ContainsAny(args[0], "=:,") {
			return reading("the network", args[0], errorText("it is not the name of a network"))
		}
		if err := f.networks(&cfg); err != nil {
			return err
		}
		l := network.Link{Network: args[0]}
		if len(cfg.Links) == 1 {
			l = cfg.Links[0]
		}
		l.Priority = priority
		e, err := a.open()
		if err != nil {
			return err
		}
		ctx, cancel := a.context(c.Context())
		defer cancel()
		warnings, err := e.ConnectNetwork(ctx, args[1], l)
		for _, w := range warnings {
			a.warn(w)
		}
		return err
	}
}

func buildNetworkDisconnect(a *app, c *cobra.Command) {
	var force bool
	c.Use = "disconnect [FLAGS] NETWORK CONTAINER"
	c.Long = `Take a container off a network: at once when it runs, and for all later starts. Published ports and the way out move to
another of its networks, if there is one.`
	c.Example = `  onggi network disconnect shop web`
	c.Flags().BoolVarP(&force, "force", "f", false, "it is no error when the container is gone or not connected")
	c.Args = takes(2, 2, "a network and a container")
	c.RunE = func(c *cobra.Command, args []string) error {
		e, err := a.open()
		if err != nil {
			return err
		}
		ctx, cancel := a.context(c.Context())
		defer cancel()
		return e.DisconnectNetwork(ctx, args[1], args[0], force)
	}
}

func buildNetworkRm(a *app, c *cobra.Command) {
	var force bool
	c.Use = "rm [FLAGS] NETWORK [NETWORK...]"
	c.Long = `Remove networks that no running container is connected to. A container that ended and names the network cannot start until it
is made again.`
	c.Example = `  onggi network rm shop`
	c.Flags().BoolVarP(&force, "force", "f", false, "it is no error when there is no such network")
	c.Args = takes(1, -1, "the names or ids of networks")
	c.RunE = func(c *cobra.Command, args []string) error {
		e, err := a.open()
		if err != nil {
			return err
		}
		ctx, cancel := a.context(c.Context())
		defer cancel()
		return a.forEach(ctx, args, func(ctx context.Context, name string) (string, error) {
			_, err := e.RemoveNetwork(ctx, name)
			if force && errdefs.Is(err, errdefs.NotFound) {
				return "", nil
			}
			if err != nil {
				return "", err
			}
			return name, nil
		})
	}
}

func buildNetworkPrune(a *app, c *cobra.Command) {
	var (
		force   bool
		filters []string
	)
	c.Use = "prune [FLAGS]"
	c.Long = `Remove networks that no container uses, whether it runs or not.`
	c.Example = `  onggi network prune -f
  onggi network prune --filter until=24h --filter label!=keep`
	c.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	c.Flags().StringArrayVar(&filters, "filter", nil, "only what `condition` says: until=TIME, label=KEY[=VALUE], label!=KEY[=VALUE]")
	c.Args = takes(0, 0, "no arguments")
	c.RunE = func(c *cobra.Command, args []string) error {
		var o engine.PruneOptions
		if err := pruneFilters(filters, &o); err != nil {
			return err
		}
		e, err := a.open()
		if err != nil {
			return err
		}
		unused, err := e.UnusedNetworks(func(n *network.Network) bool { return o.Chosen(n.Created, n.Labels) })
		if err != nil {
			return err
		}
		if len(unused) == 0 {
			return nil
		}
		if !force {
			if err := a.confirm(fmt.Sprintf("Remove %d networks that no container uses? [y/N] ", len(unused))); err != nil {
				return err
			}
		}
		ctx, cancel := a.context(c.Context())
		defer cancel()
		var b strings.Builder
		var last error
		for _, n := range unused {
			if _, err := e.RemoveNetwork(ctx, n.ID); err != nil {
				if last != nil {
					a.report(last)
				}
				last = err
				continue
			}
			b.WriteString(n.Name + "\n")
		}
		if b.Len() > 0 {
			if err := a.print("Deleted Networks:\n" + b.String() + "\n"); err != nil {
				return err
			}
		}
		return last
	}
}
