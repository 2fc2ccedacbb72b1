package image

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"

	"cuelabs.dev/go/oci/ociregistry/ocimem"
	"cuelabs.dev/go/oci/ociregistry/ociserver"
	"github.com/onggi/onggi/registry"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestAgainstARegistryOfSpec11 goes through distribution-spec 1.1's scenario as a client, with another implementation of it
// than docker's: push (in one piece, in chunks, by mount), pull, content discovery by referrers.
func TestAgainstARegistryOfSpec11(t *testing.T) {
	for name, o := range map[string]*ociserver.Options{
		"all of it": {}, "no single POST": {DisableSinglePostUpload: true}, "no filter": {DisableReferrersFiltering: true}, "no referrers": {DisableReferrersAPI: true},
	} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			var seen []string
			h := ociserver.New(ocimem.New(), o)
			addr := listen(t, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				seen = append(seen, r.Method+" "+r.URL.String())
				mu.Unlock()
				if o.DisableReferrersAPI {
					w = withoutSubject{w} // it would say that it knows referrers
				}
				h.ServeHTTP(w, r)
			})})
			did := func(what string) int {
				mu.Lock()
				defer mu.Unlock()
				return strings.Count(strings.Join(seen, "\n"), what)
			}

			noise := make([]byte, 20<<20)
			r := rand.New(rand.NewPCG(1, 2))
			for i := range noise {
				noise[i] = byte(r.Uint32())
			}
			i := imageOf("amd64", layerOf(ocispec.MediaTypeImageLayer, file{"big", string(noise)}), layerOf(ocispec.MediaTypeImageLayerZstd, file{"etc/hostname", "jar"}))
			s := root(t)
			must(t, load(t, s, ociArchive(i.documents, called(i.desc, "app:1"))))
			plain := func(o *PushOptions) { o.Compression.Name = "none" }
			res, _, err := push(t, s, "app:1", addr+"/me/app:1", plain)
			must(t, err)
			if res.Desc.Digest != i.desc.Digest || did("PATCH") < 2 || did("PUT") < 4 {
				t.Errorf("pushed %s, with %q", res.Desc.Digest, seen)
			}
			_, said, err := push(t, s, "app:1", addr+"/other/app:1", plain)
			if err != nil || strings.Count(said, "Mounted from me/app") != 2 || did("mount=") != 2 {
				t.Errorf("mounting: %v, %q", err, said)
			}
			ref := parseRef(t, addr+"/me/app:1")
			other := root(t)
			img, err := pull(t, other, ref)
			if err != nil || img.ID != i.id || read(t, other, img, "etc/hostname") != "jar" {
				t.Fatalf("pulled %v, %v", img, err)
			}

			c := anonymous(patient)
			defer c.Close()
			put := func(kind string, subject ocispec.Descriptor) ocispec.Descriptor {
				t.Helper()
				b := fmt.Appendf(nil, "%s of %s", kind, subject.Digest)
				blob := ocispec.Descriptor{MediaType: kind, Digest: digest.FromBytes(b), Size: int64(len(b))}
				empty := ocispec.DescriptorEmptyJSON
				empty.Data = nil
				for _, x := range []smallBlob{{blob, b}, {empty, []byte("{}")}} {
					_, _, err := c.PushBlob(bg, ref, x.desc, bytes.NewReader(x.b), registry.PushOptions{})
					must(t, err)
				}
				raw, err := json.Marshal(ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: kind, Config: empty, Layers: []ocispec.Descriptor{blob}, Subject: &subject})
				must(t, err)
				m := memory(ocispec.MediaTypeImageManifest, raw)
				must(t, c.PushManifest(bg, ref, m.desc, raw, ""))
				return m.desc
			}
			sbom := put("text/sbom", i.desc)
			put("text/signature", i.desc)
			put("text/signature", sbom) // a referrer's referrer
			for kind, want := range map[string]int{"": 2, "text/sbom": 1, "text/none": 0} {
				if list, err := RemoteReferrers(bg, c, ref, i.desc.Digest, kind); err != nil || len(list) != want {
					t.Errorf("referrers of type %q: %v, %v; want %d", kind, list, err, want)
				}
			}
			if n := did("PUT /v2/me/app/manifests/" + registry.ReferrersTag(i.desc.Digest)); (n > 0) != o.DisableReferrersAPI {
				t.Errorf("the tag schema was written %d times", n)
			}
			// All three go along, to a registry of the other kind and back.
			_, err = pull(t, other, ref, func(o *PullOptions) { o.Referrers = true })
			must(t, err)
			second := realRegistry(t, "")
			res, _, err = push(t, other, ref.String(), second+"/x/app:1", func(o *PushOptions) { o.Referrers, o.Compression.Name = true, "none" })
			if err != nil || res.Referrers != 3 {
				t.Errorf("pushed %+v, %v; want three referrers", res, err)
			}
			// A signature that is a referrer.
			us := newSigner(t)
			us.sign(t, ref, i.desc, ref.Repository(), true)
			if _, err := pull(t, root(t), ref, func(o *PullOptions) { o.Policy = us.policy(t, addr, "") }); err != nil {
				t.Errorf("signed by a referrer: %v", err)
			}
		})
	}
}

type withoutSubject struct{ http.ResponseWriter }

func (w withoutSubject) WriteHeader(code int) {
	w.Header().Del("OCI-Subject")
	w.ResponseWriter.WriteHeader(code)
}
