package cli

import (
	"bufio"
	"io"
	"sync"
	"time"

	"github.com/onggi/onggi/engine"
	"github.com/onggi/onggi/errdefs"
	"github.com/spf13/cobra"
)

func buildLogs(a *app, c *cobra.Command) {
	var (
		o                  engine.LogOptions
		tail, since, until string
	)
	c.Use = "logs [FLAGS] CONTAINER"
	c.Long = `Print what a container has written, its stdout on stdout and its stderr on stderr. Logs are bounded: by default the newest
30 MiB are kept (run --log-opt).`
	c.Example = `  onggi logs web
  onggi logs -f --tail 20 web                   the last lines, and what follows
  onggi logs --since 10m -t web                 the last ten minutes, with times
  onggi logs --since 2026-01-31T12:00:00 --until 2026-01-31T13:00:00 web`
	f := c.Flags()
	f.BoolVarP(&o.Follow, "follow", "f", false, "go on until the container ends")
	f.BoolVarP(&o.Timestamps, "timestamps", "t", false, "print each line's time")
	f.StringVarP(&tail, "tail", "n", "all", "print the last `lines` only")
	f.StringVar(&since, "since", "", "print what came after `time` (2026-01-31T12:00:00, or 10m ago)")
	f.StringVar(&until, "until", "", "print what came before `time`")
	c.Args = takes(1, 1, "the name or id of a container")
	c.RunE = func(c *cobra.Command, args []string) error {
		o.Tail = -1
		if tail != "all" {
			n, err := parseInt(tail, -1, 1<<31-1)
			if err != nil {
				return reading("--tail", tail, err)
			}
			o.Tail = int(n)
		}
		now := time.Now()
		for _, x := range []struct {
			flag, value string
			t           *time.Time
		}{{"--since", since, &o.Since}, {"--until", until, &o.Until}} {
			if c.Flags().Changed(x.flag[2:]) {
				t, err := parseTime(x.value, now)
				if err != nil {
					return reading(x.flag, x.value, err)
				}
				*x.t = t
			}
		}
		e, err := a.open()
		if err != nil {
			return err
		}
		ctx, cancel := a.context(c.Context())
		defer cancel()
		stdout, stderr := io.Writer(a.out), io.Writer(a.err)
		flush := func() error { return nil }
		if !o.Follow { // whole log: fewer, larger writes
			both := newPair(a.out, a.err)
			stdout, stderr, flush = both.stdout(), both.stderr(), both.flush
		}
		err = e.Logs(ctx, args[0], o, stdout, stderr)
		if ferr := flush(); err == nil {
			err = ferr
		}
		if o.Follow && errdefs.Is(err, errdefs.Canceled) && a.caught != 0 {
			return &exit{code: 128 + int(a.caught)} // Ctrl-C is how following ends
		}
		return err
	}
}

// pair buffers two streams that may be one terminal: what waits for the one is written before the other goes on, so
// that lines appear in the order in which they were written.
type pair struct {
	mu       sync.Mutex
	out, err *bufio.Writer
}

func newPair(out, err io.Writer) *pair {
	return &pair{out: bufio.NewWriterSize(out, 64<<10), err: bufio.NewWriterSize(err, 64<<10)}
}

type half struct {
	p           *pair
	mine, other *bufio.Writer
}

func (p *pair) stdout() io.Writer { return &half{p, p.out, p.err} }
func (p *pair) stderr() io.Writer { return &half{p, p.err, p.out} }

func (h *half) Write(b []byte) (int, error) {
	h.p.mu.Lock()
	defer h.p.mu.Unlock()
	if h.other.Buffered() > 0 {
		if err := h.other.Flush(); err != nil {
			return 0, err
		}
	}
	return h.mine.Write(b)
}

func (p *pair) flush() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	err := p.out.Flush()
	if e := p.err.Flush(); err == nil {
		err = e
	}
	return err
}
