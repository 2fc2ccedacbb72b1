// Package reference parses and normalises image names.
//
// What's in a name? "debian" means docker.io/library/debian:latest: a registry's domain, a path, and a tag or a digest
// or both. The grammar and the normalisation are those of github.com/distribution/reference (tests compare them); the
// code is our own because that package compiles its regular expressions at every process start (1 ms).
package reference

import "github.com/opencontainers/go-digest"

// Reference is a normalised image name. Values are immutable.
type Reference struct {
	Domain string        // "docker.io", "127.0.0.1:5000"
	Path   string        // "library/debian"
	Tag    string        // "" when there is a digest and no tag; never empty otherwise after Parse
	Digest digest.Digest // "" when unknown
}

// Parse reads a name as a user types it. Errors are of kind InvalidArgument and say which part is wrong and why.
// A bare 64-hex-digit name is refused, as docker does, since it would be taken for an image id.
func Parse(s string) (Reference, error) { panic("contract") }

// Repository is "domain/path".
func (r Reference) Repository() string { panic("contract") }

// String is the full name: "docker.io/library/debian:12@sha256:...".
func (r Reference) String() string { panic("contract") }

// Familiar is the short form that docker prints: "debian:12".
func (r Reference) Familiar() string { panic("contract") }
