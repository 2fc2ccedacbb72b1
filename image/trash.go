package image

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/reference"
	"github.com/onggi/onggi/undo"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// The trash holds what Discard has taken out of the index: one file for each removal, trash/<id>, with the entries. As
// long as it is there its blobs and layers are needed, like those of a name; so a removal costs two small files,
// however large the image is, and Restore needs nothing but the entries.

// Trash is one removal that can be undone.
type Trash struct {
	ID      string    `json:"id"`
	Time    time.Time `json:"time"`
	Expires time.Time `json:"expires"` // from then on whoever sweeps may empty it
	Command string    `json:"command"` // as the user typed it
	// Images is what was taken out: an entry for each name, one for an image without.
	Images []Discarded `json:"-"`

	Entries []ocispec.Descriptor `json:"entries"` // as in index.json
}

// Discarded is one name of a removed image.
type Discarded struct {
	ID   digest.Digest
	Name reference.Reference // zero: it had none
}

// Disposal says where a removal puts what it removes.
type Disposal struct {
	ID      string // of the removal; several calls with one ID are undone together. NewTrashID makes one
	Command string
	Expires time.Time
}

// NewTrashID returns the ID for a removal: 12 random hex digits.
func NewTrashID() string {
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails since Go 1.24
	return hex.EncodeToString(b[:])
}

func (s *Store) trashDir() string           { return filepath.Join(s.dir, "trash") }
func (s *Store) trashPath(id string) string { return filepath.Join(s.dir, "trash", id) }
func (s *Store) trashError(id string) *errdefs.Error {
	return &errdefs.Error{Op: "use the trash", What: id, Kind: errdefs.InvalidArgument, Why: "an ID of the trash has 12 hexadecimal digits"}
}

func isTrashID(id string) bool { return len(id) == 12 && strings.Trim(id, "0123456789abcdef") == "" }

// Discard is Remove into the trash: names go, and with the last name the image, but its blobs and layers stay until the
// trash is emptied. Its errors are Remove's.
func (s *Store) Discard(ctx context.Context, nameOrID string, force bool, inUse func(digest.Digest) bool, to Disposal) ([]Removed, error) {
	if inUse == nil {
		inUse = func(digest.Digest) bool { return false }
	}
	return s.discard(ctx, to, func(idx index) (next, gone index, out []Removed, err error) {
		return idx.remove(nameOrID, force, inUse)
	})
}

// DiscardAll is Discard of several, one after the other, with one change of the index. What cannot be removed stays, and the
// others go; why is told for each.
func (s *Store) DiscardAll(ctx context.Context, namesOrIDs []string, force bool, inUse func(digest.Digest) bool, to Disposal) (out []Removed, why []error, err error) {
	out, err = s.discard(ctx, to, func(idx index) (next, gone index, out []Removed, err error) {
		next, gone, out, why = idx.removeEach(namesOrIDs, force, inUse)
		return next, gone, out, nil
	})
	return out, why, err
}

// WouldRemove says what DiscardAll or Remove would do, and does nothing.
func (s *Store) WouldRemove(namesOrIDs []string, force bool, inUse func(digest.Digest) bool) (out []Removed, why []error, err error) {
	idx, err := s.readIndex()
	if err != nil {
		return nil, nil, err
	}
	_, _, out, why = idx.removeEach(namesOrIDs, force, inUse)
	return out, why, nil
}

// removeEach removes one after the other: what one needs another may free.
func (idx index) removeEach(namesOrIDs []string, force bool, inUse func(digest.Digest) bool) (next, gone index, out []Removed, why []error) {
	if inUse == nil {
		inUse = func(digest.Digest) bool { return false }
	}
	next = idx
	for _, n := range namesOrIDs {
		after, g, said, err := next.remove(n, force, inUse)
		if err != nil {
			why = append(why, err)
			continue
		}
		next, gone, out = after, append(gone, g...), append(out, said...)
		for _, id := range g.ids() {
			out = append(out, Removed{Deleted: string(id)})
		}
	}
	return next, gone, out, why
}

// Prune discards the images that chosen says, with all their names, and reports them. The answer for an image that
// inUse names is not asked: it stays. A nil to deletes them at once.
func (s *Store) Prune(ctx context.Context, chosen func(*Image) bool, inUse func(digest.Digest) bool, to *Disposal) ([]Removed, error) {
	pick := func(idx index) (next, gone index, out []Removed, err error) {
		next = idx
		for _, img := range idx.images() {
			if inUse != nil && inUse(img.ID) || !chosen(img) {
				continue
			}
			for _, e := range idx {
				if e.id != img.ID {
					continue
				}
				next, gone = next.without(e), append(gone, e)
				if ref, err := reference.Parse(e.name); e.name != "" && err == nil {
					out = append(out, Removed{Untagged: ref.Familiar()})
				}
			}
			out = append(out, Removed{Deleted: string(img.ID)})
		}
		next, orphans := next.withoutOrphans()
		return next, append(gone, orphans...), out, nil
	}
	if to != nil {
		return s.discard(ctx, *to, pick)
	}
	return s.remove(ctx, pick)
}

// discard takes entries out of the index, after it has put them into the trash.
func (s *Store) discard(ctx context.Context, to Disposal, pick func(index) (next, gone index, out []Removed, err error)) (out []Removed, err error) {
	if !isTrashID(to.ID) {
		return nil, s.trashError(to.ID)
	}
	if err := s.recover(ctx); err != nil {
		return nil, err
	}
	l, err := s.lockIndex(ctx)
	if err != nil {
		return nil, err
	}
	defer l.release()
	idx, err := s.readIndex()
	if err != nil {
		return nil, err
	}
	next, gone, out, err := pick(slices.Clone(idx))
	if err != nil {
		return nil, err
	}
	// What loses names only goes into the trash as well: undo gives them back.
	var taken index
	for _, e := range idx {
		if !slices.ContainsFunc(next, e.same) {
			taken = append(taken, e)
		}
	}
	if len(taken) == 0 {
		return out, nil
	}
	steps := undo.New("image")
	defer steps.Undo(&err)
	before, err := s.readTrash(to.ID)
	if err != nil && !errdefs.Is(err, errdefs.NotFound) {
		return nil, err
	}
	refill := func() error {
		if before == nil {
			return ignoreMissing(os.Remove(s.trashPath(to.ID)))
		}
		return s.writeTrash(before)
	}
	if err := steps.Do("trash", func() error { return s.fillTrash(to, before, taken) }, refill); err != nil {
		return nil, err
	}
	if err := steps.Do("untag", func() error { return s.writeIndex(next) }, func() error { return s.writeIndex(idx) }); err != nil {
		return nil, err
	}
	for _, id := range gone.ids() {
		if r := (Removed{Deleted: string(id)}); !slices.Contains(out, r) {
			out = append(out, r)
		}
	}
	s.tellRemoved(out, idx.owners(), gone)
	return out, nil
}

func (e entry) same(o entry) bool { return e.name == o.name && e.desc.Digest == o.desc.Digest }

func (idx index) ids() []digest.Digest {
	var ids []digest.Digest
	for _, e := range idx {
		if e.id != "" && !slices.Contains(ids, e.id) {
			ids = append(ids, e.id)
		}
	}
	return ids
}

// images lists what the entries show, without their configurations.
func (idx index) images() []*Image {
	var all []*Image
	byID := map[digest.Digest]*Image{}
	for _, e := range idx {
		if e.id == "" {
			continue
		}
		if img := byID[e.id]; img != nil {
			img.addName(e)
			continue
		}
		byID[e.id] = e.image()
		all = append(all, byID[e.id])
	}
	return all
}

// fillTrash adds entries to a removal; before is what is there of it, or nil. Precondition: the index lock is held.
func (s *Store) fillTrash(to Disposal, before *Trash, taken index) error {
	t := &Trash{ID: to.ID, Time: time.Now().UTC(), Command: to.Command}
	if before != nil {
		*t = *before
		t.Entries = slices.Clone(before.Entries)
	}
	t.Expires = to.Expires.UTC()
	for _, e := range taken {
		t.Entries = append(t.Entries, e.desc)
	}
	return s.writeTrash(t)
}

func (s *Store) writeTrash(t *Trash) error {
	if err := os.MkdirAll(s.trashDir(), 0o700); err != nil {
		return err
	}
	b, err := json.Marshal(t)
	if err != nil {
		return err
	}
	path := s.trashPath(t.ID)
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return errors.Join(err, ignoreMissing(os.Remove(path+".new")))
	}
	return syncDir(s.trashDir())
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// readTrash reads one removal; NotFound.
func (s *Store) readTrash(id string) (*Trash, error) {
	if !isTrashID(id) {
		return nil, s.trashError(id)
	}
	f, err := os.OpenFile(s.trashPath(id), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, &errdefs.Error{
			Op: "find", What: "the removal " + id, Kind: errdefs.KindOf(err), Err: err,
			Why: "the trash does not hold it", Fix: "see what can be undone: onggi undo --list",
		}
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	b := make([]byte, min(fi.Size(), maxIndex)) // a longer one is not whole, and so damaged
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, err
	}
	t := new(Trash)
	if err := json.Unmarshal(b, t); err != nil || t.ID != id {
		return nil, &errdefs.Error{
			Op: "read", What: s.trashPath(id), Kind: errdefs.Corrupt, Why: "it is not the record of this removal", Err: err,
			Fix: "empty the trash: onggi system prune --trash",
		}
	}
	for _, d := range t.Entries {
		e, err := newEntry(d)
		if err != nil {
			return nil, &errdefs.Error{Op: "read", What: s.trashPath(id), Kind: errdefs.Corrupt, Err: err}
		}
		x := Discarded{ID: e.id}
		if ref, err := reference.Parse(e.name); e.name != "" && err == nil {
			x.Name = ref
		}
		t.Images = append(t.Images, x)
	}
	return t, nil
}

// Trash lists the removals that can be undone, the newest first.
func (s *Store) Trash() ([]*Trash, error) {
	names, err := os.ReadDir(s.trashDir())
	if err != nil {
		return nil, ignoreMissing(err)
	}
	var all []*Trash
	for _, n := range names {
		if !isTrashID(n.Name()) {
			continue
		}
		t, err := s.readTrash(n.Name())
		if errdefs.Is(err, errdefs.NotFound) {
			continue // emptied meanwhile
		}
		if errdefs.Is(err, errdefs.Corrupt) {
			t, err = &Trash{ID: n.Name()}, nil // it keeps nothing, and has expired
		}
		if err != nil {
			return nil, err
		}
		all = append(all, t)
	}
	slices.SortFunc(all, func(a, b *Trash) int { return b.Time.Compare(a.Time) })
	return all, nil
}

// Restored is one name that Restore has given back.
type Restored struct {
	Image digest.Digest
	Name  string // familiar; "" for an image that has none
	Taken bool   // another image has that name now: the image is back without it
}

// Restore undoes a removal: its images have their names again, and leave the trash. A name that another image has got
// meanwhile stays with that one. NotFound when the trash was emptied.
func (s *Store) Restore(ctx context.Context, id string) (out []Restored, err error) {
	steps := undo.New("image")
	put := func(idx index) (index, error) {
		t, err := s.readTrash(id)
		if err != nil {
			return nil, err
		}
		for _, d := range t.Entries {
			e, err := newEntry(d)
			if err != nil {
				return nil, err
			}
			r := Restored{Image: e.id}
			if ref, err := reference.Parse(e.name); e.name != "" && err == nil {
				r.Name = ref.Familiar()
			}
			if e.name != "" {
				if i := slices.IndexFunc(idx, func(o entry) bool { return o.name == e.name && !o.besides(e) }); i >= 0 && idx[i].desc.Digest != e.desc.Digest {
					r.Taken = true
					e.name = ""
					if slices.ContainsFunc(idx, func(o entry) bool { return o.desc.Digest == e.desc.Digest }) {
						out = append(out, r)
						continue
					}
				}
			}
			idx = idx.name(e.name, e)
			out = append(out, r)
		}
		return idx, nil
	}
	if err := steps.Do("restore", func() error { return s.change(ctx, put) }, nil); err != nil {
		return nil, err
	}
	return out, steps.Do("emptied", func() error { return ignoreMissing(os.Remove(s.trashPath(id))) }, nil)
}

// EmptyTrash gives up the removals that chosen says, and deletes what nothing else needs.
func (s *Store) EmptyTrash(ctx context.Context, chosen func(*Trash) bool) (err error) {
	all, err := s.Trash()
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(t *Trash) bool { return !chosen(t) })
	if len(all) == 0 {
		return nil
	}
	steps := undo.New("image")
	l, err := s.newLease(ctx)
	if err != nil {
		return err
	}
	forget := func() error {
		lk, err := s.lockIndex(ctx)
		if err != nil {
			return err
		}
		defer lk.release()
		for _, t := range all {
			// Somebody may have restored it meanwhile; then its names keep what the lease lists.
			for _, d := range t.Entries {
				e, err := newEntry(d)
				if err != nil {
					return err
				}
				refs, err := s.references(e)
				if err != nil {
					return err
				}
				if err := l.note(refs); err != nil {
					return err
				}
			}
			if err := ignoreMissing(os.Remove(s.trashPath(t.ID))); err != nil {
				return err
			}
		}
		return nil
	}
	if err := steps.Do("forget", forget, nil); err != nil {
		return errors.Join(err, l.drop(context.WithoutCancel(ctx)))
	}
	return steps.Do("empty", func() error { return l.drop(ctx) }, nil)
}

// trashed lists what the trash needs. Precondition: the index lock is held.
func (s *Store) trashed() (index, error) {
	all, err := s.Trash()
	if err != nil {
		return nil, err
	}
	var idx index
	for _, t := range all {
		for _, d := range t.Entries {
			e, err := newEntry(d)
			if err != nil {
				return nil, err
			}
			idx = append(idx, e)
		}
	}
	return idx, nil
}

// Needs lists, for each image of the index by its id, and for each removal in the trash by its ID, the digests that it
// keeps: of blobs and of layers. Entries of other programs are under their manifest's digest.
func (s *Store) Needs(ctx context.Context) (images map[digest.Digest][]digest.Digest, trash map[string][]digest.Digest, err error) {
	l, err := s.lockIndex(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer l.release()
	idx, err := s.readIndex()
	if err != nil {
		return nil, nil, err
	}
	images, trash = map[digest.Digest][]digest.Digest{}, map[string][]digest.Digest{}
	for _, e := range idx {
		key := e.id
		if key == "" {
			key = e.desc.Digest
		}
		refs, err := s.references(e)
		if err != nil {
			return nil, nil, err
		}
		images[key] = union(images[key], refs)
	}
	all, err := s.Trash()
	if err != nil {
		return nil, nil, err
	}
	for _, t := range all {
		for _, d := range t.Entries {
			e, err := newEntry(d)
			if err != nil {
				return nil, nil, err
			}
			refs, err := s.references(e)
			if err != nil {
				return nil, nil, err
			}
			trash[t.ID] = union(trash[t.ID], refs)
		}
	}
	return images, trash, nil
}

func union(a, b []digest.Digest) []digest.Digest {
	a = append(a, b...)
	slices.Sort(a)
	return slices.Compact(a)
}
