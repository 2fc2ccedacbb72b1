// Command onggi-build is BuildKit's Dockerfile frontend in a process of its own: onggi starts it, answers its questions on
// its standard input and output (package build/frontend), and performs the graph that it returns. It opens nothing and
// connects to nothing. It is not for people: onggi build is.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/onggi/onggi/build/dockerfile"
	"github.com/onggi/onggi/build/frontend"
)

func main() {
	if len(os.Args) > 1 {
		fmt.Fprintln(os.Stderr, "onggi-build: it takes no arguments: onggi starts it for `onggi build`")
		os.Exit(125)
	}
	if err := frontend.Serve(context.Background(), os.Stdin, os.Stdout, dockerfile.Build); err != nil {
		fmt.Fprintln(os.Stderr, "onggi-build:", err)
		os.Exit(1)
	}
}
