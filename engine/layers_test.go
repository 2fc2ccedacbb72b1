package engine

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/onggi/onggi/archive"
)

// loadLayers loads an image of layers, each a list of "path=content" and "path/" entries, as docker save would write it.
func loadLayers(t *testing.T, e *Engine, ref string, env []string, layers ...[]string) {
	t.Helper()
	pack := func(entries map[string][]byte, order []string) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, n := range order {
			h := &tar.Header{Name: n, Size: int64(len(entries[n])), Mode: 0o644}
			if strings.HasSuffix(n, "/") {
				h.Typeflag, h.Mode = tar.TypeDir, 0o755
			}
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(entries[n]); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	files, order := map[string][]byte{}, []string{}
	var names, diffIDs []string
	history := []map[string]any{}
	for i, l := range layers {
		entries, names2 := map[string][]byte{}, []string{}
		for _, s := range l {
			n, body, _ := strings.Cut(s, "=")
			entries[n], names2 = []byte(body), append(names2, n)
		}
		b := pack(entries, names2)
		sum := sha256.Sum256(b)
		name := hex.EncodeToString(sum[:]) + ".tar"
		if files[name] == nil {
			files[name], order = b, append(order, name)
		}
		names, diffIDs = append(names, name), append(diffIDs, "sha256:"+hex.EncodeToString(sum[:]))
		history = append(history, map[string]any{"created_by": fmt.Sprintf("RUN step %d", i+1)})
	}
	history = append(history, map[string]any{"created_by": `CMD ["x"]`, "empty_layer": true})
	config, err := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux", "config": map[string]any{"Env": env, "Cmd": []string{"x"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs}, "history": history,
	})
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": []string{ref}, "Layers": names}})
	if err != nil {
		t.Fatal(err)
	}
	files["config.json"], files["manifest.json"] = config, manifest
	images, err := e.Images()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := images.Load(context.Background(), bytes.NewReader(pack(files, append(order, "config.json", "manifest.json"))), nil); err != nil {
		t.Fatal(err)
	}
}

func TestViewsOfImages(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	ctx := context.Background()
	e, err := Open(Options{Root: filepath.Join(t.TempDir(), "root"), RunRoot: filepath.Join(t.TempDir(), "run")})
	if err != nil {
		t.Fatal(err)
	}
	base := []string{"etc/", "etc/passwd=root", "big=" + strings.Repeat("b", 5000), "gone=" + strings.Repeat("g", 3000)}
	loadLayers(t, e, "base:1", nil, base)
	loadLayers(t, e, "app:1", []string{"DB_PASSWORD=kimchi", "PATH=/bin", "TOKEN_FILE=/x"}, base, []string{"etc/", "etc/app=1", ".wh.gone"}, []string{"big=" + strings.Repeat("B", 6000)})
	loadLayers(t, e, "app:2", nil, base, []string{"etc/", "etc/app=2", ".wh.gone", "new=n"})
	c := Config{Name: "box", Image: "app:1"}
	c.Args = []string{"/x"}
	box, err := e.Create(ctx, c, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(e.snapshotsDir(), "containers", box.ID, "upper", "mine"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}

	st, err := e.Layers(ctx, "app:1")
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for _, w := range st.Writable {
		fmt.Fprintln(&got, w.Name, w.Status, w.Changes, w.Disk > 0)
	}
	for _, l := range st.Layers {
		fmt.Fprintln(&got, l.CreatedBy, l.DiffID != "", l.Size, l.Entries, l.Disk > 0, l.Shared)
	}
	want := `box created 1 true
CMD ["x"] false 0 0 false []
RUN step 3 true 6000 1 true []
RUN step 2 true 1 3 true []
RUN step 1 true 8004 4 true [app:2 base:1]
`
	if g := strings.ReplaceAll(got.String(), "[base:1 app:2]", "[app:2 base:1]"); g != want {
		t.Errorf("the stack:\n%swant:\n%s", g, want)
	}

	diff := func(a, b string) string {
		t.Helper()
		var out strings.Builder
		if err := e.ImageChanges(ctx, a, b, func(c archive.Change) error { fmt.Fprintf(&out, "%c %s\n", c.Kind, c.Path); return nil }); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	for _, x := range []struct{ a, b, want string }{
		{"base:1", "base:1", ""},
		{"base:1", "app:1", "C /big\nC /etc\nA /etc/app\nD /gone\n"},
		{"app:1", "base:1", "C /big\nC /etc\nD /etc/app\nA /gone\n"},
		{"app:1", "app:2", "C /big\nC /etc\nC /etc/app\nA /new\n"}, // /etc/app has the same size and time, and another content
	} {
		if got := diff(x.a, x.b); got != x.want {
			t.Errorf("%s -> %s:\n%swant:\n%s", x.a, x.b, got, x.want)
		}
	}

	tree, err := e.ImageTree(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if len(tree.Branches) != 1 || strings.Join(tree.Branches[0].Images, " ") != "base:1" || len(tree.Branches[0].Branches) != 2 ||
		tree.Branches[0].Branches[0].Images[0] != "app:1" || len(tree.Branches[0].Branches[0].Layers) != 2 {
		t.Errorf("the tree: %+v", tree.Branches)
	}

	w, err := e.Waste(ctx, "app:1")
	if err != nil {
		t.Fatal(err)
	}
	if w.Wasted != 8000 || len(w.Waste) != 2 || w.Waste[0].Path != "/big" || w.Waste[1].Kind != "deleted" || strings.Join(w.Secrets, " ") != "ENV DB_PASSWORD" {
		t.Errorf("waste: %+v", w)
	}
}
