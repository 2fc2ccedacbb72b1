package cli

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/onggi/onggi/engine"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/image"
	"github.com/onggi/onggi/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// The image that lies inside this program, and the label that says so in its configuration: by it a newer program
// replaces an older one's copy, and leaves alone what a user has given that name.
const (
	helloName  = "docker.io/onggi/hello:latest"
	helloLabel = "onggi.embedded"
)

// greet tells the report the user's language, and that there is a terminal behind the pipe which can show colours; what
// the user has set stays.
func (a *app) greet(env []string) []string {
	var more []string
	for _, name := range []string{"LC_ALL", "LC_MESSAGES", "LANG"} {
		if v := os.Getenv(name); v != "" {
			more = append(more, name+"="+v)
		}
	}
	if a.paint(a.out) {
		more = append(more, "CLICOLOR_FORCE=1")
	}
	return mergeEnv(more, env)
}

// isHello reports whether a name means the image that lies inside this program.
func isHello(name string) bool {
	ref, err := reference.Parse(name)
	return err == nil && ref.String() == helloName
}

// staleHello reports whether the store holds the copy of another build of this program.
func (a *app) staleHello(e *engine.Engine) bool {
	f, err := a.helloArchive()
	if err != nil {
		return false
	}
	defer f.Close()
	store, err := e.Images()
	if err != nil {
		return false
	}
	img, err := store.Get(helloName)
	if err != nil || img.Config.Config.Labels[helloLabel] == "" {
		return false // missing: the engine asks for it by itself; or a user's own
	}
	want := manifestOf(f)
	return want != "" && want != img.Target.Digest
}

// manifestOf reads the manifest's digest from index.json, which tools/hello-image puts first into the archive.
func manifestOf(r io.Reader) digest.Digest {
	t := tar.NewReader(r)
	h, err := t.Next()
	if err != nil || h.Name != ocispec.ImageIndexFile {
		return ""
	}
	var index ocispec.Index
	if json.NewDecoder(io.LimitReader(t, 1<<16)).Decode(&index) != nil || len(index.Manifests) != 1 {
		return ""
	}
	return index.Manifests[0].Digest
}

// helloArchive opens the archive inside this program.
func (a *app) helloArchive() (fs.File, error) {
	if a.embedded != nil {
		if f, err := a.embedded.Open("hello.tar"); err == nil {
			return f, nil
		}
	}
	return nil, &errdefs.Error{
		Op: "load", What: "onggi/hello", Kind: errdefs.NotFound,
		Why: "this program was built without the image that should lie inside it",
		Fix: "build it by: make build (or, before go build ./cmd/onggi: go run ./tools/hello-image -o cmd/onggi/embedded/hello.tar)",
	}
}

// loadHello brings in the image that lies inside this program.
func (a *app) loadHello(ctx context.Context, e *engine.Engine) (*image.Image, error) {
	f, err := a.helloArchive()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	store, err := e.Images()
	if err != nil {
		return nil, err
	}
	images, err := store.Load(ctx, f, nil)
	if err != nil {
		return nil, err
	}
	if len(images) != 1 {
		return nil, &errdefs.Error{Op: "load", What: "onggi/hello", Kind: errdefs.Internal, Why: fmt.Sprintf("the archive inside this program holds %d images", len(images))}
	}
	return images[0], nil
}
