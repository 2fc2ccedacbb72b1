package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/onggi/onggi/content"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/events"
	"github.com/onggi/onggi/image"
	"github.com/onggi/onggi/network"
	"github.com/onggi/onggi/snapshot"
	"github.com/onggi/onggi/volume"
	"golang.org/x/sys/unix"
)

// Options of Open.
type Options struct {
	Root         string   // durable state; default /var/lib/onggi
	RunRoot      string   // volatile state; default /run/onggi
	Runtime      string   // path of onggi-runtime; default beside this executable, then PATH
	Self         []string // command line that runs `onggi` on the same roots, for the monitor's Cleanup
	CgroupParent string   // control group of all containers; default "/onggi"
	Bridge       string   // name of the bridge; default as package network's
	For          string   // the user behind this process, if it is another one's (sudo): Sender tells
	KeepBlobs    string   // what becomes of layers' blobs (image.Keep); default what the limits say, image.KeepAuto
}

// Engine is a store and its containers. Open is cheap: it opens and makes nothing that the command does not use.
// Its methods may be called from several goroutines.
type Engine struct {
	o Options

	mu        sync.Mutex // over what follows: stores that are opened at first use
	made      bool       // the directories are there
	contents  *content.Store
	snapshots *snapshot.Store
	images    *image.Store
	volumes   *volume.Store
	net       *network.Manager
}

// storeVersion is the form of the files below the root; a store of a higher one is refused.
const storeVersion = 1

// Open returns an engine on the given roots. A store that a newer Onggi has written is an error of kind Unsupported.
func Open(o Options) (*Engine, error) {
	for _, d := range []struct {
		p   *string
		def string
	}{{&o.Root, "/var/lib/onggi"}, {&o.RunRoot, "/run/onggi"}, {&o.CgroupParent, "/onggi"}} {
		if *d.p == "" {
			*d.p = d.def
		}
		if !filepath.IsAbs(*d.p) {
			abs, err := filepath.Abs(*d.p)
			if err != nil {
				return nil, err
			}
			*d.p = abs
		}
	}
	if strings.ContainsAny(o.Root+o.RunRoot, "\n\x00") {
		return nil, &errdefs.Error{
			Op: "open", What: o.Root, Kind: errdefs.InvalidArgument, Why: "the path has a newline or a NUL byte",
			Fix: "choose another --root or --run-root",
		}
	}
	e := &Engine{o: o}
	b, err := os.ReadFile(e.versionPath())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return e, nil
	case errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0:
		return nil, needsRoot("open", o.Root)
	case err != nil:
		return nil, &errdefs.Error{Op: "open", What: "the store " + o.Root, Kind: errdefs.KindOf(err), Err: err, Fix: "choose another directory with --root"}
	}
	if v, err := strconv.Atoi(strings.TrimSpace(string(b))); err != nil || v > storeVersion {
		return nil, &errdefs.Error{
			Op: "open", What: o.Root, Kind: errdefs.Unsupported,
			Why: fmt.Sprintf("the store has version %q, this onggi knows up to %d", strings.TrimSpace(string(b)), storeVersion),
			Fix: "use the newer onggi that wrote it, or another --root", Err: err,
		}
	}
	return e, nil
}

// Root returns the directory of the store, absolute.
func (e *Engine) Root() string { return e.o.Root }

func (e *Engine) versionPath() string { return filepath.Join(e.o.Root, "version") }

// make makes the directories of an empty store. Everything that writes calls it first; what only reads treats a
// missing directory as an empty one.
func (e *Engine) make() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.makeLocked()
}

func (e *Engine) makeLocked() error {
	if e.made {
		return nil
	}
	if os.Geteuid() != 0 {
		return needsRoot("change", e.o.Root)
	}
	if _, err := os.Stat(e.versionPath()); err != nil {
		for _, d := range []string{e.containersDir(), e.namesDir()} {
			// 0700: nobody but root walks into the trees of containers (CVE-2021-41091, CVE-2024-25621).
			if err := os.MkdirAll(d, 0o700); err != nil {
				return err
			}
		}
		if err := replaceFile(e.versionPath(), []byte(strconv.Itoa(storeVersion)+"\n"), true); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(e.runsDir(), 0o700); err != nil {
		return &errdefs.Error{Op: "use", What: "the run root " + e.o.RunRoot, Kind: errdefs.KindOf(err), Err: err, Fix: "choose another directory with --run-root"}
	}
	e.made = true
	return nil
}

// needsRoot is the error for another user.
func needsRoot(op, root string) error {
	return &errdefs.Error{
		Op: op, What: "the store " + root, Kind: errdefs.Forbidden,
		Why: fmt.Sprintf("containers are made by root, of the host or of a user namespace, and this is user %d", os.Geteuid()),
		Fix: "run it by the program onggi, which enters a user namespace, or as root: sudo onggi ...",
	}
}

// contentLocked returns the blob store, which lies in the same OCI layout as the images' index.
func (e *Engine) contentLocked() (*content.Store, error) {
	if e.contents == nil {
		if err := e.makeLocked(); err != nil {
			return nil, err
		}
		c, err := content.Open(filepath.Join(e.o.Root, "images"))
		if err != nil {
			return nil, err
		}
		e.contents = c
	}
	return e.contents, nil
}

// snapshot returns the store of layers and writable layers.
func (e *Engine) snapshot() (*snapshot.Store, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.snapshotLocked()
}

func (e *Engine) snapshotLocked() (*snapshot.Store, error) {
	if e.snapshots == nil {
		if err := e.makeLocked(); err != nil {
			return nil, err
		}
		s, err := snapshot.Open(e.snapshotsDir())
		if err != nil {
			return nil, err
		}
		e.snapshots = s
	}
	return e.snapshots, nil
}

// Images returns the image store.
func (e *Engine) Images() (*image.Store, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.images == nil {
		c, err := e.contentLocked()
		if err != nil {
			return nil, err
		}
		s, err := e.snapshotLocked()
		if err != nil {
			return nil, err
		}
		i, err := image.Open(filepath.Join(e.o.Root, "images"), c, s)
		if err != nil {
			return nil, err
		}
		i.SetGuard(guard{e})
		i.SetKeep(e.keepBlobs)
		i.AlsoNeeds(e.builtLayers)
		i.SetNotify(func(action, id, name string) {
			e.Emit(events.Image, action, id, map[string]string{"name": name})
		})
		e.images = i
	}
	return e.images, nil
}

// Volumes returns the volume store.
func (e *Engine) Volumes() (*volume.Store, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.volumes == nil {
		if err := e.makeLocked(); err != nil {
			return nil, err
		}
		v, err := volume.Open(filepath.Join(e.o.Root, "volumes"))
		if err != nil {
			return nil, err
		}
		e.volumes = v
	}
	return e.volumes, nil
}

// network returns the network manager.
func (e *Engine) network() (*network.Manager, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.net == nil {
		var names []string
		if bin, err := e.runtime(); err == nil { // without it nothing runs that could ask
			names = []string{bin, "resolver"}
		}
		n, err := network.Open(network.Options{
			StateDir: filepath.Join(e.o.Root, "network"), RunDir: filepath.Join(e.o.RunRoot, "network"), Bridge: e.o.Bridge, Resolver: names,
		})
		if err != nil {
			return nil, err
		}
		e.net = n
	}
	return e.net, nil
}

// runtime returns the path of onggi-runtime.
func (e *Engine) runtime() (string, error) {
	if e.o.Runtime != "" {
		return e.o.Runtime, nil
	}
	if self, err := os.Executable(); err == nil {
		if p := filepath.Join(filepath.Dir(self), "onggi-runtime"); unix.Access(p, unix.X_OK) == nil {
			return p, nil
		}
	}
	p, err := exec.LookPath("onggi-runtime")
	if err != nil {
		return "", &errdefs.Error{
			Op: "find", What: "onggi-runtime", Kind: errdefs.NotFound, Why: "it is neither beside onggi nor in PATH",
			Fix: "install it beside onggi", Err: err,
		}
	}
	return filepath.Abs(p)
}
