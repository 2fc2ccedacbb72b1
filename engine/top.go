package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/onggi/onggi/errdefs"
	"golang.org/x/sys/unix"
)

// Processes is a table of a container's processes, as ps(1) prints it. Pids are the host's.
type Processes struct {
	Titles []string
	Rows   [][]string
}

// maxTop bounds what is read of ps and of an entry of /proc, bytes.
const maxTop = 16 << 20

// Top lists the processes of a running container. Without arguments the columns are those of ps -ef, read from /proc; with
// arguments the host's ps runs with them, and what is not the container's is left out. Conflict when the container does not
// run; InvalidArgument when ps does not print a column PID; NotFound when the host has no ps.
func (e *Engine) Top(ctx context.Context, idOrName string, psArgs []string) (*Processes, error) {
	r, err := e.get(idOrName)
	if err != nil {
		return nil, err
	}
	if r.Status != Running {
		return nil, notRunning("list the processes of", idOrName)
	}
	g, err := r.group()
	if errdefs.Is(err, errdefs.NotFound) {
		return nil, notRunning("list the processes of", idOrName)
	}
	if err != nil {
		return nil, err
	}
	defer g.Close()
	var p *Processes
	if len(psArgs) == 0 {
		pids, err := g.Pids()
		if err != nil {
			return nil, err
		}
		p, err = processesOf(pids)
		if err != nil {
			return nil, err
		}
	} else {
		pids, err := g.Pids()
		if err != nil {
			return nil, err
		}
		// With -q ps prints these, whatever terminal they have; not all options, and not every ps, go together with it.
		list := make([]string, len(pids))
		for i, n := range pids {
			list[i] = strconv.Itoa(n)
		}
		out, err := ps(ctx, append([]string{"-q" + strings.Join(list, ",")}, psArgs...))
		if err != nil {
			if out, err = ps(ctx, psArgs); err != nil {
				return nil, err
			}
		}
		if p, err = filterPs(out, pids); err != nil {
			return nil, err
		}
	}
	r.emit(e, "top")
	return p, nil
}

// ps runs the host's ps. Its errors are the user's: the arguments are.
func ps(ctx context.Context, args []string) ([]byte, error) {
	path := "/usr/bin/ps" // not by PATH: that is the caller's
	if !exists(path) {
		path = "/bin/ps"
	}
	if !exists(path) {
		return nil, &errdefs.Error{
			Op: "list processes", What: strings.Join(args, " "), Kind: errdefs.NotFound, Why: "this host has no program /usr/bin/ps to understand the options",
			Fix: "install it (Debian: procps), or leave the options out",
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	c := exec.CommandContext(ctx, path, args...)
	c.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "COLUMNS=4096"}
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		why := strings.TrimSpace(stderr.String())
		if i := strings.IndexByte(why, '\n'); i > 0 {
			why = why[:i]
		}
		return nil, &errdefs.Error{
			Op: "run", What: "ps " + strings.Join(args, " "), Kind: errdefs.InvalidArgument, Why: why, Err: err, Fix: "check the options: man ps",
		}
	}
	if len(bytes.TrimSpace(out)) == 0 {
		return nil, &errdefs.Error{Op: "run", What: "ps " + strings.Join(args, " "), Kind: errdefs.InvalidArgument, Why: "it prints nothing"}
	}
	if len(out) > maxTop {
		return nil, &errdefs.Error{Op: "run", What: "ps", Kind: errdefs.Exhausted, Why: fmt.Sprintf("it prints more than %d bytes", maxTop)}
	}
	return out, nil
}

// filterPs keeps the lines of ps whose column PID is among pids. The last column may hold spaces.
func filterPs(out []byte, pids []int) (*Processes, error) {
	lines := strings.Split(strings.TrimRight(string(out), "\n"), "\n")
	p := &Processes{Titles: strings.Fields(lines[0]), Rows: [][]string{}}
	at := slices.Index(p.Titles, "PID")
	if at < 0 {
		return nil, &errdefs.Error{
			Op: "list processes", Kind: errdefs.InvalidArgument, Why: "couldn't find PID field in ps output: by it the container's processes are found",
			Fix: "add the column: -o pid,...",
		}
	}
	mine := make(map[string]bool, len(pids))
	for _, n := range pids {
		mine[strconv.Itoa(n)] = true
	}
	for i, l := range lines[1:] {
		f := strings.Fields(l)
		if len(f) <= at {
			continue
		}
		// Threads (ps -T, m) follow their process with a "-" in the place of its number.
		if !mine[f[at]] && !(f[at] == "-" && i > 0 && len(p.Rows) > 0 && belongs(lines[1:], i, at, mine)) {
			continue
		}
		if n := len(p.Titles); len(f) > n {
			f = append(f[:n-1:n-1], strings.Join(f[n-1:], " "))
		}
		p.Rows = append(p.Rows, f)
	}
	return p, nil
}

// belongs looks for the process of a line without a number: the last one above that has one.
func belongs(lines []string, i, at int, mine map[string]bool) bool {
	for i--; i >= 0; i-- {
		if f := strings.Fields(lines[i]); len(f) > at && f[at] != "-" {
			return mine[f[at]]
		}
	}
	return false
}

// clockTicks is USER_HZ, the unit of times in /proc: 100 on every architecture of Linux that we build for.
const clockTicks = 100

// processesOf reads the columns of ps -ef from /proc (proc_pid_stat(5)). A process that has ended meanwhile is left out.
func processesOf(pids []int) (*Processes, error) {
	p := &Processes{Titles: []string{"UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"}, Rows: [][]string{}}
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		return nil, err
	}
	now := time.Now()
	boot := now.Add(-time.Duration(up.Nano()))
	users := map[uint32]string{}
	slices.Sort(pids)
	for _, pid := range pids {
		dir := "/proc/" + strconv.Itoa(pid)
		stat, err := readBounded(dir+"/stat", 1<<16)
		if err != nil {
			continue
		}
		// pid (comm) state ppid ...: comm may hold anything, the last ")" ends it.
		open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
		f := strings.Fields(string(stat[end+1:]))
		if open < 0 || end < open || len(f) < 20 {
			continue
		}
		number := func(i int) int64 { n, _ := strconv.ParseInt(f[i], 10, 64); return n }
		used := time.Duration(number(11)+number(12)) * time.Second / clockTicks
		began := boot.Add(time.Duration(number(19)) * time.Second / clockTicks)
		var st unix.Stat_t
		if unix.Stat(dir, &st) != nil {
			continue
		}
		if users[st.Uid] == "" {
			users[st.Uid] = hostUser(st.Uid)
		}
		command, err := readBounded(dir+"/cmdline", 1<<20)
		if err != nil && errors.Is(err, os.ErrNotExist) {
			continue
		}
		text := strings.ReplaceAll(strings.TrimRight(string(command), "\x00"), "\x00", " ")
		if text == "" { // a zombie, or a kernel thread
			text = "[" + string(stat[open+1:end]) + "]"
		}
		p.Rows = append(p.Rows, []string{
			users[st.Uid], strconv.Itoa(pid), f[1], strconv.FormatInt(share(used, now.Sub(began)), 10), startText(began, now), terminalName(number(4)), clock(used), text,
		})
	}
	return p, nil
}

// share is ps's column C: percent of one processor over the process's life, at most 99.
func share(used, life time.Duration) int64 {
	if life <= 0 {
		return 0
	}
	return min(int64(100*used/life), 99)
}

// startText is ps's column STIME: the hour within a day, else the day, else the year.
func startText(t, now time.Time) string {
	switch t = t.Local(); {
	case now.Sub(t) < 24*time.Hour && t.Day() == now.Day():
		return t.Format("15:04")
	case t.Year() == now.Year():
		return t.Format("Jan02")
	}
	return t.Format("2006")
}

func clock(d time.Duration) string {
	s := int64(d / time.Second)
	return fmt.Sprintf("%02d:%02d:%02d", s/3600, s/60%60, s%60)
}

// terminalName is ps's column TTY of a device number.
func terminalName(n int64) string {
	major, minor := unix.Major(uint64(n)), unix.Minor(uint64(n))
	switch {
	case n == 0:
		return "?"
	case major >= 136 && major <= 143:
		return fmt.Sprintf("pts/%d", (major-136)<<8|minor)
	case major == 4 && minor < 64:
		return fmt.Sprintf("tty%d", minor)
	case major == 4:
		return fmt.Sprintf("ttyS%d", minor-64)
	}
	return fmt.Sprintf("%d:%d", major, minor)
}

// hostUser is the host's name of a user, or the number: ps has no other.
func hostUser(uid uint32) string {
	number := strconv.FormatUint(uint64(uid), 10)
	b, err := readBounded("/etc/passwd", maxAccounts)
	if err != nil {
		return number
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		if f := strings.SplitN(line, ":", 4); len(f) == 4 && f[2] == number && f[0] != "" {
			return f[0]
		}
	}
	return number
}
