package cli

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/onggi/onggi/undo"
)

// phaseTable renders spans in order of their start: name, begin, length, and a bar on a common time axis.
func phaseTable(spans []undo.Span, p painter) string {
	if len(spans) == 0 {
		return ""
	}
	spans = slices.Clone(spans)
	slices.SortStableFunc(spans, func(a, b undo.Span) int { return int(a.Start - b.Start) })
	var end time.Duration
	width := len("phase")
	for _, s := range spans {
		end = max(end, s.Start+s.Took)
		width = max(width, len(s.Name))
	}
	width = min(width, 36)
	const axis = 24
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", p.bold(fmt.Sprintf("%-*s %9s %9s", width, "phase", "at ms", "took ms")))
	for _, s := range spans {
		from, to := 0, axis
		if end > 0 {
			from = int(int64(axis) * int64(s.Start) / int64(end))
			to = int(int64(axis) * int64(s.Start+s.Took) / int64(end))
		}
		from = min(from, axis-1)
		to = min(max(to, from+1), axis)
		bar := strings.Repeat(" ", from) + p.cyan(strings.Repeat("█", to-from))
		fmt.Fprintf(&b, "%-*s %9s %9s  %s\n", width, s.Name, millis(s.Start), millis(s.Took), bar)
	}
	fmt.Fprintf(&b, "%s\n", p.bold(fmt.Sprintf("%-*s %9s %9s", width, "all", "", millis(end))))
	return b.String()
}

func millis(d time.Duration) string { return fmt.Sprintf("%.3f", float64(d)/float64(time.Millisecond)) }
