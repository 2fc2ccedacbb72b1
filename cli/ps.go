package cli

import (
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/onggi/onggi/engine"
	"github.com/onggi/onggi/network"
	"github.com/onggi/onggi/runtime/monitor"
	"github.com/onggi/onggi/spec"
	"github.com/spf13/cobra"
)

// containerRow is a line of `ps`. Its fields are those of docker's format.
type containerRow struct {
	Command      string
	CreatedAt    string
	Health       string
	ID           string
	Image        string
	Labels       string
	LocalVolumes string
	Mounts       string
	Names        string
	Networks     string
	Platform     string
	Ports        string
	RunningFor   string
	Size         string
	State        string
	Status       string

	labels map[string]string
}

// Label is {{.Label "KEY"}}.
func (r containerRow) Label(key string) string { return r.labels[key] }

func (containerRow) headers() map[string]string {
	return map[string]string{"ID": "CONTAINER ID", "RunningFor": "CREATED"}
}

func buildPs(a *app, c *cobra.Command) {
	var (
		all, quiet, noTrunc, size, latest bool
		format, last                      string
		filters                           []string
	)
	c.Use = "ps [FLAGS]"
	c.Long = `List the containers that run, newest first; with -a also those that are created or have ended.

--filter has docker's conditions. Several of one kind are alternatives, but all labels must be there:
  ancestor=IMAGE        made from the image, or from one that stands on it
  before=, since=CONTAINER   made before or after that one
  exited=CODE           ended with the code
  expose=, publish=PORT[-PORT][/PROTOCOL]
  health=starting|healthy|unhealthy|none
  id=, name=PATTERN     a part of it, or a regular expression
  label=KEY[=VALUE]
  network=NAME|ID       connected to it
  status=created|restarting|running|removing|paused|exited|dead
  volume=NAME|PATH      mounted, by its name, its source or its place`
	c.Example = `  onggi ps
  onggi ps -a --no-trunc
  onggi ps -aq                                  ids, for other commands
  onggi ps --filter status=exited --filter label=stage=live
  onggi ps -l --size
  onggi ps --format 'table {{.Names}}\t{{.Status}}\t{{.Ports}}'
  onggi ps -a --format json | jq -r .Names`
	f := c.Flags()
	f.BoolVarP(&all, "all", "a", false, "list containers that do not run, too")
	f.BoolVarP(&quiet, "quiet", "q", false, "print ids only")
	f.BoolVar(&noTrunc, "no-trunc", false, "print whole ids and commands")
	f.StringArrayVarP(&filters, "filter", "f", nil, "only those for which `condition` holds: KEY=VALUE")
	f.StringVarP(&last, "last", "n", "", "the `number` of containers made last, whatever their state; -1 is all that run")
	f.BoolVarP(&latest, "latest", "l", false, "the container made last, whatever its state")
	f.BoolVarP(&size, "size", "s", false, "print what their files take")
	f.StringVar(&format, "format", "", formatUsage)
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
		o := engine.ListOptions{All: all}
		if o.Filters, err = readFilters(filters); err != nil {
			return err
		}
		if c.Flags().Changed("last") {
			n, err := parseInt(last, -1, 1<<31-1)
			if err != nil {
				return reading("--last", last, err)
			}
			o.Last = int(max(n, 0))
		}
		if latest {
			o.Last = 1
		}
		list, err := e.ListWhere(o)
		if err != nil {
			return err
		}
		now := time.Now()
		rows := make([]containerRow, len(list))
		for i, k := range list {
			rows[i] = newContainerRow(k, now, noTrunc)
			if size || strings.Contains(format, ".Size") {
				s, err := e.Size(k)
				if err != nil {
					return err
				}
				rows[i].Size = fmt.Sprintf("%s (virtual %s)", humanSize(s.Layer, 3), humanSize(s.Total, 3))
			}
		}
		if quiet {
			var b strings.Builder
			for _, r := range rows {
				b.WriteString(r.ID + "\n")
			}
			return a.print(b.String())
		}
		columns := []column[containerRow]{
			{"CONTAINER ID", func(r containerRow) string { return r.ID }},
			{"IMAGE", func(r containerRow) string { return r.Image }},
			{"COMMAND", func(r containerRow) string { return r.Command }},
			{"CREATED", func(r containerRow) string { return r.RunningFor }},
			{"STATUS", func(r containerRow) string { return r.Status }},
			{"PORTS", func(r containerRow) string { return r.Ports }},
			{"NAMES", func(r containerRow) string { return r.Names }},
		}
		if size {
			columns = append(columns, column[containerRow]{"SIZE", func(r containerRow) string { return r.Size }})
		}
		return writeRows(a, out, rows, columns)
	}
}

// readFilters reads --filter KEY=VALUE.
func readFilters(list []string) (engine.Filters, error) {
	f := engine.Filters{}
	for _, s := range list {
		key, value, ok := strings.Cut(s, "=")
		if key = strings.ToLower(strings.TrimSpace(key)); !ok || key == "" || value == "" {
			return nil, reading("--filter", s, errorText("it is not KEY=VALUE"))
		}
		f[key] = append(f[key], strings.TrimSpace(value))
	}
	return f, nil
}

func newContainerRow(k *engine.Container, now time.Time, noTrunc bool) containerRow {
	command := strings.Join(quoteAll(k.Command), " ")
	id, mounts := k.ID, mountNames(k)
	if !noTrunc {
		command, id = shorten(command, 20), shortID(id)
	}
	r := containerRow{
		Command: `"` + command + `"`, CreatedAt: k.Created.Local().Format("2006-01-02 15:04:05 -0700 MST"), ID: id, Image: k.Config.Image,
		Mounts: strings.Join(mounts, ","), Names: k.Config.Name, Networks: networkNames(k), RunningFor: ago(k.Created, now),
		State: string(k.State()), Status: statusText(k, now), labels: k.Labels(), Size: "0B", LocalVolumes: strconv.Itoa(len(k.Volumes)),
		Health: k.HealthText(), Platform: "linux/" + runtime.GOARCH,
	}
	if p := k.Config.Platform; p != nil {
		r.Platform = p.OS + "/" + p.Architecture
	}
	for key, value := range r.labels {
		r.Labels += "," + key + "=" + value
	}
	labels := strings.Split(strings.TrimPrefix(r.Labels, ","), ",")
	slices.Sort(labels)
	r.Labels = strings.Join(labels, ",")
	if k.Status == engine.Running && k.Network != nil {
		r.Ports = portsText(k.Network.Ports)
	}
	return r
}

// networkNames are the networks of a container, as docker's ps shows them.
func networkNames(k *engine.Container) string {
	if len(k.Config.Links) == 0 {
		return k.Config.Network
	}
	names := make([]string, len(k.Config.Links))
	for i, l := range k.Config.Links {
		names[i] = l.Network
	}
	return strings.Join(names, ",")
}

// statusText is docker's STATUS column.
func statusText(k *engine.Container, now time.Time) string {
	switch k.Status {
	case engine.Running:
		up := "Up " + humanTime(now.Sub(k.StartedAt))
		switch {
		case k.Paused:
			up += " (Paused)"
		case k.Health != nil && k.Health.Status == monitor.Starting:
			up += " (health: starting)"
		case k.Health != nil:
			up += " (" + k.Health.Status + ")"
		}
		return up
	case engine.Restarting:
		if k.Exit == nil {
			return "Restarting"
		}
		return fmt.Sprintf("Restarting (%d) %s", k.Exit.Code, ago(k.Exit.FinishedAt, now))
	case engine.Exited:
		if k.Exit == nil {
			return "Exited (unknown)"
		}
		return fmt.Sprintf("Exited (%d) %s", k.Exit.Code, ago(k.Exit.FinishedAt, now))
	case engine.Created:
		return "Created"
	case engine.Creating:
		return "Creating"
	case engine.Removing:
		return "Removal In Progress"
	case engine.Dead:
		return "Dead"
	}
	return string(k.Status)
}

// mountNames are the sources that a container's mounts have, volumes by name.
func mountNames(k *engine.Container) []string {
	var names []string
	for _, m := range k.Config.Mounts {
		if m.Type == "bind" {
			names = append(names, m.Source)
		}
	}
	for _, v := range k.Volumes {
		names = append(names, v)
	}
	slices.Sort(names)
	return names
}

// portsText prints published ports as docker does: neighbouring ones as a range, sorted.
func portsText(ports []network.Port) string {
	ports = sortedPorts(ports)
	var out []string
	for i := 0; i < len(ports); {
		j := i + 1
		for j < len(ports) && ports[j].HostIP == ports[i].HostIP && ports[j].Protocol == ports[i].Protocol &&
			int(ports[j].ContainerPort) == int(ports[i].ContainerPort)+j-i && int(ports[j].HostPort) == int(ports[i].HostPort)+j-i {
			j++
		}
		first, last := ports[i], ports[j-1]
		ip := "0.0.0.0"
		if first.HostIP.IsValid() {
			ip = first.HostIP.String()
			if first.HostIP.Is6() {
				ip = "[" + ip + "]"
			}
		}
		out = append(out, fmt.Sprintf("%s:%s->%s/%s", ip, portRange(first.HostPort, last.HostPort), portRange(first.ContainerPort, last.ContainerPort), first.Protocol))
		i = j
	}
	return strings.Join(out, ", ")
}

// sortedPorts are the ports by address, protocol and number.
func sortedPorts(ports []network.Port) []network.Port {
	ports = slices.Clone(ports)
	slices.SortFunc(ports, func(a, b network.Port) int {
		if c := a.HostIP.Compare(b.HostIP); c != 0 {
			return c
		}
		if c := strings.Compare(a.Protocol, b.Protocol); c != 0 {
			return c
		}
		if a.ContainerPort != b.ContainerPort {
			return int(a.ContainerPort) - int(b.ContainerPort)
		}
		return int(a.HostPort) - int(b.HostPort)
	})
	return ports
}

func portRange(first, last uint16) string {
	s := strconv.Itoa(int(first))
	if last != first {
		s += "-" + strconv.Itoa(int(last))
	}
	return s
}

// address prints an address, "" when there is none.
func address(ip netip.Addr) string {
	if !ip.IsValid() {
		return ""
	}
	return ip.String()
}

// mountMode is docker's Mode of a mount.
func mountMode(m spec.Mount) string {
	if m.ReadOnly {
		return "ro"
	}
	return ""
}
