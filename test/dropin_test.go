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
	dir, err := os.MkdirTemp("/var/tmp", "onggi-dropin.")
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
	do("kill", "c1")
	do("rm", "-f", "c1")
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
		"--default-ulimit", "nofile=1024:4096", "--add-runtime", "ours="+runtimePath(), "--iptables=false", "--ip6tables=false", "--bridge=none")
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
	if out, err := docker("rm", "-f", "c1"); err != nil {
		t.Errorf("rm: %q (%v)", out, err)
	}

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
	})
}
