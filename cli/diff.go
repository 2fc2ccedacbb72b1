package cli

import "github.com/spf13/cobra"

// changeRow is a line of `diff`.
type changeRow struct {
	Kind, Path string
}

func buildDiff(a *app, c *cobra.Command) {
	var format string
	c.Use = "diff [FLAGS] CONTAINER"
	c.Long = `List what a container has otherwise than its image: A added, C changed, D deleted. A directory is changed when something in
it is. Volumes and other mounts are not part of it, nor what was made to mount them on in /dev, /proc, /sys and /etc.`
	c.Example = `  onggi diff web
  onggi diff --format '{{.Path}}' web`
	c.Flags().StringVar(&format, "format", "", "print as `format`: json, or a Go template such as '{{.Kind}} {{.Path}}'")
	c.Args = takes(1, 1, "the name or id of a container")
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
		list, err := e.Changes(ctx, args[0])
		if err != nil {
			return err
		}
		rows := make([]changeRow, len(list))
		for i, c := range list {
			rows[i] = changeRow{string(rune(c.Kind)), c.Path}
		}
		return a.printChanges(out, c.Flags().Changed("format"), rows)
	}
}
