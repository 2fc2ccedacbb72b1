package launch

import (
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/onggi/onggi/errdefs"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// schedAttr asks the kernel how a process is scheduled.
func schedAttr(t *testing.T, pid int) *unix.SchedAttr {
	t.Helper()
	a, err := unix.SchedGetAttr(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestScheduler(t *testing.T) {
	h := newHost(t)
	for _, c := range []struct {
		s    runspec.Scheduler
		want unix.SchedAttr
	}{
		{runspec.Scheduler{Policy: runspec.SchedOther, Nice: 7}, unix.SchedAttr{Policy: unix.SCHED_NORMAL, Nice: 7}},
		{runspec.Scheduler{Policy: runspec.SchedBatch, Nice: -3}, unix.SchedAttr{Policy: unix.SCHED_BATCH, Nice: -3}},
		{runspec.Scheduler{Policy: runspec.SchedIdle}, unix.SchedAttr{Policy: unix.SCHED_IDLE}},
		{runspec.Scheduler{Policy: runspec.SchedFIFO, Priority: 5}, unix.SchedAttr{Policy: unix.SCHED_FIFO, Priority: 5}},
		{
			runspec.Scheduler{Policy: runspec.SchedRR, Priority: 9, Flags: []runspec.LinuxSchedulerFlag{runspec.SchedFlagResetOnFork}},
			unix.SchedAttr{Policy: unix.SCHED_RR, Priority: 9, Flags: unix.SCHED_FLAG_RESET_ON_FORK},
		},
		{
			runspec.Scheduler{Policy: runspec.SchedDeadline, Runtime: 1e6, Deadline: 1e7, Period: 2e7},
			unix.SchedAttr{Policy: unix.SCHED_DEADLINE, Runtime: 1e6, Deadline: 1e7, Period: 2e7},
		},
	} {
		t.Run(string(c.s.Policy), func(t *testing.T) {
			h.t = t
			s := h.spec("")
			s.Process.Args = []string{"sleep", "100"} // a process under SCHED_DEADLINE cannot fork
			s.Process.Scheduler = &c.s
			if c.s.Priority != 0 {
				h.allowRealtime(s)
			}
			k := h.background(h.options(s))
			got := schedAttr(t, k.Pid())
			if got.Policy != c.want.Policy || got.Nice != c.want.Nice || got.Priority != c.want.Priority || got.Flags&1 != c.want.Flags&1 ||
				c.want.Policy == unix.SCHED_DEADLINE && (got.Runtime != c.want.Runtime || got.Deadline != c.want.Deadline || got.Period != c.want.Period) {
				t.Errorf("got %+v, want %+v", *got, c.want)
			}
		})
	}
	s := h.spec("true")
	s.Process.Scheduler = &runspec.Scheduler{Policy: runspec.SchedISO}
	if _, _, err := h.run(h.options(s)); err == nil || !strings.Contains(err.Error(), "set scheduler SCHED_ISO") {
		t.Errorf("got %v; the kernel has no SCHED_ISO", err)
	}
}

// allowRealtime gives the container's v1 cpu group time for real-time tasks: with CONFIG_RT_GROUP_SCHED a group has none
// of its own, and the kernel refuses such tasks in it.
func (h *host) allowRealtime(s *runspec.Spec) {
	parent := "/sys/fs/cgroup/cpu" + filepath.Dir(s.Linux.CgroupsPath)
	if _, err := os.Stat("/sys/fs/cgroup/cpu/cpu.rt_runtime_us"); err != nil {
		return
	}
	if err := os.Mkdir(parent, 0o755); err != nil && !os.IsExist(err) {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(parent+"/cpu.rt_runtime_us", []byte("10000"), 0o644); err != nil {
		h.t.Skipf("no time for real-time tasks can be given: %v", err)
	}
	n := int64(5000)
	s.Linux.Resources = &runspec.LinuxResources{CPU: &runspec.LinuxCPU{RealtimeRuntime: &n}}
}

func TestIOPriorityAndPersonality(t *testing.T) {
	h := newHost(t)
	s := h.spec("sleep 100")
	s.Process.IOPriority = &runspec.LinuxIOPriority{Class: runspec.IOPRIO_CLASS_IDLE, Priority: 4}
	s.Linux.Personality = &runspec.LinuxPersonality{Domain: runspec.PerLinux32}
	k := h.background(h.options(s))
	if got, _, e := unix.Syscall(unix.SYS_IOPRIO_GET, 1, uintptr(k.Pid()), 0); e != 0 || got != 3<<13|4 {
		t.Errorf("I/O priority: got %#x (%v), want %#x", got, e, 3<<13|4)
	}
	c, err := Load(h.root, k.record.ID)
	if err != nil {
		t.Fatal(err)
	}
	p := c.DefaultProcess()
	p.Args = []string{"sh", "-c", "busybox uname -m; cat /proc/self/personality"}
	machine := map[string]string{"arm64": "armv8l"}[runtime.GOARCH]
	if machine == "" {
		machine = "i686"
	}
	if got := h.exec(c, &p); !strings.HasPrefix(got, machine+"\n00000008\n") {
		t.Errorf("personality of an exec: got %q", got)
	}
}

// exec runs a process in a container and returns its output.
func (h *host) exec(c *Container, p *runspec.Process) string {
	h.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		h.t.Fatal(err)
	}
	defer r.Close() //nolint:errcheck // read only
	x, err := c.Exec(ExecOptions{Process: p, Stdio: [3]*os.File{nil, w, w}})
	_ = w.Close()
	if err != nil {
		h.t.Fatal(err)
	}
	out, _ := io.ReadAll(r)
	_, _ = x.Wait()
	return string(out)
}

func TestMemoryPolicy(t *testing.T) {
	h := newHost(t)
	for want, m := range map[string]runspec.LinuxMemoryPolicy{
		"bind=static:0":     {Mode: runspec.MpolBind, Nodes: "0", Flags: []runspec.MemoryPolicyFlagType{runspec.MpolFStaticNodes}},
		"interleave:0":      {Mode: runspec.MpolInterleave, Nodes: "0"},
		"prefer:0":          {Mode: runspec.MpolPreferred, Nodes: "0"},
		"prefer (many):0":   {Mode: runspec.MpolPreferredMany, Nodes: "0"},
		"local":             {Mode: runspec.MpolLocal},
		"default":           {Mode: runspec.MpolDefault},
		"bind=balancing:0":  {Mode: runspec.MpolBind, Nodes: "0", Flags: []runspec.MemoryPolicyFlagType{runspec.MpolFNumaBalancing}},
		"bind=relative:0":   {Mode: runspec.MpolBind, Nodes: "0", Flags: []runspec.MemoryPolicyFlagType{runspec.MpolFRelativeNodes}},
		"weighted interlea": {Mode: runspec.MpolWeightedInterleave, Nodes: "0"},
	} {
		s := h.spec("")
		s.Process.Args = []string{"sleep", "100"}
		s.Linux.MemoryPolicy = &m
		k, err := h.tryBackground(h.options(s))
		if err != nil {
			if strings.Contains(err.Error(), "invalid argument") && (m.Mode == runspec.MpolWeightedInterleave || m.Mode == runspec.MpolPreferredMany) {
				t.Logf("this kernel has no %s", m.Mode)
				continue
			}
			t.Errorf("%s: %v", want, err)
			continue
		}
		b, err := os.ReadFile("/proc/" + strconv.Itoa(k.Pid()) + "/numa_maps")
		if os.IsNotExist(err) {
			t.Skip("this kernel has no numa_maps")
		}
		if !strings.Contains(string(b), " "+want) {
			t.Errorf("got %.80q, want %q", b, want)
		}
	}
	s := h.spec("true")
	s.Linux.MemoryPolicy = &runspec.LinuxMemoryPolicy{Mode: runspec.MpolBind, Nodes: "500"}
	if _, _, err := h.run(h.options(s)); err == nil || !strings.Contains(err.Error(), "set memory policy MPOL_BIND") {
		t.Errorf("a node that does not exist: got %v", err)
	}
}

func TestExecCPUAffinity(t *testing.T) {
	h := newHost(t)
	k := h.background(h.options(h.spec("sleep 100")))
	c, err := Load(h.root, k.record.ID)
	if err != nil {
		t.Fatal(err)
	}
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil || !all.IsSet(0) || !all.IsSet(1) {
		t.Skip("this needs CPUs 0 and 1")
	}
	for want, a := range map[string]runspec.CPUAffinity{"1": {Initial: "0", Final: "1"}, "0": {Final: "0"}} {
		p := c.DefaultProcess()
		p.ExecCPUAffinity = &a
		p.Args = []string{"grep", "Cpus_allowed_list", "/proc/self/status"}
		if got := h.exec(c, &p); got != "Cpus_allowed_list:\t"+want+"\n" {
			t.Errorf("%+v: got %q, want %s", a, got, want)
		}
	}
	var after unix.CPUSet
	if err := unix.SchedGetaffinity(0, &after); err != nil || after != all {
		t.Errorf("this process's own CPUs have changed: %v", err)
	}
	p := c.DefaultProcess()
	p.Args, p.ExecCPUAffinity = []string{"true"}, &runspec.CPUAffinity{Initial: "900"}
	if _, err := c.Exec(ExecOptions{Process: &p}); err == nil || !strings.Contains(err.Error(), "execCPUAffinity.initial") {
		t.Errorf("a CPU that does not exist: got %v", err)
	}
}

func TestTimeNamespace(t *testing.T) {
	h := newHost(t)
	if _, err := os.Stat("/proc/self/ns/time"); err != nil {
		t.Skip("this kernel has no time namespaces")
	}
	for _, user := range []bool{false, true} {
		s := h.spec("cat /proc/self/timens_offsets | while read a b c; do echo $a $b $c; done; cut -d. -f1 /proc/uptime; readlink /proc/self/ns/time; sleep 100")
		s.Linux.Namespaces = append(s.Linux.Namespaces, runspec.LinuxNamespace{Type: runspec.TimeNamespace})
		s.Linux.TimeOffsets = map[string]runspec.LinuxTimeOffset{"boottime": {Secs: 1000000}, "monotonic": {Secs: 86400, Nanosecs: 5}}
		if user {
			s.Linux.Namespaces = append(s.Linux.Namespaces, runspec.LinuxNamespace{Type: "user"})
			maps := []runspec.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
			s.Linux.UIDMappings, s.Linux.GIDMappings = maps, maps
		}
		o := h.options(s)
		r, w, _ := os.Pipe()
		o.Stdio[1] = w
		k := h.background(o)
		_ = w.Close()
		var got []byte
		for buf := make([]byte, 512); strings.Count(string(got), "\n") < 4; {
			n, err := r.Read(buf)
			if got = append(got, buf[:n]...); err != nil {
				break
			}
		}
		lines := strings.Split(string(got), "\n")
		if len(lines) < 5 || lines[0] != "monotonic 86400 5" || lines[1] != "boottime 1000000 0" {
			t.Fatalf("user namespace %v: got %q", user, got)
		}
		if up, _ := strconv.Atoi(lines[2]); up < 1000000 {
			t.Errorf("user namespace %v: uptime %d, want above 1000000", user, up)
		}
		// an exec joins it, a second container may
		c, err := Load(h.root, k.record.ID)
		if err != nil {
			t.Fatal(err)
		}
		p := c.DefaultProcess()
		p.Args = []string{"readlink", "/proc/self/ns/time"}
		if out := h.exec(c, &p); out != lines[3]+"\n" {
			t.Errorf("exec: got %q, want %q", out, lines[3])
		}
		if user {
			continue
		}
		s = h.spec("readlink /proc/self/ns/time")
		s.Linux.Namespaces = append(s.Linux.Namespaces, runspec.LinuxNamespace{Type: runspec.TimeNamespace, Path: "/proc/" + strconv.Itoa(k.Pid()) + "/ns/time"})
		if out, _, err := h.run(h.options(s)); err != nil || out != lines[3]+"\n" {
			t.Errorf("joined: got %q (%v), want %q", out, err, lines[3])
		}
	}
}

func TestNamespacesThatAreOurOwn(t *testing.T) {
	h := newHost(t)
	// Joining the own user namespace is no joining: setns(2) refuses it, runc's users write it all the same.
	s := h.spec("id -u")
	s.Linux.Namespaces = append(s.Linux.Namespaces, runspec.LinuxNamespace{Type: "user", Path: "/proc/self/ns/user"})
	if out, _, err := h.run(h.options(s)); err != nil || out != "0\n" {
		t.Errorf("got %q (%v)", out, err)
	}
	for want, change := range map[string]func(*runspec.Spec){
		"spec's hostname": func(s *runspec.Spec) { s.Linux.Namespaces[3].Path = "/proc/self/ns/uts" },
		"spec's linux.sysctl": func(s *runspec.Spec) {
			s.Linux.Namespaces[1].Path = "/proc/self/ns/net"
			s.Linux.Sysctl = map[string]string{"net.core.somaxconn": "4096"}
		},
	} {
		s := h.spec("true")
		change(s)
		if _, _, err := h.run(h.options(s)); !errdefs.Is(err, errdefs.InvalidArgument) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}
