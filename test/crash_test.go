package test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// story is one command that the crash walk kills at each of its named steps.
type story struct {
	name string
	// args is the command. What it makes is called victim.
	args []string
	// before brings the host into the state in which the command makes sense; it may be repeated after a failure.
	before func(w *walker)
	// holds says whether the command, when it has ended well, has done what it is for. nil: its exit code says it.
	holds func(w *walker) error
	// after takes away what the command has made, or has left half-made, in the way a user would.
	after func(w *walker)
	// lives says that what the command is about may go on as it was when the command has failed early: a running
	// container.
	lives bool
	// only, when it is there, are the prefixes of the steps to be failed; the others are another story's.
	only []string
	// kernel says that the host's kernel and init have a say in it: such a story is also walked in the guests.
	kernel bool
}

// kernelSteps are prefixes of the steps that an emulated guest repeats: what the host's run cannot tell about another
// kernel with other control groups.
var kernelSteps = []string{"cgroup.", "monitor.", "network.", "snapshot.", "create.cgroup", "create.process"}

// buildSteps are prefixes of the steps that a build's story fails: its own, and of those that its containers have in common
// with all others one at each end.
var buildSteps = []string{"build.", "run.snapshot", "run.process", "rm.snapshot"}

// TestCrashWalk fails each named step of the commands that change something, then kills the process that is in it with
// SIGKILL: the command itself, the container's monitor, or the clean-up that the monitor runs, for they all meet the
// same fault. The next ordinary command must put things right: nothing is left on the host, nothing that was there
// before is lost, and the same command then does what it is for.
//
// The stories run beside each other, each on an installation and in a network namespace of its own.
func TestCrashWalk(t *testing.T) {
	needs(t, "busybox", "nft", "ip", "umoci", "skopeo", "docker-registry")
	if _, err := exec.Command(filepath.Join(bin, "onggi"), "version").Output(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	tar := filepath.Join(dir, "box.tar")
	crashTar(t, tar)
	layout, archive := filepath.Join(dir, "layout"), filepath.Join(dir, "box.docker.tar")
	crashImage(t, layout, archive, tar)
	removeContainers := func(w *walker) {
		if ids := strings.Fields(w.onggi("ps", "-aq", "--no-trunc")); len(ids) > 1 {
			w.onggi(append([]string{"rm", "-f", "-v"}, slices.DeleteFunc(ids, func(id string) bool { return id == w.bystander })...)...)
		}
		// There is no command yet that removes a named volume.
		_ = os.RemoveAll(filepath.Join(w.root, "volumes", "fresh"))
	}
	removeImage := func(w *walker) {
		if r := w.try("rmi", "--now", "127.0.0.1:5000/box", "victim"); r.code != 0 && !strings.Contains(r.err, "no such image") {
			w.t.Errorf("%s: rmi: %s", w.at, r.err)
		}
		w.onggi("system", "prune", "--trash", "--force")
	}
	has := func(image string) func(*walker) error {
		return func(w *walker) error {
			if r := w.try("run", "--rm", "--network", "none", image, "cat", "/data/from-image"); r.out != "hello\n" {
				return fmt.Errorf("the image does not work: exit code %d, %q, %q", r.code, r.out, r.err)
			}
			return nil
		}
	}
	context := t.TempDir()
	for name, text := range map[string]string{
		"Dockerfile": "FROM box\nCOPY file /file\nRUN --mount=type=bind,target=/bound cat /bound/file /data/from-image > /copy\n", "file": "of the context\n",
	} {
		if err := os.WriteFile(filepath.Join(context, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	stories := []story{{
		name: "build", args: []string{"build", "-q", "-t", "victim", context}, holds: has("victim"), only: buildSteps,
		after: func(w *walker) {
			removeImage(w)
			w.onggi("builder", "prune", "-f", "-a")
			w.onggi("build", "history", "rm", "--all")
			w.onggi("system", "prune", "--trash", "--force")
		},
	}, {
		name: "run --rm", after: removeContainers,
		args: []string{"run", "--rm", "--name", "victim", "-p", "127.0.0.1:18080:80", "--memory", "64m", "-v", "kept:/kept", "-v", "/data", "box", "true"},
	}, {
		name: "run -d", after: removeContainers, kernel: true,
		args: []string{
			"run", "-d", "--name", "victim", "-p", "127.0.0.1:18080:80", "--memory", "64m", "--pids-limit", "50", "--cpus", "0.5",
			"-v", "kept:/kept", "-v", "fresh:/data", "box", "cat", "/data/from-image",
		},
		holds: func(w *walker) error {
			if code := w.onggi("wait", "victim"); code != "0" {
				return fmt.Errorf("wait says %s", code)
			}
			if out := w.onggi("logs", "victim"); out != "hello" {
				return fmt.Errorf("the log holds %q", out)
			}
			return nil
		},
	}, {
		name: "run -d --rm", after: removeContainers, only: []string{"rm.", "network.detach.", "volume.remove.", "monitor.cleanup"},
		args: []string{"run", "-d", "--rm", "--name", "victim", "-p", "127.0.0.1:18080:80", "-v", "/data", "box", "true"},
	}, {
		name: "rm -f", lives: true, kernel: true, after: removeContainers, args: []string{"rm", "-f", "-v", "victim"},
		before: func(w *walker) {
			if r := w.try("inspect", "victim"); r.code == 0 {
				return
			}
			w.onggi("run", "-d", "--name", "victim", "-p", "127.0.0.1:18080:80", "--memory", "64m", "-v", "/data", "box", "sleep", "1000")
		},
		holds: func(w *walker) error {
			if r := w.try("inspect", "victim"); r.code == 0 {
				return errors.New("it is still there")
			}
			return nil
		},
	}, {
		name: "pull", after: removeImage, args: []string{"pull", "127.0.0.1:5000/box"}, holds: has("127.0.0.1:5000/box"),
	}, {
		name: "load", after: removeImage, args: []string{"load", "-i", archive}, holds: has("victim"),
	}, {
		name: "import", after: removeImage, args: []string{"import", tar + ".other", "victim"}, holds: has("victim"),
	}, {
		name: "rmi", after: removeImage, args: []string{"rmi", "victim"},
		before: func(w *walker) {
			if r := w.try("inspect", "victim"); r.code != 0 {
				w.onggi("load", "-i", archive)
			}
		},
		holds: func(w *walker) error {
			if out := w.onggi("images"); strings.Contains(out, "victim") {
				return fmt.Errorf("it is still there:\n%s", out)
			}
			return nil
		},
	}, {
		name: "rmi --now", after: removeImage, args: []string{"rmi", "--now", "victim"},
		before: func(w *walker) {
			if r := w.try("inspect", "victim"); r.code != 0 {
				w.onggi("load", "-i", archive)
			}
		},
		holds: func(w *walker) error {
			if out := w.onggi("images"); strings.Contains(out, "victim") {
				return fmt.Errorf("it is still there:\n%s", out)
			}
			return nil
		},
	}}
	for _, s := range stories {
		for _, how := range []string{"error", "kill"} {
			if testing.Short() && (how == "error" || !s.kernel) {
				continue // in an emulated guest
			}
			t.Run(strings.ReplaceAll(s.name, " ", "")+"="+how, func(t *testing.T) {
				t.Parallel()
				w := newWalker(t, tar)
				if s.name == "pull" {
					w.registry(layout)
				}
				w.walk(s, how)
			})
		}
	}
	t.Run("monitor", func(t *testing.T) {
		t.Parallel()
		newWalker(t, tar).monitorKilled()
	})
}

// crashTar makes a small root file system whose directory /data has a file, and beside it the same with one file more.
func crashTar(t *testing.T, path string) {
	t.Helper()
	root := t.TempDir()
	for _, d := range []string{"bin", "data", "kept", "proc", "sys", "dev", "etc", "tmp"} {
		if err := os.Mkdir(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	sh(t, "cp", "/bin/busybox", filepath.Join(root, "bin"))
	for _, n := range []string{"sh", "cat", "true", "sleep", "httpd", "nc"} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", n)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "data", "from-image"), []byte("hello\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	sh(t, "tar", "-C", root, "-cf", path, ".")
	if err := os.WriteFile(filepath.Join(root, "other"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	sh(t, "tar", "-C", root, "-cf", path+".other", ".")
}

// crashImage makes an image of two layers, as an OCI layout and as docker's archive.
func crashImage(t *testing.T, layout, archive, tar string) {
	t.Helper()
	root := filepath.Join(t.TempDir(), "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	sh(t, "tar", "-C", root, "-xf", tar)
	for _, f := range []string{"one", "two"} { // other layers than those of the image that the bystander uses
		if err := os.WriteFile(filepath.Join(root, f), []byte(f), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	sh(t, "umoci", "init", "--layout", layout)
	sh(t, "umoci", "new", "--image", layout+":1")
	sh(t, "umoci", "insert", "--image", layout+":1", root, "/")
	sh(t, "umoci", "insert", "--image", layout+":1", filepath.Join(root, "two"), "/three")
	sh(t, "umoci", "config", "--image", layout+":1", "--config.cmd", "true", "--config.env", "PATH=/bin")
	sh(t, "skopeo", "copy", "oci:"+layout+":1", "docker-archive:"+archive+":victim:latest")
}

// walker is a host that is looked at from all sides before and after something goes wrong on it. It holds one
// container that has nothing to do with what goes wrong: the bystander.
type walker struct {
	*host
	at        string // where the walk is, for messages
	bystander string // id
	known     map[int]bool
	mountNS   []string // which many processes are in that are not ours
	births    int      // of containers: an inotify descriptor
	ids       map[string]bool
	clean     traits // of the host when nothing has gone wrong
}

// traits is what a command may leave behind.
type traits struct {
	files   []string // below both roots, with ids and digests cut
	mounts  []string // of the host's namespace, below either root
	links   []string
	rules   []string
	running []string // ids
}

// newWalker makes a host in a network namespace of its own. The calling goroutine keeps its thread to the end, and all
// that it starts is in that namespace.
func newWalker(t *testing.T, tar string) *walker {
	t.Helper()
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, and the namespace with both
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	sh(t, "ip", "link", "set", "lo", "up")
	w := &walker{host: newHost(t), known: map[int]bool{}, ids: map[string]bool{}, at: "before any fault"}
	w.onggi("import", tar, "box")
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if _, err := unix.InotifyAddWatch(fd, filepath.Join(w.root, "containers"), unix.IN_CREATE); err != nil {
		t.Fatal(err)
	}
	w.births = fd
	for _, p := range []string{"1", "self"} {
		if ns, err := os.Readlink("/proc/" + p + "/ns/mnt"); err == nil {
			w.mountNS = append(w.mountNS, ns)
		}
	}
	w.bystander = w.onggi("run", "-d", "--name", "bystander", "-p", "127.0.0.1:18081:80", "-v", "kept:/kept", "box", "httpd", "-f", "-h", "/kept")
	if err := os.WriteFile(filepath.Join(w.root, "volumes", "kept", "_data", "precious"), []byte("do not lose\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for pid := range w.processes() {
		w.known[pid] = true
	}
	if len(w.known) != 2 {
		t.Fatalf("a monitor and a server should be the bystander's processes: %v", w.processes())
	}
	w.clean = w.look()
	return w
}

// registry runs a registry at 127.0.0.1:5000 of the walker's namespace that has the image box.
func (w *walker) registry(layout string) {
	w.t.Helper()
	dir := w.t.TempDir()
	conf := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: \"127.0.0.1:5000\"}\n", dir)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	c := exec.Command("docker-registry", "serve", conf)
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	eventually(w.t, "the image is pushed", func() bool {
		return exec.Command("skopeo", "copy", "--dest-tls-verify=false", "oci:"+layout+":1", "docker://127.0.0.1:5000/box:latest").Run() == nil
	})
}

// walk goes through all steps of a story.
func (w *walker) walk(s story, how string) {
	before := func() {
		if s.before != nil {
			w.at = "before " + s.name
			w.before(s)
		}
	}
	good := func() {
		w.t.Helper()
		if r := w.try(s.args...); r.code != 0 {
			w.t.Errorf("%s: the same command fails afterwards: exit code %d: %s", w.at, r.code, r.err)
		} else if s.holds != nil {
			if err := s.holds(w); err != nil {
				w.t.Errorf("%s: after the same command: %v", w.at, err)
			}
		}
		w.settle()
		s.after(w)
	}
	// Once without a fault: what remains then is what may remain always.
	names := filepath.Join(w.t.TempDir(), "names")
	before()
	if r := w.tryWith([]string{"ONGGI_FAULT_NAMES=" + names}, s.args...); r.code != 0 {
		w.t.Fatalf("onggi %v: exit code %d: %s", s.args, r.code, r.err)
	}
	w.settle()
	s.after(w)
	before()
	good()
	w.ordinary()
	w.clean.files = w.look().files
	text, err := os.ReadFile(names)
	if err != nil {
		w.t.Fatal(err)
	}
	var steps []string
	for _, step := range strings.Fields(string(text)) {
		in := func(prefixes []string) bool {
			return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(step, p) })
		}
		mine := (s.only == nil || in(s.only)) && (!testing.Short() || s.lives || in(kernelSteps))
		if mine && !slices.Contains(steps, step) {
			steps = append(steps, step)
		}
	}
	if len(steps) < 2 {
		w.t.Fatalf("only %q were met: are the binaries built with the tag faults?", steps)
	}
	for _, step := range steps {
		before()
		w.at = step + "=" + how
		begin := time.Now()
		r := w.tryWith([]string{"ONGGI_FAULT=" + w.at}, s.args...)
		if r.code > 0 && !strings.HasPrefix(r.err, "onggi: ") && !strings.Contains(r.err, "\nonggi: ") {
			w.t.Errorf("%s: exit code %d without a message: %q", w.at, r.code, r.err)
		}
		if r.code > 0 && how == "error" && !strings.Contains(r.err, "injected fault at "+step) {
			w.t.Errorf("%s: the message does not tell why: %q", w.at, r.err)
		}
		if alive := s.lives && len(strings.Fields(w.onggi("ps", "-q"))) > 1; alive {
			w.ordinary()
		} else {
			w.settle()
			w.ordinary()
			for _, l := range w.kernel() {
				w.t.Errorf("%s: after the next command there is %s", w.at, l)
			}
		}
		w.nothingLost()
		s.after(w)
		w.nothingLeft()
		before()
		good()
		w.nothingLeft()
		w.nothingLost()
		if d := time.Since(begin); d > 5*time.Minute { // not a hang; a busy or emulated machine may be slow
			w.t.Errorf("%s: it all took %v", w.at, d)
		}
		if w.t.Failed() {
			w.t.Fatalf("stopped at %s: exit code %d, stdout %q, stderr %q", w.at, r.code, r.out, r.err)
		}
	}
	w.t.Logf("%d steps", len(steps))
}

func (w *walker) before(s story) { w.t.Helper(); s.before(w) }

// monitorKilled kills the parts of a running container one by one, and both at once.
func (w *walker) monitorKilled() {
	run := func() (monitor, app int) {
		w.onggi("run", "-d", "--name", "victim", "-p", "127.0.0.1:18080:80", "--memory", "64m", "-v", "/data", "box", "sleep", "1000")
		for pid, what := range w.processes() {
			switch {
			case w.known[pid]:
			case strings.Contains(what, "onggi-runtime"):
				monitor = pid
			default:
				app = pid
			}
		}
		if monitor == 0 || app == 0 {
			w.t.Fatalf("monitor %d, command %d", monitor, app)
		}
		return monitor, app
	}
	run()
	w.onggi("rm", "-f", "-v", "victim")
	w.settle()
	w.ordinary()
	w.clean.files = w.look().files
	for _, c := range []struct {
		name    string
		deed    func(monitor, app int) []int
		command []string // that must put it right
	}{
		{"the monitor, then ps and run", func(m, _ int) []int { return []int{m} }, nil},
		{"the monitor, then rm -f", func(m, _ int) []int { return []int{m} }, []string{"rm", "-f", "victim"}},
		{"the monitor, then start", func(m, _ int) []int { return []int{m} }, []string{"start", "victim"}},
		{"the monitor, then stop", func(m, _ int) []int { return []int{m} }, []string{"stop", "victim"}},
		{"the monitor, then info", func(m, _ int) []int { return []int{m} }, []string{"info"}},
		{"both", func(m, a int) []int { return []int{m, a} }, nil},
		{"the command", func(_, a int) []int { return []int{a} }, nil},
	} {
		w.at = c.name
		monitor, app := run()
		for _, pid := range c.deed(monitor, app) {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				w.t.Errorf("%s: %v", c.name, err)
			}
		}
		if c.command != nil { // at once, while the killed ones may still be dying
			w.onggi(c.command...)
		} else {
			eventually(w.t, "what was killed is gone", func() bool {
				return !slices.ContainsFunc(c.deed(monitor, app), func(pid int) bool { _, there := w.processes()[pid]; return there })
			})
			w.ordinary()
			w.settle()
			for _, l := range w.kernel() {
				w.t.Errorf("%s: after the next command there is %s", w.at, l)
			}
			if out := w.onggi("ps", "-a"); !strings.Contains(out, "Exited (137)") {
				w.t.Errorf("%s: it should have ended by a signal:\n%s", c.name, out)
			}
		}
		if r := w.try("inspect", "victim"); r.code == 0 {
			w.onggi("rm", "-f", "-v", "victim")
		}
		for _, v := range c.command { // its anonymous volume stays without -v, as docker's
			if v == "rm" {
				w.removeAnonymous()
			}
		}
		w.settle()
		w.nothingLeft()
		w.nothingLost()
		if w.t.Failed() {
			w.t.FailNow()
		}
	}
}

func (w *walker) removeAnonymous() {
	l, err := os.ReadDir(filepath.Join(w.root, "volumes"))
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range l {
		if len(e.Name()) == 64 {
			_ = os.RemoveAll(filepath.Join(w.root, "volumes", e.Name()))
		}
	}
}

// ordinary is what a user does next, knowing nothing of what went wrong.
func (w *walker) ordinary() {
	w.t.Helper()
	if r := w.try("ps"); r.code != 0 || !strings.Contains(r.out, "bystander") {
		w.t.Errorf("%s: ps: exit code %d, %q, %q", w.at, r.code, r.out, r.err)
	}
	if r := w.try("run", "--rm", "box", "cat", "/data/from-image"); r.code != 0 || r.out != "hello\n" || r.err != "" {
		w.t.Errorf("%s: the next run: exit code %d, %q, %q", w.at, r.code, r.out, r.err)
	}
}

// nothingLost checks what had nothing to do with the failure.
func (w *walker) nothingLost() {
	w.t.Helper()
	// Not net/http: it dials from a goroutine of its own, which is on a thread of another namespace.
	c, err := net.DialTimeout("tcp", "127.0.0.1:18081", 5*time.Second)
	if err != nil {
		w.t.Errorf("%s: the bystander does not answer: %v", w.at, err)
		return
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	fmt.Fprint(c, "GET /precious HTTP/1.0\r\n\r\n")
	answer, err := io.ReadAll(c)
	if err != nil || !strings.HasSuffix(string(answer), "\r\n\r\ndo not lose\n") {
		w.t.Errorf("%s: the bystander answers %q, %v", w.at, answer, err)
	}
}

// nothingLeft compares the host with what it was.
func (w *walker) nothingLeft() {
	w.t.Helper()
	for _, l := range w.kernel() {
		w.t.Errorf("%s: left behind: %s", w.at, l)
	}
	now := w.look()
	for _, d := range difference(w.clean.files, now.files) {
		w.t.Errorf("%s: files: %s", w.at, d)
	}
}

// kernel lists what differs on the host from what it was, but for files.
func (w *walker) kernel() (found []string) {
	w.t.Helper()
	for end := time.Now().Add(3 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		// The kernel takes a pair of links away some time after their namespace.
		if found = w.kernelNow(); len(found) == 0 || time.Now().After(end) {
			break
		}
	}
	return append(found, w.leftGroups()...)
}

func (w *walker) kernelNow() (found []string) {
	w.t.Helper()
	now := w.look()
	for _, c := range []struct {
		name     string
		old, now []string
	}{
		{"mount", w.clean.mounts, now.mounts},
		{"link", w.clean.links, now.links},
		{"rule", w.clean.rules, now.rules},
		{"running container", w.clean.running, now.running},
	} {
		for _, d := range difference(c.old, c.now) {
			found = append(found, c.name+" "+d)
		}
	}
	for pid, what := range w.processes() {
		if !w.known[pid] {
			found = append(found, fmt.Sprintf("process %d %s", pid, what))
		}
	}
	return found
}

// settle waits until no process of this host runs but the bystander's: a monitor whose client was killed takes its
// container back by itself. A container that has been left running on purpose is none that the walk makes.
func (w *walker) settle() {
	w.t.Helper()
	var left []string
	for range 1000 {
		left = left[:0]
		for pid, what := range w.processes() {
			if !w.known[pid] {
				left = append(left, what)
			}
		}
		if len(left) == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	w.t.Errorf("%s: after 10 s these processes still run: %q", w.at, left)
}

var cut = regexp.MustCompile(`[0-9a-f]{56,64}|172\.\d+\.\d+\.\d+`)

func (w *walker) look() (s traits) {
	w.t.Helper()
	for _, dir := range []string{w.root, w.host.run} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			rel := cut.ReplaceAllString(strings.TrimPrefix(path, filepath.Dir(w.root)), "#")
			if strings.HasPrefix(rel, "/root/snapshots/containers/#/work/") {
				return nil // overlayfs's own
			}
			s.files = append(s.files, rel+" "+d.Type().String())
			if strings.HasPrefix(rel, "/root/snapshots/layers/") && d.Name() == "fs" {
				return fs.SkipDir
			}
			return nil
		})
		if err != nil {
			w.t.Fatal(err)
		}
	}
	mounts, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		w.t.Fatal(err)
	}
	for l := range strings.Lines(string(mounts)) {
		if strings.Contains(l, filepath.Dir(w.root)) {
			s.mounts = append(s.mounts, strings.TrimSpace(l))
		}
	}
	for l := range strings.Lines(sh(w.t, "ip", "-o", "link")) {
		s.links = append(s.links, strings.TrimSpace(regexp.MustCompile(`^\d+: |@.*`).ReplaceAllString(l, "")))
	}
	out, err := exec.Command("nft", "list", "ruleset").Output()
	if err != nil {
		w.t.Fatal(err)
	}
	for l := range strings.Lines(string(out)) {
		s.rules = append(s.rules, regexp.MustCompile(`packets \d+ bytes \d+`).ReplaceAllString(strings.TrimSpace(l), ""))
	}
	s.running = strings.Fields(w.onggi("ps", "-q"))
	slices.Sort(s.files)
	slices.Sort(s.rules)
	return s
}

// difference lists what one sorted list has and the other has not.
func difference(old, now []string) (d []string) {
	count := map[string]int{}
	for _, s := range old {
		count[s]--
	}
	for _, s := range now {
		count[s]++
	}
	for s, n := range count {
		if n > 0 {
			d = append(d, "+"+s)
		} else if n < 0 {
			d = append(d, "-"+s)
		}
	}
	slices.Sort(d)
	return d
}

// processes finds the processes that belong to this host: its path is in their command line, in their environment, or
// in a mount of their namespace, which is how a container's are found.
func (w *walker) processes() map[int]string {
	dir := filepath.Dir(w.root)
	found := map[int]string{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		files := []string{"environ", "cmdline"}
		if ns, err := os.Readlink(filepath.Join("/proc", e.Name(), "ns/mnt")); err == nil && !slices.Contains(w.mountNS, ns) {
			files = append(files, "mountinfo")
		}
		for _, f := range files {
			b, err := os.ReadFile(filepath.Join("/proc", e.Name(), f))
			if err == nil && strings.Contains(string(b), dir) {
				c, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
				found[pid] = strings.ReplaceAll(string(c), "\x00", " ")
				break
			}
		}
	}
	return found
}

// leftGroups returns the control groups of all containers that this host has ever had, but the bystander's.
func (w *walker) leftGroups() (found []string) {
	w.t.Helper()
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(w.births, buf)
		if err == unix.EAGAIN {
			break
		}
		if err != nil {
			w.t.Fatal(err)
		}
		for b := buf[:n]; len(b) > 0; {
			end := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[12:]))
			w.ids[strings.TrimRight(string(b[unix.SizeofInotifyEvent:end]), "\x00")] = true
			b = b[end:]
		}
	}
	for id := range w.ids {
		for _, pattern := range []string{"/sys/fs/cgroup/onggi/", "/sys/fs/cgroup/*/onggi/"} {
			dirs, _ := filepath.Glob(pattern + id)
			for _, d := range dirs {
				if id != w.bystander {
					found = append(found, "control group "+d)
				}
			}
		}
	}
	return found
}
