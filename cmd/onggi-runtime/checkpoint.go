package main

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/runtime/launch"
	"golang.org/x/sys/unix"
)

// imageFlags are common to checkpoint and restore.
type imageFlags struct {
	f       flags
	im      launch.Images
	emptyNS []string
}

func (i *imageFlags) define(g *globals, name string) *flags {
	i.f.of = name
	i.im.Criu = g.criu
	f, im := &i.f, &i.im
	f.str(&im.Dir, "DIR", "of the images (default ./checkpoint)", "image-path")
	f.str(&im.Work, "DIR", "of CRIU's logs and other files (default that of the images)", "work-path")
	f.bool(&im.TCPEstablished, "keep TCP connections open", "tcp-established")
	f.bool(&im.ExternalUnix, "allow unix sockets whose other end is outside", "ext-unix-sk")
	f.bool(&im.ShellJob, "allow a container that is part of a session outside", "shell-job")
	f.bool(&im.LazyPages, "fetch memory when it is touched (userfaultfd)", "lazy-pages")
	f.bool(&im.FileLocks, "keep file locks; safe only when all who hold them are in the container", "file-locks")
	f.str(&im.CgroupMode, "MODE", "what CRIU does with control groups: soft (default), full, strict or ignore", "manage-cgroups-mode")
	f.strs(&i.emptyNS, "TYPE", "make this namespace, and leave it empty; only network", "empty-ns")
	f.bool(&im.AutoDedup, "punch out of older images what newer ones hold", "auto-dedup")
	return f
}

// finish checks what was given.
func (i *imageFlags) finish() (err error) {
	for _, n := range i.emptyNS {
		if n != "network" {
			return i.f.bad("--empty-ns", "its only value is network")
		}
		i.im.EmptyNet = true
	}
	if i.im.Dir == "" {
		i.im.Dir = "checkpoint"
	}
	for _, p := range [...]*string{&i.im.Dir, &i.im.Work} {
		if *p != "" {
			if *p, err = filepath.Abs(*p); err != nil {
				return err
			}
		}
	}
	if os.Geteuid() != 0 {
		return &errdefs.Error{Op: "use", What: i.f.of, Kind: errdefs.Forbidden, Why: "CRIU needs root"}
	}
	return nil
}

func cmdCheckpoint(g *globals, args []string) (int, error) {
	i := imageFlags{}
	f := i.define(g, "checkpoint")
	im := &i.im
	var server string
	status := -1
	f.str(&im.Parent, "DIR", "images of an earlier pre-dump, relative to --image-path", "parent-path")
	f.bool(&im.LeaveRunning, "the container goes on", "leave-running")
	f.bool(&im.PreDump, "save only the memory, and the container goes on: a later checkpoint names it by --parent-path", "pre-dump")
	f.str(&server, "ADDRESS:PORT", "send memory to the page server there", "page-server")
	f.int(&status, "FD", "write a NUL byte to this descriptor when --lazy-pages is ready", "status-fd")
	rest, err := f.parse(args, true)
	if err != nil {
		return 1, err
	}
	id, err := f.one(rest)
	if err != nil {
		return 1, err
	}
	if err := i.finish(); err != nil {
		return 1, err
	}
	if im.Parent != "" {
		if filepath.IsAbs(im.Parent) {
			return 1, f.bad("--parent-path", "it is relative to --image-path")
		}
		if st, err := os.Stat(filepath.Join(im.Dir, im.Parent)); err != nil || !st.IsDir() {
			return 1, f.bad("--parent-path", filepath.Join(im.Dir, im.Parent)+" is not a directory")
		}
	}
	if server != "" {
		at := strings.LastIndexByte(server, ':')
		if at <= 0 {
			return 1, f.bad("--page-server", "it is ADDRESS:PORT")
		}
		port, err := strconv.ParseUint(server[at+1:], 10, 16)
		if err != nil || port == 0 {
			return 1, f.bad("--page-server", "it is ADDRESS:PORT")
		}
		im.Server, im.ServerPort = strings.Trim(server[:at], "[]"), int(port)
	}
	if status >= 0 {
		if !im.LazyPages {
			return 1, f.bad("--status-fd", "only --lazy-pages has a status")
		}
		if how, err := unix.FcntlInt(uintptr(status), unix.F_GETFL, 0); err != nil || how&unix.O_ACCMODE == unix.O_RDONLY {
			return 1, f.bad("--status-fd", "descriptor "+strconv.Itoa(status)+" is not open for writing")
		}
		im.Status = os.NewFile(uintptr(status), "status")
	}
	c, err := launch.Load(g.root, id)
	if err != nil {
		return 1, err
	}
	if err := c.Checkpoint(im); err != nil {
		return 1, err
	}
	if im.LeaveRunning || im.PreDump {
		return 0, nil
	}
	return 0, c.ForceDelete()
}

func cmdRestore(g *globals, args []string) (int, error) {
	i := imageFlags{}
	f := i.define(g, "restore")
	im := &i.im
	c := createFlags{}
	f.str(&c.bundle, "DIR", "the bundle that the container was made from (default the current directory)", "bundle", "b")
	f.str(&c.console, "SOCKET", consoleHelp, "console-socket")
	f.bool(&c.detach, "return when the processes run", "detach", "d")
	f.str(&c.pidFile, "FILE", pidFileHelp, "pid-file")
	f.bool(&c.noReaper, "do not adopt and reap the processes that the container leaves in the caller's pid namespace", "no-subreaper")
	f.bool(&c.noPivot, "accepted: CRIU enters the root in its own way", "no-pivot")
	f.bool(&c.keep, "", "keep") // hidden in runc
	f.str(&im.LSMProfile, "TYPE:NAME", "confine it by this profile instead of the saved one", "lsm-profile")
	f.str(&im.LSMContext, "CONTEXT", "SELinux context of its mounts", "lsm-mount-context")
	rest, err := f.parse(args, true)
	if err != nil {
		return 1, err
	}
	id, err := f.one(rest)
	if err != nil {
		return 1, err
	}
	if err := i.finish(); err != nil {
		return 1, err
	}
	if c.bundle == "" {
		c.bundle = "."
	}
	if c.bundle, err = filepath.Abs(c.bundle); err != nil {
		return 1, err
	}
	c.f = flags{of: "restore"}
	o, err := c.options(g, id)
	if err != nil {
		return 1, err
	}
	if o.Spec.Process != nil && o.Spec.Process.Terminal && o.ConsoleSocket == nil && c.detach {
		return 1, f.bad("--detach", "a container with a terminal needs --console-socket")
	}
	if !c.detach && !c.noReaper {
		_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	}
	k, err := launch.Restore(context.Background(), o, im)
	if err != nil {
		return 1, err
	}
	return c.follow(g, k, ownPids(o.Spec), true)
}
