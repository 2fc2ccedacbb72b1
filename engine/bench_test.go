package engine

import (
	"context"
	"fmt"
	"os"
	"testing"
)

// BenchmarkRun is `run --rm true` in process, without the command line's own start.
func BenchmarkRun(b *testing.B) {
	for _, net := range []string{"none", "bridge"} {
		b.Run(net, func(b *testing.B) {
			h := newHouse(b)
			null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
			if err != nil {
				b.Fatal(err)
			}
			defer null.Close()
			var last *Session
			for b.Loop() {
				c := config("true")
				c.AutoRemove, c.Network = true, net
				s, err := h.Run(context.Background(), c, nil, StartOptions{Stdout: null, Stderr: null})
				if err != nil {
					b.Fatal(err)
				}
				if _, err := h.Finish(context.Background(), s); err != nil {
					b.Fatal(err)
				}
				last = s
			}
			b.StopTimer()
			for _, s := range last.Spans {
				b.Log(fmt.Sprintf("%-40s at %8.3f took %8.3f ms", s.Name, float64(s.Start)/1e6, float64(s.Took)/1e6))
			}
		})
	}
}
