package cli

import (
	"io"
	"os"
	"strings"

	"github.com/onggi/onggi/engine"
	"github.com/onggi/onggi/errdefs"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

func buildVolumeSnapshot(a *app, c *cobra.Command) {
	c.Use = "snapshot VOLUME NEW"
	c.Long = `Make a volume with the content, the labels and the size that another one has now, and print its name. Where the file system
can (xfs, btrfs), the two share their blocks until one changes; elsewhere it is a copy. It is there whole or not at all.

A file that a container writes meanwhile may be in it by half: pause the container first, or ask the program in it for a
state that can be copied.`
	c.Example = `  onggi pause db; onggi volume snapshot data data-monday; onggi unpause db
  onggi volume snapshot data try && onggi run --rm -v try:/srv IMAGE`
	c.Args = takes(2, 2, "a volume and the name of the new one")
	c.RunE = func(c *cobra.Command, args []string) error {
		e, err := a.open()
		if err != nil {
			return err
		}
		ctx, cancel := a.context(c.Context())
		defer cancel()
		users, err := e.SnapshotVolume(ctx, args[0], args[1])
		if err != nil {
			return err
		}
		if len(users) > 0 {
			a.warn("running containers use " + args[0] + " (" + strings.Join(users, ", ") + "): what they wrote meanwhile may be in " + args[1] + " by half")
		}
		return a.print(args[1] + "\n")
	}
}

func buildVolumeExport(a *app, c *cobra.Command) {
	var output string
	c.Use = "export [FLAGS] VOLUME"
	c.Long = `Write the content of a volume as a tar archive to stdout or to a file: owners, modes, times, links, extended attributes and
devices. Sockets, which no archive can hold, are left out.`
	c.Example = `  onggi volume export data > data.tar
  onggi volume export data | ssh other onggi volume import data`
	c.Flags().StringVarP(&output, "output", "o", "", "write to a `file` (default stdout)")
	c.Args = takes(1, 1, "a volume")
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
			return e.ExportVolume(ctx, args[0], a.out)
		}
		return writeWhole(output, func(w io.Writer) error { return e.ExportVolume(ctx, args[0], w) })
	}
}

// writeWhole writes a file beside its place and renames it: half a file is never taken for a whole one. Only its owner may
// read it.
func writeWhole(path string, write func(io.Writer) error) error {
	fail := func(err error) error {
		return &errdefs.Error{Op: "write", What: path, Kind: errdefs.KindOf(err), Err: err}
	}
	temp := path + ".part"
	w, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fail(err)
	}
	defer os.Remove(temp) // fails after the rename, as it should
	defer w.Close()
	if err := write(w); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return fail(err)
	}
	if err := os.Rename(temp, path); err != nil {
		return fail(err)
	}
	return nil
}

func buildVolumeImport(a *app, c *cobra.Command) {
	var labels, opts []string
	c.Use = "import [FLAGS] VOLUME [FILE|-]"
	c.Long = `Make a volume of a tar archive, compressed or not, from a file or from stdin, and print its name. A volume of the name that is
here must be empty. It is there whole or not at all; an entry that would lead out of the volume is refused.`
	c.Example = `  onggi volume import data data.tar
  ssh other onggi volume export data | onggi volume import data`
	f := c.Flags()
	f.StringArrayVar(&labels, "label", nil, "label a new volume with `KEY=VALUE`")
	f.StringArrayVarP(&opts, "opt", "o", nil, "option of a new volume, `KEY=VALUE`: size")
	c.Args = takes(1, 2, "a volume and an archive")
	c.RunE = func(c *cobra.Command, args []string) error {
		o := engine.VolumeOptions{Name: args[0]}
		var err error
		if o.Labels, err = keyValues("--label", labels, true); err != nil {
			return err
		}
		if o.Options, err = keyValues("--opt", opts, false); err != nil {
			return err
		}
		in := a.in
		if len(args) == 2 && args[1] != "-" {
			if in, err = os.Open(args[1]); err != nil {
				return &errdefs.Error{Op: "open", What: args[1], Kind: errdefs.KindOf(err), Err: err}
			}
			defer in.Close()
		} else if term.IsTerminal(int(in.Fd())) {
			return &errdefs.Error{Op: "import", Kind: errdefs.InvalidArgument, Why: "an archive would be read from the terminal", Fix: "name a file, or redirect stdin"}
		}
		e, err := a.open()
		if err != nil {
			return err
		}
		ctx, cancel := a.context(c.Context())
		defer cancel()
		v, err := e.ImportVolume(ctx, o, in)
		if err != nil {
			return err
		}
		return a.print(v.Name + "\n")
	}
}
