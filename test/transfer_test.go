package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// startDocker runs a docker daemon of its own, without a network, and returns its client.
func startDocker(t *testing.T) func(args ...string) string {
	t.Helper()
	needs(t, "dockerd", "docker", "containerd")
	dir := shortDir(t)
	log, err := os.Create(dir + "/log")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = log.Close() })
	d := exec.Command("dockerd", "--data-root", dir+"/D", "--exec-root", dir+"/E", "-H", "unix://"+dir+"/d.sock", "-p", dir+"/d.pid",
		"--default-ulimit", "nofile=1024:4096", "--iptables=false", "--ip6tables=false", "--bridge=none")
	d.Stdout, d.Stderr = log, log
	d.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = d.Process.Signal(syscall.SIGTERM)
		_ = d.Wait()
	})
	run := func(args ...string) (string, error) {
		c := exec.Command("docker", args...)
		c.Env = append(os.Environ(), "DOCKER_HOST=unix://"+dir+"/d.sock", "DOCKER_CONFIG="+dir)
		out, err := c.CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	for range 200 {
		if _, err := run("version"); err == nil {
			return func(args ...string) string {
				t.Helper()
				out, err := run(args...)
				if err != nil {
					t.Fatalf("docker %v: %v\n%s", args, err, out)
				}
				return out
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	b, _ := os.ReadFile(dir + "/log")
	t.Skipf("dockerd does not start here: %s", b[max(0, len(b)-600):])
	return nil
}

// TestOthersReadWhatWeWrite: one image goes by archive and by registry between docker, podman, skopeo and us, both ways,
// and is the same image everywhere.
func TestOthersReadWhatWeWrite(t *testing.T) {
	needs(t, "podman", "skopeo")
	docker := startDocker(t)
	reg := startRegistry(t)
	dir := shortDir(t)
	env := append(os.Environ(), "ONGGI_ROOT="+dir+"/root", "ONGGI_RUN_ROOT="+dir+"/run", "ONGGI_REGISTRIES="+dir, "DOCKER_CONFIG="+dir)
	ours := func(args ...string) string {
		t.Helper()
		out, err := onggiIn(env, args...)
		if err != nil {
			t.Fatalf("onggi %v: %v\n%s", args, err, out)
		}
		return strings.TrimSpace(out)
	}
	podman := func(args ...string) string {
		t.Helper()
		return sh(t, "podman", append([]string{
			"--root", dir + "/p", "--runroot", dir + "/pr", "--tmpdir", dir + "/pt",
			"--cgroup-manager", "cgroupfs", "--events-backend", "file", "--storage-driver", "vfs",
		}, args...)...)
	}
	id := ours("import", "-c", `CMD ["echo","hello"]`, busyboxTar(t), reg+"/app:1")
	image := func(out string) string { return "sha256:" + strings.TrimPrefix(strings.TrimSpace(out), "sha256:") }

	t.Run("archives that we write", func(t *testing.T) {
		ours("save", "-o", dir+"/a.tar", reg+"/app:1")
		docker("load", "-i", dir+"/a.tar")
		podman("load", "-i", dir+"/a.tar")
		for who, got := range map[string]string{"docker": docker("inspect", "-f", "{{.Id}}", reg+"/app:1"), "podman": podman("inspect", "-f", "{{.Id}}", reg+"/app:1")} {
			if image(got) != id {
				t.Errorf("%s has %s, want %s", who, got, id)
			}
		}
		docker("rmi", reg+"/app:1")
		podman("rmi", "-f", reg+"/app:1")
		ours("save", "--format", "oci-archive", "-o", dir+"/o.tar", reg+"/app:1")
		podman("load", "-i", dir+"/o.tar")
		if got := podman("inspect", "-f", "{{.Id}}", reg+"/app:1"); image(got) != id {
			t.Errorf("podman has %s, want %s", got, id)
		}
		podman("rmi", "-f", reg+"/app:1")
	})
	t.Run("what we push", func(t *testing.T) {
		out := ours("push", reg+"/app:1")
		_, digest, _ := strings.Cut(out, "digest: ")
		digest, _, _ = strings.Cut(digest, " ")
		if got := docker("pull", reg+"/app:1"); !strings.Contains(got, digest) {
			t.Errorf("docker pulls %s, want %s", got, digest)
		}
		podman("pull", "--tls-verify=false", reg+"/app:1")
		if got := podman("inspect", "-f", "{{.Digest}}", reg+"/app:1"); got != digest {
			t.Errorf("podman pulls %s, want %s", got, digest)
		}
		if got := sh(t, "skopeo", "inspect", "--tls-verify=false", "--format", "{{.Digest}}", "docker://"+reg+"/app:1"); got != digest {
			t.Errorf("skopeo sees %s, want %s", got, digest)
		}
		// zstd, which this docker does not read and podman does.
		ours("tag", reg+"/app:1", reg+"/app:z")
		ours("push", "--compression", "zstd", "--force-compression", reg+"/app:z")
		podman("pull", "--tls-verify=false", reg+"/app:z")
		if got := podman("inspect", "-f", "{{.Id}}", reg+"/app:z"); image(got) != id {
			t.Errorf("podman has %s, want %s", got, id)
		}
		podman("rmi", "-f", "-a") // it would save the zstd layer
		podman("pull", "--tls-verify=false", reg+"/app:1")
	})
	t.Run("what they push and save", func(t *testing.T) {
		docker("tag", reg+"/app:1", reg+"/docker:1")
		out := docker("push", reg+"/docker:1")
		_, digest, _ := strings.Cut(out, "digest: ")
		digest, _, _ = strings.Cut(digest, " ")
		if got := ours("pull", reg+"/docker:1"); digest == "" || !strings.Contains(got, digest) {
			t.Errorf("we pull %s, want %s", got, digest)
		}
		podman("tag", reg+"/app:1", reg+"/podman:1")
		podman("push", "-q", "--tls-verify=false", reg+"/podman:1")
		ours("pull", reg+"/podman:1")
		docker("save", "-o", dir+"/d.tar", reg+"/docker:1")
		podman("save", "-q", "-o", dir+"/p.tar", reg+"/podman:1")
		podman("save", "-q", "--format", "oci-archive", "-o", dir+"/po.tar", reg+"/podman:1")
		for _, f := range []string{"d.tar", "p.tar", "po.tar"} {
			got := ours("load", "-i", filepath.Join(dir, f))
			if !strings.Contains(got, "Loaded image") {
				t.Errorf("%s: %s", f, got)
			}
		}
		for _, n := range []string{"/docker:1", "/podman:1"} {
			if got := ours("run", "--rm", "--network", "none", reg+n); got != "hello" {
				t.Errorf("%s says %q", n, got)
			}
			if got := ours("image", "inspect", "-f", "{{.ID}}", reg+n); n == "/docker:1" && got != id {
				t.Errorf("%s is %s, want %s", n, got, id)
			}
		}
		// A second push of what docker pushed sends nothing and changes nothing.
		ours("pull", reg+"/docker:1")
		if got := ours("push", reg+"/docker:1"); !strings.Contains(got, digest) || strings.Contains(got, ": Pushed") {
			t.Errorf("%s, want the digest %s and nothing pushed", got, digest)
		}
	})
}
