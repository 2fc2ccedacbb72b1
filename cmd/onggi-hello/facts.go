package main

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// facts are what the program sees from inside. An empty value is one that could not be read.
type facts struct {
	kernel   string        // "Linux 6.1.0"
	uptime   time.Duration // of the kernel
	age      time.Duration // since the kernel made this process; as exact as a clock tick, 10 ms
	pid      int
	command1 string // the command line of process 1
	procs    int
	hostname string

	namespaces []namespace

	uid, gid   int
	groups     []int
	uidMap     string
	caps       []string
	allCaps    int // how many this kernel knows
	seccomp    int // 0 none, 1 strict, 2 filter
	filters    int
	noNewPrivs bool

	cgroup string // "2", "1", ""
	memory int64  // bytes; 0 no limit
	cpu    float64
	pids   int64

	rootType string // "overlay"
	lower    int    // read-only layers below
	readOnly bool
	wrote    string // the file that was written, "" when it could not be
	writeErr string

	addresses []string // "eth0 172.29.0.2/16"
	gateway   string
	dns       []string
}

type namespace struct {
	name  string
	inode string
	own   bool
}

// gather looks around below root, which is "/" but in tests.
func gather(root string, now time.Time) *facts {
	f := &facts{}
	read := func(name string) string {
		b, _ := os.ReadFile(filepath.Join(root, name))
		return strings.TrimSpace(string(b))
	}
	f.kernel = strings.TrimSpace(read("proc/sys/kernel/ostype") + " " + read("proc/sys/kernel/osrelease"))
	f.process(read)
	f.pid = os.Getpid()
	f.hostname, _ = os.Hostname()
	f.namespaces = namespaces(root, read("proc/self/uid_map"))
	f.status(read("proc/self/status"))
	f.uidMap = strings.Join(strings.Fields(read("proc/self/uid_map")), " ")
	f.limits(read)
	f.rootFS(read("proc/self/mountinfo"))
	f.write(filepath.Join(root, "tmp"), now)
	f.network(read)
	if all, err := filepath.Glob(filepath.Join(root, "proc/[0-9]*")); err == nil {
		f.procs = len(all)
	}
	return f
}

// process reads how old this process and the kernel are, and what process 1 is. Times in /proc/PID/stat count ticks of
// 1/100 s (proc(5); every architecture of Linux has USER_HZ 100 for programs).
func (f *facts) process(read func(string) string) {
	f.command1 = strings.TrimSpace(strings.ReplaceAll(read("proc/1/cmdline"), "\x00", " "))
	up, _, _ := strings.Cut(read("proc/uptime"), " ")
	seconds, err := strconv.ParseFloat(up, 64)
	if err != nil {
		return
	}
	f.uptime = time.Duration(seconds * float64(time.Second))
	// The name in parentheses may contain anything; the fields after it do not.
	_, rest, ok := cutLast(read("proc/self/stat"), ") ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 {
		return
	}
	ticks, err := strconv.ParseInt(fields[19], 10, 64) // field 22, starttime
	if err != nil {
		return
	}
	f.age = max(f.uptime-time.Duration(ticks)*10*time.Millisecond, 0)
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// namespaces reads the inode of each namespace. The first ones of a kernel have fixed numbers (linux/proc_ns.h); the
// user namespace is the host's too when it maps every id to itself.
func namespaces(root, uidMap string) []namespace {
	initial := map[string]string{
		"ipc": "4026531839", "uts": "4026531838", "user": "4026531837", "pid": "4026531836",
		"cgroup": "4026531835", "time": "4026531834", "net": "4026531833", "mnt": "4026531832",
	}
	var out []namespace
	for _, name := range []string{"mnt", "pid", "net", "ipc", "uts", "cgroup", "user", "time"} {
		link, err := os.Readlink(filepath.Join(root, "proc/self/ns", name))
		if err != nil {
			continue
		}
		_, inode, _ := strings.Cut(link, ":[")
		inode = strings.TrimSuffix(inode, "]")
		own := inode != initial[name]
		if name == "user" && strings.Join(strings.Fields(uidMap), " ") == "0 0 4294967295" {
			own = false
		}
		if name == "time" {
			own = false // the runtime makes none
		}
		out = append(out, namespace{name, inode, own})
	}
	return out
}

// status reads ids, capabilities and filters from /proc/self/status.
func (f *facts) status(s string) {
	for _, line := range strings.Split(s, "\n") {
		key, value, _ := strings.Cut(line, ":")
		fields := strings.Fields(value)
		if len(fields) == 0 {
			continue
		}
		number := func() int { n, _ := strconv.Atoi(fields[0]); return n }
		switch key {
		case "Uid":
			f.uid = number()
		case "Gid":
			f.gid = number()
		case "Groups":
			for _, g := range fields {
				if n, err := strconv.Atoi(g); err == nil {
					f.groups = append(f.groups, n)
				}
			}
		case "CapEff":
			mask, _ := strconv.ParseUint(fields[0], 16, 64)
			f.caps = capabilities(mask)
		case "Seccomp":
			f.seccomp = number()
		case "Seccomp_filters":
			f.filters = number()
		case "NoNewPrivs":
			f.noNewPrivs = number() == 1
		}
	}
	f.allCaps = len(capNames)
	if b, err := os.ReadFile("/proc/sys/kernel/cap_last_cap"); err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
			f.allCaps = n + 1
		}
	}
}

// capNames are the names of capabilities(7), by number.
var capNames = [...]string{
	"chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap",
	"linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner", "sys_module",
	"sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct", "sys_admin", "sys_boot", "sys_nice", "sys_resource", "sys_time",
	"sys_tty_config", "mknod", "lease", "audit_write", "audit_control", "setfcap", "mac_override", "mac_admin", "syslog",
	"wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf", "checkpoint_restore",
}

func capabilities(mask uint64) []string {
	var out []string
	for mask != 0 {
		n := bits.TrailingZeros64(mask)
		mask &^= 1 << n
		if n < len(capNames) {
			out = append(out, capNames[n])
		} else {
			out = append(out, strconv.Itoa(n))
		}
	}
	return out
}

// limits reads the control group's limits as the container sees them: its own group is the root of the mount.
func (f *facts) limits(read func(string) string) {
	number := func(s string) int64 {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n >= 1<<62 || n < 0 { // "max", and v1's no limit
			return 0
		}
		return n
	}
	const dir = "sys/fs/cgroup/"
	switch {
	case read(dir+"cgroup.controllers") != "":
		f.cgroup = "2"
		f.memory, f.pids = number(read(dir+"memory.max")), number(read(dir+"pids.max"))
		if quota, period, ok := strings.Cut(read(dir+"cpu.max"), " "); ok && number(quota) > 0 && number(period) > 0 {
			f.cpu = float64(number(quota)) / float64(number(period))
		}
	case read(dir+"memory/memory.limit_in_bytes") != "" || read(dir+"pids/pids.max") != "":
		f.cgroup = "1"
		if f.memory, f.pids = number(read(dir+"memory/memory.limit_in_bytes")), number(read(dir+"pids/pids.max")); f.memory >= 1<<60 {
			f.memory = 0
		}
		quota, period := number(read(dir+"cpu/cpu.cfs_quota_us")), number(read(dir+"cpu/cpu.cfs_period_us"))
		if quota > 0 && period > 0 {
			f.cpu = float64(quota) / float64(period)
		}
	}
}

// rootFS reads the type of the root file system, and from overlayfs's options how many layers it stacks:
// lowerdir=A:B:C, or lowerdir+=A once a layer with the newer mount calls.
func (f *facts) rootFS(mountinfo string) {
	for _, line := range strings.Split(mountinfo, "\n") {
		left, right, ok := strings.Cut(line, " - ")
		fields, more := strings.Fields(left), strings.Fields(right)
		if !ok || len(fields) < 6 || fields[4] != "/" || len(more) < 3 {
			continue
		}
		f.rootType, f.lower = more[0], 0
		f.readOnly = strings.HasPrefix(fields[5]+",", "ro,")
		for _, o := range strings.Split(strings.ReplaceAll(more[2], `\,`, ""), ",") {
			switch key, value, _ := strings.Cut(o, "="); key {
			case "lowerdir":
				f.lower += 1 + strings.Count(value, ":")
			case "lowerdir+":
				f.lower++
			}
		}
	}
}

// write leaves a file, to show where it goes.
func (f *facts) write(dir string, now time.Time) {
	name := filepath.Join(dir, "onggi-hello.txt")
	err := os.WriteFile(name, []byte("written at "+now.UTC().Format(time.RFC3339)+"\n"), 0o644)
	if err != nil {
		if e, ok := err.(*os.PathError); ok {
			err = e.Err
		}
		f.writeErr = err.Error()
		return
	}
	f.wrote = name
}

// network reads addresses by netlink, the default route and the name servers.
func (f *facts) network(read func(string) string) {
	f.addresses = addresses()
	for _, line := range strings.Split(read("proc/net/route"), "\n") {
		c := strings.Fields(line)
		if len(c) < 3 || c[1] != "00000000" {
			continue
		}
		if n, err := strconv.ParseUint(c[2], 16, 32); err == nil { // in the machine's byte order
			var b [4]byte
			binary.NativeEndian.PutUint32(b[:], uint32(n))
			f.gateway = netip.AddrFrom4(b).String()
		}
	}
	for _, line := range strings.Split(read("etc/resolv.conf"), "\n") {
		if c := strings.Fields(line); len(c) == 2 && c[0] == "nameserver" {
			f.dns = append(f.dns, c[1])
		}
	}
}

// addresses lists interface and address by RTM_GETADDR (rtnetlink(7)), link-local ones left out.
func addresses() []string {
	names := map[int]string{}
	if b, err := syscall.NetlinkRIB(syscall.RTM_GETLINK, syscall.AF_UNSPEC); err == nil {
		msgs, _ := syscall.ParseNetlinkMessage(b)
		for i := range msgs {
			if msgs[i].Header.Type != syscall.RTM_NEWLINK || len(msgs[i].Data) < syscall.SizeofIfInfomsg {
				continue
			}
			index := int(int32(binary.NativeEndian.Uint32(msgs[i].Data[4:])))
			attrs, _ := syscall.ParseNetlinkRouteAttr(&msgs[i])
			for _, a := range attrs {
				if a.Attr.Type == syscall.IFLA_IFNAME {
					names[index] = strings.TrimRight(string(a.Value), "\x00")
				}
			}
		}
	}
	var out []string
	b, err := syscall.NetlinkRIB(syscall.RTM_GETADDR, syscall.AF_UNSPEC)
	if err != nil {
		return nil
	}
	msgs, _ := syscall.ParseNetlinkMessage(b)
	for i := range msgs {
		if msgs[i].Header.Type != syscall.RTM_NEWADDR || len(msgs[i].Data) < syscall.SizeofIfAddrmsg {
			continue
		}
		prefix, index := int(msgs[i].Data[1]), int(binary.NativeEndian.Uint32(msgs[i].Data[4:]))
		attrs, _ := syscall.ParseNetlinkRouteAttr(&msgs[i])
		var ip netip.Addr
		for _, a := range attrs {
			if addr, ok := netip.AddrFromSlice(a.Value); ok && (a.Attr.Type == syscall.IFA_LOCAL || a.Attr.Type == syscall.IFA_ADDRESS && !ip.IsValid()) {
				ip = addr
			}
		}
		if ip.IsValid() && !ip.IsLinkLocalUnicast() {
			out = append(out, fmt.Sprintf("%s %s/%d", names[index], ip, prefix))
		}
	}
	return out
}
