package userns

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/onggi/onggi/errdefs"
)

// maxSubordinate bounds /etc/subuid, bytes.
const maxSubordinate = 4 << 20

// Subordinate returns the ranges that /etc/subuid or /etc/subgid (path) gives to a user, as Map ranges that follow each
// other from the container's id 1 on; 0 is left to the user itself. name and uid are the two ways a line names its user
// (subuid(5)). A missing file, or one without the user, is an empty map. Errors: Corrupt (two ranges overlap), and what
// reading says.
func Subordinate(path, name string, uid int) (Map, error) {
	f, err := os.Open(path)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	m, err := ParseSubordinate(io.LimitReader(f, maxSubordinate), name, uid)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

// ParseSubordinate is Subordinate for a text: lines "user:first:count" (subuid(5)). Lines of others, and lines that are
// none, are passed over, as newuidmap(1) does.
func ParseSubordinate(r io.Reader, name string, uid int) (Map, error) {
	var m Map
	next := uint64(1)
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		f := strings.Split(strings.TrimSpace(lines.Text()), ":")
		if len(f) != 3 || f[0] == "" || f[0] != name && f[0] != strconv.Itoa(uid) {
			continue
		}
		first, err1 := strconv.ParseUint(f[1], 10, 32)
		count, err2 := strconv.ParseUint(f[2], 10, 32)
		if err1 != nil || err2 != nil || count == 0 || len(m) == MaxRanges-1 {
			continue
		}
		count = min(count, noID-next)
		if count == 0 {
			break
		}
		m = append(m, Range{Container: uint32(next), Host: uint32(first), Size: uint32(count)})
		next += count
	}
	if err := lines.Err(); err != nil {
		return nil, &errdefs.Error{Op: "read the subordinate ids", Kind: errdefs.Corrupt, Err: err}
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	return m, nil
}
