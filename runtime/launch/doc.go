// Package launch performs a plan: it makes, starts, joins, signals and deletes containers.
//
// Create compiles the spec with package plan into a flat list of named system calls, writes that list beside a small
// interpreter into a static ELF image in a sealed memfd, and clones a child that executes it. No Go code and no host
// binary runs inside the container; the calling process is the parent of the container's first process and waits for
// it. doc/runtime.md draws one start and the protocol between the two sides.
//
// A container is a directory Root/ID (0700) with state.json, which is written before anything else is made, so that
// Delete with force finds all that a killed creator has left. Locks are flock on that directory.
//
// Lifecycle: Create -> Container.Start -> Container.Wait -> Container.Delete in one process (the monitor, `run`), or
// Create with Options.Detached and then Load in other processes (`create`, `start`, `kill`, `delete`).
//
// It leaves to others: image, network, log (the monitor's), control groups (package cgroup), the filter's program
// (package seccomp).
package launch
