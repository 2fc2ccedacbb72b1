package cli

import (
	"os"
	"os/user"
	"path/filepath"
	"strconv"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/userns"
)

// enter replaces this process, when it is another user's than root, by the same command inside that user's namespaces,
// where the user is root. Root's commands pay one system call for it.
func (a *app) enter() error {
	uid := os.Geteuid()
	if uid == 0 {
		return nil
	}
	root, run, err := userRoots(uid)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	name := strconv.Itoa(uid)
	if u, err := user.LookupId(name); err == nil {
		name = u.Username
	}
	a.debugf("user %s: entering the namespaces of %s", name, run)
	// What the user has given comes later and counts, flags and environment alike.
	argv := []string{self, "--root", cmpOr(os.Getenv("ONGGI_ROOT"), root), "--run-root", cmpOr(os.Getenv("ONGGI_RUN_ROOT"), run)}
	home := userns.Home{Dir: filepath.Join(run, "userns"), Self: self, Name: name}
	return home.Enter(append(argv, a.args...), os.Environ())
}

// userRoots are where a user's store and run root are when no flag says it: the XDG base directories.
func userRoots(uid int) (root, run string, err error) {
	data := os.Getenv("XDG_DATA_HOME")
	if !filepath.IsAbs(data) {
		home := os.Getenv("HOME")
		if !filepath.IsAbs(home) {
			return "", "", &errdefs.Error{
				Op: "find", What: "the store of user " + strconv.Itoa(uid), Kind: errdefs.InvalidArgument,
				Why: "neither XDG_DATA_HOME nor HOME is set to an absolute path", Fix: "set HOME",
			}
		}
		data = filepath.Join(home, ".local/share")
	}
	volatile := os.Getenv("XDG_RUNTIME_DIR")
	if filepath.IsAbs(volatile) {
		return filepath.Join(data, "onggi"), filepath.Join(volatile, "onggi"), nil
	}
	volatile = "/run/user/" + strconv.Itoa(uid)
	if i, err := os.Stat(volatile); err == nil && i.IsDir() {
		return filepath.Join(data, "onggi"), filepath.Join(volatile, "onggi"), nil
	}
	// Whose it is, is looked at before it is used.
	return filepath.Join(data, "onggi"), "/tmp/onggi-" + strconv.Itoa(uid), nil
}
