package volume

import (
	"fmt"
	"maps"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/onggi/onggi/errdefs"
)

// The driver "local", docker's word for what this package keeps. Its options are docker's:
//
//	size=BYTES            how much the volume may hold: a project quota of the file system (xfs, ext4 with prjquota)
//	type=, o=, device=    as mount(8) has them: the volume is not a directory of the store but what is mounted so
//
// What is mounted lies in no mount namespace but the containers': the host sees nothing of it.

// Driver is the only driver that there is.
const Driver = "local"

// maxSize bounds option size, bytes.
const maxSize = 1 << 60

// Mount is how a volume with options is mounted. The zero value is a directory of the store.
type Mount struct {
	Type    string   // file system type; "bind" when a directory or file of the host is shown
	Device  string   // what is mounted; a bind's absolute path
	Options []string // as mount(8) has them, bind and rbind left out
	Plain   bool     // bind without the mounts below
}

// MountOf reads the options of a volume. Its errors are of kind InvalidArgument.
func MountOf(options map[string]string) (m Mount, err error) {
	typ, hasType := options["type"]
	o, hasO := options["o"]
	device, hasDevice := options["device"]
	if !hasType && !hasO && !hasDevice {
		return m, nil
	}
	m.Type, m.Device = typ, device
	bind := typ == "bind"
	for _, s := range strings.Split(o, ",") {
		switch s {
		case "":
		case "bind", "rbind":
			bind, m.Plain = true, s == "bind"
		default:
			m.Options = append(m.Options, s)
		}
	}
	switch {
	case !hasDevice || device == "":
		return m, badOption("device", "", `missing required option: "device"`, "add --opt device=WHAT (for a tmpfs: device=tmpfs)")
	case bind && typ != "" && typ != "none" && typ != "bind":
		return m, badOption("o", o, "a bind has no file system type", "write --opt type=none --opt o=bind --opt device=/PATH")
	case bind:
		if m.Type = "bind"; !filepath.IsAbs(device) || strings.ContainsAny(device, "\x00\n") {
			return m, badOption("device", device, "the host path of a bind must be absolute", "write the whole path")
		}
	case typ == "" || typ == "none":
		return m, badOption("type", typ, `missing required option: "type"`, "add --opt type=nfs (tmpfs, ext4, ...), or --opt o=bind for a directory of the host")
	case typ == "overlay" || typ == "proc" || typ == "sysfs" || typ == "cgroup" || typ == "cgroup2" || typ == "devpts" || typ == "mqueue":
		return m, badOption("type", typ, "this file system belongs to the host's kernel or to one container, and is no place for data", "use nfs, tmpfs, a block device's type, or o=bind")
	}
	return m, nil
}

// CheckOptions returns an error of kind InvalidArgument for options that the driver does not honour.
func CheckOptions(options map[string]string) error {
	for k, v := range options {
		switch k {
		case "type", "o", "device", "size":
		default:
			return badOption(k, v, fmt.Sprintf("invalid option: %q", k), "the driver local has type, o, device and size")
		}
		if len(v) > 4095 || strings.ContainsRune(v, 0) {
			return badOption(k, "", "the value is longer than 4095 bytes or has a NUL byte", "")
		}
	}
	if _, err := SizeOf(options); err != nil {
		return err
	}
	m, err := MountOf(options)
	if err == nil && m.Type != "" && options["size"] != "" {
		return badOption("size", options["size"], "a quota is for a directory of the store, and this volume is mounted from elsewhere",
			"for a tmpfs write --opt o=size="+options["size"])
	}
	return err
}

// SizeOf is option size in bytes; 0 without it. Units as docker's: b, k, m, g, t, of 1024.
func SizeOf(options map[string]string) (int64, error) {
	s, ok := options["size"]
	if !ok {
		return 0, nil
	}
	digits, unit := strings.ToLower(strings.TrimSpace(s)), int64(1)
	digits = strings.TrimSuffix(strings.TrimSuffix(digits, "b"), "i")
	if i := len(digits) - 1; i >= 0 {
		if at := strings.IndexByte("kmgt", digits[i]); at >= 0 {
			digits, unit = digits[:i], 1<<(10*(at+1))
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n <= 0 || n > maxSize/unit {
		return 0, badOption("size", s, "it is not a size above 0", "for example: --opt size=10g")
	}
	return n * unit, nil
}

func badOption(name, value, why, fix string) error {
	e := &errdefs.Error{Op: "use", What: "--opt " + name, Kind: errdefs.InvalidArgument, Why: why, Fix: fix}
	if value != "" {
		e.What += "=" + value
	}
	return e
}

// differs says what of a volume is otherwise than asked; "" when it is what was asked for.
func (v *Volume) differs(labels, options map[string]string) string {
	switch {
	case len(options) > 0 && !maps.Equal(options, v.Options):
		return "other options"
	case len(labels) > 0 && !maps.Equal(labels, v.Labels):
		return "other labels"
	}
	return ""
}
