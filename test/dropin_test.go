package test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// engine runs a foreign engine's command with onggi-runtime beneath it.
type engine struct {
	t   *testing.T
	env []string
	run []string // the command line up to the image's name
}

// says runs a container and compares what it prints and how it exits; "" prints anything.
func (e *engine) says(code int, want string, args ...string) {
	e.t.Helper()
	c := exec.Command(e.run[0], append(e.run[1:len(e.run):len(e.run)], args...)...)
	c.Env = append(os.Environ(), e.env...)
	c.WaitDelay = 10 * time.Second
	timer := time.AfterFunc(time.Minute, func() { _ = c.Process.Kill() })
	out, err := c.CombinedOutput()
	timer.Stop()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		e.t.Errorf("%v: %v %s", args, err, out)
		return
	}
	if got := c.ProcessState.ExitCode(); got != code || want != "" && strings.TrimSpace(string(out)) != want {
		e.t.Errorf("%v: code %d, want %d; output %q, want %q", args, got, code, out, want)
	}
}

// common is what every engine's users expect of every runtime.
func (e *engine) common(image string) {
	e.says(0, "1\n0 0", image, "sh", "-c", "echo $$; echo $(id -u) $(id -g)")
	e.says(5, "", image, "sh", "-c", "exit 5")
	e.says(0, "Seccomp:\t2", image, "grep", "Seccomp:", "/proc/self/status")
	e.says(0, "refused", image, "sh", "-c", "echo x 2>/dev/null >/proc/sys/kernel/sysrq || echo refused")
}

func runtimePath() string { return filepath.Join(bin, "onggi-runtime") }

func shortDir(t *testing.T) string { // sockets have short names
	dir, err := os.MkdirTemp("/var/tmp", scratch)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = exec.Command("sh", "-c", "grep -o ' "+dir+"[^ ]*' /proc/self/mountinfo | sort -r | xargs -r umount -l").Run()
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("something is left in use: %v", err)
		}
	})
	return dir
}

func TestPodmanRunsOnOurRuntime(t *testing.T) {
	needs(t, "podman", "conmon")
	dir := shortDir(t)
	conf := filepath.Join(dir, "containers.conf")
	// podman asks for limits that a nested host does not have
	if err := os.WriteFile(conf, []byte("[containers]\ndefault_ulimits = [\"nofile=1024:4096\",\"nproc=1024:4096\"]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	env := []string{"CONTAINERS_CONF=" + conf}
	podman := []string{
		"podman", "--root", dir + "/R", "--runroot", dir + "/RR", "--tmpdir", dir + "/T", "--cgroup-manager", "cgroupfs",
		"--events-backend", "file", "--runtime", runtimePath(),
	}
	do := func(args ...string) string {
		t.Helper()
		c := exec.Command(podman[0], append(podman[1:len(podman):len(podman)], args...)...)
		c.Env = append(os.Environ(), env...)
		out, err := c.Output()
		if err != nil {
			t.Fatalf("podman %v: %v %s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	podmanTry := func(args ...string) (string, error) {
		c := exec.Command(podman[0], append(podman[1:len(podman):len(podman)], args...)...)
		c.Env = append(os.Environ(), env...)
		out, err := c.CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	do("import", busyboxTar(t), "bb")
	e := &engine{t: t, env: env, run: append(podman, "run", "--rm", "--network", "none")}
	e.common("bb")
	e.says(127, "", "bb", "nope")
	e.says(126, "", "bb", "/etc")
	e.says(0, "67108864", "--memory", "64m", "bb", "sh", "-c", "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes")
	e.says(0, "0 100000 5000", "--uidmap", "0:100000:5000", "--gidmap", "0:100000:5000", "bb", "sh", "-c", "echo $(cat /proc/self/uid_map)")
	e.says(0, "x", "--read-only", "bb", "sh", "-c", "touch /run/x && ls /run")
	do("run", "-d", "--name", "c1", "--network", "none", "bb", "sleep", "100")
	if got := do("exec", "-u", "1000", "-w", "/tmp", "c1", "sh", "-c", "id -u; pwd"); got != "1000\n/tmp" {
		t.Errorf("exec: %q", got)
	}
	if got := do("top", "c1", "args"); !strings.Contains(got, "sleep 100") {
		t.Errorf("top: %q", got)
	}
	is := func(name, want string) {
		t.Helper()
		eventually(t, name+" is "+want, func() bool { return do("inspect", "-f", "{{.State.Status}}", name) == want })
	}
	do("pause", "c1")
	is("c1", "paused")
	if out, err := podmanTry("exec", "c1", "true"); err == nil {
		t.Errorf("exec in a paused container: %s", out)
	}
	do("unpause", "c1")
	is("c1", "running")
	if got := do("stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}}", "c1"); got != "c1 1" {
		t.Errorf("stats: %q", got)
	}
	if out, err := podmanTry("exec", "c1", "nope"); err == nil || !strings.Contains(out, "executable file not found") {
		t.Errorf("exec nope: %v %q", err, out)
	}
	if got, err := podmanTry("exec", "c1", "sh", "-c", "exit 9"); exitCodeOf(err) != 9 {
		t.Errorf("exec exit 9: %v %q", err, got)
	}
	do("restart", "-t", "0", "c1")
	is("c1", "running")
	do("kill", "c1")
	is("c1", "exited")
	do("rm", "-f", "c1")

	// a pod: its infra container's namespaces are joined by path
	do("pod", "create", "--name", "p1", "--network", "none", "--share", "ipc,net,uts", "--infra-image", "bb", "--infra-command", "/bin/sleep 1000")
	do("run", "-d", "--pod", "p1", "--name", "p1a", "bb", "sleep", "200")
	do("run", "-d", "--pod", "p1", "--name", "p1b", "bb", "sleep", "200")
	ns := func(name string) string { return do("exec", name, "readlink", "/proc/self/ns/net") }
	if a, b := ns("p1a"), ns("p1b"); a != b || a == "" {
		t.Errorf("the network namespaces of a pod's containers are %s and %s", a, b)
	}
	do("pod", "pause", "p1")
	is("p1a", "paused")
	do("pod", "unpause", "p1")
	is("p1a", "running")
	do("pod", "stop", "-t", "0", "p1")
	do("pod", "rm", "-f", "p1")
}

// exitCodeOf is the code in err, 0 without one.
func exitCodeOf(err error) int {
	var e *exec.ExitError
	if errors.As(err, &e) {
		return e.ExitCode()
	}
	return 0
}

func TestDockerRunsOnOurRuntime(t *testing.T) {
	needs(t, "dockerd", "docker", "containerd")
	dir := shortDir(t)
	log, err := os.Create(dir + "/log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close() //nolint:errcheck // a log
	d := exec.Command("dockerd", "--data-root", dir+"/D", "--exec-root", dir+"/E", "-H", "unix://"+dir+"/d.sock", "-p", dir+"/d.pid",
		"--default-ulimit", "nofile=1024:4096", "--add-runtime", "ours="+runtimePath(), "--exec-opt", "native.cgroupdriver=cgroupfs", "--iptables=false", "--ip6tables=false", "--bridge=none")
	d.Stdout, d.Stderr = log, log
	d.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = d.Process.Signal(syscall.SIGTERM)
		_ = d.Wait()
	})
	env := []string{"DOCKER_HOST=unix://" + dir + "/d.sock"}
	docker := func(args ...string) (string, error) {
		c := exec.Command("docker", args...)
		c.Env = append(os.Environ(), env...)
		out, err := c.Output()
		return strings.TrimSpace(string(out)), err
	}
	up := false
	for range 200 {
		if _, err := docker("version"); err == nil {
			up = true
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if !up {
		b, _ := os.ReadFile(dir + "/log")
		t.Skipf("dockerd does not start here: %s", b[max(0, len(b)-600):])
	}
	if out, err := docker("import", busyboxTar(t), "bb"); err != nil {
		t.Fatal(err, out)
	}
	e := &engine{t: t, env: env, run: []string{"docker", "run", "--rm", "--network", "none", "--runtime", "ours"}}
	e.common("bb")
	e.says(127, "", "bb", "nope")
	e.says(126, "", "bb", "/etc")
	e.says(0, "/root", "bb", "sh", "-c", "echo $HOME")
	e.says(0, "hi\n1000", "-u", "1000", "bb", "sh", "-c", "echo hi > /dev/stdout; id -u")
	e.says(0, "ok", "--privileged", "bb", "sh", "-c", "test -e /dev/kmsg && echo ok")
	if out, err := docker("run", "-d", "--name", "c1", "--network", "none", "--runtime", "ours", "bb", "sleep", "100"); err != nil {
		t.Fatal(err, out)
	}
	if out, err := docker("exec", "c1", "sh", "-c", "ps | grep -c 'sleep 100'"); err != nil || out == "0" {
		t.Errorf("exec: %q (%v)", out, err)
	}
	must := func(args ...string) string {
		t.Helper()
		out, err := docker(args...)
		if err != nil {
			var e *exec.ExitError
			if errors.As(err, &e) {
				out += string(e.Stderr)
			}
			t.Errorf("docker %v: %v %s", args, err, out)
		}
		return out
	}
	if got := must("top", "c1"); !strings.Contains(got, "sleep 100") {
		t.Errorf("top: %q", got)
	}
	must("pause", "c1")
	if got := must("inspect", "-f", "{{.State.Status}}", "c1"); got != "paused" {
		t.Errorf("paused: %q", got)
	}
	must("unpause", "c1")
	must("update", "--memory", "64m", "--memory-swap", "64m", "--cpu-shares", "512", "--pids-limit", "40", "c1")
	limits := "cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/memory/memory.limit_in_bytes"
	if got := must("exec", "c1", "sh", "-c", limits); got != "40\n67108864" {
		t.Errorf("after update: %q", got)
	}
	if got := must("stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}}", "c1"); got != "c1 1" {
		t.Errorf("stats: %q", got)
	}
	if _, err := docker("exec", "c1", "nope"); exitCodeOf(err) != 126 && exitCodeOf(err) != 127 {
		t.Errorf("exec nope: %v", err)
	}
	if _, err := docker("exec", "c1", "sh", "-c", "exit 9"); exitCodeOf(err) != 9 {
		t.Errorf("exec exit 9: %v", err)
	}
	if got := must("exec", "-u", "1000", "-w", "/tmp", "-e", "A=b", "c1", "sh", "-c", "id -u; pwd; echo $A"); got != "1000\n/tmp\nb" {
		t.Errorf("exec -u -w -e: %q", got)
	}
	must("restart", "-t", "0", "c1")
	must("kill", "-s", "KILL", "c1")
	if got := must("wait", "c1"); got != "137" {
		t.Errorf("wait: %q", got)
	}
	must("rm", "-f", "c1")

	t.Run("containerd", func(t *testing.T) { // dockerd's own
		needs(t, "ctr")
		if _, err := docker("save", "-o", dir+"/bb.tar", "bb"); err != nil {
			t.Fatal(err)
		}
		sock := dir + "/E/containerd/containerd.sock"
		sh(t, "ctr", "-a", sock, "images", "import", dir+"/bb.tar")
		c := &engine{t: t, run: []string{"ctr", "-a", sock, "run", "--rm", "--runc-binary", runtimePath()}}
		c.says(4, "1", "docker.io/library/bb:latest", "k1", "sh", "-c", "echo $$; exit 4")
		c.says(0, "0", "docker.io/library/bb:latest", "k2", "id", "-u")
		c.says(1, "", "docker.io/library/bb:latest", "k3", "nope")

		task := []string{"ctr", "-a", sock, "task"}
		do := func(args ...string) string {
			t.Helper()
			return sh(t, task[0], append(task[1:len(task):len(task)], args...)...)
		}
		sh(t, "ctr", "-a", sock, "run", "-d", "--runc-binary", runtimePath(), "docker.io/library/bb:latest", "k4", "sleep", "1000")
		status := func(want string) {
			t.Helper()
			eventually(t, "k4 is "+want, func() bool { return strings.Contains(do("ls"), want) })
		}
		status("RUNNING")
		do("pause", "k4")
		status("PAUSED")
		do("resume", "k4")
		status("RUNNING")
		if got := do("metrics", "k4"); !strings.Contains(got, "pids.current") && !strings.Contains(got, "memory.usage_in_bytes") {
			t.Errorf("metrics: %q", got)
		}
		if got := do("exec", "--exec-id", "e1", "k4", "id", "-u"); got != "0" {
			t.Errorf("exec: %q", got)
		}
		if got := do("ps", "k4"); len(strings.Fields(got)) < 3 {
			t.Errorf("ps: %q", got)
		}
		do("kill", "-s", "KILL", "k4")
		status("STOPPED")
		do("rm", "k4")
		sh(t, "ctr", "-a", sock, "containers", "rm", "k4")
	})
}
