package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// host makes a tree of files like a container's.
func host(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	files["tmp/x"] = ""
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if target, ok := strings.CutPrefix(text, "-> "); ok {
			if err := os.Symlink(target, path); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func container(t *testing.T, more map[string]string) string {
	files := map[string]string{
		"proc/sys/kernel/ostype": "Linux\n", "proc/sys/kernel/osrelease": "6.1.0\n", "proc/uptime": "7300.50 1.00\n",
		"proc/self/stat": "1 (he) llo) R 0 1 1 0 -1 4194304 100 0 0 0 0 0 0 0 20 0 1 0 730049 1000 100\n",
		"proc/1/cmdline": "/bin/hello\x00", "proc/self/uid_map": "         0          0 4294967295\n",
		"proc/self/status": "Name:\thello\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nGroups:\t1 2\nNoNewPrivs:\t0\nCapEff:\t00000000a80425fb\nSeccomp:\t2\nSeccomp_filters:\t1\n",
		"proc/self/ns/mnt": "-> mnt:[4026532200]", "proc/self/ns/pid": "-> pid:[4026532203]", "proc/self/ns/user": "-> user:[4026531837]",
		"proc/self/mountinfo": "21 1 0:20 / / rw,relatime - overlay overlay rw,lowerdir+=/a,lowerdir+=/b,lowerdir+=/c,upperdir=/u,workdir=/w\n22 21 0:21 / /proc rw - proc proc rw\n",
		"proc/net/route":      "Iface\tDestination\tGateway\neth0\t00000000\t01001DAC\t0003\n", "etc/resolv.conf": "nameserver 192.0.2.53\noptions ndots:0\n",
	}
	for k, v := range more {
		files[k] = v
	}
	return host(t, files)
}

func TestFacts(t *testing.T) {
	f := gather(container(t, map[string]string{
		"sys/fs/cgroup/cgroup.controllers": "cpu memory pids", "sys/fs/cgroup/memory.max": "268435456", "sys/fs/cgroup/pids.max": "max", "sys/fs/cgroup/cpu.max": "50000 100000",
	}), time.Now())
	if f.kernel != "Linux 6.1.0" || f.uptime != 7300500*time.Millisecond || f.age != 10*time.Millisecond || f.command1 != "/bin/hello" {
		t.Errorf("kernel %q up %v, age %v, process 1 %q", f.kernel, f.uptime, f.age, f.command1)
	}
	want := []string{"chown", "dac_override", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap", "net_bind_service", "net_raw", "sys_chroot", "mknod", "audit_write", "setfcap"}
	if !slices.Equal(f.caps, want) {
		t.Errorf("capabilities %q, want docker's default ones %q", f.caps, want)
	}
	if f.seccomp != 2 || f.filters != 1 || f.noNewPrivs || !slices.Equal(f.groups, []int{1, 2}) {
		t.Errorf("%+v", f)
	}
	if f.cgroup != "2" || f.memory != 256<<20 || f.cpu != 0.5 || f.pids != 0 {
		t.Errorf("limits: v%s, memory %d, cpu %v, pids %d", f.cgroup, f.memory, f.cpu, f.pids)
	}
	if f.rootType != "overlay" || f.lower != 3 || f.readOnly {
		t.Errorf("root %s, %d layers, read-only %v", f.rootType, f.lower, f.readOnly)
	}
	if own, shared := split(f.namespaces); own != "mnt:4026532200 pid:4026532203" || shared != "user" {
		t.Errorf("namespaces: own %q, shared %q", own, shared)
	}
	if f.wrote == "" || !slices.Equal(f.dns, []string{"192.0.2.53"}) {
		t.Errorf("wrote %q, dns %q", f.wrote, f.dns)
	}
}

func TestFactsOfCgroupV1(t *testing.T) {
	f := gather(container(t, map[string]string{
		"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712", "sys/fs/cgroup/pids/pids.max": "50",
		"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
	}), time.Now())
	if f.cgroup != "1" || f.memory != 0 || f.cpu != 0 || f.pids != 50 {
		t.Errorf("limits: v%s, memory %d, cpu %v, pids %d", f.cgroup, f.memory, f.cpu, f.pids)
	}
}

func TestOlderOverlayOptions(t *testing.T) {
	f := gather(container(t, map[string]string{
		"proc/self/mountinfo": "21 1 0:20 / / ro,relatime - overlay overlay rw,lowerdir=/a:/b,upperdir=/u,workdir=/w\n",
	}), time.Now())
	if f.lower != 2 || !f.readOnly {
		t.Errorf("%d layers, read-only %v; want 2, true", f.lower, f.readOnly)
	}
}

// TestReport: in both languages, every line fits 80 columns, nothing is left unformatted, and an empty host still gives
// a page.
func TestReport(t *testing.T) {
	full := gather(container(t, map[string]string{"sys/fs/cgroup/cgroup.controllers": "cpu", "sys/fs/cgroup/memory.max": "268435456"}), time.Now())
	for _, c := range []struct {
		name string
		text *texts
		f    *facts
		says []string
	}{
		{"english", english, full, []string{"firmware", "a boot loader", "Linux 6.1.0", "mnt:4026532200", "256 MiB", "3 shared read-only layers", "layer 3 of the image", "uid 0", "14 of", "filter mode", "immutable"}},
		{"korean", hangul, full, []string{"가상머신", "부트로더", "호스트 커널 공유", "네임스페이스", "256 MiB", "읽기 전용 레이어 3개", "14개", "템플릿", "인스턴스"}},
		{"nothing to read", english, gather(host(t, map[string]string{}), time.Now()), []string{"cannot be seen"}},
	} {
		r := renderer{text: c.text}
		page := r.report(c.f)
		for _, s := range c.says {
			if !strings.Contains(page, s) {
				t.Errorf("%s: no %q in\n%s", c.name, s, page)
			}
		}
		if strings.Contains(page, "%!") || strings.Contains(page, "\x1b") {
			t.Errorf("%s: a format went wrong, or colours without a terminal:\n%s", c.name, page)
		}
		for _, l := range strings.Split(page, "\n") {
			if width(l) > 80 && !strings.Contains(l, t.TempDir()[:5]) {
				t.Errorf("%s: a line of %d columns: %s", c.name, width(l), l)
			}
		}
	}
	r := renderer{text: english, colour: true}
	if !strings.Contains(r.report(full), "\x1b[1m") {
		t.Error("no colours on a terminal")
	}
}

func TestLanguage(t *testing.T) {
	for _, c := range []struct {
		env  map[string]string
		want bool
	}{
		{nil, false}, {map[string]string{"LANG": "ko_KR.UTF-8"}, true}, {map[string]string{"LANG": "ko_KR.UTF-8", "LC_ALL": "C"}, false}, {map[string]string{"LC_MESSAGES": "ko"}, true},
	} {
		if got := korean(func(n string) string { return c.env[n] }); got != c.want {
			t.Errorf("%v: %v, want %v", c.env, got, c.want)
		}
	}
}

func TestWidth(t *testing.T) {
	for s, want := range map[string]int{"": 0, "abc": 3, "한국": 4, "a한": 3, "──": 2} {
		if got := width(s); got != want {
			t.Errorf("width(%q) = %d, want %d", s, got, want)
		}
	}
}
