package engine

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/runtime/monitor"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// record is state.json. Its Status is the phase that was reached last; the effective one is computed (effective).
type record struct {
	Container
	// Image is the part of the image's configuration that a start needs: the image store is not asked again.
	Image ocispec.ImageConfig `json:"imageConfig"`
	// Anonymous are the volumes that die with the container (rm -v, --rm). They are named here before they are made.
	Anonymous  []string `json:"anonymous,omitempty"`
	CgroupPath string   `json:"cgroupPath"`
	// Shell is the image's, for the health check.
	Shell []string `json:"shell,omitempty"`
	// Stopped: the user wanted it not to run any more; a start by the user takes it back.
	Stopped bool `json:"stopped,omitempty"`
	// Rest is how long the last pause before a restart was (policy.go).
	Rest time.Duration `json:"rest,omitempty"`
	// Interrupted: it ran, or rested, when the host went down.
	Interrupted bool `json:"interrupted,omitempty"`

	lost bool // effective: it has ended, and no monitor has seen how
}

func (e *Engine) containersDir() string { return filepath.Join(e.o.Root, "containers") }

// passingDir holds the records of containers that `run --rm` has made: they do not outlive a reboot, so their records
// lie in the run root, where a file costs no disk. Their logs do not: they may be large.
func (e *Engine) passingDir() string { return filepath.Join(e.o.RunRoot, "passing") }

func (e *Engine) isPassing(id string) bool { return exists(filepath.Join(e.passingDir(), id)) }

// stateDir is where the container's record is, if there is a container.
func (e *Engine) stateDir(id string) string {
	if e.isPassing(id) {
		return filepath.Join(e.passingDir(), id)
	}
	return filepath.Join(e.containersDir(), id)
}

func (e *Engine) statePath(id string) string { return filepath.Join(e.stateDir(id), "state.json") }

// logsDir holds the logs of containers whose records are in passingDir.
func (e *Engine) logsDir() string                 { return filepath.Join(e.o.Root, "logs") }
func (e *Engine) passingLogPath(id string) string { return filepath.Join(e.logsDir(), id+".log") }
func (e *Engine) namesDir() string                { return filepath.Join(e.o.Root, "names") }
func (e *Engine) namePath(name string) string     { return filepath.Join(e.o.Root, "names", name) }
func (e *Engine) snapshotsDir() string            { return filepath.Join(e.o.Root, "snapshots") }
func (e *Engine) runsDir() string                 { return filepath.Join(e.o.RunRoot, "containers") }

func (e *Engine) runDir(id string) string      { return filepath.Join(e.o.RunRoot, "containers", id) }
func (e *Engine) pendingDir() string           { return filepath.Join(e.o.RunRoot, "pending") }
func (e *Engine) pendingPath(id string) string { return filepath.Join(e.o.RunRoot, "pending", id) }
func (e *Engine) runtimeDir(id string) string  { return filepath.Join(e.runtimeRoot(), id) }
func (e *Engine) runtimeRoot() string          { return filepath.Join(e.o.RunRoot, "runtime") }
func (e *Engine) imagesLockPath() string       { return filepath.Join(e.o.Root, "images.lock") }

// maxState bounds state.json, bytes: a user's seccomp profile (1 MiB) and a long environment fit.
const maxState = 16 << 20

// held is a container whose lock this process has: the flock on its directory. Changes of the record go through it.
type held struct {
	e      *Engine
	dir    *os.File
	rec    *record
	behind chan error // a write that is still on its way to the disk (writeBehind)
}

// unlock gives the lock back. It may be called twice.
func (h *held) unlock() {
	if h != nil && h.dir != nil {
		_ = h.settleWrite() // who wanted its error has asked before
		_ = h.dir.Close()
		h.dir = nil
	}
}

// newID returns 64 random hex digits.
func newID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails (Go 1.24)
	return hex.EncodeToString(b[:])
}

func isID(s string) bool { return len(s) == 64 && isHex(s) }

func isHex(s string) bool { return s != "" && strings.Trim(s, "0123456789abcdef") == "" }

// newRecord makes the directory of the new container id and takes its lock. passing: in the run root.
//
// Between mkdir and flock a sweep may take an empty directory for a leftover: then its lock is taken, or it is gone,
// and it is made again when the sweep has removed it.
func (e *Engine) newRecord(id string, passing bool) (*held, error) {
	if err := e.make(); err != nil {
		return nil, err
	}
	parent := e.containersDir()
	if passing {
		parent = e.passingDir()
		for _, d := range []string{parent, e.logsDir()} {
			if exists(d) {
				continue
			}
			if err := os.MkdirAll(d, 0o700); err != nil {
				return nil, err
			}
		}
	}
	for tries := 0; ; tries++ {
		err := os.Mkdir(filepath.Join(parent, id), 0o700)
		if err != nil && (!errors.Is(err, fs.ErrExist) || tries == 0 || tries > 1000) {
			return nil, err
		}
		if err == nil {
			h, err := e.tryLock(id)
			if err != nil {
				return nil, err
			}
			if h != nil {
				h.rec = &record{Container: Container{ID: id}}
				return h, nil
			}
		}
		time.Sleep(time.Millisecond)
	}
}

// tryLock takes the container's lock if it is free; nil when somebody has it or the container is gone. The record is
// not read.
func (e *Engine) tryLock(id string) (*held, error) {
	d, err := os.Open(e.stateDir(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = d.Close()
		if err == unix.EWOULDBLOCK {
			return nil, nil
		}
		return nil, err
	}
	if gone(d) {
		_ = d.Close()
		return nil, nil
	}
	return &held{e: e, dir: d}, nil
}

// gone reports whether a locked directory was removed while we waited for it.
func gone(d *os.File) bool {
	var st unix.Stat_t
	return unix.Fstat(int(d.Fd()), &st) != nil || st.Nlink == 0
}

// lock finds a container, waits for its lock and reads its record. NotFound when it is removed meanwhile.
func (e *Engine) lock(ctx context.Context, idOrName string) (*held, error) {
	id, err := e.find(idOrName)
	if err != nil {
		return nil, err
	}
	h, err := e.tryLock(id)
	if err == nil && h == nil {
		h, err = e.waitLock(ctx, id)
	}
	if err != nil {
		return nil, err
	}
	if h == nil {
		return nil, noSuch(idOrName)
	}
	if h.rec, err = e.read(id); err != nil {
		h.unlock()
		if errors.Is(err, fs.ErrNotExist) {
			return nil, noSuch(idOrName)
		}
		return nil, err
	}
	return h, nil
}

// waitLock blocks in flock(2) beside the context. nil when the container is gone.
func (e *Engine) waitLock(ctx context.Context, id string) (*held, error) {
	d, err := os.Open(e.stateDir(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	got := make(chan error, 1)
	go func() {
		for {
			if err := unix.Flock(int(d.Fd()), unix.LOCK_EX); err != unix.EINTR {
				got <- err
				return
			}
		}
	}()
	select {
	case err = <-got:
	case <-ctx.Done():
		// The goroutine ends with the lock's holder; closing then gives the lock back.
		go func() { <-got; _ = d.Close() }()
		return nil, ctx.Err()
	}
	if err != nil || gone(d) {
		_ = d.Close()
		return nil, err
	}
	return &held{e: e, dir: d}, nil
}

func noSuch(idOrName string) error {
	return &errdefs.Error{Op: "find", What: "container " + idOrName, Kind: errdefs.NotFound, Why: "there is no such container", Fix: "see: onggi ps -a"}
}

// find turns a name, an id or an unambiguous prefix of one into an id.
func (e *Engine) find(idOrName string) (string, error) {
	s := strings.TrimPrefix(idOrName, "/")
	if isID(s) {
		if _, err := os.Stat(e.stateDir(s)); err == nil {
			return s, nil
		}
		return "", noSuch(idOrName)
	}
	if validName(s) {
		if id, err := os.Readlink(e.namePath(s)); err == nil && isID(id) {
			if _, err := os.Stat(e.stateDir(id)); err == nil {
				return id, nil
			}
		}
	}
	if !isHex(s) {
		return "", noSuch(idOrName)
	}
	ids, err := e.ids()
	if err != nil {
		return "", err
	}
	var found string
	for _, id := range ids {
		if !strings.HasPrefix(id, s) {
			continue
		}
		if found != "" {
			return "", &errdefs.Error{
				Op: "find", What: "container " + idOrName, Kind: errdefs.Conflict,
				Why: fmt.Sprintf("the prefix is ambiguous: %s and %s begin with it", found[:12], id[:12]), Fix: "write more digits",
			}
		}
		found = id
	}
	if found == "" {
		return "", noSuch(idOrName)
	}
	return found, nil
}

// ids lists the containers' ids in no particular order.
func (e *Engine) ids() ([]string, error) {
	lasting, err := idsIn(e.containersDir())
	if err != nil {
		return nil, err
	}
	passing, err := idsIn(e.passingDir())
	return append(lasting, passing...), err
}

func idsIn(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	ids := names[:0]
	for _, n := range names {
		if isID(n) {
			ids = append(ids, n)
		}
	}
	return ids, err
}

// read reads a record; fs.ErrNotExist when there is none.
func (e *Engine) read(id string) (*record, error) {
	b, err := readBounded(e.statePath(id), maxState)
	if err != nil {
		return nil, err
	}
	return e.decode(id, b)
}

// decode reads the record of the container id.
func (e *Engine) decode(id string, b []byte) (*record, error) {
	r := &record{}
	if err := json.Unmarshal(b, r); err != nil || r.ID != id {
		return nil, &errdefs.Error{
			Op: "read", What: e.statePath(id), Kind: errdefs.Corrupt, Why: "it is not the record of this container",
			Fix: "remove the container: onggi rm -f " + id[:12], Err: err,
		}
	}
	return r, nil
}

// write replaces the record. With sync it, its directory and the lists it is in are on the disk when write returns;
// without, a crash of the host may bring the record before it back.
func (h *held) write(sync bool) error {
	if err := h.settleWrite(); err != nil {
		return err
	}
	b, err := json.Marshal(h.rec)
	if err != nil {
		return err
	}
	return h.writeBytes(b, sync)
}

func (h *held) writeBytes(b []byte, sync bool) error {
	if err := replaceFile(h.e.statePath(h.rec.ID), b, sync); err != nil || !sync {
		return err
	}
	for _, d := range []string{h.e.containersDir(), h.e.namesDir()} {
		if err := syncDir(d); err != nil {
			return err
		}
	}
	return nil
}

// writeBehind is write(true), but the disk is waited for by the next write, or by settleWrite: a disk takes
// milliseconds in which the container can be prepared.
func (h *held) writeBehind() error {
	if err := h.settleWrite(); err != nil {
		return err
	}
	b, err := json.Marshal(h.rec)
	if err != nil {
		return err
	}
	h.behind = make(chan error, 1)
	go func(done chan error) { done <- h.writeBytes(b, true) }(h.behind)
	return nil
}

// settleWrite waits for what writeBehind has begun.
func (h *held) settleWrite() error {
	if h.behind == nil {
		return nil
	}
	err := <-h.behind
	h.behind = nil
	return err
}

// replaceFile writes a file beside its place and renames it. One writer at a time: the caller has the lock.
func replaceFile(path string, b []byte, sync bool) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil && sync {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = os.Remove(tmp)
		return err
	}
	if sync {
		return syncDir(filepath.Dir(path))
	}
	return nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// readBounded reads a file of at most limit bytes.
func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readAll(f, path, limit)
}

func readAll(f *os.File, what string, limit int64) ([]byte, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	b := make([]byte, 0, min(st.Size(), limit)+512)
	for {
		n, err := f.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if int64(len(b)) > limit {
			return nil, &errdefs.Error{Op: "read", What: what, Kind: errdefs.Exhausted, Why: fmt.Sprintf("it is larger than %d bytes", limit)}
		}
		if err == io.EOF {
			return b, nil
		}
		if err != nil {
			return nil, err
		}
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
	}
}

// effective turns the recorded status into what is true now.
func (e *Engine) effective(r *record) {
	r.Paused, r.ImageLabels = false, r.Image.Labels
	if r.Status == Restarting && !exists(e.restsPath(r.ID)) {
		r.Status, r.Interrupted = Exited, true // a reboot has taken the file
	}
	if r.Healthcheck != nil && !r.StartedAt.IsZero() {
		r.Health, _ = monitor.ReadHealth(e.stateDir(r.ID)) // nil is what there is to say of one that cannot be read
	}
	if r.Status != Running {
		return
	}
	run := e.runDir(r.ID)
	alive := monitor.Alive(run) // before the exit record: a monitor writes it while it is alive
	x, err := monitor.ReadExit(e.stateDir(r.ID))
	switch {
	case err == nil:
		r.Status, r.Exit, r.Pid = Exited, x, 0
	case alive:
		r.Paused = exists(e.pausedPath(r.ID))
	default:
		r.Pid, r.lost = 0, true
		if _, err := os.Stat(run); errors.Is(err, fs.ErrNotExist) {
			r.Status, r.Interrupted = Exited, true
			r.Exit = &monitor.Exit{Code: 255, StartedAt: r.StartedAt, Error: "the host was restarted while the container ran"}
		} else {
			r.Status = Dead
			r.Exit = &monitor.Exit{Code: 137, Signal: 9, StartedAt: r.StartedAt, Error: "the container's monitor was killed"}
		}
	}
}

// Get finds a container by name, id, or unambiguous id prefix. NotFound; Conflict for an ambiguous prefix.
func (e *Engine) Get(idOrName string) (*Container, error) {
	r, err := e.get(idOrName)
	if err != nil {
		return nil, err
	}
	return &r.Container, nil
}

func (e *Engine) get(idOrName string) (*record, error) {
	id, err := e.find(idOrName)
	if err != nil {
		return nil, err
	}
	r, err := e.read(id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, noSuch(idOrName)
	}
	if err != nil {
		return nil, err
	}
	e.effective(r)
	return r, nil
}

// records reads all records; a container that has none yet or no more is left out. Each costs three system calls and its
// decoding; they are shared out among the processors.
func (e *Engine) records() ([]*record, error) {
	var out []*record
	for _, dir := range []string{e.containersDir(), e.passingDir()} {
		found, err := e.recordsIn(dir)
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	return out, nil
}

func (e *Engine) recordsIn(path string) ([]*record, error) {
	ids, err := idsIn(path)
	if err != nil || len(ids) == 0 {
		return nil, err
	}
	dir, err := openHandle(path)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	found, errs := make([]*record, len(ids)), make([]error, len(ids))
	const share = 32 // ids that a worker takes at a time
	var next atomic.Int64
	work := func() {
		var buf []byte
		for {
			first := int(next.Add(share)) - share
			if first >= len(ids) {
				return
			}
			for i := first; i < min(first+share, len(ids)); i++ {
				found[i], buf, errs[i] = e.readAt(dir, ids[i], buf)
			}
		}
	}
	var others sync.WaitGroup
	for range min(runtime.NumCPU(), (len(ids)+share-1)/share) - 1 {
		others.Go(work)
	}
	work()
	others.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(found, func(r *record) bool { return r == nil }), nil
}

func openHandle(path string) (int, error) {
	for {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// readAt reads the record id of an open directory of records; nil when there is none. The buffer is used again.
func (e *Engine) readAt(dir int, id string, buf []byte) (*record, []byte, error) {
	fd, err := unix.Openat(dir, id+"/state.json", unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	switch {
	case err == unix.ENOENT || err == unix.ENOTDIR:
		return nil, buf, nil
	case err != nil:
		return nil, buf, &os.PathError{Op: "open", Path: e.statePath(id), Err: err}
	}
	defer unix.Close(fd)
	if buf = buf[:cap(buf)]; len(buf) == 0 {
		buf = make([]byte, 8<<10)
	}
	n := 0
	for {
		m, err := unix.Pread(fd, buf[n:], int64(n))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, buf, &os.PathError{Op: "read", Path: e.statePath(id), Err: err}
		}
		if n += m; n < len(buf) {
			break // less than was asked for: the end of a file that is only ever replaced
		}
		if n >= maxState {
			return nil, buf, &errdefs.Error{Op: "read", What: e.statePath(id), Kind: errdefs.Exhausted, Why: fmt.Sprintf("it is larger than %d bytes", maxState)}
		}
		buf = append(buf, make([]byte, len(buf))...)
	}
	r, err := e.decode(id, buf[:n])
	if err != nil {
		return nil, buf, err
	}
	e.effective(r)
	return r, buf, nil
}

// validName is docker's rule for names: [a-zA-Z0-9][a-zA-Z0-9_.-]+
func validName(s string) bool {
	if len(s) < 2 || len(s) > 253 {
		return false
	}
	for i, r := range s {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !letter && (i == 0 || r != '_' && r != '.' && r != '-') {
			return false
		}
	}
	return true
}

// claim gives the container a name, or one of ours when it asks for none. A name is a symbolic link to the id: making
// it is atomic, so that of two processes one gets it.
func (h *held) claim(name string) error {
	if name == "" {
		for i := 0; ; i++ {
			name = randomName(i)
			err := os.Symlink(h.rec.ID, h.e.namePath(name))
			if errors.Is(err, fs.ErrExist) {
				continue
			}
			h.rec.Config.Name = name
			return err
		}
	}
	if !validName(name) {
		return &errdefs.Error{
			Op: "use", What: fmt.Sprintf("--name %q", name), Kind: errdefs.InvalidArgument,
			Why: "invalid container name: only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed, two of them or more", Fix: "choose another name",
		}
	}
	err := os.Symlink(h.rec.ID, h.e.namePath(name))
	if errors.Is(err, fs.ErrExist) {
		err = h.reclaim(name)
	}
	if err == nil {
		h.rec.Config.Name = name
	}
	return err
}

// reclaim takes a name whose container does not exist: what a crash of the host can leave. Its own lock, on the
// directory of names, keeps two of it from taking each other's link.
func (h *held) reclaim(name string) error {
	d, err := os.Open(h.e.namesDir())
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	owner, err := os.Readlink(h.e.namePath(name))
	if err == nil {
		if h.e.hasName(owner, name) {
			return &errdefs.Error{
				Op: "use", What: "--name " + name, Kind: errdefs.AlreadyExists,
				Why: fmt.Sprintf("the container name %q is already in use by container %.12s", name, owner),
				Fix: fmt.Sprintf("remove that container (onggi rm %s) or choose another name", name),
			}
		}
		if err := os.Remove(h.e.namePath(name)); err != nil {
			return err
		}
	}
	return os.Symlink(h.rec.ID, h.e.namePath(name))
}

// hasName reports whether the name that links to a container is its own, and not what an interrupted Rename has left.
// A container that somebody works on may be about to get it.
func (e *Engine) hasName(id, name string) bool {
	r, err := e.read(id)
	if err != nil {
		return exists(e.stateDir(id))
	}
	if r.Config.Name == name {
		return true
	}
	h, err := e.tryLock(id)
	if err != nil || h == nil {
		return exists(e.stateDir(id))
	}
	defer h.unlock()
	r, err = e.read(id)
	return err != nil || r.Config.Name == name
}

// release takes the container's name back.
func (h *held) releaseName() error {
	name := h.rec.Config.Name
	if name == "" {
		return nil
	}
	if owner, err := os.Readlink(h.e.namePath(name)); err != nil || owner != h.rec.ID {
		return nil
	}
	return ignoreMissing(os.Remove(h.e.namePath(name)))
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func ignoreExisting(err error) error {
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// pend marks the container as being made or removed, so that a sweep after a crash needs to look at the marked only.
// The marker is made under the container's lock: a marker whose lock is free belongs to nobody.
func (h *held) pend() error {
	f, err := os.OpenFile(h.e.pendingPath(h.rec.ID), os.O_WRONLY|os.O_CREATE, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(h.e.pendingDir(), 0o700); err == nil {
			f, err = os.OpenFile(h.e.pendingPath(h.rec.ID), os.O_WRONLY|os.O_CREATE, 0o600)
		}
	}
	if err != nil {
		return err
	}
	return f.Close()
}

func (h *held) settle() error { return ignoreMissing(os.Remove(h.e.pendingPath(h.rec.ID))) }

// erase removes the record's files and directory, the record itself last but the directory.
func (h *held) erase() error {
	_ = h.settleWrite() // its file is removed below
	if err := errors.Join(h.releaseName(), h.calm()); err != nil {
		return err
	}
	names, err := h.dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	if err := h.e.removePassingLog(h.rec.ID); err != nil {
		return err
	}
	dir := h.e.stateDir(h.rec.ID)
	for _, n := range names {
		if n != "state.json" {
			if err := ignoreMissing(os.RemoveAll(filepath.Join(dir, n))); err != nil {
				return err
			}
		}
	}
	if err := ignoreMissing(os.Remove(filepath.Join(dir, "state.json"))); err != nil {
		return err
	}
	// A monitor that lost its client may have written one more file.
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return h.settle()
}

// removePassingLog removes the log of a container whose record is in the run root, and what it was rotated to.
func (e *Engine) removePassingLog(id string) error {
	if !e.isPassing(id) {
		return nil // it is in the container's directory
	}
	d, err := os.Open(e.logsDir())
	if err != nil {
		return ignoreMissing(err)
	}
	defer d.Close()
	path := e.passingLogPath(id)
	err = os.Remove(path)
	if _, serr := os.Lstat(path + ".1"); err == nil && errors.Is(serr, fs.ErrNotExist) {
		return nil // it was never rotated
	}
	if err = ignoreMissing(err); err != nil {
		return err
	}
	return e.removeLogs(d, func(owner string) bool { return owner == id })
}

// removeLogs removes the logs in d, an open logsDir, of the containers that it is told of.
func (e *Engine) removeLogs(d *os.File, of func(id string) bool) error {
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		if id, _, ok := strings.Cut(n, "."); ok && isID(id) && of(id) {
			if err := ignoreMissing(os.Remove(filepath.Join(e.logsDir(), n))); err != nil {
				return err
			}
		}
	}
	return nil
}

// flockFile opens or makes a lock file and locks it; closing the result unlocks.
func flockFile(path string, how int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		if err = unix.Flock(int(f.Fd()), how); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// now is the time of records: UTC, without Go's monotonic part, so that it reads back equal.
func now() time.Time { return time.Now().UTC().Round(0) }
