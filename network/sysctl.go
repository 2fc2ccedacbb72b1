package network

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Network sysctls belong to the network namespace of the thread that opens their file, so these functions act on the
// namespace in which they are called.

func sysctlPath(name string) string { return "/proc/sys/" + name }

// sysctl returns a value, or "" when the kernel does not have it.
func sysctl(name string) string {
	b, err := readSmall(sysctlPath(name), 4096)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// setSysctl writes a value unless it is set already, so that a read-only /proc/sys, as nested engines have it, is no
// obstacle where somebody has prepared it. The kernel not having it is no error.
func setSysctl(name, value string) error {
	if sysctl(name) == value {
		return nil
	}
	fd, err := unix.Open(sysctlPath(name), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		_, err = unix.Write(fd, []byte(value))
		_ = unix.Close(fd)
	}
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return fmt.Errorf("cannot set %s to %s: %w", strings.ReplaceAll(name, "/", "."), value, err)
}

// enableForwarding lets the host pass packets between the bridge and its other interfaces. It returns warnings.
func enableForwarding(v6 bool) (warnings []string) {
	if err := setSysctl("net/ipv4/ip_forward", "1"); err != nil {
		warnings = append(warnings, err.Error()+": containers reach this host and each other, and nothing else; "+
			"set it outside: sysctl -w net.ipv4.ip_forward=1")
	}
	const all = "net/ipv6/conf/all/forwarding"
	if !v6 || sysctl(all) == "1" {
		return warnings
	}
	// A router does not listen to routers: with forwarding on, accept_ra=1 stops to mean yes, and a host that got its
	// default route from an advertisement would lose it when that runs out. 2 means yes, although forwarding.
	entries, _ := os.ReadDir(sysctlPath("net/ipv6/conf"))
	for _, e := range entries {
		if name := "net/ipv6/conf/" + e.Name() + "/accept_ra"; e.Name() != "all" && sysctl(name) == "1" {
			if err := setSysctl(name, "2"); err != nil {
				return append(warnings, err.Error())
			}
		}
	}
	if err := setSysctl(all, "1"); err != nil {
		warnings = append(warnings, err.Error()+": containers reach nothing beyond this host by IPv6")
	}
	return warnings
}

// ipv6Known reports whether the kernel has IPv6; ipv6Enabled whether this namespace uses it.
func ipv6Known() bool   { return sysctl("net/ipv6/conf/all/disable_ipv6") != "" }
func ipv6Enabled() bool { return sysctl("net/ipv6/conf/all/disable_ipv6") == "0" }

// readSmall reads a whole file of at most limit bytes. It makes four system calls where os.ReadFile makes seven; the
// way of every container start leads through here.
func readSmall(path string, limit int) ([]byte, error) { return readFile(path, limit, unix.O_NOFOLLOW) }

// readBounded is readSmall for files of the host, which may be links.
func readBounded(path string, limit int) ([]byte, error) { return readFile(path, limit, 0) }

func readFile(path string, limit, flags int) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|flags, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	b := make([]byte, 0, 512)
	for {
		if len(b) > limit {
			return nil, &os.PathError{Op: "read", Path: path, Err: unix.EFBIG}
		}
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
		var n int
		err := ignoringEINTR(func() (err error) {
			n, err = unix.Read(fd, b[len(b):cap(b)])
			return err
		})
		if err != nil {
			return nil, &os.PathError{Op: "read", Path: path, Err: err}
		}
		if n == 0 {
			return b, nil
		}
		b = b[:len(b)+n]
	}
}
