package launch

import (
	"bytes"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"

	"github.com/onggi/onggi/cgroup"
	"github.com/onggi/onggi/runtime/plan"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

var layout = sync.OnceValues(cgroup.Detect)

// facts looks at what plan.Build must know, and at nothing that the spec does not need.
func facts(s *runspec.Spec, bundle string, layout *cgroup.Layout, dirs map[string]string) plan.Facts {
	f := plan.Facts{Limits: map[int][2]uint64{}, NotDirectory: map[string]bool{}}
	f.Kernel = kernel()
	f.Held, f.LastCap = held()
	f.Nested, f.Rootless = nested(), Rootless()
	f.NoKcore = unix.Access("/proc/kcore", unix.F_OK) == unix.ENOENT
	if layout != nil {
		f.CgroupV2 = layout.V2
		if !layout.V2 {
			f.CgroupNames = layout.Controllers
			f.CgroupDirs = dirs
		}
	}
	processFacts(&f, s.Process)
	f.SELinux = f.SELinux || s.Linux.MountLabel != "" && selinux()
	for i := range s.Mounts {
		m := &s.Mounts[i]
		if m.Type != "bind" && !has(m.Options, "bind") && !has(m.Options, "rbind") {
			continue
		}
		src := m.Source
		if !path.IsAbs(src) {
			src = path.Join(bundle, src)
		}
		var st unix.Stat_t
		if unix.Stat(src, &st) == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			f.NotDirectory[src] = true
		}
	}
	return f
}

func processFacts(f *plan.Facts, p *runspec.Process) {
	for i := range p.Rlimits {
		var l unix.Rlimit
		if n := plan.RlimitNumber(p.Rlimits[i].Type); n >= 0 && unix.Getrlimit(n, &l) == nil {
			f.Limits[n] = [2]uint64{l.Cur, l.Max}
		}
	}
	if p.OOMScoreAdj != nil {
		b, _ := os.ReadFile("/proc/self/oom_score_adj")
		f.OOMScoreAdj, _ = strconv.Atoi(string(bytes.TrimSpace(b)))
	}
	f.AppArmor = p.ApparmorProfile != "" && apparmor()
	f.SELinux = p.SelinuxLabel != "" && selinux()
}

// apparmor and selinux say whether the kernel has these security modules at work.
func apparmor() bool {
	b, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return err == nil && len(b) > 0 && b[0] == 'Y'
}

func selinux() bool {
	var st unix.Statfs_t
	if unix.Statfs("/sys/fs/selinux", &st) != nil || st.Type != unix.SELINUX_MAGIC {
		return false
	}
	// Without a policy every process is "kernel", and the kernel takes any label and ignores it (the kernel's
	// initial_sid_to_string.h; systemd mounts selinuxfs on such a host as well).
	b, err := os.ReadFile("/proc/self/attr/current")
	return err == nil && string(bytes.TrimRight(b, "\x00\n")) != "kernel"
}

func has(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}

func kernel() (v [2]int) {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return v
	}
	for i, part := range strings.SplitN(unix.ByteSliceToString(u.Release[:]), ".", 3) {
		if i < 2 {
			for _, r := range part {
				if r < '0' || r > '9' {
					break
				}
				v[i] = v[i]*10 + int(r-'0')
			}
		}
	}
	return v
}

// held returns the capabilities that this process can give to a child: permitted and in the bounding set.
func held() (mask uint64, last int) {
	h := heldOnce()
	return h.mask, h.last
}

type heldCaps struct {
	mask uint64
	last int
}

var heldOnce = sync.OnceValue(func() heldCaps {
	m, l := readHeld()
	return heldCaps{m, l}
})

func readHeld() (mask uint64, last int) {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	if unix.Capget(&h, &d[0]) != nil {
		return 0, 0
	}
	for i := range 64 {
		r, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(i), 0, 0, 0)
		if err != nil {
			break
		}
		last = i
		if r == 1 && d[i/32].Permitted&(1<<(i%32)) != 0 {
			mask |= 1 << i
		}
	}
	return mask, last
}

func lastCap() int {
	_, l := held()
	return l
}

// nested reports whether this process is in a user namespace other than the host's: its map is not the identity.
func nested() bool { return nestedOnce() }

var nestedOnce = sync.OnceValue(func() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	f := strings.Fields(string(b))
	return err == nil && (len(f) != 3 || f[0] != "0" || f[1] != "0" || f[2] != "4294967295")
})

// home returns the home directory of uid as the root file system's /etc/passwd says, "/" without one, as runc and
// docker have it. root is a handle; the file is untrusted.
func home(root int, uid uint32) string {
	fd, err := openIn(root, "etc/passwd", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return "/"
	}
	defer unix.Close(fd) //nolint:errcheck // read only
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size > 1<<20 {
		return "/"
	}
	b := make([]byte, st.Size)
	n, _ := unix.Read(fd, b)
	want := strconv.FormatUint(uint64(uid), 10)
	for line := range strings.Lines(string(b[:max(n, 0)])) {
		if f := strings.Split(strings.TrimSuffix(line, "\n"), ":"); len(f) >= 6 && f[2] == want && f[5] != "" {
			if strings.IndexByte(f[5], 0) >= 0 {
				return "/"
			}
			return f[5]
		}
	}
	return "/"
}

// openIn opens a place below the handle root. The kernel asks to try again when a mount or rename anywhere crossed a
// walk over "..".
func openIn(root int, name string, flags uint64) (fd int, err error) {
	for range 1000 {
		fd, err = unix.Openat2(root, name, &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
		if err != unix.EAGAIN && err != unix.EINTR {
			break
		}
	}
	return fd, err
}

func hasHome(env []string) bool {
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "HOME="); ok && v != "" {
			return true
		}
	}
	return false
}
