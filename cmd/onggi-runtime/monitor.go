package main

import (
	"context"
	"os"
	"strconv"

	"github.com/onggi/onggi/runtime/launch"
	"github.com/onggi/onggi/runtime/monitor"
)

func init() { more["monitor"] = monitorCommand }

// monitorCommand is a container's parent (package monitor). It is not for people: engines start it.
//
//	onggi-runtime monitor --config PATH | --resume FD ID | --sleep PATH MILLISECONDS COMMAND...
func monitorCommand(args []string) int {
	if len(args) >= 2 && args[0] == "--resume" { // the id behind it is for people who look at ps
		if fd, err := strconv.Atoi(args[1]); err == nil {
			return monitor.Resume(fd, adopt)
		}
	}
	if len(args) >= 1 && args[0] == "--sleep" {
		return monitor.Sleep(args[1:])
	}
	if len(args) != 2 || args[0] != "--config" {
		_, _ = os.Stderr.WriteString("onggi-runtime: monitor is started by the engine, with --config PATH\n")
		return 125
	}
	return monitor.Main(args[1], createHere, adopt)
}

// adopt finds a container again that this process has made before it executed itself once more.
func adopt(cfg *monitor.Config, _ int) (monitor.Process, error) {
	c, err := launch.Load(cfg.RuntimeRoot, cfg.ID)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// createHere makes the container with our own runtime, in this process.
func createHere(ctx context.Context, cfg *monitor.Config, stdio monitor.Stdio) (monitor.Process, error) {
	p := &process{}
	c, err := launch.Create(ctx, launch.Options{
		Root: cfg.RuntimeRoot, ID: cfg.ID, Bundle: cfg.Bundle, Rootfs: cfg.Rootfs,
		Stdio: [3]*os.File{stdio.In, stdio.Out, stdio.Err},
		Init:  cfg.Init, Timing: true,
		Warn: func(w string) { p.warnings = append(p.warnings, w) },
	})
	if err != nil {
		return nil, err
	}
	p.Container = c
	return p, nil
}

// process is a container with what its creation had to clamp or leave out.
type process struct {
	*launch.Container
	warnings []string
}

func (p *process) Warnings() []string { return p.warnings }
