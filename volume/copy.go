package volume

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/pathrs"
	"github.com/onggi/onggi/sys"
	"github.com/onggi/onggi/undo"
	"golang.org/x/sys/unix"
)

// CreateFrom makes a volume of the store with content: fill writes it into the directory that it gets, which nobody else
// sees; the volume appears with one rename when that is done and synced. A volume that is here already must be empty and a
// directory of the store: it keeps its labels and options, and those given count for a new one only. AlreadyExists when it
// is not empty; fill's errors.
func (s *Store) CreateFrom(name string, labels, options map[string]string, fill func(*os.File) error) (_ *Volume, err error) {
	defer func() {
		if err != nil && errdefs.KindOf(err) != errdefs.AlreadyExists {
			err = &errdefs.Error{Op: "fill volume", What: name, Kind: errdefs.KindOf(err), Fix: errdefs.FixOf(err), Err: err}
		}
	}()
	if err := CheckName(name); err != nil {
		return nil, err
	}
	if err := CheckOptions(options); err != nil {
		return nil, err
	}
	if m, err := MountOf(options); err != nil || m.Type != "" {
		return nil, errors.Join(err, badOption("type", m.Type, "a volume that is mounted from elsewhere has its content there", "leave type, o and device out"))
	}
	_, err = s.Get(name)
	there := err == nil
	if err != nil && !errdefs.Is(err, errdefs.NotFound) {
		return nil, err
	}
	v := &Volume{Name: name, Labels: maps.Clone(labels), Options: maps.Clone(options)}
	if !there {
		v.Created = now()
		err := s.makeWith(v, fill)
		if err == nil {
			v.Path = filepath.Join(s.dir, name, dataDir)
			return v, nil
		}
		if !errors.Is(err, fs.ErrExist) { // else another process was faster
			return nil, err
		}
	}
	return s.fillExisting(name, fill)
}

// fillExisting puts content into an empty volume, as Populate does: aside, then with one rename.
func (s *Store) fillExisting(name string, fill func(*os.File) error) (_ *Volume, err error) {
	unlock, err := s.lockVolume(name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	v, err := s.read(name)
	if err != nil {
		return nil, err
	}
	if m, err := MountOf(v.Options); err != nil || m.Type != "" {
		return nil, &errdefs.Error{Kind: errdefs.Unsupported, Why: "it is mounted from elsewhere", Fix: "choose another name", Err: err}
	}
	dir, err := pathrs.OpenRoot(filepath.Join(s.dir, name))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	if empty, err := isEmpty(dir, dataDir); err != nil {
		return nil, err
	} else if !empty {
		return nil, &errdefs.Error{
			Op: "fill volume", What: name, Kind: errdefs.AlreadyExists, Why: "a volume of this name is here, and it is not empty",
			Fix: "remove it first (onggi volume rm " + name + "; onggi undo brings it back), or choose another name",
		}
	}
	u := undo.New("volume.fill")
	defer u.Undo(&err)
	if err := u.Do("content", func() error { return s.stage(dir, v.Project, fill) }, func() error { return pathrs.RemoveAll(dir, stagingDir) }); err != nil {
		return nil, err
	}
	if err := u.Do("place", func() error {
		if err := unix.Renameat(int(dir.Fd()), stagingDir, int(dir.Fd()), dataDir); err != nil {
			return err
		}
		return dir.Sync()
	}, nil); err != nil {
		return nil, err
	}
	u.Done()
	v.Fresh = false
	return v, u.Do("record", func() error { return s.writeRecord(dir.Name(), v) }, nil)
}

// stage makes content aside, in the directory of a volume.
func (s *Store) stage(dir *os.File, project uint32, fill func(*os.File) error) (err error) {
	if err := pathrs.RemoveAll(dir, stagingDir); err != nil { // of a process that was killed here
		return err
	}
	if err := unix.Mkdirat(int(dir.Fd()), stagingDir, 0o755); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, pathrs.RemoveAll(dir, stagingDir))
		}
	}()
	to, err := openDir(int(dir.Fd()), stagingDir, 0)
	if err != nil {
		return err
	}
	defer to.Close()
	if project != 0 { // what is written counts, and moves into the project's directory
		if err := sys.SetProject(int(to.Fd()), project); err != nil {
			return err
		}
	}
	if err := fill(to); err != nil {
		return err
	}
	if !s.volatile {
		if err := unix.Syncfs(int(to.Fd())); err != nil {
			return err
		}
	}
	return fits(to, project)
}

// fits is NoSpace when a project takes more than its bound: the kernel does not hold a process with CAP_SYS_RESOURCE to it.
func fits(dir *os.File, project uint32) error {
	if project == 0 {
		return nil
	}
	q, err := sys.ProjectQuota(int(dir.Fd()), project)
	if err == nil && q.Used > q.Limit {
		err = &errdefs.Error{
			Kind: errdefs.NoSpace, Why: fmt.Sprintf("the content takes %d bytes, and the volume has a size of %d", q.Used, q.Limit),
			Fix: "make it larger: remove it, and create it again with another --opt size=",
		}
	}
	return err
}

// Copy copies the tree below the directory handle src into the empty directory dst as it is, by reflink where the file
// system has that. No link in it is followed and no mount entered; sockets, which belong to a process, are left out. A
// tree that somebody changes meanwhile gives some state of each file.
func Copy(dst *os.File, src int) error {
	from, err := openDir(src, ".", 0)
	if err != nil {
		return err
	}
	defer from.Close()
	c := &copier{root: dst, links: map[inode]string{}}
	if err := c.directory(from, dst, ""); err != nil {
		return err
	}
	return c.finish(from, dst)
}

// copyContent copies a regular file: by reflink (FICLONE), or else what is no hole.
func copyContent(dst, src *os.File) error {
	if unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) == nil {
		return nil
	}
	st, err := src.Stat()
	if err != nil {
		return err
	}
	in := int(src.Fd())
	for at := int64(0); at < st.Size(); {
		data, err := unix.Seek(in, at, unix.SEEK_DATA)
		if err == unix.ENXIO {
			break // only a hole is left
		}
		if err != nil { // the file system does not know of holes
			data = at
		}
		hole, err := unix.Seek(in, data, unix.SEEK_HOLE)
		if err != nil {
			hole = st.Size()
		}
		if _, err := src.Seek(data, io.SeekStart); err != nil {
			return err
		}
		if _, err := dst.Seek(data, io.SeekStart); err != nil {
			return err
		}
		if n, err := io.CopyN(dst, src, hole-data); err == io.EOF && n >= 0 {
			return dst.Truncate(data + n) // it has become shorter meanwhile
		} else if err != nil {
			return err
		}
		at = hole
	}
	return dst.Truncate(st.Size())
}
