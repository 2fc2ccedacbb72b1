package logfile

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func writeJSON(t testing.TB, path string, maxSize int64, maxFiles int, ps ...piece) {
	t.Helper()
	w, err := CreateJSON(path, maxSize, maxFiles)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range ps {
		if err := w.Append(p.s, time.Unix(0, int64(1000+i)), []byte(p.p)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(true); err != nil {
		t.Fatal(err)
	}
}

func linesJSON(t testing.TB, path string, o ReadOptions) []string {
	t.Helper()
	var got []string
	err := ReadJSON(context.Background(), path, o, func(l Line) error {
		got = append(got, fmt.Sprintf("%d@%d:%s", l.Stream, l.Time.UnixNano(), l.Data))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestJSONIsDockers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	writeJSON(t, path, 0, 0, piece{Stdout, "one\ntw"}, piece{Stderr, "<e>&\t\"\\\r\n"}, piece{Stdout, "o\n\xff\u2028ä\x00\n"}, piece{Stdout, "end"})
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"log":"one\n","stream":"stdout","time":"1970-01-01T00:00:00.000001Z"}
{"log":"\u003ce\u003e\u0026\u0009\"\\\r\n","stream":"stderr","time":"1970-01-01T00:00:00.000001001Z"}
{"log":"two\n","stream":"stdout","time":"1970-01-01T00:00:00.000001Z"}
{"log":"\ufffd\u2028ä\u0000\n","stream":"stdout","time":"1970-01-01T00:00:00.000001002Z"}
{"log":"end","stream":"stdout","time":"1970-01-01T00:00:00.000001003Z"}
`
	if string(b) != want {
		t.Errorf("got\n%s\nwant\n%s", b, want)
	}
	for _, c := range []struct {
		name string
		o    ReadOptions
		want []string
	}{
		{"all", all, []string{"1@1000:one\n", "2@1001:<e>&\t\"\\\r\n", "1@1000:two\n", "1@1002:\ufffd\u2028ä\x00\n", "1@1003:end"}},
		{"stderr", ReadOptions{Tail: -1, Stderr: true}, []string{"2@1001:<e>&\t\"\\\r\n"}},
		{"tail 0", ReadOptions{Tail: 0, Stdout: true, Stderr: true}, nil},
		{"tail 2", ReadOptions{Tail: 2, Stdout: true, Stderr: true}, []string{"1@1002:\ufffd\u2028ä\x00\n", "1@1003:end"}},
		{"tail 3 stdout", ReadOptions{Tail: 3, Stdout: true}, []string{"1@1000:two\n", "1@1002:\ufffd\u2028ä\x00\n", "1@1003:end"}},
		{"since", ReadOptions{Tail: -1, Stdout: true, Since: time.Unix(0, 1002)}, []string{"1@1002:\ufffd\u2028ä\x00\n", "1@1003:end"}},
		{"until", ReadOptions{Tail: -1, Stdout: true, Until: time.Unix(0, 1000)}, []string{"1@1000:one\n", "1@1000:two\n"}},
	} {
		t.Run(c.name, func(t *testing.T) { same(t, linesJSON(t, path, c.o), c.want) })
	}
}

// TestJSONTail checks every n on random logs over several files against the whole reading, and that what is kept is the end of
// what was written.
func TestJSONTail(t *testing.T) {
	rnd := rand.New(rand.NewSource(1))
	for round := range 20 {
		path := filepath.Join(t.TempDir(), "log")
		var ps []piece
		var said [3]strings.Builder
		for i := range 80 {
			p := strings.Repeat("x", rnd.Intn(300)) + fmt.Sprint(i) + "\n"
			if rnd.Intn(10) == 0 {
				p = strings.Repeat("long", maxPart/3) + "\n"
			}
			s := Stream(1 + rnd.Intn(2))
			said[s].WriteString(p)
			k := rnd.Intn(len(p))
			ps = append(ps, piece{s, p[:k]}, piece{s, p[k:]})
		}
		writeJSON(t, path, 64<<10, 1+rnd.Intn(5), ps...)
		for _, o := range []ReadOptions{all, {Tail: -1, Stdout: true}, {Tail: -1, Stderr: true}} {
			whole := linesJSON(t, path, o)
			if o.Stdout != o.Stderr {
				s, text := Stdout, ""
				if o.Stderr {
					s = Stderr
				}
				for _, l := range whole {
					text += l[strings.IndexByte(l, ':')+1:]
				}
				if !strings.HasSuffix(said[s].String(), text) {
					t.Fatalf("round %d: what is kept is not the end of what was said", round)
				}
			}
			ends := 0
			for _, l := range whole {
				if strings.HasSuffix(l, "\n") {
					ends++
				}
			}
			for n := 0; n < ends+2; n += 1 + rnd.Intn(9) {
				o.Tail = n
				got := linesJSON(t, path, o)
				have := 0
				for _, l := range got {
					if strings.HasSuffix(l, "\n") {
						have++
					}
				}
				if have != min(n, ends) || strings.Join(got, "") != strings.Join(whole[len(whole)-len(got):], "") {
					t.Fatalf("round %d tail %d: got %d lines", round, n, have)
				}
			}
		}
		files, err := filepath.Glob(path + "*")
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if st, err := os.Stat(f); err != nil || st.Size() > 64<<10+maxRecord {
				t.Errorf("%s: %v, %v", f, st, err)
			}
		}
	}
}

func TestJSONTornAndForeign(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	writeJSON(t, path, 0, 0, piece{Stdout, "one\n"}, piece{Stdout, "two\n"})
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	first := bytes.IndexByte(b, '\n') + 1
	for n := first; n < len(b); n++ {
		if err := os.WriteFile(path, b[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		same(t, linesJSON(t, path, all), []string{"1@1000:one\n"})
		writeJSON(t, path, 0, 0, piece{Stderr, "on\n"})
		same(t, linesJSON(t, path, all), []string{"1@1000:one\n", "2@1000:on\n"})
	}
	junk := "junk\n\n{}\n[]\n{\"log\":1}\n{\"stream\":\"x\"}\n" + strings.Repeat("y", 10*maxRecord) + "\n"
	if err := os.WriteFile(path, append([]byte(junk), b...), 0o600); err != nil {
		t.Fatal(err)
	}
	same(t, linesJSON(t, path, all), []string{"1@1000:one\n", "1@1001:two\n"})
	tail := all
	tail.Tail = 1
	same(t, linesJSON(t, path, tail), []string{"1@1001:two\n"})
}

func TestJSONFollow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	w, err := CreateJSON(path, 64<<10, 3)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	got := make(chan int)
	go func() {
		n := 0
		o := all
		o.Follow, o.Done = true, func() bool {
			select {
			case <-ended:
				return true
			default:
				return false
			}
		}
		if err := ReadJSON(context.Background(), path, o, func(l Line) error {
			if want := fmt.Sprintf("line %d\n", n); string(l.Data) != want {
				return fmt.Errorf("got %q, want %q", l.Data, want)
			}
			n++
			return nil
		}); err != nil {
			t.Error(err)
		}
		got <- n
	}()
	const many = 1500 // over two rotations, slowly enough for any reader
	for i := range many {
		if err := w.Append(Stdout, time.Now(), fmt.Appendf(nil, "line %d\n", i)); err != nil {
			t.Fatal(err)
		}
		if i%100 == 0 {
			time.Sleep(5 * time.Millisecond)
		}
	}
	if err := w.Close(false); err != nil {
		t.Fatal(err)
	}
	close(ended)
	if n := <-got; n != many {
		t.Errorf("followed %d lines of %d", n, many)
	}
}

// FuzzJSON: what is written is JSON, and reads back as the bytes that it was made of, but for those that are not UTF-8.
func FuzzJSON(f *testing.F) {
	f.Add([]byte("one\n"))
	f.Add([]byte("\xff<\u2028\"\\\x00"))
	f.Fuzz(func(t *testing.T, p []byte) {
		b := encodeRecord(nil, Stderr, time.Unix(0, 5), p)
		var rec record
		if err := json.Unmarshal(b, &rec); err != nil {
			t.Fatalf("%q: %v", b, err)
		}
		if want := strings.ToValidUTF8(string(p), "\ufffd"); strings.ReplaceAll(rec.Log, "\ufffd", "") != strings.ReplaceAll(want, "\ufffd", "") || rec.Stream != "stderr" {
			t.Errorf("%q: got %q", p, rec.Log)
		}
		if bytes.IndexByte(b, '\n') != len(b)-1 {
			t.Errorf("%q is not one line", b)
		}
	})
}
