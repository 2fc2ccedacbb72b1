package cli

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/onggi/onggi/errdefs"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// command is one row of the table of commands. It is a function, not a value, so that a start builds one command.
type command struct {
	name, short string
	group       string
	build       func(*app, *cobra.Command)
}

// The groups of `onggi --help`.
const (
	groupRun    = "Containers"
	groupLook   = "Looking at containers"
	groupImages = "Images"
	groupData   = "Data"
	groupHost   = "This host"
)

// commands lists all commands in the order of the help text.
func commands() []command {
	return []command{
		{"run", "Make a container from an image and run it", groupRun, buildRun},
		{"create", "Make a container without starting it", groupRun, buildCreate},
		{"start", "Start containers that are created or have ended", groupRun, buildStart},
		{"attach", "Attach to a running container's streams", groupRun, buildAttach},
		{"exec", "Run another command in a running container", groupRun, buildExec},
		{"stop", "Ask containers to end, and kill them when they do not", groupRun, buildStop},
		{"restart", "Stop containers and start them again", groupRun, buildRestart},
		{"kill", "Send a signal to containers", groupRun, buildKill},
		{"pause", "Let containers stand still", groupRun, buildPause},
		{"unpause", "Let paused containers go on", groupRun, buildUnpause},
		{"wait", "Wait until containers end and print their exit codes", groupRun, buildWait},
		{"cp", "Copy files between a container and this host", groupRun, buildCp},
		{"update", "Change limits and labels of containers", groupRun, buildUpdate},
		{"rename", "Give a container another name", groupRun, buildRename},
		{"rm", "Remove containers", groupRun, buildRm},
		{"ps", "List containers", groupLook, buildPs},
		{"logs", "Print what a container has written", groupLook, buildLogs},
		{"events", "Print what has happened, and what happens", groupLook, buildEvents},
		{"why", "Say why a container has ended, or does not run", groupLook, buildWhy},
		{"inspect", "Print all that is known about containers, images, networks or volumes", groupLook, buildInspect},
		{"stats", "Show what containers use", groupLook, buildStats},
		{"top", "List a container's processes", groupLook, buildTop},
		{"port", "Print where a container's ports are published", groupLook, buildPort},
		{"diff", "List what a container has otherwise than its image", groupLook, buildDiff},
		{"export", "Write a container's root file system as a tar archive", groupLook, buildExport},
		{"build", "Make an image from a Dockerfile", groupImages, buildBuild},
		{"pull", "Bring an image in from a registry", groupImages, buildPull},
		{"push", "Bring an image into a registry", groupImages, buildPush},
		{"login", "Log in at a registry", groupImages, buildLogin},
		{"logout", "Forget a registry's login", groupImages, buildLogout},
		{"images", "List images", groupImages, buildImages},
		{"tag", "Give an image another name", groupImages, buildTag},
		{"rmi", "Remove images", groupImages, buildRmi},
		{"image", "Look into images, prune them", groupImages, group(imageCommands)},
		{"import", "Make an image from a root file system's tar archive", groupImages, buildImport},
		{"load", "Bring in the images of an archive", groupImages, buildLoad},
		{"save", "Write images as an archive", groupImages, buildSave},
		{"commit", "Make an image of a container's changes", groupImages, buildCommit},
		{"history", "Show how an image came to be", groupImages, buildHistory},
		{"manifest", "Look at manifests, make lists of images for several platforms", groupImages, group(manifestCommands)},
		{"search", "Say where to search for images", groupImages, buildSearch},
		{"container", "What concerns containers, as docker container", groupRun, group(containerCommands)},
		{"volume", "Data that outlives containers", groupData, group(volumeCommands)},
		{"network", "What containers reach, and what reaches them", groupData, group(networkCommands)},
		{"secret", "Values that containers get as files, and nobody sees", groupData, group(secretCommands)},
		{"config", "Files that containers get", groupData, group(configCommands)},
		{"undo", "Bring back what rmi, volume rm or prune has removed", groupHost, buildUndo},
		{"builder", "What builds have left to be used again", groupHost, group(builderCommands)},
		{"system", "What the store takes, and how to get it back", groupHost, group(systemCommands)},
		{"doctor", "Look for what is wrong with this host and its store, and put it right", groupHost, buildDoctor},
		{"info", "Describe this host and its store", groupHost, buildInfo},
		{"completion", "Print a script that lets a shell complete commands and names", groupHost, buildCompletion},
		{"version", "Print the version", groupHost, buildVersion},
		{"container-restart", "Start a container that rests (called when its pause is over)", "", buildAgain},
		{"container-cleanup", "Do what follows a container's exit (called by its monitor)", "", buildCleanup},
	}
}

// tree returns the root command with the one command that args call, or with all of them when none is recognised and
// for help and completion.
func (a *app) tree(args []string) *cobra.Command {
	cobra.EnableCommandSorting = false // the table's order is the order of use
	root := &cobra.Command{
		Use: "onggi [GLOBAL FLAGS] COMMAND",

		DisableFlagsInUseLine: true,
		Short:                 "Containers: images in, isolated processes out",
		SilenceErrors:         true,
		SilenceUsage:          true,
		Long: `Onggi pulls images and runs containers. The whole engine is in this program: no daemon has to run. Each container
has one small process beside it, its monitor, which writes the log and outlives this command.

State lies below two directories: --root keeps images and containers, --run-root what a reboot may take. Give other
directories, and you have another store beside the first.`,
		Example: `  onggi run --rm onggi/hello                    a first container; needs no network
  onggi run --rm -it debian:12 bash             a shell in Debian
  onggi run -d --name web -p 8080:80 nginx      a server in the background
  onggi logs -f web                             its output
  onggi exec -it web sh                         a shell beside it
  onggi rm -f web                               and away with it`,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(args[0])
			}
			return c.Help()
		},
		Args: cobra.ArbitraryArgs,
	}
	f := root.PersistentFlags()
	f.SortFlags = false
	f.StringVar(&a.root, "root", os.Getenv("ONGGI_ROOT"), "`directory` of images and containers (ONGGI_ROOT; default /var/lib/onggi, without root ~/.local/share/onggi)")
	f.StringVar(&a.runRoot, "run-root", os.Getenv("ONGGI_RUN_ROOT"), "`directory` of what a reboot may take (ONGGI_RUN_ROOT; default /run/onggi, without root $XDG_RUNTIME_DIR/onggi)")
	f.BoolVar(&a.debug, "debug", false, "print paths, phases and the causes of errors on stderr")
	f.StringVar(&a.keepBlobs, "keep-blobs", os.Getenv("ONGGI_KEEP_BLOBS"), "`policy` for compressed layers: auto keeps those that cannot be made again, always all (ONGGI_KEEP_BLOBS; default see system limits)")
	f.BoolVar(&a.offline, "offline", os.Getenv("ONGGI_OFFLINE") != "" && os.Getenv("ONGGI_OFFLINE") != "0", "ask no registry for anything (ONGGI_OFFLINE)")
	f.Lookup("offline").DefValue = "false"
	f.Lookup("root").DefValue, f.Lookup("run-root").DefValue, f.Lookup("keep-blobs").DefValue = "", "", ""
	root.Flags().SetInterspersed(false)
	root.SetFlagErrorFunc(flagError)
	root.SetHelpFunc(a.help)
	root.SetUsageFunc(func(*cobra.Command) error { return nil })
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.CompletionOptions.HiddenDefaultCmd = true

	called := firstWord(args)
	all := commands()
	for i := range all {
		if all[i].name == called {
			all = all[i : i+1]
			break
		}
	}
	for _, c := range all {
		root.AddCommand(a.command(c))
	}
	if strings.HasPrefix(called, cobra.ShellCompRequestCmd) {
		a.complete(root)
	}
	root.Flags().BoolP("version", "v", false, "print the version")
	run := root.RunE
	root.RunE = func(c *cobra.Command, args []string) error {
		if v, _ := c.Flags().GetBool("version"); v {
			return a.print(versionLine() + "\n")
		}
		return run(c, args)
	}
	return root
}

// command builds one row of the table.
func (a *app) command(c command) *cobra.Command {
	cmd := &cobra.Command{Use: c.name, Short: c.short, Hidden: c.group == "", DisableFlagsInUseLine: true}
	cmd.Flags().SortFlags = false
	c.build(a, cmd)
	if own, rest, _ := strings.Cut(cmd.Use, " "); own != c.name { // the same command under another name: image ls
		cmd.Use = c.name + " " + rest
	}
	if c.group != "" {
		cmd.Annotations = map[string]string{"group": c.group}
	}
	cmd.Flags().BoolP("help", "", false, "print this text")
	cmd.Flags().Lookup("help").Hidden = true
	return cmd
}

// group builds a command that only has others below it: `system df`, `image prune`.
func group(commands func() []command) func(*app, *cobra.Command) {
	return func(a *app, c *cobra.Command) {
		var names []string
		for _, sub := range commands() {
			c.AddCommand(a.command(sub))
			names = append(names, sub.name)
		}
		c.Example = "  onggi " + c.Use + " " + names[0]
		c.Use += " COMMAND"
		c.Args = cobra.ArbitraryArgs
		c.RunE = func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return c.Help()
			}
			fix := "all commands: " + c.CommandPath() + " --help"
			if near := nearest(args[0], names); near != "" {
				fix = "did you mean " + c.CommandPath() + " " + near + "? " + fix
			}
			return &errdefs.Error{Kind: errdefs.InvalidArgument, Why: fmt.Sprintf("there is no command %q in %s", args[0], c.CommandPath()), Fix: fix}
		}
	}
}

// firstWord returns the first argument that is not a global flag or its value.
func firstWord(args []string) string {
	for i := 0; i < len(args); i++ {
		switch {
		case args[i] == "--root" || args[i] == "--run-root":
			i++
		case strings.HasPrefix(args[i], "-"):
		default:
			return args[i]
		}
	}
	return ""
}

// unknownCommand is the error for a command that does not exist.
func unknownCommand(name string) error {
	var names []string
	for _, c := range commands() {
		if c.group != "" {
			names = append(names, c.name)
		}
	}
	fix := "all commands: onggi --help"
	if near := nearest(name, names); near != "" {
		fix = "did you mean onggi " + near + "? " + fix
	}
	return &errdefs.Error{Kind: errdefs.InvalidArgument, Why: fmt.Sprintf("there is no command %q", name), Fix: fix}
}

// flagError makes an error with a remedy of what pflag says, with docker's exit code for it.
func flagError(c *cobra.Command, err error) error {
	if errors.Is(err, pflag.ErrHelp) {
		return err
	}
	e := &errdefs.Error{Op: "use", Kind: errdefs.InvalidArgument, Fix: "all flags: " + c.CommandPath() + " --help"}
	var (
		unknown *pflag.NotExistError
		missing *pflag.ValueRequiredError
		invalid *pflag.InvalidValueError
		syntax  *pflag.InvalidSyntaxError
	)
	if own := (*errdefs.Error)(nil); errors.As(err, &own) { // a flag that is known and refused
		return &exit{125, own}
	}
	switch {
	case errors.As(err, &unknown):
		name := unknown.GetSpecifiedName()
		shown := "--" + name
		if unknown.GetSpecifiedShortnames() != "" {
			shown = "-" + name
		}
		e.What, e.Why = shown, fmt.Sprintf("%s has no such flag", c.CommandPath())
		if near := nearest(name, flagNames(c)); near != "" && len(shown) > 2 {
			e.Fix = "did you mean --" + near + "? " + e.Fix
		}
	case errors.As(err, &missing):
		e.What, e.Why = shownFlag(missing.GetFlag()), "the flag needs a value, and none follows it"
		if f := missing.GetFlag(); f != nil {
			value, _ := pflag.UnquoteUsage(f)
			e.Fix = fmt.Sprintf("write %s %s. %s", shownFlag(f), strings.ToUpper(value), e.Fix)
		}
	case errors.As(err, &invalid):
		e.What = shownFlag(invalid.GetFlag()) + "=" + invalid.GetValue()
		e.Why = "the value is not " + kindOfValue(invalid.GetFlag())
	case errors.As(err, &syntax):
		e.What, e.Why = syntax.GetSpecifiedFlag(), "this is not how a flag is written"
	default:
		e.Op, e.Err = "read the flags", err
	}
	return &exit{125, e}
}

func shownFlag(f *pflag.Flag) string {
	if f == nil {
		return "the flag"
	}
	return "--" + f.Name
}

func kindOfValue(f *pflag.Flag) string {
	if f == nil {
		return "valid"
	}
	switch f.Value.Type() {
	case "bool":
		return "true or false"
	case "int", "int64", "uint64":
		return "a whole number"
	}
	return "a valid " + f.Value.Type()
}

func flagNames(c *cobra.Command) []string {
	var names []string
	add := func(f *pflag.Flag) {
		if !f.Hidden {
			names = append(names, f.Name)
		}
	}
	c.Flags().VisitAll(add)
	c.InheritedFlags().VisitAll(add)
	return names
}

// takes checks the number of arguments; what names them, as in "an image and its new name". A negative max is no bound.
func takes(min, max int, what string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) >= min && (max < 0 || len(args) <= max) {
			return nil
		}
		got := "got none"
		if len(args) > 0 {
			got = fmt.Sprintf("got %d: %s", len(args), strings.Join(quoteAll(args), " "))
		}
		return &errdefs.Error{
			Op: c.Name(), Kind: errdefs.InvalidArgument, Why: fmt.Sprintf("the command takes %s, and %s", what, got),
			Fix: fmt.Sprintf("%s; see: %s --help", c.UseLine(), c.CommandPath()),
		}
	}
}

// quoteAll quotes the arguments that a shell would split or that cannot be seen.
func quoteAll(args []string) []string {
	q := make([]string, len(args))
	for i, s := range args {
		if q[i] = s; s == "" || strings.ContainsAny(s, " \t\n\"'\\") {
			q[i] = fmt.Sprintf("%q", s)
		}
	}
	return q
}

// badFlag is the error for a flag's value that is not honoured.
func badFlag(flag, value, why, fix string) error {
	return &errdefs.Error{Op: "use", What: flag + "=" + value, Kind: errdefs.InvalidArgument, Why: why, Fix: fix}
}

// nearest returns the candidate that a typing error away from word, or "".
func nearest(word string, candidates []string) string {
	best, least := "", 3
	if len(word) < 5 {
		least = 2 // two errors in a short word make any other word
	}
	if len(word) < 2 {
		return ""
	}
	for _, c := range candidates {
		d := distance(word, c)
		if strings.HasPrefix(c, word) && len(word) >= 3 {
			d = min(d, 1)
		}
		if d < least || d == least && best == "" && d < 3 {
			best, least = c, d
		}
	}
	return best
}

// distance counts the insertions, deletions, replacements and swaps of neighbours between two words (the restricted
// Damerau-Levenshtein distance). Words beyond 64 bytes are just far apart.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	var rows [3][66]int
	for j := range len(b) + 1 {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		row, up, up2 := &rows[i%3], &rows[(i+2)%3], &rows[(i+1)%3]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(up[j]+1, row[j-1]+1, up[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], up2[j-2]+1)
			}
		}
	}
	return rows[len(a)%3][len(b)]
}
