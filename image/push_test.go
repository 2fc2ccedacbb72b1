package image

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/reference"
	"github.com/onggi/onggi/registry"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func parseRef(t testing.TB, s string) reference.Reference {
	t.Helper()
	ref, err := reference.Parse(s)
	must(t, err)
	return ref
}

// push tags the image and pushes it.
func push(t testing.TB, s *Store, img, name string, change ...func(*PushOptions)) (PushResult, string, error) {
	t.Helper()
	ref := parseRef(t, name)
	if img != "" {
		must(t, s.Tag(img, ref))
	}
	c := anonymous(patient)
	defer c.Close()
	var mu sync.Mutex
	var said strings.Builder
	o := PushOptions{Registry: c, Progress: func(p Progress) { mu.Lock(); fmt.Fprintln(&said, p.ID, p.Status); mu.Unlock() }}
	for _, f := range change {
		f(&o)
	}
	res, err := s.Push(bg, ref, o)
	return res, said.String(), err
}

// watch is a proxy in front of a real registry that notes what passes, and spoils some of it.
type watch struct {
	addr string
	mu   sync.Mutex
	seen []string // "METHOD path status"
	sent int64    // bytes of request bodies
	got  int64    // bytes of answers to GETs of blobs
	// spoil answers a request itself, or changes it; false passes it on.
	spoil func(w http.ResponseWriter, r *http.Request) bool
	proxy *httputil.ReverseProxy
}

func watchRegistry(t testing.TB, addr string) *watch {
	t.Helper()
	w := &watch{}
	target, _ := url.Parse("http://" + addr)
	proxy := httputil.NewSingleHostReverseProxy(target)
	w.proxy = proxy
	proxy.FlushInterval = -1
	proxy.ErrorHandler = func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }
	proxy.ModifyResponse = func(r *http.Response) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.seen = append(w.seen, fmt.Sprint(r.Request.Method, " ", r.Request.URL.Path, " ", r.StatusCode))
		if r.Request.Method == http.MethodGet && strings.Contains(r.Request.URL.Path, "/blobs/") {
			r.Body = &tally{r.Body, func(n int) { w.mu.Lock(); w.got += int64(n); w.mu.Unlock() }}
		}
		return nil
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Body != nil {
			r.Body = &tally{r.Body, func(n int) { w.mu.Lock(); w.sent += int64(n); w.mu.Unlock() }}
		}
		w.mu.Lock()
		spoil := w.spoil
		w.mu.Unlock()
		if spoil == nil || !spoil(rw, r) {
			proxy.ServeHTTP(rw, r)
		}
	})}
	w.addr = listen(t, srv)
	return w
}

type tally struct {
	io.ReadCloser
	add func(int)
}

func (c *tally) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.add(n)
	return n, err
}

// reset forgets what was seen and returns it.
func (w *watch) reset() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.seen
	w.seen, w.sent, w.got = nil, 0, 0
	return out
}

func (w *watch) bytesSent() int64 { w.mu.Lock(); defer w.mu.Unlock(); return w.sent }

func TestPushRoundTrip(t *testing.T) {
	s := root(t)
	w := watchRegistry(t, realRegistry(t, ""))
	i := twoLayers("amd64")
	must(t, load(t, s, ociArchive(i.documents, called(i.desc, "app:1"))))

	res, said, err := push(t, s, "app:1", w.addr+"/me/app:1")
	must(t, err)
	if res.Desc.Digest != i.desc.Digest {
		t.Errorf("pushed %s, want the manifest as it is: %s", res.Desc.Digest, i.desc.Digest)
	}
	for _, l := range i.layers {
		if !strings.Contains(said, short(l.diffID)+" Pushed") {
			t.Errorf("said %q, want that %s is pushed", said, short(l.diffID))
		}
	}
	w.reset()

	// Nothing new: two questions, no byte.
	_, said, err = push(t, s, "", w.addr+"/me/app:1")
	must(t, err)
	if n, seen := w.bytesSent(), w.reset(); n != 0 || len(seen) > 2 || !strings.Contains(said, "Layer already exists") {
		t.Errorf("a push of nothing new sent %d bytes: %q, said %q", n, seen, said)
	}
	// Another tag: the manifest only.
	if _, _, err = push(t, s, "app:1", w.addr+"/me/app:2"); err != nil || w.bytesSent() != int64(len(i.manifest)) {
		t.Errorf("%v, %d bytes; want the manifest's %d", err, w.bytesSent(), len(i.manifest))
	}
	w.reset()
	// Another repository: mounted.
	_, said, err = push(t, s, "app:1", w.addr+"/other/app:1")
	must(t, err)
	if n := w.bytesSent(); strings.Count(said, "Mounted from me/app") != 2 || n > int64(len(i.manifest)+len(i.config)) {
		t.Errorf("%d bytes sent; said %q", n, said)
	}
	// A new layer on top: only that one.
	top := layerOf(ocispec.MediaTypeImageLayerGzip, file{"new", strings.Repeat("x", 5000)})
	j := imageOf("amd64", append(i.layers, top)...)
	must(t, load(t, s, ociArchive(j.documents, called(j.desc, "app:3"))))
	w.reset()
	if _, _, err = push(t, s, "app:3", w.addr+"/me/app:3"); err != nil || w.bytesSent() != int64(len(j.manifest)+len(j.config)+len(top.blob)) {
		t.Errorf("%v, %d bytes", err, w.bytesSent())
	}
	// Others read it: digests equal, layers whole. And so do we.
	out := tool(t, "skopeo", "inspect", "--tls-verify=false", "docker://"+w.addr+"/me/app:3")
	if !strings.Contains(out, string(j.desc.Digest)) || !strings.Contains(out, string(top.desc.Digest)) {
		t.Errorf("skopeo sees %s", out)
	}
	dir := t.TempDir()
	tool(t, "skopeo", "copy", "-q", "--insecure-policy", "--src-tls-verify=false", "docker://"+w.addr+"/me/app:3", "oci:"+dir+"/layout:3")
	b, err := os.ReadFile(filepath.Join(dir, "layout/blobs/sha256", top.desc.Digest.Encoded()))
	if err != nil || !bytes.Equal(b, top.blob) {
		t.Errorf("the layer came back as %d bytes, %v", len(b), err)
	}
	img, err := pull(t, root(t), parseRef(t, w.addr+"/me/app:3"))
	if err != nil || img.ID != j.id || img.Target.Digest != j.desc.Digest {
		t.Errorf("pulled %v, %v", img, err)
	}
}

func listen(t testing.TB, srv *http.Server) string {
	t.Helper()
	l := loopback(t)
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	return l.Addr().String()
}

func called(d ocispec.Descriptor, name string) ocispec.Descriptor {
	d.Annotations = map[string]string{ocispec.AnnotationRefName: name}
	return d
}

func load(t testing.TB, s *Store, archive []byte) error {
	t.Helper()
	_, err := s.Load(bg, bytes.NewReader(archive), nil)
	return err
}

func TestPushCompressesOnceAndReproducibly(t *testing.T) {
	addr := realRegistry(t, "")
	plain := func() *testImage {
		return imageOf("amd64", layerOf(ocispec.MediaTypeImageLayer, file{"big", strings.Repeat("kimchi and rice ", 300_000)}),
			layerOf(ocispec.MediaTypeImageLayer, file{"app", "#!/bin/sh\n"}))
	}
	var first [2]digest.Digest
	for n := range 2 { // on two stores
		s := root(t)
		i := plain()
		must(t, load(t, s, ociArchive(i.documents, called(i.desc, "app:1"))))
		a, _, err := push(t, s, "app:1", addr+"/gz/app:1")
		must(t, err)
		img, err := s.Get("app:1")
		must(t, err)
		if img.ID != i.id || img.Manifest.Digest != a.Desc.Digest {
			t.Errorf("the image here is %s of %s, want the one that was pushed: %s", img.Manifest.Digest, img.ID, a.Desc.Digest)
		}
		if _, err := s.content.Stat(i.layers[0].desc.Digest); !errdefs.Is(err, errdefs.NotFound) {
			t.Errorf("the plain blob is still here: %v", err)
		}
		z, _, err := push(t, s, "app:1", addr+"/zst/app:1", func(o *PushOptions) {
			o.Compression, o.Recompress = Compression{Name: "zstd", Level: 5}, true
		})
		must(t, err)
		if img, err := s.Get("app:1"); err != nil || img.Manifest.Digest != a.Desc.Digest {
			t.Errorf("recompressing for a push changed the image here: %v, %v", img, err)
		}
		if n == 0 {
			first = [2]digest.Digest{a.Desc.Digest, z.Desc.Digest}
		} else if first != [2]digest.Digest{a.Desc.Digest, z.Desc.Digest} {
			t.Errorf("the second store pushed %s and %s, the first %v", a.Desc.Digest, z.Desc.Digest, first)
		}
		for name, mt := range map[string]string{"gz": ocispec.MediaTypeImageLayerGzip, "zst": ocispec.MediaTypeImageLayerZstd} {
			got, err := pull(t, root(t), parseRef(t, addr+"/"+name+"/app:1"))
			if err != nil || got.ID != i.id {
				t.Fatalf("%s: %v, %v", name, got, err)
			}
			out := tool(t, "skopeo", "inspect", "--raw", "--tls-verify=false", "docker://"+addr+"/"+name+"/app:1")
			if strings.Count(out, mt) != 2 {
				t.Errorf("%s: %s", name, out)
			}
		}
		// Nothing stays of what was only for a push.
		must(t, s.Sweep(bg))
		if _, err := s.Remove(bg, "app:1", true, nil); err != nil {
			t.Error(err)
		}
		for _, name := range []string{"gz", "zst"} {
			if _, err := s.Remove(bg, addr+"/"+name+"/app:1", true, nil); err != nil {
				t.Error(err)
			}
		}
		wantNothing(t, s)
	}
	for _, c := range []Compression{{Name: "xz"}, {Name: "gzip", Level: 10}, {Name: "zstd", Level: 23}, {Name: "none", Level: 1}, {Level: -1}} {
		if err := c.Check(); !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("%+v: %v, want InvalidArgument", c, err)
		}
	}
}

func TestPushGoesOnWhereItBroke(t *testing.T) {
	s := root(t)
	w := watchRegistry(t, realRegistry(t, ""))
	noise := make([]byte, 40<<20)
	x := uint64(88172645463325252)
	for k := range noise { // xorshift: does not compress
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		noise[k] = byte(x)
	}
	i := imageOf("amd64", layerOf(ocispec.MediaTypeImageLayer, file{"noise", string(noise)}))
	i.layers[0].desc.MediaType = ocispec.MediaTypeImageLayer
	must(t, load(t, s, ociArchive(i.documents, called(i.desc, "app:1"))))
	var mu sync.Mutex
	patches, posts := 0, 0
	w.spoil = func(rw http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		switch r.Method {
		case http.MethodPost:
			if posts++; posts == 1 {
				rw.WriteHeader(http.StatusServiceUnavailable)
				return true
			}
		case http.MethodPatch:
			if patches++; patches == 2 || patches == 3 { // the registry keeps the first chunk
				rw.WriteHeader(http.StatusBadGateway)
				return true
			}
		}
		return false
	}
	res, _, err := push(t, s, "app:1", w.addr+"/me/app:1", func(o *PushOptions) {
		o.Compression.Name = "none"
		o.Registry = registry.New(registry.Options{StallTimeout: 5 * time.Second, Retries: 4})
	})
	must(t, err)
	if limit := int64(len(noise)) + 6<<20; w.bytesSent() > limit {
		t.Errorf("%d bytes sent for %d, with two breaks", w.bytesSent(), len(noise))
	}
	if patches != 5 || posts != 3 || res.Desc.Digest != i.desc.Digest {
		t.Errorf("%d chunks, pushed %s", patches, res.Desc.Digest)
	}
	tool(t, "skopeo", "copy", "-q", "--insecure-policy", "--src-tls-verify=false", "docker://"+w.addr+"/me/app:1", "oci:"+t.TempDir()+":1")
}

func TestPushRefusals(t *testing.T) {
	s := root(t)
	i := twoLayers("amd64")
	must(t, load(t, s, ociArchive(i.documents, called(i.desc, "app:1"))))
	addr := realRegistry(t, "auth: {htpasswd: {realm: r, path: DIR/htpasswd}}")
	_, _, err := push(t, s, "app:1", addr+"/me/app:1")
	if !errdefs.Is(err, errdefs.Unauthorized) || !strings.Contains(errdefs.FixOf(err), "onggi login "+addr) {
		t.Errorf("without a login: %v (fix %s)", err, errdefs.FixOf(err))
	}
	if _, _, err := push(t, s, "", addr+"/me/nosuch:1"); !errdefs.Is(err, errdefs.NotFound) || !strings.Contains(err.Error(), "does not exist locally") {
		t.Errorf("no such image: %v", err)
	}
	// With it, and a layer whose blob is not here.
	login := func(o *PushOptions) {
		o.Registry = registry.New(registry.Options{Credentials: credential("jar", "kimchi")})
	}
	must(t, s.content.Delete(i.layers[0].desc.Digest))
	if _, _, err := push(t, s, "app:1", addr+"/me/app:1", login); !errdefs.Is(err, errdefs.NotFound) || !strings.Contains(err.Error(), short(i.layers[0].desc.Digest)) {
		t.Errorf("a missing blob: %v", err)
	}
	must(t, s.change(bg, func(idx index) (index, error) { return idx[:0], nil }))
	must(t, s.Sweep(bg))
	must(t, load(t, s, ociArchive(i.documents, called(i.desc, "app:1"))))
	if _, _, err := push(t, s, "app:1", addr+"/me/app:1", login); err != nil {
		t.Error(err)
	}
	// A damaged blob is not pushed, and said.
	p, _ := s.content.Path(i.layers[1].desc.Digest)
	b, _ := os.ReadFile(p)
	b[len(b)/2] ^= 1
	must(t, os.Remove(p))
	must(t, os.WriteFile(p, b, 0o444))
	if _, _, err := push(t, s, "app:1", addr+"/new/app:1", login, func(o *PushOptions) {}); err != nil && !errdefs.Is(err, errdefs.Corrupt) {
		t.Errorf("a damaged blob: %v", err) // it may also be mounted from me/app
	}
	must(t, s.change(bg, func(idx index) (index, error) {
		return idx[:1], nil // no other repository knows it
	}))
	other := realRegistry(t, "")
	if _, _, err := push(t, s, "app:1", other+"/new/app:1"); !errdefs.Is(err, errdefs.Corrupt) {
		t.Errorf("a damaged blob: %v, want Corrupt", err)
	}
	if e := left(t, s); strings.Contains(strings.Join(e, " "), "leases/") {
		t.Errorf("left: %q", e)
	}
}

func TestPlatformsSideBySide(t *testing.T) {
	s := root(t)
	addr := realRegistry(t, "")
	amd, arm, ppc := twoLayers("amd64"), twoLayers("arm64"), twoLayers("ppc64le")
	idx, idxDesc := indexOf(amd, arm, ppc)
	docs := map[digest.Digest][]byte{idxDesc.Digest: idx}
	for _, i := range []*testImage{amd, arm, ppc} {
		for d, b := range i.documents {
			docs[d] = b
		}
	}
	dir := t.TempDir()
	must(t, os.WriteFile(dir+"/in.tar", ociArchive(docs, idxDesc), 0o600))
	tool(t, "skopeo", "copy", "-q", "--all", "--insecure-policy", "--dest-tls-verify=false", "oci-archive:"+dir+"/in.tar", "docker://"+addr+"/me/app:1")
	ref := parseRef(t, addr+"/me/app:1")
	for _, arch := range []string{"arm64", "amd64"} {
		_, err := pull(t, s, ref, func(o *PullOptions) { o.Platform = &ocispec.Platform{OS: "linux", Architecture: arch} })
		must(t, err)
	}
	for arch, want := range map[string]digest.Digest{"arm64": arm.id, "amd64": amd.id} {
		img, err := s.GetPlatform(ref.String(), ocispec.Platform{OS: "linux", Architecture: arch})
		if err != nil || img.ID != want {
			t.Errorf("%s: %v, %v", arch, img, err)
		}
	}
	// Part of an index: an index of what is here. Where the registry has all of it: the index itself.
	res, _, err := push(t, s, "", ref.String())
	if err != nil || res.Desc.Digest != idxDesc.Digest || res.Partial {
		t.Errorf("to where it is from: %+v, %v", res, err)
	}
	res, _, err = push(t, s, ref.String(), addr+"/part/app:1")
	if err != nil || !res.Partial || res.Desc.MediaType != ocispec.MediaTypeImageIndex {
		t.Errorf("a part: %+v, %v", res, err)
	}
	res, _, err = push(t, s, "", addr+"/part/app:1", func(o *PushOptions) { o.Platform = &ocispec.Platform{OS: "linux", Architecture: "arm64"} })
	if err != nil || res.Desc.Digest != arm.desc.Digest {
		t.Errorf("one platform: %+v, %v", res, err)
	}
	if _, err := pull(t, s, ref, func(o *PullOptions) { o.AllPlatforms, o.Platform = true, nil }); err != nil {
		t.Fatal(err)
	}
	res, _, err = push(t, s, ref.String(), realRegistry(t, "")+"/all/app:1")
	if err != nil || res.Partial || res.Desc.Digest != idxDesc.Digest {
		t.Errorf("all of it: %+v, %v", res, err)
	}
	list, err := s.List()
	if err != nil || len(list) != 3 {
		t.Errorf("%d images, %v; want 3", len(list), err)
	}
	for _, name := range []string{ref.String(), addr + "/part/app:1", res2name(list)} {
		if _, err := s.Remove(bg, name, false, nil); err != nil {
			t.Error(err)
		}
	}
	wantNothing(t, s)
}

// res2name finds the name that is neither of the first registry's.
func res2name(list []*Image) string {
	for _, i := range list {
		for _, n := range i.Names {
			if n.Path == "all/app" {
				return n.String()
			}
		}
	}
	return ""
}

func TestReferrersGoAlong(t *testing.T) {
	s := root(t)
	addr := realRegistry(t, "") // of version 2.8: it knows no referrers, so this is the tag schema
	i := twoLayers("amd64")
	must(t, load(t, s, ociArchive(i.documents, called(i.desc, "app:1"))))
	_, _, err := push(t, s, "app:1", addr+"/me/app:1")
	must(t, err)
	// An SBOM that refers to it, made by hand.
	c := anonymous(patient)
	defer c.Close()
	ref := parseRef(t, addr+"/me/app:1")
	sbom := []byte(`{"spdxVersion":"SPDX-2.3"}`)
	blob := ocispec.Descriptor{MediaType: "text/spdx+json", Digest: digest.FromBytes(sbom), Size: int64(len(sbom))}
	empty := ocispec.DescriptorEmptyJSON
	for _, x := range []struct {
		d ocispec.Descriptor
		b []byte
	}{{blob, sbom}, {empty, []byte("{}")}} {
		if _, _, err := c.PushBlob(bg, ref, x.d, bytes.NewReader(x.b), registry.PushOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	empty.Data = nil
	m, _ := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		ArtifactType: "text/spdx+json", Config: empty, Layers: []ocispec.Descriptor{blob}, Subject: &i.desc,
	})
	sm := memory(ocispec.MediaTypeImageManifest, m)
	must(t, c.PushManifest(bg, ref, sm.desc, m, ""))
	list, err := RemoteReferrers(bg, c, ref, i.desc.Digest, "")
	if err != nil || len(list) != 1 || list[0].Digest != sm.desc.Digest || list[0].ArtifactType != "text/spdx+json" {
		t.Fatalf("referrers: %+v, %v", list, err)
	}
	if list, err := RemoteReferrers(bg, c, ref, i.desc.Digest, "no/such"); err != nil || len(list) != 0 {
		t.Errorf("filtered: %v, %v", list, err)
	}
	// Pulled along, pushed along, gone with the image.
	other := root(t)
	_, err = pull(t, other, ref, func(o *PullOptions) { o.Referrers = true })
	must(t, err)
	if got, err := other.Referrers(i.desc.Digest); err != nil || len(got) != 1 {
		t.Fatalf("here: %v, %v", got, err)
	}
	if list, err := other.List(); err != nil || len(list) != 1 {
		t.Errorf("a referrer is listed as an image: %v, %v", list, err)
	}
	second := realRegistry(t, "")
	res, _, err := push(t, other, ref.String(), second+"/x/app:1", func(o *PushOptions) { o.Referrers = true })
	if err != nil || res.Referrers != 1 {
		t.Errorf("pushed %+v, %v", res, err)
	}
	if list, err := RemoteReferrers(bg, c, parseRef(t, second+"/x/app:1"), i.desc.Digest, ""); err != nil || len(list) != 1 {
		t.Errorf("there: %v, %v", list, err)
	}
	for _, n := range []string{ref.String(), second + "/x/app:1"} {
		if _, err := other.Remove(bg, n, false, nil); err != nil {
			t.Error(err)
		}
	}
	wantNothing(t, other)
}
