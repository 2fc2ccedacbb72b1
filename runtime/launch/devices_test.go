package launch

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	runspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestListedDevices(t *testing.T) {
	h := newHost(t)
	mode := os.FileMode(0o600)
	uid, gid := uint32(7), uint32(8)
	s := h.spec("stat -c '%F %t:%T %a %u:%g' /dev/mine /other/dir/zero /dev/pipe /dev/null /tmp/there; ls /dev/ptmx")
	if err := os.MkdirAll(filepath.Join(h.rootfs, "tmp"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(filepath.Join(h.rootfs, "tmp/there"), unix.S_IFCHR|0o644, 1<<8|7); err != nil {
		t.Fatal(err)
	}
	s.Linux.Devices = []runspec.LinuxDevice{
		{Path: "/dev/mine", Type: "c", Major: 1, Minor: 5, FileMode: &mode, UID: &uid, GID: &gid},
		{Path: "/other/dir/zero", Type: "u", Major: 1, Minor: 5},
		{Path: "/dev/pipe", Type: "p", FileMode: &mode, GID: &gid},
		{Path: "/dev/null", Type: "c", Major: 1, Minor: 3, FileMode: &mode}, // instead of the default one
		{Path: "/dev/ptmx", Type: "c", Major: 5, Minor: 2},                  // the container's own stays
		{Path: "/tmp/there", Type: "c", Major: 1, Minor: 7},
	}
	want := "character special file 1:5 600 7:8\ncharacter special file 1:5 666 0:0\nfifo 0:0 600 0:8\ncharacter special file 1:3 600 0:0\n" +
		"character special file 1:7 644 0:0\n/dev/ptmx\n"
	if out, _, err := h.run(h.options(s)); err != nil || out != want {
		t.Errorf("got %q (%v), want %q", out, err, want)
	}
	for name, d := range map[string]runspec.LinuxDevice{
		"another device":  {Path: "/tmp/there", Type: "c", Major: 1, Minor: 5},
		"another type":    {Path: "/tmp/there", Type: "b", Major: 1, Minor: 7},
		"a plain file":    {Path: "/bin/busybox", Type: "c", Major: 1, Minor: 7},
		"no pipe":         {Path: "/bin/busybox", Type: "p"},
		"a link to /null": {Path: "/bin/sh", Type: "c", Major: 1, Minor: 3},
	} {
		s := h.spec("true")
		s.Linux.Devices = []runspec.LinuxDevice{d}
		if _, _, err := h.run(h.options(s)); err == nil || !strings.Contains(err.Error(), "of "+d.Path) {
			t.Errorf("%s where there is something else: %v", name, err)
		}
	}
	// In a user namespace the host's nodes are bound.
	s = h.spec("echo x > /dev/mine && stat -c %t:%T /dev/mine")
	s.Linux.Namespaces = append(s.Linux.Namespaces, runspec.LinuxNamespace{Type: "user"})
	maps := []runspec.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	s.Linux.UIDMappings, s.Linux.GIDMappings = maps, maps
	s.Linux.Devices = []runspec.LinuxDevice{{Path: "/dev/zero", Type: "c", Major: 1, Minor: 5}, {Path: "/dev/mine", Type: "c", Major: 1, Minor: 3}}
	if _, _, err := h.run(h.options(s)); err == nil || !strings.Contains(err.Error(), "open device /dev/mine: no such file") {
		t.Errorf("a device that the host has not under this name: %v", err)
	}
	s.Process.Args[2] = "stat -c %t:%T /dev/zero"
	s.Linux.Devices = s.Linux.Devices[:1]
	if out, _, err := h.run(h.options(s)); err != nil || out != "1:5\n" {
		t.Errorf("got %q (%v)", out, err)
	}
	// A /dev that is bound gets no nodes.
	dev := filepath.Join(h.bundle, "dev")
	if err := os.Mkdir(dev, 0o755); err != nil {
		t.Fatal(err)
	}
	s = h.spec("ls /dev | grep -v '^pts$' | grep -v '^shm$'; stat -c %t:%T /other/two")
	s.Mounts[1] = runspec.Mount{Destination: "/dev", Type: "bind", Source: dev, Options: []string{"rbind"}}
	s.Linux.Devices = []runspec.LinuxDevice{{Path: "/dev/mine", Type: "c", Major: 1, Minor: 5}, {Path: "/other/two", Type: "c", Major: 1, Minor: 5}}
	if out, _, err := h.run(h.options(s)); err != nil || out != "1:5\n" {
		t.Errorf("a bound /dev: got %q (%v)", out, err)
	}
}
