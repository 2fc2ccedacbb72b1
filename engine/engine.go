package engine

import (
	"time"

	"github.com/onggi/onggi/image"
	"github.com/onggi/onggi/network"
	"github.com/onggi/onggi/runtime/monitor"
	"github.com/onggi/onggi/spec"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Config is what Create is asked for.
type Config struct {
	spec.Config
	Name       string            `json:"name"`
	Image      string            `json:"image"` // as the user typed it
	Platform   *ocispec.Platform `json:"platform,omitempty"`
	AutoRemove bool              `json:"autoRemove,omitempty"`
	Restart    RestartPolicy     `json:"restart,omitzero"`
	// Health is what the user says of the health check; what is left open is the image's. nil: the image's.
	Health *image.Health `json:"health,omitempty"`
	// OnUnhealthy is what happens when the health check fails: "" or "none", "restart", "stop".
	OnUnhealthy string            `json:"onUnhealthy,omitempty"`
	Runtime     []string          `json:"runtime,omitempty"` // foreign OCI runtime
	Log         monitor.LogConfig `json:"log"`
	Pull        string            `json:"pull,omitempty"` // "missing" (default), "always", "never"
	// VolumesFrom are containers whose binds and volumes are added to Mounts: CONTAINER[:ro|:rw].
	VolumesFrom []string `json:"volumesFrom,omitempty"`
	// Links are the networks that the container is connected to, in the order of its interfaces. None: Network alone,
	// which is also what those without a network namespace of their own have: "host", "none" or "container:ID".
	Links []network.Link `json:"links,omitempty"`
	// Aliases are other containers' names (or ids) by the names under which this one finds them: --link.
	Aliases map[string]string `json:"aliases,omitempty"`
	// Secrets are the secrets and configs that the container gets as files.
	Secrets []SecretRef `json:"secrets,omitempty"`
	// Build is the build that the container is a step of; "" for a user's container. List leaves steps out.
	Build string `json:"build,omitempty"`
	// CgroupParent is the control group to make the container's in; "" is Options.CgroupParent.
	CgroupParent string `json:"cgroupParent,omitempty"`
	// Stack holds the layers of a step, bottom first, instead of Image.
	Stack []digest.Digest `json:"-"`
	// SecretEnv is added to a step's environment and is in no record. It counts in Run only.
	SecretEnv []string `json:"-"`
}

// Status is a container's state as docker names them.
type Status string

// The states.
const (
	Creating Status = "creating"
	Created  Status = "created"
	Running  Status = "running"
	Exited   Status = "exited"
	// Restarting is between two runs: it has ended, and its restart policy starts it again after a pause.
	Restarting Status = "restarting"
	Removing   Status = "removing"
	Dead       Status = "dead" // its monitor was killed

	Paused Status = "paused" // of Container.State only: a container that is paused runs
)

// Container is a container's record with its effective status.
type Container struct {
	ID      string        `json:"id"` // 64 hex digits
	Config  Config        `json:"config"`
	ImageID digest.Digest `json:"imageID"`
	// Healthcheck is the check that is run; nil: none. Health is what came of it; nil: none, or never started.
	Healthcheck *image.Health        `json:"healthcheck,omitempty"`
	Health      *monitor.HealthState `json:"-"`
	// RestartCount is how often the restart policy has started it since the user has.
	RestartCount int       `json:"restartCount,omitempty"`
	Created      time.Time `json:"created"`
	Status       Status    `json:"status"`
	// ImageLabels are those of the image; Labels has them with the container\'s own.
	ImageLabels map[string]string `json:"-"`

	Paused    bool                `json:"paused,omitempty"` // it runs, and stands still
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

// State is the status with what a user is told besides: Paused where Status is Running.
func (c *Container) State() Status {
	if c.Status == Running && c.Paused {
		return Paused
	}
	return c.Status
}
