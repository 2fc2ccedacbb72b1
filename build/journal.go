package build

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/onggi/onggi/build/cache"
	"github.com/onggi/onggi/build/graph"
	"github.com/onggi/onggi/build/history"
	"github.com/onggi/onggi/undo"
	digest "github.com/opencontainers/go-digest"
)

// journal tells Progress what happens and history what happened.
type journal struct {
	progress Progress
	store    *history.Store
	log      *history.Log
	born     time.Time

	mu    sync.Mutex
	rec   *history.Record
	steps map[digest.Digest]*history.Step // by vertex; merges and differences are none
}

// begin opens the build's record.
func (s *session) begin() error {
	h, err := s.e.BuildHistory()
	if err != nil {
		return err
	}
	o := s.o
	j := &journal{progress: o.Progress, store: h, born: time.Now(), steps: map[digest.Digest]*history.Step{}}
	j.rec = &history.Record{ID: s.id, Context: withoutLogin(o.Context), Dockerfile: withoutLogin(o.Dockerfile), Options: map[string]string{}, Started: j.born}
	for k, v := range o.Request {
		if name, ok := strings.CutPrefix(k, "build-arg:"); !ok || !proxies[strings.ToUpper(name)] {
			j.rec.Options[k] = withoutLogin(v)
		}
	}
	for _, out := range o.Outputs {
		for _, n := range out.Names {
			if !slices.Contains(j.rec.Names, n.Familiar()) {
				j.rec.Names = append(j.rec.Names, n.Familiar())
			}
		}
	}
	return undo.New("build").Do("record", func() (err error) {
		if j.log, err = h.Begin(j.rec); err == nil {
			s.journal = j
		}
		return err
	}, nil)
}

// proxies are arguments whose values often hold a password. No key and no image has them, and no history.
var proxies = map[string]bool{"HTTP_PROXY": true, "HTTPS_PROXY": true, "FTP_PROXY": true, "NO_PROXY": true, "ALL_PROXY": true}

// withoutLogin removes user and password from an address.
func withoutLogin(s string) string {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		return s
	}
	host, path, slash := strings.Cut(rest, "/")
	if i := strings.LastIndexByte(host, '@'); i >= 0 {
		host = host[i+1:]
	}
	if slash {
		host += "/"
	}
	return scheme + "://" + host + path
}

// end closes the build's record.
func (j *journal) end(ctx context.Context, res *Result, err error) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	r := j.rec
	r.Took = time.Since(j.born)
	r.State = history.Completed
	var f *Failure
	switch {
	case err != nil && (ctx.Err() != nil && !errors.As(err, &f) || errors.Is(err, context.Canceled)):
		r.State, r.Error = history.Canceled, "canceled"
	case err != nil:
		r.State, r.Error = history.Failed, err.Error()
	}
	if res != nil {
		switch {
		case res.Config != "":
			r.Images = append(r.Images, res.Config)
		case res.Desc != nil:
			r.Images = append(r.Images, res.Desc.Digest)
		}
	}
	slices.SortFunc(r.Steps, func(a, b *history.Step) int { return a.Number - b.Number })
	herr := j.log.End(r)
	if r.Options["requestid"] != "" { // a question about the text is no build
		herr = errors.Join(herr, j.store.Remove(r.ID))
	}
	return herr
}

// step returns the vertex's step; it gets its number when it is first asked for.
func (j *journal) step(g *graph.Graph, vs map[digest.Digest]*graph.Vertex, v *graph.Vertex) *history.Step {
	j.mu.Lock()
	defer j.mu.Unlock()
	if h := j.steps[v.ID]; h != nil {
		return h
	}
	h := &history.Step{Number: len(j.steps) + 1, Vertex: v.ID, Name: v.Name, State: string(Started), Began: time.Since(j.born)}
	if len(v.Locations) > 0 && v.Locations[0].Text < len(g.Sources) {
		l := v.Locations[0]
		h.Dockerfile, h.Line, h.End = g.Sources[l.Text].Name, l.Start, v.Locations[len(v.Locations)-1].End
	}
	var after func(v *graph.Vertex)
	after = func(v *graph.Vertex) {
		for _, e := range v.Inputs {
			if in := j.steps[e.Vertex]; in != nil {
				if !slices.Contains(h.After, in.Number) {
					h.After = append(h.After, in.Number)
				}
			} else if x := vs[e.Vertex]; x != nil { // a merge is no step
				after(x)
			}
		}
	}
	after(v)
	j.steps[v.ID] = h
	j.rec.Steps = append(j.rec.Steps, h)
	return h
}

// tell records a step's state and shows it.
func (j *journal) tell(h *history.Step, s Step) {
	j.mu.Lock()
	h.State, h.Took = string(s.State), s.Took
	if s.Err != nil {
		h.Error = s.Err.Error()
	}
	s.Number, s.After, s.Why = h.Number, h.After, h.Why
	j.mu.Unlock()
	j.progress.Step(s)
}

// set changes a step under the lock.
func (j *journal) set(f func()) {
	j.mu.Lock()
	defer j.mu.Unlock()
	f()
}

// print returns where a step's output goes.
func (j *journal) print(h *history.Step, mask *mask) (write func([]byte), flush func()) {
	out := func(b []byte) {
		j.log.Write(h.Number, time.Since(j.born), b)
		j.progress.Output(h.Vertex, b)
	}
	return mask.over(out)
}

// explain says why a step is performed. run is what it depends on.
func (j *journal) explain(run *history.Run, asked bool) *history.Why {
	if asked {
		return &history.Why{Reason: history.Asked}
	}
	near, changes := j.store.Nearest(run)
	if near == nil {
		return &history.Why{Reason: history.First}
	}
	w := &history.Why{Reason: history.Changed, Build: near.Build, At: near.At, Name: near.Name}
	switch {
	case len(changes) == 0 && near.Failed:
		w.Reason = history.Retried
	case len(changes) == 0:
		w.Reason = history.Forgotten
	}
	if len(changes) > 1 { // the digest of all files says no more than the files do
		changes = slices.DeleteFunc(changes, func(c cache.Change) bool { return c.Part == "files" || strings.HasPrefix(c.Part, "files (") })
	}
	if near.Base != run.Base && near.Base != "" && run.Base != "" { // a digest of layers says nothing; an image's does
		changes = slices.DeleteFunc(changes, func(c cache.Change) bool { return c.Part == "the steps before" || c.Part == "epoch" })
		changes = append([]cache.Change{{Part: "base image", Was: near.Base, Now: run.Base}}, changes...)
	}
	if n := len(changes); n > history.MaxChanges {
		changes, w.More = changes[:history.MaxChanges], n-history.MaxChanges
	}
	for i := range changes {
		changes[i].Was, changes[i].Now = bounded(changes[i].Was), bounded(changes[i].Now)
	}
	w.Changes = changes
	return w
}

// bounded shortens a value that nobody reads to its end.
func bounded(s string) string {
	const most = 4096
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}

// mask hides the values of secrets in what a step prints.
type mask struct{ secrets [][]byte }

// minSecret is the shortest value that is hidden: a shorter one is part of too many words to be told from them.
const minSecret = 4

// newMask takes the values of secrets; of those with several lines each line is one.
func newMask(values ...[]byte) *mask {
	m := &mask{}
	for _, v := range values {
		for _, l := range bytes.Split(v, []byte("\n")) {
			if l = bytes.TrimSpace(l); len(l) >= minSecret {
				m.secrets = append(m.secrets, l)
			}
		}
	}
	slices.SortFunc(m.secrets, func(a, b []byte) int { return len(b) - len(a) }) // one may be a part of another
	return m
}

// maxHeld bounds what is held back of a line without an end.
const maxHeld = 64 << 10

// over returns a writer that hides secrets. It holds back a line that is not complete, so that none slips through between
// two writes; flush writes that out.
func (m *mask) over(out func([]byte)) (write func([]byte), flush func()) {
	if len(m.secrets) == 0 {
		return out, func() {}
	}
	var held []byte
	hide := func(b []byte) []byte {
		for _, s := range m.secrets {
			b = bytes.ReplaceAll(b, s, []byte("***"))
		}
		return b
	}
	write = func(b []byte) {
		held = append(held, b...)
		end := bytes.LastIndexByte(held, '\n') + 1
		if end == 0 && len(held) > maxHeld {
			end = len(held) - len(m.secrets[0])
		}
		if end > 0 {
			out(hide(held[:end:end]))
			held = append([]byte(nil), held[end:]...)
		}
	}
	return write, func() {
		if len(held) > 0 {
			out(hide(held))
			held = nil
		}
	}
}
