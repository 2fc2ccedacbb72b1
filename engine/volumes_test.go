package engine

import (
	"strings"
	"testing"

	"github.com/onggi/onggi/userns"
	"github.com/onggi/onggi/volume"
)

func TestExchange(t *testing.T) {
	const last = 1<<32 - 2
	for _, c := range [][2]uint32{{0, 0}, {1000, 1000}, {1000, 0}, {0, 1000}, {5, 6}, {last, 0}, {last, last - 1}} {
		list := exchange(c[0], c[1])
		m, err := userns.New("test", list)
		if err != nil {
			t.Fatalf("%v: %v", c, err)
		}
		for _, id := range []uint32{0, 1, 4, 5, 6, 7, 999, 1000, 1001, last - 1, last} {
			want := id
			switch id {
			case c[0]:
				want = c[1]
			case c[1]:
				want = c[0]
			}
			if got, ok := m.ToHost(id); !ok || got != want {
				t.Errorf("exchange(%d, %d) shows %d as %d (%v), want %d", c[0], c[1], id, got, ok, want)
			}
		}
	}
}

func TestResolveAddress(t *testing.T) {
	for _, c := range []struct{ typ, device, o, want, bad string }{
		{"nfs", ":/x", "addr=192.0.2.7,rw", "addr=192.0.2.7,rw", ""},
		{"nfs", ":/x", "vers=4,addr=localhost", "vers=4,addr=127.0.0.1", ""},
		{"nfs4", "127.0.0.1:/x", "rw", "rw,addr=127.0.0.1", ""},
		{"nfs4", "[::1]:/x", "rw", "rw,addr=::1", ""},
		{"cifs", "//127.0.0.1/share", "user=a", "user=a,addr=127.0.0.1", ""},
		{"tmpfs", "tmpfs", "size=1", "size=1", ""},
		{"nfs", ":/x", "rw", "", "addr= is missing"},
		{"nfs", ":/x", "addr=name.invalid", "", "name.invalid"},
	} {
		got, err := resolveAddress(volume.Mount{Type: c.typ, Device: c.device, Options: strings.Split(c.o, ",")})
		text := strings.Replace(strings.Join(got, ","), "addr=::1", "addr=127.0.0.1", 1) // localhost may be either
		if c.bad != "" && (err == nil || !strings.Contains(err.Error(), c.bad)) || c.bad == "" && (err != nil || text != strings.Replace(c.want, "addr=::1", "addr=127.0.0.1", 1)) {
			t.Errorf("%+v: got %v, %v", c, got, err)
		}
	}
}
