// Package archive turns layer archives into directories.
//
// Apply writes an uncompressed layer tar (image-spec, "layer.md") into a directory handle and never outside of it:
// every name is resolved with openat2(RESOLVE_IN_ROOT|RESOLVE_NO_MAGICLINKS) beneath the handle, a link is never
// followed for writing, and names are checked before anything is made. A layer that would write outside is refused.
// Whiteouts become what overlayfs reads: a character device 0:0, and the xattr trusted.overlay.opaque=y, so a layer
// can be unpacked without its parents. Decompression is done in process, never by a program found in PATH
// (CVE-2019-14271, CVE-2026-41567 are of that class).
package archive

import (
	"context"
	"io"
	"os"
)

// Limits bound what one archive may ask for. Zero fields mean the default.
type Limits struct {
	Entries  int64 // default 10 million
	Bytes    int64 // of file content; default 1 TiB
	PaxBytes int64 // of extended headers of one entry; default 1 MiB
}

// Options of Apply.
type Options struct {
	Limits Limits
	// Whiteouts "overlay" (the default) writes overlayfs' own form; "none" refuses whiteout entries (import of a root
	// file system).
	Whiteouts string
	// MapID shifts owner ids; nil keeps them.
	MapID func(uid, gid uint32) (uint32, uint32, error)
}

// Stats is what Apply wrote.
type Stats struct {
	Entries int64
	Bytes   int64 // file content
	// Implied lists directories that had to be made although the archive has no entry for them; their metadata is the
	// default (root:root 0755).
	Implied []string
}

// Apply writes the tar stream r below dir and reads r to its end, trailing padding included, so that the caller's
// digest of r is that of the whole stream. It does not sync. After an error the directory holds part of the layer and
// must be thrown away. Errors: Corrupt (not a tar, truncated), InvalidArgument (an entry that would leave the
// directory, a malformed whiteout), Exhausted (a limit), NoSpace.
func Apply(ctx context.Context, r io.Reader, dir *os.File, o Options) (Stats, error) {
	panic("contract")
}

// Compression is a layer's encoding.
type Compression string

// The encodings of image-spec.
const (
	Plain Compression = ""
	Gzip  Compression = "gzip"
	Zstd  Compression = "zstd"
)

// Decompress looks at the first bytes of r and returns a reader of the uncompressed stream. Memory is bounded (a zstd
// window above 128 MiB is refused).
func Decompress(r io.Reader) (io.ReadCloser, Compression, error) { panic("contract") }
