package secret

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/onggi/onggi/errdefs"
)

func newStore(t testing.TB, k Kind) *Store {
	t.Helper()
	s, err := Open(k, filepath.Join(t.TempDir(), string(k)))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func names(t testing.TB, dir string) string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range list {
		out = append(out, e.Name())
	}
	return strings.Join(out, " ")
}

func TestLife(t *testing.T) {
	for _, k := range []Kind{Secret, Config} {
		s := newStore(t, k)
		e, err := s.Create("key", map[string]string{"a": "b"}, strings.NewReader("value\x00\n"))
		if err != nil || len(e.ID) != idLength || e.Size != 7 {
			t.Fatal(e, err)
		}
		if v, err := s.Value("key"); err != nil || string(v) != "value\x00\n" {
			t.Errorf("%s: value %q, %v", k, v, err)
		}
		if _, err := s.Create("key", nil, strings.NewReader("other")); !errdefs.Is(err, errdefs.AlreadyExists) {
			t.Errorf("%s: twice: %v", k, err)
		}
		for _, name := range []string{"key", e.ID, e.ID[:12]} {
			if got, err := s.Get(name); err != nil || got.ID != e.ID || got.Labels["a"] != "b" {
				t.Errorf("%s: Get(%s): %+v, %v", k, name, got, err)
			}
		}
		if b, err := os.ReadFile(filepath.Join(s.dir, "key", recordFile)); err != nil || bytes.Contains(b, []byte("value")) {
			t.Errorf("%s: the record: %s, %v", k, b, err)
		}
		for _, p := range []string{"key/value", "key/record.json"} {
			if fi, err := os.Stat(filepath.Join(s.dir, p)); err != nil || fi.Mode() != 0o600 {
				t.Errorf("%s: mode of %s: %v, %v; want 0600", k, p, fi.Mode(), err)
			}
		}
		if err := s.Remove("key"); err != nil {
			t.Fatal(err)
		}
		for _, err := range []error{s.Remove("key"), func() error { _, err := s.Get("key"); return err }(), func() error { _, err := s.Value("key"); return err }()} {
			if !errdefs.Is(err, errdefs.NotFound) {
				t.Errorf("%s: after the removal: %v", k, err)
			}
		}
		if got := names(t, s.dir); got != "" {
			t.Errorf("%s: left: %s", k, got)
		}
	}
}

func TestRefused(t *testing.T) {
	s := newStore(t, Secret)
	for _, name := range []string{"", "..", "a/b", "-a", "a-", ".a", "a b", "a\n", "ä", strings.Repeat("x", 65), "a\x00"} {
		if _, err := s.Create(name, nil, strings.NewReader("x")); !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("Create(%q): %v, want invalid", name, err)
		}
		if err := s.Remove(name); !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("Remove(%q): %v, want invalid", name, err)
		}
		if _, err := s.Value(name); !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("Value(%q): %v, want invalid", name, err)
		}
	}
	for _, v := range []string{"", strings.Repeat("x", int(Secret.Max())+1)} {
		if _, err := s.Create("key", nil, strings.NewReader(v)); !errdefs.Is(err, errdefs.InvalidArgument) || strings.Contains(err.Error(), "xxx") {
			t.Errorf("a value of %d bytes: %v", len(v), err)
		}
	}
	if _, err := s.Create("key", nil, strings.NewReader(strings.Repeat("x", int(Secret.Max())))); err != nil {
		t.Errorf("the longest value: %v", err)
	}
	if err := os.WriteFile(filepath.Join(s.dir, "key", recordFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get("key"); !errdefs.Is(err, errdefs.Corrupt) {
		t.Errorf("a broken record: %v", err)
	}
	if err := s.Remove("key"); err != nil {
		t.Error(err)
	}
}

// TestTogether: of several that create one name at once, one does.
func TestTogether(t *testing.T) {
	s := newStore(t, Secret)
	var wg sync.WaitGroup
	made := make(chan string, 20)
	for i := range 20 {
		wg.Go(func() {
			v := fmt.Sprint(i)
			if _, err := s.Create("key", nil, strings.NewReader(v)); err == nil {
				made <- v
			} else if !errdefs.Is(err, errdefs.AlreadyExists) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	close(made)
	var won []string
	for v := range made {
		won = append(won, v)
	}
	if v, err := s.Value("key"); err != nil || len(won) != 1 || won[0] != string(v) {
		t.Errorf("made by %v, holds %q, %v", won, v, err)
	}
	if got := names(t, s.dir); got != "key" {
		t.Errorf("left: %s", got)
	}
}

// TestKilledAnywhere starts this test's binary, built with fault points, and kills it at every step: an entry is there
// whole or not at all, and a sweep takes the rest away.
func TestKilledAnywhere(t *testing.T) {
	if dir := os.Getenv("ONGGI_SECRET_HELPER"); dir != "" {
		s, err := Open(Secret, dir)
		if err == nil {
			_, err = s.Create("key", nil, strings.NewReader("value"))
		}
		if err == nil || errdefs.Is(err, errdefs.AlreadyExists) {
			err = s.Remove("key")
		}
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	bin := filepath.Join(t.TempDir(), "test")
	if out, err := exec.Command("go", "test", "-c", "-tags", "faults", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Skipf("cannot build with fault points: %v\n%s", err, out)
	}
	try := func(dir string, env ...string) error {
		c := exec.Command(bin, "-test.run", "^TestKilledAnywhere$")
		c.Env = append(append(os.Environ(), "ONGGI_SECRET_HELPER="+dir), env...)
		return c.Run()
	}
	list := filepath.Join(t.TempDir(), "names")
	if err := try(t.TempDir(), "ONGGI_FAULT_NAMES="+list); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	steps := strings.Fields(string(b))
	if want := []string{"secret.create.directory", "secret.create.record", "secret.create.rename", "secret.create.sync", "secret.create.value", "secret.remove.rename", "secret.remove.value"}; !slices.Equal(slices.Sorted(slices.Values(steps)), want) {
		t.Errorf("steps: %v, want %v", steps, want)
	}
	for _, step := range steps {
		for _, how := range []string{"=error", "=kill", "@after=error", "@after=kill"} {
			dir := t.TempDir()
			if err := try(dir, "ONGGI_FAULT="+step+how); err == nil {
				t.Errorf("%s%s: it ended well", step, how)
			}
			old := time.Now().Add(-2 * settle)
			for n := range strings.FieldsSeq(names(t, dir)) {
				if err := os.Chtimes(filepath.Join(dir, n), old, old); err != nil {
					t.Fatal(err)
				}
			}
			s, err := Open(Secret, dir)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Sweep(); err != nil {
				t.Error(err)
			}
			all, err := s.List()
			if err != nil || names(t, dir) != strings.Repeat("key", len(all)) {
				t.Errorf("%s%s: left: %s, %v", step, how, names(t, dir), err)
			}
			if len(all) == 1 {
				if v, err := s.Value("key"); err != nil || string(v) != "value" {
					t.Errorf("%s%s: half a value: %q, %v", step, how, v, err)
				}
			}
		}
	}
}
