package monitor

import (
	"context"
	"os"
	"time"

	"github.com/onggi/onggi/mount"
	"github.com/onggi/onggi/undo"
)

// Config is what the engine hands over, written as RunDir/monitor.json (0600) before Spawn.
type Config struct {
	ID       string `json:"id"`
	Bundle   string `json:"bundle"`   // holds config.json; the root file system is mounted at Rootfs
	RunDir   string `json:"runDir"`   // volatile: lock, socket, pid
	StateDir string `json:"stateDir"` // durable: exit.json, log
	// Rootfs is mounted as the container's root. Our own runtime makes these mounts inside the container's mount
	// namespace; for a foreign runtime the monitor makes them in a private one, at root.path of config.json.
	Rootfs []mount.Mount `json:"rootfs"`
	// Runtime is the OCI runtime's command line ("runc", or with arguments); empty means our own, in process.
	Runtime     []string `json:"runtime,omitempty"`
	RuntimeRoot string   `json:"runtimeRoot"` // --root of the runtime

	Terminal  bool   `json:"terminal,omitempty"`
	Width     uint16 `json:"width,omitempty"` // of the terminal, characters
	Height    uint16 `json:"height,omitempty"`
	Init      bool   `json:"init,omitempty"`      // a reaping PID 1 in front of the command (our own runtime only)
	OpenStdin bool   `json:"openStdin,omitempty"` // keep stdin open for later attaches
	StdinOnce bool   `json:"stdinOnce,omitempty"` // close stdin when the first attached client's ends

	Log LogConfig `json:"log"`
	// Fds names the inherited descriptors that config.json refers to as /proc/self/fd/N ("netns"): the monitor keeps
	// them for its whole life, so that the namespace survives restarts of the container.
	Fds map[string]int `json:"fds,omitempty"`
	// Cleanup is run (argv) after the exit when no client has promised to clean up, also after a failed start.
	Cleanup []string `json:"cleanup,omitempty"`
	// Sync: fsync the exit record (containers that outlive a reboot); off for --rm.
	Sync bool `json:"sync,omitempty"`
}

// LogConfig is the log's driver and bounds.
type LogConfig struct {
	Driver   string `json:"driver"`   // "local" or "none"
	Path     string `json:"path"`     // of the newest file
	MaxSize  int64  `json:"maxSize"`  // bytes per file; default 10 MiB
	MaxFiles int    `json:"maxFiles"` // default 3
}

// Exit is how a container ended. It is the exit record, StateDir/exit.json.
type Exit struct {
	Code       int       `json:"code"`             // 128+signal when killed
	Signal     int       `json:"signal,omitempty"` // 0 when it exited by itself
	OOMKilled  bool      `json:"oomKilled,omitempty"`
	StartedAt  time.Time `json:"startedAt"`
	FinishedAt time.Time `json:"finishedAt"`
	Error      string    `json:"error,omitempty"` // why it never started
}

// Stdio are the container's ends of its standard streams. With a terminal all three are the replica side.
type Stdio struct{ In, Out, Err *os.File }

// Process is a created container, as a runtime gives it.
type Process interface {
	Pid() int
	// Start lets the waiting process execute the user's command. Errors: CommandNotFound, NotExecutable, ...
	Start() error
	// Wait returns the wait status of the container's first process. The monitor is a child subreaper.
	Wait() (Exit, error)
	// Signal sends a signal to the container's first process.
	Signal(sig int) error
	// Delete removes what the runtime keeps (state, cgroup). After Wait.
	Delete() error
	// OOMKilled reports whether the kernel killed something in the cgroup for memory. After Wait, before Delete.
	OOMKilled() bool
	// Spans are the phases of create and start.
	Spans() []undo.Span
}

// Creator makes the container of cfg, with its first process waiting for Start.
type Creator func(ctx context.Context, cfg *Config, stdio Stdio) (Process, error)

// Main is the monitor process: it reads the Config at path, serves until the container is gone, and returns the exit
// code of the process. The inherited connection is descriptor 3; attached stdio of the first client, if any, are
// descriptors named "stdin", "stdout", "stderr" in Config.Fds.
func Main(path string, create Creator) int { panic("contract") }

// Client is a connection to a monitor. Its methods may be called from several goroutines.
type Client struct{}

// FirstFile is the descriptor number of the first of SpawnOptions.Files in the monitor; descriptor 3 is the connection,
// and the client's own streams come after the files.
const FirstFile = 4

// SpawnOptions say what the new monitor inherits.
type SpawnOptions struct {
	Binary string              // path of onggi-runtime
	// Files by name; their numbers are filled into Config.Fds. They are numbered from FirstFile on in the order of
	// their names, so that the caller can write "/proc/self/fd/4" into config.json before Spawn.
	Files map[string]*os.File
	Stdio  [3]*os.File         // the client's own streams to attach from the first byte; nil ones are not attached
}

// Spawn writes RunDir/monitor.json and starts the monitor, detached from the caller's session.
func Spawn(ctx context.Context, cfg *Config, o SpawnOptions) (*Client, error) { panic("contract") }

// Dial connects to a running monitor. NotFound when none is alive.
func Dial(ctx context.Context, runDir string) (*Client, error) { panic("contract") }

// Alive reports whether a monitor holds RunDir's lock. It takes some microseconds.
func Alive(runDir string) bool { panic("contract") }

// Created waits until the container process exists and returns its pid.
func (c *Client) Created(ctx context.Context) (pid int, err error) { panic("contract") }

// Start starts the user's command and returns when it is executing.
func (c *Client) Start(ctx context.Context) (at time.Time, spans []undo.Span, err error) {
	panic("contract")
}

// Attach hands the caller's streams to the monitor, which then reads and writes them itself: no byte passes through
// this process. nil files are not attached. It returns at once.
func (c *Client) Attach(ctx context.Context, stdin, stdout, stderr *os.File) error { panic("contract") }

// Resize sets the terminal's size in characters.
func (c *Client) Resize(ctx context.Context, width, height uint16) error { panic("contract") }

// Signal sends a signal to the container's first process.
func (c *Client) Signal(ctx context.Context, sig int) error { panic("contract") }

// Wait returns the exit record. All output has been delivered to the attached streams and to the log by then.
func (c *Client) Wait(ctx context.Context) (*Exit, error) { panic("contract") }

// Mine promises that this client cleans up after the exit. If its connection ends before, the monitor does it.
func (c *Client) Mine(ctx context.Context) error { panic("contract") }

// Close ends the connection; the container goes on.
func (c *Client) Close() error { panic("contract") }

// ReadExit reads the exit record of a state directory. NotFound when the container has not ended (or was lost).
func ReadExit(stateDir string) (*Exit, error) { panic("contract") }
