package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	profile "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
)

// writeProfile writes docker's default profile for a container with docker's default capabilities, so that every
// runtime gets the same document.
func writeProfile(path string) error {
	spec := &runspec.Spec{Process: &runspec.Process{Capabilities: &runspec.LinuxCapabilities{Bounding: []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
		"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
	}}}}
	p, err := profile.GetDefaultProfile(spec)
	if err != nil {
		return err
	}
	raw, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return os.WriteFile(path, raw, 0o600)
}

const registryAddr = "127.0.0.1:15999"

// startRegistry starts Debian's docker-registry on loopback.
func (b *bench) startRegistry() error {
	conf := filepath.Join(b.work, "registry.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %s}\n", b.dir("registry"), registryAddr)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return err
	}
	return b.daemon("registry.log", []string{"docker-registry", "serve", conf}, func() bool {
		r, err := http.Get("http://" + registryAddr + "/v2/")
		if err == nil {
			_ = r.Body.Close()
		}
		return err == nil
	})
}

// pullImage builds the image of four layers (debootstrap base, 5,000 small files, a 200 MB file of which half
// compresses, a 1 MB file), compressed as docker does it (Go's compress/gzip), and puts it into the registry.
func (b *bench) pullImage() error {
	base := filepath.Join(b.work, "base.tar")
	run := func(name string, args ...string) error {
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s %v: %w: %s", name, args, err, lastLine(string(out)))
		}
		return nil
	}
	if _, err := os.Stat(base); err != nil {
		cached := os.Getenv("ONGGI_BENCH_BASE")
		if cached == "" {
			return errors.New("there is no base image: mmdebstrap could not make one (no mirror?)")
		}
		if err := run("cp", cached, base); err != nil {
			return err
		}
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	header := func(w *tar.Writer, name string, mode, size int64) {
		must(w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: size, Typeflag: tar.TypeReg, ModTime: time.Unix(1e9, 0)}))
	}
	some := func(w *tar.Writer, name string, size int) error {
		header(w, name, 0o755, int64(size))
		buf := make([]byte, 1<<20) // a piece at a time: our own memory would be counted as that of those we start
		for ; size > 0; size -= len(buf) {
			for i := 0; i < len(buf); i += 2 {
				buf[i] = byte(rnd.UintN(40))
			}
			if _, err := w.Write(buf); err != nil {
				return err
			}
		}
		return nil
	}
	layers := []func(w io.Writer) error{
		func(w io.Writer) error {
			f, err := os.Open(base)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = io.Copy(w, f)
			return err
		},
		func(w io.Writer) error {
			t := tar.NewWriter(w)
			buf := make([]byte, 3800)
			for i := range 5000 {
				for j := range buf {
					buf[j] = byte(rnd.UintN(64)) + 32
				}
				header(t, fmt.Sprintf("srv/files/d%02d/%d", i%50, i), 0o644, int64(len(buf)))
				if _, err := t.Write(buf); err != nil {
					return err
				}
			}
			return t.Close()
		},
		func(w io.Writer) error {
			t := tar.NewWriter(w)
			if err := some(t, "usr/local/bin/big", 210<<20); err != nil {
				return err
			}
			return t.Close()
		},
		func(w io.Writer) error {
			t := tar.NewWriter(w)
			if err := some(t, "usr/local/bin/app", 1<<20); err != nil {
				return err
			}
			return t.Close()
		},
	}
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest}
	m.SchemaVersion = 2
	var diffIDs []string
	for _, write := range layers {
		f, err := os.CreateTemp(b.work, "layer")
		if err != nil {
			return err
		}
		defer os.Remove(f.Name())
		defer f.Close()
		packed, plain := sha256.New(), sha256.New()
		z := gzip.NewWriter(io.MultiWriter(f, packed))
		if err := write(io.MultiWriter(z, plain)); err != nil {
			return err
		}
		if err := z.Close(); err != nil {
			return err
		}
		size, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return err
		}
		d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.NewDigest(digest.SHA256, packed), Size: size}
		if err := b.putBlob(d, f); err != nil {
			return err
		}
		m.Layers = append(m.Layers, d)
		diffIDs = append(diffIDs, string(digest.NewDigest(digest.SHA256, plain)))
	}
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "created": "2026-01-01T00:00:00Z",
		"config": map[string]any{"Env": []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs},
	})
	if err != nil {
		return err
	}
	m.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))}
	if err := b.putBlob(m.Config, bytes.NewReader(config)); err != nil {
		return err
	}
	doc, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return put("http://"+registryAddr+"/v2/bench/manifests/v1", m.MediaType, int64(len(doc)), bytes.NewReader(doc))
}
