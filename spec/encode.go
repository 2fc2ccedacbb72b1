package spec

import (
	"encoding/json"
	"slices"
	"strconv"
	"unicode/utf8"

	runspec "github.com/opencontainers/runtime-spec/specs-go"
)

// Encode writes config.json (runtime-spec, "Configuration"). It is json.Marshal, without reflection for what every
// container has: a program that runs for milliseconds would spend one of them on learning the form of hundreds of types,
// of which it needs a dozen.
func Encode(s *runspec.Spec) ([]byte, error) {
	e := &encoder{b: make([]byte, 0, 32<<10)}
	e.open()
	e.str("ociVersion", s.Version)
	if s.Process != nil {
		e.name("process")
		e.process(s.Process)
	}
	if s.Root != nil {
		e.name("root")
		e.open()
		e.str("path", s.Root.Path)
		e.flag("readonly", s.Root.Readonly)
		e.close()
	}
	e.text("hostname", s.Hostname)
	e.text("domainname", s.Domainname)
	if len(s.Mounts) > 0 {
		e.name("mounts")
		list(e, s.Mounts, e.mount)
	}
	if s.Hooks != nil {
		e.other("hooks", s.Hooks)
	}
	e.texts("annotations", s.Annotations)
	if s.Linux != nil {
		e.name("linux")
		e.linux(s.Linux)
	}
	if s.Solaris != nil {
		e.other("solaris", s.Solaris)
	}
	if s.Windows != nil {
		e.other("windows", s.Windows)
	}
	if s.VM != nil {
		e.other("vm", s.VM)
	}
	if s.ZOS != nil {
		e.other("zos", s.ZOS)
	}
	if s.FreeBSD != nil {
		e.other("freebsd", s.FreeBSD)
	}
	e.close()
	return e.b, e.err
}

type encoder struct {
	b   []byte
	err error
}

func (e *encoder) process(p *runspec.Process) {
	e.open()
	e.flag("terminal", p.Terminal)
	if p.ConsoleSize != nil {
		e.other("consoleSize", p.ConsoleSize)
	}
	e.name("user")
	e.open()
	e.num("uid", int64(p.User.UID))
	e.num("gid", int64(p.User.GID))
	if p.User.Umask != nil {
		e.num("umask", int64(*p.User.Umask))
	}
	if len(p.User.AdditionalGids) > 0 {
		e.name("additionalGids")
		list(e, p.User.AdditionalGids, func(g *uint32) { e.b = strconv.AppendUint(e.b, uint64(*g), 10) })
	}
	e.text("username", p.User.Username)
	e.close()
	words(e, "args", p.Args)
	e.text("commandLine", p.CommandLine)
	words(e, "env", p.Env)
	e.str("cwd", p.Cwd)
	if c := p.Capabilities; c != nil {
		e.name("capabilities")
		e.open()
		words(e, "bounding", c.Bounding)
		words(e, "effective", c.Effective)
		words(e, "inheritable", c.Inheritable)
		words(e, "permitted", c.Permitted)
		words(e, "ambient", c.Ambient)
		e.close()
	}
	if len(p.Rlimits) > 0 {
		e.name("rlimits")
		list(e, p.Rlimits, func(l *runspec.POSIXRlimit) {
			e.open()
			e.str("type", l.Type)
			e.unum("hard", l.Hard)
			e.unum("soft", l.Soft)
			e.close()
		})
	}
	e.flag("noNewPrivileges", p.NoNewPrivileges)
	e.text("apparmorProfile", p.ApparmorProfile)
	if p.OOMScoreAdj != nil {
		e.num("oomScoreAdj", int64(*p.OOMScoreAdj))
	}
	if p.Scheduler != nil {
		e.other("scheduler", p.Scheduler)
	}
	e.text("selinuxLabel", p.SelinuxLabel)
	if p.IOPriority != nil {
		e.other("ioPriority", p.IOPriority)
	}
	if p.ExecCPUAffinity != nil {
		e.other("execCPUAffinity", p.ExecCPUAffinity)
	}
	e.close()
}

func (e *encoder) mount(m *runspec.Mount) {
	e.open()
	e.str("destination", m.Destination)
	e.text("type", m.Type)
	e.text("source", m.Source)
	words(e, "options", m.Options)
	e.ids("uidMappings", m.UIDMappings)
	e.ids("gidMappings", m.GIDMappings)
	e.close()
}

func (e *encoder) linux(l *runspec.Linux) {
	e.open()
	e.ids("uidMappings", l.UIDMappings)
	e.ids("gidMappings", l.GIDMappings)
	e.texts("sysctl", l.Sysctl)
	if l.Resources != nil {
		e.name("resources")
		e.resources(l.Resources)
	}
	e.text("cgroupsPath", l.CgroupsPath)
	if len(l.Namespaces) > 0 {
		e.name("namespaces")
		list(e, l.Namespaces, func(n *runspec.LinuxNamespace) {
			e.open()
			e.str("type", string(n.Type))
			e.text("path", n.Path)
			e.close()
		})
	}
	if len(l.Devices) > 0 {
		e.name("devices")
		list(e, l.Devices, e.device)
	}
	if len(l.NetDevices) > 0 {
		e.other("netDevices", l.NetDevices)
	}
	if l.Seccomp != nil {
		e.name("seccomp")
		e.seccomp(l.Seccomp)
	}
	e.text("rootfsPropagation", l.RootfsPropagation)
	words(e, "maskedPaths", l.MaskedPaths)
	words(e, "readonlyPaths", l.ReadonlyPaths)
	e.text("mountLabel", l.MountLabel)
	if l.IntelRdt != nil {
		e.other("intelRdt", l.IntelRdt)
	}
	if l.MemoryPolicy != nil {
		e.other("memoryPolicy", l.MemoryPolicy)
	}
	if l.Personality != nil {
		e.other("personality", l.Personality)
	}
	if len(l.TimeOffsets) > 0 {
		e.other("timeOffsets", l.TimeOffsets)
	}
	e.close()
}

func (e *encoder) resources(r *runspec.LinuxResources) {
	e.open()
	if len(r.Devices) > 0 {
		e.name("devices")
		list(e, r.Devices, func(d *runspec.LinuxDeviceCgroup) {
			e.open()
			e.name("allow")
			e.b = strconv.AppendBool(e.b, d.Allow)
			e.text("type", d.Type)
			if d.Major != nil {
				e.num("major", *d.Major)
			}
			if d.Minor != nil {
				e.num("minor", *d.Minor)
			}
			e.text("access", d.Access)
			e.close()
		})
	}
	if r.Memory != nil {
		e.other("memory", r.Memory)
	}
	if r.CPU != nil {
		e.other("cpu", r.CPU)
	}
	if r.Pids != nil {
		e.other("pids", r.Pids)
	}
	if r.BlockIO != nil {
		e.other("blockIO", r.BlockIO)
	}
	if len(r.HugepageLimits) > 0 {
		e.other("hugepageLimits", r.HugepageLimits)
	}
	if r.Network != nil {
		e.other("network", r.Network)
	}
	if len(r.Rdma) > 0 {
		e.other("rdma", r.Rdma)
	}
	e.texts("unified", r.Unified)
	e.close()
}

func (e *encoder) device(d *runspec.LinuxDevice) {
	e.open()
	e.str("path", d.Path)
	e.str("type", d.Type)
	e.num("major", d.Major)
	e.num("minor", d.Minor)
	if d.FileMode != nil {
		e.num("fileMode", int64(*d.FileMode))
	}
	if d.UID != nil {
		e.num("uid", int64(*d.UID))
	}
	if d.GID != nil {
		e.num("gid", int64(*d.GID))
	}
	e.close()
}

func (e *encoder) seccomp(s *runspec.LinuxSeccomp) {
	e.open()
	e.str("defaultAction", string(s.DefaultAction))
	if s.DefaultErrnoRet != nil {
		e.unum("defaultErrnoRet", uint64(*s.DefaultErrnoRet))
	}
	words(e, "architectures", s.Architectures)
	words(e, "flags", s.Flags)
	e.text("listenerPath", s.ListenerPath)
	e.text("listenerMetadata", s.ListenerMetadata)
	if len(s.Syscalls) > 0 {
		e.name("syscalls")
		list(e, s.Syscalls, func(c *runspec.LinuxSyscall) {
			e.open()
			if len(c.Names) == 0 {
				e.name("names")
				e.b = append(e.b, "[]"...)
			}
			words(e, "names", c.Names)
			e.str("action", string(c.Action))
			if c.ErrnoRet != nil {
				e.unum("errnoRet", uint64(*c.ErrnoRet))
			}
			if len(c.Args) > 0 {
				e.name("args")
				list(e, c.Args, func(a *runspec.LinuxSeccompArg) {
					e.open()
					e.unum("index", uint64(a.Index))
					e.unum("value", a.Value)
					if a.ValueTwo != 0 {
						e.unum("valueTwo", a.ValueTwo)
					}
					e.str("op", string(a.Op))
					e.close()
				})
			}
			e.close()
		})
	}
	e.close()
}

func (e *encoder) ids(name string, maps []runspec.LinuxIDMapping) {
	if len(maps) == 0 {
		return
	}
	e.name(name)
	list(e, maps, func(m *runspec.LinuxIDMapping) {
		e.open()
		e.num("containerID", int64(m.ContainerID))
		e.num("hostID", int64(m.HostID))
		e.num("size", int64(m.Size))
		e.close()
	})
}

func (e *encoder) open()  { e.b = append(e.b, '{') }
func (e *encoder) close() { e.b = append(e.b, '}') }

// name begins a member of an object.
func (e *encoder) name(n string) {
	if e.b[len(e.b)-1] != '{' {
		e.b = append(e.b, ',')
	}
	e.b = append(append(append(e.b, '"'), n...), '"', ':')
}

func (e *encoder) num(n string, v int64) {
	e.name(n)
	e.b = strconv.AppendInt(e.b, v, 10)
}

func (e *encoder) unum(n string, v uint64) {
	e.name(n)
	e.b = strconv.AppendUint(e.b, v, 10)
}

// flag, text, texts and words leave zero values out (omitempty); str writes them.
func (e *encoder) flag(n string, v bool) {
	if v {
		e.name(n)
		e.b = append(e.b, "true"...)
	}
}

func (e *encoder) text(n, v string) {
	if v != "" {
		e.str(n, v)
	}
}

func (e *encoder) str(n, v string) {
	e.name(n)
	e.quote(v)
}

func (e *encoder) texts(n string, m map[string]string) {
	if len(m) == 0 {
		return
	}
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	e.name(n)
	e.open()
	for i, k := range keys {
		if i > 0 {
			e.b = append(e.b, ',')
		}
		e.quote(k)
		e.b = append(e.b, ':')
		e.quote(m[k])
	}
	e.close()
}

func words[S ~string](e *encoder, n string, v []S) {
	if len(v) > 0 {
		e.name(n)
		list(e, v, func(s *S) { e.quote(string(*s)) })
	}
}

func list[T any](e *encoder, v []T, write func(*T)) {
	e.b = append(e.b, '[')
	for i := range v {
		if i > 0 {
			e.b = append(e.b, ',')
		}
		write(&v[i])
	}
	e.b = append(e.b, ']')
}

// quote writes a string. What needs escaping is left to encoding/json.
func (e *encoder) quote(s string) {
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c == '"' || c == '\\' || c >= utf8.RuneSelf {
			b, err := json.Marshal(s)
			if err != nil {
				e.err = err
			}
			e.b = append(e.b, b...)
			return
		}
	}
	e.b = append(append(append(e.b, '"'), s...), '"')
}

func (e *encoder) other(n string, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		e.err = err
		return
	}
	e.name(n)
	e.b = append(e.b, b...)
}
