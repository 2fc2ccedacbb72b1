package main

//lint:file-ignore SA1019 kernel memory is deprecated and in use

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
)

// unsaid lists the members of v that were left empty: what features.md knows and the runtime does not say.
func unsaid(at string, v reflect.Value) (out []string) {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return []string{at}
		}
		return unsaid(at, v.Elem())
	case reflect.Struct:
		for i := range v.NumField() {
			name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
			out = append(out, unsaid(at+"."+name, v.Field(i))...)
		}
	case reflect.Slice, reflect.Map:
		if v.Len() == 0 {
			return []string{at}
		}
	}
	return out
}

// TestFeatures: every member of features.md is said, none that it does not know, and what is listed is true.
func TestFeatures(t *testing.T) {
	s := newSide(t, "ours", binary(t))
	text := s.must("features")
	var got features.Features
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&got); err != nil {
		t.Fatal(err)
	}
	if missing := unsaid("", reflect.ValueOf(got)); len(missing) > 0 {
		t.Errorf("not said: %v", missing)
	}
	if got.OCIVersionMin != "1.0.0" || got.OCIVersionMax != specs.Version {
		t.Errorf("versions %s to %s", got.OCIVersionMin, got.OCIVersionMax)
	}
	l := got.Linux
	for what, c := range map[string]struct {
		pattern string // of the schema (defs-linux.json)
		list    []string
	}{
		"hooks":        {`^[a-z]+[A-Za-z]*$`, got.Hooks},
		"mountOptions": {`^[a-z]+$`, got.MountOptions},
		"capabilities": {`^CAP_[A-Z_]+$`, l.Capabilities},
		"namespaces":   {`^(cgroup|ipc|mount|network|pid|time|user|uts)$`, l.Namespaces},
		"actions":      {`^SCMP_ACT_(KILL|KILL_PROCESS|KILL_THREAD|TRAP|ERRNO|TRACE|ALLOW|LOG|NOTIFY)$`, l.Seccomp.Actions},
		"operators":    {`^SCMP_CMP_(NE|LT|LE|EQ|GE|GT|MASKED_EQ)$`, l.Seccomp.Operators},
		"archs":        {`^SCMP_ARCH_[A-Z0-9_]+$`, l.Seccomp.Archs},
		"flags":        {`^SECCOMP_FILTER_FLAG_(TSYNC|LOG|SPEC_ALLOW|WAIT_KILLABLE_RECV)$`, l.Seccomp.KnownFlags},
		"modes":        {`^MPOL_[A-Z_]+$`, l.MemoryPolicy.Modes},
		"policy flags": {`^MPOL_F_[A-Z_]+$`, l.MemoryPolicy.Flags},
	} {
		re := regexp.MustCompile(c.pattern)
		for i, v := range c.list {
			if !re.MatchString(v) || slices.Contains(c.list[:i], v) {
				t.Errorf("%s: %q is not one of the specification's, or there twice", what, v)
			}
		}
	}
	for _, f := range l.Seccomp.SupportedFlags {
		if !slices.Contains(l.Seccomp.KnownFlags, f) {
			t.Errorf("the flag %s is supported and not known", f)
		}
	}
	// A flag is supported exactly when a container with it starts.
	for _, f := range l.Seccomp.KnownFlags {
		s.config("f", func(c *specs.Spec) {
			c.Process.Args = []string{"true"}
			c.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlag(f)}}
		})
		a := s.do("run", "f")
		if ok := slices.Contains(l.Seccomp.SupportedFlags, f); ok != (a.code == 0) && !strings.HasSuffix(f, "WAIT_KILLABLE_RECV") { // that needs a listener
			t.Errorf("%s: supported %v, run: %v", f, ok, a)
		}
	}
	if b, err := os.ReadFile("/proc/sys/kernel/cap_last_cap"); err != nil || strings.TrimSpace(string(b)) != strconv.Itoa(len(l.Capabilities)-1) {
		t.Logf("this kernel's last capability is %s; we know %d: %v", b, len(l.Capabilities), err)
	}
}

// TestFeaturesHaveRuncs: what runc says it can, we can; engines decide by these lists.
func TestFeaturesHaveRuncs(t *testing.T) {
	ours, runc := sides(t)
	if runc == nil {
		t.Skip("runc is not installed")
	}
	var got, want features.Features
	for _, c := range [...]struct {
		s *side
		f *features.Features
	}{{ours, &got}, {runc, &want}} {
		if err := json.Unmarshal([]byte(c.s.must("features")), c.f); err != nil {
			t.Fatal(err)
		}
	}
	without := func(what string, got, want []string, except ...string) {
		for _, w := range want {
			if !slices.Contains(got, w) && !slices.Contains(except, w) {
				t.Errorf("%s: runc has %s, we do not", what, w)
			}
		}
	}
	without("hooks", got.Hooks, want.Hooks)
	without("mountOptions", got.MountOptions, want.MountOptions)
	without("namespaces", got.Linux.Namespaces, want.Linux.Namespaces)
	without("capabilities", got.Linux.Capabilities, want.Linux.Capabilities)
	without("actions", got.Linux.Seccomp.Actions, want.Linux.Seccomp.Actions)
	without("operators", got.Linux.Seccomp.Operators, want.Linux.Seccomp.Operators)
	without("archs", got.Linux.Seccomp.Archs, want.Linux.Seccomp.Archs, "SCMP_ARCH_MIPS", "SCMP_ARCH_MIPS64", "SCMP_ARCH_MIPS64N32",
		"SCMP_ARCH_MIPSEL", "SCMP_ARCH_MIPSEL64", "SCMP_ARCH_MIPSEL64N32", "SCMP_ARCH_PPC", "SCMP_ARCH_PPC64", "SCMP_ARCH_S390")
	for k, v := range want.Annotations {
		if strings.HasSuffix(k, ".checkpoint.enabled") && got.Annotations[k] != v {
			t.Errorf("annotation %s is %q, runc's %q", k, got.Annotations[k], v)
		}
	}
}

// runcFlags are the flags of every command of runc 1.1 to 1.3 (its man pages), "" the global ones.
var runcFlags = map[string]string{
	"": "root log log-format debug systemd-cgroup criu rootless help h version v",
	"checkpoint": "image-path work-path parent-path leave-running tcp-established ext-unix-sk shell-job lazy-pages status-fd page-server " +
		"file-locks pre-dump manage-cgroups-mode empty-ns auto-dedup",
	"create": "bundle b console-socket pidfd-socket pid-file no-pivot no-new-keyring preserve-fds",
	"delete": "force f",
	"events": "interval stats",
	"exec": "console-socket pidfd-socket cwd env e tty t user u additional-gids g process p detach d pid-file process-label apparmor no-new-privs " +
		"cap c no-subreaper preserve-fds cgroup ignore-paused",
	"features": "",
	"kill":     "all a",
	"list":     "format f quiet q",
	"pause":    "",
	"ps":       "format f",
	"restore": "console-socket image-path work-path tcp-established ext-unix-sk shell-job file-locks manage-cgroups-mode bundle b detach d pid-file " +
		"no-subreaper no-pivot empty-ns auto-dedup lazy-pages lsm-profile lsm-mount-context",
	"resume": "",
	"run":    "bundle b console-socket pidfd-socket detach d keep pid-file no-subreaper no-pivot no-new-keyring preserve-fds",
	"spec":   "bundle b rootless",
	"start":  "",
	"state":  "",
	"update": "resources r blkio-weight cpu-period cpu-quota cpu-burst cpu-share cpu-rt-period cpu-rt-runtime cpuset-cpus cpuset-mems " +
		"cpu-idle kernel-memory kernel-memory-tcp memory memory-reservation memory-swap pids-limit l3-cache-schema mem-bw-schema",
}

// TestEveryFlagOfRunc: each is known here, takes a value where runc's does, and is in the help unless runc hides it; and
// what the runc that is installed has is in the table.
func TestEveryFlagOfRunc(t *testing.T) {
	s := newSide(t, "ours", binary(t))
	hidden := map[string]bool{"exec no-subreaper": true, "restore keep": true, "update kernel-memory": true, "update kernel-memory-tcp": true}
	for command, list := range runcFlags {
		args := []string{command, "--help"}
		if command == "" {
			args = args[1:]
		}
		help := s.must(args...)
		for _, f := range strings.Fields(list) {
			dashed := "--" + f
			if len(f) == 1 {
				dashed = "-" + f
			}
			if !hidden[command+" "+f] && f != "help" && f != "h" && !regexp.MustCompile(`(?m)^  (-.*, )?`+dashed+`( |,|$)`).MatchString(help) {
				t.Errorf("%s --help does not tell of %s", command, dashed)
			}
			// Given alone it is an error of its value or of the missing id; never that there is no such flag.
			a := s.do(append(slices.DeleteFunc([]string{command}, func(s string) bool { return s == "" }), dashed)...)
			if strings.Contains(a.err, "there is no such flag") {
				t.Errorf("%s %s: %v", command, dashed, a)
			}
		}
		if a := s.do(append(slices.DeleteFunc([]string{command}, func(s string) bool { return s == "" }), "--no-such-flag")...); a.code == 0 || !strings.Contains(a.err, "there is no such flag") {
			t.Errorf("%s --no-such-flag: %v", command, a)
		}
	}
	for _, c := range commands {
		if _, ok := runcFlags[c.name]; !ok && c.name != "plan" {
			t.Errorf("%s is not in the table", c.name)
		}
	}
	runc, err := exec.LookPath("runc")
	if err != nil {
		t.Log("runc is not installed: the table is not compared with it")
		return
	}
	option := regexp.MustCompile(`(?m)^   +(--?[a-z0-9-]+)(?: value)?(?:, (--?[a-z0-9-]+))?(?: value)?  `)
	for command, list := range runcFlags {
		out, _ := exec.Command(runc, slices.DeleteFunc([]string{command, "--help"}, func(s string) bool { return s == "" })...).Output()
		for _, m := range option.FindAllStringSubmatch(string(out), -1) {
			for _, f := range m[1:] {
				if f = strings.TrimLeft(f, "-"); f != "" && !slices.Contains(strings.Fields(list), f) {
					t.Errorf("%s has a flag %q of %q that is not in the table", runc, f, command)
				}
			}
		}
	}
}

// TestKernelMemoryIsWarnedOf: what no kernel limits any more is left out and said, in config.json and in updates.
func TestKernelMemoryIsWarnedOf(t *testing.T) {
	s := newSide(t, "ours", binary(t))
	kernel, limit := int64(1<<26), int64(1<<27)
	s.config("k", func(c *specs.Spec) {
		c.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit, Kernel: &kernel}
	})
	warned := func(a answer, field string) bool {
		for _, r := range a.log {
			if m, _ := r["msg"].(string); r["level"] == "warning" && strings.Contains(m, field) {
				return true
			}
		}
		return false
	}
	if a := s.do("create", "k"); a.code != 0 || !warned(a, "linux.resources.memory.kernel ") {
		t.Errorf("create: %v", a)
	}
	if got := s.file("k", "memory.limit_in_bytes", "memory.max"); got != "134217728" {
		t.Errorf("the limit beside it: %q", got)
	}
	if a := s.doWith(`{"memory":{"kernel":33554432}}`, "update", "-r", "-", "k"); a.code != 0 || !warned(a, "linux.resources.memory.kernel ") {
		t.Errorf("update: %v", a)
	}
	if a := s.do("update", "--kernel-memory", "64m", "k"); a.code != 0 || !warned(a, "--kernel-memory") {
		t.Errorf("update --kernel-memory: %v", a)
	}
	a := s.doWith(`{"memory":{"kernelTCP":33554432}}`, "update", "-r", "-", "k")
	if _, err := os.Stat("/sys/fs/cgroup/memory/memory.kmem.tcp.limit_in_bytes"); a.code != 0 || warned(a, "linux.resources.memory.kernelTCP ") != (err != nil) {
		t.Errorf("kernelTCP: %v", a)
	}
	// Without a log the user is told.
	c := s.command("update", "--kernel-memory", "64m", "k")
	if out, err := c.CombinedOutput(); err != nil || !strings.Contains(string(out), "onggi-runtime: warning: --kernel-memory") {
		t.Errorf("without --log: %s, %v", out, err)
	}
}

// TestSchemaExamples: the configurations that runtime-spec keeps beside its schema. The good ones for Linux compile, once
// they have what is optional there and needed to start; the bad ones are refused by the field's name.
func TestSchemaExamples(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/opencontainers/runtime-spec").Output()
	dir := filepath.Join(strings.TrimSpace(string(out)), "schema/test/config")
	if _, e := os.Stat(dir); err != nil || e != nil {
		t.Skip("the specification's module is not in the module cache")
	}
	s := newSide(t, "ours", binary(t))
	for file, want := range map[string]string{ // what the refusal names; "" for none
		"good/linux-netdevice.json":     "",
		"good/linux-rdma.json":          "",
		"good/minimal-for-start.json":   "",
		"good/minimal.json":             "",
		"good/spec-example.json":        "",
		"good/freebsd-example.json":     "freebsd",
		"good/freebsd-minimal.json":     "freebsd",
		"good/zos-example.json":         "zos",
		"good/zos-minimal.json":         "zos",
		"bad/freebsd-vnet-disable.json": "freebsd",
		"bad/invalid-json.json":         "config.json",
		"bad/linux-hugepage.json":       "hugepageLimits",
		"bad/linux-netdevice.json":      "linux.netDevices",
		"bad/linux-rdma.json":           "linux.resources.rdma",
	} {
		b, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Error(err)
			continue
		}
		var c map[string]any
		if json.Unmarshal(b, &c) == nil {
			c["ociVersion"] = "1.0.0" // an example is of 0.5.0
			c["root"] = map[string]any{"path": "rootfs"}
			if c["process"] == nil {
				c["process"] = map[string]any{"cwd": "/", "args": []string{"true"}, "user": map[string]any{"uid": 0, "gid": 0}}
			}
			p := c["process"].(map[string]any)
			delete(p, "apparmorProfile") // hosts without these modules refuse them
			delete(p, "selinuxLabel")
			l, _ := c["linux"].(map[string]any)
			delete(l, "mountLabel")
			if l == nil {
				l = map[string]any{}
			}
			if l["namespaces"] == nil {
				l["namespaces"] = []map[string]any{{"type": "mount"}, {"type": "network"}}
			}
			c["linux"] = l
			if b, err = json.Marshal(c); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(s.bundle, "config.json"), b, 0o644); err != nil {
			t.Fatal(err)
		}
		command := []string{"plan"}
		if strings.HasPrefix(file, "bad/") { // limits are looked at when they are set
			command = []string{"create", "c"}
		}
		a := s.do(command...)
		t.Logf("%s: %s", file, strings.TrimSpace(a.err))
		if want == "" && a.code != 0 || want != "" && (a.code == 0 || !strings.Contains(a.err, want)) {
			t.Errorf("%s: code %d, want an error that names %q: %s", file, a.code, want, a.err)
		}
	}
}
