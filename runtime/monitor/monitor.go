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
	RunDir   string `json:"runDir"`   // volatile: this file, lock, socket
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
	// Cleanup is run (argv, no search in PATH) after the exit when no client has promised to clean up, also after a
	// failed start. No monitor is alive then (Alive), so that it may remove RunDir. It has two minutes.
	Cleanup []string `json:"cleanup,omitempty"`
	// Mine is Client.Mine of the first client, from the beginning: also for a container that cannot be created.
	Mine bool `json:"mine,omitempty"`
	// Sync: fsync the exit record (containers that outlive a reboot); off for --rm.
	Sync bool `json:"sync,omitempty"`
	// Journal is the directory of package events: the container's start, signals and end are recorded there, with the
	// attributes of the actor file (WriteActor). Empty: nothing is.
	Journal string `json:"journal,omitempty"`
	// Health is the container's health check; nil: it has none.
	Health *Health `json:"health,omitempty"`
}

// LogConfig is the log's driver and bounds.
type LogConfig struct {
	Driver   string `json:"driver"`   // "local", "json-file" or "none"
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
	Error      string    `json:"error,omitempty"` // why it never started; then StartedAt is zero
	// Signals are the last ones that were sent through the monitor, oldest first. One that ended the container and is not here
	// came from elsewhere: from inside, from another process of the host, or from the kernel.
	Signals []Sent `json:"signals,omitempty"`
	// MemoryPeak is the most memory that the control group has had, bytes; 0: not known.
	MemoryPeak int64 `json:"memoryPeak,omitempty"`
	// Unhealthy is what was done because the health check failed: "restart" or "stop" have ended it.
	Unhealthy string `json:"unhealthy,omitempty"`
	// Warnings are what went wrong while the container ran or ended without stopping it: a log that could not be
	// written, a state that could not be deleted.
	Warnings []string `json:"warnings,omitempty"`
}

// Sent is a signal that the monitor has delivered.
type Sent struct {
	Signal int       `json:"signal"`
	At     time.Time `json:"at"`
	By     string    `json:"by,omitempty"` // who sent it, in its own words
	Pid    int       `json:"pid,omitempty"`
	UID    uint32    `json:"uid"`
}

// keptSignals bounds Exit.Signals.
const keptSignals = 8

// Stdio are the container's ends of its standard streams; nil is /dev/null. With a terminal all three are nil: the
// Process must also be a Consoler.
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

// Consoler is a Process with a terminal.
type Consoler interface {
	// Console is the terminal's master side, from the container's own devpts. The monitor closes it.
	Console() *os.File
}

// Measurer is a Process that knows how much memory it has used. After Wait, before Delete.
type Measurer interface{ MemoryPeak() int64 }

// Warner is a Process whose creation had to clamp or leave out something: what, in words for the user.
type Warner interface{ Warnings() []string }

// Creator makes the container of cfg, with its first process waiting for Start.
type Creator func(ctx context.Context, cfg *Config, stdio Stdio) (Process, error)
