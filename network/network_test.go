package network

import (
	"context"
	"testing"
)

func helper(mode string, args []string) int { return 0 }

func TestSmoke(t *testing.T) {
	needHost(t)
	before := state(t)
	m := newManager(t)
	a := attach(t, m, "aaa", "18080:80")
	serve(t, a.ns, "tcp", ":80", "a")
	reaches(t, "outside", outside, "tcp", "192.0.2.1:18080", "a 192.0.2.2")
	reaches(t, "host", nil, "tcp", "127.0.0.1:18080", "a 172.29.0.1")
	refuses(t, "host6", nil, "tcp", "[::1]:18080")
	reaches(t, "hairpin", a.ns, "tcp", "192.0.2.1:18080", "a 172.29.0.1")
	if err := m.Sweep(context.Background(), func(string) bool { return false }, true); err != nil {
		t.Fatal(err)
	}
	if got := state(t); got != before {
		t.Errorf("state after:\n%s\nbefore:\n%s", got, before)
	}
}

func BenchmarkAttach(b *testing.B) {
	needHost(b)
	m := newManager(b)
	attach(b, m, "first")
	ids := 0
	for b.Loop() {
		b.StopTimer()
		ids++
		id := string(rune('a'+ids%26)) + string(rune('a'+ids/26%26))
		ns, _ := NewNamespace()
		b.StartTimer()
		if _, err := m.Attach(context.Background(), ns, Endpoint{ID: id}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := m.Detach(context.Background(), id); err != nil {
			b.Fatal(err)
		}
		ns.Close()
		b.StartTimer()
	}
}
