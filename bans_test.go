package onggi

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

// bans are functions that this house does not use, each with its reason and the rooms where it is right after all.
var bans = []struct {
	name   string // import path, a dot, the identifier
	reason string
	except []string // path prefixes
}{
	{"os.Create", "it truncates what may be in use and leaves the mode to the umask: open with O_EXCL or write beside and rename", []string{"tools/", "test/", "cmd/onggi-hello/"}},
	{"os.Getenv", "the environment is no control input below the command line: pass a value", []string{"cli/", "cmd/", "undo/fault_on.go", "tools/", "test/"}},
	{"fmt.Println", "only the command line prints", []string{"cli/", "cmd/", "tools/"}},
	{"fmt.Printf", "only the command line prints", []string{"cli/", "cmd/", "tools/"}},
	{"net/http.Get", "the default client has no timeout", []string{"test/", "tools/"}},
	{"net/http.DefaultClient", "it has no timeout", []string{"test/", "tools/"}},
	{"os/exec.LookPath", "a program found by PATH must never be run on behalf of a container; say which one you mean", []string{"cli/", "cmd/", "tools/", "engine/open.go", "engine/top.go", "runtime/monitor/foreign.go"}},
	{"io.ReadAll", "unbounded: use a limit (CVE-2022-23471, CVE-2022-31030 are of that class)", []string{"tools/", "test/", "cmd/onggi-hello/"}},
	{"path/filepath.EvalSymlinks", "a path that is resolved and then used again is a race (CVE-2021-30465): hold a handle (pathrs)", []string{"cli/", "tools/"}},
	{"os.Chdir", "the working directory is shared by all goroutines: use handles", []string{"tools/", "cmd/onggi-runtime/"}},
	{"log.Printf", "log or return, never both: this house returns", nil},
	{"log.Fatal", "it skips every deferred undo", nil},
}

func TestBans(t *testing.T) {
	out, err := exec.Command("git", "ls-files", "--", "*.go").Output()
	if err != nil {
		t.Skipf("not a git checkout: %v", err)
	}
	for _, file := range strings.Fields(string(out)) {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, file, nil, 0)
		if err != nil {
			continue // removed but not committed yet, or the compiler will say it better
		}
		imports := map[string]string{} // local name -> path
		for _, i := range f.Imports {
			path, _ := strconv.Unquote(i.Path.Value)
			name := path[strings.LastIndexByte(path, '/')+1:]
			if i.Name != nil {
				name = i.Name.Name
			}
			imports[name] = path
		}
		ast.Inspect(f, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			id, ok := sel.X.(*ast.Ident)
			if !ok || id.Obj != nil {
				return true
			}
			full := imports[id.Name] + "." + sel.Sel.Name
			for _, b := range bans {
				if b.name == full && !excepted(file, b.except) {
					t.Errorf("%s: %s is banned: %s", fset.Position(n.Pos()), b.name, b.reason)
				}
			}
			return true
		})
	}
}

func excepted(file string, prefixes []string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(file, p) {
			return true
		}
	}
	return false
}
