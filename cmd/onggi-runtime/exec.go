package main

import (
	"os"
	"strconv"
	"strings"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/runtime/launch"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// execFlags are the flags of exec.
type execFlags struct {
	f                           flags
	process, cwd, user, pidFile string
	console, pidfd              string
	apparmor, label             string
	env, gids, caps, groups     []string
	tty, detach, nnp, paused    bool
	preserve                    int
	noReaper, shell             bool
}

func (x *execFlags) parse(args []string) ([]string, error) {
	x.f = flags{of: "exec"}
	f := &x.f
	f.str(&x.process, "FILE", "take the process section from this JSON file instead of the arguments", "process", "p")
	f.str(&x.cwd, "DIR", "working directory", "cwd")
	f.strs(&x.env, "NAME=VALUE", "set a variable; may be given again", "env", "e")
	f.bool(&x.tty, "give it a terminal", "tty", "t")
	f.str(&x.user, "UID[:GID]", "run as this user, in numbers", "user", "u")
	f.strs(&x.gids, "GID", "one more group; may be given again", "additional-gids", "g")
	f.strs(&x.caps, "CAP", "one more capability; may be given again", "cap", "c")
	f.bool(&x.nnp, "set no_new_privs", "no-new-privs")
	f.str(&x.apparmor, "PROFILE", "AppArmor profile of the process", "apparmor")
	f.str(&x.label, "LABEL", "SELinux label of the process", "process-label")
	f.strs(&x.groups, "[CONTROLLERS:]PATH", "run in this existing group below the container's; of v1 only in the named hierarchies", "cgroup")
	f.bool(&x.paused, "in a paused container, wait until it is resumed instead of failing", "ignore-paused")
	f.bool(&x.detach, "return when the process runs", "detach", "d")
	f.str(&x.pidFile, "FILE", pidFileHelp, "pid-file")
	f.str(&x.console, "SOCKET", consoleHelp, "console-socket")
	f.str(&x.pidfd, "SOCKET", pidfdHelp, "pidfd-socket")
	f.int(&x.preserve, "N", "hand N more descriptors on, from 3 up", "preserve-fds")
	f.bool(&x.noReaper, "", "no-subreaper") // exec never is one; runc hides the flag too
	f.bool(&x.shell, "when it fails, exit as a shell does: 127 without such a command, 126 when it cannot be executed, else 1", "shell-codes")
	rest, err := f.parse(args, false)
	switch {
	case err != nil:
		return nil, err
	case len(rest) == 0:
		return nil, f.bad("", "a container id is needed")
	case x.process == "" && len(rest) == 1:
		return nil, f.bad("", "a command, or --process, is needed")
	}
	return rest, nil
}

// into makes the process section.
func (x *execFlags) into(c *launch.Container, command []string) (*runspec.Process, error) {
	f := &x.f
	var p *runspec.Process
	var err error
	if x.process != "" {
		if p, err = launch.LoadProcess(x.process); err != nil {
			return nil, err
		}
	} else {
		d := c.DefaultProcess()
		p = &d
		p.Args = command
	}
	p.Terminal = p.Terminal || x.tty
	p.NoNewPrivileges = p.NoNewPrivileges || x.nnp
	if x.cwd != "" {
		p.Cwd = x.cwd
	}
	if x.apparmor != "" {
		p.ApparmorProfile = x.apparmor
	}
	if x.label != "" {
		p.SelinuxLabel = x.label
	}
	p.Env = append(p.Env, x.env...)
	number := func(flag, s, why string, to *uint32) error {
		n, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			return f.bad(flag, strconv.Quote(s)+why)
		}
		*to = uint32(n)
		return nil
	}
	if x.user != "" {
		u, gr, both := strings.Cut(x.user, ":")
		if err := number("--user", u, " is no number: it is UID[:GID]", &p.User.UID); err != nil {
			return nil, err
		}
		if both {
			if err := number("--user", gr, " is no number: it is UID[:GID]", &p.User.GID); err != nil {
				return nil, err
			}
		}
	}
	for _, s := range x.gids {
		var n uint32
		if err := number("--additional-gids", s, " is not a number", &n); err != nil {
			return nil, err
		}
		p.User.AdditionalGids = append(p.User.AdditionalGids[:len(p.User.AdditionalGids):len(p.User.AdditionalGids)], n)
	}
	if len(x.caps) > 0 {
		l := runspec.LinuxCapabilities{}
		if p.Capabilities != nil {
			l = *p.Capabilities
		}
		for _, s := range x.caps {
			l.Bounding = append(l.Bounding[:len(l.Bounding):len(l.Bounding)], s)
			l.Effective = append(l.Effective[:len(l.Effective):len(l.Effective)], s)
			l.Permitted = append(l.Permitted[:len(l.Permitted):len(l.Permitted)], s)
		}
		p.Capabilities = &l
	}
	return p, nil
}

// groupsBelow reads the values of --cgroup.
func (x *execFlags) groupsBelow() (list []launch.Below, err error) {
	seen := map[string]bool{}
	for _, g := range x.groups {
		b := launch.Below{Path: g}
		if names, sub, ok := strings.Cut(g, ":"); ok {
			b = launch.Below{Path: sub, Controllers: strings.Split(names, ",")}
		}
		for _, n := range append(b.Controllers, "") {
			if n == "" && len(b.Controllers) > 0 {
				continue
			}
			if seen[n] {
				return nil, x.f.bad("--cgroup", "the same hierarchy is given twice")
			}
			seen[n] = true
		}
		list = append(list, b)
	}
	return list, nil
}

func cmdExec(g *globals, args []string) (int, error) {
	const failed = 255 // as runc; 1 to 254 may be the process's own
	var x execFlags
	rest, err := x.parse(args)
	if err != nil {
		return failed, err
	}
	code, err := x.run(g, rest)
	if err != nil && x.shell {
		switch k := errdefs.KindOf(err); k {
		case errdefs.CommandNotFound, errdefs.NotExecutable:
			return k.ExitCode(), err
		}
		return 1, err
	}
	return code, err
}

// run executes the command and waits for it. With an error the code is runc's.
func (x *execFlags) run(g *globals, rest []string) (int, error) {
	const failed = 255
	c, err := launch.Load(g.root, rest[0])
	if err != nil {
		return failed, err
	}
	p, err := x.into(c, rest[1:])
	if err != nil {
		return failed, err
	}
	o := launch.ExecOptions{Process: p, Stdio: [3]*os.File{os.Stdin, os.Stdout, os.Stderr}, Warn: g.warn, IgnorePaused: x.paused}
	if o.Below, err = x.groupsBelow(); err != nil {
		return failed, err
	}
	if o.Preserve, err = preserved(&x.f, 0, x.preserve); err != nil {
		return failed, err
	}
	switch {
	case !p.Terminal && x.console != "":
		return failed, x.f.bad("--console-socket", "the process has no terminal (--tty)")
	case x.console != "":
		if o.ConsoleSocket, err = launch.DialConsole(x.console); err != nil {
			return failed, err
		}
	case p.Terminal && x.detach:
		return failed, x.f.bad("--detach", "a terminal needs --console-socket")
	}
	proc, err := c.Exec(o)
	if err != nil {
		return failed, err
	}
	if err = sendPidfd(x.pidfd, "setns", proc.Pid()); err == nil {
		err = writePid(x.pidFile, proc.Pid())
	}
	var r *relay
	if t := proc.Console(); t != nil && err == nil {
		r, err = startRelay(t)
		defer r.stop()
	}
	if err != nil {
		_ = proc.Signal(int(unix.SIGKILL))
		return failed, err
	}
	if x.detach {
		return 0, nil
	}
	stop := forwardSignals(proc.Signal, r)
	e, err := proc.Wait()
	stop()
	r.stop()
	if err != nil {
		return failed, &errdefs.Error{Op: "wait for", What: "the process", Err: err}
	}
	return e.Code, nil
}
