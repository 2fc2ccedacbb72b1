// Command onggi-runtime is the OCI runtime of Onggi, a drop-in for runc: engines give it a bundle and it makes, starts,
// signals and deletes containers. It is also every container's monitor. It is thin on purpose: it runs once for each step of each
// container's life, so what its packages do before main counts.
package main

import (
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/runtime/launch"
)

// more are commands that other files add (the monitor). Their arguments follow the command's name.
var more = map[string]func(args []string) int{}

// version is set by the linker.
var version = "0.1.0-dev"

// globals are the flags before the command.
type globals struct {
	root      string
	log       string
	logFormat string
	criu      string
	debug     bool
	systemd   bool
}

// userManager is the runtime directory of the user whose service manager makes the control groups; empty for the
// system's.
func (g *globals) userManager() string {
	if !g.systemd || !launch.Rootless() {
		return ""
	}
	if d := os.Getenv("XDG_RUNTIME_DIR"); d != "" {
		return d
	}
	return "/run/user/" + strconv.Itoa(os.Geteuid())
}

func main() {
	debug.SetGCPercent(-1) // a command lives for milliseconds; long-lived ones turn it on again
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	g := globals{root: defaultRoot(), logFormat: "text", criu: "criu"}
	f := flags{}
	var systemd, showVersion bool
	var rootless string
	f.str(&g.root, "DIR", "where the states of containers are kept; a file system that a reboot empties (default "+g.root+")", "root")
	f.str(&g.log, "FILE", "append errors, warnings and with --debug all phases to this file, as records that engines read", "log")
	f.str(&g.logFormat, "FORMAT", "of the records: text (default) or json", "log-format")
	f.bool(&g.debug, "record all phases, and print warnings also where there is a --log", "debug")
	f.bool(&systemd, "have systemd make the control groups; linux.cgroupsPath is then SLICE:PREFIX:NAME", "systemd-cgroup")
	f.str(&g.criu, "PATH", "the criu program for checkpoint and restore; a name is looked for in /usr/local/sbin, /usr/sbin and so on (default criu)", "criu")
	f.str(&rootless, "VALUE", "accepted for the users of runc: auto, true or false. What may be done is found out", "rootless")
	f.bool(&showVersion, "print the version", "version", "v")
	rest, err := f.parse(args, false)
	if err != nil {
		return g.fail("", err)
	}
	switch {
	case showVersion:
		return printVersion()
	case len(rest) == 0:
		printHelp(&f)
		return 0
	case rootless != "" && rootless != "auto" && rootless != "true" && rootless != "false":
		return g.fail("", f.bad("--rootless", "its values are auto, true and false"))
	case g.logFormat != "text" && g.logFormat != "json":
		return g.fail("", f.bad("--log-format", "its values are text and json"))
	}
	g.systemd = systemd
	name, rest := rest[0], rest[1:]
	if c, ok := more[name]; ok {
		return c(rest)
	}
	if name == "help" || name == "h" {
		if len(rest) == 0 {
			printHelp(&f)
			return 0
		}
		name, rest = rest[0], []string{"--help"}
	}
	for i := range commands {
		if c := &commands[i]; c.name == name {
			code, err := c.run(&g, rest)
			if err != nil {
				if code == 0 {
					code = 1
				}
				if g.fail(name, err) == 0 {
					return 0
				}
			}
			return code
		}
	}
	return g.fail("", f.bad(strconv.Quote(name), "there is no such command"))
}

// usageOf is the error of a wrong use of a command, or of the program when command is "".
func usageOf(command, what, why string) error {
	see := "onggi-runtime --help"
	if command != "" {
		see = "onggi-runtime " + command + " --help"
	}
	if what == "" {
		what = command
	}
	return &errdefs.Error{Op: "use", What: what, Kind: errdefs.InvalidArgument, Why: why, Fix: "see: " + see}
}

func defaultRoot() string {
	// Root of a user namespace is not the host's, unless the user has become root there by name (sudo -u): runc's rule.
	if launch.Rootless() && (os.Geteuid() != 0 || os.Getenv("USER") != "root") {
		if d := os.Getenv("XDG_RUNTIME_DIR"); d != "" {
			return d + "/onggi-runtime"
		}
	}
	return "/run/onggi-runtime"
}

// fail tells the user and the engine's log file, and returns the exit code of a failed command.
func (g *globals) fail(command string, err error) int {
	if _, ok := err.(helpAsked); ok {
		return 0
	}
	msg := err.Error()
	text := "onggi-runtime: "
	if command != "" {
		text += command + ": "
	}
	text += msg + "\n"
	if fix := errdefs.FixOf(err); fix != "" {
		text += "  fix: " + fix + "\n"
	}
	_, _ = os.Stderr.WriteString(text)
	g.write("error", msg)
	return 1
}

// write appends to --log, in the form that engines read (logrus).
func (g *globals) write(level, msg string) {
	if g.log == "" {
		return
	}
	f, err := os.OpenFile(g.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return
	}
	now := time.Now().Format(time.RFC3339)
	if g.logFormat == "json" {
		_, _ = f.WriteString(`{"level":` + quote(level) + `,"msg":` + quote(msg) + `,"time":` + quote(now) + "}\n")
	} else {
		_, _ = f.WriteString("time=" + quote(now) + " level=" + level + " msg=" + quote(msg) + "\n")
	}
	_ = f.Close()
}

// warn tells the log, or without one or with --debug the user.
func (g *globals) warn(msg string) {
	if g.debug || g.log == "" {
		_, _ = os.Stderr.WriteString("onggi-runtime: warning: " + msg + "\n")
	}
	g.write("warning", msg)
}

// record tells the log, with --debug, what was done.
func (g *globals) record(msg string) {
	if g.debug {
		g.write("debug", msg)
	}
}

// quote writes a JSON string.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r < 0x20:
			const hex = "0123456789abcdef"
			b.WriteString(`\u00`)
			b.WriteByte(hex[r>>4])
			b.WriteByte(hex[r&15])
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

func printVersion() int {
	_, _ = os.Stdout.WriteString("onggi-runtime version " + version + "\nspec: " + specVersion + "\n")
	return 0
}
