package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/mount"
	"github.com/onggi/onggi/secret"
	"github.com/onggi/onggi/spec"
	"golang.org/x/sys/unix"
)

// Secrets and configs reach a container as read-only mounts of the files of one tmpfs, which is in no mount namespace but
// the container's: their values are in no file of the run directory, no configuration, and no layer.

// SecretRef is a secret or a config that a container gets.
type SecretRef struct {
	Kind   secret.Kind `json:"kind"`
	Name   string      `json:"name"`
	Target string      `json:"target"` // absolute path in the container
	UID    uint32      `json:"uid,omitempty"`
	GID    uint32      `json:"gid,omitempty"`
	Mode   uint32      `json:"mode"`
}

// SecretInfo is a secret or a config and who uses it.
type SecretInfo struct {
	secret.Entry
	Users []string // names of the containers that get it, those in the trash included, sorted
}

// maxSecrets bounds what a container gets: each one is a handle until its start.
const maxSecrets = 200

func (e *Engine) secretsDir(k secret.Kind) string { return filepath.Join(e.o.Root, string(k)+"s") }

// secrets opens a store.
func (e *Engine) secrets(k secret.Kind) (*secret.Store, error) {
	if err := e.make(); err != nil {
		return nil, err
	}
	return secret.Open(k, e.secretsDir(k))
}

// CreateSecret keeps a value under a new name. Errors: those of secret.Store.Create.
func (e *Engine) CreateSecret(ctx context.Context, k secret.Kind, name string, labels map[string]string, value io.Reader) (*secret.Entry, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	for l := range labels {
		if l == "" || strings.ContainsRune(l, 0) {
			return nil, invalid("--label", "", "a label has no name", "write NAME=VALUE")
		}
	}
	s, err := e.secrets(k)
	if err != nil {
		return nil, err
	}
	return s.Create(name, labels, value)
}

// ListSecrets returns all secrets, or configs, by name. It makes nothing.
func (e *Engine) ListSecrets(k secret.Kind) ([]*SecretInfo, error) {
	if !exists(e.secretsDir(k)) {
		return nil, nil
	}
	s, err := e.secrets(k)
	if err != nil {
		return nil, err
	}
	list, err := s.List()
	if err != nil {
		return nil, err
	}
	users, err := e.secretUsers(k)
	if err != nil {
		return nil, err
	}
	out := make([]*SecretInfo, len(list))
	for i, x := range list {
		out[i] = &SecretInfo{*x, users[x.Name]}
	}
	return out, nil
}

// GetSecret finds one by name, id, or unambiguous beginning of an id. NotFound; Conflict.
func (e *Engine) GetSecret(k secret.Kind, nameOrID string) (*SecretInfo, error) {
	s, err := e.secrets(k)
	if err != nil {
		return nil, err
	}
	x, err := s.Get(nameOrID)
	if err != nil {
		return nil, err
	}
	users, err := e.secretUsers(k)
	return &SecretInfo{*x, users[x.Name]}, err
}

// ConfigValue returns what a config holds. There is no such thing for secrets.
func (e *Engine) ConfigValue(name string) ([]byte, error) {
	s, err := e.secrets(secret.Config)
	if err != nil {
		return nil, err
	}
	return s.Value(name)
}

// RemoveSecret removes a secret or a config for good. Conflict, with the names of the containers, when one has it; NotFound.
func (e *Engine) RemoveSecret(ctx context.Context, k secret.Kind, nameOrID string) error {
	x, err := e.GetSecret(k, nameOrID)
	if err != nil {
		return err
	}
	e.sweepInterrupted(ctx)
	s, err := e.secrets(k)
	if err != nil {
		return err
	}
	lock, err := flockFile(e.imagesLockPath(), unix.LOCK_EX) // nobody writes a first record meanwhile
	if err != nil {
		return err
	}
	defer lock.Close()
	users, err := e.secretUsers(k)
	if err != nil {
		return err
	}
	if u := users[x.Name]; len(u) > 0 {
		return &errdefs.Error{
			Op: "remove", What: string(k) + " " + x.Name, Kind: errdefs.Conflict, Why: string(k) + " is in use - [" + strings.Join(u, ", ") + "]",
			Fix: "remove what uses it first: onggi rm " + strings.Join(u, " ") + "; of containers in the trash: onggi system prune --trash",
		}
	}
	return s.Remove(x.Name)
}

// secretUsers are the names of the containers by the secrets, or configs, that they get; those in the trash count.
func (e *Engine) secretUsers(k secret.Kind) (map[string][]string, error) {
	records, err := e.records()
	if err != nil {
		return nil, err
	}
	trashed, err := e.trashed()
	if err != nil {
		return nil, err
	}
	users := map[string][]string{}
	for _, r := range append(records, trashed...) {
		name := cmpOr(r.Config.Name, r.ID[:12])
		for _, s := range r.Config.Secrets {
			if s.Kind == k && !slices.Contains(users[s.Name], name) {
				users[s.Name] = append(users[s.Name], name)
			}
		}
	}
	for _, u := range users {
		slices.Sort(u)
	}
	return users, nil
}

// checkSecrets resolves ids to names and fills in targets. It refuses what cannot be: an unknown secret, a place that is
// taken, a foreign runtime.
func (e *Engine) checkSecrets(c Config) (Config, error) {
	if len(c.Secrets) == 0 {
		return c, nil
	}
	if len(c.Runtime) > 0 {
		return c, invalid("--secret", "", "secrets and configs need Onggi's own runtime, which takes a mount that is nowhere on the host", "leave --runtime out")
	}
	if len(c.Secrets) > maxSecrets {
		return c, invalid("--secret", "", fmt.Sprintf("a container gets at most %d secrets and configs", maxSecrets), "put several values into one")
	}
	taken := map[string]bool{}
	for _, m := range c.Mounts {
		taken[m.Target] = true
	}
	c.Secrets = slices.Clone(c.Secrets)
	for i := range c.Secrets {
		s := &c.Secrets[i]
		x, err := e.GetSecret(s.Kind, s.Name)
		if err != nil {
			return c, err
		}
		s.Name = x.Name
		switch {
		case s.Target == "" && s.Kind == secret.Config:
			s.Target = "/" + s.Name
		case s.Target == "":
			s.Target = "/run/secrets/" + s.Name
		case !path.IsAbs(s.Target) && s.Kind == secret.Config:
			s.Target = "/" + s.Target
		case !path.IsAbs(s.Target):
			s.Target = "/run/secrets/" + s.Target
		}
		s.Target = path.Clean(s.Target)
		flag := "--" + string(s.Kind)
		switch {
		case s.Target == "/" || strings.ContainsAny(s.Target, "\x00\n"):
			return c, invalid(flag, s.Name, "its target is no path of a file", "write target=/PLACE")
		case taken[s.Target]:
			return c, invalid(flag, s.Name, "something else is mounted at "+s.Target, "write target=/PLACE")
		case s.Mode > 0o777:
			return c, invalid(flag, s.Name, "its mode has bits above 777", "write mode=0400")
		}
		taken[s.Target] = true
	}
	return c, nil
}

// secretMounts makes the tmpfs with the values that the container gets, and returns a mount for each file.
func (h *held) secretMounts(from *sources) ([]spec.Mount, error) {
	refs := h.rec.Config.Secrets
	if len(refs) == 0 {
		return nil, nil
	}
	var names []string
	var size int64
	values := make([][]byte, len(refs))
	for i, r := range refs {
		s, err := h.e.secrets(r.Kind)
		if err != nil {
			return nil, err
		}
		if values[i], err = s.Value(r.Name); err != nil {
			return nil, err
		}
		names = append(names, strconv.Itoa(i))
		size += (int64(len(values[i])) + 4095) &^ 4095
	}
	options := []string{"size=" + strconv.FormatInt(size, 10), "mode=700", "nosuid", "nodev", "noexec"}
	parts, err := mount.Parts(mount.Mount{Type: "tmpfs", Source: "secrets", Options: options}, func(root *os.File) error {
		for i, r := range refs {
			fd, err := unix.Openat(int(root.Fd()), names[i], unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
			if err != nil {
				return err
			}
			f := os.NewFile(uintptr(fd), r.Name)
			_, err = f.Write(values[i])
			if err == nil {
				err = f.Chown(int(r.UID), int(r.GID))
			}
			if err == nil {
				err = unix.Fchmod(fd, r.Mode)
			}
			if err = errors.Join(err, f.Close()); err != nil {
				return err
			}
		}
		return nil
	}, names)
	if err != nil {
		return nil, &errdefs.Error{Op: "give", What: "the container its secrets", Kind: errdefs.KindOf(err), Err: err}
	}
	var out []spec.Mount
	for i, r := range refs {
		from.hand(r.Target, parts[i])
		out = append(out, spec.Mount{
			Type: "bind", Source: "/", From: from.paths[r.Target], Target: r.Target, ReadOnly: true, Recursive: "disabled",
			Options: []string{"nosuid", "nodev", "noexec"},
		})
	}
	return out, nil
}

// sweepSecrets removes what killed processes left of secrets and configs.
func (e *Engine) sweepSecrets() error {
	var errs []error
	for _, k := range []secret.Kind{secret.Secret, secret.Config} {
		if exists(e.secretsDir(k)) {
			s, err := e.secrets(k)
			if err == nil {
				err = s.Sweep()
			}
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
