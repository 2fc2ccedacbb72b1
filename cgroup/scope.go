package cgroup

import (
	"bytes"
	"math"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	runspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/systemd"
)

// Scope is a transient unit of systemd's in which a container's group lies: the driver "systemd". systemd makes the
// directories of the hierarchies that it uses and keeps the limits that it knows, so that it writes the same ones
// whenever it writes them anew (systemctl daemon-reload); the rest is done in the files, as without it (Delegate=yes).
type Scope struct {
	Unit  string // "libpod-ID.scope"
	Slice string // "machine.slice"
	// Runtime is the runtime directory of the user whose manager has the scope ("/run/user/1000"); empty is the system's.
	Runtime string
	// Properties are settings of the unit beside those of the limits, from the annotations org.systemd.property.*.
	Properties []systemd.Property

	m *systemd.Manager
}

// ParseScope reads linux.cgroupsPath as runtimes with systemd's driver do: "slice:prefix:name". The unit is
// "prefix-name.scope", or "name.scope" without a prefix. An empty slice is system.slice, or user.slice for a user's
// manager; an empty path is the scope "onggi-ID.scope" there. Errors: InvalidArgument.
func ParseScope(path, id, runtime string) (*Scope, error) {
	bad := func(why string) (*Scope, error) {
		return nil, &errdefs.Error{
			Op: "use control group path", What: strconv.Quote(path), Kind: errdefs.InvalidArgument, Why: why,
			Fix: `with systemd's driver set linux.cgroupsPath to "SLICE:PREFIX:NAME", like "system.slice:onggi:ID"`,
		}
	}
	slice, prefix, name := "", "onggi", id
	if path != "" {
		parts := strings.Split(path, ":")
		if len(parts) != 3 {
			return bad("it is not of three parts with colons between them")
		}
		slice, prefix, name = parts[0], parts[1], parts[2]
	}
	if slice == "" {
		if slice = "system.slice"; runtime != "" {
			slice = "user.slice"
		}
	}
	if _, ok := slicePath(slice); !ok {
		return bad(strconv.Quote(slice) + " is not the name of a slice")
	}
	switch {
	case name == "":
		return bad("the name is empty")
	case strings.HasSuffix(name, ".slice"):
		return bad("a container cannot be a slice: it would have no process of its own")
	}
	unit := name
	if prefix != "" {
		unit = prefix + "-" + name
	}
	if unit = unitName(unit) + ".scope"; len(unit) > 255 {
		return bad("the unit's name is longer than 255 bytes")
	}
	return &Scope{Unit: unit, Slice: slice, Runtime: runtime}, nil
}

// unitName escapes what a unit's name cannot hold, as systemd-escape(1) does.
func unitName(s string) string {
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte(`:_.-\@`, c) >= 0 {
			b.WriteByte(c)
			continue
		}
		const hex = "0123456789abcdef"
		b.WriteString(`\x`)
		b.WriteByte(hex[c>>4])
		b.WriteByte(hex[c&15])
	}
	return b.String()
}

// slicePath is the directory of a slice: "a-b.slice" lies in "a.slice" (systemd.slice(5)).
func slicePath(slice string) (string, bool) {
	name, ok := strings.CutSuffix(slice, ".slice")
	switch {
	case !ok || name == "" || strings.ContainsAny(name, "/\x00\n") || len(slice) > 255:
		return "", false
	case name == "-":
		return "", true
	case strings.HasPrefix(name, "-") || strings.HasSuffix(name, "-") || strings.Contains(name, "--"):
		return "", false
	}
	var b strings.Builder
	for i := 0; i <= len(name); i++ {
		if i == len(name) || name[i] == '-' {
			b.WriteString("/" + name[:i] + ".slice")
		}
	}
	return b.String(), true
}

func (s *Scope) manager() (*systemd.Manager, error) {
	if s.m == nil {
		m, err := systemd.Dial(s.Runtime)
		if err != nil {
			return nil, err
		}
		s.m = m
	}
	return s.m, nil
}

// Path is where the scope's group will be, below the manager's own. Errors: Unavailable when there is no manager.
func (s *Scope) Path() (string, error) {
	m, err := s.manager()
	if err != nil {
		return "", err
	}
	root, err := m.ControlGroup()
	if err != nil {
		return "", err
	}
	slice, _ := slicePath(s.Slice)
	return strings.TrimSuffix(root, "/") + slice + "/" + s.Unit, nil
}

// Close closes the connection to the manager. The scope stays as it is.
func (s *Scope) Close() {
	s.m.Close()
	s.m = nil
}

// CreateScope has systemd make the scope around the process pid with the limits r, then sets the rest of r in the files.
// On failure the scope is stopped, which ends the process. Errors: AlreadyExists for a scope that runs, and those of
// Apply.
func CreateScope(l *Layout, s *Scope, pid int, r *runspec.LinuxResources) (g *Group, err error) {
	path, err := s.Path()
	if err != nil {
		return nil, err
	}
	m, err := s.manager()
	if err != nil {
		return nil, err
	}
	list := []systemd.Property{
		systemd.String("Description", "container "+strings.TrimSuffix(s.Unit, ".scope")), systemd.String("Slice", s.Slice),
		systemd.Pids("PIDs", pid), systemd.Bool("Delegate", true), systemd.Bool("DefaultDependencies", false),
		// A scope whose processes were killed by the kernel is "failed" and would keep its name for ever.
		systemd.String("CollectMode", "inactive-or-failed"),
		systemd.Bool("MemoryAccounting", true), systemd.Bool("CPUAccounting", true), systemd.Bool("TasksAccounting", true),
	}
	if l.V2 {
		list = append(list, systemd.Bool("IOAccounting", true))
	} else {
		list = append(list, systemd.Bool("BlockIOAccounting", true))
	}
	limits, err := scopeLimits(r, l.V2, m.Version())
	if err != nil {
		return nil, err
	}
	list = append(list, limits...)
	list = append(list, s.Properties...) // the user's own come last: systemd takes the later one
	if err := m.Start(s.Unit, list); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = s.Stop()
			_ = g.Remove()
			_ = g.Close()
			g = nil
		}
	}()
	g = &Group{l: l, path: path, dirs: make([]dir, len(l.hierarchies)), scope: s}
	for i := range l.hierarchies {
		h := &l.hierarchies[i]
		d := &g.dirs[i]
		*d = dir{h: h, fd: -1}
		rel, err := h.place(path)
		if err != nil {
			d.why = err
			continue
		}
		d.path = h.mount + rel
		if d.fd, err = unix.Open(d.path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err == nil {
			continue // systemd has made it
		}
		d.fd = -1
		if h.v2 && l.V2 {
			return g, &errdefs.Error{Op: "find the control group of", What: s.Unit, Err: err, Why: d.path}
		}
		if _, err := d.create(); err != nil {
			d.close()
			if !unwritable(err) {
				return g, err
			}
			d.why = err
		}
	}
	return g, g.applyFiles(r)
}

// OpenScope is Open for a group that lies in a scope. When the group's directories are gone the scope may be there still,
// or be queued to go: then the error is NotFound, and Scope.Stop makes sure of it.
func OpenScope(l *Layout, s *Scope, path string) (*Group, error) {
	g, err := Open(l, path)
	if err != nil {
		return nil, err
	}
	g.scope = s
	return g, nil
}

// Stop ends the scope and whatever is in it. One that is not there is no error, nor is a manager that does not answer:
// what systemd does not stop is removed as directories are.
func (s *Scope) Stop() error {
	m, err := s.manager()
	if err != nil {
		return nil //nolint:nilerr // see above
	}
	_ = m.Kill(s.Unit) // a process that waits for its start would sit out SIGTERM, and systemd a minute and a half
	return m.Stop(s.Unit)
}

// Attach has systemd move a process into the group's scope, which the caller may not do itself without root when the process
// is not below the user's own groups. Unsupported without a scope.
func (g *Group) Attach(pid int) error {
	if g.scope == nil {
		return &errdefs.Error{Op: "move a process into", What: g.path, Kind: errdefs.Unsupported, Why: "systemd has not made this control group"}
	}
	m, err := g.scope.manager()
	if err != nil {
		return err
	}
	return m.Attach(g.scope.Unit, pid)
}

// set changes the limits that systemd keeps.
func (s *Scope) set(l *Layout, r *runspec.LinuxResources) error {
	m, err := s.manager()
	if err != nil {
		return err
	}
	list, err := scopeLimits(r, l.V2, m.Version())
	if err != nil {
		return err
	}
	return m.Set(s.Unit, list)
}

const noLimit = math.MaxUint64

func limitOf(n int64) uint64 {
	if n < 0 {
		return noLimit
	}
	return uint64(n)
}

// scopeLimits are the limits that systemd of that version knows, as properties (systemd.resource-control(5)). Values that
// are out of range are left to the files, which refuse them by name.
//
// The device rules are told on v1 only, where systemd would else open everything with its next write. On v2 systemd
// without a rule does nothing and leaves our program alone; with one it would have its own, made of what it understands
// of the rules, and deny a device that was given later.
func scopeLimits(r *runspec.LinuxResources, v2 bool, version int) (list []systemd.Property, err error) {
	if r == nil {
		return nil, nil
	}
	add := func(p systemd.Property) { list = append(list, p) }
	if m := r.Memory; m != nil {
		switch {
		case isSet(m.Limit) && v2:
			add(systemd.Uint64("MemoryMax", limitOf(*m.Limit)))
		case isSet(m.Limit):
			add(systemd.Uint64("MemoryLimit", limitOf(*m.Limit)))
		}
		if isSet(m.Reservation) && v2 {
			add(systemd.Uint64("MemoryLow", limitOf(*m.Reservation)))
		}
		if v2 {
			switch {
			case isSet(m.Swap) && *m.Swap == -1, !isSet(m.Swap) && isSet(m.Limit) && *m.Limit == -1:
				add(systemd.Uint64("MemorySwapMax", noLimit))
			case isSet(m.Swap) && isSet(m.Limit) && *m.Limit > 0 && *m.Swap >= *m.Limit:
				add(systemd.Uint64("MemorySwapMax", uint64(*m.Swap-*m.Limit)))
			}
		}
	}
	if c := r.CPU; c != nil {
		if isSet(c.Shares) && *c.Shares >= 2 && *c.Shares <= 262144 {
			if v2 {
				add(systemd.Uint64("CPUWeight", sharesToWeight(*c.Shares)))
			} else {
				add(systemd.Uint64("CPUShares", *c.Shares))
			}
		}
		if v2 && c.Idle != nil && *c.Idle == 1 && version >= 252 {
			add(systemd.Uint64("CPUWeight", 0)) // "idle"
		}
		if isSet(c.Period) && version >= 242 {
			add(systemd.Uint64("CPUQuotaPeriodUSec", *c.Period))
		}
		if isSet(c.Quota) {
			period := uint64(100000)
			if isSet(c.Period) {
				period = *c.Period
			}
			add(systemd.Uint64("CPUQuotaPerSecUSec", quotaPerSec(*c.Quota, period)))
		}
		for _, s := range [...]struct{ field, value, property string }{{"cpu.cpus", c.Cpus, "AllowedCPUs"}, {"cpu.mems", c.Mems, "AllowedMemoryNodes"}} {
			if s.value == "" || !v2 || version < 244 {
				continue
			}
			set, err := parseList(s.value)
			if err != nil {
				return nil, invalid(s.field, err.Error())
			}
			add(systemd.Bytes(s.property, set.bytes()))
		}
	}
	if r.Pids != nil && r.Pids.Limit != nil {
		n := limitOf(*r.Pids.Limit)
		if n == 0 {
			n = 1
		}
		add(systemd.Uint64("TasksMax", n))
	}
	if b := r.BlockIO; b != nil && b.Weight != nil && *b.Weight >= 10 && *b.Weight <= 1000 {
		if v2 {
			add(systemd.Uint64("IOWeight", 1+(uint64(*b.Weight)-10)*9999/990))
		} else {
			add(systemd.Uint64("BlockIOWeight", uint64(*b.Weight)))
		}
	}
	if len(r.Devices) > 0 && !v2 {
		rules, err := parseDevices(r.Devices)
		if err != nil {
			return nil, err
		}
		list = append(list, scopeDevices(rules)...)
	}
	if v2 {
		list = append(list, scopeUnified(r.Unified, version)...)
	}
	return list, nil
}

// quotaPerSec is CPU time per second in µs, rounded up to the 10 ms that systemd rounds to.
func quotaPerSec(quota int64, period uint64) uint64 {
	if quota <= 0 {
		return noLimit
	}
	n := uint64(quota) * 1000000 / period
	return (n + 9999) / 10000 * 10000
}

// scopeUnified are the entries of the unified map that systemd knows too.
func scopeUnified(m map[string]string, version int) (list []systemd.Property) {
	for _, file := range sortedKeys(m) {
		v := strings.TrimSpace(m[file])
		property := map[string]string{
			"memory.max": "MemoryMax", "memory.high": "MemoryHigh", "memory.low": "MemoryLow", "memory.min": "MemoryMin",
			"memory.swap.max": "MemorySwapMax", "pids.max": "TasksMax", "cpu.weight": "CPUWeight",
		}[file]
		switch {
		case property != "":
			if n, err := parseUint(v); err == nil {
				list = append(list, systemd.Uint64(property, n))
			}
		case file == "cpu.max":
			q, p, both := strings.Cut(v, " ")
			quota, period := int64(-1), uint64(100000)
			var err, err2 error
			if q != "max" {
				quota, err = strconv.ParseInt(q, 10, 64)
			}
			if both {
				period, err2 = strconv.ParseUint(strings.TrimSpace(p), 10, 64)
			}
			if err == nil && err2 == nil && period > 0 {
				list = append(list, systemd.Uint64("CPUQuotaPerSecUSec", quotaPerSec(quota, period)))
				if version >= 242 {
					list = append(list, systemd.Uint64("CPUQuotaPeriodUSec", period))
				}
			}
		case version >= 244 && (file == "cpuset.cpus" || file == "cpuset.mems"):
			if set, err := parseList(v); err == nil {
				property := "AllowedCPUs"
				if file == "cpuset.mems" {
					property = "AllowedMemoryNodes"
				}
				list = append(list, systemd.Bytes(property, set.bytes()))
			}
		}
	}
	return list
}

// bytes is the set in systemd's form: bit i of byte n is number 8n+i.
func (s *numbers) bytes() []byte {
	var b []byte
	for _, n := range s.list() {
		for len(b) <= int(n/8) {
			b = append(b, 0)
		}
		b[n/8] |= 1 << (n % 8)
	}
	return b
}

// scopeDevices are the rules as systemd takes them: a list of what is allowed, where a group of devices is named as
// /proc/devices names its major number. What it cannot say is left to the files.
func scopeDevices(rules []deviceRule) []systemd.Property {
	target, hole := listOf(rules)
	reset := systemd.Pairs("DeviceAllow", nil)
	if hole >= 0 || target.allow {
		return []systemd.Property{systemd.String("DevicePolicy", "auto"), reset}
	}
	var allow [][2]string
	for i := range target.exceptions {
		e := &target.exceptions[i]
		access := strings.Fields(e.String())[2]
		kind := "char"
		if e.kind == devBlock {
			kind = "block"
		}
		switch {
		case e.major < 0 && e.minor < 0:
			allow = append(allow, [2]string{kind + "-*", access})
		case e.minor < 0:
			for _, name := range majorNames(kind, e.major) {
				allow = append(allow, [2]string{kind + "-" + name, access})
			}
		case e.major >= 0:
			allow = append(allow, [2]string{"/dev/" + kind + "/" + i64(e.major) + ":" + i64(e.minor), access})
		}
	}
	return []systemd.Property{systemd.String("DevicePolicy", "strict"), reset, systemd.Pairs("DeviceAllow", allow)}
}

// majorNames are the names of a major number in /proc/devices (proc_devices(5)).
func majorNames(kind string, major int64) (names []string) {
	b, err := os.ReadFile("/proc/devices")
	if err != nil {
		return nil
	}
	section := ""
	for line := range bytes.Lines(b) {
		f := strings.Fields(string(line))
		switch {
		case len(f) == 2 && f[1] == "devices:":
			if section = "char"; f[0] == "Block" {
				section = "block"
			}
		case len(f) == 2 && section == kind && f[0] == i64(major):
			names = append(names, f[1])
		}
	}
	return names
}
