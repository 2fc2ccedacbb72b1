package volume

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/onggi/onggi/errdefs"
)

// disposal is a removal of its own that lasts for an hour.
func disposal(t testing.TB) Disposal {
	t.Helper()
	id, err := randomHex(6)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().UTC().Round(0)
	return Disposal{ID: id, Command: "test", Time: now, Expires: now.Add(time.Hour)}
}

func fill(t testing.TB, v *Volume, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(v.Path, "file"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func holds(t testing.TB, s *Store, name, text string) {
	t.Helper()
	v, err := s.Get(name)
	if err != nil {
		t.Error(err)
		return
	}
	if b, err := os.ReadFile(filepath.Join(v.Path, "file")); string(b) != text {
		t.Errorf("volume %s holds %q, %v; want %q", name, b, err, text)
	}
}

func TestTrash(t *testing.T) {
	s := newStore(t)
	one, two := disposal(t), disposal(t)
	for _, n := range []string{"first", "second"} {
		fill(t, ensure(t, s, n), n)
		if err := s.Discard(n, one); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Get("first"); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("a discarded volume: %v, want not found", err)
	}
	if err := s.Discard("first", one); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("discarded twice: %v, want not found", err)
	}
	if err := s.Discard("first", Disposal{ID: "../../x"}); !errdefs.Is(err, errdefs.InvalidArgument) {
		t.Errorf("a path as removal: %v, want invalid", err)
	}
	if _, err := s.Restore("../x"); !errdefs.Is(err, errdefs.InvalidArgument) {
		t.Errorf("a path as removal: %v, want invalid", err)
	}
	// The name is somebody else's by the time that it comes back.
	fill(t, ensure(t, s, "first"), "new")
	if err := s.Discard("first", two); err != nil {
		t.Fatal(err)
	}
	fill(t, ensure(t, s, "first"), "newest")
	list, err := s.Trash()
	if err != nil || len(list) != 2 {
		t.Fatalf("trash: %v, %v; want two removals", list, err)
	}
	for _, r := range list {
		want := "first second"
		if r.ID == two.ID {
			want = "first"
		}
		if strings.Join(r.Volumes, " ") != want || r.Command != "test" || !r.Expires.Equal(one.Expires) && r.ID == one.ID {
			t.Errorf("removal: %+v, want %s", r, want)
		}
	}
	if err := s.Sweep(); err != nil { // the trash is not litter
		t.Fatal(err)
	}
	back, err := s.Restore(one.ID)
	if err != nil || len(back) != 2 || back[0].Taken != "first" || back[0].Name != "first-"+one.ID || back[1] != (Restored{Name: "second"}) {
		t.Fatalf("restored: %+v, %v", back, err)
	}
	holds(t, s, "first", "newest")
	holds(t, s, "first-"+one.ID, "first")
	holds(t, s, "second", "second")
	if err := s.EmptyTrash(func(r *Trash) bool { return r.ID == two.ID }); err != nil {
		t.Fatal(err)
	}
	if list, err := s.Trash(); err != nil || len(list) != 0 {
		t.Errorf("after emptying: %v, %v", list, err)
	}
	// A damaged removal is one whose time is over, and its volumes can be brought back all the same.
	if err := s.Discard("second", one); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.removalDir(one.ID), "removal.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if list, err := s.Trash(); err != nil || len(list) != 1 || !list[0].Expires.IsZero() {
		t.Errorf("damaged: %+v, %v", list, err)
	}
	if _, err := s.Restore(one.ID); err != nil {
		t.Error(err)
	}
	holds(t, s, "second", "second")
}

func TestOptions(t *testing.T) {
	for _, c := range []struct {
		options string // KEY=VALUE separated by blanks
		want    Mount
		bad     string
	}{
		{"", Mount{}, ""},
		{"size=10g", Mount{}, ""},
		{"type=tmpfs device=tmpfs o=size=1m,uid=7", Mount{Type: "tmpfs", Device: "tmpfs", Options: []string{"size=1m", "uid=7"}}, ""},
		{"type=none o=bind device=/srv", Mount{Type: "bind", Device: "/srv", Plain: true}, ""},
		{"type= o=rbind,ro device=/srv", Mount{Type: "bind", Device: "/srv", Options: []string{"ro"}}, ""},
		{"o=bind device=/srv", Mount{Type: "bind", Device: "/srv", Plain: true}, ""},
		{"type=bind device=/srv", Mount{Type: "bind", Device: "/srv"}, ""},
		{"type=nfs device=:/x o=addr=127.0.0.1,rw", Mount{Type: "nfs", Device: ":/x", Options: []string{"addr=127.0.0.1", "rw"}}, ""},
		{"type=tmpfs", Mount{}, `missing required option: "device"`},
		{"o=addr=1", Mount{}, `missing required option: "device"`},
		{"device=/srv", Mount{}, `missing required option: "type"`},
		{"type=none o=bind device=srv", Mount{}, "must be absolute"},
		{"type=ext4 o=bind device=/srv", Mount{}, "no file system type"},
		{"type=proc device=proc", Mount{}, "no place for data"},
		{"nope=1", Mount{}, `invalid option: "nope"`},
		{"size=0", Mount{}, "not a size"},
		{"size=-1", Mount{}, "not a size"},
		{"size=9999999999t", Mount{}, "not a size"},
		{"size=", Mount{}, "not a size"},
		{"size=1m type=tmpfs device=tmpfs", Mount{}, "o=size=1m"},
		{"type=tmpfs device=" + strings.Repeat("x", 5000), Mount{}, "longer"},
	} {
		options := map[string]string{}
		for f := range strings.FieldsSeq(c.options) {
			k, v, _ := strings.Cut(f, "=")
			options[k] = v
		}
		err := CheckOptions(options)
		if c.bad != "" {
			if !errdefs.Is(err, errdefs.InvalidArgument) || !strings.Contains(err.Error()+errdefs.FixOf(err), c.bad) {
				t.Errorf("%s: got %v, want %q", c.options, err, c.bad)
			}
			continue
		}
		got, merr := MountOf(options)
		if err != nil || merr != nil || got.Type != c.want.Type || got.Device != c.want.Device || got.Plain != c.want.Plain ||
			strings.Join(got.Options, ",") != strings.Join(c.want.Options, ",") {
			t.Errorf("%s: got %+v, %v, want %+v", c.options, got, err, c.want)
		}
	}
	for s, want := range map[string]int64{"1": 1, "1b": 1, "2k": 2048, "3KiB": 3072, "4mb": 4 << 20, "1g": 1 << 30, "1t": 1 << 40} {
		if got, err := SizeOf(map[string]string{"size": s}); err != nil || got != want {
			t.Errorf("size %s: got %d, %v, want %d", s, got, err, want)
		}
	}
}

func TestCreate(t *testing.T) {
	s := newStore(t)
	l, o := map[string]string{"a": "b"}, map[string]string{"type": "tmpfs", "device": "tmpfs"}
	v, err := s.Create("data", "local", l, o)
	if err != nil || v.Anonymous || !v.Fresh {
		t.Fatal(v, err)
	}
	for _, c := range []struct {
		name, driver    string
		labels, options map[string]string
		kind            errdefs.Kind
	}{
		{"data", "", nil, nil, errdefs.Unknown},
		{"data", "", l, o, errdefs.Unknown},
		{"data", "", map[string]string{"a": "c"}, nil, errdefs.AlreadyExists},
		{"data", "", nil, map[string]string{"type": "tmpfs", "device": "x"}, errdefs.AlreadyExists},
		{"data", "nfs", nil, nil, errdefs.InvalidArgument},
		{"other", "", nil, map[string]string{"x": "y"}, errdefs.InvalidArgument},
		{"x", "", nil, nil, errdefs.InvalidArgument},
	} {
		_, err := s.Create(c.name, c.driver, c.labels, c.options)
		if errdefs.KindOf(err) != c.kind && (err != nil || c.kind != errdefs.Unknown) {
			t.Errorf("%+v: got %v, want %v", c, err, c.kind)
		}
	}
	if got, err := s.Get("data"); err != nil || got.Labels["a"] != "b" || got.Options["type"] != "tmpfs" {
		t.Errorf("got %+v, %v", got, err)
	}
	if v, err := s.Create("", "", nil, nil); err != nil || !v.Anonymous || len(v.Name) != anonymousID {
		t.Errorf("anonymous: %+v, %v", v, err)
	}
}
