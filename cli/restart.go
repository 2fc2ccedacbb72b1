package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/onggi/onggi/engine"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/network"
	"github.com/onggi/onggi/spec"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// stopFlags are how stop and restart end a container.
type stopFlags struct{ seconds, signal string }

func (f *stopFlags) add(c *cobra.Command) {
	fs := c.Flags()
	fs.StringVarP(&f.seconds, "time", "t", "", "`seconds` to wait before killing, -1 for ever (default the container's --stop-timeout, or 10)")
	fs.StringVarP(&f.signal, "signal", "s", "", "`signal` to send (default the container's --stop-signal, the image's, or SIGTERM)")
	fs.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if name == "timeout" { // docker's newer spelling
			name = "time"
		}
		return pflag.NormalizedName(name)
	})
}

// options reads the flags.
func (f *stopFlags) options(c *cobra.Command) (o engine.StopOptions, err error) {
	if c.Flags().Changed("time") {
		n, err := parseInt(f.seconds, -1, 1<<31-1)
		if err != nil {
			return o, reading("--time", f.seconds, err)
		}
		d := time.Duration(n) * time.Second
		o.Timeout = &d
	}
	if c.Flags().Changed("signal") {
		if o.Signal, err = spec.ParseSignal("--signal", f.signal); err != nil {
			return o, &exit{125, err}
		}
	}
	return o, nil
}

func buildRestart(a *app, c *cobra.Command) {
	var f stopFlags
	c.Use = "restart [FLAGS] CONTAINER [CONTAINER...]"
	c.Long = `Stop containers as onggi stop does, and start them again. One that does not run is only started, one that is paused goes on
first, and one made with --rm stays over the restart.`
	c.Example = `  onggi restart web
  onggi restart -t 60 db                        a minute to write everything down`
	f.add(c)
	c.Args = takes(1, -1, "the names or ids of containers")
	c.RunE = func(c *cobra.Command, args []string) error {
		o, err := f.options(c)
		if err != nil {
			return err
		}
		return a.each(c, args, func(ctx context.Context, name string) (string, error) {
			return name, a.engine.Restart(ctx, name, o)
		})
	}
}

func buildPause(a *app, c *cobra.Command) {
	c.Use = "pause CONTAINER [CONTAINER...]"
	c.Long = `Let all processes of containers stand still where they are, by their control groups' freezer. Their memory, files and
connections stay; time goes on. onggi unpause lets them go on, onggi stop and rm -f end them.`
	c.Example = `  onggi pause db && onggi cp db:/var/lib/db backup; onggi unpause db`
	c.Args = takes(1, -1, "the names or ids of containers")
	c.RunE = func(c *cobra.Command, args []string) error {
		return a.each(c, args, func(ctx context.Context, name string) (string, error) { return name, a.engine.Pause(ctx, name) })
	}
}

func buildUnpause(a *app, c *cobra.Command) {
	c.Use = "unpause CONTAINER [CONTAINER...]"
	c.Long = `Let the processes of paused containers go on.`
	c.Example = `  onggi unpause db`
	c.Args = takes(1, -1, "the names or ids of containers")
	c.RunE = func(c *cobra.Command, args []string) error {
		return a.each(c, args, func(ctx context.Context, name string) (string, error) { return name, a.engine.Unpause(ctx, name) })
	}
}

func buildRename(a *app, c *cobra.Command) {
	c.Use = "rename CONTAINER NAME"
	c.Long = `Give a container, running or not, another name.`
	c.Example = `  onggi rename web web-old`
	c.Args = takes(2, 2, "a container and its new name")
	c.RunE = func(c *cobra.Command, args []string) error {
		e, err := a.open()
		if err != nil {
			return err
		}
		ctx, cancel := a.context(c.Context())
		defer cancel()
		return e.Rename(ctx, args[0], strings.TrimPrefix(args[1], "/"))
	}
}

func buildPort(a *app, c *cobra.Command) {
	c.Use = "port CONTAINER [PORT[/PROTOCOL]]"
	c.Long = `Print where the ports of a running container are published on this host: all of them, or those of one port, whose
protocol is tcp unless it says otherwise.`
	c.Example = `  onggi port web
  curl $(onggi port web 80)`
	c.Args = takes(1, 2, "a container, and one of its ports")
	c.RunE = func(_ *cobra.Command, args []string) error {
		var want network.Port
		if len(args) == 2 {
			number, protocol, _ := strings.Cut(args[1], "/")
			n, err := parseInt(number, 1, 65535)
			if err != nil {
				return &errdefs.Error{Op: "use", What: "the port " + args[1], Kind: errdefs.InvalidArgument, Err: err, Fix: "write 80, or 53/udp"}
			}
			want.ContainerPort, want.Protocol = uint16(n), strings.ToLower(cmpOr(protocol, "tcp"))
		}
		e, err := a.open()
		if err != nil {
			return err
		}
		k, err := e.Get(args[0])
		if err != nil {
			return err
		}
		var b strings.Builder
		if k.Network != nil && k.Status == engine.Running {
			for _, p := range sortedPorts(k.Network.Ports) {
				if want.ContainerPort == 0 {
					fmt.Fprintf(&b, "%d/%s -> %s\n", p.ContainerPort, p.Protocol, hostAddress(p))
				} else if p.ContainerPort == want.ContainerPort && p.Protocol == want.Protocol {
					b.WriteString(hostAddress(p) + "\n")
				}
			}
		}
		if b.Len() == 0 && want.ContainerPort != 0 {
			return &errdefs.Error{
				Op: "find", What: "the port " + args[1] + " of " + args[0], Kind: errdefs.NotFound,
				Why: fmt.Sprintf("no public port '%d/%s' published for %s", want.ContainerPort, want.Protocol, args[0]),
				Fix: "see what is published: onggi port " + args[0],
			}
		}
		return a.print(b.String())
	}
}

// hostAddress is where a port is published: 0.0.0.0:8080.
func hostAddress(p network.Port) string {
	ip := "0.0.0.0"
	if p.HostIP.IsValid() {
		if ip = p.HostIP.String(); p.HostIP.Is6() {
			ip = "[" + ip + "]"
		}
	}
	return fmt.Sprintf("%s:%d", ip, p.HostPort)
}

// cmpOr is the first string that is not empty.
func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
