// Package content keeps blobs by digest: ingest, verify, commit, open, walk, delete.
//
// The directory is an OCI image layout (image-spec, "image-layout.md"): oci-layout, blobs/<algorithm>/<hex>, and next
// to it ingest/ for what is still arriving. A blob is written to ingest/, its size and digest are checked while it is
// written, it is synced, renamed into place, and its directory is synced: a name under blobs/ always holds those
// bytes. Nothing here knows what a blob means; index.json belongs to package image.
//
// Lifecycle of an ingest: Begin -> Write... -> Commit | Close. Close without Commit keeps nothing.
package content

import (
	"context"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Store is a directory of blobs. Several processes may use one directory at once.
type Store struct{ dir string }

// Open opens or makes the store in dir.
func Open(dir string) (*Store, error) { panic("contract") }

// Path returns where the blob lies or would lie. The digest's form is checked: it never leaves the store.
func (s *Store) Path(d digest.Digest) (string, error) { panic("contract") }

// Stat returns the blob's size, or an error of kind NotFound.
func (s *Store) Stat(d digest.Digest) (int64, error) { panic("contract") }

// Open returns a reader that verifies size and digest: the last Read returns an error of kind Corrupt rather than
// io.EOF when they differ.
func (s *Store) Open(desc ocispec.Descriptor) (io.ReadCloser, error) { panic("contract") }

// ReadAll returns a verified small blob; larger than limit bytes is an error of kind Exhausted before it is read.
func (s *Store) ReadAll(desc ocispec.Descriptor, limit int64) ([]byte, error) { panic("contract") }

// Begin starts an ingest for desc; desc.Size -1 and an empty digest mean unknown (the digest is then computed).
func (s *Store) Begin(ctx context.Context, desc ocispec.Descriptor) (*Ingest, error) {
	panic("contract")
}

// Put stores a small blob that is already in memory, and returns its descriptor.
func (s *Store) Put(ctx context.Context, mediaType string, b []byte) (ocispec.Descriptor, error) {
	panic("contract")
}

// Delete removes a blob. Removing what is not there is not an error.
func (s *Store) Delete(d digest.Digest) error { panic("contract") }

// Walk calls fn for each blob in no particular order.
func (s *Store) Walk(fn func(d digest.Digest, size int64) error) error { panic("contract") }

// Ingest is a blob on its way in.
type Ingest struct{}

// Write appends; writing more than the expected size is an error of kind Corrupt at once.
func (w *Ingest) Write(p []byte) (int, error) { panic("contract") }

// Digest returns the digest of what has been written so far.
func (w *Ingest) Digest() digest.Digest { panic("contract") }

// Commit verifies, syncs and puts the blob in its place. A blob that is already there makes Commit succeed.
func (w *Ingest) Commit(ctx context.Context) (ocispec.Descriptor, error) { panic("contract") }

// Close drops what was not committed. It may always be called.
func (w *Ingest) Close() error { panic("contract") }
