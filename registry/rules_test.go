package registry

import (
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/reference"
)

func writeFile(t testing.TB, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// brief writes hosts in one line each: scheme, address, path, repository, what for.
func brief(hosts []Host) string {
	var b strings.Builder
	for _, h := range hosts {
		fmt.Fprintf(&b, "%s://%s%s/%s ", h.Scheme, h.Address, h.Path, h.Repository)
		for _, x := range []struct {
			is bool
			as string
		}{{h.Pull, "pull "}, {h.Resolve, "resolve "}, {h.Push, "push "}, {h.Mirror, "mirror "}, {h.DigestOnly, "digest "}, {h.TagOnly, "tag "}, {h.Insecure, "insecure "}, {h.SkipVerify, "skip "}} {
			if x.is {
				b.WriteString(x.as)
			}
		}
		for _, f := range h.CAs {
			b.WriteString("ca=" + filepath.Base(f) + " ")
		}
		for _, p := range h.Clients {
			b.WriteString("cert=" + filepath.Base(p.Cert) + "," + filepath.Base(p.Key) + " ")
		}
		for k, v := range h.Header {
			fmt.Fprintf(&b, "%s=%s ", k, v)
		}
		if h.Timeout > 0 {
			fmt.Fprint(&b, h.Timeout)
		}
		b.WriteString("\n")
	}
	return strings.ReplaceAll(b.String(), " \n", "\n")
}

func TestRules(t *testing.T) {
	all := "pull resolve push"
	for name, c := range map[string]struct {
		files map[string]string
		ref   string
		want  string // brief's lines, or "error: ..."
	}{
		"nothing": {nil, "debian", "https://registry-1.docker.io/v2/library/debian " + all + "\n"},
		"hosts.toml in order": {
			map[string]string{"certs.d/docker.io/hosts.toml": `
server = "https://registry-1.docker.io"
[host."https://z.example"]
  capabilities = ["pull", "resolve"]
  ca = "ca.pem"
  dial_timeout = "3s"
[host."http://a.example:5000"]
  capabilities = ["pull"]
  skip_verify = true
  client = [["/etc/c.cert", "c.key"], ["both.pem"]]
  [host."http://a.example:5000".header]
    x-token = ["jar"]
`},
			"debian",
			"https://z.example/v2/library/debian pull resolve mirror ca=ca.pem 3s\n" +
				"http://a.example:5000/v2/library/debian pull mirror skip cert=c.cert,c.key cert=both.pem,. X-Token=[jar]\n" +
				"https://registry-1.docker.io/v2/library/debian " + all + "\n",
		},
		"paths": {
			map[string]string{"certs.d/quay.io/hosts.toml": `
[host."https://m.example/proxy"]
[host."https://n.example/v2/quay/"]
override_path = true
`},
			"quay.io/a/b:1",
			"https://m.example/proxy/v2/a/b " + all + " mirror\nhttps://n.example/v2/quay/a/b " + all + " mirror\nhttps://quay.io/v2/a/b " + all + "\n",
		},
		"the registry's own settings": {
			map[string]string{"certs.d/r.example_5000_/hosts.toml": "capabilities = [\"pull\", \"resolve\"]\nca = [\"a.crt\", \"b.crt\"]\n"},
			"r.example:5000/a:1", "https://r.example:5000/v2/a pull resolve ca=a.crt ca=b.crt\n",
		},
		"default": {
			map[string]string{"certs.d/_default/hosts.toml": `[host."https://all.example"]`},
			"gcr.io/a:1",
			"https://all.example/v2/a " + all + " mirror\nhttps://gcr.io/v2/a " + all + "\n",
		},
		"docker's directory": {
			map[string]string{"certs.d/r.example/ca.crt": "x", "certs.d/r.example/me.cert": "x", "certs.d/r.example/me.key": "x"},
			"r.example/a:1", "https://r.example/v2/a " + all + " ca=ca.crt cert=me.cert,me.key\n",
		},
		"docker's own place":        {map[string]string{"docker/r.example:5000/ca.crt": "x"}, "r.example:5000/a:1", "https://r.example:5000/v2/a " + all + " ca=ca.crt\n"},
		"a certificate without key": {map[string]string{"docker/r.example/me.cert": "x"}, "r.example/a:1", "error: no me.key beside it"},

		"registries.conf": {
			map[string]string{"registries.conf": `
unqualified-search-registries = ["example.com"]
[[registry]]
prefix = "docker.io/library"
location = "store.example/hub"
[[registry.mirror]]
location = "m.example:5000/lib"
insecure = true
[[registry.mirror]]
location = "n.example"
pull-from-mirror = "digest-only"
`},
			"debian:12",
			"https://m.example:5000/v2/lib/debian pull resolve mirror insecure\n" +
				"https://n.example/v2/debian pull resolve mirror digest\n" +
				"https://store.example/v2/hub/debian " + all + "\n",
		},
		"the longest prefix": {map[string]string{"registries.conf": `
[[registry]]
location = "r.example"
[[registry.mirror]]
location = "short.example"
[[registry]]
location = "r.example/team"
mirror-by-digest-only = true
[[registry.mirror]]
location = "long.example/t"
`}, "r.example/team/app:1", "https://long.example/v2/t/app pull resolve mirror digest\nhttps://r.example/v2/team/app " + all + "\n"},
		"a prefix ends at a border": {
			map[string]string{"registries.conf": "[[registry]]\nlocation = \"r.example/te\"\nblocked = true\n"},
			"r.example/team:1",
			"https://r.example/v2/team " + all + "\n",
		},
		"wildcard": {
			map[string]string{"registries.conf": "[[registry]]\nprefix = \"*.example\"\ninsecure = true\n"},
			"a.b.example/x:1",
			"https://a.b.example/v2/x " + all + " insecure\n",
		},
		"wildcard to elsewhere": {
			map[string]string{"registries.conf": "[[registry]]\nprefix = \"*.example\"\nlocation = \"to.example.org/y\"\n"},
			"a.example/x:1",
			"https://to.example.org/v2/y/x " + all + "\n",
		},
		"blocked": {map[string]string{"registries.conf": "[[registry]]\nlocation = \"bad.example\"\nblocked = true\n"}, "bad.example/x:1", "error: blocks bad.example"},
		"a drop-in replaces": {map[string]string{
			"registries.conf":                "[[registry]]\nlocation = \"r.example\"\nblocked = true\n",
			"registries.conf.d/10-ours.conf": "[[registry]]\nlocation = \"r.example\"\n",
		}, "r.example/x:1", "https://r.example/v2/x " + all + "\n"},
		"hosts.toml comes first": {map[string]string{
			"registries.conf":              "[[registry]]\nlocation = \"r.example\"\nblocked = true\n",
			"certs.d/r.example/hosts.toml": "",
		}, "r.example/x:1", "https://r.example/v2/x " + all + "\n"},

		"unknown setting":          {map[string]string{"certs.d/r.example/hosts.toml": "skip_verfy = true"}, "r.example/x:1", `error: "skip_verfy" is not known`},
		"unknown capability":       {map[string]string{"certs.d/r.example/hosts.toml": `capabilities = ["fly"]`}, "r.example/x:1", `error: "fly" is none of`},
		"no TOML":                  {map[string]string{"certs.d/r.example/hosts.toml": "[["}, "r.example/x:1", "error: is not right"},
		"no address":               {map[string]string{"certs.d/r.example/hosts.toml": `server = "ftp://x"`}, "r.example/x:1", "error: no address"},
		"a header that splits":     {map[string]string{"certs.d/r.example/hosts.toml": "[header]\nx = \"a\\r\\nb\""}, "r.example/x:1", "error: cannot be sent"},
		"version 1":                {map[string]string{"registries.conf": "[registries.search]\nregistries = [\"x\"]\n"}, "debian", "error: version 1"},
		"a helper":                 {map[string]string{"registries.conf": "credential-helpers = [\"secretservice\"]\n"}, "debian", "error: credential-helpers"},
		"both mirror settings":     {map[string]string{"registries.conf": "[[registry]]\nlocation=\"a.b\"\nmirror-by-digest-only=true\n[[registry.mirror]]\nlocation=\"c.d\"\npull-from-mirror=\"all\"\n"}, "debian", "error: both"},
		"a pattern inside":         {map[string]string{"registries.conf": "[[registry]]\nprefix=\"a.*.b\"\nlocation=\"x.y\"\n"}, "debian", "error: only *.host"},
		"a location with a scheme": {map[string]string{"registries.conf": "[[registry]]\nlocation=\"https://x.y\"\n"}, "debian", "error: is not host"},
		"nothing named":            {map[string]string{"registries.conf": "[[registry]]\ninsecure=true\n"}, "debian", "error: neither prefix nor location"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for f, text := range c.files {
				writeFile(t, filepath.Join(dir, f), text)
			}
			ref, err := reference.Parse(c.ref)
			if err != nil {
				t.Fatal(err)
			}
			got, err := NewRules(RuleFiles{
				HostsDirs: []string{dir + "/none", dir + "/certs.d"}, CertDirs: []string{dir + "/docker"},
				RegistriesConf: []string{dir + "/registries.conf"},
			}).hosts(ref, false)
			if why, bad := strings.CutPrefix(c.want, "error: "); bad {
				if err == nil || !strings.Contains(err.Error(), why) {
					t.Errorf("got %v, want an error with %q", err, why)
				}
				return
			}
			if err != nil || brief(got) != c.want {
				t.Errorf("got\n%swant\n%s%v", brief(got), c.want, err)
			}
		})
	}
}

func TestMirrors(t *testing.T) {
	var asked [3]atomic.Int32
	answers := func(n int, h http.HandlerFunc) string {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { asked[n].Add(1); h(w, r) }))
		t.Cleanup(srv.Close)
		return srv.URL
	}
	ns := ""
	down := answers(0, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	lacks := answers(1, http.NotFound)
	has := answers(2, func(w http.ResponseWriter, r *http.Request) { ns = r.URL.Query().Get("ns"); serveManifest(w, r) })
	dir := t.TempDir()
	write := func(hosts ...string) *Rules {
		text := "server = \"" + has + "\"\n"
		for _, h := range hosts {
			text += "[host.\"" + h + "\"]\n"
		}
		writeFile(t, dir+"/r.example/hosts.toml", text)
		return NewRules(RuleFiles{HostsDirs: []string{dir}})
	}
	ref, _ := reference.Parse("r.example/me/app:v1")
	o := Options{StallTimeout: 300 * time.Millisecond, Retries: 2, Rules: write(down, lacks)}
	c := New(o)
	c.base = time.Millisecond
	defer c.Close()
	desc, err := c.Resolve(bg, ref)
	if err != nil || desc.Digest != descOf(manifest).Digest || ns != "r.example" {
		t.Fatalf("got %v, %v, ns=%q", desc, err, ns)
	}
	if n := asked[0].Load(); n != 2 {
		t.Errorf("the mirror that is down was asked %d times, want 2", n)
	}
	if _, err := c.Resolve(bg, ref); err != nil || asked[0].Load() != 2 || asked[1].Load() < 2 {
		t.Errorf("%v; the mirror that is down was asked again (%d), or the one that lacks it was not (%d)", err, asked[0].Load(), asked[1].Load())
	}
	// When nobody has it, everybody's reason is told.
	o.Rules = write(lacks)
	writeFile(t, dir+"/r.example/hosts.toml", "server = \""+down+"\"\n[host.\""+lacks+"\"]\n")
	c = New(o)
	c.base = time.Millisecond
	defer c.Close()
	if _, err = c.Resolve(bg, ref); err == nil || !strings.Contains(err.Error(), "503") || !strings.Contains(err.Error(), "before that: the mirror") {
		t.Errorf("got %v", err)
	}
	// A mirror is never pushed to.
	if hosts, err := c.endpoints(ref, needPush, false); err == nil {
		t.Errorf("a push would go to %v", hosts[0].Address)
	}
}

func TestCertificates(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(serveManifest))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	srv.StartTLS()
	defer srv.Close()
	addr := strings.TrimPrefix(srv.URL, "https://")
	ref, _ := reference.Parse(addr + "/me/app:v1")
	dir := t.TempDir()
	try := func(change func(*Options)) error {
		o := Options{StallTimeout: time.Second, Retries: -1, Rules: NewRules(RuleFiles{HostsDirs: []string{dir}})}
		if change != nil {
			change(&o)
		}
		c := New(o)
		defer c.Close()
		_, err := c.Resolve(bg, ref)
		return err
	}
	if err := try(nil); !errdefs.Is(err, errdefs.Forbidden) || !strings.Contains(errdefs.FixOf(err), "/etc/onggi/certs.d/"+addr) {
		t.Errorf("a strange certificate: %v (%s)", err, errdefs.FixOf(err))
	}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	writeFile(t, filepath.Join(dir, addr, "ca.crt"), string(ca))
	if err := try(nil); err != nil {
		t.Errorf("with its authority: %v", err)
	}
	writeFile(t, filepath.Join(dir, addr, "ca.crt"), "no certificate")
	if err := try(nil); err == nil || !strings.Contains(err.Error(), "no certificate in PEM") {
		t.Errorf("an authority that is none: %v", err)
	}
	writeFile(t, filepath.Join(dir, addr, "hosts.toml"), "skip_verify = true\n")
	if err := try(nil); err != nil {
		t.Errorf("skip_verify: %v", err)
	}
	if err := try(func(o *Options) { o.Offline = true }); !errdefs.Is(err, errdefs.Unavailable) || !strings.Contains(err.Error(), "--offline") {
		t.Errorf("offline: %v", err)
	}
}

func TestInsecureMayBePlain(t *testing.T) {
	// A name that is no loopback address, and speaks no TLS.
	srv := httptest.NewServer(http.HandlerFunc(serveManifest))
	defer srv.Close()
	e := &endpoint{Host: Host{Scheme: "https", Address: strings.TrimPrefix(srv.URL, "http://"), Path: "/v2", Repository: "me/app", Insecure: true}, domain: "r.example"}
	c := New(Options{Retries: -1, StallTimeout: time.Second})
	defer c.Close()
	var err error
	if e.client, err = c.clientOf(e.Host); err != nil {
		t.Fatal(err)
	}
	ref, _ := reference.Parse("r.example/me/app:v1")
	for _, insecure := range []bool{false, true} {
		e.Insecure, e.Scheme = insecure, "https"
		r, err := c.do(bg, request{op: "try", ref: ref, method: http.MethodGet, path: "manifests/v1", at: e})
		if (err == nil) != insecure {
			t.Errorf("insecure %v: %v", insecure, err)
		}
		if err == nil {
			r.close()
		}
	}
}

func FuzzRules(f *testing.F) {
	f.Add([]byte("server = \"https://a.b\"\n[host.\"https://c.d/x\"]\ncapabilities=[\"pull\"]\nca=[\"x\"]\nclient=[[\"a\",\"b\"]]\n[host.\"https://c.d/x\".header]\nx=\"y\"\n"))
	f.Add([]byte("[[registry]]\nprefix=\"*.a.b\"\nlocation=\"c.d:5000/e\"\ninsecure=true\n[[registry.mirror]]\nlocation=\"f.g\"\npull-from-mirror=\"tag-only\"\n"))
	f.Add([]byte("[[registry]]\nlocation=\"docker.io\"\nblocked=true\n"))
	f.Add([]byte("host=1\n[host]\n"))
	refs := []string{"debian", "x.a.b/c/d:1", "localhost:5000/x@sha256:" + strings.Repeat("a", 64), "c.d/x/y"}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 64<<10 {
			return
		}
		check := func(hosts []Host) {
			for _, h := range hosts {
				if h.Address == "" || strings.ContainsAny(h.Address, "/ \r\n") || h.Scheme != "https" && h.Scheme != "http" {
					t.Errorf("%q leads to %+v", b, h)
				}
				if _, err := http.NewRequest(http.MethodGet, h.Scheme+"://"+h.Address+h.Path+"/x", nil); err != nil {
					t.Errorf("%q: %v", b, err)
				}
			}
		}
		for _, s := range refs {
			ref, err := reference.Parse(s)
			if err != nil {
				t.Fatal(err)
			}
			own := Host{Scheme: "https", Address: serverOf(ref.Domain), Path: "/v2", Repository: ref.Path}
			if hosts, err := parseHosts(b, "/dir", own); err == nil {
				check(hosts)
			}
			c := &registriesConf{byPrefix: map[string]registryEntry{}}
			if c.add(b) == nil {
				if hosts, err := c.hosts(ref, own); err == nil {
					check(hosts)
				} else if errors.As(err, new(*errdefs.Error)) && errdefs.KindOf(err) == errdefs.Unknown {
					t.Errorf("an error of no kind: %v", err)
				}
			}
		}
	})
}

func TestRedirects(t *testing.T) {
	c := New(Options{PlainHTTP: []string{"plain.example"}})
	defer c.Close()
	for _, x := range []struct {
		from, to string
		ok       bool
	}{
		{"https://r.example/v2/", "https://cdn.example/x", true},
		{"https://r.example/v2/", "http://cdn.example/x", false},
		{"https://r.example/v2/", "http://plain.example/x", false},
		{"http://plain.example/v2/", "http://plain.example/x", true},
		{"http://plain.example/v2/", "http://cdn.example/x", false},
		{"http://127.0.0.1:5000/v2/", "http://127.0.0.1:5001/x", true},
		{"https://r.example/v2/", "https://169.254.169.254/latest/meta-data", false},
		{"https://r.example/v2/", "https://[fe80::1]/x", false},
		{"https://r.example/v2/", "https://127.0.0.1:2375/x", false},
		{"https://r.example/v2/", "https://0.0.0.0/x", false},
		{"https://r.example/v2/", "https://10.1.2.3/x", true}, // a company's own storage
	} {
		first, _ := http.NewRequest(http.MethodGet, x.from, nil)
		next, _ := http.NewRequest(http.MethodGet, x.to, nil)
		if err := c.checkRedirect(next, []*http.Request{first}); (err == nil) != x.ok {
			t.Errorf("%s to %s: %v", x.from, x.to, err)
		}
	}
}
