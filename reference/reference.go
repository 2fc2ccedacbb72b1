// Package reference parses and normalises image names.
//
// What's in a name? "debian" means docker.io/library/debian:latest: a registry's domain, a path, and a tag or a digest
// or both. The grammar and the normalisation are those of github.com/distribution/reference (tests compare them); the
// code is our own because that package compiles its regular expressions at every process start (1 ms).
//
// Two corners differ on purpose: a first component that has to be a registry and is no valid host name is refused
// (distribution turns "my_host.org/x" into a path without a registry), and Familiar never shortens a name to
// something that would be read as another registry.
package reference

import (
	"fmt"
	"strings"

	_ "crypto/sha256" // go-digest only knows the algorithms that are linked in
	_ "crypto/sha512"

	"github.com/onggi/onggi/errdefs"
	"github.com/opencontainers/go-digest"
)

const (
	defaultDomain = "docker.io"
	legacyDomain  = "index.docker.io" // docker's first registry; the same images
	officialRepo  = "library/"
	defaultTag    = "latest"

	maxPath = 255 // distribution's RepositoryNameTotalLengthMax
	maxTag  = 128
	maxName = 4096 // no valid name is longer; bounds what an error message repeats
)

// Reference is a normalised image name. Values are immutable.
type Reference struct {
	Domain string        // "docker.io", "127.0.0.1:5000"
	Path   string        // "library/debian"
	Tag    string        // "" when there is a digest and no tag; never empty otherwise after Parse
	Digest digest.Digest // "" when unknown
}

// Parse reads a name as a user types it. Errors are of kind InvalidArgument and say which part is wrong and why.
// A bare 64-hex-digit name is refused, as docker does, since it would be taken for an image id.
func Parse(s string) (Reference, error) {
	if s == "" {
		return Reference{}, invalid(s, "it is empty", "give a name such as debian:12")
	}
	if len(s) > maxName {
		return Reference{}, invalid(s[:64]+"...", fmt.Sprintf("it is longer than %d bytes", maxName), "")
	}
	if len(s) == 64 && isHex(s) {
		return Reference{}, invalid(s, "64 hexadecimal digits are an image id, not a name", "add a tag, or use another name")
	}
	domain, rest := splitDomain(s)
	rest, dig, hasDigest := strings.Cut(rest, "@")
	path, tag, hasTag := strings.Cut(rest, ":")
	r := Reference{Domain: domain, Path: path, Tag: tag, Digest: digest.Digest(dig)}

	if why := badDomain(domain); why != "" {
		return Reference{}, invalid(s, fmt.Sprintf("the registry %q %s", domain, why), "")
	}
	if why := badPath(path); why != "" {
		fix := ""
		if low := strings.ToLower(s); low != s {
			if _, err := Parse(low); err == nil {
				fix = "write it in lower case: " + low
			}
		}
		return Reference{}, invalid(s, fmt.Sprintf("the repository %q %s", strings.TrimPrefix(path, officialRepo), why), fix)
	}
	if hasTag {
		if why := badTag(tag); why != "" {
			return Reference{}, invalid(s, fmt.Sprintf("the tag %q %s", tag, why), "")
		}
	}
	if hasDigest {
		if why := badDigest(r.Digest); why != "" {
			return Reference{}, invalid(s, fmt.Sprintf("the digest %q %s", dig, why),
				"a digest is sha256: and 64 digits of 0-9a-f")
		}
	}
	if !hasTag && !hasDigest {
		r.Tag = defaultTag
	}
	return r, nil
}

// Repository is "domain/path".
func (r Reference) Repository() string { return r.Domain + "/" + r.Path }

// String is the full name: "docker.io/library/debian:12@sha256:...".
func (r Reference) String() string { return r.Repository() + r.suffix() }

// Familiar is the short form that docker prints: "debian:12".
func (r Reference) Familiar() string {
	if r.Domain != defaultDomain {
		return r.String()
	}
	path := r.Path
	if p, ok := strings.CutPrefix(path, officialRepo); ok && !strings.Contains(p, "/") {
		path = p
	} else if first, _, ok := strings.Cut(path, "/"); ok && isDomain(first) {
		return r.String() // docker.io/quay.io/x is not quay.io/x
	}
	return path + r.suffix()
}

// FamiliarRepository is Familiar without tag and digest: "debian".
func (r Reference) FamiliarRepository() string {
	return Reference{Domain: r.Domain, Path: r.Path}.Familiar()
}

// IsZero reports whether r names nothing.
func (r Reference) IsZero() bool { return r == Reference{} }

func (r Reference) suffix() string {
	s := ""
	if r.Tag != "" {
		s = ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + string(r.Digest)
	}
	return s
}

// splitDomain takes the registry off the front, by docker's rule: the first component is a registry when it cannot be
// anything else (a dot, a port, an upper-case letter) or is "localhost".
func splitDomain(s string) (domain, rest string) {
	first, after, ok := strings.Cut(s, "/")
	switch {
	case !ok:
		return defaultDomain, officialRepo + s
	case first == legacyDomain:
		domain, rest = defaultDomain, after
	case isDomain(first):
		domain, rest = first, after
	default:
		domain, rest = defaultDomain, s
	}
	if domain == defaultDomain && !strings.Contains(rest, "/") {
		rest = officialRepo + rest
	}
	return domain, rest
}

func isDomain(first string) bool {
	return first == "localhost" || strings.ContainsAny(first, ".:") || strings.ToLower(first) != first
}

// badDomain says what is wrong with host [ ":" port ], or "".
func badDomain(s string) string {
	host, port, hasPort := s, "", false
	if strings.HasPrefix(s, "[") {
		end := strings.IndexByte(s, ']')
		if end < 0 {
			return "has no closing bracket"
		}
		if end == 1 || !all(s[1:end], func(c byte) bool { return isHexDigit(c) || c >= 'A' && c <= 'F' || c == ':' }) {
			return "has a malformed IPv6 address (a zone is not allowed)"
		}
		host = ""
		switch tail := s[end+1:]; {
		case tail == "":
		case tail[0] == ':':
			port, hasPort = tail[1:], true
		default:
			return "has text after its bracket"
		}
	} else {
		host, port, hasPort = strings.Cut(s, ":")
		for _, label := range strings.Split(host, ".") {
			if label == "" {
				return "has an empty part"
			}
			if !all(label, func(c byte) bool { return isAlnum(c) || c == '-' }) {
				return "may hold only letters, digits, dots and dashes"
			}
			if label[0] == '-' || label[len(label)-1] == '-' {
				return "has a part that begins or ends with a dash"
			}
		}
	}
	if hasPort && (port == "" || !all(port, isDigit)) {
		return "has a port that is not a number"
	}
	return ""
}

// badPath says what is wrong with a repository path, or "".
func badPath(s string) string {
	switch {
	case s == "" || s == officialRepo:
		return "is empty"
	case strings.ToLower(s) != s:
		return "must be lower case"
	case len(s) > maxPath:
		return fmt.Sprintf("is longer than %d characters", maxPath)
	}
	for _, c := range strings.Split(s, "/") {
		if why := badComponent(c); why != "" {
			return why
		}
	}
	return ""
}

// badComponent checks alphanumeric [ separator alphanumeric ]*; a separator is ".", "_", "__" or dashes.
func badComponent(s string) string {
	if s == "" {
		return "has an empty component"
	}
	for i := 0; i < len(s); {
		start := i
		for i < len(s) && (isDigit(s[i]) || s[i] >= 'a' && s[i] <= 'z') {
			i++
		}
		if i == start {
			if strings.IndexByte("._-", s[i]) >= 0 {
				return "has a component that begins with a separator, or two separators in a row"
			}
			return "may hold only a-z, 0-9 and the separators . _ __ - /"
		}
		if i == len(s) {
			return ""
		}
		switch {
		case s[i] == '.':
			i++
		case strings.HasPrefix(s[i:], "__"):
			i += 2
		case s[i] == '_':
			i++
		case s[i] == '-':
			for i < len(s) && s[i] == '-' {
				i++
			}
		default:
			return "may hold only a-z, 0-9 and the separators . _ __ - /"
		}
		if i == len(s) {
			return "has a component that ends with a separator"
		}
	}
	return ""
}

func badTag(s string) string {
	switch {
	case s == "":
		return "is empty"
	case len(s) > maxTag:
		return fmt.Sprintf("is longer than %d characters", maxTag)
	case s[0] == '.' || s[0] == '-':
		return "begins with " + s[:1]
	case !all(s, func(c byte) bool { return isAlnum(c) || c == '_' || c == '.' || c == '-' }):
		return "may hold only letters, digits, _ . and -"
	}
	return ""
}

func badDigest(d digest.Digest) string {
	if err := d.Validate(); err != nil {
		return "is malformed"
	}
	if a := d.Algorithm(); a != digest.SHA256 && a != digest.SHA512 {
		return "is of an algorithm that is not supported"
	}
	return ""
}

func invalid(s, why, fix string) error {
	return &errdefs.Error{Op: "parse the image name", What: fmt.Sprintf("%q", s), Kind: errdefs.InvalidArgument, Why: why, Fix: fix}
}

func isDigit(c byte) bool    { return c >= '0' && c <= '9' }
func isHexDigit(c byte) bool { return isDigit(c) || c >= 'a' && c <= 'f' }
func isAlnum(c byte) bool    { return isDigit(c) || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }
func isHex(s string) bool    { return all(s, isHexDigit) }

func all(s string, f func(byte) bool) bool {
	for i := 0; i < len(s); i++ {
		if !f(s[i]) {
			return false
		}
	}
	return true
}
