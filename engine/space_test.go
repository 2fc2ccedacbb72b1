package engine

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/onggi/onggi/build/cache"
	"github.com/onggi/onggi/image"
	"github.com/onggi/onggi/reference"
)

// du is what du(1) says of a directory, in bytes on disk.
func du(t *testing.T, dir string) int64 {
	t.Helper()
	out, err := exec.Command("du", "-sx", "--block-size=1", dir).Output()
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseInt(strings.Fields(string(out))[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// importImage makes an image of one layer with the files "name" of n bytes.
func importImage(t *testing.T, e *Engine, ref, name string, n int) {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(n), Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(bytes.Repeat([]byte(name[:1]), n)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := e.Images()
	if err != nil {
		t.Fatal(err)
	}
	r, err := reference.Parse(ref)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Import(context.Background(), &b, image.ImportOptions{Ref: r}); err != nil {
		t.Fatal(err)
	}
}

// TestUsageIsWhatDuSays compares the ledger with du(1) in every state that a store can be in.
func TestUsageIsWhatDuSays(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	ctx := context.Background()
	root := filepath.Join(t.TempDir(), "root")
	e, err := Open(Options{Root: root, RunRoot: filepath.Join(t.TempDir(), "run")})
	if err != nil {
		t.Fatal(err)
	}
	check := func(when string) *Usage {
		t.Helper()
		u, err := e.Usage(ctx)
		if err != nil {
			t.Fatal(when, err)
		}
		want := int64(0)
		if exists(root) {
			want = du(t, root)
		}
		if u.Total != want {
			t.Errorf("%s: the ledger has %d bytes, du %d", when, u.Total, want)
		}
		sum := u.ImageBytes + u.TrashBytes + u.Store + u.Unowned + u.Partial + u.Build
		for _, c := range u.Containers {
			sum += c.Size()
		}
		for _, v := range u.Volumes {
			sum += v.Size
		}
		if sum != u.Total {
			t.Errorf("%s: the parts are %d bytes, the whole %d", when, sum, u.Total)
		}
		return u
	}
	check("nothing")
	importImage(t, e, "one:1", "a", 100_000)
	if u := check("an image"); u.Unowned != 0 || len(u.Unknown) != 0 || u.ImageBytes < 200_000 {
		t.Errorf("%+v", u)
	}
	importImage(t, e, "two:1", "b", 1_000_000)
	v, err := e.Volumes()
	if err != nil {
		t.Fatal(err)
	}
	vol, err := v.Ensure("data", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"one", "two"} {
		if err := os.WriteFile(filepath.Join(vol.Path, n), make([]byte, 50_000), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(filepath.Join(vol.Path, "one"), filepath.Join(vol.Path, "again")); err != nil {
		t.Fatal(err)
	}
	if u := check("a volume with a hard link"); len(u.Volumes) != 1 || u.Volumes[0].Size < 100_000 || u.Volumes[0].Size > 130_000 {
		t.Errorf("%+v", u.Volumes)
	}
	c := Config{Name: "box", Image: "two:1"}
	c.Args = []string{"/b"}
	box, err := e.Create(ctx, c, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(e.snapshotsDir(), "containers", box.ID, "upper", "new"), make([]byte, 300_000), 0o600); err != nil {
		t.Fatal(err)
	}
	if u := check("a container"); len(u.Containers) != 1 || u.Containers[0].Layer < 300_000 {
		t.Errorf("%+v", u.Containers)
	}
	to, err := e.NewRemoval("test")
	if err != nil {
		t.Fatal(err)
	}
	if _, why, err := e.DiscardImages(ctx, []string{"one:1"}, false, to); err != nil || len(why) > 0 {
		t.Fatal(err)
	}
	if u := check("an image in the trash"); u.TrashBytes < 200_000 || len(u.Removals) != 1 || u.Removals[0].Size < 200_000 {
		t.Errorf("%+v", u.Removals)
	}
	if err := e.DiscardContainer(ctx, "box", to); err != nil {
		t.Fatal(err)
	}
	if u := check("a container in the trash"); u.TrashBytes < 500_000 || len(u.Containers) != 0 {
		t.Errorf("%+v", u.Removals)
	}
	if err := e.Sweep(ctx); err != nil { // keeps it
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "stray"), make([]byte, 20_000), 0o600); err != nil {
		t.Fatal(err)
	}
	if u := check("a file of somebody else's"); u.Unowned < 20_000 || len(u.Unknown) != 1 || u.Unknown[0] != "stray" {
		t.Errorf("%d %v", u.Unowned, u.Unknown)
	}
	// A step of a build keeps a layer that no image has.
	images, err := e.Images()
	if err != nil {
		t.Fatal(err)
	}
	hold, err := images.Hold(ctx)
	if err != nil {
		t.Fatal(err)
	}
	blob, layer, err := images.AddLayer(ctx, hold, func(w io.Writer) error {
		tw := tar.NewWriter(w)
		if err := tw.WriteHeader(&tar.Header{Name: "built", Size: 5, Mode: 0o644}); err != nil {
			return err
		}
		if _, err := tw.Write([]byte("built")); err != nil {
			return err
		}
		return tw.Close()
	})
	if err != nil {
		t.Fatal(err)
	}
	steps, err := e.BuildCache()
	if err != nil {
		t.Fatal(err)
	}
	if err := steps.Put(&cache.Record{Key: cache.Key(nil), Outputs: [][]cache.Layer{{{DiffID: layer.DiffID, Blob: blob, Size: 5}}}}); err != nil {
		t.Fatal(err)
	}
	if err := hold.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if u := check("a built layer"); u.Steps != 1 || u.Build < 8192 {
		t.Errorf("%d steps, %d bytes", u.Steps, u.Build)
	}
	r, err := e.Check(ctx, image.CheckOptions{Repair: true})
	if err != nil || len(r.Problems) != 0 {
		t.Errorf("a check: %+v, %v", r, err)
	}
	// A transfer that was broken off belongs to itself, until it is resumed or pruned.
	half := filepath.Join(root, "images", "ingest", "sha256-"+strings.Repeat("a", 64))
	for _, suffix := range []string{".part", ".map"} {
		if err := os.WriteFile(half+suffix, make([]byte, 30_000), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if u := check("a broken transfer"); u.Partials != 1 || u.Partial < 60_000 {
		t.Errorf("%d %d", u.Partials, u.Partial)
	}
	plan, err := e.PlanPrune(ctx, PruneOptions{Unowned: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Prune(ctx, plan, to); err != nil {
		t.Fatal(err)
	}
	if u := check("without it"); u.Partials != 0 || u.Partial != 0 {
		t.Errorf("%d %d", u.Partials, u.Partial)
	}
	if _, err := e.Undo(ctx, ""); err != nil {
		t.Fatal(err)
	}
	if u := check("brought back"); len(u.Containers) != 1 || u.Containers[0].Layer < 300_000 || len(u.Images) != 2 || u.TrashBytes != 0 && len(u.Removals) != 0 {
		t.Errorf("%+v", u)
	}
	// Time goes by.
	to.ID, to.Expires = image.NewTrashID(), time.Now().Add(-time.Second)
	if err := e.DiscardContainer(ctx, "box", to); err != nil {
		t.Fatal(err)
	}
	if err := e.SweepTrash(ctx); err != nil {
		t.Fatal(err)
	}
	if u := check("after its time"); len(u.Removals) != 0 || exists(filepath.Join(e.snapshotsDir(), "containers", box.ID)) {
		t.Errorf("%+v", u.Removals)
	}
}
