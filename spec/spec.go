// Package spec turns image config + container config + host facts into a runtime-spec. It is pure: it reads no file and
// changes nothing, so that every rule in it is a table test.
package spec

import (
	"time"

	"github.com/onggi/onggi/network"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
)

// Config is what a user asks of a container; the fields follow docker's flags. It is part of the container's record.
type Config struct {
	Args          []string          `json:"args,omitempty"`          // after the image name
	Entrypoint    []string          `json:"entrypoint,omitempty"`    // --entrypoint
	EntrypointSet bool              `json:"entrypointSet,omitempty"` // --entrypoint was given (even empty: it clears the image's)
	Env           []string          `json:"env,omitempty"`           // KEY=VALUE, --env-file already merged
	Workdir       string            `json:"workdir,omitempty"`
	User          string            `json:"user,omitempty"` // name|uid[:group|gid]
	GroupAdd      []string          `json:"groupAdd,omitempty"`
	Hostname      string            `json:"hostname,omitempty"`
	Labels        map[string]string `json:"labels,omitempty"`
	Tty           bool              `json:"tty,omitempty"`
	OpenStdin     bool              `json:"openStdin,omitempty"`
	Init          bool              `json:"init,omitempty"`

	Memory      int64             `json:"memory,omitempty"`     // bytes
	MemorySwap  int64             `json:"memorySwap,omitempty"` // bytes, memory included; -1 unlimited
	NanoCPUs    int64             `json:"nanoCPUs,omitempty"`
	CPUShares   uint64            `json:"cpuShares,omitempty"`
	CpusetCpus  string            `json:"cpusetCpus,omitempty"`
	PidsLimit   int64             `json:"pidsLimit,omitempty"`
	OomScoreAdj *int              `json:"oomScoreAdj,omitempty"`
	Ulimits     []Ulimit          `json:"ulimits,omitempty"`
	ShmSize     int64             `json:"shmSize,omitempty"` // bytes; default 64 MiB
	Sysctls     map[string]string `json:"sysctls,omitempty"`

	Mounts   []Mount  `json:"mounts,omitempty"`
	ReadOnly bool     `json:"readOnly,omitempty"`
	Devices  []Device `json:"devices,omitempty"`

	Privileged      bool     `json:"privileged,omitempty"`
	CapAdd          []string `json:"capAdd,omitempty"`
	CapDrop         []string `json:"capDrop,omitempty"`
	NoNewPrivileges bool     `json:"noNewPrivileges,omitempty"`
	Seccomp         string   `json:"seccomp,omitempty"` // "" default profile, "unconfined", or a profile's JSON text

	Network    string         `json:"network"` // "bridge", "host", "none"
	Ports      []network.Port `json:"ports,omitempty"`
	DNS        []string       `json:"dns,omitempty"`
	DNSSearch  []string       `json:"dnsSearch,omitempty"`
	DNSOptions []string       `json:"dnsOptions,omitempty"`
	ExtraHosts []string       `json:"extraHosts,omitempty"`

	StopSignal  string `json:"stopSignal,omitempty"`
	StopTimeout *int   `json:"stopTimeout,omitempty"` // seconds
}

// Ulimit is one --ulimit.
type Ulimit struct {
	Name string `json:"name"` // "nofile"
	Soft int64  `json:"soft"` // -1 unlimited
	Hard int64  `json:"hard"`
}

// Mount is one -v, --mount or --tmpfs.
type Mount struct {
	Type        string   `json:"type"`             // "bind", "volume", "tmpfs"
	Source      string   `json:"source,omitempty"` // host path, or volume name ("" anonymous)
	Target      string   `json:"target"`
	ReadOnly    bool     `json:"readOnly,omitempty"`
	Propagation string   `json:"propagation,omitempty"` // bind: default "rprivate"
	NoCopy      bool     `json:"noCopy,omitempty"`
	TmpfsSize   int64    `json:"tmpfsSize,omitempty"`
	TmpfsMode   uint32   `json:"tmpfsMode,omitempty"`
	Options     []string `json:"options,omitempty"`
}

// Device is one --device.
type Device struct {
	Host      string `json:"host"`
	Container string `json:"container"`
	Access    string `json:"access"` // "rwm"
}

// Host is what the spec needs to know of this machine.
type Host struct {
	CgroupV2      bool
	Capabilities  []string             // held by this process, CAP_ names: nothing more can be granted
	Rlimits       map[string][2]uint64 // soft, hard of this process by RLIMIT_ name
	OomScoreAdj   int
	CanRaise      bool // CAP_SYS_RESOURCE
	KernelVersion [2]int
	Devices       map[string]runspec.LinuxDevice // the stat of each Config.Devices.Host (expanded directories), and all devices when privileged
	CPUs          int
}

// Input is everything Generate looks at.
type Input struct {
	ID             string
	Image          *ocispec.Image // nil for none
	Config         *Config
	Host           Host
	RootPath       string // root.path
	CgroupsPath    string
	NetNS          string // path of the network namespace; "" host
	UID, GID       uint32 // resolved from User by the caller inside the root file system (User)
	AdditionalGids []uint32
	Home           string
	Volumes        map[string]string // volume name -> host path
	Files          map[string]string // container path -> host file: /etc/resolv.conf, /etc/hosts, /etc/hostname
	InitPath       string            // host path of the --init program
}

// Generate returns the spec, and warnings about what had to be clamped to what this process holds. Errors are of kind
// InvalidArgument and name the flag.
func Generate(in Input) (*runspec.Spec, []string, error) { panic("contract") }

// User resolves user and group names as docker does from the text of /etc/passwd and /etc/group; numeric ids need no
// entry; ids above 2^32-2 are refused (CVE-2024-40635). A string of digits is always an id (CVE-2026-46680).
func User(user string, groupAdd []string, passwd, group []byte) (uid, gid uint32, additional []uint32, home string, err error) {
	panic("contract")
}

// StopTimeout is how long stop waits before SIGKILL.
func (c *Config) StopGrace() time.Duration { panic("contract") }
