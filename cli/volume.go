package cli

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/onggi/onggi/engine"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/volume"
	"github.com/spf13/cobra"
)

func volumeCommands() []command {
	return []command{
		{"create", "Make a volume", groupData, buildVolumeCreate},
		{"ls", "List volumes", groupData, buildVolumeLs},
		{"inspect", "Print all that is known about volumes", groupData, buildVolumeInspect},
		{"rm", "Remove volumes", groupData, buildVolumeRm},
		{"snapshot", "Make a volume with what another one holds now", groupData, buildVolumeSnapshot},
		{"export", "Write what a volume holds as a tar archive", groupData, buildVolumeExport},
		{"import", "Make a volume of a tar archive", groupData, buildVolumeImport},
		{"prune", "Remove volumes that no container uses", groupData, buildVolumePrune},
	}
}

func buildVolumeCreate(a *app, c *cobra.Command) {
	var (
		driver, name string
		labels, opts []string
	)
	c.Use = "create [FLAGS] [VOLUME]"
	c.Long = `Make a volume and print its name; without a name an anonymous one. A volume of the same name, labels and options that is
here already is left as it is.

A volume is a directory of the store. With --opt type=, o= and device= it is what mount(8) would mount with these: it is mounted
when a container uses it, in the container only.`
	c.Example = `  onggi volume create data
  onggi volume create --label app=shop --opt size=10g data
  onggi volume create --opt type=nfs --opt o=addr=192.0.2.7,rw --opt device=:/export/data shared
  onggi volume create --opt type=tmpfs --opt device=tmpfs --opt o=size=100m,uid=1000 scratch
  onggi volume create --opt type=none --opt o=bind --opt device=/srv/data data`
	f := c.Flags()
	f.StringVarP(&driver, "driver", "d", volume.Driver, "`driver` of the volume: local")
	f.StringArrayVar(&labels, "label", nil, "label the volume with `KEY=VALUE`")
	f.StringArrayVarP(&opts, "opt", "o", nil, "option of the driver, `KEY=VALUE`: type, o, device, size")
	f.StringVar(&name, "name", "", "`name` of the volume, as older clients say it")
	f.Lookup("name").Hidden = true
	c.Args = takes(0, 1, "at most the name of a volume")
	c.RunE = func(c *cobra.Command, args []string) error {
		o := engine.VolumeOptions{Name: name, Driver: driver}
		switch {
		case len(args) == 1 && name != "":
			return badFlag("--name", name, "the name is given twice", "leave --name out")
		case len(args) == 1:
			if o.Name = args[0]; o.Name == "" {
				return volume.CheckName("")
			}
		}
		var err error
		if o.Labels, err = keyValues("--label", labels, true); err != nil {
			return err
		}
		if o.Options, err = keyValues("--opt", opts, false); err != nil {
			return err
		}
		e, err := a.open()
		if err != nil {
			return err
		}
		ctx, cancel := a.context(c.Context())
		defer cancel()
		v, err := e.CreateVolume(ctx, o)
		if err != nil {
			return err
		}
		return a.print(v.Name + "\n")
	}
}

// keyValues reads a repeated KEY=VALUE flag; of a key that is given twice the last counts, as docker has it.
func keyValues(flag string, list []string, bare bool) (map[string]string, error) {
	var m map[string]string
	for _, s := range list {
		k, v, err := parseKeyValue(s, bare)
		if err != nil {
			return nil, reading(flag, s, err)
		}
		if m == nil {
			m = map[string]string{}
		}
		m[k] = v
	}
	return m, nil
}

// volumeRow is a line of `volume ls`. Its fields are those of docker's format.
type volumeRow struct {
	Availability string
	Driver       string
	Group        string
	Labels       string
	Links        string
	Mountpoint   string
	Name         string
	Scope        string
	Size         string
	Status       string
}

// Label is docker's template function: the value of one label.
func (r volumeRow) Label(key string) string {
	for pair := range strings.SplitSeq(r.Labels, ",") {
		if k, v, _ := strings.Cut(pair, "="); k == key {
			return v
		}
	}
	return ""
}

// labelText is how docker's lists show labels.
func labelText(labels map[string]string) string {
	list := make([]string, 0, len(labels))
	for k, v := range labels {
		list = append(list, k+"="+v)
	}
	slices.Sort(list)
	return strings.Join(list, ",")
}

func buildVolumeLs(a *app, c *cobra.Command) {
	var (
		filters []string
		quiet   bool
		format  string
	)
	c.Use = "ls [FLAGS]"
	c.Long = `List volumes by name. Volumes are used by the containers that are here, whether they run or not, and by those in the trash.`
	c.Example = `  onggi volume ls
  onggi volume ls -qf dangling=true
  onggi volume ls --filter label=app=shop --format '{{.Name}} {{.Links}}'`
	f := c.Flags()
	f.StringArrayVarP(&filters, "filter", "f", nil, "only what `condition` says: dangling=true|false, driver=NAME, label=KEY[=VALUE], label!=KEY[=VALUE], name=PART")
	f.BoolVarP(&quiet, "quiet", "q", false, "print names only")
	f.StringVar(&format, "format", "", formatUsage)
	c.Args = takes(0, 0, "no arguments")
	c.RunE = func(c *cobra.Command, args []string) error {
		out, err := newFormat(format, c.Flags().Changed("format"))
		if err != nil {
			return err
		}
		keep, err := volumeFilter(filters)
		if err != nil {
			return err
		}
		e, err := a.open()
		if err != nil {
			return err
		}
		list, err := e.ListVolumes()
		if err != nil {
			return err
		}
		rows := []volumeRow{}
		var names strings.Builder
		for _, v := range list {
			if !keep(v) {
				continue
			}
			names.WriteString(v.Name + "\n")
			rows = append(rows, volumeRow{
				Availability: "N/A", Driver: volume.Driver, Group: "N/A", Labels: labelText(v.Labels), Links: strconv.Itoa(len(v.Users)),
				Mountpoint: mountpoint(v), Name: v.Name, Scope: "local", Size: "N/A", Status: "N/A",
			})
		}
		if quiet {
			return a.print(names.String())
		}
		return writeRows(a, out, rows, []column[volumeRow]{
			{"DRIVER", func(r volumeRow) string { return r.Driver }},
			{"VOLUME NAME", func(r volumeRow) string { return r.Name }},
		})
	}
}

// volumeFilter reads docker's filters: the values of one key are alternatives, but of labels all must be there.
func volumeFilter(list []string) (func(*engine.Volume) bool, error) {
	var (
		labels engine.PruneOptions
		by     = map[string][]string{}
	)
	for _, s := range list {
		key, value, ok := strings.Cut(s, "=")
		switch {
		case !ok || value == "":
			return nil, reading("--filter", s, errorText("it is not KEY=VALUE"))
		case key == "label":
			labels.Label = append(labels.Label, value)
		case key == "label!":
			labels.Label = append(labels.Label, "!"+value)
		case key == "dangling":
			on, err := parseBool(value, true)
			if err != nil {
				return nil, reading("--filter", s, err)
			}
			by[key] = append(by[key], strconv.FormatBool(on))
		case key == "driver" || key == "name":
			by[key] = append(by[key], value)
		default:
			return nil, reading("--filter", s, &errdefs.Error{Why: "there is no such filter", Fix: "use dangling, driver, label or name"})
		}
	}
	one := func(key string, is func(string) bool) bool {
		return len(by[key]) == 0 || slices.ContainsFunc(by[key], is)
	}
	return func(v *engine.Volume) bool {
		return one("dangling", func(s string) bool { return s == strconv.FormatBool(len(v.Users) == 0) }) &&
			one("driver", func(s string) bool { return s == volume.Driver }) &&
			one("name", func(s string) bool { return strings.Contains(v.Name, s) }) &&
			labels.Chosen(v.Created, v.Labels)
	}, nil
}

// mountpoint is where the data lies: what is mounted in containers only lies nowhere on the host.
func mountpoint(v *engine.Volume) string {
	if m, err := volume.MountOf(v.Options); err == nil && m.Type != "" {
		if m.Type == "bind" {
			return m.Device
		}
		return ""
	}
	return v.Path
}

// volumeJSON is docker's answer (Docker Engine API, VolumeInspect), and who uses the volume.
type volumeJSON struct {
	CreatedAt  string
	Driver     string
	Labels     map[string]string
	Mountpoint string
	Name       string
	Options    map[string]string
	Scope      string
	Anonymous  bool     `json:",omitempty"`
	UsedBy     []string `json:",omitempty"`
}

func inspectVolume(v *engine.Volume) volumeJSON {
	return volumeJSON{
		CreatedAt: v.Created.Format(time.RFC3339), Driver: volume.Driver, Labels: v.Labels, Mountpoint: mountpoint(v), Name: v.Name,
		Options: v.Options, Scope: "local", Anonymous: v.Anonymous, UsedBy: v.Users,
	}
}

func buildVolumeInspect(a *app, c *cobra.Command) {
	var format string
	c.Use = "inspect [FLAGS] VOLUME [VOLUME...]"
	c.Long = `Print all that is known about volumes, as a JSON array with docker's fields and the names of the containers that use them,
or by a Go template.`
	c.Example = `  onggi volume inspect data
  onggi volume inspect -f '{{.Mountpoint}}' data`
	c.Flags().StringVarP(&format, "format", "f", "", "print as `format`: json, or a Go template such as '{{.Mountpoint}}'")
	c.Args = takes(1, -1, "the names of volumes")
	c.RunE = func(c *cobra.Command, args []string) error {
		out, err := newFormat(format, c.Flags().Changed("format"))
		if err != nil {
			return err
		}
		e, err := a.open()
		if err != nil {
			return err
		}
		return inspectEach(a, out, args, func(name string) (any, error) {
			v, err := e.GetVolume(name)
			if err != nil {
				return nil, err
			}
			return inspectVolume(v), nil
		})
	}
}

// inspectEach prints what find says of each argument, as docker's inspect does: what is there is printed, what is not is
// reported, and the exit code is then 1.
func inspectEach(a *app, out format, args []string, find func(string) (any, error)) error {
	found := []any{}
	var last error
	for _, name := range args {
		v, err := find(name)
		if err != nil {
			if last != nil {
				a.report(last)
			}
			last = err
			continue
		}
		found = append(found, v)
	}
	if out.tmpl != nil {
		for _, v := range found {
			s, err := out.execute(v)
			if err != nil {
				return err
			}
			if err := a.print(s); err != nil {
				return err
			}
		}
		return last
	}
	b, err := marshal(found, "    ")
	if err == nil {
		err = a.print(string(b))
	}
	if err != nil {
		return err
	}
	return last
}

func buildVolumeRm(a *app, c *cobra.Command) {
	var force, now bool
	c.Use = "rm [FLAGS] VOLUME [VOLUME...]"
	c.Long = `Remove volumes that no container uses. They go to the trash, from where "onggi undo" brings them back until its time is over
(onggi system limits) or space is needed.`
	c.Example = `  onggi volume rm data
  onggi volume rm --now secret                  gone for good
  onggi volume rm $(onggi volume ls -qf dangling=true)`
	c.Flags().BoolVarP(&force, "force", "f", false, "it is no error when there is no such volume")
	c.Flags().BoolVar(&now, "now", false, "delete at once instead of keeping it in the trash: it cannot be undone")
	c.Args = takes(1, -1, "the names of volumes")
	c.RunE = func(c *cobra.Command, args []string) error {
		e, err := a.open()
		if err != nil {
			return err
		}
		to, err := e.NewRemoval(commandLine(c, args))
		if err != nil {
			return err
		}
		if now || !to.Expires.After(to.Time) {
			to = nil
		}
		ctx, cancel := a.context(c.Context())
		defer cancel()
		return a.forEach(ctx, args, func(ctx context.Context, name string) (string, error) {
			err := e.RemoveVolume(ctx, name, to)
			if force && errdefs.Is(err, errdefs.NotFound) {
				err = nil
			}
			if err != nil {
				return "", err
			}
			return name, nil
		})
	}
}
