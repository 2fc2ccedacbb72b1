package launch

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// loadProfile loads the compiled profile of testdata, which is named onggi-test, until the test ends.
func loadProfile(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 || !apparmor() {
		t.Skip("this kernel has no AppArmor at work")
	}
	dir := "/sys/kernel/security/apparmor"
	if _, err := os.Stat(dir + "/.replace"); err != nil {
		own := filepath.Join(t.TempDir(), "security")
		if err := os.Mkdir(own, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("securityfs", own, "securityfs", 0, ""); err != nil {
			t.Skipf("no securityfs: %v", err)
		}
		t.Cleanup(func() { _ = unix.Unmount(own, unix.MNT_DETACH) })
		dir = own + "/apparmor"
	}
	b, err := os.ReadFile("testdata/apparmor.bin")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/.replace", b, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(dir+"/.remove", []byte("onggi-test"), 0o600); err != nil {
			t.Error(err)
		}
	})
}

func TestAppArmor(t *testing.T) {
	loadProfile(t)
	h := newHost(t)
	const script = "cat /proc/self/attr/current; touch /tmp/denied 2>/dev/null || echo denied; touch /tmp/other && echo ok"
	for _, c := range []struct{ nnp, init bool }{{false, false}, {true, false}, {true, true}} {
		s := h.spec(script)
		s.Process.ApparmorProfile, s.Process.NoNewPrivileges = "onggi-test", c.nnp
		o := h.options(s)
		o.Init = c.init
		if out, _, err := h.run(o); err != nil || out != "onggi-test (enforce)\ndenied\nok\n" {
			t.Errorf("%+v: got %q (%v)", c, out, err)
		}
	}
	s := h.spec("sleep 100")
	s.Process.ApparmorProfile = "onggi-test"
	k := h.background(h.options(s))
	c, err := Load(h.root, k.record.ID)
	if err != nil {
		t.Fatal(err)
	}
	p := c.DefaultProcess()
	p.Args = []string{"sh", "-c", script}
	if out := h.exec(c, &p); out != "onggi-test (enforce)\ndenied\nok\n" {
		t.Errorf("exec: got %q", out)
	}
	p.ApparmorProfile = "unconfined"
	if out := h.exec(c, &p); !strings.HasPrefix(out, "unconfined\n") {
		t.Errorf("exec, unconfined: got %q", out)
	}
	s = h.spec("true")
	s.Process.ApparmorProfile = "not-loaded"
	if _, _, err := h.run(h.options(s)); err == nil || !strings.Contains(err.Error(), "set AppArmor profile not-loaded: no such file") {
		t.Errorf("a profile that is not loaded: %v", err)
	}
}
