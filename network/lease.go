package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/onggi/onggi/errdefs"
	"golang.org/x/sys/unix"
)

// What is recorded, below RunDir:
//
//	lock              flock: one writer of everything below
//	endpoints/ID      what the sandbox has (JSON); written first, removed last
//	leases/ADDRESS    -> ID
//	ports/PROTO-PORT-HOSTADDRESS -> ID
//	next              the address given last, so that a released one rests before it is given again
//
// Leases and ports are symbolic links that point at nothing: making one is a single system call that fails when it is
// there, and that puts name and owner down at once. A process killed anywhere leaves an endpoint that names all that
// it may have, and Detach removes whatever of it exists.
const (
	endpointsDir = "endpoints"
	leasesDir    = "leases"
	portsDir     = "ports"
	nextFile     = "next"
	lockFile     = "lock"

	maxEndpoint = 4 << 20 // 65,535 ports of three protocols stay below it
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
		return &errdefs.Error{What: fmt.Sprintf("sandbox id %.140q", id), Kind: errdefs.InvalidArgument,
			Why: "an id is 1 to 128 of a-z A-Z 0-9 _ - . and does not begin with a dot"}
	}
	return nil
}

func (m *Manager) path(elem ...string) string {
	return filepath.Join(append([]string{m.o.RunDir}, elem...)...)
}

// lock takes the lock of the records, making the directories when they are not there. The returned function gives it
// back. It is held for the time of a few system calls, except when the bridge is made or swept.
func (m *Manager) lock() (unlock func(), err error) {
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
	return func() { _ = unix.Close(fd) }, nil
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

// owners returns the ids that any record names.
func (m *Manager) owners() (map[string]bool, error) {
	ids := map[string]bool{}
	names, err := m.names(endpointsDir)
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		ids[n] = true
	}
	for _, dir := range []string{leasesDir, portsDir} {
		names, err := m.names(dir)
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			id, err := os.Readlink(m.path(dir, n))
			if err == nil && validID(id) == nil {
				ids[id] = true
			} else if !errors.Is(err, fs.ErrNotExist) {
				_ = os.Remove(m.path(dir, n)) // nothing that we wrote
			}
		}
	}
	return ids, nil
}

// reserve records what the sandbox gets: an address, its ports, the endpoint. The caller holds the lock.
func (m *Manager) reserve(g *ground, want Endpoint) (_ *endpoint, err error) {
	if _, err := os.Lstat(m.path(endpointsDir, want.ID)); err == nil {
		return nil, &errdefs.Error{What: "sandbox " + want.ID, Kind: errdefs.Conflict, Why: "it is attached already",
			Fix: "detach it first"}
	}
	v4, err := m.freeAddress(g.config)
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
	for _, p := range e.Ports {
		if err := os.Symlink(e.ID, m.path(portsDir, p.claim())); err != nil {
			return nil, err
		}
	}
	if err := os.Symlink(e.ID, m.path(leasesDir, v4.String())); err != nil {
		return nil, err
	}
	return e, os.WriteFile(m.path(nextFile), []byte(v4.String()), 0o600)
}

// freeAddress returns the first address after the one given last that nobody leases. The caller holds the lock.
func (m *Manager) freeAddress(c *config) (netip.Addr, error) {
	first, last := c.gateway().Addr().Next(), lastOf(c.Subnet).Prev()
	begin := first
	if b, err := readSmall(m.path(nextFile), 64); err == nil {
		if a, err := netip.ParseAddr(strings.TrimSpace(string(b))); err == nil && c.Subnet.Contains(a) && a.Compare(last) < 0 {
			begin = a.Next()
		}
	}
	if begin.Compare(first) < 0 {
		begin = first
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
			return netip.Addr{}, &errdefs.Error{Op: "lease an address", What: "of " + c.Subnet.String(),
				Kind: errdefs.Exhausted, Why: "all are in use", Fix: "remove containers that are not needed: onggi ps -a"}
		}
	}
}

// release removes the records of a sandbox; the endpoint, which names the others, goes last. The caller holds the lock.
func (m *Manager) release(id string) error {
	e, err := m.endpoint(id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		for _, p := range e.Ports {
			if err := m.removeOwned(portsDir, p.claim(), id); err != nil {
				return err
			}
		}
		if err := m.removeOwned(leasesDir, e.IPv4.Addr().String(), id); err != nil {
			return err
		}
	} else {
		if err := m.removeAllOwned(id); err != nil {
			return err
		}
	}
	if err := os.Remove(m.path(endpointsDir, id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// removeAllOwned finds the leases and ports of an id whose endpoint cannot be read, or was lost.
func (m *Manager) removeAllOwned(id string) error {
	for _, dir := range []string{leasesDir, portsDir} {
		names, err := m.names(dir)
		if err != nil {
			return err
		}
		for _, n := range names {
			if err := m.removeOwned(dir, n, id); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeOwned removes a lease or port if it is the id's.
func (m *Manager) removeOwned(dir, name, id string) error {
	p := m.path(dir, name)
	owner, err := os.Readlink(p)
	if errors.Is(err, fs.ErrNotExist) || err == nil && owner != id {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Remove(p)
}
