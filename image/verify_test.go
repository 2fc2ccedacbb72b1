package image

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"path"
	"strings"
	"testing"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/reference"
	"github.com/onggi/onggi/registry"
	"github.com/onggi/onggi/signature"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// signer signs as cosign sign --key does.
type signer struct {
	key *ecdsa.PrivateKey
	pem string
	// as cosign without a key: with a certificate, or as a bundle of Sigstore's
	keyless, bundle bool
}

func newSigner(t testing.TB) *signer {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	b, err := x509.MarshalPKIXPublicKey(&k.PublicKey)
	must(t, err)
	return &signer{key: k, pem: string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: b}))}
}

// sign puts a signature of d, made for name, into ref's repository: under cosign's tag, or as a referrer.
func (s *signer) sign(t testing.TB, ref reference.Reference, d ocispec.Descriptor, name string, referrer bool) {
	t.Helper()
	c := anonymous(patient)
	defer c.Close()
	payload := fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},"type":"cosign container image signature"},"optional":null}`, name, d.Digest)
	sum := sha256.Sum256(payload)
	sig, err := ecdsa.SignASN1(rand.Reader, s.key, sum[:])
	must(t, err)
	layer := ocispec.Descriptor{MediaType: cosignPayload, Digest: digest.FromBytes(payload), Size: int64(len(payload)), Annotations: map[string]string{cosignSignature: base64.StdEncoding.EncodeToString(sig)}}
	if s.keyless {
		layer.Annotations[cosignCertificate] = "-----BEGIN CERTIFICATE-----"
	}
	cfg := memory(ocispec.MediaTypeImageConfig, []byte(`{"architecture":"","os":"","config":{},"rootfs":{"type":"layers","diff_ids":[]}}`))
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: cfg.desc, Layers: []ocispec.Descriptor{layer}}
	tag := registry.ReferrersTag(d.Digest) + ".sig"
	if referrer {
		m.Subject, m.ArtifactType, tag = &d, cosignReferrer, ""
	}
	if s.bundle {
		m.Subject, m.ArtifactType, tag = &d, sigstoreBundle+".v0.3+json", ""
	}
	raw, err := json.Marshal(m)
	must(t, err)
	for _, x := range []smallBlob{cfg, {layer, payload}} {
		_, _, err := c.PushBlob(bg, ref, x.desc, bytes.NewReader(x.b), registry.PushOptions{})
		must(t, err)
	}
	must(t, c.PushManifest(bg, ref, memory(ocispec.MediaTypeImageManifest, raw).desc, raw, tag))
}

func (s *signer) policy(t testing.TB, domain, more string) *signature.Policy {
	t.Helper()
	p, err := signature.Parse(fmt.Appendf(nil, "[[rule]]\nmatch = %q\nrequire = \"signed\"\nkeys = ['''%s''']\n%s", domain, s.pem, more), t.TempDir())
	must(t, err)
	return p
}

func TestSignaturesAreWantedBeforeAnythingIsUnpacked(t *testing.T) {
	w := watchRegistry(t, realRegistry(t, ""))
	from := root(t)
	us, them := newSigner(t), newSigner(t)
	amd, arm := twoLayers("amd64"), twoLayers("arm64")
	idx, idxDesc := indexOf(amd, arm)
	docs := map[digest.Digest][]byte{idxDesc.Digest: idx}
	for _, i := range []*testImage{amd, arm} {
		for d, b := range i.documents {
			docs[d] = b
		}
	}
	must(t, load(t, from, ociArchive(docs, called(idxDesc, "app:1"))))
	for name, c := range map[string]struct {
		sign func(ref reference.Reference)
		more string // of the rule
		kind errdefs.Kind
		why  string
	}{
		"unsigned":         {func(reference.Reference) {}, "", errdefs.Forbidden, "no signature"},
		"signed":           {func(r reference.Reference) { us.sign(t, r, idxDesc, r.Repository(), false) }, "", 0, ""},
		"a referrer":       {func(r reference.Reference) { us.sign(t, r, idxDesc, r.Repository(), true) }, "", 0, ""},
		"the platform's":   {func(r reference.Reference) { us.sign(t, r, amd.desc, r.Repository(), false) }, "", 0, ""},
		"another platform": {func(r reference.Reference) { us.sign(t, r, arm.desc, r.Repository(), false) }, "", errdefs.Forbidden, "no signature"},
		"by others":        {func(r reference.Reference) { them.sign(t, r, idxDesc, r.Repository(), false) }, "", errdefs.Forbidden, "none of the keys"},
		"by both": {func(r reference.Reference) {
			them.sign(t, r, idxDesc, r.Repository(), true)
			us.sign(t, r, idxDesc, r.Repository(), false)
		}, "", 0, ""},
		"keyless": {func(r reference.Reference) {
			(&signer{key: them.key, keyless: true}).sign(t, r, idxDesc, r.Repository(), false)
		}, "", errdefs.Forbidden, "it is keyless"},
		"a bundle": {func(r reference.Reference) {
			(&signer{key: us.key, bundle: true}).sign(t, r, idxDesc, r.Repository(), false)
		}, "", errdefs.Forbidden, "a bundle of Sigstore's"},
		"for another name":        {func(r reference.Reference) { us.sign(t, r, idxDesc, "r.example/x", false) }, "", errdefs.Forbidden, "made for the name"},
		"for another name is all": {func(r reference.Reference) { us.sign(t, r, idxDesc, "r.example/x", false) }, "identity = \"any\"\n", 0, ""},
		"unsigned, and warned":    {func(reference.Reference) {}, "mode = \"warn\"\n", 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			ref := parseRef(t, w.addr+"/"+strings.NewReplacer(" ", "-", ",", "", "'", "").Replace(name)+"/app:1")
			_, _, err := push(t, from, "app:1", ref.String())
			must(t, err)
			c.sign(ref)
			s := root(t)
			policy := us.policy(t, w.addr, c.more)
			w.reset()
			var warned []string
			img, err := pull(t, s, ref, func(o *PullOptions) { o.Policy, o.Warn = policy, func(s string) { warned = append(warned, s) } })
			if c.kind != 0 {
				if !errdefs.Is(err, c.kind) || !strings.Contains(err.Error(), c.why) || !strings.Contains(errdefs.FixOf(err), "policy") {
					t.Errorf("got %v (fix %q), want %q", err, errdefs.FixOf(err), c.why)
				}
				wantNothing(t, s)
				for _, q := range w.reset() {
					for _, l := range amd.layers {
						if strings.HasPrefix(q, "GET") && strings.Contains(q, path.Base(string(l.desc.Digest))) {
							t.Errorf("a layer was fetched before the signature was known: %s", q)
						}
					}
				}
				// What is here already is no way around it.
				if _, err := pull(t, s, ref); err != nil {
					t.Fatal(err)
				}
				if _, err := pull(t, s, ref, func(o *PullOptions) { o.Policy = policy }); !errdefs.Is(err, c.kind) {
					t.Errorf("with the image here: %v", err)
				}
				return
			}
			if err != nil || img.ID != amd.id || (len(warned) > 0) != strings.Contains(c.more, "warn") {
				t.Errorf("%v, %v, warned %q", img, err, warned)
			}
		})
	}
	p, err := signature.Parse([]byte("default = \"reject\"\n"), "")
	must(t, err)
	w.reset()
	if _, err := pull(t, root(t), parseRef(t, w.addr+"/signed/app:1"), func(o *PullOptions) { o.Policy = p }); !errdefs.Is(err, errdefs.Forbidden) || len(w.reset()) != 0 {
		t.Errorf("rejected: %v", err)
	}
}

// TestSignaturesOfARegistryThatLies serves other bytes than the digests say, and more than anybody wants.
func TestSignaturesOfARegistryThatLies(t *testing.T) {
	w := watchRegistry(t, realRegistry(t, ""))
	from, us := root(t), newSigner(t)
	i := twoLayers("amd64")
	must(t, load(t, from, ociArchive(i.documents, called(i.desc, "app:1"))))
	ref := parseRef(t, w.addr+"/me/app:1")
	_, _, err := push(t, from, "app:1", ref.String())
	must(t, err)
	us.sign(t, ref, i.desc, ref.Repository(), false)
	policy := us.policy(t, w.addr, "")
	for name, c := range map[string]struct {
		spoil func(rw http.ResponseWriter, r *http.Request) bool
		kind  errdefs.Kind
	}{
		"another payload": {func(rw http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
				return false
			}
			_, _ = rw.Write([]byte("{}"))
			return true
		}, errdefs.Corrupt},
		"the signatures' place answers 500": {func(rw http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, ".sig") {
				return false
			}
			rw.WriteHeader(http.StatusInternalServerError)
			return true
		}, errdefs.Unavailable},
		"hides the signatures": {func(rw http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, ".sig") {
				return false
			}
			http.NotFound(rw, r)
			return true
		}, errdefs.Forbidden},
	} {
		w.mu.Lock()
		w.spoil = c.spoil
		w.mu.Unlock()
		s := root(t)
		if _, err := pull(t, s, ref, func(o *PullOptions) { o.Policy = policy }); !errdefs.Is(err, c.kind) {
			t.Errorf("%s: %v (%v), want %v", name, err, errdefs.KindOf(err), c.kind)
		}
		wantNothing(t, s)
	}
}
