// Package secret keeps secrets and configs: small values with a name that containers get as files.
//
// The two are alike and lie in stores of their own. A value is written once and never changed, so that what a container
// was given is what its name means; it is in files of mode 0600, in no record, no message and no event. Who may use it is
// the engine's to know, and so is how it comes into a container.
//
// Lifecycle: Create -> Value, by whoever starts a container -> Remove. An entry appears with one rename, complete, and
// disappears with one; what a killed process left is hidden (its name begins with a dot) and removed by Sweep. Any number
// of processes may use one store.
package secret

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/undo"
	"golang.org/x/sys/unix"
)

// Below the store's directory:
//
//	NAME/record.json   Entry
//	NAME/value         the value
//	.new-ID            an entry being made
//	.gone-ID           an entry being removed
const (
	recordFile = "record.json"
	valueFile  = "value"
	newPrefix  = ".new-"
	gonePrefix = ".gone-"
	maxRecord  = 1 << 20
	maxName    = 64
	idLength   = 25
	settle     = time.Minute // how old a hidden directory is before Sweep takes it for litter
)

// Kind says what a store keeps.
type Kind string

// The kinds.
const (
	Secret Kind = "secret"
	Config Kind = "config"
)

// Max is how long a value may be, bytes; as docker's.
func (k Kind) Max() int64 {
	if k == Config {
		return 1000 << 10
	}
	return 500 << 10
}

// Entry is what is known of one secret or config: all but its value.
type Entry struct {
	ID      string            `json:"id"` // 25 of a-z 0-9
	Name    string            `json:"name"`
	Labels  map[string]string `json:"labels,omitempty"`
	Created time.Time         `json:"created"`
	Size    int64             `json:"size"` // bytes
}

// Store is a directory of entries. It is safe for concurrent use, also by several processes.
type Store struct {
	kind Kind
	dir  string
}

// Open opens or makes the store in dir.
func Open(kind Kind, dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, &errdefs.Error{Op: "open the " + string(kind) + "s", What: dir, Kind: errdefs.KindOf(err), Err: err}
	}
	return &Store{kind, dir}, nil
}

// CheckName returns an error of kind InvalidArgument unless name is one: 1 to 64 of a-z A-Z 0-9 - _ . , the first and the
// last of them a letter or a digit (docker's rule).
func (k Kind) CheckName(name string) error {
	alnum := func(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' }
	ok := len(name) >= 1 && len(name) <= maxName && alnum(name[0]) && alnum(name[len(name)-1])
	for i := 0; ok && i < len(name); i++ {
		ok = alnum(name[i]) || strings.IndexByte("-_.", name[i]) >= 0
	}
	if ok {
		return nil
	}
	return &errdefs.Error{
		Op: "use", What: fmt.Sprintf("the %s name %.80q", k, name), Kind: errdefs.InvalidArgument,
		Why: "a name is 1 to 64 of a-z A-Z 0-9 - _ . and begins and ends with a letter or a digit", Fix: "choose another name",
	}
}

func (s *Store) fail(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &errdefs.Error{Op: op + " " + string(s.kind), What: name, Kind: errdefs.KindOf(err), Fix: errdefs.FixOf(err), Err: err}
}

// Create keeps a value under a new name. AlreadyExists when the name is taken, InvalidArgument for a name, and for a value
// that is empty or longer than Max.
func (s *Store) Create(name string, labels map[string]string, value io.Reader) (_ *Entry, err error) {
	if err := s.kind.CheckName(name); err != nil {
		return nil, err
	}
	v, err := readAll(value, s.kind.Max()+1)
	if err != nil {
		return nil, s.fail("read the", name, err)
	}
	if len(v) == 0 || int64(len(v)) > s.kind.Max() {
		return nil, &errdefs.Error{
			Op: "create " + string(s.kind), What: name, Kind: errdefs.InvalidArgument, Why: fmt.Sprintf("its value must have 1 to %d bytes", s.kind.Max()),
			Fix: "larger data belongs into a volume",
		}
	}
	defer func() {
		if errors.Is(err, fs.ErrExist) {
			err = &errdefs.Error{
				Op: "create " + string(s.kind), What: name, Kind: errdefs.AlreadyExists, Why: "the name is taken, and a value is never changed",
				Fix: "choose another name, such as " + name + "-2, or remove it first: onggi " + string(s.kind) + " rm " + name,
			}
			return
		}
		err = s.fail("create", name, err)
	}()
	e := &Entry{ID: newID(), Name: name, Labels: maps.Clone(labels), Created: time.Now().UTC().Round(0), Size: int64(len(v))}
	aside, final := filepath.Join(s.dir, newPrefix+e.ID), filepath.Join(s.dir, name)
	if _, err := os.Lstat(final); err == nil {
		return nil, fs.ErrExist
	}
	u := undo.New(string(s.kind) + ".create")
	defer u.Undo(&err)
	if err := u.Do("directory", func() error { return os.Mkdir(aside, 0o700) }, func() error { return os.RemoveAll(aside) }); err != nil {
		return nil, err
	}
	if err := u.Do("value", func() error { return writeFile(filepath.Join(aside, valueFile), v) }, nil); err != nil {
		return nil, err
	}
	if err := u.Do("record", func() error {
		b, err := json.MarshalIndent(e, "", "\t")
		if err == nil && len(b) > maxRecord {
			err = &errdefs.Error{Kind: errdefs.InvalidArgument, Why: "the labels are longer than 1 MiB"}
		}
		if err == nil {
			err = writeFile(filepath.Join(aside, recordFile), b)
		}
		if err == nil {
			err = syncDir(aside)
		}
		return err
	}, nil); err != nil {
		return nil, err
	}
	if err := u.Do("rename", func() error {
		return unix.Renameat2(unix.AT_FDCWD, aside, unix.AT_FDCWD, final, unix.RENAME_NOREPLACE)
	}, func() error { return os.RemoveAll(final) }); err != nil {
		return nil, err
	}
	return e, u.Do("sync", func() error { return syncDir(s.dir) }, nil)
}

// Get returns an entry by its name, its id, or the beginning of an id that no other has. NotFound; Conflict for a beginning
// of several.
func (s *Store) Get(nameOrID string) (*Entry, error) {
	if s.kind.CheckName(nameOrID) == nil {
		e, err := s.read(nameOrID)
		if !errdefs.Is(err, errdefs.NotFound) {
			return e, err
		}
	}
	list, err := s.List()
	if err != nil {
		return nil, err
	}
	var found *Entry
	for _, e := range list {
		if nameOrID == "" || !strings.HasPrefix(e.ID, nameOrID) {
			continue
		}
		if found != nil {
			return nil, &errdefs.Error{Op: "find " + string(s.kind), What: nameOrID, Kind: errdefs.Conflict, Why: "the ids of " + found.Name + " and " + e.Name + " begin with it", Fix: "write more of it"}
		}
		found = e
	}
	if found == nil {
		return nil, s.missing(nameOrID)
	}
	return found, nil
}

func (s *Store) missing(name string) error {
	return &errdefs.Error{Op: "find " + string(s.kind), What: name, Kind: errdefs.NotFound, Why: "there is no such " + string(s.kind), Fix: "see: onggi " + string(s.kind) + " ls"}
}

func (s *Store) read(name string) (*Entry, error) {
	path := filepath.Join(s.dir, name, recordFile)
	b, err := readBounded(path, maxRecord)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, s.missing(name)
	}
	if err != nil {
		return nil, s.fail("read", name, err)
	}
	e := &Entry{}
	if err := json.Unmarshal(b, e); err != nil || e.Name != name {
		return nil, &errdefs.Error{
			Op: "read " + string(s.kind), What: name, Kind: errdefs.Corrupt, Why: path + " is not a record of ours", Err: err,
			Fix: "remove it (onggi " + string(s.kind) + " rm " + name + ") and create it again",
		}
	}
	return e, nil
}

// Value returns the value of an entry by its name.
func (s *Store) Value(name string) ([]byte, error) {
	if err := s.kind.CheckName(name); err != nil {
		return nil, err
	}
	b, err := readBounded(filepath.Join(s.dir, name, valueFile), s.kind.Max())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, s.missing(name)
	}
	return b, s.fail("read", name, err)
}

// List returns all entries by name.
func (s *Store) List() ([]*Entry, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, s.fail("list", "", err)
	}
	var out []*Entry
	for _, d := range entries {
		if !d.IsDir() || s.kind.CheckName(d.Name()) != nil {
			continue
		}
		e, err := s.read(d.Name())
		if errdefs.Is(err, errdefs.NotFound) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b *Entry) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// Remove removes an entry by its name, for good: what was secret stays in no trash. Not there is NotFound.
func (s *Store) Remove(name string) error {
	if err := s.kind.CheckName(name); err != nil {
		return err
	}
	gone := filepath.Join(s.dir, gonePrefix+newID())
	u := undo.New(string(s.kind) + ".remove")
	err := u.Do("rename", func() error {
		if err := os.Rename(filepath.Join(s.dir, name), gone); err != nil {
			return err
		}
		return syncDir(s.dir)
	}, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return s.missing(name)
	}
	if err == nil {
		err = u.Do("value", func() error { return os.RemoveAll(gone) }, nil)
	}
	return s.fail("remove", name, err)
}

// Sweep removes what killed processes left of entries that they were making or removing.
func (s *Store) Sweep() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return s.fail("sweep", "", err)
	}
	var errs []error
	for _, d := range entries {
		made := strings.HasPrefix(d.Name(), newPrefix)
		if !made && !strings.HasPrefix(d.Name(), gonePrefix) {
			continue
		}
		if fi, err := d.Info(); made && (err != nil || time.Since(fi.ModTime()).Abs() < settle) {
			continue // somebody may be at it
		}
		errs = append(errs, os.RemoveAll(filepath.Join(s.dir, d.Name())))
	}
	return s.fail("sweep", "", errors.Join(errs...))
}

// newID returns 25 random letters and digits.
func newID() string {
	const digits = "0123456789abcdefghijklmnopqrstuv"
	var b [idLength]byte
	_, _ = rand.Read(b[:]) // never fails (Go 1.24)
	for i := range b {
		b[i] = digits[b[i]&31]
	}
	return string(b[:])
}

func writeFile(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// readBounded reads a file of at most limit bytes.
func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := readAll(f, limit+1)
	if err == nil && int64(len(b)) > limit {
		err = &os.PathError{Op: "read", Path: path, Err: unix.EFBIG}
	}
	return b, err
}

func readAll(r io.Reader, limit int64) ([]byte, error) {
	var b bytes.Buffer
	_, err := b.ReadFrom(io.LimitReader(r, limit))
	return b.Bytes(), err
}
