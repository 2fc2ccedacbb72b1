package launch

import (
	"runtime"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/runtime/plan"
	"github.com/onggi/onggi/sys"
	"golang.org/x/sys/unix"
)

// spawnArgs say how an image's process begins.
type spawnArgs struct {
	plan    *plan.Plan
	dir     string      // state directory, for the fallback of the memfd
	fds     []int       // become descriptors 0, 1, 2, ...; -1 leaves a gap
	cgroup  int         // v2 directory to be born in; -1 none
	joins   []plan.Join // entered by the calling thread: pid, and all that a new user namespace would not own
	newUser bool
	// affinity is the mask of CPUs that the process begins with (sched_setaffinity(2)); nil leaves it.
	affinity []byte
}

// spawn clones the process and gives it its image. The descriptor table of the image holds args.fds and nothing else.
func spawn(a *spawnArgs) (pid int, err error) {
	img, err := newImage(a.plan)
	if err != nil {
		return 0, &errdefs.Error{Op: "start", What: "the container's process", Kind: errdefs.Unsupported, Err: err}
	}
	exe, err := sealed(img)
	if err == nil {
		pid, err = cloneOnThread(a, exe)
		_ = unix.Close(exe)
	}
	if err == unix.EACCES || err == unix.EPERM || err == unix.ENOSYS { // sysctl vm.memfd_noexec, or a filter around us
		var e error
		if exe, e = unlinked(a.dir, img); e == nil {
			pid, err = cloneOnThread(a, exe)
			_ = unix.Close(exe)
		}
	}
	if err != nil {
		return 0, &errdefs.Error{Op: "start", What: "the container's process", Err: err}
	}
	return pid, nil
}

// cloneOnThread clones on a thread that has entered a.joins and taken a.affinity: their effect is per thread, and a clone
// inherits it. The engine itself never is in a container: a pid namespace only concerns children, and the thread ends.
func cloneOnThread(a *spawnArgs, exe int) (pid int, err error) {
	if len(a.joins) == 0 && a.affinity == nil {
		return cloneImage(a, exe)
	}
	err = onThread(func() (err error) {
		for _, j := range a.joins {
			if err := unix.Setns(j.FD, int(plan.NamespaceFlag(j.Type))); err != nil {
				return &errdefs.Error{Op: "join", What: j.Type + " namespace", Err: err}
			}
		}
		if a.affinity != nil {
			if err := setAffinity(a.affinity); err != nil {
				return &errdefs.Error{Op: "use the spec's", What: "process.execCPUAffinity.initial", Err: err}
			}
		}
		pid, err = cloneImage(a, exe)
		return err
	})
	return pid, err
}

// setAffinity is for the calling thread, and for what it clones.
func setAffinity(mask []byte) error {
	var set unix.CPUSet
	for i := range 8 * len(mask) {
		if mask[i/8]&(1<<(i%8)) == 0 {
			continue
		}
		if i >= 64*len(set) {
			return unix.EINVAL
		}
		set.Set(i)
	}
	return unix.SchedSetaffinity(0, &set)
}

// cloneImage runs the first stage in memory that is shared with this process: place the descriptors, close all
// others, execute the image.
func cloneImage(a *spawnArgs, exe int) (int, error) {
	n := len(a.fds)
	ops := make([]sys.Op, 0, 2*n+64)
	cells := make([]uint64, n+1)
	add := func(o sys.Op) { ops = append(ops, o) }
	call := func(nr uint64, args ...uint64) sys.Op {
		o := sys.Op{NR: nr}
		copy(o.Args[:], args)
		return o
	}
	// First out of the way, then into place, so that no descriptor is overwritten before it is used.
	for i, fd := range append(a.fds[:n:n], exe) {
		if fd < 0 {
			continue
		}
		o := call(unix.SYS_FCNTL, uint64(fd), unix.F_DUPFD, uint64(n+1))
		o.Dst = sys.AddrOf(&cells[i])
		add(o)
	}
	for i, fd := range append(a.fds[:n:n], exe) {
		flags := uint64(0)
		if i == n {
			flags = unix.O_CLOEXEC
		}
		if fd < 0 {
			o := call(unix.SYS_CLOSE, uint64(i))
			o.ErrMask = ^uint64(0)
			add(o)
			continue
		}
		o := call(unix.SYS_DUP3, sys.AddrOf(&cells[i]), uint64(i), flags)
		o.Ind = 1
		add(o)
	}
	add(call(unix.SYS_CLOSE_RANGE, uint64(n+1), 0x7fffffff, 0))
	header := []uint64{0x20080522, 0}
	var caps []uint64
	if a.newUser {
		// The id maps are not there yet, so executing would drop every capability of the new namespace but the ambient.
		last := uint64(1)<<(lastCap()+1) - 1
		low := last & 0xffffffff
		caps = []uint64{low | low<<32, low | last>>32<<32, last>>32 | last>>32<<32}
		add(call(unix.SYS_CAPSET, sys.AddrOf(&header[0]), sys.AddrOf(&caps[0])))
		for i := range lastCap() + 1 {
			o := call(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uint64(i))
			o.ErrMask = ^uint64(0)
			add(o)
		}
	}
	name, sub, none := []byte("onggi-runtime\x00"), []byte("init\x00"), []byte{0}
	argv := []uint64{sys.Addr(name), sys.Addr(sub), 0}
	envp := []uint64{0}
	add(call(unix.SYS_EXECVEAT, uint64(n), sys.Addr(none), sys.AddrOf(&argv[0]), sys.AddrOf(&envp[0]), unix.AT_EMPTY_PATH))

	// The operations hold addresses as numbers, so what they point to must stay where it is: on the heap, not on a
	// stack that moves when it grows.
	status := &sys.Status{Report: ^uint64(0)}
	var pins runtime.Pinner
	defer pins.Unpin()
	for _, p := range [...]any{&cells[0], &header[0], &argv[0], &envp[0], &name[0], &sub[0], &none[0], &ops[0], status} {
		pins.Pin(p)
	}
	if caps != nil {
		pins.Pin(&caps[0])
	}
	pid, _, err := sys.Spawn(a.plan.Flags, a.cgroup, ops, status)
	if err != nil {
		e := &errdefs.Error{Op: "clone", What: "the container's process", Err: err, Why: namespacesOf(a.plan.Flags)}
		if err == unix.EPERM && a.plan.Flags&unix.CLONE_NEWUSER == 0 && Rootless() {
			e.Fix = "without root a container needs a user namespace: see onggi-runtime spec --rootless"
		}
		return 0, e
	}
	if status.Errno != 0 {
		reap(pid)
		return 0, unix.Errno(status.Errno)
	}
	return pid, nil
}

func namespacesOf(flags uint64) (s string) {
	for _, t := range [...]string{"user", "mount", "pid", "network", "ipc", "uts", "cgroup", "time"} {
		if flags&plan.NamespaceFlag(t) != 0 {
			s += " " + t
		}
	}
	if s != "" {
		s = "with new namespaces" + s
	}
	return s
}

func reap(pid int) (ws unix.WaitStatus) {
	for {
		if _, err := unix.Wait4(pid, &ws, 0, nil); err != unix.EINTR {
			return ws
		}
	}
}
