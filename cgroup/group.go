package cgroup

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/undo"
)

// removeWait is how long Remove waits for processes that are dying. A process that holds much memory or sits in an
// interruptible wait of a network file system needs this long at most; one in an uninterruptible wait is reported.
const removeWait = 5 * time.Second

// Group is one control group: a directory in each hierarchy.
type Group struct {
	l       *Layout
	path    string // as the caller named it, cleaned
	dirs    []dir  // parallel to l.hierarchies
	skipped []Skip // what Apply could leave out (devices in a user namespace)
	tasks   []*os.File
	v2dir   *os.File
	scope   *Scope // nil without systemd's driver
}

// dir is the group's directory in one hierarchy.
type dir struct {
	h           *hierarchy
	path        string // absolute
	fd          int    // O_PATH handle, -1 when there is none
	why         error  // why there is none
	made        bool   // by this Create: it has no limits and programs yet
	controllers []string
	lacks       []lack // v2 controllers that could not be enabled on the way
}

// lack says why a v2 controller is not there.
type lack struct {
	controller, at string
	err            error
}

// Skip is a hierarchy (v1) or a controller (v2) in which the group could not be made: nothing is limited or counted
// there.
type Skip struct {
	Controller string
	Why        error
}

// cleanPath checks a group path. A path with ".." would leave the place that it names.
func cleanPath(path string) (string, error) {
	bad := func(why string) error {
		return &errdefs.Error{
			Op: "use control group path", What: strconv.Quote(path), Kind: errdefs.InvalidArgument, Why: why,
			Fix: `set linux.cgroupsPath to something like "/onggi/ID"`,
		}
	}
	if len(path) >= 4096 {
		path = path[:40]
		return "", bad("it is longer than 4095 bytes")
	}
	var out []string
	for c := range strings.SplitSeq(path, "/") {
		switch {
		case c == "" || c == ".":
		case c == "..":
			return "", bad(`".." is not allowed`)
		case len(c) > 255:
			return "", bad("a component is longer than 255 bytes")
		case strings.ContainsAny(c, "\x00\n"): // the kernel refuses a newline, for /proc/PID/cgroup's sake
			return "", bad("it has a newline or a zero byte")
		default:
			out = append(out, c)
		}
	}
	if len(out) == 0 {
		return "", bad("it names the root group")
	}
	clean := strings.Join(out, "/")
	if strings.HasPrefix(path, "/") {
		clean = "/" + clean
	}
	return clean, nil
}

// Create makes the group at path ("/onggi/<id>", relative to the hierarchy's root, or to the caller's own group when
// it does not begin with a slash) in every hierarchy, enabling controllers on the way (v2 subtree_control). A group
// that exists and has processes is an error of kind Conflict; an empty one is taken over. A hierarchy that cannot be
// written is left out (Skipped); when none can, that is an error of kind Forbidden. On failure nothing stays but what
// was there before.
func Create(l *Layout, path string) (g *Group, err error) { return CreateFrom(l, path, nil) }

// CreateFrom is Create that makes the cgroup2 directory first, if the layout has one, and hands it to born (nil when
// there is none or it cannot be written) before it makes the others: a process may be cloned into it meanwhile. The
// directory belongs to the group. When a later step fails, a directory in which a process lives already stays: the
// caller ends the process and removes the group by Open.
func CreateFrom(l *Layout, path string, born func(dir *os.File)) (g *Group, err error) {
	clean, err := cleanPath(path)
	if err != nil {
		return nil, err
	}
	g = &Group{l: l, path: clean, dirs: make([]dir, len(l.hierarchies))}
	s := undo.New("cgroup")
	defer func() {
		s.Undo(&err)
		if err != nil {
			_ = g.Close()
			g = nil
		}
	}()
	usable := 0
	order := make([]int, 0, len(l.hierarchies)) // cgroup2 first
	for i := range l.hierarchies {
		if l.hierarchies[i].v2 {
			order = append(order, i)
		}
	}
	for i := range l.hierarchies {
		if !l.hierarchies[i].v2 {
			order = append(order, i)
		}
		g.dirs[i] = dir{h: &l.hierarchies[i], fd: -1}
	}
	for _, i := range order {
		h := &l.hierarchies[i]
		if born != nil && !h.v2 {
			born(g.Dir())
			born = nil
		}
		d := &g.dirs[i]
		rel, err := h.place(clean)
		if err != nil {
			d.why = err
			continue
		}
		d.path = h.mount + rel
		var made []string
		err = s.Do("create."+h.label(), func() error {
			var err error
			made, err = d.create()
			return err
		}, func() error { return removeMade(made) })
		if err != nil {
			_ = removeMade(made)
			if unwritable(err) {
				d.why = err
				d.close()
				continue
			}
			return nil, err
		}
		usable++
	}
	if born != nil {
		born(g.Dir())
	}
	if usable == 0 {
		var whys []error
		for i := range g.dirs {
			whys = append(whys, g.dirs[i].why)
		}
		return nil, &errdefs.Error{
			Op: "create control group", What: clean, Kind: errdefs.Forbidden,
			Why: "no cgroup hierarchy can be written here", Err: errors.Join(whys...),
			Fix: "run as root, or have a cgroup delegated to this user (systemd: Delegate=yes)",
		}
	}
	return g, nil
}

// unwritable are the errors of a hierarchy that belongs to somebody else.
func unwritable(err error) bool {
	return errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM)
}

// removeMade takes directories away in reverse. A parent that another process has begun to use meanwhile stays.
func removeMade(made []string) error {
	for i := len(made) - 1; i >= 0; i-- {
		err := unix.Rmdir(made[i])
		if err != nil && err != unix.ENOENT && !(err == unix.EBUSY && i < len(made)-1) {
			return &errdefs.Error{Op: "remove control group", What: made[i], Err: err}
		}
	}
	return nil
}

// create makes d.path and opens it; made lists what was not there before, also on failure.
func (d *dir) create() (made []string, err error) {
	fail := func(err error) ([]string, error) {
		return made, &errdefs.Error{Op: "create control group", What: d.path, Err: err}
	}
	existed := false
	for try := 0; ; try++ {
		err = unix.Mkdir(d.path, 0o755)
		if err == unix.ENOENT && try < 5 { // more than once: another process may remove an empty parent
			var parents []string
			parents, err = d.parents()
			made = append(made, parents...)
			if err == nil {
				continue
			}
		}
		break
	}
	switch err {
	case nil:
		made = append(made, d.path)
		d.made = true
	case unix.EEXIST:
		existed = true
	default:
		return fail(err)
	}
	if d.fd, err = unix.Open(d.path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return fail(err)
	}
	if existed {
		if err := d.mustBeIdle(); err != nil {
			return made, err
		}
	}
	if d.h.v2 {
		if err := d.enable(); err != nil {
			return made, err
		}
		return made, nil
	}
	if d.has("cpuset") {
		if err := inheritCpuset(d.h.mount, d.path[len(d.h.mount):]); err != nil {
			return made, err
		}
	}
	return made, nil
}

// has reports whether a v1 hierarchy carries the controller.
func (d *dir) has(controller string) bool {
	for _, n := range d.h.names {
		if n == controller {
			return true
		}
	}
	return false
}

// parents makes the missing directories between the mount and d.path and returns them.
func (d *dir) parents() (made []string, err error) {
	cpuset := !d.h.v2 && d.has("cpuset")
	for i := len(d.h.mount) + 1; i < len(d.path); i++ {
		if d.path[i] != '/' {
			continue
		}
		p := d.path[:i]
		err := unix.Mkdir(p, 0o755)
		if err == unix.EEXIST {
			continue
		}
		if err != nil {
			return made, err
		}
		made = append(made, p)
		if cpuset {
			if err := inheritCpuset(d.h.mount, p[len(d.h.mount):]); err != nil {
				return made, err
			}
			// From here on the kernel fills the children of this group, which is ours, by itself: two writes to a cpuset
			// rebuild the scheduler's domains and are the dearest of all (cgroup-v1/cpusets.rst, cgroup.clone_children).
			fd, err := unix.Open(p, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				return made, err
			}
			err = writeAt(fd, "cgroup.clone_children", "1")
			_ = unix.Close(fd)
			if err != nil {
				return made, err
			}
		}
	}
	return made, nil
}

// inheritCpuset fills cpuset.cpus and cpuset.mems of rel (below mount) and of its parents from above where they are
// empty: no process can join an empty v1 cpuset.
func inheritCpuset(mount, rel string) error {
	fd, err := unix.Open(mount+rel, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, file := range [...]string{"cpuset.cpus", "cpuset.mems"} {
		have, err := readAt(fd, file)
		if err != nil {
			return &errdefs.Error{Op: "read", What: mount + rel + "/" + file, Err: err}
		}
		if have != "" {
			continue
		}
		cut := strings.LastIndexByte(rel, '/')
		if cut < 0 {
			return &errdefs.Error{Op: "initialise", What: mount + "/" + file, Kind: errdefs.Unsupported, Why: "the root cpuset is empty"}
		}
		if err := inheritCpuset(mount, rel[:cut]); err != nil {
			return err
		}
		up, err := unix.Open(mount+rel[:cut], unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		value, err := readAt(up, file)
		_ = unix.Close(up)
		if err == nil {
			err = writeAt(fd, file, value)
		}
		if err != nil {
			return &errdefs.Error{Op: "initialise", What: mount + rel + "/" + file, Err: err}
		}
	}
	return nil
}

// mustBeIdle refuses a group that somebody uses: its limits would change under them, and a frozen one would stop the
// newcomer for ever (runtime-spec, "Control groups").
func (d *dir) mustBeIdle() error {
	busy := func(why, fix string) error {
		return &errdefs.Error{Op: "create control group", What: d.path, Kind: errdefs.Conflict, Why: why, Fix: fix}
	}
	procs, err := readAt(d.fd, "cgroup.procs")
	if err == unix.EOPNOTSUPP {
		return busy("it is a threaded group, which holds threads of other processes", "choose another linux.cgroupsPath")
	}
	if err != nil {
		return &errdefs.Error{Op: "read", What: d.path + "/cgroup.procs", Err: err}
	}
	if procs != "" {
		first, _, more := strings.Cut(procs, "\n")
		if more {
			first += " and others"
		}
		return busy("it has processes already (pid "+first+")", "choose another id or linux.cgroupsPath, or remove the container that uses it")
	}
	if d.h.v2 {
		events, err := readAt(d.fd, "cgroup.events")
		if err != nil {
			return &errdefs.Error{Op: "read", What: d.path + "/cgroup.events", Err: err}
		}
		if n, _ := field(events, "populated"); n != 0 {
			return busy("a group below it has processes", "choose another id or linux.cgroupsPath")
		}
		if n, _ := field(events, "frozen"); n != 0 {
			return busy("it is frozen", "thaw it: echo 0 > "+d.path+"/cgroup.freeze")
		}
	} else if d.has("freezer") {
		if state, _ := readAt(d.fd, "freezer.state"); state != "" && state != "THAWED" {
			return busy("it is frozen", "thaw it: echo THAWED > "+d.path+"/freezer.state")
		}
	}
	return nil
}

// enable turns on the hierarchy's controllers in every group between the mount and d (v2 subtree_control, top down).
// What cannot be turned on is kept in d.lacks: it matters only if a limit asks for it.
func (d *dir) enable() error {
	if err := d.readControllers(); err != nil {
		return err
	}
	if len(d.controllers) >= len(d.h.names) {
		return nil
	}
	for i := len(d.h.mount); i < len(d.path); i++ {
		if d.path[i] != '/' {
			continue
		}
		if err := d.enableIn(d.path[:i]); err != nil {
			return err
		}
	}
	if err := d.readControllers(); err != nil {
		return err
	}
	if kind, err := readAt(d.fd, "cgroup.type"); err == nil && kind != "domain" {
		return &errdefs.Error{
			Op: "create control group", What: d.path, Kind: errdefs.Conflict,
			Why: "its type is " + strconv.Quote(kind) + ": a group above it is threaded, and no process can live below that (cgroups(7), thread mode)",
			Fix: "choose a linux.cgroupsPath outside of the threaded subtree",
		}
	}
	return nil
}

func (d *dir) readControllers() error {
	have, err := readAt(d.fd, "cgroup.controllers")
	if err != nil {
		return &errdefs.Error{Op: "read", What: d.path + "/cgroup.controllers", Err: err}
	}
	d.controllers = strings.Fields(have)
	return nil
}

func (d *dir) enableIn(parent string) error {
	fd, err := unix.Open(parent, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &errdefs.Error{Op: "open", What: parent, Err: err}
	}
	defer unix.Close(fd)
	have, err := readAt(fd, "cgroup.controllers")
	if err != nil {
		return &errdefs.Error{Op: "read", What: parent + "/cgroup.controllers", Err: err}
	}
	on, err := readAt(fd, "cgroup.subtree_control")
	if err != nil {
		return &errdefs.Error{Op: "read", What: parent + "/cgroup.subtree_control", Err: err}
	}
	var missing []string
	for _, c := range strings.Fields(have) {
		if !hasWord(on, c) {
			missing = append(missing, c)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	if writeAt(fd, "cgroup.subtree_control", "+"+strings.Join(missing, " +")) == nil {
		return nil
	}
	for _, c := range missing { // the write above is all or nothing
		if err := writeAt(fd, "cgroup.subtree_control", "+"+c); err != nil {
			d.lacks = append(d.lacks, lack{c, parent, err})
		}
	}
	return nil
}

func hasWord(text, word string) bool {
	for w := range strings.FieldsSeq(text) {
		if w == word {
			return true
		}
	}
	return false
}

// explain turns a refusal of subtree_control into the rule behind it.
func (k lack) explain() error {
	e := &errdefs.Error{Op: "enable controller " + k.controller + " in", What: k.at + "/cgroup.subtree_control", Err: k.err}
	switch {
	case errors.Is(k.err, unix.EBUSY):
		e.Kind = errdefs.Conflict
		e.Why = "the group has processes of its own, and cgroup v2 lets a group either hold processes or hand controllers to its children (\"no internal processes\")"
		e.Fix = "move the processes of " + k.at + " into a child group first, or use an absolute linux.cgroupsPath elsewhere"
	case errors.Is(k.err, unix.ENOENT), errors.Is(k.err, unix.EOPNOTSUPP):
		e.Kind = errdefs.Unsupported
		e.Why = "the group is not given this controller by its parent, or is threaded"
	case unwritable(k.err):
		e.Kind = errdefs.Forbidden
		e.Why = "the group belongs to somebody else"
		e.Fix = "have the controller delegated (systemd: Delegate=yes), or run as root"
	}
	return e
}

// Open returns the group at path; NotFound when it is in no hierarchy.
func Open(l *Layout, path string) (*Group, error) {
	clean, err := cleanPath(path)
	if err != nil {
		return nil, err
	}
	g := &Group{l: l, path: clean, dirs: make([]dir, len(l.hierarchies))}
	found := false
	for i := range l.hierarchies {
		d := &g.dirs[i]
		*d = dir{h: &l.hierarchies[i], fd: -1}
		rel, err := d.h.place(clean)
		if err != nil {
			d.why = err
			continue
		}
		d.path = d.h.mount + rel
		fd, err := unix.Open(d.path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			d.why = &errdefs.Error{Op: "open control group", What: d.path, Err: err}
			continue
		}
		d.fd, found = fd, true
	}
	if !found {
		var first error
		if len(g.dirs) > 0 {
			first = g.dirs[0].why
		}
		return nil, &errdefs.Error{Op: "open control group", What: clean, Kind: errdefs.NotFound, Why: "it is in no hierarchy", Err: first}
	}
	return g, nil
}

// Skipped lists where the group is not: hierarchies that could not be written, v2 controllers that could not be enabled.
func (g *Group) Skipped() []Skip {
	out := append([]Skip(nil), g.skipped...)
	for i := range g.dirs {
		d := &g.dirs[i]
		if d.fd < 0 {
			out = append(out, Skip{d.h.label(), d.why})
			continue
		}
		for _, k := range d.lacks {
			if !contains(d.controllers, k.controller) {
				out = append(out, Skip{k.controller, k.explain()})
			}
		}
	}
	return out
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

// Path returns the group's path as it was given, cleaned.
func (g *Group) Path() string { return g.path }

// Dir returns a handle of the v2 directory for CLONE_INTO_CGROUP; nil when the group has none (v1). It belongs to the
// group.
func (g *Group) Dir() *os.File {
	if g.v2dir != nil {
		return g.v2dir
	}
	for i := range g.dirs {
		if d := &g.dirs[i]; d.h.v2 && d.fd >= 0 {
			fd, err := unix.FcntlInt(uintptr(d.fd), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				return nil
			}
			g.v2dir = os.NewFile(uintptr(fd), d.path)
		}
	}
	return g.v2dir
}

// Tasks returns the open v1 tasks files (write-only) for the container process to join by writing "0". They belong to
// the group; on v2 there are none.
func (g *Group) Tasks() ([]*os.File, error) {
	if g.tasks != nil {
		return g.tasks, nil
	}
	tasks := make([]*os.File, 0, len(g.dirs))
	for i := range g.dirs {
		d := &g.dirs[i]
		if d.h.v2 || d.fd < 0 {
			continue
		}
		fd, err := openAt(d.fd, "tasks", unix.O_WRONLY)
		if err != nil {
			for _, f := range tasks {
				_ = f.Close()
			}
			return nil, &errdefs.Error{Op: "open", What: d.path + "/tasks", Err: err}
		}
		tasks = append(tasks, os.NewFile(uintptr(fd), d.path+"/tasks"))
	}
	g.tasks = tasks
	return tasks, nil
}

// Paths returns controller -> absolute directory ("" -> directory of cgroup2). Hierarchies where the group is not are
// left out.
func (g *Group) Paths() map[string]string {
	m := map[string]string{}
	for i := range g.dirs {
		d := &g.dirs[i]
		switch {
		case d.fd < 0:
		case d.h.v2:
			m[""] = d.path
		default:
			for _, n := range d.h.names {
				m[n] = d.path
			}
		}
	}
	return m
}

// Add moves a process into the group (all of its threads). Costs an RCU grace period per hierarchy; see Tasks and Dir
// for the way without.
func (g *Group) Add(pid int) error {
	for i := range g.dirs {
		d := &g.dirs[i]
		if d.fd < 0 {
			continue
		}
		err := writeAt(d.fd, "cgroup.procs", strconv.Itoa(pid))
		for w := waitUpTo(time.Second); err == unix.EINVAL && w.sleep(); {
			// A process that is just being cloned (TASK_NEW) is refused with EINVAL for some microseconds.
			err = writeAt(d.fd, "cgroup.procs", strconv.Itoa(pid))
		}
		if err != nil {
			return d.joinError(pid, err)
		}
	}
	return nil
}

func (d *dir) joinError(pid int, err error) error {
	e := &errdefs.Error{Op: fmt.Sprintf("move process %d into control group", pid), What: d.path, Err: err}
	switch err {
	case unix.ESRCH:
		e.Kind, e.Why = errdefs.NotFound, "the process is gone"
	case unix.EBUSY:
		e.Kind = errdefs.Conflict
		e.Why = "the group hands controllers to its children (cgroup.subtree_control), so it cannot hold processes (cgroup v2, \"no internal processes\")"
		e.Fix = "move the process into one of the groups below it"
	case unix.EOPNOTSUPP:
		e.Kind = errdefs.Conflict
		e.Why = "the group is threaded or below a threaded one (cgroup.type), so it cannot hold processes"
	case unix.EINVAL:
		if d.has("cpu") || d.h.v2 {
			e.Why = "a process with a real-time scheduling policy cannot join a cpu group that has no real-time budget"
			e.Fix = "set linux.resources.cpu.realtimeRuntime, or start the process with an ordinary policy"
		}
	case unix.ENOSPC:
		e.Why = "the group's cpuset is empty"
	}
	return e
}

// Remove removes the group and its descendants' directories, waiting a bounded time for dying processes. Not there is
// not an error; a process that stays is one, of kind Conflict. It kills nothing.
func (g *Group) Remove() error {
	var errs []error
	w := waitUpTo(removeWait)
	if g.scope != nil {
		// Stopping kills, and Remove does not: first whoever is dying is gone.
		for pids, _ := g.Pids(); len(pids) > 0; pids, _ = g.Pids() {
			if !w.sleep() {
				d, _ := g.member()
				return d.stillBusy(unix.EBUSY)
			}
		}
		if err := g.scope.Stop(); err != nil {
			errs = append(errs, err)
		}
	}
	for i := range g.dirs {
		d := &g.dirs[i]
		if d.path == "" || d.fd < 0 && unwritable(d.why) {
			continue
		}
		if err := d.remove(w); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (d *dir) remove(w *backoff) error {
	for {
		err := unix.Rmdir(d.path)
		switch err {
		case nil, unix.ENOENT:
			return nil
		case unix.EBUSY, unix.ENOTEMPTY:
			if e := removeBelow(d.path, 0); e != nil && !errors.Is(e, unix.EBUSY) && !errors.Is(e, unix.ENOENT) {
				return &errdefs.Error{Op: "remove control group", What: d.path, Err: e}
			}
			if unix.Rmdir(d.path) == nil {
				return nil
			}
			if !w.sleep() {
				return d.stillBusy(err)
			}
		default:
			return &errdefs.Error{Op: "remove control group", What: d.path, Err: err}
		}
	}
}

// removeBelow removes the groups below path, deepest first, as far as it can.
func removeBelow(path string, depth int) error {
	if depth > 256 {
		return syscall.ELOOP
	}
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	names, err := children(fd)
	_ = unix.Close(fd)
	for _, n := range names {
		p := path + "/" + n
		e := unix.Rmdir(p)
		if e == unix.EBUSY {
			if e = removeBelow(p, depth+1); e == nil {
				e = unix.Rmdir(p)
			}
		}
		if e != nil && e != unix.ENOENT && err == nil {
			err = e
		}
	}
	return err
}

func (d *dir) stillBusy(err error) error {
	e := &errdefs.Error{
		Op: "remove control group", What: d.path, Kind: errdefs.Conflict, Err: err,
		Why: "processes in it do not die", Fix: "kill them, or wait for what they hang on (state D in ps), and remove again",
	}
	fd, oerr := unix.Open(d.path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if oerr != nil {
		return e
	}
	defer unix.Close(fd)
	if pids, perr := pidsBelow(fd, 0); perr == nil && len(pids) > 0 {
		var b strings.Builder
		for i, p := range pids {
			if i == 8 {
				b.WriteString(" ...")
				break
			}
			b.WriteString(" " + strconv.Itoa(p))
		}
		e.Why = "processes in it do not die: pid" + b.String()
	}
	return e
}

func (d *dir) close() {
	if d.fd >= 0 {
		_ = unix.Close(d.fd)
		d.fd = -1
	}
}

// Close closes the handles. The group stays as it is.
func (g *Group) Close() error {
	if g == nil {
		return nil
	}
	for _, f := range g.tasks {
		_ = f.Close()
	}
	g.tasks = nil
	if g.v2dir != nil {
		_ = g.v2dir.Close()
		g.v2dir = nil
	}
	for i := range g.dirs {
		g.dirs[i].close()
	}
	if g.scope != nil {
		g.scope.Close()
	}
	return nil
}

// Below returns the group whose place in the hierarchies of the named controllers (all of them, when none is named) is
// the existing directory sub below g, and elsewhere g's own: what `exec --cgroup` joins. Close it too. Errors: NotFound
// when there is no such directory, Unsupported for a controller that g has not.
func (g *Group) Below(sub string, controllers ...string) (_ *Group, err error) {
	clean := "."
	if strings.Trim(sub, "/.") != "" || strings.Contains(sub, "..") {
		if clean, err = cleanPath(strings.TrimLeft(sub, "/")); err != nil {
			return nil, err
		}
	}
	for _, c := range controllers {
		if _, err := g.controller(c); err != nil {
			return nil, err
		}
	}
	b := &Group{l: g.l, path: g.path + "/" + clean, dirs: make([]dir, len(g.dirs))}
	defer func() {
		if err != nil {
			_ = b.Close()
		}
	}()
	for i := range g.dirs {
		d := g.dirs[i]
		from := d.fd
		d.fd, d.controllers, d.lacks, d.made = -1, nil, nil, false
		b.dirs[i] = d
		if from < 0 {
			continue
		}
		here := "."
		if len(controllers) == 0 || slices.ContainsFunc(controllers, d.has) {
			here = clean
		}
		fd, err := unix.Openat2(from, here, &unix.OpenHow{
			Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
		})
		if err != nil {
			return nil, &errdefs.Error{Op: "open control group", What: d.path + "/" + here, Err: err}
		}
		b.dirs[i].fd = fd
		if here != "." {
			b.dirs[i].path += "/" + here
		}
	}
	return b, nil
}

// Chown gives the group to a user: its directory and the files that the kernel names in /sys/kernel/cgroup/delegate, so
// that the user can make groups in it and move processes between them, and not change its limits. v2 only; elsewhere
// nothing is done, for v1 cannot be delegated safely.
func (g *Group) Chown(uid int) error {
	for i := range g.dirs {
		d := &g.dirs[i]
		if !d.h.v2 || d.fd < 0 {
			continue
		}
		files := []string{"cgroup.procs", "cgroup.subtree_control", "cgroup.threads"}
		if b, err := os.ReadFile("/sys/kernel/cgroup/delegate"); err == nil {
			files = strings.Fields(string(b))
		}
		fail := func(file string, err error) error {
			return &errdefs.Error{Op: "give control group to user " + strconv.Itoa(uid), What: d.path + file, Err: err}
		}
		if err := unix.Fchownat(d.fd, "", uid, -1, unix.AT_EMPTY_PATH); err != nil {
			return fail("", err)
		}
		for _, f := range files {
			if strings.Contains(f, "/") {
				continue
			}
			if err := unix.Fchownat(d.fd, f, uid, -1, unix.AT_SYMLINK_NOFOLLOW); err != nil && err != unix.ENOENT { // other controllers' files
				return fail("/"+f, err)
			}
		}
	}
	return nil
}
