package registry

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// uploads is a registry's upload side, as distribution-spec has it: what arrived of a broken chunk counts.
type uploads struct {
	mu       sync.Mutex
	data     []byte
	blobs    map[string][]byte
	taken    int64 // bytes read in all
	spoil    func(w http.ResponseWriter, r *http.Request, n int) bool
	requests int
	forget   bool // the upload is gone
}

func (u *uploads) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.requests++
	if u.spoil != nil && u.spoil(w, r, u.requests) {
		return
	}
	const session = "/v2/me/app/blobs/uploads/1"
	status := func(code int) {
		w.Header().Set("Location", session)
		if len(u.data) > 0 {
			w.Header().Set("Range", fmt.Sprintf("0-%d", len(u.data)-1))
		} else {
			w.Header().Set("Range", "0-0")
		}
		w.WriteHeader(code)
	}
	take := func(limit int64) error {
		var b bytes.Buffer
		n, err := b.ReadFrom(io.LimitReader(r.Body, limit))
		u.taken += n
		u.data = append(u.data, b.Bytes()...)
		return err
	}
	switch {
	case r.Method == http.MethodHead:
		if b, ok := u.blobs[filepath.Base(r.URL.Path)]; ok {
			w.Header().Set("Content-Length", fmt.Sprint(len(b)))
			return
		}
		w.WriteHeader(http.StatusNotFound)
	case r.Method == http.MethodPost:
		u.data, u.forget = nil, false
		status(http.StatusAccepted)
	case r.URL.Path != session || u.forget:
		w.WriteHeader(http.StatusNotFound)
	case r.Method == http.MethodGet:
		status(http.StatusNoContent)
	case r.Method == http.MethodPatch:
		if want := fmt.Sprintf("%d-%d", len(u.data), int64(len(u.data))+r.ContentLength-1); r.Header.Get("Content-Range") != want {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return
		}
		if err := take(1 << 30); err != nil {
			return
		}
		status(http.StatusAccepted)
	case r.Method == http.MethodPut:
		_ = take(1 << 30)
		d := r.URL.Query().Get("digest")
		if digest.FromBytes(u.data).String() != d {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, `{"errors":[{"code":"DIGEST_INVALID"}]}`)
			return
		}
		u.blobs[d] = u.data
		w.Header().Set("Docker-Content-Digest", d)
		w.WriteHeader(http.StatusCreated)
	}
}

// cut takes n bytes of a request's body and hangs up.
func (u *uploads) cut(r *http.Request, n int64) {
	var b bytes.Buffer
	k, _ := b.ReadFrom(io.LimitReader(r.Body, n))
	u.taken += k
	u.data = append(u.data, b.Bytes()...)
	panic(http.ErrAbortHandler)
}

func TestPushBlob(t *testing.T) {
	big := bytes.Repeat([]byte("onggi"), 8<<20) // 40 MiB
	desc := ocispec.Descriptor{Digest: digest.FromBytes(big), Size: int64(len(big))}
	for name, c := range map[string]struct {
		spoil func(u *uploads) func(w http.ResponseWriter, r *http.Request, n int) bool
		extra int64 // bytes that may be sent beside those of the blob
		kind  errdefs.Kind
		why   string
	}{
		"good": {func(*uploads) func(http.ResponseWriter, *http.Request, int) bool { return nil }, 0, 0, ""},
		"breaks in the middle of chunks": {func(u *uploads) func(http.ResponseWriter, *http.Request, int) bool {
			cuts := 0
			return func(w http.ResponseWriter, r *http.Request, _ int) bool {
				if r.Method == http.MethodPatch && cuts < 9 {
					cuts++
					u.cut(r, 3<<20)
				}
				return false
			}
		}, 0, 0, ""},
		"takes nothing for too long": {func(u *uploads) func(http.ResponseWriter, *http.Request, int) bool {
			done := false
			return func(w http.ResponseWriter, r *http.Request, _ int) bool {
				if r.Method == http.MethodPatch && !done {
					done = true
					select {
					case <-r.Context().Done():
					case <-time.After(700 * time.Millisecond):
					}
					return true
				}
				return false
			}
		}, 0, 0, ""},
		"forgets the upload once": {func(u *uploads) func(http.ResponseWriter, *http.Request, int) bool {
			done := false
			return func(w http.ResponseWriter, r *http.Request, n int) bool {
				if r.Method == http.MethodPatch && len(u.data) > 0 && !done {
					done, u.forget = true, true
					u.cut(r, 1<<20)
				}
				return false
			}
		}, 18 << 20, 0, ""},
		"answers 500 for ever": {func(u *uploads) func(http.ResponseWriter, *http.Request, int) bool {
			return func(w http.ResponseWriter, r *http.Request, _ int) bool {
				if r.Method == http.MethodPatch {
					w.WriteHeader(http.StatusInternalServerError)
					return true
				}
				return false
			}
		}, 0, errdefs.Unavailable, "500"},
		"stores something else": {func(u *uploads) func(http.ResponseWriter, *http.Request, int) bool {
			return func(w http.ResponseWriter, r *http.Request, _ int) bool {
				if r.Method == http.MethodPut {
					u.data[7] = 0 // also when the request is sent twice
				}
				return false
			}
		}, 0, errdefs.Unsupported, "DIGEST_INVALID"},
		"sends the upload to plain HTTP elsewhere": {func(u *uploads) func(http.ResponseWriter, *http.Request, int) bool {
			return func(w http.ResponseWriter, r *http.Request, _ int) bool {
				if r.Method == http.MethodPost {
					w.Header().Set("Location", "http://192.0.2.1/x")
					w.WriteHeader(http.StatusAccepted)
					return true
				}
				return false
			}
		}, 0, errdefs.Corrupt, "without TLS"},
		"names no address": {func(u *uploads) func(http.ResponseWriter, *http.Request, int) bool {
			return func(w http.ResponseWriter, r *http.Request, _ int) bool {
				if r.Method == http.MethodPost {
					w.WriteHeader(http.StatusAccepted)
					return true
				}
				return false
			}
		}, 0, errdefs.Corrupt, "which is none"},
		"says it has more than was sent": {func(u *uploads) func(http.ResponseWriter, *http.Request, int) bool {
			return func(w http.ResponseWriter, r *http.Request, _ int) bool {
				if r.Method == http.MethodPatch {
					_, _ = io.Copy(io.Discard, r.Body)
					w.Header().Set("Location", "/v2/me/app/blobs/uploads/1")
					w.Header().Set("Range", "0-99999999999")
					w.WriteHeader(http.StatusAccepted)
					return true
				}
				return false
			}
		}, 0, errdefs.Corrupt, "after it was sent"},
		"forbids": {func(u *uploads) func(http.ResponseWriter, *http.Request, int) bool {
			return func(w http.ResponseWriter, r *http.Request, _ int) bool {
				if r.Method == http.MethodPost {
					w.WriteHeader(http.StatusForbidden)
					return true
				}
				return false
			}
		}, 0, errdefs.Forbidden, "denies"},
	} {
		t.Run(name, func(t *testing.T) {
			u := &uploads{blobs: map[string][]byte{}}
			u.spoil = c.spoil(u)
			cl, ref := serve(t, u.ServeHTTP)
			how, _, err := cl.PushBlob(bg, ref, desc, bytes.NewReader(big), PushOptions{})
			if c.kind != errdefs.Unknown {
				if !errdefs.Is(err, c.kind) || !strings.Contains(fmt.Sprint(err), c.why) {
					t.Errorf("got %v (%v), want %v with %q", err, errdefs.KindOf(err), c.kind, c.why)
				}
				return
			}
			if err != nil || how != Pushed || !bytes.Equal(u.blobs[string(desc.Digest)], big) {
				t.Fatalf("%v, %v", how, err)
			}
			if u.taken > desc.Size+c.extra {
				t.Errorf("%d bytes were sent for %d", u.taken, desc.Size)
			}
			before := u.requests
			if how, _, err := cl.PushBlob(bg, ref, desc, bytes.NewReader(big), PushOptions{}); err != nil || how != Existed || u.requests != before+1 {
				t.Errorf("again: %v, %v, %d requests", how, err, u.requests-before)
			}
		})
	}
}

func TestReferrersByTheAPI(t *testing.T) {
	subject := descOf(manifest).Digest
	x := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("x"), Size: 3, ArtifactType: "a/b"}
	y := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("y"), Size: 3, ArtifactType: "c/d"}
	page := func(w http.ResponseWriter, all ...ocispec.Descriptor) {
		w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
		b, _ := json.Marshal(ocispec.Index{Manifests: all})
		_, _ = w.Write(b)
	}
	c, ref := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v2/me/app/referrers/"+string(subject) {
			http.NotFound(w, r)
			return
		}
		if r.URL.Query().Get("last") == "" {
			w.Header().Set("Link", `</v2/me/app/referrers/`+string(subject)+`?last=x>; rel="next"`)
			page(w, x)
			return
		}
		page(w, y)
	})
	if got, err := c.Referrers(bg, ref, subject, ""); err != nil || len(got) != 2 {
		t.Errorf("got %v, %v", got, err)
	}
	if got, err := c.Referrers(bg, ref, subject, "c/d"); err != nil || len(got) != 1 || got[0].Digest != y.Digest {
		t.Errorf("filtered: %v, %v", got, err)
	}
	for name, h := range map[string]http.HandlerFunc{
		"endless": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Link", `<?again>; rel="next"`)
			page(w, x)
		},
		"another host": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Link", `<http://192.0.2.1/>; rel="next"`)
			page(w, x)
		},
		"malformed": func(w http.ResponseWriter, r *http.Request) { page(w, ocispec.Descriptor{Digest: "sha256:../x"}) },
	} {
		c, ref := serve(t, h)
		if _, err := c.Referrers(bg, ref, subject, ""); !errdefs.Is(err, errdefs.Corrupt) {
			t.Errorf("%s: %v, want Corrupt", name, err)
		}
	}
}

func TestLogInAndKeep(t *testing.T) {
	realm := ""
	h := func(w http.ResponseWriter, r *http.Request) {
		user, pass, _ := r.BasicAuth()
		switch {
		case strings.HasPrefix(r.URL.Path, "/token"):
			if user != "jar" || pass != "kimchi" {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			if r.URL.Query().Get("offline_token") != "true" || r.URL.Query().Get("account") != "jar" {
				t.Errorf("asked with %s", r.URL.RawQuery)
			}
			_, _ = io.WriteString(w, `{"token":"tok","refresh_token":"long-lived"}`)
		case realm != "" && r.Header.Get("Authorization") != "Bearer tok":
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+realm+`",service="s"`)
			w.WriteHeader(http.StatusUnauthorized)
		case realm == "" && (user != "jar" || pass != "kimchi"):
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
		case r.URL.Path != "/v2/":
			t.Errorf("asked for %s", r.URL.Path)
		}
	}
	_, ref := serve(t, h)
	dir := t.TempDir()
	file := filepath.Join(dir, "docker/config.json")
	writeFile(t, file, `{"HttpHeaders":{"X":"y"},"auths":{"`+"https://"+ref.Domain+`":{"auth":"b2xkOm9sZA=="},"other.example":{"auth":"YTpi"}}}`)
	o := Options{Retries: -1}
	if _, err := LogIn(bg, o, ref.Domain, Credential{Username: "jar", Password: "wrong"}); !errdefs.Is(err, errdefs.Unauthorized) {
		t.Errorf("a wrong password: %v", err)
	}
	for _, realm = range []string{"", "/token"} {
		cred, err := LogIn(bg, o, ref.Domain, Credential{Username: "jar", Password: "kimchi"})
		if err != nil || (cred.IdentityToken == "long-lived") != (realm != "") {
			t.Fatalf("realm %q: %+v, %v", realm, cred, err)
		}
		where, err := SaveCredential(bg, file, ref.Domain, cred)
		if err != nil || where != "" {
			t.Fatal(where, err)
		}
		b, _ := os.ReadFile(file)
		if !strings.Contains(string(b), `"HttpHeaders"`) || !strings.Contains(string(b), "other.example") || strings.Contains(string(b), "b2xkOm9sZA==") {
			t.Errorf("the file is now %s", b)
		}
		if fi, err := os.Stat(file); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v; want mode 600", fi.Mode(), err)
		}
		got, err := FileCredentials(filepath.Join(dir, "none"), file)(bg, ref.Domain+"/some/repository")
		if err != nil || got != cred {
			t.Errorf("read back %+v, %v; want %+v", got, err, cred)
		}
	}
	for _, want := range []bool{true, false} {
		if found, err := EraseCredential(bg, file, ref.Domain); err != nil || found != want {
			t.Errorf("erase: %v, %v; want %v", found, err, want)
		}
	}
	if got, err := DockerCredentials(filepath.Dir(file))(bg, "other.example/x"); err != nil || got.Username != "a" {
		t.Errorf("another login: %+v, %v", got, err)
	}
	// With a helper, which keeps what it is given in a file.
	writeFile(t, filepath.Join(dir, "bin/docker-credential-jar"), `#!/bin/sh
d=`+dir+`
case $1 in
store) cat > $d/kept ;;
get) [ -f $d/kept ] && cat $d/kept || { echo "credentials not found in native keychain"; exit 1; } ;;
erase) cat > /dev/null; rm $d/kept ;;
esac
`)
	if err := os.Chmod(filepath.Join(dir, "bin/docker-credential-jar"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", filepath.Join(dir, "bin")+":"+os.Getenv("PATH"))
	writeFile(t, file, `{"credHelpers":{"`+ref.Domain+`":"jar"}}`)
	cred := Credential{Username: "jar", Password: "kimchi"}
	if where, err := SaveCredential(bg, file, ref.Domain, cred); err != nil || where != "jar" {
		t.Fatal(where, err)
	}
	if b, _ := os.ReadFile(file); strings.Contains(string(b), "kimchi") || strings.Contains(string(b), "amFy") {
		t.Errorf("the password is in the file: %s", b)
	}
	if got, err := FileCredentials(file)(bg, ref.Domain+"/x"); err != nil || got != cred {
		t.Errorf("read back %+v, %v", got, err)
	}
	if found, err := EraseCredential(bg, file, ref.Domain); err != nil || !found {
		t.Error(found, err)
	}
	if _, err := os.Stat(dir + "/kept"); err == nil {
		t.Error("the helper still keeps it")
	}
}

func TestPodmansNamespaces(t *testing.T) {
	file := filepath.Join(t.TempDir(), "auth.json")
	writeFile(t, file, `{"auths":{"r.example":{"auth":"YTph"},"r.example/team":{"auth":"Yjpi"},"r.example/team/app":{"auth":"Yzpj"}}}`)
	for repo, want := range map[string]string{"r.example/x": "a", "r.example/team/other": "b", "r.example/team/app": "c", "r.example/teams": "a", "q.example/team": ""} {
		if got, err := FileCredentials(file)(bg, repo); err != nil || got.Username != want {
			t.Errorf("%s: %+v, %v; want %q", repo, got, err, want)
		}
	}
}
