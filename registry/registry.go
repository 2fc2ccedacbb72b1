// Package registry speaks the OCI distribution protocol (1.1): resolve, fetch, push, referrers, authenticate.
//
// It keeps nothing on disk. Which hosts serve a repository, the registry itself or mirrors of it, with which certificates
// and headers, is said by Rules, which read containerd's hosts.toml, docker's certs.d and containers' registries.conf
// into one model. Plain HTTP is used for loopback addresses and where the caller or a rule allows it; never as a
// fallback from TLS otherwise, and a redirect from TLS to plain HTTP is refused. Every body is bounded and watched: an
// answer that stalls, or moves slower than MinRate, for StallTimeout ends with an error or is asked for again.
// Redirects are bounded (10). 429 and 5xx answers are tried again with backoff, at most Retries times, for two minutes of
// waiting and 45 s of asking, within the caller's context; a blob that breaks off goes on where it stopped, and so does an upload.
//
// Authentication (RFC 7235, distribution-spec's token flow) is anonymous, basic, or by bearer token, as the registry
// asks for it; credentials come from whoever made the client (DockerCredentials and FileCredentials read docker's
// config.json, podman's auth.json and their helpers), and are asked for only when a registry asks. What a registry says
// in an error reaches the user without control characters, and short.
package registry

import (
	"context"
	"fmt"
	"mime"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/onggi/onggi/content"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// MaxManifest is the largest manifest or index that is read, in bytes (distribution-spec, "Pushing Manifests", asks
// registries for at least this limit).
const MaxManifest = 4 << 20

// The manifest types of docker's image manifest v2, beside those of image-spec.
const (
	DockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	DockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// manifestTypes are the media types that Resolve accepts, in order of preference.
var manifestTypes = []string{ocispec.MediaTypeImageIndex, DockerManifestList, ocispec.MediaTypeImageManifest, DockerManifest}

const (
	defaultStall   = 30 * time.Second
	defaultRetries = 4
	defaultMinRate = 1 << 10
	maxRedirects   = 10
)

// Options of a Client. The zero value is usable.
type Options struct {
	PlainHTTP []string // registries ("host:port") reached without TLS besides loopback ones
	UserAgent string
	// Credentials returns what to log in with at a repository ("docker.io/library/debian", "127.0.0.1:5000/app"); the
	// zero Credential means anonymous. It is called when a registry asks. nil: anonymous everywhere; see
	// DockerCredentials.
	Credentials func(ctx context.Context, repository string) (Credential, error)
	// Rules says which hosts serve a repository. nil: every registry serves itself.
	Rules *Rules
	// Offline refuses every request (Unavailable).
	Offline bool
	// StallTimeout ends a request that gets no answer, or a body that does not move, for so long. Zero: 30 s.
	StallTimeout time.Duration
	// MinRate is how many bytes per second a body has to move, measured over StallTimeout, not to count as stalled.
	// Zero: 1 KiB/s.
	MinRate int64
	// Retries after the first try. Zero: 4. Negative: none.
	Retries int
}

// Client talks to registries. It is safe for concurrent use.
type Client struct {
	o    Options
	http *http.Client
	base time.Duration // first backoff
	auth authenticator
	// identity takes the refresh token that a token server gives at a login; nil otherwise.
	identity *string

	mu sync.Mutex
	// schemes holds hosts that turned out to speak another scheme than was thought. Guarded by mu.
	schemes map[string]string
	// down holds mirrors that do not answer, and are not asked again. Guarded by mu.
	down map[string]bool
	// clients are those with certificates of their own. Guarded by mu.
	clients map[string]*http.Client
	// bodies are the last manifests that Resolve had to fetch. Guarded by mu.
	bodies []manifestBody
}

type manifestBody struct {
	repository string
	desc       ocispec.Descriptor
	body       []byte
}

// New returns a client. It opens no connection yet.
func New(o Options) *Client {
	if o.UserAgent == "" {
		o.UserAgent = "onggi"
	}
	if o.StallTimeout <= 0 {
		o.StallTimeout = defaultStall
	}
	if o.Retries == 0 {
		o.Retries = defaultRetries
	}
	if o.Credentials == nil {
		o.Credentials = func(context.Context, string) (Credential, error) { return Credential{}, nil }
	}
	if o.MinRate <= 0 {
		o.MinRate = defaultMinRate
	}
	c := &Client{o: o, base: 200 * time.Millisecond, schemes: map[string]string{}, down: map[string]bool{}, clients: map[string]*http.Client{}}
	c.http = &http.Client{
		Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            (&net.Dialer{Timeout: min(15*time.Second, o.StallTimeout)}).DialContext,
			TLSHandshakeTimeout:    min(15*time.Second, o.StallTimeout),
			ResponseHeaderTimeout:  o.StallTimeout,
			MaxResponseHeaderBytes: 256 << 10,
			MaxIdleConnsPerHost:    8,
			IdleConnTimeout:        30 * time.Second,
			ForceAttemptHTTP2:      true,
			DisableCompression:     true, // digests are of the bytes as they are sent
			ReadBufferSize:         64 << 10,
		},
		CheckRedirect: c.checkRedirect,
	}
	c.auth.init()
	return c
}

// Close drops idle connections. The client can still be used.
func (c *Client) Close() {
	c.http.CloseIdleConnections()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, cl := range c.clients {
		cl.CloseIdleConnections()
	}
}

// Resolve returns the descriptor that the reference's tag or digest names in its registry. Errors: NotFound (no such
// repository or tag), Unauthorized, Forbidden, Unavailable, Corrupt, Unsupported (an image of schema 1).
func (c *Client) Resolve(ctx context.Context, ref reference.Reference) (ocispec.Descriptor, error) {
	if ref.Digest == "" {
		// HEAD first: registries that count pulls do not count it, and an unchanged image needs no more.
		if desc, ok, err := c.head(ctx, ref); err != nil || ok {
			return desc, err
		}
	}
	desc, body, err := c.get(ctx, ref, ocispec.Descriptor{Digest: ref.Digest, Size: -1})
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	c.remember(ref, desc, body)
	return desc, nil
}

// head asks for a tag's descriptor; ok is false when the answer lacks something that a GET will tell.
func (c *Client) head(ctx context.Context, ref reference.Reference) (desc ocispec.Descriptor, ok bool, err error) {
	r, err := c.do(ctx, request{op: "resolve", ref: ref, method: http.MethodHead, path: "manifests/" + ref.Tag, accept: manifestTypes, need: needResolve})
	if err != nil {
		switch errdefs.KindOf(err) {
		case errdefs.Canceled, errdefs.DeadlineExceeded, errdefs.Unavailable:
			return desc, false, err
		}
		return desc, false, nil // an answer to HEAD has no body: GET says what is wrong
	}
	defer r.close()
	desc = ocispec.Descriptor{
		MediaType: contentType(r.Header), Size: r.ContentLength,
		Digest: digest.Digest(r.Header.Get("Docker-Content-Digest")),
	}
	if !slices.Contains(manifestTypes, desc.MediaType) || desc.Size <= 0 || desc.Size > MaxManifest || content.Check(desc.Digest) != nil {
		return desc, false, nil
	}
	return desc, true, nil
}

// Manifest fetches a manifest or index by descriptor, at most 4 MiB, verified against size and digest.
func (c *Client) Manifest(ctx context.Context, ref reference.Reference, desc ocispec.Descriptor) ([]byte, error) {
	if err := content.Check(desc.Digest); err != nil {
		return nil, err
	}
	if b := c.recall(ref, desc); b != nil {
		return b, nil
	}
	_, body, err := c.get(ctx, ref, desc)
	return body, err
}

// get fetches the manifest that desc.Digest or else the reference's tag names.
func (c *Client) get(ctx context.Context, ref reference.Reference, desc ocispec.Descriptor) (ocispec.Descriptor, []byte, error) {
	fail := func(kind errdefs.Kind, why, fix string) (ocispec.Descriptor, []byte, error) {
		return ocispec.Descriptor{}, nil, &errdefs.Error{Op: "fetch the manifest of", What: ref.Familiar(), Kind: kind, Why: why, Fix: fix}
	}
	if desc.Size > MaxManifest {
		return fail(errdefs.Exhausted, fmt.Sprintf("it has %d bytes, more than the %d that are allowed", desc.Size, MaxManifest), "")
	}
	name := string(desc.Digest)
	if name == "" {
		name = ref.Tag
	}
	q := request{
		op: "fetch the manifest of", ref: ref, method: http.MethodGet, path: "manifests/" + name,
		accept: manifestTypes, total: 2 * c.o.StallTimeout, byDigest: desc.Digest != "",
	}
	if !q.byDigest {
		q.need = needResolve
	}
	r, err := c.do(ctx, q)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	defer r.close()
	body, err := readAtMost(r.Body, MaxManifest)
	if errdefs.Is(err, errdefs.Exhausted) {
		return fail(errdefs.Exhausted, fmt.Sprintf("it has more than the %d bytes that are allowed", MaxManifest), "")
	}
	if err != nil {
		return ocispec.Descriptor{}, nil, c.networkError("fetch the manifest of", ref, r.at, err)
	}
	told := digest.Digest(r.Header.Get("Docker-Content-Digest"))
	want := desc.Digest
	if want == "" {
		want = told
	}
	if want != "" && content.Check(want) != nil {
		return fail(errdefs.Corrupt, fmt.Sprintf("the registry %s names it by the digest %q, which is malformed", ref.Domain, clean(string(told))), "")
	}
	h := content.NewHash(want)
	h.Write(body)
	got := digest.NewDigest(algorithm(want), h)
	if want != "" && got != want {
		return fail(errdefs.Corrupt, fmt.Sprintf("the registry %s sent a manifest with the digest %s instead of %s", ref.Domain, got, want),
			"try again; if it stays, the registry's data are damaged")
	}
	if told != "" && told.Algorithm() == got.Algorithm() && told != got {
		return fail(errdefs.Corrupt, fmt.Sprintf("the registry %s sent %s and calls it %s", ref.Domain, got, clean(string(told))), "")
	}
	if desc.Size >= 0 && int64(len(body)) != desc.Size {
		return fail(errdefs.Corrupt, fmt.Sprintf("the registry %s sent %d bytes instead of %d", ref.Domain, len(body), desc.Size), "")
	}
	mt := contentType(r.Header)
	if isSchema1(mt) || mt != ocispec.MediaTypeImageManifest && mt != ocispec.MediaTypeImageIndex && looksLikeSchema1(body) {
		return fail(errdefs.Unsupported, "the registry "+ref.Domain+" has it only in docker's schema 1 format, which is not signed by its digest and was given up in 2017",
			"push the image again with a current docker, podman or skopeo")
	}
	known := slices.Contains(manifestTypes, mt)
	if known && desc.MediaType != "" && desc.MediaType != mt {
		// One document that two readers take for different things (CVE-2021-41190).
		return fail(errdefs.Corrupt, fmt.Sprintf("the registry %s serves it as %s, and it is referred to as %s", ref.Domain, mt, clean(desc.MediaType)), "")
	}
	if !known {
		mt = desc.MediaType // a registry made of plain files: the document itself says what it is
	}
	return ocispec.Descriptor{MediaType: mt, Digest: got, Size: int64(len(body))}, body, nil
}

func algorithm(d digest.Digest) digest.Algorithm {
	if d == "" {
		return digest.SHA256
	}
	return d.Algorithm()
}

// remember keeps what Resolve had to fetch, so that Manifest need not fetch it again.
func (c *Client) remember(ref reference.Reference, desc ocispec.Descriptor, body []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bodies = append(c.bodies, manifestBody{ref.Repository(), desc, body})
	if len(c.bodies) > 2 {
		c.bodies = c.bodies[1:]
	}
}

func (c *Client) recall(ref reference.Reference, desc ocispec.Descriptor) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.bodies {
		if m.repository == ref.Repository() && m.desc.Digest == desc.Digest && m.desc.Size == desc.Size {
			return m.body
		}
	}
	return nil
}

func contentType(h http.Header) string {
	mt, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	if err != nil {
		return ""
	}
	return mt
}

func isSchema1(mediaType string) bool {
	return strings.HasPrefix(mediaType, "application/vnd.docker.distribution.manifest.v1+")
}

// looksLikeSchema1 finds the member that only schema 1 has.
func looksLikeSchema1(body []byte) bool {
	return strings.Contains(string(body[:min(len(body), 64<<10)]), `"fsLayers"`)
}
