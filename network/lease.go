package network

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/onggi/onggi/errdefs"
	"golang.org/x/sys/unix"
)

// What is recorded, below RunDir:
//
//	lock              flock: one writer of everything below; holds the address given last, so that a released one
//	                  rests before it is given again
//	endpoints/ID      what the sandbox has on the default network (JSON); made first, removed last
//	endpoints/ID@NETWORK  the same for another network, by its id
//	more/ID           empty: the sandbox has a record of the second kind, or is about to
//	leases/ADDRESS    the endpoint's file: a hard link
//	ports/PROTO-PORT-HOSTADDRESS  the same file
//	names/NETWORK/NAME/ADDRESS    the same file: what the resolver answers for a name is a directory of addresses
//	last/NETWORK      the address given last on a network that a user has made
//
// A link is made by one system call that fails when the name is there, puts name and owner down at once, and costs no
// inode (on ext4 a new one takes up to a millisecond). A process killed anywhere leaves an endpoint that names all that
// it may have, and Detach removes whatever of it exists.
const (
	endpointsDir = "endpoints"
	leasesDir    = "leases"
	portsDir     = "ports"
	namesDir     = "names"
	moreDir      = "more"
	lastDir      = "last"
	lockFile     = "lock"

	maxEndpoint = 4 << 20 // maxPorts ports stay below it
	maxID       = 128
)

// endpoint is the record of one sandbox on one network.
type endpoint struct {
	ID      string `json:"id"`
	Network string `json:"network,omitempty"` // its id; "" is the default one
	// Name is the container's; Names are all under which it is found on the network, Name among them.
	Name      string       `json:"name,omitempty"`
	Names     []string     `json:"names,omitempty"`
	Interface string       `json:"interface,omitempty"` // inside; "" is eth0
	MAC       string       `json:"mac,omitempty"`       // "": derived from the address
	IPv4      netip.Prefix `json:"ipv4"`
	IPv6      netip.Prefix `json:"ipv6,omitzero"`
	Ports     []Port       `json:"ports,omitempty"`
}

// key is the name of the record's file.
func (e *endpoint) key() string {
	if e.Network == "" {
		return e.ID
	}
	return e.ID + "@" + e.Network
}

// network is the id of the endpoint's network.
func (e *endpoint) network() string {
	if e.Network == "" {
		return fixedID(Default)
	}
	return e.Network
}

// hostEnd is the name of the host's end of its veth pair.
func (e *endpoint) hostEnd() string { return hostEnd(e.key()) }

func (e *endpoint) inside() string {
	if e.Interface == "" {
		return inside0
	}
	return e.Interface
}

// label names the container to a person.
func (e *endpoint) label() string {
	if e.Name != "" {
		return e.Name
	}
	return shortID(e.ID)
}

// mac is derived from the address, as docker does: a neighbour that has cached the pair is never wrong.
func (e *endpoint) mac() (m [6]byte) {
	if b, err := hex.DecodeString(strings.ReplaceAll(e.MAC, ":", "")); err == nil && len(b) == 6 {
		return [6]byte(b)
	}
	m[0], m[1] = 0x02, 0x42
	b := e.IPv4.Addr().As4()
	copy(m[2:], b[:])
	return m
}

// claims are the paths of the record's other names.
func (m *Manager) claims(e *endpoint) []string {
	paths := []string{m.path(leasesDir, e.IPv4.Addr().String())}
	if e.Network != "" && e.IPv6.IsValid() {
		paths = append(paths, m.path(leasesDir, e.IPv6.Addr().String()))
	}
	for _, p := range e.Ports {
		paths = append(paths, m.path(portsDir, p.claim()))
	}
	for _, n := range e.Names {
		for _, a := range []netip.Prefix{e.IPv4, e.IPv6} {
			if a.IsValid() {
				paths = append(paths, m.path(namesDir, e.Network, n, a.Addr().String()))
			}
		}
	}
	return paths
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
		for _, d := range []string{endpointsDir, leasesDir, portsDir, namesDir, moreDir, lastDir} {
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

// endpoint reads a record by its key. NotFound when there is none; Corrupt when a power failure tore it.
func (m *Manager) endpoint(key string) (*endpoint, error) {
	b, err := readSmall(m.path(endpointsDir, key), maxEndpoint)
	if err != nil {
		return nil, err
	}
	e := &endpoint{}
	if err := json.Unmarshal(b, e); err != nil || e.key() != key || !e.IPv4.Addr().Is4() {
		return nil, &errdefs.Error{What: m.path(endpointsDir, key), Kind: errdefs.Corrupt, Why: "it is not a record of ours"}
	}
	return e, nil
}

// endpoints returns all readable records.
func (m *Manager) endpoints() ([]*endpoint, error) {
	keys, err := m.names(endpointsDir)
	if err != nil {
		return nil, err
	}
	return m.read(keys)
}

func (m *Manager) read(keys []string) ([]*endpoint, error) {
	var out []*endpoint
	for _, key := range keys {
		e, err := m.endpoint(key)
		switch {
		case err == nil:
			out = append(out, e)
		case !errors.Is(err, fs.ErrNotExist) && !errdefs.Is(err, errdefs.Corrupt):
			return nil, err
		}
	}
	return out, nil
}

// endpointsOf returns the readable records of one network.
func (m *Manager) endpointsOf(network string) ([]*endpoint, error) {
	all, err := m.endpoints()
	return slices.DeleteFunc(all, func(e *endpoint) bool { return e.network() != network }), err
}

// keysOf lists the records of a sandbox, that of the default network first.
func (m *Manager) keysOf(id string) (keys []string, err error) {
	if _, err := os.Lstat(m.path(endpointsDir, id)); err == nil {
		keys = append(keys, id)
	}
	if _, err := os.Lstat(m.path(moreDir, id)); err != nil {
		return keys, nil
	}
	all, err := m.names(endpointsDir)
	if err != nil {
		return nil, err
	}
	slices.Sort(all)
	for _, k := range all {
		if strings.HasPrefix(k, id+"@") {
			keys = append(keys, k)
		}
	}
	return keys, nil
}

// owner is the sandbox of a record.
func owner(key string) string {
	id, _, _ := strings.Cut(key, "@")
	return id
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

// stray removes leases, ports and names that are not links to a living endpoint, and restores those that are missing:
// what is left when replace was interrupted, or by a hand. The caller holds the lock.
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
	if err := m.removeWhere(func(ino uint64) bool { return !owned[ino] }); err != nil {
		return err
	}
	eps, err := m.read(ids)
	if err != nil {
		return err
	}
	for _, e := range eps {
		for _, p := range m.claims(e) {
			if err := m.claim(e, p); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
		}
	}
	return nil
}

// claim makes one of an endpoint's other names. fs.ErrExist when another has it, or it is there.
func (m *Manager) claim(e *endpoint, path string) error {
	record := m.path(endpointsDir, e.key())
	err := os.Link(record, path)
	if errors.Is(err, fs.ErrNotExist) { // the first of a name
		if err = os.MkdirAll(filepath.Dir(path), 0o700); err == nil {
			err = os.Link(record, path)
		}
	}
	return err
}

// replace writes an endpoint's record anew, with the same addresses and names but other ports. The links are moved to
// the new file one by one; when that is interrupted, the next Sweep goes on with it. The caller holds the lock.
func (m *Manager) replace(e *endpoint, ports []Port) error {
	next := *e
	next.Ports = ports
	b, err := json.Marshal(&next)
	if err != nil {
		return err
	}
	tmp := m.path(endpointsDir, ".new")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	if err := os.Rename(tmp, m.path(endpointsDir, e.key())); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	kept := map[string]bool{}
	for _, p := range m.claims(&next) {
		kept[p] = true
		beside := m.path(".moving")
		_ = os.Remove(beside)
		if err := m.claim(&next, beside); err != nil {
			return err
		}
		if err := os.Rename(beside, p); err != nil {
			return err
		}
	}
	for _, p := range m.claims(e) {
		if !kept[p] {
			if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	*e = next
	return nil
}

// removeWhere removes the leases, ports and names whose inode number f chooses.
func (m *Manager) removeWhere(f func(ino uint64) bool) error {
	dirs := []string{leasesDir, portsDir}
	nets, err := m.names(namesDir)
	if err != nil {
		return err
	}
	for _, n := range nets {
		list, err := m.names(filepath.Join(namesDir, n))
		if err != nil {
			return err
		}
		for _, name := range list {
			dirs = append(dirs, filepath.Join(namesDir, n, name))
		}
	}
	for _, dir := range dirs {
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
		if strings.HasPrefix(dir, namesDir) {
			_ = os.Remove(m.path(dir)) // if nobody else has the name
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

// reserve records what the sandbox gets on one network: an address, its ports, the endpoint. The caller holds the lock.
func (m *Manager) reserve(lock *os.File, g *ground, want Endpoint, l Link, inside string, ports []Port) (_ *endpoint, err error) {
	e := &endpoint{ID: want.ID, Name: want.Name, MAC: l.MAC}
	if g.net.Name != Default {
		e.Network = g.net.ID
	}
	if inside != inside0 {
		e.Interface = inside
	}
	if _, err := os.Lstat(m.path(endpointsDir, e.key())); err == nil {
		return nil, &errdefs.Error{
			What: "sandbox " + want.ID, Kind: errdefs.Conflict, Why: "it is attached to the network " + g.net.Name + " already",
			Fix: "detach it first",
		}
	}
	given := last(lock)
	if e.Network != "" {
		given = m.lastOn(e.Network)
	}
	v4, err := m.address(g.net.v4(), l.IPv4, given)
	if err != nil {
		return nil, err
	}
	e.IPv4 = netip.PrefixFrom(v4, g.net.v4().Prefix.Bits())
	if s := g.net.v6(); s != nil {
		a := l.IPv6
		if !a.IsValid() && e.Network == "" {
			a = embed(s.Prefix, v4) // one lease is both: nobody can ask for an address here
			e.IPv6 = netip.PrefixFrom(a, s.Prefix.Bits())
		} else {
			begin := embed(s.Prefix, v4).Prev()
			if a, err = m.address(s, a, begin); err != nil {
				return nil, err
			}
			e.IPv6 = netip.PrefixFrom(a, s.Prefix.Bits())
		}
	} else if l.IPv6.IsValid() {
		return nil, &errdefs.Error{
			Op: "use", What: "--ip6 " + l.IPv6.String(), Kind: errdefs.InvalidArgument, Why: "the network " + g.net.Name + " has no IPv6",
			Fix: "make a network with --ipv6, or leave it out",
		}
	}
	if e.Network != "" {
		e.Names = want.namesOn(l)
	}
	if e.Ports, err = m.choosePorts(ports, g.gw6.IsValid()); err != nil {
		return nil, err
	}
	b, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	if e.Network != "" {
		f, err := os.OpenFile(m.path(moreDir, e.ID), os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		_ = f.Close()
	}
	tmp := m.path(endpointsDir, ".new") // one writer: the lock's holder
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return nil, errors.Join(err, os.Remove(tmp))
	}
	if err := os.Rename(tmp, m.path(endpointsDir, e.key())); err != nil {
		return nil, errors.Join(err, os.Remove(tmp))
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.release(e.key()))
		}
	}()
	for _, p := range m.claims(e) {
		if err := m.claim(e, p); err != nil {
			return nil, err
		}
	}
	if e.Network == "" {
		_, err = lock.WriteAt(v4.AsSlice(), 0)
	} else if !l.IPv4.IsValid() {
		err = os.WriteFile(m.path(lastDir, e.Network), v4.AsSlice(), 0o600)
	}
	return e, err
}

// lastOn returns the address given last on a user's network, or the zero Addr.
func (m *Manager) lastOn(network string) netip.Addr {
	b, err := readSmall(m.path(lastDir, network), 16)
	if err != nil || len(b) != 4 {
		return netip.Addr{}
	}
	return netip.AddrFrom4([4]byte(b))
}

// embed returns the IPv6 address of a prefix that has an IPv4 address as its last 32 bits, as far as the prefix leaves
// room for it.
func embed(p netip.Prefix, v4 netip.Addr) netip.Addr {
	b, low := p.Masked().Addr().As16(), v4.As4()
	for i := range 32 {
		if bit := 127 - i; bit >= p.Bits() && low[3-i/8]&(1<<(i%8)) != 0 {
			b[bit/8] |= 0x80 >> (bit % 8)
		}
	}
	return netip.AddrFrom16(b)
}

// address returns the address that was asked for, if nobody has it, or the first one after the one given last. The
// caller holds the lock.
func (m *Manager) address(s *Subnet, want, given netip.Addr) (netip.Addr, error) {
	lowest, highest := s.Prefix.Masked().Addr().Next(), s.last()
	if s.Prefix.Addr().Is4() {
		highest = highest.Prev() // broadcast
	}
	reserved := func(a netip.Addr) string {
		if a == s.Gateway {
			return "it is the gateway's"
		}
		for name, x := range s.Aux {
			if a == x {
				return "it is set aside for " + name + " (--aux-address)"
			}
		}
		return ""
	}
	if want.IsValid() {
		fail := func(kind errdefs.Kind, why string) (netip.Addr, error) {
			return want, &errdefs.Error{
				Op: "use", What: "--ip " + want.String(), Kind: kind, Why: why, Fix: "choose another address of " + s.Prefix.String() + ", or leave it out",
			}
		}
		if !s.Prefix.Contains(want) || want.Compare(lowest) < 0 || want.Compare(highest) > 0 {
			return fail(errdefs.InvalidArgument, "it is not an address for a host of the subnet "+s.Prefix.String())
		}
		if why := reserved(want); why != "" {
			return fail(errdefs.Conflict, why)
		}
		if _, err := os.Lstat(m.path(leasesDir, want.String())); err == nil {
			who := ""
			if b, err := readSmall(m.path(leasesDir, want.String()), maxEndpoint); err == nil {
				var e endpoint
				if json.Unmarshal(b, &e) == nil {
					who = ", by " + e.label()
				}
			}
			return fail(errdefs.Conflict, "Address already in use"+who)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return want, err
		}
		return want, nil
	}
	if s.Range.IsValid() {
		if a := s.Range.Masked().Addr(); a.Compare(lowest) > 0 {
			lowest = a
		}
		if r := (&Subnet{Prefix: s.Range}).last(); r.Compare(highest) < 0 {
			highest = r
		}
	}
	begin := lowest
	if given.IsValid() && given.Is4() == lowest.Is4() && given.Compare(lowest) >= 0 && given.Compare(highest) < 0 {
		begin = given.Next()
	}
	for a, wrapped := begin, false; ; {
		if reserved(a) == "" {
			_, err := os.Lstat(m.path(leasesDir, a.String()))
			if errors.Is(err, fs.ErrNotExist) {
				return a, nil
			}
			if err != nil {
				return netip.Addr{}, err
			}
		}
		if a = a.Next(); a.Compare(highest) > 0 {
			a, wrapped = lowest, true
		}
		if wrapped && a == begin {
			return netip.Addr{}, &errdefs.Error{
				Op: "lease an address", What: "of " + s.Prefix.String(),
				Kind: errdefs.Exhausted, Why: "all are in use", Fix: "remove containers that are not needed: onggi ps -a",
			}
		}
	}
}

// last returns the last address of the subnet: of IPv4, its broadcast address.
func (s *Subnet) last() netip.Addr {
	if s.Prefix.Addr().Is4() {
		return lastOf(s.Prefix)
	}
	b := s.Prefix.Masked().Addr().As16()
	for i := s.Prefix.Bits(); i < 128; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom16(b)
}

// release removes an endpoint's records; the endpoint, which names the others, goes last. The caller holds the lock.
func (m *Manager) release(key string) error {
	ino, err := inodeOf(m.path(endpointsDir, key))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	e, err := m.endpoint(key)
	if err != nil { // torn by a power failure: its links are still known by their inode
		if err := m.removeWhere(func(i uint64) bool { return i == ino }); err != nil {
			return err
		}
	} else {
		for _, p := range m.claims(e) {
			i, err := inodeOf(p)
			if err == nil && i == ino {
				err = os.Remove(p)
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		for _, n := range e.Names {
			_ = os.Remove(m.path(namesDir, e.Network, n)) // if nobody else has the name
		}
	}
	if err := os.Remove(m.path(endpointsDir, key)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// releaseAll removes all records of a sandbox. The caller holds the lock.
func (m *Manager) releaseAll(id string) error {
	keys, err := m.keysOf(id)
	if err != nil {
		return err
	}
	for _, k := range keys {
		if err := m.release(k); err != nil {
			return err
		}
	}
	if err := m.undescribe(id); err != nil {
		return err
	}
	if err := os.Remove(m.path(moreDir, id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
