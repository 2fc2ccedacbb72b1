package launch

import (
	"os"
	"path"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/onggi/onggi/errdefs"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// record is Root/ID/state.json: what other processes must know of a container. It is replaced by rename, so that a
// reader needs no lock, and not synced: /run does not outlive the processes that it tells of.
type record struct {
	Version     string                   `json:"ociVersion"`
	ID          string                   `json:"id"`
	Status      runspec.ContainerState   `json:"status"` // as far as the writer knew; see status
	Pid         int                      `json:"pid,omitempty"`
	Started     uint64                   `json:"started,omitempty"` // starttime of /proc/PID/stat: pids are used again
	Bundle      string                   `json:"bundle"`
	Rootfs      string                   `json:"rootfs,omitempty"`
	Created     time.Time                `json:"created"`
	Owner       int                      `json:"owner"`
	Cgroup      string                   `json:"cgroup,omitempty"`  // our path in every hierarchy; "" without one
	Scope       string                   `json:"scope,omitempty"`   // systemd's unit
	Manager     string                   `json:"manager,omitempty"` // runtime directory of the user whose manager has it
	Terminal    bool                     `json:"terminal,omitempty"`
	NoKeyring   bool                     `json:"noNewKeyring,omitempty"`
	Namespaces  []runspec.LinuxNamespace `json:"namespaces,omitempty"`
	Annotations map[string]string        `json:"annotations,omitempty"`
	Hooks       *runspec.Hooks           `json:"hooks,omitempty"` // those that are still to be run
	Process     *runspec.Process         `json:"process,omitempty"`
	Linux       *runspec.Linux           `json:"linux,omitempty"` // what exec needs of it; see kept
	RDT         *rdtRecord               `json:"rdt,omitempty"`
	Flags       uint32                   `json:"filterFlags,omitempty"` // of the filter in "filter"
	Steps       []string                 `json:"steps,omitempty"`       // names of the operations after the gate
	FirstStep   int                      `json:"firstStep,omitempty"`
}

// kept is the part of linux that also holds for processes which join the container later; nil when there is none.
func kept(l *runspec.Linux) *runspec.Linux {
	k := &runspec.Linux{Personality: l.Personality, MemoryPolicy: l.MemoryPolicy, MountLabel: l.MountLabel}
	if l.Seccomp != nil && l.Seccomp.ListenerPath != "" { // the filter is kept compiled
		k.Seccomp = &runspec.LinuxSeccomp{ListenerPath: l.Seccomp.ListenerPath, ListenerMetadata: l.Seccomp.ListenerMetadata}
	}
	if k.Personality == nil && k.MemoryPolicy == nil && k.Seccomp == nil && k.MountLabel == "" {
		return nil
	}
	return k
}

const (
	recordFile = "state.json"
	filterFile = "filter"
	gateFile   = "gate"
	reportFile = "report"
	placeDir   = "rootfs" // a mount point, only of containers without a mount namespace of their own
)

func checkID(id string) error {
	ok := id != "" && len(id) <= 255 && id != "." && id != ".."
	for _, r := range []byte(id) {
		ok = ok && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.IndexByte("_+-.", r) >= 0)
	}
	if !ok {
		return &errdefs.Error{
			Op: "use the container id", What: strconv.Quote(id), Kind: errdefs.InvalidArgument,
			Why: "an id is 1 to 255 letters, digits and _ + - .",
		}
	}
	return nil
}

// lock takes the container's lock and returns the directory's handle; closing it unlocks.
func lock(root, id string, create bool) (int, error) {
	if err := checkID(id); err != nil {
		return -1, err
	}
	dir := path.Join(root, id)
	if create {
		if err := os.MkdirAll(root, 0o700); err != nil {
			return -1, err
		}
		if err := unix.Mkdir(dir, 0o700); err == unix.EEXIST {
			return -1, &errdefs.Error{
				Op: "create container", What: id, Kind: errdefs.AlreadyExists, Why: "a container with this ID already exists",
				Fix: "use another id, or remove it with: onggi-runtime delete --force " + id,
			}
		} else if err != nil {
			return -1, &errdefs.Error{Op: "create container", What: id, Err: err}
		}
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err == unix.ENOENT {
		return -1, notFound(id)
	}
	if err != nil {
		return -1, err
	}
	for {
		if err = unix.Flock(fd, unix.LOCK_EX); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	var st unix.Stat_t
	if unix.Fstat(fd, &st) == nil && st.Nlink == 0 { // deleted while we waited
		_ = unix.Close(fd)
		return -1, notFound(id)
	}
	return fd, nil
}

func notFound(id string) error {
	return &errdefs.Error{Op: "find container", What: id, Kind: errdefs.NotFound, Why: "container does not exist"}
}

func readRecord(root, id string) (*record, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(path.Join(root, id, recordFile))
	if os.IsNotExist(err) {
		if _, e := os.Stat(path.Join(root, id)); e == nil { // its creator was killed at its first step
			return &record{ID: id, Status: runspec.StateCreating, Version: runspec.Version}, nil
		}
		return nil, notFound(id)
	}
	if err != nil {
		return nil, err
	}
	r, err := decodeRecord(b)
	if err != nil {
		return nil, &errdefs.Error{
			Op: "read the state of", What: id, Kind: errdefs.Corrupt, Err: err,
			Fix: "remove the container with: onggi-runtime delete --force " + id,
		}
	}
	return r, nil
}

func (r *record) write(root string) error {
	b, err := r.encode()
	if err != nil {
		return err
	}
	return replace(path.Join(root, r.ID, recordFile), b)
}

func replace(name string, b []byte) error {
	tmp := name + ".new"
	fd, err := unix.Open(tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return &os.PathError{Op: "open", Path: tmp, Err: err}
	}
	err = writeAll(fd, b)
	_ = unix.Close(fd)
	if err == nil {
		err = unix.Rename(tmp, name)
	}
	if err != nil {
		return &os.PathError{Op: "write", Path: name, Err: err}
	}
	return nil
}

// startTime returns when the process was started, in clock ticks since boot, and its state letter; 0 when it is gone
// (proc_pid_stat(5), fields 22 and 3).
func startTime(pid int) (ticks uint64, state byte) {
	if pid <= 0 {
		return 0, 0
	}
	var buf [1024]byte
	fd, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/stat", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, 0
	}
	n, err := unix.Read(fd, buf[:])
	_ = unix.Close(fd)
	if err != nil || n <= 0 {
		return 0, 0
	}
	s := string(buf[:n])
	if i := strings.LastIndexByte(s, ')'); i >= 0 && i+2 < len(s) {
		f := strings.Fields(s[i+2:])
		if len(f) > 19 {
			t, _ := strconv.ParseUint(f[19], 10, 64)
			return t, f[0][0]
		}
	}
	return 0, 0
}

// alive reports whether the recorded process lives: not gone, not a zombie, and not another one with its pid.
func (r *record) alive() bool {
	t, state := startTime(r.Pid)
	return t != 0 && t == r.Started && state != 'Z' && state != 'X'
}

func (r *record) status() runspec.ContainerState {
	if r.Pid == 0 {
		return runspec.StateCreating
	}
	if !r.alive() {
		return runspec.StateStopped
	}
	return r.Status
}

// State is what `state` prints: the specification's state with what runc adds.
type State struct {
	Version     string                 `json:"ociVersion"`
	ID          string                 `json:"id"`
	Pid         int                    `json:"pid"`
	Status      runspec.ContainerState `json:"status"`
	Bundle      string                 `json:"bundle"`
	Rootfs      string                 `json:"rootfs"`
	Created     time.Time              `json:"created"`
	Annotations map[string]string      `json:"annotations,omitempty"`
	Owner       string                 `json:"owner"`
}

func (r *record) state() State {
	s := State{
		Version: r.Version, ID: r.ID, Pid: r.Pid, Status: r.status(), Bundle: r.Bundle, Rootfs: r.Rootfs,
		Created: r.Created, Annotations: r.Annotations,
	}
	if s.Status == runspec.StateStopped {
		s.Pid = 0
	}
	if r.Owner == 0 {
		s.Owner = "root"
	} else {
		s.Owner = "#" + strconv.Itoa(r.Owner)
	}
	return s
}

// List returns the states of all containers under root, by id.
func List(root string) ([]State, error) {
	es, err := os.ReadDir(root)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []State
	for _, e := range es {
		if !e.IsDir() || checkID(e.Name()) != nil {
			continue
		}
		if r, err := readRecord(root, e.Name()); err == nil {
			c := &Container{root: root, record: r, pid: r.Pid, control: -1, report: -1}
			out = append(out, c.State())
			if c.group != nil {
				_ = c.group.Close()
			}
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].ID < out[j].ID })
	return out, nil
}

// removeState takes the container's directory away. The record goes last but for the directory itself.
func removeState(root, id string) error {
	dir := path.Join(root, id)
	for _, f := range [...]string{gateFile, reportFile, filterFile, notifyDir + "/" + notifySocket, "init", filterFile + ".new", recordFile + ".new", recordFile} {
		if err := unix.Unlink(path.Join(dir, f)); err != nil && err != unix.ENOENT && err != unix.ENOTDIR {
			return &os.PathError{Op: "unlink", Path: path.Join(dir, f), Err: err}
		}
	}
	for _, d := range [...]string{path.Join(dir, notifyDir), dir} {
		if err := unix.Rmdir(d); err != nil && err != unix.ENOENT && !(err == unix.ENOTDIR && d != dir) {
			return &os.PathError{Op: "rmdir", Path: d, Err: err}
		}
	}
	return nil
}
