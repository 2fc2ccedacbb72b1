package signature

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/reference"
	"github.com/opencontainers/go-digest"
)

// publicPEM writes a key's public half.
func publicPEM(t testing.TB, pub crypto.PublicKey) string {
	t.Helper()
	b, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: b}))
}

func parse(t testing.TB, s string) reference.Reference {
	t.Helper()
	ref, err := reference.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func ecKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestWhichRule(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "k.pub"), []byte(publicPEM(t, &ecKey(t).PublicKey)), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := Parse([]byte(`
default = "reject"
[[rule]]
match = "r.example"
require = "accept"
[[rule]]
match = "r.example/team"
require = "signed"
keys = ["k.pub"]
mode = "warn"
[[rule]]
match = "r.example/team/app"
require = "reject"
[[rule]]
match = "*.corp.example"
require = "accept"
[[rule]]
match = "docker.io/library"
require = "signed"
keys = ["k.pub"]
identity = "debian"
`), dir)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"r.example/x": "accept", "r.example/team/x:1": "signed warn", "r.example/team": "signed warn", "r.example/teams": "accept", "r.example/team/app:2": "reject",
		"a.b.corp.example:5000/x": "accept", "corp.example/x": "reject", "debian:12": "signed docker.io/library/debian", "me/x": "reject", "other.example/x": "reject",
	} {
		r := p.Rule(parse(t, name))
		got := string(r.Require)
		if r.Warn {
			got += " warn"
		}
		if r.Identity != "" && r.Identity != "repository" {
			got += " " + r.Identity
		}
		if got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	if r := (*Policy)(nil).Rule(parse(t, "debian")); r.Require != Accept {
		t.Errorf("without a policy: %v", r.Require)
	}
	if p, err := Load(filepath.Join(dir, "none")); p != nil || err != nil {
		t.Errorf("no file: %v, %v", p, err)
	}
}

func TestBadPolicies(t *testing.T) {
	dir := t.TempDir()
	short, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Skip(err)
	}
	for name, text := range map[string]string{
		"short.pub": publicPEM(t, &short.PublicKey), "private.pem": "-----BEGIN EC PRIVATE KEY-----\nAA==\n-----END EC PRIVATE KEY-----\n", "text": "text",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	rule := func(s string) string { return "[[rule]]\nmatch=\"r.example\"\n" + s }
	for text, why := range map[string]string{
		"[[":                                               "not right",
		"defualt = \"reject\"":                             "not known",
		"default = \"signed\"":                             "neither",
		rule("require=\"sinned\""):                         "none of",
		rule("require=\"signed\""):                         "no keys",
		rule("require=\"accept\"\nkeys=[\"x\"]"):           "mean nothing",
		rule("require=\"accept\"\nmode=\"sometimes\""):     "neither enforce nor warn",
		rule("require=\"signed\"\nkeys=[\"nosuch\"]"):      "no such file",
		rule("require=\"signed\"\nkeys=[\"text\"]"):        "no public key",
		rule("require=\"signed\"\nkeys=[\"private.pem\"]"): "no public key",
		rule("require=\"signed\"\nkeys=[\"short.pub\"]"):   "too short",
		rule("require=\"accept\"\n[[rule]]\nmatch=\"r.example/\"\nrequire=\"reject\""): "twice",
		"[[rule]]\nmatch=\"*\"\nrequire=\"accept\"":                                    "match is",
		"[[rule]]\nrequire=\"accept\"":                                                 "match is",
		rule("require=\"accept\"\nidentity=\"BAD NAME\""):                              "identity",
	} {
		if _, err := Parse([]byte(text), dir); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%q: %v, want %q", text, err, why)
		}
	}
	if err := os.WriteFile(dir+"/p.toml", []byte("x=1"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir + "/p.toml"); !errdefs.Is(err, errdefs.InvalidArgument) || errdefs.FixOf(err) == "" {
		t.Errorf("got %v", err)
	}
}

func TestVerify(t *testing.T) {
	ref := parse(t, "r.example/team/app:1")
	d := digest.FromString("manifest")
	text := func(name string, d digest.Digest, kind string) []byte {
		return fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},"type":%q},"optional":null}`, name, d, kind)
	}
	good := text("r.example/team/app", d, "cosign container image signature")
	ec, other := ecKey(t), ecKey(t)
	edPub, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(k crypto.Signer, b []byte) string {
		in, h := b, crypto.Hash(0)
		if _, ed := k.(ed25519.PrivateKey); !ed {
			sum := sha256.Sum256(b)
			in, h = sum[:], crypto.SHA256
		}
		sig, err := k.Sign(rand.Reader, in, h)
		if err != nil {
			t.Fatal(err)
		}
		return base64.StdEncoding.EncodeToString(sig)
	}
	rule := func(identity string, pubs ...crypto.PublicKey) Rule {
		r := Rule{Require: Signed, Identity: identity}
		for _, p := range pubs {
			k, err := LoadKey(publicPEM(t, p), "")
			if err != nil {
				t.Fatal(err)
			}
			r.Keys = append(r.Keys, k)
		}
		return r
	}
	elsewhere := text("r.example/team/other", d, "cosign container image signature")
	for name, c := range map[string]struct {
		rule Rule
		raw  []byte
		sig  string
		why  string // "" : it is right
	}{
		"ECDSA":                {rule("", &ec.PublicKey), good, sign(ec, good), ""},
		"the second key":       {rule("repository", &other.PublicKey, &ec.PublicKey), good, sign(ec, good), ""},
		"Ed25519":              {rule("", edPub), good, sign(edKey, good), ""},
		"RSA":                  {rule("", &rs.PublicKey), good, sign(rs, good), ""},
		"another key":          {rule("", &other.PublicKey), good, sign(ec, good), "none of the keys"},
		"no key":               {rule(""), good, sign(ec, good), "none of the keys"},
		"changed":              {rule("", &ec.PublicKey), append([]byte(" "), good...), sign(ec, good), "none of the keys"},
		"another image":        {rule("", &ec.PublicKey), text("r.example/team/app", digest.FromString("x"), "cosign container image signature"), "", "it is for"},
		"another name":         {rule("", &ec.PublicKey), elsewhere, sign(ec, elsewhere), "made for the name"},
		"any name":             {rule("any", &ec.PublicKey), elsewhere, sign(ec, elsewhere), ""},
		"the name of the rule": {rule("r.example/team/other", &ec.PublicKey), elsewhere, sign(ec, elsewhere), ""},
		"another kind":         {rule("", &ec.PublicKey), text("r.example/team/app", d, "something else"), "", "of the kind"},
		"no JSON":              {rule("", &ec.PublicKey), []byte("{"), "", "no JSON"},
		"no base64":            {rule("", &ec.PublicKey), good, "%%%", "not base64"},
		"no signature":         {rule("", &ec.PublicKey), good, "====", "not base64"},
		"large":                {rule("", &ec.PublicKey), make([]byte, MaxPayload+1), sign(ec, good), "more than"},
	} {
		if c.sig == "" {
			c.sig = sign(ec, c.raw)
		}
		err := c.rule.Verify(ref, d, c.raw, c.sig)
		if c.why == "" && err != nil || c.why != "" && (err == nil || !strings.Contains(err.Error(), c.why)) {
			t.Errorf("%s: %v, want %q", name, err, c.why)
		}
	}
}

func FuzzPolicy(f *testing.F) {
	k := publicPEM(f, &ecKey(f).PublicKey)
	f.Add([]byte("default=\"reject\"\n[[rule]]\nmatch=\"*.a.b\"\nrequire=\"signed\"\nkeys=['''" + k + "''']\nidentity=\"any\"\nmode=\"warn\"\n"))
	f.Add([]byte("[[rule]]\nmatch=\"a/b\"\nrequire=\"accept\"\n"))
	dir := f.TempDir()
	refs := []reference.Reference{parse(f, "debian"), parse(f, "x.a.b:5/c/d:1")}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 64<<10 {
			return
		}
		p, err := Parse(b, dir)
		if err != nil {
			return
		}
		for _, ref := range refs {
			r := p.Rule(ref)
			if r.Require != Accept && r.Require != Reject && r.Require != Signed || r.Require == Signed && len(r.Keys) == 0 {
				t.Errorf("%q gives the rule %+v", b, r)
			}
		}
	})
}
