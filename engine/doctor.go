package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/onggi/onggi/cgroup"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/network"
	"golang.org/x/sys/unix"
)

// Finding is one thing that the doctor has found.
type Finding struct {
	Check     string // which check found it: "disk", "mounts"
	What      string // the thing
	Why       string // what is wrong with it, and what follows
	Fix       string // what to do
	Automatic bool   // the doctor can do it
	Fixed     bool   // and has done it: the check does not find it any more
	Failed    string // why it could not, if it tried
}

// Diagnosis is what the doctor says.
type Diagnosis struct {
	Root, RunRoot string
	Checks        []string // that were made, in order
	Findings      []Finding
}

// finding is a Finding with what puts it right; nil when that is for a person to decide.
type finding struct {
	Finding
	fix func(context.Context) error
}

// examination is one check.
type examination struct {
	name string
	find func(context.Context, *Engine) ([]finding, error)
}

var examinations = []examination{
	{"kernel", checkKernel},
	{"cgroups", checkCgroups},
	{"overlay", checkOverlay},
	{"nftables", checkNFTables},
	{"firewall", checkFirewall},
	{"user namespaces", checkUserNamespaces},
	{"limits", checkLimits},
	{"clock", checkClock},
	{"disk", checkDisk},
	{"resolver", checkResolver},
	{"runtime", checkRuntime},

	{"containers", checkContainers},
	{"processes", checkProcesses},
	{"mounts", checkMounts},
	{"control groups", checkGroups},
	{"addresses", checkAddresses},
	{"leftovers", checkLeftovers},
	{"volumes", checkVolumes},
	{"files", checkFiles},
}

// firstOfState is the first check that looks at the store, and not at the host.
const firstOfState = "containers"

// Doctor looks at the host and at the state of the engine, and with fix puts right what it can without losing anything
// that belongs to a container, a volume or an image. A check that cannot be made is a finding. What is in the blobs and
// layers is Check's to find.
func (e *Engine) Doctor(ctx context.Context, fix bool) (*Diagnosis, error) {
	d := &Diagnosis{Root: e.o.Root, RunRoot: e.o.RunRoot, Findings: []Finding{}}
	state := false
	for _, x := range examinations {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if state = state || x.name == firstOfState; state && !exists(e.versionPath()) {
			break // nothing has ever been made
		}
		d.Checks = append(d.Checks, x.name)
		d.Findings = append(d.Findings, e.examine(ctx, x, fix)...)
	}
	return d, nil
}

// examine makes one check. What is fixed is looked for again.
func (e *Engine) examine(ctx context.Context, x examination, fix bool) []Finding {
	found, err := x.find(ctx, e)
	var out []Finding
	for _, f := range found {
		f.Check, f.Automatic = x.name, f.fix != nil
		if fix && f.fix != nil {
			if err := f.fix(ctx); err != nil {
				f.Failed = err.Error()
			}
		}
		out = append(out, f.Finding)
	}
	if err != nil {
		out = append(out, Finding{Check: x.name, What: "the check itself", Why: err.Error(), Fix: errdefs.FixOf(err)})
	}
	if !fix || len(out) == 0 {
		return out
	}
	again, err := x.find(ctx, e)
	for i := range out {
		f := &out[i]
		there := slices.ContainsFunc(again, func(a finding) bool { return a.What == f.What && a.Why == f.Why })
		f.Fixed = f.Automatic && err == nil && !there
		if f.Automatic && !f.Fixed && f.Failed == "" {
			f.Failed = "it is there again"
		}
	}
	return out
}

func one(what, why, fix string) []finding {
	return []finding{{Finding: Finding{What: what, Why: why, Fix: fix}}}
}

// The host.

func checkKernel(context.Context, *Engine) ([]finding, error) {
	v, err := kernelVersion()
	if err == nil && (v[0] < 5 || v[0] == 5 && v[1] < 10) {
		return one(fmt.Sprintf("Linux %d.%d", v[0], v[1]), "it is older than 5.10: containers cannot start", "install a newer kernel"), nil
	}
	if err == nil {
		if b, rerr := readBounded("/proc/sys/kernel/seccomp/actions_avail", 4096); rerr != nil || !strings.Contains(string(b), "errno") {
			return one("seccomp", "the kernel has no filters for system calls (CONFIG_SECCOMP_FILTER): only containers with --security-opt seccomp=unconfined can start", "use another kernel"), nil
		}
	}
	return nil, err
}

func checkCgroups(context.Context, *Engine) ([]finding, error) {
	l, err := cgroup.Detect()
	if err != nil {
		return one("/sys/fs/cgroup", "no control groups are mounted: "+err.Error(), "mount -t cgroup2 cgroup2 /sys/fs/cgroup"), nil
	}
	has := func(c string) bool { return l.Controllers[c] != "" }
	if l.V2 {
		b, err := readBounded(filepath.Join(l.Root, "cgroup.controllers"), 4096)
		if err != nil {
			return nil, err
		}
		has = func(c string) bool { return slices.Contains(strings.Fields(string(b)), c) }
	}
	var out []finding
	for c, flag := range map[string]string{"memory": "--memory", "pids": "--pids-limit", "cpu": "--cpus"} {
		if !has(c) {
			out = append(out, one("controller "+c, "it is not available: "+flag+" is refused, and a container can take all of it",
				"boot with cgroup_enable="+c+", or delegate it to where this runs (systemd: Delegate=yes)")...)
		}
	}
	slices.SortFunc(out, func(a, b finding) int { return strings.Compare(a.What, b.What) })
	return out, nil
}

func checkOverlay(context.Context, *Engine) ([]finding, error) {
	b, err := readBounded("/proc/filesystems", 1<<16)
	if err == nil && !strings.Contains(string(b), "\toverlay\n") {
		return one("overlayfs", "the kernel has not loaded it: containers of images with more than one layer cannot start", "modprobe overlay"), nil
	}
	return nil, err
}

func checkNFTables(ctx context.Context, e *Engine) ([]finding, error) {
	if bridgeless() {
		return nil, nil // nobody would use it
	}
	if _, err := network.ForeignDrops(ctx, e.o.Bridge); err != nil {
		return one("nftables", "the kernel does not answer ("+err.Error()+"): containers on a bridge cannot start", "modprobe nf_tables"), nil
	}
	return nil, nil
}

func checkFirewall(ctx context.Context, e *Engine) ([]finding, error) {
	drops, err := network.ForeignDrops(ctx, e.o.Bridge)
	if err != nil {
		return nil, nil //nolint:nilerr // the check before this one says so
	}
	var out []finding
	for _, d := range drops {
		out = append(out, one("chain "+d, "it drops forwarded packets by policy, which no rule of ours can overrule: containers may not reach other hosts, nor be reached at published ports",
			"allow the bridge there, for example: nft insert rule "+d+" iifname onggi0 accept; nft insert rule "+d+" oifname onggi0 accept")...)
	}
	return out, nil
}

// sysctl is a finding when a number is below least; the fix writes it.
func sysctl(path string, least int64, why string) ([]finding, error) {
	b, err := readBounded(path, 64)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // this kernel has no such bound
	}
	if err != nil {
		return nil, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil || n >= least {
		return nil, err
	}
	name := strings.ReplaceAll(strings.TrimPrefix(path, "/proc/sys/"), "/", ".")
	return []finding{{
		Finding: Finding{What: fmt.Sprintf("%s = %d", name, n), Why: why, Fix: fmt.Sprintf("sysctl -w %s=%d (and in /etc/sysctl.d for the next boot)", name, least)},
		fix:     func(context.Context) error { return os.WriteFile(path, []byte(strconv.FormatInt(least, 10)), 0o644) },
	}}, nil
}

func checkUserNamespaces(context.Context, *Engine) ([]finding, error) {
	if oneID() {
		return one("this user's ids", "there is one only: "+oneIDWhy, oneIDFix), nil
	}
	return sysctl("/proc/sys/user/max_user_namespaces", 100, "user namespaces are off, or almost: idmapped binds and rootless containers cannot be made")
}

func checkLimits(context.Context, *Engine) ([]finding, error) {
	var out []finding
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return nil, err
	}
	if r.Max < 4096 {
		out = one(fmt.Sprintf("open files: at most %d", r.Max), "commands that look at many containers, and containers themselves, run out of them", "raise the hard limit of whatever starts onggi: ulimit -Hn 524288, LimitNOFILE=524288")
	}
	for _, s := range []struct {
		path  string
		least int64
		why   string
	}{
		{"/proc/sys/kernel/pid_max", 4096, "the whole host has so few process ids: forks fail"},
		{"/proc/sys/fs/inotify/max_user_instances", 128, "programs in containers that watch files fail with \"too many open files\""},
		{"/proc/sys/fs/inotify/max_user_watches", 8192, "programs in containers that watch files fail with \"no space left on device\""},
	} {
		f, err := sysctl(s.path, s.least, s.why)
		if err != nil {
			return out, err
		}
		out = append(out, f...)
	}
	return out, nil
}

func checkClock(context.Context, *Engine) ([]finding, error) {
	fi, err := os.Stat("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	return wrongClock(time.Now(), fi.ModTime()), nil
}

// wrongClock compares the time with that of this program's own file, which was there before.
func wrongClock(now, file time.Time) []finding {
	if now.Add(24*time.Hour).Before(file) || now.Year() < 2024 {
		return one("the clock", "it says "+now.UTC().Format(time.DateTime)+", and this program's file is younger: certificates of registries are not valid yet, and the trash keeps for ever",
			"set it: timedatectl set-ntp true, or date -s")
	}
	return nil
}

func checkDisk(_ context.Context, e *Engine) ([]finding, error) {
	l, err := e.Limits()
	if err != nil {
		return nil, err
	}
	var out []finding
	for _, d := range []struct {
		path  string
		least int64
		fix   string
	}{
		{e.o.Root, max(l.Reserve, 64<<20), "see what takes it (onggi system df -v), give some back (onggi system prune -a; onggi system prune --trash)"},
		{e.o.RunRoot, 4 << 20, "make the file system larger: mount -o remount,size=512m " + e.o.RunRoot},
	} {
		path := d.path
		for !exists(path) && path != "/" { // where it will be made
			path = filepath.Dir(path)
		}
		var st unix.Statfs_t
		if err := unix.Statfs(path, &st); err != nil {
			return out, &os.PathError{Op: "statfs", Path: path, Err: err}
		}
		if free := int64(st.Bavail) * st.Bsize; free < d.least {
			out = append(out, one("space for "+d.path, fmt.Sprintf("less than %d MiB are free on its file system: pulls and starts are refused or fail in the middle", (d.least+1<<20-1)>>20), d.fix)...)
		}
		if st.Files > 0 && st.Ffree < max(1, min(2000, st.Files/50)) {
			out = append(out, one("inodes for "+d.path, "almost none are left on its file system: no file can be made although there is space", d.fix+"; or look for directories with very many small files")...)
		}
	}
	return out, nil
}

func checkResolver(context.Context, *Engine) ([]finding, error) {
	b, err := readBounded("/etc/resolv.conf", 1<<20)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	for l := range strings.Lines(string(b)) {
		if f := strings.Fields(l); len(f) >= 2 && f[0] == "nameserver" {
			return nil, nil
		}
	}
	return one("/etc/resolv.conf", "it names no server: images cannot be pulled by name, and containers resolve nothing", "write a line \"nameserver ADDRESS\", or start the host's resolver; for one container: --dns ADDRESS"), nil
}

func checkRuntime(_ context.Context, e *Engine) ([]finding, error) {
	path, err := e.runtime()
	if err != nil {
		return one("onggi-runtime", err.Error(), errdefs.FixOf(err)), nil
	}
	if err := unix.Access(path, unix.X_OK); err != nil {
		return one(path, "it cannot be executed: "+err.Error()+": no container can start", "install onggi-runtime beside onggi"), nil
	}
	return nil, nil
}
