package launch

import (
	"os"
	"path"

	runspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// unrecord takes back what record has made, once the process is gone.
func (c *Container) unrecord() error {
	if err := c.detachRoot(); err != nil {
		return err
	}
	return removeState(c.root, c.record.ID)
}

// ownMounts reports whether the container has a mount namespace of its own, which takes its mounts away with it.
func (r *record) ownMounts() bool {
	for _, n := range r.Namespaces {
		if n.Type == runspec.MountNamespace {
			return n.Path == ""
		}
	}
	return false
}

// detachRoot takes the root, and all that is mounted in it, out of a mount namespace that is not the container's own: out
// of this process's by umount2(2), out of any other by the removal of the directory, which takes the mounts on it away
// in all namespaces but the remover's (rename(2) and rmdir(2) since Linux 3.18). Nothing when there is no such directory.
func (c *Container) detachRoot() error {
	place := path.Join(c.root, c.record.ID, placeDir)
	for {
		err := unix.Unmount(place, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err == unix.ENOENT {
			return nil
		}
		if err != nil && err != unix.EINVAL { // nothing is mounted there
			return &os.PathError{Op: "unmount", Path: place, Err: err}
		}
		switch err := unix.Rmdir(place); err {
		case nil, unix.ENOENT:
			return nil
		case unix.EBUSY: // the image of a creator that was killed has attached it just now; it ends at its next step
		default:
			return &os.PathError{Op: "rmdir", Path: place, Err: err}
		}
	}
}
