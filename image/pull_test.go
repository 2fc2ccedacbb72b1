package image

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/reference"
	"github.com/onggi/onggi/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// read returns a file of an image's top-most layer that has it.
func read(t testing.TB, s *Store, img *Image, name string) string {
	t.Helper()
	for i := len(img.DiffIDs) - 1; i >= 0; i-- {
		d := img.DiffIDs[i]
		b, err := os.ReadFile(filepath.Join(s.rootDir(), "snapshots/layers", d.Algorithm().String(), d.Encoded(), "fs", name))
		if err == nil {
			return string(b)
		}
	}
	return ""
}

func TestPull(t *testing.T) {
	s, f := root(t), newFake(t)
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	amd, arm := twoLayers("amd64"), twoLayers("arm64")
	f.add("amd", amd)
	f.add("arm", arm)
	idx, idxDesc := indexOf(arm, amd)
	f.put("v1", ocispec.MediaTypeImageIndex, idx)

	var mu sync.Mutex
	var said []string
	img, err := pull(t, s, f.ref(t, "v1"), func(o *PullOptions) {
		o.Progress = func(p Progress) { mu.Lock(); said = append(said, strings.TrimSpace(p.ID+" "+p.Status)); mu.Unlock() }
	})
	must(t, err)
	if img.ID != amd.id || img.Target.Digest != idxDesc.Digest || img.Manifest.Digest != amd.desc.Digest || len(img.Names) != 1 ||
		img.Names[0] != f.ref(t, "v1") || img.Config.Config.Cmd[0] != "/bin/true" || len(img.DiffIDs) != 2 || img.Created.Unix() != 1.6e9 {
		t.Errorf("got %+v", img)
	}
	if got := read(t, s, img, "etc/hostname"); got != "other" {
		t.Errorf("etc/hostname = %q", got)
	}
	want := int64(len("jar of amd64") + 20_000*len("amd64 kimchi ") + len("#!/bin/sh\n") + len("other"))
	if img.Size != want {
		t.Errorf("size %d, want %d", img.Size, want)
	}
	for _, want := range []string{short(amd.layers[0].desc.Digest) + " Pull complete", short(amd.layers[1].desc.Digest) + " Pulling fs layer"} {
		if !strings.Contains(strings.Join(said, "\n"), want) {
			t.Errorf("progress lacks %q: %q", want, said)
		}
	}
	// Again: one HEAD, nothing else.
	before := len(f.seen)
	if img, err = pull(t, s, f.ref(t, "v1")); err != nil || img.ID != amd.id {
		t.Fatalf("again: %v, %v", img, err)
	}
	if n := f.count("GET", amd.layers[0].desc.Digest); n != 1 || len(f.seen) != before {
		t.Errorf("an unchanged image was fetched again: %v", f.seen)
	}
	// By digest, and another platform of the same index.
	byDigest := f.ref(t, "v1")
	byDigest.Digest = idxDesc.Digest
	img, err = pull(t, s, byDigest, func(o *PullOptions) { o.Platform = &ocispec.Platform{OS: "linux", Architecture: "arm64"} })
	must(t, err)
	if img.ID != arm.id || len(img.Names) != 1 || img.Names[0].Tag != "" || img.Names[0].Digest != idxDesc.Digest {
		t.Errorf("by digest: %+v", img)
	}
	// A layer that is here is not fetched, even when its blob is not.
	must(t, s.content.Delete(amd.layers[0].desc.Digest))
	img, err = pull(t, s, f.ref(t, "amd"))
	must(t, err)
	if n := f.count("GET", amd.layers[0].desc.Digest); n != 1 || img.ID != amd.id || len(img.Names) != 2 {
		t.Errorf("fetched %d times, names %v", n, img.Names)
	}
	list, err := s.List()
	if err != nil || len(list) != 2 {
		t.Errorf("list: %v, %v; want two images", list, err)
	}
	// The layout is a layout for others.
	if _, err := exec.LookPath("skopeo"); err == nil {
		out := tool(t, "skopeo", "inspect", "oci:"+s.content.Dir()+":"+f.ref(t, "amd").String())
		if !strings.Contains(out, string(amd.layers[0].desc.Digest)) {
			t.Errorf("skopeo sees %s", out)
		}
	}
}

func TestPullAgainstARealRegistry(t *testing.T) {
	addr := realRegistry(t, "")
	for _, format := range []string{"oci", "v2s2"} {
		t.Run(format, func(t *testing.T) {
			s := root(t)
			i := twoLayers("amd64")
			dir := t.TempDir()
			must(t, os.WriteFile(filepath.Join(dir, "in.tar"), ociArchive(i.documents, i.desc), 0o600))
			name := addr + "/me/" + format + ":1"
			if format == "v2s2" { // docker's format knows no zstd
				i = imageOf("amd64", layerOf(ocispec.MediaTypeImageLayerGzip, file{"a", "1"}), layerOf(ocispec.MediaTypeImageLayerGzip, file{"etc/hostname", "other"}))
				must(t, os.WriteFile(filepath.Join(dir, "in.tar"), ociArchive(i.documents, i.desc), 0o600))
			}
			tool(t, "skopeo", "copy", "-q", "--insecure-policy", "--format", format, "--dest-tls-verify=false", "oci-archive:"+dir+"/in.tar", "docker://"+name)
			ref, err := reference.Parse(name)
			must(t, err)
			img, err := pull(t, s, ref)
			must(t, err)
			if got := read(t, s, img, "etc/hostname"); got != "other" || img.Config.Architecture != "amd64" {
				t.Errorf("got %q of %+v", got, img)
			}
			if format == "oci" { // skopeo reads only OCI's own manifests out of a layout
				out := tool(t, "skopeo", "inspect", "oci:"+s.content.Dir()+":"+ref.String())
				if !strings.Contains(out, string(i.layers[0].desc.Digest)) {
					t.Errorf("skopeo sees %s", out)
				}
				tool(t, "skopeo", "copy", "-q", "--insecure-policy", "oci:"+s.content.Dir()+":"+ref.String(), "oci-archive:"+dir+"/out.tar:"+ref.Familiar())
			} else {
				tool(t, "skopeo", "copy", "-q", "--insecure-policy", "--src-tls-verify=false", "docker://"+name, "docker-archive:"+dir+"/out.tar:"+ref.Familiar())
			}
			r, err := os.Open(dir + "/out.tar")
			must(t, err)
			defer r.Close()
			other := root(t)
			loaded, err := other.Load(bg, r, nil)
			if err != nil || len(loaded) != 1 || loaded[0].DiffIDs[1] != img.DiffIDs[1] || loaded[0].Names[0] != ref {
				t.Errorf("what skopeo made of it: %v, %v", loaded, err)
			}
			missing := ref
			missing.Tag = "nope"
			if _, err := pull(t, s, missing); !errdefs.Is(err, errdefs.NotFound) || !strings.Contains(err.Error(), "nope") {
				t.Errorf("a missing tag: %v", err)
			}
			missing.Path = "me/nothing"
			if _, err := pull(t, s, missing); !errdefs.Is(err, errdefs.NotFound) || errdefs.FixOf(err) == "" {
				t.Errorf("a missing repository: %v", err)
			}
		})
	}
}

func TestPullWithAPassword(t *testing.T) {
	addr := realRegistry(t, "auth: {htpasswd: {realm: jar, path: DIR/htpasswd}}")
	s, dir, i := root(t), t.TempDir(), twoLayers("amd64")
	must(t, os.WriteFile(filepath.Join(dir, "in.tar"), ociArchive(i.documents, i.desc), 0o600))
	ref, err := reference.Parse(addr + "/me/secret:1")
	must(t, err)
	tool(t, "skopeo", "copy", "-q", "--insecure-policy", "--dest-tls-verify=false", "--dest-creds", "jar:kimchi", "oci-archive:"+dir+"/in.tar", "docker://"+ref.String())
	_, err = pull(t, s, ref)
	if !errdefs.Is(err, errdefs.Unauthorized) || !strings.Contains(errdefs.FixOf(err), "onggi login") {
		t.Errorf("without a password: %v (fix %q)", err, errdefs.FixOf(err))
	}
	wantNothing(t, s)
	// In this order: what the right password brings stays.
	for _, x := range []struct {
		auth string
		kind errdefs.Kind
	}{{"amFyOm5v", errdefs.Unauthorized}, {"amFyOmtpbWNoaQ==", 0}} { // jar:no, jar:kimchi
		auth, kind := x.auth, x.kind
		must(t, os.WriteFile(filepath.Join(dir, "config.json"), fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, addr, auth), 0o600))
		c := registry.New(registry.Options{Credentials: registry.DockerCredentials(dir)})
		_, err := s.Pull(bg, ref, PullOptions{Registry: c, Platform: &ocispec.Platform{OS: "linux", Architecture: "amd64"}})
		c.Close()
		if errdefs.KindOf(err) != kind {
			t.Errorf("with %s: %v, want %v", auth, err, kind)
		}
		if err != nil {
			wantNothing(t, s)
		}
	}
}

// TestNoSpace pulls, loads and imports into a file system that is too small.
func TestNoSpace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	f := newFake(t)
	i := imageOf("amd64", layerOf(ocispec.MediaTypeImageLayerGzip, file{"a", "a"}), layerOf(ocispec.MediaTypeImageLayerGzip, file{"big", strings.Repeat("0123456789abcdef", 1<<18)}))
	f.add("v1", i)
	for name, op := range map[string]func(*Store) error{
		"pull": func(s *Store) error { _, err := pull(t, s, f.ref(t, "v1")); return err },
		"load": func(s *Store) error {
			_, err := s.Load(bg, stream(dockerArchive(nil, map[string]*testImage{"a": i})), nil)
			return err
		},
		"import": func(s *Store) error { _, err := s.Import(bg, stream(i.layers[1].blob), ImportOptions{}); return err },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m,mode=700"); err != nil {
				t.Skipf("no tmpfs can be mounted: %v", err)
			}
			t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
			s := openRoot(t, filepath.Join(dir, "root"))
			if err := op(s); !errdefs.Is(err, errdefs.NoSpace) || errdefs.FixOf(err) == "" {
				t.Errorf("got %v (%v, fix %q), want NoSpace", err, errdefs.KindOf(err), errdefs.FixOf(err))
			}
			wantNothing(t, s)
		})
	}
}

// TestBadPulls: whatever a registry sends, the pull says why, ends, and leaves nothing.
func TestBadPulls(t *testing.T) {
	good := twoLayers("amd64")
	gz := good.layers[0]
	lies := func(change func(*ocispec.Image, *ocispec.Manifest)) *testImage {
		var c ocispec.Image
		var m ocispec.Manifest
		must(t, json.Unmarshal(good.config, &c))
		must(t, json.Unmarshal(good.manifest, &m))
		change(&c, &m)
		return build(c, m, good.layers)
	}
	spoilLayer := func(h http.HandlerFunc) func(*fakeRegistry) {
		return func(f *fakeRegistry) {
			f.spoil = func(w http.ResponseWriter, r *http.Request, name string) bool {
				if name == string(gz.desc.Digest) {
					h(w, r)
					return true
				}
				return false
			}
		}
	}
	flipped := append([]byte(nil), gz.blob...)
	flipped[len(flipped)/2] ^= 1
	evil := layerOf(ocispec.MediaTypeImageLayer, file{"../../../../../../../../etc/onggi-was-here", "x"})
	for name, c := range map[string]struct {
		image *testImage
		spoil func(*fakeRegistry)
		kind  errdefs.Kind
		why   string
	}{
		"layer 500":  {good, spoilLayer(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500) }), errdefs.Unavailable, "500"},
		"layer gone": {good, spoilLayer(http.NotFound), errdefs.NotFound, "lacks a part"},
		"layer truncated": {good, spoilLayer(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(len(gz.blob)))
			_, _ = w.Write(gz.blob[:100])
		}), errdefs.Unavailable, "breaks off after 100"},
		"layer corrupt": {good, spoilLayer(func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(flipped) }), errdefs.Corrupt, "digest"},
		"layer endless": {good, spoilLayer(func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(gz.blob); err != nil {
					return
				}
			}
		}), errdefs.Corrupt, "sends more than"},
		"layer stalls": {good, spoilLayer(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(len(gz.blob)))
			_, _ = w.Write(gz.blob[:100])
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}), errdefs.Unavailable, "sent nothing"},
		"layer redirects in circles": {good, spoilLayer(func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
		}), errdefs.Corrupt, "redirects"},
		"diffID of another layer": {lies(func(c *ocispec.Image, _ *ocispec.Manifest) { c.RootFS.DiffIDs[0] = digest.FromString("x") }), nil, errdefs.Corrupt, "digest"},
		"fewer diffIDs":           {lies(func(c *ocispec.Image, _ *ocispec.Manifest) { c.RootFS.DiffIDs = c.RootFS.DiffIDs[:1] }), nil, errdefs.Corrupt, "lists 2 layers and its configuration 1"},
		"layer size":              {lies(func(_ *ocispec.Image, m *ocispec.Manifest) { m.Layers[0].Size++ }), nil, errdefs.Corrupt, "instead of"},
		"layer that is no tar":    {imageOf("amd64", testLayer{diffID: digest.FromString("hello"), blob: []byte("hello"), desc: memory(ocispec.MediaTypeImageLayer, []byte("hello")).desc}), nil, errdefs.Corrupt, ""},
		"layer that leaves":       {imageOf("amd64", good.layers[1], evil), nil, errdefs.InvalidArgument, "etc/onggi-was-here"},
		"windows":                 {lies(func(c *ocispec.Image, _ *ocispec.Manifest) { c.OS = "windows" }), nil, errdefs.Unsupported, "windows"},
		"another platform":        {twoLayers("s390x"), nil, errdefs.NotFound, "linux/s390x"},
		"config that is no JSON":  {lies(func(c *ocispec.Image, _ *ocispec.Manifest) {}), func(f *fakeRegistry) { spoilConfig(f, good.id, "nope") }, errdefs.Corrupt, ""},
		"config of another digest": {good, func(f *fakeRegistry) {
			spoilConfig(f, good.id, strings.Replace(string(good.config), "true", "eval", 1))
		}, errdefs.Corrupt, "digest"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, f := root(t), newFake(t)
			f.add("v1", c.image)
			if c.spoil != nil {
				c.spoil(f)
			}
			hasty := func(*PullOptions) {}
			if name == "layer stalls" {
				client := anonymous(500 * time.Millisecond)
				defer client.Close()
				hasty = func(o *PullOptions) { o.Registry = client }
			}
			img, err := pull(t, s, f.ref(t, "v1"), hasty)
			if !errdefs.Is(err, c.kind) || !strings.Contains(fmt.Sprint(err), c.why) {
				t.Errorf("got %v, %v (%v), want %v with %q", img, err, errdefs.KindOf(err), c.kind, c.why)
			}
			if _, err := os.Lstat("/etc/onggi-was-here"); err == nil {
				_ = os.Remove("/etc/onggi-was-here")
				t.Error("the layer left its directory")
			}
			wantNothing(t, s)
			// The same store then takes the good image.
			f.spoil = nil
			f.add("v1", good)
			if _, err := pull(t, s, f.ref(t, "v1")); err != nil {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}

func spoilConfig(f *fakeRegistry, id digest.Digest, text string) {
	f.spoil = func(w http.ResponseWriter, r *http.Request, name string) bool {
		if name == string(id) {
			_, _ = w.Write([]byte(text))
		}
		return name == string(id)
	}
}

func TestPullRefusesAmbiguousDocuments(t *testing.T) {
	s, f := root(t), newFake(t)
	good := twoLayers("amd64")
	f.add("good", good)
	both := strings.Replace(string(good.manifest), `"layers"`, `"manifests":[{"digest":"`+string(good.desc.Digest)+`","size":1}],"layers"`, 1)
	for name, c := range map[string]struct{ mediaType, text string }{
		"both":              {ocispec.MediaTypeImageManifest, both},
		"index by header":   {ocispec.MediaTypeImageIndex, string(good.manifest)},
		"docker by header":  {registry.DockerManifest, string(good.manifest)},
		"no platform there": {ocispec.MediaTypeImageIndex, func() string { b, _ := indexOf(twoLayers("s390x")); return string(b) }()},
		"index of itself": {ocispec.MediaTypeImageIndex, `{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"` +
			string(good.desc.Digest) + `","size":` + strconv.Itoa(len(good.manifest)) + `}]}`},
	} {
		f.put("bad", c.mediaType, []byte(c.text))
		if img, err := pull(t, s, f.ref(t, "bad")); err == nil {
			t.Errorf("%s: accepted as %v", name, img)
		}
		wantNothing(t, s)
	}
}

func TestCancelledPullLeavesNothing(t *testing.T) {
	s, f := root(t), newFake(t)
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	good := twoLayers("amd64")
	f.add("v1", good)
	ctx, cancel := context.WithCancel(bg)
	f.spoil = func(w http.ResponseWriter, r *http.Request, name string) bool {
		if name != string(good.layers[0].desc.Digest) {
			return false
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(good.layers[0].blob)))
		_, _ = w.Write(good.layers[0].blob[:50])
		w.(http.Flusher).Flush()
		cancel()
		<-r.Context().Done()
		return true
	}
	c := registry.New(registry.Options{StallTimeout: time.Hour})
	defer c.Close()
	_, err := s.Pull(ctx, f.ref(t, "v1"), PullOptions{Registry: c, Platform: &ocispec.Platform{OS: "linux", Architecture: "amd64"}})
	if !errdefs.Is(err, errdefs.Canceled) {
		t.Errorf("got %v (%v), want Canceled", err, errdefs.KindOf(err))
	}
	wantNothing(t, s)
}

func TestADamagedBlobIsFetchedAgain(t *testing.T) {
	s, f := root(t), newFake(t)
	good := twoLayers("amd64")
	f.add("v1", good)
	_, err := pull(t, s, f.ref(t, "v1"))
	must(t, err)
	d := good.layers[0].desc.Digest
	p, err := s.content.Path(d)
	must(t, err)
	must(t, os.Chmod(p, 0o600))
	b := append([]byte(nil), good.layers[0].blob...)
	b[20] ^= 1
	must(t, os.WriteFile(p, b, 0o600))
	must(t, s.snapshots.RemoveLayer(bg, good.layers[0].diffID))
	_, err = pull(t, s, f.ref(t, "v1"))
	must(t, err)
	if n := f.count("GET", d); n != 2 {
		t.Errorf("fetched %d times, want 2", n)
	}
	if _, err := s.content.ReadAll(good.layers[0].desc, 1<<30); err != nil {
		t.Error(err)
	}
}

// TestManyProcessesPullOneImage runs this test binary several times on one store: each layer is fetched once, and all
// of them have the image.
func TestManyProcessesPullOneImage(t *testing.T) {
	if dir := os.Getenv("ONGGI_TEST_ROOT"); dir != "" {
		s := openRoot(t, dir)
		for _, n := range strings.Fields(os.Getenv("ONGGI_TEST_NAMES")) {
			ref, err := reference.Parse(n)
			must(t, err)
			img, err := pull(t, s, ref)
			must(t, err)
			if got := read(t, s, img, "etc/hostname"); got != "other" {
				t.Errorf("%s: %q", n, got)
			}
		}
		return
	}
	s, f := root(t), newFake(t)
	base := layerOf(ocispec.MediaTypeImageLayerGzip, file{"etc/", ""}, file{"big", strings.Repeat("base ", 100_000)})
	var names []string
	var tops []testLayer
	for n := range 4 {
		top := layerOf(ocispec.MediaTypeImageLayerGzip, file{"etc/hostname", "other"}, file{"n", strconv.Itoa(n)})
		tops = append(tops, top)
		f.add("v"+strconv.Itoa(n), imageOf("amd64", base, top))
		names = append(names, f.ref(t, "v"+strconv.Itoa(n)).String())
	}
	var wg sync.WaitGroup
	for n := range 4 {
		wg.Go(func() {
			order := append(append([]string(nil), names[n:]...), names[:n]...)
			cmd := exec.Command(os.Args[0], "-test.run=^TestManyProcessesPullOneImage$")
			cmd.Env = append(os.Environ(), "ONGGI_TEST_ROOT="+s.rootDir(), "ONGGI_TEST_NAMES="+strings.Join(order, " "))
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	wg.Wait()
	for i, l := range append(tops, base) {
		if n := f.count("GET", l.desc.Digest); n != 1 {
			t.Errorf("layer %d was fetched %d times, want once", i, n)
		}
	}
	if list, err := s.List(); err != nil || len(list) != 4 {
		t.Errorf("%d images, %v; want 4", len(list), err)
	}
}

// TestPullAndRemoveAtOnce: whoever is faster, an image that can be read is whole.
func TestPullAndRemoveAtOnce(t *testing.T) {
	s, f := root(t), newFake(t)
	base := layerOf(ocispec.MediaTypeImageLayerGzip, file{"base", "base"})
	for n := range 2 {
		f.add("v"+strconv.Itoa(n), imageOf("amd64", base, layerOf(ocispec.MediaTypeImageLayerGzip, file{"n", strconv.Itoa(n)})))
	}
	var wg sync.WaitGroup
	for n := range 2 {
		wg.Go(func() {
			ref := f.ref(t, "v"+strconv.Itoa(n))
			for range 15 {
				img, err := pull(t, s, ref)
				if err != nil {
					t.Error(err)
					return
				}
				for _, d := range img.DiffIDs {
					if _, err := s.snapshots.Layer(d); err != nil {
						t.Errorf("the image lost a layer: %v", err)
					}
				}
				if _, err := s.Remove(bg, ref.String(), false, nil); err != nil {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			for range 10 {
				if err := s.Sweep(bg); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	must(t, s.Sweep(bg))
	wantNothing(t, s)
}
