package cli

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/onggi/onggi/engine"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/spec"
	"github.com/spf13/cobra"
)

func buildStop(a *app, c *cobra.Command) {
	var f stopFlags
	c.Use = "stop [FLAGS] CONTAINER [CONTAINER...]"
	c.Long = `Send containers their stop signal (SIGTERM, or what --stop-signal or the image says), wait, and kill those that have
not ended by then. Several containers are stopped at the same time.`
	c.Example = `  onggi stop web db
  onggi stop -t 60 db                           a minute to write everything down
  onggi stop $(onggi ps -q)                     all that run`
	f.add(c)
	c.Args = takes(1, -1, "the names or ids of containers")
	c.RunE = func(c *cobra.Command, args []string) error {
		o, err := f.options(c)
		if err != nil {
			return err
		}
		return a.each(c, args, func(ctx context.Context, name string) (string, error) {
			e, err := a.open()
			if err != nil {
				return "", err
			}
			return name, e.StopWith(ctx, name, o)
		})
	}
}

func buildKill(a *app, c *cobra.Command) {
	var signal string
	c.Use = "kill [FLAGS] CONTAINER [CONTAINER...]"
	c.Long = `Send a signal to the first process of running containers. Process 1 of a container gets only signals that it has a
handler for, except SIGKILL and SIGSTOP.`
	c.Example = `  onggi kill web
  onggi kill -s HUP web                         read the configuration again
  onggi kill -s RTMIN+3 init`
	c.Flags().StringVarP(&signal, "signal", "s", "KILL", "`signal` by name or number")
	c.Args = takes(1, -1, "the names or ids of containers")
	c.RunE = func(c *cobra.Command, args []string) error {
		n, err := spec.ParseSignal("--signal", signal)
		if err != nil {
			return &exit{125, err}
		}
		return a.each(c, args, func(ctx context.Context, name string) (string, error) {
			e, err := a.open()
			if err != nil {
				return "", err
			}
			return name, e.Kill(ctx, name, n)
		})
	}
}

func buildWait(a *app, c *cobra.Command) {
	var condition string
	c.Use = "wait [FLAGS] CONTAINER [CONTAINER...]"
	c.Long = `Wait until containers do not run, or another condition holds, and print their exit codes, one a line. A container's log is
complete by then. Conditions: not-running, next-exit (of a run that goes on or begins later), removed, and the states created,
running, paused, exited and stopped.`
	c.Example = `  onggi wait job
  test $(onggi wait job) = 0 && echo good
  onggi wait --condition removed job`
	c.Flags().StringVar(&condition, "condition", "not-running", "wait for `condition`")
	c.Args = takes(1, -1, "the names or ids of containers")
	c.RunE = func(c *cobra.Command, args []string) error {
		if !slices.Contains(engine.WaitConditions(), condition) {
			return reading("--condition", condition, &errdefs.Error{Why: "there is no such condition", Fix: "use one of: " + strings.Join(engine.WaitConditions(), ", ")})
		}
		return a.each(c, args, func(ctx context.Context, name string) (string, error) {
			e, err := a.open()
			if err != nil {
				return "", err
			}
			x, err := e.WaitFor(ctx, name, condition)
			if err != nil {
				return "", err
			}
			return strconv.Itoa(x.Code), nil
		})
	}
}

func buildRm(a *app, c *cobra.Command) {
	var force, volumes bool
	c.Use = "rm [FLAGS] CONTAINER [CONTAINER...]"
	c.Long = `Remove containers: their record, their writable layer and their log. A running one is refused unless forced. Named
volumes stay.`
	c.Example = `  onggi rm old
  onggi rm -f web                               kill it first
  onggi rm -fv $(onggi ps -aq)                  all containers, and their anonymous volumes`
	c.Flags().BoolVarP(&force, "force", "f", false, "kill it if it runs; one that does not exist is no error")
	c.Flags().BoolVarP(&volumes, "volumes", "v", false, "remove its anonymous volumes too")
	refuse(c.Flags(), []refusal{{"link", "there are no links to remove: --link is a name in the network", "disconnect it: onggi network disconnect NETWORK CONTAINER"}})
	c.Args = takes(1, -1, "the names or ids of containers")
	c.RunE = func(c *cobra.Command, args []string) error {
		return a.each(c, args, func(ctx context.Context, name string) (string, error) {
			e, err := a.open()
			if err != nil {
				return "", err
			}
			err = e.Remove(ctx, name, force, volumes)
			if force && errdefs.Is(err, errdefs.NotFound) {
				return "", nil
			}
			return name, err
		})
	}
}

// each is forEach with the engine opened and a context that signals end.
func (a *app) each(c *cobra.Command, args []string, do func(context.Context, string) (string, error)) error {
	if _, err := a.open(); err != nil { // once, before the workers ask for it
		return err
	}
	ctx, cancel := a.context(c.Context())
	defer cancel()
	return a.forEach(ctx, args, do)
}

func buildCleanup(a *app, c *cobra.Command) {
	c.Use = "container-cleanup CONTAINER"
	c.Long = `Do what follows a container's exit: release its network, record its end, remove it if that was asked for. The
container's monitor runs this when no client does. Running it again changes nothing.`
	c.Args = takes(1, 1, "the id of a container")
	c.RunE = func(c *cobra.Command, args []string) error {
		e, err := a.open()
		if err != nil {
			return err
		}
		if err := e.Cleanup(c.Context(), args[0]); err != nil {
			return err
		}
		return e.SweepTrash(c.Context()) // nobody waits for this process
	}
}
