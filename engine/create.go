package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/image"
	"github.com/onggi/onggi/spec"
	"github.com/onggi/onggi/undo"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// PullFunc is asked to bring a missing image in; the command line gives one that draws progress.
type PullFunc func(ctx context.Context, name string) (*image.Image, error)

// Create makes a container that is ready to start.
func (e *Engine) Create(ctx context.Context, c Config, pull PullFunc) (_ *Container, err error) {
	steps := undo.New("run")
	defer steps.Undo(&err)
	h, err := e.create(ctx, c, pull, steps, newID(), false)
	if err != nil {
		return nil, err
	}
	defer h.unlock()
	h.rec.Status = Created
	if err := h.write(!c.AutoRemove); err != nil {
		return nil, err
	}
	if err := h.settle(); err != nil {
		return nil, err
	}
	h.emit("create")
	return &h.rec.Container, nil
}

// create does record -> image -> snapshot. It returns the container locked, in state creating, with its reversals on
// steps; the lock outlives them, so that nobody sweeps what is being taken back. passing: its record need not outlive a
// reboot of the host.
func (e *Engine) create(ctx context.Context, c Config, pull PullFunc, steps *undo.Stack, id string, passing bool) (_ *held, err error) {
	var h *held // not a named result: the reversals look at it after an error has been returned
	c, err = normalize(c)
	if err != nil {
		return nil, err
	}
	if err := e.make(); err != nil {
		return nil, err
	}
	e.sweepInterrupted(ctx)
	if c, err = e.volumesFrom(c); err != nil {
		return nil, err
	}
	if err := e.resolveNetwork(&c); err != nil {
		return nil, err
	}
	if c, err = e.checkSecrets(c); err != nil {
		return nil, err
	}
	// The image is looked up before the record is written, so that the first record names it; the lock that removals
	// of images take exclusively is held until then, so that an image is never removed between the two.
	var img *image.Image
	err = steps.Do("record", func() (err error) {
		lock, err := flockFile(e.imagesLockPath(), unix.LOCK_SH)
		if err != nil {
			return err
		}
		defer lock.Close()
		if img, err = e.present(c); err != nil && !errdefs.Is(err, errdefs.NotFound) {
			return err
		}
		if img != nil {
			if err := e.check(c, img); err != nil {
				return err
			}
		}
		h, err = e.record(id, c, img, passing)
		return err
	}, func() error {
		defer h.unlock()
		return h.erase()
	})
	if err != nil {
		return nil, err
	}

	err = steps.Do("image", func() error {
		if img != nil {
			return nil
		}
		if img, err = e.bring(ctx, c, pull); err != nil {
			return err
		}
		lock, err := flockFile(e.imagesLockPath(), unix.LOCK_SH)
		if err != nil {
			return err
		}
		defer lock.Close()
		store, err := e.Images()
		if err != nil {
			return err
		}
		if img, err = store.Get(img.ID.String()); err != nil { // somebody may have removed it already
			return err
		}
		if err := e.check(c, img); err != nil {
			return err
		}
		if err := h.describe(img); err != nil {
			return err
		}
		return h.write(false)
	}, nil)
	if err != nil {
		return nil, err
	}

	err = steps.Do("snapshot", func() error {
		s, err := e.snapshot()
		if err != nil {
			return err
		}
		return s.Prepare(ctx, h.rec.ID, img.DiffIDs)
	}, func() error {
		s, err := e.snapshot()
		if err != nil {
			return err
		}
		return s.Remove(context.WithoutCancel(ctx), h.rec.ID)
	})
	if err != nil {
		return nil, err
	}
	return h, nil
}

// normalize fills in defaults and refuses what can be refused without looking anywhere.
func normalize(c Config) (Config, error) {
	if c.Network == "" {
		c.Network = "bridge"
	}
	if c.Pull == "" {
		c.Pull = "missing"
	}
	if !slices.Contains([]string{"missing", "always", "never"}, c.Pull) {
		return c, invalid("--pull", c.Pull, "there is no such policy", "use missing, always or never")
	}
	if c.Log.Driver == "" {
		c.Log.Driver = "local"
	}
	if !slices.Contains([]string{"local", "json-file", "none"}, c.Log.Driver) {
		return c, invalid("--log-driver", c.Log.Driver, "there is no such log driver", "use local, json-file or none")
	}
	if c.Log.MaxSize < 0 || c.Log.MaxFiles < 0 {
		return c, invalid("--log-opt", "", "max-size or max-file is negative", "write max-size=10m, max-file=3")
	}
	if p := c.CgroupParent; p != "" {
		if slices.Contains(strings.Split(p, "/"), "..") || strings.ContainsAny(p, "\x00\n") || path.Clean("/"+p) == "/" {
			return c, invalid("--cgroup-parent", p, "it is not the path of a control group below the root", "write one such as /onggi/web")
		}
		if strings.HasSuffix(p, ".slice") {
			return c, invalid("--cgroup-parent", p, "slices are systemd's, and the containers' control groups are made without it", "write a path such as /onggi/web")
		}
	}
	if len(c.Links) > 0 && c.networked() {
		c.Network = c.Links[0].Network
	}
	if err := c.checkRootless(); err != nil {
		return c, err
	}
	if err := c.checkNetworks(); err != nil {
		return c, err
	}
	if err := c.checkHealth(); err != nil {
		return c, err
	}
	if err := c.Restart.Check(); err != nil {
		return c, err
	}
	if c.AutoRemove && c.Restart.Restarts() {
		return c, invalid("--restart", c.Restart.Name, "it contradicts --rm: what is removed when it ends cannot be started again", "drop --rm or --restart")
	}
	if c.StopSignal != "" {
		if _, err := spec.ParseSignal("--stop-signal", c.StopSignal); err != nil {
			return c, err
		}
	}
	if c.Init && len(c.Runtime) > 0 {
		return c, invalid("--init", "", "only Onggi's own runtime has the reaping first process", "drop --init or --runtime")
	}
	for k := range c.Labels {
		if k == "" || strings.ContainsRune(k, 0) {
			return c, invalid("--label", "", "a label has no name", "write NAME=VALUE")
		}
	}
	if c.Name != "" && !validName(c.Name) {
		return c, &errdefs.Error{
			Op: "use", What: fmt.Sprintf("--name %q", c.Name), Kind: errdefs.InvalidArgument,
			Why: "invalid container name: only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed, two of them or more", Fix: "choose another name",
		}
	}
	return c, nil
}

func invalid(flag, value, why, fix string) error {
	e := &errdefs.Error{Op: "use", What: flag, Kind: errdefs.InvalidArgument, Why: why, Fix: fix}
	if value != "" {
		e.What += " " + value
	}
	return e
}

// present returns the image if it is in the store and may be used without asking a registry.
func (e *Engine) present(c Config) (*image.Image, error) {
	if c.Build != "" {
		return &image.Image{DiffIDs: c.Stack, Config: ocispec.Image{Platform: image.HostPlatform()}}, nil
	}
	if c.Pull == "always" {
		return nil, &errdefs.Error{Kind: errdefs.NotFound, Why: "a pull was asked for"}
	}
	store, err := e.Images()
	if err != nil {
		return nil, err
	}
	want := image.HostPlatform()
	if c.Platform != nil {
		want = *c.Platform
	}
	img, err := store.GetPlatform(c.Image, want)
	if err != nil {
		return nil, err
	}
	if p := c.Platform; p != nil && !samePlatform(*p, img.Config.Platform) {
		return nil, &errdefs.Error{
			Op: "use", What: c.Image, Kind: errdefs.NotFound,
			Why: fmt.Sprintf("the stored image is for %s/%s, not %s/%s", img.Config.OS, img.Config.Architecture, p.OS, p.Architecture),
		}
	}
	return img, nil
}

func samePlatform(want, got ocispec.Platform) bool {
	return want.OS == got.OS && want.Architecture == got.Architecture && (want.Variant == "" || want.Variant == got.Variant)
}

// bring pulls a missing image.
func (e *Engine) bring(ctx context.Context, c Config, pull PullFunc) (*image.Image, error) {
	if c.Pull == "never" || pull == nil {
		return nil, &errdefs.Error{
			Op: "run", What: c.Image, Kind: errdefs.NotFound, Why: "the image is not here, and --pull never was given",
			Fix: "pull it first: onggi pull " + c.Image,
		}
	}
	return pull(ctx, c.Image)
}

// check refuses a configuration that can never start, before anything is made for it. It is a dry run of what Start
// does; what only Start can know (users of the image, the network) is left out.
func (e *Engine) check(c Config, img *image.Image) error {
	if img.Config.OS != "" && img.Config.OS != "linux" {
		return &errdefs.Error{Op: "run", What: c.Image, Kind: errdefs.Unsupported, Why: "it is an image for " + img.Config.OS, Fix: "choose a linux image"}
	}
	dry := c.Config
	if dry.Seccomp == "" {
		dry.Seccomp = "unconfined" // the default profile is known to be right
	}
	host, err := hostFacts(&dry)
	if err != nil {
		return err
	}
	mounts, err := spec.Effective(&dry, &img.Config.Config)
	if err != nil {
		return err
	}
	vols := map[string]string{}
	for _, m := range mounts {
		if m.Type == "volume" {
			vols[m.Source] = "/"
			if m.Source != "" && !validName(m.Source) {
				return invalid("--volume", m.Source+":"+m.Target, "a volume's name has [a-zA-Z0-9][a-zA-Z0-9_.-], two of them or more",
					"choose another name, or write a host path with a leading slash")
			}
		}
		if m.Type == "bind" && !m.CreateSource && strings.HasPrefix(m.Source, "/") {
			if _, err := os.Stat(m.Source); errors.Is(err, os.ErrNotExist) {
				return noBindSource(m)
			}
		}
	}
	_, _, err = spec.Generate(spec.Input{
		ID: strings.Repeat("0", 64), Image: &img.Config, Config: &dry, Host: host, RootPath: "rootfs",
		CgroupsPath: "/", Volumes: vols,
	})
	return err
}

func noBindSource(m spec.Mount) error {
	return invalid("--mount", "source="+m.Source, "invalid mount config: bind source path does not exist",
		"make it (mkdir -p "+m.Source+"), or use -v, which makes it")
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// record makes the container's directory, name and first record, in state creating, and returns it locked. Nothing
// stays on failure.
func (e *Engine) record(id string, c Config, img *image.Image, passing bool) (_ *held, err error) {
	h, err := e.newRecord(id, passing)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.erase())
			h.unlock()
		}
	}()
	if err := h.pend(); err != nil {
		return nil, err
	}
	r := h.rec
	r.Config, r.Status, r.Created = c, Creating, now()
	r.CgroupPath = path.Join("/", cmpOr(c.CgroupParent, e.o.CgroupParent), r.ID)
	r.Config.Name = ""
	if err := h.claim(c.Name); err != nil {
		return nil, err
	}
	if c.Log.Driver != "none" {
		own := e.stateDir(r.ID) + "/log"
		if passing {
			own = e.passingLogPath(r.ID)
		}
		r.LogPath = cmpOr(c.Log.Path, own)
		r.Config.Log.Path = r.LogPath
	}
	if img != nil {
		if err := h.describe(img); err != nil {
			return nil, err
		}
	}
	return h, h.write(false)
}

// describe puts into the record what the image says.
func (h *held) describe(img *image.Image) error {
	r := h.rec
	r.ImageID, r.Image = img.ID, img.Config.Config
	var err error
	if r.Command, err = spec.Command(&r.Config.Config, &r.Image); err != nil {
		return err
	}
	mounts, err := spec.Effective(&r.Config.Config, &r.Image)
	if err != nil {
		return err
	}
	r.Volumes, r.Anonymous = nil, nil
	for _, m := range mounts {
		if m.Type != "volume" {
			continue
		}
		if r.Volumes == nil {
			r.Volumes = map[string]string{}
		}
		if m.Source == "" {
			m.Source = newID()
			r.Anonymous = append(r.Anonymous, m.Source)
		}
		r.Volumes[m.Target] = m.Source
	}
	if n := r.Config.Network; r.Config.PublishAll && n != "host" && n != "none" && !strings.HasPrefix(n, "container:") {
		if r.Config.Ports, err = r.publishAll(); err != nil {
			return err
		}
	}
	r.Warnings = nil
	r.Shell = img.Shell
	r.Healthcheck = r.Config.health(img.Health)
	if r.Healthcheck == nil && (r.Config.Health != nil && !r.Config.noHealth() || r.Config.OnUnhealthy != "" && r.Config.OnUnhealthy != "none") {
		r.Warnings = append(r.Warnings, "the image has no health check and --health-cmd was not given: the other --health options do nothing")
	}
	if a := img.Config.Architecture; a != "" && a != runtime.GOARCH {
		r.Warnings = append(r.Warnings, fmt.Sprintf("the image's platform (linux/%s) does not match the host's (linux/%s)", a, runtime.GOARCH))
	}
	return nil
}
