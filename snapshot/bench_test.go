package snapshot

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"github.com/opencontainers/go-digest"
)

// BenchmarkPrepare is what a container's start pays: Prepare, Mounts and Remove on an image of eight layers.
func BenchmarkPrepare(b *testing.B) {
	s, ctx := open(b), context.Background()
	var tars [][]byte
	for i := range 8 {
		tars = append(tars, layerTar(b, fmt.Sprintf("usr/lib/x%d=y", i)))
	}
	ids := unpack(b, s, tars...)
	i := 0
	for b.Loop() {
		id := fmt.Sprint("box", i)
		i++
		if err := s.Prepare(ctx, id, ids); err != nil {
			b.Fatal(err)
		}
		if _, err := s.Mounts(id, false, true); err != nil {
			b.Fatal(err)
		}
		if err := s.Remove(ctx, id); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkUnpack is a layer of 2,000 small files and 16 MB of large ones, gzip, the sync included.
func BenchmarkUnpack(b *testing.B) {
	var entries []any
	for i := range 2000 {
		entries = append(entries, fmt.Sprintf("d%d/f%d=%01000d", i%40, i, i))
	}
	for i := range 16 {
		entries = append(entries, fmt.Sprintf("big%d=%01048576d", i, i))
	}
	plain := layerTar(b, entries...)
	packed, d, s, ctx := gz(b, plain), digest.FromBytes(plain), open(b), context.Background()
	b.SetBytes(int64(len(plain)))
	for b.Loop() {
		if _, err := s.Unpack(ctx, d, bytes.NewReader(packed)); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := s.RemoveLayer(ctx, d); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
