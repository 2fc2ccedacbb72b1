package image

import (
	"bytes"
	"encoding/json"
	"time"
)

// Health is a health check in the form of docker's image configuration (config.Healthcheck), which OCI's does not have.
type Health struct {
	// Test is nothing (inherit), ["NONE"], ["CMD", ARG...], or ["CMD-SHELL", COMMAND].
	Test          []string      `json:",omitempty"`
	Interval      time.Duration `json:",omitempty"` // zero: inherit
	Timeout       time.Duration `json:",omitempty"`
	StartPeriod   time.Duration `json:",omitempty"`
	StartInterval time.Duration `json:",omitempty"`
	Retries       int           `json:",omitempty"`
}

// parseHealth reads what OCI's configuration does not have out of docker's: the health check and the shell that it, and
// RUN, are given to. Most images have neither.
func parseHealth(config []byte) (*Health, []string) {
	if !bytes.Contains(config, []byte(`"Healthcheck"`)) && !bytes.Contains(config, []byte(`"Shell"`)) {
		return nil, nil
	}
	var c struct {
		Config struct {
			Healthcheck *Health
			Shell       []string
		} `json:"config"`
	}
	if json.Unmarshal(config, &c) != nil {
		return nil, nil // what is not as docker writes it is no health check
	}
	return c.Config.Healthcheck, c.Config.Shell
}
