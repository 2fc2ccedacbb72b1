package monitor

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/runtime/monitor/logfile"
	"github.com/onggi/onggi/sys"
	"github.com/onggi/onggi/undo"
	"golang.org/x/sys/unix"
)

// Making a container touches a few megabytes of memory that a Go process cannot give back page by page: small objects
// that stay are spread over all of them. So the monitor of a container that stays executes itself once more: same
// process, same children, same descriptors and lock, and a heap that holds nothing but the monitor.
//
//	park every goroutine where it holds nothing -> write the state to a memfd -> execve(/proc/self/exe monitor --resume N ID)
//	-> read the state -> adopt the container -> go on
//
// Clients notice nothing: bytes and requests of the meantime (2 ms) wait in their pipes and sockets. When a goroutine
// cannot be parked, because a client does not read its output, it is tried again later.

// Adopter finds the container of cfg, whose first process is pid and a child of this one, after the monitor has
// executed itself again. cfg has ID, Bundle, RunDir, StateDir and RuntimeRoot.
type Adopter func(cfg *Config, pid int) (Process, error)

const (
	settleAfter = time.Second            // a container that lives so long stays; short ones do not pay
	settleAgain = 15 * time.Second       // when it could not be done
	asleepAfter = 100 * time.Millisecond // a new life's goroutines have begun to wait by then
	parkTime    = 50 * time.Millisecond  // how long to wait for the goroutines
)

var caught = []syscall.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2}

// catch makes signals harmless. They are caught and thrown away, not ignored: an ignored signal would stay ignored in the
// container (execve(2)).
func catch() {
	_, _ = sys.Catch(true, caught...) // it fails for numbers that are no signals
}

// settle is done once when the container runs, off everybody's way: it gives back the memory that setting up took.
func (s *server) settle() {
	// A container must not take its monitor along when memory runs out. Children made before keep their own value;
	// without the right to lower it (CAP_SYS_RESOURCE) nothing is lost but this.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-999"), 0)
	if s.adopt == nil && len(s.cfg.Runtime) == 0 {
		tidy(true)
		return
	}
	if err := s.renew(); errors.Is(err, errBusy) {
		time.AfterFunc(settleAgain, s.settle)
	} else if err != nil {
		tidy(true) // the second best
	}
}

// backstop is where garbage is collected although collecting is off (the binary's main turns it off, because its other
// commands are short): a container that writes line by line in its first second must not make its monitor large.
const backstop = 16 << 20

// tidy makes the process small; doc/monitor.md has the measurements. collect says whether there is garbage.
func tidy(collect bool) {
	debug.SetGCPercent(20) // the usual 100 lets 4 MiB of garbage gather first
	if collect {
		debug.FreeOSMemory()
	}
	_ = sys.DropFilePages() // saves memory or does nothing
}

var errBusy = errors.New("a client does not take its output")

// renew executes the monitor again. It returns only when it could not.
func (s *server) renew() error {
	s.reaping.Lock() // no runtime's operation, no other child is being made
	defer s.reaping.Unlock()
	if !s.bar.close(parkTime, s.wake) {
		return errBusy
	}
	defer s.bar.open()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase != running {
		return nil // it has ended meanwhile
	}
	if s.answering > 0 {
		return errBusy
	}
	select {
	case <-s.dead:
		return nil // it ends: there is nothing to save any more
	default:
	}
	fd, err := unix.MemfdCreate("monitor", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "state")
	defer f.Close()
	if s.log != nil {
		if err := s.log.Flush(); err != nil { // what fails now will fail, and be a warning, later
			return errBusy
		}
	}
	st := &state{w: bufio.NewWriter(f)}
	s.save(st)
	if err := errors.Join(st.err, st.w.Flush()); err != nil {
		return err
	}
	if _, err := f.Seek(0, 0); err != nil {
		return err
	}
	keep := append(st.fds, fd)
	for _, n := range keep {
		if _, err = unix.FcntlInt(uintptr(n), unix.F_SETFD, 0); err != nil {
			break
		}
	}
	if err == nil {
		for _, c := range caught {
			signal.Ignore(c) // until Resume catches them
		}
		err = syscall.Exec("/proc/self/exe", []string{"onggi-runtime", "monitor", "--resume", strconv.Itoa(fd), s.cfg.ID}, os.Environ())
		catch()
	}
	for _, n := range keep {
		unix.CloseOnExec(n)
	}
	return err
}

// wake interrupts what the goroutines wait for, so that they see the barrier.
func (s *server) wake() {
	past := time.Unix(1, 0)
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.sock.f.SetReadDeadline(past)
	for p := range s.peers {
		_ = p.c.f.SetReadDeadline(past)
		for _, c := range p.sources {
			c.e.interrupt()
		}
	}
	select {
	case s.nudge <- struct{}{}:
	default:
	}
	for _, p := range s.io.pumps() {
		p.mu.Lock()
		_ = p.src.SetReadDeadline(past)
		p.mu.Unlock()
	}
}

// state is the monitor's state as lines of "key value", strings quoted as in Go. It is read by the same binary.
type state struct {
	w   *bufio.Writer
	fds []int
	err error
}

func (st *state) str(key string, v ...string) {
	for _, s := range v {
		_, _ = st.w.WriteString(key + " " + strconv.Quote(s) + "\n") // its error is Flush's
	}
}

func (st *state) num(key string, v int64) { st.str(key, strconv.FormatInt(v, 10)) }

func (st *state) flag(key string, v bool) {
	if v {
		st.num(key, 1)
	}
}

func (st *state) fd(key string, n int) {
	st.fds = append(st.fds, n)
	st.num(key, int64(n))
}

func (st *state) file(key string, f *os.File) {
	n, err := number(f)
	if err != nil {
		st.err = err
		return
	}
	st.fd(key, n)
}

// endpoint writes a client's descriptor.
func (st *state) endpoint(key string, e *endpoint) {
	st.num("kind", int64(e.kind))
	if e.fd >= 0 {
		st.fd("own", e.fd)
	}
	if e.f != nil {
		st.file("watched", e.f)
	}
	st.str(key, "")
}

// save writes everything. Preconditions: all goroutines are parked, mu is held.
func (s *server) save(st *state) {
	c := s.cfg
	st.str("id", c.ID)
	st.str("bundle", c.Bundle)
	st.str("rundir", c.RunDir)
	st.str("statedir", c.StateDir)
	st.str("root", c.RuntimeRoot)
	st.str("runtime", c.Runtime...)
	st.str("cleanup", c.Cleanup...)
	st.flag("terminal", c.Terminal)
	st.flag("openstdin", c.OpenStdin)
	st.flag("stdinonce", c.StdinOnce)
	st.flag("sync", c.Sync)
	if c.Journal != "" {
		st.str("journal", c.Journal)
	}
	if h := c.Health; h != nil {
		st.str("health", h.Command...)
		st.str("healthpid", h.PidFile)
		for i, n := range h.numbers() {
			st.num("healthnum"+strconv.Itoa(i), *n)
		}
		st.str("healthon", h.On)
	}
	for _, m := range s.exit.Signals {
		st.num("sentat", m.At.UnixNano())
		st.num("sentpid", int64(m.Pid))
		st.num("sentuid", int64(m.UID))
		st.str("sentby", m.By)
		st.num("sent", int64(m.Signal))
	}
	if s.exit.Unhealthy != "" {
		st.str("unhealthy", s.exit.Unhealthy)
	}
	for name, n := range c.Fds {
		st.str("held", name)
		st.fd("heldfd", n)
	}
	if s.log != nil {
		st.str("logdriver", c.Log.Driver)
		st.str("log", c.Log.Path)
		st.num("logsize", c.Log.MaxSize)
		st.num("logfiles", int64(c.Log.MaxFiles))
	}
	st.num("pid", int64(s.pid))
	if f, ok := s.proc.(*foreignProcess); ok {
		st.str("path", f.path)
		st.str("events", f.events)
	}
	st.num("started", s.exit.StartedAt.UnixNano())
	st.str("warning", s.made.Warnings...)
	st.file("lock", s.lock)
	st.file("sock", s.sock.f)
	for _, p := range s.io.pumps() {
		if p.logErr != nil {
			st.str("logerr", p.logErr.Error())
		}
		select {
		case <-p.done: // its end has been seen
			continue
		default:
		}
		st.num("stream", int64(p.stream))
		st.file("pump", p.src)
	}
	s.io.mu.Lock()
	if s.io.in != nil && s.io.in != s.io.console {
		st.file("stdin", s.io.in)
	}
	st.flag("stdinclosed", s.io.in == nil)
	s.io.mu.Unlock()
	for p := range s.peers {
		st.flag("mine", p.mine)
		st.file("peer", p.c.f)
		for _, a := range p.sinks {
			if !a.s.isDead(a.p) {
				st.num("stream", int64(a.p.stream))
				st.endpoint("sink", a.s.e)
			}
		}
		for _, c := range p.sources {
			if c.ended.Load() {
				continue
			}
			st.file("dst", c.dst)
			st.endpoint("source", c.e)
		}
	}
}

// Resume is the monitor after it has executed itself again: fd holds the state that renew has written.
func Resume(fd int, adopt Adopter) int {
	catch()
	s := newServer()
	s.adopt = adopt
	_ = os.WriteFile("/proc/self/comm", []byte("onggi-runtime"), 0) // not "exe", for people who look at ps
	err := s.load(fd)
	if err != nil {
		// Nothing can be done without the state: end as a monitor that was killed.
		return errdefs.Internal.ExitCode()
	}
	if len(s.cfg.Runtime) > 0 {
		adopt = s.adoptForeign
	}
	s.mu.Lock()
	s.proc = &adopted{cfg: s.cfg, pid: s.pid, adopt: adopt}
	s.bar.join()
	go s.accept()
	for p := range s.peers {
		s.bar.join()
		go s.serve(p)
		for _, c := range p.sources {
			s.bar.join()
			go c.run(s.io)
		}
	}
	s.mu.Unlock()
	s.io.run()
	go s.watch(s.pid)
	go s.reap()
	if h := s.cfg.Health; h != nil {
		s.bar.join()
		go s.checkHealth()
		if s.exit.Unhealthy != "" {
			s.endAfter(h.Grace)
		}
	}
	time.AfterFunc(asleepAfter, func() { tidy(false) })
	s.follow()
	return s.end()
}

// adopted is the container of an earlier life of this process. The runtime is asked for it when something is wanted of
// it: reading its state takes memory, which a sleeping monitor should not have. Its calls are serialised by
// server.reaping.
type adopted struct {
	cfg   *Config
	pid   int
	adopt Adopter
	proc  Process
	err   error
}

func (a *adopted) get() (Process, error) {
	if a.proc == nil && a.err == nil {
		a.proc, a.err = a.adopt(a.cfg, a.pid)
	}
	return a.proc, a.err
}

func (a *adopted) Pid() int            { return a.pid }
func (a *adopted) Start() error        { return errors.ErrUnsupported } // it runs
func (a *adopted) Wait() (Exit, error) { return waitFor(a.pid) }
func (a *adopted) Spans() []undo.Span  { return nil }

func (a *adopted) Signal(sig int) error {
	p, err := a.get()
	if err != nil {
		// Its state is gone, but it is our child, and so its number is its own.
		return unix.Kill(a.pid, unix.Signal(sig))
	}
	return p.Signal(sig)
}

func (a *adopted) Delete() error {
	p, err := a.get()
	if err != nil {
		return err
	}
	return p.Delete()
}

func (a *adopted) OOMKilled() bool {
	p, err := a.get()
	return err == nil && p.OOMKilled()
}

func (a *adopted) MemoryPeak() int64 {
	p, err := a.get()
	if err != nil {
		return 0
	}
	m, ok := p.(Measurer)
	if !ok {
		return 0
	}
	return m.MemoryPeak()
}

// adoptForeign finds a foreign runtime's container again. Its private mount namespace is not needed any more.
func (s *server) adoptForeign(cfg *Config, pid int) (Process, error) {
	return &foreignProcess{cfg: cfg, path: s.path, pid: pid, events: s.events, steps: undo.New("runtime")}, nil
}

// load reads the state and rebuilds the server, without starting anything.
func (s *server) load(fd int) error {
	f := os.NewFile(uintptr(fd), "state")
	defer f.Close()
	s.cfg = &Config{Fds: map[string]int{}}
	c := s.cfg
	s.io = &stdio{bar: s.bar}
	s.made = &message{Op: "created"}
	s.phase = running
	kind, stream, own, watched, dst := 0, 0, -1, -1, -1
	var mine, stdinClosed bool
	var held string
	var sent Sent
	var logErr error
	var last *peer
	src := map[int]*os.File{}
	takeEndpoint := func(write bool) (*endpoint, error) {
		e, err := resumeEndpoint(endpointKind(kind), own, watched, write)
		own, watched = -1, -1
		return e, err
	}
	type late struct {
		p      *peer
		stream int
		e      *endpoint
		dst    int
	}
	var lates []late // pumps may not be there yet
	scan := bufio.NewScanner(f)
	scan.Buffer(make([]byte, 0, 4096), 1<<20)
	for scan.Scan() {
		key, quoted, _ := strings.Cut(scan.Text(), " ")
		v, err := strconv.Unquote(quoted)
		if err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		n, _ := strconv.Atoi(v)
		switch key {
		case "id":
			c.ID = v
		case "bundle":
			c.Bundle = v
		case "rundir":
			c.RunDir = v
		case "statedir":
			c.StateDir = v
		case "root":
			c.RuntimeRoot = v
		case "runtime":
			c.Runtime = append(c.Runtime, v)
		case "cleanup":
			c.Cleanup = append(c.Cleanup, v)
		case "terminal":
			c.Terminal = true
		case "openstdin":
			c.OpenStdin = true
		case "stdinonce":
			c.StdinOnce = true
		case "sync":
			c.Sync = true
		case "health":
			if c.Health == nil {
				c.Health = &Health{}
			}
			c.Health.Command = append(c.Health.Command, v)
		case "healthpid":
			c.Health.PidFile = v
		case "healthnum0", "healthnum1", "healthnum2", "healthnum3", "healthnum4", "healthnum5", "healthnum6":
			*c.Health.numbers()[key[len(key)-1]-'0'] = int64(n)
		case "healthon":
			c.Health.On = v
		case "sentat":
			sent.At = time.Unix(0, int64(n)).UTC()
		case "sentpid":
			sent.Pid = n
		case "sentuid":
			sent.UID = uint32(n)
		case "sentby":
			sent.By = v
		case "sent":
			sent.Signal = n
			s.exit.Signals = append(s.exit.Signals, sent)
		case "unhealthy":
			s.exit.Unhealthy = v
		case "journal":
			c.Journal = v
		case "held":
			held = v
		case "heldfd":
			c.Fds[held] = n
			unix.CloseOnExec(n)
		case "logdriver":
			c.Log.Driver = v
		case "log":
			c.Log.Path = v
		case "logsize":
			c.Log.MaxSize = int64(n)
		case "logfiles":
			c.Log.MaxFiles = n
		case "pid":
			s.pid, s.made.Pid = n, n
		case "path":
			s.path = v
		case "events":
			s.events = v
		case "started":
			s.exit.StartedAt = time.Unix(0, int64(n))
			s.started = &message{Op: "started", At: s.exit.StartedAt}
		case "warning":
			s.made.Warnings = append(s.made.Warnings, v)
		case "lock":
			unix.CloseOnExec(n)
			s.lock = os.NewFile(uintptr(n), "lock")
		case "sock":
			if s.sock, err = newConn(n); err != nil {
				return err
			}
		case "logerr":
			logErr = errors.New(v)
		case "stream":
			stream = n
		case "pump":
			unix.CloseOnExec(n)
			src[stream] = os.NewFile(uintptr(n), "stream")
		case "stdin":
			unix.CloseOnExec(n)
			s.io.in = os.NewFile(uintptr(n), "stdin")
		case "stdinclosed":
			stdinClosed = true
		case "mine":
			mine = true
		case "peer":
			pc, err := newConn(n)
			if err != nil {
				return err
			}
			last = &peer{c: pc, mine: mine}
			mine = false
			s.peers[last] = true
		case "kind":
			kind = n
		case "own":
			own = n
			unix.CloseOnExec(n)
		case "watched":
			watched = n
			unix.CloseOnExec(n)
		case "dst":
			dst = n
			unix.CloseOnExec(n)
		case "sink", "source":
			e, err := takeEndpoint(key == "sink")
			if err != nil || last == nil {
				return fmt.Errorf("%s: %w", key, err)
			}
			lates = append(lates, late{last, stream, e, dst})
			if key == "sink" {
				lates[len(lates)-1].dst = -1
			}
		default:
			return fmt.Errorf("an unknown key %q", key)
		}
	}
	if err := scan.Err(); err != nil {
		return err
	}
	if s.lock == nil || s.sock == nil || s.pid <= 0 {
		return errors.New("the state is incomplete")
	}
	s.io.once = c.StdinOnce && !c.Terminal // as pipes and terminal say
	var err error
	if s.dir, err = openDir(c.RunDir); err != nil {
		return err
	}
	if c.Log.Path != "" {
		// The log's limits were checked when it was made; what is wrong with it now is a warning.
		reopen := logfile.Reopen
		if c.Log.Driver == "json-file" {
			reopen = logfile.ReopenJSON
		}
		if s.log, err = reopen(c.Log.Path, c.Log.MaxSize, c.Log.MaxFiles); err != nil && logErr == nil {
			logErr = err
		}
	}
	make1 := func(st logfile.Stream) (*pump, error) {
		f := src[int(st)]
		if f == nil {
			return endedPump(st), nil
		}
		return newPump(st, f, c.Terminal, s.log, s.bar)
	}
	if s.io.out, err = make1(logfile.Stdout); err != nil {
		return err
	}
	s.io.out.logErr = logErr
	if c.Terminal {
		s.io.console = src[int(logfile.Stdout)]
		if c.OpenStdin && !stdinClosed {
			s.io.in = s.io.console
		}
	} else if s.io.err, err = make1(logfile.Stderr); err != nil {
		return err
	}
	for _, l := range lates {
		if l.dst >= 0 {
			l.p.sources = append(l.p.sources, newSource(l.e, os.NewFile(uintptr(l.dst), "stdin"), s.bar))
			continue
		}
		p, name := s.io.out, stdioNames[1]
		if l.stream == int(logfile.Stderr) {
			p, name = s.io.err, stdioNames[2]
		}
		l.p.sinks = append(l.p.sinks, attached{p, p.attach(l.e, s.loss(l.p, name))})
	}
	return nil
}
