package cli

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// humanSize prints bytes as docker does: powers of 1000 and precision significant digits ("187MB", "1.09kB").
func humanSize(n int64, precision int) string {
	f := float64(n)
	units := [...]string{"B", "kB", "MB", "GB", "TB", "PB", "EB"}
	i := 0
	for f >= 1000 && i < len(units)-1 {
		f /= 1000
		i++
	}
	s := strconv.FormatFloat(f, 'g', precision, 64)
	if strings.Contains(s, "e") { // 999.9 with three digits rounds to 1e+03
		s = strconv.FormatFloat(f, 'f', 0, 64)
	}
	return s + units[i]
}

// binarySize prints bytes in powers of 1024, for memory ("7.7GiB").
func binarySize(n int64) string {
	f := float64(n)
	units := [...]string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	i := 0
	for f >= 1024 && i < len(units)-1 {
		f /= 1024
		i++
	}
	return strconv.FormatFloat(f, 'g', 4, 64) + units[i]
}

// humanTime prints a duration in one unit, in docker's words: "Less than a second", "About a minute", "3 weeks".
func humanTime(d time.Duration) string {
	seconds := int(d.Seconds())
	hours := int(d.Round(time.Hour).Hours())
	switch minutes := int(d.Minutes()); {
	case seconds < 1:
		return "Less than a second"
	case seconds == 1:
		return "1 second"
	case seconds < 60:
		return fmt.Sprintf("%d seconds", seconds)
	case minutes == 1:
		return "About a minute"
	case minutes < 60:
		return fmt.Sprintf("%d minutes", minutes)
	case hours == 1:
		return "About an hour"
	case hours < 48:
		return fmt.Sprintf("%d hours", hours)
	case hours < 24*7*2:
		return fmt.Sprintf("%d days", hours/24)
	case hours < 24*30*2:
		return fmt.Sprintf("%d weeks", hours/24/7)
	case hours < 24*365*2:
		return fmt.Sprintf("%d months", hours/24/30)
	default:
		return fmt.Sprintf("%d years", hours/24/365)
	}
}

// ago prints how long ago a time was.
func ago(t, now time.Time) string {
	if t.IsZero() || t.Unix() <= 0 {
		return "N/A"
	}
	return humanTime(now.Sub(t)) + " ago"
}

// shortID is the first twelve digits of an id or digest.
func shortID(s string) string {
	if _, hex, ok := strings.Cut(s, ":"); ok {
		s = hex
	}
	return s[:min(len(s), 12)]
}

// shorten cuts text to n characters, the last of them an ellipsis.
func shorten(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return string(r[:n-1]) + "…"
}

// printable replaces what would move a terminal's cursor: names and commands come from images and other users.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

// parseTime reads a point in time as docker's logs do: RFC 3339 or a part of it, seconds since 1970 with a fraction, or
// how long ago ("10m", "1h30m").
func parseTime(s string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d), nil
	}
	if seconds, fraction, _ := strings.Cut(s, "."); allDigits(seconds) && (allDigits(fraction) || fraction == "") && len(seconds) > 4 {
		n, err := parseInt(seconds, 0, 1<<40)
		if err != nil {
			return time.Time{}, fmt.Errorf("the number of seconds is too big")
		}
		fraction = (fraction + "000000000")[:9]
		ns, err := parseInt(fraction, 0, 999999999)
		return time.Unix(n, ns), err
	}
	for _, layout := range [...]string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02T15:04Z07:00", "2006-01-02T15:04", "2006-01-02Z07:00", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("it is neither a time nor a duration")
}
