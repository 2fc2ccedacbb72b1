package cli

import (
	"fmt"
	"strings"

	"github.com/onggi/onggi/engine"
	"github.com/spf13/cobra"
)

func buildWhy(a *app, c *cobra.Command) {
	var tail, format string
	c.Use = "why [FLAGS] CONTAINER [CONTAINER...]"
	c.Long = `Say why a container has ended, or does not run: what its exit code means, which signal ended it and who sent that, whether
the kernel killed it for memory (with the most it had), what its health check said, whether the host was restarted; then its
last words, and what can be done about it.`
	c.Example = `  onggi why web
  onggi why --format '{{.Cause}}' web            one word: finished, failed, stopped, killed, crashed, oom, seccomp,
                                                 unhealthy, cannot-start, never-started, host-restarted, monitor-killed, running
  onggi why --format json web | jq -r '.Advice[]'`
	f := c.Flags()
	f.StringVarP(&tail, "tail", "n", "10", "print so many of the last `lines` of its log; 0 for none")
	f.StringVar(&format, "format", "", "print as `format`: json, or a Go template such as '{{.Cause}}'")
	c.Args = takes(1, -1, "the names or ids of containers")
	c.RunE = func(c *cobra.Command, args []string) error {
		out, err := newFormat(format, c.Flags().Changed("format"))
		if err != nil {
			return err
		}
		lines, err := parseInt(tail, 0, 10000)
		if err != nil {
			return reading("--tail", tail, err)
		}
		e, err := a.open()
		if err != nil {
			return err
		}
		ctx, cancel := a.context(c.Context())
		defer cancel()
		for i, name := range args {
			v, err := e.Why(ctx, name, int(lines))
			if err != nil {
				return err
			}
			var text string
			switch {
			case out.json:
				b, err := marshal(v, "")
				if err != nil {
					return err
				}
				text = string(b)
			case out.tmpl != nil:
				if text, err = out.execute(v); err != nil {
					return err
				}
			default:
				if i > 0 {
					text = "\n"
				}
				text += a.verdictText(v)
			}
			if err := a.print(text); err != nil {
				return err
			}
		}
		return nil
	}
}

// verdictText is a verdict for people.
func (a *app) verdictText(v *engine.Verdict) string {
	p := a.paint(a.out)
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", p.bold(v.Summary))
	for _, s := range v.Because {
		fmt.Fprintf(&b, "  because: %s\n", visible(s))
	}
	for _, s := range v.Advice {
		fmt.Fprintf(&b, "  %s %s\n", p.green("do:"), s)
	}
	if len(v.Log) > 0 {
		b.WriteString("  its last words:\n")
		for _, l := range v.Log {
			fmt.Fprintf(&b, "    | %s\n", visible(l))
		}
	}
	return b.String()
}

// visible takes control characters out of what a container has said: it is shown beside our own words.
func visible(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 && r != '\t' || r == 0x7f {
			return -1
		}
		return r
	}, s)
}
