package cli

import (
	"io"

	"github.com/onggi/onggi/errdefs"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

func buildExport(a *app, c *cobra.Command) {
	var output string
	c.Use = "export [FLAGS] CONTAINER"
	c.Long = `Write a container's root file system as a tar archive to stdout or to a file: its image with what it has changed, without
volumes. "onggi import" makes an image of it, of one layer and without the configuration; "onggi commit" keeps both.`
	c.Example = `  onggi export web > web.tar
  onggi export -o web.tar web
  onggi export web | onggi import - flat:1`
	c.Flags().StringVarP(&output, "output", "o", "", "write to a `file` (default stdout)")
	c.Args = takes(1, 1, "a container")
	c.RunE = func(c *cobra.Command, args []string) error {
		if c.Flags().Changed("output") && output == "" {
			return reading("--output", "", errorText("the value is empty"))
		}
		e, err := a.open()
		if err != nil {
			return err
		}
		ctx, cancel := a.context(c.Context())
		defer cancel()
		if output == "" {
			if term.IsTerminal(int(a.out.Fd())) {
				return &errdefs.Error{Op: "export", Kind: errdefs.InvalidArgument, Why: "an archive would be written to the terminal", Fix: "name a file with -o, or redirect stdout"}
			}
			return e.Export(ctx, args[0], a.out)
		}
		return writeWhole(output, func(w io.Writer) error { return e.Export(ctx, args[0], w) })
	}
}
