package cli

import (
	"os"
	"strings"

	"github.com/onggi/onggi/engine"
	"github.com/onggi/onggi/errdefs"
	"github.com/onggi/onggi/network"
	"github.com/onggi/onggi/secret"
	"github.com/onggi/onggi/spec"
	"github.com/onggi/onggi/volume"
	"github.com/spf13/pflag"
)

// containerFlags are the flags of run and create as they were typed. Everything but booleans is text until config reads
// it, so that every wrong value ends in the same kind of error.
type containerFlags struct {
	attach, env, envFile, groupAdd, label, ulimit, volume, mount, tmpfs  []string
	capAdd, capDrop, securityOpt, device, sysctl, publish, network       []string
	networkAlias, link                                                   []string
	ip, ip6, macAddress                                                  string
	dns, dnsSearch, dnsOption, addHost, logOpt, volumesFrom              []string
	name, hostname, workdir, user, entrypoint                            string
	memory, memorySwap, cpus, cpuShares, cpusetCPUs, pidsLimit, oomScore string
	shmSize, stopSignal, stopTimeout, pull, platform, runtime            string
	logDriver, cidfile, volumeDriver, restart                            string
	healthCmd, healthInterval, healthTimeout, healthRetries              string
	healthStartPeriod, healthStartInterval, onUnhealthy                  string
	noHealth                                                             bool
	interactive, tty, rm, readOnly, privileged, init, quiet              bool

	secrets, configs []string

	more moreFlags
}

// register defines the flags. Values in backquotes are the names of the values in the help text.
func (f *containerFlags) register(fs *pflag.FlagSet) {
	list := func(p *[]string, name, short, usage string) { fs.StringArrayVarP(p, name, short, nil, usage) }
	text := func(p *string, name, short, usage string) { fs.StringVarP(p, name, short, "", usage) }

	list(&f.attach, "attach", "a", "attach `stream` stdin, stdout or stderr; repeat it (default: stdout and stderr, and stdin with -i)")
	fs.BoolVarP(&f.interactive, "interactive", "i", false, "connect stdin, and keep it open")
	fs.BoolVarP(&f.tty, "tty", "t", false, "give the container a terminal")
	fs.BoolVar(&f.rm, "rm", false, "remove the container and its anonymous volumes when it ends")
	text(&f.name, "name", "", "`name` of the container")
	text(&f.hostname, "hostname", "h", "host `name` inside the container")
	text(&f.pull, "pull", "", "pull the image `when`: always, missing or never (default missing)")
	text(&f.platform, "platform", "", "use the image for `os/arch[/variant]`")
	fs.BoolVarP(&f.quiet, "quiet", "q", false, "do not print the progress of a pull")

	list(&f.env, "env", "e", "set a variable `KEY=VALUE`; KEY alone takes the value from here")
	list(&f.envFile, "env-file", "", "read variables from a `file`, one KEY=VALUE a line")
	text(&f.workdir, "workdir", "w", "working `directory` inside the container")
	text(&f.user, "user", "u", "run as `user[:group]`, names or ids")
	list(&f.groupAdd, "group-add", "", "additional `group`, a name or an id")
	text(&f.entrypoint, "entrypoint", "", "run `program` in place of the image's; empty clears the image's")
	list(&f.label, "label", "l", "label the container with `KEY=VALUE`")
	fs.BoolVar(&f.init, "init", false, "put a process 1 in front of the command that reaps orphans and forwards signals")
	text(&f.restart, "restart", "", "start it again when it ends: `policy` no, on-failure[:count], always or unless-stopped (default no)")
	text(&f.healthCmd, "health-cmd", "", "`command` line that says by its exit code whether the container is healthy (default the image's)")
	text(&f.healthInterval, "health-interval", "", "`time` between two checks (default 30s)")
	text(&f.healthTimeout, "health-timeout", "", "`time` after which a check has failed (default 30s)")
	text(&f.healthRetries, "health-retries", "", "`number` of failures in a row that make it unhealthy (default 3)")
	text(&f.healthStartPeriod, "health-start-period", "", "`time` in which failures do not count (default 0s)")
	text(&f.healthStartInterval, "health-start-interval", "", "`time` between two checks in the start period (default 5s)")
	fs.BoolVar(&f.noHealth, "no-healthcheck", false, "do not check, whatever the image says")
	text(&f.onUnhealthy, "on-unhealthy", "", "`action` when it becomes unhealthy: restart, stop or none (default none)")
	text(&f.stopSignal, "stop-signal", "", "`signal` that stop sends (default the image's, or SIGTERM)")
	text(&f.stopTimeout, "stop-timeout", "", "`seconds` that stop waits before it kills (default 10)")

	text(&f.memory, "memory", "m", "memory limit, such as 512m or 2g, in `bytes`")
	text(&f.memorySwap, "memory-swap", "", "memory and swap together, in `bytes`; -1 is unlimited swap")
	text(&f.cpus, "cpus", "", "`number` of processors, such as 0.5")
	text(&f.cpuShares, "cpu-shares", "c", "`weight` against other containers, 2 to 262144 (default 1024)")
	text(&f.cpusetCPUs, "cpuset-cpus", "", "run on these `processors` only, such as 0-3,6")
	text(&f.pidsLimit, "pids-limit", "", "`number` of processes and threads; -1 is no limit")
	list(&f.ulimit, "ulimit", "", "resource limit `name=soft[:hard]`, such as nofile=1024:4096")
	text(&f.oomScore, "oom-score-adj", "", "how soon the kernel kills it when memory is short, -1000 to 1000, in `points`")
	text(&f.shmSize, "shm-size", "", "size of /dev/shm in `bytes` (default 64m)")

	list(&f.volume, "volume", "v", "mount `[source:]target[:options]`: a host path or a volume; options ro, nocopy, idmap, rslave, ...")
	list(&f.mount, "mount", "", "mount with `key=value,...`: type=bind|volume|tmpfs, source, target, readonly, volume-subpath, idmap, ...")
	list(&f.volumesFrom, "volumes-from", "", "mount what another container mounts: `container[:ro]`")
	text(&f.volumeDriver, "volume-driver", "", "`driver` of the volumes that are made: local")
	list(&f.tmpfs, "tmpfs", "", "mount a tmpfs at `target[:options]`; options size=, mode=, noexec, ...")
	list(&f.secrets, "secret", "", "give a secret as a file: `name[,target=path,uid=n,gid=n,mode=0400]` (default /run/secrets/NAME)")
	list(&f.configs, "config", "", "give a config as a file: `name[,target=path,uid=n,gid=n,mode=0400]` (default /NAME)")
	fs.BoolVar(&f.readOnly, "read-only", false, "make the root file system read-only")

	list(&f.capAdd, "cap-add", "", "add a Linux `capability`, or ALL")
	list(&f.capDrop, "cap-drop", "", "drop a Linux `capability`, or ALL")
	fs.BoolVar(&f.privileged, "privileged", false, "all capabilities and devices, no seccomp: as root on this host")
	list(&f.securityOpt, "security-opt", "", "security `option`: seccomp=FILE, seccomp=unconfined or no-new-privileges")
	list(&f.device, "device", "", "give a device: `host[:container][:rwm]`")
	list(&f.sysctl, "sysctl", "", "kernel parameter `key=value` of the container's own namespaces")

	list(&f.network, "network", "", "connect to a `network`: its name, bridge, host, none, container:NAME, or name=NETWORK,ip=,ip6=,alias=,mac-address=,gw-priority= (default bridge); repeat it")
	text(&f.ip, "ip", "", "IPv4 `address` on the first network")
	text(&f.ip6, "ip6", "", "IPv6 `address` on the first network")
	text(&f.macAddress, "mac-address", "", "hardware `address` on the first network")
	list(&f.networkAlias, "network-alias", "", "`name` under which others on the first network find the container; repeat it")
	list(&f.link, "link", "", "find another container under a name: `container[:name]`")
	list(&f.publish, "publish", "p", "publish a port: `[[ip:]host:]container[/protocol]`; ranges as 8000-8010")
	list(&f.dns, "dns", "", "`address` of a name server")
	list(&f.dnsSearch, "dns-search", "", "`domain` to search names in")
	list(&f.dnsOption, "dns-option", "", "`option` of resolv.conf")
	list(&f.addHost, "add-host", "", "line of /etc/hosts: `name:address`, or name:host-gateway")

	text(&f.logDriver, "log-driver", "", "keep the log with `driver` local, json-file (docker's format) or none (default local)")
	list(&f.logOpt, "log-opt", "", "log `key=value`: max-size (default 10m), max-file (default 3)")
	text(&f.runtime, "runtime", "", "use another OCI runtime: its `path` (such as /usr/bin/runc)")
	f.more.register(fs)
	text(&f.cidfile, "cidfile", "", "write the container's id to a new `file`")

	fs.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		switch name { // docker's other spellings
		case "net":
			name = "network"
		case "dns-opt":
			name = "dns-option"
		case "health-on-failure": // podman's
			name = "on-unhealthy"
		case "net-alias":
			name = "network-alias"
		}
		return pflag.NormalizedName(name)
	})
}

// example shows how a flag's value is written; it is the fix of a wrong one.
func example(flag string) string {
	switch flag {
	case "--memory", "--memory-swap", "--shm-size":
		return flag + " 512m"
	case "--cpus":
		return "--cpus 0.5"
	case "--cpu-shares":
		return "--cpu-shares 512"
	case "--cpuset-cpus":
		return "--cpuset-cpus 0-1"
	case "--pids-limit":
		return "--pids-limit 100, or -1 for no limit"
	case "--ulimit":
		return "--ulimit nofile=1024:4096"
	case "--oom-score-adj":
		return "--oom-score-adj 500"
	case "--volume":
		return "-v /host/path:/container/path:ro, or -v name:/container/path"
	case "--mount":
		return "--mount type=bind,source=/host/path,target=/container/path,readonly"
	case "--secret", "--config":
		return flag + " NAME, or " + flag + " NAME,target=/PLACE,uid=1000,mode=0400"
	case "--tmpfs":
		return "--tmpfs /run:size=64m,mode=755"
	case "--env", "--env-file":
		return "-e KEY=VALUE"
	case "--label":
		return "--label KEY=VALUE"
	case "--security-opt":
		return "--security-opt seccomp=profile.json, or --security-opt no-new-privileges"
	case "--device":
		return "--device /dev/fuse, or --device /dev/sda:/dev/xvda:r"
	case "--sysctl":
		return "--sysctl net.ipv4.ip_forward=1"
	case "--publish":
		return "-p 8080:80, or -p 127.0.0.1:8080:80/tcp"
	case "--dns":
		return "--dns 192.0.2.53"
	case "--add-host":
		return "--add-host db:192.0.2.7"
	case "--platform":
		return "--platform linux/arm64"
	case "--health-interval", "--health-timeout", "--health-start-period", "--health-start-interval":
		return flag + " 10s"
	case "--health-retries":
		return "--health-retries 3"
	case "--restart":
		return "--restart on-failure:5, or --restart unless-stopped"
	case "--stop-timeout", "--time":
		return flag + " 30"
	case "--log-opt":
		return "--log-opt max-size=50m"
	case "--tail":
		return "--tail 100"
	case "--since", "--until":
		return flag + " 10m, or " + flag + " 2026-01-31T12:00:00"
	}
	return ""
}

// reading makes the error of one flag's value from what its parser says.
func reading(flag, value string, err error) error {
	if err == nil {
		return nil
	}
	fix := ""
	if x := example(flag); x != "" {
		fix = "for example: " + x
	}
	// A failure that knows its own remedy (a file that cannot be opened) keeps it.
	if e, ok := err.(*errdefs.Error); ok {
		if e.Op != "" {
			return &exit{125, e}
		}
		if e.Fix != "" {
			fix = e.Fix
		}
		return &exit{125, badFlag(flag, value, e.Error(), fix)}
	}
	return &exit{125, badFlag(flag, value, err.Error(), fix)}
}

// config turns the flags into what the engine is asked for. given says whether a flag was given at all.
func (f *containerFlags) config(image string, args []string, given func(string) bool) (engine.Config, error) {
	c := engine.Config{Name: f.name, Image: image, AutoRemove: f.rm}
	c.Args, c.Workdir, c.User, c.GroupAdd = args, f.workdir, f.user, f.groupAdd
	c.Hostname, c.Tty, c.OpenStdin, c.Init = f.hostname, f.tty, f.interactive, f.init
	c.ReadOnly, c.Privileged, c.CapAdd, c.CapDrop = f.readOnly, f.privileged, f.capAdd, f.capDrop
	c.CpusetCpus, c.DNSSearch, c.DNSOptions = f.cpusetCPUs, f.dnsSearch, f.dnsOption
	if f.entrypoint != "" {
		c.Entrypoint = []string{f.entrypoint}
	}
	c.EntrypointSet = given("entrypoint")

	if err := f.names(given); err != nil {
		return c, err
	}
	for _, step := range []func(*engine.Config, func(string) bool) error{
		f.environment, f.limits, f.files, f.security, f.connect, f.life, f.more.into,
	} {
		if err := step(&c, given); err != nil {
			return c, err
		}
	}
	return c, nil
}

// names refuses values that are given and empty where that means nothing. What names something may be empty, as docker's
// scripts have it (--user "$USER_OPTION"): then it counts as not given.
func (f *containerFlags) names(given func(string) bool) error {
	for _, x := range []struct{ flag, value string }{
		{"memory", f.memory},
		{"memory-swap", f.memorySwap},
		{"cpus", f.cpus},
		{"cpu-shares", f.cpuShares},
		{"cpuset-cpus", f.cpusetCPUs},
		{"pids-limit", f.pidsLimit},
		{"oom-score-adj", f.oomScore},
		{"shm-size", f.shmSize},
		{"stop-timeout", f.stopTimeout},
		{"pull", f.pull},
	} {
		if given(x.flag) && x.value == "" {
			return reading("--"+x.flag, "", &errdefs.Error{Why: "the value is empty", Fix: "give a value, or leave --" + x.flag + " out"})
		}
	}
	for _, g := range f.groupAdd {
		if g == "" {
			return reading("--group-add", g, &errdefs.Error{Why: "the value is empty", Fix: "give a group, or leave --group-add out"})
		}
	}
	for _, s := range f.dnsSearch {
		if !searchDomain(s) {
			return reading("--dns-search", s, &errdefs.Error{Why: "it is not a domain", Fix: "for example: --dns-search example.org, or . for none"})
		}
	}
	return nil
}

// searchDomain reports whether s can stand in resolv.conf's search list as docker checks it: "." for none, or labels of
// letters, digits, hyphens and underscores, with a letter somewhere.
func searchDomain(s string) bool {
	if s == "." {
		return true
	}
	letter := false
	for label := range strings.SplitSeq(strings.TrimSuffix(s, "."), ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, r := range label {
			switch {
			case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z':
				letter = true
			case r >= '0' && r <= '9', r == '-', r == '_':
			default:
				return false
			}
		}
	}
	return letter && len(s) <= 255
}

// errorText is an error that is only text.
type errorText string

func (e errorText) Error() string { return string(e) }

func (f *containerFlags) environment(c *engine.Config, _ func(string) bool) error {
	var files, flags []string
	for _, name := range f.envFile {
		b, err := readBounded("--env-file", name)
		if err != nil {
			return &exit{125, err}
		}
		env, err := parseEnvFile(b, os.LookupEnv)
		if err != nil {
			return reading("--env-file", name, err)
		}
		files = append(files, env...)
	}
	for _, s := range f.env {
		kv, err := parseEnv(s, os.LookupEnv)
		if err != nil {
			return reading("--env", s, err)
		}
		flags = append(flags, kv)
	}
	c.Env = mergeEnv(files, flags)
	for _, s := range f.label {
		k, v, err := parseKeyValue(s, true)
		if err != nil {
			return reading("--label", s, err)
		}
		if c.Labels == nil {
			c.Labels = make(map[string]string)
		}
		c.Labels[k] = v
	}
	return nil
}

func (f *containerFlags) limits(c *engine.Config, _ func(string) bool) error {
	var err error
	size := func(flag, value string, p *int64) {
		if err == nil && value != "" {
			*p, err = parseSize(value)
			err = reading(flag, value, err)
		}
	}
	number := func(flag, value string, min, max int64) (n int64) {
		if err == nil && value != "" {
			n, err = parseInt(value, min, max)
			err = reading(flag, value, err)
		}
		return n
	}
	size("--memory", f.memory, &c.Memory)
	if f.memorySwap == "-1" {
		c.MemorySwap = -1
	} else {
		size("--memory-swap", f.memorySwap, &c.MemorySwap)
	}
	size("--shm-size", f.shmSize, &c.ShmSize)
	if err == nil && f.cpus != "" {
		c.NanoCPUs, err = parseCPUs(f.cpus)
		err = reading("--cpus", f.cpus, err)
	}
	c.CPUShares = uint64(number("--cpu-shares", f.cpuShares, 2, 262144))
	c.PidsLimit = number("--pids-limit", f.pidsLimit, -1, 4194304)
	if err == nil && f.pidsLimit != "" && c.PidsLimit == 0 {
		err = reading("--pids-limit", f.pidsLimit, errorText("a container without any process could never run"))
	}
	if f.oomScore != "" {
		n := int(number("--oom-score-adj", f.oomScore, -1000, 1000))
		c.OomScoreAdj = &n
	}
	if err != nil {
		return err
	}
	if f.cpusetCPUs != "" {
		if err := parseCPUSet(f.cpusetCPUs); err != nil {
			return reading("--cpuset-cpus", f.cpusetCPUs, err)
		}
	}
	for _, s := range f.ulimit {
		u, err := parseUlimit(s)
		if err != nil {
			return reading("--ulimit", s, err)
		}
		for _, other := range c.Ulimits {
			if other.Name == u.Name {
				return reading("--ulimit", s, errorText("the limit is given more than once"))
			}
		}
		c.Ulimits = append(c.Ulimits, u)
	}
	for _, s := range f.sysctl {
		k, v, err := parseKeyValue(s, false)
		if err != nil {
			return reading("--sysctl", s, err)
		}
		if c.Sysctls == nil {
			c.Sysctls = make(map[string]string)
		}
		c.Sysctls[k] = v
	}
	return nil
}

func (f *containerFlags) files(c *engine.Config, _ func(string) bool) error {
	cwd := ""
	if len(f.volume)+len(f.mount) > 0 {
		var err error
		if cwd, err = os.Getwd(); err != nil {
			return &exit{125, &errdefs.Error{
				Op: "find", What: "the working directory", Kind: errdefs.NotFound, Err: err,
				Why: "relative paths of -v and --mount begin there", Fix: "cd to a directory that exists",
			}}
		}
	}
	taken := make(map[string]string)
	add := func(flag, value string, m spec.Mount, err error) error {
		if err != nil {
			return reading(flag, value, err)
		}
		if other, ok := taken[m.Target]; ok {
			return reading(flag, value, errorText("the path "+m.Target+" already holds "+other))
		}
		taken[m.Target] = flag + "=" + value
		c.Mounts = append(c.Mounts, m)
		return nil
	}
	for _, s := range f.volume {
		m, err := parseVolume(s, cwd)
		if err = add("--volume", s, m, err); err != nil {
			return err
		}
	}
	for _, s := range f.mount {
		m, err := parseMount(s, cwd)
		if err = add("--mount", s, m, err); err != nil {
			return err
		}
	}
	if f.volumeDriver != "" && f.volumeDriver != volume.Driver {
		return reading("--volume-driver", f.volumeDriver, &errdefs.Error{Why: "there is no such volume driver", Fix: "use --volume-driver local"})
	}
	for _, s := range f.volumesFrom {
		if s == "" || s[0] == ':' {
			return reading("--volumes-from", s, &errdefs.Error{Why: "it names no container", Fix: "write CONTAINER or CONTAINER:ro"})
		}
		c.VolumesFrom = append(c.VolumesFrom, s)
	}
	for _, s := range f.tmpfs {
		m, err := parseTmpfs(s)
		if err = add("--tmpfs", s, m, err); err != nil {
			return err
		}
	}
	for _, x := range []struct {
		kind secret.Kind
		list []string
	}{{secret.Secret, f.secrets}, {secret.Config, f.configs}} {
		for _, s := range x.list {
			r, err := parseSecret(x.kind, s)
			if err != nil {
				return reading("--"+string(x.kind), s, err)
			}
			c.Secrets = append(c.Secrets, r)
		}
	}
	for _, s := range f.device {
		d, err := parseDevice(s)
		if err != nil {
			return reading("--device", s, err)
		}
		c.Devices = append(c.Devices, d)
	}
	return nil
}

func (f *containerFlags) security(c *engine.Config, _ func(string) bool) error {
	var sec security
	for _, s := range f.securityOpt {
		err := parseSecurityOpt(s, &sec, func(path string) ([]byte, error) {
			b, err := readBounded("--security-opt seccomp", path)
			if e := errdefs.As(err); e != nil {
				return nil, e // keeps its own remedy
			}
			return b, nil
		})
		if err != nil {
			return reading("--security-opt", s, err)
		}
	}
	c.NoNewPrivileges, c.Seccomp = sec.noNewPrivileges, sec.seccomp
	return nil
}

func (f *containerFlags) connect(c *engine.Config, _ func(string) bool) error {
	if err := f.networks(c); err != nil {
		return err
	}
	var ports []network.Port
	for _, s := range f.publish {
		p, err := network.ParsePort(s)
		if err != nil {
			return reading("--publish", s, err)
		}
		ports = append(ports, p...)
	}
	c.Ports = ports
	if len(ports) > 0 && len(c.Links) == 0 && c.Network != "bridge" {
		return reading("--publish", strings.Join(f.publish, " "), &errdefs.Error{
			Why: "with --network " + c.Network + " there is no network of its own whose ports could be published",
			Fix: "leave -p out, or use --network bridge",
		})
	}
	for _, s := range f.dns {
		ip, err := parseDNS(s)
		if err != nil {
			return reading("--dns", s, err)
		}
		c.DNS = append(c.DNS, ip)
	}
	for _, s := range f.addHost {
		h, err := parseExtraHost(s)
		if err != nil {
			return reading("--add-host", s, err)
		}
		c.ExtraHosts = append(c.ExtraHosts, h)
	}
	return nil
}

func (f *containerFlags) life(c *engine.Config, given func(string) bool) error {
	if f.stopSignal != "" {
		if _, err := spec.ParseSignal("--stop-signal", f.stopSignal); err != nil {
			return &exit{125, err}
		}
		c.StopSignal = f.stopSignal
	}
	if f.stopTimeout != "" {
		n, err := parseInt(f.stopTimeout, 0, 1<<31-1)
		if err != nil {
			return reading("--stop-timeout", f.stopTimeout, err)
		}
		seconds := int(n)
		c.StopTimeout = &seconds
	}
	p, err := parseRestart(f.restart)
	if err == nil && f.rm && p.Restarts() {
		err = &errdefs.Error{Why: "it contradicts --rm: what is removed when it ends cannot be started again", Fix: "drop --rm or --restart"}
	}
	if err != nil {
		return reading("--restart", f.restart, err)
	}
	c.Restart = p
	if err := f.health(c, given); err != nil {
		return err
	}
	switch f.pull {
	case "", "missing", "always", "never":
		c.Pull = f.pull
	default:
		return reading("--pull", f.pull, &errdefs.Error{Why: "there is no such policy", Fix: "use always, missing or never"})
	}
	if f.platform != "" {
		p, err := parsePlatform(f.platform)
		if err != nil {
			return reading("--platform", f.platform, err)
		}
		c.Platform = p
	}
	if f.runtime != "" {
		c.Runtime = []string{f.runtime}
	}
	switch f.logDriver {
	case "", "local":
		c.Log.Driver = "local"
	case "none":
		c.Log.Driver = "none"
	case "json-file":
		c.Log.Driver = "json-file"
	default:
		return reading("--log-driver", f.logDriver, &errdefs.Error{Why: "there is no such log driver", Fix: "use local, json-file or none"})
	}
	for _, s := range f.logOpt {
		if c.Log.Driver == "none" {
			return reading("--log-opt", s, &errdefs.Error{Why: "--log-driver none keeps no log that could have a size", Fix: "leave one of them out"})
		}
		if err := parseLogOpt(s, &c.Log.MaxSize, &c.Log.MaxFiles); err != nil {
			return reading("--log-opt", s, err)
		}
	}
	return nil
}

// streams are the standard streams that a client is attached to.
type streams struct{ in, out, err bool }

// attached reads -a, -i and -t together: without -a, stdout and stderr, and stdin with -i.
func (f *containerFlags) attached() (streams, error) {
	if len(f.attach) == 0 {
		return streams{in: f.interactive, out: true, err: true}, nil
	}
	var s streams
	for _, name := range f.attach {
		switch strings.ToLower(name) {
		case "stdin":
			s.in = true
		case "stdout":
			s.out = true
		case "stderr":
			s.err = true
		default:
			return s, reading("--attach", name, &errdefs.Error{Why: "there is no such stream", Fix: "use stdin, stdout or stderr"})
		}
	}
	return s, nil
}

// parseCPUSet checks cpuset(7)'s list format; the engine compares it with the processors that there are.
func parseCPUSet(s string) error {
	for _, part := range strings.Split(s, ",") {
		first, last, ranged := strings.Cut(part, "-")
		a, err := parseInt(first, 0, 1<<20)
		if err != nil {
			return errorText("a set of processors is a list of numbers and ranges")
		}
		if !ranged {
			continue
		}
		b, err := parseInt(last, 0, 1<<20)
		if err != nil {
			return errorText("a set of processors is a list of numbers and ranges")
		}
		if b < a {
			return errorText("the range " + part + " ends before it begins")
		}
	}
	return nil
}
