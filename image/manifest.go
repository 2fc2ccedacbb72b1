package image

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/onggi/onggi/content"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Bounds of what is parsed. A manifest or an index is bounded by registry.MaxManifest.
const (
	maxConfig = 8 << 20
	// maxLayers is what overlayfs can stack (OVL_MAX_STACK, fs/overlayfs/params.h).
	maxLayers    = 500
	maxPlatforms = 2048 // entries of an index
	maxDepth     = 64   // of JSON
)

const (
	dockerConfig       = "application/vnd.docker.container.image.v1+json"
	dockerLayer        = "application/vnd.docker.image.rootfs.diff.tar"
	dockerForeignLayer = "application/vnd.docker.image.rootfs.foreign.diff.tar"
)

func malformed(what, format string, args ...any) error {
	return &errdefs.Error{
		What: what, Kind: errdefs.Corrupt, Why: fmt.Sprintf(format, args...),
		Fix: "the image has to be built or pushed again",
	}
}

// document is a manifest or an index, of which exactly one is set.
type document struct {
	manifest *ocispec.Manifest
	index    *ocispec.Index
}

// parseDocument reads a manifest or index strictly. mediaType is what the descriptor or the registry calls it, "" when
// nobody said. What two readers could take for two different things is refused (CVE-2021-41190): both kinds in one
// document, another type inside than outside, a member twice, or spelled with other capitals.
func parseDocument(mediaType string, b []byte) (document, error) {
	if len(b) > registry.MaxManifest {
		return document{}, malformed("the manifest", "it has %d bytes, more than %d", len(b), registry.MaxManifest)
	}
	if err := unambiguous(b, []string{
		"schemaVersion", "mediaType", "config", "layers", "manifests", "annotations", "subject",
		"artifactType", "digest", "size", "platform", "urls", "data", "architecture", "os", "variant",
	}); err != nil {
		return document{}, malformed("the manifest", "%v", err)
	}
	var head struct {
		SchemaVersion int             `json:"schemaVersion"`
		MediaType     string          `json:"mediaType"`
		Config        json.RawMessage `json:"config"`
		Layers        json.RawMessage `json:"layers"`
		Manifests     json.RawMessage `json:"manifests"`
		FSLayers      json.RawMessage `json:"fsLayers"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return document{}, malformed("the manifest", "it is not one: %v", err)
	}
	isManifest, isIndex := head.Config != nil || head.Layers != nil, head.Manifests != nil
	switch {
	case head.SchemaVersion == 1 || head.FSLayers != nil:
		return document{}, &errdefs.Error{
			What: "the manifest", Kind: errdefs.Unsupported, Why: "it is of docker's schema 1, which was given up in 2017",
			Fix: "push the image again with a current docker, podman or skopeo",
		}
	case head.SchemaVersion != 2:
		return document{}, malformed("the manifest", "its schemaVersion is %d instead of 2", head.SchemaVersion)
	case isManifest && isIndex:
		return document{}, malformed("the manifest", "it is a manifest and an index at once")
	case !isManifest && !isIndex:
		return document{}, malformed("the manifest", "it is neither a manifest nor an index")
	case mediaType != "" && head.MediaType != "" && mediaType != head.MediaType:
		return document{}, malformed("the manifest", "it calls itself %q and is referred to as %q", head.MediaType, mediaType)
	}
	if mediaType == "" {
		mediaType = head.MediaType
	}
	switch mediaType {
	case "":
	case ocispec.MediaTypeImageManifest, registry.DockerManifest:
		if isIndex {
			return document{}, malformed("the manifest", "it is an index and is called %s", mediaType)
		}
	case ocispec.MediaTypeImageIndex, registry.DockerManifestList:
		if isManifest {
			return document{}, malformed("the manifest", "it is a manifest and is called %s", mediaType)
		}
	default:
		return document{}, &errdefs.Error{What: "the manifest", Kind: errdefs.Unsupported, Why: fmt.Sprintf("its type %q is not that of an image", mediaType)}
	}
	if isIndex {
		var idx ocispec.Index
		if err := json.Unmarshal(b, &idx); err != nil {
			return document{}, malformed("the index", "%v", err)
		}
		return document{index: &idx}, checkIndex(&idx)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return document{}, malformed("the manifest", "%v", err)
	}
	return document{manifest: &m}, checkManifest(&m)
}

func checkIndex(idx *ocispec.Index) error {
	if len(idx.Manifests) == 0 {
		return malformed("the index", "it lists nothing")
	}
	if len(idx.Manifests) > maxPlatforms {
		return malformed("the index", "it lists %d manifests, more than %d", len(idx.Manifests), maxPlatforms)
	}
	for _, d := range idx.Manifests {
		if err := checkDescriptor("the index", d); err != nil {
			return err
		}
	}
	return nil
}

func checkManifest(m *ocispec.Manifest) error {
	if err := checkDescriptor("the manifest", m.Config); err != nil {
		return err
	}
	switch m.Config.MediaType {
	case ocispec.MediaTypeImageConfig, dockerConfig, "":
	default:
		return &errdefs.Error{
			What: "the manifest", Kind: errdefs.Unsupported,
			Why: fmt.Sprintf("it is not a container image: its configuration is of type %q", m.Config.MediaType),
			Fix: "get it with a tool for that kind of artifact (oras, helm, ...)",
		}
	}
	if m.Config.Size > maxConfig {
		return malformed("the manifest", "its configuration has %d bytes, more than %d", m.Config.Size, maxConfig)
	}
	if len(m.Layers) > maxLayers {
		return &errdefs.Error{
			What: "the manifest", Kind: errdefs.Unsupported,
			Why: fmt.Sprintf("it has %d layers; overlayfs stacks at most %d", len(m.Layers), maxLayers),
		}
	}
	for _, l := range m.Layers {
		if err := checkDescriptor("the manifest", l); err != nil {
			return err
		}
		if err := checkLayerType(l.MediaType); err != nil {
			return err
		}
	}
	return nil
}

// checkLayerType refuses what is no layer of a Linux image. The compression is read from the data, not from the name.
func checkLayerType(mt string) error {
	base, _, _ := strings.Cut(mt, "+")
	base = strings.TrimSuffix(base, ".gzip")
	switch base {
	case ocispec.MediaTypeImageLayer, dockerLayer, "application/vnd.oci.image.layer.nondistributable.v1.tar", "":
		if strings.HasSuffix(mt, "+encrypted") {
			return &errdefs.Error{What: "a layer", Kind: errdefs.Unsupported, Why: "it is encrypted", Fix: "decrypt the image first (skopeo copy --decryption-key)"}
		}
		return nil
	case dockerForeignLayer:
		return &errdefs.Error{What: "a layer", Kind: errdefs.Unsupported, Why: "it is kept outside of the registry, as those of Windows are"}
	}
	return &errdefs.Error{What: "a layer", Kind: errdefs.Unsupported, Why: fmt.Sprintf("its type %q is not that of a layer", mt)}
}

func checkDescriptor(what string, d ocispec.Descriptor) error {
	if err := content.Check(d.Digest); err != nil {
		return malformed(what, "it refers to the digest %.100q, which is malformed", string(d.Digest))
	}
	if d.Size < 0 {
		return malformed(what, "the size of %s is negative", d.Digest)
	}
	return nil
}

// parseConfig reads an image configuration, of docker or OCI.
func parseConfig(b []byte) (ocispec.Image, error) {
	var c ocispec.Image
	if len(b) > maxConfig {
		return c, malformed("the image's configuration", "it has %d bytes, more than %d", len(b), maxConfig)
	}
	if err := unambiguous(b, nil); err != nil {
		return c, malformed("the image's configuration", "%v", err)
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return c, malformed("the image's configuration", "%v", err)
	}
	if c.RootFS.Type != "" && c.RootFS.Type != "layers" {
		return c, malformed("the image's configuration", "its root file system is of type %.100q instead of layers", c.RootFS.Type)
	}
	if len(c.RootFS.DiffIDs) > maxLayers {
		return c, malformed("the image's configuration", "it lists %d layers, more than %d", len(c.RootFS.DiffIDs), maxLayers)
	}
	for _, d := range c.RootFS.DiffIDs {
		if content.Check(d) != nil {
			return c, malformed("the image's configuration", "its layer %.100q is no digest", string(d))
		}
	}
	if c.OS != "" && c.OS != "linux" {
		return c, &errdefs.Error{What: "the image", Kind: errdefs.Unsupported, Why: fmt.Sprintf("it is for %.40q, not for linux", c.OS)}
	}
	return c, nil
}

// checkPair says whether the manifest and the configuration belong together.
func checkPair(m *ocispec.Manifest, c ocispec.Image) error {
	if len(m.Layers) != len(c.RootFS.DiffIDs) {
		return malformed("the image", "its manifest lists %d layers and its configuration %d", len(m.Layers), len(c.RootFS.DiffIDs))
	}
	// One layer under two descriptions, of which a reader that looks at one never sees the other.
	seen := map[digest.Digest]digest.Digest{}
	for i, l := range m.Layers {
		if d, ok := seen[l.Digest]; ok && d != c.RootFS.DiffIDs[i] {
			return malformed("the image", "its configuration gives the layer %s two contents", l.Digest)
		}
		seen[l.Digest] = c.RootFS.DiffIDs[i]
	}
	return nil
}

// unambiguous walks a JSON document and complains when a member comes twice in one object, when the nesting is too
// deep, and when a member differs from a known one by capitals only (encoding/json takes such members for the known
// ones, others do not).
func unambiguous(b []byte, known []string) error {
	folded := map[string]string{}
	for _, k := range known {
		folded[strings.ToLower(k)] = k
	}
	type level struct {
		names   map[string]bool // nil: an array
		wantKey bool
		free    bool // names are the user's: annotations
	}
	var stack []level
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	freeNext := false
	for {
		t, err := d.Token()
		if err != nil {
			return fmt.Errorf("it is not JSON: %w", err)
		}
		top := len(stack) - 1
		if s, ok := t.(string); ok && top >= 0 && stack[top].wantKey {
			if stack[top].names[s] {
				return fmt.Errorf("the member %.60q comes twice", s)
			}
			stack[top].names[s] = true
			stack[top].wantKey = false
			if k, ok := folded[strings.ToLower(s)]; ok && k != s && !stack[top].free {
				return fmt.Errorf("the member %.60q can be taken for %q", s, k)
			}
			freeNext = s == "annotations"
			continue
		}
		switch t {
		case json.Delim('{'):
			stack = append(stack, level{names: map[string]bool{}, wantKey: true, free: freeNext})
		case json.Delim('['):
			stack = append(stack, level{})
		case json.Delim('}'), json.Delim(']'):
			stack = stack[:top]
			if top = len(stack) - 1; top >= 0 {
				stack[top].wantKey = stack[top].names != nil
			} else {
				return trailing(d)
			}
		default:
			if top < 0 {
				return trailing(d)
			}
			stack[top].wantKey = stack[top].names != nil
		}
		freeNext = false
		if len(stack) > maxDepth {
			return fmt.Errorf("it is nested more than %d deep", maxDepth)
		}
	}
}

// trailing complains about what follows the document.
func trailing(d *json.Decoder) error {
	if d.More() {
		return fmt.Errorf("something follows the document")
	}
	return nil
}
