package content

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/pagecache"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// An ingest that can be resumed has a name under ingest/, <algorithm>-<hex>.part, and beside it a map of its chunks,
// <algorithm>-<hex>.map. Several goroutines write ranges of it at once, in any order. A chunk is
//
//	missing -> landed     all its bytes were written: it survives the end of the process
//	        -> synced     and they are on disk: it survives a power cut
//
// The map says so for each chunk, in a byte that is written after what it says has become true. Landed counts only
// within the same boot (boot_id of random(4)). Nobody rewrites a byte that has been written: readers may have seen it.
//
// Who holds the lock of the .part works on it; one that nobody holds waits to be resumed, and is swept a week after its
// last write.
const (
	chunkSize = 1 << 20
	// maxResumable bounds the map, which has a byte for each chunk.
	maxResumable = 1 << 42
	// KeepPartial is how long a transfer that was broken off can be resumed.
	KeepPartial = 7 * 24 * time.Hour
	// syncEvery is how much time may pass until what has landed is synced.
	syncEvery = 2 * time.Second

	missing, landed, synced = 0, 1, 2
)

// chunks is the resumable part of an Ingest.
type chunks struct {
	mapFile *os.File
	mapName string
	head    int64 // bytes of the map's header

	// Guarded by Ingest.mu:
	state   []byte
	got     []int32 // bytes of a chunk that were written, from its start
	hashing bool
	syncing bool
	last    time.Time // of a sync
	resumed int64     // bytes that were there when it was opened
	discard bool
	wg      sync.WaitGroup // the sync that runs
}

// Range is a part of a blob, in bytes: From is the first one, To the one after the last.
type Range struct{ From, To int64 }

// Resume starts an ingest that goes on where an earlier one for the same blob was broken off, and that may be broken off
// again: Close keeps what has arrived, unless it turned out to be wrong. It is written with WriteAt. Conflict: another
// process is at it. Precondition: desc has a digest and a size.
func (s *Store) Resume(ctx context.Context, desc ocispec.Descriptor) (_ *Ingest, err error) {
	if err := Check(desc.Digest); err != nil {
		return nil, err
	}
	if desc.Size <= 0 || desc.Size > maxResumable {
		return nil, &errdefs.Error{Op: "resume the blob", What: string(desc.Digest), Kind: errdefs.InvalidArgument, Why: fmt.Sprintf("its size is %d", desc.Size)}
	}
	base := filepath.Join(s.dir, "ingest", strings.Replace(string(desc.Digest), ":", "-", 1))
	f, err := s.openPart(base + ".part")
	if err != nil {
		return nil, blobError("resume", desc.Digest, err)
	}
	w := &Ingest{s: s, ctx: ctx, desc: desc, f: f, temp: base + ".part", h: NewHash(desc.Digest)}
	w.changed = sync.NewCond(&w.mu)
	n := (desc.Size + chunkSize - 1) / chunkSize
	w.parts = &chunks{mapName: base + ".map", state: make([]byte, n), got: make([]int32, n), last: time.Now()}
	if err := w.openMap(); err != nil {
		_ = f.Close()
		if w.parts.mapFile != nil {
			_ = w.parts.mapFile.Close()
		}
		return nil, blobError("resume", desc.Digest, err)
	}
	if err := w.hashPrefix(); err != nil {
		return nil, errors.Join(blobError("resume", desc.Digest, err), w.Close())
	}
	return w, nil
}

// openPart opens or makes the file and locks it.
func (s *Store) openPart(name string) (*os.File, error) {
	for {
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o644)
		if errors.Is(err, fs.ErrNotExist) { // no ingest/ yet
			if err = s.makeDirs(); err == nil {
				continue
			}
		}
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			_ = f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, &errdefs.Error{Kind: errdefs.Conflict, Why: "another process is fetching it"}
			}
			return nil, err
		}
		var held, now unix.Stat_t // it may have been committed or swept before it was locked
		if unix.Fstat(int(f.Fd()), &held) == nil && unix.Lstat(name, &now) == nil && held.Ino == now.Ino && held.Nlink > 0 {
			return f, nil
		}
		_ = f.Close()
	}
}

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}

// openMap reads the map, or makes it. One that does not fit the blob, or its file, is made anew.
func (w *Ingest) openMap() error {
	p := w.parts
	head := fmt.Sprintf("onggi-chunks 1 %d %d %s\n", w.desc.Size, chunkSize, bootID())
	p.head = int64(len(head))
	f, err := os.OpenFile(p.mapName, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	p.mapFile = f
	fi, err := w.f.Stat()
	if err != nil {
		return err
	}
	br := bufio.NewReader(io.LimitReader(f, 256+int64(len(p.state))))
	was, _ := br.ReadString('\n')
	fields := strings.Fields(was)
	fits := len(fields) == 5 && fields[0] == "onggi-chunks" && fields[1] == "1" && fields[2] == strconv.FormatInt(w.desc.Size, 10) && fields[3] == strconv.Itoa(chunkSize)
	if fits {
		if _, err := io.ReadFull(br, p.state); err != nil {
			fits = false
		}
	}
	sameBoot := fits && fields[4] == bootID()
	for i := range p.state {
		size := w.chunkLen(i)
		if !fits || p.state[i] > synced || p.state[i] == landed && !sameBoot || int64(i)*chunkSize+size > fi.Size() {
			p.state[i] = missing
		}
		if p.state[i] != missing {
			p.got[i] = int32(size)
			p.resumed += size
		}
	}
	if sameBoot {
		return nil
	}
	// Made anew beside it: a half-written map would lie.
	temp := p.mapName + ".new"
	n, err := os.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_TRUNC|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	if _, err := n.Write(append([]byte(head), p.state...)); err != nil {
		_ = n.Close()
		return err
	}
	if err := n.Sync(); err != nil {
		_ = n.Close()
		return err
	}
	if err := os.Rename(temp, p.mapName); err != nil {
		_ = n.Close()
		return err
	}
	_ = f.Close()
	p.mapFile = n
	return nil
}

func (w *Ingest) chunkLen(i int) int64 { return min(chunkSize, w.desc.Size-int64(i)*chunkSize) }

// Resumable reports whether the ingest was begun by Resume.
func (w *Ingest) Resumable() bool { return w.parts != nil }

// Resumed returns how many bytes were here when the ingest was opened.
func (w *Ingest) Resumed() int64 {
	if w.parts == nil {
		return 0
	}
	return w.parts.resumed
}

// Missing lists what has not been written, in order, in ranges of at most limit bytes.
func (w *Ingest) Missing(limit int64) []Range {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []Range
	for i, s := range w.parts.state {
		if s != missing {
			continue
		}
		from, to := int64(i)*chunkSize+int64(w.parts.got[i]), int64(i)*chunkSize+w.chunkLen(i)
		if n := len(out); n > 0 && out[n-1].To == from && to-out[n-1].From <= limit {
			out[n-1].To = to
		} else {
			out = append(out, Range{from, to})
		}
	}
	return out
}

// WriteAt writes a part of the blob. What was written before is passed over, so that it is never changed. Each chunk has
// to be written front to back by one goroutine at a time; a gap is an error.
func (w *Ingest) WriteAt(p []byte, off int64) (int, error) {
	if err := w.usable(); err != nil {
		return 0, err
	}
	if off < 0 || off+int64(len(p)) > w.desc.Size {
		return 0, w.fail(&errdefs.Error{
			What: "blob " + string(w.desc.Digest), Kind: errdefs.Corrupt,
			Why: fmt.Sprintf("more than the expected %d bytes arrived", w.desc.Size),
		})
	}
	total := len(p)
	for len(p) > 0 {
		i := int(off / chunkSize)
		n := min(int64(len(p)), int64(i)*chunkSize+w.chunkLen(i)-off)
		if err := w.writeChunk(i, p[:n], off); err != nil {
			return total - len(p), err
		}
		p, off = p[n:], off+n
	}
	return total, nil
}

func (w *Ingest) writeChunk(i int, p []byte, off int64) error {
	c := w.parts
	w.mu.Lock()
	have := int64(i)*chunkSize + int64(c.got[i]) - off // of p, so much is there
	w.mu.Unlock()
	if have < 0 {
		return w.fail(&errdefs.Error{What: "blob " + string(w.desc.Digest), Kind: errdefs.Internal, Why: "a chunk is written with a gap"})
	}
	if have >= int64(len(p)) {
		return nil
	}
	p, off = p[have:], off+have
	if _, err := w.f.WriteAt(p, off); err != nil {
		return w.fail(blobError("store", w.desc.Digest, err))
	}
	w.mu.Lock()
	c.got[i] += int32(len(p))
	full := int64(c.got[i]) == w.chunkLen(i)
	direct := off == w.written && !c.hashing && !w.verified
	if direct {
		c.hashing = true
	}
	w.mu.Unlock()
	if direct { // the usual case: no need to read it back
		w.h.Write(p)
		w.mu.Lock()
		w.written += int64(len(p))
		c.hashing = false
		w.changed.Broadcast()
		w.mu.Unlock()
	}
	if full {
		pagecache.Start(int(w.f.Fd()), int64(i)*chunkSize, int64(i)*chunkSize+w.chunkLen(i))
		if err := w.mark(i, landed); err != nil {
			return w.fail(blobError("store", w.desc.Digest, err))
		}
		w.syncSoon()
	}
	if err := w.hashPrefix(); err != nil {
		return w.fail(blobError("store", w.desc.Digest, err))
	}
	return nil
}

// mark writes a chunk's state into the map.
func (w *Ingest) mark(i int, state byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.parts.state[i] = state
	_, err := w.parts.mapFile.WriteAt([]byte{state}, w.parts.head+int64(i))
	return err
}

// hashPrefix takes what follows the hashed bytes without a gap into the hash, and lets followers have it. One goroutine
// does so at a time; the others leave it to that one.
func (w *Ingest) hashPrefix() error {
	c := w.parts
	var buf []byte
	w.mu.Lock()
	defer w.mu.Unlock()
	if c.hashing {
		return nil
	}
	c.hashing = true
	defer func() { c.hashing = false }()
	for w.written < w.desc.Size {
		i := int(w.written / chunkSize)
		end := int64(i)*chunkSize + int64(c.got[i])
		if end <= w.written {
			return nil
		}
		at := w.written
		if buf == nil {
			buf = make([]byte, 256<<10)
		}
		n := min(int64(len(buf)), end-at)
		w.mu.Unlock()
		_, err := w.f.ReadAt(buf[:n], at)
		if err == nil {
			w.h.Write(buf[:n])
		}
		w.mu.Lock()
		if err != nil {
			return err
		}
		w.written += n
		w.changed.Broadcast()
	}
	return nil
}

// syncSoon syncs what has landed, beside the transfer, when the last time was long enough ago.
func (w *Ingest) syncSoon() {
	c := w.parts
	w.mu.Lock()
	defer w.mu.Unlock()
	if c.syncing || w.err != nil || time.Since(c.last) < syncEvery {
		return
	}
	c.syncing = true
	c.wg.Go(func() {
		w.syncLanded()
		w.mu.Lock()
		c.syncing, c.last = false, time.Now()
		w.mu.Unlock()
	})
}

// syncLanded writes what has landed to the disk and says so in the map. That it failed is no reason to stop: the chunks
// are landed still.
func (w *Ingest) syncLanded() {
	c := w.parts
	var which []int
	w.mu.Lock()
	for i, s := range c.state {
		if s == landed {
			which = append(which, i)
		}
	}
	w.mu.Unlock()
	if len(which) == 0 || unix.Fdatasync(int(w.f.Fd())) != nil {
		return
	}
	for _, i := range which {
		if w.mark(i, synced) != nil {
			return
		}
	}
}

// Discard makes Close drop what has arrived.
func (w *Ingest) Discard() {
	if w.parts != nil {
		w.mu.Lock()
		w.parts.discard = true
		w.mu.Unlock()
	}
}

// suspend closes a resumable ingest: kept is false when its files are to go.
func (w *Ingest) suspend(committed bool) (kept bool) {
	c := w.parts
	c.wg.Wait()
	w.mu.Lock()
	wrong := committed || c.discard || errdefs.Is(w.err, errdefs.Corrupt) || errdefs.Is(w.err, errdefs.NoSpace) || bytes.Count(c.state, []byte{missing}) == len(c.state)
	w.mu.Unlock()
	if !wrong {
		w.syncLanded()
	}
	_ = c.mapFile.Close()
	if wrong {
		_ = os.Remove(c.mapName) // the .part goes next; a map alone is swept
	}
	return !wrong
}

// Partial is a transfer that was broken off.
type Partial struct {
	Digest digest.Digest
	Bytes  int64 // on disk
	Since  time.Time
}

// Partials lists the transfers that were broken off and can be resumed, and those that run.
func (s *Store) Partials() ([]Partial, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, "ingest"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list the broken transfers: %w", err)
	}
	var out []Partial
	for _, e := range entries {
		d, ok := partOf(e.Name())
		if !ok {
			continue
		}
		var st unix.Stat_t
		if unix.Lstat(filepath.Join(s.dir, "ingest", e.Name()), &st) != nil {
			continue // gone since
		}
		p := Partial{Digest: d, Bytes: st.Blocks * 512, Since: time.Unix(st.Mtim.Unix())}
		if unix.Lstat(filepath.Join(s.dir, "ingest", strings.TrimSuffix(e.Name(), ".part")+".map"), &st) == nil {
			p.Bytes += st.Blocks * 512
		}
		out = append(out, p)
	}
	return out, nil
}

// partOf returns the blob of which name is a part.
func partOf(name string) (digest.Digest, bool) {
	base, ok := strings.CutSuffix(name, ".part")
	d := digest.Digest(strings.Replace(base, "-", ":", 1))
	return d, ok && Check(d) == nil
}

// DropPartials removes the broken transfers that are older, and what belongs to none. Those that run stay.
func (s *Store) DropPartials(ctx context.Context, older time.Duration) error {
	dir := filepath.Join(s.dir, "ingest")
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("drop the broken transfers: %w", err)
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		name := filepath.Join(dir, e.Name())
		if _, ok := partOf(e.Name()); ok {
			if err := dropPart(name, older); err != nil {
				return fmt.Errorf("drop the broken transfers: %w", err)
			}
			continue
		}
		base, _, _ := strings.Cut(name, ".map")
		if fi, err := e.Info(); base != name && err == nil && time.Since(fi.ModTime()) >= older {
			if _, err := os.Lstat(base + ".part"); errors.Is(err, fs.ErrNotExist) {
				_ = os.Remove(name)
			}
		}
	}
	return nil
}

func dropPart(name string, older time.Duration) error {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil || time.Since(fi.ModTime()) < older || unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return err
	}
	_ = os.Remove(strings.TrimSuffix(name, ".part") + ".map")
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
