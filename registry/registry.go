// Package registry speaks the OCI distribution protocol: resolve, fetch, authenticate.
//
// It is a client of one registry at a time and keeps nothing on disk. Plain HTTP is used for loopback addresses and
// for registries that the caller lists; never as a fallback from TLS. Every body is bounded and watched: an answer
// that stalls for StallTimeout ends with an error. Redirects are bounded (10). 429 and 5xx answers are tried again
// with backoff, at most Retries times, within the caller's context.
package registry

import (
	"context"
	"io"

	"github.com/onggi/onggi/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Options of a Client. The zero value is usable.
type Options struct {
	PlainHTTP []string // registries ("host:port") reached without TLS besides loopback ones
	UserAgent string
}

// Client talks to registries. It is safe for concurrent use.
type Client struct{}

// New returns a client.
func New(o Options) *Client { panic("contract") }

// Resolve returns the descriptor that the reference's tag or digest names in its registry. Errors: NotFound (no such
// repository or tag), Unauthorized, Forbidden, Unavailable, Corrupt.
func (c *Client) Resolve(ctx context.Context, ref reference.Reference) (ocispec.Descriptor, error) {
	panic("contract")
}

// Manifest fetches a manifest or index by descriptor, at most 4 MiB, verified against size and digest.
func (c *Client) Manifest(ctx context.Context, ref reference.Reference, desc ocispec.Descriptor) ([]byte, error) {
	panic("contract")
}

// Blob opens a blob's stream. The caller verifies it (content.Ingest does). The reader fails with kind Unavailable when
// the connection breaks or stalls.
func (c *Client) Blob(ctx context.Context, ref reference.Reference, desc ocispec.Descriptor) (io.ReadCloser, error) {
	panic("contract")
}
