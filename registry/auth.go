package registry

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/onggi/onggi/errdefs"
)

// Credential is what to log in with. The zero value is anonymous.
type Credential struct {
	Username, Password string
	IdentityToken      string // an OAuth2 refresh token, used instead of the password
	RegistryToken      string // sent as it is as a bearer token
}

func (c Credential) zero() bool { return c == Credential{} }

const maxToken = 1 << 20 // bytes of a token server's answer

// authenticator remembers the Authorization header of each registry and repository.
type authenticator struct {
	mu      sync.Mutex
	headers map[string]string // by authKey; guarded by mu
	turn    chan struct{}     // one log-in at a time: the other layers' requests wait for its token
}

func (a *authenticator) init() {
	a.headers = map[string]string{}
	a.turn = make(chan struct{}, 1)
}

// authKey: a token is for one host, repository and purpose; so is the memory of it.
func authKey(e *endpoint, n need) string {
	return e.Scheme + "://" + e.Address + "/" + e.Repository + " " + n.String()
}

func (a *authenticator) header(key string) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.headers[key]
}

func (a *authenticator) set(key, header string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.headers[key] = header
}

// logIn answers a 401: it obtains the header that the challenges ask for. used is the header that was refused.
func (c *Client) logIn(ctx context.Context, q request, e *endpoint, challenges []string, used string) error {
	ref, key := q.ref, authKey(e, q.need)
	select {
	case c.auth.turn <- struct{}{}:
		defer func() { <-c.auth.turn }()
	case <-ctx.Done():
		return &errdefs.Error{Op: "log in at", What: ref.Domain, Kind: errdefs.KindOf(ctx.Err()), Err: ctx.Err()}
	}
	if now := c.auth.header(key); now != used {
		return nil // somebody did it meanwhile
	}
	fail := func(kind errdefs.Kind, why, fix string, err error) error {
		return &errdefs.Error{Op: "log in at", What: e.name(), Kind: kind, Why: why, Fix: fix, Err: err}
	}
	all := parseChallenges(challenges)
	if len(all) == 0 {
		return fail(errdefs.Unauthorized, "it answers 401 and does not say how to log in", "check that it is a registry", nil)
	}
	cred, err := c.o.Credentials(ctx, e.credentialName(ref))
	if err != nil {
		return fail(errdefs.KindOf(err), "the credentials cannot be read", "", err)
	}
	for _, ch := range all {
		switch ch.scheme {
		case "bearer":
			token, err := c.token(ctx, q, e, ch, cred)
			if err != nil {
				return err
			}
			c.auth.set(key, "Bearer "+token)
			return nil
		case "basic":
			if cred.Username == "" && cred.Password == "" {
				return fail(errdefs.Unauthorized, "it wants a user name and a password",
					"log in with: onggi login "+ref.Domain, nil)
			}
			header := "Basic " + base64.StdEncoding.EncodeToString([]byte(cred.Username+":"+cred.Password))
			if header == used {
				return fail(errdefs.Unauthorized, "it refuses the user name or the password",
					"log in again with: onggi login "+ref.Domain, nil)
			}
			c.auth.set(key, header)
			return nil
		}
	}
	return fail(errdefs.Unsupported, "it wants a log-in of the kind "+clean(all[0].scheme)+"; basic and bearer are known", "", nil)
}

// token asks the token server (distribution's "Token Authentication" and "OAuth2" pages).
func (c *Client) token(ctx context.Context, q request, e *endpoint, ch challenge, cred Credential) (string, error) {
	ref := q.ref
	fail := func(kind errdefs.Kind, why string, err error) (string, error) {
		return "", &errdefs.Error{
			Op: "log in at", What: e.name(), Kind: kind, Why: why, Err: err,
			Fix: "check the log-in with: onggi login " + ref.Domain,
		}
	}
	if cred.RegistryToken != "" {
		return cred.RegistryToken, nil
	}
	realm, err := url.Parse(ch.params["realm"])
	switch {
	case err != nil || realm.Host == "" || realm.User != nil:
		return fail(errdefs.Corrupt, fmt.Sprintf("it names a token server that is no address: %q", clean(ch.params["realm"])), nil)
	case realm.Scheme == "https":
	case realm.Scheme == "http" && e.Scheme == "http" && (c.plainHTTP(realm.Host) || realm.Host == e.Address):
	default:
		return fail(errdefs.Forbidden, fmt.Sprintf("it wants the password sent without TLS, to %q", clean(ch.params["realm"])), nil)
	}
	scopes := strings.Fields(ch.params["scope"])
	if len(scopes) == 0 && !q.root {
		scopes = []string{"repository:" + e.Repository + ":" + q.need.scope()}
	}
	for _, s := range q.scopes {
		if !slices.Contains(scopes, s) {
			scopes = append(scopes, s)
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 2*c.o.StallTimeout, errStalled)
	defer cancel()
	var req *http.Request
	if cred.IdentityToken != "" {
		form := url.Values{
			"grant_type": {"refresh_token"}, "service": {ch.params["service"]}, "scope": {strings.Join(scopes, " ")},
			"client_id": {c.o.UserAgent}, "refresh_token": {cred.IdentityToken},
		}.Encode()
		req, err = http.NewRequestWithContext(ctx, http.MethodPost, realm.String(), strings.NewReader(form))
		if err == nil {
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
	} else {
		v := realm.Query()
		if s := ch.params["service"]; s != "" {
			v.Set("service", s)
		}
		for _, s := range scopes {
			v.Add("scope", s)
		}
		if cred.Username != "" {
			v.Set("account", cred.Username)
		}
		if c.identity != nil { // a login: a token to keep instead of the password is welcome
			v.Set("client_id", c.o.UserAgent)
			v.Set("offline_token", "true")
		}
		realm.RawQuery = v.Encode()
		req, err = http.NewRequestWithContext(ctx, http.MethodGet, realm.String(), nil)
		if err == nil && !cred.zero() {
			req.SetBasicAuth(cred.Username, cred.Password)
		}
	}
	if err != nil {
		return fail(errdefs.Corrupt, "its token server's address is unusable", err)
	}
	req.Header.Set("User-Agent", c.o.UserAgent)
	var (
		resp *http.Response
		body []byte
	)
	for try := 0; ; try++ {
		resp, err = e.client.Do(req)
		if err == nil {
			body, err = readAtMost(resp.Body, maxToken)
			_ = resp.Body.Close()
		}
		if err != nil && context.Cause(ctx) == errStalled {
			err = errStalled
		}
		again := err != nil && transient(c.networkError("", ref, e, err)) || err == nil && retryWait(resp) >= 0
		if !again || try >= c.o.Retries || ctx.Err() != nil || sleep(ctx, c.backoff(try)) != nil {
			break
		}
		if req.GetBody != nil {
			req.Body, _ = req.GetBody() // of a strings.Reader: never fails
		}
	}
	if errdefs.Is(err, errdefs.Exhausted) {
		return fail(errdefs.Corrupt, "its token server "+clean(realm.Host)+" sends more than a token", nil)
	}
	if err != nil {
		x := *errdefs.As(c.networkError("log in at", ref, e, err))
		if x.Kind == errdefs.Unavailable {
			x.Why = "its token server " + clean(realm.Host) + " does not answer"
		}
		return "", &x
	}
	switch said := parseError(body[:min(len(body), maxErrorBody)]); {
	case resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden || resp.StatusCode == http.StatusBadRequest:
		return fail(errdefs.Unauthorized, fmt.Sprintf("its token server %s refuses (%d) %s", clean(realm.Host), resp.StatusCode, said), nil)
	case resp.StatusCode != http.StatusOK:
		return fail(errdefs.Unavailable, fmt.Sprintf("its token server %s answers %d %s", clean(realm.Host), resp.StatusCode, said), nil)
	}
	var got struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
		Refresh     string `json:"refresh_token"`
	}
	if err := json.NewDecoder(bytes.NewReader(body)).Decode(&got); err != nil {
		return fail(errdefs.Corrupt, "its token server "+clean(realm.Host)+" sends no JSON", nil)
	}
	token := got.Token
	if token == "" {
		token = got.AccessToken
	}
	if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fail(errdefs.Corrupt, "its token server "+clean(realm.Host)+" sends no usable token", nil)
	}
	if c.identity != nil && got.Refresh != "" {
		*c.identity = got.Refresh
	}
	return token, nil
}

// scope is how a token's scope calls what is needed.
func (n need) scope() string {
	if n == needPush {
		return "pull,push"
	}
	return "pull"
}

// challenge is one way to log in that a registry offers.
type challenge struct {
	scheme string // lower case
	params map[string]string
}

// parseChallenges reads WWW-Authenticate headers (RFC 9110, section 11.6.1). What cannot be read is left out.
func parseChallenges(headers []string) []challenge {
	var all []challenge
	for _, h := range headers {
		p := challengeParser{rest: h}
		for len(all) < 16 {
			scheme := p.token()
			if scheme == "" {
				break
			}
			ch := challenge{scheme: strings.ToLower(scheme), params: map[string]string{}}
			p.params(ch.params)
			all = append(all, ch)
		}
	}
	return all
}

type challengeParser struct{ rest string }

func (p *challengeParser) space(also string) { p.rest = strings.TrimLeft(p.rest, " \t"+also) }

func (p *challengeParser) token() string {
	p.space(",")
	end := strings.IndexFunc(p.rest, func(r rune) bool {
		return r <= ' ' || r > '~' || strings.ContainsRune(`()<>@,;:\"/[]?={}`, r)
	})
	if end < 0 {
		end = len(p.rest)
	}
	t := p.rest[:end]
	p.rest = p.rest[end:]
	return t
}

// params reads name=value pairs until something else comes: the next scheme, or the end.
func (p *challengeParser) params(into map[string]string) {
	for len(into) < 32 {
		before := p.rest
		name := p.token()
		p.space("")
		if name == "" || !strings.HasPrefix(p.rest, "=") {
			p.rest = before
			return
		}
		p.rest = p.rest[1:]
		p.space("")
		value := ""
		if strings.HasPrefix(p.rest, `"`) {
			value = p.quoted()
		} else {
			value = p.token()
		}
		if name = strings.ToLower(name); into[name] == "" {
			into[name] = value
		}
	}
}

func (p *challengeParser) quoted() string {
	var b strings.Builder
	for i := 1; i < len(p.rest); i++ {
		switch c := p.rest[i]; c {
		case '"':
			p.rest = p.rest[i+1:]
			return b.String()
		case '\\':
			if i++; i < len(p.rest) {
				b.WriteByte(p.rest[i])
			}
		default:
			b.WriteByte(c)
		}
	}
	p.rest = "" // no closing quote
	return b.String()
}
