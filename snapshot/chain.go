package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "crypto/sha512" // diffIDs may use it
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sort"
	"strings"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/pathrs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// chain is how a list of layers is stacked.
type chain struct {
	Layers []digest.Digest `json:"layers"` // as in the image, bottom first
	Lower  []string        `json:"lower"`  // directories for overlayfs, topmost first, relative to the store
	Root   string          `json:"root"`   // the one of Lower, or one below, whose root has the metadata of "/"
	Fixed  []string        `json:"fixed,omitempty"`
}

const chainRecord = "chain.json"

// maxLower is how many lower directories overlayfs takes (OVL_MAX_STACK, fs/overlayfs/params.h).
const maxLower = 500

// chainID names a list of layers (image-spec, config.md, "Layer ChainID").
func chainID(layers []digest.Digest) string {
	id := ""
	for i, d := range layers {
		if i == 0 {
			id = string(d)
			continue
		}
		id = string(digest.FromString(id + " " + string(d)))
	}
	// 56 characters, whatever the algorithm of a single layer's diffID: short enough for a link that lies in its inode,
	// see Prepare.
	sum := sha256.Sum224([]byte(id))
	return hex.EncodeToString(sum[:])
}

func (s *Store) readChain(id string) (*chain, error) {
	c := new(chain)
	if err := readRecord(s.path(chainsDir, id, chainRecord), c); err != nil {
		return nil, err
	}
	return c, nil
}

// chain returns how layers are stacked, finding it out if nobody has.
func (s *Store) chain(ctx context.Context, layers []digest.Digest) (*chain, error) {
	id := chainID(layers)
	c, err := s.readChain(id)
	switch {
	case err == nil:
		return c, nil
	case errdefs.Is(err, errdefs.Corrupt): // it can be found out again
		if err := s.throwAway(chainsDir + "/" + id); err != nil {
			return nil, s.fail("remove a damaged record of how the layers are stacked", id, err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, s.fail("read how the layers are stacked", id, err)
	}
	c, dir, err := s.buildChain(ctx, layers, func(d digest.Digest) string { return s.path(layerPath(d)) })
	if err != nil {
		return nil, err
	}
	// What will stand on it must not outlive it in a crash. Batch does this with its one sync.
	if err := syncFile(dir.Name() + "/" + chainRecord); err != nil {
		return nil, errors.Join(s.fail("sync how the layers are stacked", id, err), s.drop(dir))
	}
	if err := s.commitChain(id, dir); err != nil {
		return nil, errors.Join(s.fail("keep how the layers are stacked", id, err), s.drop(dir))
	}
	return c, nil
}

// commitChain moves a chain that was built into place. Another process may have been faster: theirs is the same.
func (s *Store) commitChain(id string, dir *os.File) error {
	err := unix.Renameat2(unix.AT_FDCWD, dir.Name(), unix.AT_FDCWD, s.path(chainsDir, id), unix.RENAME_NOREPLACE)
	if err == unix.EEXIST {
		return s.drop(dir)
	}
	if err != nil {
		return err
	}
	return dir.Close()
}

// stacker finds out a chain.
type stacker struct {
	layers  []*Layer
	trees   []*os.File        // their fs, open
	implied []map[string]bool // of each layer
}

func (k *stacker) close() {
	for _, f := range k.trees {
		f.Close()
	}
}

// buildChain finds out how layers are stacked, in a directory in ingest/ that the caller commits or drops. at says
// where a layer lies.
func (s *Store) buildChain(ctx context.Context, layers []digest.Digest, at func(digest.Digest) string) (_ *chain, _ *os.File, err error) {
	c := &chain{Layers: layers}
	k := &stacker{}
	defer k.close()
	first := 0 // the lowest layer that is seen
	var paths []string
	for i, d := range layers {
		if slices.Contains(layers[i+1:], d) {
			continue // overlayfs takes a directory once; what the upper one says, the lower one says as well
		}
		l := new(Layer)
		if err := readRecord(at(d)+"/"+layerRecord, l); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				_, err = s.Layer(d)
			}
			return nil, nil, err
		}
		f, err := pathrs.OpenRoot(at(d) + "/fs")
		if err != nil {
			return nil, nil, s.fail("open the layer", string(d), err)
		}
		k.layers, k.trees, paths = append(k.layers, l), append(k.trees, f), append(paths, layerPath(d)+"/fs")
		implied := make(map[string]bool, len(l.Implied))
		for _, p := range l.Implied {
			implied[p] = true
		}
		k.implied = append(k.implied, implied)
		if l.Opaque {
			first = len(k.layers) - 1
		}
	}
	if len(paths) == 0 {
		c.Lower, c.Root = []string{emptyDir}, emptyDir
	} else {
		c.Lower = slices.Clone(paths[first:])
		slices.Reverse(c.Lower)
		// The root exists in every layer, an opaque one included; its metadata is that of the topmost which describes it.
		root := len(paths) - 1
		for root > 0 && k.implied[root]["."] {
			root--
		}
		c.Root = paths[root]
	}
	dir, err := s.ingest()
	if err != nil {
		return nil, nil, s.fail("find out how the layers are stacked in", s.dir, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.drop(dir))
		}
	}()
	if err := k.fix(ctx, c, first, dir); err != nil {
		return nil, nil, s.fail("find out how the layers are stacked in", s.dir, err)
	}
	if len(c.Fixed) > 0 {
		c.Lower = append([]string{chainsDir + "/" + chainID(layers) + "/fs"}, c.Lower...)
		c.Root = c.Lower[0]
	}
	if len(c.Lower) > maxLower {
		return nil, nil, &errdefs.Error{
			Op: "stack", What: fmt.Sprintf("%d layers", len(c.Lower)), Kind: errdefs.Unsupported,
			Why: fmt.Sprintf("overlayfs takes %d", maxLower), Fix: "squash the image: podman build --squash-all, for one",
		}
	}
	if err := writeRecord(dir.Name()+"/"+chainRecord, c); err != nil {
		return nil, nil, s.fail("find out how the layers are stacked in", s.dir, err)
	}
	return c, dir, nil
}

// fix makes the tree of directories whose metadata the stack of layers[first:] would get wrong.
func (k *stacker) fix(ctx context.Context, c *chain, first int, dir *os.File) error {
	fixes := map[string]*metadata{}
	for i := len(k.layers) - 1; i > 0 && i >= first; i-- {
		for p := range k.implied[i] {
			if err := ctx.Err(); err != nil {
				return err
			}
			if fixes[p] != nil {
				continue
			}
			top, from, err := k.lookup(p, first)
			if err != nil {
				return err
			}
			if from < 0 || from == top {
				continue
			}
			shown, err := readMetadata(k.trees[top], p)
			if err != nil {
				return err
			}
			want, err := readMetadata(k.trees[from], p)
			if err != nil {
				return err
			}
			if !shown.same(want) {
				fixes[p] = want
			}
		}
	}
	if len(fixes) == 0 {
		return nil
	}
	// What is on the way to them is shown by the new tree too, so it needs the right metadata as well.
	for p := range fixes {
		c.Fixed = append(c.Fixed, p)
	}
	slices.Sort(c.Fixed)
	for _, p := range c.Fixed {
		for a := p; a != "."; {
			if j := strings.LastIndexByte(a, '/'); j >= 0 {
				a = a[:j]
			} else {
				a = "."
			}
			if fixes[a] != nil {
				continue
			}
			top, from, err := k.lookup(a, first)
			if err != nil {
				return err
			}
			if from < 0 {
				from = top
			}
			m, err := readMetadata(k.trees[from], a)
			if err != nil {
				return err
			}
			fixes[a] = m
		}
	}
	paths := make([]string, 0, len(fixes))
	for p := range fixes {
		paths = append(paths, p)
	}
	sort.Strings(paths) // parents first
	if err := os.Mkdir(dir.Name()+"/fs", 0o700); err != nil {
		return err
	}
	root, err := pathrs.OpenRoot(dir.Name() + "/fs")
	if err != nil {
		return err
	}
	defer root.Close()
	for _, p := range paths {
		if p == "." {
			continue
		}
		d, err := pathrs.MkdirAll(root, p, 0o700)
		if err != nil {
			return err
		}
		d.Close()
	}
	for _, p := range slices.Backward(paths) {
		d, err := pathrs.OpenBeneath(root, p, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if err != nil {
			return err
		}
		err = fixes[p].set(d)
		d.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// lookup finds the directory p as overlayfs does: top is the topmost layer that has it, from the one that describes it,
// as if the layers had been unpacked one over the other; -1 if there is none.
func (k *stacker) lookup(p string, first int) (top, from int, err error) {
	top, from = -1, -1
	for i := len(k.layers) - 1; i >= 0; i-- {
		if i < first && p != "." {
			return top, from, nil
		}
		found, hides, err := k.at(i, p)
		if err != nil {
			return 0, 0, err
		}
		if found {
			if top < 0 {
				top = i
			}
			if !k.implied[i][p] {
				return top, i, nil
			}
		}
		if hides {
			return top, from, nil
		}
	}
	return top, from, nil
}

// at says whether layer i has the directory p, and whether it hides p of the layers below: by something else of that
// name, or by an opaque directory on the way. An opaque p hides what is in the lower p, not the directory itself.
func (k *stacker) at(i int, p string) (found, hides bool, err error) {
	if p == "." {
		return true, false, nil
	}
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW
	fd := int(k.trees[i].Fd())
	defer func() {
		if fd != int(k.trees[i].Fd()) {
			unix.Close(fd)
		}
	}()
	parts := strings.Split(p, "/")
	for n, c := range parts {
		next, err := pathrs.Openat2(fd, c, flags, 0, pathrs.NoSymlinks)
		switch err {
		case nil:
		case unix.ENOENT:
			return false, hides, nil
		case unix.ENOTDIR, unix.ELOOP:
			return false, true, nil
		default:
			return false, false, &os.PathError{Op: "open", Path: p, Err: err}
		}
		if fd != int(k.trees[i].Fd()) {
			unix.Close(fd)
		}
		fd = next
		if n < len(parts)-1 && isOpaque(fd) {
			hides = true
		}
	}
	return true, hides, nil
}

func isOpaque(fd int) bool {
	b := make([]byte, 1)
	for _, name := range [...]string{"trusted.overlay.opaque", "user.overlay.opaque"} {
		if n, err := unix.Fgetxattr(fd, name, b); err == nil && n == 1 && b[0] == 'y' {
			return true
		}
	}
	return false
}

// metadata is what a directory has besides its name and content.
type metadata struct {
	mode, uid, gid uint32
	mtime          unix.Timespec
	xattrs         map[string][]byte // without overlayfs' own
}

func readMetadata(tree *os.File, p string) (*metadata, error) {
	d, err := pathrs.OpenBeneath(tree, p, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return metadataOf(int(d.Fd()))
}

func metadataOf(fd int) (*metadata, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	m := &metadata{mode: st.Mode & 0o7777, uid: st.Uid, gid: st.Gid, mtime: st.Mtim}
	names := make([]byte, 1024)
	n, err := unix.Flistxattr(fd, names)
	if err == unix.ERANGE {
		names = make([]byte, 64<<10) // XATTR_LIST_MAX
		n, err = unix.Flistxattr(fd, names)
	}
	if err == unix.EOPNOTSUPP || n == 0 && err == nil {
		return m, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "listxattr", Path: "directory", Err: err}
	}
	m.xattrs = map[string][]byte{}
	for _, name := range strings.Split(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
		if strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.") {
			continue
		}
		value := make([]byte, 64<<10) // XATTR_SIZE_MAX
		n, err := unix.Fgetxattr(fd, name, value)
		if err != nil {
			return nil, &os.PathError{Op: "getxattr", Path: name, Err: err}
		}
		m.xattrs[name] = value[:n:n]
	}
	return m, nil
}

// same leaves the time out: unpacking one layer over the other would change it anyway.
func (m *metadata) same(o *metadata) bool {
	if m.mode != o.mode || m.uid != o.uid || m.gid != o.gid || len(m.xattrs) != len(o.xattrs) {
		return false
	}
	for n, v := range m.xattrs {
		if w, ok := o.xattrs[n]; !ok || !bytes.Equal(v, w) {
			return false
		}
	}
	return true
}

// set gives the directory d this metadata.
func (m *metadata) set(d *os.File) error {
	fd := int(d.Fd())
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Uid != m.uid || st.Gid != m.gid {
		if err := unix.Fchown(fd, int(m.uid), int(m.gid)); err != nil {
			return &os.PathError{Op: "chown", Path: d.Name(), Err: err}
		}
	}
	if err := unix.Fchmod(fd, m.mode); err != nil {
		return &os.PathError{Op: "chmod", Path: d.Name(), Err: err}
	}
	for n, v := range m.xattrs {
		if err := unix.Fsetxattr(fd, n, v, 0); err != nil {
			return &os.PathError{Op: "setxattr " + n, Path: d.Name(), Err: err}
		}
	}
	return unix.UtimesNanoAt(fd, ".", []unix.Timespec{{Nsec: unix.UTIME_OMIT}, m.mtime}, 0)
}

// sweepChain removes a chain whose layers are not all there.
func (s *Store) sweepChain(id string) error {
	c, err := s.readChain(id)
	if err == nil {
		for _, d := range c.Layers {
			if _, err := os.Lstat(s.path(layerPath(d))); errors.Is(err, fs.ErrNotExist) {
				return s.throwAway(chainsDir + "/" + id)
			}
		}
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) || errdefs.Is(err, errdefs.Corrupt) {
		return s.throwAway(chainsDir + "/" + id)
	}
	return err
}
