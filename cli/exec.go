package cli

import (
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/onggi/onggi/engine"
	"github.com/onggi/onggi/errdefs"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func buildExec(a *app, c *cobra.Command) {
	var (
		x           engine.ExecConfig
		interactive bool
		env         []string
		envFile     []string
	)
	c.Use = "exec [FLAGS] CONTAINER COMMAND [ARGUMENT...]"
	c.Long = `Run another command in a running container: in its namespaces, control group and root file system, with its
user, environment and limits unless flags say otherwise. The exit code is the command's; 126 and 127 as in run, and 1 when onggi
itself fails.`
	c.Example = `  onggi exec -it web sh                         a shell
  onggi exec web cat /etc/hosts
  onggi exec -u 1000:1000 -w /srv -e DEBUG=1 web ./check
  onggi exec -d web touch /tmp/flag             in the background
  onggi exec -i db psql < dump.sql              with this command's input`
	f := c.Flags()
	f.BoolVarP(&interactive, "interactive", "i", false, "connect stdin")
	f.BoolVarP(&x.Tty, "tty", "t", false, "give the command a terminal")
	f.BoolVarP(&x.Detach, "detach", "d", false, "run in the background")
	f.StringArrayVarP(&env, "env", "e", nil, "set a variable `KEY=VALUE`; KEY alone takes the value from here")
	f.StringArrayVar(&envFile, "env-file", nil, "read variables from a `file`, one KEY=VALUE a line")
	f.StringVarP(&x.User, "user", "u", "", "run as `user[:group]`, names or ids")
	f.StringVarP(&x.Workdir, "workdir", "w", "", "working `directory` inside the container")
	f.BoolVar(&x.Privileged, "privileged", false, "give the command all capabilities")
	refuse(f, []refusal{{"detach-keys", "this command becomes the runtime's, which has every key typed to the container's command", "leave it out; ctrl-p reaches the shell at once"}})
	f.SetInterspersed(false)
	c.Args = takes(2, -1, "a container, and a command with its arguments")
	c.RunE = func(c *cobra.Command, args []string) error {
		for _, name := range []string{"user", "workdir"} {
			if c.Flags().Changed(name) && c.Flags().Lookup(name).Value.String() == "" {
				return reading("--"+name, "", errorText("the value is empty"))
			}
		}
		vars := containerFlags{env: env, envFile: envFile}
		var cfg engine.Config
		if err := vars.environment(&cfg, nil); err != nil {
			return err
		}
		x.Env, x.Args = cfg.Env, args[1:]
		if x.Detach && interactive {
			return exitWith(reading("--detach", "true", &errdefs.Error{Why: "-i connects this command's input, and with -d it has gone", Fix: "leave one of them out"}))
		}
		if x.Tty && interactive {
			if err := a.needTerminal("exec"); err != nil {
				return err
			}
		}
		e, err := a.open()
		if err != nil {
			return exitOfCommand(err)
		}
		argv, err := e.ExecCommand(c.Context(), args[0], x)
		if err != nil {
			return exitOfCommand(err)
		}
		if !strings.Contains(argv[0], "/") { // --runtime runc: the name was found by PATH when the container started, too
			if argv[0], err = exec.LookPath(argv[0]); err != nil {
				return exitOfCommand(&errdefs.Error{Op: "find the runtime", What: argv[0], Kind: errdefs.NotFound, Fix: "give its path: onggi run --runtime PATH", Err: err})
			}
		}
		if !interactive {
			if err := nullInput(); err != nil {
				return exitOfCommand(err)
			}
		}
		a.debugf("exec %v", quoteAll(argv))
		// Nothing is left to be done here: the runtime takes this process, its streams, its signals and its exit code.
		err = syscall.Exec(argv[0], argv, os.Environ())
		return exitOfCommand(&errdefs.Error{
			Op: "execute", What: argv[0], Kind: errdefs.Internal,
			Why: "the runtime cannot be started", Fix: "check that onggi-runtime lies beside onggi and can be executed", Err: err,
		})
	}
}

// nullInput puts /dev/null in the place of stdin, for the program that this process becomes.
func nullInput() error {
	fd, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == nil && fd != 0 {
		err = unix.Dup3(fd, 0, 0)
		_ = unix.Close(fd)
	}
	if err != nil {
		return &errdefs.Error{Op: "open", What: os.DevNull, Kind: errdefs.KindOf(err), Err: err}
	}
	return nil
}
