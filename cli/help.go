package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"
)

// help prints a command's manual page: usage, description, flags, examples. Its width follows the terminal, 80
// elsewhere.
func (a *app) help(c *cobra.Command, _ []string) {
	p := a.paint(a.out)
	width := 80
	if w, _, err := term.GetSize(int(a.out.Fd())); err == nil && w > 40 {
		width = min(w, 120)
	}
	var b strings.Builder
	section := func(title string) { fmt.Fprintf(&b, "\n%s\n", p.bold(title)) }

	fmt.Fprintf(&b, "%s %s\n", p.bold("Usage:"), c.UseLine())
	long := c.Long
	if long == "" {
		long = c.Short + "."
	}
	fmt.Fprintf(&b, "\n%s\n", fold(long, width, ""))

	if c.HasParent() {
		own := pflag.NewFlagSet("", pflag.ContinueOnError)
		own.SortFlags = false
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if c.Root().PersistentFlags().Lookup(f.Name) == nil {
				own.AddFlag(f)
			}
		})
		if s := flagTable(own, width); s != "" {
			section("Flags:")
			b.WriteString(s)
		}
		if c.HasSubCommands() {
			section("Commands:")
			for _, sub := range c.Commands() {
				fmt.Fprintf(&b, "  %-10s %s\n", sub.Name(), sub.Short)
			}
		}
	} else {
		for _, group := range []string{groupRun, groupLook, groupImages, groupData, groupHost} {
			section(group + ":")
			for _, sub := range c.Commands() {
				if sub.Annotations["group"] == group {
					fmt.Fprintf(&b, "  %-10s %s\n", sub.Name(), sub.Short)
				}
			}
		}
	}
	section("Global flags:")
	global := pflag.NewFlagSet("", pflag.ContinueOnError)
	global.SortFlags = false
	c.Root().PersistentFlags().VisitAll(global.AddFlag)
	b.WriteString(flagTable(global, width))
	if c.Example != "" {
		section("Examples:")
		b.WriteString(strings.TrimRight(c.Example, "\n") + "\n")
	}
	if !c.HasParent() {
		b.WriteString("\nonggi COMMAND --help tells more about a command.\n")
	}
	_ = a.print(b.String())
}

// flagTable renders flags in two columns, the right one folded to width.
func flagTable(fs *pflag.FlagSet, width int) string {
	type row struct{ left, right string }
	var rows []row
	column := 0
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		value, usage := pflag.UnquoteUsage(f)
		left := "      --" + f.Name
		if f.Shorthand != "" {
			left = "  -" + f.Shorthand + ", --" + f.Name
		}
		if value != "" {
			left += " " + strings.ToUpper(value)
		}
		if d := f.DefValue; d != "" && d != "false" && d != "[]" && d != "0" {
			usage += " (default " + d + ")"
		}
		rows = append(rows, row{left, usage})
		column = max(column, len(left))
	})
	column = min(column, 32) + 2
	var b strings.Builder
	for _, r := range rows {
		indent := strings.Repeat(" ", column)
		text := fold(r.right, width-column, "")
		if len(r.left) >= column {
			fmt.Fprintf(&b, "%s\n%s%s\n", r.left, indent, strings.ReplaceAll(text, "\n", "\n"+indent))
			continue
		}
		fmt.Fprintf(&b, "%-*s%s\n", column, r.left, strings.ReplaceAll(text, "\n", "\n"+indent))
	}
	return b.String()
}

// fold breaks lines at spaces so that none is longer than width; paragraphs and indented lines (examples, tables) keep
// their breaks.
func fold(text string, width int, indent string) string {
	var out []string
	var words []string
	flush := func() {
		line := indent
		for _, w := range words {
			if len(line)+1+len(w) > width && line != indent {
				out = append(out, line)
				line = indent
			}
			if line != indent {
				line += " "
			}
			line += w
		}
		if line != indent {
			out = append(out, line)
		}
		words = nil
	}
	for _, line := range strings.Split(text, "\n") {
		switch {
		case line == "":
			flush()
			out = append(out, "")
		case line[0] == ' ':
			flush()
			out = append(out, indent+line)
		default:
			words = append(words, strings.Fields(line)...)
		}
	}
	flush()
	return strings.Join(out, "\n")
}
