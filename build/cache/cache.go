// Package cache keeps what build steps came to, by content: records on disk that any later build on the store finds.
//
// A step's key is the digest of its Parts: the instruction's text, its environment, the digests of the trees and files it
// reads, each with a name that a person understands. Two steps with equal parts do the same; and when a step misses, the
// parts of the nearest earlier run of the same step say which one changed (Compare; package build/history finds the run).
//
//	<dir>/steps/<hex of the key>.json   a Record
//	<dir>/locks/<hex of the key>        held (flock) while somebody performs the step
//	<dir>/mounts/<hex of the id>-<n>/   the directory of a cache mount, below fs/; flocked by who uses it
//	<dir>/memory/<kind>/<hex>           what saves work and may be lost (Memory)
//
// A record is written last, by atomic rename, after the layers that it names are whole in the store: a record that can be
// read can be used. Its modification time is when it was last used. Roots tells the store's collector what the records
// still need. Records may be removed at any time; a step is then performed again.
//
// Locks: one flock per key, held over the performance of one step; whoever holds several takes them along the graph's
// edges, inputs first, so nobody waits in a circle.
//
// It leaves to others: layers and blobs (snapshot, content), what a step is (package build).
package cache

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/onggi/onggi/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// Part is one thing that a step depends on.
type Part struct {
	Name  string `json:"name"`  // "command", "env CC", "file src/main.c", "root file system"
	Value string `json:"value"` // the text, or a digest
}

// Key is the digest of parts, in their order.
func Key(parts []Part) digest.Digest {
	h := digest.SHA256.Digester()
	for _, p := range parts {
		fmt.Fprintf(h.Hash(), "%d %d\n%s%s", len(p.Name), len(p.Value), p.Name, p.Value)
	}
	return h.Digest()
}

// Layer is a layer that a step made or stands on.
type Layer struct {
	DiffID digest.Digest      `json:"diffID"`
	Blob   ocispec.Descriptor `json:"blob"` // its tar as it lies in the content store
	Size   int64              `json:"size"` // bytes of file content
}

// Record is a step that was performed.
type Record struct {
	Key digest.Digest `json:"key"`
	// Slot names the step in its text, over versions of it: "Dockerfile build 3/5".
	Slot  string `json:"slot,omitempty"`
	Name  string `json:"name"` // as progress shows it
	Parts []Part `json:"parts"`
	// Outputs are the trees that it made, each bottom first. Own says how many of the topmost layers are this step's.
	Outputs [][]Layer     `json:"outputs"`
	Own     int           `json:"own"`
	Created time.Time     `json:"created"`
	Took    time.Duration `json:"took"`
	// Used is when a build last needed it; kept as the file's time.
	Used time.Time `json:"-"`
}

// maxRecord bounds a record, in bytes: parts name every file of a COPY.
const maxRecord = 64 << 20

// Store is a directory of records. Several processes may use it at once.
type Store struct{ dir string }

// Open opens or makes the store in dir.
func Open(dir string) (*Store, error) {
	for _, d := range []string{"steps", "locks"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return nil, fail("open the build cache", dir, err)
		}
	}
	return &Store{dir: dir}, nil
}

func fail(op, what string, err error) error {
	return &errdefs.Error{Op: op, What: what, Kind: errdefs.KindOf(err), Err: err}
}

func (s *Store) path(key digest.Digest) string {
	return filepath.Join(s.dir, "steps", key.Encoded()+".json")
}

// Get returns the record of key and marks it as used. NotFound; a record that cannot be read is removed, and NotFound.
func (s *Store) Get(key digest.Digest) (*Record, error) {
	if err := key.Validate(); err != nil {
		return nil, &errdefs.Error{Op: "find", What: "the build step " + key.String(), Kind: errdefs.InvalidArgument, Err: err}
	}
	p := s.path(key)
	r, err := read(p)
	if errdefs.Is(err, errdefs.Corrupt) || err == nil && r.Key != key {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fail("remove the broken record", p, err)
		}
		err = fs.ErrNotExist
	}
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, &errdefs.Error{Op: "find", What: "the build step " + key.String(), Kind: errdefs.NotFound, Why: "it is not in the cache"}
		}
		return nil, err
	}
	now := time.Now()
	_ = os.Chtimes(p, now, now) // a read-only store serves as well
	return r, nil
}

func read(p string) (*Record, error) {
	f, err := os.Open(p)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if fi.Size() > maxRecord {
		return nil, &errdefs.Error{Op: "read", What: p, Kind: errdefs.Corrupt, Why: "it is longer than a record may be"}
	}
	r := &Record{}
	if err := json.NewDecoder(io.LimitReader(f, maxRecord)).Decode(r); err != nil {
		return nil, &errdefs.Error{Op: "read", What: p, Kind: errdefs.Corrupt, Err: err}
	}
	if Key(r.Parts) != r.Key {
		return nil, &errdefs.Error{Op: "read", What: p, Kind: errdefs.Corrupt, Why: "its parts do not make its key"}
	}
	r.Used = fi.ModTime()
	return r, nil
}

// Put writes the record; its layers are whole and synced. A record that is there is replaced.
func (s *Store) Put(r *Record) (err error) {
	if r.Key != Key(r.Parts) {
		return &errdefs.Error{Op: "keep", What: r.Name, Kind: errdefs.Internal, Why: "the key is not that of the parts"}
	}
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if len(b) > maxRecord {
		return &errdefs.Error{Op: "keep", What: r.Name, Kind: errdefs.Exhausted, Why: "it depends on more files than a record can name"}
	}
	f, err := os.CreateTemp(filepath.Join(s.dir, "steps"), ".new-")
	if err != nil {
		return fail("keep", r.Name, err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = io.Copy(f, bytes.NewReader(b))
	err = cmp.Or(err, f.Sync())
	if err := cmp.Or(err, f.Close()); err != nil {
		return fail("keep", r.Name, err)
	}
	if err := os.Rename(f.Name(), s.path(r.Key)); err != nil {
		return fail("keep", r.Name, err)
	}
	d, err := os.Open(filepath.Join(s.dir, "steps"))
	if err != nil {
		return fail("keep", r.Name, err)
	}
	defer d.Close()
	return d.Sync()
}

// Remove forgets a step. Not there is not an error.
func (s *Store) Remove(key digest.Digest) error {
	if err := os.Remove(s.path(key)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fail("forget the build step", key.String(), err)
	}
	return nil
}

// draft is how old an unfinished record is that nobody is writing any more.
const draft = time.Hour

// List returns all records that can be read, the one used last first. Drafts of processes that died are removed.
func (s *Store) List() ([]*Record, error) {
	es, err := os.ReadDir(filepath.Join(s.dir, "steps"))
	if err != nil {
		return nil, fail("list", "the build cache", err)
	}
	var out []*Record
	for _, e := range es {
		p := filepath.Join(s.dir, "steps", e.Name())
		if strings.HasPrefix(e.Name(), ".new-") {
			if fi, err := e.Info(); err == nil && time.Since(fi.ModTime()) > draft {
				_ = os.Remove(p)
			}
			continue
		}
		r, err := read(p)
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) || errdefs.Is(err, errdefs.Corrupt) {
				continue
			}
			return nil, err
		}
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b *Record) int {
		return cmp.Or(b.Used.Compare(a.Used), strings.Compare(string(a.Key), string(b.Key)))
	})
	return out, nil
}

// Roots returns the layers and blobs that the records need, for the collector: what is not among them, and nobody else's,
// may go.
func (s *Store) Roots() (diffIDs, blobs []digest.Digest, err error) {
	rs, err := s.List()
	if err != nil {
		return nil, nil, err
	}
	for _, r := range rs {
		for _, o := range r.Outputs {
			for _, l := range o {
				diffIDs = append(diffIDs, l.DiffID)
				if l.Blob.Digest != "" {
					blobs = append(blobs, l.Blob.Digest)
				}
			}
		}
	}
	slices.Sort(diffIDs)
	slices.Sort(blobs)
	return slices.Compact(diffIDs), slices.Compact(blobs), nil
}

// Lock waits until nobody performs the step, in this process or another, and keeps others from it until the file is
// closed. Canceled or DeadlineExceeded when ctx ends first.
func (s *Store) Lock(ctx context.Context, key digest.Digest) (io.Closer, error) {
	f, err := os.OpenFile(filepath.Join(s.dir, "locks", key.Encoded()), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fail("lock the build step", key.String(), err)
	}
	// flock(2) cannot be given a context: it is tried again, at growing intervals.
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return &lock{f}, nil
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			_ = f.Close()
			return nil, fail("lock the build step", key.String(), err)
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, context.Cause(ctx)
		case <-time.After(wait):
		}
	}
}

// lock leaves its file: another process may be waiting on it.
type lock struct{ *os.File }

// Change is a part that a step has otherwise than an earlier one.
type Change struct {
	Part string `json:"part"`
	Was  string `json:"was,omitempty"` // "" is not there
	Now  string `json:"now,omitempty"`
}

// Compare lists the parts that differ, in the order of now, then what is gone.
func Compare(was, now []Part) []Change {
	old := map[string]string{}
	for _, p := range was {
		old[p.Name] = p.Value
	}
	var out []Change
	seen := map[string]bool{}
	for _, p := range now {
		seen[p.Name] = true
		if v, ok := old[p.Name]; !ok || v != p.Value {
			out = append(out, Change{p.Name, v, p.Value})
		}
	}
	for _, p := range was {
		if !seen[p.Name] {
			out = append(out, Change{p.Name, p.Value, ""})
			seen[p.Name] = true
		}
	}
	return out
}

// MountsDir is where cache mounts lie: a directory for each, flocked by who uses it.
func (s *Store) MountsDir() string { return filepath.Join(s.dir, "mounts") }

// PruneMounts removes the cache mounts that nobody uses now.
func (s *Store) PruneMounts() error {
	es, err := os.ReadDir(s.MountsDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fail("list", "the cache mounts", err)
	}
	for _, e := range es {
		p := filepath.Join(s.MountsDir(), e.Name())
		f, err := os.Open(p)
		if err != nil {
			return fail("open the cache mount", p, err)
		}
		// The directory itself stays: who waits for its lock has it open.
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			err = os.RemoveAll(filepath.Join(p, "fs"))
		} else if err == unix.EWOULDBLOCK {
			err = nil
		}
		_ = f.Close()
		if err != nil {
			return fail("remove the cache mount", p, err)
		}
	}
	return nil
}

// Usage is the bytes of file content of the layers that only the cache holds on to: each layer once. held says that
// somebody else needs a layer as well.
func (s *Store) Usage(held func(digest.Digest) bool) (int64, error) {
	rs, err := s.List()
	if err != nil {
		return 0, err
	}
	sizes := map[digest.Digest]int64{}
	for _, r := range rs {
		for _, o := range r.Outputs {
			for _, l := range o {
				if !held(l.DiffID) {
					sizes[l.DiffID] = l.Size
				}
			}
		}
	}
	var n int64
	for _, size := range sizes {
		n += size
	}
	return n, nil
}

// Prune forgets the steps that were not used for longest until what only the cache holds is at most limit bytes; those
// used after since stay. It returns what it forgot. The layers go with the collector's next run.
func (s *Store) Prune(limit int64, since time.Time, held func(digest.Digest) bool) ([]*Record, error) {
	rs, err := s.List()
	if err != nil {
		return nil, err
	}
	users := map[digest.Digest]int{}
	sizes := map[digest.Digest]int64{}
	var total int64
	each := func(r *Record, f func(Layer)) {
		seen := map[digest.Digest]bool{}
		for _, o := range r.Outputs {
			for _, l := range o {
				if !seen[l.DiffID] && !held(l.DiffID) {
					seen[l.DiffID] = true
					f(l)
				}
			}
		}
	}
	for _, r := range rs {
		each(r, func(l Layer) {
			if users[l.DiffID] == 0 {
				total += l.Size
			}
			users[l.DiffID]++
			sizes[l.DiffID] = l.Size
		})
	}
	var gone []*Record
	for _, r := range slices.Backward(rs) {
		if total <= limit && limit > 0 || limit <= 0 && len(rs) == len(gone) {
			break
		}
		if r.Used.After(since) {
			continue
		}
		if err := s.Remove(r.Key); err != nil {
			return gone, err
		}
		gone = append(gone, r)
		each(r, func(l Layer) {
			if users[l.DiffID]--; users[l.DiffID] == 0 {
				total -= sizes[l.DiffID]
			}
		})
	}
	return gone, nil
}
