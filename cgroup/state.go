package cgroup

import (
	"errors"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/onggi/onggi/errdefs"
)

// freezeWait is how long Freeze waits for the kernel. On v1 a task in an uninterruptible sleep keeps the whole group in
// FREEZING; on v2 it does so too until it wakes.
const freezeWait = 10 * time.Second

// member returns the directory whose cgroup.procs is taken for the group's membership: v2 where there is one with
// everything in it, else the freezer (what Kill and Freeze act on), else the first.
func (g *Group) member() (*dir, error) {
	var first *dir
	for i := range g.dirs {
		d := &g.dirs[i]
		if d.fd < 0 || d.h.v2 && !g.l.V2 {
			continue
		}
		if d.h.v2 || d.has("freezer") {
			return d, nil
		}
		if first == nil {
			first = d
		}
	}
	if first == nil {
		return nil, &errdefs.Error{Op: "use control group", What: g.path, Kind: errdefs.NotFound, Why: "the group is in no hierarchy, or closed"}
	}
	return first, nil
}

// Pids lists the processes of the group and its descendants. A group that is gone has none.
func (g *Group) Pids() ([]int, error) {
	d, err := g.member()
	if err != nil {
		return nil, err
	}
	pids, err := pidsBelow(d.fd, 0)
	if err != nil {
		return nil, &errdefs.Error{Op: "list processes of control group", What: d.path, Err: err}
	}
	return pids, nil
}

func pidsBelow(fd, depth int) ([]int, error) {
	if depth > 256 {
		return nil, unix.ELOOP
	}
	var pids []int
	text, err := readAt(fd, "cgroup.procs")
	switch err {
	case nil:
		for line := range strings.SplitSeq(text, "\n") {
			if n, err := strconv.Atoi(line); err == nil && n > 0 { // 0: a process outside of our pid namespace
				pids = append(pids, n)
			}
		}
	case unix.EOPNOTSUPP: // a threaded group: its processes are listed by the domain above it
	case unix.ENOENT, unix.ENODEV: // removed meanwhile
		return nil, nil
	default:
		return nil, err
	}
	names, err := children(fd)
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
		return pids, err
	}
	for _, n := range names {
		sub, err := unix.Openat(fd, n, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err != nil {
			continue // removed meanwhile
		}
		more, err := pidsBelow(sub, depth+1)
		_ = unix.Close(sub)
		if err != nil {
			return pids, err
		}
		pids = append(pids, more...)
	}
	return pids, nil
}

// freezerDir returns where the group is frozen: v2's cgroup.freeze (Linux 5.2) or the v1 freezer.
func (g *Group) freezerDir() (*dir, error) {
	for i := range g.dirs {
		d := &g.dirs[i]
		if d.fd >= 0 && (d.h.v2 && g.l.V2 || d.has("freezer") && !d.h.v2) {
			return d, nil
		}
	}
	why := "this host mounts no freezer"
	for i := range g.dirs {
		if d := &g.dirs[i]; d.why != nil && (d.h.v2 || d.has("freezer")) {
			return nil, &errdefs.Error{Op: "freeze control group", What: g.path, Kind: errdefs.KindOf(d.why), Why: "the group has no freezer", Err: d.why}
		}
	}
	return nil, &errdefs.Error{
		Op: "freeze control group", What: g.path, Kind: errdefs.Unsupported, Why: why,
		Fix: "mount the v1 freezer or use cgroup v2",
	}
}

// Freeze stops or resumes everything in the group, and returns when the kernel says so. When freezing does not finish
// in ten seconds the group is thawed again and the error is of kind DeadlineExceeded.
func (g *Group) Freeze(frozen bool) error {
	d, err := g.freezerDir()
	if err != nil {
		return err
	}
	if d.h.v2 {
		return d.freeze2(frozen)
	}
	return d.freeze1(frozen)
}

func (d *dir) freezeError(frozen bool, err error) error {
	op := "thaw control group"
	if frozen {
		op = "freeze control group"
	}
	return &errdefs.Error{Op: op, What: d.path, Err: err}
}

func (d *dir) freezeLate() error {
	return &errdefs.Error{
		Op: "freeze control group", What: d.path, Kind: errdefs.DeadlineExceeded,
		Why: "a process in it does not stop (an uninterruptible wait, state D); the group is thawed again",
		Fix: "find it with ps -o pid,stat,wchan and try again",
	}
}

func (d *dir) freeze2(frozen bool) error {
	value, want := "0", uint64(0)
	if frozen {
		value, want = "1", 1
	}
	if err := writeAt(d.fd, "cgroup.freeze", value); err != nil {
		if err == unix.ENOENT {
			return &errdefs.Error{Op: "freeze control group", What: d.path, Kind: errdefs.Unsupported, Why: "cgroup.freeze needs Linux 5.2"}
		}
		return d.freezeError(frozen, err)
	}
	events, err := openAt(d.fd, "cgroup.events", unix.O_RDONLY)
	if err != nil {
		return d.freezeError(frozen, err)
	}
	defer unix.Close(events)
	deadline := time.Now().Add(freezeWait)
	var buf [256]byte
	for {
		n, err := unix.Pread(events, buf[:], 0)
		if err != nil {
			if err == unix.EINTR {
				continue
			}
			return d.freezeError(frozen, err)
		}
		if have, ok := field(string(buf[:n]), "frozen"); ok && have == want {
			return nil
		}
		left := time.Until(deadline)
		if left <= 0 {
			if !frozen { // a parent is frozen: our own state is "thawed" and that is all that was asked
				return nil
			}
			if err := writeAt(d.fd, "cgroup.freeze", "0"); err != nil {
				return d.freezeError(false, err)
			}
			return d.freezeLate()
		}
		// The kernel raises POLLPRI when the file changes. The slices are only a net under a lost event.
		fds := []unix.PollFd{{Fd: int32(events), Events: unix.POLLPRI}}
		_, _ = unix.Poll(fds, int(min(left, 100*time.Millisecond)/time.Millisecond)+1)
	}
}

func (d *dir) freeze1(frozen bool) error {
	want := "THAWED"
	if frozen {
		want = "FROZEN"
	}
	w := waitUpTo(freezeWait)
	for {
		// The write is repeated: a process that was forked into the group while it froze keeps it in FREEZING until the
		// next write (cgroup-v1/freezer-subsystem.rst).
		if err := writeAt(d.fd, "freezer.state", want); err != nil {
			return d.freezeError(frozen, err)
		}
		state, err := readAt(d.fd, "freezer.state")
		if err != nil {
			return d.freezeError(frozen, err)
		}
		if state == want {
			return nil
		}
		if !frozen {
			if self, err := readAt(d.fd, "freezer.self_freezing"); err == nil && self == "0" {
				return nil // a parent is frozen: our own state is "thawed"
			}
		}
		if !w.sleep() {
			if err := writeAt(d.fd, "freezer.state", "THAWED"); err != nil {
				return d.freezeError(false, err)
			}
			return d.freezeLate()
		}
	}
}

// Frozen reports whether the group was asked to freeze, itself or by a parent.
func (g *Group) Frozen() (bool, error) {
	d, err := g.freezerDir()
	if err != nil {
		return false, err
	}
	if d.h.v2 {
		s, err := readAt(d.fd, "cgroup.events")
		if err != nil {
			return false, d.freezeError(true, err)
		}
		n, _ := field(s, "frozen")
		return n == 1, nil
	}
	s, err := readAt(d.fd, "freezer.state")
	if err != nil {
		return false, d.freezeError(true, err)
	}
	return s == "FROZEN" || s == "FREEZING", nil
}

// Kill kills everything in the group and its descendants (cgroup.kill, or freeze-kill-thaw) and returns at once: the
// processes are dying, not dead. A frozen group is thawed by it, for a v1 frozen process dies only then.
func (g *Group) Kill() error {
	for i := range g.dirs {
		d := &g.dirs[i]
		if d.h.v2 && g.l.V2 && d.fd >= 0 {
			switch err := writeAt(d.fd, "cgroup.kill", "1"); err { // Linux 5.14
			case nil, unix.ENODEV:
				return nil
			case unix.ENOENT, unix.EOPNOTSUPP: // older, or a threaded group
			default:
				return &errdefs.Error{Op: "kill control group", What: d.path, Err: err}
			}
		}
	}
	return g.killEach()
}

// killEach signals the processes one by one. Frozen processes cannot fork, so one round is enough where the freezer
// works; without it, rounds follow until no new process appears.
func (g *Group) killEach() error {
	var errs []error
	frz, ferr := g.freezerDir()
	if ferr == nil {
		// Only asked for, not waited for: even FREEZING stops a process at its next return to user space, so it
		// cannot fork on its own account for long, and the rounds below catch the rest.
		ferr = frz.askFreeze(true)
	}
	seen := map[int]bool{}
	for round := 0; round < 100; round++ {
		pids, err := g.Pids()
		if err != nil {
			errs = append(errs, err)
			break
		}
		fresh := false
		for _, p := range pids {
			if seen[p] {
				continue
			}
			seen[p], fresh = true, true
			if err := unix.Kill(p, unix.SIGKILL); err != nil && err != unix.ESRCH {
				errs = append(errs, &errdefs.Error{Op: "kill process", What: strconv.Itoa(p), Err: err})
			}
		}
		if !fresh {
			break
		}
	}
	if ferr == nil {
		if err := frz.askFreeze(false); err != nil && err != unix.ENOENT && err != unix.ENODEV {
			errs = append(errs, frz.freezeError(false, err))
		}
	}
	return errors.Join(errs...)
}

func (d *dir) askFreeze(on bool) error {
	switch {
	case d.h.v2 && on:
		return writeAt(d.fd, "cgroup.freeze", "1")
	case d.h.v2:
		return writeAt(d.fd, "cgroup.freeze", "0")
	case on:
		return writeAt(d.fd, "freezer.state", "FROZEN")
	}
	return writeAt(d.fd, "freezer.state", "THAWED")
}
