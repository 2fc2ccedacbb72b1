package launch

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/onggi/onggi/errdefs"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// withMounts makes the spec's mount namespace the one of the path, or leaves it out.
func withMounts(s *runspec.Spec, path string) {
	var kept []runspec.LinuxNamespace
	for _, n := range s.Linux.Namespaces {
		if n.Type != runspec.MountNamespace {
			kept = append(kept, n)
		}
	}
	if path != "" {
		kept = append(kept, runspec.LinuxNamespace{Type: runspec.MountNamespace, Path: path})
	}
	s.Linux.Namespaces = kept
}

// TestSharedMountNamespaces: containers in the runtime's mount namespace, and in one that is joined by path. They have
// all their mounts; nobody else's change; exec lands in the container's root; nothing is left.
func TestSharedMountNamespaces(t *testing.T) {
	h := newHost(t)
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	other := exec.Command("sleep", "1000")
	other.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer other.Wait()         //nolint:errcheck // killed
	defer other.Process.Kill() //nolint:errcheck // a child of ours
	theirs := "/proc/" + strconv.Itoa(other.Process.Pid) + "/ns/mnt"
	joined, err := os.Readlink(theirs)
	if err != nil || joined == own {
		t.Fatalf("%s: %s, %v", theirs, joined, err)
	}
	mounts := func(pid string) int { // those of the tests' containers
		b, err := os.ReadFile("/proc/" + pid + "/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(b), " "+h.root+"/")
	}
	for _, c := range []struct{ name, path, ns, pid string }{{"none", "", own, "self"}, {"joined", theirs, joined, strconv.Itoa(other.Process.Pid)}} {
		t.Run(c.name, func(t *testing.T) {
			// /etc/passwd is not in the container's root; the mask and the read-only path hold; the new /proc is there
			const script = "readlink /proc/self/ns/mnt; ls /etc/passwd 2>/dev/null; ls /sys/firmware; touch /proc/sys/kernel/panic 2>/dev/null && echo writable; hostname; touch /m/x; ls /m"
			s := h.spec(script)
			s.Mounts = append(s.Mounts, runspec.Mount{Destination: "/m", Type: "tmpfs", Source: "tmpfs"})
			withMounts(s, c.path)
			out, code, err := h.run(h.options(s))
			if want := c.ns + "\ntesthost\nx\n"; err != nil || code != 0 || out != want {
				t.Errorf("got %q, code %d (%v), want %q", out, code, err, want)
			}
			s = h.spec("sleep 100")
			withMounts(s, c.path)
			k := h.background(h.options(s))
			if n := mounts(c.pid); n < 5 {
				t.Errorf("%d mounts of the container in that namespace", n)
			}
			if c.path != "" && mounts("self") != 0 {
				t.Error("its mounts are in this namespace too")
			}
			p := k.DefaultProcess()
			p.Args = []string{"sh", "-c", "readlink /proc/self/ns/mnt; ls /etc/passwd 2>/dev/null; readlink -f /bin/sh"}
			loaded, err := Load(h.root, k.record.ID)
			if err != nil {
				t.Fatal(err)
			}
			if out := h.exec(loaded, &p); out != c.ns+"\n/bin/busybox\n" {
				t.Errorf("exec: %q", out)
			}
			if err := loaded.Checkpoint(&Images{Dir: t.TempDir(), Criu: "criu"}); !errdefs.Is(err, errdefs.Unsupported) || !strings.Contains(err.Error(), "linux.namespaces") {
				t.Errorf("checkpoint: %v", err)
			}
			if err := loaded.ForceDelete(); err != nil {
				t.Errorf("delete: %v", err)
			}
			_, _ = k.Wait()
			for i := 0; mounts(c.pid)+mounts("self") != 0; i++ {
				if i == 200 {
					t.Fatalf("%d mounts are left", mounts(c.pid)+mounts("self"))
				}
				time.Sleep(10 * time.Millisecond)
			}
			h.nothingLeft(k.record.ID)
		})
	}
	for field, change := range map[string]func(*runspec.Spec){
		"linux.rootfsPropagation": func(s *runspec.Spec) { s.Linux.RootfsPropagation = "shared" },
		"root.path":               func(s *runspec.Spec) { s.Root.Path = "/" },
		"linux.namespaces": func(s *runspec.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, runspec.LinuxNamespace{Type: "user"})
			maps := []runspec.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
			s.Linux.UIDMappings, s.Linux.GIDMappings = maps, maps
		},
	} {
		s := h.spec("true")
		withMounts(s, "")
		change(s)
		if _, _, err := h.run(h.options(s)); !errdefs.Is(err, errdefs.Unsupported) || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

// TestSharedMountsDeleteAfterKillAtEachStep: a creator that is killed while its root is attached to the host's tree.
func TestSharedMountsDeleteAfterKillAtEachStep(t *testing.T) {
	h := newHost(t)
	s := h.spec("sleep 100")
	withMounts(s, "")
	h.killAtEachStep(s, filepath.Base(s.Linux.CgroupsPath))
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(b), " "+h.root+"/"); n != 0 {
		t.Errorf("%d mounts are left", n)
		_ = unix.Unmount(filepath.Join(h.root, filepath.Base(s.Linux.CgroupsPath), placeDir), unix.MNT_DETACH)
	}
}
