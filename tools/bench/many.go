package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// manyContainers is how many lie around in the races of many.
const manyContainers = 1000

// many races the commands that look at all containers where there are a thousand, and a start beside a thousand that do
// not run with a start beside none; and stats of a hundred that run.
func (b *bench) many() {
	e := b.engines()
	full := map[string][]string{} // command lines of stores that are full
	for _, name := range b.order() {
		argv, ok := e[name]
		if !ok {
			continue
		}
		if strings.HasPrefix(name, "onggi") { // the other store stays as it is: beside none
			root := "many-" + strings.Trim(name, "()")
			argv = slices.Concat(argv, []string{"--root", b.dir(strings.ReplaceAll(root, " ", "")), "--run-root", b.run(strings.ReplaceAll(root, " ", ""))})
			if out, err := b.command(slices.Concat(argv, []string{"import", b.work + "/busybox.tar", "bench:latest"})).CombinedOutput(); err != nil {
				fmt.Printf("%s is left out: import: %v: %s\n", name, err, lastLine(string(out)))
				continue
			}
		}
		full[name] = argv
		for i := range manyContainers {
			if out, err := b.command(slices.Concat(argv, []string{"create", "--network", "none", "--name", "m" + strconv.Itoa(i), "bench:latest", "true"})).CombinedOutput(); err != nil {
				fmt.Printf("%s is left out: create: %v: %s\n", name, err, lastLine(string(out)))
				delete(full, name)
				break
			}
		}
	}
	among := func(args ...string) []*contender {
		var cs []*contender
		for _, name := range b.order() {
			c := &contender{name: name}
			if argv, ok := full[name]; ok {
				c.argv = slices.Concat(argv, args)
			}
			cs = append(cs, c)
		}
		return cs
	}
	peers := []string{"podman", "docker"}
	b.race(fmt.Sprintf("engine: ps -a, %d containers", manyContainers), b.n, []aim{{limit: 30 * time.Millisecond}, {than: peers, times: 10}}, among("ps", "-a")...)
	b.race(fmt.Sprintf("engine: ps -a --filter label=x, %d containers", manyContainers), b.n, nil, among("ps", "-a", "--filter", "label=x")...)
	cs := among("run", "--rm", "--network", "none", "bench:latest", "true")
	cs = append(cs, &contender{name: "onggi, no others", argv: slices.Concat(e["onggi"], []string{"run", "--rm", "--network", "none", "bench:latest", "true"})})
	b.race(fmt.Sprintf("engine: run --rm true beside %d containers", manyContainers), b.n, []aim{{than: []string{"onggi, no others"}, times: 1 / 1.2}}, cs...)

	const watched = 100
	for name, argv := range full {
		for i := range watched {
			run := slices.Concat(argv, []string{"run", "-d", "--network", "none", "--name", "s" + strconv.Itoa(i), "bench:latest", "sleep", "100000"})
			if out, err := b.command(run).CombinedOutput(); err != nil {
				fmt.Printf("%s is left out: run: %v: %s\n", name, err, lastLine(string(out)))
				delete(full, name)
				break
			}
		}
	}
	b.race(fmt.Sprintf("engine: stats --no-stream of %d containers", watched), max(3, b.n/4), []aim{{limit: 50 * time.Millisecond}}, among("stats", "--no-stream")...)
	b.race(fmt.Sprintf("engine: ps, %d of %d run", watched, manyContainers+watched), b.n, nil, among("ps")...)
	for name, argv := range full {
		args := slices.Concat(argv, []string{"rm", "-f"})
		if name == "podman" {
			args = append(args, "-t", "0")
		}
		for i := range watched {
			args = append(args, "s"+strconv.Itoa(i))
		}
		for i := range manyContainers {
			args = append(args, "m"+strconv.Itoa(i))
		}
		if out, err := b.command(args).CombinedOutput(); err != nil {
			fmt.Printf("%s: rm: %v: %s\n", name, err, lastLine(string(out)))
		}
	}
}
