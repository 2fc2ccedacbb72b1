package cli

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/onggi/onggi/engine"
	"github.com/onggi/onggi/errdefs"
	"github.com/spf13/cobra"
)

// parseRestart reads --restart.
func parseRestart(s string) (engine.RestartPolicy, error) {
	name, count, given := strings.Cut(s, ":")
	p := engine.RestartPolicy{Name: name}
	if given {
		n, err := parseInt(count, 0, 1<<31-1)
		if err != nil {
			return p, fmt.Errorf("the maximum retry count: %w", err)
		}
		if name != "on-failure" {
			return p, fmt.Errorf("only on-failure has a maximum retry count")
		}
		p.Max = int(n)
	}
	if err := p.Check(); err != nil {
		return p, &errdefs.Error{Why: errdefs.As(err).Why, Fix: errdefs.As(err).Fix}
	}
	if name == "no" {
		p.Name = ""
	}
	return p, nil
}

func buildAgain(a *app, c *cobra.Command) {
	c.Use = "container-restart CONTAINER"
	c.Long = `Start a container that its restart policy wants to run again. The process that has slept meanwhile becomes this
command. A container that is not to be started any more is left alone.`
	c.Args = takes(1, 1, "the id of a container")
	c.RunE = func(c *cobra.Command, args []string) error {
		e, err := a.open()
		if err != nil {
			return err
		}
		return e.Again(c.Context(), args[0])
	}
}

func buildResume(a *app, c *cobra.Command) {
	c.Use = "resume"
	c.Long = `Do what a daemon would do when the host has started: finish what was interrupted, and start the containers that their
restart policy wants to run: always; unless-stopped, if nobody has stopped it; on-failure, if it ran when the host went down.
Prints the names of what it has started. It may be run at any time; containers that run are left alone.

onggi system unit prints a systemd unit that calls it at every start.`
	c.Example = `  onggi system resume
  @reboot onggi system resume                   in a crontab, without systemd`
	c.Args = takes(0, 0, "no arguments")
	c.RunE = func(c *cobra.Command, args []string) error {
		e, err := a.open()
		if err != nil {
			return err
		}
		ctx, cancel := a.context(c.Context())
		defer cancel()
		list, err := e.Resume(ctx)
		errs := []error{err}
		for _, r := range list {
			if r.Err != nil {
				errs = append(errs, &errdefs.Error{Op: "start", What: "container " + r.Name, Kind: errdefs.KindOf(r.Err), Fix: errdefs.FixOf(r.Err), Err: r.Err})
				continue
			}
			errs = append(errs, a.print(r.Name+"\n"))
		}
		return errors.Join(errs...)
	}
}

func buildUnit(a *app, c *cobra.Command) {
	c.Use = "unit"
	c.Long = `Print a systemd unit that starts what has to run when the host starts (onggi system resume), for the roots that are in use.
make install puts one for the default roots into /usr/local/lib/systemd/system.`
	c.Example = `  onggi system unit > /etc/systemd/system/onggi-resume.service
  systemctl enable onggi-resume.service`
	c.Args = takes(0, 0, "no arguments")
	c.RunE = func(c *cobra.Command, args []string) error {
		self, err := os.Executable()
		if err != nil {
			return &errdefs.Error{Op: "find", What: "this program's own file", Kind: errdefs.KindOf(err), Err: err}
		}
		e, err := a.open()
		if err != nil {
			return err
		}
		root, run := e.Roots()
		command := unitQuote(self)
		if root != "/var/lib/onggi" || run != "/run/onggi" {
			command += " --root " + unitQuote(root) + " --run-root " + unitQuote(run)
		}
		return a.print(fmt.Sprintf(unitText, command))
	}
}

// unitText: see systemd.service(5). The monitors of what is started stay in the unit's control group: with KillMode=process a
// stop of the unit leaves them alone (systemd.kill(5)).
const unitText = `[Unit]
Description=Containers that start with the host (Onggi)
Documentation=man:onggi-system-resume(1)
After=local-fs.target network-online.target nftables.service
Wants=network-online.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=%s system resume
KillMode=process
TimeoutStartSec=5min

[Install]
WantedBy=multi-user.target
`

// unitQuote writes a word of a unit's command line: systemd.syntax(7), and %% and $$ for its own characters.
func unitQuote(s string) string {
	s = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "%", "%%", "$", "$$").Replace(s)
	if strings.ContainsAny(s, " \t;'\"") {
		return `"` + s + `"`
	}
	return s
}
