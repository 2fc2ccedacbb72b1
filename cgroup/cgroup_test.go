package cgroup

//lint:file-ignore SA1019 the deprecated limits are refused by name, not ignored

import (
	"bufio"
	"errors"
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

	runspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/sys"
)

// These tests use the real control groups of the host as root. Where they run on v1 only v1 is tested; for v2 build the
// binary with "go test -c ./cgroup" and run it in the guest of test/vm, without and with systemd:
//
//	go test -c -o payload/cgroup.test ./cgroup
//	vmtest.sh -p payload -- /payload/cgroup.test -test.v
//	vmtest.sh -p payload -s -- /payload/cgroup.test -test.v

const helperVar = "ONGGI_CGROUP_TEST_HELPER"

// TestMain turns the test binary into the little programs that run inside the groups.
func TestMain(m *testing.M) {
	if h := os.Getenv(helperVar); h != "" {
		os.Exit(helper(h))
	}
	os.Exit(m.Run())
}

// helper acts on each line of standard input; it answers with one line each.
func helper(kind string) int {
	in := bufio.NewScanner(os.Stdin)
	fmt.Println("ready")
	var hold [][]byte
	for in.Scan() {
		f := strings.Fields(in.Text())
		switch f[0] {
		case "eat": // touch so many MiB
			n, _ := strconv.Atoi(f[1])
			for range n {
				b := make([]byte, 1<<20)
				for i := 0; i < len(b); i += 4096 {
					b[i] = 1
				}
				hold = append(hold, b)
			}
			fmt.Println("eaten", len(hold))
		case "open":
			flags := map[string]int{"r": unix.O_RDONLY, "w": unix.O_WRONLY, "rw": unix.O_RDWR}[f[1]]
			fd, err := unix.Open(f[2], flags|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
			if err == nil {
				unix.Close(fd)
				fmt.Println("ok")
			} else {
				fmt.Println(err)
			}
		case "mknod":
			major, _ := strconv.Atoi(f[2])
			minor, _ := strconv.Atoi(f[3])
			mode := uint32(unix.S_IFCHR)
			if f[1] == "b" {
				mode = unix.S_IFBLK
			}
			err := unix.Mknod(f[4], mode|0o600, int(unix.Mkdev(uint32(major), uint32(minor))))
			os.Remove(f[4])
			if err == nil {
				fmt.Println("ok")
			} else {
				fmt.Println(err)
			}
		case "fork":
			c := exec.Command("/proc/self/exe")
			c.Env = append(os.Environ(), helperVar+"=child")
			c.Stdin, _ = os.Open("/dev/null")
			c.Env = append(c.Env, "SLEEP=1")
			if err := c.Start(); err != nil {
				fmt.Println(err)
			} else {
				fmt.Println("ok", c.Process.Pid)
			}
		case "count": // how far a counter gets: shows whether this process runs
			fmt.Println("alive")
		}
	}
	if os.Getenv("SLEEP") != "" {
		time.Sleep(time.Hour)
	}
	return 0
}

type child struct {
	cmd *exec.Cmd
	in  *os.File
	out *bufio.Reader
}

func (c *child) ask(t *testing.T, format string, args ...any) string {
	t.Helper()
	fmt.Fprintf(c.in, format+"\n", args...)
	line, err := c.out.ReadString('\n')
	if err != nil {
		return "gone"
	}
	return strings.TrimSpace(line)
}

// start runs the helper, inside g by the way the runtime uses: CLONE_INTO_CGROUP on v2, Add otherwise.
func start(t *testing.T, g *Group) *child {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helperVar+"=1", "GOMAXPROCS=1")
	cmd.Stderr = os.Stderr
	inR, inW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin, cmd.Stdout = inR, outW
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if d := g.Dir(); d != nil {
		cmd.SysProcAttr.UseCgroupFD = true
		cmd.SysProcAttr.CgroupFD = int(d.Fd())
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start in %s: %v", g.Path(), err)
	}
	inR.Close()
	outW.Close()
	c := &child{cmd, inW, bufio.NewReader(outR)}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_, _ = cmd.Process.Wait()
		inW.Close()
		outR.Close()
	})
	if tasks, err := g.Tasks(); err != nil {
		t.Fatal(err)
	} else if len(tasks) > 0 {
		if err := g.Add(cmd.Process.Pid); err != nil {
			t.Fatal(err)
		}
	}
	if line, err := c.out.ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("helper says %q, %v", line, err)
	}
	return c
}

func layout(t testing.TB) *Layout {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	l, err := Detect()
	if err != nil {
		t.Skip("no control groups here: ", err)
	}
	return l
}

// group makes a group of this test below the parent of all tests, and sees to it that nothing stays.
func group(t testing.TB, l *Layout) *Group {
	t.Helper()
	path := testPath(t)
	g, err := Create(l, path)
	if err != nil {
		if errdefs.Is(err, errdefs.Forbidden) {
			t.Skip("this host lets us write no control group: ", err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = g.Kill()
		if err := g.Remove(); err != nil {
			t.Error(err)
		}
		paths := g.Paths()
		_ = g.Close()
		for _, p := range paths {
			if _, err := os.Stat(p); err == nil {
				t.Errorf("%s is still there", p)
			}
		}
	})
	return g
}

// testPath names a group of this test; its parent, which belongs to this process of the test, goes with it.
func testPath(t testing.TB) string {
	parent := "/onggi-test-" + strconv.Itoa(os.Getpid())
	t.Cleanup(func() {
		l, err := Detect()
		if err != nil {
			return
		}
		for _, h := range l.hierarchies {
			if err := unix.Rmdir(h.mount + parent); err != nil && err != unix.ENOENT && err != unix.EBUSY && !unwritable(err) {
				t.Errorf("rmdir %s%s: %v", h.mount, parent, err)
			}
		}
	})
	return parent + "/" + strings.NewReplacer("/", "-", " ", "-").Replace(t.Name())
}

func need(t *testing.T, g *Group, controller string) *dir {
	t.Helper()
	d, err := g.controller(controller)
	if err != nil {
		t.Skipf("no controller %s here: %v", controller, err)
	}
	return d
}

func read(t *testing.T, d *dir, file string) string {
	t.Helper()
	s, err := readAt(d.fd, file)
	if err != nil {
		t.Fatalf("%s/%s: %v", d.path, file, err)
	}
	return s
}

func ptr[T any](v T) *T { return &v }

func TestCreateIsThereAndRemoveIsIdempotent(t *testing.T) {
	l := layout(t)
	g := group(t, l)
	if len(g.Paths()) == 0 {
		t.Fatal("no paths")
	}
	for c, p := range g.Paths() {
		if _, err := os.Stat(filepath.Join(p, "cgroup.procs")); err != nil {
			t.Errorf("%q: %v", c, err)
		}
	}
	o, err := Open(l, g.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	if got, want := len(o.Paths()), len(g.Paths()); got != want {
		t.Errorf("Open finds %d directories, want %d", got, want)
	}
	for range 2 {
		if err := g.Remove(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(l, g.Path()); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("Open after Remove: %v, want NotFound", err)
	}
}

func TestCreateRefusesPaths(t *testing.T) {
	l := layout(t)
	for _, p := range []string{
		"", "/", "//", "/.", "..", "/a/../b", "/../x", "/a\nb", "/a\x00b", "/" + strings.Repeat("x", 256),
		strings.Repeat("/abcdefghi", 500),
	} {
		g, err := Create(l, p)
		if err == nil {
			_ = g.Remove()
			t.Errorf("Create(%.40q) succeeds", p)
			continue
		}
		if !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("Create(%.40q): %v: kind %v, want InvalidArgument", p, err, errdefs.KindOf(err))
		}
	}
}

func TestCreateRefusesABusyGroupAndLeavesIt(t *testing.T) {
	l := layout(t)
	g := group(t, l)
	c := start(t, g)
	if _, err := Create(l, g.Path()); !errdefs.Is(err, errdefs.Conflict) {
		t.Fatalf("Create of a busy group: %v, want Conflict", err)
	}
	if got := c.ask(t, "count"); got != "alive" {
		t.Errorf("the process in it: %q", got)
	}
	for _, p := range g.Paths() {
		if _, err := os.Stat(p); err != nil {
			t.Errorf("the failed Create took %s away", p)
		}
	}
}

func TestJoinPidsKillRemove(t *testing.T) {
	l := layout(t)
	g := group(t, l)
	c := start(t, g)
	if got := c.ask(t, "fork"); !strings.HasPrefix(got, "ok") {
		t.Fatalf("fork: %s", got)
	}
	pids, err := g.Pids()
	if err != nil || len(pids) != 2 {
		t.Fatalf("Pids: %v, %v, want two", pids, err)
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pids[0]))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), g.Path()); n != len(g.dirs) {
		t.Errorf("the process is in %d of %d hierarchies:\n%s", n, len(g.dirs), text)
	}
	if err := g.Kill(); err != nil {
		t.Fatal(err)
	}
	if st, err := c.cmd.Process.Wait(); err != nil || st.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("helper ended by %v, %v, want SIGKILL", st, err)
	}
	if err := g.Remove(); err != nil {
		t.Fatal(err)
	}
}

func TestTasksJoinByTheChildItself(t *testing.T) {
	l := layout(t)
	g := group(t, l)
	tasks, err := g.Tasks()
	if err != nil {
		t.Fatal(err)
	}
	if len(tasks) == 0 {
		t.Skip("cgroup v2 has no tasks files")
	}
	cmd := exec.Command("/bin/sh", "-c", "for fd in $FDS; do eval \"echo 0 >&$fd\"; done; cat /proc/self/cgroup")
	cmd.ExtraFiles = tasks
	var fds []string
	for i := range tasks {
		fds = append(fds, strconv.Itoa(3+i))
	}
	cmd.Env = append(os.Environ(), "FDS="+strings.Join(fds[:min(len(fds), 7)], " ")) // sh knows one-digit descriptors
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got, want := strings.Count(string(out), g.Path()), min(len(tasks), 7); got != want {
		t.Errorf("joined %d hierarchies, want %d:\n%s", got, want, out)
	}
}

func TestRemoveTakesDescendantsAndRefusesTheLiving(t *testing.T) {
	l := layout(t)
	g := group(t, l)
	for _, p := range g.Paths() {
		if err := os.MkdirAll(p+"/a/b", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Remove(); err != nil {
		t.Fatal(err)
	}

	g2, err := Create(l, g.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer g2.Close()
	c := start(t, g2)
	go func() { time.Sleep(300 * time.Millisecond); _ = c.cmd.Process.Kill() }()
	if err := g2.Remove(); err != nil {
		t.Errorf("Remove while the last process is dying: %v", err)
	}
}

func TestFreeze(t *testing.T) {
	l := layout(t)
	g := group(t, l)
	c := start(t, g)
	if err := g.Freeze(true); err != nil {
		if errdefs.Is(err, errdefs.Unsupported) {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	if f, err := g.Frozen(); err != nil || !f {
		t.Fatalf("Frozen: %v, %v", f, err)
	}
	fmt.Fprintln(c.in, "count")
	fds := []unix.PollFd{}
	_ = fds
	answered := make(chan string, 1)
	go func() { line, _ := c.out.ReadString('\n'); answered <- line }()
	select {
	case <-answered:
		t.Error("a frozen process answers")
	case <-time.After(100 * time.Millisecond):
	}
	if err := g.Freeze(false); err != nil {
		t.Fatal(err)
	}
	if f, err := g.Frozen(); err != nil || f {
		t.Fatalf("Frozen after thaw: %v, %v", f, err)
	}
	if got := <-answered; got != "alive\n" {
		t.Errorf("after thaw: %q", got)
	}
	if err := g.Freeze(true); err != nil {
		t.Fatal(err)
	}
	if err := g.Kill(); err != nil { // a frozen group dies too
		t.Fatal(err)
	}
	if _, err := c.cmd.Process.Wait(); err != nil {
		t.Error(err)
	}
}

func TestApplyMemory(t *testing.T) {
	l := layout(t)
	g := group(t, l)
	d := need(t, g, "memory")
	const mib = 1 << 20
	swapFile := d.pick("memory.memsw.limit_in_bytes", "memory.swap.max")
	type want struct{ limit, swap string }
	for _, c := range []struct {
		name   string
		m      runspec.LinuxMemory
		v1, v2 want
	}{
		{"limit alone", runspec.LinuxMemory{Limit: ptr(int64(64 * mib))}, want{"67108864", ""}, want{"67108864", "max"}},
		{"lower with swap", runspec.LinuxMemory{Limit: ptr(int64(32 * mib)), Swap: ptr(int64(48 * mib))}, want{"33554432", "50331648"}, want{"33554432", "16777216"}},
		{"raise both above the old sum", runspec.LinuxMemory{Limit: ptr(int64(128 * mib)), Swap: ptr(int64(128 * mib))}, want{"134217728", "134217728"}, want{"134217728", "0"}},
		{"swap alone", runspec.LinuxMemory{Swap: ptr(int64(160 * mib))}, want{"134217728", "167772160"}, want{"134217728", "33554432"}},
		{"swap alone, back", runspec.LinuxMemory{Swap: ptr(int64(128 * mib))}, want{"134217728", "134217728"}, want{"134217728", "0"}},
		{"zero is not set", runspec.LinuxMemory{Limit: ptr(int64(0)), Swap: ptr(int64(0))}, want{"134217728", "134217728"}, want{"134217728", "0"}},
		{"unlimited takes swap along", runspec.LinuxMemory{Limit: ptr(int64(-1))}, want{"9223372036854771712", "9223372036854771712"}, want{"max", "max"}},
	} {
		if err := g.Apply(&runspec.LinuxResources{Memory: &c.m}); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		w := c.v1
		if d.h.v2 {
			w = c.v2
		}
		if got := read(t, d, d.pick("memory.limit_in_bytes", "memory.max")); got != w.limit {
			t.Errorf("%s: limit %s, want %s", c.name, got, w.limit)
		}
		if got, err := readAt(d.fd, swapFile); err == nil && w.swap != "" && got != w.swap {
			t.Errorf("%s: swap %s, want %s", c.name, got, w.swap)
		}
	}
	if err := g.Apply(&runspec.LinuxResources{Memory: &runspec.LinuxMemory{Reservation: ptr(int64(16 * mib))}}); err != nil {
		t.Error(err)
	} else if got := read(t, d, d.pick("memory.soft_limit_in_bytes", "memory.low")); got != "16777216" {
		t.Errorf("reservation %s", got)
	}
	for _, c := range []struct {
		field string
		kind  errdefs.Kind
		m     runspec.LinuxMemory
	}{
		{"memory.swap", errdefs.InvalidArgument, runspec.LinuxMemory{Limit: ptr(int64(64 * mib)), Swap: ptr(int64(32 * mib))}},
		{"memory.limit", errdefs.InvalidArgument, runspec.LinuxMemory{Limit: ptr(int64(-2))}},
		{"memory.kernel", errdefs.InvalidArgument, runspec.LinuxMemory{Kernel: ptr(int64(-2))}},
		{"memory.swappiness", errdefs.InvalidArgument, runspec.LinuxMemory{Swappiness: ptr(uint64(101))}},
		{"memory.useHierarchy", errdefs.Unsupported, runspec.LinuxMemory{UseHierarchy: ptr(false)}},
	} {
		wantRefused(t, g.Apply(&runspec.LinuxResources{Memory: &c.m}), c.field, c.kind)
	}
	if d.h.v2 {
		wantRefused(t, g.Apply(&runspec.LinuxResources{Memory: &runspec.LinuxMemory{Swappiness: ptr(uint64(10))}}), "memory.swappiness", errdefs.Unsupported)
		wantRefused(t, g.Apply(&runspec.LinuxResources{Memory: &runspec.LinuxMemory{DisableOOMKiller: ptr(true)}}), "memory.disableOOMKiller", errdefs.Unsupported)
	} else {
		for _, off := range []bool{true, false} {
			if err := g.Apply(&runspec.LinuxResources{Memory: &runspec.LinuxMemory{DisableOOMKiller: &off}}); err != nil {
				t.Error(err)
			}
			n, _ := field(read(t, d, "memory.oom_control"), "oom_kill_disable")
			if (n == 1) != off {
				t.Errorf("oom_kill_disable %d after disableOOMKiller %v", n, off)
			}
		}
		if err := g.Apply(&runspec.LinuxResources{Memory: &runspec.LinuxMemory{Swappiness: ptr(uint64(10))}}); err != nil {
			t.Error(err)
		} else if got := read(t, d, "memory.swappiness"); got != "10" {
			t.Errorf("swappiness %s", got)
		}
	}
}

func wantRefused(t *testing.T, err error, field string, kind errdefs.Kind) {
	t.Helper()
	if !errdefs.Is(err, kind) || err != nil && !strings.Contains(err.Error(), "linux.resources."+field) {
		t.Errorf("%s: got %v (%v), want kind %v naming the field", field, err, errdefs.KindOf(err), kind)
	}
}

func TestCheckBeforeUpdate(t *testing.T) {
	l := layout(t)
	g := group(t, l)
	need(t, g, "memory")
	c := start(t, g)
	if got := c.ask(t, "eat 40"); got != "eaten 40" {
		t.Fatal(got)
	}
	err := g.Apply(&runspec.LinuxResources{Memory: &runspec.LinuxMemory{Limit: ptr(int64(8 << 20)), Swap: ptr(int64(8 << 20)), CheckBeforeUpdate: ptr(true)}})
	wantRefused(t, err, "memory.limit", errdefs.Conflict)
	if got := c.ask(t, "count"); got != "alive" {
		t.Errorf("the process: %s", got)
	}
}

func TestOOMKillsAreCounted(t *testing.T) {
	l := layout(t)
	g := group(t, l)
	need(t, g, "memory")
	if err := g.Apply(&runspec.LinuxResources{Memory: &runspec.LinuxMemory{Limit: ptr(int64(48 << 20)), Swap: ptr(int64(48 << 20))}}); err != nil {
		t.Fatal(err)
	}
	c := start(t, g)
	if n, err := g.OOMKills(); err != nil || n != 0 {
		t.Fatalf("OOMKills before: %d, %v", n, err)
	}
	if got := c.ask(t, "eat 200"); got != "gone" {
		t.Fatalf("a process of 200 MiB lives in 48: %s", got)
	}
	_, _ = c.cmd.Process.Wait()
	if n, err := g.OOMKills(); err != nil || n != 1 {
		t.Errorf("OOMKills: %d, %v, want 1", n, err)
	}
	s, err := g.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if s.OOMKills != 1 || s.MemoryLimit != 48<<20 || s.CPUUsage == 0 {
		t.Errorf("Stats: %+v", *s)
	}
}

func TestApplyPids(t *testing.T) {
	l := layout(t)
	g := group(t, l)
	d := need(t, g, "pids")
	for _, c := range []struct {
		limit int64
		want  string
	}{{77, "77"}, {-1, "max"}, {0, d.pick("0", "1")}} {
		if err := g.Apply(&runspec.LinuxResources{Pids: &runspec.LinuxPids{Limit: &c.limit}}); err != nil {
			t.Fatal(err)
		}
		if got := read(t, d, "pids.max"); got != c.want {
			t.Errorf("pids.limit %d: %s, want %s", c.limit, got, c.want)
		}
	}
	wantRefused(t, g.Apply(&runspec.LinuxResources{Pids: &runspec.LinuxPids{Limit: ptr(int64(-5))}}), "pids.limit", errdefs.InvalidArgument)
	if err := g.Apply(&runspec.LinuxResources{Pids: &runspec.LinuxPids{Limit: ptr(int64(-1))}}); err != nil {
		t.Fatal(err)
	}
	c := start(t, g)
	if err := g.Apply(&runspec.LinuxResources{Pids: &runspec.LinuxPids{Limit: ptr(int64(1))}}); err != nil {
		t.Fatal(err)
	}
	if got := c.ask(t, "fork"); !strings.Contains(got, "resource temporarily unavailable") {
		t.Errorf("fork above the limit: %s", got)
	}
}

func TestApplyCPU(t *testing.T) {
	l := layout(t)
	g := group(t, l)
	d := need(t, g, "cpu")
	quota := func() string {
		if d.h.v2 {
			return read(t, d, "cpu.max")
		}
		return read(t, d, "cpu.cfs_quota_us") + " " + read(t, d, "cpu.cfs_period_us")
	}
	for _, c := range []struct {
		name   string
		cpu    runspec.LinuxCPU
		v1, v2 string
	}{
		{"half a cpu", runspec.LinuxCPU{Quota: ptr(int64(50000)), Period: ptr(uint64(100000))}, "50000 100000", "50000 100000"},
		{"quota alone keeps the period", runspec.LinuxCPU{Quota: ptr(int64(20000))}, "20000 100000", "20000 100000"},
		{"period alone keeps the quota", runspec.LinuxCPU{Period: ptr(uint64(50000))}, "20000 50000", "20000 50000"},
		{"zeros are not set", runspec.LinuxCPU{Shares: ptr(uint64(0)), Quota: ptr(int64(0)), Period: ptr(uint64(0))}, "20000 50000", "20000 50000"},
		{"burst with a larger quota", runspec.LinuxCPU{Quota: ptr(int64(60000)), Burst: ptr(uint64(40000))}, "60000 50000", "60000 50000"},
		{"smaller quota and burst", runspec.LinuxCPU{Quota: ptr(int64(10000)), Burst: ptr(uint64(5000))}, "10000 50000", "10000 50000"},
		{"no limit", runspec.LinuxCPU{Quota: ptr(int64(-1)), Burst: ptr(uint64(0)), Period: ptr(uint64(100000))}, "-1 100000", "max 100000"},
	} {
		if err := g.Apply(&runspec.LinuxResources{CPU: &c.cpu}); err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		want := c.v1
		if d.h.v2 {
			want = c.v2
		}
		if got := quota(); got != want {
			t.Errorf("%s: %s, want %s", c.name, got, want)
		}
	}
	if err := g.Apply(&runspec.LinuxResources{CPU: &runspec.LinuxCPU{Shares: ptr(uint64(512))}}); err != nil {
		t.Fatal(err)
	}
	if got, want := read(t, d, d.pick("cpu.shares", "cpu.weight")), d.pick("512", u64(sharesToWeight(512))); got != want {
		t.Errorf("shares 512: %s, want %s", got, want)
	}
	if hasAt(d.fd, "cpu.idle") {
		for _, idle := range []int64{1, 0} {
			if err := g.Apply(&runspec.LinuxResources{CPU: &runspec.LinuxCPU{Idle: &idle, Shares: ptr(uint64(1024))}}); err != nil {
				t.Errorf("idle %d: %v", idle, err)
			} else if got := read(t, d, "cpu.idle"); got != i64(idle) {
				t.Errorf("idle %s, want %d", got, idle)
			}
		}
	}
	for _, c := range []struct {
		field string
		cpu   runspec.LinuxCPU
	}{
		{"cpu.shares", runspec.LinuxCPU{Shares: ptr(uint64(1))}},
		{"cpu.shares", runspec.LinuxCPU{Shares: ptr(uint64(262145))}},
		{"cpu.idle", runspec.LinuxCPU{Idle: ptr(int64(2))}},
		{"cpu.quota", runspec.LinuxCPU{Quota: ptr(int64(1))}},
		{"cpu.", runspec.LinuxCPU{Quota: ptr(int64(10000)), Period: ptr(uint64(5))}},
		{"cpu.burst", runspec.LinuxCPU{Quota: ptr(int64(10000)), Burst: ptr(uint64(20000))}},
		{"cpu.cpus", runspec.LinuxCPU{Cpus: "0-"}},
	} {
		wantRefused(t, g.Apply(&runspec.LinuxResources{CPU: &c.cpu}), c.field, errdefs.InvalidArgument)
	}
	if !d.h.v2 && hasAt(d.fd, "cpu.rt_runtime_us") {
		// A new group's parent has no budget, so there is none to give.
		rt := &runspec.LinuxCPU{RealtimeRuntime: ptr(int64(10000)), RealtimePeriod: ptr(uint64(500000))}
		err := g.Apply(&runspec.LinuxResources{CPU: rt})
		wantRefused(t, err, "cpu.realtimeRuntime", errdefs.InvalidArgument)
		if !strings.Contains(errdefs.FixOf(err), "parent group") {
			t.Errorf("no word of the parent: %q", errdefs.FixOf(err))
		}
		parent := filepath.Dir(d.path)
		if err := os.WriteFile(parent+"/cpu.rt_runtime_us", []byte("20000"), 0); err == nil {
			for _, rt := range []*runspec.LinuxCPU{rt, {RealtimeRuntime: ptr(int64(1000)), RealtimePeriod: ptr(uint64(100000))}, rt} {
				if err := g.Apply(&runspec.LinuxResources{CPU: rt}); err != nil {
					t.Error(err)
				} else if got := read(t, d, "cpu.rt_runtime_us") + " " + read(t, d, "cpu.rt_period_us"); got != i64(*rt.RealtimeRuntime)+" "+u64(*rt.RealtimePeriod) {
					t.Errorf("real-time budget %s", got)
				}
			}
		}
	}
	if d.h.v2 {
		wantRefused(t, g.Apply(&runspec.LinuxResources{CPU: &runspec.LinuxCPU{RealtimeRuntime: ptr(int64(1000))}}), "cpu.realtimeRuntime", errdefs.Unsupported)
	}
}

func TestSharesToWeight(t *testing.T) {
	for _, c := range []struct{ shares, want uint64 }{{0, 1}, {2, 1}, {1024, 100}, {262144, 10000}, {1 << 40, 10000}, {512, 59}} {
		if got := sharesToWeight(c.shares); got != c.want {
			t.Errorf("sharesToWeight(%d) = %d, want %d", c.shares, got, c.want)
		}
	}
	for s, last := uint64(2), uint64(0); s <= 262144; s++ {
		w := sharesToWeight(s)
		if w < last || w < 1 || w > 10000 {
			t.Fatalf("sharesToWeight(%d) = %d after %d", s, w, last)
		}
		last = w
	}
}

func TestApplyCpuset(t *testing.T) {
	l := layout(t)
	g := group(t, l)
	d := need(t, g, "cpuset")
	if err := g.Apply(&runspec.LinuxResources{CPU: &runspec.LinuxCPU{Cpus: "0", Mems: "0"}}); err != nil {
		t.Fatal(err)
	}
	if got := read(t, d, "cpuset.cpus"); got != "0" {
		t.Errorf("cpuset.cpus %s", got)
	}
	c := start(t, g)
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(c.cmd.Process.Pid, &set); err != nil || set.Count() != 1 || !set.IsSet(0) {
		t.Errorf("affinity %v, %v, want CPU 0 only", set.Count(), err)
	}
	wantRefused(t, g.Apply(&runspec.LinuxResources{CPU: &runspec.LinuxCPU{Cpus: "0-4000"}}), "cpu.cpus", errdefs.InvalidArgument)
}

func TestDevices(t *testing.T) {
	l := layout(t)
	g := group(t, l)
	rule := func(allow bool, kind string, major, minor int64, access string) runspec.LinuxDeviceCgroup {
		return runspec.LinuxDeviceCgroup{Allow: allow, Type: kind, Major: &major, Minor: &minor, Access: access}
	}
	denyAll := runspec.LinuxDeviceCgroup{Allow: false, Access: "rwm"}
	apply := func(rules ...runspec.LinuxDeviceCgroup) {
		t.Helper()
		if err := g.Apply(&runspec.LinuxResources{Devices: rules}); err != nil {
			t.Fatal(err)
		}
	}
	c := start(t, g)
	node := filepath.Join(t.TempDir(), "node")
	check := func(when, question, want string) {
		t.Helper()
		if got := c.ask(t, "%s", question); got != want {
			t.Errorf("%s: %s: got %q, want %q", when, question, got, want)
		}
	}
	const no = "operation not permitted"
	if got := c.ask(t, "open rw /dev/null"); got != "ok" {
		t.Skip("this process may not open /dev/null: ", got)
	}

	apply(append([]runspec.LinuxDeviceCgroup{denyAll}, DefaultDevices()...)...)
	check("default", "open rw /dev/null", "ok")
	check("default", "open r /dev/zero", "ok")
	check("default", "open r /dev/kmsg", no)
	check("default", "mknod c 1 11 "+node, "ok")
	check("default", "mknod b 7 0 "+node, "ok")

	apply(denyAll, rule(true, "c", 1, 3, "rw"), rule(true, "c", 1, 5, "r"))
	check("list", "open rw /dev/null", "ok")
	check("list", "open r /dev/zero", "ok")
	check("list", "open w /dev/zero", no)
	check("list", "open rw /dev/zero", no)
	check("list", "open r /dev/full", no)
	check("list", "mknod c 1 3 "+node, no)
	check("list", "mknod b 7 0 "+node, no)

	apply(denyAll, rule(true, "c", 1, -1, "r"), rule(true, "c", 1, 3, "w"))
	check("bits of two rules", "open rw /dev/null", "ok")
	check("bits of two rules", "open r /dev/full", "ok")
	check("bits of two rules", "open w /dev/full", no)

	apply(runspec.LinuxDeviceCgroup{Allow: true, Access: "rwm"}, rule(false, "c", 1, 5, "w"))
	check("allow but", "open rw /dev/null", "ok")
	check("allow but", "open r /dev/zero", "ok")
	check("allow but", "open w /dev/zero", no)
	check("allow but", "mknod b 7 0 "+node, "ok")

	apply(append([]runspec.LinuxDeviceCgroup{denyAll, {Allow: true, Access: "rwm"}}, DefaultDevices()...)...)
	check("all", "open w /dev/zero", "ok")
	check("all", "mknod b 7 0 "+node, "ok")
	if l.V2 {
		// All is allowed by no program: a host that lets us load none can run a privileged container.
		if have, err := sys.BPFCgroupPrograms(g.dirs[0].fd, attachCgroupDevice, deviceProgram); err != nil || len(have) != 0 {
			t.Errorf("%d programs stay, %v", len(have), err)
		}
	}

	hole := []runspec.LinuxDeviceCgroup{denyAll, rule(true, "c", 1, -1, "rwm"), rule(false, "c", 1, 5, "rwm")}
	if l.V2 {
		apply(hole...)
		check("hole", "open r /dev/null", "ok")
		check("hole", "open r /dev/zero", no)
	} else {
		wantRefused(t, g.Apply(&runspec.LinuxResources{Devices: hole}), "devices[2]", errdefs.Unsupported)
	}
	for _, bad := range []runspec.LinuxDeviceCgroup{
		{Type: "x", Access: "r"}, {Type: "c"}, {Type: "c", Access: "rwx"}, rule(true, "c", -2, 0, "r"), rule(true, "c", 1<<33, 0, "r"),
	} {
		wantRefused(t, g.Apply(&runspec.LinuxResources{Devices: []runspec.LinuxDeviceCgroup{denyAll, bad}}), "devices[1]", errdefs.InvalidArgument)
	}
}

func TestApplyRefusesWhatTheHostLacks(t *testing.T) {
	l := layout(t)
	g := group(t, l)
	wantRefused(t, g.Apply(&runspec.LinuxResources{HugepageLimits: []runspec.LinuxHugepageLimit{{Pagesize: "3MB", Limit: 1}}}), "hugepageLimits[0]", errdefs.Unsupported)
	wantRefused(t, g.Apply(&runspec.LinuxResources{HugepageLimits: []runspec.LinuxHugepageLimit{{Pagesize: "../../x", Limit: 1}}}), "hugepageLimits[0].pageSize", errdefs.InvalidArgument)
	for _, key := range []string{"cgroup.procs", "cgroup.freeze", "../memory.max", "memory", "memory.max/x", ""} {
		wantRefused(t, g.Apply(&runspec.LinuxResources{Unified: map[string]string{key: "1"}}), "unified[", errdefs.InvalidArgument)
	}
	if l.V2 {
		wantRefused(t, g.Apply(&runspec.LinuxResources{Network: &runspec.LinuxNetwork{ClassID: ptr(uint32(1))}}), "network.classID", errdefs.Unsupported)
		if err := g.Apply(&runspec.LinuxResources{Unified: map[string]string{"memory.high": "33554432", "cgroup.max.depth": "3"}}); err != nil {
			t.Error(err)
		} else if got := read(t, need(t, g, "memory"), "memory.high"); got != "33554432" {
			t.Errorf("memory.high %s", got)
		}
	} else {
		wantRefused(t, g.Apply(&runspec.LinuxResources{Unified: map[string]string{"memory.high": "1"}}), "unified[", errdefs.Unsupported)
	}
	wantRefused(t, g.Apply(&runspec.LinuxResources{BlockIO: &runspec.LinuxBlockIO{Weight: ptr(uint16(5))}}), "blockIO.weight", errdefs.InvalidArgument)
	// docker's zeros ask for nothing.
	if err := g.Apply(&runspec.LinuxResources{
		BlockIO: &runspec.LinuxBlockIO{Weight: ptr(uint16(0))}, Memory: &runspec.LinuxMemory{DisableOOMKiller: ptr(false)},
		CPU: &runspec.LinuxCPU{Shares: ptr(uint64(0))}, Pids: nil,
	}); err != nil {
		t.Error(err)
	}
}

// disk returns the number of a block device of this host, not a partition.
func disk(t *testing.T) (major, minor int64) {
	t.Helper()
	list, _ := filepath.Glob("/sys/block/*/dev")
	for _, f := range list {
		b, err := os.ReadFile(f)
		if n, _ := fmt.Sscanf(string(b), "%d:%d", &major, &minor); err == nil && n == 2 {
			return major, minor
		}
	}
	t.Skip("this host shows no block device")
	return 0, 0
}

func TestApplyBlockIO(t *testing.T) {
	l := layout(t)
	g := group(t, l)
	d, err := g.want("blockIO", "blkio", "io")
	if err != nil {
		t.Skip(err)
	}
	major, minor := disk(t)
	dev := runspec.LinuxBlockIODevice{Major: major, Minor: minor}
	throttle := func(rate uint64) []runspec.LinuxThrottleDevice {
		return []runspec.LinuxThrottleDevice{{LinuxBlockIODevice: dev, Rate: rate}}
	}
	for _, c := range []struct {
		name, v1, v2 string
		b            func(uint64) *runspec.LinuxBlockIO
	}{
		{"throttleReadBpsDevice", "blkio.throttle.read_bps_device", "rbps=", func(n uint64) *runspec.LinuxBlockIO {
			return &runspec.LinuxBlockIO{ThrottleReadBpsDevice: throttle(n)}
		}},
		{"throttleWriteBpsDevice", "blkio.throttle.write_bps_device", "wbps=", func(n uint64) *runspec.LinuxBlockIO {
			return &runspec.LinuxBlockIO{ThrottleWriteBpsDevice: throttle(n)}
		}},
		{"throttleReadIOPSDevice", "blkio.throttle.read_iops_device", "riops=", func(n uint64) *runspec.LinuxBlockIO {
			return &runspec.LinuxBlockIO{ThrottleReadIOPSDevice: throttle(n)}
		}},
		{"throttleWriteIOPSDevice", "blkio.throttle.write_iops_device", "wiops=", func(n uint64) *runspec.LinuxBlockIO {
			return &runspec.LinuxBlockIO{ThrottleWriteIOPSDevice: throttle(n)}
		}},
	} {
		file, want := d.pick(c.v1, "io.max"), fmt.Sprintf("%d:%d", major, minor)
		for _, rate := range []uint64{1048576, 0} {
			if err := g.Apply(&runspec.LinuxResources{BlockIO: c.b(rate)}); err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			got := read(t, d, file)
			line := want + d.pick(" 1048576", "")
			is := strings.Contains(got, line) && (!d.h.v2 || strings.Contains(got, c.v2+"1048576"))
			if is != (rate != 0) {
				t.Errorf("%s %d: %s is %q", c.name, rate, file, got)
			}
		}
		wantRefused(t, g.Apply(&runspec.LinuxResources{BlockIO: func() *runspec.LinuxBlockIO {
			dev.Major = 4090
			b := c.b(5)
			dev.Major = major
			return b
		}()}), "blockIO."+c.name+"[0]", errdefs.InvalidArgument)
	}
	// Weights need a scheduler that knows them; without one they are refused by name.
	err = g.Apply(&runspec.LinuxResources{BlockIO: &runspec.LinuxBlockIO{Weight: ptr(uint16(500))}})
	switch {
	case err != nil:
		wantRefused(t, err, "blockIO.weight", errdefs.Unsupported)
	default:
		got := ""
		for _, f := range []string{"blkio.bfq.weight", "blkio.weight", "io.bfq.weight", "io.weight"} {
			if s, err := readAt(d.fd, f); err == nil {
				got += s + " "
			}
		}
		if !strings.Contains(got, "500") && !strings.Contains(got, "4950") {
			t.Errorf("weight 500: %q", got)
		}
	}
	wantRefused(t, g.Apply(&runspec.LinuxResources{BlockIO: &runspec.LinuxBlockIO{WeightDevice: []runspec.LinuxWeightDevice{{LinuxBlockIODevice: dev}}}}),
		"blockIO.weightDevice[0]", errdefs.InvalidArgument)
	if err := g.Apply(&runspec.LinuxResources{BlockIO: &runspec.LinuxBlockIO{LeafWeight: ptr(uint16(500))}}); err != nil { // kernels with CFQ have it
		wantRefused(t, err, "blockIO.leafWeight", errdefs.Unsupported)
	}
}

func TestApplyHugepages(t *testing.T) {
	l := layout(t)
	g := group(t, l)
	d := need(t, g, "hugetlb")
	sizes := pageSizes(d.fd)
	if len(sizes) == 0 {
		t.Skip("this host has no huge pages")
	}
	for _, size := range sizes {
		if err := g.Apply(&runspec.LinuxResources{HugepageLimits: []runspec.LinuxHugepageLimit{{Pagesize: size, Limit: 1 << 30}}}); err != nil {
			t.Fatal(err)
		}
		for _, f := range []string{"hugetlb." + size + ".", "hugetlb." + size + ".rsvd."} {
			if got, err := readAt(d.fd, f+d.pick("limit_in_bytes", "max")); err == nil && got != "1073741824" {
				t.Errorf("%s: %s", f, got)
			}
		}
	}
}

func TestApplyNetworkV1(t *testing.T) {
	l := layout(t)
	if l.V2 {
		t.Skip("cgroup v2 has no network classes")
	}
	g := group(t, l)
	if d, err := g.controller("net_cls"); err == nil {
		if err := g.Apply(&runspec.LinuxResources{Network: &runspec.LinuxNetwork{ClassID: ptr(uint32(0x100001))}}); err != nil {
			t.Error(err)
		} else if got := read(t, d, "net_cls.classid"); got != "1048577" {
			t.Errorf("classid %s", got)
		}
	} else {
		wantRefused(t, g.Apply(&runspec.LinuxResources{Network: &runspec.LinuxNetwork{ClassID: ptr(uint32(1))}}), "network.classID", errdefs.Unsupported)
	}
	prio := &runspec.LinuxNetwork{Priorities: []runspec.LinuxInterfacePriority{{Name: "lo", Priority: 7}}}
	if d, err := g.controller("net_prio"); err == nil {
		if err := g.Apply(&runspec.LinuxResources{Network: prio}); err != nil {
			t.Error(err)
		} else if got := read(t, d, "net_prio.ifpriomap"); !strings.Contains(got, "lo 7") {
			t.Errorf("ifpriomap %s", got)
		}
		prio.Priorities[0].Name = "nosuch0"
		wantRefused(t, g.Apply(&runspec.LinuxResources{Network: prio}), "network.priorities[0]", errdefs.InvalidArgument)
	} else {
		wantRefused(t, g.Apply(&runspec.LinuxResources{Network: prio}), "network.priorities[0]", errdefs.Unsupported)
	}
}

func TestRemoveReportsAProcessThatStays(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the bound of Remove")
	}
	l := layout(t)
	g := group(t, l)
	c := start(t, g)
	err := g.Remove()
	var e *errdefs.Error
	if !errdefs.Is(err, errdefs.Conflict) || !errors.As(err, &e) || !strings.Contains(err.Error(), strconv.Itoa(c.cmd.Process.Pid)) {
		t.Errorf("Remove with a living process: %v, want Conflict that names %d", err, c.cmd.Process.Pid)
	}
}

func BenchmarkCreateApplyRemove(b *testing.B) {
	l := layout(b)
	path := testPath(b)
	r := &runspec.LinuxResources{
		Memory:  &runspec.LinuxMemory{Limit: ptr(int64(256 << 20)), Swap: ptr(int64(256 << 20))},
		CPU:     &runspec.LinuxCPU{Quota: ptr(int64(50000)), Period: ptr(uint64(100000))},
		Pids:    &runspec.LinuxPids{Limit: ptr(int64(100))},
		Devices: append([]runspec.LinuxDeviceCgroup{{Access: "rwm"}}, DefaultDevices()...),
	}
	for b.Loop() {
		g, err := Create(l, path)
		if err != nil {
			b.Fatal(err)
		}
		if err := g.Apply(r); err != nil {
			b.Fatal(err)
		}
		if _, err := g.Tasks(); err != nil {
			b.Fatal(err)
		}
		if err := g.Remove(); err != nil {
			b.Fatal(err)
		}
		_ = g.Close()
	}
}

func BenchmarkDetect(b *testing.B) {
	for b.Loop() {
		if _, err := Detect(); err != nil {
			b.Fatal(err)
		}
	}
}
