package launch

import (
	"os"
	"path"
	"strconv"

	"github.com/onggi/onggi/errdefs"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A service of systemd's (Type=notify) says by sd_notify(3) when it is ready. A container cannot be given the manager's own
// socket: what it sends would be a process's that the manager does not know, and could name any process the main one. So it
// gets a socket of its own, in a directory of Root/ID that is bound into it, and the runtime passes on what may be said.

const (
	notifyDir    = "notify"
	notifySocket = "notify.sock"
	notifyInside = "/run/notify"
)

// addNotify puts the socket into the spec, as runc does.
func (k *creation) addNotify() {
	s, p := *k.spec, *k.spec.Process
	s.Mounts = append(s.Mounts[:len(s.Mounts):len(s.Mounts)], runspec.Mount{
		Destination: notifyInside, Type: "bind", Source: path.Join(k.dir, notifyDir), Options: []string{"bind", "nosuid", "noexec", "nodev", "ro"},
	})
	p.Env = append(p.Env[:len(p.Env):len(p.Env)], "NOTIFY_SOCKET="+path.Join(notifyInside, notifySocket))
	s.Process = &p
	k.spec = &s
}

// makeNotify makes the directory, and for a container that this process starts the socket in it.
func (k *creation) makeNotify() error {
	if err := unix.Mkdir(path.Join(k.dir, notifyDir), 0o755); err != nil {
		return &os.PathError{Op: "mkdir", Path: path.Join(k.dir, notifyDir), Err: err}
	}
	if k.Detached { // Start is another process's
		return nil
	}
	var err error
	k.c.notify, err = k.c.bindNotify(k.ID)
	return err
}

// Notified is the socket that the container's messages arrive at, one a read; nil without Options.Notify. The caller closes
// it.
func (c *Container) Notified() *os.File { return c.notify }

// BindNotify makes the socket of a container that another process has created with Options.Notify, and returns it; nil for
// a container without one. To be called before Start.
func (c *Container) BindNotify() (*os.File, error) {
	if st := (unix.Stat_t{}); unix.Lstat(path.Join(c.root, c.record.ID, notifyDir), &st) != nil {
		return nil, nil
	}
	return c.bindNotify(c.record.ID)
}

func (c *Container) bindNotify(id string) (_ *os.File, err error) {
	fail := func(err error) (*os.File, error) {
		return nil, &errdefs.Error{Op: "make", What: "the container's notify socket", Err: err}
	}
	dir, err := unix.Open(path.Join(c.root, id, notifyDir), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	defer unix.Close(dir) //nolint:errcheck // a handle
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	name := "/proc/self/fd/" + strconv.Itoa(dir) + "/" + notifySocket // a socket's address has no room for long paths
	if err = unix.Bind(s, &unix.SockaddrUnix{Name: name}); err == unix.EADDRINUSE {
		_ = unix.Unlink(name) // of a start that has failed
		err = unix.Bind(s, &unix.SockaddrUnix{Name: name})
	}
	if err == nil {
		err = unix.Chmod(name, 0o777) // whatever user the container has
	}
	if err != nil {
		_ = unix.Close(s)
		return fail(err)
	}
	return os.NewFile(uintptr(s), "notify"), nil
}
