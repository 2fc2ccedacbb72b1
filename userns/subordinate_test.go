package userns

import (
	"slices"
	"strings"
	"testing"
)

func TestParseSubordinate(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     Map
		ok       bool
	}{
		{"none", "", nil, true},
		{"another's", "bob:100000:65536\n1001:5:5\n", nil, true},
		{"by name", "alice:100000:65536\n", Map{{1, 100000, 65536}}, true},
		{"by number", "1000:100000:65536\n", Map{{1, 100000, 65536}}, true},
		{"two", "alice:100000:10\nbob:1:1\nalice:300000:5\n", Map{{1, 100000, 10}, {11, 300000, 5}}, true},
		{"no lines of the file", "alice:x:1\nalice:1\n# alice\nalice:1:0\n", nil, true},
		{"as many as there are", "alice:100000:4294967295\n", nil, false},
		{"overlap", "alice:100000:10\nalice:100005:10\n", nil, false},
	} {
		got, err := ParseSubordinate(strings.NewReader(c.in), "alice", 1000)
		if (err == nil) != c.ok || !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v, %v; want %v, ok %v", c.name, got, err, c.want, c.ok)
		}
	}
}

func FuzzParseSubordinate(f *testing.F) {
	f.Add("alice:100000:65536\n")
	f.Add("1000:4294967295:4294967295\nalice:0:1")
	f.Fuzz(func(t *testing.T, s string) {
		m, err := ParseSubordinate(strings.NewReader(s), "alice", 1000)
		if err != nil {
			return
		}
		for _, r := range m {
			if r.Container == 0 || r.Size == 0 {
				t.Errorf("%q: range %v", s, r)
			}
		}
	})
}
