package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/onggi/onggi/content"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	maxReferrers = 5000
	maxPages     = 100
)

// ReferrersTag is the tag under which a registry without the referrers API keeps the list of what refers to d
// (distribution-spec, "Referrers Tag Schema").
func ReferrersTag(d digest.Digest) string {
	alg, hex, _ := strings.Cut(string(d), ":")
	return alg[:min(len(alg), 32)] + "-" + hex[:min(len(hex), 64)]
}

// Referrers lists the manifests of the repository that refer to d (signatures, SBOMs), of one artifact type or, with
// "", of all. A registry without the API is asked for the tag of the tag schema. None is no error.
func (c *Client) Referrers(ctx context.Context, ref reference.Reference, d digest.Digest, artifactType string) ([]ocispec.Descriptor, error) {
	if err := content.Check(d); err != nil {
		return nil, err
	}
	list, err := c.referrersAPI(ctx, ref, d, artifactType)
	if errors.Is(err, errNoReferrers) {
		list, err = c.referrersTag(ctx, ref, d)
	}
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(list, func(x ocispec.Descriptor) bool { return artifactType != "" && x.ArtifactType != artifactType }), nil
}

func (c *Client) referrersAPI(ctx context.Context, ref reference.Reference, d digest.Digest, artifactType string) ([]ocispec.Descriptor, error) {
	q := request{
		op: "list the referrers of", ref: ref, method: http.MethodGet, path: "referrers/" + string(d), accept: []string{ocispec.MediaTypeImageIndex},
		byDigest: true, also: http.StatusNotFound, total: 2 * c.o.StallTimeout,
	}
	if artifactType != "" {
		q.query = url.Values{"artifactType": {artifactType}}.Encode()
	}
	var all []ocispec.Descriptor
	for range maxPages {
		r, err := c.do(ctx, q)
		if err != nil {
			if errdefs.Is(err, errdefs.Unsupported) { // 400, 405, 501: it does not know the question
				return nil, errNoReferrers
			}
			return nil, err
		}
		if r.StatusCode == http.StatusNotFound || contentType(r.Header) != ocispec.MediaTypeImageIndex {
			r.close()
			return nil, errNoReferrers
		}
		body, err := readAtMost(r.Body, MaxManifest)
		r.close()
		if err != nil {
			return nil, c.networkError(q.op, ref, r.at, err)
		}
		page, err := parseReferrers(ref, body)
		if err != nil {
			return nil, err
		}
		if all = append(all, page...); len(all) > maxReferrers {
			return nil, &errdefs.Error{Op: q.op, What: ref.Familiar(), Kind: errdefs.Exhausted, Why: fmt.Sprintf("there are more than %d", maxReferrers)}
		}
		next := nextPage(r.Header.Get("Link"))
		if next == "" {
			return all, nil
		}
		u, err := r.Request.URL.Parse(next)
		if err != nil || u.Host != r.Request.URL.Host || u.Scheme != r.Request.URL.Scheme {
			return nil, &errdefs.Error{Op: q.op, What: ref.Familiar(), Kind: errdefs.Corrupt, Why: "the list goes on at " + clean(next) + ", which is another host"}
		}
		q.url, q.at = u, r.at
	}
	return nil, &errdefs.Error{Op: q.op, What: ref.Familiar(), Kind: errdefs.Corrupt, Why: fmt.Sprintf("the list has more than %d pages", maxPages)}
}

// nextPage reads a Link header (RFC 8288) with rel="next".
func nextPage(h string) string {
	for _, l := range strings.Split(h, ",") {
		target, params, ok := strings.Cut(l, ">")
		target, found := strings.CutPrefix(strings.TrimSpace(target), "<")
		if ok && found && strings.Contains(strings.ReplaceAll(params, `"`, ""), "rel=next") {
			return target
		}
	}
	return ""
}

func parseReferrers(ref reference.Reference, body []byte) ([]ocispec.Descriptor, error) {
	var idx ocispec.Index
	fail := func(why string) ([]ocispec.Descriptor, error) {
		return nil, &errdefs.Error{Op: "list the referrers of", What: ref.Familiar(), Kind: errdefs.Corrupt, Why: why}
	}
	if err := json.Unmarshal(body, &idx); err != nil {
		return fail("the list is no index")
	}
	for _, d := range idx.Manifests {
		if content.Check(d.Digest) != nil || d.Size < 0 {
			return fail("the list holds a malformed digest or size")
		}
	}
	return idx.Manifests, nil
}

func (c *Client) referrersTag(ctx context.Context, ref reference.Reference, d digest.Digest) ([]ocispec.Descriptor, error) {
	tagged := ref
	tagged.Digest, tagged.Tag = "", ReferrersTag(d)
	desc, body, err := c.get(ctx, tagged, ocispec.Descriptor{Size: -1})
	if errdefs.Is(err, errdefs.NotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if desc.MediaType != ocispec.MediaTypeImageIndex {
		return nil, nil // somebody's tag that happens to look like it
	}
	return parseReferrers(ref, body)
}

// subjectOf returns what a manifest refers to, and the manifest's descriptor in a list of referrers.
func subjectOf(desc ocispec.Descriptor, body []byte) (digest.Digest, ocispec.Descriptor) {
	var m struct {
		Subject      *ocispec.Descriptor `json:"subject"`
		ArtifactType string              `json:"artifactType"`
		Config       struct {
			MediaType string `json:"mediaType"`
		} `json:"config"`
		Annotations map[string]string `json:"annotations"`
	}
	if json.Unmarshal(body, &m) != nil || m.Subject == nil || content.Check(m.Subject.Digest) != nil {
		return "", desc
	}
	out := ocispec.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: int64(len(body)), ArtifactType: m.ArtifactType, Annotations: m.Annotations}
	if out.ArtifactType == "" {
		out.ArtifactType = m.Config.MediaType
	}
	return m.Subject.Digest, out
}

// addReferrer puts a referrer into the list under the tag of the tag schema. The list is read and written again: of two
// clients that do so at once one may be lost, which the specification accepts.
func (c *Client) addReferrer(ctx context.Context, ref reference.Reference, subject digest.Digest, d ocispec.Descriptor) error {
	if list, err := c.referrersAPI(ctx, ref, subject, ""); err == nil {
		if slices.ContainsFunc(list, func(x ocispec.Descriptor) bool { return x.Digest == d.Digest }) {
			return nil // it knows referrers, and forgot to say so
		}
	}
	list, err := c.referrersTag(ctx, ref, subject)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(list, func(x ocispec.Descriptor) bool { return x.Digest == d.Digest }) {
		return nil
	}
	body, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: append(list, d)})
	if err != nil {
		return err
	}
	r, err := c.putManifest(ctx, ref, ReferrersTag(subject), ocispec.MediaTypeImageIndex, body)
	if err != nil {
		return err
	}
	r.close()
	return nil
}
