package main

import (
	"os"
	"strconv"
	"strings"
)

// flags is a parser for the syntax that runc's users and engines know: -name and --name are the same, a value follows
// "=" or is the next argument, and flags end at "--".
type flags struct {
	of   string // the command whose help --help prints; "" for the program's own
	list []flag
}

type flag struct {
	names []string
	value string // what the help calls its value; "" for one that is given or not
	help  string // "" keeps it out of the help: what only old engines give
	set   func(string) error
}

// helpAsked is what parse returns for --help, once the help is printed.
type helpAsked struct{}

func (helpAsked) Error() string { return "help" }

func (f *flags) add(value, help string, names []string, set func(string) error) {
	f.list = append(f.list, flag{names: names, value: value, help: help, set: set})
}

func (f *flags) str(p *string, value, help string, names ...string) {
	f.add(value, help, names, func(s string) error { *p = s; return nil })
}

func (f *flags) strs(p *[]string, value, help string, names ...string) {
	f.add(value, help, names, func(s string) error { *p = append(*p, s); return nil })
}

func (f *flags) int(p *int, value, help string, names ...string) {
	f.add(value, help, names, func(s string) error {
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 {
			return f.bad("--"+names[0], strconv.Quote(s)+" is not a number")
		}
		*p = n
		return nil
	})
}

func (f *flags) bool(p *bool, help string, names ...string) {
	f.add("", help, names, func(s string) error {
		v, err := strconv.ParseBool(s)
		if err != nil {
			return f.bad("--"+names[0], strconv.Quote(s)+" is not true or false")
		}
		*p = v
		return nil
	})
}

// bad is the error of a wrong use of the command.
func (f *flags) bad(what, why string) error { return usageOf(f.of, what, why) }

// parse returns what is not a flag. With anywhere, flags may follow arguments. --help prints the help of the command.
func (f *flags) parse(args []string, anywhere bool) (rest []string, err error) {
	for i := 0; i < len(args); i++ {
		a := args[i]
		if a == "--" {
			return append(rest, args[i+1:]...), nil
		}
		if len(a) < 2 || a[0] != '-' {
			if !anywhere {
				return append(rest, args[i:]...), nil
			}
			rest = append(rest, a)
			continue
		}
		name, value, given := strings.Cut(strings.TrimPrefix(a[1:], "-"), "=")
		found := f.find(name)
		switch {
		case found == nil && (name == "help" || name == "h"):
			printHelp(f)
			return nil, helpAsked{}
		case found == nil:
			return nil, f.bad(a, "there is no such flag")
		case found.value != "" && !given:
			if i++; i == len(args) {
				return nil, f.bad(a, "its value is missing")
			}
			value = args[i]
		case found.value == "" && !given:
			value = "true"
		}
		if err := found.set(value); err != nil {
			return nil, err
		}
	}
	return rest, nil
}

func (f *flags) find(name string) *flag {
	for i := range f.list {
		for _, n := range f.list[i].names {
			if n == name {
				return &f.list[i]
			}
		}
	}
	return nil
}

// one returns the only argument, a container's id.
func (f *flags) one(rest []string) (string, error) {
	if len(rest) != 1 {
		return "", f.bad("", "exactly one container id is needed")
	}
	return rest[0], nil
}

// onHelp takes the place of printHelp while the manual page is made.
var onHelp func(*flags)

// printHelp writes the help of a command: what it does, its flags, examples.
func printHelp(f *flags) {
	if onHelp != nil {
		onHelp(f)
		return
	}
	var b strings.Builder
	title, example := "\nFlags\n", ""
	if f.of == "" {
		b.WriteString(programHelp())
		title = "\nGlobal flags\n"
	}
	for i := range manual {
		if m := &manual[i]; m.name == f.of {
			b.WriteString("onggi-runtime " + m.name + ": " + m.summary + "\n\nUsage: onggi-runtime [global flags] " + m.name)
			if m.args != "" {
				b.WriteString(" " + m.args)
			}
			b.WriteString("\n\n" + m.text)
			example = m.examples
		}
	}
	for i := range f.list {
		g := &f.list[i]
		if g.help == "" {
			continue
		}
		b.WriteString(title)
		title = ""
		head := "  "
		for j, n := range g.names {
			if j > 0 {
				head += ", "
			}
			if head += "-" + n; len(n) > 1 {
				head = head[:len(head)-len(n)] + "-" + n
			}
		}
		if g.value != "" {
			head += " " + g.value
		}
		b.WriteString(head)
		column := len(head)
		for _, w := range strings.Fields(g.help) {
			if column+1+len(w) > 100 || column == len(head) && column > 30 {
				b.WriteString("\n" + strings.Repeat(" ", 32))
				column = 32
			} else if column == len(head) {
				b.WriteString(strings.Repeat(" ", 32-column))
				column = 32
			} else {
				b.WriteByte(' ')
				column++
			}
			b.WriteString(w)
			column += len(w)
		}
		b.WriteByte('\n')
	}
	if example != "" {
		b.WriteString("\nExamples\n" + example)
	}
	_, _ = os.Stdout.WriteString(b.String())
}
