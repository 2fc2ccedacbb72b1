package build

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/onggi/onggi/build/frontend"
	"github.com/onggi/onggi/build/graph"
	"github.com/onggi/onggi/build/tree"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/image"
	"github.com/onggi/onggi/reference"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// OutputType is a form of a result.
type OutputType string

// The forms. An image of several platforms is an index.
const (
	ToStore     OutputType = "image"  // an image of the store, and with Push of the registries of its names
	ToOCI       OutputType = "oci"    // an OCI image layout, in a tar or a directory
	ToDocker    OutputType = "docker" // docker's archive
	ToDirectory OutputType = "local"  // the files
	ToTar       OutputType = "tar"    // the files, in a tar
)

// Output is what is done with a result.
type Output struct {
	Type  OutputType
	Names []reference.Reference // of the image forms
	Push  bool                  // of ToStore
	// Dest is the file of an archive or the directory of files; Directory says that Dest is one for ToOCI, too. Without Dest
	// an archive is written to Out.
	Dest      string
	Directory bool
	Out       io.Writer
	// Compression of layers that are plain tars; nil: they stay so. Force compresses those again that are in another form.
	Compression *image.Compression
	Force       bool
	// Annotations are of manifests, IndexAnnotations of the index, EntryAnnotations of its entries.
	Annotations, IndexAnnotations, EntryAnnotations map[string]string
	// Split gives each platform's files a directory of their own (linux_amd64); nil: if several were asked for.
	Split *bool
	// UID and GID own the files of ToDirectory.
	UID, GID uint32
}

// built is what a build came to.
type built struct {
	index bool // several platforms were asked for
	parts []part
}

// part is the result for one platform.
type part struct {
	platform frontend.Platform
	result   *result
	sbom     *spdx // if it was asked for
}

// give makes one output.
func (s *session) give(ctx context.Context, o *Output, b *built, out *Result) (err error) {
	step := Step{Vertex: digest.FromString(fmt.Sprintf("output %s %s %v", o.Type, o.Dest, o.Names)), Name: "exporting to " + title[o.Type]}
	begin, h := time.Now(), s.journal.step(&graph.Graph{}, nil, &graph.Vertex{ID: step.Vertex, Name: step.Name})
	tell := func(st State) {
		step.State, step.Took, step.Err = st, time.Since(begin), err
		s.journal.tell(h, step)
	}
	tell(Started)
	defer func() {
		switch {
		case err == nil:
			tell(Done)
		case ctx.Err() != nil:
			tell(Canceled)
		default:
			tell(Failed)
		}
	}()
	switch o.Type {
	case ToDirectory:
		return s.giveDirectory(ctx, o, b)
	case ToTar:
		return o.write(func(w io.Writer) error { return s.giveTar(ctx, o, b, w) })
	}
	made, err := s.make(ctx, o, b)
	if err != nil {
		return err
	}
	out.Desc, out.Names, out.Config = &made.Desc, o.Names, ""
	if len(b.parts) == 1 {
		config, err := configure(b.parts[0].platform, b.parts[0].result, s.inline(b.parts[0].result))
		if err != nil {
			return err
		}
		out.Config = digest.FromBytes(config)
	}
	switch o.Type {
	case ToStore:
		if out.Images, err = s.images.Keep(ctx, made, o.Names); err != nil {
			return err
		}
		if o.Push {
			for _, n := range o.Names {
				if err := s.o.PushImage(ctx, n); err != nil {
					return err
				}
			}
		}
		return nil
	case ToOCI:
		if o.Directory {
			return s.images.SaveMadeLayout(ctx, o.Dest, made, o.Names)
		}
		return o.write(func(w io.Writer) error {
			return s.images.SaveMade(ctx, w, made, o.Names, image.SaveOptions{Format: image.OCIArchive})
		})
	case ToDocker:
		return o.write(func(w io.Writer) error {
			return s.images.SaveMade(ctx, w, made, o.Names, image.SaveOptions{Format: image.DockerArchive})
		})
	}
	return unsupported("the output " + string(o.Type))
}

// title is what progress calls an output; BuildKit's words.
var title = map[OutputType]string{
	ToStore: "image", ToOCI: "oci image format", ToDocker: "docker image format", ToDirectory: "client directory", ToTar: "client tarball",
}

// make stores the image, which has no name yet.
func (s *session) make(ctx context.Context, o *Output, b *built) (*image.Made, error) {
	a := image.Assembly{Index: b.index, Annotations: o.IndexAnnotations, Compression: o.Compression, Force: o.Force}
	for _, p := range b.parts {
		if p.result.local != nil {
			return nil, unsupported("an image of a directory of the user")
		}
		config, err := configure(p.platform, p.result, s.inline(p.result))
		if err != nil {
			return nil, err
		}
		x := image.Part{Config: config, Annotations: o.Annotations, OnIndex: o.EntryAnnotations}
		if o.Type != ToDocker { // docker's archive has no place for it
			x.Attest = s.attestations(o.Names, p)
		}
		for _, l := range p.result.layers {
			x.Layers = append(x.Layers, l.Blob)
		}
		a.Parts = append(a.Parts, x)
	}
	return s.images.Make(ctx, s.hold, a)
}

// dir is a platform's directory in an output of files: "" when there is one platform only.
func (o *Output) dir(b *built, p *part) string {
	if o.Split != nil && !*o.Split || o.Split == nil && !b.index {
		return ""
	}
	return strings.ReplaceAll(platformName(p.platform.Platform), "/", "_")
}

func platformName(p ocispec.Platform) string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

func (s *session) giveDirectory(ctx context.Context, o *Output, b *built) error {
	if err := os.MkdirAll(o.Dest, 0o755); err != nil {
		return err
	}
	root, err := os.Open(o.Dest)
	if err != nil {
		return err
	}
	defer root.Close()
	target := tree.NewTarget(root)
	var devices []string
	for i := range b.parts {
		p := &b.parts[i]
		view, err := s.view(ctx, p.result)
		if err != nil {
			return err
		}
		err = target.Export(ctx, view, o.dir(b, p), tree.IDs{UID: o.UID, GID: o.GID}, func(p string) { devices = append(devices, p) })
		if err == nil {
			for _, f := range s.statementFiles(p) {
				err = errors.Join(err, writeBelow(root, path.Join(o.dir(b, p), f.name), f.data))
			}
		}
		if err != nil {
			return &errdefs.Error{Op: "write the files to", What: o.Dest, Kind: errdefs.KindOf(err), Fix: errdefs.FixOf(err), Err: err}
		}
	}
	if n := len(devices); n > 0 {
		s.o.Progress.Warn(frontend.Warning{Text: fmt.Sprintf("%d device files were not written to %s (/%s first): use type=tar to have them", n, o.Dest, devices[0])})
	}
	return nil
}

func (s *session) giveTar(ctx context.Context, o *Output, b *built, w io.Writer) error {
	tw := tar.NewWriter(w)
	for i := range b.parts {
		p := &b.parts[i]
		view, err := s.view(ctx, p.result)
		if err != nil {
			return err
		}
		dir := o.dir(b, p)
		if dir != "" {
			if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755, ModTime: p.result.epoch}); err != nil {
				return err
			}
		}
		if err := view.Tar(ctx, tw, dir); err != nil {
			return err
		}
		for _, f := range s.statementFiles(p) {
			if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path.Join(dir, f.name), Mode: 0o644, Size: int64(len(f.data)), ModTime: p.result.epoch}); err != nil {
				return err
			}
			if _, err := tw.Write(f.data); err != nil {
				return err
			}
		}
	}
	return tw.Close()
}

// write has f write the archive: to Out, or to a file that takes the place of Dest when it is whole. What is no regular file,
// a pipe say, is written to as it is.
func (o *Output) write(f func(io.Writer) error) (err error) {
	defer func() {
		if err != nil && o.Dest != "" {
			err = &errdefs.Error{Op: "write", What: o.Dest, Kind: errdefs.KindOf(err), Fix: errdefs.FixOf(err), Err: err}
		}
	}()
	if o.Dest == "" {
		return buffered(o.Out, f)
	}
	fi, err := os.Stat(o.Dest)
	if err == nil && fi.IsDir() {
		return &errdefs.Error{Kind: errdefs.Conflict, Why: "it is a directory", Fix: "name a file"}
	}
	if err == nil && !fi.Mode().IsRegular() {
		w, err := os.OpenFile(o.Dest, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		return errors.Join(buffered(w, f), w.Close())
	}
	w, err := os.CreateTemp(filepath.Dir(o.Dest), "."+path.Base(o.Dest)+".")
	if err != nil {
		return err
	}
	defer os.Remove(w.Name()) // fails after the rename, as it should
	if err := errors.Join(buffered(w, f), w.Chmod(0o644), w.Close()); err != nil {
		return err
	}
	return os.Rename(w.Name(), o.Dest)
}

func buffered(w io.Writer, f func(io.Writer) error) error {
	b := bufio.NewWriterSize(w, 1<<20)
	if err := f(b); err != nil {
		return err
	}
	return b.Flush()
}

// writeBelow writes a file that no link leads out of the directory.
func writeBelow(dir *os.File, name string, data []byte) error {
	r, err := os.OpenRoot(dir.Name())
	if err != nil {
		return err
	}
	defer r.Close()
	return r.WriteFile(name, data, 0o644)
}
