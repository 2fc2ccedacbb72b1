package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/onggi/onggi/spec"
	"golang.org/x/sys/unix"
)

// ensureVolumes makes the container's volumes and the directories of -v, and copies the image's content into volumes
// that are used for the first time. It returns the volumes' paths by name, and what takes back the directories made.
func (h *held) ensureVolumes(v *view) (paths map[string]string, undo func() error, err error) {
	var made []string
	undo = func() error {
		var errs []error
		for i := len(made) - 1; i >= 0; i-- {
			if err := os.Remove(made[i]); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, undo())
		}
	}()
	mounts, err := h.mounts()
	if err != nil {
		return nil, undo, err
	}
	for _, m := range mounts {
		switch m.Type {
		case "bind":
			if made, err = bindSource(m, made); err != nil {
				return nil, undo, err
			}
			if err := checkPropagation(m); err != nil {
				return nil, undo, err
			}
		case "volume":
			if paths == nil {
				paths = map[string]string{}
			}
			if paths[m.Source], err = h.ensureVolume(m, v); err != nil {
				return nil, undo, err
			}
		}
	}
	return paths, undo, nil
}

// mounts are the container's effective mounts, anonymous volumes by the names that the record gave them.
func (h *held) mounts() ([]spec.Mount, error) {
	mounts, err := spec.Effective(&h.rec.Config.Config, &h.rec.Image)
	for i := range mounts {
		if mounts[i].Type == "volume" {
			mounts[i].Source = h.rec.Volumes[mounts[i].Target]
		}
	}
	return mounts, err
}

func (h *held) anonymous(name string) bool {
	for _, a := range h.rec.Anonymous {
		if a == name {
			return true
		}
	}
	return false
}

func (h *held) ensureVolume(m spec.Mount, v *view) (string, error) {
	store, err := h.e.Volumes()
	if err != nil {
		return "", err
	}
	if h.anonymous(m.Source) && h.rec.Config.AutoRemove {
		store = store.Volatile()
	}
	vol, err := store.Get(m.Source)
	if err != nil {
		if h.anonymous(m.Source) {
			vol, err = store.EnsureAnonymous(m.Source)
		} else {
			vol, err = store.Ensure(m.Source, nil)
		}
		if err != nil {
			return "", err
		}
	}
	if !vol.Fresh || m.NoCopy {
		return vol.Path, nil
	}
	src, err := v.dir(m.Target)
	if errors.Is(err, fs.ErrNotExist) {
		return vol.Path, nil
	}
	if err != nil {
		return "", fmt.Errorf("copy the image's %s into volume %s: %w", m.Target, vol.Name, err)
	}
	defer src.Close()
	return vol.Path, store.Populate(vol, int(src.Fd()))
}

// bindSource checks that a bind's source is there, or makes it as -v does.
func bindSource(m spec.Mount, made []string) ([]string, error) {
	_, err := os.Stat(m.Source)
	if !errors.Is(err, fs.ErrNotExist) {
		return made, err
	}
	if !m.CreateSource {
		return made, noBindSource(m)
	}
	p := "/"
	for _, part := range strings.Split(strings.Trim(filepath.Clean(m.Source), "/"), "/") {
		p = filepath.Join(p, part)
		switch err := os.Mkdir(p, 0o755); {
		case err == nil:
			made = append(made, p)
		case !errors.Is(err, fs.ErrExist):
			return made, err
		}
	}
	return made, nil
}

// checkPropagation refuses shared and slave binds of what the host does not share: nothing would ever propagate.
func checkPropagation(m spec.Mount) error {
	want := strings.TrimPrefix(m.Propagation, "r")
	if want != "shared" && want != "slave" {
		return nil
	}
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, m.Source, 0, unix.STATX_MNT_ID, &st); err != nil {
		return fmt.Errorf("statx %s: %w", m.Source, err)
	}
	b, err := readBounded("/proc/self/mountinfo", 64<<20)
	if err != nil {
		return err
	}
	id := strconv.FormatUint(st.Mnt_id, 10)
	var at, optional string
	for _, l := range strings.Split(string(b), "\n") {
		// 36 35 98:0 /root /mount options optional... - type source superoptions (proc(5))
		f := strings.Fields(l)
		if len(f) < 10 || f[0] != id {
			continue
		}
		at = f[4]
		optional, _, _ = strings.Cut(strings.Join(f[6:], " "), "- ")
	}
	if strings.Contains(optional, "shared:") || want == "slave" && strings.Contains(optional, "master:") {
		return nil
	}
	return invalid(m.Source+":"+m.Target, "", fmt.Sprintf("path %s is mounted on %s but it is not a %s mount", m.Source, at, want),
		"share it first: mount --make-rshared "+at)
}

// removeVolumes removes the container's anonymous volumes, unless another container uses one by its name.
func (h *held) removeVolumes() error {
	if len(h.rec.Anonymous) == 0 {
		return nil
	}
	store, err := h.e.Volumes()
	if err != nil {
		return err
	}
	used, err := h.e.usedVolumes(h.rec.ID)
	if err != nil {
		return err
	}
	if h.rec.Config.AutoRemove {
		store = store.Volatile()
	}
	for _, name := range h.rec.Anonymous {
		if !used[name] {
			if err := store.Remove(name); err != nil {
				return err
			}
		}
	}
	return nil
}
