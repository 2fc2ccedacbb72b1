package monitor

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/onggi/onggi/events"
	"golang.org/x/sys/unix"
)

// WriteActor writes how the container is called in events: its name, image and labels. It replaces the file, so that it may be
// called while the monitor is alive.
func WriteActor(runDir string, attributes map[string]string) error {
	b, err := json.Marshal(attributes)
	if err != nil {
		return err
	}
	path := filepath.Join(runDir, actorName)
	tmp := path + ".tmp"
	if err = os.WriteFile(tmp, b, 0o600); err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return errors.Join(err, ignoreMissing(os.Remove(tmp)))
	}
	return nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// readActor is empty when there is no file: an event without names is better than none.
func readActor(runDir string) map[string]string {
	a := map[string]string{}
	f, err := os.OpenFile(filepath.Join(runDir, actorName), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return a
	}
	defer f.Close()
	_ = json.NewDecoder(io.LimitReader(f, 1<<20)).Decode(&a)
	return a
}

// record writes an event of the container into the journal; more are attributes as name, value. It fails silently: what
// happened has happened.
func (s *server) record(action string, at time.Time, more ...string) {
	if s.cfg.Journal == "" {
		return
	}
	a := readActor(s.cfg.RunDir)
	for i := 0; i+1 < len(more); i += 2 {
		a[more[i]] = more[i+1]
	}
	_ = events.Append(s.cfg.Journal, &events.Event{Type: events.Container, Action: action, ID: s.cfg.ID, Attributes: a, Time: at})
}

// sent notes a signal that was delivered.
func (s *server) sent(m Sent) {
	s.mu.Lock()
	s.exit.Signals = append(s.exit.Signals, m)
	if n := len(s.exit.Signals); n > keptSignals {
		s.exit.Signals = append([]Sent(nil), s.exit.Signals[n-keptSignals:]...)
	}
	s.mu.Unlock()
	s.record("kill", m.At, "signal", strconv.Itoa(m.Signal))
}

// recordEnd records the end of a container that has been started.
func (s *server) recordEnd() {
	s.mu.Lock()
	x := s.exit
	s.mu.Unlock()
	if x.StartedAt.IsZero() {
		return
	}
	if x.OOMKilled {
		s.record("oom", x.FinishedAt)
	}
	s.record("die", x.FinishedAt, "exitCode", strconv.Itoa(x.Code), "execDuration", strconv.Itoa(int(x.FinishedAt.Sub(x.StartedAt)/time.Second)))
}
