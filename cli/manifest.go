package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/image"
	"github.com/onggi/onggi/reference"
	"github.com/onggi/onggi/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
)

// manifestCommands are those of `onggi manifest`.
func manifestCommands() []command {
	return []command{
		{"inspect", "Print a manifest or an index", groupImages, buildManifestInspect},
		{"create", "Make a list of images for several platforms", groupImages, buildManifestCreate},
		{"annotate", "Say what platform an image of a list is for", groupImages, buildManifestAnnotate},
		{"push", "Push a list", groupImages, buildManifestPush},
		{"rm", "Remove lists", groupImages, buildManifestRm},
	}
}

// withRegistry gives a command the image store and a client.
func (a *app) withRegistry(c *cobra.Command, plainHTTP []string, f func(context.Context, *image.Store, *registry.Client) error) error {
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
	r := registry.New(a.registryOptions(plainHTTP))
	defer r.Close()
	return f(ctx, store, r)
}

func parseRefs(names []string) ([]reference.Reference, error) {
	var refs []reference.Reference
	for _, n := range names {
		ref, err := reference.Parse(n)
		if err != nil {
			return nil, err
		}
		refs = append(refs, ref)
	}
	return refs, nil
}

func buildManifestInspect(a *app, c *cobra.Command) {
	var (
		verbose   bool
		plainHTTP []string
	)
	c.Use = "inspect [FLAGS] NAME"
	c.Long = `Print the manifest or the index that a name has in its registry, or the list of that name that is being made here. With
--verbose its digest, size and type too, and those of an index's images.`
	c.Example = `  onggi manifest inspect debian:12
  onggi manifest inspect -v debian:12`
	f := c.Flags()
	f.BoolVarP(&verbose, "verbose", "v", false, "print descriptors too, and what an index lists")
	f.StringArrayVar(&plainHTTP, "plain-http", nil, "reach this `registry` (host:port) without TLS")
	c.Args = takes(1, 1, "the name of an image or a list")
	c.RunE = func(c *cobra.Command, args []string) error {
		ref, err := reference.Parse(args[0])
		if err != nil {
			return err
		}
		return a.withRegistry(c, plainHTTP, func(ctx context.Context, store *image.Store, r *registry.Client) error {
			desc, raw, err := store.ListDocument(ref)
			local := err == nil
			if errdefs.Is(err, errdefs.NotFound) {
				if desc, err = r.Resolve(ctx, ref); err == nil {
					raw, err = r.Manifest(ctx, ref, desc)
				}
			}
			if err != nil {
				return err
			}
			if !verbose {
				var b bytes.Buffer
				if err := json.Indent(&b, raw, "", "   "); err != nil {
					return &errdefs.Error{Op: "print", What: args[0], Kind: errdefs.Corrupt, Err: err}
				}
				return a.print(printableLines(b.String()) + "\n")
			}
			type item struct {
				Ref        string
				Descriptor ocispec.Descriptor
				Raw        json.RawMessage `json:",omitempty"`
			}
			items := []item{{ref.String(), desc, raw}}
			var idx ocispec.Index
			if err := json.Unmarshal(raw, &idx); err == nil && !local {
				for _, d := range idx.Manifests {
					m, err := r.Manifest(ctx, ref, ocispec.Descriptor{Digest: d.Digest, Size: d.Size, MediaType: d.MediaType})
					if err != nil {
						return err
					}
					items = append(items, item{ref.Repository() + "@" + d.Digest.String(), d, m})
				}
			}
			b, err := marshal(items, "   ")
			if err != nil {
				return err
			}
			return a.print(printableLines(string(b)))
		})
	}
}

// printableLines is printable for text of several lines.
func printableLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = printable(lines[i])
	}
	return strings.Join(lines, "\n")
}

func buildManifestCreate(a *app, c *cobra.Command) {
	var (
		amend     bool
		plainHTTP []string
	)
	c.Use = "create [FLAGS] LIST IMAGE [IMAGE...]"
	c.Long = `Make a list of images that are in a registry, to be pushed as one name for several platforms. The list is kept here until it
is removed.`
	c.Example = `  onggi manifest create r.example.com/app:1 r.example.com/app:1-amd64 r.example.com/app:1-arm64
  onggi manifest push r.example.com/app:1`
	f := c.Flags()
	f.BoolVarP(&amend, "amend", "a", false, "add to a list that exists")
	f.StringArrayVar(&plainHTTP, "plain-http", nil, "reach this `registry` (host:port) without TLS")
	c.Args = takes(2, -1, "the list's name, and images")
	c.RunE = func(c *cobra.Command, args []string) error {
		refs, err := parseRefs(args)
		if err != nil {
			return err
		}
		return a.withRegistry(c, plainHTTP, func(ctx context.Context, store *image.Store, r *registry.Client) error {
			if err := store.CreateList(ctx, r, refs[0], refs[1:], amend); err != nil {
				return err
			}
			return a.print("Created manifest list " + refs[0].String() + "\n")
		})
	}
}

func buildManifestAnnotate(a *app, c *cobra.Command) {
	var (
		n           image.Annotation
		annotations []string
	)
	c.Use = "annotate [FLAGS] LIST IMAGE"
	c.Long = `Say what platform an image of a list is for, where its configuration does not say it right.`
	c.Example = `  onggi manifest annotate --arch arm --variant v7 r.example.com/app:1 r.example.com/app:1-armv7`
	f := c.Flags()
	f.StringVar(&n.Architecture, "arch", "", "`architecture`, such as amd64")
	f.StringVar(&n.OS, "os", "", "operating `system`, such as linux")
	f.StringVar(&n.Variant, "variant", "", "`variant` of the architecture, such as v7")
	f.StringVar(&n.OSVersion, "os-version", "", "`version` of the operating system")
	f.StringSliceVar(&n.OSFeatures, "os-features", nil, "`features` of the operating system, separated by commas")
	f.StringArrayVar(&annotations, "annotation", nil, "annotate the entry with `KEY=VALUE`")
	c.Args = takes(2, 2, "a list, and one of its images")
	c.RunE = func(c *cobra.Command, args []string) error {
		for _, s := range annotations {
			k, v, ok := strings.Cut(s, "=")
			if !ok || k == "" {
				return badFlag("--annotation", s, "it is not KEY=VALUE", "for example: --annotation org.example.note=x")
			}
			if n.Annotations == nil {
				n.Annotations = map[string]string{}
			}
			n.Annotations[k] = v
		}
		ref, err := reference.Parse(args[0])
		if err != nil {
			return err
		}
		return a.withRegistry(c, nil, func(ctx context.Context, store *image.Store, _ *registry.Client) error {
			return store.AnnotateList(ctx, ref, args[1], n)
		})
	}
}

func buildManifestPush(a *app, c *cobra.Command) {
	var (
		purge     bool
		plainHTTP []string
	)
	c.Use = "push [FLAGS] LIST"
	c.Long = `Push a list under its name, and print its digest. Images of other repositories of the same registry are taken over.`
	c.Example = `  onggi manifest push --purge r.example.com/app:1`
	f := c.Flags()
	f.BoolVarP(&purge, "purge", "p", false, "remove the list here after the push")
	f.StringArrayVar(&plainHTTP, "plain-http", nil, "reach this `registry` (host:port) without TLS")
	c.Args = takes(1, 1, "a list")
	c.RunE = func(c *cobra.Command, args []string) error {
		ref, err := reference.Parse(args[0])
		if err != nil {
			return err
		}
		return a.withRegistry(c, plainHTTP, func(ctx context.Context, store *image.Store, r *registry.Client) error {
			desc, err := store.PushList(ctx, r, ref)
			if err != nil {
				return err
			}
			if purge {
				if err := store.RemoveList(ref); err != nil {
					return err
				}
			}
			return a.print(fmt.Sprintln(desc.Digest))
		})
	}
}

func buildManifestRm(a *app, c *cobra.Command) {
	c.Use = "rm LIST [LIST...]"
	c.Long = `Remove lists that are being made here. Images and registries stay as they are.`
	c.Example = `  onggi manifest rm r.example.com/app:1`
	c.Args = takes(1, -1, "the names of lists")
	c.RunE = func(c *cobra.Command, args []string) error {
		refs, err := parseRefs(args)
		if err != nil {
			return err
		}
		return a.withRegistry(c, nil, func(_ context.Context, store *image.Store, _ *registry.Client) error {
			for _, r := range refs {
				if err := store.RemoveList(r); err != nil {
					return err
				}
			}
			return nil
		})
	}
}
