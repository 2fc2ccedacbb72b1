package build

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/onggi/onggi/archive"
	"github.com/onggi/onggi/build/cache"
	"github.com/onggi/onggi/build/graph"
	"github.com/onggi/onggi/build/tree"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/pathrs"
	"github.com/onggi/onggi/spec"
)

// maxListed is how many files of a COPY are parts of their own; of more, only their digest is.
const maxListed = 20000

// fileOp is COPY, ADD, WORKDIR and the like.
type fileOp struct {
	s  *session
	v  *graph.Vertex
	in []*result
	// base is, for each action, the input that its chain of actions stands on; -1 the empty tree.
	base []int
}

func (s *session) newFileOp(v *graph.Vertex, in []*result) (*fileOp, error) {
	o := &fileOp{s: s, v: v, in: in}
	used := map[int]bool{}
	for _, a := range v.File.Actions {
		b := a.Input
		if b >= len(in) {
			if used[b] {
				return nil, unsupported("two file actions on the result of one")
			}
			used[b] = true
			b = o.base[b-len(in)]
		} else if b >= 0 && in[b].local != nil {
			return nil, unsupported("a file action on a directory of the user")
		}
		o.base = append(o.base, b)
	}
	return o, nil
}

func (o *fileOp) outputs() int { return o.v.Outputs() }

func (o *fileOp) standsOn() *result { return o.s.pick(o.in, o.base[0]) }

func (o *fileOp) output(i int, own cache.Layer) result {
	for n, a := range o.v.File.Actions {
		if a.Output == i {
			return o.s.pick(o.in, o.base[n]).with(own)
		}
	}
	return o.s.empty()
}

func (o *fileOp) parts(ctx context.Context) ([]cache.Part, error) {
	parts := []cache.Part{{Name: "kind", Value: "file"}}
	stood := map[int]bool{}
	for n, a := range o.v.File.Actions {
		if b := o.base[n]; !stood[b] {
			stood[b] = true
			r := o.s.pick(o.in, b)
			parts = append(parts, cache.Part{Name: numbered("the steps before", b), Value: r.id()}, cache.Part{Name: numbered("epoch", b), Value: r.epoch.UTC().Format(time.RFC3339)})
		}
		text, err := json.Marshal(a)
		if err != nil {
			return nil, err
		}
		parts = append(parts, cache.Part{Name: numbered("instruction", n), Value: string(text)})
		if w := owners(a); w != nil {
			for _, p := range []*graph.Principal{w.User, w.Group} {
				if p != nil && p.Name != "" && p.Input >= 0 && p.Input < len(o.in) && !stood[p.Input] {
					stood[p.Input] = true
					parts = append(parts, cache.Part{Name: numbered("accounts", p.Input), Value: o.in[p.Input].id()})
				}
			}
		}
		if a.Copy == nil || a.Secondary < 0 || a.Secondary >= len(o.in) {
			continue
		}
		src := o.in[a.Secondary]
		c, err := o.s.contents(ctx, src, selection(a.Copy))
		if err != nil {
			return nil, err
		}
		if len(c.Files) <= maxListed {
			for _, f := range c.Files {
				parts = append(parts, cache.Part{Name: numbered("file /"+f.Path, n), Value: f.Digest.String()})
			}
		}
		parts = append(parts, cache.Part{Name: numbered("files", n), Value: c.Digest.String()})
	}
	return parts, nil
}

// numbered makes names of parts unique, and leaves the usual one plain.
func numbered(name string, n int) string {
	if n <= 0 {
		return name
	}
	return name + " (" + strconv.Itoa(n+1) + ")"
}

func selection(c *graph.Copy) tree.Selection {
	return tree.Selection{Src: c.Src, Wildcard: c.Wildcard, Follow: c.FollowSymlink, EmptyWildcard: c.EmptyWildcard, Include: c.Include, Exclude: c.Exclude}
}

func owners(a graph.Action) *graph.Owner {
	switch {
	case a.Copy != nil:
		return a.Copy.Owner
	case a.Mkfile != nil:
		return a.Mkfile.Owner
	case a.Mkdir != nil:
		return a.Mkdir.Owner
	case a.Symlink != nil:
		return a.Symlink.Owner
	}
	return nil
}

// work is a tree that actions write to.
type work struct {
	id   string
	root *os.File
}

func (o *fileOp) run(ctx context.Context, _ func([]byte)) (_ []cache.Layer, err error) {
	begin := time.Now()
	var all []*work
	defer func() {
		for _, w := range all {
			if w.root != nil {
				err = errors.Join(err, w.root.Close())
			}
			err = errors.Join(err, o.s.remove(ctx, w.id))
		}
	}()
	trees := make([]*work, len(o.v.File.Actions)) // of each action
	out := make([]cache.Layer, o.outputs())
	for n, a := range o.v.File.Actions {
		w := (*work)(nil)
		if a.Input >= len(o.in) {
			w = trees[a.Input-len(o.in)]
		} else {
			w = &work{}
			if w.id, err = o.s.container(ctx, o.s.pick(o.in, a.Input)); err != nil {
				return nil, err
			}
			all = append(all, w)
			if w.root, err = o.s.e.OpenTree(w.id); err != nil {
				return nil, err
			}
		}
		trees[n] = w
		if err := o.act(ctx, a, w, trees, o.s.pick(o.in, o.base[n]).epoch); err != nil {
			return nil, err
		}
	}
	for n, a := range o.v.File.Actions {
		if a.Output < 0 {
			continue
		}
		w := trees[n]
		if w.root == nil {
			return nil, unsupported("two outputs of one tree")
		}
		err := w.root.Close() // what is written is in the upper directory from here on
		w.root = nil
		if err != nil {
			return nil, err
		}
		if out[a.Output], err = o.s.commit(ctx, w.id, begin, o.s.pick(o.in, o.base[n]).epoch); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (o *fileOp) act(ctx context.Context, a graph.Action, w *work, trees []*work, epoch time.Time) error {
	t := tree.NewTarget(w.root)
	ids, err := o.ids(ctx, owners(a), w, trees)
	if err != nil {
		return err
	}
	switch {
	case a.Mkdir != nil:
		return t.Mkdir(a.Mkdir, ids)
	case a.Mkfile != nil:
		return t.Mkfile(a.Mkfile, ids)
	case a.Symlink != nil:
		return t.Symlink(a.Symlink, ids)
	case a.Rm != nil:
		return t.Remove(ctx, a.Rm)
	}
	var src *tree.View
	if a.Secondary >= len(o.in) {
		src, err = tree.NewView(trees[a.Secondary-len(o.in)].root, nil, nil, false)
	} else {
		src, err = o.s.view(ctx, o.s.pick(o.in, a.Secondary))
	}
	if err != nil {
		return err
	}
	if src.Anonymous() {
		src = src.At(epoch)
	}
	return t.Copy(ctx, src, a.Copy, ids, unpack, o.s.scratchDir)
}

// maxAccounts bounds /etc/passwd and /etc/group, bytes each.
const maxAccounts = 4 << 20

// ids looks names up in the tree that the graph says.
func (o *fileOp) ids(ctx context.Context, w *graph.Owner, here *work, trees []*work) (*tree.IDs, error) {
	if w == nil || w.User == nil && w.Group == nil {
		return nil, nil
	}
	user, group := "0", ""
	read := func(input int) (passwd, groups []byte, err error) {
		var root *os.File
		switch {
		case input >= len(o.in):
			root = trees[input-len(o.in)].root
		case input >= 0:
			id, err := o.s.container(ctx, o.in[input])
			if err != nil {
				return nil, nil, err
			}
			defer func() { err = errors.Join(err, o.s.remove(ctx, id)) }()
			if root, err = o.s.e.OpenTree(id); err != nil {
				return nil, nil, err
			}
			defer root.Close()
		default:
			return nil, nil, nil
		}
		if passwd, err = pathrs.ReadFile(root, "etc/passwd", maxAccounts); err != nil && !errdefs.Is(err, errdefs.NotFound) {
			return nil, nil, err
		}
		if groups, err = pathrs.ReadFile(root, "etc/group", maxAccounts); err != nil && !errdefs.Is(err, errdefs.NotFound) {
			return nil, nil, err
		}
		return passwd, groups, nil
	}
	input := -1
	name := func(p *graph.Principal) string {
		if p.Name != "" {
			input = p.Input
			return p.Name
		}
		return strconv.FormatUint(uint64(p.ID), 10)
	}
	if w.User != nil {
		user = name(w.User)
	}
	if w.Group != nil {
		group = name(w.Group)
	}
	passwd, groups, err := read(input)
	if err != nil {
		return nil, err
	}
	if group != "" {
		user += ":" + group
	}
	uid, gid, _, _, err := spec.User(user, nil, passwd, groups)
	if err != nil {
		return nil, err
	}
	if group == "" && w.User.Name == "" {
		gid = uid // COPY --chown=5 means 5:5
	}
	return &tree.IDs{UID: uid, GID: gid}, nil
}

// unpack unpacks a tar, as it is or compressed with gzip, bzip2, xz or zstd. A file that is compressed and holds something else
// stays as it is.
func unpack(ctx context.Context, r io.Reader, dir *os.File) (bool, error) {
	head := make([]byte, 512)
	n, err := io.ReadFull(r, head)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return false, err
	}
	head = head[:n]
	whole := io.MultiReader(bytes.NewReader(head), r)
	if isTar(head) {
		_, err := archive.Apply(ctx, whole, dir, archive.Options{Whiteouts: "none"})
		return true, err
	}
	packed := false
	for _, magic := range []string{"\x1f\x8b", "\x28\xb5\x2f\xfd", "BZh", "\xfd7zXZ\x00"} {
		packed = packed || bytes.HasPrefix(head, []byte(magic))
	}
	if !packed {
		return false, nil
	}
	plain, _, err := archive.Unwrap(whole)
	if err != nil {
		return false, err
	}
	defer plain.Close()
	inner := make([]byte, 512)
	n, err = io.ReadFull(plain, inner)
	if err != nil && err != io.ErrUnexpectedEOF || !isTar(inner[:n]) {
		return false, nil
	}
	_, err = archive.Apply(ctx, io.MultiReader(bytes.NewReader(inner), plain), dir, archive.Options{Whiteouts: "none"})
	return true, err
}

// isTar checks a block's sum (POSIX pax, "ustar Interchange Format").
func isTar(b []byte) bool {
	if len(b) < 512 {
		return false
	}
	want, err := strconv.ParseUint(strings.Trim(string(b[148:156]), " \x00"), 8, 32)
	if err != nil {
		return false
	}
	var sum uint64
	for i, c := range b {
		if i >= 148 && i < 156 {
			c = ' '
		}
		sum += uint64(c)
	}
	return sum == want
}
