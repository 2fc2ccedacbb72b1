package main

import (
	"os"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/runtime/launch"
)

func cmdList(g *globals, args []string) (int, error) {
	format, quiet := "table", false
	f := flags{of: "list"}
	f.str(&format, "FORMAT", "table (default) or json", "format", "f")
	f.bool(&quiet, "print only ids", "quiet", "q")
	if rest, err := f.parse(args, true); err != nil {
		return 1, err
	} else if len(rest) > 0 {
		return 1, f.bad("", "it takes no argument")
	}
	states, err := launch.List(g.root)
	if err != nil {
		return 1, err
	}
	switch {
	case quiet:
		for _, s := range states {
			_, _ = os.Stdout.WriteString(s.ID + "\n")
		}
		return 0, nil
	case format == "json":
		if states == nil {
			states = []launch.State{}
		}
		return 0, printJSON(states)
	case format != "table":
		return 1, f.bad("--format", "its values are table and json")
	}
	rows := [][]string{{"ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"}}
	for _, s := range states {
		rows = append(rows, []string{s.ID, strconv.Itoa(s.Pid), string(s.Status), s.Bundle, s.Created.Format(time.RFC3339Nano), s.Owner})
	}
	printTable(rows)
	return 0, nil
}

func printTable(rows [][]string) {
	width := make([]int, len(rows[0]))
	for _, r := range rows {
		for i, c := range r {
			width[i] = max(width[i], len(c))
		}
	}
	var b strings.Builder
	for _, r := range rows {
		for i, c := range r {
			b.WriteString(c)
			if i < len(r)-1 {
				b.WriteString(strings.Repeat(" ", width[i]-len(c)+3))
			}
		}
		b.WriteByte('\n')
	}
	_, _ = os.Stdout.WriteString(b.String())
}

func cmdPs(g *globals, args []string) (int, error) {
	format := "table"
	f := flags{of: "ps"}
	f.str(&format, "FORMAT", "table (default) or json", "format", "f")
	rest, err := f.parse(args, false)
	if err != nil {
		return 1, err
	}
	if len(rest) == 0 {
		return 1, f.bad("", "a container id is needed")
	}
	// runc's users put flags behind the id as well; options of ps(1) stand behind "--" or are not ours
	id, rest := rest[0], rest[1:]
	for len(rest) > 0 && (strings.HasPrefix(rest[0], "-f=") || strings.HasPrefix(rest[0], "--format=")) {
		_, format, _ = strings.Cut(rest[0], "=")
		rest = rest[1:]
	}
	c, err := launch.Load(g.root, id)
	if err != nil {
		return 1, err
	}
	pids, err := c.Pids()
	if err != nil {
		return 1, err
	}
	sort.Ints(pids)
	switch format {
	case "json":
		b := []byte{'['}
		for i, p := range pids {
			if i > 0 {
				b = append(b, ',')
			}
			b = strconv.AppendInt(b, int64(p), 10)
		}
		_, err = os.Stdout.Write(append(b, ']', '\n'))
		return 0, err
	case "table":
		return 0, psTable(pids, rest)
	}
	return 1, f.bad("--format", "its values are table and json")
}

// psTable shows ps(1)'s lines of the given processes.
func psTable(pids []int, options []string) error {
	if len(options) == 0 {
		options = []string{"-ef"}
	}
	out, err := output("ps", options)
	if err != nil {
		return err
	}
	in := map[string]bool{}
	for _, p := range pids {
		in[strconv.Itoa(p)] = true
	}
	column := -1
	for line := range strings.Lines(out) {
		fields := strings.Fields(line)
		if column < 0 {
			for i, name := range fields {
				if name == "PID" {
					column = i
				}
			}
			if column < 0 {
				return &errdefs.Error{Op: "list processes", Kind: errdefs.InvalidArgument, Why: "the output of ps has no column PID"}
			}
			_, _ = os.Stdout.WriteString(line)
			continue
		}
		if column < len(fields) && in[fields[column]] {
			_, _ = os.Stdout.WriteString(line)
		}
	}
	return nil
}

// output runs a command of PATH and returns what it prints.
func output(name string, args []string) (string, error) {
	path := ""
	for _, d := range strings.Split(os.Getenv("PATH"), ":") {
		if st, err := os.Stat(d + "/" + name); err == nil && st.Mode()&0o111 != 0 && !st.IsDir() {
			path = d + "/" + name
			break
		}
	}
	if path == "" {
		return "", &errdefs.Error{Op: "run", What: name, Kind: errdefs.NotFound, Why: "it is not in PATH"}
	}
	r, w, err := os.Pipe()
	if err != nil {
		return "", err
	}
	p, err := os.StartProcess(path, append([]string{name}, args...), &os.ProcAttr{Files: []*os.File{os.Stdin, w, os.Stderr}, Sys: &syscall.SysProcAttr{}})
	_ = w.Close()
	if err != nil {
		return "", err
	}
	var b strings.Builder
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		b.Write(buf[:n])
		if err != nil {
			break
		}
	}
	st, err := p.Wait()
	if err == nil && !st.Success() {
		err = &errdefs.Error{Op: "run", What: name, Kind: errdefs.Unknown, Why: st.String()}
	}
	return b.String(), err
}
