package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/network"
	"github.com/onggi/onggi/runtime/monitor"
	"github.com/onggi/onggi/spec"
	"github.com/onggi/onggi/undo"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// StartOptions say which of the caller's streams the container is attached to from its first byte. A caller that
// attaches any promises to call Finish; if its process ends before, the monitor does what Finish would have done.
type StartOptions struct {
	Stdin, Stdout, Stderr *os.File
	Width, Height         uint16
	// Timing collects the phases.
	Timing bool
}

func (o *StartOptions) attached() bool { return o.Stdin != nil || o.Stdout != nil || o.Stderr != nil }

// Session is a started container, seen by the process that started it.
type Session struct {
	Container *Container
	Client    *monitor.Client
	Spans     []undo.Span // record ... process, and the runtime's own phases

	promised bool // Mine has been said
}

// Start starts a created or exited container. The error's kind is CommandNotFound (127) or NotExecutable (126) when the
// user's command could not be executed; the container is then in state created, as docker's. Conflict when it runs.
func (e *Engine) Start(ctx context.Context, idOrName string, o StartOptions) (_ *Session, err error) {
	if err := e.make(); err != nil {
		return nil, err
	}
	e.sweepInterrupted(ctx)
	h, err := e.lock(ctx, idOrName)
	if err != nil {
		return nil, err
	}
	defer h.unlock()
	switch e.effective(h.rec); h.rec.Status {
	case Created, Exited:
		if exists(e.runtimeDir(h.rec.ID)) { // its monitor was killed at its end, or is just there
			if err := h.end(ctx); err != nil {
				return nil, err
			}
		}
	case Dead:
		if err := h.bury(ctx); err != nil {
			return nil, err
		}
	case Restarting: // now rather than later
	case Running:
		if h.rec.Paused {
			return nil, paused("start", idOrName)
		}
		return nil, &errdefs.Error{Op: "start", What: "container " + idOrName, Kind: errdefs.Conflict, Why: "it is already running"}
	default:
		return nil, &errdefs.Error{
			Op: "start", What: "container " + idOrName, Kind: errdefs.Conflict, Why: "it is in state " + string(h.rec.Status),
			Fix: "remove it: onggi rm -f " + idOrName,
		}
	}
	if err := h.chosen(); err != nil {
		return nil, err
	}
	steps := undo.New("run")
	defer func() {
		if err != nil && ctx.Err() == nil { // after what was begun has been taken back
			h.rec.Pid, h.rec.Network = 0, nil
			h.rec.lastFailure(err)
			err = errors.Join(err, h.write(false))
		}
	}()
	defer steps.Undo(&err)
	return h.start(ctx, o, steps, nil)
}

// Run is Create and Start; with AutoRemove a failed start removes the container, without it stays as created.
func (e *Engine) Run(ctx context.Context, c Config, pull PullFunc, o StartOptions) (_ *Session, err error) {
	begin := time.Now()
	making := undo.New("run")
	defer making.Undo(&err)
	if c, err = normalize(c); err != nil {
		return nil, err
	}
	id := newID()
	planted := e.plant(id, &c, o)
	defer planted.withdraw()
	h, err := e.create(ctx, c, pull, making, id, c.AutoRemove)
	if err != nil {
		return nil, err
	}
	if !c.AutoRemove {
		// On the disk before the command is told that the container runs: from here on it is one that Create has made.
		h.rec.Status = Created
		if err := h.writeBehind(); err != nil {
			return nil, err
		}
	}
	h.emit("create")
	defer func() {
		if err != nil && c.AutoRemove {
			h.emit("destroy")
		}
	}()
	keep := false // docker: the container of a failed start stays, unless it is --rm
	defer func() {
		if err != nil && keep {
			making.Done()
			h.unlock()
		}
	}()
	var later time.Duration // the second stack's clock begins later than the first one's
	s, err := func() (_ *Session, err error) {
		later = time.Since(begin)
		starting := undo.New("run")
		defer starting.Undo(&err)
		s, err := h.start(ctx, o, starting, planted)
		if err != nil {
			return nil, err
		}
		return s, h.settle()
	}()
	if err != nil {
		if !c.AutoRemove {
			h.rec.Status, h.rec.Pid, h.rec.Network = Created, 0, nil
			h.rec.lastFailure(err)
			keep = h.write(true) == nil && h.settle() == nil
		} else {
			err = errors.Join(err, h.removeVolumes())
		}
		return nil, err
	}
	h.unlock()
	s.Spans = append(making.Spans(), shifted(s.Spans, later)...)
	return s, nil
}

// seed is a monitor that waits for its container, or why there is none.
type seed struct {
	*monitor.Seed
	err error
	at  time.Time // when planting began
	up  time.Time // when the process was executing
}

// bed holds a seed, once it is planted.
type bed chan seed

// take returns the seed, once; afterwards there is an empty one.
func (b bed) take() seed {
	s := <-b
	b <- seed{}
	return s
}

// withdraw ends a seed that nobody has taken.
func (b bed) withdraw() {
	if s := b.take(); s.Seed != nil {
		s.Close()
	}
}

// plant starts the container's monitor while the container is being prepared: a process takes milliseconds to start.
func (e *Engine) plant(id string, c *Config, o StartOptions) bed {
	planted := make(bed, 1)
	files := map[string]*os.File{}
	if c.networked() || c.ofContainer() != "" {
		files["netns"] = nil
	}
	run := e.runDir(id)
	at := time.Now()
	go func() {
		binary, err := e.runtime()
		if err != nil {
			planted <- seed{err: err, at: at, up: time.Now()}
			return
		}
		s, err := monitor.Plant(monitor.SpawnOptions{Binary: binary, RunDir: run, Files: files, Stdio: [3]*os.File{o.Stdin, o.Stdout, o.Stderr}})
		planted <- seed{s, err, at, time.Now()}
	}()
	return planted
}

// shifted returns spans on a clock that began earlier.
func shifted(spans []undo.Span, by time.Duration) []undo.Span {
	out := make([]undo.Span, len(spans))
	for i, s := range spans {
		s.Start += by
		out[i] = s
	}
	return out
}

// start does volumes -> files -> network -> spec -> process. The caller holds the lock and has the container in a state
// that may be started; steps takes everything back on failure.
func (h *held) start(ctx context.Context, o StartOptions, steps *undo.Stack, planted bed) (*Session, error) {
	begun := time.Now()
	e, r := h.e, h.rec
	run := e.runDir(r.ID)
	if err := h.tidy(ctx); err != nil { // what a crash has left of the run before
		return nil, err
	}
	if planted == nil {
		planted = e.plant(r.ID, &r.Config, o)
	}
	defer planted.withdraw()
	if err := os.Mkdir(run, 0o700); err != nil {
		return nil, err
	}
	steps.Push("rundir", func() error { return os.RemoveAll(run) })
	rootfs := filepath.Join(run, "rootfs")
	if err := os.Mkdir(rootfs, 0o700); err != nil {
		return nil, err
	}
	snap, err := e.snapshot()
	if err != nil {
		return nil, err
	}
	if r.Config.AutoRemove && h.startedSinceBoot() {
		if err := snap.MountAgain(r.ID); err != nil {
			return nil, err
		}
	}
	stack, err := snap.Mounts(r.ID, false, r.Config.AutoRemove)
	if err != nil {
		return nil, err
	}
	tree, err := newView(stack, rootfs)
	if err != nil {
		return nil, err
	}
	defer tree.close()

	var from *sources
	err = steps.Do("volumes", func() (err error) {
		from, err = h.ensureVolumes(tree)
		return err
	}, func() error { return from.unmake() })
	if err != nil {
		return nil, err
	}
	defer from.close()

	host, err := hostFacts(&r.Config.Config)
	if err != nil {
		return nil, err
	}
	if of := r.Config.ofContainer(); of != "" {
		if host.Hostname, err = e.hostnameOf(of); err != nil {
			return nil, err
		}
	}
	names, err := h.names(host.Hostname)
	if err != nil {
		return nil, err
	}
	files := map[string]string{
		"/etc/resolv.conf": filepath.Join(run, "resolv.conf"), "/etc/hosts": filepath.Join(run, "hosts"), "/etc/hostname": filepath.Join(run, "hostname"),
	}
	if err := steps.Do("files", func() error {
		return os.WriteFile(files["/etc/hostname"], []byte(names.Hostname+"\n"), 0o644)
	}, nil); err != nil {
		return nil, err
	}

	fds := map[string]*os.File{}
	defer func() {
		for _, f := range fds {
			_ = f.Close() // the monitor has its own by now
		}
	}()
	if err := steps.Do("network", func() error {
		ns, err := h.connect(ctx, &names, files)
		if ns != nil {
			fds["netns"] = ns
		}
		return err
	}, func() error { return h.detach(ctx) }); err != nil {
		return nil, err
	}

	netns := ""
	if ns := fds["netns"]; ns != nil {
		netns = fmt.Sprintf("/proc/self/fd/%d", monitor.FirstFile)
		if len(r.Config.Runtime) > 0 {
			// A foreign runtime is another process; it looks while we wait for the container to be created.
			netns = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.Fd())
		}
	}
	if err := steps.Do("spec", func() error {
		return h.writeSpec(tree, host, from, files, netns)
	}, nil); err != nil {
		return nil, err
	}

	if err := h.writeActor(); err != nil {
		return nil, err
	}
	if o.attached() {
		h.emit("attach")
	}
	health, err := h.health()
	if err != nil {
		return nil, err
	}
	var client *monitor.Client
	var made time.Time // when the container was there
	var plant undo.Span
	err = steps.Do("monitor", func() (err error) {
		p := planted.take()
		plant = undo.Span{Name: "run.plant", Start: p.at.Sub(begun), Took: p.up.Sub(p.at)}
		if p.err != nil {
			return p.err
		}
		client, err = p.Spawn(ctx, &monitor.Config{
			ID: r.ID, Bundle: run, RunDir: run, StateDir: e.stateDir(r.ID), Rootfs: stack,
			Runtime: r.Config.Runtime, RuntimeRoot: e.runtimeRoot(),
			Terminal: r.Config.Tty, Width: o.Width, Height: o.Height, Init: r.Config.Init,
			OpenStdin: r.Config.OpenStdin, StdinOnce: o.Stdin != nil,
			Log: r.Config.Log, Cleanup: e.cleanupCommand(r.ID), Sync: !r.Config.AutoRemove, Journal: h.journal(), Health: health,
			// Promised before the start: `true` has ended before any later word arrives, and what fails is ours to clean up.
			Mine: true,
		}, fds)
		if err != nil {
			return err
		}
		if r.Pid, err = client.Created(ctx); err != nil {
			return errors.Join(err, h.dismiss(client))
		}
		made = time.Now()
		for _, w := range client.Warnings() {
			r.Warnings = appendNew(r.Warnings, w)
		}
		return nil
	}, func() error { return h.dismiss(client) })
	if err != nil {
		return nil, err
	}

	var inner []undo.Span
	if err := steps.Do("start", func() (err error) {
		r.StartedAt, inner, err = client.Start(ctx)
		if err != nil {
			if ctx.Err() != nil { // the caller has given up, and the command may be running already
				now, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
				_ = client.Signal(now, int(unix.SIGKILL))
				cancel()
			}
			return err
		}
		r.Status, r.Exit, r.Interrupted = Running, nil, false
		return h.write(false)
	}, nil); err != nil {
		return nil, err
	}
	if !o.attached() {
		client.Renounce() // its end is nobody's but the monitor's, until somebody calls Finish
	}
	// The monitor's clock began when it had started and heard of its container; both know when that was created.
	clock := made.Sub(begun)
	for _, sp := range inner {
		if sp.Name == "monitor.create" {
			clock -= sp.Start + sp.Took
		}
	}
	c := r.Container
	return &Session{Container: &c, Client: client, Spans: append(append(steps.Spans(), plant), shifted(inner, clock)...), promised: o.attached()}, nil
}

// names are what /etc/hosts, /etc/resolv.conf and /etc/hostname are made of.
func (h *held) names(hostname string) (network.Names, error) {
	c := &h.rec.Config
	name, err := c.EffectiveHostname(h.rec.ID, hostname)
	return network.Names{
		Hostname: name, Host: c.Network == "host", DNS: c.DNS, DNSSearch: c.DNSSearch, DNSOptions: c.DNSOptions,
		ExtraHosts: c.ExtraHosts,
	}, err
}

// writeSpec resolves the user and writes config.json.
func (h *held) writeSpec(tree *view, host spec.Host, from *sources, files map[string]string, netns string) error {
	e, r := h.e, h.rec
	uid, gid, more, home, err := resolveUser(tree, cmpOr(r.Config.User, r.Image.User), r.Config.GroupAdd)
	if err != nil {
		return err
	}
	c := r.Config.Config
	c.Env = append(slices.Clone(c.Env), r.Config.SecretEnv...)
	if c.Mounts, err = h.mounts(); err != nil {
		return err
	}
	for i := range c.Mounts {
		m := &c.Mounts[i]
		m.From = from.paths[m.Target]
		if err := idMaps(m, uid, gid); err != nil {
			return err
		}
		if err := h.volumeFlags(m); err != nil {
			return err
		}
	}
	pidns, err := e.pidNamespace(c.Pid)
	if err != nil {
		return err
	}
	secrets, err := h.secretMounts(from)
	if err != nil {
		return err
	}
	c.Mounts = append(c.Mounts, secrets...)
	s, warnings, err := spec.Generate(spec.Input{
		PidNS: pidns,
		ID:    r.ID, Image: &ocispec.Image{Config: r.Image}, Config: &c, Host: host, RootPath: "rootfs", CgroupsPath: groupPath(r.CgroupPath), NetNS: netns,
		UID: uid, GID: gid, AdditionalGids: more, Home: home, Files: files,
	})
	if err != nil {
		return err
	}
	for _, w := range warnings {
		r.Warnings = appendNew(r.Warnings, w)
	}
	if err := pingGroups(s); err != nil {
		return err
	}
	if w := oneGroup(s, r.Config.GroupAdd); w != "" {
		r.Warnings = appendNew(r.Warnings, w)
	}
	if err := followLinks(tree, s.Mounts); err != nil {
		return err
	}
	b, err := spec.Encode(s)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(e.runDir(r.ID), "config.json"), b, 0o600)
}

// followLinks moves mounts to the places that the image's links lead to (view.places). What is below another mount is not
// in the image; and no link leads a mount below another one, such as /proc: the runtime sees to it that a link which does
// is refused (CVE-2019-19921).
func followLinks(tree *view, mounts []runspec.Mount) error {
	below := func(path string) bool {
		return slices.ContainsFunc(mounts, func(o runspec.Mount) bool {
			return o.Destination == "/" || strings.HasPrefix(path, strings.TrimSuffix(o.Destination, "/")+"/")
		})
	}
	taken := map[string]bool{}
	var mine []string
	for _, m := range mounts {
		taken[m.Destination] = true
		if m.Type != "proc" && m.Type != "sysfs" && m.Destination != "/dev" && !below(m.Destination) {
			mine = append(mine, m.Destination)
		}
	}
	at, err := tree.places(mine)
	if err != nil {
		return err
	}
	for i, m := range mounts {
		if p, ok := at[m.Destination]; ok && !below(p) && !taken[p] {
			mounts[i].Destination = p
		}
	}
	return nil
}

func appendNew(list []string, s string) []string {
	for _, l := range list {
		if l == s {
			return list
		}
	}
	return append(list, s)
}

// maxAccounts bounds /etc/passwd and /etc/group, bytes each.
const maxAccounts = 4 << 20

// resolveUser reads the tree's account files, where they are needed, and resolves the names.
func resolveUser(tree *view, user string, groupAdd []string) (uid, gid uint32, more []uint32, home string, err error) {
	var text [2][]byte
	for i, path := range []string{"etc/passwd", "etc/group"} {
		b, err := tree.read(path, maxAccounts)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, 0, nil, "", err
		}
		text[i] = b
	}
	return spec.User(user, groupAdd, text[0], text[1])
}

// cleanupCommand is what the monitor runs after the exit.
func (e *Engine) cleanupCommand(id string) []string { return e.selfCommand("container-cleanup", id) }

// selfCommand is the command line that runs onggi on the same roots; nil when its file cannot be found.
func (e *Engine) selfCommand(args ...string) []string {
	self := e.o.Self
	if len(self) == 0 {
		exe, err := os.Executable()
		if err != nil {
			return nil
		}
		self = []string{exe, "--root", e.o.Root, "--run-root", e.o.RunRoot}
	}
	return append(append([]string{}, self...), args...)
}

// detach gives the container's addresses and ports back.
func (h *held) detach(ctx context.Context) error {
	if !h.rec.Config.networked() {
		return nil
	}
	h.rec.Network = nil
	n, err := h.e.network()
	if err != nil {
		return err
	}
	return n.Detach(context.WithoutCancel(ctx), h.rec.ID)
}

// dismiss ends a monitor whose container was not started, or is no longer wanted, and waits for it. A monitor that
// does not go is killed with its container; so is the container of one that was itself killed.
func (h *held) dismiss(c *monitor.Client) error {
	if c == nil {
		return nil
	}
	if c.Abandon(10*time.Second) && !exists(h.e.runtimeDir(h.rec.ID)) {
		return nil
	}
	return h.killAll()
}

// waitGone waits until no monitor is alive in a run directory.
func waitGone(run string, limit time.Duration) bool {
	end := time.Now().Add(limit)
	for pause := 200 * time.Microsecond; monitor.Alive(run); pause = min(2*pause, 20*time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
		time.Sleep(pause)
	}
	return true
}
