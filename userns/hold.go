package userns

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/onggi/onggi/errdefs"
	"golang.org/x/sys/unix"
)

// HoldArgument is the only argument of the process that holds a user's namespaces: its program calls Hold then.
const HoldArgument = "hold-user-namespace"

// The programs that a user's namespaces need, by absolute path: PATH is not asked for what is set-uid or enters them.
var (
	uidHelpers = []string{"/usr/bin/newuidmap", "/bin/newuidmap", "/usr/local/bin/newuidmap"}
	gidHelpers = []string{"/usr/bin/newgidmap", "/bin/newgidmap", "/usr/local/bin/newgidmap"}
	entrances  = []string{"/usr/bin/nsenter", "/bin/nsenter", "/usr/local/bin/nsenter"}
)

func program(list []string) string {
	for _, p := range list {
		if unix.Access(p, unix.X_OK) == nil {
			return p
		}
	}
	return ""
}

// Hold is the whole life of the process that holds a user's namespaces. It ends when its maker dies before it has
// confirmed the id maps by one byte on standard input; afterwards it sleeps until it is killed.
func Hold() int {
	var b [1]byte
	if n, _ := os.Stdin.Read(b[:]); n != 1 {
		return 1
	}
	_ = os.Stdin.Close()
	for {
		time.Sleep(math.MaxInt64)
	}
}

// Home is the namespaces of one user: a user namespace in which the user is root, and a mount namespace that belongs to
// it. A sleeping process holds them, so that commands that run at once, and monitors, are all in the same ones; its pid
// and start time are in Dir.
type Home struct {
	Dir  string // 0700, the user's own; it is made when it is missing
	Self string // this program's file: run with HoldArgument it calls Hold
	Name string // the user's name, as /etc/subuid has it
}

// Enter replaces this process by argv inside the namespaces, made first where there are none. It keeps the working
// directory, the environment, and the open streams. It returns only with an error. Forbidden: this host lets the user
// make no namespaces; Unsupported: nsenter is missing.
func (h Home) Enter(argv, env []string) error {
	enter := program(entrances)
	if enter == "" {
		return &errdefs.Error{
			Op: "enter", What: "the user namespace", Kind: errdefs.Unsupported, Why: "there is no " + entrances[0],
			Fix: "install util-linux",
		}
	}
	pid, err := h.holder()
	if err != nil {
		return err
	}
	args := []string{enter, fmt.Sprintf("--user=/proc/%d/ns/user", pid), fmt.Sprintf("--mount=/proc/%d/ns/mnt", pid), "--preserve-credentials"}
	if wd, err := os.Getwd(); err == nil {
		args = append(args, "--wdns="+wd)
	}
	err = syscall.Exec(enter, append(append(args, "--"), argv...), env)
	return &errdefs.Error{Op: "execute", What: enter, Kind: errdefs.KindOf(err), Err: err}
}

// holder returns the pid of the process that holds the namespaces; one command at a time looks and makes.
func (h Home) holder() (int, error) {
	if err := os.MkdirAll(h.Dir, 0o700); err != nil {
		return 0, err
	}
	dir, err := os.OpenFile(h.Dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return 0, err
	}
	if int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0 {
		return 0, &errdefs.Error{
			Op: "use", What: h.Dir, Kind: errdefs.Forbidden, Why: "it is not this user's alone",
			Fix: "set XDG_RUNTIME_DIR to a directory that belongs to you, with mode 0700",
		}
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return 0, err
	}
	file := filepath.Join(h.Dir, "holder")
	if b, err := os.ReadFile(file); err == nil {
		var pid int
		var begun string
		if n, _ := fmt.Sscan(string(b), &pid, &begun); n == 2 && pid > 1 && begun != "" && startTime(pid) == begun {
			return pid, nil
		}
	}
	return h.make(file)
}

// startTime is when a process of this user began, in the kernel's ticks; "" when there is none.
func startTime(pid int) string {
	var st unix.Stat_t
	if unix.Stat("/proc/"+strconv.Itoa(pid), &st) != nil || int(st.Uid) != os.Geteuid() {
		return ""
	}
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return ""
	}
	// The name may hold anything; the fields after its last parenthesis are 3 and on, the start is 22 (proc(5)).
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) < 20 || f[0] == "Z" {
		return ""
	}
	return f[19]
}

func (h Home) make(file string) (_ int, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer w.Close()
	c := exec.Command(h.Self, HoldArgument)
	c.Stdin, c.Dir, c.Env = r, "/", []string{}
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS, Setsid: true}
	err = c.Start()
	_ = r.Close()
	if err != nil {
		return 0, &errdefs.Error{
			Op: "make", What: "a user namespace", Kind: errdefs.Forbidden, Err: err,
			Why: "this host does not let users make them",
			Fix: "as root look at the sysctls user.max_user_namespaces, kernel.unprivileged_userns_clone and\nkernel.apparmor_restrict_unprivileged_userns, or run onggi as root",
		}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Process.Kill())
			_ = c.Wait() // it was killed
		}
	}()
	pid := c.Process.Pid
	if err := h.writeMaps(pid); err != nil {
		return 0, err
	}
	if err := os.WriteFile(file+".new", fmt.Appendf(nil, "%d %s\n", pid, startTime(pid)), 0o600); err != nil {
		return 0, err
	}
	if err := os.Rename(file+".new", file); err != nil {
		return 0, err
	}
	_, err = w.Write([]byte{1})
	return pid, err
}

// writeMaps maps the user to root, and the ids that /etc/subuid and /etc/subgid give it to those from 1 on. A user who
// has none, or a host without newuidmap, gets the one id.
func (h Home) writeMaps(pid int) error {
	uid, gid := os.Geteuid(), os.Getegid()
	us, err := Subordinate("/etc/subuid", h.Name, uid)
	if err != nil {
		return err
	}
	gs, err := Subordinate("/etc/subgid", h.Name, uid)
	if err != nil {
		return err
	}
	newuid, newgid := program(uidHelpers), program(gidHelpers)
	if len(us) == 0 || len(gs) == 0 || newuid == "" || newgid == "" {
		dir := "/proc/" + strconv.Itoa(pid)
		for _, f := range []struct{ name, text string }{
			{"/uid_map", fmt.Sprintf("0 %d 1\n", uid)}, {"/setgroups", "deny"}, {"/gid_map", fmt.Sprintf("0 %d 1\n", gid)},
		} {
			if err := os.WriteFile(dir+f.name, []byte(f.text), 0); err != nil {
				return &errdefs.Error{Op: "map", What: "this user's id", Kind: errdefs.KindOf(err), Err: err}
			}
		}
		return nil
	}
	for _, x := range []struct {
		helper string
		own    int
		m      Map
	}{{newuid, uid, us}, {newgid, gid, gs}} {
		args := []string{strconv.Itoa(pid), "0", strconv.Itoa(x.own), "1"}
		for _, r := range x.m {
			args = append(args, fmt.Sprint(r.Container), fmt.Sprint(r.Host), fmt.Sprint(r.Size))
		}
		c := exec.Command(x.helper, args...)
		c.Env = []string{}
		var out strings.Builder
		c.Stderr = &limited{&out, 4096}
		if err := c.Run(); err != nil {
			return &errdefs.Error{
				Op: "map", What: "the subordinate ids of " + h.Name, Kind: errdefs.Forbidden, Err: err, Why: strings.TrimSpace(out.String()),
				Fix: "look at /etc/subuid and /etc/subgid, and that " + x.helper + " is set-uid root or has its capability",
			}
		}
	}
	return nil
}

// limited takes the first n bytes and drops the rest.
type limited struct {
	w io.Writer
	n int
}

func (l *limited) Write(b []byte) (int, error) {
	keep := b[:min(len(b), l.n)]
	l.n -= len(keep)
	_, err := l.w.Write(keep)
	return len(b), err
}

// Rootless reports whether this process is root of a user namespace only: its id 0 is another user of the host.
func Rootless() bool { return rootless() }

var rootless = sync.OnceValue(func() bool {
	m, err := UIDs()
	if err != nil || os.Geteuid() != 0 {
		return false
	}
	host, ok := m.ToHost(0)
	return !ok || host != 0
})
