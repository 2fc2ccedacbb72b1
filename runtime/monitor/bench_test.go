package monitor

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkThroughput moves 1 GB from a container's stdout: to the log, to an attached client, and to both. The source
// writes 64 KiB at a time.
func BenchmarkThroughput(b *testing.B) {
	for _, c := range []struct {
		name          string
		log, attached bool
	}{{"logged", true, false}, {"attached", false, true}, {"both", true, true}} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				x := newBox(b, "dd", "if=/dev/zero", "bs=64k", "count=16384", "status=none")
				if !c.log {
					x.cfg.Log.Driver = "none"
				}
				var out *os.File
				var n int64
				done := make(chan struct{})
				if c.attached {
					r, w, err := os.Pipe()
					if err != nil {
						b.Fatal(err)
					}
					out = w
					go func() {
						buf := make([]byte, 64<<10)
						n, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, buf)
						_ = r.Close()
						close(done)
					}()
				}
				cl := x.spawn(nil, out)
				if _, err := cl.Created(ctx(b)); err != nil {
					b.Fatal(err)
				}
				if out != nil {
					_ = out.Close()
				}
				if _, _, err := cl.Start(ctx(b)); err != nil {
					b.Fatal(err)
				}
				x.wait(cl)
				if c.attached {
					if <-done; n != 1<<30 {
						b.Fatalf("got %d bytes", n)
					}
				}
			}
			b.SetBytes(1 << 30)
		})
	}
}

// BenchmarkWalk is the monitor's own share of a container: spawn to exit of an empty one. The gate of these tests is a
// second start of a large Go program, which the real thing does not have: see doc/benchmarks.md for that.
func BenchmarkWalk(b *testing.B) {
	for b.Loop() {
		x := newBox(b, "true")
		x.cfg.Log.Driver = "none"
		x.wait(x.start())
	}
}

// BenchmarkMemory reports what ten idle monitors cost: each one's share of all pages, private ones, and threads.
func BenchmarkMemory(b *testing.B) {
	const n = 10
	var boxes []*box
	for range n {
		x := newBox(b, "sleep", "1000")
		x.start()
		boxes = append(boxes, x)
	}
	time.Sleep(3 * time.Second)
	for b.Loop() {
		sum := map[string]int{}
		for _, x := range boxes {
			for k, v := range rollup(b, x.monitor()) {
				sum[k] += v
			}
		}
		for k, v := range sum {
			b.ReportMetric(float64(v)/n, "KiB-"+k)
		}
	}
	if testing.Verbose() {
		s, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", boxes[0].monitor()))
		b.Logf("%s", s)
	}
	for _, x := range boxes {
		_ = unix.Kill(x.pid(), unix.SIGKILL)
	}
}

func rollup(b *testing.B, pid int) map[string]int {
	s, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		b.Fatal(err)
	}
	m := map[string]int{}
	for _, l := range bytes.Split(s, []byte("\n")) {
		var name string
		var v int
		if n, _ := fmt.Sscan(string(l), &name, &v); n == 2 {
			switch name {
			case "Pss:", "Pss_Anon:", "Pss_File:", "Private_Dirty:", "Rss:":
				m[strings.TrimSuffix(name, ":")] = v
			}
		}
	}
	st, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if _, t, ok := strings.Cut(string(st), "Threads:"); ok {
		var v int
		_, _ = fmt.Sscan(t, &v)
		m["threads/1024"] = v
	}
	return m
}
