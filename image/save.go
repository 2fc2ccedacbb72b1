package image

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/onggi/onggi/archive"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/reference"
	"github.com/onggi/onggi/registry"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// The formats of Save.
const (
	// DockerArchive is what docker save writes and docker load reads: manifest.json. One platform of each image. It is
	// an OCI layout at the same time, unless it holds a layer that had to be decompressed for docker (zstd).
	DockerArchive = "docker-archive"
	// OCIArchive is an OCI image layout in a tar, with all platforms that are here.
	OCIArchive = "oci-archive"
)

// SaveOptions of Save and SaveLayout.
type SaveOptions struct {
	Format      string            // DockerArchive (also "") or OCIArchive
	Platform    *ocispec.Platform // only this one; nil: the host's for DockerArchive, all for OCIArchive
	Compression Compression       // of the archive as a whole; Name "" or "none" is a plain tar
}

// Save writes images as an archive, streaming, front to back. A name without a tag means all tags of its repository; an
// id is saved without a name. Equal images give an equal archive. Errors: NotFound (also when the blob of a layer is not
// here), InvalidArgument, and those of w.
func (s *Store) Save(ctx context.Context, w io.Writer, names []string, o SaveOptions) (err error) {
	defer func() { err = saveError(names, err) }()
	if o.Format != "" && o.Format != DockerArchive && o.Format != OCIArchive {
		return &errdefs.Error{What: fmt.Sprintf("the format %q", o.Format), Kind: errdefs.InvalidArgument, Why: "it is not known", Fix: "choose docker-archive or oci-archive"}
	}
	if err := o.Compression.Check(); err != nil {
		return err
	}
	var z io.WriteCloser = nopCloser{w}
	if n := o.Compression.Name; n != "" && n != "none" {
		if z, err = o.Compression.writer(w); err != nil {
			return err
		}
	}
	sink := &tarSink{w: tar.NewWriter(z)}
	if err := s.save(ctx, sink, names, o); err != nil {
		return err
	}
	if err := sink.w.Close(); err != nil {
		return err
	}
	return z.Close()
}

// SaveLayout writes images into an OCI image layout, a directory that is made or added to: what it holds stays, names
// that are saved again are replaced in its index.json, which comes last.
func (s *Store) SaveLayout(ctx context.Context, dir string, names []string, o SaveOptions) (err error) {
	defer func() { err = saveError(names, err) }()
	o.Format = OCIArchive
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	r, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer r.Close()
	return s.save(ctx, &dirSink{r: r}, names, o)
}

func saveError(names []string, err error) error {
	if err == nil {
		return nil
	}
	return &errdefs.Error{Op: "save", What: strings.Join(names, " "), Kind: errdefs.KindOf(err), Fix: fixOf(err), Err: err}
}

// sink takes the files of a layout.
type sink interface {
	add(name string, size int64, r io.Reader) error
	// index merges the entries into what is there already.
	index(entries []ocispec.Descriptor) error
}

type tarSink struct{ w *tar.Writer }

func (t *tarSink) add(name string, size int64, r io.Reader) error {
	if err := t.w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: size, ModTime: time.Unix(0, 0), Format: tar.FormatPAX}); err != nil {
		return err
	}
	_, err := io.CopyBuffer(struct{ io.Writer }{t.w}, struct{ io.Reader }{r}, make([]byte, fetchBuffer))
	return err
}

func (t *tarSink) index(entries []ocispec.Descriptor) error { return addIndex(t, entries) }

func addIndex(s sink, entries []ocispec.Descriptor) error {
	b, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: entries})
	if err != nil {
		return err
	}
	return s.add(ocispec.ImageIndexFile, int64(len(b)), strings.NewReader(string(b)))
}

// dirSink writes below a directory that nobody leads out of.
type dirSink struct{ r *os.Root }

func (d *dirSink) add(name string, size int64, r io.Reader) error {
	if fi, err := d.r.Stat(name); err == nil && fi.Size() == size && strings.HasPrefix(name, "blobs/") {
		_, err := io.Copy(io.Discard, r) // verified by whoever reads it
		return err
	}
	if i := strings.LastIndexByte(name, '/'); i > 0 {
		if err := d.r.MkdirAll(name[:i], 0o755); err != nil {
			return err
		}
	}
	temp := name + ".new"
	f, err := d.r.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	defer d.r.Remove(temp) // fails after the rename, as it should
	defer f.Close()
	if _, err := io.CopyBuffer(struct{ io.Writer }{f}, struct{ io.Reader }{r}, make([]byte, fetchBuffer)); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return d.r.Rename(temp, name)
}

func (d *dirSink) index(entries []ocispec.Descriptor) error {
	if f, err := d.r.Open(ocispec.ImageIndexFile); err == nil {
		defer f.Close()
		b, err := readLimited(f, registry.MaxManifest)
		if err != nil {
			return err
		}
		var old ocispec.Index
		if err := json.Unmarshal(b, &old); err != nil {
			return malformed("the layout", "its index.json: %v", err)
		}
		old.Manifests = slices.DeleteFunc(old.Manifests, func(o ocispec.Descriptor) bool {
			return slices.ContainsFunc(entries, func(e ocispec.Descriptor) bool {
				return o.Annotations[ocispec.AnnotationRefName] == e.Annotations[ocispec.AnnotationRefName] && (o.Digest == e.Digest || o.Annotations[ocispec.AnnotationRefName] != "")
			})
		})
		entries = append(old.Manifests, entries...)
	}
	return addIndex(d, entries)
}

// readLimited reads a small file.
func readLimited(r io.Reader, limit int64) ([]byte, error) {
	b := make([]byte, limit+1)
	n, err := io.ReadFull(r, b)
	if err == nil {
		return nil, &errdefs.Error{Kind: errdefs.Exhausted, Why: fmt.Sprintf("it has more than %d bytes", limit)}
	}
	if err != io.EOF && err != io.ErrUnexpectedEOF {
		return nil, err
	}
	return b[:n], nil
}

// saved is one image of an archive.
type saved struct {
	names    []string // full
	platform []pushed
	entries  index
	top      smallBlob // what the names point at
}

// save gathers the images and writes them.
func (s *Store) save(ctx context.Context, to sink, names []string, o SaveOptions) (err error) {
	l, err := s.newLease(ctx)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		if derr := l.drop(ctx); err == nil {
			err = derr
		}
	}()
	images, err := s.gather(ctx, l, names, o)
	if err != nil {
		return err
	}
	if o.Format == OCIArchive {
		err = s.saveOCI(ctx, to, images)
	} else {
		err = s.saveDocker(ctx, to, images)
	}
	if err == nil && s.notify != nil {
		for _, n := range names {
			if img, gerr := s.Get(n); gerr == nil {
				s.tell("save", string(img.ID), n)
			}
		}
	}
	return err
}

// gather finds what to save, each image once with all its names.
func (s *Store) gather(ctx context.Context, l *lease, names []string, o SaveOptions) ([]*saved, error) {
	idx, err := s.readIndex()
	if err != nil {
		return nil, err
	}
	var out []*saved
	byTop := map[digest.Digest]*saved{}
	take := func(name string, entries index) error {
		for _, e := range entries {
			refs, err := s.references(e)
			if err != nil {
				return err
			}
			if err := l.add(ctx, refs...); err != nil {
				return err
			}
		}
		x, err := s.one(entries, o)
		if err != nil {
			return err
		}
		if old := byTop[x.top.desc.Digest]; old != nil {
			x = old
		} else {
			byTop[x.top.desc.Digest] = x
			out = append(out, x)
		}
		if name != "" && !slices.Contains(x.names, name) {
			x.names = append(x.names, name)
		}
		return nil
	}
	for _, n := range names {
		ref, err := reference.Parse(n)
		if err == nil && ref.Digest == "" {
			refs := []reference.Reference{ref}
			if !strings.Contains(n[strings.LastIndexByte(n, '/')+1:], ":") {
				if all, err := s.Tags(ref); err == nil {
					refs = all
				}
			}
			if found := idx.platforms(refs[0]); len(found) > 0 {
				for _, r := range refs {
					if err := take(r.String(), idx.platforms(r)); err != nil {
						return nil, err
					}
				}
				continue
			}
		}
		found, err := idx.find(n, HostPlatform())
		if err != nil {
			return nil, err
		}
		if err := take("", found[:1]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// one reads the image, or the images for several platforms, of one name.
func (s *Store) one(entries index, o SaveOptions) (*saved, error) {
	x := &saved{}
	want := HostPlatform()
	if o.Platform != nil {
		want = normal(*o.Platform)
	}
	if o.Platform != nil || o.Format != OCIArchive {
		e, _ := entries.best(want, func(e entry) bool {
			return o.Platform == nil || e.desc.Platform != nil && rank(want, *e.desc.Platform) > 0
		})
		if e.id == "" {
			return nil, &errdefs.Error{Kind: errdefs.NotFound, Why: "the image is not here for " + platformString(want), Fix: "pull it with --platform first"}
		}
		entries = index{e}
	}
	x.entries = entries
	target := entries[0].target
	wholeIndex := o.Platform == nil && o.Format == OCIArchive && target.Digest != entries[0].desc.Digest
	if wholeIndex {
		raw, err := s.content.ReadAll(target, registry.MaxManifest)
		if err != nil {
			return nil, err
		}
		doc, err := parseDocument(target.MediaType, raw)
		if err != nil {
			return nil, err
		}
		for _, d := range doc.index.Manifests {
			m, err := s.content.ReadAll(d, registry.MaxManifest)
			if ok, perr := present(err); perr != nil {
				return nil, perr
			} else if !ok {
				wholeIndex = false
				break
			}
			img, err := readPushed(d, m)
			if err != nil {
				return nil, err
			}
			x.platform = append(x.platform, img)
		}
		if wholeIndex {
			x.top = smallBlob{target, raw}
			return x, nil
		}
		x.platform = nil
	}
	for _, e := range entries {
		raw, err := s.content.ReadAll(ocispec.Descriptor{Digest: e.desc.Digest}, registry.MaxManifest)
		if err != nil {
			return nil, err
		}
		img, err := readPushed(e.desc, raw)
		if err != nil {
			return nil, err
		}
		x.platform = append(x.platform, img)
	}
	if len(entries) == 1 {
		x.top = x.platform[0].doc
		return x, nil
	}
	p := &pushing{images: x.platform}
	if err := p.indexOf(entries); err != nil {
		return nil, err
	}
	x.top = *p.index
	return x, nil
}

// blobName is a blob's place in a layout.
func blobName(d digest.Digest) string { return "blobs/" + d.Algorithm().String() + "/" + d.Encoded() }

// saveOCI writes a layout.
func (s *Store) saveOCI(ctx context.Context, to sink, images []*saved) error {
	if err := to.add(ocispec.ImageLayoutFile, int64(len(layout)), strings.NewReader(layout)); err != nil {
		return err
	}
	done := map[digest.Digest]bool{}
	var entries []ocispec.Descriptor
	for _, x := range images {
		for _, img := range x.platform {
			if err := s.saveBlobs(ctx, to, img, done); err != nil {
				return err
			}
		}
		if err := saveDocument(to, x.top, done); err != nil {
			return err
		}
		entries = append(entries, x.listed()...)
	}
	return to.index(entries)
}

const layout = `{"imageLayoutVersion":"1.0.0"}`

// listed are the image's entries of index.json.
func (x *saved) listed() []ocispec.Descriptor {
	d := x.top.desc
	d.Annotations = nil
	if len(x.entries) == 1 && x.entries[0].desc.Digest == d.Digest {
		d.Platform = x.entries[0].desc.Platform
	}
	if len(x.names) == 0 {
		return []ocispec.Descriptor{d}
	}
	var out []ocispec.Descriptor
	for _, n := range x.names {
		d.Annotations = map[string]string{ocispec.AnnotationRefName: n, annotationContainerd: n}
		out = append(out, d)
	}
	return out
}

func saveDocument(to sink, b smallBlob, done map[digest.Digest]bool) error {
	if done[b.desc.Digest] {
		return nil
	}
	done[b.desc.Digest] = true
	return to.add(blobName(b.desc.Digest), int64(len(b.b)), strings.NewReader(string(b.b)))
}

// saveBlobs writes a manifest with its blobs, each once.
func (s *Store) saveBlobs(ctx context.Context, to sink, img pushed, done map[digest.Digest]bool) error {
	diffIDs := s.diffIDs(img.manifest.Config.Digest)
	for i, d := range append(slices.Clone(img.manifest.Layers), img.manifest.Config) {
		if done[d.Digest] {
			continue
		}
		done[d.Digest] = true
		var diffID digest.Digest
		if len(diffIDs) == len(img.manifest.Layers) && i < len(diffIDs) {
			diffID = diffIDs[i]
		}
		if err := s.saveBlob(ctx, to, d, diffID, blobName(d.Digest)); err != nil {
			return err
		}
	}
	return saveDocument(to, img.doc, done)
}

// saveBlob writes a blob as it is, verified while it is read.
func (s *Store) saveBlob(ctx context.Context, to sink, d ocispec.Descriptor, diffID digest.Digest, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	b, forget, err := s.openBlob(ctx, d, diffID)
	if err != nil {
		return err
	}
	defer forget()
	_ = b.Close()
	r, err := s.content.Open(d)
	if err != nil {
		return err
	}
	defer r.Close()
	return to.add(name, d.Size, &untilDone{ctx: ctx, r: r})
}

// untilDone is a reader that ends with its context.
type untilDone struct {
	ctx context.Context
	r   io.Reader
}

func (u *untilDone) Read(p []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.r.Read(p)
}

// saveDocker writes what docker load reads. Layers are in it as they are, plain or gzip; docker before 23 reads no zstd,
// so those are decompressed.
func (s *Store) saveDocker(ctx context.Context, to sink, images []*saved) error {
	type row struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	var list []row
	done := map[digest.Digest]bool{}
	asLayout := true
	var entries []ocispec.Descriptor
	for _, x := range images {
		img := x.platform[0]
		r := row{Config: blobName(img.manifest.Config.Digest), RepoTags: []string{}, Layers: []string{}}
		for _, n := range x.names {
			ref, err := reference.Parse(n)
			if err != nil {
				return err
			}
			r.RepoTags = append(r.RepoTags, ref.Familiar())
		}
		diffIDs := s.diffIDs(img.manifest.Config.Digest)
		for i, d := range img.manifest.Layers {
			if !strings.HasSuffix(d.MediaType, "zstd") {
				r.Layers = append(r.Layers, blobName(d.Digest))
				if !done[d.Digest] {
					done[d.Digest] = true
					var diffID digest.Digest
					if len(diffIDs) == len(img.manifest.Layers) {
						diffID = diffIDs[i]
					}
					if err := s.saveBlob(ctx, to, d, diffID, blobName(d.Digest)); err != nil {
						return err
					}
				}
				continue
			}
			asLayout = false
			if len(diffIDs) != len(img.manifest.Layers) {
				return malformed("the image", "its configuration does not describe its layers")
			}
			r.Layers = append(r.Layers, blobName(diffIDs[i]))
			if !done[diffIDs[i]] {
				done[diffIDs[i]] = true
				if err := s.savePlain(ctx, to, d, blobName(diffIDs[i])); err != nil {
					return err
				}
			}
		}
		if c := img.manifest.Config; !done[c.Digest] {
			done[c.Digest] = true
			if err := s.saveBlob(ctx, to, c, "", r.Config); err != nil {
				return err
			}
		}
		if err := saveDocument(to, img.doc, done); err != nil {
			return err
		}
		list = append(list, r)
		entries = append(entries, x.listed()...)
	}
	b, err := json.Marshal(list)
	if err != nil {
		return err
	}
	if err := to.add("manifest.json", int64(len(b)), strings.NewReader(string(b))); err != nil {
		return err
	}
	if !asLayout {
		return nil
	}
	if err := to.add(ocispec.ImageLayoutFile, int64(len(layout)), strings.NewReader(layout)); err != nil {
		return err
	}
	return to.index(entries)
}

// savePlain writes a layer decompressed. A tar wants to know the size before, so it is decompressed twice: nothing is
// kept in between.
func (s *Store) savePlain(ctx context.Context, to sink, d ocispec.Descriptor, name string) error {
	size := int64(0)
	for pass := range 2 {
		r, err := s.content.Open(d)
		if err != nil {
			return err
		}
		plain, _, err := archive.Decompress(&untilDone{ctx: ctx, r: r})
		if err == nil {
			if pass == 0 {
				size, err = io.Copy(io.Discard, plain)
			} else {
				err = to.add(name, size, plain)
			}
			_ = plain.Close()
		}
		_ = r.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// LayoutReader returns an OCI image layout's directory as the archive that Load reads. Only what belongs to a layout is
// in it; links are not followed.
func LayoutReader(ctx context.Context, dir string) (io.ReadCloser, error) {
	fail := func(why string, err error) (io.ReadCloser, error) {
		return nil, &errdefs.Error{Op: "load", What: dir, Kind: errdefs.KindOf(err), Why: why, Err: err, Fix: "an OCI image layout has the files oci-layout and index.json"}
	}
	r, err := os.OpenRoot(dir)
	if err != nil {
		return fail("", err)
	}
	if fi, err := r.Lstat(ocispec.ImageLayoutFile); err != nil || !fi.Mode().IsRegular() {
		_ = r.Close()
		return nil, &errdefs.Error{
			Op: "load", What: dir, Kind: errdefs.InvalidArgument, Why: "it is a directory, and no OCI image layout: it has no oci-layout",
			Fix: "for a root file system use: tar -C " + dir + " -c . | onggi import -",
		}
	}
	pr, pw := io.Pipe()
	go func() {
		defer r.Close()
		w := tar.NewWriter(pw)
		err := writeLayout(ctx, r, w)
		if err == nil {
			err = w.Close()
		}
		_ = pw.CloseWithError(err)
	}()
	return pr, nil
}

func writeLayout(ctx context.Context, r *os.Root, w *tar.Writer) error {
	names := []string{ocispec.ImageLayoutFile, ocispec.ImageIndexFile}
	for _, alg := range []string{"sha256", "sha512"} {
		d, err := r.Open("blobs/" + alg)
		if err != nil {
			continue // none of these
		}
		entries, err := d.ReadDir(-1)
		_ = d.Close()
		if err != nil {
			return err
		}
		for _, e := range entries {
			if digest.NewDigestFromEncoded(digest.Algorithm(alg), e.Name()).Validate() == nil && e.Type().IsRegular() {
				names = append(names, filepath.Join("blobs", alg, e.Name()))
			}
		}
	}
	for _, n := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		f, err := r.Open(n)
		if err != nil {
			return err
		}
		fi, err := f.Stat()
		if err == nil {
			err = w.WriteHeader(&tar.Header{Name: n, Typeflag: tar.TypeReg, Mode: 0o644, Size: fi.Size()})
		}
		if err == nil {
			_, err = io.Copy(w, io.LimitReader(f, fi.Size()))
		}
		_ = f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}
