package cli

import (
	"context"
	"errors"
	"time"

	"github.com/onggi/onggi/engine"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/runtime/monitor"
	"github.com/spf13/cobra"
)

func buildAttach(a *app, c *cobra.Command) {
	var (
		noStdin, sigProxy bool
		keys              string
	)
	c.Use = "attach [FLAGS] CONTAINER"
	c.Long = `Attach this command's streams to a running container: what it writes from now on is printed, and its input is this
command's, if it was made with -i. This command ends with the container and with its exit code. Signals go to the container
(without a terminal); with a terminal the detach keys leave it, and it goes on.`
	c.Example = `  onggi attach web
  onggi attach --no-stdin web                   only look
  onggi attach --detach-keys ctrl-x,d shell`
	c.Flags().BoolVar(&noStdin, "no-stdin", false, "do not attach stdin")
	c.Flags().BoolVar(&sigProxy, "sig-proxy", true, "send signals on to the container (without a terminal)")
	c.Flags().StringVar(&keys, "detach-keys", "", detachKeysUsage+" (default "+defaultDetachKeys+")")
	c.Args = takes(1, 1, "the name or id of a container")
	c.RunE = func(c *cobra.Command, args []string) error {
		r := &running{app: a, name: args[0], later: true}
		var err error
		if r.keys, err = readDetachKeys(keys); err != nil {
			return err
		}
		e, err := a.open()
		if err != nil {
			return err
		}
		k, err := e.Get(args[0])
		if err != nil {
			return err
		}
		r.tty, r.rm, r.sigProxy = k.Config.Tty, k.Config.AutoRemove, sigProxy && !k.Config.Tty
		r.streams = streams{in: k.Config.OpenStdin && !noStdin, out: true, err: true}
		if r.tty && r.streams.in && k.Status == engine.Running {
			if err := a.needTerminal("attach"); err != nil {
				return err
			}
		}
		return r.attach(c.Context(), e)
	}
}

// attach joins a container that runs and stays with it.
func (r *running) attach(parent context.Context, e *engine.Engine) error {
	ctx, cancel := context.WithCancel(parent)
	defer cancel()
	stop, err := r.listen(cancel)
	if err != nil {
		return err
	}
	defer stop()
	if r.tty {
		if err := r.toRaw(); err != nil {
			return err
		}
		defer r.restore()
	}
	o := r.startOptions()
	s, err := e.Attach(ctx, r.name, engine.AttachOptions{Stdin: o.Stdin, Stdout: o.Stdout, Stderr: o.Stderr})
	if err != nil {
		r.restore()
		return err
	}
	if w, h := r.size(); r.tty && w > 0 && h < 1<<16-1 {
		// Another size and then the true one: the program in there draws its screen again.
		_ = s.Client.Resize(ctx, w, h+1)
	}
	return r.stay(parent, e, s)
}

// wait waits for the container's end. Who has come later leaves what follows it to others.
func (r *running) wait(ctx context.Context, e *engine.Engine, s *engine.Session) (*monitor.Exit, error) {
	if !r.later {
		return e.Finish(ctx, s)
	}
	x, err := s.Client.Wait(ctx)
	if errdefs.Is(err, errdefs.Unavailable) && ctx.Err() == nil {
		return nil, errors.Join(err, e.Cleanup(ctx, s.Container.ID)) // its monitor was killed
	}
	return x, err
}

// drain has what was typed before the detach keys arrive, as far as the container takes it.
func (r *running) drain(c *monitor.Client) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := c.Drain(ctx); err != nil {
		r.debugf("what was typed last: %v", err)
	}
}

// leave is what the detach keys do.
func (r *running) leave() {
	r.left.Store(true)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.giveUp != nil {
		r.giveUp()
	}
}
