package main

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestSummary(t *testing.T) {
	for _, c := range []struct {
		name string
		in   string
		ok   bool
		want []string
		not  []string
	}{
		{"all well", `{"Action":"start","Package":"github.com/onggi/onggi/sys"}
{"Action":"run","Package":"github.com/onggi/onggi/sys","Test":"TestA"}
{"Action":"output","Package":"github.com/onggi/onggi/sys","Test":"TestA","Output":"    a_test.go:3: a log\n"}
{"Action":"pass","Package":"github.com/onggi/onggi/sys","Test":"TestA","Elapsed":7.5}
{"Action":"pass","Package":"github.com/onggi/onggi/sys","Elapsed":8}
`, true, []string{"ok   sys ", "1 passed\n", "slowest: sys TestA 8s"}, []string{"a log", "skipped"}},
		{"a failure", `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN   TestA\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:3: got 1, want 2\n"}
{"Action":"fail","Package":"p","Test":"TestA","Elapsed":0.1}
{"Action":"output","Package":"p","Output":"FAIL\n"}
{"Action":"fail","Package":"p","Elapsed":0.2}
`, false, []string{"FAIL p TestA (0.1s)\n    a_test.go:3: got 1, want 2\n", "FAIL p ", "1 failed"}, []string{"=== RUN"}},
		{"skips", `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:3: needs root: or so\n"}
{"Action":"skip","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p"}
`, true, []string{"skipped:\n  p TestA: needs root: or so\n", "0 passed, 1 skipped"}, nil},
		{"a skip without a word", `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:3: \n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"--- SKIP: TestA (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p"}
`, false, []string{"p TestA: FAIL: it does not say why"}, nil},
		{"a package that says it is skipped", `{"Action":"output","Package":"p","Output":"SKIP: needs root\n"}
{"Action":"pass","Package":"p"}
`, true, []string{"SKIP: needs root"}, nil},
		{"a panic", `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"panic: oh\n"}
{"Action":"fail","Package":"p","Elapsed":1}
`, false, []string{"TestA (it never ended)\npanic: oh\n"}, nil},
		{"a stream that is cut", `{"Action":"start","Package":"p"}
{"Action":"run","Package":"p","Test":"TestA"}
`, false, []string{"FAIL p never ended", "FAIL p TestA never ended"}, nil},
		{"words of the go command", "go: cannot find it\n{}\n", true, []string{"go: cannot find it\n"}, nil},
		{"it does not build", `{"ImportPath":"p","Action":"build-output","Output":"x.go:1:1: no\n"}
{"ImportPath":"p","Action":"build-fail"}
`, false, []string{"x.go:1:1: no\n"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			s := newSummary(&out)
			if err := s.read(strings.NewReader(c.in)); err != nil {
				t.Fatal(err)
			}
			if got := s.end(); got != c.ok {
				t.Errorf("all well: %v, want %v", got, c.ok)
			}
			for _, w := range c.want {
				if !strings.Contains(out.String(), w) {
					t.Errorf("no %q in:\n%s", w, out.String())
				}
			}
			for _, w := range c.not {
				if strings.Contains(out.String(), w) {
					t.Errorf("%q in:\n%s", w, out.String())
				}
			}
		})
	}
}

func TestPatience(t *testing.T) {
	var out bytes.Buffer
	s := newSummary(&out)
	s.take(event{Action: "run", Package: "p", Test: "TestLong"})
	s.patience(time.Now().Add(30*time.Second), time.Minute)
	if out.Len() > 0 {
		t.Errorf("told too early: %s", out.String())
	}
	s.patience(time.Now().Add(90*time.Second), time.Minute)
	s.patience(time.Now().Add(91*time.Second), time.Minute)
	if n := strings.Count(out.String(), "TestLong has been running"); n != 1 {
		t.Errorf("told %d times, want once: %s", n, out.String())
	}
}

func TestVeryMuchOutput(t *testing.T) {
	r := &run{}
	for i := range 1000 {
		r.output = append(r.output, fmt.Sprintf("line %d\n", i))
	}
	got := r.text()
	if n := strings.Count(got, "\n"); n != 251 || !strings.Contains(got, "line 149\n    ... 750 lines are left out ...\nline 900\n") {
		t.Errorf("%d lines, want 251:\n%s", n, got)
	}
}

// TestAgain: what may be tried again is a few failed tests, by the names that -run takes, and nothing else.
func TestAgain(t *testing.T) {
	fail := func(names ...string) (in string) {
		for _, n := range names {
			in += fmt.Sprintf(`{"Action":"run","Package":"p","Test":%[1]q}
{"Action":"fail","Package":"p","Test":%[1]q,"Elapsed":1}
`, n)
		}
		return in + `{"Action":"fail","Package":"p","Elapsed":1}
`
	}
	for _, c := range []struct {
		name, in string
		want     []string
	}{
		{"nothing failed", `{"Action":"pass","Package":"p"}`, nil},
		{"one", fail("TestA"), []string{"p\t^TestA$"}},
		{"the innermost", fail("TestA/a.b/c", "TestA/a.b", "TestA", "TestAB"), []string{"p\t^TestA$/^a\\.b$/^c$", "p\t^TestAB$"}},
		{"too many", fail("TestA", "TestB", "TestC", "TestD"), nil},
		{"a package that fails without a test", `{"Action":"fail","Package":"p","Elapsed":1}`, nil},
		{"a test and a panic", `{"Action":"run","Package":"p","Test":"TestB"}
` + fail("TestA"), nil},
		{"a test and another package that is cut off", `{"Action":"start","Package":"q"}
` + fail("TestA"), nil},
		{"a test and one that does not build", `{"ImportPath":"q","Action":"build-fail"}
` + fail("TestA"), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSummary(io.Discard)
			if err := s.read(strings.NewReader(c.in)); err != nil {
				t.Fatal(err)
			}
			s.end()
			if got := s.again(); !slices.Equal(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// TestLast: of a long output the end is told first.
func TestLast(t *testing.T) {
	r := &run{}
	for i := range 30 {
		r.output = append(r.output, fmt.Sprintf("line %d\n", i))
	}
	if got := r.last(); !strings.Contains(got, "line 29\n") || !strings.Contains(got, "line 22\n") || strings.Contains(got, "line 21\n") {
		t.Error(got)
	}
	if r.output = r.output[:10]; r.last() != "" {
		t.Error("a short one is told twice")
	}
}
