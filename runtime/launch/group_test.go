package launch

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/onggi/onggi/errdefs"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
)

func TestDeviceRules(t *testing.T) {
	h := newHost(t)
	l, err := layout()
	if err != nil {
		t.Skip(err)
	}
	if _, ok := l.Controllers["devices"]; !ok && !l.V2 {
		t.Skip("this host has no devices hierarchy")
	}
	const script = "cd /tmp; for n in 'n c 1 3' 'k c 1 11' 'l b 7 0'; do set -- $n; busybox mknod $1 $2 $3 $4 && (: <$1) 2>/dev/null && echo $1; done; rm -f n k l; :"
	all, major, minor := runspec.LinuxDeviceCgroup{Allow: true, Access: "rwm"}, int64(1), int64(11)
	for _, c := range []struct {
		name string
		r    *runspec.LinuxResources
		want string
	}{
		{"no resources", nil, "n\n"},
		{"no rule", &runspec.LinuxResources{}, "n\n"},
		{"one more", &runspec.LinuxResources{Devices: []runspec.LinuxDeviceCgroup{{Allow: true, Type: "c", Major: &major, Minor: &minor, Access: "r"}}}, "n\nk\n"},
		{"all", &runspec.LinuxResources{Devices: []runspec.LinuxDeviceCgroup{all}}, "n\nk\n"},
	} {
		s := h.spec(script)
		s.Linux.Resources = c.r
		for _, set := range []*[]string{&s.Process.Capabilities.Bounding, &s.Process.Capabilities.Effective, &s.Process.Capabilities.Permitted} {
			*set = append(*set, "CAP_MKNOD", "CAP_SYSLOG", "CAP_DAC_OVERRIDE")
		}
		out, _, err := h.run(h.options(s))
		out = strings.ReplaceAll(out, "l\n", "") // a loop device may have nothing behind it
		if err != nil || out != c.want {
			t.Errorf("%s: got %q (%v), want %q", c.name, out, err, c.want)
		}
	}
}

// In the guest with systemd: the container's process is in the scope, the annotations are the unit's, and nothing stays.
func TestSystemdScope(t *testing.T) {
	h := newHost(t)
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		t.Skip("no systemd runs here")
	}
	limit, pids := int64(64<<20), int64(40)
	for _, user := range []bool{false, true} {
		s := h.spec("cat /proc/self/cgroup; cat /sys/fs/cgroup/memory.max")
		o := h.options(s)
		o.Systemd = true // the id is the path's last part: taken before the path is a scope's
		unit := "onggi-test-" + strconv.Itoa(os.Getpid()) + "-" + o.ID + ".scope"
		s.Linux.CgroupsPath = "onggi-test.slice:onggi-test-" + strconv.Itoa(os.Getpid()) + ":" + o.ID
		s.Linux.Resources = &runspec.LinuxResources{Memory: &runspec.LinuxMemory{Limit: &limit}, Pids: &runspec.LinuxPids{Limit: &pids}}
		s.Annotations = map[string]string{"org.systemd.property.Description": "'hello'", "org.systemd.property.TimeoutStopSec": "uint64 7"}
		s.Mounts = append(s.Mounts, runspec.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro"}})
		if user {
			s.Linux.Namespaces = append(s.Linux.Namespaces, runspec.LinuxNamespace{Type: "user"})
			s.Linux.UIDMappings = []runspec.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
			s.Linux.GIDMappings = s.Linux.UIDMappings
		}
		o.Ungated = false
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		o.Stdio[1], o.Stdio[2] = w, w
		c, err := Create(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		show := func(p string) string {
			b, _ := exec.Command("systemctl", "show", "-P", p, unit).Output()
			return strings.TrimSpace(string(b))
		}
		for p, want := range map[string]string{"Description": "hello", "TimeoutStopUSec": "7s", "TasksMax": "40", "Slice": "onggi-test.slice", "ActiveState": "active", "Delegate": "yes"} {
			if got := show(p); got != want {
				t.Errorf("%s is %q, want %q", p, got, want)
			}
		}
		b, _ := os.ReadFile("/proc/" + strconv.Itoa(c.Pid()) + "/cgroup")
		if !strings.Contains(string(b), "/onggi.slice/onggi-test.slice/"+unit) {
			t.Errorf("the process is in %s", b)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		_ = w.Close()
		out, _ := io.ReadAll(r)
		if l, _ := layout(); l.V2 && string(out) != "0::/\n67108864\n" {
			t.Errorf("inside: %q", out)
		}
		if _, err := c.Wait(); err != nil {
			t.Error(err)
		}
		if err := c.Delete(); err != nil {
			t.Error(err)
		}
		if got := show("LoadState"); got != "not-found" {
			t.Errorf("the unit is %s", got)
		}
		h.nothingLeft(o.ID)

		// A creation that fails after the scope was made takes it away.
		o.ID += "x"
		o.Stdio, o.Ungated = [3]*os.File{}, true
		s.Linux.Resources.Unified = map[string]string{"memory.nosuch": "1"}
		if _, _, err := h.run(o); err == nil || !strings.Contains(err.Error(), "memory.nosuch") {
			t.Errorf("a limit that there is not: %v", err)
		}
		if got := show("LoadState"); got != "not-found" {
			t.Errorf("after the failure the unit is %s", got)
		}
	}
	_ = exec.Command("systemctl", "stop", "onggi-test.slice", "onggi.slice").Run()
}

func TestSystemdWithout(t *testing.T) {
	h := newHost(t)
	if _, err := os.Stat("/run/systemd/private"); err == nil {
		t.Skip("systemd runs here")
	}
	s := h.spec("true")
	o := h.options(s)
	o.Systemd = true
	for path, want := range map[string]errdefs.Kind{"/a/b": errdefs.InvalidArgument, "a.slice:b:c": errdefs.Unavailable} {
		s.Linux.CgroupsPath = path
		if _, _, err := h.run(o); !errdefs.Is(err, want) || errdefs.FixOf(err) == "" {
			t.Errorf("%s: %v (%v), want %v", path, err, errdefs.KindOf(err), want)
		}
	}
	s.Linux.CgroupsPath = "a.slice:b:c"
	s.Annotations = map[string]string{"org.systemd.property.Nice": "what"}
	if _, _, err := h.run(o); !errdefs.Is(err, errdefs.InvalidArgument) || !strings.Contains(err.Error(), "org.systemd.property.Nice") {
		t.Errorf("an annotation that is no value: %v", err)
	}
}

// config-linux.md, "Cgroup ownership": only with a user and a cgroup namespace of its own and a writable mount.
func TestCgroupOwnership(t *testing.T) {
	h := newHost(t)
	l, err := layout()
	if err != nil || !l.V2 {
		t.Skip("needs cgroup v2 alone")
	}
	for _, c := range []struct {
		name, mode string
		cgroupns   bool
		want       string
	}{
		{"rw", "rw", true, "own\nsub\n"}, {"ro", "ro", true, ""}, {"no cgroup namespace", "rw", false, ""},
	} {
		s := h.spec("cd /sys/fs/cgroup; [ $(stat -c %u cgroup.procs) = 0 ] && [ $(stat -c %u memory.max) != 0 ] && echo own; busybox mkdir sub 2>/dev/null && echo sub; :")
		s.Mounts = append(s.Mounts, runspec.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{c.mode}})
		s.Linux.Namespaces = append(s.Linux.Namespaces, runspec.LinuxNamespace{Type: "user"})
		if !c.cgroupns {
			s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n runspec.LinuxNamespace) bool { return n.Type == "cgroup" })
		}
		s.Linux.UIDMappings = []runspec.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
		s.Linux.GIDMappings = s.Linux.UIDMappings
		if out, _, err := h.run(h.options(s)); err != nil || out != c.want {
			t.Errorf("%s: got %q (%v), want %q", c.name, out, err, c.want)
		}
	}
}

func TestSystemdDeleteAfterKillAtEachStep(t *testing.T) {
	h := newHost(t)
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		t.Skip("no systemd runs here")
	}
	s := h.spec("sleep 100")
	s.Linux.CgroupsPath = "onggi-test.slice:onggi-test:killed"
	h.killAtEachStep(s, "killed", "--systemd-cgroup")
	out, _ := exec.Command("systemctl", "list-units", "--all", "--plain", "--no-legend", "onggi-test-*.scope").Output()
	if len(out) > 0 {
		t.Errorf("units are left: %s", out)
	}
	_ = exec.Command("systemctl", "stop", "onggi-test.slice", "onggi.slice").Run()
	dirs, _ := filepath.Glob("/sys/fs/cgroup/onggi.slice/onggi-test.slice/*.scope")
	if len(dirs) > 0 {
		t.Errorf("control groups are left: %v", dirs)
	}
}
