package cli

import (
	"fmt"
	"strings"

	"github.com/onggi/onggi/engine"
	"github.com/spf13/cobra"
)

func buildDoctor(a *app, c *cobra.Command) {
	var (
		fix    bool
		format string
	)
	c.Use = "doctor [FLAGS]"
	c.Long = `Look at the host (kernel, control groups, overlayfs, nftables, other firewalls, user namespaces, limits, clock, space and
inodes, resolver) and at what this store has left behind (containers half made or half removed, monitors, mounts, control
groups, addresses, volumes, files, broken records). Each finding says what follows from it and what to do; --fix does it where
nothing of a container, a volume or an image can be lost. The exit code is 1 when something is found and not fixed.

It does not read images and layers: onggi system check does.`
	c.Example = `  onggi doctor
  onggi doctor --fix
  onggi doctor --format json
  onggi --root /srv/other doctor                another store`
	c.Flags().BoolVar(&fix, "fix", false, "put right what can be put right")
	c.Flags().StringVar(&format, "format", "", "print as `format`: json, or a Go template such as '{{len .Findings}}'")
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
		d, err := e.Doctor(ctx, fix)
		if err != nil {
			return err
		}
		if err := a.printOne(out, d, func() string { return diagnosis(d) }); err != nil {
			return err
		}
		for _, f := range d.Findings {
			if !f.Fixed {
				return &exit{code: 1}
			}
		}
		return nil
	}
}

// diagnosis is what `doctor` prints.
func diagnosis(d *engine.Diagnosis) string {
	var b strings.Builder
	fixed, can := 0, 0
	for _, f := range d.Findings {
		state := "found"
		switch {
		case f.Fixed:
			state = "fixed"
			fixed++
		case f.Automatic:
			can++
		}
		fmt.Fprintf(&b, "%s: %s: %s\n", state, printable(f.What), printable(f.Why))
		if f.Failed != "" {
			fmt.Fprintf(&b, "  not fixed: %s\n", printable(f.Failed))
		}
		if f.Fix != "" && !f.Fixed {
			fmt.Fprintf(&b, "  fix: %s\n", printable(f.Fix))
		}
	}
	fmt.Fprintf(&b, "Store %s, run root %s: %d checks, %d findings", d.Root, d.RunRoot, len(d.Checks), len(d.Findings))
	if fixed > 0 {
		fmt.Fprintf(&b, ", %d fixed", fixed)
	}
	b.WriteString(".\n")
	if can > 0 {
		fmt.Fprintf(&b, "onggi doctor --fix puts %d of them right.\n", can)
	}
	return b.String()
}
