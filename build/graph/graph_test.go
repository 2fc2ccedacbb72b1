package graph

import (
	"strings"
	"testing"

	"github.com/onggi/onggi/errdefs"
)

const (
	a = `"id":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"`
	b = `"id":"sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"`
)

// in makes an edge to a vertex's id.
func in(id string) string { return `{"vertex"` + strings.TrimPrefix(id, `"id"`) + `}` }

const image = `{` + a + `,"source":{"scheme":"docker-image","ref":"x"}}`

func TestDecodeRefuses(t *testing.T) {
	exec := func(mounts string) string {
		return image + `,{` + b + `,"inputs":[` + in(a) + `],"exec":{"args":["x"],"cwd":"/","network":"none","mounts":[` + mounts + `]}}`
	}
	file := func(action string) string {
		return image + `,{` + b + `,"inputs":[` + in(a) + `],"file":{"actions":[` + action + `]}}`
	}
	for name, c := range map[string]struct{ vertices, want string }{
		"an empty vertex":         {`null`, "is empty"},
		"no operation":            {`{` + a + `}`, "0 operations"},
		"two operations":          {`{` + a + `,"merge":{},"diff":{"lower":-1,"upper":-1}}`, "2 operations"},
		"no id":                   {`{"merge":{}}`, "its id"},
		"the same twice":          {image + `,` + image, "twice"},
		"itself as input":         {`{` + a + `,"inputs":[` + in(a) + `],"merge":{}}`, "does not come before"},
		"a later input":           {`{` + a + `,"inputs":[` + in(b) + `],"merge":{}}`, "does not come before"},
		"an unknown source":       {`{` + a + `,"source":{"scheme":"ftp","ref":"x"}}`, `unknown source "ftp"`},
		"a source without name":   {`{` + a + `,"source":{"scheme":"local","ref":""}}`, "no name"},
		"no root":                 {exec(``), "0 roots"},
		"two roots":               {exec(`{"type":"bind","dest":"/","input":0,"output":0},{"type":"bind","dest":"/","input":0,"output":-1}`), "2 roots"},
		"an input out of range":   {exec(`{"type":"bind","dest":"/","input":1,"output":0}`), "no input 1"},
		"an unknown mount":        {exec(`{"type":"nfs","dest":"/","input":0,"output":0}`), `unknown mount "nfs"`},
		"a cache without an id":   {exec(`{"type":"cache","dest":"/","input":0,"output":0}`), "no id"},
		"the same output":         {exec(`{"type":"bind","dest":"/","input":0,"output":0},{"type":"bind","dest":"/a","input":0,"output":0}`), "output 0"},
		"an unknown field":        {`{` + a + `,"source":{"scheme":"local","ref":"x"},"more":1}`, "unknown field"},
		"no action":               {file(``), "no actions"},
		"an action of nothing":    {file(`{"input":0,"secondary":-1,"output":0}`), "0 actions"},
		"an action of the next":   {file(`{"input":1,"secondary":-1,"output":0,"rm":{"path":"/x"}}`), "no input 1"},
		"a name from nowhere":     {file(`{"input":0,"secondary":-1,"output":0,"mkdir":{"path":"/x","mode":1,"timestamp":-1,"owner":{"user":{"name":"x","input":5,"id":0}}}}`), "the owner"},
		"a location from no text": {`{` + a + `,"source":{"scheme":"local","ref":"x"},"locations":[{"text":0,"start":1,"end":1}]}`, "a location"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Decode(strings.NewReader(`{"vertices":[` + c.vertices + `]}`))
			if err == nil || !strings.Contains(err.Error(), c.want) || !errdefs.Is(err, errdefs.InvalidArgument) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	if _, err := Decode(strings.NewReader(`{"vertices":[` + image + `],"output":{"vertex":"sha256:00"}}`)); err == nil {
		t.Error("an output of no vertex is accepted")
	}
	if _, err := Decode(strings.NewReader(strings.Repeat(" ", MaxBytes+1))); err == nil || !strings.Contains(err.Error(), "longer") {
		t.Errorf("an endless graph: %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(`{"vertices":[` + image + `],"output":` + in(a) + `}`)
	f.Add(`{"vertices":[` + image + `,{` + b + `,"inputs":[` + in(a) + `],"file":{"actions":[{"input":0,"secondary":-1,"output":0,"rm":{"path":"/x"}}]}}]}`)
	f.Fuzz(func(t *testing.T, s string) {
		g, err := Decode(strings.NewReader(s))
		if err != nil {
			return
		}
		for _, v := range g.Vertices {
			if n := v.Outputs(); n < 0 || n > len(s) {
				t.Errorf("%d outputs", n)
			}
		}
	})
}
