package cli

import (
	"fmt"
	"strings"

	"github.com/onggi/onggi/archive"
	"github.com/onggi/onggi/engine"
	"github.com/spf13/cobra"
)

const jsonUsage = "print as `format`: json, or a Go template"

func buildLayers(a *app, c *cobra.Command) {
	var (
		format  string
		noTrunc bool
	)
	c.Use = "layers [FLAGS] IMAGE"
	c.Long = `Draw an image as the stack that it is, topmost layer first: the writable layer of each container that stands on it, then for
each instruction the layer that it made, with its size, its entries, and which other images share it.`
	c.Example = `  onggi image layers nginx
  onggi image layers --no-trunc nginx
  onggi image layers --format json nginx`
	c.Flags().StringVar(&format, "format", "", jsonUsage)
	c.Flags().BoolVar(&noTrunc, "no-trunc", false, "print whole instructions and ids")
	c.Args = takes(1, 1, "the name or id of an image")
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
		st, err := e.Layers(ctx, args[0])
		if err != nil {
			return err
		}
		return a.printOne(out, st, func() string { return drawStack(st, noTrunc) })
	}
}

// drawStack draws the stack, one box above the other.
func drawStack(st *engine.Stack, noTrunc bool) string {
	const width = 48
	cut := func(s string) string {
		s = printable(strings.Join(strings.Fields(s), " "))
		s = strings.TrimPrefix(strings.TrimPrefix(s, "/bin/sh -c #(nop) "), "/bin/sh -c ")
		if r := []rune(s); !noTrunc && len(r) > width {
			s = string(r[:width-1]) + "…"
		}
		return s
	}
	id := func(s string) string {
		if noTrunc {
			return s
		}
		return shortID(s)
	}
	var rows [][3]string // left, text, right; an empty one is a border
	for _, w := range st.Writable {
		rows = append(rows, [3]string{id(w.ID), cut("container " + w.Name + " (" + string(w.Status) + ")"), fmt.Sprintf("writable   %8s  %d changes", humanSize(w.Disk, 3), w.Changes)})
	}
	if len(st.Writable) > 0 {
		rows = append(rows, [3]string{})
	}
	for _, l := range st.Layers {
		text := cut(l.CreatedBy)
		if text == "" {
			text = cut(l.Comment)
		}
		if text == "" {
			text = "(the image does not say)"
		}
		if l.DiffID == "" {
			rows = append(rows, [3]string{"", text, "no layer"})
			continue
		}
		right := fmt.Sprintf("read-only  %8s  %d entries", humanSize(l.Size, 3), l.Entries)
		if n := len(l.Shared); n > 0 {
			right += fmt.Sprintf(", shared with %s", printable(l.Shared[0]))
			if n > 1 {
				right += fmt.Sprintf(" and %d more", n-1)
			}
		}
		rows = append(rows, [3]string{id(l.DiffID.String()), text, right})
	}
	var wide [3]int
	for _, r := range rows {
		for i := range r {
			wide[i] = max(wide[i], len([]rune(r[i])))
		}
	}
	pad := func(s string, n int) string { return s + strings.Repeat(" ", n-len([]rune(s))) }
	line := func(left, mid, right string) string {
		return left + strings.Repeat("─", wide[0]+2) + mid + strings.Repeat("─", wide[1]+2) + mid + strings.Repeat("─", wide[2]+2) + right + "\n"
	}
	var b strings.Builder
	names := strings.Join(st.Names, ", ")
	if names == "" {
		names = "<none>"
	}
	fmt.Fprintf(&b, "%s  %s\n", names, id(st.ID.String()))
	b.WriteString(line("┌", "┬", "┐"))
	for _, r := range rows {
		if r == [3]string{} {
			b.WriteString(line("╞", "╪", "╡"))
			continue
		}
		fmt.Fprintf(&b, "│ %s │ %s │ %s │\n", pad(r[0], wide[0]), pad(r[1], wide[1]), pad(r[2], wide[2]))
	}
	b.WriteString(line("└", "┴", "┘"))
	return b.String()
}

func buildImageDiff(a *app, c *cobra.Command) {
	var format string
	c.Use = "diff [FLAGS] IMAGE IMAGE"
	c.Long = `List what the second image has otherwise than the first: A added, C changed, D deleted. Files that lie in a layer of both are
not read; others of equal size and time are compared byte by byte.`
	c.Example = `  onggi image diff debian:12 debian:13
  onggi image diff app:1 app:2 --format '{{.Path}}'`
	c.Flags().StringVar(&format, "format", "", jsonUsage+" such as '{{.Kind}} {{.Path}}'")
	c.Args = takes(2, 2, "the names or ids of two images")
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
		var rows []changeRow
		err = e.ImageChanges(ctx, args[0], args[1], func(c archive.Change) error {
			rows = append(rows, changeRow{string(rune(c.Kind)), c.Path})
			return nil
		})
		if err != nil {
			return err
		}
		return a.printChanges(out, c.Flags().Changed("format"), rows)
	}
}

// printChanges prints the lines of both diffs.
func (a *app) printChanges(out format, formatted bool, rows []changeRow) error {
	if formatted {
		return writeRows(a, out, rows, []column[changeRow]{
			{"KIND", func(r changeRow) string { return r.Kind }}, {"PATH", func(r changeRow) string { return r.Path }},
		})
	}
	var b strings.Builder
	for _, r := range rows {
		fmt.Fprintf(&b, "%s %s\n", r.Kind, printable(r.Path))
	}
	return a.print(b.String())
}

func buildImageTree(a *app, c *cobra.Command) {
	var format string
	c.Use = "tree [FLAGS]"
	c.Long = `Draw all images as a tree of the layers that they share: what stands on the same layers hangs on the same branch, so that the
size of each branch is on the disk once.`
	c.Example = `  onggi image tree`
	c.Flags().StringVar(&format, "format", "", jsonUsage)
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
		t, err := e.ImageTree(ctx)
		if err != nil {
			return err
		}
		return a.printOne(out, t, func() string {
			var b strings.Builder
			for _, n := range t.Images {
				fmt.Fprintf(&b, "no layers: %s\n", n)
			}
			drawBranches(&b, t.Branches, "")
			return b.String()
		})
	}
}

func drawBranches(b *strings.Builder, list []*engine.Tree, indent string) {
	for i, t := range list {
		mark, below := "├─ ", "│  "
		if i == len(list)-1 {
			mark, below = "└─ ", "   "
		}
		layers := shortID(t.Layers[len(t.Layers)-1].String())
		if n := len(t.Layers); n > 1 {
			layers += fmt.Sprintf(" (%d layers)", n)
		}
		line := indent + mark + layers + " " + humanSize(t.Size, 3)
		if len(t.Images) > 0 {
			line += "  " + strings.Join(t.Images, ", ")
		}
		b.WriteString(line + "\n")
		drawBranches(b, t.Branches, indent+below)
	}
}

// wasteRow is a line of `image waste`.
type wasteRow struct {
	Kind, Size, Files, Layer, By, Path string
}

func buildWaste(a *app, c *cobra.Command) {
	var (
		format string
		all    bool
	)
	c.Use = "waste [FLAGS] IMAGE"
	c.Long = `Report what an image holds in vain, the largest first: files that a later layer overwrites or deletes, files that a later layer
holds once more because their owner, mode or time was changed ("copied"), and what looks like a secret: private keys and
password files, also those that a later layer deletes, and variables with telling names. Layers are counted from the bottom.`
	c.Example = `  onggi image waste app:1
  onggi image waste --all --format '{{.Size}} {{.Path}}' app:1`
	c.Flags().BoolVarP(&all, "all", "a", false, "print all, not the 30 largest only")
	c.Flags().StringVar(&format, "format", "", jsonUsage+" such as '{{.Kind}} {{.Path}}'")
	c.Args = takes(1, 1, "the name or id of an image")
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
		r, err := e.Waste(ctx, args[0])
		if err != nil {
			return err
		}
		var rows []wasteRow
		for _, w := range r.Waste {
			rows = append(rows, wasteRow{w.Kind, humanSize(w.Size, 3), fmt.Sprint(w.Files), fmt.Sprint(w.Layer + 1), fmt.Sprint(w.By + 1), w.Path})
		}
		if c.Flags().Changed("format") {
			return writeRows(a, out, rows, wasteColumns())
		}
		var b strings.Builder
		const few = 30
		more := 0
		if !all && len(rows) > few {
			var keep []wasteRow
			for i, w := range rows {
				if i < few || w.Kind == "secret" {
					keep = append(keep, w)
				}
			}
			more = len(rows) - len(keep)
			rows = keep
		}
		if len(rows) > 0 {
			b.WriteString(table(rows, wasteColumns()))
		}
		if more > 0 {
			fmt.Fprintf(&b, "... and %d more: --all\n", more)
		}
		for _, s := range r.Secrets {
			fmt.Fprintf(&b, "secret?    %s\n", printable(s))
		}
		percent := int64(0)
		if r.Size > 0 {
			percent = r.Wasted * 100 / r.Size
		}
		fmt.Fprintf(&b, "Wasted: %s of %s (%d%%)\n", humanSize(r.Wasted, 3), humanSize(r.Size, 3), percent)
		return a.print(b.String())
	}
}

func wasteColumns() []column[wasteRow] {
	return []column[wasteRow]{
		{"WASTE", func(r wasteRow) string { return r.Kind }},
		{"SIZE", func(r wasteRow) string { return r.Size }},
		{"FILES", func(r wasteRow) string { return r.Files }},
		{"IN LAYER", func(r wasteRow) string { return r.Layer }},
		{"BY LAYER", func(r wasteRow) string { return r.By }},
		{"PATH", func(r wasteRow) string { return r.Path }},
	}
}
