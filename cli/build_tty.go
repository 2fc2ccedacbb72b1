package cli

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/onggi/onggi/build"
	"github.com/onggi/onggi/image"
	"golang.org/x/term"
)

// buildScreen draws a build over its own lines: steps with their times, side by side as they run, and below each that runs the
// last lines that it printed. It looks as docker's does:
//
//	[+] Building 12.3s (5/7), 3 cached
//	 => CACHED [build 2/4] COPY go.mod ./
//	 => [build 3/4] RUN go build                                               2.1s
//	 => => # internal/thing
//
// A picture never has more lines than the terminal: finished steps make room first, then output. The last picture has all
// steps, and stays.
type buildScreen struct {
	p    *buildShow
	now  func() time.Time
	stop chan struct{}
	done chan struct{}

	// Guarded by p.mu.
	rows  []*buildStep // in the order of their numbers
	pulls []*pulled
	drawn int // lines that stand on the screen
}

// buildStep is a step on the screen.
type buildStep struct {
	n       int
	name    string
	state   build.State
	began   time.Time
	took    time.Duration
	changed string
	tail    []string
	rest    string // a line without its end
}

// pulled is an image on its way.
type pulled struct {
	name   string
	began  time.Time
	layers map[string]*transfer
	ended  time.Time
}

// maxShown is how many lines of output a running step has on the screen.
const maxShown = 6

func newBuildScreen(p *buildShow) *buildScreen {
	s := &buildScreen{p: p, now: time.Now, stop: make(chan struct{}), done: make(chan struct{})}
	go s.redraw()
	return s
}

func (s *buildScreen) redraw() {
	defer close(s.done)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.draw(false)
		case <-s.stop:
			s.draw(true)
			return
		}
	}
}

// end draws the last picture and leaves it there.
func (s *buildScreen) end() {
	close(s.stop)
	<-s.done
}

func (s *buildScreen) find(n int) *buildStep {
	i, found := slices.BinarySearchFunc(s.rows, n, func(r *buildStep, n int) int { return r.n - n })
	if !found {
		s.rows = slices.Insert(s.rows, i, &buildStep{n: n})
	}
	return s.rows[i]
}

// step takes over a step's state. Precondition: p.mu is held.
func (s *buildScreen) step(b build.Step, changed []string) {
	r := s.find(b.Number)
	r.name, r.state, r.took = printable(b.Name), b.State, b.Took
	if b.State == build.Started {
		r.began = s.now()
		r.changed = printable(changedText(changed))
	}
}

// output takes over what a step printed. Precondition: p.mu is held.
func (s *buildScreen) output(n int, data []byte) {
	r := s.find(n)
	lines := strings.Split(r.rest+string(data), "\n")
	for i, l := range lines {
		l = strings.TrimRight(l, "\r")
		if j := strings.LastIndexByte(l, '\r'); j >= 0 { // a progress bar of the command's own
			l = l[j+1:]
		}
		lines[i] = l
	}
	r.rest = lines[len(lines)-1]
	if len(r.rest) > 4096 {
		r.rest = r.rest[len(r.rest)-4096:]
	}
	for _, l := range lines[:len(lines)-1] {
		if l = printable(strings.ReplaceAll(plainText(l), "\t", "    ")); strings.TrimSpace(l) != "" {
			r.tail = append(r.tail, l)
		}
	}
	r.tail = r.tail[max(0, len(r.tail)-maxShown):]
}

// plainText removes a command's own colours and cursor movements (ECMA-48 control sequences).
func plainText(s string) string {
	if !strings.Contains(s, "\x1b") {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != 0x1b {
			b.WriteByte(s[i])
			continue
		}
		if i++; i < len(s) && s[i] == '[' {
			for i++; i < len(s) && (s[i] < 0x40 || s[i] > 0x7e); i++ {
			}
		}
	}
	return b.String()
}

// pull shows an image on its way; the returned functions tell of its layers, and of its end.
func (s *buildScreen) pull(name string) (event func(image.Progress), end func()) {
	x := &pulled{name: familiar(name), began: s.now(), layers: map[string]*transfer{}}
	s.p.mu.Lock()
	s.pulls = append(s.pulls, x)
	s.p.mu.Unlock()
	event = func(e image.Progress) {
		s.p.mu.Lock()
		defer s.p.mu.Unlock()
		if e.ID == "" {
			return
		}
		t := x.layers[e.ID]
		if t == nil {
			t = &transfer{id: e.ID}
			x.layers[e.ID] = t
		}
		if t.status != e.Status {
			t.rate = rate{}
		}
		t.status, t.done = e.Status, e.Done
		if e.Total > 0 {
			t.total = e.Total
		}
		t.rate.update(s.now(), e.Done)
	}
	return event, func() {
		s.p.mu.Lock()
		defer s.p.mu.Unlock()
		x.ended = s.now()
	}
}

// line is the sum of an image's layers: "pull debian:12  12.3MB of 48MB, 5.2MB/s".
func (x *pulled) line(now time.Time) (text string, took time.Duration) {
	var done, total int64
	var speed float64
	for _, t := range x.layers {
		total += t.total
		if t.status == "Downloading" {
			done += t.done
			speed += t.rate.value
		} else if t.status != "Waiting" && t.status != "Pulling fs layer" {
			done += t.total
		}
	}
	text = "pull " + printable(x.name)
	if !x.ended.IsZero() {
		return text, x.ended.Sub(x.began)
	}
	if total > 0 {
		text += fmt.Sprintf("  %s of %s", humanSize(done, 3), humanSize(total, 3))
	}
	if speed > 0 {
		text += fmt.Sprintf(", %s/s", humanSize(int64(speed), 3))
	}
	return text, now.Sub(x.began)
}

// draw writes the whole picture in one write, so that a terminal does not flicker.
func (s *buildScreen) draw(last bool) {
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	width, height, err := term.GetSize(int(s.p.a.err.Fd()))
	if err != nil || width < 20 || height < 4 {
		width, height = 80, 24
	}
	lines := s.lines(width, height, last)
	var b strings.Builder
	if s.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", min(s.drawn, height-1)) // a window that was made smaller has lost the rest
	}
	for _, l := range lines {
		b.WriteString("\r\x1b[2K" + l + "\n")
	}
	b.WriteString("\x1b[J")
	s.drawn = len(lines)
	_, _ = s.p.a.err.WriteString(b.String())
}

// lines renders the picture. Precondition: p.mu is held.
func (s *buildScreen) lines(width, height int, last bool) []string {
	now, c := s.now(), s.p.a.paint(s.p.a.err)
	finished, hits := 0, 0
	var running, over []*buildStep
	for _, r := range s.rows {
		switch r.state {
		case build.Started:
			running = append(running, r)
			continue
		case build.Cached:
			hits++
		}
		finished++
		over = append(over, r)
	}
	head := fmt.Sprintf("[+] Building %s (%d/%d)", seconds(now.Sub(s.p.born)), finished, len(s.rows))
	if last {
		head = fmt.Sprintf("[+] Building %s (%d/%d) FINISHED", seconds(now.Sub(s.p.born)), finished, len(s.rows))
	}
	if hits > 0 {
		head += fmt.Sprintf(", %d cached", hits)
	}
	out := []string{c.bold(fit(head, width-1))}
	room := height - 2 // the head, and the line that the cursor is in
	if last {
		room = len(s.rows) + len(s.pulls)
	}
	need := len(running)
	for _, x := range s.pulls {
		if x.ended.IsZero() {
			need++
		}
	}
	if keep := max(0, room-need); len(over) > keep { // of what is over, the end
		over = over[len(over)-max(0, keep-1):]
		if keep > 0 {
			out = append(out, c.dim(fmt.Sprintf(" => ... %s before", count(finished-len(over), "finished step"))))
		}
	}
	if len(running) > room {
		running = running[:max(0, room)]
	}
	left := room - len(over) - need - (len(out) - 1)
	for _, x := range s.pulls {
		if x.ended.IsZero() || last {
			text, took := x.line(now)
			out = append(out, timed(" => "+text, took, width))
		}
	}
	show := append(slices.Clone(over), running...)
	slices.SortFunc(show, func(a, b *buildStep) int { return a.n - b.n })
	each := maxShown
	if len(running) > 0 {
		each = min(maxShown, max(0, left)/len(running))
	}
	for _, r := range show {
		out = append(out, r.line(now, width, c))
		if r.state != build.Started || last {
			continue
		}
		tail := r.tail
		if len(tail) == 0 && r.changed != "" {
			tail = []string{r.changed}
		}
		for _, l := range tail[max(0, len(tail)-each):] {
			out = append(out, c.dim(fit(" => => # "+l, width-1)))
		}
	}
	return out
}

// line is one step.
func (r *buildStep) line(now time.Time, width int, c painter) string {
	switch r.state {
	case build.Cached:
		return c.green(fit(" => CACHED "+r.name, width-1))
	case build.Failed:
		return c.red(timed(" => ERROR "+r.name, r.took, width))
	case build.Canceled:
		return c.yellow(fit(" => CANCELED "+r.name, width-1))
	case build.Started:
		return timed(" => "+r.name, now.Sub(r.began), width)
	}
	return c.cyan(timed(" => "+r.name, r.took, width))
}

// timed puts a time at the line's right end.
func timed(text string, d time.Duration, width int) string {
	t := seconds(d)
	text = fit(text, width-2-len(t))
	return text + strings.Repeat(" ", max(1, width-1-len(t)-cells(text))) + t
}

// fit shortens a text to so many cells of a terminal.
func fit(s string, width int) string {
	if cells(s) <= width {
		return s
	}
	n := 0
	for i, r := range s {
		w := cellsOf(r)
		if n+w > width-1 {
			return s[:i] + "…"
		}
		n += w
	}
	return s
}

// cells is how wide a terminal shows a text.
func cells(s string) (n int) {
	for _, r := range s {
		n += cellsOf(r)
	}
	return n
}

// cellsOf is how wide a terminal shows a character: two cells for those of East Asia and pictures (Unicode annex 11, wide
// and fullwidth), none for those that combine.
func cellsOf(r rune) int {
	switch {
	case r < 0x300:
		return 1
	case r < 0x370, r == 0x200b, r == 0x200d, r >= 0xfe00 && r <= 0xfe0f:
		return 0
	case r >= 0x1100 && r <= 0x115f, r >= 0x2e80 && r <= 0xa4cf, r >= 0xac00 && r <= 0xd7a3, r >= 0xf900 && r <= 0xfaff,
		r >= 0xfe30 && r <= 0xfe6f, r >= 0xff00 && r <= 0xff60, r >= 0xffe0 && r <= 0xffe6, r >= 0x1f300 && r <= 0x1faff, r >= 0x20000 && r <= 0x3fffd:
		return 2
	}
	return 1
}
