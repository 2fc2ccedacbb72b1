package cli

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// inProcess is an app whose streams are files.
func inProcess(t *testing.T) (a *app, output func() (string, string)) {
	t.Helper()
	dir := t.TempDir()
	open := func(name string) *os.File {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	a = &app{in: open("in"), out: open("out"), err: open("err")}
	return a, func() (string, string) {
		o, _ := os.ReadFile(a.out.Name())
		e, _ := os.ReadFile(a.err.Name())
		return string(o), string(e)
	}
}

// TestForEach: results come in the order of the arguments whatever takes longest, and one that fails keeps no other
// from being done.
func TestForEach(t *testing.T) {
	a, output := inProcess(t)
	var args []string
	for i := range 50 {
		args = append(args, fmt.Sprint(i))
	}
	err := a.forEach(context.Background(), args, func(_ context.Context, s string) (string, error) {
		if s == "0" {
			time.Sleep(20 * time.Millisecond)
		}
		if s == "3" || s == "7" {
			return "", errors.New("no " + s)
		}
		return s, nil
	})
	if err == nil || err.Error() != "no 7" {
		t.Errorf("error %v, want the last one, which the caller reports", err)
	}
	out, errs := output()
	var want []string
	for _, s := range args {
		if s != "3" && s != "7" {
			want = append(want, s)
		}
	}
	if got := strings.Fields(out); strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("printed %q, want %q", got, want)
	}
	if errs != "onggi: no 3\n" {
		t.Errorf("stderr %q", errs)
	}
}

func TestForEachStops(t *testing.T) {
	a, output := inProcess(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	err := a.forEach(ctx, []string{"a", "b"}, func(context.Context, string) (string, error) { return "done", nil })
	if out, _ := output(); !errors.Is(err, context.Canceled) || out != "" {
		t.Errorf("after a signal: %v, printed %q", err, out)
	}
}

func TestLogPairKeepsOrder(t *testing.T) {
	var both bytes.Buffer
	p := newPair(&both, &both)
	for i := range 100 {
		w := p.stdout()
		if i%3 == 0 {
			w = p.stderr()
		}
		fmt.Fprintf(w, "%d ", i)
	}
	if err := p.flush(); err != nil {
		t.Fatal(err)
	}
	for i, s := range strings.Fields(both.String()) {
		if s != fmt.Sprint(i) {
			t.Fatalf("word %d is %s: the streams were mixed up", i, s)
		}
	}
}

func TestManifestOf(t *testing.T) {
	d := digest.Digest("sha256:" + strings.Repeat("ab", 32))
	pack := func(name, text string) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		_ = w.WriteHeader(&tar.Header{Name: name, Size: int64(len(text)), Mode: 0o644})
		_, _ = w.Write([]byte(text))
		_ = w.Close()
		return b.Bytes()
	}
	for _, c := range []struct {
		b    []byte
		want digest.Digest
	}{
		{pack("index.json", `{"manifests":[{"digest":"`+d.String()+`"}]}`), d},
		{pack("other", "{}"), ""},
		{pack("index.json", "{}"), ""},
		{pack("index.json", "no"), ""},
		{[]byte("no archive"), ""},
		{nil, ""},
	} {
		if got := manifestOf(bytes.NewReader(c.b)); got != c.want {
			t.Errorf("manifestOf = %q, want %q", got, c.want)
		}
	}
}

func TestIDFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "cid")
	f, err := newIDFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := newIDFile(name); err == nil || !strings.Contains(err.Error(), "exists already") {
		t.Errorf("a second file: %v", err)
	}
	if err := f.write("abc"); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(name); string(b) != "abc" {
		t.Errorf("it holds %q", b)
	}
	if f, err = newIDFile(name + "2"); err != nil {
		t.Fatal(err)
	}
	f.drop()
	if _, err := os.Stat(name + "2"); !os.IsNotExist(err) {
		t.Errorf("a dropped file is left: %v", err)
	}
	none, err := newIDFile("")
	if err != nil || none.write("x") != nil {
		t.Errorf("no file asked for: %v", err)
	}
	none.drop()
}
