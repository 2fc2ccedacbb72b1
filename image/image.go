// Package image keeps names -> descriptors, and brings images in: pull, import, load.
//
// It stands on content (blobs), snapshot (unpacked layers) and registry. The names are in the layout's index.json
// (annotation org.opencontainers.image.ref.name holds the full reference), replaced by atomic rename under a lock.
// Order on disk: blobs and layers are whole and synced before the index names them; a name that can be read can be
// run.
//
// Pull: resolve -> manifest (index -> platform) -> config -> layers in parallel, each layer downloaded, verified,
// decompressed and unpacked in one pass -> index.json. A layer that is unpacked already is neither fetched nor
// unpacked again.
//
// Many processes use one store at once. Reading takes no lock. What changes the names, and what removes blobs, holds
// the index lock for as long as that takes. What brings an image in holds a lease: a locked file that lists the digests
// it relies on, written before it looks whether they are there. What removes looks at the names and the leases of
// living processes first. Layers are made in package snapshot's batches, whose locks see to it that a layer is fetched
// once however many pulls want it. The lease of a process that died says what it may have left: the next one to come
// removes that.
package image

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/onggi/onggi/content"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/reference"
	"github.com/onggi/onggi/registry"
	"github.com/onggi/onggi/signature"
	"github.com/onggi/onggi/snapshot"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Store is the images of one root directory.
type Store struct {
	dir       string // lock and leases/
	content   *content.Store
	snapshots *snapshot.Store
	guard     Guard                             // may be nil
	keep      func() Keep                       // may be nil
	also      []func() ([]digest.Digest, error) // see AlsoNeeds
	notify    func(action, id string, name string)
}

// Guard decides whether there is room for what comes in. Its errors, of kind NoSpace, end the pull, load or import, of which
// nothing stays.
type Guard interface {
	// Room is asked before more bytes come, and again before what has come is kept, with those of it that have no name on
	// the disk yet. It may empty the trash. It is called without a lock of this store.
	Room(ctx context.Context, more int64) error
	// Low is asked now and then while bytes come; it is cheap.
	Low() error
}

// SetGuard sets who is asked for room. It is called before the store is used.
func (s *Store) SetGuard(g Guard) {
	s.guard = g
	s.snapshots.SetGuard(g.Low)
}

// SetNotify sets who is told what has happened to an image, in docker's words: pull, push, tag, untag, delete, load, import,
// save. id is the image's; for pull and push, as docker has it, its name. It is called before the store is used; f may be
// called from several goroutines.
func (s *Store) SetNotify(f func(action, id, name string)) { s.notify = f }

func (s *Store) tell(action, id, name string) {
	if s.notify != nil {
		s.notify(action, id, name)
	}
}

func (s *Store) room(ctx context.Context, more int64) error {
	if s.guard == nil {
		return nil
	}
	return s.guard.Room(ctx, more)
}

// Open opens or makes the store; content and snapshot lie in the same root. dir holds the lock, the leases and the trash, and may
// be the content store's own directory; index.json is always in the latter, since it is part of the layout.
func Open(dir string, c *content.Store, s *snapshot.Store) (*Store, error) {
	if err := os.MkdirAll(filepath.Join(dir, "leases"), 0o700); err != nil {
		return nil, &errdefs.Error{Op: "open the image store", What: dir, Kind: errdefs.KindOf(err), Err: err}
	}
	return &Store{dir: dir, content: c, snapshots: s}, nil
}

// Image is one stored image, for one platform. List fills of Config only the platform and Created, and leaves DiffIDs
// empty: it does not read the configurations.
type Image struct {
	ID       digest.Digest         // digest of the config blob, as docker's image id
	Names    []reference.Reference // may be empty: a dangling image
	Target   ocispec.Descriptor    // what the names point at: a manifest, or the index it was chosen from
	Manifest ocispec.Descriptor
	Config   ocispec.Image
	DiffIDs  []digest.Digest // bottom first
	Size     int64           // bytes of file content of its layers
	Created  time.Time

	// Health and Shell are what docker's configuration has besides: nil when the image does not say. Get fills them.
	Health *Health
	Shell  []string
}

// anyName is one of the image's names, or its id.
func (i *Image) anyName() string {
	if len(i.Names) == 0 {
		return string(i.ID)
	}
	return i.Names[0].Familiar()
}

// PullOptions of Pull.
type PullOptions struct {
	Platform *ocispec.Platform // nil: the host's
	// AllPlatforms brings in every image of an index, side by side, and its attestations.
	AllPlatforms bool
	// Referrers brings in what refers to the image, too: signatures, SBOMs.
	Referrers bool
	// Policy says which images have to be signed; nil: none. It is held against what the name resolves to, also when the
	// image is here already, and before anything is unpacked.
	Policy *signature.Policy
	// Warn is told what a rule of mode warn finds wrong; may be nil.
	Warn     func(string)
	Registry *registry.Client
	Progress func(Progress) // called from several goroutines; may be nil
}

// Progress is one event of a transfer. A layer's Downloading and Extracting events come at most every 100 ms.
type Progress struct {
	ID     string // short id of the layer
	Status string // "Pulling fs layer", "Downloading", "Extracting", "Pull complete", "Already exists" as docker says
	Done   int64  // bytes
	Total  int64  // bytes; 0 unknown
}

// Get finds an image by name, by full or unambiguous short id (>= 3 hex digits), or by repository@digest. NotFound. Of
// the images for several platforms that have one name it returns the one that serves this host best.
func (s *Store) Get(nameOrID string) (*Image, error) { return s.GetPlatform(nameOrID, HostPlatform()) }

// GetPlatform is Get for another platform. An image for a third platform is returned when there is no better one: the
// caller looks at Config.Platform.
func (s *Store) GetPlatform(nameOrID string, want ocispec.Platform) (*Image, error) {
	for try := 0; ; try++ {
		img, err := s.get(nameOrID, want)
		// Between the index and the blob another process may have removed the image, or given the name to another.
		if err != nil && try == 0 && errdefs.Is(err, errdefs.NotFound) {
			continue
		}
		return img, err
	}
}

func (s *Store) get(nameOrID string, want ocispec.Platform) (*Image, error) {
	idx, err := s.find(nameOrID, want)
	if err != nil {
		return nil, err
	}
	e := idx[0]
	img := e.image()
	for _, other := range idx[1:] {
		img.addName(other)
	}
	b, err := s.content.ReadAll(ocispec.Descriptor{Digest: img.ID}, maxConfig)
	if err != nil {
		return nil, &errdefs.Error{
			Op: "open the image", What: nameOrID, Kind: errdefs.KindOf(err), Err: err,
			Fix: "pull it again",
		}
	}
	img.Config, err = parseConfig(b)
	if err != nil {
		return nil, &errdefs.Error{Op: "open the image", What: nameOrID, Kind: errdefs.Corrupt, Err: err}
	}
	img.Health, img.Shell = parseHealth(b)
	img.DiffIDs = img.Config.RootFS.DiffIDs
	if img.Config.Created != nil {
		img.Created = *img.Config.Created
	}
	return img, nil
}

// List returns all images, the newest first.
func (s *Store) List() ([]*Image, error) {
	idx, err := s.readIndex()
	if err != nil {
		return nil, err
	}
	all := idx.images()
	sortByAge(all)
	return all, nil
}

// Tag gives an image another name, taking it from whichever image had it.
func (s *Store) Tag(nameOrID string, ref reference.Reference) error {
	if ref.Digest != "" || ref.Tag == "" {
		return &errdefs.Error{
			Op: "tag", What: ref.Familiar(), Kind: errdefs.InvalidArgument,
			Why: "a digest cannot be given to an image: it has the one that its content has", Fix: "use a tag",
		}
	}
	var id digest.Digest
	err := s.change(context.Background(), func(idx index) (index, error) {
		found, err := idx.find(nameOrID, HostPlatform())
		if err != nil {
			return nil, err
		}
		id = found[0].id
		next := idx.name(ref.String(), found[0])
		if found[0].named(nameOrID) { // all platforms of the name
			if from, err := reference.Parse(found[0].name); err == nil {
				for _, e := range idx.platforms(from) {
					if e.besides(found[0]) {
						next = next.name(ref.String(), e)
					}
				}
			}
		}
		return next, nil
	})
	if err == nil {
		s.tell("tag", string(id), ref.Familiar())
	}
	return err
}

// short is the id as docker prints it: 12 digits.
func short(d digest.Digest) string {
	if content.Check(d) != nil {
		return fmt.Sprintf("%.12s", string(d))
	}
	return d.Encoded()[:12]
}
