package launch

//lint:file-ignore SA1019 the deprecated limits are still part of a bundle

import (
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/onggi/onggi/errdefs"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
)

// decoder reads the JSON of a spec without reflection: encoding/json spends half a millisecond on learning the types
// before it reads the first byte, in a command that lives for five. It takes what encoding/json takes, but for the
// case of names, which must be exact; rare parts of a spec are handed to encoding/json. The fuzz test compares the two.
type decoder struct {
	s     string
	i     int
	depth int
	err   string // the first problem; reading goes on with zero values and ends soon
	at    string // the field that it is in, as far as it is known: put together on the way out
}

const maxDepth = 1000

func decodeSpec(b []byte) (*runspec.Spec, error) {
	d := &decoder{s: string(b)}
	s := &runspec.Spec{}
	d.spec(s)
	return s, d.end()
}

func decodeProcess(b []byte) (*runspec.Process, error) {
	d := &decoder{s: string(b)}
	p := &runspec.Process{}
	d.process(p)
	return p, d.end()
}

func (d *decoder) end() error {
	if d.err == "" && d.peek() != 0 {
		d.fail("something follows the value")
	}
	if d.err != "" {
		if at := strings.TrimPrefix(d.at, "."); at != "" {
			d.err += " (" + at + ")"
		}
		return &errdefs.Error{Kind: errdefs.InvalidArgument, Why: d.err}
	}
	return nil
}

func (d *decoder) fail(why string) {
	if d.err == "" {
		line := 1 + strings.Count(d.s[:min(d.i, len(d.s))], "\n")
		d.err = "invalid JSON in line " + strconv.Itoa(line) + ": " + why
	}
	d.i = len(d.s)
}

// peek skips white space and returns the next byte, 0 at the end.
func (d *decoder) peek() byte {
	for d.i < len(d.s) {
		switch c := d.s[d.i]; c {
		case ' ', '\t', '\n', '\r':
			d.i++
		case 0:
			d.fail("a NUL byte")
			return 0
		default:
			return c
		}
	}
	return 0
}

func (d *decoder) expect(c byte) bool {
	if d.peek() != c {
		d.fail("expected " + strconv.QuoteRune(rune(c)))
		return false
	}
	d.i++
	return true
}

func (d *decoder) word(w string) bool {
	if strings.HasPrefix(d.s[d.i:], w) {
		d.i += len(w)
		return true
	}
	return false
}

// null takes a null, which leaves a value alone.
func (d *decoder) null() bool { return d.peek() == 'n' && d.word("null") }

func (d *decoder) enter() bool {
	if d.depth++; d.depth > maxDepth {
		d.fail("it is nested too deep")
		return false
	}
	return true
}

// object calls f for each name; f must take the value.
func (d *decoder) object(f func(name string)) {
	if d.null() || !d.enter() || !d.expect('{') {
		return
	}
	defer func() { d.depth-- }()
	if d.peek() == '}' {
		d.i++
		return
	}
	for d.err == "" {
		if d.peek() != '"' {
			d.fail("expected a name")
			return
		}
		name := d.str()
		if !d.expect(':') {
			return
		}
		if f(name); d.err != "" {
			d.at = "." + name + d.at
			return
		}
		if d.peek() == ',' {
			d.i++
			continue
		}
		d.expect('}')
		return
	}
}

// array calls f for each element; f must take it. present is false for null.
func (d *decoder) array(f func()) (present bool) {
	if d.null() || !d.enter() || !d.expect('[') {
		return false
	}
	defer func() { d.depth-- }()
	if d.peek() == ']' {
		d.i++
		return true
	}
	for i := 0; d.err == ""; i++ {
		if f(); d.err != "" {
			d.at = "[" + strconv.Itoa(i) + "]" + d.at
			break
		}
		if d.peek() == ',' {
			d.i++
			continue
		}
		d.expect(']')
		break
	}
	return true
}

// str takes a string (or null, as "").
func (d *decoder) str() string {
	if d.null() || !d.expect('"') {
		return ""
	}
	start := d.i
	for d.i < len(d.s) {
		switch c := d.s[d.i]; {
		case c == '"':
			d.i++
			return d.s[start : d.i-1]
		case c == '\\' || c >= utf8.RuneSelf:
			return d.hard(start)
		case c < 0x20:
			d.fail("a control character in a string")
			return ""
		}
		d.i++
	}
	d.fail("a string does not end")
	return ""
}

// hard finishes a string with escapes or bytes that may not be UTF-8: encoding/json knows how.
func (d *decoder) hard(start int) string {
	for d.i < len(d.s) && d.s[d.i] != '"' {
		if d.s[d.i] == '\\' {
			d.i++
		}
		d.i++
	}
	if d.i >= len(d.s) {
		d.fail("a string does not end")
		return ""
	}
	d.i++
	var out string
	if err := json.Unmarshal([]byte(d.s[start-1:d.i]), &out); err != nil {
		d.fail(err.Error())
	}
	return out
}

func (d *decoder) boolean() bool {
	switch d.peek() {
	case 't':
		if d.word("true") {
			return true
		}
	case 'f':
		if d.word("false") {
			return false
		}
	case 'n':
		if d.word("null") {
			return false
		}
	}
	d.fail("expected true or false")
	return false
}

func (d *decoder) number() string {
	c := d.peek()
	start := d.i
	if c == '-' {
		d.i++
	}
	digits := d.i
	for d.i < len(d.s) && d.s[d.i] >= '0' && d.s[d.i] <= '9' {
		d.i++
	}
	if d.i == digits || d.s[digits] == '0' && d.i > digits+1 || d.i < len(d.s) && strings.IndexByte(".eE", d.s[d.i]) >= 0 {
		d.fail("expected an integer")
		return "0"
	}
	return d.s[start:d.i]
}

func (d *decoder) integer(bits int) int64 {
	if d.null() {
		return 0
	}
	n, err := strconv.ParseInt(d.number(), 10, bits)
	if err != nil {
		d.fail("a number is out of range")
	}
	return n
}

func (d *decoder) unsigned(bits int) uint64 {
	if d.null() {
		return 0
	}
	n, err := strconv.ParseUint(d.number(), 10, bits)
	if err != nil {
		d.fail("a number is out of range")
	}
	return n
}

// skip takes any value.
func (d *decoder) skip() {
	switch c := d.peek(); {
	case c == '{':
		d.object(func(string) { d.skip() })
	case c == '[':
		d.array(d.skip)
	case c == '"':
		d.str()
	case c == 't' && d.word("true"), c == 'f' && d.word("false"), c == 'n' && d.word("null"):
	case c == '-' || c >= '0' && c <= '9':
		start := d.i
		for d.i < len(d.s) && strings.IndexByte("+-.eE0123456789", d.s[d.i]) >= 0 {
			d.i++
		}
		if !json.Valid([]byte(d.s[start:d.i])) {
			d.fail("a malformed number")
		}
	default:
		d.fail("expected a value")
	}
}

// other hands the value to encoding/json: parts that few specs have.
func (d *decoder) other(v any) {
	d.peek()
	start := d.i
	d.skip()
	if d.err == "" {
		err := json.Unmarshal([]byte(d.s[start:d.i]), v)
		var wrong *json.UnmarshalTypeError
		switch {
		case errors.As(err, &wrong):
			d.i = start
			d.fail("expected " + kindName(wrong.Type.Kind()) + ", not " + wrong.Value)
			if wrong.Field != "" {
				d.at = "." + wrong.Field
			}
		case err != nil:
			d.fail(err.Error())
		}
	}
}

// kindName is what a Go type is in JSON.
func kindName(k reflect.Kind) string {
	switch k {
	case reflect.Struct, reflect.Map, reflect.Pointer:
		return "an object"
	case reflect.Slice, reflect.Array:
		return "an array"
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	}
	return "a number"
}

func (d *decoder) strs(p *[]string) {
	out := make([]string, 0, 8)
	if d.array(func() { out = append(out, d.str()) }) {
		*p = out
	} else {
		*p = nil
	}
}

func list[T any](d *decoder, p *[]T, f func(*T)) {
	out := []T{}
	if d.array(func() {
		var zero T
		out = append(out, zero)
		f(&out[len(out)-1])
	}) {
		*p = out
	} else {
		*p = nil
	}
}

// pointer makes the value for an optional field; null makes it absent.
func pointer[T any](d *decoder, p **T, f func(*T)) {
	if d.null() {
		*p = nil
		return
	}
	if *p == nil {
		*p = new(T)
	}
	f(*p)
}

func (d *decoder) strMap(p *map[string]string) {
	if d.null() {
		*p = nil
		return
	}
	m := map[string]string{}
	d.object(func(k string) { m[k] = d.str() })
	*p = m
}

func (d *decoder) spec(s *runspec.Spec) {
	d.object(func(name string) {
		switch name {
		case "ociVersion":
			s.Version = d.str()
		case "process":
			pointer(d, &s.Process, d.process)
		case "root":
			pointer(d, &s.Root, func(r *runspec.Root) {
				d.object(func(name string) {
					switch name {
					case "path":
						r.Path = d.str()
					case "readonly":
						r.Readonly = d.boolean()
					default:
						d.skip()
					}
				})
			})
		case "hostname":
			s.Hostname = d.str()
		case "domainname":
			s.Domainname = d.str()
		case "mounts":
			list(d, &s.Mounts, d.mount)
		case "hooks":
			d.other(&s.Hooks)
		case "annotations":
			d.strMap(&s.Annotations)
		case "linux":
			pointer(d, &s.Linux, d.linux)
		case "solaris":
			d.other(&s.Solaris)
		case "windows":
			d.other(&s.Windows)
		case "vm":
			d.other(&s.VM)
		case "zos":
			d.other(&s.ZOS)
		case "freebsd":
			d.other(&s.FreeBSD)
		default: // "MUST ignore unknown properties" (config.md, Extensibility)
			d.skip()
		}
	})
}

func (d *decoder) process(p *runspec.Process) {
	d.object(func(name string) {
		switch name {
		case "terminal":
			p.Terminal = d.boolean()
		case "consoleSize":
			d.other(&p.ConsoleSize)
		case "user":
			d.user(&p.User)
		case "args":
			d.strs(&p.Args)
		case "commandLine":
			p.CommandLine = d.str()
		case "env":
			d.strs(&p.Env)
		case "cwd":
			p.Cwd = d.str()
		case "capabilities":
			pointer(d, &p.Capabilities, func(c *runspec.LinuxCapabilities) {
				d.object(func(name string) {
					switch name {
					case "bounding":
						d.strs(&c.Bounding)
					case "effective":
						d.strs(&c.Effective)
					case "inheritable":
						d.strs(&c.Inheritable)
					case "permitted":
						d.strs(&c.Permitted)
					case "ambient":
						d.strs(&c.Ambient)
					default:
						d.skip()
					}
				})
			})
		case "rlimits":
			list(d, &p.Rlimits, func(r *runspec.POSIXRlimit) {
				d.object(func(name string) {
					switch name {
					case "type":
						r.Type = d.str()
					case "hard":
						r.Hard = d.unsigned(64)
					case "soft":
						r.Soft = d.unsigned(64)
					default:
						d.skip()
					}
				})
			})
		case "noNewPrivileges":
			p.NoNewPrivileges = d.boolean()
		case "apparmorProfile":
			p.ApparmorProfile = d.str()
		case "oomScoreAdj":
			pointer(d, &p.OOMScoreAdj, func(n *int) { *n = int(d.integer(64)) })
		case "scheduler":
			d.other(&p.Scheduler)
		case "selinuxLabel":
			p.SelinuxLabel = d.str()
		case "ioPriority":
			d.other(&p.IOPriority)
		case "execCPUAffinity":
			d.other(&p.ExecCPUAffinity)
		default:
			d.skip()
		}
	})
}

func (d *decoder) user(u *runspec.User) {
	d.object(func(name string) {
		switch name {
		case "uid":
			u.UID = uint32(d.unsigned(32))
		case "gid":
			u.GID = uint32(d.unsigned(32))
		case "umask":
			pointer(d, &u.Umask, func(n *uint32) { *n = uint32(d.unsigned(32)) })
		case "additionalGids":
			list(d, &u.AdditionalGids, func(n *uint32) { *n = uint32(d.unsigned(32)) })
		case "username":
			u.Username = d.str()
		default:
			d.skip()
		}
	})
}

func (d *decoder) mount(m *runspec.Mount) {
	d.object(func(name string) {
		switch name {
		case "destination":
			m.Destination = d.str()
		case "type":
			m.Type = d.str()
		case "source":
			m.Source = d.str()
		case "options":
			d.strs(&m.Options)
		case "uidMappings":
			d.other(&m.UIDMappings)
		case "gidMappings":
			d.other(&m.GIDMappings)
		default:
			d.skip()
		}
	})
}

func (d *decoder) linux(l *runspec.Linux) {
	d.object(func(name string) {
		switch name {
		case "uidMappings":
			d.other(&l.UIDMappings)
		case "gidMappings":
			d.other(&l.GIDMappings)
		case "sysctl":
			d.strMap(&l.Sysctl)
		case "resources":
			pointer(d, &l.Resources, d.resources)
		case "cgroupsPath":
			l.CgroupsPath = d.str()
		case "namespaces":
			list(d, &l.Namespaces, func(n *runspec.LinuxNamespace) {
				d.object(func(name string) {
					switch name {
					case "type":
						n.Type = runspec.LinuxNamespaceType(d.str())
					case "path":
						n.Path = d.str()
					default:
						d.skip()
					}
				})
			})
		case "devices":
			d.devices(&l.Devices)
		case "netDevices":
			d.other(&l.NetDevices)
		case "seccomp":
			pointer(d, &l.Seccomp, d.seccomp)
		case "rootfsPropagation":
			l.RootfsPropagation = d.str()
		case "maskedPaths":
			d.strs(&l.MaskedPaths)
		case "readonlyPaths":
			d.strs(&l.ReadonlyPaths)
		case "mountLabel":
			l.MountLabel = d.str()
		case "intelRdt":
			d.other(&l.IntelRdt)
		case "memoryPolicy":
			d.other(&l.MemoryPolicy)
		case "personality":
			d.other(&l.Personality)
		case "timeOffsets":
			d.other(&l.TimeOffsets)
		default:
			d.skip()
		}
	})
}

// devices are few in most specs and all of the host's in a privileged one: then they are worth their own code.
func (d *decoder) devices(p *[]runspec.LinuxDevice) {
	list(d, p, func(v *runspec.LinuxDevice) {
		d.object(func(name string) {
			switch name {
			case "path":
				v.Path = d.str()
			case "type":
				v.Type = d.str()
			case "major":
				v.Major = d.integer(64)
			case "minor":
				v.Minor = d.integer(64)
			case "fileMode":
				pointer(d, &v.FileMode, func(m *os.FileMode) { *m = os.FileMode(d.unsigned(32)) })
			case "uid":
				pointer(d, &v.UID, func(n *uint32) { *n = uint32(d.unsigned(32)) })
			case "gid":
				pointer(d, &v.GID, func(n *uint32) { *n = uint32(d.unsigned(32)) })
			default:
				d.skip()
			}
		})
	})
}

func (d *decoder) resources(r *runspec.LinuxResources) {
	d.object(func(name string) {
		switch name {
		case "devices":
			list(d, &r.Devices, func(v *runspec.LinuxDeviceCgroup) {
				d.object(func(name string) {
					switch name {
					case "allow":
						v.Allow = d.boolean()
					case "type":
						v.Type = d.str()
					case "major":
						pointer(d, &v.Major, func(n *int64) { *n = d.integer(64) })
					case "minor":
						pointer(d, &v.Minor, func(n *int64) { *n = d.integer(64) })
					case "access":
						v.Access = d.str()
					default:
						d.skip()
					}
				})
			})
		case "memory":
			pointer(d, &r.Memory, d.memory)
		case "cpu":
			pointer(d, &r.CPU, d.cpu)
		case "pids":
			d.other(&r.Pids)
		case "blockIO":
			if d.emptyObject() {
				r.BlockIO = &runspec.LinuxBlockIO{}
				return
			}
			d.other(&r.BlockIO)
		case "hugepageLimits":
			d.other(&r.HugepageLimits)
		case "network":
			d.other(&r.Network)
		case "rdma":
			d.other(&r.Rdma)
		case "unified":
			d.strMap(&r.Unified)
		default:
			d.skip()
		}
	})
}

// emptyObject takes "{}", which docker writes for what is not set.
func (d *decoder) emptyObject() bool {
	d.peek()
	return d.word("{}")
}

func (d *decoder) memory(m *runspec.LinuxMemory) {
	number := func(p **int64) { pointer(d, p, func(n *int64) { *n = d.integer(64) }) }
	flag := func(p **bool) { pointer(d, p, func(b *bool) { *b = d.boolean() }) }
	d.object(func(name string) {
		switch name {
		case "limit":
			number(&m.Limit)
		case "reservation":
			number(&m.Reservation)
		case "swap":
			number(&m.Swap)
		case "kernel":
			number(&m.Kernel) //nolint:staticcheck // deprecated and in use
		case "kernelTCP":
			number(&m.KernelTCP)
		case "swappiness":
			pointer(d, &m.Swappiness, func(n *uint64) { *n = d.unsigned(64) })
		case "disableOOMKiller":
			flag(&m.DisableOOMKiller)
		case "useHierarchy":
			flag(&m.UseHierarchy)
		case "checkBeforeUpdate":
			flag(&m.CheckBeforeUpdate)
		default:
			d.skip()
		}
	})
}

func (d *decoder) cpu(c *runspec.LinuxCPU) {
	unsigned := func(p **uint64) { pointer(d, p, func(n *uint64) { *n = d.unsigned(64) }) }
	signed := func(p **int64) { pointer(d, p, func(n *int64) { *n = d.integer(64) }) }
	d.object(func(name string) {
		switch name {
		case "shares":
			unsigned(&c.Shares)
		case "quota":
			signed(&c.Quota)
		case "burst":
			unsigned(&c.Burst)
		case "period":
			unsigned(&c.Period)
		case "realtimeRuntime":
			signed(&c.RealtimeRuntime)
		case "realtimePeriod":
			unsigned(&c.RealtimePeriod)
		case "cpus":
			c.Cpus = d.str()
		case "mems":
			c.Mems = d.str()
		case "idle":
			signed(&c.Idle)
		default:
			d.skip()
		}
	})
}

func (d *decoder) seccomp(s *runspec.LinuxSeccomp) {
	d.object(func(name string) {
		switch name {
		case "defaultAction":
			s.DefaultAction = runspec.LinuxSeccompAction(d.str())
		case "defaultErrnoRet":
			pointer(d, &s.DefaultErrnoRet, func(n *uint) { *n = uint(d.unsigned(64)) })
		case "architectures":
			list(d, &s.Architectures, func(a *runspec.Arch) { *a = runspec.Arch(d.str()) })
		case "flags":
			list(d, &s.Flags, func(f *runspec.LinuxSeccompFlag) { *f = runspec.LinuxSeccompFlag(d.str()) })
		case "listenerPath":
			s.ListenerPath = d.str()
		case "listenerMetadata":
			s.ListenerMetadata = d.str()
		case "syscalls":
			list(d, &s.Syscalls, func(c *runspec.LinuxSyscall) {
				d.object(func(name string) {
					switch name {
					case "names":
						d.strs(&c.Names)
					case "action":
						c.Action = runspec.LinuxSeccompAction(d.str())
					case "errnoRet":
						pointer(d, &c.ErrnoRet, func(n *uint) { *n = uint(d.unsigned(64)) })
					case "args":
						list(d, &c.Args, d.seccompArg)
					default:
						d.skip()
					}
				})
			})
		default:
			d.skip()
		}
	})
}

func (d *decoder) seccompArg(a *runspec.LinuxSeccompArg) {
	d.object(func(name string) {
		switch name {
		case "index":
			a.Index = uint(d.unsigned(64))
		case "value":
			a.Value = d.unsigned(64)
		case "valueTwo":
			a.ValueTwo = d.unsigned(64)
		case "op":
			a.Op = runspec.LinuxSeccompOperator(d.str())
		default:
			d.skip()
		}
	})
}

// decodeRecord reads what record.write wrote.
func decodeRecord(b []byte) (*record, error) {
	d := &decoder{s: string(b)}
	r := &record{}
	d.object(func(name string) {
		switch name {
		case "ociVersion":
			r.Version = d.str()
		case "id":
			r.ID = d.str()
		case "status":
			r.Status = runspec.ContainerState(d.str())
		case "pid":
			r.Pid = int(d.integer(32))
		case "started":
			r.Started = d.unsigned(64)
		case "bundle":
			r.Bundle = d.str()
		case "rootfs":
			r.Rootfs = d.str()
		case "created":
			t, err := time.Parse(time.RFC3339Nano, d.str())
			if err != nil {
				d.fail(err.Error())
			}
			r.Created = t
		case "owner":
			r.Owner = int(d.integer(64))
		case "cgroup":
			r.Cgroup = d.str()
		case "scope":
			r.Scope = d.str()
		case "manager":
			r.Manager = d.str()
		case "terminal":
			r.Terminal = d.boolean()
		case "noNewKeyring":
			r.NoKeyring = d.boolean()
		case "namespaces":
			l := runspec.Linux{}
			list(d, &l.Namespaces, func(n *runspec.LinuxNamespace) {
				d.object(func(name string) {
					switch name {
					case "type":
						n.Type = runspec.LinuxNamespaceType(d.str())
					case "path":
						n.Path = d.str()
					default:
						d.skip()
					}
				})
			})
			r.Namespaces = l.Namespaces
		case "annotations":
			d.strMap(&r.Annotations)
		case "hooks":
			d.other(&r.Hooks)
		case "process":
			pointer(d, &r.Process, d.process)
		case "linux":
			pointer(d, &r.Linux, d.linux)
		case "rdt":
			d.other(&r.RDT)
		case "filterFlags":
			r.Flags = uint32(d.unsigned(32))
		case "steps":
			d.strs(&r.Steps)
		case "firstStep":
			r.FirstStep = int(d.integer(32))
		default:
			d.skip()
		}
	})
	return r, d.end()
}
