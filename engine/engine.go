package engine

import (
	"context"
	"io"
	"os"
	"time"

	"github.com/onggi/onggi/image"
	"github.com/onggi/onggi/network"
	"github.com/onggi/onggi/runtime/monitor"
	"github.com/onggi/onggi/spec"
	"github.com/onggi/onggi/undo"
	"github.com/onggi/onggi/volume"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Options of Open.
type Options struct {
	Root    string   // durable state; default /var/lib/onggi
	RunRoot string   // volatile state; default /run/onggi
	Runtime string   // path of onggi-runtime; default beside this executable, then PATH
	Self    []string // command line that runs `onggi` on the same roots, for the monitor's Cleanup
}

// Engine is a store and its containers. Open is cheap: it opens and makes nothing that the command does not use.
type Engine struct{}

// Open returns an engine on the given roots.
func Open(o Options) (*Engine, error) { panic("contract") }

// Images returns the image store.
func (e *Engine) Images() (*image.Store, error) { panic("contract") }

// Volumes returns the volume store.
func (e *Engine) Volumes() (*volume.Store, error) { panic("contract") }

// Config is what Create is asked for.
type Config struct {
	spec.Config
	Name       string            `json:"name"`
	Image      string            `json:"image"` // as the user typed it
	Platform   *ocispec.Platform `json:"platform,omitempty"`
	AutoRemove bool              `json:"autoRemove,omitempty"`
	Runtime    []string          `json:"runtime,omitempty"` // foreign OCI runtime
	Log        monitor.LogConfig `json:"log"`
	Pull       string            `json:"pull,omitempty"` // "missing" (default), "always", "never"
}

// Status is a container's state as docker names them.
type Status string

// The states.
const (
	Creating Status = "creating"
	Created  Status = "created"
	Running  Status = "running"
	Exited   Status = "exited"
	Removing Status = "removing"
	Dead     Status = "dead" // its monitor was killed
)

// Container is a container's record with its effective status.
type Container struct {
	ID        string              `json:"id"` // 64 hex digits
	Config    Config              `json:"config"`
	ImageID   digest.Digest       `json:"imageID"`
	Created   time.Time           `json:"created"`
	Status    Status              `json:"status"`
	Pid       int                 `json:"pid,omitempty"`
	StartedAt time.Time           `json:"startedAt,omitzero"`
	Exit      *monitor.Exit       `json:"exit,omitempty"`
	Network   *network.Attachment `json:"network,omitempty"`
	// Command is the effective command line (entrypoint and arguments).
	Command  []string          `json:"command,omitempty"`
	Warnings []string          `json:"warnings,omitempty"`
	Volumes  map[string]string `json:"volumes,omitempty"` // volume name by container path
	LogPath  string            `json:"logPath,omitempty"`
}

// PullFunc is asked to bring a missing image in; the command line gives one that draws progress.
type PullFunc func(ctx context.Context, name string) (*image.Image, error)

// Create makes a container that is ready to start.
func (e *Engine) Create(ctx context.Context, c Config, pull PullFunc) (*Container, error) {
	panic("contract")
}

// StartOptions say which of the caller's streams the container is attached to from its first byte.
type StartOptions struct {
	Stdin, Stdout, Stderr *os.File
	Width, Height         uint16
	// Timing collects the phases.
	Timing bool
}

// Session is a started container, seen by the process that started it.
type Session struct {
	Container *Container
	Client    *monitor.Client
	Spans     []undo.Span // record ... process, and the runtime's own phases
}

// Start starts a created or exited container. The error's kind is CommandNotFound (127) or NotExecutable (126) when the
// user's command could not be executed; the container is then in state created, as docker's.
func (e *Engine) Start(ctx context.Context, idOrName string, o StartOptions) (*Session, error) {
	panic("contract")
}

// Run is Create and Start; with AutoRemove a failed start removes the container.
func (e *Engine) Run(ctx context.Context, c Config, pull PullFunc, o StartOptions) (*Session, error) {
	panic("contract")
}

// Finish waits for the exit and does what follows it: network released, record updated, container removed if it is
// AutoRemove. It returns the exit.
func (e *Engine) Finish(ctx context.Context, s *Session) (*monitor.Exit, error) { panic("contract") }

// Cleanup does what follows an exit; the monitor calls it (`onggi container-cleanup ID`) when no client does. It is
// idempotent.
func (e *Engine) Cleanup(ctx context.Context, id string) error { panic("contract") }

// Get finds a container by name, id, or unambiguous id prefix. NotFound; Conflict for an ambiguous prefix.
func (e *Engine) Get(idOrName string) (*Container, error) { panic("contract") }

// List returns the containers, newest first; without all only running ones.
func (e *Engine) List(all bool) ([]*Container, error) { panic("contract") }

// Wait waits until the container is not running and returns its exit.
func (e *Engine) Wait(ctx context.Context, idOrName string) (*monitor.Exit, error) { panic("contract") }

// Stop sends the stop signal, waits for the grace time (timeout overrides it when not nil), then kills.
func (e *Engine) Stop(ctx context.Context, idOrName string, timeout *time.Duration) error {
	panic("contract")
}

// Kill sends a signal. Conflict when it is not running.
func (e *Engine) Kill(ctx context.Context, idOrName string, sig int) error { panic("contract") }

// Remove removes a container: Conflict when it runs and force is not set. volumes: also its anonymous volumes.
func (e *Engine) Remove(ctx context.Context, idOrName string, force, volumes bool) error {
	panic("contract")
}

// ExecConfig is a command to run in a running container.
type ExecConfig struct {
	Args       []string
	Env        []string
	User       string
	Workdir    string
	Tty        bool
	Privileged bool
	Detach     bool
}

// ExecCommand returns the command line (onggi-runtime exec ...) that runs the command in the container, with the file
// it reads already written; the caller executes it with its own stdio, replacing itself where it has nothing left to
// do. Conflict when the container does not run.
func (e *Engine) ExecCommand(ctx context.Context, idOrName string, c ExecConfig) (argv []string, err error) {
	panic("contract")
}

// LogOptions of Logs.
type LogOptions struct {
	Follow, Timestamps bool
	Tail               int // -1 all
	Since, Until       time.Time
}

// Logs writes the container's log. It is complete right after Wait.
func (e *Engine) Logs(ctx context.Context, idOrName string, o LogOptions, stdout, stderr io.Writer) error {
	panic("contract")
}

// Attach returns a client of the container's monitor.
func (e *Engine) Client(ctx context.Context, idOrName string) (*monitor.Client, error) {
	panic("contract")
}

// RemoveImage is image.Store.Remove with the containers as users.
func (e *Engine) RemoveImage(ctx context.Context, nameOrID string, force bool) ([]image.Removed, error) {
	panic("contract")
}

// Sweep finishes what killed commands left: containers in state creating or removing, ended ones that still hold an
// address, dead monitors, unowned files. Every command that changes something runs its cheap part; `onggi info` and the
// crash walk run all of it.
func (e *Engine) Sweep(ctx context.Context) error { panic("contract") }

// Info is `onggi info`.
type Info struct {
	Root, RunRoot               string
	Containers, Running, Images int
	CgroupVersion               string // "1", "2", "hybrid"
	Kernel                      string
	Runtime                     string
	CPUs                        int
	Memory                      int64
	Overlay, Seccomp, NFTables  bool
	Warnings                    []string
}

// Info describes host and store.
func (e *Engine) Info(ctx context.Context) (*Info, error) { panic("contract") }
