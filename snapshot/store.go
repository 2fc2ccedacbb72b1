package snapshot

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/onggi/onggi/archive"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/pathrs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Store is a directory of layers and writable layers; several processes may use it at once.
type Store struct {
	dir    string
	guard  func() error // asked while a layer is written; may be nil
	spread sync.Once
}

// SetGuard sets a function that is called now and then while layers are written; its error ends that. It is called
// before the store is used.
func (s *Store) SetGuard(low func() error) { s.guard = low }

const (
	layersDir     = "layers"
	chainsDir     = "chains"
	containersDir = "containers"
	emptyDir      = "empty"
	ingestDir     = "ingest"
	trashDir      = "trash"
	locksDir      = "locks"
)

// Open opens or makes the store in dir, an absolute path. Everything in it is for root only: a layer may hold set-id
// programs (CVE-2021-41091, CVE-2021-41103).
func Open(dir string) (*Store, error) {
	if !filepath.IsAbs(dir) {
		return nil, &errdefs.Error{Op: "open the snapshots in", What: dir, Kind: errdefs.InvalidArgument, Why: "the path is not absolute"}
	}
	s := &Store{dir: filepath.Clean(dir)}
	if _, err := os.Stat(s.path(emptyDir)); err == nil {
		return s, nil // made last, so all are there
	}
	for _, d := range []string{layersDir, chainsDir, containersDir, ingestDir, trashDir, locksDir} {
		if err := os.MkdirAll(s.path(d), 0o700); err != nil {
			return nil, s.fail("open the snapshots in", dir, err)
		}
	}
	if err := os.Mkdir(s.path(emptyDir), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, s.fail("open the snapshots in", dir, err)
	}
	return s, os.Chmod(s.path(emptyDir), 0o755) // whatever the umask: it is the root directory of an empty image
}

func (s *Store) path(parts ...string) string {
	return s.dir + "/" + strings.Join(parts, "/")
}

// fail tells what was being done and how to get on.
func (s *Store) fail(op, what string, err error) error {
	if e := (*errdefs.Error)(nil); errors.As(err, &e) && e.Op != "" {
		return err
	}
	e := &errdefs.Error{Op: op, What: what, Kind: errdefs.KindOf(err), Err: err}
	if e.Kind == errdefs.NoSpace {
		e.Fix = "free some space below " + s.dir + ", or choose another place with --root"
	}
	return e
}

// layerPath is the place of a layer, relative to the store.
func layerPath(d digest.Digest) string {
	return layersDir + "/" + string(d.Algorithm()) + "/" + d.Encoded()
}

// check refuses what is no digest before it becomes a path.
func check(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return &errdefs.Error{Op: "find the layer", What: strconv.Quote(string(d)), Kind: errdefs.InvalidArgument, Why: "it is not a digest", Err: err}
	}
	return nil
}

// Layer is the record of an unpacked layer.
type Layer struct {
	DiffID  digest.Digest `json:"diffID"`
	Size    int64         `json:"size"`    // bytes of file content
	Entries int64         `json:"entries"` // archive entries
	// Implied are the directories that the archive has no entry for, "." among them; see archive.Stats.
	Implied []string `json:"implied,omitempty"`
	// Opaque says that nothing of the layers below is seen through this one.
	Opaque  bool      `json:"opaque,omitempty"`
	Created time.Time `json:"created"`
	// Blob is what the layer was unpacked from, if that can be made again out of the layer (WriteTo, archive.Recompress).
	Blob *Blob `json:"blob,omitempty"`
}

// Blob is the form in which a layer came.
type Blob struct {
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"`
	Form   archive.Form  `json:"form"`
	Head   []byte        `json:"head,omitempty"` // of the gzip stream
}

const (
	layerRecord = "layer.json"
	layerRecipe = "recipe" // what archive.Rebuild wants
)

// Layer returns the record, or an error of kind NotFound.
func (s *Store) Layer(diffID digest.Digest) (*Layer, error) {
	if err := check(diffID); err != nil {
		return nil, err
	}
	l := new(Layer)
	if err := readRecord(s.path(layerPath(diffID), layerRecord), l); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, &errdefs.Error{
				Op: "find the layer", What: string(diffID), Kind: errdefs.NotFound, Why: "it is not unpacked here",
				Fix: "pull the image again",
			}
		}
		return nil, s.fail("read the record of the layer", string(diffID), err)
	}
	if l.DiffID != diffID {
		return nil, &errdefs.Error{
			Op: "read the record of the layer", What: string(diffID), Kind: errdefs.Corrupt,
			Why: "it is the record of " + strconv.Quote(string(l.DiffID)),
		}
	}
	return l, nil
}

// Layers lists all layers.
func (s *Store) Layers() ([]Layer, error) {
	algorithms, err := os.ReadDir(s.path(layersDir))
	if err != nil {
		return nil, s.fail("list the layers in", s.dir, err)
	}
	var out []Layer
	for _, a := range algorithms {
		names, err := os.ReadDir(s.path(layersDir, a.Name()))
		if err != nil {
			return nil, s.fail("list the layers in", s.dir, err)
		}
		for _, n := range names {
			l, err := s.Layer(digest.Digest(a.Name() + ":" + n.Name()))
			if errdefs.Is(err, errdefs.NotFound) {
				continue // removed meanwhile
			}
			if err != nil {
				return nil, err
			}
			out = append(out, *l)
		}
	}
	return out, nil
}

// maxRecord bounds the records that we read; a layer of ten million implied directories would not fit, and is refused
// when it is written.
const maxRecord = 64 << 20

func readRecord(path string, v any) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if fi.Size() > maxRecord {
		return &errdefs.Error{Op: "read", What: path, Kind: errdefs.Corrupt, Why: "it is longer than any record"}
	}
	b := make([]byte, fi.Size())
	for n := 0; n < len(b); {
		m, err := f.Read(b[n:])
		if err != nil {
			return err
		}
		n += m
	}
	if err := json.Unmarshal(b, v); err != nil {
		return &errdefs.Error{Op: "read", What: path, Kind: errdefs.Corrupt, Why: "it is not a record", Err: err}
	}
	return nil
}

// writeRecord writes a file that is not there yet, in a directory that nobody else looks at.
func writeRecord(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(b) > maxRecord {
		return &errdefs.Error{Op: "write", What: path, Kind: errdefs.Exhausted, Why: "the record is longer than 64 MiB"}
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
}

// lock is an exclusive flock on a file in locks/, which exists only while somebody holds or wants it.
type lock struct{ f *os.File }

// lock takes the lock called name, waiting until ctx ends.
func (s *Store) lock(ctx context.Context, name string) (*lock, error) {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		l, err := s.tryLock(name)
		if l != nil || err != nil {
			return l, err
		}
		// A blocking flock(2) could not be given up when ctx ends.
		select {
		case <-ctx.Done():
			return nil, &errdefs.Error{Op: "wait for another process to unpack", What: name, Kind: errdefs.KindOf(ctx.Err()), Err: ctx.Err()}
		case <-time.After(wait):
		}
	}
}

// tryLock returns nil when somebody else holds the lock.
func (s *Store) tryLock(name string) (*lock, error) {
	path := s.path(locksDir, name)
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, s.fail("lock", name, err)
		}
		held, err := flock(f)
		if !held || err != nil {
			f.Close()
			return nil, err
		}
		if same(f, path) {
			return &lock{f}, nil
		}
		f.Close() // its holder has removed it between open and flock: that file guards nothing now
	}
}

// unlock removes the file while it is locked, so that nobody can hold a lock on a file that is still to be removed.
func (l *lock) unlock() error {
	return errors.Join(os.Remove(l.f.Name()), l.f.Close())
}

func flock(f *os.File) (held bool, err error) {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch err {
		case nil:
			return true, nil
		case unix.EWOULDBLOCK:
			return false, nil
		case unix.EINTR:
		default:
			return false, &os.PathError{Op: "flock", Path: f.Name(), Err: err}
		}
	}
}

// same reports whether f is what path names now.
func same(f *os.File, path string) bool {
	a, err1 := f.Stat()
	b, err2 := os.Lstat(path)
	return err1 == nil && err2 == nil && os.SameFile(a, b)
}

// topDirectory is FS_TOPDIR_FL of linux/fs.h: "the top of directory hierarchies" for ext4's allocator (chattr(1), T).
const topDirectory = 0x20000

// spreadOut lets the file system put each directory of ingest/, and with it all files of a layer, into a part of the disk
// of its own. Otherwise ext4 takes inodes near ingest/, where layers and other files have been deleted, and looks at each
// inode that was deleted in the last minutes before it gives one out: a layer of ten thousand files takes seconds longer
// (doc/decisions/25). It is advice: a file system without it is as good without.
func (s *Store) spreadOut() {
	d, err := os.Open(s.path(ingestDir))
	if err != nil {
		return
	}
	defer d.Close()
	flags, err := unix.IoctlGetInt(int(d.Fd()), unix.FS_IOC_GETFLAGS)
	if err == nil && flags&topDirectory == 0 {
		_ = unix.IoctlSetPointerInt(int(d.Fd()), unix.FS_IOC_SETFLAGS, int(uint32(flags)|topDirectory))
	}
}

// ingest makes a directory in ingest/ and holds a lock on it, so that Sweep leaves it alone.
func (s *Store) ingest() (*os.File, error) {
	s.spread.Do(s.spreadOut)
	for {
		path, err := os.MkdirTemp(s.path(ingestDir), "")
		if err != nil {
			return nil, err
		}
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // Sweep was faster
		}
		if err != nil {
			return nil, err
		}
		held, err := flock(f)
		if held && same(f, path) {
			return f, nil
		}
		f.Close()
		if err != nil {
			return nil, err
		}
	}
}

// drop removes what ingest made.
func (s *Store) drop(f *os.File) error {
	err := s.removeAll(ingestDir, filepath.Base(f.Name()))
	return errors.Join(err, f.Close())
}

func (s *Store) removeAll(dir, name string) error {
	d, err := pathrs.OpenRoot(s.path(dir))
	if err != nil {
		return err
	}
	defer d.Close()
	return pathrs.RemoveAll(d, name)
}

// throwAway moves path (relative to the store) into trash/ and removes it there: whoever is interrupted leaves only
// what Sweep removes. Not there is not an error.
func (s *Store) throwAway(path string) error {
	name, err := s.toTrash(path)
	if name == "" {
		return err
	}
	return s.removeAll(trashDir, name)
}

// toTrash moves path into trash/ and returns its name there, "" when there was nothing.
func (s *Store) toTrash(path string) (string, error) {
	name := rand.Text() // 128 random bits: nobody else uses it
	if err := unix.Rename(s.path(path), s.path(trashDir, name)); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return "", nil
		}
		return "", err
	}
	return name, nil
}

// syncFile syncs a file or a directory.
func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Sweep removes leftovers of crashed Unpack, Remove and RemoveLayer calls that no live process holds, and chains whose
// layers are gone.
func (s *Store) Sweep(ctx context.Context) error {
	var errs []error
	each := func(dir string, f func(name string) error) {
		names, err := os.ReadDir(s.path(dir))
		if err != nil {
			errs = append(errs, err)
			return
		}
		for _, n := range names {
			if err := ctx.Err(); err != nil {
				errs = append(errs, err)
				return
			}
			if err := f(n.Name()); err != nil {
				errs = append(errs, err)
			}
		}
	}
	each(ingestDir, func(name string) error {
		f, err := os.Open(s.path(ingestDir, name))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		defer f.Close()
		if held, err := flock(f); !held {
			return err // somebody works on it
		}
		return s.removeAll(ingestDir, name)
	})
	each(trashDir, func(name string) error { return s.removeAll(trashDir, name) })
	each(locksDir, func(name string) error {
		l, err := s.tryLock(name)
		if l == nil {
			return err
		}
		return l.unlock()
	})
	each(chainsDir, s.sweepChain)
	if err := errors.Join(errs...); err != nil {
		return s.fail("sweep", s.dir, err)
	}
	return nil
}
