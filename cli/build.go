package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/onggi/onggi/archive"
	"github.com/onggi/onggi/build"
	"github.com/onggi/onggi/build/history"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/image"
	"github.com/onggi/onggi/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// buildFlags are those of `onggi build`.
type buildFlags struct {
	tags, args, labels, platform, contexts, secrets, agents, hosts, ulimits, allow, noCacheFilter []string
	provenance, sbom, file, target, network, progress, iidfile, metadata, shm                     string
	outputs, annotations, cacheFrom, cacheTo, attests                                             []string
	noCache, pull, quiet, check, push, load, why                                                  bool
	toStdout                                                                                      bool // the result goes there
}

func buildBuild(a *app, c *cobra.Command) {
	b := &buildFlags{}
	if subs := a.buildCommands(); len(subs) > 0 {
		for _, sub := range subs {
			c.AddCommand(a.command(sub))
		}
	}
	c.Use = "build [FLAGS] DIRECTORY|URL|-"
	c.Long = `Make an image from a Dockerfile. The instructions are BuildKit's, all of them; branches run side by side, and a step whose
inputs are the same as before is not performed again. What a step depends on is its content: a file's bytes, mode and
name, never its time. The same inputs give the same image on another day and another machine.

The directory is the build context: what COPY and ADD may take, but for what .dockerignore leaves out. "-" reads a
Dockerfile, or a tar archive with one, from standard input.

Each build is remembered: "onggi build why" tells which steps hit the cache and what changed for those that did not,
"onggi build history" lists builds with their times and logs, "onggi build debug" opens a shell in the step that failed.
To build a directory that has the name of one of these commands, write ./why.`
	c.Example = `  onggi build -t app .
  onggi build -t app -f deploy/Dockerfile --build-arg VERSION=1.2 .
  onggi build --secret id=token,src=$HOME/.token -t app .
  onggi build --check .
  onggi build --platform linux/amd64,linux/arm64 -t registry.example.com/app:1 --push .
  onggi build -o out . && ls out
  onggi build why                               why steps of the last build ran again
  tar -c . | onggi build -t app -`
	f := c.Flags()
	f.SortFlags = false
	f.StringArrayVarP(&b.tags, "tag", "t", nil, "give the image the `name`; may be given again")
	f.StringVarP(&b.file, "file", "f", "", "the Dockerfile's `path` (default DIRECTORY/Dockerfile); - is standard input")
	f.StringVar(&b.target, "target", "", "build this `stage`")
	f.StringArrayVar(&b.args, "build-arg", nil, "set an ARG: `NAME=VALUE`, or NAME for the environment's value")
	f.StringArrayVar(&b.contexts, "build-context", nil, "another context: `NAME=DIRECTORY`, docker-image://IMAGE, or a URL")
	f.StringArrayVar(&b.labels, "label", nil, "give the image a label: `NAME=VALUE`")
	f.StringSliceVar(&b.platform, "platform", nil, "build for `os/arch[/variant]`, several with commas: the result is an index (default this host's)")
	f.StringArrayVarP(&b.outputs, "output", "o", nil, "where the result goes: `DIRECTORY`, - for a tar, or type=image|registry|oci|docker|local|tar|cacheonly[,dest=...]")
	f.BoolVar(&b.push, "push", false, "push the image to the registries of its names; as --output type=registry")
	f.BoolVar(&b.load, "load", false, "bring the image into the store beside other outputs; as --output type=docker")
	f.StringVar(&b.provenance, "provenance", "", "say in the image's index how it was made: `true, false, mode=min or mode=max`")
	f.StringVar(&b.sbom, "sbom", "", "list in the image's index which packages it has: `true or false`")
	f.StringArrayVar(&b.attests, "attest", nil, "the same: `type=provenance[,mode=max]` or type=sbom")
	f.StringArrayVar(&b.cacheFrom, "cache-from", nil, "use the cache of another store: `NAME`, or type=registry,ref=NAME, or type=local,src=DIRECTORY")
	f.StringArrayVar(&b.cacheTo, "cache-to", nil, "give the cache away: `NAME`, type=registry,ref=NAME, type=local,dest=DIRECTORY [,mode=max], or type=inline")
	f.StringArrayVar(&b.annotations, "annotation", nil, "annotate the image: `[manifest|index|manifest-descriptor:]NAME=VALUE`")
	f.BoolVar(&b.noCache, "no-cache", false, "perform every step again")
	f.StringSliceVar(&b.noCacheFilter, "no-cache-filter", nil, "perform the steps of these `stages` again")
	f.BoolVar(&b.pull, "pull", false, "ask the registry for newer base images")
	f.StringArrayVar(&b.secrets, "secret", nil, "give RUN --mount=type=secret a value: `id=ID[,src=FILE|,env=NAME]`")
	f.StringArrayVar(&b.agents, "ssh", nil, "give RUN --mount=type=ssh an agent: `default`, or ID=SOCKET")
	f.StringVar(&b.network, "network", "", "network of RUN: `default, none or host`")
	f.StringArrayVar(&b.hosts, "add-host", nil, "line of /etc/hosts of RUN: `name:address`")
	f.StringArrayVar(&b.ulimits, "ulimit", nil, "resource limit of RUN: `name=soft[:hard]`")
	f.StringVar(&b.shm, "shm-size", "", "`size` of /dev/shm of RUN")
	f.StringArrayVar(&b.allow, "allow", nil, "allow steps an `entitlement`: network.host, security.insecure, network.private")
	f.StringVar(&b.progress, "progress", "auto", "how to show what happens: `auto`, plain, tty, rawjson, quiet or none (BUILDKIT_PROGRESS)")
	f.BoolVar(&b.why, "why", false, "say of each step why it was performed, or that it was not")
	f.StringVar(&b.iidfile, "iidfile", "", "write the image's id to this `file`")
	f.StringVar(&b.metadata, "metadata-file", "", "write what was made to this `file`, as JSON")
	f.BoolVarP(&b.quiet, "quiet", "q", false, "print nothing but the image's id")
	f.BoolVar(&b.check, "check", false, "check the Dockerfile by BuildKit's rules, and build nothing")
	c.Args = takes(1, 1, "the directory of the build context")
	c.RunE = func(c *cobra.Command, args []string) error {
		if os.Getenv(insideNamespace) == "" {
			return a.inNamespace()
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
			return &errdefs.Error{Op: "prepare", What: "the build's mount namespace", Kind: errdefs.KindOf(err), Err: err}
		}
		return a.build(c, b, args[0])
	}
}

// insideNamespace is set for the second process of a build.
const insideNamespace = "ONGGI_BUILD_NAMESPACE"

// orphaned tells the second process of a build that the first one has been killed. It is a signal that nobody else sends: the
// kernel sends it once for each thread of the dying parent that the child is handed on to, and of SIGTERM a second one ends a
// process at once (context).
const orphaned = syscall.Signal(63)

// inherited returns a context that ends when the first process of a build does.
func (a *app) inherited(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(parent)
	c := make(chan os.Signal, 1)
	signal.Notify(c, orphaned) // never stopped: by default the signal kills
	go func() {
		<-c
		a.caught = syscall.SIGTERM
		cancel()
	}()
	return ctx, cancel
}

// inNamespace runs this command again in a mount namespace of its own, where the trees that a RUN mounts are mounted, and
// vanish with it whatever happens.
func (a *app) inNamespace() error {
	if err := a.enter(); err != nil {
		return err
	}
	runtime.LockOSThread() // Pdeathsig is the thread's
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), insideNamespace+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.in, a.out, a.err
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: orphaned}
	ctx, cancel := a.context(context.Background())
	defer cancel()
	if err := cmd.Start(); err != nil {
		return &errdefs.Error{Op: "start", What: "the build in a mount namespace of its own", Kind: errdefs.KindOf(err), Err: err}
	}
	done := make(chan struct{})
	go func() {
		select {
		case <-ctx.Done():
			_ = cmd.Process.Signal(a.caught) // a terminal has told it, too; once is as good as twice
		case <-done:
		}
	}()
	err := cmd.Wait()
	close(done)
	var x *exec.ExitError
	if errors.As(err, &x) {
		code := x.ExitCode()
		if ws, ok := x.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			code = 128 + int(ws.Signal())
			e, err := a.open()
			if err == nil { // what it was doing must not go on
				_, err = e.SweepBuilds(context.Background())
			}
			if err != nil {
				return &exit{code, err}
			}
			return &exit{code, &errdefs.Error{Op: "build", Kind: errdefs.Canceled, Why: "the build was ended by " + ws.Signal().String() + "; what it had begun was taken back"}}
		}
		return &exit{code: code}
	}
	return err
}

func (a *app) build(c *cobra.Command, b *buildFlags, where string) (err error) {
	parent, stop := a.inherited(c.Context())
	defer stop()
	ctx, cancel := a.context(parent)
	defer cancel()
	e, err := a.open()
	if err != nil {
		return err
	}
	o, undo, err := a.buildOptions(ctx, b, where)
	if undo != nil {
		defer func() { err = errors.Join(err, undo()) }()
	}
	if err != nil {
		return err
	}
	show, err := a.buildProgress(b)
	if err != nil {
		return err
	}
	o.PullImage = func(ctx context.Context, name string, p *ocispec.Platform) (*image.Image, error) {
		if isHello(name) {
			return a.loadHello(ctx, e)
		}
		po := image.PullOptions{Platform: p}
		if show.screen != nil {
			event, end := show.screen.pull(name)
			po.Progress = event
			defer end()
		}
		return a.pull(ctx, e, name, po, nil, nil)
	}
	o.PushImage = a.buildPush(e)
	o.Progress, o.ID = show, history.NewID()
	res, err := build.Build(ctx, e, o)
	show.end()
	if b.why {
		err = errors.Join(err, a.printWhy(a.err, e, o.ID, "", format{table: true}))
	}
	if err != nil {
		show.explain(err)
		return err
	}
	if b.check {
		return a.lintResult(res)
	}
	return a.buildResult(b, res)
}

// lintResult prints what --check found; findings are exit code 1, as docker's.
func (a *app) lintResult(res *build.Result) error {
	text := string(res.Meta["result.txt"])
	if strings.TrimSpace(text) == "" {
		return a.print("Check complete, no warnings found.\n")
	}
	if err := a.print(strings.TrimPrefix(text, "\n")); err != nil {
		return err
	}
	if n, _ := strconv.Atoi(string(res.Meta["result.statuscode"])); n != 0 {
		return &exit{code: n}
	}
	return &exit{code: 1}
}

// buildOptions reads the flags and prepares the context. undo removes what was unpacked.
func (a *app) buildOptions(ctx context.Context, b *buildFlags, where string) (o build.Options, undo func() error, err error) {
	o.Request = map[string]string{}
	o.Locals = map[string]string{}
	o.Pull, o.NoCache = b.pull, b.noCache
	if o.Frontend, err = frontendCommand(); err != nil {
		return o, nil, err
	}
	var names []reference.Reference
	for _, t := range b.tags {
		ref, err := reference.Parse(t)
		if err != nil {
			return o, nil, err
		}
		if ref.Digest != "" {
			return o, nil, badFlag("--tag", t, "an image cannot be given a digest", "write NAME:TAG")
		}
		names = append(names, ref)
	}
	if o.Outputs, err = a.buildOutputs(b, names); err != nil {
		return o, nil, err
	}
	if o.CacheFrom, o.CacheTo, err = a.buildCaches(b); err != nil {
		return o, nil, err
	}
	if err := b.attestations(&o); err != nil {
		return o, nil, err
	}
	for _, x := range o.Outputs {
		b.toStdout = b.toStdout || x.Out != nil
	}
	if b.target != "" {
		o.Request["target"] = b.target
	}
	if len(b.platform) > 0 {
		for _, p := range b.platform {
			if p == "local" {
				continue
			}
			if _, err := parsePlatform(p); err != nil {
				return o, nil, reading("--platform", p, err)
			}
		}
		o.Request["platform"] = strings.Join(b.platform, ",")
	}
	for _, s := range b.args {
		k, v, ok := strings.Cut(s, "=")
		if k == "" {
			return o, nil, badFlag("--build-arg", s, "it has no name", "write NAME=VALUE")
		}
		if !ok {
			if v, ok = os.LookupEnv(k); !ok {
				continue // as docker: the ARG keeps its default
			}
		}
		o.Request["build-arg:"+k] = v
	}
	for _, s := range b.labels {
		k, v, _ := strings.Cut(s, "=")
		if k == "" {
			return o, nil, badFlag("--label", s, "it has no name", "write NAME=VALUE")
		}
		o.Request["label:"+k] = v
	}
	if len(b.noCacheFilter) > 0 {
		o.Request["no-cache"] = strings.Join(b.noCacheFilter, ",")
	}
	switch b.network {
	case "", "default", "bridge":
	case "none", "host":
		o.Request["force-network-mode"] = b.network
	default:
		return o, nil, badFlag("--network", b.network, "there is no such network for builds", "use default, none or host")
	}
	if b.network == "host" { // the user's own word, not the Dockerfile's
		o.Allow = append(o.Allow, build.NetworkHost)
	}
	var hosts []string
	for _, s := range b.hosts {
		h, err := parseExtraHost(s)
		if err != nil {
			return o, nil, reading("--add-host", s, err)
		}
		name, ip, _ := strings.Cut(h, ":")
		hosts = append(hosts, name+"="+ip)
	}
	if len(hosts) > 0 {
		o.Request["add-hosts"] = strings.Join(hosts, ",")
	}
	var limits []string
	for _, s := range b.ulimits {
		u, err := parseUlimit(s)
		if err != nil {
			return o, nil, reading("--ulimit", s, err)
		}
		limits = append(limits, fmt.Sprintf("%s=%d:%d", u.Name, u.Soft, u.Hard))
	}
	if len(limits) > 0 {
		o.Request["ulimit"] = strings.Join(limits, ",")
	}
	if b.shm != "" {
		n, err := parseSize(b.shm)
		if err != nil {
			return o, nil, reading("--shm-size", b.shm, err)
		}
		o.Request["shm-size"] = strconv.FormatInt(n, 10)
	}
	if o.Allow, err = buildAllow(b.allow); err != nil {
		return o, nil, err
	}
	if o.Secrets, err = buildSecrets(b.secrets); err != nil {
		return o, nil, err
	}
	if o.Agents, err = buildAgents(b.agents); err != nil {
		return o, nil, err
	}
	if b.check {
		o.Request["requestid"] = "frontend.lint"
	}
	for _, k := range []string{"PATH", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR"} {
		if v := os.Getenv(k); v != "" {
			o.GitEnv = append(o.GitEnv, k+"="+v)
		}
	}
	for _, s := range b.contexts {
		name, v, ok := strings.Cut(s, "=")
		if !ok || name == "" || v == "" {
			return o, nil, badFlag("--build-context", s, "it has no name or no value", "write NAME=DIRECTORY")
		}
		name = strings.ToLower(name)
		if strings.Contains(v, "://") {
			o.Request["context:"+name] = v
			continue
		}
		if err := isDirectory(v); err != nil {
			return o, nil, err
		}
		o.Locals["named-"+name] = v
		o.Request["context:"+name] = "local:named-" + name
	}
	o.Context, o.Dockerfile = where, b.file
	if abs, err := filepath.Abs(where); err == nil && o.Request["context"] == "" && where != "-" && !strings.Contains(where, "://") && !strings.HasPrefix(where, "git@") {
		o.Context = abs
	}
	if o.Dockerfile == "" {
		o.Dockerfile = "Dockerfile"
	}
	undo, err = a.buildContext(ctx, b, where, &o)
	return o, undo, err
}

// frontendCommand finds onggi-build beside this program, or in PATH.
func frontendCommand() ([]string, error) {
	self, err := os.Executable()
	if err == nil {
		p := filepath.Join(filepath.Dir(self), "onggi-build")
		if _, err := os.Stat(p); err == nil {
			return []string{p}, nil
		}
	}
	p, err := exec.LookPath("onggi-build")
	if err != nil {
		return nil, &errdefs.Error{
			Op: "build", Kind: errdefs.Unsupported, Why: "onggi-build, which reads Dockerfiles, is neither beside onggi nor in PATH",
			Fix: "install it: make install copies all binaries",
		}
	}
	return []string{p}, nil
}

func isDirectory(p string) error {
	fi, err := os.Stat(p)
	if err == nil && !fi.IsDir() {
		err = unix.ENOTDIR
	}
	if err != nil {
		return &errdefs.Error{Op: "open", What: "the build context " + p, Kind: errdefs.KindOf(err), Err: err, Fix: "give the directory that holds the Dockerfile and the files it copies"}
	}
	return nil
}

// maxDockerfile bounds a Dockerfile from standard input, in bytes.
const maxDockerfile = 16 << 20

// buildContext finds the Dockerfile and the files of the build.
func (a *app) buildContext(ctx context.Context, b *buildFlags, where string, o *build.Options) (undo func() error, err error) {
	remote := strings.Contains(where, "://") || strings.HasPrefix(where, "git@")
	if b.file == "-" && where == "-" {
		return nil, badFlag("--file", "-", "both the Dockerfile and the context cannot come from standard input", "give a directory")
	}
	dir := func() (string, error) {
		d, err := os.MkdirTemp("", "onggi-context-")
		if err == nil {
			undo = func() error { return os.RemoveAll(d) }
		}
		return d, err
	}
	switch {
	case remote:
		o.Request["context"] = where
	case where == "-":
		d, err := dir()
		if err != nil {
			return undo, err
		}
		if err := a.contextFromStdin(ctx, d); err != nil {
			return undo, err
		}
		where = d
		fallthrough
	default:
		if err := isDirectory(where); err != nil {
			return undo, err
		}
		o.Locals["context"] = where
	}
	switch {
	case b.file == "-":
		d, err := dir()
		if err != nil {
			return undo, err
		}
		if err := a.spool(filepath.Join(d, "Dockerfile"), a.in); err != nil {
			return undo, err
		}
		o.Locals["dockerfile"] = d
		if remote {
			o.Request["dockerfilekey"] = "dockerfile"
		}
	case remote:
		if b.file != "" {
			o.Request["filename"] = b.file
		}
	case b.file != "":
		p := b.file
		if !filepath.IsAbs(p) && o.Locals["context"] != "" {
			if _, err := os.Stat(p); err != nil { // docker looks beside the caller first, then in the context
				if in := filepath.Join(where, p); exists(in) {
					p = in
				}
			}
		}
		o.Locals["dockerfile"], o.Request["filename"] = filepath.Dir(p), filepath.Base(p)
	default:
		o.Locals["dockerfile"] = where
	}
	return undo, nil
}

func exists(p string) bool {
	_, err := os.Stat(p)
	return err == nil
}

// spool writes at most maxDockerfile bytes of r to a new file.
func (a *app) spool(p string, r io.Reader) error {
	f, err := os.OpenFile(p, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	n, err := io.Copy(f, io.LimitReader(r, maxDockerfile+1))
	if err = errors.Join(err, f.Close()); err == nil && n > maxDockerfile {
		err = &errdefs.Error{Op: "read", What: "the Dockerfile", Kind: errdefs.Exhausted, Why: fmt.Sprintf("it is longer than %d MiB", maxDockerfile>>20)}
	}
	return err
}

// contextFromStdin reads a tar archive, compressed or not, or a Dockerfile.
func (a *app) contextFromStdin(ctx context.Context, dir string) error {
	head := make([]byte, 512)
	n, err := io.ReadFull(a.in, head)
	if err != nil && err != io.ErrUnexpectedEOF && err != io.EOF {
		return err
	}
	whole := io.MultiReader(strings.NewReader(string(head[:n])), a.in)
	packed := false
	for _, magic := range []string{"\x1f\x8b", "\x28\xb5\x2f\xfd", "BZh", "\xfd7zXZ\x00"} { // gzip, zstd, bzip2, xz
		packed = packed || strings.HasPrefix(string(head[:n]), magic)
	}
	if !packed && !(n == 512 && slices.Contains([]string{"ustar\x00", "ustar "}, string(head[257:263]))) {
		return a.spool(filepath.Join(dir, "Dockerfile"), whole)
	}
	d, _, err := archive.Unwrap(whole)
	if err != nil {
		return err
	}
	defer d.Close()
	root, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	_, err = archive.Apply(ctx, d, root, archive.Options{Whiteouts: "none"})
	return err
}

func buildAllow(list []string) (out []build.Entitlement, err error) {
	for _, s := range list {
		switch ent := build.Entitlement(s); ent {
		case build.NetworkHost, build.SecurityInsecure, build.PrivateAddresses:
			out = append(out, ent)
		default:
			return nil, badFlag("--allow", s, "there is no such entitlement", "use network.host, security.insecure or network.private")
		}
	}
	return out, nil
}

func buildSecrets(list []string) (map[string]build.Secret, error) {
	out := map[string]build.Secret{}
	for _, s := range list {
		var id, src, env string
		for _, f := range strings.Split(s, ",") {
			k, v, ok := strings.Cut(f, "=")
			switch {
			case !ok:
				return nil, badFlag("--secret", s, strconv.Quote(f)+" has no value", "write id=ID,src=FILE")
			case k == "id":
				id = v
			case k == "src" || k == "source":
				src = v
			case k == "env":
				env = v
			case k == "type" && (v == "file" || v == "env"):
				if v == "env" && env == "" {
					env = id
				}
			default:
				return nil, badFlag("--secret", s, "there is no field "+strconv.Quote(k), "write id=ID,src=FILE or id=ID,env=NAME")
			}
		}
		if id == "" || src != "" && env != "" {
			return nil, badFlag("--secret", s, "it needs an id, and a file or a variable", "write id=ID,src=FILE or id=ID,env=NAME")
		}
		if src == "" && env == "" {
			if _, ok := os.LookupEnv(id); ok { // docker: a variable of that name, else a file
				env = id
			} else {
				src = id
			}
		}
		if env != "" {
			v, ok := os.LookupEnv(env)
			if !ok {
				return nil, badFlag("--secret", s, "the environment has no "+env, "set it")
			}
			out[id] = build.Secret{Value: []byte(v)}
			continue
		}
		if _, err := os.Stat(src); err != nil {
			return nil, reading("--secret", s, err)
		}
		out[id] = build.Secret{File: src}
	}
	return out, nil
}

func buildAgents(list []string) (map[string]string, error) {
	out := map[string]string{}
	for _, s := range list {
		id, sock, ok := strings.Cut(s, "=")
		if !ok {
			if sock = os.Getenv("SSH_AUTH_SOCK"); sock == "" {
				return nil, badFlag("--ssh", s, "SSH_AUTH_SOCK names no agent", "start one: eval $(ssh-agent); ssh-add")
			}
		}
		fi, err := os.Stat(sock)
		if err != nil {
			return nil, reading("--ssh", s, err)
		}
		if fi.Mode()&os.ModeSocket == 0 {
			return nil, badFlag("--ssh", s, "it is not the socket of an agent", "give keys to an agent (ssh-add), and name its socket")
		}
		out[id] = sock
	}
	return out, nil
}
