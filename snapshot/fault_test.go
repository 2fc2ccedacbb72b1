//go:build faults

package snapshot

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/onggi/onggi/errdefs"
	"github.com/opencontainers/go-digest"
)

func init() { helpers["walk"] = walkHelper }

// walkHelper unpacks the standard input as args[1] of the store args[0] and prepares the writable layer "box" on it.
func walkHelper(args []string) error {
	s, err := Open(args[0])
	if err != nil {
		return err
	}
	ctx, d := context.Background(), digest.Digest(args[1])
	if _, err := s.Unpack(ctx, d, os.Stdin); err != nil {
		return err
	}
	return s.Prepare(ctx, "box", []digest.Digest{d})
}

// TestEveryStepFails walks the named steps of Unpack and Prepare, makes each fail, then kills the process at each, both
// before and after its deed. After an error nothing is left that no record owns, before any Sweep; after a kill, after
// Sweep. A layer that is seen is whole, and a second try succeeds.
func TestEveryStepFails(t *testing.T) {
	b := layerTar(t, "./ 0711", "a/b=c", "d/", "d/e=f")
	d := digest.FromBytes(b)
	run := func(s *Store, env ...string) ([]byte, error) {
		cmd := helper("walk", s.dir, string(d))
		cmd.Stdin = bytes.NewReader(b)
		cmd.Env = append(cmd.Env, env...)
		return cmd.CombinedOutput()
	}
	namesFile := filepath.Join(t.TempDir(), "names")
	if out, err := run(open(t), "ONGGI_FAULT_NAMES="+namesFile); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	text, err := os.ReadFile(namesFile)
	if err != nil {
		t.Fatal(err)
	}
	names := strings.Fields(string(text))
	for _, want := range []string{"snapshot.ingest", "snapshot.unpack", "snapshot.sync", "snapshot.rename", "snapshot.syncdir", "snapshot.prepare"} {
		if !slices.Contains(names, want) {
			t.Errorf("no step is called %s: %v", want, names)
		}
	}
	for _, n := range slices.Compact(names) {
		for _, moment := range []string{"", "@after"} {
			for _, what := range []string{"error", "kill"} {
				if testing.Short() && (moment == "") == (what == "kill") {
					continue // in an emulated guest half of them must do: errors before, kills after
				}
				fault := n + moment + "=" + what
				t.Run(fault, func(t *testing.T) {
					s, ctx := open(t), context.Background()
					out, err := run(s, "ONGGI_FAULT="+fault)
					if err == nil || what == "error" && !strings.Contains(string(out), "injected fault at "+n) {
						t.Fatalf("it did not fail: %v: %s", err, out)
					}
					if what == "kill" {
						if err := s.Sweep(ctx); err != nil {
							t.Error(err)
						}
					}
					layers := clean(t, s)
					_, boxErr := s.Mounts("box", false, false)
					switch {
					case n == "snapshot.prepare":
						if !slices.Equal(layers, []string{string(d)}) {
							t.Errorf("layers: %v", layers)
						}
					case what == "error" && len(layers) != 0:
						t.Errorf("layers: %v", layers)
					}
					if len(layers) == 0 && len(entries(t, s, chainsDir)) != 0 {
						t.Errorf("chains without layers: %v", entries(t, s, chainsDir))
					}
					if what == "error" && !errdefs.Is(boxErr, errdefs.NotFound) {
						t.Errorf("the writable layer: %v", boxErr)
					}
					if len(layers) == 1 { // whole
						if got, err := os.ReadFile(s.path(layerPath(d), "fs/a/b")); err != nil || string(got) != "c" {
							t.Errorf("content: %q, %v", got, err)
						}
					}
					// The engine's record says that box was being made, so the engine removes it.
					if err := s.Remove(ctx, "box"); err != nil {
						t.Error(err)
					}
					if out, err := run(s); err != nil {
						t.Errorf("again: %v: %s", err, out)
					}
					want := ". d 711\na d 755\na/b f 644 c\nd d 755\nd/e f 644 f\n"
					if got := merged(t, s, "box", false, ""); got != want {
						t.Errorf("after all:\n%s", fmt.Sprint(got))
					}
				})
			}
		}
	}
}
