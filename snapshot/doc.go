// Package snapshot keeps file system states: unpacked layers, and the writable layer of each container on top.
//
// A layer is stored once by its diffID (the digest of its uncompressed tar), whatever its position in whichever image:
//
//	layers/<algorithm>/<hex>/fs          the tree, in overlayfs' form
//	layers/<algorithm>/<hex>/layer.json  its record (Layer)
//	chains/<hex>/chain.json              how a list of layers is stacked, found out once
//	chains/<hex>/fs                      directories whose metadata the stack would get wrong, if there are any
//	containers/<id>/{upper,work}         a writable layer
//	containers/<id>/chain                a link that names the chain it stands on
//	empty/                               the lower directory of an image without layers
//	ingest/, trash/, locks/              what live processes work on; Sweep takes what dead ones left
//
// A layer is unpacked in ingest/, synced with one syncfs, renamed into its place, and that directory synced: a
// directory under layers/ is always whole. Mounts describes the stack; this package never mounts.
//
// Lifecycle of a layer: Unpack or Batch -> (Prepare -> Mounts -> Remove)* -> RemoveLayer.
//
// Because layers are unpacked without their parents, a tar that has usr/bin/x but no entry for usr/bin makes an
// implied directory with default metadata, which overlayfs would show instead of the lower layer's. The chain finds
// those that differ from what unpacking one layer over the other would give, and puts them right in a small layer of
// directories on top (chain.go).
//
// Locks: one flock per diffID (locks/), taken in the order of the digests, and one on each directory in ingest/, so
// that Sweep knows the live ones. No other lock is taken while they are held.
//
// What it leaves to others: whether a layer is still needed (package image), the record that owns a writable layer
// (package engine), mounting (package mount).
package snapshot
