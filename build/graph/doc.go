// Package graph is a build as data: vertices, each one operation on file trees, and the edges between them.
//
// A frontend makes a graph from a Dockerfile (build/dockerfile), a solver performs it (build). The two run in different
// processes, so a graph is plain JSON, and everything in it is untrusted: Decode bounds its size and checks that it is
// whole, acyclic and of known operations only.
//
// The operations are those of BuildKit's LLB (github.com/moby/buildkit/solver/pb, ops.proto), because its Dockerfile
// frontend speaks them; the types are ours, because the solver has no use for protobuf at run time. An operation or a
// field that this package does not know is refused by the frontend's process, never dropped.
//
// It does nothing else: no I/O, no cache keys, no order.
package graph
