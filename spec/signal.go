package spec

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ParseSignal reads a signal as docker's users write it: "TERM", "SIGTERM", "15", "RTMIN+3", any case.
func ParseSignal(flag, s string) (int, error) {
	bad := invalid(flag, strconv.Quote(s), "invalid signal", "see: kill -l")
	if n, err := strconv.Atoi(s); err == nil {
		if n < 1 || n > 64 {
			return 0, bad
		}
		return n, nil
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	switch base, off, _ := strings.Cut(name, "+"); base { // C library's numbering, as docker's
	case "RTMIN":
		return realtime(34, off, 1, bad)
	}
	switch base, off, _ := strings.Cut(name, "-"); base {
	case "RTMAX":
		return realtime(64, off, -1, bad)
	}
	if n := unix.SignalNum("SIG" + name); n != 0 {
		return int(n), nil
	}
	return 0, bad
}

func realtime(base int, offset string, sign int, bad error) (int, error) {
	if offset == "" {
		return base, nil
	}
	n, err := strconv.ParseUint(offset, 10, 8)
	if s := base + sign*int(n); err == nil && s >= 34 && s <= 64 {
		return s, nil
	}
	return 0, bad
}
