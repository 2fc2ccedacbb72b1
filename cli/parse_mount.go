package cli

import (
	"encoding/csv"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/onggi/onggi/spec"
	"github.com/onggi/onggi/volume"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
)

// parseVolume reads -v: [SOURCE:]TARGET[:OPTION,...]. A source with a slash or a leading dot is a path (relative to
// cwd), any other the name of a volume; without a source the volume is anonymous.
func parseVolume(s, cwd string) (spec.Mount, error) {
	m := spec.Mount{Type: "volume"}
	parts := strings.Split(s, ":")
	var source, options string
	switch len(parts) {
	case 1:
		m.Target = parts[0]
	case 2:
		source, m.Target = parts[0], parts[1]
	case 3:
		source, m.Target, options = parts[0], parts[1], parts[2]
		if options == "" {
			return m, fmt.Errorf("nothing follows the last colon")
		}
	default:
		return m, fmt.Errorf("it has more than three parts; -v is written [SOURCE:]TARGET[:OPTIONS]")
	}
	if len(parts) > 1 && source == "" {
		return m, fmt.Errorf("nothing stands before the first colon; -v is written [SOURCE:]TARGET[:OPTIONS]")
	}
	if strings.HasPrefix(source, "~") {
		return m, fmt.Errorf("the shell has not expanded %q; write the whole path", source)
	}
	if isPath(source) {
		// docker's -v makes a missing directory of the host, its --mount refuses.
		m.Type, m.Source, m.CreateSource = "bind", absolute(source, cwd), true
	} else {
		if err := volumeName(source); err != nil {
			return m, err
		}
		m.Source = source
	}
	if err := mountTarget(m.Target); err != nil {
		return m, err
	}
	m.Target = path.Clean(m.Target)
	if options == "" {
		return m, nil
	}
	var mode, propagation bool
	for _, o := range strings.Split(options, ",") {
		switch o {
		case "ro", "rw":
			if mode {
				return m, fmt.Errorf("ro and rw are given more than once")
			}
			mode, m.ReadOnly = true, o == "ro"
		case "rprivate", "private", "rshared", "shared", "rslave", "slave":
			if propagation {
				return m, fmt.Errorf("the mount has two propagations")
			}
			if m.Type != "bind" {
				return m, fmt.Errorf("%s is for host paths, and %q is a volume", o, source)
			}
			propagation, m.Propagation = true, o
		case "nocopy":
			if m.Type != "volume" {
				return m, fmt.Errorf("nocopy is for volumes, and %q is a host path", source)
			}
			m.NoCopy = true
		case "idmap":
			if err := idmapOption(&m, "", source); err != nil {
				return m, err
			}
		case "exec", "noexec", "suid", "nosuid", "dev", "nodev":
			m.Options = append(m.Options, o)
		case "rbind":
		case "bind":
			if m.Type != "bind" {
				return m, fmt.Errorf("%s is for host paths, and %q is a volume", o, source)
			}
			m.Recursive = "disabled"
		case "z", "Z":
			if hasSELinux() {
				return m, fmt.Errorf("%s relabels files for SELinux, which this version does not do", o)
			}
			// Where there are no labels there is nothing to relabel.
		case "cached", "delegated", "consistent":
			// What they allow a virtual machine's file sharing to delay; here it is one file system, always consistent.
		default:
			if maps, ok := strings.CutPrefix(o, "idmap="); ok {
				if err := idmapOption(&m, maps, source); err != nil {
					return m, err
				}
				continue
			}
			return m, fmt.Errorf("there is no mount option %q", o)
		}
	}
	return m, nil
}

// idmapOption reads idmap[=uids=FROM-TO-SIZE#...;gids=FROM-TO-SIZE#...], as podman writes it: ids of the file system, what
// the container sees them as, and how many.
func idmapOption(m *spec.Mount, s, source string) error {
	switch {
	case m.Type != "bind":
		return fmt.Errorf("idmap is for host paths, and %q is a volume", source)
	case m.IDMap:
		return fmt.Errorf("idmap is given more than once")
	}
	m.IDMap = true
	if s == "" {
		return nil
	}
	for part := range strings.SplitSeq(s, ";") {
		kind, list, _ := strings.Cut(part, "=")
		into := &m.UIDs
		switch kind {
		case "uids":
		case "gids":
			into = &m.GIDs
		default:
			return fmt.Errorf("idmap is written idmap=uids=FROM-TO-SIZE;gids=FROM-TO-SIZE, and %q is neither uids nor gids", kind)
		}
		if len(*into) > 0 {
			return fmt.Errorf("idmap has %s twice", kind)
		}
		for triple := range strings.SplitSeq(list, "#") {
			var n [3]int64
			f := strings.Split(triple, "-")
			for i := range f {
				var err error
				if len(f) != 3 {
					err = fmt.Errorf("%d numbers", len(f))
				} else if n[i], err = parseInt(f[i], 0, 1<<32-2); err == nil && i == 2 && (n[2] == 0 || n[0]+n[2] > 1<<32-1 || n[1]+n[2] > 1<<32-1) {
					err = fmt.Errorf("no ids")
				}
				if err != nil {
					return fmt.Errorf("idmap: %q is not FROM-TO-SIZE, such as 1000-0-1: %w", triple, err)
				}
			}
			*into = append(*into, runspec.LinuxIDMapping{ContainerID: uint32(n[0]), HostID: uint32(n[1]), Size: uint32(n[2])})
		}
	}
	if len(m.UIDs) == 0 || len(m.GIDs) == 0 {
		return fmt.Errorf("idmap needs both uids and gids, or neither")
	}
	return nil
}

// isPath tells a host path from the name of a volume.
func isPath(source string) bool {
	return strings.HasPrefix(source, ".") || strings.Contains(source, "/")
}

// absolute makes a host path absolute, following no link.
func absolute(p, cwd string) string {
	if filepath.IsAbs(p) {
		return filepath.Clean(p)
	}
	return filepath.Join(cwd, p)
}

// volumeName checks docker's rule for names; "" is an anonymous volume.
func volumeName(name string) error {
	for i, c := range []byte(name) {
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || c != '_' && c != '.' && c != '-') {
			return fmt.Errorf("%q is neither a path nor the name of a volume: names are letters, digits, _ . and - after the first", name)
		}
	}
	if len(name) == 1 {
		return fmt.Errorf("the name of a volume has at least two letters")
	}
	return nil
}

// mountTarget checks the path inside the container.
func mountTarget(target string) error {
	switch {
	case target == "":
		return fmt.Errorf("the path inside the container is missing")
	case !path.IsAbs(target):
		return fmt.Errorf("the path inside the container, %q, is not absolute", target)
	case path.Clean(target) == "/":
		return fmt.Errorf("the path inside the container cannot be /")
	case strings.ContainsRune(target, 0):
		return fmt.Errorf("the path inside the container contains a null byte")
	}
	return nil
}

// parseMount reads --mount: comma separated KEY=VALUE pairs, quoted as in CSV where a value contains a comma.
func parseMount(s, cwd string) (spec.Mount, error) {
	m := spec.Mount{Type: "volume"}
	r := csv.NewReader(strings.NewReader(s))
	r.FieldsPerRecord = -1
	fields, err := r.Read()
	if err != nil {
		return m, fmt.Errorf("it is not a list of KEY=VALUE separated by commas")
	}
	if _, err := r.Read(); err == nil || r.InputOffset() < int64(len(s)) {
		return m, fmt.Errorf("it has more than one line")
	}
	var idmap *string
	given := make(map[string]bool)
	for _, f := range fields {
		key, value, hasValue := strings.Cut(f, "=")
		key = canonicalMountKey(strings.ToLower(strings.TrimSpace(key)))
		if given[key] && key != "volume-opt" && key != "volume-label" {
			return m, fmt.Errorf("%s is given more than once", key)
		}
		given[key] = true
		if !slices.Contains([]string{"readonly", "volume-nocopy", "bind-nonrecursive", "bind-create-src", "idmap"}, key) && (!hasValue || value == "") {
			return m, fmt.Errorf("%q needs a value: write it as %s=VALUE", f, key)
		}
		switch key {
		case "type":
			switch m.Type = strings.ToLower(value); m.Type {
			case "bind", "volume", "tmpfs":
			case "image", "npipe", "cluster":
				return m, fmt.Errorf("this version does not honour the mount type %q: it can be bind, volume or tmpfs", value)
			default:
				return m, fmt.Errorf("there is no mount type %q: it can be bind, volume or tmpfs", value)
			}
		case "source":
			m.Source = value
		case "target":
			m.Target = value
		case "readonly":
			if m.ReadOnly, err = parseBool(value, hasValue); err != nil {
				return m, fmt.Errorf("readonly is true or false, not %q", value)
			}
		case "volume-nocopy":
			if m.NoCopy, err = parseBool(value, hasValue); err != nil {
				return m, fmt.Errorf("volume-nocopy is true or false, not %q", value)
			}
		case "bind-propagation":
			switch m.Propagation = strings.ToLower(value); m.Propagation {
			case "rprivate", "private", "rshared", "shared", "rslave", "slave":
			default:
				return m, fmt.Errorf("there is no propagation %q: it can be rprivate, private, rshared, shared, rslave or slave", value)
			}
		case "bind-recursive":
			switch m.Recursive = strings.ToLower(value); m.Recursive {
			case "enabled", "disabled", "writable", "readonly":
			default:
				return m, fmt.Errorf("bind-recursive is enabled, disabled, writable or readonly, not %q", value)
			}
		case "bind-nonrecursive": // docker's older word
			not, err := parseBool(value, hasValue)
			if err != nil {
				return m, fmt.Errorf("bind-nonrecursive is true or false, not %q", value)
			}
			if not {
				m.Recursive = "disabled"
			}
		case "bind-create-src":
			if m.CreateSource, err = parseBool(value, hasValue); err != nil {
				return m, fmt.Errorf("bind-create-src is true or false, not %q", value)
			}
		case "idmap":
			maps := value
			if on, err := parseBool(value, hasValue); err == nil {
				if !on {
					continue
				}
				maps = ""
			}
			idmap = &maps
		case "consistency":
			if !slices.Contains([]string{"default", "consistent", "cached", "delegated"}, strings.ToLower(value)) {
				return m, fmt.Errorf("there is no consistency %q: it can be default, consistent, cached or delegated", value)
			}
		case "volume-subpath":
			if m.Subpath = path.Clean(value); !filepath.IsLocal(value) || strings.ContainsRune(value, 0) {
				return m, fmt.Errorf("the subpath %q is not a relative path inside of the volume", value)
			}
			if m.Subpath == "." {
				m.Subpath = ""
			}
		case "volume-driver":
			m.Driver = value
		case "volume-opt", "volume-label":
			k, v, err := parseKeyValue(value, key == "volume-label")
			if err != nil {
				return m, fmt.Errorf("%s: %w", key, err)
			}
			into := &m.DriverOptions
			if key == "volume-label" {
				into = &m.Labels
			}
			if *into == nil {
				*into = map[string]string{}
			}
			(*into)[k] = v
		case "tmpfs-size":
			if m.TmpfsSize, err = parseSize(value); err != nil {
				return m, fmt.Errorf("tmpfs-size: %w", err)
			}
		case "tmpfs-mode":
			if m.TmpfsMode, err = parseMode(value); err != nil {
				return m, fmt.Errorf("tmpfs-mode: %w", err)
			}
		default:
			return m, fmt.Errorf("there is no key %q: a mount has type, source, target, readonly, consistency, bind-propagation, bind-recursive, bind-create-src, idmap, "+
				"volume-nocopy, volume-subpath, volume-driver, volume-opt, volume-label, tmpfs-size and tmpfs-mode", key)
		}
	}
	if given["bind-recursive"] && given["bind-nonrecursive"] {
		return m, fmt.Errorf("bind-recursive and bind-nonrecursive contradict each other")
	}
	for _, key := range slices.Sorted(maps.Keys(given)) {
		of, _, _ := strings.Cut(key, "-")
		if key == "idmap" {
			of = "bind"
		}
		if (of == "bind" || of == "volume" || of == "tmpfs") && m.Type != of {
			return m, fmt.Errorf("%s is for type=%s, and this mount has type=%s", key, of, m.Type)
		}
	}
	if m.Recursive == "readonly" && (!m.ReadOnly || m.Propagation != "" && m.Propagation != "rprivate") {
		return m, fmt.Errorf("bind-recursive=readonly needs readonly and bind-propagation=rprivate")
	}
	if m.Recursive == "writable" && !m.ReadOnly {
		return m, fmt.Errorf("bind-recursive=writable is for a mount that is readonly itself")
	}
	if idmap != nil {
		if err := idmapOption(&m, *idmap, m.Source); err != nil {
			return m, err
		}
	}
	if err := volume.CheckOptions(m.DriverOptions); err != nil {
		return m, err
	}
	if err := mountTarget(m.Target); err != nil {
		return m, err
	}
	m.Target = path.Clean(m.Target)
	switch m.Type {
	case "bind":
		if m.Source == "" {
			return m, fmt.Errorf("a bind mount needs source=PATH")
		}
		m.Source = absolute(m.Source, cwd)
	case "volume":
		if isPath(m.Source) {
			return m, fmt.Errorf("%q is a path; add type=bind, or give the name of a volume", m.Source)
		}
		if err := volumeName(m.Source); err != nil {
			return m, err
		}
	case "tmpfs":
		if m.Source != "" {
			return m, fmt.Errorf("a tmpfs has no source")
		}
	}
	return m, nil
}

func canonicalMountKey(key string) string {
	switch key {
	case "src":
		return "source"
	case "dst", "destination":
		return "target"
	case "ro":
		return "readonly"
	case "volume-no-copy":
		return "volume-nocopy"
	}
	return key
}

// parseBool reads a CSV flag: the bare key is true.
func parseBool(value string, given bool) (bool, error) {
	switch {
	case !given || value == "true" || value == "1":
		return true, nil
	case value == "false" || value == "0":
		return false, nil
	}
	return false, fmt.Errorf("it is neither true nor false")
}

// parseMode reads an octal file mode.
func parseMode(s string) (uint32, error) {
	var n uint32
	for _, c := range []byte(s) {
		if c < '0' || c > '7' || n > 0o777 {
			return 0, fmt.Errorf("%q is not an octal mode between 0 and 1777", s)
		}
		n = n*8 + uint32(c-'0')
	}
	if s == "" || n == 0 || n > 0o1777 {
		return 0, fmt.Errorf("%q is not an octal mode between 1 and 1777", s)
	}
	return n, nil
}

// parseTmpfs reads --tmpfs: TARGET[:OPTION,...], with tmpfs(5)'s size and mode, and the flags that mount(8) has for it.
func parseTmpfs(s string) (spec.Mount, error) {
	target, options, some := strings.Cut(s, ":")
	m := spec.Mount{Type: "tmpfs", Target: target}
	if err := mountTarget(target); err != nil {
		return m, err
	}
	m.Target = path.Clean(target)
	if !some {
		return m, nil
	}
	given := make(map[string]bool)
	for _, o := range strings.Split(options, ",") {
		key, value, hasValue := strings.Cut(o, "=")
		if given[key] {
			return m, fmt.Errorf("%s is given more than once", key)
		}
		given[key] = true
		var err error
		switch {
		case key == "size" && hasValue:
			if m.TmpfsSize, err = parseSize(value); err != nil {
				return m, fmt.Errorf("size: %w", err)
			}
		case key == "mode" && hasValue:
			if m.TmpfsMode, err = parseMode(value); err != nil {
				return m, fmt.Errorf("mode: %w", err)
			}
		case (key == "uid" || key == "gid") && hasValue:
			if _, err = parseInt(value, 0, 1<<32-2); err != nil {
				return m, fmt.Errorf("%s: %w", key, err)
			}
			m.Options = append(m.Options, o)
		case key == "nr_inodes" && hasValue:
			if _, err = parseSize(value); err != nil {
				return m, fmt.Errorf("nr_inodes: %w", err)
			}
			m.Options = append(m.Options, o)
		case o == "ro":
			m.ReadOnly = true
		case o == "rw":
			m.ReadOnly = false
		case o == "exec", o == "noexec", o == "suid", o == "nosuid", o == "dev", o == "nodev", o == "sync", o == "async",
			o == "atime", o == "noatime", o == "diratime", o == "nodiratime", o == "relatime", o == "norelatime", o == "strictatime":
			m.Options = append(m.Options, o)
		default:
			return m, fmt.Errorf("a tmpfs has no option %q", o)
		}
	}
	if given["ro"] && given["rw"] {
		return m, fmt.Errorf("it cannot be both ro and rw")
	}
	return m, nil
}

// hasSELinux reports whether this host's kernel labels files.
var hasSELinux = func() bool {
	_, err := os.Stat("/sys/fs/selinux/enforce")
	return err == nil
}
