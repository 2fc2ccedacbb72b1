package engine

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/onggi/onggi/cgroup"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/runtime/monitor"
	"golang.org/x/sys/unix"
)

// What is found here was left by a kill, a power cut or a hand. Whatever belongs to a container whose lock is taken is
// somebody's work, and left alone.

// inUse says whether a container may own what runs: it runs, rests between two runs, or somebody is at work on it.
func (e *Engine) inUse(id string) bool {
	h, err := e.tryLock(id)
	if err != nil || h == nil {
		return err != nil || exists(e.stateDir(id))
	}
	defer h.unlock()
	r, err := e.read(id)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	e.effective(r)
	return r.Status != Exited && r.Status != Created && r.Status != Dead
}

func automatic(what, why, fix string, do func(context.Context) error) finding {
	return finding{Finding{What: what, Why: why, Fix: fix}, do}
}

const doctorFix = "onggi doctor --fix"

func checkContainers(_ context.Context, e *Engine) ([]finding, error) {
	ids, err := e.ids()
	if err != nil {
		return nil, err
	}
	var out []finding
	for _, id := range ids {
		h, err := e.tryLock(id)
		if err != nil {
			return out, err
		}
		if h == nil {
			continue
		}
		r, err := e.read(id)
		h.unlock()
		what := "container " + id[:12]
		sweep := func(ctx context.Context) error { _, err := e.sweepOne(ctx, id); return err }
		switch {
		case errors.Is(err, fs.ErrNotExist):
			out = append(out, automatic(what, "it has no record: whoever made or removed it was killed", "remove it: "+doctorFix, sweep))
			continue
		case errdefs.Is(err, errdefs.Corrupt):
			out = append(out, one(what, "its record cannot be read ("+e.statePath(id)+"): it cannot be started", "look at the file; remove the container: onggi rm -f "+id[:12])...)
			continue
		case err != nil:
			return out, err
		}
		what = "container " + cmpOr(r.Config.Name, id[:12])
		recorded := r.Status
		e.effective(r)
		switch {
		case recorded == Creating || recorded == Removing:
			out = append(out, automatic(what, "it is half "+map[Status]string{Creating: "made", Removing: "removed"}[recorded]+", and nobody is at it: a command was killed", "remove it: "+doctorFix, sweep))
		case r.Status == Dead:
			out = append(out, automatic(what, "its monitor was killed: nobody writes its log or sees its end", "end it: "+doctorFix, sweep))
		case (r.Status == Exited || r.Status == Created) && exists(e.runDir(id)) && !monitor.Alive(e.runDir(id)):
			out = append(out, automatic(what, "it has ended, and nobody has cleaned up after it: it holds its address", "clean up: "+doctorFix, sweep))
		}
	}
	return out, nil
}

// monitorOf returns the id of the container of this store whose monitor the process is; "" when it is none.
func (e *Engine) monitorOf(pid int) string {
	b, err := readBounded("/proc/"+strconv.Itoa(pid)+"/cmdline", 1<<16)
	if err != nil {
		return ""
	}
	args := strings.Split(string(b), "\x00")
	if len(args) < 4 || args[1] != "monitor" || args[2] != "--config" {
		return ""
	}
	dir, ok := strings.CutSuffix(args[3], "/monitor.json")
	if !ok || filepath.Dir(dir) != e.runsDir() || !isID(filepath.Base(dir)) {
		return ""
	}
	return filepath.Base(dir)
}

func checkProcesses(_ context.Context, e *Engine) ([]finding, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var out []finding
	for _, d := range entries {
		pid, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		id := e.monitorOf(pid)
		// One that is just planted has no record yet: it waits for a word on its connection.
		if id == "" || exists(e.stateDir(id)) || !exists(e.runDir(id)) {
			continue
		}
		out = append(out, automatic("process "+d.Name(), "it is the monitor of container "+id[:12]+", which does not exist any more", "end it: "+doctorFix, func(context.Context) error {
			fd, err := unix.PidfdOpen(pid, 0)
			if err == unix.ESRCH {
				return nil
			}
			if err != nil {
				return err
			}
			defer unix.Close(fd) //nolint:errcheck // a handle
			if e.monitorOf(pid) != id {
				return nil // the number is another process's by now
			}
			if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
				return err
			}
			_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 2000)
			return err
		}))
	}
	return out, nil
}

// unescape undoes mountinfo's octal escapes (proc(5)).
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func checkMounts(_ context.Context, e *Engine) ([]finding, error) {
	b, err := readBounded("/proc/self/mountinfo", 64<<20)
	if err != nil {
		return nil, err
	}
	var out []finding
	for l := range strings.Lines(string(b)) {
		f := strings.Fields(l)
		if len(f) < 5 {
			continue
		}
		at := unescape(f[4])
		for _, root := range []string{e.o.Root, e.o.RunRoot} {
			// A directory of the root may be a disk of its own: root/volumes, say. Ours never are further below.
			rel, ok := strings.CutPrefix(at, strings.TrimSuffix(root, "/")+"/")
			if !ok || !strings.Contains(rel, "/") {
				continue
			}
			out = append(out, automatic("mount "+at, "no mount of a container belongs into the host's namespace: it keeps files and devices busy, and removals fail", "umount -l "+at, func(context.Context) error {
				return unix.Unmount(at, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
			}))
			break
		}
	}
	slices.Reverse(out) // what is mounted last is unmounted first
	return out, nil
}

func checkGroups(_ context.Context, e *Engine) ([]finding, error) {
	l, err := cgroup.Detect()
	if err != nil {
		return nil, nil //nolint:nilerr // the check of the host says so
	}
	places := map[string]bool{}
	for _, m := range l.Controllers {
		places[m] = true
	}
	if l.Root != "" {
		places[l.Root] = true
	}
	var found []string
	for m := range places {
		ids, err := idsIn(filepath.Join(m, e.o.CgroupParent))
		if err != nil {
			return nil, err
		}
		for _, id := range ids {
			// Stores share the parent: a group whose container this one knows nothing of is another one's.
			ours := exists(e.stateDir(id)) || exists(e.runDir(id)) || exists(e.runtimeDir(id))
			if ours && !slices.Contains(found, id) && !e.inUse(id) {
				found = append(found, id)
			}
		}
	}
	slices.Sort(found)
	var out []finding
	for _, id := range found {
		out = append(out, automatic("control group "+e.o.CgroupParent+"/"+id, "its container does not run: processes in it belong to nobody", "kill what is in it, and remove it: "+doctorFix, func(context.Context) error {
			h := &held{e: e, rec: &record{Container: Container{ID: id, Status: Dead}, CgroupPath: e.o.CgroupParent + "/" + id}}
			return h.killAll()
		}))
	}
	return out, nil
}

func checkAddresses(_ context.Context, e *Engine) ([]finding, error) {
	entries, err := os.ReadDir(filepath.Join(e.o.RunRoot, "network", "endpoints"))
	if err != nil {
		return nil, ignoreMissing(err)
	}
	var out []finding
	for _, d := range entries {
		id, _, _ := strings.Cut(d.Name(), ".")
		id = id[:min(len(id), 64)]
		if !isID(id) || e.inUse(id) {
			continue
		}
		out = append(out, automatic("endpoint "+d.Name(), "addresses and ports are given to container "+id[:12]+", which does not run: nobody else gets them", "give them back: "+doctorFix, e.sweepNetwork))
	}
	return out, nil
}

func checkLeftovers(_ context.Context, e *Engine) ([]finding, error) {
	var out []finding
	for _, x := range []struct {
		dir, what string
		sweep     func(context.Context) error
	}{
		{e.runsDir(), "run directory", func(context.Context) error { return e.sweepRuns() }},
		{e.pendingDir(), "marker", func(context.Context) error { return e.sweepRuns() }},
		{e.runtimeRoot(), "runtime's state", func(context.Context) error { return e.sweepRuntime() }},
		{filepath.Join(e.snapshotsDir(), "containers"), "writable layer", e.sweepSnapshots},
		{e.logsDir(), "log", func(context.Context) error { return e.sweepLogs() }},
		{e.namesDir(), "name", func(context.Context) error { return e.sweepNames() }},
	} {
		entries, err := os.ReadDir(x.dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return out, err
		}
		for _, d := range entries {
			id, _, _ := strings.Cut(d.Name(), ".")
			if x.what == "name" {
				if id, err = os.Readlink(e.namePath(d.Name())); err != nil {
					continue
				}
			}
			if !isID(id) || exists(e.stateDir(id)) || x.what == "writable layer" && e.hasRecord(id) {
				continue
			}
			out = append(out, automatic(x.what+" "+filepath.Join(x.dir, d.Name()), "its container does not exist: it takes space, or a name", "remove it: "+doctorFix, x.sweep))
		}
	}
	return out, nil
}

func checkVolumes(_ context.Context, e *Engine) ([]finding, error) {
	dir := filepath.Join(e.o.Root, "volumes")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, ignoreMissing(err)
	}
	store, err := e.Volumes()
	if err != nil {
		return nil, err
	}
	used, err := e.usedVolumes()
	if err != nil {
		return nil, err
	}
	var out []finding
	sweep := func(context.Context) error { return e.sweepVolumes() }
	for _, d := range entries {
		what := "volume " + d.Name()
		if strings.HasPrefix(d.Name(), ".new-") || strings.HasPrefix(d.Name(), ".gone-") {
			if fi, err := d.Info(); err == nil && time.Since(fi.ModTime()).Abs() > litterAge {
				out = append(out, automatic(what, "it is half made or half removed: a command was killed", "remove what is left of it: "+doctorFix, func(context.Context) error { return store.Sweep() }))
			}
			continue
		}
		if !d.IsDir() || strings.HasPrefix(d.Name(), ".") {
			continue
		}
		v, err := store.Get(d.Name())
		switch {
		case errdefs.Is(err, errdefs.Corrupt), errdefs.Is(err, errdefs.NotFound) && exists(filepath.Join(dir, d.Name())):
			out = append(out, one(what, "its record "+filepath.Join(dir, d.Name(), "volume.json")+" is missing or cannot be read: no container that uses it can start",
				"its data is untouched in "+filepath.Join(dir, d.Name(), "_data")+": copy it, and remove the directory")...)
		case err == nil && v.Anonymous && v.Volatile && !used[v.Name]:
			out = append(out, automatic(what, "it was made for a --rm container that does not exist any more", "remove it: "+doctorFix, sweep))
		}
	}
	return out, nil
}

func checkFiles(_ context.Context, e *Engine) ([]finding, error) {
	entries, err := os.ReadDir(e.o.Root)
	if err != nil {
		return nil, err
	}
	var out []finding
	for _, d := range entries {
		if o, _ := ownerOf(d.Name()); o.kind == "unknown" {
			out = append(out, one(filepath.Join(e.o.Root, d.Name()), "it is not Onggi's: nothing here reads it, and no command removes it", "move it elsewhere")...)
		}
	}
	return out, nil
}

// litterAge is how old something half made must be before it counts as left: somebody may be at it.
const litterAge = time.Minute
