package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/onggi/onggi/build"
	"github.com/onggi/onggi/build/frontend"
	"github.com/onggi/onggi/build/graph"
	"github.com/onggi/onggi/build/history"
	"github.com/opencontainers/go-digest"
	"golang.org/x/term"
)

// buildShow tells of a build on stderr: a line for each change of a step, with the step's number, as docker's plain
// progress; or a picture that is drawn over (buildScreen); or each event as JSON; or nothing.
type buildShow struct {
	a    *app
	mode string

	mu       sync.Mutex
	born     time.Time
	numbers  map[digest.Digest]int
	partial  map[digest.Digest][]byte // output without its end of line
	tails    map[digest.Digest][]string
	warnings []frontend.Warning
	last     int // the step that the line before was of
	screen   *buildScreen
}

func (a *app) buildProgress(b *buildFlags) (*buildShow, error) {
	mode := b.progress
	if v := os.Getenv("BUILDKIT_PROGRESS"); v != "" && mode == "auto" {
		mode = v
	}
	live := term.IsTerminal(int(a.err.Fd())) && os.Getenv("TERM") != "dumb"
	switch mode {
	case "auto":
		if mode = "plain"; live {
			mode = "tty"
		}
	case "plain", "rawjson", "quiet", "none":
	case "tty":
		if !live {
			return nil, badFlag("--progress", mode, "standard error is no terminal that can be drawn on", "use auto or plain")
		}
	default:
		return nil, badFlag("--progress", mode, "there is no such way to show a build", "use auto, plain, tty, rawjson, quiet or none")
	}
	if b.quiet || b.check || mode == "none" {
		mode = "quiet"
	}
	p := &buildShow{
		a: a, mode: mode, born: time.Now(), numbers: map[digest.Digest]int{}, partial: map[digest.Digest][]byte{}, tails: map[digest.Digest][]string{},
	}
	if mode == "tty" {
		p.screen = newBuildScreen(p)
	}
	return p, nil
}

// maxTail is how many lines of a failed step are shown again.
const maxTail = 20

func (p *buildShow) line(n int, text string) {
	if p.last != n && p.last != 0 {
		fmt.Fprintln(p.a.err)
	}
	p.last = n
	fmt.Fprintf(p.a.err, "#%d %s\n", n, text)
}

// event is a line of --progress rawjson.
type event struct {
	Time    time.Time     `json:"time"`
	Vertex  digest.Digest `json:"vertex,omitempty"`
	Number  int           `json:"number,omitempty"`
	Name    string        `json:"name,omitempty"`
	State   build.State   `json:"state,omitempty"`
	Took    time.Duration `json:"tookNanoseconds,omitempty"`
	Error   string        `json:"error,omitempty"`
	Changed []string      `json:"changed,omitempty"`
	Why     *history.Why  `json:"why,omitempty"`
	Output  []byte        `json:"output,omitempty"`
	Warning string        `json:"warning,omitempty"`
}

func (p *buildShow) json(e event) {
	e.Time = time.Now()
	b, err := json.Marshal(e)
	if err == nil {
		fmt.Fprintf(p.a.err, "%s\n", b)
	}
}

// Step shows a step's state.
func (p *buildShow) Step(s build.Step) {
	p.mu.Lock()
	defer p.mu.Unlock()
	changed := changedParts(s.Why)
	switch p.mode {
	case "quiet":
		return
	case "rawjson":
		e := event{Vertex: s.Vertex, Number: s.Number, Name: s.Name, State: s.State, Took: s.Took, Changed: changed, Why: s.Why}
		if s.Err != nil {
			e.Error = s.Err.Error()
		}
		p.json(e)
		return
	}
	n := s.Number
	p.numbers[s.Vertex] = n
	if p.screen != nil {
		p.screen.step(s, changed)
		if s.State != build.Started {
			p.flush(s.Vertex)
		}
		return
	}
	switch s.State {
	case build.Started:
		text := printable(s.Name)
		p.line(n, text)
		if len(changed) > 0 {
			p.line(n, printable(changedText(changed)))
		}
	case build.Cached:
		p.line(n, printable(s.Name))
		p.line(n, "CACHED")
	case build.Done:
		p.flush(s.Vertex)
		p.line(n, fmt.Sprintf("DONE %.1fs", s.Took.Seconds()))
	case build.Failed:
		p.flush(s.Vertex)
		p.line(n, "ERROR: "+printable(s.Err.Error()))
	case build.Canceled:
		p.flush(s.Vertex)
		p.line(n, "CANCELED")
	}
}

// changedText is the names of what changed, the first of many.
func changedText(names []string) string {
	const most = 3
	if len(names) == 0 {
		return ""
	}
	more := ""
	if len(names) > most {
		more = fmt.Sprintf(" and %d more", len(names)-most)
		names = names[:most]
	}
	return "changed: " + strings.Join(names, ", ") + more
}

// changedParts are the names of what a step has otherwise than the nearest earlier run.
func changedParts(w *history.Why) (names []string) {
	if w == nil {
		return nil
	}
	for _, c := range w.Changes {
		names = append(names, c.Part)
	}
	return names
}

// Output shows what a command printed, line by line.
func (p *buildShow) Output(v digest.Digest, data []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mode == "rawjson" {
		p.json(event{Vertex: v, Output: data})
		return
	}
	if p.screen != nil {
		p.screen.output(p.numbers[v], data)
	}
	buf := append(p.partial[v], data...)
	for {
		i := bytes.IndexByte(buf, '\n')
		if i < 0 && len(buf) < 64<<10 {
			break
		}
		if i < 0 {
			i = len(buf) - 1
		}
		p.output(v, string(buf[:i]))
		buf = buf[i+1:]
	}
	p.partial[v] = append([]byte(nil), buf...)
}

func (p *buildShow) output(v digest.Digest, text string) {
	text = strings.TrimRight(text, "\r\n")
	t := append(p.tails[v], text)
	p.tails[v] = t[max(0, len(t)-maxTail):]
	if p.mode == "plain" {
		p.line(p.numbers[v], fmt.Sprintf("%.3f %s", time.Since(p.born).Seconds(), printable(text)))
	}
}

func (p *buildShow) flush(v digest.Digest) {
	if b := p.partial[v]; len(b) > 0 {
		delete(p.partial, v)
		p.output(v, string(b))
	}
}

// Warn keeps a warning for the end.
func (p *buildShow) Warn(w frontend.Warning) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mode == "rawjson" {
		p.json(event{Warning: w.Text})
		return
	}
	p.warnings = append(p.warnings, w)
}

// end leaves the last picture on the screen and prints the warnings.
func (p *buildShow) end() {
	if p.screen != nil {
		p.screen.end()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mode != "plain" && p.mode != "tty" {
		return
	}
	c := p.a.paint(p.a.err)
	for _, w := range p.warnings {
		fmt.Fprintf(p.a.err, "\n%s %s\n", c.yellow("warning:"), printable(w.Text))
		p.excerpt(w.Source, w.Ranges)
	}
}

// explain shows where a build failed: the lines of the Dockerfile, and the last output of the command.
func (p *buildShow) explain(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var f *build.Failure
	var t *frontend.Failure
	switch {
	case errors.As(err, &f):
		if lines := p.tails[f.Vertex.ID]; len(lines) > 0 && f.ExitCode != 0 {
			fmt.Fprintf(p.a.err, "------\n > %s:\n", printable(f.Vertex.Name))
			for _, l := range lines {
				fmt.Fprintln(p.a.err, printable(l))
			}
			fmt.Fprintln(p.a.err, "------")
		}
		if len(f.Vertex.Locations) > 0 && f.Vertex.Locations[0].Text < len(f.Sources) {
			p.excerpt(f.Sources[f.Vertex.Locations[0].Text], f.Vertex.Locations)
		}
	case errors.As(err, &t) && t.Source != nil:
		p.excerpt(*t.Source, t.Ranges)
	}
}

// excerpt prints the lines that ranges name, with two around them, as docker does.
func (p *buildShow) excerpt(text graph.Text, ranges []graph.Location) {
	if len(ranges) == 0 {
		return
	}
	lines := strings.Split(strings.TrimSuffix(string(text.Data), "\n"), "\n")
	first, last := ranges[0].Start, ranges[len(ranges)-1].End
	if first < 1 || first > len(lines) {
		return
	}
	fmt.Fprintf(p.a.err, "%s:%d\n--------------------\n", printable(text.Name), first)
	for n := max(1, first-2); n <= min(len(lines), last+2); n++ {
		mark := "   "
		if n >= first && n <= last {
			mark = ">>>"
		}
		fmt.Fprintf(p.a.err, "%4d | %s %s\n", n, mark, printable(strings.TrimSuffix(lines[n-1], "\r")))
	}
	fmt.Fprintln(p.a.err, "--------------------")
}
