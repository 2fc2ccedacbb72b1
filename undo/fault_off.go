//go:build !faults

package undo

// Faults says whether fault points are compiled in (build tag faults).
const Faults = false

// fault does nothing in a release build: no environment variable can make a shipped binary fail.
func fault(string, moment) error { return nil }
