// Package signature says which images need a signature, and whether one is right. It reads no network and no store.
//
// A policy (a TOML file) has rules, of which the one with the longest match decides for a name:
//
//	default = "accept"                     # for names that no rule matches: accept (also when it is left out) or reject
//
//	[[rule]]
//	match    = "registry.example.com/team" # a registry, a namespace or a repository; "*.example.com" for all hosts below
//	require  = "signed"                    # accept, reject or signed
//	keys     = ["team.pub"]                # of which one has signed: files beside this one, or PEM text
//	identity = "repository"                # what the signature has to name: repository (the default), any, or a name
//	mode     = "enforce"                   # enforce (the default), or warn: say what is wrong and go on
//
// Signatures are cosign's with a key (sigstore/cosign, specs/SIGNATURE_SPEC.md): a "simple signing" payload that names
// the manifest's digest, signed with ECDSA P-256 and SHA-256 (other curves of NIST, RSA and Ed25519 are read, too). Keyless
// signatures, certificates and transparency logs are not read: what has only those counts as unsigned.
package signature

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/reference"
	"github.com/opencontainers/go-digest"
)

// Bounds.
const (
	maxFile  = 1 << 20
	maxRules = 1000
	maxKeys  = 100
	// MaxPayload is the largest signed payload that is read, in bytes.
	MaxPayload = 64 << 10
)

// Requirement is what a rule asks for.
type Requirement string

// The requirements.
const (
	Accept Requirement = "accept"
	Reject Requirement = "reject"
	Signed Requirement = "signed"
)

// Policy is the rules. A nil *Policy accepts everything.
type Policy struct {
	fallback Requirement
	rules    []Rule
}

// Rule is one rule.
type Rule struct {
	Match    string // "" is the default
	Require  Requirement
	Keys     []Key
	Identity string // "repository", "any", or a repository's full name
	Warn     bool   // what is wrong is only said
}

// Key is a public key, with the name that errors call it by.
type Key struct {
	Name string
	Key  crypto.PublicKey
}

// Load reads a policy. No file is no policy: nil.
func Load(path string) (*Policy, error) {
	b, err := read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var p *Policy
	if err == nil {
		p, err = Parse(b, filepath.Dir(path))
	}
	if err != nil {
		return nil, &errdefs.Error{Op: "read the signature policy", What: path, Kind: errdefs.InvalidArgument, Err: err, Fix: "correct it; until then nothing is pulled"}
	}
	return p, nil
}

func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, maxFile+1)
	n, err := io.ReadFull(f, b)
	if err == nil {
		return nil, fmt.Errorf("it has more than %d bytes", maxFile)
	}
	if err != io.EOF && err != io.ErrUnexpectedEOF {
		return nil, err
	}
	return b[:n], nil
}

// Parse reads a policy's text. dir is where the files of keys are looked for.
func Parse(b []byte, dir string) (*Policy, error) {
	var doc struct {
		Default string `toml:"default"`
		Rule    []struct {
			Match    string   `toml:"match"`
			Require  string   `toml:"require"`
			Keys     []string `toml:"keys"`
			Identity string   `toml:"identity"`
			Mode     string   `toml:"mode"`
		} `toml:"rule"`
	}
	md, err := toml.NewDecoder(bytes.NewReader(b)).Decode(&doc)
	if err != nil {
		return nil, fmt.Errorf("it is not right: %w", err)
	}
	for _, k := range md.Undecoded() { // a misspelt rule must not look like one that holds
		return nil, fmt.Errorf("%q is not known", k.String())
	}
	p := &Policy{fallback: Requirement(doc.Default)}
	switch p.fallback {
	case "":
		p.fallback = Accept
	case Accept, Reject:
	default:
		return nil, fmt.Errorf("default %q is neither accept nor reject", doc.Default)
	}
	if len(doc.Rule) > maxRules {
		return nil, fmt.Errorf("it has more than %d rules", maxRules)
	}
	seen := map[string]bool{}
	for _, d := range doc.Rule {
		r := Rule{Match: strings.TrimSuffix(d.Match, "/"), Require: Requirement(d.Require), Identity: d.Identity, Warn: d.Mode == "warn"}
		fail := func(format string, args ...any) error {
			return fmt.Errorf("the rule for %q: %s", d.Match, fmt.Sprintf(format, args...))
		}
		switch {
		case r.Match == "" || strings.ContainsAny(strings.TrimPrefix(r.Match, "*."), "*@ ") || strings.HasPrefix(r.Match, "*.") && strings.Contains(r.Match, "/"):
			return nil, fail("match is a registry, a namespace, a repository, or *.HOST")
		case seen[r.Match]:
			return nil, fail("it comes twice")
		case d.Mode != "" && d.Mode != "enforce" && d.Mode != "warn":
			return nil, fail("mode %q is neither enforce nor warn", d.Mode)
		case r.Require != Accept && r.Require != Reject && r.Require != Signed:
			return nil, fail("require %q is none of accept, reject and signed", d.Require)
		case r.Require == Signed && len(d.Keys) == 0:
			return nil, fail("there are no keys, of which one would have to have signed")
		case r.Require != Signed && len(d.Keys) > 0:
			return nil, fail("keys without require = \"signed\" mean nothing")
		case len(d.Keys) > maxKeys:
			return nil, fail("there are more than %d keys", maxKeys)
		}
		seen[r.Match] = true
		switch r.Identity {
		case "":
			r.Identity = "repository"
		case "repository", "any":
		default:
			ref, err := reference.Parse(r.Identity)
			if err != nil {
				return nil, fail("identity is none of repository, any, and a name: %v", err)
			}
			r.Identity = ref.Repository()
		}
		for _, k := range d.Keys {
			key, err := LoadKey(k, dir)
			if err != nil {
				return nil, fail("%v", err)
			}
			r.Keys = append(r.Keys, key)
		}
		p.rules = append(p.rules, r)
	}
	return p, nil
}

// LoadKey reads a public key: PEM text, or a file in dir that holds it.
func LoadKey(s, dir string) (Key, error) {
	k := Key{Name: "the key in the policy"}
	text := []byte(s)
	if !strings.Contains(s, "-----BEGIN") {
		if !filepath.IsAbs(s) {
			s = filepath.Join(dir, s)
		}
		var err error
		if text, err = read(s); err != nil {
			return k, fmt.Errorf("the key %w", err)
		}
		k.Name = s
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "PUBLIC KEY" {
		return k, fmt.Errorf("%s holds no public key in PEM", k.Name)
	}
	pub, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return k, fmt.Errorf("%s: %w", k.Name, err)
	}
	switch x := pub.(type) {
	case *ecdsa.PublicKey, ed25519.PublicKey:
	case *rsa.PublicKey:
		if x.N.BitLen() < 2048 {
			return k, fmt.Errorf("%s: an RSA key of %d bits is too short", k.Name, x.N.BitLen())
		}
	default:
		return k, fmt.Errorf("%s: a key of type %T is not read", k.Name, pub)
	}
	k.Key = pub
	return k, nil
}

// Rule returns the rule for a name.
func (p *Policy) Rule(ref reference.Reference) Rule {
	if p == nil {
		return Rule{Require: Accept}
	}
	best := Rule{Require: p.fallback}
	reach := 0
	name := ref.Repository()
	for _, r := range p.rules {
		n := 0
		if rest, wild := strings.CutPrefix(r.Match, "*"); wild {
			host, _, _ := strings.Cut(ref.Domain, ":")
			if strings.HasSuffix(host, rest) {
				n = len(rest) // less than the host itself
			}
		} else if name == r.Match || strings.HasPrefix(name, r.Match+"/") {
			n = len(r.Match)
		}
		if n > reach {
			best, reach = r, n
		}
	}
	return best
}

// payload is what cosign signs, in the form of "simple signing" (containers-signature(5)).
type payload struct {
	Critical struct {
		Identity struct {
			Reference string `json:"docker-reference"`
		} `json:"identity"`
		Image struct {
			Digest digest.Digest `json:"docker-manifest-digest"`
		} `json:"image"`
		Type string `json:"type"`
	} `json:"critical"`
}

// Verify says why a signature does not satisfy the rule, or nil: that one of the keys made it of these bytes, and that the
// bytes name this digest and, as far as the rule wants that, this repository. signature is in base64.
func (r Rule) Verify(ref reference.Reference, d digest.Digest, raw []byte, signature string) error {
	if len(raw) > MaxPayload {
		return fmt.Errorf("its payload has %d bytes, more than %d", len(raw), MaxPayload)
	}
	sig, err := base64.StdEncoding.DecodeString(signature)
	if err != nil || len(sig) == 0 || len(sig) > 4096 {
		return errors.New("the signature is not base64")
	}
	ok := false
	for _, k := range r.Keys {
		if ok = k.verify(raw, sig); ok {
			break
		}
	}
	if !ok {
		return errors.New("none of the keys made it")
	}
	// Only now is it worth reading.
	var p payload
	if err := json.Unmarshal(raw, &p); err != nil {
		return errors.New("its payload is no JSON")
	}
	switch p.Critical.Type {
	case "cosign container image signature", "atomic container signature":
	default:
		return fmt.Errorf("it is a signature of the kind %.60q", p.Critical.Type)
	}
	if p.Critical.Image.Digest != d {
		return fmt.Errorf("it is for %.80q", string(p.Critical.Image.Digest))
	}
	want := r.Identity
	if want == "any" {
		return nil
	}
	if want == "" || want == "repository" {
		want = ref.Repository()
	}
	got, err := reference.Parse(p.Critical.Identity.Reference)
	if err != nil || got.Repository() != want {
		return fmt.Errorf("it was made for the name %.100q, and %s is wanted", p.Critical.Identity.Reference, want)
	}
	return nil
}

func (k Key) verify(raw, sig []byte) bool {
	switch pub := k.Key.(type) {
	case *ecdsa.PublicKey:
		sum := sha256.Sum256(raw)
		return ecdsa.VerifyASN1(pub, sum[:], sig)
	case ed25519.PublicKey:
		return ed25519.Verify(pub, raw, sig)
	case *rsa.PublicKey:
		s256, s512 := sha256.Sum256(raw), sha512.Sum512(raw)
		return rsa.VerifyPKCS1v15(pub, crypto.SHA256, s256[:], sig) == nil || rsa.VerifyPKCS1v15(pub, crypto.SHA512, s512[:], sig) == nil
	}
	return false
}
