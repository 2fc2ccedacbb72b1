package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/onggi/onggi/content"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// maxMonolithic is the largest blob that is sent with one PUT; it is sent anew when the connection breaks.
	maxMonolithic = 1 << 20
	// defaultChunk is what one PATCH sends at most. A chunk that breaks off goes on where the registry says it stopped;
	// docker's own registry (2.8) forgets an upload of which half a chunk arrived, and keeps what whole chunks brought.
	defaultChunk = 16 << 20
)

// Outcome says what became of a blob that was pushed.
type Outcome int

// The outcomes of PushBlob.
const (
	Pushed  Outcome = iota // sent
	Existed                // the repository had it
	Mounted                // the registry took it over from another of its repositories
)

// PushOptions of PushBlob.
type PushOptions struct {
	// From are repositories of the same registry ("team/base") that may have the blob, the likeliest first: the registry
	// is asked to take it from that one.
	From []string
	// Progress is called with how many bytes the registry has; may be nil.
	Progress func(int64)
	// Missing says that the repository was asked already, and lacks the blob.
	Missing bool
}

// HasBlob reports whether the repository has the blob, with desc's size.
func (c *Client) HasBlob(ctx context.Context, ref reference.Reference, desc ocispec.Descriptor) (bool, error) {
	if err := content.Check(desc.Digest); err != nil {
		return false, err
	}
	r, err := c.do(ctx, request{
		op: "push to", ref: ref, method: http.MethodHead, path: "blobs/" + string(desc.Digest),
		need: needPush, byDigest: true, also: http.StatusNotFound,
	})
	if err != nil {
		return false, err
	}
	defer r.close()
	// Another size under the same digest cannot be; a registry that does not tell it is believed.
	return r.StatusCode == http.StatusOK && (r.ContentLength < 0 || desc.Size < 0 || r.ContentLength == desc.Size), nil
}

// HasManifest reports whether the repository has the manifest or index of that digest, under the reference's tag when
// it has one and byTag is set.
func (c *Client) HasManifest(ctx context.Context, ref reference.Reference, d digest.Digest, byTag bool) (bool, error) {
	name := string(d)
	if byTag {
		name = ref.Tag
	}
	r, err := c.do(ctx, request{
		op: "push to", ref: ref, method: http.MethodHead, path: "manifests/" + name, accept: manifestTypes,
		need: needPush, byDigest: !byTag, also: http.StatusNotFound,
	})
	if err != nil {
		return false, err
	}
	defer r.close()
	told := digest.Digest(r.Header.Get("Docker-Content-Digest"))
	return r.StatusCode == http.StatusOK && (told == d || told == "" && !byTag), nil
}

// PushBlob brings the blob into the repository unless it is there: taken over from another repository of the registry
// if possible, else sent, in chunks; a transfer that breaks off goes on where it stopped. body is read from where it is
// needed, also again. Errors: Unauthorized, Forbidden, Unavailable, Corrupt (the registry computes another digest).
func (c *Client) PushBlob(ctx context.Context, ref reference.Reference, desc ocispec.Descriptor, body io.ReaderAt, o PushOptions) (Outcome, string, error) {
	if !o.Missing {
		if has, err := c.HasBlob(ctx, ref, desc); err != nil || has {
			return Existed, "", err
		}
	}
	u := &upload{c: c, ctx: ctx, ref: ref, desc: desc, body: body, progress: o.Progress}
	if u.progress == nil {
		u.progress = func(int64) {}
	}
	if len(o.From) > 0 { // the answer opens an upload: asking for another repository, too, would leave it behind
		done, err := u.start(o.From[0])
		if err != nil {
			return Pushed, "", err
		}
		if done {
			return Mounted, o.From[0], nil
		}
	}
	return Pushed, "", u.send()
}

// upload is a blob on its way to a registry.
type upload struct {
	c        *Client
	ctx      context.Context
	ref      reference.Reference
	desc     ocispec.Descriptor
	body     io.ReaderAt
	progress func(int64)

	at    *endpoint
	where *url.URL // the upload's address, changed by each answer; nil: none is open
	chunk int64
	off   int64 // of the next byte the registry wants
	tries int   // without progress
}

// start opens an upload, or has the blob taken over from another repository: done.
func (u *upload) start(from string) (done bool, err error) {
	q := request{op: "push to", ref: u.ref, method: http.MethodPost, path: "blobs/uploads/", need: needPush, at: u.at}
	if from != "" {
		q.query = url.Values{"mount": {string(u.desc.Digest)}, "from": {from}}.Encode()
		q.scopes = []string{"repository:" + from + ":pull"}
	}
	r, err := u.c.do(u.ctx, q)
	if err != nil {
		if from != "" && (errdefs.Is(err, errdefs.Forbidden) || errdefs.Is(err, errdefs.Unauthorized) || errdefs.Is(err, errdefs.NotFound) || errdefs.Is(err, errdefs.Unsupported)) {
			return false, nil // it may not be read from there; then it is sent
		}
		return false, err
	}
	defer r.close()
	u.at = r.at
	if r.StatusCode == http.StatusCreated {
		return true, nil
	}
	u.chunk = defaultChunk
	if n, err := strconv.ParseInt(r.Header.Get("OCI-Chunk-Min-Length"), 10, 64); err == nil && n > u.chunk {
		u.chunk = n
	}
	u.off = 0
	return false, u.follow(r)
}

// follow takes the upload's next address from an answer.
func (u *upload) follow(r *response) error {
	l := r.Header.Get("Location")
	next, err := r.Request.URL.Parse(l)
	if l == "" || err != nil || next.Host == "" || next.User != nil {
		return u.corrupt(fmt.Sprintf("names the upload's address %q, which is none", clean(l)))
	}
	if next.Scheme == "http" && r.Request.URL.Scheme == "https" && next.Hostname() == r.Request.URL.Hostname() {
		next.Scheme = "https" // a registry behind a proxy that does not know it is spoken to by TLS
		next.Host = r.Request.URL.Host
	}
	if next.Scheme != "https" && !(next.Scheme == "http" && u.at.Scheme == "http" && (next.Host == u.at.Address || u.c.plainHTTP(next.Host))) {
		return u.corrupt(fmt.Sprintf("wants the upload sent without TLS, to %q", clean(next.Host)))
	}
	u.where = next
	return nil
}

func (u *upload) corrupt(why string) error {
	return &errdefs.Error{Op: "push the blob", What: string(u.desc.Digest) + " of " + u.ref.Familiar(), Kind: errdefs.Corrupt, Why: u.at.name() + " " + why}
}

// send uploads what the registry does not have, until it has confirmed the digest.
func (u *upload) send() error {
	for {
		err := u.step()
		if err == nil && u.off < 0 {
			u.progress(u.desc.Size)
			return nil
		}
		if err == nil {
			continue
		}
		if u.ctx.Err() != nil || !transient(err) {
			return err
		}
		if u.tries >= u.c.o.Retries {
			return err
		}
		if err := sleep(u.ctx, u.c.backoff(u.tries)); err != nil {
			return &errdefs.Error{Op: "push to", What: u.ref.Familiar(), Kind: errdefs.KindOf(err), Err: err}
		}
		u.tries++
		if err := u.ask(); err != nil {
			return err
		}
	}
}

// step opens the upload, sends one chunk, or closes the upload; off is -1 when the registry has the blob.
func (u *upload) step() error {
	if u.where == nil {
		done, err := u.start("")
		if done {
			u.off = -1
		}
		return err
	}
	if u.off == u.desc.Size || u.off == 0 && u.desc.Size <= maxMonolithic {
		return u.finish()
	}
	n := min(u.chunk, u.desc.Size-u.off)
	r, err := u.do(http.MethodPatch, u.where, u.off, n, http.Header{
		"Content-Type":  {"application/octet-stream"},
		"Content-Range": {fmt.Sprintf("%d-%d", u.off, u.off+n-1)},
	})
	if err != nil {
		return err
	}
	defer r.close()
	if err := u.follow(r); err != nil {
		return err
	}
	end, ok := parseRange(r.Header.Get("Range"))
	if !ok {
		end = u.off + n // it does not say; then it is as was asked
	}
	if end <= u.off || end > u.off+n {
		return u.corrupt(fmt.Sprintf("says it has %d bytes after it was sent those from %d to %d", end, u.off, u.off+n))
	}
	u.off, u.tries = end, 0
	u.progress(u.off)
	return nil
}

// finish sends what is left with the digest, which closes the upload.
func (u *upload) finish() error {
	address := *u.where
	v := address.Query()
	v.Set("digest", string(u.desc.Digest))
	address.RawQuery = v.Encode()
	var h http.Header
	if n := u.desc.Size - u.off; n > 0 {
		h = http.Header{"Content-Type": {"application/octet-stream"}}
		if u.off > 0 {
			h.Set("Content-Range", fmt.Sprintf("%d-%d", u.off, u.desc.Size-1))
		}
	}
	r, err := u.do(http.MethodPut, &address, u.off, u.desc.Size-u.off, h)
	if err != nil {
		return err
	}
	r.close()
	if told := r.Header.Get("Docker-Content-Digest"); told != "" && digest.Digest(told).Algorithm() == u.desc.Digest.Algorithm() && told != string(u.desc.Digest) {
		return u.corrupt("calls it " + clean(told))
	}
	u.off = -1
	return nil
}

func (u *upload) do(method string, to *url.URL, off, n int64, h http.Header) (*response, error) {
	return u.c.do(u.ctx, request{
		op: "push to", ref: u.ref, method: method, url: to, path: "blobs/uploads/", need: needPush, at: u.at, header: h,
		size: n, once: true, body: func() io.ReadCloser {
			return io.NopCloser(&counting{r: io.NewSectionReader(u.body, off, n), n: off, step: u.progress})
		},
	})
}

// ask learns after a break how much arrived. An upload that is gone is begun again.
func (u *upload) ask() error {
	if u.where == nil {
		return nil
	}
	before := u.off
	r, err := u.c.do(u.ctx, request{op: "push to", ref: u.ref, method: http.MethodGet, url: u.where, path: "blobs/uploads/", need: needPush, at: u.at})
	if err != nil {
		if errdefs.Is(err, errdefs.NotFound) || errdefs.Is(err, errdefs.Unsupported) {
			u.where, u.off = nil, 0
			return nil
		}
		return err
	}
	defer r.close()
	if r.Header.Get("Location") != "" {
		if err := u.follow(r); err != nil {
			return err
		}
	}
	end, ok := parseRange(r.Header.Get("Range"))
	if !ok || end > u.desc.Size {
		u.where, u.off = nil, 0
		return nil
	}
	if u.off = end; end > before {
		u.tries = 0
	}
	return nil
}

// parseRange reads "0-99" as 100 bytes. Registries say "0-0" for nothing as well as for one byte; taking it for nothing
// is safe where the byte is sent again.
func parseRange(s string) (int64, bool) {
	from, to, ok := strings.Cut(strings.TrimPrefix(s, "bytes="), "-")
	n, err := strconv.ParseInt(to, 10, 63)
	if !ok || from != "0" || err != nil || n < 0 {
		return 0, false
	}
	if n == 0 {
		return 0, true
	}
	return n + 1, true
}

type counting struct {
	r    io.Reader
	n    int64
	step func(int64)
}

func (c *counting) Read(p []byte) (int, error) {
	n, err := c.r.Read(p[:min(len(p), 1<<20)])
	if c.n += int64(n); n > 0 {
		c.step(c.n)
	}
	return n, err
}

// PushManifest stores a manifest or index, under the tag or, when tag is "", by its digest only. What it refers to has
// to be there. A registry that does not know referrers gets them by the tag schema (distribution-spec, "Referrers Tag
// Schema").
func (c *Client) PushManifest(ctx context.Context, ref reference.Reference, desc ocispec.Descriptor, body []byte, tag string) error {
	name := tag
	if name == "" {
		name = string(desc.Digest)
	}
	r, err := c.putManifest(ctx, ref, name, desc.MediaType, body)
	if err != nil {
		return err
	}
	defer r.close()
	if told := digest.Digest(r.Header.Get("Docker-Content-Digest")); told != "" && told.Algorithm() == desc.Digest.Algorithm() && told != desc.Digest {
		return &errdefs.Error{Op: "push to", What: ref.Familiar(), Kind: errdefs.Corrupt, Why: r.at.name() + " stored another manifest: " + clean(string(told))}
	}
	subject, refers := subjectOf(desc, body)
	if subject == "" || r.Header.Get("OCI-Subject") == string(subject) {
		return nil
	}
	return c.addReferrer(ctx, ref, subject, refers)
}

func (c *Client) putManifest(ctx context.Context, ref reference.Reference, name, mediaType string, body []byte) (*response, error) {
	if len(body) > MaxManifest {
		return nil, &errdefs.Error{
			Op: "push to", What: ref.Familiar(), Kind: errdefs.Exhausted,
			Why: fmt.Sprintf("the manifest has %d bytes, more than the %d that registries have to take", len(body), MaxManifest),
		}
	}
	return c.do(ctx, request{
		op: "push to", ref: ref, method: http.MethodPut, path: "manifests/" + name, need: needPush, byDigest: strings.Contains(name, ":"),
		header: http.Header{"Content-Type": {mediaType}}, size: int64(len(body)), total: 2 * c.o.StallTimeout,
		body: func() io.ReadCloser { return io.NopCloser(strings.NewReader(string(body))) },
	})
}

var errNoReferrers = errors.New("the registry does not know referrers")
