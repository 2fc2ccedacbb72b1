package registry

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/reference"
)

const (
	maxErrorBody  = 16 << 10
	maxRetryAfter = 60 * time.Second // longer waits are the user's to decide
	maxBackoff    = 8 * time.Second
	maxWaiting    = 2 * time.Minute  // of all waits between the tries of one request
	patience      = 45 * time.Second // with all tries of one request, without the waits between: then there is no other
	maxAuthRounds = 2                // an answer 401 to the second set of credentials is final
)

// request is one question to a registry.
type request struct {
	op     string
	ref    reference.Reference
	method string
	path   string // below <repository>/
	query  string
	accept []string
	from   int64         // first byte wanted
	to     int64         // last byte wanted; 0: to the end
	total  time.Duration // for the whole exchange; 0: as long as it moves

	need     need
	byDigest bool
	at       *endpoint // ask nobody else
	url      *url.URL  // an address that the endpoint gave (an upload's), instead of path
	root     bool      // the API's own address, below no repository

	header http.Header
	body   func() io.ReadCloser // what to send; made anew for each try
	size   int64                // of body
	once   bool                 // the caller tries again itself
	also   int                  // a status besides 2xx that is an answer
	// scopes are further scopes that a token needs, such as that of the repository that a blob is mounted from.
	scopes []string
}

// response is a 2xx answer whose body ends with an error when it stalls.
type response struct {
	*http.Response
	at    *endpoint
	close func()
}

// do asks, authenticates when told to, and tries again what may pass, first with the mirrors that the rules name. Every
// other answer than 2xx is an error.
func (c *Client) do(ctx context.Context, q request) (*response, error) {
	if c.o.Offline {
		return nil, &errdefs.Error{
			Op: q.op, What: q.ref.Familiar(), Kind: errdefs.Unavailable,
			Why: "the network is not to be used (--offline or ONGGI_OFFLINE)", Fix: "leave --offline out, or use an image that is here: onggi images",
		}
	}
	if q.at != nil {
		return c.ask(ctx, q, q.at, c.o.Retries)
	}
	all, err := c.endpoints(q.ref, q.need, q.byDigest)
	if err != nil {
		e := *errdefs.As(err)
		if e.Op == "" {
			e.Op = q.op
		}
		return nil, &e
	}
	var before []string
	for i, e := range all {
		tries := c.o.Retries
		if i < len(all)-1 {
			tries = min(tries, 1) // somebody else may know sooner
		}
		r, err := c.ask(ctx, q, e, tries)
		if err == nil {
			return r, nil
		}
		if i < len(all)-1 && fallsThrough(ctx, err) {
			x := errdefs.As(err)
			if x.Kind == errdefs.Unavailable || x.Kind == errdefs.NotFound && errors.As(err, new(*net.DNSError)) {
				c.avoid(e)
			}
			before = append(before, cmp.Or(x.Why, err.Error()))
			continue
		}
		if len(before) > 0 {
			x := *errdefs.As(err)
			x.Why = strings.Join(append([]string{cmp.Or(x.Why, err.Error())}, before...), "; before that: ")
			return nil, &x
		}
		return nil, err
	}
	panic("unreachable: there is at least one endpoint")
}

// ask asks one host, with so many further tries.
func (c *Client) ask(ctx context.Context, q request, e *endpoint, retries int) (*response, error) {
	authRounds := 0
	var waited time.Duration
	began := time.Now()
	for try := 0; ; {
		r, wait, err := c.once(ctx, q, e, &authRounds)
		if err == nil {
			return r, nil
		}
		if wait < 0 || try >= retries || ctx.Err() != nil || q.once {
			return nil, err
		}
		if time.Since(began)-waited > patience { // it has been asked twice and said nothing
			return nil, err
		}
		if wait == 0 {
			wait = c.backoff(try)
		}
		if waited += wait; wait > maxRetryAfter || waited > maxWaiting {
			x := *errdefs.As(err)
			x.Fix = fmt.Sprintf("the registry asks to wait %s; then try again", wait.Round(time.Second))
			return nil, &x
		}
		try++
		if err := sleep(ctx, wait); err != nil {
			return nil, &errdefs.Error{Op: q.op, What: q.ref.Familiar(), Kind: errdefs.KindOf(err), Err: err}
		}
	}
}

// address is what q asks e.
func (q *request) address(e *endpoint) string {
	if q.url != nil {
		return q.url.String()
	}
	a := e.Scheme + "://" + e.Address + e.Path + "/"
	if !q.root {
		a += e.Repository + "/" + q.path
	}
	query := q.query
	if e.Mirror && q.method != http.MethodPost {
		// A mirror for several registries learns which one is meant (containerd's docs/hosts.md).
		if query != "" {
			query += "&"
		}
		query += "ns=" + url.QueryEscape(e.domain)
	}
	if query != "" {
		a += "?" + query
	}
	return a
}

// once does one try, together with the log-ins that it leads to. wait says how long to wait before another one: 0 by
// backoff, negative never.
func (c *Client) once(ctx context.Context, q request, e *endpoint, authRounds *int) (_ *response, wait time.Duration, _ error) {
	for {
		e.Host = c.seen(e.Host)
		live, cancel := context.WithCancelCause(ctx) // until the body is closed
		if q.total > 0 {
			t := time.AfterFunc(q.total, func() { cancel(errStalled) })
			context.AfterFunc(live, func() { t.Stop() })
		}
		req, err := http.NewRequestWithContext(live, q.method, q.address(e), nil)
		if err != nil {
			cancel(nil)
			return nil, -1, &errdefs.Error{Op: q.op, What: q.ref.Familiar(), Kind: errdefs.InvalidArgument, Err: err}
		}
		for k, v := range e.Header {
			req.Header[k] = v
		}
		for k, v := range q.header {
			req.Header[k] = v
		}
		req.Header.Set("User-Agent", c.o.UserAgent)
		for _, a := range q.accept {
			req.Header.Add("Accept", a)
		}
		switch {
		case q.to > 0:
			req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", q.from, q.to))
		case q.from > 0:
			req.Header.Set("Range", fmt.Sprintf("bytes=%d-", q.from))
		}
		if q.body != nil {
			c.attach(req, q, cancel)
		}
		used := c.auth.header(authKey(e, q.need))
		if used != "" && (q.url == nil || q.url.Host == e.Address) {
			req.Header.Set("Authorization", used)
		}
		resp, err := e.client.Do(req)
		if err != nil {
			if context.Cause(live) == errStalled {
				err = errStalled
			}
			cancel(nil)
			if e.Insecure && errors.Is(err, http.ErrSchemeMismatch) && c.learn(e.Address, "http") {
				continue
			}
			err = c.networkError(q.op, q.ref, e, err)
			if !transient(err) {
				return nil, -1, err
			}
			return nil, 0, err
		}
		if resp.StatusCode/100 == 2 || q.also != 0 && resp.StatusCode == q.also {
			body := newWatched(resp.Body, c.o.StallTimeout, int64(float64(c.o.MinRate)*c.o.StallTimeout.Seconds()), cancel)
			resp.Body = body
			return &response{resp, e, func() { _ = body.Close(); cancel(nil) }}, 0, nil
		}
		said := readError(resp, c.o.StallTimeout)
		cancel(nil)
		switch {
		case resp.StatusCode == http.StatusUnauthorized && resp.Request.URL.Host == e.Address && *authRounds < maxAuthRounds:
			*authRounds++
			if err := c.logIn(ctx, q, e, resp.Header.Values("WWW-Authenticate"), used); err != nil {
				return nil, -1, err
			}
			continue
		case resp.StatusCode == http.StatusBadRequest && e.Scheme == "http" && strings.Contains(said, "HTTPS") && c.learn(e.Address, "https"):
			continue
		}
		return nil, retryWait(resp), c.statusError(q, e, resp, said)
	}
}

// attach makes q's body that of the request. A peer that takes nothing for StallTimeout ends the request.
func (c *Client) attach(req *http.Request, q request, cancel context.CancelCauseFunc) {
	open := func() (io.ReadCloser, error) {
		body := q.body()
		w := &sending{body: body, limit: c.o.StallTimeout}
		w.timer = time.AfterFunc(w.limit, func() { cancel(errStalled) })
		return w, nil
	}
	req.ContentLength = q.size
	if q.size == 0 {
		req.Body = http.NoBody
		return
	}
	req.Body, _ = open()
	req.GetBody = open
}

// sending is a request's body that is given up when nobody takes it.
type sending struct {
	body  io.ReadCloser
	limit time.Duration
	timer *time.Timer
}

func (s *sending) Read(p []byte) (int, error) {
	s.timer.Reset(s.limit)
	n, err := s.body.Read(p)
	if err != nil {
		s.timer.Stop() // all of it is on its way: from here on the wait for an answer counts
	}
	return n, err
}

func (s *sending) Close() error {
	s.timer.Stop()
	return s.body.Close()
}

func (c *Client) backoff(try int) time.Duration {
	d := min(c.base<<min(try, 10), maxBackoff)
	return d/2 + rand.N(d) // spread, so that many clients do not come back together
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// retryWait says whether an answer may change by itself: negative no, 0 after a backoff, else what Retry-After says
// (RFC 9110, section 10.2.3).
func retryWait(r *http.Response) time.Duration {
	switch r.StatusCode {
	case http.StatusTooManyRequests, http.StatusRequestTimeout, http.StatusInternalServerError, http.StatusBadGateway,
		http.StatusServiceUnavailable, http.StatusGatewayTimeout:
	default:
		return -1
	}
	after := r.Header.Get("Retry-After")
	if s, err := strconv.ParseUint(after, 10, 31); err == nil {
		return max(time.Duration(s)*time.Second, time.Millisecond)
	}
	if t, err := http.ParseTime(after); err == nil {
		return max(time.Until(t), time.Millisecond)
	}
	return 0
}

// readError returns what a registry says about a failure, for people. The connection can be used again when the body
// was short.
func readError(r *http.Response, limit time.Duration) string {
	t := time.AfterFunc(limit, func() { _ = r.Body.Close() })
	defer t.Stop()
	defer r.Body.Close()
	b, _ := readAtMost(r.Body, maxErrorBody) // what did arrive is worth showing
	return parseError(b)
}

// readAtMost reads to the end, or returns the first limit bytes and an error of kind Exhausted.
func readAtMost(r io.Reader, limit int64) ([]byte, error) {
	var b bytes.Buffer
	n, err := b.ReadFrom(io.LimitReader(r, limit+1))
	if n > limit {
		b.Truncate(int(limit))
		err = &errdefs.Error{Kind: errdefs.Exhausted, Why: fmt.Sprintf("there are more than the %d bytes that are allowed", limit)}
	}
	return b.Bytes(), err
}

// parseError reads the error document of distribution-spec ("Error Codes"), or plain text.
func parseError(b []byte) string {
	var doc struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
		Details string `json:"details"` // docker's token server
		Message string `json:"message"`
	}
	if json.Unmarshal(b, &doc) == nil {
		var said []string
		for _, e := range doc.Errors {
			s := clean(e.Message)
			if s == "" {
				s = clean(e.Code)
			}
			if s != "" && len(said) < 3 {
				said = append(said, s)
			}
		}
		if len(said) > 0 {
			return strings.Join(said, "; ")
		}
		if doc.Details != "" {
			return clean(doc.Details)
		}
		return clean(doc.Message)
	}
	s := strings.TrimSpace(string(b))
	if strings.HasPrefix(s, "<") || strings.HasPrefix(s, "{") {
		return "" // a page for a browser, or half a document
	}
	return clean(s)
}

// clean makes a stranger's text fit for a terminal: one line, printable, at most 200 characters.
func clean(s string) string {
	var b strings.Builder
	n := 0
	for _, r := range s {
		if n++; n > 200 {
			b.WriteString("...")
			break
		}
		if !unicode.IsPrint(r) { // control characters, line ends, direction marks
			r = ' '
		}
		b.WriteRune(r)
	}
	return strings.TrimSpace(b.String())
}

// statusError turns an answer that is not 2xx into what a user needs to know.
func (c *Client) statusError(q request, at *endpoint, r *http.Response, said string) error {
	e := &errdefs.Error{Op: q.op, What: q.ref.Familiar(), Kind: errdefs.Unavailable}
	says := ""
	if said != "" {
		says = " (it says: " + said + ")"
	}
	where := at.name()
	if r.Request.Response != nil {
		where += " (redirected to " + clean(r.Request.URL.Host) + ")"
	}
	manifest := strings.HasPrefix(q.path, "manifests/")
	switch code := r.StatusCode; {
	case code == http.StatusNotFound && manifest:
		e.Kind = errdefs.NotFound
		name := ":" + q.ref.Tag
		if q.ref.Digest != "" || q.ref.Tag == "" {
			name = "@" + string(q.ref.Digest)
		}
		e.Why = fmt.Sprintf("%s has no %s%s%s", where, q.ref.Repository(), name, says)
		e.Fix = "check the spelling of the name and the tag"
	case code == http.StatusNotFound && q.need == needPush:
		e.Kind = errdefs.NotFound
		e.Why = fmt.Sprintf("%s has no repository %s, or an upload of it is gone%s", where, q.ref.Repository(), says)
		e.Fix = "check the spelling, or make the repository first if this registry wants that"
	case code == http.StatusNotFound:
		e.Kind = errdefs.NotFound
		e.Why = fmt.Sprintf("%s lacks a part of the image: %s%s", where, q.path, says)
		e.Fix = "push the image again"
	case code == http.StatusUnauthorized:
		e.Kind = errdefs.Unauthorized
		e.Why = fmt.Sprintf("%s refuses: %s does not exist, or needs another login%s", where, q.ref.Repository(), says)
		if q.root {
			e.Why = where + " refuses the login" + says
		}
		e.Fix = "check the spelling, or log in with: onggi login " + q.ref.Domain
	case code == http.StatusForbidden:
		e.Kind = errdefs.Forbidden
		e.Why = fmt.Sprintf("%s denies access to %s%s", where, q.ref.Repository(), says)
		e.Fix = "log in with an account that may " + q.need.String() + " it: onggi login " + q.ref.Domain
	case code == http.StatusTooManyRequests:
		e.Why = where + " limits the rate" + says
		e.Fix = "wait, or log in: onggi login " + q.ref.Domain
	case code == http.StatusRequestEntityTooLarge:
		e.Kind = errdefs.Exhausted
		e.Why = where + " takes no request of that size" + says
		e.Fix = "raise the limit of the registry, or of the proxy in front of it"
	case code/100 == 5 || code == http.StatusRequestTimeout:
		e.Why = fmt.Sprintf("%s answers %d %s%s", where, code, http.StatusText(code), says)
		e.Fix = "try again later; the trouble is on the registry's side"
	case code/100 == 3:
		e.Kind = errdefs.Corrupt
		e.Why = fmt.Sprintf("%s redirects (%d) without saying where to", where, code)
	default:
		e.Kind = errdefs.Unsupported
		e.Why = fmt.Sprintf("%s answers %d %s%s", where, code, http.StatusText(code), says)
		e.Fix = "check that " + q.ref.Domain + " is a registry of version 2"
	}
	return e
}

// errStalled is the cause when a request is given up because nothing moves.
var errStalled = errors.New("nothing arrived for too long")

// networkError explains why there was no answer.
func (c *Client) networkError(op string, ref reference.Reference, at *endpoint, err error) error {
	var known *errdefs.Error
	if errors.As(err, &known) {
		return err
	}
	var in *url.Error
	if errors.As(err, &in) {
		err = in.Err // without the method and the address, which are in Why
	}
	e := &errdefs.Error{Op: op, What: ref.Familiar(), Kind: errdefs.Unavailable, Err: err}
	var (
		dns      *net.DNSError
		cert     *tls.CertificateVerificationError
		redirect *redirectError
		timeout  net.Error
	)
	where := "the registry " + ref.Domain
	if at != nil {
		where = at.name()
	}
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded) && !errors.As(err, &timeout):
		e.Kind = errdefs.KindOf(err)
	case errors.Is(err, errStalled):
		e.Why, e.Err = fmt.Sprintf("%s sent nothing for %s", where, c.o.StallTimeout), nil
		e.Fix = "check the network and try again"
	case errors.As(err, &redirect):
		e.Kind, e.Why, e.Err = errdefs.Corrupt, where+" cannot be followed: "+redirect.why, nil
	case errors.As(err, &dns):
		e.Why = fmt.Sprintf("%s: the host name %s cannot be resolved", where, clean(dns.Name))
		if dns.IsNotFound {
			e.Kind = errdefs.NotFound
		}
		e.Fix = "check the spelling, the network and /etc/resolv.conf"
	case errors.As(err, &cert):
		e.Kind = errdefs.Forbidden
		e.Why = where + " shows a certificate that this host does not trust"
		e.Fix = "put its authority's certificate into /etc/onggi/certs.d/" + ref.Domain + "/ca.crt, or add it to the host's"
	case errors.Is(err, http.ErrSchemeMismatch):
		e.Kind = errdefs.Forbidden
		e.Why = where + " speaks plain HTTP, which is only used for loopback addresses and registries that are listed for it"
		e.Fix = "give the registry TLS, or if you trust the network between: onggi pull --plain-http " + ref.Domain + " " + ref.Familiar()
	case errors.Is(err, syscall.ECONNREFUSED):
		e.Why = where + ": nobody listens there"
		e.Fix = "check the address and port, and that the registry runs"
	case errors.As(err, &timeout) && timeout.Timeout():
		e.Why = fmt.Sprintf("%s does not answer within %s", where, c.o.StallTimeout)
		e.Fix = "check the network, and a proxy if you use one (HTTPS_PROXY)"
	default:
		e.Why = where + ": the connection broke"
		e.Fix = "try again"
	}
	return e
}

// transient reports whether another try may help.
func transient(err error) bool {
	return errdefs.KindOf(err) == errdefs.Unavailable && !errors.Is(err, syscall.ECONNREFUSED)
}

// String is the verb of what is needed.
func (n need) String() string {
	if n == needPush {
		return "push"
	}
	return "pull"
}
