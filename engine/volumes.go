package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/mount"
	"github.com/onggi/onggi/pathrs"
	"github.com/onggi/onggi/spec"
	"github.com/onggi/onggi/volume"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// sources are what the container's mounts bind, found or made by ensureVolumes.
type sources struct {
	paths map[string]string // by place in the container: what is bound instead of what the mount's source says
	open  []*os.File        // what those of the form /proc/PID/fd/N stand for
	made  []string          // directories of -v that were not there
}

// close gives the handles back: the container has what it was given.
func (s *sources) close() {
	for _, f := range s.open {
		_ = f.Close()
	}
	s.open = nil
}

// unmake removes the directories that were made, as far as they are still empty.
func (s *sources) unmake() error {
	var errs []error
	for i := len(s.made) - 1; i >= 0; i-- {
		if err := os.Remove(s.made[i]); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
			errs = append(errs, err)
		}
	}
	s.made = nil
	return errors.Join(errs...)
}

// hand makes an open file the source of the mount at target, for a runtime that looks while this process waits.
func (s *sources) hand(target string, f *os.File) {
	s.open = append(s.open, f)
	s.paths[target] = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())
}

// ensureVolumes makes the container's volumes and the directories of -v, and copies the image's content into volumes
// that are used for the first time.
func (h *held) ensureVolumes(v *view) (s *sources, err error) {
	s = &sources{paths: map[string]string{}}
	defer func() {
		if err != nil {
			s.close()
			err = errors.Join(err, s.unmake())
		}
	}()
	mounts, err := h.mounts()
	if err != nil {
		return s, err
	}
	for _, m := range mounts {
		switch m.Type {
		case "bind":
			if s.made, err = bindSource(m, s.made); err != nil {
				return s, err
			}
			if err := checkPropagation(m); err != nil {
				return s, err
			}
		case "volume":
			if err := h.ensureVolume(m, v, s); err != nil {
				return s, err
			}
		}
	}
	return s, nil
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

// ensureVolume makes the volume of a mount if it is not there, mounts it if it is one that is mounted, copies the image's
// content into it when that is due, and says what to bind.
func (h *held) ensureVolume(m spec.Mount, v *view, s *sources) error {
	store, err := h.e.Volumes()
	if err != nil {
		return err
	}
	anonymous := h.anonymous(m.Source)
	if anonymous && h.rec.Config.AutoRemove {
		store = store.Volatile()
	}
	vol, err := store.Get(m.Source)
	switch {
	case err != nil && anonymous:
		vol, err = store.CreateAnonymous(m.Source, m.Driver, m.Labels, m.DriverOptions)
	case err != nil || !anonymous && len(m.Labels)+len(m.DriverOptions) > 0: // it may be another one than is asked for
		vol, err = store.Create(m.Source, m.Driver, m.Labels, m.DriverOptions)
	}
	if err != nil {
		return err
	}
	how, err := volume.MountOf(vol.Options)
	if err != nil {
		return err
	}
	var root *os.File // of the volume, when it is not a directory of the store
	switch how.Type {
	case "":
		s.paths[m.Target] = vol.Path
	case "bind":
		if root, err = os.Open(how.Device); err != nil {
			return &errdefs.Error{
				Op: "mount volume", What: vol.Name, Kind: errdefs.KindOf(err), Why: "its device, the directory " + how.Device + ", cannot be opened", Err: err,
				Fix: "make it (mkdir -p " + how.Device + "), or make the volume again with another device",
			}
		}
		s.paths[m.Target] = how.Device
		s.open = append(s.open, root)
	default:
		if root, err = h.mountVolume(vol, how, m.Subpath); err != nil {
			return err
		}
		if s.hand(m.Target, root); m.Subpath != "" {
			return nil
		}
	}
	if !m.NoCopy && m.Subpath == "" && (root != nil || vol.Fresh) {
		if err := h.copyUp(m, v, store, vol, root); err != nil {
			return err
		}
	}
	if m.Subpath == "" {
		return nil
	}
	return h.subpath(m, vol, root, s)
}

// mountVolume mounts a volume that is a file system of its own, in this process's namespaces and not in the container's:
// a server is asked from the host's network. The result, all of it or a part, is attached to no mount namespace.
func (h *held) mountVolume(vol *volume.Volume, how volume.Mount, part string) (*os.File, error) {
	if len(h.rec.Config.Runtime) > 0 {
		return nil, &errdefs.Error{
			Op: "mount volume", What: vol.Name, Kind: errdefs.Unsupported, Why: "a volume of type " + how.Type + " needs Onggi's own runtime, which takes a mount that is nowhere on the host",
			Fix: "leave --runtime out, or mount it on the host and use a volume with --opt o=bind",
		}
	}
	if how.Type == "tmpfs" || how.Type == "ramfs" {
		// Each mount of it is another file system: two containers would see different data under one name.
		records, err := h.e.records()
		if err != nil {
			return nil, err
		}
		for _, r := range records {
			for _, name := range r.Volumes {
				if r.ID != h.rec.ID && r.Status == Running && name == vol.Name {
					return nil, &errdefs.Error{
						Op: "mount volume", What: vol.Name, Kind: errdefs.Conflict, Why: "container " + r.Config.Name + " uses it, and a volume of type " + how.Type + " is one container's at a time",
						Fix: "stop that one (onggi stop " + r.Config.Name + "), or share a volume on the disk",
					}
				}
			}
		}
	}
	options, err := resolveAddress(how)
	if err != nil {
		return nil, err
	}
	m := mount.Mount{Type: how.Type, Source: how.Device, Options: options}
	var root *os.File
	if part == "" {
		root, err = mount.Detached(m)
	} else {
		var parts []*os.File
		if parts, err = mount.Parts(m, nil, []string{part}); err == nil {
			root = parts[0]
		} else if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EXDEV) {
			return nil, badSubpath(vol, part, err)
		}
	}
	if err != nil {
		fix := errdefs.FixOf(err)
		if errors.Is(err, unix.ENODEV) && fix == "" {
			fix = "the kernel does not know the type " + how.Type + ": modprobe " + how.Type
		}
		return nil, &errdefs.Error{Op: "mount volume", What: vol.Name, Kind: errdefs.KindOf(err), Err: err, Fix: fix}
	}
	return root, nil
}

// resolveAddress puts the address of a server's name into option addr, which is all that the kernel takes: mount.nfs(8)
// and mount.cifs(8) do this for mount(8).
func resolveAddress(how volume.Mount) ([]string, error) {
	if how.Type != "nfs" && how.Type != "nfs4" && how.Type != "cifs" && how.Type != "smb3" {
		return how.Options, nil
	}
	options := slices.Clone(how.Options)
	i := slices.IndexFunc(options, func(o string) bool { return strings.HasPrefix(o, "addr=") })
	if i < 0 {
		host, _, ok := strings.Cut(how.Device, ":/")
		if how.Type == "cifs" || how.Type == "smb3" {
			host, _, ok = strings.Cut(strings.TrimPrefix(how.Device, "//"), "/")
		}
		if !ok || host == "" {
			return nil, invalid("--opt", "o="+strings.Join(options, ","), "nobody says which server: addr= is missing, and the device names none",
				"write --opt o=addr=SERVER,... or --opt device=SERVER:/EXPORT")
		}
		i, options = len(options), append(options, "addr="+strings.Trim(host, "[]"))
	}
	name := strings.TrimPrefix(options[i], "addr=")
	if _, err := netip.ParseAddr(name); err == nil {
		return options, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", name)
	if err != nil || len(found) == 0 {
		return nil, &errdefs.Error{Op: "resolve", What: "addr=" + name, Kind: errdefs.Unavailable, Err: err, Fix: "write the server's address: --opt o=addr=192.0.2.7"}
	}
	options[i] = "addr=" + found[0].Unmap().String()
	return options, nil
}

// copyUp copies what the image has at the mount's place: into a volume of the store the first time, into one that is
// mounted from elsewhere when it is empty, as docker does.
func (h *held) copyUp(m spec.Mount, v *view, store *volume.Store, vol *volume.Volume, root *os.File) error {
	src, err := v.dir(m.Target)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("copy the image's %s into volume %s: %w", m.Target, vol.Name, err)
	}
	defer src.Close()
	if root == nil {
		return store.Populate(vol, int(src.Fd()))
	}
	if err := volume.Fill(int(root.Fd()), int(src.Fd())); err != nil {
		return &errdefs.Error{Op: "copy the image's content into volume", What: vol.Name, Kind: errdefs.KindOf(err), Err: err, Fix: "--mount type=volume,...,volume-nocopy leaves the copy out"}
	}
	return nil
}

func badSubpath(vol *volume.Volume, part string, err error) error {
	e := &errdefs.Error{Op: "mount", What: "volume " + vol.Name + ", volume-subpath=" + part, Kind: errdefs.KindOf(err), Why: "it leads out of the volume, or cannot be opened", Err: err}
	if errors.Is(err, fs.ErrNotExist) {
		e.Why, e.Fix = "there is no such file or directory in the volume", "make it first: onggi run --rm -v "+vol.Name+":/v IMAGE mkdir -p /v/"+part
	}
	return e
}

// subpath opens a part of a volume: whoever writes to the volume may change what its name leads to, but not what is open,
// and no link leads out of the volume (CVE-2023-3676 and its like).
func (h *held) subpath(m spec.Mount, vol *volume.Volume, root *os.File, s *sources) error {
	if len(h.rec.Config.Runtime) > 0 {
		return &errdefs.Error{
			Op: "mount", What: "volume " + vol.Name + ", volume-subpath=" + m.Subpath, Kind: errdefs.Unsupported,
			Why: "a part of a volume needs Onggi's own runtime, which takes it as an open file", Fix: "leave --runtime out",
		}
	}
	if root == nil {
		var err error
		if root, err = pathrs.OpenRoot(vol.Path); err != nil {
			return err
		}
		defer root.Close()
	}
	f, err := pathrs.OpenBeneath(root, m.Subpath, unix.O_PATH, 0)
	if err != nil {
		return badSubpath(vol, m.Subpath, err)
	}
	s.hand(m.Target, f)
	return nil
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

// idMaps fills in the maps of a bind with option idmap: the owner of the source, whom the files shall belong to, and the
// container's user change places.
func idMaps(m *spec.Mount, uid, gid uint32) error {
	if !m.IDMap || len(m.UIDs)+len(m.GIDs) > 0 {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Stat(m.Source, &st); err != nil {
		return &os.PathError{Op: "stat", Path: m.Source, Err: err}
	}
	m.UIDs, m.GIDs = exchange(st.Uid, uid), exchange(st.Gid, gid)
	return nil
}

// exchange maps a to b, b to a, and every other id to itself.
func exchange(a, b uint32) []runspec.LinuxIDMapping {
	const all = 1<<32 - 1 // the last id means none
	if a == b {
		return []runspec.LinuxIDMapping{{Size: all}}
	}
	low, high := min(a, b), max(a, b)
	out := []runspec.LinuxIDMapping{{ContainerID: low, HostID: high, Size: 1}, {ContainerID: high, HostID: low, Size: 1}}
	for _, r := range [][2]uint32{{0, low}, {low + 1, high}, {high + 1, all}} {
		if r[0] < r[1] {
			out = append(out, runspec.LinuxIDMapping{ContainerID: r[0], HostID: r[0], Size: r[1] - r[0]})
		}
	}
	slices.SortFunc(out, func(x, y runspec.LinuxIDMapping) int { return int(int64(x.ContainerID) - int64(y.ContainerID)) })
	return out
}

// volumeFlags adds what the options of a volume say of its mount: a bind takes the flags of the mount, and nothing of the
// file system.
func (h *held) volumeFlags(m *spec.Mount) error {
	if m.Type != "volume" {
		return nil
	}
	store, err := h.e.Volumes()
	if err != nil {
		return err
	}
	vol, err := store.Get(m.Source)
	if err != nil {
		return err
	}
	how, err := volume.MountOf(vol.Options)
	if err != nil || how.Type != "bind" {
		return err
	}
	if how.Plain {
		m.Recursive = "disabled"
	}
	for _, o := range how.Options {
		switch o {
		case "rw", "defaults":
		case "ro":
			m.ReadOnly = true
		case "private", "rprivate":
		default:
			m.Options = append(m.Options, o) // what is no flag of a mount is refused by its name
		}
	}
	return nil
}
