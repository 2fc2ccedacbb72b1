package erofs

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"hash/crc32"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/onggi/onggi/errdefs"
	"golang.org/x/sys/unix"
)

const (
	blockBits  = 12
	blockSize  = 1 << blockBits
	superAt    = 1024 // EROFS_SUPER_OFFSET
	superSize  = 128
	magic      = 0xE0F5E1E2
	hasSum     = 0x1 // EROFS_FEATURE_COMPAT_SB_CHKSUM
	hasMtime   = 0x2 // EROFS_FEATURE_COMPAT_MTIME
	slotSize   = 32  // a nid counts these from the beginning of the file, since meta_blkaddr is 0
	inodeSize  = 64  // struct erofs_inode_extended
	direntSize = 12  // struct erofs_dirent
	xattrHead  = 12  // struct erofs_xattr_ibody_header
	extended   = 1   // i_format, bit 0
	plain      = 0   // i_format, bits 1 to 3: all data in blocks
	inline     = 2   // the same: the last part of a block follows the inode
	maxName    = 255 // EROFS_NAME_LEN
	openBlocks = 16  // blocks with room for more inodes that are kept in memory
	window     = 1 << 20
)

// Xattr is an extended attribute: its full name, user.mime_type, and its value.
type Xattr struct {
	Name  string
	Value []byte
}

// Meta is what an inode has beside its content.
type Meta struct {
	Mode     uint32 // type (S_IFMT) and permissions, as in st_mode
	UID, GID uint32
	Mtime    time.Time
	Rdev     uint64  // of devices, as in st_rdev; 0 in a character device is overlayfs' whiteout
	Xattrs   []Xattr // in any order, each name once
	Target   string  // of symbolic links
}

// node is an inode that has its place in the image, or a directory that gets one in Close.
type node struct {
	at      int64 // of the inode, in bytes
	number  uint32
	mode    uint32
	links   uint32
	meta    Meta             // of directories only
	parent  *node            // of directories only; the root is its own
	entries map[string]*node // of directories only
}

func (n *node) isDir() bool { return n.mode&unix.S_IFMT == unix.S_IFDIR }

// piece is a block in which inodes stand, and how much of it is used.
type piece struct {
	block int64
	used  int
	data  []byte
}

// Writer writes one image. It is not for use by several goroutines at once.
type Writer struct {
	f      *os.File
	root   *node
	inodes uint32
	next   int64 // the first block that is nobody's
	open   []piece
	buf    []byte
	err    error
}

// NewWriter begins an image in f, which must be empty and open for writing.
func NewWriter(f *os.File) (*Writer, error) {
	st, err := f.Stat()
	if err == nil && (!st.Mode().IsRegular() || st.Size() != 0) {
		err = &errdefs.Error{Kind: errdefs.InvalidArgument, Why: "it is not an empty regular file"}
	}
	if err != nil {
		return nil, &errdefs.Error{Op: "write an EROFS image to", What: f.Name(), Kind: errdefs.KindOf(err), Err: err}
	}
	root := &node{mode: unix.S_IFDIR | 0o755, entries: map[string]*node{}, meta: Meta{Mode: unix.S_IFDIR | 0o755, Mtime: time.Unix(0, 0)}}
	root.parent = root
	// The block of the superblock is the root's, too: a root's nid has only 16 bits.
	return &Writer{f: f, root: root, next: 1}, nil
}

func refuse(name, why string) error {
	return &errdefs.Error{Op: "write into an EROFS image", What: strconv.Quote(name), Kind: errdefs.InvalidArgument, Why: why}
}

// find returns the directory that name is in and its last part. Names are relative, clean, and lead through no links.
func (w *Writer) find(name string) (*node, string, error) {
	dir := w.root
	for rest := name; ; {
		part, after, more := strings.Cut(rest, "/")
		switch {
		case part == "" || part == "." || part == ".." || strings.IndexByte(part, 0) >= 0:
			return nil, "", refuse(name, "it is not a clean relative path")
		case len(part) > maxName:
			return nil, "", &errdefs.Error{Op: "write into an EROFS image", What: strconv.Quote(name), Kind: errdefs.Exhausted, Why: "a name has at most 255 bytes"}
		case !more:
			return dir, part, nil
		}
		n := dir.entries[part]
		if n == nil || !n.isDir() {
			return nil, "", &errdefs.Error{Op: "write into an EROFS image", What: strconv.Quote(name), Kind: errdefs.NotFound, Why: part + " is no directory in it"}
		}
		dir, rest = n, after
	}
}

// Put adds what name names: a directory, a file with all of content, which is read to its end, a symbolic link, a
// device, a fifo or a socket. The directory that it is in was put before. "." gives the root its metadata. A
// directory that is there gets the new metadata and keeps what is in it; everything else that is there is an error.
// Content that looks empty (blocks of zeros) becomes a hole in the image. After an error the image is lost.
func (w *Writer) Put(name string, m Meta, content io.Reader) error {
	if w.err != nil {
		return w.err
	}
	w.err = w.put(name, m, content)
	return w.err
}

func (w *Writer) put(name string, m Meta, content io.Reader) error {
	kind := m.Mode & unix.S_IFMT
	switch {
	case m.Mode&^uint32(unix.S_IFMT|0o7777) != 0 || fileType(kind) == 0:
		return refuse(name, "its mode "+strconv.FormatUint(uint64(m.Mode), 8)+" is none")
	case (content != nil) != (kind == unix.S_IFREG):
		return refuse(name, "regular files, and only they, have content")
	case (m.Target != "") != (kind == unix.S_IFLNK) || len(m.Target) >= blockSize || strings.IndexByte(m.Target, 0) >= 0:
		return refuse(name, "symbolic links, and only they, have a target, of at most 4095 bytes")
	case m.Rdev != 0 && kind != unix.S_IFCHR && kind != unix.S_IFBLK:
		return refuse(name, "only devices have a number")
	case unix.Major(m.Rdev) > 0xfff || unix.Minor(m.Rdev) > 0xfffff:
		return refuse(name, "its device number does not fit the kernel's 12 and 20 bits")
	}
	attrs, err := packXattrs(name, m.Xattrs)
	if err != nil {
		return err
	}
	if name == "." {
		if kind != unix.S_IFDIR {
			return refuse(name, "the root is a directory")
		}
		if superAt+superSize+inodeSize+len(attrs) > blockSize {
			return &errdefs.Error{
				Op: "write into an EROFS image", What: "its root directory", Kind: errdefs.Exhausted,
				Why: "the extended attributes have " + strconv.Itoa(len(attrs)) + " bytes, and the first block has room for " +
					strconv.Itoa(blockSize-superAt-superSize-inodeSize),
			}
		}
		w.root.mode, w.root.meta = m.Mode, m.own()
		return nil
	}
	dir, base, err := w.find(name)
	if err != nil {
		return err
	}
	old := dir.entries[base]
	if kind == unix.S_IFDIR {
		if old == nil {
			old = &node{entries: map[string]*node{}, parent: dir}
			dir.entries[base] = old
		} else if !old.isDir() {
			return exists(name)
		}
		old.mode, old.meta = m.Mode, m.own()
		return nil
	}
	if old != nil {
		return exists(name)
	}
	n := &node{mode: m.Mode, links: 1, number: w.number()}
	switch kind {
	case unix.S_IFREG:
		start, size, tail, err := w.copy(content)
		if err == nil {
			err = w.place(n, &m, attrs, size, start, tail)
		}
		if err != nil {
			return &errdefs.Error{Op: "write into an EROFS image", What: strconv.Quote(name), Kind: errdefs.KindOf(err), Err: err}
		}
	case unix.S_IFLNK:
		// The kernel reads a target that is in one piece; one that has no room beside its inode gets a block.
		err = w.place(n, &m, attrs, int64(len(m.Target)), 0, []byte(m.Target))
	default:
		err = w.place(n, &m, attrs, 0, int64(encodeDevice(m.Rdev)), nil)
	}
	if err != nil {
		return err
	}
	dir.entries[base] = n
	return nil
}

func exists(name string) error {
	return &errdefs.Error{Op: "write into an EROFS image", What: strconv.Quote(name), Kind: errdefs.AlreadyExists, Why: "it is in the image already"}
}

// own returns m with attributes of its own: those of a directory are written long after the caller's call.
func (m Meta) own() Meta {
	m.Xattrs = slices.Clone(m.Xattrs)
	for i := range m.Xattrs {
		m.Xattrs[i].Value = bytes.Clone(m.Xattrs[i].Value)
	}
	return m
}

// Link gives what old names, anything but a directory, another name.
func (w *Writer) Link(old, name string) error {
	if w.err != nil {
		return w.err
	}
	w.err = w.link(old, name)
	return w.err
}

func (w *Writer) link(old, name string) error {
	from, base, err := w.find(old)
	if err != nil {
		return err
	}
	n := from.entries[base]
	switch {
	case n == nil:
		return &errdefs.Error{Op: "write into an EROFS image", What: strconv.Quote(name), Kind: errdefs.NotFound, Why: strconv.Quote(old) + ", which it is a link to, is not in it"}
	case n.isDir():
		return refuse(name, "a hard link to a directory")
	}
	to, base, err := w.find(name)
	if err != nil {
		return err
	}
	if to.entries[base] != nil {
		return exists(name)
	}
	n.links++
	to.entries[base] = n
	return nil
}

// copy writes all of r but the part of a block at its end, which it returns, from the block start on.
func (w *Writer) copy(r io.Reader) (start, size int64, tail []byte, err error) {
	if w.buf == nil {
		w.buf = make([]byte, window)
	}
	start = w.next
	for {
		n, err := io.ReadFull(r, w.buf)
		size += int64(n)
		whole := n &^ (blockSize - 1)
		if werr := w.data(w.buf[:whole]); werr != nil {
			return 0, 0, nil, werr
		}
		switch err {
		case nil:
		case io.EOF, io.ErrUnexpectedEOF:
			return start, size, w.buf[whole:n], nil
		default:
			return 0, 0, nil, err
		}
	}
}

// zeros is what a block of a hole looks like.
var zeros [blockSize]byte

// data appends whole blocks. Those of zeros are not written: the file is empty there.
func (w *Writer) data(b []byte) error {
	for len(b) > 0 {
		n := 0
		for n < len(b) && !bytes.Equal(b[n:n+blockSize], zeros[:]) {
			n += blockSize
		}
		if n > 0 {
			if _, err := w.f.WriteAt(b[:n], w.next*blockSize); err != nil {
				return err
			}
		} else {
			n = blockSize
		}
		w.next += int64(n / blockSize)
		if w.next >= math.MaxUint32 {
			return &errdefs.Error{Op: "write", What: "an EROFS image", Kind: errdefs.Exhausted, Why: "it would have more than 2^32 blocks of 4 KiB"}
		}
		b = b[n:]
	}
	return nil
}

func (w *Writer) number() uint32 { w.inodes++; return w.inodes }

// place gives n its place, beside tail if both fit in one block, and writes it. u is the first block of its data, or
// the number of a device.
func (w *Writer) place(n *node, m *Meta, attrs []byte, size, u int64, tail []byte) error {
	format := uint16(extended | plain<<1)
	with := inodeSize + len(attrs) + len(tail)
	if len(tail) > 0 && with <= blockSize {
		format = extended | inline<<1
	} else if len(tail) > 0 {
		block := make([]byte, blockSize)
		copy(block, tail)
		if size < blockSize {
			u = w.next
		}
		if err := w.data(block); err != nil {
			return err
		}
		with, tail = inodeSize+len(attrs), nil
	}
	var err error
	if n.at, err = w.reserve(with); err != nil {
		return err
	}
	return w.inode(n, m, format, attrs, size, u, tail)
}

// inode writes n, what belongs to it and its tail to n.at.
func (w *Writer) inode(n *node, m *Meta, format uint16, attrs []byte, size, u int64, tail []byte) error {
	b := make([]byte, inodeSize, inodeSize+len(attrs)+len(tail))
	le := binary.LittleEndian
	le.PutUint16(b[0:], format)
	if len(attrs) > 0 {
		le.PutUint16(b[2:], uint16((len(attrs)-xattrHead)/4+1))
	}
	le.PutUint16(b[4:], uint16(m.Mode))
	le.PutUint64(b[8:], uint64(size))
	le.PutUint32(b[16:], uint32(u))
	le.PutUint32(b[20:], n.number)
	le.PutUint32(b[24:], m.UID)
	le.PutUint32(b[28:], m.GID)
	le.PutUint64(b[32:], uint64(m.Mtime.Unix()))
	le.PutUint32(b[40:], uint32(m.Mtime.Nanosecond()))
	le.PutUint32(b[44:], n.links)
	b = append(append(b, attrs...), tail...)
	return w.write(b, n.at)
}

// reserve returns where size bytes of metadata go: not over the end of a block unless they are larger than one.
func (w *Writer) reserve(size int) (int64, error) {
	size = (size + slotSize - 1) &^ (slotSize - 1)
	if size > blockSize {
		at := w.next * blockSize
		w.next += int64((size + blockSize - 1) / blockSize)
		return at, nil
	}
	for i := range w.open {
		if p := &w.open[i]; p.used+size <= blockSize {
			at := p.block*blockSize + int64(p.used)
			p.used += size
			return at, nil
		}
	}
	if len(w.open) == openBlocks { // the fullest has served
		full := 0
		for i := range w.open {
			if w.open[i].used > w.open[full].used {
				full = i
			}
		}
		if _, err := w.f.WriteAt(w.open[full].data, w.open[full].block*blockSize); err != nil {
			return 0, err
		}
		w.open = slices.Delete(w.open, full, full+1)
	}
	w.open = append(w.open, piece{w.next, size, make([]byte, blockSize)})
	w.next++
	return (w.next - 1) * blockSize, nil
}

// write puts b at at: into the block that is open there, or the file.
func (w *Writer) write(b []byte, at int64) error {
	for i := range w.open {
		if w.open[i].block == at/blockSize {
			copy(w.open[i].data[at%blockSize:], b)
			return nil
		}
	}
	_, err := w.f.WriteAt(b, at)
	return err
}

// entry is a name of a directory.
type entry struct {
	name string
	node *node
}

// packDir returns how many bytes a directory's data has: each block holds whole entries, so this depends on the
// order. With a buffer it writes them there.
func packDir(entries []entry, b []byte) (size int) {
	le := binary.LittleEndian
	for len(entries) > 0 {
		n, used := 0, 0
		for n < len(entries) && used+direntSize+len(entries[n].name) <= blockSize {
			used += direntSize + len(entries[n].name)
			n++
		}
		if b != nil {
			at := n * direntSize
			for i, e := range entries[:n] {
				d := b[size+i*direntSize:]
				le.PutUint64(d, uint64(e.node.at/slotSize))
				le.PutUint16(d[8:], uint16(at))
				d[10] = fileType(e.node.mode & unix.S_IFMT)
				at += copy(b[size+at:], e.name)
			}
		}
		if entries = entries[n:]; len(entries) > 0 {
			used = blockSize
		}
		size += used
	}
	return size
}

// dirs returns n and all directories below it, in the order of their names.
func dirs(n *node, out []*node) []*node {
	out = append(out, n)
	for _, e := range sorted(n) {
		if e.node.isDir() && e.name != "." && e.name != ".." {
			out = dirs(e.node, out)
		}
	}
	return out
}

// sorted returns what a directory lists: its names with "." and "..", by their bytes.
func sorted(n *node) []entry {
	out := make([]entry, 0, len(n.entries)+2)
	out = append(out, entry{".", n}, entry{"..", n.parent})
	for name, c := range n.entries {
		out = append(out, entry{name, c})
	}
	slices.SortFunc(out, func(a, b entry) int { return cmp.Compare(a.name, b.name) })
	return out
}

// Close writes the directories and the superblock, and returns how long the image is. It neither syncs nor closes the
// file.
func (w *Writer) Close() (size int64, err error) {
	if w.err != nil {
		return 0, w.err
	}
	if err = w.finish(); err != nil {
		err = &errdefs.Error{Op: "write an EROFS image to", What: w.f.Name(), Kind: errdefs.KindOf(err), Err: err}
	}
	w.err = cmp.Or(err, error(&errdefs.Error{Op: "write into an EROFS image", What: w.f.Name(), Kind: errdefs.Conflict, Why: "it is closed"}))
	return w.next * blockSize, err
}

func (w *Writer) finish() error {
	// Places first: a directory names those below it and the one above.
	all := dirs(w.root, nil)
	attrs := make([][]byte, len(all))
	for i, d := range all {
		d.links, d.number = 2, w.number()
		for _, c := range d.entries {
			if c.isDir() {
				d.links++
			}
		}
		var err error
		if attrs[i], err = packXattrs("a directory", d.meta.Xattrs); err != nil {
			return err
		}
		if i == 0 {
			w.root.at = superAt + superSize
			continue
		}
		need := inodeSize + len(attrs[i])
		if tail := packDir(sorted(d), nil) % blockSize; need+tail <= blockSize {
			need += tail
		}
		if d.at, err = w.reserve(need); err != nil {
			return err
		}
	}
	for i, d := range all {
		list := sorted(d)
		size := packDir(list, nil)
		b := make([]byte, (size+blockSize-1)&^(blockSize-1))
		packDir(list, b)
		format, start, tail := uint16(extended|plain<<1), w.next, []byte(nil)
		if rest := size % blockSize; i > 0 && rest > 0 && inodeSize+len(attrs[i])+rest <= blockSize {
			format, tail, b = extended|inline<<1, b[size-rest:size], b[:size-rest]
		}
		if err := w.data(b); err != nil {
			return err
		}
		if err := w.inode(d, &d.meta, format, attrs[i], int64(size), start, tail); err != nil {
			return err
		}
		for _, e := range list {
			if n := e.node; !n.isDir() && n.links > 1 { // each of its names writes the same number
				if err := w.write(binary.LittleEndian.AppendUint32(nil, n.links), n.at+44); err != nil {
					return err
				}
			}
		}
	}
	for _, p := range w.open {
		if _, err := w.f.WriteAt(p.data, p.block*blockSize); err != nil {
			return err
		}
	}
	w.open = nil
	if err := w.f.Truncate(w.next * blockSize); err != nil { // the last block may be a hole
		return err
	}
	return w.super()
}

// super writes the superblock, with the digest of the rest of its block, in which the root is.
func (w *Writer) super() error {
	b := make([]byte, blockSize-superAt)
	if _, err := w.f.ReadAt(b, superAt); err != nil {
		return err
	}
	le := binary.LittleEndian
	le.PutUint32(b[0:], magic)
	le.PutUint32(b[8:], hasSum|hasMtime)
	b[12] = blockBits
	le.PutUint16(b[14:], uint16(w.root.at/slotSize))
	le.PutUint64(b[16:], uint64(w.inodes))
	le.PutUint32(b[36:], uint32(w.next))
	// The kernel's crc32c is not inverted at the end, Go's is.
	le.PutUint32(b[4:], ^crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	_, err := w.f.WriteAt(b[:superSize], superAt)
	return err
}

// fileType is a type as directories name it (FT_* in linux/fs_types.h); 0 is none.
func fileType(kind uint32) byte {
	switch kind {
	case unix.S_IFREG:
		return 1
	case unix.S_IFDIR:
		return 2
	case unix.S_IFCHR:
		return 3
	case unix.S_IFBLK:
		return 4
	case unix.S_IFIFO:
		return 5
	case unix.S_IFSOCK:
		return 6
	case unix.S_IFLNK:
		return 7
	}
	return 0
}

// encodeDevice is the kernel's new_encode_dev (linux/kdev_t.h).
func encodeDevice(d uint64) uint32 {
	major, minor := unix.Major(d), unix.Minor(d)
	return minor&0xff | major<<8 | minor&^0xff<<12
}

// prefixes are the beginnings of names that are written as numbers (EROFS_XATTR_INDEX_*); there are no others.
var prefixes = []struct {
	name  string
	index byte
	whole bool // nothing may follow
}{
	{"user.", 1, false},
	{"system.posix_acl_access", 2, true},
	{"system.posix_acl_default", 3, true},
	{"trusted.", 4, false},
	{"security.", 6, false},
}

// packXattrs returns the attributes as they follow an inode, sorted by name; nothing if there are none.
func packXattrs(name string, xattrs []Xattr) ([]byte, error) {
	if len(xattrs) == 0 {
		return nil, nil
	}
	xattrs = slices.SortedFunc(slices.Values(xattrs), func(a, b Xattr) int { return cmp.Compare(a.Name, b.Name) })
	out := make([]byte, xattrHead)
	for i, x := range xattrs {
		if i > 0 && x.Name == xattrs[i-1].Name {
			return nil, refuse(name, "the attribute "+strconv.Quote(x.Name)+" is there twice")
		}
		found := false
		for _, p := range prefixes {
			rest, ok := strings.CutPrefix(x.Name, p.name)
			if !ok || p.whole != (rest == "") {
				continue
			}
			if len(rest) > 255 || len(x.Value) > math.MaxUint16 || strings.IndexByte(rest, 0) >= 0 {
				return nil, refuse(name, "the attribute "+strconv.Quote(x.Name)+" has a name or value that is too long, or a zero byte in its name")
			}
			out = append(out, byte(len(rest)), p.index)
			out = binary.LittleEndian.AppendUint16(out, uint16(len(x.Value)))
			out = append(append(out, rest...), x.Value...)
			out = append(out, make([]byte, -len(out)&3)...)
			found = true
			break
		}
		if !found {
			return nil, &errdefs.Error{
				Op: "write into an EROFS image", What: strconv.Quote(name), Kind: errdefs.Unsupported,
				Why: "EROFS has no place for the attribute " + strconv.Quote(x.Name),
			}
		}
	}
	if (len(out)-xattrHead)/4+1 > math.MaxUint16 {
		return nil, &errdefs.Error{
			Op: "write into an EROFS image", What: strconv.Quote(name), Kind: errdefs.Exhausted,
			Why: "its extended attributes have " + strconv.Itoa(len(out)) + " bytes, and an inode has room for 262,000",
		}
	}
	return out, nil
}
