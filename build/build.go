package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/onggi/onggi/build/cache"
	"github.com/onggi/onggi/build/frontend"
	"github.com/onggi/onggi/build/graph"
	"github.com/onggi/onggi/build/history"
	"github.com/onggi/onggi/build/tree"
	"github.com/onggi/onggi/engine"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/image"
	"github.com/onggi/onggi/reference"
	"github.com/onggi/onggi/undo"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// Options of a build.
type Options struct {
	// Frontend is the command line of onggi-build; Request what it is asked for (frontend.Request has the names).
	Frontend []string
	Request  map[string]string
	// Locals are the user's directories by the names that the request gives them: context, dockerfile, and --build-context's.
	Locals map[string]string
	// Outputs are what is done with the result; none: it is only built, and what it came to is in the cache.
	Outputs []Output
	// CacheFrom are caches of other stores, asked for what is not in this one's, in their order; CacheTo gets what this build
	// needed.
	CacheFrom []CacheSource
	CacheTo   []CacheTarget
	// Provenance and SBOM are statements about the images, in their index and beside files.
	Provenance Provenance
	SBOM       bool
	// ID is the build's id (history.NewID); "" makes one.
	ID string
	// Context and Dockerfile are what the user has called them, for the history.
	Context, Dockerfile string
	// Allow lists what steps may have beyond the default.
	Allow []Entitlement
	// Secrets and Agents are what RUN --mount=type=secret and type=ssh may ask for, by id.
	Secrets map[string]Secret
	Agents  map[string]string // sockets of ssh agents
	// Pull asks the registry for base images that are here, too.
	Pull bool
	// PullImage brings an image in; it is asked when an image is missing, or always with Pull.
	PullImage func(ctx context.Context, name string, platform *ocispec.Platform) (*image.Image, error)
	// PushImage brings what the name means into its registry.
	PushImage func(ctx context.Context, name reference.Reference) error
	Progress  Progress
	// GitEnv is the environment that git gets: PATH, proxies, certificates.
	GitEnv []string
	// NoCache performs every step again; what it comes to is kept.
	NoCache bool
	// Parallel is how many commands run at once; 0 is one for each processor.
	Parallel int
}

// Entitlement is a privilege that a step may ask for.
type Entitlement string

// The entitlements.
const (
	NetworkHost      Entitlement = "network.host"      // RUN --network=host
	SecurityInsecure Entitlement = "security.insecure" // RUN --security=insecure: all capabilities, no seccomp
	PrivateAddresses Entitlement = "network.private"   // ADD from an address that is not public
)

// Secret is a value, or the file that has it.
type Secret struct {
	File  string
	Value []byte // counts when File is empty
}

// maxSecret bounds a secret's value, in bytes.
const maxSecret = 500 << 10

func (s Secret) read() ([]byte, error) {
	if s.File == "" {
		return s.Value, nil
	}
	fi, err := os.Stat(s.File)
	if err != nil {
		return nil, err
	}
	if fi.Size() > maxSecret {
		return nil, &errdefs.Error{Op: "read", What: s.File, Kind: errdefs.Exhausted, Why: fmt.Sprintf("a secret has at most %d KiB", maxSecret>>10)}
	}
	return os.ReadFile(s.File)
}

// Result of a build.
type Result struct {
	ID     string         // of the build, in the history
	Images []*image.Image // one for each platform, if the store got them
	// Desc is the manifest or index of the last output that is an image; Config the digest of its configuration, if it has
	// one only.
	Desc   *ocispec.Descriptor
	Config digest.Digest
	Names  []reference.Reference
	// Metadata are further facts of the build, by the names that buildx's --metadata-file gives them.
	Metadata map[string]json.RawMessage
	// Meta has the answer to a subrequest.
	Meta map[string][]byte
}

// Progress is told what happens; its methods are called from several goroutines.
type Progress interface {
	// Step tells a vertex's state; the first event of a vertex has Started set.
	Step(Step)
	// Output is what a step's command printed.
	Output(vertex digest.Digest, data []byte)
	Warn(frontend.Warning)
}

// Step is a vertex's state.
type Step struct {
	Vertex digest.Digest
	Number int // from 1
	Name   string
	Group  string
	After  []int // the steps that it stands on or reads
	State  State
	Took   time.Duration // of Done and Failed
	Err    error
	// Why says why a step is performed; nil for one that hits, and for what is never cached.
	Why *history.Why
}

// State of a step.
type State string

// The states of a step.
const (
	Started  State = "started" // being performed
	Cached   State = "cached"
	Done     State = "done"
	Failed   State = "failed"
	Canceled State = "canceled"
)

// maxHeard is how many conversations with the frontend are remembered.
const maxHeard = 128

// Build performs a build. An error of a step is a *Failure, one of the text a *frontend.Failure.
func Build(ctx context.Context, e *engine.Engine, o Options) (_ *Result, err error) {
	s, err := openSession(ctx, e, o)
	if err != nil {
		return nil, err
	}
	if err := s.begin(); err != nil {
		return nil, errors.Join(err, s.close(ctx))
	}
	defer func() {
		if cerr := s.close(context.WithoutCancel(ctx)); cerr != nil {
			err = errors.Join(err, cerr)
		}
	}()
	asked := ctx
	var out *Result
	defer func() {
		if herr := s.journal.end(asked, out, err); herr != nil { // what is built is built
			s.o.Progress.Warn(frontend.Warning{Text: "the build is not in the history: " + herr.Error()})
		}
	}()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.cancel = cancel
	plat := image.HostPlatform()
	if plat.Architecture == "amd64" {
		plat.Variant = "" // as BuildKit: an image that is for this processor's level would not be the same on another machine
	}
	if err := s.importCaches(ctx); err != nil {
		return nil, err
	}
	heard, err := s.cache.Memory("frontend", maxHeard)
	if err != nil {
		return nil, err
	}
	res, err := frontend.RunRemembered(ctx, heard, o.Frontend, frontend.Request{Options: o.Request, Platform: plat}, s)
	if err != nil {
		return nil, s.cause(ctx, err)
	}
	out = &Result{ID: s.id, Meta: res.Meta}
	if len(res.Platforms) == 0 {
		return out, nil
	}
	// All platforms at once: they share steps.
	var wg sync.WaitGroup
	b := &built{index: res.Index, parts: make([]part, len(res.Platforms))}
	errs := make([]error, len(res.Platforms))
	for i, p := range res.Platforms {
		wg.Go(func() {
			b.parts[i].platform = p
			if b.parts[i].result, errs[i] = s.solve(ctx, &p.Graph); errs[i] != nil {
				cancel(errs[i])
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, s.cause(ctx, err)
		}
	}
	if o.SBOM {
		for i := range b.parts {
			if b.parts[i].sbom, err = s.bill(ctx, b.parts[i]); err != nil {
				return nil, s.cause(ctx, err)
			}
		}
	}
	if err := s.tellProvenance(b, out); err != nil {
		return nil, err
	}
	for i := range o.Outputs {
		if err := undo.New("build").Do("output", func() error { return s.give(ctx, &o.Outputs[i], b, out) }, nil); err != nil {
			return nil, s.cause(ctx, err)
		}
	}
	if err := s.exportCaches(ctx, b); err != nil {
		return nil, s.cause(ctx, err)
	}
	return out, nil
}

// session is one build.
type session struct {
	o       Options
	e       *engine.Engine
	cache   *cache.Store
	images  *image.Store
	hold    *image.Hold
	id      string // of the build: the label of its steps, and its name in the history
	journal *journal
	mask    *mask
	run     string // its directory on the volatile root
	tmp     string // its directory on the durable root: what is unpacked or fetched
	alive   *os.File
	turns   chan struct{}
	epoch   *time.Time // SOURCE_DATE_EPOCH, if it was given as a number
	cancel  context.CancelCauseFunc

	mu        sync.Mutex
	futures   map[digest.Digest]*future
	started   time.Time
	materials map[digest.Digest]material      // what sources came to, but for images
	needed    map[digest.Digest]*cache.Record // the steps of this build
	foreign   map[digest.Digest]foreign       // what imported caches have; not changed while steps are solved
	bases     map[string]*image.Image         // by the reference that Resolve answered
	seen      map[string]*tree.Known          // files of the user's directories
	undone    []func() error                  // what close takes back, newest last
}

func openSession(ctx context.Context, e *engine.Engine, o Options) (_ *session, err error) {
	s := &session{o: o, e: e, started: time.Now(), futures: map[digest.Digest]*future{}, bases: map[string]*image.Image{}, seen: map[string]*tree.Known{}}
	if s.o.Progress == nil {
		s.o.Progress = silent{}
	}
	var values [][]byte
	for _, sec := range o.Secrets {
		if b, err := sec.read(); err == nil { // one that cannot be read fails the step that wants it
			values = append(values, b)
		}
	}
	s.mask = newMask(values...)
	if v, ok := o.Request["build-arg:SOURCE_DATE_EPOCH"]; ok {
		if n, err := strconv.ParseInt(v, 10, 64); err == nil {
			t := time.Unix(n, 0).UTC()
			s.epoch = &t
		}
	}
	n := o.Parallel
	if n <= 0 {
		n = processors()
	}
	s.turns = make(chan struct{}, n)
	if s.cache, err = e.BuildCache(); err != nil {
		return nil, err
	}
	if s.images, err = e.Images(); err != nil {
		return nil, err
	}
	steps := undo.New("build.open") // close takes back what they do
	var gate *os.File
	if err := steps.Do("sweep", func() (err error) {
		if gate, err = e.BuildGate(ctx); err != nil {
			return err
		}
		if left, err := e.Steps(); err != nil || len(left) == 0 {
			return err
		}
		_, err = ReleaseAll(ctx, e, time.Now().Add(-keptFor), maxKept)
		return err
	}, nil); err != nil {
		return nil, errors.Join(err, closed(gate))
	}
	defer gate.Close()
	if s.id = o.ID; s.id == "" {
		s.id = history.NewID()
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close(context.WithoutCancel(ctx)))
		}
	}()
	if err := steps.Do("directories", func() (err error) {
		s.run = filepath.Join(e.BuildsDir(), s.id)
		if err := os.Mkdir(s.run, 0o700); err != nil {
			s.run = ""
			return err
		}
		if s.alive, err = lockDir(s.run); err != nil {
			return err
		}
		root, _ := e.Roots()
		s.tmp = filepath.Join(root, "build", "tmp", s.id)
		return os.MkdirAll(s.tmp, 0o700)
	}, nil); err != nil {
		return nil, err
	}
	return s, steps.Do("hold", func() (err error) { s.hold, err = s.images.Hold(ctx); return err }, nil)
}

func closed(f *os.File) error {
	if f == nil {
		return nil
	}
	return f.Close()
}

// lockDir holds the directory's lock as long as the process lives; an error when somebody else does.
func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// close takes back what the build made and nobody needs; it is called when nothing of it runs any more.
func (s *session) close(ctx context.Context) error {
	var errs []error
	for i := len(s.undone) - 1; i >= 0; i-- {
		errs = append(errs, s.undone[i]())
	}
	if s.hold != nil {
		errs = append(errs, s.hold.Close(ctx))
	}
	for _, d := range []string{s.tmp, s.run} {
		if d != "" {
			errs = append(errs, os.RemoveAll(d))
		}
	}
	if s.alive != nil {
		errs = append(errs, s.alive.Close())
	}
	return errors.Join(errs...)
}

// later has f called at the end of the build.
func (s *session) later(f func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.undone = append(s.undone, f)
}

// cause is the error that ended the build, rather than one of those that it led to.
func (s *session) cause(ctx context.Context, err error) error {
	c := context.Cause(ctx)
	switch {
	case c == nil:
		return err
	case errors.Is(c, context.Canceled): // by the caller: what the steps say of it is of no interest
		return &errdefs.Error{Op: "build", Kind: errdefs.Canceled, Err: c}
	}
	return c
}

func (s *session) allowed(e Entitlement) bool {
	for _, a := range s.o.Allow {
		if a == e {
			return true
		}
	}
	return false
}

// Failure is a step that failed.
type Failure struct {
	Vertex   *graph.Vertex
	Step     int          // its number
	Sources  []graph.Text // what its Locations point into
	ExitCode int          // of a command; 0 when it was not that
	Kept     bool         // what the command left is there still: Debug
	Err      error
}

func (f *Failure) Error() string { return f.Err.Error() }

// Unwrap returns the cause.
func (f *Failure) Unwrap() error { return f.Err }

type silent struct{}

func (silent) Step(Step)                    {}
func (silent) Output(digest.Digest, []byte) {}
func (silent) Warn(frontend.Warning)        {}
