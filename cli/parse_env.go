package cli

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"github.com/onggi/onggi/errdefs"
)

// maxTextFile bounds every small file that a flag names (--env-file, --security-opt seccomp=).
const maxTextFile = 4 << 20

// readBounded reads a small file that a flag names.
func readBounded(flag, path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, &errdefs.Error{
			Op: "read the file of", What: flag + "=" + path, Kind: errdefs.KindOf(err),
			Fix: "check the path: it is relative to the working directory", Err: err,
		}
	}
	defer f.Close()
	var b bytes.Buffer
	if _, err = io.Copy(&b, io.LimitReader(f, maxTextFile+1)); err != nil {
		return nil, &errdefs.Error{Op: "read the file of", What: flag + "=" + path, Kind: errdefs.KindOf(err), Err: err}
	}
	if b.Len() > maxTextFile {
		return nil, badFlag(flag, path, fmt.Sprintf("the file is larger than %d MiB", maxTextFile>>20), "give the file that was meant")
	}
	return b.Bytes(), nil
}

// parseEnvFile reads docker's environment files: one KEY=VALUE a line, nothing quoted, nothing expanded; a line that
// begins with # and an empty line are skipped; a KEY alone takes the value from lookup and is left out without one.
// Leading white space belongs to the line's end of the key and is cut, trailing white space belongs to the value.
func parseEnvFile(b []byte, lookup func(string) (string, bool)) ([]string, error) {
	b = bytes.TrimPrefix(b, []byte("\xef\xbb\xbf")) // what Windows editors write first
	var env []string
	for n, line := range strings.Split(string(b), "\n") {
		line = strings.TrimSuffix(line, "\r")
		if !utf8.ValidString(line) {
			return nil, fmt.Errorf("line %d is not UTF-8 text", n+1)
		}
		line = strings.TrimLeft(line, " \t\v\f")
		if line == "" || line[0] == '#' {
			continue
		}
		key, value, given := strings.Cut(line, "=")
		switch {
		case key == "":
			return nil, fmt.Errorf("line %d has no name before the =", n+1)
		case strings.ContainsAny(key, " \t\v\f"):
			return nil, fmt.Errorf("line %d: the name %q contains white space", n+1, key)
		case strings.ContainsRune(line, 0):
			return nil, fmt.Errorf("line %d contains a null byte", n+1)
		}
		if !given {
			if value, given = lookup(key); !given {
				continue
			}
		}
		env = append(env, key+"="+value)
	}
	return env, nil
}

// parseEnv reads one -e: KEY=VALUE, or KEY alone, whose value comes from lookup. A KEY that lookup does not know is
// returned alone: it unsets the image's, as in docker.
func parseEnv(s string, lookup func(string) (string, bool)) (string, error) {
	key, _, given := strings.Cut(s, "=")
	switch {
	case key == "":
		return "", fmt.Errorf("a variable needs a name")
	case strings.ContainsRune(s, 0):
		return "", fmt.Errorf("a variable cannot contain a null byte")
	case given:
		return s, nil
	}
	if value, ok := lookup(key); ok {
		return key + "=" + value, nil
	}
	return key, nil
}

// mergeEnv keeps the last definition of each variable, at the place of its first.
func mergeEnv(lists ...[]string) []string {
	var out []string
	at := make(map[string]int)
	for _, list := range lists {
		for _, kv := range list {
			key, _, _ := strings.Cut(kv, "=")
			if i, ok := at[key]; ok {
				out[i] = kv
				continue
			}
			at[key] = len(out)
			out = append(out, kv)
		}
	}
	return out
}
