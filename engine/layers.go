package engine

import (
	"context"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/onggi/onggi/archive"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/image"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// LayerView is one instruction of an image, and the layer that it made.
type LayerView struct {
	DiffID    digest.Digest `json:",omitempty"` // "": it made none
	CreatedBy string        // the instruction; "" when the image does not say
	Comment   string        `json:",omitempty"`
	Created   time.Time     `json:",omitzero"`
	Size      int64         // bytes of file content
	Entries   int64
	Disk      int64    // bytes on disk, unpacked
	Shared    []string // other images that have the layer, by a name each
}

// WritableView is the writable layer of a container on top of an image.
type WritableView struct {
	Name    string
	ID      string
	Status  Status
	Disk    int64 // bytes on disk
	Changes int   // paths that are otherwise than in the image
}

// Stack is an image as the stack that it is, each list topmost first.
type Stack struct {
	ID       digest.Digest
	Names    []string
	Writable []WritableView
	Layers   []LayerView
}

// Layers returns the stack of an image, with the containers that stand on it.
func (e *Engine) Layers(ctx context.Context, nameOrID string) (*Stack, error) {
	images, err := e.Images()
	if err != nil {
		return nil, err
	}
	img, err := images.Get(nameOrID)
	if err != nil {
		return nil, err
	}
	snapshots, err := e.snapshot()
	if err != nil {
		return nil, err
	}
	l, err := e.measure()
	if err != nil {
		return nil, err
	}
	shared, err := sharing(images, img)
	if err != nil {
		return nil, err
	}
	st := &Stack{ID: img.ID, Names: familiar(img)}
	for i, h := range historyOf(img) {
		v := LayerView{CreatedBy: h.CreatedBy, Comment: h.Comment}
		if h.Created != nil {
			v.Created = *h.Created
		}
		if d := layerAt(img, i); d != "" {
			rec, err := snapshots.Layer(d)
			if err != nil {
				return nil, err
			}
			v.DiffID, v.Size, v.Entries, v.Shared, v.Disk = d, rec.Size, rec.Entries, shared[d], l.of[owner{"layer", string(d)}]
		}
		st.Layers = append(st.Layers, v)
	}
	slices.Reverse(st.Layers)
	records, err := e.records()
	if err != nil {
		return nil, err
	}
	for _, r := range records {
		if r.ImageID != img.ID {
			continue
		}
		w := WritableView{Name: r.Config.Name, ID: r.ID, Status: r.Status, Disk: l.of[owner{"upper", r.ID}]}
		err := snapshots.Changes(ctx, r.ID, func(archive.Change) error { w.Changes++; return nil })
		if errdefs.Is(err, errdefs.NotFound) {
			continue // being made or removed
		}
		if err != nil {
			return nil, err
		}
		st.Writable = append(st.Writable, w)
	}
	slices.SortFunc(st.Writable, func(a, b WritableView) int { return strings.Compare(a.Name, b.Name) })
	return st, nil
}

func familiar(img *image.Image) []string {
	var names []string
	for _, n := range img.Names {
		names = append(names, n.Familiar())
	}
	return names
}

// historyOf returns the image's history, or an empty entry for each layer when it does not fit the layers.
func historyOf(img *image.Image) []ocispec.History {
	made := 0
	for _, h := range img.Config.History {
		if !h.EmptyLayer {
			made++
		}
	}
	if made == len(img.DiffIDs) {
		return img.Config.History
	}
	return make([]ocispec.History, len(img.DiffIDs))
}

// layerAt is the layer that entry i of historyOf made, or "".
func layerAt(img *image.Image, i int) digest.Digest {
	h := historyOf(img)
	if h[i].EmptyLayer {
		return ""
	}
	n := 0
	for _, x := range h[:i] {
		if !x.EmptyLayer {
			n++
		}
	}
	return img.DiffIDs[n]
}

// sharing says which other images have the layers of img.
func sharing(s *image.Store, img *image.Image) (map[digest.Digest][]string, error) {
	list, err := s.List()
	if err != nil {
		return nil, err
	}
	shared := map[digest.Digest][]string{}
	for _, x := range list {
		if x.ID == img.ID {
			continue
		}
		other, err := s.Get(string(x.ID))
		if errdefs.Is(err, errdefs.NotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		name := x.ID.Encoded()[:12]
		if len(x.Names) > 0 {
			name = x.Names[0].Familiar()
		}
		for _, d := range other.DiffIDs {
			if !slices.Contains(shared[d], name) {
				shared[d] = append(shared[d], name)
			}
		}
	}
	return shared, nil
}

// ImageChanges calls fn for each path that image b has otherwise than image a.
func (e *Engine) ImageChanges(ctx context.Context, a, b string, fn func(archive.Change) error) error {
	images, err := e.Images()
	if err != nil {
		return err
	}
	snapshots, err := e.snapshot()
	if err != nil {
		return err
	}
	var trees [2]*os.File
	for i, name := range []string{a, b} {
		img, err := images.Get(name)
		if err != nil {
			return err
		}
		if trees[i], err = snapshots.Tree(ctx, img.DiffIDs); err != nil {
			return err
		}
		defer trees[i].Close()
	}
	d := &archive.Difference{Tree: trees[1], Below: trees[:1], Whole: true, Shared: true}
	return d.Changes(ctx, fn)
}

// WasteReport is what an image holds in vain.
type WasteReport struct {
	ID      digest.Digest
	Size    int64 // bytes of file content of all layers
	Wasted  int64 // of them, those that nobody sees
	Waste   []archive.Waste
	Secrets []string // settings and instructions that look like they hold one
}

// Waste looks for what an image holds in vain: files that later layers overwrite, delete, or copy for a change of owner or
// mode; and for what looks like a secret, in files, in the environment and in the history.
func (e *Engine) Waste(ctx context.Context, nameOrID string) (*WasteReport, error) {
	images, err := e.Images()
	if err != nil {
		return nil, err
	}
	img, err := images.Get(nameOrID)
	if err != nil {
		return nil, err
	}
	snapshots, err := e.snapshot()
	if err != nil {
		return nil, err
	}
	r := &WasteReport{ID: img.ID, Size: img.Size}
	var trees []*os.File
	defer func() {
		for _, t := range trees {
			_ = t.Close()
		}
	}()
	for _, d := range img.DiffIDs {
		t, err := snapshots.OpenLayer(d)
		if err != nil {
			return nil, err
		}
		trees = append(trees, t)
	}
	if r.Waste, err = archive.FindWaste(ctx, trees); err != nil {
		return nil, err
	}
	for _, w := range r.Waste {
		if w.Kind != "secret" {
			r.Wasted += w.Size
		}
	}
	for _, kv := range img.Config.Config.Env {
		if k, v, _ := strings.Cut(kv, "="); v != "" && secretName(k) {
			r.Secrets = append(r.Secrets, "ENV "+k)
		}
	}
	for _, h := range img.Config.History {
		for _, word := range strings.FieldsFunc(h.CreatedBy, func(c rune) bool { return c == ' ' || c == '|' || c == ';' || c == '&' || c == '"' || c == '\'' }) {
			if k, v, ok := strings.Cut(word, "="); ok && v != "" && !strings.HasPrefix(v, "$") && secretName(k) && !slices.Contains(r.Secrets, "ENV "+k) {
				r.Secrets = append(r.Secrets, "history: "+k)
			}
		}
	}
	slices.Sort(r.Secrets)
	r.Secrets = slices.Compact(r.Secrets)
	return r, nil
}

// secretName says whether a variable's name sounds like a secret's.
func secretName(k string) bool {
	k = strings.ToUpper(strings.TrimLeft(k, "-"))
	for _, s := range []string{"PASSWORD", "PASSWD", "SECRET", "TOKEN", "API_KEY", "APIKEY", "PRIVATE_KEY", "ACCESS_KEY"} {
		if strings.Contains(k, s) && !strings.HasSuffix(k, "_FILE") {
			return true
		}
	}
	return false
}

// Tree is the images by the layers that they share.
type Tree struct {
	Layers   []digest.Digest // of this branch, bottom first
	Size     int64           // bytes of their file content
	Images   []string        // that end here: their names, or ids
	Branches []*Tree
}

// ImageTree returns the images as a tree: what stands on the same layers hangs on the same branch.
func (e *Engine) ImageTree(ctx context.Context) (*Tree, error) {
	images, err := e.Images()
	if err != nil {
		return nil, err
	}
	snapshots, err := e.snapshot()
	if err != nil {
		return nil, err
	}
	list, err := images.List()
	if err != nil {
		return nil, err
	}
	root := &Tree{}
	for _, x := range list {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		img, err := images.Get(string(x.ID))
		if errdefs.Is(err, errdefs.NotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		at := root
		for _, d := range img.DiffIDs {
			i := slices.IndexFunc(at.Branches, func(b *Tree) bool { return b.Layers[0] == d })
			if i < 0 {
				l, err := snapshots.Layer(d)
				if err != nil {
					return nil, err
				}
				at.Branches = append(at.Branches, &Tree{Layers: []digest.Digest{d}, Size: l.Size})
				i = len(at.Branches) - 1
			}
			at = at.Branches[i]
		}
		names := familiar(x)
		if len(names) == 0 {
			names = []string{x.ID.Encoded()[:12]}
		}
		at.Images = append(at.Images, names...)
	}
	root.join()
	return root, nil
}

// join makes one branch of those that follow each other alone.
func (t *Tree) join() {
	for _, b := range t.Branches {
		for len(b.Images) == 0 && len(b.Branches) == 1 {
			next := b.Branches[0]
			b.Layers, b.Size, b.Images, b.Branches = append(b.Layers, next.Layers...), b.Size+next.Size, next.Images, next.Branches
		}
		slices.Sort(b.Images)
		b.join()
	}
	slices.SortFunc(t.Branches, func(a, b *Tree) int { return strings.Compare(a.first(), b.first()) })
}

// first is the first name on a branch.
func (t *Tree) first() string {
	names := slices.Clone(t.Images)
	for _, b := range t.Branches {
		names = append(names, b.first())
	}
	if len(names) == 0 {
		return ""
	}
	return slices.Min(names)
}
