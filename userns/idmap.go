// Package userns holds id maps of user namespaces: read from the kernel, checked when a specification brings them,
// and asked for the id on the other side.
//
// Ids are uint32 from the first parse on, and a sum that would wrap is refused: an id that silently became 0 was
// CVE-2024-40635. The id 4294967295 is (uid_t)-1, "no id", and belongs to no map.
//
// Home is the namespaces of a user who is not root: held by a sleeping process, and entered by every command.
//
// What it leaves to others: containers' namespaces and their maps (the runtime), and shifting the owners of files.
package userns

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/onggi/onggi/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// MaxRanges is how many ranges the kernel takes in one map (user_namespaces(7), since Linux 4.15).
const MaxRanges = 340

// noID is (uid_t)-1, which chown(2) takes as "leave it".
const noID = 1<<32 - 1

// Range maps Size ids beginning with Container inside the namespace to those beginning with Host outside.
type Range struct {
	Container, Host, Size uint32
}

// Map is the ranges of one namespace; they do not overlap on either side.
type Map []Range

// Identity maps every id to itself, as the initial namespace does.
var Identity = Map{{0, 0, noID}}

// ToHost returns the id outside for one inside; false when it is not mapped.
func (m Map) ToHost(id uint32) (uint32, bool) {
	for _, r := range m {
		if id >= r.Container && id-r.Container < r.Size {
			return r.Host + (id - r.Container), true
		}
	}
	return 0, false
}

// ToContainer returns the id inside for one outside; false when it is not mapped.
func (m Map) ToContainer(id uint32) (uint32, bool) {
	for _, r := range m {
		if id >= r.Host && id-r.Host < r.Size {
			return r.Container + (id - r.Host), true
		}
	}
	return 0, false
}

// New checks the mappings of a runtime-spec (config-linux.md, "User namespace mappings") and returns them as a map.
// what names the list in errors: "uidMappings". Errors: InvalidArgument (an empty range, one that passes the last id,
// two that overlap), Exhausted (more than MaxRanges).
func New(what string, mappings []specs.LinuxIDMapping) (Map, error) {
	m := make(Map, 0, len(mappings))
	for _, l := range mappings {
		m = append(m, Range{l.ContainerID, l.HostID, l.Size})
	}
	if err := m.check(); err != nil {
		err.What = what
		return nil, err
	}
	return m, nil
}

func (m Map) check() *errdefs.Error {
	if len(m) > MaxRanges {
		return &errdefs.Error{
			Op: "map ids", Kind: errdefs.Exhausted,
			Why: fmt.Sprintf("%d ranges are more than the %d that the kernel takes", len(m), MaxRanges),
		}
	}
	for _, side := range []struct {
		name  string
		first func(Range) uint32
	}{
		{"container", func(r Range) uint32 { return r.Container }},
		{"host", func(r Range) uint32 { return r.Host }},
	} {
		sorted := slices.Clone(m)
		slices.SortFunc(sorted, func(a, b Range) int { return int(int64(side.first(a)) - int64(side.first(b))) })
		end := uint64(0)
		for _, r := range sorted {
			first := uint64(side.first(r))
			switch {
			case r.Size == 0:
				return &errdefs.Error{
					Op: "map ids", Kind: errdefs.InvalidArgument,
					Why: fmt.Sprintf("the range at %s id %d is empty", side.name, first),
				}
			case first+uint64(r.Size) > noID:
				return &errdefs.Error{
					Op: "map ids", Kind: errdefs.InvalidArgument,
					Why: fmt.Sprintf("%d ids from %s id %d pass the last id, %d", r.Size, side.name, first, uint32(noID-1)),
				}
			case first < end:
				return &errdefs.Error{
					Op: "map ids", Kind: errdefs.InvalidArgument,
					Why: fmt.Sprintf("two ranges hold the %s id %d", side.name, first),
				}
			}
			end = first + uint64(r.Size)
		}
	}
	return nil
}

// UIDs returns the user id map of this process's namespace.
func UIDs() (Map, error) { return load("/proc/self/uid_map") }

// GIDs returns the group id map of this process's namespace.
func GIDs() (Map, error) { return load("/proc/self/gid_map") }

func load(path string) (Map, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return Parse(f)
}

// Parse reads the text of /proc/PID/uid_map: "container host size" per line (user_namespaces(7)). An empty text is an
// empty map: nothing is mapped yet.
func Parse(r io.Reader) (Map, error) {
	var m Map
	lines := bufio.NewScanner(io.LimitReader(r, 64<<10))
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) == 0 {
			continue
		}
		bad := &errdefs.Error{
			Op: "read an id map", What: strconv.Quote(lines.Text()), Kind: errdefs.Corrupt,
			Why: "a line is three numbers below 2^32",
		}
		if len(f) != 3 {
			return nil, bad
		}
		var n [3]uint32
		for i := range n {
			v, err := strconv.ParseUint(f[i], 10, 32)
			if err != nil {
				return nil, bad
			}
			n[i] = uint32(v)
		}
		m = append(m, Range{n[0], n[1], n[2]})
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	return m, nil
}
