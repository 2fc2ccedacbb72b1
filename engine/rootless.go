package engine

import (
	"fmt"
	"slices"
	"strings"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/userns"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// groupPath is where a container's control group is asked for: "" leaves it to the runtime, which then does without
// one where no limit needs it. So it is for a user whom the host has given no group to write in.
func groupPath(of string) string {
	if groupless() {
		return ""
	}
	return of
}

// groupless reports whether this is a user, not root, who can make no control group at the hierarchies' top.
func groupless() bool {
	return userns.Rootless() && unix.Access("/sys/fs/cgroup", unix.W_OK) != nil
}

// noGroup is the error of what needs the control group of a container (id, or "" for all) that has none that we know.
func noGroup(id string) error {
	what := "the containers' control groups"
	if id != "" {
		what = "the control group of container " + id[:min(len(id), 12)]
	}
	return &errdefs.Error{
		Op: "use", What: what, Kind: errdefs.Unsupported,
		Why: "this user may write no control group on this host, and pause, stats, top and limits need one",
		Fix: "see its processes by: onggi exec CONTAINER ps; or run it as root",
	}
}

// checkRootless refuses what a user who is not root cannot have.
func (c *Config) checkRootless() error {
	if !c.networked() || !bridgeless() {
		return nil
	}
	return noBridge("connect to", "network "+cmpOr(c.Network, "bridge"))
}

// bridgeless reports whether this is a user, not root, whose network namespace is the host's.
func bridgeless() bool { return userns.Rootless() && !ownsNetwork() }

func noBridge(op, what string) error {
	return &errdefs.Error{
		Op: op, What: what, Kind: errdefs.Unsupported,
		Why: "a user who is not root can make no bridge on the host, and Onggi does not use pasta or slirp4netns yet",
		Fix: "use --network host or --network none, or run it as root",
	}
}

// pingGroups narrows the groups that may ping: the kernel refuses a range whose last group is not mapped.
func pingGroups(s *runspec.Spec) error {
	const key = "net.ipv4.ping_group_range"
	if !userns.Rootless() || s.Linux == nil || s.Linux.Sysctl[key] != "0 2147483647" {
		return nil
	}
	m, err := userns.GIDs()
	if err != nil {
		return err
	}
	last := uint64(0)
	for _, r := range m {
		if uint64(r.Container) <= last+1 {
			last = max(last, uint64(r.Container)+uint64(r.Size)-1)
		}
	}
	s.Linux.Sysctl[key] = fmt.Sprintf("0 %d", min(last, 2147483647))
	return nil
}

// ownsNetwork reports whether this process's network namespace belongs to its user namespace: it may then make bridges.
func ownsNetwork() bool {
	fd, err := unix.Open("/proc/self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd) //nolint:errcheck // a handle
	owner, err := unix.IoctlRetInt(fd, unix.NS_GET_USERNS)
	if err != nil {
		return false
	}
	defer unix.Close(owner) //nolint:errcheck // a handle
	return sameFile(owner, "", "/proc/self/ns/user")
}

// sameFile reports whether name below dir, or dir itself, is the file at path.
func sameFile(dir int, name, path string) bool {
	var a, b unix.Stat_t
	return unix.Fstatat(dir, name, &a, unix.AT_EMPTY_PATH) == nil && unix.Stat(path, &b) == nil && a.Dev == b.Dev && a.Ino == b.Ino
}

// aboutUser is what `onggi info` says of a user's engine; "" for root.
func aboutUser() string {
	if !userns.Rootless() {
		return ""
	}
	m, err := userns.UIDs()
	if err != nil {
		return "yes"
	}
	ids := uint64(0)
	for _, r := range m {
		ids += uint64(r.Size)
	}
	host, _ := m.ToHost(0)
	return fmt.Sprintf("user %d, %d ids", host, ids)
}

// oneID reports whether this user has no ids but its own.
func oneID() bool {
	m, err := userns.UIDs()
	return userns.Rootless() && err == nil && len(m) == 1 && m[0].Size == 1
}

// oneGroup leaves out the groups that the image gives its user, where the kernel denies setgroups(2), and that of
// terminals; it says so when they are more than the user's own. Groups that were asked for stay, and are refused.
func oneGroup(s *runspec.Spec, asked []string) (warning string) {
	u := &s.Process.User
	if !oneID() || len(asked) > 0 {
		return ""
	}
	for _, g := range u.AdditionalGids {
		if g != u.GID {
			warning = "the image's further groups of its user are left out: this user has one id only"
		}
	}
	u.AdditionalGids = nil
	for i := range s.Mounts {
		if m := &s.Mounts[i]; m.Type == "devpts" { // the terminals' group, tty, does not exist either
			m.Options = slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return strings.HasPrefix(o, "gid=") })
		}
	}
	return warning
}

const (
	oneIDWhy = "images with files of other users than root cannot be unpacked"
	oneIDFix = "have root install uidmap and give ranges (usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER), then kill the process in RUNROOT/userns/holder"
)
