package cli

import (
	"context"
	"fmt"
	"os"
	"runtime/debug"
	"strings"

	"github.com/onggi/onggi/engine"
	"github.com/onggi/onggi/image"
	"github.com/onggi/onggi/reference"
	"github.com/onggi/onggi/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
)

func buildPull(a *app, c *cobra.Command) {
	var (
		quiet, all, referrers bool
		platform              string
		plainHTTP             []string
	)
	c.Use = "pull [FLAGS] IMAGE"
	c.Long = `Bring an image in from its registry, by tag or by digest. Layers come at the same time and are unpacked while they
arrive; what is here already is not fetched again. Every byte is checked against its digest. Registries are reached by
TLS; without it only on loopback addresses, and where --plain-http or a rule allows it.

Mirrors, certificates and other rules for registries are read from hosts.toml files (/etc/onggi/certs.d,
/etc/containerd/certs.d), docker's /etc/docker/certs.d, and registries.conf (/etc/containers, ~/.config/containers); logins from
docker's config.json and podman's auth.json. Which images have to be signed, and by whom, is said by /etc/onggi/policy.toml
(ONGGI_POLICY); an image that it refuses is not unpacked.`
	c.Example = `  onggi pull debian:12
  onggi pull --platform linux/arm64 debian:12
  onggi pull 127.0.0.1:5000/team/app@sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
  onggi pull --plain-http registry.lan:5000 registry.lan:5000/app`
	f := c.Flags()
	f.BoolVarP(&quiet, "quiet", "q", false, "print nothing but the image's name")
	f.StringVar(&platform, "platform", "", "choose the image for `os/arch[/variant]` (default this host's)")
	f.BoolVar(&all, "all-platforms", false, "bring in the images for all platforms, side by side under one name")
	f.BoolVar(&referrers, "with-referrers", false, "bring in what refers to the image, too: signatures, SBOMs, attestations")
	f.StringArrayVar(&plainHTTP, "plain-http", nil, "reach this `registry` (host:port) without TLS")
	c.Args = takes(1, 1, "the name of an image")
	c.RunE = func(c *cobra.Command, args []string) error {
		var p *ocispec.Platform
		if c.Flags().Changed("platform") {
			var err error
			if p, err = parsePlatform(platform); err != nil {
				return reading("--platform", platform, err)
			}
			if all {
				return badFlag("--platform", platform, "it is one platform, and --all-platforms are all", "leave one of them out")
			}
		}
		e, err := a.open()
		if err != nil {
			return err
		}
		ctx, cancel := a.context(c.Context())
		defer cancel()
		to := a.out
		if quiet {
			to = nil
		}
		ref, err := reference.Parse(args[0])
		if err != nil {
			return err
		}
		o := image.PullOptions{Platform: p, AllPlatforms: all, Referrers: referrers}
		if _, err := a.pull(ctx, e, args[0], o, plainHTTP, to); err != nil {
			return err
		}
		return a.print(ref.String() + "\n")
	}
}

// puller is the engine's PullFunc: it says on stderr what happens, unless quiet.
func (a *app) puller(e *engine.Engine, cfg *engine.Config, quiet bool) engine.PullFunc {
	return func(ctx context.Context, name string) (*image.Image, error) {
		if isHello(name) {
			return a.loadHello(ctx, e)
		}
		to := a.err
		if quiet {
			to = nil
		} else if cfg.Pull != "always" {
			fmt.Fprintf(a.err, "Unable to find image '%s' locally\n", printable(familiar(name)))
		}
		return a.pull(ctx, e, name, image.PullOptions{Platform: cfg.Platform}, nil, to)
	}
}

func familiar(name string) string {
	if ref, err := reference.Parse(name); err == nil {
		return ref.Familiar()
	}
	return name
}

// pull brings an image in and tells of it on to, which may be nil.
func (a *app) pull(ctx context.Context, e *engine.Engine, name string, o image.PullOptions, plainHTTP []string, to *os.File) (*image.Image, error) {
	// What a pull has in memory is buffers, of which the collector would wait for as many again: 46 instead of 55 MB at the
	// peak, in the same time.
	defer debug.SetGCPercent(debug.SetGCPercent(50))
	ref, err := reference.Parse(name)
	if err != nil {
		return nil, err
	}
	if isHello(name) {
		img, err := a.loadHello(ctx, e)
		if err == nil && to != nil {
			fmt.Fprintf(to, "Digest: %s\nStatus: Loaded %s from this program\n", img.Target.Digest, ref.Familiar())
		}
		return img, err
	}
	store, err := e.Images()
	if err != nil {
		return nil, err
	}
	var before string
	if old, err := store.Get(ref.String()); err == nil {
		before = old.Target.Digest.String()
	}
	o.Registry = registry.New(a.registryOptions(plainHTTP))
	defer o.Registry.Close()
	if o.Policy, err = loadPolicy(); err != nil {
		return nil, err
	}
	o.Warn = a.warn
	if to == nil {
		return store.Pull(ctx, ref, o)
	}
	tag := ref.Tag
	if tag == "" {
		tag = ref.Digest.String()
	}
	fmt.Fprintf(to, "%s: Pulling from %s\n", tag, strings.TrimPrefix(ref.Repository(), "docker.io/"))
	show := a.progress(to)
	o.Progress = show.event
	img, err := store.Pull(ctx, ref, o)
	show.end()
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(to, "Digest: %s\n", img.Target.Digest)
	if before == img.Target.Digest.String() {
		fmt.Fprintf(to, "Status: Image is up to date for %s\n", ref.Familiar())
	} else {
		fmt.Fprintf(to, "Status: Downloaded newer image for %s\n", ref.Familiar())
	}
	return img, nil
}
