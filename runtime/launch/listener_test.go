package launch

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"unsafe"

	"github.com/onggi/onggi/errdefs"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// agent answers the notifications of seccomp listeners: mkdir fails with EDOM, all else continues.
type agent struct {
	socket string
	states chan runspec.ContainerProcessState
}

func newAgent(t *testing.T, dir string) *agent {
	t.Helper()
	a := &agent{socket: filepath.Join(dir, "agent.sock"), states: make(chan runspec.ContainerProcessState, 8)}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: a.socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			a.serve(t, c)
		}
	}()
	return a
}

func (a *agent) serve(t *testing.T, c *net.UnixConn) {
	defer c.Close() //nolint:errcheck // read only
	b, oob := make([]byte, 64<<10), make([]byte, 64)
	n, on, _, _, err := c.ReadMsgUnix(b, oob)
	if err != nil {
		t.Error(err)
		return
	}
	var s runspec.ContainerProcessState
	if err := json.Unmarshal(b[:n], &s); err != nil {
		t.Errorf("%v: %q", err, b[:n])
	}
	ms, _ := unix.ParseSocketControlMessage(oob[:on])
	if len(ms) != 1 {
		t.Errorf("got %d control messages, want 1", len(ms))
		return
	}
	fds, err := unix.ParseUnixRights(&ms[0])
	if err != nil || len(fds) != 1 {
		t.Errorf("got descriptors %v (%v), want one", fds, err)
		return
	}
	if n, _ := c.Read(b); n != 0 {
		t.Errorf("%d more bytes on the connection, want its end", n)
	}
	a.states <- s
	go answer(fds[0])
}

// answer speaks linux/seccomp.h: struct seccomp_notif is 80 bytes with the id first and the call's number at 16, the
// response is id, value, error, flags.
func answer(fd int) {
	defer unix.Close(fd) //nolint:errcheck // the end
	for {
		var req [80]byte
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), 0xc0502100, uintptr(unsafe.Pointer(&req))); e == unix.EINTR {
			continue
		} else if e != 0 {
			return // the process is gone
		}
		resp := struct {
			id, val    uint64
			err, flags int32
		}{id: *(*uint64)(unsafe.Pointer(&req[0]))}
		if nr := *(*int32)(unsafe.Pointer(&req[16])); nr == unix.SYS_MKDIRAT || nr == 83 {
			resp.err = -int32(unix.EDOM)
		} else {
			resp.flags = 1 // SECCOMP_USER_NOTIF_FLAG_CONTINUE
		}
		_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(fd), 0xc0182101, uintptr(unsafe.Pointer(&resp)))
	}
}

func TestSeccompListener(t *testing.T) {
	h := newHost(t)
	a := newAgent(t, h.bundle)
	// Everything that the image itself calls under its filter, but for write, is notified too.
	profile := func() *runspec.LinuxSeccomp {
		return &runspec.LinuxSeccomp{
			DefaultAction: runspec.ActAllow, ListenerPath: a.socket, ListenerMetadata: "some data",
			Flags:    []runspec.LinuxSeccompFlag{runspec.LinuxSeccompFlagWaitKillableRecv},
			Syscalls: []runspec.LinuxSyscall{{Names: []string{"mkdir", "mkdirat", "prctl", "read", "capset", "rt_sigprocmask", "execve", "close_range", "clone"}, Action: runspec.ActNotify}},
		}
	}
	const script = "mkdir /tmp/x 2>/dev/null || echo refused; echo done"
	if err := os.Symlink("busybox", filepath.Join(h.rootfs, "bin/mkdir")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ nnp, gated, init bool }{{true, false, false}, {false, false, false}, {true, true, false}, {false, true, false}, {true, false, true}, {false, true, true}} {
		s := h.spec(script)
		s.Process.NoNewPrivileges = c.nnp
		s.Linux.Seccomp = profile()
		s.Annotations = map[string]string{"k": "v"}
		o := h.options(s)
		o.Ungated, o.Init = !c.gated, c.init
		out, code, err := h.run(o)
		if err != nil || code != 0 || out != "refused\ndone\n" {
			t.Errorf("%+v: got %q, code %d, %v", c, out, code, err)
		}
		st := <-a.states
		want := runspec.ContainerProcessState{
			Version: runspec.Version, Fds: []string{"seccompFd"}, Pid: st.Pid, Metadata: "some data",
			State: runspec.State{Version: "1.0.2", ID: o.ID, Status: runspec.StateCreating, Pid: st.Pid, Bundle: h.bundle, Annotations: s.Annotations},
		}
		if st.Pid == 0 || !reflect.DeepEqual(st, want) {
			t.Errorf("%+v: state\n got %+v\nwant %+v", c, st, want)
		}
	}
	s := h.spec("sleep 100")
	s.Linux.Seccomp = profile()
	k := h.background(h.options(s))
	<-a.states
	c, err := Load(h.root, k.record.ID)
	if err != nil {
		t.Fatal(err)
	}
	p := c.DefaultProcess()
	p.Args = []string{"sh", "-c", script}
	if out := h.exec(c, &p); out != "refused\ndone\n" {
		t.Errorf("exec: %q", out)
	}
	if st := <-a.states; st.State.Pid != k.Pid() || st.Pid == k.Pid() || st.State.Status != runspec.StateRunning {
		t.Errorf("exec: state %+v", st)
	}
}

func TestSeccompListenerFailures(t *testing.T) {
	h := newHost(t)
	for want, change := range map[string]func(*runspec.LinuxSeccomp){
		"send the seccomp listener to /no/agent":     func(l *runspec.LinuxSeccomp) { l.ListenerPath = "/no/agent" },
		`SCMP_ACT_NOTIFY cannot be used for "write"`: func(l *runspec.LinuxSeccomp) { l.Syscalls[0].Names = []string{"write"} },
		"linux.seccomp.listenerPath":                 func(l *runspec.LinuxSeccomp) { l.ListenerPath = "" },
	} {
		s := h.spec("true")
		s.Linux.Seccomp = &runspec.LinuxSeccomp{DefaultAction: runspec.ActAllow, ListenerPath: "/x", Syscalls: []runspec.LinuxSyscall{{Names: []string{"mkdir"}, Action: runspec.ActNotify}}}
		change(s.Linux.Seccomp)
		if _, _, err := h.run(h.options(s)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v (%v), want %s", err, errdefs.KindOf(err), want)
		}
	}
	// Without a rule that notifies, the path is ignored.
	s := h.spec("echo ok")
	s.Linux.Seccomp = &runspec.LinuxSeccomp{DefaultAction: runspec.ActAllow, ListenerPath: "/no/agent"}
	if out, _, err := h.run(h.options(s)); err != nil || out != "ok\n" {
		t.Errorf("got %q, %v", out, err)
	}
}
