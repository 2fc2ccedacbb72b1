package archive

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/pathrs"
	"golang.org/x/sys/unix"
)

// Trees are files on their way in and out of a container (cp), not layers: there are no whiteouts, what is there already
// stays unless a file takes its place, and both sides may change while they are copied.

// maxTreeDepth bounds how deep directories are nested.
const maxTreeDepth = 4096

// PackTree writes the file name of the directory dir, and all that is below it, as a tar archive whose first entry is
// called top ("." for only what is in it). Links are written as links. Everything is reached by handles of directories;
// none is reached through a link. Sockets, and file systems of the kernel's own below name (proc, sysfs, ...), are left
// out. A file that changes its size meanwhile has the size that it had when it was begun.
func PackTree(ctx context.Context, w io.Writer, dir *os.File, name, top string) error {
	p := &treePacker{ctx: ctx, w: tar.NewWriter(w), links: map[[2]uint64]string{}, buf: make([]byte, 256<<10)}
	if err := p.entry(int(dir.Fd()), name, top, 0); err != nil {
		return &errdefs.Error{Op: "copy", What: path.Join(dir.Name(), name), Kind: errdefs.KindOf(err), Err: err}
	}
	return p.w.Close()
}

type treePacker struct {
	ctx   context.Context
	w     *tar.Writer
	links map[[2]uint64]string // names of files with several, by device and number
	buf   []byte
}

// entry writes one file of an open directory; "." is the directory itself.
func (p *treePacker) entry(dirfd int, base, name string, depth int) error {
	if err := p.ctx.Err(); err != nil {
		return err
	}
	if depth > maxTreeDepth {
		return &errdefs.Error{Kind: errdefs.Exhausted, Why: "its directories are nested too deeply"}
	}
	fd, err := pathrs.Openat2(dirfd, base, unix.O_PATH|unix.O_NOFOLLOW, 0, pathrs.NoSymlinks)
	if depth > 0 && (err == unix.ENOENT || err == unix.ENOTDIR) {
		return nil // removed meanwhile
	}
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	h := &tar.Header{
		Name: name, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid), ModTime: time.Unix(st.Mtim.Unix()), Format: tar.FormatPAX,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return p.dir(f, h, depth)
	case unix.S_IFREG:
		if st.Nlink > 1 {
			key := [2]uint64{uint64(st.Dev), st.Ino}
			if first, ok := p.links[key]; ok {
				h.Typeflag, h.Linkname = tar.TypeLink, first
				return p.w.WriteHeader(h)
			}
			p.links[key] = name
		}
		return p.file(f, h, st.Size)
	case unix.S_IFLNK:
		target, err := readlink(fd)
		if err != nil {
			return err
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	default:
		return nil
	}
	return p.w.WriteHeader(h)
}

func readlink(fd int) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

func (p *treePacker) dir(f *os.File, h *tar.Header, depth int) error {
	var fsys unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fsys); err != nil {
		return err
	}
	if depth > 0 && kernels(int64(fsys.Type)) {
		return nil
	}
	d, err := pathrs.Reopen(f, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer d.Close()
	name := h.Name
	h.Typeflag, h.Name = tar.TypeDir, name+"/"
	if err := p.attributes(d, h); err != nil {
		return err
	}
	if err := p.w.WriteHeader(h); err != nil {
		return err
	}
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, n := range names {
		if err := p.entry(int(d.Fd()), n, path.Join(name, n), depth+1); err != nil {
			return err
		}
	}
	return nil
}

// kernels reports file systems that show the kernel and not files.
func kernels(magic int64) bool {
	switch magic {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.DEVPTS_SUPER_MAGIC, unix.DEBUGFS_MAGIC,
		unix.TRACEFS_MAGIC, unix.SECURITYFS_MAGIC, unix.BPF_FS_MAGIC, unix.PSTOREFS_MAGIC, unix.EFIVARFS_MAGIC, 0x19800202: // mqueue
		return true
	}
	return false
}

func (p *treePacker) file(f *os.File, h *tar.Header, size int64) error {
	r, err := pathrs.Reopen(f, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	defer r.Close()
	h.Typeflag, h.Size = tar.TypeReg, size
	if err := p.attributes(r, h); err != nil {
		return err
	}
	if err := p.w.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.CopyBuffer(onlyWriter{p.w}, &bounded{p.ctx, io.LimitReader(r, size)}, p.buf)
	if err != nil {
		return fmt.Errorf("%s: %w", h.Name, err)
	}
	clear(p.buf)
	for n < size { // it has shrunk
		m, err := p.w.Write(p.buf[:min(int64(len(p.buf)), size-n)])
		if err != nil {
			return err
		}
		n += int64(m)
	}
	return nil
}

type onlyWriter struct{ io.Writer }

// bounded ends with its context.
type bounded struct {
	ctx context.Context
	r   io.Reader
}

func (b *bounded) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	return b.r.Read(p)
}

// carried are the attributes that are copied: a program's capabilities, and the user's own.
func carried(name string) bool {
	// Those of overlayfs would be control input (xattrsOf).
	return name == "security.capability" || strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "user.overlay.")
}

func (p *treePacker) attributes(f *os.File, h *tar.Header) error {
	buf := make([]byte, 64<<10)
	n, err := unix.Flistxattr(int(f.Fd()), buf)
	if err != nil { // the file system has none, or more than fit
		return nil
	}
	for _, name := range strings.Split(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		if !carried(name) {
			continue
		}
		v := make([]byte, 64<<10)
		m, err := unix.Fgetxattr(int(f.Fd()), name, v)
		if err != nil {
			continue
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+name] = string(v[:m])
	}
	return nil
}

// UnpackOptions of UnpackTree.
type UnpackOptions struct {
	// At is the directory to unpack in, relative to the handle; "" is the handle's own.
	At string
	// Rename takes the place of the first part of each name; "" leaves it, "." drops it: what is in it is unpacked.
	Rename string
	// Owner gives every file these ids instead of the archive's; nil keeps those of the archive.
	Owner *[2]int
	// Inside says that the handle is the root of a container's tree: links on the way are followed in it, as a process in
	// there would. Else none is followed: what an archive of unknown origin holds cannot lead anywhere.
	Inside bool
	// Devices and SetID allow device nodes and set-user-id bits.
	Devices, SetID bool
	Limits         Limits
}

// UnpackTree unpacks a tar archive, compressed or not, into a directory. A file takes the place of one that is there; a
// directory and another kind of file never take each other's place (AlreadyExists). Nothing is written outside of the handle.
func UnpackTree(ctx context.Context, r io.Reader, root *os.File, o UnpackOptions) error {
	z, _, err := Decompress(r)
	if err != nil {
		return err
	}
	defer z.Close()
	u := &unpacker{ctx: ctx, o: o, root: int(root.Fd()), parent: -1, buf: make([]byte, 256<<10)}
	if u.o.Limits.Entries == 0 {
		u.o.Limits.Entries = defaultEntries
	}
	defer u.closeParent()
	t := tar.NewReader(z)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return &errdefs.Error{Op: "read", What: "the archive", Kind: errdefs.InvalidArgument, Why: "it is not a tar archive, or ends too early", Err: err}
		}
		if u.entries++; u.entries > u.o.Limits.Entries {
			return &errdefs.Error{Op: "unpack", Kind: errdefs.Exhausted, Why: fmt.Sprintf("the archive has more than %d entries", u.o.Limits.Entries)}
		}
		if err := u.entry(h, t); err != nil {
			return &errdefs.Error{Op: "write", What: h.Name, Kind: errdefs.KindOf(err), Err: err, Fix: errdefs.FixOf(err)}
		}
	}
	for i := len(u.dirs) - 1; i >= 0; i-- {
		if err := u.finish(u.dirs[i]); err != nil {
			return err
		}
	}
	// What follows the end is read, so that its writer is not broken off.
	_, err = io.CopyBuffer(onlyWriter{io.Discard}, &bounded{ctx, z}, u.buf)
	return err
}

type unpacker struct {
	ctx     context.Context
	o       UnpackOptions
	root    int
	parent  int // the directory that the last entry was in, or -1
	in      string
	dirs    []*tar.Header // whose modes and times are set at the end, with their names cleaned
	entries int64
	buf     []byte
}

func (u *unpacker) closeParent() {
	if u.parent >= 0 {
		_ = unix.Close(u.parent)
		u.parent = -1
	}
}

// name cleans an entry's name and renames its first part; "" is the directory itself.
func (u *unpacker) name(s string) (string, error) {
	if strings.ContainsRune(s, 0) || len(s) > 4*unix.PathMax {
		return "", &errdefs.Error{Kind: errdefs.InvalidArgument, Why: "this is not the name of a file"}
	}
	if slices.Contains(strings.Split(s, "/"), "..") {
		return "", &errdefs.Error{Kind: errdefs.InvalidArgument, Why: `the name has ".."`}
	}
	s = strings.TrimPrefix(path.Clean("/"+s), "/")
	if u.o.Rename == "" || s == "" {
		return s, nil
	}
	_, rest, more := strings.Cut(s, "/")
	switch {
	case u.o.Rename != "." && more:
		return u.o.Rename + "/" + rest, nil
	case u.o.Rename != ".":
		return u.o.Rename, nil
	}
	return rest, nil
}

func (u *unpacker) resolve() uint64 {
	if u.o.Inside {
		return pathrs.InRoot
	}
	return pathrs.NoSymlinks
}

// dir opens the directory that an entry is in, and makes it when it is missing.
func (u *unpacker) dir(name string) (int, error) {
	if u.parent >= 0 && u.in == name {
		return u.parent, nil
	}
	u.closeParent()
	at := strings.TrimPrefix(path.Clean("/"+path.Join(u.o.At, name)), "/")
	if at == "" {
		at = "."
	}
	fd, err := pathrs.Openat2(u.root, at, unix.O_PATH|unix.O_DIRECTORY, 0, u.resolve())
	if err == unix.ENOENT && name != "" && name != "." {
		up, err := u.dir(strings.TrimPrefix(path.Dir("/"+name), "/"))
		if err != nil {
			return -1, err
		}
		if err := unix.Mkdirat(up, path.Base(name), 0o755); err != nil && err != unix.EEXIST {
			return -1, err
		}
		if err := u.own(up, path.Base(name), nil); err != nil {
			return -1, err
		}
		return u.dir(name)
	}
	if err != nil {
		return -1, u.way("/"+at, err)
	}
	u.parent, u.in = fd, name
	return fd, nil
}

// way is the error of a directory that cannot be reached.
func (u *unpacker) way(name string, err error) error {
	e := &errdefs.Error{Op: "open the directory", What: name, Kind: errdefs.KindOf(err), Err: err}
	if err == unix.ELOOP || err == unix.EXDEV {
		e.Kind, e.Why = errdefs.InvalidArgument, "a link is on the way, and none is followed here"
		if u.o.Inside {
			e.Why = "there are too many links on the way"
		}
	}
	return e
}

// own sets the owner of an entry; h is nil for a directory that the archive does not name.
func (u *unpacker) own(dirfd int, base string, h *tar.Header) error {
	var uid, gid int
	switch {
	case u.o.Owner != nil:
		uid, gid = u.o.Owner[0], u.o.Owner[1]
	case h != nil:
		if h.Uid < 0 || h.Gid < 0 || h.Uid > 1<<32-2 || h.Gid > 1<<32-2 {
			return &errdefs.Error{Kind: errdefs.InvalidArgument, Why: fmt.Sprintf("the owner %d:%d is not an id", h.Uid, h.Gid)}
		}
		uid, gid = h.Uid, h.Gid
	default:
		return nil
	}
	return unix.Fchownat(dirfd, base, uid, gid, unix.AT_SYMLINK_NOFOLLOW)
}

func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := u.name(h.Name)
	if err != nil {
		return err
	}
	if name == "" {
		return nil // the directory that everything goes into has its own mode
	}
	d, err := u.dir(strings.TrimPrefix(path.Dir("/"+name), "/"))
	if err != nil {
		return err
	}
	base := path.Base(name)
	var st unix.Stat_t
	there := unix.Fstatat(d, base, &st, unix.AT_SYMLINK_NOFOLLOW) == nil
	isDir := there && st.Mode&unix.S_IFMT == unix.S_IFDIR
	if h.Typeflag == tar.TypeDir {
		if there && !isDir {
			// A link to a directory is one for who may follow it.
			fd, err := -1, error(unix.ENOTDIR)
			if u.o.Inside && st.Mode&unix.S_IFMT == unix.S_IFLNK {
				fd, err = pathrs.Openat2(u.root, strings.TrimPrefix(path.Join("/", u.o.At, name), "/"), unix.O_PATH|unix.O_DIRECTORY, 0, pathrs.InRoot)
			}
			if err != nil {
				return &errdefs.Error{Kind: errdefs.AlreadyExists, Why: "cannot overwrite non-directory with directory", Fix: "remove it first, or copy to another place"}
			}
			_ = unix.Close(fd)
			return nil
		}
		if err := unix.Mkdirat(d, base, 0o700); err != nil && err != unix.EEXIST {
			return err
		}
		k := *h
		k.Name = name
		u.dirs = append(u.dirs, &k)
		return u.own(d, base, h)
	}
	if isDir {
		return &errdefs.Error{Kind: errdefs.AlreadyExists, Why: "cannot overwrite directory with non-directory", Fix: "remove it first, or copy to another place"}
	}
	if there {
		if err := unix.Unlinkat(d, base, 0); err != nil && err != unix.ENOENT {
			return err
		}
	}
	switch h.Typeflag {
	//lint:ignore SA1019 old archives have TypeRegA
	case tar.TypeReg, tar.TypeRegA, tar.TypeCont, tar.TypeGNUSparse:
		return u.file(d, base, h, content)
	case tar.TypeSymlink:
		if err := unix.Symlinkat(h.Linkname, d, base); err != nil {
			return err
		}
		return errors.Join(u.own(d, base, h), u.time(d, base, h))
	case tar.TypeLink:
		return u.hardLink(d, base, h)
	case tar.TypeFifo, tar.TypeChar, tar.TypeBlock:
		return u.node(d, base, h)
	}
	return &errdefs.Error{Kind: errdefs.Unsupported, Why: fmt.Sprintf("entries of type %q are not known", h.Typeflag)}
}

func (u *unpacker) file(d int, base string, h *tar.Header, content io.Reader) error {
	fd, err := pathrs.Openat2(d, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o600, pathrs.NoSymlinks)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), base)
	defer f.Close()
	if _, err := io.CopyBuffer(onlyWriter{f}, &bounded{u.ctx, content}, u.buf); err != nil {
		return err
	}
	if err := u.own(d, base, h); err != nil { // before the mode: a change of the owner takes set-user-id bits away
		return err
	}
	if err := unix.Fchmod(fd, u.mode(h)); err != nil {
		return err
	}
	if err := u.attributes(fd, h); err != nil {
		return err
	}
	if err := u.time(d, base, h); err != nil {
		return err
	}
	return f.Close()
}

func (u *unpacker) mode(h *tar.Header) uint32 {
	m := uint32(h.Mode) & 0o7777
	if !u.o.SetID {
		m &^= unix.S_ISUID | unix.S_ISGID
	}
	return m
}

// attributes sets what PackTree carries; a file system that has none is no error.
func (u *unpacker) attributes(fd int, h *tar.Header) error {
	for k, v := range h.PAXRecords {
		name, ok := strings.CutPrefix(k, "SCHILY.xattr.")
		if !ok || !carried(name) || name == "security.capability" && !u.o.SetID {
			continue
		}
		if err := unix.Fsetxattr(fd, name, []byte(v), 0); err != nil && err != unix.EOPNOTSUPP && err != unix.EPERM {
			return fmt.Errorf("the attribute %s: %w", name, err)
		}
	}
	return nil
}

func (u *unpacker) time(d int, base string, h *tar.Header) error {
	t := unix.NsecToTimespec(0)
	if !h.ModTime.IsZero() {
		t = unix.Timespec{Sec: h.ModTime.Unix(), Nsec: int64(h.ModTime.Nanosecond())}
	}
	return unix.UtimesNanoAt(d, base, []unix.Timespec{t, t}, unix.AT_SYMLINK_NOFOLLOW)
}

// hardLink links to a file that the archive has written before.
func (u *unpacker) hardLink(d int, base string, h *tar.Header) error {
	target, err := u.name(h.Linkname)
	if err != nil {
		return err
	}
	if target == "" {
		return &errdefs.Error{Kind: errdefs.InvalidArgument, Why: "it links to the directory itself"}
	}
	at := strings.TrimPrefix(path.Clean("/"+path.Join(u.o.At, path.Dir(target))), "/")
	if at == "" {
		at = "."
	}
	fd, err := pathrs.Openat2(u.root, at, unix.O_PATH|unix.O_DIRECTORY, 0, u.resolve())
	if err != nil {
		return u.way(h.Linkname, err)
	}
	defer unix.Close(fd)
	if err := unix.Linkat(fd, path.Base(target), d, base, 0); err != nil {
		return fmt.Errorf("the link's target %s: %w", h.Linkname, err)
	}
	return nil
}

func (u *unpacker) node(d int, base string, h *tar.Header) error {
	kind, dev := uint32(unix.S_IFIFO), 0
	if h.Typeflag != tar.TypeFifo {
		if !u.o.Devices {
			return &errdefs.Error{Kind: errdefs.Forbidden, Why: "a device of a container is not made on the host", Fix: "leave it out of what is copied"}
		}
		if h.Devmajor < 0 || h.Devmajor > 1<<12-1 || h.Devminor < 0 || h.Devminor > 1<<20-1 {
			return &errdefs.Error{Kind: errdefs.InvalidArgument, Why: "it has no valid device number"}
		}
		kind, dev = unix.S_IFCHR, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))
		if h.Typeflag == tar.TypeBlock {
			kind = unix.S_IFBLK
		}
	}
	if err := unix.Mknodat(d, base, kind|0o600, dev); err != nil {
		return err
	}
	if err := u.own(d, base, h); err != nil {
		return err
	}
	fd, err := pathrs.Openat2(d, base, unix.O_PATH|unix.O_NOFOLLOW, 0, pathrs.NoSymlinks)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), u.mode(h)); err != nil {
		return err
	}
	return u.time(d, base, h)
}

// finish sets what a directory's entries would have changed.
func (u *unpacker) finish(h *tar.Header) error {
	at := strings.TrimPrefix(path.Clean("/"+path.Join(u.o.At, h.Name)), "/")
	fd, err := pathrs.Openat2(u.root, at, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0, u.resolve())
	if errors.Is(err, fs.ErrNotExist) || err == unix.ELOOP || err == unix.ENOTDIR {
		return nil // exchanged meanwhile
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Fchmod(fd, u.mode(h)); err != nil {
		return err
	}
	if err := u.attributes(fd, h); err != nil {
		return err
	}
	t := unix.Timespec{Sec: h.ModTime.Unix(), Nsec: int64(h.ModTime.Nanosecond())}
	return unix.UtimesNanoAt(fd, ".", []unix.Timespec{t, t}, 0)
}
