package userns

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/onggi/onggi/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestNew(t *testing.T) {
	many := make([]specs.LinuxIDMapping, MaxRanges+1)
	for i := range many {
		many[i] = specs.LinuxIDMapping{ContainerID: uint32(i), HostID: uint32(i), Size: 1}
	}
	for _, c := range []struct {
		name string
		in   []specs.LinuxIDMapping
		kind errdefs.Kind
	}{
		{"none", nil, 0},
		{"usual", []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}, 0},
		{"two", []specs.LinuxIDMapping{{ContainerID: 1, HostID: 100000, Size: 65535}, {ContainerID: 0, HostID: 1000, Size: 1}}, 0},
		{"all ids", []specs.LinuxIDMapping{{Size: noID}}, 0},
		{"as many as fit", many[:MaxRanges], 0},
		{"too many", many, errdefs.Exhausted},
		{"empty range", []specs.LinuxIDMapping{{ContainerID: 5, HostID: 5}}, errdefs.InvalidArgument},
		{"host wraps", []specs.LinuxIDMapping{{HostID: 1<<32 - 2, Size: 2}}, errdefs.InvalidArgument},
		{"container wraps", []specs.LinuxIDMapping{{ContainerID: 1<<32 - 1, Size: 1}}, errdefs.InvalidArgument},
		{"overlap inside", []specs.LinuxIDMapping{{Size: 10}, {ContainerID: 9, HostID: 100, Size: 1}}, errdefs.InvalidArgument},
		{"overlap outside", []specs.LinuxIDMapping{{Size: 10}, {ContainerID: 50, HostID: 9, Size: 1}}, errdefs.InvalidArgument},
	} {
		m, err := New("uidMappings", c.in)
		if c.kind == 0 && err != nil || c.kind != 0 && !errdefs.Is(err, c.kind) {
			t.Errorf("%s: got %v, want kind %v", c.name, err, c.kind)
		}
		if err == nil && len(m) != len(c.in) {
			t.Errorf("%s: got %d ranges, want %d", c.name, len(m), len(c.in))
		}
	}
}

func TestBothWays(t *testing.T) {
	m := Map{{0, 1000, 1}, {1, 100000, 65535}}
	for _, c := range []struct {
		in, out uint32
		ok      bool
	}{{0, 1000, true}, {1, 100000, true}, {65535, 165534, true}, {65536, 0, false}, {noID, 0, false}} {
		if got, ok := m.ToHost(c.in); got != c.out || ok != c.ok {
			t.Errorf("ToHost(%d) = %d, %v; want %d, %v", c.in, got, ok, c.out, c.ok)
		}
		if !c.ok {
			continue
		}
		if got, ok := m.ToContainer(c.out); got != c.in || !ok {
			t.Errorf("ToContainer(%d) = %d, %v; want %d", c.out, got, ok, c.in)
		}
	}
	if _, ok := Identity.ToHost(noID); ok {
		t.Error("(uid_t)-1 is mapped")
	}
}

func TestParse(t *testing.T) {
	for _, c := range []struct {
		in string
		n  int
		ok bool
	}{
		{"         0          0 4294967295\n", 1, true},
		{"", 0, true},
		{"0 1 1\n1 5 2\n", 2, true},
		{"0 0\n", 0, false},
		{"0 0 4294967296\n", 0, false},
		{"-1 0 1\n", 0, false},
		{"0 0 1 1\n", 0, false},
	} {
		m, err := Parse(strings.NewReader(c.in))
		if len(m) != c.n || (err == nil) != c.ok {
			t.Errorf("Parse(%q) = %v, %v; want %d ranges, ok %v", c.in, m, err, c.n, c.ok)
		}
	}
}

// TestKernelAgrees makes a user namespace with a map and compares ours with what the kernel shows inside.
func TestKernelAgrees(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to write an id map of several ranges")
	}
	cmd := exec.Command("cat", "/proc/self/uid_map")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}, {ContainerID: 1, HostID: 100000, Size: 65535}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}},
	}
	out, err := cmd.Output()
	if err != nil {
		t.Skipf("cannot make a user namespace here: %v", err)
	}
	m, err := Parse(strings.NewReader(string(out)))
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := m.ToHost(7); got != 100006 || !ok {
		t.Errorf("id 7 is %d, %v; want 100006 (map %v)", got, ok, m)
	}
	if _, err := UIDs(); err != nil {
		t.Errorf("own map: %v", err)
	}
	if _, err := GIDs(); err != nil {
		t.Errorf("own map: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("0 0 4294967295\n")
	f.Add("0 1000 1\n1 100000 65535\n")
	f.Fuzz(func(t *testing.T, s string) {
		m, err := Parse(strings.NewReader(s))
		if err != nil {
			return
		}
		for _, r := range m {
			host, ok := m.ToHost(r.Container)
			if back, ok2 := m.ToContainer(host); !ok || !ok2 || back != r.Container {
				t.Errorf("%q: %d -> %d -> %d", s, r.Container, host, back)
			}
		}
	})
}
