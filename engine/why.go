package engine

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/runtime/monitor"
	"golang.org/x/sys/unix"
)

// Verdict is what is known about why a container is as it is: Why's answer.
type Verdict struct {
	ID, Name string
	Status   Status
	// Cause is the kind of end, for programs: "running", "never-started", "cannot-start", "finished", "failed", "stopped",
	// "killed", "crashed", "oom", "seccomp", "unhealthy", "host-restarted", "monitor-killed".
	Cause   string
	Summary string        // one sentence: what it is, since when
	Because []string      // what is known of the reason, the most telling first
	Advice  []string      // what to do about it
	Exit    *monitor.Exit `json:",omitempty"`
	Log     []string      // the last lines of what it has written
}

// Sender says who sends a signal, for Exit.Signals: what, and the user behind it.
func (e *Engine) Sender(what string) string {
	who := strconv.Itoa(os.Getuid())
	if who == "0" {
		who = "root"
	}
	if e.o.For != "" {
		who += " for " + e.o.For
	}
	return what + " (user " + who + ")"
}

// Why finds out why a container has ended, or why it does not run. lines is how much of the end of its log to give. NotFound.
func (e *Engine) Why(ctx context.Context, idOrName string, lines int) (*Verdict, error) {
	r, err := e.get(idOrName)
	if err != nil {
		return nil, err
	}
	if r.Health == nil && r.Healthcheck != nil {
		r.Health, _ = monitor.ReadHealth(e.stateDir(r.ID))
	}
	v := judge(r, time.Now())
	if lines > 0 && !r.StartedAt.IsZero() {
		var b bytes.Buffer
		w := &tailWriter{b: &b}
		if err := e.Logs(ctx, r.ID, LogOptions{Tail: lines}, w, w); err == nil {
			v.Log = strings.Split(strings.TrimRight(b.String(), "\n"), "\n")
			if len(v.Log) == 1 && v.Log[0] == "" {
				v.Log = nil
			}
		} else if !errdefs.Is(err, errdefs.Unsupported) && ctx.Err() == nil {
			v.Because = append(v.Because, "its log cannot be read: "+err.Error())
		}
	}
	v.readLog()
	return v, nil
}

// tailWriter keeps at most 64 KiB: a line has no bound.
type tailWriter struct{ b *bytes.Buffer }

func (w *tailWriter) Write(p []byte) (int, error) {
	if room := 64<<10 - w.b.Len(); room > 0 {
		w.b.Write(p[:min(len(p), room)])
	}
	return len(p), nil
}

// judge is the part of Why that looks at nothing but the record.
func judge(r *record, now time.Time) *Verdict {
	v := &Verdict{ID: r.ID, Name: r.Config.Name, Status: r.Status, Exit: r.Exit}
	name := v.Name
	because := func(format string, a ...any) { v.Because = append(v.Because, fmt.Sprintf(format, a...)) }
	advise := func(format string, a ...any) { v.Advice = append(v.Advice, fmt.Sprintf(format, a...)) }
	x := r.Exit
	switch {
	case r.Status == Running:
		v.Cause, v.Summary = "running", fmt.Sprintf("%s runs, for %s", name, span(now.Sub(r.StartedAt)))
		if r.Paused {
			because("it is paused")
			advise("let it go on: onggi unpause %s", name)
		}
		if r.RestartCount > 0 {
			because("it was started again %s by its restart policy; an earlier end is in its log and in: onggi events --since 24h --stream=false -f container=%s", times(r.RestartCount), name)
		}
		v.health(r, name)
		return v
	case x == nil:
		v.Cause, v.Summary = "never-started", fmt.Sprintf("%s has never been started: its state is %s", name, r.Status)
		advise("start it: onggi start %s", name)
		return v
	case r.Status == Created:
		v.Cause, v.Summary = "cannot-start", fmt.Sprintf("%s could not be started (code %d)", name, x.Code)
		because("%s", x.Error)
		v.noCommand(x, r)
		return v
	}
	v.Summary = fmt.Sprintf("%s ended %s ago with code %d", name, span(now.Sub(x.FinishedAt)), x.Code)
	if !x.StartedAt.IsZero() && x.FinishedAt.After(x.StartedAt) {
		v.Summary += ", after it had run for " + span(x.FinishedAt.Sub(x.StartedAt))
	}
	if r.Status == Restarting {
		v.Summary += fmt.Sprintf("; it rests for %s and is started again, for the %s time", span(r.Rest), ordinal(r.RestartCount))
	}
	v.end(r, name)
	for _, w := range x.Warnings {
		because("besides: %s", w)
	}
	return v
}

// end finds the cause of an end.
func (v *Verdict) end(r *record, name string) {
	because := func(format string, a ...any) { v.Because = append(v.Because, fmt.Sprintf(format, a...)) }
	advise := func(format string, a ...any) { v.Advice = append(v.Advice, fmt.Sprintf(format, a...)) }
	x := r.Exit
	sent := sender(x)
	switch {
	case r.Interrupted:
		v.Cause = "host-restarted"
		because("the host was restarted while it ran; nobody saw its end")
		if r.Config.Restart.Restarts() {
			advise("start what has to run: onggi system resume, at every start of the host: onggi system unit")
		} else {
			advise("start it: onggi start %s; to have it start with the host: --restart unless-stopped", name)
		}
	case x.Error != "" && strings.Contains(x.Error, "monitor was killed"):
		v.Cause = "monitor-killed"
		because("its monitor (onggi-runtime monitor) was killed, by hand or by the kernel because the host had no memory left; the container was killed with it, and what it wrote last is lost")
		advise("look for the OOM killer in the kernel's log: dmesg | grep -i 'killed process'")
	case x.Error != "":
		v.Cause = "cannot-start"
		because("%s", x.Error)
		v.noCommand(x, r)
	case x.Unhealthy != "":
		v.Cause = "unhealthy"
		because("its health check failed, and --on-unhealthy %s ended it", x.Unhealthy)
		v.health(r, name)
	case x.OOMKilled && (x.Signal == int(unix.SIGKILL) || x.Code == 137):
		v.Cause = "oom"
		because("the kernel killed it because its control group had used all memory that it may use%s", memory(r))
		more := "give it more: onggi run -m SIZE"
		if r.Config.Memory > 0 {
			more = "give it more: onggi update -m " + size(2*r.Config.Memory) + " " + name
		}
		advise("%s, and start it again; or have the program use less", more)
	case sent != nil && sent.Signal == int(unix.SIGKILL) && x.Signal == sent.Signal:
		v.Cause = "killed"
		because("it was killed (SIGKILL), %s, %s before its end", sent.by(), span(x.FinishedAt.Sub(sent.At)))
		if t := first(x, int(unix.SIGTERM)); t != nil {
			v.Cause = "stopped"
			because("it had been asked to end before (SIGTERM), %s, and had not ended after %s", t.by(), span(sent.At.Sub(t.At)))
			advise("have it end on its stop signal (a shell as process 1 does not pass signals on: exec, or --init), or give it longer: --stop-timeout")
		}
	case sent != nil && (x.Signal == sent.Signal || x.Signal == 0):
		v.Cause = "stopped"
		because("it was asked to end (%s), %s", signalName(sent.Signal), sent.by())
		if x.Signal == 0 && x.Code != 0 && x.Code != 128+sent.Signal {
			because("it ended by itself then, with code %d: %s", x.Code, meaning(x.Code))
		}
	case x.Signal == int(unix.SIGKILL):
		v.Cause = "killed"
		because("it was killed (SIGKILL), and not by onggi: by a process of the host (kill -9 %d), or by the kernel because the host had no memory left%s", r.Pid, memory(r))
		advise("look for the OOM killer in the kernel's log: dmesg | grep -i 'killed process'")
	case x.Signal == int(unix.SIGSYS):
		v.Cause = "seccomp"
		because("it made a system call that its seccomp profile kills for (SIGSYS)")
		advise("find which: dmesg | grep 'type=1326', field syscall=; then allow it in a profile of your own: --security-opt seccomp=FILE")
	case x.Signal != 0:
		v.Cause = "crashed"
		because("it was ended by %s: %s", signalName(x.Signal), signalMeaning(x.Signal))
		if x.Signal == int(unix.SIGTERM) || x.Signal == int(unix.SIGINT) || x.Signal == int(unix.SIGHUP) {
			v.Cause = "killed"
			because("the signal did not come through onggi: from inside of the container, or from a process of the host")
		}
	case x.Code == 0:
		v.Cause = "finished"
		because("its command was done: it ended by itself, without an error")
		if r.Config.Restart.Name == "" && now().Sub(x.FinishedAt) >= 0 && x.FinishedAt.Sub(x.StartedAt) < time.Second {
			advise("if it was to stay: its command must not end or go into the background; a shell without -it ends at once")
		}
	default:
		v.Cause = "failed"
		because("its command ended by itself with code %d: %s", x.Code, meaning(x.Code))
		if x.Code > 128 && x.Code <= 128+64 {
			if n := x.Code - 128; x.OOMKilled && n == 9 {
				v.Cause = "oom"
			}
		}
		v.noCommand(x, r)
	}
	if x.OOMKilled && v.Cause != "oom" {
		because("the kernel killed a process in it for memory%s", memory(r))
	}
	if max := r.Config.Restart.Max; r.Status == Exited && max > 0 && r.RestartCount >= max && x.Code != 0 {
		because("its restart policy (on-failure:%d) has given up after %s", max, times(r.RestartCount))
	}
}

// noCommand explains codes 126 and 127.
func (v *Verdict) noCommand(x *monitor.Exit, r *record) {
	text := strings.ToLower(x.Error)
	advise := func(format string, a ...any) { v.Advice = append(v.Advice, fmt.Sprintf(format, a...)) }
	switch {
	case strings.Contains(text, "exec format error"):
		advise("the program is for another processor: see --platform, and onggi inspect -f '{{.Architecture}}' %s", r.Config.Image)
	case x.Code == errdefs.CommandNotFound.ExitCode():
		advise("look what there is: onggi run --rm -it --entrypoint sh %s (a script also fails so when the interpreter of its first line is missing, a program when its loader is)", r.Config.Image)
	case x.Code == errdefs.NotExecutable.ExitCode():
		advise("the file is there but may not be executed: chmod +x it in the image; is it a directory, or on a mount with noexec?")
	}
}

// health tells of the health check.
func (v *Verdict) health(r *record, name string) {
	h := r.Health
	if h == nil {
		return
	}
	text := "its health: " + h.Status
	if h.FailingStreak > 0 {
		text += fmt.Sprintf(", the check failed %s in a row", times(int(h.FailingStreak)))
	}
	if n := len(h.Log); n > 0 && h.Log[n-1].ExitCode != 0 {
		text += fmt.Sprintf("; the last one with code %d", h.Log[n-1].ExitCode)
		if out := strings.TrimSpace(h.Log[n-1].Output); out != "" {
			text += ": " + clip(out, 300)
		}
	}
	v.Because = append(v.Because, text)
	if h.Status == monitor.Unhealthy && r.Status == Running {
		v.Advice = append(v.Advice, "run the check by hand: onggi exec "+name+" sh -c "+strconv.Quote(strings.Join(r.Healthcheck.Test[1:], " ")))
	}
}

// readLog knows some famous last words.
func (v *Verdict) readLog() {
	if v.Cause == "running" || v.Cause == "finished" {
		return
	}
	for i := len(v.Log) - 1; i >= 0; i-- {
		l := v.Log[i]
		for _, k := range []struct{ say, advice string }{
			{"error while loading shared libraries", "a library is missing in the image: install the package that has it, or link the program statically"},
			{"exec format error", "the program is for another processor, or a script without a #! line: see --platform"},
			{"Address already in use", "something in the same network namespace has the port: another process of it, or the host with --network host"},
			{"Permission denied", "look whose the file is and who asks: onggi run -u, :idmap of -v, SELinux's :z"},
			{"No space left on device", "the disk, the quota or a tmpfs is full: onggi system df"},
			{"Read-only file system", "the place cannot be written: is there --read-only, or a :ro mount? give it a --tmpfs or a volume"},
		} {
			if strings.Contains(strings.ToLower(l), strings.ToLower(k.say)) {
				v.Because = append(v.Because, "it said: "+clip(strings.TrimSpace(l), 300))
				v.Advice = append(v.Advice, k.advice)
				return
			}
		}
	}
}

// sent is a signal with words.
type sent struct{ monitor.Sent }

// sender is the last signal that came through the monitor and can have ended the container.
func sender(x *monitor.Exit) *sent {
	for i := len(x.Signals) - 1; i >= 0; i-- {
		s := x.Signals[i]
		if x.Signal == s.Signal || x.Signal == 0 && ending(s.Signal) && (x.Code == 128+s.Signal || x.FinishedAt.Sub(s.At) < 30*time.Second) {
			return &sent{s}
		}
	}
	return nil
}

func ending(sig int) bool {
	switch syscall.Signal(sig) {
	case unix.SIGTERM, unix.SIGINT, unix.SIGQUIT, unix.SIGHUP, unix.SIGKILL:
		return true
	}
	return false
}

// first is the first of a number that was sent.
func first(x *monitor.Exit, sig int) *sent {
	for _, s := range x.Signals {
		if s.Signal == sig {
			return &sent{s}
		}
	}
	return nil
}

func (s *sent) by() string {
	who := s.By
	if who == "" {
		who = "a client of the monitor (user " + strconv.Itoa(int(s.UID)) + ")"
	}
	return fmt.Sprintf("by %s, process %d, at %s", who, s.Pid, s.At.Local().Format("2006-01-02 15:04:05"))
}

// memory tells the limit and the peak, as far as they are known.
func memory(r *record) string {
	var parts []string
	if l := r.Config.Memory; l > 0 {
		parts = append(parts, "limit "+size(l))
	}
	if p := r.Exit.MemoryPeak; p > 0 {
		parts = append(parts, "the most it had "+size(p))
	}
	if len(parts) == 0 {
		return ""
	}
	return " (" + strings.Join(parts, ", ") + ")"
}

// size is bytes as --memory takes them.
func size(n int64) string {
	for _, u := range []struct {
		n int64
		s string
	}{{1 << 30, "g"}, {1 << 20, "m"}, {1 << 10, "k"}} {
		if n >= 10*u.n || n >= u.n && n%u.n == 0 {
			return strconv.FormatInt(n/u.n, 10) + u.s
		}
	}
	return strconv.FormatInt(n, 10) + "b"
}

func span(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < 10*time.Second:
		return d.Round(time.Millisecond).String()
	case d < 48*time.Hour:
		return d.Round(time.Second).String()
	}
	return fmt.Sprintf("%d days", int(d/(24*time.Hour)))
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return itoa(n) + " times"
}

func ordinal(n int) string {
	switch {
	case n%100 >= 11 && n%100 <= 13:
		return itoa(n) + "th"
	case n%10 == 1:
		return itoa(n) + "st"
	case n%10 == 2:
		return itoa(n) + "nd"
	case n%10 == 3:
		return itoa(n) + "rd"
	}
	return itoa(n) + "th"
}

func clip(s string, n int) string {
	if len(s) > n {
		return s[:n] + "..."
	}
	return s
}

func signalName(n int) string {
	if s := unix.SignalName(syscall.Signal(n)); s != "" {
		return s
	}
	return "signal " + itoa(n)
}

// signalMeaning is signal(7), for people.
func signalMeaning(n int) string {
	switch syscall.Signal(n) {
	case unix.SIGSEGV:
		return "it used memory that is not its own: a bug in the program, or a library of another version"
	case unix.SIGILL:
		return "the processor does not know an instruction: built for a newer one, or a bug"
	case unix.SIGABRT:
		return "it gave up by itself (abort): its last words say why"
	case unix.SIGBUS:
		return "it used memory that is not there: a file that was cut, or no space left in /dev/shm (--shm-size)"
	case unix.SIGFPE:
		return "it divided by zero"
	case unix.SIGPIPE:
		return "it wrote to a pipe that nobody reads"
	case unix.SIGXCPU:
		return "it used more processor time than its limit (--ulimit cpu)"
	case unix.SIGXFSZ:
		return "it wrote a file larger than its limit (--ulimit fsize)"
	case unix.SIGTRAP:
		return "it stopped at a breakpoint without a debugger, or gave up by itself"
	}
	return "see signal(7)"
}

// meaning is what exit codes say by convention: sysexits.h, and the shell's.
func meaning(code int) string {
	switch {
	case code == 0:
		return "success"
	case code == 1:
		return "an error of the program's own; its last words say which"
	case code == 2:
		return "by convention, wrong arguments"
	case code == 126:
		return "a shell's word for: the command was found but could not be executed"
	case code == 127:
		return "a shell's word for: a command was not found"
	case code > 128 && code <= 128+64:
		return fmt.Sprintf("a shell's word for: what it ran was ended by %s", signalName(code-128))
	case code == 255:
		return "-1: an error of the program's own, or of ssh"
	}
	return "a code of the program's own"
}

// lastFailure keeps why a start has failed, for inspect and Why.
func (r *record) lastFailure(err error) {
	r.Exit = &monitor.Exit{Code: errdefs.KindOf(err).ExitCode(), FinishedAt: now(), Error: err.Error()}
}
