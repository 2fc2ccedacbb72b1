package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/onggi/onggi/build/cache"
	"github.com/onggi/onggi/build/graph"
	"github.com/onggi/onggi/build/tree"
	"github.com/onggi/onggi/engine"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/mount"
	"github.com/onggi/onggi/pathrs"
	"github.com/onggi/onggi/spec"
	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// execOp is RUN.
type execOp struct {
	s    *session
	v    *graph.Vertex
	x    *graph.Exec
	in   []*result
	root graph.Mount
}

func (s *session) newExec(_ context.Context, v *graph.Vertex, in []*result) (*execOp, error) {
	o := &execOp{s: s, v: v, x: v.Exec, in: in}
	for _, m := range v.Exec.Mounts {
		if m.Dest == "/" {
			o.root = m
		} else if m.Output >= 0 {
			return nil, unsupported("a mount whose content is a result")
		}
	}
	if o.root.Type != graph.MountBind || o.root.Readonly || o.root.Selector != "" && o.root.Selector != "/" || s.pick(in, o.root.Input).local != nil {
		return nil, unsupported("a command whose root is not a tree of its own")
	}
	// The one place where privileges are decided.
	if o.x.Network == graph.NetworkHost && !s.allowed(NetworkHost) {
		return nil, denied("the network of the host", NetworkHost)
	}
	if o.x.Insecure && !s.allowed(SecurityInsecure) {
		return nil, denied("to be privileged", SecurityInsecure)
	}
	if len(o.x.Devices) > 0 {
		for _, d := range o.x.Devices {
			if !d.Optional {
				return nil, &errdefs.Error{
					Op: "run", What: v.Name, Kind: errdefs.Unsupported, Why: "it needs the CDI device " + d.Name + ": a build step gets no devices of this machine, or its result would depend on them",
					Fix: "do that with onggi run --device, or make the device optional: --device=name=" + d.Name,
				}
			}
		}
	}
	if o.x.CgroupParent != "" {
		return nil, unsupported("--cgroup-parent")
	}
	if p := v.Platform; p != nil && p.Architecture != runtime.GOARCH && !emulated(p.Architecture) {
		return nil, &errdefs.Error{
			Op: "run", What: v.Name, Kind: errdefs.Unsupported, Why: "it is for " + p.OS + "/" + p.Architecture + ", which this machine does not run",
			Fix: "install an emulator: apt install qemu-user-static binfmt-support",
		}
	}
	return o, nil
}

func denied(what string, e Entitlement) error {
	return &errdefs.Error{
		Op: "build", Kind: errdefs.Forbidden, Why: "a step wants " + what + ", and nobody has allowed it",
		Fix: "if you trust the Dockerfile: --allow " + string(e),
	}
}

// emulated says whether the kernel starts programs of the architecture in a container (binfmt_misc, as qemu-user-static registers it;
// Documentation/admin-guide/binfmt-misc.rst).
func emulated(arch string) bool {
	names := map[string]string{"amd64": "x86_64", "arm64": "aarch64", "386": "i386", "ppc64le": "ppc64le", "s390x": "s390x", "riscv64": "riscv64", "arm": "arm"}
	if arch == "386" && runtime.GOARCH == "amd64" {
		return true
	}
	b, err := os.ReadFile("/proc/sys/fs/binfmt_misc/qemu-" + names[arch])
	if err != nil || !strings.HasPrefix(string(b), "enabled") {
		return false
	}
	// Without F (fix binary) the kernel would look for the emulator inside the container.
	for line := range strings.Lines(string(b)) {
		if flags, ok := strings.CutPrefix(strings.TrimSpace(line), "flags:"); ok {
			return strings.Contains(flags, "F")
		}
	}
	return false
}

func (o *execOp) outputs() int { return o.v.Outputs() }

func (o *execOp) standsOn() *result { return o.s.pick(o.in, o.root.Input) }

func (o *execOp) output(_ int, own cache.Layer) result {
	return o.standsOn().with(own)
}

func (o *execOp) parts(ctx context.Context) ([]cache.Part, error) {
	base := o.standsOn()
	x := o.x
	command, err := json.Marshal(x.Args)
	if err != nil {
		return nil, err
	}
	parts := []cache.Part{
		{Name: "kind", Value: "exec"},
		{Name: "the steps before", Value: base.id()},
		{Name: "epoch", Value: base.epoch.UTC().Format(time.RFC3339)},
		{Name: "command", Value: string(command)},
		{Name: "working directory", Value: x.Cwd},
		{Name: "user", Value: x.User},
		{Name: "network", Value: x.Network},
		{Name: "host name", Value: x.Hostname},
		{Name: "insecure", Value: strconv.FormatBool(x.Insecure)},
		{Name: "exit codes", Value: fmt.Sprint(x.ValidExitCodes)},
	}
	if p := o.v.Platform; p != nil {
		parts = append(parts, cache.Part{Name: "platform", Value: p.OS + "/" + p.Architecture + "/" + p.Variant})
	}
	for _, e := range x.Env {
		k, v, _ := strings.Cut(e, "=")
		parts = append(parts, cache.Part{Name: "environment " + k, Value: v})
	}
	for _, h := range x.ExtraHosts {
		parts = append(parts, cache.Part{Name: "host " + h.Host, Value: h.IP})
	}
	for _, e := range x.SecretEnv {
		parts = append(parts, cache.Part{Name: "secret in " + e.Name, Value: e.ID}) // the name only: another value is not another step
	}
	for _, m := range x.Mounts {
		if m.Dest == "/" {
			continue
		}
		text, err := json.Marshal(m)
		if err != nil {
			return nil, err
		}
		parts = append(parts, cache.Part{Name: "mount on " + m.Dest, Value: string(text)})
		if m.Input < 0 || m.Type == graph.MountCache {
			continue // what a cache mount holds is no input: its first content only fills it
		}
		src := o.in[m.Input]
		if src.local == nil && (m.Selector == "" || m.Selector == "/") {
			parts = append(parts, cache.Part{Name: "content of " + m.Dest, Value: src.id()})
			continue
		}
		c, err := o.s.contents(ctx, src, tree.Selection{Src: cmp(m.Selector, "/"), Follow: true})
		if err != nil {
			return nil, err
		}
		parts = append(parts, cache.Part{Name: "content of " + m.Dest, Value: c.Digest.String()})
	}
	return parts, nil
}

func cmp(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func (o *execOp) run(ctx context.Context, print func([]byte)) (_ []cache.Layer, err error) {
	base := o.standsOn()
	ec, undone, err := o.prepare(ctx, base)
	defer func() {
		for i := len(undone) - 1; i >= 0; i-- {
			err = errors.Join(err, undone[i]())
		}
	}()
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	id, code, err := o.execute(ctx, ec, print)
	kept := false
	if id != "" {
		defer func() {
			if !kept {
				err = errors.Join(err, o.s.remove(ctx, id))
			}
		}()
	}
	if err != nil {
		return nil, err
	}
	valid := o.x.ValidExitCodes
	if len(valid) == 0 {
		valid = []int{0}
	}
	if !slices.Contains(valid, code) {
		e := &errdefs.Error{
			Op: "run", What: strings.Join(o.x.Args, " "), Kind: errdefs.Unknown, Why: fmt.Sprintf("it did not complete successfully: exit code: %d", code),
		}
		if kept = o.keep(ctx, id); kept {
			e.Fix = "look at what it left: onggi build debug " + o.s.id
		}
		return nil, &Failure{Vertex: o.v, ExitCode: code, Kept: kept, Err: e}
	}
	if err := o.dropStubs(ctx, id, ec.Mounts); err != nil {
		return nil, err
	}
	l, err := o.s.commit(ctx, id, begin, base.epoch)
	if err != nil {
		return nil, err
	}
	return []cache.Layer{l}, nil
}

// prepare makes the configuration of the command's container on base, and its mounts, which undone takes away. undone
// counts although there is an error.
func (o *execOp) prepare(ctx context.Context, base *result) (ec engine.Config, undone []func() error, err error) {
	x := o.x
	cfg := spec.Config{
		Args: x.Args, Env: slices.Clone(x.Env), Workdir: x.Cwd, User: x.User, Hostname: x.Hostname, Privileged: x.Insecure,
		Network: map[string]string{graph.NetworkSandbox: "bridge", graph.NetworkHost: "host", graph.NetworkNone: "none"}[x.Network],
	}
	for _, h := range x.ExtraHosts {
		cfg.ExtraHosts = append(cfg.ExtraHosts, h.Host+":"+h.IP)
	}
	for _, u := range x.Ulimits {
		cfg.Ulimits = append(cfg.Ulimits, spec.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
	}
	if r := o.v.Resources; r != nil {
		cfg.Memory, cfg.MemorySwap, cfg.CPUShares, cfg.CpusetCpus = r.Memory, r.MemorySwap, r.CPUShares, r.CpusetCpus
		if r.CpusetMems != "" {
			return ec, nil, unsupported("--cpuset-mems")
		}
		if r.CPUQuota > 0 {
			period := r.CPUPeriod
			if period == 0 {
				period = 100000
			}
			cfg.NanoCPUs = r.CPUQuota * 1e9 / int64(period)
		}
	}
	var secretEnv []string
	if p := x.Proxy; p != nil {
		for name, v := range map[string]string{"HTTP_PROXY": p.HTTP, "HTTPS_PROXY": p.HTTPS, "FTP_PROXY": p.FTP, "NO_PROXY": p.No, "ALL_PROXY": p.All} {
			if v != "" { // a proxy's address often has a password in it
				secretEnv = append(secretEnv, name+"="+v, strings.ToLower(name)+"="+v)
			}
		}
	}
	for _, e := range x.SecretEnv {
		b, ok, err := o.secret(e.ID, e.Optional)
		if err != nil {
			return ec, nil, err
		}
		if ok {
			secretEnv = append(secretEnv, e.Name+"="+string(b))
		}
	}
	for _, m := range x.Mounts {
		if m.Dest == "/" {
			continue
		}
		t, undo, err := o.mount(ctx, m)
		if undo != nil {
			undone = append(undone, undo)
		}
		if err != nil {
			return ec, undone, err
		}
		if t != nil {
			cfg.Mounts = append(cfg.Mounts, *t)
		}
	}
	ec = o.s.config(base, cfg)
	ec.SecretEnv = secretEnv
	return ec, undone, nil
}

// execute runs the command to its end and returns the container, which still is there, and the exit code.
func (o *execOp) execute(ctx context.Context, ec engine.Config, print func([]byte)) (id string, code int, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return "", 0, err
	}
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		buf := make([]byte, 32<<10)
		for {
			n, err := r.Read(buf)
			if n > 0 {
				print(append([]byte(nil), buf[:n]...))
			}
			if err != nil {
				return
			}
		}
	}()
	s, err := o.s.e.Run(ctx, ec, nil, engine.StartOptions{Stdout: w, Stderr: w})
	_ = w.Close()
	if err != nil {
		_ = r.Close()
		<-copied
		return o.leftBy(ec), 0, err
	}
	id = s.Container.ID
	exit, err := o.s.e.Finish(ctx, s)
	if err != nil { // canceled: the command must not go on
		return id, 0, errors.Join(err, o.s.remove(ctx, id), r.Close())
	}
	// A process that the command left behind is dead with its container: the pipe ends.
	<-copied
	_ = r.Close()
	return id, exit.Code, nil
}

// leftBy finds the container of a start that failed: it stays as created.
func (o *execOp) leftBy(ec engine.Config) string {
	steps, err := o.s.e.Steps()
	if err != nil {
		return ""
	}
	for _, c := range steps {
		if c.Config.Build == ec.Build && slices.Equal(c.Config.Args, ec.Args) && c.Status == engine.Created {
			return c.ID
		}
	}
	return ""
}

func (o *execOp) secret(id string, optional bool) ([]byte, bool, error) {
	sec, ok := o.s.o.Secrets[id]
	if !ok {
		if optional {
			return nil, false, nil
		}
		return nil, false, &errdefs.Error{
			Op: "use", What: "the secret " + id, Kind: errdefs.NotFound, Why: "a step needs it, and it was not given",
			Fix: "give it: --secret id=" + id + ",src=FILE",
		}
	}
	b, err := sec.read()
	return b, err == nil, err
}

// mount prepares one mount of the command. undo may be set although there is an error.
func (o *execOp) mount(ctx context.Context, m graph.Mount) (t *spec.Mount, undo func() error, err error) {
	target := m.Dest
	if !path.IsAbs(target) {
		target = path.Join(o.x.Cwd, target)
	}
	switch m.Type {
	case graph.MountTmpfs:
		return &spec.Mount{Type: "tmpfs", Target: target, TmpfsSize: m.Size, TmpfsMode: 0o1777}, nil, nil
	case graph.MountSecret:
		return o.mountSecret(m, target)
	case graph.MountSSH:
		return o.mountAgent(m, target)
	case graph.MountCache:
		dir, undo, err := o.s.cacheMount(ctx, m, o.in)
		if err != nil {
			return nil, undo, err
		}
		return &spec.Mount{Type: "bind", Source: dir, Target: target, ReadOnly: m.Readonly}, undo, nil
	}
	dir, undo, err := o.s.mountTree(ctx, o.s.pick(o.in, m.Input), m.Selector, m.Readonly)
	if err != nil {
		return nil, undo, err
	}
	return &spec.Mount{Type: "bind", Source: dir, Target: target, ReadOnly: m.Readonly}, undo, nil
}

func (o *execOp) mountSecret(m graph.Mount, target string) (*spec.Mount, func() error, error) {
	b, ok, err := o.secret(m.Secret.ID, m.Secret.Optional)
	if err != nil || !ok {
		return nil, nil, err
	}
	f, err := os.CreateTemp(o.s.run, "secret-") // the volatile root: it never is on a disk
	if err != nil {
		return nil, nil, err
	}
	undo := func() error { return os.Remove(f.Name()) }
	_, err = f.Write(b)
	err = errors.Join(err, f.Chown(int(m.Secret.UID), int(m.Secret.GID)), f.Chmod(os.FileMode(m.Secret.Mode&0o777)), f.Close())
	return &spec.Mount{Type: "bind", Source: f.Name(), Target: target, ReadOnly: true}, undo, err
}

// mountAgent gives the command a socket that leads to the user's ssh agent.
func (o *execOp) mountAgent(m graph.Mount, target string) (*spec.Mount, func() error, error) {
	id := cmp(m.Secret.ID, "default")
	agent, ok := o.s.o.Agents[id]
	if !ok {
		if m.Secret.Optional {
			return nil, nil, nil
		}
		return nil, nil, &errdefs.Error{
			Op: "use", What: "the ssh agent " + id, Kind: errdefs.NotFound, Why: "a step needs it, and it was not given",
			Fix: "start ssh-agent and give it: --ssh " + id,
		}
	}
	dir, err := os.MkdirTemp(o.s.run, "ssh-")
	if err != nil {
		return nil, nil, err
	}
	sock := filepath.Join(dir, "agent")
	l, err := net.Listen("unix", sock)
	if err != nil {
		return nil, func() error { return os.RemoveAll(dir) }, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				a, err := net.Dial("unix", agent)
				if err != nil {
					return
				}
				defer a.Close()
				go func() { _, _ = io.Copy(a, c); _ = a.(*net.UnixConn).CloseWrite() }()
				_, _ = io.Copy(c, a)
			}()
		}
	}()
	undo := func() error { return errors.Join(l.Close(), os.RemoveAll(dir)) }
	err = errors.Join(os.Chown(sock, int(m.Secret.UID), int(m.Secret.GID)), os.Chmod(sock, os.FileMode(m.Secret.Mode&0o777)))
	return &spec.Mount{Type: "bind", Source: sock, Target: target}, undo, err
}

// mountTree mounts a tree in our namespace and returns the host's path of what selector names in it.
func (s *session) mountTree(ctx context.Context, r *result, selector string, readonly bool) (string, func() error, error) {
	if r.local != nil {
		// The filter of a directory of the user cannot be mounted: what it lets pass becomes a layer.
		l, err := s.ingest(ctx, r)
		if err != nil {
			return "", nil, err
		}
		r = l
	}
	id, err := s.container(ctx, r)
	if err != nil {
		return "", nil, err
	}
	undo := func() error { return s.remove(ctx, id) }
	snap, err := s.e.Snapshots()
	if err != nil {
		return "", undo, err
	}
	stack, err := snap.Mounts(id, readonly, true)
	if err != nil {
		return "", undo, err
	}
	dir, err := os.MkdirTemp(s.run, "mount-")
	if err != nil {
		return "", undo, err
	}
	unmake := undo
	undo = func() error { return errors.Join(os.Remove(dir), unmake()) }
	if err := mount.All(stack, dir); err != nil {
		return "", undo, err
	}
	rmdir := undo
	undo = func() error { return errors.Join(unix.Unmount(dir, unix.MNT_DETACH), rmdir()) }
	root, err := pathrs.OpenRoot(dir)
	if err != nil {
		return "", undo, err
	}
	defer root.Close()
	f, err := pathrs.Open(root, cmp(strings.TrimPrefix(selector, "/"), "."), unix.O_PATH, 0)
	if err != nil {
		return "", undo, &errdefs.Error{Op: "mount", What: selector, Kind: errdefs.KindOf(err), Err: err}
	}
	defer f.Close()
	// Nobody else writes to this tree, so the name that the handle has stays true.
	p, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	return p, undo, err
}

// ingest makes a layer of a user's directory, as far as its filter lets it be seen.
func (s *session) ingest(ctx context.Context, r *result) (*result, error) {
	v := &graph.Vertex{Name: r.name, File: &graph.File{Actions: []graph.Action{{
		Input: -1, Secondary: 0, Output: 0,
		Copy: &graph.Copy{Src: "/", Dest: "/", Mode: -1, Timestamp: -1, DirContents: true, CreateDestPath: true},
	}}}}
	o, err := s.newFileOp(v, []*result{r})
	if err != nil {
		return nil, err
	}
	parts, err := o.parts(ctx)
	if err != nil {
		return nil, err
	}
	key := cache.Key(parts)
	lock, err := s.cache.Lock(ctx, key)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	out, ok, err := s.cached(ctx, key, o)
	if err != nil {
		return nil, err
	}
	if ok {
		return &out[0], nil
	}
	begin := time.Now()
	own, err := o.run(ctx, nil)
	if err != nil {
		return nil, err
	}
	res := o.output(0, own[0])
	return &res, s.cache.Put(&cache.Record{Key: key, Name: r.name, Parts: parts, Outputs: [][]cache.Layer{res.layers}, Own: 1, Created: begin, Took: time.Since(begin)})
}

// cacheMount returns the directory of a cache mount, locked as its sharing says.
func (s *session) cacheMount(ctx context.Context, m graph.Mount, in []*result) (string, func() error, error) {
	name := digest.FromString(m.Cache.ID).Encoded()
	for n := 0; ; n++ {
		dir := filepath.Join(s.cache.MountsDir(), name+"-"+strconv.Itoa(n))
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return "", nil, err
		}
		f, err := os.Open(dir)
		if err != nil {
			return "", nil, err
		}
		how := unix.LOCK_EX
		if m.Cache.Sharing == graph.Shared {
			how = unix.LOCK_SH
		}
		err = s.flock(ctx, f, how, m.Cache.Sharing != graph.Private)
		if errors.Is(err, unix.EWOULDBLOCK) {
			_ = f.Close()
			continue // private: the next directory
		}
		if err != nil {
			return "", f.Close, err
		}
		fs, err := s.fillCacheMount(ctx, dir, m, in)
		return fs, f.Close, err
	}
}

// flock waits for the lock, but not longer than ctx.
func (s *session) flock(ctx context.Context, f *os.File, how int, wait bool) error {
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err != unix.EWOULDBLOCK || !wait {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

// fillCacheMount makes the directory's content on its first use: a copy of the mount's input, made aside and renamed.
func (s *session) fillCacheMount(ctx context.Context, dir string, m graph.Mount, in []*result) (string, error) {
	fs := filepath.Join(dir, "fs")
	if _, err := os.Stat(fs); err == nil {
		return fs, nil
	}
	draft, err := os.MkdirTemp(dir, "new-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(draft)
	d, err := os.Open(draft)
	if err != nil {
		return "", err
	}
	defer d.Close()
	if m.Input >= 0 {
		view, err := s.view(ctx, in[m.Input])
		if err != nil {
			return "", err
		}
		if err := tree.NewTarget(d).CopyTree(ctx, view, cmp(m.Selector, "/"), "fs"); err != nil {
			return "", err
		}
	} else if err := os.Mkdir(filepath.Join(draft, "fs"), 0o755); err != nil {
		return "", err
	}
	if err := os.Rename(filepath.Join(draft, "fs"), fs); err != nil && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENOTEMPTY) {
		return "", err // another user of a shared mount was faster, else
	}
	return fs, nil
}

// dropStubs removes the empty files and directories that were made to mount on, if they are not in the base.
func (o *execOp) dropStubs(ctx context.Context, id string, mounts []spec.Mount) error {
	if len(mounts) == 0 {
		return nil
	}
	base, err := o.s.view(ctx, o.s.pick(o.in, o.root.Input))
	if err != nil {
		return err
	}
	root, err := o.s.e.OpenTree(id)
	if err != nil {
		return err
	}
	defer root.Close()
	var targets []string
	for _, m := range mounts {
		targets = append(targets, path.Clean(m.Target))
	}
	slices.SortFunc(targets, func(a, b string) int { return strings.Compare(b, a) }) // what is deeper comes first
	for _, t := range targets {
		for p := t; p != "/"; p = path.Dir(p) {
			if _, err := base.Select(ctx, p, false, false); err == nil {
				break
			}
			parent, err := pathrs.Open(root, "."+path.Dir(p), unix.O_RDONLY|unix.O_DIRECTORY, 0)
			if err != nil {
				break
			}
			var st unix.Stat_t
			name := path.Base(p)
			err = unix.Fstatat(int(parent.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
			switch {
			case err != nil:
			case st.Mode&unix.S_IFMT == unix.S_IFDIR:
				err = unix.Unlinkat(int(parent.Fd()), name, unix.AT_REMOVEDIR) // only if it is empty
			case st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size == 0:
				err = unix.Unlinkat(int(parent.Fd()), name, 0)
			default:
				err = unix.ENOTEMPTY
			}
			_ = parent.Close()
			if err != nil {
				break
			}
		}
	}
	return nil
}
