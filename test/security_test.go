package test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// evil is an image's tree with something hostile in it: files by name; a value that begins with "->" is a link, with
// "fifo" a named pipe, with "#!" a program.
type evil map[string]string

// importEvil makes an image of a static busybox and the hostile entries, which replace what a tree has by default.
func importEvil(t *testing.T, h *host, name string, more evil, changes ...string) {
	t.Helper()
	needs(t, "busybox")
	box, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(hdr tar.Header, body []byte) {
		hdr.Size, hdr.ModTime = int64(len(body)), time.Unix(1700000000, 0)
		if err := w.WriteHeader(&hdr); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "tmp", "data"} {
		if _, replaced := more[d]; !replaced {
			add(tar.Header{Name: d + "/", Typeflag: tar.TypeDir, Mode: 0o755}, nil)
		}
	}
	add(tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755}, box)
	for _, n := range []string{"sh", "cat", "true", "ls", "id", "grep", "readlink", "sleep", "mount", "unshare", "head", "wc", "find"} {
		add(tar.Header{Name: "bin/" + n, Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil)
	}
	if _, replaced := more["etc/passwd"]; !replaced {
		add(tar.Header{Name: "etc/passwd", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("root:x:0:0:root:/:/bin/sh\nweb:x:33:34::/:/bin/sh\n"))
	}
	for n, v := range more {
		switch {
		case strings.HasPrefix(v, "->"):
			add(tar.Header{Name: n, Typeflag: tar.TypeSymlink, Linkname: strings.TrimPrefix(v, "->")}, nil)
		case v == "fifo":
			add(tar.Header{Name: n, Typeflag: tar.TypeFifo, Mode: 0o666}, nil)
		default:
			add(tar.Header{Name: n, Typeflag: tar.TypeReg, Mode: 0o755}, []byte(v))
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "evil.tar")
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"import"}
	for _, c := range changes {
		args = append(args, "--change", c)
	}
	h.onggi(append(args, file, name)...)
}

// outside is a directory of the host that no container may read or write. The returned function fails the test if it
// was written.
func outside(t *testing.T, h *host) (dir string, untouched func()) {
	t.Helper()
	dir = filepath.Join(filepath.Dir(h.root), "outside")
	if err := os.MkdirAll(filepath.Join(dir, "empty"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("of-the-host\n"), 0o666); err != nil {
		t.Fatal(err)
	}
	list := func() (s string) {
		err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			fi, err := d.Info()
			if err != nil {
				return err
			}
			st := fi.Sys().(*syscall.Stat_t)
			s += fmt.Sprintln(p, fi.Mode(), fi.Size(), fi.ModTime().UnixNano(), st.Uid, st.Gid)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	before := list()
	return dir, func() {
		t.Helper()
		if now := list(); now != before {
			t.Errorf("the host's directory has changed:\n%s\nbefore:\n%s", now, before)
		}
	}
}

// TestHostileImages runs images whose trees hold links to where the engine or the runtime will mount, read or write.
// Class A of doc/security.md: CVE-2019-16884, 2019-19921, 2021-30465, 2023-27561, 2023-28642, 2024-45310, 2025-31133,
// 2025-52565, 2025-52881, 2026-41579 (runc), 2022-23648 (containerd), 2024-9407 (buildah), and FIFOs where files are read.
func TestHostileImages(t *testing.T) {
	h := newHost(t)
	dir, untouched := outside(t, h)
	run := []string{"run", "--rm", "--network", "none"}
	for i, c := range []struct {
		name    string
		tree    evil
		changes []string
		args    []string
		code    int    // -1: either it works or it is refused
		want    string // in stdout, if it works
	}{
		{"/proc is a link to the host's directory", evil{"proc": "->" + dir}, nil, []string{"I", "true"}, -1, ""},
		{"/proc leads up", evil{"proc": "->../../../../../../../../.." + dir}, nil, []string{"I", "true"}, -1, ""},
		{"/proc is a link within", evil{"proc": "->tmp"}, nil, []string{"I", "cat", "/proc/self/status"}, -1, "Seccomp:\t2"},
		{"/dev is a link to the host's directory", evil{"dev": "->" + dir}, nil, []string{"I", "true"}, -1, ""},
		{
			"/dev/console, null and ptmx are links",
			evil{"dev/console": "->" + dir + "/secret", "dev/null": "->" + dir + "/secret", "dev/ptmx": "->" + dir + "/secret"},
			nil,
			[]string{"I", "sh", "-c", "echo x >/dev/null; cat /dev/null"},
			0, "",
		},
		{"/sys is a link to the host's directory", evil{"sys": "->" + dir}, nil, []string{"I", "true"}, -1, ""},
		{"/etc is a link to the host's directory", evil{"etc": "->" + dir, "etc/passwd": "->secret"}, nil, []string{"I", "true"}, -1, ""},
		{
			"resolv.conf, hosts and hostname are links",
			evil{"etc/resolv.conf": "->" + dir + "/new", "etc/hosts": "->" + dir + "/secret", "etc/hostname": "->../../../../../.." + dir + "/empty/new"},
			nil,
			[]string{"I", "cat", "/etc/hosts"},
			0, "localhost",
		},
		{"the working directory is a link", evil{"work": "->" + dir}, nil, []string{"-w", "/work", "I", "sh", "-c", "echo x > here; ls " + dir}, -1, ""},
		{"the working directory leads through a descriptor", nil, nil, []string{"-w", "/proc/self/fd/7/../../..", "I", "cat", dir + "/secret"}, -1, ""},
		{"a bind's target is a link", evil{"data": "->" + dir + "/empty"}, nil, []string{"-v", "/usr:/data/sub/dir", "I", "true"}, -1, ""},
		{"a bind's target leads up", evil{"data": "->../../../../../../../../.." + dir}, nil, []string{"-v", "/etc/hostname:/data/new", "I", "true"}, -1, ""},
		{"a volume's target is a link", evil{"data": "->" + dir}, nil, []string{"-v", "vol%d:/data", "I", "sh", "-c", "cat /data/secret; true"}, -1, ""},
		{"the image's volume is a link", evil{"data": "->" + dir}, []string{"VOLUME /data"}, []string{"I", "sh", "-c", "cat /data/secret; true"}, -1, ""},
		{"the image's volume leads up", nil, []string{"VOLUME /../../../../../../../.." + "/etc"}, []string{"I", "sh", "-c", "grep -c root:x /etc/shadow; true"}, -1, ""},
		{"a link in what a volume begins with", evil{"data/link": "->" + dir + "/secret"}, nil, []string{"-v", "vol%d:/data", "I", "sh", "-c", "cat /data/link; true"}, 0, ""},
		{"a tmpfs's target is a link", evil{"data": "->" + dir}, nil, []string{"--tmpfs", "/data", "I", "sh", "-c", "echo x >/data/y"}, -1, ""},
		{"masked paths are links", evil{"proc": "->" + dir, "sys": "->" + dir}, nil, []string{"--read-only", "I", "true"}, -1, ""},
		{"the command is a link to the host's program", evil{"bin/app": "->/usr/bin/env"}, nil, []string{"I", "/bin/app"}, 127, ""},
		{"passwd is a link to the host's", evil{"etc/passwd": "->/proc/1/root/etc/passwd"}, nil, []string{"-u", "root", "I", "true"}, -1, ""},
		{"passwd is a link up", evil{"etc/passwd": "->../../../../../../.." + dir + "/secret"}, nil, []string{"-u", "of-the-host", "I", "id"}, 125, ""},
		{"passwd is a pipe", evil{"etc/passwd": "fifo"}, nil, []string{"-u", "web", "I", "true"}, 125, ""},
		{"group is a pipe", evil{"etc/group": "fifo"}, nil, []string{"--group-add", "web", "I", "true"}, 125, ""},
		{"passwd is a device's name", evil{"etc/passwd": "->/dev/zero"}, nil, []string{"-u", "web", "I", "true"}, 125, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			image := fmt.Sprintf("evil%d", i)
			importEvil(t, h, image, c.tree, c.changes...)
			args := append([]string{}, run...)
			for _, a := range c.args {
				if strings.Contains(a, "vol%d") {
					a = fmt.Sprintf(a, i)
				}
				if a == "I" {
					a = image
				}
				args = append(args, a)
			}
			begin := time.Now()
			r := h.try(args...)
			if c.code >= 0 && r.code != c.code {
				t.Errorf("exit code %d, want %d", r.code, c.code)
			}
			if r.code == 0 && !strings.Contains(r.out, c.want) {
				t.Errorf("stdout %q, want %q", r.out, c.want)
			}
			if strings.Contains(r.out, "of-the-host") {
				t.Errorf("the container has read the host's file")
			}
			if d := time.Since(begin); d > 20*time.Second {
				t.Errorf("it took %v", d)
			}
			untouched()
			if b, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(b), dir) {
				t.Errorf("something is mounted over the host's directory: %v", err)
			}
			if t.Failed() {
				t.Logf("onggi %v\ncode %d\nstdout: %s\nstderr: %s", args, r.code, r.out, r.err)
			}
		})
	}
}

// TestHostOutOfReach: neither run nor exec has a descriptor, a program or a privilege of the host. Class B (CVE-2019-5736,
// CVE-2024-21626, CVE-2026-41567) and class F (CVE-2022-29162, CVE-2022-24769: inheritable capabilities; CVE-2022-36109,
// CVE-2023-25173: the primary group is among the groups) of doc/security.md.
func TestHostOutOfReach(t *testing.T) {
	h := newHost(t)
	// Programs that an engine might run by PATH, and interpreters that would be the runtime's own file.
	importEvil(t, h, "evil", evil{
		"bin/self": "#!/proc/self/exe\n", "bin/gzip": "#!/bin/sh\necho pwned >/pwned\n", "bin/xz": "#!/bin/sh\necho pwned >/pwned\n",
		"bin/onggi-runtime": "#!/bin/sh\necho pwned >/pwned\n",
	}, "ENV PATH=/bin LD_PRELOAD=/bin/self GODEBUG=x GOTRACEBACK=crash ONGGI_FAULT=run.start=kill")
	// A file of the caller's that is open while onggi runs.
	f, err := os.Open("/etc")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	with := func(args ...string) result {
		t.Helper()
		c := exec.Command(filepath.Join(bin, "onggi"), args...)
		c.Env, c.ExtraFiles = h.env, []*os.File{f, f, f, f}
		var out, errb bytes.Buffer
		c.Stdout, c.Stderr = &out, &errb
		_ = c.Run()
		return result{out.String(), errb.String(), c.ProcessState.ExitCode()}
	}
	h.onggi("run", "-d", "--network", "none", "--name", "up", "-e", "LD_PRELOAD=", "evil", "sleep", "1000")
	for _, c := range []struct{ name, script, want string }{
		{"descriptors", "ls /proc/self/fd", "0\n1\n2\n3\n"}, // 3 is the list's own
		{"no way up", "cd /proc/self/fd; for f in *; do [ -d $f ] && ls $f/..; done; true", ""},
		{"own program", "readlink /proc/self/exe", "/bin/busybox\n"},
		{"own program of process 1", "readlink /proc/1/exe", "/bin/busybox\n"},
		{"inheritable and ambient capabilities", "grep -E 'Cap(Inh|Amb)' /proc/self/status", "CapInh:\t0000000000000000\nCapAmb:\t0000000000000000\n"},
		{"no interpreter is ours", "/bin/self 2>&1 | grep -c onggi", "0\n"},
		{"no cgroup can be mounted", "mount -t cgroup -o memory x /tmp 2>/dev/null || echo refused", "refused\n"}, // CVE-2022-0492
		{"no user namespace", "unshare -U true 2>/dev/null || echo refused", "refused\n"},                         // CVE-2022-0185
		{"seccomp", "grep Seccomp: /proc/self/status", "Seccomp:\t2\n"},
		{"nothing of the engine in the environment", "grep -c ONGGI_RUN_ROOT /proc/self/environ; true", "0\n"},
	} {
		if r := with("run", "--rm", "--network", "none", "-e", "LD_PRELOAD=", "evil", "sh", "-c", c.script); r.out != c.want {
			t.Errorf("run: %s: %q, want %q; %s", c.name, r.out, c.want, r.err)
		}
		if r := with("exec", "up", "sh", "-c", c.script); r.out != c.want {
			t.Errorf("exec: %s: %q, want %q; %s", c.name, r.out, c.want, r.err)
		}
	}
	for _, args := range [][]string{{"run", "--rm", "--network", "none", "-u", "web", "evil"}, {"exec", "-u", "web", "up"}} {
		if r := with(append(args, "sh", "-c", "grep -E 'Groups|CapEff|CapPrm' /proc/self/status")...); r.out !=
			"Groups:\t34 \nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n" {
			t.Errorf("%v: %q %s", args[:1], r.out, r.err)
		}
	}
	for fd := range 20 {
		for _, p := range []string{fmt.Sprintf("/proc/self/fd/%d", fd), fmt.Sprintf("/proc/self/fd/%d/../../..", fd), fmt.Sprintf("/proc/1/fd/%d/..", fd)} {
			for _, args := range [][]string{{"run", "--rm", "--network", "none", "-w", p, "evil"}, {"exec", "-w", p, "up"}} {
				if r := with(append(args, "sh", "-c", "ls -d ./onggi-test* ../onggi-test* ../var/tmp/onggi-test* ./etc/debian_version ../etc/debian_version")...); strings.Contains(r.out, "/") {
					t.Errorf("%s in %s: %q", args[0], p, r.out)
				}
			}
			if fd > 8 {
				break
			}
		}
	}
	if r := h.try("exec", "up", "find", "/pwned"); r.out != "" {
		t.Errorf("a program of the image was run by the engine: %s", r.out)
	}
}

// TestImageDataIsNoInput: what an image says in labels, variables and its configuration is shown and handed on, and
// never becomes a setting. Class C of doc/security.md: CVE-2022-0811, CVE-2026-53488, CVE-2026-15809, CVE-2024-3154.
func TestImageDataIsNoInput(t *testing.T) {
	h := newHost(t)
	importEvil(t, h, "evil", nil,
		`LABEL org.systemd.property.ExecStartPre="touch /pwned" io.kubernetes.cri-o.userns-mode=auto org.onggi.image.id=sha256:0 run.oci.hooks.stderr=/pwned`,
		`LABEL onggi.privileged=true org.onggi.annotations="{}" com.docker.official=1 containerd.io/restart.loguri=binary:///bin/true`,
		`ENV HOME="/x\nevil::0:0::/:/bin/sh" container=pwned`, "USER web")
	id := h.onggi("run", "-d", "--network", "none", "evil", "sleep", "1000")
	b, err := os.ReadFile(filepath.Join(h.run, "containers", id, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"org.systemd.property", "io.kubernetes.cri-o", "loguri", "onggi.privileged", "run.oci.hooks"} {
		if strings.Contains(string(b), s) {
			t.Errorf("the runtime's configuration holds the image's label %s", s)
		}
	}
	if out := h.onggi("exec", id, "cat", "/etc/passwd"); strings.Contains(out, "evil") {
		t.Errorf("/etc/passwd has a line that came from a variable: %s", out)
	}
	if out := h.onggi("exec", id, "grep", "-E", "NoNewPrivs|CapEff", "/proc/self/status"); !strings.Contains(out, "CapEff:\t0000000000000000") {
		t.Errorf("the image's label has given privileges: %s", out)
	}
	if _, err := os.Stat("/pwned"); err == nil {
		t.Error("/pwned exists on the host")
	}
}

// TestStateIsPrivate: nobody but root walks into the trees of containers, where set-user-id programs of images lie. Class F
// of doc/security.md: CVE-2021-41091, CVE-2021-41103, CVE-2024-25621; and D: no abstract socket (CVE-2020-15257).
func TestStateIsPrivate(t *testing.T) {
	h := newHost(t)
	importBusybox(t, h)
	old := syscall.Umask(0)
	h.onggi("run", "-d", "--network", "none", "-v", "vol:/vol", "bb", "sleep", "1000")
	syscall.Umask(old)
	for _, dir := range []string{"containers", "snapshots", "images", "volumes", "names"} {
		p := filepath.Join(h.root, dir)
		fi, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		if parent, err := os.Stat(h.root); fi.Mode().Perm()&0o077 != 0 && (err != nil || parent.Mode().Perm()&0o077 != 0) {
			t.Errorf("%s has mode %v, and %s %v", p, fi.Mode(), h.root, parent.Mode())
		}
	}
	err := filepath.WalkDir(h.run, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err == nil && fi.Mode()&fs.ModeSocket != 0 && fi.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", p, fi.Mode())
		}
		if err == nil && fi.IsDir() && filepath.Dir(p) == filepath.Join(h.run, "containers") && fi.Mode().Perm() != 0o700 {
			t.Errorf("%s has mode %v", p, fi.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	b, err := os.ReadFile("/proc/self/net/unix")
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(b)) {
		if f := strings.Fields(l); len(f) > 7 && strings.HasPrefix(f[7], "@") {
			t.Errorf("an abstract socket: %s", l)
		}
	}
}

// TestMonitorKnowsItsPeer: another user who gets at the socket, because somebody has changed the modes, is not served.
// Class D of doc/security.md.
func TestMonitorKnowsItsPeer(t *testing.T) {
	h := newHost(t)
	importBusybox(t, h)
	id := h.onggi("run", "-d", "--network", "none", "bb", "sleep", "1000")
	dir := filepath.Join(h.run, "containers", id)
	for _, p := range []string{filepath.Dir(h.run), h.run, filepath.Dir(dir), dir, filepath.Join(dir, "monitor.sock")} {
		if err := os.Chmod(p, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	at, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer at.Close()
	// dial connects as a user and returns the monitor's first words; none, when it hangs up.
	dial := func(uid int) string {
		answer := make(chan string)
		go func() {
			runtime.LockOSThread() // never unlocked: the thread ends with its credentials
			answer <- func() string {
				fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					return err.Error()
				}
				defer unix.Close(fd)
				_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10})
				if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); e != 0 {
					return e.Error()
				}
				if err := unix.Connect(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/monitor.sock", at.Fd())}); err != nil {
					return err.Error()
				}
				b := make([]byte, 4096)
				n, err := unix.Read(fd, b)
				if err != nil {
					return err.Error()
				}
				return string(b[:n])
			}()
		}()
		return <-answer
	}
	if got := dial(0); !strings.Contains(got, "hello") {
		t.Errorf("root gets %q", got)
	}
	if got := dial(65534); got != "" {
		t.Errorf("another user gets %q", got)
	}
}
