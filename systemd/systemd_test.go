package systemd

import (
	"bytes"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/onggi/onggi/errdefs"
)

func TestPropertiesAreMarshalledAsTheSpecificationSays(t *testing.T) {
	for _, c := range []struct {
		p    Property
		sig  string
		want string // hex
	}{
		{String("a", "ab"), "s", "02000000616200"},
		{Bool("a", true), "b", "01000000"},
		{Uint64("a", 258), "t", "0201000000000000"},
		{Pids("a", 1, 2), "au", "080000000100000002000000"},
		{Bytes("a", []byte{5, 6}), "ay", "020000000506"},
		{Pairs("a", [][2]string{{"x", "y"}}), "a(ss)", "0e00000000000000" + "010000007800" + "0000" + "010000007900"},
		{Pairs("a", nil), "a(ss)", "0000000000000000"},
	} {
		e := &encoder{}
		c.p.encode(e)
		if got := hex.EncodeToString(e.b); got != c.want || c.p.signature != c.sig {
			t.Errorf("%s: got %s %s, want %s", c.sig, c.p.signature, got, c.want)
		}
	}
}

func TestParseProperty(t *testing.T) {
	for _, c := range []struct{ name, text, want, sig, hex string }{
		{"Description", "'a b'", "Description", "s", "0300000061206200"},
		{"Description", `"it's"`, "Description", "s", "040000006974277300"},
		{"CollectMode", `'in\\out'`, "CollectMode", "s", "06000000696e5c6f757400"},
		{"MemoryAccounting", "true", "MemoryAccounting", "b", "01000000"},
		{"TasksMax", "uint64 7", "TasksMax", "t", "0700000000000000"},
		{"Nice", "-2", "Nice", "i", "feffffff"},
		{"X", "byte 0x10", "X", "y", "10"},
		{"X", "0.5", "X", "d", "000000000000e03f"},
		{"TimeoutStopSec", "uint64 2", "TimeoutStopUSec", "t", "80841e0000000000"},
		{"TimeoutStopSec", "1.5", "TimeoutStopUSec", "t", "60e3160000000000"},
		{"TimeoutStopUSec", "uint64 2", "TimeoutStopUSec", "t", "0200000000000000"},
		{"After", "['a.service', 'b']", "After", "as", "1600000009000000612e7365727669636500" + "0000" + "010000006200"},
		{"X", "[uint64 1]", "X", "at", "08000000" + "00000000" + "0100000000000000"},
	} {
		p, err := ParseProperty(c.name, c.text)
		if err != nil {
			t.Errorf("%s %s: %v", c.name, c.text, err)
			continue
		}
		e := &encoder{}
		p.encode(e)
		if got := hex.EncodeToString(e.b); p.Name != c.want || p.signature != c.sig || got != c.hex {
			t.Errorf("%s %s: got %s %s %s, want %s %s %s", c.name, c.text, p.Name, p.signature, got, c.want, c.sig, c.hex)
		}
	}
	for _, c := range [][2]string{
		{"", "1"},
		{"A b", "1"},
		{"A", ""},
		{"A", "'x"},
		{"A", "x"},
		{"A", "uint64 -1"},
		{"A", "byte 256"},
		{"A", "[1, 'a']"},
		{"A", "[]"},
		{"A", "[[1]]"},
		{"A", "1 2"},
		{"A", "uint64"},
		{"TimeoutStopSec", "'a'"},
		{"TimeoutStopSec", "-1"},
		{"A", `'\q'`},
		{"A", "{'a': 1}"},
	} {
		if _, err := ParseProperty(c[0], c[1]); !errdefs.Is(err, errdefs.InvalidArgument) || !strings.Contains(err.Error(), "org.systemd.property."+c[0]) {
			t.Errorf("%q %q: %v, want InvalidArgument that names the annotation", c[0], c[1], err)
		}
	}
}

func TestCallIsReadBack(t *testing.T) {
	b := call(7, "org.x", "/a/b", "org.x.I", "Do", "su", []byte{1, 0, 0, 0, 'a', 0, 0, 0, 9, 0, 0, 0})
	m, err := parse(b)
	if err != nil || m.kind != methodCall || m.serial != 7 || m.path != "/a/b" || m.iface != "org.x.I" || m.member != "Do" || m.signature != "su" {
		t.Fatalf("%+v, %v", m, err)
	}
	d := &decoder{b: m.body}
	if s, n := d.string(), d.uint32(); s != "a" || n != 9 || d.bad {
		t.Errorf("%q %d %v", s, n, d.bad)
	}
}

func FuzzMessage(f *testing.F) {
	f.Add(call(7, "org.x", "/a/b", "org.x.I", "Do", "su", []byte("body")))
	f.Add(call(1, "d", "/", "i", "m", "", nil))
	f.Add([]byte("l\x04\x01\x01\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parse(b)
		if err == nil && len(m.body) > len(b) {
			t.Error("a body that is longer than its message")
		}
		if n, err := size(b); err == nil && n > 3*maxMessage {
			t.Errorf("a message of %d bytes", n)
		}
		d := &decoder{b: b}
		for !d.bad && d.at < len(b) {
			_, _ = d.string(), d.signature()
		}
	})
}

func FuzzParseProperty(f *testing.F) {
	for _, s := range []string{"'a'", `"a\n"`, "[1, 2]", "uint64 5", "true", "0.5", "['a', 'b']", "byte 0x1f"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParseProperty("X", s)
		if err != nil {
			return
		}
		var a, b encoder
		p.encode(&a)
		p.encode(&b)
		if !bytes.Equal(a.b, b.b) {
			t.Error("two encodings differ")
		}
	})
}

func TestDialSaysWhatDoesNotAnswer(t *testing.T) {
	dir := t.TempDir()
	_, err := Dial(dir)
	if !errdefs.Is(err, errdefs.Unavailable) || !strings.Contains(err.Error(), dir+"/bus") || errdefs.FixOf(err) == "" {
		t.Errorf("%v (%v)", err, errdefs.KindOf(err))
	}
}

// The rest needs a systemd: the guest of test/vm has one.
func TestManager(t *testing.T) {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		t.Skip("no systemd runs here")
	}
	for _, kind := range []string{"private", "bus"} {
		t.Run(kind, func(t *testing.T) {
			var m *Manager
			var err error
			if kind == "private" {
				m, err = Dial("")
			} else {
				if m, err = dial("/run/dbus/system_bus_socket"); err != nil {
					t.Skip("no bus: ", err)
				}
				err = m.greet()
			}
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			if v := m.Version(); v < 200 || v > 2000 {
				t.Errorf("version %d", v)
			}
			if g, err := m.ControlGroup(); err != nil || strings.TrimSuffix(g, "/") != "" {
				t.Errorf("the manager's group is %q, %v", g, err)
			}
			cmd := exec.Command("sleep", "100")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = cmd.Process.Kill(); _, _ = cmd.Process.Wait() }()
			unit := "onggi-test-" + strconv.Itoa(os.Getpid()) + "-" + kind + ".scope"
			if err := m.Start(unit, []Property{Pids("PIDs", cmd.Process.Pid), Bool("Delegate", true), Uint64("TasksMax", 50), String("Slice", "a-b.slice")}); err != nil {
				t.Fatal(err)
			}
			text, _ := os.ReadFile("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/cgroup")
			if !strings.Contains(string(text), "/a.slice/a-b.slice/"+unit) {
				t.Errorf("the process is in %s", text)
			}
			max := func() string {
				b, _ := os.ReadFile(filepath.Join("/sys/fs/cgroup/a.slice/a-b.slice", unit, "pids.max"))
				return strings.TrimSpace(string(b))
			}
			if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil && max() != "50" {
				t.Errorf("pids.max %q", max())
			}
			if err := m.Set(unit, []Property{Uint64("TasksMax", 60)}); err != nil {
				t.Error(err)
			} else if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil && max() != "60" {
				t.Errorf("pids.max %q after the change", max())
			}
			if err := m.Set(unit, []Property{String("NoSuch", "x")}); err == nil || !strings.Contains(err.Error(), "NoSuch") {
				t.Errorf("a property that there is not: %v", err)
			}
			if err := m.Start(unit, []Property{Pids("PIDs", cmd.Process.Pid)}); !errdefs.Is(err, errdefs.AlreadyExists) {
				t.Errorf("a second unit of that name: %v", err)
			}
			if err := m.Start("onggi-test-none.scope", []Property{Pids("PIDs", 1<<22-1)}); err == nil {
				t.Error("a scope without a process")
			}
			if err := m.Set("onggi-test-none.scope", []Property{Uint64("TasksMax", 60)}); err == nil {
				t.Error("a change of no unit")
			}
			if err := m.Kill(unit); err != nil {
				t.Error(err)
			}
			if err := m.Kill("onggi-test-none.scope"); err != nil {
				t.Error(err)
			}
			for range 2 {
				if err := m.Stop(unit); err != nil {
					t.Error(err)
				}
			}
			if st, _ := cmd.Process.Wait(); st == nil || st.Success() {
				t.Errorf("the process: %v", st)
			}
		})
	}
}
