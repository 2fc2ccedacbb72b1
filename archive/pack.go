package archive

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/pathrs"
	"golang.org/x/sys/unix"
)

// Pack writes the difference as a layer's uncompressed tar (image-spec, "layer.md"): what was added or changed whole,
// with the directories on the way to it; for what was deleted a whiteout, ".wh.NAME"; for a directory that replaced one
// an opaque whiteout, ".wh..wh..opq", before what is in it.
//
// The same difference gives the same bytes: entries are sorted by their names, times are whole seconds, owners are
// numbers, attributes are sorted; of several names of one file the first holds it and the others are hard links.
// Sockets are left out, which no tar can hold. Errors: Conflict when a file shrinks while it is read; InvalidArgument
// for a file whose name would be taken for a whiteout; and w's.
func (d *Difference) Pack(ctx context.Context, w io.Writer) (Stats, error) {
	p := &packer{ctx: ctx, tw: tar.NewWriter(w), links: map[inode]string{}, buf: make([]byte, bufSize)}
	p.merged = func() (*os.File, error) {
		if d.Merged == nil {
			return nil, &errdefs.Error{Kind: errdefs.Unsupported, Why: "overlayfs has copied up only its metadata (metacopy)"}
		}
		if p.view == nil {
			var err error
			if p.view, err = d.Merged(); err != nil {
				return nil, err
			}
		}
		return p.view, nil
	}
	defer func() {
		if p.view != nil {
			_ = p.view.Close()
		}
	}()
	if err := d.walk(ctx, p.entry); err != nil {
		return p.stats, err
	}
	if err := p.tw.Close(); err != nil {
		return p.stats, &errdefs.Error{Op: "write the layer", Kind: errdefs.KindOf(err), Err: err}
	}
	return p.stats, nil
}

type inode struct{ dev, ino uint64 }

// packer is one run of Pack.
type packer struct {
	ctx    context.Context
	tw     *tar.Writer
	links  map[inode]string // files with several names: the first of them
	buf    []byte
	merged func() (*os.File, error)
	view   *os.File
	stats  Stats
}

func (p *packer) entry(e *differing) error {
	err := p.write(e)
	if err == nil || errdefs.As(err).Op != "" && errdefs.As(err).Op != "read" {
		return err
	}
	return &errdefs.Error{Op: "pack", What: "/" + e.path, Kind: errdefs.KindOf(err), Fix: errdefs.FixOf(err), Err: err}
}

func (p *packer) write(e *differing) error {
	if e.path == "." && e.kind == carrying {
		return nil // implied, and as it was
	}
	dir, base := split(e.path)
	if strings.HasPrefix(base, whiteoutPrefix) {
		return &errdefs.Error{
			Kind: errdefs.InvalidArgument, Why: "a layer would take the name for the deletion of " + quote(strings.TrimPrefix(base, whiteoutPrefix)),
			Fix: "rename the file: names that begin with .wh. cannot be in an image",
		}
	}
	if e.kind == Deleted {
		return p.whiteout(join(dir, whiteoutPrefix+base))
	}
	h := &tar.Header{
		Name: e.path, Mode: int64(e.st.Mode & 0o7777), Uid: int(e.st.Uid), Gid: int(e.st.Gid),
		ModTime: time.Unix(e.st.Mtim.Sec, 0),
	}
	switch e.st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return p.directory(e, h)
	case unix.S_IFSOCK:
		return nil
	}
	if e.st.Nlink > 1 {
		id := inode{uint64(e.st.Dev), e.st.Ino}
		if first, ok := p.links[id]; ok {
			h.Typeflag, h.Linkname = tar.TypeLink, first
			return p.header(h)
		}
		p.links[id] = e.path
	}
	switch e.st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return p.file(e, h)
	case unix.S_IFLNK:
		target, err := readlinkat(e.parent, e.name)
		if err != nil {
			return &os.PathError{Op: "readlink", Path: "/" + e.path, Err: err}
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if e.st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(uint64(e.st.Rdev))), int64(unix.Minor(uint64(e.st.Rdev)))
	default:
		return &errdefs.Error{Kind: errdefs.Unsupported, Why: fmt.Sprintf("no layer can hold a file of type %o", e.st.Mode&unix.S_IFMT)}
	}
	return p.header(h)
}

func (p *packer) header(h *tar.Header) error {
	p.stats.Entries++
	return p.tw.WriteHeader(h)
}

// whiteout has no owner and no time: it says one thing only.
func (p *packer) whiteout(name string) error {
	return p.header(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, ModTime: time.Unix(0, 0)})
}

func (p *packer) directory(e *differing, h *tar.Header) error {
	fd := e.parent
	if e.path != "." {
		var err error
		if fd, err = pathrs.Openat2(e.parent, e.name, dirFlags, 0, within); err != nil {
			return &os.PathError{Op: "open", Path: "/" + e.path, Err: err}
		}
		defer unix.Close(fd)
	}
	if err := attach(fd, h); err != nil {
		return err
	}
	h.Typeflag, h.Name = tar.TypeDir, e.path+"/"
	if err := p.header(h); err != nil {
		return err
	}
	if e.hides {
		return p.whiteout(join(e.path, opaqueName))
	}
	return nil
}

// attach puts the extended attributes of fd into the header.
func attach(fd int, h *tar.Header) error {
	xs, err := keptXattrs(fd)
	if err != nil || len(xs) == 0 {
		return err
	}
	h.PAXRecords = map[string]string{} // the writer sorts them
	for _, x := range xs {
		h.PAXRecords[paxXattr+x.name] = string(x.value)
	}
	return nil
}

func (p *packer) file(e *differing, h *tar.Header) error {
	meta, err := openRegular(e.parent, e.name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // removed meanwhile
	}
	if err != nil {
		return err
	}
	defer meta.Close()
	if err := attach(int(meta.Fd()), h); err != nil {
		return err
	}
	from := meta
	if e.partly {
		view, err := p.merged()
		if err != nil {
			return err
		}
		if from, err = pathrs.OpenBeneath(view, e.path, unix.O_RDONLY|unix.O_NOFOLLOW, 0); err != nil {
			return err
		}
		defer from.Close()
	}
	fi, err := from.Stat()
	if err != nil {
		return err
	}
	h.Typeflag, h.Size = tar.TypeReg, fi.Size()
	if err := p.header(h); err != nil {
		return err
	}
	p.stats.Bytes += h.Size
	for left := h.Size; left > 0; {
		if err := p.ctx.Err(); err != nil {
			return err
		}
		n, err := from.Read(p.buf[:min(int64(len(p.buf)), left)])
		if n == 0 {
			if err == io.EOF || err == nil {
				return &errdefs.Error{Kind: errdefs.Conflict, Why: "it became shorter while it was read", Fix: "stop or pause the container, and try again"}
			}
			return err
		}
		if _, err := p.tw.Write(p.buf[:n]); err != nil {
			return err
		}
		left -= int64(n)
	}
	return nil
}
