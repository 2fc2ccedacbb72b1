package engine

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/onggi/onggi/undo"
)

// TestTrashCrashWalk kills discard, undo and empty at each of their steps: the container is here or in the trash with all
// its files, or it is gone when it was being deleted, and a sweep leaves nothing of it.
func TestTrashCrashWalk(t *testing.T) {
	if !undo.Faults {
		t.Skip("needs fault points: go test -tags faults")
	}
	h := newHouse(t)
	ctx := context.Background()
	names := h.file()
	do := func(fault string, args ...string) (string, error) {
		arg := ""
		if len(args) > 1 {
			arg = args[1]
		}
		out, err := h.cli([]string{"ONGGI_FAULT=" + fault, "ONGGI_FAULT_NAMES=" + names.Name()}, args[0], arg).CombinedOutput()
		return string(out), err
	}
	must := func(out string, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err, out)
		}
	}
	mark := func(id string) string { return filepath.Join(h.snapshotsDir(), "containers", id, "upper", "mark") }
	steps := []string{"discard.record", "discard.trash", "discard.move", "undo.move", "empty.snapshot", "empty.record"}
	for _, step := range steps {
		for _, at := range []string{"=error", "=kill", "@after=error", "@after=kill"} {
			c, err := h.Create(ctx, config("true"), nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(mark(c.ID), []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
			op, _, _ := strings.Cut(step, ".")
			if op != "discard" {
				must(do("", "discard", c.ID))
			}
			if out, err := do(step+at, op, c.ID); err == nil {
				t.Errorf("%s%s did not fail: %s", step, at, out)
			}
			if out, err := h.cli(nil, "sweep", "").CombinedOutput(); err != nil {
				t.Errorf("%s%s: sweep: %v: %s", step, at, err, out)
			}
			_, gerr := h.Get(c.ID)
			list, err := h.Removals()
			if err != nil {
				t.Fatal(err)
			}
			here, trashed := gerr == nil, len(list) == 1
			switch {
			case here == trashed && op != "empty":
				t.Errorf("%s%s: here: %v, in the trash: %v", step, at, here, trashed)
			case op != "empty" && !exists(mark(c.ID)):
				t.Errorf("%s%s: its files are gone", step, at)
			case trashed && op != "empty":
				must(do("", "undo"))
				if got, err := h.Get(c.Config.Name); err != nil || got.ID != c.ID {
					t.Errorf("%s%s: brought back: %v, %v", step, at, got, err)
				}
				fallthrough
			case here:
				must(do("", "rm", c.ID))
			}
			must(do("", "empty"))
			if left, _ := os.ReadDir(h.trashDir()); len(left) > 0 {
				t.Errorf("%s%s: left in the trash: %v", step, at, left)
			}
			h.checkNothingLeft()
		}
	}
	met := text(t, names)
	for _, s := range steps {
		if !strings.Contains(met, s+"\n") {
			t.Errorf("step %s was not met", s)
		}
	}
}
