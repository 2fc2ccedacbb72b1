package launch

//lint:file-ignore SA1019 Prestart is deprecated, but engines still send it

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runspec "github.com/opencontainers/runtime-spec/specs-go"
)

// TestHookStates: each hook is told the state at its moment, and the pid as its namespace has it.
func TestHookStates(t *testing.T) {
	h := newHost(t)
	log := filepath.Join(h.bundle, "log")
	note := func(name string) []runspec.Hook {
		// what the state says, the directory, and the environment
		return []runspec.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", `read -r s; st=${s#*'"status":"'}; case $s in *'"pid":'*) p=${s#*'"pid":'}; p=${p%%,*};; *) p=none;; esac
			[ "$p" = 1 ] && p=inner; case $p in [0-9]*) p=outer;; esac; echo ` + name + ` ${st%%'"'*} $p $X >> ` + log}, Env: []string{"X=" + name[:2]}}}
	}
	s := h.spec("cat /dev/shm/hook; sleep 0.2")
	s.Hooks = &runspec.Hooks{
		Prestart: note("prestart"), CreateRuntime: append(note("createRuntime"), note("second")...), CreateContainer: note("createContainer"), //nolint:staticcheck // in use
		StartContainer: []runspec.Hook{{
			Path: "/bin/sh", Args: []string{"sh", "-c", `read -r s; case $s in *'"status":"created"'*'"pid":1,'*) echo right;; *) echo "$s";; esac > /dev/shm/hook; grep -q /onggi-test- /proc/self/cgroup && echo in the group >> /dev/shm/hook`},
			Env: []string{"PATH=/bin"},
		}},
		Poststart: note("poststart"), Poststop: note("poststop"),
	}
	out, code, err := h.run(h.options(s))
	if err != nil || code != 0 || out != "right\nin the group\n" {
		t.Errorf("got %q, code %d (%v)", out, code, err)
	}
	b, _ := os.ReadFile(log)
	want := "prestart created outer pr\ncreateRuntime creating outer cr\nsecond creating outer se\ncreateContainer creating inner cr\npoststart running outer po\npoststop stopped none po\n"
	if string(b) != want {
		t.Errorf("got\n%swant\n%s", b, want)
	}
}

// TestFailingHooks: what runs after a hook has failed, and that the container is stopped.
func TestFailingHooks(t *testing.T) {
	h := newHost(t)
	log := filepath.Join(h.bundle, "log")
	note := func(name, then string) []runspec.Hook {
		return []runspec.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo " + name + " >> " + log + "; " + then}}}
	}
	for _, c := range []struct {
		name  string
		hooks runspec.Hooks
		start bool // it is start that fails
		want  string
	}{
		{"prestart", runspec.Hooks{Prestart: note("prestart", "exit 3"), CreateRuntime: note("createRuntime", "")}, false, "prestart poststop1 poststop2"}, //nolint:staticcheck // in use
		{"createRuntime", runspec.Hooks{CreateRuntime: append(note("first", "exit 3"), note("second", "")...), CreateContainer: note("createContainer", "")}, false, "first poststop1 poststop2"},
		{"createContainer", runspec.Hooks{CreateContainer: note("createContainer", "exit 3"), Poststart: note("poststart", "")}, false, "createContainer poststop1 poststop2"},
		{"startContainer", runspec.Hooks{StartContainer: []runspec.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "exit 3"}}}, Poststart: note("poststart", "")}, true, "poststop1 poststop2"},
		{"poststart", runspec.Hooks{Poststart: append(note("first", "exit 3"), note("second", "")...)}, true, "first poststop1 poststop2"},
	} {
		_ = os.Remove(log)
		s := h.spec("sleep 100")
		hooks := c.hooks
		hooks.Poststop = append(note("poststop1", "exit 5"), note("poststop2", "")...)
		s.Hooks = &hooks
		o := h.options(s)
		o.Ungated = false
		k, err := Create(context.Background(), o)
		if !c.start {
			if err == nil || !strings.Contains(err.Error(), "exited with code 3") {
				t.Errorf("%s: create: %v", c.name, err)
			}
		} else {
			if err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			if err := k.Start(); err == nil || !strings.Contains(err.Error(), "exited with code 3") {
				t.Errorf("%s: start: %v", c.name, err)
			}
			before := time.Now()
			if e, err := k.Wait(); err != nil || e.Code != 137 {
				t.Errorf("%s: the container ended with %d (%v), want 137", c.name, e.Code, err)
			}
			if time.Since(before) > 50*time.Second {
				t.Errorf("%s: the container was not stopped", c.name)
			}
			if err := k.Delete(); err != nil {
				t.Errorf("%s: delete: %v", c.name, err)
			}
		}
		h.nothingLeft(o.ID)
		b, _ := os.ReadFile(log)
		if got := strings.Join(strings.Fields(string(b)), " "); got != c.want {
			t.Errorf("%s: ran %q, want %q", c.name, got, c.want)
		}
	}
}
