package network

import (
	"context"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"
)

// BenchmarkLife measures what one container pays for its network: the namespace, Attach, Detach. Medians are reported,
// as a shared machine's mean says little.
func BenchmarkLife(b *testing.B) {
	for _, ports := range []int{0, 1, 10} {
		b.Run(fmt.Sprintf("ports=%d", ports), func(b *testing.B) {
			needHost(b)
			m := newManager(b)
			attach(b, m, "first")
			var want []Port
			for i := range ports {
				want = append(want, Port{HostPort: uint16(20000 + i), ContainerPort: 80, Protocol: "tcp"})
			}
			var times [3][]time.Duration
			n := 0
			for b.Loop() {
				n++
				id := fmt.Sprint("c", n)
				t0 := time.Now()
				ns, err := NewNamespace()
				if err != nil {
					b.Fatal(err)
				}
				t1 := time.Now()
				if _, err := m.Attach(context.Background(), ns, Endpoint{ID: id, Ports: want}); err != nil {
					b.Fatal(err)
				}
				t2 := time.Now()
				if err := m.Detach(context.Background(), id); err != nil {
					b.Fatal(err)
				}
				t3 := time.Now()
				_ = ns.Close()
				for i, d := range []time.Duration{t1.Sub(t0), t2.Sub(t1), t3.Sub(t2)} {
					times[i] = append(times[i], d)
				}
				if os.Getenv("ONGGI_BENCH_SETTLE") != "" {
					time.Sleep(50 * time.Millisecond) // until the kernel has taken the namespace away
				}
			}
			for i, name := range []string{"namespace", "attach", "detach"} {
				slices.Sort(times[i])
				b.ReportMetric(float64(times[i][len(times[i])/2].Microseconds()), name+"-us")
				b.ReportMetric(float64(times[i][0].Microseconds()), name+"-min-us")
			}
		})
	}
}
