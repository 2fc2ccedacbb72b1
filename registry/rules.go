package registry

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/reference"
)

// Bounds of what is read of a rule file.
const (
	maxRuleFile = 1 << 20
	maxRules    = 1000
	maxHosts    = 32 // for one repository
)

// RuleFiles says where the rules lie. What does not exist says nothing.
type RuleFiles struct {
	// HostsDirs are directories of containerd's form (its docs/hosts.md): <dir>/<host[:port]>/hosts.toml, or only
	// docker's *.crt (authorities) and *.cert with *.key (client certificates), and <dir>/_default. For a registry the
	// first directory that has one decides.
	HostsDirs []string
	// CertDirs are of docker's form: <dir>/<host[:port]>/{*.crt,*.cert,*.key}. They add certificates to hosts for which
	// nothing else gave any.
	CertDirs []string
	// RegistriesConf are files of containers' form (containers-registries.conf(5), version 2), each followed by the
	// *.conf of its directory FILE.d. Later ones replace entries of the same prefix. They are asked when no HostsDir
	// knows the registry.
	RegistriesConf []string
}

// Rules says which hosts serve a repository. It reads its files when they are first needed. A nil *Rules has none:
// every registry serves itself. It is safe for concurrent use.
type Rules struct {
	f RuleFiles

	mu   sync.Mutex
	conf *registriesConf // guarded by mu
	err  error           // of reading conf; guarded by mu
}

// NewRules returns the rules in those files. Nothing is read yet.
func NewRules(f RuleFiles) *Rules { return &Rules{f: f} }

func badRule(file, why string, err error) error {
	return &errdefs.Error{
		Op: "read the registry rules in", What: file, Kind: errdefs.InvalidArgument, Why: why,
		Fix: "correct or remove the file", Err: err,
	}
}

// hosts lists who serves ref, the first to be asked first. plain: without TLS where no rule says otherwise.
func (r *Rules) hosts(ref reference.Reference, plain bool) ([]Host, error) {
	own := Host{Scheme: "https", Address: serverOf(ref.Domain), Path: "/v2", Repository: ref.Path, Resolve: true, Pull: true, Push: true}
	if plain {
		own.Scheme = "http"
	}
	out := []Host{own}
	if r == nil {
		return out, nil
	}
	found := false
	for _, dir := range r.f.HostsDirs {
		hosts, ok, err := readHostsDir(dir, ref.Domain, own)
		if err != nil {
			return nil, err
		}
		if ok {
			out, found = hosts, true
			break
		}
	}
	if !found {
		conf, err := r.registries()
		if err != nil {
			return nil, err
		}
		if out, err = conf.hosts(ref, own); err != nil {
			return nil, err
		}
	}
	if len(out) > maxHosts {
		return nil, badRule(ref.Domain, fmt.Sprintf("there are more than %d hosts for one registry", maxHosts), nil)
	}
	for i := range out {
		if h := &out[i]; len(h.CAs) == 0 && len(h.Clients) == 0 && !h.Insecure && !h.SkipVerify {
			for _, dir := range r.f.CertDirs {
				for _, name := range hostDirectories(h.Address, false) {
					if err := h.certificates(filepath.Join(dir, name)); err != nil {
						return nil, err
					}
				}
			}
		}
	}
	return out, nil
}

// serverOf: docker.io is served by another host than its name says.
func serverOf(domain string) string {
	if domain == "docker.io" {
		return "registry-1.docker.io"
	}
	return domain
}

// hostDirectories are the names under which a host's directory may lie: with the port in a form that Windows can write
// (host_port_), as it is, and, if asked for, containerd's fallback.
func hostDirectories(host string, fallback bool) []string {
	if strings.ContainsAny(host, "/\x00") || host == "" || host == "." || host == ".." {
		return nil
	}
	var out []string
	if i := strings.LastIndexByte(host, ':'); i > 0 && !strings.HasSuffix(host, "]") {
		out = append(out, host[:i]+"_"+host[i+1:]+"_")
	}
	out = append(out, host)
	if fallback {
		out = append(out, "_default")
	}
	return out
}

// readHostsDir looks a registry up in a directory of containerd's form.
func readHostsDir(dir, domain string, own Host) ([]Host, bool, error) {
	for _, name := range hostDirectories(domain, true) {
		d := filepath.Join(dir, name)
		b, err := readFile(filepath.Join(d, "hosts.toml"), maxRuleFile)
		switch {
		case err == nil:
			hosts, err := parseHosts(b, d, own)
			if err != nil {
				return nil, false, badRule(filepath.Join(d, "hosts.toml"), "", err)
			}
			return hosts, true, nil
		case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission):
			return nil, false, badRule(filepath.Join(d, "hosts.toml"), "", err)
		}
		if fi, err := os.Stat(d); err != nil || !fi.IsDir() {
			continue
		}
		h := own
		if err := h.certificates(d); err != nil {
			return nil, false, err
		}
		return []Host{h}, true, nil
	}
	return nil, false, nil
}

// certificates reads docker's directory: NAME.crt is an authority, NAME.cert with NAME.key a client certificate.
func (h *Host) certificates(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	if err != nil {
		return badRule(dir, "", err)
	}
	for _, e := range entries {
		p := filepath.Join(dir, e.Name())
		switch filepath.Ext(p) {
		case ".crt":
			h.CAs = append(h.CAs, p)
		case ".cert":
			key := strings.TrimSuffix(p, ".cert") + ".key"
			if _, err := os.Stat(key); err != nil {
				return badRule(p, "there is no "+filepath.Base(key)+" beside it", nil)
			}
			h.Clients = append(h.Clients, KeyPair{p, key})
		}
	}
	return nil
}

// hostEntry is what hosts.toml says of one host; the file's own level has the same members, for the registry itself.
type hostEntry struct {
	Capabilities []string       `toml:"capabilities"`
	CA           any            `toml:"ca"`
	Client       any            `toml:"client"`
	SkipVerify   bool           `toml:"skip_verify"`
	Header       map[string]any `toml:"header"`
	OverridePath bool           `toml:"override_path"`
	DialTimeout  string         `toml:"dial_timeout"`
}

// parseHosts reads a hosts.toml. dir is the directory that relative file names are in; own is the registry as it is
// without rules.
func parseHosts(b []byte, dir string, own Host) ([]Host, error) {
	var doc struct {
		Server string `toml:"server"`
		hostEntry
		Host map[string]hostEntry `toml:"host"`
	}
	md, err := decodeTOML(b, &doc)
	if err != nil {
		return nil, err
	}
	var out []Host
	add := func(address string, e hostEntry, own Host) error {
		h, err := e.host(address, dir, own)
		if err == nil {
			out = append(out, h)
		}
		return err
	}
	for _, k := range md.Keys() { // in the order of the file, which is the order of asking
		if len(k) == 2 && k[0] == "host" {
			if err := add(k[1], doc.Host[k[1]], own); err != nil {
				return nil, err
			}
		}
	}
	server := doc.Server
	if server == "" {
		server = own.Scheme + "://" + own.Address
	}
	return out, add(server, doc.hostEntry, own)
}

// decodeTOML refuses what it does not know: a setting that is not honoured must not look as if it were.
func decodeTOML(b []byte, into any) (md toml.MetaData, err error) {
	defer func() {
		if r := recover(); r != nil { // a parser of somebody else, on a file of somebody else
			err = fmt.Errorf("it is not TOML: %v", r)
		}
	}()
	md, err = toml.NewDecoder(bytes.NewReader(b)).Decode(into)
	if err != nil {
		return md, fmt.Errorf("it is not right: %w", err)
	}
	if len(md.Keys()) > maxRules*16 {
		return md, errors.New("it holds more than anybody wants")
	}
	if md.IsDefined("registries") {
		return md, errors.New("it is a registries.conf of version 1 ([registries.search]), which was given up: write [[registry]] entries")
	}
	for _, k := range md.Undecoded() {
		return md, fmt.Errorf("%q is not known here", clean(k.String()))
	}
	return md, nil
}

func (e hostEntry) host(address, dir string, own Host) (Host, error) {
	h := Host{Repository: own.Repository, SkipVerify: e.SkipVerify}
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Scheme != "https" && u.Scheme != "http" {
		return h, fmt.Errorf("%q is no address of a registry", clean(address))
	}
	h.Scheme, h.Address = u.Scheme, serverOf(u.Host)
	h.Mirror = h.Address != own.Address
	h.Path = strings.TrimSuffix(u.Path, "/")
	if !e.OverridePath {
		if h.Path = path.Clean("/" + h.Path); !strings.HasSuffix(h.Path, "/v2") {
			h.Path = strings.TrimSuffix(h.Path, "/") + "/v2"
		}
	}
	if len(e.Capabilities) == 0 {
		h.Resolve, h.Pull, h.Push = true, true, true
	}
	for _, c := range e.Capabilities {
		switch c {
		case "pull":
			h.Pull = true
		case "resolve":
			h.Resolve = true
		case "push":
			h.Push = true
		default:
			return h, fmt.Errorf("the capability %q is none of pull, resolve and push", clean(c))
		}
	}
	in := func(f string) string {
		if f != "" && !filepath.IsAbs(f) {
			f = filepath.Join(dir, f)
		}
		return f
	}
	cas, err := textOrTexts("ca", e.CA)
	if err != nil {
		return h, err
	}
	for _, f := range cas {
		h.CAs = append(h.CAs, in(f))
	}
	if pairs, ok := e.Client.([]any); ok && slices.ContainsFunc(pairs, func(x any) bool { _, ok := x.([]any); return ok }) {
		for _, p := range pairs {
			two, err := textOrTexts("client", p)
			if err != nil || len(two) == 0 || len(two) > 2 {
				return h, errors.New("client is not a list of [certificate, key]")
			}
			two = append(two, "")
			h.Clients = append(h.Clients, KeyPair{in(two[0]), in(two[1])})
		}
	} else {
		files, err := textOrTexts("client", e.Client)
		if err != nil {
			return h, err
		}
		for _, f := range files {
			h.Clients = append(h.Clients, KeyPair{Cert: in(f)})
		}
	}
	for k, v := range e.Header {
		values, err := textOrTexts("header", v)
		if err != nil {
			return h, err
		}
		for _, s := range values {
			if strings.ContainsAny(k+s, "\r\n\x00") || k == "" {
				return h, fmt.Errorf("the header %q cannot be sent", clean(k))
			}
			if h.Header == nil {
				h.Header = http.Header{}
			}
			h.Header.Add(k, s)
		}
	}
	if e.DialTimeout != "" {
		if h.Timeout, err = time.ParseDuration(e.DialTimeout); err != nil || h.Timeout <= 0 {
			return h, fmt.Errorf("dial_timeout %q is no duration such as 3s", clean(e.DialTimeout))
		}
	}
	return h, nil
}

// textOrTexts reads a value that may be one text or a list of texts.
func textOrTexts(name string, v any) ([]string, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case string:
		return []string{v}, nil
	case []any:
		var out []string
		for _, x := range v {
			s, ok := x.(string)
			if !ok {
				return nil, fmt.Errorf("%s is not a text or a list of texts", name)
			}
			out = append(out, s)
		}
		return out, nil
	}
	return nil, fmt.Errorf("%s is not a text or a list of texts", name)
}

// registriesConf is the entries of all files, by prefix.
type registriesConf struct{ byPrefix map[string]registryEntry }

type registryEntry struct {
	Prefix             string        `toml:"prefix"`
	Location           string        `toml:"location"`
	Insecure           bool          `toml:"insecure"`
	Blocked            bool          `toml:"blocked"`
	MirrorByDigestOnly bool          `toml:"mirror-by-digest-only"`
	Mirror             []mirrorEntry `toml:"mirror"`
}

type mirrorEntry struct {
	Location       string `toml:"location"`
	Insecure       bool   `toml:"insecure"`
	PullFromMirror string `toml:"pull-from-mirror"`
}

// registries reads the files once.
func (r *Rules) registries() (*registriesConf, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conf != nil || r.err != nil {
		return r.conf, r.err
	}
	c := &registriesConf{byPrefix: map[string]registryEntry{}}
	for _, f := range r.f.RegistriesConf {
		files := []string{f}
		dropIns, err := os.ReadDir(f + ".d")
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
			r.err = badRule(f+".d", "", err)
			return nil, r.err
		}
		for _, e := range dropIns { // sorted by name
			if strings.HasSuffix(e.Name(), ".conf") && !e.IsDir() {
				files = append(files, filepath.Join(f+".d", e.Name()))
			}
		}
		for _, f := range files {
			b, err := readFile(f, maxRuleFile)
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
				continue
			}
			if err == nil {
				err = c.add(b)
			}
			if err != nil {
				r.err = badRule(f, "", err)
				return nil, r.err
			}
		}
	}
	r.conf = c
	return c, nil
}

// add takes a file's entries in. Names without a registry are docker.io's here, as docker's users know it, so what
// concerns only short names (unqualified-search-registries, aliases) is read over.
func (c *registriesConf) add(b []byte) error {
	var doc struct {
		Registry          []registryEntry   `toml:"registry"`
		Unqualified       []string          `toml:"unqualified-search-registries"`
		ShortNameMode     string            `toml:"short-name-mode"`
		Aliases           map[string]string `toml:"aliases"`
		CredentialHelpers []string          `toml:"credential-helpers"`
	}
	if _, err := decodeTOML(b, &doc); err != nil {
		return err
	}
	for _, h := range doc.CredentialHelpers {
		if h != "containers-auth.json" {
			return fmt.Errorf("credential-helpers names %q: name helpers in auth.json or docker's config.json (credHelpers)", clean(h))
		}
	}
	for _, e := range doc.Registry {
		if e.Prefix == "" {
			e.Prefix = e.Location
		}
		if e.Prefix == "" {
			return errors.New("a [[registry]] has neither prefix nor location")
		}
		wild := strings.HasPrefix(e.Prefix, "*.")
		if wild && strings.ContainsAny(e.Prefix, "/:@") || strings.Contains(strings.TrimPrefix(e.Prefix, "*."), "*") {
			return fmt.Errorf("the prefix %q: only *.host is a pattern", clean(e.Prefix))
		}
		if e.Location == "" && !wild {
			e.Location = e.Prefix
		}
		e.Prefix = strings.TrimSuffix(e.Prefix, "/")
		for _, l := range append([]mirrorEntry{{Location: e.Location}}, e.Mirror...) {
			if strings.Contains(l.Location, "://") || strings.ContainsAny(l.Location, " @?#\x00\r\n\\") || l.Location == "" && !wild {
				return fmt.Errorf("the location %q is not host[:port][/path]", clean(l.Location))
			}
			switch l.PullFromMirror {
			case "", "all", "digest-only", "tag-only":
			default:
				return fmt.Errorf("pull-from-mirror %q is none of all, digest-only and tag-only", clean(l.PullFromMirror))
			}
			if l.PullFromMirror != "" && e.MirrorByDigestOnly {
				return fmt.Errorf("%q has both mirror-by-digest-only and pull-from-mirror", clean(e.Prefix))
			}
		}
		c.byPrefix[e.Prefix] = e
	}
	if len(c.byPrefix) > maxRules {
		return fmt.Errorf("there are more than %d registries", maxRules)
	}
	return nil
}

// match finds the entry with the longest prefix of name ("registry/path[:tag]"); n is how much of name it covers.
func (c *registriesConf) match(name string) (e registryEntry, n int, ok bool) {
	for p, x := range c.byPrefix {
		m := 0
		if rest, wild := strings.CutPrefix(p, "*"); wild { // ".example.com"
			host := name[:strings.IndexAny(name+"/", "/:")]
			if strings.HasSuffix(host, rest) {
				m = len(host)
			}
		} else if strings.HasPrefix(name, p) && (len(name) == len(p) || strings.ContainsRune("/:@", rune(name[len(p)]))) {
			m = len(p)
		}
		// Of a pattern and a text of the same reach the text is meant; two patterns differ in length.
		if m > n || m == n && m > 0 && len(p) > len(e.Prefix) {
			e, n, ok = x, m, true
		}
	}
	return e, n, ok
}

func (c *registriesConf) hosts(ref reference.Reference, own Host) ([]Host, error) {
	name := ref.String()
	e, n, ok := c.match(name)
	if !ok {
		return []Host{own}, nil
	}
	if e.Blocked {
		return nil, &errdefs.Error{
			What: ref.Familiar(), Kind: errdefs.Forbidden, Why: "registries.conf blocks " + clean(e.Prefix),
			Fix: "remove the line blocked = true there, if that is yours to decide",
		}
	}
	rest := ref.Repository()
	rest = rest[min(n, len(rest)):]
	at := func(location string, insecure bool) (Host, error) {
		h := own
		if location != "" {
			host, repo, _ := strings.Cut(strings.TrimSuffix(location, "/")+rest, "/")
			if repo == "" {
				return h, badRule("registries.conf", fmt.Sprintf("%s at %s has no repository name left", ref.Familiar(), clean(location)), nil)
			}
			if _, err := reference.Parse(serverOf(host) + "/" + repo); err != nil {
				return h, badRule("registries.conf", fmt.Sprintf("%s at %s is no image name", ref.Familiar(), clean(location)), err)
			}
			if serverOf(host) != own.Address {
				h.Address, h.Scheme = serverOf(host), "https"
				if isLoopback(host) {
					h.Scheme = "http"
				}
			}
			h.Repository = repo
		}
		h.Insecure = insecure
		return h, nil
	}
	var out []Host
	for _, m := range e.Mirror {
		h, err := at(m.Location, m.Insecure)
		if err != nil {
			return nil, err
		}
		h.Mirror, h.Push = true, false
		h.TagOnly = m.PullFromMirror == "tag-only"
		h.DigestOnly = m.PullFromMirror == "digest-only" || e.MirrorByDigestOnly
		out = append(out, h)
	}
	h, err := at(e.Location, e.Insecure)
	if err != nil {
		return nil, err
	}
	return append(out, h), nil
}
