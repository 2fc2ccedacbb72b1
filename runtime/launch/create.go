package launch

//lint:file-ignore SA1019 Prestart is deprecated, but engines still send it

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path"
	"sort"
	"strconv"
	"time"

	"github.com/onggi/onggi/cgroup"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/runtime/plan"
	"github.com/onggi/onggi/runtime/seccomp"
	"github.com/onggi/onggi/undo"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// creation is one Create in progress.
type creation struct {
	Options
	c    *Container
	spec *runspec.Spec
	in   *plan.Input
	plan *plan.Plan
	dir  string

	closers   []int // the child's ends and what else only the child needs
	lock      int
	reportW   int
	controlR  int
	gate      int // detached: the FIFO
	console   int // what the image sends the terminal to
	consoleR  int
	joined    []plan.Join // open namespaces of the spec
	netns     int         // the joined network namespace that devices are moved to, or -1
	newUser   bool
	ours      map[string]bool // types of joined namespaces that are this process's own
	group     *cgroup.Group
	grouped   chan error
	groupErr  error
	groupOnce bool
	// groupWarning is told by waitGroup: the group is made in a goroutine of its own.
	groupWarning string
	groupPath    string
	scope        *cgroup.Scope // with systemd's driver
	alone        bool          // there is no group: this user may make none
	early        bool          // the image is started while its group is being made
	born         chan *os.File // the group's cgroup2 directory, as soon as it is there
	isBorn       bool
	dry          bool        // only the plan is wanted
	hooked       bool        // the first hook has been run
	devices      *netDevices // those that were moved, until Create is done
	treeFDs      map[int]int // index in spec.Mounts -> prepared tree
}

// Create makes the container up to the point where its command would be executed. On failure nothing is left. Errors
// name the operation and the path or value; a command that does not exist is reported by Start.
func Create(ctx context.Context, o Options) (_ *Container, err error) {
	steps := undo.New("create")
	k := &creation{
		Options: o, spec: o.Spec, lock: -1, netns: -1, reportW: -1, controlR: -1, gate: -1, console: -1, consoleR: -1,
		dir: path.Join(o.Root, o.ID),
	}
	defer k.closeDevices() // after they are taken back
	defer steps.Undo(&err)
	k.c = &Container{root: o.Root, control: -1, report: -1, steps: steps, born: monotonic()}
	defer k.close()

	if err := steps.Do("spec", k.load, nil); err != nil {
		return nil, err
	}
	if err := steps.Do("record", k.record, k.c.unrecord); err != nil {
		return nil, err
	}
	steps.Push("create.poststop", func() error { // last but for the record, as delete does it
		if k.hooked {
			k.c.poststop()
		}
		return nil
	})
	if k.scope != nil {
		k.startScope(steps)
	} else {
		k.startGroup(steps)
	}
	if err := steps.Do("descriptors", k.open, nil); err != nil {
		return nil, err
	}
	if err := steps.Do("plan", k.compile, nil); err != nil {
		return nil, err
	}
	if !k.early {
		if err := steps.Do("cgroup", k.waitGroup, nil); err != nil {
			return nil, err
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := steps.Do("process", k.spawn, k.c.kill); err != nil {
		if k.early {
			// The process is cloned into a group that is being made: if that has failed, it is the reason.
			if g := k.waitGroup(); g != nil {
				return nil, g
			}
		}
		return nil, err
	}
	if k.early {
		if err := steps.Do("cgroup", k.waitGroup, nil); err != nil {
			return nil, err
		}
	}
	if err := steps.Do("identity", k.identity, nil); err != nil {
		return nil, err
	}
	if err := steps.Do("adopt", k.adopt, nil); err != nil {
		return nil, err
	}
	if len(k.spec.Linux.NetDevices) > 0 {
		if err := steps.Do("devices", k.moveDevices, k.takeBackDevices); err != nil {
			return nil, err
		}
	}
	if k.spec.Linux.IntelRdt != nil {
		steps.Push("create.resctrl", func() error { return removeResctrl(k.c.record.RDT) })
		if err := steps.Do("resctrl", k.joinResctrl, nil); err != nil {
			return nil, err
		}
	}
	if err := steps.Do("release", k.release, nil); err != nil {
		return nil, err
	}
	if err := steps.Do("ready", func() error { return k.ready(ctx) }, nil); err != nil {
		return nil, err
	}
	steps.Done()
	return k.c, nil
}

func (k *creation) warn(s string) {
	if k.Warn != nil {
		k.Warn(s)
	}
}

func (k *creation) keep(fd int) int {
	k.closers = append(k.closers, fd)
	return fd
}

func (k *creation) close() {
	k.closeChildEnds()
	for _, fd := range [...]int{k.consoleR, k.lock, k.netns} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// load reads and checks the spec before anything is made.
func (k *creation) load() (err error) {
	if err := checkID(k.ID); err != nil {
		return err
	}
	if k.spec == nil {
		if k.spec, err = LoadSpec(k.Bundle); err != nil {
			return err
		}
	}
	if err := plan.Supported(k.spec); err != nil {
		return err
	}
	k.shared()
	if k.Notify {
		k.addNotify()
	}
	for _, n := range k.spec.Linux.Namespaces {
		if n.Type == runspec.UserNamespace && n.Path == "" {
			k.newUser = true
		}
	}
	return k.findGroup()
}

// shared looks which of the namespaces that are to be joined are this process's own: what is set in them would be set
// for the host. The own user namespace cannot be joined (setns(2), EINVAL) and needs not be: it is left out.
func (k *creation) shared() {
	for i, n := range k.spec.Linux.Namespaces {
		var theirs, own unix.Stat_t
		if n.Path == "" || unix.Stat(n.Path, &theirs) != nil || unix.Stat("/proc/self/ns/"+namespaceFile(n.Type), &own) != nil ||
			theirs.Dev != own.Dev || theirs.Ino != own.Ino {
			continue
		}
		if n.Type != runspec.UserNamespace {
			if k.ours == nil {
				k.ours = map[string]bool{}
			}
			k.ours[string(n.Type)] = true
			continue
		}
		s, l := *k.spec, *k.spec.Linux
		l.Namespaces = append(l.Namespaces[:i:i], l.Namespaces[i+1:]...)
		s.Linux = &l
		k.spec = &s
		k.shared()
		return
	}
}

// namespaceFile is the name of a namespace in /proc/PID/ns.
func namespaceFile(t runspec.LinuxNamespaceType) string {
	switch t {
	case runspec.NetworkNamespace:
		return "net"
	case runspec.MountNamespace:
		return "mnt"
	}
	return string(t)
}

// rootfs is the absolute path of root.path.
func (k *creation) rootfs() string {
	if len(k.Rootfs) > 0 {
		return ""
	}
	p := k.spec.Root.Path
	if !path.IsAbs(p) {
		p = path.Join(k.Bundle, p)
	}
	return p
}

// record writes what Delete must know before there is anything to delete.
func (k *creation) record() error {
	fd, err := lock(k.Root, k.ID, true)
	if err != nil {
		return err
	}
	k.lock = fd
	r := &record{
		Version: k.spec.Version, ID: k.ID, Status: runspec.StateCreating, Bundle: k.Bundle, Rootfs: k.rootfs(),
		Created: time.Now().UTC(), Owner: os.Getuid(), Cgroup: k.groupPath, Terminal: k.spec.Process.Terminal, NoKeyring: k.NoNewKeyring,
		Namespaces: k.spec.Linux.Namespaces, Annotations: k.spec.Annotations, Process: k.spec.Process, Linux: kept(k.spec.Linux),
	}
	if h := k.spec.Hooks; h != nil && len(h.StartContainer)+len(h.Poststart)+len(h.Poststop) > 0 {
		r.Hooks = &runspec.Hooks{StartContainer: h.StartContainer, Poststart: h.Poststart, Poststop: h.Poststop}
	}
	if k.scope != nil {
		r.Scope, r.Manager = k.scope.Unit, k.scope.Runtime
	}
	k.c.record = r
	if !plan.OwnMounts(k.spec) {
		err = unix.Mkdir(k.place(), 0o700)
	}
	if err == nil && k.Notify {
		err = k.makeNotify()
	}
	if err == nil {
		err = r.write(k.Root)
	}
	if err != nil {
		_ = k.c.unrecord()
	}
	return err
}

// place is where the root is attached when the mount namespace is not the container's own.
func (k *creation) place() string { return path.Join(k.dir, placeDir) }

// startGroup makes the control group while the plan is compiled.
func (k *creation) startGroup(steps *undo.Stack) {
	k.grouped = make(chan error, 1)
	k.born = make(chan *os.File, 1)
	done := make(chan struct{})
	steps.Push("create.cgroup", func() error {
		<-done
		if k.group == nil && k.isBorn { // its making failed while the process, which is gone by now, lived in it
			if l, err := layout(); err == nil {
				k.group, _ = cgroup.Open(l, k.groupPath)
			}
		}
		if k.group == nil {
			return nil
		}
		defer k.group.Close() //nolint:errcheck // handles
		return k.group.Remove()
	})
	go func() {
		k.grouped <- k.makeGroup()
		close(k.born)
		close(done)
	}()
}

func (k *creation) makeGroup() error {
	l, err := layout()
	if err != nil {
		return err
	}
	g, err := cgroup.CreateFrom(l, k.groupPath, func(dir *os.File) {
		k.isBorn = dir != nil
		k.born <- dir
	})
	if err != nil {
		k.alone, err = k.withoutGroup(err)
		return err
	}
	k.group = g
	r, devices := withDefaultDevices(k.spec.Linux.Resources)
	if err := g.Apply(r); err != nil {
		return err
	}
	if err := k.restrict(devices); err != nil {
		return err
	}
	return k.delegate()
}

// withDefaultDevices takes the device rules out of r and completes them: first nothing is allowed, also where the spec
// has no rule at all; then come the spec's; and at last what every container has, as runc does.
func withDefaultDevices(r *runspec.LinuxResources) (*runspec.LinuxResources, []runspec.LinuxDeviceCgroup) {
	devices := []runspec.LinuxDeviceCgroup{{Access: "rwm"}}
	if r == nil {
		return nil, append(devices, cgroup.DefaultDevices()...)
	}
	c := *r
	c.Devices = nil
	return &c, append(append(devices, r.Devices...), cgroup.DefaultDevices()...)
}

func (k *creation) waitGroup() error {
	if !k.groupOnce {
		if k.scope != nil {
			k.grouped <- k.makeScope()
		}
		k.groupOnce, k.groupErr = true, <-k.grouped
	}
	if k.groupErr == nil {
		k.c.group = k.group
	}
	if k.groupWarning != "" {
		k.warn(k.groupWarning)
		k.groupWarning = ""
	}
	if k.alone {
		k.c.record.Cgroup = ""
	}
	return k.groupErr
}

// open opens what the image is started with.
func (k *creation) open() error {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	k.controlR, k.c.control = k.keep(p[0]), p[1]
	if k.Detached {
		if err := k.openFifos(); err != nil {
			return err
		}
	} else {
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			return err
		}
		k.c.report, k.reportW = p[0], k.keep(p[1])
	}
	if k.spec.Process.Terminal && !k.Replica {
		if k.ConsoleSocket != nil {
			k.console = int(k.ConsoleSocket.Fd())
		} else {
			sp, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			k.consoleR, k.console = sp[0], k.keep(sp[1])
		}
	}
	for _, n := range k.spec.Linux.Namespaces {
		if n.Path == "" {
			continue
		}
		fd, err := unix.Open(n.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return &errdefs.Error{Op: "open", What: string(n.Type) + " namespace " + n.Path, Err: err}
		}
		if n.Type == runspec.NetworkNamespace && len(k.spec.Linux.NetDevices) > 0 {
			k.netns = fd // needed longer than until the process has it
		} else {
			k.keep(fd)
		}
		if t, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE); err != nil || uint64(t) != plan.NamespaceFlag(string(n.Type)) {
			return &errdefs.Error{
				Op: "join", What: string(n.Type) + " namespace " + n.Path, Kind: errdefs.InvalidArgument,
				Why: "this file is not a namespace of that type",
			}
		}
		k.joined = append(k.joined, plan.Join{Type: string(n.Type), FD: fd})
	}
	return nil
}

// openFifos makes the two ways by which another process starts the container: the child holds the gate open for
// reading and writing, so that it waits however long and sees no end of file.
func (k *creation) openFifos() error {
	for _, f := range [...]string{gateFile, reportFile} {
		if err := unix.Mkfifo(path.Join(k.dir, f), 0o600); err != nil {
			return &os.PathError{Op: "mkfifo", Path: path.Join(k.dir, f), Err: err}
		}
	}
	var err error
	if k.gate, err = unix.Open(path.Join(k.dir, gateFile), unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0); err != nil {
		return err
	}
	k.keep(k.gate)
	if k.c.report, err = unix.Open(path.Join(k.dir, reportFile), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0); err != nil {
		return err
	}
	if k.reportW, err = unix.Open(path.Join(k.dir, reportFile), unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0); err != nil {
		return err
	}
	k.keep(k.reportW)
	return unix.SetNonblock(k.c.report, false)
}

// compile makes the plan. The numbers of the image's descriptors follow the user's: 3+Preserve is Report, and so on.
func (k *creation) compile() error {
	l, err := layout()
	if err != nil {
		return err
	}
	dirs, err := k.groupDirs(l)
	if err != nil {
		return err
	}
	k.in = &plan.Input{
		Spec: k.spec, ID: k.ID, Root: k.rootfs(), Bundle: k.Bundle, Rootfs: k.Options.Rootfs, Facts: facts(k.spec, k.Bundle, l, dirs),
		Init: k.Init, Replica: k.Replica, NoPivot: k.NoPivot, NoNewKeyring: k.NoNewKeyring, Timing: k.Timing,
	}
	k.in.Facts.Shared, k.in.Place = k.ours, k.place()
	switch held := k.in.Facts.Held; {
	case k.newUser && held&(1<<unix.CAP_SETGID) == 0:
		k.in.Facts.NoSetgroups = onlyOwn(k.spec.Linux.GIDMappings)
	case k.newUser || k.in.Facts.Nested:
		k.in.Facts.NoSetgroups = setgroupsDenied("self")
	}
	if !hasHome(k.spec.Process.Env) && len(k.Options.Rootfs) == 0 {
		if root, err := unix.Open(k.in.Root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err == nil {
			k.in.Home = home(root, k.spec.Process.User.UID)
			_ = unix.Close(root)
		}
	}
	first := 3 + len(k.Preserve)
	f := &k.in.Fds
	*f = plan.Fds{Preserve: len(k.Preserve), Report: first, Control: first + 1, Gate: -1, Console: first + 2}
	next := first + 3
	switch {
	case k.Detached:
		f.Gate = next
		next++
	case !k.Ungated || k.hooksAtStart():
		f.Gate = f.Control
	}
	for _, j := range k.joined {
		if j.Type == "pid" || k.newUser {
			continue // joined by the thread that clones
		}
		f.Join = append(f.Join, plan.Join{Type: j.Type, FD: next})
		next++
	}
	switch {
	case k.scope != nil: // the process is moved
	case k.early:
		for _, dir := range dirs {
			k.in.TaskFiles = append(k.in.TaskFiles, dir+"/tasks")
		}
		sort.Strings(k.in.TaskFiles)
	case !l.V2: // their number is known before they are: one for each hierarchy
		for range distinct(l.Controllers) {
			f.Tasks = append(f.Tasks, next)
			next++
		}
	}
	if f.Trees, err = k.trees(next); err != nil {
		return err
	}
	if k.plan, err = plan.Build(k.in); err != nil {
		return err
	}
	k.c.plan = k.plan
	for _, w := range append(k.plan.Warnings, obsolete(l, k.spec.Linux.Resources)...) {
		k.warn(w)
	}
	return nil
}

// groupDirs says where the group is in each v1 hierarchy. For an absolute path that needs no waiting.
func (k *creation) groupDirs(l *cgroup.Layout) (map[string]string, error) {
	if l.V2 {
		return nil, nil
	}
	dirs := map[string]string{}
	if path.IsAbs(k.groupPath) {
		for _, point := range l.Controllers {
			dirs[point] = path.Join(point, k.groupPath)
		}
		return dirs, nil
	}
	if k.dry {
		for _, point := range l.Controllers {
			dirs[point] = path.Join(point, "(own group)", k.groupPath)
		}
		return dirs, nil
	}
	if err := k.waitGroup(); err != nil {
		return nil, err
	}
	if k.alone {
		return dirs, nil
	}
	for name, dir := range k.group.Paths() {
		if point := l.Controllers[name]; point != "" {
			dirs[point] = dir
		}
	}
	return dirs, nil
}

func (k *creation) hooksAtStart() bool {
	h := k.spec.Hooks
	return h != nil && len(h.StartContainer) > 0
}

func distinct(m map[string]string) map[string]bool {
	d := map[string]bool{}
	for _, v := range m {
		d[v] = true
	}
	return d
}

// spawn starts the image.
func (k *creation) spawn() error {
	fds := make([]int, 0, 32)
	null := -1
	devNull := func() (int, error) {
		if null >= 0 {
			return null, nil
		}
		fd, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err == nil {
			null = k.keep(fd)
		}
		return fd, err
	}
	for _, f := range k.Stdio {
		if f != nil {
			fds = append(fds, int(f.Fd()))
			continue
		}
		fd, err := devNull()
		if err != nil {
			return err
		}
		fds = append(fds, fd)
	}
	k.ownStdio()
	for _, f := range k.Preserve {
		fds = append(fds, int(f.Fd()))
	}
	fds = append(fds, k.reportW, k.controlR, k.console)
	if k.Detached {
		fds = append(fds, k.gate)
	}
	a := &spawnArgs{plan: k.plan, dir: k.dir, cgroup: -1, newUser: k.newUser}
	for _, j := range k.joined {
		if j.Type == "pid" || k.newUser {
			a.joins = append(a.joins, j)
		} else {
			fds = append(fds, j.FD)
		}
	}
	var tasks []*os.File
	if !k.early && !k.alone {
		var err error
		if tasks, err = k.group.Tasks(); err != nil {
			return err
		}
	}
	dir, ok := <-k.born
	if !ok { // the group's making failed before
		return k.waitGroup()
	}
	for i := range k.in.Fds.Tasks { // a hierarchy that the group was left out of is joined by writing to /dev/null
		if i < len(tasks) {
			fds = append(fds, int(tasks[i].Fd()))
			continue
		}
		fd, err := devNull()
		if err != nil {
			return err
		}
		fds = append(fds, fd)
	}
	for i := range k.spec.Mounts {
		if fd, ok := k.treeFDs[i]; ok {
			fds = append(fds, fd)
		}
	}
	if dir != nil {
		a.cgroup = int(dir.Fd())
	}
	a.fds = fds
	pid, err := spawn(a)
	k.c.pid = pid
	return err
}

// ownStdio gives pipes to the container's user, so that it can open /dev/stdout again.
func (k *creation) ownStdio() {
	uid := hostID(k.spec.Process.User.UID, k.spec.Linux.UIDMappings)
	for _, f := range k.Stdio {
		var st unix.Stat_t
		if f != nil && unix.Fstat(int(f.Fd()), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFIFO && st.Uid != uid {
			_ = unix.Fchown(int(f.Fd()), int(uid), -1) // a read-only or foreign file system may refuse; then it stays as it is
		}
	}
}

func hostID(id uint32, maps []runspec.LinuxIDMapping) uint32 {
	for _, m := range maps {
		if id >= m.ContainerID && id-m.ContainerID < m.Size {
			return m.HostID + id - m.ContainerID
		}
	}
	return id
}

// identity gives a process in a new user namespace what only its parent may give: id maps, limits, OOM score.
func (k *creation) identity() error {
	if !k.newUser {
		return nil
	}
	if err := writeMaps(k.c.pid, k.spec.Linux.UIDMappings, k.spec.Linux.GIDMappings); err != nil {
		return err
	}
	for _, r := range k.spec.Process.Rlimits {
		n := plan.RlimitNumber(r.Type)
		l := unix.Rlimit{Cur: r.Soft, Max: r.Hard}
		if have, ok := k.in.Facts.Limits[n]; ok && l.Max > have[1] && k.in.Facts.Held&(1<<unix.CAP_SYS_RESOURCE) == 0 {
			l.Max = have[1]
			l.Cur = min(l.Cur, l.Max)
		}
		if err := unix.Prlimit(k.c.pid, n, &l, nil); err != nil {
			return &errdefs.Error{Op: "set limit", What: r.Type, Err: err}
		}
	}
	if p := k.spec.Process.OOMScoreAdj; p != nil && (*p >= k.in.Facts.OOMScoreAdj || k.in.Facts.Held&(1<<unix.CAP_SYS_RESOURCE) != 0) {
		if err := writeFile("/proc/"+strconv.Itoa(k.c.pid)+"/oom_score_adj", strconv.AppendInt(nil, int64(*p), 10)); err != nil {
			return &errdefs.Error{Op: "set", What: "oom_score_adj", Err: err}
		}
	}
	return k.allow(plan.AllowMapped)
}

// writeMaps gives a new user namespace its id maps (user_namespaces(7)); pid is a process in it.
func writeMaps(pid int, uids, gids []runspec.LinuxIDMapping) error {
	for _, m := range [...]struct {
		file, program string
		maps          []runspec.LinuxIDMapping
	}{{"uid_map", "newuidmap", uids}, {"gid_map", "newgidmap", gids}} {
		var b []byte
		for _, e := range m.maps {
			b = strconv.AppendUint(b, uint64(e.ContainerID), 10)
			b = strconv.AppendUint(append(b, ' '), uint64(e.HostID), 10)
			b = strconv.AppendUint(append(b, ' '), uint64(e.Size), 10)
			b = append(b, '\n')
		}
		err := writeFile("/proc/"+strconv.Itoa(pid)+"/"+m.file, b)
		if err == unix.EPERM {
			err = mapByProgram(m.program, pid, m.maps)
		}
		if err != nil {
			return &errdefs.Error{Op: "write", What: m.file + " of the container's user namespace", Err: err}
		}
	}
	return nil
}

// mapByProgram has newuidmap(1) or newgidmap(1) write a map: they are privileged, and permit what /etc/subuid and
// /etc/subgid give to this user. A map of nothing but the own id needs no permission, but for groups only without
// setgroups(2).
func mapByProgram(program string, pid int, maps []runspec.LinuxIDMapping) error {
	proc := "/proc/" + strconv.Itoa(pid)
	if program == "newgidmap" && onlyOwn(maps) {
		if err := writeFile(proc+"/setgroups", []byte("deny")); err != nil {
			return err
		}
		return writeFile(proc+"/gid_map", []byte(strconv.FormatUint(uint64(maps[0].ContainerID), 10)+" "+strconv.Itoa(os.Getegid())+" 1\n"))
	}
	args := []string{program, strconv.Itoa(pid)}
	for _, e := range maps {
		for _, n := range [...]uint32{e.ContainerID, e.HostID, e.Size} {
			args = append(args, strconv.FormatUint(uint64(n), 10))
		}
	}
	where := ""
	for _, dir := range [...]string{"/usr/bin/", "/bin/", "/usr/local/bin/", "/usr/sbin/"} {
		if unix.Access(dir+program, unix.X_OK) == nil {
			where = dir + program
			break
		}
	}
	if where == "" {
		return &errdefs.Error{
			Op: "find", What: program, Kind: errdefs.Unsupported, Why: "without privileges the map can only be written by that program",
			Fix: "install the package uidmap, and give this user ranges in /etc/subuid and /etc/subgid",
		}
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close() //nolint:errcheck // read only
	p, err := os.StartProcess(where, args, &os.ProcAttr{Env: []string{}, Files: []*os.File{nil, w, w}})
	_ = w.Close()
	if err != nil {
		return err
	}
	text := make([]byte, 1024)
	n, _ := r.Read(text)
	if ws := reap(p.Pid); !ws.Exited() || ws.ExitStatus() != 0 {
		return &errdefs.Error{
			Op: "map ids with", What: program, Kind: errdefs.Forbidden, Why: string(bytes.TrimSpace(text[:max(n, 0)])),
			Fix: "compare the maps with this user's ranges in /etc/subuid and /etc/subgid",
		}
	}
	return nil
}

// onlyOwn reports whether a map of groups holds nothing but this process's own.
func onlyOwn(maps []runspec.LinuxIDMapping) bool {
	return len(maps) == 1 && maps[0].Size == 1 && int64(maps[0].HostID) == int64(os.Getegid())
}

// setgroupsDenied says whether setgroups(2) is denied in a process's user namespace.
func setgroupsDenied(pid string) bool {
	b, err := os.ReadFile("/proc/" + pid + "/setgroups")
	return err == nil && bytes.HasPrefix(b, []byte("deny"))
}

func writeFile(name string, b []byte) error {
	fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	_, err = unix.Write(fd, b) // one write: these files take no other
	_ = unix.Close(fd)
	return err
}

func (k *creation) allow(b byte) error { return k.c.allow(b) }

// release records the process and lets it go on. From here on it would outlive this process (Detached): it is on
// record, so Delete finds it.
func (k *creation) release() error {
	r := k.c.record
	r.Pid = k.c.pid
	r.Started, _ = startTime(r.Pid)
	if r.Status = runspec.StateCreated; k.Ungated {
		r.Status = runspec.StateRunning
	}
	if k.Detached {
		r.FirstStep = k.plan.PostGate
		for _, n := range k.plan.Names[k.plan.PostGate:] {
			r.Steps = append(r.Steps, n.String())
		}
	}
	if err := k.keepFilter(k.plan.Filter); err != nil {
		return err
	}
	if err := r.write(k.Root); err != nil {
		return err
	}
	return k.allow(plan.AllowGo)
}

// keepFilter writes the compiled filter down for exec.
func (k *creation) keepFilter(f *seccomp.Program) error {
	if f == nil {
		return nil
	}
	k.c.record.Flags = f.Flags
	b := make([]byte, 0, 8*len(f.Filter))
	for _, i := range f.Filter {
		b = binary.LittleEndian.AppendUint16(b, i.Code)
		b = append(b, i.Jt, i.Jf)
		b = binary.LittleEndian.AppendUint32(b, i.K)
	}
	return replace(path.Join(k.dir, filterFile), b)
}

// closeChildEnds makes an end of file on Report mean that the child has executed its command or is gone.
func (k *creation) closeChildEnds() {
	for _, fd := range k.closers {
		_ = unix.Close(fd)
	}
	k.closers = nil
}

func (k *creation) specJoinsUser() bool {
	for _, n := range k.spec.Linux.Namespaces {
		if n.Type == runspec.UserNamespace {
			return true
		}
	}
	return false
}

func (k *creation) joinsUser() bool {
	for _, j := range k.joined {
		if j.Type == "user" {
			return true
		}
	}
	return false
}

// adopt takes the process that the image cloned inside a joined user namespace as the container's: it is our child too.
func (k *creation) adopt() error {
	k.closeChildEnds()
	if !k.joinsUser() || k.plan.Flags != 0 {
		return nil
	}
	m, err := k.c.read(k.plan)
	if err != nil {
		return err
	}
	if m[0] != plan.MessagePid {
		return &errdefs.Error{Op: "start", What: "the container's process", Kind: errdefs.Internal, Why: "an unexpected message"}
	}
	reap(k.c.pid)
	k.c.pid = int(m[1])
	return nil
}

// moveDevices is done before the container is released: sysctls and hooks may speak of its devices.
func (k *creation) moveDevices() (err error) {
	if k.ours[string(runspec.NetworkNamespace)] {
		return &errdefs.Error{Op: "use the spec's", What: "linux.netDevices", Kind: errdefs.InvalidArgument, Why: "the network namespace is this process's own"}
	}
	// A namespace that is made is the process's from its first instant; one that is joined perhaps not yet.
	inside := "/proc/" + strconv.Itoa(k.c.pid) + "/ns/net"
	if k.netns >= 0 {
		inside = "/proc/self/fd/" + strconv.Itoa(k.netns)
	}
	if k.devices, err = moveDevices(inside, k.spec.Linux.NetDevices); err != nil {
		if e := k.devices.takeBack(); e != nil {
			err = errors.Join(err, e)
		}
	}
	return err
}

// joinResctrl gives the first process its share of caches and memory bandwidth.
func (k *creation) joinResctrl() error {
	r, err := openResctrl()
	if err != nil {
		return err
	}
	defer r.close()
	k.c.record.RDT = &rdtRecord{}
	return r.join(k.spec.Linux.IntelRdt, k.ID, k.c.pid, k.c.record.RDT, func() error { return k.c.record.write(k.Root) })
}

func (k *creation) closeDevices() {
	if k.devices != nil {
		k.devices.close()
	}
}

func (k *creation) takeBackDevices() error { return k.devices.takeBack() }

// ready waits until the container is as far as Create promises.
func (k *creation) ready(ctx context.Context) error {
	h := k.spec.Hooks
	if h != nil && len(h.Prestart)+len(h.CreateRuntime)+len(h.CreateContainer) > 0 { //nolint:staticcheck // deprecated and in use
		m, err := k.c.read(k.plan)
		if err != nil {
			return err
		}
		if m[0] != plan.MessageReady {
			return &errdefs.Error{Op: "create container", What: k.ID, Kind: errdefs.Internal, Why: "an unexpected message"}
		}
		k.hooked = true
		if err := k.c.createHooks(ctx, h); err != nil {
			return err
		}
		if err := k.allow(plan.AllowHooked); err != nil {
			return err
		}
	}
	if k.consoleR >= 0 {
		f, err := receive(k.consoleR)
		if err != nil {
			// the image has said why, if it could
			if _, e := k.c.read(k.plan); e != nil {
				return e
			}
			return &errdefs.Error{Op: "receive", What: "the terminal", Err: err}
		}
		k.c.console = f
	}
	if f := k.plan.Filter; f != nil && f.Notify {
		if err := k.c.serveListener(k.plan, k.c.control, runspec.StateCreating, k.spec.Linux.Seccomp); err != nil {
			return err
		}
	}
	if k.in.Fds.Gate < 0 {
		return nil // Start reads the rest
	}
	m, err := k.c.read(k.plan)
	if err != nil {
		return err
	}
	if m[0] != plan.MessageCreated {
		return &errdefs.Error{Op: "create container", What: k.ID, Kind: errdefs.Internal, Why: "its process ended while it was set up"}
	}
	if k.Detached {
		_ = unix.Close(k.c.control)
		_ = unix.Close(k.c.report)
		k.c.control, k.c.report = -1, -1
	} else if k.Ungated {
		if err := k.c.startHooks(ctx); err != nil {
			return err
		}
		return k.allow(plan.AllowStart)
	}
	return nil
}

// Plan compiles what Create would do for o, and makes nothing. Copies (tmpcopyup) and joined namespaces appear with the
// descriptor numbers that they would have.
func Plan(o Options) (*plan.Plan, error) {
	k := &creation{Options: o, spec: o.Spec, lock: -1, netns: -1, consoleR: -1, dir: path.Join(o.Root, o.ID), c: &Container{}, dry: true}
	defer k.close()
	if err := k.load(); err != nil {
		return nil, err
	}
	for _, n := range k.spec.Linux.Namespaces {
		if n.Path != "" {
			k.joined = append(k.joined, plan.Join{Type: string(n.Type), FD: -1})
		}
	}
	if err := k.compile(); err != nil {
		return nil, err
	}
	return k.plan, nil
}

// LoadBroken is Load for a container whose record cannot be read (cause), so that it can be deleted by force.
func LoadBroken(root, id string, cause error) (*Container, error) {
	if !errdefs.Is(cause, errdefs.Corrupt) {
		return nil, cause
	}
	return &Container{root: root, record: &record{ID: id, Cgroup: "/" + id}, control: -1, report: -1, steps: undo.New("")}, nil
}
