package frontend

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/onggi/onggi/build/graph"
	"github.com/onggi/onggi/errdefs"
)

// TestMain plays the frontend's process when FRONTEND is the first argument.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "frontend" {
		play(os.Args[2])
		return
	}
	os.Exit(m.Run())
}

func play(role string) {
	say := func(s string) { fmt.Println(s) }
	// listen hears the request: who ends before that breaks the pipe under the one who still writes it.
	listen := func() { _, _ = bufio.NewReader(os.Stdin).ReadString('\n') }
	switch role {
	case "good":
		err := Serve(context.Background(), os.Stdin, os.Stdout, func(ctx context.Context, req Request, b Backend) (*Result, error) {
			var wg sync.WaitGroup
			out := &Result{Meta: map[string][]byte{"environment": []byte(strings.Join(os.Environ(), ","))}}
			var mu sync.Mutex
			for i := range 20 {
				wg.Add(1)
				go func() {
					defer wg.Done()
					data, err := b.ReadFile(ctx, &graph.Graph{}, fmt.Sprint(i), int64(i), 10)
					mu.Lock()
					defer mu.Unlock()
					out.Meta[fmt.Sprint(i)] = data
					if err != nil {
						out.Meta[fmt.Sprint(i)] = []byte(errdefs.KindOf(err).String() + ": " + errdefs.FixOf(err))
					}
				}()
			}
			wg.Wait()
			b.Warn(Warning{Text: req.Options["hello"]})
			return out, nil
		})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case "failure":
		_ = Serve(context.Background(), os.Stdin, os.Stdout, func(context.Context, Request, Backend) (*Result, error) {
			return nil, &Failure{Err: &errdefs.Error{Kind: errdefs.NotFound, Why: "gone"}, Source: &graph.Text{Name: "Dockerfile"}, Ranges: []graph.Location{{Start: 3, End: 4}}}
		})
	case "dies":
		listen()
		fmt.Fprintln(os.Stderr, "out of memory")
		os.Exit(3)
	case "mute":
		time.Sleep(time.Hour)
	case "nonsense":
		listen()
		say("what?")
	case "endless":
		for {
			if _, err := os.Stdout.WriteString(strings.Repeat("x", 1<<20)); err != nil {
				return
			}
		}
	case "badgraph":
		listen()
		say(`{"call":"end","result":{"platforms":[{"id":"x","platform":{"os":"","architecture":""},"image":{},"graph":{"output":{"vertex":"x"}}}]}}`)
	case "empty":
		listen()
		say(`{"call":"end"}`)
	case "fishing":
		say(`{"id":1,"call":"read","path":"/etc/shadow","length":10}`)
		say(`{"id":2,"call":"read","graph":{},"path":"/x","length":99999999}`)
		say(`{"id":3,"call":"shell"}`)
		r := bufio.NewReader(os.Stdin)
		_, _ = r.ReadString('\n')
		var all []string
		for range 3 {
			l, _ := r.ReadString('\n')
			all = append(all, l)
		}
		b, _ := json.Marshal(map[string]any{"call": "end", "result": map[string]any{"meta": map[string][]byte{"answers": []byte(strings.Join(all, ""))}}})
		say(string(b))
	}
}

type backend struct {
	Backend
	mu       sync.Mutex
	warnings []string
}

func (b *backend) ReadFile(_ context.Context, _ *graph.Graph, path string, offset int64, length int) ([]byte, error) {
	if path == "13" {
		return nil, &errdefs.Error{Kind: errdefs.NotFound, Why: "unlucky", Fix: "take 14"}
	}
	return fmt.Appendf(nil, "%s at %d for %d", path, offset, length), nil
}

func (b *backend) Warn(w Warning) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.warnings = append(b.warnings, w.Text)
}

func run(t *testing.T, role string) (*Result, *backend, error) {
	t.Helper()
	t.Setenv("SECRET", "of the user")
	b := &backend{}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	res, err := Run(ctx, []string{"/proc/self/exe", "frontend", role}, Request{Options: map[string]string{"hello": "world"}}, b)
	return res, b, err
}

func TestConversation(t *testing.T) {
	res, b, err := run(t, "good")
	if err != nil {
		t.Fatal(err)
	}
	if got := string(res.Meta["7"]); got != "7 at 7 for 10" {
		t.Errorf("answer: %q", got)
	}
	if got := string(res.Meta["13"]); got != "not-found: take 14" {
		t.Errorf("a failed answer: %q", got)
	}
	if len(b.warnings) != 1 || b.warnings[0] != "world" {
		t.Errorf("warnings: %q", b.warnings)
	}
	if env := string(res.Meta["environment"]); strings.Contains(env, "SECRET") {
		t.Errorf("the process has the user's environment: %s", env)
	}
}

func TestFailureAndHostileFrontends(t *testing.T) {
	_, _, err := run(t, "failure")
	var f *Failure
	if !errors.As(err, &f) || f.Ranges[0].Start != 3 || !errdefs.Is(err, errdefs.NotFound) || err.Error() != "gone" {
		t.Errorf("failure: %v, %+v", err, f)
	}
	for role, want := range map[string]string{
		"dies": "out of memory", "nonsense": "invalid character", "endless": "too long", "badgraph": "output", "empty": "empty",
	} {
		if _, _, err := run(t, role); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", role, err, want)
		}
	}
	res, _, err := run(t, "fishing")
	if err != nil {
		t.Fatal(err)
	}
	if got := string(res.Meta["answers"]); strings.Count(got, "failure") != 3 || !strings.Contains(got, "out of range") || strings.Contains(got, "root:") {
		t.Errorf("answers: %s", got)
	}
	if _, err := Run(context.Background(), []string{"/no/such/onggi-build"}, Request{}, &backend{}); errdefs.FixOf(err) == "" || !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("no frontend: %v", err)
	}
}

// TestCancel: a frontend that says nothing ends with its build.
func TestCancel(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err := Run(ctx, []string{"/proc/self/exe", "frontend", "mute"}, Request{}, &backend{})
	if err == nil {
		t.Error("a mute frontend has a result")
	}
}

func FuzzRead(f *testing.F) {
	f.Add(`{"call":"end","result":{}}` + "\n")
	f.Add(`{"id":1,"call":"read","graph":{},"path":"/x","length":1}` + "\n")
	f.Fuzz(func(t *testing.T, s string) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		c := newConn(strings.NewReader(s), io.Discard)
		res, err := converse(ctx, c, Request{}, &safe{})
		if (res == nil) == (err == nil) {
			t.Errorf("%v and %v", res, err)
		}
	})
}

// safe answers everything with an error.
type safe struct{ backend }

func (*safe) Resolve(context.Context, ImageQuery) (*ImageInfo, error) { return nil, io.EOF }

func (*safe) Metadata(context.Context, *graph.Source) (*SourceInfo, error) { return nil, io.EOF }

func (*safe) Stat(context.Context, *graph.Graph, string) (*Stat, error) { return nil, io.EOF }

func (*safe) ReadDir(context.Context, *graph.Graph, string, string) ([]Stat, error) {
	return nil, io.EOF
}

func (*safe) Evaluate(context.Context, *graph.Graph) error { return io.EOF }
