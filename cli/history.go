package cli

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/image"
	"github.com/onggi/onggi/reference"
	"github.com/onggi/onggi/registry"
	"github.com/spf13/cobra"
)

// historyRow is a line of `history`. Its fields are those of docker's format.
type historyRow struct {
	ID           string
	CreatedSince string
	CreatedAt    string
	CreatedBy    string
	Size         string
	Comment      string
}

func buildHistory(a *app, c *cobra.Command) {
	var (
		human, noTrunc, quiet bool
		format                string
	)
	c.Use = "history [FLAGS] IMAGE"
	c.Long = `Show how an image came to be: its steps, the last one first, with the size of the layer that each made.`
	c.Example = `  onggi history debian:12
  onggi history --no-trunc --format '{{.CreatedBy}}' nginx`
	f := c.Flags()
	f.BoolVarP(&human, "human", "H", true, "print sizes and times for people")
	f.BoolVar(&noTrunc, "no-trunc", false, "print whole ids and commands")
	f.BoolVarP(&quiet, "quiet", "q", false, "print ids only")
	f.StringVar(&format, "format", "", formatUsage)
	c.Args = takes(1, 1, "an image")
	c.RunE = func(c *cobra.Command, args []string) error {
		out, err := newFormat(format, c.Flags().Changed("format"))
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
		img, err := store.Get(args[0])
		if err != nil {
			return err
		}
		steps, err := store.History(img)
		if err != nil {
			return err
		}
		var rows []historyRow
		for i, s := range slices.Backward(steps) {
			r := historyRow{ID: "<missing>", CreatedBy: s.CreatedBy, Comment: s.Comment, Size: fmt.Sprint(s.Size)}
			if i == len(steps)-1 {
				if r.ID = img.ID.String(); !noTrunc {
					r.ID = shortID(r.ID)
				}
			}
			var t time.Time
			if s.Created != nil {
				t = *s.Created
			}
			r.CreatedAt, r.CreatedSince = t.Local().Format(time.RFC3339), ago(t, time.Now())
			if human {
				r.Size = humanSize(s.Size, 3)
			} else {
				r.CreatedSince = r.CreatedAt
			}
			r.CreatedBy = printable(strings.ReplaceAll(r.CreatedBy, "\t", " "))
			if n := []rune(r.CreatedBy); !noTrunc && len(n) > 45 {
				r.CreatedBy = string(n[:44]) + "…"
			}
			rows = append(rows, r)
		}
		if quiet {
			var b strings.Builder
			for _, r := range rows {
				b.WriteString(r.ID + "\n")
			}
			return a.print(b.String())
		}
		return writeRows(a, out, rows, []column[historyRow]{
			{"IMAGE", func(r historyRow) string { return r.ID }},
			{"CREATED", func(r historyRow) string { return r.CreatedSince }},
			{"CREATED BY", func(r historyRow) string { return r.CreatedBy }},
			{"SIZE", func(r historyRow) string { return r.Size }},
			{"COMMENT", func(r historyRow) string { return printable(r.Comment) }},
		})
	}
}

func buildImageInspect(a *app, c *cobra.Command) {
	buildInspect(a, c)
	c.Use = "inspect [FLAGS] IMAGE [IMAGE...]"
	c.Long = `Print all that is known about images, as a JSON array with docker's fields, or by a Go template.`
	c.Example = `  onggi image inspect debian:12
  onggi image inspect -f '{{json .Config.Env}}' debian:12`
	_ = c.Flags().Set("type", "image")
	c.Flags().Lookup("type").Hidden = true
	c.Args = takes(1, -1, "the names or ids of images")
}

func buildContainerInspect(a *app, c *cobra.Command) {
	buildInspect(a, c)
	c.Use = "inspect [FLAGS] CONTAINER [CONTAINER...]"
	c.Long = `Print all that is known about containers, as a JSON array with docker's fields, or by a Go template.`
	c.Example = `  onggi container inspect web
  onggi container inspect -f '{{.State.Status}}' web`
	_ = c.Flags().Set("type", "container")
	c.Flags().Lookup("type").Hidden = true
	c.Args = takes(1, -1, "the names or ids of containers")
}

func buildSearch(a *app, c *cobra.Command) {
	c.Use = "search TERM"
	c.Long = `Refused, with the place to search at: registries have no search in their API (OCI distribution-spec 1.1); what docker search
asks is Docker Hub's own service.`
	c.Example = `  onggi search debian`
	c.Args = takes(1, 1, "a term")
	c.RunE = func(c *cobra.Command, args []string) error {
		where := "https://hub.docker.com/search?q=" + strings.ReplaceAll(args[0], " ", "+")
		if ref, err := reference.Parse(args[0]); err == nil && ref.Domain != dockerHub {
			where = "the web page of " + ref.Domain + ", or its own API, if it has one"
		}
		return &errdefs.Error{
			Op: "search for", What: fmt.Sprintf("%q", printable(args[0])), Kind: errdefs.Unsupported,
			Why: "the registries' API has no search; each registry has its own", Fix: "search at " + where,
		}
	}
}

// referrerRow is a line of `image referrers`.
type referrerRow struct {
	Digest       string
	ArtifactType string
	MediaType    string
	Size         string
	Tag          string
}

func buildReferrers(a *app, c *cobra.Command) {
	var (
		kind, format string
		local        bool
		plainHTTP    []string
	)
	c.Use = "referrers [FLAGS] IMAGE"
	c.Long = `List what refers to an image in its registry: signatures, SBOMs, attestations. A registry without the API for it
is asked for the tags that stand in for it (sha256-DIGEST, and cosign's). With --local what is here is listed.`
	c.Example = `  onggi image referrers registry.example.com/app:1
  onggi image referrers --artifact-type application/spdx+json registry.example.com/app:1`
	f := c.Flags()
	f.StringVar(&kind, "artifact-type", "", "only those of this `type`")
	f.BoolVar(&local, "local", false, "list what is in the store, and ask no registry")
	f.StringVar(&format, "format", "", formatUsage)
	f.StringArrayVar(&plainHTTP, "plain-http", nil, "reach this `registry` (host:port) without TLS")
	c.Args = takes(1, 1, "an image")
	c.RunE = func(c *cobra.Command, args []string) error {
		out, err := newFormat(format, c.Flags().Changed("format"))
		if err != nil {
			return err
		}
		ref, err := reference.Parse(args[0])
		if err != nil {
			return err
		}
		ctx, cancel := a.context(c.Context())
		defer cancel()
		var rows []referrerRow
		add := func(found []image.Referrer) {
			for _, d := range found {
				if kind == "" || d.ArtifactType == kind {
					rows = append(rows, referrerRow{d.Digest.String(), printable(d.ArtifactType), printable(d.MediaType), humanSize(d.Size, 3), d.Tag})
				}
			}
		}
		if local {
			e, err := a.open()
			if err != nil {
				return err
			}
			store, err := e.Images()
			if err != nil {
				return err
			}
			img, err := store.Get(args[0])
			if err != nil {
				return err
			}
			found, err := store.ReferrersOf(img)
			if err != nil {
				return err
			}
			add(found)
		} else {
			r := registry.New(a.registryOptions(plainHTTP))
			defer r.Close()
			found, err := image.ListReferrers(ctx, r, ref, kind)
			if err != nil {
				return err
			}
			add(found)
		}
		return writeRows(a, out, rows, []column[referrerRow]{
			{"DIGEST", func(r referrerRow) string { return r.Digest }},
			{"ARTIFACT TYPE", func(r referrerRow) string { return r.ArtifactType }},
			{"MEDIA TYPE", func(r referrerRow) string { return r.MediaType }},
			{"SIZE", func(r referrerRow) string { return r.Size }},
			{"TAG", func(r referrerRow) string { return r.Tag }},
		})
	}
}
