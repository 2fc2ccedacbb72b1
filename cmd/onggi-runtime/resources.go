package main

import (
	"encoding/json"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/onggi/onggi/cgroup"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/runtime/launch"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
)

func cmdPause(g *globals, args []string) (int, error) {
	c, err := loaded(g, &flags{of: "pause"}, args)
	if err != nil {
		return 1, err
	}
	return 0, c.Pause()
}

func cmdResume(g *globals, args []string) (int, error) {
	c, err := loaded(g, &flags{of: "resume"}, args)
	if err != nil {
		return 1, err
	}
	return 0, c.Resume()
}

// cmdUpdate changes limits. Flags that are not given leave their limit alone.
func cmdUpdate(g *globals, args []string) (int, error) {
	var file, l3, bandwidth string
	r := runspec.LinuxResources{}
	memory := func() *runspec.LinuxMemory {
		if r.Memory == nil {
			r.Memory = &runspec.LinuxMemory{}
		}
		return r.Memory
	}
	cpu := func() *runspec.LinuxCPU {
		if r.CPU == nil {
			r.CPU = &runspec.LinuxCPU{}
		}
		return r.CPU
	}
	f := flags{of: "update"}
	number := func(help string, set func(int64), names ...string) {
		f.add("N", help, names, func(s string) error {
			n, err := strconv.ParseInt(s, 10, 64)
			if err != nil {
				return f.bad("--"+names[0], strconv.Quote(s)+" is not a number")
			}
			set(n)
			return nil
		})
	}
	positive := func(help string, set func(uint64), name string) {
		f.add("N", help, []string{name}, func(s string) error {
			n, err := strconv.ParseUint(s, 10, 64)
			if err != nil {
				return f.bad("--"+name, strconv.Quote(s)+" is not a number of 0 or more")
			}
			set(n)
			return nil
		})
	}
	size := func(help string, set func(int64), names ...string) {
		f.add("SIZE", help, names, func(s string) error {
			n, ok := parseSize(s)
			if !ok {
				return f.bad("--"+names[0], strconv.Quote(s)+" is not a size")
			}
			set(n)
			return nil
		})
	}
	f.str(&file, "FILE", "read linux.resources as JSON from this file, or from standard input (-); the other flags must then not be given", "resources", "r")
	size("memory limit; -1 is none", func(n int64) { memory().Limit = &n }, "memory")
	size("memory that is kept when the host runs short (soft limit)", func(n int64) { memory().Reservation = &n }, "memory-reservation")
	size("limit of memory and swap together; -1 is none", func(n int64) { memory().Swap = &n }, "memory-swap")
	number("CPU time in a period, in µs; -1 is no limit", func(n int64) { cpu().Quota = &n }, "cpu-quota")
	positive("period of the CPU quota, in µs", func(n uint64) { cpu().Period = &n }, "cpu-period")
	positive("CPU time that may be saved up beyond the quota, in µs", func(n uint64) { cpu().Burst = &n }, "cpu-burst")
	positive("relative weight of CPU time, 2 to 262144", func(n uint64) { cpu().Shares = &n }, "cpu-share")
	number("1: run only when nobody else wants the CPU", func(n int64) { cpu().Idle = &n }, "cpu-idle")
	positive("period of real-time tasks, in µs (v1)", func(n uint64) { cpu().RealtimePeriod = &n }, "cpu-rt-period")
	number("CPU time of real-time tasks in a period, in µs (v1)", func(n int64) { cpu().RealtimeRuntime = &n }, "cpu-rt-runtime")
	f.add("LIST", "CPUs, like 0-3,7", []string{"cpuset-cpus"}, func(s string) error { cpu().Cpus = s; return nil })
	f.add("LIST", "memory nodes, like 0,1", []string{"cpuset-mems"}, func(s string) error { cpu().Mems = s; return nil })
	number("number of tasks; -1 is no limit", func(n int64) { r.Pids = &runspec.LinuxPids{Limit: &n} }, "pids-limit")
	f.add("N", "relative weight of block I/O, 10 to 1000", []string{"blkio-weight"}, func(s string) error {
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil {
			return f.bad("--blkio-weight", strconv.Quote(s)+" is not a number up to 65535")
		}
		w := uint16(n)
		r.BlockIO = &runspec.LinuxBlockIO{Weight: &w}
		return nil
	})
	f.str(&l3, "SCHEMA", "cache allocation (Intel RDT)", "l3-cache-schema")
	f.str(&bandwidth, "SCHEMA", "memory bandwidth allocation (Intel RDT)", "mem-bw-schema")
	obsolete := func(names ...string) {
		f.add("N", "", names, func(string) error {
			g.warn("--" + names[0] + " has no effect: the kernel has no limit of kernel memory any more")
			return nil
		})
	}
	obsolete("kernel-memory")
	obsolete("kernel-memory-tcp")
	rest, err := f.parse(args, true)
	if err != nil {
		return 1, err
	}
	id, err := f.one(rest)
	if err != nil {
		return 1, err
	}
	c, err := launch.Load(g.root, id)
	if err != nil {
		return 1, err
	}
	if l3 != "" || bandwidth != "" {
		if err := c.UpdateRDT(&runspec.LinuxIntelRdt{L3CacheSchema: l3, MemBwSchema: bandwidth}); err != nil {
			return 1, err
		}
	}
	if file != "" {
		if r.Memory != nil || r.CPU != nil || r.Pids != nil || r.BlockIO != nil {
			return 1, f.bad("--resources", "the file says it all: no limit can be given beside it")
		}
		given, err := readResources(file)
		if err != nil {
			return 1, err
		}
		return 0, c.Update(given, g.warn)
	}
	return 0, c.Update(&r, g.warn)
}

func readResources(file string) (*runspec.LinuxResources, error) {
	if file == "-" {
		return launch.LoadResources(os.Stdin)
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	return launch.LoadResources(f)
}

// parseSize reads bytes with a suffix as docker's and runc's users write them: "64m", "1.5g", "512KiB", "-1".
func parseSize(s string) (int64, bool) {
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		return n, n >= -1
	}
	u := strings.TrimSuffix(strings.ToLower(strings.TrimSpace(s)), "b")
	u = strings.TrimSuffix(u, "i")
	shift := 0
	if i := strings.IndexByte("kmgtp", last(u)); i >= 0 {
		shift, u = 10*(i+1), u[:len(u)-1]
	}
	v, err := strconv.ParseFloat(strings.TrimSpace(u), 64)
	if err != nil || v < 0 || !(v*float64(int64(1)<<shift) < 1<<63) {
		return 0, false
	}
	return int64(v * float64(int64(1)<<shift)), true
}

func last(s string) byte {
	if s == "" {
		return 0
	}
	return s[len(s)-1]
}

// event is a line of events, as containerd and cri-o read it from runc.
type event struct {
	Type string `json:"type"`
	ID   string `json:"id"`
	Data any    `json:"data,omitempty"`
}

// stats is the data of a "stats" event. The two last members are runc's: resctrl groups and links that the runtime
// itself has made; there are none.
type stats struct {
	*cgroup.Metrics
	IntelRdt   struct{}   `json:"intel_rdt"`
	Interfaces []struct{} `json:"network_interfaces"`
}

func cmdEvents(g *globals, args []string) (int, error) {
	f := flags{of: "events"}
	once, interval := false, 5*time.Second
	f.bool(&once, "print the counters once", "stats")
	f.add("DURATION", "how often to print the counters, like 1s or 500ms (default 5s)", []string{"interval"}, func(s string) (err error) {
		if interval, err = time.ParseDuration(s); err != nil || interval <= 0 {
			return f.bad("--interval", strconv.Quote(s)+" is not a duration above zero")
		}
		return nil
	})
	c, err := loaded(g, &f, args)
	if err != nil {
		return 1, err
	}
	id := c.State().ID
	var mu sync.Mutex
	out := json.NewEncoder(os.Stdout)
	say := func(e *event) error {
		mu.Lock()
		defer mu.Unlock()
		return out.Encode(e)
	}
	counters := func() error {
		m, err := c.Metrics()
		if err != nil {
			return err
		}
		return say(&event{"stats", id, &stats{Metrics: m}})
	}
	if once {
		return 0, counters()
	}
	ended := make(chan struct{})
	switch w, err := c.WatchOOM(); {
	case err == nil:
		go func() {
			defer close(ended)
			defer w.Close() //nolint:errcheck // the process ends
			for {
				n, err := w.Next()
				if err != nil {
					return
				}
				for range n {
					if say(&event{"oom", id, nil}) != nil {
						return
					}
				}
			}
		}()
	case errdefs.Is(err, errdefs.Unsupported):
		g.warn(err.Error())
	default:
		return 1, err
	}
	tick := time.NewTicker(interval)
	for {
		select {
		case <-ended:
			return 0, nil
		case <-tick.C:
			if err := counters(); err != nil {
				if errdefs.Is(err, errdefs.Conflict) || errdefs.Is(err, errdefs.NotFound) { // it has ended
					return 0, nil
				}
				return 1, err
			}
		}
	}
}
