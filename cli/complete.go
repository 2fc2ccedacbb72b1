package cli

import (
	"context"
	"slices"
	"strings"

	"github.com/onggi/onggi/engine"
	"github.com/onggi/onggi/errdefs"
	"github.com/spf13/cobra"
)

// Shell completion: `onggi completion bash` prints a script, which asks `onggi __complete ...` what may follow. The
// scripts and that protocol are cobra's (cobra's site/content/completions/_index.md); what may follow is said here.

// candidates lists what may stand in the place of an argument.
type candidates func(context.Context, *engine.Engine) ([]string, error)

// arguments says of a command, by its path below onggi, what each of its arguments is: the first, the second, and so on;
// the last goes for all that follow. Nil is a file name.
func arguments(path string) []candidates {
	if rest, ok := strings.CutPrefix(path, "container "); ok {
		path = rest
	}
	switch path {
	case "run", "create":
		return []candidates{imageNames, nil}
	case "exec":
		return []candidates{runningNames, nil}
	case "stop", "kill", "pause", "attach", "stats", "top", "port":
		return []candidates{runningNames}
	case "unpause", "start", "wait", "rm", "logs", "diff", "restart", "rename", "update", "export", "why":
		return []candidates{containerNames}
	case "commit":
		return []candidates{containerNames, imageNames}
	case "inspect":
		return []candidates{either}
	case "push", "pull", "rmi", "tag", "save", "history", "image rm", "image inspect", "image history", "image push", "image pull",
		"image save", "image tag", "image layers", "image diff", "image tree", "image waste", "image verify", "image referrers":
		return []candidates{imageNames}
	case "volume rm", "volume inspect":
		return []candidates{volumeNames}
	case "import", "load", "build":
		return []candidates{nil}
	}
	return []candidates{nobody}
}

// values says what a flag's value may be: some words, or what is there. Neither is a file name.
func values(flag string) (words []string, what candidates) {
	switch flag {
	case "pull":
		return []string{"always", "missing", "never"}, nil
	case "network":
		return []string{"bridge", "host", "none"}, nil
	case "progress":
		return []string{"auto", "plain", "tty", "rawjson", "quiet"}, nil
	case "restart":
		return []string{"no", "on-failure", "always", "unless-stopped"}, nil
	case "platform":
		return []string{"linux/amd64", "linux/arm64"}, nil
	case "cap-add", "cap-drop":
		return []string{"ALL"}, nil
	case "signal", "stop-signal":
		return []string{"TERM", "KILL", "INT", "HUP", "QUIT", "USR1", "USR2", "STOP", "CONT", "WINCH"}, nil
	case "format":
		return []string{"table", "json"}, nil
	case "security-opt":
		return []string{"no-new-privileges", "seccomp=unconfined", "seccomp="}, nil
	case "volume":
		return nil, volumeNames
	case "volumes-from":
		return nil, containerNames
	}
	return nil, nil
}

func nobody(context.Context, *engine.Engine) ([]string, error) { return nil, nil }

func containerNames(_ context.Context, e *engine.Engine) ([]string, error) {
	return containersNamed(e, true)
}

func runningNames(_ context.Context, e *engine.Engine) ([]string, error) {
	return containersNamed(e, false)
}

func containersNamed(e *engine.Engine, all bool) ([]string, error) {
	list, err := e.List(all)
	var out []string
	for _, c := range list {
		out = append(out, c.Config.Name)
	}
	return out, err
}

func imageNames(_ context.Context, e *engine.Engine) ([]string, error) {
	store, err := e.Images()
	if err != nil {
		return nil, err
	}
	list, err := store.List()
	var out []string
	for _, i := range list {
		for _, n := range i.Names {
			out = append(out, n.Familiar())
		}
	}
	return out, err
}

func volumeNames(_ context.Context, e *engine.Engine) ([]string, error) {
	list, err := e.ListVolumes()
	var out []string
	for _, v := range list {
		out = append(out, v.Name)
	}
	return out, err
}

func either(ctx context.Context, e *engine.Engine) ([]string, error) {
	out, err := containerNames(ctx, e)
	if err != nil {
		return nil, err
	}
	more, err := imageNames(ctx, e)
	return append(out, more...), err
}

// complete gives all commands below c what their arguments and flags may be.
func (a *app) complete(c *cobra.Command) {
	for _, sub := range c.Commands() {
		a.complete(sub)
	}
	path := strings.TrimPrefix(c.CommandPath(), "onggi ")
	if !c.HasSubCommands() {
		kinds := arguments(path)
		c.ValidArgsFunction = func(_ *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
			kind := kinds[min(len(args), len(kinds)-1)]
			if kind == nil {
				return nil, cobra.ShellCompDirectiveDefault
			}
			return a.present(c.Context(), kind, typed, args), cobra.ShellCompDirectiveNoFileComp
		}
	}
	for _, name := range flagNames(c) {
		words, kind := values(name)
		if words == nil && kind == nil {
			continue
		}
		// A flag that a parent has registered as well is the same one: the error says no more than that.
		_ = c.RegisterFlagCompletionFunc(name, func(_ *cobra.Command, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if kind == nil {
				return words, cobra.ShellCompDirectiveNoFileComp
			}
			return a.present(c.Context(), kind, typed, nil), cobra.ShellCompDirectiveDefault
		})
	}
}

// present returns those that begin with what was typed and are not among args yet. A person who presses the tabulator
// key cannot read an error: a store that cannot be read has no names.
func (a *app) present(ctx context.Context, kind candidates, typed string, args []string) []string {
	e, err := a.open()
	if err != nil {
		return nil
	}
	all, err := kind(ctx, e)
	if err != nil {
		a.debugf("completion: %v", err)
	}
	slices.Sort(all)
	return slices.DeleteFunc(slices.Compact(all), func(s string) bool {
		return !strings.HasPrefix(s, typed) || slices.Contains(args, s)
	})
}

func buildCompletion(a *app, c *cobra.Command) {
	c.Use = "completion SHELL"
	c.Long = `Prints a script that lets a shell complete commands, flags, and the names of containers, images and volumes.

SHELL is bash, zsh or fish. For one session:

  bash    source <(onggi completion bash)
  zsh     source <(onggi completion zsh)
  fish    onggi completion fish | source

For all sessions, write it to where the shell looks: /etc/bash_completion.d/onggi, a directory of zsh's $fpath as
_onggi, or ~/.config/fish/completions/onggi.fish.`
	c.Example = "  onggi completion bash > /etc/bash_completion.d/onggi"
	c.Args = takes(1, 1, "the name of a shell")
	c.RunE = func(c *cobra.Command, args []string) error {
		root := c.Root()
		switch args[0] {
		case "bash":
			return root.GenBashCompletionV2(a.out, true)
		case "zsh":
			return root.GenZshCompletion(a.out)
		case "fish":
			return root.GenFishCompletion(a.out, true)
		}
		return &errdefs.Error{
			Op: "complete for", What: args[0], Kind: errdefs.InvalidArgument, Why: "there is no script for this shell", Fix: "choose bash, zsh or fish",
		}
	}
}

// Tree returns all commands, for what describes them as a whole: manual pages, tests of the documents. Running one of
// them works on the process's own streams.
func Tree(o Options) *cobra.Command {
	a := &app{in: o.Stdin, out: o.Stdout, err: o.Stderr, embedded: o.Embedded}
	return a.tree(nil)
}
