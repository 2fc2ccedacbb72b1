// Package history remembers builds: what each did, step by step, why, for how long, and what it printed.
//
//	<dir>/builds/<id>.json            a Record: written when the build begins, replaced when it ends
//	<dir>/builds/<id>.log             what its steps printed, bounded; flocked by the build as long as it runs
//	<dir>/runs/<hex>/<hex>.json       a Run: what one performance of a step depended on, by slot and key
//
// A slot is a stage of a Dockerfile over versions of it ("Dockerfile [build"). When a step misses the cache, the run of its
// slot that differs in the fewest parts says what changed (Nearest). Runs outlive the cache's records, so that a
// step that was pruned, or that failed, can be told from one that never was.
//
// All of it is information and nothing depends on it: records are replaced by rename but not synced, and a file that
// cannot be read does not exist. It is bounded: MaxBuilds builds, MaxLog bytes of output each, maxRuns runs of a slot, and
// runs go when they are older than every build that is left.
//
// Secrets are not in it: keys have none (package build), and what steps print is masked before it comes here.
//
// Lifecycle: Open; Begin -> Log.Write* -> End for a build; Seen and Nearest for its steps; Get, List, Output, Remove for
// people. Several processes may use a store at once.
//
// It leaves to others: what a step is and why it ran (package build), results (build/cache), how to show it (cli).
package history
