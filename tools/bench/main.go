// Bench runs Onggi beside the runtimes and engines of Debian's packages, interleaved in one run, and prints minimum,
// median and their ratios to ours, as Markdown, and at the end what was aimed at and what was reached. `make bench`
// starts it (scripts/bench) in a private mount and network namespace, so that daemons and bridges of the peers touch
// nothing of the host.
//
//	bench [-n N] [-only runtime,exec,engine,phases,hundred,many,memory,logs,pull,images,build] -bin DIR [-old DIR] -work DIR
//
// With -old another build of ours takes part in every race, as "onggi (old)": a change is judged beside what it
// changes, in the same minute.
//
// A peer that is not installed, or that fails, is left out with a line that says so: it never ends the run.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

type bench struct {
	bin, old, work string
	n              int
	env            []string
	prefix         map[string][]string // the engines' command lines, once they are ready
	daemons        []*exec.Cmd
	aims           []string // rows of the last table
}

func main() {
	b := &bench{}
	all := "runtime,exec,engine,phases,hundred,many,memory,logs,pull,images,build"
	only := flag.String("only", all, "sections")
	flag.StringVar(&b.bin, "bin", "bin", "where onggi and onggi-runtime are")
	flag.StringVar(&b.old, "old", "", "where another build of them is, to be raced against")
	flag.StringVar(&b.work, "work", "", "an empty directory for stores and bundles")
	flag.IntVar(&b.n, "n", 21, "repetitions; the slow sections take a fraction of it")
	flag.Parse()
	if b.work == "" {
		fmt.Fprintln(os.Stderr, "bench: -work is needed")
		os.Exit(2)
	}
	b.bin, _ = filepath.Abs(b.bin)
	if b.old != "" {
		b.old, _ = filepath.Abs(b.old)
	}
	b.env = append(os.Environ(), "ONGGI_ROOT="+b.dir("onggi"), "ONGGI_RUN_ROOT="+b.run("onggi"),
		"CONTAINERS_CONF="+b.podmanConf())
	sections := map[string]func(){
		"runtime": b.runtime, "exec": b.execs, "engine": b.engine, "phases": b.phases, "hundred": b.hundred,
		"logs": b.logs, "memory": b.memory, "many": b.many, "pull": b.pull, "images": b.images, "build": b.builds,
	}
	for _, s := range strings.Split(*only, ",") {
		if sections[s] == nil {
			fmt.Fprintf(os.Stderr, "bench: no section %q: they are %s\n", s, all)
			os.Exit(2)
		}
	}
	defer b.stop()
	b.host()
	for _, s := range strings.Split(*only, ",") {
		sections[s]()
	}
	if len(b.aims) > 0 {
		fmt.Printf("\n## Aims\n\n| aim | reached | |\n|---|---|---|\n%s\n", strings.Join(b.aims, "\n"))
	}
}

// host prints what the figures were taken on.
func (b *bench) host() {
	rel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	load, _ := os.ReadFile("/proc/loadavg")
	cpu, mem := "", ""
	if raw, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		_, after, _ := strings.Cut(string(raw), "model name")
		line, _, _ := strings.Cut(after, "\n")
		cpu = strings.TrimLeft(line, "\t: ")
	}
	if raw, err := os.ReadFile("/proc/meminfo"); err == nil {
		if f := strings.Fields(string(raw)); len(f) > 1 {
			kb, _ := strconv.Atoi(f[1])
			mem = fmt.Sprintf("%d GiB", (kb+1<<19)>>20)
		}
	}
	groups := "cgroup v1"
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		groups = "cgroup v2"
	}
	fmt.Printf("%s; %d x %s, %s; kernel %s, %s; load %s when it began, n=%d\n\n", time.Now().UTC().Format("2006-01-02 15:04 UTC"),
		runtime.NumCPU(), cpu, mem, strings.TrimSpace(string(rel)), groups, strings.Fields(string(load))[0], b.n)
	for _, v := range [][]string{{b.onggi(), "version"}, {"runc", "--version"}, {"crun", "--version"}, {"podman", "--version"}, {"dockerd", "--version"}, {"containerd", "--version"}} {
		if out, err := exec.Command(v[0], v[1:]...).Output(); err == nil {
			line, _, _ := strings.Cut(string(out), "\n")
			if v[0] == b.onggi() {
				line = "onggi " + strings.TrimSpace(strings.TrimPrefix(line, "Version:"))
			}
			fmt.Println("-", line)
		}
	}
}

func (b *bench) onggi() string        { return filepath.Join(b.bin, "onggi") }
func (b *bench) onggiRuntime() string { return filepath.Join(b.bin, "onggi-runtime") }

func (b *bench) dir(name string) string {
	p := filepath.Join(b.work, name)
	must(os.MkdirAll(p, 0o700))
	return p
}

// run is a directory for what does not outlive a reboot: in memory, where /run is on every host (scripts/bench mounts it).
func (b *bench) run(name string) string { return b.dir(filepath.Join("run", name)) }

// podmanConf: this kind of host may not raise hard limits, and podman asks for more by default.
func (b *bench) podmanConf() string {
	p := filepath.Join(b.work, "containers.conf")
	must(os.WriteFile(p, []byte("[containers]\ndefault_ulimits = [\"nofile=1024:4096\",\"nproc=1024:4096\"]\n"), 0o600))
	return p
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// contender is one way of doing the same thing.
type contender struct {
	name    string
	argv    []string
	deed    func() error // instead of argv
	prepare func() error // before each run, not timed
	after   func() error // after each run, not timed
	err     error
	times   []time.Duration
}

// aim is what a race is measured by: to be times faster than the fastest of some, or to take no longer than limit.
type aim struct {
	than  []string
	times float64
	limit time.Duration
}

// race runs the contenders in turn, n times, and prints the table. The first is ours.
func (b *bench) race(title string, n int, aims []aim, cs ...*contender) {
	for _, c := range cs { // one warm-up each, and a first look at whether it works
		b.one(c)
		c.times = nil
	}
	b.rounds(n, cs...)
	b.table(title, aims, cs...)
}

func (b *bench) rounds(n int, cs ...*contender) {
	for range n {
		for _, c := range cs {
			if len(c.times) < 3 || sum(c.times) < bound {
				b.one(c)
			}
		}
	}
}

// bound is the time after which a contender is not run again in a table: podman's list of 1,000 images takes minutes.
const bound = time.Minute

func sum(times []time.Duration) (all time.Duration) {
	for _, t := range times {
		all += t
	}
	return all
}

// one runs a contender once, unless it has failed before.
func (b *bench) one(c *contender) {
	if c.err != nil || c.argv == nil && c.deed == nil {
		return
	}
	if c.prepare != nil {
		if c.err = c.prepare(); c.err != nil {
			return
		}
	}
	deed := c.deed
	if deed == nil {
		// A file, not a pipe: nobody is waited for who has inherited it.
		said, err := os.Create(filepath.Join(b.work, "stderr"))
		must(err)
		defer said.Close()
		cmd := b.command(c.argv)
		cmd.Stderr = said
		deed = func() error {
			err := cmd.Run()
			if err != nil {
				raw, _ := os.ReadFile(said.Name())
				err = fmt.Errorf("%w: %s", err, lastLine(string(raw)))
			}
			return err
		}
	}
	start := time.Now()
	c.err = deed()
	c.times = append(c.times, time.Since(start))
	if c.after != nil {
		if err := c.after(); c.err == nil {
			c.err = err
		}
	}
}

func lastLine(s string) string {
	l := strings.Split(strings.TrimSpace(s), "\n")
	return l[len(l)-1]
}

func (b *bench) table(title string, aims []aim, cs ...*contender) {
	fmt.Printf("\n### %s\n\n| | min | median | min / ours | median / ours |\n|---|---|---|---|---|\n", title)
	medians := map[string]time.Duration{}
	var least, median time.Duration // ours
	for i, c := range cs {
		if c.err != nil || len(c.times) == 0 {
			why := "not run"
			if c.err != nil {
				why = c.err.Error()
			}
			fmt.Printf("| %s | | | | left out: %s |\n", c.name, strings.ReplaceAll(why, "|", "/"))
			continue
		}
		t := slices.Sorted(slices.Values(c.times))
		med := t[len(t)/2]
		medians[c.name] = med
		if i == 0 {
			least, median = t[0], med
		}
		by := func(a, b time.Duration) string {
			if b == 0 {
				return "-"
			}
			return fmt.Sprintf("%.2f", float64(a)/float64(b))
		}
		fmt.Printf("| %s | %s | %s | %s | %s |\n", c.name, ms(t[0]), ms(med), by(t[0], least), by(med, median))
	}
	for _, a := range aims {
		b.judge(title, a, medians, median)
	}
}

// verdict notes whether an aim is met.
func (b *bench) verdict(title, aim, reached string, met bool) {
	short := "missed"
	if met {
		short = "met"
	}
	fmt.Printf("\nAim: %s: reached %s: %s.\n", aim, reached, short)
	b.aims = append(b.aims, fmt.Sprintf("| %s: %s | %s | %s |", title, aim, reached, short))
}

// judge says whether an aim is met, at the medians.
func (b *bench) judge(title string, a aim, medians map[string]time.Duration, ours time.Duration) {
	row := func(aim, reached string, met bool, short string) {
		if met {
			short = "met"
		}
		fmt.Printf("\nAim: %s: reached %s: %s.\n", aim, reached, short)
		b.aims = append(b.aims, fmt.Sprintf("| %s: %s | %s | %s |", title, aim, reached, short))
	}
	if ours == 0 {
		row("any", "nothing: it did not run", false, "missed")
		return
	}
	if a.limit > 0 {
		row("at most "+ms(a.limit), ms(ours), ours <= a.limit, fmt.Sprintf("missed by %.0f %%", 100*(float64(ours)/float64(a.limit)-1)))
		return
	}
	var best time.Duration
	name := ""
	for _, n := range a.than {
		if m := medians[n]; m > 0 && (best == 0 || m < best) {
			best, name = m, n
		}
	}
	if best == 0 {
		return // there is nobody to compare with
	}
	reached := float64(best) / float64(ours)
	than := a.than[0]
	if len(a.than) > 1 {
		than = "the fastest of " + strings.Join(a.than, ", ")
	}
	row(fmt.Sprintf("%g x faster than %s", a.times, than), fmt.Sprintf("%.1f x (%s)", reached, name), reached >= a.times,
		fmt.Sprintf("missed: it would take %s", ms(time.Duration(float64(best)/a.times))))
}

func ms(d time.Duration) string {
	if d > 2*time.Second {
		return fmt.Sprintf("%.2f s", d.Seconds())
	}
	return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
}

// bundle makes an OCI bundle of busybox that runs args, with or without docker's default seccomp profile.
func (b *bench) bundle(name string, seccomp bool, args ...string) string {
	dir := b.dir("bundle-" + name)
	b.busybox(filepath.Join(dir, "rootfs"))
	out, err := exec.Command("runc", "spec", "--bundle", dir).CombinedOutput()
	if err != nil && !bytes.Contains(out, []byte("exists")) {
		// Without runc our own template will do; it is the same document.
		if out, err = exec.Command(b.onggiRuntime(), "spec", "--bundle", dir).CombinedOutput(); err != nil {
			must(fmt.Errorf("spec: %w: %s", err, out))
		}
	}
	path := filepath.Join(dir, "config.json")
	raw, err := os.ReadFile(path)
	must(err)
	var spec map[string]any
	must(json.Unmarshal(raw, &spec))
	spec["ociVersion"] = "1.0.2" // crun 1.8 refuses later ones
	p := spec["process"].(map[string]any)
	p["args"], p["terminal"] = args, false
	delete(p, "rlimits")
	if seccomp {
		profile, err := os.ReadFile(filepath.Join(b.work, "seccomp.json"))
		must(err)
		var s any
		must(json.Unmarshal(profile, &s))
		spec["linux"].(map[string]any)["seccomp"] = s
	}
	raw, _ = json.Marshal(spec)
	must(os.WriteFile(path, raw, 0o600))
	return dir
}

func (b *bench) busybox(root string) {
	bin := filepath.Join(root, "bin")
	must(os.MkdirAll(bin, 0o755))
	for _, d := range []string{"proc", "sys", "dev", "tmp", "etc"} {
		must(os.MkdirAll(filepath.Join(root, d), 0o755))
	}
	data, err := os.ReadFile("/bin/busybox")
	must(err)
	must(os.WriteFile(filepath.Join(bin, "busybox"), data, 0o755))
	for _, l := range []string{"sh", "true", "sleep", "cat", "echo", "head", "yes", "dd"} {
		_ = os.Symlink("busybox", filepath.Join(bin, l))
	}
}

// ours returns our contenders: this build, and the other one if there is one.
func (b *bench) ours(program, name string, args func(binary string) []string) []*contender {
	out := []*contender{{name: name, argv: args(filepath.Join(b.bin, program))}}
	if b.old != "" {
		out = append(out, &contender{name: name + " (old)", argv: args(filepath.Join(b.old, program))})
	}
	return out
}

func (b *bench) runtime() {
	must(writeProfile(filepath.Join(b.work, "seccomp.json")))
	for _, sec := range []bool{false, true} {
		name, title := "plain", "OCI runtime: run true, no seccomp"
		aims := []aim{{than: []string{"crun"}, times: 3}, {than: []string{"runc"}, times: 6}}
		if sec {
			name, title = "seccomp", "OCI runtime: run true, docker's default seccomp profile"
			aims = []aim{{than: []string{"crun"}, times: 4}, {than: []string{"runc"}, times: 8}}
		}
		dir := b.bundle(name, sec, "true")
		run := func(bin string) []string {
			return []string{bin, "--root", b.run("state-" + filepath.Base(bin)), "run", "--bundle", dir, "bench-" + filepath.Base(bin)}
		}
		b.race(title, b.n*2, aims, append(b.ours("onggi-runtime", "onggi-runtime", run),
			&contender{name: "crun", argv: run("crun")}, &contender{name: "runc", argv: run("runc")})...)
	}
	version := func(bin string) []string { return []string{bin, "--version"} }
	b.race("a process that prints its version", b.n*2, nil, append(b.ours("onggi-runtime", "onggi-runtime --version", version),
		&contender{name: "onggi version", argv: []string{b.onggi(), "version"}},
		&contender{name: "crun --version", argv: version("crun")},
		&contender{name: "runc --version", argv: version("runc")},
		&contender{name: "/bin/true", argv: []string{"/bin/true"}})...)
}

func (b *bench) execs() {
	must(writeProfile(filepath.Join(b.work, "seccomp.json")))
	dir := b.bundle("sleep", true, "sleep", "600")
	bins := []string{b.onggiRuntime(), "crun", "runc"}
	if b.old != "" {
		bins = slices.Insert(bins, 1, filepath.Join(b.old, "onggi-runtime"))
	}
	var cs []*contender
	for i, bin := range bins {
		root, id := b.run("state-exec"+strconv.Itoa(i)), "bench-exec"+strconv.Itoa(i)
		cmd := b.command([]string{bin, "--root", root, "run", "--detach", "--bundle", dir, id})
		err := cmd.Run()
		c := &contender{name: filepath.Base(bin), err: err}
		if b.old != "" && i == 1 {
			c.name += " (old)"
		}
		if err == nil {
			c.argv = []string{bin, "--root", root, "exec", id, "true"}
			defer func() { _ = exec.Command(bin, "--root", root, "delete", "--force", id).Run() }()
		}
		cs = append(cs, c)
	}
	b.race("OCI runtime: exec true in a running container, docker's default seccomp profile", b.n*2, nil, cs...)
	for i, c := range cs {
		if c.argv != nil {
			c.argv = []string{c.argv[0], c.argv[1], c.argv[2], "state", "bench-exec" + strconv.Itoa(i)}
			c.times, c.err = nil, nil
		}
	}
	b.race("OCI runtime: state", b.n*2, nil, cs...)
}

// engines returns a command line prefix per engine, with its image "bench" ready.
func (b *bench) engines() map[string][]string {
	if b.prefix != nil {
		return b.prefix
	}
	tar := filepath.Join(b.work, "busybox.tar")
	b.busybox(filepath.Join(b.work, "busybox-root"))
	must(exec.Command("tar", "-C", filepath.Join(b.work, "busybox-root"), "-cf", tar, ".").Run())
	b.prefix = map[string][]string{"onggi": {b.onggi()}}
	if b.old != "" {
		b.prefix["onggi (old)"] = []string{filepath.Join(b.old, "onggi")}
	}
	if _, err := exec.LookPath("podman"); err == nil {
		b.prefix["podman"] = b.podman("podman")
	}
	if docker, err := b.startDocker("docker"); err != nil {
		fmt.Println("docker is left out:", err)
	} else {
		b.prefix["docker"] = docker
	}
	for name, argv := range b.prefix {
		if out, err := b.command(slices.Concat(argv, []string{"import", tar, "bench:latest"})).CombinedOutput(); err != nil {
			fmt.Printf("%s is left out: import: %v: %s\n", name, err, lastLine(string(out)))
			delete(b.prefix, name)
		}
	}
	// ctr cannot import a bare tree; it gets docker's image.
	if docker, ok := b.prefix["docker"]; ok {
		saved := filepath.Join(b.work, "saved.tar")
		ctr, err := b.startContainerd("containerd")
		if err == nil {
			err = b.command(slices.Concat(docker, []string{"save", "-o", saved, "bench:latest"})).Run()
		}
		if err == nil {
			err = b.command(slices.Concat(ctr, []string{"images", "import", saved})).Run()
		}
		if err != nil {
			fmt.Println("containerd is left out:", err)
		} else {
			b.prefix["ctr"] = ctr
		}
	}
	return b.prefix
}

func (b *bench) podman(store string) []string {
	return []string{
		"podman", "--root", b.dir(store), "--runroot", b.run(store), "--tmpdir", b.run(store + "-tmp"),
		"--cgroup-manager", "cgroupfs", "--events-backend", "file", "--runtime", "crun",
	}
}

// order is who races whom, ours first.
func (b *bench) order() []string {
	if b.old != "" {
		return []string{"onggi", "onggi (old)", "podman", "docker"}
	}
	return []string{"onggi", "podman", "docker"}
}

func (b *bench) command(argv []string) *exec.Cmd {
	c := exec.Command(argv[0], argv[1:]...)
	c.Env = b.env
	return c
}

// daemon starts a server that ends with us, and waits until probe succeeds.
func (b *bench) daemon(log string, argv []string, probe func() bool) error {
	out, err := os.Create(filepath.Join(b.work, log))
	must(err)
	defer out.Close()
	c := b.command(argv)
	c.Stdout, c.Stderr = out, out
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := c.Start(); err != nil {
		return err
	}
	b.daemons = append(b.daemons, c)
	for range 150 {
		if probe() {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	raw, _ := os.ReadFile(out.Name())
	return fmt.Errorf("%s did not answer within 15 s: %s", argv[0], lastLine(string(raw)))
}

// startDocker starts a dockerd with a store of its own, and returns its command line.
func (b *bench) startDocker(store string, more ...string) ([]string, error) {
	sock := "unix://" + b.work + "/" + store + ".sock"
	docker := []string{"docker", "-H", sock}
	err := b.daemon(store+".log", slices.Concat([]string{
		"dockerd", "--data-root", b.dir(store), "--exec-root", b.run(store + "-exec"), "-H", sock,
		"-p", b.work + "/" + store + ".pid", "--default-ulimit", "nofile=1024:4096", "--insecure-registry", "127.0.0.0/8",
	}, more),
		func() bool { return b.command(append(slices.Clone(docker), "version")).Run() == nil })
	return docker, err
}

// startContainerd is the same for containerd and ctr.
func (b *bench) startContainerd(store string) ([]string, error) {
	dir := b.dir(store)
	conf, sock := filepath.Join(dir, "config.toml"), filepath.Join(dir, "c.sock")
	text := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n", dir+"/root", b.run(store), sock)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return nil, err
	}
	ctr := []string{"ctr", "--address", sock}
	err := b.daemon(store+".log", []string{"containerd", "--config", conf},
		func() bool { return b.command(append(slices.Clone(ctr), "version")).Run() == nil })
	return ctr, err
}

// stop ends the daemons, the youngest first.
func (b *bench) stop() { b.stopTo(0) }

// stopTo ends the daemons but the first n.
func (b *bench) stopTo(n int) {
	for len(b.daemons) > n {
		c := b.daemons[len(b.daemons)-1]
		b.daemons = b.daemons[:len(b.daemons)-1]
		_ = c.Process.Signal(syscall.SIGTERM)
		done := make(chan struct{})
		go func() { _ = c.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			_ = syscall.Kill(-c.Process.Pid, syscall.SIGKILL)
		}
	}
}

// each makes a contender for each engine that is there.
func (b *bench) each(args func(engine string) []string) []*contender {
	e := b.engines()
	var cs []*contender
	for _, name := range b.order() {
		c := &contender{name: name}
		if argv, ok := e[name]; ok {
			c.argv = slices.Concat(argv, args(name))
		}
		cs = append(cs, c)
	}
	return cs
}

const busyboxImage = "docker.io/library/bench:latest" // ctr's name of it

func (b *bench) engine() {
	e := b.engines()
	for _, net := range []string{"none", "bridge"} {
		cs := b.each(func(string) []string { return []string{"run", "--rm", "--network", net, "bench:latest", "true"} })
		aims := []aim{{than: []string{"podman", "docker"}, times: 20}, {limit: 30 * time.Millisecond}}
		if net == "bridge" {
			aims[1].limit = 40 * time.Millisecond
		}
		if ctr, ok := e["ctr"]; ok && net == "none" {
			id := 0
			c := &contender{name: "ctr (no log, no hosts file)"}
			c.prepare = func() error {
				id++
				c.argv = slices.Concat(ctr, []string{"run", "--rm", "--seccomp", busyboxImage, "b" + strconv.Itoa(id), "true"})
				return nil
			}
			c.argv = ctr
			cs = append(cs, c)
		}
		b.race("engine: run --rm true, network "+net, b.n, aims, cs...)
	}
	cs := b.each(func(string) []string { return []string{"exec", "bench-exec", "true"} })
	for i, c := range cs {
		if c.argv == nil {
			continue
		}
		argv := e[c.name]
		id := "bench-exec" + strconv.Itoa(i)
		if out, err := b.command(slices.Concat(argv, []string{"run", "-d", "--network", "none", "--name", id, "bench:latest", "sleep", "600"})).CombinedOutput(); err != nil {
			c.err = fmt.Errorf("%w: %s", err, lastLine(string(out)))
			continue
		}
		c.argv = slices.Concat(argv, []string{"exec", id, "true"})
		defer func() { _ = b.command(slices.Concat(argv, []string{"rm", "-f", id})).Run() }()
	}
	b.race("engine: exec true", b.n, []aim{{than: []string{"podman", "docker"}, times: 10}}, cs...)
	b.race("engine: ps", b.n, nil, b.each(func(string) []string { return []string{"ps"} })...)
}

// phases prints where the time of one of our starts goes: the one of the median.
func (b *bench) phases() {
	argv := b.engines()["onggi"]
	for _, net := range []string{"none", "bridge"} {
		type start struct {
			took time.Duration
			text []byte
		}
		var starts []start
		for range b.n {
			began := time.Now()
			out, err := b.command(slices.Concat(argv, []string{"run", "--rm", "--timing", "--network", net, "bench:latest", "true"})).CombinedOutput()
			if err != nil {
				fmt.Println("phases are left out:", err, lastLine(string(out)))
				return
			}
			starts = append(starts, start{time.Since(began), out})
		}
		slices.SortFunc(starts, func(a, b start) int { return int(a.took - b.took) })
		m := starts[len(starts)/2]
		fmt.Printf("\n### phases of one `onggi run --rm --timing --network %s` (%s of %d, the median)\n\n```\n%s```\n", net, ms(m.took), b.n, m.text)
	}
}

// hundred starts 100 containers, 16 commands at a time, and removes them with one.
func (b *bench) hundred() {
	e := b.engines()
	var starts, removals []*contender
	pss := map[string][]string{}
	add := func(name, engine string, width int) {
		argv, ok := e[engine]
		s, r := &contender{name: name}, &contender{name: name}
		starts, removals = append(starts, s), append(removals, r)
		if !ok {
			return
		}
		s.deed = func() error { return b.manyStarts(argv, width) }
		s.after = func() error {
			time.Sleep(3 * time.Second) // for the memory, not for the time: a monitor settles
			pss[name] = b.supervisors(engine)
			b.one(r)
			return r.err
		}
		r.deed = func() error {
			args := slices.Concat(argv, []string{"rm", "-f"})
			if engine == "podman" {
				args = append(args, "-t", "0") // it would wait ten seconds for a sleep that ignores SIGTERM
			}
			for i := range 100 {
				args = append(args, "h"+strconv.Itoa(i))
			}
			out, err := b.command(args).CombinedOutput()
			if err != nil {
				err = fmt.Errorf("%w: %s", err, lastLine(string(out)))
			}
			return err
		}
	}
	for _, name := range b.order() {
		add(name, name, 16)
	}
	add("onggi, all 100 commands at once", "onggi", 100)
	n := max(3, b.n/7)
	b.rounds(n, starts...)
	b.table(fmt.Sprintf("engine: 100 containers started, 16 commands at a time (%d rounds)", n), []aim{{limit: 1500 * time.Millisecond}}, starts...)
	b.table(fmt.Sprintf("engine: those 100 removed by one rm -f (%d rounds)", n), []aim{{limit: time.Second}}, removals...)
	fmt.Printf("\n### memory of what watches those 100\n\n| | processes | Pss, KiB, each |\n|---|---|---|\n")
	for _, s := range starts {
		for _, row := range pss[s.name] {
			fmt.Printf("| %s%s\n", s.name, row)
		}
	}
}

func (b *bench) manyStarts(argv []string, width int) error {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed error
	ids := make(chan int)
	for range width {
		wg.Go(func() {
			for i := range ids {
				cmd := b.command(slices.Concat(argv, []string{"run", "-d", "--network", "none", "--name", "h" + strconv.Itoa(i), "bench:latest", "sleep", "600"}))
				said, err := os.CreateTemp(b.work, "many")
				if err == nil {
					cmd.Stderr = said
					err = cmd.Run()
					if err != nil {
						raw, _ := os.ReadFile(said.Name())
						err = fmt.Errorf("%w: %s", err, lastLine(string(raw)))
					}
					_ = said.Close()
					_ = os.Remove(said.Name())
				}
				if err != nil {
					mu.Lock()
					failed = err
					mu.Unlock()
				}
			}
		})
	}
	for i := range 100 {
		ids <- i
	}
	close(ids)
	wg.Wait()
	return failed
}

// supervisors returns table rows with the proportional memory of the engine's supervisors (monitor, conmon, shim) and
// daemons, of those that live in our mount namespace: others on this machine are not ours.
func (b *bench) supervisors(engine string) []string {
	want := map[string][]string{
		"onggi": {"onggi-runtime"}, "onggi (old)": {"onggi-runtime"}, "podman": {"conmon"},
		"docker": {"containerd-shim", "dockerd", "containerd"},
	}[engine]
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	here, _ := os.Readlink("/proc/self/ns/mnt")
	sum, count := map[string]int{}, map[string]int{}
	for _, d := range dirs {
		raw, _ := os.ReadFile(d + "/comm")
		comm := strings.TrimSpace(string(raw))
		if there, _ := os.Readlink(d + "/ns/mnt"); there != here {
			continue
		}
		if cmdline, _ := os.ReadFile(d + "/cmdline"); engine == "docker" && !bytes.Contains(cmdline, []byte(b.work+"/docker")) {
			continue
		}
		for _, w := range want {
			if comm != w {
				continue
			}
			smaps, err := os.ReadFile(d + "/smaps_rollup")
			if err != nil {
				continue
			}
			for _, l := range strings.Split(string(smaps), "\n") {
				if f := strings.Fields(l); len(f) > 1 && f[0] == "Pss:" {
					kb, _ := strconv.Atoi(f[1])
					sum[w] += kb
					count[w]++
				}
			}
		}
	}
	var rows []string
	for _, w := range want {
		if count[w] > 0 {
			rows = append(rows, fmt.Sprintf(", %s | %d | %.0f |", w, count[w], float64(sum[w])/float64(count[w])))
		}
	}
	return rows
}

// memory tells what watches a single container.
func (b *bench) memory() {
	e := b.engines()
	fmt.Printf("\n### memory of what watches a single idle container, 3 s after its start\n\n| | processes | Pss, KiB, each |\n|---|---|---|\n")
	for _, name := range b.order() {
		argv, ok := e[name]
		if !ok {
			continue
		}
		if b.command(slices.Concat(argv, []string{"run", "-d", "--network", "none", "--name", "m1", "bench:latest", "sleep", "600"})).Run() == nil {
			time.Sleep(3 * time.Second)
			for _, row := range b.supervisors(name) {
				fmt.Printf("| %s%s\n", name, row)
			}
			_ = b.command(slices.Concat(argv, []string{"rm", "-f", "m1"})).Run()
		}
	}
}

// logs lets a container write 1 GB of lines through each engine's log, detached, and reads 100 MB of lines back. The
// lines come from a file of 10 MB in a volume, so that the container's own work is next to nothing.
func (b *bench) logs() {
	e := b.engines()
	lines := filepath.Join(b.dir("lines"), "lines")
	must(os.WriteFile(lines, bytes.Repeat([]byte("the quick brown fox jumps over the lazy dog, and over the lazy log, again and again, a hundred bytes\n"), 100_000), 0o644))
	st, err := os.Stat(lines)
	must(err)
	var writes, reads []*contender
	for _, name := range b.order() {
		w, r := &contender{name: name}, &contender{name: name}
		writes, reads = append(writes, w), append(reads, r)
		argv, ok := e[name]
		if !ok {
			continue
		}
		extra := map[string][]string{"podman": {"--log-driver", "k8s-file"}}[name]
		if strings.HasPrefix(name, "onggi") {
			extra = []string{"--log-opt", "max-size=4g"} // the others keep all of it, too
		}
		run := func(id string, times int) error {
			out, err := b.command(slices.Concat(argv, []string{"run", "-d", "--network", "none", "--name", id, "-v", filepath.Dir(lines) + ":/lines:ro"}, extra,
				[]string{"bench:latest", "sh", "-c", fmt.Sprintf("i=0; while [ $i -lt %d ]; do cat /lines/lines; i=$((i+1)); done", times)})).CombinedOutput()
			if err != nil {
				return fmt.Errorf("%w: %s", err, lastLine(string(out)))
			}
			return b.command(slices.Concat(argv, []string{"wait", id})).Run()
		}
		remove := func(id string) { _ = b.command(slices.Concat(argv, []string{"rm", "-f", id})).Run() }
		w.deed = func() error { return run("l1", 100) }
		w.after = func() error { remove("l1"); b.one(r); return nil }
		r.prepare = func() error { return run("l2", 10) }
		r.deed = func() error {
			cmd := b.command(slices.Concat(argv, []string{"logs", "l2"}))
			out, err := cmd.StdoutPipe()
			if err == nil {
				err = cmd.Start()
			}
			if err != nil {
				return err
			}
			n, _ := io.Copy(io.Discard, out)
			if want := 10 * st.Size(); n != want {
				r.name = fmt.Sprintf("%s (incomplete: %d of %d bytes)", name, n, want)
			}
			return cmd.Wait()
		}
		r.after = func() error { remove("l2"); return nil }
	}
	n := max(2, b.n/7)
	b.rounds(n, writes...)
	b.table(fmt.Sprintf("engine: 1 GB of lines, detached, logged, until wait returns (%d rounds)", n), []aim{{than: []string{"podman"}, times: 4}}, writes...)
	b.table(fmt.Sprintf("engine: logs of 100 MB right after wait (%d rounds)", n), []aim{{limit: 500 * time.Millisecond}}, reads...)
}
