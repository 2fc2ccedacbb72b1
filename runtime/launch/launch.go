package launch

import (
	"os"

	"github.com/onggi/onggi/mount"
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
	// Systemd has systemd make the control group: linux.cgroupsPath is "slice:prefix:name", and annotations
	// org.systemd.property.* are properties of the unit. UserManager is the runtime directory of the user whose manager is
	// asked ("/run/user/1000"); empty means the system's.
	Systemd     bool
	UserManager string
	// Notify gives the container a socket of its own like that of sd_notify(3): /run/notify/notify.sock, named by
	// $NOTIFY_SOCKET. What is sent to it is for the caller to read: Container.Notified, or BindNotify before Start.
	Notify bool
	// Timing collects the phases inside the container's process too; they cost a few microseconds.
	Timing bool
	// Warn is told what had to be clamped or left out; may be nil.
	Warn func(string)
}
