package archive

import (
	"fmt"
	"strings"

	"github.com/onggi/onggi/errdefs"
)

const (
	maxName  = 255  // bytes of one component (NAME_MAX)
	maxPath  = 4095 // bytes of a path (PATH_MAX less its NUL)
	maxDepth = 512  // directories above an entry; a bound of ours, so that no walk needs more handles than that
)

// Whiteouts (image-spec, "layer.md", Whiteouts).
const (
	whiteoutPrefix = ".wh."
	metaPrefix     = ".wh..wh." // AUFS' own entries: no content of the layer
	opaqueName     = ".wh..wh..opq"
)

// clean returns an entry's name relative to the root: without leading slashes, empty components and "."; the root
// itself is ".". Absolute names are taken as inside, as every tar does. ".." is refused wherever it stands.
func clean(name string) (string, error) {
	if len(name) > maxPath+1 { // one more for a directory's slash
		return "", refuse("the name is longer than %d bytes", maxPath)
	}
	simple := name != "" && name[0] != '/'
	depth, start := 0, 0
	for i := 0; i <= len(name); i++ {
		if i < len(name) && name[i] == 0 {
			return "", refuse("the name has a NUL byte")
		}
		if i < len(name) && name[i] != '/' {
			continue
		}
		switch c := name[start:i]; {
		case c == "..":
			return "", refuse(`the name has ".."`)
		case len(c) > maxName:
			return "", refuse("a part of the name is longer than %d bytes", maxName)
		case c == "" || c == ".":
			simple = false
		default:
			depth++
		}
		start = i + 1
	}
	if depth > maxDepth+1 {
		return "", refuse("the name is deeper than %d directories", maxDepth)
	}
	if simple {
		return name, nil
	}
	parts := make([]string, 0, depth)
	for _, c := range strings.Split(name, "/") {
		if c != "" && c != "." {
			parts = append(parts, c)
		}
	}
	if len(parts) == 0 {
		return ".", nil
	}
	return strings.Join(parts, "/"), nil
}

// split cuts a clean name into its directory ("." at the top) and its last component.
func split(name string) (dir, base string) {
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		return name[:i], name[i+1:]
	}
	return ".", name
}

// join puts a component below a clean directory.
func join(dir, base string) string {
	if dir == "." {
		return base
	}
	return dir + "/" + base
}

// refuse is an entry that we do not take. What is filled in by the loop.
func refuse(format string, args ...any) error {
	return &errdefs.Error{Kind: errdefs.InvalidArgument, Why: fmt.Sprintf(format, args...)}
}
