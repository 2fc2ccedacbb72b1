// Command onggi-hello is the program of the image onggi/hello: it looks around inside its container and reports what
// a virtual machine would have booted there, and what the kernel gave instead. It speaks Korean when LC_ALL,
// LC_MESSAGES or LANG begins with "ko", and English otherwise. It needs nothing but /proc and a writable /tmp, and
// what it cannot read it leaves out. With -summary it says the most of it in one line: a build step does (Dockerfile).
package main

import (
	"fmt"
	"os"
	"strings"
	"time"
)

func main() {
	f := gather("/", time.Now())
	if len(os.Args) == 2 && os.Args[1] == "-summary" {
		fmt.Printf("kernel %s, %d process, uid %d, %d of %d capabilities, root is %s\n", f.kernel, f.procs, f.uid, len(f.caps), f.allCaps, f.rootType)
		return
	}
	r := renderer{text: english, colour: colour()}
	if korean(os.Getenv) {
		r.text = hangul
	}
	if _, err := os.Stdout.WriteString(r.report(f)); err != nil {
		os.Exit(1)
	}
}

// korean follows the order in which locale(7) reads the environment.
func korean(env func(string) string) bool {
	for _, name := range []string{"LC_ALL", "LC_MESSAGES", "LANG"} {
		if v := env(name); v != "" {
			return strings.HasPrefix(v, "ko")
		}
	}
	return false
}

// colour: on a terminal, or when the command line says that its own stdout is one (without -t there is a pipe between);
// never with NO_COLOR.
func colour() bool {
	if os.Getenv("NO_COLOR") != "" {
		return false
	}
	if os.Getenv("CLICOLOR_FORCE") == "1" {
		return true
	}
	i, err := os.Stdout.Stat()
	return err == nil && i.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
}
