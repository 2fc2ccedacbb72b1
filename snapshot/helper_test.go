package snapshot

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"syscall"

	"github.com/onggi/onggi/mount"
	"golang.org/x/sys/unix"
)

// helpers run in processes of their own, in a private mount namespace; see helper.
var helpers = map[string]func(args []string) error{
	"mounted": mounted,
}

// mounted mounts at args[0] a mount of type args[1] and source args[2], or the overlay of lower, upper and work in
// args[4:], runs the commands args[3] in it and prints a listing.
func mounted(args []string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	at := args[0]
	if args[1] == "bind" {
		if err := unix.Mount(args[2], at, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", args[2], err)
		}
	} else {
		o := &mount.Overlay{Lower: strings.Split(args[4], ":"), Upper: args[5], Work: args[6]}
		if o.Upper == "" && len(o.Lower) == 1 {
			return fmt.Errorf("a read-only overlay of one layer")
		}
		if err := mount.All([]mount.Mount{{Type: "overlay", Overlay: o}}, at); err != nil {
			return err
		}
	}
	if args[3] != "" {
		cmd := exec.Command("/bin/sh", "-ec", args[3])
		cmd.Dir, cmd.Stderr = at, os.Stderr
		if err := cmd.Run(); err != nil {
			return err
		}
	}
	l, err := listing(at)
	if err != nil {
		return err
	}
	fmt.Print(l)
	return nil
}

// listing describes a tree, one object a line, the root as ".".
func listing(root string) (string, error) {
	var out []string
	err := filepath.Walk(root, func(p string, fi os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		st := fi.Sys().(*syscall.Stat_t)
		owner := ""
		if st.Uid != 0 || st.Gid != 0 {
			owner = fmt.Sprintf(" %d:%d", st.Uid, st.Gid)
		}
		l := fmt.Sprintf("%s %%s %o%s", rel, st.Mode&0o7777, owner)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			l = fmt.Sprintf(l, "d")
		case unix.S_IFREG:
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			if len(b) > 100 {
				b = fmt.Appendf(nil, "%d bytes", len(b))
			}
			l = strings.TrimRight(fmt.Sprintf(l, "f")+" "+string(b), " ")
			if st.Nlink > 1 {
				l += fmt.Sprintf(" x%d", st.Nlink)
			}
		case unix.S_IFLNK:
			target, _ := os.Readlink(p)
			l = fmt.Sprintf(l, "l") + " -> " + target
		default:
			l = fmt.Sprintf(l, "?") + fmt.Sprintf(" %o %d", st.Mode&unix.S_IFMT, st.Rdev)
		}
		buf := make([]byte, 1000)
		if n, err := unix.Lgetxattr(p, "user.note", buf); err == nil {
			l += " note=" + string(buf[:n])
		}
		out = append(out, l)
		return nil
	})
	sort.Strings(out)
	return strings.Join(out, "\n") + "\n", err
}
