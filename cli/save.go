package cli

import (
	"os"
	"strings"

	"github.com/onggi/onggi/engine"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/image"
	"github.com/onggi/onggi/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

func buildSave(a *app, c *cobra.Command) {
	var output, format, platform, compression string
	c.Use = "save [FLAGS] IMAGE [IMAGE...]"
	c.Long = `Write images as an archive to stdout or a file, or as an OCI layout into a directory (-o oci:DIRECTORY). The archive can be
read by docker load, podman load, skopeo and onggi load. A name without a tag means all tags of its repository. docker-archive
holds one platform of each image, oci-archive all that are here. The same images give the same bytes.`
	c.Example = `  onggi save -o debian.tar debian:12
  onggi save debian:12 nginx | ssh host docker load
  onggi save --format oci-archive --compression zstd -o all.tar.zst app:1
  onggi save -o oci:./layout app:1`
	f := c.Flags()
	f.StringVarP(&output, "output", "o", "", "write to a `file`, or to the layout oci:DIRECTORY (default stdout)")
	f.StringVar(&format, "format", "docker-archive", "write the `kind` docker-archive or oci-archive")
	f.StringVar(&platform, "platform", "", "save the image for `os/arch[/variant]` only")
	f.StringVar(&compression, "compression", "", "compress the archive with `algorithm` gzip or zstd (default none)")
	c.Args = takes(1, -1, "the names or ids of images")
	c.RunE = func(c *cobra.Command, args []string) (err error) {
		o := image.SaveOptions{Format: format, Compression: image.Compression{Name: compression}}
		if c.Flags().Changed("platform") {
			if o.Platform, err = parsePlatform(platform); err != nil {
				return reading("--platform", platform, err)
			}
		}
		if c.Flags().Changed("output") && output == "" {
			return reading("--output", "", errorText("the value is empty"))
		}
		e, err := a.open()
		if err != nil {
			return err
		}
		store, err := e.Images()
		if err != nil {
			return err
		}
		ctx, cancel := a.context(c.Context())
		defer cancel()
		if dir, ok := strings.CutPrefix(output, "oci:"); ok {
			if compression != "" {
				return badFlag("--compression", compression, "a layout in a directory is not compressed as a whole", "leave it out")
			}
			return store.SaveLayout(ctx, dir, args, o)
		}
		if output == "" {
			if term.IsTerminal(int(a.out.Fd())) {
				return &errdefs.Error{Op: "save", Kind: errdefs.InvalidArgument, Why: "an archive would be written to the terminal", Fix: "name a file with -o, or redirect stdout"}
			}
			return store.Save(ctx, a.out, args, o)
		}
		// Beside it and then renamed: half an archive is never taken for a whole one.
		temp := output + ".part"
		w, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
		if err != nil {
			return &errdefs.Error{Op: "save", What: output, Kind: errdefs.KindOf(err), Err: err}
		}
		defer os.Remove(temp) // fails after the rename, as it should
		defer w.Close()
		if err := store.Save(ctx, w, args, o); err != nil {
			return err
		}
		if err := w.Close(); err != nil {
			return &errdefs.Error{Op: "save", What: output, Kind: errdefs.KindOf(err), Err: err}
		}
		if err := os.Rename(temp, output); err != nil {
			return &errdefs.Error{Op: "save", What: output, Kind: errdefs.KindOf(err), Err: err}
		}
		return nil
	}
}

func buildCommit(a *app, c *cobra.Command) {
	var (
		o       engine.CommitOptions
		changes []string
	)
	c.Use = "commit [FLAGS] CONTAINER [NAME[:TAG]]"
	c.Long = `Make an image of what a container has otherwise than its image, with the container's configuration, and print its id.
--change sets the configuration, in the words of a Dockerfile: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME,
WORKDIR. What is in volumes is not in the image.`
	c.Example = `  onggi commit web web:fixed
  onggi commit -m "with tools" -c 'CMD ["sh"]' box tools:1`
	f := c.Flags()
	f.StringVarP(&o.Author, "author", "a", "", "`name` of who made it")
	f.StringVarP(&o.Message, "message", "m", "", "`text` for the image's history")
	f.StringArrayVarP(&changes, "change", "c", nil, "set the configuration by a Dockerfile's `instruction`")
	f.BoolVarP(&o.Pause, "pause", "p", true, "let the container's processes stand still meanwhile")
	c.Args = takes(1, 2, "a container, and the new image's name")
	c.RunE = func(c *cobra.Command, args []string) error {
		var scratch ocispec.ImageConfig
		for _, s := range changes {
			if err := parseChange(s, &scratch); err != nil {
				return reading("--change", s, err)
			}
		}
		o.Change = func(cfg *ocispec.ImageConfig) error {
			for _, s := range changes {
				if err := parseChange(s, cfg); err != nil {
					return reading("--change", s, err)
				}
			}
			return nil
		}
		if len(args) == 2 {
			var err error
			if o.Ref, err = reference.Parse(args[1]); err != nil {
				return err
			}
		}
		e, err := a.open()
		if err != nil {
			return err
		}
		ctx, cancel := a.context(c.Context())
		defer cancel()
		img, err := e.Commit(ctx, args[0], o)
		if err != nil {
			return err
		}
		return a.print(img.ID.String() + "\n")
	}
}
