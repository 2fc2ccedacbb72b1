package main

//lint:file-ignore SA1019 prestart hooks are deprecated and in use

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// looks is what a container of the corpus tells of itself: mounts, credentials, limits, devices and so on. The places of
// namespaces and what else differs between two starts is left out.
const looks = `echo "[mounts]"; cat /proc/self/mountinfo
echo "[status]"; grep -E '^(Umask|Uid|Gid|Groups|NoNewPrivs|Seccomp|Cap...|SigBlk|SigIgn|Cpus_allowed_list|Mems_allowed_list):' /proc/self/status
echo "[limits]"; cat /proc/self/limits; cat /proc/self/oom_score_adj; cat /proc/self/personality 2>/dev/null
echo "[maps]"; cat /proc/self/uid_map /proc/self/gid_map
echo "[groups]"; cat /proc/self/cgroup
echo "[dev]"; ls -ln /dev /tmp /work 2>/dev/null
echo "[fds]"; ls -l /proc/self/fd | wc -l
echo "[env]"; env; pwd; hostname; umask
echo "[sysctl]"; cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shm_rmid_forced /proc/sys/fs/mqueue/msg_max /proc/sys/kernel/domainname
echo "[end]"; exec sleep 1000`

var corpusNumbers = regexp.MustCompile(`\b(shared|master|propagate_from):\d+`)

// normal makes a container's story comparable: sections of sorted lines without what differs between any two starts.
func (s *side) normal(text string) map[string][]string {
	out := map[string][]string{}
	section := ""
	text = strings.NewReplacer(s.dir, "DIR", s.group, "GROUP").Replace(text)
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			section = line
			continue
		}
		switch section {
		case "[mounts]":
			f := strings.Fields(corpusNumbers.ReplaceAllString(line, "$1"))
			i := slices.Index(f, "-")
			if len(f) < 9 || i < 6 {
				break
			}
			tags := f[6:i]
			sort.Strings(tags)
			options := strings.Split(f[5], ",")
			sort.Strings(options)
			super := strings.Split(f[i+3], ",")
			sort.Strings(super)
			kind, inside := f[i+1], strings.HasPrefix(f[4], "/proc/") || strings.HasPrefix(f[4], "/sys/") || f[4] == "/work"
			switch {
			case f[4] == "/": // where the bundle lies on the host
				f[3] = "ROOT"
			case strings.HasSuffix(f[3], "/null"): // ours is the host's /dev/null, runc's the container's (CVE-2025-31133)
				out[section] = append(out[section], f[4]+" is masked: a file")
				continue
			case kind == "tmpfs" && f[3] == "/" && slices.Contains(super, "ro") && inside, // runc's
				kind == "tmpfs" && f[3] == "/" && f[5] == "ro,nosuid,nodev,noexec,relatime" && inside && f[4] != "/sys/fs/cgroup": // ours
				out[section] = append(out[section], f[4]+" is masked: a directory")
				continue
			case kind == "sysfs" || kind == "proc": // we make the mount read-only, runc the file system too, which cannot be seen from inside
				super = slices.DeleteFunc(super, func(o string) bool { return o == "ro" || o == "rw" })
			}
			// where it is, what of what, how; the source of a file system of the kernel is only a word
			line = fmt.Sprintf("%s of %s %s; %s; %s; %s", f[4], f[i+1], f[3], strings.Join(options, ","), strings.Join(tags, " "), strings.Join(super, ","))
		case "[dev]":
			f := strings.Fields(line)
			if len(f) < 9 || strings.HasSuffix(line, ":") {
				break
			}
			if f[0][0] == 'd' {
				f[4] = "-" // a directory's size says nothing
			}
			for j, c := range f { // no times
				if strings.Contains(c, ":") && len(c) == 5 || len(c) == 4 && strings.HasPrefix(c, "20") && j > 5 {
					f[j] = ""
				}
			}
			line = f[0] + " " + f[2] + ":" + f[3] + " " + strings.Join(f[4:6], " ") + " " + strings.Join(f[8:], " ")
		}
		out[section] = append(out[section], line)
	}
	for _, l := range out {
		sort.Strings(l)
	}
	return out
}

// corpus are the specs whose effect is compared, each a change of the default one.
var corpus = []struct {
	name   string
	change func(s *side, c *specs.Spec)
}{
	{"default", func(*side, *specs.Spec) {}},
	{"root read-only", func(_ *side, c *specs.Spec) { c.Root.Readonly = true }},
	{"no mounts but proc", func(_ *side, c *specs.Spec) { c.Mounts = c.Mounts[:1] }},
	{"proc and dev", func(_ *side, c *specs.Spec) { c.Mounts = c.Mounts[:2] }},
	{"hostname", func(_ *side, c *specs.Spec) { c.Hostname = "another" }},
	{"cwd", func(_ *side, c *specs.Spec) { c.Process.Cwd = "/work" }},
	{"cwd missing", func(_ *side, c *specs.Spec) { c.Process.Cwd = "/work/a/b" }},
	{"env", func(_ *side, c *specs.Spec) {
		c.Process.Env = append(c.Process.Env, "A=b=c", "EMPTY=", "SPACE=a b", "HOME=/work")
	}},
	{"home", func(_ *side, c *specs.Spec) { c.Process.Env = []string{"PATH=/bin"} }},
	{"uid", func(_ *side, c *specs.Spec) { c.Process.User.UID = 1000 }},
	{"uid and gid", func(_ *side, c *specs.Spec) { c.Process.User = specs.User{UID: 1000, GID: 1001} }},
	{"groups", func(_ *side, c *specs.Spec) { c.Process.User.AdditionalGids = []uint32{5, 10, 4000000} }},
	{"groups of a user", func(_ *side, c *specs.Spec) {
		c.Process.User = specs.User{UID: 1000, GID: 1000, AdditionalGids: []uint32{27, 1000}}
	}},
	{"umask", func(_ *side, c *specs.Spec) { m := uint32(0o027); c.Process.User.Umask = &m }},
	{"umask 0", func(_ *side, c *specs.Spec) { m := uint32(0); c.Process.User.Umask = &m }},
	{"new privileges", func(_ *side, c *specs.Spec) { c.Process.NoNewPrivileges = false }},
	{"no capabilities", func(_ *side, c *specs.Spec) { c.Process.Capabilities = &specs.LinuxCapabilities{} }},
	{"capabilities absent", func(_ *side, c *specs.Spec) { c.Process.Capabilities = nil }},
	{"one capability", func(_ *side, c *specs.Spec) {
		l := []string{"CAP_CHOWN"}
		c.Process.Capabilities = &specs.LinuxCapabilities{Bounding: l, Effective: l, Permitted: l}
	}},
	{"permitted alone", func(_ *side, c *specs.Spec) {
		l := []string{"CAP_CHOWN", "CAP_KILL"}
		c.Process.Capabilities = &specs.LinuxCapabilities{Bounding: l, Effective: l[:1], Permitted: l}
	}},
	{"bounding alone", func(_ *side, c *specs.Spec) {
		c.Process.Capabilities = &specs.LinuxCapabilities{Bounding: []string{"CAP_CHOWN", "CAP_NET_RAW"}}
	}},
	{"ambient", func(_ *side, c *specs.Spec) {
		l := []string{"CAP_NET_BIND_SERVICE"}
		c.Process.Capabilities = &specs.LinuxCapabilities{Bounding: l, Effective: l, Permitted: l, Inheritable: l, Ambient: l}
	}},
	{"ambient of a user", func(_ *side, c *specs.Spec) {
		l := []string{"CAP_NET_BIND_SERVICE", "CAP_KILL"}
		c.Process.User.UID = 1000
		c.Process.Capabilities = &specs.LinuxCapabilities{Bounding: l, Effective: l, Permitted: l, Inheritable: l, Ambient: l[:1]}
	}},
	{"capabilities of a user", func(_ *side, c *specs.Spec) { c.Process.User.UID = 33 }},
	{"oom score", func(_ *side, c *specs.Spec) { n := 500; c.Process.OOMScoreAdj = &n }},
	{"nofile", func(_ *side, c *specs.Spec) {
		c.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}}
	}},
	{"limits", func(_ *side, c *specs.Spec) {
		c.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CORE"}, {Type: "RLIMIT_NPROC", Soft: 1000, Hard: 1000}, {Type: "RLIMIT_STACK", Soft: 1 << 20, Hard: 1 << 22}}
	}},
	{"personality", func(_ *side, c *specs.Spec) {
		c.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32}
	}},
	{"host network", without(specs.NetworkNamespace)},
	{"host ipc", without(specs.IPCNamespace)},
	{"host uts", func(s *side, c *specs.Spec) { c.Hostname = ""; without(specs.UTSNamespace)(s, c) }},
	{"host cgroup namespace", without(specs.CgroupNamespace)},
	{"host pids", without(specs.PIDNamespace)},
	{"user namespace", userNamespace},
	{"user in a user namespace", func(s *side, c *specs.Spec) { userNamespace(s, c); c.Process.User = specs.User{UID: 1000, GID: 50} }},
	{"two ranges", func(s *side, c *specs.Spec) {
		userNamespace(s, c)
		c.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 1000}, {ContainerID: 1000, HostID: 300000, Size: 500}}
	}},
	{"propagation private", func(_ *side, c *specs.Spec) { c.Linux.RootfsPropagation = "private" }},
	{"propagation slave", func(_ *side, c *specs.Spec) { c.Linux.RootfsPropagation = "slave" }},
	{"propagation rslave", func(_ *side, c *specs.Spec) { c.Linux.RootfsPropagation = "rslave" }},
	{"propagation rprivate", func(_ *side, c *specs.Spec) { c.Linux.RootfsPropagation = "rprivate" }},
	{"tmpfs", mounted(specs.Mount{Destination: "/work", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=64k", "mode=1777"}})},
	{"tmpfs without a mode", mounted(specs.Mount{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs"})},
	{"tmpfs nodev noexec", mounted(specs.Mount{Destination: "/work", Type: "tmpfs", Source: "tmpfs", Options: []string{"nodev", "noexec", "nosuid", "noatime"}})},
	{"tmpfs read-only", mounted(specs.Mount{Destination: "/work", Type: "tmpfs", Source: "tmpfs", Options: []string{"ro"}})},
	{"tmpfs at a place that is missing", mounted(specs.Mount{Destination: "/new/place", Type: "tmpfs", Source: "tmpfs"})},
	{"tmpfs twice", mounted(
		specs.Mount{Destination: "/work", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=64k"}},
		specs.Mount{Destination: "/work", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=128k"}})},
	{"tmpfs in tmpfs", mounted(
		specs.Mount{Destination: "/work", Type: "tmpfs", Source: "tmpfs"},
		specs.Mount{Destination: "/work/in/it", Type: "tmpfs", Source: "tmpfs", Options: []string{"ro"}})},
	{"bind", bound("bind")},
	{"bind read-only", bound("bind", "ro")},
	{"rbind", bound("rbind")},
	{"rbind read-only", bound("rbind", "ro")},
	{"bind nosuid nodev noexec", bound("bind", "nosuid", "nodev", "noexec")},
	{"bind noatime", bound("bind", "noatime")},
	{"bind strictatime", bound("bind", "strictatime")},
	{"bind private", bound("rbind", "rprivate")},
	{"bind slave", bound("rbind", "rslave")},
	{"bind shared", bound("rbind", "shared")},
	{"bind unbindable", bound("bind", "unbindable")},
	{"bind of a file", func(s *side, c *specs.Spec) {
		c.Mounts = append(c.Mounts, specs.Mount{Destination: "/etc/one", Type: "bind", Source: filepath.Join(s.dir, "src/file"), Options: []string{"bind", "ro"}})
	}},
	{"bind through a link", func(s *side, c *specs.Spec) {
		c.Mounts = append(c.Mounts, specs.Mount{Destination: "/link/below", Type: "bind", Source: filepath.Join(s.dir, "src"), Options: []string{"bind"}})
	}},
	{"bind, recursive read-only", bound("rbind", "rro")},
	{"masks", func(_ *side, c *specs.Spec) {
		c.Linux.MaskedPaths = []string{"/proc/cpuinfo", "/sys/class", "/etc/nothing", "/work"}
	}},
	{"nothing masked", func(_ *side, c *specs.Spec) { c.Linux.MaskedPaths, c.Linux.ReadonlyPaths = nil, nil }},
	{"read-only paths", func(_ *side, c *specs.Spec) {
		c.Linux.ReadonlyPaths = []string{"/proc/sys", "/work", "/no/such", "/bin"}
	}},
	{"a device", func(_ *side, c *specs.Spec) {
		m := os.FileMode(0o640)
		id := uint32(7)
		c.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/mine", Type: "c", Major: 1, Minor: 3, FileMode: &m, UID: &id, GID: &id}}
	}},
	{"a block device and a pipe", func(_ *side, c *specs.Spec) {
		m := os.FileMode(0o600)
		c.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/disk", Type: "b", Major: 7, Minor: 200, FileMode: &m}, {Path: "/dev/pipe", Type: "p", FileMode: &m}}
	}},
	{"proc read-only", func(_ *side, c *specs.Spec) { c.Mounts[0].Options = []string{"ro", "nosuid", "nodev", "noexec"} }},
	{"hidepid", func(_ *side, c *specs.Spec) { c.Mounts[0].Options = []string{"hidepid=2"} }},
	{"sys writable", func(_ *side, c *specs.Spec) { c.Mounts[5].Options = []string{"nosuid"} }},
	{"cgroup writable", func(_ *side, c *specs.Spec) { c.Mounts[6].Options = []string{"nosuid", "noexec", "nodev"} }},
	{"no cgroup mount", func(_ *side, c *specs.Spec) { c.Mounts = c.Mounts[:6] }},
	{"dev read-only", func(_ *side, c *specs.Spec) { c.Mounts[1].Options = append(c.Mounts[1].Options, "ro") }},
	{"sysctl", func(_ *side, c *specs.Spec) {
		c.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1", "fs.mqueue.msg_max": "20"}
	}},
	{"filter", func(_ *side, c *specs.Spec) {
		e := uint(1)
		c.Linux.Seccomp = &specs.LinuxSeccomp{
			DefaultAction: specs.ActAllow, Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchAARCH64},
			Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir", "mkdirat", "sethostname"}, Action: specs.ActErrno, ErrnoRet: &e}},
		}
	}},
	{"filter without no_new_privs", func(_ *side, c *specs.Spec) {
		c.Process.NoNewPrivileges = false
		c.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir"}, Action: specs.ActErrno}}}
	}},
	{"hooks", func(s *side, c *specs.Spec) {
		h := func(name string) []specs.Hook {
			return []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo " + name + " >>" + filepath.Join(s.bundle, "rootfs/work/hooks")}}}
		}
		c.Hooks = &specs.Hooks{Prestart: h("prestart"), CreateRuntime: h("createRuntime"), CreateContainer: h("createContainer"), Poststart: h("poststart")}
	}},
	{"annotations", func(_ *side, c *specs.Spec) { c.Annotations = map[string]string{"a.b": "c", "run.oci.x": "1"} }},
	{"memory", resources(func(r *specs.LinuxResources) { n := int64(1 << 26); r.Memory = &specs.LinuxMemory{Limit: &n} })},
	{"pids", resources(func(r *specs.LinuxResources) { n := int64(50); r.Pids = &specs.LinuxPids{Limit: &n} })},
	{"cpu", resources(func(r *specs.LinuxResources) {
		q, p := int64(50000), uint64(100000)
		r.CPU = &specs.LinuxCPU{Quota: &q, Period: &p, Cpus: "0"}
	})},
	{"all devices", resources(func(r *specs.LinuxResources) {
		r.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
	})},
}

func without(t specs.LinuxNamespaceType) func(*side, *specs.Spec) {
	return func(_ *side, c *specs.Spec) {
		c.Linux.Namespaces = slices.DeleteFunc(c.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == t })
	}
}

func userNamespace(_ *side, c *specs.Spec) {
	c.Linux.Namespaces = append(c.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	m := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	c.Linux.UIDMappings, c.Linux.GIDMappings = m, m
}

func mounted(ms ...specs.Mount) func(*side, *specs.Spec) {
	return func(_ *side, c *specs.Spec) { c.Mounts = append(c.Mounts, ms...) }
}

func bound(options ...string) func(*side, *specs.Spec) {
	return func(s *side, c *specs.Spec) {
		c.Mounts = append(c.Mounts, specs.Mount{Destination: "/work", Type: "bind", Source: filepath.Join(s.dir, "src"), Options: options})
	}
}

func resources(f func(*specs.LinuxResources)) func(*side, *specs.Spec) {
	return func(_ *side, c *specs.Spec) { f(c.Linux.Resources) }
}

// story is what a container of the corpus's spec says of itself, with its control files.
func (s *side) story(i int) (map[string][]string, error) {
	id := "k" + strconv.Itoa(i)
	s.config(id, func(c *specs.Spec) {
		c.Process.Args = []string{"sh", "-c", looks}
		corpus[i].change(s, c)
	})
	defer s.do("delete", "--force", id)
	a := s.do("run", "-d", id)
	if a.code != 0 {
		return nil, fmt.Errorf("%s: %s%s", s.name, a.err, a.last())
	}
	name := filepath.Join(s.dir, "out")
	var text []byte
	for j := 0; !strings.Contains(string(text), "[end]"); j++ {
		if j > 2000 {
			return nil, fmt.Errorf("%s: it says only %s", s.name, text)
		}
		text, _ = os.ReadFile(name)
		time.Sleep(5 * time.Millisecond)
	}
	text = []byte(strings.ReplaceAll(string(text), "/"+id, "/ID"))
	out := s.normal(string(text))
	for n, v := range limits(s.group + "/" + id) {
		if !strings.HasPrefix(n, "hugetlb.") { // on a host with v1, only we make a group in cgroup2 too
			out["[control files]"] = append(out["[control files]"], n+" "+v)
		}
	}
	sort.Strings(out["[control files]"])
	return out, nil
}

// corpusDiffers are differences that are meant. A line is left out where the pattern matches; for one spec, or "" for all.
var corpusDiffers = []struct{ spec, section, line, why string }{
	{"", "[mounts]", `^/sys/fs/cgroup of tmpfs`, "read-only in the spec: runc 1.1 leaves the tmpfs between the hierarchies writable"},
	{"", "[dev]", `^drwxrwxrwt 0:(0|65534) - .* mqueue$`, "in a user namespace runc's has a group that is not mapped"},
	{"", "[status]", `^SigIgn:`, "runc passes on which signals its caller ignores; ours passes on none"},
	{"hooks", "[dev]", `^-rw-r--r-- .* hooks$`, "whether the poststart hook has written already when the container looks is chance"},
	{"personality", "[limits]", `^0000000[08]$`, "runc 1.1 does not know linux.personality"},
}

// corpusSides are two bundles with what the corpus's specs speak of.
func corpusSides(t *testing.T) (ours, runc *side) {
	ours, runc = sides(t)
	for _, s := range []*side{ours, runc} {
		root := filepath.Join(s.bundle, "rootfs")
		for _, d := range []string{filepath.Join(s.dir, "src/sub"), filepath.Join(root, "real")} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(s.dir, "src/file"), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("/real", filepath.Join(root, "link")); err != nil {
			t.Fatal(err)
		}
		for _, a := range []string{"wc", "hostname"} {
			if err := os.Symlink("busybox", filepath.Join(root, "bin", a)); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chmod(s.dir, 0o755); err != nil { // user namespaces pass through it
			t.Fatal(err)
		}
	}
	return ours, runc
}

// TestCorpusBesideRunc: the same specs with both runtimes, and what the containers see. Whatever differs is in corpusDiffers
// with the reason, or fails.
func TestCorpusBesideRunc(t *testing.T) {
	if len(corpus) < 60 {
		t.Errorf("the corpus has %d specs, want at least 60", len(corpus))
	}
	if _, runc := sides(t); runc == nil {
		t.Skip("runc is not installed")
	}
	var mu sync.Mutex
	used := make([]bool, len(corpusDiffers))
	meant := func(name, section, line string) bool {
		mu.Lock()
		defer mu.Unlock()
		for k, d := range corpusDiffers {
			if (d.spec == "" || d.spec == name) && d.section == section && regexp.MustCompile(d.line).MatchString(line) {
				used[k] = true
				return true
			}
		}
		return false
	}
	next := make(chan int)
	var workers sync.WaitGroup
	for range 8 { // most of a start's time is waiting
		ours, runc := corpusSides(t)
		workers.Go(func() {
			for i := range next {
				name := corpus[i].name
				a, err := ours.story(i)
				b, err2 := runc.story(i)
				if err != nil || err2 != nil {
					t.Errorf("%s: %v; %v", name, err, err2)
					continue
				}
				for section := range a {
					only := func(a, b []string) (out []string) {
						b = slices.Clone(b)
						for _, l := range a {
							if k := slices.Index(b, l); k >= 0 {
								b = slices.Delete(b, k, k+1)
							} else if !meant(name, section, l) {
								out = append(out, l)
							}
						}
						return out
					}
					if x, y := only(a[section], b[section]), only(b[section], a[section]); len(x)+len(y) > 0 {
						t.Errorf("%s %s: only ours\n\t%s\nonly runc's\n\t%s", name, section, strings.Join(x, "\n\t"), strings.Join(y, "\n\t"))
					}
				}
			}
		})
	}
	for i := range corpus {
		if !testing.Short() || i%4 == 0 {
			next <- i
		}
	}
	close(next)
	workers.Wait()
	for k, d := range corpusDiffers {
		if !used[k] && !testing.Short() {
			t.Logf("no spec differs any more by %s %s", d.section, d.line)
		}
	}
}
