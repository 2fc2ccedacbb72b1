package engine

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/runtime/monitor"
	"github.com/onggi/onggi/runtime/monitor/logfile"
	"github.com/onggi/onggi/spec"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
)

// ExecConfig is a command to run in a running container.
type ExecConfig struct {
	Args       []string
	Env        []string
	User       string
	Workdir    string
	Tty        bool
	Privileged bool
	Detach     bool
}

// ExecCommand returns the command line (onggi-runtime exec ...) that runs the command in the container, with the file
// it reads already written; the caller executes it with its own stdio, replacing itself where it has nothing left to
// do. Conflict when the container does not run. The file lies in the container's run directory and goes with it; those
// of earlier calls are removed by later ones.
func (e *Engine) ExecCommand(ctx context.Context, idOrName string, c ExecConfig) (argv []string, err error) {
	r, err := e.get(idOrName)
	if err != nil {
		return nil, err
	}
	if r.Status == Restarting {
		return nil, restingNow("exec in", idOrName)
	}
	if r.Status != Running {
		return nil, notRunning("exec in", idOrName)
	}
	if r.Paused {
		return nil, paused("exec in", idOrName)
	}
	run := e.runDir(r.ID)
	p, err := e.process(r, c)
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	path, err := writeProcess(filepath.Join(run, "exec"), b)
	if err != nil {
		return nil, err
	}
	id, command := newID(), strings.Join(c.Args, " ")
	r.emit(e, "exec_create: "+command, "execID", id)
	r.emit(e, "exec_start: "+command, "execID", id)
	if argv = r.Config.Runtime; len(argv) == 0 {
		bin, err := e.runtime()
		if err != nil {
			return nil, err
		}
		argv = []string{bin}
	}
	argv = append(append([]string{}, argv...), "--root", e.runtimeRoot(), "exec", "--process", path)
	if len(r.Config.Runtime) == 0 { // another runtime has one code for all that can go wrong
		argv = append(argv, "--shell-codes")
	}
	if c.Detach {
		argv = append(argv, "--detach")
	}
	return append(argv, r.ID), nil
}

// process is the process of a command in a container whose config.json is written.
func (e *Engine) process(r *record, c ExecConfig) (*runspec.Process, error) {
	run := e.runDir(r.ID)
	b, err := readBounded(filepath.Join(run, "config.json"), maxState)
	if err != nil {
		return nil, err
	}
	var s runspec.Spec
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, &errdefs.Error{Op: "read", What: filepath.Join(run, "config.json"), Kind: errdefs.Corrupt, Err: err}
	}
	x := spec.Exec{Args: c.Args, Env: c.Env, Workdir: c.Workdir, Tty: c.Tty, Privileged: c.Privileged}
	u := s.Process.User
	x.UID, x.GID, x.AdditionalGids, x.SameUser = u.UID, u.GID, u.AdditionalGids, true
	if c.User != "" {
		x.SameUser = false
		snap, err := e.snapshot()
		if err != nil {
			return nil, err
		}
		stack, err := snap.Mounts(r.ID, false, r.Config.AutoRemove)
		if err != nil {
			return nil, err
		}
		tree, err := newView(stack, filepath.Join(run, "rootfs"))
		if err != nil {
			return nil, err
		}
		defer tree.close()
		if x.UID, x.GID, x.AdditionalGids, x.Home, err = resolveUser(tree, c.User, r.Config.GroupAdd); err != nil {
			return nil, err
		}
	}
	held, err := heldCapabilities()
	if err != nil {
		return nil, err
	}
	return spec.Process(&s, x, held)
}

// writeProcess writes a process.json of a name of its own, and removes those that a runtime has read long ago.
func writeProcess(dir string, b []byte) (string, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	if old, err := os.ReadDir(dir); err == nil {
		for _, o := range old {
			if i, err := o.Info(); err == nil && time.Since(i.ModTime()) > time.Minute {
				_ = os.Remove(filepath.Join(dir, o.Name()))
			}
		}
	}
	path := filepath.Join(dir, newID()[:16]+".json")
	return path, os.WriteFile(path, b, 0o600)
}

// LogOptions of Logs.
type LogOptions struct {
	Follow, Timestamps bool
	Tail               int // -1 all
	Since, Until       time.Time
}

// Logs writes the container's log; a nil writer drops its stream. It is complete right after Wait.
func (e *Engine) Logs(ctx context.Context, idOrName string, o LogOptions, stdout, stderr io.Writer) error {
	r, err := e.get(idOrName)
	if err != nil {
		return err
	}
	if r.Config.Log.Driver == "none" {
		return &errdefs.Error{
			Op: "read the log of", What: "container " + idOrName, Kind: errdefs.Unsupported,
			Why: "its log driver is none: nothing is kept", Fix: "run it with --log-driver local",
		}
	}
	if r.StartedAt.IsZero() && !o.Follow {
		return nil
	}
	run, state := e.runDir(r.ID), e.stateDir(r.ID)
	// done: no monitor writes any more. A container that has not been started is waited for.
	done := func() bool {
		if monitor.Alive(run) {
			return false
		}
		cur, err := e.read(r.ID)
		return err != nil || cur.Status != Created || exists(filepath.Join(state, "exit.json"))
	}
	var stamp []byte
	read := logfile.Read
	if r.Config.Log.Driver == "json-file" {
		read = logfile.ReadJSON
	}
	return read(ctx, r.LogPath, logfile.ReadOptions{
		Tail: o.Tail, Since: o.Since, Until: o.Until, Follow: o.Follow, Done: done, Stdout: stdout != nil, Stderr: stderr != nil,
	}, func(l logfile.Line) error {
		w := stdout
		if l.Stream == logfile.Stderr {
			w = stderr
		}
		if w == nil {
			return nil
		}
		if o.Timestamps {
			stamp = append(l.Time.UTC().AppendFormat(stamp[:0], "2006-01-02T15:04:05.000000000Z07:00"), ' ')
			if _, err := w.Write(stamp); err != nil {
				return err
			}
		}
		_, err := w.Write(l.Data)
		return err
	})
}

// List returns the containers, newest first; without all only running ones.
func (e *Engine) List(all bool) ([]*Container, error) {
	return e.list(func(r *record) bool {
		return r.Config.Build == "" && (all || r.Status == Running || r.Status == Restarting)
	})
}

func (e *Engine) list(want func(*record) bool) ([]*Container, error) {
	records, err := e.recordsWhere(want)
	if err != nil {
		return nil, err
	}
	out := make([]*Container, len(records))
	for i, r := range records {
		out[i] = &r.Container
	}
	return out, nil
}

// recordsWhere are the chosen records, the newest container first.
func (e *Engine) recordsWhere(want func(*record) bool) ([]*record, error) {
	records, err := e.records()
	if err != nil {
		return nil, err
	}
	records = slices.DeleteFunc(records, func(r *record) bool { return !want(r) })
	slices.SortFunc(records, func(a, b *record) int {
		if c := b.Created.Compare(a.Created); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return records, nil
}
