package main

import (
	"fmt"
	"strings"
	"time"
)

// columns is the width of the report: it fits any terminal.
const columns = 78

// renderer turns facts into text. It is pure.
type renderer struct {
	text   *texts
	colour bool
	b      strings.Builder
}

func (r *renderer) paint(code, s string) string {
	if !r.colour || s == "" {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

// report is the whole page.
func (r *renderer) report(f *facts) string {
	t := r.text
	r.title(t.title)
	r.paragraph(t.opening)

	r.section(t.vmTitle)
	r.versus(t.vmHead, t.hereHead, true)
	r.versus(t.firmware, t.nothing, false)
	r.versus(t.loader, t.nothing, false)
	r.versus(t.guestKernel, fmt.Sprintf(t.sharedKernel, f.kernel, span(f.uptime, t)), false)
	r.versus(t.initSystem, fmt.Sprintf(t.pidOne, f.command1, f.procs), false)
	r.versus(t.virtualDisk, r.layersShort(f), false)
	r.versus(t.slowStart, fmt.Sprintf(t.fastStart, (f.age+10*time.Millisecond).Milliseconds()), false)

	r.section(t.kernelTitle)
	own, shared := split(f.namespaces)
	r.row(t.namespaces, or(own, t.none))
	if shared != "" {
		r.row("", fmt.Sprintf(t.sharedWithHost, shared))
	}
	groups := ""
	if len(f.groups) > 0 {
		groups = strings.Trim(fmt.Sprint(f.groups), "[]")
	}
	r.row(t.ids, fmt.Sprintf(t.idsValue, f.uid, f.gid, or(groups, "-"), f.uidMap))
	r.row(t.capabilities, fmt.Sprintf(t.capsValue, len(f.caps), f.allCaps, or(strings.Join(f.caps, " "), t.none)))
	r.row("seccomp", r.seccomp(f))
	r.row("no_new_privs", yesNo(f.noNewPrivs, t))
	r.row(t.cgroup, r.limits(f))

	r.section(t.filesTitle)
	for i := f.lower; i > 0 && i <= 8; i-- {
		if i == f.lower {
			r.layer(t.writableLayer, true)
		}
		r.layer(fmt.Sprintf(t.imageLayer, i), false)
	}
	r.row(t.rootFS, or(f.rootType, "?")+r.readOnlyNote(f))
	if f.wrote != "" {
		r.row(t.written, fmt.Sprintf(t.writtenValue, f.wrote))
	} else {
		r.row(t.written, fmt.Sprintf(t.notWritten, f.writeErr))
	}

	r.section(t.netTitle)
	r.row(t.hostname, f.hostname)
	r.row(t.address, or(strings.Join(f.addresses, ", "), t.none))
	if f.gateway != "" {
		r.row(t.gateway, f.gateway)
	}
	if len(f.dns) > 0 {
		r.row(t.dns, strings.Join(f.dns, ", "))
	}

	r.section(t.conceptTitle)
	r.row(t.image, t.imageIs)
	r.row(t.container, t.containerIs)
	r.b.WriteByte('\n')
	return r.b.String()
}

func (r *renderer) title(s string) {
	line := strings.Repeat("─", columns-2)
	pad := columns - 4 - width(s)
	fmt.Fprintf(&r.b, "%s\n", r.paint("36", "╭"+line+"╮"))
	fmt.Fprintf(&r.b, "%s %s%s %s\n", r.paint("36", "│"), r.paint("1", s), strings.Repeat(" ", max(pad, 0)), r.paint("36", "│"))
	fmt.Fprintf(&r.b, "%s\n", r.paint("36", "╰"+line+"╯"))
}

func (r *renderer) paragraph(s string) {
	for _, l := range fold(s, columns-2) {
		fmt.Fprintf(&r.b, "  %s\n", l)
	}
}

func (r *renderer) section(s string) {
	rule := columns - 4 - width(s)
	fmt.Fprintf(&r.b, "\n%s %s %s\n", r.paint("36", "──"), r.paint("1;36", s), r.paint("36", strings.Repeat("─", max(rule, 2))))
}

// versus is a line of the comparison: the machine on the left, the container on the right.
func (r *renderer) versus(vm, here string, head bool) {
	const left = 27
	lines := fold(here, columns-left-4)
	for i, l := range lines {
		name := ""
		if i == 0 {
			name = vm
		}
		name += strings.Repeat(" ", max(left-width(name), 0))
		if head {
			fmt.Fprintf(&r.b, "  %s  %s\n", r.paint("1", name), r.paint("1", l))
			continue
		}
		fmt.Fprintf(&r.b, "  %s  %s\n", r.paint("2", name), l)
	}
}

// row is a name and its value, folded.
func (r *renderer) row(name, value string) {
	const left = 14
	for i, l := range fold(value, columns-left-4) {
		n := ""
		if i == 0 {
			n = name
		}
		pad := strings.Repeat(" ", max(left-width(n), 0))
		fmt.Fprintf(&r.b, "  %s%s  %s\n", r.paint("32", n), pad, l)
	}
}

// layer is one box of the stack.
func (r *renderer) layer(s string, writable bool) {
	const w = 44
	code := "2"
	if writable {
		code = "1;33"
	}
	fmt.Fprintf(&r.b, "  %s\n", r.paint(code, "["+" "+s+strings.Repeat(" ", max(w-2-width(s), 0))+" ]"))
}

func (r *renderer) layersShort(f *facts) string {
	if f.lower == 0 {
		return fmt.Sprintf(r.text.plainRoot, or(f.rootType, "?"))
	}
	return fmt.Sprintf(r.text.stackedRoot, f.lower)
}

func (r *renderer) readOnlyNote(f *facts) string {
	if f.readOnly {
		return r.text.mountedReadOnly
	}
	return ""
}

func (r *renderer) seccomp(f *facts) string {
	switch f.seccomp {
	case 0:
		return r.text.seccompOff
	case 1:
		return r.text.seccompStrict
	}
	return fmt.Sprintf(r.text.seccompFilter, max(f.filters, 1))
}

func (r *renderer) limits(f *facts) string {
	t := r.text
	if f.cgroup == "" {
		return t.noCgroup
	}
	memory, cpu, pids := t.unlimited, t.unlimited, t.unlimited
	if f.memory > 0 {
		memory = fmt.Sprintf("%.4g MiB", float64(f.memory)/(1<<20))
	}
	if f.cpu > 0 {
		cpu = fmt.Sprintf(t.processors, f.cpu)
	}
	if f.pids > 0 {
		pids = fmt.Sprintf("%d", f.pids)
	}
	return fmt.Sprintf(t.limitsValue, f.cgroup, memory, cpu, pids)
}

// split sorts namespaces into those of the container and those shared with the host.
func split(list []namespace) (own, shared string) {
	var o, s []string
	for _, n := range list {
		if n.own {
			o = append(o, n.name+":"+n.inode)
		} else {
			s = append(s, n.name)
		}
	}
	return strings.Join(o, " "), strings.Join(s, " ")
}

// span prints how long the kernel has been running.
func span(d time.Duration, t *texts) string {
	switch {
	case d < 2*time.Hour:
		return fmt.Sprintf(t.minutes, int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf(t.hours, int(d.Hours()))
	}
	return fmt.Sprintf(t.days, int(d.Hours()/24))
}

func or(s, otherwise string) string {
	if strings.TrimSpace(s) == "" {
		return otherwise
	}
	return s
}

func yesNo(b bool, t *texts) string {
	if b {
		return t.yes
	}
	return t.no
}

// width is how many columns of a terminal the text takes: East Asian wide characters take two (UAX #11).
func width(s string) int {
	n := 0
	for _, c := range s {
		n++
		switch {
		case c >= 0x1100 && c <= 0x115f, c >= 0x2e80 && c <= 0xa4cf, c >= 0xac00 && c <= 0xd7a3, c >= 0xf900 && c <= 0xfaff,
			c >= 0xfe30 && c <= 0xfe6f, c >= 0xff00 && c <= 0xff60, c >= 0xffe0 && c <= 0xffe6:
			n++
		}
	}
	return n
}

// fold breaks text at spaces into lines of at most n columns. A word that is longer stands alone.
func fold(s string, n int) []string {
	lines := []string{""}
	for _, w := range strings.Fields(s) {
		last := &lines[len(lines)-1]
		switch {
		case *last == "":
			*last = w
		case width(*last)+1+width(w) <= n:
			*last += " " + w
		default:
			lines = append(lines, w)
		}
	}
	return lines
}
