package monitor

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/mount"
	"github.com/onggi/onggi/undo"
	"golang.org/x/sys/unix"
)

// The names of a foreign runtime's files in RunDir.
const (
	bundleName  = "bundle" // config.json as the foreign runtime gets it
	logName     = "runtime.log"
	pidName     = "runtime.pid"
	consoleName = "runtime.sock"
)

// foreign is the Creator for an OCI runtime that is driven by its command line, as runc defined it.
//
//	unshare(mount), mount Rootfs at root.path      in one thread, which then runs the commands
//	RUNTIME --root R --log L --log-format json create --bundle B --pid-file P [--console-socket S] ID
//	RUNTIME ... start ID | kill ID SIGNAL | delete --force ID
//
// The first process is the runtime's orphan; the monitor, a subreaper, becomes its parent. The mounts are in no other
// process's namespace but the container's, so the kernel takes them away with the last process.
func foreign(ctx context.Context, cfg *Config, stdio Stdio) (_ Process, err error) {
	f := &foreignProcess{cfg: cfg, steps: undo.New("runtime"), work: make(chan func())}
	started := make(chan error)
	go f.thread(started)
	if err := <-started; err != nil {
		return nil, &errdefs.Error{Op: "make a mount namespace for", What: cfg.ID, Kind: errdefs.KindOf(err), Err: err}
	}
	f.do(func() { err = f.create(ctx, stdio) })
	if err != nil {
		close(f.work)
		return nil, err
	}
	return f, nil
}

type foreignProcess struct {
	cfg     *Config
	path    string // of the runtime's binary
	pid     int
	events  string // the file that counts OOM kills; "" if it is not known
	console *os.File
	steps   *undo.Stack
	work    chan func()
}

// thread owns the mount namespace: unshare(2) works on one thread, and only its children see the mounts. It ends with
// its goroutine, because it is never unlocked.
func (f *foreignProcess) thread(started chan<- error) {
	runtime.LockOSThread()
	err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS)
	if err == nil {
		// Slave: what the host mounts later is seen, what we mount stays ours.
		err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, "")
	}
	started <- err
	if err != nil {
		return
	}
	for job := range f.work {
		job()
	}
}

// do runs job in thread; after a renewal there is none, and none is needed.
func (f *foreignProcess) do(job func()) {
	if f.work == nil {
		job()
		return
	}
	done := make(chan struct{})
	f.work <- func() { job(); close(done) }
	<-done
}

func (f *foreignProcess) create(ctx context.Context, stdio Stdio) (err error) {
	defer f.steps.Undo(&err)
	f.path, err = exec.LookPath(f.cfg.Runtime[0])
	if err != nil {
		return &errdefs.Error{
			Op: "find the runtime", What: f.cfg.Runtime[0], Kind: errdefs.NotFound, Err: err,
			Fix: "install it, or give its path with --runtime",
		}
	}
	root := ""
	bundle := filepath.Join(f.cfg.RunDir, bundleName)
	err = f.steps.Do("bundle", func() error {
		root, err = f.writeBundle(bundle)
		return err
	}, func() error { return os.RemoveAll(bundle) })
	if err != nil {
		return err
	}
	if len(f.cfg.Rootfs) > 0 {
		if err := f.steps.Do("mount", func() error { return mount.All(f.cfg.Rootfs, root) }, nil); err != nil {
			return err
		}
	}
	args := []string{"create", "--bundle", bundle, "--pid-file", f.file(pidName)}
	var console *conn
	if f.cfg.Terminal {
		dir, err := openDir(f.cfg.RunDir)
		if err != nil {
			return err
		}
		defer unix.Close(dir)
		if console, err = listenStream(dir, consoleName); err != nil {
			return &errdefs.Error{Op: "listen for the terminal of", What: f.cfg.ID, Kind: errdefs.KindOf(err), Err: err}
		}
		defer func() {
			console.close()
			_ = unix.Unlinkat(dir, consoleName, 0)
		}()
		// Through our own descriptor, because RunDir may be longer than a socket's address.
		args = append(args, "--console-socket", fmt.Sprintf("/proc/%d/fd/%d/%s", os.Getpid(), dir, consoleName))
	}
	err = f.steps.Do("create", func() error { return f.run(stdio, append(args, f.cfg.ID)...) }, f.delete)
	if err != nil {
		// A runtime that fails half-way should leave nothing; delete is idempotent.
		_ = f.delete()
		return err
	}
	if f.pid, err = readPid(f.file(pidName)); err != nil {
		return &errdefs.Error{Op: "create", What: f.cfg.ID, Kind: errdefs.Internal, Why: "the runtime wrote no pid", Err: err}
	}
	if console != nil {
		if f.console, err = receiveConsole(console); err != nil {
			return &errdefs.Error{Op: "create", What: f.cfg.ID, Kind: errdefs.Internal, Why: "the runtime sent no terminal", Err: err}
		}
	}
	f.events = oomFile(f.pid)
	if err := ctx.Err(); err != nil {
		return &errdefs.Error{Op: "create", What: f.cfg.ID, Kind: errdefs.KindOf(err), Err: err}
	}
	return nil
}

func (f *foreignProcess) file(name string) string { return filepath.Join(f.cfg.RunDir, name) }

// writeBundle writes config.json as the runtime gets it and returns root.path. Two things differ from the engine's:
// root.path is absolute, and the descriptors that the engine named as the monitor's own ("/proc/self/fd/N") are named as
// seen from another process; runtimes use several processes and renumber what they inherit.
func (f *foreignProcess) writeBundle(dir string) (root string, err error) {
	path := filepath.Join(f.cfg.Bundle, "config.json")
	fail := func(kind errdefs.Kind, err error) error {
		return &errdefs.Error{Op: "read", What: path, Kind: kind, Err: err}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fail(errdefs.KindOf(err), err)
	}
	var spec map[string]any
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber() // ids and limits must not become floating-point
	if err := d.Decode(&spec); err != nil {
		return "", fail(errdefs.InvalidArgument, err)
	}
	r, _ := spec["root"].(map[string]any)
	root, _ = r["path"].(string)
	if root == "" {
		return "", fail(errdefs.InvalidArgument, fmt.Errorf("it has no root.path"))
	}
	if !filepath.IsAbs(root) {
		root = filepath.Join(f.cfg.Bundle, root)
	}
	r["path"] = root
	if linux, ok := spec["linux"].(map[string]any); ok {
		spaces, _ := linux["namespaces"].([]any)
		for _, s := range spaces {
			if ns, ok := s.(map[string]any); ok {
				if p, _ := ns["path"].(string); strings.HasPrefix(p, "/proc/self/fd/") {
					ns["path"] = fmt.Sprintf("/proc/%d/fd/%s", os.Getpid(), strings.TrimPrefix(p, "/proc/self/fd/"))
				}
			}
		}
	}
	if b, err = json.Marshal(spec); err != nil {
		return "", fail(errdefs.Internal, err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !os.IsExist(err) {
		return "", err
	}
	return root, os.WriteFile(filepath.Join(dir, "config.json"), b, 0o600)
}

// run executes one command of the runtime and makes its log the error. Preconditions: in thread.
func (f *foreignProcess) run(stdio Stdio, args ...string) error {
	log := f.file(logName)
	_ = os.Remove(log) // only this command's messages
	argv := append([]string{f.path}, f.cfg.Runtime[1:]...)
	argv = append(argv, "--root", f.cfg.RuntimeRoot, "--log", log, "--log-format", "json")
	argv = append(argv, args...)
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	var files []uintptr
	for _, s := range []*os.File{stdio.In, stdio.Out, stdio.Err} {
		if s == nil {
			s = null
		}
		n, err := number(s)
		if err != nil {
			return err
		}
		files = append(files, uintptr(n))
	}
	ws, err := execute(argv, files, 0)
	runtime.KeepAlive(stdio)
	if err != nil {
		return err
	}
	if ws.ExitStatus() == 0 {
		return nil
	}
	why := lastError(log)
	if why == "" {
		why = fmt.Sprintf("%s %s ended with status %d", f.cfg.Runtime[0], args[0], ws.ExitStatus())
	}
	return &errdefs.Error{Op: args[0], What: f.cfg.ID, Kind: kindOfText(why), Why: why}
}

// lastError returns the message of the last error in a runtime's JSON log; the last lines of one that is not JSON.
func lastError(path string) string {
	file, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer file.Close()
	b := make([]byte, maxMessage/2) // the end says what happened; what is cut in front is not JSON
	off := int64(0)
	if st, err := file.Stat(); err == nil {
		off = max(0, st.Size()-int64(len(b)))
	}
	n, err := file.ReadAt(b, off)
	if err != nil && err != io.EOF {
		return ""
	}
	last := ""
	for _, l := range bytes.Split(bytes.TrimSpace(b[:n]), []byte("\n")) {
		var m struct{ Level, Msg string }
		switch {
		case json.Unmarshal(l, &m) != nil:
			last = strings.TrimSpace(last + "\n" + string(l))
		case m.Level == "error" || m.Level == "fatal" || m.Level == "panic":
			last = m.Msg
		}
	}
	return last
}

// kindOfText finds what docker's users know as 127 and 126 in a runtime's words; runtimes give no code.
func kindOfText(s string) errdefs.Kind {
	l := strings.ToLower(s)
	executing := strings.Contains(l, "exec") // "exec: ...", "executable file", "open executable"
	switch {
	case strings.Contains(l, "executable file") && strings.Contains(l, "not found"):
		return errdefs.CommandNotFound
	case executing && strings.Contains(l, "no such file or directory"):
		return errdefs.CommandNotFound
	case executing && (strings.Contains(l, "permission denied") || strings.Contains(l, "is a directory") ||
		strings.Contains(l, "exec format error")):
		return errdefs.NotExecutable
	case strings.Contains(l, "permission denied"), strings.Contains(l, "operation not permitted"):
		return errdefs.Forbidden
	case strings.Contains(l, "no space left"):
		return errdefs.NoSpace
	}
	return errdefs.Unknown
}

func readPid(path string) (int, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err == nil && pid <= 1 {
		err = fmt.Errorf("pid %d", pid)
	}
	return pid, err
}

// listenStream makes the stream socket that a runtime sends the terminal to.
func listenStream(dir int, name string) (*conn, error) {
	if err := unix.Unlinkat(dir, name, 0); err != nil && err != unix.ENOENT {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if err = unix.Fchmod(fd, 0o600); err == nil {
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir, name)})
	}
	if err == nil {
		err = unix.Listen(fd, 1)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return newConn(fd)
}

// receiveConsole takes the terminal's master side that `create` has sent and, because it has ended, waits for nothing.
func receiveConsole(l *conn) (*os.File, error) {
	var file *os.File
	var got error
	err := l.raw.Control(func(lfd uintptr) {
		var fd, oobn int
		if fd, _, got = unix.Accept4(int(lfd), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK); got != nil {
			return
		}
		defer unix.Close(fd)
		buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*maxFds))
		if _, oobn, _, _, got = unix.Recvmsg(fd, buf, oob, unix.MSG_CMSG_CLOEXEC); got != nil {
			return
		}
		cs, perr := unix.ParseSocketControlMessage(oob[:oobn])
		var fds []int
		for i := range cs {
			if r, err := unix.ParseUnixRights(&cs[i]); err == nil {
				fds = append(fds, r...)
			}
		}
		if perr != nil || len(fds) != 1 {
			closeFds(fds)
			got = fmt.Errorf("%d descriptors", len(fds))
			return
		}
		file = os.NewFile(uintptr(fds[0]), "console")
	})
	if err != nil {
		return nil, err
	}
	return file, got
}

// oomFile finds the file that counts OOM kills in a process's control group: memory.events of v2, memory.oom_control
// of v1 (since Linux 4.13).
func oomFile(pid int) string {
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return ""
	}
	for _, l := range strings.Split(string(groups), "\n") {
		f := strings.SplitN(l, ":", 3)
		if len(f) < 3 {
			continue
		}
		var candidates []string
		if f[1] == "" {
			candidates = []string{"/sys/fs/cgroup" + f[2] + "/memory.events"}
		} else if f[1] == "memory" {
			candidates = []string{"/sys/fs/cgroup/memory" + f[2] + "/memory.oom_control"}
		}
		for _, c := range candidates {
			if _, err := os.Stat(c); err == nil {
				return c
			}
		}
	}
	return ""
}

func (f *foreignProcess) Pid() int { return f.pid }

func (f *foreignProcess) Console() *os.File { return f.console }

func (f *foreignProcess) Start() (err error) {
	f.do(func() {
		err = f.steps.Do("start", func() error { return f.run(Stdio{}, "start", f.cfg.ID) }, nil)
	})
	return err
}

func (f *foreignProcess) Wait() (Exit, error) { return waitFor(f.pid) }

// waitFor reaps a child.
func waitFor(pid int) (Exit, error) {
	var ws unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &ws, 0, nil)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return Exit{}, &errdefs.Error{Op: "wait for process", What: strconv.Itoa(pid), Kind: errdefs.KindOf(err), Err: err}
		case ws.Signaled():
			return Exit{Code: 128 + int(ws.Signal()), Signal: int(ws.Signal())}, nil
		}
		return Exit{Code: ws.ExitStatus()}, nil
	}
}

func (f *foreignProcess) Signal(sig int) (err error) {
	f.do(func() { err = f.run(Stdio{}, "kill", f.cfg.ID, strconv.Itoa(sig)) })
	return err
}

// delete removes the runtime's state. Preconditions: in thread.
func (f *foreignProcess) delete() error { return f.run(Stdio{}, "delete", "--force", f.cfg.ID) }

func (f *foreignProcess) Delete() (err error) {
	f.do(func() { err = f.delete() })
	if f.work != nil {
		close(f.work)
	}
	for _, n := range []string{logName, pidName} {
		_ = os.Remove(f.file(n)) // RunDir goes soon, anyway
	}
	_ = os.RemoveAll(f.file(bundleName))
	return err
}

func (f *foreignProcess) OOMKilled() bool {
	if f.events == "" {
		return false
	}
	b, err := os.ReadFile(f.events)
	if err != nil {
		return false
	}
	for _, l := range strings.Split(string(b), "\n") {
		if n, ok := strings.CutPrefix(l, "oom_kill "); ok {
			return strings.TrimSpace(n) != "0"
		}
	}
	return false
}

func (f *foreignProcess) Spans() []undo.Span { return f.steps.Spans() }
