package test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// commoner is a user of the host who exists in this test's commands only: their mount namespaces have another passwd,
// subuid and subgid than the host.
type commoner struct {
	t    *testing.T
	dir  string
	uid  int
	file map[string]string // what lies over the host's files
}

// newCommoner makes a user, with ranges of subordinate ids or with its own id only.
func newCommoner(t *testing.T, uid int, ranges bool) *commoner {
	t.Helper()
	needs(t, "newuidmap", "nsenter", "setpriv", "unshare")
	for _, name := range []string{"max_user_namespaces", "max_mnt_namespaces"} {
		if b, err := os.ReadFile("/proc/sys/user/" + name); err == nil && strings.TrimSpace(string(b)) == "0" {
			t.Skipf("this host lets users make no namespaces: user.%s is 0", name)
		}
	}
	dir, err := os.MkdirTemp("/var/tmp", scratch)
	if err != nil {
		t.Fatal(err)
	}
	c := &commoner{t: t, dir: dir, uid: uid, file: map[string]string{}}
	t.Cleanup(c.end)
	if err := unix.Setxattr(dir, "user.onggi", []byte("x"), 0); err != nil { // overlayfs keeps its marks in such ones
		t.Skipf("/var/tmp has no user attributes: %v", err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"bin", "home", "run"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"home", "run"} {
		if err := os.Chown(filepath.Join(dir, d), uid, uid); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, b := range []string{"onggi", "onggi-runtime", "onggi-build"} { // the tests' own directory may be root's only
		sh(t, "cp", filepath.Join(bin, b), filepath.Join(dir, "bin", b))
	}
	accounts, err := os.ReadFile("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	ids := ""
	if ranges {
		ids = "onggitest:300000:65536\n"
	}
	for name, text := range map[string]string{
		"passwd": fmt.Sprintf("%songgitest:x:%d:%d::%s/home:/bin/sh\n", accounts, uid, uid, dir), "subuid": ids, "subgid": ids,
	} {
		c.file["/etc/"+name] = filepath.Join(dir, name)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat("/etc/" + name); err != nil {
			t.Skipf("/etc/%s is missing, and nothing can be laid over it", name)
		}
	}
	return c
}

// end removes the containers, the holder of the namespaces, and all files.
func (c *commoner) end() {
	if ids := strings.Fields(c.try("ps", "-aq").out); len(ids) > 0 {
		c.try(append([]string{"rm", "-f", "-v"}, ids...)...)
	}
	if b, err := os.ReadFile(filepath.Join(c.dir, "run/onggi/userns/holder")); err == nil {
		pid, _ := strconv.Atoi(strings.Fields(string(b) + " 0")[0])
		if link, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && strings.HasPrefix(link, c.dir) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	if err := os.RemoveAll(c.dir); err != nil {
		c.t.Errorf("cannot remove the user's files: %v", err)
	}
}

// try runs onggi as the user.
func (c *commoner) try(args ...string) result {
	c.t.Helper()
	script := "mount --make-rprivate /\n"
	for over, file := range c.file {
		script += "mount --bind " + file + " " + over + "\n"
	}
	script += fmt.Sprintf(`cd %s/home && exec setpriv --reuid %d --regid %d --clear-groups %s/bin/onggi "$@"`, c.dir, c.uid, c.uid, c.dir)
	cmd := exec.Command("unshare", append([]string{"--mount", "sh", "-ec", script, "sh"}, args...)...)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + c.dir + "/home", "XDG_RUNTIME_DIR=" + c.dir + "/run", "USER=onggitest", "LC_ALL=C.UTF-8",
		"ONGGI_REGISTRIES=" + c.dir + "/registries",
	}
	var out, errb bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errb
	cmd.WaitDelay = 10 * time.Second
	timer := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Kill() })
	_ = cmd.Run() // the code says it
	timer.Stop()
	return result{out: out.String(), err: errb.String(), code: cmd.ProcessState.ExitCode()}
}

// says runs onggi, which must end with a code, and print want on one of its two outputs.
func (c *commoner) says(code int, want string, args ...string) {
	c.t.Helper()
	r := c.try(args...)
	if r.code != code || !strings.Contains(r.out+r.err, want) {
		c.t.Fatalf("onggi %s: exit code %d, want %d and %q\nstdout: %s\nstderr: %s", strings.Join(args, " "), r.code, code, want, r.out, r.err)
	}
}

// TestRootless is a day of a user who is not root: everything that the user can do, and what is refused with a reason.
func TestRootless(t *testing.T) {
	c := newCommoner(t, 54871, true)
	tar := filepath.Join(c.dir, "busybox.tar")
	sh(t, "cp", busyboxTar(t), tar)
	if err := os.Chmod(tar, 0o644); err != nil {
		t.Fatal(err)
	}
	c.says(0, "user 54871, 65537 ids", "info")
	c.says(0, "sha256:", "import", tar, "busybox")
	c.says(0, "busybox", "images")

	c.says(0, "0\n", "run", "--rm", "--network", "none", "busybox", "id", "-u")
	c.says(7, "", "run", "--rm", "--network", "host", "busybox", "sh", "-c", "exit 7")
	c.says(127, "nosuch", "run", "--rm", "--network", "none", "busybox", "nosuch")
	c.says(0, "65534", "run", "--rm", "--network", "none", "busybox", "stat", "-c", "%u", "/proc/sys") // nobody's: the host's root

	// A life. The owners of files are the container's ids inside, and the user's subordinate ids outside.
	c.says(0, "", "run", "-d", "--name", "web", "--network", "none", "-v", "data:/data", "busybox",
		"sh", "-c", "echo hello; touch /data/x; chown 33:44 /data/x; exec sleep 1000")
	eventually(t, "the log", func() bool { return strings.Contains(c.try("logs", "web").out, "hello") })
	c.says(0, "web", "ps")
	c.says(0, "33 44", "exec", "web", "sh", "-c", "until [ $(stat -c %u /data/x) = 33 ]; do sleep 0.01; done; stat -c '%u %g' /data/x")
	c.says(0, "lo", "run", "--rm", "--network", "container:web", "busybox", "cat", "/proc/net/dev")
	c.says(1, "can make no bridge", "network", "create", "mine")
	c.says(0, "", "system", "resume")
	c.says(0, "", "system", "check")
	c.says(0, "5", "exec", "-u", "5", "web", "id", "-u")
	outside := strings.TrimSpace(c.try("volume", "inspect", "-f", "{{.Mountpoint}}", "data").out)
	var st syscall.Stat_t
	if err := syscall.Stat(filepath.Join(outside, "x"), &st); err != nil || st.Uid != 300032 || st.Gid != 300043 {
		t.Errorf("the volume's file is of %d:%d, %v; want 300032:300043", st.Uid, st.Gid, err)
	}
	c.says(0, "", "cp", "web:/data/x", "copy")
	if err := syscall.Stat(filepath.Join(c.dir, "home/copy"), &st); err != nil || int(st.Uid) != c.uid {
		t.Errorf("the copy is of %d, %v; want the user's", st.Uid, err)
	}
	c.says(0, "", "cp", "copy", "web:/tmp/back")
	c.says(0, "A /tmp/back", "diff", "web")
	c.says(0, "web", "stop", "-t", "0", "web")
	c.says(0, "(user root for onggitest)", "why", "web")
	c.says(0, "web", "start", "web")
	c.says(0, "web", "kill", "web")
	c.says(0, "137", "wait", "web")
	c.says(0, "sha256:", "commit", "web", "saved")
	c.says(0, "", "run", "--rm", "--network", "none", "saved", "stat", "/tmp/back")

	// A build, whose steps change owners and hide what lies below.
	dir := filepath.Join(c.dir, "home/context")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	recipe := "FROM busybox\nCOPY --chown=33:44 f /f\nRUN mkdir /d && touch /d/old\nRUN rm -r /d && mkdir /d && touch /d/new && chown 7 /d/new\n"
	for name, text := range map[string]string{"Dockerfile": recipe, "f": "text"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c.says(0, "", "build", "--network", "none", "-t", "built", "context")
	c.says(0, "33 44\n7\nnew\n", "run", "--rm", "--network", "none", "built", "sh", "-c", "stat -c '%u %g' /f; stat -c %u /d/new; ls /d")

	// What is refused says why.
	c.says(125, "can make no bridge", "run", "--rm", "busybox", "true")
	if r := c.try("info"); strings.Contains(r.err, "no control group") {
		c.says(125, "may make no control group", "run", "--rm", "--network", "none", "--memory", "64m", "busybox", "true")
		c.says(1, "may write no control group", "stats", "--no-stream")
		c.says(0, "web", "start", "web")
		c.says(1, "may write no control group", "pause", "web")
		c.says(1, "may write no control group", "top", "web")
	}
	c.says(0, "web", "rm", "-f", "web")
	c.says(0, "data", "volume", "rm", "data")
	c.says(0, "", "system", "prune", "-af")
	if left, _ := filepath.Glob(filepath.Join(c.dir, "run/onggi/containers/*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestRootlessOneID is a user without subordinate ids: root's files can be had, others' are refused, and info says it.
func TestRootlessOneID(t *testing.T) {
	c := newCommoner(t, 54872, false)
	c.says(0, "one id only", "info")
	c.says(0, "user 54872, 1 ids", "info")
	c.says(1, "this user's ids", "doctor")
	for name, owner := range map[string]string{"mine": "0:0", "another's": "33:33"} {
		dir := filepath.Join(c.dir, name)
		if err := os.MkdirAll(filepath.Join(dir, "bin"), 0o755); err != nil {
			t.Fatal(err)
		}
		sh(t, "cp", "/bin/busybox", dir+"/bin/sh")
		sh(t, "chown", owner, dir+"/bin/sh")
		sh(t, "tar", "-C", dir, "-cf", dir+".tar", ".")
	}
	c.says(0, "sha256:", "import", filepath.Join(c.dir, "mine.tar"), "mine")
	c.says(3, "", "run", "--rm", "--network", "none", "mine", "sh", "-c", "exit 3")
	c.says(1, "its owner 33:33 is not among the ids", "import", filepath.Join(c.dir, "another's.tar"), "other")
}
