package cli

import (
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// claim is what doc/compatibility.md says of a command's flag.
type claim struct{ here, why string }

// claims reads docker's table: by command, then by flag; "all" stands for every flag and command below.
func claims(t *testing.T) map[string]map[string]claim {
	t.Helper()
	b, err := os.ReadFile("../doc/compatibility.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(b), "\n## Docker\n")
	text, _, _ = strings.Cut(text, "\n## ")
	out := map[string]map[string]claim{}
	for _, l := range strings.Split(text, "\n") {
		f := strings.Split(l, "|")
		if len(f) != 6 || !strings.Contains(f[1], "`") {
			continue
		}
		command := strings.Trim(f[1], " `")
		c := claim{strings.TrimSpace(f[3]), strings.TrimSpace(f[4])}
		if !slices.Contains([]string{"same", "differs", "refused"}, c.here) || c.here != "same" && c.why == "" {
			t.Errorf("%s: %q, %q: it says neither that it is the same nor how it differs or why it is refused", command, c.here, c.why)
		}
		if out[command] == nil {
			out[command] = map[string]claim{}
		}
		for _, name := range strings.Fields(strings.ReplaceAll(f[2], "`", "")) {
			if old, ok := out[command][name]; ok {
				t.Errorf("%s %s has two rows: %v, %v", command, name, old, c)
			}
			out[command][name] = c
		}
	}
	return out
}

// find returns a command of ours.
func find(path string) *cobra.Command {
	parts := strings.Fields(path)
	for _, c := range commands() {
		if c.name == parts[0] {
			cmd := new(app).command(c)
			for _, p := range parts[1:] {
				i := slices.IndexFunc(cmd.Commands(), func(s *cobra.Command) bool { return s.Name() == p })
				if i < 0 {
					return nil
				}
				cmd = cmd.Commands()[i]
			}
			return cmd
		}
	}
	return nil
}

// TestCompatibility: every command and flag of docker's has a row in doc/compatibility.md, and what the page calls the same,
// or only different, is here.
func TestCompatibility(t *testing.T) {
	page := claims(t)
	for command, list := range page {
		for name, c := range list {
			if !strings.HasPrefix(name, "--") {
				if cmd := find(command); name != "all" && cmd == nil {
					t.Errorf("%s is said to be the same, and is not here", command)
				}
				continue
			}
			cmd := find(command)
			if cmd == nil {
				t.Errorf("%s has a row for %s, and is not here", command, name)
				continue
			}
			f := cmd.Flags().Lookup(name[2:])
			here := f != nil && f.Value.Type() != refusedValue{}.Type()
			if here != (c.here != "refused") {
				t.Errorf("%s %s is said to be %s; is it here? %v", command, name, c.here, here)
			}
		}
	}
	docker, err := exec.LookPath("docker")
	if err != nil {
		t.Skip("no docker command line to compare with")
	}
	help := func(args ...string) string {
		b, _ := exec.Command(docker, append(args, "--help")...).CombinedOutput()
		return string(b)
	}
	covered := func(path []string) bool {
		for i := range path {
			if _, ok := page[strings.Join(path[:i+1], " ")]["all"]; ok {
				return true
			}
		}
		return false
	}
	top := dockerCommands(help())
	var walk func(path ...string)
	walk = func(path ...string) {
		if covered(path) || len(path) == 2 && (path[0] == "container" || path[0] == "image") && slices.Contains(top, path[1]) {
			return
		}
		text := help(path...)
		if subs := dockerCommands(text); len(subs) > 0 {
			for _, s := range subs {
				walk(append(slices.Clone(path), s)...)
			}
			return
		}
		command := strings.Join(path, " ")
		if page[command] == nil {
			t.Errorf("docker %s has no row", command)
			return
		}
		for _, m := range regexp.MustCompile(`(?m)^ {2,8}(?:-[A-Za-z], )? *--([a-z0-9-]+)`).FindAllStringSubmatch(text, -1) {
			if _, ok := page[command]["--"+m[1]]; !ok && m[1] != "help" {
				t.Errorf("docker %s --%s has no row", command, m[1])
			}
		}
	}
	for _, c := range top {
		walk(c)
	}
}

// dockerCommands are the commands that a help text of docker's lists.
func dockerCommands(help string) (names []string) {
	on := false
	for _, l := range strings.Split(help, "\n") {
		switch {
		case strings.HasSuffix(strings.TrimSpace(l), "ommands:"):
			on = true
		case on && len(l) > 3 && l[:2] == "  " && l[2] >= 'a' && l[2] <= 'z':
			names = append(names, strings.TrimRight(strings.Fields(l)[0], "*"))
		case l != "" && l[0] != ' ':
			on = false
		}
	}
	return names
}
