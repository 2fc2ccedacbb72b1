package cli

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/onggi/onggi/spec"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
)

func TestParseSize(t *testing.T) {
	good := map[string]int64{
		"1": 1, "1b": 1, "1B": 1, "512": 512, "4k": 4096, "4kb": 4096, "4KiB": 4096, "4 kb": 4096, "512m": 512 << 20, "512M": 512 << 20,
		"1.5g": 3 << 29, "0.5m": 1 << 19, "2t": 2 << 40, "1p": 1 << 50, "9223372036854775807": 1<<63 - 1, "0.001k": 1, "1.9999b": 1,
		"8191p": 8191 << 50, "00512": 512, "1.000000000000000000000000001g": 1 << 30,
	}
	for s, want := range good {
		if got, err := parseSize(s); err != nil || got != want {
			t.Errorf("parseSize(%q) = %d, %v; want %d", s, got, err, want)
		}
	}
	bad := map[string]string{
		"": "empty", "0": "greater than zero", "0.0g": "greater than zero", "0.1b": "greater than zero", "-1": "negative", "-512m": "negative",
		"m": "begins with a number", "12x": "not a unit", "1.2.3": "not a number", "1.": "not a number", ".5g": "not a number", "5 5": "not a unit",
		"9223372036854775808": "greater than", "18446744073709551616": "greater than", "8192p": "greater than", "99999999999999999999999m": "greater than",
		"512mm": "not a unit", "512ib": "not a unit", "1e3": "not a unit", "+5": "begins with a number", "0x10": "not a unit", "١": "begins with a number",
		"5  k": "not a unit", "nan": "begins with a number", "inf": "begins with a number",
	}
	for s, want := range bad {
		if got, err := parseSize(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("parseSize(%q) = %d, %v; want an error with %q", s, got, err, want)
		}
	}
}

func TestParseCPUs(t *testing.T) {
	good := map[string]int64{"1": 1e9, "0.5": 5e8, ".5": 5e8, "1.25": 125e7, "0.000000001": 1, "64": 64e9, "007": 7e9}
	for s, want := range good {
		if got, err := parseCPUs(s); err != nil || got != want {
			t.Errorf("parseCPUs(%q) = %d, %v; want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "0", "0.0", "-1", "1.", ".", "a", "1e3", "0.0000000001", "10000000", "1.2.3", "+1", "1,5", " 1"} {
		if got, err := parseCPUs(s); err == nil {
			t.Errorf("parseCPUs(%q) = %d, want an error", s, got)
		}
	}
}

func TestParseInt(t *testing.T) {
	for _, c := range []struct {
		s        string
		min, max int64
		want     int64
		ok       bool
	}{
		{"0", 0, 10, 0, true},
		{"-1", -1, 10, -1, true},
		{"10", 0, 10, 10, true},
		{"11", 0, 10, 0, false},
		{"-2", -1, 10, 0, false},
		{"", 0, 10, 0, false},
		{"-", -9, 10, 0, false},
		{"1.0", 0, 10, 0, false},
		{"0x1", 0, 10, 0, false},
		{"+1", 0, 10, 0, false},
		{"9223372036854775807", 0, 1<<63 - 1, 1<<63 - 1, true},
		{"9223372036854775808", 0, 1<<63 - 1, 0, false},
		{"99999999999999999999999999", 0, 1<<63 - 1, 0, false},
		{"-9223372036854775807", -1 << 63, 0, -1<<63 + 1, true},
	} {
		got, err := parseInt(c.s, c.min, c.max)
		if (err == nil) != c.ok || got != c.want {
			t.Errorf("parseInt(%q, %d, %d) = %d, %v; want %d, ok %v", c.s, c.min, c.max, got, err, c.want, c.ok)
		}
	}
}

func TestParseEnv(t *testing.T) {
	lookup := func(name string) (string, bool) { return "from here", name == "HERE" || name == "EMPTY" }
	for s, want := range map[string]string{"A=b": "A=b", "A=": "A=", "A=b=c": "A=b=c", "HERE": "HERE=from here", "GONE": "GONE", "A= b ": "A= b "} {
		if got, err := parseEnv(s, lookup); err != nil || got != want {
			t.Errorf("parseEnv(%q) = %q, %v; want %q", s, got, err, want)
		}
	}
	for _, s := range []string{"", "=", "=b", "A=\x00"} {
		if got, err := parseEnv(s, lookup); err == nil {
			t.Errorf("parseEnv(%q) = %q, want an error", s, got)
		}
	}
}

func TestParseEnvFile(t *testing.T) {
	lookup := func(name string) (string, bool) { return "from here", name == "HERE" }
	text := "\xef\xbb\xbfA=1\r\n# comment\n\n   # indented comment\n  B = no\n"
	if _, err := parseEnvFile([]byte(text), lookup); err == nil || !strings.Contains(err.Error(), "line 5") || !strings.Contains(err.Error(), "white space") {
		t.Errorf("a name with white space: %v, want an error that names line 5", err)
	}
	got, err := parseEnvFile([]byte("\xef\xbb\xbfA=1\r\n# c\n\n  B=two words  \nHERE\nGONE\nC=\"quoted\"\nD=a=b\nE=#x"), lookup)
	want := []string{"A=1", "B=two words  ", "HERE=from here", `C="quoted"`, "D=a=b", "E=#x"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("parseEnvFile = %q, %v; want %q", got, err, want)
	}
	for _, s := range []string{"=x", "A=\xff", "A B=1", "A=\x00"} {
		if got, err := parseEnvFile([]byte(s), lookup); err == nil {
			t.Errorf("parseEnvFile(%q) = %q, want an error", s, got)
		}
	}
}

func TestMergeEnv(t *testing.T) {
	got := mergeEnv([]string{"A=1", "B=2"}, []string{"C=3", "A=4", "D"}, []string{"D=5"})
	if want := []string{"A=4", "B=2", "C=3", "D=5"}; !slices.Equal(got, want) {
		t.Errorf("mergeEnv = %q, want %q", got, want)
	}
}

func TestParseVolume(t *testing.T) {
	for s, want := range map[string]spec.Mount{
		"/data":              {Type: "volume", Target: "/data"},
		"data:/var/lib":      {Type: "volume", Source: "data", Target: "/var/lib"},
		"/a:/b":              {Type: "bind", Source: "/a", Target: "/b", CreateSource: true},
		"/a/../c/:/b/":       {Type: "bind", Source: "/c", Target: "/b", CreateSource: true},
		"./x:/b:ro":          {Type: "bind", Source: "/cwd/x", Target: "/b", ReadOnly: true, CreateSource: true},
		".:/b":               {Type: "bind", Source: "/cwd", Target: "/b", CreateSource: true},
		"x/y:/b":             {Type: "bind", Source: "/cwd/x/y", Target: "/b", CreateSource: true},
		"/a:/b:rw,rslave":    {Type: "bind", Source: "/a", Target: "/b", Propagation: "rslave", CreateSource: true},
		"data:/b:nocopy,ro":  {Type: "volume", Source: "data", Target: "/b", NoCopy: true, ReadOnly: true},
		"d-1_x.y:/b":         {Type: "volume", Source: "d-1_x.y", Target: "/b"},
		"/a:/b:cached":       {Type: "bind", Source: "/a", Target: "/b", CreateSource: true},
		"/a:/b:idmap,nosuid": {Type: "bind", Source: "/a", Target: "/b", CreateSource: true, IDMap: true, Options: []string{"nosuid"}},
		"/a:/b:idmap=uids=1-2-3#7-8-1;gids=4-5-6": {
			Type: "bind", Source: "/a", Target: "/b", CreateSource: true, IDMap: true,
			UIDs: []runspec.LinuxIDMapping{{ContainerID: 1, HostID: 2, Size: 3}, {ContainerID: 7, HostID: 8, Size: 1}},
			GIDs: []runspec.LinuxIDMapping{{ContainerID: 4, HostID: 5, Size: 6}},
		},
		"/a:/b:bind,ro":      {Type: "bind", Source: "/a", Target: "/b", CreateSource: true, ReadOnly: true, Recursive: "disabled"},
		"/a:/b/c d":          {Type: "bind", Source: "/a", Target: "/b/c d", CreateSource: true},
		"/\xed\x95\x9c:/etc": {Type: "bind", Source: "/\xed\x95\x9c", Target: "/etc", CreateSource: true},
	} {
		got, err := parseVolume(s, "/cwd")
		if d := cmp.Diff(want, got); err != nil || d != "" {
			t.Errorf("parseVolume(%q): %v\n%s", s, err, d)
		}
	}
	defer func(old func() bool) { hasSELinux = old }(hasSELinux)
	hasSELinux = func() bool { return false }
	if m, err := parseVolume("/a:/b:ro,z", "/cwd"); err != nil || !m.ReadOnly {
		t.Errorf("z where there is no SELinux: %+v, %v", m, err)
	}
	hasSELinux = func() bool { return true }
	for s, want := range map[string]string{
		"": "missing", ":": "before the first colon", ":/b": "before the first colon", "a": "not absolute", "data:": "missing", "/a:b": "not absolute",
		"/a:/b:": "last colon", "/a:/b:xx": "no mount option", "/a:/b:ro:rw": "three parts", "/": "cannot be /", "/a:/": "cannot be /", "/a:/..": "cannot be /",
		"/a:/b:ro,rw": "more than once", "/a:/b:rslave,rshared": "two propagations", "d1:/b:rslave": "for host paths", "/a:/b:nocopy": "for volumes",
		"/a:/b:z,Z": "SELinux", "~/x:/b": "expanded", "-x:/b": "neither a path nor", "a b:/c": "neither a path nor", "x:/b": "two letters",
		"/a:/b\x00":   "null byte",
		"d1:/b:idmap": "for host paths", "/a:/b:idmap,idmap": "more than once", "/a:/b:idmap=uids=1-2-3": "both uids and gids", "/a:/b:idmap=x=1": "neither uids nor gids",
		"/a:/b:idmap=uids=1-2;gids=1-2-3": "FROM-TO-SIZE", "/a:/b:idmap=uids=1-2-0;gids=1-2-3": "no ids", "/a:/b:idmap=uids=1-4294967290-9;gids=1-2-3": "no ids",
		"d1:/b:bind": "for host paths",
	} {
		if got, err := parseVolume(s, "/cwd"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("parseVolume(%q) = %+v, %v; want an error with %q", s, got, err, want)
		}
	}
}

func TestParseMount(t *testing.T) {
	for s, want := range map[string]spec.Mount{
		"type=bind,source=/a,target=/b":                        {Type: "bind", Source: "/a", Target: "/b"},
		"type=bind,src=a,dst=/b,ro":                            {Type: "bind", Source: "/cwd/a", Target: "/b", ReadOnly: true},
		"type=bind,source=/a,destination=/b,readonly=false":    {Type: "bind", Source: "/a", Target: "/b"},
		"type=bind,source=/a,target=/b,bind-propagation=slave": {Type: "bind", Source: "/a", Target: "/b", Propagation: "slave"},
		"target=/b":                           {Type: "volume", Target: "/b"},
		"source=data,target=/b,volume-nocopy": {Type: "volume", Source: "data", Target: "/b", NoCopy: true},
		"type=tmpfs,target=/b,tmpfs-size=64m,tmpfs-mode=1777":                {Type: "tmpfs", Target: "/b", TmpfsSize: 64 << 20, TmpfsMode: 0o1777},
		"type=bind,source=/a,target=/b,ro,bind-recursive=readonly,idmap":     {Type: "bind", Source: "/a", Target: "/b", ReadOnly: true, Recursive: "readonly", IDMap: true},
		"type=bind,source=/a,target=/b,bind-nonrecursive,consistency=cached": {Type: "bind", Source: "/a", Target: "/b", Recursive: "disabled"},
		"type=bind,source=/a,target=/b,bind-create-src,idmap=false":          {Type: "bind", Source: "/a", Target: "/b", CreateSource: true},
		"source=data,target=/b,volume-subpath=a/./b,volume-driver=local":     {Type: "volume", Source: "data", Target: "/b", Subpath: "a/b", Driver: "local"},
		"source=data,target=/b,volume-subpath=.":                             {Type: "volume", Source: "data", Target: "/b"},
		`source=data,target=/b,volume-opt=type=tmpfs,volume-opt=device=tmpfs,"volume-opt=o=size=1m,uid=3",volume-label=a=b`: {
			Type: "volume", Source: "data", Target: "/b", Labels: map[string]string{"a": "b"},
			DriverOptions: map[string]string{"type": "tmpfs", "device": "tmpfs", "o": "size=1m,uid=3"},
		},
		`type=bind,"source=/a,b",target=/c`: {Type: "bind", Source: "/a,b", Target: "/c"},
	} {
		got, err := parseMount(s, "/cwd")
		if d := cmp.Diff(want, got); err != nil || d != "" {
			t.Errorf("parseMount(%q): %v\n%s", s, err, d)
		}
	}
	for s, want := range map[string]string{
		"": "not a list", "type=bind,target=/b": "needs source", "type=x,target=/b": "no mount type", "type=bind,source=/a": "missing",
		"type=bind,source=/a,target=b": "not absolute", "type=bind,source=/a,target=/b,target=/c": "more than once", "type=bind,src=/a,source=/b,target=/c": "more than once",
		"type=volume,source=/a,target=/b": "add type=bind", "type=tmpfs,source=a,target=/b": "no source", "target=/b,tmpfs-size=1m": "for type=tmpfs",
		"type=tmpfs,target=/b,tmpfs-size=0": "greater than zero", "type=tmpfs,target=/b,tmpfs-mode=999": "octal", "type=bind,source=/a,target=/b,volume-nocopy": "for type=volume",
		"type=bind,source=/a,target=/b,bind-propagation=up": "no propagation", "type=bind,source=/a,target=/b,foo=1": "no key", "type": "needs a value",
		"type=bind,source=/a,target=/b,ro=maybe": "true or false", "target=/b\ntarget=/c": "one line", `target="/b`: "not a list",
		"source=data,target=/b,volume-subpath=../x": "inside of the volume", "source=data,target=/b,volume-subpath=/x": "inside of the volume",
		"source=data,target=/b,bind-recursive=disabled": "for type=bind", "type=bind,source=/a,target=/b,bind-recursive=no": "enabled, disabled",
		"type=bind,source=/a,target=/b,bind-recursive=readonly": "needs readonly", "type=bind,source=/a,target=/b,bind-recursive=writable": "readonly itself",
		"source=data,target=/b,volume-opt=nope=1": "invalid option", "source=data,target=/b,volume-opt=x": "KEY=VALUE", "source=data,target=/b,idmap": "for type=bind",
		"source=data,target=/b,consistency=some": "no consistency", "type=image,source=a,target=/b": "does not honour",
		"type=bind,source=/a,target=/b,bind-recursive=disabled,bind-nonrecursive": "contradict", "type=tmpfs,target=/b,volume-opt=a=b": "for type=volume",
	} {
		if got, err := parseMount(s, "/cwd"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("parseMount(%q) = %+v, %v; want an error with %q", s, got, err, want)
		}
	}
}

func TestParseTmpfs(t *testing.T) {
	for s, want := range map[string]spec.Mount{
		"/run":                           {Type: "tmpfs", Target: "/run"},
		"/run:size=64m,mode=755":         {Type: "tmpfs", Target: "/run", TmpfsSize: 64 << 20, TmpfsMode: 0o755},
		"/run:rw,noexec,nosuid,uid=1000": {Type: "tmpfs", Target: "/run", Options: []string{"noexec", "nosuid", "uid=1000"}},
		"/run:ro":                        {Type: "tmpfs", Target: "/run", ReadOnly: true},
	} {
		got, err := parseTmpfs(s)
		if d := cmp.Diff(want, got); err != nil || d != "" {
			t.Errorf("parseTmpfs(%q): %v\n%s", s, err, d)
		}
	}
	for _, s := range []string{
		"", "run", "/", "/run:", "/run:size", "/run:size=0", "/run:size=50%", "/run:mode=9", "/run:mode=0", "/run:uid=-1", "/run:uid=4294967295", "/run:foo",
		"/run:size=1m,size=2m", "/run:ro,rw", "/run:lowerdir=/etc",
	} {
		if got, err := parseTmpfs(s); err == nil {
			t.Errorf("parseTmpfs(%q) = %+v, want an error", s, got)
		}
	}
}

func TestParseUlimit(t *testing.T) {
	for s, want := range map[string]spec.Ulimit{
		"nofile=1024": {Name: "nofile", Soft: 1024, Hard: 1024}, "nofile=1024:4096": {Name: "nofile", Soft: 1024, Hard: 4096},
		"core=0": {Name: "core"}, "memlock=-1": {Name: "memlock", Soft: -1, Hard: -1}, "memlock=unlimited": {Name: "memlock", Soft: -1, Hard: -1},
		"nproc=10:-1": {Name: "nproc", Soft: 10, Hard: -1},
	} {
		if got, err := parseUlimit(s); err != nil || got != want {
			t.Errorf("parseUlimit(%q) = %+v, %v; want %+v", s, got, err, want)
		}
	}
	for _, s := range []string{"", "nofile", "nofile=", "=1", "files=1", "nofile=a", "nofile=2:1", "nofile=-1:5", "nofile=1:2:3", "nofile=-2", "nofile=1:", "as=5", "nofile=99999999999999999999"} {
		if got, err := parseUlimit(s); err == nil {
			t.Errorf("parseUlimit(%q) = %+v, want an error", s, got)
		}
	}
}

func TestParseDevice(t *testing.T) {
	for s, want := range map[string]spec.Device{
		"/dev/fuse": {Host: "/dev/fuse", Container: "/dev/fuse", Access: "rwm"}, "/dev/sda:/dev/xvda": {Host: "/dev/sda", Container: "/dev/xvda", Access: "rwm"},
		"/dev/sda:r": {Host: "/dev/sda", Container: "/dev/sda", Access: "r"}, "/dev/sda:/dev/xvda:rm": {Host: "/dev/sda", Container: "/dev/xvda", Access: "rm"},
		"/dev/../dev/null": {Host: "/dev/null", Container: "/dev/null", Access: "rwm"},
	} {
		if got, err := parseDevice(s); err != nil || got != want {
			t.Errorf("parseDevice(%q) = %+v, %v; want %+v", s, got, err, want)
		}
	}
	for _, s := range []string{"", "fuse", "/dev/a:b", "/dev/a:/b:x", "/dev/a:/b:rr", "/dev/a:/b:", "/dev/a:/b:r:w", "/dev/a:", "/dev/\x00"} {
		if got, err := parseDevice(s); err == nil {
			t.Errorf("parseDevice(%q) = %+v, want an error", s, got)
		}
	}
}

func TestParseSecurityOpt(t *testing.T) {
	files := map[string]string{"p.json": ` {"defaultAction":"SCMP_ACT_ALLOW"}`, "bad.json": "[]", "text": "hello"}
	read := func(name string) ([]byte, error) {
		if s, ok := files[name]; ok {
			return []byte(s), nil
		}
		return nil, os.ErrNotExist
	}
	for _, c := range []struct {
		opts []string
		want security
	}{
		{[]string{"no-new-privileges"}, security{noNewPrivileges: true}},
		{[]string{"no-new-privileges:true"}, security{noNewPrivileges: true}},
		{[]string{"no-new-privileges=false"}, security{}},
		{[]string{"seccomp=unconfined"}, security{seccomp: "unconfined"}},
		{[]string{"seccomp:unconfined"}, security{seccomp: "unconfined"}},
		{[]string{"seccomp=unconfined", "seccomp=builtin"}, security{}},
		{[]string{"seccomp=p.json", "no-new-privileges"}, security{true, files["p.json"]}},
	} {
		var got security
		for _, o := range c.opts {
			if err := parseSecurityOpt(o, &got, read); err != nil {
				t.Errorf("%q: %v", o, err)
			}
		}
		if got != c.want {
			t.Errorf("%q = %+v, want %+v", c.opts, got, c.want)
		}
	}
	for _, s := range []string{"", "seccomp", "seccomp=", "seccomp=missing", "seccomp=bad.json", "seccomp=text", "no-new-privileges=x", "apparmor=unconfined", "label=disable", "foo=bar"} {
		if err := parseSecurityOpt(s, &security{}, read); err == nil {
			t.Errorf("parseSecurityOpt(%q): no error", s)
		}
	}
}

func TestParseExtraHost(t *testing.T) {
	for s, want := range map[string]string{
		"db:192.0.2.7": "db:192.0.2.7", "db=192.0.2.7": "db:192.0.2.7", "db:host-gateway": "db:host-gateway",
		"six:2001:db8::1": "six:2001:db8::1", "six=[2001:db8::1]": "six:2001:db8::1", "a.b-c:127.0.0.1": "a.b-c:127.0.0.1",
	} {
		if got, err := parseExtraHost(s); err != nil || got != want {
			t.Errorf("parseExtraHost(%q) = %q, %v; want %q", s, got, err, want)
		}
	}
	for _, s := range []string{"", "db", "db:", ":192.0.2.7", "db:nowhere", "a b:192.0.2.7", "a\nb:192.0.2.7", "#:192.0.2.7", "db:192.0.2.7 evil"} {
		if got, err := parseExtraHost(s); err == nil {
			t.Errorf("parseExtraHost(%q) = %q, want an error", s, got)
		}
	}
}

func TestParsePlatform(t *testing.T) {
	for s, want := range map[string]ocispec.Platform{
		"linux/amd64": {OS: "linux", Architecture: "amd64"}, "arm64": {OS: "linux", Architecture: "arm64"}, "linux/x86_64": {OS: "linux", Architecture: "amd64"},
		"linux/arm/v7": {OS: "linux", Architecture: "arm", Variant: "v7"}, "armhf": {OS: "linux", Architecture: "arm", Variant: "v7"},
		"linux/arm64/v8": {OS: "linux", Architecture: "arm64"}, "Linux/AArch64": {OS: "linux", Architecture: "arm64"}, "linux/amd64/v3": {OS: "linux", Architecture: "amd64", Variant: "v3"},
	} {
		got, err := parsePlatform(s)
		if err != nil {
			t.Errorf("parsePlatform(%q): %v", s, err)
		} else if d := cmp.Diff(want, *got); d != "" {
			t.Errorf("parsePlatform(%q):\n%s", s, d)
		}
	}
	for _, s := range []string{"", "linux", "windows/amd64", "linux/vax", "linux/arm/v7/x", "linux/arm/", "linux/arm/v 7", "/", "linux//v7"} {
		if got, err := parsePlatform(s); err == nil {
			t.Errorf("parsePlatform(%q) = %+v, want an error", s, got)
		}
	}
}

func TestParseLogOpt(t *testing.T) {
	var size int64
	var files int
	for _, s := range []string{"max-size=50m", "max-file=5"} {
		if err := parseLogOpt(s, &size, &files); err != nil {
			t.Errorf("parseLogOpt(%q): %v", s, err)
		}
	}
	if size != 50<<20 || files != 5 {
		t.Errorf("size %d, files %d; want 50 MiB, 5", size, files)
	}
	for _, s := range []string{"", "max-size", "max-size=", "max-size=1k", "max-size=-1", "max-file=0", "max-file=x", "mode=non-blocking"} {
		if err := parseLogOpt(s, &size, &files); err == nil {
			t.Errorf("parseLogOpt(%q): no error", s)
		}
	}
}

func TestParseCPUSet(t *testing.T) {
	for _, s := range []string{"0", "0-3", "0,2-3,7"} {
		if err := parseCPUSet(s); err != nil {
			t.Errorf("parseCPUSet(%q): %v", s, err)
		}
	}
	for _, s := range []string{"", ",", "a", "3-1", "0-", "-1", "0,,1", "0-1-2"} {
		if err := parseCPUSet(s); err == nil {
			t.Errorf("parseCPUSet(%q): no error", s)
		}
	}
}

func TestParseTime(t *testing.T) {
	now := time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)
	for s, want := range map[string]time.Time{
		"10m": now.Add(-10 * time.Minute), "1h30m": now.Add(-90 * time.Minute), "2026-01-31T11:00:00Z": now.Add(-time.Hour),
		"2026-01-31T11:00:00.5Z": now.Add(-time.Hour + 500*time.Millisecond), "2026-01-31T11:00:00": time.Date(2026, 1, 31, 11, 0, 0, 0, time.Local),
		"2026-01-31": time.Date(2026, 1, 31, 0, 0, 0, 0, time.Local), "1767225600": time.Unix(1767225600, 0), "1767225600.25": time.Unix(1767225600, 25e7), "0s": now,
	} {
		if got, err := parseTime(s, now); err != nil || !got.Equal(want) {
			t.Errorf("parseTime(%q) = %v, %v; want %v", s, got, err, want)
		}
	}
	for _, s := range []string{"", "yesterday", "2026-13-01", "99999999999999999999", "12:00"} {
		if got, err := parseTime(s, now); err == nil {
			t.Errorf("parseTime(%q) = %v, want an error", s, got)
		}
	}
}

func TestParseChange(t *testing.T) {
	var got ocispec.ImageConfig
	for _, s := range []string{
		`CMD ["/bin/sh", "-l"]`, "entrypoint /bin/run it", `ENV A=1 B="two words" C=3\ 4`, "ENV PATH /bin:/usr/bin", "LABEL k=v", "EXPOSE 80 53/udp",
		"USER 1000", "WORKDIR /srv", "STOPSIGNAL SIGINT", `VOLUME ["/data"]`, "VOLUME /a /b",
	} {
		if err := parseChange(s, &got); err != nil {
			t.Errorf("parseChange(%q): %v", s, err)
		}
	}
	want := ocispec.ImageConfig{
		Cmd: []string{"/bin/sh", "-l"}, Entrypoint: []string{"/bin/sh", "-c", "/bin/run it"}, Env: []string{"A=1", "B=two words", "C=3 4", "PATH=/bin:/usr/bin"},
		Labels: map[string]string{"k": "v"}, ExposedPorts: map[string]struct{}{"80/tcp": {}, "53/udp": {}}, User: "1000", WorkingDir: "/srv", StopSignal: "SIGINT",
		Volumes: map[string]struct{}{"/data": {}, "/a": {}, "/b": {}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for _, s := range []string{"", "CMD", `CMD ["a"`, "RUN make", "COPY a b", "EXPOSE 0", "EXPOSE 80/ip", "WORKDIR srv", "ENV =x", `ENV A="x`, "VOLUME data", "ENV A=1 B"} {
		if err := parseChange(s, &ocispec.ImageConfig{}); err == nil {
			t.Errorf("parseChange(%q): no error", s)
		}
	}
}

func TestReadBounded(t *testing.T) {
	dir := t.TempDir()
	big := filepath.Join(dir, "big")
	f, err := os.OpenFile(big, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(maxTextFile + 1); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	for _, name := range []string{big, filepath.Join(dir, "missing"), dir} {
		if _, err := readBounded("--env-file", name); err == nil {
			t.Errorf("readBounded(%q): no error", name)
		} else if !strings.Contains(err.Error(), "--env-file") {
			t.Errorf("the error does not name the flag: %v", err)
		}
	}
}

func FuzzParsers(f *testing.F) {
	for _, s := range []string{
		"512m", "1.5g", "0.5", "/a:/b:ro", "data:/b", "type=bind,source=/a,target=/b", "/run:size=1m", "nofile=1:2", "/dev/null:r",
		"seccomp=x", "db:1.2.3.4", "linux/arm/v7", "max-size=1m", "0-3,5", "10m", "A=1\n#\nB", `ENV A="1" B=2`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := parseSize(s); err == nil && n <= 0 {
			t.Errorf("parseSize(%q) = %d", s, n)
		}
		if n, err := parseCPUs(s); err == nil && n <= 0 {
			t.Errorf("parseCPUs(%q) = %d", s, n)
		}
		for _, parse := range []func(string, string) (spec.Mount, error){parseVolume, parseMount} {
			if m, err := parse(s, "/cwd"); err == nil && (!filepath.IsAbs(m.Target) || m.Target == "/" || m.Type == "bind" && !filepath.IsAbs(m.Source)) {
				t.Errorf("%q gives %+v", s, m)
			}
		}
		if m, err := parseTmpfs(s); err == nil && !filepath.IsAbs(m.Target) {
			t.Errorf("parseTmpfs(%q) = %+v", s, m)
		}
		if u, err := parseUlimit(s); err == nil && u.Hard != -1 && (u.Soft < 0 || u.Soft > u.Hard) {
			t.Errorf("parseUlimit(%q) = %+v", s, u)
		}
		if d, err := parseDevice(s); err == nil && (!filepath.IsAbs(d.Host) || !isAccess(d.Access)) {
			t.Errorf("parseDevice(%q) = %+v", s, d)
		}
		if h, err := parseExtraHost(s); err == nil && strings.ContainsAny(h, " \t\n") {
			t.Errorf("parseExtraHost(%q) = %q: it would be two lines of /etc/hosts", s, h)
		}
		if env, err := parseEnvFile([]byte(s), func(string) (string, bool) { return "", false }); err == nil {
			for _, kv := range env {
				if strings.IndexByte(kv, '=') < 1 || strings.ContainsAny(kv, "\n\x00") {
					t.Errorf("parseEnvFile(%q) gives %q", s, kv)
				}
			}
		}
		_ = parseSecurityOpt(s, &security{}, func(string) ([]byte, error) { return nil, os.ErrNotExist })
		_, _ = parsePlatform(s)
		_, _ = parseTime(s, time.Now())
		_ = parseCPUSet(s)
		_ = parseChange(s, &ocispec.ImageConfig{})
		var size int64
		var files int
		_ = parseLogOpt(s, &size, &files)
	})
}
