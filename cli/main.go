package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/onggi/onggi/engine"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/image"
	"github.com/onggi/onggi/userns"
	"golang.org/x/term"
)

// Options of Main.
type Options struct {
	Args                  []string // without the program's name
	Stdin, Stdout, Stderr *os.File
	// Embedded holds what was built into this binary; "hello.tar" is the image onggi/hello as an OCI archive. It may
	// lack the file: the binary was then built without it.
	Embedded fs.FS
}

// Main runs one command and returns the process's exit code.
func Main(o Options) int {
	a := &app{in: o.Stdin, out: o.Stdout, err: o.Stderr, embedded: o.Embedded, born: time.Now()}
	return a.main(o.Args)
}

// app is one invocation: its streams, its global flags, and the engine once a command has asked for it.
type app struct {
	in, out, err *os.File
	embedded     fs.FS
	born         time.Time
	args         []string // as they were given

	root, runRoot string
	debug         bool
	offline       bool // no registry is to be asked
	keepBlobs     string

	engine *engine.Engine
	caught syscall.Signal // the signal that ended a command's context, 0 if none
}

// exit is an error that carries the process's exit code. A nil err is silent: the code says everything.
type exit struct {
	code int
	err  error
}

func (e *exit) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.code)
	}
	return e.err.Error()
}

func (e *exit) Unwrap() error { return e.err }

// exitWith gives err the exit code of its kind: 125, 126, 127. It is for run and create.
func exitWith(err error) error {
	if err == nil {
		return nil
	}
	var x *exit
	if errors.As(err, &x) {
		return err
	}
	return &exit{errdefs.KindOf(err).ExitCode(), err}
}

// exitOfCommand is exitWith for start and exec, whose own failures are 1 as docker's users know them.
func exitOfCommand(err error) error {
	if errdefs.Is(err, errdefs.CommandNotFound) || errdefs.Is(err, errdefs.NotExecutable) {
		return exitWith(err)
	}
	return err
}

func (a *app) main(args []string) int {
	a.args = args
	root := a.tree(args)
	root.SetArgs(args)
	err := root.ExecuteContext(context.Background())
	if err == nil {
		return 0
	}
	code := 1
	var x *exit
	if errors.As(err, &x) {
		if code, err = x.code, x.err; err == nil {
			return code
		}
	}
	if a.caught != 0 && errdefs.Is(err, errdefs.Canceled) {
		code = 128 + int(a.caught)
		var several interface{ Unwrap() []error } // taking back has failed, too
		if errors.Is(err, context.Canceled) && !errors.As(err, &several) {
			a.debugf("%v", err)
			err = &errdefs.Error{Kind: errdefs.Canceled, Why: "interrupted; what had been begun was taken back"}
		}
	}
	a.report(err)
	return code
}

// report prints an error and its remedy. It is the only place that prints Fix.
func (a *app) report(err error) {
	p := a.paint(a.err)
	text := strings.ReplaceAll(strings.TrimRight(err.Error(), "\n"), "\n", "\n       ")
	fmt.Fprintf(a.err, "%s %s\n", p.red("onggi:"), text)
	if fix := errdefs.FixOf(err); fix != "" {
		fmt.Fprintf(a.err, "  %s %s\n", p.green("fix:"), strings.ReplaceAll(fix, "\n", "\n       "))
	}
	if a.debug {
		a.debugf("kind: %s", errdefs.KindOf(err))
		depth := 0
		for e := err; e != nil; e = errors.Unwrap(e) {
			a.debugf("cause %d: %T: %s", depth, e, strings.ReplaceAll(e.Error(), "\n", "; "))
			depth++
		}
		a.debugf("failed after %s", time.Since(a.born).Round(10*time.Microsecond))
	}
}

// warn prints what was done otherwise than asked, such as a limit that was clamped.
func (a *app) warn(text string) {
	fmt.Fprintf(a.err, "%s %s\n", a.paint(a.err).yellow("onggi: warning:"), text)
}

// debugf prints a line when --debug was given.
func (a *app) debugf(format string, args ...any) {
	if a.debug {
		fmt.Fprintf(a.err, "onggi: debug: "+format+"\n", args...)
	}
}

// open opens the engine on the roots that flags and environment name.
func (a *app) open() (*engine.Engine, error) {
	if a.engine != nil {
		return a.engine, nil
	}
	if err := a.enter(); err != nil {
		return nil, err
	}
	if a.keepBlobs != "" {
		if err := image.Keep(a.keepBlobs).Check(); err != nil {
			return nil, reading("--keep-blobs", a.keepBlobs, err)
		}
	}
	root, err := rootDir("--root", a.root, "/var/lib/onggi")
	if err != nil {
		return nil, err
	}
	runRoot, err := rootDir("--run-root", a.runRoot, "/run/onggi")
	if err != nil {
		return nil, err
	}
	// The link, not os.Args[0]: the monitor runs it later from another working directory, and PATH is not to be trusted.
	self, err := os.Executable()
	if err != nil {
		return nil, &errdefs.Error{
			Op: "find", What: "this program's own file", Kind: errdefs.Unsupported,
			Why: "/proc is not mounted", Fix: "mount -t proc proc /proc", Err: err,
		}
	}
	a.debugf("root %s, run root %s, program %s", root, runRoot, self)
	behind := os.Getenv("SUDO_USER")
	if userns.Rootless() {
		behind = os.Getenv("USER") // who is root here
	}
	a.engine, err = engine.Open(engine.Options{
		Root: root, RunRoot: runRoot, For: behind,
		Self: []string{self, "--root", root, "--run-root", runRoot}, KeepBlobs: a.keepBlobs,
	})
	return a.engine, err
}

// rootDir makes a root absolute, because the monitor uses it from another working directory.
func rootDir(flag, value, fallback string) (string, error) {
	if value == "" {
		value = fallback
	}
	if strings.ContainsRune(value, 0) || strings.ContainsAny(value, "\n,:") {
		// overlayfs separates its directories by colons and options by commas.
		return "", badFlag(flag, value, "the directory's name contains a comma, a colon or a line break, which separate mount options",
			"choose a directory without them")
	}
	abs, err := filepath.Abs(value)
	if err != nil {
		return "", badFlag(flag, value, "the working directory does not exist any more", "cd to a directory that exists, or give an absolute path")
	}
	return abs, nil
}

// context returns a context that ends with the first SIGINT, SIGTERM or SIGHUP, so that whatever is half done is taken
// back; a second one ends the process at once, in case the first is not heard.
func (a *app) context(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(parent)
	c := make(chan os.Signal, 2)
	signal.Notify(c, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		select {
		case s := <-c:
			a.caught = s.(syscall.Signal)
			cancel()
			signal.Stop(c)
		case <-ctx.Done():
			signal.Stop(c)
		}
	}()
	return ctx, cancel
}

// print writes to stdout; what stdout refuses (a full disk) is an error, not silence.
func (a *app) print(s string) error {
	if _, err := io.WriteString(a.out, s); err != nil {
		return &errdefs.Error{Op: "write", What: "the result", Kind: errdefs.KindOf(err), Why: "standard output does not take it", Err: err}
	}
	return nil
}

// painter colours text when a person reads it.
type painter bool

// paint decides for one stream: colours only on a terminal, and never when NO_COLOR is set (no-color.org) or the
// terminal cannot.
func (a *app) paint(f *os.File) painter {
	return painter(os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && term.IsTerminal(int(f.Fd())))
}

func (p painter) wrap(code, s string) string {
	if !p || s == "" {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func (p painter) red(s string) string    { return p.wrap("1;31", s) }
func (p painter) green(s string) string  { return p.wrap("32", s) }
func (p painter) yellow(s string) string { return p.wrap("33", s) }
func (p painter) cyan(s string) string   { return p.wrap("36", s) }
func (p painter) bold(s string) string   { return p.wrap("1", s) }
func (p painter) dim(s string) string    { return p.wrap("2", s) }
