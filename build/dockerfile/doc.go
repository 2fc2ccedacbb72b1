// Package dockerfile turns a Dockerfile into a build graph, by BuildKit's own frontend: its parser, its rules, its texts.
//
// Build is the whole frontend: it reads the Dockerfile and .dockerignore through the Backend, resolves base images,
// expands arguments, and returns a graph and an image configuration for each platform, or the answer to a subrequest
// (frontend.lint, frontend.outline, frontend.targets). It performs nothing itself.
//
// BuildKit's frontend believes that it talks to a BuildKit daemon (gateway.go): its Solve calls only remember graphs here,
// and reading from their results becomes a question to the Backend. What it emits is converted field by field
// (convert.go); a field that the graph has no place for is an error that names it, so that a new version of BuildKit
// cannot make the solver forget something silently.
//
// A "# syntax=" line that names BuildKit's Dockerfile frontend (docker/dockerfile) means this one, whatever the tag; others
// are refused: they are programs from a registry that would want BuildKit's gateway.
//
// It is linked into cmd/onggi-build only: see package build/frontend for why.
package dockerfile
