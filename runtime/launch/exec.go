package launch

import (
	"encoding/binary"
	"errors"
	"os"
	"path"
	"strconv"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/runtime/monitor"
	"github.com/onggi/onggi/runtime/plan"
	"github.com/onggi/onggi/runtime/seccomp"
	"github.com/onggi/onggi/undo"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// ExecOptions say what to run in a container.
type ExecOptions struct {
	Process *runspec.Process
	// Stdio, Replica, ConsoleSocket and Preserve are as in Options.
	Stdio         [3]*os.File
	Replica       bool
	ConsoleSocket *os.File
	Preserve      []*os.File
	// Below are groups below the container's that the process joins instead.
	Below []Below
	// IgnorePaused starts the process in a paused container too: Exec then returns when that is resumed.
	IgnorePaused bool
	Warn         func(string)
}

// Below names an existing group below a container's: of the hierarchies of these v1 controllers only, or of all.
type Below struct {
	Controllers []string
	Path        string
}

// Process is another process in a container.
type Process struct {
	c       *Container
	pid     int
	console *os.File
}

// Pid is the process's id in the caller's pid namespace.
func (p *Process) Pid() int { return p.pid }

// Console is the terminal's master side when Exec received it; nil otherwise. The caller closes it.
func (p *Process) Console() *os.File { return p.console }

// Wait returns how the process ended.
func (p *Process) Wait() (monitor.Exit, error) { return exitOf(reap(p.pid)), nil }

// Signal sends a signal to the process. Precondition: Wait has not returned.
func (p *Process) Signal(sig int) error { return unix.Kill(p.pid, unix.Signal(sig)) }

// DefaultProcess is the container's own process section without its command: what exec begins with when it is given no
// process. The caller may change the copy.
func (c *Container) DefaultProcess() runspec.Process {
	p := runspec.Process{Cwd: "/"}
	if c.record.Process != nil {
		p = *c.record.Process
	}
	p.Args, p.Terminal, p.ConsoleSize = nil, false, nil
	p.Env = append([]string(nil), p.Env...)
	return p
}

// Exec runs another process in a running container and returns when it executes its command. The process is a child
// of the caller. It joins the container's namespaces and control group in its own image; the caller never does, so any
// number of processes may do this at once.
func (c *Container) Exec(o ExecOptions) (_ *Process, err error) {
	r := c.record
	switch s := r.status(); s {
	case runspec.StateRunning, runspec.StateCreated:
	case runspec.StateStopped:
		return nil, &errdefs.Error{Op: "exec in", What: "a stopped container: " + r.ID, Kind: errdefs.Conflict}
	default:
		return nil, &errdefs.Error{Op: "exec in container", What: r.ID, Kind: errdefs.Conflict, Why: "it is " + string(s) + ", not running"}
	}
	if err := plan.SupportedProcess(o.Process); err != nil {
		return nil, err
	}
	var closers []int
	keep := func(fd int) int { closers = append(closers, fd); return fd }
	closeAll := func() {
		for _, fd := range closers {
			_ = unix.Close(fd)
		}
		closers = nil
	}
	defer func() { closeAll() }()

	pidfd, err := unix.PidfdOpen(r.Pid, 0)
	if err != nil {
		return nil, notRunning(r.ID)
	}
	keep(pidfd)
	if t, _ := startTime(r.Pid); t != r.Started {
		return nil, notRunning(r.ID)
	}
	group, err := c.openGroup()
	if err != nil && !errdefs.Is(err, errdefs.NotFound) {
		return nil, err
	}
	if group != nil && !o.IgnorePaused && c.frozen() {
		return nil, &errdefs.Error{
			Op: "exec in", What: "a paused container: " + r.ID, Kind: errdefs.Conflict,
			Fix: "resume it first, or wait for that with: onggi-runtime exec --ignore-paused",
		}
	}
	for _, b := range o.Below {
		if group == nil {
			return nil, err
		}
		if group, err = group.Below(b.Path, b.Controllers...); err != nil {
			return nil, err
		}
		defer group.Close() //nolint:errcheck // handles
	}
	linux := &runspec.Linux{}
	if r.Linux != nil {
		*linux = *r.Linux
	}
	a := &spawnArgs{dir: path.Join(c.root, r.ID), cgroup: -1}
	if a.affinity, err = plan.InitialAffinity(o.Process); err != nil {
		return nil, err
	}
	rejoin := Rootless() && hasNamespace(r.Namespaces, runspec.UserNamespace) && hasNamespace(r.Namespaces, runspec.PIDNamespace)
	for _, n := range r.Namespaces {
		if n.Type == runspec.PIDNamespace && !rejoin {
			a.joins = []plan.Join{{Type: "pid", FD: pidfd}}
			continue
		}
		linux.Namespaces = append(linux.Namespaces, n)
	}
	in := &plan.Input{Spec: &runspec.Spec{Process: o.Process, Linux: linux}, ID: r.ID, Replica: o.Replica, NoNewKeyring: r.NoKeyring, Rejoin: rejoin}
	if in.Filter, err = c.filter(); err != nil {
		return nil, err
	}
	if in.Filter == nil {
		linux.Seccomp = nil
	} else if linux.Seccomp == nil {
		linux.Seccomp = &runspec.LinuxSeccomp{}
	}
	in.Facts.Held, in.Facts.LastCap = held()
	in.Facts.Limits = map[int][2]uint64{}
	processFacts(&in.Facts, o.Process)
	in.Facts.SELinux = in.Facts.SELinux || linux.MountLabel != "" && selinux()
	for _, n := range r.Namespaces {
		if n.Type == runspec.UserNamespace {
			in.Facts.NoSetgroups = setgroupsDenied(strconv.Itoa(r.Pid))
		}
	}
	if !hasHome(o.Process.Env) {
		if root, err := unix.Open("/proc/"+strconv.Itoa(r.Pid)+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err == nil {
			in.Home = home(root, o.Process.User.UID)
			_ = unix.Close(root)
		}
	}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, err
	}
	report := p[0]
	defer unix.Close(report) //nolint:errcheck // read only
	keep(p[1])
	console, mine := -1, -1
	if o.Process.Terminal && !o.Replica {
		if o.ConsoleSocket != nil {
			console = int(o.ConsoleSocket.Fd())
		} else {
			sp, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return nil, err
			}
			mine, console = sp[0], keep(sp[1])
			defer unix.Close(mine) //nolint:errcheck // a socket of our own
		}
	}
	null := -1
	for _, f := range o.Stdio {
		if f != nil {
			a.fds = append(a.fds, int(f.Fd()))
			continue
		}
		if null < 0 {
			if null, err = unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
				return nil, err
			}
			keep(null)
		}
		a.fds = append(a.fds, null)
	}
	for _, f := range o.Preserve {
		a.fds = append(a.fds, int(f.Fd()))
	}
	first := len(a.fds)
	in.Fds = plan.Fds{
		Preserve: len(o.Preserve), Report: first, Control: -1, Gate: -1, Console: first + 1,
		Join: []plan.Join{{Type: "all", FD: first + 2}},
	}
	a.fds = append(a.fds, p[1], console, pidfd)
	if !r.ownMounts() {
		root, err := unix.Open("/proc/"+strconv.Itoa(r.Pid)+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		in.Chroot = len(a.fds)
		a.fds = append(a.fds, keep(root))
	}
	if group != nil {
		tasks, err := group.Tasks()
		if err != nil {
			return nil, err
		}
		for _, t := range tasks {
			in.Fds.Tasks = append(in.Fds.Tasks, len(a.fds))
			a.fds = append(a.fds, int(t.Fd()))
		}
		if d := group.Dir(); d != nil {
			a.cgroup = int(d.Fd())
		}
	}
	if r.RDT != nil {
		rdt, err := openResctrl()
		if err != nil {
			return nil, err
		}
		defer rdt.close()
		fds, err := rdt.tasks(r.RDT)
		if err != nil {
			return nil, err
		}
		for _, fd := range fds {
			in.Fds.Tasks = append(in.Fds.Tasks, len(a.fds))
			a.fds = append(a.fds, keep(fd))
		}
	}
	control := -1 // only for a filter with a listener
	if in.Filter != nil && in.Filter.Notify {
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			return nil, err
		}
		control = p[1]
		defer unix.Close(control) //nolint:errcheck // one byte was written or not
		in.Fds.Control = len(a.fds)
		a.fds = append(a.fds, keep(p[0]))
	}
	if a.plan, err = plan.BuildExec(in); err != nil {
		return nil, err
	}
	if o.Warn != nil {
		for _, w := range a.plan.Warnings {
			o.Warn(w)
		}
	}
	steps := undo.New("exec")
	var pid int
	err = steps.Do("process", func() (err error) { pid, err = spawn(a); return err }, nil)
	if err != nil && pid > 0 { // a fault point
		_ = unix.Kill(pid, unix.SIGKILL)
		reap(pid)
		return nil, err
	}
	outside := err != nil && Rootless() && a.cgroup >= 0 && (errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM))
	if outside { // without privileges a process moves only between groups below one that is the user's
		a.cgroup = -1
		pid, err = spawn(a)
	}
	if err != nil {
		return nil, err
	}
	closeAll()
	child := &Container{report: report, record: r, pid: pid}
	if rejoin {
		m, err := child.read(a.plan)
		reap(pid)
		if err != nil {
			return nil, err
		}
		if m[0] != plan.MessagePid {
			return nil, &errdefs.Error{Op: "exec in container", What: r.ID, Kind: errdefs.Internal, Why: "an unexpected message"}
		}
		pid = int(m[1])
		child.pid = pid
	}
	if outside {
		// systemd can move it, a moment late; where it has not made the group the process stays outside, as with runc.
		if err := group.Attach(pid); err != nil && o.Warn != nil {
			o.Warn("the process is not in the container's control group: this user may not put it there from its own")
		}
	}
	proc := &Process{c: c, pid: pid}
	if mine >= 0 {
		if proc.console, err = receive(mine); err != nil {
			if _, e := child.read(a.plan); e != nil {
				err = e
			}
			_ = unix.Kill(pid, unix.SIGKILL)
			reap(pid)
			return nil, err
		}
	}
	if control >= 0 {
		if err := child.serveListener(a.plan, control, r.status(), linux.Seccomp); err != nil {
			_ = unix.Kill(pid, unix.SIGKILL)
			reap(pid)
			if proc.console != nil {
				_ = proc.console.Close()
			}
			return nil, err
		}
	}
	if err := steps.Do("execute", func() error {
		_, err := child.read(a.plan)
		return err
	}, nil); err != nil {
		if proc.console != nil {
			_ = proc.console.Close()
		}
		_ = unix.Kill(pid, unix.SIGKILL)
		reap(pid)
		return nil, err
	}
	return proc, nil
}

// filter is the container's compiled filter as Create has kept it; nil for none.
func (c *Container) filter() (*seccomp.Program, error) {
	b, err := readBounded(path.Join(c.root, c.record.ID, filterFile), 4096*8)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	p := &seccomp.Program{Flags: c.record.Flags, Notify: c.record.Flags&unix.SECCOMP_FILTER_FLAG_NEW_LISTENER != 0, Filter: make([]seccomp.Instruction, len(b)/8)}
	for i := range p.Filter {
		x := b[8*i:]
		p.Filter[i] = seccomp.Instruction{Code: binary.LittleEndian.Uint16(x), Jt: x[2], Jf: x[3], K: binary.LittleEndian.Uint32(x[4:])}
	}
	return p, nil
}

func hasNamespace(list []runspec.LinuxNamespace, t runspec.LinuxNamespaceType) bool {
	for _, n := range list {
		if n.Type == t {
			return true
		}
	}
	return false
}
