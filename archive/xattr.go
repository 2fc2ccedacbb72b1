package archive

import (
	"archive/tar"
	"slices"
	"strconv"
	"strings"

	"github.com/onggi/onggi/errdefs"
	"golang.org/x/sys/unix"
)

// xattr is one extended attribute of an entry.
type xattr struct {
	name  string
	value []byte
}

// paxXattr is how tar carries extended attributes (image-spec, "layer.md", File Attributes).
const paxXattr = "SCHILY.xattr."

// xattrsOf returns the entry's extended attributes, sorted. Overlayfs' own attributes are control input: a layer that
// brings them could redirect a directory to another place of a lower layer, or hide what it does not own
// (kernel, filesystems/overlayfs.rst). They are refused.
func xattrsOf(h *tar.Header) ([]xattr, error) {
	var out []xattr
	for k, v := range h.PAXRecords {
		name, ok := strings.CutPrefix(k, paxXattr)
		if !ok {
			continue
		}
		if name == "" || len(name) > maxName || strings.IndexByte(name, 0) >= 0 {
			return nil, refuse("%s is not the name of an extended attribute", strconv.Quote(name))
		}
		if strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.") {
			return nil, refuse("the attribute %s belongs to overlayfs and may not come from an archive", strconv.Quote(name))
		}
		out = append(out, xattr{name, []byte(v)})
	}
	slices.SortFunc(out, func(a, b xattr) int { return strings.Compare(a.name, b.name) })
	return out, nil
}

// explain adds the attribute's name and what a file system says with it.
func (x xattr) explain(err error) error {
	if err == nil {
		return nil
	}
	e := &errdefs.Error{Op: "set the extended attribute", What: strconv.Quote(x.name), Kind: errdefs.KindOf(err), Err: err}
	switch err {
	case unix.EOPNOTSUPP:
		e.Why = "the file system does not keep it, or no such attribute exists"
	case unix.EPERM, unix.EACCES:
		e.Why = "it needs a privilege that this process lacks, or this type of file cannot have it"
	case unix.ENOSPC, unix.E2BIG, unix.ERANGE:
		// ext4 keeps attributes in one block and says ENOSPC when they do not fit: that is no full disk.
		if len(x.value) > 1024 {
			e.Kind, e.Why = errdefs.Exhausted, strconv.Itoa(len(x.value))+" bytes are more than the file system keeps"
		}
	}
	return e
}
