package engine

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/onggi/onggi/cgroup"
	"github.com/onggi/onggi/network"
	"golang.org/x/sys/unix"
)

// cover binds a file with this text over path, for as long as the test lasts: these tests have a mount namespace of
// their own.
func cover(t *testing.T, path, text string) {
	t.Helper()
	f := filepath.Join(t.TempDir(), "cover")
	if err := os.WriteFile(f, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(f, path, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(path, 0); err != nil {
			t.Error(err)
		}
	})
}

// finds makes one check and returns what it finds, "WHAT: WHY" a line.
func (h *house) finds(check string, fix bool) (string, []Finding) {
	h.t.Helper()
	for _, x := range examinations {
		if x.name == check {
			list := h.examine(context.Background(), x, fix)
			var b strings.Builder
			for _, f := range list {
				b.WriteString(f.What + ": " + f.Why + " " + f.Failed + "\n")
				if f.Fix == "" {
					h.t.Errorf("%s: %s has no fix", check, f.What)
				}
			}
			return b.String(), list
		}
	}
	h.t.Fatalf("there is no check %s", check)
	return "", nil
}

// TestDoctorHost makes each fault of a host that can be made in a namespace, and sees it found; where the doctor puts it
// right, it is not found any more.
func TestDoctorHost(t *testing.T) {
	h := newHouse(t)
	text := func(path, old, new string) string {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return strings.ReplaceAll(string(b), old, new)
	}
	for _, c := range []struct {
		check, want string // want is part of what is found
		fixed       bool
		fault       func(t *testing.T)
	}{
		{"kernel", "seccomp", false, func(t *testing.T) { cover(t, "/proc/sys/kernel/seccomp/actions_avail", "kill_process allow\n") }},
		{"cgroups", "no control groups are mounted", false, func(t *testing.T) { cover(t, "/proc/self/mountinfo", "") }},
		{"overlay", "modprobe", false, func(t *testing.T) {
			cover(t, "/proc/filesystems", text("/proc/filesystems", "\toverlay\n", "\n"))
		}},
		{"firewall", "ip doctor-test forward", false, func(t *testing.T) {
			nft := func(s string) {
				if out, err := exec.Command("nft", strings.Fields(s)...).CombinedOutput(); err != nil {
					t.Skipf("nft: %v: %s", err, out)
				}
			}
			nft("add table ip doctor-test")
			t.Cleanup(func() { nft("delete table ip doctor-test") })
			nft("add chain ip doctor-test forward { type filter hook forward priority 0 ; policy drop ; }")
		}},
		{"user namespaces", "user.max_user_namespaces = 0", true, func(t *testing.T) { cover(t, "/proc/sys/user/max_user_namespaces", "0\n") }},
		{"limits", "kernel.pid_max = 301", true, func(t *testing.T) { cover(t, "/proc/sys/kernel/pid_max", "301\n") }},
		{"limits", "fs.inotify.max_user_instances = 1", true, func(t *testing.T) { cover(t, "/proc/sys/fs/inotify/max_user_instances", "1\n") }},
		{"limits", "fs.inotify.max_user_watches = 8", true, func(t *testing.T) { cover(t, "/proc/sys/fs/inotify/max_user_watches", "8\n") }},
		{"disk", "space for " + h.o.Root, false, func(t *testing.T) { onSmallDisk(t, h.o.Root, "size=100k") }},
		{"disk", "inodes for " + h.o.RunRoot, false, func(t *testing.T) {
			if err := os.MkdirAll(h.o.RunRoot, 0o700); err != nil {
				t.Fatal(err)
			}
			onSmallDisk(t, h.o.RunRoot, "size=100m,nr_inodes=1")
		}},
		{"resolver", "it names no server", false, func(t *testing.T) { cover(t, "/etc/resolv.conf", "# nameserver 192.0.2.1\nsearch example.org\n") }},
		{"runtime", "cannot be executed", false, func(t *testing.T) {
			old := h.o.Runtime
			t.Cleanup(func() { h.o.Runtime = old })
			h.o.Runtime = "/etc/passwd"
		}},
	} {
		t.Run(c.check, func(t *testing.T) {
			if got, _ := h.finds(c.check, false); c.check != "disk" && c.check != "limits" && strings.Contains(got, c.want) {
				t.Skipf("this host has the fault: %s", got)
			}
			c.fault(t)
			got, list := h.finds(c.check, false)
			if !strings.Contains(got+fixes(list), c.want) {
				t.Fatalf("found %q, want %q", got, c.want)
			}
			_, list = h.finds(c.check, true)
			for _, f := range list {
				if strings.Contains(f.What+f.Why+f.Fix, c.want) && f.Fixed != c.fixed {
					t.Errorf("fixed: %+v, want %v", f, c.fixed)
				}
			}
			if again, _ := h.finds(c.check, false); c.fixed && strings.Contains(again, c.want) {
				t.Errorf("found again: %s", again)
			}
		})
	}
	now := time.Now()
	for _, c := range []struct {
		now, file time.Time
		wrong     bool
	}{{now, now.Add(-time.Hour), false}, {now, now.Add(time.Hour), false}, {now, now.Add(48 * time.Hour), true}, {time.Unix(0, 0), time.Unix(0, 0), true}} {
		if got := len(wrongClock(c.now, c.file)) > 0; got != c.wrong {
			t.Errorf("clock %v beside a file of %v: wrong %v", c.now, c.file, got)
		}
	}
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		t.Fatal(err)
	}
	if got, _ := h.finds("limits", false); strings.Contains(got, "open files") != (r.Max < 4096) {
		t.Errorf("a hard limit of %d: %s", r.Max, got)
	}
}

func fixes(list []Finding) (s string) {
	for _, f := range list {
		s += f.Fix + "\n"
	}
	return s
}

func onSmallDisk(t *testing.T, at, options string) {
	t.Helper()
	if err := unix.Mount("none", at, "tmpfs", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// TestDoctorState makes each thing that a kill, a power cut or a hand leaves behind, and sees it found; what the doctor
// puts right is gone, and nothing that belongs to the running container.
func TestDoctorState(t *testing.T) {
	h := newHouse(t)
	ctx := context.Background()
	alive := config("sleep", "1000")
	alive.Name, alive.Network = "alive", "bridge"
	running := h.detached(alive)
	gone := newID()
	mkdir := func(p ...string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(p...), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	write := func(path, text string) {
		t.Helper()
		mkdir(filepath.Dir(path))
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	created := func(name string) string {
		t.Helper()
		c := config("true")
		c.Name = name
		k, err := h.Create(ctx, c, nil)
		if err != nil {
			t.Fatal(err)
		}
		return k.ID
	}
	if d, err := h.Doctor(ctx, false); err != nil || len(d.Checks) != len(examinations) {
		t.Fatalf("%+v, %v", d, err)
	}
	volumes, err := h.Volumes()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		check, want string
		fixed       bool
		fault       func() (clean func())
	}{
		{"containers", "half made", true, func() func() {
			id := created("half")
			b, err := os.ReadFile(h.statePath(id))
			if err != nil {
				t.Fatal(err)
			}
			write(h.statePath(id), strings.Replace(string(b), `"status":"created"`, `"status":"creating"`, 1))
			return nil
		}},
		{"containers", "has no record", true, func() func() { mkdir(h.containersDir(), gone); return nil }},
		{"containers", "record cannot be read", false, func() func() {
			id := created("broken")
			write(h.statePath(id), "{")
			return func() {
				if err := h.Remove(ctx, id, true, true); err != nil {
					t.Error(err)
				}
			}
		}},
		{"containers", "its monitor was killed", true, func() func() {
			c := config("sleep", "1000")
			c.Name = "orphan"
			id := h.detached(c)
			for _, d := range procs(t) {
				if h.monitorOf(d) == id {
					if err := unix.Kill(d, unix.SIGKILL); err != nil {
						t.Fatal(err)
					}
				}
			}
			waitFor(t, "the monitor to end", func() bool { k, err := h.Get(id); return err == nil && k.Status == Dead })
			return func() {
				if err := h.Remove(ctx, id, true, true); err != nil {
					t.Error(err)
				}
			}
		}},
		{"containers", "nobody has cleaned up", true, func() func() {
			id := created("ended")
			mkdir(h.runDir(id))
			return func() {
				if err := h.Remove(ctx, id, true, true); err != nil {
					t.Error(err)
				}
			}
		}},
		{"processes", "does not exist any more", true, func() func() {
			// A process that looks like a monitor: its arguments are what is looked at.
			mkdir(h.runDir(gone))
			c := exec.Command("sh", "-c", "read x", "--config", "x")
			c.Path, c.Args = "/bin/busybox", []string{"sleep", "monitor", "--config", h.runDir(gone) + "/monitor.json"}
			if bb, err := exec.LookPath("busybox"); err == nil {
				c.Path = bb
			}
			c.Args = []string{"sh", "monitor", "--config", h.runDir(gone) + "/monitor.json"}
			script := filepath.Join(t.TempDir(), "monitor")
			write(script, "mkfifo wait; read x <wait\n") // no child that would outlive it
			c.Dir = filepath.Dir(script)
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			waitFor(t, "it to execute", func() bool { return h.monitorOf(c.Process.Pid) == gone })
			go func() { _ = c.Wait() }()
			return func() { _ = os.RemoveAll(h.runDir(gone)) }
		}},
		{"mounts", "host's namespace", true, func() func() {
			at := filepath.Join(h.o.Root, "snapshots", "with space")
			mkdir(at)
			if err := unix.Mount("none", at, "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
			return func() { _ = os.Remove(at) }
		}},
		{"control groups", gone, true, func() func() {
			l, err := cgroup.Detect()
			if err != nil {
				t.Fatal(err)
			}
			g, err := cgroup.Create(l, h.o.CgroupParent+"/"+gone)
			if err != nil {
				t.Fatal(err)
			}
			c := exec.Command("sleep", "1000")
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			if err := g.Add(c.Process.Pid); err != nil {
				t.Fatal(err)
			}
			go func() { _ = c.Wait() }()
			if got, _ := h.finds("control groups", false); got != "" {
				t.Errorf("a group of another store is found: %s", got)
			}
			mkdir(h.runDir(gone))
			return func() { _ = g.Close(); _ = os.RemoveAll(h.runDir(gone)) }
		}},
		{"addresses", "addresses and ports", true, func() func() {
			n, err := h.network()
			if err != nil {
				t.Fatal(err)
			}
			ns, err := network.NewNamespace()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := n.Attach(ctx, ns, network.Endpoint{ID: gone}); err != nil {
				t.Fatal(err)
			}
			return func() { _ = ns.Close() }
		}},
		{"leftovers", "run directory", true, func() func() { mkdir(h.runDir(gone)); return nil }},
		{"leftovers", "marker", true, func() func() { write(h.pendingPath(gone), ""); return nil }},
		{"leftovers", "runtime's state", true, func() func() { mkdir(h.runtimeDir(gone)); return nil }},
		{"leftovers", "writable layer", true, func() func() { mkdir(h.snapshotsDir(), "containers", gone, "upper"); return nil }},
		{"leftovers", "log ", true, func() func() { write(h.passingLogPath(gone), "x"); return nil }},
		{"leftovers", "name ", true, func() func() {
			if err := os.Symlink(gone, h.namePath("lost")); err != nil {
				t.Fatal(err)
			}
			return nil
		}},
		{"volumes", "half made or half removed", true, func() func() {
			dir := filepath.Join(h.o.Root, "volumes", ".new-"+gone[:16])
			mkdir(dir, "_data")
			old := time.Now().Add(-2 * litterAge)
			if err := os.Chtimes(dir, old, old); err != nil {
				t.Fatal(err)
			}
			return nil
		}},
		{"volumes", "made for a --rm container", true, func() func() {
			if _, err := volumes.Volatile().EnsureAnonymous(gone); err != nil {
				t.Fatal(err)
			}
			return nil
		}},
		{"volumes", "missing or cannot be read", false, func() func() {
			if _, err := volumes.Ensure("broken", nil); err != nil {
				t.Fatal(err)
			}
			dir := filepath.Join(h.o.Root, "volumes", "broken")
			write(filepath.Join(dir, "volume.json"), "{")
			return func() { _ = os.RemoveAll(dir) }
		}},
		{"files", "not Onggi's", false, func() func() {
			path := filepath.Join(h.o.Root, "stray")
			write(path, "x")
			return func() { _ = os.Remove(path) }
		}},
	} {
		t.Run(strings.TrimSpace(c.want), func(t *testing.T) {
			if got, _ := h.finds(c.check, false); got != "" {
				t.Fatalf("before the fault: %s", got)
			}
			clean := c.fault()
			if clean != nil {
				defer clean()
			}
			if got, _ := h.finds(c.check, false); !strings.Contains(got, c.want) {
				t.Fatalf("found %q, want %q", got, c.want)
			}
			got, list := h.finds(c.check, true)
			if len(list) == 0 {
				t.Fatal("nothing was found to be fixed")
			}
			for _, f := range list {
				if f.Fixed != c.fixed || f.Automatic != c.fixed {
					t.Errorf("fixed %v, want %v: %s", f.Fixed, c.fixed, got)
				}
			}
			if again, _ := h.finds(c.check, false); c.fixed && again != "" {
				t.Errorf("found again: %s", again)
			}
		})
	}
	if k, err := h.Get(running); err != nil || k.Status != Running {
		t.Errorf("the running container: %+v, %v", k, err)
	}
	if err := h.Remove(ctx, running, true, true); err != nil {
		t.Error(err)
	}
}

func procs(t *testing.T) (pids []int) {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range entries {
		if n, err := strconv.Atoi(d.Name()); err == nil {
			pids = append(pids, n)
		}
	}
	return pids
}
