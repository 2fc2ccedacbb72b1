package events

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func at(ns int64) time.Time { return time.Unix(1700000000, ns) }

func put(t testing.TB, dir string, e Event) {
	t.Helper()
	if err := Append(dir, &e); err != nil {
		t.Fatal(err)
	}
}

// actions reads the journal's actions.
func actions(t testing.TB, dir string, o ReadOptions) []string {
	t.Helper()
	var got []string
	if err := Read(context.Background(), dir, o, func(e *Event) error { got = append(got, e.Action); return nil }); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestDockersForm(t *testing.T) {
	e := Event{Type: Container, Action: "die", ID: "abc", Attributes: map[string]string{"image": "alpine", "exitCode": "3"}, Time: at(5)}
	b, err := json.Marshal(e)
	want := `{"status":"die","id":"abc","from":"alpine","Type":"container","Action":"die",` +
		`"Actor":{"ID":"abc","Attributes":{"exitCode":"3","image":"alpine"}},"scope":"local","time":1700000000,"timeNano":1700000000000000005}`
	if err != nil || string(b) != want {
		t.Errorf("got  %s (%v)\nwant %s", b, err, want)
	}
	b, _ = json.Marshal(Event{Type: Volume, Action: "create", ID: "v", Time: at(0)})
	want = `{"Type":"volume","Action":"create","Actor":{"ID":"v","Attributes":{}},"scope":"local","time":1700000000,"timeNano":1700000000000000000}`
	if string(b) != want {
		t.Errorf("got  %s\nwant %s", b, want)
	}
}

func TestSinceUntil(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "j")
	if got := actions(t, dir, ReadOptions{}); got != nil {
		t.Errorf("no journal: got %v", got)
	}
	for i := range 5 {
		put(t, dir, Event{Type: Container, Action: fmt.Sprint(i), Time: at(int64(i))})
	}
	for _, c := range []struct {
		o    ReadOptions
		want string
	}{
		{ReadOptions{}, "0 1 2 3 4"},
		{ReadOptions{Since: at(2)}, "2 3 4"},
		{ReadOptions{Until: at(2)}, "0 1 2"},
		{ReadOptions{Since: at(1), Until: at(3)}, "1 2 3"},
		{ReadOptions{Since: at(9)}, ""},
		{ReadOptions{Until: at(2), Follow: true}, "0 1 2"}, // an end that has passed is not waited for
	} {
		if got := strings.Join(actions(t, dir, c.o), " "); got != c.want {
			t.Errorf("%+v: got %q, want %q", c.o, got, c.want)
		}
	}
	stop := errors.New("enough")
	if err := Read(context.Background(), dir, ReadOptions{}, func(*Event) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("the error of yield: got %v", err)
	}
}

func TestTornRecordCostsOnlyItself(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, Event{Type: Container, Action: "one", Time: at(1)})
	put(t, dir, Event{Type: Container, Action: "torn", Time: at(2)})
	path := filepath.Join(dir, logName)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	first := strings.IndexByte(string(whole), lf) + 1
	for n := first; n < len(whole); n++ {
		if err := os.WriteFile(path, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		put(t, dir, Event{Type: Container, Action: "three", Time: at(3)})
		if got := strings.Join(actions(t, dir, ReadOptions{}), " "); got != "one three" {
			t.Fatalf("torn at %d: got %q", n, got)
		}
	}
	for _, junk := range []string{"\n\n", "\x1e\n", "\x1e{}\n", "\x1enull\n", strings.Repeat("x", 5*maxRecord) + "\n", "\x00\xff"} {
		if err := os.WriteFile(path, []byte(junk), 0o600); err != nil {
			t.Fatal(err)
		}
		put(t, dir, Event{Type: Container, Action: "after", Time: at(3)})
		if got := strings.Join(actions(t, dir, ReadOptions{}), " "); got != "after" {
			t.Errorf("%.10q: got %q", junk, got)
		}
	}
}

func TestLargeEventLosesLabels(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, Event{Type: Container, Action: "create", Time: at(1), Attributes: map[string]string{"name": "n", "image": "i", "l1": strings.Repeat("y", 200), "l2": strings.Repeat("z", 1<<20)}})
	var got Event
	if err := Read(context.Background(), dir, ReadOptions{}, func(e *Event) error { got = *e; return nil }); err != nil {
		t.Fatal(err)
	}
	if got.Attributes["name"] != "n" || got.Attributes["image"] != "i" || got.Attributes["l2"] != "" {
		t.Errorf("got %d attributes, name %q", len(got.Attributes), got.Attributes["name"])
	}
}

// perWriter events of 8 KiB by four writers fill the log once and a half: no reader can be so slow that it loses one.
const perWriter = 200

// TestManyWriters has processes and a follower at work over a rotation: nothing is lost for the follower, nothing
// is mixed, and the journal stays bounded.
func TestManyWriters(t *testing.T) {
	dir := t.TempDir()
	if d := os.Getenv("EVENTS_TEST_DIR"); d != "" {
		pad := strings.Repeat("p", 8<<10)
		for i := range perWriter {
			put(t, d, Event{Type: Container, Action: fmt.Sprintf("%s-%d", os.Getenv("EVENTS_TEST_NAME"), i), Attributes: map[string]string{"pad": pad}})
		}
		return
	}
	const writers = 4
	ctx, cancel := context.WithCancel(context.Background())
	seen := map[string]int{}
	var followed sync.WaitGroup
	followed.Add(1)
	var rerr error
	go func() {
		defer followed.Done()
		rerr = Read(ctx, dir, ReadOptions{Follow: true}, func(e *Event) error { seen[e.Action]++; return nil })
	}()
	var wg sync.WaitGroup
	for w := range writers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			c := exec.Command(os.Args[0], "-test.run=^TestManyWriters$")
			c.Env = append(os.Environ(), "EVENTS_TEST_DIR="+dir, fmt.Sprintf("EVENTS_TEST_NAME=w%d", w))
			if out, err := c.CombinedOutput(); err != nil {
				t.Errorf("writer: %v: %s", err, out)
			}
		}()
	}
	wg.Wait()
	cancel()
	followed.Wait()
	if rerr != nil {
		t.Error(rerr)
	}
	for w := range writers {
		for i := range perWriter {
			if n := seen[fmt.Sprintf("w%d-%d", w, i)]; n != 1 {
				t.Fatalf("w%d-%d was seen %d times, of %d in all", w, i, n, len(seen))
			}
		}
	}
	var size int64
	es, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range es {
		i, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		size += i.Size()
	}
	if limit := int64(2*MaxSize + 2*writers*maxRecord); size > limit || len(es) != 2 {
		t.Errorf("%d files of %d bytes, want 2 of at most %d", len(es), size, limit)
	}
}

func TestFollowWaits(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "missing")
	ctx, cancel := context.WithCancel(context.Background())
	got := make(chan string, 4)
	done := make(chan error)
	go func() {
		done <- Read(ctx, dir, ReadOptions{Follow: true}, func(e *Event) error { got <- e.Action; return nil })
	}()
	for _, a := range []string{"a", "b"} {
		put(t, dir, Event{Type: Container, Action: a})
		if g := <-got; g != a {
			t.Errorf("got %s, want %s", g, a)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func FuzzDecode(f *testing.F) {
	b, _ := encode(&Event{Type: Container, Action: "die", ID: "abc", Attributes: map[string]string{"image": "alpine"}, Time: at(5)})
	f.Add(b)
	f.Add([]byte("\x1e{}\n"))
	f.Add([]byte("{\x1e{\"Type\":1}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, ok := decode(b)
		if !ok {
			return
		}
		again, err := encode(e)
		if err != nil {
			return // too large, or not text
		}
		if back, ok := decode(again); !ok || back.Action != e.Action || !back.Time.Equal(e.Time) {
			t.Errorf("%q: got %+v back", b, back)
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	dir := b.TempDir()
	e := Event{Type: Container, Action: "start", ID: strings.Repeat("a", 64), Attributes: map[string]string{"image": "alpine", "name": "n"}}
	for b.Loop() {
		put(b, dir, e)
	}
}
