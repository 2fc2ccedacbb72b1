// Bench runs Onggi beside the runtimes and engines of Debian's packages, interleaved in one run, and prints minimum,
// median and the ratio of medians to ours. `make bench` starts it (scripts/bench) in a private mount and network
// namespace, so that daemons and bridges of the peers touch nothing of the host.
//
//	bench [-n N] [-only runtime,exec,engine,hundred,logs,memory,pull] -bin DIR -work DIR
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
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

type bench struct {
	bin, work  string
	n          int
	env        []string
	dockerd    *exec.Cmd
	registry   *exec.Cmd
	containerd *exec.Cmd
}

func main() {
	b := &bench{}
	only := flag.String("only", "runtime,exec,engine,hundred,logs,memory,pull", "sections")
	flag.StringVar(&b.bin, "bin", "bin", "where onggi and onggi-runtime are")
	flag.StringVar(&b.work, "work", "", "an empty directory for stores and bundles")
	flag.IntVar(&b.n, "n", 15, "repetitions")
	flag.Parse()
	if b.work == "" {
		fmt.Fprintln(os.Stderr, "bench: -work is needed")
		os.Exit(2)
	}
	b.bin, _ = filepath.Abs(b.bin)
	b.env = append(os.Environ(), "ONGGI_ROOT="+b.dir("onggi"), "ONGGI_RUN_ROOT="+b.dir("onggi-run"),
		"CONTAINERS_CONF="+b.podmanConf())
	defer b.stop()
	b.host()
	sections := map[string]func(){
		"runtime": b.runtime, "exec": b.execs, "engine": b.engine, "hundred": b.hundred,
		"logs": b.logs, "memory": b.memory, "pull": b.pull,
	}
	for _, s := range strings.Split(*only, ",") {
		f, ok := sections[s]
		if !ok {
			fmt.Fprintf(os.Stderr, "bench: no section %q\n", s)
			os.Exit(2)
		}
		f()
	}
}

// host prints what the figures were taken on.
func (b *bench) host() {
	rel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	load, _ := os.ReadFile("/proc/loadavg")
	fmt.Printf("kernel %s, load %s, n=%d\n", strings.TrimSpace(string(rel)), strings.Fields(string(load))[0], b.n)
	for _, v := range [][]string{{b.onggi(), "version"}, {"runc", "--version"}, {"crun", "--version"}, {"podman", "--version"}, {"dockerd", "--version"}, {"containerd", "--version"}} {
		if out, err := exec.Command(v[0], v[1:]...).Output(); err == nil {
			line, _, _ := strings.Cut(string(out), "\n")
			fmt.Println(" ", line)
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
	prepare func() error // before each run, not timed
	after   func() error // after each run, not timed
	err     error
	times   []time.Duration
}

// race runs the contenders in turn, n times, and prints the table. The first is ours.
func (b *bench) race(title string, n int, cs ...*contender) {
	for _, c := range cs { // one warm-up each, and a first look at whether it works
		if c.argv == nil {
			continue
		}
		b.one(c)
		c.times = nil
	}
	for range n {
		for _, c := range cs {
			if c.argv != nil && c.err == nil {
				b.one(c)
			}
		}
	}
	b.table(title, cs...)
}

func (b *bench) one(c *contender) {
	if c.prepare != nil {
		if c.err = c.prepare(); c.err != nil {
			return
		}
	}
	var out bytes.Buffer
	cmd := exec.Command(c.argv[0], c.argv[1:]...)
	cmd.Env = b.env
	cmd.Stderr = &out
	start := time.Now()
	err := cmd.Run()
	took := time.Since(start)
	if err != nil {
		c.err = fmt.Errorf("%w: %s", err, lastLine(out.String()))
	}
	c.times = append(c.times, took)
	if c.after != nil {
		if err := c.after(); err != nil && c.err == nil {
			c.err = err
		}
	}
}

func lastLine(s string) string {
	l := strings.Split(strings.TrimSpace(s), "\n")
	return l[len(l)-1]
}

func (b *bench) table(title string, cs ...*contender) {
	fmt.Printf("\n### %s\n\n| | min | median | median / ours |\n|---|---|---|---|\n", title)
	var ours time.Duration
	for i, c := range cs {
		if c.err != nil || len(c.times) == 0 {
			why := "not run"
			if c.err != nil {
				why = c.err.Error()
			}
			fmt.Printf("| %s | | | left out: %s |\n", c.name, strings.ReplaceAll(why, "|", "/"))
			continue
		}
		slices.Sort(c.times)
		med := c.times[len(c.times)/2]
		if i == 0 {
			ours = med
		}
		ratio := "-"
		if ours > 0 {
			ratio = fmt.Sprintf("%.2f", float64(med)/float64(ours))
		}
		fmt.Printf("| %s | %s | %s | %s |\n", c.name, ms(c.times[0]), ms(med), ratio)
	}
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

func (b *bench) runtime() {
	must(writeProfile(filepath.Join(b.work, "seccomp.json")))
	for _, sec := range []bool{false, true} {
		name, title := "plain", "OCI runtime: run true, no seccomp"
		if sec {
			name, title = "seccomp", "OCI runtime: run true, docker's default seccomp profile"
		}
		dir := b.bundle(name, sec, "true")
		run := func(bin string) *contender {
			return &contender{name: filepath.Base(bin), argv: []string{bin, "--root", b.dir("state-" + filepath.Base(bin)), "run", "--bundle", dir, "bench-" + filepath.Base(bin)}}
		}
		b.race(title, b.n*2, run(b.onggiRuntime()), run("crun"), run("runc"))
	}
	b.race("OCI runtime: state of the process start (version)", b.n*2,
		&contender{name: "onggi-runtime --version", argv: []string{b.onggiRuntime(), "--version"}},
		&contender{name: "onggi version", argv: []string{b.onggi(), "version"}},
		&contender{name: "crun --version", argv: []string{"crun", "--version"}},
		&contender{name: "runc --version", argv: []string{"runc", "--version"}},
		&contender{name: "/bin/true", argv: []string{"/bin/true"}})
}

func (b *bench) execs() {
	dir := b.bundle("sleep", false, "sleep", "600")
	var cs []*contender
	for _, bin := range []string{b.onggiRuntime(), "crun", "runc"} {
		root, id := b.dir("state-"+filepath.Base(bin)), "bench-exec"
		cmd := exec.Command(bin, "--root", root, "run", "--detach", "--bundle", dir, id)
		cmd.Env = b.env
		err := cmd.Run()
		c := &contender{name: filepath.Base(bin), err: err}
		if err == nil {
			c.argv = []string{bin, "--root", root, "exec", id, "true"}
			defer func() { _ = exec.Command(bin, "--root", root, "delete", "--force", id).Run() }()
		}
		cs = append(cs, c)
	}
	b.race("OCI runtime: exec true in a running container", b.n*2, cs...)
	for _, c := range cs {
		if c.argv != nil {
			c.argv = []string{c.argv[0], c.argv[1], c.argv[2], "state", "bench-exec"}
			c.times, c.err = nil, nil
		}
	}
	b.race("OCI runtime: state", b.n*2, cs...)
}

// engines returns a command line prefix per engine, with its image "bench" ready.
func (b *bench) engines() map[string][]string {
	tar := filepath.Join(b.work, "busybox.tar")
	if _, err := os.Stat(tar); err != nil {
		b.busybox(filepath.Join(b.work, "busybox-root"))
		must(exec.Command("tar", "-C", filepath.Join(b.work, "busybox-root"), "-cf", tar, ".").Run())
	}
	e := map[string][]string{"onggi": {b.onggi()}}
	if _, err := exec.LookPath("podman"); err == nil {
		e["podman"] = []string{"podman", "--root", b.dir("podman"), "--runroot", b.dir("podman-run"), "--tmpdir", b.dir("podman-tmp"), "--cgroup-manager", "cgroupfs", "--events-backend", "file", "--runtime", "crun"}
	}
	if b.startDocker() {
		e["docker"] = []string{"docker", "-H", "unix://" + b.work + "/d.sock"}
	}
	for name, argv := range e {
		if out, err := b.command(slices.Concat(argv, []string{"import", tar, "bench:latest"})).CombinedOutput(); err != nil {
			fmt.Printf("%s is left out: import: %v: %s\n", name, err, lastLine(string(out)))
			delete(e, name)
		}
	}
	return e
}

var order = []string{"onggi", "podman", "docker"}

func (b *bench) command(argv []string) *exec.Cmd {
	c := exec.Command(argv[0], argv[1:]...)
	c.Env = b.env
	return c
}

func (b *bench) startDocker() bool {
	if b.dockerd != nil {
		return true
	}
	if _, err := exec.LookPath("dockerd"); err != nil {
		return false
	}
	log, err := os.Create(filepath.Join(b.work, "dockerd.log"))
	must(err)
	c := exec.Command("dockerd", "--data-root", b.dir("docker"), "--exec-root", b.dir("docker-exec"), "-H", "unix://"+b.work+"/d.sock",
		"-p", b.work+"/d.pid", "--default-ulimit", "nofile=1024:4096", "--insecure-registry", "127.0.0.0/8")
	c.Stdout, c.Stderr = log, log
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if c.Start() != nil {
		return false
	}
	b.dockerd = c
	for range 150 {
		if exec.Command("docker", "-H", "unix://"+b.work+"/d.sock", "version").Run() == nil {
			return true
		}
		time.Sleep(100 * time.Millisecond)
	}
	fmt.Println("docker is left out: dockerd did not answer within 15 s")
	return false
}

func (b *bench) stop() {
	for _, c := range []*exec.Cmd{b.dockerd, b.registry, b.containerd} {
		if c != nil {
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
}

func (b *bench) engine() {
	e := b.engines()
	for _, net := range []string{"none", "bridge"} {
		var cs []*contender
		for _, name := range order {
			c := &contender{name: name}
			if argv, ok := e[name]; ok {
				c.argv = slices.Concat(argv, []string{"run", "--rm", "--network", net, "bench:latest", "true"})
			}
			cs = append(cs, c)
		}
		b.race("engine: run --rm true, network "+net, b.n, cs...)
	}
	var cs []*contender
	for _, name := range order {
		c := &contender{name: name}
		if argv, ok := e[name]; ok {
			if out, err := b.command(slices.Concat(argv, []string{"run", "-d", "--network", "none", "--name", "bench-exec", "bench:latest", "sleep", "600"})).CombinedOutput(); err != nil {
				c.err = fmt.Errorf("%w: %s", err, lastLine(string(out)))
			} else {
				c.argv = slices.Concat(argv, []string{"exec", "bench-exec", "true"})
				defer func() { _ = b.command(slices.Concat(argv, []string{"rm", "-f", "bench-exec"})).Run() }()
			}
		}
		cs = append(cs, c)
	}
	b.race("engine: exec true", b.n, cs...)
	for _, c := range cs {
		if c.argv != nil {
			c.argv = append(slices.Clone(c.argv[:len(c.argv)-3]), "ps")
			c.times, c.err = nil, nil
		}
	}
	b.race("engine: ps", b.n, cs...)
}

// hundred starts 100 containers, 16 at a time, and removes them.
func (b *bench) hundred() {
	e := b.engines()
	var start, remove []*contender
	for _, name := range order {
		s, r := &contender{name: name}, &contender{name: name}
		start, remove = append(start, s), append(remove, r)
		argv, ok := e[name]
		if !ok {
			continue
		}
		var wg sync.WaitGroup
		var mu sync.Mutex
		ids := make(chan int)
		began := time.Now()
		for range 16 {
			wg.Go(func() {
				for i := range ids {
					out, err := b.command(slices.Concat(argv, []string{"run", "-d", "--network", "none", "--name", "h" + strconv.Itoa(i), "bench:latest", "sleep", "600"})).CombinedOutput()
					if err != nil {
						mu.Lock()
						s.err = fmt.Errorf("%w: %s", err, lastLine(string(out)))
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
		s.times = append(s.times, time.Since(began))
		if s.err == nil {
			b.printMemory(name)
		}
		args := slices.Concat(argv, []string{"rm", "-f"})
		for i := range 100 {
			args = append(args, "h"+strconv.Itoa(i))
		}
		began = time.Now()
		if out, err := b.command(args).CombinedOutput(); err != nil {
			r.err = fmt.Errorf("%w: %s", err, lastLine(string(out)))
		}
		r.times = append(r.times, time.Since(began))
	}
	b.table("engine: 100 containers started, 16 commands at a time (one run)", start...)
	b.table("engine: those 100 removed by one rm -f (one run)", remove...)
}

// printMemory prints the proportional memory of the supervisors (monitor, conmon, shim) and daemons.
func (b *bench) printMemory(engine string) {
	want := map[string][]string{"onggi": {"onggi-runtime"}, "podman": {"conmon"}, "docker": {"containerd-shim", "dockerd", "containerd"}}[engine]
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	sum, count := map[string]int{}, map[string]int{}
	for _, d := range dirs {
		comm, _ := os.ReadFile(d + "/comm")
		for _, w := range want {
			if !strings.HasPrefix(strings.TrimSpace(string(comm)), w[:min(len(w), 15)]) {
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
			break
		}
	}
	for _, w := range want {
		if count[w] > 0 {
			fmt.Printf("memory with 100 containers, %s: %d x %s, %.0f KiB (Pss) each\n", engine, count[w], w, float64(sum[w])/float64(count[w]))
		}
	}
}

func (b *bench) memory() {
	e := b.engines()
	for _, name := range order {
		argv, ok := e[name]
		if !ok {
			continue
		}
		if b.command(slices.Concat(argv, []string{"run", "-d", "--network", "none", "--name", "m1", "bench:latest", "sleep", "600"})).Run() == nil {
			time.Sleep(time.Second)
			b.printMemory(name)
			_ = b.command(slices.Concat(argv, []string{"rm", "-f", "m1"})).Run()
		}
	}
}

// logs writes 1 GB through each engine's log, detached, then reads 100 MB back.
func (b *bench) logs() {
	e := b.engines()
	write, read := []*contender{}, []*contender{}
	for _, name := range order {
		w, r := &contender{name: name}, &contender{name: name}
		write, read = append(write, w), append(read, r)
		argv, ok := e[name]
		if !ok {
			continue
		}
		line := "yes 'the quick brown fox jumps over the lazy dog, and over the lazy log again and again, 100 bytes or so' | head -c "
		run := func(id, size string) error {
			extra := []string{"run", "-d", "--network", "none", "--name", id}
			if name == "onggi" {
				extra = append(extra, "--log-opt", "max-size=4g")
			}
			out, err := b.command(slices.Concat(argv, extra, []string{"bench:latest", "sh", "-c", line + size})).CombinedOutput()
			if err != nil {
				return fmt.Errorf("%w: %s", err, lastLine(string(out)))
			}
			return b.command(slices.Concat(argv, []string{"wait", id})).Run()
		}
		began := time.Now()
		if w.err = run("l1", "1000000000"); w.err == nil {
			w.times = append(w.times, time.Since(began))
		}
		_ = b.command(slices.Concat(argv, []string{"rm", "-f", "l1"})).Run()
		if r.err = run("l2", "100000000"); r.err == nil {
			cmd := b.command(slices.Concat(argv, []string{"logs", "l2"}))
			out, _ := cmd.StdoutPipe()
			began = time.Now()
			if r.err = cmd.Start(); r.err == nil {
				n, _ := io.Copy(io.Discard, out)
				r.err = cmd.Wait()
				r.times = append(r.times, time.Since(began))
				if n != 100_000_000 {
					r.name += fmt.Sprintf(" (incomplete: %d of 100000000 bytes)", n)
				}
			}
		}
		_ = b.command(slices.Concat(argv, []string{"rm", "-f", "l2"})).Run()
	}
	b.table("engine: 1 GB of output, detached, logged (one run)", write...)
	b.table("engine: logs of 100 MB right after wait (one run)", read...)
}
