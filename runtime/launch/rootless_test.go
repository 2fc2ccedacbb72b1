package launch

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	runspec "github.com/opencontainers/runtime-spec/specs-go"
)

// somebody is a user without any right: no entry in /etc/passwd, no group, no session.
const somebody = 54321

// commoner is a bundle that belongs to somebody, and the way to run the runtime as that user.
type commoner struct {
	t      *testing.T
	dir    string
	bundle string
	ranges bool // the user has subordinate ids, in a mount namespace of the command's own
}

func newCommoner(t *testing.T) *commoner {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("becoming another user needs root")
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("busybox-static is not installed")
	}
	bin, err := os.ReadFile(runtimeBinary(t))
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/var/tmp", "onggi-rootless-")
	if err != nil {
		t.Fatal(err)
	}
	c := &commoner{t: t, dir: dir, bundle: filepath.Join(dir, "bundle")}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("something is left in use: %v", err)
		}
	})
	for _, d := range []string{"run", "bundle/rootfs/bin", "bundle/rootfs/proc", "bundle/rootfs/sys", "bundle/rootfs/dev", "bundle/rootfs/tmp", "bundle/rootfs/etc"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	files := map[string][]byte{
		"onggi-runtime": bin, "bundle/rootfs/bin/busybox": busybox,
		"passwd": []byte("root:x:0:0:root:/root:/bin/sh\nsomebody:x:54321:54321::/:/bin/sh\n"),
		"subid":  []byte("somebody:200000:65536\n"),
	}
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, a := range []string{"sh", "cat", "id", "sleep", "ls", "stat", "touch", "ps", "echo"} {
		if err := os.Symlink("busybox", filepath.Join(c.bundle, "rootfs/bin", a)); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("chown", "-R", "54321:54321", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	c.must("spec", "--rootless")
	if b, err := os.ReadFile("/proc/sys/user/max_user_namespaces"); err == nil && strings.TrimSpace(string(b)) == "0" {
		t.Skip("this host lets users make no namespaces")
	}
	return c
}

// do runs the runtime as somebody.
func (c *commoner) do(args ...string) (out string, code int) {
	c.t.Helper()
	script := "exec setpriv --reuid=54321 --regid=54321 --clear-groups --inh-caps=-all env -i PATH=/usr/bin:/bin XDG_RUNTIME_DIR=" + c.dir + "/run " +
		c.dir + `/onggi-runtime "$@"`
	if c.ranges {
		script = c.etc() + script
	}
	cmd := exec.Command("unshare", append([]string{"-m", "sh", "-c", script, "sh"}, args...)...)
	cmd.Dir = c.bundle
	var f *os.File
	f, err := os.CreateTemp(c.dir, "out") // a file: a pipe would wait for the container too
	if err != nil {
		c.t.Fatal(err)
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Run(); err != nil {
		code = -1
		if x, ok := err.(*exec.ExitError); ok {
			code = x.ExitCode()
		} else {
			c.t.Fatal(err)
		}
	}
	b, _ := os.ReadFile(f.Name())
	return string(b), code
}

// etc gives a mount namespace an /etc of its own, in which somebody has a name and subordinate ids.
func (c *commoner) etc() string {
	return fmt.Sprintf("set -e; mount --make-rprivate /; mkdir -p %[1]s/etc; mount -t tmpfs etc %[1]s/etc; mkdir %[1]s/etc/upper %[1]s/etc/work; "+
		"mount -t overlay etc -o lowerdir=/etc,upperdir=%[1]s/etc/upper,workdir=%[1]s/etc/work /etc; "+
		"cp %[1]s/passwd /etc/passwd; cp %[1]s/subid /etc/subuid; cp %[1]s/subid /etc/subgid; set +e; ", c.dir)
}

func (c *commoner) must(args ...string) string {
	c.t.Helper()
	out, code := c.do(args...)
	if code != 0 {
		c.t.Fatalf("%v: code %d: %s", args, code, out)
	}
	return out
}

// change edits config.json, which `spec --rootless` has written.
func (c *commoner) change(edit func(*runspec.Spec)) {
	c.t.Helper()
	name := filepath.Join(c.bundle, "config.json")
	b, err := os.ReadFile(name)
	if err != nil {
		c.t.Fatal(err)
	}
	var s runspec.Spec
	if err := json.Unmarshal(b, &s); err != nil {
		c.t.Fatal(err)
	}
	s.Process.Terminal = false
	edit(&s)
	if b, err = json.Marshal(s); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(name, b, 0o644); err != nil {
		c.t.Fatal(err)
	}
}

func (c *commoner) script(s string) {
	c.change(func(p *runspec.Spec) { p.Process.Args = []string{"sh", "-c", s} })
}

func TestRootlessRun(t *testing.T) {
	c := newCommoner(t)
	c.script("id -u; cat /proc/self/uid_map /proc/self/gid_map | while read a b c; do echo $a $b $c; done; stat -c %t:%T /dev/null; echo x > /dev/null && ls /sys | grep -c kernel; touch /x 2>/dev/null || echo read-only")
	if got, want := c.must("run", "a"), "0\n0 54321 1\n0 54321 1\n1:3\n1\nread-only\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := c.must("list", "-q"); got != "" {
		t.Errorf("left: %q", got)
	}
	c.script("exit 7")
	if _, code := c.do("run", "a"); code != 7 {
		t.Errorf("code %d, want 7", code)
	}
}

func TestRootlessLife(t *testing.T) {
	c := newCommoner(t)
	c.script("sleep 100")
	for _, ranges := range []bool{false, true} {
		if c.ranges = ranges; ranges {
			if _, err := os.Stat("/usr/bin/newuidmap"); err != nil {
				t.Skip("uidmap is not installed")
			}
			c.change(func(s *runspec.Spec) {
				s.Linux.UIDMappings = []runspec.LinuxIDMapping{{ContainerID: 0, HostID: somebody, Size: 1}, {ContainerID: 1, HostID: 200000, Size: 65536}}
				s.Linux.GIDMappings = s.Linux.UIDMappings
			})
		}
		id := "life" + strconv.FormatBool(ranges)
		c.must("create", id)
		if got := c.must("state", id); !strings.Contains(got, `"status": "created"`) || !strings.Contains(got, `"owner": "#54321"`) {
			t.Errorf("state: %s", got)
		}
		c.must("start", id)
		if got, want := c.must("exec", id, "sh", "-c", "id -u; ps | grep -c '[s]leep 100'; cat /proc/sys/kernel/ns_last_pid >/dev/null 2>&1; echo $((6*7))"), "0\n1\n42\n"; got != want {
			t.Errorf("ranges %v: exec: %q, want %q", ranges, got, want)
		}
		out, code := c.do("exec", "--user", "1000:1000", id, "id", "-u")
		if ranges && (out != "1000\n" || code != 0) {
			t.Errorf("exec of user 1000 with ranges: %q, %d", out, code)
		}
		if !ranges && code == 0 {
			t.Errorf("exec of a user who is not mapped: %q", out)
		}
		if out, code := c.do("exec", id, "nosuch"); code != 127 && code != 255 {
			t.Errorf("exec of no command: %d %s", code, out)
		}
		if _, code := c.do("exec", id, "sh", "-c", "exit 9"); code != 9 {
			t.Errorf("code %d, want 9", code)
		}
		if _, code := c.do("delete", id); code == 0 {
			t.Error("a running container is deleted")
		}
		c.must("kill", id, "KILL")
		for deadline := time.Now().Add(5 * time.Second); !strings.Contains(c.must("state", id), `"stopped"`) && time.Now().Before(deadline); {
			time.Sleep(20 * time.Millisecond)
		}
		c.must("delete", id)
		c.must("create", id)
		c.must("delete", "--force", id)
		if got := c.must("list", "-q"); got != "" {
			t.Errorf("left: %q", got)
		}
	}
}

// What needs a control group is refused by name when the user has none; without it there is no error.
func TestRootlessWithoutControlGroup(t *testing.T) {
	c := newCommoner(t)
	c.script("cat /proc/self/cgroup")
	if got, want := c.must("run", "a"), mine(t); !strings.HasSuffix(strings.TrimSpace(got), strings.TrimSpace(want)) && !strings.Contains(got, "/") {
		t.Errorf("got %q, want our own groups %q", got, want)
	}
	limit := int64(64 << 20)
	c.change(func(s *runspec.Spec) {
		s.Linux.Resources = &runspec.LinuxResources{Memory: &runspec.LinuxMemory{Limit: &limit}}
	})
	if out, code := c.do("run", "a"); code == 0 || !strings.Contains(out, "linux.resources.memory") || !strings.Contains(out, "fix:") {
		t.Errorf("a limit without a control group: %d %s", code, out)
	}
	c.change(func(s *runspec.Spec) {
		s.Linux.Resources, s.Linux.CgroupsPath = nil, "/onggi-rootless-test/x"
	})
	if out, code := c.do("run", "a"); code == 0 || !strings.Contains(out, "cgroup") {
		t.Errorf("a path that the user may not write: %d %s", code, out)
	}
	c.change(func(s *runspec.Spec) {
		s.Linux.CgroupsPath, s.Linux.UIDMappings, s.Linux.GIDMappings = "", nil, nil
		s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n runspec.LinuxNamespace) bool { return n.Type == runspec.UserNamespace })
	})
	if out, code := c.do("run", "a"); code == 0 || !strings.Contains(out, "spec --rootless") {
		t.Errorf("no user namespace: %d %s", code, out)
	}
	if got := c.must("list", "-q"); got != "" {
		t.Errorf("left: %q", got)
	}
}

func mine(t *testing.T) string {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// With a cgroup v2 directory that is the user's, limits work.
func TestRootlessDelegated(t *testing.T) {
	c := newCommoner(t)
	const top = "/sys/fs/cgroup/onggi-rootless-test"
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err != nil {
		t.Skip("needs cgroup v2 alone")
	}
	if err := os.MkdirAll(top+"/shell", 0o755); err != nil {
		t.Fatal(err)
	}
	defer func() {
		for _, d := range []string{top + "/shell", top + "/del", top} {
			_ = os.Remove(d)
		}
	}()
	for _, f := range []string{"", "/cgroup.procs", "/cgroup.subtree_control", "/cgroup.threads", "/shell", "/shell/cgroup.procs"} {
		if err := os.Chown(top+f, somebody, somebody); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile("/sys/fs/cgroup/cgroup.subtree_control", []byte("+memory +pids"), 0); err != nil {
		t.Skip(err)
	}
	limit, pids := int64(64<<20), int64(30)
	c.change(func(s *runspec.Spec) {
		s.Process.Args = []string{"sh", "-c", "cat /proc/self/cgroup; sleep 100"}
		s.Linux.Resources = &runspec.LinuxResources{
			Memory: &runspec.LinuxMemory{Limit: &limit}, Pids: &runspec.LinuxPids{Limit: &pids},
			Devices: []runspec.LinuxDeviceCgroup{{Access: "rwm"}},
		}
	})
	// The command sits in a group of the user's own, as a session's shell under user@.service does.
	in := func(args ...string) (string, int) {
		t.Helper()
		script := "echo $$ > " + top + "/shell/cgroup.procs; exec setpriv --reuid=54321 --regid=54321 --clear-groups env -i PATH=/bin XDG_RUNTIME_DIR=" +
			c.dir + "/run " + c.dir + `/onggi-runtime "$@"`
		cmd := exec.Command("sh", append([]string{"-c", script, "sh"}, args...)...)
		cmd.Dir = c.bundle
		f, err := os.CreateTemp(c.dir, "out")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		cmd.Stdout, cmd.Stderr = f, f
		_ = cmd.Run()
		b, _ := os.ReadFile(f.Name())
		return string(b), cmd.ProcessState.ExitCode()
	}
	if out, code := in("--debug", "create", "del"); code != 0 {
		t.Fatalf("create: %s", out)
	} else if !strings.Contains(out, "linux.resources.devices is left out") {
		t.Errorf("no word of the device rules: %s", out)
	}
	for f, want := range map[string]string{"memory.max": "67108864", "pids.max": "30"} {
		if b, err := os.ReadFile(top + "/del/" + f); strings.TrimSpace(string(b)) != want {
			t.Errorf("%s: %s, %v", f, b, err)
		}
	}
	if out, code := in("start", "del"); code != 0 {
		t.Errorf("start: %s", out)
	}
	if out, code := in("exec", "del", "id", "-u"); code != 0 || out != "0\n" {
		t.Errorf("exec: %d %s", code, out)
	}
	if out, code := in("update", "--memory", "33554432", "del"); code != 0 {
		t.Errorf("update: %s", out)
	} else if b, _ := os.ReadFile(top + "/del/memory.max"); strings.TrimSpace(string(b)) != "33554432" {
		t.Errorf("memory.max after update: %s", b)
	}
	if out, code := in("delete", "--force", "del"); code != 0 {
		t.Errorf("delete: %s", out)
	}
	if _, err := os.Stat(top + "/del"); err == nil {
		t.Error("the control group is left")
	}
}

// Podman of a user makes the user namespace itself, and the runtime is root in it.
func TestRootlessPodman(t *testing.T) {
	c := newCommoner(t)
	for _, p := range []string{"podman", "newuidmap"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skip(p, " is not installed")
		}
	}
	if err := os.MkdirAll(c.dir+"/home", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(c.dir+"/home", somebody, somebody); err != nil {
		t.Fatal(err)
	}
	podman := "podman --storage-driver vfs --cgroup-manager=cgroupfs --log-level=error --events-backend=file --runtime " + c.dir + "/onggi-runtime "
	script := c.etc() + "cd " + c.dir + "; exec setpriv --reuid=54321 --regid=54321 --clear-groups env -i HOME=" + c.dir + "/home PATH=/usr/bin:/bin XDG_RUNTIME_DIR=" +
		c.dir + `/run sh -e -c "$1"`
	inner := "tar -C bundle/rootfs -cf run/img.tar .; " + podman + "import -q run/img.tar bb:1 >/dev/null; " +
		podman + "run --rm --network=none bb:1 sh -c 'id -u; cat /proc/self/uid_map | while read a b c; do echo $a $c; done'; " +
		podman + "run -d --network=none --name x bb:1 sleep 60 >/dev/null; " + podman + "exec x sh -c 'echo $((6*7))'; " + podman + "rm -f -t 0 x >/dev/null; " + podman + "ps -aq; " +
		"ls run/onggi-runtime; " + podman + "rmi -af >/dev/null; " + podman + "unshare rm -rf home/.local; " + podman + "system migrate"
	cmd := exec.Command("unshare", "-m", "sh", "-c", script, "sh", inner)
	out, err := cmd.CombinedOutput()
	if want := "0\n0 1\n1 65536\n42\n"; err != nil || string(out) != want {
		t.Errorf("%v: got %q, want %q", err, out, want)
	}
}

// With systemd the scope is one of the user's own manager, which asks the system's to move a process that is not below it.
// The user is an existing one ("games"), because systemd starts a manager for nobody else.
func TestRootlessUserManager(t *testing.T) {
	c := newCommoner(t)
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		t.Skip("no systemd runs here")
	}
	const user, group = "5", "60"
	// Without pam_systemd nobody tells the manager where its runtime directory is.
	drop := "/run/systemd/system/user@" + user + ".service.d"
	if err := os.MkdirAll(drop, 0o755); err != nil {
		t.Skip(err)
	}
	defer func() { _ = os.RemoveAll(drop); _ = exec.Command("systemctl", "daemon-reload").Run() }()
	if err := os.WriteFile(drop+"/onggi-test.conf", []byte("[Service]\nEnvironment=XDG_RUNTIME_DIR=/run/user/%i\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	_ = exec.Command("systemctl", "daemon-reload").Run()
	if out, err := exec.Command("systemctl", "start", "user@"+user+".service").CombinedOutput(); err != nil {
		t.Skipf("no service manager of a user can be started: %v: %s", err, out)
	}
	defer func() { _ = exec.Command("systemctl", "stop", "user@"+user+".service").Run() }()
	if out, err := exec.Command("chown", "-R", user+":"+group, c.dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	limit, pids := int64(64<<20), int64(30)
	c.change(func(s *runspec.Spec) {
		s.Process.Args = []string{"sleep", "100"}
		s.Linux.UIDMappings = []runspec.LinuxIDMapping{{ContainerID: 0, HostID: 5, Size: 1}}
		s.Linux.GIDMappings = []runspec.LinuxIDMapping{{ContainerID: 0, HostID: 60, Size: 1}}
		s.Linux.CgroupsPath = "app.slice:onggi-test:um"
		s.Linux.Resources = &runspec.LinuxResources{Memory: &runspec.LinuxMemory{Limit: &limit}, Pids: &runspec.LinuxPids{Limit: &pids}}
		s.Annotations = map[string]string{"org.systemd.property.Description": "'of a user'"}
	})
	do := func(args ...string) string {
		t.Helper()
		cmd := exec.Command("setpriv", append([]string{
			"--reuid=" + user, "--regid=" + group, "--clear-groups", "env", "-i", "PATH=/usr/bin:/bin",
			"XDG_RUNTIME_DIR=/run/user/" + user,
		}, args...)...)
		cmd.Dir = c.bundle
		f, err := os.CreateTemp(c.dir, "out")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		cmd.Stdout, cmd.Stderr = f, f
		err = cmd.Run()
		b, _ := os.ReadFile(f.Name())
		if err != nil {
			t.Errorf("%v: %v: %s", args, err, b)
		}
		return strings.TrimSpace(string(b))
	}
	runtime := c.dir + "/onggi-runtime"
	do(runtime, "--systemd-cgroup", "create", "um")
	do(runtime, "start", "um")
	const unit = "onggi-test-um.scope"
	show := func(p string) string { return do("systemctl", "--user", "show", "-P", p, unit) }
	for p, want := range map[string]string{"MemoryMax": "67108864", "TasksMax": "30", "Description": "of a user", "ActiveState": "active"} {
		if got := show(p); got != want {
			t.Errorf("%s is %q, want %q", p, got, want)
		}
	}
	dir := "/sys/fs/cgroup" + show("ControlGroup")
	if !strings.Contains(dir, "/user@5.service/app.slice/"+unit) {
		t.Errorf("the group is %s", dir)
	}
	for f, want := range map[string]string{"memory.max": "67108864", "pids.max": "30"} {
		if b, err := os.ReadFile(dir + "/" + f); strings.TrimSpace(string(b)) != want {
			t.Errorf("%s: %s, %v", f, b, err)
		}
	}
	if got := do(runtime, "exec", "um", "id", "-u"); got != "0" {
		t.Errorf("exec: %q", got)
	}
	if got := do(runtime, "exec", "um", "sh", "-c", "sleep 1; cat /proc/self/cgroup"); got != "0::/" {
		t.Errorf("exec is in the group %q of the namespace", got)
	}
	do(runtime, "update", "--pids-limit", "40", "um")
	if got := show("TasksMax"); got != "40" {
		t.Errorf("TasksMax after update: %s", got)
	}
	do(runtime, "delete", "--force", "um")
	if got := show("LoadState"); got != "not-found" {
		t.Errorf("the unit is %s", got)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Errorf("%s is left", dir)
	}
}
