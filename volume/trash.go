package volume

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/pathrs"
	"github.com/onggi/onggi/undo"
	"golang.org/x/sys/unix"
)

// The trash holds the volumes that Discard has removed, whole, one directory for each removal:
//
//	.trash/REMOVAL/removal.json   when, until when, by which command
//	.trash/REMOVAL/NAME/          what was NAME/
//
// It lies in the store, and not beside it, so that a store on a disk of its own moves its volumes by one rename, too.

const trashDir = ".trash"

// Disposal says where a removal puts what it removes.
type Disposal struct {
	ID      string // of the removal, 12 hex digits; several volumes of one ID are restored together
	Command string // as the user typed it
	Time    time.Time
	Expires time.Time // from then on whoever sweeps may empty it
}

// Trash is one removal that can be undone.
type Trash struct {
	ID      string    `json:"id"`
	Command string    `json:"command"`
	Time    time.Time `json:"time"`
	Expires time.Time `json:"expires"`
	Volumes []string  `json:"-"` // names
}

// Restored is one volume that Restore gave back.
type Restored struct {
	Name  string // under which it is here again
	Taken string // the name that it had, and that another volume has now; "" when it has its own
}

func isRemoval(id string) bool { return len(id) == 12 && strings.Trim(id, "0123456789abcdef") == "" }

func (s *Store) removalDir(id string) string { return filepath.Join(s.dir, trashDir, id) }

func trashError(op, what string, err error) error {
	if err == nil {
		return nil
	}
	return &errdefs.Error{Op: op, What: what, Kind: errdefs.KindOf(err), Fix: errdefs.FixOf(err), Err: err}
}

// Discard is Remove into the trash: the volume is gone for everybody but Restore. Not there is NotFound.
func (s *Store) Discard(name string, to Disposal) (err error) {
	if err := CheckName(name); err != nil {
		return err
	}
	if !isRemoval(to.ID) {
		return &errdefs.Error{Op: "use the trash", What: to.ID, Kind: errdefs.InvalidArgument, Why: "a removal's id has 12 hexadecimal digits"}
	}
	defer func() { err = trashError("remove volume", name, err) }()
	// The store's lock keeps Sweep and EmptyTrash away while the removal's directory is empty.
	unlockStore, err := lock(filepath.Join(s.dir, lockFile))
	if err != nil {
		return err
	}
	defer unlockStore()
	unlock, err := s.lockVolume(name)
	if errors.Is(err, fs.ErrNotExist) {
		return &errdefs.Error{Kind: errdefs.NotFound, Why: "there is no such volume"}
	}
	if err != nil {
		return err
	}
	defer unlock()
	u := undo.New("volume.discard")
	defer u.Undo(&err)
	made := false
	if err := u.Do("trash", func() (err error) {
		made, err = s.openRemoval(to)
		return err
	}, func() error {
		if !made {
			return nil
		}
		return os.RemoveAll(s.removalDir(to.ID))
	}); err != nil {
		return err
	}
	from, place := filepath.Join(s.dir, name), filepath.Join(s.removalDir(to.ID), name)
	if err := u.Do("move", func() error {
		return unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, place, unix.RENAME_NOREPLACE)
	}, func() error { return os.Rename(place, from) }); err != nil {
		return err
	}
	return u.Do("sync", func() error { return errors.Join(s.syncDir(s.removalDir(to.ID)), s.syncDir(s.dir)) }, nil)
}

// openRemoval makes a removal's directory, whole with its record, unless an earlier volume of it has.
func (s *Store) openRemoval(to Disposal) (made bool, err error) {
	dir := s.removalDir(to.ID)
	if _, err := os.Lstat(dir); err == nil {
		return false, nil
	}
	if err := os.MkdirAll(filepath.Join(s.dir, trashDir), 0o700); err != nil {
		return false, err
	}
	half := filepath.Join(s.dir, newPrefix+to.ID)
	if err := os.Mkdir(half, 0o700); err != nil {
		return false, err
	}
	b, err := json.Marshal(Trash{ID: to.ID, Command: to.Command, Time: to.Time, Expires: to.Expires})
	if err == nil {
		err = s.writeFile(filepath.Join(half, "removal.json"), append(b, '\n'))
	}
	if err == nil {
		err = os.Rename(half, dir)
	}
	if err != nil {
		return false, errors.Join(err, os.RemoveAll(half))
	}
	return true, s.syncDir(filepath.Join(s.dir, trashDir))
}

// Trash lists what Restore can bring back, in no particular order.
func (s *Store) Trash() ([]*Trash, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, trashDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, trashError("list", "the trash of volumes", err)
	}
	var out []*Trash
	for _, e := range entries {
		if !isRemoval(e.Name()) {
			continue
		}
		t := &Trash{}
		b, err := readBounded(filepath.Join(s.removalDir(e.Name()), "removal.json"), maxRecord)
		if err != nil || json.Unmarshal(b, t) != nil || t.ID != e.Name() {
			t = &Trash{ID: e.Name()} // damaged, or just being emptied: its time is over
		}
		if t.Volumes, err = s.trashedIn(t.ID); err != nil {
			return nil, trashError("list", "the trash of volumes", err)
		}
		out = append(out, t)
	}
	return out, nil
}

func (s *Store) trashedIn(removal string) ([]string, error) {
	entries, err := os.ReadDir(s.removalDir(removal))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && CheckName(e.Name()) == nil {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, err
}

// Restore brings the volumes of a removal back, each by one rename. One whose name is another volume's now gets its name
// with the removal's id behind it.
func (s *Store) Restore(removal string) (out []Restored, err error) {
	if !isRemoval(removal) {
		return nil, &errdefs.Error{Op: "use the trash", What: removal, Kind: errdefs.InvalidArgument, Why: "a removal's id has 12 hexadecimal digits"}
	}
	defer func() { err = trashError("restore", "the volumes of removal "+removal, err) }()
	unlock, err := lock(filepath.Join(s.dir, lockFile))
	if err != nil {
		return nil, err
	}
	defer unlock()
	names, err := s.trashedIn(removal)
	if err != nil {
		return nil, err
	}
	u := undo.New("volume.restore")
	for _, name := range names {
		from := filepath.Join(s.removalDir(removal), name)
		r := Restored{Name: name}
		err := u.Do("move", func() error {
			err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, filepath.Join(s.dir, name), unix.RENAME_NOREPLACE)
			if err != unix.EEXIST {
				return err
			}
			r.Name, r.Taken = name[:min(len(name), maxName-13)]+"-"+removal, name
			if err := s.rename(from, name, r.Name); err != nil {
				return err
			}
			return unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, filepath.Join(s.dir, r.Name), unix.RENAME_NOREPLACE)
		}, nil)
		if err != nil {
			return out, err
		}
		out = append(out, r)
	}
	if err := s.syncDir(s.dir); err != nil {
		return out, err
	}
	return out, s.discard(filepath.Join(trashDir, removal))
}

// rename writes another name into the record of the volume in dir.
func (s *Store) rename(dir, from, to string) error {
	v, err := readRecord(dir, from)
	if errdefs.Is(err, errdefs.Corrupt) { // a restore that was killed here has written it already
		v, err = readRecord(dir, to)
	}
	if err != nil {
		return err
	}
	v.Name, v.Anonymous = to, false
	return s.writeRecord(dir, v)
}

// EmptyTrash deletes what the removals hold that chosen says.
func (s *Store) EmptyTrash(chosen func(*Trash) bool) error {
	list, err := s.Trash()
	if err != nil {
		return err
	}
	u := undo.New("volume.empty")
	for _, t := range list {
		if !chosen(t) {
			continue
		}
		if err := u.Do("removal", func() error { return s.dropRemoval(t.ID) }, nil); err != nil {
			return trashError("empty", "the trash of volumes", err)
		}
	}
	return nil
}

// dropRemoval hides a removal with one rename before its data goes: what is left by a kill is Sweep's.
func (s *Store) dropRemoval(id string) error {
	unlock, err := lock(filepath.Join(s.dir, lockFile))
	if err != nil {
		return err
	}
	err = os.Rename(s.removalDir(id), filepath.Join(s.dir, gonePrefix+id))
	unlock()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.discard(gonePrefix + id)
}

// Trashed returns a volume that a removal holds.
func (s *Store) Trashed(removal, name string) (*Volume, error) {
	if !isRemoval(removal) || CheckName(name) != nil {
		return nil, &errdefs.Error{Op: "find volume", What: name, Kind: errdefs.NotFound, Why: "the trash does not hold it"}
	}
	return readRecord(filepath.Join(s.removalDir(removal), name), name)
}

// discard removes a tree that containers wrote, by handles, and the bounds of the volumes that it was. name may have two
// components.
func (s *Store) discard(name string) error {
	d, err := pathrs.OpenRoot(filepath.Join(s.dir, filepath.Dir(name)))
	if err != nil {
		return err
	}
	defer d.Close()
	path := filepath.Join(s.dir, name)
	projects := []uint32{project(path)}
	if entries, err := os.ReadDir(path); err == nil { // a removal of several
		for _, e := range entries {
			projects = append(projects, project(filepath.Join(path, e.Name())))
		}
	}
	if err := pathrs.RemoveAll(d, filepath.Base(name)); err != nil {
		return err
	}
	for _, p := range projects {
		s.release(p)
	}
	return nil
}
