package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/onggi/onggi/archive"
	"github.com/onggi/onggi/engine"
	"github.com/onggi/onggi/errdefs"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

func buildCp(a *app, c *cobra.Command) {
	var f copyFlags
	c.Use = "cp [FLAGS] CONTAINER:PATH PATH|-\n       onggi cp [FLAGS] PATH|- CONTAINER:PATH"
	c.Long = `Copy files between a container, running or not, and this host. A directory is copied with all that is in it; PATH/. is what is
in it alone. A destination that is a directory gets the source in it, one that does not exist gets its name. "-" is a tar
archive on stdin or stdout. A path of this host that has a colon is written with a slash before: ./a:b.

Files in a container become its root's, those on this host the user's who copies; -a keeps the owners. Links are
copied as links unless -L follows the source.`
	c.Example = `  onggi cp web:/etc/nginx/nginx.conf .
  onggi cp ./site/. web:/srv                    what is in it
  onggi cp web:/var/log - | tar t
  tar c data | onggi cp - web:/`
	c.Flags().BoolVarP(&f.archive, "archive", "a", false, "keep the owners of files")
	c.Flags().BoolVarP(&f.follow, "follow-link", "L", false, "copy what a link in the source leads to")
	c.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "do not say what was copied")
	c.Args = takes(2, 2, "a source and a destination")
	c.RunE = func(c *cobra.Command, args []string) error {
		from, source := splitCopy(args[0])
		to, destination := splitCopy(args[1])
		for i, p := range []string{source, destination} {
			if p == "" {
				return &errdefs.Error{Op: "copy", What: args[i], Kind: errdefs.InvalidArgument, Why: "the path is empty", Fix: "write CONTAINER:PATH"}
			}
		}
		e, err := a.open()
		if err != nil {
			return err
		}
		ctx, cancel := a.context(c.Context())
		defer cancel()
		count := &counter{}
		switch {
		case from != "" && to != "":
			return &errdefs.Error{
				Op: "copy", Kind: errdefs.Unsupported, Why: "copying between containers is not supported",
				Fix: fmt.Sprintf("onggi cp %s - | onggi cp - %s", args[0], args[1]),
			}
		case from != "":
			err = a.copyOut(ctx, e, from, source, destination, f, count)
		case to != "":
			err = a.copyIn(ctx, e, source, to, destination, f, count)
		default:
			return &errdefs.Error{Op: "copy", Kind: errdefs.InvalidArgument, Why: "must specify at least one container source", Fix: "write CONTAINER:PATH on one side"}
		}
		if err == nil && !f.quiet && term.IsTerminal(int(a.err.Fd())) {
			fmt.Fprintf(a.err, "Successfully copied %s to %s\n", humanSize(count.n, 3), args[1])
		}
		return err
	}
}

type copyFlags struct{ archive, follow, quiet bool }

// counter counts what is written.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}

// splitCopy splits CONTAINER:PATH. A path of this host begins with a slash or a dot, or has no colon.
func splitCopy(s string) (container, path string) {
	if strings.HasPrefix(s, "/") || strings.HasPrefix(s, ".") {
		return "", s
	}
	container, path, ok := strings.Cut(s, ":")
	if !ok || container == "" || strings.Contains(container, "/") {
		return "", s
	}
	return container, path
}

// contents reports whether a path means what is in a directory.
func contents(p string) bool {
	return p == "." || strings.HasSuffix(p, "/.") || p == "/" || strings.HasSuffix(p, "/..") || p == ".."
}

// place decides where a source goes: into which directory, and under which name ("." for its contents). isDir and exists
// are about the destination.
func place(source string, sourceDir bool, destination string, exists, isDir bool) (dir, name string, err error) {
	fail := func(why, fix string) (string, string, error) {
		return "", "", &errdefs.Error{Op: "copy to", What: destination, Kind: errdefs.InvalidArgument, Why: why, Fix: fix}
	}
	slash := strings.HasSuffix(destination, "/")
	switch {
	case exists && isDir && sourceDir && contents(source):
		return destination, ".", nil
	case exists && isDir:
		return destination, filepath.Base(filepath.Clean(source)), nil
	case exists && sourceDir:
		return fail("cannot copy directory to a file", "name a directory")
	case exists && slash:
		return fail("it is not a directory", "leave the slash out to overwrite the file")
	case !exists && slash && !sourceDir:
		return fail("destination directory must exist", "make it first, or leave the slash out")
	}
	clean := filepath.Clean(destination)
	return filepath.Dir(clean), filepath.Base(clean), nil
}

// copyOut copies from a container.
func (a *app) copyOut(ctx context.Context, e *engine.Engine, name, source, destination string, f copyFlags, count *counter) error {
	if destination == "-" {
		if term.IsTerminal(int(a.out.Fd())) {
			return &errdefs.Error{Op: "copy", Kind: errdefs.InvalidArgument, Why: "an archive would be written to the terminal", Fix: "redirect stdout, or name a file"}
		}
		count.w = a.out
		return e.CopyFrom(ctx, name, source, f.follow, count)
	}
	st, err := e.StatPath(ctx, name, source)
	if err != nil {
		return err
	}
	if st.Link != "" && (f.follow || contents(source) || strings.HasSuffix(source, "/")) {
		if st, _, err = e.ResolvePath(ctx, name, source); err != nil {
			return err
		}
	}
	local, err := os.Stat(destination)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &errdefs.Error{Op: "copy to", What: destination, Kind: errdefs.KindOf(err), Err: err}
	}
	dir, top, err := place(source, st.Mode.IsDir(), destination, err == nil, err == nil && local.IsDir())
	if err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return &errdefs.Error{Op: "copy to", What: dir, Kind: errdefs.KindOf(err), Err: err, Fix: "make the directory first: mkdir -p " + dir}
	}
	defer d.Close()
	r, w := io.Pipe()
	count.w = w
	go func() { _ = w.CloseWithError(e.CopyFrom(ctx, name, source, f.follow, count)) }()
	o := archive.UnpackOptions{Rename: top, SetID: f.archive}
	if !f.archive {
		o.Owner = &[2]int{os.Geteuid(), os.Getegid()}
	}
	if filepath.Base(filepath.Clean(source)) == "/" && top != "." { // the archive's names begin with "." only
		if err := os.Mkdir(filepath.Join(dir, top), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		o.At, o.Rename = top, ""
	} else if filepath.Clean(source) == "/" {
		o.Rename = ""
	}
	err = archive.UnpackTree(ctx, r, d, o)
	_ = r.CloseWithError(errors.New("the copy has ended"))
	return err
}

// copyIn copies to a container.
func (a *app) copyIn(ctx context.Context, e *engine.Engine, source, name, destination string, f copyFlags, count *counter) error {
	if source == "-" {
		if term.IsTerminal(int(a.in.Fd())) {
			return &errdefs.Error{Op: "copy", Kind: errdefs.InvalidArgument, Why: "an archive is read from stdin, and stdin is a terminal", Fix: "feed the archive: tar c FILES | onggi cp - ..."}
		}
		return e.CopyTo(ctx, name, destination, a.in, engine.CopyToOptions{KeepOwner: f.archive})
	}
	look := os.Lstat
	if f.follow || contents(source) || strings.HasSuffix(source, "/") {
		look = os.Stat
	}
	local, err := look(source)
	if err != nil {
		return &errdefs.Error{Op: "copy", What: source, Kind: errdefs.KindOf(err), Err: err}
	}
	st, at, err := e.ResolvePath(ctx, name, destination)
	if err != nil && !errdefs.Is(err, errdefs.NotFound) {
		return err
	}
	if err != nil {
		if _, gerr := e.Get(name); gerr != nil {
			return gerr
		}
	}
	given := destination
	if err == nil {
		given = at
	}
	if strings.HasSuffix(destination, "/") && given != "/" {
		given = strings.TrimSuffix(given, "/") + "/"
	}
	absolute, aerr := filepath.Abs(source)
	if aerr != nil {
		return aerr
	}
	wanted := source
	if !contents(source) {
		wanted = absolute
	}
	dir, top, err := place(wanted, local.IsDir(), "/"+strings.TrimPrefix(given, "/"), err == nil, err == nil && st.Mode.IsDir())
	if err != nil {
		return err
	}
	parent, base := filepath.Dir(absolute), filepath.Base(absolute)
	if f.follow || contents(source) || strings.HasSuffix(source, "/") {
		real, err := filepath.EvalSymlinks(absolute)
		if err != nil {
			return err
		}
		parent, base = filepath.Dir(real), filepath.Base(real)
	}
	if local.IsDir() {
		parent, base = filepath.Join(parent, base), "."
	}
	d, err := os.OpenFile(parent, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return &errdefs.Error{Op: "copy", What: source, Kind: errdefs.KindOf(err), Err: err}
	}
	defer d.Close()
	r, w := io.Pipe()
	count.w = w
	go func() { _ = w.CloseWithError(archive.PackTree(ctx, count, d, base, top)) }()
	err = e.CopyTo(ctx, name, dir, r, engine.CopyToOptions{KeepOwner: f.archive})
	_ = r.CloseWithError(errors.New("the copy has ended"))
	return err
}
