package cli

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/onggi/onggi/image"
	"github.com/onggi/onggi/reference"
	"github.com/onggi/onggi/registry"
	"github.com/spf13/cobra"
)

func buildPush(a *app, c *cobra.Command) {
	var (
		quiet, allTags, referrers, force bool
		platform, compression, level     string
		plainHTTP                        []string
	)
	c.Use = "push [FLAGS] NAME[:TAG]"
	c.Long = `Bring an image into the registry that its name says. What the registry has is not sent; what another of its repositories
has is taken over from there; the rest goes at the same time, and goes on where a connection broke. Layers that came from
a registry are pushed as they came, byte for byte. Those that are here as plain tars (of import, commit, docker save) are
compressed once; the image here then has the manifest that was pushed. Pushing the same image twice gives the same digest.

Of a name that has images for several platforms all are pushed, as an index.`
	c.Example = `  onggi tag app 127.0.0.1:5000/team/app:1 && onggi push 127.0.0.1:5000/team/app:1
  onggi push -a registry.example.com/app
  onggi push --compression zstd --compression-level 9 registry.example.com/app`
	f := c.Flags()
	f.BoolVarP(&allTags, "all-tags", "a", false, "push all tags of the repository")
	f.BoolVarP(&quiet, "quiet", "q", false, "print nothing but the image's name")
	f.StringVar(&platform, "platform", "", "push the image for `os/arch[/variant]` only")
	f.StringVar(&compression, "compression", "", "compress plain layers with `algorithm` gzip, zstd or none (default gzip)")
	f.StringVar(&level, "compression-level", "", "compression `level`: gzip 1 to 9 (default 6), zstd 1 to 22 (default 3)")
	f.BoolVar(&force, "force-compression", false, "recompress layers that are compressed already; the digest changes")
	f.BoolVar(&referrers, "with-referrers", false, "push what is here and refers to the image, too: signatures, SBOMs")
	f.StringArrayVar(&plainHTTP, "plain-http", nil, "reach this `registry` (host:port) without TLS")
	c.Args = takes(1, 1, "the name of an image")
	c.RunE = func(c *cobra.Command, args []string) error {
		o := image.PushOptions{Referrers: referrers, Recompress: force, Compression: image.Compression{Name: compression}}
		if c.Flags().Changed("compression") && compression == "" {
			return reading("--compression", "", errorText("the value is empty"))
		}
		if c.Flags().Changed("compression-level") {
			n, err := strconv.Atoi(level)
			if err != nil || n < 1 {
				return badFlag("--compression-level", level, "it is no level", "for example: --compression-level 9")
			}
			o.Compression.Level = n
		}
		if err := o.Compression.Check(); err != nil {
			return &exit{125, err}
		}
		if c.Flags().Changed("platform") {
			var err error
			if o.Platform, err = parsePlatform(platform); err != nil {
				return reading("--platform", platform, err)
			}
		}
		ref, err := reference.Parse(args[0])
		if err != nil {
			return err
		}
		e, err := a.open()
		if err != nil {
			return err
		}
		store, err := e.Images()
		if err != nil {
			return err
		}
		refs := []reference.Reference{ref}
		if allTags {
			if strings.Contains(args[0][strings.LastIndexByte(args[0], '/')+1:], ":") || ref.Digest != "" {
				return badFlag("--all-tags", "true", "the name has a tag, and all are meant", "give the name without a tag")
			}
			if refs, err = store.Tags(ref); err != nil {
				return err
			}
		}
		ctx, cancel := a.context(c.Context())
		defer cancel()
		o.Registry = registry.New(a.registryOptions(plainHTTP))
		defer o.Registry.Close()
		if !quiet {
			fmt.Fprintf(a.out, "The push refers to repository [%s]\n", ref.Repository())
		}
		for _, r := range refs {
			end := func() {}
			if !quiet {
				show := a.progress(a.out)
				o.Progress, end = show.event, show.end
			}
			got, err := store.Push(ctx, r, o)
			end()
			if err != nil {
				return err
			}
			if got.Partial && !quiet {
				a.warn("the image's index lists other platforms, which are neither here nor there: what is here was pushed")
			}
			line := r.String()
			if !quiet {
				line = fmt.Sprintf("%s: digest: %s size: %d", r.Tag, got.Desc.Digest, got.Desc.Size)
				if referrers {
					line += fmt.Sprintf("\n%s: referrers: %d", r.Tag, got.Referrers)
				}
			}
			if err := a.print(line + "\n"); err != nil {
				return err
			}
		}
		return nil
	}
}
