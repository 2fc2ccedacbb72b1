package image

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/onggi/onggi/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// TestCheck breaks a store in each way that a disk can, and repairs it.
func TestCheck(t *testing.T) {
	f := newFake(t)
	i := imageOf("amd64", layerOf(ocispec.MediaTypeImageLayerGzip, file{"base", strings.Repeat("base", 5000)}, file{"d/x", "x"}),
		layerOf(ocispec.MediaTypeImageLayerZstd, file{"top", "top"}))
	f.add("v1", i)
	blob := func(s *Store, d digest.Digest) string {
		p, err := s.content.Path(d)
		must(t, err)
		return p
	}
	tree := func(s *Store, n int, name string) string {
		d := i.layers[n].diffID
		return filepath.Join(s.rootDir(), "snapshots/layers/sha256", d.Encoded(), name)
	}
	flip := func(path string) {
		b, err := os.ReadFile(path)
		must(t, err)
		st, err := os.Stat(path)
		must(t, err)
		b[len(b)/2] ^= 1
		must(t, os.Remove(path))
		must(t, os.WriteFile(path, b, 0o644))
		must(t, os.Chtimes(path, st.ModTime(), st.ModTime()))
	}
	for _, c := range []struct {
		name   string
		damage func(s *Store)
		want   string // "what why-part", one for each problem
	}{
		{"nothing", func(*Store) {}, ""},
		{"a byte of a blob", func(s *Store) { flip(blob(s, i.layers[0].desc.Digest)) }, "blob content is that of"},
		{"the configuration is gone", func(s *Store) { must(t, os.Remove(blob(s, i.id))) }, "blob it is not there"},
		{"the manifest is cut", func(s *Store) { must(t, os.Truncate(blob(s, i.desc.Digest), 10)) }, "blob it has 10 bytes"},
		{"a byte of a file", func(s *Store) { flip(tree(s, 0, "fs/base")) }, "layer /base has another content"},
		{"a file is gone", func(s *Store) { must(t, os.Remove(tree(s, 0, "fs/d/x"))) }, "layer /d/x is missing"},
		{"a file too many", func(s *Store) { must(t, os.WriteFile(tree(s, 1, "fs/virus"), nil, 0o755)) }, "layer /virus does not belong there"},
		{"another mode", func(s *Store) { must(t, os.Chmod(tree(s, 1, "fs/top"), 0o4755)) }, "layer /top has mode"},
		{"another owner", func(s *Store) { must(t, os.Chown(tree(s, 0, "fs/d"), 1, 1)) }, "layer /d belongs to"},
		{"an attribute", func(s *Store) {
			must(t, unix.Setxattr(tree(s, 0, "fs/d"), "trusted.overlay.opaque", []byte("y"), 0))
		}, "layer attributes are others"},
		{"a record", func(s *Store) { must(t, os.WriteFile(tree(s, 0, "layer.json"), []byte("{"), 0o600)) }, "layer its record is damaged"},
		{"a tree", func(s *Store) { must(t, os.RemoveAll(tree(s, 0, "fs"))) }, "layer it has no tree"},
		{"a layer", func(s *Store) { must(t, os.RemoveAll(tree(s, 0, ""))) }, "layer it is not unpacked"},
		{"a layer and its blob", func(s *Store) {
			must(t, os.RemoveAll(tree(s, 0, "")))
			must(t, os.Remove(blob(s, i.layers[0].desc.Digest)))
		}, "layer it is not unpacked"},
		{"an orphan", func(s *Store) {
			_, err := s.content.Put(bg, "", []byte("nobody's"))
			must(t, err)
		}, "orphan a blob that no image needs"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := root(t)
			ref := f.ref(t, "v1")
			_, err := pull(t, s, ref)
			must(t, err)
			before := left(t, s)
			c.damage(s)
			client := registry.New(registry.Options{})
			defer client.Close()
			said := func(repair bool) string {
				t.Helper()
				r, err := s.Check(bg, CheckOptions{Repair: repair, Registry: client})
				must(t, err)
				var out []string
				for _, p := range r.Problems {
					if p.Repaired != repair || !repair && p.Fix == "" {
						t.Errorf("repair %v: %+v", repair, p)
					}
					out = append(out, p.What+" "+p.Why)
				}
				return strings.Join(out, "\n")
			}
			for _, repair := range []bool{false, true} {
				got := said(repair)
				what, why, _ := strings.Cut(c.want, " ")
				first, _, _ := strings.Cut(got, "\n")
				if !strings.HasPrefix(first, what) || !strings.Contains(first, why) || c.want == "" && got != "" {
					t.Errorf("repair %v: got %q, want %q", repair, got, c.want)
				}
			}
			if got := said(false); got != "" {
				t.Errorf("after the repair: %s", got)
			}
			img, err := s.Get(ref.String())
			if err != nil || read(t, s, img, "top") != "top" || !strings.HasPrefix(read(t, s, img, "base"), "basebase") {
				t.Errorf("the image after the repair: %v", err)
			}
			if got := left(t, s); !slices.Equal(got, before) {
				t.Errorf("left %q, was %q", got, before)
			}
		})
	}
}

// TestCheckWithoutARegistry: what cannot be fetched again is told, and nothing that may belong to it is removed.
func TestCheckWithoutARegistry(t *testing.T) {
	s, one, _ := two(t)
	p, err := s.content.Path(one.desc.Digest)
	must(t, err)
	must(t, os.Truncate(p, 3))
	r, err := s.Check(bg, CheckOptions{Repair: true})
	must(t, err)
	if len(r.Problems) == 0 || r.Problems[0].What != "blob" || r.Problems[0].Repaired || r.Problems[0].Fix == "" {
		t.Errorf("%+v", r.Problems)
	}
	for _, l := range one.layers {
		if _, err := s.snapshots.Layer(l.diffID); err != nil {
			t.Errorf("a layer of the image with the broken manifest: %v", err)
		}
	}
}
