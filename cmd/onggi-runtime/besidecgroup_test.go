package main

import (
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// The control files after `create`, ours beside runc's, for every kind of limit that this host has.
func TestResourcesBesideRunc(t *testing.T) {
	ours, runc := sides(t)
	if runc == nil {
		t.Skip("runc is not installed")
	}
	i64 := func(n int64) *int64 { return &n }
	u64 := func(n uint64) *uint64 { return &n }
	u16 := func(n uint16) *uint16 { return &n }
	yes := true
	const mib = 1 << 20
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	v2 := err == nil
	device := func(allow bool, kind string, major, minor int64, access string) specs.LinuxDeviceCgroup {
		d := specs.LinuxDeviceCgroup{Allow: allow, Type: kind, Access: access}
		if major >= 0 {
			d.Major = &major
		}
		if minor >= 0 {
			d.Minor = &minor
		}
		return d
	}
	for _, c := range []struct {
		name string
		only int // 1: cgroup v1, 2: v2
		r    *specs.LinuxResources
	}{
		{"nothing", 0, nil},
		{"no device rule", 0, &specs.LinuxResources{}},
		{"memory", 0, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: i64(64 * mib)}}},
		{"memory and swap", 0, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: i64(64 * mib), Swap: i64(96 * mib), Reservation: i64(32 * mib)}}},
		{"no swap", 0, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: i64(64 * mib), Swap: i64(64 * mib)}}},
		{"swap without limit", 0, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: i64(64 * mib), Swap: i64(-1)}}},
		{"memory without limit", 0, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: i64(-1)}}},
		{"swappiness, no OOM killer", 1, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: i64(64 * mib), Swappiness: u64(10), DisableOOMKiller: &yes}}},
		{"cpu", 0, &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: i64(50000), Period: u64(200000)}}},
		{"cpu without limit", 0, &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: i64(-1), Period: u64(100000)}}},
		{"shares", 1, &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: u64(512)}}}, // on v2 runc before 1.3.2 has another curve
		{"cpuset", 0, &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0", Mems: "0"}}},
		{"pids", 0, &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: i64(77)}}},
		{"pids without limit", 0, &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: i64(-1)}}},
		{"weight", 2, &specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: u16(500)}}},
		{"zeros, as docker writes them", 0, &specs.LinuxResources{
			Memory: &specs.LinuxMemory{}, CPU: &specs.LinuxCPU{Shares: u64(0)}, BlockIO: &specs.LinuxBlockIO{Weight: u16(0)},
			Devices: []specs.LinuxDeviceCgroup{device(false, "", -1, -1, "rwm")},
		}},
		{"devices", 0, &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{device(false, "", -1, -1, "rwm"), device(true, "c", 10, 229, "rw"), device(true, "b", 7, -1, "r")}}},
		{"all devices", 0, &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{device(true, "a", -1, -1, "rwm")}}},
		{"all devices but one", 0, &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{device(true, "a", -1, -1, "rwm"), device(false, "c", 10, 229, "w")}}},
		{"unified", 2, &specs.LinuxResources{Unified: map[string]string{"memory.high": "33554432", "pids.max": "40", "cpu.max": "20000 100000", "memory.min": "4096"}}},
	} {
		if c.only == 1 && v2 || c.only == 2 && !v2 {
			continue
		}
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			var got [2]map[string]string
			for i, s := range []*side{ours, runc} {
				s.t = t
				s.config("r", func(sp *specs.Spec) { sp.Linux.Resources = c.r })
				a := s.do("create", "r")
				if a.code == 0 {
					got[i] = limits(s.group + "/r")
				} else {
					got[i] = map[string]string{"create": "refused"}
					t.Logf("%s: %s", s.name, a.last())
				}
				s.do("delete", "--force", "r")
			}
			names := map[string]bool{}
			for _, m := range got {
				for n := range m {
					names[n] = true
				}
			}
			if len(names) < 3 {
				t.Logf("only %d files", len(names))
			}
			for n := range names {
				_, a := got[0][n]
				_, b := got[1][n]
				if !(a && b) && got[0]["create"]+got[1]["create"] == "" {
					continue // a hierarchy that only one of us joins: cgroup2 beside v1
				}
				if got[0][n] != got[1][n] {
					t.Errorf("%s: ours %q, runc %q", n, got[0][n], got[1][n])
				}
			}
		})
	}
	ours.t, runc.t = t, t
}

// limits reads the files of a control group that are settings.
func limits(group string) map[string]string {
	out := map[string]string{}
	dirs, _ := filepath.Glob("/sys/fs/cgroup/*" + group)
	for _, dir := range append(dirs, "/sys/fs/cgroup"+group) {
		files, _ := os.ReadDir(dir)
		for _, f := range files {
			n := f.Name()
			switch {
			case strings.HasSuffix(n, ".max"), strings.HasSuffix(n, ".high"), strings.HasSuffix(n, ".low"), strings.HasSuffix(n, ".min"),
				strings.HasSuffix(n, "limit_in_bytes"), strings.HasSuffix(n, "weight"), strings.HasSuffix(n, "_us"), strings.HasSuffix(n, "_device"),
				n == "cpu.shares", n == "cpu.idle", n == "memory.swappiness", n == "memory.oom_control", n == "cpuset.cpus", n == "cpuset.mems", n == "cgroup.type":
				b, err := os.ReadFile(filepath.Join(dir, n))
				if err == nil {
					out[n] = strings.TrimSpace(string(b))
				}
			case n == "devices.list":
				b, _ := os.ReadFile(filepath.Join(dir, n))
				lines := strings.Split(strings.TrimSpace(string(b)), "\n")
				lines = slices.DeleteFunc(lines, func(l string) bool { return l == "c 10:200 rwm" }) // /dev/net/tun: runc before 1.2 gave it to everybody
				sort.Strings(lines)
				out[n] = strings.Join(lines, "\n")
			}
		}
	}
	return out
}
