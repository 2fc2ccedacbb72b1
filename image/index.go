package image

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/onggi/onggi/content"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// The index is a list of manifests. A name is an entry; so is an image without a name. An entry's annotations hold what
// List prints, so that it need not open the blobs. They are written only here, never copied from an image.
const (
	annotationContainerd = "io.containerd.image.name" // the full name as containerd's tools look for it
	annotationID         = "org.onggi.image.id"       // digest of the config
	annotationSize       = "org.onggi.image.size"     // bytes of file content of the layers
	annotationTarget     = "org.onggi.image.target"   // "digest size media-type" of the index that the manifest is from

	maxIndex = 256 << 20
)

// header and footer of an index.json that was written here: one entry a line, which lets Get decode only the lines that
// it needs. A file by another program is decoded whole.
const (
	header = `{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageIndex + `","manifests":[` + "\n"
	footer = "]}\n"
)

// entry is one line of the index.
type entry struct {
	desc ocispec.Descriptor // the manifest, with all annotations, also those of others
	name string             // full reference; "" for a dangling image
	// The facts of the annotations; id is "" when another program wrote the entry: it is kept, and not shown.
	id      digest.Digest
	size    int64
	created time.Time
	target  ocispec.Descriptor
}

type index []entry

func (s *Store) indexPath() string { return filepath.Join(s.content.Dir(), ocispec.ImageIndexFile) }

// readIndex reads all entries. No index is an empty one.
func (s *Store) readIndex() (index, error) {
	b, err := s.readIndexFile()
	if err != nil {
		return nil, err
	}
	return s.parse(b)
}

func (s *Store) readIndexFile() ([]byte, error) {
	f, err := os.Open(s.indexPath())
	if errors.Is(err, fs.ErrNotExist) {
		return []byte(header + footer), nil
	}
	if err != nil {
		return nil, s.indexError("read", err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, s.indexError("read", err)
	}
	if fi.Size() > maxIndex {
		return nil, &errdefs.Error{Op: "read", What: s.indexPath(), Kind: errdefs.Exhausted, Why: "it is larger than 256 MiB"}
	}
	b := make([]byte, fi.Size())
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, s.indexError("read", err)
	}
	return b, nil
}

// parse decodes all entries.
func (s *Store) parse(b []byte) (index, error) {
	idx, err := parseIndex(b, "")
	if err != nil {
		return nil, &errdefs.Error{
			Op: "read", What: s.indexPath(), Kind: errdefs.Corrupt, Why: "it is not an image index", Err: err,
			Fix: "restore the file; the images themselves are in " + filepath.Join(s.content.Dir(), "blobs"),
		}
	}
	return idx, nil
}

func (s *Store) indexError(op string, err error) error {
	return &errdefs.Error{Op: op, What: s.indexPath(), Kind: errdefs.KindOf(err), Err: err}
}

// parseIndex decodes the entries. Of a file that was written here it decodes only those whose line holds the string
// only.
func parseIndex(b []byte, only string) (index, error) {
	if !bytes.HasPrefix(b, []byte(header)) || !bytes.HasSuffix(b, []byte(footer)) {
		var doc ocispec.Index
		if err := json.Unmarshal(b, &doc); err != nil {
			return nil, err
		}
		idx := make(index, 0, len(doc.Manifests))
		for _, d := range doc.Manifests {
			e, err := newEntry(d)
			if err != nil {
				return nil, err
			}
			idx = append(idx, e)
		}
		return idx, nil
	}
	var idx index
	for line := range linesWith(b[len(header):len(b)-len(footer)], only) {
		var d ocispec.Descriptor
		if err := json.Unmarshal(bytes.TrimRight(line, ",\n"), &d); err != nil {
			return nil, err
		}
		e, err := newEntry(d)
		if err != nil {
			return nil, err
		}
		idx = append(idx, e)
	}
	return idx, nil
}

// linesWith yields the lines that hold s, or the end of a long s, without looking at the others one by one: a needle of
// up to 63 bytes is searched for with vector instructions.
func linesWith(b []byte, s string) iter.Seq[[]byte] {
	s = s[max(0, len(s)-60):]
	return func(yield func([]byte) bool) {
		for len(b) > 0 {
			at := bytes.Index(b, []byte(s))
			if at < 0 {
				return
			}
			start := bytes.LastIndexByte(b[:at], '\n') + 1
			end := len(b)
			if n := bytes.IndexByte(b[at:], '\n'); n >= 0 {
				end = at + n + 1
			}
			if !yield(b[start:end]) {
				return
			}
			b = b[end:]
		}
	}
}

// newEntry reads an entry's annotations; what another program wrote there is not an error.
func newEntry(d ocispec.Descriptor) (entry, error) {
	if err := content.Check(d.Digest); err != nil {
		return entry{}, err
	}
	e := entry{desc: d, name: d.Annotations[ocispec.AnnotationRefName], target: d}
	e.target.Annotations, e.target.Platform = nil, nil
	id := digest.Digest(d.Annotations[annotationID])
	size, err := strconv.ParseInt(d.Annotations[annotationSize], 10, 64)
	if content.Check(id) != nil || err != nil {
		return e, nil
	}
	e.id, e.size = id, size
	e.created, _ = time.Parse(time.RFC3339Nano, d.Annotations[ocispec.AnnotationCreated]) // absent: unknown
	if f := strings.Fields(d.Annotations[annotationTarget]); len(f) == 3 && content.Check(digest.Digest(f[0])) == nil {
		n, _ := strconv.ParseInt(f[1], 10, 64)
		e.target = ocispec.Descriptor{Digest: digest.Digest(f[0]), Size: n, MediaType: f[2]}
	}
	return e, nil
}

// stamp writes the facts into the annotations.
func (e *entry) stamp() {
	a := map[string]string{}
	maps.Copy(a, e.desc.Annotations)
	delete(a, ocispec.AnnotationRefName)
	delete(a, annotationContainerd)
	if e.name != "" {
		a[ocispec.AnnotationRefName], a[annotationContainerd] = e.name, e.name
	}
	if e.id != "" {
		a[annotationID], a[annotationSize] = string(e.id), strconv.FormatInt(e.size, 10)
		delete(a, ocispec.AnnotationCreated)
		if !e.created.IsZero() {
			a[ocispec.AnnotationCreated] = e.created.UTC().Format(time.RFC3339Nano)
		}
		delete(a, annotationTarget)
		if e.target.Digest != e.desc.Digest {
			a[annotationTarget] = fmt.Sprintf("%s %d %s", e.target.Digest, e.target.Size, e.target.MediaType)
		}
	}
	e.desc.Annotations = a
}

func (idx index) encode() ([]byte, error) {
	var b bytes.Buffer
	b.WriteString(header)
	for i, e := range idx {
		line, err := json.Marshal(e.desc) // never holds a line end
		if err != nil {
			return nil, err
		}
		b.Write(line)
		if i < len(idx)-1 {
			b.WriteByte(',')
		}
		b.WriteByte('\n')
	}
	b.WriteString(footer)
	return b.Bytes(), nil
}

// change replaces the index by what f makes of it, under the index lock. When f returns its argument, nothing is
// written.
func (s *Store) change(ctx context.Context, f func(index) (index, error)) error {
	l, err := s.lockIndex(ctx)
	if err != nil {
		return err
	}
	defer l.release()
	old, err := s.readIndex()
	if err != nil {
		return err
	}
	next, err := f(slices.Clone(old))
	if err != nil {
		return err
	}
	if slices.EqualFunc(old, next, func(a, b entry) bool {
		return a.desc.Digest == b.desc.Digest && maps.Equal(a.desc.Annotations, b.desc.Annotations)
	}) {
		return nil
	}
	return s.writeIndex(next)
}

// writeIndex puts the index in its place. Precondition: the index lock is held; what idx refers to is on disk.
func (s *Store) writeIndex(idx index) error {
	b, err := idx.encode()
	if err != nil {
		return s.indexError("write", err)
	}
	temp := s.indexPath() + ".new" // always the same, so that a crash leaves one file at most; collect removes it
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return s.indexError("write", err)
	}
	defer os.Remove(temp) // fails after the rename, as it should
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		return s.indexError("write", err)
	}
	if err := f.Sync(); err != nil {
		return s.indexError("write", err)
	}
	if err := os.Rename(temp, s.indexPath()); err != nil {
		return s.indexError("write", err)
	}
	d, err := os.Open(s.content.Dir())
	if err != nil {
		return s.indexError("write", err)
	}
	defer d.Close()
	return d.Sync()
}

// name gives the image of e the name, taking it from whichever entry had it; an image that loses its last name stays as
// a dangling one, and a dangling entry of e's image goes. Images for other platforms that are of the same index keep
// the name beside it: a name means one index.
func (idx index) name(name string, e entry) index {
	e.name = name
	e.desc.Annotations = maps.Clone(e.desc.Annotations)
	e.stamp()
	out := make(index, 0, len(idx)+1)
	var losers index
	done := false
	for _, old := range idx {
		switch {
		case name != "" && old.name == name && !old.besides(e):
			if old.desc.Digest != e.desc.Digest {
				losers = append(losers, old)
			}
			if !done {
				out, done = append(out, e), true
			}
		case old.name == "" && old.desc.Digest == e.desc.Digest:
		default:
			out = append(out, old)
		}
	}
	if !done && (name != "" || !slices.ContainsFunc(out, func(o entry) bool { return o.desc.Digest == e.desc.Digest })) {
		out = append(out, e)
	}
	for _, l := range losers {
		if l.id != "" && !slices.ContainsFunc(out, func(o entry) bool { return o.desc.Digest == l.desc.Digest }) {
			l.name = ""
			l.stamp()
			out = append(out, l)
		}
	}
	return out
}

// besides reports whether two entries are images for different platforms out of one index.
func (e entry) besides(o entry) bool {
	return e.target.Digest == o.target.Digest && e.target.Digest != e.desc.Digest && e.desc.Digest != o.desc.Digest &&
		o.target.Digest != o.desc.Digest
}

// best returns the entry for which is holds, the one that serves the platform best when there are several.
func (idx index) best(want ocispec.Platform, is func(entry) bool) (entry, bool) {
	var hit *entry
	most := -1
	for i, e := range idx {
		if e.id == "" || !is(e) {
			continue
		}
		r := 0
		if e.desc.Platform != nil {
			r = rank(want, *e.desc.Platform)
		}
		if r > most {
			hit, most = &idx[i], r
		}
	}
	if hit == nil {
		return entry{}, false
	}
	return *hit, true
}

// platforms returns the entries that the name ref has: one for each platform.
func (idx index) platforms(ref reference.Reference) index {
	var out index
	for _, e := range idx {
		if e.id != "" && e.name == ref.String() {
			out = append(out, e)
		}
	}
	return out
}

// find returns the entries of the image that nameOrID means: first the one that matched, then its other names.
func (idx index) find(nameOrID string, want ocispec.Platform) (index, error) {
	match, err := idx.match(nameOrID, want)
	if err != nil {
		return nil, err
	}
	out := index{match}
	for _, e := range idx {
		if e.id == match.id && (e.name != match.name || e.desc.Digest != match.desc.Digest) {
			out = append(out, e)
		}
	}
	return out, nil
}

// match finds what docker would: a name, a repository@digest, an id, the beginning of an id.
func (idx index) match(nameOrID string, want ocispec.Platform) (entry, error) {
	prefix := strings.TrimPrefix(nameOrID, "sha256:")
	isID := len(prefix) >= 3 && len(prefix) <= 64 && strings.Trim(prefix, "0123456789abcdef") == ""
	fullID := isID && len(prefix) == 64
	ref, err := reference.Parse(nameOrID)
	if err != nil && !isID {
		return entry{}, err
	}
	if err == nil && !(fullID && strings.HasPrefix(nameOrID, "sha256:")) {
		name := ref.String()
		for _, is := range []func(entry) bool{
			func(e entry) bool { return e.name == name },
			func(e entry) bool { return ref.Digest != "" && e.hasDigest(ref) },
		} {
			if e, ok := idx.best(want, is); ok {
				return e, nil
			}
		}
	}
	if isID {
		var hit *entry
		for i, e := range idx {
			if e.id == "" || !strings.HasPrefix(e.id.Encoded(), prefix) {
				continue
			}
			if hit != nil && hit.id != e.id {
				return entry{}, &errdefs.Error{
					Op: "find the image", What: nameOrID, Kind: errdefs.InvalidArgument,
					Why: "several images have an id that begins so", Fix: "give more digits",
				}
			}
			if hit == nil {
				hit = &idx[i]
			}
		}
		if hit != nil {
			return *hit, nil
		}
	}
	return entry{}, &errdefs.Error{
		Op: "find the image", What: nameOrID, Kind: errdefs.NotFound, Why: "there is no such image here",
		Fix: "pull it with: onggi pull " + nameOrID + ", or see: onggi images",
	}
}

// hasDigest reports whether the entry is ref's repository@digest.
func (e entry) hasDigest(ref reference.Reference) bool {
	if e.target.Digest != ref.Digest && e.desc.Digest != ref.Digest {
		return false
	}
	own, err := reference.Parse(e.name)
	return err == nil && own.Domain == ref.Domain && own.Path == ref.Path
}

// find is index.find on the store's index, decoding only the lines that can matter when nameOrID is a plain name.
func (s *Store) find(nameOrID string, want ocispec.Platform) (index, error) {
	b, err := s.readIndexFile()
	if err != nil {
		return nil, err
	}
	if ref, err := reference.Parse(nameOrID); err == nil && ref.Digest == "" {
		named, err := parseIndex(b, `"`+ref.String()+`"`)
		if hit, ok := named.best(want, func(e entry) bool { return e.name == ref.String() }); err == nil && ok {
			// Its other names have the same id.
			if all, err := parseIndex(b, `"`+string(hit.id)+`"`); err == nil {
				return all.find(nameOrID, want)
			}
		}
	}
	all, err := s.parse(b)
	if err != nil {
		return nil, err
	}
	return all.find(nameOrID, want)
}

func (e entry) image() *Image {
	img := &Image{ID: e.id, Target: e.target, Manifest: e.desc, Size: e.size, Created: e.created}
	img.Manifest.Annotations = nil
	if e.desc.Platform != nil {
		img.Config.Platform = *e.desc.Platform
	}
	if !e.created.IsZero() {
		t := e.created
		img.Config.Created = &t
	}
	img.addName(e)
	return img
}

func (img *Image) addName(e entry) {
	if e.name == "" {
		return
	}
	if ref, err := reference.Parse(e.name); err == nil && !slices.Contains(img.Names, ref) {
		img.Names = append(img.Names, ref)
	}
}

func sortByAge(all []*Image) {
	slices.SortStableFunc(all, func(a, b *Image) int {
		return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(a.ID, b.ID))
	})
}
