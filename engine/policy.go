package engine

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/runtime/monitor"
	"github.com/onggi/onggi/undo"
)

// Who starts a container again, without a daemon (doc/decisions/31-who-restarts.md):
//
//	the first process ends -> clean-up (Finish, or `onggi container-cleanup`, or a sweep) decides by the record
//	  -> RUNROOT/restarts/<id> is made, the record says restarting
//	  -> a sleeper, 1 MiB, holds the file's lock and sleeps; `onggi container-restart ID` takes its place when time is up
//
// Whoever wants the container not to start (stop, rm, start) removes the file under the container's lock: the sleeper
// sees that and ends. A file whose lock is free and whose time has come has lost its sleeper: the next sweep makes one. A
// record that says restarting without a file has seen a reboot.

// RestartPolicy says when a container that has ended is started again; the words are docker's.
type RestartPolicy struct {
	Name string `json:"name,omitempty"` // "" or "no", "on-failure", "always", "unless-stopped"
	Max  int    `json:"max,omitempty"`  // with on-failure: at most so often; 0 is no bound
}

// Restarts reports whether there is a policy other than "no".
func (p RestartPolicy) Restarts() bool { return p.Name != "" && p.Name != "no" }

// Check refuses a policy that there is not. InvalidArgument.
func (p RestartPolicy) Check() error {
	switch {
	case !slices.Contains([]string{"", "no", "on-failure", "always", "unless-stopped"}, p.Name):
		return invalid("--restart", p.Name, "there is no such policy", "use no, on-failure[:COUNT], always or unless-stopped")
	case p.Max < 0:
		return invalid("--restart", p.Name, "the maximum retry count cannot be negative", "write on-failure:5, or leave the count out for no bound")
	case p.Max > 0 && p.Name != "on-failure":
		return invalid("--restart", p.Name, "a maximum retry count can only be used with on-failure", "write on-failure:5, or leave the count out")
	}
	return nil
}

const (
	firstPause = 100 * time.Millisecond // docker's
	longest    = time.Minute
	steady     = 10 * time.Second // a container that ran so long has worked: the next pause is the first one again
)

// nextPause is how long a container rests that has run for ran and rested for pause before.
func nextPause(pause, ran time.Duration) time.Duration {
	if pause <= 0 || ran >= steady {
		return firstPause
	}
	return min(2*pause, longest)
}

// wantsRestart decides whether the container that has ended is started again.
func (r *record) wantsRestart() bool {
	if r.Exit == nil || r.Config.AutoRemove {
		return false
	}
	if r.Exit.Unhealthy == "restart" {
		return !r.Stopped
	}
	if r.Exit.Unhealthy == "stop" || r.Stopped {
		return false
	}
	switch p := r.Config.Restart; p.Name {
	case "always", "unless-stopped":
		return true
	case "on-failure":
		return r.Exit.Code != 0 && (p.Max == 0 || r.RestartCount < p.Max)
	}
	return false
}

func (e *Engine) restartsDir() string { return filepath.Join(e.o.RunRoot, "restarts") }

// restsPath is the file that stands for a restart to come; its time of change is when that is due.
func (e *Engine) restsPath(id string) string { return filepath.Join(e.restartsDir(), id) }

// rest puts a container that has ended and is to be started again to sleep. The caller calls wake at the end of what it
// does under the lock.
func (h *held) rest() error {
	r := h.rec
	r.Rest = nextPause(r.Rest, r.Exit.FinishedAt.Sub(r.Exit.StartedAt))
	r.RestartCount++
	if err := os.MkdirAll(h.e.restartsDir(), 0o700); err != nil {
		return err
	}
	path := h.e.restsPath(r.ID)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	due := time.Now().Add(r.Rest)
	err = errors.Join(os.Chtimes(path, due, due), f.Close())
	if err == nil {
		r.Status, r.Pid = Restarting, 0
		err = h.write(false)
	}
	if err != nil {
		_ = os.Remove(path)
	}
	return err
}

// wake starts the sleeper.
func (h *held) wake(pause time.Duration) error {
	bin, err := h.e.runtime()
	if err != nil {
		return err
	}
	command := h.e.selfCommand("container-restart", h.rec.ID)
	if command == nil {
		return &errdefs.Error{Op: "restart", What: "container " + h.rec.ID[:12], Kind: errdefs.NotFound, Why: "this program's own file cannot be found"}
	}
	return monitor.SpawnSleeper(bin, h.e.restsPath(h.rec.ID), pause, command)
}

// calm takes a restart to come back: the sleeper sees it and ends. Precondition: the lock is held.
func (h *held) calm() error { return ignoreMissing(os.Remove(h.e.restsPath(h.rec.ID))) }

// Again is what the sleeper calls when time is up (`onggi container-restart ID`): it starts the container, if that is still
// wanted. A start that fails counts as a run that has failed.
func (e *Engine) Again(ctx context.Context, id string) error {
	h, err := e.lock(ctx, id)
	if errdefs.Is(err, errdefs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer h.unlock()
	if e.effective(h.rec); h.rec.Status != Restarting {
		return nil
	}
	return h.revive(ctx)
}

// revive starts a container that rests, or that a reboot has ended.
func (h *held) revive(ctx context.Context) error {
	s, err := func() (_ *Session, err error) {
		steps := undo.New("run")
		defer steps.Undo(&err)
		return h.start(ctx, StartOptions{}, steps, nil)
	}()
	if err == nil {
		return errors.Join(h.calm(), s.Client.Close())
	}
	r := h.rec
	at := now()
	r.Exit = &monitor.Exit{Code: errdefs.KindOf(err).ExitCode(), StartedAt: at, FinishedAt: at, Error: err.Error()}
	r.Status, r.Pid, r.Network = Exited, 0, nil
	if r.wantsRestart() {
		if rerr := h.rest(); rerr != nil {
			return errors.Join(err, rerr)
		}
		return errors.Join(err, h.wake(r.Rest))
	}
	return errors.Join(err, h.calm(), h.write(true))
}

// chosen notes that the user starts the container: counts begin anew, and a restart to come is taken back.
func (h *held) chosen() error {
	r := h.rec
	if !r.Config.Restart.Restarts() && r.Config.OnUnhealthy != "restart" {
		return nil
	}
	kept := r.Stopped || r.Interrupted
	rested := r.Status == Restarting
	r.RestartCount, r.Rest, r.Stopped, r.Interrupted = 0, 0, false, false
	if rested {
		r.Status = Exited
	}
	if !kept && !rested {
		return nil
	}
	if err := h.write(true); err != nil { // that it was stopped must not come back with a crash of the host
		return err
	}
	return h.calm()
}

// intend records that the user wants the container not to run, before it is told, so that what follows its end does not
// start it again; of one that rests the restart is taken back. It reports whether it rested. Containers without a policy
// cost nothing.
func (e *Engine) intend(ctx context.Context, r *record) (rested bool, err error) {
	if !r.Config.Restart.Restarts() && r.Config.OnUnhealthy != "restart" {
		return false, nil
	}
	h, err := e.lock(ctx, r.ID)
	if err != nil {
		return false, err
	}
	defer h.unlock()
	rested = false
	if recorded := h.rec.Status; recorded == Restarting {
		if e.effective(h.rec); h.rec.Status == Restarting {
			h.rec.Status, rested = Exited, true
		}
	} else if h.rec.Stopped {
		return false, nil
	}
	h.rec.Stopped = true
	if err := h.write(true); err != nil {
		return false, err
	}
	if rested {
		return true, h.calm()
	}
	return false, nil
}

// ends reports whether a signal asks the container to end, so that sending it is a manual stop. Docker takes every signal
// for one, so that `kill -s HUP` to have a configuration read again ends the restarts; here only those that end.
func (r *record) ends(sig int) bool {
	own, err := r.stopSignal()
	return err == nil && sig == own ||
		slices.Contains([]syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT}, syscall.Signal(sig))
}

// sweepRests looks for restarts that have lost their sleeper.
func (e *Engine) sweepRests() (found bool) {
	ids, err := idsIn(e.restartsDir())
	if err != nil {
		return false
	}
	for _, id := range ids {
		path := e.restsPath(id)
		st, err := os.Stat(path)
		if err != nil || monitor.Asleep(path) {
			continue
		}
		// Between the lock's end and the container's lock a new process starts; and the clock may have been set.
		if late := time.Since(st.ModTime()); late < 2*time.Second && late > -longest-time.Second {
			continue
		}
		h, err := e.tryLock(id)
		if err != nil {
			continue
		}
		if h == nil {
			if !exists(e.stateDir(id)) {
				_ = os.Remove(path)
			}
			continue
		}
		if h.rec, err = e.read(id); err == nil {
			if h.rec.Status == Restarting {
				found = true
				_ = h.wake(0)
			} else {
				_ = h.calm()
			}
		}
		h.unlock()
	}
	return found
}

// Resumed is what Resume did with one container.
type Resumed struct {
	ID, Name string
	Err      error // why it could not be started
}

// Resume does what a daemon would do when the host has started: it finishes what was interrupted, and starts the
// containers that their restart policy wants to run: always; unless-stopped, if nobody has stopped it; on-failure, if it
// ran when the host went down. Containers that run are left alone, restarts to come are given a new sleeper. It may be
// called at any time.
func (e *Engine) Resume(ctx context.Context) ([]Resumed, error) {
	if err := e.make(); err != nil {
		return nil, err
	}
	swept := e.Sweep(ctx)
	ids, err := e.ids()
	if err != nil {
		return nil, errors.Join(swept, err)
	}
	var (
		mu   sync.Mutex
		out  []Resumed
		work sync.WaitGroup
	)
	turns := make(chan struct{}, 4) // starting is mostly waiting for the kernel
	for _, id := range ids {
		work.Add(1)
		turns <- struct{}{}
		go func() {
			defer func() { <-turns; work.Done() }()
			r, err := e.resumeOne(ctx, id)
			if r == nil && err == nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			res := Resumed{ID: id, Err: err}
			if r != nil {
				res.Name = r.Config.Name
			}
			out = append(out, res)
		}()
	}
	work.Wait()
	slices.SortFunc(out, func(a, b Resumed) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return out, swept
}

// resumeOne starts one container, if it is to run; nil when it is not.
func (e *Engine) resumeOne(ctx context.Context, id string) (*record, error) {
	r, err := e.read(id)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !r.Config.Restart.Restarts() {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	h, err := e.lock(ctx, id)
	if errdefs.Is(err, errdefs.NotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer h.unlock()
	e.effective(h.rec)
	r = h.rec
	p := r.Config.Restart.Name
	if r.Status != Exited || p == "unless-stopped" && r.Stopped || p == "on-failure" && !r.Interrupted {
		return nil, nil
	}
	r.RestartCount, r.Rest, r.Stopped, r.Interrupted = 0, 0, false, false
	return r, h.revive(ctx)
}
