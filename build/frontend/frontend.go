package frontend

import (
	"context"
	"encoding/json"
	"time"

	"github.com/onggi/onggi/build/graph"
	"github.com/onggi/onggi/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// MaxMessage bounds a line of the conversation, in bytes: a graph, or a part of a file, in base64.
const MaxMessage = 2 * graph.MaxBytes

// MaxRead is the longest part of a file that one question may ask for, in bytes.
const MaxRead = 16 << 20

// Request starts the conversation. Options are BuildKit's: filename, target, build-arg:NAME, label:NAME, platform,
// no-cache, context, context:NAME, add-hosts, force-network-mode, shm-size, ulimit, requestid (frontend.lint,
// frontend.outline, frontend.targets), multi-platform and so on
// (github.com/moby/buildkit/frontend/dockerui/config.go).
type Request struct {
	Options map[string]string `json:"options"`
	// Platform of this machine.
	Platform ocispec.Platform `json:"platform"`
}

// Result is what the frontend made: one of Platforms for each target platform, or the answer to a subrequest in Meta.
type Result struct {
	Platforms []Platform `json:"platforms,omitempty"`
	// Index says that several platforms were asked for, so that the result is an index even if there is one.
	Index bool `json:"index,omitempty"`
	// Meta has the answer to a subrequest: result.json, result.txt, result.statuscode.
	Meta map[string][]byte `json:"meta,omitempty"`
}

// Platform is the result for one platform.
type Platform struct {
	ID       string           `json:"id"` // as linux/arm64/v8
	Platform ocispec.Platform `json:"platform"`
	Graph    graph.Graph      `json:"graph"`
	// Image is the image's configuration, without layers and history of the new ones; BaseImage that of its base.
	Image     json.RawMessage `json:"image"`
	BaseImage json.RawMessage `json:"baseImage,omitempty"`
	// Epoch is what SOURCE_DATE_EPOCH came to, in seconds since 1970.
	Epoch *int64 `json:"epoch,omitempty"`
}

// ImageQuery asks for an image's configuration.
type ImageQuery struct {
	Ref      string            `json:"ref"`
	Platform *ocispec.Platform `json:"platform,omitempty"`
	Mode     string            `json:"mode,omitempty"`  // default, pull, local
	Store    string            `json:"store,omitempty"` // of an OCI layout given with --build-context
	NoConfig bool              `json:"noConfig,omitempty"`
	Name     string            `json:"name,omitempty"` // what to show
}

// ImageInfo is the answer: Ref is the reference to use from now on.
type ImageInfo struct {
	Ref    string        `json:"ref"`
	Digest digest.Digest `json:"digest"`
	Config []byte        `json:"config,omitempty"`
}

// SourceInfo is what is known of a git or HTTP source before it is fetched.
type SourceInfo struct {
	Digest       digest.Digest `json:"digest,omitempty"` // of an HTTP source's body
	Filename     string        `json:"filename,omitempty"`
	LastModified *time.Time    `json:"lastModified,omitempty"`
	// Checksum, Ref and CommitObject of a git source.
	Checksum       string `json:"checksum,omitempty"`
	CommitChecksum string `json:"commitChecksum,omitempty"`
	Ref            string `json:"ref,omitempty"`
	CommitObject   []byte `json:"commitObject,omitempty"`
	TagObject      []byte `json:"tagObject,omitempty"`
}

// Stat is a file's metadata. Mode is as io/fs has it.
type Stat struct {
	Path    string `json:"path"`
	Mode    uint32 `json:"mode"`
	UID     uint32 `json:"uid"`
	GID     uint32 `json:"gid"`
	Size    int64  `json:"size"`
	ModTime int64  `json:"modTime"` // nanoseconds since 1970
	Link    string `json:"link,omitempty"`
}

// Warning is what the frontend has to say about the text: a lint rule that was broken.
type Warning struct {
	Text   string           `json:"text"` // "NameOfTheRule: what is wrong (line 3)"
	Detail []string         `json:"detail,omitempty"`
	URL    string           `json:"url,omitempty"`
	Level  int              `json:"level"`
	Source graph.Text       `json:"source"`
	Ranges []graph.Location `json:"ranges,omitempty"` // Text is 0
}

// Failure is an error that points into a text.
type Failure struct {
	Err    *errdefs.Error   `json:"error"`
	Source *graph.Text      `json:"source,omitempty"`
	Ranges []graph.Location `json:"ranges,omitempty"`
}

func (f *Failure) Error() string { return f.Err.Error() }

// Unwrap returns the error, for errdefs.KindOf and FixOf.
func (f *Failure) Unwrap() error { return f.Err }

// Backend answers a frontend's questions. Its methods may be called from several goroutines at once.
type Backend interface {
	// Resolve finds an image; it does not fetch its layers.
	Resolve(ctx context.Context, q ImageQuery) (*ImageInfo, error)
	// Metadata tells what is known of a git or HTTP source.
	Metadata(ctx context.Context, s *graph.Source) (*SourceInfo, error)
	// ReadFile returns up to length bytes from offset of a file in the graph's result; NotFound.
	ReadFile(ctx context.Context, g *graph.Graph, path string, offset int64, length int) ([]byte, error)
	// Stat does not follow a link in the last component.
	Stat(ctx context.Context, g *graph.Graph, path string) (*Stat, error)
	// ReadDir lists a directory; pattern, if not empty, is one of path.Match.
	ReadDir(ctx context.Context, g *graph.Graph, path, pattern string) ([]Stat, error)
	// Evaluate builds the graph and forgets the result: it is there or it fails.
	Evaluate(ctx context.Context, g *graph.Graph) error
	// Warn shows a warning.
	Warn(Warning)
}
