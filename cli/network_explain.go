package cli

import (
	"strings"

	"github.com/onggi/onggi/engine"
	"github.com/onggi/onggi/errdefs"
	"github.com/spf13/cobra"
)

func buildNetworkExplain(a *app, c *cobra.Command) {
	var format string
	c.Use = "explain [FLAGS] PORT[/PROTOCOL] | CONTAINER"
	c.Long = `Say who reaches a port of this host or a container, at which address and why; and what stands in the way: rules that are gone,
another table that drops, a process that listens at the same port.`
	c.Example = `  onggi network explain 8080
  onggi network explain 53/udp
  onggi network explain web`
	c.Flags().StringVar(&format, "format", "", "print as `format`: json, or a Go template such as '{{.Subject}}'")
	c.Args = takes(1, 1, "a port or a container")
	c.RunE = func(c *cobra.Command, args []string) error {
		out, err := newFormat(format, c.Flags().Changed("format"))
		if err != nil {
			return err
		}
		e, err := a.open()
		if err != nil {
			return err
		}
		ctx, cancel := a.context(c.Context())
		defer cancel()
		var x *engine.Explanation
		number, protocol, _ := strings.Cut(args[0], "/")
		if n, nerr := parseInt(number, 1, 65535); nerr == nil {
			switch protocol = strings.ToLower(cmpOr(protocol, "tcp")); protocol {
			case "tcp", "udp", "sctp":
			default:
				return &errdefs.Error{Op: "use", What: "the port " + args[0], Kind: errdefs.InvalidArgument, Why: "the protocol is none of tcp, udp, sctp", Fix: "write 80, or 53/udp"}
			}
			x, err = e.ExplainPort(ctx, protocol, uint16(n))
		} else {
			x, err = e.ExplainContainer(ctx, args[0])
		}
		if err != nil {
			return err
		}
		switch {
		case out.tmpl != nil:
			s, err := out.execute(x)
			if err != nil {
				return err
			}
			return a.print(s)
		case out.json:
			b, err := marshal(x, "    ")
			if err != nil {
				return err
			}
			return a.print(string(b))
		}
		var b strings.Builder
		b.WriteString(x.Subject + "\n")
		for _, f := range x.Facts {
			b.WriteString("  " + f + "\n")
		}
		if len(x.Reach) > 0 {
			b.WriteString("who reaches it\n")
			var t strings.Builder
			for _, r := range x.Reach {
				word := "yes"
				if !r.Works {
					word = "no"
				}
				t.WriteString("  " + r.From + "\t" + word + "\t" + r.How + "\n")
			}
			b.WriteString(align(t.String()))
		}
		for i, p := range x.Problems {
			if i == 0 {
				b.WriteString("what stands in the way\n")
			}
			b.WriteString("  " + p.What + "\n    fix: " + p.Fix + "\n")
		}
		return a.print(b.String())
	}
}

func buildNetworkReload(a *app, c *cobra.Command) {
	c.Use = "reload"
	c.Long = `Put right what a firewall's reload, "nft flush ruleset" or "ip link delete" have taken from running containers: rules, published
ports, bridges, forwarding, and the resolver of names. Print what was missing. The next start of a container does it as well.`
	c.Example = `  systemctl reload nftables && onggi network reload`
	c.Args = takes(0, 0, "no arguments")
	c.RunE = func(c *cobra.Command, _ []string) error {
		e, err := a.open()
		if err != nil {
			return err
		}
		ctx, cancel := a.context(c.Context())
		defer cancel()
		repaired, warnings, err := e.ReloadNetworks(ctx)
		for _, w := range warnings {
			a.warn(w)
		}
		if err != nil {
			return err
		}
		var b strings.Builder
		for _, r := range repaired {
			b.WriteString("restored: " + r + "\n")
		}
		return a.print(b.String())
	}
}
