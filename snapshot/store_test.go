package snapshot

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// TestMain lets tests start this binary again for what needs a process of its own; see helper_test.go.
func TestMain(m *testing.M) {
	if h := helpers[os.Getenv("ONGGI_TEST_HELPER")]; h != nil {
		if err := h(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// helper starts this binary as the helper name, in a mount namespace of its own.
func helper(name string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), "ONGGI_TEST_HELPER="+name)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	return cmd
}

func open(t testing.TB) *Store {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: layers have owners, device nodes and trusted attributes")
	}
	s, err := Open(filepath.Join(t.TempDir(), "snapshots"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

type file struct {
	tar.Header
	body string
}

// layerTar makes a layer of "path=content" files, "path/" directories and "path->target" links, or of file values.
func layerTar(t testing.TB, entries ...any) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, x := range entries {
		f, ok := x.(file)
		if !ok {
			f = parse(x.(string))
		}
		f.Size = int64(len(f.body))
		if f.ModTime.IsZero() {
			f.ModTime = time.Unix(1e9, 0)
		}
		if err := w.WriteHeader(&f.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// parse reads "path=content", "path->target", "path/ 0700 uid:gid", "path/" and "path".
func parse(s string) file {
	if p, target, ok := strings.Cut(s, "->"); ok {
		return file{tar.Header{Typeflag: tar.TypeSymlink, Name: p, Linkname: target, Mode: 0o777}, ""}
	}
	if p, body, ok := strings.Cut(s, "="); ok {
		return file{tar.Header{Typeflag: tar.TypeReg, Name: p, Mode: 0o644}, body}
	}
	f := file{tar.Header{Typeflag: tar.TypeReg, Name: s, Mode: 0o644}, ""}
	var mode int64
	if n, _ := fmt.Sscanf(s, "%s %o %d:%d", &f.Name, &mode, &f.Uid, &f.Gid); n < 2 {
		mode = 0o755
	}
	if strings.HasSuffix(f.Name, "/") {
		f.Typeflag, f.Mode = tar.TypeDir, mode
	}
	return f
}

func gz(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// unpack puts layers into the store and returns their diffIDs.
func unpack(t testing.TB, s *Store, tars ...[]byte) []digest.Digest {
	t.Helper()
	var ids []digest.Digest
	for _, b := range tars {
		d := digest.FromBytes(b)
		if _, err := s.Unpack(context.Background(), d, bytes.NewReader(gz(t, b))); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, d)
	}
	return ids
}

// clean fails if anything is left that no record owns, and returns what layers there are.
func clean(t testing.TB, s *Store) []string {
	t.Helper()
	for _, d := range []string{ingestDir, trashDir, locksDir} {
		names, err := os.ReadDir(s.path(d))
		if err != nil {
			t.Fatal(err)
		}
		if len(names) != 0 {
			t.Errorf("left in %s: %v", d, names)
		}
	}
	layers, err := s.Layers()
	if err != nil {
		t.Error(err)
	}
	var out []string
	for _, l := range layers {
		out = append(out, string(l.DiffID))
	}
	return out
}

func TestUnpack(t *testing.T) {
	s, ctx := open(t), context.Background()
	b := layerTar(t, "./ 0751 1:2", "usr/bin/x=program", "etc/", "etc/passwd=root")
	d := digest.FromBytes(b)
	if _, err := s.Layer(d); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("before: got %v, want not found", err)
	}
	l, err := s.Unpack(ctx, d, bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(l.Implied, " "), "usr usr/bin"; l.DiffID != d || l.Size != 11 || l.Entries != 6 || got != want {
		t.Errorf("got %+v, want 6 entries, 11 bytes and implied %s", l, want)
	}
	// There already: not read.
	again, err := s.Unpack(ctx, d, iotest.ErrReader(errors.New("read")))
	if err != nil || again.Size != l.Size || !again.Created.Equal(l.Created) {
		t.Errorf("again: got %+v, %v", again, err)
	}
	body, err := os.ReadFile(s.path(layerPath(d), "fs/usr/bin/x"))
	if err != nil || string(body) != "program" {
		t.Errorf("content: %q, %v", body, err)
	}
	if got := clean(t, s); !slices.Equal(got, []string{string(d)}) {
		t.Errorf("layers: %v", got)
	}
	if err := s.RemoveLayer(ctx, d); err != nil {
		t.Error(err)
	}
	if err := s.RemoveLayer(ctx, d); err != nil {
		t.Errorf("removed twice: %v", err)
	}
	if got := clean(t, s); len(got) != 0 {
		t.Errorf("layers after removal: %v", got)
	}
	if names, _ := os.ReadDir(s.path(chainsDir)); len(names) != 0 {
		t.Errorf("chains after removal: %v", names)
	}
}

// TestDamagedRecords: what a power cut or a bad disk may leave does not stand in the way.
func TestDamagedRecords(t *testing.T) {
	s, ctx := open(t), context.Background()
	b := layerTar(t, "a=1")
	ids := unpack(t, s, b)
	damage := func(path string) {
		t.Helper()
		if err := os.Truncate(s.path(path), 0); err != nil {
			t.Fatal(err)
		}
	}
	damage(chainsDir + "/" + chainID(ids) + "/" + chainRecord)
	if err := s.Prepare(ctx, "box", ids); err != nil {
		t.Errorf("a damaged chain: %v", err)
	}
	damage(layerPath(ids[0]) + "/" + layerRecord)
	if _, err := s.Layer(ids[0]); !errdefs.Is(err, errdefs.Corrupt) {
		t.Errorf("a damaged layer: got %v", err)
	}
	if _, err := s.Unpack(ctx, ids[0], bytes.NewReader(b)); err != nil {
		t.Errorf("unpacking over a damaged layer: %v", err)
	}
	if got := clean(t, s); len(got) != 1 {
		t.Errorf("layers: %v", got)
	}
}

func TestUnpackUnknown(t *testing.T) {
	s, ctx := open(t), context.Background()
	b := layerTar(t, "a=b")
	for range 2 {
		l, err := s.Unpack(ctx, "", bytes.NewReader(gz(t, b)))
		if err != nil || l.DiffID != digest.FromBytes(b) {
			t.Errorf("got %+v, %v; want %s", l, err, digest.FromBytes(b))
		}
	}
	if _, err := s.Unpack(ctx, "", bytes.NewReader(layerTar(t, ".wh.a"))); !errdefs.Is(err, errdefs.InvalidArgument) {
		t.Errorf("a root file system with a whiteout: got %v", err)
	}
	if got := clean(t, s); len(got) != 1 {
		t.Errorf("layers: %v", got)
	}
}

func TestUnpackSHA512(t *testing.T) {
	s := open(t)
	b := layerTar(t, "a=b")
	d := digest.SHA512.FromBytes(b)
	if _, err := s.Unpack(context.Background(), d, bytes.NewReader(b)); err != nil {
		t.Error(err)
	}
	if got := clean(t, s); !slices.Equal(got, []string{string(d)}) {
		t.Errorf("layers: %v", got)
	}
}

// TestNothingStays is unpacking that fails: why, and that nothing is left.
func TestNothingStays(t *testing.T) {
	good := layerTar(t, "a=b", "dir/file="+strings.Repeat("x", 3<<20), "z=y")
	evil := layerTar(t, "a=b", "l->/etc", "../outside=x")
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	for _, c := range []struct {
		name string
		ctx  context.Context
		d    digest.Digest
		r    io.Reader
		kind errdefs.Kind
	}{
		{"wrong digest", context.Background(), digest.FromString("other"), bytes.NewReader(good), errdefs.Corrupt},
		{"wrong digest, gzip", context.Background(), digest.FromString("other"), bytes.NewReader(gz(t, good)), errdefs.Corrupt},
		{"cut off", context.Background(), digest.FromBytes(good), bytes.NewReader(good[:2<<20]), errdefs.Corrupt},
		{"gzip cut off", context.Background(), digest.FromBytes(good), bytes.NewReader(gz(t, good)[:300]), errdefs.Corrupt},
		{"not compressed as we know", context.Background(), digest.FromBytes(good), strings.NewReader("BZh9 and so on"), errdefs.Unsupported},
		{"breaks out", context.Background(), digest.FromBytes(evil), bytes.NewReader(evil), errdefs.InvalidArgument},
		{"connection lost", context.Background(), digest.FromBytes(good), io.MultiReader(bytes.NewReader(good[:1<<20]), iotest.ErrReader(unix.ECONNRESET)), errdefs.Unavailable},
		{"canceled", canceled, digest.FromBytes(good), bytes.NewReader(good), errdefs.Canceled},
		{"no digest", context.Background(), "sha256:abc", bytes.NewReader(good), errdefs.InvalidArgument},
		{"a path as digest", context.Background(), "sha256:../../../../etc", bytes.NewReader(good), errdefs.InvalidArgument},
		{"unknown algorithm", context.Background(), "md5:d41d8cd98f00b204e9800998ecf8427e", bytes.NewReader(good), errdefs.InvalidArgument},
	} {
		s := open(t)
		_, err := s.Unpack(c.ctx, c.d, c.r)
		if !errdefs.Is(err, c.kind) {
			t.Errorf("%s: got %v (%v), want %v", c.name, err, errdefs.KindOf(err), c.kind)
		}
		if got := clean(t, s); len(got) != 0 {
			t.Errorf("%s: layers: %v", c.name, got)
		}
		if left, _ := filepath.Glob(s.dir + "/*/*/*"); len(left) != 0 {
			t.Errorf("%s: left: %v", c.name, left)
		}
	}
}

func TestBatch(t *testing.T) {
	s, ctx := open(t), context.Background()
	tars := [][]byte{layerTar(t, "a=1"), layerTar(t, "b=2"), layerTar(t, "c=3")}
	var ids []digest.Digest
	for _, b := range tars {
		ids = append(ids, digest.FromBytes(b))
	}
	unpack(t, s, tars[0])
	image := []digest.Digest{ids[0], ids[2], ids[1], ids[2]} // one there, one twice
	b, err := s.Batch(ctx, image)
	if err != nil {
		t.Fatal(err)
	}
	if want := []digest.Digest{ids[2], ids[1]}; !slices.Equal(b.Missing(), want) {
		t.Errorf("missing: got %v, want %v", b.Missing(), want)
	}
	var wg sync.WaitGroup
	for i, d := range ids {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if _, err := b.Unpack(ctx, d, bytes.NewReader(tars[i])); err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	if _, err := s.Layer(ids[1]); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("seen before Commit: %v", err)
	}
	// Another waits for it, until it gives up.
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	if _, err := s.Batch(short, ids); !errdefs.Is(err, errdefs.DeadlineExceeded) {
		t.Errorf("a second batch: got %v, want that its time ran out", err)
	}
	cancel()
	waited := make(chan error)
	go func() {
		b2, err := s.Batch(ctx, ids)
		if err == nil && len(b2.Missing()) != 0 {
			err = fmt.Errorf("still missing: %v", b2.Missing())
		}
		waited <- err
	}()
	if err := b.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; err != nil {
		t.Errorf("the one that waited: %v", err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if got := clean(t, s); len(got) != 3 {
		t.Errorf("layers: %v", got)
	}
	if _, err := s.readChain(chainID(image)); err != nil {
		t.Errorf("Commit did not keep the chain: %v", err)
	}
	// Given up: nothing is there.
	tars = append(tars, layerTar(t, "d=4"))
	d := digest.FromBytes(tars[3])
	b, err = s.Batch(ctx, []digest.Digest{d})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Unpack(ctx, d, bytes.NewReader(tars[3])); err != nil {
		t.Error(err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if got := clean(t, s); len(got) != 3 {
		t.Errorf("layers after giving up: %v", got)
	}
	// A failed try, and a second one in the same batch.
	b, err = s.Batch(ctx, []digest.Digest{d})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, err := b.Unpack(ctx, d, bytes.NewReader(tars[3][:600])); !errdefs.Is(err, errdefs.Corrupt) {
		t.Errorf("cut off: got %v", err)
	}
	if _, err := b.Unpack(ctx, d, bytes.NewReader(tars[3])); err != nil {
		t.Error(err)
	}
	if err := b.Commit(ctx); err != nil {
		t.Error(err)
	}
	if got := clean(t, s); len(got) != 4 {
		t.Errorf("layers after the second try: %v", got)
	}
}

func TestOpenRefusesRelative(t *testing.T) {
	if _, err := Open("snapshots"); !errdefs.Is(err, errdefs.InvalidArgument) {
		t.Errorf("got %v", err)
	}
}

func TestTakeOut(t *testing.T) {
	s, ctx := open(t), context.Background()
	ids := unpack(t, s, layerTar(t, "a=1"), layerTar(t, "b/c=2"), layerTar(t, "d=3"))
	if err := s.Prepare(ctx, "box", ids[:1]); err != nil {
		t.Fatal(err)
	}
	if err := s.Prepare(ctx, "gone", ids); err != nil {
		t.Fatal(err)
	}
	empty, err := s.TakeOut(append(ids[1:], digest.FromString("never there")))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Layer(ids[1]); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("before empty: got %v", err)
	}
	if err := empty(); err != nil {
		t.Error(err)
	}
	if got := clean(t, s); !slices.Equal(got, []string{string(ids[0])}) {
		t.Errorf("layers: %v", got)
	}
	if _, err := s.Mounts("box", false, false); err != nil {
		t.Errorf("a stack on the layer that stays: %v", err)
	}
	if got, want := entries(t, s, chainsDir), []string{chainID(ids[:1])}; !slices.Equal(got, want) {
		t.Errorf("chains: got %v, want %v", got, want)
	}
}
