package cli

import (
	"fmt"
	"time"

	"github.com/onggi/onggi/engine"
	"github.com/onggi/onggi/errdefs"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// statsRow is a line of `stats`. Its fields are those of docker's format, and the pressures.
type statsRow struct {
	BlockIO        string
	CPUPerc        string
	CPUPressure    string `json:",omitempty"`
	Container      string
	ID             string
	IOPressure     string `json:",omitempty"`
	MemPerc        string
	MemUsage       string
	MemoryPressure string `json:",omitempty"`
	Name           string
	NetIO          string
	PIDs           string
}

func (statsRow) headers() map[string]string {
	return map[string]string{
		"BlockIO": "BLOCK I/O", "CPUPerc": "CPU %", "CPUPressure": "CPU PRESSURE", "Container": "CONTAINER", "ID": "CONTAINER ID", "IOPressure": "I/O PRESSURE",
		"MemPerc": "MEM %", "MemUsage": "MEM USAGE / LIMIT", "MemoryPressure": "MEM PRESSURE", "NetIO": "NET I/O", "PIDs": "PIDS",
	}
}

// statsWindow is how long stats --no-stream looks at the processors.
const statsWindow = 20 * time.Millisecond

func buildStats(a *app, c *cobra.Command) {
	var (
		all, noStream, noTrunc bool
		format, window         string
	)
	c.Use = "stats [FLAGS] [CONTAINER...]"
	c.Long = `Show what running containers use, again each second, or once with --no-stream: the share of processors (100 % is one of
them), memory without the page cache that can be given back at once, what their networks and disks have carried, and processes
and threads. --format has docker's fields, and CPUPressure, MemoryPressure and IOPressure: the share of the last ten seconds in which some of
the processes waited for it (cgroup v2 only).

--no-stream looks at the processors for 20 ms. A longer --window says more about a container whose load comes in bursts.`
	c.Example = `  onggi stats
  onggi stats --no-stream --window 1s web db
  onggi stats --no-stream --format '{{.Name}} {{.CPUPerc}} {{.MemPerc}}'`
	f := c.Flags()
	f.BoolVarP(&all, "all", "a", false, "show containers that do not run, too")
	f.BoolVar(&noStream, "no-stream", false, "show it once")
	f.BoolVar(&noTrunc, "no-trunc", false, "print whole ids")
	f.StringVar(&window, "window", "", "`time` over which the use of processors is measured (default 1s, with --no-stream 20ms)")
	f.StringVar(&format, "format", "", "print as `format`: table, json, or a Go template such as '{{.Name}} {{.CPUPerc}}'")
	c.Args = takes(0, -1, "names or ids of containers")
	c.RunE = func(c *cobra.Command, args []string) error {
		out, err := newFormat(format, c.Flags().Changed("format"))
		if err != nil {
			return err
		}
		every := time.Second
		if noStream {
			every = statsWindow
		}
		if c.Flags().Changed("window") {
			d, err := time.ParseDuration(window)
			if err != nil || d < 10*time.Millisecond || d > time.Hour {
				return reading("--window", window, &errdefs.Error{Why: "it is not a time between 10ms and 1h", Fix: "for example: --window 1s"})
			}
			every = d
		}
		e, err := a.open()
		if err != nil {
			return err
		}
		ctx, cancel := a.context(c.Context())
		defer cancel()
		rowsOf := func(list []*engine.Sample, before map[string]*engine.Sample) []statsRow {
			rows := make([]statsRow, len(list))
			for i, s := range list {
				rows[i] = newStatsRow(s, before[s.ID], noTrunc)
				if i < len(args) {
					rows[i].Container = args[i]
				}
			}
			return rows
		}
		before := map[string]*engine.Sample{}
		if noStream {
			first, list, err := e.SampleOver(ctx, args, all, every)
			if err != nil {
				return err
			}
			for _, s := range first {
				before[s.ID] = s
			}
			return writeRows(a, out, rowsOf(list, before), statsColumns())
		}
		screen := term.IsTerminal(int(a.out.Fd())) && !out.json
		rounds := 0
		err = e.Watch(ctx, args, all, every, func(list []*engine.Sample) error {
			rows := rowsOf(list, before)
			before = make(map[string]*engine.Sample, len(list))
			for _, s := range list {
				before[s.ID] = s
			}
			if rounds++; rounds == 1 {
				return nil // there is nothing to compare it with yet
			}
			if screen {
				if err := a.print("\x1b[H\x1b[J"); err != nil {
					return err
				}
			}
			return writeRows(a, out, rows, statsColumns())
		})
		if errdefs.Is(err, errdefs.Canceled) && a.caught != 0 {
			return nil // Ctrl-C is how watching ends
		}
		return err
	}
}

func statsColumns() []column[statsRow] {
	return []column[statsRow]{
		{"CONTAINER ID", func(r statsRow) string { return r.ID }},
		{"NAME", func(r statsRow) string { return r.Name }},
		{"CPU %", func(r statsRow) string { return r.CPUPerc }},
		{"MEM USAGE / LIMIT", func(r statsRow) string { return r.MemUsage }},
		{"MEM %", func(r statsRow) string { return r.MemPerc }},
		{"NET I/O", func(r statsRow) string { return r.NetIO }},
		{"BLOCK I/O", func(r statsRow) string { return r.BlockIO }},
		{"PIDS", func(r statsRow) string { return r.PIDs }},
	}
}

func newStatsRow(s, before *engine.Sample, noTrunc bool) statsRow {
	size := func(n uint64) string { return humanSize(int64(min(n, 1<<62)), 3) }
	r := statsRow{
		ID: s.ID, Container: s.ID, Name: s.Name, CPUPerc: fmt.Sprintf("%.2f%%", s.CPUPercent(before)), MemPerc: fmt.Sprintf("%.2f%%", s.MemoryPercent()),
		MemUsage: binarySize(int64(s.Memory)) + " / " + binarySize(int64(min(s.MemoryLimit, 1<<62))),
		NetIO:    size(s.NetRx) + " / " + size(s.NetTx), BlockIO: size(s.BlockRead) + " / " + size(s.BlockWrite), PIDs: fmt.Sprint(s.Pids),
	}
	if !noTrunc {
		r.ID = shortID(r.ID)
		r.Container = r.ID
	}
	if p := s.Pressure; p != nil {
		r.CPUPressure, r.MemoryPressure, r.IOPressure = fmt.Sprintf("%.2f%%", p.CPU.Avg10), fmt.Sprintf("%.2f%%", p.Memory.Avg10), fmt.Sprintf("%.2f%%", p.IO.Avg10)
	}
	return r
}
