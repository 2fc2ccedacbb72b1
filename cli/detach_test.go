package cli

import (
	"bytes"
	"testing"
)

func TestDetachKeys(t *testing.T) {
	for _, c := range []struct {
		in   string
		want []byte
		ok   bool
	}{
		{"", []byte{16, 17}, true},
		{"ctrl-p,ctrl-q", []byte{16, 17}, true},
		{"ctrl-@", []byte{0}, true},
		{"ctrl-\\,ctrl-],ctrl-^,ctrl-_,ctrl-[", []byte{28, 29, 30, 31, 27}, true},
		{"a,b", []byte("ab"), true},
		{"ctrl-x,d", []byte{24, 'd'}, true},
		{"DEL", []byte{127}, true},
		{"ctrl-1", nil, false},
		{"ctrl-", nil, false},
		{"ab", nil, false},
		{"a,,b", nil, false},
		{"한", nil, false},
	} {
		got, err := parseDetachKeys(c.in)
		if (err == nil) != c.ok || !bytes.Equal(got, c.want) {
			t.Errorf("%q: got %v, %v; want %v, %v", c.in, got, err, c.want, c.ok)
		}
	}
}

func TestKeyWatch(t *testing.T) {
	for _, c := range []struct {
		keys, in, pass string
		found          bool
	}{
		{"pq", "abc", "abc", false},
		{"pq", "abpq", "ab", true},
		{"pq", "ppq", "p", true},
		{"pq", "pxpq", "px", true},
		{"ppq", "pppq", "p", true},
		{"pq", "abpqrest", "ab", true},
		{"aba", "ababx", "", true},
		{"abac", "ababac", "ab", true},
	} {
		for size := range len(c.in) { // however the bytes are cut
			w := keyWatch{keys: []byte(c.keys)}
			var pass []byte
			found := false
			for rest := []byte(c.in); len(rest) > 0 && !found; rest = rest[min(size+1, len(rest)):] {
				var p []byte
				p, found = w.feed(rest[:min(size+1, len(rest))])
				pass = append(pass, p...)
			}
			if string(pass) != c.pass || found != c.found {
				t.Errorf("keys %q in %q by %d: got %q, %v; want %q, %v", c.keys, c.in, size+1, pass, found, c.pass, c.found)
			}
		}
	}
}

func FuzzKeyWatch(f *testing.F) {
	f.Add([]byte("pq"), []byte("appq"))
	f.Add([]byte{16, 17}, []byte{16, 16, 17})
	f.Fuzz(func(t *testing.T, keys, in []byte) {
		if len(keys) == 0 {
			return
		}
		w := keyWatch{keys: keys}
		pass, found := w.feed(in)
		// What is passed on and what is held back is what came in, up to the sequence's end.
		if all := append(pass, w.held...); !bytes.HasPrefix(in, all) || !found && len(all) != len(in) {
			t.Errorf("keys %q, in %q: passed and held %q", keys, in, all)
		}
		if i := bytes.Index(in, keys); (i >= 0) != found || found && !bytes.Equal(pass, in[:i]) {
			t.Errorf("keys %q, in %q: passed %q, found %v", keys, in, pass, found)
		}
	})
}
