package cli

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/onggi/onggi/errdefs"
	"golang.org/x/term"
)

// terminal is the user's terminal in raw mode: every key goes to the container, Ctrl-C included.
type terminal struct {
	fd    int
	state *term.State
}

// raw puts the user's terminal in raw mode. It returns nil when stdin is none: then there is nothing to restore. The
// caller restores it on every way out.
func (a *app) raw() (*terminal, error) {
	fd := int(a.in.Fd())
	if !term.IsTerminal(fd) {
		return nil, nil
	}
	state, err := term.MakeRaw(fd)
	if err != nil {
		return nil, &errdefs.Error{Op: "set", What: "the terminal to raw mode", Kind: errdefs.KindOf(err), Err: err}
	}
	return &terminal{fd, state}, nil
}

// restore gives the terminal back as it was. It may be called more than once, and on nil.
func (t *terminal) restore() {
	if t != nil && t.state != nil {
		_ = term.Restore(t.fd, t.state)
		t.state = nil
	}
}

// size is the size of the user's terminal in characters, zero when no stream is one.
func (a *app) size() (width, height uint16) {
	for _, f := range []*os.File{a.out, a.in, a.err} {
		if w, h, err := term.GetSize(int(f.Fd())); err == nil && w > 0 && h > 0 && w < 1<<16 && h < 1<<16 {
			return uint16(w), uint16(h)
		}
	}
	return 0, 0
}

// followSize calls resize with the terminal's size each time it changes, until ctx ends. It reads the size once at the
// beginning too: the window may have changed while the container was being made.
func (a *app) followSize(ctx context.Context, resize func(w, h uint16)) {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	go func() {
		defer signal.Stop(changed)
		var width, height uint16
		for {
			if w, h := a.size(); w != 0 && (w != width || h != height) {
				width, height = w, h
				resize(w, h)
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
}

// needTerminal is the refusal of -i -t where stdin is a file or a pipe.
func (a *app) needTerminal(op string) error {
	if term.IsTerminal(int(a.in.Fd())) {
		return nil
	}
	return &exit{125, &errdefs.Error{
		Op: op, Kind: errdefs.InvalidArgument,
		Why: "the input device is not a TTY, and -t with -i gives the container this terminal's keys",
		Fix: "leave -t out to feed a file or a pipe to the command; leave -i out if it needs no input",
	}}
}
