// Command onggi-runtime is the OCI runtime of Onggi, a drop-in for runc: engines give it a bundle and it makes, starts,
// signals and deletes containers. It is also every container's monitor. It is thin on purpose: it runs once for each step of each
// container's life, so what its packages do before main counts.
package main

import (
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/onggi/onggi/errdefs"
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
	debug     bool
}

func main() {
	debug.SetGCPercent(-1) // a command lives for milliseconds; long-lived ones turn it on again
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	g := globals{root: defaultRoot(), logFormat: "text"}
	f := flags{}
	f.str(&g.root, "root")
	f.str(&g.log, "log")
	f.str(&g.logFormat, "log-format")
	f.bool(&g.debug, "debug")
	var systemd, showVersion, help bool
	var rootless string
	f.bool(&systemd, "systemd-cgroup")
	f.str(&rootless, "rootless")
	f.bool(&showVersion, "version", "v")
	f.bool(&help, "help", "h")
	rest, err := f.parse(args, false)
	if err != nil {
		return g.fail("", err)
	}
	switch {
	case showVersion:
		return printVersion()
	case help || len(rest) == 0:
		_, _ = os.Stdout.WriteString(usage)
		return 0
	case systemd:
		return g.fail("", &errdefs.Error{
			Op: "use", What: "--systemd-cgroup", Kind: errdefs.Unsupported,
			Why: "the systemd driver is not supported yet", Fix: "set the engine's cgroup manager to cgroupfs",
		})
	case rootless != "" && rootless != "auto" && rootless != "true" && rootless != "false":
		return g.fail("", usageError("--rootless", "its values are auto, true and false"))
	case g.logFormat != "text" && g.logFormat != "json":
		return g.fail("", usageError("--log-format", "its values are text and json"))
	}
	name, rest := rest[0], rest[1:]
	if c, ok := more[name]; ok {
		return c(rest)
	}
	for i := range commands {
		if c := &commands[i]; c.name == name {
			code, err := c.run(&g, rest)
			if err != nil {
				if code == 0 {
					code = 1
				}
				g.fail(name, err)
			}
			return code
		}
	}
	return g.fail("", usageError(name, "there is no such command"))
}

func usageError(what, why string) error {
	return &errdefs.Error{Op: "use", What: what, Kind: errdefs.InvalidArgument, Why: why, Fix: "see: onggi-runtime --help"}
}

func defaultRoot() string {
	if os.Geteuid() != 0 {
		if d := os.Getenv("XDG_RUNTIME_DIR"); d != "" {
			return d + "/onggi-runtime"
		}
	}
	return "/run/onggi-runtime"
}

// fail tells the user and the engine's log file, and returns the exit code of a failed command.
func (g *globals) fail(command string, err error) int {
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

// warn tells the log, and with --debug the user.
func (g *globals) warn(msg string) {
	if g.debug {
		_, _ = os.Stderr.WriteString("onggi-runtime: warning: " + msg + "\n")
	}
	g.write("warning", msg)
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

const usage = `onggi-runtime runs containers from OCI bundles.

  onggi-runtime [global flags] COMMAND [flags] [arguments]

Commands
  spec      write a default config.json
  create    make a container, ready to start          create [flags] ID
  start     execute the command of a created one      start ID
  run       create, start, wait and delete            run [flags] ID
  exec      run another command inside                exec [flags] ID COMMAND [ARG...]
  state     print a container's state as JSON         state ID
  kill      send a signal (default SIGTERM)           kill [--all] ID [SIGNAL]
  delete    remove what is left of a container        delete [--force] ID
  list      list containers                           list [--format table|json] [--quiet]
  ps        list a container's processes              ps [--format table|json] ID [ps options]
  features  print what this runtime supports as JSON
  plan      print the operations that would make a container from a bundle

Global flags
  --root DIR           where states are kept (default ` + "/run/onggi-runtime" + `)
  --log FILE           append errors and warnings to this file
  --log-format FORMAT  text or json
  --debug              print warnings
  --rootless VALUE     accepted for runc's users: auto, true or false
  --version, --help
`
