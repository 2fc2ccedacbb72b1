package cgroup

import (
	"bytes"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/onggi/onggi/errdefs"
)

// Layout is how this host mounts control groups. It does not change while a process lives, so one Detect serves all.
type Layout struct {
	V2          bool              // unified: cgroup2 is the only kind mounted
	Hybrid      bool              // v1 controllers and a cgroup2 mount beside them
	Controllers map[string]string // v1: controller -> absolute mount point ("name=systemd" included)
	Root        string            // mount point of cgroup2, "" when there is none

	hierarchies []hierarchy
}

// hierarchy is one mounted tree of groups.
type hierarchy struct {
	v2    bool
	names []string // v1: the controllers mounted together, or "name=..."; v2: what cgroup.controllers offers at the root
	mount string   // absolute mount point
	root  string   // which group of the hierarchy the mount shows (mountinfo field 4)
	own   string   // this process' group (/proc/self/cgroup)
}

// label names the hierarchy in errors and step names: "memory", "cpu,cpuacct", "systemd", "unified".
func (h *hierarchy) label() string {
	if h.v2 {
		return "unified"
	}
	// A named one is told by its name alone: the label is part of the names of steps, in which "=" would end the name.
	return strings.TrimPrefix(strings.Join(h.names, ","), "name=")
}

// Detect reads /proc/self/cgroup and as much of /proc/self/mountinfo as it needs (on a host with a thousand containers
// the rest of it costs milliseconds). Errors: Unsupported when no cgroup file system is mounted.
func Detect() (*Layout, error) {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, &errdefs.Error{Op: "read", What: "/proc/self/cgroup", Err: err}
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, &errdefs.Error{Op: "read", What: "/proc/self/mountinfo", Err: err}
	}
	defer f.Close()
	l, err := parseLayout(string(own), f)
	if err != nil {
		return nil, err
	}
	for i := range l.hierarchies {
		h := &l.hierarchies[i]
		if !h.v2 {
			continue
		}
		fd, err := unix.Open(h.mount, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, &errdefs.Error{Op: "open", What: h.mount, Err: err}
		}
		have, err := readAt(fd, "cgroup.controllers")
		_ = unix.Close(fd)
		if err != nil {
			return nil, &errdefs.Error{Op: "read", What: h.mount + "/cgroup.controllers", Err: err}
		}
		h.names = strings.Fields(have)
		// Beside v1 a bare cgroup2 mount matters only to systemd, which finds a service's processes by it: a container
		// left behind in the engine's group there would be killed with the engine's service.
		if l.Hybrid && len(h.names) == 0 && !systemdRuns() {
			l.hierarchies = append(l.hierarchies[:i], l.hierarchies[i+1:]...)
			break
		}
	}
	return l, nil
}

// systemdRuns is sd_booted(3).
func systemdRuns() bool { return unix.Access("/run/systemd/system", unix.F_OK) == nil }

// mountReader is what parseLayout reads mountinfo from.
type mountReader interface{ Read([]byte) (int, error) }

// parseLayout joins /proc/self/cgroup (hierarchies and this process' place in them) with /proc/self/mountinfo. It stops
// reading once each hierarchy has a mount below /sys/fs/cgroup; a mount elsewhere is taken only when there is no such one.
func parseLayout(own string, mountinfo mountReader) (*Layout, error) {
	l := &Layout{Controllers: map[string]string{}}
	hs := make([]hierarchy, 0, 14)
	for own != "" {
		var line string
		line, own, _ = strings.Cut(own, "\n")
		id, rest, ok := strings.Cut(line, ":")
		names, path, ok2 := strings.Cut(rest, ":")
		if !ok || !ok2 {
			continue
		}
		switch {
		case id == "0" && names == "":
			hs = append(hs, hierarchy{v2: true, own: path})
		case names != "":
			hs = append(hs, hierarchy{names: strings.Split(names, ","), own: path})
		}
	}
	wanted, exact := len(hs), make([]bool, len(hs))
	var buf [16 << 10]byte
	var rest []byte
	for wanted > 0 {
		n, err := mountinfo.Read(buf[:])
		rest = append(rest, buf[:n]...)
		for wanted > 0 {
			line, tail, ok := bytes.Cut(rest, []byte("\n"))
			if !ok {
				break
			}
			rest = tail
			root, point, v2, options, ok := cgroupMount(line)
			if !ok {
				continue
			}
			for i := range hs {
				if exact[i] || hs[i].v2 != v2 || !v2 && !hasOption(options, hs[i].names[0]) {
					continue
				}
				standard := point == "/sys/fs/cgroup" || strings.HasPrefix(point, "/sys/fs/cgroup/")
				if hs[i].mount == "" || standard {
					hs[i].mount, hs[i].root = point, root
				}
				if standard {
					exact[i] = true
					wanted--
				}
			}
		}
		if err != nil || n == 0 {
			break
		}
		if len(rest) > 1<<20 {
			return nil, &errdefs.Error{
				Op: "read", What: "/proc/self/mountinfo", Kind: errdefs.Corrupt,
				Why: "it has a line of more than 1 MiB",
			}
		}
	}
	v1 := 0
	for _, h := range hs {
		if h.mount == "" {
			continue // known to the kernel, mounted nowhere
		}
		l.hierarchies = append(l.hierarchies, h)
		if h.v2 {
			l.Root = h.mount
			continue
		}
		v1++
		for _, n := range h.names {
			l.Controllers[n] = h.mount
		}
	}
	l.V2 = v1 == 0 && l.Root != ""
	l.Hybrid = v1 > 0 && l.Root != ""
	if len(l.hierarchies) == 0 {
		return nil, &errdefs.Error{
			Op: "find", What: "control groups", Kind: errdefs.Unsupported,
			Why: "no cgroup file system is mounted in this mount namespace",
			Fix: "mount one: mount -t cgroup2 none /sys/fs/cgroup",
		}
	}
	return l, nil
}

// cgroupMount takes root, mount point and super options from a mountinfo line of type cgroup or cgroup2 (proc(5)):
//
//	36 31 0:33 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
func cgroupMount(line []byte) (root, point string, v2 bool, options string, ok bool) {
	head, tail, found := bytes.Cut(line, []byte(" - cgroup"))
	if !found {
		return
	}
	if bytes.HasPrefix(tail, []byte("2 ")) {
		v2 = true
	} else if !bytes.HasPrefix(tail, []byte(" ")) {
		return
	}
	f := strings.Fields(string(head))
	t := strings.Fields(string(tail))
	if len(f) < 6 || len(t) < 2 {
		return
	}
	return unescape(f[3]), unescape(f[4]), v2, t[len(t)-1], true
}

func hasOption(options, name string) bool {
	for o := range strings.SplitSeq(options, ",") {
		if o == name {
			return true
		}
	}
	return false
}

// unescape takes back the \040 octal escapes of mountinfo.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && isOctal(s[i+1]) && isOctal(s[i+2]) && isOctal(s[i+3]) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func isOctal(c byte) bool { return c >= '0' && c <= '7' }

// place returns the path below h.mount for a group path as Create takes it: absolute from the mount's own root,
// relative from this process' group.
func (h *hierarchy) place(path string) (string, error) {
	if strings.HasPrefix(path, "/") {
		return path, nil
	}
	own := h.own
	if h.v2 && own != "/" && own != h.root {
		// A group with processes, as ours, can hand no controllers to groups below it ("no internal processes"), so the new
		// one is made beside ours. runc does the same.
		own = own[:max(strings.LastIndexByte(own, '/'), 1)]
	}
	switch {
	case strings.HasPrefix(h.root, "/.."), strings.HasPrefix(own, "/.."):
		// A cgroup namespace below the mount's root, or a mount of another namespace: the names between the two cannot
		// be known, and a guess would put the group in somebody else's tree.
		return "", &errdefs.Error{
			Op: "place control group", What: path, Kind: errdefs.Unsupported,
			Why: "this process' group is outside of what " + h.mount + " shows (root " + h.root + ", own group " + own + ")",
			Fix: "use an absolute cgroup path, or mount the cgroup file system inside this cgroup namespace",
		}
	case h.root == "/":
	case own == h.root:
		own = "/"
	case strings.HasPrefix(own, h.root+"/"):
		own = own[len(h.root):]
	default:
		// A mount of another subtree than ours (an engine in a container without a cgroup namespace and with a bind of
		// some other group): the mount's root is all that can be reached.
		own = "/"
	}
	return strings.TrimSuffix(own, "/") + "/" + path, nil
}
