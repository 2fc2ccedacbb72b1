package cli

import (
	"encoding/json"
	"fmt"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// parseChange applies one --change of import to an image's configuration: an instruction of a Dockerfile that touches
// no file. Shell form runs under /bin/sh -c, exec form is a JSON array.
func parseChange(s string, c *ocispec.ImageConfig) error {
	word, rest, _ := strings.Cut(strings.TrimSpace(s), " ")
	rest = strings.TrimSpace(rest)
	if rest == "" {
		return fmt.Errorf("the instruction needs a value")
	}
	if strings.ContainsRune(s, 0) {
		return fmt.Errorf("it contains a null byte")
	}
	switch strings.ToUpper(word) {
	case "CMD":
		return commandForm(rest, &c.Cmd)
	case "ENTRYPOINT":
		return commandForm(rest, &c.Entrypoint)
	case "ENV":
		return pairs(rest, func(k, v string) { c.Env = mergeEnv(c.Env, []string{k + "=" + v}) })
	case "LABEL":
		return pairs(rest, func(k, v string) {
			if c.Labels == nil {
				c.Labels = make(map[string]string)
			}
			c.Labels[k] = v
		})
	case "EXPOSE":
		for _, p := range strings.Fields(rest) {
			port, protocol, given := strings.Cut(p, "/")
			if _, err := parseInt(port, 1, 65535); err != nil {
				return fmt.Errorf("%q is not a port", p)
			}
			if !given {
				protocol = "tcp"
			}
			if protocol != "tcp" && protocol != "udp" && protocol != "sctp" {
				return fmt.Errorf("%q is not a protocol", protocol)
			}
			if c.ExposedPorts == nil {
				c.ExposedPorts = make(map[string]struct{})
			}
			c.ExposedPorts[port+"/"+protocol] = struct{}{}
		}
	case "USER":
		c.User = rest
	case "WORKDIR":
		if !strings.HasPrefix(rest, "/") {
			return fmt.Errorf("a working directory is an absolute path")
		}
		c.WorkingDir = rest
	case "STOPSIGNAL":
		c.StopSignal = rest
	case "VOLUME":
		var paths []string
		if json.Unmarshal([]byte(rest), &paths) != nil {
			paths = strings.Fields(rest)
		}
		for _, p := range paths {
			if err := mountTarget(p); err != nil {
				return err
			}
			if c.Volumes == nil {
				c.Volumes = make(map[string]struct{})
			}
			c.Volumes[p] = struct{}{}
		}
	default:
		return fmt.Errorf("%s cannot be applied to an image that exists already", word)
	}
	return nil
}

// commandForm reads the exec or the shell form of a command.
func commandForm(s string, to *[]string) error {
	if strings.HasPrefix(s, "[") {
		var argv []string
		if err := json.Unmarshal([]byte(s), &argv); err != nil {
			return fmt.Errorf("the list is not a JSON array of strings")
		}
		*to = argv
		return nil
	}
	*to = []string{"/bin/sh", "-c", s}
	return nil
}

// pairs reads KEY=VALUE words; a value may be quoted. The older form "KEY VALUE" is one pair.
func pairs(s string, add func(k, v string)) error {
	first, rest, _ := strings.Cut(s, " ")
	if !strings.Contains(first, "=") {
		if rest == "" {
			return fmt.Errorf("%q has no value", first)
		}
		add(first, strings.TrimSpace(rest))
		return nil
	}
	words, err := splitWords(s)
	if err != nil {
		return err
	}
	for _, w := range words {
		k, v, ok := strings.Cut(w, "=")
		if !ok || k == "" {
			return fmt.Errorf("%q is not KEY=VALUE", w)
		}
		add(k, v)
	}
	return nil
}

// splitWords splits at white space outside of quotes, and removes quotes and backslashes as a shell does.
func splitWords(s string) ([]string, error) {
	var words []string
	var b strings.Builder
	inWord, quote := false, byte(0)
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '\\' && quote != '\'':
			if i++; i == len(s) {
				return nil, fmt.Errorf("nothing follows the last backslash")
			}
			b.WriteByte(s[i])
			inWord = true
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '"' || c == '\''):
			quote, inWord = c, true
		case quote == 0 && (c == ' ' || c == '\t' || c == '\n'):
			if inWord {
				words = append(words, b.String())
				b.Reset()
			}
			inWord = false
		default:
			b.WriteByte(c)
			inWord = true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("the quote %c is not closed", quote)
	}
	if inWord {
		words = append(words, b.String())
	}
	return words, nil
}
