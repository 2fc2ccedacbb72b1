package image

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/onggi/onggi/content"
	"github.com/onggi/onggi/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// lock is the held index lock. It belongs to the open file, so two goroutines exclude each other as two processes do,
// and it ends with its process.
type lock struct{ f *os.File }

// lockIndex waits for the lock under which index.json changes, leases are written, and blobs and layers are removed. It
// is held for milliseconds, and no other lock is taken while it is held. It is asked for again and again rather than
// slept for in flock, which a context could not end.
func (s *Store) lockIndex(ctx context.Context) (*lock, error) {
	fail := func(err error) (*lock, error) {
		return nil, &errdefs.Error{Op: "lock the image index", What: s.dir, Kind: errdefs.KindOf(err), Err: err}
	}
	f, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fail(err)
	}
	for pause := time.Millisecond; ; pause = min(pause*2, 20*time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return &lock{f}, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			_ = f.Close()
			return fail(err)
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			_ = f.Close()
			return fail(ctx.Err())
		case <-t.C:
		}
	}
}

// release may be called again.
func (l *lock) release() { _ = l.f.Close() }

// lease says which blobs and layers a running operation relies on. The file is locked as long as the process lives.
type lease struct {
	s    *Store
	f    *os.File
	path string
	mu   sync.Mutex
	held map[digest.Digest]bool // guarded by mu, until the lease ends
}

// newLease takes an empty lease.
func (s *Store) newLease(ctx context.Context) (*lease, error) {
	l, err := s.lockIndex(ctx) // so that nobody sees the file before it is locked
	if err != nil {
		return nil, err
	}
	defer l.release()
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails since Go 1.24
	path := filepath.Join(s.dir, "leases", hex.EncodeToString(b[:]))
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND|unix.O_CLOEXEC, 0o600)
	if err == nil {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			_ = f.Close()
			_ = os.Remove(path)
		}
	}
	if err != nil {
		return nil, &errdefs.Error{Op: "take a lease in", What: s.dir, Kind: errdefs.KindOf(err), Err: err}
	}
	return &lease{s: s, f: f, path: path, held: map[digest.Digest]bool{}}, nil
}

// add relies on the digests from now on. Preconditions: they are valid; whether they are there is looked up afterwards.
func (l *lease) add(ctx context.Context, ds ...digest.Digest) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b strings.Builder
	for _, d := range ds {
		if !l.held[d] {
			b.WriteString(string(d) + "\n")
		}
	}
	if b.Len() == 0 {
		return nil
	}
	lk, err := l.s.lockIndex(ctx)
	if err != nil {
		return err
	}
	defer lk.release()
	if _, err := l.f.WriteString(b.String()); err != nil {
		return &errdefs.Error{Op: "write the lease", What: l.path, Kind: errdefs.KindOf(err), Err: err}
	}
	for _, d := range ds {
		l.held[d] = true
	}
	return nil
}

// release ends the lease. What it listed stays only if a name or another lease needs it (see collect).
func (l *lease) release() error {
	err := os.Remove(l.path)
	_ = l.f.Close()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &errdefs.Error{Op: "end the lease", What: l.path, Kind: errdefs.KindOf(err), Err: err}
	}
	return nil
}

// drop ends the lease and removes what it listed and nobody else needs. If that fails the lease is left like that of a
// dead process, for the next one to try.
func (l *lease) drop(ctx context.Context) error {
	if _, err := l.s.collect(ctx, l.held, l); err != nil {
		_ = l.f.Close()
		return err
	}
	return l.release()
}

// maxLease bounds what is read of a lease file.
const maxLease = 64 << 20

// leases reads the leases of living processes but own, and those that dead ones left. Precondition: the index lock is
// held.
func (s *Store) leases(own *lease) (live map[digest.Digest]bool, stale []string, left map[digest.Digest]bool, _ error) {
	live, left = map[digest.Digest]bool{}, map[digest.Digest]bool{}
	entries, err := os.ReadDir(filepath.Join(s.dir, "leases"))
	if err != nil {
		return nil, nil, nil, fmt.Errorf("read the leases: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(s.dir, "leases", e.Name())
		if own != nil && path == own.path {
			continue
		}
		f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, nil, nil, fmt.Errorf("read the leases: %w", err)
		}
		into := live
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			into, stale = left, append(stale, path)
		}
		sc := bufio.NewScanner(io.LimitReader(f, maxLease))
		for sc.Scan() {
			if d := digest.Digest(sc.Text()); content.Check(d) == nil { // a torn last line of a dead process is no digest
				into[d] = true
			}
		}
		err = sc.Err()
		_ = f.Close()
		if err != nil {
			return nil, nil, nil, fmt.Errorf("read the leases: %w", err)
		}
	}
	return live, stale, left, nil
}

// recover removes what a process that died in the middle left. It costs one directory listing when there is nothing.
func (s *Store) recover(ctx context.Context) error {
	entries, err := os.ReadDir(filepath.Join(s.dir, "leases"))
	if err != nil {
		return fmt.Errorf("read the leases: %w", err)
	}
	if len(entries) == 0 {
		return nil
	}
	dead, err := s.deadLeases(ctx)
	if err != nil || len(dead.paths) == 0 {
		return err
	}
	if err := s.content.Sweep(ctx); err != nil {
		return err
	}
	if err := s.snapshots.Sweep(ctx); err != nil {
		return err
	}
	if _, err := s.collect(ctx, dead.left, nil); err != nil {
		return err
	}
	return dead.retire()
}

// dead is the leases of processes that ended without ending them, and what they listed.
type dead struct {
	paths []string
	left  map[digest.Digest]bool
}

func (s *Store) deadLeases(ctx context.Context) (dead, error) {
	l, err := s.lockIndex(ctx)
	if err != nil {
		return dead{}, err
	}
	defer l.release()
	_, paths, left, err := s.leases(nil)
	return dead{paths, left}, err
}

// retire removes the leases, after what they listed has been collected.
func (d dead) retire() error {
	for _, p := range d.paths {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
