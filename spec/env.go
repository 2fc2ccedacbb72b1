package spec

import (
	"strconv"
	"strings"

	runspec "github.com/opencontainers/runtime-spec/specs-go"
)

// defaultPath is PATH where image and user set none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment: docker's own variables, then the image's, then the user's; a later value replaces an earlier one in its
// place, and a name without "=" removes it. HOME is the user's home directory where nobody set it.
func (g *generator) environment(s *runspec.Spec) error {
	env, err := environ(g.host, g.c.Tty, g.in.Home, g.image.Env, g.c.Env)
	s.Process.Env = env
	return err
}

func environ(hostname string, tty bool, home string, image, user []string) ([]string, error) {
	env := make([]string, 0, 4+len(image)+len(user))
	env = append(env, "PATH="+defaultPath, "HOSTNAME="+hostname)
	if tty {
		env = append(env, "TERM=xterm")
	}
	env = mergeEnv(env, image)
	for _, kv := range user {
		if strings.HasPrefix(kv, "=") || kv == "" || strings.IndexByte(kv, 0) >= 0 {
			return nil, invalid("--env", strconv.Quote(kv), "it has no name, or a NUL byte", "write NAME=VALUE")
		}
	}
	env = mergeEnv(env, user)
	for _, kv := range env {
		if strings.HasPrefix(kv, "HOME=") {
			return env, nil
		}
	}
	if home == "" {
		home = "/"
	}
	return append(env, "HOME="+home), nil
}

// mergeEnv applies changes to env, in order. Entries of an image that have no name are dropped: they come from
// outside and no program could read them.
func mergeEnv(env, changes []string) []string {
	for _, kv := range changes {
		name, _, set := strings.Cut(kv, "=")
		if name == "" || strings.IndexByte(kv, 0) >= 0 {
			continue
		}
		at := -1
		for i, old := range env {
			if n, _, _ := strings.Cut(old, "="); n == name {
				at = i
				break
			}
		}
		switch {
		case set && at >= 0:
			env[at] = kv
		case set:
			env = append(env, kv)
		case at >= 0:
			env = append(env[:at], env[at+1:]...)
		}
	}
	return env
}
