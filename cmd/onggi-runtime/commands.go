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
	{"pause", cmdPause},
	{"resume", cmdResume},
	{"update", cmdUpdate},
	{"events", cmdEvents},
	{"checkpoint", cmdCheckpoint},
	{"restore", cmdRestore},
	{"delete", cmdDelete},
	{"list", cmdList},
	{"ps", cmdPs},
	{"spec", cmdSpec},
	{"features", cmdFeatures},
	{"plan", cmdPlan},
}

// createFlags are common to create and run.
type createFlags struct {
	f                      flags
	bundle, pidFile        string
	console, pidfd         string
	preserve               int
	noPivot, noKeyring     bool
	detach, keep, noReaper bool
	init, timing           bool
}

const (
	consoleHelp  = "connect to this AF_UNIX socket and send it the master side of the terminal"
	pidfdHelp    = "connect to this AF_UNIX socket and send it a pidfd of the process"
	pidFileHelp  = "write the process id to this file"
	preserveHelp = "hand N more descriptors on, from 3 (or those after $LISTEN_FDS) up"
)

func (c *createFlags) parse(args []string, name string) (id string, err error) {
	c.f = flags{of: name}
	f := &c.f
	f.str(&c.bundle, "DIR", "the bundle: a directory with config.json (default the current one)", "bundle", "b")
	if name != "plan" {
		f.str(&c.pidFile, "FILE", pidFileHelp, "pid-file")
		f.str(&c.console, "SOCKET", consoleHelp, "console-socket")
		f.str(&c.pidfd, "SOCKET", pidfdHelp, "pidfd-socket")
		f.int(&c.preserve, "N", preserveHelp, "preserve-fds")
	}
	f.bool(&c.noPivot, "move the root over / instead of pivot_root(2): where the root is the initial ramdisk", "no-pivot")
	f.bool(&c.noKeyring, "leave the caller's session keyring to the container; by default it gets one of its own", "no-new-keyring")
	f.bool(&c.init, "put a process 1 in front of the command that passes signals on and reaps", "init")
	f.bool(&c.timing, "print the phases and how long each took", "timing")
	if name == "run" {
		f.bool(&c.detach, "return when the process runs", "detach", "d")
		f.bool(&c.keep, "do not delete the container when it has ended", "keep")
		f.bool(&c.noReaper, "do not adopt and reap the processes that the container leaves in the caller's pid namespace", "no-subreaper")
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
	if name == "plan" {
		if len(rest) > 0 {
			return "", f.bad("", "it takes no argument")
		}
		return "plan", nil
	}
	return f.one(rest)
}

// options turns the flags into what launch takes.
func (c *createFlags) options(g *globals, id string) (launch.Options, error) {
	o := launch.Options{
		Root: g.root, ID: id, Bundle: c.bundle, NoPivot: c.noPivot, NoNewKeyring: c.noKeyring, Init: c.init,
		Timing: c.timing, Warn: g.warn, Stdio: [3]*os.File{os.Stdin, os.Stdout, os.Stderr},
		Systemd: g.systemd, UserManager: g.userManager(),
	}
	var err error
	if o.Spec, err = launch.LoadSpec(c.bundle); err != nil {
		return o, err
	}
	o.Notify = notifySocket() != "" && c.f.of != "restore"
	listen := listenFDs()
	if o.Preserve, err = preserved(&c.f, listen, c.preserve); err != nil {
		return o, err
	}
	if p := o.Spec.Process; p != nil && listen > 0 {
		p.Env = append(p.Env, "LISTEN_FDS="+strconv.Itoa(listen), "LISTEN_PID=1")
	}
	terminal := o.Spec.Process != nil && o.Spec.Process.Terminal
	switch {
	case c.console != "" && !terminal:
		return o, c.f.bad("--console-socket", "the container has no terminal (process.terminal)")
	case c.console != "":
		if o.ConsoleSocket, err = launch.DialConsole(c.console); err != nil {
			return o, err
		}
	}
	return o, nil
}

// listenFDs is how many sockets a service manager hands on from descriptor 3 up (sd_listen_fds(3)): none when they are
// meant for another process.
func listenFDs() int {
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil || n <= 0 || n > 1<<16 {
		return 0
	}
	if pid := os.Getenv("LISTEN_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return 0
	}
	return n
}

// preserved are the descriptors from 3 up that go on to the container: those of $LISTEN_FDS and n more.
func preserved(f *flags, listen, n int) (fs []*os.File, err error) {
	for i := 3; i < 3+listen+n; i++ {
		var st unix.Stat_t
		if err := unix.Fstat(i, &st); err != nil {
			what := "--preserve-fds"
			if i < 3+listen {
				what = "$LISTEN_FDS"
			}
			return nil, f.bad(what, "descriptor "+strconv.Itoa(i)+" is not open")
		}
		fs = append(fs, os.NewFile(uintptr(i), "preserved"))
	}
	return fs, nil
}

// sendPidfd gives a handle of a new process to whoever listens at the socket, with runc's word for what it is.
func sendPidfd(socket, word string, pid int) error {
	if socket == "" {
		return nil
	}
	fail := func(err error) error {
		return &errdefs.Error{Op: "send the pidfd to", What: socket, Err: err}
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fail(err)
	}
	defer unix.Close(pidfd) //nolint:errcheck // a handle
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	defer unix.Close(s) //nolint:errcheck // all is sent
	if err := unix.Connect(s, &unix.SockaddrUnix{Name: socket}); err != nil {
		return fail(err)
	}
	if err := unix.Sendmsg(s, []byte(word), unix.UnixRights(pidfd), nil, 0); err != nil {
		return fail(err)
	}
	return nil
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
	id, err := c.parse(args, "create")
	if err != nil {
		return 1, err
	}
	o, err := c.options(g, id)
	if err != nil {
		return 1, err
	}
	if o.Spec.Process != nil && o.Spec.Process.Terminal && o.ConsoleSocket == nil {
		return 1, c.f.bad("", "a container with a terminal needs --console-socket")
	}
	o.Detached = true
	k, err := launch.Create(context.Background(), o)
	if err != nil {
		return 1, err
	}
	g.phases(c.timing, k.Spans())
	if err := c.tell(k); err != nil {
		_ = k.ForceDelete()
		return 1, err
	}
	return 0, nil
}

// tell says the process's id to the pid file and its handle to the pidfd socket, before the command is executed.
func (c *createFlags) tell(k *launch.Container) error {
	if err := sendPidfd(c.pidfd, "standard", k.Pid()); err != nil {
		return err
	}
	return writePid(c.pidFile, k.Pid())
}

// loaded parses the arguments of a command that takes an id and finds that container.
func loaded(g *globals, f *flags, args []string) (*launch.Container, error) {
	rest, err := f.parse(args, true)
	if err != nil {
		return nil, err
	}
	id, err := f.one(rest)
	if err != nil {
		return nil, err
	}
	return launch.Load(g.root, id)
}

func cmdStart(g *globals, args []string) (int, error) {
	c, err := loaded(g, &flags{of: "start"}, args)
	if err != nil {
		return 1, err
	}
	var notify *os.File
	if notifySocket() != "" {
		if notify, err = c.BindNotify(); err != nil {
			return 1, err
		}
	}
	if err := c.Start(); err != nil || notify == nil {
		return 0, err
	}
	return 0, relayNotify(notify, c.Pid(), true)
}

func cmdRun(g *globals, args []string) (int, error) {
	var c createFlags
	id, err := c.parse(args, "run")
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
		return 1, c.f.bad("--detach", "a container with a terminal needs --console-socket")
	}
	if !c.detach && !c.noReaper {
		_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	}
	k, err := launch.Create(context.Background(), o)
	if err != nil {
		return 1, err
	}
	return c.follow(g, k, ownPids(o.Spec), false)
}

// follow leads a container from its making to its end, or with --detach to its start. ownPids says that it has a pid
// namespace of its own, runs that its command is being executed already.
func (c *createFlags) follow(g *globals, k *launch.Container, ownPids, runs bool) (int, error) {
	var err error
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
	if err := c.tell(k); err != nil {
		drop()
		return 1, err
	}
	if !runs {
		if err := k.Start(); err != nil {
			_, _ = k.Wait()
			drop()
			relay.stop()
			return 1, err
		}
	}
	if n := k.Notified(); n != nil && c.detach {
		if err := relayNotify(n, k.Pid(), true); err != nil {
			return 1, err
		}
	} else if n != nil {
		go func() {
			if err := relayNotify(n, k.Pid(), false); err != nil {
				g.warn(err.Error())
			}
		}()
	}
	if c.detach {
		g.phases(c.timing, k.Spans())
		return 0, nil
	}
	if !c.noReaper && !ownPids {
		reapOthers(k.Pid())
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
	g.phases(c.timing, append(k.Spans(), steps.Spans()...))
	if err != nil {
		return 1, err
	}
	return code, nil
}

// ownPids reports whether a container gets a pid namespace of its own, whose first process adopts all others.
func ownPids(s *runspec.Spec) bool {
	for _, n := range s.Linux.Namespaces {
		if n.Type == runspec.PIDNamespace {
			return n.Path == ""
		}
	}
	return false
}

// phases records how long each phase took, and with on prints it.
func (g *globals) phases(on bool, spans []undo.Span) {
	if g.debug {
		for _, s := range spans {
			g.record(s.Name + " took " + s.Took.String())
		}
	}
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

func cmdState(g *globals, args []string) (int, error) {
	c, err := loaded(g, &flags{of: "state"}, args)
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
	f := flags{of: "kill"}
	f.bool(&all, "send it to every process of the container; no error when it has ended", "all", "a")
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
		return 1, f.bad("", "a container id and perhaps a signal are needed")
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
		if n >= 0 && n < 65 { // 0 asks whether the process is there (kill(2))
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
	return 0, usageOf("kill", strconv.Quote(s), "there is no such signal")
}

func cmdDelete(g *globals, args []string) (int, error) {
	var force bool
	f := flags{of: "delete"}
	f.bool(&force, "kill it first, and be content when there is no such container", "force", "f")
	rest, err := f.parse(args, true)
	if err != nil {
		return 1, err
	}
	id, err := f.one(rest)
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
	var rootless bool
	f := flags{of: "spec"}
	f.str(&bundle, "DIR", "where to write it (default the current directory)", "bundle", "b")
	f.bool(&rootless, "for a container that its user, not root, makes: with a user namespace", "rootless")
	rest, err := f.parse(args, true)
	if err != nil {
		return 1, err
	}
	if len(rest) > 0 {
		return 1, f.bad("", "it takes no argument")
	}
	spec := defaultSpec()
	if rootless {
		makeRootless(spec)
	}
	b, err := json.MarshalIndent(spec, "", "\t")
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
	id, err := c.parse(args, "plan")
	if err != nil {
		return 1, err
	}
	o := launch.Options{
		Root: g.root, ID: id, Bundle: c.bundle, NoPivot: c.noPivot, NoNewKeyring: c.noKeyring, Init: c.init, Timing: c.timing,
		Detached: true, Systemd: g.systemd, UserManager: g.userManager(), Warn: func(s string) { _, _ = os.Stderr.WriteString("warning: " + s + "\n") },
	}
	p, err := launch.Plan(o)
	if err != nil {
		return 1, err
	}
	return 0, p.Print(os.Stdout)
}
