package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/runtime/launch"
	"github.com/onggi/onggi/undo"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

var specVersion = runspec.Version

type command struct {
	name string
	run  func(g *globals, args []string) (int, error)
}

var commands = [...]command{
	{"run", cmdRun},
	{"create", cmdCreate},
	{"start", cmdStart},
	{"exec", cmdExec},
	{"state", cmdState},
	{"kill", cmdKill},
	{"delete", cmdDelete},
	{"list", cmdList},
	{"ps", cmdPs},
	{"spec", cmdSpec},
	{"features", cmdFeatures},
	{"plan", cmdPlan},
}

// one returns the only argument.
func one(rest []string, what string) (string, error) {
	if len(rest) != 1 {
		return "", usageError(what, "exactly one is needed")
	}
	return rest[0], nil
}

// createFlags are common to create and run.
type createFlags struct {
	bundle, pidFile, console string
	preserve                 int
	noPivot, noKeyring       bool
	detach, keep, noReaper   bool
	init, timing             bool
}

func (c *createFlags) parse(args []string, run bool) (id string, err error) {
	f := flags{}
	f.str(&c.bundle, "bundle", "b")
	f.str(&c.pidFile, "pid-file")
	f.str(&c.console, "console-socket")
	f.int(&c.preserve, "preserve-fds")
	f.bool(&c.noPivot, "no-pivot")
	f.bool(&c.noKeyring, "no-new-keyring")
	f.bool(&c.init, "init")
	f.bool(&c.timing, "timing")
	f.refuse("it is not supported yet", true, "pidfd-socket")
	if run {
		f.bool(&c.detach, "detach", "d")
		f.bool(&c.keep, "keep")
		f.bool(&c.noReaper, "no-subreaper")
	}
	rest, err := f.parse(args, true)
	if err != nil {
		return "", err
	}
	if c.bundle == "" {
		c.bundle = "."
	}
	if c.bundle, err = filepath.Abs(c.bundle); err != nil {
		return "", err
	}
	return one(rest, "container id")
}

// options turns the flags into what launch takes.
func (c *createFlags) options(g *globals, id string) (launch.Options, error) {
	o := launch.Options{
		Root: g.root, ID: id, Bundle: c.bundle, NoPivot: c.noPivot, NoNewKeyring: c.noKeyring, Init: c.init,
		Timing: c.timing, Warn: g.warn, Stdio: [3]*os.File{os.Stdin, os.Stdout, os.Stderr},
	}
	var err error
	if o.Spec, err = launch.LoadSpec(c.bundle); err != nil {
		return o, err
	}
	if o.Preserve, err = preserved(c.preserve); err != nil {
		return o, err
	}
	terminal := o.Spec.Process != nil && o.Spec.Process.Terminal
	switch {
	case c.console != "" && !terminal:
		return o, usageError("--console-socket", "the container has no terminal (process.terminal)")
	case c.console != "":
		if o.ConsoleSocket, err = launch.DialConsole(c.console); err != nil {
			return o, err
		}
	}
	return o, nil
}

func preserved(n int) (fs []*os.File, err error) {
	for i := range n {
		var st unix.Stat_t
		if err := unix.Fstat(3+i, &st); err != nil {
			return nil, usageError("--preserve-fds", "descriptor "+strconv.Itoa(3+i)+" is not open")
		}
		fs = append(fs, os.NewFile(uintptr(3+i), "preserved"))
	}
	return fs, nil
}

// writePid replaces the file, so that a reader never sees half a number.
func writePid(name string, pid int) error {
	if name == "" {
		return nil
	}
	tmp := filepath.Join(filepath.Dir(name), "."+filepath.Base(name)+".new")
	if err := os.WriteFile(tmp, strconv.AppendInt(nil, int64(pid), 10), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, name)
}

func cmdCreate(g *globals, args []string) (int, error) {
	var c createFlags
	id, err := c.parse(args, false)
	if err != nil {
		return 1, err
	}
	o, err := c.options(g, id)
	if err != nil {
		return 1, err
	}
	if o.Spec.Process != nil && o.Spec.Process.Terminal && o.ConsoleSocket == nil {
		return 1, usageError("create", "a container with a terminal needs --console-socket")
	}
	o.Detached = true
	k, err := launch.Create(context.Background(), o)
	if err != nil {
		return 1, err
	}
	printSpans(c.timing, k.Spans())
	if err := writePid(c.pidFile, k.Pid()); err != nil {
		_ = k.ForceDelete()
		return 1, err
	}
	return 0, nil
}

func cmdStart(g *globals, args []string) (int, error) {
	rest, err := (&flags{}).parse(args, true)
	if err != nil {
		return 1, err
	}
	id, err := one(rest, "container id")
	if err != nil {
		return 1, err
	}
	c, err := launch.Load(g.root, id)
	if err != nil {
		return 1, err
	}
	return 0, c.Start()
}

func cmdRun(g *globals, args []string) (int, error) {
	var c createFlags
	id, err := c.parse(args, true)
	if err != nil {
		return 1, err
	}
	o, err := c.options(g, id)
	if err != nil {
		return 1, err
	}
	o.Ungated = true
	terminal := o.Spec.Process != nil && o.Spec.Process.Terminal
	if terminal && o.ConsoleSocket == nil && c.detach {
		return 1, usageError("run --detach", "a container with a terminal needs --console-socket")
	}
	if !c.detach && !c.noReaper {
		_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	}
	k, err := launch.Create(context.Background(), o)
	if err != nil {
		return exitCode(err), err
	}
	drop := func() {
		if !c.keep {
			_ = k.ForceDelete()
		}
	}
	var relay *relay
	if t := k.Console(); t != nil {
		if relay, err = startRelay(t); err != nil {
			drop()
			return 1, err
		}
		defer relay.stop()
	}
	if err := writePid(c.pidFile, k.Pid()); err != nil {
		drop()
		return 1, err
	}
	if err := k.Start(); err != nil {
		_, _ = k.Wait()
		drop()
		relay.stop()
		return exitCode(err), err
	}
	if c.detach {
		printSpans(c.timing, k.Spans())
		return 0, nil
	}
	stop := forwardSignals(k.Signal, relay)
	steps := undo.New("run")
	var code int
	err = steps.Do("wait", func() error {
		e, err := k.Wait()
		code = e.Code
		return err
	}, nil)
	stop()
	relay.stop()
	if err == nil && !c.keep {
		err = steps.Do("delete", k.Delete, nil)
	}
	printSpans(c.timing, append(k.Spans(), steps.Spans()...))
	if err != nil {
		return 1, err
	}
	return code, nil
}

// exitCode is 126 or 127 for a command that cannot be executed or found, else 1 as runc has it.
func exitCode(err error) int {
	if c := errdefs.KindOf(err).ExitCode(); c == 126 || c == 127 {
		return c
	}
	return 1
}

func printSpans(on bool, spans []undo.Span) {
	if !on {
		return
	}
	var b strings.Builder
	for _, s := range spans {
		for _, d := range [...]time.Duration{s.Start, s.Took} {
			n := strconv.FormatFloat(float64(d)/1e6, 'f', 3, 64)
			b.WriteString(strings.Repeat(" ", max(0, 9-len(n))) + n)
		}
		b.WriteString(" ms  " + s.Name + "\n")
	}
	_, _ = os.Stderr.WriteString("   start     took\n" + b.String())
}

func cmdExec(g *globals, args []string) (int, error) {
	var (
		process, cwd, user, pidFile, console, apparmor string
		env, gids, caps                                []string
		tty, detach, nnp, ignorePaused                 bool
		preserve                                       int
		label, group                                   string
	)
	f := flags{}
	f.str(&process, "process", "p")
	f.str(&cwd, "cwd")
	f.strs(&env, "env", "e")
	f.bool(&tty, "tty", "t")
	f.str(&user, "user", "u")
	f.strs(&gids, "additional-gids", "g")
	f.bool(&detach, "detach", "d")
	f.str(&pidFile, "pid-file")
	f.str(&console, "console-socket")
	f.strs(&caps, "cap", "c")
	f.bool(&nnp, "no-new-privs")
	f.bool(&ignorePaused, "ignore-paused")
	f.str(&apparmor, "apparmor")
	f.str(&label, "process-label")
	f.str(&group, "cgroup")
	f.int(&preserve, "preserve-fds")
	f.refuse("it is not supported yet", true, "pidfd-socket")
	f.refuse("it is accepted for runc's users only when false", false, "no-subreaper")
	rest, err := f.parse(args, false)
	switch {
	case err != nil:
		return 255, err
	case len(rest) == 0:
		return 255, usageError("exec", "a container id is needed")
	case apparmor != "" && apparmor != "unconfined":
		return 255, usageError("--apparmor", "AppArmor is not supported yet")
	case label != "":
		return 255, usageError("--process-label", "SELinux is not supported yet")
	case group != "":
		return 255, usageError("--cgroup", "it is not supported yet")
	case process == "" && len(rest) == 1:
		return 255, usageError("exec", "a command, or --process, is needed")
	}
	c, err := launch.Load(g.root, rest[0])
	if err != nil {
		return 255, err
	}
	var p *runspec.Process
	if process != "" {
		if p, err = launch.LoadProcess(process); err != nil {
			return 255, err
		}
	} else {
		d := c.DefaultProcess()
		p = &d
		p.Args, p.Terminal = rest[1:], tty
	}
	if tty {
		p.Terminal = true
	}
	p.NoNewPrivileges = p.NoNewPrivileges || nnp
	if cwd != "" {
		p.Cwd = cwd
	}
	p.Env = append(p.Env, env...)
	if user != "" {
		u, gr, both := strings.Cut(user, ":")
		n, err := strconv.ParseUint(u, 10, 32)
		if err != nil {
			return 255, usageError("--user", "it is UID[:GID], in numbers")
		}
		p.User.UID = uint32(n)
		if both {
			if n, err = strconv.ParseUint(gr, 10, 32); err != nil {
				return 255, usageError("--user", "it is UID[:GID], in numbers")
			}
			p.User.GID = uint32(n)
		}
	}
	for _, s := range gids {
		n, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			return 255, usageError("--additional-gids", strconv.Quote(s)+" is not a number")
		}
		p.User.AdditionalGids = append(p.User.AdditionalGids, uint32(n))
	}
	if len(caps) > 0 {
		l := runspec.LinuxCapabilities{}
		if p.Capabilities != nil {
			l = *p.Capabilities
		}
		for _, s := range caps {
			l.Bounding = append(l.Bounding[:len(l.Bounding):len(l.Bounding)], s)
			l.Effective = append(l.Effective[:len(l.Effective):len(l.Effective)], s)
			l.Permitted = append(l.Permitted[:len(l.Permitted):len(l.Permitted)], s)
		}
		p.Capabilities = &l
	}
	o := launch.ExecOptions{Process: p, Stdio: [3]*os.File{os.Stdin, os.Stdout, os.Stderr}, Warn: g.warn}
	if o.Preserve, err = preserved(preserve); err != nil {
		return 255, err
	}
	if p.Terminal {
		switch {
		case console != "":
			if o.ConsoleSocket, err = launch.DialConsole(console); err != nil {
				return 255, err
			}
		case detach:
			return 255, usageError("exec --detach", "a terminal needs --console-socket")
		}
	}
	x, err := c.Exec(o)
	if err != nil {
		if code := exitCode(err); code != 1 {
			return code, err
		}
		return 255, err
	}
	if err := writePid(pidFile, x.Pid()); err != nil {
		_ = x.Signal(int(unix.SIGKILL))
		return 255, err
	}
	var r *relay
	if t := x.Console(); t != nil {
		if r, err = startRelay(t); err != nil {
			_ = x.Signal(int(unix.SIGKILL))
			return 255, err
		}
		defer r.stop()
	}
	if detach {
		return 0, nil
	}
	stop := forwardSignals(x.Signal, r)
	e, err := x.Wait()
	stop()
	r.stop()
	return e.Code, err
}

func cmdState(g *globals, args []string) (int, error) {
	rest, err := (&flags{}).parse(args, true)
	if err != nil {
		return 1, err
	}
	id, err := one(rest, "container id")
	if err != nil {
		return 1, err
	}
	c, err := launch.Load(g.root, id)
	if err != nil {
		return 1, err
	}
	return 0, printJSON(c.State())
}

func printJSON(v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(append(b, '\n'))
	return err
}

func cmdKill(g *globals, args []string) (int, error) {
	var all bool
	f := flags{}
	f.bool(&all, "all", "a")
	rest, err := f.parse(args, true)
	if err != nil {
		return 1, err
	}
	sig := unix.SIGTERM
	switch len(rest) {
	case 1:
	case 2:
		if sig, err = signalNumber(rest[1]); err != nil {
			return 1, err
		}
	default:
		return 1, usageError("kill", "a container id and perhaps a signal are needed")
	}
	c, err := launch.Load(g.root, rest[0])
	if err != nil {
		return 1, err
	}
	if all {
		return 0, c.SignalAll(int(sig))
	}
	return 0, c.Signal(int(sig))
}

// signalNumber reads "9", "KILL" or "SIGKILL".
func signalNumber(s string) (unix.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil {
		if n > 0 && n < 65 {
			return unix.Signal(n), nil
		}
	} else {
		u := strings.ToUpper(s)
		if !strings.HasPrefix(u, "SIG") {
			u = "SIG" + u
		}
		if n := unix.SignalNum(u); n != 0 {
			return n, nil
		}
		if rest, ok := strings.CutPrefix(u, "SIGRTMIN+"); ok {
			if n, err := strconv.Atoi(rest); err == nil && n >= 0 && n <= 30 {
				return unix.Signal(34 + n), nil
			}
		}
	}
	return 0, usageError(strconv.Quote(s), "there is no such signal")
}

func cmdDelete(g *globals, args []string) (int, error) {
	var force bool
	f := flags{}
	f.bool(&force, "force", "f")
	rest, err := f.parse(args, true)
	if err != nil {
		return 1, err
	}
	id, err := one(rest, "container id")
	if err != nil {
		return 1, err
	}
	c, err := launch.Load(g.root, id)
	if err != nil {
		if force && errdefs.Is(err, errdefs.NotFound) {
			return 0, nil
		}
		if c, err = launch.LoadBroken(g.root, id, err); err != nil {
			return 1, err
		}
	}
	if force {
		return 0, c.ForceDelete()
	}
	return 0, c.Delete()
}

func cmdSpec(_ *globals, args []string) (int, error) {
	var bundle string
	f := flags{}
	f.str(&bundle, "bundle", "b")
	f.refuse("rootless containers are not supported yet", false, "rootless")
	rest, err := f.parse(args, true)
	if err != nil {
		return 1, err
	}
	if len(rest) > 0 {
		return 1, usageError("spec", "it takes no argument")
	}
	b, err := json.MarshalIndent(defaultSpec(), "", "\t")
	if err != nil {
		return 1, err
	}
	w, err := os.OpenFile(filepath.Join(bundle, "config.json"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return 1, err
	}
	_, err = w.Write(append(b, '\n'))
	if e := w.Close(); err == nil {
		err = e
	}
	return 0, err
}

func cmdPlan(g *globals, args []string) (int, error) {
	var c createFlags
	id, err := c.parse(append(args[:len(args):len(args)], "plan"), false)
	if err != nil {
		return 1, err
	}
	o := launch.Options{
		Root: g.root, ID: id, Bundle: c.bundle, NoPivot: c.noPivot, NoNewKeyring: c.noKeyring, Init: c.init, Timing: c.timing,
		Detached: true, Warn: func(s string) { _, _ = os.Stderr.WriteString("warning: " + s + "\n") },
	}
	p, err := launch.Plan(o)
	if err != nil {
		return 1, err
	}
	return 0, p.Print(os.Stdout)
}
