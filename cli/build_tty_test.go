package cli

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/onggi/onggi/build"
	"github.com/onggi/onggi/build/cache"
	"github.com/onggi/onggi/build/history"
	"github.com/onggi/onggi/image"
	"github.com/opencontainers/go-digest"
)

// aBuild is a screen at 10 s, with steps that the test adds.
func aBuild(t *testing.T) (*buildScreen, func(n int, state build.State, name string, took time.Duration)) {
	t.Helper()
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = null.Close() })
	born := time.Unix(1000, 0)
	p := &buildShow{a: &app{err: null}, mode: "tty", born: born, numbers: map[digest.Digest]int{}, partial: map[digest.Digest][]byte{}, tails: map[digest.Digest][]string{}}
	s := &buildScreen{p: p, now: func() time.Time { return born.Add(10 * time.Second) }}
	p.screen = s
	return s, func(n int, state build.State, name string, took time.Duration) {
		st := build.Step{Number: n, Vertex: digest.FromString(fmt.Sprint(n)), Name: name, State: state, Took: took}
		if state == build.Failed {
			st.Err = fmt.Errorf("it failed")
		}
		if n == 4 {
			st.Why = &history.Why{Changes: changes("file /a", "file /b", "command", "user")}
		}
		p.Step(st)
	}
}

func TestBuildScreen(t *testing.T) {
	s, step := aBuild(t)
	step(1, build.Done, "[internal] load build definition", 100*time.Millisecond)
	step(2, build.Cached, "[build 2/4] COPY go.mod ./", 0)
	step(3, build.Started, "[build 3/4] RUN go build -o /out/a/very/long/path ./cmd/something-with-a-long-name && true", 0)
	step(4, build.Started, "[김치 1/2] RUN 담그기", 0)
	s.p.Output(digest.FromString("3"), []byte("one\ntwo\rthree\n\x1b[31mred\x1b[0m\tend\npart"))
	event, end := s.pull("docker.io/library/debian:12")
	event(image.Progress{ID: "a", Status: "Downloading", Done: 5e6, Total: 20e6})
	want := `[+] Building 10.0s (2/4), 1 cached
 => pull debian:12  5MB of 20MB                                            0.0s
 => [internal] load build definition                                       0.1s
 => CACHED [build 2/4] COPY go.mod ./
 => [build 3/4] RUN go build -o /out/a/very/long/path ./cmd/something-wit… 0.0s
 => => # one
 => => # three
 => => # red    end
 => [김치 1/2] RUN 담그기                                                  0.0s
 => => # changed: file /a, file /b, command and 1 more`
	if got := strings.Join(s.lines(80, 24, false), "\n"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	end()
	step(3, build.Failed, "[build 3/4] RUN go build", 2*time.Second)
	step(4, build.Canceled, "[김치 1/2] RUN 담그기", time.Second)
	got := s.lines(40, 24, true)
	for _, l := range got {
		if cells(l) > 39 {
			t.Errorf("%q has %d cells", l, cells(l))
		}
	}
	if text := strings.Join(got, "\n"); !strings.Contains(text, " => ERROR [build 3/4] RUN go build") || !strings.Contains(text, "CANCELED [김치") || len(got) != 6 {
		t.Errorf("the last picture is\n%s", text)
	}
}

// TestBuildScreenFits: however many steps there are, a picture is not higher than the terminal, and shows what runs.
func TestBuildScreenFits(t *testing.T) {
	for _, c := range []struct{ done, running, height int }{{40, 1, 24}, {3, 30, 24}, {0, 2, 10}, {40, 40, 8}, {1, 1, 4}, {0, 0, 5}, {22, 0, 24}} {
		s, step := aBuild(t)
		for n := range c.done {
			step(n+1, build.Done, "over", 0)
		}
		for n := range c.running {
			step(c.done+n+1, build.Started, fmt.Sprintf("runs-%d.", n), 0)
			s.p.Output(digest.FromString(fmt.Sprint(c.done+n+1)), []byte(strings.Repeat("line\n", 20)))
		}
		lines := s.lines(80, c.height, false)
		if len(lines) > c.height-1 {
			t.Errorf("%+v: %d lines:\n%s", c, len(lines), strings.Join(lines, "\n"))
		}
		if c.running > 0 && !strings.Contains(strings.Join(lines, "\n"), "runs-0.") {
			t.Errorf("%+v: what runs is not shown:\n%s", c, strings.Join(lines, "\n"))
		}
		if n := len(s.lines(80, c.height, true)); n != c.done+c.running+1 {
			t.Errorf("%+v: the last picture has %d lines", c, n)
		}
	}
}

func changes(parts ...string) (out []cache.Change) {
	for _, p := range parts {
		out = append(out, cache.Change{Part: p})
	}
	return out
}
