package engine

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/image"
	"github.com/onggi/onggi/network"
	"github.com/onggi/onggi/pathrs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// The ledger: every byte below the root has an owner, found out by where it lies. measure walks the root once, as du(1)
// does, and asks no file for its size twice, so the sum of all owners is what du says.

// Usage is the disk usage of the store.
type Usage struct {
	Root       string
	Images     []ImageUsage
	Containers []ContainerUsage
	Volumes    []VolumeUsage
	Removals   []RemovalUsage
	ImageBytes int64 // of all blobs and layers that an image needs
	TrashBytes int64 // of what only the trash needs, its records included
	Store      int64 // records, indexes, locks and directories of the store itself
	Steps      int   // of the build cache
	Build      int64 // of the build cache: its own files, and layers and blobs that no image needs
	Partials   int   // transfers that were broken off and can be resumed, and those that run
	Partial    int64 // what of them is on the disk
	Unowned    int64 // of what no record needs, or what is just coming in; system prune removes what is not
	Unknown    []string
	Total      int64
}

// ImageUsage is one image. Size is that of its blobs and layers on disk, Shared the part of it that other images (or the
// trash) need as well.
type ImageUsage struct {
	ID           digest.Digest
	Names        []string
	Created      time.Time
	Size, Shared int64
	Containers   int // that were made from it
}

// ContainerUsage is one container.
type ContainerUsage struct {
	Container
	Layer, Log, Record int64
}

// Size is all that the container takes.
func (c ContainerUsage) Size() int64 { return c.Layer + c.Log + c.Record }

// VolumeUsage is one volume. Links is how many containers use it, those in the trash included.
type VolumeUsage struct {
	Name      string
	Anonymous bool
	Labels    map[string]string
	Created   time.Time
	Links     int
	Size      int64
}

// RemovalUsage is one removal in the trash. Size is what emptying it alone gives back.
type RemovalUsage struct {
	Removal
	Size int64
}

// ledger is bytes on disk by owner: a kind and a name.
type ledger struct {
	of      map[owner]int64
	unknown []string
	seen    map[[2]uint64]bool // files with several names
}

type owner struct{ kind, name string }

func (l *ledger) total() (n int64) {
	for _, b := range l.of {
		n += b
	}
	return n
}

// ownerOf says to whom a path below the root belongs, and whether that is so for all that is below it.
func ownerOf(rel string) (o owner, all bool) {
	p := strings.Split(rel, "/")
	store := owner{"store", ""}
	switch p[0] {
	case "images":
		switch {
		case len(p) >= 2 && p[1] == "trash":
			if len(p) == 2 {
				return store, false
			}
			return owner{"trash", p[2]}, true
		case len(p) == 2 && p[1] == "ingest":
			return store, false
		case len(p) > 2 && p[1] == "ingest" && (strings.HasSuffix(p[2], ".part") || strings.Contains(p[2], ".map")):
			return owner{"partial", ""}, true
		case len(p) > 2 && p[1] == "ingest":
			return owner{"coming", ""}, true
		case len(p) == 4 && p[1] == "blobs":
			return owner{"blob", p[2] + ":" + p[3]}, true
		case len(p) >= 2 && p[1] == "lists":
			return store, true
		case len(p) >= 2 && !slices.Contains([]string{"blobs", "leases", "lock", "oci-layout", "index.json", "index.json.new"}, p[1]):
			return owner{"unknown", rel}, true
		}
		return store, false
	case "snapshots":
		switch {
		case len(p) < 2 || p[1] == "empty" || p[1] == "locks" || p[1] == "chains":
			return store, len(p) > 2
		case p[1] == "layers" && len(p) == 4:
			return owner{"layer", p[2] + ":" + p[3]}, true
		case p[1] == "containers" && len(p) == 3:
			return owner{"upper", p[2]}, true
		case p[1] == "ingest" || p[1] == "trash":
			if len(p) == 2 {
				return store, false
			}
			return owner{"coming", ""}, true
		case p[1] == "layers" || p[1] == "containers":
			return store, false
		}
		return owner{"unknown", rel}, true
	case "containers":
		switch {
		case len(p) == 2:
			return owner{"record", p[1]}, false
		case len(p) == 3 && (p[2] == "log" || strings.HasPrefix(p[2], "log.")):
			return owner{"log", p[1]}, true
		case len(p) > 2:
			return owner{"record", p[1]}, true
		}
		return store, false
	case "logs": // of containers whose records are in the run root
		if len(p) == 1 {
			return store, false
		}
		id, _, _ := strings.Cut(p[1], ".")
		return owner{"log", id}, true
	case "build":
		return owner{"build", ""}, true
	case "trash":
		if len(p) == 1 {
			return store, false
		}
		return owner{"trash", strings.TrimPrefix(p[1], halfPrefix)}, true
	case "volumes":
		if len(p) == 1 || p[1] == "lock" {
			return store, false
		}
		if p[1] == ".trash" {
			if len(p) == 2 {
				return store, false
			}
			return owner{"trash", p[2]}, true
		}
		if strings.HasPrefix(p[1], ".") {
			return owner{"coming", ""}, true
		}
		return owner{"volume", p[1]}, true
	case ".", "version", "version.new", "limits.json", "limits.json.new", "images.lock":
		return store, false
	case "names", "network", "secrets", "configs", "events":
		return store, true
	}
	return owner{"unknown", rel}, true
}

// measure walks the root.
func (e *Engine) measure() (*ledger, error) {
	l := &ledger{of: map[owner]int64{}, seen: map[[2]uint64]bool{}}
	root, err := pathrs.OpenRoot(e.o.Root)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return nil, err
	}
	defer root.Close()
	o, all := ownerOf(".")
	if err := l.dir(root, ".", o, all); err != nil {
		return nil, &errdefs.Error{Op: "measure", What: e.o.Root, Kind: errdefs.KindOf(err), Err: err}
	}
	return l, nil
}

// maxMeasured bounds the directories that one walk goes down; a process can nest them without bound.
const maxMeasured = 4096

func (l *ledger) dir(d *os.File, rel string, o owner, all bool) error {
	if strings.Count(rel, "/") > maxMeasured {
		return &errdefs.Error{Op: "measure", What: rel, Kind: errdefs.Exhausted, Why: "its directories are nested too deeply"}
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(d.Fd()), &st); err != nil {
		return err
	}
	l.of[o] += st.Blocks * 512
	for {
		names, err := d.Readdirnames(1024)
		if len(names) == 0 || errors.Is(err, fs.ErrNotExist) {
			return nil // the end, or removed meanwhile; io.EOF is how Readdirnames says the first
		}
		for _, n := range names {
			path := n
			if rel != "." {
				path = rel + "/" + n
			}
			to, whole := o, all
			if !all {
				if to, whole = ownerOf(path); to.kind == "unknown" {
					l.unknown = append(l.unknown, path)
				}
			}
			if err := unix.Fstatat(int(d.Fd()), n, &st, unix.AT_SYMLINK_NOFOLLOW); err == unix.ENOENT {
				continue
			} else if err != nil {
				return &os.PathError{Op: "stat", Path: path, Err: err}
			}
			if st.Mode&unix.S_IFMT != unix.S_IFDIR {
				if id := [2]uint64{uint64(st.Dev), st.Ino}; st.Nlink > 1 {
					if l.seen[id] {
						continue
					}
					l.seen[id] = true
				}
				l.of[to] += st.Blocks * 512
				continue
			}
			fd, err := pathrs.Openat2(int(d.Fd()), n, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0, pathrs.NoSymlinks|unix.RESOLVE_NO_XDEV)
			switch err {
			case nil:
			case unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.EXDEV:
				continue // exchanged meanwhile, or another file system
			default:
				return &os.PathError{Op: "open", Path: path, Err: err}
			}
			sub := os.NewFile(uintptr(fd), n)
			err = l.dir(sub, path, to, whole)
			_ = sub.Close()
			if err != nil {
				return err
			}
		}
	}
}

// Usage measures the store.
func (e *Engine) Usage(ctx context.Context) (*Usage, error) {
	u := &Usage{Root: e.o.Root}
	l, err := e.measure()
	if err != nil {
		return nil, err
	}
	u.Total, u.Unknown = l.total(), l.unknown
	of := func(kind, name string) int64 {
		n := l.of[owner{kind, name}]
		delete(l.of, owner{kind, name})
		return n
	}
	u.Store, u.Partial = of("store", ""), of("partial", "")

	records, err := e.records()
	if err != nil {
		return nil, err
	}
	users, err := e.volumeUsers(nil)
	if err != nil {
		return nil, err
	}
	made := map[digest.Digest]int{}
	for _, r := range records {
		made[r.ImageID]++
		u.Containers = append(u.Containers, ContainerUsage{Container: r.Container, Layer: of("upper", r.ID), Log: of("log", r.ID), Record: of("record", r.ID)})
	}
	slices.SortFunc(u.Containers, func(a, b ContainerUsage) int { return b.Created.Compare(a.Created) })
	removals, err := e.Removals()
	if err != nil {
		return nil, err
	}
	if u.Partial > 0 {
		c, err := e.Content()
		if err != nil {
			return nil, err
		}
		list, err := c.Partials()
		if err != nil {
			return nil, err
		}
		u.Partials = len(list)
	}
	u.Build = of("build", "")
	trash := map[string][]digest.Digest{}
	if exists(filepath.Join(e.o.Root, "images")) {
		if trash, err = e.imageUsage(ctx, u, l, made); err != nil {
			return nil, err
		}
	}
	for _, r := range removals {
		x := RemovalUsage{Removal: *r, Size: of("trash", r.ID)}
		ids, err := e.trashedIDs(r.ID)
		if err != nil {
			return nil, err
		}
		for _, id := range ids {
			x.Size += of("upper", id)
		}
		u.TrashBytes += x.Size
		x.Size += l.exclusive(trash, r.ID)
		u.Removals = append(u.Removals, x)
	}
	// What only removals need, by however many.
	for _, refs := range trash {
		for _, d := range refs {
			u.TrashBytes += of("blob", string(d)) + of("layer", string(d))
		}
	}
	if exists(filepath.Join(e.o.Root, "volumes")) {
		store, err := e.Volumes()
		if err != nil {
			return nil, err
		}
		list, err := store.List()
		if err != nil {
			return nil, err
		}
		for _, v := range list {
			u.Volumes = append(u.Volumes, VolumeUsage{
				Name: v.Name, Anonymous: v.Anonymous, Labels: v.Labels, Created: v.Created, Links: len(users[v.Name]), Size: of("volume", v.Name),
			})
		}
		slices.SortFunc(u.Volumes, func(a, b VolumeUsage) int { return strings.Compare(a.Name, b.Name) })
	}
	u.Unowned = l.total()
	return u, nil
}

// imageUsage fills in the images, and takes what they need out of the ledger. It returns what the trash needs.
func (e *Engine) imageUsage(ctx context.Context, u *Usage, l *ledger, made map[digest.Digest]int) (map[string][]digest.Digest, error) {
	s, err := e.Images()
	if err != nil {
		return nil, err
	}
	needs, trash, err := s.Needs(ctx)
	if err != nil {
		return nil, err
	}
	list, err := s.List()
	if err != nil {
		return nil, err
	}
	users := map[digest.Digest]int{}
	for _, refs := range needs {
		for _, d := range refs {
			users[d]++
		}
	}
	for _, refs := range trash {
		for _, d := range refs {
			users[d]++
		}
	}
	size := func(d digest.Digest) int64 { return l.of[owner{"blob", string(d)}] + l.of[owner{"layer", string(d)}] }
	for _, img := range list {
		x := ImageUsage{ID: img.ID, Created: img.Created, Containers: made[img.ID]}
		for _, n := range img.Names {
			x.Names = append(x.Names, n.Familiar())
		}
		for _, d := range needs[img.ID] {
			x.Size += size(d)
			if users[d] > 1 {
				x.Shared += size(d)
			}
		}
		u.Images = append(u.Images, x)
	}
	for _, refs := range needs {
		for _, d := range refs {
			u.ImageBytes += size(d)
			delete(l.of, owner{"blob", string(d)})
			delete(l.of, owner{"layer", string(d)})
		}
	}
	if !exists(e.buildDir()) {
		return trash, nil
	}
	built, err := e.builtLayers()
	if err != nil {
		return nil, err
	}
	for _, d := range built {
		u.Build += size(d)
		delete(l.of, owner{"blob", string(d)})
		delete(l.of, owner{"layer", string(d)})
	}
	c, err := e.BuildCache()
	if err != nil {
		return nil, err
	}
	records, err := c.List()
	u.Steps = len(records)
	return trash, err
}

// exclusive is the bytes that only the removal id needs.
func (l *ledger) exclusive(trash map[string][]digest.Digest, id string) (n int64) {
	for _, d := range trash[id] {
		alone := true
		for other, refs := range trash {
			alone = alone && (other == id || !slices.Contains(refs, d))
		}
		if alone {
			n += l.of[owner{"blob", string(d)}] + l.of[owner{"layer", string(d)}]
		}
	}
	return n
}

// Plan is what a prune would do. Its parts are in the order in which they are done.
type Plan struct {
	Containers []ContainerUsage
	Volumes    []VolumeUsage
	Images     []ImageUsage
	Networks   []*network.Network
	Removals   []RemovalUsage // of the trash
	TrashBytes int64          // of all of them together
	Partials   int            // broken transfers; those that run stay
	Partial    int64
	Unowned    int64
}

// Empty says that there is nothing to do.
func (p *Plan) Empty() bool {
	return len(p.Containers)+len(p.Volumes)+len(p.Images)+len(p.Networks)+len(p.Removals) == 0 && p.Unowned+p.Partial == 0
}

// PruneOptions say what a prune removes.
type PruneOptions struct {
	Containers bool // those that do not run
	Images     bool // those without a name that no container uses
	AllImages  bool // those with a name, too
	Volumes    bool // anonymous ones that no container uses; Until does not count for them
	AllVolumes bool // those with a name, too
	Networks   bool // those of users that no container uses now, one that goes included: it may come back
	Trash      bool // what earlier removals left in the trash
	Unowned    bool // what nobody needs, and transfers that were broken off
	// Until: only what was made before; zero is everything. Label: only what has (or with a leading "!" has not) the label
	// KEY or KEY=VALUE; all of them must be so.
	Until time.Time
	Label []string
}

// PlanPrune says what Prune would do now.
func (e *Engine) PlanPrune(ctx context.Context, o PruneOptions) (*Plan, error) {
	u, err := e.Usage(ctx)
	if err != nil {
		return nil, err
	}
	p := &Plan{}
	kept := map[digest.Digest]bool{} // images of the containers that stay
	for _, c := range u.Containers {
		if o.Containers && (c.Status == Exited || c.Status == Created || c.Status == Dead) && o.Chosen(c.Created, c.Config.Labels) {
			p.Containers = append(p.Containers, c)
		} else {
			kept[c.ImageID] = true
		}
	}
	if o.Images || o.AllImages {
		s, err := e.Images()
		if err != nil {
			return nil, err
		}
		for _, i := range u.Images {
			if kept[i.ID] || len(i.Names) > 0 && !o.AllImages {
				continue
			}
			var labels map[string]string
			if len(o.Label) > 0 {
				img, err := s.Get(string(i.ID))
				if errdefs.Is(err, errdefs.NotFound) {
					continue // removed meanwhile
				}
				if err != nil {
					return nil, err
				}
				labels = img.Config.Config.Labels
			}
			if o.Chosen(i.Created, labels) {
				p.Images = append(p.Images, i)
			}
		}
	}
	if o.Volumes || o.AllVolumes {
		var going []string
		for _, c := range p.Containers {
			going = append(going, c.ID)
		}
		users, err := e.volumeUsers(going)
		if err != nil {
			return nil, err
		}
		for _, v := range u.Volumes {
			if len(users[v.Name]) == 0 && (v.Anonymous || o.AllVolumes) && o.labelled(v.Labels) {
				p.Volumes = append(p.Volumes, v)
			}
		}
	}
	if o.Networks {
		if p.Networks, err = e.UnusedNetworks(func(n *network.Network) bool { return o.Chosen(n.Created, n.Labels) }); err != nil {
			return nil, err
		}
	}
	if o.Trash {
		p.Removals, p.TrashBytes = u.Removals, u.TrashBytes
	}
	if o.Unowned {
		p.Unowned, p.Partials, p.Partial = u.Unowned, u.Partials, u.Partial
	}
	return p, nil
}

// Chosen says whether what was made then, with these labels, passes the filters Until and Label.
func (o *PruneOptions) Chosen(created time.Time, labels map[string]string) bool {
	return (o.Until.IsZero() || created.Before(o.Until)) && o.labelled(labels)
}

func (o *PruneOptions) labelled(labels map[string]string) bool {
	for _, want := range o.Label {
		want, not := strings.CutPrefix(want, "!")
		key, value, withValue := strings.Cut(want, "=")
		got, has := labels[key]
		if has && withValue {
			has = got == value
		}
		if has == not {
			return false
		}
	}
	return true
}

// Prune does what the plan says. With to, images, containers and volumes go into the trash; without, they are deleted at once.
// What has come into use since the plan was made stays.
func (e *Engine) Prune(ctx context.Context, p *Plan, to *Removal) (*Pruned, error) {
	done := &Pruned{}
	var errs []error
	for _, c := range p.Containers {
		var err error
		if to != nil {
			err = e.DiscardContainer(ctx, c.ID, to)
		} else {
			err = e.Remove(ctx, c.ID, false, false)
		}
		switch {
		case err == nil:
			done.Containers = append(done.Containers, c.ID)
		case !errdefs.Is(err, errdefs.NotFound) && !errdefs.Is(err, errdefs.Conflict):
			errs = append(errs, err)
		}
	}
	var err error
	done.Volumes, err = e.pruneVolumes(p.Volumes, to)
	errs = append(errs, err)
	if len(p.Images) > 0 {
		done.Images, err = e.pruneImages(ctx, p, to)
		errs = append(errs, err)
	}
	for _, n := range p.Networks {
		switch _, err := e.RemoveNetwork(ctx, n.ID); {
		case err == nil:
			done.Networks = append(done.Networks, n.Name)
		case !errdefs.Is(err, errdefs.NotFound) && !errdefs.Is(err, errdefs.Conflict):
			errs = append(errs, err)
		}
	}
	if len(p.Removals) > 0 {
		errs = append(errs, e.EmptyTrash(ctx, func(r *Removal) bool {
			return slices.ContainsFunc(p.Removals, func(x RemovalUsage) bool { return x.ID == r.ID })
		}))
	}
	if p.Partial > 0 {
		c, err := e.Content()
		if err == nil {
			err = c.DropPartials(ctx, 0)
		}
		errs = append(errs, err)
	}
	if p.Unowned > 0 || to == nil {
		errs = append(errs, e.Sweep(ctx))
	}
	return done, errors.Join(errs...)
}

// Pruned is what a prune has removed.
type Pruned struct {
	Containers []string // ids
	Volumes    []string // names
	Networks   []string // names
	Images     []image.Removed
}

func (e *Engine) pruneImages(ctx context.Context, p *Plan, to *Removal) ([]image.Removed, error) {
	s, err := e.Images()
	if err != nil {
		return nil, err
	}
	inUse, unlock, err := e.imagesInUse()
	if err != nil {
		return nil, err
	}
	defer unlock()
	chosen := func(img *image.Image) bool {
		return slices.ContainsFunc(p.Images, func(x ImageUsage) bool { return x.ID == img.ID && len(x.Names) == len(img.Names) })
	}
	if to == nil {
		return s.Prune(ctx, chosen, inUse, nil)
	}
	return s.Prune(ctx, chosen, inUse, &image.Disposal{ID: to.ID, Command: to.Command, Expires: to.Expires})
}
