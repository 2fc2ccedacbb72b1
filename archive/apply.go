package archive

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/pagecache"
	"github.com/onggi/onggi/pathrs"
	"golang.org/x/sys/unix"
)

// bufSize is how much is written at once.
const bufSize = 1 << 20

// Apply writes the tar stream r below dir and reads r to its end, trailing padding included, so that the caller's
// digest of r is that of the whole stream. dir should be empty and nobody else's while Apply runs. It does not sync.
// After an error the directory holds part of the layer and must be thrown away. Of two entries of one name the later
// wins. Errors: Corrupt (not a tar, truncated), InvalidArgument (an entry that would leave the directory, a malformed
// whiteout, an overlayfs attribute, an id that is none), Unsupported (a kind of entry that we do not know), Forbidden
// (device nodes without CAP_MKNOD), Exhausted (a limit), NoSpace, and whatever r answers.
func Apply(ctx context.Context, r io.Reader, dir *os.File, o Options) (Stats, error) {
	a, err := newApplier(ctx, r, dir, o)
	if err != nil {
		return Stats{}, err
	}
	defer runtime.KeepAlive(dir)
	defer a.cache.drop()
	for {
		if err := ctx.Err(); err != nil {
			return a.stats, &errdefs.Error{Op: "unpack the layer", Kind: errdefs.KindOf(err), Err: err}
		}
		h, err := a.tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return a.stats, a.readError(err)
		}
		if err := a.entry(h); err != nil {
			return a.stats, entryError(h.Name, err)
		}
		a.cache.trim()
	}
	if err := a.finishDirs(); err != nil {
		return a.stats, err
	}
	if err := a.drain(); err != nil {
		return a.stats, err
	}
	a.stats.Rebuildable, err = a.src.rec.finish()
	return a.stats, err
}

// applier is one run of Apply.
type applier struct {
	ctx    context.Context
	o      Options
	limits Limits
	src    *source
	tr     *tar.Reader
	stats  Stats

	root  handle
	cache dirCache
	// meta holds the metadata of every directory that was made, by inode number; see finishDirs.
	meta      map[uint64]*dirMeta
	metaBytes int64

	uid, gid   uint32 // the owners that new files get by themselves
	chownAll   bool   // the file system gives new files another group than ours
	umask      uint32 // bits that open(2) takes away
	now        time.Time
	buf        []byte
	triedGroup bool
}

func newApplier(ctx context.Context, r io.Reader, dir *os.File, o Options) (*applier, error) {
	switch o.Whiteouts {
	case "", "overlay", "none":
	default:
		return nil, &errdefs.Error{
			Op: "unpack a layer", Kind: errdefs.InvalidArgument,
			Why: fmt.Sprintf("there is no form of whiteouts called %q", o.Whiteouts),
		}
	}
	l := o.Limits
	if l.Entries == 0 {
		l.Entries = defaultEntries
	}
	if l.Bytes == 0 {
		l.Bytes = defaultBytes
	}
	if l.PaxBytes == 0 {
		l.PaxBytes = defaultPaxBytes
	}
	if l.Entries < 0 || l.Bytes < 0 || l.PaxBytes < 0 || l.PaxBytes > defaultPaxBytes {
		return nil, &errdefs.Error{Op: "unpack a layer", Kind: errdefs.InvalidArgument, Why: "a limit is negative, or PaxBytes above 1 MiB"}
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return nil, err
	}
	src := &source{r: r}
	if o.Recipe != nil {
		var err error
		if src.rec, err = newRecorder(o.Recipe); err != nil {
			return nil, err
		}
	}
	return &applier{
		ctx: ctx, o: o, limits: l, src: src, tr: tar.NewReader(src),
		root: handle{fd: int(dir.Fd()), path: ".", ino: st.Ino},
		meta: map[uint64]*dirMeta{},
		uid:  uint32(os.Geteuid()), gid: uint32(os.Getegid()),
		chownAll: st.Mode&unix.S_ISGID != 0,
		umask:    umask(), now: time.Now(), buf: make([]byte, bufSize),
	}, nil
}

// source hides everything but Read from the tar parser, which would seek over what the digest must see, and remembers
// an error of r, so that a broken connection is not told as a broken archive.
type source struct {
	r   io.Reader
	err error
	rec *recorder // may be nil
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.rec.read(p[:n])
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// entry writes one entry.
func (a *applier) entry(h *tar.Header) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return globalHeader(h)
	}
	if a.stats.Entries++; a.stats.Entries > a.limits.Entries {
		return a.tooMany()
	}
	if err := a.checkPax(h); err != nil {
		return err
	}
	name, err := clean(h.Name)
	if err != nil {
		return err
	}
	if strings.Contains(name, whiteoutPrefix) {
		if done, err := a.whiteout(h, name); done || err != nil {
			return err
		}
	}
	m, err := a.metaOf(h)
	if err != nil {
		return err
	}
	a.now = m.mtime
	if name == "." {
		if h.Typeflag != tar.TypeDir {
			return refuse("the root directory cannot become something else")
		}
		m.path = "."
		a.meta[a.root.ino] = m
		return nil
	}
	dir, base := split(name)
	p, err := a.dir(dir)
	if err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		_, err := a.mkdir(p, base, m)
		return err
	//lint:ignore SA1019 old archives have TypeRegA
	case tar.TypeReg, tar.TypeRegA, tar.TypeCont, tar.TypeGNUSparse:
		return a.file(p, base, h, m)
	case tar.TypeLink:
		return a.hardLink(p, base, h)
	case tar.TypeSymlink:
		return a.symlink(p, base, h, m)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return a.node(p, base, h, m)
	}
	return &errdefs.Error{Kind: errdefs.Unsupported, Why: fmt.Sprintf("entries of type %q are not known", h.Typeflag)}
}

// globalHeader takes a pax global header when it says nothing about the entries: git archive writes a comment.
func globalHeader(h *tar.Header) error {
	for k := range h.PAXRecords {
		if k != "comment" {
			return &errdefs.Error{Kind: errdefs.Unsupported, Why: fmt.Sprintf("a pax global header with %q is not supported", k)}
		}
	}
	return nil
}

func (a *applier) checkPax(h *tar.Header) error {
	var n int64
	for k, v := range h.PAXRecords {
		n += int64(len(k) + len(v))
	}
	if n > a.limits.PaxBytes {
		return &errdefs.Error{Kind: errdefs.Exhausted, Why: fmt.Sprintf("its extended headers are longer than %d bytes", a.limits.PaxBytes)}
	}
	return nil
}

func (a *applier) tooMany() error {
	return &errdefs.Error{Kind: errdefs.Exhausted, Why: fmt.Sprintf("the archive has more than %d entries", a.limits.Entries)}
}

// metaOf checks and returns what the header says about owner, mode, time and attributes.
func (a *applier) metaOf(h *tar.Header) (*dirMeta, error) {
	m := &dirMeta{mode: uint32(h.Mode) & 0o7777, mtime: h.ModTime}
	const lastID = 1<<32 - 2 // 2^32-1 is (uid_t)-1: chown(2) would leave the owner as it is
	if h.Uid < 0 || h.Uid > lastID || h.Gid < 0 || h.Gid > lastID {
		return nil, refuse("the owner %d:%d is not an id (0 to %d)", h.Uid, h.Gid, uint32(lastID))
	}
	m.uid, m.gid = uint32(h.Uid), uint32(h.Gid)
	var err error
	if a.o.MapID != nil {
		if m.uid, m.gid, err = a.o.MapID(m.uid, m.gid); err != nil {
			return nil, err
		}
	}
	if len(h.PAXRecords) > 0 {
		m.xattrs, err = xattrsOf(h)
	}
	return m, err
}

// whiteout handles names with a part that begins with ".wh.". done is false when name is an ordinary one.
func (a *applier) whiteout(h *tar.Header, name string) (done bool, err error) {
	dir, base := split(name)
	special := strings.HasPrefix(base, whiteoutPrefix)
	for _, c := range strings.Split(dir, "/") {
		if strings.HasPrefix(c, metaPrefix) {
			special = true
			base = metaPrefix // below AUFS' own directories
			break
		}
		if strings.HasPrefix(c, whiteoutPrefix) {
			return true, refuse("a whiteout (%q) cannot hold other entries", c)
		}
	}
	if !special {
		return false, nil
	}
	if a.o.Whiteouts == "none" {
		return true, &errdefs.Error{
			Kind: errdefs.InvalidArgument, Why: "it is a whiteout, and this archive is not a layer on others",
			Fix: "name the file otherwise; names that begin with .wh. delete files in container images",
		}
	}
	switch {
	case base == opaqueName:
		p, err := a.dir(dir)
		if err != nil {
			return true, err
		}
		return true, a.setOpaque(p)
	case strings.HasPrefix(base, metaPrefix):
		return true, nil
	}
	hidden := base[len(whiteoutPrefix):]
	if hidden == "" || hidden == "." || hidden == ".." {
		return true, refuse("the whiteout names no file")
	}
	if h.Typeflag == tar.TypeDir {
		return true, refuse("a whiteout cannot be a directory")
	}
	p, err := a.dir(dir)
	if err != nil {
		return true, err
	}
	err = unix.Mknodat(p.fd, hidden, unix.S_IFCHR, 0)
	if err != unix.EEXIST {
		return true, err
	}
	// The layer itself has that name. A whiteout speaks of lower layers only: a file here hides them anyway, a
	// directory does when it is opaque.
	var st unix.Stat_t
	if err := unix.Fstatat(p.fd, hidden, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return true, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return true, nil
	}
	d, err := a.dir(join(p.path, hidden))
	if err != nil {
		return true, err
	}
	if m := a.meta[d.ino]; m != nil {
		m.replaced = true
	}
	return true, a.setOpaque(d)
}

// file writes a regular file.
func (a *applier) file(p *handle, base string, h *tar.Header, m *dirMeta) error {
	if h.Size > a.limits.Bytes-a.stats.Bytes {
		return &errdefs.Error{Kind: errdefs.Exhausted, Why: fmt.Sprintf("the archive holds more than %d bytes", a.limits.Bytes)}
	}
	var fd int
	err := a.inPlace(p, base, func() (err error) {
		fd, err = pathrs.Openat2(p.fd, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, m.mode&0o777, within)
		return err
	})
	if err != nil {
		return err
	}
	if err := a.fill(fd, p, base, h, m); err != nil {
		unix.Close(fd)
		return err
	}
	a.stats.Bytes += h.Size
	return unix.Close(fd)
}

func (a *applier) fill(fd int, p *handle, base string, h *tar.Header, m *dirMeta) error {
	if h.Size > 0 {
		if isSparse(h) {
			a.src.rec.spoil() // the archive has its content in another form than the file
		}
		a.src.rec.file(join(p.path, base), h.Size)
		if err := a.copy(fd, h); err != nil {
			return err
		}
		a.src.rec.resume()
	}
	if !a.triedGroup { // a file system mounted with grpid gives new files the directory's group
		a.triedGroup = true
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		a.chownAll = a.chownAll || st.Uid != a.uid || st.Gid != a.gid
	}
	// The owner first: chown(2) takes away set-id bits and file capabilities.
	chown := a.chownAll || m.uid != a.uid || m.gid != a.gid
	if chown {
		if err := unix.Fchown(fd, int(m.uid), int(m.gid)); err != nil {
			return m.chownError(err)
		}
	}
	if m.mode&0o7000 != 0 || m.mode&a.umask != 0 {
		if err := unix.Fchmod(fd, m.mode); err != nil {
			return err
		}
	}
	for _, x := range m.xattrs {
		if err := x.explain(unix.Fsetxattr(fd, x.name, x.value, 0)); err != nil {
			return err
		}
	}
	ts := timespec(m.mtime)
	return unix.UtimesNanoAt(p.fd, base, ts[:], unix.AT_SYMLINK_NOFOLLOW)
}

// holeSize is the least run of zeros that is left out of a sparse file.
const holeSize = 64 << 10

var zeros [holeSize]byte

// earlySize is the least file that is sent to the disk as soon as it is complete; smaller ones wait for the sync at the
// end, which writes many of them at once.
const earlySize = 64 << 10

// copy writes the entry's content.
func (a *applier) copy(fd int, h *tar.Header) error {
	sparse := isSparse(h)
	if sparse {
		if err := unix.Ftruncate(fd, h.Size); err != nil {
			return err
		}
	}
	behind := pagecache.Writer{FD: fd}
	for off := int64(0); off < h.Size; {
		if off > 0 {
			if err := a.ctx.Err(); err != nil {
				return err
			}
		}
		n, err := io.ReadFull(a.tr, a.buf[:min(int64(len(a.buf)), h.Size-off)])
		if err != nil {
			return a.readError(err)
		}
		if sparse {
			err = writeSparse(fd, a.buf[:n], off)
		} else {
			err = writeAll(fd, a.buf[:n])
		}
		if err != nil {
			return err
		}
		if off += int64(n); off < h.Size {
			behind.Wrote(off)
		}
	}
	if h.Size >= earlySize {
		pagecache.Start(fd, 0, h.Size)
	}
	return nil
}

// isSparse reports whether the entry says that it has holes. The parser fills them with zeros; we take them out again.
func isSparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	return h.PAXRecords["GNU.sparse.major"] != "" || h.PAXRecords["GNU.sparse.map"] != "" || h.PAXRecords["GNU.sparse.size"] != ""
}

func writeSparse(fd int, b []byte, off int64) error {
	for len(b) > 0 {
		n := min(len(b), holeSize)
		if string(b[:n]) != string(zeros[:n]) { // compared without a copy
			for done := 0; done < n; {
				w, err := unix.Pwrite(fd, b[done:n], off+int64(done))
				if err != nil && err != unix.EINTR {
					return err
				}
				done += max(w, 0)
			}
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}

func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err != nil && err != unix.EINTR {
			return err
		}
		b = b[max(n, 0):]
	}
	return nil
}

// hardLink makes another name of a file that came earlier in this archive. Its metadata is the file's.
func (a *applier) hardLink(p *handle, base string, h *tar.Header) error {
	target, err := clean(h.Linkname)
	if err != nil {
		return &errdefs.Error{Op: "link to", What: quote(h.Linkname), Kind: errdefs.InvalidArgument, Err: err}
	}
	tdir, tbase := split(target)
	missing := refuse("it is a hard link to %s, which does not come before it in the same layer", quote(h.Linkname))
	if target == "." {
		return refuse("it is a hard link to a directory")
	}
	// Not made if missing, unlike the parent of an entry.
	t, err := a.existing(tdir)
	if err == unix.ENOENT || err == unix.ENOTDIR {
		return missing
	}
	if err != nil {
		return err
	}
	var st unix.Stat_t
	switch err := unix.Fstatat(t.fd, tbase, &st, unix.AT_SYMLINK_NOFOLLOW); {
	case err == unix.ENOENT:
		return missing
	case err != nil:
		return err
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return refuse("it is a hard link to a directory")
	case isWhiteout(&st):
		return refuse("it is a hard link to %s, which this layer deletes", quote(h.Linkname))
	}
	var there unix.Stat_t
	if err := unix.Fstatat(p.fd, base, &there, unix.AT_SYMLINK_NOFOLLOW); err == nil && there.Ino == st.Ino && there.Dev == st.Dev {
		return nil // the same file already; to remove it first could remove its last name
	}
	err = a.inPlace(p, base, func() error { return unix.Linkat(t.fd, tbase, p.fd, base, 0) })
	switch err {
	case unix.ENOENT:
		return missing // it lay in the directory that this entry replaced
	case unix.EMLINK:
		return &errdefs.Error{Kind: errdefs.Exhausted, Why: "the file system allows no more names of " + quote(h.Linkname), Err: err}
	}
	return err
}

// existing is dir for a directory that must be there.
func (a *applier) existing(name string) (*handle, error) {
	if name == "." {
		return &a.root, nil
	}
	if h := a.cache.byName[name]; h != nil {
		return h, nil
	}
	return a.walk(name, false)
}

// symlink makes a symbolic link with its target as it is: it means something only inside the container.
func (a *applier) symlink(p *handle, base string, h *tar.Header, m *dirMeta) error {
	if h.Linkname == "" || len(h.Linkname) > maxPath {
		return refuse("the target of the symbolic link is empty or longer than %d bytes", maxPath)
	}
	if err := a.inPlace(p, base, func() error { return unix.Symlinkat(h.Linkname, p.fd, base) }); err != nil {
		return err
	}
	return a.finishNode(p, base, m, false)
}

// node makes a device or a FIFO.
func (a *applier) node(p *handle, base string, h *tar.Header, m *dirMeta) error {
	mode, dev := m.mode, uint64(0)
	switch h.Typeflag {
	case tar.TypeFifo:
		mode |= unix.S_IFIFO
	case tar.TypeBlock:
		mode |= unix.S_IFBLK
	default:
		mode |= unix.S_IFCHR
	}
	if h.Typeflag != tar.TypeFifo {
		// 12 and 20 bits are what the kernel keeps (MINORBITS, linux/kdev_t.h); more would silently be another device.
		if h.Devmajor < 0 || h.Devmajor >= 1<<12 || h.Devminor < 0 || h.Devminor >= 1<<20 {
			return refuse("there is no device %d:%d", h.Devmajor, h.Devminor)
		}
		dev = unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
		if dev == 0 && h.Typeflag == tar.TypeChar {
			return refuse("the character device 0:0 is overlayfs' whiteout; layers delete with %s", whiteoutPrefix)
		}
	}
	err := a.inPlace(p, base, func() error { return unix.Mknodat(p.fd, base, mode, int(dev)) })
	if err == unix.EPERM {
		return &errdefs.Error{Kind: errdefs.Forbidden, Why: "a device node needs CAP_MKNOD in the initial user namespace", Err: err}
	}
	if err != nil {
		return err
	}
	return a.finishNode(p, base, m, true)
}

// finishNode sets the metadata of what cannot be opened: p/base is what we have just made.
func (a *applier) finishNode(p *handle, base string, m *dirMeta, chmod bool) error {
	if a.chownAll || m.uid != a.uid || m.gid != a.gid || !a.triedGroup {
		if err := unix.Fchownat(p.fd, base, int(m.uid), int(m.gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return m.chownError(err)
		}
	}
	if chmod {
		if err := unix.Fchmodat(p.fd, base, m.mode, 0); err != nil {
			return err
		}
	}
	if len(m.xattrs) > 0 {
		// There is no call for an attribute of a name in a directory handle before Linux 6.13 (setxattrat).
		path := "/proc/thread-self/fd/" + strconv.Itoa(p.fd) + "/" + base
		for _, x := range m.xattrs {
			if err := x.explain(unix.Lsetxattr(path, x.name, x.value, 0)); err != nil {
				return err
			}
		}
	}
	ts := timespec(m.mtime)
	return unix.UtimesNanoAt(p.fd, base, ts[:], unix.AT_SYMLINK_NOFOLLOW)
}

// inPlace runs make, which makes base in p, and if something is in its place removes that and makes again.
func (a *applier) inPlace(p *handle, base string, make func() error) error {
	err := make()
	if err == unix.EEXIST {
		if err = a.remove(p, base); err == nil {
			err = make()
		}
	}
	return err
}

// remove takes away an earlier entry, a whole directory if it is one.
func (a *applier) remove(p *handle, base string) error {
	a.src.rec.spoil()
	var st unix.Stat_t
	if err := unix.Fstatat(p.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR, unix.S_IFLNK:
		a.cache.forget() // a name in the cache may lead through it
	}
	return pathrs.RemoveAllAt(p.fd, base)
}

// drain reads what follows the archive's end.
func (a *applier) drain() error {
	for n := int64(0); ; {
		if err := a.ctx.Err(); err != nil {
			return &errdefs.Error{Op: "unpack the layer", Kind: errdefs.KindOf(err), Err: err}
		}
		m, err := a.src.Read(a.buf)
		if n += int64(m); n > a.limits.Bytes {
			return &errdefs.Error{Op: "unpack the layer", Kind: errdefs.Exhausted, Why: "what follows the archive's end does not end"}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return a.readError(err)
		}
	}
}

// readError tells a fault of the stream from a fault of the archive in it.
func (a *applier) readError(err error) error {
	if a.src.err != nil {
		return &errdefs.Error{Op: "read the layer", Kind: errdefs.KindOf(a.src.err), Err: a.src.err}
	}
	why := "it is not a tar archive, or damaged"
	if errors.Is(err, io.ErrUnexpectedEOF) || err == io.EOF {
		why = "the archive ends in the middle of an entry"
	}
	return &errdefs.Error{Op: "read the layer", Kind: errdefs.Corrupt, Why: why, Err: err}
}

// entryError names the entry, unless the stream is at fault.
func entryError(name string, err error) error {
	e, ok := err.(*errdefs.Error)
	if ok && e.Op == "read the layer" {
		return err
	}
	if ok && e.Op == "" {
		e.Op, e.What = "unpack", quote(name)
		return e
	}
	return &errdefs.Error{Op: "unpack", What: quote(name), Kind: errdefs.KindOf(err), Fix: fixOf(err), Err: err}
}

// chownError explains that an owner does not exist in this user namespace.
func (m *dirMeta) chownError(err error) error {
	if err != unix.EINVAL {
		return err
	}
	return &errdefs.Error{
		Kind: errdefs.Unsupported, Err: err, Why: fmt.Sprintf("its owner %d:%d is not among the ids of this user namespace", m.uid, m.gid),
		Fix: "without root, have ranges that hold it in /etc/subuid and /etc/subgid (see: onggi info)",
	}
}

func fixOf(err error) string {
	if errdefs.Is(err, errdefs.NoSpace) {
		return "free some space, or choose another place with --root"
	}
	return errdefs.FixOf(err)
}

// quote makes an archive's name fit for a message.
func quote(name string) string {
	if len(name) > 200 {
		return strconv.Quote(name[:200]) + "..."
	}
	return strconv.Quote(name)
}

func timespec(t time.Time) [2]unix.Timespec {
	return [2]unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: t.Unix(), Nsec: int64(t.Nanosecond())}}
}

// umask returns the process's umask without changing it (proc(5), since Linux 4.7). Where it cannot be read every mode
// is set explicitly.
func umask() uint32 {
	b, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		return 0o777
	}
	_, after, ok := strings.Cut(string(b), "\nUmask:")
	line, _, _ := strings.Cut(after, "\n")
	n, err := strconv.ParseUint(strings.TrimSpace(line), 8, 32)
	if !ok || err != nil {
		return 0o777
	}
	return uint32(n)
}
