package image

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func save(t testing.TB, s *Store, o SaveOptions, names ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	must(t, s.Save(bg, &b, names, o))
	return b.Bytes()
}

func TestSaveAndLoadOfAllKinds(t *testing.T) {
	s := root(t)
	zstd := twoLayers("amd64")
	gz := imageOf("amd64", layerOf(ocispec.MediaTypeImageLayerGzip, file{"a", "1"}), layerOf(ocispec.MediaTypeImageLayer, file{"b", strings.Repeat("2", 100_000)}))
	must(t, load(t, s, ociArchive(zstd.documents, called(zstd.desc, "zst:1"))))
	must(t, load(t, s, ociArchive(gz.documents, called(gz.desc, "gz:1"))))
	must(t, s.Tag("gz:1", parseRef(t, "gz:2")))
	for name, o := range map[string]SaveOptions{
		"docker":      {},
		"docker.gz":   {Compression: Compression{Name: "gzip"}},
		"oci":         {Format: OCIArchive},
		"oci.zst":     {Format: OCIArchive, Compression: Compression{Name: "zstd", Level: 9}},
		"docker host": {Platform: &ocispec.Platform{OS: "linux", Architecture: "amd64"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := save(t, s, o, "gz", "zst:1")
			if again := save(t, s, o, "gz", "zst:1"); !bytes.Equal(b, again) {
				t.Error("the same images make another archive")
			}
			other := root(t)
			must(t, load(t, other, b))
			for n, want := range map[string]*testImage{"gz:1": gz, "gz:2": gz, "zst:1": zstd} {
				img, err := other.Get(n)
				if err != nil || img.ID != want.id {
					t.Errorf("%s: %v, %v", n, img, err)
				}
				if o.Format == OCIArchive && img != nil && img.Target.Digest != want.desc.Digest {
					t.Errorf("%s: the manifest is %s, want %s", n, img.Target.Digest, want.desc.Digest)
				}
			}
			// Others read it.
			if strings.Contains(name, "zst") {
				return // Debian's tools decompress gzip only
			}
			dir := t.TempDir()
			must(t, os.WriteFile(dir+"/x.tar", b, 0o600))
			if o.Compression.Name == "gzip" {
				tool(t, "sh", "-c", "gzip -t < "+dir+"/x.tar && tar -tzf "+dir+"/x.tar")
				return // skopeo 1.9 reads no compressed docker-archive, GNU gzip's neither
			}
			kind := "docker-archive:"
			if o.Format == OCIArchive {
				kind = "oci-archive:"
			}
			for n, want := range map[string]*testImage{"docker.io/library/gz:2": gz, "docker.io/library/zst:1": zstd} {
				tool(t, "skopeo", "copy", "-q", "--insecure-policy", kind+dir+"/x.tar:"+n, "dir:"+dir+"/"+strings.ReplaceAll(n, "/", "_"))
				b, err := os.ReadFile(filepath.Join(dir, strings.ReplaceAll(n, "/", "_"), want.id.Encoded()))
				if err != nil || !bytes.Equal(b, want.config) {
					t.Errorf("skopeo's configuration of %s: %d bytes, %v", n, len(b), err)
				}
			}
			if name == "docker" {
				short, err := os.MkdirTemp("/var/tmp", "p.") // podman wants a short path
				must(t, err)
				t.Cleanup(func() { _ = os.RemoveAll(short) })
				out := tool(t, "podman", "--root", short+"/r", "--runroot", short+"/rr", "--tmpdir", short+"/t", "--storage-driver", "vfs", "--events-backend", "file", "load", "-i", dir+"/x.tar")
				if !strings.Contains(out, "gz:2") || !strings.Contains(out, "zst:1") {
					t.Errorf("podman loads %s", out)
				}
			}
		})
	}
	// By id: no name. What is not here is said.
	b := save(t, s, SaveOptions{}, string(gz.id))
	other := root(t)
	got, err := other.Load(bg, bytes.NewReader(b), nil)
	if err != nil || len(got) != 1 || len(got[0].Names) != 0 || got[0].ID != gz.id {
		t.Errorf("by id: %v, %v", got, err)
	}
	var sink bytes.Buffer
	for name, c := range map[string]struct {
		names []string
		o     SaveOptions
		kind  errdefs.Kind
	}{
		"no such image":  {[]string{"nosuch"}, SaveOptions{}, errdefs.NotFound},
		"other platform": {[]string{"gz:1"}, SaveOptions{Platform: &ocispec.Platform{OS: "linux", Architecture: "s390x"}}, errdefs.NotFound},
		"format":         {[]string{"gz:1"}, SaveOptions{Format: "zip"}, errdefs.InvalidArgument},
		"compression":    {[]string{"gz:1"}, SaveOptions{Compression: Compression{Name: "xz"}}, errdefs.InvalidArgument},
	} {
		if err := s.Save(bg, &sink, c.names, c.o); !errdefs.Is(err, c.kind) {
			t.Errorf("%s: %v, want %v", name, err, c.kind)
		}
	}
	must(t, s.content.Delete(gz.layers[0].desc.Digest))
	if err := s.Save(bg, &sink, []string{"gz:1"}, SaveOptions{}); !errdefs.Is(err, errdefs.NotFound) || !strings.Contains(err.Error(), short(gz.layers[0].desc.Digest)) {
		t.Errorf("a missing blob: %v", err)
	}
}

func TestSaveAndLoadOfSeveralPlatforms(t *testing.T) {
	s := root(t)
	amd, arm := twoLayers("amd64"), twoLayers("arm64")
	idx, idxDesc := indexOf(amd, arm)
	docs := map[digest.Digest][]byte{idxDesc.Digest: idx}
	for _, i := range []*testImage{amd, arm} {
		for d, b := range i.documents {
			docs[d] = b
		}
	}
	must(t, load(t, s, ociArchive(docs, called(idxDesc, "app:1"))))
	check := func(s *Store, want ...*testImage) {
		t.Helper()
		for _, i := range want {
			var cfg ocispec.Image
			must(t, json.Unmarshal(i.config, &cfg))
			img, err := s.GetPlatform("app:1", cfg.Platform)
			if err != nil || img.ID != i.id || img.Target.Digest != idxDesc.Digest {
				t.Errorf("%s: %+v, %v", cfg.Architecture, img, err)
			}
		}
	}
	check(s, amd, arm)
	other := root(t)
	must(t, load(t, other, save(t, s, SaveOptions{Format: OCIArchive}, "app:1")))
	check(other, amd, arm)
	// A layout in a directory, to which a second image is added.
	dir := t.TempDir() + "/layout"
	must(t, s.SaveLayout(bg, dir, []string{"app:1"}, SaveOptions{}))
	must(t, s.Tag("app:1", parseRef(t, "app:2")))
	must(t, s.SaveLayout(bg, dir, []string{"app:2"}, SaveOptions{}))
	must(t, s.SaveLayout(bg, dir, []string{"app:2"}, SaveOptions{Platform: &ocispec.Platform{OS: "linux", Architecture: "arm64"}}))
	out := tool(t, "skopeo", "inspect", "--raw", "oci:"+dir+":docker.io/library/app:1")
	if !strings.Contains(out, string(arm.desc.Digest)) {
		t.Errorf("skopeo sees %s", out)
	}
	r, err := LayoutReader(bg, dir)
	must(t, err)
	defer r.Close()
	third := root(t)
	if _, err := third.Load(bg, r, nil); err != nil {
		t.Fatal(err)
	}
	check(third, amd, arm)
	if img, err := third.Get("app:2"); err != nil || img.ID != arm.id {
		t.Errorf("app:2: %v, %v", img, err)
	}
	for _, bad := range []string{t.TempDir(), dir + "/nosuch"} {
		if _, err := LayoutReader(bg, bad); err == nil {
			t.Errorf("%s is no layout, and was taken for one", bad)
		}
	}
	// One of the platforms in the archive only: it is loaded, and listed as that of the index.
	for d := range arm.documents {
		if _, both := amd.documents[d]; !both {
			delete(docs, d)
		}
	}
	fourth := root(t)
	must(t, load(t, fourth, ociArchive(docs, called(idxDesc, "app:1"))))
	check(fourth, amd)
}

func TestCommit(t *testing.T) {
	s := root(t)
	i := twoLayers("amd64")
	must(t, load(t, s, ociArchive(i.documents, called(i.desc, "app:1"))))
	base, err := s.Get("app:1")
	must(t, err)
	cfg := base.Config.Config
	cfg.Cmd = []string{"/bin/new"}
	img, err := s.Commit(bg, base, bytes.NewReader(tarOf(file{"new", "file"})), CommitOptions{Ref: parseRef(t, "app:2"), Author: "me", Message: "why", CreatedBy: "/bin/true", Config: cfg})
	must(t, err)
	if len(img.DiffIDs) != 3 || img.DiffIDs[0] != i.layers[0].diffID || img.Config.Config.Cmd[0] != "/bin/new" || img.Config.Author != "me" {
		t.Errorf("got %+v", img)
	}
	if read(t, s, img, "new") != "file" {
		t.Error("the layer is not there")
	}
	steps, err := s.History(img)
	if err != nil || steps[len(steps)-1].Comment == "" && len(steps) != 3 {
		t.Errorf("history: %+v, %v", steps, err)
	}
	// It can be pushed and saved.
	addr := realRegistry(t, "")
	if _, _, err := push(t, s, "app:2", addr+"/me/app:2"); err != nil {
		t.Error(err)
	}
	got, err := pull(t, root(t), parseRef(t, addr+"/me/app:2"))
	if err != nil || got.ID != img.ID {
		t.Errorf("pulled %v, %v", got, err)
	}
	// A layer that is no tar leaves nothing.
	before := left(t, s)
	if _, err := s.Commit(bg, base, strings.NewReader("no tar at all, and long enough to be sure of it"), CommitOptions{}); err == nil {
		t.Error("what is no tar was committed")
	}
	if after := left(t, s); strings.Join(before, "\n") != strings.Join(after, "\n") {
		t.Errorf("left: %q, before %q", after, before)
	}
}

func TestManifestLists(t *testing.T) {
	s := root(t)
	addr := realRegistry(t, "")
	c := anonymous(patient)
	defer c.Close()
	amd, arm := twoLayers("amd64"), twoLayers("arm64")
	must(t, load(t, s, ociArchive(amd.documents, called(amd.desc, "amd:1"))))
	must(t, load(t, s, ociArchive(arm.documents, called(arm.desc, "arm:1"))))
	for from, to := range map[string]string{"amd:1": "/me/app:1-amd64", "arm:1": "/other/app:1-arm64"} {
		if _, _, err := push(t, s, from, addr+to); err != nil {
			t.Fatal(err)
		}
	}
	name := parseRef(t, addr+"/me/app:1")
	members := parseRef(t, addr+"/me/app:1-amd64")
	must(t, s.CreateList(bg, c, name, append([]reference.Reference{members}, parseRef(t, addr+"/other/app:1-arm64")), false))
	if err := s.CreateList(bg, c, name, []reference.Reference{members}, false); !errdefs.Is(err, errdefs.AlreadyExists) {
		t.Errorf("again: %v", err)
	}
	must(t, s.CreateList(bg, c, name, []reference.Reference{members}, true))
	must(t, s.AnnotateList(bg, name, addr+"/other/app:1-arm64", Annotation{Variant: "v8", Annotations: map[string]string{"a": "b"}}))
	if err := s.AnnotateList(bg, name, "nosuch", Annotation{}); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("annotating what is not in it: %v", err)
	}
	desc, err := s.PushList(bg, c, name)
	must(t, err)
	out := tool(t, "skopeo", "inspect", "--raw", "--tls-verify=false", "docker://"+name.String())
	if digest.FromString(out) != desc.Digest || !strings.Contains(out, `"variant": "v8"`) || strings.Count(out, `"architecture"`) != 2 {
		t.Errorf("%s: %s", desc.Digest, out)
	}
	for arch, want := range map[string]*testImage{"amd64": amd, "arm64": arm} {
		img, err := pull(t, root(t), name, func(o *PullOptions) { o.Platform = &ocispec.Platform{OS: "linux", Architecture: arch} })
		if err != nil || img.ID != want.id {
			t.Errorf("%s: %v, %v", arch, img, err)
		}
	}
	must(t, s.RemoveList(name))
	if err := s.RemoveList(name); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("removed twice: %v", err)
	}
	if _, err := s.PushList(bg, c, name); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("pushed what is gone: %v", err)
	}
}
