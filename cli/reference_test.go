package cli

import (
	"flag"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write ../doc/cli.md")

// TestReference keeps doc/cli.md equal to what --help prints: `go test ./cli -run TestReference -update` writes it.
func TestReference(t *testing.T) {
	var b strings.Builder
	b.WriteString("# The command line\n\nThis page is what `onggi COMMAND --help` prints; a test keeps it so " +
		"(`go test ./cli -run TestReference -update` writes it).\n")
	page := func(args ...string) {
		out, stderr, code := call(t, append(args, "--help")...)
		if code != 0 || stderr != "" {
			t.Fatalf("%q --help: exit code %d, %s", args, code, stderr)
		}
		if len(args) > 0 { // the same on every page
			before, after, _ := strings.Cut(out, "\nGlobal flags:\n")
			_, after, _ = strings.Cut(after, "\n\n")
			out = before + "\n" + after
		}
		b.WriteString("\n## " + strings.Join(append([]string{"onggi"}, args...), " ") + "\n\n```\n" + strings.TrimSpace(out) + "\n```\n")
	}
	page()
	for _, c := range commands() {
		if c.group != "" {
			page(c.name)
		}
		for _, s := range new(app).command(c).Commands() {
			page(c.name, s.Name())
			for _, t := range s.Commands() {
				page(c.name, s.Name(), t.Name())
			}
		}
	}
	const name = "../doc/cli.md"
	if *update {
		if err := os.WriteFile(name, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != b.String() {
		t.Errorf("%s is not what --help prints: go test ./cli -run TestReference -update", name)
	}
}
