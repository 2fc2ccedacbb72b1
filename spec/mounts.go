package spec

import (
	"fmt"
	"path"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/onggi/onggi/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
)

// initTarget is where a foreign runtime's container finds the --init program.
const initTarget = "/sbin/onggi-init"

// defaults are docker's mounts in every container, in its order.
func (g *generator) defaults() []runspec.Mount {
	shm := g.c.ShmSize
	if shm == 0 {
		shm = DefaultShmSize
	}
	access := "ro"
	if g.c.Privileged {
		access = "rw"
	}
	mqueue := runspec.Mount{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}}
	memory := runspec.Mount{
		Destination: "/dev/shm", Type: "tmpfs", Source: "shm",
		Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=" + strconv.FormatInt(shm, 10)},
	}
	if g.c.IPC == "host" { // the message queues are those of the namespace that mounts them
		memory = runspec.Mount{Destination: "/dev/shm", Type: "bind", Source: "/dev/shm", Options: []string{"bind", "rprivate", "nosuid", "noexec", "nodev"}}
	}
	list := []runspec.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{
			Destination: "/dev/pts", Type: "devpts", Source: "devpts",
			Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"},
		},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{access, "nosuid", "noexec", "nodev"}},
		mqueue,
	}
	if g.c.IPC != "none" {
		list = append(list, memory)
	}
	return list
}

func (g *generator) mounts(s *runspec.Spec) error {
	if g.c.ShmSize < 0 {
		return invalid("--shm-size", strconv.FormatInt(g.c.ShmSize, 10), "the size is negative", "write a size such as 64m")
	}
	users, err := Effective(g.c, &g.image)
	if err != nil {
		return err
	}
	var own []runspec.Mount
	taken := map[string]bool{}
	for _, m := range users {
		om, err := g.mount(m, s.Linux)
		if err != nil {
			return err
		}
		own = append(own, om)
		taken[m.Target] = true
	}
	access := "rw"
	if g.c.ReadOnly {
		access = "ro"
	}
	targets := make([]string, 0, len(g.in.Files))
	for t := range g.in.Files {
		targets = append(targets, t)
	}
	sort.Strings(targets)
	for _, t := range targets {
		if !taken[t] {
			own = append(own, runspec.Mount{Destination: t, Type: "bind", Source: g.in.Files[t], Options: []string{"rbind", "rprivate", access}})
		}
	}
	if g.in.InitPath != "" {
		own = append(own, runspec.Mount{Destination: initTarget, Type: "bind", Source: g.in.InitPath, Options: []string{"bind", "ro", "nosuid", "nodev"}})
	}
	// A mount on /a/b has to come after the one on /a.
	slices.SortStableFunc(own, func(a, b runspec.Mount) int {
		return strings.Count(a.Destination, "/") - strings.Count(b.Destination, "/")
	})
	for _, m := range g.defaults() {
		if !taken[m.Destination] && !(taken["/dev"] && strings.HasPrefix(m.Destination, "/dev/")) {
			s.Mounts = append(s.Mounts, m)
		}
	}
	s.Mounts = append(s.Mounts, own...)
	return nil
}

// Effective returns the user's mounts, cleaned and checked, followed by one anonymous volume for each volume of the
// image that no mount of the user takes the place of.
func Effective(c *Config, image *ocispec.ImageConfig) ([]Mount, error) {
	var out []Mount
	seen := map[string]bool{}
	for _, m := range c.Mounts {
		flag := m.flag()
		if !strings.HasPrefix(m.Target, "/") {
			return nil, invalid(flag, m.Target, "invalid mount path: the place in the container must be absolute", "write it with a leading slash")
		}
		m.Target = path.Clean(m.Target)
		if m.Target == "/" {
			return nil, invalid(flag, "/", "invalid specification: destination can't be '/'", "mount on a directory below the root")
		}
		if strings.ContainsAny(m.Target+m.Source, "\x00\n") {
			return nil, invalid(flag, strconv.Quote(m.Target), "a path has a NUL byte or a newline", "choose another path")
		}
		if seen[m.Target] {
			return nil, invalid(flag, m.Target, "duplicate mount point", "mount one thing on a path")
		}
		seen[m.Target] = true
		out = append(out, m)
	}
	if image == nil {
		return out, nil
	}
	var vols []string
	for v := range image.Volumes {
		v = path.Clean("/" + v)
		if v != "/" && !seen[v] && !strings.ContainsAny(v, "\x00\n") {
			seen[v] = true
			vols = append(vols, v)
		}
	}
	sort.Strings(vols)
	for _, v := range vols {
		out = append(out, Mount{Type: "volume", Target: v})
	}
	return out, nil
}

func (m *Mount) flag() string {
	switch {
	case m.Type == "tmpfs":
		return "--tmpfs"
	case m.CreateSource:
		return "--volume"
	}
	return "--mount"
}

// flags that a user may give to a mount, each with the ones it replaces.
var flagGroups = [][]string{
	{"ro", "rw"},
	{"suid", "nosuid"},
	{"dev", "nodev"},
	{"exec", "noexec"},
	{"sync", "async"},
	{"dirsync"},
	{"atime", "noatime", "relatime", "strictatime", "norelatime", "nostrictatime"},
	{"diratime", "nodiratime"},
	{"mand", "nomand"},
	{"lazytime", "nolazytime"},
	{"symfollow", "nosymfollow"},
	{"bind", "rbind"},
}

// setOption puts an option into the list in the place of the one that it contradicts. known is false for an option
// that is not a mount flag.
func setOption(list []string, o string) (out []string, known bool) {
	for _, group := range flagGroups {
		if !slices.Contains(group, o) {
			continue
		}
		for i, old := range list {
			if slices.Contains(group, old) {
				list[i] = o
				return list, true
			}
		}
		return append(list, o), true
	}
	return list, false
}

func (g *generator) mount(m Mount, l *runspec.Linux) (runspec.Mount, error) {
	out := runspec.Mount{Destination: m.Target}
	flag := m.flag()
	switch m.Type {
	case "bind", "volume":
		out.Type, out.Source = "bind", m.Source
		if m.From != "" {
			out.Source = m.From
		} else if m.Type == "volume" {
			p, ok := g.in.Volumes[m.Source]
			if !ok {
				return out, &errdefs.Error{Op: "mount", What: "volume " + m.Source, Kind: errdefs.Internal, Why: "nobody gave its path"}
			}
			out.Source = p
		}
		if !strings.HasPrefix(out.Source, "/") {
			return out, invalid(flag, m.Source+":"+m.Target, "invalid mount config: the host path must be absolute", "write the whole path")
		}
		if m.TmpfsSize != 0 || m.TmpfsMode != 0 {
			return out, invalid(flag, m.Target, "tmpfs-size and tmpfs-mode belong to type=tmpfs", "drop them, or use type=tmpfs")
		}
		if m.NoCopy && m.Type == "bind" {
			return out, invalid(flag, m.Target, "nocopy belongs to volumes: nothing is ever copied into a host directory", "drop nocopy")
		}
		out.Options = []string{"rbind", "rw"}
		if m.Recursive == "disabled" {
			out.Options[0] = "bind"
		}
		out.UIDMappings, out.GIDMappings = m.UIDs, m.GIDs
	case "tmpfs":
		out.Type, out.Source = "tmpfs", "tmpfs"
		if m.Source != "" {
			return out, invalid(flag, m.Target, "a tmpfs has no source", "drop the source")
		}
		if m.TmpfsSize < 0 || m.TmpfsMode > 0o7777 {
			return out, invalid(flag, m.Target, "the size is negative or the mode has bits above 7777", "write tmpfs-size=64m,tmpfs-mode=1777")
		}
		out.Options = []string{"noexec", "nosuid", "nodev", "rw"}
	default:
		return out, invalid(flag, m.Target, fmt.Sprintf("there is no mount type %q", m.Type), "use bind, volume or tmpfs")
	}
	for _, o := range m.Options {
		var known bool
		if out.Options, known = setOption(out.Options, o); known {
			continue
		}
		name, value, _ := strings.Cut(o, "=")
		if m.Type != "tmpfs" || value == "" || !slices.Contains([]string{"size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol", "huge"}, name) {
			return out, invalid(flag, m.Target, fmt.Sprintf("there is no mount option %q", o), "see: man 8 mount, man 5 tmpfs")
		}
		out.Options = append(out.Options, o)
	}
	if m.ReadOnly {
		out.Options, _ = setOption(out.Options, "ro")
		if all := g.in.Host.KernelVersion; m.Type != "tmpfs" && (m.Recursive == "" || m.Recursive == "enabled" || m.Recursive == "readonly") {
			switch {
			case all[0] > 5 || all[0] == 5 && all[1] >= 12:
				out.Options = append(out.Options, "rro") // as docker since 25
			case m.Recursive == "readonly":
				return out, invalid(flag, m.Target, "bind-recursive=readonly needs Linux 5.12 (mount_setattr)", "use bind-recursive=disabled, which leaves the mounts below out")
			}
		}
	}
	if m.Type == "tmpfs" {
		if m.TmpfsSize > 0 {
			out.Options = append(out.Options, "size="+strconv.FormatInt(m.TmpfsSize, 10))
		}
		if m.TmpfsMode > 0 {
			out.Options = append(out.Options, "mode="+strconv.FormatUint(uint64(m.TmpfsMode), 8))
		}
		if m.Propagation != "" {
			return out, invalid(flag, m.Target, "a tmpfs has no propagation", "drop it")
		}
		return out, nil
	}
	prop := m.Propagation
	switch prop {
	case "":
		prop = "rprivate"
	case "private", "rprivate":
	case "shared", "rshared":
		l.RootfsPropagation = "shared"
	case "slave", "rslave":
		if l.RootfsPropagation == "" {
			l.RootfsPropagation = "rslave"
		}
	default:
		return out, invalid(flag, m.Target, fmt.Sprintf("there is no propagation %q", prop), "use rprivate, private, rshared, shared, rslave or slave")
	}
	if m.Recursive == "readonly" && (!m.ReadOnly || m.Propagation != "" && m.Propagation != "rprivate") {
		return out, invalid(flag, m.Target, "bind-recursive=readonly needs readonly, and bind-propagation=rprivate", "add readonly,bind-propagation=rprivate")
	}
	if m.Recursive == "writable" && !m.ReadOnly {
		return out, invalid(flag, m.Target, "bind-recursive=writable is for a mount that is readonly itself", "add readonly, or leave it out")
	}
	if m.Type == "volume" && m.Propagation != "" && m.Propagation != "rprivate" {
		return out, invalid(flag, m.Target, "a volume's mounts are always private", "drop the propagation, or bind a host directory")
	}
	out.Options = append(out.Options, prop)
	return out, nil
}
