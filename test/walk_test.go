package test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestWalk is the whole line once: a debootstrap image is pushed to a registry by skopeo, pulled, run isolated,
// limited, networked, logged, and cleaned up.
func TestWalk(t *testing.T) {
	addr := startRegistry(t)
	name := pushDebian(t, addr)
	h := newHost(t)

	if out := h.onggi("pull", name); !strings.Contains(out, "Digest: sha256:") {
		t.Errorf("pull prints no digest:\n%s", out)
	}
	if out := h.onggi("pull", name); !strings.Contains(out, "up to date") {
		t.Errorf("a second pull does not say that the image is up to date:\n%s", out)
	}
	if out := h.onggi("images"); !strings.Contains(out, addr+"/debian") || !strings.Contains(out, "12") {
		t.Errorf("images does not list it:\n%s", out)
	}

	t.Run("isolated and limited", func(t *testing.T) {
		out := h.onggi("run", "--rm", "--memory", "256m", "--cpus", "0.5", "--pids-limit", "50", "--hostname", "walk", name, "bash", "-c", `
			echo pid=$$ host=$(hostname) id=$(id -u) procs=$(ls -d /proc/[0-9]* | wc -l)
			grep -E '^(CapEff|CapInh|Seccomp|NoNewPrivs):' /proc/self/status
			cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max
			cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || cat /sys/fs/cgroup/cpu.max
			cat /sys/fs/cgroup/pids/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids.max
			ls /proc/self/fd | wc -l
			cat /proc/kcore 2>&1 | head -c1 | wc -c
			echo x > /proc/sys/kernel/hostname 2>&1 || echo proc-sys-is-read-only`)
		for _, want := range []string{"pid=1 host=walk id=0", "CapEff:\t00000000a80425fb", "CapInh:\t0000000000000000", "Seccomp:\t2", "268435456", "50000", "\n50\n", "proc-sys-is-read-only"} {
			if !strings.Contains(out, want) {
				t.Errorf("no %q in:\n%s", want, out)
			}
		}
	})

	t.Run("published, with a terminal", func(t *testing.T) {
		master, replica := openPty(t)
		cid := filepath.Join(t.TempDir(), "cid")
		c := exec.Command(filepath.Join(bin, "onggi"), "run", "--rm", "-it", "--memory", "256m", "--cpus", "0.5", "-p", "127.0.0.1:18080:80", "--cidfile", cid, name)
		c.Env = append(h.env, "TERM=xterm")
		c.Stdin, c.Stdout, c.Stderr = replica, replica, replica
		c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		if err := unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 33, Col: 111}); err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		_ = replica.Close()
		screen := newScreen(master)
		say := func(s string) { _, _ = master.WriteString(s) }
		say("stty size; tty; app & \r")
		screen.expect(t, "33 111")
		screen.expect(t, "/dev/pts/0")
		if body := dialEventually(t, "127.0.0.1:18080"); body != "hello from the container\n" {
			t.Errorf("the published port answers %q", body)
		}
		_ = unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 44, Col: 122})
		_ = c.Process.Signal(syscall.SIGWINCH)
		say("until [ \"$(stty size)\" = '44 122' ]; do sleep 0.05; done; echo resized-$((40+2))\r")
		screen.expect(t, "resized-42")
		say("sh -c 'echo asleep-$((1+1)); exec sleep 1000'\r")
		screen.expect(t, "asleep-2")
		say("\x03") // Ctrl-C ends the sleep, not the session
		say("echo still-$((40+2))\r")
		screen.expect(t, "still-42")
		say("exit 7\r")
		_ = c.Wait()
		if got := c.ProcessState.ExitCode(); got != 7 {
			t.Errorf("exit code %d, want 7; screen:\n%s", got, screen.text())
		}
		if out := h.onggi("ps", "-aq"); out != "" {
			t.Errorf("--rm left %s", out)
		}
	})

	t.Run("logged, entered, stopped", func(t *testing.T) {
		id := h.onggi("run", "-d", "--name", "web", "-p", "127.0.0.1:0:80", name, "sh", "-c", "echo to stdout; echo to stderr >&2; exec app")
		if len(id) != 64 {
			t.Errorf("run -d prints %q, not an id", id)
		}
		answer := func() string {
			m := regexp.MustCompile(`"HostPort": "(\d+)"`).FindStringSubmatch(h.onggi("inspect", "--format", "json", "web"))
			if m == nil {
				t.Fatal("inspect shows no HostPort")
			}
			return dialEventually(t, "127.0.0.1:"+m[1])
		}
		if body := answer(); !strings.Contains(body, "hello") {
			t.Errorf("answer %q", body)
		}
		r := h.try("logs", "web")
		if r.out != "to stdout\n" || r.err != "to stderr\n" {
			t.Errorf("logs: stdout %q, stderr %q", r.out, r.err)
		}
		if out := h.onggi("exec", "-e", "A=b", "-w", "/tmp", "web", "sh", "-c", "echo $A $PWD $(hostname)"); out != "b /tmp "+id[:12] {
			t.Errorf("exec: %q", out)
		}
		if r := h.try("exec", "web", "no-such-command"); r.code != 127 {
			t.Errorf("exec of a missing command: exit code %d, want 127; %s", r.code, r.err)
		}
		h.onggi("stop", "-t", "1", "web")
		if out := h.onggi("ps", "-a"); !strings.Contains(out, "Exited (") {
			t.Errorf("ps -a after stop:\n%s", out)
		}
		h.onggi("start", "web")
		answer() // the kernel chose another port: -p 127.0.0.1:0 is asked anew at each start
		h.onggi("rm", "-f", "web")
	})

	t.Run("rmi", func(t *testing.T) {
		h.onggi("rmi", name)
		if out := h.onggi("images", "-q"); out != "" {
			t.Errorf("images after rmi: %s", out)
		}
		// Every byte goes, from the trash, too: only empty directories and records remain.
		h.onggi("system", "prune", "--force", "--trash")
		if kb, _ := strconv.Atoi(strings.Fields(sh(t, "du", "-sk", h.root))[0]); kb > 1024 {
			t.Errorf("%d KiB are left after rmi:\n%s", kb, sh(t, "du", "-k", "-d", "4", h.root))
		}
	})
}

// openPty returns a new pseudo-terminal pair.
func openPty(t *testing.T) (master, replica *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo-terminals here: %v", err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		replica, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|syscall.O_NOCTTY, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = master.Close() })
	return master, replica
}

// screen collects what a terminal prints.
type screen struct {
	lines chan []byte
	seen  bytes.Buffer
}

func newScreen(master *os.File) *screen {
	s := &screen{lines: make(chan []byte, 1000)}
	go func() {
		for {
			b := make([]byte, 4096)
			n, err := master.Read(b)
			if err != nil {
				close(s.lines)
				return
			}
			s.lines <- b[:n]
		}
	}()
	return s
}

func (s *screen) text() string { return s.seen.String() }

// expect waits for text to appear; what was shown before it is used up.
func (s *screen) expect(t *testing.T, want string) {
	t.Helper()
	deadline := time.After(patience)
	for {
		if i := bytes.Index(s.seen.Bytes(), []byte(want)); i >= 0 {
			s.seen.Next(i + len(want))
			return
		}
		select {
		case b, ok := <-s.lines:
			if !ok {
				t.Fatalf("the terminal closed before it showed %q:\n%s", want, s.seen.String())
			}
			s.seen.Write(b)
		case <-deadline:
			t.Fatalf("the terminal does not show %q within %v:\n%s", want, patience, s.seen.String())
		}
	}
}
