package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/runtime/monitor/logfile"
	"github.com/onggi/onggi/sys"
	"github.com/onggi/onggi/undo"
	"golang.org/x/sys/unix"
)

// drainTime is how long a client that leaves waits at most for the container to take what it has typed.
const drainTime = time.Second

// connFd is the inherited connection of the first client.
const connFd = 3

// Main is the monitor process: it reads the Config at path when the first message says that it is there, serves until
// the container is gone, and returns the exit code of the process. The inherited connection is descriptor 3; attached
// stdio of the first client, if any, are descriptors named "stdin", "stdout", "stderr" in Config.Fds.
//
// Signals do not end it and do not reach the container through it: SIGTERM, SIGINT, SIGHUP, SIGQUIT and the like are
// ignored (a container is signalled by Client.Signal). SIGKILL ends it; then the container has lost its parent and its
// log, Alive says so, and the engine deals with it.
//
// adopt, which may be nil, lets the monitor of a container that stays execute itself again (Resume).
func Main(path string, create Creator, adopt Adopter) int {
	c, err := newConn(connFd)
	if err != nil {
		return errdefs.Internal.ExitCode()
	}
	s := newServer()
	s.adopt = adopt
	s.cfg, err = begin(c, path)
	if errors.Is(err, io.EOF) {
		return 0 // a seed that was not needed
	}
	s.steps = undo.New("monitor") // its clock begins when it is told to
	if err == nil {
		err = s.setUp()
	}
	if s.cfg == nil || s.lock == nil {
		// There is nothing to clean up, or it is another monitor's.
		_ = c.send(&message{Op: "failed", Error: errdefs.As(err)}, false)
		return errdefs.KindOf(err).ExitCode()
	}
	s.first = &peer{c: c, mine: s.cfg.Mine}
	s.peers[s.first] = true
	s.bar.join()
	go s.serve(s.first)
	if err != nil {
		s.failed(err)
		return s.end()
	}
	s.bar.join()
	go s.accept()
	if len(s.cfg.Runtime) > 0 {
		create = foreign
	}
	s.live(create)
	return s.end()
}

func newServer() *server {
	s := &server{
		steps: undo.New("monitor"), peers: map[*peer]bool{}, bar: newBarrier(),
		starts: make(chan chan error), abandoned: make(chan struct{}, 1), dead: make(chan struct{}),
		nudge: make(chan struct{}, 1),
	}
	s.changed.L = &s.mu
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// server is the monitor's state.
//
// The main goroutine walks the container's life (live, end). Each client has a goroutine that receives its requests,
// each output stream has a pump, each attached stdin a source; one goroutine reaps orphans.
type server struct {
	cfg   *Config
	steps *undo.Stack
	lock  *os.File
	dir   int // of RunDir, O_PATH
	sock  *conn
	log   *logfile.Writer
	first *peer // the client that spawned us

	adopt        Adopter
	path, events string // of a foreign runtime, after a renewal
	bar          *barrier

	ctx       context.Context // ends when everybody who knew of a container that has not started is gone
	cancel    context.CancelFunc
	starts    chan chan error // start requests, answered by the main goroutine
	abandoned chan struct{}
	dead      chan struct{} // closed when the container's first process has ended

	reaping  sync.Mutex // held while a runtime's operation runs: its children are its own to wait for
	checking int        // under reaping: the process of a health check, which that waits for
	nudge    chan struct{}

	mu        sync.Mutex // over all below
	changed   sync.Cond
	peers     map[*peer]bool
	phase     phase
	proc      Process
	io        *stdio
	pid       int
	made      *message // the events, for clients that come late
	started   *message
	failure   *message
	exit      Exit
	exited    bool // exit is complete
	cleaned   bool // a client has kept its promise
	answering int  // requests that are not answered yet
}

type phase uint8

const (
	creating phase = iota
	created
	running
	ended
)

// peer is a connected client.
type peer struct {
	c       *conn
	mine    bool
	sinks   []attached
	sources []*source
}

type attached struct {
	p *pump
	s *sink
}

func readConfig(path string) (*Config, error) {
	fail := func(kind errdefs.Kind, why string, err error) error {
		return &errdefs.Error{Op: "read the monitor's configuration", What: path, Kind: kind, Why: why, Err: err}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fail(errdefs.KindOf(err), "", err)
	}
	defer f.Close()
	cfg := &Config{}
	if err := json.NewDecoder(io.LimitReader(f, 16<<20)).Decode(cfg); err != nil {
		return nil, fail(errdefs.InvalidArgument, "", err)
	}
	switch {
	case cfg.ID == "":
		return nil, fail(errdefs.InvalidArgument, "it has no id", nil)
	case !filepath.IsAbs(cfg.RunDir) || !filepath.IsAbs(cfg.StateDir) || !filepath.IsAbs(cfg.Bundle):
		return nil, fail(errdefs.InvalidArgument, "runDir, stateDir and bundle must be absolute paths", nil)
	case cfg.Log.Driver != "local" && cfg.Log.Driver != "json-file" && cfg.Log.Driver != "none":
		return nil, fail(errdefs.InvalidArgument, fmt.Sprintf("no log driver %q", cfg.Log.Driver), nil)
	case len(cfg.Runtime) > 0 && cfg.Init:
		return nil, fail(errdefs.Unsupported, "an init in front of the command needs Onggi's own runtime", nil)
	case len(cfg.Cleanup) > 0 && !filepath.IsAbs(cfg.Cleanup[0]):
		return nil, fail(errdefs.InvalidArgument, "the clean-up command must be an absolute path", nil)
	}
	return cfg, nil
}

// setUp makes everything that does not need the container.
func (s *server) setUp() (err error) {
	// Nothing that we inherited is for the container, unless its configuration says so.
	for _, n := range s.cfg.Fds {
		unix.CloseOnExec(n)
	}
	catch()
	debug.SetMemoryLimit(backstop)
	err = s.steps.Do("lock", func() (err error) {
		s.lock, err = lock(s.cfg.RunDir)
		return err
	}, nil)
	if err != nil {
		return err
	}
	err = s.steps.Do("listen", func() (err error) {
		if s.dir, err = openDir(s.cfg.RunDir); err != nil {
			return err
		}
		if s.sock, err = listen(s.dir); err != nil {
			return err
		}
		if f, err := os.OpenFile(filepath.Join(s.cfg.RunDir, crashName), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600); err == nil {
			_ = debug.SetCrashOutput(f, debug.CrashOptions{}) // best effort: only a bug of ours writes there
			_ = f.Close()
		}
		// The record of an earlier run is not this run's.
		for _, name := range []string{exitName, healthName} {
			if err := ignoreMissing(os.Remove(filepath.Join(s.cfg.StateDir, name))); err != nil {
				return err
			}
		}
		return unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	}, nil)
	if err != nil {
		return &errdefs.Error{Op: "set up the monitor of", What: s.cfg.ID, Kind: errdefs.KindOf(err), Err: err}
	}
	if s.cfg.Log.Driver != "none" {
		open := logfile.Create
		if s.cfg.Log.Driver == "json-file" {
			open = logfile.CreateJSON
		}
		err = s.steps.Do("log", func() (err error) {
			s.log, err = open(s.cfg.Log.Path, s.cfg.Log.MaxSize, s.cfg.Log.MaxFiles)
			return err
		}, nil)
		if err != nil {
			return err
		}
	}
	return nil
}

// live creates the container, starts it when asked, and returns when its first process has ended, or has never been.
func (s *server) live(create Creator) {
	var theirs Stdio
	err := s.steps.Do("stdio", func() error {
		if s.cfg.Terminal {
			return nil // it comes from the runtime
		}
		sio, t, err := pipes(s.cfg, s.log, s.bar)
		if err != nil {
			return err
		}
		theirs = t
		return s.setStdio(sio)
	}, nil)
	var proc Process
	if err == nil {
		s.reaping.Lock()
		err = s.steps.Do("create", func() (err error) {
			proc, err = create(s.ctx, s.cfg, theirs)
			return err
		}, nil)
		s.reaping.Unlock()
	}
	theirs.close()
	if proc == nil {
		s.failed(err)
		return
	}
	s.mu.Lock()
	s.proc, s.pid = proc, proc.Pid()
	s.mu.Unlock()
	go s.watch(proc.Pid())
	go s.reap()
	if err == nil && s.cfg.Terminal {
		err = s.openTerminal(proc)
	}
	if err != nil {
		s.failed(err)
		s.destroy()
	} else {
		s.mu.Lock()
		s.phase = created
		s.made = &message{Op: "created", Pid: s.pid}
		if w, ok := proc.(Warner); ok {
			s.made.Warnings = w.Warnings()
		}
		s.io.run()
		s.tell(s.made)
		s.mu.Unlock()
	}
	s.follow()
}

// follow waits for the start and for the end.
func (s *server) follow() {
	for {
		select {
		case reply := <-s.starts:
			reply <- s.start()
		case <-s.abandoned:
			s.mu.Lock()
			alone := len(s.peers) == 0 && s.phase == created
			s.mu.Unlock()
			if alone {
				s.failed(&errdefs.Error{
					Op: "start", What: s.cfg.ID, Kind: errdefs.Canceled,
					Why: "the command that created it ended before it was started",
				})
				s.destroy()
			}
		case <-s.dead:
			s.reaping.Lock()
			e, err := s.proc.Wait()
			s.reaping.Unlock()
			s.mu.Lock()
			if s.phase == created && s.failure == nil {
				s.mu.Unlock()
				s.failed(&errdefs.Error{
					Op: "start", What: s.cfg.ID, Kind: errdefs.Conflict,
					Why: "its first process was killed before it was started",
				})
				s.mu.Lock()
			}
			if s.failure == nil {
				s.exit.Code, s.exit.Signal = e.Code, e.Signal
				if err != nil {
					s.exit.Code = errdefs.Internal.ExitCode()
					s.warn("its exit status is lost", err)
				}
			}
			s.mu.Unlock()
			return
		}
	}
}

// start executes the user's command. An error of it goes to the clients when the container has been taken back (end);
// what is returned is an error of the request.
func (s *server) start() error {
	s.mu.Lock()
	ph, failed := s.phase, s.failure != nil
	s.mu.Unlock()
	if ph != created || failed {
		return &errdefs.Error{Op: "start", What: s.cfg.ID, Kind: errdefs.Conflict, Why: "it has been started"}
	}
	if s.cfg.Health != nil { // before anybody can see it run
		if err := writeHealth(s.cfg.StateDir, &HealthState{Status: Starting, Log: []HealthResult{}}); err != nil {
			s.failed(err)
			s.destroy()
			return nil
		}
	}
	at := time.Now()
	s.reaping.Lock()
	err := s.steps.Do("start", s.proc.Start, nil)
	s.reaping.Unlock()
	if err != nil {
		s.failed(err)
		s.destroy()
		return nil
	}
	// The runtime's clock began with the creation.
	spans := slices.Clone(s.steps.Spans())
	var began time.Duration
	for _, sp := range spans {
		if sp.Name == "monitor.create" {
			began = sp.Start
		}
	}
	for _, sp := range s.proc.Spans() {
		sp.Start += began
		spans = append(spans, sp)
	}
	s.mu.Lock()
	s.phase, s.exit.StartedAt = running, at
	s.started = &message{Op: "started", At: at, Spans: spans}
	s.tell(s.started)
	s.mu.Unlock()
	s.record("start", at)
	if s.cfg.Health != nil {
		s.bar.join()
		go s.checkHealth()
	}
	time.AfterFunc(settleAfter, s.settle)
	return nil
}

// failed records why the container never started.
func (s *server) failed(err error) {
	e := errdefs.As(err)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failure != nil {
		return
	}
	s.failure = &message{Op: "failed", Error: e}
	s.exit.Code, s.exit.Error = errdefs.KindOf(err).ExitCode(), err.Error()
}

// destroy kills a container that does not run. The main loop sees its end.
func (s *server) destroy() {
	s.reaping.Lock()
	defer s.reaping.Unlock()
	_ = s.proc.Signal(int(unix.SIGKILL)) // it may have ended by itself
}

// openTerminal takes the master side from the runtime.
func (s *server) openTerminal(proc Process) error {
	c, ok := proc.(Consoler)
	var f *os.File
	if ok {
		f = c.Console()
	}
	if f == nil {
		return &errdefs.Error{Op: "take the terminal", What: s.cfg.ID, Kind: errdefs.Internal, Why: "the runtime gave none"}
	}
	sio, err := terminal(s.cfg, f, s.log, s.bar)
	if err != nil {
		return err
	}
	return s.setStdio(sio)
}

// setStdio makes the streams known and attaches the first client's own to them. On failure they are closed.
func (s *server) setStdio(sio *stdio) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.io = sio
	for _, n := range stdioNames {
		fd, ok := s.cfg.Fds[n]
		if !ok {
			continue
		}
		if !s.peers[s.first] { // it has gone already
			_ = unix.Close(fd)
			continue
		}
		if err := s.attach(s.first, n, fd); err != nil {
			sio.abandon()
			s.io = nil
			return err
		}
	}
	return nil
}

// attach takes fd over. Preconditions: mu is held.
func (s *server) attach(p *peer, stream string, fd int) error {
	fail := func(kind errdefs.Kind, why string, err error) error {
		return &errdefs.Error{Op: "attach " + stream + " of", What: s.cfg.ID, Kind: kind, Why: why, Err: err}
	}
	if s.io == nil || s.phase == ended {
		_ = unix.Close(fd)
		return fail(errdefs.Conflict, "the container is not running", nil)
	}
	if stream == "stderr" && s.io.err == nil {
		_ = unix.Close(fd) // a terminal has one output
		return nil
	}
	e, err := newEndpoint(fd, stream != "stdin")
	if err != nil {
		return fail(errdefs.KindOf(err), "", err)
	}
	switch stream {
	case "stdin":
		if !s.cfg.OpenStdin {
			e.close()
			return fail(errdefs.InvalidArgument, "the container was created without an open stdin", nil)
		}
		dst := s.io.stdin()
		if dst == nil {
			e.close() // its end has been seen already (StdinOnce): there is nobody to read
			return nil
		}
		c := newSource(e, dst, s.bar)
		p.sources = append(p.sources, c)
		s.bar.join()
		go c.run(s.io)
	case "stdout":
		p.sinks = append(p.sinks, attached{s.io.out, s.io.out.attach(e, s.loss(p, stream))})
	case "stderr":
		p.sinks = append(p.sinks, attached{s.io.err, s.io.err.attach(e, s.loss(p, stream))})
	default:
		e.close()
		return fail(errdefs.InvalidArgument, "there is no such stream", nil)
	}
	return nil
}

// loss is what tells a client that nobody reads its stream any more.
func (s *server) loss(p *peer, stream string) func() {
	return func() { s.tellOne(p, &message{Op: "lost", Streams: []string{stream}}) }
}

// accept takes new clients until the socket is closed.
func (s *server) accept() {
	defer s.bar.leave()
	for {
		var fd int
		var got error
		err := s.sock.raw.Read(func(l uintptr) bool {
			for {
				fd, _, got = unix.Accept4(int(l), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
				if got != unix.EINTR && got != unix.ECONNABORTED {
					return got != unix.EAGAIN
				}
			}
		})
		if errors.Is(err, os.ErrDeadlineExceeded) {
			s.rest(s.sock)
			continue
		}
		if err != nil {
			return // closed
		}
		if got != nil {
			time.Sleep(10 * time.Millisecond) // no descriptors left, for now
			continue
		}
		c, err := newConn(fd)
		if err != nil {
			continue
		}
		// The socket's mode keeps others out; this one says so again, if somebody has changed it.
		if uid, err := peerUID(c); err != nil || uid != uint32(os.Geteuid()) {
			c.close()
			continue
		}
		p := &peer{c: c}
		s.mu.Lock()
		if s.phase == ended {
			s.mu.Unlock()
			c.close()
			continue
		}
		s.peers[p] = true
		_ = c.send(&message{Op: "hello"}, false) // what cannot be sent ends in serve
		if s.made != nil {
			_ = c.send(s.made, false)
		}
		if s.started != nil {
			_ = c.send(s.started, false)
		}
		s.mu.Unlock()
		s.bar.join()
		go s.serve(p)
	}
}

// rest parks the calling goroutine if it was interrupted for that, and undoes the interruption.
func (s *server) rest(c *conn) {
	if s.bar.wanted() {
		s.bar.park()
	}
	_ = c.f.SetReadDeadline(time.Time{})
}

// tell sends an event to all clients. One that does not read loses its connection: its packets would pile up.
// Preconditions: mu is held.
func (s *server) tell(m *message) {
	for p := range s.peers {
		s.tellOne(p, m)
	}
}

func (s *server) tellOne(p *peer, m *message) {
	if err := p.c.send(m, false); errors.Is(err, unix.EAGAIN) {
		p.c.close()
	}
}

// serve receives the requests of one client until it goes.
func (s *server) serve(p *peer) {
	defer s.bar.leave()
	buf := make([]byte, maxRequest)
	for {
		m, fds, err := p.c.recv(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			s.rest(p.c)
			continue
		}
		if err != nil {
			break // gone, or not speaking our language
		}
		if m.Op == "done" {
			s.mu.Lock()
			s.cleaned = s.cleaned || p.mine
			s.changed.Broadcast()
			s.mu.Unlock()
			continue
		}
		s.mu.Lock()
		s.answering++
		s.mu.Unlock()
		reply := &message{Op: "reply", ID: m.ID}
		if err := s.handle(p, m, fds); err != nil {
			reply.Error = errdefs.As(err)
		}
		s.tellOne(p, reply)
		s.mu.Lock()
		s.answering--
		s.changed.Broadcast()
		s.mu.Unlock()
	}
	s.leave(p)
}

// handle answers one request. It takes fds over.
func (s *server) handle(p *peer, m *message, fds []int) error {
	fail := func(kind errdefs.Kind, why string) error {
		return &errdefs.Error{Op: m.Op, What: s.cfg.ID, Kind: kind, Why: why}
	}
	if m.Op != "attach" || len(fds) != len(m.Streams) {
		closeFds(fds)
		if m.Op == "attach" {
			return fail(errdefs.InvalidArgument, "a stream without a descriptor")
		}
	}
	switch m.Op {
	case "start":
		reply := make(chan error, 1)
		s.mu.Lock()
		again := s.started != nil
		s.mu.Unlock()
		if again {
			return fail(errdefs.Conflict, "it has been started")
		}
		select {
		case s.starts <- reply:
			return <-reply
		case <-s.ctx.Done():
			return fail(errdefs.Conflict, "it has ended")
		}
	case "attach":
		s.mu.Lock()
		defer s.mu.Unlock()
		for i, n := range m.Streams {
			if err := s.attach(p, n, fds[i]); err != nil {
				closeFds(fds[i+1:])
				return err
			}
		}
		return nil
	case "drain":
		s.mu.Lock()
		sources := p.sources
		s.mu.Unlock()
		limit := time.NewTimer(drainTime)
		defer limit.Stop()
		for _, c := range sources {
			select {
			case <-c.done:
			case <-s.ctx.Done(): // the container has ended
			case <-limit.C:
				return fail(errdefs.Unavailable, "the container does not take its input")
			}
		}
		return nil
	case "resize":
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.phase == ended {
			return fail(errdefs.Conflict, "it has ended")
		}
		return s.io.resize(m.Width, m.Height)
	case "signal":
		s.mu.Lock()
		proc, ph := s.proc, s.phase
		s.mu.Unlock()
		if ph != running {
			return fail(errdefs.Conflict, "it is not running")
		}
		s.reaping.Lock()
		defer s.reaping.Unlock()
		if err := proc.Signal(m.Signal); err != nil {
			return err
		}
		sent := Sent{Signal: m.Signal, At: time.Now().UTC(), By: m.By[:min(len(m.By), maxBy)]}
		if u, err := peerOf(p.c); err == nil {
			sent.Pid, sent.UID = int(u.Pid), u.Uid
		}
		s.sent(sent) // its end is not looked at before
		return nil
	case "mine":
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.exited {
			return fail(errdefs.Conflict, "it has ended, and is being cleaned up")
		}
		p.mine = true
		return nil
	}
	return fail(errdefs.Unsupported, "this monitor does not know the request")
}

// leave forgets a client and lets its streams go.
func (s *server) leave(p *peer) {
	p.c.close()
	s.mu.Lock()
	sinks, sources := p.sinks, p.sources
	delete(s.peers, p)
	alone := len(s.peers) == 0 && s.phase < running
	s.changed.Broadcast()
	s.mu.Unlock()
	for _, a := range sinks {
		a.p.drop(a.s)
	}
	for _, c := range sources {
		c.close()
	}
	if alone {
		// Nobody knows of this container but us.
		s.cancel()
		select {
		case s.abandoned <- struct{}{}:
		default:
		}
	}
}

// watch closes dead when the container's first process has ended.
func (s *server) watch(pid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err == nil {
		waitPidfd(fd)
	} // else it is gone: it is our child, and its number stays its own until Wait
	close(s.dead)
}

// reap reaps what the container's processes leave behind: the monitor is their subreaper.
func (s *server) reap() {
	c, err := sys.Catch(false, unix.SIGCHLD)
	if err != nil {
		return // there are no descriptors left; the first process is waited for by its own
	}
	var b [64]byte
	for {
		s.reaping.Lock()
		reapOrphans(s.pid, s.checking)
		s.reaping.Unlock()
		if _, err := c.Read(b[:]); err != nil {
			return
		}
	}
}

// warn adds a warning to the exit record. Preconditions: mu is held.
func (s *server) warn(what string, err error) {
	s.exit.Warnings = append(s.exit.Warnings, what+": "+err.Error())
}

// end does what follows the end of the container's first process, or a failure before it:
//
//	drain stdio -> close the log -> exit record -> delete the runtime's state -> give up socket and lock
//	-> tell every client, after its own last output -> clean up, unless a client does
//
// From giving up the lock on the container is nobody's: the record is written, and RunDir may be removed.
func (s *server) end() int {
	s.mu.Lock()
	s.phase = ended
	proc, sio := s.proc, s.io
	var sources []*source
	for p := range s.peers {
		sources = append(sources, p.sources...)
	}
	s.mu.Unlock()
	s.cancel() // start requests from now on are refused
	for _, c := range sources {
		c.close()
	}
	finished := time.Now()
	var warnings []error
	if sio != nil {
		warnings = sio.finish()
	}
	if proc != nil {
		s.reaping.Lock()
		oom, peak := proc.OOMKilled(), int64(0)
		if m, ok := proc.(Measurer); ok {
			peak = m.MemoryPeak()
		}
		s.reaping.Unlock()
		s.mu.Lock()
		s.exit.OOMKilled, s.exit.MemoryPeak = oom, peak
		s.mu.Unlock()
	}
	if s.log != nil {
		if err := s.log.Close(s.cfg.Sync); err != nil {
			warnings = append(warnings, err)
		}
	}
	s.mu.Lock()
	s.exit.FinishedAt = finished
	for _, err := range warnings {
		s.warn("the log is incomplete", err)
	}
	err := s.steps.Do("record", func() error { return writeExit(s.cfg.StateDir, &s.exit, s.cfg.Sync) }, nil)
	if err != nil {
		s.warn("the exit record could not be written", err)
	}
	s.mu.Unlock()
	s.recordEnd()
	if proc != nil {
		s.reaping.Lock()
		err := s.steps.Do("delete", proc.Delete, nil)
		s.reaping.Unlock()
		if err != nil {
			s.mu.Lock()
			s.warn("the runtime's state could not be deleted", err)
			_ = writeExit(s.cfg.StateDir, &s.exit, s.cfg.Sync) // as above
			s.mu.Unlock()
		}
	}
	if s.sock != nil {
		s.sock.close()
		_ = unix.Unlinkat(s.dir, socketName, 0)
	}
	_ = s.lock.Close()

	s.mu.Lock()
	s.exited = true
	for p := range s.peers {
		if slices.ContainsFunc(p.sinks, func(a attached) bool { return len(a.s.pending) > 0 }) {
			go s.bid(p)
		} else {
			s.farewell(p)
		}
	}
	// Who promised to clean up has until its connection ends; who still has output to read has it, too.
	for s.busy() {
		s.changed.Wait()
	}
	cleaned := s.cleaned
	s.mu.Unlock()
	if !cleaned && len(s.cfg.Cleanup) > 0 {
		return s.cleanUp()
	}
	return 0
}

// busy reports whether a client is left that end has to wait for. Preconditions: mu is held.
func (s *server) busy() bool {
	if s.answering > 0 {
		return true
	}
	for p := range s.peers {
		if p.mine && !s.cleaned || p.sinks != nil {
			return true
		}
	}
	return false
}

// bid delivers the last output of one client, and then tells it of the exit. If it never reads, its connection's end
// ends this.
func (s *server) bid(p *peer) {
	s.mu.Lock()
	sinks := p.sinks
	s.mu.Unlock()
	for _, a := range sinks {
		a.p.flush(a.s)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.farewell(p)
	s.changed.Broadcast()
}

// farewell lets a client's streams go and tells it the end. Preconditions: mu is held.
func (s *server) farewell(p *peer) {
	for _, a := range p.sinks {
		a.p.drop(a.s)
	}
	p.sinks = nil
	if s.failure != nil {
		s.tellOne(p, s.failure)
	}
	s.tellOne(p, &message{Op: "exited", Exit: &s.exit})
}
