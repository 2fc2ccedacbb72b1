package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/onggi/onggi/engine"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/image"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

func systemCommands() []command {
	return []command{
		{"events", "Print what has happened, and what happens (as onggi events)", groupHost, buildEvents},
		{"info", "Describe this host and its store (as onggi info)", groupHost, buildInfo},
		{"df", "Show what takes how much of the disk", groupHost, buildDf},
		{"prune", "Remove what is not used", groupHost, buildSystemPrune},
		{"check", "Read everything that is stored, name what is broken, repair it", groupHost, buildCheck},
		{"resume", "Start what has to run after the host has started", groupHost, buildResume},
		{"unit", "Print a systemd unit that calls resume", groupHost, buildUnit},
		{"limits", "Show or set quota, reserve, and how long removals can be undone", groupHost, buildLimits},
	}
}

func containerCommands() []command {
	list := []command{
		{"ls", "List containers (as onggi ps)", groupLook, buildPs},
		{"prune", "Remove containers that do not run", groupRun, buildContainerPrune},
		{"inspect", "Print all that is known about containers", groupLook, buildContainerInspect},
	}
	for _, c := range commands() { // all that concern one container are also below
		switch {
		case c.name == "ps" || c.name == "inspect" || c.name == "container" || c.name == "events":
		case c.group == groupRun || c.group == groupLook || c.name == "commit":
			list = append(list, c)
		}
	}
	return list
}

func imageCommands() []command {
	return []command{
		{"ls", "List images (as onggi images)", groupImages, buildImages},
		{"pull", "Bring an image in from a registry", groupImages, buildPull},
		{"push", "Bring an image into a registry", groupImages, buildPush},
		{"tag", "Give an image another name", groupImages, buildTag},
		{"rm", "Remove images (as onggi rmi)", groupImages, buildRmi},
		{"save", "Write images as an archive", groupImages, buildSave},
		{"load", "Bring in the images of an archive", groupImages, buildLoad},
		{"import", "Make an image from a root file system's tar archive", groupImages, buildImport},
		{"history", "Show how an image came to be", groupImages, buildHistory},
		{"layers", "Draw an image as the stack of its layers", groupImages, buildLayers},
		{"diff", "List what one image has otherwise than another", groupImages, buildImageDiff},
		{"tree", "Draw all images by the layers that they share", groupImages, buildImageTree},
		{"waste", "Report what an image holds in vain, and secrets in it", groupImages, buildWaste},
		{"prune", "Remove images that are not used", groupImages, buildImagePrune},
		{"inspect", "Print all that is known about images", groupImages, buildImageInspect},
		{"referrers", "List what refers to an image: signatures, SBOMs", groupImages, buildReferrers},
		{"verify", "Check an image's signature in its registry", groupImages, buildVerify},
		{"build", "Make an image from a Dockerfile", groupImages, buildBuild},
	}
}

// dfRow is a line of `system df`.
type dfRow struct {
	Type        string
	TotalCount  int
	Active      int
	Size        string
	Reclaimable string
	Bytes       int64
}

func buildDf(a *app, c *cobra.Command) {
	var (
		verbose bool
		format  string
	)
	c.Use = "df [FLAGS]"
	c.Long = `Show what takes how much of the disk, in blocks as du counts them: the sizes add up to what "du -s" says of the root
directory. Images are their blobs and unpacked layers, each once however many images share it; Trash is what rmi and prune
have removed and undo can bring back; Downloads is what is here of pulls that were broken off; Store is records, indexes and
locks.`
	c.Example = `  onggi system df
  onggi system df -v
  onggi system df --format '{{.Type}} {{.Bytes}}'`
	f := c.Flags()
	f.BoolVarP(&verbose, "verbose", "v", false, "list every image, container, volume and removal")
	f.StringVar(&format, "format", "", "print as `format`: table, json, or a Go template such as '{{.Type}} {{.Size}}'")
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
		u, err := e.Usage(ctx)
		if err != nil {
			return err
		}
		if verbose && out.table && out.tmpl == nil {
			return a.print(dfVerbose(u, time.Now()))
		}
		if verbose {
			return a.printOne(out, u, nil)
		}
		return writeRows(a, out, dfRows(u), []column[dfRow]{
			{"TYPE", func(r dfRow) string { return r.Type }},
			{"TOTAL", func(r dfRow) string { return fmt.Sprint(r.TotalCount) }},
			{"ACTIVE", func(r dfRow) string { return fmt.Sprint(r.Active) }},
			{"SIZE", func(r dfRow) string { return r.Size }},
			{"RECLAIMABLE", func(r dfRow) string { return r.Reclaimable }},
		})
	}
}

// dfRows sums the usage up. The Bytes of all rows are its Total.
func dfRows(u *engine.Usage) []dfRow {
	row := func(name string, total, active int, size, free int64) dfRow {
		r := dfRow{Type: name, TotalCount: total, Active: active, Size: humanSize(size, 4), Reclaimable: humanSize(free, 4), Bytes: size}
		if size > 0 {
			r.Reclaimable += fmt.Sprintf(" (%d%%)", free*100/size)
		}
		return r
	}
	active, unused := 0, int64(0)
	for _, i := range u.Images {
		if i.Containers > 0 {
			active++
		} else {
			unused += i.Size - i.Shared
		}
	}
	rows := []dfRow{row("Images", len(u.Images), active, u.ImageBytes, unused)}
	running, size, free := 0, int64(0), int64(0)
	for _, c := range u.Containers {
		size += c.Size()
		if c.Status == engine.Running {
			running++
		} else {
			free += c.Size()
		}
	}
	rows = append(rows, row("Containers", len(u.Containers), running, size, free))
	used := 0
	size, free = 0, 0
	for _, v := range u.Volumes {
		size += v.Size
		if v.Links > 0 {
			used++
		} else {
			free += v.Size
		}
	}
	rows = append(rows, row("Local Volumes", len(u.Volumes), used, size, free), row("Build Cache", u.Steps, 0, u.Build, u.Build), row("Trash", len(u.Removals), 0, u.TrashBytes, u.TrashBytes))
	if u.Partial > 0 {
		rows = append(rows, row("Downloads", u.Partials, 0, u.Partial, u.Partial))
	}
	if u.Unowned > 0 {
		rows = append(rows, row("Unowned", 0, 0, u.Unowned, u.Unowned))
	}
	return append(rows, row("Store", 0, 0, u.Store, 0))
}

// dfVerbose is `system df -v`.
func dfVerbose(u *engine.Usage, now time.Time) string {
	var b strings.Builder
	section := func(title string) { fmt.Fprintf(&b, "%s:\n\n", title) }
	section("Images space usage")
	b.WriteString(table(u.Images, []column[engine.ImageUsage]{
		{"REPOSITORY:TAG", func(i engine.ImageUsage) string { return orNone(strings.Join(i.Names, ", ")) }},
		{"IMAGE ID", func(i engine.ImageUsage) string { return shortID(i.ID.String()) }},
		{"CREATED", func(i engine.ImageUsage) string { return ago(i.Created, now) }},
		{"SIZE", func(i engine.ImageUsage) string { return humanSize(i.Size, 4) }},
		{"SHARED SIZE", func(i engine.ImageUsage) string { return humanSize(i.Shared, 4) }},
		{"UNIQUE SIZE", func(i engine.ImageUsage) string { return humanSize(i.Size-i.Shared, 4) }},
		{"CONTAINERS", func(i engine.ImageUsage) string { return fmt.Sprint(i.Containers) }},
	}))
	b.WriteByte('\n')
	section("Containers space usage")
	b.WriteString(table(u.Containers, []column[engine.ContainerUsage]{
		{"CONTAINER ID", func(c engine.ContainerUsage) string { return shortID(c.ID) }},
		{"IMAGE", func(c engine.ContainerUsage) string { return c.Config.Image }},
		{"STATUS", func(c engine.ContainerUsage) string { return string(c.Status) }},
		{"LAYER", func(c engine.ContainerUsage) string { return humanSize(c.Layer, 4) }},
		{"LOG", func(c engine.ContainerUsage) string { return humanSize(c.Log, 4) }},
		{"RECORD", func(c engine.ContainerUsage) string { return humanSize(c.Record, 4) }},
		{"NAMES", func(c engine.ContainerUsage) string { return c.Config.Name }},
	}))
	b.WriteByte('\n')
	section("Local Volumes space usage")
	b.WriteString(table(u.Volumes, []column[engine.VolumeUsage]{
		{"VOLUME NAME", func(v engine.VolumeUsage) string { return v.Name }},
		{"LINKS", func(v engine.VolumeUsage) string { return fmt.Sprint(v.Links) }},
		{"SIZE", func(v engine.VolumeUsage) string { return humanSize(v.Size, 4) }},
	}))
	b.WriteByte('\n')
	section("Trash space usage")
	b.WriteString(table(u.Removals, []column[engine.RemovalUsage]{
		{"REMOVAL", func(r engine.RemovalUsage) string { return r.ID }},
		{"COMMAND", func(r engine.RemovalUsage) string { return r.Command }},
		{"UNTIL", func(r engine.RemovalUsage) string { return r.Expires.Local().Format(time.DateTime) }},
		{"UNIQUE SIZE", func(r engine.RemovalUsage) string { return humanSize(r.Size, 4) }},
	}))
	fmt.Fprintf(&b, "\nTotal: %d bytes in %s: images %d, build cache %d, trash %d, broken downloads %d, the store's own files %d, without an owner %d.\n",
		u.Total, u.Root, u.ImageBytes, u.Build, u.TrashBytes, u.Partial, u.Store, u.Unowned)
	for _, p := range u.Unknown {
		fmt.Fprintf(&b, "Not Onggi's: %s\n", printable(p))
	}
	return b.String()
}

func orNone(s string) string {
	if s == "" {
		return "<none>"
	}
	return s
}

// commandLine is how a removal remembers what was typed.
func commandLine(c *cobra.Command, args []string) string {
	return strings.TrimPrefix(c.CommandPath(), "onggi ") + strings.Join(append([]string{""}, quoteAll(args)...), " ")
}

// pruneFilters reads --filter.
func pruneFilters(list []string, o *engine.PruneOptions) error {
	for _, s := range list {
		key, value, ok := strings.Cut(s, "=")
		switch {
		case !ok || value == "":
			return reading("--filter", s, errorText("it is not KEY=VALUE"))
		case key == "until":
			t, err := parseTime(value, time.Now())
			if err != nil {
				return reading("--filter", s, err)
			}
			o.Until = t
		case key == "label":
			o.Label = append(o.Label, value)
		case key == "label!":
			o.Label = append(o.Label, "!"+value)
		case key == "all" && (o.Volumes || o.AllVolumes) && !o.Containers: // how docker's clients say volume prune -a
			all, err := parseBool(value, true)
			if err != nil {
				return reading("--filter", s, err)
			}
			o.AllVolumes = o.AllVolumes || all
		case key == "dangling" && (o.Images || o.AllImages) && !o.Containers: // how docker's clients say image prune -a
			dangling, err := parseBool(value, true)
			if err != nil {
				return reading("--filter", s, err)
			}
			o.AllImages = o.AllImages || !dangling
		case key == "dangling":
			return reading("--filter", s, &errdefs.Error{Why: "images without a name are pruned by default", Fix: "use -a for those with one"})
		default:
			return reading("--filter", s, &errdefs.Error{Why: "there is no such filter", Fix: "use until=TIME, label=KEY[=VALUE] or label!=KEY[=VALUE]"})
		}
	}
	return nil
}

// pruneFlags are the flags of both prunes.
type pruneFlags struct {
	all, force, dryRun, now bool
	filters                 []string
}

func (p *pruneFlags) add(c *cobra.Command, all string) {
	f := c.Flags()
	if all != "" {
		f.BoolVarP(&p.all, "all", "a", false, all)
	}
	f.BoolVarP(&p.force, "force", "f", false, "do not ask")
	f.StringArrayVar(&p.filters, "filter", nil, "only what `condition` says: until=TIME (made before), label=KEY[=VALUE], label!=KEY[=VALUE]")
	f.BoolVar(&p.dryRun, "dry-run", false, "print what would be removed, and remove nothing")
	f.BoolVar(&p.now, "now", false, "delete at once instead of keeping it in the trash: it cannot be undone")
}

const allImages = "also images that have a name, if no container uses them"

func buildContainerPrune(a *app, c *cobra.Command) {
	var p pruneFlags
	c.Use = "prune [FLAGS]"
	c.Long = `Remove all containers that do not run. What will go is listed first. It goes to the trash, from where "onggi undo" brings
it back, with all its files. Volumes stay.`
	c.Example = `  onggi container prune
  onggi container prune -f --filter until=24h
  onggi container prune --filter label!=keep --dry-run`
	p.add(c, "")
	c.Args = takes(0, 0, "no arguments")
	c.RunE = func(c *cobra.Command, args []string) error {
		return a.prune(c, &p, engine.PruneOptions{Containers: true})
	}
}

func buildVolumePrune(a *app, c *cobra.Command) {
	var p pruneFlags
	c.Use = "prune [FLAGS]"
	c.Long = `Remove anonymous volumes that no container uses; with -a all that no container uses. What will go is listed first. It goes
to the trash, from where "onggi undo" brings it back.`
	c.Example = `  onggi volume prune
  onggi volume prune -a --filter label!=keep
  onggi volume prune -a --dry-run`
	p.add(c, "also volumes that have a name, if no container uses them")
	c.Flags().Lookup("filter").Usage = "only what `condition` says: label=KEY[=VALUE], label!=KEY[=VALUE]"
	c.Args = takes(0, 0, "no arguments")
	c.RunE = func(c *cobra.Command, args []string) error {
		return a.prune(c, &p, engine.PruneOptions{Volumes: true, AllVolumes: p.all})
	}
}

func buildImagePrune(a *app, c *cobra.Command) {
	var p pruneFlags
	c.Use = "prune [FLAGS]"
	c.Long = `Remove images that have no name and that no container uses; with -a all that no container uses. What will go is listed
first. It goes to the trash, from where "onggi undo" brings it back.`
	c.Example = `  onggi image prune
  onggi image prune -a --filter until=240h
  onggi image prune --dry-run -a`
	p.add(c, allImages)
	c.Args = takes(0, 0, "no arguments")
	c.RunE = func(c *cobra.Command, args []string) error {
		return a.prune(c, &p, engine.PruneOptions{Images: true, AllImages: p.all})
	}
}

func buildSystemPrune(a *app, c *cobra.Command) {
	var (
		p              pruneFlags
		volumes, trash bool
	)
	c.Use = "prune [FLAGS]"
	c.Long = `Remove containers that do not run, networks that no container has, and images that have no name and no container; with -a
all images that no container uses, with --volumes also anonymous volumes that no container uses. What will go is listed first. Containers, images and
volumes go to the trash, from where "onggi undo" brings them back until their time is over (onggi system limits) or space is
needed; networks of containers that go stay with them. Downloads that were broken off, and what killed commands left, go too.`
	c.Example = `  onggi system prune
  onggi system prune -a -f
  onggi system prune --trash                    give back the space of what was removed before`
	p.add(c, allImages)
	c.Flags().BoolVar(&volumes, "volumes", false, "also anonymous volumes that no container uses")
	c.Flags().BoolVar(&trash, "trash", false, "only empty the trash: what was removed before cannot be undone then")
	c.Args = takes(0, 0, "no arguments")
	c.RunE = func(c *cobra.Command, args []string) error {
		if trash {
			if p.all || volumes || len(p.filters) > 0 {
				return badFlag("--trash", "true", "it empties the trash only", "leave the other flags out")
			}
			return a.prune(c, &p, engine.PruneOptions{Trash: true})
		}
		return a.prune(c, &p, engine.PruneOptions{Containers: true, Images: true, AllImages: p.all, Volumes: volumes, Networks: true, Unowned: true})
	}
}

// prune plans, lists, asks, and does.
func (a *app) prune(c *cobra.Command, p *pruneFlags, o engine.PruneOptions) error {
	if err := pruneFilters(p.filters, &o); err != nil {
		return err
	}
	if (o.Volumes || o.AllVolumes) && !o.Until.IsZero() {
		return reading("--filter", "until", &errdefs.Error{Why: "the filter until is not supported with volumes: what matters is when their data was written", Fix: "filter by label, or leave --volumes out"})
	}
	e, err := a.open()
	if err != nil {
		return err
	}
	ctx, cancel := a.context(c.Context())
	defer cancel()
	plan, err := e.PlanPrune(ctx, o)
	if err != nil {
		return err
	}
	if plan.Empty() {
		return a.print("Total reclaimed space: 0B\n")
	}
	to, err := e.NewRemoval(commandLine(c, nil))
	if err != nil {
		return err
	}
	if p.now || !to.Expires.After(to.Time) || o.Trash {
		to = nil
	}
	text, size := planText(plan)
	if p.dryRun || !p.force {
		head := "This will be removed:\n"
		if p.dryRun {
			head = "This would be removed:\n"
		}
		if err := a.print(head + text); err != nil || p.dryRun {
			return err
		}
		if err := a.confirm("Remove it? [y/N] "); err != nil {
			return err
		}
	}
	done, err := e.Prune(ctx, plan, to)
	var b strings.Builder
	section := func(title string, lines []string) {
		if len(lines) > 0 {
			b.WriteString(title + ":\n" + strings.Join(lines, "\n") + "\n\n")
		}
	}
	section("Deleted Containers", done.Containers)
	section("Deleted Networks", done.Networks)
	section("Deleted Volumes", done.Volumes)
	if len(done.Images) > 0 {
		b.WriteString("Deleted Images:\n" + removedText(done.Images) + "\n")
	}
	if err != nil {
		return errors.Join(err, a.print(b.String()))
	}
	if to != nil && len(done.Containers)+len(done.Images)+len(done.Volumes) > 0 {
		fmt.Fprintf(&b, "In the trash until %s: onggi undo %s\n", to.Expires.Local().Format(time.DateTime), to.ID)
		fmt.Fprintf(&b, "Reclaimable space: %s\n", humanSize(size, 4))
		return a.print(b.String())
	}
	fmt.Fprintf(&b, "Total reclaimed space: %s\n", humanSize(size, 4))
	return a.print(b.String())
}

func planText(p *engine.Plan) (string, int64) {
	var b strings.Builder
	var total int64
	line := func(kind, name string, size int64, more string) {
		total += size
		fmt.Fprintf(&b, "  %-10s %-40s %10s%s\n", kind, printable(name), humanSize(size, 4), more)
	}
	for _, c := range p.Containers {
		line("container", c.Config.Name, c.Size(), "  "+string(c.Status)+", of "+c.Config.Image)
	}
	for _, v := range p.Volumes {
		kind := ""
		if v.Anonymous {
			kind = "  anonymous"
		}
		line("volume", v.Name, v.Size, kind)
	}
	for _, i := range p.Images {
		name := strings.Join(i.Names, ", ")
		if name == "" {
			name = shortID(i.ID.String())
		}
		line("image", name, i.Size-i.Shared, "")
	}
	for _, n := range p.Networks {
		line("network", n.Name, 0, "")
	}
	for _, r := range p.Removals {
		line("removal", r.ID, r.Size, "  "+r.Command)
		total -= r.Size // several may share layers
	}
	total += p.TrashBytes
	if p.Partial > 0 {
		line("downloads", fmt.Sprintf("%d that were broken off", p.Partials), p.Partial, "")
	}
	if p.Unowned > 0 {
		line("leftovers", "of killed commands", p.Unowned, "")
	}
	fmt.Fprintf(&b, "  %-10s %-40s %10s\n", "in all", "", humanSize(total, 4))
	return b.String(), total
}

// confirm asks on the terminal; without one, the answer has to be given by --force.
func (a *app) confirm(question string) error {
	if !term.IsTerminal(int(a.in.Fd())) {
		return &errdefs.Error{Op: "ask", Kind: errdefs.InvalidArgument, Why: "stdin is not a terminal", Fix: "say --force (-f) to do it without a question, or --dry-run to see what would go"}
	}
	if err := a.print(question); err != nil {
		return err
	}
	answer, err := bufio.NewReader(io.LimitReader(a.in, 100)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return &errdefs.Error{Kind: errdefs.Canceled, Why: "nothing was removed"}
}

// removedText prints what a removal says, as docker does.
func removedText(list []image.Removed) string {
	var b strings.Builder
	for _, r := range list {
		if r.Untagged != "" {
			b.WriteString("Untagged: " + r.Untagged + "\n")
		} else {
			b.WriteString("Deleted: " + r.Deleted + "\n")
		}
	}
	return b.String()
}

func buildUndo(a *app, c *cobra.Command) {
	var list bool
	c.Use = "undo [FLAGS] [REMOVAL]"
	c.Long = `Bring back what the last "rmi", "volume rm" or "prune" has removed, or an earlier one by its id: images with their names,
containers with their files, volumes with their data. It can be done until the removal's time is over (24 hours, see onggi system limits), the trash is emptied
(onggi system prune --trash), or space is needed.`
	c.Example = `  onggi undo
  onggi undo --list
  onggi undo 3f2a9c1b77de`
	c.Flags().BoolVarP(&list, "list", "l", false, "print what can be brought back")
	c.Args = takes(0, 1, "at most the id of a removal")
	c.RunE = func(c *cobra.Command, args []string) error {
		e, err := a.open()
		if err != nil {
			return err
		}
		if list {
			if len(args) > 0 {
				return badFlag("--list", "true", "it prints all removals", "leave "+args[0]+" out")
			}
			all, err := e.Removals()
			if err != nil {
				return err
			}
			now := time.Now()
			return a.print(table(all, []column[*engine.Removal]{
				{"REMOVAL", func(r *engine.Removal) string { return r.ID }},
				{"REMOVED", func(r *engine.Removal) string { return ago(r.Time, now) }},
				{"UNTIL", func(r *engine.Removal) string { return r.Expires.Local().Format(time.DateTime) }},
				{"COMMAND", func(r *engine.Removal) string { return r.Command }},
				{"IMAGES", func(r *engine.Removal) string { return strings.Join(r.Images, ", ") }},
				{"CONTAINERS", func(r *engine.Removal) string { return strings.Join(r.Containers, ", ") }},
				{"VOLUMES", func(r *engine.Removal) string { return strings.Join(r.Volumes, ", ") }},
			}))
		}
		ctx, cancel := a.context(c.Context())
		defer cancel()
		id := ""
		if len(args) == 1 {
			id = args[0]
		}
		out, err := e.Undo(ctx, id)
		var b strings.Builder
		for _, u := range out {
			fmt.Fprintf(&b, "Restored %s: %s\n", u.What, u.Name)
			if u.Taken != "" {
				a.warn(fmt.Sprintf("the name %s is another %s's now", u.Taken, u.What))
			}
		}
		return errors.Join(err, a.print(b.String()))
	}
}

func buildLimits(a *app, c *cobra.Command) {
	var quota, reserve, trash, keep string
	c.Use = "limits [FLAGS]"
	c.Long = `Show, or with flags set, what the store may take of the disk. The quota bounds what pull, load and import may let the root
directory grow to; what containers write counts, and is not stopped. The reserve is what they leave free on the file system
for the host. Before either refuses, the trash is emptied, the oldest removal first. Compressed layers that can be made again
out of the unpacked ones are not kept unless --keep-blobs is always. All this is kept in limits.json.`
	c.Example = `  onggi system limits
  onggi system limits --quota 20g --reserve 2g
  onggi system limits --trash 0                 rmi and prune delete at once
  onggi system limits --quota none --reserve default --trash default`
	f := c.Flags()
	f.StringVar(&quota, "quota", "", "`size` that the root directory may have, or none")
	f.StringVar(&reserve, "reserve", "", "`size` that stays free on the file system, none, or default (1 % of it, at most 1 GiB)")
	f.StringVar(&trash, "trash", "", "`time` for which removals can be undone (36h), 0 for not at all, or default (24h)")
	f.StringVar(&keep, "keep-blobs", "", "`policy` for compressed layers: auto, always, or default (auto)")
	c.Args = takes(0, 0, "no arguments")
	c.RunE = func(c *cobra.Command, args []string) error {
		e, err := a.open()
		if err != nil {
			return err
		}
		l, err := e.Limits()
		given := c.Flags().Changed
		if err != nil && !(errdefs.Is(err, errdefs.Corrupt) && given("quota") && given("reserve") && given("trash")) {
			return err
		}
		if given("quota") {
			l.Quota = 0
			if quota != "none" {
				if l.Quota, err = parseSize(quota); err != nil {
					return reading("--quota", quota, err)
				}
			}
		}
		if given("reserve") {
			l.Reserve, l.ReserveSet = 0, reserve != "default"
			if reserve != "none" && reserve != "default" {
				if l.Reserve, err = parseSize(reserve); err != nil {
					return reading("--reserve", reserve, err)
				}
			}
		}
		if given("trash") {
			l.Trash, l.TrashSet = 0, trash != "default"
			if trash != "0" && trash != "default" {
				d, err := time.ParseDuration(trash)
				if err != nil || d <= 0 {
					return reading("--trash", trash, &errdefs.Error{Why: "it is not a time", Fix: "write 90m, 36h, 0 or default"})
				}
				l.Trash = d
			}
		}
		if given("keep-blobs") {
			if l.KeepBlobs = image.Keep(keep); keep == "default" {
				l.KeepBlobs = ""
			} else if err := l.KeepBlobs.Check(); err != nil {
				return reading("--keep-blobs", keep, err)
			}
		}
		if given("quota") || given("reserve") || given("trash") || given("keep-blobs") {
			if err := e.SetLimits(l); err != nil {
				return err
			}
			if l, err = e.Limits(); err != nil {
				return err
			}
		}
		q := "none"
		if l.Quota > 0 {
			q = binarySize(l.Quota)
		}
		if l.KeepBlobs == "" {
			l.KeepBlobs = image.KeepAuto
		}
		return a.print(fmt.Sprintf("Quota:    %s\nReserve:  %s\nTrash:    %s\nBlobs:    %s\n", q, binarySize(l.Reserve), l.Trash, l.KeepBlobs))
	}
}
