package spec

import (
	"slices"
	"strconv"
	"strings"

	"github.com/onggi/onggi/errdefs"
	runspec "github.com/opencontainers/runtime-spec/specs-go"
)

// Exec is a command to run in a container that runs.
type Exec struct {
	Args           []string
	Env            []string
	Workdir        string
	Tty            bool
	Privileged     bool
	UID, GID       uint32 // resolved by User
	AdditionalGids []uint32
	Home           string
	SameUser       bool // the container's own user: its HOME stays
}

// Process is the process of `exec` in a container that runs with spec s: its environment, directory, limits and
// restrictions, except what e says; privileged gives all held capabilities (and no seccomp, where the runtime can do
// without the container's).
func Process(s *runspec.Spec, e Exec, held []string) (*runspec.Process, error) {
	if len(e.Args) == 0 {
		return nil, &errdefs.Error{Op: "exec", Kind: errdefs.InvalidArgument, Why: "no command specified", Fix: "write a command behind the container's name"}
	}
	p := *s.Process
	p.Args, p.Terminal = e.Args, e.Tty
	p.ConsoleSize = nil
	p.User = runspec.User{UID: e.UID, GID: e.GID, AdditionalGids: e.AdditionalGids}
	for _, kv := range e.Env {
		if strings.HasPrefix(kv, "=") || kv == "" || strings.IndexByte(kv, 0) >= 0 {
			return nil, invalid("--env", strconv.Quote(kv), "it has no name, or a NUL byte", "write NAME=VALUE")
		}
	}
	env := slices.Clone(s.Process.Env)
	if e.Tty {
		if !slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, "TERM=") }) {
			env = append(env, "TERM=xterm")
		}
	}
	if !e.SameUser && e.Home != "" {
		env = mergeEnv(env, []string{"HOME=" + e.Home})
	}
	p.Env = mergeEnv(env, e.Env)
	if e.Workdir != "" {
		cwd, err := workdir(e.Workdir, "")
		if err != nil {
			return nil, err
		}
		p.Cwd = cwd
	}
	if e.Privileged {
		var caps []string
		for _, c := range AllCaps {
			if slices.Contains(held, c) {
				caps = append(caps, c)
			}
		}
		p.Capabilities = capSets(caps)
	}
	return &p, nil
}
