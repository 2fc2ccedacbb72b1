package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/onggi/onggi/archive"
	"github.com/onggi/onggi/content"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/reference"
	"github.com/onggi/onggi/undo"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Bounds of an archive that is loaded.
const (
	maxMembers   = 20_000
	maxImages    = 1_000
	maxInMemory  = 1 << 20  // of one member; larger ones are spooled to the blob store
	maxAllMemory = 16 << 20 // of all members
	maxLinks     = 8
	maxTail      = 1 << 20 // what may follow the end of the tar
)

// Load brings in the images of an archive: docker-archive or oci-archive, compressed or not, streaming or from a
// file. It returns the images with their names. All of them come in, or none.
//
// The archive is read once, front to back, and may have its members in any order: what is large goes to the blob store
// as it comes, under a lease, and what turns out not to belong to an image is removed at the end.
func (s *Store) Load(ctx context.Context, r io.Reader, f func(Progress)) ([]*Image, error) {
	list, err := s.load(ctx, r, f)
	if err == nil {
		for _, i := range list {
			s.tell("load", string(i.ID), i.anyName())
		}
	}
	return list, err
}

func (s *Store) load(ctx context.Context, r io.Reader, f func(Progress)) (_ []*Image, err error) {
	defer func() {
		if err != nil {
			err = &errdefs.Error{Op: "load", What: "the archive", Kind: errdefs.KindOf(err), Fix: fixOf(err), Err: err}
		}
	}()
	if err := s.recover(ctx); err != nil {
		return nil, err
	}
	steps := undo.New("image")
	defer steps.Undo(&err)
	proto := &bringing{s: s, want: HostPlatform(), progress: newProgress(f), complete: "Load complete"}
	if err := proto.begin(ctx, steps); err != nil {
		return nil, err
	}
	a := &spool{s: s, lease: proto.lease, progress: f, members: map[string]member{}, blobs: map[digest.Digest][]byte{}}
	if err := steps.Do("spool", func() error { return a.read(ctx, r) }, nil); err != nil {
		return nil, err
	}
	proto.source = a
	var loaded []*bringing
	if _, ok := a.members[ocispec.ImageIndexFile]; ok {
		loaded, err = a.loadOCI(ctx, proto, steps)
	} else {
		loaded, err = a.loadDocker(ctx, proto, steps)
	}
	if err != nil {
		return nil, err
	}
	steps.Done()
	// Members that belong to no image were spooled, too.
	if err := proto.lease.drop(ctx); err != nil {
		return nil, err
	}
	var out []*Image
	for _, b := range loaded {
		img, err := b.result()
		if err != nil {
			return nil, err
		}
		img.Names = nil // those that this archive gave
		for _, n := range b.names {
			if ref, err := reference.Parse(n); err == nil {
				img.Names = append(img.Names, ref)
			}
		}
		out = append(out, img)
	}
	return out, nil
}

// spool is an archive's members by name.
type spool struct {
	s        *Store
	lease    *lease
	progress func(Progress)
	members  map[string]member
	blobs    map[digest.Digest][]byte // those in memory
	memory   int64
}

// member is a file of the archive: in memory, in the blob store, or a link to another.
type member struct {
	desc   ocispec.Descriptor
	raw    []byte
	inMem  bool
	link   string
	prefix []byte // its first bytes, to see how it is compressed
}

// read takes the whole archive in.
func (a *spool) read(ctx context.Context, r io.Reader) error {
	br := bufio.NewReaderSize(r, 256<<10)
	if _, err := compression(br); err != nil {
		return err
	}
	plain, _, err := archive.Decompress(br)
	if err != nil {
		return err
	}
	defer plain.Close()
	tr := tar.NewReader(plain)
	for n := 0; ; n++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return tarError(err)
		}
		if n >= maxMembers {
			return malformed("the archive", "it has more than %d members", maxMembers)
		}
		if err := a.take(ctx, h, tr); err != nil {
			return err
		}
	}
	if len(a.members) == 0 {
		return malformed("the archive", "it is no tar archive of images")
	}
	// To the end, so that a damaged tail of a compressed stream is noticed.
	_, err = io.Copy(io.Discard, io.LimitReader(plain, maxTail))
	return err
}

func tarError(err error) error {
	if errdefs.KindOf(err) != errdefs.Unknown {
		return err
	}
	return &errdefs.Error{What: "the archive", Kind: errdefs.Corrupt, Why: "it is not a whole tar archive", Err: err, Fix: "make or copy it again"}
}

func (a *spool) take(ctx context.Context, h *tar.Header, r io.Reader) error {
	name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
	if name == "" || h.Typeflag == tar.TypeDir || h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	if _, twice := a.members[name]; twice {
		return malformed("the archive", "it has %.200q twice", name)
	}
	switch h.Typeflag {
	case tar.TypeReg:
	case tar.TypeSymlink: // older docker versions link equal layers
		a.members[name] = member{link: strings.TrimPrefix(path.Clean("/"+path.Join(path.Dir(name), h.Linkname)), "/")}
		if path.IsAbs(h.Linkname) {
			return malformed("the archive", "its member %.200q is a link to outside", name)
		}
		return nil
	case tar.TypeLink:
		a.members[name] = member{link: strings.TrimPrefix(path.Clean("/"+h.Linkname), "/")}
		return nil
	default:
		return malformed("the archive", "its member %.200q is no file", name)
	}
	if h.Size < 0 {
		return malformed("the archive", "the size of %.200q is negative", name)
	}
	var want digest.Digest // of an OCI layout's blob
	if f := strings.Split(name, "/"); len(f) == 3 && f[0] == "blobs" {
		if want = digest.NewDigestFromEncoded(digest.Algorithm(f[1]), f[2]); content.Check(want) != nil {
			return malformed("the archive", "its member %.200q is no blob", name)
		}
	}
	if h.Size <= maxInMemory && a.memory+h.Size <= maxAllMemory {
		raw := make([]byte, h.Size)
		if _, err := io.ReadFull(r, raw); err != nil {
			return tarError(err)
		}
		hash := content.NewHash(want)
		hash.Write(raw)
		alg := digest.SHA256
		if want != "" {
			alg = want.Algorithm()
		}
		got := digest.NewDigest(alg, hash)
		if want != "" && got != want {
			return malformed("the archive", "the content of %s is that of %s", want, got)
		}
		a.memory += h.Size
		a.blobs[got] = raw
		a.members[name] = member{desc: ocispec.Descriptor{Digest: got, Size: h.Size}, raw: raw, inMem: true, prefix: raw[:min(len(raw), 8)]}
		return nil
	}
	m, err := a.store(ctx, name, ocispec.Descriptor{Digest: want, Size: h.Size}, r)
	a.members[name] = m
	return err
}

// store puts a member into the blob store. It is on the lease before it is visible.
func (a *spool) store(ctx context.Context, name string, desc ocispec.Descriptor, r io.Reader) (member, error) {
	var m member
	w, err := a.s.content.Begin(ctx, desc)
	if err != nil {
		return m, err
	}
	defer w.Close()
	prefix := make([]byte, min(desc.Size, 8))
	if _, err := io.ReadFull(r, prefix); err != nil {
		return m, tarError(err)
	}
	if _, err := w.Write(prefix); err != nil {
		return m, err
	}
	id := memberID(name)
	p := newProgress(a.progress)
	src := &counter{r: r, step: func(n int64) {
		p.moving(digest.Digest(id), "Loading layer", n, desc.Size)
	}}
	if _, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{src}, make([]byte, fetchBuffer)); err != nil {
		return m, tarError(err)
	}
	if err := w.Verify(); err != nil {
		return m, err
	}
	if err := a.lease.add(ctx, w.Digest()); err != nil {
		return m, err
	}
	got, err := w.Commit(ctx)
	return member{desc: got, prefix: prefix}, err
}

// memberID finds the hexadecimal part of a member's name, for the progress lines.
func memberID(name string) string {
	for _, f := range strings.FieldsFunc(name, func(r rune) bool { return r == '/' || r == '.' }) {
		if len(f) == 64 {
			return f
		}
	}
	return cleanText(path.Base(name))
}

// find follows links.
func (a *spool) find(name string) (member, error) {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	for range maxLinks {
		m, ok := a.members[name]
		if !ok {
			return m, malformed("the archive", "it lacks %.200q", name)
		}
		if m.link == "" {
			return m, nil
		}
		name = m.link
	}
	return member{}, malformed("the archive", "its links at %.200q go in circles", name)
}

func (a *spool) text(name string, limit int64) ([]byte, error) {
	m, err := a.find(name)
	if err != nil {
		return nil, err
	}
	if m.desc.Size > limit {
		return nil, malformed("the archive", "%.200q has %d bytes, more than %d", name, m.desc.Size, limit)
	}
	if m.inMem {
		return m.raw, nil
	}
	return a.s.content.ReadAll(m.desc, limit)
}

func (a *spool) document(_ context.Context, d ocispec.Descriptor) ([]byte, error) { return a.small(d) }

func (a *spool) config(_ context.Context, d ocispec.Descriptor) ([]byte, error) { return a.small(d) }

// small returns a blob that came in memory. Those in the store have been looked for there.
func (a *spool) small(d ocispec.Descriptor) ([]byte, error) {
	b, ok := a.blobs[d.Digest]
	if !ok {
		return nil, malformed("the archive", "it lacks the blob %s", d.Digest)
	}
	if d.Size != int64(len(b)) {
		return nil, malformed("the archive", "its blob %s has %d bytes instead of %d", d.Digest, len(b), d.Size)
	}
	return b, nil
}

func (a *spool) layer(_ context.Context, d ocispec.Descriptor) (io.ReadCloser, func(), error) {
	b, err := a.small(d)
	return io.NopCloser(bytes.NewReader(b)), func() {}, err
}

// child is a bringing of one of the archive's images.
func (b *bringing) child(names []string) *bringing {
	c := *b
	c.names = names
	return &c
}

// loadOCI brings in what index.json lists. Entries of one name are one image for several platforms.
func (a *spool) loadOCI(ctx context.Context, proto *bringing, steps *undo.Stack) ([]*bringing, error) {
	raw, err := a.text(ocispec.ImageIndexFile, 4<<20)
	if err != nil {
		return nil, err
	}
	doc, err := parseDocument(ocispec.MediaTypeImageIndex, raw)
	if err != nil {
		return nil, err
	}
	var order []string
	groups := map[string][]ocispec.Descriptor{}
	for _, d := range doc.index.Manifests {
		n, err := layoutName(d)
		if err != nil {
			return nil, err
		}
		key := n
		if n == "" && d.Platform == nil {
			key = "\x00" + string(d.Digest) // nameless and for no platform: an image of its own
		}
		if groups[key] == nil {
			order = append(order, key)
		}
		groups[key] = append(groups[key], d)
	}
	if len(order) > maxImages {
		return nil, malformed("the archive", "it has %d images, more than %d", len(order), maxImages)
	}
	var loaded []*bringing
	for _, key := range order {
		target := groups[key][0]
		if len(groups[key]) > 1 {
			if target, err = choose(&ocispec.Index{Manifests: groups[key]}, proto.want); err != nil {
				return nil, err
			}
		}
		b := proto.child(nil)
		if key != "" && key[0] != 0 {
			b.names = []string{key}
		}
		target = ocispec.Descriptor{MediaType: target.MediaType, Digest: target.Digest, Size: target.Size}
		several, err := a.loadPlatforms(ctx, b, steps, target)
		if err != nil {
			return nil, err
		}
		if len(several) > 0 {
			loaded = append(loaded, several...)
			continue
		}
		if err := b.bring(ctx, steps, target); err != nil {
			return nil, err
		}
		loaded = append(loaded, b)
	}
	return loaded, nil
}

// loadPlatforms brings in the images of an index that are in the archive, side by side, and the attestations. None:
// target is no index, or the archive has nothing of it.
func (a *spool) loadPlatforms(ctx context.Context, b *bringing, steps *undo.Stack, target ocispec.Descriptor) ([]*bringing, error) {
	raw, err := a.small(target)
	if err != nil {
		return nil, nil // bring says what is wrong
	}
	doc, err := parseDocument(target.MediaType, raw)
	if err != nil || doc.index == nil {
		return nil, err
	}
	if target.MediaType == "" {
		target.MediaType = ocispec.MediaTypeImageIndex
	}
	var loaded []*bringing
	for _, d := range doc.index.Manifests {
		m, err := a.small(d)
		if err != nil {
			continue // of a platform that is not in the archive
		}
		if isAttestation(d) {
			if err := a.loadArtifact(ctx, d, m); err != nil {
				return nil, err
			}
			continue
		}
		x := b.child(b.names)
		x.explicit, x.small, x.above = false, nil, &smallBlob{target, raw}
		if d.Platform != nil {
			x.want = normal(*d.Platform)
		}
		if err := x.bring(ctx, steps, ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}); err != nil {
			return nil, err
		}
		loaded = append(loaded, x)
	}
	return loaded, nil
}

// loadArtifact keeps a manifest that is no image with its blobs. Large ones are in the store already.
func (a *spool) loadArtifact(ctx context.Context, d ocispec.Descriptor, raw []byte) error {
	img, err := readPushed(d, raw)
	if err != nil {
		return err
	}
	keep := []smallBlob{img.doc}
	for _, x := range append([]ocispec.Descriptor{img.manifest.Config}, img.manifest.Layers...) {
		if err := a.lease.add(ctx, x.Digest); err != nil {
			return err
		}
		if b, err := a.small(x); err == nil {
			keep = append(keep, smallBlob{x, b})
		} else if _, serr := a.s.content.Stat(x.Digest); serr != nil {
			return err
		}
	}
	if err := a.lease.add(ctx, d.Digest); err != nil {
		return err
	}
	store := bringing{s: a.s, small: keep}
	return store.storeSmall(ctx)
}

// layoutName reads an entry's name: containerd's annotation, or image-spec's, which holds a tag or a whole name.
func layoutName(d ocispec.Descriptor) (string, error) {
	n := d.Annotations[annotationContainerd]
	if n == "" {
		if n = d.Annotations[ocispec.AnnotationRefName]; n == "latest" {
			return "", nil // a tag alone names nothing
		}
	}
	if n == "" {
		return "", nil
	}
	ref, err := reference.Parse(n)
	if err != nil {
		return "", err
	}
	return ref.String(), nil
}

// loadDocker brings in what manifest.json lists ("docker save").
func (a *spool) loadDocker(ctx context.Context, proto *bringing, steps *undo.Stack) ([]*bringing, error) {
	raw, err := a.text("manifest.json", 4<<20)
	if err != nil {
		if _, old := a.members["repositories"]; old {
			return nil, &errdefs.Error{
				What: "the archive", Kind: errdefs.Unsupported, Why: "it was saved by a docker older than 1.10 (it has no manifest.json)",
				Fix: "load it into a newer docker and save it again",
			}
		}
		return nil, &errdefs.Error{
			What: "the archive", Kind: errdefs.InvalidArgument, Why: "it has neither manifest.json nor index.json: it is no archive of images",
			Fix: "for a root file system's tar use: onggi import",
		}
	}
	if err := unambiguous(raw, nil); err != nil {
		return nil, malformed("manifest.json", "%v", err)
	}
	var list []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, malformed("manifest.json", "%v", err)
	}
	if len(list) == 0 || len(list) > maxImages {
		return nil, malformed("manifest.json", "it lists %d images", len(list))
	}
	var loaded []*bringing
	for _, x := range list {
		b := proto.child(nil)
		for _, t := range x.RepoTags {
			ref, err := reference.Parse(t)
			if err != nil {
				return nil, err
			}
			if ref.Digest == "" && !slices.Contains(b.names, ref.String()) {
				b.names = append(b.names, ref.String())
			}
		}
		if err := a.loadOne(ctx, b, steps, x.Config, x.Layers); err != nil {
			return nil, err
		}
		loaded = append(loaded, b)
	}
	return loaded, nil
}

func (a *spool) loadOne(ctx context.Context, b *bringing, steps *undo.Stack, config string, layers []string) error {
	raw, err := a.text(config, maxConfig)
	if err != nil {
		return err
	}
	if len(layers) > maxLayers {
		return malformed("manifest.json", "it lists %d layers, more than %d", len(layers), maxLayers)
	}
	var descs []ocispec.Descriptor
	for _, l := range layers {
		m, err := a.find(l)
		if err != nil {
			return err
		}
		enc, err := sniff(m.prefix)
		if err != nil {
			return err
		}
		d := m.desc
		d.MediaType = layerType(enc)
		descs = append(descs, d)
	}
	if b.config, err = parseConfig(raw); err != nil {
		return err
	}
	if err := b.synthesize(ctx, b.config, raw, descs); err != nil {
		return err
	}
	if err := checkPair(&b.manifest, b.config); err != nil {
		return err
	}
	for i, d := range descs {
		// What a plain tar holds is known without unpacking it, also when the layer is here and is not unpacked again.
		if diffID := b.config.RootFS.DiffIDs[i]; d.MediaType == ocispec.MediaTypeImageLayer && diffID.Algorithm() == d.Digest.Algorithm() && diffID != d.Digest {
			return malformed("the archive", "its layer %.200q has the digest %s instead of %s", layers[i], d.Digest, diffID)
		}
	}
	need := slices.Clone(b.config.RootFS.DiffIDs)
	for _, d := range descs {
		need = append(need, d.Digest)
	}
	if err := b.lease.add(ctx, need...); err != nil {
		return err
	}
	if err := steps.Do("layers", func() error { return b.fetchLayers(ctx) }, nil); err != nil {
		return fmt.Errorf("%.80s: %w", cleanText(config), err)
	}
	if err := steps.Do("blobs", func() error { return b.storeSmall(ctx) }, nil); err != nil {
		return err
	}
	return b.nameIt(ctx, steps)
}
