package tree

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"sync"
	"time"

	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Known remembers the digests of files of a user's directory over builds, so that a file that did not change is not read
// again. A file is the same as long as device, inode, size, mode, time of modification and time of change (ctime, which
// nobody can set) are: the rule of git's index. As there, a file that changed less than a second before it was read is not
// remembered, for it may change again within the grain of the file system's clock.
//
// The file is a header and records of knownSize bytes, sorted by inode, of little-endian numbers; looked up where it lies.
// One that is broken in whatever way is an empty one.
//
// Lifecycle: OpenKnown, View.Remember, View.Digest..., Save. Its methods may be called from several goroutines.
type Known struct {
	path string
	old  []byte // whole records

	mu  sync.Mutex
	new map[inode]record
	hit map[inode]bool
}

type inode struct{ ino, dev uint64 }

// record is a file as it was, and its digest.
type record struct {
	inode
	mtime, ctime, size int64
	mode               uint64
	sum                [32]byte
}

const (
	knownMagic = "onggi known files 1\n"
	knownSize  = 6*8 + 32
	maxKnown   = 2 << 20 // records
)

// settled is how long a file must have been the same before it is remembered.
const settled = time.Second

// OpenKnown reads what is known; the file need not be there.
func OpenKnown(path string) *Known {
	k := &Known{path: path, new: map[inode]record{}, hit: map[inode]bool{}}
	f, err := os.Open(path)
	if err != nil {
		return k
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil || fi.Size() > maxKnown*knownSize+int64(len(knownMagic)) {
		return k
	}
	b := make([]byte, fi.Size())
	_, err = io.ReadFull(f, b)
	b, ok := bytes.CutPrefix(b, []byte(knownMagic))
	if err == nil && ok && len(b)%knownSize == 0 {
		k.old = b
	}
	return k
}

func (r *record) put(b []byte) {
	for i, n := range []uint64{r.ino, r.dev, uint64(r.mtime), uint64(r.ctime), uint64(r.size), r.mode} {
		binary.LittleEndian.PutUint64(b[8*i:], n)
	}
	copy(b[48:], r.sum[:])
}

func getRecord(b []byte) (r record) {
	n := func(i int) uint64 { return binary.LittleEndian.Uint64(b[8*i:]) }
	r = record{inode: inode{n(0), n(1)}, mtime: int64(n(2)), ctime: int64(n(3)), size: int64(n(4)), mode: n(5)}
	copy(r.sum[:], b[48:])
	return r
}

func (k *Known) count() int { return len(k.old) / knownSize }

func (k *Known) at(i int) []byte { return k.old[i*knownSize : (i+1)*knownSize] }

// find returns an old record.
func (k *Known) find(f inode) (record, bool) {
	i := sort.Search(k.count(), func(i int) bool {
		b := k.at(i)
		ino, dev := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
		return ino > f.ino || ino == f.ino && dev >= f.dev
	})
	if i == k.count() {
		return record{}, false
	}
	r := getRecord(k.at(i))
	return r, r.inode == f
}

func recordOf(st *unix.Stat_t) record {
	return record{inode: inode{st.Ino, uint64(st.Dev)}, mtime: st.Mtim.Nano(), ctime: st.Ctim.Nano(), size: st.Size, mode: uint64(st.Mode)} //nolint:unconvert // types differ by architecture
}

// get returns the digest of a file that is as it was.
func (k *Known) get(st *unix.Stat_t) (digest.Digest, bool) {
	now := recordOf(st)
	k.mu.Lock()
	was, ok := k.new[now.inode]
	k.mu.Unlock()
	if !ok {
		if was, ok = k.find(now.inode); !ok {
			return "", false
		}
	}
	now.sum = was.sum
	if was != now {
		return "", false
	}
	k.mu.Lock()
	k.hit[now.inode] = true
	k.mu.Unlock()
	return digest.NewDigestFromEncoded(digest.SHA256, hex.EncodeToString(was.sum[:])), true
}

// put remembers the digest of a file that was looked at, and then read from began on. What counts is when reading began, not
// when it ended: a file that takes seconds to read may have been written once more behind the reader within the tick of the
// clock that it was looked at in, and its times would never tell.
func (k *Known) put(st *unix.Stat_t, d digest.Digest, began time.Time) {
	r := recordOf(st)
	if began.Sub(time.Unix(0, max(r.mtime, r.ctime))) < settled {
		return
	}
	if n, err := hex.Decode(r.sum[:], []byte(d.Encoded())); err != nil || n != len(r.sum) {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.new[r.inode] = r
}

// Save writes what is known now, by rename, if there is something new. Old records that nobody asked for stay as long as
// they are not more than those that somebody did: builds of one directory may look at different parts of it.
func (k *Known) Save() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.new) == 0 {
		return nil
	}
	all := make([]record, 0, len(k.new)+k.count())
	for _, r := range k.new {
		all = append(all, r)
	}
	unused := k.count() - len(k.hit)
	for i := range k.count() {
		r := getRecord(k.at(i))
		if _, again := k.new[r.inode]; !again && (k.hit[r.inode] || unused <= len(k.hit)+len(k.new)) {
			all = append(all, r)
		}
	}
	if len(all) > maxKnown {
		all = all[:maxKnown]
	}
	slices.SortFunc(all, func(a, b record) int { return cmp.Or(cmp.Compare(a.ino, b.ino), cmp.Compare(a.dev, b.dev)) })
	b := make([]byte, len(knownMagic)+len(all)*knownSize)
	copy(b, knownMagic)
	for i, r := range all {
		r.put(b[len(knownMagic)+i*knownSize:])
	}
	f, err := os.CreateTemp(filepath.Dir(k.path), ".new-")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = cmp.Or(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), k.path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// Remember has the view's digests looked up in k, and put there.
func (v *View) Remember(k *Known) { v.known = k }
