package spec

import (
	"encoding/json"
	"math"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/moby/profiles/seccomp"
	"github.com/onggi/onggi/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const testID = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func held(except ...string) []string {
	return slices.DeleteFunc(slices.Clone(AllCaps), func(c string) bool { return slices.Contains(except, c) })
}

func input(change func(*Input)) Input {
	in := Input{
		ID:     testID,
		Image:  &ocispec.Image{Config: ocispec.ImageConfig{Cmd: []string{"sh"}}},
		Config: &Config{Network: "bridge"},
		Host: Host{
			Capabilities: held(), Rlimits: map[string][2]uint64{"RLIMIT_NOFILE": {1024, 4096}}, CanRaise: true, KernelVersion: [2]int{6, 18},
			CPUs: 2, Hostname: "hosty", SwapLimit: true, Arch: "amd64",
		},
		RootPath: "rootfs", CgroupsPath: "/onggi/" + testID, NetNS: "/proc/self/fd/4",
	}
	if change != nil {
		change(&in)
	}
	return in
}

func generate(t *testing.T, change func(*Input)) (*runspec.Spec, []string) {
	t.Helper()
	s, w, err := Generate(input(change))
	if err != nil {
		t.Fatal(err)
	}
	return s, w
}

func TestDefaultsAreDockers(t *testing.T) {
	s, warnings := generate(t, nil)
	if len(warnings) != 0 {
		t.Errorf("warnings %q, want none", warnings)
	}
	var mounts []string
	for _, m := range s.Mounts {
		mounts = append(mounts, m.Destination+" "+m.Type+" "+strings.Join(m.Options, ","))
	}
	for i, want := range []string{
		"/proc proc nosuid,noexec,nodev",
		"/dev tmpfs nosuid,strictatime,mode=755,size=65536k",
		"/dev/pts devpts nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5",
		"/sys sysfs nosuid,noexec,nodev,ro",
		"/sys/fs/cgroup cgroup ro,nosuid,noexec,nodev",
		"/dev/mqueue mqueue nosuid,noexec,nodev",
		"/dev/shm tmpfs nosuid,noexec,nodev,mode=1777,size=67108864",
	} {
		if i >= len(mounts) || mounts[i] != want {
			t.Errorf("mount %d: got %q, want %q", i, mounts, want)
			break
		}
	}
	for name, c := range map[string]struct{ got, want any }{
		"hostname": {s.Hostname, testID[:12]},
		"args":     {s.Process.Args, []string{"sh"}},
		"cwd":      {s.Process.Cwd, "/"},
		"env":      {s.Process.Env, []string{"PATH=" + defaultPath, "HOSTNAME=" + testID[:12], "HOME=/"}},
		"caps":     {len(s.Process.Capabilities.Bounding), 14},
		"ambient":  {len(s.Process.Capabilities.Ambient) + len(s.Process.Capabilities.Inheritable), 0},
		"masked":   {len(s.Linux.MaskedPaths), 12},
		"readonly": {s.Linux.ReadonlyPaths, readonly},
		"devices":  {s.Linux.Resources.Devices, []runspec.LinuxDeviceCgroup{{Access: "rwm"}}},
		"memory":   {s.Linux.Resources.Memory, (*runspec.LinuxMemory)(nil)},
		"sysctl": {s.Linux.Sysctl, map[string]string{
			"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647",
		}},
		"cgroup": {s.Linux.CgroupsPath, "/onggi/" + testID},
		"nnp":    {s.Process.NoNewPrivileges, false},
	} {
		if !reflect.DeepEqual(c.got, c.want) {
			t.Errorf("%s: got %v, want %v", name, c.got, c.want)
		}
	}
	if s.Linux.Seccomp == nil || s.Linux.Seccomp.DefaultAction != runspec.ActErrno {
		t.Errorf("seccomp: got %+v, want docker's default profile", s.Linux.Seccomp)
	}
}

func TestNamespaces(t *testing.T) {
	for _, c := range []struct {
		network, netns string
		v2             bool
		want           string
	}{
		{"bridge", "/proc/self/fd/4", false, "mount uts pid ipc network:/proc/self/fd/4"},
		{"bridge", "/proc/self/fd/4", true, "mount uts pid ipc network:/proc/self/fd/4 cgroup"},
		{"none", "", false, "mount uts pid ipc network"},
		{"host", "", false, "mount uts pid ipc"},
	} {
		s, _ := generate(t, func(in *Input) { in.Config.Network, in.NetNS, in.Host.CgroupV2 = c.network, c.netns, c.v2 })
		var got []string
		for _, n := range s.Linux.Namespaces {
			if n.Path != "" {
				n.Type += runspec.LinuxNamespaceType(":" + n.Path)
			}
			got = append(got, string(n.Type))
		}
		if g := strings.Join(got, " "); g != c.want {
			t.Errorf("network %s, v2 %v: got %s, want %s", c.network, c.v2, g, c.want)
		}
	}
	s, _ := generate(t, func(in *Input) { in.Config.Network, in.NetNS = "host", "" })
	if s.Hostname != "hosty" || s.Linux.Sysctl != nil {
		t.Errorf("host network: hostname %q, sysctl %v; want the host's name and no sysctl", s.Hostname, s.Linux.Sysctl)
	}
}

func TestCommand(t *testing.T) {
	image := &ocispec.ImageConfig{Entrypoint: []string{"/e"}, Cmd: []string{"a", "b"}}
	for _, c := range []struct {
		name  string
		c     Config
		image *ocispec.ImageConfig
		want  string
	}{
		{"image's", Config{}, image, "/e a b"},
		{"arguments replaced", Config{Args: []string{"x"}}, image, "/e x"},
		{"entrypoint replaced drops the image's arguments", Config{EntrypointSet: true, Entrypoint: []string{"/u"}}, image, "/u"},
		{"both replaced", Config{EntrypointSet: true, Entrypoint: []string{"/u"}, Args: []string{"x"}}, image, "/u x"},
		{"entrypoint cleared", Config{EntrypointSet: true, Entrypoint: []string{""}, Args: []string{"x"}}, image, "x"},
		{"entrypoint cleared, nothing left", Config{EntrypointSet: true}, image, "!no command specified"},
		{"only cmd", Config{}, &ocispec.ImageConfig{Cmd: []string{"sh"}}, "sh"},
		{"nothing", Config{}, nil, "!no command specified"},
		{"NUL", Config{Args: []string{"a\x00b"}}, image, "!NUL"},
	} {
		got, err := Command(&c.c, c.image)
		check(t, c.name, strings.Join(got, " "), err, c.want)
	}
}

// check compares a result with want; a want that begins with ! is part of an error of kind InvalidArgument.
func check(t *testing.T, name, got string, err error, want string) {
	t.Helper()
	if part, isErr := strings.CutPrefix(want, "!"); isErr {
		if !errdefs.Is(err, errdefs.InvalidArgument) || !strings.Contains(err.Error(), part) {
			t.Errorf("%s: got %q, error %v; want an invalid argument with %q", name, got, err, part)
		} else if errdefs.FixOf(err) == "" {
			t.Errorf("%s: the error has no fix: %v", name, err)
		}
	} else if err != nil || got != want {
		t.Errorf("%s: got %q, error %v; want %q", name, got, err, want)
	}
}

func TestEnvironment(t *testing.T) {
	for _, c := range []struct {
		name        string
		image, user []string
		tty         bool
		home        string
		want        string
	}{
		{"image replaces PATH in its place", []string{"PATH=/p", "A=1"}, nil, false, "/root", "PATH=/p HOSTNAME=h A=1 HOME=/root"},
		{"user replaces image", []string{"A=1"}, []string{"A=2", "B=3"}, false, "/", "PATH=" + defaultPath + " HOSTNAME=h A=2 B=3 HOME=/"},
		{"a name alone removes", []string{"A=1", "B=2"}, []string{"A"}, false, "/", "PATH=" + defaultPath + " HOSTNAME=h B=2 HOME=/"},
		{"terminal", nil, nil, true, "", "PATH=" + defaultPath + " HOSTNAME=h TERM=xterm HOME=/"},
		{"HOME set", nil, []string{"HOME=/x"}, false, "/root", "PATH=" + defaultPath + " HOSTNAME=h HOME=/x"},
		{"empty value", nil, []string{"A="}, false, "", "PATH=" + defaultPath + " HOSTNAME=h A= HOME=/"},
		{"image's nameless entry", []string{"=x", ""}, nil, false, "", "PATH=" + defaultPath + " HOSTNAME=h HOME=/"},
		{"user's nameless entry", nil, []string{"=x"}, false, "", "!no name"},
	} {
		got, err := environ("h", c.tty, c.home, c.image, c.user)
		check(t, c.name, strings.Join(got, " "), err, c.want)
	}
}

func TestUser(t *testing.T) {
	passwd := "root:x:0:0:root:/root:/bin/sh\n# comment:x:1:1\nbroken:x::\nweb:x:33:34:w:/var/www:/bin/sh\n007:x:99:99::/bond:\n" +
		"huge:x:4294967295:1::/:\nnohome:x:70:71\nlast:x:1000:1000::/home/last:/bin/sh"
	group := "root:x:0:\nwheel:x:10:root,last\nwww:x:34:\nlogs:x:4:web,last\nbad:x:x:web\nlast:x:1000:\n"
	for _, c := range []struct {
		user string
		add  []string
		want string
	}{
		{"", nil, "0 0 [0 10] /root"},
		{"root", nil, "0 0 [0 10] /root"},
		{"web", nil, "33 34 [34 4] /var/www"},
		{"33", nil, "33 34 [34 4] /var/www"},
		{"7", nil, "7 0 [0] /"},
		{"007", nil, "7 0 [0] /"}, // digits are an id, never the name 007 (CVE-2026-46680)
		{"web:logs", nil, "33 4 [4] /var/www"},
		{"web:555", nil, "33 555 [555] /var/www"},
		{"1000:1000", nil, "1000 1000 [1000] /home/last"},
		{"last", nil, "1000 1000 [1000 10 4] /home/last"},
		{"nohome", nil, "70 71 [71] /"},
		{"12345", []string{"logs", "77", "77"}, "12345 0 [0 4 77] /"},
		{"4294967294", nil, "4294967294 0 [0] /"},
		{"4294967295", nil, "!range"}, // would be "no change" to setuid(2)
		{"4294967296", nil, "!range"}, // would wrap to root (CVE-2024-40635)
		{"99999999999999999999", nil, "!range"},
		{"0:4294967296", nil, "!range"},
		{"nobody", nil, "!unable to find user nobody"},
		{"broken", nil, "!unable to find user broken"},
		{"huge", nil, "!unable to find user huge"},
		{"web:nogroup", nil, "!unable to find group nogroup"},
		{"web:bad", nil, "!unable to find group bad"},
		{"web:", nil, "!user[:group]"},
		{"a:b:c", nil, "!user[:group]"},
		{"-1", nil, "!unable to find user -1"},
		{"web", []string{"nope"}, "!unable to find group nope"},
	} {
		uid, gid, more, home, err := User(c.user, c.add, []byte(passwd), []byte(group))
		b, _ := json.Marshal(more)
		got := strings.Join([]string{limitText(uint64(uid)), limitText(uint64(gid)), strings.ReplaceAll(string(b), ",", " "), home}, " ")
		check(t, "user "+c.user, got, err, c.want)
	}
	if uid, gid, more, home, err := User("", nil, nil, nil); err != nil || uid != 0 || gid != 0 || len(more) != 1 || home != "/" {
		t.Errorf("no files: got %d %d %v %q %v, want root without groups", uid, gid, more, home, err)
	}
}

func FuzzUser(f *testing.F) {
	f.Add("web:logs", "web:x:33:34:w:/var/www:/bin/sh\n", "logs:x:4:web\n")
	f.Add("0", ":::::\n\n", "x:x")
	f.Add("", "root:x:0:0", "root:x:0:root,root")
	f.Fuzz(func(t *testing.T, user, passwd, group string) {
		uid, _, more, home, err := User(user, nil, []byte(passwd), []byte(group))
		if err != nil {
			return
		}
		if uid == math.MaxUint32 || slices.Contains(more, math.MaxUint32) || len(more) == 0 {
			t.Errorf("%q: uid %d, groups %v", user, uid, more)
		}
		if strings.ContainsAny(home, "\n:") {
			t.Errorf("home %q", home)
		}
	})
}

func TestCapabilities(t *testing.T) {
	fourteen := strings.Join(slices.Sorted(slices.Values(defaultCaps)), " ")
	for _, c := range []struct {
		name      string
		add, drop []string
		priv      bool
		held      []string
		want      string
		warnings  int
	}{
		{"default", nil, nil, false, held(), fourteen, 0},
		{"drop all", nil, []string{"ALL"}, false, held(), "", 0},
		{"drop all, add one", []string{"net_admin"}, []string{"all"}, false, held(), "CAP_NET_ADMIN", 0},
		{"add held", []string{"CAP_CHOWN"}, nil, false, held(), fourteen, 0},
		{"add all, drop one", []string{"ALL"}, []string{"SYS_ADMIN"}, false, held(), strings.Join(slices.Sorted(slices.Values(held("CAP_SYS_ADMIN"))), " "), 0},
		{"add not held", []string{"SYS_RESOURCE"}, nil, false, held("CAP_SYS_RESOURCE"), fourteen, 1},
		{"privileged clamps in silence", nil, nil, true, held("CAP_SYS_RESOURCE"), strings.Join(slices.Sorted(slices.Values(held("CAP_SYS_RESOURCE"))), " "), 0},
		{"default not held", nil, nil, false, []string{"CAP_CHOWN"}, "CAP_CHOWN", 0},
		{"unknown", []string{"SYS_MAGIC"}, nil, false, held(), "!unknown capability", 0},
		{"unknown drop", nil, []string{"foo"}, false, held(), "!--cap-drop foo", 0},
	} {
		got, warnings, err := capabilities(&Config{CapAdd: c.add, CapDrop: c.drop, Privileged: c.priv}, c.held)
		check(t, c.name, strings.Join(got, " "), err, c.want)
		if len(warnings) != c.warnings {
			t.Errorf("%s: warnings %q, want %d", c.name, warnings, c.warnings)
		}
	}
}

func TestMounts(t *testing.T) {
	one := func(m ...Mount) func(*Input) {
		return func(in *Input) {
			in.Config.Mounts = m
			in.Volumes = map[string]string{"data": "/vols/data"}
		}
	}
	for _, c := range []struct {
		name   string
		change func(*Input)
		want   string // the mounts behind the defaults
	}{
		{"bind", one(Mount{Type: "bind", Source: "/src", Target: "/dst/"}), "/dst=/src(rbind,rw,rprivate)"},
		{"bind ro slave", one(Mount{Type: "bind", Source: "/src", Target: "/dst", ReadOnly: true, Propagation: "rslave"}), "/dst=/src(rbind,ro,rro,rslave)"},
		{"ro on an old kernel", func(in *Input) {
			one(Mount{Type: "bind", Source: "/src", Target: "/dst", ReadOnly: true})(in)
			in.Host.KernelVersion = [2]int{5, 10}
		}, "/dst=/src(rbind,ro,rprivate)"},
		{"all read-only on an old kernel", func(in *Input) {
			one(Mount{Type: "bind", Source: "/src", Target: "/dst", ReadOnly: true, Recursive: "readonly"})(in)
			in.Host.KernelVersion = [2]int{5, 11}
		}, "!needs Linux 5.12"},
		{"ro, the rest as it is", one(Mount{Type: "bind", Source: "/src", Target: "/dst", ReadOnly: true, Recursive: "writable"}), "/dst=/src(rbind,ro,rprivate)"},
		{"ro, without the rest", one(Mount{Type: "bind", Source: "/src", Target: "/dst", ReadOnly: true, Recursive: "disabled"}), "/dst=/src(bind,ro,rprivate)"},
		{"writable and rw", one(Mount{Type: "bind", Source: "/src", Target: "/dst", Recursive: "writable"}), "!readonly itself"},
		{"readonly and slave", one(Mount{Type: "bind", Source: "/src", Target: "/dst", ReadOnly: true, Recursive: "readonly", Propagation: "rslave"}), "!bind-propagation=rprivate"},
		{"a volume from elsewhere", one(Mount{Type: "volume", Source: "data", Target: "/d", From: "/proc/7/fd/8"}), "/d=/proc/7/fd/8(rbind,rw,rprivate)"},
		{"volume", one(Mount{Type: "volume", Source: "data", Target: "/d", Options: []string{"nosuid"}}), "/d=/vols/data(rbind,rw,nosuid,rprivate)"},
		{"tmpfs", one(Mount{Type: "tmpfs", Target: "/t"}), "/t=tmpfs(noexec,nosuid,nodev,rw)"},
		{
			"tmpfs options", one(Mount{Type: "tmpfs", Target: "/t", TmpfsSize: 1 << 20, TmpfsMode: 0o1770, Options: []string{"exec", "uid=7"}}),
			"/t=tmpfs(exec,nosuid,nodev,rw,uid=7,size=1048576,mode=1770)",
		},
		{
			"order by depth", one(Mount{Type: "tmpfs", Target: "/a/b"}, Mount{Type: "bind", Source: "/s", Target: "/a"}),
			"/a=/s(rbind,rw,rprivate) /a/b=tmpfs(noexec,nosuid,nodev,rw)",
		},
		{"files", func(in *Input) { in.Files = map[string]string{"/etc/hosts": "/run/h"} }, "/etc/hosts=/run/h(rbind,rprivate,rw)"},
		{
			"files, read-only root", func(in *Input) { in.Files, in.Config.ReadOnly = map[string]string{"/etc/hosts": "/run/h"}, true },
			"/etc/hosts=/run/h(rbind,rprivate,ro)",
		},
		{"a user's hosts file", func(in *Input) {
			in.Files = map[string]string{"/etc/hosts": "/run/h"}
			in.Config.Mounts = []Mount{{Type: "bind", Source: "/mine", Target: "/etc/hosts"}}
		}, "/etc/hosts=/mine(rbind,rw,rprivate)"},
		{"init", func(in *Input) { in.InitPath = "/opt/init" }, "/sbin/onggi-init=/opt/init(bind,ro,nosuid,nodev)"},
		{"relative target", one(Mount{Type: "tmpfs", Target: "x"}), "!absolute"},
		{"root", one(Mount{Type: "bind", Source: "/s", Target: "/a/.."}), "!destination can't be '/'"},
		{"twice", one(Mount{Type: "tmpfs", Target: "/x"}, Mount{Type: "tmpfs", Target: "/x/"}), "!duplicate mount point"},
		{"relative source", one(Mount{Type: "bind", Source: "s", Target: "/x"}), "!host path must be absolute"},
		{"unknown type", one(Mount{Type: "nfs", Target: "/x"}), "!no mount type"},
		{"unknown option", one(Mount{Type: "bind", Source: "/s", Target: "/x", Options: []string{"z"}}), "!no mount option"},
		{"unknown propagation", one(Mount{Type: "bind", Source: "/s", Target: "/x", Propagation: "wide"}), "!no propagation"},
		{"volume shared", one(Mount{Type: "volume", Source: "data", Target: "/x", Propagation: "shared"}), "!always private"},
		{"bind nocopy", one(Mount{Type: "bind", Source: "/s", Target: "/x", NoCopy: true}), "!nocopy"},
		{"newline", one(Mount{Type: "bind", Source: "/s\n", Target: "/x"}), "!newline"},
		{"negative shm", func(in *Input) { in.Config.ShmSize = -1 }, "!--shm-size"},
	} {
		s, _, err := Generate(input(c.change))
		var got []string
		if err == nil {
			for _, m := range s.Mounts[7:] {
				got = append(got, m.Destination+"="+m.Source+"("+strings.Join(m.Options, ",")+")")
			}
		}
		check(t, c.name, strings.Join(got, " "), err, c.want)
	}
	s, _ := generate(t, one(Mount{Type: "bind", Source: "/dev/shm", Target: "/dev/shm"}))
	if len(s.Mounts) != 7 {
		t.Errorf("a user's /dev/shm: %d mounts, want the default one replaced", len(s.Mounts))
	}
	s, _ = generate(t, one(Mount{Type: "bind", Source: "/dev", Target: "/dev", Propagation: "rshared"}))
	if len(s.Mounts) != 4 || s.Linux.RootfsPropagation != "shared" {
		t.Errorf("a user's /dev: %d mounts, propagation %q; want none of the defaults below it, and a shared root", len(s.Mounts), s.Linux.RootfsPropagation)
	}
	got, err := Effective(&Config{Mounts: []Mount{{Type: "tmpfs", Target: "/data"}}},
		&ocispec.ImageConfig{Volumes: map[string]struct{}{"/data": {}, "/b/": {}, "a": {}, "/": {}}})
	want := []Mount{{Type: "tmpfs", Target: "/data"}, {Type: "volume", Target: "/a"}, {Type: "volume", Target: "/b"}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("image volumes: got %v, %v; want %v", got, err, want)
	}
}

func TestResources(t *testing.T) {
	for _, c := range []struct {
		name     string
		change   func(*Input)
		want     string // JSON of memory, cpu and pids, without nulls
		warnings int
	}{
		{"memory brings as much swap", func(in *Input) { in.Config.Memory = 64 << 20 }, `{"memory":{"limit":67108864,"swap":134217728}}`, 0},
		{"no swap limit in this kernel", func(in *Input) { in.Config.Memory, in.Host.SwapLimit = 64<<20, false }, `{"memory":{"limit":67108864}}`, 0},
		{
			"no swap limit, but asked", func(in *Input) { in.Config.Memory, in.Config.MemorySwap, in.Host.SwapLimit = 64<<20, 64<<20, false },
			`{"memory":{"limit":67108864}}`, 1,
		},
		{"swap unlimited", func(in *Input) { in.Config.Memory, in.Config.MemorySwap = 64<<20, -1 }, `{"memory":{"limit":67108864,"swap":-1}}`, 0},
		{"too little", func(in *Input) { in.Config.Memory = 4 << 20 }, "!minimum memory limit allowed is 6MB", 0},
		{"negative", func(in *Input) { in.Config.Memory = -1 }, "!--memory", 0},
		{"swap alone", func(in *Input) { in.Config.MemorySwap = 64 << 20 }, "!always set the memory limit", 0},
		{"swap below memory", func(in *Input) { in.Config.Memory, in.Config.MemorySwap = 64<<20, 32<<20 }, "!larger than the memory limit", 0},
		{"half a cpu", func(in *Input) { in.Config.NanoCPUs = 5e8 }, `{"cpu":{"quota":50000,"period":100000}}`, 0},
		{"smallest cpu", func(in *Input) { in.Config.NanoCPUs = 1e7 }, `{"cpu":{"quota":1000,"period":100000}}`, 0},
		{"too small", func(in *Input) { in.Config.NanoCPUs = 1e6 }, "!range of CPUs is from 0.01 to 2.00", 0},
		{"too many", func(in *Input) { in.Config.NanoCPUs = 3e9 }, "!there are only 2 CPUs", 0},
		{"shares and set", func(in *Input) { in.Config.CPUShares, in.Config.CpusetCpus = 512, "0-1,3" }, `{"cpu":{"shares":512,"cpus":"0-1,3"}}`, 0},
		{"shares", func(in *Input) { in.Config.CPUShares = 1 }, "!2 to 262144", 0},
		{"set", func(in *Input) { in.Config.CpusetCpus = "0-" }, "!--cpuset-cpus", 0},
		{"set backwards", func(in *Input) { in.Config.CpusetCpus = "3-1" }, "!--cpuset-cpus", 0},
		{"pids", func(in *Input) { in.Config.PidsLimit = 100 }, `{"pids":{"limit":100}}`, 0},
		{"pids unlimited", func(in *Input) { in.Config.PidsLimit = -1 }, `{}`, 0},
		{"pids wrong", func(in *Input) { in.Config.PidsLimit = -2 }, "!--pids-limit", 0},
	} {
		s, warnings, err := Generate(input(c.change))
		var got string
		if err == nil {
			s.Linux.Resources.Devices = nil
			b, _ := json.Marshal(s.Linux.Resources)
			got = string(b)
		}
		check(t, c.name, got, err, c.want)
		if len(warnings) != c.warnings {
			t.Errorf("%s: warnings %q, want %d", c.name, warnings, c.warnings)
		}
	}
}

func TestRlimitsAndOom(t *testing.T) {
	for _, c := range []struct {
		name     string
		u        []Ulimit
		raise    bool
		want     string
		warnings int
	}{
		{"below", []Ulimit{{"nofile", 100, 200}}, false, `[{"type":"RLIMIT_NOFILE","hard":200,"soft":100}]`, 0},
		{"above, clamped", []Ulimit{{"nofile", 8192, 16384}}, false, `[{"type":"RLIMIT_NOFILE","hard":4096,"soft":4096}]`, 1},
		{"above, allowed", []Ulimit{{"nofile", 8192, -1}}, true, `[{"type":"RLIMIT_NOFILE","hard":18446744073709551615,"soft":8192}]`, 0},
		{"soft above hard", []Ulimit{{"nofile", 2, 1}}, true, "!soft limit must be less", 0},
		{"unlimited soft", []Ulimit{{"core", -1, 5}}, true, "!soft limit must be less", 0},
		{"unknown", []Ulimit{{"files", 1, 1}}, true, "!no limit of this name", 0},
		{"negative", []Ulimit{{"core", -2, 1}}, true, "!--ulimit", 0},
		{"twice", []Ulimit{{"core", 1, 1}, {"core", 1, 1}}, true, "!twice", 0},
	} {
		s, warnings, err := Generate(input(func(in *Input) { in.Config.Ulimits, in.Host.CanRaise = c.u, c.raise }))
		var got string
		if err == nil {
			b, _ := json.Marshal(s.Process.Rlimits)
			got = string(b)
		}
		check(t, c.name, got, err, c.want)
		if len(warnings) != c.warnings {
			t.Errorf("%s: warnings %q, want %d", c.name, warnings, c.warnings)
		}
	}
	for _, c := range []struct {
		ask, own int
		raise    bool
		want     string
	}{{-500, 0, false, "0"}, {-500, 0, true, "-500"}, {300, 0, false, "300"}, {1001, 0, true, "!--oom-score-adj"}} {
		s, _, err := Generate(input(func(in *Input) {
			in.Config.OomScoreAdj, in.Host.OomScoreAdj, in.Host.CanRaise = &c.ask, c.own, c.raise
		}))
		var got string
		if err == nil {
			b, _ := json.Marshal(s.Process.OOMScoreAdj)
			got = string(b)
		}
		check(t, "oom score", got, err, c.want)
	}
}

func TestSysctls(t *testing.T) {
	for _, c := range []struct{ network, key, want string }{
		{"bridge", "net.core.somaxconn", "1"},
		{"bridge", "kernel.shmmax", "1"},
		{"bridge", "fs.mqueue.msg_max", "1"},
		{"host", "kernel.msgmax", "1"},
		{"host", "net.core.somaxconn", "!host's network namespace"},
		{"bridge", "kernel.hostname", "!flag of its own"},
		{"bridge", "kernel.core_pattern", "!it would change the host"},
		{"bridge", "vm.swappiness", "!it would change the host"},
		{"bridge", "net..x", "!dotted name"},
		{"bridge", "net.../../kernel", "!dotted name"},
		{"bridge", "net/ipv4/ip_forward", "!dotted name"},
	} {
		s, _, err := Generate(input(func(in *Input) { in.Config.Network, in.Config.Sysctls = c.network, map[string]string{c.key: "1"} }))
		var got string
		if err == nil {
			got = s.Linux.Sysctl[c.key]
		}
		check(t, c.network+" "+c.key, got, err, c.want)
	}
}

func TestDevicesAndPrivileged(t *testing.T) {
	devs := map[string]runspec.LinuxDevice{
		"/dev/fuse":      {Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229},
		"/dev/snd/seq":   {Path: "/dev/snd/seq", Type: "c", Major: 116, Minor: 1},
		"/dev/snd/timer": {Path: "/dev/snd/timer", Type: "c", Major: 116, Minor: 33},
	}
	for _, c := range []struct {
		d    Device
		want string
	}{
		{Device{Host: "/dev/fuse"}, "/dev/fuse c 10:229 rwm"},
		{Device{Host: "/dev/fuse", Container: "/dev/f", Access: "r"}, "/dev/f c 10:229 r"},
		{Device{Host: "/dev/snd", Container: "/dev/sound"}, "/dev/sound/seq c 116:1 rwm /dev/sound/timer c 116:33 rwm"},
		{Device{Host: "/dev/nope"}, "!no device"},
		{Device{Host: "/dev/fuse", Access: "x"}, "!r, w and m"},
		{Device{Host: "/dev/fuse", Container: "f"}, "!absolute"},
	} {
		s, _, err := Generate(input(func(in *Input) { in.Config.Devices, in.Host.Devices = []Device{c.d}, devs }))
		var got []string
		if err == nil {
			for i, d := range s.Linux.Devices {
				r := s.Linux.Resources.Devices[i+1]
				got = append(got, d.Path, r.Type, limitText(uint64(*r.Major))+":"+limitText(uint64(*r.Minor)), r.Access)
			}
		}
		check(t, "device", strings.Join(got, " "), err, c.want)
	}

	s, _ := generate(t, func(in *Input) { in.Config.Privileged, in.Host.Devices = true, devs })
	if len(s.Linux.Devices) != 3 || len(s.Linux.MaskedPaths)+len(s.Linux.ReadonlyPaths) != 0 || s.Linux.Seccomp != nil ||
		!s.Linux.Resources.Devices[0].Allow || !slices.Contains(s.Mounts[3].Options, "rw") || len(s.Process.Capabilities.Bounding) != len(AllCaps) {
		t.Errorf("privileged: %+v", s.Linux)
	}
}

func TestSeccompIsMobys(t *testing.T) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	for _, caps := range [][]string{defaultCaps, AllCaps, nil} {
		// The reference reads this host's kernel and architecture.
		want, err := seccomp.GetDefaultProfile(&runspec.Spec{Process: &runspec.Process{Capabilities: &runspec.LinuxCapabilities{Bounding: caps}}})
		if err != nil {
			t.Fatal(err)
		}
		got, err := resolveProfile(seccomp.DefaultProfile(), runtime.GOARCH, hostKernel(unix.ByteSliceToString(u.Release[:])), caps)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("with %d capabilities: %v; the result differs from the reference", len(caps), err)
		}
	}
	old, err := resolveProfile(seccomp.DefaultProfile(), "amd64", [2]int{4, 4}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range old.Syscalls {
		if slices.Contains(c.Names, "ptrace") {
			t.Error("ptrace is allowed on a 4.4 kernel")
		}
	}
}

func hostKernel(release string) (v [2]int) {
	f := strings.FieldsFunc(release, func(r rune) bool { return r < '0' || r > '9' })
	for i := range v {
		for _, d := range f[i] {
			v[i] = v[i]*10 + int(d-'0')
		}
	}
	return v
}

func TestSeccompProfiles(t *testing.T) {
	for _, c := range []struct{ name, profile, want string }{
		{"unconfined", "unconfined", "null"},
		{"empty", "{}", "null"},
		{
			"small", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"chmod","action":"SCMP_ACT_ERRNO"}]}`,
			`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chmod"],"action":"SCMP_ACT_ERRNO"}]}`,
		},
		{
			"arch map", `{"defaultAction":"SCMP_ACT_ALLOW","archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]}]}`,
			`{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86"]}`,
		},
		{"not JSON", "{", "!decoding"},
		{"no default", `{"syscalls":[{"name":"chmod","action":"SCMP_ACT_ERRNO"}]}`, "!defaultAction"},
		{"two names", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"a","names":["b"]}]}`, "!both"},
		{"two archs", `{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86"],"archMap":[{"architecture":"SCMP_ARCH_X86_64"}]}`, "!both"},
		{"too big", strings.Repeat(" ", maxProfile+1), "!larger"},
	} {
		s, _, err := Generate(input(func(in *Input) { in.Config.Seccomp = c.profile }))
		var got string
		if err == nil {
			b, _ := json.Marshal(s.Linux.Seccomp)
			got = string(b)
		}
		check(t, c.name, got, err, c.want)
	}
}

func FuzzProfile(f *testing.F) {
	f.Add(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[null,{"name":"chmod","excludes":{"caps":["x"]},"includes":{"minKernel":"3.1"}}]}`)
	f.Fuzz(func(t *testing.T, p string) {
		_, _, _ = Generate(input(func(in *Input) { in.Config.Seccomp = p }))
	})
}

func TestBadFlags(t *testing.T) {
	for _, c := range []struct {
		want   string
		change func(*Input)
	}{
		{"!--hostname", func(in *Input) { in.Config.Hostname = "a\n127.0.0.1 evil" }},
		{"!--hostname", func(in *Input) { in.Config.Hostname = strings.Repeat("a", 65) }},
		{"!--hostname", func(in *Input) { in.Config.Hostname = "-a" }},
		{"!--workdir", func(in *Input) { in.Config.Workdir = "tmp" }},
		{"!--env", func(in *Input) { in.Config.Env = []string{"=1"} }},
	} {
		_, _, err := Generate(input(c.change))
		check(t, "bad flag", "", err, c.want)
	}
}

func TestProcess(t *testing.T) {
	s, _ := generate(t, func(in *Input) { in.Config.Env, in.Home = []string{"A=1"}, "/root" })
	p, err := Process(s, Exec{Args: []string{"id"}, Env: []string{"B=2"}, Workdir: "/tmp", UID: 5, GID: 6, AdditionalGids: []uint32{6}, Home: "/h"}, held())
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(p.Env, " "), "PATH="+defaultPath+" HOSTNAME="+testID[:12]+" A=1 HOME=/h B=2"; got != want {
		t.Errorf("env: got %s, want %s", got, want)
	}
	if p.Cwd != "/tmp" || p.User.UID != 5 || p.User.GID != 6 || len(p.Capabilities.Bounding) != 14 || p.Args[0] != "id" {
		t.Errorf("process: %+v", p)
	}
	if s.Process.Cwd != "/" || len(s.Process.Env) != 4 {
		t.Errorf("the container's own process was changed: %+v", s.Process)
	}
	if p, err = Process(s, Exec{Args: []string{"id"}, Privileged: true}, held("CAP_SYS_BOOT")); err != nil || len(p.Capabilities.Bounding) != len(AllCaps)-1 {
		t.Errorf("privileged: %+v, %v", p, err)
	}
	_, err = Process(s, Exec{}, nil)
	check(t, "no command", "", err, "!no command")
}

func TestParseSignal(t *testing.T) {
	for _, c := range []struct{ s, want string }{
		{"TERM", "15"},
		{"sigkill", "9"},
		{"9", "9"},
		{"SIGRTMIN+3", "37"},
		{"RTMIN", "34"},
		{"RTMAX-1", "63"},
		{"64", "64"},
		{"0", "!invalid signal"},
		{"65", "!invalid signal"},
		{"", "!invalid signal"},
		{"FOO", "!invalid signal"},
		{"RTMIN+99", "!invalid signal"},
		{"-9", "!invalid signal"},
	} {
		n, err := ParseSignal("--signal", c.s)
		check(t, c.s, limitText(uint64(n)), err, c.want)
	}
}

func BenchmarkGenerate(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		s, _, err := Generate(input(nil))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := json.Marshal(s); err != nil {
			b.Fatal(err)
		}
	}
}
