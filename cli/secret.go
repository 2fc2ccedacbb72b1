package cli

import (
	"context"
	"encoding/csv"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/onggi/onggi/engine"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/secret"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

func secretCommands() []command { return keptCommands(secret.Secret) }
func configCommands() []command { return keptCommands(secret.Config) }

// keptCommands are the commands of secrets or configs: they differ in a word, and in what inspect tells.
func keptCommands(k secret.Kind) []command {
	with := func(build func(*app, *cobra.Command, secret.Kind)) func(*app, *cobra.Command) {
		return func(a *app, c *cobra.Command) { build(a, c, k) }
	}
	return []command{
		{"create", "Keep a " + string(k) + " from a file or stdin", groupData, with(buildSecretCreate)},
		{"ls", "List " + string(k) + "s", groupData, with(buildSecretLs)},
		{"inspect", "Print what is known about " + string(k) + "s", groupData, with(buildSecretInspect)},
		{"rm", "Remove " + string(k) + "s for good", groupData, with(buildSecretRm)},
	}
}

func buildSecretCreate(a *app, c *cobra.Command, k secret.Kind) {
	var (
		labels []string
		driver string
	)
	name := strings.ToUpper(string(k))
	c.Use = "create [FLAGS] " + name + " FILE|-"
	c.Long = fmt.Sprintf(`Keep the content of a file, or of stdin with -, under a name, and print its id. Containers get it as a read-only file in a
tmpfs: onggi run --%s %s. It is never changed; another value has another name. It has at most %d bytes.`, k, name, k.Max())
	c.Example = fmt.Sprintf("  onggi %s create db-password password.txt\n  openssl rand -base64 32 | onggi %[1]s create key -\n  onggi run --%[1]s key IMAGE", k)
	c.Flags().StringArrayVarP(&labels, "label", "l", nil, "label it with `KEY=VALUE`")
	c.Flags().StringVarP(&driver, "driver", "d", "", "`driver`: there is none but files")
	c.Flags().Lookup("driver").Hidden = true
	c.Args = takes(2, 2, "a name and a file, or - for stdin")
	c.RunE = func(c *cobra.Command, args []string) error {
		if driver != "" && driver != "file" {
			return badFlag("--driver", driver, "there is no such driver: values are kept in files of the store", "leave it out")
		}
		list, err := keyValues("--label", labels, true)
		if err != nil {
			return err
		}
		in := io.Reader(a.in)
		if args[1] != "-" {
			f, err := os.Open(args[1])
			if err != nil {
				return &errdefs.Error{Op: "open", What: args[1], Kind: errdefs.KindOf(err), Err: err}
			}
			defer f.Close()
			in = f
		} else if term.IsTerminal(int(a.in.Fd())) {
			fmt.Fprintf(a.err, "onggi: type the value; it ends with Ctrl-D\n")
		}
		e, err := a.open()
		if err != nil {
			return err
		}
		ctx, cancel := a.context(c.Context())
		defer cancel()
		x, err := e.CreateSecret(ctx, k, args[0], list, in)
		if err != nil {
			return err
		}
		return a.print(x.ID + "\n")
	}
}

// secretRow is a line of `secret ls` and `config ls`. Its fields are those of docker's format.
type secretRow struct {
	ID        string
	Name      string
	Driver    string
	CreatedAt string
	UpdatedAt string
	Labels    string
}

// Label is docker's template function: the value of one label.
func (r secretRow) Label(key string) string { return volumeRow{Labels: r.Labels}.Label(key) }

func buildSecretLs(a *app, c *cobra.Command, k secret.Kind) {
	var (
		filters []string
		quiet   bool
		format  string
	)
	c.Use = "ls [FLAGS]"
	c.Long = "List " + string(k) + "s by name."
	c.Example = fmt.Sprintf("  onggi %s ls\n  onggi %[1]s ls --filter label=app=shop --format '{{.Name}} {{.ID}}'", k)
	f := c.Flags()
	f.StringArrayVarP(&filters, "filter", "f", nil, "only what `condition` says: id=ID, name=NAME (their beginnings), label=KEY[=VALUE]")
	f.BoolVarP(&quiet, "quiet", "q", false, "print ids only")
	f.StringVar(&format, "format", "", formatUsage)
	c.Args = takes(0, 0, "no arguments")
	c.RunE = func(c *cobra.Command, args []string) error {
		out, err := newFormat(format, c.Flags().Changed("format"))
		if err != nil {
			return err
		}
		var labels engine.PruneOptions
		by := map[string][]string{}
		for _, s := range filters {
			key, value, ok := strings.Cut(s, "=")
			switch {
			case !ok || value == "":
				return reading("--filter", s, errorText("it is not KEY=VALUE"))
			case key == "label":
				labels.Label = append(labels.Label, value)
			case key == "id" || key == "name":
				by[key] = append(by[key], value)
			default:
				return reading("--filter", s, &errdefs.Error{Why: "there is no such filter", Fix: "use id, name or label"})
			}
		}
		one := func(key, value string) bool {
			return len(by[key]) == 0 || slices.ContainsFunc(by[key], func(s string) bool { return strings.HasPrefix(value, s) })
		}
		e, err := a.open()
		if err != nil {
			return err
		}
		list, err := e.ListSecrets(k)
		if err != nil {
			return err
		}
		now := time.Now()
		rows := []secretRow{}
		var ids strings.Builder
		for _, x := range list {
			if !one("id", x.ID) || !one("name", x.Name) || !labels.Chosen(x.Created, x.Labels) {
				continue
			}
			ids.WriteString(x.ID + "\n")
			rows = append(rows, secretRow{ID: x.ID, Name: x.Name, CreatedAt: ago(x.Created, now), UpdatedAt: ago(x.Created, now), Labels: labelText(x.Labels)})
		}
		if quiet {
			return a.print(ids.String())
		}
		columns := []column[secretRow]{
			{"ID", func(r secretRow) string { return r.ID }},
			{"NAME", func(r secretRow) string { return r.Name }},
			{"DRIVER", func(r secretRow) string { return r.Driver }},
			{"CREATED", func(r secretRow) string { return r.CreatedAt }},
			{"UPDATED", func(r secretRow) string { return r.UpdatedAt }},
		}
		if k == secret.Config {
			columns = slices.Delete(columns, 2, 3)
		}
		return writeRows(a, out, rows, columns)
	}
}

// secretJSON is docker's answer (Docker Engine API, SecretInspect and ConfigInspect), and who gets it.
type secretJSON struct {
	ID        string
	Version   struct{ Index int }
	CreatedAt string
	UpdatedAt string
	Spec      secretSpecJSON
	UsedBy    []string `json:",omitempty"`
}

type secretSpecJSON struct {
	Name   string
	Labels map[string]string
	Data   []byte `json:",omitempty"` // of configs only, in base64
}

func buildSecretInspect(a *app, c *cobra.Command, k secret.Kind) {
	var (
		format string
		pretty bool
	)
	c.Use = "inspect [FLAGS] NAME|ID [NAME|ID...]"
	c.Long = "Print what is known about secrets, as a JSON array with docker's fields, or by a Go template. A value is never printed."
	if k == secret.Config {
		c.Long = "Print what is known about configs, their values in base64 included, as a JSON array with docker's fields, or by a Go template."
	}
	c.Example = fmt.Sprintf("  onggi %s inspect key\n  onggi %[1]s inspect -f '{{.Spec.Name}} {{.UsedBy}}' key", k)
	c.Flags().StringVarP(&format, "format", "f", "", "print as `format`: json, or a Go template such as '{{.ID}}'")
	c.Flags().BoolVar(&pretty, "pretty", false, "print for people")
	c.Args = takes(1, -1, "names or ids")
	c.RunE = func(c *cobra.Command, args []string) error {
		out, err := newFormat(format, c.Flags().Changed("format"))
		if err != nil {
			return err
		}
		if pretty && format != "" {
			return badFlag("--pretty", "true", "--format says otherwise", "leave one of them out")
		}
		e, err := a.open()
		if err != nil {
			return err
		}
		find := func(name string) (secretJSON, error) {
			x, err := e.GetSecret(k, name)
			if err != nil {
				return secretJSON{}, err
			}
			j := secretJSON{ID: x.ID, CreatedAt: x.Created.Format(time.RFC3339Nano), Spec: secretSpecJSON{Name: x.Name, Labels: x.Labels}, UsedBy: x.Users}
			j.UpdatedAt, j.Version.Index = j.CreatedAt, 1
			if j.Spec.Labels == nil {
				j.Spec.Labels = map[string]string{}
			}
			if k == secret.Config {
				j.Spec.Data, err = e.ConfigValue(x.Name)
			}
			return j, err
		}
		if !pretty {
			return inspectEach(a, out, args, func(name string) (any, error) { return find(name) })
		}
		for _, name := range args {
			j, err := find(name)
			if err != nil {
				return err
			}
			text := fmt.Sprintf("ID:\t\t\t%s\nName:\t\t\t%s\nLabels:\n", j.ID, j.Spec.Name)
			for l := range strings.SplitSeq(labelText(j.Spec.Labels), ",") {
				if l != "" {
					text += " - " + printable(l) + "\n"
				}
			}
			text += fmt.Sprintf("Created at:\t\t%s\nUpdated at:\t\t%s\n", j.CreatedAt, j.UpdatedAt)
			if k == secret.Config {
				text += "Data:\n" + string(j.Spec.Data) + "\n"
			}
			if err := a.print(text); err != nil {
				return err
			}
		}
		return nil
	}
}

func buildSecretRm(a *app, c *cobra.Command, k secret.Kind) {
	c.Use = "rm NAME|ID [NAME|ID...]"
	c.Long = "Remove " + string(k) + "s that no container has. They are gone for good: there is no trash for them."
	c.Example = fmt.Sprintf("  onggi %s rm key", k)
	c.Args = takes(1, -1, "names or ids")
	c.RunE = func(c *cobra.Command, args []string) error {
		e, err := a.open()
		if err != nil {
			return err
		}
		ctx, cancel := a.context(c.Context())
		defer cancel()
		return a.forEach(ctx, args, func(ctx context.Context, name string) (string, error) {
			return name, e.RemoveSecret(ctx, k, name)
		})
	}
}

// parseSecret reads --secret and --config of run: NAME[,KEY=VALUE...], or all as KEY=VALUE with source.
func parseSecret(k secret.Kind, s string) (engine.SecretRef, error) {
	r := engine.SecretRef{Kind: k, Mode: 0o444}
	c := csv.NewReader(strings.NewReader(s))
	c.FieldsPerRecord = -1
	fields, err := c.Read()
	if err != nil {
		return r, fmt.Errorf("it is not written NAME[,KEY=VALUE...]")
	}
	if _, err := c.Read(); err == nil || c.InputOffset() < int64(len(s)) {
		return r, fmt.Errorf("it has more than one line")
	}
	given := map[string]bool{}
	for i, f := range fields {
		key, value, hasValue := strings.Cut(f, "=")
		if i == 0 && !hasValue {
			key, value = "source", f
		}
		switch key {
		case "src":
			key = "source"
		case "dst", "destination":
			key = "target"
		}
		if given[key] {
			return r, fmt.Errorf("%s is given more than once", key)
		}
		given[key] = true
		if value == "" {
			return r, fmt.Errorf("%q needs a value: write it as %s=VALUE", f, key)
		}
		switch key {
		case "source":
			r.Name = value
		case "target":
			r.Target = value
		case "uid", "gid":
			n, err := parseInt(value, 0, 1<<32-2)
			if err != nil {
				return r, fmt.Errorf("%s: %w", key, err)
			}
			if key == "uid" {
				r.UID = uint32(n)
			} else {
				r.GID = uint32(n)
			}
		case "mode":
			if r.Mode, err = parseMode(value); err != nil || r.Mode > 0o777 {
				return r, fmt.Errorf("mode: %q is not an octal mode between 1 and 777", value)
			}
		case "type":
			if value != "mount" {
				return r, fmt.Errorf("this version does not honour type=%s: a %s is a file in the container (type=mount), since the environment is seen by inspect and by every child", value, k)
			}
		default:
			return r, fmt.Errorf("there is no key %q: a %s has source, target, uid, gid and mode", key, k)
		}
	}
	if r.Name == "" {
		return r, fmt.Errorf("it names no %s", k)
	}
	return r, nil
}
