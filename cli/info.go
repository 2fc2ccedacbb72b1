package cli

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
)

// Version is set by the build (-ldflags -X).
var Version = "unknown"

// versionInfo is `onggi version`.
type versionInfo struct {
	Version   string
	GitCommit string `json:",omitempty"`
	GoVersion string
	Os        string
	Arch      string
	Program   string
}

// commit is the revision that the Go tool recorded, "" when it built outside of a repository.
func commit() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	revision, dirty := "", ""
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			revision = s.Value
		case "vcs.modified":
			if s.Value == "true" {
				dirty = "-dirty"
			}
		}
	}
	return revision + dirty
}

func versionLine() string {
	if c := commit(); c != "" {
		return fmt.Sprintf("onggi version %s, build %s", Version, c[:min(len(c), 7)])
	}
	return "onggi version " + Version
}

func buildVersion(a *app, c *cobra.Command) {
	var format string
	c.Use = "version [FLAGS]"
	c.Long = `Print the version of this program. There is no server that could have another one.`
	c.Example = `  onggi version
  onggi version --format '{{.Version}}'`
	c.Flags().StringVar(&format, "format", "", "print as `format`: json, or a Go template such as '{{.Version}}'")
	c.Args = takes(0, 0, "no arguments")
	c.RunE = func(c *cobra.Command, args []string) error {
		out, err := newFormat(format, c.Flags().Changed("format"))
		if err != nil {
			return err
		}
		v := versionInfo{Version: Version, GitCommit: commit(), GoVersion: runtime.Version(), Os: runtime.GOOS, Arch: runtime.GOARCH}
		if v.Program, err = os.Executable(); err != nil {
			v.Program = os.Args[0]
		}
		return a.printOne(out, v, func() string {
			var b strings.Builder
			fmt.Fprintf(&b, "Version:    %s\n", v.Version)
			if v.GitCommit != "" {
				fmt.Fprintf(&b, "Git commit: %s\n", v.GitCommit)
			}
			fmt.Fprintf(&b, "Go version: %s\nOS/Arch:    %s/%s\nProgram:    %s\n", v.GoVersion, v.Os, v.Arch, v.Program)
			return b.String()
		})
	}
}

func buildInfo(a *app, c *cobra.Command) {
	var format string
	c.Use = "info [FLAGS]"
	c.Long = `Describe this host and its store, and say what this host cannot do. What killed commands have left behind is cleaned up on
the way.`
	c.Example = `  onggi info
  onggi info --format '{{.CgroupVersion}}'`
	c.Flags().StringVar(&format, "format", "", "print as `format`: json, or a Go template such as '{{.Kernel}}'")
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
		if err := e.Sweep(ctx); err != nil {
			return err
		}
		i, err := e.Info(ctx)
		if err != nil {
			return err
		}
		err = a.printOne(out, i, func() string {
			var b strings.Builder
			line := func(name string, value any) { fmt.Fprintf(&b, "%-20s %v\n", name+":", value) }
			line("Version", Version)
			line("Containers", i.Containers)
			line(" Running", i.Running)
			line(" Stopped", i.Containers-i.Running)
			line("Images", i.Images)
			line("Root", i.Root)
			line("Run root", i.RunRoot)
			if i.Rootless != "" {
				line("Rootless", i.Rootless)
			}
			line("Runtime", i.Runtime)
			line("Kernel", i.Kernel)
			line("Cgroup version", i.CgroupVersion)
			line("CPUs", i.CPUs)
			line("Memory", binarySize(i.Memory))
			line("Overlay", yes(i.Overlay))
			line("Layers", i.Layers)
			line("Seccomp", yes(i.Seccomp))
			line("nftables", yes(i.NFTables))
			return b.String()
		})
		for _, w := range i.Warnings {
			a.warn(w)
		}
		return err
	}
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// printOne prints a single object: as text, as JSON, or by a template.
func (a *app) printOne(f format, v any, text func() string) error {
	switch {
	case f.tmpl != nil:
		s, err := f.execute(v)
		if err != nil {
			return err
		}
		return a.print(s)
	case f.json:
		b, err := marshal(v, "  ")
		if err != nil {
			return err
		}
		return a.print(string(b))
	}
	return a.print(text())
}
