package cli

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/onggi/onggi/build"
	"github.com/onggi/onggi/errdefs"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

func buildBuildDebug(a *app, c *cobra.Command) {
	var secrets, agents, allow []string
	c.Use = "debug [FLAGS] [BUILD [COMMAND [ARGUMENT...]]]"
	c.Long = `Open a shell in the step that failed: its file system as the command left it, its environment, user, working directory,
network and mounts. What you change is gone when you leave; the next time begins where the step failed. Secrets, agents
and --allow are not kept: give them again if the step had them. Without a terminal the shell reads standard input.

The step is kept for a day, or until onggi builder prune. BUILD is the last build by default; "-" says so before a COMMAND.`
	c.Example = `  onggi build debug
  onggi build debug 3f9a
  onggi build debug - cat /src/config.log
  onggi build debug --secret id=token,src=$HOME/.token`
	f := c.Flags()
	f.StringArrayVar(&secrets, "secret", nil, "give a RUN --mount=type=secret a value: `id=ID[,src=FILE|,env=NAME]`")
	f.StringArrayVar(&agents, "ssh", nil, "give a RUN --mount=type=ssh an agent: `default`, or ID=SOCKET")
	f.StringArrayVar(&allow, "allow", nil, "allow the step an `entitlement` again: network.host, security.insecure")
	f.SetInterspersed(false)
	c.Args = takes(0, -1, "a build, and a command with its arguments")
	c.RunE = func(c *cobra.Command, args []string) error {
		if os.Getenv(insideNamespace) == "" {
			return a.inNamespace()
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
			return &errdefs.Error{Op: "prepare", What: "the build's mount namespace", Kind: errdefs.KindOf(err), Err: err}
		}
		id := first(args)
		if id == "-" {
			id = ""
		}
		var o build.Options
		var err error
		if o.Allow, err = buildAllow(allow); err != nil {
			return err
		}
		if o.Secrets, err = buildSecrets(secrets); err != nil {
			return err
		}
		if o.Agents, err = buildAgents(agents); err != nil {
			return err
		}
		return exitWith(a.debugBuild(c.Context(), id, o, args[min(1, len(args)):]))
	}
}

func (a *app) debugBuild(parent context.Context, id string, o build.Options, args []string) (err error) {
	e, _, rec, err := a.lookedUp(id)
	if err != nil {
		return err
	}
	if rec.Kept == nil && id == "" { // the last build that failed is meant
		h, err := e.BuildHistory()
		if err != nil {
			return err
		}
		kept, err := h.Kept()
		if err != nil {
			return err
		}
		if len(kept) == 0 {
			return &errdefs.Error{
				Op: "debug", What: "the last build that failed", Kind: errdefs.NotFound, Why: "no failed step is kept",
				Fix: "build it again; a step that fails in a RUN is kept for a day, or until builder prune",
			}
		}
		rec = kept[0]
	}
	ctx, cancel := a.inherited(parent)
	defer cancel()
	terminal := term.IsTerminal(int(a.in.Fd())) && term.IsTerminal(int(a.out.Fd()))
	r := &running{app: a, name: "the failed step", rm: true, tty: terminal, sigProxy: !terminal, streams: streams{in: true, out: true, err: true}}
	stop, err := r.listen(cancel)
	if err != nil {
		return err
	}
	defer stop()
	sh, err := build.Debug(ctx, e, rec, o, args)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sh.Close(parent)) }()
	if terminal && len(args) == 0 {
		p := a.paint(a.err)
		fmt.Fprintf(a.err, "%s\nwhat failed: %s\n", p.bold(printable(sh.Step)), printable(sh.Command))
	}
	cfg := sh.Config
	cfg.AutoRemove, cfg.OpenStdin, cfg.Tty = true, true, terminal
	if err := r.toRaw(); err != nil {
		return err
	}
	defer r.restore()
	s, err := e.Run(ctx, cfg, nil, r.startOptions())
	if err != nil {
		r.restore()
		return err
	}
	return r.stay(parent, e, s)
}
