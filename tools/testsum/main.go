// Testsum reads the stream of `go test -json` (or of test2json) and tells what a person wants of it: a line per
// package when it ends, all output of what failed, a word about a test that takes long while it runs, and at the end
// every skipped test with its reason and the tests that took longest. It exits with 1 when anything failed or when a
// package never ended; a test that was skipped without a reason is a failure, too.
//
//	go test -json ./... | go run ./tools/testsum [-again FILE]
//
// With -again, and when nothing but a few tests has failed, it writes these into FILE, a line each: the package, a tab
// and what -run finds the test by; it then exits with 3. Who ran them may give them a second chance, alone.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"
)

// event is one line of the stream (go doc test2json).
type event struct {
	Action     string
	Package    string
	ImportPath string
	Test       string
	Output     string
	Elapsed    float64
}

type run struct {
	pkg, test string
	begun     time.Time
	running   bool
	said      int // how often it was told that this one still runs
	output    []string
	elapsed   float64
}

type summary struct {
	mu       sync.Mutex
	w        io.Writer
	runs     map[string]*run // by package and test
	packages map[string]map[string]int
	open     map[string]bool // packages that have begun and not ended
	skipped  []*run
	failed   []*run
	done     []*run
	failures int // all there are
	known    int // those of them that are tests, and packages because of them
	mute     int
}

// chances is how many failed tests may be tried again: more of them are no accident.
const chances = 3

func main() {
	again := flag.String("again", "", "where to write the failed tests, if they are few")
	flag.Parse()
	s := newSummary(os.Stdout)
	stop := make(chan struct{})
	go func() {
		for t := time.NewTicker(5 * time.Second); ; {
			select {
			case <-t.C:
				s.patience(time.Now(), time.Minute)
			case <-stop:
				return
			}
		}
	}()
	err := s.read(os.Stdin)
	close(stop)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testsum:", err)
		os.Exit(2)
	}
	if s.end() {
		return
	}
	if list := s.again(); *again != "" && list != nil {
		if err := os.WriteFile(*again, []byte(strings.Join(list, "\n")+"\n"), 0o600); err != nil {
			fmt.Fprintln(os.Stderr, "testsum:", err)
			os.Exit(2)
		}
		os.Exit(3)
	}
	os.Exit(1)
}

// again lists the tests that failed, the innermost ones; nil when something else failed, or more than a few did.
func (s *summary) again() (list []string) {
	if s.failures != s.known {
		return nil
	}
	for _, r := range s.failed {
		if slices.ContainsFunc(s.failed, func(o *run) bool { return o.pkg == r.pkg && strings.HasPrefix(o.test, r.test+"/") }) {
			continue
		}
		var pattern []string
		for _, name := range strings.Split(r.test, "/") {
			pattern = append(pattern, "^"+regexp.QuoteMeta(name)+"$")
		}
		list = append(list, r.pkg+"\t"+strings.Join(pattern, "/"))
	}
	if len(list) > chances {
		return nil
	}
	return list
}

func newSummary(w io.Writer) *summary {
	return &summary{w: w, runs: map[string]*run{}, packages: map[string]map[string]int{}, open: map[string]bool{}}
}

// read takes the whole stream. Lines that are not events (a message of the go command) are passed on.
func (s *summary) read(r io.Reader) error {
	b := bufio.NewReader(r)
	for {
		line, err := b.ReadString('\n')
		if line != "" {
			var e event
			if json.Unmarshal([]byte(line), &e) == nil && e.Action != "" {
				s.take(e)
			} else {
				s.printf("%s\n", strings.TrimSuffix(line, "\n"))
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (s *summary) printf(format string, args ...any) {
	_, _ = fmt.Fprintf(s.w, format, args...)
}

func (s *summary) take(e event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	pkg := short(e.Package)
	key := pkg + " " + e.Test
	r := s.runs[key]
	if r == nil {
		r = &run{pkg: pkg, test: e.Test, begun: time.Now()}
		s.runs[key] = r
	}
	switch e.Action {
	case "build-output":
		s.printf("%s", e.Output)
	case "build-fail":
		s.failures++
	case "start":
		s.open[pkg] = true
	case "run", "cont":
		r.running, r.begun = true, time.Now()
		s.open[pkg] = true
	case "pause":
		r.running = false
	case "output":
		r.output = append(r.output, e.Output)
	case "pass", "fail", "skip":
		r.running, r.elapsed = false, e.Elapsed
		if e.Test == "" {
			s.packageEnds(r, e.Action)
			break
		}
		if s.packages[pkg] == nil {
			s.packages[pkg] = map[string]int{}
		}
		s.packages[pkg][e.Action]++
		s.done = append(s.done, r)
		switch e.Action {
		case "skip":
			s.skipped = append(s.skipped, r)
		case "fail":
			s.failures++
			s.known++
			s.failed = append(s.failed, r)
			s.printf("FAIL %s %s (%.1fs)\n%s%s", pkg, e.Test, e.Elapsed, r.last(), r.text())
		}
		if e.Action != "skip" {
			r.output = nil
		}
	}
}

// packageEnds prints the package's line; what a package says outside of any test is told only when it failed.
func (s *summary) packageEnds(r *run, action string) {
	delete(s.open, r.pkg)
	n := s.packages[r.pkg]
	word := map[string]string{"pass": "ok  ", "fail": "FAIL", "skip": "none"}[action]
	if action == "skip" && n == nil { // [no test files]
		s.mute++
		return
	}
	counts := fmt.Sprintf("%d passed", n["pass"])
	for _, k := range []string{"fail", "skip"} {
		if n[k] > 0 {
			counts += fmt.Sprintf(", %d %s", n[k], map[string]string{"fail": "failed", "skip": "skipped"}[k])
		}
	}
	if action == "fail" {
		s.failures++
		if n["fail"] > 0 {
			s.known++
		}
		for _, t := range s.runs { // a panic or a time-out: nobody else will tell
			if t.pkg == r.pkg && t.test != "" && t.running {
				s.known = -s.failures // for good
				s.printf("FAIL %s %s (it never ended)\n%s", t.pkg, t.test, t.text())
			}
		}
		s.printf("%s", r.text())
	} else if n == nil {
		counts = strings.TrimSpace(r.text()) // SKIP: needs root
	}
	s.printf("%s %-28s %7.1fs  %s\n", word, r.pkg, r.elapsed, counts)
}

// patience tells which tests have been running for longer than a while, once per while.
func (s *summary) patience(now time.Time, while time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.runs {
		if n := int(now.Sub(r.begun) / while); r.running && r.test != "" && n > r.said {
			r.said = n
			s.printf("...  %s %s has been running for %v\n", r.pkg, r.test, now.Sub(r.begun).Round(time.Second))
		}
	}
}

// end prints what was skipped and what took long, and says whether all went well.
func (s *summary) end() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p := range s.open {
		s.failures++
		s.printf("FAIL %s never ended\n", p)
		for _, r := range s.runs {
			if r.pkg == p && r.running && r.test != "" {
				s.printf("FAIL %s %s never ended\n%s", p, r.test, r.text())
			}
		}
	}
	if len(s.skipped) > 0 {
		s.printf("skipped:\n")
	}
	for _, r := range s.skipped {
		why := r.reason()
		if why == "" {
			s.failures++
			why = "FAIL: it does not say why"
		}
		s.printf("  %s %s: %s\n", r.pkg, r.test, why)
	}
	sort.SliceStable(s.done, func(i, j int) bool { return s.done[i].elapsed > s.done[j].elapsed })
	slow := ""
	for _, r := range s.done {
		if r.elapsed < 5 || strings.Count(slow, ",") >= 7 {
			break
		}
		if slow != "" {
			slow += ", "
		}
		slow += fmt.Sprintf("%s %s %.0fs", r.pkg, r.test, r.elapsed)
	}
	if slow != "" {
		s.printf("slowest: %s\n", slow)
	}
	return s.failures == 0
}

// last is the end of what is long, to be told first: there the reason is, and who shows these lines may cut them off.
func (r *run) last() string {
	const few = 8
	lines := strings.SplitAfter(r.text(), "\n")
	if len(lines) <= 3*few {
		return ""
	}
	return "    ... in the end:\n" + strings.Join(lines[len(lines)-few-1:], "") + "    ... from the beginning:\n"
}

// text is what a test has printed, without the marks of its progress; of very much the beginning and the end.
func (r *run) text() string {
	const head, tail = 150, 100
	var b strings.Builder
	said := r.output[:len(r.output):len(r.output)]
	if n := len(said) - head - tail; n > 0 {
		said = append(append(said[:head:head], fmt.Sprintf("    ... %d lines are left out ...\n", n)), said[head+n:]...)
	}
	for _, l := range said {
		if t := strings.TrimSpace(l); t != "PASS" && t != "FAIL" && !strings.HasPrefix(t, "=== ") && !strings.HasPrefix(t, "ok  \t") && !strings.HasPrefix(t, "--- ") {
			b.WriteString(l)
		}
	}
	return b.String()
}

// reason is what t.Skip was told: the last thing that was said, without the place.
func (r *run) reason() string {
	lines := strings.Split(strings.TrimSpace(r.text()), "\n")
	why := strings.TrimSpace(lines[len(lines)-1])
	if place, rest, ok := strings.Cut(why, ": "); ok && strings.Contains(place, ".go:") {
		why = rest
	} else if strings.HasSuffix(why, ":") && strings.Contains(why, ".go:") {
		why = ""
	}
	return strings.TrimSpace(why)
}

// short is a package's name inside the module.
func short(p string) string {
	const module = "github.com/onggi/onggi"
	if p == module {
		return "."
	}
	return strings.TrimPrefix(p, module+"/")
}
