package cgroup

import (
	"errors"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	runspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/onggi/onggi/errdefs"
)

// Access bits and device types, by the numbers of linux/bpf.h (BPF_DEVCG_ACC_*, BPF_DEVCG_DEV_*).
const (
	accMknod = 1
	accRead  = 2
	accWrite = 4
	accAll   = accMknod | accRead | accWrite

	devAny   = 0
	devBlock = 1
	devChar  = 2
)

// deviceRule is one entry of linux.resources.devices.
type deviceRule struct {
	allow        bool
	kind         uint8 // devAny, devBlock, devChar
	access       uint8
	major, minor int64 // -1 is any
}

// DefaultDevices are the rules that every container needs beside those of its spec: the devices that runtime-spec
// ("Default Devices") has the runtime create, terminals, and mknod of anything, which gives no access. The runtime
// appends them to linux.resources.devices, as runc and crun do.
func DefaultDevices() []runspec.LinuxDeviceCgroup {
	rule := func(kind string, major, minor int64, access string) runspec.LinuxDeviceCgroup {
		return runspec.LinuxDeviceCgroup{Allow: true, Type: kind, Major: &major, Minor: &minor, Access: access}
	}
	return []runspec.LinuxDeviceCgroup{
		rule("c", -1, -1, "m"), rule("b", -1, -1, "m"),
		rule("c", 1, 3, "rwm"), rule("c", 1, 5, "rwm"), rule("c", 1, 7, "rwm"), // null zero full
		rule("c", 1, 8, "rwm"), rule("c", 1, 9, "rwm"), // random urandom
		rule("c", 5, 0, "rwm"), rule("c", 5, 2, "rwm"), // tty ptmx; 5:1 would be the host's console: a container's is a pts
		rule("c", 136, -1, "rwm"), // pts
	}
}

func parseDevices(list []runspec.LinuxDeviceCgroup) ([]deviceRule, error) {
	rules := make([]deviceRule, 0, len(list))
	for i := range list {
		l := &list[i]
		field := "devices[" + strconv.Itoa(i) + "]"
		r := deviceRule{allow: l.Allow, major: -1, minor: -1}
		switch l.Type {
		case "", "a":
		case "b":
			r.kind = devBlock
		case "c":
			r.kind = devChar
		default:
			return nil, invalid(field+".type", strconv.Quote(l.Type)+` is none of "a", "b" and "c"`)
		}
		for _, n := range [...]struct {
			name string
			from *int64
			to   *int64
		}{{"major", l.Major, &r.major}, {"minor", l.Minor, &r.minor}} {
			switch {
			case n.from == nil || *n.from == -1: // docker writes -1 for any
			case *n.from < 0 || *n.from > 1<<31-1:
				return nil, invalid(field+"."+n.name, i64(*n.from)+" is not a device number")
			default:
				*n.to = *n.from
			}
		}
		for _, c := range l.Access {
			switch c {
			case 'm':
				r.access |= accMknod
			case 'r':
				r.access |= accRead
			case 'w':
				r.access |= accWrite
			default:
				return nil, invalid(field+".access", strconv.Quote(l.Access)+" has letters other than r, w and m")
			}
		}
		if r.access == 0 {
			return nil, invalid(field+".access", "it is empty: say which of r, w and m the rule is for")
		}
		rules = append(rules, r)
	}
	return rules, nil
}

// everything reports a rule that leaves nothing to the rules before it.
func (r *deviceRule) everything() bool {
	return r.kind == devAny && r.major < 0 && r.minor < 0 && r.access == accAll
}

// covers reports whether each device of o is one of r (access aside).
func (r *deviceRule) covers(o *deviceRule) bool {
	return (r.kind == devAny || r.kind == o.kind) && (r.major < 0 || r.major == o.major) && (r.minor < 0 || r.minor == o.minor)
}

func (r *deviceRule) overlaps(o *deviceRule) bool {
	return (r.kind == devAny || o.kind == devAny || r.kind == o.kind) &&
		(r.major < 0 || o.major < 0 || r.major == o.major) && (r.minor < 0 || o.minor < 0 || r.minor == o.minor)
}

func (r *deviceRule) same(o *deviceRule) bool {
	return r.kind == o.kind && r.major == o.major && r.minor == o.minor
}

// String is the v1 format: "c 1:3 rwm".
func (r *deviceRule) String() string {
	b := make([]byte, 0, 24)
	b = append(b, "abc"[r.kind], ' ')
	for i, n := range [...]int64{r.major, r.minor} {
		if i == 1 {
			b = append(b, ':')
		}
		if n < 0 {
			b = append(b, '*')
		} else {
			b = strconv.AppendInt(b, n, 10)
		}
	}
	b = append(b, ' ')
	for _, a := range [...]struct {
		bit    uint8
		letter byte
	}{{accRead, 'r'}, {accWrite, 'w'}, {accMknod, 'm'}} {
		if r.access&a.bit != 0 {
			b = append(b, a.letter)
		}
	}
	return string(b)
}

// deviceList is a v1 devices group: what happens by default, and the exceptions to it.
type deviceList struct {
	allow      bool
	exceptions []deviceRule
}

// listOf plays the rules in order, from "deny all". v1 looks for one exception that covers a whole request, so what a
// wider exception grants is added to the narrower ones; not mknod, which is never asked for together with another right. A rule that takes a hole out of a wider exception cannot be
// said in v1 (the kernel ignores such a write silently): hole is its index, else -1.
func listOf(rules []deviceRule) (l deviceList, hole int) {
	for i := range rules {
		r := rules[i]
		if r.everything() {
			l = deviceList{allow: r.allow}
			continue
		}
		kinds := []uint8{r.kind}
		if r.kind == devAny { // v1 takes "a" only for everything
			kinds = []uint8{devBlock, devChar}
		}
		for _, k := range kinds {
			r.kind = k
			if r.allow == l.allow {
				kept := l.exceptions[:0]
				for _, e := range l.exceptions {
					switch {
					case !r.overlaps(&e) || r.access&e.access == 0:
					case r.covers(&e):
						e.access &^= r.access
					default:
						return l, i
					}
					if e.access != 0 {
						kept = append(kept, e)
					}
				}
				l.exceptions = kept
				continue
			}
			found := false
			for j := range l.exceptions {
				e := &l.exceptions[j]
				switch {
				case e.same(&r):
					e.access |= r.access
					found = true
				case r.covers(e):
					e.access |= r.access &^ accMknod
				}
			}
			if !found {
				r.allow = !l.allow
				for j := range l.exceptions {
					if e := &l.exceptions[j]; e.covers(&r) {
						r.access |= e.access &^ accMknod
					}
				}
				l.exceptions = append(l.exceptions, r)
			}
		}
	}
	return l, -1
}

func (g *Group) applyDevices(list []runspec.LinuxDeviceCgroup) error {
	if len(list) == 0 {
		return nil
	}
	rules, err := parseDevices(list)
	if err != nil {
		return err
	}
	for i := range g.dirs {
		if d := &g.dirs[i]; !d.h.v2 && d.has("devices") {
			if d.fd < 0 {
				return g.noDevices(d.why)
			}
			return g.noDevices(d.devices1(rules))
		}
	}
	for i := range g.dirs {
		if d := &g.dirs[i]; d.h.v2 && g.l.V2 {
			if d.fd < 0 {
				return g.noDevices(d.why)
			}
			return g.noDevices(d.devices2(rules))
		}
	}
	return refuse("devices", "this host mounts no devices hierarchy", "mount it: mount -t cgroup -o devices cgroup /sys/fs/cgroup/devices")
}

// noDevices forgives a refusal inside a user namespace, or of a user who is not root: the kernel lets them create and open
// no device that was not given (mknod needs CAP_MKNOD in the first namespace), so the list protects nothing. It is noted in
// Skipped.
func (g *Group) noDevices(err error) error {
	if err == nil || !unwritable(err) || os.Geteuid() == 0 && !inUserNamespace() {
		if err != nil && unwritable(err) && errdefs.As(err).What == "" {
			return &errdefs.Error{Op: "set", What: "linux.resources.devices", Kind: errdefs.Forbidden, Why: "the devices group cannot be written", Err: err}
		}
		return err
	}
	g.skipped = append(g.skipped, Skip{"devices", err})
	return nil
}

// inUserNamespace reports whether this process is in another than the first user namespace, whose map is the identity
// of all ids (user_namespaces(7)).
func inUserNamespace() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return false // a kernel without user namespaces
	}
	f := strings.Fields(string(b))
	return len(f) != 3 || f[0] != "0" || f[1] != "0" || f[2] != "4294967295"
}

func (d *dir) devices1(rules []deviceRule) error {
	target, hole := listOf(rules)
	if hole >= 0 {
		return refuse("devices["+strconv.Itoa(hole)+"]", "it takes "+rules[hole].String()+
			" out of a wider rule before it, which cgroup v1 cannot express", "put the narrower rules instead of the wider one, or use cgroup v2")
	}
	text, err := readAt(d.fd, "devices.list")
	if err != nil {
		return &errdefs.Error{Op: "read", What: d.path + "/devices.list", Err: err}
	}
	allowAll := text == "a *:* rwm"
	if target.allow {
		// In a group that allows everything there may be exceptions that the kernel does not show; "a" clears them.
		err := writeAt(d.fd, "devices.allow", "a")
		if err != nil && !(allowAll && errors.Is(err, unix.EPERM)) {
			return d.deviceError("devices.allow", "a *:* rwm", err)
		}
		return d.writeRules("devices.deny", target.exceptions)
	}
	if allowAll {
		if err := writeAt(d.fd, "devices.deny", "a"); err != nil {
			return d.deviceError("devices.deny", "a *:* rwm", err)
		}
		return d.writeRules("devices.allow", target.exceptions)
	}
	// A list already: what is new comes in before what is old goes out, so that a running process never meets a gap.
	have, err := parseDeviceList(text)
	if err != nil {
		return &errdefs.Error{Op: "read", What: d.path + "/devices.list", Kind: errdefs.Corrupt, Err: err}
	}
	var add, drop []deviceRule
	for _, e := range target.exceptions {
		if missing := e.access &^ accessIn(have, &e); missing != 0 {
			add = append(add, e)
		}
	}
	for _, e := range have {
		if e.access &^= accessIn(target.exceptions, &e); e.access != 0 {
			drop = append(drop, e)
		}
	}
	if err := d.writeRules("devices.allow", add); err != nil {
		return err
	}
	return d.writeRules("devices.deny", drop)
}

func accessIn(list []deviceRule, r *deviceRule) (access uint8) {
	for i := range list {
		if list[i].same(r) {
			access |= list[i].access
		}
	}
	return access
}

func (d *dir) writeRules(file string, rules []deviceRule) error {
	if len(rules) == 0 {
		return nil
	}
	f, err := openAt(d.fd, file, unix.O_WRONLY)
	if err != nil {
		return d.deviceError(file, "", err)
	}
	defer unix.Close(f)
	for i := range rules {
		if err := writeFd(f, rules[i].String()); err != nil {
			return d.deviceError(file, rules[i].String(), err)
		}
	}
	return nil
}

func (d *dir) deviceError(file, rule string, err error) error {
	e := &errdefs.Error{Op: "set", What: "linux.resources.devices", Err: err, Why: "writing " + strconv.Quote(rule) + " to " + d.path + "/" + file}
	if err == unix.EPERM {
		e.Kind = errdefs.Forbidden
		e.Why = "the group above does not allow " + rule + ", and a group cannot give what it does not have"
		e.Fix = "leave the device out, or start the outer container with it"
	}
	return e
}

// parseDeviceList reads devices.list: a line per exception, "c 1:3 rwm".
func parseDeviceList(text string) ([]deviceRule, error) {
	var rules []deviceRule
	for line := range strings.SplitSeq(text, "\n") {
		if line == "" {
			continue
		}
		f := strings.Fields(line)
		bad := errors.New("line " + strconv.Quote(line))
		if len(f) != 3 {
			return nil, bad
		}
		major, minor, ok := strings.Cut(f[1], ":")
		if !ok {
			return nil, bad
		}
		r := deviceRule{allow: true, major: -1, minor: -1}
		switch f[0] {
		case "b":
			r.kind = devBlock
		case "c":
			r.kind = devChar
		case "a":
		default:
			return nil, bad
		}
		var err error
		if major != "*" {
			if r.major, err = strconv.ParseInt(major, 10, 64); err != nil {
				return nil, bad
			}
		}
		if minor != "*" {
			if r.minor, err = strconv.ParseInt(minor, 10, 64); err != nil {
				return nil, bad
			}
		}
		for _, c := range f[2] {
			switch c {
			case 'r':
				r.access |= accRead
			case 'w':
				r.access |= accWrite
			case 'm':
				r.access |= accMknod
			default:
				return nil, bad
			}
		}
		rules = append(rules, r)
	}
	return rules, nil
}
