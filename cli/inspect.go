package cli

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/onggi/onggi/engine"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/image"
	"github.com/onggi/onggi/network"
	"github.com/onggi/onggi/reference"
	"github.com/onggi/onggi/runtime/monitor"
	"github.com/onggi/onggi/spec"
	"github.com/onggi/onggi/volume"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
)

func buildInspect(a *app, c *cobra.Command) {
	var (
		format, kind string
		size         bool
	)
	c.Use = "inspect [FLAGS] NAME|ID [NAME|ID...]"
	c.Long = `Print all that is known about containers, images, networks and volumes, as a JSON array with docker's fields, or by a Go
template. A name of several means the first of them in this order, unless --type says otherwise.`
	c.Example = `  onggi inspect web
  onggi inspect -f '{{.State.Status}} {{.State.ExitCode}}' web
  onggi inspect -f '{{.NetworkSettings.IPAddress}}' web
  onggi inspect -f '{{json .Config.Env}}' debian:12`
	c.Flags().StringVarP(&format, "format", "f", "", "print as `format`: json, or a Go template such as '{{.Id}}'")
	c.Flags().BoolVarP(&size, "size", "s", false, "also measure what containers' files take (SizeRw, SizeRootFs)")
	c.Flags().StringVar(&kind, "type", "", "look for `kind`: container, image, volume or network")
	c.Args = takes(1, -1, "the names or ids of containers or images")
	c.RunE = func(c *cobra.Command, args []string) error {
		out, err := newFormat(format, c.Flags().Changed("format"))
		if err != nil {
			return err
		}
		if !slices.Contains([]string{"", "container", "image", "volume", "network"}, kind) {
			return reading("--type", kind, &errdefs.Error{Why: "there is no such kind of object", Fix: "use container, image, volume or network"})
		}
		return inspectEach(a, out, args, func(name string) (any, error) { return a.inspect(name, kind, size) })
	}
}

// inspect finds one object of a kind, or of any.
func (a *app) inspect(name, kind string, size bool) (any, error) {
	e, err := a.open()
	if err != nil {
		return nil, err
	}
	if kind == "" || kind == "container" {
		k, err := e.Get(name)
		if err == nil {
			var img *image.Image
			if store, err := e.Images(); err == nil {
				img, _ = store.Get(k.ImageID.String()) // removed by force: the container's own settings remain
			}
			j := inspectContainer(k, img)
			for i := range j.Mounts {
				if m := &j.Mounts[i]; m.Type == "volume" {
					if v, err := e.GetVolume(m.Name); err == nil {
						m.Source = mountpoint(v)
					}
				}
			}
			if size {
				s, err := e.Size(k)
				if err != nil {
					return nil, err
				}
				j.SizeRw, j.SizeRootFs = &s.Layer, &s.Total
			}
			return j, nil
		}
		if kind == "container" || !errdefs.Is(err, errdefs.NotFound) {
			return nil, err
		}
	}
	if kind == "" || kind == "image" {
		store, err := e.Images()
		if err != nil {
			return nil, err
		}
		img, err := store.Get(name)
		if err == nil {
			return inspectImage(img), nil
		}
		if kind == "image" || !errdefs.Is(err, errdefs.NotFound) && !errdefs.Is(err, errdefs.InvalidArgument) {
			return nil, err
		}
	}
	if kind == "" || kind == "network" {
		n, err := e.GetNetwork(name)
		if err == nil {
			return inspectOneNetwork(n), nil
		}
		if kind == "network" {
			return nil, err
		}
	}
	if kind == "" || kind == "volume" {
		v, err := e.GetVolume(name)
		if err == nil {
			return inspectVolume(v), nil
		}
		if kind == "volume" {
			return nil, err
		}
	}
	return nil, &errdefs.Error{
		Op: "inspect", What: name, Kind: errdefs.NotFound, Why: "there is neither a container nor an image of this name, nor a network or volume",
		Fix: "list them: onggi ps -a, onggi images, onggi network ls, onggi volume ls",
	}
}

// The types below are docker's answers (Docker Engine API, ContainerInspect and ImageInspect), as far as this version
// has what they describe.

type containerJSON struct {
	ID              string `json:"Id"`
	Created         string
	Path            string
	Args            []string
	State           stateJSON
	Image           string
	LogPath         string
	Name            string
	RestartCount    int
	Driver          string
	Platform        string
	HostConfig      hostConfigJSON
	Mounts          []mountJSON
	Config          configJSON
	NetworkSettings networkJSON
	SizeRw          *int64   `json:",omitempty"` // with --size
	SizeRootFs      *int64   `json:",omitempty"`
	Warnings        []string `json:",omitempty"`
}

type stateJSON struct {
	Status     string
	Running    bool
	Paused     bool
	Restarting bool
	OOMKilled  bool
	Dead       bool
	Pid        int
	ExitCode   int
	Error      string
	StartedAt  string
	FinishedAt string
	Health     *monitor.HealthState `json:",omitempty"`
}

type hostConfigJSON struct {
	Binds          []string
	NetworkMode    string
	PortBindings   map[string][]portJSON
	AutoRemove     bool
	RestartPolicy  restartJSON
	LogConfig      logJSON
	CapAdd         []string
	CapDrop        []string
	Dns            []string
	DnsOptions     []string
	DnsSearch      []string
	ExtraHosts     []string
	GroupAdd       []string
	OomScoreAdj    int
	Privileged     bool
	ReadonlyRootfs bool
	SecurityOpt    []string
	Tmpfs          map[string]string `json:",omitempty"`
	VolumesFrom    []string          `json:",omitempty"`
	ShmSize        int64
	Sysctls        map[string]string `json:",omitempty"`
	Runtime        string
	CpuShares      uint64
	Memory         int64
	MemorySwap     int64
	NanoCpus       int64
	CpusetCpus     string
	CpusetMems     string
	CpuPeriod      int64
	CpuQuota       int64
	BlkioWeight    uint16

	CpuRealtimePeriod                                                                  int64
	CpuRealtimeRuntime                                                                 int64
	MemoryReservation                                                                  int64
	MemorySwappiness                                                                   *uint64
	OomKillDisable                                                                     bool
	DeviceCgroupRules                                                                  []string
	BlkioWeightDevice                                                                  []weightJSON
	BlkioDeviceReadBps, BlkioDeviceWriteBps, BlkioDeviceReadIOps, BlkioDeviceWriteIOps []rateJSON

	CgroupParent, CgroupnsMode, IpcMode, PidMode, UTSMode, UsernsMode string
	Annotations                                                       map[string]string `json:",omitempty"`
	PublishAllPorts                                                   bool

	Devices   []deviceJSON
	PidsLimit int64
	Ulimits   []ulimitJSON
	Init      bool
}

type restartJSON struct {
	Name              string
	MaximumRetryCount int
}

type logJSON struct {
	Type   string
	Config map[string]string
}

type portJSON struct {
	HostIp   string
	HostPort string
}

type deviceJSON struct {
	PathOnHost        string
	PathInContainer   string
	CgroupPermissions string
}

type weightJSON struct {
	Path   string
	Weight uint64
}

type rateJSON struct {
	Path string
	Rate uint64
}

type ulimitJSON struct {
	Name string
	Hard int64
	Soft int64
}

type mountJSON struct {
	Type        string
	Name        string `json:",omitempty"`
	Source      string
	Destination string
	Driver      string `json:",omitempty"`
	Mode        string
	RW          bool
	Propagation string
}

type configJSON struct {
	Hostname     string
	Domainname   string
	User         string
	ExposedPorts map[string]struct{} `json:",omitempty"`
	Tty          bool
	OpenStdin    bool
	Env          []string
	Cmd          []string
	Image        string
	Volumes      map[string]struct{}
	WorkingDir   string
	Entrypoint   []string
	Labels       map[string]string
	StopSignal   string        `json:",omitempty"`
	StopTimeout  *int          `json:",omitempty"`
	Healthcheck  *image.Health `json:",omitempty"`
}

type networkJSON struct {
	Bridge              string
	Gateway             string
	GlobalIPv6Address   string
	GlobalIPv6PrefixLen int
	IPAddress           string
	IPPrefixLen         int
	IPv6Gateway         string
	MacAddress          string
	Ports               map[string][]portJSON
	Networks            map[string]endpointJSON
}

type endpointJSON struct {
	Gateway             string
	IPAddress           string
	IPPrefixLen         int
	IPv6Gateway         string
	GlobalIPv6Address   string
	GlobalIPv6PrefixLen int
	MacAddress          string
	NetworkID           string   `json:",omitempty"`
	Interface           string   `json:",omitempty"` // inside: not docker's
	Aliases             []string `json:",omitempty"`
	DNSNames            []string `json:",omitempty"`
}

type imageJSON struct {
	ID           string `json:"Id"`
	RepoTags     []string
	RepoDigests  []string
	Created      string
	Author       string
	Config       ocispec.ImageConfig
	Architecture string
	Variant      string `json:",omitempty"`
	Os           string
	Size         int64
	RootFS       rootFSJSON
	History      []ocispec.History `json:",omitempty"`
}

type rootFSJSON struct {
	Type   string
	Layers []string
}

// stamp prints a time as docker does; a time that has not come is year 1.
func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// inspectContainer describes a container; img, which may be nil, is where what the user left open comes from.
func inspectContainer(k *engine.Container, img *image.Image) *containerJSON {
	c := &k.Config
	j := &containerJSON{
		ID: k.ID, Created: stamp(k.Created), Image: k.ImageID.String(), LogPath: k.LogPath, Name: "/" + c.Name,
		Driver: "overlayfs", Platform: "linux", Args: []string{}, Warnings: k.Warnings, RestartCount: k.RestartCount,
		State: stateJSON{
			Status: string(k.State()), Running: k.Status == engine.Running || k.Status == engine.Restarting,
			Restarting: k.Status == engine.Restarting, Paused: k.Paused, Dead: k.Status == engine.Dead,
			StartedAt: stamp(k.StartedAt), FinishedAt: stamp(time.Time{}),
		},
	}
	j.State.Health = k.Health
	if j.State.Running {
		j.State.Pid = k.Pid
	}
	if x := k.Exit; x != nil && k.Status != engine.Running {
		j.State.ExitCode, j.State.OOMKilled, j.State.Error = x.Code, x.OOMKilled, x.Error
		j.State.StartedAt, j.State.FinishedAt = stamp(x.StartedAt), stamp(x.FinishedAt)
	}
	if len(k.Command) > 0 {
		j.Path = k.Command[0]
		j.Args = append(j.Args, k.Command[1:]...)
	}
	j.HostConfig = inspectHost(k)
	j.Mounts = inspectMounts(k)
	j.Config = inspectConfig(k, img)
	j.NetworkSettings = inspectNetwork(k)
	return j
}

func inspectHost(k *engine.Container) hostConfigJSON {
	c := &k.Config
	h := hostConfigJSON{
		NetworkMode: c.Network, PortBindings: map[string][]portJSON{}, AutoRemove: c.AutoRemove,
		LogConfig: logJSON{c.Log.Driver, map[string]string{}},
		CapAdd:    c.CapAdd, CapDrop: c.CapDrop, Dns: list(c.DNS), DnsOptions: list(c.DNSOptions), DnsSearch: list(c.DNSSearch),
		ExtraHosts: c.ExtraHosts, GroupAdd: c.GroupAdd, Privileged: c.Privileged, ReadonlyRootfs: c.ReadOnly,
		ShmSize: c.ShmSize, Sysctls: c.Sysctls, Runtime: "onggi-runtime", CpuShares: c.CPUShares, Memory: c.Memory,
		MemorySwap: c.MemorySwap, NanoCpus: c.NanoCPUs, CpusetCpus: c.CpusetCpus, Devices: []deviceJSON{},
		PidsLimit: c.PidsLimit, Ulimits: []ulimitJSON{}, Init: c.Init,
		RestartPolicy: restartJSON{"no", 0},
	}
	if c.Restart.Restarts() {
		h.RestartPolicy = restartJSON{c.Restart.Name, c.Restart.Max}
	}
	h.CpusetMems, h.CpuPeriod, h.CpuQuota, h.BlkioWeight = c.CpusetMems, c.CPUPeriod, c.CPUQuota, c.BlkioWeight
	h.CpuRealtimePeriod, h.CpuRealtimeRuntime = c.CPURealtimePeriod, c.CPURealtimeRuntime
	h.MemoryReservation, h.MemorySwappiness, h.OomKillDisable = c.MemoryReservation, c.MemorySwappiness, c.OomKillDisable
	h.DeviceCgroupRules = c.DeviceRules
	for _, d := range c.BlkioWeightDevice {
		h.BlkioWeightDevice = append(h.BlkioWeightDevice, weightJSON{d.Path, d.Rate})
	}
	for _, x := range []struct {
		from []spec.DeviceRate
		to   *[]rateJSON
	}{
		{c.DeviceReadBps, &h.BlkioDeviceReadBps},
		{c.DeviceWriteBps, &h.BlkioDeviceWriteBps},
		{c.DeviceReadIOps, &h.BlkioDeviceReadIOps},
		{c.DeviceWriteIOps, &h.BlkioDeviceWriteIOps},
	} {
		for _, d := range x.from {
			*x.to = append(*x.to, rateJSON{d.Path, d.Rate})
		}
	}
	h.CgroupParent, h.CgroupnsMode, h.IpcMode, h.PidMode, h.UTSMode = c.CgroupParent, c.CgroupNS, cmpOr(c.IPC, "private"), c.Pid, c.UTS
	h.Annotations, h.PublishAllPorts = c.Annotations, c.PublishAll
	if h.ShmSize == 0 {
		h.ShmSize = spec.DefaultShmSize
	}
	if len(c.Runtime) > 0 {
		h.Runtime = strings.Join(c.Runtime, " ")
	}
	if c.OomScoreAdj != nil {
		h.OomScoreAdj = *c.OomScoreAdj
	}
	if c.Log.MaxSize > 0 {
		h.LogConfig.Config["max-size"] = strconv.FormatInt(c.Log.MaxSize, 10)
	}
	if c.Log.MaxFiles > 0 {
		h.LogConfig.Config["max-file"] = strconv.Itoa(c.Log.MaxFiles)
	}
	if c.NoNewPrivileges {
		h.SecurityOpt = append(h.SecurityOpt, "no-new-privileges")
	}
	if c.Seccomp != "" {
		h.SecurityOpt = append(h.SecurityOpt, "seccomp="+c.Seccomp)
	}
	for _, p := range c.Ports {
		key := fmt.Sprintf("%d/%s", p.ContainerPort, p.Protocol)
		b := portJSON{HostIp: address(p.HostIP)}
		if p.HostPort != 0 {
			b.HostPort = strconv.Itoa(int(p.HostPort))
		}
		h.PortBindings[key] = append(h.PortBindings[key], b)
	}
	for _, d := range c.Devices {
		h.Devices = append(h.Devices, deviceJSON{d.Host, d.Container, d.Access})
	}
	for _, u := range c.Ulimits {
		h.Ulimits = append(h.Ulimits, ulimitJSON{u.Name, u.Hard, u.Soft})
	}
	h.VolumesFrom = c.VolumesFrom
	for _, m := range c.Mounts {
		switch {
		case m.Type == "tmpfs":
			if h.Tmpfs == nil {
				h.Tmpfs = map[string]string{}
			}
			h.Tmpfs[m.Target] = tmpfsOptions(m)
		case m.Source != "":
			b := m.Source + ":" + m.Target
			if m.ReadOnly {
				b += ":ro"
			}
			h.Binds = append(h.Binds, b)
		}
	}
	return h
}

// tmpfsOptions prints a tmpfs's options as --tmpfs takes them.
func tmpfsOptions(m spec.Mount) string {
	o := slices.Clone(m.Options)
	if m.ReadOnly {
		o = append(o, "ro")
	}
	if m.TmpfsSize > 0 {
		o = append(o, "size="+strconv.FormatInt(m.TmpfsSize, 10))
	}
	if m.TmpfsMode > 0 {
		o = append(o, "mode="+strconv.FormatUint(uint64(m.TmpfsMode), 8))
	}
	return strings.Join(o, ",")
}

func inspectMounts(k *engine.Container) []mountJSON {
	out := []mountJSON{}
	seen := map[string]bool{}
	for _, m := range k.Config.Mounts {
		seen[m.Target] = true
		j := mountJSON{Type: m.Type, Source: m.Source, Destination: m.Target, Mode: mountMode(m), RW: !m.ReadOnly, Propagation: m.Propagation}
		switch m.Type {
		case "bind":
			if j.Propagation == "" {
				j.Propagation = "rprivate"
			}
		case "volume":
			j.Name, j.Source, j.Driver = m.Source, "", volume.Driver
			if n := k.Volumes[m.Target]; n != "" {
				j.Name = n
			}
		}
		out = append(out, j)
	}
	for target, name := range k.Volumes { // those that the image asks for
		if !seen[target] {
			out = append(out, mountJSON{Type: "volume", Name: name, Destination: target, Driver: volume.Driver, RW: true})
		}
	}
	slices.SortFunc(out, func(a, b mountJSON) int { return strings.Compare(a.Destination, b.Destination) })
	return out
}

func inspectConfig(k *engine.Container, img *image.Image) configJSON {
	c := &k.Config
	j := configJSON{
		Hostname: c.Hostname, Domainname: c.Domainname, User: c.User, Tty: c.Tty, OpenStdin: c.OpenStdin, Env: c.Env, Cmd: c.Args, Image: c.Image,
		WorkingDir: c.Workdir, Entrypoint: c.Entrypoint, Labels: map[string]string{}, StopSignal: c.StopSignal, StopTimeout: c.StopTimeout,
		Healthcheck: k.Healthcheck,
	}
	if j.Hostname == "" && c.Network != "host" {
		j.Hostname = shortID(k.ID)
	}
	if img != nil {
		i := &img.Config.Config
		j.Env = mergeEnv(i.Env, c.Env)
		if j.User == "" {
			j.User = i.User
		}
		if j.WorkingDir == "" {
			j.WorkingDir = i.WorkingDir
		}
		if !c.EntrypointSet {
			j.Entrypoint = i.Entrypoint
			if len(j.Cmd) == 0 {
				j.Cmd = i.Cmd
			}
		}
		if j.StopSignal == "" {
			j.StopSignal = i.StopSignal
		}
		j.Volumes, j.ExposedPorts = i.Volumes, maps.Clone(i.ExposedPorts)
		for key, v := range i.Labels {
			j.Labels[key] = v
		}
	}
	for key, v := range c.Labels {
		j.Labels[key] = v
	}
	for _, text := range c.Expose {
		list, _ := network.ParsePort(text)
		for _, p := range list {
			if j.ExposedPorts == nil {
				j.ExposedPorts = map[string]struct{}{}
			}
			j.ExposedPorts[fmt.Sprintf("%d/%s", p.ContainerPort, p.Protocol)] = struct{}{}
		}
	}
	return j
}

func inspectNetwork(k *engine.Container) networkJSON {
	n := networkJSON{Ports: map[string][]portJSON{}, Networks: map[string]endpointJSON{}}
	var e endpointJSON
	if at := k.Network; at != nil && k.Status == engine.Running {
		n.Bridge = at.Bridge
		e = endpointJSON{Gateway: address(at.Gateway), IPv6Gateway: address(at.Gateway6), MacAddress: at.MAC}
		if at.IPv4.IsValid() {
			e.IPAddress, e.IPPrefixLen = at.IPv4.Addr().String(), at.IPv4.Bits()
		}
		if at.IPv6.IsValid() {
			e.GlobalIPv6Address, e.GlobalIPv6PrefixLen = at.IPv6.Addr().String(), at.IPv6.Bits()
		}
		for _, p := range at.Ports {
			key := fmt.Sprintf("%d/%s", p.ContainerPort, p.Protocol)
			ip := address(p.HostIP)
			if ip == "" {
				ip = "0.0.0.0"
			}
			n.Ports[key] = append(n.Ports[key], portJSON{ip, strconv.Itoa(int(p.HostPort))})
		}
	}
	n.Gateway, n.IPAddress, n.IPPrefixLen, n.IPv6Gateway = e.Gateway, e.IPAddress, e.IPPrefixLen, e.IPv6Gateway
	n.GlobalIPv6Address, n.GlobalIPv6PrefixLen, n.MacAddress = e.GlobalIPv6Address, e.GlobalIPv6PrefixLen, e.MacAddress
	if at := k.Network; at != nil && len(at.Networks) > 0 && k.Status == engine.Running {
		for _, j := range at.Networks {
			n.Networks[j.Network] = inspectJoined(j)
		}
		return n
	}
	if len(k.Config.Links) == 0 && k.Config.Network != "" && !strings.HasPrefix(k.Config.Network, "container:") {
		n.Networks[k.Config.Network] = e
	}
	for _, l := range k.Config.Links {
		n.Networks[l.Network] = endpointJSON{Aliases: l.Aliases}
	}
	return n
}

func inspectJoined(j network.Joined) endpointJSON {
	e := endpointJSON{
		Gateway: address(j.Gateway), IPv6Gateway: address(j.Gateway6), MacAddress: j.MAC, NetworkID: j.NetworkID, Interface: j.Interface,
		DNSNames: j.Names,
	}
	if j.IPv4.IsValid() {
		e.IPAddress, e.IPPrefixLen = j.IPv4.Addr().String(), j.IPv4.Bits()
	}
	if j.IPv6.IsValid() {
		e.GlobalIPv6Address, e.GlobalIPv6PrefixLen = j.IPv6.Addr().String(), j.IPv6.Bits()
	}
	return e
}

func inspectImage(i *image.Image) *imageJSON {
	j := &imageJSON{
		ID: i.ID.String(), RepoTags: []string{}, RepoDigests: []string{}, Created: stamp(i.Created), Author: i.Config.Author,
		Config: i.Config.Config, Architecture: i.Config.Architecture, Variant: i.Config.Variant, Os: i.Config.OS, Size: i.Size,
		RootFS: rootFSJSON{"layers", []string{}}, History: i.Config.History,
	}
	for _, d := range i.DiffIDs {
		j.RootFS.Layers = append(j.RootFS.Layers, d.String())
	}
	for _, n := range i.Names {
		if n.Tag != "" {
			j.RepoTags = append(j.RepoTags, reference.Reference{Domain: n.Domain, Path: n.Path, Tag: n.Tag}.Familiar())
		}
		d := n.Digest
		if d == "" {
			d = i.Target.Digest
		}
		if d != "" {
			j.RepoDigests = append(j.RepoDigests, reference.Reference{Domain: n.Domain, Path: n.Path, Digest: d}.Familiar())
		}
	}
	slices.Sort(j.RepoTags)
	slices.Sort(j.RepoDigests)
	j.RepoDigests = slices.Compact(j.RepoDigests)
	return j
}

// list is an empty list in the place of none, as docker prints these fields.
func list(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}
