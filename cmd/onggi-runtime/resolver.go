package main

import (
	"context"
	"os"
	"runtime/debug"

	"github.com/onggi/onggi/network/resolver"
)

func init() { more["resolver"] = runResolver }

// runResolver is `onggi-runtime resolver DIR`: the process that answers containers' questions for names. Package network
// starts it.
func runResolver(args []string) int {
	g := globals{logFormat: "text"}
	if len(args) != 1 || len(args[0]) == 0 || args[0][0] != '/' {
		return g.fail("resolver", usageOf("resolver", "", "it takes one directory, the network's, by its whole path"))
	}
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(32 << 20)
	if err := os.Chdir("/"); err != nil {
		return g.fail("resolver", err)
	}
	if err := resolver.Serve(context.Background(), args[0]); err != nil {
		return g.fail("resolver", err)
	}
	return 0
}
