package engine

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/image"
	"github.com/onggi/onggi/runtime/monitor"
)

// Docker's defaults of a health check.
const (
	checkInterval = 30 * time.Second
	checkTimeout  = 30 * time.Second
	checkSooner   = 5 * time.Second // in the start period
	checkRetries  = 3
)

// checkHealth refuses what cannot be checked.
func (c *Config) checkHealth() error {
	switch c.OnUnhealthy {
	case "", "none", "restart", "stop":
	default:
		return invalid("--on-unhealthy", c.OnUnhealthy, "there is no such action", "use restart, stop or none")
	}
	if c.AutoRemove && c.OnUnhealthy == "restart" {
		return invalid("--on-unhealthy", c.OnUnhealthy, "it contradicts --rm: what is removed when it ends cannot be started again", "drop --rm, or use stop")
	}
	h := c.Health
	if h == nil {
		return nil
	}
	for _, d := range []struct {
		flag string
		v    time.Duration
	}{{"--health-interval", h.Interval}, {"--health-timeout", h.Timeout}, {"--health-start-period", h.StartPeriod}, {"--health-start-interval", h.StartInterval}} {
		if d.v < 0 || d.v > 0 && d.v < time.Millisecond {
			return invalid(d.flag, d.v.String(), "it has to be 1ms at least, or 0 for what the image says", "for example: "+d.flag+" 30s")
		}
	}
	if h.Retries < 0 {
		return invalid("--health-retries", itoa(h.Retries), "it cannot be negative", "for example: --health-retries 3")
	}
	if len(h.Test) > 0 && !slices.Contains([]string{"NONE", "CMD", "CMD-SHELL"}, h.Test[0]) || len(h.Test) == 1 && h.Test[0] != "NONE" || len(h.Test) > 1 && h.Test[0] == "NONE" ||
		len(h.Test) > 2 && h.Test[0] == "CMD-SHELL" {
		return invalid("--health-cmd", strings.Join(h.Test, " "), "a check is NONE, CMD with a command, or CMD-SHELL with one line for the shell", "for example: --health-cmd 'curl -f http://localhost/'")
	}
	return nil
}

// noHealth reports whether the user wants no check, whatever the image says.
func (c *Config) noHealth() bool {
	return c.Health != nil && len(c.Health.Test) > 0 && c.Health.Test[0] == "NONE"
}

// health merges what the user says with what the image says; nil when there is nothing to check.
func (c *Config) health(img *image.Health) *image.Health {
	var h image.Health
	if c.Health != nil {
		h = *c.Health
	}
	if img != nil {
		if len(h.Test) == 0 {
			h.Test = img.Test
		}
		for _, d := range []struct{ to, from *time.Duration }{
			{&h.Interval, &img.Interval}, {&h.Timeout, &img.Timeout}, {&h.StartPeriod, &img.StartPeriod}, {&h.StartInterval, &img.StartInterval},
		} {
			if *d.to == 0 {
				*d.to = *d.from
			}
		}
		if h.Retries == 0 {
			h.Retries = img.Retries
		}
	}
	if len(h.Test) < 2 || h.Test[0] != "CMD" && h.Test[0] != "CMD-SHELL" {
		return nil
	}
	return &h
}

// health prepares the check of a container that is being started: the process that the monitor has the runtime execute.
// config.json is written.
func (h *held) health() (*monitor.Health, error) {
	e, r := h.e, h.rec
	c := r.Healthcheck
	if c == nil {
		return nil, nil
	}
	args := c.Test[1:]
	if c.Test[0] == "CMD-SHELL" {
		shell := r.Shell
		if len(shell) == 0 {
			shell = []string{"/bin/sh", "-c"}
		}
		args = append(slices.Clone(shell), c.Test[1])
	}
	p, err := e.process(r, ExecConfig{Args: args})
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	run := e.runDir(r.ID)
	file := filepath.Join(run, "health-process.json")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		return nil, err
	}
	argv := slices.Clone(r.Config.Runtime)
	if len(argv) == 0 {
		bin, err := e.runtime()
		if err != nil {
			return nil, err
		}
		argv = []string{bin}
	} else if !filepath.IsAbs(argv[0]) {
		return nil, &errdefs.Error{Op: "check the health of", What: "container " + r.Config.Name, Kind: errdefs.InvalidArgument, Why: "its runtime " + argv[0] + " is no absolute path", Fix: "--runtime /usr/bin/" + filepath.Base(argv[0])}
	}
	m := &monitor.Health{
		PidFile:  filepath.Join(run, "health.pid"),
		Interval: orDefault(c.Interval, checkInterval), Timeout: orDefault(c.Timeout, checkTimeout),
		StartPeriod: c.StartPeriod, StartInterval: orDefault(c.StartInterval, checkSooner),
		Retries: int64(orDefault(c.Retries, checkRetries)),
	}
	m.Command = append(argv, "--root", e.runtimeRoot(), "exec", "--process", file, "--pid-file", m.PidFile, r.ID)
	if r.Config.OnUnhealthy == "restart" || r.Config.OnUnhealthy == "stop" {
		m.On, m.Grace = r.Config.OnUnhealthy, r.Config.StopGrace()
		sig, err := r.stopSignal()
		if err != nil {
			return nil, err
		}
		m.Signal = int64(sig)
	}
	return m, nil
}

func orDefault[T int | time.Duration](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}
