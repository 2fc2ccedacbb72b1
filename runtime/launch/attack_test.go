package launch

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	runspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// TestSwappedPlaces: another process, which shares the root file system, keeps exchanging the places of mounts, masks,
// devices, the terminal and the working directory for links that lead out. Whatever comes of the container, nothing
// happens outside (CVE-2021-30465, CVE-2023-27561, CVE-2024-45310, CVE-2025-31133, CVE-2025-52565).
func TestSwappedPlaces(t *testing.T) {
	h := newHost(t)
	outside := filepath.Join(filepath.Dir(h.bundle), "outside")
	secret := filepath.Join(outside, "secret")
	for _, d := range []string{outside, filepath.Join(outside, "sub"), filepath.Join(h.rootfs, "place/sub"), filepath.Join(h.rootfs, "dev/pts")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(secret, []byte("untouched"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.rootfs, "place/secret"), []byte("inside"), 0o644); err != nil {
		t.Fatal(err)
	}
	up := strings.Repeat("../", 12)
	pairs := map[string]string{ // what is exchanged for what, in the root
		"place":     up + strings.TrimPrefix(outside, "/"),
		"place/sub": outside + "/sub",
		"dev":       outside,
	}
	n := 0
	var links []string
	for place, to := range pairs {
		link := "evil" + strconv.Itoa(n)
		if n++; os.Symlink(to, filepath.Join(h.rootfs, link)) != nil {
			t.Fatal(place)
		}
		links = append(links, place, link)
	}
	root, err := unix.Open(h.rootfs, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(root) //nolint:errcheck // a handle
	// The true place, whatever is called so just now: through its name the exchanges themselves would reach outside.
	inPlace, err := unix.Openat(root, "place", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(inPlace) //nolint:errcheck // a handle
	var stop atomic.Bool
	done := make(chan int)
	go func() {
		swaps := 0
		for !stop.Load() {
			for i := 0; i < len(links); i += 2 {
				at, name := root, links[i]
				if sub, ok := strings.CutPrefix(name, "place/"); ok {
					at, name = inPlace, sub
				}
				if unix.Renameat2(at, name, root, links[i+1], unix.RENAME_EXCHANGE) == nil {
					swaps++
				}
			}
		}
		done <- swaps
	}()
	ran := 0
	for i := range 60 {
		// the container would write where its mounts lead to
		s := h.spec("touch /place/sub/written /place/written /dev/written 2>/dev/null; echo x >/place/secret; true")
		s.Linux.CgroupsPath += "s"
		s.Root.Readonly = false
		s.Mounts = append(s.Mounts[:1:1],
			runspec.Mount{Destination: "/place/sub", Type: "tmpfs", Source: "tmpfs"},
			runspec.Mount{Destination: "/place/made/deep", Type: "bind", Source: h.bundle, Options: []string{"bind", "ro"}},
			runspec.Mount{Destination: "/place/file", Type: "bind", Source: "/etc/hostname", Options: []string{"bind", "ro"}})
		s.Linux.MaskedPaths = []string{"/place/secret", "/proc/keys"}
		s.Linux.ReadonlyPaths = []string{"/place/sub", "/proc/sys"}
		s.Linux.Devices = []runspec.LinuxDevice{{Path: "/place/sub/null", Type: "c", Major: 1, Minor: 3}}
		if i%2 == 1 {
			s.Process.Cwd = "/place/sub"
		}
		o := h.options(s)
		k, err := tryRun(h, o)
		if err == nil && k == 0 {
			ran++
		}
	}
	stop.Store(true)
	swaps := <-done
	t.Logf("%d of 60 containers ran, %d exchanges", ran, swaps)
	if swaps < 1000 {
		t.Errorf("only %d exchanges: the attack did not take place", swaps)
	}
	if b, err := os.ReadFile(secret); err != nil || string(b) != "untouched" {
		t.Errorf("the secret outside is %q, %v", b, err)
	}
	entries, _ := os.ReadDir(outside)
	subs, _ := os.ReadDir(filepath.Join(outside, "sub"))
	// the real directories may lie below outside's names only through the root's: nothing is ever made here
	for _, e := range entries {
		if e.Name() != "secret" && e.Name() != "sub" {
			t.Errorf("outside has %s", e.Name())
		}
	}
	for _, e := range subs {
		t.Errorf("outside/sub has %s", e.Name())
	}
	if b, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(b), outside) {
		t.Error("something is mounted outside")
	}
}

// tryRun is run for a container that may fail in any way.
func tryRun(h *host, o Options) (int, error) {
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer null.Close() //nolint:errcheck // /dev/null
	o.Stdio = [3]*os.File{null, null, null}
	_, code, err := h.run(o)
	return code, err
}

// TestSettingsGoToProcAlone: where /proc is something else, a sysctl is refused and the file there is not written
// (CVE-2019-19921, CVE-2025-52881).
func TestSettingsGoToProcAlone(t *testing.T) {
	h := newHost(t)
	other := exec.Command("sh", "-c", `mount -t tmpfs none /proc && mkdir -p /proc/sys/net/core /proc/self/attr && echo 1 >/proc/sys/net/core/somaxconn && touch /proc/self/attr/exec && echo ready && exec sleep 1000`)
	other.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := other.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer other.Wait()         //nolint:errcheck // killed
	defer other.Process.Kill() //nolint:errcheck // a child of ours
	if n, err := out.Read(make([]byte, 16)); n == 0 {
		t.Fatal(err)
	}
	proc := "/proc/" + strconv.Itoa(other.Process.Pid)
	s := h.spec("true")
	withMounts(s, proc+"/ns/mnt")
	s.Linux.Sysctl = map[string]string{"net.core.somaxconn": "77"}
	if _, _, err := h.run(h.options(s)); err == nil || !strings.Contains(err.Error(), "proc file system") {
		t.Errorf("a sysctl in a false /proc: %v", err)
	}
	if b, err := os.ReadFile(proc + "/root/proc/sys/net/core/somaxconn"); err != nil || string(b) != "1\n" {
		t.Errorf("the false file holds %q, %v", b, err)
	}
}
