// Package engine is the only place that knows the order of things.
//
//	Create:  record -> image -> snapshot
//	Start:   volumes -> files -> network -> spec -> process(created) -> process(started)
//	Remove:  process -> network -> snapshot -> record        (both, read backwards)
//	Run    = Create, Start, Wait, and Remove if asked
//
// State is files: containers/<id>/state.json below the root (durable, replaced by atomic rename) and a run directory
// below the run root (volatile). The record is written first, in state "creating"; what a killed command leaves is
// swept by the next one. flock on containers/<id>/lock serialises changes of one container; readers take no lock.
// Several processes work on one state at the same time: nothing here is kept in memory between calls.
//
// Whether a container runs is not what its record says but whether its monitor holds its lock (monitor.Alive); after a
// reboot the run root is empty and every container has therefore ended.
//
// The Engine's methods take contexts, return typed errors (errdefs) and never print.
package engine
