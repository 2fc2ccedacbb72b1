// Package archive turns layer archives into directories.
//
// Apply writes an uncompressed layer tar (image-spec, "layer.md") into a directory handle and never outside of it:
// every name is resolved by handles with openat2(RESOLVE_BENEATH|RESOLVE_NO_SYMLINKS|RESOLVE_NO_MAGICLINKS), a link in
// the layer is walked inside the directory or not at all and never followed for writing, and names are checked before
// anything is made. A layer that would write outside is refused. Whiteouts become what overlayfs reads: a character
// device 0:0, and the xattr trusted.overlay.opaque=y, so a layer can be unpacked without its parents. Decompression is
// done in process, never by a program found in PATH (CVE-2019-14271, CVE-2026-41567 are of that class).
//
// Flow of one layer: r -> Decompress -> ReadAhead (inflates in a goroutine of its own, taps hash) -> Apply.
//
// What it leaves to others: digests, temporary places, syncing and renaming (package snapshot).
package archive

import "io"

// Limits bound what one archive may ask for. Zero fields mean the default.
type Limits struct {
	Entries  int64 // entries and implied directories; default 10 million
	Bytes    int64 // of file content, holes of sparse files included; default 1 TiB
	PaxBytes int64 // of extended headers of one entry; default and most 1 MiB (the parser's own bound)
}

// The default limits.
const (
	defaultEntries  = 10_000_000
	defaultBytes    = 1 << 40
	defaultPaxBytes = 1 << 20
)

// Options of Apply.
type Options struct {
	Limits Limits
	// Whiteouts "overlay" (the default, as "") writes overlayfs' own form; "none" refuses whiteout entries (import of a
	// root file system).
	Whiteouts string
	// Recipe is written what Rebuild wants to make the archive again; nil: nothing.
	Recipe io.Writer
	// MapID shifts owner ids; nil keeps them.
	MapID func(uid, gid uint32) (uint32, uint32, error)
}

// Stats is what Apply wrote.
type Stats struct {
	Entries int64
	Bytes   int64 // file content
	// Implied lists the directories that had to be made although the archive has no entry for them, sorted; their
	// metadata is the default (root:root 0755, the time of the entry that needed them). "." is in it when the archive
	// has no entry for the root: the root is then left as it was. A directory that the archive also deletes from the
	// layers below (a whiteout of the same name) is not in it: it has nothing to inherit.
	Implied []string
	// Opaque says that the layer hides all layers below: it has an opaque whiteout at its root. Overlayfs does not read
	// the attribute there, so whoever stacks layers must leave the lower ones out.
	Opaque bool
	// Rebuildable says that the recipe was written and is good: not when an entry replaced an earlier one, or a file is
	// sparse in the archive.
	Rebuildable bool
}
