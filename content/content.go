// Package content keeps blobs by digest: ingest, verify, commit, open, walk, delete.
//
// The directory is an OCI image layout (image-spec, "image-layout.md"): oci-layout, blobs/<algorithm>/<hex>, and next
// to it ingest/ for what is still arriving. A blob is written to an unnamed file there, its size and digest are checked
// while it is written, it is synced, linked into its place, and its directory is synced: a name under blobs/ always
// holds those bytes. Nothing here knows what a blob means; index.json belongs to package image.
//
// Lifecycle of an ingest: Begin -> Write... -> [Verify] -> Commit | Close. Close without Commit keeps nothing, and a
// process that dies leaves nothing either: the file has no name until Commit (O_TMPFILE). On a file system without
// unnamed files the ingest has a name under ingest/ and a lock on it; Sweep removes those that nobody holds.
//
// An ingest that Resume begins is written in ranges, and is kept when it is broken off: see resume.go.
//
// While it is being written an ingest can be read by others in the same process (Follow): that is how a layer is
// unpacked while it arrives, with the page cache as the only buffer.
//
// Durability: Commit syncs the file's data, then its name. A caller that syncs the whole file system anyway (package
// snapshot does, once for each layer) does so before Commit, which then finds its data already on disk.
package content

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/onggi/onggi/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// Store is a directory of blobs. Several processes may use one directory at once.
type Store struct{ dir string }

// algorithms are those that image-spec registers and everybody has; each is a directory under blobs/.
var algorithms = [...]digest.Algorithm{digest.SHA256, digest.SHA512}

// layoutFile is the whole of oci-layout (image-spec, "image-layout.md").
const layoutFile = `{"imageLayoutVersion":"1.0.0"}`

// Open opens or makes the store in dir. A directory that says it is another version of the layout is refused
// (Unsupported).
func Open(dir string) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open the blob store: %w", err)
	}
	s := &Store{dir: dir}
	b, err := os.ReadFile(filepath.Join(dir, ocispec.ImageLayoutFile))
	switch {
	case err == nil && bytes.Contains(b, []byte(`"1.0.0"`)):
		return s, nil
	case err == nil:
		return nil, &errdefs.Error{
			Op: "open the blob store", What: dir, Kind: errdefs.Unsupported,
			Why: "its oci-layout is not of version 1.0.0", Fix: "use the version of onggi that wrote it, or another --root",
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, &errdefs.Error{Op: "open the blob store", What: dir, Kind: errdefs.KindOf(err), Err: err}
	}
	if err := s.init(); err != nil {
		return nil, &errdefs.Error{Op: "make the blob store", What: dir, Kind: errdefs.KindOf(err), Err: err}
	}
	return s, nil
}

func (s *Store) makeDirs() error {
	dirs := []string{"ingest"}
	for _, a := range algorithms {
		dirs = append(dirs, filepath.Join("blobs", a.String()))
	}
	for _, d := range dirs {
		if err := os.MkdirAll(filepath.Join(s.dir, d), 0o700); err != nil {
			return err
		}
	}
	return nil
}

// init makes the directories, then oci-layout.
func (s *Store) init() error {
	if err := s.makeDirs(); err != nil {
		return err
	}
	f, err := os.CreateTemp(s.dir, ".oci-layout-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails after the rename, as it should
	defer f.Close()
	if _, err := f.WriteString(layoutFile); err != nil {
		return err
	}
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(s.dir, ocispec.ImageLayoutFile)); err != nil {
		return err
	}
	for _, d := range []string{"blobs", "."} {
		if err := syncDir(filepath.Join(s.dir, d)); err != nil {
			return err
		}
	}
	return nil
}

// Dir returns the directory of the layout.
func (s *Store) Dir() string { return s.dir }

// Check says whether d is the digest of a blob that a store can hold: sha256 or sha512, and the right number of
// lower-case digits. Everything that becomes a path passes here. The error is of kind InvalidArgument.
func Check(d digest.Digest) error {
	alg, hex, _ := strings.Cut(string(d), ":")
	want := 0
	switch digest.Algorithm(alg) {
	case digest.SHA256:
		want = 2 * sha256.Size
	case digest.SHA512:
		want = 2 * sha512.Size
	}
	ok := want != 0 && len(hex) == want
	for i := 0; ok && i < len(hex); i++ {
		ok = hex[i] >= '0' && hex[i] <= '9' || hex[i] >= 'a' && hex[i] <= 'f'
	}
	if ok {
		return nil
	}
	shown := string(d)
	if len(shown) > 160 {
		shown = shown[:160] + "..."
	}
	return &errdefs.Error{
		What: fmt.Sprintf("digest %q", shown), Kind: errdefs.InvalidArgument,
		Why: "not sha256 or sha512 with lower-case hexadecimal digits",
	}
}

// NewHash returns the hash of d's algorithm. Precondition: Check(d) == nil, or d is empty (then it is sha256).
func NewHash(d digest.Digest) hash.Hash {
	if strings.HasPrefix(string(d), string(digest.SHA512)+":") {
		return sha512.New()
	}
	return sha256.New()
}

// Path returns where the blob lies or would lie. The digest's form is checked: it never leaves the store.
func (s *Store) Path(d digest.Digest) (string, error) {
	if err := Check(d); err != nil {
		return "", err
	}
	return filepath.Join(s.dir, "blobs", d.Algorithm().String(), d.Encoded()), nil
}

// Stat returns the blob's size, or an error of kind NotFound.
func (s *Store) Stat(d digest.Digest) (int64, error) {
	p, err := s.Path(d)
	if err != nil {
		return 0, err
	}
	fi, err := os.Lstat(p)
	if err != nil {
		return 0, blobError("find", d, err)
	}
	if !fi.Mode().IsRegular() {
		return 0, notAFile(d)
	}
	return fi.Size(), nil
}

// Open returns a reader that verifies size and digest: the last Read returns an error of kind Corrupt rather than
// io.EOF when they differ. desc.Size -1 means unknown.
func (s *Store) Open(desc ocispec.Descriptor) (io.ReadCloser, error) {
	f, size, err := s.open(desc.Digest)
	if err != nil {
		return nil, err
	}
	if desc.Size >= 0 && size != desc.Size {
		_ = f.Close()
		return nil, corrupt(desc.Digest, fmt.Sprintf("it has %d bytes instead of %d", size, desc.Size))
	}
	return &verified{f: f, want: desc.Digest, left: size, h: NewHash(desc.Digest)}, nil
}

// Blob is a blob that is read at any offset, and not verified: whoever takes the bytes checks them (a registry that is
// sent a layer does).
type Blob struct {
	*os.File
	Size int64
}

// OpenAt opens a blob for reading at any offset. The size is compared with desc's unless that is -1.
func (s *Store) OpenAt(desc ocispec.Descriptor) (*Blob, error) {
	f, size, err := s.open(desc.Digest)
	if err != nil {
		return nil, err
	}
	if desc.Size >= 0 && size != desc.Size {
		_ = f.Close()
		return nil, corrupt(desc.Digest, fmt.Sprintf("it has %d bytes instead of %d", size, desc.Size))
	}
	return &Blob{f, size}, nil
}

func (s *Store) open(d digest.Digest) (*os.File, int64, error) {
	p, err := s.Path(d)
	if err != nil {
		return nil, 0, err
	}
	// A blob is never a link, and never a FIFO on which open would wait.
	f, err := os.OpenFile(p, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, 0, blobError("open", d, err)
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = notAFile(d)
	}
	if err != nil {
		_ = f.Close()
		return nil, 0, blobError("open", d, err)
	}
	return f, fi.Size(), nil
}

// verified reads a blob and checks it.
type verified struct {
	f    *os.File
	want digest.Digest
	left int64
	h    hash.Hash
}

func (v *verified) Read(p []byte) (int, error) {
	n, err := v.f.Read(p)
	v.h.Write(p[:n])
	if v.left -= int64(n); v.left < 0 {
		return n, corrupt(v.want, "it grew while it was read")
	}
	if err == io.EOF {
		if v.left > 0 {
			return n, corrupt(v.want, fmt.Sprintf("%d bytes are missing at its end", v.left))
		}
		if got := sum(v.want, v.h); got != v.want {
			return n, corrupt(v.want, "its content is that of "+string(got))
		}
	}
	return n, err
}

func (v *verified) Close() error { return v.f.Close() }

// ReadAll returns a verified small blob; larger than limit bytes is an error of kind Exhausted before it is read.
func (s *Store) ReadAll(desc ocispec.Descriptor, limit int64) ([]byte, error) {
	f, size, err := s.open(desc.Digest)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size > limit {
		return nil, &errdefs.Error{
			Op: "read the blob", What: string(desc.Digest), Kind: errdefs.Exhausted,
			Why: fmt.Sprintf("it has %d bytes, more than the %d that are allowed here", size, limit),
		}
	}
	if desc.Size > 0 && size != desc.Size {
		return nil, corrupt(desc.Digest, fmt.Sprintf("it has %d bytes instead of %d", size, desc.Size))
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, blobError("read", desc.Digest, err)
	}
	h := NewHash(desc.Digest)
	h.Write(b)
	if got := sum(desc.Digest, h); got != desc.Digest {
		return nil, corrupt(desc.Digest, "its content is that of "+string(got))
	}
	return b, nil
}

// Put stores a small blob that is already in memory, and returns its descriptor.
func (s *Store) Put(ctx context.Context, mediaType string, b []byte) (ocispec.Descriptor, error) {
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	if n, err := s.Stat(desc.Digest); err == nil && n == desc.Size {
		if _, err := s.ReadAll(desc, desc.Size); err == nil {
			return desc, nil
		}
	}
	w, err := s.Begin(ctx, desc)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer w.Close()
	if _, err := w.Write(b); err != nil {
		return ocispec.Descriptor{}, err
	}
	return w.Commit(ctx)
}

// Delete removes a blob. Removing what is not there is not an error.
func (s *Store) Delete(d digest.Digest) error {
	p, err := s.Path(d)
	if err != nil {
		return err
	}
	if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return blobError("delete", d, err)
	}
	return nil
}

// Walk calls fn for each blob in no particular order. What is not a blob (another name, not a file) is passed over.
func (s *Store) Walk(fn func(d digest.Digest, size int64) error) error {
	for _, a := range algorithms {
		entries, err := os.ReadDir(filepath.Join(s.dir, "blobs", a.String()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("list the blobs: %w", err)
		}
		for _, e := range entries {
			d := digest.NewDigestFromEncoded(a, e.Name())
			if Check(d) != nil || !e.Type().IsRegular() {
				continue
			}
			fi, err := e.Info()
			if errors.Is(err, fs.ErrNotExist) {
				continue // deleted since
			}
			if err != nil {
				return fmt.Errorf("list the blobs: %w", err)
			}
			if err := fn(d, fi.Size()); err != nil {
				return err
			}
		}
	}
	return nil
}

func sum(d digest.Digest, h hash.Hash) digest.Digest {
	alg := digest.SHA256
	if d != "" {
		alg = d.Algorithm()
	}
	return digest.NewDigest(alg, h)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func blobError(op string, d digest.Digest, err error) error {
	e := &errdefs.Error{Op: op + " the blob", What: string(d), Kind: errdefs.KindOf(err), Err: err}
	if e.Kind == errdefs.NoSpace {
		e.Fix = "free some space (onggi images, onggi rmi), or choose another place with --root"
	}
	return e
}

func notAFile(d digest.Digest) error {
	return &errdefs.Error{
		Op: "open the blob", What: string(d), Kind: errdefs.Corrupt, Why: "it is not a regular file",
		Fix: "remove it and pull the image again",
	}
}

func corrupt(d digest.Digest, why string) error {
	return &errdefs.Error{
		What: "blob " + string(d), Kind: errdefs.Corrupt, Why: why,
		Fix: "remove the image and pull it again",
	}
}
