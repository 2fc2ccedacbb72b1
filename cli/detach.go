package cli

import (
	"bytes"
	"fmt"
	"os"
	"strings"

	"github.com/onggi/onggi/errdefs"
)

// defaultDetachKeys leave a container with a terminal to itself.
const defaultDetachKeys = "ctrl-p,ctrl-q"

// detachKeysUsage is the help text of --detach-keys.
const detachKeysUsage = "`keys` that leave the container's terminal and let it go on"

// parseDetachKeys reads a list of keys: single characters, ctrl-a to ctrl-z, ctrl-@ [ \ ] ^ _, and DEL.
func parseDetachKeys(s string) ([]byte, error) {
	if s == "" {
		s = defaultDetachKeys
	}
	var keys []byte
	for key := range strings.SplitSeq(s, ",") {
		char, ctrl := strings.CutPrefix(key, "ctrl-")
		switch {
		case ctrl && len(char) == 1 && char[0] >= 'a' && char[0] <= 'z':
			keys = append(keys, char[0]-'a'+1)
		case ctrl && len(char) == 1 && strings.Contains("@[\\]^_", char):
			keys = append(keys, char[0]-'@')
		case key == "DEL":
			keys = append(keys, 127)
		case !ctrl && len(key) == 1 && key[0] < 128:
			keys = append(keys, key[0])
		default:
			return nil, fmt.Errorf("there is no key %q: it is a character, ctrl- with one of a-z @ [ \\ ] ^ _, or DEL", key)
		}
	}
	return keys, nil
}

// readDetachKeys is parseDetachKeys with the flag's name.
func readDetachKeys(s string) ([]byte, error) {
	keys, err := parseDetachKeys(s)
	if err != nil {
		return nil, reading("--detach-keys", s, &errdefs.Error{Why: err.Error(), Fix: "for example: --detach-keys ctrl-x,d"})
	}
	return keys, nil
}

// keyWatch finds a sequence of keys in what is typed. The bytes that may begin it are held back until they do not.
type keyWatch struct {
	keys, held []byte
}

// feed returns what is to be passed on, and whether the sequence is complete; what follows it is dropped.
func (k *keyWatch) feed(b []byte) (pass []byte, found bool) {
	for _, c := range b {
		k.held = append(k.held, c)
		for len(k.held) > 0 && !bytes.HasPrefix(k.keys, k.held) {
			pass = append(pass, k.held[0])
			k.held = k.held[1:]
		}
		if len(k.held) == len(k.keys) {
			return pass, true
		}
	}
	return pass, false
}

// watchKeys returns a file in the place of a terminal's, from which everything comes that is typed there, until the keys
// are: then typed is called. What is read goes through this process, and only this: a terminal's input is slow.
func watchKeys(terminal *os.File, keys []byte, typed func()) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, &errdefs.Error{Op: "make", What: "a pipe", Kind: errdefs.KindOf(err), Err: err}
	}
	go func() {
		defer w.Close()
		watch := keyWatch{keys: keys}
		buf := make([]byte, 4096)
		for {
			n, err := terminal.Read(buf)
			pass, found := watch.feed(buf[:n])
			if len(pass) > 0 {
				if _, err := w.Write(pass); err != nil {
					return
				}
			}
			if found {
				_ = w.Close() // before anybody waits for the end of what was typed
				typed()
				return
			}
			if err != nil {
				_, _ = w.Write(watch.held)
				return
			}
		}
	}()
	return r, nil
}
