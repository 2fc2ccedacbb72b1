// Command conformance runs the validation programs of opencontainers/runtime-tools on a runtime and compares what they say
// with the table below: what is expected to fail fails for a reason that is written down. scripts/conformance builds them.
//
//	conformance -runtime PATH -tests DIR [-out DIR] [-only NAME]
//
// A file passes when it records at least one result, none of them "not ok", and exits with 0. The exit code is 1 when a
// file fails that is not in the table, or when fewer than -least pass.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Whose fault it is that a file does not pass.
const (
	suite = "the suite"
	host  = "the host"
	spec  = "the specification"
)

// reasons of the files that need not pass; doc/conformance.md has the same.
var reasons = map[string]struct{ who, why string }{
	"hooks":                {suite, "it records no result, whatever happens"},
	"poststart":            {suite, "it records no result, whatever happens"},
	"poststart_fail":       {suite, "it records no result; it expects what version 1.0.0 said: since 1.0.1 a failing poststart hook stops the container"},
	"poststop":             {suite, "it records no result, whatever happens"},
	"poststop_fail":        {suite, "it records no result, whatever happens"},
	"prestart":             {suite, "it records no result, whatever happens"},
	"prestart_fail":        {suite, "it records no result, whatever happens"},
	"process_rlimits_fail": {suite, "it records no result, whatever happens"},

	"delete_resources":            {suite, "it compares the pointers to pids.limit, not the numbers: they are never equal"},
	"linux_cgroups_pids":          {suite, "it compares the pointers to pids.limit, not the numbers: they are never equal"},
	"linux_cgroups_relative_pids": {suite, "it compares the pointers to pids.limit, not the numbers: they are never equal"},
	"misc_props":                  {suite, "its container is to run /runtimetest, which is not in the bundle: no runtime can start it"},
	"pidfile":                     {suite, "it kills a container whose command, true, has ended long before; kill must then be an error (the file kill asks for that)"},
	"start":                       {suite, "its last check expects start without a process to succeed, under the words that it must fail"},
	"process_capabilities_fail":   {spec, "an unknown capability must be an error for it; since version 1.1 it must be a warning"},
	"killsig":                     {suite, "a race: it sends the signal as soon as the container runs, and start returns before the shell has set its trap"},

	"linux_cgroups_memory":           {host, "it sets memory.kernel, which kernels since 5.16 do not take"},
	"linux_cgroups_relative_memory":  {host, "it sets memory.kernel, which kernels since 5.16 do not take"},
	"linux_cgroups_blkio":            {host, "it sets leafWeight, which went away with the CFQ scheduler (Linux 5.0)"},
	"linux_cgroups_relative_blkio":   {host, "it sets leafWeight, which went away with the CFQ scheduler (Linux 5.0)"},
	"linux_cgroups_network":          {host, "the v1 controllers net_cls and net_prio are not mounted"},
	"linux_cgroups_relative_network": {host, "the v1 controllers net_cls and net_prio are not mounted"},
	"linux_cgroups_hugetlb":          {host, "the v1 controller hugetlb is not mounted"},
	"linux_cgroups_relative_hugetlb": {host, "the v1 controller hugetlb is not mounted"},
	"linux_process_apparmor_profile": {host, "AppArmor is not enabled, or the profile acme_secure_profile is not loaded"},
	"process_capabilities":           {host, "it asks for all capabilities, of which a nested host lacks some (CAP_SYS_RESOURCE)"},
}

type result struct {
	ok, notOK, skipped, code int
	first                    string // of the failures
}

func (r result) passes() bool { return r.code == 0 && r.ok > 0 && r.notOK == 0 }

func main() {
	runtime := flag.String("runtime", "", "the runtime")
	tests := flag.String("tests", "", "where the programs are, and runtimetest and the root file system beside them")
	out := flag.String("out", "", "keep what each has said here")
	only := flag.String("only", "", "run this file alone")
	least := flag.Int("least", 33, "how many must pass")
	flag.Parse()
	list, err := filepath.Glob(filepath.Join(*tests, "t", "*"))
	if err != nil || len(list) == 0 || *runtime == "" {
		fmt.Fprintln(os.Stderr, "conformance: -runtime and -tests are needed:", err)
		os.Exit(2)
	}
	passed, unexpected := 0, 0
	for _, p := range list {
		name := filepath.Base(p)
		if *only != "" && name != *only {
			continue
		}
		r := run(p, *runtime, *tests, *out)
		why, known := reasons[name]
		word, tail := "ok  ", ""
		switch {
		case r.passes():
			passed++
			if known {
				tail = " (not expected: " + why.why + ")"
			}
		case known:
			word, tail = "-   ", " "+why.who+": "+why.why
		default:
			word, tail = "FAIL", " "+r.first
			unexpected++
		}
		fmt.Printf("%s %-32s %3d ok %2d not ok %2d skipped%s\n", word, name, r.ok, r.notOK, r.skipped, tail)
	}
	fmt.Printf("%d of %d files pass; %d fail for no reason that is known\n", passed, len(list), unexpected)
	if unexpected > 0 || *only == "" && passed < *least {
		os.Exit(1)
	}
}

// run runs a program, once more when it fails, and reads its TAP.
func run(program, runtime, dir, out string) (r result) {
	for range 2 {
		c := exec.Command(program)
		c.Dir = dir
		c.Env = append(os.Environ(), "RUNTIME="+runtime)
		var stdout, stderr bytes.Buffer
		c.Stdout, c.Stderr = &stdout, &stderr
		c.WaitDelay = 5 * time.Second
		timer := time.AfterFunc(2*time.Minute, func() { _ = c.Process.Kill() })
		err := c.Run()
		timer.Stop()
		r = result{}
		var exit *exec.ExitError
		if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 0) {
			r.code, r.first = 1, strings.TrimSpace(stderr.String())
		}
		for line := range strings.Lines(stdout.String()) {
			switch {
			case strings.HasPrefix(line, "not ok"):
				if r.notOK == 0 {
					r.first = strings.TrimSpace(line) + ": " + strings.TrimSpace(stderr.String())
				}
				r.notOK++
			case strings.HasPrefix(line, "ok") && strings.Contains(strings.ToLower(line), "# skip"):
				r.skipped++
				r.ok++
			case strings.HasPrefix(line, "ok"):
				r.ok++
			}
		}
		if out != "" {
			_ = os.MkdirAll(out, 0o755)
			_ = os.WriteFile(filepath.Join(out, filepath.Base(program)), append(stdout.Bytes(), stderr.Bytes()...), 0o644)
		}
		if r.passes() || r.ok+r.notOK == 0 {
			break
		}
	}
	return r
}
