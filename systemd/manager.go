package systemd

import (
	"bytes"
	"errors"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/onggi/onggi/errdefs"
)

// patience bounds every wait. systemd answers in a millisecond; a job waits for those before it.
const patience = 30 * time.Second

const (
	busName      = "org.freedesktop.systemd1"
	managerPath  = "/org/freedesktop/systemd1"
	managerIface = "org.freedesktop.systemd1.Manager"
)

// Manager is a connection to a service manager.
type Manager struct {
	fd      int
	serial  uint32
	rest    []byte
	removed map[string]string // jobs that have ended, and how
}

// Dial connects to the system's manager, or to the user's own whose socket lies in runtimeDir ("/run/user/1000"; empty
// means the system's). Errors: Unavailable when no manager answers there.
func Dial(runtimeDir string) (*Manager, error) {
	private, bus := "/run/systemd/private", "/run/dbus/system_bus_socket"
	if runtimeDir != "" {
		private, bus = runtimeDir+"/systemd/private", runtimeDir+"/bus"
	}
	m, err := dial(private)
	if err == nil {
		return m, nil
	}
	m, err2 := dial(bus)
	if err2 == nil {
		if err2 = m.greet(); err2 == nil {
			return m, nil
		}
		m.Close()
	}
	e := &errdefs.Error{
		Op: "talk to", What: "systemd", Kind: errdefs.Unavailable, Why: "neither " + private + " nor " + bus + " answers",
		Err: errors.Join(err, err2), Fix: "use the cgroupfs driver: leave --systemd-cgroup out, and set the engine's cgroup manager to cgroupfs",
	}
	if runtimeDir != "" {
		e.Fix = "log in with a session (loginctl enable-linger USER), or leave --systemd-cgroup out"
	}
	return nil, e
}

func dial(path string) (*Manager, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	m := &Manager{fd: fd, removed: map[string]string{}}
	tv := unix.NsecToTimeval(int64(patience))
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv)
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
	if err = unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err == nil {
		err = m.authenticate()
	}
	if err != nil {
		m.Close()
		return nil, errors.Join(errors.New(path), err)
	}
	return m, nil
}

// authenticate has the peer take the credentials of the socket: no identity is named, for a number of ours may be another
// one in the peer's user namespace.
func (m *Manager) authenticate() error {
	if err := m.write([]byte("\x00AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n")); err != nil {
		return err
	}
	var lines []string
	for len(lines) < 2 {
		line, err := m.line()
		if err != nil {
			return err
		}
		lines = append(lines, line)
	}
	if lines[0] != "DATA" || !strings.HasPrefix(lines[1], "OK ") {
		return errors.New("authentication is refused: " + strconv.Quote(strings.Join(lines, " ")))
	}
	return nil
}

func (m *Manager) line() (string, error) {
	for {
		if i := bytes.Index(m.rest, []byte("\r\n")); i >= 0 {
			s := string(m.rest[:i])
			m.rest = m.rest[i+2:]
			return s, nil
		}
		if len(m.rest) > 4096 {
			return "", errMessage
		}
		if err := m.fill(); err != nil {
			return "", err
		}
	}
}

func (m *Manager) write(b []byte) error {
	for len(b) > 0 {
		n, err := unix.SendmsgN(m.fd, b, nil, nil, unix.MSG_NOSIGNAL)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func (m *Manager) fill() error {
	var b [4096]byte
	for {
		n, err := unix.Read(m.fd, b[:])
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return unix.ETIMEDOUT
		case err != nil:
			return err
		case n == 0:
			return unix.ECONNRESET
		}
		m.rest = append(m.rest, b[:n]...)
		return nil
	}
}

// next returns the next message.
func (m *Manager) next() (message, error) {
	for {
		if len(m.rest) >= 16 {
			n, err := size(m.rest)
			if err != nil {
				return message{}, err
			}
			if len(m.rest) >= n {
				b := m.rest[:n:n]
				m.rest = m.rest[n:]
				return parse(b)
			}
		}
		if err := m.fill(); err != nil {
			return message{}, err
		}
	}
}

// greet makes a connection to a bus ready: it asks for a name, and for the signals that tell of ended jobs.
func (m *Manager) greet() error {
	const dbus = "org.freedesktop.DBus"
	if _, err := m.call(dbus, "/org/freedesktop/DBus", dbus, "Hello", "", nil); err != nil {
		return err
	}
	e := &encoder{}
	e.string("type='signal',sender='" + busName + "',interface='" + managerIface + "',member='JobRemoved'")
	if _, err := m.call(dbus, "/org/freedesktop/DBus", dbus, "AddMatch", "s", e.b); err != nil {
		return err
	}
	_, err := m.call(busName, managerPath, managerIface, "Subscribe", "", nil)
	return err
}

// remote is an error that systemd answers.
type remote struct{ name, text string }

func (r *remote) Error() string { return r.text + " (" + r.name + ")" }

// call makes a call and returns its answer. Ended jobs that are told meanwhile are kept.
func (m *Manager) call(destination, path, iface, member, signature string, body []byte) (message, error) {
	m.serial++
	mine := m.serial
	if err := m.write(call(mine, destination, path, iface, member, signature, body)); err != nil {
		return message{}, err
	}
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		r, err := m.next()
		switch {
		case err != nil:
			return r, err
		case r.kind == signalSent:
			m.signal(r)
		case r.reply != mine:
		case r.kind == methodError:
			d := &decoder{b: r.body}
			text := ""
			if strings.HasPrefix(r.signature, "s") {
				text = d.string()
			}
			return r, &remote{r.name, text}
		case r.kind == methodReturn:
			return r, nil
		}
	}
	return message{}, unix.ETIMEDOUT
}

// signal notes JobRemoved(u id, o job, s unit, s result).
func (m *Manager) signal(r message) {
	if r.member != "JobRemoved" || r.iface != managerIface || !strings.HasPrefix(r.signature, "uoss") {
		return
	}
	d := &decoder{b: r.body}
	d.uint32()
	job, _, result := d.string(), d.string(), d.string()
	if !d.bad && len(m.removed) < 1000 {
		m.removed[job] = result
	}
}

// wait waits for the end of the job that a call has answered.
func (m *Manager) wait(r message) (result string, err error) {
	if r.signature != "o" {
		return "", errMessage
	}
	job := (&decoder{b: r.body}).string()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if result, ok := m.removed[job]; ok {
			return result, nil
		}
		s, err := m.next()
		if err != nil {
			return "", err
		}
		if s.kind == signalSent {
			m.signal(s)
		}
	}
	return "", unix.ETIMEDOUT
}

// Start makes a transient unit and returns when its processes are in it. Errors: AlreadyExists when there is a unit of
// that name, InvalidArgument for a property that systemd refuses, Forbidden when policy says no.
func (m *Manager) Start(unit string, list []Property) error {
	e := &encoder{}
	e.string(unit)
	e.string("fail") // a unit that is queued or there already is somebody else's
	properties(e, list)
	e.array(8, func() {}) // no other units
	r, err := m.call(busName, managerPath, managerIface, "StartTransientUnit", "ssa(sv)a(sa(sv))", e.b)
	if err != nil {
		return failed("start", unit, err)
	}
	result, err := m.wait(r)
	if err != nil {
		return failed("start", unit, err)
	}
	if result != "done" {
		return &errdefs.Error{
			Op: "start systemd unit", What: unit, Kind: errdefs.Conflict, Why: "the job's result is " + result,
			Fix: "see why: journalctl -u " + unit,
		}
	}
	return nil
}

// Set changes properties of a running unit until it ends. NotFound when there is no such unit.
func (m *Manager) Set(unit string, list []Property) error {
	if len(list) == 0 {
		return nil
	}
	e := &encoder{}
	e.string(unit)
	e.uint32(1) // only as long as it runs
	properties(e, list)
	_, err := m.call(busName, managerPath, managerIface, "SetUnitProperties", "sba(sv)", e.b)
	return failed("change", unit, err)
}

// Attach moves processes into a running unit with Delegate=yes. A user's manager asks the system's where it may not move them
// itself. Forbidden for processes of another user.
func (m *Manager) Attach(unit string, pids ...int) error {
	e := &encoder{}
	e.string(unit)
	e.string("") // the unit's own group
	Pids("", pids...).encode(e)
	_, err := m.call(busName, managerPath, managerIface, "AttachProcessesToUnit", "ssau", e.b)
	return failed("move a process into", unit, err)
}

// Kill sends SIGKILL to everything in a unit; one that is not there has nothing.
func (m *Manager) Kill(unit string) error {
	e := &encoder{}
	e.string(unit)
	e.string("all")
	e.uint32(uint32(unix.SIGKILL))
	_, err := m.call(busName, managerPath, managerIface, "KillUnit", "ssi", e.b)
	if err = failed("kill", unit, err); errdefs.Is(err, errdefs.NotFound) {
		err = nil
	}
	return err
}

// Stop stops a unit and waits for that: what is in it gets SIGTERM, and SIGKILL after the unit's time to stop. One that is
// not there is stopped.
func (m *Manager) Stop(unit string) error {
	e := &encoder{}
	e.string(unit)
	e.string("replace")
	r, err := m.call(busName, managerPath, managerIface, "StopUnit", "ss", e.b)
	if err == nil {
		_, err = m.wait(r)
	}
	if err = failed("stop", unit, err); errdefs.Is(err, errdefs.NotFound) {
		err = nil
	}
	// A unit that failed stays known until it is told to be forgotten; one that did not fail is not known any more.
	e = &encoder{}
	e.string(unit)
	_, _ = m.call(busName, managerPath, managerIface, "ResetFailedUnit", "s", e.b)
	return err
}

// ControlGroup returns the manager's own control group: "" or "/" for the system's, like
// "/user.slice/user-1000.slice/user@1000.service" for a user's.
func (m *Manager) ControlGroup() (string, error) { return m.property("ControlGroup") }

// Version returns systemd's major version; 0 when it does not tell.
func (m *Manager) Version() int {
	s, err := m.property("Version")
	if err != nil {
		return 0
	}
	n := 0
	for _, r := range strings.TrimPrefix(s, "v") { // "252.39-1~deb12u2"
		if r < '0' || r > '9' {
			break
		}
		n = n*10 + int(r-'0')
	}
	return n
}

// property reads a property of type s of the manager.
func (m *Manager) property(name string) (string, error) {
	e := &encoder{}
	e.string(managerIface)
	e.string(name)
	r, err := m.call(busName, managerPath, "org.freedesktop.DBus.Properties", "Get", "ss", e.b)
	if err != nil {
		return "", failed("ask", name, err)
	}
	d := &decoder{b: r.body}
	if r.signature != "v" || d.signature() != "s" {
		return "", failed("ask", name, errMessage)
	}
	s := d.string()
	if d.bad {
		return "", failed("ask", name, errMessage)
	}
	return s, nil
}

// failed turns systemd's error into ours.
func failed(verb, unit string, err error) error {
	if err == nil {
		return nil
	}
	e := &errdefs.Error{Op: verb + " systemd unit", What: unit, Err: err}
	var r *remote
	if !errors.As(err, &r) {
		if errors.Is(err, unix.ETIMEDOUT) {
			e.Kind, e.Why = errdefs.DeadlineExceeded, "systemd does not answer"
		} else {
			e.Kind = errdefs.Unavailable
		}
		return e
	}
	switch r.name {
	case "org.freedesktop.systemd1.NoSuchUnit", "org.freedesktop.systemd1.NoSuchProcess", "org.freedesktop.DBus.Error.UnixProcessIdUnknown":
		e.Kind = errdefs.NotFound
	case "org.freedesktop.systemd1.UnitExists":
		e.Kind = errdefs.AlreadyExists
		e.Fix = "choose another id, or stop it: systemctl stop " + unit
	case "org.freedesktop.DBus.Error.AccessDenied", "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired":
		e.Kind = errdefs.Forbidden
	case "org.freedesktop.DBus.Error.PropertyReadOnly", "org.freedesktop.DBus.Error.InvalidArgs", "org.freedesktop.DBus.Error.UnknownProperty":
		e.Kind = errdefs.InvalidArgument
	}
	return e
}

// Close ends the connection.
func (m *Manager) Close() {
	if m != nil && m.fd >= 0 {
		_ = unix.Close(m.fd)
		m.fd = -1
	}
}
