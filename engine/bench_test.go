package engine

import (
	"context"
	"os"
	"slices"
	"testing"
	"time"
)

// BenchmarkRun is `run --rm true` in process, without the command line's own start; the medians of its phases follow.
func BenchmarkRun(b *testing.B) {
	for _, net := range []string{"none", "bridge"} {
		b.Run(net, func(b *testing.B) {
			h := newHouse(b)
			null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
			if err != nil {
				b.Fatal(err)
			}
			defer null.Close()
			took := map[string][]time.Duration{}
			var order []string
			for b.Loop() {
				c := config("true")
				c.Image, c.AutoRemove, c.Network = "plain", true, net
				begin := time.Now()
				s, err := h.Run(context.Background(), c, nil, StartOptions{Stdout: null, Stderr: null, Timing: true})
				if err != nil {
					b.Fatal(err)
				}
				took["RUN"] = append(took["RUN"], time.Since(begin))
				begin = time.Now()
				if _, err := s.Client.Wait(context.Background()); err != nil {
					b.Fatal(err)
				}
				took["WAIT"] = append(took["WAIT"], time.Since(begin))
				begin = time.Now()
				if _, err := h.Finish(context.Background(), s); err != nil {
					b.Fatal(err)
				}
				took["FINISH"] = append(took["FINISH"], time.Since(begin))
				for _, s := range s.Spans {
					if took[s.Name] == nil {
						order = append(order, s.Name)
					}
					took[s.Name] = append(took[s.Name], s.Took)
				}
			}
			b.StopTimer()
			for _, n := range append([]string{"RUN", "WAIT", "FINISH"}, order...) {
				slices.Sort(took[n])
				b.Logf("%-36s min %7.3f  median %7.3f ms", n, float64(took[n][0])/1e6, float64(took[n][len(took[n])/2])/1e6)
			}
		})
	}
}
