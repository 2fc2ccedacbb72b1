package cli

import (
	"fmt"
	"time"

	"github.com/onggi/onggi/engine"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/image"
)

// health reads the --health flags.
func (f *containerFlags) health(c *engine.Config, given func(string) bool) error {
	var h image.Health
	any := false
	for _, x := range []struct {
		flag, value string
		to          *time.Duration
	}{
		{"health-interval", f.healthInterval, &h.Interval},
		{"health-timeout", f.healthTimeout, &h.Timeout},
		{"health-start-period", f.healthStartPeriod, &h.StartPeriod},
		{"health-start-interval", f.healthStartInterval, &h.StartInterval},
	} {
		if !given(x.flag) {
			continue
		}
		d, err := parseCheckTime(x.value)
		if err != nil {
			return reading("--"+x.flag, x.value, err)
		}
		*x.to, any = d, true
	}
	if given("health-retries") {
		n, err := parseInt(f.healthRetries, 0, 1<<31-1)
		if err != nil {
			return reading("--health-retries", f.healthRetries, err)
		}
		h.Retries, any = int(n), true
	}
	if f.healthCmd != "" {
		h.Test, any = []string{"CMD-SHELL", f.healthCmd}, true
	}
	if f.noHealth {
		if any {
			return reading("--no-healthcheck", "true", &errdefs.Error{Why: "it contradicts the --health flags", Fix: "leave one of them out"})
		}
		h.Test, any = []string{"NONE"}, true
	}
	if any {
		c.Health = &h
	}
	switch f.onUnhealthy {
	case "", "none", "restart", "stop":
	default:
		return reading("--on-unhealthy", f.onUnhealthy, &errdefs.Error{Why: "there is no such action", Fix: "use restart, stop or none"})
	}
	if f.onUnhealthy == "restart" && f.rm {
		return reading("--on-unhealthy", f.onUnhealthy, &errdefs.Error{Why: "it contradicts --rm: what is removed when it ends cannot be started again", Fix: "drop --rm, or use stop"})
	}
	if f.onUnhealthy != "" && f.noHealth {
		return reading("--on-unhealthy", f.onUnhealthy, &errdefs.Error{Why: "with --no-healthcheck nobody finds out", Fix: "leave one of them out"})
	}
	c.OnUnhealthy = f.onUnhealthy
	return nil
}

// parseCheckTime reads a time of a health check: 0 is what the image says.
func parseCheckTime(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	switch {
	case err != nil:
		return 0, fmt.Errorf("it is not a time such as 500ms, 10s or 1m30s")
	case d < 0:
		return 0, fmt.Errorf("it is negative")
	case d > 0 && d < time.Millisecond:
		return 0, fmt.Errorf("it is less than 1ms")
	}
	return d, nil
}
