package launch

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/onggi/onggi/errdefs"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// fakeResctrl is a tree of plain files: it shows which groups are looked for and what is written where. That a
// processor obeys is not shown here; few machines have one.
func fakeResctrl(t *testing.T, groups ...string) (*resctrl, string) {
	t.Helper()
	dir := t.TempDir()
	for _, g := range append(groups, ".") {
		if err := os.MkdirAll(filepath.Join(dir, g, "mon_groups"), 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{"tasks": "", "schemata": "    L3:0=07ff;1=000f\n    MB:0= 20;1=100\n"} {
			if err := os.WriteFile(filepath.Join(dir, g, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return &resctrl{fd}, dir
}

func TestResctrlGroups(t *testing.T) {
	content := func(name string) string {
		b, _ := os.ReadFile(name)
		return string(b)
	}
	nothing := func() error { return nil }
	for _, c := range []struct {
		name  string
		spec  runspec.LinuxIntelRdt
		kind  errdefs.Kind // of the error; Unknown for none
		why   string
		group string // that has the process then
	}{
		{name: "root", spec: runspec.LinuxIntelRdt{ClosID: "/"}, group: "."},
		{name: "made before", spec: runspec.LinuxIntelRdt{ClosID: "gold"}, group: "gold"},
		{name: "the same schemata", spec: runspec.LinuxIntelRdt{ClosID: "gold", Schemata: []string{"L3:0=7ff;1=f", "MB:1=100"}}, group: "gold"},
		{name: "the same, old fields", spec: runspec.LinuxIntelRdt{ClosID: "gold", L3CacheSchema: "L3:1=0F", MemBwSchema: "MB:0=20"}, group: "gold"},
		{name: "other schemata", spec: runspec.LinuxIntelRdt{ClosID: "gold", L3CacheSchema: "L3:1=ff"}, kind: errdefs.Conflict, why: "the group gold exists"},
		{name: "a resource that is not there", spec: runspec.LinuxIntelRdt{ClosID: "gold", Schemata: []string{"L2:0=1"}}, kind: errdefs.Conflict, why: "L2:0=1"},
		{name: "missing", spec: runspec.LinuxIntelRdt{ClosID: "tin"}, kind: errdefs.NotFound, why: "there is no group tin"},
		{name: "own name taken", spec: runspec.LinuxIntelRdt{}, kind: errdefs.AlreadyExists, why: "there is a group of that name"},
	} {
		r, dir := fakeResctrl(t, "gold", "id")
		rec := &rdtRecord{}
		err := r.join(&c.spec, "id", 4711, rec, nothing)
		if c.why != "" {
			if !errdefs.Is(err, c.kind) || !strings.Contains(err.Error(), c.why) {
				t.Errorf("%s: got %v (%v), want %v: %s", c.name, err, errdefs.KindOf(err), c.kind, c.why)
			}
			if err := r.remove(rec); err != nil {
				t.Errorf("%s: remove: %v", c.name, err)
			}
		} else if got := content(filepath.Join(dir, c.group, "tasks")); err != nil || got != "4711" || rec.Created {
			t.Errorf("%s: tasks %q, record %+v, %v", c.name, got, *rec, err)
		}
		if content(filepath.Join(dir, "gold/schemata")) != "    L3:0=07ff;1=000f\n    MB:0= 20;1=100\n" || content(filepath.Join(dir, "id/tasks")) != "" {
			t.Errorf("%s: a foreign group has changed", c.name)
		}
	}
	// A new group is recorded before it is made. Its files are the kernel's: here there are none, so writing fails.
	r, dir := fakeResctrl(t)
	rec, saved := &rdtRecord{}, rdtRecord{}
	err := r.join(&runspec.LinuxIntelRdt{Schemata: []string{"L3:0=f"}}, "id", 1, rec, func() error { saved = *rec; return nil })
	if err == nil || !strings.Contains(err.Error(), "resctrl's id/schemata") || saved != (rdtRecord{Group: "id", Created: true}) {
		t.Errorf("got %v, recorded %+v", err, saved)
	}
	if err := r.remove(rec); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "id")); err == nil {
		t.Error("the group is left")
	}
	// With a monitoring group, which is the container's own in any case.
	r, dir = fakeResctrl(t, "gold")
	rec = &rdtRecord{}
	if err := r.join(&runspec.LinuxIntelRdt{ClosID: "gold", EnableMonitoring: true}, "id", 1, rec, nothing); err == nil || rec.Monitor != "id" {
		t.Errorf("got %v, %+v", err, rec)
	}
	if err := r.remove(rec); err != nil {
		t.Error(err)
	}
	if es, _ := os.ReadDir(filepath.Join(dir, "gold/mon_groups")); len(es) != 0 {
		t.Error("the monitoring group is left")
	}
	if _, err := os.Stat(filepath.Join(dir, "gold")); err != nil {
		t.Error("the named group is gone")
	}
}

func TestIntelRdtWithoutResctrl(t *testing.T) {
	h := newHost(t)
	if r, err := openResctrl(); err == nil {
		r.close()
		t.Skip("this host has a resctrl file system")
	}
	s := h.spec("true")
	s.Linux.IntelRdt = &runspec.LinuxIntelRdt{ClosID: "gold"}
	if _, _, err := h.run(h.options(s)); !errdefs.Is(err, errdefs.Unsupported) || !strings.Contains(err.Error(), "no resctrl file system is mounted") {
		t.Errorf("got %v", err)
	}
}

func TestResctrlUpdate(t *testing.T) {
	r, dir := fakeResctrl(t, "id")
	if err := r.update(&rdtRecord{Group: "id", Created: true}, &runspec.LinuxIntelRdt{L3CacheSchema: "L3:0=f", MemBwSchema: "MB:0=50"}); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "id/schemata")); string(b) != "L3:0=f\nMB:0=50\n" {
		t.Errorf("schemata %q", b)
	}
}
