package launch

import (
	"encoding/json"
	"strconv"
	"time"
	"unicode/utf8"

	runspec "github.com/opencontainers/runtime-spec/specs-go"
)

// encode writes the record as JSON. It is written twice in each container's start, so the usual parts are written
// without reflection (see decoder) and the rare ones by encoding/json.
func (r *record) encode() ([]byte, error) {
	e := &encoder{b: make([]byte, 0, 4096)}
	e.b = append(e.b, '{')
	e.str("ociVersion", r.Version)
	e.str("id", r.ID)
	e.str("status", string(r.Status))
	e.num("pid", uint64(r.Pid))
	e.num("started", r.Started)
	e.str("bundle", r.Bundle)
	e.str("rootfs", r.Rootfs)
	e.name("created")
	e.b = append(e.b, '"')
	e.b = append(r.Created.AppendFormat(e.b, time.RFC3339Nano), '"')
	e.num("owner", uint64(r.Owner))
	e.str("cgroup", r.Cgroup)
	e.str("scope", r.Scope)
	e.str("manager", r.Manager)
	e.boolean("terminal", r.Terminal)
	e.boolean("noNewKeyring", r.NoKeyring)
	if len(r.Namespaces) > 0 {
		e.name("namespaces")
		e.b = append(e.b, '[')
		for i, n := range r.Namespaces {
			if i > 0 {
				e.b = append(e.b, ',')
			}
			e.b = append(e.b, '{')
			e.str("type", string(n.Type))
			e.str("path", n.Path)
			e.b = append(e.b, '}')
		}
		e.b = append(e.b, ']')
	}
	if len(r.Annotations) > 0 {
		e.other("annotations", r.Annotations)
	}
	if r.Hooks != nil {
		e.other("hooks", r.Hooks)
	}
	if p := r.Process; p != nil {
		e.name("process")
		e.process(p)
	}
	if r.Linux != nil {
		e.other("linux", r.Linux)
	}
	if r.RDT != nil {
		e.other("rdt", r.RDT)
	}
	e.num("filterFlags", uint64(r.Flags))
	e.strs("steps", r.Steps)
	e.num("firstStep", uint64(r.FirstStep))
	e.b = append(e.b, '}', '\n')
	return e.b, e.err
}

type encoder struct {
	b   []byte
	err error
}

func (e *encoder) process(p *runspec.Process) {
	e.b = append(e.b, '{')
	e.boolean("terminal", p.Terminal)
	e.name("user")
	e.b = append(e.b, '{')
	e.num("uid", uint64(p.User.UID))
	e.num("gid", uint64(p.User.GID))
	if u := p.User.Umask; u != nil {
		e.name("umask")
		e.b = strconv.AppendUint(e.b, uint64(*u), 10)
	}
	if len(p.User.AdditionalGids) > 0 {
		e.other("additionalGids", p.User.AdditionalGids)
	}
	e.b = append(e.b, '}')
	e.strs("args", p.Args)
	e.strs("env", p.Env)
	e.str("cwd", p.Cwd)
	if c := p.Capabilities; c != nil {
		e.name("capabilities")
		e.b = append(e.b, '{')
		e.strs("bounding", c.Bounding)
		e.strs("effective", c.Effective)
		e.strs("inheritable", c.Inheritable)
		e.strs("permitted", c.Permitted)
		e.strs("ambient", c.Ambient)
		e.b = append(e.b, '}')
	}
	if len(p.Rlimits) > 0 {
		e.name("rlimits")
		e.b = append(e.b, '[')
		for i, l := range p.Rlimits {
			if i > 0 {
				e.b = append(e.b, ',')
			}
			e.b = append(e.b, '{')
			e.str("type", l.Type)
			e.num("hard", l.Hard)
			e.num("soft", l.Soft)
			e.b = append(e.b, '}')
		}
		e.b = append(e.b, ']')
	}
	e.boolean("noNewPrivileges", p.NoNewPrivileges)
	e.str("apparmorProfile", p.ApparmorProfile)
	if n := p.OOMScoreAdj; n != nil {
		e.name("oomScoreAdj")
		e.b = strconv.AppendInt(e.b, int64(*n), 10)
	}
	if p.Scheduler != nil {
		e.other("scheduler", p.Scheduler)
	}
	e.str("selinuxLabel", p.SelinuxLabel)
	if p.IOPriority != nil {
		e.other("ioPriority", p.IOPriority)
	}
	if p.ExecCPUAffinity != nil {
		e.other("execCPUAffinity", p.ExecCPUAffinity)
	}
	e.b = append(e.b, '}')
}

// name begins a member. Zero values are left out by the callers below.
func (e *encoder) name(n string) {
	if c := e.b[len(e.b)-1]; c != '{' {
		e.b = append(e.b, ',')
	}
	e.b = append(append(append(e.b, '"'), n...), '"', ':')
}

func (e *encoder) num(n string, v uint64) {
	if v != 0 {
		e.name(n)
		e.b = strconv.AppendUint(e.b, v, 10)
	}
}

func (e *encoder) boolean(n string, v bool) {
	if v {
		e.name(n)
		e.b = append(e.b, "true"...)
	}
}

func (e *encoder) str(n, v string) {
	if v != "" {
		e.name(n)
		e.text(v)
	}
}

func (e *encoder) strs(n string, v []string) {
	if len(v) == 0 {
		return
	}
	e.name(n)
	e.b = append(e.b, '[')
	for i, s := range v {
		if i > 0 {
			e.b = append(e.b, ',')
		}
		e.text(s)
	}
	e.b = append(e.b, ']')
}

func (e *encoder) text(s string) {
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
