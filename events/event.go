package events

import (
	"encoding/json"
	"slices"
	"time"

	"github.com/onggi/onggi/errdefs"
)

// Event is one thing that has happened. Type, Action and Attributes are Docker's: see "docker system events".
type Event struct {
	Type   string // what Actor is: "container", "image", "network", "volume", "builder"
	Action string // "start", "exec_create: sh -c true", "health_status: healthy"
	// ID is the container's id, the image's id or name, the network's id, the volume's name.
	ID         string
	Attributes map[string]string // "name", "image", labels, "exitCode" ...
	Time       time.Time         // when it happened; the order of the journal is that of writing
}

// The types of Docker that Onggi has.
const (
	Container = "container"
	Image     = "image"
	Network   = "network"
	Volume    = "volume"
	Builder   = "builder"
)

// form is the JSON of Docker's API, version 1.24 and later, with the fields that older clients read for containers and
// images.
type form struct {
	Status string `json:"status,omitempty"`
	ID     string `json:"id,omitempty"`
	From   string `json:"from,omitempty"`
	Type   string `json:"Type"`
	Action string `json:"Action"`
	Actor  struct {
		ID         string            `json:"ID"`
		Attributes map[string]string `json:"Attributes"`
	} `json:"Actor"`
	Scope    string `json:"scope"`
	Time     int64  `json:"time"`
	TimeNano int64  `json:"timeNano"`
}

// MarshalJSON writes the form of Docker's API.
func (e Event) MarshalJSON() ([]byte, error) {
	f := form{Type: e.Type, Action: e.Action, Scope: "local", Time: e.Time.Unix(), TimeNano: e.Time.UnixNano()}
	f.Actor.ID, f.Actor.Attributes = e.ID, e.Attributes
	if f.Actor.Attributes == nil {
		f.Actor.Attributes = map[string]string{}
	}
	if e.Type == Container || e.Type == Image {
		f.Status, f.ID = e.Action, e.ID
	}
	if e.Type == Container {
		f.From = e.Attributes["image"]
	}
	return json.Marshal(f)
}

// UnmarshalJSON reads the form of Docker's API.
func (e *Event) UnmarshalJSON(b []byte) error {
	var f form
	if err := json.Unmarshal(b, &f); err != nil {
		return err
	}
	if f.Type == "" || f.Action == "" || f.TimeNano == 0 {
		return &errdefs.Error{Op: "read", What: "an event", Kind: errdefs.Corrupt, Why: "it has no type, action or time"}
	}
	*e = Event{Type: f.Type, Action: f.Action, ID: f.Actor.ID, Attributes: f.Actor.Attributes, Time: time.Unix(0, f.TimeNano)}
	return nil
}

const (
	rs = 0x1e // the record separator of RFC 7464; JSON has no such byte, it writes it as an escape
	lf = '\n'

	// maxRecord bounds one record, bytes. A reader does not read more as one.
	maxRecord = 64 << 10
)

// encode returns the record of e. What would be too large loses its longest attributes: they are labels.
func encode(e *Event) ([]byte, error) {
	for {
		b, err := json.Marshal(e)
		if err != nil {
			return nil, err
		}
		if len(b)+2 <= maxRecord {
			return append(append([]byte{rs}, b...), lf), nil
		}
		if len(e.Attributes) == 0 {
			return nil, &errdefs.Error{Op: "record", What: "an event", Kind: errdefs.Exhausted, Why: "it is larger than 64 KiB"}
		}
		e = &Event{Type: e.Type, Action: e.Action, ID: e.ID, Time: e.Time, Attributes: withoutLongest(e.Attributes)}
	}
}

// withoutLongest returns the attributes without the longer half of them.
func withoutLongest(m map[string]string) map[string]string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b string) int { return len(a) + len(m[a]) - len(b) - len(m[b]) })
	out := map[string]string{}
	for _, k := range keys[:len(keys)/2] {
		out[k] = m[k]
	}
	return out
}
