//go:build faults

package undo

import (
	"fmt"
	"os"
	"strings"
	"syscall"
)

// Faults says whether fault points are compiled in (build tag faults).
const Faults = true

// fault looks at ONGGI_FAULT ("NAME=error", "NAME=kill", or "NAME@after=..."; the default moment is before) and at
// ONGGI_FAULT_NAMES, a file to which every name met is appended, one per line.
func fault(name string, m moment) error {
	if f := os.Getenv("ONGGI_FAULT_NAMES"); f != "" && m == before {
		if w, err := os.OpenFile(f, os.O_CREATE|os.O_APPEND|os.O_WRONLY|syscall.O_CLOEXEC, 0o600); err == nil {
			_, _ = w.WriteString(name + "\n")
			_ = w.Close()
		}
	}
	where, what, ok := strings.Cut(os.Getenv("ONGGI_FAULT"), "=")
	if !ok {
		return nil
	}
	at := before
	if n, mom, ok := strings.Cut(where, "@"); ok {
		where, at = n, moment(mom)
	}
	if where != name || at != m {
		return nil
	}
	if what == "kill" {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	return fmt.Errorf("injected fault at %s (%s)", name, m)
}
