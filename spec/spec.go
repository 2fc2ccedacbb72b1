// Package spec turns image config + container config + host facts into a runtime-spec.
//
// It is pure: it reads no file and changes nothing, so that every rule in it is a table test. The rules are docker's
// (moby, daemon/oci_linux.go and oci/defaults.go, August 2026, behaviour only), because that is what images and users
// expect: which mounts, masks, capabilities and environment a container finds, how an image's entrypoint and a user's
// arguments join, which limits are refused.
//
//	Command          entrypoint and arguments of image and user -> argv
//	Effective        mounts of the user + volumes of the image
//	User             names of users and groups -> numbers (the caller reads /etc/passwd and /etc/group)
//	Generate         everything -> config.json
//	Process          the process of `exec` in a container that Generate made
//
// What it leaves to others: the caller (engine) makes directories, volumes, files and the network namespace, and
// collects the facts in Host; the runtime decides how a spec is performed.
package spec

import (
	"fmt"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/onggi/onggi/errdefs"
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

	Limits

	// Namespaces: "" and "private" are the container's own; "host" is the host's; Pid can be "container:ID".
	Pid      string `json:"pid,omitempty"`
	IPC      string `json:"ipc,omitempty"` // also "none": without /dev/shm
	UTS      string `json:"uts,omitempty"`
	CgroupNS string `json:"cgroupns,omitempty"`

	Domainname  string            `json:"domainname,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Expose      []string          `json:"expose,omitempty"` // "80/tcp"
	PublishAll  bool              `json:"publishAll,omitempty"`

	Mounts   []Mount  `json:"mounts,omitempty"`
	ReadOnly bool     `json:"readOnly,omitempty"`
	Devices  []Device `json:"devices,omitempty"`

	Privileged      bool     `json:"privileged,omitempty"`
	CapAdd          []string `json:"capAdd,omitempty"`
	CapDrop         []string `json:"capDrop,omitempty"`
	NoNewPrivileges bool     `json:"noNewPrivileges,omitempty"`
	Seccomp         string   `json:"seccomp,omitempty"` // "" default profile, "unconfined", or a profile's JSON text

	Network    string         `json:"network"` // "host", "none", "container:ID", or a network
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
	// Recursive says what a bind does with the mounts below its source: "" and "enabled" bring them along, and make them
	// read-only with it where the kernel can (5.12); "disabled" leaves them out; "writable" brings them along as they are;
	// "readonly" is an error where the kernel cannot.
	Recursive string `json:"recursive,omitempty"`
	// Subpath is the part of a volume that is mounted, relative to its root; "" is all of it.
	Subpath string `json:"subpath,omitempty"`
	// IDMap: a bind shows the owners of files by a map (mount_setattr(2), MOUNT_ATTR_IDMAP). ContainerID is an id on the
	// file system, HostID what the container sees. Without maps the owner of the source and the container's user are
	// exchanged, and all others are themselves.
	IDMap bool                     `json:"idmap,omitempty"`
	UIDs  []runspec.LinuxIDMapping `json:"uids,omitempty"`
	GIDs  []runspec.LinuxIDMapping `json:"gids,omitempty"`
	// Driver, DriverOptions and Labels are those of a volume that is made for the mount.
	Driver        string            `json:"driver,omitempty"`
	DriverOptions map[string]string `json:"driverOptions,omitempty"`
	Labels        map[string]string `json:"labels,omitempty"`
	// From is what is bound instead of what Source says, such as "/proc/7/fd/8"; only a start knows it.
	From string `json:"-"`
	// CreateSource: a bind's missing host directory is made (docker's -v does, its --mount does not).
	CreateSource bool `json:"createSource,omitempty"`
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
	// Devices by host path: each Config.Devices.Host (directories expanded), and all of the host's when privileged.
	Devices map[string]runspec.LinuxDevice
	// BlockDevices are the numbers (major, minor) of Config.BlockDevices by path.
	BlockDevices map[string][2]int64
	CPUs         int
	Hostname     string   // what --network host shows inside
	SwapLimit    bool     // the kernel can limit swap here (memory.memsw.* or memory.swap.max)
	MaskedPaths  []string // host dependent paths to be masked too (/sys/devices/system/cpu/cpu0/thermal_throttle)
	Arch         string   // GOARCH; "" means this program's
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
	PidNS          string // path of the process namespace of Config.Pid "container:ID"
	UID, GID       uint32 // resolved from User by the caller inside the root file system (User)
	AdditionalGids []uint32
	Home           string
	Volumes        map[string]string // volume name -> host path
	Files          map[string]string // container path -> host file: /etc/resolv.conf, /etc/hosts, /etc/hostname
	// InitPath is the host path of a --init program that is put in front of the command, for runtimes that have none of
	// their own; "" otherwise.
	InitPath string
}

// DefaultShmSize is the size of /dev/shm, bytes.
const DefaultShmSize = 64 << 20

// ociVersion is the oldest version of runtime-spec that has everything written here; runtimes refuse newer ones than
// they know (crun 1.8 everything above 1.0.2).
const ociVersion = "1.0.2"

// Generate returns the spec, and warnings about what had to be clamped to what this process holds. Errors are of kind
// InvalidArgument and name the flag.
func Generate(in Input) (*runspec.Spec, []string, error) {
	g := &generator{in: in, c: in.Config}
	if in.Image != nil {
		g.image = in.Image.Config
	}
	s := &runspec.Spec{
		Version: ociVersion,
		Root:    &runspec.Root{Path: in.RootPath, Readonly: g.c.ReadOnly},
		Process: &runspec.Process{Terminal: g.c.Tty, NoNewPrivileges: g.c.NoNewPrivileges},
		Linux:   &runspec.Linux{CgroupsPath: in.CgroupsPath, Resources: &runspec.LinuxResources{}},
	}
	for _, part := range []func(*runspec.Spec) error{
		g.hostname, g.command, g.environment, g.user, g.namespaces, g.paths, g.mounts, g.capabilities, g.devices,
		g.deviceRules, g.memory, g.moreMemory, g.cpu, g.moreCPU, g.blockIO, g.pids, g.rlimits, g.oomScore, g.sysctls,
		g.seccomp, // last: it depends on capabilities and architecture
	} {
		if err := part(s); err != nil {
			return nil, nil, err
		}
	}
	return s, g.warnings, nil
}

// generator is one call of Generate.
type generator struct {
	in       Input
	c        *Config
	image    ocispec.ImageConfig
	warnings []string
	host     string // effective host name
}

func (g *generator) warn(format string, args ...any) {
	g.warnings = append(g.warnings, fmt.Sprintf(format, args...))
}

// invalid is the error of a flag's value.
func invalid(flag, value, why, fix string) error {
	e := &errdefs.Error{Op: "use", What: flag, Kind: errdefs.InvalidArgument, Why: why, Fix: fix}
	if value != "" {
		e.What = flag + " " + value
	}
	return e
}

// hostname: a name of the user's, the host's name on its network, else the short id.
func (g *generator) hostname(s *runspec.Spec) error {
	h, err := g.c.EffectiveHostname(g.in.ID, g.in.Host.Hostname)
	if err != nil {
		return err
	}
	g.host, s.Hostname = h, h
	s.Annotations = g.c.Annotations
	if g.c.UTS == "host" {
		s.Hostname = "" // it is not ours to set
		for _, x := range []struct{ flag, value string }{{"--hostname", g.c.Hostname}, {"--domainname", g.c.Domainname}} {
			if x.value != "" {
				return invalid(x.flag, x.value, "with --uts host the container has the host's names", "leave one of them out")
			}
		}
	}
	return nil
}

// EffectiveHostname is the host name inside the container with this id, on a host of the given name.
func (c *Config) EffectiveHostname(id, host string) (string, error) {
	h := c.Hostname
	switch {
	case h != "":
	case c.Network == "host", c.UTS == "host", strings.HasPrefix(c.Network, "container:") && host != "":
		return host, nil
	case len(id) > 12:
		return id[:12], nil
	default:
		return id, nil
	}
	bad := len(h) > 64 || strings.HasPrefix(h, "-") || strings.HasPrefix(h, ".")
	for _, r := range h {
		// It is written into /etc/hosts and the environment: nothing that could become a second line or name.
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '.' || r == '_') {
			bad = true
		}
	}
	if bad {
		return "", invalid("--hostname", strconv.Quote(h), "a host name has letters, digits, '-', '_' and '.', and at most 64 of them",
			"choose another name")
	}
	return h, nil
}

func (g *generator) command(s *runspec.Spec) error {
	argv, err := Command(g.c, &g.image)
	if err != nil {
		return err
	}
	if g.in.InitPath != "" {
		argv = append([]string{initTarget, "--"}, argv...)
	}
	s.Process.Args = argv
	s.Process.Cwd, err = workdir(g.c.Workdir, g.image.WorkingDir)
	return err
}

// Command is the container's command line: entrypoint, then arguments. A user's entrypoint replaces the image's and
// drops the image's arguments; a user's arguments replace the image's (docker run, "Overriding Dockerfile image
// defaults").
func Command(c *Config, image *ocispec.ImageConfig) ([]string, error) {
	if image == nil {
		image = &ocispec.ImageConfig{}
	}
	entry, args := image.Entrypoint, c.Args
	if c.EntrypointSet {
		entry = c.Entrypoint
		if len(entry) == 1 && entry[0] == "" {
			entry = nil
		}
	} else if len(args) == 0 {
		args = image.Cmd
	}
	argv := append(append([]string{}, entry...), args...)
	if len(argv) == 0 {
		return nil, &errdefs.Error{
			Op: "run", What: "the container", Kind: errdefs.InvalidArgument, Why: "no command specified: neither the image nor you named one",
			Fix: "write a command behind the image's name, for example: sh",
		}
	}
	for _, a := range argv {
		if strings.IndexByte(a, 0) >= 0 {
			return nil, invalid("the command", strconv.Quote(a), "an argument has a NUL byte", "remove it")
		}
	}
	return argv, nil
}

func workdir(user, image string) (string, error) {
	if user != "" {
		if !strings.HasPrefix(user, "/") {
			return "", invalid("--workdir", user, "the working directory needs to be an absolute path", "write it with a leading slash")
		}
		return path.Clean(user), nil
	}
	return path.Clean("/" + image), nil
}

func (g *generator) user(s *runspec.Spec) error {
	s.Process.User = runspec.User{UID: g.in.UID, GID: g.in.GID, AdditionalGids: g.in.AdditionalGids}
	return nil
}

// namespaces: all private but the user's, and the network as asked; the control groups' on v2 only, as docker's
// default.
func (g *generator) namespaces(s *runspec.Spec) error {
	ns := []runspec.LinuxNamespace{{Type: runspec.MountNamespace}}
	for _, n := range []struct {
		flag, value string
		typ         runspec.LinuxNamespaceType
	}{{"--uts", g.c.UTS, runspec.UTSNamespace}, {"--pid", g.c.Pid, runspec.PIDNamespace}, {"--ipc", g.c.IPC, runspec.IPCNamespace}} {
		path := ""
		switch {
		case n.value == "host":
			continue
		case n.value == "", n.value == "private", n.flag == "--ipc" && n.value == "none":
		case n.flag == "--pid" && strings.HasPrefix(n.value, "container:") && len(n.value) > len("container:"):
			path = g.in.PidNS
		default:
			return invalid(n.flag, n.value, "there is no such mode", "use host, or leave it out")
		}
		ns = append(ns, runspec.LinuxNamespace{Type: n.typ, Path: path})
	}
	switch g.c.Network {
	case "host":
	default: // which networks there are is not for us to know
		ns = append(ns, runspec.LinuxNamespace{Type: runspec.NetworkNamespace, Path: g.in.NetNS})
	}
	switch v2 := g.in.Host.CgroupV2; {
	case g.c.CgroupNS == "private" && !v2:
		return invalid("--cgroupns", "private", "private cgroup namespaces can only be used with cgroup v2", "leave it out")
	case g.c.CgroupNS != "" && g.c.CgroupNS != "private" && g.c.CgroupNS != "host":
		return invalid("--cgroupns", g.c.CgroupNS, "there is no such mode", "use host or private")
	case v2 && g.c.CgroupNS != "host":
		ns = append(ns, runspec.LinuxNamespace{Type: runspec.CgroupNamespace})
	}
	s.Linux.Namespaces = ns
	return nil
}

var (
	masked = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
		"/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
	}
	readonly = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// paths: what the kernel shows of the host in /proc and /sys and is not this container's.
func (g *generator) paths(s *runspec.Spec) error {
	if !g.c.Privileged {
		s.Linux.MaskedPaths = append(append([]string{}, masked...), g.in.Host.MaskedPaths...)
		s.Linux.ReadonlyPaths = append([]string{}, readonly...)
	}
	return nil
}

// StopGrace is how long stop waits before SIGKILL.
func (c *Config) StopGrace() time.Duration {
	if c.StopTimeout == nil {
		return 10 * time.Second
	}
	if *c.StopTimeout < 0 {
		return time.Duration(1<<63 - 1) // docker: a negative time waits for ever
	}
	return time.Duration(*c.StopTimeout) * time.Second
}
