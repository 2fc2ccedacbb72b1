package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/onggi/onggi/build"
	"github.com/onggi/onggi/build/history"
	"github.com/spf13/cobra"
)

func builderCommands() []command {
	return []command{
		{"prune", "Forget build steps that were not used for long", groupHost, buildBuilderPrune},
	}
}

func buildBuilderPrune(a *app, c *cobra.Command) {
	var (
		all, force bool
		keep       string
		until      string
	)
	c.Use = "prune [FLAGS]"
	c.Long = `Forget the steps of builds that were not used for longest, and remove the layers that only they need, until the build cache
takes no more than --keep-storage. A later build performs again what it needs of them. Cache mounts stay, but with --all.
The file systems of failed steps, which "onggi build debug" enters, go too.`
	c.Example = `  onggi builder prune -f
  onggi builder prune -f --keep-storage 10gb
  onggi builder prune -f --until 24h --all`
	f := c.Flags()
	f.BoolVarP(&all, "all", "a", false, "also what RUN --mount=type=cache has kept")
	f.StringVar(&keep, "keep-storage", "", "stop when the cache takes this `size`")
	f.StringVar(&until, "until", "", "only what was not used for this `duration`")
	f.BoolVarP(&force, "force", "f", false, "do not ask")
	c.Args = takes(0, 0, "no arguments")
	c.RunE = func(c *cobra.Command, _ []string) error {
		var limit int64
		if keep != "" {
			var err error
			if limit, err = parseSize(keep); err != nil {
				return reading("--keep-storage", keep, err)
			}
		}
		since := time.Now()
		if until != "" {
			d, err := time.ParseDuration(until)
			if err != nil || d < 0 {
				return badFlag("--until", until, "it is not a duration", "write 24h")
			}
			since = since.Add(-d)
		}
		e, err := a.open()
		if err != nil {
			return err
		}
		if !force {
			if err := a.confirm("Forget build steps and remove their layers? [y/N] "); err != nil {
				return err
			}
		}
		ctx, cancel := a.context(c.Context())
		defer cancel()
		if _, err := e.SweepBuilds(ctx); err != nil {
			return err
		}
		if _, err := build.ReleaseAll(ctx, e, since, history.MaxBuilds); err != nil {
			return err
		}
		gone, bytes, err := e.PruneBuilds(ctx, limit, since, all)
		if err != nil {
			return err
		}
		var b strings.Builder
		for _, r := range gone {
			fmt.Fprintf(&b, "Forgot: %s\n", printable(r.Name))
		}
		fmt.Fprintf(&b, "Total reclaimed space: %s\n", humanSize(bytes, 4))
		return a.print(b.String())
	}
}
