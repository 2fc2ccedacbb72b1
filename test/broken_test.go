package test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// blobs is a small image as a registry has it.
type blobs struct {
	layer, config, manifest []byte
}

func smallImage(t *testing.T) (b blobs) {
	t.Helper()
	var plain bytes.Buffer
	w := tar.NewWriter(&plain)
	body := bytes.Repeat([]byte("onggi\n"), 50000)
	if err := w.WriteHeader(&tar.Header{Name: "data", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(body))}); err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write(body)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	b.layer = zip(t, plain.Bytes())
	b.config = fmt.Appendf(nil, `{"architecture":"amd64","os":"linux","config":{"Cmd":["sh"]},"rootfs":{"type":"layers","diff_ids":[%q]}}`, digest.FromBytes(plain.Bytes()))
	b.manifest = manifestOf(b.config, b.layer)
	return b
}

func zip(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	_, _ = z.Write(b)
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func manifestOf(config []byte, layers ...[]byte) []byte {
	d := func(typ string, b []byte) map[string]any {
		return map[string]any{"mediaType": "application/vnd.oci.image." + typ, "digest": digest.FromBytes(b), "size": len(b)}
	}
	var ls []any
	for _, l := range layers {
		ls = append(ls, d("layer.v1.tar+gzip", l))
	}
	b, _ := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": d("config.v1+json", config), "layers": ls,
	})
	return b
}

// TestBrokenRegistries: a registry that fails in any way ends a pull with what, why and the fix, in a bounded time, with
// nothing left of the attempt; the same pull then succeeds when the registry is sound again.
func TestBrokenRegistries(t *testing.T) {
	good := smallImage(t)
	tarWith := func(name string, typ byte, link string) []byte {
		var plain bytes.Buffer
		w := tar.NewWriter(&plain)
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: typ, Linkname: link, Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		_ = w.Close()
		return plain.Bytes()
	}
	imageOf := func(plain []byte) blobs {
		b := blobs{layer: zip(t, plain)}
		b.config = fmt.Appendf(nil, `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[%q]}}`, digest.FromBytes(plain))
		b.manifest = manifestOf(b.config, b.layer)
		return b
	}
	flipped := bytes.Clone(good.layer)
	flipped[len(flipped)/2] ^= 1
	wrongDiff := good
	wrongDiff.config = bytes.Replace(good.config, []byte(`"sha256:`), []byte(`"sha256:`+strings.Repeat("0", 8)), 1)
	wrongDiff.config = fmt.Appendf(nil, `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}`, strings.Repeat("0", 64))
	wrongDiff.manifest = manifestOf(wrongDiff.config, good.layer)
	notJSON := good
	notJSON.config = []byte(`{"architecture":`)
	notJSON.manifest = manifestOf(notJSON.config, good.layer)
	notTar := imageOf([]byte("this is no archive"))
	up := imageOf(tarWith("../../../../outside", tar.TypeReg, ""))
	through := imageOf(tarWith("link", tar.TypeLink, "/etc/shadow"))
	fewer := good
	fewer.manifest = manifestOf(good.config)
	type handler = func(w http.ResponseWriter, r *http.Request, kind string, b blobs) bool
	at := func(kind string, f http.HandlerFunc) handler {
		return func(w http.ResponseWriter, r *http.Request, k string, _ blobs) bool {
			if k == kind {
				f(w, r)
			}
			return k == kind
		}
	}
	endless := func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead { // the server would send nothing at all
			return
		}
		for b := make([]byte, 64<<10); ; {
			if _, err := w.Write(b); err != nil {
				return
			}
		}
	}
	cases := []struct {
		name string
		b    blobs
		h    handler
		want string // in the message
	}{
		{"unauthorized", good, at("manifest", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(401) }), "log in"},
		{"forbidden", good, at("manifest", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) }), ""},
		{"500 for the blob", good, at("layer", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "the disk is on fire", 500) }), "500"},
		{"404 for the blob", good, at("layer", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) }), "sha256:"},
		{"429 for ever", good, at("manifest", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Retry-After", "1"); w.WriteHeader(429) }), "rate"},
		{"truncated blob", good, at("layer", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(len(good.layer)))
			_, _ = w.Write(good.layer[:len(good.layer)/2])
		}), ""},
		{"short blob", good, at("layer", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(good.layer[:len(good.layer)/2]) }), ""},
		{"corrupt blob", good, at("layer", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(flipped) }), "digest"},
		{"wrong manifest for the digest", good, at("manifest", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
			w.Header().Set("Docker-Content-Digest", "sha256:"+strings.Repeat("1", 64))
			_, _ = w.Write(good.manifest)
		}), "digest"},
		{"endless manifest", good, at("manifest", endless), ""},
		{"endless config", good, at("config", endless), ""},
		{"endless blob", good, at("layer", endless), ""},
		{"endless error", good, at("manifest", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(400); endless(w, r) }), "400"},
		{"redirect loop", good, at("layer", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
		}), "redirect"},
		{"redirect to nowhere", good, at("layer", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/x", http.StatusTemporaryRedirect)
		}), "127.0.0.1:1"},
		{"redirect to a file", good, at("layer", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", "file:///etc/shadow")
			w.WriteHeader(http.StatusTemporaryRedirect)
		}), ""},
		{"a web page", good, at("manifest", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			_, _ = w.Write([]byte("<html>please log in to the hotel's network</html>"))
		}), ""},
		{"config is no JSON", notJSON, nil, "config"},
		{"layer is no archive", notTar, nil, ""},
		{"layer leads up", up, nil, ""},
		{"layer links to the host", through, nil, ""},
		{"config lies about the layer", wrongDiff, nil, "digest"},
		{"fewer layers than the config says", fewer, nil, ""},
	}
	sound := false
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v2/" {
			return
		}
		parts := strings.Split(r.URL.Path, "/") // /v2/c7/manifests/latest
		n, err := strconv.Atoi(strings.TrimPrefix(parts[2], "c"))
		if err != nil || n >= len(cases) {
			w.WriteHeader(404)
			return
		}
		c := cases[n]
		b := c.b
		kind := "manifest"
		var body []byte
		switch ref := parts[len(parts)-1]; ref {
		case string(digest.FromBytes(b.layer)):
			kind, body = "layer", b.layer
		case string(digest.FromBytes(b.config)):
			kind, body = "config", b.config
		default:
			body = b.manifest
		}
		if c.h != nil && !sound && c.h(w, r, kind, b) {
			return
		}
		if kind == "manifest" {
			w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
	}))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Listener = l
	s.Start()
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t)
			name := fmt.Sprintf("%s/c%d", l.Addr(), i)
			sound = false
			begin := time.Now()
			r := h.try("pull", name)
			took := time.Since(begin)
			lines := strings.Split(strings.TrimSpace(r.err), "\n")
			if r.code != 1 || !strings.Contains(r.err, "onggi: cannot pull "+name) || !strings.Contains(r.err, c.want) {
				t.Errorf("exit code %d, stderr %q; want one that tells of %q", r.code, r.err, c.want)
			}
			if len(lines) > 4 || len(r.err) > 2000 {
				t.Errorf("a message of %d lines and %d bytes", len(lines), len(r.err))
			}
			if !strings.Contains(r.err, "\n  fix: ") {
				t.Errorf("no fix is given: %s", r.err)
			}
			if took > 45*time.Second {
				t.Errorf("it took %v", took)
			}
			t.Logf("%v: %s", took.Round(time.Millisecond), lines[len(lines)-1])
			left := 0
			for _, d := range []string{"images/blobs/sha256", "images/leases", "snapshots/layers/sha256", "snapshots/ingest", "snapshots/chains"} {
				entries, _ := os.ReadDir(filepath.Join(h.root, d))
				for _, e := range entries {
					left++
					t.Errorf("left behind: %s/%s", d, e.Name())
				}
			}
			if out := h.onggi("images", "-q"); out != "" {
				t.Errorf("an image is left: %s", out)
			}
			if c.h != nil { // the registry has been repaired
				sound = true
				h.onggi("pull", "-q", name)
			}
		})
	}
}
