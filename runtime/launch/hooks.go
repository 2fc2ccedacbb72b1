package launch

//lint:file-ignore SA1019 Prestart is deprecated, but engines still send it

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/runtime/plan"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Hooks by where they run (config.md, "POSIX-platform Hooks"): prestart, createRuntime, poststart and poststop in the
// runtime's namespaces; createContainer before, and startContainer after the change of root, in the container's.

//
// prestart hooks are told "created": their authors know version 1.0 of the specification, where they run after create, and
// its validation suite looks for the word. The hooks that took their place are told "creating", as by runc.

func (c *Container) createHooks(ctx context.Context, h *runspec.Hooks) error {
	for _, stage := range [...]struct {
		list   []runspec.Hook
		status runspec.ContainerState
	}{{h.Prestart, runspec.StateCreated}, {h.CreateRuntime, runspec.StateCreating}} { //nolint:staticcheck // prestart is deprecated and in use
		for i := range stage.list {
			if err := c.hook(ctx, &stage.list[i], stage.status, false); err != nil {
				return err
			}
		}
	}
	return c.hooksInside(ctx, h.CreateContainer, runspec.StateCreating)
}

func (c *Container) hooksInside(ctx context.Context, list []runspec.Hook, s runspec.ContainerState) error {
	for i := range list {
		if err := c.hook(ctx, &list[i], s, true); err != nil {
			return err
		}
	}
	return nil
}

func (c *Container) startHooks(ctx context.Context) error {
	if c.record.Hooks == nil {
		return nil
	}
	return c.hooksInside(ctx, c.record.Hooks.StartContainer, runspec.StateCreated)
}

// poststart runs when the command does; a hook that fails ends the container (runtime.md, "Lifecycle", 9).
func (c *Container) poststart() error {
	if c.record.Hooks == nil {
		return nil
	}
	for i := range c.record.Hooks.Poststart {
		if err := c.hook(context.Background(), &c.record.Hooks.Poststart[i], runspec.StateRunning, false); err != nil {
			_ = c.signalProcess(int(unix.SIGKILL))
			return err
		}
	}
	return nil
}

// poststop runs when all of the container is gone but its record; whatever a hook does, the next one runs.
func (c *Container) poststop() {
	if c.record.Hooks == nil {
		return
	}
	for i := range c.record.Hooks.Poststop {
		if err := c.hook(context.Background(), &c.record.Hooks.Poststop[i], runspec.StateStopped, false); err != nil {
			_, _ = os.Stderr.WriteString("onggi-runtime: " + err.Error() + "\n")
		}
	}
}

// hook runs one hook with the container's state on its standard input.
func (c *Container) hook(ctx context.Context, h *runspec.Hook, status runspec.ContainerState, inside bool) error {
	fail := func(err error, why string) error {
		return &errdefs.Error{Op: "run the hook", What: h.Path, Err: err, Why: why, Kind: errdefs.KindOf(err)}
	}
	s := runspec.State{Version: c.record.Version, ID: c.record.ID, Status: status, Pid: c.pid, Bundle: c.record.Bundle, Annotations: c.record.Annotations}
	switch {
	case status == runspec.StateStopped:
		s.Pid = 0
	case inside:
		s.Pid = innerPid(c.pid)
	}
	state, err := json.Marshal(&s)
	if err != nil {
		return fail(err, "")
	}
	if h.Timeout != nil {
		if *h.Timeout <= 0 {
			return &errdefs.Error{Op: "run the hook", What: h.Path, Kind: errdefs.InvalidArgument, Why: "its timeout is not positive"}
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(*h.Timeout)*time.Second)
		defer cancel()
	}
	stdin, w, err := os.Pipe()
	if err != nil {
		return fail(err, "")
	}
	r, stderr, err := os.Pipe()
	if err != nil {
		_ = stdin.Close()
		_ = w.Close()
		return fail(err, "")
	}
	defer r.Close() //nolint:errcheck // read only
	var pid int
	if inside {
		pid, err = c.spawnHook(h, stdin, stderr)
	} else {
		args := h.Args
		if len(args) == 0 {
			args = []string{h.Path}
		}
		var p *os.Process
		env := h.Env
		if env == nil {
			env = []string{}
		}
		if p, err = os.StartProcess(h.Path, args, &os.ProcAttr{Dir: c.record.Bundle, Env: env, Files: []*os.File{stdin, stderr, stderr}}); err == nil {
			pid = p.Pid
		}
	}
	_ = stdin.Close()
	_ = stderr.Close()
	if err != nil {
		_ = w.Close()
		return fail(err, "")
	}
	go func() {
		_, _ = w.Write(append(state, '\n')) // a hook that does not read it ends the pipe
		_ = w.Close()
	}()
	out := make(chan string, 1)
	go func() {
		var b bytes.Buffer
		buf := make([]byte, 4096)
		for {
			n, err := r.Read(buf)
			if room := 16<<10 - b.Len(); room > 0 {
				b.Write(buf[:min(n, room)])
			}
			if err != nil {
				break
			}
		}
		out <- b.String()
	}()
	done := make(chan unix.WaitStatus, 1)
	go func() { done <- reap(pid) }()
	var ws unix.WaitStatus
	select {
	case ws = <-done:
	case <-ctx.Done():
		_ = unix.Kill(pid, unix.SIGKILL)
		<-done
		return fail(ctx.Err(), "it took too long")
	}
	if ws.Exited() && ws.ExitStatus() == 0 {
		return nil
	}
	why := "it was killed by signal " + strconv.Itoa(int(ws.Signal()))
	if ws.Exited() {
		why = "it exited with code " + strconv.Itoa(ws.ExitStatus())
	}
	text := ""
	select {
	case text = <-out:
	case <-time.After(100 * time.Millisecond): // a descendant of the hook holds its output open
	}
	if text != "" {
		why += ": " + string(bytes.TrimSpace([]byte(text)))
	}
	return fail(nil, why)
}

// innerPid is a process's id in its own pid namespace: the last of those in NSpid (proc_pid_status(5)).
func innerPid(pid int) int {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return pid
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "NSpid:"); ok {
			if f := strings.Fields(rest); len(f) > 0 {
				if n, err := strconv.Atoi(f[len(f)-1]); err == nil {
					return n
				}
			}
		}
	}
	return pid
}

// spawnHook runs a hook inside the container's namespaces.
func (c *Container) spawnHook(h *runspec.Hook, stdin, output *os.File) (int, error) {
	pidfd, err := unix.PidfdOpen(c.pid, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(pidfd) //nolint:errcheck // a handle
	spec := &runspec.Spec{Linux: &runspec.Linux{}}
	a := &spawnArgs{dir: c.root + "/" + c.record.ID, cgroup: -1}
	for _, n := range c.record.Namespaces {
		switch n.Type {
		case runspec.PIDNamespace:
			a.joins = []plan.Join{{Type: "pid", FD: pidfd}}
		case runspec.CgroupNamespace: // the container may not have made it yet, and a hook has no use for it
		default:
			spec.Linux.Namespaces = append(spec.Linux.Namespaces, n)
		}
	}
	in := &plan.Input{Spec: spec, Fds: plan.Fds{Report: 3, Gate: -1, Join: []plan.Join{{Type: "all", FD: 4}}}}
	root, err := unix.Open("/proc/"+strconv.Itoa(c.pid)+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(root) //nolint:errcheck // a handle
	// As a process of the container, it counts for the container's limits.
	var tasks []int
	if g, err := c.openGroup(); err == nil {
		files, err := g.Tasks()
		if err != nil {
			return 0, err
		}
		for _, f := range files {
			in.Fds.Tasks = append(in.Fds.Tasks, 6+len(tasks))
			tasks = append(tasks, int(f.Fd()))
		}
		if d := g.Dir(); d != nil {
			a.cgroup = int(d.Fd())
		}
	}
	a.plan = plan.BuildHook(in, h, 5)
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return 0, err
	}
	defer unix.Close(p[0]) //nolint:errcheck // read only
	a.fds = append([]int{int(stdin.Fd()), int(output.Fd()), int(output.Fd()), p[1], pidfd, root}, tasks...)
	pid, err := spawn(a)
	_ = unix.Close(p[1])
	if err != nil {
		return 0, err
	}
	x := &Container{report: p[0], record: c.record}
	if _, err := x.read(a.plan); err != nil {
		reap(pid)
		return 0, err
	}
	return pid, nil
}
