package frontend

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/onggi/onggi/build/graph"
)

// shelf is a Remembrance.
type shelf map[string][]byte

func (s shelf) Get(about string, v any) bool {
	b, ok := s[about]
	return ok && json.Unmarshal(b, v) == nil
}

func (s shelf) Put(about string, v any) (err error) {
	s[about], err = json.Marshal(v)
	return err
}

// moody is a backend whose answers the test changes.
type moody struct {
	backend
	mood string
}

func (m *moody) ReadFile(ctx context.Context, g *graph.Graph, path string, offset int64, length int) ([]byte, error) {
	b, err := m.backend.ReadFile(ctx, g, path, offset, length)
	if path == "7" {
		b = append(b, m.mood...)
	}
	return b, err
}

// TestRemembered: no process is started for a conversation that would go as before; a new answer, request or program, or
// something private, starts one.
func TestRemembered(t *testing.T) {
	dir := t.TempDir()
	program, count := filepath.Join(dir, "program"), filepath.Join(dir, "count")
	install := func() {
		t.Helper()
		_ = os.Remove(program)
		text := fmt.Sprintf("#!/bin/sh\necho x >> %s\nexec %s frontend good\n", count, os.Args[0])
		if err := os.WriteFile(program, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	os.Args[0] = self
	install()
	memory, b := shelf{}, &moody{}
	req := Request{Options: map[string]string{"hello": "world"}}
	started := 0
	run := func(why string, starts bool) {
		t.Helper()
		b.warnings = nil
		res, err := RunRemembered(context.Background(), memory, []string{program}, req, b)
		if err != nil {
			t.Fatalf("%s: %v", why, err)
		}
		if got, want := string(res.Meta["7"]), "7 at 7 for 10"+b.mood; got != want {
			t.Errorf("%s: got %q, want %q", why, got, want)
		}
		if len(b.warnings) != 1 || b.warnings[0] != req.Options["hello"] {
			t.Errorf("%s: warnings %q", why, b.warnings)
		}
		if starts {
			started++
		}
		if all, _ := os.ReadFile(count); len(all)/2 != started {
			t.Errorf("%s: %d processes were started, want %d", why, len(all)/2, started)
		}
	}
	run("first", true)
	run("again", false)
	b.mood = " sour"
	run("another answer", true)
	run("again", false)
	req.Options["hello"] = "sky"
	run("another request", true)
	run("again", false)
	install()
	run("another program", true)
	run("again", false)
	for about := range memory {
		memory[about] = []byte("{}")
	}
	run("a broken memory", true)
	req.Options["build-arg:https_proxy"] = "http://me:pw@proxy"
	n := len(memory)
	run("something private", true)
	run("again", true)
	if len(memory) != n {
		t.Error("something private is remembered")
	}
}
