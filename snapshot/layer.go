package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/onggi/onggi/archive"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/undo"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Unpack reads the layer's archive (compressed or not) from r, verifies that the uncompressed stream's digest is
// diffID, and puts the tree in its place. A layer that is there already is not read. Two processes unpacking one layer:
// the second waits for the first (flock) and then finds it done. An empty diffID means unknown: it is computed and
// returned in the record (import; such an archive is a root file system and may hold no whiteouts). Nothing stays after
// an error. For several layers use Batch: it syncs once.
func (s *Store) Unpack(ctx context.Context, diffID digest.Digest, r io.Reader) (*Layer, error) {
	if diffID == "" {
		return s.Import(ctx, r, nil)
	}
	b, err := s.Batch(ctx, []digest.Digest{diffID})
	if err != nil {
		return nil, err
	}
	defer b.Close()
	l, err := b.Unpack(ctx, diffID, r)
	if err != nil {
		return nil, err
	}
	return l, b.Commit(ctx)
}

// Import is Unpack of a layer whose digest is not known before it has been read. claim, if it is not nil, hears the
// digest before the layer can be seen, so that the caller can note that it relies on it; its error gives the layer up.
func (s *Store) Import(ctx context.Context, r io.Reader, claim func(diffID digest.Digest) error) (*Layer, error) {
	return s.unpackUnknown(ctx, r, "none", claim)
}

// UnpackNew is Import for a layer that has just been made and stands on others (Diff): it may hold whiteouts.
func (s *Store) UnpackNew(ctx context.Context, r io.Reader, claim func(diffID digest.Digest) error) (*Layer, error) {
	return s.unpackUnknown(ctx, r, "overlay", claim)
}

func (s *Store) unpackUnknown(ctx context.Context, r io.Reader, whiteouts string, claim func(digest.Digest) error) (l *Layer, err error) {
	u, err := s.unpack(ctx, "", r, whiteouts, nil)
	if err != nil {
		return nil, err
	}
	if claim != nil {
		if err := claim(u.layer.DiffID); err != nil {
			return nil, errors.Join(err, s.drop(u.dir))
		}
	}
	b, err := s.Batch(ctx, []digest.Digest{u.layer.DiffID})
	if err != nil {
		return nil, errors.Join(err, s.drop(u.dir))
	}
	defer b.Close()
	if len(b.Missing()) == 0 {
		if err := s.drop(u.dir); err != nil {
			return nil, err
		}
		return s.Layer(u.layer.DiffID)
	}
	b.ready[u.layer.DiffID] = u
	return u.layer, b.Commit(ctx)
}

// Batch unpacks the layers of one image and commits them together, with one sync.
//
//	b, err := store.Batch(ctx, diffIDs)   // waits for other processes that unpack any of them
//	defer b.Close()                       // what is not committed goes
//	for _, d := range b.Missing() { ... go b.Unpack(ctx, d, reader) ... }
//	err = b.Commit(ctx)
//
// Until Commit has returned, no layer of it can be seen. What the caller has written on the same file system before
// Commit, blobs say, is synced by it too.
type Batch struct {
	s       *Store
	all     []digest.Digest // the image's layers, bottom first
	missing []digest.Digest

	mu    sync.Mutex
	locks map[digest.Digest]*lock     // of the missing ones
	ready map[digest.Digest]*unpacked // to be committed
	busy  map[digest.Digest]bool      // being unpacked
	chain *os.File                    // how all are stacked, in ingest/; may be nil
}

// unpacked is a layer in ingest/.
type unpacked struct {
	layer *Layer
	dir   *os.File // held: see Store.ingest
}

// Batch begins to unpack the layers diffIDs (bottom first, as in an image's configuration; repetitions are as one). It
// takes the locks of all that are missing, in the order of the digests so that no two processes wait for each other,
// and therefore waits while another process unpacks one of them; then that one is not missing any more. The same
// goroutine must not begin a second batch with a common layer before it has closed the first.
func (s *Store) Batch(ctx context.Context, diffIDs []digest.Digest) (_ *Batch, err error) {
	b := &Batch{s: s, all: slices.Clone(diffIDs), locks: map[digest.Digest]*lock{}, ready: map[digest.Digest]*unpacked{}, busy: map[digest.Digest]bool{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.Close())
		}
	}()
	sorted := slices.Clone(diffIDs)
	slices.Sort(sorted)
	for _, d := range slices.Compact(sorted) {
		if err := check(d); err != nil {
			return nil, err
		}
		if _, err := s.Layer(d); err == nil {
			continue
		}
		l, err := s.lock(ctx, string(d.Algorithm())+"-"+d.Encoded())
		if err != nil {
			return nil, err
		}
		switch _, err := s.Layer(d); {
		case err == nil: // the one we waited for has done it
			if err := l.unlock(); err != nil {
				return nil, err
			}
		case errdefs.Is(err, errdefs.NotFound) || errdefs.Is(err, errdefs.Corrupt):
			b.locks[d] = l
		default:
			return nil, errors.Join(err, l.unlock())
		}
	}
	for _, d := range diffIDs {
		if b.locks[d] != nil && !slices.Contains(b.missing, d) {
			b.missing = append(b.missing, d)
		}
	}
	return b, nil
}

// Missing returns the layers that are not in the store and that Unpack expects, bottom first.
func (b *Batch) Missing() []digest.Digest { return slices.Clone(b.missing) }

// Unpack reads the layer's archive (compressed or not) from r, to its end, and verifies that the uncompressed stream's
// digest is diffID. It may be called from several goroutines. A layer that is there already, or unpacked by this batch,
// is not read. Nothing of the layer stays after an error, and it may be tried again.
func (b *Batch) Unpack(ctx context.Context, diffID digest.Digest, r io.Reader) (*Layer, error) {
	return b.UnpackFrom(ctx, diffID, r, nil)
}

// UnpackFrom is Unpack of a blob whose digest and size are given: the layer keeps what is needed to make that blob again,
// if that is possible (Layer.Blob). The blob is identified by its beginning: whoever makes it again compares the digest.
func (b *Batch) UnpackFrom(ctx context.Context, diffID digest.Digest, r io.Reader, from *Blob) (*Layer, error) {
	b.mu.Lock()
	if u := b.ready[diffID]; u != nil {
		b.mu.Unlock()
		return u.layer, nil
	}
	if b.locks[diffID] == nil {
		b.mu.Unlock()
		return b.s.Layer(diffID)
	}
	if b.busy[diffID] {
		b.mu.Unlock()
		return nil, &errdefs.Error{Op: "unpack the layer", What: string(diffID), Kind: errdefs.Conflict, Why: "this batch is unpacking it already"}
	}
	b.busy[diffID] = true
	b.mu.Unlock()

	u, err := b.s.unpack(ctx, diffID, r, "overlay", from)
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.busy, diffID)
	if err != nil {
		return nil, err
	}
	b.ready[diffID] = u
	return u.layer, nil
}

// unpack writes the layer into a directory of its own in ingest/. from is the blob that may have to be made again, or nil.
func (s *Store) unpack(ctx context.Context, diffID digest.Digest, r io.Reader, whiteouts string, from *Blob) (_ *unpacked, err error) {
	u := &unpacked{layer: &Layer{DiffID: diffID}}
	steps := undo.New("snapshot")
	defer steps.Undo(&err)
	err = steps.Do("ingest", func() (err error) {
		u.dir, err = s.ingest()
		return err
	}, func() error { return s.drop(u.dir) })
	if err != nil {
		return nil, s.fail("unpack the layer", string(diffID), err)
	}
	err = steps.Do("unpack", func() error { return s.write(ctx, u, r, whiteouts, from) }, nil)
	if err != nil {
		return nil, s.fail("unpack the layer", string(diffID), err)
	}
	return u, nil
}

// write inflates, hashes and writes r at once, each in a goroutine of its own.
func (s *Store) write(ctx context.Context, u *unpacked, r io.Reader, whiteouts string, from *Blob) (err error) {
	root := u.dir.Name() + "/fs"
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(root, 0o755); err != nil { // whatever the umask
		return err
	}
	dir, err := os.Open(root)
	if err != nil {
		return err
	}
	defer dir.Close()
	algorithm, o := digest.Canonical, archive.Options{Whiteouts: whiteouts}
	if u.layer.DiffID != "" {
		algorithm = u.layer.DiffID.Algorithm()
	}
	hash := algorithm.Hash()
	taps := []io.Writer{hash}
	var samples *samples
	if from != nil {
		if samples, err = newSamples(u.dir.Name()+"/"+layerRecipe, from.Size); err != nil {
			return err
		}
		defer samples.close()
		r, o.Recipe = io.TeeReader(r, &samples.blob), samples.recipe
		taps = append(taps, &samples.archive)
	}
	plain, _, err := archive.Decompress(r)
	if err != nil {
		return err
	}
	defer plain.Close()
	ahead := archive.ReadAhead(&guarded{r: plain, low: s.guard}, taps...)
	defer ahead.Close()
	st, err := archive.Apply(ctx, ahead, dir, o)
	if err != nil {
		return err
	}
	got := digest.NewDigest(algorithm, hash)
	if u.layer.DiffID != "" && got != u.layer.DiffID {
		return &errdefs.Error{
			Op: "unpack the layer", What: string(u.layer.DiffID), Kind: errdefs.Corrupt,
			Why: fmt.Sprintf("its content has the digest %s", got), Fix: "pull the image again; if it stays so, the image is broken at its source",
		}
	}
	*u.layer = Layer{DiffID: got, Size: st.Bytes, Entries: st.Entries, Implied: st.Implied, Opaque: st.Opaque, Created: time.Now().UTC()}
	if from != nil {
		if u.layer.Blob, err = samples.identify(*from, st.Rebuildable); err != nil {
			return err
		}
	}
	return writeRecord(u.dir.Name()+"/"+layerRecord, u.layer)
}

// guarded asks whether there is room for what is read, each guardStep bytes.
type guarded struct {
	r    io.Reader
	low  func() error
	left int64
}

const guardStep = 16 << 20

func (g *guarded) Read(p []byte) (int, error) {
	n, err := g.r.Read(p)
	if g.left -= int64(n); g.left < 0 && g.low != nil {
		g.left = guardStep
		if low := g.low(); low != nil {
			return n, low
		}
	}
	return n, err
}

// Commit syncs what has been unpacked with one syncfs(2) and moves it into place. When it fails, no layer of this batch
// is in the store. It finds out how the image's layers are stacked, too, if all of them are there, so that the first
// Prepare need not.
func (b *Batch) Commit(ctx context.Context) (err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.ready) == 0 {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return &errdefs.Error{Op: "commit the layers", Kind: errdefs.KindOf(err), Err: err}
	}
	s := b.s
	steps := undo.New("snapshot")
	defer steps.Undo(&err)
	parents := map[string]bool{}
	for d := range b.ready {
		parent := filepath.Dir(layerPath(d))
		if err := os.MkdirAll(s.path(parent), 0o700); err != nil {
			return s.fail("commit the layers in", s.dir, err)
		}
		parents[parent] = true
	}
	if err := steps.Do("chain", func() error { return b.buildChain(ctx) }, nil); err != nil {
		return err
	}
	if err := steps.Do("sync", b.syncfs, nil); err != nil {
		return s.fail("sync the layers in", s.dir, err)
	}
	for d, u := range b.ready {
		err := steps.Do("rename", func() error { return s.place(u, layerPath(d)) },
			func() error { return s.throwAway(layerPath(d)) })
		if err != nil {
			return s.fail("commit the layer", string(d), err)
		}
		u.dir.Close()
		delete(b.ready, d)
	}
	if b.chain != nil {
		id := chainID(b.all)
		err := steps.Do("renamechain", func() error {
			dir := b.chain
			b.chain = nil
			if err := s.commitChain(id, dir); err != nil {
				return errors.Join(err, s.drop(dir))
			}
			return nil
		}, func() error { return s.throwAway(chainsDir + "/" + id) })
		if err != nil {
			return s.fail("keep how the layers are stacked", id, err)
		}
	}
	err = steps.Do("syncdir", func() error {
		for p := range parents {
			if err := syncFile(s.path(p)); err != nil {
				return err
			}
		}
		return syncFile(s.path(layersDir))
	}, nil)
	if err != nil {
		return s.fail("sync the layers in", s.dir, err)
	}
	for d, l := range b.locks {
		if _, err := s.Layer(d); err != nil {
			continue // not unpacked by this batch: its lock goes with Close
		}
		if err := l.unlock(); err != nil {
			return s.fail("commit the layer", string(d), err)
		}
		delete(b.locks, d)
	}
	return nil
}

// place moves an unpacked layer to path. What is there although the layer was missing is damaged, and makes room.
func (s *Store) place(u *unpacked, path string) error {
	err := unix.Rename(u.dir.Name(), s.path(path))
	if err == unix.ENOTEMPTY || err == unix.EEXIST {
		if err = s.throwAway(path); err == nil {
			err = unix.Rename(u.dir.Name(), s.path(path))
		}
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: u.dir.Name(), New: s.path(path), Err: err}
	}
	return nil
}

// buildChain finds out how the image's layers are stacked, so that the first Prepare need not. It is left to that one
// when a layer is not there.
func (b *Batch) buildChain(ctx context.Context) error {
	if len(b.ready) < len(b.missing) {
		return nil
	}
	if _, err := b.s.readChain(chainID(b.all)); err == nil {
		return nil
	}
	var err error
	_, b.chain, err = b.s.buildChain(ctx, b.all, func(d digest.Digest) string {
		if u := b.ready[d]; u != nil {
			return u.dir.Name()
		}
		return b.s.path(layerPath(d))
	})
	return err
}

// syncfs writes everything out that this file system has in memory. Since Linux 5.8 it reports errors of the writing.
func (b *Batch) syncfs() error {
	for _, u := range b.ready {
		return unix.Syncfs(int(u.dir.Fd()))
	}
	return nil
}

// Close gives up what is not committed. No Unpack may be under way. It may be called more than once.
func (b *Batch) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var errs []error
	for d, u := range b.ready {
		errs = append(errs, b.s.drop(u.dir))
		delete(b.ready, d)
	}
	if b.chain != nil {
		errs = append(errs, b.s.drop(b.chain))
		b.chain = nil
	}
	for d, l := range b.locks {
		errs = append(errs, l.unlock())
		delete(b.locks, d)
	}
	return errors.Join(errs...)
}

// RemoveLayer removes a layer and the chains with it; the caller knows that nobody uses it. Not there is not an error.
// A process that is just unpacking it is waited for.
func (s *Store) RemoveLayer(ctx context.Context, diffID digest.Digest) error {
	if err := check(diffID); err != nil {
		return err
	}
	l, err := s.lock(ctx, string(diffID.Algorithm())+"-"+diffID.Encoded())
	if err != nil {
		return err
	}
	err = errors.Join(s.removeChainsOf(diffID), s.throwAway(layerPath(diffID)), l.unlock())
	if err != nil {
		return s.fail("remove the layer", string(diffID), err)
	}
	return nil
}

// TakeOut moves layers, and the chains that hold them, out of the store by rename: when it returns they are not there any
// more, and a caller that holds a lock of its own may let it go. empty then deletes their files, which takes longer; who
// dies before that leaves them to Sweep. The caller knows that nobody uses the layers or is unpacking them. Layers that
// are not there are passed over.
func (s *Store) TakeOut(diffIDs []digest.Digest) (empty func() error, err error) {
	var names []string
	empty = func() error {
		// The kernel frees inodes of different directories on several cores at once.
		errs := make([]error, len(names))
		slots := make(chan struct{}, runtime.GOMAXPROCS(0))
		var all sync.WaitGroup
		for i, n := range names {
			all.Go(func() {
				slots <- struct{}{}
				errs[i] = s.removeAll(trashDir, n)
				<-slots
			})
		}
		all.Wait()
		if err := errors.Join(errs...); err != nil {
			return s.fail("empty the trash of", s.dir, err)
		}
		return nil
	}
	for _, d := range diffIDs {
		if err := check(d); err != nil {
			return empty, err
		}
		name, err := s.toTrash(layerPath(d))
		if err != nil {
			return empty, s.fail("remove the layer", string(d), err)
		}
		if name == "" {
			continue
		}
		names = append(names, name)
		if err := s.removeChainsOf(d); err != nil {
			return empty, s.fail("remove the layer", string(d), err)
		}
	}
	return empty, nil
}

// removeChainsOf removes the chains that hold a layer.
func (s *Store) removeChainsOf(diffID digest.Digest) error {
	names, err := os.ReadDir(s.path(chainsDir))
	if err != nil {
		return err
	}
	for _, n := range names {
		c, err := s.readChain(n.Name())
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil && !slices.Contains(c.Layers, diffID) {
			continue
		}
		if err := s.throwAway(chainsDir + "/" + n.Name()); err != nil {
			return err
		}
	}
	return nil
}
