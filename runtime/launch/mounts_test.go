package launch

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/runtime/plan"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// TestEveryMountOption compares what the kernel shows in mountinfo(5) with each option of the specification's table.
func TestEveryMountOption(t *testing.T) {
	h := newHost(t)
	src := filepath.Join(h.bundle, "src")
	if err := os.MkdirAll(src+"/sub", 0o755); err != nil {
		t.Fatal(err)
	}
	for _, m := range []string{src, src + "/sub"} { // a mount with a mount below it
		if err := unix.Mount("tmpfs", m, "tmpfs", 0, "mode=755"); err != nil {
			t.Fatal(err)
		}
		defer unix.Unmount(m, unix.MNT_DETACH) //nolint:errcheck // newHost's clean-up would fail on it
		if err := os.MkdirAll(src+"/sub", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// option: what the mount and the mount below it show, "-x" for what must be absent.
	for option, want := range map[string][2]string{
		"ro": {"ro", "rw"}, "rw": {"rw", "rw"}, "nosuid": {"nosuid", "-nosuid"}, "suid": {"-nosuid", "-nosuid"}, "nodev": {"nodev", "-nodev"},
		"dev": {"-nodev", "-nodev"}, "noexec": {"noexec", "-noexec"}, "exec": {"-noexec", "-noexec"}, "noatime": {"noatime", "relatime"},
		"atime": {"relatime", "relatime"}, "relatime": {"relatime", "relatime"}, "norelatime": {"relatime", "relatime"},
		"strictatime": {"-relatime", "relatime"}, "nostrictatime": {"relatime", "relatime"}, "nodiratime": {"nodiratime", "-nodiratime"},
		"diratime": {"-nodiratime", "-nodiratime"}, "nosymfollow": {"nosymfollow", "-nosymfollow"}, "symfollow": {"-nosymfollow", "-nosymfollow"},
		"rro": {"ro", "ro"}, "rrw": {"rw", "rw"}, "rnosuid": {"nosuid", "nosuid"}, "rsuid": {"-nosuid", "-nosuid"}, "rnodev": {"nodev", "nodev"},
		"rdev": {"-nodev", "-nodev"}, "rnoexec": {"noexec", "noexec"}, "rexec": {"-noexec", "-noexec"}, "rnoatime": {"noatime", "noatime"},
		"ratime": {"relatime", "relatime"}, "rrelatime": {"relatime", "relatime"}, "rnorelatime": {"relatime", "relatime"},
		"rstrictatime": {"-relatime", "-relatime"}, "rnostrictatime": {"relatime", "relatime"}, "rnodiratime": {"nodiratime", "nodiratime"},
		"rdiratime": {"-nodiratime", "-nodiratime"}, "rnosymfollow": {"nosymfollow", "nosymfollow"}, "rsymfollow": {"-nosymfollow", "-nosymfollow"},
		"defaults": {"rw", "rw"}, "loud": {"rw", "rw"}, "silent": {"rw", "rw"}, "async": {"rw", "rw"}, "noiversion": {"rw", "rw"}, "noacl": {"rw", "rw"},
		"private": {"-shared:", "master:"}, "rprivate": {"-shared:", "-master:"}, "shared": {"shared:", "-shared:"}, "rshared": {"shared:", "shared:"},
		"slave": {"-shared:", "-shared:"}, "rslave": {"-shared:", "-shared:"}, "unbindable": {"unbindable", "-unbindable"},
		"runbindable": {"unbindable", "unbindable"},
	} {
		if strings.HasSuffix(option, "private") {
			want[1] = "-shared:" // whether it has a master depends on the host's mounts
		}
		s := h.spec("while read -r a; do case \"$a\" in *' /m'*) echo \"$a\";; esac; done < /proc/self/mountinfo")
		s.Mounts = append(s.Mounts, runspec.Mount{Destination: "/m", Type: "none", Source: src, Options: []string{"rbind", option}})
		out, code, err := h.run(h.options(s))
		lines := strings.Split(strings.TrimSpace(out), "\n")
		if err != nil || code != 0 || len(lines) != 2 {
			t.Errorf("%s: %q, code %d, %v", option, out, code, err)
			continue
		}
		for i, line := range lines {
			f := strings.Fields(line)
			tags := strings.Join(f[6:len(f)-3], " ") // between the mount's options and the file system's
			has := strings.Contains(","+f[5]+",", ","+strings.TrimPrefix(want[i], "-")+",") || strings.Contains(tags, strings.TrimPrefix(want[i], "-"))
			if has == strings.HasPrefix(want[i], "-") {
				t.Errorf("%s: line %d is %q, want %s", option, i, line, want[i])
			}
		}
	}
}

func TestOptionsOfNewFileSystems(t *testing.T) {
	h := newHost(t)
	for option, want := range map[string]string{
		"sync": "sync", "dirsync": "dirsync", "lazytime": "lazytime", "size=64k": "size=64k", "rro": "ro", "ro": "ro", "nosymfollow": "nosymfollow",
		"iversion": "rw", "acl": "rw", "mand": "rw", "async": "-sync", "nolazytime": "-lazytime", "nomand": "rw", "silent": "rw",
		"mpol=bind:0": "mpol=bind:0",
	} {
		s := h.spec("grep ' /m ' /proc/self/mountinfo")
		s.Mounts = append(s.Mounts, runspec.Mount{Destination: "/m", Type: "tmpfs", Source: "tmpfs", Options: []string{option}})
		out, code, err := h.run(h.options(s))
		if err != nil || code != 0 {
			t.Errorf("%s: %q, code %d, %v", option, out, code, err)
			continue
		}
		flat := "," + strings.NewReplacer(" ", ",").Replace(strings.TrimSpace(out)) + ","
		if strings.Contains(flat, ","+strings.TrimPrefix(want, "-")+",") == strings.HasPrefix(want, "-") {
			t.Errorf("%s: %q, want %s", option, out, want)
		}
	}
	// An option that fsconfig(2) does not take goes by mount(2), the attributes with it.
	s := h.spec("grep ' /m ' /proc/self/mountinfo; touch /m/x && echo written; pwd")
	s.Process.Cwd = "/m"
	s.Mounts = append(s.Mounts, runspec.Mount{Destination: "/m", Type: "tmpfs", Source: strings.Repeat("s", 300), Options: []string{"nodev", "noatime", "iversion", "size=32k", "rprivate"}})
	if out, _, err := h.run(h.options(s)); err != nil || !strings.Contains(out, "rw,nodev,noatime - tmpfs") || !strings.Contains(out, "size=32k") || !strings.HasSuffix(out, "written\n/m\n") {
		t.Errorf("mount(2): %q, %v", out, err)
	}
	s = h.spec("true")
	s.Mounts = append(s.Mounts, runspec.Mount{Destination: "/m", Type: "tmpfs", Options: []string{"odd=1"}})
	if _, _, err := h.run(h.options(s)); err == nil || !strings.Contains(err.Error(), "give /m the option odd=1") {
		t.Errorf("an option that tmpfs has not: %v", err)
	}
}

func TestRemount(t *testing.T) {
	h := newHost(t)
	s := h.spec("grep -E ' /(m|proc|dev/shm) ' /proc/self/mountinfo")
	s.Mounts = append(s.Mounts,
		runspec.Mount{Destination: "/m", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=64k", "nosuid"}},
		runspec.Mount{Destination: "/m", Type: "tmpfs", Source: "tmpfs", Options: []string{"remount", "size=128k", "nodev"}},
		runspec.Mount{Destination: "/dev/shm", Type: "bind", Options: []string{"remount", "bind", "ro", "exec"}},
		runspec.Mount{Destination: "/proc", Type: "proc", Options: []string{"remount", "nosuid", "noexec"}})
	out, _, err := h.run(h.options(s))
	for _, want := range []string{" /m rw,nosuid,nodev,relatime ", "size=128k", " /dev/shm ro,nosuid,nodev,relatime ", " /proc rw,nosuid,noexec,relatime "} {
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("%q is missing in %q (%v)", want, out, err)
		}
	}
	s = h.spec("true")
	s.Mounts = append(s.Mounts, runspec.Mount{Destination: "/tmp", Type: "none", Options: []string{"remount", "bind", "ro"}})
	if _, _, err := h.run(h.options(s)); err == nil || !strings.Contains(err.Error(), "set options of /tmp") {
		t.Errorf("remounting what is not mounted: %v", err)
	}
}

// TestIDMappedMounts: files of ids that the container does not have become the container's.
func TestIDMappedMounts(t *testing.T) {
	h := newHost(t)
	src, other := filepath.Join(h.bundle, "data"), filepath.Join(h.bundle, "other")
	for _, d := range []string{src + "/sub", other, filepath.Join(h.rootfs, "m")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// On the disk, because tmpfs knows id maps only since Linux 6.3; with a mount below.
	if err := unix.Mount(other, src+"/sub", "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(src+"/sub", unix.MNT_DETACH) //nolint:errcheck // newHost's clean-up would fail on it
	for _, d := range []string{src, other} {
		if err := os.WriteFile(d+"/f", nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(d+"/f", 1000, 2000); err != nil {
			t.Fatal(err)
		}
	}
	maps := func(c, host, n uint32) []runspec.LinuxIDMapping {
		return []runspec.LinuxIDMapping{{ContainerID: c, HostID: host, Size: n}}
	}
	const look = "stat -c %u:%g /m/f /m/sub/f"
	for _, c := range []struct {
		name   string
		user   bool
		mount  runspec.Mount
		want   string
		failed string
	}{
		{
			name: "own maps", mount: runspec.Mount{Options: []string{"rbind", "idmap"}, UIDMappings: maps(1000, 5, 10), GIDMappings: maps(2000, 7, 10)},
			want: "5:7\n1000:2000\n",
		},
		{
			name: "recursive", mount: runspec.Mount{Options: []string{"rbind", "ridmap"}, UIDMappings: maps(1000, 5, 10), GIDMappings: maps(2000, 7, 10)},
			want: "5:7\n5:7\n",
		},
		{
			name: "without the option", mount: runspec.Mount{Options: []string{"rbind"}, UIDMappings: maps(1000, 5, 10), GIDMappings: maps(2000, 7, 10)},
			want: "5:7\n1000:2000\n",
		},
		{name: "the container's maps", user: true, mount: runspec.Mount{Options: []string{"rbind", "ridmap"}}, want: "1000:2000\n1000:2000\n"},
		{name: "no map", user: true, mount: runspec.Mount{Options: []string{"rbind"}}, want: "65534:65534\n65534:65534\n"},
		{name: "several ranges", user: true, mount: runspec.Mount{
			Options:     []string{"rbind", "ridmap"},
			UIDMappings: append(maps(1000, 100001, 1), maps(5, 100020, 3)...), GIDMappings: maps(2000, 100003, 1),
		}, want: "1:3\n1:3\n"},
		{
			name: "of a file system that has none", mount: runspec.Mount{Source: "/proc", Options: []string{"bind", "idmap"}, UIDMappings: maps(0, 5, 10), GIDMappings: maps(0, 7, 10)},
			failed: "set id map of /m",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			h.t = t
			s := h.spec(look)
			if c.user {
				s.Linux.Namespaces = append(s.Linux.Namespaces, runspec.LinuxNamespace{Type: "user"})
				s.Linux.UIDMappings, s.Linux.GIDMappings = maps(0, 100000, 65536), maps(0, 100000, 65536)
			}
			m := c.mount
			m.Destination, m.Type = "/m", "none"
			if m.Source == "" {
				m.Source = src
			}
			s.Mounts = append(s.Mounts, m)
			out, _, err := h.run(h.options(s))
			if c.failed != "" {
				if err == nil || !strings.Contains(err.Error(), c.failed) {
					t.Errorf("got %v, want %s", err, c.failed)
				}
			} else if err != nil || out != c.want {
				t.Errorf("got %q (%v), want %q", out, err, c.want)
			}
		})
	}
}

// TestBindSourcesThatTheContainersRootCannotReach: the way to a volume is the runtime's, not the mapped root's.
func TestBindSourcesThatTheContainersRootCannotReach(t *testing.T) {
	h := newHost(t)
	closed := filepath.Join(h.bundle, "closed")
	if err := os.MkdirAll(closed+"/volume", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(closed+"/volume/f", []byte("content\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(closed+"/secret", []byte("secret\n"), 0o444); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	s := h.spec("cat /v/f /run/secret; touch /v/x 2>/dev/null || echo readonly; grep -c ' /v ro,nosuid' /proc/self/mountinfo; grep ' /v ' /proc/self/mountinfo | grep -c shared:")
	s.Linux.Namespaces = append(s.Linux.Namespaces, runspec.LinuxNamespace{Type: "user"})
	maps := []runspec.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	s.Linux.UIDMappings, s.Linux.GIDMappings = maps, maps
	if err := os.Mkdir(filepath.Join(h.rootfs, "v"), 0o755); err != nil { // the mapped root may make none
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(h.rootfs, "run"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.rootfs, "run/secret"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	s.Mounts = append(s.Mounts, runspec.Mount{Destination: "/v", Type: "bind", Source: closed + "/volume", Options: []string{"rbind", "ro", "nosuid"}},
		runspec.Mount{Destination: "/run/secret", Type: "bind", Source: closed + "/secret", Options: []string{"bind"}})
	if out, _, err := h.run(h.options(s)); err != nil || out != "content\nsecret\nreadonly\n1\n0\n" {
		t.Errorf("got %q (%v)", out, err)
	}
}

// TestSysfsAndMqueueOfJoinedNamespaces: a user namespace may not mount them for namespaces that it does not own.
func TestSysfsAndMqueueOfJoinedNamespaces(t *testing.T) {
	h := newHost(t)
	s := h.spec("ls /sys/class >/dev/null && echo sysfs; grep -o ' /dev/mqueue .* mqueue' /proc/self/mountinfo | grep -o mqueue$; touch /sys/x 2>/dev/null || echo readonly")
	s.Linux.Namespaces = append(s.Linux.Namespaces, runspec.LinuxNamespace{Type: "user"})
	maps := []runspec.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	s.Linux.UIDMappings, s.Linux.GIDMappings = maps, maps
	var own []runspec.LinuxNamespace
	for _, n := range s.Linux.Namespaces {
		if n.Type != runspec.NetworkNamespace && n.Type != runspec.IPCNamespace {
			own = append(own, n)
		}
	}
	s.Linux.Namespaces = own
	if _, err := os.Stat("/dev/mqueue"); err == nil {
		s.Mounts = append(s.Mounts, runspec.Mount{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}})
	}
	if out, _, err := h.run(h.options(s)); err != nil || !strings.HasPrefix(out, "sysfs\n") || !strings.HasSuffix(out, "readonly\n") {
		t.Errorf("got %q (%v)", out, err)
	}
}

func TestMountsThatWouldUndoProc(t *testing.T) { // CVE-2019-16884, CVE-2019-19921
	h := newHost(t)
	for _, m := range []runspec.Mount{
		{Destination: "/proc", Type: "tmpfs", Source: "tmpfs"},
		{Destination: "/proc", Type: "bind", Source: h.bundle, Options: []string{"bind"}},
		{Destination: "/proc/self/attr", Type: "tmpfs", Source: "tmpfs"},
		{Destination: "proc/../proc/sys", Type: "bind", Source: h.bundle, Options: []string{"bind"}},
	} {
		s := h.spec("true")
		s.Mounts = append(s.Mounts, m)
		if _, _, err := h.run(h.options(s)); err == nil || !errdefs.Is(err, errdefs.InvalidArgument) && !strings.Contains(err.Error(), "proc file system") {
			t.Errorf("%+v: got %v", m, err)
		}
	}
}

// TestMapsWithoutPrivileges: newuidmap(1) and newgidmap(1) write what /etc/subuid and /etc/subgid permit. The test runs
// itself again as nobody, in a mount namespace with such files.
func TestMapsWithoutPrivileges(t *testing.T) {
	if os.Getenv("ONGGI_TEST_MAPS") != "" {
		mapsWithoutPrivileges()
	}
	newHost(t)
	for _, p := range []string{"newuidmap", "newgidmap", "setpriv", "unshare"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("%s is not installed", p)
		}
	}
	for _, f := range []string{"/etc/subuid", "/etc/subgid"} {
		if _, err := os.Stat(f); err != nil {
			t.Skipf("there is no %s to mount another one over", f)
		}
	}
	dir, err := os.MkdirTemp("/var/tmp", "onggi-maps-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a directory of this test
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/sub", []byte("nobody:300000:5000\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/test", b, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("unshare", "--mount", "sh", "-c", `mount --bind "$0/sub" /etc/subuid && mount --bind "$0/sub" /etc/subgid &&
		exec setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all "$0/test" -test.run='^TestMapsWithoutPrivileges$'`, dir)
	cmd.Env = []string{"ONGGI_TEST_MAPS=" + dir, "PATH=" + os.Getenv("PATH")}
	out, err := cmd.CombinedOutput()
	const want = "own: 0 65534 1 | 0 65534 1 | deny\nranges: 0 65534 1 1 300000 5000 | 0 65534 1 1 300000 5000 | allow\nforeign: Forbidden\n"
	if err != nil || string(out) != want {
		t.Errorf("got %q (%v), want %q", out, err, want)
	}
}

func mapsWithoutPrivileges() {
	dir := os.Getenv("ONGGI_TEST_MAPS")
	fields := func(name string) string {
		b, _ := os.ReadFile(name)
		return strings.Join(strings.Fields(string(b)), " ")
	}
	own := runspec.LinuxIDMapping{HostID: 65534, Size: 1}
	for _, c := range []struct {
		name string
		maps []runspec.LinuxIDMapping
	}{
		{"own", []runspec.LinuxIDMapping{own}},
		{"ranges", []runspec.LinuxIDMapping{own, {ContainerID: 1, HostID: 300000, Size: 5000}}},
		{"foreign", []runspec.LinuxIDMapping{own, {ContainerID: 1, HostID: 400000, Size: 5}}},
	} {
		r, w, _ := os.Pipe()
		pid, err := spawn(&spawnArgs{plan: plan.BuildIdle(unix.CLONE_NEWUSER, 0, 1), dir: dir, fds: []int{int(r.Fd()), int(w.Fd())}, cgroup: -1})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		err = writeMaps(pid, c.maps, c.maps)
		proc := "/proc/" + strconv.Itoa(pid)
		switch {
		case errdefs.Is(err, errdefs.Forbidden):
			fmt.Println(c.name + ": Forbidden")
		case err != nil:
			fmt.Println(c.name+":", err)
		default:
			fmt.Println(c.name+":", fields(proc+"/uid_map"), "|", fields(proc+"/gid_map"), "|", fields(proc+"/setgroups"))
		}
		_ = unix.Kill(pid, unix.SIGKILL)
		reap(pid)
	}
	os.Exit(0)
}
