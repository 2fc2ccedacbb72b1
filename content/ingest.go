package content

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/pagecache"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// Ingest is a blob on its way in. One goroutine writes; any number may Follow.
type Ingest struct {
	s    *Store
	ctx  context.Context
	desc ocispec.Descriptor
	f    *os.File
	temp string // its name under ingest/, "" when it has none
	h    hash.Hash

	parts  *chunks // of one that can be resumed, nil of others
	placed bool    // it has its name under blobs/

	mu       sync.Mutex
	changed  *sync.Cond // on mu: written, verified or err changed
	written  int64
	verified bool
	closed   bool
	err      error // why there will be no more
}

// errClosed ends the followers of an ingest that was given up without another reason.
var errClosed = errors.New("the transfer was given up")

// Begin starts an ingest for desc; desc.Size -1 and an empty digest mean unknown (the digest is then computed). When
// ctx ends, Write and followers end with its error.
func (s *Store) Begin(ctx context.Context, desc ocispec.Descriptor) (*Ingest, error) {
	if desc.Digest != "" {
		if err := Check(desc.Digest); err != nil {
			return nil, err
		}
	}
	if desc.Size < -1 {
		return nil, &errdefs.Error{
			Op: "store the blob", What: string(desc.Digest), Kind: errdefs.InvalidArgument,
			Why: fmt.Sprintf("its size %d is negative", desc.Size),
		}
	}
	f, temp, err := s.temporary()
	if errors.Is(err, fs.ErrNotExist) { // a layout that another program made has no ingest/, and not all of blobs/
		if err = s.makeDirs(); err == nil {
			f, temp, err = s.temporary()
		}
	}
	if err != nil {
		return nil, blobError("store", desc.Digest, err)
	}
	w := &Ingest{s: s, ctx: ctx, desc: desc, f: f, temp: temp, h: NewHash(desc.Digest)}
	w.changed = sync.NewCond(&w.mu)
	return w, nil
}

// temporary makes an unnamed file in ingest/, or a named and locked one where the file system has no unnamed files.
func (s *Store) temporary() (f *os.File, temp string, err error) {
	dir := filepath.Join(s.dir, "ingest")
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o444)
	if err == nil {
		return os.NewFile(uintptr(fd), dir), "", nil
	}
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EINVAL) {
		return nil, "", &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	return namedTemporary(dir)
}

func namedTemporary(dir string) (*os.File, string, error) {
	for {
		temp := filepath.Join(dir, randomName())
		f, err := os.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_CLOEXEC, 0o444)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return nil, "", err
		}
		// Sweep may have seen the file before it was locked: then it is about to remove it, or has done so.
		var st unix.Stat_t
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			if err := unix.Fstat(int(f.Fd()), &st); err == nil && st.Nlink == 1 {
				return f, temp, nil
			}
		}
		_ = f.Close()
		_ = os.Remove(temp)
	}
}

func randomName() string {
	var b [12]byte
	_, _ = rand.Read(b[:]) // never fails since Go 1.24
	return hex.EncodeToString(b[:])
}

// Size is how many bytes have been written.
func (w *Ingest) Size() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.written
}

// Write appends; writing more than the expected size is an error of kind Corrupt at once.
func (w *Ingest) Write(p []byte) (int, error) {
	if err := w.usable(); err != nil {
		return 0, err
	}
	if w.desc.Size >= 0 && w.written+int64(len(p)) > w.desc.Size {
		return 0, w.fail(&errdefs.Error{
			What: "blob " + string(w.desc.Digest), Kind: errdefs.Corrupt,
			Why: fmt.Sprintf("more than the expected %d bytes arrived", w.desc.Size),
		})
	}
	n, err := w.f.Write(p)
	w.h.Write(p[:n])
	w.mu.Lock()
	w.written += int64(n)
	w.changed.Broadcast()
	w.mu.Unlock()
	if err != nil {
		return n, w.fail(blobError("write", w.desc.Digest, err))
	}
	return n, nil
}

func (w *Ingest) usable() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.err != nil:
		return w.err
	case w.verified:
		return errors.New("the ingest is complete: nothing can be added")
	}
	return w.ctx.Err()
}

// fail ends the ingest for its followers; the first reason stays.
func (w *Ingest) fail(err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
		w.changed.Broadcast()
	}
	return err
}

// Digest returns the digest of what has been written so far.
func (w *Ingest) Digest() digest.Digest { return sum(w.desc.Digest, w.h) }

// Verify says that everything has been written: size and digest are checked, and followers reach their end. The data
// need not be on disk yet.
func (w *Ingest) Verify() error {
	w.mu.Lock()
	done, err := w.verified, w.err
	w.mu.Unlock()
	if done || err != nil {
		return err
	}
	if w.desc.Size >= 0 && w.written != w.desc.Size {
		return w.fail(&errdefs.Error{
			What: "blob " + string(w.desc.Digest), Kind: errdefs.Corrupt,
			Why: fmt.Sprintf("%d bytes arrived instead of %d", w.written, w.desc.Size),
		})
	}
	got := w.Digest()
	if w.desc.Digest != "" && got != w.desc.Digest {
		return w.fail(&errdefs.Error{
			What: "blob " + string(w.desc.Digest), Kind: errdefs.Corrupt,
			Why: "what arrived has the digest " + string(got),
		})
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.desc.Digest, w.desc.Size, w.verified = got, w.written, true
	w.changed.Broadcast()
	return nil
}

// Follow returns a reader from the blob's first byte on that waits for what is not written yet. It reaches io.EOF only
// after Verify has succeeded; an error of the writing side, or Close, is its error too. It need not be closed.
func (w *Ingest) Follow(ctx context.Context) io.Reader {
	return &follower{w: w, ctx: ctx, behind: pagecache.Reader{FD: int(w.f.Fd())}}
}

type follower struct {
	w      *Ingest
	ctx    context.Context
	off    int64
	behind pagecache.Reader // what was read is not read again, as a rule
}

func (r *follower) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	ready, err := r.wait()
	if err != nil {
		return 0, err
	}
	n, err := r.w.f.ReadAt(p[:min(int64(len(p)), ready)], r.off)
	r.off += int64(n)
	if n > 0 {
		r.behind.Read(r.off)
		return n, nil
	}
	return 0, err
}

// wait returns how many bytes can be read at once, at least one.
func (r *follower) wait() (int64, error) {
	w := r.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.written == r.off && !w.verified && w.err == nil && r.ctx.Err() == nil {
		wake := func() { w.mu.Lock(); w.changed.Broadcast(); w.mu.Unlock() }
		defer context.AfterFunc(r.ctx, wake)()
		for w.written == r.off && !w.verified && w.err == nil && r.ctx.Err() == nil {
			w.changed.Wait()
		}
	}
	switch {
	case r.ctx.Err() != nil:
		return 0, context.Cause(r.ctx)
	case w.err != nil:
		return 0, w.err
	case w.written > r.off:
		return w.written - r.off, nil
	}
	return 0, io.EOF
}

// Commit verifies, syncs and puts the blob in its place, and closes the ingest, so followers have to be at their end. A
// blob that is already there makes Commit succeed.
func (w *Ingest) Commit(ctx context.Context) (ocispec.Descriptor, error) {
	if err := w.Verify(); err != nil {
		return ocispec.Descriptor{}, err
	}
	if err := ctx.Err(); err != nil {
		return ocispec.Descriptor{}, err
	}
	if w.parts != nil {
		w.parts.wg.Wait()
	}
	if err := w.place(); err != nil {
		return ocispec.Descriptor{}, blobError("store", w.desc.Digest, err)
	}
	w.placed = true
	return w.desc, w.Close()
}

func (w *Ingest) place() error {
	if err := w.f.Sync(); err != nil {
		return err
	}
	path, err := w.s.Path(w.desc.Digest)
	if err != nil {
		return err
	}
	err = w.link(path)
	if errors.Is(err, fs.ErrExist) {
		// Somebody was faster, or it was there. Bytes that cannot be right are replaced: a pull repairs the store.
		if n, err := w.s.Stat(w.desc.Digest); err != nil || n != w.desc.Size {
			if err := w.replace(path); err != nil {
				return err
			}
		}
		err = nil
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// link gives the file its name; fs.ErrExist when the name is taken.
func (w *Ingest) link(path string) error {
	if w.parts != nil {
		if err := w.f.Chmod(0o444); err != nil {
			return err
		}
		// Renamed, so that no second name of a blob stays that looks like a transfer.
		err := unix.Renameat2(unix.AT_FDCWD, w.temp, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
		if err == nil || errors.Is(err, unix.EEXIST) {
			if err != nil {
				return &os.LinkError{Op: "rename", Old: w.temp, New: path, Err: err}
			}
			return nil
		}
	}
	if w.temp != "" {
		return os.Link(w.temp, path)
	}
	err := unix.Linkat(int(w.f.Fd()), "", unix.AT_FDCWD, path, unix.AT_EMPTY_PATH)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		// AT_EMPTY_PATH needs CAP_DAC_READ_SEARCH before Linux 6.10; the way through /proc does not (open(2)).
		self := "/proc/self/fd/" + strconv.Itoa(int(w.f.Fd()))
		err = unix.Linkat(unix.AT_FDCWD, self, unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
	}
	if err != nil {
		return &os.LinkError{Op: "link", Old: "ingest", New: path, Err: err}
	}
	return nil
}

// replace puts the file over what has the name.
func (w *Ingest) replace(path string) error {
	// Sweep leaves alone what is locked.
	if err := unix.Flock(int(w.f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("lock the ingest: %w", err)
	}
	temp := filepath.Join(w.s.dir, "ingest", randomName())
	if err := w.link(temp); err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		_ = os.Remove(temp)
		return err
	}
	return nil
}

// Close drops what was not committed. It may always be called, also again.
func (w *Ingest) Close() error {
	w.mu.Lock()
	if w.err == nil {
		w.err = errClosed
		w.changed.Broadcast()
	}
	f := w.f
	closed := w.closed
	w.closed = true
	w.mu.Unlock()
	if w.parts != nil && (closed || w.suspend(w.placed)) {
		w.temp = "" // kept
	}
	if w.temp != "" {
		if err := os.Remove(w.temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("drop an ingest: %w", err)
		}
		w.temp = ""
	}
	if err := f.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
		return fmt.Errorf("close an ingest: %w", err)
	}
	return nil
}

// Abort drops the ingest and tells its followers why.
func (w *Ingest) Abort(why error) error {
	_ = w.fail(why)
	return w.Close()
}

// Sweep removes what processes that are gone left in ingest/. Transfers that can be resumed stay for KeepPartial.
func (s *Store) Sweep(ctx context.Context) error {
	if err := s.DropPartials(ctx, KeepPartial); err != nil {
		return err
	}
	dir := filepath.Join(s.dir, "ingest")
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("sweep the ingests: %w", err)
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !e.Type().IsRegular() || strings.Contains(e.Name(), ".part") || strings.Contains(e.Name(), ".map") {
			continue
		}
		f, err := os.OpenFile(filepath.Join(dir, e.Name()), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("sweep the ingests: %w", err)
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			err = os.Remove(f.Name())
		}
		_ = f.Close()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("sweep the ingests: %w", err)
		}
	}
	return nil
}
