package launch

import (
	"bufio"
	"os"
	"strconv"
	"strings"

	"github.com/onggi/onggi/errdefs"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// linux.intelRdt (config-linux.md, "IntelRdt"; Documentation/filesystems/resctrl.rst): a group is a directory of the
// resctrl file system, "schemata" in it says which share of the caches and of the memory bandwidth it has, and a process
// joins it by its id in "tasks"; what it starts is born there. A monitoring group lies below.

// resctrl is a handle of a mounted resctrl file system.
type resctrl struct{ dir int }

// rdtRecord is what state.json keeps of a container's groups.
type rdtRecord struct {
	Group   string `json:"group"`             // "" is the file system's root
	Created bool   `json:"created,omitempty"` // by us, and to be removed with the container
	Monitor string `json:"monitor,omitempty"` // name of the container's monitoring group
}

// openResctrl finds the file system in this process's mounts. Unsupported when it is not mounted.
func openResctrl() (*resctrl, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := lines.Text()
		if !strings.Contains(line, " - resctrl ") {
			continue
		}
		if fields := strings.Fields(line); len(fields) > 4 {
			fd, err := unix.Open(fields[4], unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				return nil, &errdefs.Error{Op: "open", What: fields[4], Err: err}
			}
			return &resctrl{fd}, nil
		}
	}
	return nil, &errdefs.Error{
		Op: "use the spec's", What: "linux.intelRdt", Kind: errdefs.Unsupported, Why: "no resctrl file system is mounted",
		Fix: "mount -t resctrl resctrl /sys/fs/resctrl, on a processor that has it",
	}
}

func (r *resctrl) close() { _ = unix.Close(r.dir) }

// open opens a place below the file system and nowhere else.
func (r *resctrl) open(name string, flags uint64) (int, error) {
	return unix.Openat2(r.dir, name, &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV})
}

func (r *resctrl) write(name, text string) error {
	fd, err := r.open(name, unix.O_WRONLY|unix.O_TRUNC)
	if err == nil {
		err = writeAll(fd, []byte(text))
		_ = unix.Close(fd)
	}
	if err != nil {
		why := ""
		if b, e := r.read("info/last_cmd_status"); e == nil && b != "ok\n" {
			why = strings.TrimSpace(b) // the kernel's own words
		}
		return &errdefs.Error{Op: "write", What: "resctrl's " + name, Err: err, Why: why}
	}
	return nil
}

func (r *resctrl) read(name string) (string, error) {
	fd, err := r.open(name, unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close() //nolint:errcheck // read only
	b := make([]byte, 64<<10)
	n := 0
	for n < len(b) {
		k, err := f.Read(b[n:])
		if n += k; err != nil || k == 0 {
			break
		}
	}
	return string(b[:n]), nil
}

// schema is what is to be written to "schemata", a line each; nil for nothing.
func schema(l *runspec.LinuxIntelRdt) (lines []string) {
	for _, s := range [...]string{l.L3CacheSchema, l.MemBwSchema} {
		if s != "" {
			lines = append(lines, s)
		}
	}
	return append(lines, l.Schemata...)
}

// join makes or finds the group that the spec says, and puts the process into it. rec notes each directory before it is
// made, so that what was made can be removed; save writes it down.
func (r *resctrl) join(l *runspec.LinuxIntelRdt, id string, pid int, rec *rdtRecord, save func() error) error {
	rec.Group = id
	switch l.ClosID {
	case "":
		rec.Created = true
	case "/":
		rec.Group = ""
	default:
		rec.Group = l.ClosID
	}
	want := schema(l)
	fd, err := r.open(below(rec.Group, "."), unix.O_PATH|unix.O_DIRECTORY)
	exists := err == nil
	if exists {
		_ = unix.Close(fd)
	}
	switch {
	case err != nil && err != unix.ENOENT:
		return &errdefs.Error{Op: "open", What: "resctrl's group " + rec.Group, Err: err}
	case exists && l.ClosID == "": // somebody else's
		rec.Created = false
		return &errdefs.Error{
			Op: "make", What: "resctrl's group " + rec.Group, Kind: errdefs.AlreadyExists, Why: "there is a group of that name",
			Fix: "name it as linux.intelRdt.closID to use it",
		}
	case exists && len(want) > 0:
		if err := r.compare(rec.Group, want); err != nil {
			return err
		}
		want = nil
	case !exists && l.ClosID != "" && len(want) == 0:
		return &errdefs.Error{
			Op: "use the spec's", What: "linux.intelRdt.closID", Kind: errdefs.NotFound,
			Why: "there is no group " + l.ClosID + " in resctrl, and the spec has no schemata to make one",
		}
	}
	if !exists {
		if err := save(); err != nil {
			return err
		}
		if err := unix.Mkdirat(r.dir, rec.Group, 0o755); err != nil {
			return &errdefs.Error{Op: "make", What: "resctrl's group " + rec.Group, Err: err, Why: "the processor has a small number of classes of service"}
		}
	}
	if len(want) > 0 {
		if err := r.write(below(rec.Group, "schemata"), strings.Join(want, "\n")+"\n"); err != nil {
			if !exists && !rec.Created { // a group that we have made, but that stays: not like this
				_ = unix.Unlinkat(r.dir, rec.Group, unix.AT_REMOVEDIR)
			}
			return err
		}
	}
	if err := r.write(below(rec.Group, "tasks"), strconv.Itoa(pid)); err != nil {
		return err
	}
	if !l.EnableMonitoring {
		return nil
	}
	rec.Monitor = id
	if err := save(); err != nil {
		return err
	}
	if err := unix.Mkdirat(r.dir, below(rec.Group, "mon_groups/"+id), 0o755); err != nil {
		rec.Monitor = ""
		return &errdefs.Error{Op: "make", What: "resctrl's monitoring group " + id, Err: err}
	}
	return r.write(below(rec.Group, "mon_groups/"+id+"/tasks"), strconv.Itoa(pid))
}

// tasks are the files by which a process that joins the container puts itself into its groups.
func (r *resctrl) tasks(rec *rdtRecord) (fds []int, err error) {
	names := []string{below(rec.Group, "tasks")}
	if rec.Monitor != "" {
		names = append(names, below(rec.Group, "mon_groups/"+rec.Monitor+"/tasks"))
	}
	for _, n := range names {
		fd, err := r.open(n, unix.O_WRONLY)
		if err != nil {
			for _, fd := range fds {
				_ = unix.Close(fd)
			}
			return nil, &errdefs.Error{Op: "open", What: "resctrl's " + n, Err: err}
		}
		fds = append(fds, fd)
	}
	return fds, nil
}

// remove takes away what join has made for the container alone.
func (r *resctrl) remove(rec *rdtRecord) error {
	remove := func(name string) error {
		if err := unix.Unlinkat(r.dir, name, unix.AT_REMOVEDIR); err != nil && err != unix.ENOENT {
			return &errdefs.Error{Op: "remove", What: "resctrl's " + name, Err: err}
		}
		return nil
	}
	if rec.Monitor != "" {
		if err := remove(below(rec.Group, "mon_groups/"+rec.Monitor)); err != nil {
			return err
		}
	}
	if rec.Created && rec.Group != "" {
		return remove(rec.Group)
	}
	return nil
}

// removeResctrl is remove for a container that may have no group.
func removeResctrl(rec *rdtRecord) error {
	if rec == nil || rec.Monitor == "" && !rec.Created {
		return nil
	}
	r, err := openResctrl()
	if errdefs.Is(err, errdefs.Unsupported) { // unmounted meanwhile: the groups went with it
		return nil
	}
	if err != nil {
		return err
	}
	defer r.close()
	return r.remove(rec)
}

// compare refuses a group that exists with other schemata than the spec's.
func (r *resctrl) compare(group string, want []string) error {
	have, err := r.read(below(group, "schemata"))
	if err != nil {
		return &errdefs.Error{Op: "read", What: "the schemata of resctrl's group " + group, Err: err}
	}
	domains := map[string]string{}
	for line := range strings.Lines(have) {
		resource, list, _ := strings.Cut(strings.TrimSpace(line), ":")
		for d := range strings.SplitSeq(list, ";") {
			k, v, _ := strings.Cut(strings.TrimSpace(d), "=")
			domains[strings.TrimSpace(resource)+":"+k] = number(v)
		}
	}
	for _, line := range want {
		resource, list, _ := strings.Cut(strings.TrimSpace(line), ":")
		for d := range strings.SplitSeq(list, ";") {
			k, v, _ := strings.Cut(strings.TrimSpace(d), "=")
			if got := domains[strings.TrimSpace(resource)+":"+k]; got != number(v) {
				return &errdefs.Error{
					Op: "use the spec's", What: "linux.intelRdt.closID", Kind: errdefs.Conflict,
					Why: "the group " + group + " exists, with " + strconv.Quote(strings.TrimSpace(have)) + " and not " + strconv.Quote(line),
				}
			}
		}
	}
	return nil
}

// number drops leading zeros and spaces: the kernel pads what it shows.
func number(v string) string {
	if t := strings.TrimLeft(strings.TrimSpace(v), "0"); t != "" {
		return strings.ToLower(t)
	}
	return "0"
}

// below is a name below a group; "" is the root.
func below(group, name string) string {
	if group == "" {
		return name
	}
	return group + "/" + name
}
