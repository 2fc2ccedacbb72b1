package plan

import (
	"strconv"

	runspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// clocks lists the offsets that time_namespaces(7) knows, by their names in the spec.
var clocks = [...]string{"boottime", "monotonic"}

// supportedClocks checks linux.timeOffsets.
func supportedClocks(l *runspec.Linux) error {
	own := false
	for _, n := range l.Namespaces {
		own = own || n.Type == runspec.TimeNamespace && n.Path == ""
	}
	if len(l.TimeOffsets) > 0 && !own {
		return invalid("linux.timeOffsets", "only a new time namespace takes offsets")
	}
	for name, o := range l.TimeOffsets {
		if name != clocks[0] && name != clocks[1] {
			return invalid("linux.timeOffsets", "there is no clock "+strconv.Quote(name)+", only boottime and monotonic")
		}
		if o.Nanosecs >= 1e9 {
			return invalid("linux.timeOffsets["+name+"].nanosecs", "not below 1000000000")
		}
	}
	return nil
}

// newClocks makes a time namespace. Its maker stays outside until it joins what it has made, and the offsets can be
// written only before (time_namespaces(7)).
func (c *compiler) newClocks() {
	if !c.newTime {
		return
	}
	c.op(unix.SYS_UNSHARE, "make", "time namespace", num(unix.CLONE_NEWTIME))
	text := ""
	for _, name := range clocks {
		if o, ok := c.linux.TimeOffsets[name]; ok {
			text += name + " " + strconv.FormatInt(o.Secs, 10) + " " + strconv.FormatUint(uint64(o.Nanosecs), 10) + "\n"
		}
	}
	if text != "" {
		c.writeProc("timens_offsets", "", "the offsets of the clocks", text)
	}
	fd := c.cell()
	const own = "/proc/self/ns/time_for_children"
	c.op(unix.SYS_OPENAT, "open", own, num(unix.AT_FDCWD), c.s(own), num(unix.O_RDONLY|unix.O_CLOEXEC), num(0)).Dst = uint64(fd)
	c.op(unix.SYS_SETNS, "join", "time namespace", fd.get(), num(unix.CLONE_NEWTIME))
	c.op(unix.SYS_CLOSE, "close", own, fd.get())
}
