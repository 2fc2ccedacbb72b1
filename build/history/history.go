package history

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/onggi/onggi/build/cache"
	"github.com/onggi/onggi/errdefs"
	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Bounds of the store.
const (
	MaxBuilds = 100
	MaxLog    = 8 << 20 // bytes of output of one build; what comes after it is not kept

	slack     = 20 // builds beyond MaxBuilds before the oldest go: tidying reads the whole store
	maxRuns   = 64 // of one slot
	maxRecord = 64 << 20
	maxRead   = 32 << 20 // bytes of runs that Nearest compares
)

// State of a build.
type State string

// The states of a build.
const (
	Running   State = "running"
	Completed State = "completed"
	Failed    State = "error"
	Canceled  State = "canceled"
	Killed    State = "killed" // its process died
)

// Record is one build.
type Record struct {
	ID    string   `json:"id"`
	Names []string `json:"names,omitempty"` // of the image
	// Context is the directory or address, "-" for standard input; Dockerfile its path in it or on this host.
	Context    string `json:"context"`
	Dockerfile string `json:"dockerfile"`
	// Options are what the frontend was asked for: target, build-arg:NAME, label:NAME, platform.
	Options map[string]string `json:"options,omitempty"`
	Started time.Time         `json:"started"`
	Took    time.Duration     `json:"tookNanoseconds,omitempty"`
	State   State             `json:"state"`
	Error   string            `json:"error,omitempty"`
	Images  []digest.Digest   `json:"images,omitempty"` // the image's id, or the digest of an index
	Steps   []*Step           `json:"steps,omitempty"`  // in the order of their numbers
	// Cut says that the steps printed more than MaxLog bytes.
	Cut      bool     `json:"logCut,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
	// Kept is the step that failed, if its file system is there still.
	Kept *Kept `json:"kept,omitempty"`
}

// Kept is a failed step: its container, and what package build needs to go into it.
type Kept struct {
	Step      int             `json:"step"`
	Container string          `json:"container"`
	Scene     json.RawMessage `json:"scene"`
}

// Hits and Ran count the steps that could hit the cache: those with a key.
func (r *Record) Hits() (n int) {
	for _, s := range r.Steps {
		if s.Key != "" && s.State == "cached" {
			n++
		}
	}
	return n
}

// Ran counts the steps that were performed, to their end or not.
func (r *Record) Ran() (n int) {
	for _, s := range r.Steps {
		if s.Key != "" && s.State != "cached" {
			n++
		}
	}
	return n
}

// Step is a step of a build.
type Step struct {
	Number int           `json:"number"` // as progress shows it, from 1
	Vertex digest.Digest `json:"vertex"`
	Name   string        `json:"name"`
	// Dockerfile, Line and End are where it comes from; Line is 0 when from nowhere.
	Dockerfile string        `json:"dockerfile,omitempty"`
	Line       int           `json:"line,omitempty"`
	End        int           `json:"endLine,omitempty"`
	State      string        `json:"state"`            // started, cached, done, failed, canceled
	Began      time.Duration `json:"beganNanoseconds"` // since the build's begin
	Took       time.Duration `json:"tookNanoseconds,omitempty"`
	Key        digest.Digest `json:"key,omitempty"` // "" for what is not cached: sources
	Slot       string        `json:"slot,omitempty"`
	// After are the numbers of the steps that it stands on or reads.
	After []int `json:"after,omitempty"`
	// Source is what a source came to: an image's digest, a directory.
	Source string `json:"source,omitempty"`
	Why    *Why   `json:"why,omitempty"` // of a miss
	Size   int64  `json:"size,omitempty"`
	Error  string `json:"error,omitempty"`
}

// Reason is why a step was performed.
type Reason string

// The reasons.
const (
	First     Reason = "first"     // its slot was never performed
	Changed   Reason = "changed"   // Changes say what
	Asked     Reason = "no-cache"  // the user has asked for it
	Retried   Reason = "failed"    // nothing changed, and the run before failed
	Forgotten Reason = "forgotten" // nothing changed, and the cache has it no more
)

// Why explains a miss.
type Why struct {
	Reason  Reason         `json:"reason"`
	Changes []cache.Change `json:"changes,omitempty"` // the first maxChanges
	More    int            `json:"more,omitempty"`    // changes that are not listed
	// Build, At and Name tell the nearest earlier run, if there is one.
	Build string    `json:"build,omitempty"`
	At    time.Time `json:"at,omitzero"`
	Name  string    `json:"name,omitempty"`
}

// MaxChanges bounds what a Why lists.
const MaxChanges = 50

// Run is one performance of a step, by what it depended on.
type Run struct {
	Key   digest.Digest `json:"key"`
	Slot  string        `json:"slot"`
	Place string        `json:"place,omitempty"` // the number of the instruction in its stage
	Name  string        `json:"name"`
	Build string        `json:"build"` // that performed it
	At    time.Time     `json:"at"`
	// Base is what it stands on, if that is an image: "docker.io/library/debian:12@sha256:...".
	Base   string       `json:"base,omitempty"`
	Failed bool         `json:"failed,omitempty"`
	Parts  []cache.Part `json:"parts"`
}

// Store is a directory of records.
type Store struct{ dir string }

// Open opens or makes the store in dir.
func Open(dir string) (*Store, error) {
	s := &Store{dir}
	for _, d := range []string{s.builds(), s.runs()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fail("open the history of builds", dir, err)
		}
	}
	return s, nil
}

func fail(op, what string, err error) error {
	return &errdefs.Error{Op: op, What: what, Kind: errdefs.KindOf(err), Err: err}
}

func (s *Store) builds() string        { return filepath.Join(s.dir, "builds") }
func (s *Store) runs() string          { return filepath.Join(s.dir, "runs") }
func (s *Store) path(id string) string { return filepath.Join(s.builds(), id+".json") }
func (s *Store) log(id string) string  { return filepath.Join(s.builds(), id+".log") }
func (s *Store) slot(sl string) string {
	return filepath.Join(s.runs(), digest.FromString(sl).Encoded())
}
func (s *Store) run(r *Run) string { return filepath.Join(s.slot(r.Slot), r.Key.Encoded()+".json") }
func validID(id string) bool {
	return len(id) == idLength && strings.Trim(id, "0123456789abcdef") == ""
}

const idLength = 12

// NewID returns an id for a build.
func NewID() string {
	b := make([]byte, idLength/2)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return hex.EncodeToString(b)
}

// replace writes a file beside its place and renames it.
func replace(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = cmp.Or(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

func read(path string, v any) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || fi.Size() > maxRecord {
		return errors.Join(err, fs.ErrNotExist)
	}
	if err := json.NewDecoder(io.LimitReader(f, maxRecord)).Decode(v); err != nil {
		return fmt.Errorf("%s: %w: %w", path, fs.ErrNotExist, err)
	}
	return nil
}

// Log is what a running build writes to.
type Log struct {
	s *Store

	mu   sync.Mutex
	f    *os.File
	w    *bufio.Writer
	left int
	cut  bool
}

// Begin writes the record of a build that begins. The build is Running as long as the process lives that called it.
func (s *Store) Begin(r *Record) (*Log, error) {
	r.State = Running
	f, err := os.OpenFile(s.log(r.ID), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fail("record the build", r.ID, err)
	}
	if err := errors.Join(unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB), replace(s.path(r.ID), r)); err != nil {
		_ = f.Close()
		return nil, fail("record the build", r.ID, err)
	}
	return &Log{s: s, f: f, w: bufio.NewWriterSize(f, 32<<10), left: MaxLog}, nil
}

// Write keeps what a step printed at a time since the build's begin.
func (l *Log) Write(step int, at time.Duration, data []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(data) > l.left {
		data, l.cut = data[:l.left], true
	}
	if len(data) == 0 {
		return
	}
	l.left -= len(data)
	fmt.Fprintf(l.w, "%d %d %d\n", step, at, len(data))
	l.w.Write(data) //nolint:errcheck // a bufio.Writer keeps its first error for Flush
	l.w.WriteByte('\n')
}

// End writes the record of a build that has ended, and removes what is beyond the bounds.
func (l *Log) End(r *Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	r.Cut = l.cut
	err := l.w.Flush()
	err = errors.Join(err, replace(l.s.path(r.ID), r))
	err = errors.Join(err, l.f.Close())
	if err != nil {
		return fail("record the build", r.ID, err)
	}
	return l.s.tidy()
}

// entry is a build by its files only.
type entry struct {
	id string
	at time.Time
}

// entries lists the builds, the one that wrote its record last first.
func (s *Store) entries() ([]entry, error) {
	es, err := os.ReadDir(s.builds())
	if err != nil {
		return nil, fail("list", "the history of builds", err)
	}
	var out []entry
	for _, e := range es {
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || !validID(id) {
			continue
		}
		if fi, err := e.Info(); err == nil {
			out = append(out, entry{id, fi.ModTime()})
		}
	}
	slices.SortFunc(out, func(a, b entry) int { return cmp.Or(b.at.Compare(a.at), strings.Compare(a.id, b.id)) })
	return out, nil
}

// tidy keeps the store within its bounds.
func (s *Store) tidy() error {
	d, err := os.Open(s.builds())
	if err != nil {
		return fail("tidy", "the history of builds", err)
	}
	names, err := d.Readdirnames(-1)
	_ = d.Close()
	if err != nil || len(names) <= 2*(MaxBuilds+slack) {
		return err
	}
	es, err := s.entries()
	if err != nil {
		return err
	}
	for _, e := range es[min(MaxBuilds, len(es)):] {
		if !s.running(e.id) {
			if err := s.Remove(e.id); err != nil {
				return err
			}
		}
	}
	s.strays(names)
	if len(es) == 0 {
		return nil
	}
	return s.forget(es[min(MaxBuilds, len(es))-1].at)
}

// strays removes drafts, and logs without a record, of processes that died.
func (s *Store) strays(names []string) {
	for _, n := range names {
		p := filepath.Join(s.builds(), n)
		id, isLog := strings.CutSuffix(n, ".log")
		_, err := os.Stat(s.path(id))
		if !strings.HasPrefix(n, ".new-") && (!isLog || err == nil) {
			continue
		}
		if fi, err := os.Stat(p); err == nil && time.Since(fi.ModTime()) > time.Hour {
			_ = os.Remove(p)
		}
	}
}

// forget removes the runs that no build has used since.
func (s *Store) forget(since time.Time) error {
	slots, err := os.ReadDir(s.runs())
	if err != nil {
		return fail("tidy", "the history of builds", err)
	}
	for _, d := range slots {
		dir := filepath.Join(s.runs(), d.Name())
		es, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, e := range es {
			if fi, err := e.Info(); err == nil && fi.ModTime().Before(since) {
				_ = os.Remove(filepath.Join(dir, e.Name()))
			}
		}
		_ = os.Remove(dir) // only if it is empty
	}
	return nil
}

// running says whether the build's process lives.
func (s *Store) running(id string) bool {
	f, err := os.Open(s.log(id))
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// Get returns a build by its id or the begin of it, or, for "", the newest one; NotFound.
func (s *Store) Get(id string) (*Record, error) {
	es, err := s.entries()
	if err != nil {
		return nil, err
	}
	found := ""
	for _, e := range es {
		if !strings.HasPrefix(e.id, id) {
			continue
		}
		if id == "" || e.id == id {
			found = e.id
			break
		}
		if found != "" {
			return nil, &errdefs.Error{Op: "find", What: "the build " + id, Kind: errdefs.Conflict, Why: fmt.Sprintf("the prefix is ambiguous: %s and %s begin with it", found, e.id), Fix: "write more digits"}
		}
		found = e.id
	}
	if found == "" && id == "" {
		return nil, &errdefs.Error{Op: "find", What: "the last build", Kind: errdefs.NotFound, Why: "nothing was built here", Fix: "build something: onggi build ."}
	}
	if found == "" {
		return nil, &errdefs.Error{Op: "find", What: "the build " + id, Kind: errdefs.NotFound, Why: "there is no such build", Fix: "see: onggi build history"}
	}
	return s.get(found)
}

func (s *Store) get(id string) (*Record, error) {
	r := &Record{}
	if err := read(s.path(id), r); err != nil || r.ID != id {
		return nil, &errdefs.Error{Op: "read", What: "the build " + id, Kind: errdefs.NotFound, Why: "its record cannot be read", Err: err}
	}
	if r.State == Running && !s.running(id) {
		// It may have ended between the two looks.
		if err := read(s.path(id), r); err == nil && r.State == Running {
			r.State = Killed
		}
	}
	return r, nil
}

// List returns the builds, the one that ended last first.
func (s *Store) List() ([]*Record, error) {
	es, err := s.entries()
	if err != nil {
		return nil, err
	}
	var out []*Record
	for _, e := range es {
		if r, err := s.get(e.id); err == nil {
			out = append(out, r)
		}
	}
	return out, nil
}

// Kept returns the builds whose failed step is kept, newest first.
func (s *Store) Kept() ([]*Record, error) {
	rs, err := s.List()
	return slices.DeleteFunc(rs, func(r *Record) bool { return r.Kept == nil }), err
}

// Release forgets that a build's failed step is kept; its container is the caller's to remove.
func (s *Store) Release(id string) error {
	r, err := s.get(id)
	if err != nil || r.Kept == nil {
		return err
	}
	fi, err := os.Stat(s.path(id))
	if err != nil {
		return fail("change the record of the build", id, err)
	}
	r.Kept = nil
	if err := replace(s.path(id), r); err != nil {
		return fail("change the record of the build", id, err)
	}
	return os.Chtimes(s.path(id), fi.ModTime(), fi.ModTime()) // its place in the list
}

// Remove forgets a build; not there is not an error. Conflict when it runs.
func (s *Store) Remove(id string) error {
	if s.running(id) {
		return &errdefs.Error{Op: "remove", What: "the build " + id, Kind: errdefs.Conflict, Why: "it is running"}
	}
	for _, p := range []string{s.path(id), s.log(id)} {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fail("remove the record of the build", id, err)
		}
	}
	return nil
}

// Output calls fn for everything that a build's steps printed, in order. A log whose end is torn ends there.
func (s *Store) Output(id string, fn func(step int, at time.Duration, data []byte) error) error {
	f, err := os.Open(s.log(id))
	if err != nil {
		return fail("read the log of the build", id, err)
	}
	defer f.Close()
	r := bufio.NewReaderSize(io.LimitReader(f, 4*MaxLog), 64<<10)
	for {
		head, err := r.ReadString('\n')
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fail("read the log of the build", id, err)
		}
		var step, n int
		var at time.Duration
		if _, err := fmt.Sscanf(head, "%d %d %d\n", &step, &at, &n); err != nil || n < 0 || n > MaxLog {
			return nil
		}
		data := make([]byte, n+1)
		if _, err := io.ReadFull(r, data); err != nil || data[n] != '\n' {
			return nil
		}
		if err := fn(step, at, data[:n]); err != nil {
			return err
		}
	}
}

// Seen remembers a run. One that is there already is only marked as used, unless it failed before.
func (s *Store) Seen(r *Run) error {
	if r.Slot == "" {
		return nil
	}
	p := s.run(r)
	now := time.Now()
	old := Run{}
	if os.Chtimes(p, now, now) == nil {
		// Whether it failed stands near the file's end, but the key says all the rest.
		if !r.Failed && !s.hasFailed(p) {
			return nil
		}
		if read(p, &old) == nil && old.Failed == r.Failed {
			return nil
		}
	} else if err := os.MkdirAll(s.slot(r.Slot), 0o700); err != nil {
		return fail("remember the step", r.Name, err)
	}
	if err := replace(p, r); err != nil {
		return fail("remember the step", r.Name, err)
	}
	return s.trim(r.Slot)
}

// hasFailed looks only at the head of a run's file, where the field is.
func (s *Store) hasFailed(p string) bool {
	f, err := os.Open(p)
	if err != nil {
		return false
	}
	defer f.Close()
	head := make([]byte, 4096)
	n, _ := io.ReadFull(f, head)
	head, _, _ = bytes.Cut(head[:n], []byte(`"parts":`))
	return bytes.Contains(head, []byte(`"failed":true`))
}

// newest lists the runs of a slot, the one used last first.
func (s *Store) newest(slot string) []fs.FileInfo {
	es, err := os.ReadDir(s.slot(slot))
	if err != nil {
		return nil
	}
	var out []fs.FileInfo
	for _, e := range es {
		if fi, err := e.Info(); err == nil && !strings.HasPrefix(e.Name(), ".") {
			out = append(out, fi)
		}
	}
	slices.SortFunc(out, func(a, b fs.FileInfo) int { return b.ModTime().Compare(a.ModTime()) })
	return out
}

func (s *Store) trim(slot string) error {
	for i, fi := range s.newest(slot) {
		if i >= maxRuns {
			if err := os.Remove(filepath.Join(s.slot(slot), fi.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fail("forget the step", slot, err)
			}
		}
	}
	return nil
}

// Run returns a run by its slot and key, or nil.
func (s *Store) Run(slot string, key digest.Digest) *Run {
	r := &Run{}
	if err := key.Validate(); err != nil {
		return nil
	}
	if err := read(s.run(&Run{Slot: slot, Key: key}), r); err != nil {
		return nil
	}
	return r
}

// Nearest returns the run of now's slot that differs from it in the fewest parts, the one used last of several, and what
// differs. It is one of the same instruction, wherever in the stage that was, or else of the same place; nil when there is
// none.
func (s *Store) Nearest(now *Run) (*Run, []cache.Change) {
	var near *Run
	var best []cache.Change
	budget := int64(maxRead)
	for _, fi := range s.newest(now.Slot) {
		if budget -= fi.Size(); budget < 0 && near != nil {
			break
		}
		r := &Run{}
		if read(filepath.Join(s.slot(now.Slot), fi.Name()), r) != nil || r.Slot != now.Slot {
			continue
		}
		if r.Place != now.Place && deed(r.Parts) != deed(now.Parts) {
			continue
		}
		if c := cache.Compare(r.Parts, now.Parts); near == nil || len(c) < len(best) {
			near, best = r, c
		}
	}
	return near, best
}

// deed is the instruction among the parts.
func deed(parts []cache.Part) (d string) {
	for _, p := range parts {
		if p.Name == "command" || strings.HasPrefix(p.Name, "instruction") {
			d += p.Value + "\n"
		}
	}
	return d
}
