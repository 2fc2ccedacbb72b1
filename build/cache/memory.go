package cache

import (
	"cmp"
	"encoding/json"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	digest "github.com/opencontainers/go-digest"
)

// Memory is what saves a build work and may be lost at any time: files below <dir>/memory/<kind>/, each named by the digest of
// what it is about, replaced by rename, not synced. One that cannot be read does not exist. Of each kind the newest are
// kept.
type Memory struct {
	dir  string
	most int
}

// maxMemory bounds one file, in bytes.
const maxMemory = 16 << 20

// Memory opens a kind of memory that holds about most files.
func (s *Store) Memory(kind string, most int) (*Memory, error) {
	m := &Memory{filepath.Join(s.dir, "memory", kind), most}
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		return nil, fail("open the build cache", m.dir, err)
	}
	return m, nil
}

// Path is where what is known about something lies, or would.
func (m *Memory) Path(about string) string {
	return filepath.Join(m.dir, digest.FromString(about).Encoded())
}

// Get reads what is known about something into v, and says whether there was anything.
func (m *Memory) Get(about string, v any) bool {
	f, err := os.Open(m.Path(about))
	if err != nil {
		return false
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil || fi.Size() > maxMemory {
		return false
	}
	b := make([]byte, fi.Size())
	_, err = io.ReadFull(f, b)
	return err == nil && json.Unmarshal(b, v) == nil
}

// Put writes what is known about something. What is too large is not kept.
func (m *Memory) Put(about string, v any) error {
	b, err := json.Marshal(v)
	if err != nil || len(b) > maxMemory {
		return err
	}
	f, err := os.CreateTemp(m.dir, ".new-")
	if err != nil {
		return fail("remember", about, err)
	}
	_, err = f.Write(b)
	if err = cmp.Or(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), m.Path(about))
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fail("remember", about, err)
	}
	m.Trim()
	return nil
}

// Trim removes the oldest files when there are twice as many as there should be, and what dead processes left.
func (m *Memory) Trim() {
	es, err := os.ReadDir(m.dir)
	if err != nil || len(es) < 2*m.most {
		return
	}
	var all []fs.FileInfo
	for _, e := range es {
		if fi, err := e.Info(); err == nil {
			all = append(all, fi)
		}
	}
	slices.SortFunc(all, func(a, b fs.FileInfo) int { return b.ModTime().Compare(a.ModTime()) })
	for i, fi := range all {
		if i >= m.most && !strings.HasPrefix(fi.Name(), ".new-") || i >= 2*m.most {
			_ = os.Remove(filepath.Join(m.dir, fi.Name()))
		}
	}
}

// Forget removes all memory of every kind.
func (s *Store) Forget() error {
	if err := os.RemoveAll(filepath.Join(s.dir, "memory")); err != nil {
		return fail("remove", "the memory of the build cache", err)
	}
	return nil
}
