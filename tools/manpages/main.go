// Manpages writes the manual pages of all commands of onggi into a directory: onggi.1, onggi-run.1, onggi-system-df.1.
// They are made of the same texts as --help, so that they cannot disagree with it.
//
//	go run ./tools/manpages -o DIR
package main

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/onggi/onggi/cli"
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

func main() {
	dir := flag.String("o", "bin/man", "the `directory` to write to")
	flag.Parse()
	if err := write(*dir); err != nil {
		fmt.Fprintln(os.Stderr, "manpages:", err)
		os.Exit(1)
	}
}

func write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root := cli.Tree(cli.Options{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr})
	root.DisableAutoGenTag = true // the same commit makes the same pages
	plain(root)
	made := time.Unix(0, 0).UTC()
	return doc.GenManTree(root, &doc.GenManHeader{Section: "1", Source: "Onggi", Manual: "Onggi", Date: &made}, dir)
}

// plain prepares the texts for the markdown that they are taken for: what is indented in them is a table.
func plain(c *cobra.Command) {
	for _, sub := range c.Commands() {
		plain(sub)
	}
	c.DisableAutoGenTag = true
	var b strings.Builder
	table := false
	for line := range strings.Lines(c.Long) {
		if indented := strings.HasPrefix(line, "  "); indented != table && strings.TrimSpace(line) != "" {
			if table = indented; table {
				b.WriteString("\n")
			}
		}
		if table && strings.TrimSpace(line) != "" {
			b.WriteString("    ") // with the two that are there: literal
		}
		b.WriteString(line)
	}
	c.Long = b.String()
}
