package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/runtime/monitor"
	"github.com/onggi/onggi/runtime/monitor/logfile"
	"golang.org/x/sys/unix"
)

// built is the binary as it is shipped, while the test runs that has built it.
var built string

// binary builds onggi-runtime for t and its subtests.
func binary(t testing.TB) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if built != "" {
		return built
	}
	if d := os.Getenv("ONGGI_TEST_BIN"); d != "" { // in a guest, where there is no compiler
		return filepath.Join(d, "onggi-runtime")
	}
	p := filepath.Join(t.TempDir(), "onggi-runtime")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", p, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	built = p
	t.Cleanup(func() { built = "" })
	return p
}

// monitored is a container of our own runtime behind its monitor.
type monitored struct {
	t   testing.TB
	dir string
	cfg *monitor.Config
}

func newMonitored(t testing.TB, terminal bool, uid int, args ...string) *monitored {
	t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("no static busybox")
	}
	dir, err := os.MkdirTemp("/var/tmp", fmt.Sprintf("onggi-test.%d.", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	m := &monitored{t: t, dir: dir, cfg: &monitor.Config{
		ID: filepath.Base(dir), Bundle: dir + "/bundle", RunDir: dir + "/run",
		StateDir: dir + "/state", RuntimeRoot: dir + "/rt", Terminal: terminal,
		Log:     monitor.LogConfig{Driver: "local", Path: dir + "/state/log"},
		Cleanup: []string{"/bin/sh", "-c", "echo >" + dir + "/cleaned"},
	}}
	for _, d := range []string{"run", "state", "bundle/rootfs/bin", "bundle/rootfs/proc", "bundle/rootfs/dev", "bundle/rootfs/tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	_ = os.Chmod(dir, 0o755)
	if err := os.WriteFile(dir+"/bundle/rootfs/bin/busybox", busybox, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, n := range strings.Fields("sh cat echo true sleep stty test tty seq grep ls wc") {
		_ = os.Symlink("busybox", dir+"/bundle/rootfs/bin/"+n)
	}
	if err := os.WriteFile(dir+"/bundle/rootfs/tmp/data", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var ns []map[string]string
	for _, n := range []string{"pid", "mount", "ipc", "uts", "network"} {
		ns = append(ns, map[string]string{"type": n})
	}
	spec := map[string]any{
		"ociVersion": "1.0.2",
		"root":       map[string]any{"path": "rootfs"},
		"hostname":   "box",
		"process": map[string]any{
			"terminal": terminal, "user": map[string]int{"uid": uid, "gid": uid}, "cwd": "/", "args": args,
			"env": []string{"PATH=/bin", "TERM=dumb"}, "capabilities": map[string][]string{},
		},
		"mounts": []map[string]any{
			{"destination": "/proc", "type": "proc", "source": "proc"},
			{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []string{"nosuid", "mode=755", "size=65536k"}},
			{"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": []string{"newinstance", "ptmxmode=0666", "mode=0620"}},
		},
		"linux": map[string]any{"namespaces": ns, "cgroupsPath": "/" + m.cfg.ID},
	}
	j, _ := json.Marshal(spec)
	if err := os.WriteFile(dir+"/bundle/config.json", j, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.eventually("the monitor ends", func() bool { return !monitor.Alive(m.cfg.RunDir) })
		if t.Failed() {
			if c, _ := os.ReadFile(m.cfg.RunDir + "/monitor.crash"); len(c) > 0 {
				t.Logf("the monitor crashed: %s", c)
			}
		}
		// The monitor's clean-up may still be writing there.
		m.eventually("removed", func() bool { return os.RemoveAll(dir) == nil })
	})
	return m
}

func (m *monitored) eventually(what string, ok func() bool) {
	m.t.Helper()
	for range 3000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	m.t.Errorf("not so within 30 seconds: %s", what)
}

func (m *monitored) ctx() context.Context {
	c, cancel := context.WithTimeout(context.Background(), time.Minute)
	m.t.Cleanup(cancel)
	return c
}

func (m *monitored) spawn(stdio ...*os.File) *monitor.Client {
	m.t.Helper()
	o := monitor.SpawnOptions{Binary: binary(m.t)}
	copy(o.Stdio[:], stdio)
	c, err := monitor.Spawn(m.ctx(), m.cfg, o)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { _ = c.Close() })
	return c
}

func (m *monitored) start(stdio ...*os.File) (*monitor.Client, int) {
	m.t.Helper()
	c := m.spawn(stdio...)
	pid, err := c.Created(m.ctx())
	if err != nil {
		m.t.Fatal(err)
	}
	if _, _, err := c.Start(m.ctx()); err != nil {
		m.t.Fatal(err)
	}
	return c, pid
}

func (m *monitored) wait(c *monitor.Client) *monitor.Exit {
	m.t.Helper()
	e, err := c.Wait(m.ctx())
	if err != nil {
		m.t.Fatal(err)
	}
	return e
}

func (m *monitored) log() string {
	var s strings.Builder
	if err := logfile.Read(m.ctx(), m.cfg.Log.Path, logfile.ReadOptions{Tail: -1, Stdout: true, Stderr: true}, func(l logfile.Line) error {
		fmt.Fprintf(&s, "%d:%s", l.Stream, l.Data)
		return nil
	}); err != nil {
		m.t.Error(err)
	}
	return s.String()
}

func TestMonitored(t *testing.T) {
	binary(t)
	t.Run("walk", func(t *testing.T) {
		m := newMonitored(t, false, 0, "sh", "-c", "echo out; echo err >&2; ls /proc/self/fd | wc -l; exit 7")
		c, _ := m.start()
		if e := m.wait(c); e.Code != 7 || len(e.Warnings) > 0 || e.StartedAt.IsZero() || e.FinishedAt.Before(e.StartedAt) {
			t.Errorf("got %+v, want code 7", e)
		}
		for _, l := range []string{"1:out\n", "2:err\n", "1:4\n"} { // ls has 0, 1, 2 and the directory
			if !strings.Contains(m.log(), l) {
				t.Errorf("log %q has no %q", m.log(), l)
			}
		}
		if _, err := os.Stat(m.cfg.RuntimeRoot + "/" + m.cfg.ID); err == nil {
			t.Error("the runtime's state is left")
		}
		m.eventually("cleaned up", func() bool { _, err := os.Stat(m.dir + "/cleaned"); return err == nil })
	})
	t.Run("as a user", func(t *testing.T) { // /dev/stdout is the pipe's inode, which must be the user's
		m := newMonitored(t, false, 1000, "sh", "-c", "echo out >/dev/stdout; echo err >/proc/self/fd/2; cat </dev/stdin")
		m.cfg.OpenStdin, m.cfg.StdinOnce = true, true
		r, w, _ := os.Pipe()
		_, _ = w.WriteString("in\n")
		_ = w.Close()
		m.t = t
		_ = os.Symlink("/proc/self/fd/1", m.dir+"/bundle/rootfs/dev/stdout")
		c, _ := m.start(r)
		_ = r.Close()
		if e := m.wait(c); e.Code != 0 || m.log() != "1:out\n2:err\n1:in\n" && strings.Count(m.log(), "\n") != 3 {
			t.Errorf("got %+v, %q", e, m.log())
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
			m := newMonitored(t, false, 0, c.cmd)
			cl := m.spawn()
			_, err := cl.Created(m.ctx())
			if err == nil {
				_, _, err = cl.Start(m.ctx())
			}
			if errdefs.KindOf(err) != c.kind || monitor.Alive(m.cfg.RunDir) {
				t.Errorf("got %v (%v), alive %v; want %v", err, errdefs.KindOf(err), monitor.Alive(m.cfg.RunDir), c.kind)
			}
			if e := m.wait(cl); e.Code != c.kind.ExitCode() {
				t.Errorf("got %+v", e)
			}
			if _, err := os.Stat(m.cfg.RuntimeRoot + "/" + m.cfg.ID); err == nil {
				t.Error("the runtime's state is left")
			}
		})
	}
	t.Run("terminal", func(t *testing.T) {
		m := newMonitored(t, true, 0, "sh", "-c", "stty size; tty; read l; echo got $l; stty size; cat")
		m.cfg.OpenStdin, m.cfg.Width, m.cfg.Height = true, 90, 30
		r, w, _ := os.Pipe()
		c, _ := m.start(r)
		_ = r.Close()
		m.eventually("a terminal", func() bool { return strings.Contains(m.log(), "/dev/") })
		if err := c.Resize(m.ctx(), 70, 20); err != nil {
			t.Error(err)
		}
		_, _ = w.WriteString("typed\r")
		m.eventually("read", func() bool { return strings.Contains(m.log(), "20 70\r\n") })
		_, _ = w.WriteString("\x04")
		if e := m.wait(c); e.Code != 0 || !strings.Contains(m.log(), "30 90\r\n") || !strings.Contains(m.log(), "got typed\r\n") ||
			strings.Contains(m.log(), "not a tty") {
			t.Errorf("got %+v, %q", e, m.log())
		}
		_ = w.Close()
	})
	t.Run("killed client", func(t *testing.T) {
		m := newMonitored(t, false, 0, "sleep", "1000")
		c := m.spawn()
		pid, err := c.Created(m.ctx())
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
		m.eventually("cleaned up", func() bool { _, err := os.Stat(m.dir + "/cleaned"); return err == nil })
		if unix.Kill(pid, 0) == nil {
			t.Error("the container is left")
		}
	})
	t.Run("lives on", func(t *testing.T) {
		m := newMonitored(t, false, 0, "sh", "-c", "echo one; sleep 3; echo two; exit 4")
		c, _ := m.start()
		time.Sleep(2 * time.Second) // the monitor has settled
		c2, err := monitor.Dial(m.ctx(), m.cfg.RunDir)
		if err != nil {
			t.Fatal(err)
		}
		defer c2.Close()
		_ = c.Close()
		if e := m.wait(c2); e.Code != 4 || m.log() != "1:one\n1:two\n" || e.StartedAt.IsZero() || len(e.Warnings) > 0 {
			t.Errorf("got %+v, %q", e, m.log())
		}
	})
}

// BenchmarkMonitorMemory reports what ten idle monitors of real containers cost: each one's share of all pages (Pss),
// what of it is its own (Anon), and its threads.
func BenchmarkMonitorMemory(b *testing.B) {
	binary(b)
	const n = 10
	var ms []*monitored
	var pids []int
	var cs []*monitor.Client
	for range n {
		m := newMonitored(b, false, 0, "sleep", "1000")
		c, pid := m.start()
		ms, pids, cs = append(ms, m), append(pids, pid), append(cs, c)
		_ = c
	}
	time.Sleep(3 * time.Second)
	for b.Loop() {
		sum := map[string]int{}
		for _, pid := range pids {
			for _, f := range []string{"smaps_rollup", "status"} {
				s, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", parent(b, pid), f))
				if err != nil {
					b.Fatal(err)
				}
				for _, l := range bytes.Split(s, []byte("\n")) {
					var name string
					var v int
					if k, _ := fmt.Sscan(string(l), &name, &v); k == 2 {
						switch name {
						case "Pss:", "Pss_Anon:", "Pss_File:", "Threads:":
							sum[strings.TrimSuffix(name, ":")] += v
						}
					}
				}
			}
		}
		for k, v := range sum {
			unit := "KiB-"
			if k == "Threads" {
				unit = "n-"
			}
			b.ReportMetric(float64(v)/n, unit+k)
		}
	}
	if testing.Verbose() {
		s, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", parent(b, pids[0])))
		b.Logf("%s", s)
	}
	for i, c := range cs {
		_ = c.Signal(ms[i].ctx(), 9)
		ms[i].wait(c)
		_ = c.Close()
	}
}

func parent(t testing.TB, pid int) int {
	t.Helper()
	s, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	var state string
	var ppid int
	_, _ = fmt.Sscan(string(s[bytes.LastIndexByte(s, ')')+1:]), &state, &ppid)
	return ppid
}
