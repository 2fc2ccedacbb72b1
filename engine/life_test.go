package engine

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/network"
	"github.com/onggi/onggi/spec"
	"golang.org/x/sys/unix"
)

func TestStoryForeground(t *testing.T) {
	h := newHouse(t)
	c := config("sh", "-c", "echo out; echo err >&2; exit 7")
	c.AutoRemove = true
	out, errs, code := h.run(c)
	if out != "out\n" || errs != "err\n" || code != 7 {
		t.Errorf("got %q, %q, %d; want out, err, 7", out, errs, code)
	}
	h.checkNothingLeft()
}

func TestStoryDetachedLife(t *testing.T) {
	h := newHouse(t)
	ctx := context.Background()
	c := config("sh", "-c", "echo began; trap 'echo stopped; exit 3' TERM; while :; do sleep 0.05; done")
	c.Name, c.Labels = "worker", map[string]string{"a": "b"}
	id := h.detached(c)

	k, err := h.Get("worker")
	if err != nil || k.ID != id || k.Status != Running || k.Pid == 0 || k.StartedAt.IsZero() || k.Command[0] != "sh" {
		t.Fatalf("get: %+v, %v; want it running", k, err)
	}
	if l, err := h.List(false); err != nil || len(l) != 1 {
		t.Errorf("list: %v, %v", l, err)
	}
	if err := h.Remove(ctx, "worker", false, false); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("remove of a running container: %v, want conflict", err)
	}
	if _, err := h.Start(ctx, "worker", StartOptions{}); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("start of a running container: %v, want conflict", err)
	}
	if _, err := h.RemoveImage(ctx, "box", false); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("remove of an image in use: %v, want conflict", err)
	}

	argv, err := h.ExecCommand(ctx, "worker", ExecConfig{Args: []string{"sh", "-c", "id -u; id -g; pwd; echo $A$FROM"}, User: "web", Workdir: "/tmp", Env: []string{"A=x"}})
	if err != nil {
		t.Fatal(err)
	}
	if b, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil || string(b) != "33\n34\n/tmp\nximage\n" {
		t.Errorf("exec: %q, %v", b, err)
	}

	ten := 10 * time.Second
	if err := h.Stop(ctx, "worker", &ten); err != nil {
		t.Fatal(err)
	}
	x, err := h.Wait(ctx, "worker")
	if err != nil || x.Code != 3 {
		t.Errorf("wait: %+v, %v; want code 3", x, err)
	}
	var log bytes.Buffer
	if err := h.Logs(ctx, "worker", LogOptions{Tail: -1}, &log, &log); err != nil || log.String() != "began\nstopped\n" {
		t.Errorf("logs: %q, %v", log.String(), err)
	}
	if k, err = h.Get("worker"); err != nil || k.Status != Exited || k.Exit == nil || k.Exit.Code != 3 {
		t.Errorf("after the exit: %+v, %v", k, err)
	}
	if err := h.Kill(ctx, "worker", 9); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("kill of an exited container: %v, want conflict", err)
	}
	if _, err := h.ExecCommand(ctx, "worker", ExecConfig{Args: []string{"true"}}); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("exec in an exited container: %v, want conflict", err)
	}

	// Again, with the same writable layer; killed by force.
	s, err := h.Start(ctx, "worker", StartOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_ = s.Client.Close()
	if err := h.Kill(ctx, "worker", int(unix.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	if x, err = h.Wait(ctx, "worker"); err != nil || x.Code != 137 || x.Signal != 9 {
		t.Errorf("killed: %+v, %v; want 137", x, err)
	}
	if err := h.Remove(ctx, "worker", false, true); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Get("worker"); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("after removal: %v, want not found", err)
	}
	h.checkNothingLeft()
}

func TestDetachedAutoRemoveCleansUpByItself(t *testing.T) {
	h := newHouse(t)
	c := config("true")
	c.AutoRemove = true
	id := h.detached(c)
	for range 1000 {
		// The marker of the removal goes last, just after the record.
		if _, err := h.Get(id); errdefs.Is(err, errdefs.NotFound) && !exists(h.pendingPath(id)) {
			h.checkNothingLeft()
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("the container is still there after 10 s")
}

func TestWhatAContainerFinds(t *testing.T) {
	h := newHouse(t)
	host := t.TempDir()
	if err := os.WriteFile(filepath.Join(host, "f"), []byte("from the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		change func(*Config)
		script string
		want   string
	}{
		{"user by name", func(c *Config) { c.User = "web" }, "id -u; id -g; id -G; echo $HOME", "33\n34\n34 44\n/home\n"},
		{"user by number", func(c *Config) { c.User = "7:8" }, "id -u; id -g; echo $HOME", "7\n8\n/\n"},
		{"environment", func(c *Config) { c.Env = []string{"MINE=1"} }, "echo $FROM $MINE $HOME", "image 1 /root\n"},
		{"hostname", func(c *Config) { c.Hostname = "pot" }, "hostname; cat /etc/hostname; grep -c pot /etc/hosts", "pot\npot\n0\n"},
		{"workdir", func(c *Config) { c.Workdir = "/tmp" }, "pwd", "/tmp\n"},
		{"anonymous volume with the image's content", nil, "cat /data/from-image; stat -c %u:%g:%a /data/from-image", "hello\n33:34:640\n"},
		{
			"bind", func(c *Config) {
				c.Mounts = []spec.Mount{{Type: "bind", Source: host, Target: "/host", ReadOnly: true}}
			},
			"cat /host/f; touch /host/x 2>/dev/null || echo ro", "from the host\nro\n",
		},
		{"tmpfs over a volume", func(c *Config) { c.Mounts = []spec.Mount{{Type: "tmpfs", Target: "/data"}} }, "ls /data; mount | grep -c ' /data '", "1\n"},
		{"read-only root", func(c *Config) { c.ReadOnly = true }, "touch /x 2>/dev/null || echo ro; touch /tmp/x 2>/dev/null || echo ro; touch /dev/shm/x && echo rw", "ro\nro\nrw\n"},
		{"no network", nil, "ip -o link | wc -l", "1\n"},
		{"process 1", nil, "echo $$", "1\n"},
		{"capabilities", nil, "grep CapBnd /proc/self/status", "CapBnd:\t00000000a80425fb\n"},
		{"seccomp", nil, "grep Seccomp: /proc/self/status", "Seccomp:\t2\n"},
	} {
		cfg := config("sh", "-c", c.script)
		cfg.AutoRemove = true
		if c.change != nil {
			c.change(&cfg)
		}
		if out, errs, code := h.run(cfg); out != c.want {
			t.Errorf("%s: got %q (stderr %q, code %d), want %q", c.name, out, errs, code, c.want)
		}
	}
	h.checkNothingLeft()
}

func TestVolumesOutliveContainers(t *testing.T) {
	h := newHouse(t)
	ctx := context.Background()
	made := filepath.Join(t.TempDir(), "deep", "dir")
	mounts := []spec.Mount{{Type: "volume", Source: "keep", Target: "/v"}, {Type: "bind", Source: made, Target: "/made", CreateSource: true}}
	c := config("sh", "-c", "echo kept >/v/f; echo made >/made/f")
	c.AutoRemove, c.Mounts = true, mounts
	if _, errs, code := h.run(c); code != 0 {
		t.Fatalf("code %d, %s", code, errs)
	}
	c = config("cat", "/v/f")
	c.AutoRemove, c.Mounts = true, mounts[:1]
	if out, _, _ := h.run(c); out != "kept\n" {
		t.Errorf("the named volume has %q", out)
	}
	if b, err := os.ReadFile(filepath.Join(made, "f")); err != nil || string(b) != "made\n" {
		t.Errorf("the directory of -v: %q, %v", b, err)
	}
	vols, err := h.Volumes()
	if err != nil {
		t.Fatal(err)
	}
	if l, err := vols.List(); err != nil || len(l) != 1 || l[0].Name != "keep" {
		t.Errorf("volumes: %v, %v; want only the named one", l, err)
	}

	// An anonymous volume stays with rm and goes with rm -v.
	for _, with := range []bool{false, true} {
		k, err := h.Create(ctx, config("true"), nil)
		if err != nil {
			t.Fatal(err)
		}
		s, err := h.Start(ctx, k.ID, StartOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.Finish(ctx, s); err != nil {
			t.Fatal(err)
		}
		if err := h.Remove(ctx, k.ID, false, with); err != nil {
			t.Fatal(err)
		}
		_, err = vols.Get(k.Volumes["/data"])
		if gone := errdefs.Is(err, errdefs.NotFound); gone != with {
			t.Errorf("volumes=%v: the anonymous volume is gone: %v (%v)", with, gone, err)
		}
	}
}

func TestBadStarts(t *testing.T) {
	h := newHouse(t)
	ctx := context.Background()
	for _, c := range []struct {
		name   string
		change func(*Config)
		kind   errdefs.Kind
		why    string
		stays  bool // the container stays, in state created, without --rm
	}{
		{"no such command", func(c *Config) { c.Args = []string{"nosuch"} }, errdefs.CommandNotFound, "nosuch", true},
		{"no such path", func(c *Config) { c.Args = []string{"/no/such"} }, errdefs.CommandNotFound, "/no/such", true},
		{"not executable", func(c *Config) { c.Args = []string{"/bin/text"} }, errdefs.NotExecutable, "/bin/text", true},
		{"a directory", func(c *Config) { c.Args = []string{"/etc"} }, errdefs.NotExecutable, "/etc", true},
		{"no such user", func(c *Config) { c.User = "nobody" }, errdefs.InvalidArgument, "unable to find user nobody", true},
		{"no such group", func(c *Config) { c.GroupAdd = []string{"nope"} }, errdefs.InvalidArgument, "unable to find group nope", true},
		{"no such image", func(c *Config) { c.Image, c.Pull = "nothere", "never" }, errdefs.NotFound, "nothere", false},
		{"bad image name", func(c *Config) { c.Image = "UPPER//case" }, errdefs.InvalidArgument, "", false},
		{"little memory", func(c *Config) { c.Memory = 1 << 20 }, errdefs.InvalidArgument, "6MB", false},
		{"bad volume name", func(c *Config) { c.Mounts = []spec.Mount{{Type: "volume", Source: "a b", Target: "/x"}} }, errdefs.InvalidArgument, "a volume's name", false},
		{"missing bind", func(c *Config) { c.Mounts = []spec.Mount{{Type: "bind", Source: "/no/such/dir", Target: "/x"}} }, errdefs.InvalidArgument, "does not exist", false},
		{"missing device", func(c *Config) { c.Devices = []spec.Device{{Host: "/dev/nosuch"}} }, errdefs.InvalidArgument, "/dev/nosuch", false},
		{"port without a bridge", func(c *Config) { c.Ports = []network.Port{{ContainerPort: 80}} }, errdefs.InvalidArgument, "--publish", false},
	} {
		for _, rm := range []bool{true, false} {
			cfg := config("true")
			cfg.AutoRemove = rm
			c.change(&cfg)
			_, err := h.Run(ctx, cfg, nil, StartOptions{})
			if !errdefs.Is(err, c.kind) || !strings.Contains(fmt.Sprint(err), c.why) {
				t.Errorf("%s: got %v (%v), want %v with %q", c.name, err, errdefs.KindOf(err), c.kind, c.why)
			}
			l, _ := h.List(true)
			if want := map[bool]int{true: 1}[c.stays && !rm]; len(l) != want {
				t.Errorf("%s (rm %v): %d containers stay, want %d", c.name, rm, len(l), want)
			}
			for _, k := range l {
				if k.Status != Created {
					t.Errorf("%s: status %s, want created", c.name, k.Status)
				}
				if err := h.Remove(ctx, k.ID, false, true); err != nil {
					t.Errorf("%s: remove: %v", c.name, err)
				}
			}
			h.checkNothingLeft()
		}
	}
	c := config("true")
	c.Name = "taken"
	if _, err := h.Create(ctx, c, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Create(ctx, c, nil); !errdefs.Is(err, errdefs.AlreadyExists) {
		t.Errorf("a taken name: %v", err)
	}
	for _, err := range []error{
		h.Remove(ctx, "nosuch", true, true), h.Stop(ctx, "nosuch", nil), h.Kill(ctx, "nosuch", 9),
		h.Logs(ctx, "nosuch", LogOptions{}, nil, nil),
	} {
		if !errdefs.Is(err, errdefs.NotFound) {
			t.Errorf("an unknown container: %v, want not found", err)
		}
	}
}

func TestBridge(t *testing.T) {
	h := newHouse(t)
	ctx := context.Background()
	c := config("sh", "-c", "ip -o -4 addr show eth0 | grep -c inet; grep -c $(hostname) /etc/hosts; sleep 30")
	c.Network, c.Name = "bridge", "net"
	id := h.detached(c)
	k, err := h.Get(id)
	if err != nil || k.Network == nil || !k.Network.IPv4.IsValid() {
		t.Fatalf("no address: %+v, %v", k, err)
	}
	if b, err := exec.Command("ping", "-c1", "-W2", k.Network.IPv4.Addr().String()).CombinedOutput(); err != nil {
		t.Logf("ping (if there is one): %v %s", err, b)
	}
	waitLog(t, h, id, "1\n1\n")
	zero := time.Duration(0)
	if err := h.Stop(ctx, id, &zero); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the address to be given back", func() bool {
		l, _ := os.ReadDir(filepath.Join(h.o.RunRoot, "network", "leases"))
		return len(l) == 0
	})
	s, err := h.Start(ctx, id, StartOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_ = s.Client.Close()
	if err := h.Remove(ctx, id, true, true); err != nil {
		t.Fatal(err)
	}
	h.checkNothingLeft()
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 4000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("waited 40 s for %s", what)
}

func waitLog(t *testing.T, h *house, id, want string) {
	t.Helper()
	var got string
	waitFor(t, "the log "+want, func() bool {
		var b bytes.Buffer
		if err := h.Logs(context.Background(), id, LogOptions{Tail: -1}, &b, &b); err != nil {
			t.Fatal(err)
		}
		got = b.String()
		return got == want
	})
	if got != want {
		t.Errorf("log: got %q, want %q", got, want)
	}
}

func TestKilledMonitor(t *testing.T) {
	h := newHouse(t)
	ctx := context.Background()
	id := h.detached(config("sleep", "100"))
	k, _ := h.Get(id)
	monitorPid := 0
	for _, p := range h.processes() {
		if strings.Contains(p, "monitor") && strings.Contains(p, id) {
			fmt.Sscanf(p, "/proc/%d/", &monitorPid)
		}
	}
	if monitorPid == 0 {
		t.Fatalf("no monitor in %q", h.processes())
	}
	if err := unix.Kill(monitorPid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the container to be dead", func() bool { c, err := h.Get(id); return err == nil && c.Status == Dead })
	if err := h.Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	c, err := h.Get(id)
	if err != nil || c.Status != Exited || c.Exit == nil || c.Exit.Code != 137 || !strings.Contains(c.Exit.Error, "monitor") {
		t.Errorf("after the sweep: %+v, %v; want exited with 137 and the reason", c, err)
	}
	waitFor(t, "its process to end", func() bool { return unix.Kill(k.Pid, 0) != nil })
	if len(h.cgroups()) != 0 {
		t.Errorf("control groups: %v", h.cgroups())
	}
	// It can be started again.
	s, err := h.Start(ctx, id, StartOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_ = s.Client.Close()
}

func TestTwentyAtOnceFromSeveralProcesses(t *testing.T) {
	h := newHouse(t)
	var wg sync.WaitGroup
	errs := make([]string, 20)
	for i := range errs {
		wg.Go(func() {
			c := config("sh", "-c", fmt.Sprintf("echo %d", i))
			c.AutoRemove = true
			if i%2 == 0 {
				c.Network = "bridge"
			}
			out, err := h.cli(nil, "run", c).CombinedOutput()
			if err != nil || string(out) != fmt.Sprintf("%d\n", i) {
				errs[i] = fmt.Sprintf("container %d: %q, %v", i, out, err)
			}
		})
	}
	wg.Wait()
	for _, e := range errs {
		if e != "" {
			t.Error(e)
		}
	}
	h.checkNothingLeft()
}

func TestForeignRuntime(t *testing.T) {
	h := newHouse(t)
	for _, name := range []string{"runc"} {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Skipf("needs %s", name)
		}
		for _, net := range []string{"none", "bridge"} {
			c := config("sh", "-c", "echo works; ip -o link | wc -l; exit 4")
			c.AutoRemove, c.Runtime, c.Network = true, []string{path}, net
			want := map[string]string{"none": "works\n1\n", "bridge": "works\n2\n"}[net]
			if out, errs, code := h.run(c); out != want || code != 4 {
				t.Errorf("%s, network %s: got %q, %q, %d; want %q, 4", name, net, out, errs, code, want)
			}
		}
	}
	h.checkNothingLeft()
}
