package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/onggi/onggi/engine"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/runtime/monitor"
	"github.com/onggi/onggi/sys"
	"github.com/onggi/onggi/undo"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func buildRun(a *app, c *cobra.Command) {
	var (
		f        containerFlags
		detach   bool
		sigProxy bool
		timing   bool
		pidfile  string
		keys     string
	)
	c.Use = "run [FLAGS] IMAGE [COMMAND] [ARGUMENT...]"
	c.Long = `Make a container from an image and run it. The image is pulled if it is not here.

The command's streams are this command's streams, its exit code this command's exit code. Signals that this command gets
go to the container (without -t). With -t the container gets a terminal, and every key goes to it.

Exit codes besides the container's own:
  125  onggi itself failed (a wrong flag, no such image, no space, ...)
  126  the container's command cannot be executed
  127  the container's command does not exist
  128+n  signal n ended the container's command`
	c.Example = `  onggi run --rm onggi/hello                               a first container; needs no network
  onggi run --rm -it debian:12 bash                        a shell
  onggi run -d --name db -v data:/var/lib/db -p 5432:5432 db:16
  onggi run --rm -m 256m --cpus 0.5 --pids-limit 100 --network none --read-only --tmpfs /tmp debian:12 make
  onggi run --rm -v "$PWD":/src:ro -w /src golang go vet ./...
  tar c . | onggi run --rm -i debian:12 tar t              a pipe through a container`
	fs := c.Flags()
	fs.BoolVarP(&detach, "detach", "d", false, "run in the background and print the container's id")
	f.register(fs)
	fs.BoolVar(&sigProxy, "sig-proxy", true, "send signals on to the container (without -t)")
	fs.StringVar(&keys, "detach-keys", "", detachKeysUsage+" (default "+defaultDetachKeys+")")
	fs.StringVar(&pidfile, "pidfile", "", "write the process id of the container's command to a `file`")
	fs.BoolVar(&timing, "timing", false, "print how long each phase of the start took on stderr")
	fs.SetInterspersed(false)
	c.Args = takes(1, -1, "an image, and a command with its arguments")
	c.RunE = func(c *cobra.Command, args []string) error {
		r := &running{app: a, name: args[0], rm: f.rm, sigProxy: sigProxy && !f.tty, timing: timing, pidfile: pidfile}
		if c.Flags().Changed("pidfile") && pidfile == "" {
			return reading("--pidfile", "", errorText("the value is empty"))
		}
		if err := writable("--pidfile", pidfile); err != nil {
			return exitWith(err)
		}
		var err error
		if r.keys, err = readDetachKeys(keys); err != nil {
			return err
		}
		cfg, err := f.config(args[0], args[1:], c.Flags().Changed)
		if err != nil {
			return exitWith(err)
		}
		if detach && len(f.attach) > 0 {
			return exitWith(reading("--detach", "true", &errdefs.Error{Why: "-a attaches this command's streams, and with -d it has gone", Fix: "leave one of them out"}))
		}
		if !detach {
			if r.streams, err = f.attached(); err != nil {
				return err
			}
		}
		if r.tty = f.tty && !detach; r.tty && r.streams.in {
			if err := a.needTerminal("run"); err != nil {
				return err
			}
		}
		r.detach = detach
		return exitWith(r.run(c.Context(), &f, cfg))
	}
}

func buildCreate(a *app, c *cobra.Command) {
	var f containerFlags
	c.Use = "create [FLAGS] IMAGE [COMMAND] [ARGUMENT...]"
	c.Long = `Make a container from an image without starting it, and print its id. onggi start runs it. The flags are those of run.`
	c.Example = `  onggi create --name web -p 8080:80 nginx
  onggi start web
  onggi start -a $(onggi create debian:12 date)`
	f.register(c.Flags())
	c.Flags().SetInterspersed(false)
	c.Args = takes(1, -1, "an image, and a command with its arguments")
	c.RunE = func(c *cobra.Command, args []string) error {
		cfg, err := f.config(args[0], args[1:], c.Flags().Changed)
		if err == nil {
			_, err = f.attached() // start attaches; a wrong stream is refused here already
		}
		if err != nil {
			return exitWith(err)
		}
		e, err := a.open()
		if err != nil {
			return exitWith(err)
		}
		ctx, cancel := a.context(c.Context())
		defer cancel()
		k, err := a.create(ctx, e, &f, cfg)
		if err != nil {
			return exitWith(err)
		}
		return a.print(k.ID + "\n")
	}
}

func buildStart(a *app, c *cobra.Command) {
	var (
		attach, interactive, timing bool
		keys                        string
	)
	c.Use = "start [FLAGS] CONTAINER [CONTAINER...]"
	c.Long = `Start containers that are created or have ended, and print their names; one that runs already is left as it is. With -a this
command is attached to the container's output, waits for its end, and exits with its code; with -i its input is attached as well.`
	c.Example = `  onggi start web db
  onggi start -ai shell                         back into a container with a terminal`
	c.Flags().BoolVarP(&attach, "attach", "a", false, "attach stdout and stderr, and send signals on")
	c.Flags().BoolVarP(&interactive, "interactive", "i", false, "attach stdin (the container was made with -i)")
	c.Flags().StringVar(&keys, "detach-keys", "", detachKeysUsage+" (default "+defaultDetachKeys+")")
	const restore = "containers are not restored from checkpoints by the engine; the runtime does: onggi-runtime restore"
	refuse(c.Flags(), []refusal{{"checkpoint", restore, "leave it out"}, {"checkpoint-dir", restore, "leave it out"}})
	c.Flags().BoolVar(&timing, "timing", false, "print how long each phase of the start took on stderr")
	c.Args = takes(1, -1, "the names or ids of containers")
	c.RunE = func(c *cobra.Command, args []string) error {
		e, err := a.open()
		if err != nil {
			return exitOfCommand(err)
		}
		if !attach && !interactive {
			ctx, cancel := a.context(c.Context())
			defer cancel()
			return exitOfCommand(a.forEach(ctx, args, func(ctx context.Context, name string) (string, error) {
				s, err := e.Start(ctx, name, engine.StartOptions{Timing: timing})
				if runsAlready(e, name, err) {
					return name, nil
				}
				if err != nil {
					return "", err
				}
				if timing {
					a.phases(a.err, s.Spans)
				}
				return name, s.Client.Close()
			}))
		}
		if len(args) > 1 {
			return &exit{125, &errdefs.Error{
				Op: "start", Kind: errdefs.InvalidArgument, Why: "one terminal can be attached to one container only",
				Fix: "name one container, or leave -a and -i out",
			}}
		}
		k, err := e.Get(args[0])
		if err != nil {
			return exitOfCommand(err)
		}
		if interactive && !k.Config.OpenStdin {
			return &exit{125, &errdefs.Error{
				Op: "start", What: args[0], Kind: errdefs.InvalidArgument,
				Why: "the container was made without -i, so it has no input to attach to", Fix: "leave -i out",
			}}
		}
		r := &running{
			app: a, name: args[0], rm: k.Config.AutoRemove, tty: k.Config.Tty, sigProxy: !k.Config.Tty, timing: timing,
			streams: streams{in: interactive, out: true, err: true},
		}
		if r.keys, err = readDetachKeys(keys); err != nil {
			return err
		}
		if r.tty && interactive {
			if err := a.needTerminal("start"); err != nil {
				return err
			}
		}
		if k.Status == engine.Running {
			r.later = true
			return exitOfCommand(r.attach(c.Context(), e))
		}
		return exitOfCommand(r.start(c.Context(), e))
	}
}

// runsAlready reports whether err says that the container runs already, which is what a start is asked for.
func runsAlready(e *engine.Engine, name string, err error) bool {
	if !errdefs.Is(err, errdefs.Conflict) {
		return false
	}
	k, err := e.Get(name)
	return err == nil && k.Status == engine.Running && !k.Paused
}

// create makes the container, and writes the cidfile before anything can be started.
func (a *app) create(ctx context.Context, e *engine.Engine, f *containerFlags, cfg engine.Config) (*engine.Container, error) {
	cid, err := newIDFile(f.cidfile)
	if err != nil {
		return nil, err
	}
	k, err := e.Create(ctx, cfg, a.puller(e, &cfg, f.quiet))
	if err != nil {
		cid.drop()
		return nil, err
	}
	for _, w := range k.Warnings {
		a.warn(w)
	}
	if err := cid.write(k.ID); err != nil {
		// An id that nobody learns is a container that nobody removes.
		return nil, errors.Join(err, e.Remove(context.WithoutCancel(ctx), k.ID, true, true))
	}
	return k, nil
}

// idFile is a file that is made before the container, so that a name that is taken is known in time.
type idFile struct{ f *os.File }

func newIDFile(path string) (*idFile, error) {
	if path == "" {
		return &idFile{}, nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY|syscall.O_CLOEXEC, 0o644)
	if errors.Is(err, os.ErrExist) {
		return nil, &errdefs.Error{
			Op: "use", What: "--cidfile=" + path, Kind: errdefs.AlreadyExists,
			Why: "the file exists already: it may hold the id of another container", Fix: "make sure that container is gone, and remove the file; or name another file",
		}
	}
	if err != nil {
		return nil, &errdefs.Error{Op: "use", What: "--cidfile=" + path, Kind: errdefs.KindOf(err), Fix: "name a file in a directory that exists and can be written", Err: err}
	}
	return &idFile{f}, nil
}

func (c *idFile) write(id string) error {
	if c.f == nil {
		return nil
	}
	_, err := c.f.WriteString(id)
	if e := c.f.Close(); err == nil {
		err = e
	}
	if err != nil {
		_ = os.Remove(c.f.Name())
		return &errdefs.Error{Op: "write", What: "--cidfile=" + c.f.Name(), Kind: errdefs.KindOf(err), Err: err}
	}
	return nil
}

func (c *idFile) drop() {
	if c.f != nil {
		_ = c.f.Close()
		_ = os.Remove(c.f.Name())
	}
}

// running is a client of one container, from the first signal that it could get to the container's end.
type running struct {
	*app
	name     string
	streams  streams
	detach   bool
	tty      bool
	rm       bool
	sigProxy bool
	timing   bool
	pidfile  string
	keys     []byte // that detach from a terminal
	later    bool   // it has come to a container that ran already
	left     atomic.Bool

	mu       sync.Mutex
	client   *monitor.Client // signals go here once the container runs
	early    []syscall.Signal
	asked    int // how often the user asked to end it
	giveUp   context.CancelFunc
	terminal *terminal
}

// run makes and starts the container, and stays with it unless detached.
func (r *running) run(parent context.Context, f *containerFlags, cfg engine.Config) error {
	e, err := r.open()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(parent)
	defer cancel()
	stop, err := r.listen(cancel)
	if err != nil {
		return err
	}
	defer stop()

	if isHello(cfg.Image) {
		cfg.Env = r.greet(cfg.Env)
		if cfg.Pull == "" && r.staleHello(e) {
			cfg.Pull = "always"
		}
	}
	// With a terminal the container is made before the terminal becomes raw: pulling prints, and Ctrl-C should end it.
	// With a cidfile its id is written before it can run. Otherwise Run makes and starts it in one go.
	var s *engine.Session
	if r.tty || f.cidfile != "" {
		k, err := r.create(ctx, e, f, cfg)
		if err != nil {
			return err
		}
		if err := r.toRaw(); err != nil {
			return errors.Join(err, e.Remove(context.WithoutCancel(ctx), k.ID, true, true))
		}
		defer r.restore()
		warned := k.Warnings
		s, err = e.Start(ctx, k.ID, r.startOptions())
		if err != nil {
			r.restore()
			if r.rm {
				err = joined(err, e.Remove(context.WithoutCancel(ctx), k.ID, true, true))
			}
			return err
		}
		r.warnNew(s.Container.Warnings, warned)
	} else {
		s, err = e.Run(ctx, cfg, r.puller(e, &cfg, f.quiet), r.startOptions())
		if err != nil {
			return err
		}
		r.warnNew(s.Container.Warnings, nil)
	}
	return r.stay(parent, e, s)
}

// warnNew prints the warnings that have not been printed yet. A raw terminal needs a carriage return before each line's
// end, which its driver does not add.
func (r *running) warnNew(warnings, old []string) {
	for _, w := range warnings {
		if slices.Contains(old, w) {
			continue
		}
		if r.raised() {
			w += "\r"
		}
		r.warn(w)
	}
}

func (r *running) raised() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.terminal != nil && r.terminal.state != nil
}

// joined keeps the first error's kind and remedy, and adds what went wrong in taking back.
func joined(err, undoing error) error {
	if undoing == nil {
		return err
	}
	return errors.Join(err, undoing)
}

// start starts an existing container and stays with it.
func (r *running) start(parent context.Context, e *engine.Engine) error {
	ctx, cancel := context.WithCancel(parent)
	defer cancel()
	stop, err := r.listen(cancel)
	if err != nil {
		return err
	}
	defer stop()
	if r.tty {
		if err := r.toRaw(); err != nil {
			return err
		}
		defer r.restore()
	}
	s, err := e.Start(ctx, r.name, r.startOptions())
	if err != nil {
		r.restore()
		return err
	}
	return r.stay(parent, e, s)
}

// stay is the client's life beside a running container: it returns with the container's exit code.
func (r *running) stay(ctx context.Context, e *engine.Engine, s *engine.Session) error {
	defer s.Client.Close()
	if err := r.writePid(s); err != nil {
		r.restore()
		r.report(err)
	}
	if r.detach {
		if r.timing {
			r.phases(r.err, s.Spans)
		}
		return r.print(s.Container.ID + "\n")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r.passOn(ctx, s.Client, cancel)
	go r.watchReader(ctx, s.Client)
	if r.tty {
		r.followSize(ctx, func(w, h uint16) { _ = s.Client.Resize(ctx, w, h) })
	}
	x, err := r.wait(ctx, e, s)
	r.restore()
	if err != nil && r.left.Load() {
		r.drain(s.Client)
		s.Client.Renounce()
		_ = s.Client.Close()
		e.Detached(s.Container.ID)
		return r.print("read escape sequence\n")
	}
	if err != nil {
		if n := r.gaveUp(); n != 0 {
			why := "the container does not react to the signals"
			switch {
			case n == syscall.SIGPIPE && r.lost(s.Client):
				why = "the container's output cannot be written where it was sent to (is the disk full?)"
			case n == syscall.SIGPIPE:
				why = "nobody reads the container's output any more"
			case !r.sigProxy:
				why = "signals are not sent on to the container"
			}
			return &exit{128 + int(n), &errdefs.Error{
				Op: "wait for", What: r.name, Kind: errdefs.Canceled,
				Why: why + "; it goes on running in the background", Fix: "onggi kill " + shortID(s.Container.ID),
			}}
		}
		return err
	}
	if r.timing {
		r.phases(r.err, s.Spans)
	}
	if x.Error != "" {
		r.report(&errdefs.Error{Op: "run", What: r.name, Why: x.Error})
	}
	if r.lost(s.Client) {
		err := &errdefs.Error{
			Op: "write", What: "the output of " + r.name, Kind: errdefs.NoSpace,
			Why: "some of it could not be written where it was sent to", Fix: "look at the space that is left there",
		}
		if x.Code == 0 {
			return err // success with half of the output is none
		}
		r.report(err)
	}
	if x.Code != 0 {
		return &exit{code: x.Code}
	}
	return nil
}

// startOptions hand over the streams that are to be attached.
func (r *running) startOptions() engine.StartOptions {
	var o engine.StartOptions
	o.Timing = r.timing
	if r.detach {
		return o
	}
	if r.streams.in {
		o.Stdin = r.in
		if r.tty && r.raised() {
			if in, err := watchKeys(r.in, r.keys, r.leave); err == nil {
				o.Stdin = in
			}
		}
	}
	if r.streams.out {
		o.Stdout = r.out
	}
	if r.streams.err && !r.tty { // a terminal has one output
		o.Stderr = r.err
	}
	if r.tty {
		o.Width, o.Height = r.size()
	}
	return o
}

func (r *running) writePid(s *engine.Session) error {
	if r.pidfile == "" {
		return nil
	}
	err := os.WriteFile(r.pidfile, fmt.Appendf(nil, "%d\n", s.Container.Pid), 0o644)
	if err != nil {
		return &errdefs.Error{
			Op: "write", What: "--pidfile=" + r.pidfile, Kind: errdefs.KindOf(err), Err: err,
			Why: "the container runs nevertheless", Fix: "its process id: onggi inspect --format '{{.State.Pid}}' " + shortID(s.Container.ID),
		}
	}
	return nil
}

// toRaw makes the user's terminal raw when its keys go to the container.
func (r *running) toRaw() error {
	if !r.tty || !r.streams.in {
		return nil
	}
	t, err := r.raw()
	r.mu.Lock()
	r.terminal = t
	r.mu.Unlock()
	return err
}

func (r *running) restore() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.terminal.restore()
}

// proxied are the signals that are sent on: all that end or steer a program. Not SIGCHLD, SIGPIPE, SIGURG and SIGWINCH,
// which are about this process, and not the terminal's stop signals, which stop this client and not the container.
func proxied() []syscall.Signal {
	list := []syscall.Signal{
		syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGABRT, syscall.SIGUSR1, syscall.SIGUSR2,
		syscall.SIGALRM, syscall.SIGTERM, syscall.SIGVTALRM, syscall.SIGIO, syscall.SIGPWR,
	}
	for n := syscall.Signal(34); n <= 64; n++ { // the real-time signals that the C library leaves to programs, signal(7)
		list = append(list, n)
	}
	return list
}

// ending are the signals that ask a client to end.
func ending() []syscall.Signal {
	return []syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT}
}

// listen begins to catch signals. Until the container runs they cancel what has been begun, and are kept for it in case
// it was too late to cancel. A signal that the parent had this process ignore (nohup, a background job) stays ignored.
func (r *running) listen(cancel context.CancelFunc) (stop func(), err error) {
	want := ending()
	if r.sigProxy {
		want = proxied()
	}
	var list []syscall.Signal
	for _, s := range want {
		if !signal.Ignored(s) {
			list = append(list, s)
		}
	}
	c, err := sys.Catch(false, list...)
	if err != nil {
		return nil, &errdefs.Error{Op: "catch", What: "signals", Kind: errdefs.KindOf(err), Err: err}
	}
	go func() {
		var b [64]byte
		for {
			n, err := c.Read(b[:])
			if err != nil {
				return
			}
			for _, s := range b[:n] {
				r.signal(syscall.Signal(s), cancel)
			}
		}
	}()
	return c.Release, nil
}

// signal is what one signal does.
func (r *running) signal(n syscall.Signal, cancel context.CancelFunc) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.client == nil {
		r.early = append(r.early, n)
		if !isEnding(n) || r.later && r.sigProxy && ends(r.early) < 2 {
			return // for the container. One that runs already is not spared by not attaching to it.
		}
		r.caught = n
		cancel()
		return
	}
	r.pass(n)
}

// ends counts the signals that ask to end.
func ends(list []syscall.Signal) (n int) {
	for _, s := range list {
		if isEnding(s) {
			n++
		}
	}
	return n
}

func isEnding(n syscall.Signal) bool {
	return n == syscall.SIGINT || n == syscall.SIGTERM || n == syscall.SIGHUP || n == syscall.SIGQUIT
}

// pass sends a signal on, or ends this client: when it is not to be sent on, and at the third request to end, because
// the container may ignore them (process 1 does so by default). Preconditions: r.mu is held, r.client is set.
func (r *running) pass(n syscall.Signal) {
	if n == syscall.SIGINT || n == syscall.SIGTERM {
		r.asked++
	}
	if !r.sigProxy || r.asked >= 3 {
		r.caught = n
		r.giveUp()
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := r.client.SignalBy(ctx, int(n), r.engine.Sender("passed on by onggi run")); err != nil {
		r.debugf("signal %d: %v", n, err)
	}
}

// passOn makes signals go to the container from now on, those that came too early first.
func (r *running) passOn(_ context.Context, c *monitor.Client, giveUp context.CancelFunc) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.client, r.giveUp, r.caught = c, giveUp, 0
	if r.left.Load() {
		giveUp()
	}
	for _, n := range r.early {
		r.pass(n)
	}
	r.early = nil
}

// watchReader ends the client when its output cannot be written any more, as SIGPIPE ends a program that writes: `run
// ... | head` returns. The bytes do not pass through this process, so it is the monitor that notices. A container
// that ends by itself is waited for a moment: its exit code says more.
func (r *running) watchReader(ctx context.Context, c *monitor.Client) {
	select {
	case <-c.Broken():
	case <-ctx.Done():
		return
	}
	select {
	case <-time.After(300 * time.Millisecond):
	case <-ctx.Done():
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.caught = syscall.SIGPIPE
	r.giveUp()
}

// lost reports whether output was lost for another reason than that its reader had enough: a full disk, an I/O error.
func (r *running) lost(c *monitor.Client) bool {
	select {
	case <-c.Broken():
	default:
		return false
	}
	for _, f := range []*os.File{r.out, r.err} {
		fds := []unix.PollFd{{Fd: int32(f.Fd())}} // no events: errors are always reported
		if n, err := unix.Poll(fds, 0); err == nil && n > 0 && fds[0].Revents&unix.POLLERR != 0 {
			return false
		}
	}
	return true
}

// gaveUp returns the signal that ended the client before the container, or 0.
func (r *running) gaveUp() syscall.Signal {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.caught
}

// phases prints how long each phase took, with a bar for its place in time.
func (a *app) phases(w *os.File, spans []undo.Span) {
	_, _ = w.WriteString(phaseTable(spans, a.paint(w)))
}

// writable refuses the name of a file that could not be written later, when the container runs already.
func writable(flag, path string) error {
	if path == "" {
		return nil
	}
	if fi, err := os.Stat(path); err == nil && fi.IsDir() {
		return reading(flag, path, &errdefs.Error{Why: "it is a directory", Fix: "name a file in it"})
	}
	if fi, err := os.Stat(filepath.Dir(path)); err != nil || !fi.IsDir() {
		return reading(flag, path, &errdefs.Error{Why: "there is no directory " + filepath.Dir(path), Fix: "name a file in a directory that exists and can be written"})
	}
	return nil
}
