package volume

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/sys"
	"golang.org/x/sys/unix"
)

// A volume with option size is a project of its file system: its directory and all that is made in it carry a project
// id (FS_IOC_FSSETXATTR), and the file system bounds what all files of that id take together (quotactl(2)). A process
// that writes more gets EDQUOT, as on a full disk; one with CAP_SYS_RESOURCE, which a container has only when it is given
// it, is not held to it.

// firstProject is the lowest project id that is taken: what administrators give to projects of theirs are small numbers.
const firstProject = 1 << 30

// Usage returns how much a volume with a size holds and may hold, bytes. Unsupported for one without.
func (s *Store) Usage(v *Volume) (used, limit int64, err error) {
	if v.Project == 0 {
		return 0, 0, &errdefs.Error{Op: "measure volume", What: v.Name, Kind: errdefs.Unsupported, Why: "it has no size"}
	}
	d, err := os.Open(filepath.Join(s.dir, v.Name, dataDir))
	if err != nil {
		return 0, 0, err
	}
	defer d.Close()
	q, err := sys.ProjectQuota(int(d.Fd()), v.Project)
	return q.Used, q.Limit, err
}

// newProject returns a project id that no volume has. Precondition: the store's lock is held.
func (s *Store) newProject() (uint32, error) {
	taken := map[uint32]bool{}
	list, err := s.List()
	if err != nil {
		return 0, err
	}
	for _, v := range list {
		taken[v.Project] = true
	}
	trash, err := s.Trash()
	if err != nil {
		return 0, err
	}
	for _, t := range trash {
		for _, n := range t.Volumes {
			if v, err := s.Trashed(t.ID, n); err == nil {
				taken[v.Project] = true
			}
		}
	}
	for {
		var b [4]byte
		_, _ = rand.Read(b[:]) // never fails (Go 1.24)
		if id := firstProject | binary.LittleEndian.Uint32(b[:])>>2; !taken[id] {
			return id, nil
		}
	}
}

// limit makes a directory a project with a bound, and reads the bound back: not every file system that takes it keeps it.
func limit(dir string, project uint32, size int64) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	fd := int(d.Fd())
	err = sys.SetProject(fd, project)
	if err == nil {
		err = sys.SetProjectQuota(fd, project, size)
	}
	var q sys.Quota
	if err == nil {
		if q, err = sys.ProjectQuota(fd, project); err == nil && q.Limit < size {
			err = unix.ESRCH
		}
	}
	for _, e := range []error{unix.ENOTTY, unix.EOPNOTSUPP, unix.ENOSYS, unix.ESRCH, unix.EINVAL} {
		if errors.Is(err, e) {
			return &errdefs.Error{
				Op: "bound", What: "the size of " + dir, Kind: errdefs.Unsupported, Err: err,
				Why: "its file system has no project quotas (or the kernel is older than 5.14)",
				Fix: "put the store on an xfs mounted with -o prjquota, or an ext4 made with mkfs.ext4 -O quota,project and mounted with -o prjquota",
			}
		}
	}
	return err
}

// release takes the bound of a volume that is gone away; its id may be another's one day.
func (s *Store) release(project uint32) {
	if project == 0 {
		return
	}
	if d, err := os.Open(s.dir); err == nil {
		_ = sys.SetProjectQuota(int(d.Fd()), project, 0) // a bound without files is no harm
		_ = d.Close()
	}
}
