package launch

import (
	"encoding/json"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/runtime/plan"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// serveListener waits for a process's word that its filter is loaded, takes the listener's descriptor out of it and
// sends it to the agent at linux.seccomp.listenerPath (config-linux.md, "The Container Process State"). Then the process
// may go on: what its filter notifies from now on, the agent answers. control is the write end of what it waits for.
func (c *Container) serveListener(p *plan.Plan, control int, status runspec.ContainerState, s *runspec.LinuxSeccomp) error {
	m, err := c.read(p)
	if err != nil {
		return err
	}
	if m[0] != plan.MessageListener {
		return &errdefs.Error{Op: "load", What: "the seccomp filter", Kind: errdefs.Internal, Why: "an unexpected message"}
	}
	pidfd, err := unix.PidfdOpen(c.pid, 0)
	if err != nil {
		return &errdefs.Error{Op: "take", What: "the seccomp listener", Err: err}
	}
	defer unix.Close(pidfd) //nolint:errcheck // a handle
	fd, err := unix.PidfdGetfd(pidfd, int(m[1]), 0)
	if err != nil {
		return &errdefs.Error{Op: "take", What: "the seccomp listener", Err: err, Why: "pidfd_getfd(2) needs Linux 5.6 and the right to trace the container's process"}
	}
	defer unix.Close(fd) //nolint:errcheck // the agent has it
	state := runspec.ContainerProcessState{
		Version: runspec.Version, Fds: []string{runspec.SeccompFdName}, Pid: c.pid, Metadata: s.ListenerMetadata,
		State: runspec.State{
			Version: c.record.Version, ID: c.record.ID, Status: status, Pid: c.record.Pid, Bundle: c.record.Bundle,
			Annotations: c.record.Annotations,
		},
	}
	if state.State.Pid == 0 {
		state.State.Pid = c.pid
	}
	if err := sendState(s.ListenerPath, &state, fd); err != nil {
		return &errdefs.Error{Op: "send the seccomp listener to", What: s.ListenerPath, Err: err, Fix: "check that the agent listens there"}
	}
	if _, err := unix.Write(control, []byte{plan.AllowListened}); err != nil {
		return &errdefs.Error{Op: "release", What: "the container's process", Err: err}
	}
	return nil
}

// sendState connects, sends one state with one descriptor, and closes.
func sendState(name string, state *runspec.ContainerProcessState, fd int) error {
	b, err := json.Marshal(state)
	if err != nil {
		return err
	}
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s) //nolint:errcheck // what was sent is sent
	// An agent that accepts nothing must not hold a start for ever; the timeout is connect's too (unix(7)).
	if err := unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: 10}); err != nil {
		return err
	}
	if err := unix.Connect(s, &unix.SockaddrUnix{Name: name}); err != nil {
		return err
	}
	rights := unix.UnixRights(fd)
	for len(b) > 0 { // the descriptor goes with the first part
		n, err := unix.SendmsgN(s, b, rights, nil, unix.MSG_NOSIGNAL)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		b, rights = b[n:], nil
	}
	return nil
}
