package launch

//lint:file-ignore SA1019 Prestart is deprecated, but engines still send it

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/mount"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// host is a bundle with busybox in it and a directory for states.
type host struct {
	t      *testing.T
	root   string // of states
	bundle string
	rootfs string
	n      int
}

func newHost(t *testing.T) *host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("containers need root")
	}
	busybox := ""
	for _, p := range []string{"/bin/busybox", "/usr/bin/busybox"} {
		if _, err := os.Stat(p); err == nil {
			busybox = p
		}
	}
	if busybox == "" {
		t.Skip("busybox-static is not installed")
	}
	// Not t.TempDir: its parents are 0700, and a user namespace must pass through them.
	dir, err := os.MkdirTemp("/var/tmp", "onggi-test."+strconv.Itoa(os.Getpid())+".")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("something is left in use: %v", err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, root: filepath.Join(dir, "states"), bundle: filepath.Join(dir, "bundle"), rootfs: filepath.Join(dir, "bundle/rootfs")}
	for _, d := range []string{"bin", "proc", "sys", "dev", "etc", "tmp"} {
		if err := os.MkdirAll(filepath.Join(h.rootfs, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.rootfs, "bin/busybox"), b, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{"sh", "cat", "ls", "id", "sleep", "true", "readlink", "hostname", "mount", "pwd", "stat", "tty", "ulimit", "kill", "env", "touch", "ps", "grep", "dd"} {
		if err := os.Symlink("busybox", filepath.Join(h.rootfs, "bin", a)); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

func (h *host) spec(script string) *runspec.Spec {
	caps := []string{"CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_CHOWN"}
	return &runspec.Spec{
		Version: "1.0.2",
		Process: &runspec.Process{
			Args: []string{"sh", "-c", script}, Cwd: "/", NoNewPrivileges: true, Env: []string{"PATH=/bin", "HOME=/"},
			Capabilities: &runspec.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
		},
		Root:     &runspec.Root{Path: "rootfs"},
		Hostname: "testhost",
		Mounts: []runspec.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		},
		Linux: &runspec.Linux{
			CgroupsPath:   "/onggi-test-" + strconv.Itoa(os.Getpid()) + "/" + h.id(),
			Namespaces:    []runspec.LinuxNamespace{{Type: "pid"}, {Type: "network"}, {Type: "ipc"}, {Type: "uts"}, {Type: "mount"}, {Type: "cgroup"}},
			MaskedPaths:   []string{"/proc/kcore", "/proc/keys", "/sys/firmware", "/proc/nothing"},
			ReadonlyPaths: []string{"/proc/sys", "/proc/sysrq-trigger", "/proc/bus"},
		},
	}
}

func (h *host) id() string {
	h.n++
	return "c" + strconv.Itoa(h.n)
}

func (h *host) options(s *runspec.Spec) Options {
	return Options{Root: h.root, ID: filepath.Base(s.Linux.CgroupsPath), Bundle: h.bundle, Spec: s, Ungated: true, Warn: func(w string) { h.t.Log("warning:", w) }}
}

// run runs a container to its end and returns its output and exit code; err is Create's or Start's.
func (h *host) run(o Options) (out string, code int, err error) {
	h.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		h.t.Fatal(err)
	}
	if o.Stdio[1] == nil && !o.Replica {
		o.Stdio[1], o.Stdio[2] = w, w
	}
	got := make(chan string)
	go func() {
		b, _ := io.ReadAll(r)
		got <- string(b)
	}()
	c, err := Create(context.Background(), o)
	if err != nil {
		_ = w.Close()
		<-got
		h.nothingLeft(o.ID)
		return "", 0, err
	}
	startErr := c.Start()
	_ = w.Close()
	e, err := c.Wait()
	if err != nil {
		h.t.Fatal(err)
	}
	out = <-got
	if err := c.Delete(); err != nil {
		h.t.Errorf("delete: %v", err)
	}
	h.nothingLeft(o.ID)
	return out, e.Code, startErr
}

func (h *host) nothingLeft(id string) {
	h.t.Helper()
	if _, err := os.Stat(filepath.Join(h.root, id)); err == nil {
		h.t.Errorf("the state of %s is left", id)
	}
	left, _ := filepath.Glob("/sys/fs/cgroup/*/onggi-test-" + strconv.Itoa(os.Getpid()) + "/" + id)
	more, _ := filepath.Glob("/sys/fs/cgroup/onggi-test-" + strconv.Itoa(os.Getpid()) + "/" + id)
	if left = append(left, more...); len(left) > 0 {
		h.t.Errorf("control groups are left: %v", left)
	}
}

func TestMain(m *testing.M) {
	code := m.Run()
	if built != "" {
		_ = os.RemoveAll(filepath.Dir(built))
	}
	for _, g := range []string{"/sys/fs/cgroup/*/onggi-test-", "/sys/fs/cgroup/onggi-test-"} {
		dirs, _ := filepath.Glob(g + strconv.Itoa(os.Getpid()))
		for _, d := range dirs {
			_ = unix.Rmdir(d)
		}
	}
	os.Exit(code)
}

func TestTheContainerSeesItself(t *testing.T) {
	h := newHost(t)
	for _, c := range []struct{ name, script, want string }{
		{"first process", "echo $$", "1\n"},
		{"host name", "hostname", "testhost\n"},
		{"working directory", "pwd", "/\n"},
		{"capabilities", "grep -E 'Cap(Prm|Eff|Bnd)' /proc/self/status | while read a b; do echo $b; done", strings.Repeat("0000000020000421\n", 3)},
		{"inheritable is empty (CVE-2022-29162)", "grep CapInh /proc/self/status", "CapInh:\t0000000000000000\n"},
		{"ambient is empty", "grep CapAmb /proc/self/status", "CapAmb:\t0000000000000000\n"},
		{"no_new_privs", "grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t1\n"},
		{"no signal is blocked", "grep SigBlk /proc/1/status", "SigBlk:\t0000000000000000\n"},
		{"own executable (CVE-2019-5736)", "readlink /proc/1/exe", "/bin/busybox\n"},
		{"masked file", "cat /proc/keys | dd 2>/dev/null; stat -c %t:%T /proc/keys", "1:3\n"},
		{"masked directory", "ls -A /sys/firmware", ""},
		{"read-only path", "echo 1 2>/dev/null > /proc/sys/kernel/sysrq || echo refused", "refused\n"},
		{"standard devices", "echo x > /dev/null && stat -c %t:%T /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty", "1:3\n1:5\n1:7\n1:8\n1:9\n5:0\n"},
		{"links in /dev", "readlink /dev/fd; readlink /dev/ptmx", "/proc/self/fd\npts/ptmx\n"},
		{"umask", "umask", "0022\n"},
		{"loopback is up", "cat /sys/class/net/lo/flags", "0x9\n"},
		{"no other network", "ls /sys/class/net", "lo\n"},
		{"own control group", "grep -v '^0:' /proc/self/cgroup | grep -vc ':/$'", "0\n"},
		{"no host file", "ls /var 2>/dev/null || echo none", "none\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h.t = t
			out, _, err := h.run(h.options(h.spec(c.script)))
			if err != nil || out != c.want {
				t.Errorf("got %q (%v), want %q", out, err, c.want)
			}
		})
	}
}

func TestNoDescriptorOfTheHostGetsIn(t *testing.T) { // CVE-2024-21626
	h := newHost(t)
	leak, err := os.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer leak.Close()                                                   //nolint:errcheck // read only
	if _, err := unix.FcntlInt(leak.Fd(), unix.F_SETFD, 0); err != nil { // not even without close-on-exec
		t.Fatal(err)
	}
	for _, init := range []bool{false, true} {
		o := h.options(h.spec("ls /proc/self/fd; echo; ls /proc/1/fd; true"))
		o.Init = init
		out, _, err := h.run(o)
		// ls itself opens the directory as 3
		if want := "0\n1\n2\n3\n\n0\n1\n2\n"; err != nil || out != want && out != strings.Replace(want, "\n\n0\n1\n2\n", "\n\n0\n1\n2\n10\n", 1) {
			t.Errorf("init %v: got %q (%v), want %q", init, out, err, want)
		}
	}
	s := h.spec("ls -d ./usr ./var 2>/dev/null")
	s.Process.Cwd = "/proc/self/fd/" + strconv.Itoa(int(leak.Fd()))
	if out, _, err := h.run(h.options(s)); err == nil && out != "" {
		t.Errorf("the working directory is the host's: %q", out)
	}
}

func TestTheImageCannotBeReachedFromInside(t *testing.T) { // CVE-2019-5736
	h := newHost(t)
	s := h.spec("")
	s.Process.Args = []string{"/proc/self/exe"}
	o := h.options(s)
	o.Ungated = false
	c, err := Create(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	// While it waits, its executable is the sealed image, not this program.
	exe, err := os.Readlink("/proc/" + strconv.Itoa(c.Pid()) + "/exe")
	if err != nil || !strings.Contains(exe, "memfd:onggi-init") {
		t.Errorf("the waiting process executes %q (%v)", exe, err)
	}
	if w, err := os.OpenFile("/proc/"+strconv.Itoa(c.Pid())+"/exe", os.O_WRONLY, 0); err == nil {
		if _, err := w.Write([]byte("x")); err == nil {
			t.Error("the image can be written")
		}
		_ = w.Close()
	}
	if err := c.Start(); err != nil {
		t.Logf("start: %v", err)
	}
	if e, _ := c.Wait(); e.Code == 0 {
		t.Error("the image ran again inside the container")
	}
	if err := c.Delete(); err != nil {
		t.Error(err)
	}
}

func TestExitCodes(t *testing.T) {
	h := newHost(t)
	for _, c := range []struct {
		script string
		init   bool
		want   int
	}{
		{"exit 7", false, 7},
		{"kill -9 $$; sleep 1; exit 3", false, 3},
		{"exit 7", true, 7},
		{"kill -9 $$", true, 137},
		{"kill -TERM 1; sleep 5", true, 143},
		{"(sleep 0.05; exit 3) & sleep 0.1; exit 9", true, 9},
	} {
		o := h.options(h.spec(c.script))
		o.Init = c.init
		if out, code, err := h.run(o); err != nil || code != c.want {
			t.Errorf("%q init %v: code %d, want %d (%v) %s", c.script, c.init, code, c.want, err, out)
		}
	}
}

func TestCommandsThatCannotRun(t *testing.T) {
	h := newHost(t)
	if err := os.WriteFile(filepath.Join(h.rootfs, "bin/data"), []byte("no program"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.rootfs, "bin/garbage"), []byte{1, 2, 3, 4}, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		cmd  string
		want errdefs.Kind
		text string
	}{
		{"nope", errdefs.CommandNotFound, "executable file not found in $PATH"},
		{"/no/such", errdefs.CommandNotFound, "no such file"},
		{"data", errdefs.NotExecutable, "permission denied"},
		{"/etc", errdefs.NotExecutable, "permission denied"},
		{"/bin/garbage", errdefs.NotExecutable, "exec format error"},
	} {
		for _, ungated := range []bool{true, false} {
			s := h.spec("")
			s.Process.Args = []string{c.cmd}
			o := h.options(s)
			o.Ungated = ungated
			_, _, err := h.run(o)
			if errdefs.KindOf(err) != c.want || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%s (ungated %v): got %v (%v), want %v", c.cmd, ungated, err, errdefs.KindOf(err), c.want)
			}
		}
	}
}

func TestUserIdsAndLimits(t *testing.T) {
	h := newHost(t)
	s := h.spec("id -u; id -g; id -G; pwd; ulimit -n; umask; cat /proc/self/oom_score_adj")
	mask := uint32(0o077)
	adj := 500
	s.Process.User = runspec.User{UID: 1234, GID: 2345, AdditionalGids: []uint32{7, 4294967290}, Umask: &mask}
	s.Process.Cwd = "/made/when/missing"
	s.Process.OOMScoreAdj = &adj
	s.Process.Rlimits = []runspec.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}}
	out, _, err := h.run(h.options(s))
	if want := "1234\n2345\n2345 7 4294967290\n/made/when/missing\n100\n0077\n500\n"; err != nil || out != want {
		t.Errorf("got %q (%v), want %q", out, err, want)
	}
}

func TestWhatCannotBeRaisedIsClampedWithAWarning(t *testing.T) {
	h := newHost(t)
	if m, _ := held(); m&(1<<unix.CAP_SYS_RESOURCE) != 0 {
		t.Skip("this process may raise limits")
	}
	var warnings []string
	s := h.spec("cat /proc/self/oom_score_adj; grep CapEff /proc/self/status")
	adj := -900
	s.Process.OOMScoreAdj = &adj
	s.Process.Rlimits = []runspec.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1 << 40, Hard: 1 << 40}}
	s.Process.Capabilities.Bounding = []string{"CAP_SYS_RESOURCE"}
	s.Process.Capabilities.Permitted = []string{"CAP_SYS_RESOURCE"}
	s.Process.Capabilities.Effective = []string{"CAP_SYS_RESOURCE"}
	o := h.options(s)
	o.Warn = func(w string) { warnings = append(warnings, w) }
	out, code, err := h.run(o)
	if err != nil || code != 0 || !strings.Contains(out, "CapEff:\t0000000000000000") || len(warnings) != 3 {
		t.Errorf("code %d, error %v, output %q, warnings %q", code, err, out, warnings)
	}
}

func TestMounts(t *testing.T) {
	h := newHost(t)
	src := filepath.Join(h.bundle, "volume")
	if err := os.MkdirAll(src, 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(h.bundle, "hosts")
	for _, f := range []string{file, filepath.Join(src, "a")} {
		if err := os.WriteFile(f, []byte("content\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s := h.spec("cat /new/dir/volume/a /etc/hosts /rel/a; touch /new/dir/volume/x 2>/dev/null || echo readonly; touch /rel/x && echo writable; stat -c %a /tmp2 /tmp; mount | grep -o '/new/dir/volume .*(ro[^)]*nosuid'")
	s.Root.Readonly = true
	if err := os.Mkdir(filepath.Join(h.rootfs, "tmp2"), 0o750); err != nil {
		t.Fatal(err)
	}
	s.Mounts = append(s.Mounts,
		runspec.Mount{Destination: "/new/dir/volume", Type: "bind", Source: src, Options: []string{"rbind", "ro", "nosuid", "rprivate"}},
		runspec.Mount{Destination: "/etc/hosts", Type: "bind", Source: file, Options: []string{"bind"}},
		runspec.Mount{Destination: "/rel", Source: "volume", Options: []string{"rbind"}},
		runspec.Mount{Destination: "/tmp2", Type: "tmpfs", Source: "tmpfs"},
		runspec.Mount{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=1700"}})
	out, _, err := h.run(h.options(s))
	if want := "content\ncontent\ncontent\nreadonly\nwritable\n750\n1700\n"; err != nil || !strings.HasPrefix(out, want) || !strings.Contains(out, "/new/dir/volume") {
		t.Errorf("got %q (%v), want %q", out, err, want)
	}
}

func TestTargetsBehindLinksStayInside(t *testing.T) { // CVE-2021-30465, CVE-2019-19921, CVE-2023-27561, CVE-2025-31133
	h := newHost(t)
	outside := filepath.Join(h.bundle, "outside")
	src := filepath.Join(h.bundle, "src")
	for _, d := range []string{outside, src} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{"abs": outside, "up": "../../../../../.." + outside, "toproc": "/proc"} {
		if err := os.Symlink(to, filepath.Join(h.rootfs, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, dest := range []string{"/abs/made", "/up/made", "/abs", "/up"} {
		s := h.spec("true")
		s.Mounts = append(s.Mounts, runspec.Mount{Destination: dest, Type: "bind", Source: src, Options: []string{"rbind"}})
		_, _, err := h.run(h.options(s))
		t.Logf("%s: %v", dest, err)
		if es, _ := os.ReadDir(outside); len(es) != 0 {
			t.Fatalf("%s made something outside of the root", dest)
		}
	}
	s := h.spec("true")
	s.Mounts = append(s.Mounts, runspec.Mount{Destination: "/toproc/sys", Type: "bind", Source: src, Options: []string{"rbind"}})
	if _, _, err := h.run(h.options(s)); err == nil || !strings.Contains(err.Error(), "refuse a mount inside /proc") {
		t.Errorf("a mount over /proc through a link: %v", err)
	}
	if err := os.RemoveAll(filepath.Join(h.rootfs, "proc")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("tmp", filepath.Join(h.rootfs, "proc")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := h.run(h.options(h.spec("true"))); err == nil {
		t.Error("a root whose /proc is a link was accepted")
	}
}

func TestRootAsMounts(t *testing.T) {
	h := newHost(t)
	upper, work, low := filepath.Join(h.bundle, "upper"), filepath.Join(h.bundle, "work"), filepath.Join(h.bundle, "low")
	for _, d := range []string{upper, work, low} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(low, "lower-file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for name, m := range map[string]mount.Mount{
		"overlay":  {Type: "overlay", Overlay: &mount.Overlay{Lower: []string{low, h.rootfs}, Upper: upper, Work: work}},
		"volatile": {Type: "overlay", Overlay: &mount.Overlay{Lower: []string{low, h.rootfs}, Upper: upper, Work: work, Volatile: true}},
		"long": {Type: "overlay", Overlay: &mount.Overlay{
			Lower: append(append([]string{}, longLayers(t, h.bundle)...), low, h.rootfs),
			Upper: upper, Work: work,
		}},
	} {
		t.Run(name, func(t *testing.T) {
			h.t = t
			_ = os.RemoveAll(work)
			_ = os.Mkdir(work, 0o755)
			s := h.spec("touch /written && ls /lower-file && mount | grep -c ' / type overlay'")
			o := h.options(s)
			o.Rootfs = []mount.Mount{m}
			out, code, err := h.run(o)
			if err != nil || code != 0 || out != "/lower-file\n1\n" {
				t.Errorf("got %q, code %d (%v)", out, code, err)
			}
			if _, err := os.Stat(filepath.Join(upper, "written")); err != nil {
				t.Error("the writable layer has not got the file")
			}
		})
	}
	after, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("a mount reached the host: %v", err)
	}
}

// longLayers makes layers whose paths do not fit in fsconfig(2), so that mount(2) is used.
func longLayers(t *testing.T, dir string) (out []string) {
	for i := range 3 {
		p := filepath.Join(dir, strings.Repeat("x", 200), strings.Repeat("y", 100)+strconv.Itoa(i))
		if err := os.MkdirAll(p, 0o755); err != nil {
			t.Fatal(err)
		}
		out = append(out, p)
	}
	return out
}

func TestUserNamespace(t *testing.T) {
	h := newHost(t)
	s := h.spec("id -u; cat /proc/self/uid_map | while read a b c; do echo $a $b $c; done; echo x > /dev/null && echo ok; grep CapEff /proc/self/status; ulimit -n; cat /proc/self/oom_score_adj")
	s.Linux.Namespaces = append(s.Linux.Namespaces, runspec.LinuxNamespace{Type: "user"})
	maps := []runspec.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	s.Linux.UIDMappings, s.Linux.GIDMappings = maps, maps
	adj := 300
	s.Process.OOMScoreAdj = &adj
	s.Process.Rlimits = []runspec.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}}
	out, _, err := h.run(h.options(s))
	if want := "0\n0 100000 65536\nok\nCapEff:\t0000000020000421\n100\n300\n"; err != nil || out != want {
		t.Errorf("got %q (%v), want %q", out, err, want)
	}
}

// background starts a container that sleeps.
func (h *host) background(o Options) *Container {
	h.t.Helper()
	c, err := h.tryBackground(o)
	if err != nil {
		h.t.Fatal(err)
	}
	return c
}

func (h *host) tryBackground(o Options) (*Container, error) {
	h.t.Helper()
	c, err := Create(context.Background(), o)
	if err != nil {
		return nil, err
	}
	h.t.Cleanup(func() {
		_ = c.Signal(int(unix.SIGKILL))
		_, _ = c.Wait()
		if err := c.ForceDelete(); err != nil {
			h.t.Error(err)
		}
		h.nothingLeft(o.ID)
	})
	return c, c.Start()
}

func TestExec(t *testing.T) {
	h := newHost(t)
	for _, user := range []bool{false, true} {
		s := h.spec("sleep 100")
		if user {
			s.Linux.Namespaces = append(s.Linux.Namespaces, runspec.LinuxNamespace{Type: "user"})
			maps := []runspec.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
			s.Linux.UIDMappings, s.Linux.GIDMappings = maps, maps
		}
		o := h.options(s)
		h.background(o)
		c, err := Load(h.root, o.ID) // as another process would
		if err != nil {
			t.Fatal(err)
		}
		p := c.DefaultProcess()
		p.Args = []string{"sh", "-c", "hostname; id -u; pwd; ls /proc/self/fd; grep -E 'CapEff|NoNewPrivs|CapInh' /proc/self/status; cut -d: -f3 /proc/self/cgroup | grep -v '^/$'; exit 3"}
		p.User.UID, p.Cwd = 5, "/tmp"
		r, w, _ := os.Pipe()
		x, err := c.Exec(ExecOptions{Process: &p, Stdio: [3]*os.File{nil, w, w}})
		_ = w.Close()
		if err != nil {
			t.Fatal(err)
		}
		out, _ := io.ReadAll(r)
		e, _ := x.Wait()
		want := "testhost\n5\n/tmp\n0\n1\n2\n3\nCapInh:\t0000000000000000\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\n"
		if string(out) != want || e.Code != 3 {
			t.Errorf("user namespace %v: got %q, code %d; want %q, 3", user, out, e.Code, want)
		}
		p.Args = []string{"nope"}
		if _, err := c.Exec(ExecOptions{Process: &p}); !errdefs.Is(err, errdefs.CommandNotFound) {
			t.Errorf("got %v, want CommandNotFound", err)
		}
	}
}

func TestManyExecsAtOnce(t *testing.T) {
	h := newHost(t)
	o := h.options(h.spec("sleep 100"))
	h.background(o)
	errs := make(chan error, 8)
	for range cap(errs) {
		go func() {
			c, err := Load(h.root, o.ID)
			if err == nil {
				p := c.DefaultProcess()
				p.Args = []string{"true"}
				var x *Process
				if x, err = c.Exec(ExecOptions{Process: &p}); err == nil {
					_, err = x.Wait()
				}
			}
			errs <- err
		}()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func TestCreateThenStartByAnother(t *testing.T) {
	h := newHost(t)
	s := h.spec("echo started; sleep 100")
	r, w, _ := os.Pipe()
	o := h.options(s)
	o.Ungated, o.Detached = false, true
	o.Stdio[1] = w
	c, err := Create(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	defer reap(c.Pid())
	if got := c.State().Status; got != runspec.StateCreated {
		t.Errorf("status %s, want created", got)
	}
	if _, err := Create(context.Background(), o); !errdefs.Is(err, errdefs.AlreadyExists) {
		t.Errorf("a second container of that name: %v", err)
	}
	other, err := Load(h.root, o.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 8)
	if _, err := io.ReadFull(r, b); err != nil || string(b) != "started\n" {
		t.Errorf("got %q (%v)", b, err)
	}
	if err := other.Start(); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("a second start: %v, want Conflict", err)
	}
	if err := other.Delete(); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("deleting a running container: %v, want Conflict", err)
	}
	if l, err := List(h.root); err != nil || len(l) != 1 || l[0].Status != runspec.StateRunning {
		t.Errorf("list: %+v, %v", l, err)
	}
	if pids, err := other.Pids(); err != nil || len(pids) == 0 {
		t.Errorf("pids: %v, %v", pids, err)
	}
	if err := other.ForceDelete(); err != nil {
		t.Error(err)
	}
	h.nothingLeft(o.ID)
	if _, err := Load(h.root, o.ID); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("after delete: %v", err)
	}
}

func TestTerminal(t *testing.T) {
	h := newHost(t)
	s := h.spec("tty; stat -c %u /dev/pts/0; stat -c %t:%T /dev/console; read line; echo got $line; exit 4")
	s.Process.Terminal = true
	s.Process.User.UID = 77
	s.Process.ConsoleSize = &runspec.Box{Height: 40, Width: 100}
	o := h.options(s)
	c, err := Create(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	m := c.Console()
	if m == nil {
		t.Fatal("no terminal")
	}
	defer m.Close() //nolint:errcheck // the test ends
	if ws, err := unix.IoctlGetWinsize(int(m.Fd()), unix.TIOCGWINSZ); err != nil || ws.Row != 40 || ws.Col != 100 {
		t.Errorf("size %+v (%v)", ws, err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := m.WriteString("hello\n"); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	_, _ = io.Copy(&out, m) // ends with EIO
	if e, _ := c.Wait(); e.Code != 4 {
		t.Errorf("code %d, want 4", e.Code)
	}
	for _, want := range []string{"/dev/pts/0", "77", "88:0", "got hello"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in %q", want, out.String())
		}
	}
	if err := c.Delete(); err != nil {
		t.Error(err)
	}
}

func TestHooks(t *testing.T) {
	h := newHost(t)
	log := filepath.Join(h.bundle, "log")
	hook := func(name string) []runspec.Hook {
		return []runspec.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", `read -r s; case "$s" in *'"id":"'*) ok=state;; esac; echo ` + name + ` $ok >> ` + log}}}
	}
	s := h.spec("cat /dev/shm/hook; pwd")
	s.Hooks = &runspec.Hooks{
		Prestart: hook("prestart"), CreateRuntime: hook("createRuntime"), CreateContainer: hook("createContainer"), //nolint:staticcheck // in use
		StartContainer: []runspec.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "hostname > /dev/shm/hook"}, Env: []string{"PATH=/bin"}}},
		Poststart:      hook("poststart"), Poststop: hook("poststop"),
	}
	for _, ungated := range []bool{true, false} {
		_ = os.Remove(log)
		s.Linux.CgroupsPath += "x"
		o := h.options(s)
		o.Ungated = ungated
		out, code, err := h.run(o)
		if err != nil || code != 0 || out != "testhost\n/\n" {
			t.Errorf("got %q, code %d (%v)", out, code, err)
		}
		b, _ := os.ReadFile(log)
		if want := "prestart state\ncreateRuntime state\ncreateContainer state\npoststart state\npoststop state\n"; string(b) != want {
			t.Errorf("got %q, want %q", b, want)
		}
	}
	one := 1
	for want, hk := range map[string]runspec.Hook{
		"exited with code 3: bad": {Path: "/bin/sh", Args: []string{"sh", "-c", "echo bad >&2; exit 3"}},
		"took too long":           {Path: "/bin/sleep", Args: []string{"sleep", "9"}, Timeout: &one},
		"no such file":            {Path: "/no/such/hook"},
	} {
		for _, hooks := range []*runspec.Hooks{{CreateRuntime: []runspec.Hook{hk}}, {CreateContainer: []runspec.Hook{hk}}} {
			s := h.spec("true")
			s.Hooks = hooks
			if _, _, err := h.run(h.options(s)); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want %q", err, want)
			}
		}
	}
}

func TestJoinedNamespaces(t *testing.T) {
	h := newHost(t)
	first := h.options(h.spec("sleep 100"))
	c := h.background(first)
	s := h.spec("hostname; ps | grep -c 'sleep 100'")
	s.Hostname = ""
	for i := range s.Linux.Namespaces {
		n := &s.Linux.Namespaces[i]
		name := map[string]string{"pid": "pid", "network": "net", "ipc": "ipc", "uts": "uts"}[string(n.Type)]
		if name != "" {
			n.Path = "/proc/" + strconv.Itoa(c.Pid()) + "/ns/" + name
		}
	}
	out, _, err := h.run(h.options(s))
	if err != nil || !strings.HasPrefix(out, "testhost\n") || out == "testhost\n0\n" {
		t.Errorf("got %q (%v)", out, err)
	}
	s.Linux.Namespaces[0].Path = s.Linux.Namespaces[1].Path
	s.Linux.CgroupsPath += "y"
	if _, _, err := h.run(h.options(s)); !errdefs.Is(err, errdefs.InvalidArgument) {
		t.Errorf("a namespace of the wrong type: %v", err)
	}
}

func TestJoinedUserNamespace(t *testing.T) { // as the containers of a pod
	h := newHost(t)
	s := h.spec("sleep 100")
	s.Linux.Namespaces = append(s.Linux.Namespaces, runspec.LinuxNamespace{Type: "user"})
	maps := []runspec.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	s.Linux.UIDMappings, s.Linux.GIDMappings = maps, maps
	c := h.background(h.options(s))
	s = h.spec("id -u; echo $$; hostname; cat /proc/self/uid_map | while read a b c; do echo $a $b $c; done; exit 6")
	s.Hostname = ""
	for i := range s.Linux.Namespaces {
		n := &s.Linux.Namespaces[i]
		if name := map[string]string{"network": "net", "ipc": "ipc", "uts": "uts"}[string(n.Type)]; name != "" {
			n.Path = "/proc/" + strconv.Itoa(c.Pid()) + "/ns/" + name
		}
	}
	s.Linux.Namespaces = append(s.Linux.Namespaces, runspec.LinuxNamespace{Type: "user", Path: "/proc/" + strconv.Itoa(c.Pid()) + "/ns/user"})
	for _, ungated := range []bool{true, false} {
		s.Linux.CgroupsPath += "z"
		o := h.options(s)
		o.Ungated = ungated
		out, code, err := h.run(o)
		if want := "0\n1\ntesthost\n0 100000 65536\n"; err != nil || out != want || code != 6 {
			t.Errorf("got %q, code %d (%v), want %q, 6", out, code, err, want)
		}
	}
}

func TestSeccompIsLoadedAndKeptForExec(t *testing.T) {
	h := newHost(t)
	for _, nnp := range []bool{true, false} {
		s := h.spec("grep -E '^Seccomp:|CapEff' /proc/self/status; hostname x 2>&1; sleep 100")
		s.Process.NoNewPrivileges = nnp
		one := uint(1)
		s.Linux.Seccomp = &runspec.LinuxSeccomp{
			DefaultAction: runspec.ActAllow, Architectures: []runspec.Arch{runspec.ArchX86_64},
			Syscalls: []runspec.LinuxSyscall{{Names: []string{"sethostname", "uname"}, Action: runspec.ActErrno, ErrnoRet: &one}},
		}
		o := h.options(s)
		r, w, _ := os.Pipe()
		o.Stdio[1], o.Stdio[2] = w, w
		c := h.background(o)
		_ = w.Close()
		buf := make([]byte, 256)
		n := 0
		for n < len(buf) && strings.Count(string(buf[:n]), "\n") < 3 {
			k, err := r.Read(buf[n:])
			if n += k; err != nil {
				break
			}
		}
		if got := string(buf[:n]); !strings.Contains(got, "Seccomp:\t2") || !strings.Contains(got, "CapEff:\t0000000020000421") || !strings.Contains(got, "not permitted") {
			t.Errorf("no_new_privs %v: %q", nnp, got)
		}
		p := c.DefaultProcess()
		p.Args = []string{"grep", "-q", "Seccomp:.2", "/proc/self/status"}
		x, err := c.Exec(ExecOptions{Process: &p})
		if err != nil {
			t.Fatal(err)
		}
		if e, _ := x.Wait(); e.Code != 0 {
			t.Errorf("no_new_privs %v: exec without the filter", nnp)
		}
	}
}

func TestWithoutPivotAndWithPropagation(t *testing.T) {
	h := newHost(t)
	// A shared mount of the host with another on it: unmounting the container's copy must not reach it.
	shared := filepath.Join(h.bundle, "shared")
	for _, m := range []string{shared, shared + "/sub"} {
		if err := os.Mkdir(m, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", m, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		defer unix.Unmount(m, unix.MNT_DETACH) //nolint:errcheck // newHost's clean-up would fail on it
		if err := unix.Mount("", m, "", unix.MS_SHARED, ""); err != nil {
			t.Fatal(err)
		}
	}
	defer func() {
		if b, _ := os.ReadFile("/proc/self/mountinfo"); strings.Count(string(b), " "+shared) != 2 {
			t.Errorf("the mounts of the host have changed:\n%s", b)
		}
	}()
	// The root file system lies on a shared mount: what is mounted in it must not appear on the host.
	if err := unix.Mount(h.rootfs, h.rootfs, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(h.rootfs, unix.MNT_DETACH) //nolint:errcheck // as above
	if err := unix.Mount("", h.rootfs, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if b, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(b), h.rootfs+"/") {
			t.Errorf("the container's mounts have reached the host:\n%s", b)
		}
	}()
	for _, prop := range []string{"", "private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable", "runbindable"} {
		for _, noPivot := range []bool{false, true} {
			s := h.spec("ls -d /bin && ls /var 2>/dev/null || echo none; hostname")
			s.Linux.RootfsPropagation = prop
			o := h.options(s)
			o.NoPivot = noPivot
			if out, _, err := h.run(o); err != nil || out != "/bin\nnone\ntesthost\n" {
				t.Errorf("propagation %q, no pivot %v: %q (%v)", prop, noPivot, out, err)
			}
		}
	}
}

func TestErrorsNameStepAndObject(t *testing.T) {
	h := newHost(t)
	for _, c := range []struct {
		change func(*runspec.Spec)
		want   string
	}{
		{func(s *runspec.Spec) { s.Root.Path = "/no/such/root" }, "open root file system /no/such/root: no such file or directory"},
		{func(s *runspec.Spec) {
			s.Mounts = append(s.Mounts, runspec.Mount{Destination: "/x", Type: "bind", Source: "/no/such"})
		}, "open bind source /no/such: no such file or directory"},
		{func(s *runspec.Spec) {
			s.Mounts = append(s.Mounts, runspec.Mount{Destination: "/x", Type: "nofs", Source: "x"})
		}, "make nofs for /x: no such device"},
		{func(s *runspec.Spec) { s.Process.Cwd = "/bin/busybox" }, "enter /bin/busybox: not a directory"},
		{func(s *runspec.Spec) { s.Linux.Namespaces[1].Path = "/no/such/ns" }, "network namespace /no/such/ns: no such file"},
		{func(s *runspec.Spec) { s.Process.ApparmorProfile = "no-such-profile" }, "AppArmor"},
		{func(s *runspec.Spec) { s.Process.SelinuxLabel = "no:such:label" }, "SELinux"},
	} {
		s := h.spec("true")
		c.change(s)
		_, _, err := h.run(h.options(s))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want ...%s", err, c.want)
		}
	}
}

// runtimeBinary is the runtime with fault points: the one in ONGGI_TEST_BIN (a guest has no Go), or built for the test.
func runtimeBinary(t *testing.T) string {
	t.Helper()
	if d := os.Getenv("ONGGI_TEST_BIN"); d != "" {
		return filepath.Join(d, "onggi-runtime")
	}
	if built == "" {
		dir, err := os.MkdirTemp("/var/tmp", "onggi-launch-bin-")
		if err != nil {
			t.Fatal(err)
		}
		bin := filepath.Join(dir, "onggi-runtime")
		if out, err := exec.Command("go", "build", "-tags", "faults", "-o", bin, "github.com/onggi/onggi/cmd/onggi-runtime").CombinedOutput(); err != nil {
			_ = os.RemoveAll(dir)
			t.Fatalf("cannot build the runtime: %v %s", err, out)
		}
		built = bin
	}
	return built
}

var built string // removed by TestMain

// TestWhereMemfdsMayNotBeExecuted uses that vm.memfd_noexec belongs to a pid namespace.
func TestWhereMemfdsMayNotBeExecuted(t *testing.T) {
	h := newHost(t)
	if _, err := os.Stat("/proc/sys/vm/memfd_noexec"); err != nil {
		t.Skip("this kernel has no vm.memfd_noexec")
	}
	bin := runtimeBinary(t)
	s := h.spec("echo it runs; readlink /proc/1/exe")
	spec, err := jsonSpec(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.bundle, "config.json"), spec, 0o644); err != nil {
		t.Fatal(err)
	}
	id := filepath.Base(s.Linux.CgroupsPath)
	out, err := exec.Command("unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", "echo 2 > /proc/sys/vm/memfd_noexec || exit 77; exec "+bin+" --root "+h.root+" run --bundle "+h.bundle+" "+id).CombinedOutput()
	if err != nil || string(out) != "it runs\n/bin/busybox\n" {
		t.Errorf("got %q (%v)", out, err)
	}
	h.nothingLeft(id)
}

// TestDeleteAfterKillAtEachStep kills a creator at each of its steps; delete --force must leave nothing.
func TestDeleteAfterKillAtEachStep(t *testing.T) {
	h := newHost(t)
	s := h.spec("sleep 100")
	h.killAtEachStep(s, filepath.Base(s.Linux.CgroupsPath))
}

// killAtEachStep is the walk; flags are global flags of the runtime.
func (h *host) killAtEachStep(s *runspec.Spec, id string, flags ...string) {
	t := h.t
	bin := runtimeBinary(t)
	spec, err := jsonSpec(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.bundle, "config.json"), spec, 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := func(env string, args ...string) *exec.Cmd {
		c := exec.Command(bin, append(append([]string{"--root", h.root}, flags...), args...)...)
		c.Env = append(os.Environ(), env)
		return c
	}
	run := func(c *exec.Cmd) (string, error) { // the container keeps its output open: no pipe to wait for
		f, err := os.CreateTemp(h.bundle, "out")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close() //nolint:errcheck // read below
		c.Stdout, c.Stderr = f, f
		err = c.Run()
		b, _ := os.ReadFile(f.Name())
		return string(b), err
	}
	names := filepath.Join(h.bundle, "names")
	if out, err := run(cmd("ONGGI_FAULT_NAMES="+names, "create", "--bundle", h.bundle, id)); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	if out, err := run(cmd("X=", "delete", "--force", id)); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	b, err := os.ReadFile(names)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields(string(b)) {
		if strings.Contains(name, "=") {
			t.Errorf("the step %s cannot be named in ONGGI_FAULT", name)
			continue
		}
		for _, at := range []string{"", "@after"} {
			for _, what := range []string{"kill", "error"} {
				out, err := run(cmd("ONGGI_FAULT="+name+at+"="+what, "create", "--bundle", h.bundle, id))
				if err == nil {
					t.Errorf("%s%s=%s: create succeeded: %s", name, at, what, out)
				}
				if what == "error" {
					h.nothingLeft(id)
				}
				if out, err := run(cmd("X=", "delete", "--force", id)); err != nil {
					t.Errorf("%s%s=%s: delete: %v %s", name, at, what, err, out)
				}
				h.nothingLeft(id)
			}
		}
	}
	for range 1500 { // the killed creators' children end by themselves, at their end of file
		if n := countProcesses(t, "onggi-runtime\x00init"); n == 0 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("%d processes are left", countProcesses(t, "onggi-runtime\x00init"))
}

func countProcesses(t *testing.T, cmdline string) (n int) {
	t.Helper()
	es, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range es {
		if b, err := os.ReadFile("/proc/" + e.Name() + "/cmdline"); err == nil && strings.HasPrefix(string(b), cmdline) {
			n++
		}
	}
	return n
}
