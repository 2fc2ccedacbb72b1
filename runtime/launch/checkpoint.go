package launch

//lint:file-ignore SA1019 Prestart is deprecated, but engines still send it

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/pathrs"
	"github.com/onggi/onggi/runtime/criu"
	"github.com/onggi/onggi/runtime/plan"
	"github.com/onggi/onggi/undo"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Images say where a checkpoint lies and how CRIU makes or uses it (criu(8)).
type Images struct {
	Criu           string // the program; "" is criu
	Dir            string // of the images; made when it is missing
	Work           string // of CRIU's logs; "" is Dir
	Parent         string // checkpoint: images of an earlier pre-dump, relative to Dir
	TCPEstablished bool   // keep open TCP connections
	ExternalUnix   bool   // unix sockets whose other end is outside
	ShellJob       bool   // the container is part of a session outside
	FileLocks      bool
	LazyPages      bool // memory is fetched when it is touched
	AutoDedup      bool
	LeaveRunning   bool     // checkpoint: the container goes on
	PreDump        bool     // checkpoint: only memory, and the container goes on
	Server         string   // checkpoint: address of a page server
	ServerPort     int      // its port
	Status         *os.File // checkpoint with LazyPages: gets a NUL byte when pages may be fetched
	// CgroupMode is what CRIU does with control groups: soft (default), full, strict or ignore.
	CgroupMode string
	EmptyNet   bool   // the network namespace is empty when restored
	LSMProfile string // restore: TYPE:NAME instead of the saved profile
	LSMContext string // restore: SELinux context of mounts
}

const (
	descriptors = "descriptors.json" // in the images: what the standard streams were, as runc writes it
	dumpLog     = "dump.log"
	restoreLog  = "restore.log"
)

// Checkpoint saves the container's processes to files. Without LeaveRunning and PreDump they are gone then, and the
// caller deletes the container. Errors: Conflict when it has not been started or has ended, NotFound without CRIU;
// others are CRIU's, with the end of its log.
func (c *Container) Checkpoint(im *Images) error {
	return c.locked(func(s runspec.ContainerState) error {
		if s != runspec.StateRunning && s != StatePaused {
			return &errdefs.Error{Op: "checkpoint container", What: c.record.ID, Kind: errdefs.Conflict, Why: "it is " + string(s) + ", not running"}
		}
		return c.checkpoint(im)
	})
}

func (c *Container) checkpoint(im *Images) error {
	if c.record.Rootfs == "" {
		return &errdefs.Error{
			Op: "checkpoint container", What: c.record.ID, Kind: errdefs.Unsupported,
			Why: "its root file system is mounted only inside of it, and would be gone with it",
		}
	}
	if !c.record.ownMounts() {
		return &errdefs.Error{
			Op: "checkpoint container", What: c.record.ID, Kind: errdefs.Unsupported,
			Why: "its mount namespace (linux.namespaces) is not its own, and would be saved with the mounts of others",
		}
	}
	spec, err := LoadSpec(c.record.Bundle)
	if err != nil {
		return err
	}
	version, err := criu.Version(im.Criu)
	if err != nil {
		return err
	}
	opts, closers, err := im.options(dumpLog)
	defer closeFiles(&closers)
	if err != nil {
		return err
	}
	opts.Pid = ptr(int32(c.pid))
	opts.Root = ptr(c.record.Rootfs)
	opts.LeaveRunning = ptr(im.LeaveRunning)
	if err := im.can(version); err != nil {
		return err
	}
	if im.Parent != "" {
		opts.ParentImg, opts.TrackMem = ptr(im.Parent), ptr(true)
	}
	if im.PreDump {
		opts.TrackMem = ptr(true)
	}
	if im.Server != "" {
		opts.Ps = &rpc.CriuPageServerInfo{Address: ptr(im.Server), Port: ptr(int32(im.ServerPort))}
	}
	for _, n := range spec.Linux.Namespaces {
		if (n.Type == runspec.NetworkNamespace || n.Type == runspec.PIDNamespace) && n.Path != "" {
			var st unix.Stat_t
			if err := unix.Stat(n.Path, &st); err != nil {
				return &errdefs.Error{Op: "find", What: string(n.Type) + " namespace " + n.Path, Err: err}
			}
			opts.External = append(opts.External, criuName(n.Type)+"["+strconv.FormatUint(st.Ino, 10)+"]:"+outerKey(n.Type))
		}
	}
	if g, err := c.openGroup(); err == nil {
		for _, name := range [...]string{"freezer", ""} {
			if dir := g.Paths()[name]; dir != "" && (name != "" || version >= 31400 && c.unified()) {
				opts.FreezeCgroup = ptr(dir)
				break
			}
		}
	}
	kind := rpc.CriuReqType_PRE_DUMP
	if !im.PreDump {
		kind = rpc.CriuReqType_DUMP
		if opts.ExtMnt, err = c.outerMounts(spec); err != nil {
			return err
		}
		if err := c.saveDescriptors(im.Dir); err != nil {
			return err
		}
	}
	_, err = criu.Call(&criu.Request{
		Path: im.Criu, Req: &rpc.CriuReq{Type: &kind, Opts: opts}, Log: im.log(dumpLog),
		Notify: func(n *criu.Notice) error {
			if n.File != nil {
				_ = n.File.Close()
			}
			if n.Script == "status-ready" && im.Status != nil {
				_, err := im.Status.Write([]byte{0})
				return errors.Join(err, im.Status.Close())
			}
			return nil
		},
	})
	return err
}

func (c *Container) unified() bool {
	l, err := layout()
	return err == nil && l.V2
}

// can refuses what the installed CRIU or the kernel cannot do, before anything is stopped.
func (im *Images) can(version int) error {
	if version < 30000 {
		return &errdefs.Error{Op: "use", What: "CRIU", Kind: errdefs.Unsupported, Why: "it must be version 3.0 or later"}
	}
	if !im.PreDump && !im.LazyPages && im.Parent == "" {
		return nil
	}
	track, lazy, err := criu.Features(im.Criu)
	switch {
	case err != nil:
		return err
	case (im.PreDump || im.Parent != "") && !track:
		return &errdefs.Error{
			Op: "save memory step by step with", What: "CRIU", Kind: errdefs.Unsupported,
			Why: "CRIU or the kernel cannot tell which memory has changed (CONFIG_MEM_SOFT_DIRTY)",
		}
	case im.LazyPages && !lazy:
		return &errdefs.Error{
			Op: "fetch memory lazily with", What: "CRIU", Kind: errdefs.Unsupported,
			Why: "CRIU or the kernel has no userfaultfd(2) for it",
		}
	}
	return nil
}

func ptr[T any](v T) *T { return &v }

func closeFiles(fs *[]*os.File) {
	for _, f := range *fs {
		_ = f.Close()
	}
}

func (im *Images) log(name string) string {
	if im.Work != "" {
		return filepath.Join(im.Work, name)
	}
	return filepath.Join(im.Dir, name)
}

// options are what checkpoint and restore have in common. The files must stay open while CRIU works.
func (im *Images) options(log string) (o *rpc.CriuOpts, files []*os.File, err error) {
	mode := map[string]rpc.CriuCgMode{
		"": rpc.CriuCgMode_SOFT, "soft": rpc.CriuCgMode_SOFT, "full": rpc.CriuCgMode_FULL, "strict": rpc.CriuCgMode_STRICT,
		"ignore": rpc.CriuCgMode_IGNORE,
	}
	m, ok := mode[im.CgroupMode]
	if !ok {
		return nil, nil, &errdefs.Error{Op: "use", What: "--manage-cgroups-mode", Kind: errdefs.InvalidArgument, Why: "its values are soft, full, strict and ignore"}
	}
	open := func(dir string) *int32 {
		if err != nil {
			return nil
		}
		if e := os.Mkdir(dir, 0o700); e != nil && !os.IsExist(e) {
			err = e
			return nil
		}
		var f *os.File
		if f, err = os.Open(dir); err != nil {
			return nil
		}
		files = append(files, f)
		return ptr(int32(f.Fd()))
	}
	o = &rpc.CriuOpts{
		ImagesDirFd: open(im.Dir), LogLevel: ptr(int32(4)), LogFile: ptr(log), NotifyScripts: ptr(true),
		ManageCgroups: ptr(true), ManageCgroupsMode: &m, OrphanPtsMaster: ptr(true),
		ShellJob: &im.ShellJob, TcpEstablished: &im.TCPEstablished, ExtUnixSk: &im.ExternalUnix, FileLocks: &im.FileLocks,
		AutoDedup: &im.AutoDedup, LazyPages: &im.LazyPages,
	}
	if im.Work != "" {
		o.WorkDirFd = open(im.Work)
	}
	if im.EmptyNet {
		o.EmptyNs = ptr(uint32(unix.CLONE_NEWNET))
	}
	return o, files, err
}

// criuName is CRIU's word for a type of namespace, which is the kernel's (/proc/PID/ns).
func criuName(t runspec.LinuxNamespaceType) string {
	switch t {
	case runspec.NetworkNamespace:
		return "net"
	case runspec.MountNamespace:
		return "mnt"
	}
	return string(t)
}

// outerKey names a namespace that stays outside of the images; runc's names, so that each can restore what the other
// has saved.
func outerKey(t runspec.LinuxNamespaceType) string {
	if t == runspec.NetworkNamespace {
		return "extRootNetNS"
	}
	return "extRootPidNS"
}

// inside is a line of a container's mount table.
type inside struct{ id, point string }

// mountTable reads /proc/PID/mountinfo (proc_pid_mountinfo(5)).
func mountTable(pid string) (list []inside, err error) {
	b, err := readBounded("/proc/"+pid+"/mountinfo", maxSpec)
	if err != nil {
		return nil, err
	}
	for l := range strings.Lines(string(b)) {
		if f := strings.Fields(l); len(f) > 5 {
			list = append(list, inside{f[0], strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(f[4])})
		}
	}
	return list, nil
}

// outerMounts lists the mounts whose content is not the container's: binds, masks, devices and v1 control groups. The
// place is where the mount is, behind all links of the image; the name is the spec's, by which restore finds it.
func (c *Container) outerMounts(spec *runspec.Spec) ([]*rpc.ExtMountMap, error) {
	pid := strconv.Itoa(c.pid)
	table, err := mountTable(pid)
	if err != nil {
		return nil, err
	}
	root, err := unix.Open("/proc/"+pid+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, notRunning(c.record.ID)
	}
	defer unix.Close(root) //nolint:errcheck // a handle
	// at returns the mount that is attached at dest, "" when there is none of its own.
	at := func(dest string, want uint32) string {
		fd, err := openIn(root, dest, unix.O_PATH)
		if err != nil {
			return ""
		}
		defer unix.Close(fd) //nolint:errcheck // a handle
		var st unix.Stat_t
		if unix.Fstat(fd, &st) != nil || want != 0 && st.Mode&unix.S_IFMT != want {
			return ""
		}
		b, _ := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(fd))
		_, rest, _ := strings.Cut(string(b), "mnt_id:")
		id, _, _ := strings.Cut(strings.TrimSpace(rest), "\n")
		name, _ := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
		for _, m := range table {
			if m.id == id && m.point == name {
				return m.point
			}
		}
		return ""
	}
	var out []*rpc.ExtMountMap
	seen := map[string]bool{}
	add := func(point, name string) {
		if point != "" && !seen[point] {
			seen[point] = true
			out = append(out, &rpc.ExtMountMap{Key: ptr(point), Val: ptr(name)})
		}
	}
	for i := range spec.Mounts {
		m := &spec.Mounts[i]
		dest := path.Clean("/" + m.Destination)
		switch {
		case isBind(m):
			point := at(dest, 0)
			add(point, dest)
			for _, t := range table {
				if rel, ok := strings.CutPrefix(t.point, point+"/"); ok && point != "" {
					add(t.point, dest+"/"+rel)
				}
			}
		case m.Type == "cgroup" && !c.unified() && !makes(spec, runspec.CgroupNamespace):
			for _, t := range table {
				if rel, ok := strings.CutPrefix(t.point, dest+"/"); ok {
					add(t.point, dest+"/"+rel)
				}
			}
		}
	}
	for _, p := range spec.Linux.MaskedPaths {
		if point := at(p, unix.S_IFCHR); point != "" {
			add(point, "/dev/null")
		}
	}
	for _, d := range devicesOf(spec) {
		add(at(d, 0), d)
	}
	return out, nil
}

// devicesOf are the places of device nodes, which are mounts where nodes cannot be made.
func devicesOf(spec *runspec.Spec) []string {
	list := []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"}
	for _, d := range spec.Linux.Devices {
		list = append(list, d.Path)
	}
	return list
}

func isBind(m *runspec.Mount) bool {
	return m.Type == "bind" || has(m.Options, "bind") || has(m.Options, "rbind")
}

// makes reports whether a container gets a new namespace of a type.
func makes(spec *runspec.Spec, t runspec.LinuxNamespaceType) bool {
	for _, n := range spec.Linux.Namespaces {
		if n.Type == t {
			return n.Path == ""
		}
	}
	return false
}

// saveDescriptors writes what the standard streams are: pipes are given anew at restore, under these names.
func (c *Container) saveDescriptors(dir string) error {
	var list []string
	for i := range 3 {
		name, err := os.Readlink("/proc/" + strconv.Itoa(c.pid) + "/fd/" + strconv.Itoa(i))
		if err != nil {
			name = "/dev/null"
		}
		list = append(list, name)
	}
	b, err := json.Marshal(list)
	if err != nil {
		return err
	}
	return replace(filepath.Join(dir, descriptors), b)
}

// Restore makes a container from a checkpoint. It runs when Restore returns; its first process is the caller's child.
// Options are as for Create: Bundle and its config.json must be those that it was made from. On failure nothing is left.
func Restore(ctx context.Context, o Options, im *Images) (_ *Container, err error) {
	steps := undo.New("restore")
	defer steps.Undo(&err)
	k := &creation{
		Options: o, spec: o.Spec, lock: -1, reportW: -1, controlR: -1, gate: -1, console: -1, consoleR: -1,
		dir: path.Join(o.Root, o.ID),
	}
	k.Ungated = true
	k.c = &Container{root: o.Root, control: -1, report: -1, steps: steps, born: monotonic()}
	defer k.close()
	if err := steps.Do("spec", k.load, nil); err != nil {
		return nil, err
	}
	if o.Systemd {
		return nil, &errdefs.Error{
			Op: "restore container", What: o.ID, Kind: errdefs.Unsupported,
			Why: "systemd makes a control group only around a process that is there, and CRIU needs the group before it makes one",
			Fix: "restore without --systemd-cgroup, with a path as linux.cgroupsPath",
		}
	}
	if !plan.OwnMounts(k.spec) {
		return nil, &errdefs.Error{Op: "restore container", What: o.ID, Kind: errdefs.Unsupported, Why: "its mount namespace (linux.namespaces) is not its own"}
	}
	if k.rootfs() == "" {
		return nil, &errdefs.Error{Op: "restore container", What: o.ID, Kind: errdefs.Unsupported, Why: "its root file system must be a directory"}
	}
	if err := steps.Do("record", k.record, func() error { return removeState(o.Root, o.ID) }); err != nil {
		return nil, err
	}
	k.startGroup(steps)
	if err := steps.Do("cgroup", k.waitGroup, nil); err != nil {
		return nil, err
	}
	if err := steps.Do("mountpoints", k.mountPoints, nil); err != nil {
		return nil, err
	}
	if err := steps.Do("process", func() error { return k.callCriu(ctx, im) }, k.c.killRestored); err != nil {
		return nil, errors.Join(err, k.c.killRestored())
	}
	if err := steps.Do("release", k.adopted, nil); err != nil {
		return nil, err
	}
	steps.Done()
	return k.c, nil
}

// killRestored takes back what CRIU has made.
func (c *Container) killRestored() error {
	if c.group != nil {
		_ = c.group.Kill()
	}
	if c.pid > 0 {
		reap(c.pid)
		c.pid = 0
	}
	if c.console != nil {
		_ = c.console.Close()
		c.console = nil
	}
	return nil
}

// mountPoints makes the places of mounts in the root file system that are not there: CRIU mounts, but makes none. The
// root is a handle that nothing escapes, for the container may have put links into it.
func (k *creation) mountPoints() error {
	root, err := pathrs.OpenRoot(k.rootfs())
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // a handle
	var covered []string
	for i := range k.spec.Mounts {
		m := &k.spec.Mounts[i]
		dest := path.Clean("/" + m.Destination)
		hidden := false
		for _, c := range covered {
			hidden = hidden || strings.HasPrefix(dest, c+"/")
		}
		if !isBind(m) {
			covered = append(covered, dest)
		}
		if hidden || dest == "/" {
			continue
		}
		dir := dest
		file := false
		if isBind(m) {
			src := m.Source
			if !path.IsAbs(src) {
				src = path.Join(k.Bundle, src)
			}
			var st unix.Stat_t
			if unix.Stat(src, &st) == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
				file, dir = true, path.Dir(dest)
			}
		}
		if f, err := pathrs.Open(root, dest, unix.O_PATH, 0); err == nil {
			_ = f.Close()
			continue
		}
		d, err := pathrs.MkdirAll(root, dir, 0o755)
		if err != nil {
			return err
		}
		if file {
			fd, e := unix.Openat(int(d.Fd()), path.Base(dest), unix.O_CREAT|unix.O_EXCL|unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o644)
			if e == nil {
				_ = unix.Close(fd)
			} else if e != unix.EEXIST {
				err = &errdefs.Error{Op: "make the mount point", What: dest, Err: e}
			}
		}
		_ = d.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// callCriu restores. CRIU wants the root to be a mount; that is made in a mount namespace of CRIU's own, where the host
// does not see it and where it goes away with CRIU whatever happens.
func (k *creation) callCriu(ctx context.Context, im *Images) error {
	if _, err := os.Stat(filepath.Join(im.Dir, "inventory.img")); err != nil {
		return &errdefs.Error{Op: "restore container", What: k.ID, Kind: errdefs.NotFound, Why: im.Dir + " holds no checkpoint", Err: err}
	}
	if _, err := criu.Version(im.Criu); err != nil {
		return err
	}
	return privately(k.rootfs(), func() error { return k.callCriuPrivately(ctx, im) })
}

// callCriuPrivately is called in CRIU's mount namespace: the directories must be opened there, for CRIU mounts in them.
func (k *creation) callCriuPrivately(ctx context.Context, im *Images) error {
	opts, closers, err := im.options(restoreLog)
	defer closeFiles(&closers)
	if err != nil {
		return err
	}
	opts.Root = ptr(k.rootfs())
	opts.RstSibling, opts.EvasiveDevices = ptr(true), ptr(true)
	if im.LSMProfile != "" {
		opts.LsmProfile = ptr(im.LSMProfile)
	}
	if im.LSMContext != "" {
		opts.LsmMountContext = ptr(im.LSMContext)
	}
	req := &criu.Request{Path: im.Criu, Req: &rpc.CriuReq{Type: ptr(rpc.CriuReqType_RESTORE), Opts: opts}, Stdio: k.Stdio, Log: im.log(restoreLog)}
	for _, n := range k.spec.Linux.Namespaces {
		if n.Path == "" {
			continue
		}
		switch n.Type {
		case runspec.NetworkNamespace, runspec.PIDNamespace:
			f, err := os.Open(n.Path)
			if err != nil {
				return &errdefs.Error{Op: "open", What: string(n.Type) + " namespace " + n.Path, Err: err}
			}
			closers = append(closers, f)
			opts.InheritFd = append(opts.InheritFd, &rpc.InheritFd{Key: ptr(outerKey(n.Type)), Fd: ptr(int32(criu.FirstFile + len(req.Files)))})
			req.Files = append(req.Files, f)
		case runspec.CgroupNamespace:
			return &errdefs.Error{Op: "restore into", What: "the cgroup namespace " + n.Path, Kind: errdefs.Unsupported, Why: "CRIU cannot"}
		default:
			opts.JoinNs = append(opts.JoinNs, &rpc.JoinNamespace{Ns: ptr(criuName(n.Type)), NsFile: ptr(n.Path)})
		}
	}
	if err := k.givenMounts(opts); err != nil {
		return err
	}
	if err := k.givenStreams(im.Dir, opts); err != nil {
		return err
	}
	req.Started = func(pid int) error { return k.joinCriu(pid, opts) }
	req.Notify = func(n *criu.Notice) error { return k.notice(ctx, n) }
	_, err = criu.Call(req)
	return err
}

// privately calls f on a thread with a mount namespace of its own, in which root is a mount. The thread ends with it.
func privately(root string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
				return &errdefs.Error{Op: "make", What: "a mount namespace for CRIU", Err: err}
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return &errdefs.Error{Op: "make private", What: "the mounts for CRIU", Err: err}
			}
			if err := unix.Mount(root, root, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
				return &errdefs.Error{Op: "mount", What: root, Err: err}
			}
			if err := unix.Mount("", root, "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return &errdefs.Error{Op: "make private", What: root, Err: err}
			}
			return f()
		}()
	}()
	return <-done
}

// givenMounts says where the content of the outer mounts lies now.
func (k *creation) givenMounts(opts *rpc.CriuOpts) error {
	give := func(name, source string) {
		opts.ExtMnt = append(opts.ExtMnt, &rpc.ExtMountMap{Key: ptr(name), Val: ptr(source)})
	}
	own, err := mountTable("self")
	if err != nil {
		return err
	}
	l, err := layout()
	if err != nil {
		return err
	}
	for i := range k.spec.Mounts {
		m := &k.spec.Mounts[i]
		dest := path.Clean("/" + m.Destination)
		switch {
		case isBind(m):
			src := m.Source
			if !path.IsAbs(src) {
				src = path.Join(k.Bundle, src)
			}
			give(dest, src)
			for _, t := range own {
				if rel, ok := strings.CutPrefix(t.point, path.Clean(src)+"/"); ok && !has(m.Options, "bind") {
					give(dest+"/"+rel, t.point)
				}
			}
		case m.Type == "cgroup" && !l.V2 && k.group != nil && !makes(k.spec, runspec.CgroupNamespace):
			for name, dir := range k.group.Paths() {
				if point := l.Controllers[name]; point != "" {
					give(dest+"/"+path.Base(point), dir)
				}
			}
		}
	}
	give("/dev/null", "/dev/null")
	for _, d := range devicesOf(k.spec) {
		if d != "/dev/null" {
			give(d, d)
		}
	}
	return nil
}

// givenStreams gives the pipes of the standard streams anew.
func (k *creation) givenStreams(dir string, opts *rpc.CriuOpts) error {
	b, err := readBounded(filepath.Join(dir, descriptors), 64<<10)
	if err != nil {
		return &errdefs.Error{Op: "read", What: filepath.Join(dir, descriptors), Err: err, Why: "the checkpoint does not say what its standard streams were"}
	}
	var names []string
	if err := json.Unmarshal(b, &names); err != nil || len(names) > 3 {
		return &errdefs.Error{Op: "read", What: filepath.Join(dir, descriptors), Kind: errdefs.Corrupt, Err: err}
	}
	for i, n := range names {
		if strings.HasPrefix(n, "pipe:[") {
			opts.InheritFd = append(opts.InheritFd, &rpc.InheritFd{Key: ptr(n), Fd: ptr(int32(i))})
		}
	}
	return nil
}

// joinCriu has CRIU, and so what it restores, in the container's control group, and tells it that this is the root of
// the groups in the images.
func (k *creation) joinCriu(pid int, opts *rpc.CriuOpts) error {
	if k.group == nil {
		return nil // left in the caller's own
	}
	if err := k.group.Add(pid); err != nil {
		return err
	}
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return err
	}
	for l := range strings.Lines(string(b)) { // ID:CONTROLLER,CONTROLLER:PATH (cgroups(7))
		f := strings.SplitN(strings.TrimSuffix(l, "\n"), ":", 3)
		if len(f) != 3 {
			continue
		}
		for _, name := range strings.Split(f[1], ",") {
			opts.CgRoot = append(opts.CgRoot, &rpc.CgroupRoot{Ctrl: ptr(name), Path: ptr(f[2])})
		}
	}
	return nil
}

func (k *creation) notice(ctx context.Context, n *criu.Notice) error {
	switch n.Script {
	case "setup-namespaces":
		if h := k.spec.Hooks; h != nil {
			k.c.pid = n.Pid
			done := make(chan error, 1) // this thread is in CRIU's mount namespace, where no hook belongs
			go func() {
				done <- k.c.createHooks(ctx, &runspec.Hooks{Prestart: h.Prestart, CreateRuntime: h.CreateRuntime})
			}()
			return <-done
		}
	case "post-restore":
		k.c.pid = n.Pid
	case "orphan-pts-master":
		if n.File == nil {
			return &errdefs.Error{Op: "receive", What: "the terminal", Kind: errdefs.Internal}
		}
		if k.ConsoleSocket == nil {
			k.c.console = n.File
			return nil
		}
		defer n.File.Close() //nolint:errcheck // sent
		return unix.Sendmsg(int(k.ConsoleSocket.Fd()), []byte(n.File.Name()), unix.UnixRights(int(n.File.Fd())), nil, 0)
	}
	if n.File != nil {
		return n.File.Close()
	}
	return nil
}

// adopted records the restored process, with the filter that exec will need.
func (k *creation) adopted() error {
	r := k.c.record
	if r.Pid = k.c.pid; r.Pid <= 0 {
		return &errdefs.Error{Op: "restore container", What: k.ID, Kind: errdefs.Internal, Why: "CRIU has not told its process"}
	}
	r.Started, _ = startTime(r.Pid)
	r.Status = runspec.StateRunning
	k.c.started = time.Now()
	if k.spec.Linux.Seccomp != nil {
		p, err := Plan(Options{Root: k.Root, ID: k.ID, Bundle: k.Bundle, Spec: k.spec})
		if err != nil {
			return err
		}
		if err := k.keepFilter(p.Filter); err != nil {
			return err
		}
	}
	return r.write(k.Root)
}
