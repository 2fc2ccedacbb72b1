package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/reference"
)

// Host is a server that serves a repository: its own registry or a mirror, as Rules say.
type Host struct {
	Scheme     string // "https" or "http"
	Address    string // host[:port]
	Path       string // below which the API lies: "/v2"
	Repository string // what the repository is called there
	Mirror     bool   // not the registry that the name means

	// What it is asked for: a tag's digest, content, uploads.
	Resolve, Pull, Push bool
	// TagOnly and DigestOnly restrict Pull and Resolve to references of that form.
	TagOnly, DigestOnly bool

	// Insecure: its certificate is not verified, and where it speaks no TLS, plain HTTP will do.
	Insecure bool
	// SkipVerify: its certificate is not verified.
	SkipVerify bool
	CAs        []string    // files of PEM certificates that are trusted besides the host's own
	Clients    []KeyPair   // certificates to show
	Header     http.Header // sent with every request to it
	Timeout    time.Duration
}

// KeyPair is a client certificate: files in PEM. Key may be empty when Cert holds both.
type KeyPair struct{ Cert, Key string }

// need is what a request wants of a host.
type need int

const (
	needPull need = iota
	needResolve
	needPush
)

// endpoint is a Host in use by one client.
type endpoint struct {
	Host
	domain string // of the reference
	client *http.Client
}

// name is how errors call it.
func (e *endpoint) name() string {
	if e.Mirror {
		return "the mirror " + clean(e.Address) + " of " + e.domain
	}
	return "the registry " + e.domain
}

// credentialName is what to look up credentials for: "registry/repository".
func (e *endpoint) credentialName(ref reference.Reference) string {
	if e.Mirror {
		return e.Address + "/" + e.Repository
	}
	return ref.Repository()
}

// endpoints lists who may be asked, in order. There is at least one, or an error.
func (c *Client) endpoints(ref reference.Reference, n need, byDigest bool) ([]*endpoint, error) {
	hosts, err := c.o.Rules.hosts(ref, c.plainHTTP(ref.Domain))
	if err != nil {
		return nil, err
	}
	var out []*endpoint
	for _, h := range hosts {
		if c.isDown(h) && h.Mirror {
			continue
		}
		switch {
		case n == needPush && (!h.Push || h.Mirror), n == needResolve && !h.Resolve, n == needPull && !h.Pull,
			n != needPush && (h.TagOnly && byDigest || h.DigestOnly && !byDigest):
			continue
		}
		cl, err := c.clientOf(h)
		if err != nil {
			return nil, err
		}
		out = append(out, &endpoint{Host: c.seen(h), domain: ref.Domain, client: cl})
	}
	if len(out) == 0 {
		return nil, &errdefs.Error{
			What: ref.Familiar(), Kind: errdefs.Forbidden,
			Why: "the rules for its registry leave no host to ask for this", Fix: "look at the registry's hosts.toml or registries.conf",
		}
	}
	return out, nil
}

// seen applies what was learnt about a host's scheme.
func (c *Client) seen(h Host) Host {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.schemes[h.Address]; s != "" {
		h.Scheme = s
	}
	return h
}

// learn notes that a host speaks another scheme than was thought; false when that was learnt before.
func (c *Client) learn(address, scheme string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.schemes[address] != "" {
		return false
	}
	c.schemes[address] = scheme
	return true
}

func (c *Client) isDown(h Host) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.down[h.Address]
}

// avoid asks a mirror no more for this client's lifetime.
func (c *Client) avoid(e *endpoint) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down[e.Address] = true
}

// plainHTTP reports whether the user or the address itself allows to speak to the host without TLS.
func (c *Client) plainHTTP(host string) bool {
	return slices.Contains(c.o.PlainHTTP, host) || isLoopback(host)
}

func isLoopback(host string) bool {
	name := hostName(host)
	if strings.EqualFold(name, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(name)
	return err == nil && ip.IsLoopback()
}

// hostName cuts the port off.
func hostName(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return strings.Trim(host, "[]")
}

// clientOf returns the HTTP client with the host's certificates.
func (c *Client) clientOf(h Host) (*http.Client, error) {
	if !h.Insecure && !h.SkipVerify && len(h.CAs) == 0 && len(h.Clients) == 0 && h.Timeout == 0 {
		return c.http, nil
	}
	key := fmt.Sprintln(h.Insecure || h.SkipVerify, h.CAs, h.Clients, h.Timeout)
	c.mu.Lock()
	defer c.mu.Unlock()
	if cl := c.clients[key]; cl != nil {
		return cl, nil
	}
	conf := &tls.Config{InsecureSkipVerify: h.Insecure || h.SkipVerify, MinVersion: tls.VersionTLS12}
	if len(h.CAs) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool() // a host without any of its own
		}
		for _, f := range h.CAs {
			pem, err := readFile(f, maxConfig)
			if err == nil && !pool.AppendCertsFromPEM(pem) {
				err = errors.New("it holds no certificate in PEM")
			}
			if err != nil {
				return nil, badRule(f, "it cannot be used as an authority for "+h.Address, err)
			}
		}
		conf.RootCAs = pool
	}
	for _, p := range h.Clients {
		k := p.Key
		if k == "" {
			k = p.Cert
		}
		pair, err := tls.LoadX509KeyPair(p.Cert, k)
		if err != nil {
			return nil, badRule(p.Cert, "it cannot be shown to "+h.Address, err)
		}
		conf.Certificates = append(conf.Certificates, pair)
	}
	t := c.http.Transport.(*http.Transport).Clone()
	t.TLSClientConfig = conf
	if h.Timeout > 0 {
		t.DialContext = (&net.Dialer{Timeout: h.Timeout}).DialContext
	}
	cl := &http.Client{Transport: t, CheckRedirect: c.checkRedirect}
	c.clients[key] = cl
	return cl, nil
}

// readFile reads a small file.
func readFile(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "read", Path: path, Err: errors.New("it is not a file")}
	}
	return readAtMost(f, limit)
}

func (c *Client) checkRedirect(req *http.Request, via []*http.Request) error {
	first := via[0].URL
	if len(via) >= maxRedirects {
		return &redirectError{fmt.Sprintf("it redirects more than %d times", maxRedirects)}
	}
	if req.URL.Scheme == "http" && (first.Scheme == "https" || !c.plainHTTP(req.URL.Host) && req.URL.Host != first.Host) {
		return &redirectError{"it redirects to plain HTTP at " + clean(req.URL.Host)}
	}
	// A registry elsewhere has no business with what this host tells only itself and its cloud.
	if ip, err := netip.ParseAddr(hostName(req.URL.Host)); err == nil && !isLoopback(first.Host) &&
		(ip.IsLoopback() || ip.IsLinkLocalUnicast() || ip.IsUnspecified()) {
		return &redirectError{"it redirects to the private address " + clean(req.URL.Host)}
	}
	return nil
}

// redirectError is a redirect that is not followed.
type redirectError struct{ why string }

func (e *redirectError) Error() string { return e.why }

// fallsThrough reports whether the next host may know better. What the user decided ends the search.
func fallsThrough(ctx context.Context, err error) bool {
	return ctx.Err() == nil && !errdefs.Is(err, errdefs.Canceled) && !errdefs.Is(err, errdefs.DeadlineExceeded)
}
