package cli

import (
	"fmt"
	"strings"

	"github.com/onggi/onggi/image"
	"github.com/onggi/onggi/registry"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

func buildCheck(a *app, c *cobra.Command) {
	var (
		repair    bool
		format    string
		plainHTTP []string
	)
	c.Use = "check [FLAGS]"
	c.Long = `Read the whole store: hash every blob that an image needs, unpack every layer once more from its blob and compare it with
the tree that containers run on, file by file, and look at the containers' records. What is broken is named; --repair fetches
or unpacks that again, and nothing else, and removes what belongs to nobody. Layers that a container runs on are not replaced.
The exit code is 1 when something is broken and not repaired. It takes as much time as unpacking all images, and room for the
largest layer.`
	c.Example = `  onggi system check
  onggi system check --repair
  onggi system check --format json`
	f := c.Flags()
	f.BoolVar(&repair, "repair", false, "fetch or unpack again what is broken, remove what belongs to nobody")
	f.StringVar(&format, "format", "", "print as `format`: json, or a Go template such as '{{len .Problems}}'")
	f.StringArrayVar(&plainHTTP, "plain-http", nil, "speak plain HTTP with the registry `host[:port]`")
	c.Args = takes(0, 0, "no arguments")
	c.RunE = func(c *cobra.Command, args []string) error {
		out, err := newFormat(format, c.Flags().Changed("format"))
		if err != nil {
			return err
		}
		e, err := a.open()
		if err != nil {
			return err
		}
		ctx, cancel := a.context(c.Context())
		defer cancel()
		o := image.CheckOptions{Repair: repair}
		if repair {
			o.Registry = registry.New(a.registryOptions(plainHTTP))
			defer o.Registry.Close()
		}
		tty := term.IsTerminal(int(a.err.Fd()))
		if tty {
			o.Progress = func(what string, n, total int) { fmt.Fprintf(a.err, "\r\x1b[Kchecking %s (%d of %d)", what, n, total) }
		}
		r, err := e.Check(ctx, o)
		if tty {
			fmt.Fprint(a.err, "\r\x1b[K")
		}
		if err != nil {
			return err
		}
		if r.Problems == nil {
			r.Problems = []image.Problem{}
		}
		if err := a.printOne(out, r, func() string { return reportText(r, e.Root()) }); err != nil {
			return err
		}
		for _, p := range r.Problems {
			if !p.Repaired {
				return &exit{code: 1}
			}
		}
		return nil
	}
}

func reportText(r *image.Report, root string) string {
	var b strings.Builder
	broken := 0
	for _, p := range r.Problems {
		state := "broken"
		if p.Repaired {
			state = "repaired"
		} else {
			broken++
		}
		fmt.Fprintf(&b, "%s: %s %s: %s\n", state, p.What, p.Digest, printable(p.Why))
		if len(p.Images) > 0 {
			fmt.Fprintf(&b, "  of: %s\n", strings.Join(p.Images, ", "))
		}
		if p.Fix != "" {
			fmt.Fprintf(&b, "  fix: %s\n", p.Fix)
		}
	}
	fmt.Fprintf(&b, "Checked %d images: %d blobs with %s, %d layers", r.Images, r.Blobs, humanSize(r.Bytes, 4), r.Layers)
	if r.Unproven > 0 {
		fmt.Fprintf(&b, " (%d of them without a blob to compare with)", r.Unproven)
	}
	fmt.Fprintf(&b, ". %d broken, %d repaired.\nStore: %s\n", broken, len(r.Problems)-broken, root)
	return b.String()
}
