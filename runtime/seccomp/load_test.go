package seccomp

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	runspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// TestKernelObeys loads a filter into a process (this test again) and asks the kernel.
func TestKernelObeys(t *testing.T) {
	if os.Getenv("ONGGI_SECCOMP_TEST") != "" {
		underFilter()
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestKernelObeys$")
	cmd.Env = append(os.Environ(), "ONGGI_SECCOMP_TEST=1")
	out, err := cmd.Output()
	if strings.HasPrefix(string(out), "skip") {
		t.Skip(string(out))
	}
	want := "mkdir: 77\npersonality 0: ok\npersonality 0x20000: 1\ndup2 1000 1001: EBADF\ndup2 6 6: 13\nnewer: 38\nsync: 1\n"
	if runtime.GOARCH != "amd64" {
		want = strings.Replace(want, "dup2 1000 1001: EBADF\ndup2 6 6: 13\n", "", 1)
	}
	if err != nil || string(out) != want {
		t.Errorf("got %q, %v, want %q", out, err, want)
	}
}

func underFilter() {
	say := func(what string, e unix.Errno) {
		switch e {
		case 0:
			fmt.Println(what + ": ok")
		case unix.EBADF:
			fmt.Println(what + ": EBADF")
		default:
			fmt.Printf("%s: %d\n", what, int(e))
		}
	}
	errno := func(n uint) *uint { return &n }
	var rest []string // what the Go runtime needs: everything but the calls asked about
	for i := range numbers {
		switch n := numbers[i].name; n {
		case "mkdirat", "personality", "dup2", "sync":
		default:
			rest = append(rest, n)
		}
	}
	one := func(i uint, v uint64) runspec.LinuxSeccompArg {
		return runspec.LinuxSeccompArg{Index: i, Op: runspec.OpEqualTo, Value: v}
	}
	p, err := Compile(&runspec.LinuxSeccomp{
		DefaultAction: runspec.ActErrno, Flags: []runspec.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_TSYNC"},
		Syscalls: []runspec.LinuxSyscall{
			{Action: runspec.ActAllow, Names: rest},
			{Action: runspec.ActErrno, ErrnoRet: errno(77), Names: []string{"mkdirat"}},
			{Action: runspec.ActAllow, Names: []string{"personality"}, Args: []runspec.LinuxSeccompArg{one(0, 0)}},
			{Action: runspec.ActErrno, ErrnoRet: errno(13), Names: []string{"dup2"}, Args: []runspec.LinuxSeccompArg{one(0, 6), one(1, 6)}},
			{Action: runspec.ActAllow, Names: []string{"dup2"}, Args: []runspec.LinuxSeccompArg{{Index: 0, Op: runspec.OpLessThan, Value: 1 << 33}}},
		},
	})
	if err != nil {
		fmt.Println(err)
		os.Exit(2)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		fmt.Println("skip: no_new_privs:", err)
		os.Exit(0)
	}
	prog := unix.SockFprog{Len: uint16(len(p.Filter)), Filter: (*unix.SockFilter)(unsafe.Pointer(&p.Filter[0]))}
	if _, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(p.Flags), uintptr(unsafe.Pointer(&prog))); e != 0 {
		if errors.Is(e, unix.ENOSYS) {
			fmt.Println("skip: this kernel has no seccomp")
			os.Exit(0)
		}
		fmt.Println("load:", e)
		os.Exit(2)
	}
	dir := []byte("/nonexistent\x00")
	at := int(unix.AT_FDCWD)
	_, _, e := unix.Syscall(unix.SYS_MKDIRAT, uintptr(at), uintptr(unsafe.Pointer(&dir[0])), 0)
	say("mkdir", e)
	_, _, e = unix.Syscall(unix.SYS_PERSONALITY, 0, 0, 0)
	say("personality 0", e)
	_, _, e = unix.Syscall(unix.SYS_PERSONALITY, 0x20000, 0, 0)
	say("personality 0x20000", e)
	if n, ok := find("dup2"); ok && runtime.GOARCH == "amd64" {
		_, _, e = unix.Syscall(uintptr(n[0]), 1000, 1001, 0)
		say("dup2 1000 1001", e)
		_, _, e = unix.Syscall(uintptr(n[0]), 6, 6, 0)
		say("dup2 6 6", e)
	}
	_, _, e = unix.Syscall(700, 0, 0, 0)
	say("newer", e)
	_, _, e = unix.Syscall(unix.SYS_SYNC, 0, 0, 0)
	say("sync", e)
	os.Exit(0)
}
