package engine

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/spec"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// hostFacts collects what spec.Generate needs to know of this machine for this configuration, and nothing more: each
// fact costs a system call or a file.
func hostFacts(c *spec.Config) (spec.Host, error) {
	h := spec.Host{CgroupV2: cgroupV2(), CPUs: runtime.NumCPU()}
	var err error
	if h.Capabilities, err = heldCapabilities(); err != nil {
		return h, err
	}
	for _, n := range h.Capabilities {
		h.CanRaise = h.CanRaise || n == "CAP_SYS_RESOURCE"
	}
	if h.KernelVersion, err = kernelVersion(); err != nil {
		return h, err
	}
	if c.Network == "host" || c.UTS == "host" {
		if h.Hostname, err = os.Hostname(); err != nil {
			return h, err
		}
	}
	if len(c.Ulimits) > 0 {
		h.Rlimits = map[string][2]uint64{}
		for _, u := range c.Ulimits {
			var r unix.Rlimit
			n, ok := rlimits[u.Name]
			if ok && unix.Getrlimit(n, &r) == nil {
				h.Rlimits["RLIMIT_"+strings.ToUpper(u.Name)] = [2]uint64{r.Cur, r.Max}
			}
		}
	}
	if c.OomScoreAdj != nil {
		b, err := readBounded("/proc/self/oom_score_adj", 64)
		if err != nil {
			return h, err
		}
		if h.OomScoreAdj, err = strconv.Atoi(strings.TrimSpace(string(b))); err != nil {
			return h, err
		}
	}
	if c.Memory > 0 {
		h.SwapLimit = swapLimit(h.CgroupV2)
	}
	if c.Privileged {
		if h.Devices, err = allDevices(); err != nil {
			return h, err
		}
	} else if exists("/sys/devices/system/cpu/cpu0/thermal_throttle") {
		for i := range h.CPUs {
			h.MaskedPaths = append(h.MaskedPaths, "/sys/devices/system/cpu/cpu"+strconv.Itoa(i)+"/thermal_throttle")
		}
	}
	for _, p := range c.BlockDevices() {
		var st unix.Stat_t
		if unix.Stat(p, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK {
			if h.BlockDevices == nil {
				h.BlockDevices = map[string][2]int64{}
			}
			h.BlockDevices[p] = [2]int64{int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))}
		}
	}
	for _, d := range c.Devices {
		if h.Devices == nil {
			h.Devices = map[string]runspec.LinuxDevice{}
		}
		if err := devicesAt(filepath.Clean(d.Host), h.Devices); err != nil {
			return h, err
		}
	}
	return h, nil
}

func exists(path string) bool { return unix.Access(path, unix.F_OK) == nil }

var rlimits = map[string]int{
	"as": unix.RLIMIT_AS, "core": unix.RLIMIT_CORE, "cpu": unix.RLIMIT_CPU, "data": unix.RLIMIT_DATA, "fsize": unix.RLIMIT_FSIZE,
	"locks": unix.RLIMIT_LOCKS, "memlock": unix.RLIMIT_MEMLOCK, "msgqueue": unix.RLIMIT_MSGQUEUE, "nice": unix.RLIMIT_NICE,
	"nofile": unix.RLIMIT_NOFILE, "nproc": unix.RLIMIT_NPROC, "rss": unix.RLIMIT_RSS, "rtprio": unix.RLIMIT_RTPRIO, "rttime": unix.RLIMIT_RTTIME,
	"sigpending": unix.RLIMIT_SIGPENDING, "stack": unix.RLIMIT_STACK,
}

// cgroupV2 reports whether control groups are unified here.
func cgroupV2() bool {
	var st unix.Statfs_t
	return unix.Statfs("/sys/fs/cgroup", &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

// swapLimit reports whether the memory controller can limit swap (swapaccount=1 on older v1 kernels).
func swapLimit(v2 bool) bool {
	if !v2 {
		return exists("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes")
	}
	// The root group has no limits: look at any other, this process's own.
	b, err := readBounded("/proc/self/cgroup", 1<<16)
	if err != nil {
		return false
	}
	for _, l := range strings.Split(string(b), "\n") {
		if p, ok := strings.CutPrefix(l, "0::"); ok && exists(filepath.Join("/sys/fs/cgroup", p, "memory.swap.max")) {
			return true
		}
	}
	return exists("/proc/swaps")
}

// heldCapabilities are those that this process may give to a container: permitted, by capget(2).
func heldCapabilities() ([]string, error) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return nil, err
	}
	permitted := uint64(data[0].Permitted) | uint64(data[1].Permitted)<<32
	var names []string
	for i, n := range spec.AllCaps {
		if permitted&(1<<i) != 0 {
			names = append(names, n)
		}
	}
	return names, nil
}

func kernelVersion() (v [2]int, err error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return v, err
	}
	return parseRelease(unix.ByteSliceToString(u.Release[:])), nil
}

// parseRelease reads "6.18.0-rc1-x" as 6, 18.
func parseRelease(s string) (v [2]int) {
	for i := range v {
		n := strings.IndexFunc(s, func(r rune) bool { return r < '0' || r > '9' })
		if n < 0 {
			n = len(s)
		}
		v[i], _ = strconv.Atoi(s[:n])
		if n == len(s) || s[n] != '.' {
			break
		}
		s = s[n+1:]
	}
	return v
}

// allDevices are the host's, for --privileged: every device node below /dev except what each container has of its own.
func allDevices() (map[string]runspec.LinuxDevice, error) {
	found := map[string]runspec.LinuxDevice{}
	err := devicesAt("/dev", found)
	for _, p := range []string{"/dev/console", "/dev/ptmx", "/dev/tty", "/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"} {
		delete(found, p)
	}
	return found, err
}

// devicesAt adds the device at path, or those below it.
func devicesAt(path string, found map[string]runspec.LinuxDevice) error {
	if !strings.HasPrefix(path, "/") {
		return invalid("--device", path, "the path on the host is not absolute", "write the whole path")
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return &errdefs.Error{
			Op: "use", What: "--device " + path, Kind: errdefs.InvalidArgument, Why: "error gathering device information", Err: err,
			Fix: "see: ls -l " + path,
		}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		addDevice(path, &st, found)
		return nil
	}
	return filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			return nil
		}
		if err != nil {
			return &errdefs.Error{
				Op: "use", What: "--device " + path, Kind: errdefs.InvalidArgument, Why: "its devices cannot be listed", Err: err,
				Fix: "name a device, or a directory of devices such as /dev/snd",
			}
		}
		if d.IsDir() {
			switch p { // other containers' terminals and memory are none of this one's devices
			case "/dev/pts", "/dev/shm", "/dev/fd", "/dev/mqueue", "/dev/.lxc", "/dev/.lxd-mounts":
				return filepath.SkipDir
			}
			return nil
		}
		if d.Type()&fs.ModeDevice == 0 {
			return nil
		}
		var st unix.Stat_t
		if unix.Lstat(p, &st) == nil {
			addDevice(p, &st, found)
		}
		return nil
	})
}

func addDevice(path string, st *unix.Stat_t, found map[string]runspec.LinuxDevice) {
	t := map[uint32]string{unix.S_IFCHR: "c", unix.S_IFBLK: "b", unix.S_IFIFO: "p"}[st.Mode&unix.S_IFMT]
	if t == "" {
		return
	}
	mode, uid, gid := fs.FileMode(st.Mode&0o7777), st.Uid, st.Gid
	found[path] = runspec.LinuxDevice{
		Path: path, Type: t, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
		FileMode: &mode, UID: &uid, GID: &gid,
	}
}
