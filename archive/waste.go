package archive

import (
	"bytes"
	"context"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/pathrs"
	"golang.org/x/sys/unix"
)

// Waste is bytes of a layer that nobody sees, or a file that should not be in an image at all.
type Waste struct {
	Kind  string // "overwritten", "deleted", "copied" (only owner, mode or time changed), "secret"
	Path  string // absolute; of a directory that was deleted as a whole, its own
	Layer int    // which holds the bytes; 0 is the lowest
	By    int    // the layer that hides them; the same as Layer for a secret
	Size  int64  // bytes of file content
	Files int
}

// layerNode is what the layers so far show at a path.
type layerNode struct {
	children map[string]*layerNode // of a directory
	layer    int
	size     int64
}

// FindWaste walks trees in overlayfs' form, bottom first, as if they were unpacked one over the other, and returns what
// a later layer hides of an earlier one, and files that look like secrets even if a later layer deletes them. The trees
// are not changed by anybody meanwhile.
func FindWaste(ctx context.Context, trees []*os.File) ([]Waste, error) {
	w := &wasteFinder{ctx: ctx, trees: trees}
	root := &layerNode{children: map[string]*layerNode{}}
	for i, t := range trees {
		w.layer, w.seen = i, map[uint64]bool{}
		if err := w.dir(int(t.Fd()), "", root); err != nil {
			return nil, &errdefs.Error{Op: "read the layer", What: t.Name(), Kind: errdefs.KindOf(err), Err: err}
		}
	}
	slices.SortStableFunc(w.found, func(a, b Waste) int {
		switch {
		case a.Size > b.Size:
			return -1
		case a.Size < b.Size:
			return 1
		}
		return strings.Compare(a.Path, b.Path)
	})
	return w.found, nil
}

type wasteFinder struct {
	ctx   context.Context
	trees []*os.File
	layer int
	seen  map[uint64]bool // inodes of this layer that have been counted
	found []Waste
}

// hide reports all that n holds.
func (w *wasteFinder) hide(kind, at string, n *layerNode) {
	size, files := map[int]int64{}, map[int]int{}
	var sum func(*layerNode)
	sum = func(n *layerNode) {
		if n.children == nil {
			size[n.layer] += n.size
			files[n.layer]++
		}
		for _, c := range n.children {
			sum(c)
		}
	}
	sum(n)
	for l := range w.layer {
		if files[l] > 0 && size[l] > 0 {
			w.found = append(w.found, Waste{Kind: kind, Path: at, Layer: l, By: w.layer, Size: size[l], Files: files[l]})
		}
	}
}

func (w *wasteFinder) dir(fd int, at string, n *layerNode) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	if strings.Count(at, "/") > maxDepth {
		return refuse("its directories are nested too deeply")
	}
	names, err := namesIn(fd)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		if err := w.entry(fd, name, at+"/"+name, n); err != nil {
			return err
		}
	}
	return nil
}

func (w *wasteFinder) entry(fd int, name, at string, parent *layerNode) error {
	var st unix.Stat_t
	if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	old := parent.children[name]
	switch {
	case isWhiteout(&st):
		if old != nil {
			w.hide("deleted", at, old)
			delete(parent.children, name)
		}
		return nil
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		sub, err := pathrs.Openat2(fd, name, dirFlags, 0, within)
		if err != nil {
			return err
		}
		defer unix.Close(sub)
		if old != nil && (old.children == nil || overlayXattr(sub, "opaque") == "y") {
			w.hide("deleted", at, old)
			old = nil
		}
		if old == nil {
			old = &layerNode{children: map[string]*layerNode{}, layer: w.layer}
			parent.children[name] = old
		}
		return w.dir(sub, at, old)
	}
	now := &layerNode{layer: w.layer}
	if st.Mode&unix.S_IFMT == unix.S_IFREG && !w.seen[st.Ino] {
		w.seen[st.Ino] = st.Nlink > 1
		now.size = st.Size
	}
	if old != nil {
		kind := "overwritten"
		if old.children == nil && old.size == st.Size && st.Size > 0 && w.sameAs(old.layer, at, fd, name) {
			kind = "copied"
		}
		w.hide(kind, at, old)
	}
	parent.children[name] = now
	if st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size > 0 && secret(at, fd, name) {
		w.found = append(w.found, Waste{Kind: "secret", Path: at, Layer: w.layer, By: w.layer, Size: st.Size, Files: 1})
	}
	return nil
}

// sameAs compares a file with what an earlier layer has at the same path.
func (w *wasteFinder) sameAs(layer int, at string, fd int, name string) bool {
	old, err := pathrs.OpenBeneath(w.trees[layer], at[1:], unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer old.Close()
	now, err := openRegular(fd, name)
	if err != nil {
		return false
	}
	defer now.Close()
	same, err := sameContent(old, now)
	return same && err == nil
}

// secret says whether a file looks like a key or a password that got into an image by mistake. Public parts and
// templates of the distribution do not.
func secret(at string, fd int, name string) bool {
	base := path.Base(at)
	switch {
	case base == ".netrc", base == ".git-credentials", base == ".npmrc", base == ".pypirc", base == ".pgpass", base == ".dockercfg":
		return true
	case strings.HasSuffix(at, "/.aws/credentials"), strings.HasSuffix(at, "/.docker/config.json"), strings.HasSuffix(at, "/.kube/config"),
		strings.HasSuffix(at, "/.config/gcloud/credentials.db"), base == ".env":
		return true
	case strings.HasSuffix(base, ".pem"), strings.HasSuffix(base, ".key"), strings.HasPrefix(base, "id_"), strings.HasSuffix(base, "_key"),
		strings.HasSuffix(base, ".p8"), strings.HasSuffix(base, ".ppk"):
	default:
		return false
	}
	f, err := openRegular(fd, name)
	if err != nil {
		return false
	}
	defer f.Close()
	head := make([]byte, 4096)
	n, _ := f.Read(head)
	return bytes.Contains(head[:n], []byte("PRIVATE KEY")) || bytes.HasPrefix(head[:n], []byte("PuTTY-User-Key-File"))
}
