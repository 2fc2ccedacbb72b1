package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/onggi/onggi/engine"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/spec"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/pflag"
)

// parse reads a run command line without running it.
func parse(t *testing.T, args ...string) (engine.Config, error) {
	t.Helper()
	var f containerFlags
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	f.register(fs)
	fs.SetInterspersed(false)
	if err := fs.Parse(args); err != nil {
		t.Fatalf("%q: %v", args, err)
	}
	return f.config(fs.Arg(0), fs.Args()[min(1, fs.NArg()):], fs.Changed)
}

func TestFlagsBecomeConfig(t *testing.T) {
	t.Setenv("FROM_HERE", "yes")
	envFile := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(envFile, []byte("A=file\nF=file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	adj, grace := -5, 30
	base := func(edit func(*engine.Config)) engine.Config {
		c := engine.Config{Image: "img"}
		c.Args, c.Network, c.Log.Driver = []string{}, "bridge", "local"
		edit(&c)
		return c
	}
	for _, c := range []struct {
		args string
		want engine.Config
	}{
		{"img", base(func(*engine.Config) {})},
		{"-it --rm --name n -h host img sh -c -x", base(func(c *engine.Config) {
			c.Args, c.Tty, c.OpenStdin, c.AutoRemove, c.Name, c.Hostname = []string{"sh", "-c", "-x"}, true, true, true, "n", "host"
		})},
		{"-e A=flag -e FROM_HERE -e UNSET --env-file " + envFile + " img", base(func(c *engine.Config) {
			c.Env = []string{"A=flag", "F=file", "FROM_HERE=yes", "UNSET"}
		})},
		{"--entrypoint /bin/x -w /w -u 1:2 --group-add 3 --group-add g -l a=b -l c img", base(func(c *engine.Config) {
			c.Entrypoint, c.EntrypointSet, c.Workdir, c.User, c.GroupAdd = []string{"/bin/x"}, true, "/w", "1:2", []string{"3", "g"}
			c.Labels = map[string]string{"a": "b", "c": ""}
		})},
		{"--entrypoint= img", base(func(c *engine.Config) { c.EntrypointSet = true })},
		{
			"-m 512m --memory-swap -1 --cpus 1.5 -c 512 --cpuset-cpus 0 --pids-limit -1 --oom-score-adj -5 --shm-size 1g --ulimit nofile=1:2 --sysctl net.x=1=2 img",
			base(func(c *engine.Config) {
				c.Memory, c.MemorySwap, c.NanoCPUs, c.CPUShares, c.CpusetCpus, c.PidsLimit, c.OomScoreAdj, c.ShmSize = 512<<20, -1, 15e8, 512, "0", -1, &adj, 1<<30
				c.Ulimits = []spec.Ulimit{{Name: "nofile", Soft: 1, Hard: 2}}
				c.Sysctls = map[string]string{"net.x": "1=2"}
			}),
		},
		{"--read-only -v d1:/a --mount type=bind,source=/s,target=/b --tmpfs /c --device /dev/null img", base(func(c *engine.Config) {
			c.ReadOnly = true
			c.Mounts = []spec.Mount{{Type: "volume", Source: "d1", Target: "/a"}, {Type: "bind", Source: "/s", Target: "/b"}, {Type: "tmpfs", Target: "/c"}}
			c.Devices = []spec.Device{{Host: "/dev/null", Container: "/dev/null", Access: "rwm"}}
		})},
		{"--privileged --cap-add SYS_ADMIN --cap-drop ALL --security-opt no-new-privileges --security-opt seccomp=unconfined img", base(func(c *engine.Config) {
			c.Privileged, c.CapAdd, c.CapDrop, c.NoNewPrivileges, c.Seccomp = true, []string{"SYS_ADMIN"}, []string{"ALL"}, true, "unconfined"
		})},
		{"--name= --hostname= --user= --workdir= --network= --stop-signal= --platform= --runtime= --log-driver= --cidfile= img", base(func(*engine.Config) {})},
		{"--net none --dns 192.0.2.53 --dns-search a.b --dns-opt ndots:1 --add-host x=192.0.2.1 img", base(func(c *engine.Config) {
			c.Network, c.DNS, c.DNSSearch, c.DNSOptions, c.ExtraHosts = "none", []string{"192.0.2.53"}, []string{"a.b"}, []string{"ndots:1"}, []string{"x:192.0.2.1"}
		})},
		{"--init --stop-signal INT --stop-timeout 30 --pull never --platform linux/arm64 --runtime /usr/bin/runc --log-opt max-size=1m --log-opt max-file=2 img", base(func(c *engine.Config) {
			c.Init, c.StopSignal, c.StopTimeout, c.Pull, c.Runtime = true, "INT", &grace, "never", []string{"/usr/bin/runc"}
			c.Platform = &ocispec.Platform{OS: "linux", Architecture: "arm64"}
			c.Log.MaxSize, c.Log.MaxFiles = 1<<20, 2
		})},
		{"--log-driver none img", base(func(c *engine.Config) { c.Log.Driver = "none" })},
	} {
		got, err := parse(t, strings.Fields(c.args)...)
		if err != nil {
			t.Errorf("%s: %v", c.args, err)
			continue
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s:\n%s", c.args, d)
		}
	}
}

func TestPortsBecomeConfig(t *testing.T) {
	c, err := parse(t, "-p", "127.0.0.1:8080:80", "-p", "53:53/udp", "img")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range c.Ports {
		got = append(got, portsText(slices.Clone(c.Ports[:0:0]))+address(p.HostIP)+portRange(p.HostPort, p.HostPort)+portRange(p.ContainerPort, p.ContainerPort)+p.Protocol)
	}
	if want := []string{"127.0.0.1808080tcp", "5353udp"}; !slices.Equal(got, want) {
		t.Errorf("ports %q, want %q", got, want)
	}
}

// TestBadValues: every wrong value ends in an error of docker's exit code that names the flag, the value, the reason
// and the fix.
func TestBadValues(t *testing.T) {
	for _, c := range []struct{ args, names string }{
		{"--memory 0 img", "--memory=0"},
		{"--memory -1 img", "--memory=-1"},
		{"--memory 9999999999999999p img", "--memory="},
		{"--memory= img", "--memory="},
		{"--memory-swap x img", "--memory-swap=x"},
		{"--cpus 0 img", "--cpus=0"},
		{"--cpus many img", "--cpus=many"},
		{"--cpu-shares 1 img", "--cpu-shares=1"},
		{"--cpuset-cpus 3-1 img", "--cpuset-cpus=3-1"},
		{"--pids-limit 0 img", "--pids-limit=0"},
		{"--pids-limit x img", "--pids-limit=x"},
		{"--ulimit files=1 img", "--ulimit=files=1"},
		{"--ulimit nofile=1 --ulimit nofile=2 img", "--ulimit=nofile=2"},
		{"--oom-score-adj 1001 img", "--oom-score-adj=1001"},
		{"--shm-size 0 img", "--shm-size=0"},
		{"-v a img", "--volume=a"},
		{"-v /a:/b -v /c:/b img", "--volume=/c:/b"},
		{"--mount type=x img", "--mount=type=x"},
		{"--tmpfs a img", "--tmpfs=a"},
		{"--device a img", "--device=a"},
		{"--security-opt foo img", "--security-opt=foo"},
		{"--security-opt seccomp=/no/such/file img", "seccomp=/no/such/file"},
		{"--sysctl a img", "--sysctl=a"},
		{"--network ../moon img", "--network=../moon"},
		{"--network host --network bridge img", "--network=host"},
		{"--network name=a,ip=moon img", "--network=name=a,ip=moon"},
		{"--network ip=10.1.1.1 img", "--network=ip=10.1.1.1"},
		{"--network name=a,speed=1 img", "--network=name=a,speed=1"},
		{"--network a --ip fd00::1 img", "--ip=fd00::1"},
		{"--network host --ip 10.1.1.1 img", "--ip=10.1.1.1"},
		{"--network a --mac-address 01:00:00:00:00:00 img", "01:00:00:00:00:00"},
		{"--network a --network-alias a/b img", "a/b"},
		{"--link : img", "--link=:"},
		{"-p 99999:1 img", "99999:1"},
		{"-p 80:80 --network host img", "--publish=80:80"},
		{"--dns moon img", "--dns=moon"},
		{"--add-host a img", "--add-host=a"},
		{"--env =x img", "--env==x"},
		{"--env-file /no/such/file img", "--env-file=/no/such/file"},
		{"--label =x img", "--label==x"},
		{"--stop-signal HUPP img", "HUPP"},
		{"--stop-timeout -2 img", "--stop-timeout=-2"},
		{"--pull sometimes img", "--pull=sometimes"},
		{"--platform vax img", "--platform=vax"},
		{"--log-driver syslog img", "--log-driver=syslog"},
		{"--log-opt a=b img", "--log-opt=a=b"},
		{"--log-driver none --log-opt max-size=1m img", "--log-opt="},
		{"--memory= img", "--memory="},
		{"--pull= img", "--pull="},
		{"--dns-search a/b img", "--dns-search=a/b"},
		{"--dns-search : img", "--dns-search=:"},
		{"--dns-search 1.2 img", "--dns-search=1.2"},
		{"--group-add= img", "--group-add="},
	} {
		_, err := parse(t, strings.Fields(c.args)...)
		if err == nil {
			t.Errorf("%s: no error", c.args)
			continue
		}
		x, ok := err.(*exit)
		if !ok || x.code != 125 {
			t.Errorf("%s: error %#v, want exit code 125", c.args, err)
		}
		if !strings.Contains(err.Error(), c.names) {
			t.Errorf("%s: %q does not name %q", c.args, err, c.names)
		}
		if errdefs.FixOf(err) == "" && !strings.Contains(c.args, "= ") {
			t.Errorf("%s: %q has no fix", c.args, err)
		}
	}
}

func TestAttached(t *testing.T) {
	for _, c := range []struct {
		f    containerFlags
		want streams
	}{
		{containerFlags{}, streams{out: true, err: true}},
		{containerFlags{interactive: true}, streams{true, true, true}},
		{containerFlags{attach: []string{"stdout"}, interactive: true}, streams{out: true}},
		{containerFlags{attach: []string{"STDIN", "stderr"}}, streams{in: true, err: true}},
	} {
		if got, err := c.f.attached(); err != nil || got != c.want {
			t.Errorf("attached(%+v) = %+v, %v; want %+v", c.f, got, err, c.want)
		}
	}
	if _, err := (&containerFlags{attach: []string{"x"}}).attached(); err == nil {
		t.Error("-a x: no error")
	}
}

// call runs a command line in process and returns what it prints.
func call(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("ONGGI_ROOT", filepath.Join(dir, "root"))
	t.Setenv("ONGGI_RUN_ROOT", filepath.Join(dir, "run"))
	var files [3]*os.File
	for i, name := range []string{"in", "out", "err"} {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[i] = f
	}
	code = Main(Options{Args: args, Stdin: files[0], Stdout: files[1], Stderr: files[2]})
	out, _ := os.ReadFile(files[1].Name())
	errs, _ := os.ReadFile(files[2].Name())
	return string(out), string(errs), code
}

func TestUsage(t *testing.T) {
	for _, c := range []struct {
		args string
		code int
		says []string
	}{
		{"rnu", 1, []string{`there is no command "rnu"`, "did you mean onggi run?"}},
		{"xyzzy", 1, []string{`there is no command "xyzzy"`, "onggi --help"}},
		{"run", 1, []string{"cannot run", "an image", "got none"}},
		{"run --memroy 1g img", 125, []string{"--memroy", "did you mean --memory?"}},
		{"run -Z img", 125, []string{"-Z", "no such flag"}},
		{"run --name", 125, []string{"--name", "needs a value"}},
		{"run --rm=perhaps img", 125, []string{"--rm=perhaps", "true or false"}},
		{"run -d -a stdout img", 125, []string{"--detach", "leave one of them out"}},
		{"ps now", 1, []string{"cannot ps", "no arguments", "got 1: now"}},
		{"tag one", 1, []string{"cannot tag", "an image and its new name"}},
		{"logs", 1, []string{"cannot logs", "got none"}},
		{"logs --tail x c", 125, []string{"--tail=x"}},
		{"logs --since never c", 125, []string{"--since=never", "10m"}},
		{"stop -t x c", 125, []string{"--time=x"}},
		{"kill -s NOSUCH c", 125, []string{"NOSUCH"}},
		{"exec c", 1, []string{"cannot exec", "a command"}},
		{"exec -it c sh", 125, []string{"not a TTY", "leave -t out"}},
		{"exec -d -i c sh", 125, []string{"--detach"}},
		{"run -it img", 125, []string{"not a TTY"}},
		{"inspect --type secret x", 125, []string{"--type=secret", "container, image, volume or network"}},
		{"ps --format {{.ID", 125, []string{"--format", "not a Go template"}},
		{"ps --format=", 125, []string{"--format"}},
		{"import http://example.com/x.tar", 1, []string{"curl"}},
		{"import /no/such/file", 1, []string{"/no/such/file"}},
		{"--root /a,b ps", 1, []string{"--root=/a,b", "comma"}},
		{"pull --platform vax img", 125, []string{"--platform=vax"}},
		{"pull UPPER", 1, []string{"UPPER"}},
	} {
		_, stderr, code := call(t, strings.Fields(c.args)...)
		if code != c.code {
			t.Errorf("onggi %s: exit code %d, want %d; stderr %s", c.args, code, c.code, stderr)
		}
		if !strings.HasPrefix(stderr, "onggi: ") || strings.Contains(stderr, "\x1b") {
			t.Errorf("onggi %s: stderr %q", c.args, stderr)
		}
		for _, s := range c.says {
			if !strings.Contains(stderr, s) {
				t.Errorf("onggi %s: %q does not say %q", c.args, stderr, s)
			}
		}
	}
}

func TestHelp(t *testing.T) {
	out, _, code := call(t, "--help")
	if code != 0 {
		t.Errorf("--help: exit code %d", code)
	}
	for _, c := range commands() {
		if listed := strings.Contains(out, "\n  "+c.name+" "); listed != (c.group != "") {
			t.Errorf("--help lists %s: %v", c.name, listed)
		}
		page, stderr, code := call(t, c.name, "--help")
		if code != 0 || stderr != "" {
			t.Errorf("%s --help: exit code %d, stderr %q", c.name, code, stderr)
		}
		for _, s := range []string{"Usage: onggi " + c.name, "Global flags:"} {
			if !strings.Contains(page, s) {
				t.Errorf("%s --help has no %q", c.name, s)
			}
		}
		if c.group != "" && !strings.Contains(page, "Examples:") {
			t.Errorf("%s --help has no examples", c.name)
		}
		body, _, _ := strings.Cut(page, "\nExamples:")
		for _, l := range strings.Split(body, "\n") {
			if len(l) > 80 && !strings.HasPrefix(l, "Usage:") && !strings.HasPrefix(l, "  ") {
				t.Errorf("%s --help: a line of %d columns: %s", c.name, len(l), l)
			}
		}
	}
	for _, args := range [][]string{{}, {"help"}, {"--debug"}} {
		if out2, _, code := call(t, args...); code != 0 || !strings.Contains(out2, "Containers:") {
			t.Errorf("onggi %q: exit code %d, %s", args, code, out2)
		}
	}
	if out, _, code := call(t, "help", "run"); code != 0 || !strings.Contains(out, "--memory") {
		t.Errorf("help run: exit code %d, %s", code, out)
	}
	if out, _, code := call(t, "__complete", "run", "--mem"); code != 0 || !strings.Contains(out, "--memory-swap") {
		t.Errorf("completion of run --mem: exit code %d, %s", code, out)
	}
}

func TestVersion(t *testing.T) {
	out, _, code := call(t, "version")
	if code != 0 || !strings.Contains(out, "Version:    "+Version) {
		t.Errorf("version: %d, %s", code, out)
	}
	out, _, _ = call(t, "version", "--format", "json")
	var v versionInfo
	if err := json.NewDecoder(bytes.NewReader([]byte(out))).Decode(&v); err != nil || v.Version != Version {
		t.Errorf("version --format json: %v, %s", err, out)
	}
	if out, _, _ := call(t, "version", "--format", "{{.Version}}"); out != Version+"\n" {
		t.Errorf("version --format: %q", out)
	}
	if out, _, code := call(t, "--version"); code != 0 || !strings.HasPrefix(out, "onggi version ") {
		t.Errorf("--version: %d, %q", code, out)
	}
	if _, stderr, code := call(t, "version", "--format", "{{.Nothing}}"); code != 1 || !strings.Contains(stderr, "--format json") {
		t.Errorf("version --format with an unknown field: %d, %s", code, stderr)
	}
}

func TestNearest(t *testing.T) {
	names := []string{"run", "create", "start", "stop", "exec", "images", "inspect", "rm", "rmi", "ps"}
	for word, want := range map[string]string{"rnu": "run", "creat": "create", "imagse": "images", "image": "images", "strat": "start", "xyzzy": "", "inspct": "inspect", "x": "", "exce": "exec"} {
		if got := nearest(word, names); got != want {
			t.Errorf("nearest(%q) = %q, want %q", word, got, want)
		}
	}
	if d := distance(strings.Repeat("a", 100), "a"); d != 64 {
		t.Errorf("distance of a very long word: %d", d)
	}
}

func TestFirstWord(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{{nil, ""}, {[]string{"--root", "run", "ps"}, "ps"}, {[]string{"--root=run", "ps"}, "ps"}, {[]string{"--debug", "run", "-d"}, "run"}, {[]string{"--root"}, ""}} {
		if got := firstWord(c.args); got != c.want {
			t.Errorf("firstWord(%q) = %q, want %q", c.args, got, c.want)
		}
	}
}
