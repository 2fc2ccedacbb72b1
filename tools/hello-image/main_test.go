package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestImage builds the archive twice: the bytes are the same, every blob is what its digest says, and the image has
// three layers with what the report needs.
func TestImage(t *testing.T) {
	dir := t.TempDir()
	var archives [2][]byte
	for i := range archives {
		name := filepath.Join(dir, "sub", "hello.tar")
		if err := build(name, runtime.GOARCH); err != nil {
			t.Fatal(err)
		}
		var err error
		if archives[i], err = os.ReadFile(name); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Error("two builds differ")
	}
	blobs := map[string][]byte{}
	var names []string
	for r := tar.NewReader(bytes.NewReader(archives[0])); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
		blobs[h.Name] = b
	}
	if names[0] != "index.json" {
		t.Errorf("the archive begins with %s, want index.json: the command line reads no further", names[0])
	}
	blob := func(d digest.Digest) []byte {
		b, ok := blobs["blobs/sha256/"+d.Encoded()]
		if !ok || digest.FromBytes(b) != d {
			t.Fatalf("the blob %s is missing or is not what its digest says", d)
		}
		return b
	}
	var index ocispec.Index
	var manifest ocispec.Manifest
	var config ocispec.Image
	read := func(b []byte, v any) {
		if err := json.Unmarshal(b, v); err != nil {
			t.Fatal(err)
		}
	}
	read(blobs["index.json"], &index)
	if len(index.Manifests) != 1 || index.Manifests[0].Annotations[ocispec.AnnotationRefName] != "docker.io/onggi/hello:latest" {
		t.Fatalf("index %+v", index)
	}
	read(blob(index.Manifests[0].Digest), &manifest)
	read(blob(manifest.Config.Digest), &config)
	if len(manifest.Layers) != 3 || len(config.RootFS.DiffIDs) != 3 || len(config.History) != 3 {
		t.Errorf("%d layers, %d diff ids, %d lines of history; want 3 of each", len(manifest.Layers), len(config.RootFS.DiffIDs), len(config.History))
	}
	files := map[string]*tar.Header{}
	for i, l := range manifest.Layers {
		if config.RootFS.DiffIDs[i] != l.Digest {
			t.Errorf("layer %d: diff id %s, digest %s; a plain tar has one", i, config.RootFS.DiffIDs[i], l.Digest)
		}
		for r := tar.NewReader(bytes.NewReader(blob(l.Digest))); ; {
			h, err := r.Next()
			if err != nil {
				break
			}
			if !h.ModTime.Equal(epoch) || h.Uid != 0 {
				t.Errorf("%s: time %v, uid %d", h.Name, h.ModTime, h.Uid)
			}
			files[h.Name] = h
		}
	}
	for name, mode := range map[string]int64{"bin/hello": 0o755, "etc/passwd": 0o644, "tmp/": 0o1777, "etc/motd": 0o644} {
		if h := files[name]; h == nil || h.Mode != mode {
			t.Errorf("%s: %+v, want mode %o", name, h, mode)
		}
	}
}
