package cgroup

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	runspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/onggi/onggi/errdefs"
)

func TestParseScope(t *testing.T) {
	for _, c := range []struct{ path, runtime, slice, unit string }{
		{"machine.slice:libpod:abc", "", "machine.slice", "libpod-abc.scope"},
		{"kubepods-burstable-pod1_2.slice:cri-containerd:abc", "", "kubepods-burstable-pod1_2.slice", "cri-containerd-abc.scope"},
		{":docker:abc", "", "system.slice", "docker-abc.scope"},
		{":docker:abc", "/run/user/7", "user.slice", "docker-abc.scope"},
		{"a.slice::abc", "", "a.slice", "abc.scope"},
		{"", "", "system.slice", "onggi-ID.scope"},
		{"-.slice:x:a+b", "", "-.slice", `x-a\x2bb.scope`},
	} {
		s, err := ParseScope(c.path, "ID", c.runtime)
		if err != nil || s.Slice != c.slice || s.Unit != c.unit {
			t.Errorf("%q: %+v, %v, want %s %s", c.path, s, err, c.slice, c.unit)
		}
	}
	for _, bad := range []string{
		"/a/b", "a", "a:b", "a:b:c:d", "a:b:c", "a--b.slice:x:y", "a/b.slice:x:y", ".slice:x:y", "a-.slice:x:y", "a.slice:b:", "a.slice:b:c.slice",
		"a.slice:b:" + strings.Repeat("c", 300),
	} {
		if s, err := ParseScope(bad, "ID", ""); !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("%.40q: %+v, %v, want InvalidArgument", bad, s, err)
		}
	}
	for slice, want := range map[string]string{"a-b-c.slice": "/a.slice/a-b.slice/a-b-c.slice", "-.slice": "", "x.slice": "/x.slice"} {
		if got, ok := slicePath(slice); got != want || !ok {
			t.Errorf("%s: %s", slice, got)
		}
	}
}

func TestScopeLimits(t *testing.T) {
	const mib = 1 << 20
	r := &runspec.LinuxResources{
		Memory:  &runspec.LinuxMemory{Limit: ptr(int64(64 * mib)), Swap: ptr(int64(96 * mib)), Reservation: ptr(int64(32 * mib))},
		CPU:     &runspec.LinuxCPU{Shares: ptr(uint64(1024)), Quota: ptr(int64(50000)), Period: ptr(uint64(100000)), Cpus: "0-1", Mems: "0"},
		Pids:    &runspec.LinuxPids{Limit: ptr(int64(0))},
		BlockIO: &runspec.LinuxBlockIO{Weight: ptr(uint16(10))},
		Devices: append([]runspec.LinuxDeviceCgroup{{Access: "rwm"}}, DefaultDevices()...),
		Unified: map[string]string{"memory.high": "1000", "cpu.max": "max 50000", "cpuset.cpus": "9", "io.max": "8:0 rbps=1"},
	}
	for _, c := range []struct {
		v2      bool
		version int
		want    string
	}{
		{true, 252, "MemoryMax MemoryLow MemorySwapMax CPUWeight CPUQuotaPeriodUSec CPUQuotaPerSecUSec AllowedCPUs AllowedMemoryNodes TasksMax IOWeight " +
			"CPUQuotaPerSecUSec CPUQuotaPeriodUSec AllowedCPUs MemoryHigh"},
		{true, 241, "MemoryMax MemoryLow MemorySwapMax CPUWeight CPUQuotaPerSecUSec TasksMax IOWeight CPUQuotaPerSecUSec MemoryHigh"},
		{false, 252, "MemoryLimit CPUShares CPUQuotaPeriodUSec CPUQuotaPerSecUSec TasksMax BlockIOWeight DevicePolicy DeviceAllow DeviceAllow"},
	} {
		list, err := scopeLimits(r, c.v2, c.version)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, p := range list {
			names = append(names, p.Name)
		}
		if got := strings.Join(names, " "); got != c.want {
			t.Errorf("v2 %v, systemd %d:\n got %s\nwant %s", c.v2, c.version, got, c.want)
		}
	}
	if _, err := scopeLimits(&runspec.LinuxResources{CPU: &runspec.LinuxCPU{Cpus: "x"}}, true, 252); err == nil {
		t.Error("a list of CPUs that is none")
	}
	for _, c := range []struct {
		quota  int64
		period uint64
		want   uint64
	}{{-1, 100000, noLimit}, {50000, 100000, 500000}, {33333, 100000, 340000}, {200000, 100000, 2000000}} {
		if got := quotaPerSec(c.quota, c.period); got != c.want {
			t.Errorf("quotaPerSec(%d, %d) = %d, want %d", c.quota, c.period, got, c.want)
		}
	}
	set, _ := parseList("0,2,9")
	if got := fmt.Sprint(set.bytes()); got != "[5 2]" {
		t.Errorf("bytes of 0,2,9: %s", got)
	}
}

func systemctl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("systemctl", args...).CombinedOutput()
	if err != nil {
		t.Logf("systemctl %v: %v", args, err)
	}
	return strings.TrimSpace(string(out))
}

// In the guest with systemd: a scope has its limits in systemd and in the files, keeps them over a reload, and goes.
func TestScope(t *testing.T) {
	l := layout(t)
	if !systemdRuns() {
		t.Skip("no systemd runs here")
	}
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _, _ = cmd.Process.Wait() }()
	s, err := ParseScope("onggi-test.slice:t:"+strconv.Itoa(os.Getpid()), "", "")
	if err != nil {
		t.Fatal(err)
	}
	const mib = 1 << 20
	r := &runspec.LinuxResources{
		Memory: &runspec.LinuxMemory{Limit: ptr(int64(64 * mib))},
		CPU:    &runspec.LinuxCPU{Shares: ptr(uint64(512)), Quota: ptr(int64(50000)), Period: ptr(uint64(100000)), Cpus: "0"},
		Pids:   &runspec.LinuxPids{Limit: ptr(int64(50))},
	}
	g, err := CreateScope(l, s, cmd.Process.Pid, r)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if !strings.HasSuffix(g.Path(), "/onggi.slice/onggi-test.slice/"+s.Unit) {
		t.Errorf("path %s", g.Path())
	}
	if err := g.Add(cmd.Process.Pid); err != nil {
		t.Error(err)
	}
	devices := append([]runspec.LinuxDeviceCgroup{{Access: "rwm"}}, DefaultDevices()...)
	if err := g.Apply(&runspec.LinuxResources{Devices: devices}); err != nil {
		t.Fatal(err)
	}
	if pids, err := g.Pids(); err != nil || len(pids) != 1 || pids[0] != cmd.Process.Pid {
		t.Errorf("Pids: %v, %v", pids, err)
	}
	d := need(t, g, "memory")
	p := need(t, g, "pids")
	check := func(when, limit, pids string) {
		t.Helper()
		if got := read(t, d, d.pick("memory.limit_in_bytes", "memory.max")); got != limit {
			t.Errorf("%s: memory limit %s, want %s", when, got, limit)
		}
		if got := read(t, p, "pids.max"); got != pids {
			t.Errorf("%s: pids.max %s, want %s", when, got, pids)
		}
		if got := systemctl(t, "show", "-P", d.pick("MemoryLimit", "MemoryMax"), s.Unit); got != limit {
			t.Errorf("%s: systemd's memory limit %s, want %s", when, got, limit)
		}
		if got := systemctl(t, "show", "-P", "TasksMax", s.Unit); got != pids {
			t.Errorf("%s: systemd's TasksMax %s, want %s", when, got, pids)
		}
	}
	check("new", "67108864", "50")
	if got := systemctl(t, "show", "-P", "CPUQuotaPerSecUSec", s.Unit); got != "500ms" {
		t.Errorf("CPUQuotaPerSecUSec %s", got)
	}
	// A device program of ours, or a list that systemd writes again, denies after a reload what it denied before.
	probe := func(when string) {
		t.Helper()
		c := start(t, g)
		for node, want := range map[string]string{"/dev/null": "ok", "/dev/kmsg": "operation not permitted"} {
			if got := c.ask(t, "open r %s", node); got != want {
				t.Errorf("%s: open %s: %s, want %s", when, node, got, want)
			}
		}
		_ = c.cmd.Process.Kill()
		_, _ = c.cmd.Process.Wait()
	}
	probe("new")
	if err := g.Apply(&runspec.LinuxResources{Memory: &runspec.LinuxMemory{Limit: ptr(int64(128 * mib))}, Pids: &runspec.LinuxPids{Limit: ptr(int64(60))}}); err != nil {
		t.Fatal(err)
	}
	check("updated", "134217728", "60")
	systemctl(t, "daemon-reload")
	check("reloaded", "134217728", "60")
	probe("reloaded")
	if err := g.Freeze(true); err != nil {
		t.Error(err)
	}
	if err := g.Freeze(false); err != nil {
		t.Error(err)
	}
	o, err := OpenScope(l, &Scope{Unit: s.Unit}, g.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	if err := o.Kill(); err != nil {
		t.Fatal(err)
	}
	_, _ = cmd.Process.Wait()
	for range 2 {
		if err := o.Remove(); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range o.Paths() {
		if _, err := os.Stat(filepath.Join(dir)); err == nil {
			t.Errorf("%s is left", dir)
		}
	}
	if got := systemctl(t, "show", "-P", "LoadState", s.Unit); got != "not-found" {
		t.Errorf("the unit is still %s", got)
	}
	if _, err := CreateScope(l, s, 1<<22-1, nil); err == nil {
		t.Error("a scope without a process")
	}
	systemctl(t, "stop", "onggi-test.slice", "onggi.slice")
}

func owner(t *testing.T, path string) uint32 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Uid
}

func TestChown(t *testing.T) {
	l := layout(t)
	g := group(t, l)
	if err := g.Chown(12345); err != nil {
		t.Fatal(err)
	}
	if !l.V2 {
		t.Skip("v1 is not delegated")
	}
	for path, want := range map[string]uint32{"": 12345, "/cgroup.procs": 12345, "/cgroup.subtree_control": 12345, "/cgroup.threads": 12345, "/memory.max": 0, "/cgroup.freeze": 0} {
		if got := owner(t, g.dirs[0].path+path); got != want {
			t.Errorf("%s belongs to %d, want %d", path, got, want)
		}
	}
}
