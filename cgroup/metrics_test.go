package cgroup

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	runspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/onggi/onggi/errdefs"
)

func TestMetricsCountWhatAProcessDoes(t *testing.T) {
	l := layout(t)
	g := group(t, l)
	need(t, g, "memory")
	if err := g.Apply(&runspec.LinuxResources{Memory: &runspec.LinuxMemory{Limit: ptr(int64(256 << 20)), Swap: ptr(int64(256 << 20))}}); err != nil {
		t.Fatal(err)
	}
	pids := false
	if _, err := g.controller("pids"); err == nil {
		pids = true
		if err := g.Apply(&runspec.LinuxResources{Pids: &runspec.LinuxPids{Limit: ptr(int64(77))}}); err != nil {
			t.Fatal(err)
		}
	}
	c := start(t, g)
	if got := c.ask(t, "eat 30"); got != "eaten 30" {
		t.Fatal(got)
	}
	m, err := g.Metrics()
	if err != nil {
		t.Fatal(err)
	}
	if m.CPU.Usage.Total == 0 {
		t.Error("no CPU time")
	}
	if m.Memory.Usage.Usage < 30<<20 || m.Memory.Usage.Limit != 256<<20 {
		t.Errorf("memory %+v, want at least 30 MiB of 256", m.Memory.Usage)
	}
	if len(m.Memory.Raw) < 10 {
		t.Errorf("memory.stat has %d lines", len(m.Memory.Raw))
	}
	if d, _ := g.controller("memory"); hasAt(d.fd, d.pick("memory.memsw.limit_in_bytes", "memory.swap.max")) && m.Memory.Swap.Limit != 256<<20 {
		t.Errorf("memory and swap %+v, want a limit of 256 MiB together", m.Memory.Swap)
	}
	if pids && (m.Pids.Current == 0 || m.Pids.Limit != 77) {
		t.Errorf("pids %+v", m.Pids)
	}
	if _, err := g.controller("cpuset"); err == nil && (len(m.Cpuset.CPUs) == 0 || len(m.Cpuset.Mems) == 0) {
		t.Errorf("cpuset %+v", m.Cpuset)
	}
	if l.V2 {
		if _, err := os.Stat("/proc/pressure/cpu"); err == nil && m.CPU.PSI == nil {
			t.Error("the host has pressure files, the metrics have none")
		}
	} else if len(m.CPU.Usage.Percpu) == 0 {
		t.Error("no time per CPU")
	}
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{
		`"cpu":{"usage":{"total":`, `"throttling":{`, `"cpuset":{`, `"memory":{`, `"usage":{"limit":268435456,`, `"failcnt":`,
		`"raw":{`, `"pids":{`, `"blkio":{`, `"hugetlb":{`,
	} {
		if !strings.Contains(string(b), key) {
			t.Errorf("the JSON has no %s: %s", key, b)
		}
	}
}

// The files of hosts that this one is not.
func TestMetricsOfFiles(t *testing.T) {
	dirOf := func(v2 bool, name string, files map[string]string) *Group {
		path := t.TempDir()
		for f, text := range files {
			if err := os.WriteFile(filepath.Join(path, f), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		h := &hierarchy{v2: v2, names: strings.Fields(name), mount: path}
		return &Group{l: &Layout{V2: v2}, dirs: []dir{{h: h, path: path, fd: int(f.Fd()), controllers: h.names}}}
	}
	m, err := dirOf(true, "cpu cpuset memory io pids hugetlb rdma", map[string]string{
		"cpu.stat":     "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 5\nnr_throttled 2\nthrottled_usec 7\nnr_bursts 1\nburst_usec 3\n",
		"cpu.pressure": "some avg10=1.50 avg60=0.25 avg300=0.00 total=12\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=3\n",
		"io.stat":      "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n253:1 rbytes=7\n254:0 \n",
		"memory.stat":  "anon 1\nfile 4096\nkernel 8192\nsock 12\n", "memory.current": "100\n", "memory.max": "max\n", "memory.peak": "200\n",
		"memory.swap.current": "50\n", "memory.swap.max": "60\n", "memory.events": "low 0\nmax 4\noom 1\noom_kill 1\n",
		"pids.current": "3\n", "pids.max": "max\n", "cpuset.cpus.effective": "0-1,3\n", "cpuset.mems.effective": "0\n",
		"hugetlb.2MB.max": "max\n", "hugetlb.2MB.current": "0\n", "hugetlb.2MB.rsvd.current": "2097152\n", "hugetlb.2MB.events": "max 9\n",
		"rdma.current": "mlx4_0 hca_handle=2 hca_object=2000\n",
	}).Metrics()
	if err != nil {
		t.Fatal(err)
	}
	b, _ := json.Marshal(m)
	const want2 = `{"cpu":{"usage":{"total":30000,"kernel":10000,"user":20000},"throttling":{"periods":5,"throttledPeriods":2,"throttledTime":7000,` +
		`"burstPeriods":1,"burstTime":3000},"psi":{"some":{"avg10":1.5,"avg60":0.25,"avg300":0,"total":12},"full":{"avg10":0.5,"avg60":0,"avg300":0,"total":3}}},` +
		`"cpuset":{"cpus":[0,1,3],"cpu_exclusive":0,"mems":[0],"mem_hardwall":0,"mem_exclusive":0,"memory_migrate":0,"memory_spread_page":0,` +
		`"memory_spread_slab":0,"memory_pressure":0,"sched_load_balance":0,"sched_relax_domain_level":0},` +
		`"memory":{"cache":4096,"usage":{"limit":18446744073709551615,"usage":100,"max":200,"failcnt":4},` +
		`"swap":{"limit":18446744073709551615,"usage":150,"failcnt":0},"kernel":{"limit":18446744073709551615,"usage":8192,"failcnt":0},` +
		`"kernelTCP":{"limit":18446744073709551615,"usage":12,"failcnt":0},"raw":{"anon":1,"file":4096,"kernel":8192,"sock":12}},` +
		`"pids":{"current":3},"blkio":{"ioServiceBytesRecursive":[{"major":8,"op":"Read","value":1},{"major":8,"op":"Write","value":2},` +
		`{"major":8,"op":"Discard","value":5},{"major":253,"minor":1,"op":"Read","value":7}],"ioServicedRecursive":[{"major":8,"op":"Read","value":3},` +
		`{"major":8,"op":"Write","value":4},{"major":8,"op":"Discard","value":6}]},"hugetlb":{"2MB":{"usage":2097152,"failcnt":9}},` +
		`"rdma":{"mlx4_0":{"hcaHandles":2,"hcaObjects":2000}}}`
	if string(b) != want2 {
		t.Errorf("v2:\n got %s\nwant %s", b, want2)
	}
	m, err = dirOf(false, "cpu cpuacct memory blkio hugetlb", map[string]string{
		"cpuacct.usage": "30\n", "cpuacct.usage_user": "20\n", "cpuacct.usage_sys": "10\n", "cpuacct.usage_percpu": "10 20 \n",
		"cpu.stat":                     "nr_periods 5\nnr_throttled 2\nthrottled_time 7\n",
		"memory.stat":                  "cache 4096\ntotal_cache 9\n",
		"memory.usage_in_bytes":        "100\n",
		"memory.limit_in_bytes":        "9223372036854771712\n",
		"blkio.bfq.io_serviced":        "",
		"blkio.bfq.sectors_recursive":  "8:0 12\n",
		"hugetlb.1GB.limit_in_bytes":   "1\n",
		"hugetlb.1GB.usage_in_bytes":   "2\n",
		"hugetlb.1GB.failcnt":          "3\n",
		"memory.memsw.usage_in_bytes":  "101\n",
		"memory.kmem.tcp.failcnt":      "6\n",
		"memory.kmem.usage_in_bytes":   "55\n",
		"blkio.bfq.time_recursive":     "8:0 4\nTotal 4\n",
		"blkio.io_wait_time_recursive": "8:16 Read 7\nTotal 7\n", "blkio.throttle.io_serviced_recursive": "8:0 Read 1\n8:0 Total 1\nTotal 1\n",
	}).Metrics()
	if err != nil {
		t.Fatal(err)
	}
	if m.CPU.Usage.Total != 30 || m.CPU.Usage.User != 20 || m.CPU.Usage.Kernel != 10 || len(m.CPU.Usage.Percpu) != 2 || m.CPU.Throttling.ThrottledTime != 7 {
		t.Errorf("v1 cpu %+v", m.CPU)
	}
	if m.Memory.Usage.Usage != 100 || m.Memory.Swap.Usage != 101 || m.Memory.Kernel.Usage != 55 || m.Memory.KernelTCP.Failcnt != 6 || m.Memory.Cache != 4096 {
		t.Errorf("v1 memory %+v", m.Memory)
	}
	if got, _ := json.Marshal(m.BlockIO); string(got) != `{"ioServicedRecursive":[{"major":8,"op":"Read","value":1},{"major":8,"op":"Total","value":1}],`+
		`"ioWaitTimeRecursive":[{"major":8,"minor":16,"op":"Read","value":7}],"ioTimeRecursive":[{"major":8,"value":4}],"sectorsRecursive":[{"major":8,"value":12}]}` {
		t.Errorf("v1 blkio %s", got)
	}
	if h := m.Hugetlb["1GB"]; h != (HugetlbMetric{Usage: 2, Failcnt: 3}) {
		t.Errorf("v1 hugetlb %+v", m.Hugetlb)
	}
}

func TestWatchOOM(t *testing.T) {
	l := layout(t)
	g := group(t, l)
	need(t, g, "memory")
	if err := g.Apply(&runspec.LinuxResources{Memory: &runspec.LinuxMemory{Limit: ptr(int64(48 << 20)), Swap: ptr(int64(48 << 20))}}); err != nil {
		t.Fatal(err)
	}
	w, err := g.WatchOOM()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	c := start(t, g)
	if got := c.ask(t, "eat 200"); got != "gone" {
		t.Fatalf("a process of 200 MiB lives in 48: %s", got)
	}
	if n, err := w.Next(); err != nil || n == 0 {
		t.Errorf("Next: %d, %v, want at least one", n, err)
	}
	_, _ = c.cmd.Process.Wait()
	done := make(chan error, 1)
	go func() {
		for {
			if _, err := w.Next(); err != nil {
				done <- err
				return
			}
		}
	}()
	if l.V2 {
		// An empty group ends the watch by itself; here that may have been seen already.
		if err := <-done; !errdefs.Is(err, errdefs.NotFound) {
			t.Errorf("an empty group: %v, want NotFound", err)
		}
		return
	}
	if err := g.Remove(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("a removed group: %v, want NotFound", err)
	}
	g2 := group(t, l)
	if w, err = g2.WatchOOM(); err != nil {
		t.Fatal(err)
	}
	go w.Stop()
	if _, err := w.Next(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Stop: %v", err)
	}
	_ = w.Close()
}

func TestBelow(t *testing.T) {
	l := layout(t)
	g := group(t, l)
	for _, p := range g.Paths() {
		if err := os.Mkdir(p+"/sub", 0o755); err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
		if l.V2 {
			break
		}
		if _, err := os.Stat(p + "/cpuset.cpus"); err == nil { // nobody can join an empty cpuset
			for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
				b, _ := os.ReadFile(p + "/" + f)
				if err := os.WriteFile(p+"/sub/"+f, b, 0); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for _, bad := range []string{"..", "a/../..", "nosuch", "/sub/.."} {
		if b, err := g.Below(bad); err == nil {
			_ = b.Close()
			t.Errorf("Below(%q) succeeds", bad)
		}
	}
	b, err := g.Below("/sub")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	c := start(t, b)
	pid := c.cmd.Process.Pid
	text, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if n := strings.Count(string(text), g.Path()+"/sub"); n != len(g.dirs) {
		t.Errorf("joined %d hierarchies, want %d:\n%s", n, len(g.dirs), text)
	}
	if pids, err := g.Pids(); err != nil || len(pids) != 1 {
		t.Errorf("Pids of the group above: %v, %v", pids, err)
	}
	if _, err := g.Below("sub", "nosuch"); !errdefs.Is(err, errdefs.Unsupported) {
		t.Errorf("Below of no controller: %v", err)
	}
	if l.V2 {
		return
	}
	one, err := g.Below("sub", "memory")
	if err != nil {
		t.Fatal(err)
	}
	defer one.Close()
	for name, p := range one.Paths() {
		if strings.HasSuffix(p, "/sub") != (name == "memory") {
			t.Errorf("%s: %s", name, p)
		}
	}
}
