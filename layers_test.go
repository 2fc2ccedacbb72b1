package onggi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/onggi/onggi"

// layers is the house (doc/walk.md): a package may import only packages of a lower number, and those of allow.
// A package that is not listed fails the test: give it a room first.
var layers = map[string]int{
	"errdefs": 1, "undo": 1, "sys": 1, "pagecache": 1,
	"build/graph": 2, "events": 2, "archive/erofs": 2,
	"content": 2, "reference": 2, "network/resolver": 2, "pathrs": 2, "userns": 2, "systemd": 2,
	"build/cache": 3, "build/frontend": 3,
	"archive": 3, "registry": 3, "signature": 3, "volume": 3, "secret": 3, "network": 3, "mount": 3, "cgroup": 3, "runtime/monitor/logfile": 3,
	"build/dockerfile": 4, "build/tree": 4, "build/history": 4,
	"snapshot": 4, "spec": 4, "runtime/seccomp": 4, "runtime/criu": 4, "runtime/monitor": 4,
	"image": 5, "runtime/plan": 5,
	"runtime/launch": 6, "engine": 6,
	"build":     7,
	"cli":       8,
	"cmd/onggi": 9, "cmd/onggi-runtime": 9, "cmd/onggi-hello": 9, "cmd/onggi-build": 9,
	"test": 10,
}

// never says what a package must not import although its layer would allow it: the fat and the thin side meet only in
// data (mount, monitor's protocol).
var never = map[string][]string{
	"engine":          {"runtime/launch", "runtime/plan", "runtime/seccomp"},
	"runtime/monitor": {"content", "reference", "registry", "network", "volume", "secret", "archive", "snapshot", "spec"},
	"runtime/launch":  {"content", "reference", "registry", "network", "volume", "secret", "archive", "snapshot", "spec", "image"},
}

// thinForbidden may not be reachable from onggi-runtime: each costs start-up time or memory in every container start
// (design: start <= 1 ms over /bin/true), or opens a door that the runtime does not need.
var thinForbidden = []string{
	"net", "net/http", "crypto/tls", "regexp", "text/template", "html/template", "os/user", "log/slog", "log",
	"google.golang.org/grpc", "github.com/spf13/cobra", "github.com/opencontainers/go-digest",
}

// cliForbidden may not be reachable from onggi: they belong to onggid, and BuildKit to onggi-build.
var cliForbidden = []string{"google.golang.org/grpc", "k8s.io/", "net/http/pprof", "github.com/moby/buildkit", "google.golang.org/protobuf"}

type pkg struct {
	ImportPath string
	Imports    []string
	Deps       []string
	GoFiles    []string
	Dir        string
}

func list(t *testing.T, args ...string) []pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Imports,Deps,GoFiles,Dir"}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %v: %v", args, err)
	}
	var ps []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); err == io.EOF {
			return ps
		} else if err != nil {
			t.Fatal(err)
		}
		ps = append(ps, p)
	}
}

func TestImportsOnlyGoDown(t *testing.T) {
	for _, p := range list(t, "./...") {
		name := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		if name == "" || strings.HasPrefix(name, "tools/") || strings.HasPrefix(name, "test/") {
			continue
		}
		level, ok := layers[name]
		if !ok {
			t.Errorf("package %s has no layer: add it to layers in layers_test.go, or put its code where it belongs", name)
			continue
		}
		for _, i := range p.Imports {
			if i == "unsafe" && name != "sys" {
				t.Errorf("%s imports unsafe: only sys may", name)
			}
			dep, ours := strings.CutPrefix(i, module+"/")
			if !ours {
				continue
			}
			if layers[dep] >= level {
				t.Errorf("%s (layer %d) imports %s (layer %d): imports only go down", name, level, dep, layers[dep])
			}
			for _, n := range never[name] {
				if n == dep {
					t.Errorf("%s imports %s: the two sides meet only in data", name, dep)
				}
			}
		}
	}
}

func TestLinknameOnlyInSys(t *testing.T) {
	out, err := exec.Command("git", "grep", "-l", "^//go:linkname", "--", "*.go").Output()
	if err != nil && len(out) == 0 {
		return // no match
	}
	for _, f := range strings.Fields(string(out)) {
		if !strings.HasPrefix(f, "sys/") {
			t.Errorf("%s uses go:linkname: only sys may", f)
		}
	}
}

func TestStartUpBudgetByConstruction(t *testing.T) {
	for _, c := range []struct {
		binary    string
		forbidden []string
	}{{"./cmd/onggi-runtime", thinForbidden}, {"./cmd/onggi", cliForbidden}} {
		for _, p := range list(t, c.binary) {
			deps := map[string]bool{}
			for _, d := range p.Deps {
				deps[d] = true
			}
			for _, f := range c.forbidden {
				for d := range deps {
					if d == f || strings.HasSuffix(f, "/") && strings.HasPrefix(d, f) || strings.HasPrefix(d, f+"/") && strings.Contains(f, ".") {
						t.Errorf("%s reaches %s: %s", c.binary, d, why(c.binary, d))
					}
				}
			}
		}
	}
}

// why prints a shortest import chain.
func why(from, to string) string {
	out, _ := exec.Command("go", "list", "-f", "{{.ImportPath}} {{join .Imports \" \"}}", "-deps", from).Output()
	imports := map[string][]string{}
	var root string
	for _, l := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		f := strings.Fields(l)
		imports[f[0]] = f[1:]
		root = f[0]
	}
	prev := map[string]string{root: ""}
	for queue := []string{root}; len(queue) > 0; queue = queue[1:] {
		if queue[0] == to {
			var chain []string
			for p := to; p != ""; p = prev[p] {
				chain = append([]string{p}, chain...)
			}
			return fmt.Sprint(strings.Join(chain, " -> "))
		}
		for _, i := range imports[queue[0]] {
			if _, seen := prev[i]; !seen {
				prev[i] = queue[0]
				queue = append(queue, i)
			}
		}
	}
	return "?"
}
