package build

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/onggi/onggi/build/cache"
	"github.com/onggi/onggi/build/graph"
	"github.com/onggi/onggi/build/tree"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/image"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// source brings in an image or a directory of the user; the sources that are operations are not among them.
func (s *session) source(ctx context.Context, v *graph.Vertex) (result, error) {
	src := v.Source
	switch src.Scheme {
	case graph.Image:
		return s.imageSource(ctx, v)
	case graph.Local:
		return s.localSource(src)
	case graph.OCILayout:
		return result{}, unsupported("a base image from an OCI layout directory; load it first: onggi load")
	}
	return result{}, unsupported("a source " + src.Scheme)
}

// imageSource is a base image.
func (s *session) imageSource(ctx context.Context, v *graph.Vertex) (result, error) {
	for k := range v.Source.Attrs {
		switch k {
		case graph.AttrImageResolveMode, graph.AttrImageRecordType:
		default:
			return result{}, unsupported("the image attribute " + k)
		}
	}
	img, err := s.base(ctx, v.Source.Ref, v.Platform)
	if err != nil {
		return result{}, err
	}
	c, err := s.e.Content()
	if err != nil {
		return result{}, err
	}
	raw, err := c.ReadAll(img.Manifest, 16<<20)
	if err != nil {
		return result{}, err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return result{}, err
	}
	if len(m.Layers) != len(img.DiffIDs) {
		return result{}, &errdefs.Error{Op: "use", What: v.Source.Ref, Kind: errdefs.Corrupt, Why: "its manifest and its configuration list different layers"}
	}
	snap, err := s.e.Snapshots()
	if err != nil {
		return result{}, err
	}
	r := s.empty()
	r.name = v.Source.Ref
	name, _, _ := strings.Cut(v.Source.Ref, "@")
	r.image = name + "@" + img.Target.Digest.String()
	if s.epoch == nil && img.Config.Created != nil && img.Config.Created.After(r.epoch) {
		r.epoch = img.Config.Created.UTC().Truncate(time.Second)
	}
	var held []digest.Digest
	for i, d := range img.DiffIDs {
		held = append(held, d, m.Layers[i].Digest)
	}
	if err := s.hold.Add(ctx, held...); err != nil {
		return result{}, err
	}
	for i, d := range img.DiffIDs {
		l, err := snap.Layer(d)
		if err != nil {
			return result{}, err
		}
		r.layers = append(r.layers, cache.Layer{DiffID: d, Blob: m.Layers[i], Size: l.Size})
	}
	return r, nil
}

// base finds or fetches an image for a platform.
func (s *session) base(ctx context.Context, ref string, p *ocispec.Platform) (*image.Image, error) {
	want := image.HostPlatform()
	if p != nil {
		want = *p
	}
	key := ref + " " + want.OS + "/" + want.Architecture + "/" + want.Variant
	s.mu.Lock()
	img := s.bases[key]
	s.mu.Unlock()
	if img != nil {
		return img, nil
	}
	name, pinned, _ := strings.Cut(ref, "@")
	fits := func(i *image.Image) bool {
		return image.Serves(want, i.Config.Platform) &&
			(pinned == "" || i.Target.Digest.String() == pinned || i.Manifest.Digest.String() == pinned)
	}
	other := "" // what it is here for, if not for that
	if !s.o.Pull || pinned != "" {
		for _, n := range []string{name, ref} {
			got, err := s.images.GetPlatform(n, want)
			if err != nil && !errdefs.Is(err, errdefs.NotFound) {
				return nil, err
			}
			if err == nil && fits(got) {
				img = got
				break
			}
			if err == nil && pinned == "" {
				other = platformName(got.Config.Platform)
			}
		}
	}
	if img == nil {
		if s.o.PullImage == nil {
			return nil, &errdefs.Error{Op: "find", What: ref, Kind: errdefs.NotFound, Why: "the image is not here"}
		}
		fetch := name
		if pinned != "" {
			fetch = ref
		}
		var err error
		if img, err = s.o.PullImage(ctx, fetch, p); err != nil && other != "" {
			return nil, &errdefs.Error{
				Op: "use", What: ref, Kind: errdefs.KindOf(err), Why: "here it is for " + other + " only, and for " + platformName(want) + " it cannot be pulled",
				Fix: errdefs.FixOf(err), Err: err,
			}
		} else if err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bases[key] = img
	return img, nil
}

// localSource is a directory of the user, seen through the filter that the frontend asks for.
func (s *session) localSource(src *graph.Source) (result, error) {
	dir, ok := s.o.Locals[src.Ref]
	if !ok {
		return result{}, &errdefs.Error{Op: "open", What: "the build context " + src.Ref, Kind: errdefs.NotFound, Why: "it was not given"}
	}
	var lists [2][]string
	for k, v := range src.Attrs {
		var into *[]string
		switch k {
		case graph.AttrIncludePatterns:
			into = &lists[0]
		case graph.AttrExcludePatterns:
			into = &lists[1]
		case graph.AttrFollowPaths, graph.AttrSharedKeyHint, graph.AttrLocalSession, graph.AttrLocalUnique, graph.AttrLocalDiffer:
			// Hints for a daemon that gets the directory over a connection: here it is read where it is.
			continue
		default:
			return result{}, unsupported("the context attribute " + k)
		}
		if err := json.Unmarshal([]byte(v), into); err != nil {
			return result{}, fmt.Errorf("the attribute %s: %w", k, err)
		}
	}
	root, err := os.Open(dir)
	if err != nil {
		return result{}, err
	}
	s.later(root.Close)
	view, err := tree.NewView(root, lists[0], lists[1], true)
	if err != nil {
		return result{}, err
	}
	known, err := s.known(dir)
	if err != nil {
		return result{}, err
	}
	view.Remember(known)
	return result{local: view, name: "the build context " + src.Ref, epoch: scratch.epoch}, nil
}

// maxContexts is of how many directories of the user the files are remembered.
const maxContexts = 64

// known opens what is known of the files of a user's directory; it is saved when the build ends.
func (s *session) known(dir string) (*tree.Known, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if k := s.seen[abs]; k != nil {
		return k, nil
	}
	m, err := s.cache.Memory("files", maxContexts)
	if err != nil {
		return nil, err
	}
	k := tree.OpenKnown(m.Path(abs))
	s.seen[abs] = k
	s.undone = append(s.undone, func() error {
		_ = k.Save() // the next build reads the files, else
		m.Trim()
		return nil
	})
	return k, nil
}

// contents is what a selection of a tree of layers holds; it never changes.
type contents struct {
	Digest digest.Digest `json:"digest"`
	Files  []tree.File   `json:"files"`
}

// maxContents is of how many selections the contents are remembered.
const maxContents = 1000

// contents identifies a selection of a tree: a user's directory is looked at, what is known of layers is remembered.
func (s *session) contents(ctx context.Context, r *result, sel tree.Selection) (*contents, error) {
	c := &contents{}
	list := func(f tree.File) {
		if len(c.Files) <= maxListed {
			c.Files = append(c.Files, f)
		}
	}
	if r.local != nil {
		var err error
		c.Digest, err = r.local.Digest(ctx, sel, list)
		return c, err
	}
	text, err := json.Marshal(sel)
	if err != nil {
		return nil, err
	}
	about := r.id() + " " + string(text)
	m, err := s.cache.Memory("contents", maxContents)
	if err != nil {
		return nil, err
	}
	if m.Get(about, c) && c.Digest.Validate() == nil {
		return c, nil
	}
	view, err := s.view(ctx, r)
	if err != nil {
		return nil, err
	}
	*c = contents{}
	if c.Digest, err = view.Digest(ctx, sel, list); err != nil {
		return nil, err
	}
	return c, m.Put(about, c)
}

// fetchOp is ADD of a URL: a file.
type fetchOp struct {
	s *session
	v *graph.Vertex

	once sync.Once
	err  error
	path string
	sum  digest.Digest
	name string
	mod  time.Time
}

func (o *fetchOp) outputs() int { return 1 }

func (o *fetchOp) standsOn() *result { return &scratch }

func (o *fetchOp) output(_ int, own cache.Layer) result {
	r := o.s.empty()
	r.layers, r.name = []cache.Layer{own}, o.v.Source.Scheme+"://"+o.v.Source.Ref
	return r
}

func (o *fetchOp) parts(ctx context.Context) ([]cache.Part, error) {
	if err := o.fetch(ctx); err != nil {
		return nil, err
	}
	o.s.fetched(o.v, o.v.Source.Scheme+"://"+o.v.Source.Ref, "sha256", o.sum.Encoded())
	a := o.v.Source.Attrs
	return []cache.Part{
		{Name: "kind", Value: "http"},
		{Name: "content", Value: o.sum.String()},
		{Name: "name", Value: o.name},
		{Name: "mode", Value: a[graph.AttrHTTPPerm]},
		{Name: "owner", Value: a[graph.AttrHTTPUID] + ":" + a[graph.AttrHTTPGID]},
		{Name: "last modified", Value: o.mod.UTC().Format(time.RFC3339)},
	}, nil
}

// fetchTime bounds how long a server may keep us waiting for its answer; the body has as long as it moves.
const fetchTime = time.Minute

func (o *fetchOp) fetch(ctx context.Context) error {
	o.once.Do(func() { o.err = o.download(ctx) })
	return o.err
}

func (o *fetchOp) download(ctx context.Context) error {
	src := o.v.Source
	address := src.Scheme + "://" + src.Ref
	fail := func(err error) error {
		return &errdefs.Error{Op: "fetch", What: address, Kind: errdefs.KindOf(err), Fix: errdefs.FixOf(err), Err: err}
	}
	var want digest.Digest
	for k, v := range src.Attrs {
		switch k {
		case graph.AttrHTTPChecksum:
			want = digest.Digest(v)
			if err := want.Validate(); err != nil {
				return fail(err)
			}
		case graph.AttrHTTPFilename, graph.AttrHTTPPerm, graph.AttrHTTPUID, graph.AttrHTTPGID:
		default:
			return unsupported("the attribute " + k + " of " + address)
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return fail(err)
	}
	req.Header.Set("User-Agent", "onggi")
	resp, err := o.s.client(req.URL).Do(req)
	if err != nil {
		return fail(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		kind := errdefs.Unavailable
		if resp.StatusCode == http.StatusNotFound {
			kind = errdefs.NotFound
		}
		return fail(&errdefs.Error{Kind: kind, Why: "the server answers " + resp.Status})
	}
	f, err := os.CreateTemp(o.s.tmp, "http-")
	if err != nil {
		return fail(err)
	}
	defer f.Close()
	h := digest.SHA256.Digester()
	algo := h
	if want != "" {
		algo = want.Algorithm().Digester()
	}
	if _, err := io.Copy(io.MultiWriter(f, h.Hash(), algo.Hash()), resp.Body); err != nil {
		return fail(err)
	}
	if want != "" && algo.Digest() != want {
		return fail(&errdefs.Error{Kind: errdefs.Corrupt, Why: fmt.Sprintf("its digest is %s, and --checksum says %s", algo.Digest(), want)})
	}
	o.path, o.sum, o.name = f.Name(), h.Digest(), fileName(src, resp)
	if t, err := http.ParseTime(resp.Header.Get("Last-Modified")); err == nil {
		o.mod = t
	}
	return nil
}

// fileName is what the file is called: as the frontend says, as the server says, or the last part of the address.
func fileName(src *graph.Source, resp *http.Response) string {
	if n := src.Attrs[graph.AttrHTTPFilename]; n != "" {
		return path.Base(path.Clean("/" + n))
	}
	if _, params, err := mime.ParseMediaType(resp.Header.Get("Content-Disposition")); err == nil {
		if n := path.Base(path.Clean("/" + params["filename"])); n != "/" {
			return n
		}
	}
	if n := path.Base(path.Clean("/" + resp.Request.URL.Path)); n != "/" {
		return n
	}
	return "download"
}

// client connects to public addresses only, whatever a name resolves to and wherever a server redirects, unless the user
// allows others: a Dockerfile must not read what only this machine can see (cloud metadata, say).
func (s *session) client(first *url.URL) *http.Client {
	own := s.trusted(first.Host)
	d := &net.Dialer{Timeout: 30 * time.Second, Control: func(_, address string, _ syscall.RawConn) error {
		ap, err := netip.ParseAddrPort(address)
		if err != nil || own || s.allowed(PrivateAddresses) {
			return err
		}
		if a := ap.Addr().Unmap(); !public(a) {
			return &errdefs.Error{
				Kind: errdefs.Forbidden, Why: "the address " + a.String() + " is not public",
				Fix: "if you trust the Dockerfile: --allow " + string(PrivateAddresses),
			}
		}
		return nil
	}}
	t := &http.Transport{Proxy: http.ProxyFromEnvironment, DialContext: d.DialContext, ResponseHeaderTimeout: fetchTime, TLSHandshakeTimeout: 30 * time.Second}
	s.later(func() error { t.CloseIdleConnections(); return nil })
	return &http.Client{Transport: t, CheckRedirect: func(r *http.Request, via []*http.Request) error {
		if len(via) > 10 {
			return errors.New("the server redirects more than ten times")
		}
		if own && r.URL.Host != first.Host {
			return fmt.Errorf("it redirects to another host, %s", r.URL.Host)
		}
		if via[0].URL.Scheme == "https" && r.URL.Scheme != "https" {
			return fmt.Errorf("it redirects from https to %s", r.URL.Scheme)
		}
		return nil
	}}
}

func (o *fetchOp) run(ctx context.Context, _ func([]byte)) ([]cache.Layer, error) {
	src := o.v.Source
	mode, owner := 0o600, &graph.Owner{User: &graph.Principal{Input: -1}, Group: &graph.Principal{Input: -1}}
	if p := src.Attrs[graph.AttrHTTPPerm]; p != "" {
		m, err := strconv.ParseUint(p, 0, 32)
		if err != nil {
			return nil, err
		}
		mode = int(m)
	}
	for k, p := range map[string]*graph.Principal{graph.AttrHTTPUID: owner.User, graph.AttrHTTPGID: owner.Group} {
		if v := src.Attrs[k]; v != "" {
			id, err := strconv.ParseUint(v, 10, 32)
			if err != nil {
				return nil, err
			}
			p.ID = uint32(id)
		}
	}
	stamp := o.mod
	if stamp.IsZero() {
		stamp = o.s.empty().epoch
	}
	return o.s.layerOf(ctx, filepath.Dir(o.path), &graph.Copy{
		Src: filepath.Base(o.path), Dest: "/" + o.name, Mode: mode, Owner: owner, Timestamp: stamp.UnixNano(), CreateDestPath: true,
	})
}

// layerOf makes a layer of files of ours.
func (s *session) layerOf(ctx context.Context, dir string, c *graph.Copy) ([]cache.Layer, error) {
	root, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	view, err := tree.NewView(root, nil, nil, true)
	if err != nil {
		return nil, err
	}
	o, err := s.newFileOp(&graph.Vertex{File: &graph.File{Actions: []graph.Action{{Input: -1, Secondary: 0, Copy: c}}}}, []*result{{local: view}})
	if err != nil {
		return nil, err
	}
	return o.run(ctx, nil)
}

// gitOp is a git repository's tree at a commit.
type gitOp struct {
	s      *session
	v      *graph.Vertex
	url    *url.URL
	remote string
	ref    string
	subdir string
	commit string
}

// newGit reads "host/path#ref:subdir" and the full address.
func (s *session) newGit(v *graph.Vertex) (*gitOp, error) {
	o := &gitOp{s: s, v: v}
	a := v.Source.Attrs
	for k := range a {
		switch k {
		case graph.AttrGitKeepDir, graph.AttrGitFullURL, graph.AttrGitChecksum, graph.AttrGitSkipSubmodules, graph.AttrGitAdvice, graph.AttrGitFetchByCommit:
		case graph.AttrGitAuthHeader, graph.AttrGitAuthToken, graph.AttrGitKnownSSHHosts, graph.AttrGitMountSSHSock:
			// Offered by the frontend for every address: secrets of these names are used if they were given (authorize).
		default:
			return nil, unsupported("the git attribute " + k)
		}
	}
	o.remote = cmp(a[graph.AttrGitFullURL], "https://"+v.Source.Ref)
	_, fragment, _ := strings.Cut(v.Source.Ref, "#")
	o.remote, _, _ = strings.Cut(o.remote, "#")
	o.ref, o.subdir, _ = strings.Cut(fragment, ":")
	if o.ref == "" {
		o.ref = "HEAD"
	}
	if strings.HasPrefix(o.ref, "-") || strings.HasPrefix(o.remote, "-") {
		return nil, &errdefs.Error{Op: "fetch", What: v.Source.Ref, Kind: errdefs.InvalidArgument, Why: "neither address nor reference may begin with -"}
	}
	u, err := url.Parse(o.remote)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" && u.Scheme != "git" {
		return nil, &errdefs.Error{
			Op: "fetch", What: o.remote, Kind: errdefs.Unsupported, Why: "git is spoken over https, http and git only: over ssh it would read the keys and the settings of whoever builds",
			Fix: "use https, with a token: --secret id=GIT_AUTH_TOKEN,env=TOKEN; or clone in a RUN --mount=type=ssh",
		}
	}
	o.url = u
	return o, nil
}

// trusted says that the user has named the host as a context: an address of his own word may be private.
func (s *session) trusted(host string) bool {
	for k, v := range s.o.Request {
		if k != "context" && !strings.HasPrefix(k, "context:") {
			continue
		}
		if u, err := url.Parse(v); err == nil && u.Host != "" && u.Host == host {
			return true
		}
	}
	return false
}

// guard finds the repository's addresses and has git use these and no others, if they are public: a Dockerfile must not read
// what only this machine can see. A proxy, which is another machine, decides for itself.
func (o *gitOp) guard(ctx context.Context) ([]string, error) {
	if o.s.allowed(PrivateAddresses) || o.s.trusted(o.url.Host) {
		return nil, nil
	}
	for _, e := range o.s.o.GitEnv {
		if strings.HasPrefix(e, o.url.Scheme+"_proxy=") {
			return nil, nil
		}
	}
	private := func(why string) error {
		return &errdefs.Error{
			Op: "fetch", What: o.remote, Kind: errdefs.Forbidden, Why: why, Fix: "if you trust the Dockerfile: --allow " + string(PrivateAddresses),
		}
	}
	if o.url.Scheme == "git" {
		return nil, private("the protocol git says nothing of who answers, or from where")
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", o.url.Hostname())
	if err != nil {
		return nil, &errdefs.Error{Op: "fetch", What: o.remote, Kind: errdefs.KindOf(err), Err: err, Fix: "check the spelling and the network"}
	}
	var list []string
	for _, a := range ips {
		if a = a.Unmap(); !public(a) {
			return nil, private("the address " + a.String() + " is not public")
		}
		if a.Is6() {
			list = append(list, "["+a.String()+"]")
		} else {
			list = append(list, a.String())
		}
	}
	port := cmp(o.url.Port(), map[string]string{"http": "80", "https": "443"}[o.url.Scheme])
	return []string{"http.followRedirects", "false", "http.curloptResolve", o.url.Hostname() + ":" + port + ":" + strings.Join(list, ",")}, nil
}

func public(a netip.Addr) bool { return a.IsGlobalUnicast() && !a.IsPrivate() }

// authorize is git's setting for the secret that was given for the host, or for all hosts (GIT_AUTH_TOKEN, GIT_AUTH_HEADER), as
// BuildKit has it. It is sent to that host only.
func (o *gitOp) authorize() ([]string, error) {
	a := o.v.Source.Attrs
	for _, name := range []string{a[graph.AttrGitAuthToken] + "." + o.url.Host, a[graph.AttrGitAuthHeader] + "." + o.url.Host, a[graph.AttrGitAuthToken], a[graph.AttrGitAuthHeader]} {
		sec, ok := o.s.o.Secrets[name]
		if !ok {
			continue
		}
		b, err := sec.read()
		if err != nil {
			return nil, err
		}
		header := strings.TrimSpace(string(b))
		if strings.HasPrefix(name, cmp(a[graph.AttrGitAuthToken], "-")) {
			header = "basic " + base64.StdEncoding.EncodeToString([]byte("x-access-token:"+header))
		}
		return []string{"http." + o.url.Scheme + "://" + o.url.Host + "/.extraHeader", "Authorization: " + header}, nil
	}
	return nil, nil
}

func (o *gitOp) outputs() int { return 1 }

func (o *gitOp) standsOn() *result { return &scratch }

func (o *gitOp) output(_ int, own cache.Layer) result {
	r := o.s.empty()
	r.layers, r.name = []cache.Layer{own}, o.remote
	return r
}

// git runs the user's git with nobody's configuration: no hooks, no helpers, no prompts, no local or external protocols.
func (o *gitOp) git(ctx context.Context, dir string, args ...string) (string, error) {
	settings, err := o.guard(ctx)
	if err != nil {
		return "", err
	}
	secret, err := o.authorize()
	if err != nil {
		return "", err
	}
	settings = append(settings, secret...)
	c := exec.CommandContext(ctx, "git", append([]string{
		"-c", "protocol.file.allow=never", "-c", "protocol.ext.allow=never", "-c", "core.hooksPath=/dev/null",
		"-c", "credential.helper=", "-c", "advice.detachedHead=false", "-c", "core.fsmonitor=false",
	}, args...)...)
	c.Dir = dir
	c.Env = append([]string{"HOME=/nonexistent", "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_TERMINAL_PROMPT=0", "LC_ALL=C"}, o.s.o.GitEnv...)
	// In the environment, which nobody else can read, and not among the arguments.
	c.Env = append(c.Env, fmt.Sprintf("GIT_CONFIG_COUNT=%d", len(settings)/2))
	for i := 0; i < len(settings); i += 2 {
		c.Env = append(c.Env, fmt.Sprintf("GIT_CONFIG_KEY_%d=%s", i/2, settings[i]), fmt.Sprintf("GIT_CONFIG_VALUE_%d=%s", i/2, settings[i+1]))
	}
	c.WaitDelay = time.Second
	out, err := c.Output()
	if err != nil {
		why := ""
		var ee *exec.ExitError
		if errors.As(err, &ee) {
			why = strings.TrimSpace(string(ee.Stderr))
		}
		e := &errdefs.Error{Op: "fetch", What: o.remote, Kind: errdefs.Unavailable, Why: why, Err: err}
		if errors.Is(err, exec.ErrNotFound) {
			e.Kind, e.Fix = errdefs.Unsupported, "install git: apt install git"
		}
		return "", e
	}
	return strings.TrimSpace(string(out)), nil
}

// sha says whether the reference is a whole commit.
func sha(s string) bool {
	return (len(s) == 40 || len(s) == 64) && strings.Trim(s, "0123456789abcdef") == ""
}

func (o *gitOp) parts(ctx context.Context) ([]cache.Part, error) {
	o.commit = o.ref
	if !sha(o.ref) {
		out, err := o.git(ctx, "", "ls-remote", "--", o.remote, o.ref, o.ref+"^{}")
		if err != nil {
			return nil, err
		}
		o.commit = ""
		for _, l := range strings.Split(out, "\n") { // an annotated tag's commit comes after it, with ^{}
			if hash, name, ok := strings.Cut(l, "\t"); ok && (o.commit == "" || strings.HasSuffix(name, "^{}")) {
				o.commit = hash
			}
		}
		if !sha(o.commit) {
			return nil, &errdefs.Error{Op: "fetch", What: o.remote + "#" + o.ref, Kind: errdefs.NotFound, Why: "the repository has no such branch or tag", Fix: "name a branch, a tag or a whole commit"}
		}
	}
	o.s.fetched(o.v, o.remote+"#"+o.ref, "sha1", o.commit)
	a := o.v.Source.Attrs
	if want := a[graph.AttrGitChecksum]; want != "" && !strings.HasPrefix(o.commit, want) {
		return nil, &errdefs.Error{Op: "fetch", What: o.remote + "#" + o.ref, Kind: errdefs.Corrupt, Why: "it is commit " + o.commit + ", and --checksum says " + want}
	}
	return []cache.Part{
		{Name: "kind", Value: "git"},
		{Name: "repository", Value: o.remote},
		{Name: "commit", Value: o.commit},
		{Name: "directory", Value: o.subdir},
		{Name: "with .git", Value: a[graph.AttrGitKeepDir]},
		{Name: "without submodules", Value: a[graph.AttrGitSkipSubmodules]},
	}, nil
}

func (o *gitOp) run(ctx context.Context, _ func([]byte)) ([]cache.Layer, error) {
	dir, err := os.MkdirTemp(o.s.tmp, "git-")
	if err != nil {
		return nil, err
	}
	if _, err := o.git(ctx, dir, "init", "-q", "."); err != nil {
		return nil, err
	}
	// One commit where the server gives single commits, else what leads to the reference.
	if _, err := o.git(ctx, dir, "fetch", "-q", "--depth=1", "--no-tags", "--", o.remote, o.commit); err != nil {
		if _, err := o.git(ctx, dir, "fetch", "-q", "--no-tags", "--", o.remote, o.ref); err != nil {
			return nil, err
		}
	}
	if _, err := o.git(ctx, dir, "checkout", "-q", "--force", o.commit, "--"); err != nil {
		return nil, err
	}
	a := o.v.Source.Attrs
	if a[graph.AttrGitSkipSubmodules] != "true" {
		if _, err := os.Lstat(filepath.Join(dir, ".gitmodules")); err == nil {
			if _, err := o.git(ctx, dir, "submodule", "-q", "update", "--init", "--recursive", "--depth=1"); err != nil {
				return nil, err
			}
		}
	}
	// The files have the commit's time: git gives them the time of the day.
	out, err := o.git(ctx, dir, "show", "-s", "--format=%ct", "HEAD")
	if err != nil {
		return nil, err
	}
	at, err := strconv.ParseInt(out, 10, 64)
	if err != nil || at < 0 || at > time.Now().Unix() {
		at = scratch.epoch.Unix()
	}
	c := &graph.Copy{Src: "/" + o.subdir, Dest: "/", Mode: -1, Timestamp: at * 1e9, FollowSymlink: true, DirContents: true, CreateDestPath: true}
	if a[graph.AttrGitKeepDir] == "true" {
		// What tells when and from where it was fetched is no content: the same commit is the same layer.
		for _, n := range []string{"FETCH_HEAD", "ORIG_HEAD", "logs", "index"} {
			if err := os.RemoveAll(filepath.Join(dir, ".git", n)); err != nil {
				return nil, err
			}
		}
		if _, err := o.git(ctx, dir, "read-tree", "HEAD"); err != nil {
			return nil, err
		}
	} else {
		c.Exclude = []string{"**/.git"}
	}
	return o.s.layerOf(ctx, dir, c)
}
