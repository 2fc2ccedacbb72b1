// Command onggi is the command line of the container stack of that name, with the whole engine in process.
package main

import (
	"embed"
	"io/fs"
	"os"

	"github.com/onggi/onggi/cli"
	"github.com/onggi/onggi/userns"
)

// embedded holds hello.tar, the image onggi/hello, when it was built (tools/hello-image) before this program.
//
//go:embed all:embedded
var embedded embed.FS

func main() {
	if len(os.Args) == 2 && os.Args[1] == userns.HoldArgument {
		os.Exit(userns.Hold())
	}
	var sub fs.FS
	if s, err := fs.Sub(embedded, "embedded"); err == nil {
		sub = s
	}
	os.Exit(cli.Main(cli.Options{Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Embedded: sub}))
}
