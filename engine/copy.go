package engine

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/onggi/onggi/archive"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/mount"
	"github.com/onggi/onggi/pathrs"
	"golang.org/x/sys/unix"
)

// PathStat is a file of a container. Size, Mode and Modified are those of a link itself.
type PathStat struct {
	Name     string // the last part of its path
	Size     int64  // bytes
	Mode     fs.FileMode
	Modified time.Time
	Link     string // what a link leads to, as a path from the container's root
}

// A container's files are reached by a handle of its root directory: of a running one by its first process, whose mounts
// are all seen; of another by its layers and volumes, mounted where nobody else sees it. The kernel keeps every path inside
// (RESOLVE_IN_ROOT), whatever a process in there exchanges meanwhile (CVE-2018-15664), and no program of the container runs.

// tree is the root of a container's files; close ends what it needs.
type tree struct {
	root  *os.File
	close func()
}

// openRoot opens a container's files. Of a container that does not run nobody else can start or remove it until close.
func (e *Engine) openRoot(ctx context.Context, idOrName string) (*record, *tree, error) {
	for tries := 0; ; tries++ {
		r, err := e.get(idOrName)
		if err != nil {
			return nil, nil, err
		}
		if r.Status == Running {
			root, err := os.OpenFile("/proc/"+strconv.Itoa(r.Pid)+"/root", unix.O_PATH|unix.O_DIRECTORY, 0)
			// The number was its own if it still runs now.
			if err == nil {
				if now, gerr := e.get(r.ID); gerr == nil && now.Status == Running && now.Pid == r.Pid {
					return r, &tree{root, func() { _ = root.Close() }}, nil
				}
				_ = root.Close()
			} else if !errors.Is(err, fs.ErrNotExist) {
				return nil, nil, &errdefs.Error{Op: "open", What: "the files of container " + idOrName, Kind: errdefs.KindOf(err), Err: err}
			}
			if tries < 100 {
				time.Sleep(time.Millisecond)
				continue
			}
		}
		h, err := e.lock(ctx, r.ID)
		if err != nil {
			return nil, nil, err
		}
		if e.effective(h.rec); h.rec.Status == Running {
			h.unlock()
			continue
		}
		t, err := h.mountRoot()
		if err != nil {
			h.unlock()
			return nil, nil, err
		}
		end := t.close
		t.close = func() { end(); h.unlock() }
		return h.rec, t, nil
	}
}

// mountRoot mounts the files of a container that does not run in a mount namespace that only the returned handle keeps.
func (h *held) mountRoot() (_ *tree, err error) {
	e, r := h.e, h.rec
	at, err := os.MkdirTemp(e.o.RunRoot, "tree.")
	if err != nil {
		return nil, err
	}
	defer func() {
		if rerr := os.Remove(at); rerr != nil && err == nil { // it was only covered in that namespace
			err = rerr
		}
	}()
	snap, err := e.snapshot()
	if err != nil {
		return nil, err
	}
	if r.Config.AutoRemove && h.startedSinceBoot() {
		if err := snap.MountAgain(r.ID); err != nil {
			return nil, err
		}
	}
	stack, err := snap.Mounts(r.ID, false, r.Config.AutoRemove)
	if err != nil {
		return nil, err
	}
	v, err := newView(stack, at)
	if err != nil {
		return nil, err
	}
	found, err := h.ensureVolumes(v)
	v.close()
	if err != nil {
		return nil, err
	}
	defer found.close()
	mounts, err := h.mounts()
	if err != nil {
		return nil, err
	}
	var root, namespace *os.File
	err = onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return err
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		if err := mount.All(stack, at); err != nil {
			return err
		}
		if root, err = pathrs.OpenRoot(at); err != nil {
			return err
		}
		for _, m := range mounts {
			if m.Type != "bind" && m.Type != "volume" {
				continue
			}
			source := cmpOr(found.paths[m.Target], m.Source)
			b := mount.Mount{Type: "bind", Source: source, Target: m.Target, Options: []string{"rbind"}}
			if m.ReadOnly {
				b.Options = append(b.Options, "ro")
			}
			if st, err := os.Stat(source); err != nil {
				continue // the source of a bind has gone since
			} else if st.IsDir() {
				d, err := pathrs.MkdirAll(root, strings.TrimPrefix(m.Target, "/"), 0o755)
				if err != nil {
					return err
				}
				_ = d.Close()
			} else if f, err := pathrs.Open(root, strings.TrimPrefix(m.Target, "/"), unix.O_PATH, 0); err != nil {
				continue // the next start makes the file that it is mounted on
			} else {
				_ = f.Close()
			}
			if err := mount.All([]mount.Mount{b}, at); err != nil {
				return err
			}
		}
		_ = root.Close()
		if root, err = os.OpenFile(at, unix.O_PATH|unix.O_DIRECTORY, 0); err != nil {
			return err
		}
		// The mounts live as long as their namespace, and that as long as the thread or this file.
		namespace, err = os.Open("/proc/thread-self/ns/mnt")
		return err
	})
	if err != nil {
		if root != nil {
			_ = root.Close()
		}
		return nil, &errdefs.Error{Op: "mount", What: "the files of container " + r.ID[:12], Kind: errdefs.KindOf(err), Err: err}
	}
	return &tree{root, func() { _, _ = root.Close(), namespace.Close() }}, nil
}

// at is a path as openat2 takes it below a root.
func inside(p string) string {
	if p = strings.TrimPrefix(path.Clean("/"+p), "/"); p == "" {
		return "."
	}
	return p
}

// stat looks at a path; with follow at what a link leads to.
func (t *tree) stat(name string, follow bool) (*PathStat, error) {
	flags := unix.O_PATH | unix.O_NOFOLLOW
	if follow {
		flags = unix.O_PATH
	}
	f, err := pathrs.Open(t.root, inside(name), flags, 0)
	if err != nil {
		return nil, notThere(name, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	s := &PathStat{Name: path.Base(path.Clean("/" + name)), Size: st.Size(), Mode: st.Mode(), Modified: st.ModTime()}
	if st.Mode()&fs.ModeSymlink != 0 {
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(int(f.Fd()), "", buf)
		if err != nil {
			return nil, err
		}
		if s.Link = string(buf[:n]); !strings.HasPrefix(s.Link, "/") {
			s.Link = path.Join(path.Dir(path.Clean("/"+name)), s.Link)
		}
	}
	return s, nil
}

func notThere(name string, err error) error {
	e := &errdefs.Error{Op: "find", What: name + " in the container", Kind: errdefs.KindOf(err), Err: err}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		e.Kind, e.Why, e.Err = errdefs.NotFound, "there is no such file", nil
	}
	return e
}

// StatPath looks at a file of a container, running or not. NotFound when there is none.
func (e *Engine) StatPath(ctx context.Context, idOrName, name string) (*PathStat, error) {
	_, t, err := e.openRoot(ctx, idOrName)
	if err != nil {
		return nil, err
	}
	defer t.close()
	return t.stat(name, false)
}

// CopyFrom writes a file of a container, running or not, or a directory with all that is in it, as a tar archive whose
// names begin with the file's own ("." for the root directory). follow: what a link leads to, under the link's name.
func (e *Engine) CopyFrom(ctx context.Context, idOrName, name string, follow bool, w io.Writer) error {
	r, t, err := e.openRoot(ctx, idOrName)
	if err != nil {
		return err
	}
	defer t.close()
	flags, base := unix.O_PATH|unix.O_NOFOLLOW, path.Base(path.Clean("/"+name))
	if follow || strings.HasSuffix(name, "/") || strings.HasSuffix(name, "/.") {
		flags = unix.O_PATH
	}
	f, err := pathrs.Open(t.root, inside(name), flags, 0)
	if err != nil {
		return notThere(name, err)
	}
	defer f.Close()
	top := base
	if base == "/" {
		top = "."
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	r.emit(e, "archive-path", "path", name)
	if st.IsDir() {
		d, err := pathrs.Reopen(f, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		defer d.Close()
		return archive.PackTree(ctx, w, d, ".", top)
	}
	// By the directory that it is in: where its own path leads, or a followed link does.
	at := inside(name)
	if flags == unix.O_PATH {
		for range 40 {
			s, err := t.stat(at, false)
			if err != nil {
				return err
			}
			if s.Link == "" {
				break
			}
			at = inside(s.Link)
		}
	}
	dir, err := pathrs.Open(t.root, inside(path.Dir("/"+at)), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return notThere(name, err)
	}
	defer dir.Close()
	return archive.PackTree(ctx, w, dir, path.Base(at), top)
}

// CopyToOptions of CopyTo.
type CopyToOptions struct {
	KeepOwner bool   // of the archive; else everything is the container's root's
	Rename    string // the first part of the names in the archive is this instead; "." drops it
}

// CopyTo unpacks a tar archive, compressed or not, into a directory of a container, running or not. NotFound when there is
// no such directory, Forbidden when the container was made with a read-only root file system or mount there; AlreadyExists
// when a directory would take a file's place, or a file a directory's. What was unpacked before an error stays.
func (e *Engine) CopyTo(ctx context.Context, idOrName, dir string, r io.Reader, o CopyToOptions) error {
	rec, t, err := e.openRoot(ctx, idOrName)
	if err != nil {
		return err
	}
	defer t.close()
	s, err := t.stat(dir, true)
	if err != nil {
		return err
	}
	if !s.Mode.IsDir() {
		return &errdefs.Error{Op: "copy to", What: dir + " in the container", Kind: errdefs.InvalidArgument, Why: "it is not a directory", Fix: "name a directory, or the file's directory and its new name"}
	}
	if rec.Config.ReadOnly && rec.Status != Running {
		return &errdefs.Error{Op: "copy to", What: dir, Kind: errdefs.Forbidden, Why: "container rootfs is marked read-only", Fix: "start it, and copy to one of its volumes"}
	}
	u := archive.UnpackOptions{At: inside(dir), Inside: true, Rename: o.Rename, Devices: true, SetID: true}
	if !o.KeepOwner {
		u.Owner = &[2]int{0, 0}
	}
	if err := archive.UnpackTree(ctx, r, t.root, u); err != nil {
		if errors.Is(err, unix.EROFS) {
			return &errdefs.Error{Op: "copy to", What: dir + " in the container", Kind: errdefs.Forbidden, Why: "it is read-only there", Err: err}
		}
		return err
	}
	rec.emit(e, "extract-to-dir", "path", dir)
	return nil
}

// ResolvePath is the path that a link of the container's at name leads to, or name.
func (e *Engine) ResolvePath(ctx context.Context, idOrName, name string) (*PathStat, string, error) {
	_, t, err := e.openRoot(ctx, idOrName)
	if err != nil {
		return nil, "", err
	}
	defer t.close()
	at := path.Clean("/" + name)
	for range 40 {
		s, err := t.stat(at, false)
		if err != nil {
			return nil, at, err
		}
		if s.Link == "" {
			return s, at, nil
		}
		at = path.Clean(s.Link)
	}
	return nil, at, &errdefs.Error{Op: "find", What: name, Kind: errdefs.InvalidArgument, Why: "too many symbolic links"}
}
