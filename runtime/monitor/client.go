package monitor

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/undo"
	"golang.org/x/sys/unix"
)

// Client is a connection to a monitor. Its methods may be called from several goroutines.
//
// A client that does not say Close, because its process dies, is noticed by the monitor at once: its streams are let
// go, and what it promised (Mine) is done by the monitor.
type Client struct {
	c  *conn
	id string // of the container, for messages

	created, started, failed, exited event
	broken                           event // nobody reads an attached output any more
	gone                             event // the connection has ended

	mu       sync.Mutex // over all below
	pid      int
	warnings []string
	at       time.Time
	spans    []undo.Span
	err      error // of failed
	exit     *Exit
	goneErr  error
	lastID   uint32
	waiting  map[uint32]chan error
	mine     bool
	closed   bool
	child    *child // nil when the monitor is not ours
}

// event happens once.
type event struct {
	once sync.Once
	c    chan struct{}
}

func (e *event) happen() { e.once.Do(func() { close(e.c) }) }

func newClient(c *conn, id string) *Client {
	cl := &Client{c: c, id: id, waiting: map[uint32]chan error{}}
	for _, e := range []*event{&cl.created, &cl.started, &cl.failed, &cl.exited, &cl.broken, &cl.gone} {
		e.c = make(chan struct{})
	}
	go cl.listen()
	return cl
}

// FirstFile is the descriptor number of the first of SpawnOptions.Files in the monitor; descriptor 3 is the connection,
// and the client's own streams come after the files.
const FirstFile = 4

// SpawnOptions say what the new monitor inherits.
type SpawnOptions struct {
	Binary string // path of onggi-runtime
	RunDir string // Config.RunDir; for Plant, which has no Config yet (the directory need not be there)
	// Files by name; their numbers are filled into Config.Fds. They are numbered from FirstFile on in the order of
	// their names, so that the caller can write "/proc/self/fd/4" into config.json before Spawn.
	Files map[string]*os.File
	Stdio [3]*os.File // the client's own streams to attach from the first byte; nil ones are not attached
}

var stdioNames = [3]string{"stdin", "stdout", "stderr"}

// Spawn writes RunDir/monitor.json and starts the monitor, detached from the caller's session: its own session, "/" as
// working directory, /dev/null as stdio, and of the environment only what runtimes need. The container does not exist
// yet when Spawn returns: see Created. If this process ends before Start, the monitor destroys what it has made.
func Spawn(ctx context.Context, cfg *Config, o SpawnOptions) (*Client, error) {
	if o.RunDir == "" {
		o.RunDir = cfg.RunDir
	}
	s, err := Plant(o)
	if err != nil {
		return nil, err
	}
	return s.Spawn(ctx, cfg, nil)
}

// Seed is a monitor process that knows of no container yet. A program's start takes milliseconds in which its parent
// can prepare the container: plant first, spawn when the configuration is written. A seed whose connection ends before
// has nothing to clean up, and ends.
type Seed struct {
	c     *conn
	path  string // of the configuration
	fds   map[string]int
	child *child
}

// Plant starts a monitor without a container. A nil file in o.Files reserves the number of one that is given to
// Seed.Spawn.
func Plant(o SpawnOptions) (*Seed, error) {
	fail := func(why string, err error) error {
		return &errdefs.Error{Op: "start a monitor", Kind: errdefs.KindOf(err), Why: why, Err: err}
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, fail("", err)
	}
	defer null.Close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fail("", err)
	}
	defer unix.Close(pair[1])
	c, err := newConn(pair[0])
	if err != nil {
		return nil, fail("", err)
	}
	nullFd := int(null.Fd())
	fds := []uintptr{uintptr(nullFd), uintptr(nullFd), uintptr(nullFd), uintptr(pair[1])}
	s := &Seed{c: c, path: filepath.Join(o.RunDir, configName), fds: map[string]int{}}
	add := func(name string, f *os.File) error {
		n, err := number(f)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		s.fds[name] = len(fds)
		fds = append(fds, uintptr(n))
		return nil
	}
	names := make([]string, 0, len(o.Files))
	for n := range o.Files {
		if slices.Contains(stdioNames[:], n) {
			err = fmt.Errorf("the file name %q is taken", n)
		}
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		f := o.Files[n]
		if f == nil {
			f = null
		}
		if err == nil {
			err = add(n, f)
		}
	}
	for i, f := range o.Stdio {
		if f != nil && err == nil {
			err = add(stdioNames[i], f)
		}
	}
	if err != nil {
		c.close()
		return nil, fail("", err)
	}
	pidfd := -1
	pid, err := syscall.ForkExec(o.Binary, []string{o.Binary, "monitor", "--config", s.path}, &syscall.ProcAttr{
		Dir: "/", Env: environment(), Files: fds, Sys: &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd},
	})
	runtime.KeepAlive(o)
	if err != nil {
		c.close()
		return nil, fail("cannot execute "+o.Binary, err)
	}
	s.child = reap(pid, pidfd)
	return s, nil
}

// Spawn gives the seed its container: it writes RunDir/monitor.json and sends the files whose numbers were reserved. The
// seed is used up, whether it succeeds or not.
func (s *Seed) Spawn(ctx context.Context, cfg *Config, files map[string]*os.File) (*Client, error) {
	fail := func(err error) (*Client, error) {
		s.Close()
		return nil, &errdefs.Error{Op: "start the monitor of", What: cfg.ID, Kind: errdefs.KindOf(err), Err: err}
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	cfg.Fds = s.fds
	m := &message{Op: "begin"}
	var fds []int
	for name, f := range files {
		n, err := number(f)
		if _, ok := s.fds[name]; !ok && err == nil {
			err = unix.EBADF
		}
		if err != nil {
			return fail(fmt.Errorf("%s: %w", name, err))
		}
		m.Streams, fds = append(m.Streams, name), append(fds, n)
	}
	if err := writeConfig(s.path, cfg); err != nil {
		return fail(err)
	}
	err := s.c.send(m, true, fds...)
	runtime.KeepAlive(files)
	if err != nil {
		if st := s.child.status(); st != "" {
			err = fmt.Errorf("%w: %s", err, st)
		}
		return fail(err)
	}
	cl := newClient(s.c, cfg.ID)
	cl.mu.Lock()
	cl.mine = cfg.Mine
	cl.child = s.child
	cl.mu.Unlock()
	return cl, nil
}

// Close lets a seed that is not needed end. It may always be called, but not after a Spawn that succeeded.
func (s *Seed) Close() { s.c.close() }

// begin is the seed's side of Spawn: it waits until the configuration is written, and puts the files that come with the
// word at their numbers.
func begin(c *conn, path string) (*Config, error) {
	m, fds, err := c.recv(make([]byte, maxMessage))
	if err != nil {
		return nil, err
	}
	defer closeFds(fds)
	if m.Op != "begin" || len(fds) != len(m.Streams) {
		return nil, &errdefs.Error{Op: "begin", Kind: errdefs.InvalidArgument, Why: "the first message is another"}
	}
	cfg, err := readConfig(path)
	if err != nil {
		return nil, err
	}
	for i, name := range m.Streams {
		n, ok := cfg.Fds[name]
		if !ok || n < FirstFile {
			return nil, &errdefs.Error{Op: "begin", What: name, Kind: errdefs.InvalidArgument, Why: "no number was reserved for it"}
		}
		if err := unix.Dup3(fds[i], n, unix.O_CLOEXEC); err != nil {
			return nil, err
		}
	}
	return cfg, nil
}

func writeConfig(path string, cfg *Config) error {
	b, err := json.Marshal(cfg)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.Write(b); err != nil {
		_ = f.Close()
		return err
	}
	return f.Close()
}

// environment is what the monitor inherits: what runtimes and the clean-up need, and no secret of the caller's.
func environment() []string {
	env := []string{"GOMAXPROCS=1"} // one processor makes fewer threads and buffers; the monitor only moves bytes
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		switch {
		case name == "PATH", name == "HOME", name == "USER", name == "TMPDIR", name == "DBUS_SESSION_BUS_ADDRESS",
			strings.HasPrefix(name, "XDG_"), strings.HasPrefix(name, "ONGGI_"), strings.HasPrefix(name, "GOCOVERDIR"):
			env = append(env, kv)
		}
	}
	return env
}

// child is the monitor's process, seen by the process that started it.
type child struct {
	ended chan struct{}
	how   string // how it ended, after that
}

// reap reaps the monitor when it ends, without a thread that waits for it.
func reap(pid, pidfd int) *child {
	ch := &child{ended: make(chan struct{})}
	go func() {
		defer close(ch.ended)
		if pidfd >= 0 {
			waitPidfd(pidfd)
		}
		var ws unix.WaitStatus
		_, err := unix.Wait4(pid, &ws, 0, nil)
		for err == unix.EINTR {
			_, err = unix.Wait4(pid, &ws, 0, nil)
		}
		switch {
		case err != nil:
		case ws.Signaled():
			ch.how = "it was killed by signal " + ws.Signal().String()
		default:
			ch.how = fmt.Sprintf("it exited with status %d", ws.ExitStatus())
		}
	}()
	return ch
}

// wait waits until it has ended, or limit has passed.
func (ch *child) wait(limit time.Duration) bool {
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-ch.ended:
		return true
	case <-t.C:
		return false
	}
}

// status is how it ended; "" when that cannot be told.
func (ch *child) status() string {
	if ch == nil || !ch.wait(time.Second) {
		return ""
	}
	return ch.how
}

// waitPidfd takes a pidfd over and returns when its process has ended. It occupies no thread.
func waitPidfd(fd int) {
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		return n > 0 || err != nil && err != unix.EINTR
	})
}

// listen receives until the connection ends.
func (c *Client) listen() {
	buf := make([]byte, maxMessage)
	for {
		m, fds, err := c.c.recv(buf)
		if err != nil {
			c.mu.Lock()
			c.goneErr = err
			c.mu.Unlock()
			c.gone.happen()
			return
		}
		closeFds(fds)
		c.mu.Lock()
		switch m.Op {
		case "created":
			c.pid, c.warnings = m.Pid, m.Warnings
			c.created.happen()
		case "started":
			c.at, c.spans = m.At, m.Spans
			c.started.happen()
		case "failed":
			if c.err = error(m.Error); m.Error == nil {
				c.err = c.errorf(errdefs.Internal, "it failed without a reason", nil)
			}
			c.failed.happen()
		case "lost":
			c.broken.happen()
		case "exited":
			c.exit = m.Exit
			c.exited.happen()
		case "reply":
			if w := c.waiting[m.ID]; w != nil {
				delete(c.waiting, m.ID)
				if m.Error != nil {
					w <- m.Error
				} else {
					w <- nil
				}
			}
		}
		c.mu.Unlock()
	}
}

func (c *Client) errorf(kind errdefs.Kind, why string, err error) error {
	return &errdefs.Error{Op: "control container", What: c.id, Kind: kind, Why: why, Err: err}
}

// lost is the error for a connection that ended before what was waited for.
func (c *Client) lost() error {
	c.mu.Lock()
	closed, child := c.closed, c.child
	c.mu.Unlock()
	if closed {
		return c.errorf(errdefs.Canceled, "the connection was closed", nil)
	}
	select {
	case <-c.exited.c:
		return c.errorf(errdefs.Conflict, "it has ended", nil)
	default:
	}
	why := "its monitor is gone"
	if s := child.status(); s != "" {
		why += ": " + s
	}
	return c.errorf(errdefs.Unavailable, why, nil)
}

// await waits for one of events; the connection's end counts only when none has happened.
func (c *Client) await(ctx context.Context, e, alternative *event) (first bool, err error) {
	select {
	case <-e.c:
		return true, nil
	case <-alternative.c:
	case <-c.gone.c:
	case <-ctx.Done():
		return false, c.errorf(errdefs.KindOf(ctx.Err()), "", ctx.Err())
	}
	select {
	case <-e.c:
		return true, nil
	default:
	}
	select {
	case <-alternative.c:
		return false, nil
	default:
	}
	return false, c.lost()
}

// request sends a request and waits for its reply.
func (c *Client) request(ctx context.Context, m *message, fds ...int) error {
	c.mu.Lock()
	c.lastID++
	m.ID = c.lastID
	w := make(chan error, 1)
	c.waiting[m.ID] = w
	c.mu.Unlock()
	if err := c.c.send(m, true, fds...); err != nil {
		return c.sendError(err)
	}
	select {
	case err := <-w:
		return err
	case <-ctx.Done():
		return c.errorf(errdefs.KindOf(ctx.Err()), "", ctx.Err())
	case <-c.gone.c:
		select {
		case err := <-w:
			return err
		default:
			return c.lost()
		}
	}
}

// sendError translates an error of send: a monitor that is gone is the usual one.
func (c *Client) sendError(err error) error {
	if errdefs.KindOf(err) == errdefs.Unavailable {
		return c.lost()
	}
	return c.errorf(errdefs.KindOf(err), "", err)
}

// Created waits until the container process exists and returns its pid. When the container cannot be made, its error
// comes after everything has been taken back: no monitor is alive then.
func (c *Client) Created(ctx context.Context) (pid int, err error) {
	ok, err := c.await(ctx, &c.created, &c.failed)
	if err != nil {
		return 0, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !ok {
		return 0, c.err
	}
	return c.pid, nil
}

// Warnings are what the runtime had to clamp or leave out, in words for the user. After Created.
func (c *Client) Warnings() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.warnings
}

// Start starts the user's command and returns when it is executing. Its error's kind is CommandNotFound or NotExecutable
// when the command cannot be executed; it comes after everything has been taken back: no monitor is alive then.
// Conflict when the container has been started before.
func (c *Client) Start(ctx context.Context) (at time.Time, spans []undo.Span, err error) {
	if err := c.request(ctx, &message{Op: "start"}); err != nil {
		select {
		case <-c.failed.c: // between the request and its reply: the reason is the better answer
		default:
			return time.Time{}, nil, err
		}
	}
	ok, err := c.await(ctx, &c.started, &c.failed)
	if err != nil {
		return time.Time{}, nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !ok {
		return time.Time{}, nil, c.err
	}
	return c.at, c.spans, nil
}

// Attach hands the caller's streams to the monitor, which then reads and writes them itself: no byte passes through
// this process. nil files are not attached. It returns at once; what the container writes from now on arrives. The
// streams are let go when the container ends or this connection does. While a stream that takes the output is full, the
// container blocks, as it would without a monitor. InvalidArgument for stdin of a container without one.
func (c *Client) Attach(ctx context.Context, stdin, stdout, stderr *os.File) error {
	m := &message{Op: "attach"}
	var fds []int
	// Outputs first: what the container answers to the first byte of its input is to be seen.
	for _, i := range []int{1, 2, 0} {
		f := [...]*os.File{stdin, stdout, stderr}[i]
		if f == nil {
			continue
		}
		n, err := number(f)
		if err != nil {
			return c.errorf(errdefs.InvalidArgument, stdioNames[i], err)
		}
		m.Streams, fds = append(m.Streams, stdioNames[i]), append(fds, n)
	}
	err := c.request(ctx, m, fds...)
	runtime.KeepAlive([]*os.File{stdin, stdout, stderr})
	return err
}

// Drain waits until the container has been given all that this client's stdin held, for a client that is about to go: with
// its connection its streams are let go, whatever is still in them. Preconditions: nobody can write to that stdin any more.
// Unavailable when the container does not take it within a second.
func (c *Client) Drain(ctx context.Context) error {
	return c.request(ctx, &message{Op: "drain"})
}

// Broken is closed when one of the attached outputs has no reader any more (EPIPE: `... | head`) or cannot be written
// otherwise. The container goes on, and its log is complete; the command that attached decides what that means.
func (c *Client) Broken() <-chan struct{} { return c.broken.c }

// Resize sets the terminal's size in characters.
func (c *Client) Resize(ctx context.Context, width, height uint16) error {
	return c.request(ctx, &message{Op: "resize", Width: width, Height: height})
}

// Signal sends a signal to the container's first process.
func (c *Client) Signal(ctx context.Context, sig int) error {
	return c.SignalBy(ctx, sig, "")
}

// SignalBy is Signal with a word on who sends it and why ("onggi stop, by root"), for Exit.Signals. It is cut at 256 bytes.
func (c *Client) SignalBy(ctx context.Context, sig int, by string) error {
	return c.request(ctx, &message{Op: "signal", Signal: sig, By: by[:min(len(by), maxBy)]})
}

// Wait returns the exit record. All output has been delivered to this client's attached streams and to the log by then,
// the runtime has forgotten the container, and no monitor is alive (Alive).
func (c *Client) Wait(ctx context.Context) (*Exit, error) {
	if _, err := c.await(ctx, &c.exited, &c.exited); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.exit == nil {
		return nil, c.errorf(errdefs.Internal, "it ended without an exit record", nil)
	}
	e := *c.exit
	return &e, nil
}

// Mine promises that this client cleans up after the exit, and then says Close. If the connection ends otherwise (the
// process is killed, or Close comes before Wait has returned), the monitor does it.
func (c *Client) Mine(ctx context.Context) error {
	err := c.request(ctx, &message{Op: "mine"})
	if err == nil {
		c.mu.Lock()
		c.mine = true
		c.mu.Unlock()
	}
	return err
}

// Close ends the connection; the container goes on. After the exit it keeps the promise of Mine: it says that the
// cleaning up is done.
func (c *Client) Close() error {
	c.mu.Lock()
	first, mine := !c.closed, c.mine
	c.closed = true
	c.mu.Unlock()
	if !first {
		return nil
	}
	over := false
	select {
	case <-c.exited.c:
		over = true
	case <-c.failed.c: // exited is on its way
		over = true
	default:
	}
	if over && mine {
		_ = c.c.send(&message{Op: "done"}, true) // a monitor that is gone does not need to know
	}
	c.c.close()
	return nil
}

// Renounce takes the promise of Mine back on this side: Close will not say that the clean-up is done, and so the monitor
// does it. For a client that promised from the beginning and detaches.
func (c *Client) Renounce() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mine = false
}

// Abandon ends the connection and with it a container that was not started, and waits until the monitor's process has
// ended: false when limit passes first. The caller cleans up, as Mine (or Config.Mine) has promised: the monitor does
// not. For the process that called Spawn.
func (c *Client) Abandon(limit time.Duration) bool {
	c.mu.Lock()
	first, ch := !c.closed, c.child
	c.closed = true
	c.mu.Unlock()
	if first {
		_ = c.c.send(&message{Op: "done"}, true) // a monitor that is gone does not need to know
		c.c.close()
	}
	return ch == nil || ch.wait(limit)
}
