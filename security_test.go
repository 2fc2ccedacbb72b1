package onggi

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestSecurityDocument: every class of doc/security.md names a test, and every test that it names exists.
func TestSecurityDocument(t *testing.T) {
	b, err := os.ReadFile("doc/security.md")
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]map[string]bool{} // by directory
	in := func(dir string) map[string]bool {
		if tests[dir] != nil {
			return tests[dir]
		}
		tests[dir] = map[string]bool{}
		files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			tree, err := parser.ParseFile(token.NewFileSet(), f, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range tree.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
					tests[dir][fn.Name.Name] = true
				}
			}
		}
		return tests[dir]
	}
	name := regexp.MustCompile("`(?:([a-z/]+)\\.)?(Test[A-Za-z0-9]+)`")
	classes := 0
	for line := range strings.Lines(string(b)) {
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| class |") {
			continue
		}
		classes++
		class := strings.TrimSpace(strings.Split(line, "|")[1])
		named := name.FindAllStringSubmatch(line, -1)
		if len(named) == 0 {
			t.Errorf("the class %q names no test", class)
		}
		for _, m := range named {
			dir := m[1]
			if dir == "" {
				dir = "."
			}
			if !in(dir)[m[2]] {
				t.Errorf("the class %q names %s in %s, which does not exist", class, m[2], dir)
			}
		}
	}
	if classes < 12 {
		t.Errorf("only %d classes were found: has the table changed its form?", classes)
	}
}
