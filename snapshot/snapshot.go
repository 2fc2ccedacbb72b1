// Package snapshot keeps file system states: unpacked layers, and the writable layer of each container on top.
//
// A layer is stored once by its diffID (the digest of its uncompressed tar), whatever its position in whichever image:
// layers/<algorithm>/<hex>/fs is the tree in overlayfs' form, layers/<algorithm>/<hex>/layer.json its record.
// A layer is unpacked beside its place, synced with one syncfs, renamed, and its directory synced: a directory under
// layers/ is always whole. A container's writable layer is containers/<id>/{upper,work}. Mounts describes the stack;
// this package never mounts.
//
// Lifecycle of a layer: Unpack -> (Prepare -> Mounts -> Remove)* -> RemoveLayer.
package snapshot

import (
	"context"
	"io"
	"time"

	"github.com/onggi/onggi/mount"
	"github.com/opencontainers/go-digest"
)

// Store is a directory of layers and writable layers; several processes may use it at once.
type Store struct{ dir string }

// Open opens or makes the store in dir.
func Open(dir string) (*Store, error) { panic("contract") }

// Layer is the record of an unpacked layer.
type Layer struct {
	DiffID  digest.Digest `json:"diffID"`
	Size    int64         `json:"size"`    // bytes of file content
	Entries int64         `json:"entries"` // archive entries
	Implied []string      `json:"implied,omitempty"`
	Created time.Time     `json:"created"`
}

// Layer returns the record, or an error of kind NotFound.
func (s *Store) Layer(diffID digest.Digest) (*Layer, error) { panic("contract") }

// Unpack reads the layer's archive (compressed or not) from r, verifies that the uncompressed stream's digest is
// diffID, and puts the tree in its place. A layer that is there already is not read. Two processes unpacking one layer:
// the second waits for the first (flock) and then finds it done. An empty diffID means unknown: it is computed and
// returned in the record (import). Nothing stays after an error.
func (s *Store) Unpack(ctx context.Context, diffID digest.Digest, r io.Reader) (*Layer, error) {
	panic("contract")
}

// RemoveLayer removes a layer; the caller knows that nobody uses it. Not there is not an error.
func (s *Store) RemoveLayer(ctx context.Context, diffID digest.Digest) error { panic("contract") }

// Layers lists all layers.
func (s *Store) Layers() ([]Layer, error) { panic("contract") }

// Prepare makes the writable layer id (a container's id) on top of layers (bottom first). AlreadyExists if there.
func (s *Store) Prepare(ctx context.Context, id string, layers []digest.Digest) error {
	panic("contract")
}

// Mounts returns the stack of id as mounts: overlay with the writable layer, or read-only without it. volatile as in
// mount.Overlay.
func (s *Store) Mounts(id string, readonly, volatile bool) ([]mount.Mount, error) { panic("contract") }

// Usage returns the bytes and inodes of id's writable layer.
func (s *Store) Usage(id string) (bytes, inodes int64, err error) { panic("contract") }

// Remove removes the writable layer. Not there is not an error. It is done by renaming first, so that a crash leaves
// only what Sweep removes.
func (s *Store) Remove(ctx context.Context, id string) error { panic("contract") }

// Sweep removes leftovers of crashed Unpack, Remove and RemoveLayer calls that no live process holds.
func (s *Store) Sweep(ctx context.Context) error { panic("contract") }
