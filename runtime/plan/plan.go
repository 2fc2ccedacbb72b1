package plan

//lint:file-ignore SA1019 Prestart is deprecated, but engines still send it

import (
	"encoding/binary"
	"path"
	"strconv"
	"strings"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/mount"
	"github.com/onggi/onggi/runtime/seccomp"
	"github.com/onggi/onggi/sys"
	"github.com/onggi/onggi/userns"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Facts are what a plan must know of the host. Build looks at nothing else.
type Facts struct {
	Kernel       [2]int            // release of the kernel
	Held         uint64            // capabilities that this process may give away: permitted and bounding
	LastCap      int               // highest capability the kernel knows
	Limits       map[int][2]uint64 // soft and hard limits of this process, for the resources that the spec names
	OOMScoreAdj  int               // of this process
	Nested       bool              // this process is in a user namespace: no device nodes can be made
	Rootless     bool              // this process is not the host's root: what is hidden from others is from it too
	CgroupV2     bool
	CgroupDirs   map[string]string // v1: mount point of a hierarchy -> directory of the container's group in it
	CgroupNames  map[string]string // v1: controller -> mount point of its hierarchy
	NotDirectory map[string]bool   // bind sources that are not directories
	AppArmor     bool              // the security module is there
	SELinux      bool              // the security module is there
	NoSetgroups  bool              // the container's user namespace denies setgroups(2)
	NoKcore      bool              // the kernel shows no /proc/kcore, to which /dev/core leads
	Shared       map[string]bool   // types of namespaces that are joined by path and are this process's own
}

// Fds are the descriptors that the image is started with; -1 is absent.
type Fds struct {
	Preserve int         // number of descriptors from 3 up that belong to the user
	Report   int         // where messages go
	Control  int         // where permissions come from
	Gate     int         // where the start byte comes from
	Console  int         // socket that gets the terminal's master side
	Tasks    []int       // v1 tasks files to join
	Join     []Join      // namespaces to join
	Trees    map[int]int // index in spec.Mounts -> a prepared, unattached mount: tmpcopyup, and binds with their options set
}

// Join is a namespace to be joined by the image.
type Join struct {
	Type string // as in the spec
	FD   int
}

// Input is everything that Build looks at.
type Input struct {
	Spec   *runspec.Spec
	ID     string
	Root   string        // absolute path of root.path; unused with Rootfs
	Bundle string        // absolute; relative bind sources begin there
	Rootfs []mount.Mount // made inside the container's mount namespace
	Facts  Facts
	Fds    Fds
	Home   string // value of HOME when the environment has none
	// TaskFiles are v1 tasks files that the image opens itself, once it is told that the group is made: the group is
	// made while the image mounts. Fds.Tasks is for those that it may not open (user namespaces).
	TaskFiles []string
	Filter    *seccomp.Program // compiled already; nil: compiled here

	Init         bool
	Replica      bool // descriptor 0 is a terminal made by the caller
	NoPivot      bool
	NoNewKeyring bool
	// Place is an empty directory at which the root is attached when the mount namespace is not the container's own
	// (OwnMounts): the place that can be cleaned up, and that no other container has.
	Place string
	// Chroot is a descriptor of the container's root for exec, where joining its namespaces does not lead there; 0 for none.
	Chroot int
	Timing bool
	// Rejoin: the process is joined to a pid namespace by Fds.Join "all", and goes on in a child that is inside. Without
	// privileges the pid namespace can be joined after its user namespace only, and that only by the image.
	Rejoin bool
}

// Messages on the report descriptor are two words: one of these and a value, or the address of a failed operation and
// its errno.
const (
	MessageReady    = 1 // the container's namespaces and mounts are there; hooks may run; Control continues
	MessageCreated  = 2 // waiting at the gate
	MessagePid      = 4 // the value is the first process's pid: it was cloned inside a joined user namespace
	MessageListener = 5 // the value is the descriptor of the filter's listener in the process; Control continues
	MessageTimes    = 3 // followed by Plan.Times words: nanoseconds of the monotonic clock
)

// Bytes on the control and gate descriptors: a permission each.
const (
	AllowMapped   = 'm' // the user namespace's id maps are written
	AllowGo       = 'g' // the container is recorded and its control group is made
	AllowHooked   = 'h' // the hooks of MessageReady have run
	AllowListened = 'l' // the agent has the listener
	AllowStart    = 's' // execute the command
)

// Plan is a compiled program. Its parts are at the addresses of package sys.
type Plan struct {
	Ops      []sys.Op
	Names    []Name
	Data     []byte
	Cells    int      // bytes of zeroed memory
	Flags    uint64   // CLONE_NEW flags for the first process
	PostGate int      // index of the first operation after the gate; len(Ops) without one
	Phases   []string // names of MessageTimes' words
	Warnings []string
	Filter   *seccomp.Program // the filter in it; nil for none

	kinds []uint32
}

// Build compiles a spec for a container's first process. Errors are of kind InvalidArgument or Unsupported and name
// the field.
func Build(in *Input) (*Plan, error) {
	if err := Supported(in.Spec); err != nil {
		return nil, err
	}
	c := &compiler{builder: newBuilder(768), in: in, spec: in.Spec, linux: in.Spec.Linux}
	if c.linux == nil {
		c.linux = &runspec.Linux{}
	}
	if err := c.container(); err != nil {
		return nil, err
	}
	return c.plan(), nil
}

// BuildExec compiles another process of a running container: in.Spec.Process is the process, in.Fds.Join its
// namespaces; the rest of the spec is not looked at but for linux.seccomp, personality and memoryPolicy.
func BuildExec(in *Input) (*Plan, error) {
	c := &compiler{builder: newBuilder(128), in: in, spec: in.Spec, linux: in.Spec.Linux, joined: true}
	if c.linux == nil {
		c.linux = &runspec.Linux{}
	}
	if err := c.exec(); err != nil {
		return nil, err
	}
	return c.plan(), nil
}

// BuildHook compiles the execution of a hook inside the namespaces of in.Fds.Join. root is the descriptor of the
// container's process's root: before it pivots that is the host's tree as its mount namespace has it, where the paths
// of createContainer hooks are resolved; joining the mount namespace alone would lead to what was attached over "/".
func BuildHook(in *Input, h *runspec.Hook, root int) *Plan {
	c := &compiler{builder: newBuilder(32), in: in, spec: in.Spec, linux: in.Spec.Linux, joined: true}
	c.begin()
	for _, fd := range in.Fds.Tasks {
		c.op(unix.SYS_WRITE, "join", "control group", num(fd), c.s("0"), num(1))
	}
	c.join()
	c.op(unix.SYS_FCHDIR, "enter", "the container's root", num(root))
	c.op(unix.SYS_CHROOT, "change root", "", c.s("."))
	args := h.Args
	if len(args) == 0 {
		args = []string{h.Path}
	}
	c.op(unix.SYS_RT_SIGPROCMASK, "unblock signals", "", num(2), buf(c.words(0)), num(0), num(8))
	c.op(unix.SYS_EXECVE, "execute", h.Path, c.s(h.Path), buf(c.vector(args)), buf(c.vector(h.Env)))
	return c.plan()
}

// BuildIdle compiles a process that only makes namespaces (flags) and waits for the end of the descriptor control.
func BuildIdle(flags uint64, control, report int) *Plan {
	in := &Input{Spec: &runspec.Spec{}, Fds: Fds{Report: report}}
	c := &compiler{builder: newBuilder(2), in: in, spec: in.Spec, flags: flags}
	c.op(unix.SYS_READ, "wait for", "the end", num(control), c.cell().addr(), num(1))
	c.op(unix.SYS_EXIT_GROUP, "exit", "", num(0))
	return c.plan()
}

func (c *compiler) plan() *Plan {
	if c.postGate == 0 {
		c.postGate = len(c.ops)
	}
	binary.LittleEndian.PutUint64(c.data[0:], sys.OpsBase)
	binary.LittleEndian.PutUint64(c.data[24:], uint64(c.in.Fds.Report))
	return &Plan{
		Ops: c.ops, Names: c.names, kinds: c.kinds, Data: c.data, Cells: int(c.cells - sys.CellBase), Flags: c.flags,
		PostGate: c.postGate, Phases: c.phases, Warnings: c.warnings, Filter: c.filter,
	}
}

type compiler struct {
	*builder
	in    *Input
	spec  *runspec.Spec
	linux *runspec.Linux

	flags        uint64
	newUser      bool // the container has a user namespace of its own
	joined       bool // joins an existing container
	grouped      bool // has joined its control group
	newCgns      bool
	newTime      bool
	root         cell
	how          uint64 // struct open_how for targets: O_PATH inside the root
	howDir       uint64
	howNoLinks   uint64
	lateReadonly []string // mounts to be made read-only when all is in them
	mask         cell     // an attached empty read-only tmpfs, 0 until there is one
	postGate     int
	phases       []string
	times        cell
	filter       *seccomp.Program
}

// Supported returns an error for the first value that this runtime does not honour.
func Supported(s *runspec.Spec) error {
	if s == nil {
		return invalid("", "the spec is empty")
	}
	if v := s.Version; v != "" && !strings.HasPrefix(v, "1.") {
		return unsupported("ociVersion", "this runtime knows version 1 of the specification, not "+v)
	}
	if s.Root == nil {
		return invalid("root", "a container needs a root file system")
	}
	switch {
	case s.VM != nil:
		return unsupported("vm", "containers only")
	case s.Windows != nil:
		return unsupported("windows", "Linux only")
	case s.Solaris != nil:
		return unsupported("solaris", "Linux only")
	case s.ZOS != nil:
		return unsupported("zos", "Linux only")
	case s.FreeBSD != nil:
		return unsupported("freebsd", "Linux only")
	}
	if s.Process == nil {
		return invalid("process", "there is nothing to run")
	}
	if err := SupportedProcess(s.Process); err != nil {
		return err
	}
	if err := supportedHooks(s.Hooks); err != nil {
		return err
	}
	l := s.Linux
	if l == nil {
		return invalid("linux", "a container needs at least a mount namespace")
	}
	switch {
	case strings.IndexByte(l.MountLabel, 0) >= 0 || strings.IndexByte(l.MountLabel, '"') >= 0:
		return invalid("linux.mountLabel", "a label has no NUL byte and no quotation mark")
	}
	if err := supportedRDT(l.IntelRdt); err != nil {
		return err
	}
	if err := supportedClocks(l); err != nil {
		return err
	}
	if l.Seccomp != nil && l.Seccomp.ListenerPath == "" && l.Seccomp.ListenerMetadata != "" {
		return invalid("linux.seccomp.listenerMetadata", "there is no listenerPath to send it to")
	}
	seen, joined := uint64(0), uint64(0)
	for _, n := range l.Namespaces {
		f := namespaceFlag(string(n.Type))
		if f == 0 {
			return unsupported("linux.namespaces", "namespace type "+string(n.Type))
		}
		if seen&f != 0 {
			return invalid("linux.namespaces", "namespace "+string(n.Type)+" is listed twice")
		}
		seen |= f
		if n.Path != "" {
			joined |= f
		}
		if n.Path != "" && !path.IsAbs(n.Path) {
			return invalid("linux.namespaces", "path "+n.Path+" is not absolute")
		}
		if n.Type == runspec.UserNamespace && n.Path != "" && (len(l.UIDMappings) > 0 || len(l.GIDMappings) > 0) {
			return invalid("linux.uidMappings", "a joined user namespace has its id maps already")
		}
		if n.Type == runspec.UserNamespace && n.Path == "" && (len(l.UIDMappings) == 0 || len(l.GIDMappings) == 0) {
			return invalid("linux.uidMappings", "a new user namespace needs uidMappings and gidMappings")
		}
	}
	if joined&unix.CLONE_NEWTIME != 0 && seen&^joined&unix.CLONE_NEWUSER != 0 {
		// Only a process with one thread may join it, and only one that is privileged over it: the image has lost that
		// right in its new user namespace, and the process that clones it has threads.
		return unsupported("linux.namespaces", "joining a time namespace together with a new user namespace")
	}
	if err := supportedDevices(l.NetDevices, seen&unix.CLONE_NEWNET != 0); err != nil {
		return err
	}
	if seen&unix.CLONE_NEWUTS == 0 {
		if s.Hostname != "" {
			return invalid("hostname", "without a uts namespace it would be the host's name")
		}
		if s.Domainname != "" {
			return invalid("domainname", "without a uts namespace it would be the host's name")
		}
	}
	if !OwnMounts(s) {
		if err := supportedShared(s, seen&unix.CLONE_NEWUSER != 0); err != nil {
			return err
		}
	}
	if _, err := userns.New("linux.uidMappings", l.UIDMappings); err != nil {
		return err
	}
	if _, err := userns.New("linux.gidMappings", l.GIDMappings); err != nil {
		return err
	}
	if seen&unix.CLONE_NEWUSER == 0 && (len(l.UIDMappings) > 0 || len(l.GIDMappings) > 0) {
		return invalid("linux.uidMappings", "id maps need a user namespace")
	}
	for i := range s.Mounts {
		if err := supportedIDMap(&s.Mounts[i], seen&unix.CLONE_NEWUSER != 0); err != nil {
			return err
		}
	}
	return nil
}

// OwnMounts reports whether the spec asks for a mount namespace of the container's own. Otherwise it lives in one that it
// joins by path or in the runtime's: its root is then attached at Input.Place, and what is mounted in it goes away with
// that, when the container is deleted.
func OwnMounts(s *runspec.Spec) bool {
	if s.Linux == nil {
		return false
	}
	for _, n := range s.Linux.Namespaces {
		if n.Type == runspec.MountNamespace {
			return n.Path == ""
		}
	}
	return false
}

// supportedShared refuses what a container in the mount namespace of others cannot have.
func supportedShared(s *runspec.Spec, user bool) error {
	switch {
	case user:
		return unsupported("linux.namespaces", "a user namespace beside a mount namespace that is not the container's own: its root may mount nothing there")
	case s.Linux.RootfsPropagation != "":
		return unsupported("linux.rootfsPropagation", "the mount namespace is not the container's own: others' mounts would change")
	case path.Clean(s.Root.Path) == "/":
		return unsupported("root.path", "the mount namespace is not the container's own: the root must be a directory in it")
	}
	return nil
}

// supportedHooks checks hooks before one of them runs.
func supportedHooks(h *runspec.Hooks) error {
	if h == nil {
		return nil
	}
	for _, list := range [...]struct {
		name  string
		hooks []runspec.Hook
	}{
		{"prestart", h.Prestart}, {"createRuntime", h.CreateRuntime}, {"createContainer", h.CreateContainer}, //nolint:staticcheck // prestart is deprecated and in use
		{"startContainer", h.StartContainer}, {"poststart", h.Poststart}, {"poststop", h.Poststop},
	} {
		for i := range list.hooks {
			k := &list.hooks[i]
			field := "hooks." + list.name + "[" + itoa(i) + "]"
			if !path.IsAbs(k.Path) {
				return invalid(field+".path", strconv.Quote(k.Path)+" is not absolute")
			}
			if k.Timeout != nil && *k.Timeout <= 0 {
				return invalid(field+".timeout", "it is not above zero")
			}
			for _, l := range [...][]string{{k.Path}, k.Args, k.Env} {
				for _, s := range l {
					if strings.IndexByte(s, 0) >= 0 {
						return invalid(field, "a string holds a NUL byte")
					}
				}
			}
		}
	}
	return nil
}

// supportedRDT checks linux.intelRdt.
func supportedRDT(r *runspec.LinuxIntelRdt) error {
	if r == nil {
		return nil
	}
	switch id := r.ClosID; {
	case id == "." || id == ".." || id == "info" || id == "mon_groups" || id == "mon_data" || id != "/" && strings.ContainsAny(id, "/\x00\n"):
		return invalid("linux.intelRdt.closID", strconv.Quote(id)+" is not the name of a group")
	case r.MemBwSchema != "" && !strings.HasPrefix(r.MemBwSchema, "MB:"):
		return invalid("linux.intelRdt.memBwSchema", "it does not begin with MB:")
	case strings.ContainsAny(r.MemBwSchema, "\n\x00"):
		return invalid("linux.intelRdt.memBwSchema", "it is more than a line")
	case strings.ContainsAny(r.L3CacheSchema, "\n\x00"):
		return invalid("linux.intelRdt.l3CacheSchema", "it is more than a line")
	}
	for _, s := range r.Schemata {
		if strings.ContainsAny(s, "\n\x00") {
			return invalid("linux.intelRdt.schemata", "an element is more than a line")
		}
	}
	return nil
}

// supportedDevices checks linux.netDevices.
func supportedDevices(devices map[string]runspec.LinuxNetDevice, network bool) error {
	if len(devices) > 0 && !network {
		return invalid("linux.netDevices", "without a network namespace there is nowhere to move them")
	}
	inside := map[string]bool{}
	for name, d := range devices {
		field := "linux.netDevices[" + name + "]"
		if !deviceName(name) || strings.IndexByte(name, '%') >= 0 {
			return invalid(field, "a device's name is 1 to 15 bytes without slashes, colons and spaces")
		}
		if d.Name == "" {
			d.Name = name
		}
		if pattern := strings.Replace(d.Name, "%d", "", 1); !deviceName(d.Name) || strings.IndexByte(pattern, '%') >= 0 {
			return invalid(field+".name", "a device's name is 1 to 15 bytes without slashes, colons and spaces, and at most one %d")
		}
		if inside[d.Name] && strings.IndexByte(d.Name, '%') < 0 {
			return invalid(field+".name", "two devices would be "+d.Name)
		}
		inside[d.Name] = true
	}
	return nil
}

// deviceName is what the kernel takes (dev_valid_name).
func deviceName(s string) bool {
	return s != "" && len(s) < unix.IFNAMSIZ && s != "." && s != ".." && strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r == '/' || r == ':' }) < 0
}

// supportedIDMap checks what the specification says of mounts[].uidMappings and the options idmap and ridmap.
func supportedIDMap(m *runspec.Mount, user bool) error {
	field := "mounts[" + m.Destination + "]"
	if (len(m.UIDMappings) == 0) != (len(m.GIDMappings) == 0) {
		return invalid(field+".uidMappings", "uidMappings and gidMappings come together")
	}
	for _, o := range m.Options {
		if (o == "idmap" || o == "ridmap") && len(m.UIDMappings) == 0 && !user {
			return invalid(field, o+" without uidMappings needs a user namespace, whose id maps it uses")
		}
	}
	if _, err := userns.New(field+".uidMappings", m.UIDMappings); err != nil {
		return err
	}
	_, err := userns.New(field+".gidMappings", m.GIDMappings)
	return err
}

// SupportedProcess is Supported for a process section.
func SupportedProcess(p *runspec.Process) error {
	switch {
	case len(p.Args) == 0 || p.Args[0] == "":
		return invalid("process.args", "there is no command")
	case !path.IsAbs(p.Cwd):
		return invalid("process.cwd", "the working directory must be an absolute path")
	case p.CommandLine != "":
		return unsupported("process.commandLine", "it is Windows'; on Linux there is process.args")
	case p.User.Username != "":
		return unsupported("process.user.username", "it is Windows'; on Linux there is process.user.uid")
	case p.Terminal && p.ConsoleSize != nil && (p.ConsoleSize.Height > 65535 || p.ConsoleSize.Width > 65535):
		return invalid("process.consoleSize", "a terminal has at most 65535 lines and columns")
	}
	if _, err := InitialAffinity(p); err != nil {
		return err
	}
	for _, list := range [...][]string{p.Args, p.Env, {p.Cwd, p.ApparmorProfile, p.SelinuxLabel}} {
		for _, s := range list {
			if strings.IndexByte(s, 0) >= 0 {
				return invalid("process", "a string holds a NUL byte")
			}
		}
	}
	return nil
}

func invalid(field, why string) error {
	return &errdefs.Error{Op: "use the spec's", What: field, Kind: errdefs.InvalidArgument, Why: why}
}

func unsupported(field, why string) error {
	return &errdefs.Error{Op: "use the spec's", What: field, Kind: errdefs.Unsupported, Why: why}
}

// begin is how every image starts: nothing in it can be looked at, and nothing leaks. Who is not root could not write the
// id maps of what is hidden, so that is hidden later.
func (c *compiler) begin() {
	if !c.newUser || !c.in.Facts.Rootless {
		c.hide()
	}
	c.op(unix.SYS_CLOSE_RANGE, "close descriptors on exec", "", num(3+c.in.Fds.Preserve), word(0x7fffffff), num(unix.CLOSE_RANGE_CLOEXEC))
}

func (c *compiler) hide() {
	c.op(unix.SYS_PRCTL, "hide from ptrace and /proc", "", num(unix.PR_SET_DUMPABLE), num(0))
}

// await reads one permission byte.
func (c *compiler) await(fd int, what string, want byte) {
	got := c.cell()
	c.op(unix.SYS_READ, "wait until", what, num(fd), got.addr(), num(1)).ErrMask = 0
	c.check("the permission", got.get(), num(int(want)), 0xff, int(unix.ECANCELED))
}

func (c *compiler) tell(message uint64, what string) {
	c.op(unix.SYS_WRITE, "report", what, num(c.in.Fds.Report), buf(c.words(message, 0)), num(16))
}

// phase notes the time.
func (c *compiler) phase(name string) {
	if !c.in.Timing {
		return
	}
	if c.times == 0 {
		c.times = c.room(16 * 24)
	}
	if len(c.phases) == 24 {
		return
	}
	at := c.times + cell(16*len(c.phases))
	c.op(unix.SYS_CLOCK_GETTIME, "note the time", name, num(unix.CLOCK_MONOTONIC), at.addr())
	c.phases = append(c.phases, name)
}

func (c *compiler) sendTimes() {
	if len(c.phases) == 0 {
		return
	}
	c.op(unix.SYS_WRITE, "report", "times", num(c.in.Fds.Report), buf(c.words(MessageTimes, uint64(len(c.phases)))), num(16))
	c.op(unix.SYS_WRITE, "report", "times", num(c.in.Fds.Report), arg{uint64(c.times), isBuffer}, num(16*len(c.phases)))
}

// join enters the namespaces by descriptor. The user namespace is first: it gives the right to enter the others.
func (c *compiler) join() {
	for _, user := range [...]bool{true, false} {
		for _, j := range c.in.Fds.Join {
			if (j.Type == "user") != user {
				continue
			}
			if j.Type == "all" { // a pidfd: everything at once
				c.op(unix.SYS_SETNS, "join", "the container's namespaces", num(j.FD), word(c.joinFlags()))
				continue
			}
			c.op(unix.SYS_SETNS, "join", j.Type+" namespace", num(j.FD), word(namespaceFlag(j.Type)))
		}
	}
}

func (c *compiler) joinFlags() (f uint64) {
	for _, n := range c.linux.Namespaces {
		f |= namespaceFlag(string(n.Type))
	}
	return f
}

// beRoot takes the ids that own a user namespace.
func (c *compiler) beRoot() {
	c.op(unix.SYS_SETRESGID, "become root of the user namespace", "", num(0), num(0), num(0))
	c.op(unix.SYS_SETRESUID, "become root of the user namespace", "", num(0), num(0), num(0))
}

// container is the whole life of a first process up to its command; it reads as a table of contents.
func (c *compiler) container() error {
	for _, n := range c.linux.Namespaces {
		if n.Path != "" {
			continue
		}
		switch n.Type {
		case runspec.UserNamespace:
			c.newUser = true
		case runspec.CgroupNamespace:
			c.newCgns = true // after joining the group, so that the namespace's root is the container's group
			continue
		case runspec.TimeNamespace:
			c.newTime = true // its offsets are written by who has made it
			continue
		}
		c.flags |= namespaceFlag(string(n.Type))
	}
	ipc := c.flags & unix.CLONE_NEWIPC
	if c.newUser {
		c.flags &^= unix.CLONE_NEWIPC
	}
	if v := c.spec.Version; newer(v) {
		c.warn("ociVersion " + v + ": this runtime knows the specification up to 1.3; what came later is not looked at")
	}
	c.begin()
	c.phase("image")
	if c.newUser {
		c.await(c.in.Fds.Control, "the id maps are written", AllowMapped)
		if c.in.Facts.Rootless {
			c.hide()
		}
		c.beRoot()
		if ipc != 0 { // its mqueue belongs to whoever makes it: to root of the user namespace
			c.op(unix.SYS_UNSHARE, "make", "ipc namespace", word(ipc))
		}
	}
	if err := c.oomScore(); err != nil {
		return err
	}
	c.join()
	if c.joinsUser() {
		c.cloneInside()
	}
	c.newClocks()
	if err := c.labels(); err != nil {
		return err
	}
	c.session()
	if err := c.rootfs(); err != nil {
		return err
	}
	c.phase("root")
	if err := c.mounts(); err != nil {
		return err
	}
	c.phase("mounts")
	c.joinGroup()
	if err := c.devices(); err != nil {
		return err
	}
	c.terminal()
	c.phase("devices")
	c.workdir()
	if h := c.spec.Hooks; h != nil && len(h.Prestart)+len(h.CreateRuntime)+len(h.CreateContainer) > 0 { //nolint:staticcheck // prestart is deprecated and in use
		c.tell(MessageReady, "that hooks may run")
		c.await(c.in.Fds.Control, "the hooks have run", AllowHooked)
	}
	if err := c.sysctls(); err != nil {
		return err
	}
	if err := c.hostnames(); err != nil {
		return err
	}
	c.maskedAndReadonly()
	c.phase("masks")
	if err := c.pivot(); err != nil {
		return err
	}
	c.phase("pivot")
	return c.process()
}

// newer reports whether a version is above those that this runtime knows.
func newer(version string) bool {
	_, rest, _ := strings.Cut(version, ".")
	minor, _, _ := strings.Cut(rest, ".")
	n, err := strconv.Atoi(minor)
	return err == nil && n > 3
}

// joinsUser reports whether the spec names an existing user namespace. The new namespaces must belong to it, so the
// image makes them after joining, and not the clone that made the image.
func (c *compiler) joinsUser() bool {
	for _, n := range c.linux.Namespaces {
		if n.Type == runspec.UserNamespace && n.Path != "" {
			return true
		}
	}
	return false
}

func (c *compiler) cloneInside() {
	c.beRoot()
	inside := c.flags
	c.flags = 0
	if f := inside &^ unix.CLONE_NEWPID; f != 0 {
		c.op(unix.SYS_UNSHARE, "make", "namespaces in the joined user namespace", word(f))
	}
	if inside&unix.CLONE_NEWPID == 0 {
		return
	}
	c.cloneFirst(unix.CLONE_NEWPID)
}

// cloneFirst goes on in a child, which the runtime is told of.
func (c *compiler) cloneFirst(flags uint64) {
	// CLONE_PARENT: the child is the runtime's, as if the runtime had cloned it.
	message := c.room(16)
	pid := message + 8
	c.op(unix.SYS_CLONE, "clone", "the first process", word(flags|unix.CLONE_PARENT|uint64(unix.SIGCHLD)), num(0), num(0), num(0), num(0)).Dst = uint64(pid)
	parent := c.unless("which process this is", pid.get(), num(0), ^uint64(0))
	child := c.jump("the parent's end")
	c.land(parent)
	c.op(sys.OpCompute, "prepare", "message", num(MessagePid), num(0), word(^uint64(0)), num(0)).Dst = uint64(message)
	c.op(unix.SYS_WRITE, "report", "the first process's pid", num(c.in.Fds.Report), arg{uint64(message), isBuffer}, num(16))
	c.op(unix.SYS_EXIT_GROUP, "exit", "", num(0))
	c.land(child)
	c.op(unix.SYS_PRCTL, "hide from ptrace and /proc", "", num(unix.PR_SET_DUMPABLE), num(0))
}

// exec is the life of another process in a running container.
func (c *compiler) exec() error {
	c.begin()
	c.op(unix.SYS_UMASK, "set umask", "", num(0))
	for _, fd := range c.in.Fds.Tasks {
		c.op(unix.SYS_WRITE, "join", "control group", num(fd), c.s("0"), num(1))
	}
	if err := c.oomScore(); err != nil {
		return err
	}
	if err := c.labels(); err != nil {
		return err
	}
	c.join()
	if c.in.Chroot > 0 {
		c.op(unix.SYS_FCHDIR, "enter", "the container's root", num(c.in.Chroot))
		c.op(unix.SYS_CHROOT, "change root", "", c.s("."))
	}
	if c.in.Rejoin {
		c.cloneFirst(0) // only a child is in the pid namespace
	}
	if c.hasUser() {
		c.beRoot()
	}
	c.session()
	c.terminal()
	return c.process()
}

func (c *compiler) hasUser() bool {
	for _, n := range c.linux.Namespaces {
		if n.Type == runspec.UserNamespace {
			return true
		}
	}
	return false
}

func (c *compiler) session() {
	c.op(unix.SYS_SETSID, "start a session", "").ErrMask = errnos(int(unix.EPERM)) // already a leader
	if !c.in.NoNewKeyring {
		// Not every kernel has keys, and their number is limited. exec finds the container's by its name, for which the
		// user must have the right to search it (keyctl(2), KEYCTL_JOIN_SESSION_KEYRING): the rights of a new one and that.
		ring := c.cell()
		o := c.op(unix.SYS_KEYCTL, "join the session keyring", "", num(unix.KEYCTL_JOIN_SESSION_KEYRING), c.s("_ses."+c.in.ID))
		o.ErrMask, o.Dst = anyErrno, uint64(ring)
		if !c.joined {
			c.op(unix.SYS_KEYCTL, "let exec find the session keyring", "", num(unix.KEYCTL_SETPERM), ring.get(), num(0x3f1b0000)).ErrMask = anyErrno
		}
	}
}

// oomScore is written through the host's /proc. In a new user namespace the parent does it (launch).
func (c *compiler) oomScore() error {
	p := c.spec.Process.OOMScoreAdj
	if p == nil {
		return nil
	}
	v := *p
	if v < -1000 || v > 1000 {
		return invalid("process.oomScoreAdj", "not between -1000 and 1000")
	}
	if v < c.in.Facts.OOMScoreAdj && c.in.Facts.Held&(1<<unix.CAP_SYS_RESOURCE) == 0 {
		c.warn("process.oomScoreAdj " + itoa(v) + " needs CAP_SYS_RESOURCE: it stays " + itoa(c.in.Facts.OOMScoreAdj))
		return nil
	}
	if c.newUser || v == c.in.Facts.OOMScoreAdj && !c.joined {
		return nil
	}
	c.writeProc("oom_score_adj", "", "oom_score_adj", itoa(v))
	return nil
}

func (c *compiler) warn(s string) { c.warnings = append(c.warnings, s) }

func itoa(n int) string {
	var b [20]byte
	i := len(b)
	u := uint(n)
	if n < 0 {
		u = -u
	}
	for {
		i--
		b[i] = byte('0' + u%10)
		if u /= 10; u == 0 {
			break
		}
	}
	if n < 0 {
		i--
		b[i] = '-'
	}
	return string(b[i:])
}

// words32 packs 32-bit numbers.
func words32(ws ...uint32) []byte {
	b := make([]byte, 0, 4*len(ws))
	for _, w := range ws {
		b = binary.LittleEndian.AppendUint32(b, w)
	}
	return b
}
