package cli

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/onggi/onggi/engine"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/events"
	"github.com/spf13/cobra"
)

// eventRow is an event as templates see it. Its fields are those of docker's.
type eventRow struct {
	Status, ID, From string
	Type, Action     string
	Actor            struct {
		ID         string
		Attributes map[string]string
	}
	Scope    string
	Time     int64
	TimeNano int64

	event *engine.Event
}

func newEventRow(e *engine.Event) eventRow {
	r := eventRow{Type: e.Type, Action: e.Action, Scope: "local", Time: e.Time.Unix(), TimeNano: e.Time.UnixNano(), event: e}
	r.Actor.ID, r.Actor.Attributes = e.ID, e.Attributes
	if e.Type == events.Container || e.Type == events.Image {
		r.Status, r.ID = e.Action, e.ID
	}
	if e.Type == events.Container {
		r.From = e.Attributes["image"]
	}
	return r
}

// MarshalJSON is for {{json .}}.
func (r eventRow) MarshalJSON() ([]byte, error) { return json.Marshal(r.event) }

func buildEvents(a *app, c *cobra.Command) {
	var (
		since, until, format string
		filters              []string
		stream               bool
	)
	c.Use = "events [FLAGS]"
	c.Long = `Print what happens to containers, images, networks and volumes, as it happens, until Ctrl-C or --until. Events are stored
(the newest 8 MiB, some ten thousand), so that --since tells of what happened when nobody looked.

Conditions of --filter; of one name, one has to be true, of several names, one of each:
  type=container|image|network|volume|builder      event=create|start|die|oom|kill|stop|destroy|health_status|pull|...
  container=NAME|ID    image=NAME|ID    volume=NAME    network=NAME|ID    label=KEY[=VALUE]    scope=local`
	c.Example = `  onggi events
  onggi events --since 1h --stream=false                     the last hour
  onggi events --filter event=die --filter container=web --format '{{.Time}} {{.Actor.Attributes.exitCode}}'
  onggi events --format json | jq .Action`
	f := c.Flags()
	f.StringVar(&since, "since", "", "print what came after `time` (2026-01-31T12:00:00, or 10m ago), before what comes")
	f.StringVar(&until, "until", "", "end at `time`")
	f.StringArrayVarP(&filters, "filter", "f", nil, "print only what `condition` says: event=die, container=web, ...")
	f.StringVar(&format, "format", "", "print as `format`: json, or a Go template such as '{{.Action}}'")
	f.BoolVar(&stream, "stream", true, "wait for more; false ends with what is stored")
	c.Args = takes(0, 0, "no arguments")
	c.RunE = func(c *cobra.Command, args []string) error {
		out, err := newFormat(format, c.Flags().Changed("format"))
		if err != nil {
			return err
		}
		o := engine.EventOptions{Follow: stream}
		now := time.Now()
		for _, x := range []struct {
			flag, value string
			t           *time.Time
		}{{"--since", since, &o.Since}, {"--until", until, &o.Until}} {
			if c.Flags().Changed(x.flag[2:]) {
				t, err := parseTime(x.value, now)
				if err != nil {
					return reading(x.flag, x.value, err)
				}
				*x.t = t
			}
		}
		if stream && !c.Flags().Changed("since") && !c.Flags().Changed("until") {
			o.Since = now
		}
		if o.Want, err = eventFilter(filters); err != nil {
			return err
		}
		e, err := a.open()
		if err != nil {
			return err
		}
		ctx, cancel := a.context(c.Context())
		defer cancel()
		err = e.Events(ctx, o, func(ev *engine.Event) error {
			line, err := eventLine(out, ev)
			if err != nil {
				return err
			}
			return a.print(line)
		})
		if err == nil && a.caught != 0 {
			return &exit{code: 128 + int(a.caught)} // Ctrl-C is how it ends
		}
		return err
	}
}

// eventLine prints an event as docker does.
func eventLine(f format, e *engine.Event) (string, error) {
	switch {
	case f.json:
		b, err := marshal(e, "")
		return string(b), err
	case f.tmpl != nil:
		return f.execute(newEventRow(e))
	}
	keys := make([]string, 0, len(e.Attributes))
	for k := range e.Attributes {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for i, k := range keys {
		keys[i] = k + "=" + e.Attributes[k]
	}
	line := e.Time.Local().Format("2006-01-02T15:04:05.000000000Z07:00") + " " + e.Type + " " + e.Action + " " + e.ID
	if len(keys) > 0 {
		line += " (" + strings.Join(keys, ", ") + ")"
	}
	// A label may hold anything; an event is a line.
	return strings.NewReplacer("\n", `\n`, "\r", `\r`, "\x1b", `\x1b`).Replace(line) + "\n", nil
}

// eventFilter reads --filter.
func eventFilter(filters []string) (func(*engine.Event) bool, error) {
	by := map[string][]string{}
	for _, s := range filters {
		key, value, ok := strings.Cut(s, "=")
		if !ok || value == "" {
			return nil, reading("--filter", s, &errdefs.Error{Why: "a condition is written NAME=VALUE", Fix: "for example: --filter event=die"})
		}
		if eventConditions[key] == nil {
			return nil, reading("--filter", s, &errdefs.Error{
				Why: "there is no condition " + key, Fix: "use type, event, container, image, volume, network, label or scope",
			})
		}
		by[key] = append(by[key], value)
	}
	return func(e *engine.Event) bool {
		for key, values := range by {
			is := eventConditions[key]
			if key == "label" { // docker: all of them
				if slices.ContainsFunc(values, func(v string) bool { return !is(e, v) }) {
					return false
				}
			} else if !slices.ContainsFunc(values, func(v string) bool { return is(e, v) }) {
				return false
			}
		}
		return true
	}, nil
}

var eventConditions = map[string]func(e *engine.Event, v string) bool{
	"type":  func(e *engine.Event, v string) bool { return e.Type == v },
	"scope": func(_ *engine.Event, v string) bool { return v == "local" },
	"event": func(e *engine.Event, v string) bool {
		// "exec_create" is also what is followed by a command.
		return e.Action == v || strings.HasPrefix(e.Action, v+":")
	},
	"container": func(e *engine.Event, v string) bool { return e.Type == events.Container && named(e, v) },
	"volume":    func(e *engine.Event, v string) bool { return e.Type == events.Volume && named(e, v) },
	"network":   func(e *engine.Event, v string) bool { return e.Type == events.Network && named(e, v) },
	"image": func(e *engine.Event, v string) bool {
		switch e.Type {
		case events.Container:
			return sameImage(e.Attributes["image"], v)
		case events.Image:
			return sameImage(e.ID, v) || sameImage(e.Attributes["name"], v)
		}
		return false
	},
	"label": func(e *engine.Event, v string) bool {
		key, value, given := strings.Cut(v, "=")
		have, ok := e.Attributes[key]
		return ok && (!given || have == value)
	},
}

func named(e *engine.Event, v string) bool {
	return e.ID == v || len(v) >= 4 && strings.HasPrefix(e.ID, v) || e.Attributes["name"] == strings.TrimPrefix(v, "/")
}

// sameImage compares a name with what was asked for, which may leave the tag out.
func sameImage(name, asked string) bool {
	if name == asked || strings.TrimPrefix(name, "sha256:") == strings.TrimPrefix(asked, "sha256:") {
		return true
	}
	repository := name
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		repository = name[:i]
	}
	return repository == asked
}
