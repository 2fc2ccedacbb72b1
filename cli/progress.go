package cli

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/onggi/onggi/image"
	"golang.org/x/term"
)

// progress shows a transfer: bars that are drawn over on a terminal, one line for each change of state elsewhere.
type progress struct {
	to    *os.File
	paint painter
	live  bool

	mu     sync.Mutex
	layers []*transfer // in the order in which they were first heard of
	rows   int         // lines that stand on the screen and are drawn over
	now    func() time.Time
	stop   chan struct{}
	done   chan struct{}
}

// transfer is one layer on its way.
type transfer struct {
	id, status  string
	done, total int64
	rate        rate
}

// rate is a smoothed speed in bytes per second.
type rate struct {
	since time.Time
	from  int64
	value float64
}

// update takes a new count of bytes. A sample covers at least a quarter of a second; a new one weighs 0.4.
func (r *rate) update(now time.Time, done int64) {
	if r.since.IsZero() || done < r.from {
		r.since, r.from, r.value = now, done, 0
		return
	}
	d := now.Sub(r.since)
	if d < 250*time.Millisecond {
		return
	}
	v := float64(done-r.from) / d.Seconds()
	if r.value == 0 {
		r.value = v
	} else {
		r.value = 0.6*r.value + 0.4*v
	}
	r.since, r.from = now, done
}

// progress begins to show a transfer on to.
func (a *app) progress(to *os.File) *progress {
	p := &progress{to: to, paint: a.paint(to), now: time.Now, live: term.IsTerminal(int(to.Fd())) && os.Getenv("TERM") != "dumb"}
	if p.live {
		p.stop, p.done = make(chan struct{}), make(chan struct{})
		go p.redraw()
	}
	return p
}

// event is one report of the store; it comes from several goroutines.
func (p *progress) event(e image.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e.ID == "" {
		if !p.live && e.Status != "" {
			fmt.Fprintln(p.to, printable(e.Status))
		}
		return
	}
	t := p.find(e.ID)
	changed := t.status != e.Status
	if changed {
		t.rate = rate{}
	}
	t.status, t.done = e.Status, e.Done
	if e.Total > 0 {
		t.total = e.Total
	}
	t.rate.update(p.now(), e.Done)
	if !p.live && changed && plainStatus(e.Status) {
		fmt.Fprintf(p.to, "%s: %s\n", t.id, printable(e.Status))
	}
}

// plainStatus selects what a log of a transfer tells, as docker's does without a terminal.
func plainStatus(s string) bool { return s != "Downloading" && s != "Extracting" && s != "Pushing" }

func (p *progress) find(id string) *transfer {
	for _, t := range p.layers {
		if t.id == id {
			return t
		}
	}
	t := &transfer{id: printable(id)}
	p.layers = append(p.layers, t)
	return t
}

// end draws the last state and leaves it on the screen.
func (p *progress) end() {
	if p.live {
		close(p.stop)
		<-p.done
	}
}

func (p *progress) redraw() {
	defer close(p.done)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			p.draw(false)
		case <-p.stop:
			p.draw(true)
			return
		}
	}
}

// draw writes the whole picture in one write, so that a terminal does not flicker.
func (p *progress) draw(last bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	width, height, err := term.GetSize(int(p.to.Fd()))
	if err != nil || width < 20 {
		width, height = 80, 24
	}
	lines := p.lines(width, height, last)
	var b strings.Builder
	if p.rows > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", p.rows)
	}
	for _, l := range lines {
		b.WriteString("\r\x1b[2K" + l + "\n")
	}
	// Lines of the picture before that this one lacks.
	b.WriteString("\x1b[J")
	p.rows = len(lines)
	_, _ = p.to.WriteString(b.String())
}

// lines renders the picture for a screen of width x height. When there are more layers than lines, finished ones go
// first. Preconditions: p.mu is held.
func (p *progress) lines(width, height int, last bool) []string {
	if len(p.layers) == 0 {
		return nil
	}
	show := p.layers
	if room := height - 3; !last && room > 0 && len(show) > room {
		show = nil
		for _, t := range p.layers {
			if !t.finished() && len(show) < room {
				show = append(show, t)
			}
		}
	}
	var out []string
	var done, total int64
	var speed float64
	finished, known := 0, true
	for _, t := range p.layers {
		switch {
		case t.finished():
			finished++
			done += t.total
		case t.status == "Downloading", t.status == "Pushing":
			done += t.done
			speed += t.rate.value
		case t.status != "Pulling fs layer" && t.status != "Waiting": // it is here, and being checked or unpacked
			done += t.total
		}
		if t.total == 0 && !t.finished() {
			known = false
		}
		total += t.total
	}
	for _, t := range show {
		out = append(out, t.line(width, p.paint))
	}
	if !last && finished < len(p.layers) {
		sum := fmt.Sprintf("%d of %d layers, %s", finished, len(p.layers), humanSize(done, 3))
		if known {
			sum += " of " + humanSize(total, 3)
		}
		if speed > 0 {
			sum += fmt.Sprintf(", %s/s", humanSize(int64(speed), 3))
			if known && total > done {
				sum += ", " + timeLeft(float64(total-done)/speed)
			}
		}
		out = append(out, p.paint.bold(shorten(sum, width-1)))
	}
	return out
}

func (t *transfer) finished() bool {
	switch t.status {
	case "Pull complete", "Already exists", "Pushed", "Layer already exists":
		return true
	}
	return strings.HasPrefix(t.status, "Mounted from ")
}

// line is one layer: its id, its state, and while bytes move a bar, their count, their rate and the time left.
func (t *transfer) line(width int, p painter) string {
	head := t.id + ": " + printable(t.status)
	moving := !plainStatus(t.status)
	if !moving {
		head = shorten(head, width-1)
		if t.finished() {
			head = p.green(head)
		}
		return head
	}
	tail := " " + humanSize(t.done, 3)
	if t.total > 0 {
		tail += "/" + humanSize(t.total, 3)
	}
	if t.rate.value > 0 {
		tail += fmt.Sprintf("  %s/s", humanSize(int64(t.rate.value), 3))
		if t.total > t.done {
			tail += "  " + timeLeft(float64(t.total-t.done)/t.rate.value)
		}
	}
	head = fmt.Sprintf("%-25s", head)
	room := width - 1 - len(head) - len(tail) - 3
	if t.total == 0 || room < 8 {
		return shorten(head+tail, width-1)
	}
	room = min(room, 50)
	full := int(int64(room) * min(t.done, t.total) / t.total)
	bar := strings.Repeat("=", full)
	if full < room {
		bar += ">" + strings.Repeat(" ", room-full-1)
	}
	return head + " [" + p.cyan(bar) + "]" + tail
}

// timeLeft prints seconds as "9s left", "2m05s left", "1h02m left".
func timeLeft(seconds float64) string {
	s := int64(seconds + 0.5)
	switch {
	case s < 60:
		return fmt.Sprintf("%ds left", s)
	case s < 3600:
		return fmt.Sprintf("%dm%02ds left", s/60, s%60)
	case s < 100*3600:
		return fmt.Sprintf("%dh%02dm left", s/3600, s%3600/60)
	}
	return "days left"
}
