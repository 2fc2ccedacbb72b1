package registry

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"
)

var (
	bg       = context.Background()
	manifest = []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[]}`)
	payload  = bytes.Repeat([]byte("onggi is a breathing jar. "), 40_000) // 1 MB
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve starts a registry whose answers are h, and a client that is in a hurry.
func serve(t *testing.T, h http.HandlerFunc, change ...func(*Options)) (*Client, reference.Reference) {
	t.Helper()
	srv := httptest.NewServer(h)
	o := Options{
		StallTimeout: 300 * time.Millisecond, Retries: 2,
		Credentials: func(context.Context, string) (Credential, error) { return Credential{}, nil },
	}
	for _, f := range change {
		f(&o)
	}
	c := New(o)
	c.base = time.Millisecond
	t.Cleanup(func() { c.Close(); srv.CloseClientConnections(); srv.Close() })
	ref, err := reference.Parse(strings.TrimPrefix(srv.URL, "http://") + "/me/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	return c, ref
}

func serveManifest(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
	w.Header().Set("Docker-Content-Digest", string(digest.FromBytes(manifest)))
	w.Header().Set("Content-Length", strconv.Itoa(len(manifest)))
	if r.Method == http.MethodGet {
		_, _ = w.Write(manifest)
	}
}

func descOf(b []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(b), Size: int64(len(b))}
}

func TestResolveAndManifest(t *testing.T) {
	var gets, heads atomic.Int32
	c, ref := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v2/me/app/manifests/v1" && r.URL.Path != "/v2/me/app/manifests/"+string(digest.FromBytes(manifest)) {
			http.NotFound(w, r)
			return
		}
		if r.Method == http.MethodHead {
			heads.Add(1)
		} else {
			gets.Add(1)
		}
		serveManifest(w, r)
	})
	desc, err := c.Resolve(bg, ref)
	if err != nil || desc.Digest != digest.FromBytes(manifest) || desc.Size != int64(len(manifest)) || desc.MediaType != ocispec.MediaTypeImageManifest {
		t.Fatalf("Resolve = %v, %v", desc, err)
	}
	b, err := c.Manifest(bg, ref, desc)
	if err != nil || !bytes.Equal(b, manifest) {
		t.Fatalf("Manifest = %s, %v", b, err)
	}
	if heads.Load() != 1 || gets.Load() != 1 {
		t.Errorf("%d HEAD and %d GET, want one of each", heads.Load(), gets.Load())
	}
	ref.Digest = desc.Digest
	if _, err := c.Resolve(bg, ref); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Manifest(bg, ref, desc); err != nil {
		t.Fatal(err)
	}
	if heads.Load() != 1 || gets.Load() != 2 {
		t.Errorf("%d HEAD and %d GET; by digest one GET is enough", heads.Load(), gets.Load())
	}
}

func TestResolveWithoutDigestHeader(t *testing.T) {
	c, ref := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			w.WriteHeader(http.StatusMethodNotAllowed)
			return
		}
		_, _ = w.Write(manifest) // a plain file server
	})
	desc, err := c.Resolve(bg, ref)
	if err != nil || desc.Digest != digest.FromBytes(manifest) || desc.MediaType != "" {
		t.Fatalf("Resolve = %v, %v", desc, err)
	}
}

// TestBadManifests: each is refused with its kind and its reason, within the time of the client's limits.
func TestBadManifests(t *testing.T) {
	good := descOf(manifest)
	other := append([]byte(" "), manifest...)
	for name, c := range map[string]struct {
		h    http.HandlerFunc
		kind errdefs.Kind
		why  string
	}{
		"no such tag": {func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(404)
			_, _ = w.Write([]byte(`{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown\u001b[31m\n"}]}`))
		}, errdefs.NotFound, "it says: manifest unknown [31m)"},
		"denied":        {status(403, `{"errors":[{"code":"DENIED"}]}`), errdefs.Forbidden, "DENIED"},
		"500 for ever":  {status(500, "oops\x00\u202e"), errdefs.Unavailable, "answers 500 Internal Server Error"},
		"429 for ever":  {status(429, `{"message":"slow down"}`), errdefs.Unavailable, "limits the rate"},
		"a web page":    {status(418, "<html>tea</html>"), errdefs.Unsupported, "418"},
		"redirect loop": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) }, errdefs.Corrupt, "more than 10 times"},
		"to plain HTTP": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://192.0.2.1/x", http.StatusFound)
		}, errdefs.Corrupt, "plain HTTP"},
		"redirect to no": {status(302, ""), errdefs.Corrupt, "without saying where"},
		"endless": {func(w http.ResponseWriter, r *http.Request) {
			for w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest); r.Method == http.MethodGet && r.Context().Err() == nil; {
				if _, err := w.Write(payload); err != nil {
					return
				}
			}
		}, errdefs.Exhausted, "more than the"},
		"another digest": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Docker-Content-Digest", string(good.Digest))
			_, _ = w.Write(other)
		}, errdefs.Corrupt, "instead of " + string(good.Digest)},
		"malformed digest": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Docker-Content-Digest", "sha256:../../etc/passwd")
			_, _ = w.Write(manifest)
		}, errdefs.Corrupt, "malformed"},
		"schema 1": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/vnd.docker.distribution.manifest.v1+prettyjws")
			_, _ = w.Write([]byte(`{"schemaVersion":1,"fsLayers":[]}`))
		}, errdefs.Unsupported, "schema 1"},
		"schema 1 as text": {func(w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write([]byte(`{"schemaVersion":1,"fsLayers":[]}`))
		}, errdefs.Unsupported, "schema 1"},
		"truncated": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "5000")
			_, _ = w.Write(manifest)
		}, errdefs.Unavailable, "connection broke"},
		"stalls": {func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, errdefs.Unavailable, "does not answer"},
		"stalls in the body": {func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet {
				_, _ = w.Write(manifest[:10])
				w.(http.Flusher).Flush()
				<-r.Context().Done()
			}
		}, errdefs.Unavailable, "sent nothing"},
		"trickles": {func(w http.ResponseWriter, r *http.Request) {
			for r.Method == http.MethodGet && r.Context().Err() == nil {
				_, _ = w.Write([]byte(" "))
				w.(http.Flusher).Flush()
				time.Sleep(20 * time.Millisecond)
			}
		}, errdefs.Unavailable, "sent nothing"},
		"hangs up":           {func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }, errdefs.Unavailable, "connection broke"},
		"401 without a word": {status(401, ""), errdefs.Unauthorized, "does not say how"},
		"401 of a new kind": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("WWW-Authenticate", "Negotiate abc")
			w.WriteHeader(401)
		}, errdefs.Unsupported, "negotiate"},
		"401 basic": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(401)
		}, errdefs.Unauthorized, "user name and a password"},
		"401 loop": {func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/token" {
				_, _ = w.Write([]byte(`{"token":"t"}`))
				return
			}
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token",service="s"`)
			w.WriteHeader(401)
		}, errdefs.Unauthorized, "does not exist, or needs another login"},
		"token server without TLS": {bearer("http://192.0.2.1/token"), errdefs.Forbidden, "without TLS"},
		"token server nowhere":     {bearer("::"), errdefs.Corrupt, "no address"},
		"token server 500": {func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/token" {
				w.WriteHeader(500)
				return
			}
			bearer("http://"+r.Host+"/token")(w, r)
		}, errdefs.Unavailable, "token server"},
		"token server refuses": {func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/token" {
				status(403, `{"details":"incorrect username or password"}`)(w, r)
				return
			}
			bearer("http://"+r.Host+"/token")(w, r)
		}, errdefs.Unauthorized, "incorrect username"},
		"token with a line end": {func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/token" {
				_, _ = w.Write([]byte(`{"token":"a\r\nHost: evil"}`))
				return
			}
			bearer("http://"+r.Host+"/token")(w, r)
		}, errdefs.Corrupt, "no usable token"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cl, ref := serve(t, c.h)
			_, err := cl.Resolve(bg, ref)
			if !errdefs.Is(err, c.kind) || !strings.Contains(fmt.Sprint(err), c.why) {
				t.Errorf("got %v (%v), want %v with %q", err, errdefs.KindOf(err), c.kind, c.why)
			}
			if strings.ContainsAny(fmt.Sprint(err), "\x00\x1b\n\r") {
				t.Errorf("control characters reach the user: %q", err)
			}
		})
	}
}

func status(code int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code); _, _ = w.Write([]byte(body)) }
}

func bearer(realm string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+realm+`",service="s"`)
		w.WriteHeader(401)
	}
}

func TestManifestMustBeWhatTheDescriptorSays(t *testing.T) {
	c, ref := serve(t, serveManifest)
	good := descOf(manifest)
	for name, change := range map[string]func(*ocispec.Descriptor){
		"size":       func(d *ocispec.Descriptor) { d.Size++ },
		"digest":     func(d *ocispec.Descriptor) { d.Digest = digest.FromString("x") },
		"media type": func(d *ocispec.Descriptor) { d.MediaType = ocispec.MediaTypeImageIndex },
	} {
		d := good
		change(&d)
		if _, err := c.Manifest(bg, ref, d); !errdefs.Is(err, errdefs.Corrupt) {
			t.Errorf("%s: got %v, want Corrupt", name, err)
		}
	}
	d := good
	d.Size = MaxManifest + 1
	if _, err := c.Manifest(bg, ref, d); !errdefs.Is(err, errdefs.Exhausted) {
		t.Errorf("got %v, want Exhausted", err)
	}
}

func TestBlob(t *testing.T) {
	desc := descOf(payload)
	ranged := func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(payload))
	}
	var n atomic.Int32
	breaking := func(each int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			from := 0
			if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from); err == nil {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(payload)-1, len(payload)))
				w.Header().Set("Content-Length", strconv.Itoa(len(payload)-from))
				w.WriteHeader(206)
			} else {
				w.Header().Set("Content-Length", strconv.Itoa(len(payload)))
			}
			_, _ = w.Write(payload[from:min(from+each, len(payload))])
		}
	}
	for name, c := range map[string]struct {
		h    http.HandlerFunc
		kind errdefs.Kind // Unknown: the blob arrives
		why  string
	}{
		"good":           {ranged, errdefs.Unknown, ""},
		"chunked":        {func(w http.ResponseWriter, r *http.Request) { w.(http.Flusher).Flush(); _, _ = w.Write(payload) }, errdefs.Unknown, ""},
		"breaks 9 times": {breaking(110_000), errdefs.Unknown, ""},
		"knows no ranges": {func(w http.ResponseWriter, r *http.Request) {
			if n.Add(1) == 1 {
				w.Header().Set("Content-Length", strconv.Itoa(len(payload)))
				_, _ = w.Write(payload[:1000])
				return
			}
			w.Header().Set("Content-Length", strconv.Itoa(len(payload)))
			_, _ = w.Write(payload)
		}, errdefs.Unknown, ""},
		"503 once": {func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") == "" {
				w.Header().Set("Content-Length", strconv.Itoa(len(payload)))
				_, _ = w.Write(payload[:1000])
				return
			}
			ranged(w, r)
		}, errdefs.Unknown, ""},
		"always breaks at once": {breaking(0), errdefs.Unavailable, "breaks off after 0 of"},
		"another length":        {func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(payload[:100]) }, errdefs.Corrupt, "says it has 100 bytes"},
		"endless": {func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(payload); err != nil {
					return
				}
			}
		}, errdefs.Corrupt, "sends more than"},
		"another range": {func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") == "" {
				w.Header().Set("Content-Length", strconv.Itoa(len(payload)))
				_, _ = w.Write(payload[:1000])
				return
			}
			w.Header().Set("Content-Range", "bytes 0-5/6")
			w.WriteHeader(206)
		}, errdefs.Corrupt, "another range"},
		"stalls": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(len(payload)))
			_, _ = w.Write(payload[:5000])
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}, errdefs.Unavailable, "sent nothing for"},
		"trickles": {func(w http.ResponseWriter, r *http.Request) {
			for i := 0; r.Context().Err() == nil; i++ {
				_, _ = w.Write(payload[i : i+1])
				w.(http.Flusher).Flush()
				time.Sleep(20 * time.Millisecond)
			}
		}, errdefs.Unavailable, "sent nothing for"},
		"gone": {http.NotFound, errdefs.NotFound, "lacks a part of the image"},
		"204":  {status(204, ""), errdefs.Corrupt, "answers 204"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cl, ref := serve(t, c.h)
			r, err := cl.Blob(bg, ref, desc)
			if err == nil {
				var got []byte
				got, err = io.ReadAll(r)
				if err == nil && !bytes.Equal(got, payload) {
					t.Errorf("got %d bytes that differ", len(got))
				}
				_ = r.Close()
			}
			if c.kind == errdefs.Unknown && err != nil || c.kind != errdefs.Unknown && (!errdefs.Is(err, c.kind) || !strings.Contains(fmt.Sprint(err), c.why)) {
				t.Errorf("got %v (%v), want %v with %q", err, errdefs.KindOf(err), c.kind, c.why)
			}
		})
	}
}

func TestCancelEndsAtOnce(t *testing.T) {
	c, ref := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(payload)))
		_, _ = w.Write(payload[:5000])
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}, func(o *Options) { o.StallTimeout = time.Hour })
	ctx, cancel := context.WithCancel(bg)
	r, err := c.Blob(ctx, ref, descOf(payload))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.ReadFull(r, make([]byte, 5000)); err != nil {
		t.Fatal(err)
	}
	go cancel()
	if _, err := r.Read(make([]byte, 10)); !errdefs.Is(err, errdefs.Canceled) {
		t.Errorf("got %v, want Canceled", err)
	}
}

func TestRetryAfterIsHonoured(t *testing.T) {
	var n atomic.Int32
	c, ref := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if n.Add(1) <= 2 {
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(503)
			return
		}
		serveManifest(w, r)
	})
	if _, err := c.Resolve(bg, ref); err != nil {
		t.Error(err)
	}
	c, ref = serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", "7200")
		w.WriteHeader(429)
	})
	if _, err := c.Resolve(bg, ref); !strings.Contains(errdefs.FixOf(err), "2h0m0s") {
		t.Errorf("fix %q, want the time to wait", errdefs.FixOf(err))
	}
}

func TestLogIn(t *testing.T) {
	var tokens atomic.Int32
	user := Credential{Username: "me", Password: "päss:word"}
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("me:päss:word"))
	h := func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/token":
			tokens.Add(1)
			if r.URL.Query().Get("scope") != "repository:me/app:pull" || r.URL.Query().Get("service") != "s" || r.Header.Get("Authorization") != basic {
				w.WriteHeader(401)
				return
			}
			_, _ = w.Write([]byte(`{"access_token":"secret","expires_in":300}`))
		case r.Header.Get("Authorization") != "Bearer secret":
			w.Header().Add("WWW-Authenticate", `Bogus`)
			w.Header().Add("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token" , service="s",scope="repository:me/app:pull"`)
			w.WriteHeader(401)
		case strings.Contains(r.URL.Path, "/blobs/"):
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(payload))
		default:
			serveManifest(w, r)
		}
	}
	with := func(cred Credential) func(*Options) {
		return func(o *Options) {
			o.Credentials = func(context.Context, string) (Credential, error) { return cred, nil }
		}
	}
	c, ref := serve(t, h, with(user))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			r, err := c.Blob(bg, ref, descOf(payload))
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Close()
			if _, err := io.Copy(io.Discard, r); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if tokens.Load() != 1 {
		t.Errorf("%d tokens fetched for one repository, want 1", tokens.Load())
	}
	c, ref = serve(t, h, with(Credential{Username: "me", Password: "wrong"}))
	if _, err := c.Resolve(bg, ref); !errdefs.Is(err, errdefs.Unauthorized) {
		t.Errorf("got %v, want Unauthorized", err)
	}
	c, ref = serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != basic {
			w.Header().Set("WWW-Authenticate", `Basic realm="r"`)
			w.WriteHeader(401)
			return
		}
		serveManifest(w, r)
	}, with(user))
	if _, err := c.Resolve(bg, ref); err != nil {
		t.Error(err)
	}
	c, ref = serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/token":
			if r.FormValue("grant_type") != "refresh_token" || r.FormValue("refresh_token") != "idt" {
				w.WriteHeader(400)
				return
			}
			_, _ = w.Write([]byte(`{"access_token":"secret"}`))
		default:
			h(w, r)
		}
	}, with(Credential{IdentityToken: "idt"}))
	if _, err := c.Resolve(bg, ref); err != nil {
		t.Error(err)
	}
}

func TestPlainHTTPOnlyForLoopbackAndListed(t *testing.T) {
	c := New(Options{PlainHTTP: []string{"registry.lan:5000"}})
	for domain, want := range map[string]string{
		"localhost:5000": "http", "127.0.0.1": "http", "127.9.9.9:80": "http", "[::1]:5000": "http", "registry.lan:5000": "http",
		"registry.lan": "https", "docker.io": "https", "127.0.0.1.evil.org": "https", "localhost.evil.org:5000": "https",
	} {
		if e, err := c.endpoints(reference.Reference{Domain: domain, Path: "a", Tag: "b"}, needPull, false); err != nil || e[0].Scheme != want {
			scheme := fmt.Sprint(e, err)
			t.Errorf("%s is spoken to by %s, want %s", domain, scheme, want)
		}
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(serveManifest))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	defer srv.Close()
	ref, err := reference.Parse(strings.TrimPrefix(srv.URL, "https://") + "/a:b")
	if err != nil {
		t.Fatal(err)
	}
	c = New(Options{Retries: -1})
	defer c.Close()
	if _, err := c.Resolve(bg, ref); !errdefs.Is(err, errdefs.Forbidden) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a loopback registry with TLS: %v; want its certificate to be refused", err)
	}
}

func TestNobodyThere(t *testing.T) {
	c := New(Options{})
	for name, why := range map[string]string{
		"127.0.0.1:1/a":          "nobody listens there",
		"onggi-test.invalid/a:b": "cannot be resolved",
	} {
		ref, err := reference.Parse(name)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(bg, 20*time.Second)
		_, err = c.Resolve(ctx, ref)
		cancel()
		if err == nil || !strings.Contains(err.Error(), why) && !errors.Is(err, context.DeadlineExceeded) || errdefs.FixOf(err) == "" {
			t.Errorf("%s: %v (fix %q), want %q", name, err, errdefs.FixOf(err), why)
		}
	}
}

func TestDockerCredentials(t *testing.T) {
	dir := t.TempDir()
	ask := DockerCredentials(dir)
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	write := func(name, text string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	if cred, err := ask(bg, "docker.io"); err != nil || !cred.zero() {
		t.Errorf("without a file: %v, %v", cred, err)
	}
	write("docker-credential-jar", `#!/bin/sh
read -r host
case $host in
lost.example.org) echo "credentials not found in native keychain"; exit 1;;
broken.example.org) echo "no bus" >&2; exit 1;;
esac
echo '{"ServerURL":"x","Username":"<token>","Secret":"from '"$host"'"}'
`, 0o755)
	write("config.json", `{"auths":{
		"https://index.docker.io/v1/":{"auth":"`+base64.StdEncoding.EncodeToString([]byte("a:b:c"))+`"},
		"127.0.0.1:5000":{"identitytoken":"idt"},
		"bad.example.org":{"auth":"!!"}},
		"credHelpers":{"helped.example.org":"jar","lost.example.org":"jar","broken.example.org":"jar","evil.example.org":"../../jar"}}`, 0o600)
	for host, want := range map[string]struct {
		cred Credential
		kind errdefs.Kind
	}{
		"docker.io":          {Credential{Username: "a", Password: "b:c"}, 0},
		"127.0.0.1:5000":     {Credential{IdentityToken: "idt"}, 0},
		"other.example.org":  {Credential{}, 0},
		"helped.example.org": {Credential{IdentityToken: "from helped.example.org"}, 0},
		"lost.example.org":   {Credential{}, 0},
		"broken.example.org": {Credential{}, errdefs.Unavailable},
		"evil.example.org":   {Credential{}, errdefs.InvalidArgument},
		"bad.example.org":    {Credential{}, errdefs.InvalidArgument},
	} {
		cred, err := ask(bg, host)
		if cred != want.cred || errdefs.KindOf(err) != want.kind {
			t.Errorf("%s: got %+v, %v; want %+v, %v", host, cred, err, want.cred, want.kind)
		}
	}
	write("config.json", `{"auths":`, 0o600)
	if _, err := ask(bg, "docker.io"); !errdefs.Is(err, errdefs.InvalidArgument) {
		t.Errorf("a broken file: %v", err)
	}
}

func TestParseChallenges(t *testing.T) {
	got := parseChallenges([]string{`Basic realm="a \"b\"", Bearer realm=https://x/y,service = "s,t" ,scope="a b"`, `Negotiate`, `Bearer realm="unclosed`})
	want := "[{basic map[realm:a \"b\"]} {bearer map[realm:https service:]}"
	if len(got) < 4 || got[0].params["realm"] != `a "b"` || got[len(got)-1].params["realm"] != "unclosed" {
		t.Errorf("got %v, want like %v", got, want)
	}
}

func FuzzParseChallenges(f *testing.F) {
	for _, s := range []string{`Bearer realm="https://a/b",service="c",scope="d:e:f"`, `Basic`, `Basic realm=x, Bearer a=b,c="\"`, "=,=\"", "a==,b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, ch := range parseChallenges([]string{s}) {
			if ch.scheme == "" {
				t.Error("a challenge without a scheme")
			}
		}
	})
}

func FuzzParseError(f *testing.F) {
	for _, s := range []string{`{"errors":[{"code":"X","message":"y"}]}`, `{"details":"d"}`, "text\x1b[2J", "<html>", "{"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := parseError(b)
		if strings.ContainsAny(s, "\x1b\n\r\x00") || len(s) > 4*700 {
			t.Errorf("%q", s)
		}
	})
}
