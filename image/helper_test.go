package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/onggi/onggi/content"
	"github.com/onggi/onggi/reference"
	"github.com/onggi/onggi/registry"
	"github.com/onggi/onggi/snapshot"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

var bg = context.Background()

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// root is a store in a directory of its own.
func root(t testing.TB) *Store {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("unpacking layers needs root")
	}
	return openRoot(t, filepath.Join(t.TempDir(), "root"))
}

func openRoot(t testing.TB, dir string) *Store {
	t.Helper()
	c, err := content.Open(filepath.Join(dir, "content"))
	must(t, err)
	sn, err := snapshot.Open(filepath.Join(dir, "snapshots"))
	must(t, err)
	s, err := Open(filepath.Join(dir, "images"), c, sn)
	must(t, err)
	return s
}

// rootDir returns the directory that openRoot was given.
func (s *Store) rootDir() string { return filepath.Dir(s.dir) }

// left lists every file of the store that is not of its empty shape: it is empty when nothing stays.
func left(t testing.TB, s *Store) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(s.rootDir(), func(p string, d os.DirEntry, err error) error {
		must(t, err)
		rel, _ := filepath.Rel(s.rootDir(), p)
		switch {
		case d.IsDir() && strings.HasPrefix(rel, "snapshots/layers/") && strings.Count(rel, "/") == 3:
			out = append(out, rel)
			return filepath.SkipDir
		case d.IsDir(), rel == "content/oci-layout", rel == "images/lock", d.Name() == "lock", strings.Contains(rel, "snapshots/") && strings.Contains(d.Name(), "lock"):
		default:
			out = append(out, rel)
		}
		return nil
	})
	must(t, err)
	return out
}

// wantNothing complains about what is left besides an index without entries.
func wantNothing(t testing.TB, s *Store) {
	t.Helper()
	l := left(t, s)
	idx, err := s.readIndex()
	if err != nil || len(idx) != 0 {
		t.Errorf("index: %v, %v; want none", idx, err)
	}
	l = slices.DeleteFunc(l, func(f string) bool { return f == "content/index.json" })
	if len(l) != 0 {
		t.Errorf("left: %q", l)
	}
}

// testLayer is a layer in all its forms.
type testLayer struct {
	tar    []byte
	diffID digest.Digest
	blob   []byte
	desc   ocispec.Descriptor
}

// file is an entry of a test layer.
type file struct {
	name, text string
}

func tarOf(files ...file) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.text)), Typeflag: tar.TypeReg, ModTime: time.Unix(1e9, 0)}
		if strings.HasSuffix(f.name, "/") {
			h.Typeflag, h.Mode, h.Size = tar.TypeDir, 0o755, 0
		}
		if err := w.WriteHeader(h); err != nil {
			panic(err)
		}
		_, _ = io.WriteString(w, f.text)
	}
	_ = w.Close()
	return b.Bytes()
}

func layerOf(mediaType string, files ...file) testLayer {
	l := testLayer{tar: tarOf(files...)}
	l.diffID = digest.FromBytes(l.tar)
	var b bytes.Buffer
	switch {
	case strings.HasSuffix(mediaType, "gzip"):
		z := gzip.NewWriter(&b)
		_, _ = z.Write(l.tar)
		_ = z.Close()
	case strings.HasSuffix(mediaType, "zstd"):
		z, _ := zstd.NewWriter(&b)
		_, _ = z.Write(l.tar)
		_ = z.Close()
	default:
		b.Write(l.tar)
	}
	l.blob = b.Bytes()
	l.desc = ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(l.blob), Size: int64(len(l.blob))}
	return l
}

// testImage is an image made by hand.
type testImage struct {
	layers    []testLayer
	config    []byte
	manifest  []byte
	desc      ocispec.Descriptor // of the manifest
	id        digest.Digest
	documents map[digest.Digest][]byte // everything by digest
}

func imageOf(arch string, layers ...testLayer) *testImage {
	created := time.Unix(1.6e9, 0).UTC()
	cfg := ocispec.Image{
		Created: &created, Platform: ocispec.Platform{OS: "linux", Architecture: arch},
		Config: ocispec.ImageConfig{Cmd: []string{"/bin/true"}, Env: []string{"A=" + arch}},
		RootFS: ocispec.RootFS{Type: "layers"},
	}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Layers: []ocispec.Descriptor{}}
	for _, l := range layers {
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, l.diffID)
		m.Layers = append(m.Layers, l.desc)
	}
	return build(cfg, m, layers)
}

func build(cfg ocispec.Image, m ocispec.Manifest, layers []testLayer) *testImage {
	i := &testImage{layers: layers, documents: map[digest.Digest][]byte{}}
	i.config, _ = json.Marshal(cfg)
	c := memory(ocispec.MediaTypeImageConfig, i.config)
	i.id, m.Config = c.desc.Digest, c.desc
	i.manifest, _ = json.Marshal(m)
	i.desc = memory(ocispec.MediaTypeImageManifest, i.manifest).desc
	i.documents[i.id], i.documents[i.desc.Digest] = i.config, i.manifest
	for _, l := range layers {
		i.documents[l.desc.Digest] = l.blob
	}
	return i
}

func indexOf(images ...*testImage) ([]byte, ocispec.Descriptor) {
	idx := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, i := range images {
		var cfg ocispec.Image
		_ = json.Unmarshal(i.config, &cfg)
		d := i.desc
		d.Platform = &ocispec.Platform{OS: "linux", Architecture: cfg.Architecture, Variant: cfg.Variant}
		idx.Manifests = append(idx.Manifests, d)
	}
	b, _ := json.Marshal(idx)
	return b, memory(ocispec.MediaTypeImageIndex, b).desc
}

// fakeRegistry serves documents, counts requests, and lets a test spoil answers.
type fakeRegistry struct {
	*httptest.Server
	mu    sync.Mutex
	docs  map[digest.Digest][]byte
	types map[digest.Digest]string
	tags  map[string]digest.Digest
	seen  map[string]int // requests by "METHOD path"
	spoil func(w http.ResponseWriter, r *http.Request, name string) bool
}

func newFake(t testing.TB) *fakeRegistry {
	t.Helper()
	f := &fakeRegistry{docs: map[digest.Digest][]byte{}, types: map[digest.Digest]string{}, tags: map[string]digest.Digest{}, seen: map[string]int{}}
	f.Server = httptest.NewServer(http.HandlerFunc(f.serve))
	t.Cleanup(func() { f.CloseClientConnections(); f.Close() })
	return f
}

func (f *fakeRegistry) add(tag string, i *testImage) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for d, b := range i.documents {
		f.docs[d] = b
	}
	f.types[i.desc.Digest] = ocispec.MediaTypeImageManifest
	f.tags[tag] = i.desc.Digest
}

func (f *fakeRegistry) put(tag, mediaType string, b []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := digest.FromBytes(b)
	f.docs[d], f.types[d], f.tags[tag] = b, mediaType, d
}

func (f *fakeRegistry) serve(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	name := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	f.seen[r.Method+" "+name]++
	d := digest.Digest(name)
	if t, ok := f.tags[name]; ok {
		d = t
	}
	b, ok := f.docs[d]
	mt, spoil := f.types[d], f.spoil
	f.mu.Unlock()
	if spoil != nil && spoil(w, r, string(d)) {
		return
	}
	if !ok {
		http.NotFound(w, r)
		return
	}
	if mt != "" {
		w.Header().Set("Content-Type", mt)
		w.Header().Set("Docker-Content-Digest", string(d))
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
}

func (f *fakeRegistry) count(method string, d digest.Digest) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seen[method+" "+string(d)]
}

func (f *fakeRegistry) ref(t testing.TB, tag string) reference.Reference {
	t.Helper()
	ref, err := reference.Parse(strings.TrimPrefix(f.URL, "http://") + "/me/app:" + tag)
	must(t, err)
	return ref
}

// patient is longer than a busy machine lets anybody wait.
const patient = 20 * time.Second

// anonymous is a client that gives up after stall without a byte; a test in which that is not the point is patient.
func anonymous(stall time.Duration) *registry.Client {
	return registry.New(registry.Options{
		StallTimeout: stall, Retries: -1,
		Credentials: func(context.Context, string) (registry.Credential, error) { return registry.Credential{}, nil },
	})
}

func pull(t testing.TB, s *Store, ref reference.Reference, change ...func(*PullOptions)) (*Image, error) {
	t.Helper()
	c := anonymous(patient)
	defer c.Close()
	o := PullOptions{Registry: c, Platform: &ocispec.Platform{OS: "linux", Architecture: "amd64"}}
	for _, f := range change {
		f(&o)
	}
	return s.Pull(bg, ref, o)
}

// twoLayers is a small image.
func twoLayers(arch string) *testImage {
	return imageOf(arch,
		layerOf(ocispec.MediaTypeImageLayerGzip, file{"etc/", ""}, file{"etc/hostname", "jar of " + arch}, file{"big", strings.Repeat(arch+" kimchi ", 20_000)}),
		layerOf(ocispec.MediaTypeImageLayerZstd, file{"app", "#!/bin/sh\n"}, file{"etc/hostname", "other"}))
}

// realRegistry starts Debian's docker-registry on loopback. more is added to its configuration; DIR in it is a
// directory.
func realRegistry(t testing.TB, more string) string {
	t.Helper()
	bin, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Skip("docker-registry is not installed (apt-get install docker-registry)")
	}
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	addr := l.Addr().String()
	must(t, l.Close())
	cfg := filepath.Join(dir, "config.yml")
	// user jar, password kimchi
	must(t, os.WriteFile(filepath.Join(dir, "htpasswd"), []byte("jar:$2b$04$Qeo4DoFUUZT41pNdq6ATo.SPPL.HjFsSGg4uQXLGijuodTnDaVIXK\n"), 0o600))
	must(t, os.WriteFile(cfg, fmt.Appendf(nil, "version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s/data}}\nhttp: {addr: %s}\n%s\n", dir, addr, strings.ReplaceAll(more, "DIR", dir)), 0o600))
	cmd := exec.Command(bin, "serve", cfg)
	cmd.Stdout, cmd.Stderr = io.Discard, io.Discard
	must(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for range 200 {
		if r, err := http.Get("http://" + addr + "/v2/"); err == nil {
			_ = r.Body.Close()
			return addr
		}
		time.Sleep(25 * time.Millisecond)
	}
	t.Fatal("docker-registry does not start")
	return ""
}

// tool runs a program that a test needs.
func tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	bin, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed (apt-get install %[1]s)", name)
	}
	out, err := exec.Command(bin, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// ociArchive writes images as an OCI layout in a tar.
func ociArchive(docs map[digest.Digest][]byte, entries ...ocispec.Descriptor) []byte {
	idx, _ := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: entries})
	files := []file{{"blobs/", ""}, {"blobs/sha256/", ""}}
	for d, b := range docs {
		files = append(files, file{"blobs/sha256/" + d.Encoded(), string(b)})
	}
	files = append(files, file{"index.json", string(idx)}, file{"oci-layout", `{"imageLayoutVersion":"1.0.0"}`})
	return tarOf(files...)
}

func loopback(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	return l
}

func credential(user, password string) func(context.Context, string) (registry.Credential, error) {
	return func(context.Context, string) (registry.Credential, error) {
		return registry.Credential{Username: user, Password: password}, nil
	}
}
