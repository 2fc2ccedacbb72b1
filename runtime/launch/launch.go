package launch

import (
	"context"
	"os"

	"github.com/onggi/onggi/mount"
	"github.com/onggi/onggi/runtime/monitor"
	"github.com/onggi/onggi/undo"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
)

// Options say what to create.
type Options struct {
	Root   string // directory of all states; made 0700 when it is missing
	ID     string
	Bundle string        // absolute path of the directory that holds config.json
	Spec   *runspec.Spec // nil: read from Bundle
	// Rootfs, when not empty, is mounted as the container's root inside its own mount namespace, instead of root.path.
	Rootfs []mount.Mount

	// Stdio are the container's standard streams; nil is /dev/null. With a terminal they are left unused, unless
	// Replica says that they are the replica side of a terminal that the caller has made.
	Stdio   [3]*os.File
	Replica bool
	// ConsoleSocket receives the terminal's master side (SCM_RIGHTS), as runc's --console-socket. When it is nil and
	// the spec wants a terminal, the master is received here: Container.Console.
	ConsoleSocket *os.File
	Preserve      []*os.File // become descriptors 3, 4, ... of the container

	Init         bool // a reaping PID 1 in front of the command
	NoPivot      bool
	NoNewKeyring bool
	// Detached: the first process outlives the caller, and another process starts it (Load, Start).
	Detached bool
	// Ungated: the command is executed as soon as it is ready; Start only waits for that.
	Ungated bool
	// Timing collects the phases inside the container's process too; they cost a few microseconds.
	Timing bool
	// Warn is told what had to be clamped or left out; may be nil.
	Warn func(string)
}

// Container is a created container.
type Container struct{ container }

// Create makes the container up to the point where its command would be executed. On failure nothing is left. Errors
// name the operation and the path or value; a command that does not exist is reported by Start.
func Create(ctx context.Context, o Options) (*Container, error) { panic("contract") }

// Load finds a container that this or another process has created. NotFound when there is none.
func Load(root, id string) (*Container, error) { panic("contract") }

// Pid is the first process, in the caller's pid namespace.
func (c *Container) Pid() int { panic("contract") }

// Console is the terminal's master side when Create received it; nil otherwise. The caller closes it.
func (c *Container) Console() *os.File { panic("contract") }

// Start lets the first process execute the command and returns when it does. Errors: CommandNotFound, NotExecutable.
func (c *Container) Start() error { panic("contract") }

// Wait returns how the first process ended. Only for the process that created it.
func (c *Container) Wait() (monitor.Exit, error) { panic("contract") }

// Signal sends a signal to the first process.
func (c *Container) Signal(sig int) error { panic("contract") }

// Delete removes control group and state of a stopped container. Conflict when it runs.
func (c *Container) Delete() error { panic("contract") }

// OOMKilled reports whether the kernel has killed something in the container's control group for memory.
func (c *Container) OOMKilled() bool { panic("contract") }

// Spans are the phases so far.
func (c *Container) Spans() []undo.Span { panic("contract") }

type container struct{}

var _ monitor.Process = (*Container)(nil)
