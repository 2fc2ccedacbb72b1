package monitor

import (
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/mount"
	"golang.org/x/sys/unix"
)

// foreignBox makes a bundle that Debian's runc or crun runs: a busybox root, no network, no seccomp profile.
func foreignBox(t *testing.T, rt string, terminal bool, args ...string) *box {
	t.Helper()
	path, err := exec.LookPath(rt)
	if err != nil {
		t.Skipf("no %s", rt)
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("no static busybox")
	}
	b := newBox(t)
	b.cfg.ID = filepath.Base(filepath.Dir(b.dir))
	b.cfg.Runtime, b.cfg.RuntimeRoot, b.cfg.Terminal = []string{path}, filepath.Join(b.dir, "rt"), terminal
	if rt == "crun" {
		b.cfg.Runtime = []string{crunHere(t, b.dir, path)}
	}
	for _, d := range []string{"bin", "proc", "dev", "tmp"} {
		if err := os.MkdirAll(filepath.Join(b.cfg.Bundle, "rootfs", d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(b.cfg.Bundle, "rootfs/bin/busybox"), busybox, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"sh", "cat", "echo", "true", "sleep", "stty", "test", "ls", "kill", "readlink"} {
		_ = os.Symlink("busybox", filepath.Join(b.cfg.Bundle, "rootfs/bin", n))
	}
	if err := os.WriteFile(filepath.Join(b.cfg.Bundle, "rootfs/tmp/data"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ns := []map[string]string{{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network", "path": "/proc/self/fd/4"}}
	spec := map[string]any{
		"ociVersion": "1.0.2",
		"root":       map[string]any{"path": "rootfs"},
		"hostname":   "box",
		"process": map[string]any{
			"terminal": terminal, "user": map[string]int{"uid": 0, "gid": 0}, "cwd": "/", "args": args,
			"env": []string{"PATH=/bin", "TERM=dumb"}, "capabilities": map[string][]string{},
		},
		"mounts": []map[string]any{
			{"destination": "/proc", "type": "proc", "source": "proc"},
			{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []string{"nosuid", "mode=755", "size=65536k"}},
			{"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": []string{"newinstance", "ptmxmode=0666", "mode=0620"}},
		},
		"linux": map[string]any{"namespaces": ns, "cgroupsPath": "/" + b.cfg.ID},
	}
	j, _ := json.Marshal(spec)
	if err := os.WriteFile(filepath.Join(b.cfg.Bundle, "config.json"), j, 0o600); err != nil {
		t.Fatal(err)
	}
	return b
}

// crunHere is a script that runs crun where it can: version 1.8 refuses hybrid cgroups.
func crunHere(t *testing.T, dir, crun string) string {
	if _, err := os.Stat("/sys/fs/cgroup/unified"); err != nil {
		return crun
	}
	p := filepath.Join(dir, "crun")
	s := "#!/bin/sh\nexport P=" + crun + "\nexec unshare -m --propagation private sh -c 'umount /sys/fs/cgroup/unified; exec $P \"$@\"' crun \"$@\"\n"
	if err := os.WriteFile(p, []byte(s), 0o755); err != nil {
		t.Fatal(err)
	}
	return p
}

// netns makes a network namespace and returns its descriptor.
func netns(t *testing.T) *os.File {
	t.Helper()
	var f *os.File
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // the thread ends with the goroutine, and leaves only the descriptor
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			f, err = os.Open("/proc/thread-self/ns/net")
		}
	}()
	<-done
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func (b *box) spawnForeign(stdio ...*os.File) *Client {
	b.t.Helper()
	self, _ := os.Executable()
	ns := netns(b.t.(*testing.T))
	fd, _ := number(ns)
	b.namespace, _ = os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	o := SpawnOptions{Binary: self, Files: map[string]*os.File{"netns": ns}}
	copy(o.Stdio[:], stdio)
	c, err := Spawn(ctx(b.t), b.cfg, o)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = c.Close() })
	if n := b.cfg.Fds["netns"]; n != FirstFile {
		b.t.Errorf("the namespace is descriptor %d, want %d", n, FirstFile)
	}
	return c
}

func TestForeignRuntimes(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, rt := range []string{"runc", "crun"} {
		t.Run(rt, func(t *testing.T) {
			t.Run("walk", func(t *testing.T) {
				b := foreignBox(t, rt, false, "sh", "-c", "cat; echo err >&2; readlink /proc/self/ns/net; exit 7")
				b.cfg.OpenStdin, b.cfg.StdinOnce = true, true
				r, w, _ := os.Pipe()
				_, _ = io.WriteString(w, "from stdin\n")
				_ = w.Close()
				c := b.spawnForeign(r)
				_ = r.Close()
				pid, err := c.Created(ctx(t))
				if err != nil || pid <= 1 {
					t.Fatal(pid, err)
				}
				want, _ := os.Readlink("/proc/" + strconv.Itoa(pid) + "/ns/net")
				if given := b.namespace; want != given {
					t.Errorf("the container is in %s, want the namespace it was given, %s", want, given)
				}
				_, spans, err := c.Start(ctx(t))
				if err != nil {
					t.Fatal(err)
				}
				var names []string
				for _, s := range spans {
					names = append(names, s.Name)
				}
				if got := strings.Join(names, " "); !strings.HasSuffix(got, "runtime.bundle runtime.create runtime.start") {
					t.Errorf("spans: %s", got)
				}
				if e := b.wait(c); e.Code != 7 || len(e.Warnings) > 0 {
					t.Errorf("got %+v, want code 7", e)
				}
				for _, l := range []string{"1:from stdin\n", "2:err\n", "1:" + want + "\n"} {
					if !strings.Contains(b.log(), l) {
						t.Errorf("log %q has no %q", b.log(), l)
					}
				}
				if b.has("rt/"+b.cfg.ID) || b.has("run/bundle") {
					t.Error("the runtime's state is left")
				}
			})
			t.Run("signal", func(t *testing.T) {
				b := foreignBox(t, rt, false, "sh", "-c", "trap 'exit 5' USR1; echo ready; while :; do sleep 0.05; done")
				c := b.spawnForeign()
				if _, err := c.Created(ctx(t)); err != nil {
					t.Fatal(err)
				}
				if _, _, err := c.Start(ctx(t)); err != nil {
					t.Fatal(err)
				}
				eventually(t, "ready", func() bool { return strings.Contains(b.log(), "ready") })
				if err := c.Signal(ctx(t), int(unix.SIGUSR1)); err != nil {
					t.Error(err)
				}
				if e := b.wait(c); e.Code != 5 {
					t.Errorf("got %+v, want 5", e)
				}
			})
			t.Run("terminal", func(t *testing.T) {
				b := foreignBox(t, rt, true, "sh", "-c", "stty size; read l; echo got $l")
				b.cfg.OpenStdin, b.cfg.Width, b.cfg.Height = true, 90, 30
				mine, theirs := pty(t)
				c := b.spawnForeign(theirs, theirs)
				if _, err := c.Created(ctx(t)); err != nil {
					t.Fatal(err)
				}
				if _, _, err := c.Start(ctx(t)); err != nil {
					t.Fatal(err)
				}
				_, _ = mine.WriteString("typed\r")
				if e := b.wait(c); e.Code != 0 {
					t.Errorf("got %+v", e)
				}
				if got := b.log(); !strings.Contains(got, "30 90\r\n") || !strings.Contains(got, "got typed\r\n") {
					t.Errorf("log: %q", got)
				}
			})
			for name, c := range map[string]struct {
				cmd  string
				kind errdefs.Kind
			}{
				"not found": {"/no/such", errdefs.CommandNotFound}, "not in PATH": {"nosuch", errdefs.CommandNotFound},
				"not executable": {"/tmp/data", errdefs.NotExecutable},
			} {
				t.Run(name, func(t *testing.T) {
					b := foreignBox(t, rt, false, c.cmd)
					cl := b.spawnForeign()
					_, err := cl.Created(ctx(t))
					if err == nil {
						_, _, err = cl.Start(ctx(t))
					}
					if errdefs.KindOf(err) != c.kind || Alive(b.cfg.RunDir) {
						t.Errorf("got %v (%v), alive %v; want %v", err, errdefs.KindOf(err), Alive(b.cfg.RunDir), c.kind)
					}
					t.Log(err)
					if e := b.wait(cl); e.Code != c.kind.ExitCode() {
						t.Errorf("got %+v", e)
					}
					if b.has("rt/" + b.cfg.ID) {
						t.Error("the runtime's state is left")
					}
				})
			}
			t.Run("mounts", func(t *testing.T) {
				b := foreignBox(t, rt, false, "sh", "-c", "cat /lower; echo upper >/new; sleep 0.3; cat /new")
				root, lower := filepath.Join(b.cfg.Bundle, "rootfs"), filepath.Join(b.dir, "lower")
				if err := os.Rename(root, lower); err != nil {
					t.Fatal(err)
				}
				upper, work := filepath.Join(b.dir, "upper"), filepath.Join(b.dir, "work")
				for _, d := range []string{root, upper, work} {
					if err := os.Mkdir(d, 0o755); err != nil {
						t.Fatal(err)
					}
				}
				if err := os.WriteFile(lower+"/lower", []byte("from below\n"), 0o644); err != nil {
					t.Fatal(err)
				}
				b.cfg.Rootfs = []mount.Mount{{Type: "overlay", Overlay: &mount.Overlay{Lower: []string{lower}, Upper: upper, Work: work}}}
				c := b.spawnForeign()
				if _, err := c.Created(ctx(t)); err != nil {
					t.Fatal(err)
				}
				if _, _, err := c.Start(ctx(t)); err != nil {
					t.Fatal(err)
				}
				if m, _ := os.ReadFile("/proc/thread-self/mountinfo"); strings.Contains(string(m), root) {
					t.Error("the host sees the container's root")
				}
				if e := b.wait(c); e.Code != 0 || b.log() != "1:from below\n1:upper\n" {
					t.Errorf("got %+v, %q", e, b.log())
				}
				if s, err := os.ReadFile(upper + "/new"); string(s) != "upper\n" {
					t.Errorf("the writable layer: %q, %v", s, err)
				}
				// A mount that cannot be made is an error that names it.
				b.cfg.Rootfs[0].Overlay.Lower[0] = "/no/such/layer"
				if _, err := b.spawnForeign().Created(ctx(t)); err == nil || !strings.Contains(err.Error(), "/no/such/layer") && !strings.Contains(err.Error(), root) {
					t.Errorf("a missing layer: %v", err)
				}
			})
			t.Run("renewal", func(t *testing.T) {
				b := foreignBox(t, rt, false, "sh", "-c", "trap 'echo got it; exit 9' USR1; echo ready; while :; do sleep 0.05; done")
				c := b.spawnForeign()
				pid, err := c.Created(ctx(t))
				if err != nil {
					t.Fatal(err)
				}
				if _, _, err := c.Start(ctx(t)); err != nil {
					t.Fatal(err)
				}
				_ = os.WriteFile(filepath.Join(b.cfg.Bundle, "pid"), []byte(strconv.Itoa(pid)), 0o600)
				eventually(t, "renewed", b.renewed)
				if ns, err := os.Readlink("/proc/" + strconv.Itoa(b.monitor()) + "/fd/4"); err != nil || ns != b.namespace {
					t.Errorf("the namespace's handle: %q, %v; want %q", ns, err, b.namespace)
				}
				if err := c.Signal(ctx(t), int(unix.SIGUSR1)); err != nil {
					t.Error(err)
				}
				if e := b.wait(c); e.Code != 9 || len(e.Warnings) > 0 || b.log() != "1:ready\n1:got it\n" {
					t.Errorf("got %+v, %q", e, b.log())
				}
				if b.has("rt/" + b.cfg.ID) {
					t.Error("the runtime's state is left")
				}
			})
			t.Run("killed client", func(t *testing.T) {
				b := foreignBox(t, rt, false, "sleep", "1000")
				c := b.spawnForeign()
				pid, err := c.Created(ctx(t))
				if err != nil {
					t.Fatal(err)
				}
				_ = c.Close()
				eventually(t, "cleaned up", func() bool { return b.has("cleaned") })
				time.Sleep(10 * time.Millisecond)
				if unix.Kill(pid, 0) == nil || b.has("rt/"+b.cfg.ID) {
					t.Error("the container is left")
				}
			})
		})
	}
}

func TestKindOfText(t *testing.T) {
	for s, want := range map[string]errdefs.Kind{
		`runc create failed: unable to start container process: exec: "nosuch": executable file not found in $PATH`: errdefs.CommandNotFound,
		`unable to start container process: exec: "/no/such": stat /no/such: no such file or directory`:             errdefs.CommandNotFound,
		"executable file `nosuch` not found in $PATH: No such file or directory":                                    errdefs.CommandNotFound,
		"open executable: Permission denied":                                        errdefs.NotExecutable,
		`unable to start container process: exec: "/tmp/data": permission denied`:   errdefs.NotExecutable,
		`error mounting "/x" to rootfs at "/y": stat /x: no such file or directory`: errdefs.Unknown,
		"mount `proc` to `/proc`: Operation not permitted":                          errdefs.Forbidden,
		`exec format error`: errdefs.NotExecutable,
		"":                  errdefs.Unknown,
	} {
		if got := kindOfText(s); got != want {
			t.Errorf("%q: got %v, want %v", s, got, want)
		}
	}
}
