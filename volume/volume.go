// Package volume keeps named volumes: a directory volumes/<name>/_data with a record beside it.
//
// Names follow docker's rule: [a-zA-Z0-9][a-zA-Z0-9_.-]+. A volume that a container record refers to is never removed;
// the engine, which knows the records, sees to that.
//
// Lifecycle: Ensure or Create -> (Populate, before the first mount) -> mounted by containers -> Remove, or Discard and then
// Restore or EmptyTrash. A volume appears with
// one rename, complete with its record, and disappears with one; what a killed process left before or after is hidden
// (its name begins with a dot) and removed by Sweep. Any number of processes may use one store.
package volume

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
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
	"sync"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/undo"
	"golang.org/x/sys/unix"
)

// Below the store's directory:
//
//	lock               flock: held while a volume is made, and while what was left over is looked for
//	NAME/volume.json   the record
//	NAME/lock          flock: held while the volume is populated, and while it is renamed away
//	NAME/_data         the data
//	.new-HEX           a volume being made
//	.gone-HEX          a volume being removed
//	.trash/            what Discard has removed and Restore can bring back
const (
	dataDir     = "_data"
	stagingDir  = ".data" // inside a volume: content on its way to _data
	recordFile  = "volume.json"
	lockFile    = "lock"
	newPrefix   = ".new-"
	gonePrefix  = ".gone-"
	maxRecord   = 1 << 20
	maxName     = 255 // a directory's name (NAME_MAX)
	anonymousID = 64  // hex digits
)

// Store is a directory of volumes. It is safe for concurrent use, also by several processes.
type Store struct {
	dir      string
	volatile bool
}

// Volatile returns the store as one that syncs nothing to the disk, and marks what it makes as Volatile: for the
// anonymous volumes of containers that do not outlive a crash of the host (--rm).
func (s *Store) Volatile() *Store { return &Store{dir: s.dir, volatile: true} }

// Volume is one volume.
type Volume struct {
	Name      string            `json:"name"`
	Path      string            `json:"-"` // absolute path of the data
	Labels    map[string]string `json:"labels,omitempty"`
	Anonymous bool              `json:"anonymous,omitempty"`
	// Options are those of the driver local (MountOf, SizeOf).
	Options map[string]string `json:"options,omitempty"`
	// Project is the file system's project id of a volume with option size; 0 without.
	Project uint32    `json:"project,omitempty"`
	Created time.Time `json:"created"`
	// Fresh: nothing has been mounted from it yet, so the image's content at the mount point is still to be copied in.
	Fresh bool `json:"fresh,omitempty"`
	// Volatile: it was made for a container that dies with it and syncs nothing; without that container it is litter.
	Volatile bool `json:"volatile,omitempty"`
}

// Open opens or makes the store in dir.
func Open(dir string) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		return nil, &errdefs.Error{Op: "open the volumes", What: dir, Kind: errdefs.KindOf(err), Err: err}
	}
	return &Store{dir: dir}, nil
}

// CheckName returns an error of kind InvalidArgument unless name is a volume's name: 2 to 255 of a-z A-Z 0-9 _ . -,
// the first of them a letter or a digit.
func CheckName(name string) error {
	ok := len(name) >= 2 && len(name) <= maxName
	for i := 0; ok && i < len(name); i++ {
		c := name[i]
		ok = c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || i > 0 && (c == '_' || c == '.' || c == '-')
	}
	if ok {
		return nil
	}
	return &errdefs.Error{
		Op: "use", What: fmt.Sprintf("volume name %.80q", name), Kind: errdefs.InvalidArgument,
		Why: "a name is 2 to 255 of a-z A-Z 0-9 _ . - and begins with a letter or a digit",
		Fix: "choose another name, or write a path beginning with / or ./ to mount a directory of the host",
	}
}

// Ensure returns the volume, making it if it is not there. An empty name makes an anonymous one (64 hex digits). The
// labels count for a new one only. Errors: InvalidArgument for a name.
func (s *Store) Ensure(name string, labels map[string]string) (*Volume, error) {
	if name == "" {
		id, err := randomHex(anonymousID / 2)
		if err != nil {
			return nil, err
		}
		return s.ensure(&Volume{Name: id, Labels: labels, Anonymous: true})
	}
	if err := CheckName(name); err != nil {
		return nil, err
	}
	return s.ensure(&Volume{Name: name, Labels: labels})
}

// Create makes a volume with options, or returns the one of that name that has the same labels and options already;
// those that are not given are not compared. AlreadyExists when it is another one, InvalidArgument for a name, an option,
// or the driver. An empty name makes an anonymous volume.
func (s *Store) Create(name, driver string, labels, options map[string]string) (*Volume, error) {
	if err := checkDriver(driver); err != nil {
		return nil, err
	}
	if err := CheckOptions(options); err != nil {
		return nil, err
	}
	anonymous := name == ""
	if anonymous {
		var err error
		if name, err = randomHex(anonymousID / 2); err != nil {
			return nil, err
		}
	}
	if err := CheckName(name); err != nil {
		return nil, err
	}
	v, err := s.ensure(&Volume{Name: name, Labels: labels, Options: maps.Clone(options), Anonymous: anonymous})
	if err != nil {
		return nil, err
	}
	if d := v.differs(labels, options); d != "" {
		return nil, &errdefs.Error{
			Op: "create volume", What: name, Kind: errdefs.AlreadyExists, Why: "a volume of this name is here, with " + d,
			Fix: "look at it (onggi volume inspect " + name + "), and remove it or choose another name",
		}
	}
	return v, nil
}

// CreateAnonymous is Create for an anonymous volume whose name (64 hex digits) the caller has chosen and recorded
// before, so that a crash between the two leaves no volume that nobody owns.
func (s *Store) CreateAnonymous(name, driver string, labels, options map[string]string) (*Volume, error) {
	if len(name) != anonymousID || strings.Trim(name, "0123456789abcdef") != "" {
		return nil, &errdefs.Error{
			Op: "use", What: fmt.Sprintf("volume name %.80q", name), Kind: errdefs.InvalidArgument,
			Why: "an anonymous volume's name is 64 hex digits",
		}
	}
	if err := errors.Join(checkDriver(driver), CheckOptions(options)); err != nil {
		return nil, err
	}
	return s.ensure(&Volume{Name: name, Labels: labels, Options: maps.Clone(options), Anonymous: true})
}

// EnsureAnonymous is CreateAnonymous without labels and options.
func (s *Store) EnsureAnonymous(name string) (*Volume, error) {
	return s.CreateAnonymous(name, "", nil, nil)
}

func checkDriver(driver string) error {
	if driver == "" || driver == Driver {
		return nil
	}
	return &errdefs.Error{
		Op: "use", What: "--driver " + driver, Kind: errdefs.InvalidArgument, Why: "there is no such volume driver, and plugins need a daemon",
		Fix: "use --driver local; it has --opt type=, o= and device= for nfs, tmpfs and disks",
	}
}

func (s *Store) ensure(v *Volume) (*Volume, error) {
	there, err := s.Get(v.Name)
	if err == nil || !errdefs.Is(err, errdefs.NotFound) {
		return there, err
	}
	v.Labels, v.Created, v.Fresh, v.Volatile = maps.Clone(v.Labels), now(), true, s.volatile
	err = s.make(v)
	if errors.Is(err, fs.ErrExist) { // another process was faster
		return s.Get(v.Name)
	}
	if err != nil {
		return nil, &errdefs.Error{Op: "make volume", What: v.Name, Kind: errdefs.KindOf(err), Fix: errdefs.FixOf(err), Err: err}
	}
	v.Path = filepath.Join(s.dir, v.Name, dataDir)
	return v, nil
}

// now is the time of records: UTC, without Go's monotonic part.
func now() time.Time { return time.Now().UTC().Round(0) }

// make puts the volume in place: built aside, synced, renamed, and the store's directory synced.
func (s *Store) make(v *Volume) error { return s.makeWith(v, nil) }

// makeWith is make with what fill writes into the data's directory, however long that takes: the volume's own lock, which
// it has from then on, tells Sweep that it is not litter.
func (s *Store) makeWith(v *Volume, fill func(*os.File) error) (err error) {
	id, err := randomHex(8)
	if err != nil {
		return err
	}
	unlock, err := lock(filepath.Join(s.dir, lockFile))
	if err != nil {
		return err
	}
	defer unlock()
	aside := filepath.Join(s.dir, newPrefix+id)
	u := undo.New("volume.make")
	defer u.Undo(&err)
	if err := u.Do("directory", func() error {
		err := os.Mkdir(aside, 0o700)
		if err == nil {
			// docker's mode, with which a process of any id may enter the volume's root.
			if err = s.makeData(filepath.Join(aside, dataDir), v); err != nil {
				err = errors.Join(err, os.RemoveAll(aside))
			}
		}
		return err
	}, func() error { return os.RemoveAll(aside) }); err != nil {
		return err
	}
	if err := u.Do("record", func() error { return s.writeRecord(aside, v) }, nil); err != nil {
		return err
	}
	if fill != nil {
		own, err := lock(filepath.Join(aside, lockFile))
		if err != nil {
			return err
		}
		defer own()
		unlock()
		if err := u.Do("fill", func() error {
			d, err := os.Open(filepath.Join(aside, dataDir))
			if err != nil {
				return err
			}
			defer d.Close()
			if err := fill(d); err != nil || s.volatile {
				return err
			}
			if err := unix.Syncfs(int(d.Fd())); err != nil {
				return err
			}
			return fits(d, v.Project)
		}, nil); err != nil {
			return err
		}
	}
	final := filepath.Join(s.dir, v.Name)
	if err := u.Do("rename", func() error {
		return unix.Renameat2(unix.AT_FDCWD, aside, unix.AT_FDCWD, final, unix.RENAME_NOREPLACE)
	}, func() error { return os.RemoveAll(final) }); err != nil {
		return err
	}
	return u.Do("sync", func() error { return s.syncDir(s.dir) }, nil)
}

// makeData makes the directory of the data, bounded if the volume has a size.
func (s *Store) makeData(path string, v *Volume) error {
	size, err := SizeOf(v.Options)
	if err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(path, 0o755); err != nil || size == 0 { // whatever the umask is
		return err
	}
	if v.Project, err = s.newProject(); err != nil {
		return err
	}
	return limit(path, v.Project, size)
}

// Get returns the volume, or NotFound.
func (s *Store) Get(name string) (*Volume, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	return s.read(name)
}

func (s *Store) read(name string) (*Volume, error) {
	v, err := readRecord(filepath.Join(s.dir, name), name)
	if err == nil {
		v.Path = filepath.Join(s.dir, name, dataDir)
	}
	return v, err
}

// readRecord reads the record in a volume's directory.
func readRecord(dir, name string) (*Volume, error) {
	path := filepath.Join(dir, recordFile)
	b, err := readBounded(path, maxRecord)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &errdefs.Error{Op: "find volume", What: name, Kind: errdefs.NotFound, Why: "there is no such volume"}
	}
	if err != nil {
		return nil, &errdefs.Error{Op: "read volume", What: name, Kind: errdefs.KindOf(err), Err: err}
	}
	v := &Volume{}
	if err = json.Unmarshal(b, v); err == nil && v.Name != name {
		err = fmt.Errorf("it is of a volume %q", v.Name)
	}
	if err == nil {
		return v, nil
	}
	return nil, &errdefs.Error{
		Op: "read volume", What: name, Kind: errdefs.Corrupt, Why: path + " is not a record of ours",
		Err: err, Fix: "look at the file; the data beside it is untouched",
	}
}

// List returns all volumes by name.
func (s *Store) List() ([]*Volume, error) {
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	var out []*Volume
	for _, n := range names {
		v, err := s.read(n)
		if errdefs.Is(err, errdefs.NotFound) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// names returns the names in the store's directory that may be volumes, sorted.
func (s *Store) names() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, &errdefs.Error{Op: "list the volumes", Kind: errdefs.KindOf(err), Err: err}
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() && CheckName(e.Name()) == nil {
			out = append(out, e.Name())
		}
	}
	slices.Sort(out)
	return out, nil
}

// Remove removes a volume and its data. Not there is not an error. A volume that is being populated is waited for.
//
// The rename is the point of no return: after it the volume is gone for everybody, and what is left of its data when
// removing that fails, or the process is killed, is Sweep's.
func (s *Store) Remove(name string) (err error) {
	if err := CheckName(name); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = &errdefs.Error{Op: "remove volume", What: name, Kind: errdefs.KindOf(err), Fix: errdefs.FixOf(err), Err: err}
		}
	}()
	id, err := randomHex(8)
	if err != nil {
		return err
	}
	unlock, err := s.lockVolume(name)
	if errdefs.Is(err, errdefs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	u := undo.New("volume.remove")
	if err := u.Do("rename", func() error {
		if err := os.Rename(filepath.Join(s.dir, name), filepath.Join(s.dir, gonePrefix+id)); err != nil {
			return err
		}
		return s.syncDir(s.dir)
	}, nil); err != nil {
		return err
	}
	return u.Do("data", func() error { return s.discard(gonePrefix + id) }, nil)
}

// project returns the project id of the volume in dir, 0 when it has none or its record cannot be read.
func project(dir string) uint32 {
	v := &Volume{}
	b, err := readBounded(filepath.Join(dir, recordFile), maxRecord)
	if err != nil || json.Unmarshal(b, v) != nil {
		return 0
	}
	return v.Project
}

// Sweep removes what killed processes left of volumes that they were making or removing.
func (s *Store) Sweep() error {
	// Everything that is made is made under this lock, so that a hidden volume seen now belongs to nobody, or is being
	// removed: then two remove it.
	unlock, err := lock(filepath.Join(s.dir, lockFile))
	if err != nil {
		return &errdefs.Error{Op: "sweep the volumes", Kind: errdefs.KindOf(err), Err: err}
	}
	defer unlock()
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return &errdefs.Error{Op: "sweep the volumes", Kind: errdefs.KindOf(err), Err: err}
	}
	var errs []error
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), newPrefix) && s.busy(e.Name()) {
			continue
		}
		if strings.HasPrefix(e.Name(), newPrefix) || strings.HasPrefix(e.Name(), gonePrefix) {
			errs = append(errs, s.discard(e.Name()))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return &errdefs.Error{Op: "sweep the volumes", Kind: errdefs.KindOf(err), Err: err}
	}
	return nil
}

// busy reports whether somebody is filling the volume that is being made in name.
func (s *Store) busy(name string) bool {
	fd, err := unix.Open(filepath.Join(s.dir, name, lockFile), unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd) //nolint:errcheck // gives the lock back
	return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) == unix.EWOULDBLOCK
}

// lockVolume takes the volume's own lock. NotFound when the volume is not there, or went while we waited.
func (s *Store) lockVolume(name string) (unlock func(), err error) {
	for {
		dir := filepath.Join(s.dir, name)
		var before, after unix.Stat_t
		if err := unix.Stat(dir, &before); err != nil {
			return nil, &os.PathError{Op: "stat", Path: dir, Err: err}
		}
		unlock, err := lock(filepath.Join(dir, lockFile))
		if err != nil {
			return nil, err
		}
		// The lock may be that of a volume of the same name that was removed while we waited for it.
		if err := unix.Stat(dir, &after); err != nil {
			unlock()
			return nil, &os.PathError{Op: "stat", Path: dir, Err: err}
		}
		if before.Ino == after.Ino && before.Dev == after.Dev {
			return unlock, nil
		}
		unlock()
	}
}

// lock takes an flock. The returned function gives it back, once.
func lock(path string) (unlock func(), err error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	for {
		switch err := unix.Flock(fd, unix.LOCK_EX); err {
		case nil:
			return sync.OnceFunc(func() { _ = unix.Close(fd) }), nil
		case unix.EINTR:
		default:
			_ = unix.Close(fd)
			return nil, &os.PathError{Op: "lock", Path: path, Err: err}
		}
	}
}

// writeRecord writes the record into the volume's directory: written, synced, renamed, and the directory synced.
func (s *Store) writeRecord(dir string, v *Volume) error {
	b, err := json.MarshalIndent(v, "", "\t")
	if err != nil {
		return err
	}
	if len(b) > maxRecord {
		return &errdefs.Error{Kind: errdefs.InvalidArgument, Why: "the labels are longer than 1 MiB"}
	}
	return s.writeFile(filepath.Join(dir, recordFile), append(b, '\n'))
}

// writeFile replaces a file: written beside its place, synced, renamed, and the directory synced.
func (s *Store) writeFile(path string, b []byte) error {
	dir := filepath.Dir(path)
	tmp := filepath.Join(dir, "."+filepath.Base(path))
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil && !s.volatile {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return err
	}
	return s.syncDir(dir)
}

func (s *Store) syncDir(path string) error {
	if s.volatile {
		return nil
	}
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
	var b bytes.Buffer
	n, err := b.ReadFrom(io.LimitReader(f, limit+1))
	if err == nil && n > limit {
		err = &os.PathError{Op: "read", Path: path, Err: unix.EFBIG}
	}
	return b.Bytes(), err
}

func randomHex(n int) (string, error) {
	b := make([]byte, n)
	_, err := rand.Read(b)
	return hex.EncodeToString(b), err
}
