package snapshot

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

func init() {
	helpers["unpack"] = unpackHelper
	helpers["full"] = fullHelper
}

// unpackHelper unpacks the standard input as the layer args[1] of the store args[0] and prints "read" if it read it.
func unpackHelper(args []string) error {
	s, err := Open(args[0])
	if err != nil {
		return err
	}
	r := &counter{r: os.Stdin}
	if _, err := s.Unpack(context.Background(), digest.Digest(args[1]), r); err != nil {
		return err
	}
	if r.n > 0 {
		fmt.Println("read")
	}
	return nil
}

type counter struct {
	r io.Reader
	n int
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += n
	return n, err
}

// bigLayer is a layer of many small files and some large ones.
func bigLayer(t testing.TB) []byte {
	var entries []any
	for i := range 400 {
		entries = append(entries, fmt.Sprintf("d%d/sub/f%d=%d", i%20, i, i))
	}
	for i := range 4 {
		entries = append(entries, fmt.Sprintf("big%d=%s", i, strings.Repeat(fmt.Sprint(i), 1<<20)))
	}
	return layerTar(t, entries...)
}

func TestTenProcessesUnpackOneLayer(t *testing.T) {
	s := open(t)
	b := bigLayer(t)
	d := digest.FromBytes(b)
	var cmds []*exec.Cmd
	var outs [10]bytes.Buffer
	for i := range outs {
		cmd := helper("unpack", s.dir, string(d))
		cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(b), &outs[i], os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		cmds = append(cmds, cmd)
	}
	read := 0
	for i, cmd := range cmds {
		if err := cmd.Wait(); err != nil && !strings.Contains(err.Error(), "broken pipe") {
			t.Errorf("process %d: %v", i, err)
		}
		if outs[i].Len() > 0 {
			read++
		}
	}
	if read != 1 {
		t.Errorf("%d of 10 read the layer, want 1", read)
	}
	if got := clean(t, s); !slices.Equal(got, []string{string(d)}) {
		t.Errorf("layers: %v", got)
	}
}

// TestKilledInTheMiddle kills an unpacking process at several moments; the layer is there wholly or not at all, and
// Sweep removes the rest. It leaves alone what a live process works on.
func TestKilledInTheMiddle(t *testing.T) {
	b := bigLayer(t)
	d := digest.FromBytes(b)
	for _, after := range []int{0, 1000, len(b) / 3, len(b) - 2000, len(b)} {
		s := open(t)
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd := helper("unpack", s.dir, string(d))
		cmd.Stdin = r
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		r.Close()
		if _, err := w.Write(b[:after]); err != nil {
			t.Fatal(err)
		}
		for !begun(t, s) {
			time.Sleep(time.Millisecond)
		}
		if err := s.Sweep(context.Background()); err != nil {
			t.Error(err)
		}
		if len(entries(t, s, ingestDir)) != 1 || len(entries(t, s, locksDir)) != 1 {
			t.Errorf("Sweep took away what a live process works on")
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		w.Close()
		if len(entries(t, s, ingestDir)) != 1 {
			t.Errorf("after SIGKILL: %v in ingest", entries(t, s, ingestDir))
		}
		if err := s.Sweep(context.Background()); err != nil {
			t.Error(err)
		}
		if got := clean(t, s); len(got) != 0 {
			t.Errorf("killed after %d bytes: layers %v", after, got)
		}
		if _, err := s.Unpack(context.Background(), d, bytes.NewReader(b)); err != nil {
			t.Errorf("unpacking again: %v", err)
		}
	}
}

// begun reports whether somebody has made and locked a directory to unpack in: what is in it was made under the lock.
func begun(t *testing.T, s *Store) bool {
	t.Helper()
	for _, n := range entries(t, s, ingestDir) {
		if _, err := os.Stat(s.path(ingestDir, n, "fs")); err == nil {
			return true
		}
	}
	return false
}

func entries(t *testing.T, s *Store, dir string) []string {
	t.Helper()
	names, err := os.ReadDir(s.path(dir))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, n := range names {
		out = append(out, n.Name())
	}
	return out
}

// fullHelper makes a store on a tmpfs of args[1] bytes and args[2] inodes at args[0], and unpacks the standard input.
func fullHelper(args []string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", args[0], "tmpfs", 0, "size="+args[1]+",nr_inodes="+args[2]); err != nil {
		return err
	}
	s, err := Open(args[0] + "/s")
	if err != nil {
		return err
	}
	b, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	var before, after unix.Statfs_t
	if err := unix.Statfs(args[0], &before); err != nil {
		return err
	}
	_, err = s.Unpack(context.Background(), digest.FromBytes(b), bytes.NewReader(b))
	if !errdefs.Is(err, errdefs.NoSpace) || errdefs.FixOf(err) == "" {
		return fmt.Errorf("got %v (%v), want no space, and a fix", err, errdefs.KindOf(err))
	}
	fmt.Println(err)
	for _, d := range []string{ingestDir, trashDir, locksDir, layersDir, chainsDir} {
		if names, err := os.ReadDir(s.path(d)); err != nil || len(names) != 0 {
			return fmt.Errorf("left in %s: %v, %v", d, names, err)
		}
	}
	if err := unix.Statfs(args[0], &after); err != nil {
		return err
	}
	if after.Bfree != before.Bfree || after.Ffree != before.Ffree {
		return fmt.Errorf("%d blocks and %d inodes were free before, %d and %d are now", before.Bfree, before.Ffree, after.Bfree, after.Ffree)
	}
	return nil
}

func TestNoSpace(t *testing.T) {
	open(t) // skips without root
	for _, c := range [][2]string{{"3m", "10000"}, {"100m", "100"}} {
		cmd := helper("full", t.TempDir(), c[0], c[1])
		cmd.Stdin = bytes.NewReader(bigLayer(t))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%v: %v: %s", c, err, out)
		}
		t.Logf("%s", out)
	}
}

func TestSweep(t *testing.T) {
	s, ctx := open(t), context.Background()
	ids := unpack(t, s, layerTar(t, "a=1"), layerTar(t, "b/c=2"))
	if err := s.Prepare(ctx, "box", ids); err != nil {
		t.Fatal(err)
	}
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	// What a crash in the middle of each operation leaves.
	do(os.MkdirAll(s.path(ingestDir, "dead/fs/x/y"), 0o700))
	do(os.MkdirAll(s.path(trashDir, "dead/upper/x"), 0o700))
	do(os.WriteFile(s.path(locksDir, "sha256-dead"), nil, 0o600))
	do(os.MkdirAll(s.path(chainsDir, "dead"), 0o700))
	do(os.WriteFile(s.path(chainsDir, "dead/chain.json"), []byte(`{"layers":["sha256:`+strings.Repeat("0", 64)+`"]}`), 0o600))
	do(s.Sweep(ctx))
	if got := clean(t, s); len(got) != 2 {
		t.Errorf("layers: %v", got)
	}
	if got := entries(t, s, chainsDir); !slices.Contains(got, chainID(ids)) || slices.Contains(got, "dead") {
		t.Errorf("chains: %v", got)
	}
	if _, err := s.Mounts("box", false, false); err != nil {
		t.Errorf("Sweep broke a writable layer: %v", err)
	}
}

// TestAsUmoci gives the same image to umoci, which unpacks each layer over the one below, and to us, and compares what
// a container would see.
func TestAsUmoci(t *testing.T) {
	umoci, err := exec.LookPath("umoci")
	if err != nil {
		t.Skip("needs umoci")
	}
	note := func(name, v string) file {
		return file{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, PAXRecords: map[string]string{"SCHILY.xattr.user.note": v}}, "noted"}
	}
	hard := func(name, target string) file {
		return file{tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644}, ""}
	}
	node := func(typ byte, name string, major, minor int64) file {
		return file{tar.Header{Typeflag: typ, Name: name, Devmajor: major, Devminor: minor, Mode: 0o622}, ""}
	}
	root := "./ 0755"
	layers := [][]byte{
		layerTar(t, root, "etc/ 0750 3:4", "etc/passwd=root", "usr/", "usr/bin/ 0711", "usr/bin/a=a", "usr/bin/b=b", "bin->usr/bin", "var/ 0700 7:8", "var/lib/ 01777",
			"var/lib/db=old", note("noted", "below"), hard("usr/bin/c", "usr/bin/a"), node(tar.TypeFifo, "pipe", 0, 0), node(tar.TypeChar, "null", 1, 3),
			"gone/ 0700", "gone/x=1", "gone/y/", "gone/y/z=2", "emptied/ 0711 5:5", "emptied/x=1", "emptied/sub/", "emptied/sub/y=2", "changed/", "changed/x=1", "file=now a file", "ln->etc"),
		layerTar(t, "var/lib/db=new", "var/lib/more=more", ".wh.gone", "emptied/.wh..wh..opq", "emptied/new=3", "changed=a file now", "file/", "file/in=4", "usr/bin/.wh.b", "usr/bin/d=d",
			note("noted", "above"), ".wh.pipe", "ln=no link any more"),
		layerTar(t, "gone/", "gone/again=5", ".wh.changed", "changed2->changed", "usr/bin/b=back", hard("usr/bin/e", "usr/bin/b"), "a/b/c/d=deep", "var/log/x=log"),
		layerTar(t, "etc/ 0700", "a/b/c/e=deeper", "a/.wh.zzz", "emptied/sub/ 0770", "emptied/sub/z=6", ".wh.noted", "noted/ 0711", "noted/x=1"),
	}
	layout := t.TempDir()
	writeLayout(t, layout, layers)
	bundle := filepath.Join(t.TempDir(), "bundle")
	if out, err := exec.Command(umoci, "unpack", "--image", layout+":test", bundle).CombinedOutput(); err != nil {
		t.Fatalf("umoci: %v: %s", err, out)
	}
	want, err := listing(bundle + "/rootfs")
	if err != nil {
		t.Fatal(err)
	}
	s := open(t)
	if err := s.Prepare(context.Background(), "box", unpack(t, s, layers...)); err != nil {
		t.Fatal(err)
	}
	for _, readonly := range []bool{false, true} {
		if got := merged(t, s, "box", readonly, ""); got != want {
			t.Errorf("read-only %v: we show:\n%s\numoci made:\n%s", readonly, got, want)
		}
	}
}

// writeLayout writes an OCI image layout with one image, test.
func writeLayout(t *testing.T, dir string, layers [][]byte) {
	t.Helper()
	blobs := filepath.Join(dir, "blobs/sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		t.Fatal(err)
	}
	put := func(mediaType string, b []byte) ocispec.Descriptor {
		sum := sha256.Sum256(b)
		if err := os.WriteFile(fmt.Sprintf("%s/%x", blobs, sum), b, 0o644); err != nil {
			t.Fatal(err)
		}
		return ocispec.Descriptor{MediaType: mediaType, Digest: digest.NewDigestFromBytes(digest.SHA256, sum[:]), Size: int64(len(b))}
	}
	marshal := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	config := ocispec.Image{Platform: ocispec.Platform{Architecture: "amd64", OS: "linux"}, RootFS: ocispec.RootFS{Type: "layers"}}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, l := range layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(l))
		m.Layers = append(m.Layers, put(ocispec.MediaTypeImageLayer, l))
	}
	m.Config = put(ocispec.MediaTypeImageConfig, marshal(config))
	d := put(ocispec.MediaTypeImageManifest, marshal(m))
	d.Annotations = map[string]string{ocispec.AnnotationRefName: "test"}
	for name, b := range map[string][]byte{
		"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`),
		"index.json": marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{d}}),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
