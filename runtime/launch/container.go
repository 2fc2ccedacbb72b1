package launch

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path"
	"time"

	"github.com/onggi/onggi/cgroup"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/runtime/monitor"
	"github.com/onggi/onggi/runtime/plan"
	"github.com/onggi/onggi/sys"
	"github.com/onggi/onggi/undo"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Container is a created container. It is not safe for concurrent use, but for Signal.
type Container struct {
	root    string
	record  *record
	plan    *plan.Plan // nil when another process has created it
	pid     int
	group   *cgroup.Group
	control int // write end; -1 when another process has created it, or when there is nothing more to allow
	report  int
	console *os.File
	notify  *os.File
	steps   *undo.Stack
	born    int64       // monotonic clock at Create, ns
	inside  []undo.Span // phases of the container's process
	started time.Time
	ended   bool
}

var _ monitor.Process = (*Container)(nil)

// Load finds a container that this or another process has created. NotFound when there is none.
func Load(root, id string) (*Container, error) {
	r, err := readRecord(root, id)
	if err != nil {
		return nil, err
	}
	return &Container{root: root, record: r, pid: r.Pid, control: -1, report: -1, steps: undo.New("")}, nil
}

// Pid is the first process, in the caller's pid namespace.
func (c *Container) Pid() int { return c.pid }

// State is what the runtime specification calls the state.
func (c *Container) State() State {
	s := c.record.state()
	if s.Status == runspec.StateRunning || s.Status == runspec.StateCreated {
		s.Status = c.status()
	}
	return s
}

// Console is the terminal's master side when Create received it; nil otherwise. The caller closes it.
func (c *Container) Console() *os.File { return c.console }

// Spans are the phases so far: those of this process, then those inside the container's process ("container.").
func (c *Container) Spans() []undo.Span { return append(c.steps.Spans(), c.inside...) }

func (c *Container) allow(b byte) error {
	if _, err := unix.Write(c.control, []byte{b}); err != nil {
		if err == unix.EPIPE { // the process is gone; its message says why
			if _, e := c.read(c.plan); e != nil {
				return e
			}
		}
		return &errdefs.Error{Op: "release", What: "the container's process", Err: err}
	}
	return nil
}

// read returns the next message of the container's process, {0, 0} at the end of file, or the error that ended it.
func (c *Container) read(p *plan.Plan) (m [2]uint64, err error) {
	for {
		var b [16]byte
		n, err := readFull(c.report, b[:])
		if err != nil {
			return m, err
		}
		if n < len(b) {
			return [2]uint64{}, nil
		}
		m[0], m[1] = binary.LittleEndian.Uint64(b[:]), binary.LittleEndian.Uint64(b[8:])
		switch {
		case m[0] == plan.MessageTimes:
			if err := c.readTimes(p, int(m[1])); err != nil {
				return m, err
			}
		case m[0] >= sys.OpsBase:
			i := int((m[0] - sys.OpsBase) / sys.OpSize)
			return m, c.failure(p, i, unix.Errno(m[1]))
		default:
			return m, nil
		}
	}
}

func readFull(fd int, b []byte) (n int, err error) {
	for n < len(b) {
		k, err := unix.Read(fd, b[n:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || k == 0 {
			return n, err
		}
		n += k
	}
	return n, nil
}

func (c *Container) readTimes(p *plan.Plan, n int) error {
	b := make([]byte, 16*min(n, 64))
	if k, err := readFull(c.report, b); err != nil || k < len(b) {
		return errors.Join(err, errors.New("a short message from the container's process"))
	}
	last := c.born
	for i := range len(b) / 16 {
		t := int64(binary.LittleEndian.Uint64(b[16*i:]))*1e9 + int64(binary.LittleEndian.Uint64(b[16*i+8:]))
		name := "container"
		if p != nil && i < len(p.Phases) {
			name += "." + p.Phases[i]
		}
		c.inside = append(c.inside, undo.Span{Name: name, Start: time.Duration(last - c.born), Took: time.Duration(t - last)})
		last = t
	}
	return nil
}

func monotonic() int64 {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &t)
	return t.Nano()
}

// failure turns a failed operation into an error with the operation's name.
func (c *Container) failure(p *plan.Plan, i int, errno unix.Errno) error {
	name := "an unknown step"
	r := c.record
	switch {
	case p != nil && i < len(p.Names):
		name = p.Names[i].String()
	case p == nil && i >= r.FirstStep && i-r.FirstStep < len(r.Steps):
		name = r.Steps[i-r.FirstStep]
	}
	return stepError(name, errno)
}

// stepError knows what a failed execve(2) means to users (docker run, "Exit status").
func stepError(name string, errno unix.Errno) error {
	const execute = "execute "
	if len(name) > len(execute) && name[:len(execute)] == execute {
		cmd := name[len(execute):]
		e := &errdefs.Error{Op: "execute", What: `"` + cmd + `"`, Err: errno}
		switch errno {
		case unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.ENAMETOOLONG:
			e.Kind, e.Fix = errdefs.CommandNotFound, "check the command's spelling, and that the image has it"
			if path.Base(cmd) == cmd {
				e.Err, e.Why = nil, "executable file not found in $PATH"
			}
		case unix.EACCES, unix.ENOEXEC, unix.EPERM, unix.EISDIR, unix.ELIBBAD:
			e.Kind, e.Fix = errdefs.NotExecutable, "check that the file is a program for this processor and has the x bit"
		}
		return e
	}
	return &errdefs.Error{Op: name, Err: errno}
}

// Start lets the first process execute the command and returns when it does. Errors: CommandNotFound, NotExecutable,
// Conflict when the container is not waiting to be started. A startContainer or poststart hook that fails ends the
// container.
func (c *Container) Start() error {
	if c.control < 0 {
		return c.startByOther()
	}
	if err := c.steps.Do("start", c.startOwn, nil); err != nil {
		return err
	}
	c.started = time.Now()
	_ = unix.Close(c.control)
	_ = unix.Close(c.report)
	c.control, c.report = -1, -1
	return c.poststart()
}

func (c *Container) startOwn() error {
	if c.record.Status == runspec.StateCreated {
		if err := c.startHooks(context.Background()); err != nil {
			_ = c.signalProcess(int(unix.SIGKILL))
			return err
		}
		c.record.Status = runspec.StateRunning
		if err := c.record.write(c.root); err != nil {
			return err
		}
		if err := c.allow(plan.AllowStart); err != nil {
			return err
		}
	}
	m, err := c.read(c.plan)
	if err == nil && m[0] != 0 {
		err = &errdefs.Error{Op: "start container", What: c.record.ID, Kind: errdefs.Internal, Why: "an unexpected message"}
	}
	return err
}

// startByOther starts a container that another process has created, through its gate.
func (c *Container) startByOther() error {
	id := c.record.ID
	l, err := lock(c.root, id, false)
	if err != nil {
		return err
	}
	defer unix.Close(l) //nolint:errcheck // unlocks
	if c.record, err = readRecord(c.root, id); err != nil {
		return err
	}
	c.pid = c.record.Pid
	switch s := c.status(); s {
	case runspec.StateCreated:
	case runspec.StateRunning:
		return &errdefs.Error{Op: "start", What: "an already running container: " + id, Kind: errdefs.Conflict}
	case runspec.StateStopped:
		return &errdefs.Error{Op: "start", What: "a container that has stopped: " + id, Kind: errdefs.Conflict}
	default:
		return &errdefs.Error{Op: "start container", What: id, Kind: errdefs.Conflict, Why: "it is " + string(s) + ", not created"}
	}
	dir := path.Join(c.root, id)
	// Reader first: the process would be killed for writing where nobody reads.
	if c.report, err = unix.Open(path.Join(dir, reportFile), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0); err != nil {
		return err
	}
	defer func() {
		_ = unix.Close(c.report)
		c.report = -1
	}()
	if err := unix.SetNonblock(c.report, false); err != nil {
		return err
	}
	gate, err := unix.Open(path.Join(dir, gateFile), unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return &errdefs.Error{Op: "start container", What: id, Kind: errdefs.Conflict, Why: "its process is not waiting", Err: err}
	}
	defer unix.Close(gate) //nolint:errcheck // one byte was written or not
	steps := undo.New("start")
	if err := steps.Do("hooks", func() error { return c.startHooks(context.Background()) }, nil); err != nil {
		_ = c.signalProcess(int(unix.SIGKILL))
		return err
	}
	if err := steps.Do("record", func() error {
		c.record.Status = runspec.StateRunning
		return c.record.write(c.root)
	}, nil); err != nil {
		return err
	}
	if err := steps.Do("release", func() error {
		_, err := unix.Write(gate, []byte{plan.AllowStart})
		return err
	}, nil); err != nil {
		return err
	}
	if err := steps.Do("execute", func() error {
		_, err := c.read(nil)
		return err
	}, nil); err != nil {
		return err
	}
	return steps.Do("poststart", c.poststart, nil)
}

// Wait returns how the first process ended. Only for the process that created it.
func (c *Container) Wait() (monitor.Exit, error) {
	var ws unix.WaitStatus
	for {
		_, err := unix.Wait4(c.pid, &ws, 0, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return monitor.Exit{}, &errdefs.Error{Op: "wait for", What: c.record.ID, Err: err}
		}
		break
	}
	c.ended = true
	e := exitOf(ws)
	e.StartedAt = c.started
	return e, nil
}

func exitOf(ws unix.WaitStatus) monitor.Exit {
	e := monitor.Exit{FinishedAt: time.Now(), Code: ws.ExitStatus()}
	if ws.Signaled() {
		e.Signal = int(ws.Signal())
		e.Code = 128 + e.Signal
	}
	return e
}

// Signal sends a signal to the first process, and SIGKILL to all when the container has no pid namespace of its own: no
// kernel ends the others then. Conflict when the first process has ended.
func (c *Container) Signal(sig int) error {
	if c.ended || !c.record.alive() {
		return notRunning(c.record.ID)
	}
	err := c.signalProcess(sig)
	if err == nil && unix.Signal(sig) == unix.SIGKILL {
		if !c.hasPidNamespace() {
			return c.SignalAll(sig)
		}
		c.thaw()
	}
	return err
}

func notRunning(id string) error {
	return &errdefs.Error{Op: "signal container", What: id, Kind: errdefs.Conflict, Why: "container not running"}
}

// signalProcess uses a pidfd, checked against the recorded start time, so that no other process is hit.
func (c *Container) signalProcess(sig int) error {
	fd, err := unix.PidfdOpen(c.pid, 0)
	if err != nil {
		return notRunning(c.record.ID)
	}
	defer unix.Close(fd) //nolint:errcheck // a handle
	if t, _ := startTime(c.pid); t != c.record.Started {
		return notRunning(c.record.ID)
	}
	if err := unix.PidfdSendSignal(fd, unix.Signal(sig), nil, 0); err != nil {
		return &errdefs.Error{Op: "signal container", What: c.record.ID, Err: err}
	}
	return nil
}

// SignalAll sends a signal to every process of the container's control group.
func (c *Container) SignalAll(sig int) error {
	g, err := c.openGroup()
	if err != nil {
		return c.Signal(sig)
	}
	if unix.Signal(sig) == unix.SIGKILL {
		return g.Kill()
	}
	pids, err := g.Pids()
	if err != nil {
		return err
	}
	for _, p := range pids {
		_ = unix.Kill(p, unix.Signal(sig))
	}
	return nil
}

// Pids lists the processes of the container.
func (c *Container) Pids() ([]int, error) {
	g, err := c.openGroup()
	if err != nil {
		return nil, err
	}
	return g.Pids()
}

func (c *Container) openGroup() (*cgroup.Group, error) {
	if c.group != nil {
		return c.group, nil
	}
	if c.record.Cgroup == "" {
		return nil, &errdefs.Error{Op: "find", What: "the control group of " + c.record.ID, Kind: errdefs.NotFound}
	}
	l, err := layout()
	if err != nil {
		return nil, err
	}
	var g *cgroup.Group
	if c.record.Scope != "" {
		g, err = cgroup.OpenScope(l, c.scope(), c.record.Cgroup)
	} else {
		g, err = cgroup.Open(l, c.record.Cgroup)
	}
	if err == nil {
		c.group = g
	}
	return g, err
}

func (c *Container) scope() *cgroup.Scope {
	return &cgroup.Scope{Unit: c.record.Scope, Runtime: c.record.Manager}
}

// OOMKilled reports whether the kernel has killed something in the container's control group for memory.
func (c *Container) OOMKilled() bool {
	g, err := c.openGroup()
	if err != nil {
		return false
	}
	n, err := g.OOMKills()
	return err == nil && n > 0
}

// MemoryPeak is the most memory that the container's control group has had, bytes; 0 when the kernel does not say.
func (c *Container) MemoryPeak() int64 {
	g, err := c.openGroup()
	if err != nil {
		return 0
	}
	s, err := g.Stats()
	if err != nil {
		return 0
	}
	return int64(min(s.MemoryPeak, 1<<62))
}

// Delete removes control group and state of a stopped container. Conflict when it runs.
func (c *Container) Delete() error { return c.remove(false) }

// ForceDelete kills what is left of the container and removes it, however far its creation came.
func (c *Container) ForceDelete() error { return c.remove(true) }

func (c *Container) remove(force bool) error {
	id := c.record.ID
	l, err := lock(c.root, id, false)
	if err != nil {
		if errdefs.Is(err, errdefs.NotFound) && c.ended {
			return nil
		}
		return err
	}
	defer unix.Close(l) //nolint:errcheck // unlocks
	steps := undo.New("delete")
	if !c.ended {
		if c.record, err = readRecord(c.root, id); err != nil {
			if !force {
				return err
			}
			c.record = &record{ID: id, Cgroup: "/" + id}
		}
		if c.record.alive() {
			if !force {
				return &errdefs.Error{
					Op: "delete container", What: id + " that is not stopped", Kind: errdefs.Conflict, Why: string(c.status()),
					Fix: "stop it first, or use delete --force",
				}
			}
			c.pid = c.record.Pid
			if err := steps.Do("kill", func() error { c.killAndWait(); return nil }, nil); err != nil {
				return err
			}
		}
	}
	// Each step finds what an earlier delete, killed half-way, has left of it; the record goes last.
	for _, s := range [...]struct {
		name string
		deed func() error
	}{
		{"cgroup", func() error { return c.removeGroup(force) }},
		{"resctrl", func() error { return removeResctrl(c.record.RDT) }},
		{"root", c.detachRoot},
		{"poststop", func() error { c.poststop(); return nil }},
		{"state", func() error { return removeState(c.root, id) }},
	} {
		if err := steps.Do(s.name, s.deed, nil); err != nil {
			return err
		}
	}
	return nil
}

// removeGroup takes the control group away, with all that is in it when the container is deleted by force.
func (c *Container) removeGroup(force bool) error {
	g, err := c.openGroup()
	switch {
	case err == nil:
		if force || !c.hasPidNamespace() {
			_ = g.Kill()
		}
		if err := g.Remove(); err != nil {
			return err
		}
		_ = g.Close()
		c.group = nil
	case !errdefs.Is(err, errdefs.NotFound):
		return err
	case c.record.Scope != "": // systemd may be about to take it away, or have failed half-way
		s := c.scope()
		err := s.Stop()
		s.Close()
		return err
	}
	return nil
}

func (c *Container) hasPidNamespace() bool {
	for _, n := range c.record.Namespaces {
		if n.Type == runspec.PIDNamespace {
			return n.Path == ""
		}
	}
	return false
}

// killAndWait kills the first process and waits until it is gone, by its pidfd.
func (c *Container) killAndWait() {
	fd, err := unix.PidfdOpen(c.pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd) //nolint:errcheck // a handle
	if t, _ := startTime(c.pid); t != c.record.Started {
		return
	}
	_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	c.thaw()
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for deadline := time.Now().Add(10 * time.Second); ; {
		n, err := unix.Poll(p, int(max(time.Until(deadline).Milliseconds(), 0)))
		if err != unix.EINTR || n > 0 {
			return
		}
	}
}

// kill takes back a process of our own that has not been handed out.
func (c *Container) kill() error {
	_ = unix.Kill(c.pid, unix.SIGKILL)
	reap(c.pid)
	for _, fd := range [...]*int{&c.control, &c.report} {
		if *fd >= 0 {
			_ = unix.Close(*fd)
			*fd = -1
		}
	}
	if c.console != nil {
		_ = c.console.Close()
	}
	return nil
}
