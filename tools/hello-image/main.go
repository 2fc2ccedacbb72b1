// Command hello-image builds the image onggi/hello as an OCI archive: the same bytes for the same sources and Go
// version, without a network. Layers are plain tar (the archive lies uncompressed inside a program, and is unpacked
// at first use):
//
//	layer 1  the base: users, os-release, /tmp
//	layer 2  the program cmd/onggi-hello, static
//	layer 3  the message of the day
//
// Usage: go run ./tools/hello-image -o cmd/onggi/embedded/hello.tar
package main

import (
	"archive/tar"
	"bytes"
	_ "crypto/sha256" // go-digest looks it up by name
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// epoch is the time of every file: an archive that is built twice is the same.
var epoch = time.Unix(1767225600, 0).UTC() // 2026-01-01

func main() {
	out := flag.String("o", "", "write the archive to this `file`")
	arch := flag.String("arch", runtime.GOARCH, "build for this `architecture`")
	flag.Parse()
	if *out == "" || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "hello-image: usage: hello-image -o FILE [-arch ARCH]")
		os.Exit(2)
	}
	if err := build(*out, *arch); err != nil {
		fmt.Fprintln(os.Stderr, "hello-image:", err)
		os.Exit(1)
	}
}

func build(out, arch string) error {
	program, err := compile(arch)
	if err != nil {
		return err
	}
	layers := []struct {
		why   string
		files []file
	}{
		{"base: users, os-release, /tmp", base()},
		{"the program", []file{{name: "bin/", mode: 0o755}, {name: "bin/hello", mode: 0o755, data: program}}},
		{"the message of the day", []file{{name: "etc/", mode: 0o755}, {name: "etc/motd", mode: 0o644, data: []byte(motd)}}},
	}
	created := epoch
	config := ocispec.Image{
		Created: &created, Author: "Onggi",
		Platform: ocispec.Platform{OS: "linux", Architecture: arch},
		Config: ocispec.ImageConfig{
			Env: []string{"PATH=/bin"}, Cmd: []string{"/bin/hello"}, WorkingDir: "/tmp",
			Labels: map[string]string{
				"onggi.embedded": "true", ocispec.AnnotationTitle: "onggi/hello",
				ocispec.AnnotationDescription: "a container that explains itself", ocispec.AnnotationLicenses: "Apache-2.0",
			},
		},
		RootFS: ocispec.RootFS{Type: "layers"},
	}
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	var blobs [][]byte
	for _, l := range layers {
		b, err := archive(l.files)
		if err != nil {
			return err
		}
		d := digest.FromBytes(b)
		blobs = append(blobs, b)
		manifest.Layers = append(manifest.Layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: int64(len(b))})
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, d)
		config.History = append(config.History, ocispec.History{Created: &created, CreatedBy: "hello-image: " + l.why})
	}
	configJSON, err := json.Marshal(config)
	if err != nil {
		return err
	}
	manifest.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(configJSON), Size: int64(len(configJSON))}
	manifestJSON, err := json.Marshal(manifest)
	if err != nil {
		return err
	}
	index, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{{
			MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(manifestJSON), Size: int64(len(manifestJSON)),
			Platform:    &ocispec.Platform{OS: "linux", Architecture: arch},
			Annotations: map[string]string{ocispec.AnnotationRefName: "docker.io/onggi/hello:latest"},
		}},
	})
	if err != nil {
		return err
	}
	// index.json comes first: by it the command line sees, without reading on, which image this is.
	files := []file{
		{name: ocispec.ImageIndexFile, mode: 0o644, data: index},
		{name: ocispec.ImageLayoutFile, mode: 0o644, data: []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		{name: "blobs/", mode: 0o755},
		{name: "blobs/sha256/", mode: 0o755},
	}
	for _, b := range append(blobs, configJSON, manifestJSON) {
		files = append(files, file{name: "blobs/sha256/" + digest.FromBytes(b).Encoded(), mode: 0o644, data: b})
	}
	b, err := archive(files)
	if err != nil {
		return err
	}
	return replace(out, b)
}

// replace writes a file beside its place and renames it, so that an interrupted build leaves the old one.
func replace(name string, b []byte) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".hello-*.tar")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err = f.Write(b); err == nil {
		err = f.Chmod(0o644)
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

// compile builds the program without paths, times and build ids.
func compile(arch string) ([]byte, error) {
	dir, err := os.MkdirTemp("", "hello-image")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	bin := filepath.Join(dir, "hello")
	c := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -buildid=", "-o", bin, "github.com/onggi/onggi/cmd/onggi-hello")
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	c.Stderr = os.Stderr
	if err := c.Run(); err != nil {
		return nil, fmt.Errorf("build cmd/onggi-hello: %w", err)
	}
	return os.ReadFile(bin)
}

// file is one entry of a layer; a name that ends in a slash is a directory.
type file struct {
	name string
	mode int64
	data []byte
}

func archive(files []file) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: f.mode, Size: int64(len(f.data)), ModTime: epoch, Format: tar.FormatUSTAR}
		if f.name[len(f.name)-1] == '/' {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return b.Bytes(), err
}

func base() []file {
	return []file{
		{name: "dev/", mode: 0o755},
		{name: "etc/", mode: 0o755},
		{name: "etc/group", mode: 0o644, data: []byte("root:x:0:\nnogroup:x:65534:\n")},
		{name: "etc/os-release", mode: 0o644, data: []byte("ID=onggi-hello\nNAME=\"Onggi hello\"\nPRETTY_NAME=\"Onggi hello\"\nVERSION_ID=1\n")},
		{name: "etc/passwd", mode: 0o644, data: []byte("root:x:0:0:root:/tmp:/bin/hello\nnobody:x:65534:65534:nobody:/tmp:/bin/hello\n")},
		{name: "proc/", mode: 0o555},
		{name: "sys/", mode: 0o555},
		{name: "tmp/", mode: 0o1777},
	}
}

const motd = "An onggi is a Korean earthenware jar: it keeps what is inside apart, and lets it breathe.\n"
