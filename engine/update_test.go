package engine

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/onggi/onggi/errdefs"
)

// inForce reads a limit that is in force, by its v1 and v2 files.
func (h *house) inForce(id, v1, v2 string) string {
	h.t.Helper()
	controller, file, _ := strings.Cut(v1, "/")
	path := "/sys/fs/cgroup/" + controller + h.o.CgroupParent + "/" + id + "/" + file
	if cgroupV2() {
		path = "/sys/fs/cgroup" + h.o.CgroupParent + "/" + id + "/" + v2
	}
	b, err := os.ReadFile(path)
	if err != nil {
		h.t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func TestUpdate(t *testing.T) {
	h := newHouse(t)
	ctx := context.Background()
	number := func(n int64) *int64 { return &n }
	c := config("sleep", "1000")
	c.Name, c.Labels = "grow", map[string]string{"old": "1", "stay": "2"}
	id := h.detached(c)
	if _, err := h.Update(ctx, "grow", Update{
		Memory: number(64 << 20), PidsLimit: number(20), NanoCPUs: number(5e8), Labels: map[string]string{"new": "3"}, RemoveLabels: []string{"old"},
	}); err != nil {
		t.Fatal(err)
	}
	if got := h.inForce(id, "memory/memory.limit_in_bytes", "memory.max"); got != "67108864" {
		t.Errorf("memory limit %s", got)
	}
	if got := h.inForce(id, "pids/pids.max", "pids.max"); got != "20" {
		t.Errorf("pids limit %s", got)
	}
	if got := h.inForce(id, "cpu/cpu.cfs_quota_us", "cpu.max"); got != "50000" && got != "50000 100000" {
		t.Errorf("cpu quota %s", got)
	}
	k, err := h.Get(id)
	if err != nil || k.Config.Memory != 64<<20 || k.Config.Labels["new"] != "3" || k.Config.Labels["old"] != "" || k.Config.Labels["stay"] != "2" || k.Status != Running {
		t.Errorf("record: %+v, %v", k.Config, err)
	}
	// More, then less, then none.
	for _, n := range []int64{256 << 20, 32 << 20, 0} {
		if _, err := h.Update(ctx, id, Update{Memory: &n}); err != nil {
			t.Errorf("memory %d: %v", n, err)
		}
	}
	if got := h.inForce(id, "memory/memory.limit_in_bytes", "memory.max"); got != "max" && !strings.HasPrefix(got, "9223372036854") {
		t.Errorf("memory limit %s, want none", got)
	}
	if _, err := h.Update(ctx, id, Update{CPUQuota: number(30000)}); err != nil {
		t.Error(err)
	}
	if got := h.inForce(id, "cpu/cpu.cfs_quota_us", "cpu.max"); !strings.HasPrefix(got, "30000") {
		t.Errorf("cpu quota %s", got)
	}
	if _, err := h.Update(ctx, id, Update{CPUQuota: number(-1), PidsLimit: number(-1)}); err != nil {
		t.Error(err)
	}
	if got := h.inForce(id, "pids/pids.max", "pids.max"); got != "max" {
		t.Errorf("pids limit %s, want none", got)
	}
	zero, none := "0", ""
	for _, set := range []*string{&zero, &none} {
		if _, err := h.Update(ctx, id, Update{CpusetCpus: set}); err != nil {
			t.Errorf("cpuset %q: %v", *set, err)
		}
	}
	if got, want := h.inForce(id, "cpuset/cpuset.cpus", "cpuset.cpus"), online("/sys/devices/system/cpu/online"); got != want {
		t.Errorf("cpuset %s, want %s", got, want)
	}
	// What is refused changes nothing, neither here nor there.
	if _, err := h.Update(ctx, id, Update{PidsLimit: number(30)}); err != nil {
		t.Fatal(err)
	}
	bad := "4000"
	for name, u := range map[string]Update{
		"small memory": {Memory: number(1), PidsLimit: number(31)}, "swap alone": {MemorySwap: number(1 << 30), PidsLimit: number(31)},
		"a processor that is not there": {CpusetCpus: &bad, PidsLimit: number(31)}, "too many processors": {NanoCPUs: number(1e15), PidsLimit: number(31)},
	} {
		if _, err := h.Update(ctx, id, u); !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("%s: %v, want invalid argument", name, err)
		}
		if got := h.inForce(id, "pids/pids.max", "pids.max"); got != "30" {
			t.Errorf("%s: pids limit %s, want 30 as before", name, got)
		}
		if k, err := h.Get(id); err != nil || k.Config.PidsLimit != 30 || k.Config.Memory != 0 {
			t.Errorf("%s: record %+v, %v", name, k.Config, err)
		}
	}
	// One that does not run is started with it.
	if err := h.Kill(ctx, id, 9); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Wait(ctx, id); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Update(ctx, id, Update{PidsLimit: number(40)}); err != nil {
		t.Fatal(err)
	}
	if k, err := h.Get(id); err != nil || k.Status != Exited || k.Exit.Code != 137 {
		t.Errorf("after an update of what has ended: %+v, %v", k, err)
	}
	s, err := h.Start(ctx, id, StartOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_ = s.Client.Close()
	if got := h.inForce(id, "pids/pids.max", "pids.max"); got != "40" {
		t.Errorf("pids limit %s after the start, want 40", got)
	}
	if _, err := h.Update(ctx, "nosuch", Update{}); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("update of nothing: %v", err)
	}
}

func TestPidOfAnother(t *testing.T) {
	h := newHouse(t)
	c := config("sh", "-c", "sleep 1234 & exec sleep 4321")
	c.Name = "first"
	h.detached(c)
	second := config("sh", "-c", "ps | grep -c 'sleep [0-9]'")
	second.Pid = "container:first"
	waitFor(t, "the other's processes", func() bool {
		out, _, _ := h.run(second)
		return strings.TrimSpace(out) == "2" || strings.TrimSpace(out) == "3" // grep may see itself
	})
	if err := h.Remove(context.Background(), "first", true, false); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Run(context.Background(), second, nil, StartOptions{}); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("of one that is gone: %v, want not found", err)
	}
}
