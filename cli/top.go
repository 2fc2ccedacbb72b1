package cli

import (
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

func buildTop(a *app, c *cobra.Command) {
	c.Use = "top CONTAINER [PS OPTION...]"
	c.Long = `List the processes of a running container with the host's process ids. The columns are those of ps -ef. Other options are
given to the host's ps as they are; its output needs a column PID, and what is not the container's is left out.`
	c.Example = `  onggi top web
  onggi top web -o pid,rss,nlwp,args`
	c.Flags().SetInterspersed(false)
	c.Args = takes(1, -1, "a container, and options of ps")
	c.RunE = func(c *cobra.Command, args []string) error {
		e, err := a.open()
		if err != nil {
			return err
		}
		ctx, cancel := a.context(c.Context())
		defer cancel()
		p, err := e.Top(ctx, args[0], args[1:])
		if err != nil {
			return err
		}
		var b strings.Builder
		w := tabwriter.NewWriter(&b, 20, 1, 3, ' ', 0)
		for _, row := range append([][]string{p.Titles}, p.Rows...) {
			line := make([]string, len(row))
			for i, s := range row {
				line[i] = printable(s)
			}
			_, _ = w.Write([]byte(strings.Join(line, "\t") + "\n"))
		}
		_ = w.Flush()
		return a.print(b.String())
	}
}
