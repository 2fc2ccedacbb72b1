package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// buildFile has two stages that do not depend on each other, copies between stages, a context of many files, and a last
// command.
const buildFile = `FROM bench AS many
RUN i=0; mkdir /many; while [ $i -lt 1500 ]; do echo $i > /many/$i; i=$((i+1)); done
FROM bench AS big
RUN head -c 30000000 /dev/urandom > /big
FROM bench
COPY --from=many /many /many
COPY --from=big /big /big
COPY . /src
RUN echo /src/* | busybox wc -w > /count
`

// builds races whole builds: cold, with nothing changed, with one file of 2,000 changed; and a context of 20,000 files.
// docker's is the classic builder, which Debian's has; it knows neither branches side by side nor a context that is not sent.
func (b *bench) builds() {
	engines := b.engines()
	context := func(name, text string, files int) string {
		dir := b.dir(name)
		for i := range files {
			p := filepath.Join(dir, "d"+strconv.Itoa(i%50), strconv.Itoa(i))
			must(os.MkdirAll(filepath.Dir(p), 0o755))
			must(os.WriteFile(p, fmt.Appendf(nil, "file %d\n", i), 0o644))
		}
		must(os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(text), 0o644))
		return dir
	}
	small := context("build-context", buildFile, 2000)
	large := context("build-large", "FROM bench\nCOPY . /src\n", 20000)
	race := func(title, dir string, n int, aims []aim, prepare func() error, more ...string) {
		var cs []*contender
		for _, name := range b.order() {
			argv, ok := engines[name]
			if !ok {
				continue
			}
			c := &contender{name: name, prepare: prepare, argv: slices.Concat(argv, []string{"build", "--network", "none"}, more, []string{"-t", "built", dir})}
			if name == "docker" {
				c.name, c.argv = "docker (classic)", slices.Concat([]string{"env", "DOCKER_BUILDKIT=0"}, c.argv)
			}
			if name == "podman" {
				c.argv = slices.Concat(argv, []string{"build", "--network", "none", "--layers", "--jobs", "2", "--pull=never"}, more, []string{"-t", "built", dir})
			}
			cs = append(cs, c)
		}
		b.race(title, n, aims, cs...)
	}
	few := max(3, b.n/7)
	// A rested disk: ext4 avoids inodes that were freed in the last seconds, and all of these builds free many.
	rest := func() error { time.Sleep(2 * time.Second); return nil }
	race("build: all steps, --no-cache", small, few, []aim{{than: []string{"podman"}, times: 1.8}}, rest, "--no-cache")
	race("build: nothing changed", small, b.n, []aim{{limit: 60 * time.Millisecond}}, nil)
	changes := 0
	race("build: one file of 2,000 changed", small, few, []aim{{limit: 1300 * time.Millisecond}}, func() error {
		changes++
		return os.WriteFile(filepath.Join(small, "d7", "7"), []byte(strconv.Itoa(changes)), 0o644)
	})
	race("build: a context of 20,000 files, nothing changed", large, few, []aim{{limit: 300 * time.Millisecond}}, nil)

	most := int64(0)
	for _, args := range [][]string{{"--no-cache", small}, {small}, {"--no-cache", large}, {large}} {
		c := b.command(slices.Concat(engines["onggi"], []string{"build", "-q", "--network", "none"}, args))
		if out, err := c.CombinedOutput(); err != nil {
			fmt.Printf("the memory of builds is left out: %v: %s\n", err, lastLine(string(out)))
			return
		}
		most = max(most, c.ProcessState.SysUsage().(*syscall.Rusage).Maxrss) // of itself and the processes that it waited for
	}
	b.verdict("build: most memory of a process, of all of the above", "at most 150 MiB", fmt.Sprintf("%.1f MiB", float64(most)/1024), most <= 150<<10)
}
