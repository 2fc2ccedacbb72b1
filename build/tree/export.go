package tree

import (
	"archive/tar"
	"context"
	"io"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"
)

// Tar writes the view's files below prefix, sorted, without an entry for the root: names, modes, owners, times, links and
// extended attributes as they are; sockets, which no tar can hold, are left out.
func (v *View) Tar(ctx context.Context, w *tar.Writer, prefix string) error {
	links := map[[2]uint64]string{}
	return v.walk(ctx, ".", nil, func(e *file) error {
		if e.path == "." {
			return nil
		}
		name := path.Join(prefix, e.path)
		uid, gid := v.owner(&e.st)
		ts := v.modified(&e.st)
		h := &tar.Header{
			Name: name, Mode: int64(e.st.Mode & 0o7777), Uid: int(uid), Gid: int(gid), ModTime: time.Unix(ts.Sec, ts.Nsec).UTC().Truncate(time.Second),
		}
		var body *os.File
		switch e.st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			h.Typeflag = tar.TypeReg
			key := [2]uint64{uint64(e.st.Dev), e.st.Ino}
			if first, ok := links[key]; ok {
				h.Typeflag, h.Linkname = tar.TypeLink, first
				return w.WriteHeader(h)
			}
			if e.st.Nlink > 1 {
				links[key] = name
			}
			f, err := openRegular(e)
			if err != nil {
				return err
			}
			defer f.Close()
			h.Size, body = e.st.Size, f
		case unix.S_IFDIR:
			h.Typeflag, h.Name = tar.TypeDir, name+"/"
		case unix.S_IFLNK:
			to, err := readlink(e)
			if err != nil {
				return err
			}
			h.Typeflag, h.Linkname = tar.TypeSymlink, to
		case unix.S_IFIFO:
			h.Typeflag = tar.TypeFifo
		case unix.S_IFCHR, unix.S_IFBLK:
			h.Typeflag = tar.TypeChar
			if e.st.Mode&unix.S_IFMT == unix.S_IFBLK {
				h.Typeflag = tar.TypeBlock
			}
			h.Devmajor, h.Devminor = int64(unix.Major(uint64(e.st.Rdev))), int64(unix.Minor(uint64(e.st.Rdev)))
		default:
			return nil
		}
		if body != nil {
			list, err := xattrs(body)
			if err != nil {
				return err
			}
			for _, x := range list {
				if h.PAXRecords == nil {
					h.PAXRecords = map[string]string{}
				}
				h.PAXRecords["SCHILY.xattr."+x.name] = string(x.value)
			}
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if body != nil {
			_, err := io.CopyN(w, body, h.Size)
			return err
		}
		return nil
	})
}

// Export copies all of v into dir (relative, "." for the root), as the files of ids: what is there and not in v stays, what
// is in both gives way. Device files are not made, but told to skipped: in a directory of the host they would be a way to the host's
// devices.
func (t *Target) Export(ctx context.Context, v *View, dir string, ids IDs, skipped func(path string)) error {
	d, err := t.mkdirs(clean(dir), 0o755, &ids, nil)
	if err != nil {
		return err
	}
	defer d.Close()
	into := NewTarget(d)
	into.links = map[[2]uint64]string{}
	c := &copier{ctx: ctx, src: v, t: into, how: &manner{ids: &ids, mode: -1, noDevice: skipped}}
	return c.contents(".", d)
}
