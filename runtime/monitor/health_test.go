package monitor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestHealthRules walks through results as docker's documentation of HEALTHCHECK tells them.
func TestHealthRules(t *testing.T) {
	started := time.Unix(1000, 0)
	h := &Health{Interval: 30 * time.Second, StartInterval: 5 * time.Second, StartPeriod: 20 * time.Second, Retries: 2}
	st := &HealthState{Status: Starting}
	for i, c := range []struct {
		at, code int
		status   string
		streak   int64
		changed  bool
		next     int // seconds later
	}{
		{5, 1, Starting, 0, false, 5},   // in the start period nothing counts
		{10, 1, Starting, 0, false, 5},  //
		{25, 1, Starting, 1, false, 30}, // behind it, it does
		{26, 0, Healthy, 0, true, 30},
		{27, 1, Healthy, 1, false, 30},
		{28, 0, Healthy, 0, false, 30},
		{29, -1, Healthy, 1, false, 30}, // a timeout is a failure
		{30, 2, Unhealthy, 2, true, 30},
		{31, 1, Unhealthy, 3, false, 30},
		{32, 0, Healthy, 0, true, 30},
	} {
		at := started.Add(time.Duration(c.at) * time.Second)
		changed := st.take(h, started, HealthResult{Start: at, End: at, ExitCode: c.code})
		if next := int(h.next(st, started, at).Sub(at) / time.Second); changed != c.changed || st.Status != c.status || st.FailingStreak != c.streak || next != c.next {
			t.Errorf("result %d: got %v %s %d %d, want %+v", i, changed, st.Status, st.FailingStreak, next, c)
		}
	}
	if len(st.Log) != keptResults || st.Log[4].ExitCode != 0 {
		t.Errorf("kept %d results", len(st.Log))
	}
	early := &HealthState{Status: Starting}
	if early.take(h, started, HealthResult{Start: started, End: started}); early.Status != Healthy {
		t.Errorf("a success in the start period: got %s", early.Status)
	}
}

func TestReadHealth(t *testing.T) {
	dir := t.TempDir()
	if _, err := ReadHealth(dir); err == nil {
		t.Error("no file: got no error")
	}
	if err := writeHealth(dir, &HealthState{Status: Healthy, Log: []HealthResult{{Output: "\x00\xff"}}}); err != nil {
		t.Fatal(err)
	}
	if st, err := ReadHealth(dir); err != nil || st.Status != Healthy || len(st.Log) != 1 {
		t.Errorf("got %+v, %v", st, err)
	}
	for _, junk := range []string{"", "{", "[]", strings.Repeat(" ", 2<<20) + "{}"} {
		if err := os.WriteFile(filepath.Join(dir, healthName), []byte(junk), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadHealth(dir); err == nil {
			t.Errorf("%.5q was read", junk)
		}
	}
	if got := readBounded(strings.NewReader(strings.Repeat("x", maxOutput))); len(got) != maxOutput {
		t.Errorf("output of the limit's size: %d bytes", len(got))
	}
	if got := readBounded(strings.NewReader(strings.Repeat("x", maxOutput+1))); len(got) != maxOutput+3 || !strings.HasSuffix(got, "...") {
		t.Errorf("output above the limit: %d bytes", len(got))
	}
}
