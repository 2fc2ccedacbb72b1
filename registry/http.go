package registry

import (
	"bytes"
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
	maxAuthRounds = 2 // an answer 401 to the second set of credentials is final
)

// request is one question to a registry.
type request struct {
	op     string
	ref    reference.Reference
	method string
	path   string // below /v2/<repository>/
	accept []string
	from   int64         // first byte wanted
	total  time.Duration // for the whole exchange; 0: as long as it moves
}

// response is a 2xx answer whose body ends with an error when it stalls.
type response struct {
	*http.Response
	close func()
}

// do asks, authenticates when told to, and tries again what may pass. Every other answer than 2xx is an error.
func (c *Client) do(ctx context.Context, q request) (*response, error) {
	authRounds := 0
	for try := 0; ; {
		r, wait, err := c.once(ctx, q, &authRounds)
		if err == nil {
			return r, nil
		}
		if wait < 0 || try >= c.o.Retries || ctx.Err() != nil {
			return nil, err
		}
		if wait == 0 {
			wait = c.backoff(try)
		}
		if wait > maxRetryAfter {
			e := *errdefs.As(err)
			e.Fix = fmt.Sprintf("the registry asks to wait %s; then try again", wait.Round(time.Second))
			return nil, &e
		}
		try++
		if err := sleep(ctx, wait); err != nil {
			return nil, &errdefs.Error{Op: q.op, What: q.ref.Familiar(), Kind: errdefs.KindOf(err), Err: err}
		}
	}
}

// once does one try, together with the log-ins that it leads to. wait says how long to wait before another one: 0 by
// backoff, negative never.
func (c *Client) once(ctx context.Context, q request, authRounds *int) (_ *response, wait time.Duration, _ error) {
	for {
		scheme, host := c.host(q.ref.Domain)
		address := scheme + "://" + host + "/v2/" + q.ref.Path + "/" + q.path
		live, cancel := context.WithCancelCause(ctx) // until the body is closed
		if q.total > 0 {
			t := time.AfterFunc(q.total, func() { cancel(errStalled) })
			context.AfterFunc(live, func() { t.Stop() })
		}
		req, err := http.NewRequestWithContext(live, q.method, address, nil)
		if err != nil {
			cancel(nil)
			return nil, -1, &errdefs.Error{Op: q.op, What: q.ref.Familiar(), Kind: errdefs.InvalidArgument, Err: err}
		}
		req.Header.Set("User-Agent", c.o.UserAgent)
		for _, a := range q.accept {
			req.Header.Add("Accept", a)
		}
		if q.from > 0 {
			req.Header.Set("Range", fmt.Sprintf("bytes=%d-", q.from))
		}
		used := c.auth.header(q.ref)
		if used != "" {
			req.Header.Set("Authorization", used)
		}
		resp, err := c.http.Do(req)
		if err != nil {
			if context.Cause(live) == errStalled {
				err = errStalled
			}
			cancel(nil)
			err = c.networkError(q.op, q.ref, err)
			if !transient(err) {
				return nil, -1, err
			}
			return nil, 0, err
		}
		if resp.StatusCode/100 == 2 {
			body := newWatched(resp.Body, c.o.StallTimeout, cancel)
			resp.Body = body
			return &response{resp, func() { _ = body.Close(); cancel(nil) }}, 0, nil
		}
		said := readError(resp, c.o.StallTimeout)
		cancel(nil)
		switch {
		case resp.StatusCode == http.StatusUnauthorized && resp.Request.URL.Host == host && *authRounds < maxAuthRounds:
			*authRounds++
			if err := c.logIn(ctx, q.ref, resp.Header.Values("WWW-Authenticate"), used); err != nil {
				return nil, -1, err
			}
			continue
		case resp.StatusCode == http.StatusBadRequest && scheme == "http" && strings.Contains(said, "HTTPS") && c.upgrade(host):
			continue
		}
		return nil, retryWait(resp), c.statusError(q, resp, said)
	}
}

// upgrade notes that a registry that may be spoken to without TLS wants TLS; false when that is known already.
func (c *Client) upgrade(host string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tls[host] {
		return false
	}
	c.tls[host] = true
	return true
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
func (c *Client) statusError(q request, r *http.Response, said string) error {
	e := &errdefs.Error{Op: q.op, What: q.ref.Familiar(), Kind: errdefs.Unavailable}
	says := ""
	if said != "" {
		says = " (it says: " + said + ")"
	}
	where := "the registry " + q.ref.Domain
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
	case code == http.StatusNotFound:
		e.Kind = errdefs.NotFound
		e.Why = fmt.Sprintf("%s lacks a part of the image: %s%s", where, q.path, says)
		e.Fix = "push the image again"
	case code == http.StatusUnauthorized:
		e.Kind = errdefs.Unauthorized
		e.Why = fmt.Sprintf("%s refuses: %s does not exist, or needs another login%s", where, q.ref.Repository(), says)
		e.Fix = "check the spelling, or log in with: docker login " + q.ref.Domain + " (its config.json is read)"
	case code == http.StatusForbidden:
		e.Kind = errdefs.Forbidden
		e.Why = fmt.Sprintf("%s denies access to %s%s", where, q.ref.Repository(), says)
		e.Fix = "log in with an account that may pull it: docker login " + q.ref.Domain
	case code == http.StatusTooManyRequests:
		e.Why = where + " limits the rate" + says
		e.Fix = "wait, or log in: docker login " + q.ref.Domain
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
func (c *Client) networkError(op string, ref reference.Reference, err error) error {
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
		e.Fix = "add its authority's certificate to the host's (Debian: /usr/local/share/ca-certificates, update-ca-certificates)"
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
