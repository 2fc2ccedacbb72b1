package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestHelloFromItsDockerfile does what `make run` does: compiles the program, builds onggi/hello from its Dockerfile, runs
// it; without a network. The image that lies inside the onggi program gives way to the one that was built.
func TestHelloFromItsDockerfile(t *testing.T) {
	h := newHost(t)
	context := t.TempDir()
	c := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -buildid=", "-o", filepath.Join(context, "hello"), "./cmd/onggi-hello")
	c.Dir, c.Env = "..", append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	build := func() result {
		r := h.try("build", "-t", "onggi/hello", "-f", "../cmd/onggi-hello/Dockerfile", "--build-arg", "VERSION=1.2.3", context)
		if r.code != 0 {
			t.Fatalf("exit code %d: %s", r.code, r.err)
		}
		return r
	}
	first := build()
	for _, want := range []string{"[tested 2/2] RUN", "1 process, uid 0, 14 of ", "root is overlay"} {
		if !strings.Contains(first.err, want) {
			t.Errorf("the build does not show %q:\n%s", want, first.err)
		}
	}
	if again := build(); strings.Contains(again.err, "root is overlay") {
		t.Errorf("the second build ran the step again:\n%s", again.err)
	}
	out := h.onggi("run", "--rm", "--network", "none", "onggi/hello")
	for _, want := range []string{"Hello from inside a container", "4 shared read-only layers"} {
		if !strings.Contains(out, want) {
			t.Errorf("the report has no %q:\n%s", want, out)
		}
	}
	if got := h.onggi("run", "--rm", "--network", "none", "onggi/hello", "/bin/hello", "-summary"); !strings.Contains(got, "uid 0") {
		t.Errorf("got %q", got)
	}
	if got := h.onggi("inspect", "--format", `{{index .Config.Labels "org.opencontainers.image.version"}}`, "onggi/hello"); got != "1.2.3" {
		t.Errorf("the label says %q", got)
	}
}
