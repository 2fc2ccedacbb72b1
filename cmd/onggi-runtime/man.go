package main

import (
	"os"
	"sort"
	"strings"
)

func init() { more["man"] = manCommand }

// manCommand prints the manual page (man(7)) of the program, made of what --help says: `onggi-runtime man | man -l -`. It is
// for packages (make man), so it is not in the list of commands.
func manCommand(args []string) int {
	if len(args) > 0 {
		return (&globals{}).fail("man", usageOf("", "man", "it takes no argument"))
	}
	var b strings.Builder
	b.WriteString(".TH ONGGI-RUNTIME 8 \"\" \"onggi-runtime " + version + "\" \"System administration\"\n")
	b.WriteString(".SH NAME\nonggi-runtime \\- run containers from OCI bundles\n")
	b.WriteString(".SH SYNOPSIS\n.B onggi-runtime\n[\\fIglobal flags\\fR] \\fICOMMAND\\fR [\\fIflags\\fR] [\\fIarguments\\fR]\n")
	head, tail, _ := strings.Cut(programHelp(), "\nUsage:")
	b.WriteString(".SH DESCRIPTION\n" + roff(head) + "\n")
	collect := func(name string) (f *flags) {
		onHelp = func(g *flags) { f = g }
		defer func() { onHelp = nil }()
		if name == "" {
			run([]string{"--help"})
			return f
		}
		for i := range commands {
			if c := &commands[i]; c.name == name {
				_, _ = c.run(&globals{}, []string{"--help"})
			}
		}
		return f
	}
	options := func(f *flags) {
		if f == nil {
			return
		}
		for i := range f.list {
			g := &f.list[i]
			if g.help == "" {
				continue
			}
			var names []string
			for _, n := range g.names {
				if len(n) > 1 {
					n = "-" + n
				}
				names = append(names, "\\fB"+roff("-"+n)+"\\fR")
			}
			b.WriteString(".TP\n" + strings.Join(names, ", "))
			if g.value != "" {
				b.WriteString(" \\fI" + roff(g.value) + "\\fR")
			}
			b.WriteString("\n" + roff(g.help) + "\n")
		}
	}
	b.WriteString(".SH \"GLOBAL FLAGS\"\n")
	options(collect(""))
	b.WriteString(".SH COMMANDS\n")
	pages := append([]page(nil), manual[:]...)
	sort.Slice(pages, func(i, j int) bool { return pages[i].name < pages[j].name })
	for i := range pages {
		p := &pages[i]
		b.WriteString(".SS \"" + roff(strings.TrimSpace(p.name+" "+p.args)) + "\"\n" + roff(upperFirst(p.summary)) + ".\n.PP\n" + roff(p.text) + "\n")
		options(collect(p.name))
		if p.examples != "" {
			b.WriteString(".PP\nExamples:\n.PP\n.nf\n.RS\n" + roff(p.examples) + "\n.RE\n.fi\n")
		}
	}
	if _, codes, ok := strings.Cut(tail, "\nExit codes: "); ok {
		b.WriteString(".SH \"EXIT STATUS\"\n" + roff(codes) + "\n")
	}
	b.WriteString(`.SH ENVIRONMENT
.TP
\fBXDG_RUNTIME_DIR\fR
where the states of containers are kept when the user is not the host's root, and where the user's service manager is.
.TP
\fBLISTEN_FDS\fR, \fBLISTEN_PID\fR
sockets of a service manager, which create and run hand on to the container.
.TP
\fBNOTIFY_SOCKET\fR
where a service manager waits for word of the service: the container gets a socket of its own, and what it may say is passed on.
.SH FILES
.TP
/run/onggi\-runtime
the states of containers (\fB\-\-root\fR).
.TP
config.json
in the bundle: the runtime specification's configuration.
.SH "SEE ALSO"
.BR onggi (1),
.BR criu (8),
the OCI runtime specification.
`)
	_, _ = os.Stdout.WriteString(b.String())
	return 0
}

// roff escapes text for man(7).
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(strings.TrimRight(s, "\n"))
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") || strings.HasPrefix(l, "'") {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}

func upperFirst(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}
