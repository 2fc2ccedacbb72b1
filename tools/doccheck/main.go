// Doccheck fails on an exported identifier without a doc comment and on a package without a package comment.
//
//	go run ./tools/doccheck ./...
package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

func main() {
	bad := 0
	complain := func(f *token.FileSet, pos token.Pos, format string, args ...any) {
		bad++
		fmt.Printf("%s: %s\n", f.Position(pos), fmt.Sprintf(format, args...))
	}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case !d.IsDir():
			return nil
		case strings.HasPrefix(d.Name(), ".") && path != ".", d.Name() == "testdata", d.Name() == "bin":
			return filepath.SkipDir
		}
		checkDir(path, complain)
		return nil
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "doccheck:", err)
		os.Exit(2)
	}
	if bad > 0 {
		fmt.Printf("doccheck: %d without a comment\n", bad)
		os.Exit(1)
	}
}

func checkDir(dir string, complain func(*token.FileSet, token.Pos, string, ...any)) {
	names, _ := filepath.Glob(filepath.Join(dir, "*.go"))
	fset := token.NewFileSet()
	documented, name := false, ""
	var first token.Pos
	for _, n := range names {
		if strings.HasSuffix(n, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, n, nil, parser.ParseComments)
		if err != nil {
			complain(fset, token.NoPos, "%v", err)
			continue
		}
		if name, first = f.Name.Name, f.Package; f.Doc != nil {
			documented = true
		}
		for _, d := range f.Decls {
			checkDecl(fset, d, complain)
		}
	}
	if name != "" && !documented {
		complain(fset, first, "package %s has no package comment", name)
	}
}

func checkDecl(fset *token.FileSet, d ast.Decl, complain func(*token.FileSet, token.Pos, string, ...any)) {
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Name.IsExported() && d.Doc == nil && exportedReceiver(d) && !wellKnown[d.Name.Name] {
			complain(fset, d.Pos(), "func %s has no comment", d.Name.Name)
		}
	case *ast.GenDecl:
		for _, s := range d.Specs {
			switch s := s.(type) {
			case *ast.TypeSpec:
				if s.Name.IsExported() && d.Doc == nil && s.Doc == nil {
					complain(fset, s.Pos(), "type %s has no comment", s.Name.Name)
				}
			case *ast.ValueSpec:
				// One comment above a group speaks for the group.
				if s.Names[0].IsExported() && d.Doc == nil && s.Doc == nil && s.Comment == nil {
					complain(fset, s.Pos(), "%s has no comment", s.Names[0].Name)
				}
			}
		}
	}
}

// wellKnown methods say what they do by the interface that they fulfil.
var wellKnown = map[string]bool{"Error": true, "Unwrap": true, "Is": true, "Len": true, "Less": true, "Swap": true}

func exportedReceiver(d *ast.FuncDecl) bool {
	if d.Recv == nil {
		return true
	}
	t := d.Recv.List[0].Type
	if s, ok := t.(*ast.StarExpr); ok {
		t = s.X
	}
	if g, ok := t.(*ast.IndexExpr); ok {
		t = g.X
	}
	id, ok := t.(*ast.Ident)
	return ok && id.IsExported()
}
