package monitor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/onggi/onggi/errdefs"
	"golang.org/x/sys/unix"
)

// The health check of a container is run by its monitor: it is the one process that is there while the container is. A check is
// a command line of a runtime (`onggi-runtime exec ...`), so that the monitor stays as small as it is; what comes of it is
// StateDir/health.json, which inspect and ps read. The rules and words are docker's.

// Health is a container's health check.
type Health struct {
	// Command runs the check in the container and exits with its code; Command[0] is a path. It has to write the process id
	// of what it runs to PidFile before that is executed.
	Command []string `json:"command"`
	PidFile string   `json:"pidFile"`

	Interval      time.Duration `json:"interval"`
	Timeout       time.Duration `json:"timeout"`
	StartPeriod   time.Duration `json:"startPeriod,omitempty"` // failures do not count, until the first success
	StartInterval time.Duration `json:"startInterval,omitempty"`
	Retries       int64         `json:"retries"` // failures in a row make it unhealthy

	// On is what to do when it becomes unhealthy: "restart" and "stop" end it, and say so in Exit.Unhealthy. The monitor
	// sends Signal, and SIGKILL after Grace.
	On     string        `json:"on,omitempty"`
	Signal int64         `json:"signal,omitempty"`
	Grace  time.Duration `json:"grace,omitempty"`
}

// numbers are all of its numbers, in the order in which renew writes them.
func (h *Health) numbers() [7]*int64 {
	return [7]*int64{
		(*int64)(&h.Interval), (*int64)(&h.Timeout), (*int64)(&h.StartPeriod), (*int64)(&h.StartInterval), &h.Retries, &h.Signal, (*int64)(&h.Grace),
	}
}

// The statuses of a HealthState.
const (
	Starting  = "starting"
	Healthy   = "healthy"
	Unhealthy = "unhealthy"
)

// HealthState is StateDir/health.json, in the form of docker's State.Health. It stays after the end.
type HealthState struct {
	Status        string
	FailingStreak int64
	Log           []HealthResult // the last five, oldest first
}

// HealthResult is one check.
type HealthResult struct {
	Start, End time.Time
	ExitCode   int // -1: it did not end in time
	Output     string
}

const (
	keptResults = 5
	maxOutput   = 4096 // bytes of one check's output, as docker
	healthName  = "health.json"
	pausedName  = "paused" // in RunDir: the engine has frozen the container
	maxHealth   = 1 << 20  // bytes of health.json: five outputs, in which each byte may take six
)

// ReadHealth reads the state of the health check. NotFound when the container has none, or has not been started.
func ReadHealth(stateDir string) (*HealthState, error) {
	path := filepath.Join(stateDir, healthName)
	fail := func(kind errdefs.Kind, err error) error {
		return &errdefs.Error{Op: "read the health of a container", What: path, Kind: kind, Err: err}
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fail(errdefs.KindOf(err), err)
	}
	defer f.Close()
	h := &HealthState{}
	if err := json.NewDecoder(io.LimitReader(f, maxHealth)).Decode(h); err != nil {
		return nil, fail(errdefs.Corrupt, err)
	}
	return h, nil
}

// writeHealth replaces the file. It is not synced: after a crash of the host the container does not run.
func writeHealth(stateDir string, h *HealthState) error {
	b, err := json.Marshal(h)
	if err != nil {
		return err
	}
	path := filepath.Join(stateDir, healthName)
	tmp := path + ".tmp"
	if err = os.WriteFile(tmp, b, 0o600); err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return errors.Join(err, ignoreMissing(os.Remove(tmp)))
	}
	return nil
}

// next is when to check again, given when the last check has ended (or the container was started).
func (h *Health) next(st *HealthState, started, last time.Time) time.Time {
	if st.Status == Starting && h.StartPeriod > 0 && last.Sub(started) < h.StartPeriod && h.StartInterval > 0 {
		return last.Add(h.StartInterval)
	}
	return last.Add(h.Interval)
}

// take adds a result and says whether the status has changed.
func (st *HealthState) take(h *Health, started time.Time, r HealthResult) (changed bool) {
	before := st.Status
	if r.ExitCode == 0 {
		st.FailingStreak, st.Status = 0, Healthy
	} else if st.Status != Starting || r.Start.Sub(started) >= h.StartPeriod {
		if st.FailingStreak++; st.FailingStreak >= h.Retries {
			st.Status = Unhealthy
		}
	}
	st.Log = append(st.Log, r)
	if n := len(st.Log); n > keptResults {
		st.Log = append([]HealthResult(nil), st.Log[n-keptResults:]...)
	}
	return st.Status != before
}

// checkHealth runs the checks until the container ends. It takes part in the barrier.
func (s *server) checkHealth() {
	defer s.bar.leave()
	h := s.cfg.Health
	s.mu.Lock()
	started := s.exit.StartedAt
	s.mu.Unlock()
	// What has been is read when it is needed: a sleeping monitor remembers nothing.
	first := func() time.Duration {
		last := started
		st, err := ReadHealth(s.cfg.StateDir)
		if err != nil {
			st = &HealthState{Status: Starting}
		}
		if n := len(st.Log); n > 0 {
			last = st.Log[n-1].End
		}
		return max(0, time.Until(h.next(st, started, last)))
	}
	t := time.NewTimer(first())
	defer t.Stop()
	for {
		if s.bar.wanted() {
			s.bar.park()
		}
		select {
		case <-s.dead:
			return
		case <-s.nudge:
			continue
		case <-t.C:
		}
		if s.paused() { // one that stands still is not asked
			t.Reset(h.Interval)
			continue
		}
		r, ok := s.probe(h)
		switch {
		case !ok:
			return // it has ended meanwhile
		case r.ExitCode != 0 && s.paused():
			t.Reset(h.Interval)
		default:
			t.Reset(s.judge(h, started, r))
		}
	}
}

func (s *server) paused() bool {
	_, err := os.Lstat(filepath.Join(s.cfg.RunDir, pausedName))
	return err == nil
}

// judge writes a result down and does what follows from it. It returns how long to wait before the next check.
func (s *server) judge(h *Health, started time.Time, r HealthResult) time.Duration {
	st, err := ReadHealth(s.cfg.StateDir)
	if err != nil {
		st = &HealthState{Status: Starting}
	}
	changed := st.take(h, started, r)
	if err := writeHealth(s.cfg.StateDir, st); err != nil {
		s.mu.Lock()
		if len(s.exit.Warnings) == 0 {
			s.warn("the result of a health check could not be written", err)
		}
		s.mu.Unlock()
	}
	if changed {
		s.record("health_status: "+st.Status, r.End)
	}
	if changed && st.Status == Unhealthy && h.On != "" {
		s.mu.Lock()
		s.exit.Unhealthy = h.On
		s.mu.Unlock()
		s.signal(int(h.Signal))
		s.endAfter(h.Grace)
	}
	return max(0, time.Until(h.next(st, started, r.End)))
}

// signal sends the container a signal, if it is there to get it.
func (s *server) signal(sig int) {
	s.mu.Lock()
	proc, ph := s.proc, s.phase
	s.mu.Unlock()
	if ph != running {
		return
	}
	s.reaping.Lock()
	defer s.reaping.Unlock()
	if proc.Signal(sig) == nil {
		s.sent(Sent{Signal: sig, At: time.Now().UTC(), By: "the monitor, because the health check failed", Pid: os.Getpid(), UID: uint32(os.Geteuid())})
	}
}

// endAfter kills a container that does not end by itself. A negative grace is for ever.
func (s *server) endAfter(grace time.Duration) {
	if grace >= 0 {
		time.AfterFunc(grace, func() { s.signal(int(unix.SIGKILL)) })
	}
}

// probe runs one check. ok is false when the container has ended meanwhile: that is no result.
func (s *server) probe(h *Health) (res HealthResult, ok bool) {
	res.Start = time.Now().UTC()
	fail := func(err error) (HealthResult, bool) {
		res.End, res.ExitCode, res.Output = time.Now().UTC(), -1, err.Error()
		return res, true
	}
	_ = os.Remove(h.PidFile) // of an earlier check
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return fail(err)
	}
	defer null.Close()
	out, w, err := os.Pipe()
	if err != nil {
		return fail(err)
	}
	defer out.Close()
	pidfd := -1
	s.reaping.Lock() // nobody reaps it before we know it
	pid, err := syscall.ForkExec(h.Command[0], h.Command, &syscall.ProcAttr{
		Dir: "/", Env: childEnvironment(), Files: []uintptr{null.Fd(), w.Fd(), w.Fd()}, Sys: &syscall.SysProcAttr{PidFD: &pidfd},
	})
	s.checking = pid
	s.reaping.Unlock()
	_ = w.Close()
	if err != nil {
		return fail(err)
	}
	said := make(chan string, 1)
	go func() { said <- readBounded(out) }()
	gone := make(chan struct{})
	go func() {
		if pidfd >= 0 {
			waitPidfd(pidfd)
		}
		close(gone)
	}()
	t := time.NewTimer(h.Timeout)
	defer t.Stop()
	late, over := false, false
	select {
	case <-gone:
	case <-t.C:
		late = true
		stopProbe(h, pid, gone)
	case <-s.dead:
		over = true
		stopProbe(h, pid, gone)
	}
	s.reaping.Lock()
	var ws unix.WaitStatus
	_, err = unix.Wait4(pid, &ws, 0, nil)
	for err == unix.EINTR {
		_, err = unix.Wait4(pid, &ws, 0, nil)
	}
	s.checking = 0
	s.reaping.Unlock()
	// What the check has left in the background may hold the pipe open.
	_ = out.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	res.Output, res.End = <-said, time.Now().UTC()
	switch {
	case over:
		return res, false
	case late:
		res.ExitCode = -1
		text := fmt.Sprintf("Health check exceeded timeout (%v)", h.Timeout)
		if res.Output != "" {
			text += ": " + res.Output
		}
		res.Output = text
	case err != nil:
		return fail(err)
	case ws.Signaled():
		res.ExitCode = 128 + int(ws.Signal())
	default:
		res.ExitCode = ws.ExitStatus()
	}
	select {
	case <-s.dead:
		return res, false // the end of the container has ended the check
	default:
		return res, true
	}
}

// stopProbe kills what a check runs, and then the check. The process in the container is a child of the command that we have
// started and not waited for: its number cannot have been given to another.
func stopProbe(h *Health, pid int, gone <-chan struct{}) {
	if b, err := os.ReadFile(h.PidFile); err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && n > 1 {
			if fd, err := unix.PidfdOpen(n, 0); err == nil {
				if parentOf(n) == pid {
					_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
				}
				_ = unix.Close(fd)
			}
		}
	}
	t := time.NewTimer(time.Second)
	defer t.Stop()
	select {
	case <-gone:
		return
	case <-t.C:
		_ = unix.Kill(pid, unix.SIGKILL) // our child, not waited for
		<-gone
	}
}

// parentOf reads the parent of a process: proc_pid_stat(5), field 4.
func parentOf(pid int) int {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	_, rest, ok := strings.Cut(string(b[strings.LastIndexByte(string(b), ')')+1:]), " ")
	if !ok {
		return 0
	}
	f := strings.Fields(rest)
	if len(f) < 2 {
		return 0
	}
	n, _ := strconv.Atoi(f[1])
	return n
}

// readBounded reads to the end and keeps the beginning.
func readBounded(r io.Reader) string {
	b := make([]byte, maxOutput+1)
	n, err := io.ReadFull(r, b)
	for scrap := make([]byte, 512); err == nil; {
		_, err = r.Read(scrap)
	}
	if n > maxOutput {
		return string(b[:maxOutput]) + "..."
	}
	return string(b[:n])
}
