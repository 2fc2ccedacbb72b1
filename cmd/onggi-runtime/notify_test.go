package main

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// serviceManager listens like systemd and answers barriers by closing their descriptor.
func serviceManager(t *testing.T, dir string) (env string, next func() string) {
	t.Helper()
	name := filepath.Join(dir, "manager.sock")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return "NOTIFY_SOCKET=" + name, func() string {
		t.Helper()
		buf, oob := make([]byte, 4096), make([]byte, 256)
		_ = l.SetReadDeadline(time.Now().Add(20 * time.Second))
		n, on, _, _, err := l.ReadMsgUnix(buf, oob)
		if err != nil {
			t.Fatal(err)
		}
		if ms, err := unix.ParseSocketControlMessage(oob[:on]); err == nil && len(ms) == 1 {
			if fds, err := unix.ParseUnixRights(&ms[0]); err == nil {
				for _, fd := range fds {
					_ = unix.Close(fd)
				}
			}
		}
		return string(buf[:n])
	}
}

// say sends a message to a container's socket.
func say(t *testing.T, socket, text string) {
	t.Helper()
	var err error
	for range 400 {
		var c net.Conn
		if c, err = net.Dial("unixgram", socket); err == nil {
			_, err = c.Write([]byte(text))
			_ = c.Close()
			if err == nil {
				return
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal(err)
}

// TestNotifySocket: what a container says to systemd is passed on, in run, run -d and create with start; what it must not
// say is not.
func TestNotifySocket(t *testing.T) {
	s := newSide(t, "ours", binary(t))
	env, next := serviceManager(t, s.dir)
	socket := filepath.Join(s.dir, "root/c/notify/notify.sock")
	const script = "echo $NOTIFY_SOCKET >/tmp/said; test -S $NOTIFY_SOCKET && echo socket >>/tmp/said; touch /run/notify/x 2>/dev/null && echo writable >>/tmp/said; exec sleep 1000"
	s.config("c", func(c *specs.Spec) { c.Process.Args = []string{"sh", "-c", script} })
	pid := func() string {
		b, err := os.ReadFile(filepath.Join(s.dir, "pid"))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, how := range []string{"run", "run -d", "start"} {
		var errs bytes.Buffer
		c := s.command("run", "--pid-file", filepath.Join(s.dir, "pid"), "c")
		switch how {
		case "run -d":
			c = s.command("run", "-d", "--pid-file", filepath.Join(s.dir, "pid"), "c")
		case "start":
			make := s.command("create", "--pid-file", filepath.Join(s.dir, "pid"), "c")
			make.Env = append(os.Environ(), env)
			if err := make.Run(); err != nil { // the container would hold a pipe
				t.Fatalf("create: %v", err)
			}
			c = s.command("start", "c")
		}
		c.Env = append(os.Environ(), env)
		log, err := os.Create(filepath.Join(s.dir, "errs"))
		if err != nil {
			t.Fatal(err)
		}
		c.Stderr = log
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- c.Wait() }()
		for i := 0; !strings.Contains(s.do("state", "c").out, `"running"`); i++ {
			if i == 500 {
				t.Fatalf("%s: it does not run", how)
			}
			time.Sleep(10 * time.Millisecond)
		}
		said := filepath.Join(s.bundle, "rootfs/tmp/said")
		var text []byte
		for i := 0; i < 500 && strings.Count(string(text), "\n") < 2; i++ {
			text, _ = os.ReadFile(said)
			time.Sleep(10 * time.Millisecond)
		}
		if string(text) != "/run/notify/notify.sock\nsocket\n" {
			t.Errorf("%s: the container sees %q", how, text)
		}
		_ = os.Remove(said)
		say(t, socket, "STATUS=half\nMAINPID=1\nFDSTORE=1")
		if got := next(); got != "STATUS=half\n" {
			t.Errorf("%s: %q, want the status alone", how, got)
		}
		select {
		case err := <-ended:
			t.Errorf("%s: it does not wait until the container is ready: %v", how, err)
		default:
		}
		say(t, socket, "READY=1\nMAINPID=7\nSTATUS=well")
		want := "READY=1\nSTATUS=well\n"
		if how != "run" {
			want += "MAINPID=" + pid() + "\n"
		}
		if got := next(); got != want {
			t.Errorf("%s: %q, want %q", how, got, want)
		}
		if how == "run" {
			say(t, socket, "STOPPING=1")
			if got := next(); got != "STOPPING=1\n" {
				t.Errorf("%s: %q", how, got)
			}
			s.must("kill", "c", "KILL")
		} else if got := next(); got != "BARRIER=1" {
			t.Errorf("%s: %q, want the barrier", how, got)
		}
		if err := <-ended; err != nil && how != "run" {
			b, _ := os.ReadFile(log.Name())
			t.Errorf("%s: %v %s %s", how, err, b, errs.String())
		}
		_ = log.Close()
		s.do("delete", "--force", "c")
		if _, err := os.Stat(filepath.Join(s.dir, "root/c")); err == nil {
			t.Errorf("%s: the state is left", how)
		}
	}
	// A container that ends without a word does not hold start up.
	s.config("c", func(c *specs.Spec) { c.Process.Args = []string{"true"} })
	c := s.command("run", "-d", "c")
	c.Env = append(os.Environ(), env)
	if err := c.Run(); err != nil {
		t.Error(err)
	}
	s.must("delete", "c")
	// A manager that is not there is told of.
	c = s.command("run", "-d", "c")
	c.Env = append(os.Environ(), "NOTIFY_SOCKET="+filepath.Join(s.dir, "nobody"))
	log, err := os.Create(filepath.Join(s.dir, "errs"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close() //nolint:errcheck // read by name
	c.Stderr = log
	err = c.Run()
	if b, _ := os.ReadFile(log.Name()); err == nil || !strings.Contains(string(b), "NOTIFY_SOCKET") {
		t.Errorf("%v: %s", err, b)
	}
	s.do("delete", "--force", "c")
}
