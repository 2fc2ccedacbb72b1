package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/onggi/onggi/build"
	"github.com/onggi/onggi/build/cache"
	"github.com/onggi/onggi/build/history"
	"github.com/onggi/onggi/engine"
	"github.com/onggi/onggi/errdefs"
	"github.com/spf13/cobra"
)

// buildSubcommands are what follows `onggi build` as its very next word.
func buildSubcommands() []command {
	return []command{
		{"why", "Say why steps of a build ran, or that they hit the cache", groupImages, buildBuildWhy},
		{"history", "List builds, print their logs, forget them", groupImages, buildBuildHistory},
		{"inspect", "Print all that is known of a build", groupImages, buildBuildInspect},
		{"debug", "Open a shell in the step that failed", groupImages, buildBuildDebug},
	}
}

func buildHistoryCommands() []command {
	return []command{
		{"ls", "List builds", groupImages, buildBuildLs},
		{"inspect", "Print all that is known of a build", groupImages, buildBuildInspect},
		{"logs", "Print what the steps of a build printed", groupImages, buildBuildLogs},
		{"rm", "Forget builds", groupImages, buildBuildRm},
	}
}

// buildCommands returns the subcommands of build if one is called or help is asked for. They are commands only as the next
// word after build: `onggi build -t x debug` builds the directory debug, as docker does.
func (a *app) buildCommands() []command {
	subs := buildSubcommands()
	if a.args == nil { // the reference of all commands
		return subs
	}
	for i, w := range a.args {
		switch {
		case w == "--help" || w == "-h" || w == "__complete" || w == "help":
			return subs
		case w == "build" && i+1 < len(a.args):
			for _, s := range subs {
				if s.name == a.args[i+1] {
					return []command{s}
				}
			}
		}
	}
	return nil
}

// lookedUp opens the history and finds a build, the last one for "".
func (a *app) lookedUp(id string) (*engine.Engine, *history.Store, *history.Record, error) {
	e, err := a.open()
	if err != nil {
		return nil, nil, nil, err
	}
	h, err := e.BuildHistory()
	if err != nil {
		return nil, nil, nil, err
	}
	r, err := h.Get(id)
	return e, h, r, err
}

func buildBuildWhy(a *app, c *cobra.Command) {
	var id, form string
	c.Use = "why [FLAGS] [STEP]"
	c.Long = `Say of each step of a build whether it hit the cache, and if not, what exactly it had otherwise than the nearest earlier
run of the same place in the Dockerfile: which file, which argument, which base image. With a step (its number, or words of
its line) print all that it depended on.`
	c.Example = `  onggi build why                               the last build
  onggi build why 7                             all that step #7 depended on
  onggi build why "RUN make"
  onggi build why --build 3f9a                  an earlier build`
	f := c.Flags()
	f.StringVar(&id, "build", "", "the `build` (default: the last one)")
	f.StringVar(&form, "format", "", formatUsage)
	c.Args = takes(0, 1, "a step at most")
	c.RunE = func(c *cobra.Command, args []string) error {
		out, err := newFormat(form, c.Flags().Changed("format"))
		if err != nil {
			return err
		}
		e, err := a.open()
		if err != nil {
			return err
		}
		step := ""
		if len(args) > 0 {
			step = args[0]
		}
		return a.printWhy(a.out, e, id, step, out)
	}
}

// printWhy explains a build, or one step of it.
func (a *app) printWhy(to *os.File, e *engine.Engine, id, step string, form format) error {
	h, err := e.BuildHistory()
	if err != nil {
		return err
	}
	r, err := h.Get(id)
	if err != nil {
		return err
	}
	steps := r.Steps
	if step != "" {
		s, err := findStep(r, step)
		if err != nil {
			return err
		}
		steps = []*history.Step{s}
	}
	var b strings.Builder
	switch {
	case form.json || form.tmpl != nil:
		for _, s := range steps {
			if form.tmpl != nil {
				line, err := form.execute(s)
				if err != nil {
					return err
				}
				b.WriteString(line)
				continue
			}
			j, err := marshal(s, "")
			if err != nil {
				return err
			}
			b.Write(j)
		}
	case step != "":
		a.whyStep(&b, a.paint(to), h, r, steps[0])
	default:
		a.whyBuild(&b, a.paint(to), r)
	}
	_, err = io.WriteString(to, b.String())
	return err
}

// findStep finds a step by its number or by words of its name.
func findStep(r *history.Record, what string) (*history.Step, error) {
	if n, err := strconv.Atoi(strings.TrimPrefix(what, "#")); err == nil {
		for _, s := range r.Steps {
			if s.Number == n {
				return s, nil
			}
		}
	}
	var found []*history.Step
	for _, s := range r.Steps {
		if strings.Contains(strings.ToLower(s.Name), strings.ToLower(what)) {
			found = append(found, s)
		}
	}
	e := &errdefs.Error{Op: "find", What: "the step " + what, Kind: errdefs.NotFound, Why: "the build " + r.ID + " has no such step", Fix: "see all of them: onggi build why --build " + r.ID}
	if len(found) > 1 {
		e.Kind, e.Why = errdefs.Conflict, fmt.Sprintf("several steps of the build %s have these words: #%d and #%d", r.ID, found[0].Number, found[1].Number)
		e.Fix = "name one by its number"
	}
	if len(found) != 1 {
		return nil, e
	}
	return found[0], nil
}

func (a *app) whyBuild(b *strings.Builder, p painter, r *history.Record) {
	fmt.Fprintf(b, "%s\n", p.bold(fmt.Sprintf("build %s of %s, %s: %s in %s", r.ID, printable(buildName(r)), ago(r.Started, time.Now()), r.State, seconds(r.Took))))
	fmt.Fprintf(b, "%s hit the cache, %s ran\n", count(r.Hits(), "step"), count(r.Ran(), "step"))
	for _, s := range r.Steps {
		if s.Key == "" && s.State == string(build.Done) {
			continue // a source: it is looked at each time
		}
		fmt.Fprintf(b, "\n%s\n", stepLine(p, s))
		for _, l := range because(r, s) {
			fmt.Fprintf(b, "    %s\n", l)
		}
	}
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1fs", d.Seconds()) }

func buildName(r *history.Record) string {
	if len(r.Names) > 0 {
		return strings.Join(r.Names, ", ")
	}
	return r.Context
}

// stepLine is a step with its result.
func stepLine(p painter, s *history.Step) string {
	result := ""
	switch build.State(s.State) {
	case build.Cached:
		result = p.green("hit")
	case build.Failed:
		result = p.red("failed after " + seconds(s.Took))
	case build.Done:
		result = "ran " + seconds(s.Took)
	case build.Canceled:
		result = p.yellow("canceled")
	default:
		result = p.yellow("did not end")
	}
	return fmt.Sprintf("#%d %s: %s", s.Number, printable(s.Name), result)
}

// because says in words why a step ran.
func because(r *history.Record, s *history.Step) (lines []string) {
	w := s.Why
	if w == nil {
		return nil
	}
	earlier := ""
	if w.Build != "" {
		earlier = fmt.Sprintf("the run of build %s, %s", w.Build, ago(w.At, time.Now()))
	}
	switch w.Reason {
	case history.First:
		return []string{"it was never built here before"}
	case history.Asked:
		return []string{"--no-cache or --no-cache-filter was given"}
	case history.Retried:
		return []string{"nothing changed, but " + earlier + ", failed"}
	case history.Forgotten:
		return []string{"nothing changed since " + earlier + "; the cache has forgotten it (builder prune)"}
	}
	for _, c := range w.Changes {
		lines = append(lines, changeText(r, s, w, c))
	}
	if w.More > 0 {
		lines = append(lines, fmt.Sprintf("and %s more", count(w.More, "change")))
	}
	return append(lines, "compared with "+earlier)
}

// changeText says one change in words.
func changeText(r *history.Record, s *history.Step, w *history.Why, c cache.Change) string {
	was, now := shortValue(c.Part, c.Was), shortValue(c.Part, c.Now)
	switch {
	case c.Part == "base image":
		return fmt.Sprintf("the base image: it was %s, and is %s", baseText(c.Was), baseText(c.Now))
	case strings.HasPrefix(c.Part, "epoch"):
		return fmt.Sprintf("the base image's time, which new files get: it was %s, and is %s", c.Was, c.Now)
	case strings.HasPrefix(c.Part, "the steps before"):
		return "what it stands on" + onWhom(r, s)
	case strings.HasPrefix(c.Part, "instruction"):
		return fmt.Sprintf("the instruction: it was %s", printable(withoutPlace(w.Name)))
	case strings.HasPrefix(c.Part, "content of"), strings.HasPrefix(c.Part, "accounts"):
		return "the " + printable(c.Part) + onWhom(r, s)
	}
	name := printable(c.Part)
	if v, ok := strings.CutPrefix(c.Part, "environment "); ok {
		if _, given := r.Options["build-arg:"+v]; given {
			name = "the argument " + printable(v)
		} else {
			name = "the argument or variable " + printable(v)
		}
	}
	switch {
	case c.Was == "":
		return name + ": it is new" + quotedIf(now, strings.HasPrefix(c.Part, "environment "))
	case c.Now == "":
		return name + ": it is gone"
	case strings.HasPrefix(c.Part, "file"):
		return name + ": its content, mode or owner"
	}
	return fmt.Sprintf("%s: it was %s, and is %s", name, strconv.Quote(was), strconv.Quote(now))
}

func quotedIf(s string, show bool) string {
	if !show {
		return ""
	}
	return ", " + strconv.Quote(s)
}

// onWhom names the steps that ran before a step and led to its being run.
func onWhom(r *history.Record, s *history.Step) string {
	var who []string
	for _, n := range s.After {
		for _, o := range r.Steps {
			if o.Number == n && (o.Key != "" || o.State != string(build.Cached)) && o.Why != nil {
				who = append(who, fmt.Sprintf("#%d %s", n, printable(o.Name)))
			}
		}
	}
	if len(who) == 0 {
		return ""
	}
	return ": " + strings.Join(who, " and ") + " came to something else"
}

// withoutPlace is the instruction of "[stage 2/3] RUN make".
func withoutPlace(name string) string {
	if strings.HasPrefix(name, "[") {
		if _, rest, ok := strings.Cut(name, "] "); ok {
			return rest
		}
	}
	return name
}

func baseText(s string) string {
	name, d, ok := strings.Cut(s, "@")
	if !ok {
		return "none"
	}
	return printable(familiar(name)) + " (" + shortID(d) + ")"
}

// shortValue is a part's value for people: of a command the words, of a digest the beginning.
func shortValue(part, v string) string {
	if part == "command" {
		var args []string
		if json.Unmarshal([]byte(v), &args) == nil {
			if len(args) == 3 && args[1] == "-c" {
				v = args[2]
			} else {
				v = strings.Join(quoteAll(args), " ")
			}
		}
	}
	if d, ok := strings.CutPrefix(v, "sha256:"); ok && len(d) == 64 {
		return "sha256:" + d[:12]
	}
	if r := []rune(v); len(r) > 200 {
		return string(r[:200]) + "..."
	}
	return v
}

// maxParts is how many files of a step are listed.
const maxParts = 40

// whyStep prints all that a step depended on.
func (a *app) whyStep(b *strings.Builder, p painter, h *history.Store, r *history.Record, s *history.Step) {
	fmt.Fprintf(b, "%s\n", p.bold(stepLine(p, s)))
	for _, l := range because(r, s) {
		fmt.Fprintf(b, "    %s\n", l)
	}
	if s.Error != "" {
		fmt.Fprintf(b, "    %s\n", p.red(printable(s.Error)))
	}
	row := func(k, v string) { fmt.Fprintf(b, "%-18s %s\n", k, v) }
	if s.Line > 0 {
		row("instruction", fmt.Sprintf("%s:%d", printable(s.Dockerfile), s.Line))
	}
	if s.Source != "" {
		row("source", printable(s.Source))
	}
	var after []string
	for _, n := range s.After {
		after = append(after, fmt.Sprintf("#%d", n))
	}
	if len(after) > 0 {
		row("after", strings.Join(after, " "))
	}
	if s.Key == "" {
		return
	}
	row("key", s.Key.String())
	run := h.Run(s.Slot, s.Key)
	if run == nil {
		row("parts", "the history has forgotten them")
		return
	}
	if run.Base != "" {
		row("base", printable(run.Base))
	}
	files := 0
	for _, part := range run.Parts {
		if strings.HasPrefix(part.Name, "file ") {
			if files++; files > maxParts {
				continue
			}
		}
		row(printable(part.Name), printable(shortValue(part.Name, part.Value)))
	}
	if files > maxParts {
		row("and", count(files-maxParts, "more file"))
	}
}

// buildBuildHistory is ls, with the other commands below it.
func buildBuildHistory(a *app, c *cobra.Command) {
	for _, sub := range buildHistoryCommands() {
		c.AddCommand(a.command(sub))
	}
	buildBuildLs(a, c)
	c.Use = "history [COMMAND]"
}

// buildRow is a line of `build history`.
type buildRow struct {
	ID, Name, Status, CreatedAt, Created, Duration string
	Steps, Cached                                  int
	Ref                                            string
}

func buildBuildLs(a *app, c *cobra.Command) {
	var quiet, noTrunc bool
	var form string
	var filters []string
	c.Use = "ls [FLAGS]"
	c.Long = `List builds, the last one first: what they made, how many of their steps hit the cache, how they ended.`
	c.Example = `  onggi build history
  onggi build history ls --filter status=error
  onggi build history ls --format json`
	f := c.Flags()
	f.StringArrayVarP(&filters, "filter", "f", nil, "list only builds with `status=STATE`: running, completed, error, canceled, killed")
	f.BoolVar(&noTrunc, "no-trunc", false, "print whole names")
	f.BoolVarP(&quiet, "quiet", "q", false, "print ids only")
	f.StringVar(&form, "format", "", formatUsage)
	c.Args = takes(0, 0, "no arguments")
	c.RunE = func(c *cobra.Command, _ []string) error {
		out, err := newFormat(form, c.Flags().Changed("format"))
		if err != nil {
			return err
		}
		var states []string
		for _, s := range filters {
			k, v, _ := strings.Cut(s, "=")
			all := []string{string(history.Running), string(history.Completed), string(history.Failed), string(history.Canceled), string(history.Killed)}
			if k != "status" || !slices.Contains(all, v) {
				return badFlag("--filter", s, "there is no such filter", "write status=error; the states are "+strings.Join(all, ", "))
			}
			states = append(states, v)
		}
		e, err := a.open()
		if err != nil {
			return err
		}
		h, err := e.BuildHistory()
		if err != nil {
			return err
		}
		list, err := h.List()
		if err != nil {
			return err
		}
		now := time.Now()
		var rows []buildRow
		for _, r := range list {
			if len(states) > 0 && !slices.Contains(states, string(r.State)) {
				continue
			}
			row := buildRow{
				ID: r.ID, Ref: r.ID, Name: printable(buildName(r)), Status: string(r.State), Created: ago(r.Started, now),
				CreatedAt: r.Started.Local().Format("2006-01-02 15:04:05 -0700 MST"), Duration: seconds(r.Took), Steps: r.Hits() + r.Ran(), Cached: r.Hits(),
			}
			if !noTrunc {
				row.Name = shorten(row.Name, 40)
			}
			if r.State == history.Running {
				row.Duration = seconds(now.Sub(r.Started))
			}
			rows = append(rows, row)
		}
		if quiet {
			var b strings.Builder
			for _, r := range rows {
				b.WriteString(r.ID + "\n")
			}
			return a.print(b.String())
		}
		return writeRows(a, out, rows, []column[buildRow]{
			{"BUILD ID", func(r buildRow) string { return r.ID }},
			{"NAME", func(r buildRow) string { return r.Name }},
			{"STATUS", func(r buildRow) string { return r.Status }},
			{"CACHED", func(r buildRow) string { return fmt.Sprintf("%d/%d", r.Cached, r.Steps) }},
			{"CREATED", func(r buildRow) string { return r.Created }},
			{"DURATION", func(r buildRow) string { return r.Duration }},
		})
	}
}

func buildBuildInspect(a *app, c *cobra.Command) {
	var form string
	c.Use = "inspect [FLAGS] [BUILD]"
	c.Long = `Print a build (the last one by default): what was asked for, what came out, and each step with its line of the
Dockerfile, its result, when it began and how long it took. With --format json all that is recorded.`
	c.Example = `  onggi build inspect
  onggi build inspect 3f9a --format json | jq '.steps[] | {name, tookNanoseconds}'`
	c.Flags().StringVarP(&form, "format", "f", "", formatUsage)
	c.Args = takes(0, 1, "a build at most")
	c.RunE = func(c *cobra.Command, args []string) error {
		out, err := newFormat(form, c.Flags().Changed("format"))
		if err != nil {
			return err
		}
		_, _, r, err := a.lookedUp(first(args))
		if err != nil {
			return err
		}
		switch {
		case out.json:
			b, err := marshal(r, "    ")
			if err != nil {
				return err
			}
			return a.print(string(b))
		case out.tmpl != nil:
			s, err := out.execute(r)
			if err != nil {
				return err
			}
			return a.print(s)
		}
		return a.print(a.inspectBuild(r))
	}
}

func first(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

func (a *app) inspectBuild(r *history.Record) string {
	var b strings.Builder
	p := a.paint(a.out)
	row := func(k, v string) {
		if v != "" {
			fmt.Fprintf(&b, "%-12s %s\n", k, printable(v))
		}
	}
	row("Build", r.ID)
	row("Name", strings.Join(r.Names, ", "))
	row("Context", r.Context)
	row("Dockerfile", r.Dockerfile)
	row("Status", string(r.State))
	row("Started", r.Started.Local().Format("2006-01-02 15:04:05 -0700 MST"))
	row("Took", seconds(r.Took))
	row("Cached", fmt.Sprintf("%d of %d steps", r.Hits(), r.Hits()+r.Ran()))
	for _, d := range r.Images {
		row("Image", d.String())
	}
	if r.Kept != nil {
		row("Kept", fmt.Sprintf("the file system of step #%d: onggi build debug %s", r.Kept.Step, r.ID))
	}
	var names []string
	for k := range r.Options {
		names = append(names, k)
	}
	slices.Sort(names)
	for _, k := range names {
		row("Option", k+"="+r.Options[k])
	}
	for _, w := range r.Warnings {
		row("Warning", w)
	}
	if r.Error != "" {
		row("Error", p.red(printable(r.Error)))
	}
	rows := make([][4]string, 0, len(r.Steps))
	for _, s := range r.Steps {
		took := ""
		if s.State != string(build.Cached) {
			took = fmt.Sprintf("%.3fs", s.Took.Seconds())
		}
		line := ""
		if s.Line > 0 {
			line = fmt.Sprintf("%s:%d", filepath.Base(s.Dockerfile), s.Line)
		}
		rows = append(rows, [4]string{fmt.Sprintf("#%d", s.Number), s.State, fmt.Sprintf("%.3fs", s.Began.Seconds()) + "\t" + took + "\t" + printable(line), printable(s.Name)})
	}
	b.WriteString("\n")
	lines := []string{"STEP\tRESULT\tBEGAN\tTOOK\tLINE\tNAME"}
	for _, r := range rows {
		lines = append(lines, strings.Join(r[:], "\t"))
	}
	b.WriteString(align(strings.Join(lines, "\n") + "\n"))
	return b.String()
}

func buildBuildLogs(a *app, c *cobra.Command) {
	var step string
	c.Use = "logs [FLAGS] [BUILD]"
	c.Long = `Print what the steps of a build (the last one by default) printed, line by line with the step's number and the time. Values
of secrets are not in it.`
	c.Example = `  onggi build history logs
  onggi build history logs --step 7 3f9a`
	c.Flags().StringVar(&step, "step", "", "only this `step`, without number and time")
	c.Args = takes(0, 1, "a build at most")
	c.RunE = func(c *cobra.Command, args []string) error {
		_, h, r, err := a.lookedUp(first(args))
		if err != nil {
			return err
		}
		only := 0
		if step != "" {
			s, err := findStep(r, step)
			if err != nil {
				return err
			}
			only = s.Number
		}
		rest := map[int]string{}
		line := func(n int, at time.Duration, text string) error {
			if only != 0 {
				return a.print(text + "\n")
			}
			return a.print(fmt.Sprintf("#%d %.3f %s\n", n, at.Seconds(), printable(strings.TrimRight(text, "\r"))))
		}
		err = h.Output(r.ID, func(n int, at time.Duration, data []byte) error {
			if only != 0 && n != only {
				return nil
			}
			lines := strings.Split(rest[n]+string(data), "\n")
			for _, l := range lines[:len(lines)-1] {
				if err := line(n, at, l); err != nil {
					return err
				}
			}
			rest[n] = lines[len(lines)-1]
			return nil
		})
		for n, l := range rest {
			if l != "" && err == nil {
				err = line(n, r.Took, l)
			}
		}
		if r.Cut && err == nil {
			a.warn(fmt.Sprintf("the log is longer: the first %s are kept", humanSize(history.MaxLog, 3)))
		}
		return err
	}
}

func buildBuildRm(a *app, c *cobra.Command) {
	var all bool
	c.Use = "rm [FLAGS] BUILD [BUILD...]"
	c.Long = `Forget builds: their records, their logs, and the file systems of their failed steps. What they have made stays, and so does
the cache.`
	c.Example = `  onggi build history rm 3f9a
  onggi build history rm --all`
	c.Flags().BoolVar(&all, "all", false, "all builds that do not run")
	c.RunE = func(c *cobra.Command, args []string) error {
		if all == (len(args) > 0) {
			return &errdefs.Error{Op: "rm", Kind: errdefs.InvalidArgument, Why: "name builds, or give --all", Fix: "see: onggi build history"}
		}
		e, err := a.open()
		if err != nil {
			return err
		}
		h, err := e.BuildHistory()
		if err != nil {
			return err
		}
		ctx, cancel := a.context(c.Context())
		defer cancel()
		if all {
			list, err := h.List()
			if err != nil {
				return err
			}
			for _, r := range list {
				if r.State != history.Running {
					args = append(args, r.ID)
				}
			}
		}
		return a.forEach(ctx, args, func(ctx context.Context, id string) (string, error) {
			r, err := h.Get(id)
			if err != nil {
				return "", err
			}
			return r.ID, errors.Join(build.Release(ctx, e, r), h.Remove(r.ID))
		})
	}
}
