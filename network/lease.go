package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/onggi/onggi/errdefs"
	"golang.org/x/sys/unix"
)

// What is recorded, below RunDir:
//
//	lock              flock: one writer of everything below; holds the address given last, so that a released one
//	                  rests before it is given again
//	endpoints/ID      what the sandbox has (JSON); made first, removed last
//	leases/ADDRESS    the same file: a hard link
//	ports/PROTO-PORT-HOSTADDRESS  the same file
//
// A link is made by one system call that fails when the name is there, puts name and owner down at once, and costs no
// inode (on ext4 a new one takes up to a millisecond). A process killed anywhere leaves an endpoint that names all that
// it may have, and Detach removes whatever of it exists.
const (
	endpointsDir = "endpoints"
	leasesDir    = "leases"
	portsDir     = "ports"
	lockFile     = "lock"

	maxEndpoint = 4 << 20 // maxPorts ports stay below it
	maxID       = 128
)

// endpoint is the record of one attached sandbox.
type endpoint struct {
	ID    string       `json:"id"`
	IPv4  netip.Prefix `json:"ipv4"`
	IPv6  netip.Prefix `json:"ipv6,omitzero"`
	Ports []Port       `json:"ports,omitempty"`
}

// mac is derived from the address, as docker does: a neighbour that has cached the pair is never wrong.
func (e *endpoint) mac() (m [6]byte) {
	m[0], m[1] = 0x02, 0x42
	b := e.IPv4.Addr().As4()
	copy(m[2:], b[:])
	return m
}

// validID bounds what becomes a file name.
func validID(id string) error {
	ok := id != "" && len(id) <= maxID && id[0] != '.'
	for i := 0; ok && i < len(id); i++ {
		c := id[i]
		ok = c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-' || c == '.'
	}
	if !ok {
		return &errdefs.Error{
			What: fmt.Sprintf("sandbox id %.140q", id), Kind: errdefs.InvalidArgument,
			Why: "an id is 1 to 128 of a-z A-Z 0-9 _ - . and does not begin with a dot",
		}
	}
	return nil
}

func (m *Manager) path(elem ...string) string {
	return filepath.Join(append([]string{m.o.RunDir}, elem...)...)
}

// lock takes the lock of the records, making the directories when they are not there. The returned file is the lock
// itself: closing it gives the lock back. It is held for the time of a few system calls, except when the bridge is made
// or swept.
func (m *Manager) lock() (*os.File, error) {
	open := func() (int, error) {
		return unix.Open(m.path(lockFile), unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	}
	fd, err := open()
	if err == unix.ENOENT {
		for _, d := range []string{endpointsDir, leasesDir, portsDir} {
			if err := os.MkdirAll(m.path(d), 0o700); err != nil {
				return nil, err
			}
		}
		fd, err = open()
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: m.path(lockFile), Err: err}
	}
	if err := ignoringEINTR(func() error { return unix.Flock(fd, unix.LOCK_EX) }); err != nil {
		_ = unix.Close(fd)
		return nil, &os.PathError{Op: "lock", Path: m.path(lockFile), Err: err}
	}
	return os.NewFile(uintptr(fd), m.path(lockFile)), nil
}

// last returns the address given last, or the zero Addr. The caller holds the lock.
func last(lock *os.File) netip.Addr {
	var b [4]byte
	if n, _ := lock.ReadAt(b[:], 0); n != len(b) {
		return netip.Addr{}
	}
	return netip.AddrFrom4(b)
}

// endpoint reads a record. NotFound when there is none; Corrupt when a power failure tore it.
func (m *Manager) endpoint(id string) (*endpoint, error) {
	b, err := readSmall(m.path(endpointsDir, id), maxEndpoint)
	if err != nil {
		return nil, err
	}
	e := &endpoint{}
	if err := json.Unmarshal(b, e); err != nil || e.ID != id || !e.IPv4.Addr().Is4() {
		return nil, &errdefs.Error{What: m.path(endpointsDir, id), Kind: errdefs.Corrupt, Why: "it is not a record of ours"}
	}
	return e, nil
}

// endpoints returns all readable records.
func (m *Manager) endpoints() ([]*endpoint, error) {
	ids, err := m.names(endpointsDir)
	if err != nil {
		return nil, err
	}
	var out []*endpoint
	for _, id := range ids {
		e, err := m.endpoint(id)
		switch {
		case err == nil:
			out = append(out, e)
		case !errors.Is(err, fs.ErrNotExist) && !errdefs.Is(err, errdefs.Corrupt):
			return nil, err
		}
	}
	return out, nil
}

// names lists a directory of records without temporary files. A directory that is not there is empty.
func (m *Manager) names(dir string) ([]string, error) {
	f, err := os.Open(m.path(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	all, err := f.Readdirnames(-1)
	out := all[:0]
	for _, n := range all {
		if n[0] != '.' {
			out = append(out, n)
		}
	}
	return out, err
}

// stray removes leases and ports that are not links to a living endpoint. Only a hand makes such. The caller holds the
// lock.
func (m *Manager) stray() error {
	ids, err := m.names(endpointsDir)
	if err != nil {
		return err
	}
	owned := map[uint64]bool{}
	for _, id := range ids {
		if ino, err := inodeOf(m.path(endpointsDir, id)); err == nil {
			owned[ino] = true
		}
	}
	return m.removeWhere(func(ino uint64) bool { return !owned[ino] })
}

// removeWhere removes the leases and ports whose inode number f chooses.
func (m *Manager) removeWhere(f func(ino uint64) bool) error {
	for _, dir := range []string{leasesDir, portsDir} {
		names, err := m.names(dir)
		if err != nil {
			return err
		}
		for _, n := range names {
			ino, err := inodeOf(m.path(dir, n))
			if err == nil && f(ino) {
				err = os.Remove(m.path(dir, n))
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

func inodeOf(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Ino, nil
}

// reserve records what the sandbox gets: an address, its ports, the endpoint. The caller holds the lock.
func (m *Manager) reserve(lock *os.File, g *ground, want Endpoint) (_ *endpoint, err error) {
	if _, err := os.Lstat(m.path(endpointsDir, want.ID)); err == nil {
		return nil, &errdefs.Error{
			What: "sandbox " + want.ID, Kind: errdefs.Conflict, Why: "it is attached already",
			Fix: "detach it first",
		}
	}
	v4, err := m.freeAddress(g.config, last(lock))
	if err != nil {
		return nil, err
	}
	e := &endpoint{ID: want.ID, IPv4: netip.PrefixFrom(v4, g.Subnet.Bits())}
	if g.v6 {
		e.IPv6 = g.ipv6(v4)
	}
	if e.Ports, err = m.choosePorts(want.Ports, g.v6); err != nil {
		return nil, err
	}
	b, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	tmp := m.path(endpointsDir, ".new") // one writer: the lock's holder
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return nil, errors.Join(err, os.Remove(tmp))
	}
	if err := os.Rename(tmp, m.path(endpointsDir, e.ID)); err != nil {
		return nil, errors.Join(err, os.Remove(tmp))
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.release(e.ID))
		}
	}()
	record := m.path(endpointsDir, e.ID)
	for _, p := range e.Ports {
		if err := os.Link(record, m.path(portsDir, p.claim())); err != nil {
			return nil, err
		}
	}
	if err := os.Link(record, m.path(leasesDir, v4.String())); err != nil {
		return nil, err
	}
	_, err = lock.WriteAt(v4.AsSlice(), 0)
	return e, err
}

// freeAddress returns the first address after the one given last that nobody leases. The caller holds the lock.
func (m *Manager) freeAddress(c *config, given netip.Addr) (netip.Addr, error) {
	first, last := c.gateway().Addr().Next(), lastOf(c.Subnet).Prev()
	begin := first
	if c.Subnet.Contains(given) && given.Compare(first) >= 0 && given.Compare(last) < 0 {
		begin = given.Next()
	}
	for a, wrapped := begin, false; ; {
		_, err := os.Lstat(m.path(leasesDir, a.String()))
		if errors.Is(err, fs.ErrNotExist) {
			return a, nil
		}
		if err != nil {
			return netip.Addr{}, err
		}
		if a = a.Next(); a.Compare(last) > 0 {
			a, wrapped = first, true
		}
		if wrapped && a == begin {
			return netip.Addr{}, &errdefs.Error{
				Op: "lease an address", What: "of " + c.Subnet.String(),
				Kind: errdefs.Exhausted, Why: "all are in use", Fix: "remove containers that are not needed: onggi ps -a",
			}
		}
	}
}

// release removes the records of a sandbox; the endpoint, which names the others, goes last. The caller holds the lock.
func (m *Manager) release(id string) error {
	ino, err := inodeOf(m.path(endpointsDir, id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	e, err := m.endpoint(id)
	if err != nil { // torn by a power failure: its links are still known by their inode
		if err := m.removeWhere(func(i uint64) bool { return i == ino }); err != nil {
			return err
		}
	} else {
		paths := []string{m.path(leasesDir, e.IPv4.Addr().String())}
		for _, p := range e.Ports {
			paths = append(paths, m.path(portsDir, p.claim()))
		}
		for _, p := range paths {
			i, err := inodeOf(p)
			if err == nil && i == ino {
				err = os.Remove(p)
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	if err := os.Remove(m.path(endpointsDir, id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
