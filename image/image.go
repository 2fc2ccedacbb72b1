// Package image keeps names -> descriptors, and brings images in: pull, import, load.
//
// It stands on content (blobs), snapshot (unpacked layers) and registry. The names are in the layout's index.json
// (annotation org.opencontainers.image.ref.name holds the full reference), replaced by atomic rename under a lock.
// Order on disk: blobs and layers are whole and synced before the index names them; a name that can be read can be
// run.
//
// Pull: resolve -> manifest (index -> platform) -> config and layers in parallel, each layer downloaded, verified,
// decompressed and unpacked in one pass -> index.json. A layer that is unpacked already is neither fetched nor
// unpacked again.
package image

import (
	"context"
	"io"
	"time"

	"github.com/onggi/onggi/content"
	"github.com/onggi/onggi/reference"
	"github.com/onggi/onggi/registry"
	"github.com/onggi/onggi/snapshot"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Store is the images of one root directory.
type Store struct{}

// Open opens or makes the store; content and snapshot lie in the same root.
func Open(dir string, c *content.Store, s *snapshot.Store) (*Store, error) { panic("contract") }

// Image is one stored image, for one platform.
type Image struct {
	ID       digest.Digest         // digest of the config blob, as docker's image id
	Names    []reference.Reference // may be empty: a dangling image
	Target   ocispec.Descriptor    // what the names point at: a manifest, or the index it was chosen from
	Manifest ocispec.Descriptor
	Config   ocispec.Image
	DiffIDs  []digest.Digest // bottom first
	Size     int64           // bytes of file content of its layers
	Created  time.Time
}

// PullOptions of Pull.
type PullOptions struct {
	Platform *ocispec.Platform // nil: the host's
	Registry *registry.Client
	Progress func(Progress) // called from several goroutines; may be nil
}

// Progress is one event of a transfer.
type Progress struct {
	ID     string // short id of the layer; "" for the image as a whole
	Status string // "Pulling fs layer", "Downloading", "Extracting", "Pull complete", "Already exists" as docker says
	Done   int64  // bytes
	Total  int64  // bytes; 0 unknown
}

// Pull brings an image in and names it. The result of a pull by digest has no name but the repository@digest.
func (s *Store) Pull(ctx context.Context, ref reference.Reference, o PullOptions) (*Image, error) {
	panic("contract")
}

// Get finds an image by name, by full or unambiguous short id (>= 3 hex digits), or by repository@digest. NotFound.
func (s *Store) Get(nameOrID string) (*Image, error) { panic("contract") }

// List returns all images.
func (s *Store) List() ([]*Image, error) { panic("contract") }

// Tag gives an image another name, taking it from whichever image had it.
func (s *Store) Tag(nameOrID string, ref reference.Reference) error { panic("contract") }

// Removed is one step of a removal, as `docker rmi` prints it.
type Removed struct{ Untagged, Deleted string }

// Remove removes a name and, with its last name, the image, its blobs and the layers that no other image needs.
// inUse says whether a container still needs an image. Conflict when in use (unless only a name goes), or when an id
// with several names is removed without force.
func (s *Store) Remove(ctx context.Context, nameOrID string, force bool, inUse func(digest.Digest) bool) ([]Removed, error) {
	panic("contract")
}

// ImportOptions of Import.
type ImportOptions struct {
	Ref      reference.Reference // zero: no name
	Message  string
	Config   ocispec.ImageConfig
	Platform *ocispec.Platform
}

// Import makes a one-layer image from a root file system's tar (compressed or not).
func (s *Store) Import(ctx context.Context, r io.Reader, o ImportOptions) (*Image, error) {
	panic("contract")
}

// Load brings in the images of an archive: docker-archive or oci-archive, compressed or not, streaming or from a
// file. It returns the images with their names.
func (s *Store) Load(ctx context.Context, r io.Reader, progress func(Progress)) ([]*Image, error) {
	panic("contract")
}

// Sweep removes blobs and layers that no name needs and no running pull holds.
func (s *Store) Sweep(ctx context.Context) error { panic("contract") }
