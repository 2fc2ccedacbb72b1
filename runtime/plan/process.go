package plan

import (
	"path"
	"strconv"
	"strings"

	"github.com/onggi/onggi/runtime/seccomp"
	"github.com/onggi/onggi/sys"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// DefaultPath is searched for commands when the environment has no PATH.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// capSets are the masks of the five sets.
type capSets struct{ bounding, effective, permitted, inheritable, ambient uint64 }

// process turns the image into the user's process: limits, ids, capabilities, filter, then the command. What was set is
// read back, and a difference ends the program before user code runs.
func (c *compiler) process() error {
	p := c.spec.Process
	caps := c.caps(p)
	if err := c.limits(p); err != nil {
		return err
	}
	if err := c.schedule(p); err != nil {
		return err
	}
	cwd := path.Clean(p.Cwd)
	entered := c.cell()
	c.op(sys.OpCompute, "note", "that the directory is not entered", num(1), num(0), num(1), num(0)).Dst = uint64(entered)
	o := c.op(unix.SYS_CHDIR, "enter", cwd, c.s(cwd))
	o.Dst, o.ErrMask = uint64(entered), anyErrno // perhaps only the user may

	for i := 0; i <= c.lastCap(); i++ {
		if caps.bounding&(1<<i) == 0 {
			c.op(unix.SYS_PRCTL, "drop from the bounding set", capName(i), num(unix.PR_CAPBSET_DROP), num(i))
		}
	}
	c.op(unix.SYS_PRCTL, "keep capabilities over the change of ids", "", num(unix.PR_SET_KEEPCAPS), num(1))
	if err := c.ids(&p.User); err != nil {
		return err
	}
	skip := c.unless("directory", entered.get(), num(1), ^uint64(0))
	c.op(unix.SYS_CHDIR, "enter", cwd, c.s(cwd))
	c.land(skip)
	c.insideRoot(cwd)

	// The filter is loaded last: with no_new_privs after all else, without it (which needs CAP_SYS_ADMIN) just before
	// the last capability is dropped, so that the only calls made under it are capset, capget, prctl and execve.
	filter, err := c.compileFilter()
	if err != nil {
		return err
	}
	early := caps
	bare := filter != nil && !p.NoNewPrivileges
	if bare {
		early.permitted |= 1 << unix.CAP_SYS_ADMIN
		early.effective |= 1 << unix.CAP_SYS_ADMIN
	}
	c.capset(&early, "")
	c.raiseAmbient(&early)
	c.readBackCaps(&early, &caps)
	if p.NoNewPrivileges {
		c.op(unix.SYS_PRCTL, "set no_new_privs", "", num(unix.PR_SET_NO_NEW_PRIVS), num(1), num(0), num(0), num(0))
		got := c.cell()
		c.op(unix.SYS_PRCTL, "read back no_new_privs", "", num(unix.PR_GET_NO_NEW_PRIVS), num(0), num(0), num(0), num(0)).Dst = uint64(got)
		c.check("no_new_privs", got.get(), num(1), ^uint64(0), int(unix.EPERM))
	}
	c.op(unix.SYS_CLOSE_RANGE, "close descriptors on exec", "", num(3+c.in.Fds.Preserve), word(0x7fffffff), num(unix.CLOSE_RANGE_CLOEXEC))
	// Ignoring is inherited: a shell ignores SIGINT and SIGQUIT for what it runs in the background, nohup ignores SIGHUP,
	// and posix_spawn of glibc (make uses it) ignores its internal signal 32.
	none := c.words(0, 0, 0, 0)
	for sig := 1; sig <= lastSignal; sig++ {
		if sig == int(unix.SIGKILL) || sig == int(unix.SIGSTOP) {
			continue
		}
		c.op(unix.SYS_RT_SIGACTION, "reset", signalName(sig), num(sig), buf(none), num(0), num(8))
	}
	c.phase("process")
	if c.in.Fds.Gate >= 0 {
		c.find(p)
	}
	if filter != nil && filter.Notify {
		// The agent gets its listener as part of create, as with runc; a reaper comes under the filter too.
		c.load(filter)
		if bare && caps.permitted&(1<<unix.CAP_SYS_ADMIN) == 0 {
			c.capset(&caps, "and drop CAP_SYS_ADMIN")
			c.raiseAmbient(&caps)
		}
		filter, bare = nil, false
	}
	if c.in.Fds.Gate >= 0 {
		c.op(unix.SYS_PRCTL, "name the process", "", num(unix.PR_SET_NAME), c.s("onggi-created"))
		c.sendTimes()
		c.tell(MessageCreated, "that the container is created")
		c.await(c.in.Fds.Gate, "start", AllowStart)
	} else {
		c.sendTimes()
	}
	c.postGate = c.here()
	if c.in.Init {
		c.reaper(&caps, bare)
	}
	if filter != nil {
		c.load(filter)
	}
	if bare && caps.permitted&(1<<unix.CAP_SYS_ADMIN) == 0 {
		c.capset(&caps, "and drop CAP_SYS_ADMIN")
		c.raiseAmbient(&caps)
	}
	c.op(unix.SYS_RT_SIGPROCMASK, "unblock signals", "", num(unix.SIG_SETMASK), buf(c.words(0)), num(0), num(8))
	c.execute(p)
	return nil
}

// lastSignal is the last number that Linux gives (signal(7)).
const lastSignal = 64

func signalName(sig int) string {
	if s := unix.SignalName(unix.Signal(sig)); s != "" {
		return s
	}
	return "signal " + strconv.Itoa(sig)
}

func (c *compiler) lastCap() int {
	if l := c.in.Facts.LastCap; l > 0 && l < 64 {
		return l
	}
	return len(capabilities) - 1
}

func capName(i int) string {
	if i < len(capabilities) {
		return capabilities[i]
	}
	return "capability " + itoa(i)
}

func (c *compiler) caps(p *runspec.Process) (s capSets) {
	held := c.in.Facts.Held
	if c.hasUser() {
		held = 1<<(c.lastCap()+1) - 1 // all, inside the user namespace
	}
	var lost uint64
	set := func(field string, names []string) (m uint64) {
		for _, n := range names {
			i := capNumber(n)
			switch { // what cannot be granted is a warning (config.md, "Linux Process")
			case i < 0:
				c.warn("process.capabilities." + field + ": there is no capability " + n + "; it is left out")
			case i > c.lastCap():
				c.warn("process.capabilities." + field + ": this kernel has no " + n + "; it is left out")
			default:
				m |= 1 << i
			}
		}
		lost |= m &^ held
		return m & held
	}
	if l := p.Capabilities; l != nil {
		s.bounding = set("bounding", l.Bounding)
		s.effective = set("effective", l.Effective)
		s.permitted = set("permitted", l.Permitted)
		s.inheritable = set("inheritable", l.Inheritable)
		s.ambient = set("ambient", l.Ambient)
	}
	for i := range capabilities {
		if lost&(1<<i) != 0 {
			c.warn("process.capabilities: " + capabilities[i] + " is not held by this process and is left out")
		}
	}
	for _, x := range [...]struct {
		name       string
		set, limit *uint64
		limitName  string
	}{{"effective", &s.effective, &s.permitted, "permitted"}, {"inheritable", &s.inheritable, &s.bounding, "bounding"}} {
		if extra := *x.set &^ *x.limit; extra != 0 { // capset(2) refuses it
			c.warn("process.capabilities." + x.name + " holds what is not in " + x.limitName + "; that is left out")
			*x.set &^= extra
		}
	}
	// The kernel allows in ambient only what is permitted and inheritable; runc drops the rest with a warning.
	if extra := s.ambient &^ (s.permitted & s.inheritable); extra != 0 {
		c.warn("process.capabilities.ambient holds what is not both permitted and inheritable; that is left out")
		s.ambient &^= extra
	}
	return s
}

func (s *capSets) words() [3]uint64 {
	const low = 0xffffffff
	return [3]uint64{s.effective&low | s.permitted<<32, s.inheritable&low | s.effective>>32<<32, s.permitted>>32 | s.inheritable>>32<<32}
}

const capVersion3 = 0x20080522

func (c *compiler) capset(s *capSets, why string) {
	w := s.words()
	c.op(unix.SYS_CAPSET, "set capabilities", why, buf(c.words(capVersion3)), buf(c.words(w[:]...)))
}

func (c *compiler) raiseAmbient(s *capSets) {
	for i := range 64 {
		if s.ambient&(1<<i) != 0 {
			c.op(unix.SYS_PRCTL, "raise in the ambient set", capName(i), num(unix.PR_CAP_AMBIENT), num(unix.PR_CAP_AMBIENT_RAISE), num(i), num(0), num(0))
		}
	}
}

func (c *compiler) readBackCaps(s, final *capSets) {
	got := c.room(24)
	c.op(unix.SYS_CAPGET, "read back capabilities", "", buf(c.words(capVersion3)), got.addr())
	for i, w := range s.words() {
		c.check("capabilities", (got + cell(8*i)).get(), word(w), ^uint64(0), int(unix.EPERM))
	}
	for i := 0; i <= c.lastCap(); i++ {
		if final.bounding&(1<<i) == 0 {
			in := c.cell()
			c.op(unix.SYS_PRCTL, "read back the bounding set", capName(i), num(unix.PR_CAPBSET_READ), num(i)).Dst = uint64(in)
			c.check("the bounding set", in.get(), num(0), ^uint64(0), int(unix.EPERM))
		}
	}
}

// limits clamps hard limits to what this process may set.
func (c *compiler) limits(p *runspec.Process) error {
	seen := 0
	for _, r := range p.Rlimits {
		n := rlimitNumber(r.Type)
		if n < 0 {
			return invalid("process.rlimits", "unknown limit "+r.Type)
		}
		if seen&(1<<n) != 0 {
			return invalid("process.rlimits", r.Type+" is listed twice")
		}
		seen |= 1 << n
		if r.Soft > r.Hard {
			return invalid("process.rlimits", r.Type+": soft is above hard")
		}
		soft, hard := r.Soft, r.Hard
		if l, ok := c.in.Facts.Limits[n]; ok && hard > l[1] && c.in.Facts.Held&(1<<unix.CAP_SYS_RESOURCE) == 0 {
			c.warn("process.rlimits: " + r.Type + " cannot be raised above this process's hard limit without CAP_SYS_RESOURCE; it is clamped")
			hard = l[1]
			soft = min(soft, hard)
		}
		if c.newUser {
			continue // the parent sets it: raising needs a capability of the host's user namespace
		}
		c.op(unix.SYS_PRLIMIT64, "set limit", r.Type, num(0), num(n), buf(c.words(soft, hard)), num(0))
	}
	return nil
}

// ids takes the user's ids and reads them back.
func (c *compiler) ids(u *runspec.User) error {
	const unset = 1<<32 - 1 // means "leave alone" to the kernel
	if u.UID == unset || u.GID == unset {
		return invalid("process.user", "id 4294967295 does not exist")
	}
	groups := make([]uint32, len(u.AdditionalGids))
	for i, g := range u.AdditionalGids {
		if g == unset {
			return invalid("process.user.additionalGids", "id 4294967295 does not exist")
		}
		groups[i] = g
	}
	if c.in.Facts.NoSetgroups && len(groups) > 0 {
		return unsupported("process.user.additionalGids", "the user namespace was made without privileges and denies setgroups(2)")
	}
	if !c.in.Facts.NoSetgroups { // else the groups of who made the namespace stay, as ids that it does not map
		c.op(unix.SYS_SETGROUPS, "set supplementary groups", "", num(len(groups)), buf(c.put(append(words32(groups...), 0))))
	}
	c.op(unix.SYS_SETRESGID, "set group id", "", word(uint64(u.GID)), word(uint64(u.GID)), word(uint64(u.GID)))
	c.op(unix.SYS_SETRESUID, "set user id", "", word(uint64(u.UID)), word(uint64(u.UID)), word(uint64(u.UID)))
	r, e, s := c.cell(), c.cell(), c.cell()
	for _, x := range []struct {
		nr   uint64
		name string
		want uint32
	}{{unix.SYS_GETRESUID, "user ids", u.UID}, {unix.SYS_GETRESGID, "group ids", u.GID}} {
		c.op(x.nr, "read back", x.name, r.addr(), e.addr(), s.addr())
		for _, got := range []cell{r, e, s} {
			c.check(x.name, got.get(), word(uint64(x.want)), 0xffffffff, int(unix.EPERM))
		}
	}
	if !c.in.Facts.NoSetgroups {
		n := c.cell()
		c.op(unix.SYS_GETGROUPS, "read back", "supplementary groups", num(0), num(0)).Dst = uint64(n)
		c.check("the number of supplementary groups", n.get(), num(len(groups)), ^uint64(0), int(unix.EPERM))
	}
	mask := uint32(0o022)
	if u.Umask != nil {
		mask = *u.Umask & 0o777
	}
	c.op(unix.SYS_UMASK, "set umask", "", word(uint64(mask)))
	return nil
}

// insideRoot refuses a working directory that is not below the root: a leaked descriptor of the host would make such
// (CVE-2024-21626). getcwd(2) then answers "(unreachable)...".
func (c *compiler) insideRoot(cwd string) {
	at := c.room(4096)
	c.op(unix.SYS_GETCWD, "read back", "the working directory", at.addr(), num(4096))
	c.check("that "+cwd+" is inside the root", at.get(), num('/'), 0xff, int(unix.EXDEV))
}

func (c *compiler) compileFilter() (*seccomp.Program, error) {
	if c.linux.Seccomp == nil {
		return nil, nil
	}
	f := c.in.Filter
	if f == nil {
		var err error
		if f, err = seccomp.Compile(c.linux.Seccomp); err != nil {
			return nil, err
		}
	}
	if f.Notify && c.linux.Seccomp.ListenerPath == "" {
		return nil, invalid("linux.seccomp.listenerPath", "SCMP_ACT_NOTIFY needs the path of an agent's socket")
	}
	c.filter = f
	return f, nil
}

func (c *compiler) load(f *seccomp.Program) {
	b := make([]byte, 0, 8*len(f.Filter))
	for _, i := range f.Filter {
		b = append(b, byte(i.Code), byte(i.Code>>8), i.Jt, i.Jf, byte(i.K), byte(i.K>>8), byte(i.K>>16), byte(i.K>>24))
	}
	prog := c.put(b)
	loaded := c.op(unix.SYS_SECCOMP, "load the seccomp filter", "", num(unix.SECCOMP_SET_MODE_FILTER), word(uint64(f.Flags)), buf(c.words(uint64(len(f.Filter)), prog)))
	if f.Notify {
		// From here on any call may wait for the agent, but for the write that gets the agent its descriptor.
		message := c.words(MessageListener, 0)
		loaded.Dst = message + 8
		c.op(unix.SYS_WRITE, "report", "the seccomp listener", num(c.in.Fds.Report), buf(message), num(16))
		c.await(c.in.Fds.Control, "the agent has the seccomp listener", AllowListened)
	}
	mode := c.cell()
	o := c.op(unix.SYS_PRCTL, "read back the seccomp mode", "", num(unix.PR_GET_SECCOMP))
	o.Dst, o.ErrMask = uint64(mode), anyErrno
	denied := len(c.ops) - 1
	c.check("the seccomp mode", mode.get(), num(2), ^uint64(0), int(unix.EPERM))
	c.land(denied) // the filter itself may forbid the question
}

// reaper makes this process a PID 1 that reaps orphans and passes signals on, and continues in a child. It ends as the
// child ends; its command line is empty, it holds no descriptor but the standard ones.
func (c *compiler) reaper(caps *capSets, bare bool) {
	all := c.words(^uint64(0))
	c.op(unix.SYS_RT_SIGPROCMASK, "block signals", "", num(unix.SIG_SETMASK), buf(all), num(0), num(8))
	child := c.cell()
	c.op(unix.SYS_CLONE, "clone", "the command's process", num(int(unix.SIGCHLD)), num(0), num(0), num(0), num(0)).Dst = uint64(child)
	parent := c.unless("which process this is", child.get(), num(0), ^uint64(0))
	// The child leads a process group of its own; with a terminal that group is in the foreground.
	c.op(unix.SYS_SETPGID, "lead a process group", "", num(0), num(0))
	if c.spec.Process.Terminal {
		self := c.cell()
		c.op(unix.SYS_GETPID, "look at", "own pid").Dst = uint64(self)
		c.op(unix.SYS_IOCTL, "take the terminal's foreground", "", num(0), num(unix.TIOCSPGRP), self.addr()).ErrMask = anyErrno
	}
	command := c.jump("the reaper")
	c.land(parent)
	c.op(unix.SYS_PRCTL, "name the process", "", num(unix.PR_SET_NAME), c.s("onggi-init"))
	if bare && caps.permitted&(1<<unix.CAP_SYS_ADMIN) == 0 {
		c.capset(caps, "and drop CAP_SYS_ADMIN")
	}
	c.op(unix.SYS_CLOSE_RANGE, "close descriptors", "", num(3), word(0x7fffffff), num(0))
	info, sig, status, pid, low := c.room(128), c.cell(), c.cell(), c.cell(), c.cell()
	loop := c.here()
	o := c.op(unix.SYS_RT_SIGTIMEDWAIT, "wait for", "a signal", buf(all), info.addr(), num(0), num(8))
	o.Dst, o.ErrMask = uint64(sig), errnos(int(unix.EINTR), int(unix.EAGAIN))
	c.landAt(len(c.ops)-1, loop)
	reap := c.unless("signal", sig.get(), num(int(unix.SIGCHLD)), ^uint64(0)) // another: pass it on
	again := c.here()
	o = c.op(unix.SYS_WAIT4, "reap", "a child", num(-1), status.addr(), num(unix.WNOHANG), num(0))
	o.Dst, o.ErrMask = uint64(pid), anyErrno
	c.landAt(len(c.ops)-1, loop)
	ours := c.unless("reaped process", pid.get(), child.get(), ^uint64(0))
	c.op(sys.OpCompute, "look at", "the signal that killed it", status.get(), num(0), num(0x7f), num(0)).Dst = uint64(low)
	exited := c.unless("whether it exited", low.get(), num(0), ^uint64(0))
	c.op(sys.OpCompute, "compute", "the exit code", status.get(), num(8), num(0xff), num(0)).Dst = uint64(low)
	c.op(unix.SYS_EXIT_GROUP, "exit", "as the command did", low.get())
	c.land(exited)
	c.op(sys.OpCompute, "compute", "the exit code", status.get(), num(0), num(0x7f), num(128)).Dst = uint64(low)
	c.op(unix.SYS_EXIT_GROUP, "exit", "as the command did", low.get())
	c.land(ours)
	none := c.unless("whether there was one", pid.get(), num(0), ^uint64(0))
	c.landAt(c.jump("reaping"), loop)
	c.landAt(none, again)
	c.land(reap)
	c.op(unix.SYS_KILL, "pass on", "a signal", child.get(), sig.get()).ErrMask = anyErrno
	c.landAt(c.jump("waiting"), loop)
	c.land(command)
}

// candidates are the paths at which the command is looked for.
func candidates(p *runspec.Process) []string {
	name := p.Args[0]
	if strings.IndexByte(name, '/') >= 0 {
		return []string{name}
	}
	search := DefaultPath
	for _, e := range p.Env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			search = v
		}
	}
	paths := strings.Split(search, ":")
	for i, dir := range paths {
		if dir == "" {
			dir = "."
		}
		paths[i] = dir + "/" + name
	}
	return paths
}

// find fails before the gate when there is no such command, because engines expect that of create: as the user, a file
// that may be executed and is no directory.
func (c *compiler) find(p *runspec.Process) {
	name := p.Args[0]
	var found []int
	var results []cell
	for _, f := range candidates(p) {
		r, st := c.cell(), c.room(256)
		at := c.s(f)
		o := c.op(unix.SYS_FACCESSAT, "execute", name, num(unix.AT_FDCWD), at, num(unix.X_OK))
		o.ErrMask, o.ErrDst = searchOn, uint64(r)
		no := len(c.ops) - 1
		c.op(unix.SYS_STATX, "look at", f, num(unix.AT_FDCWD), at, num(0), num(unix.STATX_TYPE), st.addr())
		found = append(found, c.unless("type of "+f, (st+24).get(), word(unix.S_IFDIR<<32), unix.S_IFMT<<32))
		c.op(sys.OpCompute, "note", "that it is a directory", num(int(unix.EACCES)), num(0), num(0xff), num(0)).Dst = uint64(r)
		c.land(no)
		results = append(results, r)
	}
	c.notFound(name, results)
	c.land(found...)
}

// searchOn are the failures after which execvp(3) looks in the next directory.
var searchOn = errnos(int(unix.ENOENT), int(unix.ENOTDIR), int(unix.EACCES), int(unix.ENAMETOOLONG), int(unix.ELOOP))

// notFound ends the program: a file that may not be executed is the answer when nothing else was found.
func (c *compiler) notFound(name string, results []cell) {
	for _, r := range results {
		other := c.unless("why not", r.get(), num(int(unix.EACCES)), ^uint64(0))
		c.fail("execute", name, int(unix.EACCES))
		c.land(other)
	}
	c.fail("execute", name, int(unix.ENOENT))
}

// execute tries the command in each directory of PATH, as execvp(3).
func (c *compiler) execute(p *runspec.Process) {
	env, home := p.Env, false
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "HOME="); ok && v != "" {
			home = true
		}
	}
	if !home && c.in.Home != "" {
		env = append(env[:len(env):len(env)], "HOME="+c.in.Home)
	}
	argv, envp := c.vector(p.Args), c.vector(env)
	name := p.Args[0]
	if strings.IndexByte(name, '/') >= 0 {
		c.op(unix.SYS_EXECVE, "execute", name, c.s(name), buf(argv), buf(envp))
		return
	}
	var results []cell
	for _, f := range candidates(p) {
		r := c.cell()
		o := c.op(unix.SYS_EXECVE, "execute", name, c.s(f), buf(argv), buf(envp))
		o.ErrMask, o.ErrDst = searchOn, uint64(r)
		results = append(results, r)
	}
	c.notFound(name, results)
}
