package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/image"
	"github.com/onggi/onggi/reference"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// imageRow is a line of `images`: one name of one image. Its fields are those of docker's format.
type imageRow struct {
	Repository   string
	Tag          string
	Digest       string
	ID           string
	CreatedSince string
	CreatedAt    string
	Size         string

	created time.Time
}

func (imageRow) headers() map[string]string {
	return map[string]string{"ID": "IMAGE ID", "CreatedSince": "CREATED"}
}

func buildImages(a *app, c *cobra.Command) {
	var (
		all, quiet, noTrunc, digests bool
		format                       string
		filters                      []string
	)
	c.Use = "images [FLAGS] [REPOSITORY[:TAG]]"
	c.Long = `List the images that are here, newest first, or those of one repository. SIZE is that of the unpacked layers; a layer that
several images share is on disk once.

--filter has docker's conditions: before=IMAGE, since=IMAGE, until=TIME (made before or after), dangling=true|false (without a
name), label=KEY[=VALUE], reference=PATTERN (a name with * and ?).`
	c.Example = `  onggi images
  onggi images debian
  onggi images -q --no-trunc
  onggi images --filter dangling=true
  onggi images --filter 'reference=app*:1.*'
  onggi images --format '{{.Repository}}:{{.Tag}} {{.Size}}'`
	f := c.Flags()
	f.BoolVarP(&all, "all", "a", false, "all images: there are no others, for the steps of a build are none")
	f.StringArrayVarP(&filters, "filter", "f", nil, "only those for which `condition` holds: KEY=VALUE")
	f.BoolVarP(&quiet, "quiet", "q", false, "print ids only")
	f.BoolVar(&noTrunc, "no-trunc", false, "print whole ids")
	f.BoolVar(&digests, "digests", false, "print digests too")
	f.StringVar(&format, "format", "", formatUsage)
	c.Args = takes(0, 1, "at most the name of a repository")
	c.RunE = func(c *cobra.Command, args []string) error {
		out, err := newFormat(format, c.Flags().Changed("format"))
		if err != nil {
			return err
		}
		e, err := a.open()
		if err != nil {
			return err
		}
		chosen, err := readFilters(filters)
		if err != nil {
			return err
		}
		now := time.Now()
		list, err := e.ListImages(chosen, func(s string) (time.Time, error) { return parseTime(s, now) })
		if err != nil {
			return err
		}
		rows := imageRows(list, time.Now(), noTrunc)
		if len(args) == 1 {
			if rows, err = ofRepository(rows, args[0]); err != nil {
				return err
			}
		}
		if quiet {
			var b strings.Builder
			seen := ""
			for _, r := range rows {
				if r.ID != seen {
					b.WriteString(r.ID + "\n")
				}
				seen = r.ID
			}
			return a.print(b.String())
		}
		columns := []column[imageRow]{
			{"REPOSITORY", func(r imageRow) string { return r.Repository }},
			{"TAG", func(r imageRow) string { return r.Tag }},
			{"DIGEST", func(r imageRow) string { return r.Digest }},
			{"IMAGE ID", func(r imageRow) string { return r.ID }},
			{"CREATED", func(r imageRow) string { return r.CreatedSince }},
			{"SIZE", func(r imageRow) string { return r.Size }},
		}
		if !digests {
			columns = slices.Delete(columns, 2, 3)
		}
		return writeRows(a, out, rows, columns)
	}
}

// imageRows makes a row for each name of each image, newest image first.
func imageRows(list []*image.Image, now time.Time, noTrunc bool) []imageRow {
	var rows []imageRow
	for _, i := range list {
		r := imageRow{
			Repository: "<none>", Tag: "<none>", Digest: "<none>", ID: i.ID.String(), CreatedSince: ago(i.Created, now),
			CreatedAt: i.Created.Local().Format("2006-01-02 15:04:05 -0700 MST"), Size: humanSize(i.Size, 3), created: i.Created,
		}
		if i.Target.Digest != "" {
			r.Digest = i.Target.Digest.String()
		}
		if !noTrunc {
			r.ID = shortID(r.ID)
		}
		for _, n := range i.Names {
			named := r
			named.Repository = repositoryOf(n)
			if n.Tag != "" {
				named.Tag = n.Tag
			}
			if n.Digest != "" {
				named.Digest = n.Digest.String()
			}
			rows = append(rows, named)
		}
		if len(i.Names) == 0 {
			rows = append(rows, r)
		}
	}
	slices.SortStableFunc(rows, func(a, b imageRow) int {
		if c := b.created.Compare(a.created); c != 0 {
			return c
		}
		return strings.Compare(a.Repository+":"+a.Tag, b.Repository+":"+b.Tag)
	})
	return rows
}

// repositoryOf is a repository in the form that docker prints.
func repositoryOf(r reference.Reference) string {
	name := reference.Reference{Domain: r.Domain, Path: r.Path}.Familiar()
	return name
}

// ofRepository keeps the rows of one repository, and of one tag when the name has one.
func ofRepository(rows []imageRow, name string) ([]imageRow, error) {
	ref, err := reference.Parse(name)
	if err != nil {
		return nil, err
	}
	tagged := strings.Contains(name[strings.LastIndexByte(name, '/')+1:], ":")
	return slices.DeleteFunc(rows, func(r imageRow) bool {
		return r.Repository != repositoryOf(ref) || tagged && ref.Tag != "" && r.Tag != ref.Tag || ref.Digest != "" && r.Digest != ref.Digest.String()
	}), nil
}

func buildTag(a *app, c *cobra.Command) {
	c.Use = "tag IMAGE NAME[:TAG]"
	c.Long = `Give an image another name. If another image has that name, it loses it.`
	c.Example = `  onggi tag debian:12 127.0.0.1:5000/base:stable
  onggi tag 3f2a9c1b77de mine`
	c.Args = takes(2, 2, "an image and its new name")
	c.RunE = func(_ *cobra.Command, args []string) error {
		ref, err := reference.Parse(args[1])
		if err != nil {
			return err
		}
		if ref.Digest != "" {
			return &errdefs.Error{
				Op: "tag", What: args[1], Kind: errdefs.InvalidArgument, Why: "a digest is what an image is, not a name that it is given",
				Fix: "leave the digest out",
			}
		}
		e, err := a.open()
		if err != nil {
			return err
		}
		store, err := e.Images()
		if err != nil {
			return err
		}
		return store.Tag(args[0], ref)
	}
}

func buildRmi(a *app, c *cobra.Command) {
	var force, now, dry bool
	c.Use = "rmi [FLAGS] IMAGE [IMAGE...]"
	c.Long = `Remove names of images, and with the last name the image and those of its layers that no other image needs. An image that
a container was made from stays. What is removed goes to the trash, from where "onggi undo" brings it back until its time is
over (onggi system limits) or space is needed.`
	c.Example = `  onggi rmi debian:12
  onggi undo                                    no, back with it
  onggi rmi --now debian:12                     and its space is free
  onggi rmi --dry-run debian:12                 what would go
  onggi rmi -f 3f2a9c1b77de                     all names of this image`
	c.Flags().BoolVarP(&force, "force", "f", false, "remove all names of an image given by id; one that is not here is no error")
	c.Flags().BoolVar(&now, "now", false, "delete at once instead of keeping it in the trash: it cannot be undone")
	c.Flags().BoolVar(&dry, "dry-run", false, "print what would be removed, and remove nothing")
	c.Args = takes(1, -1, "the names or ids of images")
	c.RunE = func(c *cobra.Command, args []string) error {
		e, err := a.open()
		if err != nil {
			return err
		}
		ctx, cancel := a.context(c.Context())
		defer cancel()
		to, err := e.NewRemoval(commandLine(c, args))
		if err != nil {
			return err
		}
		now = now || !to.Expires.After(to.Time)
		if dry {
			to = nil
		}
		var removed []image.Removed
		var why []error
		if now && !dry {
			for _, name := range args { // one after the other: what one needs another may free
				r, err := e.RemoveImage(ctx, name, force)
				if removed = append(removed, r...); err != nil {
					why = append(why, err)
				}
			}
		} else if removed, why, err = e.DiscardImages(ctx, args, force, to); err != nil {
			return err
		}
		if err := a.print(removedText(removed)); err != nil {
			return err
		}
		why = slices.DeleteFunc(why, func(err error) bool { return force && errdefs.Is(err, errdefs.NotFound) })
		if len(why) == 0 {
			return nil
		}
		for _, err := range why[:len(why)-1] {
			a.report(err)
		}
		return why[len(why)-1]
	}
}

func buildImport(a *app, c *cobra.Command) {
	var (
		message, platform string
		changes           []string
	)
	c.Use = "import [FLAGS] FILE|- [NAME[:TAG]]"
	c.Long = `Make an image of one layer from the tar archive of a root file system, compressed or not, from a file or from stdin, and
print its id. --change sets the configuration, in the words of a Dockerfile: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL,
STOPSIGNAL, USER, VOLUME, WORKDIR.`
	c.Example = `  debootstrap --variant=minbase bookworm root && tar -C root -c . | onggi import - debian:12
  onggi import -c 'CMD ["/bin/sh"]' -c 'ENV LANG=C.UTF-8' busybox.tar busybox`
	f := c.Flags()
	f.StringVarP(&message, "message", "m", "", "`text` for the image's history")
	f.StringVar(&platform, "platform", "", "`os/arch[/variant]` of the programs in it (default this host's)")
	f.StringArrayVarP(&changes, "change", "c", nil, "set the configuration by a Dockerfile's `instruction`")
	c.Args = takes(1, 2, "an archive, and a name")
	c.RunE = func(c *cobra.Command, args []string) error {
		o := image.ImportOptions{Message: message}
		var err error
		if c.Flags().Changed("platform") {
			if o.Platform, err = parsePlatform(platform); err != nil {
				return reading("--platform", platform, err)
			}
		}
		for _, s := range changes {
			if err := parseChange(s, &o.Config); err != nil {
				return reading("--change", s, err)
			}
		}
		if len(args) == 2 {
			if o.Ref, err = reference.Parse(args[1]); err != nil {
				return err
			}
			if o.Ref.Digest != "" {
				return &errdefs.Error{Op: "import", What: args[1], Kind: errdefs.InvalidArgument, Why: "the digest of an image is computed, not given", Fix: "leave the digest out"}
			}
		}
		r, err := a.archive("import", args[0])
		if err != nil {
			return err
		}
		defer r.Close()
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
		img, err := store.Import(ctx, r, o)
		if err != nil {
			return err
		}
		return a.print(img.ID.String() + "\n")
	}
}

func buildLoad(a *app, c *cobra.Command) {
	var (
		input string
		quiet bool
	)
	c.Use = "load [FLAGS]"
	c.Long = `Bring in all images of an archive: one of docker save or an OCI layout, compressed or not, from a file or from stdin. A
directory is taken for an OCI layout, also when it is written oci:DIRECTORY. Images for several platforms of one name stand
side by side.`
	c.Example = `  onggi load -i debian.tar
  onggi load -i oci:./layout
  skopeo copy docker-daemon:app:1 docker-archive:/dev/stdout | onggi load`
	c.Flags().StringVarP(&input, "input", "i", "", "read the archive from a `file` or the layout in a directory (default stdin)")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "do not print the progress")
	c.Args = takes(0, 0, "no argument, but -i FILE or an archive on stdin")
	c.RunE = func(c *cobra.Command, args []string) error {
		if input == "" {
			if c.Flags().Changed("input") {
				return reading("--input", "", errorText("the value is empty"))
			}
			input = "-"
		}
		ctx, cancel := a.context(c.Context())
		defer cancel()
		r, err := a.loadFrom(ctx, input)
		if err != nil {
			return err
		}
		defer r.Close()
		e, err := a.open()
		if err != nil {
			return err
		}
		store, err := e.Images()
		if err != nil {
			return err
		}
		var report func(image.Progress)
		end := func() {}
		if !quiet && term.IsTerminal(int(a.err.Fd())) {
			p := a.progress(a.err)
			report, end = p.event, p.end
		}
		images, err := store.Load(ctx, r, report)
		end()
		if err != nil {
			return err
		}
		var b strings.Builder
		for _, i := range images {
			for _, n := range i.Names { // once for all platforms
				if line := fmt.Sprintf("Loaded image: %s\n", n.Familiar()); !strings.Contains(b.String(), line) {
					b.WriteString(line)
				}
			}
			if len(i.Names) == 0 {
				fmt.Fprintf(&b, "Loaded image ID: %s\n", i.ID)
			}
		}
		return a.print(b.String())
	}
}

// loadFrom opens an archive or a layout.
func (a *app) loadFrom(ctx context.Context, input string) (io.ReadCloser, error) {
	dir, layout := strings.CutPrefix(input, "oci:")
	if fi, err := os.Stat(dir); layout || err == nil && fi.IsDir() {
		return image.LayoutReader(ctx, dir)
	}
	return a.archive("load", input)
}

// archive opens the archive that a command reads; "-" is stdin, which must then not be a terminal.
func (a *app) archive(op, name string) (io.ReadCloser, error) {
	if name == "-" {
		if term.IsTerminal(int(a.in.Fd())) {
			return nil, &errdefs.Error{
				Op: op, Kind: errdefs.InvalidArgument, Why: "an archive is read from stdin, and stdin is a terminal",
				Fix: "name a file, or feed the archive: onggi " + op + " ... < FILE",
			}
		}
		return io.NopCloser(a.in), nil
	}
	if strings.HasPrefix(name, "http://") || strings.HasPrefix(name, "https://") {
		return nil, &errdefs.Error{
			Op: op, What: name, Kind: errdefs.Unsupported, Why: "archives are read from files and from stdin only",
			Fix: "curl -fL " + name + " | onggi " + op + " -",
		}
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, &errdefs.Error{Op: op, What: name, Kind: errdefs.KindOf(err), Fix: "check the path: it is relative to the working directory", Err: err}
	}
	if i, err := f.Stat(); err == nil && i.IsDir() {
		_ = f.Close()
		return nil, &errdefs.Error{
			Op: op, What: name, Kind: errdefs.InvalidArgument, Why: "it is a directory, not an archive",
			Fix: "tar -C " + name + " -c . | onggi " + op + " -",
		}
	}
	return f, nil
}
