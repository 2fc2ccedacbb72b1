package engine

import (
	"context"
	"os"
	"runtime"
	"strings"

	"github.com/onggi/onggi/cgroup"
	"github.com/onggi/onggi/snapshot"
	"golang.org/x/sys/unix"
)

// Info is `onggi info`.
type Info struct {
	Root, RunRoot               string
	Containers, Running, Images int
	CgroupVersion               string // "1", "2", "hybrid"
	Kernel                      string
	Runtime                     string
	CPUs                        int
	Memory                      int64
	Overlay, Seccomp, NFTables  bool
	Layers                      string // how layers lie, and could (snapshot.Forms)
	Rootless                    string // whose engine this is, and how many ids it has; "" is root's
	Warnings                    []string
}

// Info describes host and store. It changes nothing.
func (e *Engine) Info(ctx context.Context) (*Info, error) {
	i := &Info{Root: e.o.Root, RunRoot: e.o.RunRoot, CPUs: runtime.NumCPU(), Rootless: aboutUser()}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil, err
	}
	i.Kernel = unix.ByteSliceToString(u.Release[:])
	var s unix.Sysinfo_t
	if err := unix.Sysinfo(&s); err != nil {
		return nil, err
	}
	i.Memory = int64(s.Totalram) * int64(s.Unit)
	var err error
	if i.Runtime, err = e.runtime(); err != nil {
		i.Warnings = append(i.Warnings, err.Error())
	}
	layout, err := cgroup.Detect()
	switch {
	case err != nil:
		i.Warnings = append(i.Warnings, err.Error())
	case layout.V2:
		i.CgroupVersion = "2"
	case layout.Hybrid:
		i.CgroupVersion = "hybrid"
	default:
		i.CgroupVersion = "1"
	}
	forms := snapshot.Probe()
	i.Overlay, i.Layers = forms.Writable == "overlay", forms.String()
	if !i.Overlay {
		i.Warnings = append(i.Warnings, "the kernel has no overlayfs: no container can be made")
	}
	if b, err := readBounded("/proc/sys/kernel/seccomp/actions_avail", 4096); err == nil {
		i.Seccomp = strings.Contains(string(b), "errno")
	}
	if fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER); err == nil {
		_ = unix.Close(fd)
		i.NFTables = true
	}
	held, err := heldCapabilities()
	if err != nil {
		return nil, err
	}
	if i.Rootless != "" {
		if oneID() {
			i.Warnings = append(i.Warnings, "this user has one id only: "+oneIDWhy+"; "+oneIDFix)
		}
		if groupless() {
			i.Warnings = append(i.Warnings, "this user may write no control group: limits are refused, and stats and pause cannot be had")
		}
		if bridgeless() {
			i.Warnings = append(i.Warnings, "without root there are the networks host, none and container:, and no bridge")
		}
	}
	if len(held) < 41 {
		i.Warnings = append(i.Warnings, "this process does not hold every capability: limits are clamped, privileged containers get what it holds")
	}
	records, err := e.records()
	if err != nil {
		return nil, err
	}
	i.Containers = len(records)
	for _, r := range records {
		if r.Status == Running {
			i.Running++
		}
	}
	if _, err := os.Stat(e.versionPath()); err == nil {
		images, err := e.Images()
		if err != nil {
			return nil, err
		}
		list, err := images.List()
		if err != nil {
			return nil, err
		}
		i.Images = len(list)
	}
	return i, nil
}
