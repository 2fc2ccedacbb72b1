package engine

import (
	"context"
	"path/filepath"
	"strconv"
	"time"

	"github.com/onggi/onggi/events"
	"github.com/onggi/onggi/runtime/monitor"
)

// Event is one thing that has happened, in Docker's words: see package events.
type Event = events.Event

// EventOptions choose events.
type EventOptions struct {
	Since, Until time.Time // both inclusive; zero: from the first one that is kept, to the last
	// Follow waits for more, until Until if that is set, else until the context ends.
	Follow bool
	// Want chooses; nil: all.
	Want func(*Event) bool
}

// Events calls yield for each event that is kept or, with Follow, comes, in the order in which they were recorded. The
// first error of yield ends it and is returned. An end of the context is no error of a Follow.
func (e *Engine) Events(ctx context.Context, o EventOptions, yield func(*Event) error) error {
	return events.Read(ctx, e.eventsDir(), events.ReadOptions{Since: o.Since, Until: o.Until, Follow: o.Follow}, func(ev *Event) error {
		if o.Want != nil && !o.Want(ev) {
			return nil
		}
		return yield(ev)
	})
}

func (e *Engine) eventsDir() string { return filepath.Join(e.o.Root, "events") }

// Emit records that something has happened now. It is called when that is true, after the change. That it could not be
// recorded (a full disk) is nobody's failure: what was done stays done.
//
// typ is events.Container, Image, Network, Volume or Builder; the caller may not change attributes afterwards.
func (e *Engine) Emit(typ, action, id string, attributes map[string]string) {
	_ = events.Append(e.eventsDir(), &Event{Type: typ, Action: action, ID: id, Attributes: attributes})
}

// emit records an event of the container: its name, image and labels are added to the attributes, which come as name,
// value, name, value.
func (r *record) emit(e *Engine, action string, more ...string) {
	if r.Config.Build != "" {
		return // a step of a build is nobody's container
	}
	e.Emit(events.Container, action, r.ID, r.attributes(more...))
}

// emit records an event of the locked container.
func (h *held) emit(action string, more ...string) { h.rec.emit(h.e, action, more...) }

// attributes are what Docker says of the container of an event.
func (r *record) attributes(more ...string) map[string]string {
	a := make(map[string]string, len(r.Config.Labels)+len(r.Image.Labels)+2+len(more)/2)
	for k, v := range r.Image.Labels {
		a[k] = v
	}
	for k, v := range r.Config.Labels {
		a[k] = v
	}
	a["name"], a["image"] = r.Config.Name, r.Config.Image
	for i := 0; i+1 < len(more); i += 2 {
		a[more[i]] = more[i+1]
	}
	return a
}

// journal is where the container's monitor records what happens.
func (h *held) journal() string {
	if h.rec.Config.Build != "" {
		return ""
	}
	return h.e.eventsDir()
}

// writeActor tells the monitor how the container is called in events. It is called again when a running container's name
// or labels change.
func (h *held) writeActor() error {
	if h.journal() == "" {
		return nil
	}
	return monitor.WriteActor(h.e.runDir(h.rec.ID), h.rec.attributes())
}

// itoa is for attributes.
func itoa(n int) string { return strconv.Itoa(n) }
